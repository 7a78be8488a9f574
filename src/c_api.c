/* C API: manhole.h.
 * Runs on:  threads of the embedding program; each function's contract is in the header.
 * Touches:  sys.modules: manhole, when the program did not put it into the inittab.
 *
 * manhole_install() is install() of the module with the fields of its struct as keywords, so
 * options are checked, and errors told, in one place. `import manhole` in the program's Python code
 * finds this copy, which has the state, and no other that may be installed.
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
    OWNED PyObject *spec = call_imported("importlib.machinery", "ModuleSpec",
                                         Py_BuildValue("(sO)", "manhole", Py_None), NULL);
    OWNED PyObject *module =
        spec == NULL ? NULL : PyModule_FromDefAndSpec(&manhole_module, spec);
    if (module == NULL || PyModule_ExecDef(module, &manhole_module) < 0 ||
        PyDict_SetItemString(PyImport_GetModuleDict(), "manhole", module) < 0) {
        return NULL;
    }
    return steal_reference(&module);
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
    OWNED PyObject *keywords = Py_BuildValue(
        "{sN si sN sN sN sN sN sN sN sd sd sd sd si sz sz sz sz sO sN}", "verbose",
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
        options->locals == NULL ? Py_None : options->locals, "audit",
        PyBool_FromLong(options->audit));
    if (keywords != NULL &&
        options->connection_handler != NULL) { /* which is never None */
        OWNED PyObject *handler = PyUnicode_FromString(options->connection_handler);
        if (handler == NULL ||
            PyDict_SetItemString(keywords, "connection_handler", handler) < 0) {
            return NULL;
        }
    }
    return steal_reference(&keywords);
}

ATTACHED int
manhole_install(const manhole_options *options)
{
    static const manhole_options defaults = MANHOLE_OPTIONS_DEFAULT;
    OWNED PyObject *module = get_module();
    OWNED PyObject *empty = module == NULL ? NULL : PyTuple_New(0);
    OWNED PyObject *keywords =
        empty == NULL ? NULL : make_keywords(options == NULL ? &defaults : options);
    OWNED PyObject *result = keywords == NULL ? NULL : install(module, empty, keywords);
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

/* Appends the dump, made with the interpreter's help, and keeps the current exception. Returns 0,
 * or -1 with errno. */
ATTACHED static int
append_dump_without_error(struct text *dump)
{
    PyObject *exception = take_exception(); /* owned, handed back */
    int result = append_stacks(dump, &dump_form);
    if (result < 0) {
        PyErr_Clear();
        errno = ENOMEM;
    }
    put_back_exception(exception);
    return result;
}

/* The same from a frozen copy, which install() prepares. */
DETACHED static int
append_snapshot_if_ready(struct text *dump)
{
    if (!is_owner() || snapshot.signum == 0) {
        errno = ENOTSUP;
        return -1;
    }
    append_snapshot(dump, &dump_form);
    return 0;
}

MAY_ATTACH
int
manhole_dump_stacks(int fd)
{
    struct text dump = {0};
    const bool attached = is_attached();
    const bool looks = attached && HAS_GIL;
    int result = looks ? append_dump_without_error(&dump) : 0;
    PyThreadState *tstate = attached ? detach() : NULL;
    if (!looks) {
        result = append_snapshot_if_ready(&dump);
    }
    if (result == 0 && dump.failed) {
        errno = ENOMEM;
        result = -1;
    }
    if (result == 0) {
        result = write_all(fd, dump.bytes, dump.length);
    }

    int saved_errno = errno;
    free_text(&dump);
    if (attached) {
        reattach(tstate);
    }
    errno = saved_errno;
    return result;
}

#endif /* MANHOLE_C_API_C */
