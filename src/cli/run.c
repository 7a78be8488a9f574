/* Run: code of -c and -f goes over in one piece, its output comes back in frames, by stream.
 * A frame is a kind ('o' output, 'e' errors, 'x' exit status, 'i' it reads its input), the
 * length of what follows as four bytes, and that. Anything else is a refusal in plain text.
 */
#ifndef MANHOLE_CLI_RUN_C
#define MANHOLE_CLI_RUN_C

#include "messages.c"
#include "terminal.c"
#include "target.c"
#include "options.c"
#include "connection.c"
#include "signals.c"
#include "channels.c"
#include "relay.c"

enum {
    SECOND_LOOK_MS = 100,   /* at a process that is stopped: a profiler lets it go on */
    STACKS_PATIENCE_S = 10, /* also for tasks */
};

/* What a process writes to one of our streams, made harmless where that is a terminal. */
struct outlet {
    int fd;
    bool is_terminal;
    struct buffer unfinished; /* a character of which the rest is still to come */
};

static struct outlet
open_outlet(int fd)
{
    return (struct outlet){.fd = fd, .is_terminal = isatty(fd) == 1 && !terminal.is_raw};
}

static void
let_out(struct outlet *outlet, const char *bytes, size_t count)
{
    static struct buffer shown;
    size_t whole = 0;

    if (!outlet->is_terminal) {
        write_all(outlet->fd, bytes, count);
        return;
    }
    append(&outlet->unfinished, bytes, count);
    whole = outlet->unfinished.length -
            count_unfinished(outlet->unfinished.data, outlet->unfinished.length);
    append_harmless(&shown, outlet->unfinished.data, whole);
    drop(&outlet->unfinished, whole);
    write_all(outlet->fd, text_of(&shown), shown.length);
    empty(&shown);
}

/* The answer, as far as it has been read. */
struct answer {
    struct buffer bytes; /* not looked at yet */
    char kind;           /* of the frame that has begun; 0: none has */
    size_t left;         /* bytes of it still to come */
    bool is_refusal;
    bool wants_input;
    long status; /* -1: has not come */
    struct outlet out;
    struct outlet err;
};

/* A status, of which the digits may be followed by others that are not its own. */
static long
read_status(const struct buffer *bytes, size_t count)
{
    char digits[16];
    (void)snprintf(digits, sizeof(digits), "%.*s",
                   (int)(count < sizeof(digits) ? count : sizeof(digits)),
                   text_of(bytes));
    return strtol(digits, NULL, 10) & 0xff;
}

/* Takes what has arrived of frames. A status is short, so it is waited for as a whole. */
static void
take_frames(struct answer *answer)
{
    struct buffer *bytes = &answer->bytes;

    while (!answer->is_refusal && bytes->length > 0) {
        const unsigned char *head = (const unsigned char *)bytes->data;
        size_t count = 0;
        if (answer->kind == 0) {
            answer->is_refusal = head[0] == 0 || strchr("oexi", (int)head[0]) == NULL;
            if (answer->is_refusal || bytes->length < 5) {
                return;
            }
            answer->kind = (char)head[0];
            answer->left = (size_t)head[1] << 24 | (size_t)head[2] << 16 |
                           (size_t)head[3] << 8 | (size_t)head[4];
            drop(bytes, 5);
        }
        count = bytes->length < answer->left ? bytes->length : answer->left;
        if (answer->kind == 'x' && count < answer->left) {
            return;
        }
        if (answer->kind == 'o' || answer->kind == 'e') {
            let_out(answer->kind == 'o' ? &answer->out : &answer->err, text_of(bytes),
                    count);
        }
        answer->wants_input = answer->wants_input || answer->kind == 'i';
        answer->status = answer->kind == 'x' ? read_status(bytes, count) : answer->status;
        drop(bytes, count);
        answer->left -= count;
        if (answer->left == 0) {
            answer->kind = 0;
        }
    }
}

/* Puts together what the server wants: length, file name, arguments, source. */
static void
build_request(const struct request *request, struct buffer *out)
{
    const char *file = request->file == NULL             ? "<string>"
                       : strcmp(request->file, "-") == 0 ? "<stdin>"
                                                         : request->file;
    struct buffer fields = {.data = NULL}; /* owned */
    unsigned char length[4];

    append(&fields, file, strlen(file) + 1);
    file = request->file == NULL ? "-c" : request->file;
    append(&fields, file, strlen(file) + 1);
    for (size_t i = 0; i < request->arguments; i++) {
        append(&fields, request->argument[i], strlen(request->argument[i]) + 1);
    }
    append(&fields, text_of(&request->source), request->source.length);
    for (size_t i = 0; i < sizeof(length); i++) {
        length[i] = (unsigned char)(fields.length >> (24 - 8 * i));
    }
    append(out, length, sizeof(length));
    append(out, fields.data, fields.length);
    free(fields.data);
}

