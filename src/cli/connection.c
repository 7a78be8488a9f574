/* Connection: knock, wait until somebody opens, see who it is. No byte goes over here.
 * Anybody may put a socket at /tmp/manhole-PID while the process has none. Who typed into
 * that one would hand over his commands and believe the answers; hence check_server().
 * To add a reason to refuse a server: check_server(), fail_refused() and a test.
 */
#ifndef MANHOLE_CLI_CONNECTION_C
#define MANHOLE_CLI_CONNECTION_C

#include "messages.c"
#include "values.c"
#include "terminal.c"
#include "target.c"
#include "options.c"
#include "signals.c"

enum {
    FIRST_PAUSE_MS = 1, /* between two tries to connect; doubles up to */
    LONGEST_PAUSE_MS = 32,
    ACCEPTS_CONNECTIONS = 0x10000, /* of the flags in /proc/net/unix */
    MOST_DOORS = 16,               /* of one manhole, which has no more than nine */
};

/* Seconds of a clock that only goes forward. */
static double
now_s(void)
{
    struct timespec now = {.tv_sec = 0};
    (void)clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + (double)now.tv_nsec / 1e9;
}

/* Short enough for an int. A signal ends it early, which does no harm: the caller looks at the
 * clock; one that a local shell had let in only while it waited ends the program. */
static void
pause_s(double seconds)
{
    static const int endings[] = {SIGINT, SIGTERM, SIGHUP, SIGQUIT};

    (void)poll_with_signals(NULL, 0, (int)(seconds * 1e3) + 1);
    for (size_t i = 0; i < sizeof(endings) / sizeof(endings[0]); i++) {
        if (take_due(endings[i])) {
            leave((enum exit_status)(128 + endings[i]));
        }
    }
}

/* Who we are to the server: the ID of our calling cards. It wants to be unique, also among
 * containers that share a network and count their processes alike. */
static const char *
own_id(void)
{
    static char id[32];
    unsigned number = 0;

    if (id[0] == '\0') {
        (void)!getrandom(&number, sizeof(number), GRND_NONBLOCK);
        (void)snprintf(id, sizeof(id), "%d.%u", (int)getpid(), number);
    }
    return id;
}

/* Binds our end to a name which tells the server, at accept() and without a byte of
 * protocol, that this is a manhole-cli and what it wants. A server that does not know of
 * it sees nothing unusual. Returns 0, or -1 with errno: we would get a console then. */
static int
show_calling_card(int fd, const char *wish)
{
    struct sockaddr_un card = {.sun_family = AF_UNIX};
    int length = snprintf(card.sun_path + 1, sizeof(card.sun_path) - 1,
                          "manhole-cli/%s/%s", own_id(), wish);

    return bind(fd, (const struct sockaddr *)&card,
                (socklen_t)(offsetof(struct sockaddr_un, sun_path) + 1 + (size_t)length));
}

/* Non-blocking: a server that accepts nobody, its queue full, must not hold us beyond the
 * timeout, nor one that reads nothing keep us from showing what it writes. */
static int
open_socket(const char *wish)
{
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0) {
        fail(STATUS_TROUBLE, "cannot make a socket: %m");
    }
    if (show_calling_card(fd, wish) < 0) {
        fail(STATUS_TROUBLE, "cannot tell the server what is wanted of it: %m");
    }
    return fd;
}

/* Whether root is nobody to the process, which is in a user namespace that has no root of ours: its
 * server would turn us away. */
static bool
is_unknown_to(pid_t pid)
{
    struct buffer map = {.data = NULL}; /* owned: lines of inside, outside, count */
    char space[64];
    bool is_unknown = false;

    (void)snprintf(space, sizeof(space), "/proc/%d/ns/user", (int)pid);
    if (geteuid() == 0 && !is_same_file(space, "/proc/self/ns/user") &&
        read_proc(pid, "uid_map", &map)) {
        is_unknown = true;
        for (const char *line = text_of(&map); line[0] != '\0' && is_unknown;) {
            char *outside = NULL;
            (void)strtoul(line, &outside, 10);
            is_unknown = strtoul(outside, NULL, 10) != 0;
            line += strcspn(line, "\n");
            line += line[0] != '\0';
        }
    }
    free(map.data);
    return is_unknown;
}

/* Returns 0, or -1 with errno. The same socket may try again after a failure. To whom root is
 * nobody we come as its own user, who may not go where root may: so the way to the folder is behind
 * us before. Through the folder also a path that is longer than an address can be is reached. */
