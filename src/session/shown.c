/* Shown: what a client sees of values and of exceptions.
 * Runs on:  the session's thread, ATTACHED; py_displayhook() in every thread.
 * Touches:  sys.last_exc and its relatives, through borrow_attribute().
 */
#ifndef MANHOLE_SESSION_SHOWN_C
#define MANHOLE_SESSION_SHOWN_C

#include "../base/compat.c"
#include "../base/state.c"
#include "../base/locks.c"
#include "../base/basics.c"
#include "../base/library.c"
#include "output.c"
#include "streams.c"

enum {
    /* Characters of a value that goes out with the prompt. */
    MAX_SHOWN = 4096,
};

/* Remembers an exception for pdb.pm() as sys.last_value and its relatives, until the last
 * client leaves. Never raises. */
ATTACHED static void
remember_exception(PyObject *type, PyObject *value, PyObject *traceback)
{
    struct held held;
    const struct {
        const char *name;
        PyObject *value;
    } rows[] = {
        {"last_type", type},
        {"last_value", value},
        {"last_traceback", traceback},
        {"last_exc", value},
    };
    lock_sys(&held);
    for (size_t i = 0; i < Py_ARRAY_LENGTH(rows); i++) {
        if (borrow_attribute(borrowed_row(rows[i].name), rows[i].value) < 0) {
            PyErr_Clear();
        }
    }
    unlock_sys(&held);
}

/* What C alone makes of an exception, where the module traceback cannot be had. Returns a new
 * str, or NULL with an exception. */
ATTACHED static PyObject *
format_plainly(PyObject *exception, PyObject *traceback /* or None */)
{
    PyObject *io = PyImport_ImportModule(IO_MODULE); /* owned */
    PyObject *file = NULL;                           /* owned */
    PyObject *shown = NULL;                          /* owned */
    PyObject *text = NULL;                           /* new, handed to the caller */
    if (io != NULL) {
        file = PyObject_CallMethod(io, "StringIO", NULL);
    }
    if (file != NULL &&
        (traceback == Py_None || PyTraceBack_Print(traceback, file) == 0)) {
        shown = PyObject_CallMethod(file, "getvalue", NULL);
    }
    if (shown != NULL) {
        text = PyUnicode_FromFormat("%U%s: %S\n", shown, Py_TYPE(exception)->tp_name,
                                    exception);
    }
    Py_XDECREF(io);
    Py_XDECREF(file);
    Py_XDECREF(shown);
    return text;
}

/* What traceback.format_exception() makes of an exception, or without its traceback what
 * format_exception_only() does. Returns a new str, or NULL with an exception. */
ATTACHED static PyObject *
format_raised(PyObject *exception, PyObject *traceback /* or None */, bool alone)
{
    PyObject *type = (PyObject *)Py_TYPE(exception); /* borrowed */
    PyObject *module = import_standard("traceback"); /* owned */
    PyObject *empty = NULL;                          /* owned */
    PyObject *lines = NULL;                          /* owned */
    PyObject *text = NULL;                           /* new, handed to the caller */
    if (module == NULL) {
        PyErr_Clear(); /* it has been told */
        return format_plainly(exception, alone ? Py_None : traceback);
    }
    lines = alone ? PyObject_CallMethod(module, "format_exception_only", "OO", type,
                                        exception)
                  : PyObject_CallMethod(module, "format_exception", "OOO", type,
                                        exception, traceback);
    empty = lines == NULL ? NULL : PyUnicode_FromString("");
    text = empty == NULL ? NULL : PyUnicode_Join(empty, lines);
    Py_DECREF(module);
    Py_XDECREF(empty);
    Py_XDECREF(lines);
    return text;
}

/* Writes a text to the client, which it takes over. Returns None, or NULL with an exception. */
ATTACHED static PyObject *
show_text(PyObject *text /* new, or NULL with an exception */)
{
    int result = text == NULL ? -1 : 0;
    if (text != NULL && current_session != NULL) {
        result = write_client_str(current_session, text);
    }
    Py_XDECREF(text);
    return result < 0 ? NULL : Py_NewRef(Py_None);
}

