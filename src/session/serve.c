/* Serve: how a session ends, and the ways to serve a client that are no console.
 * Runs on:  the session's thread, ATTACHED.
 * Touches:  the session's own fields.
 * What is the same for all: log_failure() and close_session(), whoever was served. Of the
 * options of connection_handler, "exec" runs lines and answers nothing, as python-manhole's
 * handle_connection_exec does; a callable gets the client's socket, and may keep it. The console
 * and the shell of commands have rooms of their own.
 */
#ifndef MANHOLE_SESSION_SERVE_C
#define MANHOLE_SESSION_SERVE_C

#include "../base/compat.c"
#include "../base/state.c"
#include "../base/basics.c"
#include "../base/log.c"
#include "../base/parts.c"
#include "output.c"
#include "borrowed.c"
#include "interrupt.c"
#include "imports.c"
#include "names.c"
#include "input.c"

enum {
    /* Characters of a statement in the log. */
    MAX_AUDITED = 200,
};

/* After an exception, if there is one: logs why the client's session ended, and tells the client,
 * which would see but an end. */
ATTACHED static void
log_failure(struct session *session, const char *prefix)
{
    char line[LOG_LINE_SIZE];
    char text[LOG_LINE_SIZE / 2];
    if (!PyErr_Occurred()) {
        return;
    }
    if (PyErr_ExceptionMatches(PyExc_BrokenPipeError) ||
        PyErr_ExceptionMatches(PyExc_ConnectionResetError)) {
        PyErr_Clear();
        log_line("REPL client disconnected");
        return;
    }
    OWNED PyObject *exception = take_exception();
    (void)snprintf(line, sizeof(line), "manhole: %s%s.\n", prefix,
                   describe_exception(exception, text, sizeof(text)));
    log_line("%s%s.", prefix, text);
    if (write_as(session, FRAME_ERROR, line, strlen(line)) < 0) {
        PyErr_Clear();
    }
}

/* The end of every session but a callable's: what waits goes out, all is put back, and the client
 * hears no more. Never raises. */
ATTACHED static void
close_session(struct session *session)
{
    send_left(session);
    close_streams(session);
    Py_CLEAR(session->run.input);
    set_names(session, NULL);
    PyThreadState *tstate = detach();
    hang_up(session);
    reattach(tstate);
}

/* Serves the session's client line by line, to the end. converse() opens the input, and may leave
 * an exception. Never raises. */
