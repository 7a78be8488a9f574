/* Commands: a shell of named commands instead of Python, for where nobody may run code. Names and
 * prompts are ispyd's.
 * Runs on:  the session's thread, ATTACHED.
 * Touches:  the session's own fields; sys only while a command or plugin has the client's streams.
 *
 * How it works. The shells are classes of the standard library's cmd.Cmd, in a part that is
 * compiled for the first such client; what they need of C is commands_functions[]. A shell within a
 * shell is entered by a call, and left by a return, so the client's way back is Python's own stack.
 *
 *   What is safe about it. Nothing here evaluates, imports, formats with or opens what the client
 *   types: its first word is the rest of the name of a method, as ASCII letters, digits and "_",
 *   and what stands behind it is handed over as text. What gives a client Python, a console or pdb
 *   on a traceback that a probe has kept, is refused unless the option enable, or the configuration
 *   file, names it.
 *
 *   What may be interrupted. Only what goes through run(): the shell's own loop would be torn.
 *
 *   A command that fails costs a line that begins with three asterisks; a plugin's, its traceback.
 *   Only SystemExit, and an error of the connection, end the session.
 *
 * To add a command: a row or a method of its shell. To add a shell: a class, and a row in SHELLS.
 */
#ifndef MANHOLE_SESSION_COMMANDS_C
#define MANHOLE_SESSION_COMMANDS_C

#include "../base/compat.c"
#include "../base/state.c"
#include "../base/locks.c"
#include "../base/log.c"
#include "../base/parts.c"
#include "../stacks/dump.c"
#include "../stacks/tasks.c"
#include "../watch/probes.c"
#include "../watch/requests.c"
#include "borrowed.c"
#include "hang.c"
#include "interrupt.c"
#include "imports.c"
#include "shown.c"
#include "names.c"
#include "input.c"
#include "serve.c"
#include "console.c"

