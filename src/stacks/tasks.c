/* Tasks: what each task of asyncio, and each greenlet, waits for, down to its innermost frame.
 * Runs on:  any thread, ATTACHED.
 * Touches:  nothing. Reads asyncio and greenlet where the application has imported them.
 *
 * How it works. A thread's stack shows of a loop the one task that runs, or that it sleeps in
 * select(). The others are coroutines that stand still: cr_await leads from one to the next, to the
 * frame that waits for a future. Who waits for that is written nowhere before CPython 3.14, but
 * whom it will call when it is done is: the callbacks of gather(), shield(), wait() and wait_for()
 * hold the future that their caller waits for, a TaskGroup's the task that entered it.
 *
 * What is shown is a tree, each task below the first that awaits it. Tasks beside each other that
 * wait at the same place, with the same below them, are one entry: ten thousand are twenty lines.
 *
 * A greenlet is simpler, it has a stack of frames: gr_frame. Nobody keeps a list of them, so the
 * garbage collector is asked. gevent knows who has spawned one, which makes the tree.
 *
 * It is written in Python because all of that is Python objects, and because a thread that runs
 * Python lets the others run every few milliseconds, however many tasks there are. So tasks come
 * and go meanwhile, and each is told as it was when it was read. Attributes are read where C or an
 * object's dict stores them. Nothing of the application's runs, no property and no repr(), and what
 * a look keeps of it is text.
 *
 * Without a GIL a coroutine may run on while it is read, which CPython does not guard: refused.
 */
#ifndef MANHOLE_STACKS_TASKS_C
#define MANHOLE_STACKS_TASKS_C

#include "../base/compat.c"
#include "../base/state.c"
#include "../base/basics.c"
#include "../base/parts.c"
#include "json.c"

