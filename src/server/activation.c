/* Activation: signals in, waiting for threads, and the oneshot session.
 * Runs on:  the threads that call install(), release() and handle_oneshot(), ATTACHED.
 * Touches:  the dispositions of activate_on, oneshot_on and of the signal that ends a session's
 *           waits, the listener's thread.
 *
 * activate_on has a handler in C, on_activate(), which wakes the listener. So it works while the
 * main thread is stuck in C, and with SA_RESTART it cuts no system call of the application short.
 * oneshot_on is to run Python in the main thread, so its handler is Python's own, by
 * signal.signal(); it comes as soon as that thread is back in the interpreter. Both are put back at
 * release(), unless the application has set a handler of its own since: ours is compared first.
 * faulthandler's signal, for frozen copies, is settled here too, for the same dispositions.
 *
 * A oneshot serves one client in the thread that calls handle_oneshot(). It opens the options'
 * doors itself, and while it does they are not the listener's (manhole.oneshot). It waits in poll()
 * for SIGNAL_CHECK_MS at a time, so that other signals of the application are handled meanwhile,
 * and at most for oneshot_timeout. The session itself is the same as in a thread of its own; a
 * guard (src/session/interrupt.c) stands in for the listener, which does not know it.
 *
 * Whoever waits for the listener or for sessions waits for the news bell (wait_for_news()):
 * detached, with the application's signals handled.
 */
#ifndef MANHOLE_SERVER_ACTIVATION_C
#define MANHOLE_SERVER_ACTIVATION_C

#include "../base/compat.c"
#include "../base/state.c"
#include "../base/basics.c"
#include "../base/log.c"
#include "../base/handlers.c"
#include "../door/socket.c"
#include "../stacks/copy.c"
#include "../stacks/sources.c"
#include "../session/interrupt.c"
#include "../session/console.c"
#include "../session/session.c"
#include "listener.c"

/* A page that nobody uses, or NULL. Its name in /proc/self/maps tells manhole-cli which signal
 * oneshot_on is, as the listener's name does of activate_on: here there is no thread to bear it,
 * and an application that closes all descriptors leaves it alone. */
static void *oneshot_notice;

/* Waits, detached, until is_done() or the monotonic deadline (-1: none). Signals of the
 * application are handled meanwhile. Returns 0 when done, 1 when late, -1 with an
 * exception from a handler. */
ATTACHED static int
wait_for_news(bool (*is_done)(void), int64_t deadline_ms)
{
    while (!is_done()) {
        struct pollfd news = {.fd = kept_number(&manhole.news_bell), .events = POLLIN};
        int timeout = ms_until(deadline_ms);
        PyThreadState *tstate = NULL;
        if (timeout == 0) {
            return 1;
        }
        tstate = detach();
        if (poll(&news, 1, slice_of(timeout)) > 0) {
            silence_bell(&manhole.news_bell);
        }
        reattach(tstate);
        if (PyErr_CheckSignals() < 0) {
            return -1;
        }
    }
    return 0;
}

static bool
has_started(void)
{
    return atomic_load(&manhole.started);
}

static bool
has_no_session(void)
{
    return count_sessions() == 0;
}

static bool
has_nobody_entering(void)
{
    return read_under_table_lock(&manhole.entering) == 0;
}

static bool
has_nobody_inside(void)
{
    return read_under_table_lock(&manhole.inside) == 0;
}

/* The listener sleeps in poll(), and the application has closed the bell that would wake it. */
static bool
is_listener_deaf(void)
{
    return is_lost(&manhole.wake_bell) && listeners_turn() == TURN_POLLING;
}

static bool
has_closed_door(void)
{
    return !is_open() || is_listener_deaf();
}

/* Returns 0, or an errno value: no thread is to be had, or no descriptor to wake it by. */
static int
start_listener(void)
{
    int error = open_bells() < 0 ? errno : 0;
    atomic_store(&manhole.started, false);
    atomic_store(&manhole.turn, latest_listener() + NEXT_LISTENER);
    atomic_store(&manhole.wakes_at_ms, -1);
    /* One to open may have come in a child's first instant; one to stop was another listener's. */
    (void)atomic_fetch_and(&manhole.orders, (unsigned)ORDER_OPEN);
    (void)sem_init(&manhole.wake, 0, 0);
    if (error == 0) {
        error = start_thread(&manhole.listener, listener_main, NULL, SMALL_STACK_SIZE);
    }
    manhole.has_listener = error == 0;
    return error;
}