static const char commands_program[] =
    "for name in 'cmd fnmatch importlib os sys traceback'.split():\n"
    "    globals()[name] = standard(name)\n"
    /* Characters of a glob, and of the name that a plugin gives itself. */
    "MAX_GLOB, MAX_PLUGIN_NAME = 100, 40\n"
    "\n"
    /* What is refused says by what it would not be. */
    "HOW_TO_ENABLE = ('Sorry, the %s is disabled. To enable it: \"enabled = true\" in '\n"
    "                 'section [%s] of the configuration file, or '\n"
    "                 'install(enable=%r).')\n"
    "\n"
    /* An answer, with one newline at its end. */
    "def say(text):\n"
    "    if text:\n"
    "        write(text if text.endswith('\\n') else text + '\\n')\n"
    "\n"
    /* An error in a line: an exception's own str() may raise. */
    "def summarize(error):\n"
    "    try:\n"
    "        message = str(error)\n"
    "    except Exception:\n"
    "        message = ''\n"
    "    return message or type(error).__name__\n"
    "\n"
    /* No docstrings: since 3.13 the compiler takes the indentation out of these. */
    "def helps(usage, text):\n"
    "    def add(method):\n"
    "        method.__doc__ = f'{usage}\\n    {text}'\n"
    "        return method\n"
    "    return add\n"
    "\n"
    "class Output:\n"
    "    write = staticmethod(write)\n"
    "\n"
    /* What all shells have. The loop is ours, for Cmd's own reads sys.stdin and prints; of Cmd
     * there are the table of methods, onecmd(), and the list of help. */
    "class Shell(cmd.Cmd):\n"
    "    feature = None\n"
    "    def __init__(self, name, outer=None):\n"
    "        super().__init__(stdout=Output)\n"
    "        self.name, self.outer = name, outer\n"
    "        self.shows_prompt = outer is None or outer.shows_prompt\n"
    /* What Tab completes. */
    "    def words(self):\n"
    "        names = self.get_names()\n"
    "        return sorted({name[3:] for name in names if name[:3] == 'do_'})\n"
    "    def interact(self, line=''):\n"
    "        left = bool(line)\n"
    "        if line:\n"
    "            self.onecmd(line)\n"
    "        while not left:\n"
    "            offer(tuple(self.words()))\n"
    "            left = self.turn()\n"
    /* One line. Only SystemExit, and an error of the connection, get out of it. */
    "    def turn(self):\n"
    "        prompt = f'({self.name}:{os.getpid()}) ' if self.shows_prompt else ''\n"
    "        try:\n"
    "            line = ask(prompt)\n"
    "            if not line:\n"
    "                write('\\n')\n"
    "                raise SystemExit\n"
    "            return self.onecmd(line)\n"
    "        except KeyboardInterrupt:\n"
    "            write('\\nKeyboardInterrupt\\n')\n"
    "        except Exception as error:\n"
    "            write(f'*** {summarize(error)}\\n')\n"
    "    def emptyline(self):\n"
    "        pass\n"
    "    def default(self, line):\n"
    "        raise LookupError(f'Unknown syntax: {line:.80}')\n"
    "    @helps('exit', 'Leave this shell.')\n"
    "    def do_exit(self, _):\n"
    "        return True\n"
    "    @helps('help [COMMAND]',\n"
    "           'List the commands, or say what one does; ? is short for it.')\n"
    "    def do_help(self, topic):\n"
    "        if not topic:\n"
    "            return super().do_help('')\n"
    "        method = getattr(self, 'do_' + topic, None)\n"
    "        if method is None or not method.__doc__:\n"
    "            raise LookupError(f'No help on {topic:.80}')\n"
    "        say(method.__doc__)\n"
    "    @helps('prompt on|off', 'Show a prompt or none, here and in the shells '\n"
    "           'that are entered from here.')\n"
    "    def do_prompt(self, word):\n"
    "        if word not in ('on', 'off'):\n"
    "            raise ValueError('A prompt is on or off')\n"
    "        self.shows_prompt = word == 'on'\n"
    "\n"
    /* A class decorator: a method for each row, NAME: (what returns the text, help). */
    "def shows(rows):\n"
    "    def add(shell):\n"
    "        for name, (look, text) in rows.items():\n"
    "            def do(self, _, look=look):\n"
    "                say(run(look))\n"
    "            setattr(shell, 'do_' + name, helps(name, text)(do))\n"
    "        return shell\n"
    "    return add\n"
    "\n"
    "@shows({\n"
    "    'cwd': (os.getcwd, 'Show the current working directory of the process.'),\n"
    "    'egid': (lambda: str(os.getegid()),\n"
    "             'Show the effective group id of the process.'),\n"
    "    'euid': (lambda: str(os.geteuid()),\n"
    "             'Show the effective user id of the process.'),\n"
    "    'gid': (lambda: str(os.getgid()), 'Show the group id of the process.'),\n"
    "    'pid': (lambda: str(os.getpid()), 'Show the process id.'),\n"
    "    'uid': (lambda: str(os.getuid()), 'Show the user id of the process.'),\n"
    "})\n"
    "class Process(Shell):\n"
    "    pass\n"
    "\n"
    "@shows({\n"
    "    'argv': (lambda: str(sys.argv),\n"
    "             'Show sys.argv, what the process was started with.'),\n"
    "    'defaultencoding': (sys.getdefaultencoding,\n"
    "             'Show the encoding that Python takes where none is given.'),\n"
    "    'environ': (lambda: str(dict(os.environ)),\n"
    "             'Show os.environ: the environment at the start of Python, and '\n"
    "             'what was set since.'),\n"
    "    'executable': (lambda: str(sys.executable),\n"
    "             'Show sys.executable, the path of the Python that runs.'),\n"
    "    'filesystemencoding': (sys.getfilesystemencoding,\n"
    "             'Show the encoding of file names.'),\n"
    "    'maxint': (lambda: f'{sys.maxsize}\\nPython 3 has no maxint, for its ints '\n"
    "             'have no limit: this is maxsize.',\n"
    "             'Show sys.maxsize, for Python 3 has no sys.maxint.'),\n"
    "    'maxsize': (lambda: str(sys.maxsize),\n"
    "             'Show sys.maxsize, the most items that a list can have.'),\n"
    "    'maxunicode': (lambda: str(sys.maxunicode),\n"
    "             'Show sys.maxunicode, the highest code point of a character.'),\n"
    "    'path': (lambda: str(sys.path),\n"
    "             'Show sys.path, where modules are looked for.'),\n"
    "    'platform': (lambda: str(sys.platform), 'Show sys.platform.'),\n"
    "    'prefix': (lambda: str(sys.prefix),\n"
    "             'Show sys.prefix, where Python is installed.'),\n"
    "    'tasks': (lambda: native('tasks'),\n"
    "             'Show what tasks of asyncio, and greenlets, wait for.'),\n"
    "    'threads': (lambda: native('threads'), 'Show the stacks of all threads.'),\n"
    "    'version': (lambda: str(sys.version),\n"
    "             'Show sys.version, with the compiler and the date of the build.'),\n"
    "})\n"
    "class Python(Shell):\n"
    "    @helps('console', 'Open a Python console in the process, if that is '\n"
    "           'enabled; exit() leaves it.')\n"
    "    def do_console(self, _):\n"
    "        if 'console' in self.outer.enabled:\n"
    "            console(self.outer.locals)\n"
    "        else:\n"
    "            say(HOW_TO_ENABLE % ('Python console', 'python:console', 'console'))\n"
    "    @helps('modules [GLOB]', 'List the modules that are imported: those in no '\n"
    "           'package, or those whose names match GLOB (*, ?, [...]).')\n"
    "    def do_modules(self, glob):\n"
    "        names = [name for name in list(sys.modules) if isinstance(name, str)]\n"
    /* While it is matched no other thread runs. */
    "        if len(glob) > MAX_GLOB:\n"
    "            raise ValueError(f'A glob has at most {MAX_GLOB} characters')\n"
    "        if glob:\n"
    "            names = run(fnmatch.filter, names, glob)\n"
    "        else:\n"
    "            names = [name for name in names if '.' not in name]\n"
    "        say(str(sorted(names)))\n"
    "\n"
    "@shows({\n"
    "    'list': (lambda: native('list'), 'List the probes.'),\n"
    "    'reset': (lambda: native('reset'),\n"
    "             'Take all probes away and forget all tracebacks.'),\n"
    "    'tracebacks': (lambda: native('tracebacks'),\n"
    "             'List the probes that have kept a traceback.'),\n"
    "})\n"
    "class Debugger(Shell):\n"
    "    feature = 'debugger'\n"
    "    PROBED = ' module:function | module:Class.method'\n"
    "    @helps('debug' + PROBED,\n"
    "           'Run pdb post mortem on the traceback that the probe has kept.')\n"
    "    def do_debug(self, function):\n"
    "        say(with_streams(lambda: run(native, 'debug', function)))\n"
    "    @helps('discard' + PROBED, 'Forget the traceback that the probe has kept.')\n"
    "    def do_discard(self, function):\n"
    "        say(run(native, 'discard', function))\n"
    "    @helps('insert' + PROBED, 'Put a probe around a function: it keeps the '\n"
    "           'traceback of the last exception that leaves it.')\n"
    "    def do_insert(self, function):\n"
    "        say(run(native, 'insert', function))\n"
    "    @helps('print' + PROBED, 'Show the traceback that the probe has kept.')\n"
    "    def do_print(self, function):\n"
    "        say(run(native, 'print', function))\n"
    "    @helps('remove' + PROBED, 'Take the probe away: the function is what it was.')\n"
    "    def do_remove(self, function):\n"
    "        say(run(native, 'remove', function))\n"
    "\n"
    "@shows({\n"
    "    'requests': (lambda: native('requests'),\n"
    "             'Show the requests in flight: since when, their environ, and '\n"
    "             'the stack.'),\n"
    "})\n"
    "class Wsgi(Shell):\n"
    "    pass\n"
    "\n"
    "SHELLS = {'debugger': Debugger, 'process': Process, 'python': Python,\n"
    "          'wsgi': Wsgi}\n"
    "\n"
    /* For what prints or reads by sys: pdb, and plugins that are not ours. */
    "def with_streams(act):\n"
    "    open_streams()\n"
    "    try:\n"
    "        return act()\n"
    "    finally:\n"
    "        close_streams()\n"
    "\n"
    /* Of a plugin that is not ours: the methods do_NAME of its class are commands, too. */
    "class Plugin(Shell):\n"
    "    def __init__(self, name, outer, plugin):\n"
    "        self.plugin = plugin\n"
    "        super().__init__(name, outer)\n"
    "    def get_names(self):\n"
    "        return super().get_names() + dir(type(self.plugin))\n"
    "    def __getattr__(self, name):\n"
    "        if name[:3] != 'do_' or name not in dir(type(self.plugin)):\n"
    "            raise AttributeError(name)\n"
    "        method = getattr(self.plugin, name)\n"
    "        def do(argument):\n"
    "            return self.call(method, argument)\n"
    "        do.__doc__ = method.__doc__\n"
    "        return do\n"
    /* What it returns, as a bool; None: it has raised, and the client has seen the traceback. */
    "    def call(self, method, *arguments):\n"
    "        try:\n"
    "            return run(lambda: bool(method(*arguments)))\n"
    "        except Exception as error:\n"
    "            frames = error.__traceback__.tb_next.tb_next\n"
    "            lines = run(traceback.format_exception, type(error), error, frames)\n"
    "            write(''.join(lines))\n"
    "    def call_optional(self, name, *arguments):\n"
    "        method = getattr(self.plugin, name, None)\n"
    "        return False if method is None else self.call(method, *arguments)\n"
    "    def enter(self, line):\n"
    "        self.plugin.stdin = self.outer.input\n"
    "        self.plugin.stdout = sys.stdout\n"
    "        if self.call_optional('activate', self.outer.settings) is False:\n"
    "            try:\n"
    "                self.interact(line)\n"
    "            finally:\n"
    "                self.call_optional('shutdown')\n"
    "\n"
    /* The shell that a client begins in. */
    "class Root(Shell):\n"
    "    def __init__(self, enabled, settings, locals, input):\n"
    "        super().__init__('manhole')\n"
    "        self.enabled, self.settings = enabled, settings\n"
    "        self.locals, self.input = locals, input\n"
    "        self.plugins, self.skipped = {}, []\n"
    "    def words(self):\n"
    "        return super().words() + list(self.plugins)\n"
    /* A broken one costs nobody more than itself. */
    "    def load(self, entries):\n"
    "        for entry in entries:\n"
    "            try:\n"
    "                run(self.add, entry)\n"
    "            except Exception as error:\n"
    "                self.skipped.append(f'{entry}: {error!r}')\n"
    "                log(self.skipped[-1])\n"
    /* Ours are named so, or by ispyd's name for them, "ispyd.plugins.python:PythonShell". */
    "    def add(self, entry):\n"
    "        ours = entry\n"
    "        if entry.startswith('ispyd.plugins.'):\n"
    "            ours = entry[14:].partition(':')[0]\n"
    "        if entry == '%(builtins)s':\n"
    "            self.plugins.update(SHELLS)\n"
    "        elif ours in SHELLS:\n"
    "            self.plugins[ours] = SHELLS[ours]\n"
    "        else:\n"
    "            self.add_foreign(entry)\n"
    "    def add_foreign(self, entry):\n"
    "        module, colon, name = entry.partition(':')\n"
    "        if not colon or ':' in name:\n"
    "            raise ValueError('a plugin is named as module:Class')\n"
    "        plugin = getattr(importlib.import_module(module), name)\n"
    "        name = plugin.name\n"
    "        if not (isinstance(name, str) and name.isidentifier() and\n"
    "                len(name) <= MAX_PLUGIN_NAME):\n"
    "            raise ValueError(f'its name is {name!r:.80}, not an identifier of at '\n"
    "                             f'most {MAX_PLUGIN_NAME} characters')\n"
    "        if name in SHELLS or name in self.plugins:\n"
    "            raise ValueError(f'another plugin is named {name!r}')\n"
    "        self.plugins[name] = plugin\n"
    "    @helps('plugins', 'List the plugins: what shell enters.')\n"
    "    def do_plugins(self, _):\n"
    "        say('\\nskipped: '.join([str(sorted(self.plugins))] + self.skipped))\n"
    "    @helps('shell NAME [COMMAND]',\n"
    "           'Enter the shell of a plugin, or run one command of it; !NAME is '\n"
    "           'short for it, exit leaves it.')\n"
    "    def do_shell(self, words):\n"
    "        name, _, line = words.partition(' ')\n"
    "        plugin = self.plugins.get(name)\n"
    "        if plugin is None:\n"
    "            raise LookupError(f'There is no plugin named {name!r:.80}; '\n"
    "                              '\"plugins\" lists them')\n"
    "        if SHELLS.get(name) is not plugin:\n"
    "            with_streams(lambda: Plugin(name, self, run(plugin)).enter(line))\n"
    "        elif plugin.feature is None or plugin.feature in self.enabled:\n"
    "            plugin(name, self).interact(line)\n"
    "        else:\n"
    "            say(HOW_TO_ENABLE % (f'{name} plugin', name, name))\n"
    "\n"
    /* All of a client's session: what the options and the configuration file say; entries None:
     * that names no plugins. */
    "def serve(enabled, settings, entries, locals, input):\n"
    "    root = Root(enabled, settings, locals, input)\n"
    "    root.load(['%(builtins)s'] if entries is None else entries)\n"
    "    root.interact()\n";

