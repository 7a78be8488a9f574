/* Screen: what the process says at a terminal where a line is being edited: above that line, or as
 * its prompt.
 *
 * Each byte goes to one of two lines, and a newline makes a line output, so that whatever arrives
 * in pieces looks as if it had come at once. editor.line is the session's: as long as no newline
 * ends it, it is the editor's prompt, so that each prompt works, that of pdb or input() as well.
 * Marks (see there) tell when it is one: what arrives behind it, until a line is sent or the reader
 * has one that was sent before, was written by other threads, gathers in editor.aside and never
 * becomes part of it. When a line is sent, or the reader is gone, both become one.
 *
 * libedit knows nothing of other output on its terminal. So before that comes, the cursor goes to
 * where the prompt begins, which we reckon as the terminal does, and all below is cleared; then the
 * output is written, and libedit is told to draw anew, from wherever the cursor is.
 */
#ifndef MANHOLE_CLI_SCREEN_C
#define MANHOLE_CLI_SCREEN_C

#include "relay.c"

enum { LINE_SIZE = 4096 }; /* of a line without end, before what fills rows is output */

#ifdef HAVE_LIBEDIT

/* The lines around the one that libedit has, see the room block. */
struct block {
    struct buffer above; /* each with its newline */
    struct buffer below;
    size_t settled; /* bytes of above that were sent, and stand on the screen as output */
    bool is_anew;   /* the server has lines of it that it is to forget */
    bool is_pasted; /* a whole line of what is not settled was */
    bool is_torn;   /* other output stands behind the settled ones */
    int rows_above; /* drawn over the line, of those that are not settled */
    struct buffer indent; /* what the next line begins with; then */
    size_t indented;      /* that many blanks, while nothing else is in the line */
};

enum way_out { NO_WAY_OUT, SERVER_CLOSED, LINE_CANCELLED, LEFT, INPUT_ENDED };

static const char continuation[] = "... ";

static struct editor {
    EditLine *el;
    History *history;
    const struct target *target;
    int server; /* -1: the prompt is our own, which has */
    void (*complete_locally)(const char *start, struct buffer *matches);
    bool is_begun;          /* the terminal and its signals are ours */
    bool is_waiting;        /* somebody reads there, nothing was sent since */
    bool is_typing;         /* libedit shows a line */
    bool is_silent;         /* not a byte has come, and nothing was said of that */
    bool was_farewell;      /* what came last */
    enum way_out way_out;   /* why read_key() gave up */
    struct buffer line;     /* of the session, since its last newline */
    size_t asked;           /* bytes at its end that are the console's prompt */
    struct buffer aside;    /* the same of other threads, while a prompt stands */
    struct buffer out;      /* lines on their way to the terminal */
    struct buffer prompt;   /* as libedit wants it */
    struct cell prompt_end; /* where it ends on the screen */
    bool is_stale;          /* what is shown of it is not what it should be */
    struct buffer unsent;   /* to the server */
    struct buffer keys;     /* read, and not yet asked for */
    bool is_pasting;        /* a paste has begun, and not ended */
    struct block block;     /* that the line is of */
    int recalled;           /* which entry of the history it was; 0: none */
    struct buffer draft;    /* what was typed before one was recalled */
    struct buffer entry;    /* the newest one */
} editor;

/* ---- What the server says ---------------------------------------------------------- */

/* Returns how many bytes of the text fill whole rows of the terminal, so that a newline behind them
 * is not seen. */
static size_t
move_over_text(struct cell *cell, const struct buffer *text)
{
    int columns = count_columns();
    size_t whole = 0;

    for (size_t i = 0; i < text->length;) {
        wchar_t c = L'?';
        int row = cell->row;
        size_t length = decode(text->data + i, &c);
        move_over(cell, length > 0 ? c : L'?', columns);
        length += length == 0;
        if (cell->row > row) {
            whole = cell->column == 0 ? i + length : i;
        }
        i += length;
    }
    return whole;
}

/* Lines without end neither grow for ever nor become a prompt that fills the screen. */
static void
shorten(struct buffer *line)
{
    size_t whole = move_over_text(&(struct cell){.row = 0}, line);
    if (whole > 0) {
        append_line(&editor.out, line->data, whole);
        drop(line, whole);
    }
}

/* A byte of output goes to the line of whoever writes: the session, or other threads while a prompt
 * stands. */
static void
add_output(char byte)
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
        if (line->length % LINE_SIZE == 0) { /* what takes no room stays */
            shorten(line);
        }
    }
}

