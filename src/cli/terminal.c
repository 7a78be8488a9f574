/* Terminal: what text from a process may do to it, and the colours it gets here.
 * On a terminal a process could, by the text that it writes, type commands, retitle the
 * window or hide what it did. So there all control characters but newline, tab and carriage
 * return are shown, not sent: ESC as ^[, what is no UTF-8 as \xff. --raw sends everything.
 * To add a colour: a row in paints[], and in paint_of_line() what wears it.
 */
#ifndef MANHOLE_CLI_TERMINAL_C
#define MANHOLE_CLI_TERMINAL_C

#include "messages.c"

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

#endif /* MANHOLE_CLI_TERMINAL_C */
