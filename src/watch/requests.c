/* Requests: what a WSGI application is at, as its middleware sees it.
 * Runs on:  any thread that serves or asks, ATTACHED.
 * Touches:  nothing of the application's. What it returns is passed on as it is where the server
 *           may know its type (a file), else behind an iterable that has its close().
 *
 * How it works. manhole.wsgi() wraps an application. Each call makes a Record, which is listed by a
 * weak reference and kept alive by whoever has the response. A request is in progress from the call
 * until close(), or until nobody has its response any more: then the record dies, and its entry in
 * the list with it. So nothing here keeps a request that a server has forgotten.
 *
 * A record notes which thread, or greenlet, works at it: that may change while a response is sent.
 * requests() looks at the stacks of those workers, all of them in one go: a thread's own by its
 * ident; a suspended greenlet's by its frame. That is C, for no Python code could look at all of
 * them at one moment; what serves a request is Python.
 *
 * A forked child has its parent's records and must not show them: a record knows its process.
 */
#ifndef MANHOLE_WATCH_REQUESTS_C
#define MANHOLE_WATCH_REQUESTS_C

#include "../base/compat.c"
#include "../base/state.c"
#include "../base/basics.c"
#include "../base/parts.c"
#include "../stacks/dump.c"

static const char requests_program[] =
    "import os, sys, time\n"
    "functools = standard('functools')\n"
    "weakref = standard('weakref')\n"

    /* Weak references to the records. Each goes of itself when its record dies. */
    "records = set()\n"
    /* The records of files that the server sends in a way of its own, by weak reference to them. */
    "of_files = {}\n"
    "next_id = counter()\n"

    /* A request, from the call of the application until its response is closed. Who has a reference
     * to it keeps it alive: the call, then the response. */
    "class Record:\n"
    "    __slots__ = ('id', 'process', 'environ', 'start', 'begun', 'worker',\n"
    "                 'reference', '__weakref__')\n"

    "    def __init__(self, environ):\n"
    "        self.id = next_id(1)\n"
    "        self.process = os.getpid()\n"
    "        self.environ = environ\n"
    "        self.start = time.time()\n"
    "        self.begun = time.monotonic()\n"
    "        self.note_worker()\n"
    "        self.reference = weakref.ref(self, records.discard)\n"
    "        records.add(self.reference)\n"

    /* The calling thread works at it, in a greenlet perhaps. Not a strong reference: a greenlet
     * that nobody else has is to end. */
    "    def note_worker(self):\n"
    "        greenlet = sys.modules.get('greenlet')\n"
    "        self.worker = ident(), greenlet and weakref.ref(greenlet.getcurrent())\n"

    "    def end(self):\n"
    "        records.discard(self.reference)\n"

    /* Stands for the iterable that an application returned. */
    "class Response:\n"
    "    __slots__ = '_record', '_iterable'\n"

    "    def __init__(self, record, iterable):\n"
    "        self._record = record\n"
    "        self._iterable = iterable\n"

    /* Each time it begins where the iterable does: a list at its beginning. */
    "    def __iter__(self):\n"
    "        self._record.note_worker()\n"
    "        for part in self._iterable:\n"
    "            yield part\n"
    "            self._record.note_worker()\n"

    /* The end of the request, whatever the application's close() raises. */
    "    def close(self):\n"
    "        self._record.note_worker()\n"
    "        try:\n"
    "            close = getattr(self._iterable, 'close', None)\n"
    "            if close is not None:\n"
    "                close()\n"
    "        finally:\n"
    "            self._record.end()\n"

    /* Servers make a Content-Length of this. */
    "class SizedResponse(Response):\n"
    "    __slots__ = ()\n"

    "    def __len__(self):\n"
    "        return len(self._iterable)\n"

    /* Whether it is what the server's own wsgi.file_wrapper made, which it knows again and sends
     * without Python. uWSGI's is a function that returns the file itself. */
    "def is_file(environ, response):\n"
    "    wrapper = environ.get('wsgi.file_wrapper')\n"
    "    if isinstance(wrapper, type):\n"
    "        return isinstance(response, wrapper)\n"
    "    return wrapper is not None and hasattr(response, 'read')\n"

    /* The request ends with the file. At once, when that is of a type without weak references. */
    "def follow_file(record, file):\n"
    "    try:\n"
    "        of_files[weakref.ref(file, of_files.pop)] = record\n"
    "    except TypeError:\n"
    "        record.end()\n"

    "def wsgi(application):\n"
    "    if not callable(application):\n"
    "        raise TypeError('wsgi() takes a WSGI application, called with environ '\n"
    "                        'and start_response, not %r' % (application,))\n"
    "    def observed(environ, start_response):\n"
    "        record = Record(environ)\n"
    "        try:\n"
    "            response = application(environ, start_response)\n"
    "            if is_file(environ, response):\n"
    "                follow_file(record, response)\n"
    "                return response\n"
    "            sized = hasattr(type(response), '__len__')\n"
    "            return (SizedResponse if sized else Response)(record, response)\n"
    "        except BaseException:\n"
    "            record.end()\n"
    "            raise\n"
    "    return functools.update_wrapper(observed, application, updated=())\n"

    "class Request:\n"
    "    '''A request in progress, as requests() has seen it. Its text is that of "
    "ispyd's\n"
    "    command.'''\n"

    "    def __init__(self, record, stack):\n"
    "        self.id = record.id\n"
    "        self.thread_id = record.worker[0]\n"
    "        self.start_time = record.start\n"
    "        self.duration = time.monotonic() - record.begun\n"
    "        self.environ = dict(record.environ)\n"
    "        self.stack = stack\n"

    "    def __repr__(self):\n"
    "        return ('\\n==== %d ====\\n\\nthread_id = %d\\nstart_time = %s\\n'\n"
    "                'duration = %.6f seconds\\n\\n%s\\n%s' % (\n"
    "                    self.id, self.thread_id, time.ctime(self.start_time),\n"
    "                    self.duration, describe_environ(self.environ), self.stack))\n"

    /* Sorted by key, unless not all are str; whatever a key's str() and a value's repr() do. */
    "def describe_environ(environ):\n"
    "    items = list(environ.items())\n"
    "    try:\n"
    "        items.sort(key=lambda item: item[0])\n"
    "    except TypeError:\n"
    "        pass\n"
    "    return ''.join('%s = %s\\n' % (describe(key, str), describe(value, repr))\n"
    "                   for key, value in items)\n"

    "def describe(value, as_text):\n"
    "    try:\n"
    "        return as_text(value).encode('utf-8', 'backslashreplace').decode()\n"
    "    except BaseException:\n"
    "        return '<%s object without a %s>' % (\n"
    "            type(value).__name__, as_text.__name__)\n"

    /* Not those of the parent, in a child that was forked. */
    "def list_records():\n"
    "    process = os.getpid()\n"
    "    alive = [reference() for reference in list(records)]\n"
    "    return sorted((record for record in alive\n"
    "                   if record is not None and record.process == process),\n"
    "                  key=lambda record: record.id)\n"

    "def list_workers(records):\n"
    "    return [record.worker for record in records]\n"

    "def make_requests(records, stacks):\n"
    "    return list(map(Request, records, stacks))\n"

    "def describe_requests(requests):\n"
    "    return ''.join(map(repr, requests)) or 'No active transactions.'\n";

