/* Activation: signals in, waiting for threads, and the oneshot session.
 * Runs on:  the threads that call install(), release() and handle_oneshot(), ATTACHED.
 * Touches:  the dispositions of activate_on, oneshot_on and of the signal that ends a session's
 *           waits, the listener's thread.
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
#include "../session/interrupt.c"
#include "../session/console.c"
#include "../session/session.c"
#include "listener.c"

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
    return is_lost(&manhole.wake_bell) && atomic_load(&manhole.polling);
}

static bool
has_closed_door(void)
{
    return !is_open() || is_listener_deaf();
}

static void
wish(unsigned wishes)
{
    atomic_fetch_or(&manhole.wishes, wishes);
    wake_listener();
}

/* Returns 0, or an errno value: no thread is to be had, or no descriptor to wake it by. */
static int
start_listener(void)
{
    int error = open_bells() < 0 ? errno : 0;
    atomic_store(&manhole.started, false);
    atomic_store(&manhole.polling, false);
    atomic_store(&manhole.wakes_at_ms, -1);
    /* One to open may have come in a child's first instant; one to stop was another listener's. */
    (void)atomic_fetch_and(&manhole.wishes, (unsigned)WISH_OPEN);
    (void)sem_init(&manhole.wake, 0, 0);
    if (error == 0) {
        error = start_thread(&manhole.listener, listener_main, NULL, SMALL_STACK_SIZE);
    }
    manhole.has_listener = error == 0;
    return error;
}

