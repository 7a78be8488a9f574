/* Install: putting it all in place, and saying so.
 * Runs on:  the thread that calls install() or release(), ATTACHED, under install_lock.
 * Touches:  all that manhole.c's head names, in the order in which it must be there.
 *
 * What a signal, a fork or the end of the process needs comes first (prepare()), then oneshot_on,
 * the listener, and last activate_on: its handler finds all that it needs. A start that fails in
 * the middle is undone as a whole, by the same uninstall() that release() calls.
 *
 * What goes wrong with the options is an exception. What goes wrong outside, a path that cannot be
 * bound or a thread that is not to be had, is a line in the log: the application goes on without.
 * When install() returns the socket is there: it waits for the listener, but for no longer than
 * start_timeout, and not under the lock.
 */
#ifndef MANHOLE_SERVER_INSTALL_C
#define MANHOLE_SERVER_INSTALL_C

#include "../base/compat.c"
#include "../base/state.c"
#include "../base/locks.c"
#include "../base/basics.c"
#include "../base/log.c"
#include "../door/socket.c"
#include "listener.c"
#include "activation.c"
#include "fork.c"
#include "options.c"
#include "config.c"

static bool
wants_listener(const struct options *options)
{
    return options->activate_on != 0 || opens_at_once(options) || has_given_door();
}

/* The line that python-manhole logs when forked children are not simply given a copy. */
static void
log_fork_policy(const struct options *options)
{
    if (!options->patch_fork) {
        return;
    }
    if (options->activate_on != 0 || options->oneshot_on != 0) {
        const bool activates = options->activate_on != 0;
        log_line("Not patching os.fork and os.forkpty. %s is done by signal %d",
                 activates ? "Activation" : "Oneshot activation",
                 activates ? options->activate_on : options->oneshot_on);
    }
    else if (!has_endpoint_for_child(options)) {
        log_line("Not patching os.fork and os.forkpty. Using user socket path %s",
                 options->socket_path != NULL ? options->socket_path
                                              : options->listen.rows[0].path);
    }
}

/* What must be in place before the first thread or signal can come. Returns 0, or -1 with
 * an exception. */
ATTACHED static int
prepare(PyObject *module)
{
    struct module_state *state = PyModule_GetState(module);
    lock_leaf(&table_lock);
    manhole.closing = false;
    manhole.interpreter = PyInterpreterState_Get();
    unlock(&table_lock);
    manhole.bind_delay_ms = 0;
    manhole.is_child = false;
    Py_XSETREF(manhole.module, Py_NewRef(module));
    (void)open_bells(); /* without them waiting takes a little longer */
    (void)pthread_once(&c_fork_once, add_c_fork_hook);
    if (!state->has_fork_hook) {
        if (add_fork_hook() < 0) {
            return -1;
        }
        state->has_fork_hook = true;
    }
    open_snapshot();
    watch_wait_ending_signal();
    if (!manhole.has_exit_handler) {
        manhole.has_exit_handler = atexit(remove_paths_at_exit) == 0;
    }
    manhole.exit_callback = PyObject_GetAttrString(module, "_at_exit");
    if (manhole.exit_callback == NULL || add_exit_callback() < 0) {
        return -1;
    }
    tell_multiprocessing();
    finalize_in_child();
    return 0;
}

/* Imports threading, unless that would be a module of the application's. Returns 0, also where it
 * cannot be had; or -1 with what a handler of the application's signals raised. */
ATTACHED static int
load_threading(void)
{
    static const char program[] =
        "import os, sys\n"
        "for finder in sys.meta_path:\n"
        "    if getattr(finder, '__name__', '') == 'PathFinder':\n"
        "        file = finder.find_spec('threading').origin\n"
        "        if os.path.dirname(file) == os.path.dirname(os.__file__):\n"
        "            import threading\n";
    OWNED PyObject *names = Py_BuildValue("{sO}", "__builtins__", PyEval_GetBuiltins());
    OWNED PyObject *result =
        names == NULL ? NULL : run_source(program, Py_file_input, names);
    if (result == NULL && !PyErr_ExceptionMatches(PyExc_Exception)) {
        return -1;
    }
    PyErr_Clear(); /* there is none: a client cannot import it either */
    return 0;
}

/* Before 3.13 threading takes the thread that imports it first for the main one: were that a
 * session's, Python would wait for its client at the end. Since 3.13 it takes the native id alone
 * of who imports it for the main thread's. So the main thread imports it now. Returns the same. */