/* In a child: the parent's has not come along, nor has what it was told. */
static void
forget_listener(void)
{
    manhole.has_listener = false;
    atomic_store(&manhole.started, false);
    atomic_store(&manhole.orders, 0);
    atomic_store(&manhole.courier_is_out, false);
    atomic_store(&manhole.oneshot, false);
    oneshot_notice = NULL; /* MADV_DONTFORK */
    close_kept(&manhole.wake_bell);
    close_kept(&manhole.news_bell);
}

/* Waits until the listener is over, or gives it up. */
DETACHED static void
await_listener(void)
{
    const unsigned listener = latest_listener();
    while (is_lost(&manhole.wake_bell) && listeners_turn() != TURN_OVER) {
        if (take_turn(listener, TURN_POLLING, TURN_GIVEN_UP)) {
            (void)pthread_detach(manhole.listener);
            close_doors();
            return;
        }
        (void)poll(NULL, 0, 1); /* it may be about to sleep, or to find out */
    }
    (void)pthread_join(manhole.listener, NULL);
}

/* Sessions that the listener has watched get guards instead. */
ATTACHED static void
stop_listener(void)
{
    if (!manhole.has_listener) {
        close_doors(); /* a oneshot's, which may wait at them in another thread */
        return;
    }
    tell_listener(ORDER_STOP);
    PyThreadState *tstate = detach();
    await_listener();
    if (!manhole.closing) {
        send_guards();
    }
    reattach(tstate);
    manhole.has_listener = false;
    atomic_store(&manhole.started,
                 false); /* from now on sessions deliver log lines themselves */
}

/* A real-time signal that nobody uses, from the top; 0: there is none. */
static int
find_free_signal(void)
{
    for (int signum = SIGRTMAX; signum >= SIGRTMIN; signum--) {
        struct sigaction current;
        if (sigaction(signum, NULL, &current) == 0 && current.sa_handler == SIG_DFL &&
            signum != manhole.options.activate_on &&
            signum != manhole.options.oneshot_on) {
            return signum;
        }
    }
    return 0;
}

/* faulthandler.METHOD(signum, **keywords). Returns 0, or -1 with an exception. */
ATTACHED static int
call_faulthandler(const char *method, PyObject *keywords /* new, or NULL: taken over */)
{
    OWNED PyObject *result = call_imported(
        "faulthandler", method, Py_BuildValue("(i)", snapshot.signum), keywords);
    return result == NULL ? -1 : 0;
}

#define NO_COPIES "Stacks of a stuck interpreter will not be available: "

/* Settles all that a frozen copy will need. Without it the manhole works, but for that: a log line
 * says so. The copy makes descriptor 2 its own, so that is what faulthandler is told. */
ATTACHED static void
open_snapshot(void)
{
    struct sigaction current = {.sa_handler = SIG_DFL};
    snapshot.signum = find_free_signal();
    snapshot.interpreter = manhole.interpreter;
    Py_XSETREF(snapshot.modules, Py_NewRef(PyImport_GetModuleDict()));
    if (snapshot.signum == 0) {
        log_line(NO_COPIES "no real-time signal is free for faulthandler");
    }
    else if (call_faulthandler("register",
                               Py_BuildValue("{sisOsO}", "file", STDERR_FILENO,
                                             "all_threads", Py_True, "chain", Py_False)) <
             0) {
        log_exception(NO_COPIES, take_exception(), "");
        snapshot.signum = 0;
    }
    else {
        (void)sigaction(snapshot.signum, NULL, &current);
    }
    snapshot.handler = current.sa_handler;
    note_process_start();
    open_spare();
}

/* faulthandler puts back what it found, also where the application has set its own since. */
ATTACHED static void
close_snapshot(void)
{
    struct sigaction theirs;
    bool put_back = snapshot.signum != 0 && !is_snapshot_ready() &&
                    sigaction(snapshot.signum, NULL, &theirs) == 0;
    if (snapshot.signum != 0 && call_faulthandler("unregister", NULL) < 0) {
        PyErr_Clear();
    }
    if (put_back) {
        (void)sigaction(snapshot.signum, &theirs, NULL);
    }
    snapshot.signum = 0;
    close_kept(&snapshot.spare);
    Py_CLEAR(snapshot.modules);
}

/* Without SA_RESTART, for the calls are to end. Not a signal that the calling thread blocks: others
 * may wait for such a one with sigwait(), and a session's thread, where it is not blocked, would
 * get it in their place. */
