/* Base: the system's headers, and the limits that several rooms share. A limit of one room stands
 * in that room. */
#ifndef MANHOLE_BASE_BASE_H
#define MANHOLE_BASE_BASE_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <frameobject.h>
#include <structmember.h>

#include <arpa/inet.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/inet_diag.h>
#include <linux/netlink.h>
#include <linux/sock_diag.h>
#include <math.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <semaphore.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "../../manhole.h"

#if PY_VERSION_HEX < 0x03090000
#  error "manhole needs CPython 3.9 or newer"
#endif

/* Limits. One that a client can run into has its message near where it is enforced. */
enum {
    /* The most that the option max_sessions can be. */
    MAX_SESSIONS = 256,
    /* Endpoints that the option listen can name. */
    MAX_ENDPOINTS = 8,
    /* Doors of the options: those endpoints and socket_path. */
    MAX_OWN_DOORS = MAX_ENDPOINTS + 1,
    /* With the sockets that the application has given us to listen on. */
    MAX_DOORS = MAX_OWN_DOORS + 8,
    /* HOST:PORT of a TCP address, with the NUL: [ffff:...]:65535 */
    ADDRESS_SIZE = INET6_ADDRSTRLEN + 8,
    /* Bytes of a Unix socket's path, with the NUL. */
    SOCKET_PATH_SIZE = sizeof(((struct sockaddr_un *)0)->sun_path),
    /* Bytes of a log line; a pipe takes this much in one piece (PIPE_BUF). */
    LOG_LINE_SIZE = 4096,
    /* Of threads that run none of the client's Python code. */
    SMALL_STACK_SIZE = 256 * 1024,
    /* Bytes of the id on a calling card, with the NUL. */
    CARD_SIZE = 40,
    /* How often what a vanished client left running is interrupted. */
    GONE_CHECK_MS = 1000,
};

#endif /* MANHOLE_BASE_BASE_H */
