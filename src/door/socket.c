/* Socket: where we listen, and who may come in.
 * Runs on:  the listener thread; the main thread for oneshot. DETACHED throughout.
 * Touches:  the doors, the death signals. Never struct session, never sys.
 *
 * A door is a socket that we listen on: of the options (socket_path, listen), in the first
 * MAX_OWN_DOORS slots, or given to us by the application (src/server/backdoor.c). The options' are
 * opened by whoever serves their clients: the listener, or handle_oneshot().
 *
 * A path is made so that nobody else ever gets in by it. The socket has its mode, 0600, before
 * bind() gives it a name. What lies there already is removed only if it is a socket, ours, and
 * nobody answers on it. When we have bound, device and inode are kept: what is removed at the end
 * is what we have made, and a path that is lost, to a cleaner of /tmp say, is noticed and made
 * again.
 *
 * A path must not outlive its process either. atexit() and Python's exit remove it, and so does a
 * handler of those signals whose default action would end the process: only while there is a path,
 * and only where the application has no handler of its own.
 *
 * Who may come in: the process's effective user, and root, as the kernel says.
 */
#ifndef MANHOLE_DOOR_SOCKET_C
#define MANHOLE_DOOR_SOCKET_C

#include "../base/compat.c"
#include "../base/state.c"
#include "../base/basics.c"
#include "../base/log.c"
#include "../base/handlers.c"
#include "tcp.c"

/* Their default action is to end the process; Python leaves them at SIG_DFL. (SIGINT too,
 * where Python was told not to handle signals.) Signals that dump core because the
 * program is broken are not here: nothing more should run in it then. */
static const int death_signals[] = {SIGHUP,  SIGINT,  SIGQUIT, SIGTERM,
                                    SIGUSR1, SIGUSR2, SIGALRM, SIGXCPU};

static bool
is_default(const struct sigaction *action)
{
    return (action->sa_flags & SA_SIGINFO) == 0 && action->sa_handler == SIG_DFL;
}

static void
unwatch_death_signals(void)
{
    struct sigaction action = {.sa_handler = SIG_DFL};
    (void)sigemptyset(&action.sa_mask);
    for (size_t i = 0; i < Py_ARRAY_LENGTH(death_signals); i++) {
        struct sigaction current;
        if (sigaction(death_signals[i], NULL, &current) == 0 &&
            (current.sa_flags & SA_SIGINFO) == 0 && current.sa_handler == on_death) {
            (void)sigaction(death_signals[i], &action, NULL);
        }
    }
}

/* A forked child, also one of C, has no socket to remove, and would seem to catch what ends it. */
static void
unwatch_in_children(void)
{
    (void)pthread_atfork(NULL, NULL, unwatch_death_signals);
}

/* Only where the disposition is SIG_DFL: a handler of the application's will end the
 * process its own way. Not for pid 1, which the kernel spares signals that it does not
 * handle. */
DETACHED static void
watch_death_signals(void)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    struct sigaction action = {.sa_handler = on_death,
                               .sa_flags = SA_RESTART | SA_ONSTACK};
    (void)sigemptyset(&action.sa_mask);
    if (getpid() == 1) {
        return;
    }
    (void)pthread_once(&once, unwatch_in_children);
    for (size_t i = 0; i < Py_ARRAY_LENGTH(death_signals); i++) {
        struct sigaction current;
        if (sigaction(death_signals[i], NULL, &current) == 0 && is_default(&current) &&
            sigaction(death_signals[i], &action, &current) == 0 &&
            !is_default(&current)) {
            /* The application has set its own in between: it stays. */
            (void)sigaction(death_signals[i], &current, NULL);
        }
    }
}

/* Fills path (of size bytes) from what the options say, "%(pid)s" replaced by the pid.
 * Returns the length that it has or would need, without the NUL. */
static size_t
expand_path(const char *template, char *path, size_t size)
{
    static const char marker[] = "%(pid)s";
    const char *rest = template == NULL ? "/tmp/manhole-%(pid)s" : template;
    size_t length = 0;
    if (size > 0) {
        path[0] = '\0';
    }
    while (*rest != '\0') {
        char number[24];
        const char *piece = rest;
        size_t piece_length = strcspn(rest, "%");
        if (strncmp(rest, marker, sizeof(marker) - 1) == 0) {
            (void)snprintf(number, sizeof(number), "%ld", (long)getpid());
            piece = number;
            piece_length = strlen(number);
            rest += sizeof(marker) - 1;
        }
        else {
            piece_length = piece_length == 0 ? 1 : piece_length;
            rest += piece_length;
        }
        if (length + piece_length < size) {
            memcpy(path + length, piece, piece_length);
            path[length + piece_length] = '\0';
        }
        length += piece_length;
    }
    return length;
}

