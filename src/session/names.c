/* Names: the namespace of a console or a program.
 * Runs on:  the session's thread, ATTACHED.
 * Touches:  the session's names, under table_lock.
 */
#ifndef MANHOLE_SESSION_NAMES_C
#define MANHOLE_SESSION_NAMES_C

#include "../base/compat.c"
#include "../base/state.c"
#include "../base/locks.c"
#include "../base/library.c"
#include "../base/parts.c"

/* A namespace of eventlet's kind: the application's mapping is not copied but looked at, so that a
 * client sees it change, and what the client assigns the application finds there. But `_` and what
 * we add are the client's own. */
static const char live_names_program[] =
    "class Names(dict):\n"
    "    def __init__(self, own, theirs):\n"
    "        super().__init__({name: own[name] for name in own if name not in theirs})\n"
    "        self.theirs = theirs\n"
    "    def is_own(self, name):\n"
    "        return name == '_' or super().__contains__(name)\n"
    "    def __missing__(self, name):\n"
    "        return self.theirs[name]\n"
    "    def __contains__(self, name):\n"
    "        return super().__contains__(name) or name in self.theirs\n"
    "    def __setitem__(self, name, value):\n"
    "        if self.is_own(name):\n"
    "            super().__setitem__(name, value)\n"
    "        else:\n"
    "            self.theirs[name] = value\n"
    "    def __delitem__(self, name):\n"
    "        if self.is_own(name):\n"
    "            super().__delitem__(name)\n"
    "        else:\n"
    "            del self.theirs[name]\n"
    "    def keys(self):\n"
    "        return super().keys() | self.theirs.keys()\n";

static const struct part live_names_part = {.name = "live names",
                                            .program = live_names_program};

/* Returns a new dict of that class, or NULL with an exception. */
ATTACHED static PyObject *
make_live_names(PyObject *own, PyObject *theirs)
{
    return call_part(manhole.module, &live_names_part, "Names", own, theirs);
}

/* The console's namespace: python-manhole's names, as far as they can be imported, then those of
 * locals, copied or as they are at any time. Returns a new dict, or NULL with an exception. */
ATTACHED static PyObject *
make_names(PyObject *locals, bool live)
{
    static const char *const modules[] = {"sys", "os", "socket", "traceback"};
    PyObject *dump =
        PyObject_GetAttrString(manhole.module, "dump_stacktraces"); /* owned */
    PyObject *names = PyDict_New(); /* owned, handed to the caller */
    /* Else exec() in a module of our own would have them see its builtins. */
    bool failed = dump == NULL || names == NULL ||
                  PyDict_SetItemString(names, "__builtins__", PyEval_GetBuiltins()) < 0 ||
                  PyDict_SetItemString(names, "dump_stacktraces", dump) < 0;
    for (size_t i = 0; !failed && i < Py_ARRAY_LENGTH(modules); i++) {
        PyObject *module = import_standard(modules[i]); /* owned */
        failed = module != NULL && PyDict_SetItemString(names, modules[i], module) < 0;
        if (module == NULL) {
            PyErr_Clear(); /* it has been told */
        }
        Py_XDECREF(module);
    }
    if (!failed && locals != NULL && live) {
        Py_SETREF(names, make_live_names(names, locals));
    }
    else if (!failed && locals != NULL) {
        failed = PyDict_Update(names, locals) < 0;
    }
    if (failed) {
        Py_CLEAR(names);
    }
    Py_XDECREF(dump);
    return names;
}

/* Sets the session's namespace, which another session may be about to look at. */
ATTACHED static void
set_names(struct session *session, PyObject *names /* new: taken over; or NULL */)
{
    PyObject *previous = NULL; /* owned */
    lock_leaf(&table_lock);
    previous = session->run.names;
    session->run.names = names;
    unlock(&table_lock);
    Py_XDECREF(previous);
}

#endif /* MANHOLE_SESSION_NAMES_C */
