/* Tasks: what each task of asyncio or trio, and each greenlet, waits for, down to the last frame.
 * Runs on:  any thread, ATTACHED.
 * Touches:  nothing. Reads asyncio, trio and greenlet where the application has imported them.
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
 * trio tells who waits: a task is in a nursery of another one. A greenlet is simpler, it has a
 * stack of frames: gr_frame. gevent knows who has spawned one, which makes the tree. Nobody keeps a
 * list of either, so the garbage collector is asked (find_objects).
 *
 * Beside the stacks of threads there is a summary, by where they wait; in JSON all of them. Who
 * asks for stacks wants them at once, so it has its limit in time and in lines (summary), and the
 * dump at the head of a console, which takes the GIL once, goes without it.
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
#include "../base/library.c"
#include "../base/log.c"
#include "model.c"
#include "look.c"
#include "json.c"

/* What the summary may take of a client's time. */
#define SUMMARY_S 0.2

static const char tasks_program[] =
    "for name in 'functools gc itertools os sys time types weakref'.split():\n"
    "    globals()[name] = standard(name)\n"
    "MAX_FRAMES, MAX_NAMES, MAX_DEPTH, MAX_PLACES = 200, 5, 20, 20\n"
    "FRAMES = 'cr_frame', 'gi_frame', 'ag_frame'\n"
    "WAITS = 'cr_await', 'gi_yieldfrom', 'ag_await'\n"
    "STEPS = {types.CoroutineType: ('cr_frame', 'cr_await'),\n"
    "         types.GeneratorType: ('gi_frame', 'gi_yieldfrom'),\n"
    "         types.AsyncGeneratorType: ('ag_frame', 'ag_await')}\n"
    "WRAPPERS = ('coroutine_wrapper', 'async_generator_asend', "
    "'async_generator_athrow',\n"
    "            'anext_awaitable')\n"
    "DESCRIPTORS = types.GetSetDescriptorType, types.MemberDescriptorType\n"
    "STORED = (*DESCRIPTORS, types.MethodDescriptorType, str)\n"
    "LIBRARY = '/lib/python3', '/site-packages/', '/dist-packages/', '<frozen ', "
    "'<manhole>'\n"
    "CANCELS = 'cancelling', '_num_cancels_requested', '_must_cancel'\n"
    /* How an attribute of a type is got, and frames that many tasks have. Emptied when a look is
     * over, not to keep the types. */
    "known = {}\n"
    "\n"
    "def is_a(thing, kinds):\n"
    "    return issubclass(type(thing), kinds)\n"
    "\n"
    "def get_nothing(thing):\n"
    "    return None\n"
    "\n"
    /* An attribute as it is stored, or what a method in C returns: no code of the application's
     * runs. */
    "def find_getter(kind, name):\n"
    "    found = [vars(base)[name] for base in kind.__mro__ if name in vars(base)]\n"
    "    found = next((one for one in found if type(one) in STORED), None)\n"
    "    if type(found) in DESCRIPTORS:\n"
    "        return found.__get__\n"
    "    if type(found) is types.MethodDescriptorType:\n"
    "        return found\n"
    "    names = get_nothing if name == '__dict__' else find_getter(kind, '__dict__')\n"
    "    if names is get_nothing and found is None:\n"
    "        return get_nothing\n"
    "    return lambda thing: (names(thing) or {}).get(name, found)\n"
    "\n"
    "def peek(thing, name):\n"
    "    kind = type(thing)\n"
    "    try:\n"
    "        get = known[kind, name]\n"
    "    except KeyError:\n"
    "        get = known[kind, name] = find_getter(kind, name)\n"
    "    try:\n"
    "        return get(thing)\n"
    "    except AttributeError:\n"
    /* of __slots__, and not set */
    "        return None\n"
    "\n"
    "def first(thing, names):\n"
    "    for name in names:\n"
    "        value = peek(thing, name)\n"
    "        if value is not None:\n"
    "            return value\n"
    "\n"
    "def printable(text):\n"
    "    text = str.__str__(text) if is_a(text, str) else '?'\n"
    "    return text if text.isprintable() else ascii(text)\n"
    "\n"
    /* What stands behind anext(), asend() and the __await__() of a coroutine, none of which
     * tells. */
    "def unwrap(thing):\n"
    "    while type(thing).__name__ in WRAPPERS:\n"
    "        inner = gc.get_referents(thing)\n"
    "        thing = next((one for one in inner if type(one).__name__ in WRAPPERS or\n"
    "                      first(one, FRAMES) is not None), None)\n"
    "    return thing\n"
    "\n"
    /* The frame that a coroutine is in, and what it waits for there. Most end at a type that has
     * neither. */
    "def look_into(thing):\n"
    "    kind = type(thing)\n"
    "    names = STEPS.get(kind)\n"
    "    if names is not None:\n"
    "        return getattr(thing, names[0]), getattr(thing, names[1])\n"
    "    if kind not in known:\n"
    "        known[kind] = any(find_getter(kind, name) is not get_nothing for name in "
    "FRAMES)\n"
    "    return (first(thing, FRAMES), first(thing, WAITS)) if known[kind] else (None, "
    "None)\n"
    "\n"
    /* The frames that a coroutine is suspended in, outermost first. */
    "def await_chain(coroutine):\n"
    "    frames, thing = [], unwrap(coroutine)\n"
    "    while len(frames) < MAX_FRAMES:\n"
    "        frame, thing = look_into(thing)\n"
    "        if frame is None:\n"
    "            break\n"
    "        frames.append(frame)\n"
    "        thing = unwrap(thing)\n"
    "    return frames\n"
    "\n"
    /* (file, line, function) */
    "def place(frame):\n"
    "    code = frame.f_code\n"
    "    return code.co_filename, frame.f_lineno or 0, code.co_name\n"
    "\n"
    "def places(frames):\n"
    "    found = tuple([place(frame) for frame in frames])\n"
    "    return known.setdefault(found, found)\n"
    "\n"
    /* A class of a module, in a tuple; an empty one where the application has not imported that. */
    "def find_class(module, name):\n"
    "    module = sys.modules.get(module)\n"
    "    found = vars(module).get(name) if is_a(module, types.ModuleType) else None\n"
    "    return (found,) if is_a(found, type) else ()\n"
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
    /* CPython 3.14 keeps no set of them, but a list in C for each thread: there the garbage
     * collector is asked. The copies are made in one step each: other threads go on. */
    "def all_tasks(names, kinds):\n"
    "    if sys.version_info >= (3, 14):\n"
    "        found = find_objects(kinds)\n"
    "    else:\n"
    "        sets = [names.get(name) for name in ('_all_tasks', '_scheduled_tasks')]\n"
    "        found = [ref() for weak in sets if weak is not None for ref in "
    "weak.data.copy()]\n"
    "        found += names.get('_eager_tasks', set()).copy()\n"
    "    for task in found:\n"
    "        if is_a(task, kinds) and peek(task, '_state') == 'PENDING':\n"
    "            yield task\n"
    "\n"
    "def is_own(call, names):\n"
    "    return type(call) is types.FunctionType and call.__globals__ is names\n"
    "\n"
    /* The futures that go on when this one is done: gather()'s, shield()'s, wait()'s,
     * wait_for()'s; and the task of a TaskGroup. Of functions asyncio's own alone are looked
     * into. */
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
    /* A loop, its type, and the thread that runs it with its name, where the loop tells. */
    "def describe_loop(loop):\n"
    "    ident = peek(loop, '_thread_id')\n"
    "    return id(loop), printable(type(loop).__name__), ident, name_thread(ident)\n"
    "\n"
    /* What is to be told of a task or greenlet. Refers to nothing of the application's, not to
     * keep it. Records are light, for others wait while the last of many goes. */
    "class Record:\n"
    "    __slots__ = ('noun', 'name', 'order', 'coroutine', 'frames', 'state', "
    "'waits_for',\n"
    "                 'is_being_cancelled', 'loop', 'awaiters', 'children', 'shown', "
    "'words',\n"
    "                 'number')\n"
    "    def __init__(self, noun, name, coroutine, frames, state, waits_for=None,\n"
    "                 is_being_cancelled=False):\n"
    "        self.noun, self.state, self.frames = noun, state, places(frames)\n"
    "        self.name, self.coroutine = printable(name), printable(coroutine)\n"
    "        self.order = f'{len(self.name):9}{self.name}'\n"
    "        self.waits_for, self.is_being_cancelled = waits_for, is_being_cancelled\n"
    "        self.awaiters = self.children = self.shown = ()\n"
    "\n"
    "def describe_task(task, waiter):\n"
    "    coroutine = peek(task, '_coro')\n"
    "    is_waiting = waiter is not None and peek(waiter, '_state') == 'PENDING'\n"
    "    is_running = first(coroutine, ('cr_running', 'gi_running'))\n"
    "    state = 'running' if is_running else 'waiting' if is_waiting else 'ready'\n"
    "    return Record('tasks', first(task, ('get_name', '_name')),\n"
    "                  peek(coroutine, '__qualname__'), await_chain(coroutine), state,\n"
    "                  printable(type(waiter).__name__) if is_waiting else None,\n"
    "                  bool(first(task, CANCELS)))\n"
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
    "    records, waiting, loops = {}, {}, {}\n"
    "    for key, task in tasks.items():\n"
    "        waiter = peek(task, '_fut_waiter')\n"
    "        record = records[key] = describe_task(task, waiter)\n"
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
    /* trio's tasks are coroutines as well, each below the one whose nursery it is in. One that
     * is over has no frame. */
    "def all_trio_tasks():\n"
    "    for task in find_objects(find_class('trio._core._run', 'Task')):\n"
    "        if look_into(peek(task, 'coro'))[0] is not None:\n"
    "            yield task\n"
    "\n"
    "def describe_trio_task(task):\n"
    "    coroutine = peek(task, 'coro')\n"
    "    is_ready = peek(task, '_next_send_fn') is not None\n"
    "    state = 'running' if coroutine.cr_running else 'ready' if is_ready else "
    "'waiting'\n"
    "    cancelled = peek(peek(task, '_cancel_status'), 'effectively_cancelled')\n"
    "    return Record('tasks', peek(task, 'name'), peek(coroutine, '__qualname__'),\n"
    "                  await_chain(coroutine), state, None, cancelled is True)\n"
    "\n"
    "def look_at_trio():\n"
    "    tasks = {id(task): task for task in all_trio_tasks()}\n"
    "    records = {key: describe_trio_task(task) for key, task in tasks.items()}\n"
    "    for key, task in tasks.items():\n"
    "        above = id(peek(peek(task, '_parent_nursery'), '_parent_task'))\n"
    "        records[key].loop = id(peek(task, '_runner')), 'trio', None, None\n"
    "        records[key].awaiters = (records[above],) if above in records else ()\n"
    "    return records.values()\n"
    "\n"
    /* A greenlet of gevent has a name of its own where it was given one. One that runs has no
     * frame; what runs it is seen in its thread. */
    "def describe_greenlet(greenlet, top):\n"
    "    run = peek(greenlet, '_run')\n"
    "    frames = outwards(top)[::-1]\n"
    "    called = peek(peek(run, '__func__') or run, '__qualname__')\n"
    "    return Record('greenlets',\n"
    "                  peek(greenlet, 'name') or\n"
    "                  f'{type(greenlet).__name__} at {id(greenlet):#x}',\n"
    "                  called or (frames[0].f_code.co_name if frames else '?'),\n"
    "                  frames, 'waiting' if frames else 'running or not begun')\n"
    "\n"
    "def outwards(frame):\n"
    "    frames = []\n"
    "    while frame is not None:\n"
    "        frames.append(frame)\n"
    "        frame = frame.f_back\n"
    "    return frames\n"
    "\n"
    /* Those that live, with their innermost frame, None: that run, and their parent, None: it is
     * the first of its thread. That such a one runs is nothing to tell. */
    "def all_greenlets():\n"
    "    for kind in find_class('greenlet', 'greenlet'):\n"
    "        dead, top, parent = (vars(kind)[name] for name in ('dead', 'gr_frame', "
    "'parent'))\n"
    "        for one in find_objects((kind,)):\n"
    "            if not dead.__get__(one):\n"
    "                found = top.__get__(one), parent.__get__(one)\n"
    "                if any(part is not None for part in found):\n"
    "                    yield one, *found\n"
    "\n"
    /* As a task is below who awaits it, a greenlet of gevent's is below who spawned it. The
     * first greenlet of a thread is above all others there; on the way is gevent's hub, which
     * knows the thread. */
    "def look_at_greenlets():\n"
    "    records, spawners, threads = {}, {}, {}\n"
    "    for one, top, parent in all_greenlets():\n"
    "        reference = peek(one, 'spawning_greenlet')\n"
    "        if type(reference) is weakref.ref:\n"
    "            spawners[id(one)] = id(reference())\n"
    "        record = records[id(one)] = describe_greenlet(one, top)\n"
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
    "ALL = look_at_tasks, look_at_trio, look_at_greenlets\n"
    "\n"
    /* All of them, which know those that they await or have spawned. */
    "def look(looks=ALL):\n"
    "    records = sorted([one for look in looks for one in look()], key=by_order)\n"
    "    known.clear()\n"
    "    for record in records:\n"
    "        for awaiter in record.awaiters:\n"
    "            awaiter.children = awaiter.children or []\n"
    "            awaiter.children.append(record)\n"
    "    return records\n"
    "\n"
    /* Puts each below the first that awaits it. Returns those at the top: what nobody awaits,
     * and one of each cycle. Also all, what is above first. */
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
    "def name_some(names):\n"
    "    more = len(names) - MAX_NAMES\n"
    "    return ', '.join(names[:MAX_NAMES]) + (f' and {more} more' if more > 0 else "
    "'')\n"
    "\n"
    /* What its line says behind its name, also of the tasks that await it but the one above it. */
    "def describe(record, above):\n"
    "    words = f'{record.coroutine}, {record.state}'\n"
    "    if record.waits_for is not None:\n"
    "        words += f' for {record.waits_for}'\n"
    "    others = [one.name for one in record.awaiters if one is not above]\n"
    "    names = name_some(others)\n"
    "    if record.is_being_cancelled:\n"
    "        words += ', being cancelled'\n"
    "    if others and above is None:\n"
    "        words += f', in a cycle: awaited by {names}'\n"
    "    elif others:\n"
    "        words += f', awaited by {names}, too'\n"
    "    return words\n"
    "\n"
    /* Gives equal ones the same number: with the same frames, and equal ones below them. */
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
    "                   f'{name_some([record.name for record in same])}')\n"
    "        for file, line, function in same[0].frames:\n"
    "            yield (f'{margin}File: \"{printable(file)}\", line {line}, '\n"
    "                   f'in {printable(function)}')\n"
    "        below = [one for record in same for one in record.shown]\n"
    "        ahead.extend((depth + 1, same) for same in reversed(group(below)))\n"
    "\n"
    "NONE = 'No greenlet.', 'No task of asyncio or trio, no greenlet.'\n"
    "\n"
    "def title(loop, count, noun):\n"
    "    _, kind, ident, name = loop\n"
    "    thread = f' in ThreadID={ident}' if ident else ', thread not known'\n"
    "    thread += f' ({name})' if name else ''\n"
    "    return (f'######### ProcessID={process_id()}, {kind}{thread}, '\n"
    "            f'{noun}: {count} #########')\n"
    "\n"
    "def dump(looks=ALL):\n"
    "    records = look(looks)\n"
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
    "    return '\\n'.join([*(lines or ['', NONE[looks is ALL]]), '#' * 45, '', '', "
    "''])\n"
    "\n"
    "def value(thing):\n"
    "    return 'null' if thing is None else quote(thing)\n"
    "\n"
    "def list_frames(frames):\n"
    "    return ','.join(f'\\n{{\"file\": {quote(file)}, \"line\": {line}, '\n"
    "                    f'\"function\": {quote(function)}}}' for file, line, function "
    "in frames)\n"
    "\n"
    /* Those of one kind, in pieces, with what each kind has for itself. */
    "def list_records(records, special):\n"
    "    numbers = {record: number for number, record in enumerate(records, 1)}\n"
    "    listed = {}\n"
    "    yield '['\n"
    "    for number, record in enumerate(records, 1):\n"
    "        _, loop, ident, thread = record.loop\n"
    "        above = [str(numbers[awaiter]) for awaiter in record.awaiters]\n"
    "        if record.frames not in listed:\n"
    "            listed[record.frames] = list_frames(record.frames)\n"
    "        yield (f'{\",\" if number > 1 else \"\"}\\n{{\"id\": {number}, '\n"
    "               f'\"name\": {quote(record.name)}, '\n"
    "               f'\"state\": \"{record.state}\", {special(record, above)}, '\n"
    "               f'\"loop\": {quote(loop)}, \"thread_id\": {ident or \"null\"}, '\n"
    "               f'\"thread\": {value(thread)}, \"frames\": "
    "[{listed[record.frames]}]}}')\n"
    "    yield ']'\n"
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
    /* All of them one by one. */
    "def list_all(looks=ALL):\n"
    "    records = look(looks)\n"
    "    tasks = [record for record in records if record.noun == 'tasks']\n"
    "    greenlets = [record for record in records if record.noun == 'greenlets']\n"
    "    tasks = list_records(tasks, task_members) if looks is ALL else ['null']\n"
    "    text = ''.join(['\"tasks\": ', *tasks,\n"
    "                    ', \"greenlets\": ', *list_records(greenlets, "
    "greenlet_members)])\n"
    "    for record in records:\n"
    "        record.awaiters = record.children = None\n"
    "    return text\n"
    "\n"
    "def document(looks=ALL):\n"
    "    return (f'{{\"pid\": {process_id()}, \"python\": "
    "{quote(sys.version.split()[0])}, '\n"
    "            f'{list_all(looks)}}}\\n')\n"
    "\n"
    "def dump_greenlets():\n"
    "    return dump((look_at_greenlets,))\n"
    "\n"
    "def document_greenlets():\n"
    "    return document((look_at_greenlets,))\n"
    "\n"
    /* Where a stack is: its innermost frame, and its innermost one of the application's own. */
    "def tell_place(frames):\n"
    "    own = [frame for frame in frames if not any(part in frame[0] for part in "
    "LIBRARY)]\n"
    "    if not frames:\n"
    "        return ''\n"
    "    inner, shown = frames[-1], (own or frames)[-1]\n"
    "    by = '' if shown is inner else f', by {printable(shown[2])}'\n"
    "    return f' in {printable(inner[2])}{by} at {printable(shown[0])}:{shown[1]}'\n"
    "\n"
    /* The lines of the summary: equal ones in one, most first. */
    "def summarize(noun, records, until):\n"
    "    groups, lines, count, more = {}, {}, 0, ''\n"
    "    for record in records:\n"
    "        if time.monotonic() > until:\n"
    "            more = ' and more'\n"
    "            break\n"
    "        count += 1\n"
    "        groups.setdefault((record.state, record.frames), []).append(record)\n"
    "    for (state, frames), same in groups.items():\n"
    "        lines.setdefault(state + tell_place(frames), []).extend(same)\n"
    "    if count:\n"
    "        yield f'\\n######### ProcessID={process_id()}, {noun}: {count}{more} "
    "#########'\n"
    "    rows = sorted(lines.items(), key=lambda row: -len(row[1]))\n"
    "    for words, same in rows[:MAX_PLACES]:\n"
    "        names = [record.name for record in sorted(same, key=by_order)]\n"
    "        yield f'{len(same)} x {words}: {name_some(names)}'\n"
    "    if len(rows) > MAX_PLACES:\n"
    "        rest = sum(len(same) for words, same in rows[MAX_PLACES:])\n"
    "        yield f'{rest} more at {len(rows) - MAX_PLACES} other places'\n"
    "\n"
    /* How many there are, as a member of a document. */
    "def count():\n"
    "    names, kinds, _ = find_kinds()\n"
    "    found = itertools.chain(all_tasks(names, kinds), all_trio_tasks(), "
    "all_greenlets())\n"
    "    text = f'\"task_count\": {sum(1 for one in found)}'\n"
    "    known.clear()\n"
    "    return text\n"
    "\n"
    /* Of all that there is: where it waits. Of as many as can be read in time. */
    "def summary(seconds):\n"
    "    until = time.monotonic() + seconds\n"
    "    names, kinds, _ = find_kinds()\n"
    "    tasks = itertools.chain(\n"
    "        (describe_task(task, peek(task, '_fut_waiter')) for task in "
    "all_tasks(names, kinds)),\n"
    "        (describe_trio_task(task) for task in all_trio_tasks()))\n"
    "    greenlets = (describe_greenlet(one, top) for one, top, _ in all_greenlets())\n"
    "    lines = [*summarize('tasks', tasks, until), *summarize('greenlets', greenlets, "
    "until)]\n"
    "    known.clear()\n"
    "    return '\\n'.join([*lines, '']) if lines else ''\n";

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

