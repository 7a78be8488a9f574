/* Connection: knock, wait until somebody opens, see who it is. No byte goes over here.
 *
 * open_connection() tries the usual path, then where the kernel knows the process to listen. Where
 * nobody is there yet it sends the signal that was asked for, if that is the one which opens the
 * manhole, for it may end any other process (check_signal()). Then it tries again until the timeout
 * is over, and says why nobody opened.
 *
 * Anybody may put a socket at /tmp/manhole-PID while the process has none. Who typed into that one
 * would hand over his commands and believe the answers; hence check_server(), before anything else.
 * To add a reason to refuse a server: is_right_server() and a test.
 */
#ifndef MANHOLE_CLI_CONNECTION_C
#define MANHOLE_CLI_CONNECTION_C

#include "signals.c"
#include "hindrances.c"
#include "tcp.c"
#include "terminal.c"

enum {
    FIRST_PAUSE_MS = 1, /* between two tries to connect; doubles up to */
    LONGEST_PAUSE_MS = 32,
};

/* ---- The calling card -------------------------------------------------------------- */

/* Who we are to the server: the ID of our calling cards. It wants to be unique, also among
 * containers that share a network and count their processes alike. */
static struct {
    char id[32];
    unsigned questions; /* asked beside a session, so that each has a card of its own */
} own;

/* Binds our end to a name which tells the server, at accept() and without a byte of protocol, that
 * this is a manhole-cli and what it wants: "\0manhole-cli/4711.31337/interrupt.1", an abstract name
 * of who asks and of the channel. Sessions and questions of one client have the same ID, so the
 * server knows which session is meant. A server that does not know of it sees nothing unusual.
 * The ID of who is at a terminal tells how many columns that has, and with a "c" that it takes
 * colours: "4711.31337.80c". Returns 0, or -1 with errno: we would get a console then. */
static int
show_calling_card(int fd, const char *channel)
{
    struct sockaddr_un card = {.sun_family = AF_UNIX};

    if (own.id[0] == '\0') {
        unsigned number = 0;
        (void)!getrandom(&number, sizeof(number), GRND_NONBLOCK);
        (void)snprintf(own.id, sizeof(own.id), "%d.%u%.7s", (int)getpid(), number,
                       describe_terminal().text);
    }
    int length = snprintf(card.sun_path + 1, sizeof(card.sun_path) - 1,
                          "manhole-cli/%s/%s", own.id, channel);
    return bind(fd, (const struct sockaddr *)&card,
                (socklen_t)(offsetof(struct sockaddr_un, sun_path) + 1 + (size_t)length));
}

/* Non-blocking: a server that accepts nobody, its queue full, must not hold us beyond the timeout,
 * nor one that reads nothing keep us from showing what it writes. */
static int
open_socket(const char *channel)
{
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0) {
        fail(STATUS_TROUBLE, "cannot make a socket: %m");
    }
    if (show_calling_card(fd, channel) < 0) {
        fail(STATUS_TROUBLE, "cannot tell the server what is wanted of it: %m");
    }
    return fd;
}

/* ---- One try ----------------------------------------------------------------------- */

/* Whether root is nobody to the process, which is in a user namespace that has no root of ours: its
 * server would turn us away. */
static bool
is_unknown_to(pid_t pid)
{
    OWNED_BUFFER map = {.data = NULL}; /* lines of inside, outside, count */

    if (geteuid() != 0 || shares_namespace(pid, "ns/user") ||
        !read_proc(pid, "uid_map", &map)) {
        return false;
    }
    for (size_t at = 0; at < map.length; at += next_line(&map, at, true)) {
        char *outside = NULL;
        (void)strtoul(map.data + at, &outside, 10);
        if (strtoul(outside, NULL, 10) == 0) {
            return false;
        }
    }
    return true;
}

/* Connects as this user, who is not 0; as root otherwise. */
static int
connect_as(uid_t user, int fd, const struct sockaddr_un *address)
{
    int ending = 0; /* the signal by which we end with our parent, */
    int result = -1;

    (void)prctl(PR_GET_PDEATHSIG, &ending);
    if (seteuid(user) == 0) {
        result = connect(fd, (const struct sockaddr *)address, sizeof(*address));
    }
    int error = errno;
    if (seteuid(0) < 0) {
        fail(STATUS_TROUBLE, "cannot be root again: %m");
    }
    (void)prctl(PR_SET_PDEATHSIG, ending); /* which a change of the user forgets */
    errno = error;
    return result;
}

/* Returns 0, or -1 with errno. The same socket may try again after a failure. To whom root is
 * nobody we come as its own user, who may not go where root may: so the way to the folder is behind
 * us before. Through the folder also a path that is longer than an address can be is reached. */
static int
connect_once(int fd, const struct target *target)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    const char *name = strrchr(target->path, '/');
    uid_t user = 0; /* to be while we connect; 0: who we are */
    OWNED_FD folder_fd = -1;

    if (target->pid != 0 && is_unknown_to(target->pid)) {
        (void)find_uid(target->pid, &user);
    }
    (void)snprintf(address.sun_path, sizeof(address.sun_path), "%.*s",
                   SOCKET_PATH_SIZE - 1, target->path);
    if (name != NULL && (user != 0 || strlen(target->path) >= SOCKET_PATH_SIZE)) {
        char folder[sizeof(target->path)];
        (void)snprintf(folder, sizeof(folder), "%.*s", (int)(name + 1 - target->path),
                       target->path);
        folder_fd = open(folder, O_PATH | O_DIRECTORY | O_CLOEXEC);
        (void)snprintf(address.sun_path, sizeof(address.sun_path), "/proc/self/fd/%d/%s",
                       folder_fd, name + 1);
    }
    return user != 0 ? connect_as(user, fd, &address)
                     : connect(fd, (const struct sockaddr *)&address, sizeof(address));
}

