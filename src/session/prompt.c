/* Prompt: functions that stand at the prompt beside what the application has put there.
 * Runs on:  the session's thread, ATTACHED.
 * Touches:  the namespace of the console that it is given.
 * What they print goes to sys.stdout, which is the client's in its session. A name that the
 * application has in `locals` stays the application's.
 * To add one: a row in prompt_functions[], and a sentence in docs/client.rst.
 */
#ifndef MANHOLE_SESSION_PROMPT_C
#define MANHOLE_SESSION_PROMPT_C

#include "../base/compat.c"
#include "../base/state.c"
#include "../base/parts.c"
#include "../stacks/dump.c"
#include "../stacks/tasks.c"
#include "../stacks/frames.c"
#include "awaited.c"

/* Prints a text. Returns None, or NULL with an exception. */
ATTACHED static PyObject *
print_text(PyObject *text /* new: taken over; or NULL with an exception */)
{
    OWNED PyObject *printed = text;
    OWNED PyObject *file = text == NULL ? NULL : get_sys("stdout");

    if (printed == NULL || (file != NULL && file != Py_None &&
                            PyFile_WriteObject(printed, file, Py_PRINT_RAW) < 0)) {
        return NULL;
    }
    return Py_NewRef(Py_None);
}

ATTACHED static PyObject *
prompt_tasks(PyObject *self, PyObject *unused)
{
    (void)self;
    (void)unused;
    return print_text(make_tasks_dump());
}

/* Calls the function of the part. Returns new, or NULL with an exception. */
ATTACHED static PyObject *
call_frames(const char *name, PyObject *arguments, PyObject *keywords /* or NULL */)
{
    OWNED PyObject *function = get_from_part(manhole.module, &frames_part, name);
    return function == NULL ? NULL : PyObject_Call(function, arguments, keywords);
}

ATTACHED static PyObject *
prompt_frame(PyObject *self, PyObject *arguments, PyObject *keywords)
{
    (void)self;
    return call_frames("frame", arguments, keywords);
}

ATTACHED static PyObject *
prompt_debug(PyObject *self, PyObject *arguments, PyObject *keywords)
{
    (void)self;
    return call_frames("debug", arguments, keywords);
}

ATTACHED static PyObject *
prompt_threads(PyObject *self, PyObject *arguments)
{
    (void)self;
    return call_frames("threads", arguments, NULL);
}

ATTACHED static PyObject *
prompt_where(PyObject *self, PyObject *arguments)
{
    (void)self;
    return PyTuple_GET_SIZE(arguments) == 0 ? print_text(make_dump())
                                            : call_frames("where", arguments, NULL);
}

ATTACHED static PyObject *
prompt_loop(PyObject *self, PyObject *unused)
{
    (void)self;
    (void)unused;
    return call_part(manhole.module, &awaited_part, "running_loops", NULL, NULL);
}

static PyMethodDef prompt_functions[] = {
    {"frame", (PyCFunction)(void (*)(void))prompt_frame, METH_VARARGS | METH_KEYWORDS,
     "frame(thread=None, n=0)\n--\n\n"
     "Return the n-th frame, 0 is the innermost, of a thread, task or greenlet, given\n"
     "by its name, ident or native id, or itself. Its names are attributes (or\n"
     "items), which from CPython 3.13 on can be set; frame(...).run(\"code\") runs\n"
     "code in it. In a frozen copy, without a thread, of the one that had the GIL."},
    {"loop", prompt_loop, METH_NOARGS,
     "loop()\n--\n\n"
     "Return the loops of asyncio that run, a list: one of them runs what is awaited\n"
     "at the prompt."},
    {"debug", (PyCFunction)(void (*)(void))prompt_debug, METH_VARARGS | METH_KEYWORDS,
     "debug(thread=None, n=0)\n--\n\n"
     "Debug the n-th frame of a thread with pdb; without one, of the thread that had\n"
     "the GIL."},
    {"tasks", prompt_tasks, METH_NOARGS,
     "tasks()\n--\n\n"
     "Print the tasks of all asyncio loops, and all greenlets: what each waits for,\n"
     "and who awaits or has spawned it."},
    {"threads", prompt_threads, METH_VARARGS,
     "threads()\n--\n\n"
     "Print the threads that run Python: name, ident, native id, and where they are."},
    {"where", prompt_where, METH_VARARGS,
     "where([thread], /)\n--\n\n"
     "Print the stacks of all threads; of one thread or task, its frames with the\n"
     "numbers that frame() takes."},
};

/* In the living process pdb would hold a thread's frames while that goes on. */
static bool
is_for_copies(const PyMethodDef *function)
{
    return strcmp(function->ml_name, "debug") == 0;
}

/* Adds those whose names are not taken. Returns 0, or -1 with an exception. */
ATTACHED static int
add_prompt_functions(PyObject *names /* dict, perhaps one that looks into another */)
{
    for (size_t i = 0; i < Py_ARRAY_LENGTH(prompt_functions); i++) {
        if (is_for_copies(&prompt_functions[i]) && frozen.original == 0) {
            continue;
        }
        OWNED PyObject *name = PyUnicode_FromString(prompt_functions[i].ml_name);
        OWNED PyObject *function = PyCFunction_New(&prompt_functions[i], NULL);
        int taken =
            name == NULL || function == NULL ? -1 : PySequence_Contains(names, name);

        if (taken < 0 || (taken == 0 && PyDict_SetItem(names, name, function) < 0)) {
            return -1;
        }
    }
    return 0;
}

#endif /* MANHOLE_SESSION_PROMPT_C */
