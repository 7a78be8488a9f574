/* Fork and exit: what happens to all this in a child, and at the end.
 * Runs on:  the thread that forks, most of it in the child, and not ATTACHED where a C program does
 *           so without telling Python; the thread that finalizes the interpreter.
 * Touches:  everything: no other thread of ours is left, or is about to be.
 *
 * How it works. Three kinds of fork come here.
 *
 *   Python's own: os.fork(), multiprocessing, and C programs that call PyOS_BeforeFork() and its
 *   like. os.register_at_fork() has us called. Before, we wait a moment for a session in the middle
 *   of its imports; the child of one could never import those modules. After, the child has Python
 *   and no other thread: it forgets its parent and starts a manhole of its own.
 *
 *   A C program that embeds Python and forks for itself, without a word to Python, as uWSGI does:
 *   pthread_atfork() has us called. It is one when the thread that forks has a thread state and is
 *   in no Python code. While no session is inside Python the child does the same as above, all of
 *   it without Python. Where one is inside, or waits for it, that thread might have the GIL, which
 *   would be locked in the child for ever: so such a fork is made to be Python's own.
 *
 *   Any other fork in C is for another program (subprocess, libraries): nothing is done but to look
 *   whether it is of the second kind.
 *
 * What a child does. It frees nothing that a vanished thread may have half changed, and waits for
 * no lock that such a thread may hold: locks are made anew, what the others owned is abandoned. It
 * closes the descriptors that it inherited, as far as they are still ours (kept_fd); the paths are
 * the parent's and stay. Each subsystem forgets its own: forget_sessions(), forget_doors(), ...
 * Then a new listener binds after reinstall_delay, so that who only becomes another program leaves
 * no socket. A child that a session itself has forked still stands on that session's stack: its
 * slot is SESSION_BURNT, never to be handed out again.
 *
 * Exit. atexit has py_at_exit() called, while Python still works. The doors close; sessions are
 * waited for, with the GIL released, or with daemon_connection told to leave; then nobody attaches
 * any more (closing), and whoever is still inside is abandoned: CPython ends a thread that comes
 * back to an interpreter that is no more. C's own atexit() removes the paths where Python is never
 * finalized.
 */
#ifndef MANHOLE_SERVER_FORK_C
#define MANHOLE_SERVER_FORK_C

#include "../base/compat.c"
#include "../base/state.c"
#include "../base/locks.c"
#include "../base/basics.c"
#include "../base/log.c"
#include "../base/handlers.c"
#include "../door/socket.c"
#include "../session/streams.c"
#include "../session/borrowed.c"
#include "../session/interrupt.c"
#include "../session/programs.c"
#include "../session/session.c"
#include "../session/report.c"
#include "listener.c"
#include "activation.c"

enum {
    /* What exit gives sessions that it has told to leave. */
    EXIT_GRACE_MS = 1000,
    /* How long a fork waits for a session's first imports, which take 10 to 20. */
    FORK_PATIENCE_MS = 1000,
};

/* Lets go of what options own. May run Python code, so it is no struct that others look at. */
ATTACHED static void
drop_options(struct options *options)
{
    Py_CLEAR(options->verbose_destination.object);
    Py_CLEAR(options->locals);
    Py_CLEAR(options->connection_handler.callable);
    Py_CLEAR(options->config);
    Py_CLEAR(options->settings);
    Py_CLEAR(options->plugins);
    free(options->socket_path);
    options->socket_path = NULL;
    free_endpoints(&options->listen);
}

/* Registers the exit callback as the last, which is called first. It stays for the life of the
 * interpreter: clients stay after release(), too. Returns 0, or -1 with an exception. */
ATTACHED static int
add_exit_callback(void)
{
    static const char *const methods[] = {"unregister", "register"};
    for (size_t i = 0; i < Py_ARRAY_LENGTH(methods); i++) {
        OWNED PyObject *result = call_imported(
            "atexit", methods[i], Py_BuildValue("(O)", manhole.exit_callback), NULL);
        if (result == NULL) {
            return -1;
        }
    }
    return 0;
}

/* From here on nothing is installed. Sessions that stay go on by the other options: how long a
 * client waits, what is blocked in threads. */
