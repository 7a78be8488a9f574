/* Programs: code that a client sends whole, with arguments, and whose status it waits for.
 * Runs on:  the session's thread: DETACHED while the request comes, then ATTACHED.
 * Touches:  the session's own fields; the type of the module sys, under sys_lock.
 * sys.argv is the session's own as its streams are. Nothing stands in for the list, though, for C
 * code asks what is a list and reads its memory: while programs run, sys is of a class of ours that
 * has argv as a property. What is in sys.__dict__ stays, and that is what C code sees.
 */
#ifndef MANHOLE_SESSION_PROGRAMS_C
#define MANHOLE_SESSION_PROGRAMS_C

#include "../base/compat.c"
#include "../base/state.c"
#include "../base/locks.c"
#include "../base/basics.c"
#include "../base/log.c"
#include "output.c"
#include "streams.c"
#include "console.c"

enum {
    /* Bytes of a request on a side channel: a program with its arguments. */
    MAX_PROGRAM = 16 * 1024 * 1024,
    /* Without a byte of a request that has begun, or should have. */
    REQUEST_TIMEOUT_MS = 10000,
};

ATTACHED static PyObject *
get_argv(PyObject *sys, void *unused)
{
    struct session *session = console_session();
    PyObject *argv = NULL; /* new, handed to the caller */
    (void)unused;
    if (session != NULL && session->run.arguments != NULL) {
        return Py_NewRef(session->run.arguments);
    }
    argv = PyMapping_GetItemString(PyModule_GetDict(sys), "argv");
    if (argv == NULL) {
        PyErr_SetString(PyExc_AttributeError, "module 'sys' has no attribute 'argv'");
    }
    return argv;
}

ATTACHED static int
set_argv(PyObject *sys, PyObject *value /* NULL: delete it */, void *unused)
{
    struct session *session = console_session();
    PyObject *names = PyModule_GetDict(sys); /* borrowed */
    (void)unused;
    if (session != NULL && session->run.arguments != NULL && value == NULL) {
        PyErr_SetString(PyExc_AttributeError, "sys.argv cannot be deleted here");
        return -1;
    }
    if (session != NULL && session->run.arguments != NULL) {
        Py_SETREF(session->run.arguments, Py_NewRef(value));
        return 0;
    }
    return value != NULL ? PyDict_SetItemString(names, "argv", value)
                         : PyDict_DelItemString(names, "argv");
}

static PyGetSetDef argv_attribute = {"argv", get_argv, set_argv, NULL, NULL};

/* The class of sys while programs run: a subclass of what it is without us. Returns a new
 * reference, or NULL with an exception. */
ATTACHED static PyObject *
get_sys_type(PyTypeObject *base)
{
    struct module_state *state = installed_state();
    PyObject *descriptor = NULL; /* owned */
    PyObject *type = NULL;       /* owned, handed to the caller */
    if (state->sys_type != NULL && ((PyTypeObject *)state->sys_type)->tp_base == base) {
        return Py_NewRef(state->sys_type);
    }
    type = PyObject_CallFunction((PyObject *)&PyType_Type, "s(O){ss}", base->tp_name,
                                 base, "__module__", "builtins");
    if (type != NULL) {
        descriptor = PyDescr_NewGetSet((PyTypeObject *)type, &argv_attribute);
    }
    if (descriptor == NULL || PyObject_SetAttrString(type, "argv", descriptor) < 0) {
        Py_CLEAR(type);
    }
    else {
        Py_XSETREF(state->sys_type, Py_NewRef(type)); /* kept: never freed while in use */
    }
    Py_XDECREF(descriptor);
    return type;
}

/* Gives sys its own class again, where ours is still in place. Under sys_lock. Never raises. */
ATTACHED static void
give_back_sys(void)
{
    PyObject *sys = PyDict_GetItemString(PyImport_GetModuleDict(), "sys"); /* borrowed */
    if (sys != NULL && manhole.sys_class != NULL &&
        (PyObject *)Py_TYPE(sys) == installed_state()->sys_type &&
        PyObject_SetAttrString(sys, "__class__", manhole.sys_class) < 0) {
        PyErr_Clear();
    }
    Py_CLEAR(manhole.sys_class);
}

/* From here on sys.argv is the session's in its thread. Returns 0, or -1 with an exception. */
ATTACHED static int
open_arguments(struct session *session, PyObject *arguments)
{
    PyObject *sys = NULL;  /* borrowed */
    PyObject *type = NULL; /* owned */
    int result = -1;
    lock_attached(&sys_lock);
    sys = PyDict_GetItemString(PyImport_GetModuleDict(), "sys");
    if (manhole.programs > 0) {
        result = 0;
    }
    else if (sys != NULL && (type = get_sys_type(Py_TYPE(sys))) != NULL) {
        manhole.sys_class = Py_NewRef((PyObject *)Py_TYPE(sys));
        result = PyObject_SetAttrString(sys, "__class__", type);
    }
    if (result == 0) {
        manhole.programs++;
        session->run.arguments = Py_NewRef(arguments);
    }
    else {
        Py_CLEAR(manhole.sys_class);
    }
    unlock(&sys_lock);
    Py_XDECREF(type);
    return result;
}

