/* Run: code of -c and -f goes over in one piece, its output comes back in frames, by stream, and it
 * may read our standard input.
 *
 * A frame is a kind ('o' output, 'e' errors, 'x' exit status, 'i' it reads its input), the length
 * of what follows as four bytes, and that. Anything else is a refusal in plain text.
 *
 * Code to run and stacks alike are a task: what is asked of a process until that is over. It is
 * over at the deadline, when the process can do nothing but wait itself, at a Ctrl-C that
 * interrupts nothing, and when nobody reads our output any more: the process is not to run on with
 * what nobody wants. The server sees us go, and interrupts what it runs for us.
 */
#ifndef MANHOLE_CLI_RUN_C
#define MANHOLE_CLI_RUN_C

#include "channels.c"
#include "jobs.c"
#include "frozen.c"

enum {
    SECOND_LOOK_MS = 100,   /* at a process that is stopped: a profiler lets it go on */
    STACKS_PATIENCE_S = 10, /* also for tasks, and until a program of ours begins */
};

/* ---- Our own streams --------------------------------------------------------------- */

/* What a process writes to one of them, made harmless where that is a terminal. */
struct output {
    int fd;
    bool is_terminal;
    struct buffer *kept;      /* where it goes instead; or NULL */
    struct buffer unfinished; /* a character of which the rest is still to come */
};

static struct output
open_output(int fd)
{
    return (struct output){.fd = fd, .is_terminal = isatty(fd) == 1};
}

/* A character that is not whole yet waits for its rest, unless bytes go through as they are. */
static void
write_output(struct output *output, const char *bytes, size_t count)
{
    OWNED_BUFFER shown = {.data = NULL};

    if (output->kept != NULL) {
        append(output->kept, bytes, count);
        return;
    }
    if (!output->is_terminal) {
        write_all(output->fd, bytes, count);
        return;
    }
    append_piece(&shown, &output->unfinished, bytes, count);
    write_all(output->fd, text_of(&shown), shown.length);
}

/* Half a character at the end is shown as what it is. */
static void
end_output(struct output *output)
{
    OWNED_BUFFER shown = {.data = NULL};

    append_harmless(&shown, text_of(&output->unfinished), output->unfinished.length);
    write_all(output->fd, text_of(&shown), shown.length);
    free_buffer(&output->unfinished);
}

/* Whether somebody still reads our standard output and error, as poll() tells beside all else. */
struct readers {
    bool are_gone[2];
};

/* poll() tells of an error at the other end without being asked for events. */
static void
watch_readers(const struct readers *readers, struct pollfd fds[2])
{
    for (int i = 0; i < 2; i++) {
        fds[i] = (struct pollfd){.fd = readers->are_gone[i] ? -1 : STDOUT_FILENO + i};
    }
}

/* Returns whether nobody reads any of the two, as behind an ssh that was interrupted. */
static bool
lost_readers(struct readers *readers, const struct pollfd fds[2])
{
    for (int i = 0; i < 2; i++) {
        readers->are_gone[i] = readers->are_gone[i] || fds[i].revents != 0;
    }
    return readers->are_gone[0] && readers->are_gone[1];
}

/* ---- Tasks ------------------------------------------------------------------------- */

struct task {
    int server;
    const struct target *target;
    double deadline;
    const struct own_program *awaited; /* of which nothing has come yet; or NULL */
    struct readers readers;
    bool is_watched; /* it has answered, or the silence was looked into */
    bool was_interrupted;
    bool is_over;
    enum exit_status status; /* when it is over */
};

static void
end_task(struct task *task, enum exit_status status)
{
    task->is_over = true;
    task->status = status;
}

/* When what is run is to be over: --timeout, or what stacks may take. Code may take its time unless
 * that is said: nobody but the user knows how long it needs. */
static double
find_deadline(const struct request *request)
{
    return is_given(request, OPTION_TIMEOUT) ? now_s() + request->timeout_s
           : is_look(request)                ? now_s() + STACKS_PATIENCE_S
                                             : HUGE_VAL;
}

static void
say_late(const struct task *task)
{
    struct text label = label_of(task->target);

    if (task->awaited == NULL) {
        say_error("process %s has not finished within the timeout; it was told to stop",
                  label.text);
        return;
    }
    say_error(
        "the Python of process %s did not come to %s in time; where it is, also when "
        "it is stuck, is what --stacks shows",
        label.text, name_of(task->awaited->option).text);
}

/* Whether the process can do nothing but wait itself; says so. One that is sampled by a profiler is
 * stopped for a moment only. */
static bool
is_hindered(pid_t pid)
{
    char state = process_state(pid);

    if (state == 'T' || state == 't') {
        (void)poll_with_signals(NULL, 0, SECOND_LOOK_MS);
    }
    return say_hindrance(pid);
}

enum { TASK_FDS = 2 }; /* that a task waits for at most, besides our outputs */

/* Waits until there is something to do, and returns whether there is. The last two of fds are for
 * our outputs. The deadline is looked at on each round, so that neither a flood of output nor a
 * Ctrl-C gives the task more time. */
