/* Processes: those with a manhole, for --list, --clean and the selections.
 *
 * A manhole is there where a socket is at the usual path, or what an advert tells of. Whether one
 * answers is asked of all at once: the server's listener does, without Python, when told to
 * interrupt a session that is not there. Sockets that no process of their number can serve are
 * listed, too, for --clean.
 *     PID USER       PYTHON     SINCE  SOCKET       COMMAND
 *    4711 shop       3.11      2h05m  answers      python3 /srv/shop/app.py
 *    4712 shop       3.11      2h05m  -s USR2      python3 /srv/shop/worker.py
 *    4001 shop       -             -  dead         /tmp/manhole-4001
 *
 * To add a column to --list: print_process() and its title.
 */
#ifndef MANHOLE_CLI_PROCESSES_C
#define MANHOLE_CLI_PROCESSES_C

#include "connection.c"

enum {
    ANSWER_PATIENCE_MS = 500, /* at --list */
    MAX_ORPHANS = 10,         /* sockets without a process that --list names */
};

/* What is at the place of a process's socket. */
enum condition {
    CLOSED, /* nothing; a signal may open it */
    DEAD,   /* a socket that nobody serves any more */
    DENIED, /* not for us */
    SILENT, /* somebody serves it, who does not answer */
    ANSWERS,
};

struct process {
    struct target target;
    enum condition condition;
    uid_t uid;
    bool is_alive;
    struct advert advert;
    struct buffer command; /* the words of its command line */
};

struct processes {
    struct process *list; /* owned */
    size_t count;
};

/* ---- Finding them ------------------------------------------------------------------ */

/* Its command line, words apart by blanks; or its name in brackets, as ps shows it. */
static void
find_command(pid_t pid, struct buffer *command)
{
    size_t begin = command->length;

    if (read_proc(pid, "cmdline", command) && command->length > begin) {
        while (command->length > begin && command->data[command->length - 1] == '\0') {
            command->length--;
        }
        for (size_t i = begin; i < command->length; i++) {
            char *c = &command->data[i];
            *c = (char)(strchr("\n\t\r", *c) != NULL ? ' ' : *c); /* a NUL, too */
        }
        return;
    }
    append_text(command, "[");
    if (read_proc(pid, "comm", command) && command->length > begin + 1) {
        command->data[command->length - 1] = ']';
    }
    else {
        command->data[command->length = begin] = '\0';
    }
}

/* The list may move. */
static void
add_process(struct processes *processes, const struct process *process)
{
    size_t size = (processes->count + 1) * sizeof(*process);

    processes->list = realloc(processes->list, size);
    if (processes->list == NULL) {
        fail(STATUS_TROUBLE, "out of memory");
    }
    processes->list[processes->count++] = *process;
}

/* Adds the process if it has a manhole, or where all Pythons are wanted, maps a file of Python's.
 * */
static void
consider_process(struct processes *processes, pid_t pid, bool wants_all)
{
    struct process process = {.target = target_of(pid), .is_alive = true};

    process.advert = read_advert(pid);
    if ((is_socket(process.target.path) || process.advert.is_there ||
         (wants_all && process.advert.python > 0)) &&
        find_uid(pid, &process.uid)) {
        (void)find_listening_socket(&process.target);
        find_command(pid, &process.command);
        add_process(processes, &process);
    }
}

/* Adds a socket that no process of this number can serve. */
static void
consider_socket(struct processes *processes, pid_t pid)
{
    struct process process = {.target = {.pid = pid}};
    struct stat status;

    (void)snprintf(process.target.path, sizeof(process.target.path), "/tmp/manhole-%d",
                   (int)pid);
    if (process_state(pid) == 0 && lstat(process.target.path, &status) == 0 &&
        S_ISSOCK(status.st_mode)) {
        process.uid = status.st_uid;
        add_process(processes, &process);
    }
}

/* By number, sockets without a process last. */
static int
compare_processes(const void *a, const void *b)
{
    const struct process *first = a;
    const struct process *second = b;
    long one = first->target.pid + (first->is_alive ? 0L : INT_MAX);
    long other = second->target.pid + (second->is_alive ? 0L : INT_MAX);
    return (one > other) - (one < other);
}

static void
sort_processes(struct processes *processes)
{
    if (processes->count > 0) {
        qsort(processes->list, processes->count, sizeof(*processes->list),
              compare_processes);
    }
}

/* All that can be seen from here, of all users; with wants_all also those that run Python and have
 * no manhole. */
static struct processes
find_processes(bool wants_all)
{
    struct processes processes = {.list = NULL};
    OWNED_FOLDER numbers = opendir("/proc");
    OWNED_FOLDER sockets = opendir("/tmp");
    pid_t pid = 0;

    while (next_number(numbers, "", &pid)) {
        consider_process(&processes, pid, wants_all);
    }
    while (next_number(sockets, "manhole-", &pid)) {
        consider_socket(&processes, pid);
    }
    sort_processes(&processes);
    return processes;
}