struct finding {
    PyObject *kinds; /* borrowed: a tuple of types */
    PyObject *found; /* borrowed: a list of their objects */
    bool failed;     /* with an exception */
};

ATTACHED static int
note_object(PyObject *object, void *argument)
{
    struct finding *finding = argument;
    for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(finding->kinds); i++) {
        PyObject *kind = PyTuple_GET_ITEM(finding->kinds, i); /* borrowed */
        if (PyType_IsSubtype(Py_TYPE(object), (PyTypeObject *)kind)) {
            finding->failed = PyList_Append(finding->found, object) < 0;
            break;
        }
    }
    return !finding->failed;
}

/* find_objects(types): a list of all that the garbage collector knows of, in one step. */
ATTACHED static PyObject *
tasks_find_objects(PyObject *module, PyObject *kinds)
{
    OWNED PyObject *found = PyList_New(0);
    OWNED PyObject *gc = import_standard("gc");
    struct finding finding = {.kinds = kinds, .found = found};
    (void)module;

    if (found == NULL || gc == NULL ||
        (PyTuple_GET_SIZE(kinds) > 0 && visit_objects(gc, note_object, &finding) < 0)) {
        return NULL;
    }
    return finding.failed ? NULL : steal_reference(&found);
}

static PyMethodDef tasks_functions[] = {
    {"find_objects", tasks_find_objects, METH_O, NULL},
    {"quote", tasks_quote, METH_O, NULL},
    {NULL, NULL, 0, NULL},
};

