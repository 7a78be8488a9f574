/* Probes: functions that keep what they failed with, for a post mortem while the program goes on.
 * Runs on:  any thread of the application that calls them, and sessions; ATTACHED.
 * Touches:  the one name in a module or class that a probe is inserted at, and that only while what
 *           it has put there is still there.
 *
 * How it works. A stand-in takes the function's place: a function that calls it, dressed by
 * functools.wraps(). Its probe is what one asks. It keeps one exception, the latest, with its
 * frames, until it is discarded: a traceback, and what pdb can examine post mortem while the
 * program goes on.
 *
 * A name, module:Class.method, is looked for in dictionaries alone, so nothing of the application's
 * runs or is imported. To remove a probe is to put back what was found, and only while what stands
 * there is our own stand-in: who has replaced it since keeps what it has set.
 *
 * Two threads may insert, remove and call at once. Each step that only one may do is one operation
 * of a dict or set (by_name.setdefault(), _in_place.pop()): whoever gets the entry goes on.
 *
 * All of it is in Python; what is C here gives it to who asks: the module's functions, and the
 * commands.
 */
#ifndef MANHOLE_WATCH_PROBES_C
#define MANHOLE_WATCH_PROBES_C

#include "../base/compat.c"
#include "../base/state.c"
#include "../base/parts.c"

