/* Editor: the console at a terminal, when libedit is there: lines are edited, remembered and
 * completed here, and what the process says meanwhile appears above them.
 *
 * The last line of what the server wrote, as long as no newline ends it, is the editor's prompt;
 * all before it is output. So each prompt works, that of pdb or input() as well. Marks (see there)
 * tell when it is one: what arrives behind it, until a line is sent or the reader has one that was
 * sent before, was written by other threads, waits in aside and never becomes part of it.
 *
 * libedit calls read_key() whenever it wants a key, and all waiting is done there, for the keys,
 * the server and signals alike. To show output, the line being typed is wiped off the screen, the
 * output written in its place, and libedit asked to draw its line again; for that we reckon where
 * on the screen its prompt and its cursor are. Why it gave up reading keys is editor.way_out.
 *
 * What is pasted stands between two sequences of the terminal's. Its lines are shown as if typed,
 * gather in block, and go to the server as one; a last line without end becomes the next one that
 * is edited, and all of it waits for Enter.
 */
#ifndef MANHOLE_CLI_EDITOR_C
#define MANHOLE_CLI_EDITOR_C

#include "relay.c"

enum {
    HISTORY_LINES = 2000, /* that the editor knows */
};

#ifdef HAVE_LIBEDIT

/* Cells and columns: where the cursor is after text that began in column 0. */
struct cell {
    int row;
    int column;
};

enum way_out { NO_WAY_OUT, SERVER_CLOSED, LINE_CANCELLED, LEFT, INPUT_ENDED };

static struct editor {
    EditLine *el;
    History *history;
    const struct target *target;
    int server;
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
    struct buffer
        paste; /* pasted behind the line that is typed: lines, and the next one's start */
    struct buffer block; /* lines to be sent with it */
    bool is_block;       /* it is one of several, or a whole one was pasted */
    bool is_pasting;     /* a paste has begun, and not ended */
} editor;

/* ---- What the server says ---------------------------------------------------------- */

/* Each byte goes to one of two lines, and a newline makes a line output, so that whatever arrives
 * in pieces looks as if it had come at once. editor.line is the session's: as long as somebody
 * reads, it is what he asks, and stands before what is being typed. What other threads write
 * meanwhile gathers in editor.aside. When a line is sent, or the reader is gone, both become one.
 */

/* Moves over a character, which takes no, one or two cells; eight at most where it is a tab.
 * libedit shows a control character as two, and begins a new row as soon as one is full. */
