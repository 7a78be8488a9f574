/* Shown: what a client sees of values and of exceptions.
 * Runs on:  the session's thread, ATTACHED; py_displayhook() in every thread.
 * Touches:  sys.last_exc and its relatives, through borrow_attribute().
 *
 * How it works. What a statement raises never reaches sys.excepthook, which may be a crash
 * reporter's, nor another client: ManholeConsole, made below of whatever console there is,
 * overrides the two methods by which code.InteractiveConsole reports, and sends the text to its own
 * client. The traceback begins behind the console's own frame. It is remembered for pdb.pm(), as
 * the interpreter would, until the last client leaves.
 *
 * A value is shown by sys.displayhook, which is ours while clients have consoles: `_` is a name of
 * the session, never of builtins. Each send lets go of the GIL, which other threads may keep for
 * some time; so the value of a statement that is over with it waits for the prompt, see
 * is_one_act().
 *
 * A client at a terminal says on its calling card how many columns that has, and whether it wants
 * colours. There a value that is longer than a line is laid out by pprint, if that is to be done in
 * a moment, and cut where it fills screens; and what CPython colours in tracebacks, from 3.13 on,
 * is coloured. All others get what Python shows in a file.
 */
#ifndef MANHOLE_SESSION_SHOWN_C
#define MANHOLE_SESSION_SHOWN_C

#include "../base/compat.c"
#include "../base/state.c"
#include "../base/locks.c"
#include "../base/basics.c"
#include "../base/parts.c"
#include "output.c"
#include "streams.c"
#include "borrowed.c"
#include "imports.c"
#include "awaited.c"

enum {
    /* Characters of a value that goes out with the prompt. */
    MAX_SHOWN = 4096,
};

static const char shown_program[] =
    "sys = standard('sys')\n"
    "ALLOW_TOP_LEVEL_AWAIT, CO_COROUTINE = 0x2000, 0x80\n"
    "UNDECODABLE = ('manhole: what came is not UTF-8, so it was not run; type it again, "
    "'\n"
    "               'and see that the terminal sends UTF-8\\n')\n"
    "\n"
    /* Where the module traceback cannot be had, which the client has been told. */
    "def lines_of(error, trace):\n"
    "    if trace is not None:\n"
    "        yield 'Traceback (most recent call last):\\n'\n"
    "    while trace is not None:\n"
    "        code = trace.tb_frame.f_code\n"
    "        yield (f'  File \"{code.co_filename}\", line {trace.tb_lineno}, '\n"
    "               f'in {code.co_name}\\n')\n"
    "        trace = trace.tb_next\n"
    "    yield f'{type(error).__name__}: {error}\\n'\n"
    "\n"
    /* Of an exception alone the client does not know that it is one. */
    "def text_of(error, trace, alone):\n"
    "    newest = sys.version_info >= (3, 13)\n"
    "    colours = {'colorize': True} if newest and has_colours() else {}\n"
    "    try:\n"
    "        traceback = standard('traceback')\n"
    "    except Exception:\n"
    "        lines = lines_of(error, None if alone else trace)\n"
    "    else:\n"
    "        lines = (traceback.format_exception_only(type(error), error) if alone\n"
    "                 else traceback.format_exception(type(error), error, trace, "
    "**colours))\n"
    "    return ''.join(lines)\n"
    "\n"
    "def whole(error):\n"
    "    return text_of(error, error.__traceback__, False) + hint_at_copy(error)\n"
    "\n"
    /* Of a program that ends with this: what it has to say, and its exit status, as Python's
     * own. */
    "def last_words(error):\n"
    "    if not isinstance(error, SystemExit):\n"
    "        return whole(error), 1\n"
    "    if error.code is None or isinstance(error.code, int):\n"
    "        return '', error.code or 0\n"
    "    return f'{error.code}\\n', 1\n"
    "\n"
    "def last_line(error):\n"
    "    return text_of(error, None, True)\n"
    "\n"
    /* What the fence of a frozen copy keeps back looks like an error of the system's, or of a
     * database's. */
    "def hint_at_copy(error):\n"
    "    kinds = {kind.__name__ for kind in type(error).__mro__}\n"
    "    if is_copy() and kinds & {'OSError', 'DatabaseError', 'InterfaceError'}:\n"
    "        return ('manhole: this is a frozen copy: it writes no files, has no sockets "
    "and '\n"
    "                'starts no processes\\n')\n"
    "    return ''\n"
    "\n"
    "def show(error, alone):\n"
    "    trace = error.__traceback__ and error.__traceback__.tb_next\n"
    "    while trace and trace.tb_frame.f_code.co_filename == '<manhole>':\n"
    "        trace = trace.tb_next\n"
    "    remember(type(error), error, trace)\n"
    "    write(text_of(error, trace, alone) + hint_at_copy(error))\n"
    "\n"
    "class Reports:\n"
    "    def showtraceback(self):\n"
    "        show(sys.exc_info()[1], False)\n"
    /* CPython 3.13 and newer hand the source over: the compiler's own errors have no line of it.
     * Python would call what is not UTF-8 a codec's error, in a text that was never typed. */
    "    def showsyntaxerror(self, filename=None, source='', **_):\n"
    "        error = sys.exc_info()[1]\n"
    "        if type(error) is UnicodeEncodeError:\n"
    "            return write(UNDECODABLE)\n"
    "        if type(error) is SyntaxError and source and not error.text:\n"
    "            lines = dict(enumerate(source.splitlines(), 1))\n"
    "            error.text = lines.get(error.lineno)\n"
    "        show(error, True)\n"
    "\n"
    /* Of the statements of a console those that await run elsewhere: see the room awaited. */
    "def is_awaiting(code):\n"
    "    return code.co_flags & CO_COROUTINE\n"
    "\n"
    /* Over the compiler of a console. */
    "class Awaits:\n"
    "    def __call__(self, source, filename, symbol, *rest, **options):\n"
    "        code = super().__call__(source, filename, symbol, *rest, **options)\n"
    "        if not is_awaiting(code):\n"
    "            return code\n"
    "        recompile = from_awaited('recompile')\n"
    "        return recompile(source, filename, symbol, self.flags)\n"
    "\n"
    "class Runs:\n"
    "    def execute(self, code):\n"
    "        if is_awaiting(code):\n"
    "            sys.displayhook(from_awaited('run')(code, self.locals))\n"
    "        else:\n"
    "            exec(code, self.locals)\n"
    "    def runcode(self, code):\n"
    "        if not is_awaiting(code):\n"
    "            return super().runcode(code)\n"
    "        try:\n"
    "            self.execute(code)\n"
    "        except SystemExit:\n"
    "            raise\n"
    "        except BaseException:\n"
    "            self.showtraceback()\n"
    "\n"
    /* Made once: a class is a cycle, which only the garbage collector ends, if it is on. */
    "types = {}\n"
    "def derive(name, *bases):\n"
    "    if bases not in types:\n"
    "        types[bases] = type(name, bases, {})\n"
    "    return types[bases]\n"
    "def make_console(base, names):\n"
    "    console = derive('ManholeConsole', Reports, Runs, base)(names)\n"
    "    if console.compile is not console:\n" /* as it is in our plain one */
    "        kind = type(console.compile.compiler)\n"
    "        console.compile.compiler = derive(kind.__name__, Awaits, kind)()\n"
    "        console.compile.compiler.flags |= ALLOW_TOP_LEVEL_AWAIT\n"
    "    return console\n";