ATTACHED static void
forget_options(void)
{
    struct options dropped; /* owned */
    Py_CLEAR(manhole.exit_callback);
    lock_leaf(&table_lock);
    dropped = manhole.options;
    manhole.options.locals = NULL;
    manhole.options.socket_path = NULL;
    manhole.options.listen.count = 0;
    manhole.options.verbose_destination.object = NULL;
    manhole.options.connection_handler.callable = NULL;
    manhole.options.config = NULL;
    manhole.options.settings = NULL;
    manhole.options.plugins = NULL;
    unlock(&table_lock);
    manhole.installed = false;
    drop_options(&dropped);
}

/* Fills a slot, whose socket is closed, with what belongs to another. */
ATTACHED static void
fill_door(struct door *door, PyObject *given /* or NULL */,
          PyObject *locals /* or NULL */)
{
    PyObject *old_given = door->given;   /* owned */
    PyObject *old_locals = door->locals; /* owned */
    lock_leaf(&table_lock);
    door->given = Py_XNewRef(given);
    door->locals = Py_XNewRef(locals);
    door->serial++;
    unlock(&table_lock);
    Py_XDECREF(old_given);
    Py_XDECREF(old_locals);
}

ATTACHED static void
empty_door(struct door *door)
{
    keep_fd(&door->given_fd, -1);
    fill_door(door, NULL, NULL);
}

/* Ends what backdoor_server() has begun. There is no listener. */
ATTACHED static void
drop_given_doors(void)
{
    close_given_doors();
    for (size_t i = MAX_OWN_DOORS; i < MAX_DOORS; i++) {
        empty_door(&manhole.doors[i]);
    }
}

/* The sockets that the application has given us block again, where they did. Not at its end: other
 * processes may listen at them. */
ATTACHED static void
restore_given_sockets(void)
{
    for (size_t i = MAX_OWN_DOORS; i < MAX_DOORS; i++) {
        const int fd = kept_number(&manhole.doors[i].given_fd);
        if (fd >= 0 && manhole.doors[i].was_blocking) {
            (void)fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) & ~O_NONBLOCK);
        }
    }
}

/* Undoes install(), also a half-done one. Clients that are in stay. Under install_lock. */
ATTACHED static void
uninstall(void)
{
    if (manhole.options.activate_on != 0) {
        unwatch_activate_on(manhole.options.activate_on);
    }
    if (manhole.options.oneshot_on != 0) {
        unwatch_oneshot_on(manhole.options.oneshot_on);
    }
    stop_listener();
    close_snapshot();
    unwatch_wait_ending_signal();
    forget_options();
}

/* Ends the input of every session but the calling thread's own, and raises SystemExit in
 * what it runs just now. */
ATTACHED static void
dismiss_sessions(void)
{
    for (size_t i = 0; i < atomic_load(&manhole.sessions_end); i++) {
        struct session *session = &manhole.sessions[i];
        lock_leaf(&table_lock);
        bool there = session->state == SESSION_TAKEN && session != current_session;
        if (there) {
            (void)shutdown(kept_number(&session->fd), SHUT_RDWR);
        }
        unlock(&table_lock);
        if (there) {
            raise_in_session(session, PyExc_SystemExit);
        }
    }
}

/* Whoever is still in never comes back from the interpreter that ends. One that begins later in the
 * same process is not to wait for them. */
static void
abandon_sessions(void)
{
    lock_leaf(&table_lock);
    for (size_t i = 0; i < atomic_load(&manhole.sessions_end); i++) {
        if (manhole.sessions[i].state == SESSION_TAKEN &&
            &manhole.sessions[i] != current_session) {
            manhole.sessions[i].state = SESSION_BURNT;
        }
    }
    manhole.inside = 0;
    unlock(&table_lock);
}

/* No new client from here on. The connected ones are waited for, unless daemon_connection is set. A
 * second Ctrl-C ends the waiting. */
ATTACHED static void
wait_for_sessions(void)
{
    int interrupted = 0;
    if (manhole.installed && manhole.has_listener) {
        tell_listener(ORDER_CLOSE);
        interrupted = wait_for_news(has_closed_door, -1);
    }
    if (interrupted == 0 && !manhole.options.daemon_connection && !is_finalizing()) {
        interrupted = wait_for_news(has_no_session, -1);
    }
    if (interrupted < 0) {
        PyErr_WriteUnraisable(NULL);
    }
}

