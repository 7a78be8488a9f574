/* Streams: the objects that stand in sys while a client has a console.
 * Runs on:  every thread that prints or reads, ATTACHED.
 * Touches:  sys, through borrow_attribute(); a client's output.
 * In a session's thread a stream is that client's. In any other it is the original in all but
 * write() and writelines(), which also leave a copy for the clients; so an old reference to one
 * of ours serves its owner for ever.
 *
 * How it works. While a client has a console, sys.stdin, stdout and stderr, and the __std*__ beside
 * them, are objects of the type below; each keeps the object that stood there before, its original.
 *
 *   Who is asked. stream_target() decides by thread: in that of a session the stream itself
 *   answers, for its client; in all others the original does, so encoding, fileno() or whatever
 *   the application has put there stay as they were. Only write() and writelines() do a little
 *   more: when the text has gone where it always went, a copy goes to the clients.
 *
 *   Borrowed and given back. manhole.borrowed[] has a row for each attribute: what was there and
 *   what we have put there. When the last console goes, the old object returns, but only where
 *   ours still stands: what the application has set meanwhile is its own. A client that comes
 *   later finds the attribute as it is then.
 *
 *   Old references. A logging handler that was made while a client was there keeps our stream for
 *   the life of the process. It goes on writing to its original. For one original get_stream()
 *   hands out the same stream again, so streams do not pile up on each other. print() only
 *   borrows what it finds in sys while it writes: the last KEPT_STREAMS streams are kept alive
 *   for it.
 */
#ifndef MANHOLE_SESSION_STREAMS_C
#define MANHOLE_SESSION_STREAMS_C

#include "../base/compat.c"
#include "../base/state.c"
#include "../base/locks.c"
#include "../base/basics.c"
#include "output.c"

enum {
    /* Stream objects that outlive their client. */
    KEPT_STREAMS = 48,
};

struct stream {
    PyObject_HEAD PyObject *original; /* owned: what stood in sys before, None too */
    PyObject *write_name;             /* owned, interned "write" */
    PyObject *write;           /* owned: this attribute, ready for print(); or NULL */
    const char *name;          /* of the attribute of sys */
    PyObject *weak_references; /* CPython's own */
    bool is_input;
    bool is_error;
};

/* The session whose client the calling thread's streams belong to, or NULL. */
static struct session *
console_session(void)
{
    return current_session != NULL && current_session->run.has_console ? current_session
                                                                       : NULL;
}

/* Whether the session wants sys.stderr: a program's errors are always its client's. */
static bool
wants_stderr(const struct session *session)
{
    return session->channel->framed || manhole.options.redirect_stderr;
}

/* The session whose client this stream is in the calling thread, or NULL: the original is. */
static struct session *
stream_session(const struct stream *stream)
{
    struct session *session = console_session();
    return session != NULL && stream->is_error && !wants_stderr(session) ? NULL : session;
}

ATTACHED static int
stream_traverse(PyObject *self, visitproc visit, void *arg)
{
    Py_VISIT(Py_TYPE(self));
    Py_VISIT(((struct stream *)self)->original);
    Py_VISIT(((struct stream *)self)->write);
    return 0;
}

/* What has a cycle with it may still write to it: that goes nowhere then. */
ATTACHED static int
stream_clear(PyObject *self)
{
    Py_CLEAR(((struct stream *)self)->write); /* which refers to self */
    Py_XSETREF(((struct stream *)self)->original, Py_NewRef(Py_None));
    return 0;
}

ATTACHED static void
stream_dealloc(PyObject *self)
{
    PyTypeObject *type = Py_TYPE(self);
    PyObject_GC_UnTrack(self);
    if (((struct stream *)self)->weak_references != NULL) {
        PyObject_ClearWeakRefs(self);
    }
    (void)stream_clear(self);
    Py_XDECREF(((struct stream *)self)->original);
    Py_XDECREF(((struct stream *)self)->write_name);
    type->tp_free(self);
    Py_DECREF(type);
}

