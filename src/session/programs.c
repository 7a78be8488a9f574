/* Programs: code that a client sends whole, with arguments, and whose status it waits for.
 * Runs on:  the session's thread: DETACHED while the request comes, then ATTACHED.
 * Touches:  the session's own fields; the class of the module sys, under sys_lock.
 *
 * How it works. The request comes whole before anything of it runs (receive_program), for half a
 * program may do harm that the whole one would not. It is then run as a script would be: it is
 * __main__ in a namespace of its own, with the client's streams, and sys.argv is what the client
 * has given. What the client gets is in frames, so stdout, stderr and the exit status are apart;
 * the last is the status, and a connection that ends without one says that the process was gone
 * first.
 *
 * How sys.argv is the program's own. What a program imports, argparse above all, reads sys.argv by
 * itself, so a namespace with another sys in it is not enough; and the application, which may start
 * itself again by its arguments, or hand them to the children of multiprocessing, must never see
 * the program's. Nothing can stand in for the list, for C code asks what is a list and reads its
 * memory. So it is the attribute that answers by thread: while programs run, sys is of a class
 * derived from its own, with a property argv. sys.__dict__, which is what C code sees, stays as it
 * is.
 */
#ifndef MANHOLE_SESSION_PROGRAMS_C
#define MANHOLE_SESSION_PROGRAMS_C

#include "../base/compat.c"
#include "../base/state.c"
#include "../base/locks.c"
#include "../base/basics.c"
#include "../base/log.c"
#include "../base/parts.c"
#include "output.c"
#include "streams.c"
#include "borrowed.c"
#include "interrupt.c"
#include "imports.c"
#include "shown.c"
#include "names.c"
#include "input.c"
#include "serve.c"

enum {
    /* Bytes of a request on a side channel: a program with its arguments. */
    MAX_PROGRAM = 16 * 1024 * 1024,
    /* Without a byte of a request that has begun, or should have. */
    REQUEST_TIMEOUT_MS = 10000,
};

static const char program_program[] =
    "sys = standard('sys')\n"
    /* What sys.argv is, asked of sys by any thread. */
    "def get_argv(module):\n"
    "    arguments = own_argv()\n"
    "    if arguments is not None:\n"
    "        return arguments\n"
    "    try:\n"
    "        return module.__dict__['argv']\n"
    "    except KeyError:\n"
    "        raise AttributeError(\"module 'sys' has no attribute 'argv'\") from None\n"
    "def set_argv(module, arguments):\n"
    "    if own_argv() is None:\n"
    "        module.__dict__['argv'] = arguments\n"
    "    else:\n"
    "        own_argv(arguments)\n"
    /* One object, by which a class of ours is known again. */
    "argv = property(get_argv, set_argv)\n"
    "def is_ours(kind):\n"
    "    return kind.__dict__.get('argv') is argv\n"
    /* A subclass of what sys is now, which may be a class of the application's. */
    "def begin():\n"
    "    kind = type(sys)\n"
    "    if not is_ours(kind):\n"
    "        names = {'argv': argv, '__module__': 'builtins'}\n"
    "        sys.__class__ = type(kind.__name__, (kind,), names)\n"
    "def end():\n" /* where ours is still in place */
    "    if is_ours(type(sys)):\n"
    "        sys.__class__ = type(sys).__base__\n";

/* own_argv([value]): the list, or what has been set in its place, of the program that runs in the
 * calling thread; None: there is none. */
ATTACHED static PyObject *
program_own_argv(PyObject *module, PyObject *arguments)
{
    struct session *session = console_session();
    PyObject *value = NULL; /* borrowed */
    (void)module;
    if (!PyArg_ParseTuple(arguments, "|O", &value)) {
        return NULL;
    }
    if (session == NULL || session->run.arguments == NULL) {
        return Py_NewRef(Py_None);
    }
    if (value != NULL) {
        Py_SETREF(session->run.arguments, Py_NewRef(value));
    }
    return Py_NewRef(session->run.arguments);
}

static PyMethodDef program_functions[] = {
    {"own_argv", program_own_argv, METH_VARARGS, NULL},
    {NULL, NULL, 0, NULL},
};

static const struct part program_part = {
    .name = "program",
    .program = program_program,
    .functions = program_functions,
};

/* Gives sys its own class again, if it has another: also at exit, and in a forked child. Under
 * sys_lock. Never raises. */
ATTACHED static void
give_back_sys(void)
{
    PyObject *sys = PyDict_GetItemString(PyImport_GetModuleDict(), "sys"); /* borrowed */
    if (sys != NULL && !PyModule_CheckExact(sys)) {
        Py_XDECREF(call_part(manhole.module, &program_part, "end", NULL, NULL));
        PyErr_Clear();
    }
}

/* From here on sys.argv is the session's in its thread. Of programs that run at once the first
 * gives sys its class, and the last one takes it away. Returns 0, or -1 with an exception. */
ATTACHED static int
open_arguments(struct session *session, PyObject *arguments)
{
    lock_attached(&sys_lock);
    OWNED PyObject *begun = call_part(manhole.module, &program_part, "begin", NULL, NULL);
    if (begun != NULL) {
        manhole.programs++;
        session->run.arguments = Py_NewRef(arguments);
    }
    unlock(&sys_lock);
    return begun == NULL ? -1 : 0;
}

ATTACHED static void
close_arguments(struct session *session)
{
    if (session->run.arguments == NULL) {
        return;
    }
    Py_CLEAR(session->run.arguments);
    lock_attached(&sys_lock);
    manhole.programs--;
    if (manhole.programs == 0) {
        give_back_sys();
    }
    unlock(&sys_lock);
}

