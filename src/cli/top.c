/* Top: `manhole-cli top`, what processes do, or the threads of one, every two seconds.
 *
 *     PID S  CPU%      RSS  THR  TASKS  WHERE
 *    4711 S   0.0    30.2M    3      -  in sleep at /srv/shop/arbiter.py:357
 *    4712 R  99.5    26.4M    4     12  worker holds the GIL in loads at /srv/shop/basket.py:12
 *
 * What it costs them. The kernel is asked each time: of that a process notices nothing. For its
 * stacks, and how many tasks it has, the process is asked, which takes its own time. So no look is
 * repeated before SHARE times as long has passed as it took: with a thousand threads, too, looks
 * are less than 1 % of a core, they only come less often. A look that took long because Python did
 * not answer was no work, so there it is STUCK_PAUSE_S at most.
 *
 * A look that has not come after LOOK_PATIENCE_MS is shown when it comes; until then the last one
 * is, and how old it is. The first look is in the process's log, as any client is; those after it
 * have a channel that is not, so that a log is not filled by who watches.
 *
 * On a terminal each view is written over the last one, elsewhere below it. Ctrl-C ends it, and
 * --timeout.
 */
#ifndef MANHOLE_CLI_TOP_C
#define MANHOLE_CLI_TOP_C

#include "brief.c"
#include "processes.c"
#include "stacks.c"

enum {
    PERIOD_MS = 2000,
    LOOK_PATIENCE_MS = 500, /* for looks, before a view is shown */
    RENEWAL_PERIODS = 5,    /* of which process there are: workers come and go */
    SHARE = 120,            /* looks are to stay below 1 % */
    STUCK_PAUSE_S = 20,     /* at most, when Python does not answer */
    STALE_S = 6,            /* older looks say so */
};

/* One question to a process, asked again and again. */
struct look {
    int fd; /* -1: nobody is asked now */
    double begun;
    double next;        /* not before */
    double seen;        /* when there was an answer; 0: never */
    bool is_old;        /* the server does not know it: it is not asked again */
    struct buffer text; /* what has come */
    struct buffer last; /* the last whole answer */
};

/* CPU time that a thread has had, in nanoseconds. */
struct usage {
    pid_t tid;
    double used;
};

struct watched {
    struct target target;
    struct buffer command;
    struct look look;
    bool is_meant; /* still, at the last renewal */
    char state;    /* as the kernel has it; 0: ended */
    double sampled;
    double ticks;
    double cpu; /* percent since the sample before; less than 0: not known yet */
    struct usage *usages; /* owned; of threads, at the sample before */
    size_t usage_count;
};

struct view {
    const struct request *request;
    struct watched **list; /* owned, and each of them */
    size_t count;
    bool is_of_threads;
};

/* A line of a view. */
struct row {
    double cpu;
    size_t order;
    struct buffer text;
};

/* ---- Looks ------------------------------------------------------------------------- */

/* Nobody answers, or the answer is there. */
static void
end_look(struct look *look, double pause)
{
    close_fd(&look->fd);
    look->fd = -1;
    look->next = now_s() + pause;
}

/* Asks, without waiting. Who does not let us in is asked again at the next view. */
static void
begin_look(struct watched *process)
{
    struct look *look = &process->look;
    const char *channel = look->seen > 0 ? "watch-again" : "watch";

    if (look->fd >= 0 || look->is_old || now_s() < look->next) {
        return;
    }
    look->begun = now_s();
    look->fd = open_socket(print("%s.%u", channel, ++own.questions).text);
    empty(&look->text);
    if (try_to_connect(look->fd, &process->target) < 0 || process->target.port != 0 ||
        !is_right_server(look->fd, &process->target)) {
        end_look(look, 0);
        return;
    }
    (void)shutdown(look->fd, SHUT_WR);
}

/* When to ask again, of an answer that took so long. That Python did not answer was no work. */
static double
pause_after(const struct look *look, double took)
{
    bool is_stuck = look->text.length == 0 ||
                    strstr(text_of(&look->text), "\"source\": \"frozen copy\"") != NULL;
    double pause = took * SHARE;

    return is_stuck && pause > STUCK_PAUSE_S ? STUCK_PAUSE_S : pause;
}