ATTACHED static PyObject *
stream_repr(PyObject *self)
{
    struct stream *stream = (struct stream *)self;
    return PyUnicode_FromFormat("<manhole.Stream %s of %R>", stream->name,
                                stream->original);
}

/* Whose attributes the stream shows to the calling thread. Returns a borrowed reference;
 * self means the methods below. */
ATTACHED static PyObject *
stream_target(PyObject *self)
{
    struct stream *stream = (struct stream *)self;
    struct session *session = stream_session(stream);
    if (session != NULL) {
        if (stream->is_input) {
            ask_for_input(session);
        }
        if (!stream->is_input || session->run.input != NULL) {
            return stream->is_input ? session->run.input : self;
        }
    }
    return stream->original == Py_None && !stream->is_input ? self : stream->original;
}

ATTACHED static PyObject *
stream_getattro(PyObject *self, PyObject *name)
{
    struct stream *stream = (struct stream *)self;
    PyObject *target = NULL; /* borrowed */
    if (name == stream->write_name && stream->write != NULL) {
        return Py_NewRef(stream->write);
    }
    target = stream_target(self);
    if (target == self) {
        return PyObject_GenericGetAttr(self, name);
    }
    if (!stream->is_input &&
        (PyUnicode_CompareWithASCIIString(name, "write") == 0 ||
         PyUnicode_CompareWithASCIIString(name, "writelines") == 0)) {
        return PyObject_GenericGetAttr(self, name);
    }
    return PyObject_GetAttr(target, name);
}

ATTACHED static int
stream_setattro(PyObject *self, PyObject *name, PyObject *value)
{
    PyObject *target = stream_target(self);
    return target == self ? PyObject_GenericSetAttr(self, name, value)
                          : PyObject_SetAttr(target, name, value);
}

ATTACHED static PyObject *
stream_iter(PyObject *self)
{
    PyObject *target = stream_target(self);
    if (target == self) {
        PyErr_SetString(PyExc_OSError, "not readable");
        return NULL;
    }
    return PyObject_GetIter(target);
}

/* next(sys.stdin) */
ATTACHED static PyObject *
stream_iternext(PyObject *self)
{
    PyObject *target = stream_target(self);
    if (target == self) {
        PyErr_SetString(PyExc_OSError, "not readable");
        return NULL;
    }
    if (!PyIter_Check(target)) {
        PyErr_Format(PyExc_TypeError, "'%s' object is not an iterator",
                     Py_TYPE(target)->tp_name);
        return NULL;
    }
    return PyIter_Next(target); /* NULL without an exception at the end */
}

/* with sys.stdout: as the original does it; a session's client stays open. */
ATTACHED static PyObject *
stream_enter(PyObject *self, PyObject *unused)
{
    PyObject *target = stream_target(self);
    PyObject *entered = NULL; /* owned */
    (void)unused;
    if (target != self) {
        entered = PyObject_CallMethod(target, "__enter__", NULL);
        if (entered == NULL) {
            return NULL;
        }
        Py_DECREF(entered);
    }
    return Py_NewRef(self);
}

ATTACHED static PyObject *
stream_exit(PyObject *self, PyObject *arguments)
{
    PyObject *target = stream_target(self);
    PyObject *method = NULL; /* owned */
    PyObject *result = NULL; /* new, handed to the caller */
    if (target == self) {
        return Py_NewRef(Py_None);
    }
    method = PyObject_GetAttrString(target, "__exit__");
    if (method != NULL) {
        result = PyObject_CallObject(method, arguments);
        Py_DECREF(method);
    }
    return result;
}

/* Bytes too, in a session: sys.stdout.buffer is the stream itself there. */
ATTACHED static PyObject *
write_to_session(struct session *session, enum frame_kind kind, PyObject *data)
{
    Py_ssize_t length = 0;
    int result = -1;
    if (PyUnicode_Check(data)) {
        length = PyUnicode_GetLength(data);
        result = write_str_as(session, kind, data);
    }
    else {
        Py_buffer view;
        if (PyObject_GetBuffer(data, &view, PyBUF_SIMPLE) < 0) {
            return NULL;
        }
        length = view.len;
        result = write_as(session, kind, view.buf, (size_t)view.len);
        PyBuffer_Release(&view);
    }
    return result < 0 ? NULL : PyLong_FromSsize_t(length);
}

