/* Streams: the objects that stand in sys while a client has a console.
 * Runs on:  every thread that prints or reads, ATTACHED.
 * Touches:  a client's output. How they come into sys and out of it is the next room's.
 * In a session's thread a stream is that client's. In any other it is the original in all but
 * write() and writelines(), which also leave an echo for the clients; so an old reference to one
 * of ours serves its owner for ever.
 *
 * How it works. While a client has a console, sys.stdin, stdout and stderr, and the __std*__ beside
 * them, are objects of the type below; each keeps the object that stood there before, its original.
 *
 *   Who is asked. stream_target() decides by thread: in that of a session what the client has, its
 *   input or an object of class Output; in all others the original, so encoding, fileno() or
 *   whatever the application has put there stay as they were.
 *
 *   write() is the stream's own for every thread, and ready as an attribute, for print() asks for
 *   it each time. In a session it goes to the client. In all others the text goes where it always
 *   went, and an echo of it to the clients, where there are any: one atomic load, where there are
 *   none.
 *
 *   An echo is left once. What the application has put on top of ours, a write() that it replaced,
 *   a wrapper of a buffer, may come by a stream of ours a second time on the way to the original:
 *   passing_on says that the thread is in the middle of one.
 */
#ifndef MANHOLE_SESSION_STREAMS_C
#define MANHOLE_SESSION_STREAMS_C

#include "../base/compat.c"
#include "../base/state.c"
#include "../base/basics.c"
#include "../base/parts.c"
#include "output.c"

