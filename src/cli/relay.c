/* Relay: the console where no line editor can be: standard input to the server, the server to
 * standard output, whatever the bytes.
 *
 * Each direction holds what was read in one piece and reads on when that is gone, so memory is
 * bounded and neither direction waits for the other: who does not read holds up only what he does
 * not read. Standard input and output may be shared with others, so they stay in blocking mode, and
 * are used only when poll() has just said that they will not block. At a terminal the marks are
 * left out and control characters are shown.
 */
#ifndef MANHOLE_CLI_RELAY_C
#define MANHOLE_CLI_RELAY_C

#include "marks.c"
#include "history.c"

struct relay {
    int server;
    struct buffer typed;      /* on its way to the server */
    struct buffer lines;      /* typed at a terminal, for the history */
    struct buffer shown;      /* on its way to standard output */
    struct buffer unfinished; /* a character of which the rest is still to come */
    bool is_typed_over;       /* nothing more will be read */
    bool is_shown_over;
    bool is_silent;    /* not a byte has come, and nothing was said of that */
    bool was_farewell; /* what came last */
};

/* Instead of what was typed and is not written yet, of which Ctrl-D finds nothing. */
static void
press_key(struct relay *relay, char key)
{
    empty(&relay->typed);
    append(&relay->typed, &key, 1);
}

/* At its end the server is told, and may go on writing; at a terminal that is still there it was
 * but Ctrl-D. */
static void
read_stdin(struct relay *relay, bool is_hung_up)
{
    char bytes[CHUNK_SIZE];
    ssize_t count = read(terminal.input, bytes, sizeof(bytes));

    if (count < 0 && is_passing(errno)) {
        return;
    }
    if (count < 0) {
        say_error("cannot read standard input: %m; taken as its end");
    }
    if (count == 0 && marks.are_put && !is_hung_up) {
        press_key(relay, KEY_END);
        return;
    }
    if (count <= 0) {
        relay->is_typed_over = true;
        (void)shutdown(relay->server, SHUT_WR);
        return;
    }
    append(&relay->typed, bytes, (size_t)count);
    marks.is_asked = marks.is_asked && memchr(bytes, '\n', (size_t)count) == NULL;
    remember_typed(&relay->lines, bytes, (size_t)count);
}

/* Leaves out the marks, but for the prompts in them. Of a broken one what came before is put in. */
static void
leave_out_marks(struct buffer *out, const char *bytes, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        enum mark mark = parse_mark(bytes[i]);
        if (mark == NO_MARK) {
            append(out, bytes + i, 1);
        }
        else if (mark == MARK_WAITS || mark == MARK_BROKEN) {
            append_text(out, text_of(&marks.text) + (mark == MARK_WAITS ? 1 : 0));
        }
    }
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

/* A reset is an end as well: so a server's close looks when it has not read all that we sent. */
static void
read_server(struct relay *relay)
{
    char bytes[CHUNK_SIZE];
    ssize_t count = recv(relay->server, bytes, sizeof(bytes), 0);
    OWNED_BUFFER text = {.data = NULL};

    if (count <= 0) {
        relay->is_shown_over = count == 0 || !is_passing(errno);
        return;
    }
    relay->was_farewell = is_farewell(bytes, (size_t)count);
    if (terminal.is_typed_on) {
        leave_out_marks(&text, bytes, (size_t)count);
    }
    else {
        append(&text, bytes, (size_t)count);
    }
    if (terminal.is_shown_on) {
        append_piece(&relay->shown, &relay->unfinished, text_of(&text), text.length);
    }
    else {
        append(&relay->shown, text_of(&text), text.length);
    }
}

/* To a pipe that poll() calls writable, PIPE_BUF bytes go without blocking. */
static void
write_stdout(struct relay *relay)
{
    size_t pending = relay->shown.length;
    ssize_t count =
        write(STDOUT_FILENO, relay->shown.data, pending < PIPE_BUF ? pending : PIPE_BUF);

    if (count >= 0) {
        drop(&relay->shown, (size_t)count);
    }
    else if (errno == EPIPE) {
        leave(STATUS_OUTPUT_GONE);
    }
    else if (!is_passing(errno)) {
        fail(STATUS_TROUBLE, "cannot write to standard output: %m");
    }
}

enum { INPUT, OUTPUT, SERVER, POLLED };

