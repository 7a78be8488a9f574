/* Module: what Python sees as `manhole`.
 * Runs on:  any thread of the application, ATTACHED.
 * Touches:  struct module_state, of which each interpreter that imports this has one.
 *
 * The process has one manhole, in the interpreter that called install(): struct manhole, whose
 * module keeps the types, streams and parts that sessions use. In other interpreters the module can
 * be imported, too, and says the same of that one manhole.
 *
 * Multi-phase initialisation (PEP 489) makes that possible. Rooms that have functions of their own
 * for the module add them in a row of module_slots[]. Names with an underscore are callbacks, for
 * atexit, os.register_at_fork, multiprocessing and sys.
 */
#ifndef MANHOLE_MODULE_C
#define MANHOLE_MODULE_C

#include "base/compat.c"
#include "base/state.c"
#include "base/locks.c"
#include "base/basics.c"
#include "base/log.c"
#include "door/tcp.c"
#include "door/socket.c"
#include "stacks/dump.c"
#include "watch/probes.c"
#include "watch/requests.c"
#include "session/streams.c"
#include "session/borrowed.c"
#include "session/console.c"
#include "session/commands.c"
#include "server/activation.c"
#include "server/fork.c"
#include "server/options.c"
#include "server/install.c"
#include "server/backdoor.c"

#define HELP_INTRODUCTION                                                                \
  "Install the manhole in this process and return the Manhole object.\n"                 \
  "\n"                                                                                   \
  "A client that connects to the socket (manhole-cli PID) sees the stack of every\n"     \
  "thread and then has a Python prompt in this process. Options:\n"
#define HELP_ERRORS                                                                      \
  "\n\nAn option that is unknown, of a wrong type or value raises TypeError or\n"        \
  "ValueError and names it; one signal for both activate_on and oneshot_on raises\n"     \
  "ConfigurationConflict. A socket that cannot be opened is a log line: the\n"           \
  "application goes on."

PyDoc_STRVAR(
    install_doc,
    "install(verbose=True, verbose_destination=2, strict=True, *" KEYWORD_OPTIONS(
        OPTION_SIGNATURE) ")\n--\n\n" HELP_INTRODUCTION POSITIONAL_OPTIONS(OPTION_HELP)
        KEYWORD_OPTIONS(OPTION_HELP) HELP_ERRORS);

ATTACHED static PyObject *
py_install(PyObject *module, PyObject *arguments, PyObject *keywords)
{
    return install(module, arguments, keywords);
}

PyDoc_STRVAR(
    dump_stacktraces_doc,
    "dump_stacktraces()\n--\n\n"
    "Print the stack of every Python thread to sys.stderr (to sys.stdout when the\n"
    "manhole was installed with redirect_stderr=False).");

ATTACHED static PyObject *
py_dump_stacktraces(PyObject *module, PyObject *unused)
{
    OWNED PyObject *text = make_dump();
    (void)module;
    (void)unused;
    if (text == NULL) {
        return NULL;
    }
    OWNED PyObject *file = get_sys(
        manhole.installed && !manhole.options.redirect_stderr ? "stdout" : "stderr");
    if (file != NULL && file != Py_None &&
        PyFile_WriteObject(text, file, Py_PRINT_RAW) < 0) {
        return NULL;
    }
    return Py_NewRef(Py_None);
}

PyDoc_STRVAR(
    get_peercred_doc,
    "get_peercred(sock, /)\n--\n\n"
    "Return (pid, uid, gid) of the process at the other end of a connected Unix\n"
    "socket, as the kernel recorded it. OSError when the socket has no such peer.");

/* As python-manhole has it; a gid that is not known is -1. */
ATTACHED static PyObject *
peer_tuple(const struct peer *peer)
{
    return Py_BuildValue("(lll)", (long)peer->pid, (long)peer->uid,
                         peer->gid == (gid_t)-1 ? -1L : (long)peer->gid);
}

ATTACHED static PyObject *
py_get_peercred(PyObject *module, PyObject *sock)
{
    struct peer peer = {0};
    int fd = PyObject_AsFileDescriptor(sock);
    (void)module;
    if (fd < 0) {
        return NULL;
    }
    if (read_peer(fd, &peer) < 0) {
        return PyErr_SetFromErrno(PyExc_OSError);
    }
    return peer_tuple(&peer);
}

