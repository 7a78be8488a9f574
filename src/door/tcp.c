/* TCP: addresses of this machine, and whose socket is at the other end of a connection.
 * Runs on:  the listener thread; install(), and threads that hand us a socket. DETACHED throughout.
 * Touches:  nothing but descriptors of its own, open for one question.
 *
 * TCP knows no SO_PEERCRED. But who connects from this machine has a socket in the kernel, too, and
 * the socket diagnostics (sock_diag(7), where ss has it from) tell whose it is. Two traps, for the
 * user of a socket is only told as long as somebody has it open: one that was closed has no inode
 * and, as it seems, root's uid; and once the connection is over its addresses may be another's. So
 * a socket without an inode is nobody's, and the connection must live after we have asked.
 *
 * Where a process may have no netlink socket (RestrictAddressFamilies= of a systemd unit, gVisor)
 * the same is read from /proc/net/tcp: the list of all connections, so no longer than it may take.
 * That the kernel has no diagnostics of TCP cannot be told from that there is no such socket,
 * ENOENT either way: then nobody comes in by TCP.
 */
#ifndef MANHOLE_DOOR_TCP_C
#define MANHOLE_DOOR_TCP_C

#include "../base/compat.c"
#include "../base/state.c"
#include "../base/basics.c"

enum {
    /* What asking /proc for the user of a TCP client may take, if the kernel's diagnostics are not
     * there: the listener does nothing else meanwhile. */
    IDENTIFY_PATIENCE_MS = 250,
};

static socklen_t
address_size(const union address *address)
{
    return address->any.sa_family == AF_INET6 ? sizeof(address->v6) : sizeof(address->v4);
}

/* Writes HOST:PORT, [HOST]:PORT for IPv6. text: ADDRESS_SIZE bytes. */
static void
format_address(const union address *address, char *text)
{
    bool v6 = address->any.sa_family == AF_INET6;
    char host[INET6_ADDRSTRLEN] = "";
    (void)inet_ntop(address->any.sa_family,
                    v6 ? (const void *)&address->v6.sin6_addr : &address->v4.sin_addr,
                    host, sizeof(host));
    (void)snprintf(text, ADDRESS_SIZE, v6 ? "[%s]:%d" : "%s:%d", host,
                   ntohs(v6 ? address->v6.sin6_port : address->v4.sin_port));
}

static bool
is_loopback(const union address *address)
{
    return address->any.sa_family == AF_INET6
               ? IN6_IS_ADDR_LOOPBACK(&address->v6.sin6_addr)
               : ntohl(address->v4.sin_addr.s_addr) >> 24 == IN_LOOPBACKNET;
}

/* The two ends of a connection, as its own end sees them. */
struct ends {
    union address own;
    union address far;
};

/* An IPv4 connection of an IPv6 socket becomes what it is. */
static void
unmap_address(union address *address)
{
    struct sockaddr_in v4 = {.sin_family = AF_INET, .sin_port = address->v6.sin6_port};
    if (address->any.sa_family == AF_INET6 &&
        IN6_IS_ADDR_V4MAPPED(&address->v6.sin6_addr)) {
        memcpy(&v4.sin_addr, address->v6.sin6_addr.s6_addr + 12, sizeof(v4.sin_addr));
        address->v4 = v4;
    }
}

/* Returns 0, or -1 with errno: the descriptor is no connected TCP socket. */
static int
read_ends(int fd, struct ends *ends)
{
    socklen_t own_size = sizeof(ends->own);
    socklen_t far_size = sizeof(ends->far);
    *ends = (struct ends){.own.any.sa_family = AF_UNSPEC};
    if (getsockname(fd, &ends->own.any, &own_size) < 0 ||
        getpeername(fd, &ends->far.any, &far_size) < 0) {
        return -1;
    }
    unmap_address(&ends->own);
    unmap_address(&ends->far);
    if (ends->own.any.sa_family != AF_INET && ends->own.any.sa_family != AF_INET6) {
        errno = EAFNOSUPPORT;
        return -1;
    }
    return 0;
}

/* What the kernel says of a socket. */
struct far_socket {
    unsigned state; /* TCP_ESTABLISHED, ... */
    unsigned inode; /* 0: nobody has it open */
    uid_t uid;
};

