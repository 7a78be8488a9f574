/* Frozen: a client is served in a frozen copy of the process, where nothing that it does matters.
 * Runs on:  the session's thread, ATTACHED, where Python answers; where it does not, a freezer,
 *           DETACHED. live_as_copy() in the copy.
 * Touches:  the session; one process for each such client.
 *
 * How it works. A session's thread attaches as ever. Once it is in it has the copy made and stays
 * with it, detached, until the client leaves (serve_frozen). The copy has the client's socket, and
 * serves it as the process would.
 *
 *   Where Python does not answer within hang_timeout, the listener sends out a freezer in place of
 *   a reporter (room report): it takes the right to send, makes the copy without Python, and gives
 *   the right back when that has ended. So if Python answers meanwhile, the session's own thread
 *   waits for the end of that, and finds that its client was told. Where others have found out
 *   before that Python does not answer, the session's thread is itself the freezer
 *   (lone_freezer_main). A freezer that finds that nobody has the GIL leaves the client to Python
 *   after all: the session's thread serves it as soon as it is in, and should that take too long
 *   again, another freezer comes.
 *
 *   --tasks is served live, and by a copy where Python does not answer: serve_copy without
 *   serve_frozen.
 *
 *   The first bytes from us are `hello`, before anything is read: a manhole that is older takes an
 *   unknown channel for a console, in the living process. A client that has seen it sends its
 *   program, or a byte where there is none, and then the copy is made.
 *
 *   The copy is a client's with a prompt, and gets none without: receive_frozen() asks what
 *   receive_program() does. Exit waits for no such client, see count_sessions().
 */
#ifndef MANHOLE_SESSION_FROZEN_C
#define MANHOLE_SESSION_FROZEN_C

#include "../base/compat.c"
#include "../base/state.c"
#include "../base/locks.c"
#include "../base/basics.c"
#include "../base/log.c"
#include "../stacks/dump.c"
#include "../frozen/copies.c"
#include "output.c"
#include "hang.c"
#include "interrupt.c"
#include "imports.c"
#include "programs.c"
#include "session.c"
#include "report.c"

enum {
    /* At once. */
    MAX_COPIES = 2,
    CLAIM_ATTEMPTS = 20,
    CLAIM_PAUSE_MS = 50,
};

/* The first bytes that a client gets of such a channel. */
static const char hello[] = "frozen\n";

/* In the session's thread, before it attaches. From here on the client waits for Python. */
DETACHED static bool
receive_frozen(struct session *session)
{
    char begin = 0;
    if (!may_run_code()) {
        return refuse_request(session, no_code);
    }
    (void)send(kept_number(&session->fd), hello, sizeof(hello) - 1, MSG_NOSIGNAL);
    if (session->channel->framed ? !receive_program(session)
                                 : !receive_bytes(session, &begin, 1)) {
        return false;
    }
    expect_answer(session);
    return true;
}

/* ---- In the copy --------------------------------------------------------------------- */

#if CAN_FREEZE

/* What the copy is made for. */
struct purpose {
    struct session *session;
    bool is_stuck;
};

/* All but its own client is the process's, and goes on there. */
ATTACHED static void
forget_all_but(struct session *own, struct board *board)
{
    for (size_t i = 0; i < atomic_load(&manhole.sessions_end); i++) {
        struct session *session = &manhole.sessions[i];
        if (session != own) {
            session->state = SESSION_FREE;
            atomic_store(&session->viewing, false);
        }
    }
    own->outbox = (struct outbox){0};
    own->hang = (struct hang_watch){0};
    own->run.due = false; /* it comes as a signal, see note_copy() */
    own->helpers = 0;
    own->copy = 0;
    manhole.has_listener = false;
    relay_log(&board->log);
}

/* What stands above its first prompt. */
static void
note_what_it_is(bool is_stuck)
{
    char when[32] = "";
    const time_t now = time(NULL);
    struct tm utc = {0};
    (void)strftime(when, sizeof(when), "%Y-%m-%d %H:%M:%S", gmtime_r(&now, &utc));
    (void)snprintf(
        frozen.note, sizeof(frozen.note),
        "This is a frozen copy of process %ld as of %s UTC%s. Nothing done here "
        "reaches it, nor files, sockets or other processes.\n",
        (long)frozen.original, when, is_stuck ? ", where Python does not answer" : "");
}

