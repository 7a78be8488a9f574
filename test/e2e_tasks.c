/* e2e_tasks.c - manhole-cli --tasks and tasks(): what each task of asyncio waits for, and who
 * awaits it.
 */
#include "support.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define CLI(...) LIST(build_path("manhole-cli"), __VA_ARGS__)

/* main() calls it when all tasks are where they are to be seen; it does not return. */
#define PARK                                                                             \
  "async def park():\n"                                                                  \
  "    await asyncio.sleep(0.05)\n"                                                      \
  "    print('ready', flush=True)\n"                                                     \
  "    await asyncio.Event().wait()\n"
#define LOOP INSTALL("") "import asyncio, sys, threading, time\n" PARK
#define RUN "asyncio.run(main())\n"

static const char *
start_loop(const char *program)
{
    struct process *app = start_target(program);
    wait_until_ready(app);
    wait_until_asleep(app->pid);
    return format_text("%d", (int)app->pid);
}

static const char *
show_tasks(const char *pid)
{
    const char *out = NULL;
    require_gil();
    assert_int_equal(run_command(CLI(pid, "--tasks"), NULL, &out, NULL), 0);
    return out;
}

static void
require_python_from(int minor)
{
    if (!is_python_from(minor)) {
        skip_test("only from CPython 3.%d on", minor);
    }
}

/* Cython's and the like: a slot for what a coroutine has, with nothing in it. */
static void
awaitable_with_an_empty_slot_hides_nothing(void)
{
    const char *tasks = show_tasks(start_loop(
        LOOP "class Odd:\n"
             "    __slots__ = 'cr_frame', 'inner'\n"
             "    def __init__(self): self.inner = asyncio.Event().wait().__await__()\n"
             "    def __await__(self): return self\n"
             "    def __next__(self): return next(self.inner)\n"
             "    def __iter__(self): return self\n"
             "async def odd(): await Odd()\n"
             "async def main():\n"
             "    global task\n"
             "    task = asyncio.create_task(odd(), name='odd')\n"
             "    await park()\n" RUN));
    assert_matches(tasks, "^odd: odd, waiting for Future\nFile: .*, in odd$");
}

/* ---- The tree ---------------------------------------------------------------------- */

#define LEAF "async def leaf():\n    await asyncio.Event().wait()\n"

/* What a task awaits others with, and that these are below it. */
static void
assert_awaited(const char *body)
{
    const char *tasks = show_tasks(start_loop(
        format_text(LOOP LEAF "def new(name):\n"
                              "    return asyncio.create_task(leaf(), name=name)\n"
                              "async def parent():\n"
                              "    %s\n"
                              "async def main():\n"
                              "    global task\n"
                              "    task = asyncio.create_task(parent(), name='parent')\n"
                              "    await park()\n" RUN,
                    body)));
    assert_matches(tasks, "^parent: parent, waiting for .*\nFile: .*, in parent$");
    assert_matches(tasks, "^ +child: leaf, waiting for Future\n +File: .*, in leaf\n"
                          " +File: \".*locks.py\", line [0-9]+, in wait$");
}

static void
awaited_task_is_below_who_awaits_it(void)
{
    assert_awaited("await new('child')");
}

static void
gathered_task_is_below_its_gatherer(void)
{
    assert_awaited("await asyncio.gather(new('child'), asyncio.sleep(1000))");
}

static void
shielded_task_is_below_who_shields_it(void)
{
    assert_awaited("await asyncio.shield(new('child'))");
}

static void
waited_task_is_below_who_waits(void)
{
    assert_awaited("await asyncio.wait([new('child')])");
}

static void
task_with_a_timeout_is_below_who_waits(void)
{
    assert_awaited("await asyncio.wait_for(asyncio.shield(new('child')), 1000)");
}

static void
task_of_a_group_is_below_its_group(void)
{
    require_python_from(11);
    assert_awaited("async with asyncio.TaskGroup() as group: group.create_task(leaf(), "
                   "name='child')");
}

