/* Serve: how a session ends, and the ways to serve a client that are no console.
 * Runs on:  the session's thread, ATTACHED.
 * Touches:  the session's own fields.
 */
#ifndef MANHOLE_SESSION_SERVE_C
#define MANHOLE_SESSION_SERVE_C

#include "../base/compat.c"
#include "../base/state.c"
#include "../base/locks.c"
#include "../base/basics.c"
#include "../base/log.c"
#include "../base/library.c"
#include "output.c"
#include "streams.c"
#include "interrupt.c"
#include "imports.c"
#include "names.c"
#include "input.c"

/* Logs why a handler ended with an exception, and tells the client, which would see but an end. */
ATTACHED static void
log_handler_exception(struct session *session, const char *prefix)
{
    char line[LOG_LINE_SIZE];
    char text[LOG_LINE_SIZE / 2];
    PyObject *exception = NULL; /* owned */
    if (PyErr_ExceptionMatches(PyExc_BrokenPipeError) ||
        PyErr_ExceptionMatches(PyExc_ConnectionResetError)) {
        PyErr_Clear();
        log_line("REPL client disconnected");
        return;
    }
    exception = take_exception();
    (void)snprintf(line, sizeof(line), "manhole: %s%s.\n", prefix,
                   describe_exception(exception, text, sizeof(text)));
    log_line("%s%s.", prefix, text);
    if (write_as(session, FRAME_ERROR, line, strlen(line)) < 0) {
        PyErr_Clear();
    }
    Py_XDECREF(exception);
}

/* Serves the session's client line by line, to the end. converse() opens the input, and may leave
 * an exception. Never raises. */
ATTACHED static void
serve_lines(struct session *session, PyObject *locals,
            void (*converse)(struct session *session, PyObject *locals))
{
    PyThreadState *tstate = NULL;
    converse(session, locals);
    if (PyErr_Occurred()) {
        log_handler_exception(session, "REPL failed with ");
    }
    log_line("DONE.");
    send_left(session);
    close_streams(session);
    Py_CLEAR(session->run.input);
    set_names(session, NULL);
    tstate = detach();
    hang_up(session);
    reattach(tstate);
    log_line("Cleaned up.");
}

/* exit() in the exec handler's lines, and in a console that a command shell goes on after: Python's
 * own would close its input. */
ATTACHED static PyObject *
py_exit(PyObject *module, PyObject *unused)
{
    (void)module;
    (void)unused;
    PyErr_SetNone(PyExc_SystemExit);
    return NULL;
}

/* Runs one line of the exec handler. Returns 0, or -1 with an exception. */
ATTACHED static int
exec_line(struct session *session, PyObject *line, PyObject *locals)
{
    PyObject *repr = NULL;          /* owned */
    PyObject *globals = NULL;       /* owned */
    PyObject *exit_function = NULL; /* owned */
    PyObject *source = NULL;        /* owned */
    PyObject *code = NULL;          /* owned */
    PyObject *value = NULL;         /* owned */
    struct text shown = {0};
    if ((repr = PyObject_Repr(line)) == NULL || (globals = PyDict_New()) == NULL ||
        (exit_function = PyObject_GetAttrString(manhole.module, "_exit")) == NULL ||
        (source = PyUnicode_AsEncodedString(line, "utf-8", "surrogatepass")) == NULL) {
        goto done;
    }
    append_str(&shown, repr);
    append_bytes(&shown, "", 1);
    log_line("Running: %s.", shown.failed ? "?" : shown.bytes);
    if ((size_t)PyBytes_GET_SIZE(source) != strlen(PyBytes_AS_STRING(source))) {
        PyErr_SetString(PyExc_ValueError, "source code string cannot contain null bytes");
        goto done;
    }
    code = Py_CompileString(PyBytes_AS_STRING(source), "<manhole>", Py_file_input);
    if (code != NULL &&
        PyDict_SetItemString(globals, "__builtins__", PyEval_GetBuiltins()) == 0 &&
        PyDict_SetItemString(globals, "exit", exit_function) == 0) {
        begin_running(session);
        value = PyEval_EvalCode(code, globals, locals == NULL ? globals : locals);
        end_running(session);
    }
done:
    free_text(&shown);
    Py_XDECREF(repr);
    Py_XDECREF(globals);
    Py_XDECREF(exit_function);
    Py_XDECREF(source);
    Py_XDECREF(code);
    Py_XDECREF(value);
    return PyErr_Occurred() ? -1 : 0;
}

