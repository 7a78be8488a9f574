/* manhole_cli.c - the client of a manhole: manhole-cli [options] PID
 *
 * Sends the process a signal if asked to, connects to its socket, makes sure that it is that
 * process which answers, then copies standard input to the socket and the socket to standard
 * output until the other side closes. Command line, messages and history file are those of
 * python-manhole's client of the same name.
 *
 * WHAT IT TOUCHES
 *   /tmp/manhole-PID, or the socket whose path is given   connected to, never created or removed
 *   /proc/PID/status                                      read, for the uid of that process
 *   ~/.manhole_history                                    each line typed at a terminal, mode 0600
 *   the abstract address \0manhole-cli/PID.N/repl         its own end of the connection, see
 *                                                         show_calling_card()
 *   HOME                                                  the only environment variable read
 *
 * EXIT STATUS: enum exit_status below.
 *
 * HOW TO READ IT: ground floor first; main() is at the end, and is the table of contents. One
 * thread throughout. Nothing here is shared with manhole.c.
 *
 * SPDX-License-Identifier: BSD-2-Clause
 */
#ifndef _GNU_SOURCE
#  define _GNU_SOURCE /* struct ucred, ppoll and friends */
#endif

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <math.h>
#include <poll.h>
#include <pwd.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

/* Limits. */
enum {
    FIRST_PAUSE_MS = 1, /* between two tries to connect; doubles up to */
    LONGEST_PAUSE_MS = 32,
    CHUNK_SIZE = 64 * 1024,   /* bytes on their way in each direction */
    HISTORY_LINE_SIZE = 4096, /* bytes with the newline; a longer line is not remembered */
    QUOTED_SIZE = 1024,       /* bytes of an argument as messages show it; the rest is cut */
    TITLE_SIZE = 64,          /* bytes of an option's names, for --help and messages */
};

/* What the shell gets. 0 also when the server is killed: its close looks the same. A process
 * that -c or the like will run one day may give any status, as with python -c. */
enum exit_status {
    STATUS_OK = 0,              /* the server closed the connection, or --help */
    STATUS_TROUBLE = 1,         /* the system refused something; the message says what */
    STATUS_USAGE = 2,           /* the command line, as argparse has it */
    STATUS_NO_SIGNAL = 3,       /* the signal could not be sent; nothing was connected to */
    STATUS_REFUSED = 4,         /* another process than the one asked for serves the socket */
    STATUS_NO_CONNECTION = 5,   /* nobody answered within the timeout, as python-manhole has it */
    STATUS_INTERRUPTED = 130,   /* Ctrl-C, as shells have it: 128 + SIGINT */
    STATUS_OUTPUT_GONE = 141,   /* nobody reads standard output any more: 128 + SIGPIPE */
};

/* ======================================================================================
 * Messages: every word on standard error, and the ways out that are not main()'s.
 * A message is one line: what failed, with whom, and what to do next.
 * ====================================================================================== */

static const char program[] = "manhole-cli";
static const char usage[] = "usage: manhole-cli [-h] [-t TIMEOUT] [-1 | -2 | -s SIGNAL] PID\n";

/* An argument as Python's repr() writes it. By value, so that it can stand in a call:
 * quote(text).text lives until the end of that full expression. */
struct quoted {
    char text[QUOTED_SIZE];
};

/* The length of the UTF-8 sequence at the start of text, 0 when there is none. Overlong forms
 * of three and four bytes pass: this is for showing text, not for trusting it. */
static size_t
sequence_length(const unsigned char *text)
{
    size_t length = text[0] < 0x80   ? 1
                    : text[0] < 0xc2 ? 0
                    : text[0] < 0xe0 ? 2
                    : text[0] < 0xf0 ? 3
                    : text[0] < 0xf5 ? 4
                                     : 0;
    for (size_t i = 1; i < length; i++) {
        if ((text[i] & 0xc0) != 0x80) {
            return 0;
        }
    }
    return length;
}

/* Writes the first character of text as repr() would. Bytes that are no UTF-8 come out as the
 * lone surrogates that Python makes of them. Returns how many bytes of text that was. */
