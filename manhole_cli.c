/* manhole_cli.c - the client of a manhole: manhole-cli [options] PID
 *
 * Sends the process a signal if asked to, connects to its socket, makes sure that it is
 * that process which answers, then copies standard input to the socket and the socket to
 * standard output until the other side closes. Command line, messages and history file
 * are those of python-manhole's client of the same name.
 *
 * WHAT IT TOUCHES
 *   /tmp/manhole-PID       or the socket whose path is given: connected to, no more
 *   /proc/PID/status       read, for the uid of that process
 *   ~/.manhole_history     each line typed at a terminal is appended; mode 0600
 *   \0manhole-cli/PID.N/repl   its own end of the connection, see show_calling_card()
 *   HOME                   the only variable of the environment that is read
 *
 * EXIT STATUS: enum exit_status below.
 *
 * HOW TO READ IT: ground floor first; main() is at the end, and is the table of contents.
 * One thread throughout. Nothing here is shared with manhole.c.
 *
 * SPDX-License-Identifier: BSD-2-Clause
 */
#ifndef _GNU_SOURCE
#  define _GNU_SOURCE /* struct ucred */
#endif

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
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
    FIRST_PAUSE_MS = 1,        /* between two tries to connect; doubles up to */
    FIRST_BYTE_PATIENCE_S = 2, /* a manhole tells a hang by itself, after hang_timeout */
    INTERRUPT_PATIENCE_MS =
        1000, /* for the answer to Ctrl-C, and between it and a second one */
    LONGEST_PAUSE_MS = 32,
    CHUNK_SIZE = 64 * 1024, /* bytes on their way in each direction */
    HISTORY_LINE_SIZE =
        4096,           /* bytes with the newline; a longer line is not remembered */
    QUOTED_SIZE = 1024, /* bytes of an argument as messages show it; the rest is cut */
    TITLE_SIZE = 64,    /* bytes of an option's names, for --help and messages */
};

/* What the shell gets. 0 also when the server is killed: its close looks the same. A
 * process that -c or the like will run one day may give any status, as with python -c. */
enum exit_status {
    STATUS_OK = 0,        /* the server closed the connection, or --help */
    STATUS_TROUBLE = 1,   /* the system refused something; the message says what */
    STATUS_USAGE = 2,     /* the command line, as argparse has it */
    STATUS_NO_SIGNAL = 3, /* the signal could not be sent; nothing was connected to */
    STATUS_REFUSED = 4,   /* another process than the one asked for serves the socket */
    STATUS_NO_CONNECTION = 5, /* nobody answered within the timeout */
    STATUS_INTERRUPTED = 130, /* Ctrl-C, as shells have it: 128 + SIGINT */
    STATUS_OUTPUT_GONE = 141, /* nobody reads standard output any more: 128 + SIGPIPE */
};

/* ======================================================================================
 * Messages: every word on standard error, and the ways out that are not main()'s.
 * A message is one line: what failed, with whom, and what to do next. Those that
 * python-manhole has, too, are kept to the letter, for scripts look for them.
 * ======================================================================================
 */

static const char program[] = "manhole-cli";
static const char usage[] =
    "usage: manhole-cli [-h] [-t TIMEOUT] [-1 | -2 | -s SIGNAL] PID\n";

/* An argument as Python's repr() writes it. By value, so that it can stand in a call:
 * quote(text).text lives until the end of that full expression. */
struct quoted {
    char text[QUOTED_SIZE];
};

/* The length of the UTF-8 sequence at the start of text, 0 when there is none. Overlong
 * forms of three and four bytes pass: this is for showing text, not for trusting it. */
static size_t
sequence_length(const unsigned char *text)
{
    size_t length = text[0] >= 0xf0 ? 4 : text[0] >= 0xe0 ? 3 : 2;

    if (text[0] < 0x80) {
        return 1;
    }
    if (text[0] < 0xc2 || text[0] > 0xf4) {
        return 0;
    }
    for (size_t i = 1; i < length; i++) {
        if ((text[i] & 0xc0) != 0x80) {
            return 0;
        }
    }
    return length;
}

/* Writes the first character of text as repr() would. Bytes that are no UTF-8 come out as
 * the lone surrogates that Python makes of them. Returns how many bytes that was. */
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
    else if (last != 0 &&
             (last <= 0xa0 || last == 0xad)) { /* C1 controls, and invisible ones */
        (void)snprintf(out, size, "\\x%02x", last);
    }
    else {
        (void)snprintf(out, size, "%.*s", (int)length, (const char *)text);
    }
    return length;
}

/* Quotes are double only where that saves a backslash. What is too long is cut, with three
 * dots, and at no place inside a character. */
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

/* One line on standard error, "%m" for errno included. Standard error is not buffered,
 * and a line is formatted first, so that it is written in one piece. */
static void __attribute__((format(printf, 1, 0)))
vsay_error(const char *format, va_list arguments)
{
    char line[2 * QUOTED_SIZE + PATH_MAX];
    (void)vsnprintf(line, sizeof(line), format, arguments);
    (void)fprintf(stderr, "%s: error: %s\n", program, line);
}

static void __attribute__((format(printf, 1, 2))) say_error(const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    vsay_error(format, arguments);
    va_end(arguments);
}

/* Says why and ends the program. What it owns, descriptors and little else, goes with it:
 * nothing in this program needs a cleanup that the kernel does not do. */
static _Noreturn void __attribute__((format(printf, 2, 3)))
fail(enum exit_status status, const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    vsay_error(format, arguments);
    va_end(arguments);
    leave(status);
}