PyDoc_STRVAR(
    check_credentials_doc,
    "check_credentials(sock, /)\n--\n\n"
    "Return (pid, uid, gid) of the client on a connected socket, and log that it\n"
    "is accepted; of one by TCP on this machine (0, uid, -1). SuspiciousClient\n"
    "when its uid is neither root's nor this process's effective one;\n"
    "NotInstalled when no manhole is installed.");

ATTACHED static PyObject *
py_check_credentials(PyObject *module, PyObject *sock)
{
    struct module_state *state = PyModule_GetState(module);
    struct peer peer = {0};
    int fd = PyObject_AsFileDescriptor(sock);
    if (fd < 0 || require_installed(module) < 0 ||
        check_peer(state->suspicious_client, fd, &peer) < 0) {
        return NULL;
    }
    return peer_tuple(&peer);
}

/* Whether two descriptors are of one socket. */
static bool
is_same_file(int one, int other)
{
    struct stat first = {0};
    struct stat second = {0};
    return fstat(one, &first) == 0 && fstat(other, &second) == 0 &&
           first.st_dev == second.st_dev && first.st_ino == second.st_ino;
}

/* Serves a socket that Python code has, in its thread. It may be the client of the very session
 * that this thread is in: that of a connection_handler which is a callable, and hands on the socket
 * that it was given. Then the session goes on. Any other gets a session of its own, on a duplicate:
 * the caller closes its own. */
ATTACHED static PyObject *
handle_connection(PyObject *module, PyObject *client,
                  void (*serve)(struct session *, PyObject *locals))
{
    struct peer peer = {0};
    int fd = PyObject_AsFileDescriptor(client);
    if (fd < 0 || require_installed(module) < 0) {
        return NULL;
    }
    if (current_session != NULL && !current_session->run.has_console &&
        current_session->run.input == NULL &&
        is_same_file(fd, kept_number(&current_session->fd))) {
        serve_with_locals(current_session, serve);
        return Py_NewRef(Py_None);
    }
    /* Whoever it is: that is the caller's to check. It may be a socketpair, or TCP. */
    (void)read_peer(fd, &peer);
    fd = fcntl(fd, F_DUPFD_CLOEXEC, 0);
    if (fd < 0) {
        return PyErr_SetFromErrno(PyExc_OSError);
    }
    return serve_here(fd, &peer, serve) < 0 ? NULL : Py_NewRef(Py_None);
}

PyDoc_STRVAR(
    handle_connection_repl_doc,
    "handle_connection_repl(client, /)\n--\n\n"
    "Serve a connected socket with the stack dump and the console, in this thread,\n"
    "until the client leaves. For a connection_handler of one's own. It does not\n"
    "check who the client is. NotInstalled when no manhole is installed.");

ATTACHED static PyObject *
py_handle_connection_repl(PyObject *module, PyObject *client)
{
    return handle_connection(module, client, serve_console);
}

PyDoc_STRVAR(
    handle_connection_commands_doc,
    "handle_connection_commands(client, /)\n--\n\n"
    "Serve a connected socket with the shell of commands, in this thread, until the\n"
    "client leaves. For a connection_handler of one's own. It does not check who the\n"
    "client is. NotInstalled when no manhole is installed.");

ATTACHED static PyObject *
py_handle_connection_commands(PyObject *module, PyObject *client)
{
    return handle_connection(module, client, serve_commands);
}

PyDoc_STRVAR(
    handle_connection_exec_doc,
    "handle_connection_exec(client, /)\n--\n\n"
    "Run each line that comes over a connected socket, in this thread, until the\n"
    "client leaves or calls exit(). Nothing is redirected or answered. It does not\n"
    "check who the client is. NotInstalled when no manhole is installed.");

ATTACHED static PyObject *
py_handle_connection_exec(PyObject *module, PyObject *client)
{
    return handle_connection(module, client, serve_exec);
}

/* Runs install(TEXT) with the names of this module. Returns new, or NULL with an
 * exception. */