/* Shows the exception being handled, less the code module's own frame. */
ATTACHED static PyObject *
show_exception(bool alone)
{
    PyObject *type = NULL;         /* owned */
    PyObject *value = NULL;        /* owned */
    PyObject *raised_in = NULL;    /* owned */
    PyObject *ours_skipped = NULL; /* owned */
    PyObject *text = NULL;         /* new, handed to show_text() */
    PyErr_GetExcInfo(&type, &value, &raised_in);
    if (value == NULL) {
        PyErr_SetString(PyExc_RuntimeError, "no exception is being handled");
        goto done;
    }
    ours_skipped = raised_in == NULL || raised_in == Py_None
                       ? Py_NewRef(Py_None)
                       : PyObject_GetAttrString(raised_in, "tb_next");
    if (ours_skipped == NULL) {
        goto done;
    }
    if (type == NULL) {
        type = Py_NewRef((PyObject *)Py_TYPE(value));
    }
    remember_exception(type, value, ours_skipped);
    text = format_raised(value, ours_skipped, alone);
done:
    Py_XDECREF(type);
    Py_XDECREF(value);
    Py_XDECREF(raised_in);
    Py_XDECREF(ours_skipped);
    return show_text(text);
}

/* Python would call it a codec's error, in a text that its client never typed. */
ATTACHED static PyObject *
show_undecodable(void)
{
    static const char message[] =
        "manhole: what came is not UTF-8, so it was not run; type it again, and see "
        "that the terminal sends UTF-8\n";
    struct session *session = current_session;
    return session != NULL && write_client(session, message, sizeof(message) - 1) < 0
               ? NULL
               : Py_NewRef(Py_None);
}

/* Shows a value to the client: along with the prompt when nothing is left to run before that, for
 * each send lets go of the GIL, which other threads may keep for some time. */
ATTACHED static int
show_value(struct session *session, PyObject *shown /* str */)
{
    /* A function that calls the hook has other locals. */
    if (session->run.one_act && PyUnicode_GET_LENGTH(shown) <= MAX_SHOWN &&
        PyEval_GetLocals() == session->run.names) {
        session->run.one_act = false;
        append_str(&session->outbox.unsent, shown);
        return check_unsent(session);
    }
    PyErr_Clear(); /* without any frame there are no locals */
    return write_client_str(session, shown);
}

/* sys.displayhook while clients have consoles: `_` is a name of the session, never of
 * builtins. */
ATTACHED static PyObject *
py_displayhook(PyObject *module, PyObject *value)
{
    struct session *session = console_session();
    PyObject *shown = NULL;  /* owned */
    PyObject *result = NULL; /* new, handed to the caller */
    (void)module;
    if (session == NULL) {
        PyObject *original = NULL; /* owned */
        lock_attached(&sys_lock);
        original = Py_XNewRef(borrowed_row("displayhook")->previous);
        unlock(&sys_lock);
        if (original == NULL) {
            original = get_sys("__displayhook__");
        }
        if (original != NULL) {
            result = PyObject_CallOneArg(original, value);
            Py_DECREF(original);
            return result;
        }
        return Py_NewRef(Py_None);
    }
    if (value == Py_None) {
        return Py_NewRef(Py_None);
    }
    shown = PyUnicode_FromFormat("%R\n", value);
    if (shown != NULL && show_value(session, shown) == 0 &&
        (session->run.names == NULL ||
         !PyDict_Check(session->run.names) || /* a plugin's command has none */
         PyDict_SetItemString(session->run.names, "_", value) == 0)) {
        result = Py_NewRef(Py_None);
    }
    Py_XDECREF(shown);
    return result;
}

/* Tells the client what the compiler has given up on. Returns 0, or -1 with an exception. */
ATTACHED static int
show_compiler_error(void)
{
    PyObject *error = take_exception();                                 /* owned */
    PyObject *written = show_text(format_raised(error, Py_None, true)); /* owned */
    Py_XDECREF(error);
    Py_XDECREF(written);
    return written == NULL ? -1 : 0;
}

#endif /* MANHOLE_SESSION_SHOWN_C */