/* write(text): to the client, if the calling thread has one: a forked child has none. */
ATTACHED static PyObject *
shown_write(PyObject *module, PyObject *text)
{
    (void)module;
    return current_session != NULL && write_client_str(current_session, text) < 0
               ? NULL
               : Py_NewRef(Py_None);
}

/* What the session's client has told of its terminal: its card's id is PROCESS.NUMBER.COLUMNS, with
 * a "c" behind it where it wants colours. */
struct screen {
    unsigned long columns; /* 0: it has none */
    bool has_colours;
};

static struct screen
screen_of(const struct session *session)
{
    struct screen screen = {.columns = 0};
    const char *dot = session->channel->marked ? strrchr(session->card, '.') : NULL;
    if (dot != NULL && dot != strchr(session->card, '.')) {
        char *end = NULL;
        screen.columns = strtoul(dot + 1, &end, 10);
        screen.has_colours = *end == 'c';
    }
    return screen;
}

/* has_colours(): whether the calling thread has a client who wants them. */
ATTACHED static PyObject *
shown_has_colours(PyObject *module, PyObject *unused)
{
    (void)module;
    (void)unused;
    return PyBool_FromLong(current_session != NULL &&
                           screen_of(current_session).has_colours);
}

/* remember(type, exception, traceback): as sys.last_value and its relatives. */
ATTACHED static PyObject *
shown_remember(PyObject *module, PyObject *arguments)
{
    static const struct {
        const char *name;
        Py_ssize_t argument;
    } rows[] = {
        {"last_type", 0},
        {"last_value", 1},
        {"last_traceback", 2},
        {"last_exc", 1},
    };
    struct held held;
    (void)module;
    lock_sys(&held);
    for (size_t i = 0; i < Py_ARRAY_LENGTH(rows); i++) {
        if (borrow_attribute(borrowed_row(rows[i].name),
                             PyTuple_GET_ITEM(arguments, rows[i].argument)) < 0) {
            PyErr_Clear();
        }
    }
    unlock_sys(&held);
    return Py_NewRef(Py_None);
}

/* from_awaited(name): what the part of awaited has. */
ATTACHED static PyObject *
shown_from_awaited(PyObject *module, PyObject *name)
{
    const char *text = PyUnicode_AsUTF8(name);
    (void)module;
    return text == NULL ? NULL : get_from_part(manhole.module, &awaited_part, text);
}

ATTACHED static PyObject *
shown_is_copy(PyObject *module, PyObject *unused)
{
    (void)module;
    (void)unused;
    return PyBool_FromLong(frozen.original != 0);
}

