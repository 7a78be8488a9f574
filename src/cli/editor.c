/* Editor: the console at a terminal, when libedit is there: lines are edited, remembered and
 * completed here, and what the process says meanwhile appears above them.
 *
 * libedit calls read_key() whenever it wants a key, and all waiting is done there, for the keys,
 * the server and signals alike; handlers of signals only note them. Why it gave up reading keys is
 * editor.way_out. The terminal is in libedit's hands for as long as the program runs, so it is
 * given back around whatever may end or stop the program.
 *
 * What is pasted stands between two sequences of the terminal's, and becomes lines of the block
 * that is typed. Where its last line has an end, that is Enter.
 */
#ifndef MANHOLE_CLI_EDITOR_C
#define MANHOLE_CLI_EDITOR_C

#include "completion.c"

enum {
    HISTORY_LINES = 2000, /* that the editor knows */
};

/* Enter for libedit itself; no terminal sends it. */
static const char accept_key[] = "\033[13~~";

#ifdef HAVE_LIBEDIT

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
    set_handler(number, on_signal);
}

/* Ctrl-Z: the shell gets the terminal as it was, and we the rest when it says fg. Where there is no
 * shell the kernel lets nobody stop by that. */
static void
stop_for_a_while(void)
{
    hold_terminal(false);
    suffer(terminal.is_recorded ? SIGSTOP : SIGTSTP);
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

/* Whether Ctrl-C is a key for who reads: the console in a block, input() or Pdb. */
static bool
is_key_wanted(void)
{
    bool is_in_block = editor.asked > 0 && ends_with(&editor.line, continuation);
    return is_in_block || (editor.is_waiting && editor.asked == 0);
}

/* Ctrl-C drops what is being typed, and interrupts who reads, or what the process runs. A console
 * that takes no keys forgets the block of which it has the first lines when there is a NUL, for no
 * source has one. */
static void
handle_interrupt(void)
{
    const LineInfoW *line = el_wline(editor.el);
    const struct block *block = &editor.block;
    bool has_text = editor.is_typing &&
                    (editor.is_pasting || line->lastchar > line->buffer ||
                     block->above.length > block->settled || block->below.length > 0);
    bool is_asked = is_key_wanted();
    enum interruption outcome = SESSION_IDLE;

    if (has_text || is_asked) {
        show_whole_block();
        (void)fputs("^C\n", stdout);
        editor.way_out = LINE_CANCELLED;
    }
    forget_block();
    if (!is_asked && editor.server >= 0) {
        outcome = interrupt_session(editor.target);
        if (outcome == SESSION_IDLE && has_news(editor.server)) {
            receive_output();
        }
        is_asked = outcome == SESSION_IDLE && is_key_wanted();
    }
    if (is_asked) {
        const char key[] = {KEY_INTERRUPT};
        send_typed(marks.are_put ? key : "\0\n", marks.are_put ? 1 : 2);
    }
    else if (outcome == SESSION_LEFT) {
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

/* libedit's way to a key. Returns how many there are, 1; 0 at the end; -1 to give up. */
static int
read_key(EditLine *el, wchar_t *key)
{
    struct buffer *indent = &editor.block.indent;

    if (indent->length > 0 && !editor.is_pasting) {
        hide_line();
        (void)el_insertstr(el, indent->data);
        editor.block.indented = indent->length;
        empty(indent);
        draw_line();
    }
    while (editor.way_out == NO_WAY_OUT) {
        if (!next_key(key)) {
            wait_for_news(true);
        }
        else if (editor.is_pasting || !take_indentation_key(*key)) {
            return 1;
        }
    }
    return editor.way_out == INPUT_ENDED ? 0 : -1;
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
        c = c == L'\r' ? L'\n' : c;
        if (c < KEY_PASTE || c > KEY_PASTE_ANEW) {
            append_characters(&text, &c, &c + 1);
        }
    }
    editor.is_pasting = false;
    text.data[text.length -= strlen(end)] = '\0';
    if (editor.server < 0) { /* its lines may be for whom the first one leads to */
        prepend(&editor.keys, &text);
    }
    else {
        unfold();
        insert_paste(&text);
    }
    return CC_NORM;
}

/* ---- Lines ------------------------------------------------------------------------- */

static unsigned char
on_clear(EditLine *el, int key)
{
    (void)el;
    (void)key;
    (void)fputs("\033[H\033[J", stdout);
    draw_line();
    return CC_NORM;
}

/* Enter: a line more, where there are lines below; else this one is libedit's, and what was not on
 * the screen of the block comes there. */
static unsigned char
on_enter(EditLine *el, int key)
{
    (void)key;
    unfold();
    if (!break_line(el)) {
        if (editor.block.above.length > editor.block.settled) {
            show_whole_block();
        }
        el_push(el, accept_key);
    }
    return CC_NORM;
}

/* Sends the lines of the block that are not settled. A server that takes no keys has but the lines.
 */
static void
send_block(void)
{
    struct block *block = &editor.block;
    const char *text = block->above.data + block->settled;
    size_t length = block->above.length - block->settled;
    bool is_one = !block->is_pasted && !block->is_anew &&
                  next_line(&block->above, block->settled, true) == length;
    const char keys[] = {block->is_anew ? KEY_PASTE_ANEW : KEY_PASTE, KEY_PASTED};
    size_t count = marks.are_put && !is_one ? 1 : 0;
    OWNED_BUFFER bytes = {.data = NULL};

    append(&bytes, keys, count);
    append(&bytes, text, length);
    append(&bytes, keys + 1, count);
    send_typed(bytes.data, bytes.length);
}

/* A line that was typed, given with its newline, and with it the block that it ends. To the console
 * a line of blanks is an empty one, for it was indented here. Who has typed on already, as a
 * terminal does that marks no paste, gets no blanks before that but behind a colon, where the line
 * needs some. */
static void
accept_line(const char *line, size_t length)
{
    struct block *block = &editor.block;
    bool is_to_console = editor.asked > 0 || is_in_block();
    bool is_blank = line[strspn(line, " \t")] == '\n';

    if (!is_to_console) {
        end_block();
    }
    bool goes_on = block->settled > 0 || block->is_anew;
    if (is_to_console && is_blank && (goes_on || block->above.length > 0)) {
        line += length - 1;
        length = 1;
    }
    append(&block->above, line, length);
    if (is_to_console && !is_blank && (editor.keys.length == 0 || opens_block(line))) {
        append_indentation(&block->indent, line);
    }
    keep_entry(&block->above, goes_on);
    send_block();
    block->is_torn = goes_on && block->is_torn;
    block->is_anew = block->is_pasted = false;
    block->settled = block->above.length;
    if (!is_to_console) {
        forget_block();
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
    editor.recalled = editor.block.rows_above = 0;
    const char *line = el_gets(editor.el, count);
    editor.is_typing = false;
    return *count > 0 ? line : NULL;
}

/* Ctrl-D is the end of what is typed for who reads; for all where the server takes no keys. */
static void
end_reader(void)
{
    static const char key[] = {KEY_END};

    if (editor.block.above.length > editor.block.settled ||
        editor.block.below.length > 0) {
        return; /* this line has no end, but the block goes on */
    }
    forget_block();
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

/* Lets a line be typed at a prompt of our own, while there is no server. Adds it with its newline;
 * returns false at the end. complete() adds the lines that one may become, see the room completion.
 */
static bool
type_local_line(const char *prompt,
                void (*complete)(const char *start, struct buffer *matches),
                struct buffer *line)
{
    const char *typed = NULL;
    int count = 0;
    HistEvent event;

    empty(&editor.line);
    append_text(&editor.line, prompt);
    editor.asked = editor.line.length;
    editor.server = -1;
    editor.complete_locally = complete;
    editor.is_waiting = editor.is_stale = true;
    do {
        editor.way_out = NO_WAY_OUT;
        typed = edit_line(&count);
    } while (editor.way_out == LINE_CANCELLED);
    if (typed == NULL) {
        (void)fputs("\n", stdout);
        return false;
    }
    append(line, typed, (size_t)count);
    (void)history(editor.history, &event, H_ENTER, line->data);
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
    OWNED_BUFFER entry = {.data = NULL};
    for (size_t i = 0, length = 0; i < lines.length; i += length) {
        length = next_line(&lines, i, true);
        append(&entry, lines.data + i, length);
        if (ends_with(&entry, "\r\n")) { /* the rest of a block follows */
            entry.length -= 2;
            append_text(&entry, "\n");
            continue;
        }
        /* libedit goes back to no line that is no text. */
        if (entry.length > 1 && mbstowcs(NULL, entry.data, 0) != (size_t)-1) {
            (void)history(editor.history, &event, H_ENTER, entry.data);
        }
        empty(&entry);
    }
}

static void
bind_keys(void)
{
    static const char *const keys[][2] = {
        {"^I", "manhole-complete"},
        {"\033[200~", "manhole-paste"},
        {"^M", "manhole-enter"},
        {"^J", "manhole-enter"},
        {accept_key, "ed-newline"},
        {"^P", "manhole-up"},
        {"\033[A", "manhole-up"},
        {"\033OA", "manhole-up"},
        {"^N", "manhole-down"},
        {"\033[B", "manhole-down"},
        {"\033OB", "manhole-down"},
        {"\033[D", "manhole-left"},
        {"\033OD", "manhole-left"},
        {"^B", "manhole-left"},
        {"\033[C", "manhole-right"},
        {"\033OC", "manhole-right"},
        {"^F", "manhole-right"},
        {"^L", "manhole-clear"},
        {"^R", "em-inc-search-prev"},
        {"^W", "ed-delete-prev-word"},
        {"\033[3~", "ed-delete-next-char"},
        {"\033[1~", "ed-move-to-beg"},
        {"\033[4~", "ed-move-to-end"},
        {"\033[H", "ed-move-to-beg"},
        {"\033[F", "ed-move-to-end"},
        {"\033[1;5D", "ed-prev-word"},
        {"\033[1;5C", "em-next-word"},
    };

    static const struct {
        const char *name;
        const char *help;
        unsigned char (*call)(EditLine *el, int key);
    } functions[] = {
        {"manhole-complete", "Complete the name", on_tab},
        {"manhole-paste", "Take pasted text", on_paste},
        {"manhole-enter", "Send the block, or insert a line in it", on_enter},
        {"manhole-up", "A line up, or to older history", on_up},
        {"manhole-down", "A line down, or to newer history", on_down},
        {"manhole-left", "A character back", on_left},
        {"manhole-right", "A character on", on_right},
        {"manhole-clear", "Clear the screen", on_clear},
    };

    for (size_t i = 0; i < sizeof(functions) / sizeof(functions[0]); i++) {
        (void)el_set(editor.el, EL_ADDFN, functions[i].name, functions[i].help,
                     functions[i].call);
    }
    for (size_t i = 0; i < sizeof(keys) / sizeof(keys[0]); i++) {
        (void)el_set(editor.el, EL_BIND, keys[i][0], keys[i][1], NULL);
    }
}

/* Returns false where there can be no editor: not at a terminal, or not at this one. */
static bool
open_editor(void)
{
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
    bind_keys();
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

static void
begin_session(int server, const struct target *target)
{
    editor.server = server;
    editor.target = target;
    editor.is_silent = true;
    marks = (struct marks){.text = marks.text};
    empty(&editor.line);
    end_waiting();
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

/* The console at a terminal, until the server closes or Ctrl-C says that that is enough. However it
 * ends, the cursor is below what was being typed, and what the process still says is shown. */
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
