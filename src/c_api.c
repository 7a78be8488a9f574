/* C API: manhole.h.
 * Runs on:  threads of the embedding program; each function's contract is in the header.
 */
#ifndef MANHOLE_C_API_C
#define MANHOLE_C_API_C

#include "base/compat.c"
#include "base/state.c"
#include "base/basics.c"
#include "stacks/dump.c"
#include "server/install.c"

/* The module for a program that did not put it into the inittab. Returns new, or NULL. */
ATTACHED static PyObject *
make_module(void)
{
    PyObject *machinery = PyImport_ImportModule("importlib.machinery"); /* owned */
    PyObject *spec = NULL;                                              /* owned */
    PyObject *module = NULL; /* owned, handed to the caller */
    if (machinery != NULL) {
        spec = PyObject_CallMethod(machinery, "ModuleSpec", "sO", "manhole", Py_None);
    }
    if (spec != NULL) {
        module = PyModule_FromDefAndSpec(&manhole_module, spec);
    }
    if (module != NULL &&
        (PyModule_ExecDef(module, &manhole_module) < 0 ||
         PyDict_SetItemString(PyImport_GetModuleDict(), "manhole", module) < 0)) {
        Py_CLEAR(module);
    }
    Py_XDECREF(machinery);
    Py_XDECREF(spec);
    return module;
}

/* This very copy of the module. Returns new, or NULL with an exception. */
ATTACHED static PyObject *
get_module(void)
{
    PyObject *modules = PyImport_GetModuleDict();                /* borrowed */
    PyObject *module = PyDict_GetItemString(modules, "manhole"); /* borrowed */
    if (module != NULL && PyModule_Check(module) &&
        PyModule_GetDef(module) == &manhole_module) {
        return Py_NewRef(module);
    }
    if (module != NULL) {
        PyErr_SetString(
            PyExc_ImportError,
            "another module named manhole was imported before manhole_install()");
        return NULL;
    }
    return make_module();
}

/* 0 stands for None. */
ATTACHED static PyObject *
signal_object(int signum)
{
    return signum == 0 ? Py_NewRef(Py_None) : PyLong_FromLong(signum);
}

/* Returns a new dict, or NULL with an exception. */
ATTACHED static PyObject *
make_keywords(const manhole_options *options)
{
    PyObject *keywords = Py_BuildValue(
        "{sN si sN sN sN sN sN sN sN sd sd sd sd si sz sz sz sz sO}", "verbose",
        PyBool_FromLong(options->verbose), "verbose_destination",
        options->verbose_destination, "strict", PyBool_FromLong(options->strict),
        "patch_fork", PyBool_FromLong(options->patch_fork), "thread",
        PyBool_FromLong(options->thread), "activate_on",
        signal_object(options->activate_on), "oneshot_on",
        signal_object(options->oneshot_on), "daemon_connection",
        PyBool_FromLong(options->daemon_connection), "redirect_stderr",
        PyBool_FromLong(options->redirect_stderr), "reinstall_delay",
        options->reinstall_delay, "start_timeout", options->start_timeout,
        "oneshot_timeout", options->oneshot_timeout, "hang_timeout",
        options->hang_timeout, "max_sessions", options->max_sessions, "socket_path",
        options->socket_path, "listen", options->listen, "config", options->config,
        "enable", options->enable, "locals",
        options->locals == NULL ? Py_None : options->locals);
    PyObject *handler = NULL; /* owned */
    if (keywords != NULL &&
        options->connection_handler != NULL) { /* which is never None */
        handler = PyUnicode_FromString(options->connection_handler);
        if (handler == NULL ||
            PyDict_SetItemString(keywords, "connection_handler", handler) < 0) {
            Py_CLEAR(keywords);
        }
        Py_XDECREF(handler);
    }
    return keywords;
}

ATTACHED int
manhole_install(const manhole_options *options)
{
    static const manhole_options defaults = MANHOLE_OPTIONS_DEFAULT;
    PyObject *module = get_module();  /* owned */
    PyObject *empty = PyTuple_New(0); /* owned */
    PyObject *keywords = NULL;        /* owned */
    PyObject *result = NULL;          /* owned */
    if (module != NULL && empty != NULL) {
        keywords = make_keywords(options == NULL ? &defaults : options);
    }
    if (keywords != NULL) {
        result = install(module, empty, keywords);
    }
    Py_XDECREF(module);
    Py_XDECREF(empty);
    Py_XDECREF(keywords);
    Py_XDECREF(result);
    return result == NULL ? -1 : 0;
}

ATTACHED int
manhole_release(void)
{
    return release();
}

/* Returns 0, or -1 with errno. */
static int
write_all(int fd, const char *bytes, size_t length)
{
    while (length > 0) {
        ssize_t written = write(fd, bytes, length);
        if (written < 0 && errno != EINTR) {
            return -1;
        }
        if (written > 0) {
            bytes += written;
            length -= (size_t)written;
        }
    }
    return 0;
}

/* Appends the dump, made with the interpreter's help. Returns 0, or -1 with errno. */
ATTACHED static int
append_dump_without_error(struct text *dump)
{
    PyObject *type = NULL;      /* owned */
    PyObject *value = NULL;     /* owned */
    PyObject *traceback = NULL; /* owned */
    int result = 0;
    PyErr_Fetch(&type, &value, &traceback);
    result = append_stacks(dump, &dump_form);
    if (result < 0) {
        PyErr_Clear();
        errno = ENOMEM;
    }
    PyErr_Restore(type, value, traceback);
    return result;
}

MAY_ATTACH
int
manhole_dump_stacks(int fd)
{
    struct text dump = {0};
    PyThreadState *tstate = NULL;
    const bool attached = is_attached();
    const bool looks =
        attached && HAS_GIL; /* else a frozen copy does, which install() prepares */
    int result = 0;
    int saved_errno = 0;
    if (looks) {
        result = append_dump_without_error(&dump);
    }
    if (attached) {
        tstate = detach();
    }
    if (!looks && (atomic_load(&manhole.owner) != getpid() || snapshot.signum == 0)) {
        errno = ENOTSUP;
        result = -1;
    }
    else if (!looks) {
        append_snapshot(&dump, &dump_form);
    }
    if (result == 0 && dump.failed) {
        errno = ENOMEM;
        result = -1;
    }
    if (result == 0) {
        result = write_all(fd, dump.bytes, dump.length);
    }
    saved_errno = errno;
    free_text(&dump);
    if (attached) {
        reattach(tstate);
    }
    errno = saved_errno;
    return result;
}

#endif /* MANHOLE_C_API_C */