ATTACHED static void
serve_lines(struct session *session, PyObject *locals,
            void (*converse)(struct session *session, PyObject *locals))
{
    converse(session, locals);
    log_failure(session, "REPL failed with ");
    log_line("DONE.");
    close_session(session);
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

/* Logs what is run. Returns 0, or -1 with an exception. */
ATTACHED static int
log_source(PyObject *line)
{
    struct text shown = {0};
    OWNED PyObject *repr = PyObject_Repr(line);
    if (repr == NULL) {
        return -1;
    }
    append_str(&shown, repr);
    append_bytes(&shown, "", 1);
    log_line("Running: %s.", shown.failed ? "?" : shown.bytes);
    free_text(&shown);
    return 0;
}

/* Logs who runs what: its first line, cut short, as a literal. Of the exec handler log_source()
 * does. Never raises. */
ATTACHED static void
log_audit(const struct session *session,
          PyObject *source /* str, or NULL with an exception */)
{
    if (!manhole.options.audit || target_line(NULL, 0) == LOG_NOWHERE) {
        return;
    }
    OWNED PyObject *bare =
        source == NULL ? NULL : PyObject_CallMethod(source, "strip", NULL);
    Py_ssize_t length = bare == NULL ? 0 : PyUnicode_GetLength(bare);
    Py_ssize_t shown = length < MAX_AUDITED ? length : MAX_AUDITED;
    Py_ssize_t end = length == 0 ? -1 : PyUnicode_FindChar(bare, '\n', 0, shown, 1);
    shown = end >= 0 ? end : shown;
    OWNED PyObject *first = length == 0 ? NULL : PyUnicode_Substring(bare, 0, shown);
    OWNED PyObject *literal =
        first == NULL ? NULL
                      : PyUnicode_FromFormat("%R%s", first, shown < length ? " ..." : "");
    const char *text = literal == NULL ? NULL : PyUnicode_AsUTF8(literal);
    if (text != NULL) {
        log_line("Running for %s: %s", describe_peer(&session->peer).text, text);
    }
    PyErr_Clear();
}

/* Runs one line of the exec handler. Returns 0, or -1 with an exception. */
ATTACHED static int
exec_line(struct session *session, PyObject *line, PyObject *locals)
{
    OWNED PyObject *leave = PyObject_GetAttrString(manhole.module, "_exit");
    OWNED PyObject *globals = PyDict_New();
    OWNED PyObject *source = PyUnicode_AsEncodedString(line, "utf-8", "surrogatepass");
    if (leave == NULL || globals == NULL || source == NULL || log_source(line) < 0) {
        return -1;
    }
    if ((size_t)PyBytes_GET_SIZE(source) != strlen(PyBytes_AS_STRING(source))) {
        PyErr_SetString(PyExc_ValueError, "source code string cannot contain null bytes");
        return -1;
    }
    OWNED PyObject *code =
        Py_CompileString(PyBytes_AS_STRING(source), "<manhole>", Py_file_input);
    if (code == NULL ||
        PyDict_SetItemString(globals, "__builtins__", PyEval_GetBuiltins()) < 0 ||
        PyDict_SetItemString(globals, "exit", leave) < 0) {
        return -1;
    }

    begin_running(session);
    OWNED PyObject *value =
        PyEval_EvalCode(code, globals, locals == NULL ? globals : locals);
    end_running(session);
    return value == NULL ? -1 : 0;
}

/* Serves the client with the exec handler: each line is run, nothing is answered. Never
 * raises. */
ATTACHED static void
serve_exec(struct session *session, PyObject *locals)
{
    bool over = false;
    (void)import_needed_modules(session, "");
    while (!over) {
        OWNED PyObject *line = await_line(session);
        over = line == NULL || PyUnicode_GetLength(line) == 0 ||
               exec_line(session, line, locals) < 0;
    }
    if (PyErr_ExceptionMatches(PyExc_SystemExit)) {
        PyErr_Clear();
        log_line("Exiting exec loop.");
    }
    else if (PyErr_Occurred()) {
        log_exception("ManholeConnectionThread failure: ", take_exception(), "");
    }
    close_session(session);
}

/* What the connection_handler option's callable gets: a socket on a duplicate of the client's
 * descriptor, which it may close, of the class that the standard library was born with. gevent's
 * and eventlet's would want a hub in the session's thread. */
static const char client_program[] =
    "os, sys = standard('os'), standard('sys')\n"
    "def socket_class():\n"
    "    gevent = sys.modules.get('gevent.monkey')\n"
    "    eventlet = sys.modules.get('eventlet.patcher')\n"
    "    try:\n"
    "        if gevent is not None:\n"
    "            return gevent.get_original('socket', 'socket')\n"
    "        if eventlet is not None:\n"
    "            return eventlet.original('socket').socket\n"
    "    except Exception:\n"
    "        pass\n" /* neither is as we know it */
    "    return standard('socket').socket\n"
    "def make_client(fd):\n"
    "    fd = os.dup(fd)\n"
    "    try:\n"
    "        return socket_class()(fileno=fd)\n"
    "    except BaseException:\n"
    "        os.close(fd)\n"
    "        raise\n";

static const struct part client_part = {.name = "client", .program = client_program};

/* Returns a new reference, or NULL with an exception. */
ATTACHED static PyObject *
make_client_object(struct session *session)
{
    OWNED PyObject *fd = PyLong_FromLong(kept_number(&session->fd));
    return fd == NULL ? NULL
                      : call_part(manhole.module, &client_part, "make_client", fd, NULL);
}

/* Serves the client with the connection_handler option's callable, which may keep it: the session
 * closes its own descriptor in the end, and does not hang up. Never raises. */
ATTACHED static void
serve_callable(struct session *session, PyObject *callable)
{
    (void)import_needed_modules(session, NULL);
    OWNED PyObject *client = make_client_object(session);
    if (client != NULL) {
        begin_running(session);
        PyObject *result = PyObject_CallOneArg(callable, client); /* owned */
        end_running(session);
        Py_XDECREF(result);
    }
    if (PyErr_Occurred()) {
        log_exception("ManholeConnectionThread failure: ", take_exception(), "");
    }
}

#endif /* MANHOLE_SESSION_SERVE_C */
