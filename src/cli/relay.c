/* Relay: standard input to the server, the server to standard output, whatever the bytes.
 * Each direction holds one chunk and reads on when that is gone, so memory is bounded and
 * neither direction waits for the other: who does not read holds up only what he does not
 * read.
 */
#ifndef MANHOLE_CLI_RELAY_C
#define MANHOLE_CLI_RELAY_C

#include "messages.c"
#include "terminal.c"
#include "target.c"
#include "connection.c"
#include "signals.c"
#include "channels.c"
#include "history.c"

/* What is typed at a terminal goes to a server that is told so, for Ctrl-C and Ctrl-D are for who
 * reads there: the console, input() or Pdb. They go over as those bytes, and two more stand around
 * what is pasted, which the console runs as one. The server in turn says between two bytes when
 * somebody begins to read, "?" and the prompt, if it is one of the console's, and when he has
 * something, "!". Who puts no such marks takes no keys either. */
enum { MARK_BEGIN = 1, MARK_END = 2, MARK_SIZE = 256 };
enum { KEY_PASTE = 2, KEY_INTERRUPT = 3, KEY_END = 4, KEY_PASTED = 5 };

enum mark { NO_MARK, MARK_UNFINISHED, MARK_WAITS, MARK_HAS_READ, MARK_BROKEN };

static struct marks {
    bool are_put;
    bool is_inside;
    bool is_begun;      /* by the last byte */
    struct buffer text; /* of one, so far */
    bool is_asked;      /* by who is not the console that begins a statement */
} marks;

/* What has come with a byte. A broken one was none: its text is to be shown. What another begins in
 * is broken: the process wrote the first byte of one, and asks now. */
static enum mark
take_mark(char byte)
{
    bool was_inside = marks.is_inside;

    if (!was_inside || marks.is_begun) {
        empty(&marks.text);
    }
    marks.is_begun = byte == MARK_BEGIN;
    if (marks.is_begun) {
        marks.is_inside = true;
        return was_inside ? MARK_BROKEN : MARK_UNFINISHED;
    }
    if (!was_inside) {
        return NO_MARK;
    }
    if (byte != MARK_END) {
        append(&marks.text, &byte, 1);
        marks.is_inside = byte != '\n' && marks.text.length < MARK_SIZE;
        return marks.is_inside ? MARK_UNFINISHED : MARK_BROKEN;
    }
    marks.is_inside = false;
    if (strcmp(text_of(&marks.text), "!") == 0) {
        marks.is_asked = false;
        return MARK_HAS_READ;
    }
    if (marks.text.length == 0 || marks.text.data[0] != '?') {
        return MARK_BROKEN;
    }
    marks.is_asked = marks.text.length == 1 || strcmp(marks.text.data, "?... ") == 0;
    marks.are_put = true;
    interrupt.is_due = interrupt.is_told = false;
    return MARK_WAITS;
}

/* One direction. The two are static in relay(): they are too big for a small stack. */
struct flow {
    size_t start; /* of what is still to be written */
    size_t end;
    bool is_over; /* nothing more will be read */
    char bytes[CHUNK_SIZE];
};

/* Whether something read is still to be written. Nothing more is read until it is. */
static bool
is_pending(const struct flow *flow)
{
    return flow->start < flow->end;
}

/* Instead of what was typed and is not written yet, of which Ctrl-D finds nothing. */
static void
press_key(struct flow *typed, char key)
{
    typed->bytes[0] = key;
    typed->start = 0;
    typed->end = 1;
}

/* Standard input may be shared with others, so it stays in blocking mode: poll() has just
 * said that a read will not block. At its end the server is told, and may go on writing; at a
 * terminal that is still there it was but Ctrl-D.
 */
static void
read_stdin(struct flow *typed, int server, bool is_hung_up)
{
    ssize_t count = read(terminal.input, typed->bytes, sizeof(typed->bytes));

    if (count < 0 && is_passing(errno)) {
        return;
    }
    if (count < 0) {
        say_error("cannot read standard input: %m; taken as its end");
    }
    if (count == 0 && marks.are_put && !is_hung_up) {
        press_key(typed, KEY_END);
        return;
    }
    if (count <= 0) {
        typed->is_over = true;
        (void)shutdown(server, SHUT_WR);
        return;
    }
    typed->start = 0;
    typed->end = (size_t)count;
    remember_typed(typed->bytes, typed->end);
}