ATTACHED static int
import_threading(void)
{
    return is_to_import_threading() ? load_threading() : 0;
}

/* Returns 0, or -1 with an exception; uninstall() then. */
ATTACHED static int
start(PyObject *module)
{
    struct options *options = &manhole.options;
    if (prepare(module) < 0 || import_threading() < 0) {
        return -1;
    }
    if (options->oneshot_on != 0 && watch_oneshot_on(options->oneshot_on) < 0) {
        return -1;
    }
    if (wants_listener(options)) {
        int error = start_listener();
        if (error != 0) { /* the application can do without */
            log_line("Cannot start listening: %s. Another install() tries again; until "
                     "then only oneshot works.",
                     error_text(error));
        }
    }
    /* Last: from here on the signal finds everything that it needs. */
    return options->activate_on == 0 ? 0 : watch_activate_on(options->activate_on);
}

/* Waits for the socket to be there when install() returns; not under install_lock, for
 * handlers of the application's signals may run meanwhile. Returns 0, or -1 with such a
 * handler's exception. */
ATTACHED static int
wait_for_listener(void)
{
    const double patience = manhole.options.start_timeout;
    int late = manhole.has_listener
                   ? wait_for_news(has_started, monotonic_ms() + seconds_to_ms(patience))
                   : 0;
    if (late > 0) {
        log_line("WARNING: Waited %s seconds but Manhole thread didn't start yet :(",
                 format_seconds(patience).text);
    }
    return late < 0 ? -1 : 0;
}

/* Of a thread that installs by order of a client's: what it installs is not the application's. From
 * the first moment, for an install() of that may come at the next. */
static _Thread_local bool is_ordered;

/* Takes over what options owns. Returns 0, or -1 with an exception and nothing installed. */
ATTACHED static int
install_locked(PyObject *module, struct options *options)
{
    struct module_state *state = PyModule_GetState(module);
    if (atomic_load(&manhole.owner) != 0 && !is_owner()) {
        forget_parent_attached(); /* forked by C code that ran no hook */
        forget_options();
    }
    if (manhole.installed) {
        if (options->strict && !manhole.replaceable) {
            PyErr_SetString(state->already_installed,
                            "Manhole already installed! (strict=False replaces it)");
            return -1;
        }
        uninstall();
    }
    atomic_store(&manhole.owner, getpid());
    lock_leaf(&table_lock);
    manhole.options = *options;
    unlock(&table_lock);
    *options = (struct options){0};
    configure_log(manhole.options.verbose ? &manhole.options.verbose_destination : NULL);
    if (start(module) < 0) {
        PyObject *exception = take_exception(); /* owned, handed back */
        uninstall();
        put_back_exception(exception);
        return -1;
    }
    manhole.installed = true;
    manhole.replaceable =
        is_ordered || (wants_listener(&manhole.options) && !manhole.has_listener);
    return 0;
}

/* install() itself. Returns the Manhole object, new, or NULL with an exception. */
ATTACHED static PyObject *
install(PyObject *module, PyObject *arguments, PyObject *keywords)
{
    struct module_state *state = PyModule_GetState(module);
    struct options options = default_options();
    int result =
        parse_options(&options, arguments, keywords, state->configuration_conflict);
    if (result == 0) {
        result = apply_config(module, &options, keywords);
    }
    if (result == 0) {
        result = lock_install();
    }
    if (result == 0) {
        result = install_locked(module, &options);
        unlock_install();
    }
    if (result == 0) {
        result = wait_for_listener();
        log_fork_policy(&manhole.options);
        deliver_log();
    }
    drop_options(&options);
    return result < 0 ? NULL : Py_NewRef(state->manhole_object);
}

/* Returns 0, or -1 with an exception. */
ATTACHED static int
release(void)
{
    if (lock_install() < 0) {
        return -1;
    }
    if (manhole.installed && is_owner()) {
        uninstall();
        restore_given_sockets();
        drop_given_doors();
    }
    unlock_install();
    deliver_log();
    return 0;
}

/* Returns 0, or -1 with NotInstalled. A signal handler may come in the middle of install(). */
ATTACHED static int
require_installed(PyObject *module)
{
    if (atomic_load(&installer) == PyThread_get_thread_ident()) {
        raise_at_work();
        return -1;
    }
    if (!manhole.installed) {
        struct module_state *state = PyModule_GetState(module);
        PyErr_SetString(state->not_installed, "Manhole is not installed!");
        return -1;
    }
    return 0;
}

#endif /* MANHOLE_SERVER_INSTALL_C */