/* The rest of a copy's life. What it imports before it is ready may be what it dies of. */
ATTACHED static void
live_as_copy(void *argument, struct board *board)
{
    const struct purpose *purpose = argument;
    struct session *session = purpose->session;
    struct channel channel = *session->channel;
    struct text report = {0};
    if (channel.report != NULL) {
        channel.report(&report, session);
    }
    note_what_it_is(purpose->is_stuck);
    forget_all_but(session, board);
    atomic_store(&session->run.ident, PyThread_get_thread_ident());
    (void)import_needed_modules(session, NULL);
    PyErr_Clear();
    set_blocked(SIGINT, !channel.aside); /* until what the client sends runs */
    wait_on_board(board);

    session->outbox.unsent = report; /* goes out ahead of all else */
    channel.serve = channel.serve_copy;
    session->channel = &channel;
    serve_session(session);
    _exit(0);
}

#endif /* CAN_FREEZE */

/* ---- In the process ------------------------------------------------------------------ */

static const char *
describe_result(enum freeze_result result)
{
    switch (result) {
    case FREEZE_SUBINTERPRETERS:
        return "the process has subinterpreters, and no copy of one lives";
    case FREEZE_NO_FENCE:
        return "seccomp, /proc, /dev/null or process_vm_readv() is kept from it, and "
               "without its fence it might do harm";
    case FREEZE_NO_STACK:
        return "CPython 3.14 has what it takes from 3.14.2 on";
    case FREEZE_NO_MEMORY:
        return "there is no memory to spare for it";
    case FREEZE_NOT_HERE:
        return HAS_GIL ? "it is made on x86-64 with glibc alone"
                       : "without the GIL no thread stands still";
    case FREEZE_TOO_MANY:
        return "there are two of this process already; try again when one is left";
    case FREEZE_REFUSED:
        return error_text(errno);
    case FREEZE_NO_CLIENT:
        return "its client has left";
    default:
        return "each dies of what the process was in the middle of; try again";
    }
}

/* Tells the client why there is no copy; and what the stacks are, if it came for a prompt. */
DETACHED static void
refuse_copy(struct session *session, enum freeze_result result, bool attached)
{
    struct text text = {0};
    const char *why = describe_result(result);
    log_line("No frozen copy for the client of %s: %s",
             describe_peer(&session->peer).text, why);
    append_format(
        &text, "manhole: %sno frozen copy can be made: %s; --stacks shows where it is\n",
        attached ? "" : "Python does not answer, and ", why);
    if (result == FREEZE_DIED && !session->channel->aside && !session->channel->framed) {
        append_snapshot(&text, &dump_form);
    }
    (void)send_patiently(session, text.bytes, text.length, 0);
    free_text(&text);
}

#if CAN_FREEZE

/* A copy that has not ended by itself cannot say why. */
DETACHED static void
tell_end(struct session *session, enum copy_end end)
{
    static const char *const reasons[] = {
        [END_OF_CLIENT] = "its client has left",
        [END_IDLE] = "nothing was done with it for ten minutes",
        [END_NO_MEMORY] = "the memory that it takes is wanted elsewhere",
        [END_KILLED] = "it was killed, or has crashed",
    };
    if (end == END_BY_ITSELF) {
        log_line("The frozen copy has ended");
        return;
    }
    log_line("The frozen copy has ended: %s", reasons[end]);
    if (!session->channel->framed) {
        char line[120];
        int length = snprintf(line, sizeof(line),
                              "\nmanhole: the frozen copy has ended: %s\n", reasons[end]);
        (void)send(kept_number(&session->fd), line, (size_t)length,
                   MSG_NOSIGNAL | MSG_DONTWAIT);
    }
}

/* Returns false when there are enough. */
static bool
claim_copy(struct session *session)
{
    int count = 0;
    lock_leaf(&table_lock);
    for (size_t i = 0; i < atomic_load(&manhole.sessions_end); i++) {
        count +=
            manhole.sessions[i].state == SESSION_TAKEN && manhole.sessions[i].freezing;
    }
    session->freezing = count < MAX_COPIES;
    unlock(&table_lock);
    return count < MAX_COPIES;
}

/* One whose client has just left takes a moment to go. Returns false when there are enough. */
MAY_ATTACH static bool
await_claim(struct session *session, bool attached)
{
    bool claimed = claim_copy(session);
    for (int i = 0; !claimed && i < CLAIM_ATTEMPTS; i++) {
        PyThreadState *tstate = attached ? detach() : NULL;
        (void)poll(NULL, 0, CLAIM_PAUSE_MS);
        reattach(tstate);
        claimed = claim_copy(session);
    }
    return claimed;
}