static int
connect_once(int fd, const struct target *target)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    uid_t user = 0; /* to be while we connect */
    char folder[sizeof(target->path)];
    const char *name = strrchr(target->path, '/');
    int folder_fd = -1; /* owned */
    int ending = 0;     /* the signal by which we end with our parent */
    int result = -1;
    int error = 0;

    if (target->pid != 0 && is_unknown_to(target->pid)) {
        (void)find_uid(target->pid, &user);
    }
    (void)snprintf(address.sun_path, sizeof(address.sun_path), "%.*s",
                   SOCKET_PATH_SIZE - 1, target->path);
    if (name != NULL && (user != 0 || strlen(target->path) >= SOCKET_PATH_SIZE)) {
        (void)snprintf(folder, sizeof(folder), "%.*s", (int)(name + 1 - target->path),
                       target->path);
        folder_fd = open(folder, O_PATH | O_DIRECTORY | O_CLOEXEC);
        (void)snprintf(address.sun_path, sizeof(address.sun_path), "/proc/self/fd/%d/%s",
                       folder_fd, name + 1);
    }
    (void)prctl(PR_GET_PDEATHSIG, &ending);
    if (user == 0 || seteuid(user) == 0) {
        result = connect(fd, (const struct sockaddr *)&address, sizeof(address));
    }
    error = errno;
    if (user != 0 && seteuid(0) < 0) {
        fail(STATUS_TROUBLE, "cannot be root again: %m");
    }
    (void)prctl(PR_SET_PDEATHSIG, ending); /* which a change of the user forgets */
    if (folder_fd >= 0) {
        (void)close(folder_fd);
    }
    errno = error;
    return result;
}

/* What the socket is expected to say while its server is still on the way, or busy. */
static bool
is_worth_waiting(int error)
{
    return error == ENOENT || error == ECONNREFUSED || error == EAGAIN ||
           error == EINTR || error == ENXIO;
}

/* Any other failure, in python-manhole's words. The waiting goes on: it may be a passing
 * one, and it may be that somebody is just setting things right. */
static void
say_connect_error(const char *path, int error)
{
    const char *kind = error == EACCES || error == EPERM ? "PermissionError"
                       : error == ENOTDIR                ? "NotADirectoryError"
                                                         : "OSError";
    errno = error;
    (void)fprintf(stderr, "Failed to connect to %s: %s(%d, '%m')\n", quote(path).text,
                  kind, error);
}

/* The state letter of a process as the kernel has it, 0 when there is no such process. */
static char
process_state(pid_t pid)
{
    struct buffer stat_text = {.data = NULL}; /* owned */
    const char *after_name = NULL; /* which may have anything in it, newlines, too */
    char state = 0;

    if (read_proc(pid, "stat", &stat_text)) {
        after_name = strrchr(text_of(&stat_text), ')');
        if (after_name != NULL && strlen(after_name) >= 3) {
            state = after_name[2];
        }
    }
    free(stat_text.data);
    return state;
}

/* What a manhole tells of itself in /proc, also while it is closed: by the name of its listener's
 * thread, and for oneshot_on, which has no thread, by that of an empty mapping. */
struct notice {
    bool is_there;
    int signals[2]; /* that open it: activate_on, oneshot_on; 0: none */
};

/* Takes the name of a thread: "Manhole", or "Manhole 10" for a signal. */
static void
take_thread_name(struct notice *notice, const char *name)
{
    static const char listener[] = "Manhole";

    if (strncmp(name, listener, strlen(listener)) == 0) {
        name += strlen(listener);
        if (strcmp(name, "\n") == 0 || (name[0] == ' ' && is_digit(name[1]))) {
            notice->is_there = true;
            notice->signals[0] = (int)strtol(name, NULL, 10);
        }
    }
}

static void
read_thread_names(pid_t pid, struct notice *notice)
{
    const struct dirent *task = NULL;
    DIR *tasks = NULL; /* owned */
    char path[64];

    (void)snprintf(path, sizeof(path), "/proc/%d/task", (int)pid);
    tasks = opendir(path);
    /* NOLINTNEXTLINE(concurrency-mt-unsafe): one thread */
    while (tasks != NULL && (task = readdir(tasks)) != NULL) {
        struct buffer name = {.data = NULL}; /* owned */
        char comm[sizeof("task//comm") + sizeof(task->d_name)];
        (void)snprintf(comm, sizeof(comm), "task/%s/comm", task->d_name);
        (void)read_proc(pid, comm, &name);
        take_thread_name(notice, text_of(&name));
        free(name.data);
    }
    if (tasks != NULL) {
        (void)closedir(tasks);
    }
}

static struct notice
read_notice(pid_t pid)
{
    static const char page[] = "/memfd:manhole oneshot_on=";
    struct notice notice = {.is_there = false};
    struct buffer maps = {.data = NULL}; /* owned */
    const char *oneshot = NULL;

    read_thread_names(pid, &notice);
    (void)read_proc(pid, "maps", &maps);
    oneshot = strstr(text_of(&maps), page);
    if (oneshot != NULL) {
        notice.is_there = true;
        notice.signals[1] = (int)strtol(oneshot + strlen(page), NULL, 10);
    }
    free(maps.data);
    return notice;
}

/* The signal that opens it, activate_on's before oneshot_on's; 0: none does. */
static int
opening_signal(const struct notice *notice)
{
    return notice->signals[0] != 0 ? notice->signals[0] : notice->signals[1];
}

