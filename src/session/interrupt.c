/* Interrupt: a KeyboardInterrupt for a session's thread, and for nothing else.
 * Runs on:  the listener, or the thread that reads telnet, which sends out a native thread, since
 *           attaching may take for ever; and that thread, an interrupter or a guard.
 * Touches:  what a session runs; its helpers, interrupted and guarded, under its out_lock; the
 *           session's thread, by a signal.
 *
 * How a statement is interrupted. A client asks for it by a side channel or by telnet's Ctrl-C;
 * what a client that has left let run is interrupted in the same way, again and again, by the
 * listener, or by a guard where no listener looks after the session.
 *
 *   Only what the client sent. The session's thread runs that between begin_running() and
 *   end_running(); `running` says so. All else there, reading, sending, putting things back, must
 *   not be torn, and is left alone: the client is told "idle".
 *
 *   Not too early. What a client has sent may be on the way still when its Ctrl-C comes, in its
 *   socket or with a session that waits for the GIL. The interrupt is `due` then: what begins next
 *   gets it, or who waits for the client next, as if Ctrl-C had been typed there. It becomes due,
 *   and is taken, under out_lock, as running is set: nothing runs beside what is due.
 *
 *   By whom. An interrupt is CPython's own PyThreadState_SetAsyncExc(), and takes the interpreter.
 *   Who asks for it may not wait for that, so an interrupter, one at a time, attaches and does it
 *   (strike). In C that does not return to Python the exception waits, like a signal's.
 *
 *   Out of a wait. From CPython 3.15 on sleep(), recv() and the like look for the exception when a
 *   signal has cut their system call short, so the thread is sent one (end_wait): a real-time
 *   signal that nobody used at install(), with a handler that does nothing. No other thread sees
 *   anything of it: those of the manhole have it blocked, all but the sessions', and to those of
 *   the application it is not sent. A oneshot's session runs in the main thread, where Python's own
 *   handlers cut calls short in the same way.
 *
 *   Not in an import: a lock of importlib's could stay shut for the rest of the process. It waits
 *   until the statement is out of there, or is dropped (raise_in_session).
 *
 *   Not too late. A statement may end while its interrupt is on the way. `stricken` tells
 *   end_running() that one was raised, and settle_interrupts() takes it back if it has not come.
 */
#ifndef MANHOLE_SESSION_INTERRUPT_C
#define MANHOLE_SESSION_INTERRUPT_C

#include "../base/compat.c"
#include "../base/state.c"
#include "../base/locks.c"
#include "../base/basics.c"
#include "../base/log.c"
#include "../base/handlers.c"
#include "../door/socket.c"
#include "../stacks/look.c"
#include "attach.c"

enum {
    /* How long an interrupt waits for a statement to come out of the import system. */
    IMPORT_PATIENCE_MS = 1000,
    /* Between the signals that are to end a wait: twice as long each time, but not this long. */
    LONGEST_PAUSE_MS = 256,
};

/* The last act of every helper: the slot may be gone when it returns. */
static void
helper_done(struct session *session)
{
    lock_leaf(&session->out_lock);
    session->helpers--;
    (void)pthread_cond_broadcast(&session->out_free);
    unlock(&session->out_lock);
}

/* Sends out a helper; the slot stays taken meanwhile. Returns whether it went. */
DETACHED static bool
send_helper(struct session *session, void *(*body)(void *))
{
    lock_leaf(&session->out_lock);
    session->helpers++;
    unlock(&session->out_lock);
    int error = start_thread(NULL, body, session, SMALL_STACK_SIZE);
    if (error != 0) {
        helper_done(session);
        log_line("Cannot start a thread for the client of %s: %s",
                 describe_peer(&session->peer).text, error_text(error));
    }
    return error == 0;
}

/* Raises an exception in what the session runs. */
ATTACHED static void
strike(struct session *session, PyObject *type)
{
    atomic_store(&session->run.stricken, true);
    (void)PyThreadState_SetAsyncExc(atomic_load(&session->run.ident), type);
}

/* Whether a frame's file has a name that begins so. */
ATTACHED static bool
is_code_of(PyFrameObject *frame, const char *start)
{
    PyCodeObject *code = PyFrame_GetCode(frame); /* owned */
    const char *file = PyUnicode_AsUTF8(code->co_filename);
    bool is_so = file != NULL && strncmp(file, start, strlen(start)) == 0;
    Py_DECREF(code);
    return is_so;
}

/* Whether a thread is in the import system's own code: an exception there may leave a lock behind
 * that nobody ever opens, and the application would import nothing for the rest of its life (seen
 * after some hundred interrupts). Without a GIL it cannot be asked. Never raises. */
