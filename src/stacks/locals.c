/* Locals: the variables of each frame, as far as a screen has room for them.
 * Runs on:  a frozen copy's only thread, ATTACHED.
 * Touches:  whatever a repr does, in the copy; its SIGALRM.
 *
 * What a variable holds is told by its repr(), which is the application's code: it may ask a
 * database, wait for a lock that nobody gives back, count to a billion. So this runs in a frozen
 * copy, where it can hurt nobody and other threads stand still; reprlib keeps it from what is too
 * deep or too long, an alarm from what takes too long, and as a whole it has a few seconds, for a
 * client waits. What hangs in C in spite of the alarm ends with the client's patience.
 *
 * A module's frame has all of its functions and imports in it, which are not what one looks for.
 */
#ifndef MANHOLE_STACKS_LOCALS_C
#define MANHOLE_STACKS_LOCALS_C

#include "../base/compat.c"
#include "../base/state.c"
#include "../base/basics.c"
#include "../base/parts.c"
#include "model.c"
#include "look.c"
#include "dump.c"
#include "json.c"
#include "tasks.c"
#include "frames.c"

static const char locals_program[] =
    "reprlib, signals, time = standard('reprlib'), standard('_signal'), "
    "standard('time')\n"
    "types, printable = standard('types'), from_tasks('printable')\n"
    "EACH_S, ALL_S, MOST_NAMES, MOST_CHARACTERS = 0.2, 4, 30, 200\n"
    "until = time.monotonic() + ALL_S\n"
    "known_kinds = (types.ModuleType, types.FunctionType, types.BuiltinFunctionType, "
    "type)\n"
    "class Short(reprlib.Repr):\n"
    "    def repr_bytes(self, x, level):\n" /* they may be all that the process holds */
    "        return repr(x[:self.maxstring]) + ('...' if len(x) > self.maxstring else "
    "'')\n"
    "    repr_bytearray = repr_bytes\n"
    "short = Short()\n"
    "short.maxlevel, short.maxstring, short.maxother, short.maxlong = 3, 100, 150, 100\n"
    "\n"
    /* No Exception: what a repr catches, this is not. */
    "class Late(BaseException):\n"
    "    pass\n"
    "\n"
    /* One that was on its way when the repr was done comes to nothing. */
    "armed = []\n"
    "def on_alarm(*_):\n"
    "    if armed:\n"
    "        raise Late\n"
    "signals.signal(signals.SIGALRM, on_alarm)\n"
    "\n"
    "def tell(value):\n"
    "    kind = type(value).__name__\n"
    "    if time.monotonic() > until:\n"
    "        return f'<{kind}, not asked: there was no time left>'\n"
    "    try:\n"
    "        try:\n"
    "            armed.append(True)\n"
    "            signals.setitimer(signals.ITIMER_REAL, EACH_S, EACH_S)\n"
    "            text = short.repr(value)\n"
    "        finally:\n"
    "            armed.clear()\n"
    "            signals.setitimer(signals.ITIMER_REAL, 0)\n"
    "    except Late:\n"
    "        return f'<{kind}, whose repr takes too long>'\n"
    "    except BaseException as error:\n"
    "        return f'<{kind}, whose repr raises {type(error).__name__}>'\n"
    "    more = '...' if len(text) > MOST_CHARACTERS else ''\n"
    "    return printable(text[:MOST_CHARACTERS] + more)\n"
    "\n"
    /* (name, what it holds) of each, in their order. */
    "def tell_variables(frame):\n"
    "    names = dict(frame.f_locals)\n"
    "    if frame.f_code.co_name == '<module>':\n"
    "        names = {name: value for name, value in names.items()\n"
    "                 if name[:2] != '__' and type(value) not in known_kinds}\n"
    "    rows = [(printable(name), tell(value))\n"
    "            for name, value in list(names.items())[:MOST_NAMES]]\n"
    "    if len(names) > MOST_NAMES:\n"
    "        rows.append(('...', f'<{len(names) - MOST_NAMES} more>'))\n"
    "    return rows\n";

static PyMethodDef locals_functions[] = {
    {"from_tasks", frames_from_tasks, METH_O, NULL},
    {NULL, NULL, 0, NULL},
};