struct stream {
    PyObject_HEAD PyObject *original; /* owned: what stood in sys before, None too */
    PyObject *output;     /* owned, of class Output; or NULL, see get_output() */
    PyObject *write_name; /* owned, interned "write" */
    PyObject *write;      /* owned: this attribute, ready for print(); NULL: an input */
    const char *name;     /* of the attribute of sys */
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

/* ---- As an object ------------------------------------------------------------------------ */

/* Its write attribute and its output refer to it in turn: a cycle, which the collector ends. */
ATTACHED static int
stream_traverse(PyObject *self, visitproc visit, void *arg)
{
    Py_VISIT(Py_TYPE(self));
    Py_VISIT(((struct stream *)self)->original);
    Py_VISIT(((struct stream *)self)->output);
    Py_VISIT(((struct stream *)self)->write);
    return 0;
}

/* What has a cycle with it may still write to it: that goes nowhere then. */
ATTACHED static int
stream_clear(PyObject *self)
{
    Py_CLEAR(((struct stream *)self)->output); /* which refer to self */
    Py_CLEAR(((struct stream *)self)->write);
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

/* ---- What a session's stream has beside write() ----------------------------------------- */

/* A client has UTF-8, and all at once, whatever a program wishes; every write has gone out by
 * itself, and the client is not the program's to close. Its descriptor is for subprocess.run(...,
 * stdout=sys.stdout), which shows at the client; but not where stdout and stderr go in frames. */
static const char output_program[] =
    "import " IO_MODULE " as io\n"
    "class Output(io._TextIOBase):\n"
    "    encoding, errors, mode, name = 'utf-8', 'backslashreplace', 'w', '<manhole>'\n"
    "    closed, line_buffering, write_through, newlines = False, False, True, None\n"
    "    def __init__(self, stream):\n"
    "        vars(self)['buffer'] = stream\n"
    /* All clients have the same one, and those that come later. */
    "    def __setattr__(self, name, *_):\n"
    "        raise AttributeError(f\"{name!r} of a client's stream cannot be set\")\n"
    "    __delattr__ = __setattr__\n"
    "    def __iter__(self):\n"
    "        raise OSError('not readable')\n"
    "    __next__ = __iter__\n"
    "    def __enter__(self):\n"
    "        return self.buffer\n"
    "    def writable(self):\n"
    "        return True\n"
    "    def flush(self):\n"
    "        pass\n"
    "    close = flush\n"
    "    def reconfigure(self, **_):\n"
    "        pass\n"
    "    def fileno(self):\n"
    "        fd = fileno(self.buffer)\n"
    "        if fd is None:\n"
    "            raise io.UnsupportedOperation('what a program writes goes to its client "
    "'\n"
    "                                          'in frames: there is no descriptor for "
    "it')\n"
    "        return fd\n";

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

/* fileno(stream): None in a program. */
ATTACHED static PyObject *
output_fileno(PyObject *module, PyObject *stream)
{
    struct session *session = stream_session((struct stream *)stream);
    (void)module;
    if (session == NULL) {
        PyErr_SetString(PyExc_OSError,
                        "the original stream is None and has no descriptor");
        return NULL;
    }
    return session->channel->framed ? Py_NewRef(Py_None)
                                    : make_descriptor(kept_number(&session->fd));
}

static PyMethodDef output_functions[] = {
    {"fileno", output_fileno, METH_O, NULL},
    {NULL, NULL, 0, NULL},
};

static const struct part output_part = {
    .name = "output",
    .program = output_program,
    .functions = output_functions,
};

static bool
is_input(const char *name)
{
    return strstr(name, "stdin") != NULL;
}

/* ---- Whose it is in the calling thread ---------------------------------------------------- */

/* What the stream has beside write() where it is a client's. It is made when somebody asks for it,
 * which the first prompt need not wait for. Returns a borrowed reference, or NULL with an
 * exception. */
ATTACHED static PyObject *
get_output(PyObject *self)
{
    struct stream *stream = (struct stream *)self;
    if (stream->output == NULL) {
        OWNED PyObject *made =
            call_part(manhole.module, &output_part, "Output", self, NULL);
        BEGIN_CRITICAL_SECTION(self);
        if (stream->output == NULL) {
            stream->output = steal_reference(&made);
        }
        END_CRITICAL_SECTION();
    }
    return stream->output;
}

/* Whose attributes the stream shows to the calling thread: the original's, or in a session its
 * client's. Returns a borrowed reference, or NULL with an exception. */
ATTACHED static PyObject *
stream_target(PyObject *self)
{
    struct stream *stream = (struct stream *)self;
    struct session *session = stream_session(stream);
    if (session != NULL && stream->is_input) {
        ask_for_input(session);
        return session->run.input != NULL ? session->run.input : stream->original;
    }
    return !stream->is_input && (session != NULL || stream->original == Py_None)
               ? get_output(self)
               : stream->original;
}

/* What the stream does itself for every thread. */
static bool
is_write(PyObject *name)
{
    return PyUnicode_CompareWithASCIIString(name, "write") == 0 ||
           PyUnicode_CompareWithASCIIString(name, "writelines") == 0;
}

/* print() asks for write with the interned name: that is the first look, and all of it. */
ATTACHED static PyObject *
stream_getattro(PyObject *self, PyObject *name)
{
    struct stream *stream = (struct stream *)self;
    if (name == stream->write_name && stream->write != NULL) {
        return Py_NewRef(stream->write);
    }
    if (!stream->is_input && is_write(name)) {
        return PyObject_GenericGetAttr(self, name);
    }
    PyObject *target = stream_target(self); /* borrowed */
    return target == NULL ? NULL : PyObject_GetAttr(target, name);
}

/* sys.stdout.NAME = ... of the application's is on its own stream, where it finds it again when
 * ours is gone. */
ATTACHED static int
stream_setattro(PyObject *self, PyObject *name, PyObject *value)
{
    PyObject *target = stream_target(self); /* borrowed */
    return target == NULL ? -1 : PyObject_SetAttr(target, name, value);
}

ATTACHED static PyObject *
stream_iter(PyObject *self)
{
    PyObject *target = stream_target(self); /* borrowed */
    return target == NULL ? NULL : PyObject_GetIter(target);
}

/* next(sys.stdin) */
ATTACHED static PyObject *
stream_iternext(PyObject *self)
{
    PyObject *target = stream_target(self); /* borrowed */
    if (target != NULL && !PyIter_Check(target)) {
        PyErr_Format(PyExc_TypeError, "'%s' object is not an iterator",
                     Py_TYPE(target)->tp_name);
        return NULL;
    }
    return target == NULL ? NULL : PyIter_Next(target); /* NULL alone at the end */
}

/* with sys.stdout: as the original does it; a session's client stays open. */
ATTACHED static PyObject *
stream_enter(PyObject *self, PyObject *unused)
{
    PyObject *target = stream_target(self); /* borrowed */
    OWNED PyObject *entered =
        target == NULL ? NULL : PyObject_CallMethod(target, "__enter__", NULL);
    (void)unused;
    return entered == NULL ? NULL : Py_NewRef(self);
}

ATTACHED static PyObject *
stream_exit(PyObject *self, PyObject *arguments)
{
    PyObject *target = stream_target(self); /* borrowed */
    OWNED PyObject *method =
        target == NULL ? NULL : PyObject_GetAttrString(target, "__exit__");
    return method == NULL ? NULL : PyObject_CallObject(method, arguments);
}

/* ---- write() ------------------------------------------------------------------------------ */

/* Bytes too, in a session: sys.stdout.buffer is the stream itself there. */
ATTACHED static PyObject *
write_to_session(struct session *session, enum frame_kind kind, PyObject *data)
{
    if (PyUnicode_Check(data)) {
        return write_str_as(session, kind, data) < 0
                   ? NULL
                   : PyLong_FromSsize_t(PyUnicode_GetLength(data));
    }
    Py_buffer view;
    if (PyObject_GetBuffer(data, &view, PyBUF_SIMPLE) < 0) {
        return NULL;
    }
    Py_ssize_t length = view.len;
    int result = write_as(session, kind, view.buf, (size_t)length);
    PyBuffer_Release(&view);
    return result < 0 ? NULL : PyLong_FromSsize_t(length);
}

/* Leaves an echo of what an application thread has printed: a str, or the bytes that a wrapper of a
 * session's buffer has made of it. Never raises. */
ATTACHED static void
echo_str(PyObject *str)
{
    Py_ssize_t length = 0;
    if (PyBytes_Check(str)) {
        echo_to_clients(PyBytes_AS_STRING(str), (size_t)PyBytes_GET_SIZE(str));
    }
    if (!PyUnicode_Check(str)) {
        return;
    }
    const char *bytes = PyUnicode_AsUTF8AndSize(str, &length);
    if (bytes != NULL) {
        echo_to_clients(bytes, (size_t)length);
        return;
    }
    struct text text = {0};
    PyErr_Clear();
    append_str(&text, str);
    if (text.length > 0) {
        echo_to_clients(text.bytes, text.length);
    }
    free_text(&text);
}

/* Whether the application has put a write() of its own into the object. */
ATTACHED static bool
has_own_write(const struct stream *stream)
{
    OWNED PyObject *names = PyObject_GetAttrString(stream->original, "__dict__");
    bool own = names != NULL && PyMapping_HasKey(names, stream->write_name);
    PyErr_Clear();
    return own;
}

/* The stream that the calling thread writes to the original of, or NULL. */
static _Thread_local const struct stream *passing_on;

/* Writes where it went without us. Returns what that does. */
ATTACHED static PyObject *
write_to_original(struct stream *stream, PyObject *data)
{
    const struct stream *outer = passing_on;
    OWNED PyObject *target = Py_NewRef(stream->original);
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
        OWNED PyObject *method =
            PyObject_GetAttr((PyObject *)Py_TYPE(target), stream->write_name);
        return method == NULL ? NULL
                              : PyObject_CallFunctionObjArgs(method, target, data, NULL);
    }
    passing_on = stream;
    PyObject *result = PyObject_CallMethodOneArg(target, stream->write_name, data);
    passing_on = outer;
    return result;
}

/* All that print() does ends here. The order is that of a tee: what the application prints has gone
 * where it goes before a client sees it, and if that failed, no client does. */
ATTACHED static PyObject *
stream_write(PyObject *self, PyObject *data)
{
    struct stream *stream = (struct stream *)self;
    struct session *session = stream_session(stream);
    PyObject *result = NULL;
    bool is_echoed = false; /* by the call that this one is part of */
    if (session != NULL) {
        return write_to_session(session, stream->is_error ? FRAME_ERROR : FRAME_OUTPUT,
                                data);
    }
    if (stream->original == Py_None) {
        Py_ssize_t length = PyObject_Length(data);
        result = length < 0 ? NULL : PyLong_FromSsize_t(length);
    }
    else {
        is_echoed =
            passing_on != NULL &&
            (!PyUnicode_Check(data) || (passing_on == stream && has_own_write(stream)));
        result = write_to_original(stream, data);
    }
    if (result != NULL && !is_echoed && atomic_load(&manhole.viewers) > 0 &&
        !(stream->is_error && !manhole.options.redirect_stderr)) {
        echo_str(data);
    }
    return result;
}

/* One after the other, so that each is echoed. */
ATTACHED static PyObject *
stream_writelines(PyObject *self, PyObject *lines)
{
    OWNED PyObject *iterator = PyObject_GetIter(lines);
    if (iterator == NULL) {
        return NULL;
    }
    for (;;) {
        OWNED PyObject *line = PyIter_Next(iterator);
        if (line == NULL) {
            return PyErr_Occurred() ? NULL : Py_NewRef(Py_None);
        }
        OWNED PyObject *written = stream_write(self, line);
        if (written == NULL) {
            return NULL;
        }
    }
}

static PyMethodDef stream_methods[] = {
    {"write", stream_write, METH_O, NULL},
    {"writelines", stream_writelines, METH_O, NULL},
    {"__enter__", stream_enter, METH_NOARGS, NULL},
    {"__exit__", stream_exit, METH_VARARGS, NULL},
    {NULL, NULL, 0, NULL},
};

/* The original can be weakly referenced, so ours can. */
static PyMemberDef stream_members[] = {
    {"__weaklistoffset__", T_PYSSIZET, offsetof(struct stream, weak_references), READONLY,
     NULL},
    {NULL, 0, 0, 0, NULL},
};

static char stream_doc[] =
    "A std stream while a manhole client is connected.\n\n"
    "In the client's session it is the client; everywhere else it is the\n"
    "original stream, whose output the clients see, too.";

static PyType_Slot stream_slots[] = {
    {Py_tp_doc, stream_doc},
    {Py_tp_new, refuse_new},
    {Py_tp_dealloc, stream_dealloc},
    {Py_tp_traverse, stream_traverse},
    {Py_tp_clear, stream_clear},
    {Py_tp_repr, stream_repr},
    {Py_tp_getattro, stream_getattro},
    {Py_tp_setattro, stream_setattro},
    {Py_tp_iter, stream_iter},
    {Py_tp_iternext, stream_iternext},
    {Py_tp_methods, stream_methods},
    {Py_tp_members, stream_members},
    {0, NULL},
};

static PyType_Spec stream_spec = {
    .name = "manhole.Stream",
    .basicsize = sizeof(struct stream),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC,
    .slots = stream_slots,
};

/* A stream that stands for original. Returns it, new, or NULL with an exception. name: a
 * literal. */
ATTACHED static PyObject *
make_stream(const char *name, PyObject *original)
{
    PyTypeObject *type = (PyTypeObject *)installed_state()->stream_type;
    OWNED PyObject *made = type->tp_alloc(type, 0);
    struct stream *stream = (struct stream *)made;
    if (made == NULL) {
        return NULL;
    }
    stream->name = name;
    stream->is_input = is_input(name);
    stream->is_error = strstr(name, "stderr") != NULL;
    stream->original = Py_NewRef(original);
    stream->write_name = PyUnicode_InternFromString("write");
    if (stream->write_name == NULL) {
        return NULL;
    }
    if (!stream->is_input) {
        stream->write = PyObject_GenericGetAttr(made, stream->write_name);
        if (stream->write == NULL) {
            return NULL;
        }
    }
    return steal_reference(&made);
}

#endif /* MANHOLE_SESSION_STREAMS_C */