ATTACHED static PyObject *
eval_install(PyObject *module, PyObject *text)
{
    OWNED PyObject *call = PyUnicode_FromFormat("install(%U)", text);
    OWNED PyObject *names = PyDict_Copy(PyModule_GetDict(module));
    const char *source = call == NULL ? NULL : PyUnicode_AsUTF8(call);
    if (source == NULL || names == NULL ||
        PyDict_SetItemString(names, "__builtins__", PyEval_GetBuiltins()) < 0 ||
        PyDict_SetItemString(names, "manhole", module) < 0) {
        return NULL;
    }
    return run_source(source, Py_eval_input, names);
}

PyDoc_STRVAR(
    install_from_environment_doc,
    "_install_from_environment()\n--\n\n"
    "install() with the text of PYTHONMANHOLE as its arguments, if it is there and\n"
    "nothing is installed yet. For manhole.pth and manhole.start: a failure is one line\n"
    "on sys.stderr, and the program goes on.");

/* python -E, -I: CPython ignores its own variables then. */
ATTACHED static bool
ignores_environment(void)
{
    OWNED PyObject *flags = get_sys("flags");
    OWNED PyObject *flag =
        flags == NULL ? NULL : PyObject_GetAttrString(flags, "ignore_environment");
    bool ignores = flag != NULL && PyObject_IsTrue(flag) == 1;
    PyErr_Clear();
    return ignores;
}

/* Runs in site, before the program: whatever is wrong with the variable must not keep that from
 * starting. */
ATTACHED static PyObject *
py_install_from_environment(PyObject *module, PyObject *unused)
{
    /* NOLINTNEXTLINE(concurrency-mt-unsafe): Python's start-up, one thread */
    const char *value = getenv("PYTHONMANHOLE");
    (void)unused;
    /* Both files may be there more than once. */
    if (value == NULL || is_owner() || ignores_environment()) {
        return Py_NewRef(Py_None);
    }
    OWNED PyObject *text = PyUnicode_DecodeFSDefault(value);
    OWNED PyObject *result = text == NULL ? NULL : eval_install(module, text);
    if (result == NULL) {
        OWNED PyObject *exception = take_exception();
        PySys_FormatStderr("Failed to manhole.install(%s): %R\n", value, exception);
    }
    PyErr_Clear();
    return Py_NewRef(Py_None);
}

/* For manhole-cli --attach, where the process's main thread is asked: what that installs is not the
 * application's. */
ATTACHED static PyObject *
py_install_by_order(PyObject *module, PyObject *arguments, PyObject *keywords)
{
    is_ordered = true;
    PyObject *result = install(module, arguments, keywords); /* new, or NULL */
    is_ordered = false;
    return result;
}

/* For manhole-cli --detach, which has not got install()'s object. */
ATTACHED static PyObject *
py_release(PyObject *module, PyObject *unused)
{
    (void)module;
    (void)unused;
    return release() < 0 ? NULL : Py_NewRef(Py_None);
}

/* What leads with an underscore is called by others than people: see the head of this room. */
static PyMethodDef module_methods[] = {
    {"install", (PyCFunction)(void (*)(void))py_install, METH_VARARGS | METH_KEYWORDS,
     install_doc},
    {"dump_stacktraces", py_dump_stacktraces, METH_NOARGS, dump_stacktraces_doc},
    {"get_peercred", py_get_peercred, METH_O, get_peercred_doc},
    {"check_credentials", py_check_credentials, METH_O, check_credentials_doc},
    {"handle_connection_repl", py_handle_connection_repl, METH_O,
     handle_connection_repl_doc},
    {"handle_connection_exec", py_handle_connection_exec, METH_O,
     handle_connection_exec_doc},
    {"backdoor_server", (PyCFunction)(void (*)(void))py_backdoor_server,
     METH_VARARGS | METH_KEYWORDS, backdoor_server_doc},
    {"backdoor", (PyCFunction)(void (*)(void))py_backdoor, METH_VARARGS | METH_KEYWORDS,
     backdoor_doc},
    {"handle_connection_commands", py_handle_connection_commands, METH_O,
     handle_connection_commands_doc},
    {"_install_from_environment", py_install_from_environment, METH_NOARGS,
     install_from_environment_doc},
    {"_install_by_order", (PyCFunction)(void (*)(void))py_install_by_order,
     METH_VARARGS | METH_KEYWORDS, NULL},
    {"_release", py_release, METH_NOARGS, NULL},
    {"_displayhook", py_displayhook, METH_O, NULL},
    {"_exit", py_exit, METH_VARARGS, NULL},
    {"_at_exit", py_at_exit, METH_NOARGS, NULL},
    {"_before_fork", py_before_fork, METH_NOARGS, NULL},
    {"_after_fork_in_parent", py_after_fork_in_parent, METH_NOARGS, NULL},
    {"_after_fork_in_child", py_after_fork_in_child, METH_NOARGS, NULL},
    {"_finalize_with_multiprocessing", py_finalize_with_multiprocessing, METH_O, NULL},
    {NULL, NULL, 0, NULL},
};