ATTACHED static bool
is_importing(unsigned long ident)
{
    static const char importlib[] = "<frozen importlib._bootstrap"; /* _external, too */
    OWNED PyObject *key = PyLong_FromUnsignedLong(ident);
    bool collecting = pause_gc(); /* as in look_at_threads() */
    OWNED PyObject *frames = HAS_GIL && key != NULL ? collect_frames() : NULL;
    PyObject *frame =
        frames == NULL ? NULL : PyDict_GetItemWithError(frames, key); /* borrowed */
    bool importing = frame != NULL && is_code_of((PyFrameObject *)frame, importlib);
    PyErr_Clear();
    resume_gc(collecting);
    return importing;
}

/* In a session's own thread, before it serves: has the signal that ends its waits let through. */
DETACHED static void
let_waits_be_ended(void)
{
    const int signum = atomic_load(&manhole.wait_ending_signal);
    if (signum != 0) {
        set_blocked(signum, false);
    }
}

/* Sends the signal, if it is ours still: the application may have taken it since. The lock keeps
 * the thread from its end meanwhile. */
static void
end_wait(struct session *session)
{
    struct sigaction current;
    int signum = 0;
    lock_leaf(&session->out_lock);
    signum = atomic_load(&manhole.wait_ending_signal);
    if (signum != 0 && !atomic_load(&session->over) &&
        sigaction(signum, NULL, &current) == 0 && current.sa_handler == on_end_wait) {
        (void)pthread_kill((pthread_t)atomic_load(&session->run.ident), signum);
    }
    unlock(&session->out_lock);
}

/* A signal that comes just before a thread begins to wait is lost: so there are some more, until
 * what was interrupted is over. */
ATTACHED static void
end_wait_begun_since(struct session *session)
{
    int pause_ms = WAITS_CAN_BE_ENDED ? 1 : LONGEST_PAUSE_MS;
    while (pause_ms < LONGEST_PAUSE_MS && atomic_load(&session->run.running) &&
           atomic_load(&session->run.stricken)) {
        PyThreadState *tstate = NULL;
        end_wait(session);
        tstate = detach();
        (void)poll(NULL, 0, pause_ms);
        reattach(tstate);
        pause_ms *= 2;
    }
}

/* Raises an exception in what the session runs, if it does: as soon as it is out of the import
 * system, or not at all when that lasts. */
ATTACHED static void
raise_in_session(struct session *session, PyObject *type)
{
    int64_t deadline_ms = monotonic_ms() + IMPORT_PATIENCE_MS;
    bool importing = false;
    while (atomic_load(&session->run.running) &&
           (importing = is_importing(atomic_load(&session->run.ident))) &&
           ms_until(deadline_ms) > 0) {
        PyThreadState *tstate = detach();
        (void)poll(NULL, 0, 1);
        reattach(tstate);
    }
    if (atomic_load(&session->run.running) && !importing) {
        strike(session, type);
        end_wait(session);
        settle_interrupts(); /* the session may be long in coming */
    }
}

/* Body of an interrupter: raises KeyboardInterrupt in what the session runs, if it still does. */
DETACHED MAY_ATTACH static void *
interrupter_main(void *argument)
{
    struct session *session = argument;
    PyThreadState *tstate = enter_interpreter();
    if (tstate != NULL) {
        raise_in_session(session, PyExc_KeyboardInterrupt);
    }
    /* Before the session can go on: for what it runs next there is to be another. */
    lock_leaf(&session->out_lock);
    session->run.interrupted = false;
    unlock(&session->out_lock);
    if (tstate != NULL) {
        end_wait_begun_since(session);
        leave_interpreter(tstate);
    }
    helper_done(session);
    return NULL;
}

/* Of a client at a terminal: whether there is something in its socket. */
static bool
has_unread(struct session *session)
{
    int unread = 0;
    return session->channel->marked &&
           ioctl(kept_number(&session->fd), FIONREAD, &unread) == 0 && unread > 0;
}

/* Whether such a client, or one with a program, has sent what has not begun. In this order, for
 * receive_up_to_key() says that it reads before it takes anything out of the socket. */
static bool
has_unbegun(struct session *session)
{
    return has_unread(session) || atomic_load(&session->run.unbegun);
}

/* Interrupts what the session runs, or also what it is about to. Returns how often that has been;
 * 0: there is nothing. */
DETACHED static int
interrupt_session(struct session *session, bool also_unbegun)
{
    lock_leaf(&session->out_lock);
    bool running = atomic_load(&session->run.running);
    /* In a copy it is for the signal's handler to say what it means. */
    if (session->copy > 0) {
        running = kill(session->copy, SIGINT) == 0;
        unlock(&session->out_lock);
        return running ? atomic_fetch_add(&session->run.interrupts, 1) + 1 : 0;
    }
    bool due = !running && also_unbegun && has_unbegun(session);
    if (due && !session->run.due) {
        session->run.due = true;
        atomic_store(&session->run.interrupts, 0);
    }
    bool send = running && !session->run.interrupted;
    session->run.interrupted = session->run.interrupted || send;
    unlock(&session->out_lock);
    if (send && !send_helper(session, interrupter_main)) {
        lock_leaf(&session->out_lock);
        session->run.interrupted = false;
        unlock(&session->out_lock);
    }
    return running || due ? atomic_fetch_add(&session->run.interrupts, 1) + 1 : 0;
}