static void
watch_wait_ending_signal(void)
{
    struct sigaction action = {.sa_handler = on_end_wait, .sa_flags = SA_ONSTACK};
    sigset_t blocked;
    int signum = WAITS_CAN_BE_ENDED ? find_free_signal() : 0;
    (void)sigemptyset(&action.sa_mask);
    (void)pthread_sigmask(SIG_SETMASK, NULL, &blocked);
    if (signum != 0 && !sigismember(&blocked, signum) &&
        sigaction(signum, &action, NULL) == 0) {
        atomic_store(&manhole.wait_ending_signal, signum);
    }
}

/* Nobody sends it any more once each session's lock has been seen free. One that is on its way
 * still is ignored, where its default action would end the process. */
static void
unwatch_wait_ending_signal(void)
{
    struct sigaction current;
    struct sigaction action = {.sa_handler = SIG_IGN};
    const int signum = atomic_exchange(&manhole.wait_ending_signal, 0);
    for (size_t i = 0; i < atomic_load(&manhole.sessions_end); i++) {
        lock_leaf(&manhole.sessions[i].out_lock);
        unlock(&manhole.sessions[i].out_lock);
    }
    if (signum != 0 && sigaction(signum, NULL, &current) == 0 &&
        current.sa_handler == on_end_wait) {
        (void)sigaction(signum, &action, NULL);
        action.sa_handler = SIG_DFL;
        (void)sigaction(signum, &action, NULL);
    }
}

/* Not through signal.signal(): a Python handler waits for the main thread to return to
 * the interpreter, and would cut the application's system calls short. */
ATTACHED static int
watch_activate_on(int signum)
{
    struct sigaction action = {.sa_handler = on_activate,
                               .sa_flags = SA_RESTART | SA_ONSTACK};
    (void)sigemptyset(&action.sa_mask);
    if (sigaction(signum, &action, &manhole.previous_activate) < 0) {
        PyErr_SetFromErrno(PyExc_OSError);
        return -1;
    }
    return 0;
}

/* Restores what was there, unless the application has set its own since. */
static void
unwatch_activate_on(int signum)
{
    struct sigaction current;
    if (sigaction(signum, NULL, &current) == 0 && (current.sa_flags & SA_SIGINFO) == 0 &&
        current.sa_handler == on_activate) {
        (void)sigaction(signum, &manhole.previous_activate, NULL);
    }
}

/* signal.signal(signum, handler). Returns the previous handler, new, or NULL with an
 * exception. */
ATTACHED static PyObject *
set_python_handler(int signum, PyObject *handler)
{
    return call_imported("_signal", "signal", Py_BuildValue("(iO)", signum, handler),
                         NULL);
}

static void
remove_oneshot_notice(void)
{
    if (oneshot_notice != NULL) {
        (void)munmap(oneshot_notice, 1);
        oneshot_notice = NULL;
    }
}

/* A forked child has none until it says so itself. Nor has a process that may have no file in
 * memory, as behind a seccomp filter. */
static void
put_up_oneshot_notice(int signum)
{
    char name[32];
    (void)snprintf(name, sizeof(name), "manhole oneshot_on=%d", signum);
    OWNED_FD int fd = memfd_create(name, MFD_CLOEXEC);
    void *page = fd < 0 ? MAP_FAILED : mmap(NULL, 1, PROT_NONE, MAP_SHARED, fd, 0);
    if (page != MAP_FAILED) {
        (void)madvise(page, 1, MADV_DONTFORK);
        oneshot_notice = page;
    }
}

ATTACHED static int
watch_oneshot_on(int signum)
{
    struct sigaction action = {.sa_handler = SIG_DFL};
    OWNED PyObject *handler =
        PyObject_GetAttrString(installed_state()->manhole_object, "handle_oneshot");
    (void)sigaction(signum, NULL, &manhole.previous_oneshot_action);
    if (handler != NULL) {
        Py_XSETREF(manhole.previous_oneshot, set_python_handler(signum, handler));
    }
    if (manhole.previous_oneshot == NULL) {
        return -1;
    }
    (void)sigaction(signum, NULL, &action);
    manhole.oneshot_handler = action.sa_handler;
    put_up_oneshot_notice(signum);
    return 0;
}

/* Whether the handler is still ours, not one that the application has set since. Never raises. */
ATTACHED static bool
is_oneshot_ours(int signum)
{
    struct sigaction action = {.sa_handler = SIG_DFL};
    (void)sigaction(signum, NULL, &action);
    if (action.sa_handler != manhole.oneshot_handler) {
        return false;
    }
    OWNED PyObject *ours =
        PyObject_GetAttrString(installed_state()->manhole_object, "handle_oneshot");
    OWNED PyObject *current =
        call_imported("_signal", "getsignal", Py_BuildValue("(i)", signum), NULL);
    bool same = ours != NULL && current != NULL &&
                PyObject_RichCompareBool(current, ours, Py_EQ) == 1;
    PyErr_Clear();
    return same;
}

