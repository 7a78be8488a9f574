/* Frames: one frame of a thread or of a task, whose names a client reads and sets at the prompt.
 * Runs on:  the session's thread, ATTACHED.
 * Touches:  the names of the frame that it is told to set.
 * A frame is what Python gives of it: its f_locals. Before CPython 3.13 that is a copy of a
 * function's names, so these can be read only. Who has a frame keeps what it refers to alive, as
 * long as the session or that name of it lasts.
 * The frame that is asked for may run on meanwhile, with a GIL between two steps of ours; without
 * one CPython does not guard it: refused.
 */
#ifndef MANHOLE_STACKS_FRAMES_C
#define MANHOLE_STACKS_FRAMES_C

#include "../base/compat.c"
#include "../base/state.c"
#include "../base/parts.c"
#include "look.c"
#include "tasks.c"

static const char frames_program[] =
    "linecache, sys, types = standard('linecache'), standard('sys'), standard('types')\n"
    "await_chain, find_kinds = from_tasks('await_chain'), from_tasks('find_kinds')\n"
    "all_tasks, is_a = from_tasks('all_tasks'), from_tasks('is_a')\n"
    "all_greenlets, outwards = from_tasks('all_greenlets'), from_tasks('outwards')\n"
    "peek, first, place = from_tasks('peek'), from_tasks('first'), from_tasks('place')\n"
    "known = from_tasks('known')\n"
    "IS_LIVE = sys.version_info >= (3, 13)\n"
    "CO_OPTIMIZED = 1\n"
    "\n"
    "def is_copied(frame):\n"
    "    return not IS_LIVE and frame.f_code.co_flags & CO_OPTIMIZED\n"
    "\n"
    /* What is set in a copy would stay in it, for the application's own locals() to
     * find. */
    "def names_of(frame):\n"
    "    return dict(frame.f_locals) if is_copied(frame) else frame.f_locals\n"
    "\n"
    /* The names are attributes, or where Frame has one of that name itself, items. */
    "class Frame:\n"
    "    __slots__ = ('_frame', '_number')\n"
    "    def __init__(self, frame, number):\n"
    "        object.__setattr__(self, '_frame', frame)\n"
    "        object.__setattr__(self, '_number', number)\n"
    "    def __repr__(self):\n"
    "        file, line, function = place(self._frame)\n"
    "        names = ', '.join(sorted(map(str, names_of(self._frame))))\n"
    "        return (f'<frame {self._number}: File \"{file}\", line {line}, in "
    "{function}; '\n"
    "                f'names: {names}>')\n"
    "    def __dir__(self):\n"
    "        return {*names_of(self._frame), 'run'}\n"
    "    def __getitem__(self, name):\n"
    "        return names_of(self._frame)[name]\n"
    "    def __getattr__(self, name):\n"
    "        try:\n"
    "            return self[name]\n"
    "        except KeyError:\n"
    "            raise AttributeError(f'{self!r} has no {name!r}') from None\n"
    "    def __setitem__(self, name, value):\n"
    "        if is_copied(self._frame):\n"
    "            raise TypeError('the names of a function can be set from CPython 3.13 "
    "on')\n"
    "        self._frame.f_locals[name] = value\n"
    "    __setattr__ = __setitem__\n"
    "    def run(self, source):\n"
    "        try:\n"
    "            code = compile(source, '<frame>', 'eval')\n"
    "        except SyntaxError:\n"
    "            code = compile(source, '<frame>', 'exec')\n"
    "        return eval(code, self._frame.f_globals, names_of(self._frame))\n"
    "\n"
    /* (ident, native id, name) of each thread that runs Python. */
    "def list_threads(tops):\n"
    "    active = vars(sys.modules.get('threading', sys)).get('_active', {})\n"
    "    for ident in tops:\n"
    "        thread = active.get(ident)\n"
    "        yield ident, peek(thread, '_native_id'), peek(thread, '_name')\n"
    "\n"
    "def only(found, what, wanted):\n"
    "    if len(found) != 1:\n"
    "        raise LookupError(f'there are {len(found)} {what} {wanted!r}; threads() "
    "lists '\n"
    "                          'those that there are, tasks() the tasks')\n"
    "    return found[0]\n"
    "\n"
    /* The frames of a thread, a task or a greenlet, innermost first. */
    "def find_stack(wanted):\n"
    "    tops = current_frames()\n"
    "    names, kinds, _ = find_kinds()\n"
    "    if is_a(wanted, kinds):\n"
    "        return await_chain(peek(wanted, '_coro'))[::-1]\n"
    "    greenlets = list(all_greenlets())\n"
    "    found = [top for one, top, _ in greenlets if one is wanted and top is not "
    "None]\n"
    "    if found:\n"
    "        return outwards(found[0])\n"
    "    ident = peek(wanted, '_ident')\n"
    "    if ident in tops:\n"
    "        return outwards(tops[ident])\n"
    "    found = [tops[row[0]] for row in list_threads(tops) if wanted in row]\n"
    "    if not found and type(wanted) is str:\n"
    "        tasks = [task for task in all_tasks(names, kinds)\n"
    "                 if first(task, ('get_name', '_name')) == wanted]\n"
    "        tasks += [one for one, top, _ in greenlets\n"
    "                  if peek(one, 'name') == wanted and top is not None]\n"
    "        return find_stack(only(tasks, 'threads, tasks or greenlets called', "
    "wanted))\n"
    "    return outwards(only(found, 'threads called', wanted))\n"
    "\n"
    /* In a frozen copy none is the thread that had the GIL. */
    "def stack_of(wanted):\n"
    "    if wanted is None and meant() is None:\n"
    "        raise TypeError('which thread? threads() lists those that there are')\n"
    "    try:\n"
    "        return find_stack(meant() if wanted is None else wanted)\n"
    "    finally:\n"
    "        known.clear()\n"
    "\n"
    "def frame(thread=None, n=0):\n"
    "    stack = stack_of(thread)\n"
    "    if not -len(stack) <= n < len(stack):\n"
    "        raise IndexError(f'{thread!r} has {len(stack)} frames; 0 is the "
    "innermost')\n"
    "    return Frame(stack[n], n % len(stack))\n"
    "\n"
    /* Python's debugger in that frame, and in those that have called it. */
    "def debug(thread=None, n=0):\n"
    "    debugger = standard('pdb').Pdb(nosigint=True, readrc=False)\n"
    "    debugger.reset()\n"
    "    debugger.interaction(frame(thread, n)._frame, None)\n"
    "\n"
    /* But the calling one, which is known by its frame: its ident is another with gevent. */
    "def threads():\n"
    "    tops = current_frames()\n"
    "    here = sys._getframe()\n"
    "    tops = {ident: top for ident, top in tops.items() if top is not here}\n"
    "    rows = list(list_threads(tops))\n"
    "    known.clear()\n"
    "    for ident, native_id, name in rows:\n"
    "        file, line, function = place(tops[ident])\n"
    "        print(f'{name or \"?\"}, ident {ident}, native id {native_id or \"?\"}: '\n"
    "              f'File \"{file}\", line {line}, in {function}')\n"
    "\n"
    "def where(thread):\n"
    "    for number, frame in enumerate(stack_of(thread)):\n"
    "        file, line, function = place(frame)\n"
    "        source = linecache.getline(file, line, frame.f_globals).strip()\n"
    "        print(f'{number:3} File: \"{file}\", line {line}, in {function}')\n"
    "        if source:\n"
    "            print(f'      {source}')\n";

