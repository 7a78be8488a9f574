/* Parts: what of manhole.c is written in Python, compiled at its first use.
 * Runs on:  any thread, ATTACHED.
 * Touches:  nothing but what a part itself says.
 *
 * Why Python. What wraps functions of the application is best made of what Python wraps functions
 * with: a function that functools.wraps() has dressed is one to inspect, pickle, weakref and every
 * framework.
 *
 * How it works. A part is a module that stands in no sys.modules: an interpreter has it once, in
 * module_state.parts, and import of manhole compiles none. Beside what its own row names it finds
 * three functions of C in its namespace: standard(), which is import_standard(), counter() and
 * process_id().
 *
 * Threads may run it at the same time, without a GIL as well, so a part keeps to what is one step
 * there: a read or write of an attribute, a method of a set, dict or list in C. Locks it has none:
 * whoever holds one could be gone with a fork, or be interrupted by a signal handler that wants it.
 *
 * To add one: its text and a static const struct part in the room that calls it.
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

static PyMethodDef part_functions[4];

/* Runs a part in its new module. Returns 0, or -1 with an exception. Its frames are seen in stacks
 * and tracebacks, as File "<manhole>". */
ATTACHED static int
run_part(PyObject *module, const struct part *part)
{
    PyObject *names = PyModule_GetDict(module); /* borrowed */
    if (PyModule_AddFunctions(module, part_functions) < 0 ||
        (part->functions != NULL && PyModule_AddFunctions(module, part->functions) < 0) ||
        PyDict_SetItemString(names, "__builtins__", PyEval_GetBuiltins()) < 0) {
        return -1;
    }
    OWNED PyObject *code = Py_CompileString(part->program, "<manhole>", Py_file_input);
    OWNED PyObject *result = code == NULL ? NULL : PyEval_EvalCode(code, names, names);
    return result == NULL ? -1 : 0;
}

/* Of two threads that make a part at once, both get the one that is kept first. Returns a new
 * reference to its module, or NULL with an exception. */
ATTACHED static PyObject *
load_part(PyObject *parts /* dict */, const struct part *part)
{
    OWNED PyObject *name = PyUnicode_FromString(part->name);
    if (name == NULL) {
        return NULL;
    }
    PyObject *loaded =
        PyDict_GetItemWithError(parts, name); /* borrowed: parts keeps it */
    if (loaded != NULL || PyErr_Occurred() != NULL) {
        return Py_XNewRef(loaded);
    }
    OWNED PyObject *module = PyModule_New("manhole");
    if (module == NULL || run_part(module, part) < 0) {
        return NULL;
    }
    return Py_XNewRef(PyDict_SetDefault(parts, name, module));
}

/* Returns a new reference to what a part defines by a name, or NULL with an exception. */
ATTACHED static PyObject *
get_from_part(PyObject *manhole_py, const struct part *part, const char *name)
{
    struct module_state *state = PyModule_GetState(manhole_py);
    OWNED PyObject *module = load_part(state->parts, part);
    return module == NULL ? NULL : PyObject_GetAttrString(module, name);
}

/* Calls a function of a part. Returns a new reference, or NULL with an exception. */
ATTACHED static PyObject *
call_part(PyObject *manhole_py, const struct part *part, const char *function,
          PyObject *first /* borrowed, or NULL: no argument */,
          PyObject *second /* the same */)
{
    OWNED PyObject *callable = get_from_part(manhole_py, part, function);
    return callable == NULL ? NULL
                            : PyObject_CallFunctionObjArgs(callable, first, second, NULL);
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
    (void)self;
    (void)unused;
    if (total == NULL) {
        return PyErr_NoMemory();
    }
    OWNED PyObject *capsule = PyCapsule_New(total, NULL, free_total);
    if (capsule == NULL) {
        PyMem_Free(total);
        return NULL;
    }
    return PyCFunction_New(&count_method, capsule);
}

/* For parts: the process that is looked at, also from a frozen copy of it. */
ATTACHED static PyObject *
part_process_id(PyObject *self, PyObject *unused)
{
    (void)self;
    (void)unused;
    return PyLong_FromLong(process_id());
}

static PyMethodDef part_functions[] = {
    {"counter", part_counter, METH_NOARGS, NULL},
    {"process_id", part_process_id, METH_NOARGS, NULL},
    {"standard", part_standard, METH_O, NULL},
    {NULL, NULL, 0, NULL},
};

#endif /* MANHOLE_BASE_PARTS_C */