static void
tasks_that_await_each_other_are_a_cycle(void)
{
    const char *tasks =
        show_tasks(start_loop(LOOP "async def wait_for(other):\n"
                                   "    await asyncio.sleep(0)\n"
                                   "    await tasks[other]\n"
                                   "tasks = {}\n"
                                   "async def main():\n"
                                   "    for one, other in 'ab', 'bc', 'ca', 'da':\n"
                                   "        tasks[one] = asyncio.create_task(\n"
                                   "            wait_for(other), name=one)\n"
                                   "    await park()\n" RUN));
    assert_matches(tasks, "^d: wait_for, waiting for Task$");
    assert_matches(tasks, "^    a: wait_for, waiting for Task, awaited by c, too$");
    assert_matches(tasks, "^        b: wait_for, waiting for Task$");
    assert_matches(tasks, "^            c: wait_for, waiting for Task$");
}

static void
cycle_that_nobody_awaits_is_shown_above_what_it_awaits(void)
{
    const char *tasks = show_tasks(start_loop(
        LOOP LEAF
        "async def one():\n"
        "    await asyncio.sleep(0)\n"
        "    await asyncio.gather(tasks['child'], tasks['other'])\n"
        "async def other():\n"
        "    await asyncio.sleep(0)\n"
        "    await tasks['one']\n"
        "tasks = {}\n"
        "async def main():\n"
        "    for act, name in (leaf, 'child'), (one, 'one'), (other, 'other'):\n"
        "        tasks[name] = asyncio.create_task(act(), name=name)\n"
        "    await park()\n" RUN));
    assert_matches(tasks,
                   "^one: one, waiting for _GatheringFuture, in a cycle: awaited by "
                   "other\nFile: .*\n    child: leaf, waiting for Future$");
    assert_matches(tasks, "^    other: other, waiting for Task$");
}

/* It reads the memory of the process, which takes the right to trace it. A line of its tree is a
 * task, "(T) NAME", or a frame, "FUNCTION FILE:LINE", of the last task to the left of it. */
static void
awaiters_and_frames_are_those_that_cpython_s_own_tool_tells(void)
{
    const char *out = NULL;
    const char *tree = NULL;
    require_gil();
    require_python_from(14);
    const char *pid = start_loop(
        LOOP LEAF "async def parent():\n"
                  "    async with asyncio.TaskGroup() as group:\n"
                  "        group.create_task(leaf(), name='child')\n"
                  "        await asyncio.gather(leaf(), asyncio.create_task(leaf(), "
                  "name='other'))\n"
                  "async def main():\n"
                  "    global parking\n"
                  "    parking = asyncio.create_task(park(), name='parking')\n"
                  "    await asyncio.create_task(parent(), name='parent')\n" RUN);
    if (run_command(LIST(python(), "-m", "asyncio", "pstree", pid), NULL, &tree, NULL) !=
        0) {
        skip_test("CPython's own tool may not look at the process");
    }
    const char *theirs = write_file("tree", tree);
    assert_int_equal(run_command(CLI(pid, "--tasks", "--json"), NULL, &out, NULL), 0);
    const char *compare =
        "import json, re, sys\n"
        "tasks = {task['id']: task for task in json.load(sys.stdin)['tasks']}\n"
        "ours = {task['name']: ({tasks[above]['name'] for above in task['awaited_by']},\n"
        "        [(frame['function'], f\"{frame['file']}:{frame['line']}\")\n"
        "         for frame in task['frames']]) for task in tasks.values()}\n"
        "theirs, path = {}, []\n"
        "for line in open(sys.argv[1]).read().splitlines():\n"
        "    margin, words = re.match(r'(\\W*)(.*)', line.replace('(T) ', 'T "
        "')).groups()\n"
        "    path = [row for row in path if row[0] < len(margin)]\n"
        "    name = words[2:] if words.startswith('T ') else path[-1][1]\n"
        "    awaiters, frames = theirs.setdefault(name, (set(), []))\n"
        "    if words.startswith('T '):\n"
        "        awaiters.update(row[1] for row in path[-1:])\n"
        "    else:\n"
        "        function, place = words.split()\n"
        "        frames.append((function.split('.')[-1], place))\n"
        "    path.append((len(margin), name))\n"
        "print(ours == theirs and len(ours) == 6 or (ours, theirs))\n";
    assert_int_equal(run_command(LIST(python(), "-c", compare, theirs), out, &out, NULL),
                     0);
    assert_string_equal(out, "True\n");
}

/* ---- A task ------------------------------------------------------------------------ */