static void
copy_host(__be32 *host, const union address *address)
{
    if (address->any.sa_family == AF_INET6) {
        memcpy(host, &address->v6.sin6_addr, sizeof(address->v6.sin6_addr));
    }
    else {
        memcpy(host, &address->v4.sin_addr, sizeof(address->v4.sin_addr));
    }
}

/* What the kernel answers: a socket, or an error. */
union diagnosis {
    struct nlmsghdr header;
    char bytes[1024];
};

/* Returns 0, or an errno value. */
static int
read_diagnosis(union diagnosis *answer, size_t length, const struct ends *ends,
               struct far_socket *found)
{
    const struct inet_diag_msg *message = NLMSG_DATA(&answer->header);
    const struct nlmsgerr *failure = NLMSG_DATA(&answer->header);
    if (answer->header.nlmsg_type == NLMSG_ERROR &&
        length >= NLMSG_LENGTH(sizeof(*failure)) && failure->error < 0 &&
        failure->error > INT_MIN) {
        return -failure->error;
    }
    if (answer->header.nlmsg_type != SOCK_DIAG_BY_FAMILY ||
        length < NLMSG_LENGTH(sizeof(*message))) {
        return EPROTO;
    }
    if (message->id.idiag_sport != ends->far.v4.sin_port ||
        message->id.idiag_dport != ends->own.v4.sin_port) {
        return ENOENT; /* one that listens where the client was */
    }
    *found = (struct far_socket){.state = message->idiag_state,
                                 .inode = message->idiag_inode,
                                 .uid = message->idiag_uid};
    return 0;
}

/* The socket at the far end, by its two addresses: the kernel answers before send() returns.
 * Returns 0, or -1 with errno: ENOENT when there is none. */
DETACHED static int
ask_diagnostics(const struct ends *ends, struct far_socket *found)
{
    struct {
        struct nlmsghdr header;
        struct inet_diag_req_v2 body;
    } request = {
        .header = {.nlmsg_len = sizeof(request),
                   .nlmsg_type = SOCK_DIAG_BY_FAMILY,
                   .nlmsg_flags = NLM_F_REQUEST},
        .body = {.sdiag_family = (__u8)ends->far.any.sa_family,
                 .sdiag_protocol = IPPROTO_TCP,
                 .idiag_states = ~0U,
                 .id = {.idiag_sport = ends->far.v4.sin_port, /* of either family */
                        .idiag_dport = ends->own.v4.sin_port,
                        .idiag_cookie = {INET_DIAG_NOCOOKIE, INET_DIAG_NOCOOKIE}}},
    };
    union diagnosis answer = {.header = {.nlmsg_len = 0}};
    OWNED_FD int fd = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_SOCK_DIAG);
    copy_host(request.body.id.idiag_src, &ends->far);
    copy_host(request.body.id.idiag_dst, &ends->own);
    if (fd < 0 || send(fd, &request, sizeof(request), MSG_DONTWAIT) < 0) {
        return -1;
    }
    ssize_t got = recv(fd, &answer, sizeof(answer), MSG_DONTWAIT);
    if (got < 0) {
        return -1;
    }
    errno = read_diagnosis(&answer, (size_t)got, ends, found);
    return errno == 0 ? 0 : -1;
}

/* The address as /proc/net/tcp has it: words as they are in memory. text: ADDRESS_SIZE bytes. */
static void
format_as_proc(const union address *address, char *text)
{
    __be32 host[4] = {0};
    size_t words = address->any.sa_family == AF_INET6 ? 4 : 1;
    size_t length = 0;
    copy_host(host, address);
    for (size_t i = 0; i < words; i++) {
        length += (size_t)snprintf(text + length, ADDRESS_SIZE - length, "%08X", host[i]);
    }
    (void)snprintf(text + length, ADDRESS_SIZE - length, ":%04X",
                   ntohs(address->v4.sin_port));
}

/* Reads a line of /proc/net/tcp: its number, local and remote address, state, queues, timer,
 * retransmissions, uid, timeout, inode, ... Returns whether it is of the socket at the far end. */