/* Whether the line is what it was begun with, and nothing else. */
static bool
is_indentation_alone(void)
{
    const LineInfoW *line = el_wline(editor.el);
    const wchar_t *end = line->buffer + editor.block.indented;
    const wchar_t *c = line->buffer;

    while (c < line->lastchar && (*c == L' ' || *c == L'\t')) {
        c++;
    }
    return editor.block.indented > 0 && c == end && line->cursor == end &&
           line->lastchar == end;
}

/* What was sent of the block has run; what is still typed of it goes on. */
static void
end_block(void)
{
    drop(&editor.block.above, editor.block.settled);
    editor.block.settled = 0;
    editor.block.is_anew = editor.block.is_torn = false;
    empty(&editor.block.indent);
    if (editor.is_typing && is_indentation_alone()) {
        el_deletestr(editor.el, (int)editor.block.indented);
    }
    editor.block.indented = 0;
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
withdraw_prompt(void)
{
    if (editor.is_waiting) {
        editor.line.length -= editor.asked;
        append(&editor.line, "", 0);
        end_waiting();
    }
}

/* Somebody reads. What does not go on with a block ends it. */
static void
begin_waiting(const char *prompt)
{
    if (strcmp(prompt, continuation) != 0) {
        end_block();
    }
    withdraw_prompt(); /* of one that did not say that it has read */
    shorten(&editor.line);
    append_text(&editor.line, prompt);
    editor.asked = strlen(prompt);
    editor.is_waiting = editor.is_stale = true;
}

/* A byte from the server: output, or a part of a mark. */
static void
receive_byte(char byte)
{
    switch (parse_mark(byte)) {
    case NO_MARK:
        add_output(byte);
        break;
    case MARK_UNFINISHED:
        break;
    case MARK_WAITS:
        begin_waiting(marks.text.data + 1);
        break;
    case MARK_HAS_READ:
        withdraw_prompt();
        break;
    case MARK_BROKEN:
        for (size_t i = 0; i < marks.text.length; i++) {
            add_output(marks.text.data[i]);
        }
        break;
    }
}

/* For a server that puts no marks: a prompt is what looks like one and has nothing behind it. */
static void
guess_prompt(struct buffer *line)
{
    if (ends_with(line, ">>> ")) {
        end_block();
    }
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
receive_output(void)
{
    char bytes[CHUNK_SIZE];
    ssize_t count = recv(editor.server, bytes, sizeof(bytes), 0);

    if (count == 0 || (count < 0 && !is_passing(errno))) {
        editor.way_out = SERVER_CLOSED;
        return;
    }
    for (ssize_t i = 0; i < count; i++) {
        receive_byte(bytes[i]);
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

/* The prompt of a line of the block, given by where that begins in above: the session's for the
 * first one that is not settled. */
static void
append_prompt(struct buffer *out, size_t start)
{
    const char *line = text_of(&editor.line);
    const char *carriage_return = memrchr(line, '\r', editor.line.length);
    const char *text = carriage_return != NULL ? carriage_return + 1 : line;

    if (editor.block.is_anew && start == 0) {
        append_text(out, ">>> ");
    }
    else if (editor.block.is_anew || start > editor.block.settled) {
        append_text(out, editor.asked > 0 ? continuation : "");
    }
    else {
        append_harmless(out, text, editor.line.length - (size_t)(text - line));
    }
}

/* For libedit. Between two bytes '\1' stands what takes no room. libedit writes that along with the
 * character behind it, and not at all when there is none: so where the colour ends, the blank that
 * ends the prompt is written once more. */
static char *
prompt_of(EditLine *el)
{
    OWNED_BUFFER shown = {.data = NULL};

    (void)el;
    append_prompt(&shown, editor.block.above.length);
    bool is_painted = terminal.has_colours && editor.asked > 0 && ends_with(&shown, " ");
    empty(&editor.prompt);
    append_format(&editor.prompt,
                  is_painted ? "\1\033[1;32m\1%.*s\1 \033[0m\b\1 " : "%.*s",
                  (int)shown.length - (is_painted ? 1 : 0), text_of(&shown));
    editor.prompt_end = (struct cell){.row = 0};
    (void)move_over_text(&editor.prompt_end, &shown);
    editor.is_stale = false;
    return editor.prompt.data;
}

/* Where the cursor is when it stands at a character of the line. */
static struct cell
cell_of(const wchar_t *end)
{
    struct cell cell = editor.prompt_end;
    int columns = count_columns();

    for (const wchar_t *c = el_wline(editor.el)->buffer; c < end; c++) {
        move_over(&cell, *c, columns);
    }
    return cell;
}

/* Puts the cursor where the first line of the block begins, and clears all from there on. */
static void
hide_line(void)
{
    int rows = cell_of(el_wline(editor.el)->cursor).row + editor.block.rows_above;

    (void)fputs("\r", stdout);
    if (rows > 0) {
        (void)printf("\033[%dA", rows);
    }
    (void)fputs("\033[J", stdout);
    editor.block.rows_above = 0;
}

/* Adds a line of the block, as it looks with the prompt of where it begins, but for its newline.
 * Returns how many rows that takes. */
static int
append_row(struct buffer *out, size_t prompt_at, const char *line, size_t length)
{
    OWNED_BUFFER text = {.data = NULL};
    struct cell cell = {.row = 0};

    append_prompt(&text, prompt_at);
    append_paint(out, editor.asked > 0 ? PROMPT : PLAIN, text_of(&text));
    size_t prompt_length = text.length;
    append_harmless(&text, line, length - 1);
    append_text(out, text_of(&text) + prompt_length);
    (void)move_over_text(&cell, &text);
    return cell.row + (cell.column > 0 || cell.row == 0);
}

/* The rows of the lines of above from there on. */
static int
count_rows(size_t start)
{
    const struct buffer *above = &editor.block.above;
    OWNED_BUFFER unused = {.data = NULL};
    int rows = 0;

    for (size_t length = 0; start < above->length; start += length) {
        length = next_line(above, start, false);
        rows += append_row(&unused, start, above->data + start, length);
    }
    return rows;
}

/* Draws the last lines over the line being typed, as many as there is room for. */
static void
draw_above(int room)
{
    const struct buffer *above = &editor.block.above;
    int rows = count_rows(editor.block.settled);
    size_t length = 0;

    for (size_t i = editor.block.settled; i < above->length; i += length) {
        OWNED_BUFFER row = {.data = NULL};
        length = next_line(above, i, false);
        int taken = append_row(&row, i, above->data + i, length);
        if (rows > room) {
            rows -= taken;
        }
        else {
            append_text(&row, "\n");
            (void)fwrite(row.data, 1, row.length, stdout);
        }
    }
    editor.block.rows_above = rows;
}

/* Moves the cursor, "A" up or "C" to the right; for 0 a terminal would move it by 1. */
static void
append_move(struct buffer *out, int count, char where)
{
    if (count > 0) {
        append_format(out, "\033[%d%c", count, where);
    }
}

/* Draws the first lines under the line being typed, and leaves the cursor where it was. */
static void
draw_below(void)
{
    const struct buffer *below = &editor.block.below;
    const LineInfoW *line = el_wline(editor.el);
    struct cell cursor = cell_of(line->cursor);
    struct cell end = cell_of(line->lastchar);
    int room = count_screen().row - 1 - editor.block.rows_above - end.row;
    int rows = end.row - cursor.row;
    OWNED_BUFFER out = {.data = NULL};
    size_t length = 0;

    if (below->length == 0) {
        return;
    }
    for (int i = 0; i < rows; i++) {
        append_text(&out, "\n");
    }
    append_text(&out, "\r");
    append_move(&out, end.column, 'C');
    append_text(&out, "\033[J");
    for (size_t i = 0; i < below->length && room > 0; i += length) {
        OWNED_BUFFER row = {.data = NULL};
        length = next_line(below, i, false);
        int taken = append_row(&row, editor.block.settled + 1, below->data + i, length);
        append_text(&out, room >= taken ? "\n" : "");
        append_text(&out, room >= taken ? row.data : "");
        rows += room >= taken ? taken : 0;
        room -= taken;
    }
    append_text(&out, "\r");
    append_move(&out, rows, 'A');
    append_move(&out, cursor.column, 'C');
    (void)fwrite(out.data, 1, out.length, stdout);
}

/* Has the line that is being typed drawn, if there is one, and the block around it. */
static void
draw_line(void)
{
    if (editor.is_typing) {
        int screen = count_screen().row;
        draw_above(editor.block.below.length > 0 ? screen / 2 : screen - 2);
        (void)el_set(editor.el, EL_REFRESH);
    }
}

/* Shows what has gathered, above the line being typed if there is one, and that again. */
static void
show_output(void)
{
    if (editor.out.length > 0 || (editor.is_typing && editor.is_stale)) {
        if (editor.is_typing) {
            hide_line();
        }
        editor.block.is_torn = editor.block.is_torn || editor.out.length > 0;
        (void)fwrite(text_of(&editor.out), 1, editor.out.length, stdout);
        empty(&editor.out);
        draw_line();
    }
    if (editor.is_typing) {
        draw_below(); /* anew each time, for libedit knows nothing of it */
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
    if (!terminal.is_quiet) {
        append_paint(&editor.out, FAINT, text);
        append_text(&editor.out, "\n");
    }
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

#endif /* HAVE_LIBEDIT */

#endif /* MANHOLE_CLI_SCREEN_C */
