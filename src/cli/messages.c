/* Messages: every word on standard error, and the ways out that are not main()'s.
 * A message is one line: what failed, with whom, and what to do next. Those that
 * python-manhole has, too, are kept to the letter, for scripts look for them.
 */
#ifndef MANHOLE_CLI_MESSAGES_C
#define MANHOLE_CLI_MESSAGES_C

#include "base.h"

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

#endif /* MANHOLE_CLI_MESSAGES_C */