static bool
wait_on_task(struct task *task, struct pollfd fds[], nfds_t count)
{
    const int first_ms = FIRST_BYTE_PATIENCE_MS;
    int patience_ms = patience_until(task->deadline);
    bool is_first = !task->is_watched && (patience_ms < 0 || patience_ms > first_ms);

    watch_readers(&task->readers, fds + count);
    int ready = poll_with_signals(
        fds, count + 2, until_interrupt_is_late(is_first ? first_ms : patience_ms));
    if (ready > 0 && lost_readers(&task->readers, fds + count)) {
        end_task(task, STATUS_OUTPUT_GONE);
    }
    if (consume_signal(SIGINT)) {
        task->was_interrupted = true;
        if (interrupt_session(task->target) == SESSION_LEFT) {
            end_task(task, STATUS_INTERRUPTED);
        }
    }
    else if (is_interrupt_late()) {
        if (!terminal.is_quiet) {
            (void)fprintf(stderr, "%s\n", interrupt_is_late);
        }
    }
    else if (ready == 0 && is_first) {
        task->is_watched = true;
        if (is_hindered(server_pid(task->server))) {
            end_task(task, STATUS_NO_CONNECTION);
        }
    }
    else if (ready == 0 || patience_ms == 0) { /* a flood does not give it more time */
        say_late(task);
        end_task(task, STATUS_TIMEOUT);
    }
    return ready > 0 && !task->is_over;
}

/* Adds what has come. Returns false at the end. */
static bool
read_answer(struct task *task, struct buffer *answer)
{
    char bytes[CHUNK_SIZE];
    ssize_t count = recv(task->server, bytes, sizeof(bytes), 0);

    task->is_watched = true;
    return append_some(answer, bytes, count);
}

/* ---- What goes over ---------------------------------------------------------------- */

/* Reads the source to run. It goes over behind a NUL, so it can have none itself, which is no loss:
 * Python refuses such a source. */
static void
read_source(struct request *request)
{
    const char *path = request->given[OPTION_FILE];
    const struct own_program *ours = find_own_program(request);
    struct buffer *source = &request->source;

    if (path == NULL) {
        append_text(source, ours != NULL ? ours->text : request->given[OPTION_CODE]);
        return;
    }
    bool is_read =
        strcmp(path, "-") == 0 ? read_all(STDIN_FILENO, source) : read_file(path, source);
    if (!is_read) {
        fail(STATUS_TROUBLE, "cannot read the script %s: %m", quote(path).text);
    }
    if (memchr(text_of(source), '\0', source->length) != NULL) {
        fail(STATUS_TROUBLE, "the script %s has a NUL byte, which Python does not take",
             quote(path).text);
    }
}

/* A word with a NUL behind it. */
static void
append_word(struct buffer *out, const char *word)
{
    append(out, word, strlen(word) + 1);
}

/* Puts together what the server wants. The name is the one that tracebacks have, the words are
 * sys.argv, and each ends with a NUL; the source is all that is left:
 *
 *   length (4 bytes) | "<string>" NUL | "-c" NUL | word NUL ... | source
 */
static void
build_request(const struct request *request, struct buffer *out)
{
    const char *file = request->given[OPTION_FILE];
    const struct own_program *ours = find_own_program(request);
    OWNED_BUFFER fields = {.data = NULL};

    append_word(&fields, file == NULL             ? "<string>"
                         : strcmp(file, "-") == 0 ? "<stdin>"
                                                  : file);
    append_word(&fields, file == NULL ? "-c" : file);
    if (ours != NULL) {
        append_word(&fields, request->given[ours->option]);
    }
    for (size_t i = 0; i < request->arguments; i++) {
        append_word(&fields, request->argument[i]);
    }
    append(&fields, text_of(&request->source), request->source.length);
    uint32_t length = htonl((uint32_t)fields.length);
    append(out, &length, sizeof(length));
    append(out, fields.data, fields.length);
}

/* What is on its way to the server: the request, then our standard input. */
struct input {
    struct buffer unsent;
    bool is_over;
    bool is_told; /* and the server knows */
};

/* Nothing more is read before that is sent, so memory is bounded. An error is an end. */
static void
read_input(struct input *input)
{
    char bytes[4096];
    ssize_t count = read(terminal.input, bytes, sizeof(bytes));

    input->is_over = !append_some(&input->unsent, bytes, count);
}

/* Sends what there is; after the last of it, says that it was. */
static void
send_input(int server, struct input *input)
{
    (void)send_some(server, &input->unsent);
    if (input->unsent.length == 0 && input->is_over && !input->is_told) {
        input->is_told = true;
        (void)shutdown(server, SHUT_WR);
    }
}

/* ---- What comes back --------------------------------------------------------------- */

/* The answer, as far as it has been read. */
struct answer {
    struct buffer bytes; /* not looked at yet */
    char kind;           /* of the frame that has begun; 0: none has */
    size_t left;         /* bytes of it still to come */
    bool is_refusal;
    bool wants_input;
    long status; /* -1: has not come */
    struct output out;
    struct output err;
};

