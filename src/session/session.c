/* Session: one client, from accept() to the free slot.
 * Runs on:  a native thread of its own, or the main thread (oneshot), or the application thread
 *           that called handle_connection_repl() with a socket of its own.
 * Touches:  its slot of the table; threading's registry, to take its own entry out again.
 *
 * How it works. claim_session() takes a slot of the table and sets all in it to zero; who calls it
 * fills in what the client's calling card says and starts session_main(), which receives the
 * request if the channel has one, attaches, serves, detaches, and gives the slot back.
 *
 *   Slots. They are never freed, for an application thread that prints looks at them without any
 *   lock, and a helper may still hold one when its client is gone: release_session() waits until
 *   nobody sends and no helper is out. sessions_end grows, so that all loops over the table end at
 *   the most clients that were ever there at once.
 *
 *   A place is free as soon as its client has hung up (over), though the slot is not yet: who comes
 *   at once after another has left is not told that all places are taken.
 *
 *   A fork. In the child the threads that owned the slots are gone. forget_session() gives up what
 *   they had, without freeing it, for it may be half changed, and closes the clients' descriptors.
 *   The one session that forked lives on in the child's only thread, in the middle of what its
 *   client sent: its slot is burnt, and the child ends where that statement does, see
 *   end_running().
 */
#ifndef MANHOLE_SESSION_SESSION_C
#define MANHOLE_SESSION_SESSION_C

#include "../base/compat.c"
#include "../base/state.c"
#include "../base/locks.c"
#include "../base/basics.c"
#include "../base/log.c"
#include "../door/socket.c"
#include "../stacks/copy.c"
#include "output.c"
#include "attach.c"
#include "hang.c"
#include "interrupt.c"
#include "serve.c"
#include "console.c"
#include "commands.c"

enum {
    /* Side channels open at once, beside max_sessions consoles and programs. */
    MAX_ASIDE = 16,
};

/* A client without a calling card: plain nc. */
static const struct channel plain_channel = {.name = "repl"};

/* Of backdoor_server() and backdoor(), as eventlet's. */
static const struct channel backdoor_channel = {.name = "backdoor",
                                                .no_stacks = true,
                                                .stacks_if_stuck = true,
                                                .live_names = true,
                                                .serve = serve_console};

/* The most sessions at once of this kind. */
static int
most_sessions(const struct channel *channel)
{
    return channel->aside ? MAX_ASIDE : manhole.options.max_sessions;
}

/* A slot that was never used, or NULL when there is none. Under table_lock. */
static struct session *
make_session(void)
{
    const size_t end = atomic_load(&manhole.sessions_end);
    struct session *session = end < MAX_SESSIONS ? &manhole.sessions[end] : NULL;
    if (session != NULL) {
        make_session_locks(session);
        keep_fd(&session->fd, -1);
        keep_fd(&session->plain_fd, -1);
        keep_fd(&session->telnet_fd, -1);
        atomic_store(&manhole.sessions_end, end + 1);
    }
    return session;
}

/* What no earlier client may leave behind, and no vanished thread of a parent's. Nobody else uses
 * the slot. */
static void
reset_session(struct session *session)
{
    session->run = (struct running){0};
    session->outbox = (struct outbox){0};
    session->hang = (struct hang_watch){0};
    session->guarded = false;
    session->helpers = 0;
    session->freezing = false;
    session->copy = 0;
    atomic_store(&session->missed, 0);
    atomic_store(&session->over, false);
}

/* A free slot; NULL when as many clients of this kind are in as may be, or there is none. Under
 * table_lock. */
static struct session *
find_free_session(const struct channel *channel)
{
    struct session *free_one = NULL;
    int taken = 0;
    for (size_t i = 0; i < atomic_load(&manhole.sessions_end); i++) {
        struct session *session = &manhole.sessions[i];
        if (session->state == SESSION_TAKEN) {
            taken +=
                session->channel->aside == channel->aside && !atomic_load(&session->over);
        }
        else if (session->state == SESSION_FREE && free_one == NULL) {
            free_one = session;
        }
    }
    if (taken >= most_sessions(channel)) {
        return NULL;
    }
    return free_one == NULL ? make_session() : free_one;
}