static const struct part tasks_part = {
    .name = "tasks",
    .program = tasks_program,
    .functions = tasks_functions,
};

/* Whether the application has imported what has tasks or greenlets. Never raises. */
ATTACHED static bool
may_have_tasks(void)
{
    static const char *const modules[] = {"asyncio.tasks", "greenlet", "trio._core._run"};
    PyObject *imported = PyImport_GetModuleDict(); /* borrowed */
    bool found = false;
    for (size_t i = 0; i < Py_ARRAY_LENGTH(modules); i++) {
        found = found || PyDict_GetItemString(imported, modules[i]) != NULL;
    }
    return found;
}

/* Calls a function of the part. Returns a new str, or NULL with an exception. */
ATTACHED static PyObject *
look_at_tasks(const char *function, PyObject *argument /* or NULL */)
{
    if (!HAS_GIL) {
        PyErr_SetString(PyExc_NotImplementedError,
                        "tasks cannot be read in a Python without the GIL");
        return NULL;
    }
    return call_part(manhole.module, &tasks_part, function, argument, NULL);
}

/* ---- Alone ------------------------------------------------------------------------------- */

/* The tree of all tasks and greenlets, for people. */
ATTACHED static PyObject *
make_tasks_dump(void)
{
    return look_at_tasks("dump", NULL);
}

