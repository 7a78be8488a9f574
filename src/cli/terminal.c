/* Terminal: what text from a process may do to it, and the colours it gets here.
 *
 * On a terminal a process could, by the text that it writes, type commands, retitle the window or
 * hide what it did. So there all control characters but newline, tab and carriage return are shown,
 * not sent:
 *
 *   ESC and the like         ^[       what is no UTF-8            \xff
 *   C1 control characters    \x9b     what turns the direction    \u202e
 *
 * The colours of CPython's tracebacks are let through in whole lines, no others: they hide nothing,
 * and no text passes for the prompt. --raw sends everything. Whatever is written to a terminal, by
 * whatever room, has come through append_harmless().
 * To add a colour: a row in paints[], and in paint_of_line() what wears it.
 */
#ifndef MANHOLE_CLI_TERMINAL_C
#define MANHOLE_CLI_TERMINAL_C

#include "buffer.c"

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
    bool is_quiet;    /* --quiet: no remarks of our own */
    bool is_raw;      /* --raw: control sequences are sent as they come */
    bool is_recorded; /* it is a recorder's, and there is no shell in this session */
    bool is_in_traceback; /* the last line that was painted */
} terminal;

/* Characters are what UTF-8 says, also where the locale says nothing of them. */
static void
look_at_terminal(void)
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
    terminal.is_capable = type != NULL && type[0] != '\0' && strcmp(type, "dumb") != 0;
    terminal.has_colours = terminal.is_shown_on && terminal.is_capable &&
                           (no_color == NULL || no_color[0] == '\0');
    terminal.input = STDIN_FILENO;
    if (terminal.is_typed_on) {
        /* Between a poll() that promises a line and the read(), Ctrl-C may have thrown it away. To
         * make standard input non-blocking would do so for all who share it. */
        int again = open("/proc/self/fd/0", O_RDONLY | O_NONBLOCK | O_NOCTTY | O_CLOEXEC);
        terminal.input = again >= 0 ? again : STDIN_FILENO;
    }
}

/* Whether there is somebody to talk to. */
static bool
is_interactive(void)
{
    return terminal.is_typed_on && terminal.is_shown_on;
}

/* For the server: the columns, behind them a "c" where colours are let through, which only the
 * editor does; "" where there is nobody to talk to. */
static struct text
describe_terminal(void)
{
    struct winsize size = {.ws_col = 0};
#ifdef HAVE_LIBEDIT
    const char *colours = terminal.has_colours ? "c" : "";
#else
    const char *colours = "";
#endif
    return is_interactive() && ioctl(STDOUT_FILENO, TIOCGWINSZ, &size) == 0 &&
                   size.ws_col > 1
               ? print(".%d%s", size.ws_col, colours)
               : print("%s", "");
}

/* Cells and columns: where the cursor is after text that began in column 0. */
struct cell {
    int row;
    int column;
};

/* How large the terminal is; 80 by 24 where it does not say. */
static struct cell
count_screen(void)
{
    struct winsize size = {.ws_col = 0};
    bool is_known = ioctl(STDOUT_FILENO, TIOCGWINSZ, &size) == 0;
    return (struct cell){.row = is_known && size.ws_row > 1 ? size.ws_row : 24,
                         .column = is_known && size.ws_col > 1 ? size.ws_col : 80};
}

static int
count_columns(void)
{
    return count_screen().column;
}

/* Moves over a character, which takes no, one or two cells; eight at most where it is a tab.
 * libedit shows a control character as two, and begins a new row as soon as one is full. */
static void
move_over(struct cell *cell, wchar_t c, int columns)
{
    int width = wcwidth(c);

    if (c == L'\n') {
        *cell = (struct cell){.row = cell->row + 1};
        return;
    }
    int cells = c == L'\t'              ? 8 - cell->column % 8
                : c < 0x20 || c == 0x7f ? 2
                : width >= 0            ? width
                                        : 1;

    if (cell->column + cells > columns) {
        cell->row++;
        cell->column = 0;
    }
    cell->column += cells;
    if (cell->column >= columns) {
        cell->row++;
        cell->column = 0;
    }
}

/* How many bytes of a line, given without its newline, fit into a row of the terminal; all of them
 * where there is none. */
static size_t
fit_row(const struct buffer *line)
{
    struct cell cell = {.row = 0};
    int columns = terminal.is_shown_on ? count_columns() : INT_MAX;
    size_t length = 0;

    while (length < line->length) {
        wchar_t c = L'?';
        size_t count = decode(line->data + length, &c);
        move_over(&cell, c, columns);
        if (cell.row > 0 && cell.column > 0) {
            break;
        }
        length += count > 0 ? count : 1;
    }
    return length;
}

/* Whether a character turns the direction of the text around it, so that it reads as what it is
 * not. */
static bool
is_misleading(wchar_t c)
{
    return (c >= 0x202a && c <= 0x202e) || (c >= 0x2066 && c <= 0x2069);
}

/* Adds text such that it moves nothing on a terminal but the cursor, and that only to the right,
 * down, or to the start of its line. The bytes end with a NUL. */
