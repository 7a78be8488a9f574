/* Target: whom the PID argument means, and what /proc tells of a process. Connects to nothing.
 *
 * A process's manhole is at /tmp/manhole-PID, and in a container at that path behind
 * /proc/PID/root, under the number that the process has in there. Where it listens elsewhere,
 * find_listening_socket() asks the kernel. A path that is a socket means that socket, whoever
 * serves it.
 */
#ifndef MANHOLE_CLI_TARGET_C
#define MANHOLE_CLI_TARGET_C

#include "buffer.c"
#include "values.c"

enum { SOCKET_PATH_SIZE = sizeof(((struct sockaddr_un *)NULL)->sun_path) };

static const char not_a_pid[] =
    "PID must be in one of these forms: 1234 or /tmp/manhole-1234";

struct target {
    pid_t pid; /* the process asked for; 0: whoever serves the path */
    char path[SOCKET_PATH_SIZE + sizeof("/proc/2147483647/root")];
    bool by_path; /* the path was given and is a socket: its server is who is meant */
    int port;     /* not 0: of TCP, and the path is HOST:PORT */
    const char *config; /* not NULL: a file that says where to look; no more is known */
};

/* ---- /proc ------------------------------------------------------------------------- */

/* 0: our own. */
static struct text
proc_path(pid_t pid, const char *name)
{
    return pid == 0 ? print("/proc/self/%s", name) : print("/proc/%d/%s", (int)pid, name);
}

/* Adds the content of /proc/PID/name. False when it cannot be read. */
static bool
read_proc(pid_t pid, const char *name, struct buffer *content)
{
    return read_file(proc_path(pid, name).text, content);
}

/* The next name in the folder that is a number behind the prefix; false at the end. */
static bool
next_number(DIR *folder, const char *prefix, pid_t *number)
{
    const struct dirent *entry = NULL;
    size_t length = strlen(prefix);

    /* NOLINTNEXTLINE(concurrency-mt-unsafe): there is one thread */
    while (folder != NULL && (entry = readdir(folder)) != NULL) {
        long value = 0;
        if (strncmp(entry->d_name, prefix, length) == 0 &&
            is_digit(entry->d_name[length]) &&
            parse_int(entry->d_name + length, &value) && value <= INT_MAX) {
            *number = (pid_t)value;
            return true;
        }
    }
    return false;
}

/* What stands behind this name in /proc/PID/status, without the blanks before it; "" when there is
 * no such line. */
static struct text
read_status(pid_t pid, const char *name)
{
    OWNED_BUFFER status = {.data = NULL};
    struct text key = print("\n%s:", name);

    (void)read_proc(pid, "status", &status);
    const char *line = strstr(text_of(&status), key.text);
    if (line == NULL) {
        return print("%s", "");
    }
    line += strlen(key.text);
    line += strspn(line, " \t");
    return print("%.*s", (int)strcspn(line, "\n"), line);
}

/* A field of /proc/PID/stat by its number in proc(5), from 3 on; "" when there is no such process.
 * The second one, the program's name in parentheses, may have anything in it, newlines, too. */
static struct text
read_stat(pid_t pid, int field)
{
    OWNED_BUFFER content = {.data = NULL};

    (void)read_proc(pid, "stat", &content);
    const char *at = strrchr(text_of(&content), ')');
    for (int i = 2; at != NULL && i < field; i++) {
        at = strchr(at + 1, ' ');
    }
    return at == NULL ? print("%s", "")
                      : print("%.*s", (int)strcspn(at + 1, " "), at + 1);
}

/* The state letter of a process as the kernel has it, 0 when there is no such process. Of one that
 * cannot be seen from here, 0, it is our own: it runs, as far as anybody knows. */
static char
process_state(pid_t pid)
{
    return read_stat(pid, 3).text[0];
}

/* Whether a process is no more, or on its way out: the kernel closes what it had open when all of
 * its threads have a flag, PF_EXITING, that /proc shows; one that closes as it likes has not. */
static bool
has_ended(pid_t pid)
{
    enum { FLAGS = 9, EXITING = 4 };
    struct text flags = read_stat(pid, FLAGS); /* first: it may be reaped meanwhile */
    char state = process_state(pid);

    if (state == 0) {
        return kill(pid, 0) < 0 && errno == ESRCH;
    }
    return state == 'Z' || state == 'X' || (strtoul(flags.text, NULL, 10) & EXITING) != 0;
}

/* The process that a number means: also that of one of its threads, as top and the like show. */
static pid_t
thread_group(pid_t pid)
{
    long group = strtol(read_status(pid, "Tgid").text, NULL, 10);
    return group > 0 ? (pid_t)group : pid;
}

