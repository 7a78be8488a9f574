/* TCP: a manhole that listens at a port of this machine and nowhere else. There is a console, and
 * no more.
 *
 * The kernel does not tell a client of TCP who its server is, as it does behind a path. So all who
 * listen at the port must be ones to trust, by the kernel's list, and the address must not lead off
 * this machine. To a network of its own, as a container has one, only root can go.
 */
#ifndef MANHOLE_CLI_TCP_C
#define MANHOLE_CLI_TCP_C

#include "options.c"
#include "adverts.c"

/* Who may serve a manhole, besides root and ourselves: for root, the user of the process asked
 * for. */
static uid_t
find_owner(const struct target *target)
{
    uid_t owner = 0;
    bool is_known = target->pid != 0 && geteuid() == 0 && find_uid(target->pid, &owner);
    return is_known ? owner : geteuid();
}

/* Those who listen at a port. */
struct listeners {
    size_t count;
    bool has_stranger; /* one who is not to be trusted, */
    uid_t stranger;    /* his uid */
};

/* Returns false, with errno, where it cannot be found out. network: that of this process; 0: our
 * own. */
static bool
find_listeners(pid_t network, const struct target *target, struct listeners *listeners)
{
    OWNED_BUFFER lists = {.data = NULL};
    struct tcp_listener found;
    uid_t owner = find_owner(target);

    *listeners = (struct listeners){.count = 0};
    if (!read_tcp_lists(network, &lists)) {
        return false;
    }
    char *rest = lists.data;
    while (next_tcp_listener(&rest, &found)) {
        if (found.port != target->port) {
            continue;
        }
        listeners->count++;
        if (found.uid != 0 && found.uid != geteuid() && found.uid != owner) {
            listeners->has_stranger = true;
            listeners->stranger = found.uid;
        }
    }
    return true;
}

/* Ends the program when one is not to be trusted, or that cannot be told. */
static void
check_listeners(const struct target *target)
{
    struct listeners listeners;

    if (!find_listeners(0, target, &listeners)) {
        fail(STATUS_REFUSED, "cannot tell who serves %s, nothing was sent: %m",
             quote(target->path).text);
    }
    if (listeners.has_stranger) {
        fail(STATUS_REFUSED,
             "%s is served by UID:%u, not by UID:%u or root; nothing was sent. Look who "
             "that is, and connect as that user if you trust it",
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

    (void)snprintf(host, sizeof(host), "%.*s", (int)(colon - start), start);
    host[strcspn(host, "]")] = '\0';
    int error = getaddrinfo(host, colon + 1, &hints, &addresses);
    if (error != 0) {
        fail(STATUS_NO_CONNECTION, "cannot find %s: %s", quote(target->path).text,
             gai_strerror(error));
    }
    for (const struct addrinfo *each = addresses; each != NULL; each = each->ai_next) {
        if (!is_loopback(each->ai_addr)) {
            fail(STATUS_REFUSED,
                 "%s is not an address of this machine alone, and TCP tells nobody who "
                 "it is; manhole-cli --host HOST reaches a process over there by ssh",
                 quote(target->path).text);
        }
    }
    return addresses;
}

/* Goes to the process's network for good: all that is left to do is there. */
static void
enter_network(const struct target *target)
{
    if (target->pid == 0 || shares_namespace(target->pid, "ns/net")) {
        return;
    }
    OWNED_FD network = open(proc_path(target->pid, "ns/net").text, O_RDONLY | O_CLOEXEC);
    if (network < 0 || setns(network, CLONE_NEWNET) < 0) {
        fail(STATUS_NO_CONNECTION,
             "process %d listens at %s in a network of its own: %m; run manhole-cli as "
             "root, or there, see --exec",
             (int)target->pid, quote(target->path).text);
    }
}

/* Connects within the timeout. Returns a descriptor that does not block, or -1 with errno. */
static int
connect_address(const struct addrinfo *address, double timeout_s)
{
    int fd = socket(address->ai_family, SOCK_STREAM | SOCK_CLOEXEC, 0);
    /* 0 would be for ever. What is more than a day, or infinite, may as well be one. */
    double limit_s = timeout_s > 1e-6 ? (timeout_s < 86400 ? timeout_s : 86400) : 1e-6;
    struct timeval limit = {.tv_sec = (time_t)limit_s};

    limit.tv_usec = (suseconds_t)((limit_s - (double)limit.tv_sec) * 1e6 + 0.5);
    if (fd >= 0 && setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof(limit)) == 0 &&
        connect(fd, address->ai_addr, address->ai_addrlen) == 0 &&
        fcntl(fd, F_SETFL, O_NONBLOCK) == 0) {
        return fd;
    }
    int error = errno == EINPROGRESS ? ETIMEDOUT : errno;
    close_fd(&fd);
    errno = error;
    return -1;
}

/* The same as open_connection(). */
static int
open_tcp_connection(const struct request *request, const struct target *target)
{
    int fd = -1;

    if (request->action != ACTION_CONSOLE) {
        fail(STATUS_NO_CONNECTION,
             "process %s listens at %s alone, and by TCP there is a console, no -c, "
             "--stacks, --tasks or --greenlets; they want a path in listen as well",
             label_of(target).text, quote(target->path).text);
    }
    enter_network(target);
    struct addrinfo *addresses = find_addresses(target); /* owned */
    check_listeners(target);
    for (const struct addrinfo *each = addresses; each != NULL && fd < 0;
         each = each->ai_next) {
        fd = connect_address(each, request->timeout_s);
    }
    if (fd < 0) {
        fail(STATUS_NO_CONNECTION, "cannot connect to %s: %m", quote(target->path).text);
    }
    freeaddrinfo(addresses);
    return fd;
}

#endif /* MANHOLE_CLI_TCP_C */