static bool
is_tcp(const struct endpoint *endpoint)
{
    return endpoint->address.any.sa_family != AF_UNSPEC;
}

/* The path is the process's own: a child may have one too. */
static bool
is_path_per_process(const char *template)
{
    return template == NULL || strstr(template, "%(pid)s") != NULL;
}

/* A forked child can try to open this endpoint, too. */
static bool
may_child_have(const struct endpoint *endpoint)
{
    return is_tcp(endpoint) || is_path_per_process(endpoint->path);
}

/* The n-th endpoint of the options: first socket_path, whose default listen replaces. What it owns
 * stays the options'. Returns false when there is none. */
static bool
get_endpoint(const struct options *options, size_t n, struct endpoint *endpoint)
{
    const size_t first = options->socket_path != NULL || options->listen.count == 0;
    if (n < first) {
        *endpoint = (struct endpoint){.path = options->socket_path};
        return true;
    }
    if (n - first < options->listen.count) {
        *endpoint = options->listen.rows[n - first];
        return true;
    }
    return false;
}

static bool
has_endpoint_for_child(const struct options *options)
{
    struct endpoint endpoint;
    bool has = false;
    for (size_t i = 0; !has && get_endpoint(options, i, &endpoint); i++) {
        has = may_child_have(&endpoint);
    }
    return has;
}

static void
free_endpoints(struct endpoints *endpoints)
{
    for (size_t i = 0; i < endpoints->count; i++) {
        free(endpoints->rows[i].path);
    }
    endpoints->count = 0;
}

/* Who is on the other side of a connected Unix socket. Returns 0, or -1 with errno and a uid of
 * nobody's. */
static int
read_peer(int fd, struct peer *peer)
{
    struct ucred credentials = {0};
    socklen_t size = sizeof(credentials);
    peer->uid = (uid_t)-1;
    if (getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &credentials, &size) < 0) {
        return -1;
    }
    if (credentials.uid == (uid_t)-1) { /* not connected, or no Unix socket */
        errno = ENOTCONN;
        return -1;
    }
    *peer = (struct peer){credentials.pid, credentials.uid, credentials.gid, ""};
    return 0;
}

static bool
is_inet(int fd)
{
    int domain = AF_UNSPEC;
    socklen_t size = sizeof(domain);
    (void)getsockopt(fd, SOL_SOCKET, SO_DOMAIN, &domain, &size);
    return domain == AF_INET || domain == AF_INET6;
}

/* The same for a socket of either kind; *peer has what is known in any case. */
DETACHED static int
identify_peer(int fd, struct peer *peer)
{
    return is_inet(fd) ? read_tcp_peer(fd, peer) : read_peer(fd, peer);
}

static bool
may_enter(const struct peer *peer)
{
    return peer->uid == 0 || peer->uid == geteuid();
}

/* Is somebody serving the socket at this path? A listener whose process is gone counts as
 * nobody (a child that never ran our fork hook may hold its descriptor), and so does one
 * of our own. */
DETACHED static bool
is_answered(const struct sockaddr_un *address)
{
    struct peer peer = {0};
    OWNED_FD int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0) {
        return true; /* cannot tell: leave it alone */
    }
    if (connect(fd, (const struct sockaddr *)address, sizeof(*address)) < 0) {
        return errno != ECONNREFUSED;
    }
    return read_peer(fd, &peer) < 0 ||
           (peer.pid != getpid() && !(kill(peer.pid, 0) < 0 && errno == ESRCH));
}

/* Removes a dead socket of ours. Returns NULL when the path is free now, else why it is
 * not. */
DETACHED static const char *
clear_path(const struct sockaddr_un *address)
{
    struct stat there;
    if (lstat(address->sun_path, &there) < 0) {
        return errno == ENOENT ? NULL : error_text(errno);
    }
    if (!S_ISSOCK(there.st_mode)) {
        return "something that is not a socket is there; move it away or use another "
               "socket_path";
    }
    if (there.st_uid != geteuid()) {
        return "a socket of another user is there; have it removed or use another "
               "socket_path";
    }
    if (is_answered(address)) {
        return "another process answers there; use another socket_path";
    }
    if (unlink(address->sun_path) < 0 && errno != ENOENT) {
        return error_text(errno);
    }
    return NULL;
}

/* Binds to the door's path and notes that it is ours, without a signal in between that may end the
 * process. Returns 0, or -1 with an errno. */