/* Reads the source to run. It goes over behind a NUL, so it can have none itself, which is no loss:
 * Python refuses such a source. */
static void
read_source(struct request *request)
{
    const char *path = request->file;
    char bytes[4096];
    ssize_t count = 0;
    int fd = STDIN_FILENO;

    if (path == NULL) {
        append_text(&request->source, request->code);
        return;
    }
    if (strcmp(path, "-") != 0) {
        fd = open(path, O_RDONLY | O_CLOEXEC);
    }
    while (fd >= 0 && (count = read(fd, bytes, sizeof(bytes))) > 0) {
        append(&request->source, bytes, (size_t)count);
    }
    if (fd < 0 || count < 0) {
        fail(STATUS_TROUBLE, "cannot read the script %s: %m", quote(path).text);
    }
    if (fd != STDIN_FILENO) {
        (void)close(fd);
    }
    if (memchr(text_of(&request->source), '\0', request->source.length) != NULL) {
        fail(STATUS_TROUBLE, "the script %s has a NUL byte, which Python does not take",
             quote(path).text);
    }
}

/* What is asked of a process until it is over: code to run, or its stacks. */
struct errand {
    int server;
    const struct target *target;
    double deadline;
    bool is_watched; /* it has answered, or the silence was looked into */
    bool was_interrupted;
    bool is_unread[2]; /* nobody reads our standard output, error */
    bool is_over;
    enum exit_status status; /* when it is over */
};

static void
end_errand(struct errand *errand, enum exit_status status)
{
    errand->is_over = true;
    errand->status = status;
}

/* Milliseconds to wait at most before the deadline; -1: for ever. */
static int
patience_until(double deadline)
{
    double left_ms = (deadline - now_s()) * 1e3;
    return left_ms > INT_MAX ? -1 : left_ms > 0 ? (int)left_ms + 1 : 0;
}

/* When what is run is to be over: --timeout, or what stacks may take. */
static double
find_deadline(const struct request *request)
{
    bool is_given = (request->taken & 1U << (find_option("-t", 2) - options)) != 0;
    return is_given           ? now_s() + request->timeout_s
           : is_look(request) ? now_s() + STACKS_PATIENCE_S
                              : HUGE_VAL;
}

/* Whether the process can do nothing but wait itself; says so. One that is sampled by a profiler is
 * stopped for a moment only. */
static bool
is_hindered(pid_t pid)
{
    char state = process_state(pid);

    if (state == 'T' || state == 't') {
        (void)poll_with_signals(NULL, 0, SECOND_LOOK_MS);
    }
    return say_hindrance(pid);
}

enum { ERRAND_FDS = 2 }; /* that an errand waits for at most */

/* As poll_with_signals(). Sees to our outputs, too: when nobody reads any of them, as behind an ssh
 * that was interrupted, the errand is over: the process is not to run on with what nobody wants. */
static int
poll_errand(struct errand *errand, struct pollfd fds[], nfds_t count, int patience_ms)
{
    struct pollfd all[ERRAND_FDS + 2];
    int ready = 0;

    memcpy(all, fds, count * sizeof(*fds));
    for (int i = 0; i < 2; i++) {
        all[count + (nfds_t)i] =
            (struct pollfd){.fd = errand->is_unread[i] ? -1 : STDOUT_FILENO + i};
    }
    ready = poll_with_signals(all, count + 2, patience_ms);
    memcpy(fds, all, count * sizeof(*fds));
    for (nfds_t i = 0; ready > 0 && i < 2; i++) {
        errand->is_unread[i] = errand->is_unread[i] || all[count + i].revents != 0;
    }
    if (errand->is_unread[0] && errand->is_unread[1]) {
        end_errand(errand, STATUS_OUTPUT_GONE);
    }
    return ready;
}

/* Waits until there is something to do. Ends the errand when its time is over, when the process can
 * do nothing but wait itself, and at a Ctrl-C that interrupts nothing. */