ATTACHED static void
close_arguments(struct session *session)
{
    if (session->run.arguments != NULL) {
        Py_CLEAR(session->run.arguments);
        lock_attached(&sys_lock);
        manhole.programs--;
        if (manhole.programs == 0) {
            give_back_sys();
        }
        unlock(&sys_lock);
    }
}

/* Reads some bytes of a request. Returns how many; 0: the client stalls, leaves or ends them. */
DETACHED static size_t
receive_some(struct session *session, char *bytes, size_t size)
{
    struct pollfd client = {.fd = atomic_load(&session->fd.number), .events = POLLIN};
    for (;;) {
        int ready = poll(&client, 1, REQUEST_TIMEOUT_MS);
        ssize_t got = ready > 0
                          ? recv(kept_number(&session->fd), bytes, size, MSG_DONTWAIT)
                          : ready;
        if (got >= 0) {
            return (size_t)got;
        }
        if (errno != EINTR && errno != EAGAIN) {
            return 0;
        }
    }
}

/* Reads so many bytes of a request. Returns false when not all come. */
DETACHED static bool
receive_bytes(struct session *session, char *bytes, size_t length)
{
    while (length > 0) {
        size_t got = receive_some(session, bytes, length);
        if (got == 0) {
            return false;
        }
        bytes += got;
        length -= got;
    }
    return true;
}

/* Tells the client why its request is none. Returns false, for receive() to return. */
DETACHED static bool
refuse_request(struct session *session, const char *why)
{
    char line[160];
    int length = snprintf(line, sizeof(line), "manhole: %s\n", why);
    (void)send(kept_number(&session->fd), line, (size_t)length,
               MSG_NOSIGNAL | MSG_DONTWAIT);
    log_line("Turned a client away: %s", why);
    return false;
}

/* Whether a client may send code: not where it gets a shell of commands without a console. */
static bool
may_run_code(void)
{
    bool may = false;
    lock_leaf(&table_lock);
    may = manhole.options.connection_handler.kind != HANDLER_COMMANDS ||
          (manhole.options.enable & FEATURE_CONSOLE) != 0;
    unlock(&table_lock);
    return may;
}

/* Four bytes of length, the high one first; then the fields, a NUL between two: the file that
 * tracebacks name, the elements of sys.argv, the source. */
DETACHED static bool
receive_program(struct session *session)
{
    unsigned char head[4];
    size_t length = 0;
    if (!may_run_code()) {
        return refuse_request(session,
                              "nobody may run code here: this manhole has a shell "
                              "of commands, without its console");
    }
    if (!receive_bytes(session, (char *)head, sizeof(head))) {
        return refuse_request(session, "no program came");
    }
    length =
        (size_t)head[0] << 24 | (size_t)head[1] << 16 | (size_t)head[2] << 8 | head[3];
    if (length > MAX_PROGRAM) {
        return refuse_request(session, "the program is larger than 16 MiB");
    }
    session->run.request = malloc(length + 1);
    if (session->run.request == NULL) {
        return refuse_request(session, "there is no memory for the program");
    }
    session->run.request[length] = '\0';
    session->run.request_length = length;
    if (!receive_bytes(session, session->run.request, length)) {
        return refuse_request(session, "only a part of the program came");
    }
    if (memchr(session->run.request, '\0', length) == NULL) {
        return refuse_request(session, "the program has no file name");
    }
    return true;
}

/* Where the program's text begins in the request: behind the last NUL. */
static const char *
find_program(const struct session *session)
{
    return (const char *)memrchr(session->run.request, '\0',
                                 session->run.request_length) +
           1;
}

ATTACHED static PyObject *
decode_field(const char *field)
{
    return PyUnicode_DecodeUTF8(field, (Py_ssize_t)strlen(field), "surrogateescape");
}

/* What sys.argv is to be. Returns a new list, or NULL with an exception. */
ATTACHED static PyObject *
make_arguments(const struct session *session)
{
    PyObject *arguments = PyList_New(0); /* owned, handed to the caller */
    const char *field = session->run.request + strlen(session->run.request) + 1;
    const char *end = find_program(session);
    while (arguments != NULL && field < end) {
        PyObject *argument = decode_field(field); /* owned */
        if (argument == NULL || PyList_Append(arguments, argument) < 0) {
            Py_CLEAR(arguments);
        }
        Py_XDECREF(argument);
        field += strlen(field) + 1;
    }
    return arguments;
}