/* The Manhole object: one an interpreter, without fields of its own. */

PyDoc_STRVAR(
    handle_oneshot_doc,
    "handle_oneshot($self, signum=None, frame=None, /)\n--\n\n"
    "Open the socket, serve one client in this thread, close the socket. A signal\n"
    "handler by its arguments. What goes wrong, and that nobody came within\n"
    "oneshot_timeout, is a log line; only what the handler of another signal raises\n"
    "meanwhile comes out. NotInstalled when nothing is installed and it is called\n"
    "without arguments.");

/* A signal handler must not raise what the interrupted code knows nothing of: called as one, with
 * arguments, it logs what goes wrong. */
ATTACHED static PyObject *
manhole_handle_oneshot(PyObject *self, PyObject *arguments)
{
    PyObject *module = PyType_GetModule(Py_TYPE(self)); /* borrowed */
    int result = 0;
    if (!manhole.installed && PyTuple_GET_SIZE(arguments) > 0) {
        return Py_NewRef(Py_None); /* a signal, in a child that has no manhole */
    }
    if (require_installed(module) < 0) {
        if (PyTuple_GET_SIZE(arguments) == 0) {
            return NULL;
        }
        log_exception("Oneshot failure: ", take_exception(), "");
        return Py_NewRef(Py_None);
    }

    result = serve_oneshot();
    if (result == ONESHOT_FAILED) {
        log_exception("Oneshot failure: ", take_exception(), "");
    }
    else if (result == ONESHOT_INTERRUPTED) {
        log_line("Oneshot failure: interrupted by another signal");
    }
    deliver_log();
    if (result == ONESHOT_INTERRUPTED) {
        return NULL;
    }
    /* A signal that came meanwhile: the system call that we interrupt does not look again. What is
     * raised here another handler has raised; it is the application's to have. */
    return PyErr_CheckSignals() < 0 ? NULL : Py_NewRef(Py_None);
}

PyDoc_STRVAR(
    release_doc,
    "release($self, /)\n--\n\n"
    "Undo install(): the listener, its socket, the signal handlers. Clients that\n"
    "are connected stay. Harmless when nothing is installed.");

ATTACHED static PyObject *
manhole_release_method(PyObject *self, PyObject *unused)
{
    (void)self;
    (void)unused;
    return release() < 0 ? NULL : Py_NewRef(Py_None);
}

static PyMethodDef manhole_methods[] = {
    {"handle_oneshot", manhole_handle_oneshot, METH_VARARGS, handle_oneshot_doc},
    {"release", manhole_release_method, METH_NOARGS, release_doc},
    {NULL, NULL, 0, NULL},
};

/* The name of an endpoint: of a TCP one that is open, with the port that it has got. Returns new,
 * or NULL. */
ATTACHED static PyObject *
name_endpoint(const struct endpoint *endpoint, const struct door *door)
{
    char name[SOCKET_PATH_SIZE];
    if (!is_tcp(endpoint)) {
        (void)expand_path(endpoint->path, name, sizeof(name));
        return PyUnicode_DecodeFSDefault(name);
    }
    format_address(&endpoint->address, name);
    return PyUnicode_FromString(is_door_open(door) ? door->name : name);
}