/* What has come is all. A console's dump instead: the server is older than the channel. */
static void
take_answer(struct look *look)
{
    double pause = pause_after(look, now_s() - look->begun);

    if (is_complete(&look->text, true, false)) {
        struct buffer last = look->last;
        look->last = look->text;
        look->text = last;
        look->seen = now_s();
    }
    else {
        look->is_old = strstr(text_of(&look->text), END_OF_DUMP) != NULL;
    }
    end_look(look, pause);
}

/* Takes what comes, to the deadline; or only until all have answered. */
static void
receive_looks(struct view *view, double deadline, bool until_all)
{
    OWNED struct pollfd *fds = allocate(view->count, sizeof(*fds));
    char bytes[CHUNK_SIZE];

    while (now_s() < deadline) {
        bool is_waiting = false;
        for (size_t i = 0; i < view->count; i++) {
            int fd = view->list[i]->look.fd;
            fds[i] = (struct pollfd){.fd = fd, .events = POLLIN};
            is_waiting = is_waiting || fd >= 0;
        }
        if (!is_waiting && until_all) {
            return;
        }
        (void)poll_many(fds, view->count, patience_until(deadline));
        for (size_t i = 0; i < view->count; i++) {
            struct look *look = &view->list[i]->look;
            if (fds[i].revents != 0 &&
                !append_some(&look->text, bytes,
                             recv(look->fd, bytes, sizeof(bytes), 0))) {
                take_answer(look);
            }
        }
    }
}

/* ---- The kernel's word ------------------------------------------------------------- */

static void
sample_process(struct watched *process)
{
    enum { USER_TIME = 14, SYSTEM_TIME = 15 };
    pid_t pid = process->target.pid;
    double now = now_s();
    double ticks = strtod(read_stat(pid, USER_TIME).text, NULL) +
                   strtod(read_stat(pid, SYSTEM_TIME).text, NULL);
    double seconds = (ticks - process->ticks) / (double)sysconf(_SC_CLK_TCK);

    process->cpu = process->sampled > 0 ? 100 * seconds / (now - process->sampled) : -1;
    process->ticks = ticks;
    process->sampled = now;
    process->state = process_state(pid);
    if (has_ended(pid)) {
        process->state = 0;
    }
}

/* What a thread has used so far; less than 0: the kernel does not tell. */
static double
read_usage(pid_t pid, pid_t tid)
{
    OWNED_BUFFER content = {.data = NULL};

    return read_proc(pid, print("task/%d/schedstat", (int)tid).text, &content)
               ? strtod(content.data, NULL)
               : -1;
}

static double
find_usage(const struct watched *process, pid_t tid)
{
    for (size_t i = 0; i < process->usage_count; i++) {
        if (process->usages[i].tid == tid) {
            return process->usages[i].used;
        }
    }
    return -1;
}

static struct text
percent_text(double cpu)
{
    return cpu < 0 ? print("%5s", "-") : print("%5.1f", cpu);
}

static struct text
resident_text(pid_t pid)
{
    double kib = strtod(read_status(pid, "VmRSS").text, NULL);
    return kib < 1024 * 1024 ? print("%.1fM", kib / 1024)
                             : print("%.1fG", kib / 1024 / 1024);
}

/* ---- Rows -------------------------------------------------------------------------- */

static bool
is_true(struct json head, const char *key)
{
    return is_same_json(find_member(head, key), (struct json){"true", 4});
}

static bool
is_running(struct json head)
{
    return is_same_json(find_member(head, "\"state\": "), (struct json){"running", 7});
}

/* How many tasks and greenlets there are. */
static struct text
tasks_text(const struct look *look)
{
    struct json all = {text_of(&look->last), look->last.length};
    struct json count = find_member(all, "\"task_count\": ");
    return count.bytes == NULL || count.bytes[0] == '0'
               ? print("-")
               : print("%.*s", (int)count.length, count.bytes);
}