DETACHED static int
bind_path(struct door *door, int fd, const struct sockaddr_un *address)
{
    sigset_t all;
    sigset_t before;
    struct stat there = {0};
    bool made = false;
    (void)sigfillset(&all);
    (void)pthread_sigmask(SIG_SETMASK, &all, &before);
    atomic_store(&door->binding, true);

    errno = ECANCELED;
    if (!atomic_load(&manhole.leaving)) {
        made = bind(fd, (const struct sockaddr *)address, sizeof(*address)) == 0;
    }
    int result = made ? lstat(door->name, &there) : -1;
    int error = errno;
    if (result == 0) {
        door->device = there.st_dev;
        door->inode = there.st_ino;
        atomic_store(&door->bound, true);
    }
    else if (made) {
        (void)unlink(door->name); /* nobody would know later that it is ours */
    }

    atomic_store(&door->binding, false);
    (void)pthread_sigmask(SIG_SETMASK, &before, NULL);
    errno = error;
    return result;
}

/* Binds a new Unix socket. The mode is set before there is a path, so no umask and no moment leaves
 * it open to others. Returns NULL, or why not. */
DETACHED static const char *
open_path(struct door *door, int fd, const char *template)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    const char *why = NULL;
    if (expand_path(template, door->name, sizeof(door->name)) >=
        sizeof(door->name)) { /* with the longer number of a child */
        return "the path is too long for a socket; use a shorter one";
    }
    memcpy(address.sun_path, door->name, sizeof(address.sun_path));
    if (fd < 0 || fchmod(fd, S_IRUSR | S_IWUSR) < 0) {
        return error_text(errno);
    }
    watch_death_signals();
    if (bind_path(door, fd, &address) < 0) {
        why = errno == EADDRINUSE ? clear_path(&address) : error_text(errno);
        if (why == NULL && bind_path(door, fd, &address) < 0) {
            why = error_text(errno);
        }
    }
    return why;
}

/* Binds a new TCP socket. Returns NULL, or why not. */
DETACHED static const char *
open_port(struct door *door, int fd, const union address *address)
{
    const int yes = 1;
    union address chosen = *address;
    socklen_t size = sizeof(chosen);
    format_address(address, door->name);
    if (fd >= 0) { /* or a connection of before keeps the port for a minute */
        (void)setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof(yes));
        /* By this mode, which no application gives a socket, manhole-cli tells in /proc which of a
         * process's sockets are a manhole's. */
        (void)fchmod(fd, S_IRUSR | S_IWUSR);
    }
    if (fd < 0 || bind(fd, &address->any, address_size(address)) < 0 ||
        getsockname(fd, &chosen.any, &size) < 0) {
        return errno == EADDRINUSE && manhole.is_child
                   ? "the port is in use; a forked process can have one of its own with "
                     "port 0, or a path with %(pid)s"
                   : error_text(errno);
    }
    format_address(&chosen, door->name);
    return NULL;
}

static bool
is_door_open(const struct door *door)
{
    return atomic_load(&door->listen_fd.number) >= 0;
}

/* A door of the options is open, as far as we have opened it. */
static bool
is_open(void)
{
    bool open = false;
    for (size_t i = 0; i < MAX_OWN_DOORS; i++) {
        open = open || is_door_open(&manhole.doors[i]);
    }
    return open;
}

/* The path is gone or somebody else's now: a cleaner of /tmp, say. */
DETACHED static bool
is_path_lost(const struct door *door)
{
    struct stat there;
    return atomic_load(&door->bound) &&
           (lstat(door->name, &there) < 0 || there.st_dev != door->device ||
            there.st_ino != door->inode);
}

static void
close_door(struct door *door)
{
    remove_path(door);
    close_kept(&door->listen_fd);
}

/* After remove_paths(): what an application that was root at install() leaves behind. */
static void
log_left_paths(void)
{
    for (size_t i = 0; i < MAX_OWN_DOORS; i++) {
        const char *path = manhole.doors[i].name;
        int error = atomic_exchange(&manhole.doors[i].left_for, 0);
        struct stat there;
        if (error != 0 && lstat(path, &there) == 0) {
            log_line("Cannot remove %s: %s. It is UID:%ld's, this process UID:%ld's. "
                     "Remove it by hand.",
                     path, error_text(error), (long)there.st_uid, (long)geteuid());
        }
    }
}

/* Has a descriptor to spare for the next client, if there is one to be had. */
static void
hold_door_spare(void)
{
    if (kept_number(&manhole.door_spare) < 0) {
        keep_fd(&manhole.door_spare, socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0));
    }
}

/* Accepts a client. An application that leaks descriptors is one that somebody wants to look into:
 * the spare one makes room for one client. Returns its descriptor, or -1 with errno. */
DETACHED static int
accept_next(int listen_fd, union address *address, socklen_t *size)
{
    const socklen_t space = *size;
    hold_door_spare();
    int fd = accept4(listen_fd, &address->any, size, SOCK_CLOEXEC);
    if (fd < 0 && (errno == EMFILE || errno == ENFILE)) {
        close_kept(&manhole.door_spare);
        *size = space;
        fd = accept4(listen_fd, &address->any, size, SOCK_CLOEXEC);
    }
    return fd;
}

