/* Messages: every word on standard error, and the ways out that are not main()'s.
 *
 * A message is one line: what failed, with whom, and what to do next. Those that python-manhole
 * has, too, are kept to the letter, for scripts look for them. What they cite, a word of the
 * command line or a path, is written as Python's repr() writes it: so a name with a newline or an
 * escape sequence in it neither breaks the line nor reaches the terminal.
 *
 * fail() ends the program. What this owns, descriptors and memory, goes with it: nothing here needs
 * a clean-up that the kernel does not do, but for the terminal, which atexit() sees to.
 */
#ifndef MANHOLE_CLI_MESSAGES_C
#define MANHOLE_CLI_MESSAGES_C

#include "base.h"

static const char program[] = "manhole-cli";
/* As python-manhole's, without what is new: scripts know its client by this line. */
static const char usage[] =
    "usage: manhole-cli [-h] [-t TIMEOUT] [-1 | -2 | -s SIGNAL] PID\n";

/* A text by value, so that what makes one can stand in a call: quote(word).text lives until the end
 * of that full expression. */
struct text {
    char text[QUOTED_SIZE];
};

static struct text __attribute__((format(printf, 1, 2))) print(const char *format, ...)
{
    struct text text;
    va_list arguments;
    va_start(arguments, format);
    (void)vsnprintf(text.text, sizeof(text.text), format, arguments);
    va_end(arguments);
    return text;
}

/* The length of the UTF-8 sequence at the start of text, and its character. 0: there is none, for
 * what is overlong, a surrogate or beyond Unicode is none. Reads no further than a NUL. */
static size_t
decode(const void *text, wchar_t *c)
{
    static const wchar_t least[] = {0, 0, 0x80, 0x800, 0x10000};
    const unsigned char *bytes = text;
    size_t length = bytes[0] >= 0xf0 ? 4 : bytes[0] >= 0xe0 ? 3 : 2;

    if (bytes[0] < 0x80) {
        *c = bytes[0];
        return 1;
    }
    if (bytes[0] < 0xc2 || bytes[0] > 0xf4) {
        return 0;
    }
    *c = bytes[0] & (0xff >> (length + 1));
    for (size_t i = 1; i < length; i++) {
        if ((bytes[i] & 0xc0) != 0x80) {
            return 0;
        }
        *c = *c << 6 | (bytes[i] & 0x3f);
    }
    bool is_good = *c >= least[length] && *c <= 0x10ffff && (*c < 0xd800 || *c > 0xdfff);
    return is_good ? length : 0;
}

/* Writes the first character of text as repr() would. Bytes that are no UTF-8 come out as the lone
 * surrogates that Python makes of them. Returns how many bytes that was. */
static size_t
quote_character(const char *text, char mark, char *out, size_t size)
{
    static const char plain[] = "\\\t\n\r";
    static const char letter[] = "\\tnr";
    const char *escaped = strchr(plain, text[0]);
    wchar_t c = 0;
    size_t length = decode(text, &c);

    if (length == 0) {
        (void)snprintf(out, size, "\\udc%02x", (unsigned)(unsigned char)text[0]);
        return 1;
    }
    if (escaped != NULL || text[0] == mark) {
        (void)snprintf(out, size, "\\%c",
                       escaped != NULL ? letter[escaped - plain] : mark);
    }
    else if (c < 0x20 || (c >= 0x7f && c <= 0xa0) ||
             c == 0xad) { /* or they are invisible */
        (void)snprintf(out, size, "\\x%02x", (unsigned)c);
    }
    else {
        (void)snprintf(out, size, "%.*s", (int)length, text);
    }
    return length;
}

/* Quotes are double only where that saves a backslash. What is too long is cut, with three dots,
 * and at no place inside a character. */
static struct text
quote(const char *text)
{
    struct text quoted;
    char mark = strchr(text, '\'') != NULL && strchr(text, '"') == NULL ? '"' : '\'';
    size_t length = 0;

    quoted.text[length++] = mark;
    while (*text != '\0' && length < sizeof(quoted.text) - 16) {
        text += quote_character(text, mark, quoted.text + length, 8);
        length += strlen(quoted.text + length);
    }
    (void)snprintf(quoted.text + length, sizeof(quoted.text) - length, "%s%c",
                   *text != '\0' ? "..." : "", mark);
    return quoted;
}

/* Ends the program from anywhere but main(). */
static _Noreturn void
leave(enum exit_status status)
{
    exit((int)status); /* NOLINT(concurrency-mt-unsafe): there is one thread */
}

/* One line on standard error, "%m" for errno included. Standard error is not buffered, and a line
 * is formatted first, so that it is written in one piece. */
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

/* Says why and ends the program. */
static _Noreturn void __attribute__((format(printf, 2, 3)))
fail(enum exit_status status, const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    if (status == STATUS_USAGE) {
        /* Scripts that look at the first line find the same one for every mistake. */
        (void)fputs(usage, stderr);
    }
    vsay_error(format, arguments);
    va_end(arguments);
    leave(status);
}

#endif /* MANHOLE_CLI_MESSAGES_C */