/* The thread that tells most of a process: who holds the GIL, else who runs, else the main one,
 * whose number is the process's. False: there is none. */
static bool
find_telling_thread(const struct buffer *document, struct thread *found)
{
    struct json process = find_member(line_at(document, 0), "{\"pid\": ");
    struct thread thread;
    int best = 0;

    for (size_t at = 0; next_thread(document, &at, &thread);) {
        struct json id = find_member(thread.head, "\"native_id\": ");
        int weight = is_true(thread.head, "\"holds_gil\": ") ? 4
                     : is_running(thread.head)               ? 3
                     : is_same_json(id, process)             ? 2
                                                             : 1;
        if (weight > best) {
            best = weight;
            *found = thread;
        }
    }
    return best > 0;
}

/* Why there is nothing to tell of a process, or how old it is. */
static void
append_remark(struct buffer *out, const struct watched *process)
{
    const struct look *look = &process->look;
    double age = now_s() - look->seen;

    if (process->state == 0) {
        append_text(out, "has ended");
    }
    else if (process->target.port != 0) {
        append_text(out, "by TCP there is a console only");
    }
    else if (look->is_old) {
        append_text(out, "its manhole is too old for top");
    }
    else if (look->seen <= 0) {
        append_text(out,
                    look->fd >= 0 ? "does not answer yet" : "its manhole is not open");
    }
    else if (age > STALE_S) {
        append_format(out, "%.0f s ago", age);
    }
}

static void
append_process(struct buffer *out, const struct watched *process)
{
    pid_t pid = process->target.pid;
    const struct buffer *stacks = &process->look.last;
    struct thread thread;

    append_format(out, "%7d %c %s %8s %4s %6s  ", (int)pid,
                  process->state != 0 ? process->state : '-',
                  percent_text(process->cpu).text, resident_text(pid).text,
                  read_status(pid, "Threads").text, tasks_text(&process->look).text);
    size_t begin = out->length;
    append_remark(out, process);
    if (process->state != 0 && find_telling_thread(stacks, &thread)) {
        append_text(out, out->length > begin ? ": " : "");
        if (is_true(thread.head, "\"holds_gil\": ")) {
            append_json(out, find_member(thread.head, "\"name\": "));
            append_text(out, " holds the GIL ");
        }
        append_place(out, &thread);
    }
}

static void
append_thread_row(struct buffer *out, const struct thread *thread, double cpu)
{
    struct json state = find_member(thread->head, "\"state\": ");
    struct json name = find_member(thread->head, "\"name\": ");
    struct json at = thread->ours.bytes != NULL ? thread->ours : thread->inner;
    struct json id = find_member(thread->head, "\"native_id\": ");

    append_format(out, "%7.*s %-10.*s %s %-3s %-20.*s  ", (int)id.length, id.bytes,
                  (int)state.length, state.bytes, percent_text(cpu).text,
                  is_true(thread->head, "\"holds_gil\": ") ? "GIL" : "", (int)name.length,
                  name.bytes);
    append_place(out, thread);
    struct json source = find_member(at, "\"source\": ");
    if (source.bytes != NULL) {
        append_text(out, "  ");
        append_json(out, source);
    }
}

/* The busiest first, else in their order. */
static int
compare_rows(const void *one, const void *other)
{
    const struct row *a = one;
    const struct row *b = other;
    bool is_after = a->cpu < b->cpu || (!(a->cpu > b->cpu) && a->order > b->order);
    return is_after ? 1 : -1;
}

static size_t
count_threads(const struct buffer *stacks)
{
    struct thread thread;
    size_t count = 0;

    for (size_t at = 0; next_thread(stacks, &at, &thread); count++) {
    }
    return count;
}