/* Takes the head of a frame. Returns false when that is not there, or is none. */
static bool
begin_frame(struct answer *answer)
{
    const unsigned char *head = (const unsigned char *)answer->bytes.data;

    answer->is_refusal = head[0] == 0 || strchr("oexi", (int)head[0]) == NULL;
    if (answer->is_refusal || answer->bytes.length < 5) {
        return false;
    }
    answer->kind = (char)head[0];
    answer->left = (size_t)head[1] << 24 | (size_t)head[2] << 16 | (size_t)head[3] << 8 |
                   (size_t)head[4];
    drop(&answer->bytes, 5);
    return true;
}

/* Takes what has arrived of frames. A status is short, so it is waited for as a whole; behind its
 * digits may be others that are not its own. */
static void
parse_frames(struct answer *answer)
{
    struct buffer *bytes = &answer->bytes;

    while (bytes->length > 0 && (answer->kind != 0 || begin_frame(answer))) {
        size_t count = bytes->length < answer->left ? bytes->length : answer->left;
        if (answer->kind == 'x' && count < answer->left) {
            return;
        }
        if (answer->kind == 'o' || answer->kind == 'e') {
            write_output(answer->kind == 'o' ? &answer->out : &answer->err,
                         text_of(bytes), count);
        }
        if (answer->kind == 'x') {
            char digits[16];
            (void)snprintf(digits, sizeof(digits), "%.*s",
                           (int)(count < sizeof(digits) ? count : sizeof(digits)),
                           text_of(bytes));
            answer->status = strtol(digits, NULL, 10) & 0xff;
        }
        answer->wants_input = answer->wants_input || answer->kind == 'i';
        drop(bytes, count);
        answer->left -= count;
        if (answer->left == 0) {
            answer->kind = 0;
        }
    }
}

/* What it comes to when the server has closed. */
static enum exit_status
conclude(struct answer *answer, const struct task *task)
{
    if (answer->is_refusal && strncmp(text_of(&answer->bytes), "manhole: ", 9) != 0) {
        say_error(
            "the manhole of process %s knows no -c; type at its console, without -c",
            label_of(task->target).text);
        return STATUS_NO_CONNECTION;
    }
    if (answer->is_refusal && answer->out.kept != NULL) {
        append(answer->out.kept, answer->bytes.data, answer->bytes.length);
        return STATUS_NO_CONNECTION;
    }
    if (answer->is_refusal) {
        show_lines(STDERR_FILENO, NULL, &answer->bytes, true);
        return STATUS_NO_CONNECTION;
    }
    if (answer->status < 0) {
        return say_cut(task->server, task->target, "the code had ended");
    }
    return task->was_interrupted && answer->status == 1
               ? STATUS_INTERRUPTED
               : (enum exit_status)answer->status;
}

/* Runs the code, with our standard streams as its own. Standard input is read when the code asks
 * for it and not before: what it does not want is left to others, as in a loop of a shell that
 * reads its lines from there. kept: where its output goes, or a refusal, instead of being shown; or
 * NULL. */
static enum exit_status
run_code(int server, const struct request *request, const struct target *target,
         bool *answered, struct buffer *kept)
{
    struct task task = {.server = server,
                        .target = target,
                        .deadline = request->deadline,
                        .awaited = find_own_program(request)};
    struct answer answer = {.status = -1,
                            .out = open_output(STDOUT_FILENO),
                            .err = open_output(STDERR_FILENO)};
    struct input input = {.is_over = false};

    answer.out.kept = kept;
    build_request(request, &input.unsent);
    if (task.awaited != NULL && task.deadline > now_s() + STACKS_PATIENCE_S) {
        task.deadline = now_s() + STACKS_PATIENCE_S;
    }
    follow_signal(SIGINT);
    while (!task.is_over) {
        bool has_unsent = input.unsent.length > 0;
        bool reads_input = answer.wants_input && !input.is_over && !has_unsent;
        struct pollfd fds[TASK_FDS + 2] = {
            {.fd = reads_input ? terminal.input : -1, .events = POLLIN},
            {.fd = server, .events = (short)(POLLIN | (has_unsent ? POLLOUT : 0))}};
        if (!wait_on_task(&task, fds, TASK_FDS)) {
            continue;
        }
        if (fds[0].revents != 0) {
            read_input(&input);
        }
        send_input(server, &input);
        if ((fds[1].revents & ~POLLOUT) != 0) {
            bool is_open = read_answer(&task, &answer.bytes);
            parse_frames(&answer);
            task.deadline = request->deadline;
            task.awaited = NULL;
            if (!is_open || (answer.is_refusal && line_length(&answer.bytes) > 0)) {
                end_task(&task, conclude(&answer, &task));
            }
        }
    }
    *answered = answer.status >= 0;
    end_output(&answer.out);
    end_output(&answer.err);
    free_buffer(&answer.bytes);
    free_buffer(&input.unsent);
    return task.status;
}

#endif /* MANHOLE_CLI_RUN_C */