static void
task_is_told_down_to_its_innermost_frame(void)
{
    const char *tasks =
        show_tasks(start_loop(LOOP LEAF "async def generate():\n"
                                        "    await leaf()\n"
                                        "    yield\n"
                                        "class Awaitable:\n"
                                        "    def __await__(self):\n"
                                        "        yield from iterate().__await__()\n"
                                        "async def iterate():\n"
                                        "    async for _ in generate(): pass\n"
                                        "async def outer():\n"
                                        "    await Awaitable()\n"
                                        "async def main():\n"
                                        "    global task\n"
                                        "    task = asyncio.create_task(outer())\n"
                                        "    await park()\n" RUN));
    assert_matches(tasks, "outer, waiting for Future\n.*, in outer\n.*, in __await__\n"
                          ".*, in iterate\n.*, in generate\n.*, in leaf\n.*, in wait\n");
}

static void
task_that_blocks_its_loop_is_running_and_the_others_are_seen(void)
{
    const char *tasks = show_tasks(
        start_loop(LOOP LEAF "async def main():\n"
                             "    global task\n"
                             "    task = asyncio.create_task(leaf(), name='child')\n"
                             "    await asyncio.sleep(0)\n"
                             "    print('ready', flush=True)\n"
                             "    time.sleep(1000)\n" RUN));
    assert_matches(tasks, "^Task-[0-9]+: main, running\nFile: \".*\", .*, in main$");
    assert_matches(tasks, "^child: leaf, waiting for Future$");
}

static void
task_that_has_not_begun_is_ready(void)
{
    const char *tasks = show_tasks(
        start_loop(LOOP LEAF "async def main():\n"
                             "    global task\n"
                             "    task = asyncio.create_task(leaf(), name='child')\n"
                             "    print('ready', flush=True)\n"
                             "    time.sleep(1000)\n" RUN));
    assert_matches(tasks, "^child: leaf, ready\nFile: \".*, in leaf$");
}

static void
task_that_is_cancelled_and_goes_on_says_so(void)
{
    require_python_from(11);
    const char *tasks = show_tasks(
        start_loop(LOOP LEAF "async def stubborn():\n"
                             "    while True:\n"
                             "        try: await leaf()\n"
                             "        except asyncio.CancelledError: pass\n"
                             "async def main():\n"
                             "    global task\n"
                             "    task = asyncio.create_task(stubborn(), name='child')\n"
                             "    await asyncio.sleep(0)\n"
                             "    task.cancel()\n"
                             "    await park()\n" RUN));
    assert_matches(tasks, "^child: stubborn, waiting for Future, being cancelled$");
}

static void
eager_task_is_seen(void)
{
    require_python_from(12);
    const char *tasks = show_tasks(start_loop(
        LOOP
        "async def leaf():\n"
        "    print('ready', flush=True)\n"
        "    time.sleep(1000)\n"
        "async def main():\n"
        "    asyncio.get_running_loop().set_task_factory(asyncio.eager_task_factory)\n"
        "    await asyncio.create_task(leaf(), name='child')\n" RUN));
    assert_matches(tasks, ": leaf, running$");
}

/* As nest_asyncio has it. */
static void
task_in_python_is_seen(void)
{
    const char *tasks = show_tasks(
        start_loop(LOOP LEAF "asyncio.Task = asyncio.tasks.Task = asyncio.tasks._PyTask\n"
                             "async def main():\n"
                             "    global task\n"
                             "    task = asyncio.create_task(leaf(), name='child')\n"
                             "    await park()\n" RUN));
    assert_matches(tasks, "^child: leaf, waiting for Future$");
}

/* ---- All of them ------------------------------------------------------------------- */

static void
tasks_of_two_loops_in_two_threads_are_told_apart(void)
{
    const char *tasks = show_tasks(start_loop(
        LOOP LEAF "threading.Thread(target=asyncio.run, args=(leaf(),), name='second',\n"
                  "                 daemon=True).start()\n"
                  "async def main():\n"
                  "    await park()\n" RUN));
    assert_matches(tasks, "^######### ProcessID=[0-9]+, _UnixSelectorEventLoop in "
                          "ThreadID=[0-9]+ \\(MainThread\\), tasks: 1 #########$");
    assert_matches(tasks,
                   " \\(second\\), tasks: 1 #########\n\nTask-[0-9]: leaf, waiting");
}

#define CROWD                                                                            \
  LOOP LEAF "async def main():\n"                                                        \
            "    global tasks\n"                                                         \
            "    tasks = [asyncio.create_task(leaf()) for _ in range(10000)]\n"          \
            "    await park()\n" RUN

