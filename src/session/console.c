/* Console: the prompt, and the other two ways to serve a client.
 * Runs on:  the session's thread, ATTACHED.
 * Touches:  the session's own fields; sys only through borrow_attribute().
 * The standard library compiles, runs and formats: ManholeConsole is code.InteractiveConsole with
 * its reporting of exceptions replaced, so that neither a crash reporter in sys.excepthook nor
 * another client hears of a typing error.
 */
#ifndef MANHOLE_SESSION_CONSOLE_C
#define MANHOLE_SESSION_CONSOLE_C

#include "../base/compat.c"
#include "../base/state.c"
#include "../base/locks.c"
#include "../base/basics.c"
#include "../base/log.c"
#include "../base/library.c"
#include "../base/parts.c"
#include "../door/socket.c"
#include "../stacks/copy.c"
#include "../stacks/dump.c"
#include "output.c"
#include "streams.c"
#include "interrupt.c"
#include "telnet.c"
#include "prompt.c"

enum {
    /* Characters of one line typed at the prompt. */
    MAX_LINE = 16 * 1024 * 1024,
    /* Characters of a value that goes out with the prompt. */
    MAX_SHOWN = 4096,
};

/* Whoever waits for modules to be imported, by itself or by another session, waits for nothing that
 * is stuck: there is a new one. */
static void
note_progress(void)
{
    int64_t now_ms = monotonic_ms();
    for (size_t i = 0; i < atomic_load(&manhole.sessions_end); i++) {
        struct session *session = &manhole.sessions[i];
        lock_leaf(&session->out_lock);
        if (session->importing && session->asked_ms != 0 && !session->answered) {
            session->asked_ms = now_ms;
            session->waiting_ms = session->waiting_ms == 0 ? 0 : now_ms;
        }
        unlock(&session->out_lock);
    }
}

static void
set_importing(struct session *session, bool importing)
{
    lock_leaf(&session->out_lock);
    session->importing = importing;
    unlock(&session->out_lock);
}

/* Tells the log of modules that cannot be imported, and the client, but who has a protocol of its
 * own. Takes over the exception. Never raises. */
ATTACHED static void
tell_missing(struct session *session, const char *names, PyObject *why /* new, or NULL */,
             const char *ahead /* of the client's line; NULL: it is told nothing */)
{
    char line[LOG_LINE_SIZE];
    char text[LOG_LINE_SIZE / 2];
    (void)snprintf(line, sizeof(line), "%smanhole: cannot import %s: %s\n",
                   ahead == NULL ? "" : ahead, names,
                   describe_exception(why, text, sizeof(text)));
    log_line("Cannot import %s: %s", names, text);
    deliver_log();
    if (ahead != NULL && write_as(session, FRAME_ERROR, line, strlen(line)) < 0) {
        PyErr_Clear(); /* it is gone: that is found out soon enough */
    }
    Py_XDECREF(why);
}

/* Imports what sessions need, in small steps: each lets go of the GIL for every file that it looks
 * for, which takes its time beside threads that compute (IMPORT_FACTOR). A fork waits until that is
 * done: the child of one in the middle of it could never import those modules, for CPython does not
 * make their locks anew. What cannot be imported is told as tell_missing() does. Returns whether
 * there was any. Never raises. */
ATTACHED static bool
import_needed_modules(struct session *session, const char *ahead)
{
    static const char *const names[] = {
        "os",         "enum",     "re",        "collections", "selectors",
        "socket",     "token",    "codecs",    "tokenize",    "linecache",
        "contextlib", "textwrap", "traceback", "codeop",      "code"};
    char missing[200] = "";
    PyObject *why = NULL; /* owned: of the first that is missing */
    set_importing(session, true);
    lock_imports();
    if (!is_imported("threading") && is_found_normally("threading")) {
        import_threading();
    }
    for (size_t i = 0; i < Py_ARRAY_LENGTH(names); i++) {
        PyObject *module = import_standard(names[i]); /* owned */
        if (module == NULL) {
            size_t length = strlen(missing);
            PyObject *raised = take_exception(); /* owned */
            (void)snprintf(missing + length, sizeof(missing) - length, "%s%s",
                           length == 0 ? "" : ", ", names[i]);
            why = why == NULL ? Py_XNewRef(raised) : why;
            Py_XDECREF(raised);
        }
        Py_XDECREF(module);
        note_progress();
    }
    unlock_imports();
    set_importing(session, false);
    if (missing[0] != '\0') {
        tell_missing(session, missing, why, ahead);
    }
    return missing[0] != '\0';
}

/* get_from_part(), of one that imports: a fork waits for that, and it is no hang. */
ATTACHED static PyObject *
import_part(struct session *session, const struct part *part, const char *name)
{
    PyObject *found = NULL; /* new, handed to the caller */
    set_importing(session, true);
    lock_imports();
    found = get_from_part(manhole.module, part, name);
    unlock_imports();
    set_importing(session, false);
    return found;
}

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

ATTACHED static PyObject *
console_showtraceback(PyObject *self, PyObject *unused)
{
    (void)self;
    (void)unused;
    return show_exception(false);
}

/* CPython 3.13 and newer hand the source over: the compiler's own errors have no line of it. Never
 * raises. */