/* What to wait for. A descriptor with nothing to do is hidden from poll() by -1: its end would be
 * reported over and over. */
static void
choose_events(struct pollfd fds[POLLED], const struct relay *relay)
{
    bool has_typed = relay->typed.length > 0;
    bool has_shown = relay->shown.length > 0;
    bool reads_input = !relay->is_typed_over && !has_typed && !relay->is_shown_over;
    bool reads_server = !relay->is_shown_over && !has_shown;
    bool writes_server = !relay->is_shown_over && has_typed;
    short events = (short)((reads_server ? POLLIN : 0) | (writes_server ? POLLOUT : 0));

    fds[INPUT] =
        (struct pollfd){.fd = reads_input ? terminal.input : -1, .events = POLLIN};
    fds[OUTPUT] =
        (struct pollfd){.fd = has_shown ? STDOUT_FILENO : -1, .events = POLLOUT};
    fds[SERVER] =
        (struct pollfd){.fd = events != 0 ? relay->server : -1, .events = events};
}

/* Reads and writes what was waited for. An error or an end counts as both: the call then says what
 * it is. */
static void
move_bytes(struct relay *relay, const struct pollfd fds[POLLED])
{
    bool is_ended = (fds[SERVER].revents & (POLLERR | POLLHUP)) != 0;
    int due = fds[SERVER].events & (is_ended ? POLLIN | POLLOUT : fds[SERVER].revents);

    relay->is_silent = relay->is_silent && fds[SERVER].revents == 0;
    if (fds[OUTPUT].revents != 0) {
        write_stdout(relay);
    }
    if ((due & POLLIN) != 0) {
        read_server(relay);
    }
    if ((due & POLLOUT) != 0 && !send_some(relay->server, &relay->typed)) {
        relay->is_typed_over = true;
    }
    if (fds[INPUT].revents != 0) {
        read_stdin(relay, (fds[INPUT].revents & POLLHUP) != 0);
    }
}

/* Below what is being typed, which the terminal has echoed. */
static void
remark(const char *text)
{
    if (!terminal.is_quiet) {
        (void)fprintf(stderr, "\n%s\n", text);
    }
}

/* Ctrl-C: interrupts who asks for something, or what the process runs. Without a terminal, and
 * where there is nothing to interrupt by, it ends the client. Returns whether to go on. */
static bool
may_go_on(const struct target *target, struct relay *relay)
{
    if (marks.is_asked) {
        press_key(relay, KEY_INTERRUPT);
        return true;
    }
    enum interruption outcome =
        terminal.is_typed_on ? interrupt_session(target) : SESSION_LEFT;
    if (outcome == SESSION_IDLE && has_news(relay->server)) {
        read_server(relay);
    }
    if (outcome == SESSION_IDLE && marks.is_asked) {
        press_key(relay, KEY_INTERRUPT);
    }
    else if (outcome == SESSION_IDLE) {
        remark(nothing_is_running);
    }
    return outcome != SESSION_LEFT;
}

/* The status of a console that the server has closed. */
static enum exit_status
conclude_console(int server, const struct target *target, bool was_farewell)
{
    return !was_farewell && has_ended(server_pid(server))
               ? say_cut(server, target, "its console was left")
               : STATUS_OK;
}

/* Copies both ways until the server has closed and all it wrote is shown. That our input ends ends
 * nothing: the server is told, and has the last word. */
static enum exit_status
relay_session(int server, const struct target *target)
{
    struct relay relay = {.server = server, .is_silent = true};
    struct pollfd fds[POLLED];
    bool is_left = false;

    follow_signal(SIGINT);
    while (!relay.is_shown_over || relay.shown.length > 0) {
        choose_events(fds, &relay);
        int ready = poll_session(fds, POLLED, server, &relay.is_silent, remark);
        if (consume_signal(SIGINT) && !may_go_on(target, &relay)) {
            is_left = true;
            break;
        }
        if (ready > 0) {
            move_bytes(&relay, fds);
        }
    }
    free_buffer(&relay.typed);
    free_buffer(&relay.lines);
    free_buffer(&relay.shown);
    free_buffer(&relay.unfinished);
    return is_left ? STATUS_INTERRUPTED
                   : conclude_console(server, target, relay.was_farewell);
}

#endif /* MANHOLE_CLI_RELAY_C */