static bool
wait_on_errand(struct errand *errand, struct pollfd fds[], nfds_t count)
{
    const int first_ms = FIRST_BYTE_PATIENCE_S * 1000;
    int patience_ms = patience_until(errand->deadline);
    bool is_first = !errand->is_watched && (patience_ms < 0 || patience_ms > first_ms);
    int ready = poll_errand(errand, fds, count,
                            until_interrupt_is_late(is_first ? first_ms : patience_ms));

    if (take_due(SIGINT)) {
        errand->was_interrupted = true;
        if (interrupt_session(errand->target) == SESSION_LEFT) {
            end_errand(errand, STATUS_INTERRUPTED);
        }
    }
    else if (is_interrupt_late()) {
        (void)fprintf(stderr, "%s\n", interrupt_is_late);
    }
    else if (ready == 0 && is_first) {
        errand->is_watched = true;
        if (is_hindered(server_pid(errand->server))) {
            end_errand(errand, STATUS_NO_CONNECTION);
        }
    }
    else if (ready == 0 || patience_ms == 0) { /* a flood does not give it more time */
        say_error("process %s has not finished within the timeout; it was told to stop",
                  label_of(errand->target).text);
        end_errand(errand, STATUS_TIMEOUT);
    }
    return ready > 0 && !errand->is_over;
}

/* Adds what has come. Returns false at the end. */
static bool
read_answer(struct errand *errand, struct buffer *answer)
{
    char bytes[16 * 1024];
    ssize_t count = recv(errand->server, bytes, sizeof(bytes), 0);

    append(answer, bytes, count > 0 ? (size_t)count : 0);
    errand->is_watched = true;
    return count > 0 || (count < 0 && is_passing(errno));
}

/* Reads on from standard input; at its end tells the server. */
static void
read_input(struct buffer *unsent, bool *is_over)
{
    char bytes[4096];
    ssize_t count = read(terminal.input, bytes, sizeof(bytes));

    if (count > 0) {
        append(unsent, bytes, (size_t)count);
    }
    else if (count == 0 || !is_passing(errno)) {
        *is_over = true;
    }
}

/* Sends what there is; after the last of it, says that it was. */
static void
send_on(int server, struct buffer *unsent, bool is_over)
{
    static bool is_told = false;
    ssize_t count = 0;

    if (unsent->length > 0) {
        count = send(server, unsent->data, unsent->length, MSG_NOSIGNAL);
        if (count < 0 && is_gone(errno)) {
            count = (ssize_t)unsent->length;
        }
        if (count < 0 && !is_passing(errno)) {
            fail(STATUS_TROUBLE, "cannot send the code and its input: %m");
        }
        drop(unsent, count > 0 ? (size_t)count : 0);
    }
    if (unsent->length == 0 && is_over && !is_told) {
        is_told = true;
        (void)shutdown(server, SHUT_WR);
    }
}

/* What it comes to when the server has closed. */
static enum exit_status
conclude(struct answer *answer, int server, const struct target *target,
         bool was_interrupted)
{
    if (answer->is_refusal && strncmp(text_of(&answer->bytes), "manhole: ", 9) != 0) {
        say_error(
            "the manhole of process %s knows no -c; type at its console, without -c",
            label_of(target).text);
        return STATUS_NO_CONNECTION;
    }
    if (answer->is_refusal) {
        let_out(&answer->err, answer->bytes.data, answer->bytes.length);
        return STATUS_NO_CONNECTION;
    }
    if (answer->status >= 0) {
        return was_interrupted && answer->status == 1 ? STATUS_INTERRUPTED
                                                      : (enum exit_status)answer->status;
    }
    return say_cut(server, target, "the code had ended");
}

/* Runs the code, with our standard streams as its own. */
static enum exit_status
run_code(int server, const struct request *request, const struct target *target,
         bool *answered)
{
    struct errand errand = {
        .server = server, .target = target, .deadline = request->deadline};
    struct answer answer = {.status = -1,
                            .out = open_outlet(STDOUT_FILENO),
                            .err = open_outlet(STDERR_FILENO)};
    struct buffer unsent = {.data = NULL}; /* owned */
    bool is_over = false;                  /* our standard input */

    build_request(request, &unsent);
    follow_signal(SIGINT);
    while (!errand.is_over) {
        bool reads_input = answer.wants_input && !is_over && unsent.length == 0;
        short events = (short)(POLLIN | (unsent.length > 0 ? POLLOUT : 0));
        struct pollfd fds[ERRAND_FDS] = {
            {.fd = reads_input ? terminal.input : -1, .events = POLLIN},
            {.fd = server, .events = events}};
        if (!wait_on_errand(&errand, fds, 2)) {
            continue;
        }
        if (fds[0].revents != 0) {
            read_input(&unsent, &is_over);
        }
        send_on(server, &unsent, is_over);
        if ((fds[1].revents & ~POLLOUT) != 0) {
            bool is_open = read_answer(&errand, &answer.bytes);
            take_frames(&answer);
            if (!is_open || (answer.is_refusal && line_length(&answer.bytes) > 0)) {
                end_errand(&errand,
                           conclude(&answer, server, target, errand.was_interrupted));
            }
        }
    }
    *answered = answer.status >= 0;
    free(answer.bytes.data);
    free(unsent.data);
    return errand.status;
}

#endif /* MANHOLE_CLI_RUN_C */
