/* manhole_cli.c - the client of a manhole: manhole-cli [options] PID
 *
 * Sends the process a signal if asked to, connects to its socket, makes sure that it is
 * that process which answers, and then is its console: at a terminal with a line editor
 * (libedit, if there was one to build with), else copying standard input to the socket and
 * the socket to standard output until the other side closes. Given a configuration file
 * instead of a PID it asks in a local shell which process. Or it runs code there (-c, -f),
 * prints stacks (--stacks), for several processes side by side; lists them, or tidies up.
 * Command line, messages and history file are those of python-manhole's client of the same
 * name, and more.
 *
 * WHAT IT TOUCHES
 *   /tmp/manhole-PID       or the socket whose path is given: connected to, no more
 *   /proc/PID/...          read, for what the process is, which signals it catches and where it
 *                          listens; in a container its socket is below /proc/PID/root
 *   /proc/net/tcp*         read, for who listens at a port
 *   ~/.manhole_history     each line typed at a terminal is appended; mode 0600
 *   ~/.editrc              libedit's own settings, read
 *   \0manhole-cli/PID.N/terminal   its own end of the connection, see show_calling_card()
 *   HOME, TERM, NO_COLOR, LC_*  are what it reads of the environment
 *
 * EXIT STATUS: enum exit_status below; with -c and -f what the code says.
 *
 * HOW TO READ IT: ground floor first; main() is at the end, and is the table of contents.
 * One thread throughout. Nothing here is shared with manhole.c.
 *
 * SPDX-License-Identifier: BSD-2-Clause
 */
#ifndef _GNU_SOURCE
#  define _GNU_SOURCE /* struct ucred */
#endif

#include <arpa/inet.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
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
    FIRST_PAUSE_MS = 1, /* between two tries to connect; doubles up to */
    LONGEST_PAUSE_MS = 32,
    SECOND_LOOK_MS = 100, /* at a process that is stopped: a profiler lets it go on */
    FIRST_BYTE_PATIENCE_S = 2, /* a manhole tells a hang by itself, after hang_timeout */
    INTERRUPT_PATIENCE_MS = 1000, /* for an answer aside, and between two Ctrl-C */
    KNOCK_PATIENCE_MS = 500,      /* for an answer at --list */
    STACKS_PATIENCE_S = 10,
    CHUNK_SIZE = 64 * 1024, /* bytes on their way in each direction */
    HISTORY_LINE_SIZE =
        4096,             /* bytes with the newline; a longer line is not remembered */
    HISTORY_LINES = 2000, /* that the editor knows */
    HISTORY_SIZE = 1024 * 1024, /* bytes; beyond, the older half is dropped */
    QUOTED_SIZE = 1024, /* bytes of an argument as messages show it; the rest is cut */
    TITLE_SIZE = 64,    /* bytes of an option's names, for --help and messages */
    MAX_WORDS = 1024,   /* PIDs, and arguments of code, on a command line */
    MAX_OPTIONS = 32,   /* rows of options[], for each has a bit */
    ACCEPTS_CONNECTIONS = 0x10000, /* of the flags in /proc/net/unix */
    MOST_DOORS = 16,               /* of one manhole, which has no more than nine */
    MAX_ORPHANS = 10,              /* sockets without a process that --list names */
    JOBS_AT_ONCE = 128,            /* processes that are served side by side */
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

/* The length of the UTF-8 sequence at the start of text, 0 when there is none: what is
 * overlong, a surrogate or beyond Unicode is none. Reads no further than a NUL. */
