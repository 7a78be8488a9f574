/* Processes: those with a manhole, as /proc and their sockets show them.
 * A manhole is there where a socket is, or what struct notice tells of.
 * To add a column to --list: print_process() and its title.
 */
#ifndef MANHOLE_CLI_PROCESSES_C
#define MANHOLE_CLI_PROCESSES_C

#include "messages.c"
#include "values.c"
#include "terminal.c"
#include "target.c"
#include "options.c"
#include "connection.c"
#include "signals.c"
#include "run.c"

enum {
    KNOCK_PATIENCE_MS = 500, /* for an answer at --list */
    MAX_ORPHANS = 10,        /* sockets without a process that --list names */
};

/* What is at the place of a process's socket. */
enum door {
    NO_DOOR,     /* nothing; a signal may open it */
    DEAD_DOOR,   /* a socket that nobody serves any more */
    DENIED_DOOR, /* not for us */
    SILENT_DOOR, /* somebody serves it, who does not answer */
    OPEN_DOOR,
};

struct process {
    struct target target;
    enum door door;
    uid_t uid;
    bool is_alive;
    int signal;            /* that opens the door; 0: none */
    struct buffer command; /* the words of its command line */
};

struct processes {
    struct process *list; /* owned */
    size_t count;
};

/* A field of /proc/PID/stat by its number in proc(5), from 3 on; 0: no such process. */
static unsigned long long
read_stat(pid_t pid, int field)
{
    struct buffer content = {.data = NULL}; /* owned */
    const char *at = NULL;
    unsigned long long value = 0;

    if (read_proc(pid, "stat", &content)) {
        at = strrchr(text_of(&content), ')');
        for (int i = 2; at != NULL && i < field; i++) {
            at = strchr(at + 1, ' ');
        }
        value = at != NULL ? strtoull(at, NULL, 10) : 0;
    }
    free(content.data);
    return value;
}

/* Calls for each number that is a name in the folder, behind the prefix. */
static void
for_each_number(const char *folder, const char *prefix,
                void (*call)(pid_t number, void *argument), void *argument)
{
    const struct dirent *entry = NULL;
    DIR *entries = opendir(folder); /* owned */

    /* NOLINTNEXTLINE(concurrency-mt-unsafe): there is one thread */
    while (entries != NULL && (entry = readdir(entries)) != NULL) {
        size_t length = strlen(prefix);
        const char *digits = entry->d_name + length;
        if (strncmp(entry->d_name, prefix, length) == 0 && is_digit(digits[0]) &&
            digits[strspn(digits, "0123456789")] == '\0' && strlen(digits) < 10) {
            call((pid_t)strtol(digits, NULL, 10), argument);
        }
    }
    if (entries != NULL) {
        (void)closedir(entries);
    }
}

/* Its command line, words apart by blanks; or its name in brackets, as ps shows it. */
static void
find_command(pid_t pid, struct buffer *command)
{
    struct buffer bytes = {.data = NULL}; /* owned */

    if (read_proc(pid, "cmdline", &bytes) && bytes.length > 0) {
        while (bytes.length > 0 && bytes.data[bytes.length - 1] == '\0') {
            bytes.length--;
        }
        for (size_t i = 0; i < bytes.length; i++) {
            bytes.data[i] =
                (char)(strchr("\n\t\r", bytes.data[i]) != NULL ? ' ' : bytes.data[i]);
        }
    }
    else if (read_proc(pid, "comm", &bytes) && bytes.length > 1) {
        append_text(command, "[");
        bytes.data[bytes.length - 1] = ']';
    }
    append(command, text_of(&bytes), bytes.length);
    free(bytes.data);
}

static void
add_process(struct processes *processes, const struct process *process)
{
    struct process *list =
        realloc(processes->list, (processes->count + 1) * sizeof(*processes->list));
    if (list == NULL) {
        fail(STATUS_TROUBLE, "out of memory");
    }
    processes->list = list;
    processes->list[processes->count++] = *process;
}

/* Adds the process if it has a manhole. */
static void
consider_process(pid_t pid, void *argument)
{
    struct processes *processes = argument;
    struct process process = {.target = target_of(pid), .is_alive = true};
    struct notice notice = read_notice(pid);
    bool has_socket_file = is_socket(process.target.path);

    if ((has_socket_file || notice.is_there) && find_uid(pid, &process.uid)) {
        (void)find_door(&process.target);
        process.signal = opening_signal(&notice);
        find_command(pid, &process.command);
        add_process(processes, &process);
    }
}

/* Adds a socket that no process of this number can serve. */
static void
consider_socket(pid_t pid, void *argument)
{
    struct process process = {.target = {.pid = pid}};
    struct stat status;

    (void)snprintf(process.target.path, sizeof(process.target.path), "/tmp/manhole-%d",
                   (int)pid);
    if (process_state(pid) == 0 && lstat(process.target.path, &status) == 0 &&
        S_ISSOCK(status.st_mode)) {
        process.uid = status.st_uid;
        add_process(argument, &process);
    }
}

