/* Adverts: what a manhole tells of itself in /proc, where anybody who may look finds it without a
 * connection, also while it is closed.
 *
 *   the name of a thread    "Manhole", or "Manhole 10" where signal 10 opens it (activate_on)
 *   the name of a mapping   "manhole oneshot_on=12", for that option has no thread
 *   the mode of a socket    0600, which no application gives a socket: it is where one listens
 *
 * The inodes of such sockets lead by the lists of /proc/PID/net to the path or the port. So the
 * client finds a manhole wherever it listens, and which signal opens a closed one.
 */
#ifndef MANHOLE_CLI_ADVERTS_C
#define MANHOLE_CLI_ADVERTS_C

#include "target.c"

enum {
    ACCEPTS_CONNECTIONS = 0x10000, /* of the flags in /proc/net/unix */
    MOST_SOCKETS = 16,             /* of one manhole, which has no more than nine */
};

struct advert {
    bool is_there;
    bool is_temporary;  /* by --attach, until the last client has left */
    int signals[2];     /* that open it: activate_on, oneshot_on; 0: none */
    int python;         /* 11 for Python 3.11; 0: none was seen */
    bool has_no_module; /* it runs Python, and has not loaded manhole */
};

/* "Manhole", or "Manhole 10" for a signal. */
static void
read_thread_name(struct advert *advert, const char *name)
{
    static const char listener[] = "Manhole";
    const char *rest = name + strlen(listener);

    if (strncmp(name, listener, strlen(listener)) == 0 &&
        (strcmp(rest, "\n") == 0 || (rest[0] == ' ' && is_digit(rest[1])))) {
        advert->is_there = true;
        advert->signals[0] = (int)strtol(rest, NULL, 10);
    }
    advert->is_temporary = advert->is_temporary || strcmp(name, "Manhole attach\n") == 0;
}

/* What is mapped: files, the version of Python in their names, and that empty mapping. */
static void
read_maps(struct advert *advert, const char *maps)
{
    static const char *const signs[] = {"cpython-3", "/python3.", "libpython3."};
    static const char mapping[] = "/memfd:manhole oneshot_on=";
    const char *oneshot = strstr(maps, mapping);

    for (size_t i = 0; advert->python == 0 && i < sizeof(signs) / sizeof(signs[0]); i++) {
        const char *sign = strstr(maps, signs[i]);
        advert->python =
            sign != NULL ? (int)strtol(sign + strlen(signs[i]), NULL, 10) : 0;
    }
    advert->has_no_module = advert->python > 0 && strstr(maps, "/manhole.") == NULL &&
                            strstr(maps, "/manhole/__init__.") == NULL;
    if (oneshot != NULL) {
        advert->is_there = true;
        advert->signals[1] = (int)strtol(oneshot + strlen(mapping), NULL, 10);
    }
}

/* Reads all of it. What may not be looked at, as another user's mappings, tells nothing. */
static struct advert
read_advert(pid_t pid)
{
    struct advert advert = {.is_there = false};
    OWNED_FOLDER tasks = opendir(proc_path(pid, "task").text);
    OWNED_BUFFER maps = {.data = NULL};
    pid_t task = 0;

    while (next_number(tasks, "", &task)) {
        OWNED_BUFFER name = {.data = NULL};
        (void)read_proc(pid, print("task/%d/comm", (int)task).text, &name);
        read_thread_name(&advert, text_of(&name));
    }
    (void)read_proc(pid, "maps", &maps);
    read_maps(&advert, text_of(&maps));
    return advert;
}

/* The signal that opens it, activate_on's before oneshot_on's; 0: none does. */
static int
opening_signal(const struct advert *advert)
{
    return advert->signals[0] != 0 ? advert->signals[0] : advert->signals[1];
}

