/* Block: a statement of several lines, edited as one.
 *
 *   >>> def double(n):            settled: sent, for the console tells whether more is wanted
 *   ...     return 2 * n          settled, by its "... "
 *   ...                           what libedit has
 *
 * libedit edits one line: in a longer text it would draw no prompts, and move by the whole of it.
 * So it has the line with the cursor, and the others are text above and below it, which we draw.
 * Up and Down move between them before they move in the history; Enter with lines below it inserts
 * a line, else it sends all that is not settled: one line as it is, more of them as a paste, which
 * the console takes as one.
 *
 * Up into lines that are settled takes them back: they are cleared from the screen and drawn again
 * as part of what is typed, and the paste that all this becomes replaces what the console has.
 *
 * A block is one entry of the history, with its newlines. Its entry grows as its lines are sent, so
 * nothing is lost when the client is. Where libedit itself puts such an entry into its line, as at
 * the end of a search, it is drawn by libedit, without prompts, until one of our keys unfolds it.
 */
#ifndef MANHOLE_CLI_BLOCK_C
#define MANHOLE_CLI_BLOCK_C

#include "screen.c"

enum { INDENTATION = 4 };

#ifdef HAVE_LIBEDIT

static void
forget_block(void)
{
    empty(&editor.block.above);
    empty(&editor.block.below);
    empty(&editor.block.indent);
    editor.block.settled = editor.block.indented = 0;
    editor.block.is_anew = editor.block.is_torn = editor.block.is_pasted = false;
}

/* ---- The line that libedit has ------------------------------------------------------ */

static void
append_characters(struct buffer *out, const wchar_t *begin, const wchar_t *end)
{
    for (const wchar_t *c = begin; c < end; c++) {
        append_format(out, "%lc", (wint_t)*c);
    }
}

/* column: where the cursor is to be, in characters; at the end at most. */
static void
set_line(const char *text, int column)
{
    EditLine *el = editor.el;
    int length = el_cursor(el, (int)(el_wline(el)->lastchar - el_wline(el)->cursor));

    el_deletestr(el, length);
    (void)el_insertstr(el, text);
    length = el_cursor(el, 0);
    (void)el_cursor(el, column < length ? column - length : 0);
}

/* Adds lines to those above; the last one is what libedit has then, with the cursor before so many
 * characters at its end. */
static void
set_lines(const char *text, size_t length, int behind)
{
    const char *newline = memrchr(text, '\n', length);
    size_t count = newline != NULL ? (size_t)(newline - text) + 1 : 0;
    OWNED_BUFFER last = {.data = NULL};

    append(&editor.block.above, text, count);
    append(&last, text + count, length - count);
    set_line(last.data, INT_MAX);
    (void)el_cursor(editor.el, -behind);
}

/* Has a text be what is edited, instead of all that is not settled. */
static void
set_block(const char *text, size_t length)
{
    hide_line();
    editor.block.above.length = editor.block.settled;
    append(&editor.block.above, "", 0);
    empty(&editor.block.below);
    set_lines(text, length, 0);
    draw_line();
}

/* Adds all that is edited, without a newline at its end. */
static void
append_block(struct buffer *out)
{
    const struct block *block = &editor.block;
    const LineInfoW *line = el_wline(editor.el);

    append(out, text_of(&block->above) + block->settled,
           block->above.length - block->settled);
    append_characters(out, line->buffer, line->lastchar);
    append_text(out, block->below.length > 0 ? "\n" : "");
    append(out, text_of(&block->below),
           block->below.length - (block->below.length > 0 ? 1 : 0));
}

/* Has all of it on the screen, also what there was no room for, with the cursor at its end. */
static void
show_whole_block(void)
{
    const LineInfoW *line = el_wline(editor.el);

    hide_line();
    (void)el_cursor(editor.el, (int)(line->lastchar - line->cursor));
    draw_above(INT_MAX);
    (void)el_set(editor.el, EL_REFRESH);
}

/* Takes apart what libedit has put into its line. */
static void
unfold(void)
{
    const LineInfoW *line = el_wline(editor.el);
    OWNED_BUFFER text = {.data = NULL};

    for (const wchar_t *c = line->buffer; c < line->lastchar; c++) {
        if (*c == L'\n') {
            append_block(&text);
            set_block(text.data, text.length);
            return;
        }
    }
}

/* Inserts text at the cursor. Where that begins with blanks, they are the line's. What ends with a
 * newline, with nothing behind it, is sent. */