/* Restores what was there, unless the application has set its own since: Python's record of it and
 * then the handler itself, which Python does not know where C code has set it. */
ATTACHED static void
unwatch_oneshot_on(int signum)
{
    remove_oneshot_notice();
    if (manhole.previous_oneshot != NULL && is_oneshot_ours(signum)) {
        OWNED PyObject *ours = manhole.previous_oneshot == Py_None
                                   ? NULL
                                   : set_python_handler(signum, manhole.previous_oneshot);
        if (ours == NULL) {
            PyErr_Clear(); /* not the main thread: Python's record stays, the handler goes */
        }
        (void)sigaction(signum, &manhole.previous_oneshot_action, NULL);
    }
    Py_CLEAR(manhole.previous_oneshot);
}

/* How oneshot ends when it does not end well, with an exception. */
enum {
    ONESHOT_FAILED = -1,
    ONESHOT_INTERRUPTED = -2, /* the exception is that of another signal's handler */
};

/* Accepts oneshot's client, but no `manhole-cli --list`, which is answered and gone. Returns its
 * descriptor, or -1 with errno. */
DETACHED static int
accept_guest(int listen_fd)
{
    union address address = {.any.sa_family = AF_UNSPEC};
    socklen_t size = sizeof(address);
    int fd = accept_next(listen_fd, &address, &size);
    struct card card = fd < 0 ? (struct card){"", ""} : read_card(&address.un, size);
    struct peer peer = {0};
    if (strcmp(card.channel, "interrupt") != 0) {
        return fd;
    }
    if (admit_client(fd, &peer, find_channel(card.channel))) {
        answer_interrupt(fd, &card);
    }
    errno = EAGAIN;
    return -1;
}

/* Waits for a client at the open doors, or as long as may be before signals are looked at. Returns
 * its descriptor, or -1 with errno. */
DETACHED static int
accept_at_doors(int timeout_ms)
{
    struct pollfd doors[MAX_OWN_DOORS];
    int fd = -1;
    errno = EAGAIN;
    for (size_t i = 0; i < MAX_OWN_DOORS; i++) {
        doors[i] = (struct pollfd){.fd = kept_number(&manhole.doors[i].listen_fd),
                                   .events = POLLIN};
    }
    if (poll(doors, MAX_OWN_DOORS, slice_of(timeout_ms)) > 0) {
        for (size_t i = 0; i < MAX_OWN_DOORS && fd < 0; i++) {
            if (doors[i].revents != 0 && is_door_open(&manhole.doors[i])) {
                fd = accept_guest(doors[i].fd);
            }
        }
    }
    return fd;
}

/* Waits for a client at the open doors, signals handled. Returns its descriptor, or one of the
 * above. */
ATTACHED static int
wait_for_client(void)
{
    int64_t deadline_ms = monotonic_ms() + seconds_to_ms(manhole.options.oneshot_timeout);
    for (;;) {
        int timeout = ms_until(deadline_ms);
        if (!is_open()) {
            PyErr_SetString(PyExc_RuntimeError, "the manhole was released meanwhile");
            return ONESHOT_FAILED;
        }
        if (timeout == 0) {
            PyErr_Format(PyExc_TimeoutError, "no client came to %s in time",
                         manhole.doors[0].name);
            return ONESHOT_FAILED;
        }
        PyThreadState *tstate = detach();
        int fd = accept_at_doors(timeout);
        int error = errno;
        reattach(tstate);
        if (fd >= 0) {
            return fd;
        }
        if (error != EAGAIN && error != ECONNABORTED && error != EINTR) {
            errno = error;
            PyErr_SetFromErrno(PyExc_OSError);
            return ONESHOT_FAILED;
        }
        if (PyErr_CheckSignals() < 0) {
            return ONESHOT_INTERRUPTED;
        }
    }
}

/* Raises SuspiciousClient, or logs that the client is accepted. Returns 0 or -1. */
ATTACHED static int
check_peer(PyObject *suspicious_client, int fd, struct peer *peer)
{
    PyThreadState *tstate = detach();
    int result = identify_peer(fd, peer);
    int error = errno;
    reattach(tstate);
    if (result < 0 && peer->address[0] == '\0') {
        errno = error;
        PyErr_SetFromErrno(PyExc_OSError);
        return -1;
    }
    if (!may_enter(peer)) {
        char why[200];
        describe_refusal(peer, why, sizeof(why));
        PyErr_SetString(suspicious_client, why);
        return -1;
    }
    log_accepted(fd, peer);
    deliver_log(); /* for a oneshot: there may be no listener */
    return 0;
}