/* Of the greenlets alone. */
ATTACHED static PyObject *
make_greenlets_dump(void)
{
    return look_at_tasks("dump_greenlets", NULL);
}

/* All tasks and greenlets one by one, as JSON: {"pid", "python", "tasks": [{"id", "name", "state",
 * "coroutine", "waits_for", "being_cancelled", "awaited_by": [id], "loop", "thread_id", "thread",
 * "frames": [{"file", "line", "function"}]}], "greenlets": [the same, with "run" and "spawned_by"
 * in place of the second line]}. */
ATTACHED static PyObject *
make_tasks_json(void)
{
    return look_at_tasks("document", NULL);
}

/* Of the greenlets alone; "tasks" is null. */
ATTACHED static PyObject *
make_greenlets_json(void)
{
    return look_at_tasks("document_greenlets", NULL);
}

/* ---- Beside the stacks of threads -------------------------------------------------------- */

/* Adds what is told of tasks to the stacks, or a note why there is nothing. Never raises. */
ATTACHED static void
add_to_stacks(struct stacks *stacks,
              PyObject *told /* new, taken over; NULL: an exception */)
{
    OWNED PyObject *text = told;
    if (text != NULL) {
        stacks->tasks = copy_str(text);
        return;
    }
    char why[200];
    OWNED PyObject *exception = take_exception();
    append_format(&stacks->note, "manhole: the tasks cannot be read: %s",
                  describe_exception(exception, why, sizeof(why)));
}