/* After a server has closed, which shows when we read: it may still have something to say. */
static bool
is_gone(int error)
{
    return error == EPIPE || error == ECONNRESET;
}

static void
write_server(struct flow *typed, int server)
{
    ssize_t count = send(server, typed->bytes + typed->start, typed->end - typed->start,
                         MSG_NOSIGNAL);

    if (count >= 0) {
        typed->start += (size_t)count;
    }
    else if (is_gone(errno)) {
        typed->start = typed->end;
        typed->is_over = true;
    }
    else if (!is_passing(errno)) {
        fail(STATUS_TROUBLE, "cannot send on what was typed: %m");
    }
}

/* Leaves out the marks, but for the prompts in them. Of a broken one what came before is put in. */
static void
leave_out_marks(struct flow *shown)
{
    static struct buffer text;

    for (size_t i = 0; i < shown->end; i++) {
        enum mark mark = take_mark(shown->bytes[i]);
        if (mark == NO_MARK) {
            append(&text, shown->bytes + i, 1);
        }
        else if (mark == MARK_WAITS || mark == MARK_BROKEN) {
            append_text(&text, text_of(&marks.text) + (mark == MARK_WAITS ? 1 : 0));
        }
    }
    memcpy(shown->bytes, text_of(&text), text.length);
    shown->end = text.length;
    empty(&text);
}

/* Makes what came harmless for a terminal. It grows by the factor of GROWTH at most. */
enum { GROWTH = 4 };

static void
tame(struct flow *shown)
{
    static struct buffer unfinished; /* a character of which the rest is still to come */
    static struct buffer tamed;
    size_t whole = 0;

    append(&unfinished, shown->bytes, shown->end);
    whole = unfinished.length - count_unfinished(unfinished.data, unfinished.length);
    append_harmless(&tamed, unfinished.data, whole);
    drop(&unfinished, whole);
    memcpy(shown->bytes, tamed.data, tamed.length);
    shown->end = tamed.length;
    empty(&tamed);
}

/* A reset is an end as well: so a server's close looks when it has not read all that we sent. */
static void
read_server(struct flow *shown, int server)
{
    bool is_tamed = terminal.is_shown_on && !terminal.is_raw;
    size_t size =
        is_tamed ? sizeof(shown->bytes) / GROWTH - MB_LEN_MAX : sizeof(shown->bytes);
    ssize_t count = recv(server, shown->bytes, size - MARK_SIZE, 0);

    if (count > 0) {
        shown->start = 0;
        shown->end = (size_t)count;
        if (terminal.is_typed_on) {
            leave_out_marks(shown);
        }
        if (is_tamed) {
            tame(shown);
        }
    }
    else if (count == 0 || !is_passing(errno)) {
        shown->is_over = true;
    }
}

/* Standard output stays in blocking mode, too. To a pipe that poll() calls writable,
 * PIPE_BUF bytes go without blocking. Returns false when nobody reads them any more. */
static bool
write_stdout(struct flow *shown)
{
    size_t pending = shown->end - shown->start;
    ssize_t count = write(STDOUT_FILENO, shown->bytes + shown->start,
                          pending < PIPE_BUF ? pending : PIPE_BUF);

    if (count >= 0) {
        shown->start += (size_t)count;
    }
    else if (errno == EPIPE) {
        return false;
    }
    else if (!is_passing(errno)) {
        fail(STATUS_TROUBLE, "cannot write to standard output: %m");
    }
    return true;
}

enum { INPUT, OUTPUT, SERVER, POLLED };

/* What to wait for. A descriptor with nothing to do is hidden from poll() by -1: its end
 * would be reported over and over. */
