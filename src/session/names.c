/* Names: functions that stand at the prompt beside what the application has put there.
 * Runs on:  the session's thread, ATTACHED.
 * Touches:  the namespace of the console that it is given.
 * They print to sys.stdout, which is the client's in its session. A name that the application has
 * in `locals` stays the application's.
 * To add one: a row in console_functions[], and a sentence in docs/client.rst.
 */
#ifndef MANHOLE_SESSION_NAMES_C
#define MANHOLE_SESSION_NAMES_C

#include "../base/compat.c"
#include "../stacks/tasks.c"

/* Prints a text. Returns None, or NULL with an exception. */
ATTACHED static PyObject *
print_text(PyObject *text /* new: taken over; or NULL with an exception */)
{
    PyObject *file = text == NULL ? NULL : get_sys("stdout"); /* owned */
    int result = text == NULL ? -1 : 0;

    if (file != NULL && file != Py_None) {
        result = PyFile_WriteObject(text, file, Py_PRINT_RAW);
    }
    Py_XDECREF(file);
    Py_XDECREF(text);
    return result < 0 ? NULL : Py_NewRef(Py_None);
}

ATTACHED static PyObject *
print_tasks(PyObject *self, PyObject *unused)
{
    (void)self;
    (void)unused;
    return print_text(make_tasks_dump());
}

static PyMethodDef console_functions[] = {
    {"tasks", print_tasks, METH_NOARGS,
     "tasks()\n--\n\n"
     "Print the tasks of all asyncio loops: what each waits for, and who awaits it."},
};

/* Returns 0, or -1 with an exception. */
ATTACHED static int
add_console_functions(PyObject *names /* dict */)
{
    for (size_t i = 0; i < Py_ARRAY_LENGTH(console_functions); i++) {
        PyObject *function = PyCFunction_New(&console_functions[i], NULL); /* owned */
        int result =
            function == NULL
                ? -1
                : PyDict_SetItemString(names, console_functions[i].ml_name, function);
        Py_XDECREF(function);
        if (result < 0) {
            return -1;
        }
    }
    return 0;
}

#endif /* MANHOLE_SESSION_NAMES_C */
