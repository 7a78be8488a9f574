/* Editor: the console at a terminal, when libedit is there: lines are edited, remembered and
 * completed here, and what the process says meanwhile appears above them.
 *
 * libedit calls read_key() whenever it wants a key, and all waiting is done there, for the keys,
 * the server and signals alike; handlers of signals only note them. Why it gave up reading keys is
 * editor.way_out. The terminal is in libedit's hands for as long as the program runs, so it is
 * given back around whatever may end or stop the program.
 *
 * What is pasted stands between two sequences of the terminal's. Its lines are shown as if typed,
 * gather in editor.block, and go to the server as one, between two keys that say so; a last line
 * without end becomes the next one that is edited, and all of it waits for Enter.
 */
#ifndef MANHOLE_CLI_EDITOR_C
#define MANHOLE_CLI_EDITOR_C

#include "completion.c"

enum {
    HISTORY_LINES = 2000, /* that the editor knows */
};

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