/* threading.get_ident() as it is where nobody has patched it: gevent's is the greenlet's. */
ATTACHED static PyObject *
part_ident(PyObject *self, PyObject *unused)
{
    (void)self;
    (void)unused;
    return PyLong_FromUnsignedLong(PyThread_get_thread_ident());
}

static PyMethodDef requests_natives[] = {
    {"ident", part_ident, METH_NOARGS, NULL},
    {NULL, NULL, 0, NULL},
};

static const struct part requests_part = {
    .name = "requests",
    .program = requests_program,
    .functions = requests_natives,
};

/* ---- Stacks of those who work at requests ------------------------------------------- */

/* The frame that a greenlet is suspended in, new; NULL, without an exception, for one that runs, is
 * gone, or is none. */
ATTACHED static PyObject *
get_suspended_frame(PyObject *reference /* weak, or None */)
{
    OWNED PyObject *greenlet =
        reference == Py_None ? NULL : PyObject_CallNoArgs(reference);
    OWNED PyObject *frame = find_attribute(greenlet, "gr_frame");
    return frame != NULL && PyFrame_Check(frame) ? steal_reference(&frame) : NULL;
}

/* Returns a new list with the frame of each worker's greenlet, None where it has none; NULL with an
 * exception. Looks at all stacks in one go: what is not in a thread's just now is in a suspended
 * greenlet's. */