static const char probes_program[] =
    "import sys\n"
    "functools = standard('functools')\n"
    "inspect = standard('inspect')\n"
    "types = standard('types')\n"
    "weakref = standard('weakref')\n"

    "by_name = {}\n"
    /* Stand-ins that outlive their probes, for those who have weak references to them. */
    "kept_stand_ins = []\n"

    /* isinstance() would ask the object itself, which may run anything. */
    "def is_a(object, *types):\n"
    "    return issubclass(type(object), types)\n"

    /* ---- What a probe keeps ---- */

    "class Probe:\n"
    "    '''A function under observation, as probe() returns it. It keeps the latest\n"
    "    exception that left the function, with its frames, until discard() or\n"
    "    remove().'''\n"

    "    def __init__(self, name):\n"
    "        self.name = name\n"
    "        self._calls = counter()\n"
    "        self._exceptions = counter()\n"
    "        self._kept = None, None\n"
    "        self._home = None\n"
    /* Has a member while the probe is in place: who removes it pops that, and so is alone. */
    "        self._in_place = set()\n"
    "        self._removed = False\n"

    "    def __repr__(self):\n"
    "        calls, exceptions = self.calls, self.exceptions\n"
    "        return \"<manhole.Probe '%s': %d call%s, %d exception%s%s>\" % (\n"
    "            self.name, calls, 's' * (calls != 1),\n"
    "            exceptions, 's' * (exceptions != 1), ', removed' * self._removed)\n"

    "    @property\n"
    "    def calls(self):\n"
    "        'How often the function was called.'\n"
    "        return self._calls(0)\n"

    "    @property\n"
    "    def exceptions(self):\n"
    "        'How many exceptions left it, a generator or coroutine of its included.'\n"
    "        return self._exceptions(0)\n"

    "    @property\n"
    "    def exception(self):\n"
    "        'The latest of them; None when none is kept.'\n"
    "        return self._kept[0]\n"

    "    @property\n"
    "    def traceback(self):\n"
    "        'The text of its traceback, from the function inwards; None as above.'\n"
    "        exception, frames = self._get_kept()\n"
    "        if exception is None:\n"
    "            return None\n"
    "        format_exception = standard('traceback').format_exception\n"
    "        return ''.join(format_exception(type(exception), exception, frames))\n"

    /* The frames that it has passed: the first is that of the stand-in. What a function in C has
     * raised has none of its own, and those that it passed since are shown. */
    "    def _get_kept(self):\n"
    "        exception, frames = self._kept\n"
    "        if frames is None and exception is not None:\n"
    "            frames = exception.__traceback__\n"
    "        return exception, frames\n"

    /* For stand-ins. A generator that is closed has not failed. Removal, which may come at the
     * same time, first says so and then drops what is kept: so it looks for that last. */
    "    def _failed(self, exception):\n"
    "        if not is_a(exception, GeneratorExit):\n"
    "            self._exceptions(1)\n"
    "            self._kept = exception, exception.__traceback__.tb_next\n"
    "            if self._removed:\n"
    "                self.discard()\n"

    "    def _fail_without(self):\n"
    "        raise LookupError(\n"
    "            \"'%s' has no traceback: in %d calls since the probe was inserted \"\n"
    "            \"%d exceptions have left it, and none is kept\"\n"
    "            % (self.name, self.calls, self.exceptions))\n"

    "    def _get_text(self):\n"
    "        text = self.traceback\n"
    "        if text is None:\n"
    "            self._fail_without()\n"
    "        return text\n"

    "    def discard(self):\n"
    "        'Let go of the exception that is kept, and so of all its frames.'\n"
    "        self._kept = None, None\n"

    "    def print(self):\n"
    "        'Print the traceback to sys.stdout. LookupError when none is kept.'\n"
    "        print(self._get_text(), end='')\n"

    /* The streams are the calling thread's; the process's SIGINT and ~/.pdbrc are let alone. */
    "    def debug(self):\n"
    "        '''Examine the exception with pdb, post mortem, on the streams of the\n"
    "        calling thread: at a manhole's prompt they are the client. The program\n"
    "        goes on meanwhile. LookupError when no exception is kept.'''\n"
    "        frames = self._get_kept()[1]\n"
    "        if frames is None:\n"
    "            self._fail_without()\n"
    "        debugger = standard('pdb').Pdb(stdin=sys.stdin, stdout=sys.stdout,\n"
    "                                       nosigint=True, readrc=False)\n"
    "        debugger.reset()\n"
    "        debugger.interaction(None, frames)\n"

    "    def remove(self):\n"
    "        '''Put back what was there before, and let go of the exception.\n"
    "        RuntimeError when somebody else has replaced it meanwhile: that is left\n"
    "        as it is. LookupError when the probe is removed already.'''\n"
    "        try:\n"
    "            self._in_place.pop()\n"
    "        except KeyError:\n"
    "            raise LookupError(\"the probe '%s' is %s\" % (\n"
    "                self.name, 'removed already' if self._removed\n"
    "                else 'only just being inserted')) from None\n"
    "        self._removed = True\n"
    "        try:\n"
    "            complaint = restore(self)\n"
    "        except BaseException:\n"
    "            self._removed = False\n"
    "            self._in_place.add(True)\n"
    "            raise\n"
    "        by_name.pop(self.name, None)\n"
    "        self.discard()\n"
    /* A signal's receiver, say: it took the stand-in for the function, which lives on. It
     * passes calls through for ever. */
    "        if weakref.getweakrefcount(self._home.stand_in):\n"
    "            kept_stand_ins.append(self._home.stand_in)\n"
    "        self._home = None\n"
    "        if complaint:\n"
    "            raise RuntimeError(complaint)\n"

    /* ---- Stand-ins ----
     * Each is of the function's own kind, so that who asks how to call it is told right. */

    /* What calls the function, and tells the probe. */
    "def make_call(function, called, failed):\n"
    "    if inspect.iscoroutinefunction(function):\n"
    "        async def probed(*arguments, **keywords):\n"
    "            called(1)\n"
    "            try:\n"
    "                return await function(*arguments, **keywords)\n"
    "            except BaseException as exception:\n"
    "                failed(exception)\n"
    "                raise\n"
    "    elif inspect.isasyncgenfunction(function):\n"
    /* What `yield from` does for the others. */
    "        async def probed(*arguments, **keywords):\n"
    "            called(1)\n"
    "            try:\n"
    "                generator = function(*arguments, **keywords)\n"
    "                step = generator.__anext__()\n"
    "                while True:\n"
    "                    try:\n"
    "                        part = await step\n"
    "                    except StopAsyncIteration:\n"
    "                        return\n"
    "                    try:\n"
    "                        step = generator.asend((yield part))\n"
    "                    except GeneratorExit:\n"
    "                        await generator.aclose()\n"
    "                        raise\n"
    "                    except BaseException as exception:\n"
    "                        step = generator.athrow(exception)\n"
    "            except BaseException as exception:\n"
    "                failed(exception)\n"
    "                raise\n"
    "    elif inspect.isgeneratorfunction(function):\n"
    "        def probed(*arguments, **keywords):\n"
    "            called(1)\n"
    "            try:\n"
    "                return (yield from function(*arguments, **keywords))\n"
    "            except BaseException as exception:\n"
    "                failed(exception)\n"
    "                raise\n"
    /* The coroutines of types.coroutine(). */
    "        flags = getattr(function, '__code__', probed.__code__).co_flags\n"
    "        if flags & inspect.CO_ITERABLE_COROUTINE:\n"
    "            probed = types.coroutine(probed)\n"
    "    else:\n"
    "        def probed(*arguments, **keywords):\n"
    "            called(1)\n"
    "            try:\n"
    "                return function(*arguments, **keywords)\n"
    "            except BaseException as exception:\n"
    "                failed(exception)\n"
    "                raise\n"
    "    return probed\n"

    "def binds(function):\n"
    "    kind = type(function)\n"
    "    return hasattr(kind, '__get__') and not issubclass(kind, types.MethodType)\n"

    /* Of what is called but no function of Python's: functions in C, partial(), lru_cache()'s,
     * Celery's tasks. It binds if that does, has its attributes, and is pickled as that is. */
    "class Probed:\n"
    "    def __init__(self, call, function):\n"
    "        self.__call = call\n"
    "        functools.update_wrapper(self, function, updated=())\n"

    "    def __call__(self, /, *arguments, **keywords):\n"
    "        return self.__call(*arguments, **keywords)\n"

    "    def __getattr__(self, name):\n"
    "        return getattr(self.__wrapped__, name)\n"

    "    def __reduce_ex__(self, protocol):\n"
    "        return self.__wrapped__.__reduce_ex__(protocol)\n"

    "class BindingProbed(Probed):\n"
    "    def __get__(self, object, owner=None):\n"
    "        return self if object is None else types.MethodType(self, object)\n"

    "def make_stand_in(function, probe):\n"
    "    call = make_call(function, probe._calls, probe._failed)\n"
    "    if is_a(function, types.FunctionType):\n"
    "        return functools.update_wrapper(call, function)\n"
    "    return (BindingProbed if binds(function) else Probed)(call, function)\n"

    /* ---- Where a function is ----
     * Looked for in dictionaries alone, so that nothing of the application's runs. */

    /* Returns what is there, and whether it is inherited. */
    "def look_up(parent, attribute):\n"
    "    for holder in parent.__mro__ if is_a(parent, type) else [parent]:\n"
    "        names = vars(holder)\n"
    "        if attribute in names:\n"
    "            return names[attribute], holder is not parent\n"
    "    raise LookupError(\"%r has no name '%s'\" % (parent, attribute))\n"

    /* The module or class that the function is in, and its name there. */
    "def find_parent(name):\n"
    "    if not is_a(name, str):\n"
    "        raise TypeError(\"a probe's name is a str, not %s\" % type(name).__name__)\n"
    "    module, _, path = name.partition(':')\n"
    "    if not module or not path:\n"
    "        raise ValueError(\"a probe's name is module:function or \"\n"
    "                         \"module:Class.method, not %r\" % name)\n"
    "    parent = sys.modules.get(module)\n"
    "    if parent is None:\n"
    "        raise LookupError(\n"
    "            \"no module '%s' is imported, and a probe imports nothing: import \"\n"
    "            \"it in the program, or name the module as sys.modules has it (the \"\n"
    "            \"program that was started is '__main__')\" % module)\n"
    "    *steps, attribute = path.split('.')\n"
    "    for step in steps:\n"
    "        parent, _ = look_up(parent, step)\n"
    "        if not is_a(parent, type, types.ModuleType):\n"
    "            raise TypeError(\n"
    "                \"'%s' is an object of %r: a probe goes into modules and \"\n"
    "                \"classes only; name the class\" % (step, type(parent)))\n"
    "    return parent, attribute\n"

    /* A bit of type.__flags__ that tells who binds as functions do. */
    "METHOD_DESCRIPTOR = 1 << 17\n"

    "def check_function(name, function, in_class):\n"
    "    kind = type(function)\n"
    "    for other in list(by_name.values()):\n"
    "        home = other._home\n"
    "        if home is not None and home.stand_in is function:\n"
    "            raise ValueError(\"'%s' is probed already, as '%s'\"\n"
    "                             % (name, other.name))\n"
    "    if is_a(function, type):\n"
    "        raise TypeError(\"'%s' is a class: name a method of it, such as \"\n"
    "                        \"'%s.__init__'\" % (name, name))\n"
    "    if not callable(function):\n"
    "        raise TypeError(\"'%s' is a %s object, which cannot be called: a probe \"\n"
    "                        \"goes on a function or method\" % (name, kind.__name__))\n"
    "    if in_class and binds(function) and not kind.__flags__ & METHOD_DESCRIPTOR:\n"
    "        raise TypeError(\"'%s' is a %s object, which binds to instances in a \"\n"
    "                        \"way of its own: name the function that it calls\"\n"
    "                        % (name, kind.__name__))\n"

    /* What a probe needs to know to be placed, and to be removed. */
    "def find_home(probe):\n"
    "    parent, attribute = find_parent(probe.name)\n"
    "    found, inherited = look_up(parent, attribute)\n"
    "    in_class = is_a(parent, type)\n"
    /* They look at what stands in their places in the class, and take no arguments where that is
     * anything else. */
    "    if (inherited and attribute in ('__new__', '__init__') and\n"
    "            found is vars(object)[attribute]):\n"
    "        raise TypeError(\"'%s' is object's own: name a method that the class or \"\n"
    "                        \"a base of it defines\" % probe.name)\n"
    "    wrapped = in_class and is_a(found, staticmethod, classmethod)\n"
    "    function = found.__func__ if wrapped else found\n"
    "    check_function(probe.name, function, in_class)\n"
    "    stand_in = make_stand_in(function, probe)\n"
    "    return types.SimpleNamespace(\n"
    "        parent=parent, attribute=attribute, found=found, inherited=inherited,\n"
    "        stand_in=stand_in, placed=type(found)(stand_in) if wrapped else stand_in)\n"

    /* Puts back what was there. Returns a complaint if something else is there by now. */
    "def restore(probe):\n"
    "    home = probe._home\n"
    "    try:\n"
    "        found, inherited = look_up(home.parent, home.attribute)\n"
    "    except LookupError:\n"
    "        return \"the probe is gone, and so is '%s' itself\" % probe.name\n"
    "    if found is not home.placed or inherited:\n"
    "        return (\"the probe is gone, but '%s' is something else by now, %r: \"\n"
    "                \"that was left there\" % (probe.name, found))\n"
    "    if home.inherited:\n"
    "        delattr(home.parent, home.attribute)\n"
    "    else:\n"
    "        setattr(home.parent, home.attribute, home.found)\n"

    /* ---- What is called from C ---- */

    /* The name is claimed first: of two threads one inserts. */
    "def probe(name):\n"
    "    probe = Probe(name)\n"
    "    if by_name.setdefault(name, probe) is not probe:\n"
    "        return find_probe(name)\n"
    "    try:\n"
    "        probe._home = find_home(probe)\n"
    "        setattr(probe._home.parent, probe._home.attribute, probe._home.placed)\n"
    "        probe._in_place.add(True)\n"
    "    except BaseException:\n"
    "        by_name.pop(name, None)\n"
    "        if probe._home is not None:\n"
    "            restore(probe)\n"
    "        raise\n"
    "    return probe\n"

    "def find_probe(name):\n"
    "    try:\n"
    "        return by_name[name]\n"
    "    except KeyError:\n"
    "        raise LookupError('there is no probe %r; there are %r'\n"
    "                          % (name, sorted(list(by_name)))) from None\n"

    "def probes():\n"
    "    return sorted(list(by_name.values()), key=lambda probe: probe.name)\n"

    "def unprobe(name):\n"
    "    find_probe(name).remove()\n"

    /* All are removed, whatever is complained of one. */
    "def unprobe_all():\n"
    "    failure = None\n"
    "    for probe in probes():\n"
    "        try:\n"
    "            probe.remove()\n"
    "        except Exception as exception:\n"
    "            failure = exception\n"
    "    if failure is not None:\n"
    "        raise failure\n"

    "def list_tracebacks():\n"
    "    kept = {}\n"
    "    for probe in probes():\n"
    "        exception, frames = probe._get_kept()\n"
    "        if exception is not None:\n"
    "            kept[probe.name] = frames\n"
    "    return repr(kept)\n"

    /* What a client types in the shell of commands: each returns what to print, or None. */
    "commands = {\n"
    "    'debug': lambda name: find_probe(name).debug(),\n"
    "    'discard': lambda name: find_probe(name).discard(),\n"
    "    'insert': lambda name: probe(name) and None,\n"
    "    'list': lambda: repr(sorted(list(by_name))),\n"
    "    'print': lambda name: find_probe(name)._get_text(),\n"
    "    'remove': unprobe,\n"
    "    'reset': unprobe_all,\n"
    "    'tracebacks': list_tracebacks,\n"
    "}\n"

    "def run_command(name, *argument):\n"
    "    return commands[name](*argument)\n";