/* Reads some bytes of a request, without the interpreter: a client that stalls keeps nobody waiting
 * but its own thread, and that not for ever. Returns how many; 0: the client stalls, leaves or ends
 * them. */
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

static const char no_code[] =
    "nobody may run code here: this manhole has a shell of commands, "
    "without its console";

/* Whether a client may send code: not where it gets a shell of commands without a console. */
static bool
may_run_code(void)
{
    lock_leaf(&table_lock);
    bool may = manhole.options.connection_handler.kind != HANDLER_COMMANDS ||
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
        return refuse_request(session, no_code);
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

/* As Python itself decodes the command line. Returns a new str, or NULL with an exception. */
ATTACHED static PyObject *
decode_field(const char *field)
{
    return PyUnicode_DecodeUTF8(field, (Py_ssize_t)strlen(field), "surrogateescape");
}

/* What sys.argv is to be. Returns a new list, or NULL with an exception. */
ATTACHED static PyObject *
make_arguments(const struct session *session)
{
    OWNED PyObject *arguments = PyList_New(0);
    const char *field = session->run.request + strlen(session->run.request) + 1;
    const char *end = find_program(session);
    for (; arguments != NULL && field < end; field += strlen(field) + 1) {
        OWNED PyObject *argument = decode_field(field);
        if (argument == NULL || PyList_Append(arguments, argument) < 0) {
            return NULL;
        }
    }
    return steal_reference(&arguments);
}

/* Makes the session's namespace that of a program. Returns 0, or -1 with an exception. */
ATTACHED static int
add_program_names(struct session *session, PyObject *file)
{
    OWNED PyObject *name = PyUnicode_FromString("__main__");
    PyObject *names = session->run.names; /* borrowed */
    if (name == NULL || PyDict_SetItemString(names, "__name__", name) < 0 ||
        PyDict_SetItemString(names, "__builtins__", PyEval_GetBuiltins()) < 0) {
        return -1;
    }
    return session->run.request[0] == '<' ? 0
                                          : PyDict_SetItemString(names, "__file__", file);
}

/* Runs the program. Returns what it raised, new, or NULL. */
ATTACHED static PyObject *
run_program(struct session *session, PyObject *file)
{
    begin_running(session);
    OWNED PyObject *code =
        Py_CompileStringObject(find_program(session), file, Py_file_input, NULL, -1);
    if (code != NULL) {
        Py_XDECREF(PyEval_EvalCode(code, session->run.names, session->run.names));
    }
    PyObject *raised = take_exception();        /* new, handed to the caller */
    atomic_store(&session->run.unbegun, false); /* a Ctrl-C is too late from here */
    end_running(session);
    return raised;
}

/* Shows what a program raised, and sets its exit status, as Python itself would at its end: the
 * number or text of SystemExit, the traceback of all else. Its __str__() may be anything: it can be
 * interrupted. Returns 0, or -1 with an exception. */
ATTACHED static int
end_program(struct session *session, PyObject *raised, long *status)
{
    begin_running(session);
    OWNED PyObject *words =
        call_part(manhole.module, &shown_part, "last_words", raised, NULL);
    end_running(session);
    if (words == NULL) {
        char plain[200];
        (void)snprintf(plain, sizeof(plain), "%s\n", Py_TYPE(raised)->tp_name);
        PyErr_Clear();
        *status = 1;
        return write_as(session, FRAME_ERROR, plain, strlen(plain));
    }
    *status = PyLong_AsLong(PyTuple_GET_ITEM(words, 1));
    PyErr_Clear(); /* one that is no C long is -1 */
    return write_str_as(session, FRAME_ERROR, PyTuple_GET_ITEM(words, 0));
}

/* All of a program's life once everything is in place. Returns 0, or -1 with an exception. */
ATTACHED static int
run_to_the_end(struct session *session)
{
    char status_text[32];
    long status = 0;
    log_line("Running a program: %.200s.", session->run.request);
    OWNED PyObject *source = decode_field(find_program(session));
    log_audit(session, source);
    OWNED PyObject *file = decode_field(session->run.request);
    if (file == NULL || add_program_names(session, file) < 0) {
        return -1;
    }
    OWNED PyObject *raised = run_program(session, file);
    if (raised != NULL && end_program(session, raised, &status) < 0) {
        return -1;
    }
    int length = snprintf(status_text, sizeof(status_text), "%ld", status);
    return write_as(session, FRAME_STATUS, status_text, (size_t)length);
}

/* May leave an exception. */
ATTACHED static void
converse_by_program(struct session *session, PyObject *locals)
{
    (void)import_needed_modules(session, "");
    OWNED PyObject *arguments = make_arguments(session);
    if (arguments == NULL) {
        return;
    }
    set_names(session, make_names(locals, session->channel->live_names));
    if (session->run.names == NULL) {
        return;
    }
    session->run.input = open_input(session);
    if (session->run.input != NULL && open_streams(session) == 0 &&
        open_arguments(session, arguments) == 0) {
        (void)run_to_the_end(session);
    }
}

/* Runs the program that the client has sent. Never raises. */
ATTACHED static void
serve_program(struct session *session, PyObject *locals)
{
    converse_by_program(session, locals);
    log_failure(session, "Program failed with ");
    close_arguments(session);
    close_session(session);
}

#endif /* MANHOLE_SESSION_PROGRAMS_C */