/* What opens it and how, for messages. */
static struct quoted
describe_opening(pid_t pid, const struct notice *notice)
{
    struct quoted text;
    const size_t size = sizeof(text.text);
    int number = opening_signal(notice);
    const char *name = signal_name(number);

    if (number == 0) {
        (void)snprintf(text.text, size, "it waits for no signal: %s %d", program,
                       (int)pid);
    }
    else if (number == SIGUSR1 || number == SIGUSR2) {
        (void)snprintf(text.text, size, "it opens on %s: %s %d -%c", name, program,
                       (int)pid, number == SIGUSR1 ? '1' : '2');
    }
    else if (name != NULL) {
        (void)snprintf(text.text, size, "it opens on %s: %s %d -s %s", name, program,
                       (int)pid, name);
    }
    else { /* which manhole-cli sends to nobody, see take_signal() */
        (void)snprintf(text.text, size, "it opens on signal %d: kill -%d %d, then %s %d",
                       number, number, (int)pid, program, (int)pid);
    }
    return text;
}

/* The field of a line whose fields are parted by blanks, from 0 on; NULL when it has fewer. */
static char *
find_field(char *line, int number)
{
    for (; number > 0 && line != NULL; number--) {
        line = strchr(line, ' ');
        line = line != NULL ? line + strspn(line, " ") : NULL;
    }
    return line;
}

/* The sockets by which a process's manhole is entered: it gives them a mode that no application
 * gives a socket, and nobody connects to another's to find out. None where we may not look. */
struct doors {
    unsigned long inodes[MOST_DOORS];
    size_t count;
};

/* Looks at sockets alone: what else a process has open may be in a file system that hangs. */
static struct doors
find_doors(pid_t pid)
{
    struct doors doors = {.count = 0};
    const struct dirent *entry = NULL;
    DIR *fds = NULL; /* owned */
    char path[64];

    (void)snprintf(path, sizeof(path), "/proc/%d/fd", (int)pid);
    fds = opendir(path);
    /* NOLINTNEXTLINE(concurrency-mt-unsafe): one thread */
    while (fds != NULL && (entry = readdir(fds)) != NULL && doors.count < MOST_DOORS) {
        char link[64] = "";
        struct stat status;
        (void)!readlinkat(dirfd(fds), entry->d_name, link, sizeof(link) - 1);
        if (strncmp(link, "socket:[", 8) == 0 &&
            fstatat(dirfd(fds), entry->d_name, &status, 0) == 0 &&
            status.st_mode == (S_IFSOCK | S_IRUSR | S_IWUSR)) {
            doors.inodes[doors.count++] = (unsigned long)status.st_ino;
        }
    }
    if (fds != NULL) {
        (void)closedir(fds);
    }
    return doors;
}

static bool
is_door(const struct doors *doors, unsigned long inode)
{
    for (size_t i = 0; i < doors->count; i++) {
        if (doors->inodes[i] == inode) {
            return true;
        }
    }
    return false;
}

/* A socket that is listened at, as a line of /proc/net/tcp or tcp6 has it. */
struct tcp_listener {
    char place[INET6_ADDRSTRLEN + 16]; /* HOST:PORT or [HOST]:PORT */
    int port;
    uid_t uid;
    unsigned long inode;
};

/* Reads such a line; false when it tells of something else. */
static bool
read_tcp_line(char *line, struct tcp_listener *found)
{
    enum { LOCAL_ADDRESS = 1, STATE = 3, UID = 7, INODE = 9, LISTENING = 0x0a };
    char *first = line + strspn(line, " ");
    const char *address = find_field(first, LOCAL_ADDRESS);
    const char *state = find_field(first, STATE);
    const char *uid = find_field(first, UID);
    const char *inode = find_field(first, INODE);
    const char *colon = address != NULL ? strchr(address, ':') : NULL;
    uint32_t host[4] = {0}; /* words as they are in memory */
    char text[INET6_ADDRSTRLEN] = "";
    bool is_v6 = colon != NULL && colon - address == 32;

    if (colon == NULL || inode == NULL || strtol(state, NULL, 16) != LISTENING) {
        return false;
    }
    for (size_t i = 0; i < (is_v6 ? 4 : 1); i++) {
        char word[9];
        (void)snprintf(word, sizeof(word), "%.8s", address + 8 * i);
        host[i] = (uint32_t)strtoul(word, NULL, 16);
    }
    (void)inet_ntop(is_v6 ? AF_INET6 : AF_INET, host, text, sizeof(text));
    found->port = (int)(uint16_t)strtoul(colon + 1, NULL, 16);
    found->uid = (uid_t)strtoul(uid, NULL, 10);
    found->inode = strtoul(inode, NULL, 10);
    (void)snprintf(found->place, sizeof(found->place), is_v6 ? "[%s]:%d" : "%s:%d", text,
                   found->port);
    return true;
}

/* Who listens by TCP in the network of that process ("self": in ours), as the kernel lists it.
 * Returns false, with errno, where it cannot be read. */
static bool
for_each_listener(const char *process,
                  void (*call)(const struct tcp_listener *listener, void *argument),
                  void *argument)
{
    static const char *const lists[] = {"tcp", "tcp6"};
    char *line = NULL; /* owned */
    size_t size = 0;
    int error = 0;

    for (size_t i = 0; i < sizeof(lists) / sizeof(lists[0]); i++) {
        char path[64];
        FILE *list = NULL; /* owned */
        (void)snprintf(path, sizeof(path), "/proc/%s/net/%s", process, lists[i]);
        list = fopen(path, "re");
        while (list != NULL && getline(&line, &size, list) > 0) {
            struct tcp_listener listener;
            if (read_tcp_line(line, &listener)) {
                call(&listener, argument);
            }
        }
        bool may_lack = i > 0; /* there may be no IPv6 */
        if (list == NULL ? !may_lack || errno != ENOENT : !feof(list)) {
            error = errno;
        }
        if (list != NULL) {
            (void)fclose(list);
        }
    }
    free(line);
    errno = error;
    return error == 0;
}