/* Makes the rows of the threads of a process, and notes what each has used until now. */
static void
fill_threads(struct watched *process, double seconds, struct row *rows, size_t count)
{
    const struct buffer *stacks = &process->look.last;
    struct usage *usages = allocate(count, sizeof(*usages));
    struct thread thread;
    size_t at = 0;

    for (size_t i = 0; i < count && next_thread(stacks, &at, &thread); i++) {
        struct json id = find_member(thread.head, "\"native_id\": ");
        pid_t tid = id.bytes != NULL ? (pid_t)strtol(id.bytes, NULL, 10) : 0;
        double used = read_usage(process->target.pid, tid);
        double before = find_usage(process, tid);
        double cpu = used >= 0 && before >= 0 ? (used - before) / seconds / 1e7 : -1;
        rows[i] = (struct row){.cpu = cpu, .order = i};
        usages[i] = (struct usage){tid, used};
        append_thread_row(&rows[i].text, &thread, cpu);
    }
    free(process->usages);
    process->usages = usages;
    process->usage_count = count;
}

/* ---- A view ------------------------------------------------------------------------ */

/* Whether each view is written over the last one, not below it. */
static bool
is_written_over(void)
{
    return terminal.is_shown_on && terminal.is_capable;
}

/* Adds a line: on a terminal harmless, not longer than that is wide, and nothing left behind it. */
static void
append_view_row(struct buffer *out, const struct buffer *text)
{
    OWNED_BUFFER shown = {.data = NULL};

    if (terminal.is_shown_on) {
        append_harmless(&shown, text_of(text), text->length);
    }
    else {
        append(&shown, text_of(text), text->length);
    }
    append(out, text_of(&shown), fit_row(&shown));
    append_text(out, is_written_over() ? "\033[K\n" : "\n");
}

/* The head of a view: one line of a process's own, or when it is. */
static void
append_head(struct buffer *out, const struct view *view)
{
    const struct watched *process = view->is_of_threads ? view->list[0] : NULL;
    time_t now = time(NULL);
    struct tm local = {.tm_sec = 0};
    char clock[16] = "";

    (void)localtime_r(&now, &local);
    (void)strftime(clock, sizeof(clock), "%H:%M:%S", &local);
    append_format(out, "%s  ", clock);
    if (process == NULL) {
        append_format(out, "%zu process%s", view->count, view->count == 1 ? "" : "es");
        return;
    }
    append_format(out, "%d %c, CPU %s %%, RSS %s, %s threads, tasks %s  ",
                  (int)process->target.pid, process->state != 0 ? process->state : '-',
                  percent_text(process->cpu).text,
                  resident_text(process->target.pid).text,
                  read_status(process->target.pid, "Threads").text,
                  tasks_text(&process->look).text);
    size_t begin = out->length;
    append_remark(out, process);
    append_text(out, out->length > begin ? ": " : "");
    append_text(out, text_of(&process->command));
}

/* Shows them, as many as there is room for above the cursor, and forgets them. */
static void
show_rows(const struct view *view, struct row *rows, size_t count)
{
    static const char *const titles[] = {
        "    PID S  CPU%      RSS  THR  TASKS  WHERE",
        "    TID STATE       CPU% GIL NAME                  WHERE"};
    const size_t others = 3; /* the head, the titles, and where the cursor stands */
    size_t screen = (size_t)count_screen().row;
    size_t room = !is_written_over() ? count : screen > others ? screen - others : 0;
    OWNED_BUFFER out = {.data = NULL};
    OWNED_BUFFER line = {.data = NULL};

    append_text(&out, is_written_over() ? "\033[H" : "");
    append_head(&line, view);
    append_view_row(&out, &line);
    empty(&line);
    append_text(&line, titles[view->is_of_threads]);
    append_view_row(&out, &line);
    if (count > 0) {
        qsort(rows, count, sizeof(*rows), compare_rows);
    }
    for (size_t i = 0; i < count; i++) {
        if (i < room) {
            append_view_row(&out, &rows[i].text);
        }
        free_buffer(&rows[i].text);
    }
    append_text(&out, is_written_over() ? "\033[J" : "\n");
    write_all(STDOUT_FILENO, out.data, out.length);
}