static void
give_up_copy(struct session *session)
{
    lock_leaf(&table_lock);
    session->freezing = false;
    unlock(&table_lock);
}

DETACHED static void
note_copy(void *argument, pid_t copy)
{
    struct session *session = ((const struct purpose *)argument)->session;
    lock_leaf(&session->out_lock);
    session->copy = copy;
    if (session->run.due) {
        (void)kill(copy, SIGINT);
    }
    unlock(&session->out_lock);
    log_line("A frozen copy, PID:%ld, serves the client of %s", (long)copy,
             describe_peer(&session->peer).text);
}

/* Has a copy serve the client, from its making to its end. Returns false when Python will serve it:
 * then it was told nothing. */
MAY_ATTACH static bool
serve_by_copy(struct session *session, bool attached)
{
    struct purpose purpose = {session, !attached};
    struct freezing freezing = {.attached = attached,
                                .client_fd = kept_number(&session->fd),
                                .note = note_copy,
                                .live = live_as_copy,
                                .argument = &purpose};
    enum freeze_result result =
        await_claim(session, attached) ? freeze(&freezing) : FREEZE_TOO_MANY;
    int error = errno;
    if (attached && freezing.tstate == NULL) { /* there was no first copy */
        freezing.tstate = detach();
    }
    errno = error;
    if (result == FREEZE_DONE) {
        tell_end(session, watch_copy(session, freezing.board));
    }
    else if (result != FREEZE_NO_HOLDER) {
        refuse_copy(session, result, attached);
    }
    give_up_copy(session);
    reattach(freezing.tstate);
    return result != FREEZE_NO_HOLDER;
}

#else

DETACHED static bool
serve_by_copy(struct session *session, bool attached)
{
    refuse_copy(session, FREEZE_NOT_HERE, attached);
    return true;
}

#endif /* CAN_FREEZE */

/* Where Python answers. Never raises. */
ATTACHED MAY_ATTACH static void
serve_frozen(struct session *session, PyObject *locals)
{
    (void)locals;
    if (!settle_report_attached(session)) {
        (void)serve_by_copy(session, true);
    }
    close_session(session);
}

/* Serves a client that waits for Python, unless that has answered meanwhile. Returns false when
 * Python is there for it. */
DETACHED static bool
serve_without_python(struct session *session)
{
    bool told = false;
    begin_sending(session);
    if (is_report_due(session)) {
        told = serve_by_copy(session, false);
        if (told) {
            note_told(session);
        }
        else {
            expect_answer(session); /* anew */
        }
    }
    end_sending(session);
    if (told) {
        hang_up(session);
    }
    return told;
}

/* Body of a freezer: beside the session's own thread, which still waits for Python. */
DETACHED static void *
freezer_main(void *argument)
{
    struct session *session = argument;
    (void)serve_without_python(session);
    helper_done(session);
    return NULL;
}

/* Body of a session of its own, where others have found out before that Python does not answer. */
DETACHED static void *
lone_freezer_main(void *argument)
{
    struct session *session = argument;
    become_session_thread(session);
    if (session->channel->receive == NULL || session->channel->receive(session)) {
        lock_leaf(&session->out_lock);
        session->hang.state = HANG_REPORTED;
        session->hang.waiting_ms = 0; /* it does not */
        unlock(&session->out_lock);
        if (!serve_without_python(session)) {
            attend_to_client(session);
        }
    }
    else {
        hang_up(session);
    }
    release_session(session);
    return NULL;
}

static const char no_freezer[] = "manhole: Python does not answer, and no thread can be "
                                 "started to make a frozen copy\n";

/* Python has not answered the session's thread in time. Where there is no thread to be had its
 * client is told that, and waits no longer. */
DETACHED static void
send_freezer(struct session *session)
{
    lock_leaf(&session->out_lock);
    session->hang.state = HANG_REPORTED;
    unlock(&session->out_lock);
    if (!send_helper(session, freezer_main)) {
        (void)send(kept_number(&session->fd), no_freezer, sizeof(no_freezer) - 1,
                   MSG_NOSIGNAL | MSG_DONTWAIT);
        (void)shutdown(kept_number(&session->fd), SHUT_RDWR);
    }
}

#endif /* MANHOLE_SESSION_FROZEN_C */