static void
ten_thousand_tasks_are_twenty_lines(void)
{
    const char *tasks = show_tasks(start_loop(CROWD));
    size_t lines = 0;
    assert_matches(tasks, "^10000 tasks: leaf, waiting for Future: Task-2, .* and 9995 "
                          "more\nFile: \".*, in leaf$");
    for (const char *c = tasks; *c != '\0'; c++) {
        lines += *c == '\n';
    }
    assert_true(lines <= 20);
}

/* Threads that compute have the GIL most of the time: that is no hang. */
static void
tasks_that_come_and_go_are_no_trouble(void)
{
    const char *pid = start_loop(
        INSTALL("hang_timeout=30") "import asyncio, sys, threading, time\n" PARK
                                   "async def brief():\n"
                                   "    await asyncio.sleep(0)\n"
                                   "def churn():\n"
                                   "    while True:\n"
                                   "        loop = asyncio.new_event_loop()\n"
                                   "        loop.run_until_complete(asyncio.wait(\n"
                                   "            [loop.create_task(brief()) for _ in "
                                   "range(50)]))\n"
                                   "        loop.close()\n"
                                   "for _ in range(2): threading.Thread(target=churn, "
                                   "daemon=True).start()\n"
                                   "async def main():\n"
                                   "    await park()\n" RUN);
    for (int i = 0; i < 10; i++) {
        assert_matches(show_tasks(pid), "^Task-[0-9]+: main, waiting for Future$");
    }
}

static void
process_without_asyncio_has_no_tasks_and_imports_none(void)
{
    struct process *app = start_target(TARGET(""));
    const char *out = NULL;
    wait_until_ready(app);
    const char *pid = format_text("%d", (int)app->pid);
    assert_contains(show_tasks(pid), "No task of asyncio or trio, no greenlet.\n");
    run_command(CLI(pid, "-c", "import sys; print('asyncio' in sys.modules)"), NULL, &out,
                NULL);
    assert_string_equal(out, "False\n");
}

/* ---- No harm ----------------------------------------------------------------------- */

static void
nothing_of_the_application_s_is_run(void)
{
    struct process *app = start_target(
        LOOP LEAF
        "def complain(self, *args): print('run:', args, flush=True)\n"
        "async def outer(future):\n"
        "    await future\n"
        "class Task(asyncio.Task):\n"
        "    __repr__ = __str__ = __eq__ = get_name = get_coro = get_stack = complain\n"
        "    __hash__ = asyncio.Task.__hash__\n"
        "    _fut_waiter = name = property(complain)\n"
        "class Future(asyncio.Future):\n"
        "    __repr__ = __str__ = __eq__ = complain\n"
        "    __hash__ = asyncio.Future.__hash__\n"
        "    cr_frame = gi_frame = _parent_task = property(complain)\n"
        "async def main():\n"
        "    global task\n"
        "    task = Task(outer(Future()), name='child')\n"
        "    await park()\n" RUN);
    wait_until_ready(app);
    wait_until_asleep(app->pid);
    const char *tasks = show_tasks(format_text("%d", (int)app->pid));
    assert_matches(tasks, "^child: outer, waiting for Future$");
    assert_string_equal(text_of(app, OUT), "ready\n");
}

static void
task_is_not_kept_after_a_look(void)
{
    const char *out = NULL;
    const char *pid =
        start_loop(LOOP LEAF "import gc, weakref\n"
                             "gc.disable()\n"
                             "async def main():\n"
                             "    global task, kept\n"
                             "    task = asyncio.create_task(leaf(), name='child')\n"
                             "    kept = weakref.ref(task)\n"
                             "    await park()\n" RUN);
    assert_contains(show_tasks(pid), "child: leaf");
    run_command(CLI(pid, "-c",
                    "import __main__ as app, time\n"
                    "loop = app.task.get_loop()\n"
                    "loop.call_soon_threadsafe(app.task.cancel)\n"
                    "while not app.task.done(): time.sleep(0.01)\n"
                    "del app.task\n"
                    "time.sleep(0.1)\n"
                    "print(app.kept() is None)"),
                NULL, &out, NULL);
    assert_string_equal(out, "True\n");
}

/* ---- Beside the stacks of threads -------------------------------------------------- */

#define LEAVES                                                                           \
  LOOP LEAF "async def main():\n"                                                        \
            "    global tasks\n"                                                         \
            "    tasks = [asyncio.create_task(leaf()) for _ in range(300)]\n"            \
            "    await park()\n" RUN

