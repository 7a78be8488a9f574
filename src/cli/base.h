/* Base: the system's headers, the limits that several rooms share, and what the shell gets. A limit
 * of one room stands in that room. */
#ifndef MANHOLE_CLI_BASE_H
#define MANHOLE_CLI_BASE_H

#ifndef _GNU_SOURCE
#  define _GNU_SOURCE /* struct ucred */
#endif

#include <arpa/inet.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <glob.h>
#include <langinfo.h>
#include <limits.h>
#include <locale.h>
#include <math.h>
#include <netdb.h>
#include <netinet/in.h>
#include <poll.h>
#include <pwd.h>
#include <regex.h>
#include <sched.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/file.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <termios.h>
#include <time.h>
#include <unistd.h>
#include <wchar.h>
#ifdef HAVE_LIBEDIT
#  include <histedit.h>
#endif

#ifndef MANHOLE_VERSION
#  define MANHOLE_VERSION "(version unknown)" /* make says it, from manhole.h */
#endif

/* Limits. */
enum {
    FIRST_BYTE_PATIENCE_MS = 200, /* then: can it answer? It tells of a hang by itself */
    INTERRUPT_PATIENCE_MS = 1000, /* for an answer aside, and between two Ctrl-C */
    CHUNK_SIZE = 16 * 1024,       /* bytes that are read at once */
    QUOTED_SIZE = 1024, /* bytes of an argument as messages show it; the rest is cut */
    MAX_WORDS = 1024,   /* PIDs, and arguments of code, on a command line */
};

/* What the shell gets. Code of -c and -f may give any status, as with python -c. */
enum exit_status {
    STATUS_OK = 0,        /* the server closed the connection, or --help */
    STATUS_TROUBLE = 1,   /* the system refused something; the message says what */
    STATUS_USAGE = 2,     /* the command line, as argparse has it */
    STATUS_NO_SIGNAL = 3, /* the signal could not be sent; nothing was connected to */
    STATUS_REFUSED = 4,   /* another process than the one asked for serves the socket */
    STATUS_NO_CONNECTION = 5, /* nobody answered within the timeout */
    STATUS_CUT = 6, /* the process was gone before what it was asked for had ended */
    STATUS_TIMEOUT = 124, /* the code, or the stacks, took longer; as timeout(1) has it */
    STATUS_INTERRUPTED = 130, /* Ctrl-C, as shells have it: 128 + SIGINT */
    STATUS_OUTPUT_GONE = 141, /* nobody reads standard output any more: 128 + SIGPIPE */
};

#endif /* MANHOLE_CLI_BASE_H */