/* What a connected client's card asks for. */
static const struct channel *
read_channel(int fd)
{
    union address address = {.any.sa_family = AF_UNSPEC};
    socklen_t size = sizeof(address);
    return getpeername(fd, &address.any, &size) < 0
               ? &plain_channel
               : find_channel(read_card(&address.un, size).channel);
}

/* As the session's own thread would, in the calling one. Returns whether there is what to serve. */
ATTACHED static bool
receive_here(struct session *session)
{
    if (session->channel->receive == NULL) {
        return true;
    }
    PyThreadState *tstate = detach();
    bool received = session->channel->receive(session);
    if (!received) {
        hang_up(session);
    }
    reattach(tstate);
    return received;
}

/* Calls a handler with the installed locals; for a session that this thread did not have yet. */
ATTACHED static void
serve_with_locals(struct session *session,
                  void (*serve)(struct session *, PyObject *locals))
{
    struct session *outer = current_session;
    lock_leaf(&table_lock);
    PyObject *locals = Py_XNewRef(manhole.options.locals); /* owned */
    unlock(&table_lock);
    current_session = session;
    serve(session, locals);
    current_session = outer;
    Py_XDECREF(locals);
}

/* No listener watches the client of this thread. */
ATTACHED static void
guard_session(struct session *session)
{
    PyThreadState *tstate = detach();
    send_guard(session);
    reattach(tstate);
}

/* Serves a connected socket in the calling thread; takes fd over. Returns 0, or how it failed. */
ATTACHED static int
serve_here(int fd, const struct peer *peer,
           void (*serve)(struct session *, PyObject *locals) /* NULL: as it asks for */)
{
    const struct channel *channel = serve == NULL ? read_channel(fd) : &plain_channel;
    /* A guard interrupts what a client that has left was served with; a callable has the socket,
     * and sees for itself. */
    bool needs_guard = serve != NULL || channel->serve != NULL ||
                       manhole.options.connection_handler.kind != HANDLER_CALLABLE;
    struct session *session = claim_session(fd, peer, channel);
    if (session == NULL) {
        (void)close(fd);
        PyErr_Format(PyExc_RuntimeError, "%d clients are connected already",
                     manhole.options.max_sessions);
        return ONESHOT_FAILED;
    }
    atomic_store(&session->run.ident, PyThread_get_thread_ident());
    if (needs_guard) {
        guard_session(session);
    }
    if (receive_here(session)) {
        if (serve == NULL) {
            serve_session(session);
        }
        else {
            serve_with_locals(session, serve);
        }
    }

    OWNED PyObject *raised = steal_reference(&session->run.raised);
    PyThreadState *tstate = detach();
    release_session(session);
    reattach(tstate);
    deliver_log();
    if (raised != NULL) {
        PyErr_SetObject((PyObject *)Py_TYPE(raised), raised);
        return ONESHOT_INTERRUPTED;
    }
    return 0;
}

/* Waits for a client at the open doors, and serves it. Returns 0, or how it failed. */
ATTACHED static int
serve_next_client(void)
{
    struct peer peer = {0};
    int fd = wait_for_client(); /* owned until serve_here() takes it */
    if (fd < 0) {
        return fd;
    }
    if (check_peer(installed_state()->suspicious_client, fd, &peer) < 0) {
        (void)close(fd);
        return ONESHOT_FAILED;
    }
    return serve_here(fd, &peer, NULL);
}

/* Opens the socket, takes one client, serves it. Returns 0, or how it failed. */
ATTACHED static int
serve_oneshot(void)
{
    int result = ONESHOT_FAILED;
    if (is_open()) {
        PyErr_Format(PyExc_RuntimeError, "already listening at %s",
                     manhole.doors[0].name);
        return ONESHOT_FAILED;
    }
    atomic_store(&manhole.oneshot, true);
    PyThreadState *tstate = detach();
    int opened = open_doors();
    reattach(tstate);
    if (opened > 0) {
        log_waiting();
        deliver_log();
        result = serve_next_client();
        close_doors();
    }
    else {
        PyErr_Format(PyExc_OSError, "cannot listen at %s", manhole.doors[0].name);
    }
    atomic_store(&manhole.oneshot, false);
    wake_listener(); /* it may have been asked to open one of its own meanwhile */
    return result;
}

#endif /* MANHOLE_SERVER_ACTIVATION_C */