/* ---- What that program calls ----------------------------------------------------------- */

/* ask(prompt): a line from the client; '' at its end. */
ATTACHED static PyObject *
commands_ask(PyObject *module, PyObject *prompt)
{
    const char *text = PyUnicode_AsUTF8(prompt);
    PyObject *line = text == NULL ? NULL : ask_line(current_session, text); /* new */
    (void)module;
    if (line != NULL) {
        log_audit(current_session, line);
    }
    if (line == NULL && !PyErr_Occurred()) {
        PyErr_SetNone(PyExc_SystemExit); /* the application's: see await_line() */
    }
    return line;
}

/* run(callable, *arguments): in there, and nowhere else in the program, the client can interrupt.
 * */
ATTACHED static PyObject *
commands_run(PyObject *module, PyObject *callable_and_arguments)
{
    struct session *session = current_session; /* which a forked child has none of */
    PyObject *callable = PyTuple_GET_ITEM(callable_and_arguments, 0); /* borrowed */
    OWNED PyObject *arguments =
        PyTuple_GetSlice(callable_and_arguments, 1, PY_SSIZE_T_MAX);
    (void)module;
    if (arguments == NULL) {
        return NULL;
    }
    begin_running(session);
    PyObject *result = PyObject_CallObject(callable, arguments); /* new */
    end_running(session);
    return result;
}