/* As install() was told, whether they are open or not. */
ATTACHED static PyObject *
manhole_addresses(PyObject *self, void *unused)
{
    OWNED PyObject *list = PyList_New(0);
    struct endpoint endpoint;
    (void)self;
    (void)unused;
    for (size_t i = 0; get_endpoint(&manhole.options, i, &endpoint); i++) {
        OWNED PyObject *name = name_endpoint(&endpoint, &manhole.doors[i]);
        if (list == NULL || name == NULL || PyList_Append(list, name) < 0) {
            return NULL;
        }
    }
    return steal_reference(&list);
}

/* The first that is a path. python-manhole has only this one. */
ATTACHED static PyObject *
manhole_uds_name(PyObject *self, void *unused)
{
    struct endpoint endpoint;
    (void)self;
    (void)unused;
    for (size_t i = 0; get_endpoint(&manhole.options, i, &endpoint); i++) {
        if (!is_tcp(&endpoint)) {
            return name_endpoint(&endpoint, &manhole.doors[i]);
        }
    }
    return Py_NewRef(Py_None);
}

ATTACHED static PyObject *
manhole_repr(PyObject *self)
{
    OWNED PyObject *addresses = manhole_addresses(self, NULL);
    OWNED PyObject *comma = PyUnicode_FromString(", ");
    if (addresses == NULL || comma == NULL) {
        return NULL;
    }
    OWNED PyObject *names = PyUnicode_Join(comma, addresses);
    return names == NULL ? NULL
                         : PyUnicode_FromFormat("<manhole.Manhole at %R%s>", names,
                                                manhole.installed ? "" : ", released");
}