static void
append_harmless(struct buffer *out, const char *bytes, size_t count)
{
    if (terminal.is_raw) {
        append(out, bytes, count);
        return;
    }
    for (size_t i = 0; i < count;) {
        wchar_t c = 0;
        size_t length = decode(bytes + i, &c);
        if (length == 0 || (c >= 0x80 && c < 0xa0)) {
            append_format(out, "\\x%02x",
                          length == 0 ? (unsigned)(unsigned char)bytes[i] : (unsigned)c);
        }
        else if (is_misleading(c)) {
            append_format(out, "\\u%04x", (unsigned)c);
        }
        else if ((c < 0x20 && strchr("\n\t\r", (int)c) == NULL) || c == 0 || c == 0x7f) {
            append(out, (const char[]){'^', (char)(c ^ 0x40)}, 2);
        }
        else {
            append(out, bytes + i, length);
        }
        i += length > 0 ? length : 1;
    }
}

/* How many bytes at the end may be the beginning of a character of which the rest is still to
 * come. */
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

/* The same for bytes that come in pieces: the beginning of a character waits in unfinished. */
static void
append_piece(struct buffer *out, struct buffer *unfinished, const char *bytes,
             size_t count)
{
    append(unfinished, bytes, count);
    size_t whole = unfinished->length;
    if (!terminal.is_raw) {
        whole -= count_unfinished(unfinished->data, unfinished->length);
    }
    append_harmless(out, unfinished->data, whole);
    drop(unfinished, whole);
}

/* Colours end where the text ends, which is within a line. */
static void
append_paint(struct buffer *out, enum paint paint, const char *text)
{
    if (terminal.has_colours && paint != PLAIN) {
        append_format(out, "\033[%sm%s\033[0m", paints[paint], text);
    }
    else {
        append_text(out, text);
    }
}

/* The colour of a line, by its beginning: the head of a thread's stack; the head and the last line
 * of a traceback, which is the first one behind it that is not indented. */
static enum paint
paint_of_line(const char *line)
{
    bool was_in_traceback = terminal.is_in_traceback;

    terminal.is_in_traceback = false;
    if (strncmp(line, "#########", 9) == 0) {
        return HEADER;
    }
    if (strncmp(line, "Traceback (most recent call last):", 34) == 0) {
        terminal.is_in_traceback = true;
        return ERROR;
    }
    terminal.is_in_traceback = was_in_traceback && (line[0] == ' ' || line[0] == '\t');
    bool is_last = was_in_traceback && !terminal.is_in_traceback;
    return is_last && line[0] != '\r' && line[0] != '\0' ? ERROR : PLAIN;
}

/* How long the colour is that begins here: one of those in CPython's tracebacks, red, magenta, and
 * for notes from 3.15 on cyan, bold or not. 0: there is none. */
static size_t
measure_colour(const char *bytes)
{
    size_t length = strncmp(bytes, "\033[", 2) == 0 ? 2 : 0;

    while (length > 0 && bytes[length] != 'm') {
        char *end = NULL;
        unsigned long code = strtoul(bytes + length, &end, 10);
        bool is_known = code <= 1 || code == 31 || code == 35 || code == 36;
        if (!is_known || bytes[length] < '0' || bytes[length] > '9' ||
            (*end != ';' && *end != 'm')) {
            return 0;
        }
        length = (size_t)(end - bytes) + (*end == ';');
    }
    return length + (length > 0);
}

/* As append_harmless(), but for the colours of tracebacks on a terminal that has colours. They end
 * with the line. Returns whether there are any. */
static bool
append_coloured(struct buffer *out, const char *bytes, size_t count)
{
    const char *end = bytes + count;
    bool has_any = false;

    while (bytes < end) {
        size_t length = terminal.has_colours ? measure_colour(bytes) : 0;
        const char *next = memchr(bytes + 1, '\033', (size_t)(end - bytes) - 1);
        next = next == NULL ? end : next;
        if (length > 0) {
            append(out, bytes, length);
            next = bytes + length;
        }
        else {
            append_harmless(out, bytes, (size_t)(next - bytes));
        }
        has_any = has_any || length > 0;
        bytes = next;
    }
    append_text(out, has_any ? "\033[0m" : "");
    return has_any;
}

/* Adds a line as it looks on this terminal, with a newline. The bytes end with a NUL. */
static void
append_line(struct buffer *out, const char *bytes, size_t count)
{
    OWNED_BUFFER line = {.data = NULL};

    count -= count > 0 && bytes[count - 1] == '\r';
    bool is_coloured = append_coloured(&line, bytes, count);
    enum paint paint = line.length > 0 ? paint_of_line(line.data) : PLAIN;
    append_paint(out, is_coloured ? PLAIN : paint, text_of(&line));
    append_text(out, "\n");
}

/* Writes the lines that are whole, each behind the label if there is one, in colour where there is
 * any. At the end also the rest. */
static void
show_lines(int fd, const char *label, struct buffer *text, bool is_end)
{
    OWNED_BUFFER shown = {.data = NULL};
    bool is_plain = isatty(fd) != 1 || (terminal.is_raw && label == NULL);
    size_t done = 0;
    size_t length = 0;

    while ((length = next_line(text, done, is_end)) > 0) {
        const char *line = text->data + done;
        size_t visible = line[length - 1] == '\n' ? length - 1 : length;
        append_format(&shown, label != NULL ? "%s: " : "%s", label != NULL ? label : "");
        if (is_plain) {
            append(&shown, line, visible);
            append_text(&shown, visible < length || label != NULL ? "\n" : "");
        }
        else {
            append_line(&shown, line, visible);
        }
        done += length;
    }
    drop(text, done);
    write_all(fd, text_of(&shown), shown.length);
}

#endif /* MANHOLE_CLI_TERMINAL_C */
