/* Attach: how a native thread of ours becomes a Python thread, and stops being one.
 * Runs on:  the thread that enters or leaves: a session's, a courier's, an interrupter's.
 * Touches:  manhole.entering and manhole.inside, under table_lock; what threading and gevent keep
 *           for a thread that they did not start.
 * A thread gets a thread state of its own in the interpreter that installed the manhole, which need
 * not be the main one, PyGILState's. When that interpreter ends nobody may enter any more, and who
 * is inside is waited for: manhole.closing says so, under the same lock as the two counters.
 */
#ifndef MANHOLE_SESSION_ATTACH_C
#define MANHOLE_SESSION_ATTACH_C

#include "../base/compat.c"
#include "../base/state.c"
#include "../base/locks.c"
#include "../base/basics.c"
#include "../base/log.c"
#include "../door/socket.c"
#include "../stacks/dump.c"

/* Attaches a native thread of ours with a new thread state. Returns NULL, and stays
 * detached, when the interpreter is about to end or has no memory. */
ATTACHES static PyThreadState *
enter_interpreter(void)
{
    lock_leaf(&table_lock);
    bool may_enter = !manhole.closing;
    manhole.entering += may_enter;
    PyInterpreterState *interpreter = manhole.interpreter;
    unlock(&table_lock);
    if (!may_enter) {
        return NULL;
    }

    /* Not under the lock: it may wait for all attached threads, or for the GIL. */
    PyThreadState *tstate = new_thread_state(interpreter);
    if (tstate == NULL) {
        log_line("Cannot attach a thread to Python: out of memory");
    }

    lock_leaf(&table_lock);
    manhole.entering--;
    manhole.inside += tstate != NULL;
    unlock(&table_lock);
    ring_bell(&manhole.news_bell);
    if (tstate != NULL) {
        PyEval_RestoreThread(tstate);
    }
    return tstate;
}

/* Forgets the entry that threading makes for a thread it did not start, when a statement
 * (logging, say) asks for current_thread(): CPython before 3.13 keeps it for ever. Never
 * raises. */
ATTACHED static void
forget_dummy_thread(void)
{
    OWNED PyObject *active = get_active_threads();
    OWNED PyObject *ident = PyLong_FromUnsignedLong(PyThread_get_thread_ident());
    if (active != NULL && ident != NULL && PyDict_Check(active) &&
        PyDict_Contains(active, ident) == 1) {
        (void)PyDict_DelItem(active, ident);
    }
    PyErr_Clear();
}

/* A hub that gevent has made for this thread, when a statement waited in it: its descriptors are
 * closed by nobody else. Never raises. */
ATTACHED static void
destroy_hub(void)
{
    PyObject *modules = PyImport_GetModuleDict();                         /* borrowed */
    PyObject *local = PyDict_GetItemString(modules, "gevent._hub_local"); /* borrowed */
    if (local == NULL) {
        return;
    }
    OWNED PyObject *hub = PyObject_CallMethod(local, "get_hub_if_exists", NULL);
    if (hub != NULL && hub != Py_None) {
        Py_XDECREF(PyObject_CallMethod(hub, "destroy", "O", Py_True));
    }
    PyErr_Clear();
}

/* The way back out of enter_interpreter(). */
DETACHES static void
leave_interpreter(PyThreadState *tstate)
{
    destroy_hub();
    forget_dummy_thread();
    PyThreadState_Clear(tstate);
    PyThreadState_DeleteCurrent();
    lock_leaf(&table_lock);
    manhole.inside -= manhole.inside > 0; /* abandon_sessions() may have been faster */
    unlock(&table_lock);
    ring_bell(&manhole.news_bell);
}

#endif /* MANHOLE_SESSION_ATTACH_C */