static void
stacks_end_with_where_tasks_wait(void)
{
    const char *out = NULL;
    require_gil();
    const char *pid = start_loop(LEAVES);
    assert_int_equal(run_command(CLI(pid, "--stacks"), NULL, &out, NULL), 0);
    assert_matches(out,
                   "^######### ProcessID=[0-9]+, ThreadID=[0-9]+ #########\n"
                   "(.*\n)+\n"
                   "######### ProcessID=[0-9]+, tasks: 301 #########\n"
                   "300 x waiting in wait, by leaf at .*target.*:[0-9]+: Task-2, Task-3, "
                   "Task-4, Task-5, Task-6 and 295 more\n"
                   "1 x waiting in wait, by park at .*target.*:[0-9]+: Task-1\n"
                   "#############################################\n\n\n$");
}

static void
places_where_few_tasks_wait_are_counted_alone(void)
{
    const char *out = NULL;
    require_gil();
    const char *pid = start_loop(
        LOOP "for i in range(30):\n"
             "    exec(f'async def leaf{i}(): await asyncio.Event().wait()')\n"
             "async def main():\n"
             "    global tasks\n"
             "    tasks = [asyncio.create_task(globals()[f'leaf{i}']()) for i in "
             "range(30)]\n"
             "    tasks.append(asyncio.create_task(leaf0()))\n"
             "    await park()\n" RUN);
    assert_int_equal(run_command(CLI(pid, "--stacks"), NULL, &out, NULL), 0);
    assert_matches(out,
                   "tasks: 32 #########\n2 x waiting in wait, by leaf0 at <string>:1: "
                   "Task-2, Task-32\n(1 x .*\n){19}11 more at 11 other places\n#{45}\n");
}

static void
stacks_as_json_have_every_task(void)
{
    const char *out = NULL;
    const char *counts = NULL;
    require_gil();
    require_debian_module("jsonschema");
    const char *pid = start_loop(LEAVES);
    assert_int_equal(run_command(CLI(pid, "--stacks", "--json"), NULL, &out, NULL), 0);
    check_json("stacks", out);
    assert_int_equal(run_command(LIST(python(), "-c",
                                      "import json, sys\n"
                                      "told = json.load(sys.stdin)\n"
                                      "print(*[len(told[name]) for name in ('threads', "
                                      "'tasks', 'greenlets')])"),
                                 out, &counts, NULL),
                     0);
    assert_string_equal(counts, "1 301 0\n");
}

static void
brief_has_a_line_for_each_place_where_tasks_wait(void)
{
    const char *out = NULL;
    const char *program = write_file("app.py", LEAVES);
    const char *pid[2];
    require_gil();
    for (size_t i = 0; i < 2; i++) {
        struct process *app = start_process(.argv = LIST(python(), program));
        wait_for_text(app, OUT, "ready\n", DEADLINE);
        wait_until_asleep(app->pid);
        pid[i] = format_text("%d", (int)app->pid);
    }
    assert_int_equal(run_command(CLI("--brief", pid[0], pid[1]), NULL, &out, NULL), 0);
    assert_matches(out, format_text("^600 x task waiting in wait, by leaf at .*: %s %s\n",
                                    pid[0], pid[1]));
    assert_matches(out, "^2 x (sleeping )?in select, by <module> at ");
}

/* Its client waits for the prompt, and may ask there. */
static void
dump_of_a_console_is_of_the_threads_alone(void)
{
    struct process *app = start_target(LEAVES);
    wait_until_ready(app);
    struct client *client = connect_to(app);
    assert_null(strstr(client_wait_for(client, ">>> "), "tasks: "));
}

static void
stacks_of_a_process_without_tasks_say_nothing_of_any(void)
{
    const char *out = NULL;
    require_gil();
    const char *pid =
        start_loop(INSTALL("") "import asyncio, time\n" READY "time.sleep(1000)\n");
    assert_int_equal(run_command(CLI(pid, "--stacks"), NULL, &out, NULL), 0);
    assert_matches(out, "^  time.sleep\\(1000\\)\n#{45}\n\n\n$");
}

/* ---- The ways to ask --------------------------------------------------------------- */