ATTACHED static void
add_source_line(PyObject *error, PyObject *source)
{
    PyObject *text = PyObject_GetAttrString(error, "text");            /* owned */
    PyObject *number = PyObject_GetAttrString(error, "lineno");        /* owned */
    PyObject *lines = PyObject_CallMethod(source, "splitlines", NULL); /* owned */
    if (text != NULL && number != NULL && lines != NULL && PyList_Check(lines) &&
        PyObject_IsTrue(text) == 0) {
        PyObject *line =
            PyList_GetItem(lines, PyLong_AsSsize_t(number) - 1); /* borrowed */
        if (line != NULL) {
            (void)PyObject_SetAttrString(error, "text", line);
        }
    }
    PyErr_Clear();
    Py_XDECREF(text);
    Py_XDECREF(number);
    Py_XDECREF(lines);
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

ATTACHED static PyObject *
console_showsyntaxerror(PyObject *self, PyObject *arguments, PyObject *keywords)
{
    PyObject *source =
        keywords == NULL ? NULL : PyDict_GetItemString(keywords, "source"); /* borrowed */
    PyObject *type = NULL;                                                  /* owned */
    PyObject *value = NULL;                                                 /* owned */
    PyObject *traceback = NULL;                                             /* owned */
    bool undecodable = false;
    (void)self;
    (void)arguments;
    PyErr_GetExcInfo(&type, &value, &traceback);
    if (source != NULL && value != NULL &&
        Py_TYPE(value) == (PyTypeObject *)PyExc_SyntaxError) {
        add_source_line(value, source);
    }
    undecodable =
        value != NULL && Py_TYPE(value) == (PyTypeObject *)PyExc_UnicodeEncodeError;
    Py_XDECREF(type);
    Py_XDECREF(value);
    Py_XDECREF(traceback);
    return undecodable ? show_undecodable() : show_exception(true);
}

static PyMethodDef console_methods[] = {
    {"showtraceback", console_showtraceback, METH_NOARGS, NULL},
    {"showsyntaxerror", (PyCFunction)(void (*)(void))console_showsyntaxerror,
     METH_VARARGS | METH_KEYWORDS, NULL},
    {NULL, NULL, 0, NULL},
};

/* A class of the standard library's with methods of ours, made at the first call and kept. */
struct derived {
    const char *name;
    const char *module;      /* of the base */
    const struct part *part; /* or one of ours, which makes it */
    const char *base;
    PyMethodDef *methods;
};

/* Returns a new reference to the base of such a class, or NULL with an exception. */
ATTACHED static PyObject *
find_base(const struct derived *derived)
{
    PyObject *from = NULL; /* owned */
    PyObject *base = NULL; /* new, handed to the caller */
    if (derived->part != NULL) {
        return get_from_part(manhole.module, derived->part, derived->base);
    }
    from = import_standard(derived->module);
    if (from != NULL) {
        base = PyObject_GetAttrString(from, derived->base);
        Py_DECREF(from);
    }
    return base;
}

/* Returns a new reference to a new class, or NULL with an exception. */
ATTACHED static PyObject *
make_derived(const struct derived *derived)
{
    PyObject *base = find_base(derived); /* owned */
    PyObject *type = NULL;               /* owned, handed to the caller */
    if (base == NULL) {
        return NULL;
    }
    type = PyObject_CallFunction((PyObject *)Py_TYPE(base), "s(O){ss}", derived->name,
                                 base, "__module__", "manhole");
    for (PyMethodDef *method = derived->methods; type != NULL && method->ml_name != NULL;
         method++) {
        PyObject *descriptor =
            PyDescr_NewMethod((PyTypeObject *)type, method); /* owned */
        if (descriptor == NULL ||
            PyObject_SetAttrString(type, method->ml_name, descriptor) < 0) {
            Py_CLEAR(type);
        }
        Py_XDECREF(descriptor);
    }
    Py_DECREF(base);
    return type;
}

/* Returns a new reference to the class, which is kept in *kept, the same for sessions that begin at
 * once; NULL with an exception. */
ATTACHED static PyObject *
get_derived(const struct derived *derived, PyObject **kept)
{
    PyObject *type = NULL; /* owned, handed to the caller */
    lock_imports();
    if (*kept == NULL) {
        *kept = make_derived(derived);
    }
    type = Py_XNewRef(*kept);
    unlock_imports();
    return type;
}

/* Shows a value to the client: along with the prompt when nothing is left to run before that, for
 * each send lets go of the GIL, which other threads may keep for some time. */
ATTACHED static int
show_value(struct session *session, PyObject *shown /* str */)
{
    /* A function that calls the hook has other locals. */
    if (session->one_act && PyUnicode_GET_LENGTH(shown) <= MAX_SHOWN &&
        PyEval_GetLocals() == session->names) {
        session->one_act = false;
        append_str(&session->unsent, shown);
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
        (session->names == NULL ||
         !PyDict_Check(session->names) || /* a plugin's command has none */
         PyDict_SetItemString(session->names, "_", value) == 0)) {
        result = Py_NewRef(Py_None);
    }
    Py_XDECREF(shown);
    return result;
}

/* A namespace of eventlet's kind: the application's mapping is not copied but looked at, so that a
 * client sees it change, and what the client assigns the application finds there. But `_` and what
 * we add are the client's own. */
static const char live_names_program[] =
    "class Names(dict):\n"
    "    def __init__(self, own, theirs):\n"
    "        super().__init__({name: own[name] for name in own if name not in theirs})\n"
    "        self.theirs = theirs\n"
    "    def is_own(self, name):\n"
    "        return name == '_' or super().__contains__(name)\n"
    "    def __missing__(self, name):\n"
    "        return self.theirs[name]\n"
    "    def __contains__(self, name):\n"
    "        return super().__contains__(name) or name in self.theirs\n"
    "    def __setitem__(self, name, value):\n"
    "        if self.is_own(name):\n"
    "            super().__setitem__(name, value)\n"
    "        else:\n"
    "            self.theirs[name] = value\n"
    "    def __delitem__(self, name):\n"
    "        if self.is_own(name):\n"
    "            super().__delitem__(name)\n"
    "        else:\n"
    "            del self.theirs[name]\n"
    "    def keys(self):\n"
    "        return super().keys() | self.theirs.keys()\n";

static const struct part live_names_part = {.name = "live names",
                                            .program = live_names_program};

/* Returns a new dict of that class, or NULL with an exception. */
ATTACHED static PyObject *
make_live_names(PyObject *own, PyObject *theirs)
{
    return call_part(manhole.module, &live_names_part, "Names", own, theirs);
}

/* The console's namespace: python-manhole's names, as far as they can be imported, what looks at
 * tasks and the like, then those of locals, copied or as they are at any time. Returns a new dict, or NULL with an exception. */
ATTACHED static PyObject *
make_names(PyObject *locals, bool live)
{
    static const char *const modules[] = {"sys", "os", "socket", "traceback"};
    PyObject *dump =
        PyObject_GetAttrString(manhole.module, "dump_stacktraces"); /* owned */
    PyObject *names = PyDict_New(); /* owned, handed to the caller */
    /* Else exec() in a module of our own would have them see its builtins. */
    bool failed = dump == NULL || names == NULL ||
                  PyDict_SetItemString(names, "__builtins__", PyEval_GetBuiltins()) < 0 ||
                  PyDict_SetItemString(names, "dump_stacktraces", dump) < 0;
    for (size_t i = 0; !failed && i < Py_ARRAY_LENGTH(modules); i++) {
        PyObject *module = import_standard(modules[i]); /* owned */
        failed = module != NULL && PyDict_SetItemString(names, modules[i], module) < 0;
        if (module == NULL) {
            PyErr_Clear(); /* it has been told */
        }
        Py_XDECREF(module);
    }
    if (!failed && locals != NULL && live) {
        Py_SETREF(names, make_live_names(names, locals));
    }
    else if (!failed && locals != NULL) {
        failed = PyDict_Update(names, locals) < 0;
    }
    if (failed || names == NULL || add_prompt_functions(names) < 0) {
        Py_CLEAR(names);
    }
    Py_XDECREF(dump);
    return names;
}

/* Sets the session's namespace, which another session may be about to look at. */
ATTACHED static void
set_names(struct session *session, PyObject *names /* new: taken over; or NULL */)
{
    PyObject *previous = NULL; /* owned */
    lock_leaf(&table_lock);
    previous = session->names;
    session->names = names;
    unlock(&table_lock);
    Py_XDECREF(previous);
}

/* Python's own banner, as InteractiveConsole.interact() has it. */
static void
append_banner(struct text *text)
{
    append_string(text, "Python ");
    append_string(text, Py_GetVersion());
    append_string(text, " on ");
    append_string(text, Py_GetPlatform());
    append_string(text,
                  "\nType \"help\", \"copyright\", \"credits\" or \"license\" for more "
                  "information.\n(ManholeConsole)\n");
}

/* The client has closed its connection, not just its writing side: it will see no answer. */
static bool
is_gone(struct session *session)
{
    struct pollfd client = {.fd = atomic_load(&session->fd.number), .events = 0};
    return poll(&client, 1, 0) == 1 && (client.revents & (POLLHUP | POLLNVAL)) != 0;
}

static bool
ends_line(PyObject *line)
{
    Py_ssize_t length = PyUnicode_GetLength(line);
    return length > 0 && PyUnicode_ReadChar(line, length - 1) == '\n';
}

/* Drops the rest of a line that is too long, says so. Returns a new empty line, or NULL. */
ATTACHED static PyObject *
skip_line(struct session *session)
{
    static const char message[] = "manhole: line too long (limit: 16 MiB), ignored\n";
    bool skipped = false;
    while (!skipped) {
        PyObject *rest = PyObject_CallMethod(session->input, "readline", "i", MAX_LINE);
        if (rest == NULL) {
            return NULL;
        }
        skipped = PyUnicode_GetLength(rest) == 0 || ends_line(rest);
        Py_DECREF(rest);
    }
    return write_client(session, message, sizeof(message) - 1) < 0
               ? NULL
               : PyUnicode_FromString("\n");
}

/* Reads a line from the client, with its newline. Returns a new str, empty at the end of
 * input, or NULL with an exception. Half a line of a client that is gone is no line: it
 * may be the first half of something harmless that is not. */
ATTACHED static PyObject *
read_any_line(struct session *session)
{
    PyObject *line = NULL; /* owned, handed to the caller */
    if (PyErr_CheckSignals() < 0) {
        return NULL; /* in a oneshot: read() looks only when it is interrupted */
    }
    line = PyObject_CallMethod(session->input, "readline", "i", MAX_LINE);
    if (line == NULL) {
        return NULL;
    }
    if (send_unsent(session) < 0) { /* the line had come with the one before */
        Py_CLEAR(line);
    }
    else if (!PyUnicode_Check(line)) {
        PyErr_SetString(PyExc_TypeError, "sys.stdin.readline() returned no str");
        Py_CLEAR(line);
    }
    else if (PyUnicode_GetLength(line) == MAX_LINE && !ends_line(line)) {
        Py_SETREF(line, skip_line(session));
    }
    else if (!ends_line(line) && is_gone(session)) {
        Py_SETREF(line, PyUnicode_FromString(""));
    }
    return line;
}

/* The line of a TCP client ends with Ctrl-C. Until it has been read, what came before it is
 * interrupted, too. */
static bool
is_taken_back(struct session *session, PyObject *line)
{
    Py_ssize_t length = PyUnicode_GetLength(line);
    return atomic_load(&session->plain_fd.number) >= 0 && length > 1 && ends_line(line) &&
           PyUnicode_ReadChar(line, length - 2) == CTRL_C;
}

/* As read_any_line(), but a line that its client has taken back is a KeyboardInterrupt; or nothing
 * at all, when that Ctrl-C has interrupted a statement, which is over by now. */
ATTACHED static PyObject *
read_line(struct session *session)
{
    PyObject *line = read_any_line(session); /* owned, handed to the caller */
    while (line != NULL && is_taken_back(session, line)) {
        Py_CLEAR(line);
        atomic_store(&session->taken_back, false);
        if (atomic_load(&session->interrupts) > 0) {
            atomic_fetch_sub(&session->interrupts, 1);
            line = read_any_line(session);
        }
        else {
            PyErr_SetNone(PyExc_KeyboardInterrupt);
        }
    }
    return line;
}

/* A statement forked, and this is the child, whose main() is our loop: there is nothing
 * to go back to, and its client belongs to the parent. */
ATTACHED static void
leave_forked_child(void)
{
    static const char *const names[] = {"stdout", "stderr"};
    for (size_t i = 0; i < Py_ARRAY_LENGTH(names); i++) {
        PyObject *stream = get_sys(names[i]); /* owned */
        PyObject *flushed = NULL;             /* owned */
        if (stream != NULL && stream != Py_None) {
            flushed = PyObject_CallMethod(stream, "flush", NULL);
        }
        PyErr_Clear();
        Py_XDECREF(stream);
        Py_XDECREF(flushed);
    }
    remove_paths_at_exit();
    _exit(0);
}

/* Between these two the session runs what its client sent: it may be interrupted. */
ATTACHED static void
begin_running(struct session *session)
{
    bool taken_back = false;
    atomic_store(&session->running, true);
    taken_back = atomic_load(&session->taken_back);
    atomic_store(&session->interrupts, taken_back);
    if (taken_back) {
        strike(session, PyExc_KeyboardInterrupt);
    }
}

ATTACHED static void
end_running(struct session *session)
{
    atomic_store(&session->running, false);
    if (atomic_exchange(&session->stricken, false)) {
        settle_interrupts(); /* it may have come too late */
    }
    if (session->state == SESSION_BURNT && current_session == NULL) {
        leave_forked_child();
    }
}

/* What became of a line. */
enum verdict {
    LINE_DONE,
    LINE_WANTS_MORE,
    SESSION_OVER, /* with or without an exception set */
};

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

/* After an exception that left the console: an interrupt, or a statement beyond the compiler's
 * limits, only costs the statement. */
ATTACHED static enum verdict
judge_exception(struct session *session, PyObject *console)
{
    static const char message[] = "\nKeyboardInterrupt\n";
    PyObject *reset = NULL; /* owned */
    if (PyErr_ExceptionMatches(PyExc_KeyboardInterrupt)) {
        size_t skipped = session->wish->marked ? 1 : 0; /* there Ctrl-C ends the line */
        PyErr_Clear();
        if (write_client(session, message + skipped, sizeof(message) - 1 - skipped) < 0) {
            return SESSION_OVER;
        }
    }
    else if (PyErr_ExceptionMatches(PyExc_MemoryError) ||
             PyErr_ExceptionMatches(PyExc_RecursionError)) {
        if (show_compiler_error() < 0) {
            return SESSION_OVER;
        }
    }
    else {
        if (PyErr_ExceptionMatches(PyExc_SystemExit)) {
            PyErr_Clear();
        }
        return SESSION_OVER;
    }
    reset = PyObject_CallMethod(console, "resetbuffer", NULL);
    Py_XDECREF(reset);
    return reset == NULL ? SESSION_OVER : LINE_DONE;
}

/* Whether a line that begins a statement is all of it, and does but one thing: then the value that
 * it shows is its end. May say no to one that is: of a backslash the compiler may have to warn, and
 * the console sees to it that it does so once. */
static bool
is_one_act(PyObject *line)
{
    static const char *const signs = ":;\\";
    bool found = false;
    for (size_t i = 0; signs[i] != '\0' && !found; i++) {
        found = PyUnicode_FindChar(line, (Py_UCS4)signs[i], 0, PyUnicode_GET_LENGTH(line),
                                   1) != -1;
    }
    return !found;
}

/* Compiles such a line once, where the console does it twice and more to find out whether it goes
 * on. Returns new code; or NULL, without an exception when it is for the console to say why. */
ATTACHED static PyObject *
compile_one_act(PyObject *console, PyObject *line)
{
    PyObject *command = PyObject_GetAttrString(console, "compile"); /* owned */
    PyObject *compiler =
        command == NULL ? NULL : PyObject_GetAttrString(command, "compiler"); /* owned */
    PyObject *code = NULL; /* new, handed to the caller */
    if (compiler != NULL) {
        code = PyObject_CallFunction(compiler, "Oss", line, "<console>", "single");
    }
    if (code == NULL && PyErr_ExceptionMatches(PyExc_Exception)) {
        PyErr_Clear();
    }
    Py_XDECREF(command);
    Py_XDECREF(compiler);
    return code;
}

/* Runs what was pasted as a file would be: nothing of it when the compiler refuses a part, else one
 * statement after the other until one fails; but each shows its value, as it does at the prompt. It
 * may be indented, or have doctest's prompts. Where it is but the beginning of a statement, more is
 * wanted; into a block that is being typed it goes as it is, and the block goes on where its end is
 * indented. Nothing is imported for it. */
static const char paste_program[] =
    "def lines_of(text, first):\n"
    "    margin = first[:len(first) - len(first.lstrip())]\n"
    "    lines = [line.removeprefix(margin) for line in text.split('\\n')]\n"
    "    if first.startswith(margin + '>>>'):\n"
    "        return [line[4:] for line in lines if line.startswith(('>>>', '...'))]\n"
    "    return lines\n"
    "def compiled(console, source, only_ast):\n"
    "    def parse(source, mode):\n"
    "        return compile(source, console.filename, mode, only_ast, True)\n"
    "    for statement in parse(source, 'exec').body:\n"
    "        single = parse('0', 'single')\n"
    "        single.body = [statement]\n"
    "        yield console.compile.compiler(single, console.filename, 'single')\n"
    "def is_begun(console, source):\n"
    "    try:\n"
    "        return console.compile(source, console.filename, 'single') is None\n"
    "    except (OverflowError, SyntaxError, ValueError):\n"
    "        return False\n"
    "def run(console, text, only_ast):\n"
    "    full = [line for line in text.split('\\n') if line.strip()]\n"
    "    code = [line for line in full if not line.lstrip().startswith('#')]\n"
    "    if not console.buffer:\n"
    "        source = '\\n'.join(lines_of(text, (code or [''])[0]))\n"
    "    elif not full or full[-1][0].isspace():\n"
    "        return console.push(text)\n"
    "    else:\n"
    "        source = '\\n'.join([*console.buffer, text])\n"
    "        console.resetbuffer()\n"
    "    try:\n"
    "        statements = list(compiled(console, source, only_ast))\n"
    "    except (OverflowError, SyntaxError, ValueError):\n"
    "        if is_begun(console, source):\n"
    "            return console.push(source)\n"
    "        console.showsyntaxerror(console.filename, source=source)\n"
    "        return False\n"
    "    for statement in statements:\n"
    "        try:\n"
    "            exec(statement, console.locals)\n"
    "        except SystemExit:\n"
    "            raise\n"
    "        except BaseException:\n"
    "            console.showtraceback()\n"
    "            break\n"
    "    return False\n";

static const struct part paste_part = {.name = "paste", .program = paste_program};

/* Returns a new bool, whether more lines are wanted; or NULL with an exception. */
ATTACHED static PyObject *
run_paste(PyObject *console, PyObject *text)
{
    PyObject *run = get_from_part(manhole.module, &paste_part, "run"); /* owned */
    PyObject *more = NULL; /* new, handed to the caller */
    if (run != NULL) {
        more = PyObject_CallFunction(run, "OOi", console, text, PyCF_ONLY_AST);
    }
    Py_XDECREF(run);
    return more;
}

/* Runs what a line completes, if it does. Returns a new bool, whether more lines are wanted; or
 * NULL with an exception. */
ATTACHED static PyObject *
run_line(struct session *session, PyObject *console, PyObject *line)
{
    PyObject *code = session->one_act ? compile_one_act(console, line) : NULL; /* owned */
    PyObject *ran = NULL;                                                      /* owned */
    PyObject *more = NULL; /* new, handed to the caller */
    if (code != NULL) {
        ran = PyObject_CallMethod(console, "runcode", "O", code);
        more = ran == NULL ? NULL : Py_NewRef(Py_False);
    }
    else if (!PyErr_Occurred()) {
        more = PyObject_CallMethod(console, "push", "O", line);
    }
    Py_XDECREF(code);
    Py_XDECREF(ran);
    return more;
}

/* begins: no block is being typed. */
ATTACHED static enum verdict
push_line(struct session *session, PyObject *console, PyObject *line, bool begins,
          bool is_paste)
{
    Py_ssize_t length = PyUnicode_GetLength(line) - (ends_line(line) ? 1 : 0);
    PyObject *bare = PyUnicode_Substring(line, 0, length); /* owned */
    PyObject *more = NULL;                                 /* owned */
    enum verdict verdict = SESSION_OVER;
    if (bare == NULL) {
        return SESSION_OVER;
    }
    replace_streams();
    session->one_act = begins && !is_paste && is_one_act(bare);
    begin_running(session);
    more = is_paste ? run_paste(console, bare) : run_line(session, console, bare);
    end_running(session);
    session->one_act = false;
    if (more != NULL) {
        verdict = more == Py_True ? LINE_WANTS_MORE : LINE_DONE;
    }
    else {
        verdict = judge_exception(session, console);
    }
    Py_DECREF(bare);
    Py_XDECREF(more);
    return verdict;
}

/* Returns the descriptor, the session's, at which the client's bytes are to be read; or -1 with an
 * exception. */
ATTACHED static int
open_input_fd(struct session *session)
{
    int fd = kept_number(&session->fd);
    int flags = fcntl(fd, F_GETFL);
    if (flags >= 0 && (flags & O_NONBLOCK) != 0) {
        (void)fcntl(fd, F_SETFL,
                    flags & ~O_NONBLOCK); /* a socket object's timeout set it */
    }
    if (is_inet(fd) && atomic_load(&session->plain_fd.number) < 0) {
        PyThreadState *tstate = detach();
        int error = 0;
        fd = open_telnet(session);
        error = errno;
        reattach(tstate);
        errno = error;
    }
    if (fd < 0) {
        PyErr_SetFromErrno(PyExc_OSError);
    }
    return fd;
}

/* A client asks, or waits for its console: it must have heard something within hang_timeout, or a
 * reporter tells it why not. */
DETACHED static void
expect_answer(struct session *session)
{
    int64_t now_ms = monotonic_ms();
    int64_t wakes_at_ms = -1;
    lock_leaf(&session->out_lock);
    session->waiting_ms = now_ms;
    session->asked_ms = session->asked_ms == 0 ? 0 : now_ms; /* 0: nobody watches it */
    session->answered = false;
    session->reported = false;
    session->told = false;
    unlock(&session->out_lock);
    /* A listener that wakes in time anyway sees it then: most lines cost it nothing. */
    wakes_at_ms = atomic_load(&manhole.wakes_at_ms);
    if (wakes_at_ms < 0 ||
        wakes_at_ms > now_ms + seconds_to_ms(manhole.options.hang_timeout)) {
        ring_bell(&manhole.wake_bell);
    }
}

/* Under out_lock, when nobody sends. Returns whether a reporter has told the client already. */
static bool
note_answer(struct session *session)
{
    session->answered = true;
    session->waiting_ms = 0;
    return session->told;
}

/* Python has answered: no reporter has to any more. Returns as note_answer(). */
DETACHED static bool
settle_report(struct session *session)
{
    bool told = false;
    lock_leaf(&session->out_lock);
    while (session->sending) { /* a reporter in the middle of it comes to its end */
        (void)pthread_cond_wait(&session->out_free, &session->out_lock);
    }
    told = note_answer(session);
    unlock(&session->out_lock);
    return told;
}

/* The same, for who is attached, and stays so unless a reporter is in the middle of it. */
ATTACHED static bool
settle_report_attached(struct session *session)
{
    bool sending = false;
    bool told = false;
    lock_leaf(&session->out_lock);
    sending = session->sending;
    told = !sending && note_answer(session);
    unlock(&session->out_lock);
    if (sending) {
        PyThreadState *tstate = detach();
        told = settle_report(session);
        reattach(tstate);
    }
    return told;
}

/* See open_input_fd(). */
static int
input_fd(struct session *session)
{
    return kept_number(atomic_load(&session->plain_fd.number) >= 0 ? &session->plain_fd
                                                                   : &session->fd);
}

/* What is typed at a terminal: a client whose wish is marked sends its keys Ctrl-C and Ctrl-D as
 * those bytes among the text, and each is for who reads just then, be it the console, input() or
 * Pdb. What is pasted comes between two more, which make one of it to the console.
 *
 * What such a client hears is marked in turn, for it must know whether somebody reads, and what the
 * prompt is: "\1?PROMPT\2" when the session begins to wait, "\1!\2" when it has got something. Of
 * input() and Pdb the prompt is the line that they have written before, and PROMPT is empty. */
enum { PASTE_BEGINS = 2, PASTE_ENDS = 5 };

static bool
is_key(const struct session *session, char byte)
{
    return session->wish->marked && (byte == CTRL_C || byte == CTRL_D ||
                                     byte == PASTE_BEGINS || byte == PASTE_ENDS);
}

/* The prompt, with the marks for a client that wants them. */
static void
append_prompt(struct text *text, const struct session *session, const char *prompt)
{
    append_string(text, session->wish->marked ? "\1?" : "");
    append_string(text, prompt);
    append_string(text, session->wish->marked ? "\2" : "");
}

/* As recv(), up to the next key, or that key alone. */
DETACHED static ssize_t
receive_up_to_key(struct session *session, int fd, char *bytes, size_t size)
{
    ssize_t got = recv(fd, bytes, size, session->wish->marked ? MSG_PEEK : 0);
    size_t length = 0;
    if (got <= 0 || !session->wish->marked) {
        return got;
    }
    while (length < (size_t)got && !is_key(session, bytes[length])) {
        length++;
    }
    return recv(fd, bytes, length == 0 ? 1 : length, 0);
}

/* The session has got something to read. An error shows when it writes on. */
DETACHED static void
send_read_mark(struct session *session)
{
    const char *mark = "\1!\2";
    size_t length = strlen(mark);
    session->says_it_reads = false;
    while (send_detached(session, &mark, &length) == EINTR) {
    }
}

/* Sends what waits for that, then waits for what the client sends: detached but once, for a process
 * whose threads compute gives the GIL back after some time only. Returns how many bytes there are,
 * 0 at the end, or -1 with errno. While they wait for Python to take them the session has not
 * answered. */
ATTACHED static ssize_t
receive_typed(struct session *session, char *bytes, size_t size)
{
    PyThreadState *tstate = detach();
    struct pollfd client = {.fd = input_fd(session), .events = POLLIN};
    int error = send_unsent_detached(session);
    ssize_t got = -1;
    while (error == 0 && got < 0) {
        got = receive_up_to_key(session, client.fd, bytes, size);
        error = got < 0 ? errno : 0;
        if (error == EAGAIN) { /* somebody has set O_NONBLOCK on the shared socket */
            error = poll(&client, 1, -1) < 0 ? errno : 0;
        }
    }
    if (got > 0 && session->wish->marked && !session->pasting) {
        send_read_mark(session);
    }
    if (got > 0 &&
        (is_key(session, bytes[0]) || memchr(bytes, '\n', (size_t)got) != NULL)) {
        expect_answer(session);
    }
    reattach(tstate);
    (void)settle_report_attached(session);
    errno = error;
    return got;
}

/* As receive_typed(), and says before that it waits. Returns -1 with an exception. */
ATTACHED static ssize_t
await_typed(struct session *session, char *bytes, size_t size)
{
    ssize_t got = -1;
    if (session->wish->marked && !session->says_it_reads && !session->pasting) {
        session->says_it_reads = true;
        append_prompt(&session->unsent, session,
                      session->prompt == NULL ? "" : session->prompt);
        if (check_unsent(session) < 0) {
            return -1;
        }
    }
    do {
        got = receive_typed(session, bytes, size);
    } while (got < 0 && errno == EINTR && PyErr_CheckSignals() == 0);
    if (got < 0 && !PyErr_Occurred()) {
        PyErr_SetFromErrno(PyExc_OSError);
    }
    session->says_it_reads = session->says_it_reads && got >= 0;
    return got;
}

/* Reads what is typed. Of the keys an end is one, and so are both ends of a paste to the console;
 * Ctrl-C is an exception. Returns how many bytes there are, or -1 with an exception. */
ATTACHED static ssize_t
read_typed(struct session *session, char *bytes, size_t size)
{
    for (;;) {
        ssize_t got = await_typed(session, bytes, size);
        if (got <= 0 || !is_key(session, bytes[0])) {
            return got;
        }
        if (bytes[0] == CTRL_C) {
            PyErr_SetNone(PyExc_KeyboardInterrupt);
            return -1;
        }
        if (bytes[0] == CTRL_D || session->takes_paste) {
            bool was_pasting = session->pasting;
            session->pasting = bytes[0] == PASTE_BEGINS;
            if (bytes[0] != PASTE_ENDS || was_pasting) {
                return 0;
            }
        }
    }
}

ATTACHED static PyObject *
input_readinto(PyObject *self, PyObject *target)
{
    Py_buffer view;
    ssize_t got = -1;
    (void)self;
    if (current_session == NULL) {
        PyErr_SetString(PyExc_OSError, "only a session's thread reads its client");
        return NULL;
    }
    if (PyObject_GetBuffer(target, &view, PyBUF_WRITABLE) < 0) {
        return NULL;
    }
    got = read_typed(current_session, view.buf, (size_t)view.len);
    PyBuffer_Release(&view);
    return got < 0 ? NULL : PyLong_FromSsize_t(got);
}

ATTACHED static PyObject *
input_readable(PyObject *self, PyObject *unused)
{
    (void)self;
    (void)unused;
    return Py_NewRef(Py_True);
}

ATTACHED static PyObject *
input_fileno(PyObject *self, PyObject *unused)
{
    (void)self;
    (void)unused;
    if (current_session == NULL) {
        PyErr_SetString(PyExc_OSError, "only a session's thread has its client");
        return NULL;
    }
    return make_descriptor(input_fd(current_session));
}

static PyMethodDef input_methods[] = {
    {"readinto", input_readinto, METH_O, NULL},
    {"readable", input_readable, METH_NOARGS, NULL},
    {"fileno", input_fileno, METH_NOARGS, NULL},
    {NULL, NULL, 0, NULL},
};

/* A text file over what the client types. Returns a new reference, or NULL with an exception. */
ATTACHED static PyObject *
open_typed_input(struct session *session)
{
    static const struct derived derived = {.name = "Input",
                                           .module = IO_MODULE,
                                           .base = RAW_IO_BASE,
                                           .methods = input_methods};
    PyObject *type = get_derived(&derived, &installed_state()->input_type); /* owned */
    PyObject *io = type == NULL ? NULL : PyImport_ImportModule(IO_MODULE);  /* owned */
    PyObject *name = PyUnicode_FromString(stream_name);                     /* owned */
    PyObject *mode = PyUnicode_FromString("r");                             /* owned */
    PyObject *raw = NULL;                                                   /* owned */
    PyObject *buffer = NULL;                                                /* owned */
    PyObject *text = NULL; /* new, handed to the caller */
    if (io != NULL && name != NULL && mode != NULL && open_input_fd(session) >= 0) {
        raw = PyObject_CallNoArgs(type);
    }
    if (raw != NULL && PyObject_SetAttrString(raw, "name", name) == 0) {
        buffer = PyObject_CallMethod(io, "BufferedReader", "O", raw);
    }
    if (buffer != NULL) {
        text = PyObject_CallMethod(io, "TextIOWrapper", "Oss", buffer, "utf-8",
                                   "surrogateescape");
    }
    if (text != NULL && PyObject_SetAttrString(text, "mode", mode) < 0) {
        Py_CLEAR(text);
    }
    Py_XDECREF(type);
    Py_XDECREF(io);
    Py_XDECREF(name);
    Py_XDECREF(mode);
    Py_XDECREF(raw);
    Py_XDECREF(buffer);
    return text;
}

/* A text file over the client's socket, for reading; the descriptor stays the session's.
 * Bytes that are no UTF-8 become lone surrogates: the line fails with an error, the
 * session goes on. */
ATTACHED static PyObject *
open_input(struct session *session)
{
    int fd = open_input_fd(session);
    return fd < 0 ? NULL
                  : PyFile_FromFd(fd, stream_name, "r", -1, "utf-8", "surrogateescape",
                                  NULL, 0);
}

/* Reads the line that a prompt has asked for. Returns as read_line() does; NULL without an
 * exception after a SystemExit, which is not the client's, for nothing of its runs now: it goes
 * on where it came from. */
ATTACHED static PyObject *
await_line(struct session *session)
{
    PyObject *line = NULL; /* new, handed to the caller */
    session->writes = 0;
    if (session->input == NULL) {
        session->input = open_typed_input(session);
    }
    line = session->input == NULL ? NULL : read_line(session);
    if (line == NULL && PyErr_ExceptionMatches(PyExc_SystemExit)) {
        Py_XSETREF(session->raised, take_exception());
    }
    return line;
}

/* Asks with a prompt, and reads the line as await_line() does. At a terminal there is no prompt for
 * a line that was typed ahead, and has been read with another. */
ATTACHED static PyObject *
ask_line(struct session *session, const char *prompt)
{
    PyObject *line = NULL; /* new, handed to the caller */
    if (!session->wish->marked) {
        append_string(&session->unsent, prompt);
    }
    session->prompt = prompt;
    line = check_unsent(session) < 0 ? NULL : await_line(session);
    session->prompt = NULL;
    return line;
}

/* The rest of a paste of which the first key has been read. Returns a new str, empty when it is not
 * whole; or NULL with an exception. */
ATTACHED static PyObject *
read_paste(struct session *session)
{
    PyObject *text = PyObject_CallMethod(session->input, "read", "i", MAX_LINE);
    if (text != NULL && session->pasting) {
        Py_SETREF(text, PyUnicode_FromString(""));
    }
    return text;
}

/* Reads what the console is to run next: a line, or what was pasted. Returns as await_line(). */
ATTACHED static PyObject *
read_input(struct session *session, const char *prompt /* NULL: it is there already */,
           bool *is_paste)
{
    PyObject *text = NULL; /* owned, handed to the caller */
    session->takes_paste = true;
    text = prompt == NULL ? await_line(session) : ask_line(session, prompt);
    *is_paste = session->pasting;
    if (text != NULL && session->pasting) {
        Py_SETREF(text, read_paste(session));
    }
    session->takes_paste = session->pasting = false;
    return text;
}

/* Line, prompt, line, prompt; a prompt first, if a reporter has told the client something behind
 * that of the greeting. Returns with an exception set when it was one that ended it. */
ATTACHED static void
run_console(struct session *session, PyObject *console, bool told)
{
    static const char end_of_input[] = "\nnow exiting ManholeConsole...\n";
    PyObject *line = NULL; /* owned */
    bool is_paste = false;
    enum verdict verdict = LINE_DONE;
    line = read_input(session, told ? ">>> " : NULL, &is_paste);
    while (verdict != SESSION_OVER) {
        if (line == NULL) {
            verdict = judge_exception(session, console);
        }
        else if (PyUnicode_GetLength(line) == 0) {
            (void)write_client(session, end_of_input, sizeof(end_of_input) - 1);
            verdict = SESSION_OVER;
        }
        else {
            verdict = push_line(session, console, line, verdict == LINE_DONE, is_paste);
        }
        if (verdict != SESSION_OVER) {
            const char *prompt = verdict == LINE_WANTS_MORE ? "... " : ">>> ";
            Py_XSETREF(line, read_input(session, prompt, &is_paste));
        }
    }
    Py_XDECREF(line);
}

/* Sends the stacks, unless there is no form for them or a reporter was quicker; the banner and the
 * prompt, if it greets. All at once, and Python is let go of once: a process whose threads compute
 * gives the GIL back after some time only. Returns 0, or -1 with an exception. */
ATTACHED static int
send_stacks(struct session *session, const struct form *form /* or NULL */, bool greets)
{
    struct look look = {.frame_count = 0};
    struct text text = {0};
    const char *rest = NULL;
    size_t length = 0;
    int error = 0;
    int result = -1;
    PyThreadState *tstate =
        form == NULL ? detach() : detach_with_stacks(&text, form, &look);
    if (!text.failed && settle_report(session)) {
        free_text(&text);
    }
    if (greets) {
        append_banner(&text);
        append_prompt(&text, session, ">>> ");
        session->says_it_reads = true;
    }
    rest = text.bytes;
    length = text.length;
    if (!text.failed) {
        error = send_detached(session, &rest, &length);
    }
    if (greets) {
        expect_answer(session);
        /* The kernel puts who hears it behind us, for it takes us for done. */
        (void)sched_yield();
    }
    reattach(tstate);
    if (!text.failed) {
        result = conclude_sending(session, error, rest, length);
    }
    else if (!PyErr_Occurred()) {
        PyErr_NoMemory();
    }
    free_look(&look);
    free_text(&text);
    return result;
}

/* As much of code.InteractiveConsole as the prompt needs, for where that cannot be imported. What
 * more lines may complete is one with another error for each, or a bracket that is still open, as
 * codeop had it before CPython told of it. 0x200: PyCF_DONT_IMPLY_DEDENT, a block ends with an
 * empty line. */
static const char plain_console_program[] =
    "class Console:\n"
    "    filename = '<console>'\n"
    "    compile = property(lambda self: self)\n"
    "    def __init__(self, locals):\n"
    "        self.locals = locals\n"
    "        self.resetbuffer()\n"
    "    def resetbuffer(self):\n"
    "        self.buffer = []\n"
    "    def compiler(self, source, filename, symbol):\n"
    "        return compile(source, filename, symbol, 0x200, True)\n"
    "    def __call__(self, source, filename, symbol):\n"
    "        whole = self.is_whole(source)\n"
    "        return self.compiler(source, filename, symbol) if whole else None\n"
    "    def find_error(self, source):\n"
    "        try:\n"
    "            self.compiler(source, '<console>', 'single')\n"
    "        except (SyntaxError, ValueError, OverflowError) as error:\n"
    "            return repr(error)\n"
    "    def is_whole(self, source):\n"
    "        if self.find_error(source) is None:\n"
    "            return True\n"
    "        longer = [self.find_error(source + end) for end in ('\\n', '\\n\\n')]\n"
    "        return None is not longer[0] == longer[1] and 'never closed' not in "
    "longer[0]\n"
    "    def push(self, line):\n"
    "        self.buffer.append(line)\n"
    "        source = '\\n'.join(self.buffer)\n"
    "        if not any(line.split('#')[0].strip() for line in self.buffer):\n"
    "            source = 'pass'\n"
    "        if not self.is_whole(source):\n"
    "            return True\n"
    "        self.resetbuffer()\n"
    "        try:\n"
    "            code = self.compiler(source, '<console>', 'single')\n"
    "        except (SyntaxError, ValueError, OverflowError):\n"
    "            self.showsyntaxerror()\n"
    "        else:\n"
    "            self.runcode(code)\n"
    "        return False\n"
    "    def runcode(self, code):\n"
    "        try:\n"
    "            exec(code, self.locals)\n"
    "        except SystemExit:\n"
    "            raise\n"
    "        except:\n"
    "            self.showtraceback()\n";

static const struct part plain_console_part = {.name = "plain console",
                                               .program = plain_console_program};

/* Returns a new reference to the console's class, or NULL with an exception. A plain one is not
 * kept: the next session may have the other. */
ATTACHED static PyObject *
get_console_type(void)
{
    static const struct derived full = {.name = "ManholeConsole",
                                        .module = "code",
                                        .base = "InteractiveConsole",
                                        .methods = console_methods};
    static const struct derived plain = {.name = "ManholeConsole",
                                         .part = &plain_console_part,
                                         .base = "Console",
                                         .methods = console_methods};
    PyObject *type = NULL; /* new, handed to the caller */
    if (!is_found_normally("warnings")) {
        return make_derived(&plain); /* codeop takes it from sys.modules */
    }
    type = get_derived(&full, &installed_state()->console_type);
    if (type == NULL && PyErr_ExceptionMatches(PyExc_Exception)) {
        PyErr_Clear(); /* it has been told */
        type = make_derived(&plain);
    }
    return type;
}

/* The console of a client that has been greeted; and perhaps told something behind its prompt.
 * Returns with an exception set when it was one that ended it. */
ATTACHED static void
hold_console(struct session *session, bool told)
{
    PyObject *type = get_console_type(); /* owned */
    PyObject *console = NULL;            /* owned */
    console = type == NULL ? NULL : PyObject_CallOneArg(type, session->names);
    /* Also without a console: the shell around it goes on. */
    told = settle_report_attached(session) || told;
    if (console != NULL) {
        run_console(session, console, told);
    }
    Py_XDECREF(type);
    Py_XDECREF(console);
}

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
        deliver_log();
        return;
    }
    exception = take_exception();
    (void)snprintf(line, sizeof(line), "manhole: %s%s.\n", prefix,
                   describe_exception(exception, text, sizeof(text)));
    log_line("%s%s.", prefix, text);
    deliver_log();
    if (write_as(session, FRAME_ERROR, line, strlen(line)) < 0) {
        PyErr_Clear();
    }
    Py_XDECREF(exception);
}