/* The path of the socket that this line of /proc/net/unix tells of, if it is one of these doors;
 * cut off there. Else NULL. */
static const char *
door_path(char *line, const struct doors *doors)
{
    const char *flags = find_field(line, 3);
    const char *number = find_field(line, 6);
    char *path = find_field(line, 7);

    if (path == NULL || (strtoul(flags, NULL, 16) & ACCEPTS_CONNECTIONS) == 0 ||
        !is_door(doors, strtoul(number, NULL, 10))) {
        return NULL;
    }
    path[strcspn(path, "\n")] = '\0';
    return path;
}

/* Where a process's manhole is open. */
enum way {
    NO_WAY,     /* nowhere, or we may not look */
    HIDDEN_WAY, /* at a path that leads to it no more */
    OPEN_WAY,
};

/* What find_door() looks for, and has found. */
struct search {
    struct target *target;
    struct doors doors;
    enum way way;
};

static bool
try_path(struct search *search, const char *root, const char *path)
{
    char found[sizeof(search->target->path)];
    int length = snprintf(found, sizeof(found), "%s%s", root, path);

    if (length < (int)sizeof(found) && is_socket(found)) {
        (void)snprintf(search->target->path, sizeof(found), "%s", found);
        search->way = OPEN_WAY;
    }
    return search->way == OPEN_WAY;
}

/* A process that has gone to another root since is still to be found in the one that it had, most
 * likely ours. A relative path is from where it was, most likely is. */
static void
search_paths(struct search *search)
{
    const int pid = (int)search->target->pid;
    char *line = NULL; /* owned */
    size_t size = 0;
    char name[64];
    char root[64];
    FILE *sockets = NULL; /* owned */

    (void)snprintf(name, sizeof(name), "/proc/%d/net/unix", pid);
    sockets = fopen(name, "re");
    while (search->way != OPEN_WAY && sockets != NULL &&
           getline(&line, &size, sockets) > 0) {
        const char *path = door_path(line, &search->doors);
        if (path == NULL) {
            continue;
        }
        find_root((pid_t)pid, root, sizeof(root));
        if (path[0] != '/') {
            (void)snprintf(root, sizeof(root), "/proc/%d/cwd/", pid);
        }
        if (!try_path(search, root, path) && !try_path(search, "", path)) {
            search->way = HIDDEN_WAY;
            (void)snprintf(search->target->path, sizeof(search->target->path), "%s",
                           path);
        }
    }
    free(line);
    if (sockets != NULL) {
        (void)fclose(sockets);
    }
}

static void
consider_port(const struct tcp_listener *listener, void *argument)
{
    struct search *search = argument;

    if (search->way != OPEN_WAY && is_door(&search->doors, listener->inode)) {
        (void)snprintf(search->target->path, sizeof(search->target->path), "%s",
                       listener->place);
        search->target->port = listener->port;
        search->way = OPEN_WAY;
    }
}

/* Asks the kernel where the process's manhole listens, which need not be the usual place. A path is
 * better than TCP, for it leads to more than a console. A process that was forked in C may still
 * have its parent's sockets, and no manhole. */
static enum way
find_door(struct target *target)
{
    struct search search = {.target = target, .doors = find_doors(target->pid)};
    char process[16];

    if (search.doors.count > 0 && read_notice(target->pid).is_there) {
        search_paths(&search);
        (void)snprintf(process, sizeof(process), "%d", (int)target->pid);
        (void)for_each_listener(process, consider_port, &search);
    }
    return search.way;
}

/* Says what keeps a process from answering, in one line with what to do. Silent, with false, when
 * nothing of that can be seen. */
static bool
say_hindrance(pid_t pid)
{
    if (pid == 0) { /* one that cannot be seen from here */
        return false;
    }
    switch (process_state(pid)) {
    case 0:
        say_error("process %d is not there", (int)pid);
        return true;
    case 'T':
        say_error("process is stopped: PID %d; 'kill -CONT %d' lets it go on", (int)pid,
                  (int)pid);
        return true;
    case 't':
        say_error("process is traced: PID %d is held by a debugger or strace; let it go "
                  "on there",
                  (int)pid);
        return true;
    case 'Z':
    case 'X':
        say_error("process %d has ended and waits for its parent to notice; there is "
                  "nothing to "
                  "look into",
                  (int)pid);
        return true;
    default:
        return false;
    }
}

static const char *
find_user(uid_t uid)
{
    static char name[33];
    char names[4096];
    struct passwd entry;
    struct passwd *found = NULL;

    (void)snprintf(name, sizeof(name), "%u", (unsigned)uid);
    if (getpwuid_r(uid, &entry, names, sizeof(names), &found) == 0 && found != NULL) {
        (void)snprintf(name, sizeof(name), "%s", found->pw_name);
    }
    return name;
}