/* from_tasks(name): what the part of tasks has. */
ATTACHED static PyObject *
frames_from_tasks(PyObject *module, PyObject *name)
{
    const char *text = PyUnicode_AsUTF8(name);
    (void)module;
    return text == NULL ? NULL : get_from_part(manhole.module, &tasks_part, text);
}

/* current_frames(): the innermost frame of each thread, by its ident. */
ATTACHED static PyObject *
frames_current(PyObject *module, PyObject *unused)
{
    (void)module;
    (void)unused;

    if (!HAS_GIL) {
        PyErr_SetString(PyExc_NotImplementedError,
                        "frames cannot be read in a Python without the GIL");
        return NULL;
    }
    bool collecting = pause_gc();        /* as in look_at_threads() */
    PyObject *frames = collect_frames(); /* new, handed to the caller */
    resume_gc(collecting);
    return frames;
}

/* meant(): the ident of the thread that a frozen copy is about; None: this is none. */
ATTACHED static PyObject *
frames_meant(PyObject *module, PyObject *unused)
{
    (void)module;
    (void)unused;
    return Py_NewRef(frozen.meant == NULL ? Py_None : frozen.meant);
}

static PyMethodDef frames_functions[] = {
    {"current_frames", frames_current, METH_NOARGS, NULL},
    {"from_tasks", frames_from_tasks, METH_O, NULL},
    {"meant", frames_meant, METH_NOARGS, NULL},
    {NULL, NULL, 0, NULL},
};

static const struct part frames_part = {
    .name = "frames",
    .program = frames_program,
    .functions = frames_functions,
};

#endif /* MANHOLE_STACKS_FRAMES_C */
