/* Names: the namespace of a console or a program.
 * Runs on:  the session's thread, ATTACHED.
 * Touches:  the session's names, under table_lock.
 *
 * It has python-manhole's names, as far as they can be imported, and those of the option locals or
 * of backdoor(), copied, or in eventlet's way looked at; and where these are none of that name,
 * what looks at threads and tasks (prompt). Where it looks at them a client sees the application's
 * mapping change, and what it assigns the application finds there; but `_` and what we add are its
 * own.
 *
 * A name that is none of these, nor a builtin, is the application's: that of its __main__. exec()
 * takes only a dict for globals, but CPython asks __missing__() of a subclass wherever a name is
 * read, at the prompt and in functions that were made there; so nothing is copied, and what is set
 * is the session's own. Since builtins are looked for behind that, __missing__() has them first,
 * and is in C, for it is asked for each of them. Of __main__ no __name__ is found: `x: int = 1`
 * would write to its __annotations__. The statements of a class body alone CPython looks up in
 * another way.
 */
#ifndef MANHOLE_SESSION_NAMES_C
#define MANHOLE_SESSION_NAMES_C

#include "../base/compat.c"
#include "../base/state.c"
#include "../base/locks.c"
#include "../base/parts.c"
#include "prompt.c"

static const char names_program[] =
    "class Names(dict):\n"
    "    __missing__ = find_elsewhere\n"
    "\n"
    /* What is missing in it is first of all the application's mapping. CPython asks __setitem__()
     * where a name is set at the top of a statement, as at a prompt. */
    "class LiveNames(dict):\n"
    "    def __init__(self, own, theirs):\n"
    "        super().__init__({name: own[name] for name in own if name not in theirs})\n"
    "        self.theirs = theirs\n"
    "    def is_own(self, name):\n"
    "        return name == '_' or super().__contains__(name)\n"
    "    def __missing__(self, name):\n"
    "        try:\n"
    "            return self.theirs[name]\n"
    "        except KeyError:\n"
    "            return find_elsewhere(name)\n"
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
    "        return super().keys() | self.theirs.keys()\n"
    "\n"
    "def own_names():\n"
    /* Else exec() in a module of our own would have them see its builtins. */
    "    names = {'__builtins__': __builtins__, 'dump_stacktraces': dump_stacktraces()}\n"
    "    for name in 'sys', 'os', 'socket', 'traceback':\n"
    "        try:\n"
    "            names[name] = standard(name)\n"
    "        except Exception:\n"
    "            pass\n" /* the client has been told */
    "    return names\n"
    "\n"
    "def copied(theirs):\n"
    "    names = Names(own_names())\n"
    "    if theirs is not None:\n"
    "        names.update(theirs)\n"
    "    return names\n"
    "\n"
    "def live(theirs):\n"
    "    return copied(None) if theirs is None else LiveNames(own_names(), theirs)\n";

ATTACHED static PyObject *
names_dump_stacktraces(PyObject *module, PyObject *unused)
{
    (void)module;
    (void)unused;
    return PyObject_GetAttrString(manhole.module, "dump_stacktraces");
}

/* Whether it begins as __name__ does. */
static bool
is_special(PyObject *name)
{
    const char *text = PyUnicode_Check(name) ? PyUnicode_AsUTF8(name) : NULL;
    PyErr_Clear(); /* a lone surrogate is in no module's source */
    return text == NULL || strncmp(text, "__", 2) == 0;
}

/* Returns a new reference, or NULL, with an exception unless there is just no such name. A borrowed
 * one could be gone at once where there is no GIL. */
ATTACHED static PyObject *
look_up(PyObject *mapping, PyObject *name)
{
    PyObject *found = PyObject_GetItem(mapping, name); /* new, handed to the caller */
    if (found == NULL && PyErr_ExceptionMatches(PyExc_KeyError)) {
        PyErr_Clear();
    }
    return found;
}

/* find_elsewhere(name): what a name means that the namespace has not got. */
ATTACHED static PyObject *
names_find_elsewhere(PyObject *module, PyObject *name)
{
    (void)module;
    OWNED PyObject *found = look_up(PyEval_GetBuiltins(), name);
    if (found == NULL && PyErr_Occurred() == NULL && !is_special(name)) {
        PyObject *main =
            PyDict_GetItemString(PyImport_GetModuleDict(), "__main__"); /* borrowed */
        found = main == NULL || !PyModule_Check(main)
                    ? NULL
                    : look_up(PyModule_GetDict(main), name);
    }
    if (found == NULL && PyErr_Occurred() == NULL) {
        PyErr_SetObject(PyExc_KeyError, name);
    }
    return steal_reference(&found);
}

static PyMethodDef names_functions[] = {
    {"dump_stacktraces", names_dump_stacktraces, METH_NOARGS, NULL},
    {"find_elsewhere", names_find_elsewhere, METH_O, NULL},
    {NULL, NULL, 0, NULL},
};

static const struct part names_part = {
    .name = "names",
    .program = names_program,
    .functions = names_functions,
};

/* Returns a new dict, or NULL with an exception. */
ATTACHED static PyObject *
make_names(PyObject *locals /* or NULL */, bool live)
{
    OWNED PyObject *names =
        call_part(manhole.module, &names_part, live ? "live" : "copied",
                  locals == NULL ? Py_None : locals, NULL);
    return names == NULL || add_prompt_functions(names) < 0 ? NULL
                                                            : steal_reference(&names);
}

/* Sets the session's namespace, which another session may be about to look at. */
ATTACHED static void
set_names(struct session *session, PyObject *names /* new: taken over; or NULL */)
{
    lock_leaf(&table_lock);
    PyObject *previous = session->run.names; /* owned */
    session->run.names = names;
    unlock(&table_lock);
    Py_XDECREF(previous);
}

#endif /* MANHOLE_SESSION_NAMES_C */