static const struct part locals_part = {
    .name = "locals", .program = locals_program, .functions = locals_functions};

/* ---- As they go out -------------------------------------------------------------------------- */

/* Appends one variable, with what it holds. */
typedef void append_variable(struct text *text, const struct text *name,
                             const struct text *value);

static void
append_dump_variable(struct text *text, const struct text *name, const struct text *value)
{
    append_string(text, "    ");
    append_bytes(text, name->bytes, name->length);
    append_string(text, " = ");
    append_bytes(text, value->bytes, value->length);
    append_string(text, "\n");
}

static void
append_json_variable(struct text *text, const struct text *name, const struct text *value)
{
    append_string(text, text->length == 0 ? "" : ", ");
    append_json_text(text, name);
    append_string(text, ": ");
    append_json_text(text, value);
}

/* Returns 0, or -1 with an exception. */
ATTACHED static int
append_variables(struct text *text, PyObject *tell, PyObject *frame,
                 append_variable *append)
{
    OWNED PyObject *rows = PyObject_CallFunctionObjArgs(tell, frame, NULL);
    if (rows == NULL) {
        return -1;
    }
    for (Py_ssize_t i = 0; i < PyList_GET_SIZE(rows); i++) {
        PyObject *row = PyList_GET_ITEM(rows, i); /* borrowed */
        struct text name = copy_str(PyTuple_GET_ITEM(row, 0));
        struct text value = copy_str(PyTuple_GET_ITEM(row, 1));
        append(text, &name, &value);
        free_text(&name);
        free_text(&value);
    }
    return 0;
}

/* The same for all frames of a thread. It is the look's own frames that are met again, for nothing
 * but this thread is there to run. */
ATTACHED static int
add_variables_of(struct stacks *stacks, const struct thread_stack *thread, PyObject *tell,
                 PyObject *top, append_variable *append)
{
    PyFrameObject *frame = (PyFrameObject *)Py_NewRef(top); /* owned */
    int result = 0;
    for (size_t i = 0; frame != NULL && i < thread->count && result == 0; i++) {
        result = append_variables(&stacks->locals[thread->first + i], tell,
                                  (PyObject *)frame, append);
        PyFrameObject *back = PyFrame_GetBack(frame);
        Py_DECREF(frame);
        frame = back;
    }
    Py_XDECREF(frame);
    return result;
}

/* Returns 0, or -1 with an exception. */
ATTACHED static int
add_all_variables(struct stacks *stacks, append_variable *append)
{
    OWNED PyObject *frames = collect_frames();
    OWNED PyObject *tell =
        frames == NULL ? NULL
                       : get_from_part(manhole.module, &locals_part, "tell_variables");
    int result = tell == NULL ? -1 : 0;
    for (size_t i = 0; i < stacks->thread_count && result == 0; i++) {
        const struct thread_stack *thread = &stacks->threads[i];
        OWNED PyObject *ident = PyLong_FromUnsignedLong(thread->ident);
        PyObject *top = ident == NULL ? NULL : PyDict_GetItemWithError(frames, ident);
        if (top != NULL && thread->is_shown) {
            result = add_variables_of(stacks, thread, tell, top, append);
        }
    }
    return result;
}

/* Adds the variables of all frames, or a note why they are not all there. Never raises. */
ATTACHED static void
add_locals(struct stacks *stacks, append_variable *append)
{
    stacks->locals = calloc(stacks->frame_count + 1, sizeof(*stacks->locals));
    if (stacks->locals == NULL) {
        stacks->failed = true;
    }
    else if (add_all_variables(stacks, append) < 0) {
        char why[200];
        OWNED PyObject *exception = take_exception();
        append_format(&stacks->note, "manhole: not all variables can be read: %s",
                      describe_exception(exception, why, sizeof(why)));
    }
}

ATTACHED static void
add_dump_locals(struct stacks *stacks)
{
    add_locals(stacks, append_dump_variable);
}

ATTACHED static void
add_json_locals(struct stacks *stacks)
{
    add_locals(stacks, append_json_variable);
}

#endif /* MANHOLE_STACKS_LOCALS_C */