/* Closes the doors of the options. Clients that are in stay. */
static void
close_doors(void)
{
    close_kept(&manhole.door_spare);
    remove_paths();
    log_left_paths();
    for (size_t i = 0; i < MAX_OWN_DOORS; i++) {
        close_door(&manhole.doors[i]);
    }
    unwatch_death_signals();
}

static void
close_given_doors(void)
{
    for (size_t i = MAX_OWN_DOORS; i < MAX_DOORS; i++) {
        close_kept(&manhole.doors[i].listen_fd);
    }
}

/* In a child: the paths are the parent's. */
static void
forget_doors(void)
{
    close_kept(&manhole.door_spare);
    for (size_t i = 0; i < MAX_DOORS; i++) {
        atomic_store(&manhole.doors[i].binding, false);
        atomic_store(&manhole.doors[i].bound, false);
        close_kept(&manhole.doors[i].listen_fd);
        keep_fd(&manhole.doors[i].given_fd, -1);
    }
}

static bool
has_given_door(void)
{
    bool has = false;
    for (size_t i = MAX_OWN_DOORS; i < MAX_DOORS; i++) {
        has = has || is_door_open(&manhole.doors[i]);
    }
    return has;
}

/* Returns whether the door is open now; if not, after a log line that says why. */
DETACHED static bool
open_door(struct door *door, const struct endpoint *endpoint)
{
    bool tcp = is_tcp(endpoint);
    OWNED_FD int fd = socket(tcp ? endpoint->address.any.sa_family : AF_UNIX,
                             SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    const char *why = tcp ? open_port(door, fd, &endpoint->address)
                          : open_path(door, fd, endpoint->path);
    if (why == NULL && listen(fd, MAX_SESSIONS) < 0) {
        why = error_text(errno);
    }
    if (why == NULL) {
        keep_fd(&door->listen_fd, steal_fd(&fd));
        log_line("Manhole %s: %s", tcp ? "TCP address" : "UDS path", door->name);
        return true;
    }
    remove_path(door);
    log_line("Cannot listen at %s: %s", door->name, why);
    return false;
}

/* Opens a door, if it is not open, or again where its path or descriptor was lost. Returns whether
 * it has. */
DETACHED static bool
see_to_door(struct door *door, const struct endpoint *endpoint)
{
    if (is_door_open(door)) {
        if (!is_path_lost(door) && !is_lost(&door->listen_fd)) {
            return false;
        }
        close_door(door);
    }
    if (manhole.is_child && !may_child_have(endpoint)) {
        return false;
    }
    return open_door(door, endpoint);
}

/* Opens those doors of the options that are not open. Returns how many that were. */
DETACHED static int
open_doors(void)
{
    struct endpoint endpoint;
    int opened = 0;
    for (size_t i = 0; get_endpoint(&manhole.options, i, &endpoint); i++) {
        opened += see_to_door(&manhole.doors[i], &endpoint);
    }
    if (is_open()) {
        hold_door_spare();
    }
    else {
        unwatch_death_signals();
    }
    return opened;
}

/* For atexit(): exit() of a program that does not finalize Python, uWSGI's master for one. */
static void
remove_paths_at_exit(void)
{
    if (is_owner()) {
        atomic_store(&manhole.leaving, true);
        remove_paths();
        log_left_paths();
    }
}

static void
log_waiting(void)
{
    log_line("Waiting for new connection (in pid:%ld) ...", (long)getpid());
}

/* A peer as log lines name it. */
struct peer_text {
    char text[ADDRESS_SIZE + 26];
};

static struct peer_text
describe_peer(const struct peer *peer)
{
    struct peer_text described;
    char *text = described.text;
    const size_t size = sizeof(described.text);
    if (peer->uid == (uid_t)-1) {
        (void)snprintf(text, size, "%s%sUID:unknown", peer->address,
                       peer->address[0] == '\0' ? "" : " ");
    }
    else if (peer->address[0] == '\0') {
        (void)snprintf(text, size, "PID:%ld UID:%ld GID:%ld", (long)peer->pid,
                       (long)peer->uid, (long)peer->gid);
    }
    else {
        (void)snprintf(text, size, "%s UID:%ld", peer->address, (long)peer->uid);
    }
    return described;
}

static void
log_accepted(int fd, const struct peer *peer)
{
    log_line("Accepted connection on fd:%d from %s", fd, describe_peer(peer).text);
}

static void
describe_refusal(const struct peer *peer, char *text, size_t size)
{
    (void)snprintf(text, size,
                   "Can't accept client with %s. It doesn't match the current EUID:%ld "
                   "or ROOT.",
                   describe_peer(peer).text, (long)geteuid());
}

#endif /* MANHOLE_DOOR_SOCKET_C */