/* Whether it is another user's, and so for him and root alone; says so. */
static bool
say_owner(pid_t pid)
{
    uid_t uid = 0;

    if (geteuid() == 0 || !find_uid(pid, &uid) || uid == geteuid()) {
        return false;
    }
    say_error("process %d belongs to %s; run manhole-cli as %s%s", (int)pid,
              find_user(uid), find_user(uid), uid != 0 ? ", or as root" : "");
    return true;
}

/* The same of its socket, which stays the user's that the process was when it opened it. */
static bool
say_owner_of_socket(const struct target *target)
{
    struct stat file;

    if (geteuid() == 0 || stat(target->path, &file) < 0 || file.st_uid == geteuid()) {
        return false;
    }
    say_error("the socket %s belongs to %s, as it does where process %d opened it before "
              "it changed its user; run manhole-cli as %s%s",
              quote(target->path).text, find_user(file.st_uid), (int)target->pid,
              find_user(file.st_uid), file.st_uid != 0 ? ", or as root" : "");
    return true;
}

/* The version that the files which a process has mapped tell, like "3.11"; "?" where we may not
 * look, or see nothing. */
static void
find_version(pid_t pid, char *version, size_t size)
{
    static const char *const signs[] = {"cpython-3", "/python3.", "libpython3."};
    struct buffer maps = {.data = NULL}; /* owned */
    int minor = 0;

    (void)read_proc(pid, "maps", &maps);
    for (size_t i = 0; minor == 0 && i < sizeof(signs) / sizeof(signs[0]); i++) {
        const char *sign = strstr(text_of(&maps), signs[i]);
        minor = sign != NULL ? (int)strtol(sign + strlen(signs[i]), NULL, 10) : 0;
    }
    (void)snprintf(version, size, minor > 0 ? "3.%d" : "?", minor);
    free(maps.data);
}

/* Whether this variable was in the environment that the process was started with. */
static bool
has_variable(pid_t pid, const char *name)
{
    struct buffer environment = {.data = NULL}; /* owned */
    bool found = false;

    (void)read_proc(pid, "environ", &environment);
    for (size_t i = 0; i < environment.length && !found;
         i += strlen(environment.data + i) + 1) {
        const char *variable = environment.data + i;
        found =
            strncmp(variable, name, strlen(name)) == 0 && variable[strlen(name)] == '=';
    }
    free(environment.data);
    return found;
}

/* Whether a process that runs Python has not even loaded the module. */
static bool
is_python_without(pid_t pid)
{
    struct buffer maps = {.data = NULL}; /* owned */
    char version[8];
    bool has_module = true;

    find_version(pid, version, sizeof(version));
    if (read_proc(pid, "maps", &maps)) {
        has_module = strstr(text_of(&maps), "/manhole.") != NULL;
    }
    free(maps.data);
    return version[0] != '?' && !has_module;
}

/* The program that a process runs, by the path that it was called by, if it was, which in a virtual
 * environment is more than the kernel's own. */
static void
find_program(pid_t pid, char *found, size_t size)
{
    struct buffer words = {.data = NULL}; /* owned */
    char path[64];

    found[0] = '\0';
    if (read_proc(pid, "cmdline", &words) && text_of(&words)[0] == '/') {
        (void)snprintf(found, size, "%s", text_of(&words));
    }
    else {
        (void)snprintf(path, sizeof(path), "/proc/%d/exe", (int)pid);
        ssize_t length = readlink(path, found, size - 1);
        found[length > 0 ? length : 0] = '\0';
    }
    free(words.data);
}

static void
say_no_manhole(pid_t pid)
{
    char python[PATH_MAX];

    if (has_variable(pid, "PYTHONMANHOLE") && is_python_without(pid)) {
        find_program(pid, python, sizeof(python));
        say_error("PYTHONMANHOLE is set for process %d, but manhole is not installed in "
                  "%s, or that was started with -I, -E or -S",
                  (int)pid, quote(python).text);
    }
    else {
        say_error("process %d seems to have no manhole: it wants manhole.install(), or "
                  "PYTHONMANHOLE in its environment, when it starts",
                  (int)pid);
    }
}

/* Whether a process is no more, or on its way out: the kernel closes what it had open when all of
 * its threads have a flag, PF_EXITING, that /proc shows; one that closes as it likes has not. */
static bool
has_ended(pid_t pid)
{
    enum { EXITING = 4 };
    struct buffer stat_text = {.data = NULL}; /* owned */
    const char *field = NULL; /* the state, after a name that may have anything in it */
    char *end = NULL;
    unsigned long flags = 0;
    char state = 0;

    if (pid == 0) { /* one that cannot be seen from here */
        return false;
    }
    if (!read_proc(pid, "stat", &stat_text)) {
        return kill(pid, 0) < 0 && errno == ESRCH;
    }
    field = strrchr(text_of(&stat_text), ')');
    if (field != NULL && strlen(field) > 3) {
        state = field[2];
        field += 3;
        for (int i = 0; i < 6; i++) { /* ppid, pgrp, session, tty_nr, tpgid, flags */
            flags = strtoul(field, &end, 10);
            field = end;
        }
    }
    free(stat_text.data);
    return state == 'Z' || state == 'X' || (flags & EXITING) != 0;
}

