/* Target: whom the PID argument means. Looks at the file system, connects to nothing. */
#ifndef MANHOLE_CLI_TARGET_C
#define MANHOLE_CLI_TARGET_C

#include "messages.c"
#include "values.c"
#include "terminal.c"

enum { SOCKET_PATH_SIZE = sizeof(((struct sockaddr_un *)NULL)->sun_path) };

struct target {
    pid_t pid; /* the process asked for; 0: whoever serves the path */
    char path[SOCKET_PATH_SIZE + sizeof("/proc/2147483647/root")];
    bool by_path; /* the path was given and is a socket: its server is who is meant */
    int port;     /* not 0: of TCP, and the path is HOST:PORT */
    const char
        *config; /* not NULL: a file that says where to look, nothing else is known */
};

static bool
has_ending(const char *text, const char *ending)
{
    size_t length = strlen(text);
    return length > strlen(ending) && strcmp(text + length - strlen(ending), ending) == 0;
}

/* Follows symbolic links. A path that cannot be looked at is none. */
static bool
is_socket(const char *path)
{
    struct stat status;
    return stat(path, &status) == 0 && S_ISSOCK(status.st_mode);
}

/* The number in "1234" or "anything/manhole-1234"; 0: text has neither form. A newline at
 * the end, as a pid file's content has it, does no harm. No process is called 0. */
static pid_t
parse_pid(const char *text)
{
    static const char stem[] = "/manhole-";
    const size_t stem_length = sizeof(stem) - 1;
    size_t end = strlen(text);
    size_t start = 0;
    long long pid = 0;

    if (end > 0 && text[end - 1] == '\n') {
        end--;
    }
    for (start = end; start > 0 && is_digit(text[start - 1]);) {
        start--;
    }
    if (start > 0 && (start < stem_length ||
                      strncmp(text + start - stem_length, stem, stem_length) != 0)) {
        return 0;
    }
    for (size_t i = start; i < end && pid <= INT_MAX; i++) {
        pid = 10 * pid + (text[i] - '0');
    }
    return pid <= INT_MAX ? (pid_t)pid : 0;
}

/* Adds the content of /proc/PID/name. False when it cannot be read. */
static bool
read_proc(pid_t pid, const char *name, struct buffer *content)
{
    char path[64];
    char bytes[4096];
    ssize_t count = 0;
    int fd = -1;

    (void)snprintf(path, sizeof(path), "/proc/%d/%s", (int)pid, name);
    fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) {
        return false;
    }
    while ((count = read(fd, bytes, sizeof(bytes))) > 0) {
        append(content, bytes, (size_t)count);
    }
    (void)close(fd);
    return count == 0;
}

/* What stands behind this name in /proc/PID/status, without the blanks before it; false when there
 * is no such line. */
static bool
find_status(pid_t pid, const char *name, char *value, size_t size)
{
    struct buffer status = {.data = NULL}; /* owned */
    char key[32];
    const char *line = NULL;

    (void)snprintf(key, sizeof(key), "\n%s:", name);
    if (read_proc(pid, "status", &status)) {
        line = strstr(text_of(&status), key);
    }
    if (line != NULL) {
        line += strlen(key);
        line += strspn(line, " \t");
        (void)snprintf(value, size, "%.*s", (int)strcspn(line, "\n"), line);
    }
    free(status.data);
    return line != NULL;
}

/* The process that a number means: also that of one of its threads, as top and the like show. */
static pid_t
thread_group(pid_t pid)
{
    char number[16];
    return find_status(pid, "Tgid", number, sizeof(number))
               ? (pid_t)strtol(number, NULL, 10)
               : pid;
}

/* The process's number in its own pid namespace, as its own socket has it. */
static pid_t
inner_pid(pid_t pid)
{
    char numbers[512];
    const char *last = NULL;

    if (!find_status(pid, "NStgid", numbers, sizeof(numbers))) {
        return pid;
    }
    last = strrchr(numbers, '\t');
    return (pid_t)strtol(last != NULL ? last : numbers, NULL, 10);
}

/* The effective uid of a process; false when there is no such process. Not the owner of
 * /proc/PID: that is root as soon as a process has changed its uid, as daemons do. */
static bool
find_uid(pid_t pid, uid_t *uid)
{
    char numbers[64];
    char *effective = NULL;

    if (!find_status(pid, "Uid", numbers, sizeof(numbers))) {
        return false;
    }
    (void)strtoul(numbers, &effective, 10);
    *uid = (uid_t)strtoul(effective, NULL, 10);
    return true;
}

/* What the messages call it: its number, or the path that was given. */
static struct quoted
label_of(const struct target *target)
{
    struct quoted label;

    if (target->pid == 0) {
        return quote(target->path);
    }
    (void)snprintf(label.text, sizeof(label.text), "%d", (int)target->pid);
    return label;
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

/* What stands here before the absolute paths of a process: nothing, if it sees the files that we
 * see. */
static void
find_root(pid_t pid, char *root, size_t size)
{
    char mounts[64];

    (void)snprintf(root, size, "/proc/%d/root", (int)pid);
    (void)snprintf(mounts, sizeof(mounts), "/proc/%d/ns/mnt", (int)pid);
    if (is_same_file(root, "/") && is_same_file(mounts, "/proc/self/ns/mnt")) {
        root[0] = '\0';
    }
}

/* The process of that id and its socket. In a container, a service with a /tmp of its own or a
 * chroot the socket is elsewhere, and under the number that the process has there. */
static struct target
target_of(pid_t pid)
{
    struct target target = {.pid = pid};
    char root[64] = "";

    if (pid > 0) {
        target.pid = thread_group(pid);
        find_root(target.pid, root, sizeof(root));
    }
    (void)snprintf(target.path, sizeof(target.path), "%s/tmp/manhole-%d", root,
                   pid > 0 ? (int)inner_pid(target.pid) : 0);
    return target;
}

/* A number means the process of that id and its /tmp/manhole-PID; so does a path that
 * ends like that, unless there is a socket at that very path: then it means that socket,
 * as does the path of any other one. NAME.ini is a configuration file. Ends the program when
 * text is nothing of the kind.
 */
static struct target
parse_target(const char *text)
{
    struct target target = target_of(parse_pid(text));
    bool has_path = text[0] != '\0' && strspn(text, "0123456789\n") != strlen(text);

    if (has_path && strcmp(text, target.path) != 0 && is_socket(text)) {
        target.by_path = true;
        if (strlen(text) >= SOCKET_PATH_SIZE) {
            fail_usage(
                "argument PID: the path of a socket has at most %d bytes, this one has "
                "%zu; go to its directory and give its name alone",
                SOCKET_PATH_SIZE - 1, strlen(text));
        }
        (void)snprintf(target.path, sizeof(target.path), "%s", text);
    }
    else if (has_ending(text, ".ini")) {
        target.config = text;
    }
    else if (target.pid == 0) {
        fail_usage(
            "argument PID: PID must be in one of these forms: 1234 or /tmp/manhole-1234");
    }
    return target;
}

#endif /* MANHOLE_CLI_TARGET_C */