static void
insert_paste(const struct buffer *paste)
{
    const LineInfoW *line = el_wline(editor.el);
    int behind = (int)(line->lastchar - line->cursor);
    bool is_sent =
        ends_with(paste, "\n") && behind == 0 && editor.block.below.length == 0;
    bool is_indented = text_of(paste)[0] == ' ' && is_indentation_alone();
    OWNED_BUFFER text = {.data = NULL};

    append_characters(&text, line->buffer, is_indented ? line->buffer : line->cursor);
    append(&text, text_of(paste), paste->length - is_sent);
    append_characters(&text, line->cursor, line->lastchar);
    editor.block.is_pasted = editor.block.is_pasted || line_length(paste) > 0;
    hide_line();
    set_lines(text_of(&text), text.length, behind);
    draw_line();
    el_push(editor.el, is_sent ? "\n" : "");
}

/* ---- Moving between lines ------------------------------------------------------------ */

/* Makes what is settled part of what is edited, if the console can forget it. */
static void
take_back(void)
{
    struct block *block = &editor.block;

    if (block->settled == 0 || editor.asked == 0 || !marks.are_put) {
        return;
    }
    hide_line();
    block->settled = 0;
    block->is_anew = true;
    if (!block->is_torn) {
        (void)printf("\033[%dA\033[J", count_rows(0));
    }
    draw_line();
}

static void
prepend(struct buffer *buffer, struct buffer *front)
{
    append(front, text_of(buffer), buffer->length);
    empty(buffer);
    append(buffer, front->data, front->length);
}

/* Where the line begins that ends there. */
static size_t
line_start(const struct buffer *lines, size_t end)
{
    const char *newline = end > 1 ? memrchr(lines->data, '\n', end - 1) : NULL;
    return newline != NULL ? (size_t)(newline - lines->data) + 1 : 0;
}

/* The line above is edited, if there is one. */
static bool
go_up(int column)
{
    struct block *block = &editor.block;
    const LineInfoW *line = el_wline(editor.el);
    OWNED_BUFFER text = {.data = NULL};

    if (block->above.length == block->settled) {
        take_back();
    }
    if (block->above.length == block->settled) {
        return false;
    }
    hide_line();
    append_characters(&text, line->buffer, line->lastchar);
    append_text(&text, "\n");
    prepend(&block->below, &text);

    size_t start = line_start(&block->above, block->above.length);
    block->above.data[block->above.length - 1] = '\0'; /* was its newline */
    set_line(block->above.data + start, column);
    block->above.length = start;
    append(&block->above, "", 0);
    draw_line();
    return true;
}

/* The same below. */
static bool
go_down(int column)
{
    struct block *block = &editor.block;
    const LineInfoW *line = el_wline(editor.el);
    size_t length = line_length(&block->below);

    if (length == 0) {
        return false;
    }
    hide_line();
    append_characters(&block->above, line->buffer, line->lastchar);
    append_text(&block->above, "\n");
    block->below.data[length - 1] = '\0';
    set_line(block->below.data, column);
    drop(&block->below, length);
    draw_line();
    return true;
}

/* Where the cursor is in its line, once that is one. */
static int
find_column(void)
{
    unfold();
    return el_cursor(editor.el, 0);
}

/* An entry of the history instead, the newest one for 1; for 0 what was typed before any. */
static unsigned char
recall(int number)
{
    HistEvent event = {.str = NULL};

    if (editor.recalled == 0) {
        empty(&editor.draft);
        append_block(&editor.draft);
    }
    for (int i = 1, move = H_FIRST; i <= number; i++, move = H_NEXT) {
        if (history(editor.history, &event, move) < 0) {
            return CC_ERROR;
        }
    }
    const char *text = number > 0 ? event.str : text_of(&editor.draft);
    size_t length = strlen(text);
    editor.recalled = number;
    set_block(text, length - (number > 0 && length > 0));
    return CC_NORM;
}

static unsigned char
on_up(EditLine *el, int key)
{
    (void)el;
    (void)key;
    return go_up(find_column()) ? CC_NORM : recall(editor.recalled + 1);
}

static unsigned char
on_down(EditLine *el, int key)
{
    (void)el;
    (void)key;
    return go_down(find_column()) ? CC_NORM
           : editor.recalled > 0  ? recall(editor.recalled - 1)
                                  : CC_ERROR;
}

static unsigned char
on_left(EditLine *el, int key)
{
    (void)key;
    if (find_column() == 0) {
        return go_up(INT_MAX) ? CC_NORM : CC_ERROR;
    }
    (void)el_cursor(el, -1);
    return CC_CURSOR;
}

static unsigned char
on_right(EditLine *el, int key)
{
    (void)key;
    (void)find_column();
    if (el_wline(el)->cursor == el_wline(el)->lastchar) {
        return go_down(0) ? CC_NORM : CC_ERROR;
    }
    (void)el_cursor(el, 1);
    return CC_CURSOR;
}