/* ---- Whether they answer ----------------------------------------------------------- */

/* By TCP a connection would be a session: the kernel's list has to do. */
static enum condition
look_at_port(const struct target *target)
{
    struct listeners listeners;

    return !find_listeners(target->pid, target, &listeners) ? SILENT
           : listeners.count > 0                            ? ANSWERS
                                                            : DEAD;
}

/* Returns a descriptor at which the answer is to come, or -1 when there will be none. */
static int
ask_one(struct process *process, size_t number)
{
    if (process->target.port != 0) {
        process->condition = look_at_port(&process->target);
        return -1;
    }
    int fd = open_socket(print("interrupt.l%zu", number).text);
    process->condition = SILENT;
    if (connect_once(fd, &process->target) == 0) {
        return fd;
    }
    process->condition = errno == ECONNREFUSED               ? DEAD
                         : errno == EACCES || errno == EPERM ? DENIED
                         : errno == EAGAIN                   ? SILENT
                                                             : CLOSED;
    (void)close(fd);
    return -1;
}

/* Takes the answer, if it is there. Returns whether it was. */
static bool
receive_answer(struct process *process, struct pollfd *fd)
{
    char byte = 0;

    if (fd->fd < 0 || fd->revents == 0) {
        return false;
    }
    process->condition = recv(fd->fd, &byte, 1, 0) == 1 ? ANSWERS : DENIED;
    (void)close(fd->fd);
    fd->fd = -1;
    return true;
}

/* Connects to all at once, and waits a moment for who answers. One that hangs does answer: its
 * listener needs no Python for that. Who is stopped, or is no manhole, does not. */
static void
ask_all(struct processes *processes)
{
    double deadline = now_s() + ANSWER_PATIENCE_MS / 1e3;
    OWNED struct pollfd *fds = allocate(processes->count, sizeof(*fds));
    size_t waiting = 0;

    for (size_t i = 0; i < processes->count; i++) {
        fds[i] = (struct pollfd){.fd = ask_one(&processes->list[i], i), .events = POLLIN};
        waiting += fds[i].fd >= 0;
    }
    while (waiting > 0 &&
           poll_many(fds, processes->count, patience_until(deadline)) > 0) {
        for (size_t i = 0; i < processes->count; i++) {
            waiting -= receive_answer(&processes->list[i], &fds[i]);
        }
    }
    for (size_t i = 0; i < processes->count; i++) {
        close_fd(&fds[i].fd); /* its card is ours to show again */
    }
}

/* ---- --list ------------------------------------------------------------------------ */

/* How long it has been running, in the two greatest units. */
static struct text
age_of(pid_t pid)
{
    enum { START_TIME = 22 };
    struct timespec now = {.tv_sec = 0};
    long ticks = strtol(read_stat(pid, START_TIME).text, NULL, 10);

    (void)clock_gettime(CLOCK_BOOTTIME, &now);
    long seconds = (long)now.tv_sec - ticks / sysconf(_SC_CLK_TCK);
    if (seconds >= 86400) {
        return print("%ldd%02ldh", seconds / 86400, seconds / 3600 % 24);
    }
    if (seconds >= 3600) {
        return print("%ldh%02ldm", seconds / 3600, seconds / 60 % 60);
    }
    return print("%ldm%02lds", seconds / 60, seconds % 60);
}

/* A row. number: before it, in a list to choose from; 0: none. */
static void
print_process(const struct process *process, size_t number)
{
    static const char *const words[] = {[CLOSED] = "closed",
                                        [DEAD] = "dead",
                                        [DENIED] = "not for you",
                                        [SILENT] = "silent",
                                        [ANSWERS] = "answers"};
    const struct advert *advert = &process->advert;
    const pid_t pid = process->target.pid;
    struct text condition = print("%s", words[process->condition]);
    OWNED_BUFFER command = {.data = NULL};
    OWNED_BUFFER row = {.data = NULL};
    int signal = opening_signal(advert);

    if (process->condition == CLOSED && signal != 0) {
        const char *name = signal_name(signal);
        condition = name != NULL ? print("-s %s", name) : print("signal %d", signal);
    }
    append_harmless(&command, text_of(&process->command), process->command.length);
    append_text(&command, process->is_alive ? "" : process->target.path);
    if (number > 0) {
        append_format(&row, "%3zu. ", number);
    }
    append_format(
        &row, "%7d %-10s %-6s %9s  %-11s  %s", (int)pid, user_of(process->uid).text,
        !process->is_alive   ? "-"
        : advert->python > 0 ? print("3.%d", advert->python).text
                             : "?",
        process->is_alive ? age_of(pid).text : "-", condition.text, text_of(&command));
    (void)printf("%.*s\n", (int)fit_row(&row), text_of(&row));
}