/* offer(words): a tuple of what may be typed next. */
ATTACHED static PyObject *
commands_offer(PyObject *module, PyObject *words)
{
    (void)module;
    set_names(current_session, Py_NewRef(words));
    return Py_NewRef(Py_None);
}

/* open_streams(): print() and input() of a plugin or pdb are the client's. */
ATTACHED static PyObject *
commands_open_streams(PyObject *module, PyObject *unused)
{
    (void)module;
    (void)unused;
    return open_streams(current_session) < 0 ? NULL : Py_NewRef(Py_None);
}

ATTACHED static PyObject *
commands_close_streams(PyObject *module, PyObject *unused)
{
    (void)module;
    (void)unused;
    close_streams(current_session);
    return Py_NewRef(Py_None);
}

/* log(text): why a plugin is not there. */
ATTACHED static PyObject *
commands_log(PyObject *module, PyObject *skipped)
{
    const char *text = PyUnicode_AsUTF8(skipped);
    (void)module;
    if (text == NULL) {
        return NULL;
    }
    log_line("Plugin skipped: %s", text);
    return Py_NewRef(Py_None);
}

/* native(name[, argument]): what other rooms have, as text. */
ATTACHED static PyObject *
commands_native(PyObject *module, PyObject *arguments)
{
    PyObject *name = NULL;     /* borrowed */
    PyObject *argument = NULL; /* borrowed */
    (void)module;
    if (!PyArg_ParseTuple(arguments, "U|O", &name, &argument)) {
        return NULL;
    }
    if (PyUnicode_CompareWithASCIIString(name, "threads") == 0) {
        return make_dump();
    }
    if (PyUnicode_CompareWithASCIIString(name, "tasks") == 0) {
        return make_tasks_dump();
    }
    if (PyUnicode_CompareWithASCIIString(name, "requests") == 0) {
        return describe_requests();
    }
    return run_probe_command(name, argument);
}