static size_t
quote_character(const unsigned char *text, char mark, char *out, size_t size)
{
    static const char plain[] = "\\\t\n\r";
    static const char letter[] = "\\tnr";
    const char *escaped = strchr(plain, text[0]);
    size_t length = sequence_length(text);
    unsigned last = length == 2 && text[0] == 0xc2 ? text[1] : 0;

    if (length == 0) {
        (void)snprintf(out, size, "\\udc%02x", (unsigned)text[0]);
        return 1;
    }
    if (escaped != NULL) {
        (void)snprintf(out, size, "\\%c", letter[escaped - plain]);
    }
    else if (text[0] == (unsigned char)mark) {
        (void)snprintf(out, size, "\\%c", mark);
    }
    else if (text[0] < 0x20 || text[0] == 0x7f) {
        (void)snprintf(out, size, "\\x%02x", (unsigned)text[0]);
    }
    else if (last != 0 && (last <= 0xa0 || last == 0xad)) { /* C1 controls, and invisible ones */
        (void)snprintf(out, size, "\\x%02x", last);
    }
    else {
        (void)snprintf(out, size, "%.*s", (int)length, (const char *)text);
    }
    return length;
}

static struct quoted
quote(const char *text)
{
    struct quoted quoted;
    const unsigned char *rest = (const unsigned char *)text;
    char mark = strchr(text, '\'') != NULL && strchr(text, '"') == NULL ? '"' : '\'';
    size_t length = 0;

    quoted.text[length++] = mark;
    while (*rest != '\0' && length < sizeof(quoted.text) - 16) {
        rest += quote_character(rest, mark, quoted.text + length, 8);
        length += strlen(quoted.text + length);
    }
    (void)snprintf(quoted.text + length, sizeof(quoted.text) - length, "%s%c",
                   *rest != '\0' ? "..." : "", mark);
    return quoted;
}

/* Ends the program from anywhere but main(). */
static _Noreturn void
leave(enum exit_status status)
{
    exit((int)status); /* NOLINT(concurrency-mt-unsafe): there is one thread */
}

/* One line on standard error, "%m" for errno included. Standard error is not buffered, and a
 * line is formatted first, so that it is written in one piece. */
static void __attribute__((format(printf, 1, 0)))
vsay_error(const char *format, va_list arguments)
{
    char line[2 * QUOTED_SIZE + PATH_MAX];
    (void)vsnprintf(line, sizeof(line), format, arguments);
    (void)fprintf(stderr, "%s: error: %s\n", program, line);
}

static void __attribute__((format(printf, 1, 2)))
say_error(const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    vsay_error(format, arguments);
    va_end(arguments);
}

static _Noreturn void __attribute__((format(printf, 2, 3)))
fail(enum exit_status status, const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    vsay_error(format, arguments);
    va_end(arguments);
    leave(status);
}

/* The command line is wrong: the usage line comes first, alone. */
static _Noreturn void __attribute__((format(printf, 1, 2)))
fail_usage(const char *format, ...)
{
    va_list arguments;
    (void)fputs(usage, stderr);
    va_start(arguments, format);
    vsay_error(format, arguments);
    va_end(arguments);
    leave(STATUS_USAGE);
}

/* ======================================================================================
 * Values: numbers and signals as Python's int(), float() and signal module read them.
 * To add a signal: a row in signals[].
 * ====================================================================================== */