static void
show_view(struct view *view)
{
    struct watched *first = view->list[0];
    size_t count = view->is_of_threads ? count_threads(&first->look.last) : view->count;
    OWNED struct row *rows = allocate(count, sizeof(*rows));
    double before = first->sampled;

    for (size_t i = 0; i < view->count; i++) {
        sample_process(view->list[i]);
    }
    if (view->is_of_threads) {
        fill_threads(first, first->sampled - before, rows, count);
    }
    else {
        for (size_t i = 0; i < count; i++) {
            rows[i] = (struct row){.cpu = view->list[i]->cpu, .order = i};
            append_process(&rows[i].text, view->list[i]);
        }
    }
    show_rows(view, rows, count);
}

/* ---- Which processes --------------------------------------------------------------- */

static void
watch_process(struct view *view, const struct target *target)
{
    for (size_t i = 0; i < view->count; i++) {
        if (view->list[i]->target.pid == target->pid) {
            view->list[i]->is_meant = true;
            return;
        }
    }
    struct watched *process = allocate(1, sizeof(*process));
    process->target = *target;
    process->is_meant = true;
    process->look.fd = -1;
    find_command(target->pid, &process->command);
    view->list = realloc(view->list, (view->count + 1) * sizeof(struct watched *));
    if (view->list == NULL) {
        fail(STATUS_TROUBLE, "out of memory");
    }
    view->list[view->count++] = process;
}

static void
forget_process(struct watched *process)
{
    close_fd(&process->look.fd);
    free_buffer(&process->look.text);
    free_buffer(&process->look.last);
    free_buffer(&process->command);
    free(process->usages);
    free(process);
}

/* Drops those that have ended, which has been shown, and those that are no longer meant. */
static void
drop_processes(struct view *view)
{
    size_t kept = 0;

    for (size_t i = 0; i < view->count; i++) {
        struct watched *process = view->list[i];
        if (process->is_meant && (process->sampled <= 0 || process->state != 0)) {
            view->list[kept++] = process;
        }
        else {
            forget_process(process);
        }
    }
    view->count = kept;
}

/* Those of the command line. */
static void
find_named(struct view *view)
{
    for (size_t i = 0; i < view->request->pids; i++) {
        struct target target = parse_target(view->request->pid[i]);
        if (target.pid == 0) {
            fail(STATUS_USAGE, "argument PID: top wants the number of a process, not %s",
                 quote(view->request->pid[i]).text);
        }
        watch_process(view, &target);
    }
}

/* Those that are selected, all of ours if nothing selects them. */
static void
find_selected(struct view *view)
{
    struct processes processes = find_processes(false);

    for (size_t i = 0; i < view->count; i++) {
        view->list[i]->is_meant = false;
    }
    select_processes(&processes, view->request);
    for (size_t i = 0; i < processes.count; i++) {
        watch_process(view, &processes.list[i].target);
        free_buffer(&processes.list[i].command);
    }
    free(processes.list);
}

/* Shows a view each period, until Ctrl-C, the timeout, or the end of all processes. */
static enum exit_status
watch_processes(const struct request *request)
{
    struct view view = {.request = request, .is_of_threads = request->pids == 1};
    double due = now_s();

    for (unsigned long period = 0; period == 0 || now_s() < request->deadline; period++) {
        if (request->pids == 0 && period % RENEWAL_PERIODS == 0) {
            find_selected(&view);
        }
        else if (period == 0) {
            find_named(&view);
        }
        drop_processes(&view);
        if (view.count == 0) {
            fail(STATUS_NO_CONNECTION,
                 "no process is left that is meant and has a manhole for you; see "
                 "manhole-cli --list");
        }
        for (size_t i = 0; i < view.count; i++) {
            begin_look(view.list[i]);
        }
        receive_looks(&view, now_s() + LOOK_PATIENCE_MS / 1e3, true);
        show_view(&view);
        due += PERIOD_MS / 1e3;
        if (due < now_s()) { /* who was stopped does not catch up */
            due = now_s() + PERIOD_MS / 1e3;
        }
        receive_looks(&view, due < request->deadline ? due : request->deadline, false);
    }
    return STATUS_OK;
}

#endif /* MANHOLE_CLI_TOP_C */