static void
json_tells_every_task(void)
{
    const char *out = NULL;
    const char *seen = NULL;
    require_gil();
    const char *pid = start_loop(
        LOOP LEAF "async def main():\n"
                  "    global tasks\n"
                  "    tasks = [asyncio.create_task(leaf(), name='\"\\u00e9')\n"
                  "             for _ in range(3)]\n"
                  "    await asyncio.wait_for(park(), 1000)\n" RUN);
    assert_int_equal(run_command(CLI(pid, "--tasks", "--json"), NULL, &out, NULL), 0);
    const char *code = "import json, sys\n"
                       "tasks = json.load(sys.stdin)['tasks']\n"
                       "leaf, = {str({**task, 'id': 0, 'loop': 0, 'thread_id': 0,\n"
                       "              'frames': [frame['function'] for frame in "
                       "task['frames']]})\n"
                       "         for task in tasks if task['coroutine'] == 'leaf'}\n"
                       "print(leaf)\n";
    assert_int_equal(run_command(LIST(python(), "-c", code), out, &seen, NULL), 0);
    assert_string_equal(
        seen,
        "{'id': 0, 'name': '\"\xc3\xa9', 'state': 'waiting', 'coroutine': 'leaf', "
        "'waits_for': 'Future', 'being_cancelled': False, 'awaited_by': [], 'loop': 0, "
        "'thread_id': 0, 'thread': 'MainThread', 'frames': ['leaf', 'wait']}\n");
}

static void
json_is_by_its_schema(void)
{
    const char *out = NULL;
    require_gil();
    require_debian_module("jsonschema");
    const char *pid = start_loop(
        LOOP LEAF "async def main(): await asyncio.gather(leaf(), park())\n" RUN);
    const char *none = format_text("%d", (int)getpid());
    assert_int_equal(run_command(CLI("--tasks", "--json", pid, none), NULL, &out, NULL),
                     5);
    check_json("tasks", out);
}

static void
several_processes_are_asked_side_by_side(void)
{
    const char *out = NULL;
    require_gil();
    const char *one = start_loop(CROWD);
    const char *other = start_loop(LOOP "async def main(): await park()\n" RUN);
    assert_int_equal(run_command(CLI("--tasks", one, other), NULL, &out, NULL), 0);
    assert_contains(out, format_text("==> %s ", one));
    assert_contains(out, format_text("==> %s ", other));
    assert_int_equal(run_command(CLI("--tasks", "--json", one, other), NULL, &out, NULL),
                     0);
    assert_int_equal(run_command(LIST(python(), "-c",
                                      "import json, sys\n"
                                      "print(sorted(len(one['tasks']) for one in "
                                      "json.load(sys.stdin)))"),
                                 out, &out, NULL),
                     0);
    assert_string_equal(out, "[1, 10001]\n");
}

static void
stuck_process_says_why_there_are_none(void)
{
    const char *err = NULL;
    struct process *app =
        start_target(INSTALL("hang_timeout=0.2") "import asyncio, ctypes\n" READY
                                                 "ctypes.PyDLL(None).getchar()\n");
    wait_until_ready(app);
    wait_until_asleep(app->pid);
    const char *pid = format_text("%d", (int)app->pid);
    assert_int_equal(run_command(CLI(pid, "--tasks"), NULL, NULL, &err), 5);
    assert_string_equal(err,
                        "manhole: Python does not answer, and it alone can read this; "
                        "--stacks shows where it is stuck\n");
    close_stdin(app);
}

static void
process_without_a_gil_says_why_there_are_none(void)
{
    const char *err = NULL;
    if (has_gil()) {
        skip_test("only without a GIL");
    }
    const char *pid = start_loop(LOOP "async def main(): await park()\n" RUN);
    assert_int_equal(run_command(CLI(pid, "--tasks"), NULL, NULL, &err), 5);
    assert_string_equal(err,
                        "manhole: Tasks failed with NotImplementedError('tasks cannot be "
                        "read in a Python without the GIL').\n");
}