/* After a timeout: why nobody opens, as far as /proc shows it. signal: that was sent, or 0. */
static void
say_why(const struct target *target, int signal)
{
    struct target hidden = *target;
    const int pid = (int)target->pid;
    struct notice notice;

    if (pid != 0 && signal != 0 && has_ended(pid)) {
        say_error("process %d has ended: signal %d (%s) has ended it, which it caught; "
                  "its own log may tell more",
                  pid, signal, signal_name(signal));
        return;
    }
    if (pid == 0 || say_hindrance(pid) || say_owner(pid) || say_owner_of_socket(target)) {
        return;
    }
    notice = read_notice(pid);
    if (find_door(&hidden) == HIDDEN_WAY) {
        say_error("process %d listens at %s, which leads there no more: the file was "
                  "removed, or only the process sees it (nsenter -m -t %d); %s",
                  pid, quote(hidden.path).text, pid,
                  opening_signal(&notice) != 0 ? describe_opening(pid, &notice).text
                                               : "no signal opens it anew");
    }
    else if (opening_signal(&notice) != 0) {
        say_error("process %d has a manhole that is closed: %s", pid,
                  describe_opening(pid, &notice).text);
    }
    else if (notice.is_there) {
        say_error("process %d has a manhole, and waits for no signal, but it does not "
                  "listen where it can be seen from here; its log tells where",
                  pid);
    }
    else {
        say_no_manhole(pid);
    }
}

/* Connects to where the process listens: the usual place, else where the kernel knows it to. A port
 * (then there is target->port) is only found. Returns 0, or -1 with errno: that of the usual place,
 * or ENXIO when it is open and cannot be reached. */
static int
try_to_connect(int fd, struct target *target)
{
    int error = 0;
    enum way way = NO_WAY;
    struct target found = *target;

    if (target->port != 0 || connect_once(fd, target) == 0) {
        return 0;
    }
    error = errno;
    if (target->pid != 0 && !target->by_path &&
        (error == ENOENT || error == ECONNREFUSED)) {
        way = find_door(&found);
    }
    if (way == OPEN_WAY) {
        *target = found;
        return target->port != 0 ? 0 : connect_once(fd, target);
    }
    errno = way == HIDDEN_WAY ? ENXIO : error;
    return -1;
}

/* Tries until it works; ends the program when the time is over. The pauses are short at
 * first, for a manhole that a signal has just woken is there within a millisecond or two. */
static void
connect_within(int fd, struct target *target, double timeout_s, int signal)
{
    double deadline = now_s() + timeout_s;
    double pause = FIRST_PAUSE_MS / 1e3;
    int said = 0; /* the error that was shown last */

    while (try_to_connect(fd, target) < 0) {
        int error = errno;
        double left = deadline - now_s();
        if (!is_worth_waiting(error) && error != said) {
            say_connect_error(target->path, error);
            said = error;
        }
        /* A timeout that is not a number is over, too. Who is gone opens no more. */
        if (!(left > 0) || (target->pid != 0 && (error == ENOENT || signal != 0) &&
                            has_ended(target->pid))) {
            (void)fprintf(stderr, "Failed to connect to %s: Timeout\n",
                          quote(target->path).text);
            say_why(target, signal);
            leave(STATUS_NO_CONNECTION);
        }
        pause_s(pause < left ? pause : left);
        pause = 2 * pause < LONGEST_PAUSE_MS / 1e3 ? 2 * pause : LONGEST_PAUSE_MS / 1e3;
    }
}

/* One line that names both sides. */
static _Noreturn void
fail_refused(const struct target *target, const struct ucred *server, uid_t owner)
{
    char expected[64];

    if (target->pid != 0) {
        (void)snprintf(expected, sizeof(expected), "PID:%d UID:%u", (int)target->pid,
                       owner);
    }
    else {
        (void)snprintf(expected, sizeof(expected), "UID:%u or root", owner);
    }
    fail(STATUS_REFUSED,
         "%s is served by PID:%d UID:%u GID:%u, not by %s; nothing was sent. Look who "
         "that is, "
         "and connect as that user if you trust it",
         quote(target->path).text, (int)server->pid, server->uid, server->gid, expected);
}

/* Who may serve it, besides root and ourselves: for root, the user of the process asked for. */
static uid_t
find_owner(const struct target *target)
{
    uid_t owner = 0;
    return target->pid != 0 && geteuid() == 0 && find_uid(target->pid, &owner)
               ? owner
               : geteuid();
}

/* Whether who answers may read what is typed, and be believed: root, ourselves, or, for root,
 * the user of the process asked for; and whether it is this process. To anybody else the manhole
 * of another user's process is closed, so what lets him in is a trap. For a connected client
 * SO_PEERCRED tells who called listen(), so a socket that somebody else put at the path
 * shows. A server in another pid namespace may have pid 0 here: then the uid decides alone. */