/* The command line is wrong: the usage line comes first, alone, so that scripts which look
 * at the first line of the errors find the same one for every mistake. */
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
 * Values: numbers and signals as Python's int(), float() and signal module read them, but
 * for digits of other scripts. What Python refuses is refused: "1e" and "0x10" are no
 * numbers, "1_000" and " 5 " are.
 * To add a signal: a row in signals[].
 * ======================================================================================
 */

/* Every name that Python's signal module has on Linux. Aliases come after the usual name.
 */
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
signal_name(long number)
{
    for (size_t i = 0; i < SIGNAL_NAMES; i++) {
        if (signals[i].number == number) {
            return signals[i].name;
        }
    }
    return number == SIGRTMIN ? "RTMIN" : number == SIGRTMAX ? "RTMAX" : NULL;
}

/* The number of a signal by its name, with or without SIG, in any case; 0: none has it. */
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
    if (strcasecmp(name, "RTMIN") == 0) {
        return SIGRTMIN;
    }
    return strcasecmp(name, "RTMAX") == 0 ? SIGRTMAX : 0;
}

/* Unlike isdigit(): any char will do, and no locale has a say. */
static bool
is_digit(char c)
{
    return c >= '0' && c <= '9';
}

/* Copies a number without the blanks around it and the underscores between its digits,
 * both of which Python allows. Returns a new string, or NULL when that cannot be a
 * number. */
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
        else if (i == 0 || i + 1 == length || !is_digit(from[i - 1]) ||
                 !is_digit(from[i + 1])) {
            free(number);
            number = NULL;
        }
    }
    if (number != NULL) {
        number[kept] = '\0';
    }
    return number;
}

/* Reads what float() reads. strtod() would take hexadecimal numbers and nan(...), too. */
static bool
parse_float(const char *text, double *value)
{
    char *number = tidy_number(text);
    char *end = NULL;
    bool good = false;

    if (number != NULL && number[0] != '\0') {
        const char *digits = number + strspn(number, "+-");
        bool is_word = strcasecmp(digits, "inf") == 0 ||
                       strcasecmp(digits, "infinity") == 0 ||
                       strcasecmp(digits, "nan") == 0;
        *value = strtod(number, &end);
        good = *end == '\0' &&
               (is_word || strspn(number, "0123456789.eE+-") == strlen(number));
    }
    free(number);
    return good;
}

/* Reads what int() reads, as far as a long goes. */
static bool
parse_int(const char *text, long *value)
{
    char *number = tidy_number(text);
    bool good = false;

    if (number != NULL) {
        const char *digits = number + (number[0] == '+' || number[0] == '-' ? 1 : 0);
        good = digits[0] != '\0' && digits[strspn(digits, "0123456789")] == '\0';
        *value = strtol(number, NULL, 10);
    }
    free(number);
    return good;
}

/* ======================================================================================
 * Target: whom the PID argument means. Looks at the file system, connects to nothing.
 * ======================================================================================
 */

struct target {
    pid_t pid; /* the process asked for; 0: whoever serves the path */
    char path[sizeof(((struct sockaddr_un *)NULL)->sun_path)];
    bool by_path; /* the path was given and is a socket: its server is who is meant */
};

/* Follows symbolic links. A path that cannot be looked at is none. */
static bool
is_socket(const char *path)
{
    struct stat status;
    return stat(path, &status) == 0 && S_ISSOCK(status.st_mode);
}

/* The number in "1234" or "anything/manhole-1234"; 0: text has neither form. A newline at
 * the end, as a pid file's content has it, does no harm. No process is called 0. */
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
    if (start > 0 && (start < stem_length ||
                      strncmp(text + start - stem_length, stem, stem_length) != 0)) {
        return 0;
    }
    for (size_t i = start; i < end && pid <= INT_MAX; i++) {
        pid = 10 * pid + (text[i] - '0');
    }
    return pid <= INT_MAX ? (pid_t)pid : 0;
}

/* A number means the process of that id and its /tmp/manhole-PID; so does a path that
 * ends like that, unless there is a socket at that very path: then it means that socket,
 * as does the path of any other one. Ends the program when text is nothing of the kind.
 */
static struct target
parse_target(const char *text)
{
    struct target target = {.pid = parse_pid(text)};
    bool has_path = text[0] != '\0' && strspn(text, "0123456789\n") != strlen(text);

    (void)snprintf(target.path, sizeof(target.path), "/tmp/manhole-%d", (int)target.pid);
    if (has_path && strcmp(text, target.path) != 0 && is_socket(text)) {
        target.by_path = true;
        if (strlen(text) >= sizeof(target.path)) {
            fail_usage(
                "argument PID: the path of a socket has at most %zu bytes, this one has "
                "%zu; go to its directory and give its name alone",
                sizeof(target.path) - 1, strlen(text));
        }
        (void)snprintf(target.path, sizeof(target.path), "%s", text);
    }
    else if (target.pid == 0) {
        fail_usage(
            "argument PID: PID must be in one of these forms: 1234 or /tmp/manhole-1234");
    }
    return target;
}

/* ======================================================================================
 * Command line: a table of options, read by rules that are argparse's to the letter:
 *   - every word before a "--" that begins with "-" is an option, "-" alone excepted, and a
 *     word with a space in it that is none; so "-5" is never a number here
 *   - a name may be cut short where only one option begins like that: --sig, --t
 *   - options of one letter may stand together, the last with its argument: -1t2
 *   - an argument may follow as the next word, glued on (-t2), or after "=" (-t=2)
 *   - the first mistake from the left is told, save that an ambiguous name comes before all
 *     others, and unknown words come last
 * To add an option: a row in options[], its function, the usage line, a test.
 * ======================================================================================
 */

/* What the command line asks for. */
struct request {
    struct target target;
    double timeout_s; /* may be inf or nan; nan is over at once, as is what is negative */
    int signal;       /* 0: none is sent */
    unsigned taken;   /* bit i: options[i] was given */
};