/* Connects to where the process listens: the usual place, else where the kernel knows it to. A port
 * (then there is target->port) is only found. Returns 0, or -1 with errno: that of the usual place,
 * or ENXIO when it is open and cannot be reached. */
static int
try_to_connect(int fd, struct target *target)
{
    enum reach reach = UNSEEN;
    struct target found = *target;

    if (target->port != 0 || connect_once(fd, target) == 0) {
        return 0;
    }
    int error = errno;
    if (target->pid != 0 && !target->by_path &&
        (error == ENOENT || error == ECONNREFUSED)) {
        reach = find_listening_socket(&found);
    }
    if (reach == FOUND) {
        *target = found;
        return target->port != 0 ? 0 : connect_once(fd, target);
    }
    errno = reach == HIDDEN ? ENXIO : error;
    return -1;
}

/* ---- Waiting ----------------------------------------------------------------------- */

/* An error that is not just that the server is still on the way, or busy, in python-manhole's
 * words. The waiting goes on: it may be a passing one, and it may be that somebody is setting
 * things right. */
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

/* Tries until it works; ends the program when the time is over. The pauses are short at first, for
 * a manhole that a signal has just woken is there within a millisecond or two. */
static void
connect_within(int fd, struct target *target, double timeout_s, int signal)
{
    double deadline = now_s() + timeout_s;
    double pause = FIRST_PAUSE_MS / 1e3;
    int said = 0; /* the error that was shown last */

    while (try_to_connect(fd, target) < 0) {
        int error = errno;
        double left = deadline - now_s();
        bool is_usual = error == ENOENT || error == ECONNREFUSED || error == EAGAIN ||
                        error == EINTR || error == ENXIO;
        if (!is_usual && error != said) {
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

/* ---- The signal -------------------------------------------------------------------- */

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
    struct advert advert = read_advert(pid);
    struct text bits = read_status(pid, "SigCgt");
    const char *name = signal_name(number);
    bool is_awaited = number == advert.signals[0] || number == advert.signals[1];

    if (!is_proc_ours() || bits.text[0] == '\0') {
        fail(STATUS_NO_SIGNAL,
             "nothing was sent: /proc does not tell whether process %d catches signal %d "
             "(%s), which may end it otherwise; run manhole-cli where /proc shows it",
             (int)pid, number, name);
    }
    if (has_ended(pid)) {
        (void)say_hindrance(pid);
        leave(STATUS_NO_SIGNAL);
    }
    if (advert.is_there && !is_awaited) {
        fail(STATUS_NO_SIGNAL,
             "nothing was sent: the manhole of process %d does not wait for signal %d "
             "(%s), which may end it; %s",
             (int)pid, number, name, describe_opening(pid, &advert).text);
    }
    if ((strtoull(bits.text, NULL, 16) >> (number - 1) & 1) == 0) {
        fail(STATUS_NO_SIGNAL,
             "nothing was sent: process %d does not catch signal %d (%s), which may end "
             "it, and has no manhole that waits for one",
             (int)pid, number, name);
    }
    if (!advert.is_there && find_manhole_sockets(pid).count > 0) {
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
    const char *advice = "";

    if (kill(pid, 0) == 0) {
        check_signal(pid, number);
        if (kill(pid, number) == 0) {
            return;
        }
    }
    int error = errno;
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
    fail(STATUS_NO_SIGNAL, "cannot send signal %d (%s) to process %d: %m%s", number,
         signal_name(number), (int)pid, advice);
}

/* ---- Who answers ------------------------------------------------------------------- */

/* As the kernel recorded it when the server began to listen, so that a socket which somebody else
 * put at the path shows. */
static struct ucred
find_server(int fd, const struct target *target)
{
    struct ucred server = {.pid = 0};
    socklen_t size = sizeof(server);

    if (getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &server, &size) < 0) {
        fail(STATUS_TROUBLE, "cannot find out who serves %s: %m",
             quote(target->path).text);
    }
    return server;
}

/* Whether who answers may read what is typed, and be believed: root, ourselves, or, for root, the
 * user of the process asked for; and whether it is this process. To anybody else the manhole of
 * another user's process is closed, so what lets him in is a trap. A server in another pid
 * namespace may have pid 0 here: then the uid decides alone. */
static bool
is_right_server(int fd, const struct target *target)
{
    struct ucred server = find_server(fd, target);
    return (target->pid == 0 || server.pid == 0 || server.pid == target->pid) &&
           (server.uid == 0 || server.uid == geteuid() ||
            server.uid == find_owner(target));
}

/* Ends the program when it is the wrong one, in one line that names both sides. */
static void
check_server(int fd, const struct target *target)
{
    struct ucred server = find_server(fd, target);
    uid_t owner = find_owner(target);

    if (is_right_server(fd, target)) {
        return;
    }
    struct text expected = target->pid != 0
                               ? print("PID:%d UID:%u", (int)target->pid, owner)
                               : print("UID:%u or root", owner);
    fail(STATUS_REFUSED,
         "%s is served by PID:%d UID:%u GID:%u, not by %s; nothing was sent. Look who "
         "that is, and connect as that user if you trust it",
         quote(target->path).text, (int)server.pid, server.uid, server.gid,
         expected.text);
}

/* Returns a socket that is connected to the process asked for, and notes in target where that was;
 * ends the program without one. The signal is sent only where nobody is there yet: it may be what
 * makes the process listen. */
static int
open_connection(const struct request *request, struct target *target, const char *channel)
{
    int fd = open_socket(channel);
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
    if (!terminal.is_quiet) {
        say_python_manhole(target);
    }
    return fd;
}

#endif /* MANHOLE_CLI_CONNECTION_C */