/* Makes the session's namespace that of a program. Returns 0, or -1 with an exception. */
ATTACHED static int
add_program_names(struct session *session, PyObject *file)
{
    PyObject *name = PyUnicode_FromString("__main__"); /* owned */
    int result = name == NULL ? -1 : 0;
    if (result == 0) {
        result = PyDict_SetItemString(session->run.names, "__name__", name);
    }
    if (result == 0) {
        result = PyDict_SetItemString(session->run.names, "__builtins__",
                                      PyEval_GetBuiltins());
    }
    if (result == 0 && session->run.request[0] != '<') {
        result = PyDict_SetItemString(session->run.names, "__file__", file);
    }
    Py_XDECREF(name);
    return result;
}

/* Runs the program. Returns what it raised, new, or NULL. */
ATTACHED static PyObject *
run_program(struct session *session, PyObject *file)
{
    PyObject *code = NULL;   /* owned */
    PyObject *result = NULL; /* owned */
    PyObject *raised = NULL; /* new, handed to the caller */
    begin_running(session);
    code = Py_CompileStringObject(find_program(session), file, Py_file_input, NULL, -1);
    if (code != NULL) {
        result = PyEval_EvalCode(code, session->run.names, session->run.names);
    }
    raised = take_exception();
    end_running(session);
    Py_XDECREF(code);
    Py_XDECREF(result);
    return raised;
}

/* As format_raised(), with the traceback. The exception's __str__() may be anything: it can be
 * interrupted. Returns a new str, or NULL with an exception. */
ATTACHED static PyObject *
format_exception(struct session *session, PyObject *exception)
{
    PyObject *traceback = PyException_GetTraceback(exception); /* owned, or NULL */
    PyObject *text = NULL; /* new, handed to the caller */
    begin_running(session);
    text = format_raised(exception, traceback == NULL ? Py_None : traceback, false);
    end_running(session);
    Py_XDECREF(traceback);
    return text;
}

/* Shows what a program raised, and sets its exit status, as Python itself would at its end: the
 * number or text of SystemExit, the traceback of all else. Returns 0, or -1 with an exception. */
ATTACHED static int
end_program(struct session *session, PyObject *raised /* or NULL */, long *status)
{
    PyObject *code = NULL; /* owned */
    PyObject *text = NULL; /* owned */
    int result = -1;
    *status = raised == NULL ? 0 : 1;
    if (raised == NULL) {
        return 0;
    }
    if (!PyErr_GivenExceptionMatches(raised, PyExc_SystemExit)) {
        text = format_exception(session, raised);
    }
    else if ((code = PyObject_GetAttrString(raised, "code")) != NULL) {
        if (code == Py_None || PyLong_Check(code)) {
            *status = code == Py_None ? 0 : PyLong_AsLong(code);
            PyErr_Clear();
            Py_DECREF(code);
            return 0;
        }
        text = PyUnicode_FromFormat("%S\n", code);
    }
    if (text == NULL) {
        PyErr_Clear();
        text = PyUnicode_FromFormat("%s\n", Py_TYPE(raised)->tp_name);
    }
    if (text != NULL) {
        result = write_str_as(session, FRAME_ERROR, text);
    }
    Py_XDECREF(code);
    Py_XDECREF(text);
    return result;
}

/* All of a program's life once everything is in place. Returns 0, or -1 with an exception. */
ATTACHED static int
run_to_the_end(struct session *session)
{
    PyObject *file = decode_field(session->run.request); /* owned */
    PyObject *raised = NULL;                             /* owned */
    char status_text[32];
    long status = 0;
    int result = -1;
    log_line("Running a program: %.200s.", session->run.request);
    if (file != NULL && add_program_names(session, file) == 0) {
        raised = run_program(session, file);
        result = end_program(session, raised, &status);
    }
    if (result == 0) {
        int length = snprintf(status_text, sizeof(status_text), "%ld", status);
        result = write_as(session, FRAME_STATUS, status_text, (size_t)length);
    }
    Py_XDECREF(file);
    Py_XDECREF(raised);
    return result;
}

/* Runs the program that the client has sent. Never raises. */
ATTACHED static void
serve_program(struct session *session, PyObject *locals)
{
    PyObject *arguments = NULL; /* owned */
    PyThreadState *tstate = NULL;
    (void)import_needed_modules(session, "");
    arguments = make_arguments(session);
    if (arguments != NULL) {
        set_names(session, make_names(locals, session->channel->live_names));
    }
    if (session->run.names != NULL) {
        session->run.input = open_input(session);
    }
    if (session->run.input != NULL && open_streams(session) == 0 &&
        open_arguments(session, arguments) == 0) {
        (void)run_to_the_end(session);
    }
    Py_XDECREF(arguments);
    if (PyErr_Occurred()) {
        log_handler_exception(session, "Program failed with ");
    }
    close_arguments(session);
    close_streams(session);
    Py_CLEAR(session->run.input);
    set_names(session, NULL);
    tstate = detach();
    hang_up(session);
    reattach(tstate);
}

#endif /* MANHOLE_SESSION_PROGRAMS_C */