static const char tasks_program[] =
    "for name in 'functools gc os sys types weakref'.split():\n"
    "    globals()[name] = standard(name)\n"
    "MAX_FRAMES, MAX_NAMES, MAX_DEPTH = 200, 5, 20\n"
    "FRAMES = 'cr_frame', 'gi_frame', 'ag_frame'\n"
    "WAITS = 'cr_await', 'gi_yieldfrom', 'ag_await'\n"
    "WRAPPERS = ('coroutine_wrapper', 'async_generator_asend', "
    "'async_generator_athrow',\n"
    "            'anext_awaitable')\n"
    "DESCRIPTORS = types.GetSetDescriptorType, types.MemberDescriptorType\n"
    "STORED = (*DESCRIPTORS, types.MethodDescriptorType, str)\n"
    "CANCELS = 'cancelling', '_num_cancels_requested', '_must_cancel'\n"
    /* Where a type stores an attribute. Emptied when a look is over, not to keep the
     * types. */
    "known = {}\n"
    "\n"
    "def is_a(thing, kinds):\n"
    "    return issubclass(type(thing), kinds)\n"
    "\n"
    /* An attribute as it is stored, or what a method in C returns: no code of the
     * application's runs. */
    "def peek(thing, name):\n"
    "    kind = type(thing)\n"
    "    try:\n"
    "        found = known[kind, name]\n"
    "    except KeyError:\n"
    "        found = [vars(base)[name] for base in kind.__mro__ if name in vars(base)]\n"
    "        found = next((one for one in found if type(one) in STORED), None)\n"
    "        known[kind, name] = found\n"
    "    if type(found) is types.MethodDescriptorType:\n"
    "        return found(thing)\n"
    "    if type(found) in DESCRIPTORS:\n"
    "        try:\n"
    "            return found.__get__(thing)\n"
    "        except AttributeError:\n" /* of __slots__, and not set */
    "            return None\n"
    "    own = {} if name == '__dict__' else peek(thing, '__dict__') or {}\n"
    "    return own.get(name, found)\n"
    "\n"
    "def first(thing, names):\n"
    "    found = (peek(thing, name) for name in names)\n"
    "    return next((value for value in found if value is not None), None)\n"
    "\n"
    "def printable(text):\n"
    "    text = str.__str__(text) if is_a(text, str) else '?'\n"
    "    return text if text.isprintable() else ascii(text)\n"
    "\n"
    /* What stands behind anext(), asend() and the __await__() of a coroutine, none of
     * which tells. */
    "def unwrap(thing):\n"
    "    while type(thing).__name__ in WRAPPERS:\n"
    "        inner = gc.get_referents(thing)\n"
    "        thing = next((one for one in inner if type(one).__name__ in WRAPPERS or\n"
    "                      first(one, FRAMES) is not None), None)\n"
    "    return thing\n"
    "\n"
    /* The frames that a coroutine is suspended in, outermost first. */
    "def await_chain(coroutine):\n"
    "    frames, thing = [], unwrap(coroutine)\n"
    "    while len(frames) < MAX_FRAMES:\n"
    "        frame = first(thing, FRAMES)\n"
    "        if frame is None:\n"
    "            break\n"
    "        frames.append(frame)\n"
    "        thing = unwrap(first(thing, WAITS))\n"
    "    return frames\n"
    "\n"
    /* (file, line, function) */
    "def place(frame):\n"
    "    code = frame.f_code\n"
    "    return code.co_filename, frame.f_lineno or 0, code.co_name\n"
    "\n"
    /* Without asyncio no type is a task's. */
    "def find_kinds():\n"
    "    modules = [sys.modules.get(name) for name in ('asyncio.tasks', '_asyncio')]\n"
    "    names = [vars(module) for module in modules if is_a(module, types.ModuleType)]\n"
    "    tasks = tuple(found['Task'] for found in names if 'Task' in found)\n"
    "    futures = tuple(base for task in tasks for base in task.__mro__\n"
    "                    if base.__name__ == 'Future')\n"
    "    return (names + [{}])[0], tasks, futures\n"
    "\n"
    /* CPython 3.14 keeps no set of them, but a list in C for each thread: there the
     * garbage collector is asked. The copies are made in one step each: other threads
     * go on. */
    "def all_tasks(names, kinds):\n"
    "    if sys.version_info >= (3, 14):\n"
    "        found = gc.get_objects() if kinds else ()\n"
    "    else:\n"
    "        sets = [names.get(name) for name in ('_all_tasks', '_scheduled_tasks')]\n"
    "        found = [ref() for weak in sets if weak is not None for ref in "
    "weak.data.copy()]\n"
    "        found += names.get('_eager_tasks', set()).copy()\n"
    "    return [task for task in found if is_a(task, kinds) and\n"
    "            peek(task, '_state') == 'PENDING']\n"
    "\n"
    "def is_own(call, names):\n"
    "    return type(call) is types.FunctionType and call.__globals__ is names\n"
    "\n"
    /* The futures that go on when this one is done: gather()'s, shield()'s, wait()'s,
     * wait_for()'s; and the task of a TaskGroup. Of functions asyncio's own alone are
     * looked into. */
    "def followers(future, names):\n"
    "    yield from peek(future, '_asyncio_awaited_by') or ()\n"
    "    for callback in peek(future, '_callbacks') or ():\n"
    "        call = callback[0] if type(callback) is tuple else callback\n"
    "        if type(call) is types.MethodType:\n"
    "            yield peek(call.__self__, '_parent_task')\n"
    "        if type(call) is functools.partial:\n"
    "            yield from call.args if is_own(call.func, names) else ()\n"
    "        elif is_own(call, names):\n"
    "            for cell in call.__closure__ or ():\n"
    "                try:\n"
    "                    yield cell.cell_contents\n"
    "                except ValueError:\n"
    "                    pass\n"
    "\n"
    /* The name of a thread, where threading knows it. */
    "def name_thread(ident):\n"
    "    active = vars(sys.modules.get('threading', sys)).get('_active', {})\n"
    "    thread = active.get(ident) if type(ident) is int else None\n"
    "    return None if thread is None else printable(peek(thread, '_name'))\n"
    "\n"
    /* A loop, its type, and the thread that runs it with its name, where the loop
     * tells. */
    "def describe_loop(loop):\n"
    "    ident = peek(loop, '_thread_id')\n"
    "    return id(loop), printable(type(loop).__name__), ident, name_thread(ident)\n"
    "\n"
    /* What is to be told of a task. Refers to nothing of the application's, not to
     * keep it. Records are light, for others wait while the last of many goes. */
    "class Record:\n"
    "    noun = 'tasks'\n"
    "    __slots__ = ('name', 'order', 'coroutine', 'frames', 'waits_for', 'state', "
    "'loop',\n"
    "                 'is_being_cancelled', 'awaiters', 'children', 'shown', 'words', "
    "'number')\n"
    "    def __init__(self, task, waiter, known_frames):\n"
    "        coroutine = peek(task, '_coro')\n"
    "        is_waiting = waiter is not None and peek(waiter, '_state') == 'PENDING'\n"
    "        frames = tuple(place(frame) for frame in await_chain(coroutine))\n"
    "        self.call(printable(first(task, ('get_name', '_name'))))\n"
    "        self.coroutine = printable(first(coroutine, ('__qualname__',)))\n"
    "        self.frames = known_frames.setdefault(frames, frames)\n"
    "        self.waits_for = printable(type(waiter).__name__) if is_waiting else None\n"
    "        self.is_being_cancelled = bool(first(task, CANCELS))\n"
    "        is_running = first(coroutine, ('cr_running', 'gi_running'))\n"
    "        self.state = 'running' if is_running else 'waiting' if is_waiting else "
    "'ready'\n"
    "        self.awaiters = self.children = self.shown = ()\n"
    "    def call(self, name):\n"
    "        self.name, self.order = name, f'{len(name):9}{name}'\n"
    "\n"
    "def by_order(record):\n"
    "    return record.order\n"
    "\n"
    /* The keys of the tasks that go on when this one is done. */
    "def find_awaiters(task, tasks, waiting, names, futures):\n"
    "    ahead, seen, found = [task], set(), set()\n"
    "    while ahead:\n"
    "        future = ahead.pop()\n"
    "        key = id(future)\n"
    "        if key not in seen and key != id(task) and key in tasks:\n"
    "            found.add(key)\n"
    "        elif key not in seen and is_a(future, futures):\n"
    "            found.update(waiting.get(key, ()))\n"
    "            ahead.extend(followers(future, names))\n"
    "        seen.add(key)\n"
    "    return found\n"
    "\n"
    /* A record of each task, which knows those that await it. */
    "def look_at_tasks():\n"
    "    names, kinds, futures = find_kinds()\n"
    "    tasks = {id(task): task for task in all_tasks(names, kinds)}\n"
    "    records, waiting, known_frames, loops = {}, {}, {}, {}\n"
    "    for key, task in tasks.items():\n"
    "        waiter = peek(task, '_fut_waiter')\n"
    "        record = records[key] = Record(task, waiter, known_frames)\n"
    "        loop = peek(task, '_loop')\n"
    "        if id(loop) not in loops:\n"
    "            loops[id(loop)] = describe_loop(loop)\n"
    "        record.loop = loops[id(loop)]\n"
    "        if waiter is not None:\n"
    "            waiting[id(waiter)] = (*waiting.get(id(waiter), ()), key)\n"
    "    for key, task in tasks.items():\n"
    "        found = find_awaiters(task, tasks, waiting, names, futures)\n"
    "        awaiters = sorted((records[one] for one in found), key=by_order)\n"
    "        records[key].awaiters = tuple(awaiters)\n"
    "    return records.values()\n"
    "\n"
    /* As a task is below who awaits it, a greenlet of gevent's is below who spawned
     * it. It has a name of its own where it was given one. One that runs has no frame;
     * what runs it is seen in its thread. */
    "class Green(Record):\n"
    "    noun = 'greenlets'\n"
    "    __slots__ = ()\n"
    "    def __init__(self, greenlet, top):\n"
    "        run = peek(greenlet, '_run')\n"
    "        self.frames = tuple(place(frame) for frame in outwards(top)[::-1])\n"
    "        self.call(printable(peek(greenlet, 'name') or\n"
    "                            f'{type(greenlet).__name__} at {id(greenlet):#x}'))\n"
    "        name = first(first(run, ('__func__',)) or run, ('__qualname__',))\n"
    "        inner = self.frames[0][2] if self.frames else '?'\n"
    "        self.coroutine = printable(name or inner)\n"
    "        self.state = 'waiting' if self.frames else 'running or not begun'\n"
    "        self.waits_for, self.is_being_cancelled = None, False\n"
    "        self.awaiters = self.children = self.shown = ()\n"
    "\n"
    "def outwards(frame):\n"
    "    frames = []\n"
    "    while frame is not None:\n"
    "        frames.append(frame)\n"
    "        frame = frame.f_back\n"
    "    return frames\n"
    "\n"
    /* Those that live, with their innermost frame, None: that run, and their parent,
     * None: it is the first of its thread. That such a one runs is nothing to tell. */
    "def all_greenlets():\n"
    "    module = sys.modules.get('greenlet')\n"
    "    kind = vars(module).get('greenlet') if is_a(module, types.ModuleType) else "
    "None\n"
    "    if type(kind) is type:\n"
    "        dead, top, parent = (vars(kind)[name] for name in ('dead', 'gr_frame', "
    "'parent'))\n"
    "        for one in gc.get_objects():\n"
    "            if is_a(one, kind) and not dead.__get__(one):\n"
    "                found = top.__get__(one), parent.__get__(one)\n"
    "                if any(part is not None for part in found):\n"
    "                    yield one, *found\n"
    "\n"
    /* The first greenlet of a thread is above all others there; on the way is gevent's
     * hub, which knows the thread. */
    "def look_at_greenlets():\n"
    "    records, spawners, threads = {}, {}, {}\n"
    "    for one, top, parent in all_greenlets():\n"
    "        reference = peek(one, 'spawning_greenlet')\n"
    "        if type(reference) is weakref.ref:\n"
    "            spawners[id(one)] = id(reference())\n"
    "        record = records[id(one)] = Green(one, top)\n"
    "        hub = None\n"
    "        while parent is not None:\n"
    "            hub = parent if peek(parent, 'thread_ident') else hub\n"
    "            one, parent = parent, peek(parent, 'parent')\n"
    "        record.loop = id(one)\n"
    "        if hub is not None or id(one) not in threads:\n"
    "            ident = peek(hub, 'thread_ident')\n"
    "            kind = 'greenlet' if hub is None else printable(type(hub).__name__)\n"
    "            threads[id(one)] = id(one), kind, ident, name_thread(ident)\n"
    "    for key, record in records.items():\n"
    "        record.loop = threads[record.loop]\n"
    "        if spawners.get(key) in records:\n"
    "            record.awaiters = records[spawners[key]],\n"
    "    return records.values()\n"
    "\n"
    /* All of them, which know those that they await or have spawned. */
    "def look():\n"
    "    records = sorted([*look_at_tasks(), *look_at_greenlets()], key=by_order)\n"
    "    known.clear()\n"
    "    for record in records:\n"
    "        for awaiter in record.awaiters:\n"
    "            awaiter.children = awaiter.children or []\n"
    "            awaiter.children.append(record)\n"
    "    return records\n"
    "\n"
    /* Puts each below the first that awaits it. Returns those at the top: what nobody
     * awaits, and one of each cycle. Also all, what is above first. */
    "def arrange(records):\n"
    "    tops, order, placed = [], [], set()\n"
    "    for record in [one for one in records if not one.awaiters] + records:\n"
    "        path = set()\n"
    "        while record not in placed and record.awaiters and record not in path:\n"
    "            path.add(record)\n"
    "            record = record.awaiters[0]\n"
    "        if record in placed:\n"
    "            continue\n"
    "        tops.append(record)\n"
    "        placed.add(record)\n"
    "        ahead = [record]\n"
    "        while ahead:\n"
    "            above = ahead.pop()\n"
    "            order.append(above)\n"
    "            if above.children:\n"
    "                above.shown = [one for one in above.children if one not in placed]\n"
    "            placed.update(above.shown)\n"
    "            ahead.extend(above.shown)\n"
    "    return tops, order\n"
    "\n"
    "def name_some(records):\n"
    "    names = [record.name for record in records]\n"
    "    more = len(names) - MAX_NAMES\n"
    "    return ', '.join(names[:MAX_NAMES]) + (f' and {more} more' if more > 0 else "
    "'')\n"
    "\n"
    /* What its line says behind its name, also of the tasks that await it but the one
     * above it. */
    "def describe(record, above):\n"
    "    words = f'{record.coroutine}, {record.state}'\n"
    "    if record.waits_for is not None:\n"
    "        words += f' for {record.waits_for}'\n"
    "    others = [one for one in record.awaiters if one is not above]\n"
    "    if record.is_being_cancelled:\n"
    "        words += ', being cancelled'\n"
    "    if others and above is None:\n"
    "        words += f', in a cycle: awaited by {name_some(others)}'\n"
    "    elif others:\n"
    "        words += f', awaited by {name_some(others)}, too'\n"
    "    return words\n"
    "\n"
    /* Gives equal ones the same number: with the same frames, and equal ones below
     * them. */
    "def number(order, tops):\n"
    "    above = {below: record for record in order for below in record.shown}\n"
    "    numbers = {}\n"
    "    for record in reversed(order):\n"
    "        below = tuple(sorted(one.number for one in record.shown))\n"
    "        record.words = describe(record, above.get(record))\n"
    "        key = record.words, record.frames, below\n"
    "        record.number = numbers.setdefault(key, len(numbers))\n"
    "\n"
    "def group(records):\n"
    "    groups = {}\n"
    "    for record in records:\n"
    "        groups.setdefault(record.number, []).append(record)\n"
    "    return list(groups.values())\n"
    "\n"
    /* The lines of a tree, where equal ones beside each other are one. */
    "def tree(tops):\n"
    "    ahead = [(0, same) for same in reversed(group(tops))]\n"
    "    while ahead:\n"
    "        depth, same = ahead.pop()\n"
    "        margin = '    ' * min(depth, MAX_DEPTH)\n"
    "        if depth == 0:\n"
    "            yield ''\n"
    "        if len(same) == 1:\n"
    "            yield f'{margin}{same[0].name}: {same[0].words}'\n"
    "        else:\n"
    "            yield (f'{margin}{len(same)} {same[0].noun}: {same[0].words}: '\n"
    "                   f'{name_some(same)}')\n"
    "        for file, line, function in same[0].frames:\n"
    "            yield (f'{margin}File: \"{printable(file)}\", line {line}, '\n"
    "                   f'in {printable(function)}')\n"
    "        below = [one for record in same for one in record.shown]\n"
    "        ahead.extend((depth + 1, same) for same in reversed(group(below)))\n"
    "\n"
    "def title(loop, count, noun):\n"
    "    _, kind, ident, name = loop\n"
    "    thread = f' in ThreadID={ident}' if ident else ', thread not known'\n"
    "    thread += f' ({name})' if name else ''\n"
    "    return (f'######### ProcessID={process_id()}, {kind}{thread}, '\n"
    "            f'{noun}: {count} #########')\n"
    "\n"
    "def dump():\n"
    "    records = look()\n"
    "    tops, order = arrange(records)\n"
    "    number(order, tops)\n"
    "    loops, lines = {}, []\n"
    "    for record in order:\n"
    "        loops.setdefault(record.loop, []).append(record)\n"
    "    for loop, members in loops.items():\n"
    "        lines += ['', title(loop, len(members), members[0].noun)]\n"
    "        lines += tree([record for record in tops if record.loop == loop])\n"
    "    for record in records:\n"
    "        record.awaiters = record.children = record.shown = None # they refer to "
    "each other\n"
    "    return '\\n'.join([*(lines or ['', 'No task of asyncio, no greenlet.']), '#' * "
    "45, '', '', ''])\n"
    "\n"
    "def value(thing):\n"
    "    return 'null' if thing is None else quote(thing)\n"
    "\n"
    /* Those of one kind, with what each kind has for itself. */
    "def list_records(records, special):\n"
    "    numbers = {record: number for number, record in enumerate(records, 1)}\n"
    "    for record in records:\n"
    "        _, loop, ident, thread = record.loop\n"
    "        frames = ','.join(f'\\n{{\"file\": {quote(file)}, \"line\": {line}, '\n"
    "                          f'\"function\": {quote(function)}}}'\n"
    "                          for file, line, function in record.frames)\n"
    "        above = [str(numbers[awaiter]) for awaiter in record.awaiters]\n"
    "        yield (f'\\n{{\"id\": {numbers[record]}, \"name\": {quote(record.name)}, '\n"
    "               f'\"state\": \"{record.state}\", {special(record, above)}, '\n"
    "               f'\"loop\": {quote(loop)}, \"thread_id\": {ident or \"null\"}, '\n"
    "               f'\"thread\": {value(thread)}, \"frames\": [{frames}]}}')\n"
    "\n"
    "def task_members(record, above):\n"
    "    return (f'\"coroutine\": {quote(record.coroutine)}, '\n"
    "            f'\"waits_for\": {value(record.waits_for)}, '\n"
    "            f'\"being_cancelled\": {str(record.is_being_cancelled).lower()}, '\n"
    "            f'\"awaited_by\": [{\", \".join(above)}]')\n"
    "\n"
    "def greenlet_members(record, above):\n"
    "    return (f'\"run\": {quote(record.coroutine)}, '\n"
    "            f'\"spawned_by\": {above[0] if above else \"null\"}')\n"
    "\n"
    "def document():\n"
    "    records = look()\n"
    "    tasks = [record for record in records if type(record) is Record]\n"
    "    greenlets = [record for record in records if type(record) is Green]\n"
    "    tasks = ','.join(list_records(tasks, task_members))\n"
    "    greenlets = ','.join(list_records(greenlets, greenlet_members))\n"
    "    for record in records:\n"
    "        record.awaiters = record.children = None\n"
    "    return (f'{{\"pid\": {process_id()}, \"python\": "
    "{quote(sys.version.split()[0])}, '\n"
    "            f'\"tasks\": [{tasks}], \"greenlets\": [{greenlets}]}}\\n')\n";