static const struct part probes_part = {
    .name = "probes",
    .program = probes_program,
};

/* ---- The module's functions ------------------------------------------------------- */

PyDoc_STRVAR(
    py_probe_doc,
    "probe(name, /)\n--\n\n"
    "Keep the exceptions that leave a function, and return the Probe, or the one that\n"
    "is there already. name is module:function or module:Class.method, of a module\n"
    "that is imported. Static and class methods, generators and coroutines, and C\n"
    "functions too. Who has got the function itself before, by `from module import\n"
    "function` or in a table of its own, goes on calling it unobserved.\n"
    "ValueError, LookupError, TypeError: not a name, not there, not to be probed.");

ATTACHED static PyObject *
py_probe(PyObject *module, PyObject *name)
{
    return call_part(module, &probes_part, "probe", name, NULL);
}

PyDoc_STRVAR(py_probes_doc, "probes()\n--\n\n"
                            "Return a list of the probes, sorted by name.");

ATTACHED static PyObject *
py_probes(PyObject *module, PyObject *unused)
{
    (void)unused;
    return call_part(module, &probes_part, "probes", NULL, NULL);
}

PyDoc_STRVAR(
    py_unprobe_doc,
    "unprobe(name=None, /)\n--\n\n"
    "Remove the probe with this name, or all of them. What was there before is\n"
    "put back. LookupError when there is no such probe; RuntimeError when\n"
    "somebody else has replaced the function meanwhile: the probe is removed, and\n"
    "that is left as it is.");