static int
compare_processes(const void *a, const void *b)
{
    const struct process *first = a;
    const struct process *second = b;
    pid_t pid = first->target.pid;
    pid_t other = second->target.pid;
    return first->is_alive != second->is_alive ? (first->is_alive ? -1 : 1)
                                               : (pid > other) - (pid < other);
}

static struct processes
find_processes(void)
{
    struct processes processes = {.list = NULL};

    for_each_number("/proc", "", consider_process, &processes);
    for_each_number("/tmp", "manhole-", consider_socket, &processes);
    if (processes.count > 0) {
        qsort(processes.list, processes.count, sizeof(*processes.list),
              compare_processes);
    }
    return processes;
}

/* Returns a descriptor to hear the answer at, or -1 when there will be none. */
static int
knock_at(struct process *process, size_t number)
{
    char wish[32];
    int fd = -1;

    if (process->target.port != 0) { /* there a connection would be a session */
        struct listeners listeners = {.port = process->target.port};
        char network[16] = "self";
        bool can_tell = false;
        if (process->target.pid != 0) {
            (void)snprintf(network, sizeof(network), "%d", (int)process->target.pid);
        }
        can_tell = for_each_listener(network, consider_listener, &listeners);
        process->door = !can_tell             ? SILENT_DOOR
                        : listeners.count > 0 ? OPEN_DOOR
                                              : DEAD_DOOR;
        return -1;
    }
    (void)snprintf(wish, sizeof(wish), "interrupt.l%zu", number);
    fd = open_socket(wish);
    process->door = SILENT_DOOR;
    if (connect_once(fd, &process->target) < 0) {
        process->door = errno == ECONNREFUSED               ? DEAD_DOOR
                        : errno == EACCES || errno == EPERM ? DENIED_DOOR
                        : errno == EAGAIN                   ? SILENT_DOOR
                                                            : NO_DOOR;
        (void)close(fd);
        fd = -1;
    }
    return fd;
}

/* Takes the answer, if it is there. Returns whether it was. */
static bool
hear(struct process *process, struct pollfd *fd)
{
    char byte = 0;

    if (fd->fd < 0 || fd->revents == 0) {
        return false;
    }
    process->door = recv(fd->fd, &byte, 1, 0) == 1 ? OPEN_DOOR : DENIED_DOOR;
    (void)close(fd->fd);
    fd->fd = -1;
    return true;
}

/* Knocks at all doors at once, and waits a moment for who answers: the listener does, without
 * Python, when asked to interrupt a session that is not there. */
static void
knock(struct processes *processes)
{
    double deadline = now_s() + KNOCK_PATIENCE_MS / 1e3;
    struct pollfd *fds = calloc(processes->count + 1, sizeof(*fds)); /* owned */
    size_t waiting = 0;

    if (fds == NULL) {
        fail(STATUS_TROUBLE, "out of memory");
    }
    for (size_t i = 0; i < processes->count; i++) {
        fds[i] =
            (struct pollfd){.fd = knock_at(&processes->list[i], i), .events = POLLIN};
        waiting += fds[i].fd >= 0;
    }
    while (waiting > 0 &&
           poll_many(fds, processes->count, patience_until(deadline)) > 0) {
        for (size_t i = 0; i < processes->count; i++) {
            waiting -= hear(&processes->list[i], &fds[i]);
        }
    }
    for (size_t i = 0; i < processes->count; i++) {
        if (fds[i].fd >= 0) {
            (void)close(fds[i].fd); /* its card is ours to show again */
        }
    }
    free(fds);
}

/* How long it has been running, in the two greatest units. */
static void
find_age(pid_t pid, char *age, size_t size)
{
    struct timespec now = {.tv_sec = 0};
    long ticks_per_s = sysconf(_SC_CLK_TCK);
    long seconds = 0;

    (void)clock_gettime(CLOCK_BOOTTIME, &now);
    seconds =
        (long)now.tv_sec - (long)(read_stat(pid, 22) / (unsigned long long)ticks_per_s);
    if (seconds >= 86400) {
        (void)snprintf(age, size, "%ldd%02ldh", seconds / 86400, seconds / 3600 % 24);
    }
    else if (seconds >= 3600) {
        (void)snprintf(age, size, "%ldh%02ldm", seconds / 3600, seconds / 60 % 60);
    }
    else {
        (void)snprintf(age, size, "%ldm%02lds", seconds / 60, seconds % 60);
    }
}