/* quote(str): as JSON has it. */
ATTACHED static PyObject *
tasks_quote(PyObject *module, PyObject *str)
{
    OWNED PyObject *utf8 = PyUnicode_AsEncodedString(str, "utf-8", "backslashreplace");
    struct text quoted = {0}; /* owned */
    PyObject *result = NULL;  /* new, handed to the caller */
    (void)module;

    if (utf8 == NULL) {
        return NULL;
    }
    append_json_string(
        &quoted, (struct slice){PyBytes_AS_STRING(utf8), (size_t)PyBytes_GET_SIZE(utf8)});
    result = quoted.failed
                 ? PyErr_NoMemory()
                 : PyUnicode_FromStringAndSize(quoted.bytes, (Py_ssize_t)quoted.length);
    free_text(&quoted);
    return result;
}

static PyMethodDef tasks_functions[] = {
    {"quote", tasks_quote, METH_O, NULL},
    {NULL, NULL, 0, NULL},
};

static const struct part tasks_part = {
    .name = "tasks",
    .program = tasks_program,
    .functions = tasks_functions,
};

/* Returns a new str, or NULL with an exception. */
ATTACHED static PyObject *
look_at_tasks(const char *function)
{
    if (!HAS_GIL) {
        PyErr_SetString(PyExc_NotImplementedError,
                        "tasks cannot be read in a Python without the GIL");
        return NULL;
    }
    return call_part(manhole.module, &tasks_part, function, NULL, NULL);
}

/* The tree of all tasks, for people. */
ATTACHED static PyObject *
make_tasks_dump(void)
{
    return look_at_tasks("dump");
}

/* All tasks and greenlets one by one, as JSON: {"pid", "python", "tasks": [{"id", "name", "state",
 * "coroutine", "waits_for", "being_cancelled", "awaited_by": [id], "loop", "thread_id", "thread",
 * "frames": [{"file", "line", "function"}]}], "greenlets": [the same, with "run" and "spawned_by"
 * in place of the second line]}. */
ATTACHED static PyObject *
make_tasks_json(void)
{
    return look_at_tasks("document");
}

#endif /* MANHOLE_STACKS_TASKS_C */