static PyGetSetDef manhole_attributes[] = {
    {"uds_name", manhole_uds_name, NULL,
     "The path of the Unix socket, whether it is open or not; None: there is only TCP.",
     NULL},
    {"addresses", manhole_addresses, NULL,
     "All that install() was told to listen at: paths, and HOST:PORT with the port\n"
     "that was chosen where the option listen said 0.",
     NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

/* Of a type on the heap: each of its objects has a reference to it. */
ATTACHED static void
manhole_dealloc(PyObject *self)
{
    PyTypeObject *type = Py_TYPE(self);
    type->tp_free(self);
    Py_DECREF(type);
}

static char manhole_type_doc[] = "The installed manhole, as install() returns it.";

static PyType_Slot manhole_slots[] = {
    {Py_tp_doc, manhole_type_doc},
    {Py_tp_new, refuse_new},
    {Py_tp_dealloc, manhole_dealloc},
    {Py_tp_repr, manhole_repr},
    {Py_tp_methods, manhole_methods},
    {Py_tp_getset, manhole_attributes},
    {0, NULL},
};

static PyType_Spec manhole_spec = {
    .name = "manhole.Manhole",
    .basicsize = sizeof(PyObject),
    .flags = Py_TPFLAGS_DEFAULT,
    .slots = manhole_slots,
};

/* The numbers of all signals that Python names, sorted. Returns a new tuple, or NULL. */
ATTACHED static PyObject *
make_all_signals(void)
{
    OWNED PyObject *module = PyImport_ImportModule("_signal");
    OWNED PyObject *numbers = PySet_New(NULL);
    PyObject *name = NULL;  /* borrowed */
    PyObject *value = NULL; /* borrowed */
    Py_ssize_t position = 0;
    if (module == NULL || numbers == NULL) {
        return NULL;
    }
    while (PyDict_Next(PyModule_GetDict(module), &position, &name, &value)) {
        const char *text = PyUnicode_AsUTF8(name);
        if (text == NULL || (strncmp(text, "SIG", 3) == 0 && strchr(text, '_') == NULL &&
                             PySet_Add(numbers, value) < 0)) {
            return NULL;
        }
    }
    OWNED PyObject *sorted = PySequence_List(numbers);
    return sorted == NULL || PyList_Sort(sorted) < 0 ? NULL : PyList_AsTuple(sorted);
}

/* Adds value to the module, dropping the new reference. Returns 0, or -1 with an
 * exception. */
ATTACHED static int
add_object(PyObject *module, const char *name, PyObject *value /* new, or NULL */)
{
    OWNED PyObject *added = value;
    return added == NULL ? -1 : PyObject_SetAttrString(module, name, added);
}

/* Makes the exception types, members of the module and of its state. Returns 0, or -1. */
ATTACHED static int
add_exceptions(PyObject *module, struct module_state *state)
{
    const struct {
        PyObject **slot;
        const char *name;
        const char *doc;
    } rows[] = {
        {&state->already_installed, "manhole.AlreadyInstalled",
         "install() with strict=True found a manhole installed."},
        {&state->not_installed, "manhole.NotInstalled",
         "What was called needs an installed manhole."},
        {&state->configuration_conflict, "manhole.ConfigurationConflict",
         "activate_on and oneshot_on are the same signal."},
        {&state->suspicious_client, "manhole.SuspiciousClient",
         "The client is neither root nor this process's user."},
    };
    for (size_t i = 0; i < Py_ARRAY_LENGTH(rows); i++) {
        *rows[i].slot = PyErr_NewExceptionWithDoc(rows[i].name, rows[i].doc, NULL, NULL);
        if (add_object(module, strchr(rows[i].name, '.') + 1, Py_XNewRef(*rows[i].slot)) <
            0) {
            return -1;
        }
    }
    return 0;
}

/* Fills in a new module. When it fails in the middle the rest of the state is NULL, and CPython has
 * module_free() drop what there is. */
ATTACHED static int
module_exec(PyObject *module)
{
    struct module_state *state = PyModule_GetState(module);
    PyTypeObject *type = NULL; /* borrowed */
    state->manhole_type = PyType_FromModuleAndSpec(module, &manhole_spec, NULL);
    state->stream_type = PyType_FromModuleAndSpec(module, &stream_spec, NULL);
    if (state->manhole_type == NULL || state->stream_type == NULL) {
        return -1;
    }
    type = (PyTypeObject *)state->manhole_type;
    state->manhole_object = type->tp_alloc(type, 0);
    state->streams = PyList_New(0);
    state->library = PyDict_New();
    state->parts = PyDict_New();
    if (state->manhole_object == NULL || state->streams == NULL ||
        state->library == NULL || state->parts == NULL ||
        add_exceptions(module, state) < 0 ||
        add_object(module, "ALL_SIGNALS", make_all_signals()) < 0 ||
        add_object(module, "Manhole", Py_NewRef(state->manhole_type)) < 0 ||
        PyModule_AddStringConstant(module, "__version__", MANHOLE_VERSION) < 0) {
        return -1;
    }
    return 0;
}

/* For the collector, which finds circles through the module. All references stand first in the
 * state: it is zeroes when it is made, so none of them needs to be named here. */
enum {
    STATE_REFERENCES = offsetof(struct module_state, has_fork_hook) / sizeof(PyObject *),
};

ATTACHED static int
module_traverse(PyObject *module, visitproc visit, void *arg)
{
    PyObject **references = PyModule_GetState(module);
    for (size_t i = 0; i < STATE_REFERENCES; i++) {
        Py_VISIT(references[i]);
    }
    return 0;
}

ATTACHED static int
module_clear(PyObject *module)
{
    PyObject **references = PyModule_GetState(module);
    for (size_t i = 0; i < STATE_REFERENCES; i++) {
        Py_CLEAR(references[i]);
    }
    return 0;
}

ATTACHED static void
module_free(void *module)
{
    (void)module_clear(module);
}

static PyModuleDef_Slot module_slots[] = {
    {Py_mod_exec, (void *)module_exec},
    {Py_mod_exec, (void *)exec_probes},
    {Py_mod_exec, (void *)exec_requests},
#ifdef Py_mod_gil
    {Py_mod_gil, Py_MOD_GIL_NOT_USED},
#endif
    {0, NULL},
};

PyDoc_STRVAR(
    module_doc,
    "A debugging socket in this process: stacks of all threads, and a prompt.\n\n"
    "    import manhole\n"
    "    manhole.install()\n\n"
    "Then, in a shell: manhole-cli PID");

static struct PyModuleDef manhole_module = {
    PyModuleDef_HEAD_INIT,         .m_name = "manhole",
    .m_doc = module_doc,           .m_size = sizeof(struct module_state),
    .m_methods = module_methods,   .m_slots = module_slots,
    .m_traverse = module_traverse, .m_clear = module_clear,
    .m_free = module_free,
};

PyMODINIT_FUNC
PyInit_manhole(void)
{
    return PyModuleDef_Init(&manhole_module);
}

#endif /* MANHOLE_MODULE_C */