/* A row of --list. number: before it, in a list to choose from; 0: none. */
static void
print_process(const struct process *process, size_t number)
{
    static const char *const doors[] = {[NO_DOOR] = "closed",
                                        [DEAD_DOOR] = "dead",
                                        [DENIED_DOOR] = "not for you",
                                        [SILENT_DOOR] = "silent",
                                        [OPEN_DOOR] = "answers"};
    struct buffer command = {.data = NULL}; /* owned */
    char door[32];
    char version[8] = "-";
    char age[32] = "-";

    (void)snprintf(door, sizeof(door), "%s", doors[process->door]);
    if (process->door == NO_DOOR && process->signal != 0) {
        const char *name = signal_name(process->signal);
        (void)snprintf(door, sizeof(door), name != NULL ? "-s %s" : "%ssignal %d",
                       name != NULL ? name : "", process->signal);
    }
    if (process->is_alive) {
        find_version(process->target.pid, version, sizeof(version));
        find_age(process->target.pid, age, sizeof(age));
    }
    append_harmless(&command, text_of(&process->command), process->command.length);
    if (number > 0) {
        (void)printf("%3zu. ", number);
    }
    (void)printf("%7d %-10s %-6s %9s  %-11s  %s\n", (int)process->target.pid,
                 find_user(process->uid), version, age, door,
                 process->is_alive ? text_of(&command) : process->target.path);
    free(command.data);
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

/* --list */
static enum exit_status
list_processes(void)
{
    struct processes processes = find_processes();
    int result = 0;

    knock(&processes);
    print_processes(&processes, false);
    result = fflush(stdout);
    if (result != 0 && errno != EPIPE) {
        fail(STATUS_TROUBLE, "cannot write to standard output: %m");
    }
    return result == 0 ? STATUS_OK : STATUS_OUTPUT_GONE;
}

/* Whether nobody serves the socket at this moment. */
static bool
is_dead(const struct target *target)
{
    int fd = open_socket("interrupt.lc");
    bool is_refused = connect_once(fd, target) < 0 && errno == ECONNREFUSED;

    (void)close(fd);
    return is_refused;
}

/* --clean: removes the sockets that nobody serves and that are ours. Between the look and the
 * removal a new process may have taken the number. */
static enum exit_status
clean_sockets(void)
{
    struct processes processes = find_processes();
    enum exit_status status = STATUS_OK;

    knock(&processes);
    for (size_t i = 0; i < processes.count; i++) {
        const struct process *process = &processes.list[i];
        const char *path = process->target.path;
        struct stat file;
        bool is_known = false;
        if (process->door != DEAD_DOOR || strncmp(path, "/tmp/", 5) != 0) {
            continue;
        }
        is_known = lstat(path, &file) == 0;
        if (is_known && (!S_ISSOCK(file.st_mode) || file.st_uid != geteuid())) {
            continue;
        }
        if (is_known && !is_dead(&process->target)) { /* since the look */
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

/* Whether a process is this one or comes from it. */
static bool
is_descendant(pid_t pid, pid_t ancestor)
{
    for (int depth = 0; depth < 64 && pid > 0; depth++) {
        if (pid == ancestor) {
            return true;
        }
        pid = (pid_t)read_stat(pid, 4);
    }
    return false;
}

/* Leaves those that --children, --match and --all mean, of the processes that live and whose door
 * is not closed to us. */
static void
select_processes(struct processes *processes, const struct request *request)
{
    regex_t expression;
    size_t kept = 0;

    if (request->match != NULL) {
        int error = regcomp(&expression, request->match, REG_EXTENDED | REG_NOSUB);
        if (error != 0) {
            char reason[128];
            (void)regerror(error, &expression, reason, sizeof(reason));
            fail_usage("argument --match: %s: %s", quote(request->match).text, reason);
        }
    }
    for (size_t i = 0; i < processes->count; i++) {
        const struct process *process = &processes->list[i];
        bool is_meant =
            process->is_alive && (geteuid() == 0 || process->uid == geteuid());
        if (is_meant && request->ancestor != 0) {
            is_meant = is_descendant(process->target.pid, request->ancestor);
        }
        if (is_meant && request->match != NULL) {
            is_meant = regexec(&expression, text_of(&process->command), 0, NULL, 0) == 0;
        }
        if (is_meant) {
            processes->list[kept++] = *process;
        }
    }
    if (request->match != NULL) {
        regfree(&expression);
    }
    processes->count = kept;
}

/* Shows the processes, numbered, and asks which one. Ends the program without an answer. */
static const struct target *
ask_which(struct processes *processes)
{
    char line[32];
    long number = 0;

    if (processes->count == 0) {
        fail(STATUS_NO_CONNECTION,
             "no process of yours has a manhole: it wants "
             "manhole.install(), or PYTHONMANHOLE in its environment, "
             "when it starts");
    }
    knock(processes);
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