struct option {
    const char *names[2];
    const char *metavar; /* NULL: takes no argument */
    const char *help;
    bool exclusive; /* at most one of these may be given */
    int constant;   /* what take_constant_signal() takes */
    /* argument: NULL without metavar */
    void (*take)(const struct option *option, const char *argument,
                 struct request *request);
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

/* All names of an option, for messages ("-s/--signal") and for --help ("-s SIGNAL,
 * --signal SIGNAL"). By value, like struct quoted. */
struct title {
    char text[TITLE_SIZE];
};

static struct title
title_of(const struct option *option)
{
    struct title title;
    (void)snprintf(title.text, sizeof(title.text), "%s/%s", option->names[0],
                   option->names[1]);
    return title;
}

static struct title
synopsis_of(const struct option *option)
{
    struct title title;
    const char *gap = option->metavar != NULL ? " " : "";
    const char *metavar = option->metavar != NULL ? option->metavar : "";
    (void)snprintf(title.text, sizeof(title.text), "%s%s%s, %s%s%s", option->names[0],
                   gap, metavar, option->names[1], gap, metavar);
    return title;
}

/* One entry of --help, in the layout of argparse on a terminal of 80 columns: the text
 * starts in column 24, below the title if that is too long, and ends before column 78. */
static void
print_entry(const char *title, const char *text)
{
    const size_t width = 78 - 24;

    if (strlen(title) <= 20) {
        (void)printf("  %-20s  ", title);
    }
    else {
        (void)printf("  %s\n%24s", title, "");
    }
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

/* The four that the rows name. What they are given has been matched to the row: an argument
 * is there exactly when the row has a metavar. This one does not return. */
static void
take_help(const struct option *option, const char *argument, struct request *request)
{
    (void)option;
    (void)argument;
    (void)request;
    (void)printf("%s\nConnect to a manhole.\n\npositional arguments:\n", usage);
    print_entry("PID",
                "A numerical process id, or a path in the form: /tmp/manhole-1234");
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
take_constant_signal(const struct option *option, const char *argument,
                     struct request *request)
{
    (void)argument;
    request->signal = option->constant;
}

/* Names the numbers that may be given: those that have a name. */
static _Noreturn void
fail_signal_number(const struct option *option, long number)
{
    char known[512] = "";
    size_t length = 0;

    for (int candidate = 1; candidate <= SIGRTMAX; candidate++) {
        if (signal_name(candidate) != NULL) {
            length += (size_t)snprintf(known + length, sizeof(known) - length, "%s%d",
                                       length > 0 ? ", " : "", candidate);
        }
    }
    fail_usage("argument %s: Invalid signal number %ld. Expected one of: %s",
               title_of(option).text, number, known);
}

/* Shows the name as it was looked up, in upper case; letters beyond ASCII stay as they are. */
static _Noreturn void
fail_signal_name(const struct option *option, const char *name)
{
    char upper[QUOTED_SIZE];

    (void)snprintf(upper, sizeof(upper), "%s", name);
    for (char *c = upper; *c != '\0'; c++) {
        *c = (char)(*c >= 'a' && *c <= 'z' ? *c - 'a' + 'A' : *c);
    }
    fail_usage("argument %s: Invalid signal name %s.", title_of(option).text,
               quote(upper).text);
}

/* A number wins over a name, as no signal is called by one. Only numbers with a name are
 * taken, so that none of the C library's own real-time signals is sent by mistake. */
static void
take_signal(const struct option *option, const char *argument, struct request *request)
{
    long number = 0;

    if (!parse_int(argument, &number)) {
        number = signal_number(argument);
        if (number == 0) {
            fail_signal_name(option, argument);
        }
    }
    else if (signal_name(number) == NULL) {
        fail_signal_number(option, number);
    }
    request->signal = (int)number;
}

/* What one word of the command line is by itself, whatever stands before it. Found anew
 * each time it is asked for, which costs nothing worth a table of results. */
struct word {
    bool is_option;
    bool is_long;                /* begins with "--" */
    const struct option *option; /* NULL: it looks like one, but there is none such */
    const char *argument;        /* what is glued to the option; NULL: nothing is */
};

/* The option with exactly this name, which need not end where its string ends. */
static const struct option *
find_option(const char *name, size_t length)
{
    for (size_t i = 0; i < OPTIONS; i++) {
        for (size_t j = 0; j < 2; j++) {
            const char *candidate = options[i].names[j];
            if (strlen(candidate) == length && strncmp(candidate, name, length) == 0) {
                return &options[i];
            }
        }
    }
    return NULL;
}

/* Whether text may stand for this name: "--sig=9" for --signal, "-t5" for -t, "-US" for
 * -USR1. argument: what then follows the name, or NULL. */
static bool
may_mean(const char *text, const char *name, const char **argument)
{
    bool is_long = text[1] == '-';
    const char *equals = is_long ? strchr(text, '=') : NULL;
    size_t length = equals != NULL ? (size_t)(equals - text) : strlen(text);

    *argument = equals != NULL ? equals + 1 : NULL;
    if (!is_long && strlen(name) == 2 && strncmp(text, name, 2) == 0) {
        *argument = text + 2;
        return true;
    }
    return strncmp(text, name, length) == 0;
}

/* Finds what a shortened name, or one with its argument glued to it, stands for. Ends the
 * program when that may be several. */
static struct word
resolve_option(const char *text)
{
    struct word word = {.is_option = true, .is_long = text[1] == '-'};
    char names[OPTIONS * TITLE_SIZE] = "";
    size_t length = 0;
    size_t found = 0;

    for (size_t i = 0; i < OPTIONS; i++) {
        for (size_t j = 0; j < 2; j++) {
            const char *name = options[i].names[j];
            const char *argument = NULL;
            if (may_mean(text, name, &argument)) {
                word.option = &options[i];
                word.argument = argument;
                length += (size_t)snprintf(names + length, sizeof(names) - length, "%s%s",
                                           found > 0 ? ", " : "", name);
                found++;
            }
        }
    }
    if (found > 1) {
        fail_usage("ambiguous option: %s could match %s", text, names);
    }
    return word;
}

/* Says what a word is, in the order in which argparse asks. */
static struct word
classify_word(const char *text)
{
    size_t name_length = strcspn(text, "=");
    struct word word = {.is_option = true};

    if (text[0] != '-' || text[1] == '\0') {
        return (struct word){.is_option = false};
    }
    word.is_long = text[1] == '-';
    word.option = find_option(text, strlen(text));
    if (word.option == NULL && text[name_length] == '=') {
        word.option = find_option(text, name_length);
        word.argument = text + name_length + 1;
    }
    if (word.option == NULL) {
        word = resolve_option(text);
    }
    if (word.option == NULL && strchr(text, ' ') != NULL) {
        word.is_option = false;
    }
    return word;
}

/* Does what an option asks for, unless it goes ill with one that came before. A wrong
 * argument is told before such a conflict. The same option may come again: the last wins. */
static void
take_option(const struct option *option, const char *argument, struct request *request)
{
    option->take(option, argument, request);
    for (size_t i = 0; option->exclusive && i < OPTIONS; i++) {
        if (options[i].exclusive && &options[i] != option &&
            (request->taken & 1U << i) != 0) {
            fail_usage("argument %s: not allowed with argument %s", title_of(option).text,
                       title_of(&options[i]).text);
        }
    }
    request->taken |= 1U << (option - options);
}

/* The option that comes next in a bundle, by its letter: what is glued to an option
 * without an argument. Ends the program when there is none such. */
static const struct option *
next_in_bundle(const struct word *word)
{
    const char name[] = {'-', word->argument[0]};
    const struct option *option = NULL;

    if (!word->is_long && word->argument[0] != '\0') {
        option = find_option(name, sizeof(name));
    }
    if (option == NULL) {
        fail_usage("argument %s: ignored explicit argument %s",
                   title_of(word->option).text, quote(word->argument).text);
    }
    return option;
}

/* Follows the options bundled in one word: "-1t2", or "-1" alone. next: the following
 * word if it can be an argument, or NULL. request: NULL on a first round, which only
 * looks for mistakes; these come before any of the options has its effect. Returns
 * whether next was taken. */
static bool
walk_bundle(struct word word, const char *next, struct request *request)
{
    while (word.option != NULL) {
        bool takes_argument = word.option->metavar != NULL;
        bool takes_next = takes_argument && word.argument == NULL;
        const char *argument = takes_next ? next : word.argument;
        const struct option *following = NULL;

        if (takes_next && next == NULL) {
            fail_usage("argument %s: expected one argument", title_of(word.option).text);
        }
        if (!takes_argument && argument != NULL) {
            following = next_in_bundle(&word);
        }
        if (request != NULL) {
            take_option(word.option, argument, request);
        }
        if (takes_next) {
            return true;
        }
        word.option = following;
        if (following != NULL) {
            word.argument = argument[1] != '\0' ? argument + 1 : NULL;
        }
    }
    return false;
}

/* The words after the program's name. Those before the first "--" may be options. What
 * nobody takes is moved to the front, to be named at the end. */
struct words {
    char **text;
    int count;
    int dashes; /* where the first "--" stands; count: nowhere */
    int extra;  /* how many nobody took */
    bool has_pid;
};

/* Whether there is a word at i and it is no option; the first "--" is neither. */
static bool
is_argument(const struct words *words, int i)
{
    return i < words->count && i != words->dashes &&
           (i > words->dashes || !classify_word(words->text[i]).is_option);
}

/* Takes the PID if it is here, with a "--" before or behind it. Returns how many words
 * that was, as the next function does. */
static int
take_pid(struct words *words, int i, struct request *request)
{
    int at = i == words->dashes ? i + 1 : i;

    if (words->has_pid || !is_argument(words, at)) {
        return 0;
    }
    words->has_pid = true;
    request->target = parse_target(words->text[at]);
    return at + 1 == words->dashes ? 2 : at + 1 - i;
}

/* Takes the options of one word, and the argument of the last of them from the next word
 * where it needs one. An option that does not exist is left for the complaint at the end:
 * a missing PID, a wrong argument are told first. */
static int
take_bundle(const struct words *words, int i, struct request *request)
{
    const char *next = is_argument(words, i + 1) ? words->text[i + 1] : NULL;
    struct word word = {.is_option = false};

    if (i < words->dashes) {
        word = classify_word(words->text[i]);
    }
    if (!word.is_option || word.option == NULL) {
        return 0;
    }
    (void)walk_bundle(word, next, NULL);
    return walk_bundle(word, next, request) ? 2 : 1;
}

/* Names what nobody took. Left as it was typed, as argparse does. */
static _Noreturn void
fail_extra_words(const struct words *words)
{
    char all[PATH_MAX] = "";
    size_t length = 0;

    for (int i = 0; i < words->extra && length < sizeof(all); i++) {
        length +=
            (size_t)snprintf(all + length, sizeof(all) - length, " %s", words->text[i]);
    }
    fail_usage("unrecognized arguments:%s", all);
}

/* Reads the command line; ends the program when it is wrong or asks for help. Options
 * count from left to right, the PID stands anywhere between them. */
static struct request
parse_command_line(int argc, char **argv)
{
    struct request request = {.timeout_s = DEFAULT_TIMEOUT_S};
    struct words words = {.text = argv + 1, .count = argc > 0 ? argc - 1 : 0};

    /* An option that is ambiguous is an error before any other takes effect. */
    while (words.dashes < words.count && strcmp(words.text[words.dashes], "--") != 0) {
        (void)classify_word(words.text[words.dashes]);
        words.dashes++;
    }
    for (int i = 0; i < words.count;) {
        int taken = take_pid(&words, i, &request);
        if (taken == 0) {
            taken = take_bundle(&words, i, &request);
        }
        if (taken == 0) {
            words.text[words.extra++] = words.text[i];
            taken = 1;
        }
        i += taken;
    }
    if (!words.has_pid) {
        fail_usage("the following arguments are required: PID");
    }
    if (words.extra > 0) {
        fail_extra_words(&words);
    }
    return request;
}

/* ======================================================================================
 * Connection: knock, wait until somebody opens, see who it is. No byte goes over here.
 * Anybody may put a socket at /tmp/manhole-PID while the process has none. Who typed into
 * that one would hand over his commands and believe the answers; hence check_server().
 * To add a reason to refuse a server: check_server(), fail_refused() and a test.
 * ======================================================================================
 */

/* Seconds of a clock that only goes forward. */
static double
now_s(void)
{
    struct timespec now = {.tv_sec = 0};
    (void)clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + (double)now.tv_nsec / 1e9;
}

/* A signal ends it early, which does no harm: the caller looks at the clock. */
static void
pause_s(double seconds)
{
    struct timespec pause = {.tv_sec = (time_t)seconds};
    pause.tv_nsec = (long)((seconds - (double)pause.tv_sec) * 1e9);
    (void)nanosleep(&pause, NULL);
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
 * it sees nothing unusual. Without it the connection works just as well. */
static void
show_calling_card(int fd, const char *wish)
{
    struct sockaddr_un card = {.sun_family = AF_UNIX};
    int length = snprintf(card.sun_path + 1, sizeof(card.sun_path) - 1,
                          "manhole-cli/%s/%s", own_id(), wish);

    (void)bind(fd, (const struct sockaddr *)&card,
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
    show_calling_card(fd, wish);
    return fd;
}

/* Returns 0, or -1 with errno. The same socket may try again after a failure. */
static int
connect_once(int fd, const char *path)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    (void)snprintf(address.sun_path, sizeof(address.sun_path), "%s", path);
    return connect(fd, (const struct sockaddr *)&address, sizeof(address));
}

/* What the socket is expected to say while its server is still on the way, or busy. */
static bool
is_worth_waiting(int error)
{
    return error == ENOENT || error == ECONNREFUSED || error == EAGAIN || error == EINTR;
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
    char path[64];
    char line[512];
    const char *after_name = NULL;
    FILE *stat_file = NULL; /* owned */
    char state = 0;

    (void)snprintf(path, sizeof(path), "/proc/%d/stat", (int)pid);
    stat_file = fopen(path, "re");
    if (stat_file == NULL) {
        return 0;
    }
    if (fgets(line, sizeof(line), stat_file) != NULL) {
        after_name = strrchr(line, ')');
        if (after_name != NULL && strlen(after_name) >= 3) {
            state = after_name[2];
        }
    }
    (void)fclose(stat_file);
    return state;
}

/* Whether a thread of the process is a manhole's listener, which bears that name. */
static bool
has_listener(pid_t pid)
{
    char path[64];
    char name[32];
    struct dirent *task = NULL;
    DIR *tasks = NULL; /* owned */
    bool found = false;

    (void)snprintf(path, sizeof(path), "/proc/%d/task", (int)pid);
    tasks = opendir(path);
    /* NOLINTNEXTLINE(concurrency-mt-unsafe): one thread */
    while (tasks != NULL && !found && (task = readdir(tasks)) != NULL) {
        char comm[sizeof(path) + sizeof(task->d_name) + 8];
        FILE *file = NULL; /* owned */
        (void)snprintf(comm, sizeof(comm), "%s/%s/comm", path, task->d_name);
        file = fopen(comm, "re");
        if (file != NULL) {
            found =
                fgets(name, sizeof(name), file) != NULL && strcmp(name, "Manhole\n") == 0;
            (void)fclose(file);
        }
    }
    if (tasks != NULL) {
        (void)closedir(tasks);
    }
    return found;
}

/* Says what keeps a process from answering, in one line with what to do. Silent, with false, when
 * nothing of that can be seen. */
static bool
say_hindrance(pid_t pid)
{
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

/* After a timeout: why nobody opens, as far as /proc shows it. */
static void
say_why(pid_t pid)
{
    if (pid == 0 || say_hindrance(pid)) {
        return;
    }
    if (has_listener(pid)) {
        say_error("process %d has a manhole that is not open: send it the signal of its "
                  "activate_on option (-1, -2 or -s SIGNAL), or look into its log",
                  (int)pid);
    }
    else {
        say_error("process %d seems to have no manhole: it wants manhole.install(), or "
                  "PYTHONMANHOLE in its environment, when it starts",
                  (int)pid);
    }
}

/* Tries until it works; ends the program when the time is over. The pauses are short at
 * first, for a manhole that a signal has just woken is there within a millisecond or two. */
static void
connect_within(int fd, const struct target *target, double timeout_s)
{
    const char *path = target->path;
    double deadline = now_s() + timeout_s;
    double pause = FIRST_PAUSE_MS / 1e3;
    int said = 0; /* the error that was shown last */

    while (connect_once(fd, path) < 0) {
        int error = errno;
        double left = deadline - now_s();
        if (!is_worth_waiting(error) && error != said) {
            say_connect_error(path, error);
            said = error;
        }
        if (!(left > 0)) { /* a timeout that is not a number is over, too */
            (void)fprintf(stderr, "Failed to connect to %s: Timeout\n", quote(path).text);
            say_why(target->pid);
            leave(STATUS_NO_CONNECTION);
        }
        pause_s(pause < left ? pause : left);
        pause = 2 * pause < LONGEST_PAUSE_MS / 1e3 ? 2 * pause : LONGEST_PAUSE_MS / 1e3;
    }
}

/* The effective uid of a process; false when there is no such process. Not the owner of
 * /proc/PID: that is root as soon as a process has changed its uid, as daemons do. */
static bool
find_uid(pid_t pid, uid_t *uid)
{
    char path[64];
    char line[256];
    FILE *status = NULL; /* owned */
    bool found = false;

    (void)snprintf(path, sizeof(path), "/proc/%d/status", (int)pid);
    status = fopen(path, "re");
    while (status != NULL && !found && fgets(line, sizeof(line), status) != NULL) {
        char *real = NULL;
        if (strncmp(line, "Uid:", 4) == 0) {
            (void)strtoul(line + 4, &real, 10);
            *uid = (uid_t)strtoul(real, NULL, 10);
            found = true;
        }
    }
    if (status != NULL) {
        (void)fclose(status);
    }
    return found;
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

/* Makes sure that who answers may read what is typed, and be believed: root, ourselves, or
 * the user of the process asked for; and that it is this process. For a connected client
 * SO_PEERCRED tells who called listen(), so a socket that somebody else put at the path
 * shows. A server in another pid namespace has pid 0 here: then the uid decides alone. */
static struct ucred
check_server(int fd, const struct target *target)
{
    struct ucred server;
    socklen_t size = sizeof(server);
    uid_t owner = geteuid();
    bool is_pid_right = false;
    bool is_uid_right = false;

    if (getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &server, &size) < 0) {
        fail(STATUS_TROUBLE, "cannot find out who serves %s: %m",
             quote(target->path).text);
    }
    if (target->pid != 0 && !find_uid(target->pid, &owner)) {
        owner = geteuid();
    }
    is_pid_right = target->pid == 0 || server.pid == 0 || server.pid == target->pid;
    is_uid_right = server.uid == 0 || server.uid == geteuid() || server.uid == owner;
    if (!is_pid_right || !is_uid_right) {
        fail_refused(target, &server, owner);
    }
    return server;
}

/* pid is positive: to kill() 0 and less mean whole groups, us among them. */
static void
send_signal(pid_t pid, int number)
{
    const char *name = signal_name(number);
    const char *advice = "";

    if (kill(pid, number) == 0) {
        return;
    }
    if (errno == ESRCH) {
        advice = "; look for its number with ps or pgrep";
    }
    if (errno == EPERM) {
        advice = "; run manhole-cli as the user of that process, or as root";
    }
    fail(STATUS_NO_SIGNAL, "cannot send signal %d (%s) to process %d: %m%s", number, name,
         (int)pid, advice);
}

/* Signals whoever serves a given path: only a connection tells who that is, so it must
 * work beforehand, and is then the one that is used. */
static void
connect_and_signal(int fd, const struct request *request)
{
    const struct target *target = &request->target;
    struct ucred server;

    if (connect_once(fd, target->path) < 0) {
        fail(STATUS_NO_SIGNAL,
             "cannot tell whom to send signal %d, nobody answers at %s: %m; "
             "give the PID of the process instead",
             request->signal, quote(target->path).text);
    }
    server = check_server(fd, target);
    if (server.pid == 0) { /* kill(0) would hit ourselves */
        fail(STATUS_NO_SIGNAL,
             "cannot send signal %d to who serves %s: its PID is not visible "
             "in this pid namespace; send it from inside",
             request->signal, quote(target->path).text);
    }
    send_signal(server.pid, request->signal);
}

/* Returns a socket that is connected to the process asked for; ends the program without
 * one. By PID the signal goes first, whether or not somebody answers already: it may be
 * what makes the process listen. */
static int
open_connection(const struct request *request)
{
    int fd = open_socket("repl");

    if (request->signal != 0 && request->target.by_path) {
        connect_and_signal(fd, request);
        return fd;
    }
    if (request->signal != 0) {
        send_signal(request->target.pid, request->signal);
    }
    connect_within(fd, &request->target, request->timeout_s);
    (void)check_server(fd, &request->target);
    return fd;
}

/* ======================================================================================
 * History: what was typed at a terminal, for the next time. A line each, as readline
 * keeps it. Appends only, a line in one write(), so that clients side by side do not mix
 * their lines. A line editor brings its own: it replaces this room.
 * ======================================================================================
 */

struct history {
    int fd; /* -1: nothing is kept */
    size_t length;
    bool is_too_long; /* the line being gathered */
    char line[HISTORY_LINE_SIZE];
};

static struct history history = {.fd = -1};

/* Opens ~/.manhole_history if standard input is a terminal. To have none is no error. */
static void
open_history(void)
{
    /* NOLINTNEXTLINE(concurrency-mt-unsafe): there is one thread */
    const char *home = getenv("HOME");
    char path[PATH_MAX];
    char names[4096];
    struct passwd entry;
    struct passwd *found = NULL;

    if (!isatty(STDIN_FILENO)) {
        return;
    }
    if ((home == NULL || home[0] == '\0') &&
        getpwuid_r(getuid(), &entry, names, sizeof(names), &found) == 0 &&
        found != NULL) {
        home = found->pw_dir;
    }
    if (home != NULL &&
        snprintf(path, sizeof(path), "%s/.manhole_history", home) < PATH_MAX) {
        history.fd = open(path, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0600);
    }
}

/* Gathers what was read into lines. Neither an empty one is kept nor one beyond the
 * limit. */
static void
remember_typed(const char *bytes, size_t count)
{
    for (size_t i = 0; history.fd >= 0 && i < count; i++) {
        history.is_too_long =
            history.is_too_long || history.length == sizeof(history.line);
        if (!history.is_too_long) {
            history.line[history.length++] = bytes[i];
        }
        if (bytes[i] == '\n') {
            if (!history.is_too_long && history.length > 1) {
                (void)!write(history.fd, history.line, history.length);
            }
            history.length = 0;
            history.is_too_long = false;
        }
    }
}

/* ======================================================================================
 * Relay: standard input to the server, the server to standard output, whatever the bytes.
 * Each direction holds one chunk and reads on when that is gone, so memory is bounded and
 * neither direction waits for the other: who does not read holds up only what he does not
 * read.
 * ======================================================================================
 */

/* One direction. The two are static in relay(): they are too big for a small stack. */
struct flow {
    size_t start; /* of what is still to be written */
    size_t end;
    bool is_over; /* nothing more will be read */
    char bytes[CHUNK_SIZE];
};

/* Whether something read is still to be written. Nothing more is read until it is. */
static bool
is_pending(const struct flow *flow)
{
    return flow->start < flow->end;
}

/* After an interrupted or premature call the next poll() decides anew. */
static bool
is_passing(int error)
{
    return error == EINTR || error == EAGAIN;
}

/* Standard input may be shared with others, so it stays in blocking mode: poll() has just
 * said that a read will not block. At its end the server is told, and may go on writing.
 */
static void
read_stdin(struct flow *typed, int server)
{
    ssize_t count = read(STDIN_FILENO, typed->bytes, sizeof(typed->bytes));

    if (count < 0 && is_passing(errno)) {
        return;
    }
    if (count < 0) {
        say_error("cannot read standard input: %m; taken as its end");
    }
    if (count <= 0) {
        typed->is_over = true;
        (void)shutdown(server, SHUT_WR);
        return;
    }
    typed->start = 0;
    typed->end = (size_t)count;
    remember_typed(typed->bytes, typed->end);
}

/* A server that reads no more may still have something to say: that is left to
 * read_server(). */
static void
write_server(struct flow *typed, int server)
{
    ssize_t count = send(server, typed->bytes + typed->start, typed->end - typed->start,
                         MSG_NOSIGNAL);

    if (count >= 0) {
        typed->start += (size_t)count;
    }
    else if (!is_passing(errno)) {
        typed->start = typed->end;
        typed->is_over = true;
    }
}

/* A reset is an end as well: so a server's close looks when it has not read all that we sent. */
static void
read_server(struct flow *shown, int server)
{
    ssize_t count = recv(server, shown->bytes, sizeof(shown->bytes), 0);

    if (count > 0) {
        shown->start = 0;
        shown->end = (size_t)count;
    }
    else if (count == 0 || !is_passing(errno)) {
        shown->is_over = true;
    }
}

/* Standard output stays in blocking mode, too. To a pipe that poll() calls writable,
 * PIPE_BUF bytes go without blocking. Returns false when nobody reads them any more. */
static bool
write_stdout(struct flow *shown)
{
    size_t pending = shown->end - shown->start;
    ssize_t count = write(STDOUT_FILENO, shown->bytes + shown->start,
                          pending < PIPE_BUF ? pending : PIPE_BUF);

    if (count >= 0) {
        shown->start += (size_t)count;
    }
    else if (errno == EPIPE) {
        return false;
    }
    else if (!is_passing(errno)) {
        fail(STATUS_TROUBLE, "cannot write to standard output: %m");
    }
    return true;
}

enum { INPUT, OUTPUT, SERVER, POLLED };

/* What to wait for. A descriptor with nothing to do is hidden from poll() by -1: its end
 * would be reported over and over. */
static void
choose_events(struct pollfd fds[POLLED], const struct flow *typed,
              const struct flow *shown, int server)
{
    bool reads_input = !typed->is_over && !is_pending(typed) && !shown->is_over;
    bool reads_server = !shown->is_over && !is_pending(shown);
    bool writes_server = !shown->is_over && is_pending(typed);
    short events = (short)((reads_server ? POLLIN : 0) | (writes_server ? POLLOUT : 0));

    fds[INPUT] = (struct pollfd){.fd = reads_input ? STDIN_FILENO : -1, .events = POLLIN};
    fds[OUTPUT] =
        (struct pollfd){.fd = is_pending(shown) ? STDOUT_FILENO : -1, .events = POLLOUT};
    fds[SERVER] = (struct pollfd){.fd = events != 0 ? server : -1, .events = events};
}

/* Reads or writes, whichever was waited for. An error or an end counts as both: the call
 * then says what it is. */
static void
serve_server(const struct pollfd *ready, struct flow *typed, struct flow *shown)
{
    bool is_ended = (ready->revents & (POLLERR | POLLHUP)) != 0;

    if ((ready->events & POLLIN) != 0 && ((ready->revents & POLLIN) != 0 || is_ended)) {
        read_server(shown, ready->fd);
    }
    if ((ready->events & POLLOUT) != 0 && ((ready->revents & POLLOUT) != 0 || is_ended)) {
        write_server(typed, ready->fd);
    }
}

/* Ctrl-C has been typed and not been dealt with. */
static volatile sig_atomic_t is_interrupt_due;

/* Only what signal-safety(7) allows. */
static void
on_interrupt(int signal_number)
{
    (void)signal_number;
    is_interrupt_due = 1;
}

/* Asks the server, by a connection of its own, to interrupt what our session runs. Fills in its
 * answer: "interrupted", "still running" (not the first time), "idle", "unknown"; "" from a server
 * that does not know of this. */
static void
ask_for_interrupt(const struct target *target, char *answer, size_t size)
{
    static unsigned count;
    char wish[32];
    struct pollfd server = {.events = POLLIN};
    ssize_t length = -1;

    (void)snprintf(wish, sizeof(wish), "interrupt.%u", ++count);
    server.fd = open_socket(wish);
    if (connect_once(server.fd, target->path) == 0) {
        (void)check_server(server.fd, target);
        if (poll(&server, 1, INTERRUPT_PATIENCE_MS) == 1) {
            length = recv(server.fd, answer, size - 1, 0);
        }
    }
    answer[length < 0 ? 0 : length] = '\0';
    answer[strcspn(answer, "\n")] = '\0';
    (void)close(server.fd);
}

/* Ctrl-C: the first one interrupts the statement, a second one soon after, while it still runs,
 * leaves it running. Without a terminal, and with a server that knows no interrupts, it ends the
 * client. Returns whether to go on. */
static bool
handle_interrupt(const struct target *target)
{
    static double last_s = -1e9; /* of the last one that this statement got */
    char answer[32] = "";

    if (!isatty(STDIN_FILENO)) {
        return false;
    }
    ask_for_interrupt(target, answer, sizeof(answer));
    if (strcmp(answer, "idle") == 0) {
        (void)fprintf(stderr, "\nmanhole-cli: nothing is running; Ctrl-D leaves\n");
        return true;
    }
    if (strcmp(answer, "interrupted") != 0 && strcmp(answer, "still running") != 0) {
        return false;
    }
    if (strcmp(answer, "still running") == 0 &&
        now_s() - last_s < INTERRUPT_PATIENCE_MS / 1e3) {
        (void)fprintf(
            stderr,
            "\nmanhole-cli: left; the statement has not ended yet and is interrupted "
            "again by the process every second until it does\n");
        return false;
    }
    last_s = now_s();
    return true;
}

/* As the kernel recorded it when the server began to listen. */
static pid_t
server_pid(int server)
{
    struct ucred credentials = {.pid = 0};
    socklen_t size = sizeof(credentials);

    (void)getsockopt(server, SOL_SOCKET, SO_PEERCRED, &credentials, &size);
    return credentials.pid;
}

/* Copies both ways until the server has closed and all it wrote is shown. Ctrl-C is let in while
 * it waits, and only then. */
static enum exit_status
relay(int server, const struct target *target)
{
    static struct flow typed;
    static struct flow shown;
    struct pollfd fds[POLLED];
    const struct timespec patience = {.tv_sec = FIRST_BYTE_PATIENCE_S};
    bool is_silent = true;
    sigset_t interrupt;
    sigset_t waiting;

    (void)sigemptyset(&interrupt);
    (void)sigaddset(&interrupt, SIGINT);
    (void)pthread_sigmask(SIG_BLOCK, &interrupt, &waiting);
    while (!shown.is_over || is_pending(&shown)) {
        choose_events(fds, &typed, &shown, server);
        int ready = ppoll(fds, POLLED, is_silent ? &patience : NULL, &waiting);
        if (ready == 0) {
            is_silent = false; /* said once */
            (void)say_hindrance(server_pid(server));
            continue;
        }
        is_silent = is_silent && fds[SERVER].revents == 0;
        if (ready < 0) {
            if (errno != EINTR) {
                fail(STATUS_TROUBLE, "cannot wait for input: %m");
            }
            if (is_interrupt_due && !handle_interrupt(target)) {
                return STATUS_INTERRUPTED;
            }
            is_interrupt_due = 0;
            continue;
        }
        if (fds[OUTPUT].revents != 0 && !write_stdout(&shown)) {
            return STATUS_OUTPUT_GONE;
        }
        serve_server(&fds[SERVER], &typed, &shown);
        if (fds[INPUT].revents != 0) {
            read_stdin(&typed, server);
        }
    }
    return STATUS_OK;
}

/* ======================================================================================
 * The program.
 * ======================================================================================
 */

/* A descriptor 0, 1 or 2 that the caller has closed would be taken by the socket, and then
 * read as if it were standard input. /dev/null takes its place: an input at its end, an
 * output that takes everything. */
static void
keep_standard_descriptors(void)
{
    int fd = 0;
    do {
        fd = open("/dev/null", O_RDWR | O_CLOEXEC);
    } while (fd >= 0 && fd <= STDERR_FILENO);
    if (fd >= 0) {
        (void)close(fd);
    }
}

/* Only what signal-safety(7) allows; there is nothing to tidy up. */
static void
on_early_interrupt(int signal_number)
{
    (void)signal_number;
    _exit(STATUS_INTERRUPTED);
}

/* Ctrl-C is dealt with by handler, unless the caller has it ignored (nohup, "&" in a script). */
static void
set_interrupt_handler(void (*handler)(int))
{
    struct sigaction interrupt = {.sa_flags = 0};

    if (sigaction(SIGINT, NULL, &interrupt) == 0 && interrupt.sa_handler != SIG_IGN) {
        interrupt = (struct sigaction){.sa_handler = handler, .sa_flags = SA_RESTART};
        (void)sigaction(SIGINT, &interrupt, NULL);
    }
}

int
main(int argc, char **argv)
{
    enum exit_status status = STATUS_OK;
    struct request request;
    int server = -1; /* owned */

    keep_standard_descriptors();
    (void)signal(SIGPIPE, SIG_IGN); /* output that nobody reads is an error of write() */
    set_interrupt_handler(on_early_interrupt);
    request = parse_command_line(argc, argv);
    server = open_connection(&request);
    open_history();
    set_interrupt_handler(on_interrupt);
    status = relay(server, &request.target);
    (void)close(server);
    return (int)status;
}