ATTACHED static void
stop_listener(void)
{
    if (manhole.has_listener) {
        PyThreadState *tstate = NULL;
        wish(WISH_STOP);
        if (is_listener_deaf()) {
            (void)pthread_detach(manhole.listener);
            close_doors();
        }
        else {
            tstate = detach();
            (void)pthread_join(manhole.listener, NULL);
            reattach(tstate);
        }
        if (!manhole.closing) {
            tstate = detach();
            send_guards();
            reattach(tstate);
        }
        manhole.has_listener = false;
    }
    else {
        close_doors(); /* a oneshot's, which may wait at them in another thread */
    }
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

/* faulthandler.METHOD(signum, **keywords), keywords new, or NULL, also with an exception.
 * Returns 0, or -1 with an exception. */
ATTACHED static int
call_faulthandler(const char *method, PyObject *keywords /* new: taken over */)
{
    PyObject *module =
        PyErr_Occurred() ? NULL : PyImport_ImportModule("faulthandler"); /* owned */
    PyObject *function = module == NULL ? NULL : PyObject_GetAttrString(module, method);
    PyObject *arguments = Py_BuildValue("(i)", snapshot.signum); /* owned */
    PyObject *result = NULL;                                     /* owned */
    if (function != NULL && arguments != NULL) {
        result = PyObject_Call(function, arguments, keywords);
    }
    Py_XDECREF(module);
    Py_XDECREF(function);
    Py_XDECREF(arguments);
    Py_XDECREF(keywords);
    Py_XDECREF(result);
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
    PyObject *module = PyImport_ImportModule("_signal"); /* owned */
    PyObject *previous = NULL;                           /* new, handed to the caller */
    if (module != NULL) {
        previous = PyObject_CallMethod(module, "signal", "iO", signum, handler);
    }
    Py_XDECREF(module);
    return previous;
}

/* A page that nobody uses, or NULL. Its name in /proc/self/maps tells manhole-cli which signal
 * oneshot_on is, as the listener's name does of activate_on: here there is no thread to bear it,
 * and an application that closes all descriptors leaves it alone. */
static void *oneshot_notice;

static void
remove_oneshot_notice(void)
{
    if (oneshot_notice != NULL) {
        (void)munmap(oneshot_notice, 1);
        oneshot_notice = NULL;
    }
}

/* A forked child has none until it says so itself. */
static void
put_up_oneshot_notice(int signum)
{
    char name[32];
    void *page = MAP_FAILED;
    int fd = -1; /* owned */
    (void)snprintf(name, sizeof(name), "manhole oneshot_on=%d", signum);
    fd = memfd_create(name, MFD_CLOEXEC);
    if (fd >= 0) {
        page = mmap(NULL, 1, PROT_NONE, MAP_SHARED, fd, 0);
        (void)close(fd);
    }
    if (page != MAP_FAILED) {
        (void)madvise(page, 1, MADV_DONTFORK);
        oneshot_notice = page;
    }
}

ATTACHED static int
watch_oneshot_on(int signum)
{
    struct sigaction action = {.sa_handler = SIG_DFL};
    PyObject *handler = PyObject_GetAttrString(installed_state()->manhole_object,
                                               "handle_oneshot"); /* owned */
    (void)sigaction(signum, NULL, &manhole.previous_oneshot_action);
    if (handler != NULL) {
        Py_XSETREF(manhole.previous_oneshot, set_python_handler(signum, handler));
        Py_DECREF(handler);
    }
    (void)sigaction(signum, NULL, &action);
    manhole.oneshot_handler = action.sa_handler;
    put_up_oneshot_notice(signum);
    return handler == NULL || manhole.previous_oneshot == NULL ? -1 : 0;
}

/* Whether the handler is still ours, not one that the application has set since. Never raises. */
ATTACHED static bool
is_oneshot_ours(int signum)
{
    PyObject *object = installed_state()->manhole_object;              /* borrowed */
    PyObject *ours = PyObject_GetAttrString(object, "handle_oneshot"); /* owned */
    PyObject *module = PyImport_ImportModule("_signal");               /* owned */
    PyObject *current = NULL;                                          /* owned */
    bool same = false;
    struct sigaction action = {.sa_handler = SIG_DFL};
    (void)sigaction(signum, NULL, &action);
    if (module != NULL && ours != NULL && action.sa_handler == manhole.oneshot_handler) {
        current = PyObject_CallMethod(module, "getsignal", "i", signum);
        same = current != NULL && PyObject_RichCompareBool(current, ours, Py_EQ) == 1;
    }
    PyErr_Clear();
    Py_XDECREF(ours);
    Py_XDECREF(module);
    Py_XDECREF(current);
    return same;
}

/* Restores what was there, unless the application has set its own since: Python's record of it and
 * then the handler itself, which Python does not know where C code has set it. */
ATTACHED static void
unwatch_oneshot_on(int signum)
{
    remove_oneshot_notice();
    if (manhole.previous_oneshot != NULL && is_oneshot_ours(signum)) {
        PyObject *ours = NULL; /* owned */
        if (manhole.previous_oneshot != Py_None) {
            ours = set_python_handler(signum, manhole.previous_oneshot);
            PyErr_Clear(); /* not the main thread: Python's record stays, the handler goes */
        }
        (void)sigaction(signum, &manhole.previous_oneshot_action, NULL);
        Py_XDECREF(ours);
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
    int fd = accept4(listen_fd, &address.any, &size, SOCK_CLOEXEC);
    if (fd >= 0) {
        struct card card = read_card(&address.un, size);
        struct peer peer = {0};
        if (strcmp(card.wish, "interrupt") == 0) {
            if (admit_client(fd, &peer, find_wish(card.wish))) {
                answer_interrupt(fd, &card);
            }
            fd = -1;
            errno = EAGAIN;
        }
    }
    return fd;
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
        int fd = -1;
        int error = 0;
        PyThreadState *tstate = NULL;
        if (!is_open()) {
            PyErr_SetString(PyExc_RuntimeError, "the manhole was released meanwhile");
            return ONESHOT_FAILED;
        }
        if (timeout == 0) {
            PyErr_Format(PyExc_TimeoutError, "no client came to %s in time",
                         manhole.doors[0].name);
            return -1;
        }
        tstate = detach();
        fd = accept_at_doors(timeout);
        error = errno;
        reattach(tstate);
        if (fd >= 0) {
            return fd;
        }
        if (error != EAGAIN && error != ECONNABORTED && error != EINTR) {
            errno = error;
            PyErr_SetFromErrno(PyExc_OSError);
            return -1;
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
    deliver_log();
    return 0;
}

/* What a connected client's card asks for. */
static const struct wish *
read_wish(int fd)
{
    union address address = {.any.sa_family = AF_UNSPEC};
    socklen_t size = sizeof(address);
    return getpeername(fd, &address.any, &size) < 0
               ? &plain_wish
               : find_wish(read_card(&address.un, size).wish);
}

/* As the session's own thread would, in the calling one. Returns whether there is what to serve. */
ATTACHED static bool
receive_here(struct session *session)
{
    bool received = true;
    if (session->wish->receive != NULL) {
        PyThreadState *tstate = detach();
        received = session->wish->receive(session);
        if (!received) {
            hang_up(session);
        }
        reattach(tstate);
    }
    return received;
}

/* Serves a connected socket in the calling thread; takes fd over. Returns 0, or how it failed. */
ATTACHED static int
serve_here(int fd, const struct peer *peer, void (*serve)(struct session *))
{
    const struct wish *wish = serve == serve_session ? read_wish(fd) : &plain_wish;
    bool hangs_up = serve != serve_session || wish->serve != NULL ||
                    manhole.options.connection_handler.kind != HANDLER_CALLABLE;
    struct session *session = claim_session(fd, peer, wish);
    PyObject *raised = NULL; /* owned */
    PyThreadState *tstate = NULL;
    if (session == NULL) {
        (void)close(fd);
        PyErr_Format(PyExc_RuntimeError, "%d clients are connected already",
                     manhole.options.max_sessions);
        return ONESHOT_FAILED;
    }
    atomic_store(&session->ident, PyThread_get_thread_ident());
    if (hangs_up) {
        tstate = detach();
        send_guard(session);
        reattach(tstate);
    }
    if (receive_here(session)) {
        serve(session);
    }
    raised = session->raised;
    session->raised = NULL;
    tstate = detach();
    release_session(session);
    reattach(tstate);
    if (raised != NULL) {
        PyErr_SetObject((PyObject *)Py_TYPE(raised), raised);
        Py_DECREF(raised);
        return ONESHOT_INTERRUPTED;
    }
    return 0;
}

/* Opens the socket, takes one client, serves it. Returns 0, or how it failed. */
ATTACHED static int
serve_oneshot(void)
{
    struct peer peer = {0};
    PyThreadState *tstate = NULL;
    int opened = 0;
    int fd = -1; /* owned until serve_here() takes it */
    int result = ONESHOT_FAILED;
    if (is_open()) {
        PyErr_Format(PyExc_RuntimeError, "already listening at %s",
                     manhole.doors[0].name);
        return ONESHOT_FAILED;
    }
    atomic_store(&manhole.oneshot, true);
    tstate = detach();
    opened = open_doors();
    reattach(tstate);
    if (opened == 0) {
        PyErr_Format(PyExc_OSError, "cannot listen at %s", manhole.doors[0].name);
        goto done;
    }
    log_waiting();
    deliver_log();
    fd = wait_for_client();
    if (fd >= 0 && check_peer(installed_state()->suspicious_client, fd, &peer) == 0) {
        result = serve_here(fd, &peer, serve_session);
        fd = -1;
    }
    else if (fd == ONESHOT_INTERRUPTED) {
        result = ONESHOT_INTERRUPTED;
    }
    if (fd >= 0) {
        (void)close(fd);
    }
    close_doors();
done:
    atomic_store(&manhole.oneshot, false);
    wake_listener(); /* it may have been asked to open one of its own meanwhile */
    return result;
}

#endif /* MANHOLE_SERVER_ACTIVATION_C */