/* Nobody attaches any more, and who is inside has a moment to get out. */
ATTACHED static void
let_nobody_in(void)
{
    lock_leaf(&table_lock);
    manhole.closing = true;
    unlock(&table_lock);
    /* Microseconds, but not one may be left over: a thread state must not be made later. */
    while (wait_for_news(has_nobody_entering, -1) < 0) {
        PyErr_WriteUnraisable(NULL);
    }

    dismiss_sessions();
    /* In a subinterpreter that ends with the main one it is too late for them to get out. */
    if (!is_finalizing() &&
        wait_for_news(has_nobody_inside, monotonic_ms() + EXIT_GRACE_MS) < 0) {
        PyErr_WriteUnraisable(NULL);
    }
    abandon_sessions();
}

/* What atexit calls. */
ATTACHED static PyObject *
py_at_exit(PyObject *module, PyObject *unused)
{
    struct held held;
    (void)module;
    (void)unused;
    if (!is_owner() || manhole.interpreter != PyInterpreterState_Get()) {
        return Py_NewRef(Py_None);
    }
    wait_for_sessions();
    let_nobody_in();

    lock_sys(&held);
    give_back_attributes();
    give_back_sys();
    unlock_sys(&held);

    if (lock_install() < 0) {
        return NULL;
    }
    if (manhole.installed) {
        manhole.options.activate_on = 0; /* its handler stays: a late one must not kill */
        uninstall();
        drop_given_doors();
    }
    unlock_install();
    deliver_log();
    return Py_NewRef(Py_None);
}

/* A child that multiprocessing made ends by os._exit(), after the finalizers of
 * multiprocessing.util: our exit callback becomes one of them. The list of finalizers is
 * emptied after this hook has run, so it is entered by the module's own hook that runs
 * after that. Never raises. */
ATTACHED static void
tell_multiprocessing(void)
{
    PyObject *modules = PyImport_GetModuleDict();                           /* borrowed */
    PyObject *util = PyDict_GetItemString(modules, "multiprocessing.util"); /* borrowed */
    struct module_state *state = installed_state();
    if (util == NULL || state->has_multiprocessing_hook) {
        return;
    }
    OWNED PyObject *hook =
        PyObject_GetAttrString(manhole.module, "_finalize_with_multiprocessing");
    OWNED PyObject *result = hook == NULL
                                 ? NULL
                                 : PyObject_CallMethod(util, "register_after_fork", "OO",
                                                       state->manhole_type, hook);
    state->has_multiprocessing_hook = result != NULL;
    PyErr_Clear();
}

/* In a child of multiprocessing, called by it, or by install() when that comes later. It would hide
 * what this raises. */
ATTACHED static PyObject *
py_finalize_with_multiprocessing(PyObject *module, PyObject *unused)
{
    (void)module;
    (void)unused;
    if (manhole.exit_callback != NULL) {
        OWNED PyObject *result =
            call_imported("multiprocessing.util", "Finalize",
                          Py_BuildValue("(OO)", Py_None, manhole.exit_callback),
                          Py_BuildValue("{si}", "exitpriority", -1000));
        if (result == NULL) {
            log_exception("The socket will be left behind: ", take_exception(), "");
        }
    }
    return Py_NewRef(Py_None);
}

/* install() in a child of multiprocessing whose parent has no manhole, after the child's hooks have
 * run. Never raises. */
ATTACHED static void
finalize_in_child(void)
{
    PyObject *modules = PyImport_GetModuleDict(); /* borrowed */
    PyObject *process =
        PyDict_GetItemString(modules, "multiprocessing.process"); /* borrowed */
    OWNED PyObject *parent =
        process == NULL ? NULL : PyObject_CallMethod(process, "parent_process", NULL);
    PyErr_Clear();
    if (parent != NULL && parent != Py_None) {
        OWNED PyObject *result = py_finalize_with_multiprocessing(manhole.module, NULL);
        (void)result;
    }
}

/* In a child, while it has no other thread: forgets the parent's threads, clients and sockets. */
static void
forget_parent(void)
{
    make_locks_anew();
    forget_sessions();
    forget_doors();
    forget_log_lines();
    forget_listener();
    atomic_store(&manhole.leaving, false);
}

/* The same, and what takes Python to be given up. */
ATTACHED static void
forget_parent_attached(void)
{
    forget_parent();
    for (size_t i = 0; i < MAX_DOORS; i++) {
        empty_door(&manhole.doors[i]);
    }
    give_back_attributes();
    give_back_sys();
}

/* Threads of the process, ours included; 0: /proc does not tell. */
static long
count_process_threads(void)
{
    struct stat status;
    return stat("/proc/self/task", &status) < 0 ? 0 : (long)status.st_nlink - 2;
}