static bool
judge_server(int fd, const struct target *target, struct ucred *server, uid_t *owner)
{
    socklen_t size = sizeof(*server);

    *owner = find_owner(target);
    if (getsockopt(fd, SOL_SOCKET, SO_PEERCRED, server, &size) < 0) {
        fail(STATUS_TROUBLE, "cannot find out who serves %s: %m",
             quote(target->path).text);
    }
    return (target->pid == 0 || server->pid == 0 || server->pid == target->pid) &&
           (server->uid == 0 || server->uid == geteuid() || server->uid == *owner);
}

/* Ends the program when it is the wrong one. */
static void
check_server(int fd, const struct target *target)
{
    struct ucred server;
    uid_t owner = 0;

    if (!judge_server(fd, target, &server, &owner)) {
        fail_refused(target, &server, owner);
    }
}

static bool
is_right_server(int fd, const struct target *target)
{
    struct ucred server;
    uid_t owner = 0;
    return judge_server(fd, target, &server, &owner);
}

/* Whether the processes in /proc bear the numbers that kill() knows them by: it may show those of
 * another pid namespace. */
static bool
is_proc_ours(void)
{
    char self[16] = "";
    (void)!readlink("/proc/self", self, sizeof(self) - 1);
    return strtol(self, NULL, 10) == getpid();
}

/* Ends the program unless the signal does no harm: a process that does not catch it may end by it.
 * That it is caught is not enough: a manhole catches some to remove its socket before they end the
 * process as ever. So where there is one, it must be the very signal that opens it. */
static void
check_signal(pid_t pid, int number)
{
    struct notice notice = read_notice(pid);
    const char *name = signal_name(number);
    bool is_awaited = number == notice.signals[0] || number == notice.signals[1];
    char bits[32];

    if (!is_proc_ours() || !find_status(pid, "SigCgt", bits, sizeof(bits))) {
        fail(STATUS_NO_SIGNAL,
             "nothing was sent: /proc does not tell whether process %d catches signal %d "
             "(%s), which may end it otherwise; run manhole-cli where /proc shows it",
             (int)pid, number, name);
    }
    if (has_ended(pid)) {
        (void)say_hindrance(pid);
        leave(STATUS_NO_SIGNAL);
    }
    if (notice.is_there && !is_awaited) {
        fail(STATUS_NO_SIGNAL,
             "nothing was sent: the manhole of process %d does not wait for signal %d "
             "(%s), which may end it; %s",
             (int)pid, number, name, describe_opening(pid, &notice).text);
    }
    if ((strtoull(bits, NULL, 16) >> (number - 1) & 1) == 0) {
        fail(STATUS_NO_SIGNAL,
             "nothing was sent: process %d does not catch signal %d (%s), which may end "
             "it, and has no manhole that waits for one",
             (int)pid, number, name);
    }
    if (!notice.is_there && find_doors(pid).count > 0) {
        fail(STATUS_NO_SIGNAL,
             "nothing was sent: a manhole in process %d is open, though not where it can "
             "be reached, and signal %d (%s) may end it; its log tells where",
             (int)pid, number, name);
    }
}

/* pid is positive: to kill() 0 and less mean whole groups, us among them. Signal 0 asks whether it
 * may be sent. */
static void
send_signal(pid_t pid, int number)
{
    const char *name = signal_name(number);
    const char *advice = "";

    int error = 0;

    if (kill(pid, 0) == 0) {
        check_signal(pid, number);
        if (kill(pid, number) == 0) {
            return;
        }
    }
    error = errno;
    if (error == ESRCH) {
        advice = "; look for its number with ps or pgrep";
    }
    if (error == EPERM) {
        if (say_owner(pid)) {
            leave(STATUS_NO_SIGNAL);
        }
        advice = "; run manhole-cli as the user of that process, or as root";
    }
    errno = error;
    fail(STATUS_NO_SIGNAL, "cannot send signal %d (%s) to process %d: %m%s", number, name,
         (int)pid, advice);
}

/* Those who listen at a port, as for_each_listener() finds them. */
struct listeners {
    int port;
    uid_t owner; /* who may, like root and ourselves */
    size_t count;
    bool has_stranger;
    uid_t stranger; /* one who is none of these */
};

static void
consider_listener(const struct tcp_listener *listener, void *argument)
{
    struct listeners *listeners = argument;
    uid_t uid = listener->uid;

    if (listener->port == listeners->port) {
        listeners->count++;
        if (uid != 0 && uid != geteuid() && uid != listeners->owner) {
            listeners->has_stranger = true;
            listeners->stranger = uid;
        }
    }
}

/* The kernel does not tell a client of TCP who its server is. So all who listen at the port must be
 * ones to trust. */
static void
check_listeners(const struct target *target)
{
    struct listeners listeners = {.port = target->port, .owner = find_owner(target)};

    if (!for_each_listener("self", consider_listener, &listeners)) {
        fail(STATUS_REFUSED, "cannot tell who serves %s, nothing was sent: %m",
             quote(target->path).text);
    }
    if (listeners.has_stranger) {
        fail(STATUS_REFUSED,
             "%s is served by UID:%u, not by UID:%u or root; nothing was sent. Look who "
             "that "
             "is, and connect as that user if you trust it",
             quote(target->path).text, listeners.stranger, geteuid());
    }
}