/* The process's number in its own pid namespace, as its own socket has it. */
static pid_t
inner_pid(pid_t pid)
{
    struct text numbers = read_status(pid, "NStgid");
    const char *last = strrchr(numbers.text, '\t');
    long inner = strtol(last != NULL ? last : numbers.text, NULL, 10);
    return inner > 0 ? (pid_t)inner : pid;
}

/* The effective uid of a process; false when there is no such process. Not the owner of /proc/PID:
 * that is root as soon as a process has changed its uid, as daemons do. */
static bool
find_uid(pid_t pid, uid_t *uid)
{
    struct text numbers = read_status(pid, "Uid");
    char *effective = NULL;

    (void)strtoul(numbers.text, &effective, 10);
    if (numbers.text[0] != '\0') {
        *uid = (uid_t)strtoul(effective, NULL, 10);
    }
    return numbers.text[0] != '\0';
}

/* Whether two names stand for one file; also where that cannot be found out. */
static bool
is_same_file(const char *a, const char *b)
{
    struct stat status_a;
    struct stat status_b;
    return stat(a, &status_a) < 0 || stat(b, &status_b) < 0 ||
           (status_a.st_dev == status_b.st_dev && status_a.st_ino == status_b.st_ino);
}

/* Whether our own namespace of this kind, as "ns/net", is the process's, too. */
static bool
shares_namespace(pid_t pid, const char *kind)
{
    return is_same_file(proc_path(pid, kind).text, proc_path(0, kind).text);
}

/* What stands here before the absolute paths of a process: nothing, if it sees the files that we
 * see. */
static struct text
root_of(pid_t pid)
{
    struct text root = proc_path(pid, "root");

    if (is_same_file(root.text, "/") && shares_namespace(pid, "ns/mnt")) {
        root.text[0] = '\0';
    }
    return root;
}

/* ---- The argument ------------------------------------------------------------------ */

/* Follows symbolic links. A path that cannot be looked at is none. */
static bool
is_socket(const char *path)
{
    struct stat status;
    return stat(path, &status) == 0 && S_ISSOCK(status.st_mode);
}

/* The number in "1234", "/tmp/manhole-1234" or "anything/manhole-1234"; 0: text has no such form. A
 * newline at the end, as a pid file's content has it, does no harm. No process is called 0. */
static pid_t
parse_pid(const char *text)
{
    const char *stem = strrchr(text, '/');
    const char *digits = text;

    if (stem != NULL && strncmp(stem, "/manhole-", 9) == 0) {
        digits = stem + 9;
    }
    size_t length = strspn(digits, "0123456789");
    const char *end = digits + length;
    if (length == 0 || length > 10 || (*end == '\n' ? end[1] : end[0]) != '\0') {
        return 0;
    }
    long long pid = strtoll(digits, NULL, 10);
    return pid <= INT_MAX ? (pid_t)pid : 0;
}

/* What the messages call it: its number, or the path that was given. */
static struct text
label_of(const struct target *target)
{
    return target->pid == 0 ? quote(target->path) : print("%d", (int)target->pid);
}

/* The process of that id and its socket. In a container, a service with a /tmp of its own or a
 * chroot the socket is elsewhere, and under the number that the process has there. */
static struct target
target_of(pid_t pid)
{
    struct target target = {.pid = pid > 0 ? thread_group(pid) : 0};

    (void)snprintf(target.path, sizeof(target.path), "%.32s/tmp/manhole-%d",
                   pid > 0 ? root_of(target.pid).text : "",
                   pid > 0 ? (int)inner_pid(target.pid) : 0);
    return target;
}

/* A number means the process of that id and its /tmp/manhole-PID; so does a path that ends like
 * that, unless there is a socket at that very path: then it means that socket, as does the path of
 * any other one. NAME.ini is a configuration file. Ends the program when text is nothing of the
 * kind. */
static struct target
parse_target(const char *text)
{
    struct target target = target_of(parse_pid(text));
    bool has_path = text[0] != '\0' && strspn(text, "0123456789\n") != strlen(text);
    size_t length = strlen(text);

    if (has_path && strcmp(text, target.path) != 0 && is_socket(text)) {
        target.by_path = true;
        if (length >= SOCKET_PATH_SIZE) {
            fail(STATUS_USAGE,
                 "argument PID: the path of a socket has at most %d bytes, this one has "
                 "%zu; go to its directory and give its name alone",
                 SOCKET_PATH_SIZE - 1, length);
        }
        (void)snprintf(target.path, sizeof(target.path), "%s", text);
    }
    else if (length > 4 && strcmp(text + length - 4, ".ini") == 0) {
        target.config = text;
    }
    else if (target.pid == 0) {
        fail(STATUS_USAGE, "argument PID: %s", not_a_pid);
    }
    return target;
}

#endif /* MANHOLE_CLI_TARGET_C */