/* Returns a slot for a connected socket, which it takes over; NULL when enough are taken. */
static struct session *
claim_session(int fd, const struct peer *peer, const struct channel *channel)
{
    lock_leaf(&table_lock);
    struct session *session = find_free_session(channel);
    if (session != NULL) {
        session->state = SESSION_TAKEN;
        atomic_fetch_add(&manhole.visits, 1);
        session->peer = *peer;
        session->channel = channel;
        session->card[0] = '\0';
        session->door = NULL;
        session->locals = NULL;
        session->gone_ms = 0;
        reset_session(session);
        atomic_store(&session->run.unbegun, channel->framed);
        keep_fd(&session->fd, fd);
    }
    unlock(&table_lock);
    return session;
}

/* Closes the client's descriptor and gives the slot back, once nobody else uses it. */
DETACHED static void
release_session(struct session *session)
{
    lock_leaf(&session->out_lock);
    bool watched = session->hang.watched;
    session->hang = (struct hang_watch){0}; /* the listener takes no more notice of it */
    atomic_store(&session->over, true);
    (void)pthread_cond_broadcast(&session->out_free);
    while (session->outbox.sending || session->helpers > 0) {
        (void)pthread_cond_wait(&session->out_free, &session->out_lock);
    }
    free(session->ring);
    session->ring = NULL;
    free_text(&session->outbox.unsent);
    free(session->run.request);
    session->run.request = NULL;
    close_kept(&session->fd);
    close_kept(&session->plain_fd);
    unlock(&session->out_lock);

    lock_leaf(&table_lock);
    session->state = SESSION_FREE;
    unlock(&table_lock);
    ring_bell(&manhole.news_bell);
    if (watched) {
        wake_listener(); /* the client sees the end only when poll() has let go of its socket */
    }
}

/* Sessions beside that of the calling thread, side channels among them: exit waits for these. Not
 * for who looks at a copy: the process has done all for that. */
static int
count_sessions(void)
{
    int count = 0;
    lock_leaf(&table_lock);
    for (size_t i = 0; i < atomic_load(&manhole.sessions_end); i++) {
        const struct session *session = &manhole.sessions[i];
        count += session->state == SESSION_TAKEN && session != current_session &&
                 !session->freezing;
    }
    unlock(&table_lock);
    return count;
}

/* In a child. What a vanished thread owned is abandoned, not freed: it may be half changed. */
static void
forget_session(struct session *session)
{
    if (session == current_session || session->state == SESSION_BURNT) {
        session->state = SESSION_BURNT;
    }
    else {
        session->state = SESSION_FREE;
    }
    reset_session(session);
    session->ring = NULL;
    session->locals = NULL;
    atomic_store(&session->viewing, false);
    close_kept(&session->fd);
    close_kept(&session->plain_fd);
    close_kept(&session->telnet_fd);
}

/* In a child, while it has no other thread. */
static void
forget_sessions(void)
{
    for (size_t i = 0; i < atomic_load(&manhole.sessions_end); i++) {
        forget_session(&manhole.sessions[i]);
    }
    current_session = NULL;
    atomic_store(&manhole.viewers, 0);
    manhole.consoles = 0;
    manhole.programs = 0;
    manhole.entering = 0;
    manhole.inside = 0;
    manhole.closing = false;
}

static int
read_under_table_lock(const int *count)
{
    lock_leaf(&table_lock);
    int value = *count;
    unlock(&table_lock);
    return value;
}

ATTACHED static void
serve_as_configured(struct session *session, enum handler_kind kind, PyObject *callable,
                    PyObject *locals)
{
    switch (kind) {
    case HANDLER_REPL:
        serve_console(session, locals);
        break;
    case HANDLER_EXEC:
        serve_exec(session, locals);
        break;
    case HANDLER_COMMANDS:
        serve_commands(session, locals);
        break;
    case HANDLER_CALLABLE:
        serve_callable(session, callable);
        break;
    }
}

/* The names that the session's console has beside python-manhole's. Under table_lock. Returns new,
 * or NULL. */
ATTACHED static PyObject *
steal_locals(struct session *session)
{
    const struct door *door = session->door;
    PyObject *locals = session->locals; /* owned, handed to the caller */
    session->locals = NULL;
    if (session->channel != &backdoor_channel) {
        locals = Py_XNewRef(manhole.options.locals);
    }
    else if (door != NULL && door->serial == session->door_serial) {
        locals = Py_XNewRef(door->locals);
    }
    return locals;
}

