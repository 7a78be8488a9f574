/* Awaited: await at the prompt, in a loop of asyncio's that the application runs.
 * Runs on:  the session's thread, ATTACHED; what is awaited, in the loop's.
 * Touches:  the loop, by call_soon_threadsafe().
 *
 * How it works. A statement with await in it is compiled to a coroutine, as the room shown allows
 * the compiler (PyCF_ALLOW_TOP_LEVEL_AWAIT). All of it runs in the loop, as a task: gather() and
 * the like look for the loop of the thread that they run in. So its print() is the application's,
 * which the client sees along; its value is shown by the session. Therefore it is compiled once
 * more, not as the prompt's statements are, which show values by themselves: as an expression, or
 * as statements that show nothing.
 *
 *   The loop is safe. What would end it, SystemExit and KeyboardInterrupt in a task, goes to the
 *   session. The session waits on a lock of its own: asyncio's and those of concurrent.futures
 *   could stay shut where Ctrl-C comes while it holds one. Ctrl-C cancels the task.
 *
 *   Which loop. That of run_forever() in a thread's stack, or, where that is in C, as uvloop's, the
 *   tasks' own. Of several the client is asked for one, which is then kept for its session.
 */
#ifndef MANHOLE_SESSION_AWAITED_C
#define MANHOLE_SESSION_AWAITED_C

#include "../base/compat.c"
#include "../base/state.c"
#include "../base/parts.c"
#include "../stacks/frames.c"

static const char awaited_program[] =
    "ast, sys, thread = standard('_ast'), standard('sys'), standard('_thread')\n"
    "monotonic = standard('time').monotonic\n"
    "ONLY_AST = 0x400\n"
    /* Seconds between two looks whether it is over or to be interrupted; and those after which the
     * client is told that the loop does nothing. */
    "PAUSE, PATIENCE = 0.05, 1\n"
    "BLOCKED = ('manhole: the loop does not answer: something keeps its thread; where() "
    "shows '\n"
    "           'it, Ctrl-C gives up')\n"
    "\n"
    /* What a console has compiled for the prompt, and found to await. */
    "def recompile(source, filename, symbol, flags):\n"
    "    body = compile(source, filename, symbol, flags | ONLY_AST, True).body\n"
    "    if len(body) == 1 and type(body[0]) is ast.Expr:\n"
    "        tree, mode = ast.Expression(body[0].value), 'eval'\n"
    "    else:\n"
    "        tree, mode = ast.Module(body, []), 'exec'\n"
    "    return compile(tree, filename, mode, flags, True)\n"
    "\n"
    "def running_loops():\n"
    "    asyncio = sys.modules.get('asyncio.base_events')\n"
    "    if asyncio is None:\n"
    "        return []\n"
    "    code, found = asyncio.BaseEventLoop.run_forever.__code__, []\n"
    "    try:\n"
    "        tops = current_frames().values()\n"
    "    except NotImplementedError:\n" /* without a GIL */
    "        tops = ()\n"
    "    for frame in tops:\n"
    "        while frame is not None:\n"
    "            if frame.f_code is code:\n"
    "                found.append(frame.f_locals['self'])\n"
    "            frame = frame.f_back\n"
    "    if not found:\n"
    "        peek = from_tasks('peek')\n"
    "        names, kinds, _ = from_tasks('find_kinds')()\n"
    "        found = [peek(task, '_loop') for task in from_tasks('all_tasks')(names, "
    "kinds)]\n"
    "        from_tasks('known').clear()\n"
    "    return [loop for loop in {id(loop): loop for loop in found}.values()\n"
    "            if loop.is_running()]\n"
    "\n"
    "def choose(names):\n"
    "    loops = running_loops()\n"
    "    kept = [loop for loop in loops if loop is getattr(names, 'loop', None)]\n"
    "    if not loops:\n"
    "        raise RuntimeError('no loop of asyncio runs in this process')\n"
    "    if len(loops) == 1 or kept:\n"
    "        return (kept or loops)[0]\n"
    "    for number, loop in enumerate(loops):\n"
    "        _, kind, _, name = from_tasks('describe_loop')(loop)\n"
    "        print(f'{number}: {kind} in thread {name or \"?\"}')\n"
    "    names.loop = loops[int(input('In which loop? '))]\n"
    "    return names.loop\n"
    "\n"
    "async def held(coroutine):\n"
    "    try:\n"
    "        return await coroutine, None\n"
    "    except (KeyboardInterrupt, SystemExit) as error:\n"
    "        return None, error\n"
    "\n"
    "class Errand:\n"
    "    def __init__(self, coroutine, loop):\n"
    "        self.coroutine, self.loop, self.task = coroutine, loop, None\n"
    "        self.is_given_up = False\n"
    "        self.done = thread.allocate_lock()\n"
    "        self.done.acquire()\n"
    /* Since when the loop has not answered; None: it has. */
    "        self.asked = monotonic()\n"
    /* These four in the loop. */
    "    def answer(self):\n"
    "        self.asked = None\n"
    "    def begin(self):\n"
    "        self.answer()\n"
    "        if not self.is_given_up:\n"
    "            self.task = self.loop.create_task(held(self.coroutine))\n"
    "            self.task.add_done_callback(self.end)\n"
    "    def end(self, task):\n"
    "        if self.is_given_up and not task.cancelled():\n"
    "            task.exception()\n" /* asyncio would log that nobody has asked for it */
    "        self.done.release()\n"
    "    def cancel(self):\n"
    "        if self.task is None:\n"
    "            self.coroutine.close()\n"
    "        else:\n"
    "            self.task.cancel()\n"
    "    def wait(self):\n"
    "        is_told = False\n"
    "        while not self.done.acquire(timeout=PAUSE):\n"
    "            asked = self.asked\n" /* which the loop may set at any time */
    "            if asked is None:\n"
    "                self.asked = monotonic()\n"
    "                self.loop.call_soon_threadsafe(self.answer)\n"
    "            elif monotonic() - asked > PATIENCE:\n"
    "                if not self.loop.is_running():\n"
    "                    raise RuntimeError('the loop has ended meanwhile')\n"
    "                if not is_told:\n"
    "                    print(BLOCKED)\n"
    "                is_told = True\n"
    "\n"
    /* Runs what was compiled so, and returns its value. */
    "def run(code, names):\n"
    "    loop = choose(names)\n"
    "    errand = Errand(eval(code, names), loop)\n"
    "    try:\n"
    "        loop.call_soon_threadsafe(errand.begin)\n"
    "        errand.wait()\n"
    "    except BaseException:\n"
    "        errand.is_given_up = True\n"
    "        if not loop.is_closed():\n"
    "            loop.call_soon_threadsafe(errand.cancel)\n"
    "        raise\n"
    "    value, error = errand.task.result()\n"
    "    if error is not None:\n"
    "        raise error\n"
    "    return value\n";

static PyMethodDef awaited_functions[] = {
    {"current_frames", frames_current, METH_NOARGS, NULL},
    {"from_tasks", frames_from_tasks, METH_O, NULL},
    {NULL, NULL, 0, NULL},
};

static const struct part awaited_part = {
    .name = "awaited",
    .program = awaited_program,
    .functions = awaited_functions,
};

#endif /* MANHOLE_SESSION_AWAITED_C */