/* Destructor of last_thread_key, in the thread that forked this child, when that thread ends (which
 * it does not by exit()). When it was the last of the application's the process is to end with it:
 * our listener must not keep it. */
DETACHED static void
on_thread_end(void *unused)
{
    (void)unused;
    if (is_owner() && manhole.has_listener && count_process_threads() == 2) {
        remove_paths();
        tell_listener(ORDER_STOP);
    }
}

static pthread_key_t last_thread_key;
static pthread_once_t last_thread_once = PTHREAD_ONCE_INIT;

static void
make_last_thread_key(void)
{
    (void)pthread_key_create(&last_thread_key, on_thread_end);
}

static bool
may_reinstall(const struct options *options)
{
    return options->patch_fork && has_endpoint_for_child(options);
}

/* In a child that has forgotten its parent, whose manhole it may have: starts its own. */
static void
start_in_child(void)
{
    const struct options *options = &manhole.options;
    int error = 0;
    atomic_store(&manhole.owner, getpid());
    manhole.is_child = true;
    (void)pthread_once(&last_thread_once, make_last_thread_key);
    (void)pthread_setspecific(last_thread_key, &manhole);
    if (atomic_load(&manhole.activated_child) == getpid()) {
        atomic_fetch_or(&manhole.orders, ORDER_OPEN);
    }
    if (options->oneshot_on != 0) {
        put_up_oneshot_notice(options->oneshot_on);
    }
    if (opens_at_once(options)) {
        log_line("Fork detected. Reinstalling Manhole.");
        manhole.bind_delay_ms = seconds_to_ms(options->reinstall_delay);
    }
    (void)open_bells();
    if (options->activate_on != 0 || opens_at_once(options)) {
        error = start_listener();
    }
    if (error != 0) {
        log_line("Cannot reinstall Manhole: %s", error_text(error));
    }
}

/* In a child whose parent has a manhole: its own, where there can be one. Where not, the handlers
 * of activate_on and oneshot_on stay, and do nothing: a signal to the whole family must not kill
 * the child. */
ATTACHED static void
reinstall(void)
{
    if (!may_reinstall(&manhole.options)) {
        close_snapshot();
        unwatch_wait_ending_signal();
        forget_options();
        atomic_store(&manhole.owner, 0);
        return;
    }
    tell_multiprocessing();
    start_in_child();
    deliver_log();
}

/* ---- A C program that forks and does not tell Python: uWSGI -------------------------------- */

/* Between Python's own hooks, which see to all. */
static _Thread_local bool python_tells;

/* The fork that the calling thread is in. */
static _Thread_local struct {
    bool untold;           /* it is such a one: table_lock is held meanwhile, */
    bool told;             /* or, for our clients' sake, Python is told after all, */
    PyThreadState *tstate; /* attached for that; NULL: it was */
    bool holds_new_state;  /* see lock_new_state_soon() */
} c_fork;

/* Other forks in C, subprocess's or those of a library that Python code has called, are for another
 * program, and pay for no more than this look. Of one in a subinterpreter CPython is not to be
 * told: that would end the child. */
static bool
forks_for_itself(void)
{
    PyThreadState *tstate = python_tells ? NULL : own_thread_state();
    return tstate != NULL && !is_in_python_code(tstate) && !is_finalizing() &&
           is_owner() &&
           PyThreadState_GetInterpreter(tstate) == PyInterpreterState_Main();
}

/* Whether Python takes in who waits for it; else it is stuck, and so will the child be. */
static bool
has_python_answered(void)
{
    int64_t deadline_ms = monotonic_ms() + FORK_PATIENCE_MS;
    while (waiting_since() != 0 && ms_until(deadline_ms) > 0) {
        (void)poll(NULL, 0, 1);
    }
    return waiting_since() == 0;
}

/* A session that has the GIL at the fork, or waits for it, would leave the child waiting for it for
 * ever. So this fork becomes what Python's own is. Returns whether it has. */
MAY_ATTACH static bool
tell_python(void)
{
    c_fork.tstate = is_attached() ? NULL : own_thread_state();
    if (c_fork.tstate != NULL && !has_python_answered()) {
        return false;
    }
    reattach(c_fork.tstate);
    PyOS_BeforeFork();
    return true;
}

/* after: PyOS_AfterFork_Parent() or its like. */
MAY_ATTACH static void
tell_python_again(void (*after)(void))
{
    after();
    if (c_fork.tstate != NULL) {
        (void)detach();
    }
}