/* Adds where tasks and greenlets wait, grouped and counted. It is for a client that wants its
 * stacks at once, and may be told of a hang at hang_timeout: so it has a part of that, and tells of
 * as many as it has read by then. Never raises. */
ATTACHED static void
add_task_summary(struct stacks *stacks)
{
    if (may_have_tasks()) {
        double seconds = manhole.options.hang_timeout / 5;
        OWNED PyObject *limit =
            PyFloat_FromDouble(seconds < SUMMARY_S ? seconds : SUMMARY_S);
        add_to_stacks(stacks, limit == NULL ? NULL : look_at_tasks("summary", limit));
    }
}

/* Adds how many there are, as a member of the document. Never raises. */
ATTACHED static void
add_task_count(struct stacks *stacks)
{
    if (may_have_tasks()) {
        add_to_stacks(stacks, look_at_tasks("count", NULL));
    }
}

/* Adds all of them, as members of the document. Never raises. */
ATTACHED static void
add_all_tasks(struct stacks *stacks)
{
    if (may_have_tasks()) {
        add_to_stacks(stacks, look_at_tasks("list_all", NULL));
    }
    else {
        append_string(&stacks->tasks, "\"tasks\": [], \"greenlets\": []");
    }
}

#endif /* MANHOLE_STACKS_TASKS_C */