/* Every name that Python's signal module has on Linux. Aliases come after the usual name. */
static const struct signal_name {
    const char *name; /* without SIG */
    int number;
} signals[] = {
    {.name = "HUP", .number = SIGHUP},       {.name = "INT", .number = SIGINT},
    {.name = "QUIT", .number = SIGQUIT},     {.name = "ILL", .number = SIGILL},
    {.name = "TRAP", .number = SIGTRAP},     {.name = "ABRT", .number = SIGABRT},
    {.name = "IOT", .number = SIGABRT},      {.name = "BUS", .number = SIGBUS},
    {.name = "FPE", .number = SIGFPE},       {.name = "KILL", .number = SIGKILL},
    {.name = "USR1", .number = SIGUSR1},     {.name = "SEGV", .number = SIGSEGV},
    {.name = "USR2", .number = SIGUSR2},     {.name = "PIPE", .number = SIGPIPE},
    {.name = "ALRM", .number = SIGALRM},     {.name = "TERM", .number = SIGTERM},
#ifdef SIGSTKFLT
    {.name = "STKFLT", .number = SIGSTKFLT},
#endif
    {.name = "CHLD", .number = SIGCHLD},     {.name = "CLD", .number = SIGCHLD},
    {.name = "CONT", .number = SIGCONT},     {.name = "STOP", .number = SIGSTOP},
    {.name = "TSTP", .number = SIGTSTP},     {.name = "TTIN", .number = SIGTTIN},
    {.name = "TTOU", .number = SIGTTOU},     {.name = "URG", .number = SIGURG},
    {.name = "XCPU", .number = SIGXCPU},     {.name = "XFSZ", .number = SIGXFSZ},
    {.name = "VTALRM", .number = SIGVTALRM}, {.name = "PROF", .number = SIGPROF},
    {.name = "WINCH", .number = SIGWINCH},   {.name = "IO", .number = SIGIO},
    {.name = "POLL", .number = SIGIO},       {.name = "PWR", .number = SIGPWR},
    {.name = "SYS", .number = SIGSYS},
};

enum { SIGNAL_NAMES = sizeof(signals) / sizeof(signals[0]) };

/* The real-time signals have no constant numbers, so they have no rows. */
static const char *
signal_name(int number)
{
    for (size_t i = 0; i < SIGNAL_NAMES; i++) {
        if (signals[i].number == number) {
            return signals[i].name;
        }
    }
    return number == SIGRTMIN ? "RTMIN" : number == SIGRTMAX ? "RTMAX" : NULL;
}

/* The number of a signal by its name, with or without SIG, in any case; 0: there is none. */
static int
signal_number(const char *name)
{
    if (strncasecmp(name, "SIG", 3) == 0) {
        name += 3;
    }
    for (size_t i = 0; i < SIGNAL_NAMES; i++) {
        if (strcasecmp(signals[i].name, name) == 0) {
            return signals[i].number;
        }
    }
    return strcasecmp(name, "RTMIN") == 0 ? SIGRTMIN : strcasecmp(name, "RTMAX") == 0 ? SIGRTMAX : 0;
}

static bool
is_digit(char c)
{
    return c >= '0' && c <= '9';
}

/* Copies a number without the blanks around it and the underscores between its digits, both of
 * which Python allows. Returns a new string, or NULL when that cannot be a number. */
static char *
tidy_number(const char *text)
{
    static const char blanks[] = " \t\n\v\f\r";
    const char *from = text + strspn(text, blanks);
    size_t length = strlen(from);
    size_t kept = 0;
    char *number = NULL; /* owned, handed to the caller */

    while (length > 0 && strchr(blanks, from[length - 1]) != NULL) {
        length--;
    }
    number = malloc(length + 1);
    for (size_t i = 0; number != NULL && i < length; i++) {
        if (from[i] != '_') {
            number[kept++] = from[i];
        }
        else if (i == 0 || i + 1 == length || !is_digit(from[i - 1]) || !is_digit(from[i + 1])) {
            free(number);
            number = NULL;
        }
    }
    if (number != NULL) {
        number[kept] = '\0';
    }
    return number;
}

/* Reads what float() reads. strtod() would take hexadecimal numbers and nan(...) as well. */
static bool
parse_float(const char *text, double *value)
{
    char *number = tidy_number(text);
    char *end = NULL;
    bool good = false;

    if (number != NULL && number[0] != '\0') {
        const char *digits = number + strspn(number, "+-");
        bool is_word = strcasecmp(digits, "inf") == 0 || strcasecmp(digits, "infinity") == 0
                       || strcasecmp(digits, "nan") == 0;
        *value = strtod(number, &end);
        good = *end == '\0' && (is_word || strspn(number, "0123456789.eE+-") == strlen(number));
    }
    free(number);
    return good;
}

/* Reads what int() reads. Returns false when text is no integer at all. What is beyond an int
 * becomes INT_MAX or INT_MIN: no signal has either. */