ATTACHED static PyObject *
look_at_workers(PyObject *workers /* list of (ident, weak reference or None) */,
                struct stacks *stacks)
{
    OWNED PyObject *frames = PyList_New(PyList_GET_SIZE(workers));
    if (frames == NULL || open_stacks(stacks) < 0) {
        return NULL;
    }
    for (Py_ssize_t i = 0; i < PyList_GET_SIZE(frames); i++) {
        PyObject *reference = PyTuple_GET_ITEM(PyList_GET_ITEM(workers, i), 1);
        PyObject *frame = get_suspended_frame(reference); /* new, handed over */
        PyList_SET_ITEM(frames, i, frame != NULL ? frame : Py_NewRef(Py_None));
    }
    return steal_reference(&frames);
}

/* The text of a worker's stack. Returns a new str, or NULL with an exception. */
ATTACHED static PyObject *
describe_stack(struct stacks *stacks, PyObject *worker, PyObject *frame)
{
    struct text text = {0};
    unsigned long ident = PyLong_AsUnsignedLong(PyTuple_GET_ITEM(worker, 0));
    int result = frame == Py_None ? append_stack_of(&text, stacks, ident)
                                  : append_stack_from(&text, stacks, frame);
    PyObject *stack = result < 0
                          ? NULL
                          : PyUnicode_DecodeUTF8(text.bytes, (Py_ssize_t)text.length,
                                                 "backslashreplace"); /* new */
    free_text(&text);
    return stack;
}

/* Returns a new list of the workers' stacks, or NULL with an exception. */
ATTACHED static PyObject *
describe_stacks(PyObject *workers)
{
    struct stacks stacks = {0};
    OWNED PyObject *frames = look_at_workers(workers, &stacks);
    PyObject *texts = frames == NULL ? NULL : PyList_New(0); /* owned, handed over */
    for (Py_ssize_t i = 0; texts != NULL && i < PyList_GET_SIZE(frames); i++) {
        OWNED PyObject *text = describe_stack(&stacks, PyList_GET_ITEM(workers, i),
                                              PyList_GET_ITEM(frames, i));
        if (text == NULL || PyList_Append(texts, text) < 0) {
            Py_CLEAR(texts);
        }
    }
    close_stacks(&stacks);
    return texts;
}

/* Those in progress, by id. Returns a new list, or NULL with an exception. */
ATTACHED static PyObject *
get_requests(PyObject *module)
{
    OWNED PyObject *records =
        call_part(module, &requests_part, "list_records", NULL, NULL);
    OWNED PyObject *workers = records == NULL ? NULL
                                              : call_part(module, &requests_part,
                                                          "list_workers", records, NULL);
    OWNED PyObject *stacks = workers == NULL ? NULL : describe_stacks(workers);
    return stacks == NULL
               ? NULL
               : call_part(module, &requests_part, "make_requests", records, stacks);
}

/* For a command that a client types, in a session's thread: what ispyd prints for `requests`.
 * Returns a new str, or NULL with an exception. */
ATTACHED static PyObject *
describe_requests(void)
{
    OWNED PyObject *requests = get_requests(manhole.module);
    return requests == NULL ? NULL
                            : call_part(manhole.module, &requests_part,
                                        "describe_requests", requests, NULL);
}

/* ---- The module's functions ------------------------------------------------------- */

PyDoc_STRVAR(
    py_wsgi_doc,
    "wsgi(application, /)\n--\n\n"
    "Return a WSGI application that does as the given one, and whose requests are in\n"
    "requests() while they are in progress. It is a function; the given one is its\n"
    "__wrapped__.\n\n"
    "    application = manhole.wsgi(application)\n"
    "    app.wsgi_app = manhole.wsgi(app.wsgi_app)    # Flask");

ATTACHED static PyObject *
py_wsgi(PyObject *module, PyObject *application)
{
    return call_part(module, &requests_part, "wsgi", application, NULL);
}

PyDoc_STRVAR(
    py_requests_doc,
    "requests()\n--\n\n"
    "Return a list of the requests that applications of wsgi() are at, each with\n"
    "id, thread_id, start_time, duration, environ and stack. Printed, it shows\n"
    "them all. Its environ may have passwords and cookies in it.");

ATTACHED static PyObject *
py_requests(PyObject *module, PyObject *unused)
{
    (void)unused;
    return get_requests(module);
}

static PyMethodDef request_functions[] = {
    {"wsgi", py_wsgi, METH_O, py_wsgi_doc},
    {"requests", py_requests, METH_NOARGS, py_requests_doc},
    {NULL, NULL, 0, NULL},
};

/* A row of module_slots[]: what the module has of this room. */
ATTACHED static int
exec_requests(PyObject *module)
{
    return PyModule_AddFunctions(module, request_functions);
}

#endif /* MANHOLE_WATCH_REQUESTS_C */