/* Whether what is sent there stays on this machine. */
static bool
is_loopback(const struct sockaddr *address)
{
    const struct sockaddr_in *ip = (const void *)address;
    const struct sockaddr_in6 *ip6 = (const void *)address;

    return address->sa_family == AF_INET6 ? IN6_IS_ADDR_LOOPBACK(&ip6->sin6_addr) != 0
                                          : ntohl(ip->sin_addr.s_addr) >> 24 == 127;
}

/* The addresses of HOST:PORT or [HOST]:PORT, of this machine alone; freeaddrinfo() them. Ends the
 * program when there are none. */
static struct addrinfo *
find_addresses(const struct target *target)
{
    const struct addrinfo hints = {.ai_socktype = SOCK_STREAM,
                                   .ai_flags = AI_NUMERICSERV};
    struct addrinfo *addresses = NULL; /* owned, handed to the caller */
    char host[sizeof(target->path)];
    const char *start = target->path + strspn(target->path, "[");
    const char *colon = strrchr(target->path, ':');
    int error = 0;

    (void)snprintf(host, sizeof(host), "%.*s", (int)(colon - start), start);
    host[strcspn(host, "]")] = '\0';
    error = getaddrinfo(host, colon + 1, &hints, &addresses);
    if (error != 0) {
        fail(STATUS_NO_CONNECTION, "cannot find %s: %s", quote(target->path).text,
             gai_strerror(error));
    }
    for (const struct addrinfo *each = addresses; each != NULL; each = each->ai_next) {
        if (!is_loopback(each->ai_addr)) {
            fail(
                STATUS_REFUSED,
                "%s is not an address of this machine alone, and TCP tells nobody who it "
                "is; manhole-cli --host HOST reaches a process over there by ssh",
                quote(target->path).text);
        }
    }
    return addresses;
}

/* To a network of its own, as a container has one, only root can go. */
static void
enter_network(const struct target *target)
{
    char path[64];
    int network = -1; /* owned */

    (void)snprintf(path, sizeof(path), "/proc/%d/ns/net", (int)target->pid);
    if (target->pid == 0 || is_same_file(path, "/proc/self/ns/net")) {
        return;
    }
    network = open(path, O_RDONLY | O_CLOEXEC);
    if (network < 0 || setns(network, CLONE_NEWNET) < 0) {
        fail(STATUS_NO_CONNECTION,
             "process %d listens at %s in a network of its own: %m; run manhole-cli as "
             "root, or there, see --exec",
             (int)target->pid, quote(target->path).text);
    }
    (void)close(network);
}

/* The same as open_connection(), for TCP. */
static int
open_tcp_connection(const struct request *request, const struct target *target)
{
    struct addrinfo *addresses = NULL; /* owned */
    double timeout_ms = request->timeout_s * 1e3;
    int fd = -1;
    int error = ECONNREFUSED;

    if (request->action != ACTION_CONSOLE) {
        fail(
            STATUS_NO_CONNECTION,
            "process %s listens at %s alone, and by TCP there is a console, no -c and no "
            "--stacks; they want a path in listen as well",
            label_of(target).text, quote(target->path).text);
    }
    enter_network(target);
    addresses = find_addresses(target);
    check_listeners(target);
    for (const struct addrinfo *each = addresses; each != NULL && error != 0;
         each = each->ai_next) {
        struct pollfd server = {.events = POLLOUT};
        socklen_t size = sizeof(error);
        if (fd >= 0) {
            (void)close(fd);
        }
        fd = socket(each->ai_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
        error = fd >= 0 && connect(fd, each->ai_addr, each->ai_addrlen) == 0 ? 0 : errno;
        server.fd = fd;
        if (error == EINPROGRESS &&
            (poll(&server, 1, timeout_ms < INT_MAX ? (int)timeout_ms : -1) != 1 ||
             getsockopt(fd, SOL_SOCKET, SO_ERROR, &error, &size) < 0)) {
            error = ETIMEDOUT;
        }
    }
    freeaddrinfo(addresses);
    if (error != 0) {
        errno = error;
        fail(STATUS_NO_CONNECTION, "cannot connect to %s: %m", quote(target->path).text);
    }
    return fd;
}

/* Returns a socket that is connected to the process asked for, and notes in target where that was;
 * ends the program without one. The signal is sent only where nobody is there yet: it may be what
 * makes the process listen. */
static int
open_connection(const struct request *request, struct target *target, const char *wish)
{
    int fd = open_socket(wish);
    int signal = 0; /* that was sent */

    if (try_to_connect(fd, target) < 0) {
        bool is_closed = errno == ENOENT || errno == ECONNREFUSED || errno == ENXIO;
        if (request->signal != 0 && is_closed && target->by_path) {
            fail(STATUS_NO_SIGNAL,
                 "cannot tell whom to send signal %d, nobody answers at %s: %m; give the "
                 "PID of the process instead",
                 request->signal, quote(target->path).text);
        }
        if (request->signal != 0 && is_closed) {
            signal = request->signal;
            send_signal(target->pid, signal);
        }
        connect_within(fd, target, request->timeout_s, signal);
    }
    if (target->port != 0) {
        (void)close(fd);
        return open_tcp_connection(request, target);
    }
    check_server(fd, target);
    return fd;
}

#endif /* MANHOLE_CLI_CONNECTION_C */