/* ---- Indentation --------------------------------------------------------------------- */

/* Whether a line ends with a colon, but for a comment. */
static bool
opens_block(const char *line)
{
    char quote_mark = '\0';
    char last = '\0';

    for (const char *c = line;
         *c != '\0' && *c != '\n' && (*c != '#' || quote_mark != '\0'); c++) {
        if (*c == '\\' && quote_mark != '\0' && c[1] != '\0') {
            c++;
        }
        else if (*c == quote_mark) {
            quote_mark = '\0';
        }
        else if (quote_mark == '\0' && (*c == '\'' || *c == '"')) {
            quote_mark = *c;
        }
        if (*c != ' ' && *c != '\t') {
            last = *c;
        }
    }
    return last == ':';
}

/* Whether what is typed before the console has asked will be for its block. */
static bool
is_in_block(void)
{
    const struct block *block = &editor.block;
    const char *last = text_of(&block->above) + line_start(&block->above, block->settled);

    return block->settled > 0 && (opens_block(last) || last[0] == ' ' || last[0] == '\t');
}

/* Adds what the next line is to begin with. */
static void
append_indentation(struct buffer *out, const char *line)
{
    size_t blanks = strspn(line, " \t");

    append(out, line, blanks);
    append_format(out, "%*s", opens_block(line) ? INDENTATION : 0, "");
}

/* Inserts a line behind the cursor, when there are lines below. */
static bool
break_line(EditLine *el)
{
    const LineInfoW *line = el_wline(el);
    OWNED_BUFFER head = {.data = NULL};
    OWNED_BUFFER tail = {.data = NULL};

    if (editor.block.below.length == 0) {
        return false;
    }
    append_characters(&head, line->buffer, line->cursor);
    append_indentation(&tail, text_of(&head));
    int column = (int)tail.length;
    append_characters(&tail, line->cursor, line->lastchar);
    hide_line();
    append_text(&head, "\n");
    append(&editor.block.above, head.data, head.length);
    set_line(text_of(&tail), column);
    draw_line();
    return true;
}

/* Backspace at the start of a line of the block joins it with the one above. */
static bool
join_lines(void)
{
    const LineInfoW *line = el_wline(editor.el);
    OWNED_BUFFER tail = {.data = NULL};
    size_t length = 0;

    append_characters(&tail, line->buffer, line->lastchar);
    int count = (int)(line->lastchar - line->buffer);
    if (!go_up(INT_MAX)) {
        return false;
    }
    hide_line();
    length = line_length(&editor.block.below);
    drop(&editor.block.below, length);
    (void)el_insertstr(editor.el, text_of(&tail));
    (void)el_cursor(editor.el, -count);
    draw_line();
    return true;
}

/* Looks at a key before libedit has it. Blanks that are typed instead of those that stand there
 * replace them. Backspace behind blanks takes as many as a level has, all here but the last one;
 * where there is none before the cursor, it joins the line with the one above. Returns whether that
 * was all. */
static bool
take_indentation_key(wchar_t key)
{
    const LineInfoW *line = el_wline(editor.el);
    int column = (int)(line->cursor - line->buffer);
    int blanks = 0;

    if (key == L' ' && is_indentation_alone()) {
        el_deletestr(editor.el, column);
        (void)el_set(editor.el, EL_REFRESH);
        editor.block.indented = 0;
    }
    if (key != 0x7f && key != '\b') {
        return false;
    }
    while (line->buffer + blanks < line->lastchar && line->buffer[blanks] == L' ') {
        blanks++;
    }
    if (column > 1 && blanks >= column) {
        el_deletestr(editor.el, (column - 1) % INDENTATION);
        editor.block.indented = 0;
    }
    return column == 0 && join_lines();
}

/* ---- The history ---------------------------------------------------------------------- */

/* Keeps what is typed, given with a newline at its end. goes_on: it stands for the newest entry, of
 * which it has more. */
static void
keep_entry(const struct buffer *entry, bool goes_on)
{
    static const char blanks[] = " \t\n";
    HistEvent event;

    if (entry->data[strspn(entry->data, blanks)] == '\0') {
        return;
    }
    if (goes_on && history(editor.history, &event, H_FIRST) == 0) {
        (void)history(editor.history, &event, H_DEL, event.num);
    }
    (void)history(editor.history, &event, H_ENTER, entry->data);
    remember_entry(entry, goes_on ? &editor.entry : NULL);
    empty(&editor.entry);
    append(&editor.entry, entry->data, entry->length);
}

#endif /* HAVE_LIBEDIT */

#endif /* MANHOLE_CLI_BLOCK_C */