static PyMethodDef shown_functions[] = {
    {"from_awaited", shown_from_awaited, METH_O, NULL},
    {"has_colours", shown_has_colours, METH_NOARGS, NULL},
    {"is_copy", shown_is_copy, METH_NOARGS, NULL},
    {"remember", shown_remember, METH_VARARGS, NULL},
    {"write", shown_write, METH_O, NULL},
    {NULL, NULL, 0, NULL},
};

static const struct part shown_part = {
    .name = "shown",
    .program = shown_program,
    .functions = shown_functions,
};

static const char layout_program[] =
    "pprint, thread_time = standard('pprint'), standard('time').thread_time\n"
    /* Characters: of a repr that can be laid out in a moment, and of what is shown. Seconds of work
     * in a moment: pprint makes the repr of each part anew, so depth costs more than length. */
    "MAX_REPR, MAX_SHOWN, MOMENT = 200_000, 20_000, 0.5\n"
    "class Page:\n"
    "    def __init__(self):\n"
    "        self.pieces, self.end = [], thread_time() + MOMENT\n"
    "    def write(self, piece):\n"
    "        self.pieces.append(piece)\n"
    "        if thread_time() > self.end:\n"
    "            raise TimeoutError\n"
    "def lay_out(value, text, columns):\n"
    "    if len(text) <= MAX_REPR:\n"
    "        page = Page()\n"
    "        try:\n"
    "            pprint.PrettyPrinter(width=columns - 1, stream=page, compact=True,\n"
    "                                 sort_dicts=False).pprint(value)\n"
    "            text = ''.join(page.pieces)[:-1]\n" /* but for its newline */
    "        except Exception:\n"
    "            pass\n" /* there is no time, or it is not the kind of value that it passes for */
    "    if len(text) <= MAX_SHOWN:\n"
    "        return text\n"
    "    end = text.rfind('\\n', 0, MAX_SHOWN)\n"
    "    end = MAX_SHOWN if end < 0 else end\n"
    "    return (f'{text[:end]}\\n... {len(text) - end} characters more: '\n"
    "            'print(repr(_)) shows all')\n";

static const struct part layout_part = {.name = "layout", .program = layout_program};

/* The text of a value. Returns a new str, or NULL with an exception. */
ATTACHED static PyObject *
describe_value(struct session *session, PyObject *value)
{
    const unsigned long columns = screen_of(session).columns;
    OWNED PyObject *text = PyObject_Repr(value);
    if (text == NULL || columns == 0 || PyUnicode_GetLength(text) < (Py_ssize_t)columns) {
        return steal_reference(&text);
    }
    OWNED PyObject *lay_out = import_part(session, &layout_part, "lay_out");
    return lay_out == NULL ? NULL
                           : PyObject_CallFunction(lay_out, "OOk", value, text, columns);
}

/* Shows a value to the client: along with the prompt when nothing is left to run before that, for
 * each send lets go of the GIL, which other threads may keep for some time. */
ATTACHED static int
show_value(struct session *session, PyObject *shown /* str */)
{
    /* A function that calls the hook has other locals. */
    if (session->run.one_act && PyUnicode_GET_LENGTH(shown) <= MAX_SHOWN &&
        PyEval_GetLocals() == session->run.names) {
        session->run.one_act = false;
        append_str(&session->outbox.unsent, shown);
        return check_unsent(session);
    }
    PyErr_Clear(); /* without any frame there are no locals */
    return write_client_str(session, shown);
}

/* In a thread of the application's. */
ATTACHED static PyObject *
call_original_displayhook(PyObject *value)
{
    lock_attached(&sys_lock);
    OWNED PyObject *original = Py_XNewRef(borrowed_row("displayhook")->previous);
    unlock(&sys_lock);
    if (original == NULL) {
        original = get_sys("__displayhook__");
    }
    return original == NULL ? Py_NewRef(Py_None) : PyObject_CallOneArg(original, value);
}

/* sys.displayhook while clients have consoles. */
ATTACHED static PyObject *
py_displayhook(PyObject *module, PyObject *value)
{
    struct session *session = console_session();
    (void)module;
    if (session == NULL) {
        return call_original_displayhook(value);
    }
    if (value == Py_None) {
        return Py_NewRef(Py_None);
    }
    OWNED PyObject *text = describe_value(session, value);
    OWNED PyObject *shown = text == NULL ? NULL : PyUnicode_FromFormat("%U\n", text);
    if (shown == NULL || show_value(session, shown) < 0) {
        return NULL;
    }
    PyObject *names = session->run.names; /* borrowed; a plugin's command has none */
    return names != NULL && PyDict_Check(names) &&
                   PyDict_SetItemString(names, "_", value) < 0
               ? NULL
               : Py_NewRef(Py_None);
}

/* Tells the client what the compiler has given up on, which it takes over. Returns 0, or -1 with an
 * exception. */
ATTACHED static int
show_compiler_error(void)
{
    OWNED PyObject *error = take_exception();
    OWNED PyObject *text =
        call_part(manhole.module, &shown_part, "last_line", error, NULL);
    return text == NULL ? -1 : write_client_str(current_session, text);
}

#endif /* MANHOLE_SESSION_SHOWN_C */