/* Leaves a copy of what an application thread has printed: a str, or the bytes that a wrapper of a
 * session's buffer has made of it. Never raises. */
ATTACHED static void
echo_str(PyObject *str)
{
    Py_ssize_t length = 0;
    const char *bytes = NULL;
    if (PyBytes_Check(str)) {
        echo_to_clients(PyBytes_AS_STRING(str), (size_t)PyBytes_GET_SIZE(str));
    }
    if (!PyUnicode_Check(str)) {
        return;
    }
    bytes = PyUnicode_AsUTF8AndSize(str, &length);
    if (bytes != NULL) {
        echo_to_clients(bytes, (size_t)length);
    }
    else {
        struct text text = {0};
        PyErr_Clear();
        append_str(&text, str);
        if (text.length > 0) {
            echo_to_clients(text.bytes, text.length);
        }
        free_text(&text);
    }
}

/* Whether the application has put a write() of its own into the object. */
ATTACHED static bool
has_own_write(const struct stream *stream)
{
    PyObject *names = PyObject_GetAttrString(stream->original, "__dict__"); /* owned */
    bool own = names != NULL && PyMapping_HasKey(names, stream->write_name);
    PyErr_Clear();
    Py_XDECREF(names);
    return own;
}

/* The stream that the calling thread writes to the original of, or NULL. */
static _Thread_local const struct stream *passing_on;

/* Writes where it went without us. Returns what that does. */
ATTACHED static PyObject *
write_to_original(struct stream *stream, PyObject *data)
{
    const struct stream *outer = passing_on;
    PyObject *target = Py_NewRef(stream->original); /* owned */
    PyObject *method = NULL;                        /* owned */
    PyObject *result = NULL;                        /* new, handed to the caller */
    if (PyObject_CheckBuffer(
            data)) { /* a session's sys.stdout.buffer is the stream itself */
        PyObject *buffer = PyObject_GetAttrString(target, "buffer"); /* owned */
        if (buffer != NULL) {
            Py_SETREF(target, buffer);
        }
        PyErr_Clear();
    }
    else if (outer == stream && has_own_write(stream)) {
        /* It calls the one that it has replaced, which is ours: the type's does what that did. */
        method = PyObject_GetAttr((PyObject *)Py_TYPE(target), stream->write_name);
        result = method == NULL
                     ? NULL
                     : PyObject_CallFunctionObjArgs(method, target, data, NULL);
        goto done;
    }
    passing_on = stream;
    result = PyObject_CallMethodOneArg(target, stream->write_name, data);
    passing_on = outer;
done:
    Py_DECREF(target);
    Py_XDECREF(method);
    return result;
}

ATTACHED static PyObject *
stream_write(PyObject *self, PyObject *data)
{
    struct stream *stream = (struct stream *)self;
    struct session *session = stream_session(stream);
    PyObject *result = NULL;
    bool is_copied = false; /* by the call that this one is part of */
    if (session != NULL) {
        return write_to_session(session, stream->is_error ? FRAME_ERROR : FRAME_OUTPUT,
                                data);
    }
    if (stream->original == Py_None) {
        Py_ssize_t length = PyObject_Length(data);
        result = length < 0 ? NULL : PyLong_FromSsize_t(length);
    }
    else {
        is_copied =
            passing_on != NULL &&
            (!PyUnicode_Check(data) || (passing_on == stream && has_own_write(stream)));
        result = write_to_original(stream, data);
    }
    if (result != NULL && !is_copied && atomic_load(&manhole.viewers) > 0 &&
        !(stream->is_error && !manhole.options.redirect_stderr)) {
        echo_str(data);
    }
    return result;
}