/* What opens it and how, for messages. */
static struct text
describe_opening(pid_t pid, const struct advert *advert)
{
    int number = opening_signal(advert);
    const char *name = signal_name(number);

    if (number == 0) {
        return print("it waits for no signal: %s %d", program, (int)pid);
    }
    if (name == NULL) { /* which manhole-cli sends to nobody, see parse_signal() */
        return print("it opens on signal %d: kill -%d %d, then %s %d", number, number,
                     (int)pid, program, (int)pid);
    }
    struct text option = number == SIGUSR1   ? print("-1")
                         : number == SIGUSR2 ? print("-2")
                                             : print("-s %s", name);
    return print("it opens on %s: %s %d %s", name, program, (int)pid, option.text);
}

/* ---- Where it listens -------------------------------------------------------------- */

/* The inodes of the sockets at which a process's manhole listens. None where we may not look. */
struct inodes {
    unsigned long list[MOST_SOCKETS];
    size_t count;
};

/* Looks at sockets alone: what else a process has open may be in a file system that hangs. */
static struct inodes
find_manhole_sockets(pid_t pid)
{
    struct inodes inodes = {.count = 0};
    OWNED_FOLDER fds = opendir(proc_path(pid, "fd").text);
    pid_t fd = 0;

    while (inodes.count < MOST_SOCKETS && next_number(fds, "", &fd)) {
        struct text name = print("%d", (int)fd);
        char link[64] = "";
        struct stat status;
        (void)!readlinkat(dirfd(fds), name.text, link, sizeof(link) - 1);
        if (strncmp(link, "socket:[", 8) == 0 &&
            fstatat(dirfd(fds), name.text, &status, 0) == 0 &&
            status.st_mode == (S_IFSOCK | S_IRUSR | S_IWUSR)) {
            inodes.list[inodes.count++] = (unsigned long)status.st_ino;
        }
    }
    return inodes;
}

static bool
has_inode(const struct inodes *inodes, unsigned long inode)
{
    for (size_t i = 0; i < inodes->count; i++) {
        if (inodes->list[i] == inode) {
            return true;
        }
    }
    return false;
}

/* A socket that is listened at, as a line of /proc/net/tcp or tcp6 has it. */
struct tcp_listener {
    char address[INET6_ADDRSTRLEN + 16]; /* HOST:PORT or [HOST]:PORT */
    int port;
    uid_t uid;
    unsigned long inode;
};

/* Reads such a line; false when it tells of something else. The address stands there as words of
 * four bytes, each as it is in memory, and behind the state (0A: listening) come queues and timers:
 *
 *   sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
 *    0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000  1000        0 31337
 */
static bool
parse_tcp_line(const char *line, struct tcp_listener *found)
{
    enum { LISTENING = 0x0a };
    uint32_t host[4];
    unsigned state = 0;
    unsigned port = 0;
    char text[INET6_ADDRSTRLEN] = "";

    /* NOLINTBEGIN(cert-err34-c): the kernel writes no number that is too great */
    bool is_v4 = sscanf(line, " %*u: %8x:%x %*s %x %*s %*s %*s %u %*s %lu", &host[0],
                        &port, &state, &found->uid, &found->inode) == 5;
    bool is_v6 =
        !is_v4 && sscanf(line, " %*u: %8x%8x%8x%8x:%x %*s %x %*s %*s %*s %u %*s %lu",
                         &host[0], &host[1], &host[2], &host[3], &port, &state,
                         &found->uid, &found->inode) == 8;
    /* NOLINTEND(cert-err34-c) */
    if (!(is_v4 || is_v6) || state != LISTENING) {
        return false;
    }
    (void)inet_ntop(is_v6 ? AF_INET6 : AF_INET, host, text, sizeof(text));
    found->port = (int)(uint16_t)port;
    (void)snprintf(found->address, sizeof(found->address), is_v6 ? "[%s]:%d" : "%s:%d",
                   text, found->port);
    return true;
}

/* The kernel's lists of who uses TCP in the network of that process; 0: in ours. False, with errno,
 * where they cannot be read. There may be no IPv6. */
static bool
read_tcp_lists(pid_t pid, struct buffer *lists)
{
    return read_proc(pid, "net/tcp", lists) &&
           (read_proc(pid, "net/tcp6", lists) || errno == ENOENT);
}