/* exit() leaves the console, not the shell around it. Returns 0, or -1 with an exception. */
ATTACHED static int
add_exit(PyObject *names)
{
    OWNED PyObject *leave = PyObject_GetAttrString(manhole.module, "_exit");
    return leave == NULL || PyDict_SetItemString(names, "exit", leave) < 0
               ? -1
               : PyDict_SetItemString(names, "quit", leave);
}

/* console(locals): the Python console, on the client's own lines. */
ATTACHED static PyObject *
commands_console(PyObject *module, PyObject *locals)
{
    struct session *session = current_session;
    (void)module;
    set_names(session, make_names(locals == Py_None ? NULL : locals,
                                  session->channel->live_names));
    if (session->run.names != NULL && add_exit(session->run.names) == 0 &&
        open_streams(session) == 0 && send_stacks(session, NULL, true) == 0) {
        hold_console(session, false);
    }
    if (session->run.raised != NULL && !PyErr_Occurred()) {
        PyErr_SetNone(PyExc_SystemExit); /* as in commands_ask() */
    }

    PyObject *raised = take_exception(); /* owned, handed back */
    close_streams(session);
    put_back_exception(raised);
    return raised != NULL ? NULL : Py_NewRef(Py_None);
}

static PyMethodDef commands_functions[] = {
    {"ask", commands_ask, METH_O, NULL},
    {"close_streams", commands_close_streams, METH_NOARGS, NULL},
    {"console", commands_console, METH_O, NULL},
    {"log", commands_log, METH_O, NULL},
    {"native", commands_native, METH_VARARGS, NULL},
    {"offer", commands_offer, METH_O, NULL},
    {"open_streams", commands_open_streams, METH_NOARGS, NULL},
    {"run", commands_run, METH_VARARGS, NULL},
    {"write", shown_write, METH_O, NULL},
    {NULL, NULL, 0, NULL},
};