/* Serves the client with the exec handler: each line is run, nothing is answered. Never
 * raises. */
ATTACHED static void
serve_exec(struct session *session, PyObject *locals)
{
    PyThreadState *tstate = NULL;
    bool over = false;
    (void)import_needed_modules(session, "");
    session->run.input = open_input(session);
    while (session->run.input != NULL && !over) {
        PyObject *line = await_line(session); /* owned */
        over = line == NULL || PyUnicode_GetLength(line) == 0 ||
               exec_line(session, line, locals) < 0;
        Py_XDECREF(line);
    }
    if (PyErr_ExceptionMatches(PyExc_SystemExit)) {
        PyErr_Clear();
        log_line("Exiting exec loop.");
    }
    else if (PyErr_Occurred()) {
        log_exception("ManholeConnectionThread failure: ", take_exception(), "");
    }
    Py_CLEAR(session->run.input);
    tstate = detach();
    hang_up(session);
    reattach(tstate);
}

/* The socket class that the standard library was born with: gevent's and eventlet's would
 * want a hub in the session's thread. Returns a new reference, or NULL with an exception. */
ATTACHED static PyObject *
get_socket_class(void)
{
    static const struct {
        const char *patcher;
        const char *getter;
        const char *format;
    } rows[] = {
        {"gevent.monkey", "get_original", "ss"},
        {"eventlet.patcher", "original", "s"},
    };
    PyObject *module = NULL; /* owned */
    PyObject *type = NULL;   /* new, handed to the caller */
    for (size_t i = 0; i < Py_ARRAY_LENGTH(rows) && type == NULL; i++) {
        PyObject *patchers = PyImport_GetModuleDict(); /* borrowed */
        PyObject *patcher =
            PyDict_GetItemString(patchers, rows[i].patcher); /* borrowed */
        if (patcher == NULL) {
            continue;
        }
        Py_XSETREF(module, PyObject_CallMethod(patcher, rows[i].getter, rows[i].format,
                                               "socket", "socket"));
        type = module != NULL && PyModule_Check(module)
                   ? PyObject_GetAttrString(module, "socket")
                   : Py_XNewRef(module);
        PyErr_Clear();
    }
    if (type == NULL) {
        Py_XSETREF(module, import_standard("socket"));
        type = module == NULL ? NULL : PyObject_GetAttrString(module, "socket");
    }
    Py_XDECREF(module);
    return type;
}

/* A socket.socket on a duplicate of the client's descriptor: the handler may close it.
 * Returns a new reference, or NULL with an exception. */
ATTACHED static PyObject *
make_client_object(struct session *session)
{
    PyObject *type = get_socket_class(); /* owned */
    PyObject *keywords = NULL;           /* owned */
    PyObject *empty = PyTuple_New(0);    /* owned */
    PyObject *client = NULL;             /* new */
    int fd = fcntl(kept_number(&session->fd), F_DUPFD_CLOEXEC,
                   0); /* owned until client has it */
    if (fd < 0) {
        PyErr_SetFromErrno(PyExc_OSError);
        goto done;
    }
    keywords = Py_BuildValue("{si}", "fileno", fd);
    if (type != NULL && keywords != NULL && empty != NULL) {
        client = PyObject_Call(type, empty, keywords);
    }
    if (client != NULL) {
        fd = -1;
    }
done:
    if (fd >= 0) {
        (void)close(fd);
    }
    Py_XDECREF(type);
    Py_XDECREF(keywords);
    Py_XDECREF(empty);
    return client;
}

/* Serves the client with the connection_handler option's callable, which may keep it: the session
 * closes its own descriptor in the end, and does not hang up. Never raises. */
ATTACHED static void
serve_callable(struct session *session, PyObject *callable)
{
    PyObject *client = NULL; /* owned */
    PyObject *result = NULL; /* owned */
    (void)import_needed_modules(session, NULL);
    client = make_client_object(session);
    if (client != NULL) {
        begin_running(session);
        result = PyObject_CallOneArg(callable, client);
        end_running(session);
    }
    Py_XDECREF(result);
    if (PyErr_Occurred()) {
        log_exception("ManholeConnectionThread failure: ", take_exception(), "");
    }
    Py_XDECREF(client);
}

#endif /* MANHOLE_SESSION_SERVE_C */