static bool
parse_proc_line(char *line, const char *far, const char *own, struct far_socket *found)
{
    enum { LOCAL = 1, REMOTE = 2, STATE = 3, UID = 7, INODE = 9, FIELDS };
    const char *fields[FIELDS] = {NULL};
    char *rest = NULL;
    size_t count = 0;
    for (char *field = strtok_r(line, " ", &rest); field != NULL && count < FIELDS;
         field = strtok_r(NULL, " ", &rest)) {
        fields[count++] = field;
    }
    if (count < FIELDS || strcmp(fields[LOCAL], far) != 0 ||
        strcmp(fields[REMOTE], own) != 0) {
        return false;
    }
    *found = (struct far_socket){.state = (unsigned)strtoul(fields[STATE], NULL, 16),
                                 .uid = (uid_t)strtoul(fields[UID], NULL, 10),
                                 .inode = (unsigned)strtoul(fields[INODE], NULL, 10)};
    return true;
}

/* As ask_diagnostics(), from a list of all sockets. */
DETACHED static int
search_proc(const struct ends *ends, struct far_socket *found)
{
    const char *path =
        ends->far.any.sa_family == AF_INET6 ? "/proc/net/tcp6" : "/proc/net/tcp";
    FILE *file = fopen(path, "re"); /* owned */
    int64_t deadline_ms = monotonic_ms() + IDENTIFY_PATIENCE_MS;
    char far[ADDRESS_SIZE];
    char own[ADDRESS_SIZE];
    char line[512];
    int error = file == NULL ? errno : ENOENT;
    format_as_proc(&ends->far, far);
    format_as_proc(&ends->own, own);
    while (error == ENOENT && fgets(line, sizeof(line), file) != NULL) {
        if (parse_proc_line(line, far, own, found)) {
            error = 0;
        }
        else if (ms_until(deadline_ms) == 0) {
            error = ETIMEDOUT;
        }
    }
    if (file != NULL) {
        (void)fclose(file);
    }
    errno = error;
    return error == 0 ? 0 : -1;
}

/* Returns 0, or -1 with errno: the far end is not on this machine, or cannot be told. */
DETACHED static int
find_far_socket(const struct ends *ends, struct far_socket *found)
{
    int result = ask_diagnostics(ends, found);
    return result < 0 && errno != ENOENT ? search_proc(ends, found) : result;
}

/* Both sides of the connection are still there, so nobody else can have its addresses. */
static bool
is_connected(int fd)
{
    struct tcp_info info = {0};
    socklen_t size = sizeof(info);
    return getsockopt(fd, IPPROTO_TCP, TCP_INFO, &info, &size) == 0 &&
           (info.tcpi_state == TCP_ESTABLISHED || info.tcpi_state == TCP_CLOSE_WAIT);
}

/* Somebody has the far end open, perhaps only to read. */
static bool
is_held(const struct far_socket *far)
{
    return far->inode != 0 &&
           (far->state == TCP_ESTABLISHED || far->state == TCP_FIN_WAIT1 ||
            far->state == TCP_FIN_WAIT2);
}

/* Nobody has the other side of a TCP connection within this machine open any more. */
DETACHED static bool
is_far_end_closed(int fd)
{
    struct ends ends;
    struct far_socket far = {0};
    if (read_ends(fd, &ends) < 0) {
        return errno == ENOTCONN;
    }
    return find_far_socket(&ends, &far) == 0 ? !is_held(&far)
                                             : errno == ENOENT && is_loopback(&ends.far);
}

/* Who is on the other side of a TCP connection. Returns 0, or -1 with errno, the user unknown. */
DETACHED static int
read_tcp_peer(int fd, struct peer *peer)
{
    struct ends ends;
    struct far_socket far = {0};
    *peer = (struct peer){.uid = (uid_t)-1, .gid = (gid_t)-1};
    if (read_ends(fd, &ends) < 0) {
        return -1;
    }
    format_address(&ends.far, peer->address);
    if (find_far_socket(&ends, &far) < 0) {
        return -1;
    }
    if (!is_held(&far) || !is_connected(fd)) {
        errno = ENOTCONN;
        return -1;
    }
    peer->uid = far.uid;
    return 0;
}

#endif /* MANHOLE_DOOR_TCP_C */