ATTACHED static PyObject *
stream_writelines(PyObject *self, PyObject *lines)
{
    PyObject *line = NULL;                        /* owned */
    PyObject *iterator = PyObject_GetIter(lines); /* owned */
    if (iterator == NULL) {
        return NULL;
    }
    while ((line = PyIter_Next(iterator)) != NULL) {
        PyObject *result = stream_write(self, line);
        Py_DECREF(line);
        if (result == NULL) {
            break;
        }
        Py_DECREF(result);
    }
    Py_DECREF(iterator);
    return PyErr_Occurred() ? NULL : Py_NewRef(Py_None);
}

/* For fileno(). Returns a new int, or NULL with OSError for -1: the descriptor is ours no more. */
ATTACHED static PyObject *
make_descriptor(int fd)
{
    if (fd < 0) {
        errno = EBADF;
        return PyErr_SetFromErrno(PyExc_OSError);
    }
    return PyLong_FromLong(fd);
}

/* Raises io.UnsupportedOperation, which callers of fileno() are prepared for. */
ATTACHED static void
refuse_fileno(const char *why)
{
    PyObject *io = PyImport_ImportModule(IO_MODULE); /* owned */
    PyObject *type = io == NULL
                         ? NULL
                         : PyObject_GetAttrString(io, "UnsupportedOperation"); /* owned */
    if (type != NULL) {
        PyErr_SetString(type, why);
    }
    Py_XDECREF(io);
    Py_XDECREF(type);
}

/* The client's descriptor: subprocess.run(..., stdout=sys.stdout) shows at the client. Not where
 * stdout and stderr go in frames. */
ATTACHED static PyObject *
stream_fileno(PyObject *self, PyObject *unused)
{
    struct session *session = stream_session((struct stream *)self);
    (void)unused;
    if (session == NULL) {
        PyErr_SetString(PyExc_OSError,
                        "the original stream is None and has no descriptor");
        return NULL;
    }
    if (session->channel->framed) {
        refuse_fileno("what a program writes goes to its client in frames: there is no "
                      "descriptor for it");
        return NULL;
    }
    return make_descriptor(kept_number(&session->fd));
}

/* flush(), close(): every write has gone out by itself, and the client is not ours to
 * close. */
ATTACHED static PyObject *
stream_nothing(PyObject *self, PyObject *unused)
{
    (void)self;
    (void)unused;
    return Py_NewRef(Py_None);
}

/* isatty(), readable(), seekable() */
ATTACHED static PyObject *
stream_no(PyObject *self, PyObject *unused)
{
    (void)self;
    (void)unused;
    return Py_NewRef(Py_False);
}

ATTACHED static PyObject *
stream_writable(PyObject *self, PyObject *unused)
{
    (void)self;
    (void)unused;
    return Py_NewRef(Py_True);
}

/* A client has UTF-8, and all at once, whatever a program wishes. */
ATTACHED static PyObject *
stream_reconfigure(PyObject *self, PyObject *arguments, PyObject *keywords)
{
    (void)self;
    (void)arguments;
    (void)keywords;
    return Py_NewRef(Py_None);
}

static PyMethodDef stream_methods[] = {
    {"write", stream_write, METH_O, NULL},
    {"writelines", stream_writelines, METH_O, NULL},
    {"fileno", stream_fileno, METH_NOARGS, NULL},
    {"flush", stream_nothing, METH_NOARGS, NULL},
    {"close", stream_nothing, METH_NOARGS, NULL},
    {"reconfigure", (PyCFunction)(void (*)(void))stream_reconfigure,
     METH_VARARGS | METH_KEYWORDS, NULL},
    {"isatty", stream_no, METH_NOARGS, NULL},
    {"readable", stream_no, METH_NOARGS, NULL},
    {"seekable", stream_no, METH_NOARGS, NULL},
    {"writable", stream_writable, METH_NOARGS, NULL},
    {"__enter__", stream_enter, METH_NOARGS, NULL},
    {"__exit__", stream_exit, METH_VARARGS, NULL},
    {NULL, NULL, 0, NULL},
};