static size_t
sequence_length(const unsigned char *text)
{
    static const struct {
        unsigned char first, low, high; /* bounds of the second byte after this one */
    } narrow[] = {
        {0xe0, 0xa0, 0xbf}, {0xed, 0x80, 0x9f}, {0xf0, 0x90, 0xbf}, {0xf4, 0x80, 0x8f}};
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
    for (size_t i = 0; i < sizeof(narrow) / sizeof(narrow[0]); i++) {
        if (text[0] == narrow[i].first &&
            (text[1] < narrow[i].low || text[1] > narrow[i].high)) {
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
 * Terminal: what text from a process may do to it, and the colours it gets here.
 * On a terminal a process could, by the text that it writes, type commands, retitle the
 * window or hide what it did. So there all control characters but newline, tab and carriage
 * return are shown, not sent: ESC as ^[, what is no UTF-8 as \xff. --raw sends everything.
 * To add a colour: a row in paints[], and in paint_of_line() what wears it.
 * ======================================================================================
 */

/* Bytes that grow. Behind the last one there is always a NUL, unless there is none at all. */
struct buffer {
    char *data; /* owned; NULL while nothing was ever added */
    size_t length;
    size_t size;
};

static void
append(struct buffer *buffer, const void *bytes, size_t count)
{
    if (buffer->length + count >= buffer->size) {
        size_t size = 2 * (buffer->length + count) + 64;
        char *data = realloc(buffer->data, size);
        if (data == NULL) {
            fail(STATUS_TROUBLE, "out of memory");
        }
        buffer->data = data;
        buffer->size = size;
    }
    if (count > 0) {
        memcpy(buffer->data + buffer->length, bytes, count);
    }
    buffer->length += count;
    buffer->data[buffer->length] = '\0';
}

static void
append_text(struct buffer *buffer, const char *text)
{
    append(buffer, text, strlen(text));
}

/* Takes the first bytes away. */
static void
drop(struct buffer *buffer, size_t count)
{
    if (buffer->length > 0) {
        memmove(buffer->data, buffer->data + count, buffer->length - count + 1);
        buffer->length -= count;
    }
}

static void
empty(struct buffer *buffer)
{
    drop(buffer, buffer->length);
}

/* The content as a string, also of a buffer that never had any. */
static const char *
text_of(const struct buffer *buffer)
{
    return buffer->data != NULL ? buffer->data : "";
}

/* The first line with its newline, or 0 when it is not whole yet. */
static size_t
line_length(const struct buffer *buffer)
{
    const char *newline =
        buffer->length == 0 ? NULL : memchr(buffer->data, '\n', buffer->length);
    return newline == NULL ? 0 : (size_t)(newline - buffer->data) + 1;
}

/* The length of the line that begins there, with its newline; 0: there is no whole one. At the end
 * of all what is left is one. */
static size_t
next_line(const struct buffer *buffer, size_t start, bool is_end)
{
    const char *line = text_of(buffer) + start;
    size_t left = buffer->length - start;
    const char *newline = left == 0 ? NULL : memchr(line, '\n', left);
    return newline != NULL ? (size_t)(newline - line) + 1 : is_end ? left : 0;
}

enum paint { PLAIN, PROMPT, HEADER, ERROR, FAINT };

/* As in "ESC [ ... m"; the default ones, so that they suit light and dark screens. */
static const char *const paints[] = {
    [PLAIN] = "", [PROMPT] = "1;32", [HEADER] = "1;36", [ERROR] = "1;31", [FAINT] = "2",
};

static struct terminal {
    int input;        /* standard input; if it is a terminal, one that never blocks */
    bool is_shown_on; /* standard output is a terminal */
    bool is_typed_on; /* standard input is one */
    bool is_capable;  /* it can move its cursor: there is a TERM, and it is not dumb */
    bool has_colours; /* wanted, too: no NO_COLOR in the environment */
    bool is_raw;      /* --raw: control sequences are sent as they come */
} terminal;

/* Between a poll() that promises a line and the read(), Ctrl-C may have thrown it away. To make
 * standard input non-blocking would do so for all who share it, so it is opened once more. */
static int
open_input_again(void)
{
    int fd = open("/proc/self/fd/0", O_RDONLY | O_NONBLOCK | O_NOCTTY | O_CLOEXEC);
    return fd >= 0 ? fd : STDIN_FILENO;
}

/* Characters are what UTF-8 says, also where the locale says nothing of them. */
static void
look_at_terminal(bool is_raw)
{
    /* NOLINTBEGIN(concurrency-mt-unsafe): there is one thread */
    const char *type = getenv("TERM");
    const char *no_color = getenv("NO_COLOR");
    if (setlocale(LC_CTYPE, "") == NULL || strcmp(nl_langinfo(CODESET), "UTF-8") != 0) {
        (void)setlocale(LC_CTYPE, "C.UTF-8");
    }
    /* NOLINTEND(concurrency-mt-unsafe) */
    terminal.is_shown_on = isatty(STDOUT_FILENO) == 1;
    terminal.is_typed_on = isatty(STDIN_FILENO) == 1;
    terminal.input = terminal.is_typed_on ? open_input_again() : STDIN_FILENO;
    terminal.is_capable = type != NULL && type[0] != '\0' && strcmp(type, "dumb") != 0;
    terminal.has_colours = terminal.is_shown_on && terminal.is_capable &&
                           (no_color == NULL || no_color[0] == '\0');
    terminal.is_raw = is_raw;
}

/* Whether a character turns the direction of the text around it, so that it reads as what
 * it is not. */
static bool
is_misleading(wchar_t c)
{
    return (c >= 0x202a && c <= 0x202e) || (c >= 0x2066 && c <= 0x2069);
}

/* The character at the start of valid UTF-8. */
static wchar_t
decode(const unsigned char *text, size_t length)
{
    wchar_t c = length == 1 ? text[0] : text[0] & (0xff >> (length + 1));
    for (size_t i = 1; i < length; i++) {
        c = (wchar_t)(c << 6 | (text[i] & 0x3f));
    }
    return c;
}

/* Adds text such that it moves nothing on a terminal but the cursor, and that only to the
 * right, down, or to the start of its line. The bytes end with a NUL. */
static void
append_harmless(struct buffer *out, const char *bytes, size_t count)
{
    const unsigned char *text = (const unsigned char *)bytes;
    char shown[16];

    if (terminal.is_raw) {
        append(out, bytes, count);
        return;
    }
    for (size_t i = 0; i < count;) {
        size_t length = sequence_length(text + i);
        wchar_t c = length == 0 ? text[i] : decode(text + i, length);
        if (length == 0 || (c >= 0x80 && c < 0xa0)) {
            (void)snprintf(shown, sizeof(shown), "\\x%02x", (unsigned)c);
        }
        else if (is_misleading(c)) {
            (void)snprintf(shown, sizeof(shown), "\\u%04x", (unsigned)c);
        }
        else if ((c < 0x20 && strchr("\n\t\r", (int)c) == NULL) || c == 0 || c == 0x7f) {
            (void)snprintf(shown, sizeof(shown), "^%c", (int)c ^ 0x40);
        }
        else {
            (void)snprintf(shown, sizeof(shown), "%.*s", (int)length, bytes + i);
        }
        append_text(out, shown);
        i += length > 0 ? length : 1;
    }
}

/* How many bytes at the end may be the beginning of a character of which the rest is still
 * to come. */
static size_t
count_unfinished(const char *bytes, size_t count)
{
    for (size_t back = 1; back <= 3 && back <= count; back++) {
        unsigned char byte = (unsigned char)bytes[count - back];
        size_t needed = byte >= 0xf0 ? 4 : byte >= 0xe0 ? 3 : byte >= 0xc0 ? 2 : 1;
        if (byte >= 0xc0) {
            return needed > back ? back : 0;
        }
        if (byte < 0x80) {
            return 0;
        }
    }
    return 0;
}

static void
append_paint(struct buffer *out, enum paint paint, const char *text)
{
    bool is_painted = terminal.has_colours && paint != PLAIN;
    if (is_painted) {
        append_text(out, "\033[");
        append_text(out, paints[paint]);
        append_text(out, "m");
    }
    append_text(out, text);
    if (is_painted) {
        append_text(out, "\033[0m");
    }
}

/* The colour of a line, by its beginning: the head of a thread's stack; the head and the
 * last line of a traceback, which is the first one behind it that is not indented. */
static enum paint
paint_of_line(const char *line)
{
    static bool is_in_traceback;
    bool was_in_traceback = is_in_traceback;

    if (strncmp(line, "#########", 9) == 0) {
        is_in_traceback = false;
        return HEADER;
    }
    if (strncmp(line, "Traceback (most recent call last):", 34) == 0) {
        is_in_traceback = true;
        return ERROR;
    }
    is_in_traceback = was_in_traceback && (line[0] == ' ' || line[0] == '\t');
    return was_in_traceback && !is_in_traceback && line[0] != '\r' && line[0] != '\0'
               ? ERROR
               : PLAIN;
}

/* Adds a line as it looks on this terminal, with a newline. The bytes end with a NUL. */
static void
append_line(struct buffer *out, const char *bytes, size_t count)
{
    struct buffer line = {.data = NULL};

    if (count > 0 && bytes[count - 1] == '\r') {
        count--;
    }
    append_harmless(&line, bytes, count);
    append_paint(out, line.length > 0 ? paint_of_line(line.data) : PLAIN, text_of(&line));
    append_text(out, "\n");
    free(line.data);
}

/* Writes all of it; ends the program when that cannot be. */
static void
write_all(int fd, const char *bytes, size_t count)
{
    while (count > 0) {
        ssize_t written = write(fd, bytes, count);
        if (written < 0 && errno == EPIPE) {
            leave(STATUS_OUTPUT_GONE);
        }
        if (written < 0 && errno == EAGAIN) { /* somebody else has set O_NONBLOCK */
            struct pollfd output = {.fd = fd, .events = POLLOUT};
            (void)poll(&output, 1, -1);
        }
        else if (written < 0 && errno != EINTR) {
            fail(STATUS_TROUBLE, "cannot write to standard %s: %m",
                 fd == STDOUT_FILENO ? "output" : "error");
        }
        bytes += written > 0 ? written : 0;
        count -= written > 0 ? (size_t)written : 0;
    }
}

/* ======================================================================================
 * Target: whom the PID argument means. Looks at the file system, connects to nothing.
 * ======================================================================================
 */

enum { SOCKET_PATH_SIZE = sizeof(((struct sockaddr_un *)NULL)->sun_path) };

struct target {
    pid_t pid; /* the process asked for; 0: whoever serves the path */
    char path[SOCKET_PATH_SIZE + sizeof("/proc/2147483647/root")];
    bool by_path; /* the path was given and is a socket: its server is who is meant */
    int port;     /* not 0: of TCP, and the path is HOST:PORT */
    const char
        *config; /* not NULL: a file that says where to look, nothing else is known */
};

static bool
has_ending(const char *text, const char *ending)
{
    size_t length = strlen(text);
    return length > strlen(ending) && strcmp(text + length - strlen(ending), ending) == 0;
}

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

/* Adds the content of /proc/PID/name. False when it cannot be read. */
static bool
read_proc(pid_t pid, const char *name, struct buffer *content)
{
    char path[64];
    char bytes[4096];
    ssize_t count = 0;
    int fd = -1;

    (void)snprintf(path, sizeof(path), "/proc/%d/%s", (int)pid, name);
    fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) {
        return false;
    }
    while ((count = read(fd, bytes, sizeof(bytes))) > 0) {
        append(content, bytes, (size_t)count);
    }
    (void)close(fd);
    return count == 0;
}

/* What stands behind this name in /proc/PID/status, without the blanks before it; false when there
 * is no such line. */
static bool
find_status(pid_t pid, const char *name, char *value, size_t size)
{
    struct buffer status = {.data = NULL}; /* owned */
    char key[32];
    const char *line = NULL;

    (void)snprintf(key, sizeof(key), "\n%s:", name);
    if (read_proc(pid, "status", &status)) {
        line = strstr(text_of(&status), key);
    }
    if (line != NULL) {
        line += strlen(key);
        line += strspn(line, " \t");
        (void)snprintf(value, size, "%.*s", (int)strcspn(line, "\n"), line);
    }
    free(status.data);
    return line != NULL;
}

/* The process that a number means: also that of one of its threads, as top and the like show. */
static pid_t
thread_group(pid_t pid)
{
    char number[16];
    return find_status(pid, "Tgid", number, sizeof(number))
               ? (pid_t)strtol(number, NULL, 10)
               : pid;
}

/* The process's number in its own pid namespace, as its own socket has it. */
static pid_t
inner_pid(pid_t pid)
{
    char numbers[512];
    const char *last = NULL;

    if (!find_status(pid, "NStgid", numbers, sizeof(numbers))) {
        return pid;
    }
    last = strrchr(numbers, '\t');
    return (pid_t)strtol(last != NULL ? last : numbers, NULL, 10);
}

/* The effective uid of a process; false when there is no such process. Not the owner of
 * /proc/PID: that is root as soon as a process has changed its uid, as daemons do. */
static bool
find_uid(pid_t pid, uid_t *uid)
{
    char numbers[64];
    char *effective = NULL;

    if (!find_status(pid, "Uid", numbers, sizeof(numbers))) {
        return false;
    }
    (void)strtoul(numbers, &effective, 10);
    *uid = (uid_t)strtoul(effective, NULL, 10);
    return true;
}

/* What the messages call it: its number, or the path that was given. */
static struct quoted
label_of(const struct target *target)
{
    struct quoted label;

    if (target->pid == 0) {
        return quote(target->path);
    }
    (void)snprintf(label.text, sizeof(label.text), "%d", (int)target->pid);
    return label;
}

/* Whether two names stand for one file; also where that cannot be found out. */
static bool
is_same_file(const char *a, const char *b)
{
    struct stat status_a;
    struct stat status_b;
    return stat(a, &status_a) < 0 || stat(b, &status_b) < 0 ||
           (status_a.st_dev == status_b.st_dev && status_a.st_ino == status_b.st_ino);
}

/* What stands here before the absolute paths of a process: nothing, if it sees the files that we
 * see. */
static void
find_root(pid_t pid, char *root, size_t size)
{
    char mounts[64];

    (void)snprintf(root, size, "/proc/%d/root", (int)pid);
    (void)snprintf(mounts, sizeof(mounts), "/proc/%d/ns/mnt", (int)pid);
    if (is_same_file(root, "/") && is_same_file(mounts, "/proc/self/ns/mnt")) {
        root[0] = '\0';
    }
}

/* The process of that id and its socket. In a container, a service with a /tmp of its own or a
 * chroot the socket is elsewhere, and under the number that the process has there. */
static struct target
target_of(pid_t pid)
{
    struct target target = {.pid = pid};
    char root[64] = "";

    if (pid > 0) {
        target.pid = thread_group(pid);
        find_root(target.pid, root, sizeof(root));
    }
    (void)snprintf(target.path, sizeof(target.path), "%s/tmp/manhole-%d", root,
                   pid > 0 ? (int)inner_pid(target.pid) : 0);
    return target;
}

/* A number means the process of that id and its /tmp/manhole-PID; so does a path that
 * ends like that, unless there is a socket at that very path: then it means that socket,
 * as does the path of any other one. NAME.ini is a configuration file. Ends the program when
 * text is nothing of the kind.
 */
static struct target
parse_target(const char *text)
{
    struct target target = target_of(parse_pid(text));
    bool has_path = text[0] != '\0' && strspn(text, "0123456789\n") != strlen(text);

    if (has_path && strcmp(text, target.path) != 0 && is_socket(text)) {
        target.by_path = true;
        if (strlen(text) >= SOCKET_PATH_SIZE) {
            fail_usage(
                "argument PID: the path of a socket has at most %d bytes, this one has "
                "%zu; go to its directory and give its name alone",
                SOCKET_PATH_SIZE - 1, strlen(text));
        }
        (void)snprintf(target.path, sizeof(target.path), "%s", text);
    }
    else if (has_ending(text, ".ini")) {
        target.config = text;
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
enum action { ACTION_CONSOLE, ACTION_RUN, ACTION_STACKS, ACTION_LIST, ACTION_CLEAN };

enum { FLAG_JSON = 1, FLAG_ALL = 2, FLAG_NO_DUMP = 4, FLAG_QUIET = 8, FLAG_RAW = 16 };

struct request {
    enum action action;
    unsigned flags;
    struct target target;       /* the first one */
    const char *pid[MAX_WORDS]; /* all that were given, as they were */
    size_t pids;
    double timeout_s; /* may be inf or nan; nan is over at once, as is what is negative */
    double deadline;  /* of what is run, by now_s() */
    int signal;       /* 0: none is sent */
    const char *code; /* of -c */
    const char *file; /* of -f */
    const char *argument[MAX_WORDS]; /* of the code */
    size_t arguments;
    struct buffer source;
    pid_t ancestor; /* of --children; 0: not given */
    const char *match;
    const char *host;
    const char *command;
    unsigned taken;                 /* bit i: options[i] was given, */
    const char *given[MAX_OPTIONS]; /* and with this argument */
};

/* Which options go ill together. */
enum group { NO_GROUP, SIGNAL_GROUP, ACTION_GROUP, PLACE_GROUP };

struct option {
    const char *heading;  /* in --help, before this row; NULL: the group goes on */
    const char *names[2]; /* the second may be NULL */
    const char *metavar;  /* NULL: takes no argument */
    const char *help;
    enum group group; /* at most one of these may be given */
    int constant;     /* of the signal, the action or the flag that it stands for */
    bool
        is_new; /* not python-manhole's: its name may not be what makes another ambiguous */
    bool is_literal;   /* its argument is the next word, whatever that looks like */
    bool is_elsewhere; /* says where, and is not said again over there */
    /* argument: NULL without metavar */
    void (*take)(const struct option *option, const char *argument,
                 struct request *request);
};

#define NUMBER_TEXT(number) NUMBER_TEXT_(number)
#define NUMBER_TEXT_(number) #number
#define DEFAULT_TIMEOUT_S 1

#define TAKES(name)                                                                      \
  static void name(const struct option *option, const char *argument,                    \
                   struct request *request)
TAKES(take_help);
TAKES(take_version);
TAKES(take_timeout);
TAKES(take_constant_signal);
TAKES(take_signal);
TAKES(take_code);
TAKES(take_file);
TAKES(take_action);
TAKES(take_flag);
TAKES(take_ancestor);
TAKES(take_match);
TAKES(take_host);
TAKES(take_command);

static const struct option options[] = {
    {
        .heading = "options", /* python-manhole's scripts look for it */
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
        .group = SIGNAL_GROUP,
        .constant = SIGUSR1,
        .take = take_constant_signal,
    },
    {
        .names = {"-2", "-USR2"},
        .help = "Send USR2 (" NUMBER_TEXT(SIGUSR2) ") to the process before connecting.",
        .group = SIGNAL_GROUP,
        .constant = SIGUSR2,
        .take = take_constant_signal,
    },
    {
        .names = {"-s", "--signal"},
        .metavar = "SIGNAL",
        .help = "Send the given SIGNAL to the process before connecting.",
        .group = SIGNAL_GROUP,
        .take = take_signal,
    },
    {
        .names = {"--no-dump"},
        .help = "A console without the stacks at its start.",
        .constant = FLAG_NO_DUMP,
        .is_new = true,
        .take = take_flag,
    },
    {
        .names = {"--quiet"},
        .help = "The same, and no remarks of manhole-cli; errors are still told.",
        .constant = FLAG_QUIET | FLAG_NO_DUMP,
        .is_new = true,
        .take = take_flag,
    },
    {
        .names = {"--raw"},
        .help = "Let control characters from the process through to the terminal.",
        .constant = FLAG_RAW,
        .is_new = true,
        .take = take_flag,
    },
    {
        .names = {"--version"},
        .help = "show the version and exit",
        .is_new = true,
        .take = take_version,
    },
    {
        .heading = "run and print",
        .names = {"-c"},
        .metavar = "CODE",
        .help =
            "Run CODE in the process, print its output only, and exit with its status. "
            "Words behind it are its sys.argv.",
        .group = ACTION_GROUP,
        .is_new = true,
        .is_literal = true,
        .take = take_code,
    },
    {
        .names = {"-f"},
        .metavar = "FILE",
        .help = "The same with the code in FILE; \"-\" is standard input.",
        .group = ACTION_GROUP,
        .is_new = true,
        .is_literal = true,
        .take = take_file,
    },
    {
        .names = {"--stacks"},
        .help = "Print the stacks of all threads and exit, also when the process hangs.",
        .group = ACTION_GROUP,
        .constant = ACTION_STACKS,
        .is_new = true,
        .take = take_action,
    },
    {
        .names = {"--json"},
        .help = "Print the stacks as one JSON document.",
        .constant = FLAG_JSON,
        .is_new = true,
        .take = take_flag,
    },
    {
        .heading = "which processes",
        .names = {"--list"},
        .help = "List the processes that have a manhole, and whether they answer.",
        .group = ACTION_GROUP,
        .constant = ACTION_LIST,
        .is_new = true,
        .take = take_action,
    },
    {
        .names = {"--clean"},
        .help = "Remove sockets of yours that nobody serves any more.",
        .group = ACTION_GROUP,
        .constant = ACTION_CLEAN,
        .is_new = true,
        .take = take_action,
    },
    {
        .names = {"--all"},
        .help = "Instead of PID: all processes of yours that have a manhole.",
        .constant = FLAG_ALL,
        .is_new = true,
        .take = take_flag,
    },
    {
        .names = {"--children"},
        .metavar = "PID",
        .help = "Of these, PID and all that come from it: a master with its workers.",
        .is_new = true,
        .take = take_ancestor,
    },
    {
        .names = {"--match"},
        .metavar = "REGEX",
        .help = "Of these, those whose command line matches REGEX.",
        .is_new = true,
        .take = take_match,
    },
    {
        .heading = "elsewhere",
        .names = {"--host"},
        .metavar = "HOST",
        .help = "On another machine, by ssh and the manhole-cli there.",
        .group = PLACE_GROUP,
        .is_new = true,
        .is_elsewhere = true,
        .take = take_host,
    },
    {
        .names = {"--exec"},
        .metavar = "COMMAND",
        .help = "In a container, by the manhole-cli there: \"docker exec -i NAME\".",
        .group = PLACE_GROUP,
        .is_new = true,
        .is_elsewhere = true,
        .take = take_command,
    },
};

#define OPTIONS (sizeof(options) / sizeof(options[0]))
_Static_assert(OPTIONS <= (size_t)MAX_OPTIONS, "struct request has room for all options");

/* All names of an option, for messages ("-s/--signal") and for --help ("-s SIGNAL,
 * --signal SIGNAL"). By value, like struct quoted. */
struct title {
    char text[TITLE_SIZE];
};

static struct title
title_of(const struct option *option)
{
    struct title title;
    bool is_single = option->names[1] == NULL;
    (void)snprintf(title.text, sizeof(title.text), "%s%s%s", option->names[0],
                   is_single ? "" : "/", is_single ? "" : option->names[1]);
    return title;
}

static struct title
synopsis_of(const struct option *option)
{
    struct title title;
    const char *gap = option->metavar != NULL ? " " : "";
    const char *metavar = option->metavar != NULL ? option->metavar : "";
    int length = snprintf(title.text, sizeof(title.text), "%s%s%s", option->names[0], gap,
                          metavar);
    if (option->names[1] != NULL) {
        (void)snprintf(title.text + length, sizeof(title.text) - (size_t)length,
                       ", %s%s%s", option->names[1], gap, metavar);
    }
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

/* Those that the rows name. What they are given has been matched to the row: an argument
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
    for (size_t i = 0; i < OPTIONS; i++) {
        if (options[i].heading != NULL) {
            (void)printf("\n%s:\n", options[i].heading);
        }
        print_entry(synopsis_of(&options[i]).text, options[i].help);
    }
    leave(STATUS_OK);
}

static void
take_version(const struct option *option, const char *argument, struct request *request)
{
    (void)option;
    (void)argument;
    (void)request;
#ifdef HAVE_LIBEDIT
    static const char editing[] = " (lines are edited by libedit)";
#else
    static const char editing[] = " (no line editing)";
#endif
    (void)printf("%s %s%s\n", program, MANHOLE_VERSION, editing);
    leave(STATUS_OK);
}

static void
take_code(const struct option *option, const char *argument, struct request *request)
{
    (void)option;
    request->action = ACTION_RUN;
    request->code = argument;
}

static void
take_file(const struct option *option, const char *argument, struct request *request)
{
    (void)option;
    request->action = ACTION_RUN;
    request->file = argument;
}

static void
take_action(const struct option *option, const char *argument, struct request *request)
{
    (void)argument;
    request->action = (enum action)option->constant;
}

static void
take_flag(const struct option *option, const char *argument, struct request *request)
{
    (void)argument;
    request->flags |= (unsigned)option->constant;
}

static void
take_ancestor(const struct option *option, const char *argument, struct request *request)
{
    request->ancestor = parse_pid(argument);
    if (request->ancestor == 0) {
        fail_usage(
            "argument %s: PID must be in one of these forms: 1234 or /tmp/manhole-1234",
            title_of(option).text);
    }
}

static void
take_match(const struct option *option, const char *argument, struct request *request)
{
    (void)option;
    request->match = argument;
}

static void
take_host(const struct option *option, const char *argument, struct request *request)
{
    (void)option;
    request->host = argument;
}

static void
take_command(const struct option *option, const char *argument, struct request *request)
{
    (void)option;
    request->command = argument;
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
            if (candidate != NULL && strlen(candidate) == length &&
                strncmp(candidate, name, length) == 0) {
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

    /* What is short for one of python-manhole's options stays so. */
    for (size_t i = 0; i < OPTIONS && (found == 0 || !options[i].is_new); i++) {
        for (size_t j = 0; j < 2; j++) {
            const char *name = options[i].names[j];
            const char *argument = NULL;
            if (name != NULL && may_mean(text, name, &argument)) {
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
    for (size_t i = 0; option->group != NO_GROUP && i < OPTIONS; i++) {
        if (options[i].group == option->group && &options[i] != option &&
            (request->taken & 1U << i) != 0) {
            fail_usage("argument %s: not allowed with argument %s", title_of(option).text,
                       title_of(&options[i]).text);
        }
    }
    request->taken |= 1U << (option - options);
    request->given[option - options] = argument;
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
};

static bool
takes_literal(const char *text)
{
    const struct option *option = find_option(text, strlen(text));
    return option != NULL && option->is_literal;
}

/* Whether the word at i is one that an option before it takes as it is. Of such options in a row
 * every other one is itself a word that was taken: -c -c x */
static bool
is_literal(const struct words *words, int i)
{
    int row = 0;
    while (row < i && takes_literal(words->text[i - 1 - row])) {
        row++;
    }
    return row % 2 == 1 && i < words->count && i - 1 < words->dashes;
}

/* Whether there is a word at i and it is no option; the first "--" is neither. */
static bool
is_argument(const struct words *words, int i)
{
    return is_literal(words, i) ||
           (i < words->count && i != words->dashes &&
            (i > words->dashes || !classify_word(words->text[i]).is_option));
}

/* Whether the processes are known without a PID. */
static bool
is_selection(const struct request *request)
{
    return (request->flags & FLAG_ALL) != 0 || request->ancestor != 0 ||
           request->match != NULL;
}

/* Takes a word that stands behind -c or -f and is neither an option nor the PID. */
static int
take_argument_of_code(const struct words *words, int i, struct request *request)
{
    if (request->action != ACTION_RUN || (request->pids == 0 && !is_selection(request))) {
        return 0;
    }
    if (i == words->dashes) {
        return 1;
    }
    if (!is_argument(words, i) || request->arguments == MAX_WORDS) {
        return 0;
    }
    request->argument[request->arguments++] = words->text[i];
    return 1;
}

/* Takes the PID if it is here, with a "--" before or behind it. Returns how many words
 * that was, as the next function does. */
static int
take_pid(const struct words *words, int i, struct request *request)
{
    int at = i == words->dashes ? i + 1 : i;

    if (request->pids > 0 || !is_argument(words, at)) {
        return 0;
    }
    request->pid[request->pids++] = words->text[at];
    if (request->host == NULL &&
        request->command == NULL) { /* else it means one over there */
        request->target = parse_target(words->text[at]);
    }
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

/* Takes more PIDs, where what is asked for can be had of several. */
static void
take_more_pids(struct words *words, struct request *request)
{
    bool may_be_several =
        request->action == ACTION_RUN || request->action == ACTION_STACKS;

    for (int i = 0; i < words->extra; i++) {
        if (!may_be_several || words->text[i][0] == '-' || request->pids == MAX_WORDS) {
            fail_extra_words(words);
        }
        request->pid[request->pids++] = words->text[i];
    }
}

/* What the options say together that none says alone. */
static void
settle_request(struct request *request)
{
    if ((request->flags & FLAG_JSON) != 0 && request->action == ACTION_CONSOLE) {
        request->action = ACTION_STACKS;
    }
    if ((request->flags & FLAG_JSON) != 0 && request->action != ACTION_STACKS) {
        fail_usage("argument --json: only with --stacks");
    }
    for (size_t i = 0;
         i < request->pids && request->host == NULL && request->command == NULL; i++) {
        struct target target =
            request->pids > 1 ? parse_target(request->pid[i]) : request->target;
        if (target.config != NULL && request->action != ACTION_CONSOLE) {
            fail_usage("argument PID: %s is a configuration file, which opens a shell to "
                       "choose a process in; give the PID or the socket of one",
                       quote(target.config).text);
        }
    }
}

/* Reads the command line; ends the program when it is wrong or asks for help. Options
 * count from left to right, the PID stands anywhere between them. */
static void
parse_command_line(int argc, char **argv, struct request *request)
{
    struct words words = {.text = argv + 1, .count = argc > 0 ? argc - 1 : 0};
    bool needs_pid = false;

    /* An option that is ambiguous is an error before any other takes effect. */
    words.dashes = words.count;
    for (int i = 0; i < words.dashes; i++) {
        if (!is_literal(&words, i)) {
            if (strcmp(words.text[i], "--") == 0) {
                words.dashes = i;
                break;
            }
            (void)classify_word(words.text[i]);
        }
    }
    for (int i = 0; i < words.count;) {
        int taken = take_argument_of_code(&words, i, request);
        if (taken == 0) {
            taken = take_pid(&words, i, request);
        }
        if (taken == 0) {
            taken = take_bundle(&words, i, request);
        }
        if (taken == 0) {
            words.text[words.extra++] = words.text[i];
            taken = 1;
        }
        i += taken;
    }
    needs_pid = request->action != ACTION_LIST && request->action != ACTION_CLEAN &&
                !is_selection(request) &&
                !(words.count == 0 && terminal.is_typed_on && terminal.is_shown_on);
    if (request->pids == 0 && needs_pid) {
        fail_usage("the following arguments are required: PID");
    }
    take_more_pids(&words, request);
    settle_request(request);
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
    if (user == 0 || seteuid(user) == 0) {
        result = connect(fd, (const struct sockaddr *)&address, sizeof(address));
    }
    error = errno;
    if (user != 0 && seteuid(0) < 0) {
        fail(STATUS_TROUBLE, "cannot be root again: %m");
    }
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
                  (int)pid, python);
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
    char *field = NULL; /* the state, after a name that may have anything in it */
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
            flags = strtoul(field, &field, 10);
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

/* ======================================================================================
 * Signals: let in only while we wait, so that they can be dealt with as any other news.
 * Before there is a connection Ctrl-C simply ends the program.
 * ======================================================================================
 */

static volatile sig_atomic_t is_signal_due[NSIG];
static sigset_t mask_while_waiting;

/* Only what signal-safety(7) allows. */
static void
on_signal(int number)
{
    is_signal_due[number] = 1;
}

/* The same; there is nothing to tidy up. */
static void
on_early_interrupt(int number)
{
    (void)number;
    _exit(STATUS_INTERRUPTED);
}

/* Unless the caller has the signal ignored (nohup, "&" in a script). Returns whether it is not. */
static bool
set_handler(int number, void (*handler)(int))
{
    struct sigaction action = {.sa_flags = 0};

    if (sigaction(number, NULL, &action) == 0 && action.sa_handler == SIG_IGN) {
        return false;
    }
    action = (struct sigaction){.sa_handler = handler, .sa_flags = SA_RESTART};
    return sigaction(number, &action, NULL) == 0;
}

/* From now on take_due() tells of it. */
static void
follow_signal(int number)
{
    static bool is_first = true;
    sigset_t set;

    (void)sigemptyset(&set);
    (void)sigaddset(&set, number);
    (void)pthread_sigmask(SIG_BLOCK, &set, is_first ? &mask_while_waiting : NULL);
    is_first = false;
    (void)set_handler(number, on_signal);
}

/* Whether it has come since the last call. */
static bool
take_due(int number)
{
    bool is_due = is_signal_due[number] != 0;
    is_signal_due[number] = 0;
    return is_due;
}

/* As poll(), with the signals that are followed let in: -1 then, to be looked at. */
static int
poll_with_signals(struct pollfd fds[], nfds_t count, int patience_ms)
{
    struct timespec patience = {.tv_sec = patience_ms / 1000,
                                .tv_nsec = patience_ms % 1000 * 1000000L};
    int ready =
        ppoll(fds, count, patience_ms < 0 ? NULL : &patience, &mask_while_waiting);

    if (ready < 0 && errno != EINTR) {
        fail(STATUS_TROUBLE, "cannot wait for input: %m");
    }
    if (ready > 0) {
        /* ppoll() lets none in when it need not wait, as beside a flood of output. */
        sigset_t blocked;
        (void)pthread_sigmask(SIG_SETMASK, &mask_while_waiting, &blocked);
        (void)pthread_sigmask(SIG_SETMASK, &blocked, NULL);
    }
    return ready;
}

/* ======================================================================================
 * Side channels: a second connection, whose calling card says what it wants to know of the
 * first one's session. The console's own bytes stay what they always were.
 * ======================================================================================
 */

/* After an interrupted or premature call the next poll() decides anew. */
static bool
is_passing(int error)
{
    return error == EINTR || error == EAGAIN;
}

/* Asks and adds the answer, to its end or that of the patience. Returns false, with whatever
 * has come until then, when that was not the end. */
static bool
ask_aside(const struct target *target, const char *wish, const struct buffer *question,
          int patience_ms, struct buffer *answer)
{
    static unsigned count;
    double deadline = now_s() + patience_ms / 1e3;
    char name[32];
    char bytes[4096];
    ssize_t length = -1;
    struct pollfd server = {.events = POLLIN};

    (void)snprintf(name, sizeof(name), "%s.%u", wish, ++count);
    server.fd = open_socket(name);
    if (connect_once(server.fd, target) == 0 && is_right_server(server.fd, target)) {
        if (question != NULL) {
            (void)send(server.fd, question->data, question->length, MSG_NOSIGNAL);
        }
        while (length != 0) {
            double left_ms = (deadline - now_s()) * 1e3;
            if (left_ms <= 0 || poll(&server, 1, (int)left_ms + 1) != 1) {
                break;
            }
            length = recv(server.fd, bytes, sizeof(bytes), 0);
            append(answer, bytes, length > 0 ? (size_t)length : 0);
            length = length < 0 && is_passing(errno) ? 1 : length < 0 ? 0 : length;
        }
    }
    (void)close(server.fd);
    return length == 0;
}

enum interruption {
    SESSION_INTERRUPTED,
    SESSION_IDLE,
    SESSION_LEFT, /* the client is to go */
};

/* The last Ctrl-C that interrupted something. */
static struct interrupt {
    double sent_s;
    bool is_due;  /* what it was for has not ended yet, */
    bool is_told; /* and the user knows */
} interrupt = {.sent_s = -1e9};

static const char interrupt_is_late[] =
    "manhole-cli: still running: KeyboardInterrupt comes when the call returns; Ctrl-C "
    "again leaves";

/* Whether it has had no effect for some time. That is to be said, once. */
static bool
is_interrupt_late(void)
{
    bool is_late = interrupt.is_due && !interrupt.is_told &&
                   now_s() - interrupt.sent_s >= INTERRUPT_PATIENCE_MS / 1e3;

    interrupt.is_told = interrupt.is_told || is_late;
    return is_late;
}

/* How long to wait for something else, for which there are patience_ms; -1: for ever. */
static int
until_interrupt_is_late(int patience_ms)
{
    double left_ms = (interrupt.sent_s - now_s()) * 1e3 + INTERRUPT_PATIENCE_MS;

    if (!interrupt.is_due || interrupt.is_told ||
        (patience_ms >= 0 && patience_ms <= left_ms)) {
        return patience_ms;
    }
    return left_ms > 0 ? (int)left_ms + 1 : 0;
}

/* Ctrl-C: the first one interrupts what our session runs. A second one leaves it running, if that
 * still runs, when it comes soon after, or when the user was told; so does the first one with a
 * server that knows no interrupts. */
static enum interruption
interrupt_session(const struct target *target)
{
    struct buffer answer = {.data = NULL}; /* owned */
    bool is_early =
        interrupt.is_told || now_s() - interrupt.sent_s < INTERRUPT_PATIENCE_MS / 1e3;
    enum interruption outcome = SESSION_LEFT;

    (void)ask_aside(target, "interrupt", NULL, INTERRUPT_PATIENCE_MS, &answer);
    if (strcmp(text_of(&answer), "idle\n") == 0) {
        outcome = SESSION_IDLE;
    }
    else if (strcmp(text_of(&answer), "interrupted\n") == 0 ||
             (strcmp(text_of(&answer), "still running\n") == 0 && !is_early)) {
        interrupt = (struct interrupt){.sent_s = now_s(), .is_due = true};
        outcome = SESSION_INTERRUPTED;
    }
    else if (strcmp(text_of(&answer), "still running\n") == 0) {
        (void)fprintf(stderr,
                      "\nmanhole-cli: left; the statement has not ended yet and is "
                      "interrupted again by the process every second until it does\n");
    }
    free(answer.data);
    return outcome;
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

/* ======================================================================================
 * History: what was typed at a terminal, for the next time. A line each, as readline
 * keeps it. Clients side by side append under a lock, a line in one write(), so their lines
 * do not mix; who finds the file too long when he starts keeps its last half, in place.
 * ======================================================================================
 */

static char history_path[PATH_MAX]; /* "": nothing is kept */

/* Returns it locked, or -1. To have no history is no error. */
static int
lock_history(int flags)
{
    struct stat status;
    int fd = history_path[0] == '\0'
                 ? -1
                 : open(history_path, flags | O_CREAT | O_CLOEXEC | O_NOCTTY | O_NONBLOCK,
                        0600);
    /* Who wants none kept has a link to /dev/null there. */
    if (fd >= 0 &&
        (fstat(fd, &status) < 0 || !S_ISREG(status.st_mode) || flock(fd, LOCK_EX) < 0)) {
        (void)close(fd);
        history_path[0] = '\0';
        return -1;
    }
    return fd;
}

/* Keeps the last half of a file that has grown too long. */
static void
shorten_history(int fd)
{
    struct stat status;
    struct buffer kept = {.data = NULL}; /* owned */
    char bytes[4096];
    off_t from = 0;
    ssize_t count = 0;
    size_t start = 0;

    if (fstat(fd, &status) < 0 || status.st_size <= HISTORY_SIZE) {
        return;
    }
    from = status.st_size - HISTORY_SIZE / 2;
    while ((count = pread(fd, bytes, sizeof(bytes), from)) > 0) {
        append(&kept, bytes, (size_t)count);
        from += count;
    }
    start = line_length(&kept);
    /* In this order nothing is lost when we end in between. */
    if (count == 0 && pwrite(fd, text_of(&kept) + start, kept.length - start, 0) ==
                          (ssize_t)(kept.length - start)) {
        (void)!ftruncate(fd, (off_t)(kept.length - start));
    }
    free(kept.data);
}

/* Finds ~/.manhole_history if lines will come from a terminal. */
static void
find_history(void)
{
    /* NOLINTNEXTLINE(concurrency-mt-unsafe): there is one thread */
    const char *home = getenv("HOME");
    char names[4096];
    struct passwd entry;
    struct passwd *found = NULL;
    int fd = -1;

    if (!terminal.is_typed_on) {
        return;
    }
    if ((home == NULL || home[0] == '\0') &&
        getpwuid_r(getuid(), &entry, names, sizeof(names), &found) == 0 &&
        found != NULL) {
        home = found->pw_dir;
    }
    if (home == NULL ||
        snprintf(history_path, sizeof(history_path), "%s/.manhole_history", home) >=
            (int)sizeof(history_path)) {
        history_path[0] = '\0';
    }
    fd = lock_history(O_RDWR);
    if (fd >= 0) {
        (void)fchmod(fd, 0600);
        shorten_history(fd);
        (void)close(fd);
    }
}

/* Appends a line, given with its newline. Neither an empty one is kept nor one beyond the
 * limit. */
static void
remember_line(const char *line, size_t length)
{
    int fd = -1;

    if (length <= 1 || length > HISTORY_LINE_SIZE) {
        return;
    }
    fd = lock_history(O_WRONLY | O_APPEND);
    if (fd >= 0) {
        (void)!write(fd, line, length);
        (void)close(fd);
    }
}

/* Gathers what was read into lines. */
static void
remember_typed(const char *bytes, size_t count)
{
    static struct buffer typed;
    size_t length = 0;

    if (history_path[0] != '\0') {
        append(&typed, bytes, count);
        while ((length = line_length(&typed)) > 0) {
            remember_line(typed.data, length);
            drop(&typed, length);
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

/* What is typed at a terminal goes to a server that is told so, for Ctrl-C and Ctrl-D are for who
 * reads there: the console, input() or Pdb. They go over as those bytes, and two more stand around
 * what is pasted, which the console runs as one. The server in turn says between two bytes when
 * somebody begins to read, "?" and the prompt, if it is one of the console's, and when he has
 * something, "!". Who puts no such marks takes no keys either. */
enum { MARK_BEGIN = 1, MARK_END = 2, MARK_SIZE = 256 };
enum { KEY_PASTE = 2, KEY_INTERRUPT = 3, KEY_END = 4, KEY_PASTED = 5 };

enum mark { NO_MARK, MARK_UNFINISHED, MARK_WAITS, MARK_HAS_READ, MARK_BROKEN };

static struct marks {
    bool are_put;
    bool is_inside;
    struct buffer text; /* of one, so far */
    bool is_asked;      /* by who is not the console that begins a statement */
} marks;

/* What has come with a byte. A broken one was none: its text is to be shown. */
static enum mark
take_mark(char byte)
{
    if (!marks.is_inside) {
        empty(&marks.text);
        marks.is_inside = byte == MARK_BEGIN;
        return marks.is_inside ? MARK_UNFINISHED : NO_MARK;
    }
    if (byte != MARK_END) {
        append(&marks.text, &byte, 1);
        marks.is_inside = byte != '\n' && marks.text.length < MARK_SIZE;
        return marks.is_inside ? MARK_UNFINISHED : MARK_BROKEN;
    }
    marks.is_inside = false;
    if (strcmp(text_of(&marks.text), "!") == 0) {
        marks.is_asked = false;
        return MARK_HAS_READ;
    }
    if (marks.text.length == 0 || marks.text.data[0] != '?') {
        return MARK_BROKEN;
    }
    marks.is_asked = marks.text.length == 1 || strcmp(marks.text.data, "?... ") == 0;
    marks.are_put = true;
    interrupt.is_due = interrupt.is_told = false;
    return MARK_WAITS;
}

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

/* Instead of what was typed and is not written yet, of which Ctrl-D finds nothing. */
static void
press_key(struct flow *typed, char key)
{
    typed->bytes[0] = key;
    typed->start = 0;
    typed->end = 1;
}

/* Standard input may be shared with others, so it stays in blocking mode: poll() has just
 * said that a read will not block. At its end the server is told, and may go on writing; at a
 * terminal that is still there it was but Ctrl-D.
 */
static void
read_stdin(struct flow *typed, int server, bool is_hung_up)
{
    ssize_t count = read(terminal.input, typed->bytes, sizeof(typed->bytes));

    if (count < 0 && is_passing(errno)) {
        return;
    }
    if (count < 0) {
        say_error("cannot read standard input: %m; taken as its end");
    }
    if (count == 0 && marks.are_put && !is_hung_up) {
        press_key(typed, KEY_END);
        return;
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

/* After a server has closed, which shows when we read: it may still have something to say. */
static bool
is_gone(int error)
{
    return error == EPIPE || error == ECONNRESET;
}

static void
write_server(struct flow *typed, int server)
{
    ssize_t count = send(server, typed->bytes + typed->start, typed->end - typed->start,
                         MSG_NOSIGNAL);

    if (count >= 0) {
        typed->start += (size_t)count;
    }
    else if (is_gone(errno)) {
        typed->start = typed->end;
        typed->is_over = true;
    }
    else if (!is_passing(errno)) {
        fail(STATUS_TROUBLE, "cannot send on what was typed: %m");
    }
}

/* Leaves out the marks, but for the prompts in them. Of a broken one what came before is put in. */
static void
leave_out_marks(struct flow *shown)
{
    static struct buffer text;

    for (size_t i = 0; i < shown->end; i++) {
        enum mark mark = take_mark(shown->bytes[i]);
        if (mark == NO_MARK) {
            append(&text, shown->bytes + i, 1);
        }
        else if (mark == MARK_WAITS || mark == MARK_BROKEN) {
            append_text(&text, marks.text.data + (mark == MARK_WAITS ? 1 : 0));
        }
    }
    memcpy(shown->bytes, text_of(&text), text.length);
    shown->end = text.length;
    empty(&text);
}

/* Makes what came harmless for a terminal. It grows by the factor of GROWTH at most. */
enum { GROWTH = 4 };

static void
tame(struct flow *shown)
{
    static struct buffer unfinished; /* a character of which the rest is still to come */
    static struct buffer tamed;
    size_t whole = 0;

    append(&unfinished, shown->bytes, shown->end);
    whole = unfinished.length - count_unfinished(unfinished.data, unfinished.length);
    append_harmless(&tamed, unfinished.data, whole);
    drop(&unfinished, whole);
    memcpy(shown->bytes, tamed.data, tamed.length);
    shown->end = tamed.length;
    empty(&tamed);
}

/* A reset is an end as well: so a server's close looks when it has not read all that we sent. */
static void
read_server(struct flow *shown, int server)
{
    bool is_tamed = terminal.is_shown_on && !terminal.is_raw;
    size_t size =
        is_tamed ? sizeof(shown->bytes) / GROWTH - MB_LEN_MAX : sizeof(shown->bytes);
    ssize_t count = recv(server, shown->bytes, size - MARK_SIZE, 0);

    if (count > 0) {
        shown->start = 0;
        shown->end = (size_t)count;
        if (terminal.is_typed_on) {
            leave_out_marks(shown);
        }
        if (is_tamed) {
            tame(shown);
        }
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

    fds[INPUT] =
        (struct pollfd){.fd = reads_input ? terminal.input : -1, .events = POLLIN};
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

/* Ctrl-C: interrupts who asks for something, or what the process runs. Without a terminal, and
 * where there is nothing to interrupt by, it ends the client. Returns whether to go on. */
static bool
may_go_on(const struct target *target, struct flow *typed)
{
    enum interruption outcome = SESSION_LEFT;

    if (marks.is_asked) {
        press_key(typed, KEY_INTERRUPT);
        return true;
    }
    if (terminal.is_typed_on) {
        outcome = interrupt_session(target);
    }
    if (outcome == SESSION_IDLE) {
        (void)fprintf(stderr, "\nmanhole-cli: nothing is running; Ctrl-D leaves\n");
    }
    return outcome != SESSION_LEFT;
}

/* Says that the server has closed before it should have, and whether it was its process's end. */
static enum exit_status
say_cut(int server, const struct target *target, const char *what)
{
    say_error("process %s has %s before %s", label_of(target).text,
              has_ended(server_pid(server)) ? "ended" : "closed the connection", what);
    return STATUS_CUT;
}

/* Whether what was read last is what a console says at the end of its input: its process may end
 * right after it, having waited for that. */
static bool
is_farewell(const char *bytes, size_t count)
{
    static const char farewell[] = "now exiting ManholeConsole...\n";
    const size_t length = sizeof(farewell) - 1;
    return count >= length && memcmp(bytes + count - length, farewell, length) == 0;
}

/* The status of a console that the server has closed. */
static enum exit_status
conclude_console(int server, const struct target *target, bool was_farewell)
{
    return !was_farewell && has_ended(server_pid(server))
               ? say_cut(server, target, "its console was left")
               : STATUS_OK;
}

/* Copies both ways until the server has closed and all it wrote is shown. Ctrl-C is let in while
 * it waits, and only then. */
static enum exit_status
relay(int server, const struct target *target)
{
    static struct flow typed;
    static struct flow shown;
    struct pollfd fds[POLLED];
    bool is_silent = true;
    bool was_farewell = false;

    follow_signal(SIGINT);
    while (!shown.is_over || is_pending(&shown)) {
        choose_events(fds, &typed, &shown, server);
        int patience_ms =
            until_interrupt_is_late(is_silent ? FIRST_BYTE_PATIENCE_S * 1000 : -1);
        int ready = poll_with_signals(fds, POLLED, patience_ms);
        if (is_interrupt_late()) {
            (void)fprintf(stderr, "\n%s\n", interrupt_is_late);
        }
        else if (ready == 0) {
            is_silent = false; /* said once */
            (void)say_hindrance(server_pid(server));
        }
        if (take_due(SIGINT) && !may_go_on(target, &typed)) {
            return STATUS_INTERRUPTED;
        }
        if (ready <= 0) {
            continue;
        }
        is_silent = is_silent && fds[SERVER].revents == 0;
        if (fds[OUTPUT].revents != 0 && !write_stdout(&shown)) {
            return STATUS_OUTPUT_GONE;
        }
        serve_server(&fds[SERVER], &typed, &shown);
        if (is_pending(&shown)) {
            was_farewell = is_farewell(shown.bytes, shown.end);
        }
        if (fds[INPUT].revents != 0) {
            read_stdin(&typed, server, (fds[INPUT].revents & POLLHUP) != 0);
        }
    }
    return conclude_console(server, target, was_farewell);
}

/* ======================================================================================
 * Editor: the console at a terminal, when libedit is there: lines are edited, remembered
 * and completed here, and what the process says meanwhile appears above them.
 *
 * The last line of what the server wrote, as long as no newline ends it, is the editor's
 * prompt; all before it is output. So each prompt works, that of pdb or input() as well.
 * Marks tell when it is one, see take_mark(): what arrives behind it, until a line is sent or the
 * reader has one that was sent before, was written by other threads and never becomes part of it.
 *
 * libedit calls read_key() whenever it wants a key, and all waiting is done there, for the
 * keys, the server and signals alike. The latter are blocked everywhere else.
 * ======================================================================================
 */

#ifdef HAVE_LIBEDIT

/* Cells and columns: where the cursor is after text that began in column 0. */
struct place {
    int row;
    int column;
};

enum way_out { NO_WAY_OUT, SERVER_CLOSED, LINE_CANCELLED, LEFT, INPUT_ENDED };

static struct editor {
    EditLine *el;
    History *history;
    const struct target *target;
    int server;
    bool is_waiting;         /* somebody reads there, nothing was sent since */
    bool is_typing;          /* libedit shows a line */
    bool was_farewell;       /* what came last */
    enum way_out way_out;    /* why read_key() gave up */
    struct buffer line;      /* of the session, since its last newline */
    size_t asked;            /* bytes at its end that are the console's prompt */
    struct buffer aside;     /* the same of other threads, while a prompt stands */
    struct buffer out;       /* lines on their way to the terminal */
    struct buffer prompt;    /* as libedit wants it */
    struct place prompt_end; /* where it ends on the screen */
    bool is_stale;           /* what is shown of it is not what it should be */
    struct buffer unsent;    /* to the server */
    struct buffer keys;      /* read, and not yet asked for */
    struct buffer paste;     /* what was pasted behind the line that is being typed */
    struct buffer block;     /* lines to be sent with it */
    bool is_block;           /* it is one of several, or a whole one was pasted */
    struct buffer preset;    /* what the next line begins with */
    bool is_pasting;         /* a paste has begun, and not ended */
} editor;

/* ---- What the server says ---------------------------------------------------------- */

/* How many cells of the terminal a character takes. */
static int
cells_of(wchar_t c)
{
    int cells = wcwidth(c);
    return cells >= 0 ? cells : c < 0x20 || c == 0x7f ? 2 : 1;
}

static void
move_over(struct place *place, wchar_t c, int columns)
{
    int cells = c == '\t' ? 8 - place->column % 8 : cells_of(c);

    if (place->column + cells > columns) {
        place->row++;
        place->column = 0;
    }
    place->column += cells;
    if (place->column >= columns) {
        place->row++;
        place->column = 0;
    }
}

/* Returns 80 where the terminal does not say. */
static int
count_columns(void)
{
    struct winsize size = {.ws_col = 0};
    return ioctl(STDOUT_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_col > 1 ? size.ws_col
                                                                           : 80;
}

/* How many bytes of a line without end fill whole rows of the terminal, so that a newline
 * behind them is not seen. 0: it is shorter than a row. */
static size_t
whole_rows(const struct buffer *line)
{
    struct place place = {.row = 0};
    int columns = count_columns();
    size_t whole = 0;

    for (size_t i = 0; i < line->length;) {
        const unsigned char *text = (const unsigned char *)line->data + i;
        size_t length = sequence_length(text);
        int row = place.row;
        move_over(&place, length > 0 ? decode(text, length) : L'?', columns);
        if (place.row > row) {
            whole = place.column == 0 ? i + length : i;
        }
        i += length > 0 ? length : 1;
    }
    return whole;
}

/* Lines without end neither grow for ever nor become a prompt that fills the screen. */
static void
shorten(struct buffer *line)
{
    size_t whole = whole_rows(line);
    if (whole > 0) {
        append_line(&editor.out, line->data, whole);
        drop(line, whole);
    }
}

static void
take_text(char byte)
{
    struct buffer *line = editor.is_waiting ? &editor.aside : &editor.line;

    if (byte == '\n') {
        append_line(&editor.out, text_of(line), line->length);
        empty(line);
        editor.is_stale = true;
    }
    else {
        append(line, &byte, 1);
        editor.is_stale = editor.is_stale || !editor.is_waiting;
        if (line->length >= HISTORY_LINE_SIZE) {
            shorten(line);
        }
    }
}

/* Somebody reads. */
static void
begin_waiting(const char *prompt)
{
    shorten(&editor.line);
    append_text(&editor.line, prompt);
    editor.asked = strlen(prompt);
    editor.is_waiting = editor.is_stale = true;
}

/* What is written next is the session's again, behind what other threads have. */
static void
end_waiting(void)
{
    append(&editor.line, text_of(&editor.aside), editor.aside.length);
    empty(&editor.aside);
    editor.asked = 0;
    editor.is_waiting = false;
    editor.is_stale = true;
}

/* The reader has a line that was sent before he asked: the console's prompt asks for no other. */
static void
take_back_prompt(void)
{
    if (editor.is_waiting) {
        editor.line.length -= editor.asked;
        append(&editor.line, "", 0);
        end_waiting();
    }
}

static void
take_byte(char byte)
{
    switch (take_mark(byte)) {
    case NO_MARK:
        take_text(byte);
        break;
    case MARK_UNFINISHED:
        break;
    case MARK_WAITS:
        begin_waiting(marks.text.data + 1);
        break;
    case MARK_HAS_READ:
        take_back_prompt();
        break;
    case MARK_BROKEN:
        for (size_t i = 0; i < marks.text.length; i++) {
            take_text(marks.text.data[i]);
        }
        break;
    }
}

static bool
ends_with(const struct buffer *line, const char *text)
{
    size_t length = strlen(text);
    return line->length >= length &&
           strcmp(line->data + line->length - length, text) == 0;
}

/* For a server that puts no marks: a prompt is what looks like one and has nothing behind it. */
static void
guess_prompt(struct buffer *line)
{
    if (ends_with(line, ">>> ") || ends_with(line, "... ")) {
        struct buffer prompt = *line;
        *line = editor.line;
        editor.line = prompt;
        empty(&editor.aside);
        editor.asked = editor.line.length;
        editor.is_waiting = editor.is_stale = true;
    }
}

/* Takes what has arrived: output, a new prompt, or the end. */
static void
take_output(void)
{
    static char bytes[CHUNK_SIZE];
    ssize_t count = recv(editor.server, bytes, sizeof(bytes), 0);

    if (count == 0 || (count < 0 && !is_passing(errno))) {
        editor.way_out = SERVER_CLOSED;
        return;
    }
    for (ssize_t i = 0; i < count; i++) {
        take_byte(bytes[i]);
    }
    editor.was_farewell = count > 0 && is_farewell(bytes, (size_t)count);
    if (!marks.are_put) {
        guess_prompt(editor.is_waiting ? &editor.aside : &editor.line);
    }
    if (!editor.is_waiting) {
        shorten(&editor.line);
    }
}

/* ---- The screen -------------------------------------------------------------------- */

static void
move_over_text(struct place *place, const struct buffer *shown)
{
    int columns = count_columns();
    for (size_t i = 0; i < shown->length;) {
        const unsigned char *text = (const unsigned char *)shown->data + i;
        size_t length = sequence_length(text);
        move_over(place, length > 0 ? decode(text, length) : L'?', columns);
        i += length > 0 ? length : 1;
    }
}

/* For libedit. Between two bytes '\1' stands what takes no room. libedit writes that along with the
 * character behind it, and not at all when there is none: so where the colour ends, the blank that
 * ends the prompt is written once more. */
static char *
prompt_of(EditLine *el)
{
    const char *line = text_of(&editor.line);
    const char *carriage_return = strrchr(line, '\r');
    const char *text = carriage_return != NULL ? carriage_return + 1 : line;
    struct buffer shown = {.data = NULL}; /* owned */
    bool is_painted = false;

    (void)el;
    append_harmless(&shown, text, strlen(text));
    is_painted = terminal.has_colours && editor.asked > 0 && ends_with(&shown, " ");
    empty(&editor.prompt);
    append_text(&editor.prompt, is_painted ? "\1\033[1;32m\1" : "");
    append(&editor.prompt, text_of(&shown), shown.length - (is_painted ? 1 : 0));
    append_text(&editor.prompt, is_painted ? "\1 \033[0m\b\1 " : "");
    editor.prompt_end = (struct place){.row = 0};
    move_over_text(&editor.prompt_end, &shown);
    editor.is_stale = false;
    free(shown.data);
    return editor.prompt.data;
}

/* Puts the cursor where the prompt begins, and clears all from there on. */
static void
hide_line(void)
{
    struct place place = editor.prompt_end;
    const LineInfoW *line = el_wline(editor.el);
    int columns = count_columns();

    for (const wchar_t *c = line->buffer; c < line->cursor; c++) {
        move_over(&place, *c, columns);
    }
    (void)fputs("\r", stdout);
    if (place.row > 0) {
        (void)printf("\033[%dA", place.row);
    }
    (void)fputs("\033[J", stdout);
}

/* Shows what has gathered, above the line being typed if there is one, and that again. */
static void
show_output(void)
{
    bool is_due = editor.out.length > 0 || (editor.is_typing && editor.is_stale);

    if (is_due && editor.is_typing) {
        hide_line();
    }
    (void)fwrite(text_of(&editor.out), 1, editor.out.length, stdout);
    empty(&editor.out);
    if (is_due && editor.is_typing) {
        (void)el_set(editor.el, EL_REFRESH);
    }
    /* EIO: the terminal is gone. */
    if (fflush(stdout) != 0 && (errno == EPIPE || errno == EIO)) {
        leave(STATUS_OUTPUT_GONE);
    }
}

/* A remark of our own among the output. */
static void
say_note(const char *text)
{
    append_paint(&editor.out, FAINT, text);
    append_text(&editor.out, "\n");
}

/* Puts the terminal in or out of the editor's hands, and has it mark pasted text. */
static void
hold_terminal(bool is_held)
{
    (void)el_set(editor.el, EL_PREP_TERM, is_held ? 1 : 0);
    (void)fputs(is_held ? "\033[?2004h" : "\033[?2004l", stdout);
    (void)fflush(stdout);
}

/* On every way out, exit() from anywhere included. */
static void
release_terminal(void)
{
    if (editor.el != NULL) {
        hold_terminal(false);
    }
}

static void
send_unsent(void)
{
    ssize_t count = editor.unsent.length == 0 ? 0
                                              : send(editor.server, editor.unsent.data,
                                                     editor.unsent.length, MSG_NOSIGNAL);
    if (count > 0) {
        drop(&editor.unsent, (size_t)count);
    }
    else if (count < 0 && is_gone(errno)) {
        empty(&editor.unsent);
    }
    else if (count < 0 && !is_passing(errno)) {
        fail(STATUS_TROUBLE, "cannot send on what was typed: %m");
    }
}

/* ---- Signals ----------------------------------------------------------------------- */

/* Has the signal do what it does to a program that does not care. */
static void
suffer(int number)
{
    sigset_t set;

    (void)signal(number, SIG_DFL);
    (void)raise(number);
    (void)sigemptyset(&set);
    (void)sigaddset(&set, number);
    (void)pthread_sigmask(SIG_UNBLOCK, &set, NULL);
    (void)pthread_sigmask(SIG_BLOCK, &set, NULL); /* after a stop */
    (void)set_handler(number, on_signal);
}

/* Ctrl-Z: the shell gets the terminal as it was, and we the rest when it says fg. */
static void
stop_for_a_while(void)
{
    hold_terminal(false);
    suffer(SIGTSTP);
    hold_terminal(true);
    el_resize(editor.el);
    if (editor.is_typing) {
        (void)el_set(editor.el, EL_REFRESH);
    }
}

/* A line, or a key: the prompt that stands is answered by it. */
static void
send_typed(const char *bytes, size_t count)
{
    empty(&editor.line);
    end_waiting();
    append(&editor.unsent, bytes, count);
    send_unsent();
}

/* Ctrl-C for who reads. A console that takes no keys forgets the block of which it has the first
 * lines when there is a NUL, for no source has one. */
static void
interrupt_reader(void)
{
    static const char key[] = {KEY_INTERRUPT};

    if (marks.are_put) {
        send_typed(key, sizeof(key));
    }
    else {
        send_typed("\0\n", 2);
    }
}

static void
forget_paste(void)
{
    empty(&editor.paste);
    empty(&editor.block);
    editor.is_block = false;
}

/* Ctrl-C drops what is being typed, and interrupts what the process runs. */
static void
take_interrupt(void)
{
    const LineInfoW *line = el_wline(editor.el);
    bool has_text =
        editor.is_typing && (editor.is_pasting || line->lastchar > line->buffer);
    bool is_in_block = editor.asked > 0 && ends_with(&editor.line, "... ");
    bool is_asked = is_in_block || (editor.is_waiting && editor.asked == 0);

    forget_paste();
    empty(&editor.keys);
    if (has_text || is_asked) {
        hide_line();
        (void)el_cursor(editor.el, (int)(line->lastchar - line->cursor));
        (void)el_set(editor.el, EL_REFRESH);
        (void)fputs("^C\n", stdout);
        editor.way_out = LINE_CANCELLED;
    }
    if (is_asked) {
        interrupt_reader();
        return;
    }
    switch (editor.server < 0 ? SESSION_IDLE : interrupt_session(editor.target)) {
    case SESSION_IDLE:
        if (!has_text) {
            say_note("manhole-cli: nothing is running; Ctrl-D leaves");
        }
        break;
    case SESSION_INTERRUPTED:
        if (!has_text) {
            append_text(&editor.out, "^C\n"); /* as the terminal would show it */
        }
        break;
    case SESSION_LEFT:
        editor.way_out = LEFT;
        break;
    }
}

/* Deals with those that came while we waited. */
static void
take_signals(void)
{
    static const int endings[] = {SIGTERM, SIGHUP, SIGQUIT};

    for (size_t i = 0; i < sizeof(endings) / sizeof(endings[0]); i++) {
        if (take_due(endings[i])) {
            release_terminal();
            suffer(endings[i]);
        }
    }
    if (take_due(SIGWINCH)) {
        el_resize(editor.el);
        if (editor.is_typing) {
            hide_line();
            (void)el_set(editor.el, EL_REFRESH);
        }
    }
    if (take_due(SIGTSTP)) {
        stop_for_a_while();
    }
    if (take_due(SIGINT)) {
        take_interrupt();
    }
}

/* ---- Waiting ----------------------------------------------------------------------- */

static void
read_keys(void)
{
    char bytes[512];
    ssize_t count = read(terminal.input, bytes, sizeof(bytes));

    if (count > 0) {
        append(&editor.keys, bytes, (size_t)count);
    }
    else if (count == 0 || !is_passing(errno)) {
        editor.way_out = INPUT_ENDED;
    }
}

/* Waits for the server, and for keys if wanted. */
static void
wait_for_news(bool wants_keys)
{
    static bool is_silent = true; /* not a byte has come, and nothing was said of that */
    struct pollfd fds[2] = {
        {.fd = wants_keys ? terminal.input : -1, .events = POLLIN},
        {.fd = editor.server,
         .events = (short)(POLLIN | (editor.unsent.length > 0 ? POLLOUT : 0))},
    };
    int patience_ms = is_silent && editor.server >= 0 ? FIRST_BYTE_PATIENCE_S * 1000 : -1;
    int ready = 0;

    show_output();
    ready = poll_with_signals(fds, 2, until_interrupt_is_late(patience_ms));
    if (is_interrupt_late()) {
        say_note(interrupt_is_late);
    }
    else if (ready == 0 && is_silent) {
        is_silent = false;
        (void)say_hindrance(server_pid(editor.server));
        return;
    }
    if (ready > 0 && fds[1].revents != 0) {
        is_silent = false;
        send_unsent();
        take_output();
    }
    if (ready > 0 && fds[0].revents != 0) {
        read_keys();
    }
    take_signals();
}

/* Takes a whole character from the keys; false while there is none. What is no UTF-8 is
 * passed over. */
static bool
take_key(wchar_t *key)
{
    size_t length = 0;

    while (editor.keys.length >
           count_unfinished(text_of(&editor.keys), editor.keys.length)) {
        const unsigned char *text = (const unsigned char *)editor.keys.data;
        length = sequence_length(text);
        if (length > 0) {
            *key = decode(text, length);
            drop(&editor.keys, length);
            return true;
        }
        drop(&editor.keys, 1);
    }
    return false;
}

/* libedit's way to a key. Returns how many there are, 1; 0 at the end; -1 to give up. */
static int
read_key(EditLine *el, wchar_t *key)
{
    if (editor.preset.length > 0) {
        hide_line();
        (void)el_insertstr(el, editor.preset.data);
        empty(&editor.preset);
        (void)el_set(el, EL_REFRESH);
    }
    while (editor.way_out == NO_WAY_OUT) {
        if (take_key(key)) {
            return 1;
        }
        wait_for_news(true);
    }
    return editor.way_out == INPUT_ENDED ? 0 : -1;
}

/* ---- Completion -------------------------------------------------------------------- */

/* How long the beginning is that all lines have in common. */
static size_t
common_length(const struct buffer *lines)
{
    size_t common = strcspn(text_of(lines), "\n");

    for (size_t start = common + 1; start < lines->length;) {
        const char *line = lines->data + start;
        size_t same = 0;
        while (same < common && line[same] == lines->data[same]) {
            same++;
        }
        common = same;
        start += strcspn(line, "\n") + 1;
    }
    while (common > 0 && ((unsigned char)lines->data[common] & 0xc0) == 0x80) {
        common--; /* not in the middle of a character */
    }
    return common;
}

/* How much of a line that may go on in several ways is not shown with them: all before the name. In
 * a string a dot is a part of one. */
static size_t
count_hidden(const char *line)
{
    const char *name = line + strlen(line);

    while (name > line && strchr(" \t/'\"([{,=:;", name[-1]) == NULL) {
        name--;
    }
    if (name == line || strchr("/'\"", name[-1]) == NULL) {
        const char *dot = strrchr(name, '.');
        name = dot != NULL ? dot + 1 : name;
    }
    return (size_t)(name - line);
}

/* Shows what may follow, in columns. */
static void
show_matches(const struct buffer *matches, const char *line)
{
    size_t hidden = count_hidden(line);
    size_t columns = (size_t)count_columns();
    size_t width = 0;
    size_t column = 0;
    size_t length = 0;

    for (size_t i = 0; i < matches->length; i += length + 1) {
        length = strcspn(matches->data + i, "\n");
        width = length - hidden + 2 > width ? length - hidden + 2 : width;
    }
    for (size_t i = 0; i < matches->length; i += length + 1) {
        length = strcspn(matches->data + i, "\n");
        append_harmless(&editor.out, matches->data + i + hidden, length - hidden);
        column += width;
        if (column + width > columns || i + length + 1 >= matches->length) {
            append_text(&editor.out, "\n");
            column = 0;
        }
        for (size_t pad = length - hidden; column > 0 && pad < width; pad++) {
            append_text(&editor.out, " ");
        }
    }
    show_output();
}

/* What stands before the cursor, as UTF-8, with a newline. */
static void
find_start(EditLine *el, struct buffer *start)
{
    const LineInfoW *line = el_wline(el);

    for (const wchar_t *c = line->buffer; c < line->cursor; c++) {
        char utf8[MB_LEN_MAX + 1];
        (void)snprintf(utf8, sizeof(utf8), "%lc", (wint_t)*c);
        append_text(start, utf8);
    }
    append_text(start, "\n");
}

/* Whether each line begins with the start and goes on behind it. */
static bool
are_matches(const struct buffer *lines, const char *start)
{
    size_t length = 0;

    for (size_t i = 0; i < lines->length; i += length + 1) {
        length = strcspn(lines->data + i, "\n");
        if (strncmp(lines->data + i, start, strlen(start)) != 0) {
            return false;
        }
    }
    return lines->length > 0 && lines->data[lines->length - 1] == '\n';
}

/* Inserts a name, without the quote and bracket at its end that stand there already. */
static void
insert_name(EditLine *el, char *name)
{
    const LineInfoW *line = el_wline(el);
    char *closing = name + strlen(name);

    while (closing > name && strchr("'\"])", closing[-1]) != NULL) {
        closing--;
    }
    for (; *closing != '\0'; closing++) {
        size_t length = strlen(closing);
        size_t same = 0;
        while (same < length && line->cursor + same < line->lastchar &&
               line->cursor[same] == (wchar_t)closing[same]) {
            same++;
        }
        if (same == length) {
            *closing = '\0';
            break;
        }
    }
    (void)el_insertstr(el, name);
}

/* Tab: indents at the start of a line; else completes what stands before the cursor as far as the
 * session leaves no choice, or shows the choice. */
static unsigned char
on_tab(EditLine *el, int key)
{
    struct buffer start = {.data = NULL};   /* owned */
    struct buffer matches = {.data = NULL}; /* owned */
    size_t common = 0;

    (void)key;
    find_start(el, &start);
    if (start.data[strspn(start.data, " \t")] == '\n' || editor.server < 0) {
        free(start.data);
        return editor.server < 0               ? CC_ERROR
               : el_insertstr(el, "    ") == 0 ? CC_REFRESH
                                               : CC_ERROR;
    }
    (void)ask_aside(editor.target, "complete", &start, INTERRUPT_PATIENCE_MS, &matches);
    start.data[--start.length] = '\0'; /* the newline */
    if (matches.data != NULL && are_matches(&matches, start.data)) {
        common = common_length(&matches);
        if (common > start.length) {
            matches.data[common] = '\0';
            insert_name(el, matches.data + start.length);
        }
        else if (line_length(&matches) < matches.length) {
            show_matches(&matches, start.data);
        }
    }
    free(start.data);
    free(matches.data);
    return CC_REFRESH;
}

/* ---- Pasted text ------------------------------------------------------------------- */

/* The terminal puts it between two sequences; the first one has just been read. Whole lines go to
 * the process as one; when no newline ends the last, they wait until that has been finished. What
 * would be a key there is left out. */
static unsigned char
on_paste(EditLine *el, int key)
{
    static const char end[] = "\033[201~";
    struct buffer text = {.data = NULL}; /* owned */
    wchar_t c = 0;
    size_t length = 0;

    (void)key;
    editor.is_pasting = true;
    while (text.length < strlen(end) ||
           strcmp(text.data + text.length - strlen(end), end) != 0) {
        char utf8[MB_LEN_MAX + 1];
        if (read_key(el, &c) != 1) {
            editor.is_pasting = false;
            free(text.data);
            return CC_EOF;
        }
        (void)snprintf(utf8, sizeof(utf8), "%lc", (wint_t)(c == L'\r' ? L'\n' : c));
        append_text(&text, c >= KEY_PASTE && c <= KEY_PASTED ? "" : utf8);
    }
    editor.is_pasting = false;
    text.data[text.length -= strlen(end)] = '\0';
    length = line_length(&text);
    if (length > 0) {
        append(&editor.paste, text.data + length, text.length - length);
        text.data[length - 1] = '\0';
        editor.is_block = true;
    }
    (void)el_insertstr(el, text.data);
    el_push(el, length > 0 ? "\n" : "");
    free(text.data);
    return CC_REFRESH;
}

/* ---- Lines ------------------------------------------------------------------------- */

/* A line, given with its newline; no other is behind it. */
static void
keep_line(const char *line, size_t length)
{
    if (line[strspn(line, " \t")] != '\n') {
        HistEvent event;
        (void)history(editor.history, &event, H_ENTER, line);
        remember_line(line, length);
    }
}

/* A server that takes no keys has but the lines. */
static void
send_block(void)
{
    static const char keys[] = {KEY_PASTE, KEY_PASTED};
    struct buffer bytes = {.data = NULL}; /* owned */

    append(&bytes, keys, marks.are_put ? 1 : 0);
    append(&bytes, text_of(&editor.block), editor.block.length);
    append(&bytes, keys + 1, marks.are_put ? 1 : 0);
    send_typed(bytes.data, bytes.length);
    free(bytes.data);
    forget_paste();
}

/* Shows a pasted line as if it had been typed. */
static void
show_pasted_line(const char *line, size_t length)
{
    struct buffer copy = {.data = NULL}; /* owned */

    append(&copy, line, length);
    append_paint(&editor.out, editor.asked > 0 ? PROMPT : PLAIN, text_of(&editor.line));
    append_harmless(&editor.out, copy.data, copy.length);
    keep_line(copy.data, copy.length);
    free(copy.data);
}

/* Takes whole lines of the paste into the block. If that is all, sends it. */
static void
take_paste(void)
{
    size_t length = 0;
    size_t taken = 0;

    empty(&editor.line);
    append_text(&editor.line, editor.asked > 0 ? "... " : "");
    editor.asked = editor.line.length;
    editor.is_stale = true;
    while ((length = next_line(&editor.paste, taken, false)) > 0) {
        show_pasted_line(editor.paste.data + taken, length);
        taken += length;
    }
    append(&editor.block, text_of(&editor.paste), taken);
    drop(&editor.paste, taken);
    show_output();
    if (editor.paste.length == 0) {
        send_block();
    }
    append(&editor.preset, text_of(&editor.paste), editor.paste.length);
    empty(&editor.paste);
}

/* A line that was typed, given with its newline. */
static void
accept_line(const char *line, size_t length)
{
    keep_line(line, length);
    if (editor.is_block) {
        append(&editor.block, line, length);
        take_paste();
    }
    else {
        send_typed(line, length);
    }
}

/* Returns the line with its newline, valid until the next; NULL where there is none. libedit alone
 * would take the terminal only when it has shown the prompt: what is typed at once would be echoed
 * twice, or be lost to Ctrl-C. */
static const char *
edit_line(int *count)
{
    const char *line = NULL;

    (void)el_set(editor.el, EL_PREP_TERM, 1);
    editor.is_typing = true;
    line = el_gets(editor.el, count);
    editor.is_typing = false;
    return line;
}

/* Ctrl-D is the end of what is typed for who reads; for all where the server takes no keys. */
static void
end_reader(void)
{
    static const char key[] = {KEY_END};

    forget_paste();
    if (marks.are_put) {
        append_text(&editor.out, "\n");
        send_typed(key, sizeof(key));
    }
    else {
        editor.way_out = INPUT_ENDED;
    }
}

/* Lets a line be typed and sends it. */
static void
type_line(void)
{
    int count = 0;
    const char *line = edit_line(&count);

    if (line != NULL && count > 0) {
        accept_line(line, (size_t)count);
    }
    else if (editor.way_out == NO_WAY_OUT) {
        end_reader();
    }
}

/* Lets a line be typed at a prompt of our own, while there is no server; what was pasted behind the
 * last one comes first. Returns it with its newline, valid until the next; NULL at the end. */
static const char *
type_local_line(const char *prompt)
{
    static struct buffer line;
    size_t length = line_length(&editor.paste);
    const char *typed = NULL;
    int count = 0;

    empty(&line);
    empty(&editor.line);
    append_text(&editor.line, prompt);
    editor.asked = editor.line.length;
    editor.server = -1;
    editor.is_waiting = editor.is_stale = true;
    if (length > 0) {
        append(&line, editor.paste.data, length);
        drop(&editor.paste, length);
        append_text(&editor.out, prompt);
        append_harmless(&editor.out, line.data, length);
        show_output();
        return line.data;
    }
    do {
        editor.way_out = NO_WAY_OUT;
        typed = edit_line(&count);
    } while (editor.way_out == LINE_CANCELLED);
    editor.is_block = false;
    if (typed != NULL && count > 0) {
        HistEvent event;
        (void)history(editor.history, &event, H_ENTER, typed);
        append(&line, typed, (size_t)count);
        return line.data;
    }
    (void)fputs("\n", stdout);
    return NULL;
}

/* ---- The conversation -------------------------------------------------------------- */

static void
load_history(void)
{
    HistEvent event;
    char *line = NULL; /* owned */
    size_t size = 0;
    FILE *file = history_path[0] == '\0' ? NULL : fopen(history_path, "re"); /* owned */

    editor.history = history_init();
    if (editor.history == NULL) {
        fail(STATUS_TROUBLE, "out of memory");
    }
    (void)history(editor.history, &event, H_SETSIZE, HISTORY_LINES);
    (void)history(editor.history, &event, H_SETUNIQUE, 1);
    while (file != NULL && getline(&line, &size, file) > 0) {
        (void)history(editor.history, &event, H_ENTER, line);
    }
    free(line);
    if (file != NULL) {
        (void)fclose(file);
    }
}

/* Returns false where there can be no editor: not at a terminal, or not at this one. */
static bool
open_editor(void)
{
    static const char *const keys[][2] = {
        {"^I", "manhole-complete"},         {"\033[200~", "manhole-paste"},
        {"^R", "em-inc-search-prev"},       {"^W", "ed-delete-prev-word"},
        {"\033[3~", "ed-delete-next-char"}, {"\033[1~", "ed-move-to-beg"},
        {"\033[4~", "ed-move-to-end"},      {"\033[H", "ed-move-to-beg"},
        {"\033[F", "ed-move-to-end"},       {"\033[1;5D", "ed-prev-word"},
        {"\033[1;5C", "em-next-word"},
    };

    if (editor.el != NULL) {
        return true;
    }
    if (terminal.is_typed_on && terminal.is_shown_on && terminal.is_capable) {
        editor.el = el_init(program, stdin, stdout, stderr);
    }
    if (editor.el == NULL) {
        return false;
    }
    load_history();
    (void)el_set(editor.el, EL_PROMPT_ESC, prompt_of, '\1');
    (void)el_set(editor.el, EL_EDITOR, "emacs");
    (void)el_set(editor.el, EL_SIGNAL, 0);
    (void)el_set(editor.el, EL_HIST, history, editor.history);
    (void)el_set(editor.el, EL_GETCFN, read_key);
    (void)el_set(editor.el, EL_ADDFN, "manhole-complete", "Complete the name", on_tab);
    (void)el_set(editor.el, EL_ADDFN, "manhole-paste", "Take pasted text", on_paste);
    for (size_t i = 0; i < sizeof(keys) / sizeof(keys[0]); i++) {
        (void)el_set(editor.el, EL_BIND, keys[i][0], keys[i][1], NULL);
    }
    (void)el_source(editor.el, NULL);
    return true;
}

/* What there is still to show when no more lines come. */
static void
show_the_rest(void)
{
    while (editor.way_out == NO_WAY_OUT) {
        wait_for_news(false);
    }
    append_harmless(&editor.out, text_of(&editor.line), editor.line.length);
    append_harmless(&editor.out, text_of(&editor.aside), editor.aside.length);
    show_output();
}

/* Tells the server that no more lines come, behind the last of them. */
static void
end_input(void)
{
    append_text(&editor.out, "\n");
    empty(&editor.line);
    end_waiting();
    editor.way_out = NO_WAY_OUT;
    while (editor.unsent.length > 0 && editor.way_out == NO_WAY_OUT) {
        wait_for_news(false);
    }
    (void)shutdown(editor.server, SHUT_WR);
}

/* Takes the terminal, and the signals that concern it. A second time does nothing. */
static void
begin_editing(void)
{
    static const int followed[] = {SIGINT, SIGTSTP, SIGWINCH, SIGTERM, SIGHUP, SIGQUIT};
    static bool is_begun;

    for (size_t i = 0; i < sizeof(followed) / sizeof(followed[0]) && !is_begun; i++) {
        follow_signal(followed[i]);
    }
    if (!is_begun) {
        (void)atexit(release_terminal);
        hold_terminal(true);
    }
    is_begun = true;
}

/* The console at a terminal, until the server closes or Ctrl-C says that that is enough. */
static enum exit_status
converse(int server, const struct target *target)
{
    begin_editing();
    editor.server = server;
    editor.target = target;
    marks = (struct marks){.text = marks.text};
    empty(&editor.line);
    end_waiting();
    while (editor.paste.length > 0 && !editor.is_waiting &&
           editor.way_out == NO_WAY_OUT) { /* what was pasted behind what led here */
        wait_for_news(false);
    }
    if (editor.paste.length > 0) {
        editor.is_block = true;
        take_paste();
    }
    while (editor.way_out == NO_WAY_OUT || editor.way_out == LINE_CANCELLED) {
        editor.way_out = NO_WAY_OUT;
        type_line();
    }
    if (editor.way_out == INPUT_ENDED) {
        end_input();
    }
    else if (editor.way_out == LEFT || editor.is_waiting) {
        append_text(&editor.out, "\n");
        empty(&editor.line);
    }
    if (editor.way_out == SERVER_CLOSED && editor.is_waiting &&
        !has_ended(server_pid(server))) {
        say_note("manhole-cli: the process has closed the connection");
    }
    show_the_rest();
    return editor.way_out == LEFT ? STATUS_INTERRUPTED
                                  : conclude_console(server, target, editor.was_farewell);
}

#endif /* HAVE_LIBEDIT */

/* ======================================================================================
 * Run: code of -c and -f goes over in one piece, its output comes back in frames, by stream.
 * A frame is a kind ('o' output, 'e' errors, 'x' exit status, 'i' it reads its input), the
 * length of what follows as four bytes, and that. Anything else is a refusal in plain text.
 * ======================================================================================
 */

/* What a process writes to one of our streams, made harmless where that is a terminal. */
struct outlet {
    int fd;
    bool is_terminal;
    struct buffer unfinished; /* a character of which the rest is still to come */
};

static struct outlet
open_outlet(int fd)
{
    return (struct outlet){.fd = fd, .is_terminal = isatty(fd) == 1 && !terminal.is_raw};
}

static void
let_out(struct outlet *outlet, const char *bytes, size_t count)
{
    static struct buffer shown;
    size_t whole = 0;

    if (!outlet->is_terminal) {
        write_all(outlet->fd, bytes, count);
        return;
    }
    append(&outlet->unfinished, bytes, count);
    whole = outlet->unfinished.length -
            count_unfinished(outlet->unfinished.data, outlet->unfinished.length);
    append_harmless(&shown, outlet->unfinished.data, whole);
    drop(&outlet->unfinished, whole);
    write_all(outlet->fd, text_of(&shown), shown.length);
    empty(&shown);
}

/* The answer, as far as it has been read. */
struct answer {
    struct buffer bytes; /* not looked at yet */
    char kind;           /* of the frame that has begun; 0: none has */
    size_t left;         /* bytes of it still to come */
    bool is_refusal;
    bool wants_input;
    long status; /* -1: has not come */
    struct outlet out;
    struct outlet err;
};

/* A status, of which the digits may be followed by others that are not its own. */
static long
read_status(const struct buffer *bytes, size_t count)
{
    char digits[16];
    (void)snprintf(digits, sizeof(digits), "%.*s",
                   (int)(count < sizeof(digits) ? count : sizeof(digits)),
                   text_of(bytes));
    return strtol(digits, NULL, 10) & 0xff;
}

/* Takes what has arrived of frames. A status is short, so it is waited for as a whole. */
static void
take_frames(struct answer *answer)
{
    struct buffer *bytes = &answer->bytes;

    while (!answer->is_refusal && bytes->length > 0) {
        const unsigned char *head = (const unsigned char *)bytes->data;
        size_t count = 0;
        if (answer->kind == 0) {
            answer->is_refusal = head[0] == 0 || strchr("oexi", (int)head[0]) == NULL;
            if (answer->is_refusal || bytes->length < 5) {
                return;
            }
            answer->kind = (char)head[0];
            answer->left = (size_t)head[1] << 24 | (size_t)head[2] << 16 |
                           (size_t)head[3] << 8 | (size_t)head[4];
            drop(bytes, 5);
        }
        count = bytes->length < answer->left ? bytes->length : answer->left;
        if (answer->kind == 'x' && count < answer->left) {
            return;
        }
        if (answer->kind == 'o' || answer->kind == 'e') {
            let_out(answer->kind == 'o' ? &answer->out : &answer->err, text_of(bytes),
                    count);
        }
        answer->wants_input = answer->wants_input || answer->kind == 'i';
        answer->status = answer->kind == 'x' ? read_status(bytes, count) : answer->status;
        drop(bytes, count);
        answer->left -= count;
        if (answer->left == 0) {
            answer->kind = 0;
        }
    }
}

/* Puts together what the server wants: length, file name, arguments, source. */
static void
build_request(const struct request *request, struct buffer *out)
{
    const char *file = request->file == NULL             ? "<string>"
                       : strcmp(request->file, "-") == 0 ? "<stdin>"
                                                         : request->file;
    struct buffer fields = {.data = NULL}; /* owned */
    unsigned char length[4];

    append(&fields, file, strlen(file) + 1);
    file = request->file == NULL ? "-c" : request->file;
    append(&fields, file, strlen(file) + 1);
    for (size_t i = 0; i < request->arguments; i++) {
        append(&fields, request->argument[i], strlen(request->argument[i]) + 1);
    }
    append(&fields, text_of(&request->source), request->source.length);
    for (size_t i = 0; i < sizeof(length); i++) {
        length[i] = (unsigned char)(fields.length >> (24 - 8 * i));
    }
    append(out, length, sizeof(length));
    append(out, fields.data, fields.length);
    free(fields.data);
}

/* Reads the source to run. It goes over behind a NUL, so it can have none itself, which is no loss:
 * Python refuses such a source. */
static void
read_source(struct request *request)
{
    const char *path = request->file;
    char bytes[4096];
    ssize_t count = 0;
    int fd = STDIN_FILENO;

    if (path == NULL) {
        append_text(&request->source, request->code);
        return;
    }
    if (strcmp(path, "-") != 0) {
        fd = open(path, O_RDONLY | O_CLOEXEC);
    }
    while (fd >= 0 && (count = read(fd, bytes, sizeof(bytes))) > 0) {
        append(&request->source, bytes, (size_t)count);
    }
    if (fd < 0 || count < 0) {
        fail(STATUS_TROUBLE, "cannot read the script %s: %m", quote(path).text);
    }
    if (fd != STDIN_FILENO) {
        (void)close(fd);
    }
    if (memchr(text_of(&request->source), '\0', request->source.length) != NULL) {
        fail(STATUS_TROUBLE, "the script %s has a NUL byte, which Python does not take",
             quote(path).text);
    }
}

/* What is asked of a process until it is over: code to run, or its stacks. */
struct errand {
    int server;
    const struct target *target;
    double deadline;
    bool is_watched; /* it has answered, or the silence was looked into */
    bool was_interrupted;
    bool is_unread[2]; /* nobody reads our standard output, error */
    bool is_over;
    enum exit_status status; /* when it is over */
};

static void
end_errand(struct errand *errand, enum exit_status status)
{
    errand->is_over = true;
    errand->status = status;
}

/* Milliseconds to wait at most before the deadline; -1: for ever. */
static int
patience_until(double deadline)
{
    double left_ms = (deadline - now_s()) * 1e3;
    return left_ms > INT_MAX ? -1 : left_ms > 0 ? (int)left_ms + 1 : 0;
}

/* When what is run is to be over: --timeout, or what stacks may take. */
static double
find_deadline(const struct request *request)
{
    bool is_given = (request->taken & 1U << (find_option("-t", 2) - options)) != 0;
    return is_given                           ? now_s() + request->timeout_s
           : request->action == ACTION_STACKS ? now_s() + STACKS_PATIENCE_S
                                              : HUGE_VAL;
}

/* Whether the process can do nothing but wait itself; says so. One that is sampled by a profiler is
 * stopped for a moment only. */
static bool
is_hindered(pid_t pid)
{
    char state = process_state(pid);

    if (state == 'T' || state == 't') {
        (void)poll_with_signals(NULL, 0, SECOND_LOOK_MS);
    }
    return say_hindrance(pid);
}

enum { ERRAND_FDS = 2 }; /* that an errand waits for at most */

/* As poll_with_signals(). Sees to our outputs, too: when nobody reads any of them, as behind an ssh
 * that was interrupted, the errand is over: the process is not to run on with what nobody wants. */
static int
poll_errand(struct errand *errand, struct pollfd fds[], nfds_t count, int patience_ms)
{
    struct pollfd all[ERRAND_FDS + 2];
    int ready = 0;

    memcpy(all, fds, count * sizeof(*fds));
    for (int i = 0; i < 2; i++) {
        all[count + (nfds_t)i] =
            (struct pollfd){.fd = errand->is_unread[i] ? -1 : STDOUT_FILENO + i};
    }
    ready = poll_with_signals(all, count + 2, patience_ms);
    memcpy(fds, all, count * sizeof(*fds));
    for (nfds_t i = 0; ready > 0 && i < 2; i++) {
        errand->is_unread[i] = errand->is_unread[i] || all[count + i].revents != 0;
    }
    if (errand->is_unread[0] && errand->is_unread[1]) {
        end_errand(errand, STATUS_OUTPUT_GONE);
    }
    return ready;
}

/* Waits until there is something to do. Ends the errand when its time is over, when the process can
 * do nothing but wait itself, and at a Ctrl-C that interrupts nothing. */
static bool
wait_on_errand(struct errand *errand, struct pollfd fds[], nfds_t count)
{
    const int first_ms = FIRST_BYTE_PATIENCE_S * 1000;
    int patience_ms = patience_until(errand->deadline);
    bool is_first = !errand->is_watched && (patience_ms < 0 || patience_ms > first_ms);
    int ready = poll_errand(errand, fds, count,
                            until_interrupt_is_late(is_first ? first_ms : patience_ms));

    if (take_due(SIGINT)) {
        errand->was_interrupted = true;
        if (interrupt_session(errand->target) == SESSION_LEFT) {
            end_errand(errand, STATUS_INTERRUPTED);
        }
    }
    else if (is_interrupt_late()) {
        (void)fprintf(stderr, "%s\n", interrupt_is_late);
    }
    else if (ready == 0 && is_first) {
        errand->is_watched = true;
        if (is_hindered(server_pid(errand->server))) {
            end_errand(errand, STATUS_NO_CONNECTION);
        }
    }
    else if (ready == 0 || patience_ms == 0) { /* a flood does not give it more time */
        say_error("process %s has not finished within the timeout; it was told to stop",
                  label_of(errand->target).text);
        end_errand(errand, STATUS_TIMEOUT);
    }
    return ready > 0 && !errand->is_over;
}

/* Adds what has come. Returns false at the end. */
static bool
read_answer(struct errand *errand, struct buffer *answer)
{
    char bytes[16 * 1024];
    ssize_t count = recv(errand->server, bytes, sizeof(bytes), 0);

    append(answer, bytes, count > 0 ? (size_t)count : 0);
    errand->is_watched = true;
    return count > 0 || (count < 0 && is_passing(errno));
}

/* Reads on from standard input; at its end tells the server. */
static void
read_input(struct buffer *unsent, bool *is_over)
{
    char bytes[4096];
    ssize_t count = read(terminal.input, bytes, sizeof(bytes));

    if (count > 0) {
        append(unsent, bytes, (size_t)count);
    }
    else if (count == 0 || !is_passing(errno)) {
        *is_over = true;
    }
}

/* Sends what there is; after the last of it, says that it was. */
static void
send_on(int server, struct buffer *unsent, bool is_over)
{
    static bool is_told = false;
    ssize_t count = 0;

    if (unsent->length > 0) {
        count = send(server, unsent->data, unsent->length, MSG_NOSIGNAL);
        if (count < 0 && is_gone(errno)) {
            count = (ssize_t)unsent->length;
        }
        if (count < 0 && !is_passing(errno)) {
            fail(STATUS_TROUBLE, "cannot send the code and its input: %m");
        }
        drop(unsent, count > 0 ? (size_t)count : 0);
    }
    if (unsent->length == 0 && is_over && !is_told) {
        is_told = true;
        (void)shutdown(server, SHUT_WR);
    }
}

/* What it comes to when the server has closed. */
static enum exit_status
conclude(struct answer *answer, int server, const struct target *target,
         bool was_interrupted)
{
    if (answer->is_refusal && strncmp(text_of(&answer->bytes), "manhole: ", 9) != 0) {
        say_error(
            "the manhole of process %s knows no -c; type at its console, without -c",
            label_of(target).text);
        return STATUS_NO_CONNECTION;
    }
    if (answer->is_refusal) {
        let_out(&answer->err, answer->bytes.data, answer->bytes.length);
        return STATUS_NO_CONNECTION;
    }
    if (answer->status >= 0) {
        return was_interrupted && answer->status == 1 ? STATUS_INTERRUPTED
                                                      : (enum exit_status)answer->status;
    }
    return say_cut(server, target, "the code had ended");
}

/* Runs the code, with our standard streams as its own. */
static enum exit_status
run_code(int server, const struct request *request, const struct target *target,
         bool *answered)
{
    struct errand errand = {
        .server = server, .target = target, .deadline = request->deadline};
    struct answer answer = {.status = -1,
                            .out = open_outlet(STDOUT_FILENO),
                            .err = open_outlet(STDERR_FILENO)};
    struct buffer unsent = {.data = NULL}; /* owned */
    bool is_over = false;                  /* our standard input */

    build_request(request, &unsent);
    follow_signal(SIGINT);
    while (!errand.is_over) {
        bool reads_input = answer.wants_input && !is_over && unsent.length == 0;
        short events = (short)(POLLIN | (unsent.length > 0 ? POLLOUT : 0));
        struct pollfd fds[ERRAND_FDS] = {
            {.fd = reads_input ? terminal.input : -1, .events = POLLIN},
            {.fd = server, .events = events}};
        if (!wait_on_errand(&errand, fds, 2)) {
            continue;
        }
        if (fds[0].revents != 0) {
            read_input(&unsent, &is_over);
        }
        send_on(server, &unsent, is_over);
        if ((fds[1].revents & ~POLLOUT) != 0) {
            bool is_open = read_answer(&errand, &answer.bytes);
            take_frames(&answer);
            if (!is_open || (answer.is_refusal && line_length(&answer.bytes) > 0)) {
                end_errand(&errand,
                           conclude(&answer, server, target, errand.was_interrupted));
            }
        }
    }
    *answered = answer.status >= 0;
    free(answer.bytes.data);
    free(unsent.data);
    return errand.status;
}

/* ======================================================================================
 * Stacks: --stacks and --json, a text that the server sends and then closes.
 * ======================================================================================
 */

/* Writes the lines that are whole, in colour where there is any. At the end also the rest. */
static void
show_lines(struct buffer *text, bool is_end)
{
    struct buffer shown = {.data = NULL}; /* owned */
    size_t done = 0;
    size_t length = 0;

    while ((length = next_line(text, done, is_end)) > 0) {
        bool is_whole = text->data[done + length - 1] == '\n';
        if (!terminal.is_shown_on || terminal.is_raw) {
            append(&shown, text->data + done, length);
        }
        else {
            append_line(&shown, text->data + done, is_whole ? length - 1 : length);
        }
        done += length;
    }
    drop(text, done);
    write_all(STDOUT_FILENO, text_of(&shown), shown.length);
    free(shown.data);
}

/* One line that says why there is nothing, instead of stacks. */
static bool
is_refusal(const struct buffer *text)
{
    return strncmp(text_of(text), "manhole: ", 9) == 0 &&
           line_length(text) == text->length;
}

/* Nothing came, or a refusal. */
static enum exit_status
say_no_stacks(const struct buffer *text, int server, const struct target *target)
{
    struct outlet err = open_outlet(STDERR_FILENO);

    if (text->length > 0) {
        let_out(&err, text->data, text->length);
    }
    else if (has_ended(server_pid(server))) {
        return say_cut(server, target, "its stacks were there");
    }
    else {
        say_error("process %s has closed the connection without a word",
                  label_of(target).text);
    }
    free(err.unfinished.data);
    return STATUS_NO_CONNECTION;
}

/* What it comes to when the server has closed. */
static enum exit_status
conclude_stacks(const struct buffer *text, bool is_begun, bool is_whole, int server,
                const struct target *target)
{
    if (!is_begun) {
        return say_no_stacks(text, server, target);
    }
    return is_whole ? STATUS_OK : say_cut(server, target, "its stacks were complete");
}

/* The line that ends a dump, and all of JSON, which is one line. */
static bool
has_end_of_stacks(const struct buffer *text, bool is_json)
{
    static const char end[] = "#############################################\n";
    return !is_json
               ? strstr(text_of(text), end) != NULL
               : text->length >= 2 && strcmp(text->data + text->length - 2, "}\n") == 0;
}

/* A dump is shown as it comes. JSON that is cut is none: it is shown when it is whole. */
static enum exit_status
show_stacks(int server, const struct request *request, const struct target *target)
{
    struct errand errand = {
        .server = server, .target = target, .deadline = request->deadline};
    struct buffer text = {.data = NULL}; /* owned */
    struct pollfd fds[1] = {{.fd = server, .events = POLLIN}};
    bool is_json = (request->flags & FLAG_JSON) != 0;
    bool is_begun = false;
    bool is_whole = false;

    follow_signal(SIGINT);
    (void)shutdown(server, SHUT_WR);
    while (!errand.is_over) {
        if (!wait_on_errand(&errand, fds, 1)) {
            continue;
        }
        bool is_end = !read_answer(&errand, &text);
        is_whole = is_whole || has_end_of_stacks(&text, is_json);
        is_begun = is_begun || ((is_end ? text.length : line_length(&text)) > 0 &&
                                !is_refusal(&text));
        if (is_begun && (!is_json || (is_end && is_whole))) {
            show_lines(&text, is_end);
        }
        if (is_end) {
            end_errand(&errand,
                       conclude_stacks(&text, is_begun, is_whole, server, target));
        }
    }
    free(text.data);
    return errand.status;
}

/* ======================================================================================
 * Processes: those with a manhole, as /proc and their sockets show them.
 * A manhole is there where a socket is, or what struct notice tells of.
 * To add a column to --list: print_process() and its title.
 * ======================================================================================
 */

/* What is at the place of a process's socket. */
enum door {
    NO_DOOR,     /* nothing; a signal may open it */
    DEAD_DOOR,   /* a socket that nobody serves any more */
    DENIED_DOOR, /* not for us */
    SILENT_DOOR, /* somebody serves it, who does not answer */
    OPEN_DOOR,
};

struct process {
    struct target target;
    enum door door;
    uid_t uid;
    bool is_alive;
    int signal;            /* that opens the door; 0: none */
    struct buffer command; /* the words of its command line */
};

struct processes {
    struct process *list; /* owned */
    size_t count;
};

/* A field of /proc/PID/stat by its number in proc(5), from 3 on; 0: no such process. */
static unsigned long long
read_stat(pid_t pid, int field)
{
    struct buffer content = {.data = NULL}; /* owned */
    const char *at = NULL;
    unsigned long long value = 0;

    if (read_proc(pid, "stat", &content)) {
        at = strrchr(text_of(&content), ')');
        for (int i = 2; at != NULL && i < field; i++) {
            at = strchr(at + 1, ' ');
        }
        value = at != NULL ? strtoull(at, NULL, 10) : 0;
    }
    free(content.data);
    return value;
}

/* Calls for each number that is a name in the folder, behind the prefix. */
static void
for_each_number(const char *folder, const char *prefix,
                void (*call)(pid_t number, void *argument), void *argument)
{
    const struct dirent *entry = NULL;
    DIR *entries = opendir(folder); /* owned */

    /* NOLINTNEXTLINE(concurrency-mt-unsafe): there is one thread */
    while (entries != NULL && (entry = readdir(entries)) != NULL) {
        size_t length = strlen(prefix);
        const char *digits = entry->d_name + length;
        if (strncmp(entry->d_name, prefix, length) == 0 && is_digit(digits[0]) &&
            digits[strspn(digits, "0123456789")] == '\0' && strlen(digits) < 10) {
            call((pid_t)strtol(digits, NULL, 10), argument);
        }
    }
    if (entries != NULL) {
        (void)closedir(entries);
    }
}

/* Its command line, words apart by blanks; or its name in brackets, as ps shows it. */
static void
find_command(pid_t pid, struct buffer *command)
{
    struct buffer bytes = {.data = NULL}; /* owned */

    if (read_proc(pid, "cmdline", &bytes) && bytes.length > 0) {
        while (bytes.length > 0 && bytes.data[bytes.length - 1] == '\0') {
            bytes.length--;
        }
        for (size_t i = 0; i < bytes.length; i++) {
            bytes.data[i] =
                (char)(strchr("\n\t\r", bytes.data[i]) != NULL ? ' ' : bytes.data[i]);
        }
    }
    else if (read_proc(pid, "comm", &bytes) && bytes.length > 1) {
        append_text(command, "[");
        bytes.data[bytes.length - 1] = ']';
    }
    append(command, text_of(&bytes), bytes.length);
    free(bytes.data);
}

static void
add_process(struct processes *processes, const struct process *process)
{
    struct process *list =
        realloc(processes->list, (processes->count + 1) * sizeof(*processes->list));
    if (list == NULL) {
        fail(STATUS_TROUBLE, "out of memory");
    }
    processes->list = list;
    processes->list[processes->count++] = *process;
}

/* Adds the process if it has a manhole. */
static void
consider_process(pid_t pid, void *argument)
{
    struct processes *processes = argument;
    struct process process = {.target = target_of(pid), .is_alive = true};
    struct notice notice = read_notice(pid);
    bool has_socket_file = is_socket(process.target.path);

    if ((has_socket_file || notice.is_there) && find_uid(pid, &process.uid)) {
        (void)find_door(&process.target);
        process.signal = opening_signal(&notice);
        find_command(pid, &process.command);
        add_process(processes, &process);
    }
}

/* Adds a socket that no process of this number can serve. */
static void
consider_socket(pid_t pid, void *argument)
{
    struct process process = {.target = {.pid = pid}};
    struct stat status;

    (void)snprintf(process.target.path, sizeof(process.target.path), "/tmp/manhole-%d",
                   (int)pid);
    if (process_state(pid) == 0 && lstat(process.target.path, &status) == 0 &&
        S_ISSOCK(status.st_mode)) {
        process.uid = status.st_uid;
        add_process(argument, &process);
    }
}

static int
compare_processes(const void *a, const void *b)
{
    const struct process *first = a;
    const struct process *second = b;
    pid_t pid = first->target.pid;
    pid_t other = second->target.pid;
    return first->is_alive != second->is_alive ? (first->is_alive ? -1 : 1)
                                               : (pid > other) - (pid < other);
}

static struct processes
find_processes(void)
{
    struct processes processes = {.list = NULL};

    for_each_number("/proc", "", consider_process, &processes);
    for_each_number("/tmp", "manhole-", consider_socket, &processes);
    if (processes.count > 0) {
        qsort(processes.list, processes.count, sizeof(*processes.list),
              compare_processes);
    }
    return processes;
}

/* Returns a descriptor to hear the answer at, or -1 when there will be none. */
static int
knock_at(struct process *process, size_t number)
{
    char wish[32];
    int fd = -1;

    if (process->target.port != 0) { /* there a connection would be a session */
        struct listeners listeners = {.port = process->target.port};
        char network[16] = "self";
        bool can_tell = false;
        if (process->target.pid != 0) {
            (void)snprintf(network, sizeof(network), "%d", (int)process->target.pid);
        }
        can_tell = for_each_listener(network, consider_listener, &listeners);
        process->door = !can_tell             ? SILENT_DOOR
                        : listeners.count > 0 ? OPEN_DOOR
                                              : DEAD_DOOR;
        return -1;
    }
    (void)snprintf(wish, sizeof(wish), "interrupt.l%zu", number);
    fd = open_socket(wish);
    process->door = SILENT_DOOR;
    if (connect_once(fd, &process->target) < 0) {
        process->door = errno == ECONNREFUSED               ? DEAD_DOOR
                        : errno == EACCES || errno == EPERM ? DENIED_DOOR
                        : errno == EAGAIN                   ? SILENT_DOOR
                                                            : NO_DOOR;
        (void)close(fd);
        fd = -1;
    }
    return fd;
}

/* Takes the answer, if it is there. Returns whether it was. */
static bool
hear(struct process *process, struct pollfd *fd)
{
    char byte = 0;

    if (fd->fd < 0 || fd->revents == 0) {
        return false;
    }
    process->door = recv(fd->fd, &byte, 1, 0) == 1 ? OPEN_DOOR : DENIED_DOOR;
    (void)close(fd->fd);
    fd->fd = -1;
    return true;
}

/* Knocks at all doors at once, and waits a moment for who answers: the listener does, without
 * Python, when asked to interrupt a session that is not there. */
static void
knock(struct processes *processes)
{
    double deadline = now_s() + KNOCK_PATIENCE_MS / 1e3;
    struct pollfd *fds = calloc(processes->count + 1, sizeof(*fds)); /* owned */
    size_t waiting = 0;

    if (fds == NULL) {
        fail(STATUS_TROUBLE, "out of memory");
    }
    for (size_t i = 0; i < processes->count; i++) {
        fds[i] =
            (struct pollfd){.fd = knock_at(&processes->list[i], i), .events = POLLIN};
        waiting += fds[i].fd >= 0;
    }
    while (waiting > 0 && poll(fds, processes->count, patience_until(deadline)) > 0) {
        for (size_t i = 0; i < processes->count; i++) {
            waiting -= hear(&processes->list[i], &fds[i]);
        }
    }
    for (size_t i = 0; i < processes->count; i++) {
        if (fds[i].fd >= 0) {
            (void)close(fds[i].fd); /* its card is ours to show again */
        }
    }
    free(fds);
}

/* How long it has been running, in the two greatest units. */
static void
find_age(pid_t pid, char *age, size_t size)
{
    struct timespec now = {.tv_sec = 0};
    long ticks_per_s = sysconf(_SC_CLK_TCK);
    long seconds = 0;

    (void)clock_gettime(CLOCK_BOOTTIME, &now);
    seconds =
        (long)now.tv_sec - (long)(read_stat(pid, 22) / (unsigned long long)ticks_per_s);
    if (seconds >= 86400) {
        (void)snprintf(age, size, "%ldd%02ldh", seconds / 86400, seconds / 3600 % 24);
    }
    else if (seconds >= 3600) {
        (void)snprintf(age, size, "%ldh%02ldm", seconds / 3600, seconds / 60 % 60);
    }
    else {
        (void)snprintf(age, size, "%ldm%02lds", seconds / 60, seconds % 60);
    }
}

/* A row of --list. number: before it, in a list to choose from; 0: none. */
static void
print_process(const struct process *process, size_t number)
{
    static const char *const doors[] = {[NO_DOOR] = "closed",
                                        [DEAD_DOOR] = "dead",
                                        [DENIED_DOOR] = "not for you",
                                        [SILENT_DOOR] = "silent",
                                        [OPEN_DOOR] = "answers"};
    struct buffer command = {.data = NULL}; /* owned */
    char door[32];
    char version[8] = "-";
    char age[32] = "-";

    (void)snprintf(door, sizeof(door), "%s", doors[process->door]);
    if (process->door == NO_DOOR && process->signal != 0) {
        const char *name = signal_name(process->signal);
        (void)snprintf(door, sizeof(door), name != NULL ? "-s %s" : "%ssignal %d",
                       name != NULL ? name : "", process->signal);
    }
    if (process->is_alive) {
        find_version(process->target.pid, version, sizeof(version));
        find_age(process->target.pid, age, sizeof(age));
    }
    append_harmless(&command, text_of(&process->command), process->command.length);
    if (number > 0) {
        (void)printf("%3zu. ", number);
    }
    (void)printf("%7d %-10s %-6s %9s  %-11s  %s\n", (int)process->target.pid,
                 find_user(process->uid), version, age, door,
                 process->is_alive ? text_of(&command) : process->target.path);
    free(command.data);
}

/* Sockets without a process come last, and not more than a few of them. */
static void
print_processes(const struct processes *processes, bool is_numbered)
{
    size_t orphans = 0;

    (void)printf("%s%7s %-10s %-6s %9s  %-11s  %s\n", is_numbered ? "     " : "", "PID",
                 "USER", "PYTHON", "SINCE", "SOCKET", "COMMAND");
    for (size_t i = 0; i < processes->count; i++) {
        orphans += !processes->list[i].is_alive;
        if (orphans <= MAX_ORPHANS || processes->list[i].is_alive) {
            print_process(&processes->list[i], is_numbered ? i + 1 : 0);
        }
    }
    if (orphans > MAX_ORPHANS) {
        (void)printf(
            "and %zu more sockets of processes that are gone; --clean removes yours\n",
            orphans - MAX_ORPHANS);
    }
}

/* --list */
static enum exit_status
list_processes(void)
{
    struct processes processes = find_processes();
    int result = 0;

    knock(&processes);
    print_processes(&processes, false);
    result = fflush(stdout);
    if (result != 0 && errno != EPIPE) {
        fail(STATUS_TROUBLE, "cannot write to standard output: %m");
    }
    return result == 0 ? STATUS_OK : STATUS_OUTPUT_GONE;
}

/* Whether nobody serves the socket at this moment. */
static bool
is_dead(const struct target *target)
{
    int fd = open_socket("interrupt.lc");
    bool is_refused = connect_once(fd, target) < 0 && errno == ECONNREFUSED;

    (void)close(fd);
    return is_refused;
}

/* --clean: removes the sockets that nobody serves and that are ours. Between the look and the
 * removal a new process may have taken the number. */
static enum exit_status
clean_sockets(void)
{
    struct processes processes = find_processes();
    enum exit_status status = STATUS_OK;

    knock(&processes);
    for (size_t i = 0; i < processes.count; i++) {
        const struct process *process = &processes.list[i];
        const char *path = process->target.path;
        struct stat file;
        bool is_known = false;
        if (process->door != DEAD_DOOR || strncmp(path, "/tmp/", 5) != 0) {
            continue;
        }
        is_known = lstat(path, &file) == 0;
        if (is_known && (!S_ISSOCK(file.st_mode) || file.st_uid != geteuid())) {
            continue;
        }
        if (is_known && !is_dead(&process->target)) { /* since the look */
            continue;
        }
        if (is_known && unlink(path) == 0) {
            (void)printf("removed %s\n", path);
        }
        else if (errno != ENOENT) {
            say_error("cannot remove %s: %m", path);
            status = STATUS_TROUBLE;
        }
    }
    return status;
}

/* Whether a process is this one or comes from it. */
static bool
is_descendant(pid_t pid, pid_t ancestor)
{
    for (int depth = 0; depth < 64 && pid > 0; depth++) {
        if (pid == ancestor) {
            return true;
        }
        pid = (pid_t)read_stat(pid, 4);
    }
    return false;
}

/* Leaves those that --children, --match and --all mean, of the processes that live and whose door
 * is not closed to us. */
static void
select_processes(struct processes *processes, const struct request *request)
{
    regex_t expression;
    size_t kept = 0;

    if (request->match != NULL) {
        int error = regcomp(&expression, request->match, REG_EXTENDED | REG_NOSUB);
        if (error != 0) {
            char reason[128];
            (void)regerror(error, &expression, reason, sizeof(reason));
            fail_usage("argument --match: %s: %s", quote(request->match).text, reason);
        }
    }
    for (size_t i = 0; i < processes->count; i++) {
        const struct process *process = &processes->list[i];
        bool is_meant =
            process->is_alive && (geteuid() == 0 || process->uid == geteuid());
        if (is_meant && request->ancestor != 0) {
            is_meant = is_descendant(process->target.pid, request->ancestor);
        }
        if (is_meant && request->match != NULL) {
            is_meant = regexec(&expression, text_of(&process->command), 0, NULL, 0) == 0;
        }
        if (is_meant) {
            processes->list[kept++] = *process;
        }
    }
    if (request->match != NULL) {
        regfree(&expression);
    }
    processes->count = kept;
}

/* Shows the processes, numbered, and asks which one. Ends the program without an answer. */
static const struct target *
ask_which(struct processes *processes)
{
    char line[32];
    long number = 0;

    if (processes->count == 0) {
        fail(STATUS_NO_CONNECTION,
             "no process of yours has a manhole: it wants "
             "manhole.install(), or PYTHONMANHOLE in its environment, "
             "when it starts");
    }
    knock(processes);
    print_processes(processes, true);
    while (number < 1 || number > (long)processes->count) {
        (void)printf("Which one? [1-%zu] ", processes->count);
        (void)fflush(stdout);
        if (fgets(line, sizeof(line), stdin) == NULL || line[0] == 'q') {
            (void)printf("\n");
            leave(STATUS_OK);
        }
        number = strtol(line, NULL, 10);
    }
    return &processes->list[number - 1].target;
}

/* ======================================================================================
 * Side by side: -c and --stacks for several processes at once, each in a child of ours that
 * does what it does for one. What a child says comes here through pipes and is labelled:
 * code's output line by line as it comes, stacks as a block when they are complete.
 * ======================================================================================
 */

struct job {
    const struct target *target;
    pid_t child;
    int fd[2]; /* its standard output and error; -1: at their end */
    struct buffer text[2];
    enum exit_status status;
};

/* Where a child leaves word that its process answered: the status alone may be the code's own. */
static bool *has_answered; /* shared, one for each job */

static enum exit_status serve(const struct request *request, const struct target *asked,
                              bool *answered);

static void
start_job(struct job *job, const struct request *request, bool *answered)
{
    int out[2];
    int err[2];
    const pid_t parent = getpid();

    if (pipe2(out, O_CLOEXEC) < 0 || pipe2(err, O_CLOEXEC) < 0 ||
        (job->child = fork()) < 0) {
        fail(STATUS_TROUBLE,
             "cannot start a process for each: %m; ask for fewer at once");
    }
    if (job->child == 0) {
        struct request own = *request;
        int nothing = open("/dev/null", O_RDONLY | O_CLOEXEC);
        /* Not to outlive who shows what it says; the process then ends what was left to it. */
        if (prctl(PR_SET_PDEATHSIG, SIGKILL) < 0 || getppid() != parent) {
            leave(STATUS_OUTPUT_GONE);
        }
        (void)dup2(nothing, STDIN_FILENO);
        (void)dup2(out[1], STDOUT_FILENO);
        (void)dup2(err[1], STDERR_FILENO);
        look_at_terminal(true);
        own.deadline = find_deadline(request); /* from now on, however many came before */
        leave(serve(&own, job->target, answered));
    }
    (void)close(out[1]);
    (void)close(err[1]);
    job->fd[0] = out[0];
    job->fd[1] = err[0];
}

/* Writes the lines that are whole, labelled; at the end also the rest. */
static void
show_labelled(struct job *job, int stream, bool is_end)
{
    struct buffer *text = &job->text[stream];
    struct buffer shown = {.data = NULL}; /* owned */
    size_t done = 0;
    size_t length = 0;

    while ((length = next_line(text, done, is_end)) > 0) {
        size_t visible = text->data[done + length - 1] == '\n' ? length - 1 : length;
        append_text(&shown, label_of(job->target).text);
        append_text(&shown, ": ");
        if (terminal.is_shown_on) {
            append_line(&shown, text->data + done, visible);
        }
        else {
            append(&shown, text->data + done, visible);
            append_text(&shown, "\n");
        }
        done += length;
    }
    drop(text, done);
    write_all(stream == 0 ? STDOUT_FILENO : STDERR_FILENO, text_of(&shown), shown.length);
    free(shown.data);
}

/* All of the stacks under a title. */
static void
show_block(struct job *job)
{
    struct buffer shown = {.data = NULL};   /* owned */
    struct buffer command = {.data = NULL}; /* owned */
    char title[sizeof(struct quoted) + 8];

    if (job->text[0].length > 0) {
        find_command(job->target->pid, &command);
        (void)snprintf(title, sizeof(title), "==> %s ", label_of(job->target).text);
        append_paint(&shown, PROMPT, title);
        append_harmless(&shown, text_of(&command), command.length);
        append_text(&shown, " <==\n");
        write_all(STDOUT_FILENO, shown.data, shown.length);
        show_lines(&job->text[0], true);
    }
    free(shown.data);
    free(command.data);
}

/* An element of one array with the documents of all. */
static void
show_document(struct job *job, bool is_first)
{
    struct buffer shown = {.data = NULL}; /* owned */

    append_text(&shown, is_first ? "[" : ",\n");
    while (job->text[0].length > 0 &&
           job->text[0].data[job->text[0].length - 1] == '\n') {
        job->text[0].data[--job->text[0].length] = '\0';
    }
    if (job->text[0].length > 0) {
        append_text(&shown, job->text[0].data);
    }
    else {
        append_text(&shown, "{\"pid\": ");
        append_text(&shown, job->target->pid == 0 ? "null" : label_of(job->target).text);
        append_text(&shown, ", \"python\": null, \"source\": null, \"threads\": null}");
    }
    write_all(STDOUT_FILENO, shown.data, shown.length);
    free(shown.data);
}

/* Takes the child's exit status, unless something worse is known. */
static void
end_job(struct job *job)
{
    enum exit_status ended_with = STATUS_TROUBLE;
    int status = 0;

    if (waitpid(job->child, &status, 0) != job->child) {
        say_error("cannot tell what became of %s: %m", label_of(job->target).text);
    }
    else if (WIFEXITED(status)) {
        ended_with = (enum exit_status)WEXITSTATUS(status);
    }
    else {
        say_error("what asked process %s was ended by signal %d; ask again",
                  label_of(job->target).text, WTERMSIG(status));
    }
    job->status = ended_with > job->status ? ended_with : job->status;
}

static bool
is_busy_job(const struct job *job)
{
    return job->fd[0] >= 0 || job->fd[1] >= 0;
}

/* Reads what one stream of a child has. The end of both is the job's. */
static void
read_job(struct job *job, int stream)
{
    char bytes[16 * 1024];
    ssize_t count = read(job->fd[stream], bytes, sizeof(bytes));

    if (count > 0) {
        append(&job->text[stream], bytes, (size_t)count);
        return;
    }
    if (count < 0 && is_passing(errno)) {
        return;
    }
    if (count < 0) {
        say_error("cannot read what %s says: %m", label_of(job->target).text);
        job->status = STATUS_TROUBLE;
    }
    (void)close(job->fd[stream]);
    job->fd[stream] = -1;
    if (!is_busy_job(job)) {
        end_job(job);
    }
}

/* Shows what is to be shown of a job after it was read from. */
static void
show_job(struct job *job, const struct request *request, int stream, size_t *documents)
{
    bool is_over = !is_busy_job(job);

    if (request->action == ACTION_RUN || stream == 1) {
        show_labelled(job, stream, job->fd[stream] < 0);
    }
    else if (is_over || job->fd[stream] < 0) {
        if ((request->flags & FLAG_JSON) != 0) {
            show_document(job, (*documents)++ == 0);
        }
        else {
            show_block(job);
        }
    }
}

static size_t
count_busy(const struct job *jobs, size_t count)
{
    size_t busy = 0;

    for (size_t i = 0; i < count; i++) {
        busy += is_busy_job(&jobs[i]);
    }
    return busy;
}

/* Waits for any of the jobs, and deals with it. Returns whether there was one. */
static bool
attend_jobs(struct job *jobs, size_t count, const struct request *request,
            size_t *documents)
{
    struct pollfd *fds = calloc(2 * count, sizeof(*fds)); /* owned */
    bool is_busy = false;

    if (fds == NULL) {
        fail(STATUS_TROUBLE, "out of memory");
    }
    for (size_t i = 0; i < 2 * count; i++) {
        fds[i] = (struct pollfd){.fd = jobs[i / 2].fd[i % 2], .events = POLLIN};
        is_busy = is_busy || fds[i].fd >= 0;
    }
    if (is_busy && poll(fds, 2 * count, -1) > 0) {
        for (size_t i = 0; i < 2 * count; i++) {
            if (fds[i].fd >= 0 && fds[i].revents != 0) {
                read_job(&jobs[i / 2], (int)(i % 2));
                show_job(&jobs[i / 2], request, (int)(i % 2), documents);
            }
        }
    }
    free(fds);
    return is_busy;
}

/* Serves all; the status is the worst of theirs. */
static enum exit_status
serve_many(const struct request *request, const struct target *targets, size_t count)
{
    struct job *jobs = calloc(count, sizeof(*jobs)); /* owned */
    enum exit_status status = STATUS_OK;
    size_t documents = 0;
    size_t answered = 0;
    size_t begun = 0;

    has_answered =
        mmap(NULL, count, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (jobs == NULL || has_answered == MAP_FAILED) {
        fail(STATUS_TROUBLE, "out of memory");
    }
    /* Who ignores it, or was started so, learns of no child how it ended. */
    (void)signal(SIGCHLD, SIG_DFL);
    do {
        for (; begun < count && count_busy(jobs, begun) < JOBS_AT_ONCE; begun++) {
            jobs[begun].target = &targets[begun];
            start_job(&jobs[begun], request, &has_answered[begun]);
        }
    } while (attend_jobs(jobs, begun, request, &documents));
    write_all(STDOUT_FILENO, "]\n", documents > 0 ? 2 : 0);
    for (size_t i = 0; i < count; i++) {
        answered += has_answered[i];
        status = jobs[i].status > status ? jobs[i].status : status;
    }
    if ((request->flags & FLAG_QUIET) == 0) {
        (void)fprintf(stderr, "manhole-cli: %zu of %zu answered\n", answered, count);
    }
    free(jobs);
    return status;
}

/* ======================================================================================
 * Elsewhere: --host and --exec have the manhole-cli over there do it all, with the same options.
 * Theirs are the streams, the exit status and, when they cannot be reached, the message.
 * ======================================================================================
 */

/* As a shell reads it as one word. */
static void
append_quoted(struct buffer *out, const char *word)
{
    append_text(out, " '");
    for (; *word != '\0'; word++) {
        append_text(out, *word == '\'' ? "'\\''" : (const char[]){*word, '\0'});
    }
    append_text(out, "'");
}

/* The command line as it has to be over there: all PIDs first, for behind -c one more would be the
 * code's argument. A script is read here, so it goes over as standard input. */
static void
build_command(struct request *request, void (*add)(struct buffer *out, const char *word),
              struct buffer *out)
{
    add(out, program);
    for (size_t i = 0; i < request->pids; i++) {
        add(out, request->pid[i]);
    }
    for (size_t i = 0; i < OPTIONS; i++) {
        const struct option *option = &options[i];
        struct buffer word = {.data = NULL}; /* owned */
        if ((request->taken & 1U << i) == 0 || option->is_elsewhere) {
            continue;
        }
        append_text(&word, option->names[0]);
        if (option->is_literal) { /* may be empty, which glued on would be nothing */
            add(out, word.data);
            empty(&word);
        }
        if (option->metavar != NULL) {
            append_text(&word, option->names[0][1] == '-' ? "=" : "");
            append_text(&word, option->take == take_file ? "-" : request->given[i]);
        }
        add(out, word.data);
        free(word.data);
    }
    if (request->arguments > 0) {
        add(out, "--");
    }
    for (size_t i = 0; i < request->arguments; i++) {
        add(out, request->argument[i]);
    }
}

/* A word of a list that execvp() can have: each ends with a NUL. */
static void
append_word(struct buffer *out, const char *word)
{
    append(out, word, strlen(word) + 1);
}

/* Whether what is done has a use for standard input. */
static bool
wants_input(const struct request *request)
{
    return request->action == ACTION_CONSOLE ||
           (request->action == ACTION_RUN &&
            (request->file != NULL || (request->pids == 1 && !is_selection(request))));
}

/* Runs it there instead of us. */
static _Noreturn void
go_elsewhere(struct request *request)
{
    struct buffer command = {.data = NULL};
    bool wants_terminal =
        request->action == ACTION_CONSOLE && terminal.is_typed_on && terminal.is_shown_on;
    const char *name = "ssh";
    char *words[MAX_WORDS];
    size_t count = 0;

    if (request->file != NULL && strcmp(request->file, "-") != 0) {
        int fd = open(request->file, O_RDONLY | O_CLOEXEC);
        if (fd < 0 || dup2(fd, STDIN_FILENO) < 0) {
            fail(STATUS_TROUBLE, "cannot read the script %s: %m",
                 quote(request->file).text);
        }
    }
    if (!wants_input(request)) { /* what calls us in a loop may read on from there */
        int nothing = open("/dev/null", O_RDONLY | O_CLOEXEC);
        (void)dup2(nothing, STDIN_FILENO);
    }
    (void)signal(SIGPIPE, SIG_DFL);
    (void)signal(SIGINT, SIG_DFL);
    if (request->host != NULL) {
        build_command(request, append_quoted, &command);
        (void)execlp(name, name, wants_terminal ? "-t" : "-T", "--", request->host,
                     command.data, (char *)NULL);
    }
    else {
        struct buffer script = {.data = NULL};
        name = "sh";
        append_text(&script, "exec ");
        append_text(&script, request->command);
        append_text(&script, " \"$@\"");
        append_word(&command, name);
        append_word(&command, "-c");
        append_word(&command, script.data);
        append_word(&command, name);
        build_command(request, append_word, &command);
        for (size_t i = 0; i < command.length; i += strlen(command.data + i) + 1) {
            if (count + 1 == MAX_WORDS) {
                fail_usage("at most %d words can be handed to --exec", MAX_WORDS);
            }
            words[count++] = command.data + i;
        }
        words[count] = NULL;
        (void)execvp(name, words);
    }
    fail(STATUS_TROUBLE, "cannot run %s: %m; is it installed?", name);
}

/* ======================================================================================
 * Local shell: which process a configuration file means, ispyd's way. It ends with a target, that
 * of connect, and the program goes on as if its socket had been given; or without one.
 * To add a command: a row in local_commands[].
 * ======================================================================================
 */

static const char local_prompt[] = "(manhole) ";

/* What the file says of where to listen: "/path/%(pid)s" or "host:port". */
struct config {
    const char *name;     /* of the file */
    struct buffer listen; /* owned */
    bool has_section;     /* [manhole] or [ispyd] */
    bool is_in_section;   /* while it is read: the line is below that */
    bool is_in_value;     /* and what is indented by more than its key goes on with it */
    bool is_in_listen;    /* of which nothing has come yet */
    size_t indent;        /* of the key */
};

/* Cuts off the blanks and the comment at a line's end, which begins with " ;" as in ispyd. */
static void
trim_end(char *text)
{
    size_t length = 0;

    for (char *c = strchr(text, ';'); c != NULL; c = strchr(c + 1, ';')) {
        if (c > text && (c[-1] == ' ' || c[-1] == '\t')) {
            *c = '\0';
            break;
        }
    }
    length = strlen(text);
    while (length > 0 && strchr(" \t\r\n", text[length - 1]) != NULL) {
        text[--length] = '\0';
    }
}

/* Takes a line of the file. Of a listen with several places the first one is meant. */
static void
take_config_line(struct config *config, char *line, int number)
{
    static const char blanks[] = " \t";
    static const char mark[] = "\xef\xbb\xbf"; /* that some editors begin a file with */
    char *value = NULL;
    size_t indent = 0;

    trim_end(line);
    if (number == 1 && strncmp(line, mark, strlen(mark)) == 0) {
        line += strlen(mark);
    }
    indent = strspn(line, blanks);
    line += indent;
    if (line[0] == '\0' || line[0] == '#' || line[0] == ';') {
        return;
    }
    if (config->is_in_value && indent > config->indent) {
        append_text(&config->listen, config->is_in_listen ? line : "");
        config->is_in_listen = false;
        return;
    }
    config->indent = indent;
    config->is_in_value = line[0] != '[';
    config->is_in_listen = false;
    if (line[0] == '[') {
        config->is_in_section =
            strcmp(line, "[manhole]") == 0 || strcmp(line, "[ispyd]") == 0;
        config->has_section = config->has_section || config->is_in_section;
        return;
    }
    value = strpbrk(line, "=:");
    if (value == NULL) {
        fail(STATUS_TROUBLE, "%s, line %d: %s is neither [section] nor key = value",
             quote(config->name).text, number, quote(line).text);
    }
    *value++ = '\0';
    trim_end(line);
    if (config->is_in_section && strcasecmp(line, "listen") == 0) {
        empty(&config->listen);
        append_text(&config->listen, value + strspn(value, blanks));
        config->is_in_listen = config->listen.length == 0;
    }
}

/* Reads the file; ends the program when it is wrong. */
static struct config
read_config(const char *name)
{
    struct config config = {.name = name};
    char *line = NULL; /* owned */
    size_t size = 0;
    int number = 0;
    FILE *file = fopen(name, "re"); /* owned */

    if (file == NULL) {
        fail(STATUS_TROUBLE, "cannot read %s: %m", quote(name).text);
    }
    while (getline(&line, &size, file) > 0) {
        take_config_line(&config, line, ++number);
    }
    if (feof(file) == 0) {
        fail(STATUS_TROUBLE, "cannot read %s: %m", quote(name).text);
    }
    (void)fclose(file);
    free(line);
    if (!config.has_section) {
        fail(STATUS_TROUBLE, "%s has no section [manhole] or [ispyd]", quote(name).text);
    }
    if (config.listen.length == 0) {
        append_text(&config.listen, "/tmp/manhole-%(pid)s");
    }
    return config;
}

static void
add_server(struct processes *servers, const char *path, pid_t pid, int port)
{
    struct process server = {.target = {.pid = pid, .by_path = true, .port = port},
                             .is_alive = true};

    if (strlen(path) >= SOCKET_PATH_SIZE) {
        fail(STATUS_TROUBLE, "%s is longer than the path of a socket can be",
             quote(path).text);
    }
    (void)snprintf(server.target.path, sizeof(server.target.path), "%s", path);
    add_process(servers, &server);
}

static const char pid_marker[] = "%(pid)s";

/* The number that a path has where the template has its marker, each time the same; 0: it is not of
 * this template. */
static pid_t
match_path(const char *template, const char *path)
{
    pid_t pid = 0;

    while (*template != '\0') {
        if (strncmp(template, pid_marker, strlen(pid_marker)) == 0) {
            char *end = NULL;
            long number = is_digit(*path) ? strtol(path, &end, 10) : 0;
            if (number < 1 || number > INT_MAX || (pid != 0 && pid != number)) {
                return 0;
            }
            pid = (pid_t)number;
            path = end;
            template += strlen(pid_marker);
        }
        else if (*template ++ != *path++) {
            return 0;
        }
    }
    return *path == '\0' ? pid : 0;
}

/* Adds the sockets that there are of a template, whatever process's. */
static void
find_sockets(const char *template, struct processes *servers)
{
    struct buffer pattern = {.data = NULL}; /* owned */
    glob_t matches = {.gl_pathc = 0};       /* owned */
    int result = 0;

    for (const char *c = template; *c != '\0'; c++) {
        bool is_marker = strncmp(c, pid_marker, strlen(pid_marker)) == 0;
        append_text(&pattern, !is_marker && strchr("*?[\\", *c) != NULL ? "\\" : "");
        append(&pattern, is_marker ? "*" : c, 1);
        c += is_marker ? strlen(pid_marker) - 1 : 0;
    }
    /* NOLINTNEXTLINE(concurrency-mt-unsafe): there is one thread */
    result = glob(text_of(&pattern), GLOB_NOSORT, NULL, &matches);
    if (result == GLOB_NOSPACE) {
        fail(STATUS_TROUBLE, "out of memory");
    }
    if (result == 0) {
        for (size_t i = 0; i < matches.gl_pathc; i++) {
            pid_t pid = match_path(template, matches.gl_pathv[i]);
            if (pid != 0 && is_socket(matches.gl_pathv[i])) {
                add_server(servers, matches.gl_pathv[i], pid, 0);
            }
        }
        globfree(&matches);
    }
    free(pattern.data);
}

/* The port of "host:port"; ends the program when there is none. */
static int
parse_port(const struct config *config)
{
    const char *listen = config->listen.data;
    const char *colon = strrchr(listen, ':');
    long port = 0;

    if (colon == NULL || colon == listen || !is_digit(colon[1]) ||
        !parse_int(colon + 1, &port) || port < 1 || port > 65535) {
        fail(STATUS_TROUBLE,
             "%s: listen must be the absolute path of a socket or host:port, not %s",
             quote(config->name).text, quote(listen).text);
    }
    return (int)port;
}

/* Where the file's listen may lead, and whether somebody is there. */
static struct processes
find_servers(const struct config *config)
{
    const char *listen = config->listen.data;
    struct processes servers = {.list = NULL};

    if (listen[0] != '/') {
        add_server(&servers, listen, 0, parse_port(config));
        freeaddrinfo(find_addresses(&servers.list[0].target)); /* of this machine alone */
    }
    else if (strstr(listen, pid_marker) != NULL) {
        find_sockets(listen, &servers);
    }
    else {
        add_server(&servers, listen, 0, 0);
    }
    if (servers.count > 0) {
        qsort(servers.list, servers.count, sizeof(*servers.list), compare_processes);
    }
    knock(&servers);
    return servers;
}

/* The shell, and what it has come to. */
struct local_shell {
    struct config config;
    struct processes servers;     /* owned; as they were listed last */
    const struct process *chosen; /* one of them, by connect */
    bool is_over;
};

struct local_command {
    const char *name;
    const char *arguments; /* as help shows them */
    const char *help;
    void (*run)(struct local_shell *shell, const char *argument);
};

/* As Python prints the pairs of which ispyd's list consists: family and address. */
static void
list_servers(struct local_shell *shell, const char *argument)
{
    static const char *const remarks[] = {[NO_DOOR] = " dead",
                                          [DEAD_DOOR] = " dead",
                                          [DENIED_DOOR] = " not for you",
                                          [SILENT_DOOR] = " silent",
                                          [OPEN_DOOR] = ""};
    (void)argument;
    free(shell->servers.list);
    shell->servers = find_servers(&shell->config);
    for (size_t i = 0; i < shell->servers.count; i++) {
        const struct process *server = &shell->servers.list[i];
        struct target target = server->target;
        const char *remark = remarks[server->door];
        if (target.port == 0) {
            (void)printf("%zu: (%d, %s)%s\n", i + 1, AF_UNIX, quote(target.path).text,
                         remark);
            continue;
        }
        *strrchr(target.path, ':') = '\0';
        (void)printf("%zu: (%d, (%s, %d))%s\n", i + 1, AF_INET, quote(target.path).text,
                     target.port, remark);
    }
}

/* What connect was told; says what is wrong with it and returns NULL. */
static struct process *
select_server(const struct local_shell *shell, const char *argument)
{
    long number = 1;

    if (shell->servers.count == 0) {
        (void)printf("No servers to connect to: there is no socket like %s.\n",
                     quote(shell->config.listen.data).text);
        return NULL;
    }
    if (argument[0] == '\0' && shell->servers.count > 1) {
        (void)printf("Multiple servers, which should be used? \"servers\" lists them.\n");
        return NULL;
    }
    if (argument[0] != '\0' && !parse_int(argument, &number)) {
        (void)printf("Server selection not an integer.\n");
        return NULL;
    }
    if (number < 1 || number > (long)shell->servers.count) {
        (void)printf("Invalid server selected: there are 1 to %zu.\n",
                     shell->servers.count);
        return NULL;
    }
    return &shell->servers.list[number - 1];
}

static void
connect_server(struct local_shell *shell, const char *argument)
{
    struct process *server = select_server(shell, argument);
    struct processes alone = {.list = server, .count = 1};

    if (server == NULL) {
        return;
    }
    knock(&alone);
    if (server->door == DEAD_DOOR || server->door == NO_DOOR) {
        (void)printf("Nobody answers at %s any more; \"servers\" looks again.\n",
                     quote(server->target.path).text);
        return;
    }
    shell->chosen = server;
    shell->is_over = true;
}

static void
leave_local_shell(struct local_shell *shell, const char *argument)
{
    (void)argument;
    shell->is_over = true;
}

static const struct local_command local_commands[] = {
    {.name = "connect",
     .arguments = " [N]",
     .help = "Connect to the Nth server of the list, or to the only one there is.",
     .run = connect_server},
    {.name = "exit", .arguments = "", .help = "Leave.", .run = leave_local_shell},
    {.name = "help",
     .arguments = " [COMMAND]",
     .help = "List the commands, or say what one does."}, /* done by obey_locally() */
    {.name = "servers",
     .arguments = "",
     .help = "List the processes that can be connected to.",
     .run = list_servers},
};

enum { LOCAL_COMMANDS = sizeof(local_commands) / sizeof(local_commands[0]) };

static const struct local_command *
find_local_command(const char *name)
{
    for (size_t i = 0; i < LOCAL_COMMANDS; i++) {
        if (strcmp(local_commands[i].name, name) == 0) {
            return &local_commands[i];
        }
    }
    return NULL;
}

/* As Python's module cmd, and so ispyd, lays it out. */
static void
help_locally(const char *topic)
{
    static const char title[] = "Documented commands (type help <topic>):";
    const struct local_command *command = find_local_command(topic);

    if (command != NULL) {
        (void)printf("%s%s\n    %s\n", command->name, command->arguments, command->help);
    }
    else if (topic[0] != '\0') {
        (void)printf("*** No help on %s\n", quote(topic).text);
    }
    else {
        (void)printf("\n%s\n", title);
        for (size_t i = 0; i < strlen(title); i++) {
            (void)putchar('=');
        }
        for (size_t i = 0; i < LOCAL_COMMANDS; i++) {
            (void)printf("%s%s", i == 0 ? "\n" : "  ", local_commands[i].name);
        }
        (void)printf("\n\n");
    }
}

/* Runs a line: a word, and its argument. */
static void
obey_locally(struct local_shell *shell, char *line)
{
    static const char blanks[] = " \t\r\n";
    char *word = line + strspn(line, blanks);
    char *argument = word + strcspn(word, blanks);
    const struct local_command *command = NULL;

    if (*argument != '\0') {
        *argument++ = '\0';
        argument += strspn(argument, blanks);
        argument[strcspn(argument, blanks)] = '\0';
    }
    command = find_local_command(word);
    if (command != NULL && command->run != NULL) {
        command->run(shell, argument);
    }
    else if (command != NULL || strcmp(word, "?") == 0) {
        help_locally(argument);
    }
    else if (word[0] != '\0') {
        (void)printf("*** Unknown syntax: %s; \"help\" lists the commands\n",
                     quote(word).text);
    }
}

/* Reads a line from standard input and no byte more, for those behind it may be the server's.
 * Returns false at the end. */
static bool
read_line(struct buffer *line)
{
    struct pollfd typed = {.fd = terminal.input, .events = POLLIN};
    char byte = 0;
    ssize_t count = 0;

    (void)printf("%s", local_prompt);
    (void)fflush(stdout);
    while (byte != '\n' && ((count = read(terminal.input, &byte, 1)) == 1 ||
                            (count < 0 && is_passing(errno)))) {
        append(line, &byte, count == 1 ? 1 : 0);
        if (count < 0) {
            (void)poll(&typed, 1, -1);
        }
    }
    if (count < 0) {
        fail(STATUS_TROUBLE, "cannot read standard input: %m");
    }
    if (line->length == 0) {
        (void)printf("\n");
    }
    return line->length > 0;
}

/* The same by the editor, where there can be one. */
static bool
take_line(struct buffer *line)
{
#ifdef HAVE_LIBEDIT
    if (open_editor()) {
        const char *typed = NULL;
        begin_editing();
        typed = type_local_line(local_prompt);
        append_text(line, typed != NULL ? typed : "");
        return typed != NULL;
    }
#endif
    return read_line(line);
}

/* Runs the shell on a configuration file. Returns whether it has ended with connect, and then to
 * what; the file may mean a process that is not there when it begins. */
static bool
choose_server(const char *config, struct target *target)
{
    struct local_shell shell = {.config = read_config(config)};
    struct buffer line = {.data = NULL}; /* owned */
    bool is_chosen = false;

    find_history();
    shell.servers = find_servers(&shell.config);
    while (!shell.is_over && take_line(&line)) {
        obey_locally(&shell, line.data);
        (void)fflush(stdout);
        empty(&line);
    }
    is_chosen = shell.chosen != NULL;
    if (is_chosen) {
        *target = shell.chosen->target;
    }
    free(line.data);
    free(shell.config.listen.data);
    free(shell.servers.list);
    return is_chosen;
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
        fd = open("/dev/null", O_RDWR); /* for who we start, too */
    } while (fd >= 0 && fd <= STDERR_FILENO);
    if (fd >= 0) {
        (void)close(fd);
    }
}

/* The console of a process: with the line editor where there can be one. */
static enum exit_status
hold_console(const struct request *request, struct target *target)
{
    bool is_quiet = (request->flags & FLAG_NO_DUMP) != 0;
    const char *wish = terminal.is_typed_on ? (is_quiet ? "terminal-quiet" : "terminal")
                       : is_quiet           ? "quiet"
                                            : "repl";

    find_history();
#ifdef HAVE_LIBEDIT
    if (open_editor()) {
        return converse(open_connection(request, target, wish), target);
    }
#endif
    return relay(open_connection(request, target, wish), target);
}

/* Does for one process what is asked for. */
static enum exit_status
serve(const struct request *request, const struct target *asked, bool *answered)
{
    struct target target = *asked; /* and where it was found */
    bool is_json = (request->flags & FLAG_JSON) != 0;
    enum exit_status status = STATUS_OK;

    switch (request->action) {
    case ACTION_RUN:
        return run_code(open_connection(request, &target, "exec"), request, &target,
                        answered);
    case ACTION_STACKS:
        status =
            show_stacks(open_connection(request, &target, is_json ? "json" : "stacks"),
                        request, &target);
        *answered = status == STATUS_OK;
        return status;
    default:
        return hold_console(request, &target);
    }
}

/* Does it for those that --all, --children or --match mean: of the console there can be one. */
static enum exit_status
serve_selected(const struct request *request)
{
    struct processes processes = find_processes();
    struct target *targets = NULL; /* owned */
    enum exit_status status = STATUS_OK;
    bool answered = false;

    select_processes(&processes, request);
    if (processes.count == 0 && is_selection(request)) {
        fail(STATUS_NO_CONNECTION,
             "none of the processes that are meant has a manhole for you; "
             "see manhole-cli --list");
    }
    if (request->action == ACTION_CONSOLE) {
        if (processes.count == 1 && is_selection(request)) {
            return serve(request, &processes.list[0].target, &answered);
        }
        if (!terminal.is_typed_on || !terminal.is_shown_on) {
            fail_usage(
                "%zu processes are meant, a console is of one; see manhole-cli --list",
                processes.count);
        }
        return serve(request, ask_which(&processes), &answered);
    }
    targets = calloc(processes.count, sizeof(*targets));
    for (size_t i = 0; targets != NULL && i < processes.count; i++) {
        targets[i] = processes.list[i].target;
    }
    status = serve_many(request, targets, targets != NULL ? processes.count : 0);
    free(targets);
    return status;
}

/* Does it for the PIDs of the command line. */
static enum exit_status
serve_named(const struct request *request)
{
    struct target *targets = calloc(request->pids, sizeof(*targets)); /* owned */
    enum exit_status status = STATUS_OK;
    bool answered = false;

    if (request->pids == 1) {
        struct target target = request->target;
        free(targets);
        return target.config == NULL || choose_server(target.config, &target)
                   ? serve(request, &target, &answered)
                   : STATUS_OK;
    }
    for (size_t i = 0; targets != NULL && i < request->pids; i++) {
        targets[i] = parse_target(request->pid[i]);
    }
    status = serve_many(request, targets, targets != NULL ? request->pids : 0);
    free(targets);
    return status;
}

int
main(int argc, char **argv)
{
    static struct request request = {.timeout_s = DEFAULT_TIMEOUT_S};

    keep_standard_descriptors();
    (void)signal(SIGPIPE, SIG_IGN); /* output that nobody reads is an error of write() */
    (void)set_handler(SIGINT, on_early_interrupt);
    look_at_terminal(false);
    parse_command_line(argc, argv, &request);
    terminal.is_raw = (request.flags & FLAG_RAW) != 0;
    if (request.host != NULL || request.command != NULL) {
        go_elsewhere(&request);
    }
    if (request.action == ACTION_LIST) {
        return (int)list_processes();
    }
    if (request.action == ACTION_CLEAN) {
        return (int)clean_sockets();
    }
    if (request.action == ACTION_RUN) {
        read_source(&request);
    }
    request.deadline = find_deadline(&request);
    return (int)(request.pids > 0 ? serve_named(&request) : serve_selected(&request));
}