static const struct part commands_part = {
    .name = "commands",
    .program = commands_program,
    .functions = commands_functions,
};

/* For Python, which has no NULL. Returns a borrowed reference. */
static PyObject *
or_none(PyObject *object /* or NULL */)
{
    return object == NULL ? Py_None : object;
}

/* The client's whole session. Returns with an exception set when it was one that ended it. */
ATTACHED static void
converse_by_commands(struct session *session, PyObject *locals)
{
    lock_leaf(&table_lock);
    unsigned enabled = manhole.options.enable;
    OWNED PyObject *entries = Py_XNewRef(manhole.options.plugins);
    OWNED PyObject *settings = Py_XNewRef(manhole.options.settings);
    unlock(&table_lock);
    (void)import_needed_modules(session, "");
    OWNED PyObject *serve = import_part(session, &commands_part, "serve");
    if (serve == NULL && PyErr_ExceptionMatches(PyExc_Exception)) {
        OWNED PyObject *why = take_exception();
        tell_missing(session, "what the shell of commands needs", why, "");
    }
    session->run.input = serve == NULL ? NULL : open_input(session);
    (void)settle_report_attached(session);
    if (session->run.input == NULL) {
        return;
    }

    OWNED PyObject *result = PyObject_CallFunction(
        serve, "(ss)OOOO", (enabled & FEATURE_CONSOLE) != 0 ? "console" : "",
        (enabled & FEATURE_DEBUGGER) != 0 ? "debugger" : "", or_none(settings),
        or_none(entries), or_none(locals), session->run.input);
    if (result == NULL && PyErr_ExceptionMatches(PyExc_SystemExit)) {
        PyErr_Clear();
    }
}

/* Serves the session's client with the shell of commands. Never raises. */
ATTACHED static void
serve_commands(struct session *session, PyObject *locals)
{
    serve_lines(session, locals, converse_by_commands);
}

#endif /* MANHOLE_SESSION_COMMANDS_C */
