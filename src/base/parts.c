/* Parts: what of manhole.c is written in Python, compiled at its first use.
 * Runs on:  any thread, ATTACHED.
 * Touches:  nothing but what a part itself says.
 * What wraps functions of the application is best made of what Python wraps functions with: a
 * function that functools.wraps() has dressed is one to inspect, pickle, weakref and every
 * framework. A part is a module that stands in no sys.modules: an interpreter has it once, import
 * of manhole compiles none. Threads may run it at the same time, without a GIL as well, so a part
 * keeps to what is one step there: a read or write of an attribute, a method of a set, dict or list
 * in C. Locks it has none: whoever holds one could be gone with a fork, or be interrupted by a
 * signal handler that wants it.
 */
#ifndef MANHOLE_BASE_PARTS_C
#define MANHOLE_BASE_PARTS_C

#include "compat.c"
#include "state.c"
#include "library.c"

struct part {
    const char *name;
    const char *program; /* Python */
    PyMethodDef
        *functions; /* in C, that it calls, beside standard() and counter(); or NULL */
};

static PyMethodDef part_functions[3];

/* Runs a part in its new module. Returns 0, or -1 with an exception. Its frames are seen in stacks
 * and tracebacks, as File "<manhole>". */
ATTACHED static int
run_part(PyObject *module, const struct part *part)
{
    PyObject *names = PyModule_GetDict(module); /* borrowed */
    PyObject *code = NULL;                      /* owned */
    PyObject *result = NULL;                    /* owned */
    if (PyModule_AddFunctions(module, part_functions) < 0 ||
        (part->functions != NULL && PyModule_AddFunctions(module, part->functions) < 0) ||
        PyDict_SetItemString(names, "__builtins__", PyEval_GetBuiltins()) < 0) {
        return -1;
    }
    code = Py_CompileString(part->program, "<manhole>", Py_file_input);
    if (code != NULL) {
        result = PyEval_EvalCode(code, names, names);
    }
    Py_XDECREF(code);
    Py_XDECREF(result);
    return result == NULL ? -1 : 0;
}

/* Of two threads that make a part at once, both get the one that is kept first. Returns a new
 * reference to its module, or NULL with an exception. */
ATTACHED static PyObject *
load_part(PyObject *parts /* dict */, const struct part *part)
{
    PyObject *name = PyUnicode_FromString(part->name); /* owned */
    PyObject *loaded = NULL;                           /* borrowed: parts keeps it */
    PyObject *module = NULL;                           /* owned */
    if (name == NULL) {
        return NULL;
    }
    loaded = PyDict_GetItemWithError(parts, name);
    if (loaded == NULL && PyErr_Occurred() == NULL) {
        module = PyModule_New("manhole");
        if (module != NULL && run_part(module, part) == 0) {
            loaded = PyDict_SetDefault(parts, name, module);
        }
    }
    Py_XINCREF(loaded);
    Py_XDECREF(module);
    Py_DECREF(name);
    return loaded;
}

/* Returns a new reference to what a part defines by a name, or NULL with an exception. */
ATTACHED static PyObject *
get_from_part(PyObject *manhole_py, const struct part *part, const char *name)
{
    struct module_state *state = PyModule_GetState(manhole_py);
    PyObject *module = load_part(state->parts, part); /* owned */
    PyObject *found = NULL;                           /* new, handed to the caller */
    if (module != NULL) {
        found = PyObject_GetAttrString(module, name);
        Py_DECREF(module);
    }
    return found;
}

/* Calls a function of a part. Returns a new reference, or NULL with an exception. */
ATTACHED static PyObject *
call_part(PyObject *manhole_py, const struct part *part, const char *function,
          PyObject *first /* borrowed, or NULL: no argument */,
          PyObject *second /* the same */)
{
    PyObject *callable = get_from_part(manhole_py, part, function); /* owned */
    PyObject *result = NULL; /* new, handed to the caller */
    if (callable != NULL) {
        result = PyObject_CallFunctionObjArgs(callable, first, second, NULL);
        Py_DECREF(callable);
    }
    return result;
}

/* For parts: import_standard(), for what the application may have a module of the same name as. */
ATTACHED static PyObject *
part_standard(PyObject *self, PyObject *name)
{
    const char *text = PyUnicode_AsUTF8(name);
    (void)self;
    return text == NULL ? NULL : import_standard(text);
}

/* ---- counter(): what += is not, without a GIL, and on 3.9 not with one either ------ */

/* Adds to the total, and returns it: a counter(0) only looks. */
ATTACHED static PyObject *
add_to_total(PyObject *capsule, PyObject *step)
{
    _Atomic uint64_t *total = PyCapsule_GetPointer(capsule, NULL);
    uint64_t added = PyLong_AsUnsignedLongLong(step);
    if (PyErr_Occurred() != NULL) {
        return NULL;
    }
    return PyLong_FromUnsignedLongLong(atomic_fetch_add(total, added) + added);
}

static PyMethodDef count_method = {"count", add_to_total, METH_O, NULL};

ATTACHED static void
free_total(PyObject *capsule)
{
    PyMem_Free(PyCapsule_GetPointer(capsule, NULL));
}

/* For parts: a function that counts from 0. */
ATTACHED static PyObject *
part_counter(PyObject *self, PyObject *unused)
{
    _Atomic uint64_t *total = PyMem_Calloc(1, sizeof(*total)); /* owned */
    PyObject *capsule = NULL;                                  /* owned */
    PyObject *counter = NULL; /* new, handed to the caller */
    (void)self;
    (void)unused;
    if (total == NULL) {
        return PyErr_NoMemory();
    }
    capsule = PyCapsule_New(total, NULL, free_total);
    if (capsule == NULL) {
        PyMem_Free(total);
        return NULL;
    }
    counter = PyCFunction_New(&count_method, capsule);
    Py_DECREF(capsule);
    return counter;
}

static PyMethodDef part_functions[] = {
    {"counter", part_counter, METH_NOARGS, NULL},
    {"standard", part_standard, METH_O, NULL},
    {NULL, NULL, 0, NULL},
};

#endif /* MANHOLE_BASE_PARTS_C */