/* Body of a guard, for a session that no listener looks after, a oneshot's or one that outlives
 * release(): interrupts what a vanished client has left running, again and again until the session
 * is over, which hangs up at its end, too. */
DETACHED static void *
guard_main(void *argument)
{
    struct session *session = argument;
    struct pollfd client = {.fd = atomic_load(&session->fd.number), .events = 0};
    while (!atomic_load(&session->over) && poll(&client, 1, GONE_CHECK_MS) <= 0) {
    }
    lock_leaf(&session->out_lock);
    while (!session->over) {
        struct timespec again = {0};
        unlock(&session->out_lock);
        (void)interrupt_session(session, false);
        lock_leaf(&session->out_lock);
        (void)clock_gettime(CLOCK_MONOTONIC, &again);
        again.tv_sec += GONE_CHECK_MS / 1000;
        if (!session->over) {
            (void)pthread_cond_timedwait(&session->out_free, &session->out_lock, &again);
        }
    }
    unlock(&session->out_lock);
    helper_done(session);
    return NULL;
}

/* Once a session. */
DETACHED static void
send_guard(struct session *session)
{
    lock_leaf(&session->out_lock);
    bool send = !session->guarded && !atomic_load(&session->over);
    session->guarded = session->guarded || send;
    unlock(&session->out_lock);
    if (send) {
        (void)send_helper(session, guard_main);
    }
}

/* For the clients that stay when there is no listener any more. */
DETACHED static void
send_guards(void)
{
    for (size_t i = 0; i < atomic_load(&manhole.sessions_end); i++) {
        struct session *session = &manhole.sessions[i];
        lock_leaf(&session->out_lock);
        bool there = session->hang.watched;
        unlock(&session->out_lock);
        if (there) {
            send_guard(session);
        }
    }
}

/* A statement forked, and this is the child, whose main() is our loop: there is nothing
 * to go back to, and its client belongs to the parent. */
ATTACHED static void
leave_forked_child(void)
{
    static const char *const names[] = {"stdout", "stderr"};
    for (size_t i = 0; i < Py_ARRAY_LENGTH(names); i++) {
        OWNED PyObject *stream = get_sys(names[i]);
        if (stream != NULL && stream != Py_None) {
            Py_XDECREF(PyObject_CallMethod(stream, "flush", NULL));
        }
        PyErr_Clear();
    }
    remove_paths_at_exit();
    _exit(0);
}

/* Under out_lock. */
static bool
take_due(struct session *session)
{
    bool due = session->run.due;
    session->run.due = false;
    return due;
}

/* In a frozen copy, where a Ctrl-C is a signal: what the client sends may be interrupted now. */
static void
let_interrupts_in(void)
{
    if (frozen.original != 0) {
        set_blocked(SIGINT, false);
    }
}

/* The session is about to wait for its client. Returns 0, or -1 with KeyboardInterrupt: not in the
 * middle of a text, nor when there is more of it, which gets that when it begins. */
ATTACHED static int
check_interrupts(struct session *session)
{
    if (session->run.pasting || session->run.is_cut || has_unread(session)) {
        return 0;
    }
    lock_leaf(&session->out_lock);
    bool due = take_due(session);
    atomic_store(&session->run.unbegun, false);
    unlock(&session->out_lock);
    let_interrupts_in();
    if (due) {
        PyErr_SetNone(PyExc_KeyboardInterrupt);
    }
    return due ? -1 : PyErr_CheckSignals();
}

/* Between these two the session runs what its client sent: it may be interrupted. */
ATTACHED static void
begin_running(struct session *session)
{
    lock_leaf(&session->out_lock);
    bool due = take_due(session);
    atomic_store(&session->run.running, true);
    unlock(&session->out_lock);
    bool taken_back = atomic_load(&session->run.taken_back);
    atomic_store(&session->run.interrupts, due || taken_back);
    if (due || taken_back) {
        strike(session, PyExc_KeyboardInterrupt);
    }
    let_interrupts_in();
}

/* Behind this the session's own code runs undisturbed. In a child that a statement has forked it
 * does not return. */
ATTACHED static void
end_running(struct session *session)
{
    atomic_store(&session->run.running, false);
    if (atomic_exchange(&session->run.stricken, false)) {
        settle_interrupts(); /* it may have come too late */
    }
    if (session->state == SESSION_BURNT && current_session == NULL) {
        leave_forked_child();
    }
}

#endif /* MANHOLE_SESSION_INTERRUPT_C */