/* Sockets without a process come last, and not more than a few of them. */
static void
print_processes(const struct processes *processes, bool is_numbered)
{
    size_t orphans = 0;

    (void)printf("%s%7s %-10s %-6s %9s  %-11s  %s\n", is_numbered ? "     " : "", "PID",
                 "USER", "PYTHON", "SINCE", "SOCKET", "COMMAND");
    for (size_t i = 0; i < processes->count; i++) {
        orphans += !processes->list[i].is_alive;
        if (orphans <= MAX_ORPHANS || processes->list[i].is_alive) {
            print_process(&processes->list[i], is_numbered ? i + 1 : 0);
        }
    }
    if (orphans > MAX_ORPHANS) {
        (void)printf(
            "and %zu more sockets of processes that are gone; --clean removes yours\n",
            orphans - MAX_ORPHANS);
    }
}

/* A list that nobody reads to its end, as behind head, is no error to tell of. */
static enum exit_status
list_processes(void)
{
    struct processes processes = find_processes(false);

    ask_all(&processes);
    print_processes(&processes, false);
    if (fflush(stdout) == 0) {
        return STATUS_OK;
    }
    if (errno != EPIPE) {
        fail(STATUS_TROUBLE, "cannot write to standard output: %m");
    }
    return STATUS_OUTPUT_GONE;
}

/* ---- --clean ----------------------------------------------------------------------- */

/* Whether nobody serves the socket at this moment. */
static bool
is_dead(const struct target *target)
{
    OWNED_FD fd = open_socket("interrupt.lc");
    return connect_once(fd, target) < 0 && errno == ECONNREFUSED;
}

/* Removes the sockets that nobody serves and that are ours. Between the look and the removal a new
 * process may have taken the number. */
static enum exit_status
clean_sockets(void)
{
    struct processes processes = find_processes(false);
    enum exit_status status = STATUS_OK;

    ask_all(&processes);
    for (size_t i = 0; i < processes.count; i++) {
        const struct process *process = &processes.list[i];
        const char *path = process->target.path;
        struct stat file;
        if (process->condition != DEAD || strncmp(path, "/tmp/", 5) != 0) {
            continue;
        }
        bool is_known = lstat(path, &file) == 0;
        if (is_known && (!S_ISSOCK(file.st_mode) || file.st_uid != geteuid() ||
                         !is_dead(&process->target))) {
            continue;
        }
        if (is_known && unlink(path) == 0) {
            (void)printf("removed %s\n", path);
        }
        else if (errno != ENOENT) {
            say_error("cannot remove %s: %m", path);
            status = STATUS_TROUBLE;
        }
    }
    return status;
}

/* ---- Selections -------------------------------------------------------------------- */

/* Whether a process is this one or comes from it. */
static bool
is_descendant(pid_t pid, pid_t ancestor)
{
    enum { PARENT = 4 };

    for (int depth = 0; depth < 64 && pid > 0; depth++) {
        if (pid == ancestor) {
            return true;
        }
        pid = (pid_t)strtol(read_stat(pid, PARENT).text, NULL, 10);
    }
    return false;
}

/* Leaves those that --children, --match and --all mean, of the processes that live and whose
 * manhole is not closed to us. */
static void
select_processes(struct processes *processes, const struct request *request)
{
    const char *match = request->given[OPTION_MATCH];
    regex_t expression;
    size_t kept = 0;
    int error = match != NULL ? regcomp(&expression, match, REG_EXTENDED | REG_NOSUB) : 0;

    if (error != 0) {
        char reason[128];
        (void)regerror(error, &expression, reason, sizeof(reason));
        fail(STATUS_USAGE, "argument --match: %s: %s", quote(match).text, reason);
    }
    for (size_t i = 0; i < processes->count; i++) {
        const struct process *process = &processes->list[i];
        if (process->is_alive && (geteuid() == 0 || process->uid == geteuid()) &&
            (request->ancestor == 0 ||
             is_descendant(process->target.pid, request->ancestor)) &&
            (match == NULL ||
             regexec(&expression, text_of(&process->command), 0, NULL, 0) == 0)) {
            processes->list[kept++] = *process;
        }
    }
    processes->count = kept;
    if (match != NULL) {
        regfree(&expression);
    }
}

/* Shows the processes, numbered, and asks which one. Ends the program without an answer. */
static const struct target *
ask_which(struct processes *processes)
{
    char line[32];
    long number = 0;

    if (processes->count == 0) {
        fail(STATUS_NO_CONNECTION,
             "no process of yours has a manhole: it wants manhole.install(), or "
             "PYTHONMANHOLE in its environment, when it starts");
    }
    ask_all(processes);
    print_processes(processes, true);
    while (number < 1 || number > (long)processes->count) {
        (void)printf("Which one? [1-%zu] ", processes->count);
        (void)fflush(stdout);
        if (fgets(line, sizeof(line), stdin) == NULL || line[0] == 'q') {
            (void)printf("\n");
            leave(STATUS_OK);
        }
        number = strtol(line, NULL, 10);
    }
    return &processes->list[number - 1].target;
}

#endif /* MANHOLE_CLI_PROCESSES_C */