static void
choose_events(struct pollfd fds[POLLED], const struct flow *typed,
              const struct flow *shown, int server)
{
    bool reads_input = !typed->is_over && !is_pending(typed) && !shown->is_over;
    bool reads_server = !shown->is_over && !is_pending(shown);
    bool writes_server = !shown->is_over && is_pending(typed);
    short events = (short)((reads_server ? POLLIN : 0) | (writes_server ? POLLOUT : 0));

    fds[INPUT] =
        (struct pollfd){.fd = reads_input ? terminal.input : -1, .events = POLLIN};
    fds[OUTPUT] =
        (struct pollfd){.fd = is_pending(shown) ? STDOUT_FILENO : -1, .events = POLLOUT};
    fds[SERVER] = (struct pollfd){.fd = events != 0 ? server : -1, .events = events};
}

/* Reads or writes, whichever was waited for. An error or an end counts as both: the call
 * then says what it is. */
static void
serve_server(const struct pollfd *ready, struct flow *typed, struct flow *shown)
{
    bool is_ended = (ready->revents & (POLLERR | POLLHUP)) != 0;

    if ((ready->events & POLLIN) != 0 && ((ready->revents & POLLIN) != 0 || is_ended)) {
        read_server(shown, ready->fd);
    }
    if ((ready->events & POLLOUT) != 0 && ((ready->revents & POLLOUT) != 0 || is_ended)) {
        write_server(typed, ready->fd);
    }
}

/* Ctrl-C: interrupts who asks for something, or what the process runs. Without a terminal, and
 * where there is nothing to interrupt by, it ends the client. Returns whether to go on. */
static bool
may_go_on(const struct target *target, struct flow *typed)
{
    enum interruption outcome = SESSION_LEFT;

    if (marks.is_asked) {
        press_key(typed, KEY_INTERRUPT);
        return true;
    }
    if (terminal.is_typed_on) {
        outcome = interrupt_session(target);
    }
    if (outcome == SESSION_IDLE) {
        (void)fprintf(stderr, "\nmanhole-cli: nothing is running; Ctrl-D leaves\n");
    }
    return outcome != SESSION_LEFT;
}

/* Says that the server has closed before it should have, and whether it was its process's end. */
static enum exit_status
say_cut(int server, const struct target *target, const char *what)
{
    say_error("process %s has %s before %s", label_of(target).text,
              has_ended(server_pid(server)) ? "ended" : "closed the connection", what);
    return STATUS_CUT;
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

/* The status of a console that the server has closed. */
static enum exit_status
conclude_console(int server, const struct target *target, bool was_farewell)
{
    return !was_farewell && has_ended(server_pid(server))
               ? say_cut(server, target, "its console was left")
               : STATUS_OK;
}

/* Copies both ways until the server has closed and all it wrote is shown. Ctrl-C is let in while
 * it waits, and only then. */
static enum exit_status
relay(int server, const struct target *target)
{
    static struct flow typed;
    static struct flow shown;
    struct pollfd fds[POLLED];
    bool is_silent = true;
    bool was_farewell = false;

    follow_signal(SIGINT);
    while (!shown.is_over || is_pending(&shown)) {
        choose_events(fds, &typed, &shown, server);
        int patience_ms =
            until_interrupt_is_late(is_silent ? FIRST_BYTE_PATIENCE_S * 1000 : -1);
        int ready = poll_with_signals(fds, POLLED, patience_ms);
        if (is_interrupt_late()) {
            (void)fprintf(stderr, "\n%s\n", interrupt_is_late);
        }
        else if (ready == 0) {
            is_silent = false; /* said once */
            (void)say_hindrance(server_pid(server));
        }
        if (take_due(SIGINT) && !may_go_on(target, &typed)) {
            return STATUS_INTERRUPTED;
        }
        if (ready <= 0) {
            continue;
        }
        is_silent = is_silent && fds[SERVER].revents == 0;
        if (fds[OUTPUT].revents != 0 && !write_stdout(&shown)) {
            return STATUS_OUTPUT_GONE;
        }
        serve_server(&fds[SERVER], &typed, &shown);
        if (is_pending(&shown)) {
            was_farewell = is_farewell(shown.bytes, shown.end);
        }
        if (fds[INPUT].revents != 0) {
            read_stdin(&typed, server, (fds[INPUT].revents & POLLHUP) != 0);
        }
    }
    return conclude_console(server, target, was_farewell);
}

#endif /* MANHOLE_CLI_RELAY_C */