static bool
parse_int(const char *text, int *value)
{
    char *number = tidy_number(text);
    bool good = false;

    if (number != NULL) {
        const char *digits = number + (number[0] == '+' || number[0] == '-' ? 1 : 0);
        good = digits[0] != '\0' && digits[strspn(digits, "0123456789")] == '\0';
        if (good) {
            long wide = strtol(number, NULL, 10);
            *value = wide > INT_MAX ? INT_MAX : wide < INT_MIN ? INT_MIN : (int)wide;
        }
    }
    free(number);
    return good;
}

/* ======================================================================================
 * Target: whom the PID argument means.
 * ====================================================================================== */

struct target {
    pid_t pid; /* the process asked for; 0: whoever serves the path */
    char path[sizeof(((struct sockaddr_un *)NULL)->sun_path)];
    bool by_path; /* the path was given and is a socket: its server is who is meant */
};

static bool
is_socket(const char *path)
{
    struct stat status;
    return stat(path, &status) == 0 && S_ISSOCK(status.st_mode);
}

/* The number in "1234" or "anything/manhole-1234"; 0: text has neither form. A newline at the
 * end, as a pid file's content has it, does no harm. No process is called 0. */
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
    if (start > 0
        && (start < stem_length || strncmp(text + start - stem_length, stem, stem_length) != 0)) {
        return 0;
    }
    for (size_t i = start; i < end && pid <= INT_MAX; i++) {
        pid = 10 * pid + (text[i] - '0');
    }
    return pid <= INT_MAX ? (pid_t)pid : 0;
}

/* A number means the process of that id and its /tmp/manhole-PID; so does a path that ends
 * like that, unless there is a socket at that very path: then it means that socket, as does
 * the path of any other one. Ends the program when text is nothing of the kind. */
static struct target
parse_target(const char *text)
{
    struct target target = {.pid = parse_pid(text)};
    bool has_path = text[0] != '\0' && strspn(text, "0123456789\n") != strlen(text);

    (void)snprintf(target.path, sizeof(target.path), "/tmp/manhole-%d", (int)target.pid);
    if (has_path && strcmp(text, target.path) != 0 && is_socket(text)) {
        target.by_path = true;
        if (strlen(text) >= sizeof(target.path)) {
            fail_usage("argument PID: the path of a socket has at most %zu bytes, this one has "
                       "%zu; go to its directory and give its name alone",
                       sizeof(target.path) - 1, strlen(text));
        }
        (void)snprintf(target.path, sizeof(target.path), "%s", text);
    }
    else if (target.pid == 0) {
        fail_usage("argument PID: PID must be in one of these forms: 1234 or /tmp/manhole-1234");
    }
    return target;
}

/* ======================================================================================
 * Command line: a table of options, read by rules that are argparse's to the letter.
 * To add an option: a row in options[], its function, the usage line, a test.
 * ====================================================================================== */

struct request {
    struct target target;
    double timeout_s;
    int signal;     /* 0: none is sent */
    unsigned taken; /* bit i: options[i] was given */
};

struct option {
    const char *names[2];
    const char *metavar; /* NULL: takes no argument */
    const char *help;
    bool exclusive; /* at most one of these may be given */
    int constant;   /* what take_constant_signal() takes */
    /* argument: NULL without metavar */
    void (*take)(const struct option *option, const char *argument, struct request *request);
};

#define NUMBER_TEXT(number) NUMBER_TEXT_(number)
#define NUMBER_TEXT_(number) #number
#define DEFAULT_TIMEOUT_S 1

static void take_help(const struct option *option, const char *argument,
                      struct request *request);
static void take_timeout(const struct option *option, const char *argument,
                         struct request *request);
static void take_constant_signal(const struct option *option, const char *argument,
                                 struct request *request);
static void take_signal(const struct option *option, const char *argument,
                        struct request *request);