/* A manhole of before, and python-manhole's, give who asks for tasks their console. */
static void
stacks_of_an_older_manhole_do_not_pass_for_tasks(void)
{
    struct process *old = start_target(
        "import os, socket\n"
        "path = '/tmp/manhole-%d' % os.getpid()\n"
        "listener = socket.socket(socket.AF_UNIX)\n"
        "listener.bind(path)\n"
        "listener.listen()\n" READY "for i in range(2):\n"
        "    client, _ = listener.accept()\n"
        "    client.sendall(b'\\n######### ProcessID=1, ThreadID=1 #########\\n')\n"
        "    client.sendall(b'#' * 45 + b'\\n\\n\\n')\n"
        "    client.recv(1) # until it asks no more\n"
        "    client.sendall(b'Python 3\\n(ManholeConsole)\\n>>> ')\n"
        "    client.close()\n"
        "os.unlink(path)\n");
    const char *pid = format_text("%d", (int)old->pid);
    static const char *const forms[] = {"--tasks", "--json"};
    wait_until_ready(old);
    for (size_t i = 0; i < 2; i++) {
        const char *out = NULL;
        const char *err = NULL;
        assert_int_equal(run_command(CLI(pid, "--tasks", forms[i]), NULL, &out, &err), 5);
        assert_string_equal(out, "");
        assert_contains(err, "is older, and does not know what it was asked for");
    }
}

static void
prompt_has_tasks(void)
{
    require_gil();
    struct process *app = start_target(LOOP "async def main(): await park()\n" RUN);
    wait_until_ready(app);
    struct client *client = connect_to(app);
    client_wait_for(client, ">>> ");
    assert_matches(client_ask(client, "tasks()"), "^Task-1: main, waiting for Future$");
}

static void
name_of_the_application_s_stays_its_own_at_the_prompt(void)
{
    struct process *app = start_target(TARGET("locals={'tasks': 'mine'}"));
    wait_until_ready(app);
    struct client *client = connect_to(app);
    client_wait_for(client, ">>> ");
    assert_string_equal(client_ask(client, "tasks"), "'mine'\n");
}

static void
shell_of_commands_has_tasks(void)
{
    require_gil();
    struct process *app = start_target(
        INSTALL("connection_handler='commands'") "import asyncio\n" PARK
                                                 "async def main(): await park()\n" RUN);
    wait_until_ready(app);
    struct client *client = connect_to(app);
    client_send(client, "shell python\ntasks\n");
    client_wait_for(client, "\nTask-1: main, waiting for Future\n");
}

int
main(void)
{
    static const struct test_case tests[] = {
        TEST(awaited_task_is_below_who_awaits_it),
        TEST(gathered_task_is_below_its_gatherer),
        TEST(shielded_task_is_below_who_shields_it),
        TEST(waited_task_is_below_who_waits),
        TEST(task_with_a_timeout_is_below_who_waits),
        TEST(task_of_a_group_is_below_its_group),
        TEST(tasks_that_await_each_other_are_a_cycle),
        TEST(cycle_that_nobody_awaits_is_shown_above_what_it_awaits),
        TEST(awaiters_and_frames_are_those_that_cpython_s_own_tool_tells),
        TEST(task_is_told_down_to_its_innermost_frame),
        TEST(task_that_blocks_its_loop_is_running_and_the_others_are_seen),
        TEST(task_that_has_not_begun_is_ready),
        TEST(task_that_is_cancelled_and_goes_on_says_so),
        TEST(eager_task_is_seen),
        TEST(task_in_python_is_seen),
        TEST(tasks_of_two_loops_in_two_threads_are_told_apart),
        TEST(ten_thousand_tasks_are_twenty_lines),
        TEST(tasks_that_come_and_go_are_no_trouble),
        TEST(process_without_asyncio_has_no_tasks_and_imports_none),
        TEST(nothing_of_the_application_s_is_run),
        TEST(task_is_not_kept_after_a_look),
        TEST(json_tells_every_task),
        TEST(json_is_by_its_schema),
        TEST(stacks_end_with_where_tasks_wait),
        TEST(places_where_few_tasks_wait_are_counted_alone),
        TEST(stacks_as_json_have_every_task),
        TEST(brief_has_a_line_for_each_place_where_tasks_wait),
        TEST(dump_of_a_console_is_of_the_threads_alone),
        TEST(stacks_of_a_process_without_tasks_say_nothing_of_any),
        TEST(several_processes_are_asked_side_by_side),
        TEST(stuck_process_says_why_there_are_none),
        TEST(process_without_a_gil_says_why_there_are_none),
        TEST(awaitable_with_an_empty_slot_hides_nothing),
        TEST(stacks_of_an_older_manhole_do_not_pass_for_tasks),
        TEST(prompt_has_tasks),
        TEST(name_of_the_application_s_stays_its_own_at_the_prompt),
        TEST(shell_of_commands_has_tasks),
    };
    return RUN_TESTS(tests);
}