/* Serves the session's client as its card and the options say, in the calling thread. Never
 * raises. */
ATTACHED static void
serve_session(struct session *session)
{
    struct session *outer = current_session;
    lock_leaf(&table_lock);
    OWNED PyObject *locals = steal_locals(session);
    enum handler_kind kind = manhole.options.connection_handler.kind;
    OWNED PyObject *callable = Py_XNewRef(manhole.options.connection_handler.callable);
    unlock(&table_lock);

    current_session = session;
    lend_spare(kept_number(&session->fd));
    if (session->channel->serve != NULL) {
        session->channel->serve(session, locals);
    }
    else {
        serve_as_configured(session, kind, callable, locals);
    }
    take_spare_back();
    current_session = outer;
}

/* ---- A frame below all that a session runs ------------------------------------------- */

ATTACHED static PyObject *
py_serve_session(PyObject *module, PyObject *capsule)
{
    (void)module;
    serve_session(PyCapsule_GetPointer(capsule, NULL));
    Py_RETURN_NONE;
}

static PyMethodDef frame_functions[] = {{"serve_session", py_serve_session, METH_O, NULL},
                                        {NULL, NULL, 0, NULL}};

/* Dumps know it by its name: hide_sessions(). */
static const struct part frame_part = {.name = "frame",
                                       .program = "def " SESSION_FUNCTION
                                                  "(session): serve_session(session)\n",
                                       .functions = frame_functions};

/* Serves a session so that its thread has a frame, for whoever looks at it from outside. Without
 * memory for one it is served all the same. Never raises. */
ATTACHED static void
serve_below_frame(struct session *session)
{
    OWNED PyObject *serve = get_from_part(manhole.module, &frame_part, SESSION_FUNCTION);
    OWNED PyObject *capsule = PyCapsule_New(session, NULL, NULL);
    if (serve == NULL || capsule == NULL) {
        PyErr_Clear();
        serve_session(session);
        return;
    }
    Py_XDECREF(PyObject_CallOneArg(serve, capsule));
    PyErr_Clear();
}

/* Who looks at the threads of the process, with ps -L or top -H, sees which client each serves. */
static void
name_session_thread(const struct session *session)
{
    char name[32];
    (void)snprintf(name, sizeof(name),
                   session->peer.address[0] == '\0' ? "Manhole < PID:%ld"
                                                    : "Manhole < TCP",
                   (long)session->peer.pid);
    name[15] = '\0'; /* all that the kernel takes */
    (void)pthread_setname_np(pthread_self(), name);
}

/* What a session's thread does before anything else: it is seen, and interrupts reach it. */
DETACHED static void
become_session_thread(struct session *session)
{
    name_session_thread(session);
    atomic_store(&session->run.ident, PyThread_get_thread_ident());
    let_waits_be_ended();
}

/* Serves the client in Python, to its end. That it may not get in is beyond the checker. */
DETACHED MAY_ATTACH static void
attend_to_client(struct session *session)
{
    note_waiting(session, monotonic_ms());
    PyThreadState *tstate = enter_interpreter();
    note_waiting(session, 0);
    if (tstate == NULL) {
        hang_up(session);
        return;
    }
    /* In a frozen copy it would pass for one of the threads that were. */
    const bool is_below = PROFILER_NEEDS_FRAMES && session->channel->serve_copy == NULL;
    (is_below ? serve_below_frame : serve_session)(session);
    Py_CLEAR(session->run.raised);
    if (is_open() && !session->channel->unlogged) {
        log_waiting();
    }
    if (!atomic_load(&manhole.started)) {
        deliver_log(); /* it has outlived the listener */
    }
    leave_interpreter(tstate);
}

/* Body of a session's thread. */
DETACHED static void *
session_main(void *argument)
{
    struct session *session = argument;
    become_session_thread(session);
    if (session->channel->receive == NULL || session->channel->receive(session)) {
        attend_to_client(session);
    }
    else {
        hang_up(session);
    }
    release_session(session);
    return NULL;
}

#endif /* MANHOLE_SESSION_SESSION_C */
