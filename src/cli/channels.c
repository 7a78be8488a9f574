/* Side channels: a second connection, whose calling card says what it wants to know of the
 * first one's session. The console's own bytes stay what they always were.
 */
#ifndef MANHOLE_CLI_CHANNELS_C
#define MANHOLE_CLI_CHANNELS_C

#include "terminal.c"
#include "target.c"
#include "connection.c"

/* After an interrupted or premature call the next poll() decides anew. */
static bool
is_passing(int error)
{
    return error == EINTR || error == EAGAIN;
}

/* Asks and adds the answer, to its end or that of the patience. Returns false, with whatever
 * has come until then, when that was not the end. */
static bool
ask_aside(const struct target *target, const char *wish, const struct buffer *question,
          int patience_ms, struct buffer *answer)
{
    static unsigned count;
    double deadline = now_s() + patience_ms / 1e3;
    char name[32];
    char bytes[4096];
    ssize_t length = -1;
    struct pollfd server = {.events = POLLIN};

    (void)snprintf(name, sizeof(name), "%s.%u", wish, ++count);
    server.fd = open_socket(name);
    if (connect_once(server.fd, target) == 0 && is_right_server(server.fd, target)) {
        if (question != NULL) {
            (void)send(server.fd, question->data, question->length, MSG_NOSIGNAL);
        }
        while (length != 0) {
            double left_ms = (deadline - now_s()) * 1e3;
            if (left_ms <= 0 || poll(&server, 1, (int)left_ms + 1) != 1) {
                break;
            }
            length = recv(server.fd, bytes, sizeof(bytes), 0);
            append(answer, bytes, length > 0 ? (size_t)length : 0);
            length = length < 0 && is_passing(errno) ? 1 : length < 0 ? 0 : length;
        }
    }
    (void)close(server.fd);
    return length == 0;
}

enum interruption {
    SESSION_INTERRUPTED,
    SESSION_IDLE,
    SESSION_LEFT, /* the client is to go */
};

/* The last Ctrl-C that interrupted something. */
static struct interrupt {
    double sent_s;
    bool is_due;  /* what it was for has not ended yet, */
    bool is_told; /* and the user knows */
} interrupt = {.sent_s = -1e9};

static const char interrupt_is_late[] =
    "manhole-cli: still running: KeyboardInterrupt comes when the call returns; Ctrl-C "
    "again leaves";

/* Whether it has had no effect for some time. That is to be said, once. */
static bool
is_interrupt_late(void)
{
    bool is_late = interrupt.is_due && !interrupt.is_told &&
                   now_s() - interrupt.sent_s >= INTERRUPT_PATIENCE_MS / 1e3;

    interrupt.is_told = interrupt.is_told || is_late;
    return is_late;
}

/* How long to wait for something else, for which there are patience_ms; -1: for ever. */
static int
until_interrupt_is_late(int patience_ms)
{
    double left_ms = (interrupt.sent_s - now_s()) * 1e3 + INTERRUPT_PATIENCE_MS;

    if (!interrupt.is_due || interrupt.is_told ||
        (patience_ms >= 0 && patience_ms <= left_ms)) {
        return patience_ms;
    }
    return left_ms > 0 ? (int)left_ms + 1 : 0;
}

/* Ctrl-C: the first one interrupts what our session runs. A second one leaves it running, if that
 * still runs, when it comes soon after, or when the user was told; so does the first one with a
 * server that knows no interrupts. */
static enum interruption
interrupt_session(const struct target *target)
{
    struct buffer answer = {.data = NULL}; /* owned */
    bool is_early =
        interrupt.is_told || now_s() - interrupt.sent_s < INTERRUPT_PATIENCE_MS / 1e3;
    enum interruption outcome = SESSION_LEFT;

    (void)ask_aside(target, "interrupt", NULL, INTERRUPT_PATIENCE_MS, &answer);
    if (strcmp(text_of(&answer), "idle\n") == 0) {
        outcome = SESSION_IDLE;
    }
    else if (strcmp(text_of(&answer), "interrupted\n") == 0 ||
             (strcmp(text_of(&answer), "still running\n") == 0 && !is_early)) {
        interrupt = (struct interrupt){.sent_s = now_s(), .is_due = true};
        outcome = SESSION_INTERRUPTED;
    }
    else if (strcmp(text_of(&answer), "still running\n") == 0) {
        (void)fprintf(stderr,
                      "\nmanhole-cli: left; the statement has not ended yet and is "
                      "interrupted again by the process every second until it does\n");
    }
    free(answer.data);
    return outcome;
}

/* As the kernel recorded it when the server began to listen. */
static pid_t
server_pid(int server)
{
    struct ucred credentials = {.pid = 0};
    socklen_t size = sizeof(credentials);

    (void)getsockopt(server, SOL_SOCKET, SO_PEERCRED, &credentials, &size);
    return credentials.pid;
}

#endif /* MANHOLE_CLI_CHANNELS_C */