/* The dump, then the console: its modules are imported while its client looks at the prompt.
 * Returns with an exception set when it was one that ended it. */
ATTACHED static void
talk(struct session *session, PyObject *locals)
{
    bool told = false;
    if (is_inet(kept_number(&session->fd))) { /* a Unix client's: behind the prompt */
        set_importing(session, true); /* it may wait for what another session imports */
        session->input = open_typed_input(session);
        set_importing(session, false);
    }
    if (PyErr_Occurred() || open_streams(session) < 0 ||
        send_stacks(session, session->wish->no_stacks ? NULL : &dump_form, true) < 0) {
        return;
    }
    if (!HAS_GIL) {
        lend_spare(kept_number(&session->fd)); /* again: the stacks came from a copy */
    }
    told = import_needed_modules(session, "\n");
    set_names(session, make_names(locals, session->wish->live_names));
    if (session->names != NULL) {
        hold_console(session, told);
    }
    if (PyErr_Occurred()) { /* what is said about it stands on a line of its own */
        PyObject *raised = take_exception(); /* owned, handed back */
        (void)write_client(session, "\n", 1);
        put_back_exception(raised);
    }
}

/* No more bytes to or from this client; the descriptor is closed with the session. */
DETACHED static void
hang_up(struct session *session)
{
    char unread[4096];
    int fd = kept_number(&session->fd);
    begin_sending(session);
    (void)send_copies(session, MSG_DONTWAIT);
    end_sending(session);
    lock_leaf(&session->out_lock);
    atomic_store(&session->over, true);
    (void)pthread_cond_broadcast(&session->out_free);
    unlock(&session->out_lock);
    (void)shutdown(fd, SHUT_RDWR);
    (void)shutdown(kept_number(&session->plain_fd), SHUT_RDWR);
    /* What stays unread would turn into ECONNRESET behind our last bytes. */
    while (recv(fd, unread, sizeof(unread), MSG_DONTWAIT) > 0) {
    }
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
    Py_CLEAR(session->input);
    set_names(session, NULL);
    tstate = detach();
    hang_up(session);
    reattach(tstate);
    log_line("Cleaned up.");
    deliver_log();
}

/* Serves the session's client with the console. Never raises. */
ATTACHED static void
serve_console(struct session *session, PyObject *locals)
{
    serve_lines(session, locals, talk);
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
    deliver_log();
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
    session->input = open_input(session);
    while (session->input != NULL && !over) {
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
    Py_CLEAR(session->input);
    tstate = detach();
    hang_up(session);
    reattach(tstate);
    deliver_log();
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

#endif /* MANHOLE_SESSION_CONSOLE_C */