/* The next who listens, of the lines at rest, which are cut up; false at their end. */
static bool
next_tcp_listener(char **rest, struct tcp_listener *found)
{
    char *line = NULL;

    while ((line = strsep(rest, "\n")) != NULL) {
        if (parse_tcp_line(line, found)) {
            return true;
        }
    }
    return false;
}

/* The path of the socket that this line of /proc/net/unix tells of, if it is one of these. Else
 * NULL. A path may have blanks in it, so it is all that is left:
 *
 *   Num               RefCount Protocol Flags    Type St Inode Path
 *   0000000000000000: 00000002 00000000 00010000 0001 01 31337 /tmp/manhole-4711
 */
static const char *
listening_path(const char *line, const struct inodes *inodes)
{
    unsigned flags = 0;
    unsigned long inode = 0;
    int path = 0;

    /* NOLINTNEXTLINE(cert-err34-c): as above */
    int fields = sscanf(line, "%*s %*s %*s %x %*s %*s %lu %n", &flags, &inode, &path);
    return fields == 2 && path > 0 && line[path] != '\0' &&
                   (flags & ACCEPTS_CONNECTIONS) != 0 && has_inode(inodes, inode)
               ? line + path
               : NULL;
}

enum reach {
    UNSEEN, /* nowhere, or we may not look */
    HIDDEN, /* at a path that leads to it no more */
    FOUND,
};

/* Takes the path, behind that root, as the target's where there is a socket. Returns whether it is.
 */
static bool
try_path(struct target *target, const char *root, const char *path)
{
    char found[sizeof(target->path)];
    int length = snprintf(found, sizeof(found), "%s%s", root, path);
    bool is_there = length < (int)sizeof(found) && is_socket(found);

    if (is_there) {
        (void)snprintf(target->path, sizeof(target->path), "%s", found);
    }
    return is_there;
}

/* A process that has gone to another root since is still to be found in the one that it had, most
 * likely ours. A relative path is from where it was, most likely is. */
static enum reach
search_paths(struct target *target, const struct inodes *inodes)
{
    OWNED_BUFFER lines = {.data = NULL};
    enum reach reach = UNSEEN;

    (void)read_proc(target->pid, "net/unix", &lines);
    char *rest = lines.data;
    for (char *line = strsep(&rest, "\n"); line != NULL; line = strsep(&rest, "\n")) {
        const char *path = listening_path(line, inodes);
        if (path == NULL) {
            continue;
        }
        struct text root =
            path[0] == '/' ? root_of(target->pid) : proc_path(target->pid, "cwd/");
        if (try_path(target, root.text, path) || try_path(target, "", path)) {
            return FOUND;
        }
        reach = HIDDEN;
        (void)snprintf(target->path, sizeof(target->path), "%s", path);
    }
    return reach;
}

/* Asks the kernel where the process's manhole listens, which need not be the usual place, and notes
 * it in target. A path is better than TCP, for it leads to more than a console. A process that was
 * forked in C may still have its parent's sockets, and no manhole. */
static enum reach
find_listening_socket(struct target *target)
{
    struct inodes inodes = find_manhole_sockets(target->pid);
    OWNED_BUFFER lists = {.data = NULL};
    struct tcp_listener listener;

    if (inodes.count == 0 || !read_advert(target->pid).is_there) {
        return UNSEEN;
    }
    enum reach reach = search_paths(target, &inodes);
    if (reach == FOUND) {
        return FOUND;
    }
    (void)read_tcp_lists(target->pid, &lists);
    char *rest = lists.data;
    while (next_tcp_listener(&rest, &listener)) {
        if (has_inode(&inodes, listener.inode)) {
            (void)snprintf(target->path, sizeof(target->path), "%s", listener.address);
            target->port = listener.port;
            return FOUND;
        }
    }
    return reach;
}

#endif /* MANHOLE_CLI_ADVERTS_C */