ATTACHED static PyObject *
py_unprobe(PyObject *module, PyObject *arguments)
{
    PyObject *name = Py_None; /* borrowed */
    if (!PyArg_ParseTuple(arguments, "|O:unprobe", &name)) {
        return NULL;
    }
    return name == Py_None ? call_part(module, &probes_part, "unprobe_all", NULL, NULL)
                           : call_part(module, &probes_part, "unprobe", name, NULL);
}

static PyMethodDef probe_functions[] = {
    {"probe", py_probe, METH_O, py_probe_doc},
    {"probes", py_probes, METH_NOARGS, py_probes_doc},
    {"unprobe", py_unprobe, METH_VARARGS, py_unprobe_doc},
    {NULL, NULL, 0, NULL},
};

/* A row of module_slots[]: what the module has of this room. */
ATTACHED static int
exec_probes(PyObject *module)
{
    return PyModule_AddFunctions(module, probe_functions);
}

/* A command that a client types, in a session's thread. Returns a new str to print, or None; or
 * NULL with an exception whose message is for the client. */
ATTACHED static PyObject *
run_probe_command(PyObject *name, PyObject *argument /* a probe's name, or NULL */)
{
    return call_part(manhole.module, &probes_part, "run_command", name, argument);
}

#endif /* MANHOLE_WATCH_PROBES_C */