ATTACHED static PyObject *
stream_constant(PyObject *self, void *value)
{
    (void)self;
    return PyUnicode_FromString(value);
}

ATTACHED static PyObject *
stream_false(PyObject *self, void *unused)
{
    (void)self;
    (void)unused;
    return Py_NewRef(Py_False);
}

ATTACHED static PyObject *
stream_true(PyObject *self, void *unused)
{
    (void)self;
    (void)unused;
    return Py_NewRef(Py_True);
}

ATTACHED static PyObject *
stream_newlines(PyObject *self, void *unused)
{
    (void)self;
    (void)unused;
    return Py_NewRef(Py_None);
}

ATTACHED static PyObject *
stream_buffer(PyObject *self, void *unused)
{
    (void)unused;
    return Py_NewRef(self);
}

static char stream_encoding[] = "utf-8";
static char stream_errors[] = "backslashreplace";
static char stream_mode[] = "w";
static char stream_name[] = "<manhole>";

static PyGetSetDef stream_attributes[] = {
    {"encoding", stream_constant, NULL, NULL, stream_encoding},
    {"errors", stream_constant, NULL, NULL, stream_errors},
    {"mode", stream_constant, NULL, NULL, stream_mode},
    {"name", stream_constant, NULL, NULL, stream_name},
    {"closed", stream_false, NULL, NULL, NULL},
    {"line_buffering", stream_false, NULL, NULL, NULL},
    {"write_through", stream_true, NULL, NULL, NULL},
    {"newlines", stream_newlines, NULL, NULL, NULL},
    {"buffer", stream_buffer, NULL, NULL, NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyMemberDef stream_members[] = {
    {"__weaklistoffset__", T_PYSSIZET, offsetof(struct stream, weak_references), READONLY,
     NULL},
    {NULL, 0, 0, 0, NULL},
};

static char stream_doc[] =
    "A std stream while a manhole client is connected.\n\n"
    "In the client's session it is the client; everywhere else it is the\n"
    "original stream, whose output the clients see a copy of.";

static PyType_Slot stream_slots[] = {
    {Py_tp_doc, stream_doc},           {Py_tp_new, refuse_new},
    {Py_tp_dealloc, stream_dealloc},   {Py_tp_traverse, stream_traverse},
    {Py_tp_clear, stream_clear},       {Py_tp_repr, stream_repr},
    {Py_tp_getattro, stream_getattro}, {Py_tp_setattro, stream_setattro},
    {Py_tp_iter, stream_iter},         {Py_tp_iternext, stream_iternext},
    {Py_tp_methods, stream_methods},   {Py_tp_getset, stream_attributes},
    {Py_tp_members, stream_members},   {0, NULL},
};

static PyType_Spec stream_spec = {
    .name = "manhole.Stream",
    .basicsize = sizeof(struct stream),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC,
    .slots = stream_slots,
};

static bool
is_input(const char *name)
{
    return strstr(name, "stdin") != NULL;
}

/* Returns a new stream, or NULL with an exception. name: a literal. */
ATTACHED static PyObject *
make_stream(const char *name, PyObject *original)
{
    PyTypeObject *type = (PyTypeObject *)installed_state()->stream_type;
    struct stream *stream = (struct stream *)type->tp_alloc(type, 0);
    if (stream == NULL) {
        return NULL;
    }
    stream->name = name;
    stream->is_input = is_input(name);
    stream->is_error = strstr(name, "stderr") != NULL;
    stream->original = Py_NewRef(original);
    stream->write_name = PyUnicode_InternFromString("write");
    if (stream->write_name != NULL && !stream->is_input) {
        stream->write = PyObject_GenericGetAttr((PyObject *)stream, stream->write_name);
    }
    if (stream->write_name == NULL || (stream->write == NULL && !stream->is_input)) {
        Py_DECREF((PyObject *)stream);
        return NULL;
    }
    return (PyObject *)stream;
}

/* Keeps one of our streams alive, as the last of KEPT_STREAMS: print() and its like only borrow
 * what they find in sys, and may be in the middle of it when it is taken out. Never raises. */
ATTACHED static void
keep_stream(PyObject *stream /* or any other object, or NULL */)
{
    struct module_state *state = installed_state();
    if (stream == NULL || Py_TYPE(stream) != (PyTypeObject *)state->stream_type) {
        return;
    }
    Py_INCREF(stream);
    for (Py_ssize_t i = PyList_GET_SIZE(state->streams) - 1; i >= 0; i--) {
        if (PyList_GET_ITEM(state->streams, i) == stream) {
            (void)PySequence_DelItem(state->streams, i);
        }
    }
    (void)PyList_Append(state->streams, stream);
    if (PyList_GET_SIZE(state->streams) > KEPT_STREAMS) {
        (void)PySequence_DelItem(state->streams, 0);
    }
    PyErr_Clear();
    Py_DECREF(stream);
}

/* Returns a stream for what stands in sys.NAME, new, or NULL with an exception; the one that was
 * made for the very same before, if it is still kept. */
ATTACHED static PyObject *
get_stream(const char *name, PyObject *original)
{
    PyObject *streams = installed_state()->streams; /* borrowed */
    PyObject *made = NULL;                          /* owned, handed to the caller */
    for (Py_ssize_t i = 0; i < PyList_GET_SIZE(streams) && made == NULL; i++) {
        struct stream *stream = (struct stream *)PyList_GET_ITEM(streams, i);
        if (stream->original == original && stream->is_input == is_input(name)) {
            made = Py_NewRef((PyObject *)stream);
        }
    }
    if (made == NULL) {
        made = make_stream(name, original);
    }
    keep_stream(made);
    return made;
}

/* Sets sys.NAME, and remembers what was there: what the application has set since, too. Under
 * sys_lock. Returns 0, or -1 with an exception. */
ATTACHED static int
borrow_attribute(struct borrowed_attribute *attribute, PyObject *ours)
{
    PyObject *current = get_sys(attribute->name); /* owned */
    if (attribute->ours == NULL || attribute->ours != current) {
        Py_XSETREF(attribute->previous, Py_XNewRef(current));
    }
    Py_XDECREF(current);
    keep_stream(attribute->ours);
    Py_XSETREF(attribute->ours, Py_NewRef(ours));
    return PySys_SetObject(attribute->name, ours);
}

/* Puts back what was there, where ours still stands; for any stream of ours its original, for the
 * application may have put an earlier one back itself (redirect_stdout). Under sys_lock. */
ATTACHED static void
give_back_attribute(struct borrowed_attribute *attribute)
{
    PyObject *current = get_sys(attribute->name); /* owned */
    PyObject *previous = attribute->previous;     /* borrowed */
    bool ours = attribute->ours != NULL && current == attribute->ours;
    if (current != NULL &&
        Py_TYPE(current) == (PyTypeObject *)installed_state()->stream_type) {
        previous = ((struct stream *)current)->original;
        ours = true;
    }
    keep_stream(current);
    keep_stream(attribute->ours);
    if (ours && PySys_SetObject(attribute->name, previous) < 0) {
        PyErr_Clear();
    }
    Py_XDECREF(current);
    Py_CLEAR(attribute->ours);
    Py_CLEAR(attribute->previous);
}

/* The row of a name in manhole.borrowed. */
static struct borrowed_attribute *
borrowed_row(const char *name)
{
    struct borrowed_attribute *row = manhole.borrowed;
    while (strcmp(row->name, name) != 0) {
        row++;
    }
    return row;
}

/* Puts a stream of ours into sys.NAME, unless there is none to stand in for or one of
 * ours is there already. Under sys_lock. Returns 0, or -1 with an exception. */
ATTACHED static int
place_stream(const char *name)
{
    PyObject *original = NULL; /* owned */
    PyObject *stream = NULL;   /* owned */
    int result = find_sys(name, &original);
    if (original != NULL &&
        Py_TYPE(original) != (PyTypeObject *)installed_state()->stream_type) {
        stream = get_stream(name, original);
        result = stream == NULL ? -1 : borrow_attribute(borrowed_row(name), stream);
    }
    Py_XDECREF(original);
    Py_XDECREF(stream);
    return result;
}

/* Under sys_lock. Returns 0, or -1 with an exception. */
ATTACHED static int
place_streams(bool redirect_stderr)
{
    static const char *const names[] = {"stdin",      "__stdin__", "stdout",
                                        "__stdout__", "stderr",    "__stderr__"};
    size_t count = redirect_stderr ? 6 : 4;
    for (size_t i = 0; i < count; i++) {
        if (place_stream(names[i]) < 0) {
            return -1;
        }
    }
    return 0;
}

/* Under sys_lock. Returns 0, or -1 with an exception. */
ATTACHED static int
place_displayhook(void)
{
    PyObject *hook = PyObject_GetAttrString(manhole.module, "_displayhook"); /* owned */
    int result = -1;
    if (hook != NULL) {
        result = borrow_attribute(borrowed_row("displayhook"), hook);
        Py_DECREF(hook);
    }
    return result;
}

/* References to all that manhole.borrowed refers to while sys_lock is held: the last one to an
 * object of the application's runs code of its own, which may wait for anything. */
struct held {
    /* Two for each; owned, or NULL. Py_ARRAY_LENGTH() is no constant in GNU C from 3.13 on. */
    PyObject *objects[2 * sizeof(manhole.borrowed) / sizeof(manhole.borrowed[0])];
};

ATTACHED static void
lock_sys(struct held *held)
{
    PyObject **next = held->objects;
    lock_attached(&sys_lock);
    for (size_t i = 0; i < Py_ARRAY_LENGTH(manhole.borrowed); i++) {
        *next++ = Py_XNewRef(manhole.borrowed[i].ours);
        *next++ = Py_XNewRef(manhole.borrowed[i].previous);
    }
}

ATTACHED static void
unlock_sys(struct held *held)
{
    unlock(&sys_lock);
    for (size_t i = 0; i < Py_ARRAY_LENGTH(held->objects); i++) {
        Py_XDECREF(held->objects[i]);
    }
}

/* Puts the streams back in place where the application has set its own since: a session's print()
 * is its client's whatever the application redirects. Never raises. */
ATTACHED static void
replace_streams(void)
{
    struct held held;
    lock_sys(&held);
    if (manhole.consoles > 0 && place_streams(manhole.options.redirect_stderr != 0) < 0) {
        PyErr_Clear();
    }
    unlock_sys(&held);
}

ATTACHED static void
give_back_attributes(void)
{
    for (size_t i = 0; i < Py_ARRAY_LENGTH(manhole.borrowed); i++) {
        give_back_attribute(&manhole.borrowed[i]);
    }
}

/* From here on the calling thread's std streams are the session's client. Returns 0, or
 * -1 with an exception. */
ATTACHED static int
open_streams(struct session *session)
{
    struct held held;
    int result = 0;
    lock_sys(&held);
    result = place_streams(wants_stderr(session));
    if (result == 0 && manhole.consoles == 0) {
        result = place_displayhook();
    }
    if (result == 0) {
        manhole.consoles++;
        session->run.has_console = true;
        if (!session->channel->framed) {
            begin_viewing(session);
        }
    }
    else if (manhole.consoles == 0) {
        PyObject *raised = take_exception(); /* owned */
        give_back_attributes();
        put_back_exception(raised);
    }
    unlock_sys(&held);
    return result;
}

ATTACHED static void
close_streams(struct session *session)
{
    struct held held;
    if (!session->run.has_console) {
        return;
    }
    lock_sys(&held);
    session->run.has_console = false;
    if (!session->channel->framed) {
        end_viewing(session);
    }
    manhole.consoles--;
    if (manhole.consoles == 0) {
        give_back_attributes();
    }
    unlock_sys(&held);
}

#endif /* MANHOLE_SESSION_STREAMS_C */