static const struct option options[] = {
    {
        .names = {"-h", "--help"},
        .help = "show this help message and exit",
        .take = take_help,
    },
    {
        .names = {"-t", "--timeout"},
        .metavar = "TIMEOUT",
        .help = "Timeout to use. Default: " NUMBER_TEXT(DEFAULT_TIMEOUT_S) " seconds.",
        .take = take_timeout,
    },
    {
        .names = {"-1", "-USR1"},
        .help = "Send USR1 (" NUMBER_TEXT(SIGUSR1) ") to the process before connecting.",
        .exclusive = true,
        .constant = SIGUSR1,
        .take = take_constant_signal,
    },
    {
        .names = {"-2", "-USR2"},
        .help = "Send USR2 (" NUMBER_TEXT(SIGUSR2) ") to the process before connecting.",
        .exclusive = true,
        .constant = SIGUSR2,
        .take = take_constant_signal,
    },
    {
        .names = {"-s", "--signal"},
        .metavar = "SIGNAL",
        .help = "Send the given SIGNAL to the process before connecting.",
        .exclusive = true,
        .take = take_signal,
    },
};

enum { OPTIONS = sizeof(options) / sizeof(options[0]) };

/* All names of an option, for messages ("-s/--signal") and for --help ("-s SIGNAL, --signal
 * SIGNAL"). By value, like struct quoted. */
struct title {
    char text[TITLE_SIZE];
};

static struct title
title_of(const struct option *option)
{
    struct title title;
    (void)snprintf(title.text, sizeof(title.text), "%s/%s", option->names[0], option->names[1]);
    return title;
}

static struct title
synopsis_of(const struct option *option)
{
    struct title title;
    const char *gap = option->metavar != NULL ? " " : "";
    const char *metavar = option->metavar != NULL ? option->metavar : "";
    (void)snprintf(title.text, sizeof(title.text), "%s%s%s, %s%s%s", option->names[0], gap, metavar,
                   option->names[1], gap, metavar);
    return title;
}

/* One entry of --help, in the layout of argparse on a terminal of 80 columns: the text starts
 * in column 24, below the title if that is too long, and ends before column 78. */
static void
print_entry(const char *title, const char *text)
{
    const size_t width = 78 - 24;

    (void)printf(strlen(title) <= 20 ? "  %-20s  " : "  %s\n%24s", title, "");
    while (strlen(text) > width) {
        size_t length = width;
        while (text[length] != ' ') {
            length--;
        }
        (void)printf("%.*s\n%24s", (int)length, text, "");
        text += length + 1;
    }
    (void)printf("%s\n", text);
}

static void
take_help(const struct option *option, const char *argument, struct request *request)
{
    (void)option;
    (void)argument;
    (void)request;
    (void)printf("%s\nConnect to a manhole.\n\npositional arguments:\n", usage);
    print_entry("PID", "A numerical process id, or a path in the form: /tmp/manhole-1234");
    (void)printf("\noptions:\n");
    for (size_t i = 0; i < OPTIONS; i++) {
        print_entry(synopsis_of(&options[i]).text, options[i].help);
    }
    leave(STATUS_OK);
}

static void
take_timeout(const struct option *option, const char *argument, struct request *request)
{
    if (!parse_float(argument, &request->timeout_s)) {
        fail_usage("argument %s: invalid float value: %s", title_of(option).text,
                   quote(argument).text);
    }
}

static void
take_constant_signal(const struct option *option, const char *argument, struct request *request)
{
    (void)argument;
    request->signal = option->constant;
}

/* Names the numbers that may be given: those that have a name. */
static _Noreturn void
fail_signal_number(const struct option *option, int number)
{
    char known[512] = "";
    size_t length = 0;

    for (int candidate = 1; candidate <= SIGRTMAX; candidate++) {
        if (signal_name(candidate) != NULL) {
            length += (size_t)snprintf(known + length, sizeof(known) - length, "%s%d",
                                       length > 0 ? ", " : "", candidate);
        }
    }
    fail_usage("argument %s: Invalid signal number %d. Expected one of: %s", title_of(option).text,
               number, known);
}

static void
take_signal(const struct option *option, const char *argument, struct request *request)
{
    int number = 0;

    if (parse_int(argument, &number)) {
        if (signal_name(number) == NULL) {
            fail_signal_number(option, number);
        }
    }
    else {
        number = signal_number(argument);
    }
    if (number == 0) {
        struct quoted name = quote(argument); /* upper case does not touch the escapes' meaning */
        fail_usage("argument %s: Invalid signal name %s.", title_of(option).text, name.text);
    }
    request->signal = number;
}