/* pthread_atfork()'s three. During a fork that Python is not told of no session begins to
 * attach. */
static void
before_c_fork(void)
{
    c_fork.untold = forks_for_itself();
    c_fork.told = false;
    if (c_fork.untold) {
        lock_leaf(&table_lock);
    }
    if (c_fork.untold && (manhole.entering > 0 || manhole.inside > 0)) {
        unlock(&table_lock); /* who is inside needs it to get out */
        c_fork.told = tell_python();
        c_fork.untold = !c_fork.told;
        if (c_fork.untold) {
            lock_leaf(&table_lock);
        }
    }
    c_fork.holds_new_state = lock_new_state_soon();
}

static void
after_c_fork_in_parent(void)
{
    unlock_new_state(c_fork.holds_new_state);
    if (c_fork.untold) {
        unlock(&table_lock);
    }
    else if (c_fork.told) {
        tell_python_again(PyOS_AfterFork_Parent);
    }
}

/* Where Python is not told all is done without it. The listener first waits, as after any fork: a
 * child that becomes another program takes it along before it has done a thing. */
static void
after_c_fork_in_child(void)
{
    make_new_state_lock_anew();
    if (c_fork.untold) {
        unlock(&table_lock);
        if (manhole.installed && may_reinstall(&manhole.options)) {
            forget_parent();
            start_in_child();
            manhole.replaceable = true;
        }
    }
    else if (c_fork.told) {
        tell_python_again(PyOS_AfterFork_Child);
        manhole.replaceable = true;
    }
}

static pthread_once_t c_fork_once = PTHREAD_ONCE_INIT;

static void
add_c_fork_hook(void)
{
    (void)pthread_atfork(before_c_fork, after_c_fork_in_parent, after_c_fork_in_child);
}

/* ---- Python's own fork ------------------------------------------------------------------ */

/* os.register_at_fork(before=...): see import_needed_modules(). No longer than a second, for the
 * imports may themselves wait for the thread that forks; by a clock that nobody sets, which
 * pthread_mutex_timedlock()'s is not. */
ATTACHED static PyObject *
py_before_fork(PyObject *module, PyObject *unused)
{
    const int64_t deadline_ms = monotonic_ms() + FORK_PATIENCE_MS;
    (void)module;
    (void)unused;
    python_tells = true;
    if (!try_imports()) {
        PyThreadState *tstate = detach();
        while (ms_until(deadline_ms) > 0 && !try_imports()) {
            (void)poll(NULL, 0, 1);
        }
        reattach(tstate);
    }
    return Py_NewRef(Py_None);
}

ATTACHED static PyObject *
py_after_fork_in_parent(PyObject *module, PyObject *unused)
{
    (void)module;
    (void)unused;
    python_tells = false;
    unlock_imports();
    return Py_NewRef(Py_None);
}

/* os.register_at_fork(after_in_child=...): os.fork(), forkpty(), multiprocessing, and C
 * programs that call PyOS_AfterFork_Child(). */
ATTACHED static PyObject *
py_after_fork_in_child(PyObject *module, PyObject *unused)
{
    (void)module;
    (void)unused;
    python_tells = false;
    make_import_lock_anew(); /* whoever had it */
    if (atomic_load(&manhole.owner) != 0 && !is_owner()) {
        forget_parent_attached();
        if (manhole.installed) {
            reinstall();
        }
    }
    return Py_NewRef(Py_None);
}

/* Returns 0, or -1 with an exception. Hooks cannot be taken back: they ask what is
 * installed. */
ATTACHED static int
add_fork_hook(void)
{
    static const struct {
        const char *when;
        const char *name;
    } hooks[] = {
        {"before", "_before_fork"},
        {"after_in_parent", "_after_fork_in_parent"},
        {"after_in_child", "_after_fork_in_child"},
    };
    OWNED PyObject *keywords = PyDict_New();
    if (keywords == NULL) {
        return -1;
    }
    for (size_t i = 0; i < Py_ARRAY_LENGTH(hooks); i++) {
        OWNED PyObject *hook = PyObject_GetAttrString(manhole.module, hooks[i].name);
        if (hook == NULL || PyDict_SetItemString(keywords, hooks[i].when, hook) < 0) {
            return -1;
        }
    }
    OWNED PyObject *result = call_imported("posix", "register_at_fork", PyTuple_New(0),
                                           steal_reference(&keywords));
    return result == NULL ? -1 : 0;
}

#endif /* MANHOLE_SERVER_FORK_C */
