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
    /* Places that the option listen can name. */
    MAX_PLACES = 8,
    /* Doors of the options: those places and socket_path. */
    MAX_OWN_DOORS = MAX_PLACES + 1,
    /* With the sockets that the application has given us to listen on. */
    MAX_DOORS = MAX_OWN_DOORS + 8,
    /* HOST:PORT of a TCP address, with the NUL: [ffff:...]:65535 */
    ADDRESS_SIZE = INET6_ADDRSTRLEN + 8,
    /* Bytes of a Unix socket's path, with the NUL. */
    SOCKET_PATH_SIZE = sizeof(((struct sockaddr_un *)0)->sun_path),
    /* Characters of one line typed at the prompt. */
    MAX_LINE = 16 * 1024 * 1024,
    /* Bytes of the application's output kept for a slow client; and of a session's own among them,
     * once a statement has written so often. */
    COPIES_SIZE = 1024 * 1024,
    MAX_LEFT = 256 * 1024,
    FLOOD_BEGINS = 16,
    /* Bytes of a log line; a pipe takes this much in one piece (PIPE_BUF). */
    LOG_LINE_SIZE = 4096,
    /* Log lines that wait for a Python object to take them. */
    LOG_QUEUE_LENGTH = 256,
    /* Bytes of a request on a side channel: a program with its arguments. */
    MAX_PROGRAM = 16 * 1024 * 1024,
    /* Bytes in one frame of a program's output. */
    MAX_FRAME = 16 * 1024,
    /* Without a byte of a request that has begun, or should have. */
    REQUEST_TIMEOUT_MS = 10000,
    /* Bytes of a line to complete, with its newline; and the most matches for it. */
    MAX_COMPLETION = 4097,
    MAX_MATCHES = 500,
    /* Characters of a value that goes out with the prompt. */
    MAX_SHOWN = 4096,
    /* Side channels open at once, beside max_sessions consoles and programs. */
    MAX_ASIDE = 16,
    /* Of threads that run none of the client's Python code. */
    SMALL_STACK_SIZE = 256 * 1024,
    /* Of those that do, which is glibc's own; musl's is 128 KiB. */
    PYTHON_STACK_SIZE = 8 * 1024 * 1024,
    /* What exit gives sessions that it has told to leave. */
    EXIT_GRACE_MS = 1000,
    /* How many times hang_timeout a module of a session's first imports may take: beside eight
     * threads that compute "re" takes over a second, and nothing is stuck. */
    IMPORT_FACTOR = 10,
    /* How long a fork waits for a session's first imports, which take 10 to 20. */
    FORK_PATIENCE_MS = 1000,
    /* Bytes of the id on a calling card, with the NUL. */
    CARD_SIZE = 40,
    /* Stream objects that outlive their client. */
    KEPT_STREAMS = 48,
    /* How long an interrupt waits for a statement to come out of the import system. */
    IMPORT_PATIENCE_MS = 1000,
    /* How often what a vanished client left running is interrupted. */
    GONE_CHECK_MS = 1000,
    /* Python's signal handlers are due in a wait, and a signal may come just before poll(). */
    SIGNAL_CHECK_MS = 500,
    /* What making a dump's text may keep other threads from running, in one go: as long as a
     * thread of Python's own that computes. */
    HOLD_MS = 5,
    /* Of the table that finds the spot that a frame of a look is at. */
    SPOT_ROWS = 512,
    /* How long a TCP client's Ctrl-C waits for Python before the session may read on. */
    INTERRUPT_PATIENCE_MS = 100,
    /* From the end of what a TCP client sends to the look whether it is still there to read. */
    SETTLE_MS = 20,
    /* What asking /proc for the user of a TCP client may take, if the kernel's diagnostics are not
     * there: the listener does nothing else meanwhile. */
    IDENTIFY_PATIENCE_MS = 250,
    /* Before the next accept() after one that found no room. */
    ACCEPT_PAUSE_MS = 200,
    /* How long a signal that ends the process waits for bind() to return. */
    BIND_PATIENCE_MS = 100,
    /* For a frozen copy that writes nothing more, before it is killed; and copies made until one
     * does not die. Beside threads that run Python flat out about every third dies on 3.13. */
    SNAPSHOT_TIMEOUT_MS = 1000,
    SNAPSHOT_ATTEMPTS = 12,
    /* Before the second copy; twice that before the third. */
    SNAPSHOT_PAUSE_MS = 3,
    /* As many threads as faulthandler shows (its MAX_NTHREADS). */
    THREADS_AT_ONCE = 100,
    /* Bytes of a source file that a snapshot reads lines from. */
    MAX_SOURCE = 4 * 1024 * 1024,
};

#endif /* MANHOLE_BASE_BASE_H */