static void
move_over(struct cell *cell, wchar_t c, int columns)
{
    int width = wcwidth(c);
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

/* How wide the terminal is; 80 where it does not say. */
static int
count_columns(void)
{
    struct winsize size = {.ws_col = 0};
    return ioctl(STDOUT_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_col > 1 ? size.ws_col
                                                                           : 80;
}

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
        if (line->length % HISTORY_LINE_SIZE == 0) { /* what takes no room stays */
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
withdraw_prompt(void)
{
    if (editor.is_waiting) {
        editor.line.length -= editor.asked;
        append(&editor.line, "", 0);
        end_waiting();
    }
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

/* libedit knows nothing of other output on its terminal. So before that comes, the cursor goes to
 * where the prompt begins, which we reckon as the terminal does, and all below is cleared; then
 * libedit is told to draw anew, from wherever the cursor is. */

/* For libedit. Between two bytes '\1' stands what takes no room. libedit writes that along with the
 * character behind it, and not at all when there is none: so where the colour ends, the blank that
 * ends the prompt is written once more. */
static char *
prompt_of(EditLine *el)
{
    const char *line = text_of(&editor.line);
    const char *carriage_return = memrchr(line, '\r', editor.line.length);
    const char *text = carriage_return != NULL ? carriage_return + 1 : line;
    OWNED_BUFFER shown = {.data = NULL};

    (void)el;
    append_harmless(&shown, text, editor.line.length - (size_t)(text - line));
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

/* Puts the cursor where the prompt begins, and clears all from there on. */
static void
hide_line(void)
{
    struct cell cell = editor.prompt_end;
    const LineInfoW *line = el_wline(editor.el);
    int columns = count_columns();

    for (const wchar_t *c = line->buffer; c < line->cursor; c++) {
        move_over(&cell, *c, columns);
    }
    (void)fputs("\r", stdout);
    if (cell.row > 0) {
        (void)printf("\033[%dA", cell.row);
    }
    (void)fputs("\033[J", stdout);
}

/* Has libedit draw the line that is being typed, if there is one. */
static void
draw_line(void)
{
    if (editor.is_typing) {
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
        (void)fwrite(text_of(&editor.out), 1, editor.out.length, stdout);
        empty(&editor.out);
        draw_line();
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

/* ---- Signals ----------------------------------------------------------------------- */

/* Handlers only note them, see signals.c; here they are dealt with, between two keys. The terminal
 * is in libedit's hands for as long as the program runs, so it is given back around whatever may
 * end or stop the program. */

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
    set_handler(number, on_signal);
}

/* Ctrl-Z: the shell gets the terminal as it was, and we the rest when it says fg. */
static void
stop_for_a_while(void)
{
    hold_terminal(false);
    suffer(SIGTSTP);
    hold_terminal(true);
    el_resize(editor.el);
    draw_line();
}

/* A line, or a key: the prompt that stands is answered by it. */
static void
send_typed(const char *bytes, size_t count)
{
    empty(&editor.line);
    end_waiting();
    append(&editor.unsent, bytes, count);
    (void)send_some(editor.server, &editor.unsent);
}

/* What was pasted and is not sent goes with the line that it was pasted into. */
static void
forget_paste(void)
{
    empty(&editor.paste);
    empty(&editor.block);
    editor.is_block = false;
}

/* Ctrl-C drops what is being typed, and interrupts who reads, or what the process runs. A console
 * that takes no keys forgets the block of which it has the first lines when there is a NUL, for no
 * source has one. */
static void
handle_interrupt(void)
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
        const char key[] = {KEY_INTERRUPT};
        send_typed(marks.are_put ? key : "\0\n", marks.are_put ? 1 : 2);
        return;
    }
    enum interruption outcome =
        editor.server < 0 ? SESSION_IDLE : interrupt_session(editor.target);
    if (outcome == SESSION_LEFT) {
        editor.way_out = LEFT;
    }
    else if (!has_text && outcome == SESSION_IDLE) {
        say_note(nothing_is_running);
    }
    else if (!has_text) {
        append_text(&editor.out, "^C\n"); /* as the terminal would show it */
    }
}

/* Deals with those that came while we waited. */
static void
handle_signals(void)
{
    static const int endings[] = {SIGTERM, SIGHUP, SIGQUIT};

    for (size_t i = 0; i < sizeof(endings) / sizeof(endings[0]); i++) {
        if (consume_signal(endings[i])) {
            release_terminal();
            suffer(endings[i]);
        }
    }
    if (consume_signal(SIGWINCH)) {
        el_resize(editor.el);
        editor.is_stale = true;
    }
    if (consume_signal(SIGTSTP)) {
        stop_for_a_while();
    }
    if (consume_signal(SIGINT)) {
        handle_interrupt();
    }
}

/* ---- Waiting ----------------------------------------------------------------------- */

/* Its end is that of the terminal, for Ctrl-D is a key of libedit's. */
static void
read_keys(void)
{
    char bytes[512];

    if (!append_some(&editor.keys, bytes, read(terminal.input, bytes, sizeof(bytes)))) {
        editor.way_out = INPUT_ENDED;
    }
}

/* Waits for the server, and for keys if wanted. */
static void
wait_for_news(bool wants_keys)
{
    struct pollfd fds[2] = {
        {.fd = wants_keys ? terminal.input : -1, .events = POLLIN},
        {.fd = editor.server,
         .events = (short)(POLLIN | (editor.unsent.length > 0 ? POLLOUT : 0))},
    };

    show_output();
    int ready = poll_session(fds, 2, editor.server, &editor.is_silent, say_note);
    if (ready > 0 && fds[1].revents != 0) {
        editor.is_silent = false;
        (void)send_some(editor.server, &editor.unsent);
        receive_output();
    }
    if (ready > 0 && fds[0].revents != 0) {
        read_keys();
    }
    handle_signals();
}

/* Takes a whole character from the keys; false while there is none. What is no UTF-8 is
 * passed over. */
static bool
next_key(wchar_t *key)
{
    while (editor.keys.length >
           count_unfinished(text_of(&editor.keys), editor.keys.length)) {
        size_t length = decode(editor.keys.data, key);
        drop(&editor.keys, length > 0 ? length : 1);
        if (length > 0) {
            return true;
        }
    }
    return false;
}

/* libedit's way to a key; what was pasted for the line comes first. Returns how many there are, 1;
 * 0 at the end; -1 to give up. */
static int
read_key(EditLine *el, wchar_t *key)
{
    if (editor.paste.length > 0 && !editor.is_pasting) {
        hide_line();
        (void)el_insertstr(el, editor.paste.data);
        empty(&editor.paste);
        (void)el_set(el, EL_REFRESH);
    }
    while (editor.way_out == NO_WAY_OUT) {
        if (next_key(key)) {
            return 1;
        }
        wait_for_news(true);
    }
    return editor.way_out == INPUT_ENDED ? 0 : -1;
}

/* ---- Completion -------------------------------------------------------------------- */

/* The session is asked beside the console what may stand in place of what stands before the cursor:
 * an answer is lines, each of which begins with that. What it has none of, or a server that knows
 * no such question, leaves the line as it is. */

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

    for (size_t i = 0; i < matches->length; i += length) {
        length = next_line(matches, i, true);
        width = length - hidden + 1 > width ? length - hidden + 1 : width;
    }
    for (size_t i = 0; i < matches->length; i += length) {
        length = next_line(matches, i, true);
        size_t shown = length - hidden - 1;
        append_harmless(&editor.out, matches->data + i + hidden, shown);
        column += width;
        if (column + width > columns || i + length >= matches->length) {
            append_text(&editor.out, "\n");
            column = 0;
        }
        else {
            append_format(&editor.out, "%*s", (int)(width - shown), "");
        }
    }
    show_output();
}

/* Adds a character as UTF-8. */
static void
append_character(struct buffer *out, wchar_t c)
{
    append_format(out, "%lc", (wint_t)c);
}

/* Whether each line begins with the start and goes on behind it. */
static bool
are_matches(const struct buffer *lines, const char *start)
{
    for (size_t i = 0; i < lines->length; i += next_line(lines, i, true)) {
        if (strncmp(lines->data + i, start, strlen(start)) != 0) {
            return false;
        }
    }
    return lines->length > 0 && ends_with(lines, "\n");
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
    const LineInfoW *line = el_wline(el);
    OWNED_BUFFER start = {.data = NULL};
    OWNED_BUFFER matches = {.data = NULL};

    (void)key;
    for (const wchar_t *c = line->buffer; c < line->cursor; c++) {
        append_character(&start, *c);
    }
    append_text(&start, "\n");
    if (editor.server < 0) {
        return CC_ERROR;
    }
    if (start.data[strspn(start.data, " \t")] == '\n') {
        return el_insertstr(el, "    ") == 0 ? CC_REFRESH : CC_ERROR;
    }
    ask_aside(editor.target, "complete", &start, &matches);
    start.data[--start.length] = '\0'; /* the newline */
    if (are_matches(&matches, start.data)) {
        size_t common = common_length(&matches);
        if (common > start.length) {
            matches.data[common] = '\0';
            insert_name(el, matches.data + start.length);
        }
        else if (line_length(&matches) < matches.length) {
            show_matches(&matches, start.data);
        }
    }
    return CC_REFRESH;
}

/* ---- Pasted text ------------------------------------------------------------------- */

/* The first of the two sequences has just been read. What would be a key to the process is left
 * out. */
static unsigned char
on_paste(EditLine *el, int key)
{
    static const char end[] = "\033[201~";
    OWNED_BUFFER text = {.data = NULL};
    wchar_t c = 0;

    (void)key;
    editor.is_pasting = true;
    while (!ends_with(&text, end)) {
        if (read_key(el, &c) != 1) {
            editor.is_pasting = false;
            return CC_EOF;
        }
        if (c < KEY_PASTE || c > KEY_PASTED) {
            append_character(&text, c == L'\r' ? L'\n' : c);
        }
    }
    editor.is_pasting = false;
    text.data[text.length -= strlen(end)] = '\0';
    size_t length = line_length(&text);
    if (length > 0) { /* all lines but the first one wait until that is accepted */
        append(&editor.paste, text.data + length, text.length - length);
        text.data[length - 1] = '\0';
        editor.is_block = true;
    }
    (void)el_insertstr(el, text.data);
    el_push(el, length > 0 ? "\n" : "");
    return CC_REFRESH;
}

/* ---- Lines ------------------------------------------------------------------------- */

/* A line that is accepted goes to the history here and in the file, and to the server: alone, or
 * with the others of its block, between two keys that say that they are one. */

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
    OWNED_BUFFER bytes = {.data = NULL};

    append(&bytes, keys, marks.are_put ? 1 : 0);
    append(&bytes, text_of(&editor.block), editor.block.length);
    append(&bytes, keys + 1, marks.are_put ? 1 : 0);
    send_typed(bytes.data, bytes.length);
    forget_paste();
}

/* Takes whole lines of the paste into the block, shown as if they had been typed. If that is all,
 * sends it. */
static void
accept_paste(void)
{
    size_t length = 0;

    empty(&editor.line);
    append_text(&editor.line, editor.asked > 0 ? "... " : "");
    editor.asked = editor.line.length;
    editor.is_stale = true;
    while ((length = line_length(&editor.paste)) > 0) {
        OWNED_BUFFER line = {.data = NULL};
        append(&line, editor.paste.data, length);
        drop(&editor.paste, length);
        append_paint(&editor.out, editor.asked > 0 ? PROMPT : PLAIN,
                     text_of(&editor.line));
        append_harmless(&editor.out, line.data, length);
        keep_line(line.data, length);
        append(&editor.block, line.data, length);
    }
    show_output();
    if (editor.paste.length == 0) {
        send_block();
    }
}

/* A line that was typed, given with its newline. */
static void
accept_line(const char *line, size_t length)
{
    keep_line(line, length);
    if (editor.is_block) {
        append(&editor.block, line, length);
        accept_paste();
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
    (void)el_set(editor.el, EL_PREP_TERM, 1);
    editor.is_typing = true;
    const char *line = el_gets(editor.el, count);
    editor.is_typing = false;
    return *count > 0 ? line : NULL;
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

    if (line != NULL) {
        accept_line(line, (size_t)count);
    }
    else if (editor.way_out == NO_WAY_OUT) {
        end_reader();
    }
}

/* Lets a line be typed at a prompt of our own, while there is no server; what was pasted behind the
 * last one comes first. Adds it with its newline; returns false at the end. */
static bool
type_local_line(const char *prompt, struct buffer *line)
{
    size_t length = line_length(&editor.paste);
    const char *typed = NULL;
    int count = 0;
    HistEvent event;

    empty(&editor.line);
    append_text(&editor.line, prompt);
    editor.asked = editor.line.length;
    editor.server = -1;
    editor.is_waiting = editor.is_stale = true;
    if (length > 0) {
        append(line, editor.paste.data, length);
        drop(&editor.paste, length);
        append_text(&editor.out, prompt);
        append_harmless(&editor.out, line->data, length);
        show_output();
        return true;
    }
    do {
        editor.way_out = NO_WAY_OUT;
        typed = edit_line(&count);
    } while (editor.way_out == LINE_CANCELLED);
    editor.is_block = false;
    if (typed == NULL) {
        (void)fputs("\n", stdout);
        return false;
    }
    (void)history(editor.history, &event, H_ENTER, typed);
    append(line, typed, (size_t)count);
    return true;
}

/* ---- The conversation -------------------------------------------------------------- */

/* libedit knows the lines of former sessions, too. */
static void
load_history(void)
{
    HistEvent event;
    OWNED_BUFFER lines = {.data = NULL};

    editor.history = history_init();
    if (editor.history == NULL) {
        fail(STATUS_TROUBLE, "out of memory");
    }
    (void)history(editor.history, &event, H_SETSIZE, HISTORY_LINES);
    (void)history(editor.history, &event, H_SETUNIQUE, 1);
    (void)read_file(history_path, &lines);
    char *rest = lines.data;
    for (char *line = strsep(&rest, "\n"); line != NULL; line = strsep(&rest, "\n")) {
        OWNED_BUFFER whole = {.data = NULL};
        append_format(&whole, "%s\n", line);
        /* libedit goes back to no line that is no text. */
        if (line[0] != '\0' && mbstowcs(NULL, line, 0) != (size_t)-1) {
            (void)history(editor.history, &event, H_ENTER, whole.data);
        }
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
    if (is_interactive() && terminal.is_capable) {
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

/* Takes the terminal, and the signals that concern it. A second time does nothing. */
static void
begin_editing(void)
{
    static const int concerned[] = {SIGINT, SIGTSTP, SIGWINCH, SIGTERM, SIGHUP, SIGQUIT};

    if (editor.is_begun) {
        return;
    }
    editor.is_begun = true;
    for (size_t i = 0; i < sizeof(concerned) / sizeof(concerned[0]); i++) {
        follow_signal(concerned[i]);
    }
    (void)atexit(release_terminal);
    hold_terminal(true);
}

/* Begins with a server: what was pasted behind the line that led here is for its first prompt. */
static void
begin_session(int server, const struct target *target)
{
    editor.server = server;
    editor.target = target;
    editor.is_silent = true;
    marks = (struct marks){.text = marks.text};
    empty(&editor.line);
    end_waiting();
    while (editor.paste.length > 0 && !editor.is_waiting &&
           editor.way_out == NO_WAY_OUT) {
        wait_for_news(false);
    }
    if (editor.paste.length > 0) {
        editor.is_block = true;
        accept_paste();
    }
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

/* The console at a terminal, until the server closes or Ctrl-C says that that is enough. */
static enum exit_status
converse(int server, const struct target *target)
{
    begin_editing();
    begin_session(server, target);
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

#endif /* MANHOLE_CLI_EDITOR_C */
