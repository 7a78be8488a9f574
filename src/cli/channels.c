/* Side channels: a second connection, whose calling card says what it wants to know of the first
 * one's session: "interrupt" what it runs, "complete" a name. So the console's own bytes stay what
 * they always were, and the server's listener answers also while the session is busy.
 *
 * Ctrl-C is such a question. The answer tells whether anything was running; a KeyboardInterrupt
 * comes only when a call returns, so after a second without effect the user is told, once, and the
 * next Ctrl-C leaves.
 */
#ifndef MANHOLE_CLI_CHANNELS_C
#define MANHOLE_CLI_CHANNELS_C

#include "connection.c"

/* The process at the other end, as the kernel recorded it when that began to listen; 0: it is not
 * known, or not to be seen from here. */
static pid_t
server_pid(int server)
{
    struct ucred credentials = {.pid = 0};
    socklen_t size = sizeof(credentials);

    (void)getsockopt(server, SOL_SOCKET, SO_PEERCRED, &credentials, &size);
    return credentials.pid;
}

/* Sends what the server takes of it. Returns false, with nothing left to send, once it is gone,
 * which shows better when we read: it may still have something to say. */
static bool
send_some(int server, struct buffer *unsent)
{
    if (unsent->length == 0) {
        return true;
    }
    ssize_t count = send(server, unsent->data, unsent->length, MSG_NOSIGNAL);
    if (count >= 0) {
        drop(unsent, (size_t)count);
    }
    else if (errno == EPIPE || errno == ECONNRESET) {
        empty(unsent);
        return false;
    }
    else if (!is_passing(errno)) {
        fail(STATUS_TROUBLE, "cannot send to the process: %m");
    }
    return true;
}

/* Asks and adds the answer, to its end or that of the patience. */
static void
ask_aside(const struct target *target, const char *channel, const struct buffer *question,
          struct buffer *answer)
{
    double deadline = now_s() + INTERRUPT_PATIENCE_MS / 1e3;
    char bytes[4096];
    OWNED_FD fd = open_socket(print("%s.%u", channel, ++own.questions).text);
    struct pollfd server = {.fd = fd, .events = POLLIN};
    if (connect_once(fd, target) < 0 || !is_right_server(fd, target)) {
        return;
    }
    if (question != NULL) {
        (void)send(fd, question->data, question->length, MSG_NOSIGNAL);
    }
    while (poll(&server, 1, patience_until(deadline)) == 1 &&
           append_some(answer, bytes, recv(fd, bytes, sizeof(bytes), 0))) {
    }
}

/* ---- Ctrl-C ------------------------------------------------------------------------ */

/* What the answer was: "interrupted", "idle", or "still running" where an interrupt is on its way
 * already. No answer, or another, means a server that knows no such question. */
enum interruption {
    SESSION_INTERRUPTED,
    SESSION_IDLE,
    SESSION_LEFT, /* the client is to go */
};

/* The last one that interrupted something. */
static struct interrupt {
    double
        late_s; /* when the user is to be told that it had no effect; HUGE_VAL: not (any more) */
    bool is_told; /* he was, and what it was for has not ended yet */
} interrupt = {.late_s = HUGE_VAL};

static const char interrupt_is_late[] =
    "manhole-cli: still running: KeyboardInterrupt comes when the call returns; Ctrl-C "
    "again leaves";

static const char nothing_is_running[] = "manhole-cli: nothing is running; Ctrl-D leaves";

/* Somebody reads again. */
static void
forget_interrupt(void)
{
    interrupt = (struct interrupt){.late_s = HUGE_VAL};
}

/* Whether it has had no effect for some time. That is to be said, once. */
static bool
is_interrupt_late(void)
{
    bool is_late = now_s() >= interrupt.late_s;

    if (is_late) {
        interrupt = (struct interrupt){.late_s = HUGE_VAL, .is_told = true};
    }
    return is_late;
}

/* How long to wait for something else, for which there are patience_ms; -1: for ever. */
static int
until_interrupt_is_late(int patience_ms)
{
    int left_ms = patience_until(interrupt.late_s);
    return left_ms >= 0 && (patience_ms < 0 || left_ms < patience_ms) ? left_ms
                                                                      : patience_ms;
}

/* The first Ctrl-C interrupts what our session runs. A second one leaves it running, if that still
 * runs, when it comes soon after, or when the user was told; so does the first one with a server
 * that knows no interrupts. */
static enum interruption
interrupt_session(const struct target *target)
{
    OWNED_BUFFER answer = {.data = NULL};
    bool is_second = interrupt.is_told || interrupt.late_s < HUGE_VAL;

    ask_aside(target, "interrupt", NULL, &answer);
    bool is_still_running = strcmp(text_of(&answer), "still running\n") == 0;
    if (strcmp(text_of(&answer), "idle\n") == 0) {
        return SESSION_IDLE;
    }
    if (strcmp(text_of(&answer), "interrupted\n") == 0 ||
        (is_still_running && !is_second)) {
        interrupt.late_s = now_s() + INTERRUPT_PATIENCE_MS / 1e3;
        return SESSION_INTERRUPTED;
    }
    if (is_still_running && !terminal.is_quiet) {
        (void)fprintf(stderr,
                      "\nmanhole-cli: left; the statement has not ended yet and is "
                      "interrupted again by the process every second until it does\n");
    }
    return SESSION_LEFT;
}

/* Whether the server has said something, or has closed: an idle session may have a prompt that is
 * on its way to us, and a Ctrl-C is for who asks by that. */
static bool
has_news(int server)
{
    struct pollfd fd = {.fd = server, .events = POLLIN};
    return poll(&fd, 1, 0) == 1;
}

/* ---- Waiting for the session ------------------------------------------------------- */

/* As poll_with_signals(). Remarks that a Ctrl-C is late; and says once, when not a byte has come
 * for a while, what keeps the process from answering. */
static int
poll_session(struct pollfd fds[], nfds_t count, int server, bool *is_silent,
             void (*remark)(const char *text))
{
    int patience_ms = *is_silent ? FIRST_BYTE_PATIENCE_MS : -1;
    int ready = poll_with_signals(fds, count, until_interrupt_is_late(patience_ms));

    if (is_interrupt_late()) {
        remark(interrupt_is_late);
    }
    else if (ready == 0) {
        *is_silent = false;
        (void)say_hindrance(server_pid(server));
    }
    return ready;
}

/* Says that the server has closed before it should have, and whether it was its process's end. */
static enum exit_status
say_cut(int server, const struct target *target, const char *what)
{
    say_error("process %s has %s before %s", label_of(target).text,
              has_ended(server_pid(server)) ? "ended" : "closed the connection", what);
    return STATUS_CUT;
}

#endif /* MANHOLE_CLI_CHANNELS_C */
