/* e2e_frames.c - frame(), threads() and where() at the prompt. */
#include "support.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* A worker that waits in its own frame until what it was given is told so. */
#define APP                                                                              \
  "import asyncio, threading, time\n"                                                    \
  "level = 1\n"                                                                          \
  "def work(jobs, run):\n"                                                               \
  "    while jobs: time.sleep(0.01)\n"                                                   \
  "    print('has', jobs, flush=True)\n"                                                 \
  "    threading.Event().wait()\n"                                                       \
  "worker = threading.Thread(target=work, args=(['tea'], 7), name='worker',\n"           \
  "                          daemon=True)\n"                                             \
  "worker.start()\n"                                                                     \
  "async def fetch(order):\n"                                                            \
  "    await asyncio.Event().wait()\n"                                                   \
  "async def main():\n"                                                                  \
  "    task = asyncio.create_task(fetch(17), name='fetcher')\n"                          \
  "    await asyncio.sleep(0.01)\n"                                                      \
  "    print('ready', flush=True)\n"                                                     \
  "    await task\n"                                                                     \
  "asyncio.run(main())\n"

static struct process *app;

static struct client *
enter(const char *arguments)
{
    require_gil();
    app = start_target(format_text(INSTALL("%s") APP, arguments));
    wait_until_ready(app);
    struct client *client = connect_to(app);
    client_wait_for(client, ">>> ");
    return client;
}

static bool
can_set_names(struct client *client)
{
    return strcmp(client_ask(client, "sys.version_info >= (3, 13)"), "True\n") == 0;
}

static void
frame_is_of_a_thread_by_name_ident_native_id_or_itself(void)
{
    static const char *const threads[] = {"'worker'", "app.worker.ident",
                                          "app.worker.native_id", "app.worker"};
    struct client *client = enter("");
    client_ask(client, "import __main__ as app");
    for (size_t i = 0; i < sizeof(threads) / sizeof(threads[0]); i++) {
        assert_matches(
            client_ask(client, format_text("frame(%s)", threads[i])),
            "^<frame 0: File \".*\", line [0-9]+, in work; names: jobs, run>\n$");
    }
}

static void
names_of_a_frame_are_attributes_and_items(void)
{
    struct client *client = enter("");
    client_ask(client, "f = frame('worker')");
    assert_string_equal(client_ask(client, "f.jobs, f['jobs'], f['run']"),
                        "(['tea'], ['tea'], 7)\n");
    assert_string_equal(client_ask(client, "dir(f)"), "['jobs', 'run']\n");
    assert_contains(client_ask(client, "f.milk"), " has no 'milk'\n");
}

static void
name_that_is_set_is_what_the_function_goes_on_with(void)
{
    struct client *client = enter("");
    if (!can_set_names(client)) {
        assert_contains(
            client_ask(client, "frame('worker').jobs = ()"),
            "TypeError: the names of a function can be set from CPython 3.13 on");
        return;
    }
    client_ask(client, "frame('worker').jobs = ()");
    wait_for_text(app, OUT, "has ()\n", DEADLINE);
}

static void
name_of_a_module_s_frame_can_be_set(void)
{
    struct client *client = enter("");
    client_ask(client, "frame('MainThread', -1).level = 5");
    assert_string_equal(client_ask(client, "__import__('__main__').level"), "5\n");
}

static void
code_runs_in_a_frame(void)
{
    struct client *client = enter("");
    bool is_set = can_set_names(client);
    client_ask(client, "f = frame('worker')");
    assert_string_equal(client_ask(client, "f.run('len(jobs) + level + 40')"), "42\n");
    client_ask(client, "f.run('x = 1; jobs.clear()')");
    wait_for_text(app, OUT, "has []\n", DEADLINE);
    assert_contains(client_ask(client, "'x' in dir(f)"), is_set ? "True\n" : "False\n");
}

static void
frame_is_of_a_task_by_name_or_itself(void)
{
    struct client *client = enter("");
    assert_string_equal(client_ask(client, "frame('fetcher', -1).order"), "17\n");
    client_ask(client, "f = frame('fetcher', 1)");
    client_ask(client, "import asyncio, gc");
    client_ask(client,
               "tasks = [t for t in gc.get_objects() if type(t) is asyncio.Task]");
    assert_string_equal(
        client_ask(client,
                   "[frame(t, -1).order for t in tasks if t.get_name() == 'fetcher']"),
        "[17]\n");
}

static void
what_is_no_thread_is_an_error(void)
{
    struct client *client = enter("");
    assert_contains(
        client_ask(client, "frame('nobody')"),
        "LookupError: there are 0 threads, tasks or greenlets called 'nobody'; threads() "
        "lists those that there are, tasks() the tasks\n");
    client_ask(client, "import __main__ as app");
    client_ask(client, "app.worker.name = 'MainThread'");
    assert_contains(client_ask(client, "frame('MainThread')"),
                    "LookupError: there are 2 threads called 'MainThread'");
    assert_contains(client_ask(client, "frame(app.worker, 99)"),
                    "frames; 0 is the innermost\n");
}

static void
threads_lists_them(void)
{
    struct client *client = enter("");
    const char *seen = client_ask(client, "threads()");
    assert_matches(seen, "^worker, ident [0-9]+, native id [0-9]+: File \".*\", line "
                         "[0-9]+, in work$");
    assert_matches(
        seen, format_text("^MainThread, ident [0-9]+, native id %d: ", (int)app->pid));
    assert_not_contains(seen, "<manhole>");
}

/* As gevent does, whose ident is a greenlet's. */
static void
threads_are_listed_where_get_ident_is_patched(void)
{
    struct client *client = enter("");
    client_ask(client, "import _thread; _thread.get_ident = lambda: 7");
    const char *seen = client_ask(client, "threads()");
    assert_contains(seen, "worker, ident ");
    assert_not_contains(seen, "<manhole>");
}

static void
class_that_frame_has_met_can_go(void)
{
    struct client *client = enter("");
    client_ask(client, "import gc, weakref");
    client_ask(client, "found = type('Mine', (), {})()");
    client_ask(client, "kind = weakref.ref(type(found))");
    assert_contains(client_ask(client, "frame(found)"), "LookupError");
    client_ask(client, "found = _ = sys.last_traceback = sys.last_value = None");
    client_ask(client, "1/0");
    client_ask(client, "gc.collect()");
    assert_string_equal(client_ask(client, "kind() is None"), "True\n");
}

static void
where_prints_the_stacks_again(void)
{
    struct client *client = enter("");
    assert_matches(client_ask(client, "where()"),
                   "^######### ProcessID=[0-9]+, ThreadID=[0-9]+ #########$");
    assert_matches(client_ask(client, "where('worker')"),
                   "^  0 File: \".*\", line [0-9]+, in work\n      while jobs: "
                   "time.sleep\\(0.01\\)\n  1 File: \".*threading.py\", ");
    assert_matches(client_ask(client, "where('fetcher')"),
                   "^  0 File: \".*locks.py\", line [0-9]+, in wait\n      await fut\n"
                   "  1 File: \".*\", line [0-9]+, in fetch$");
}

static void
names_that_the_application_has_stay_its_own(void)
{
    struct client *client = enter("locals={'frame': 1, 'threads': 2, 'where': 3}");
    assert_string_equal(client_ask(client, "frame, threads, where"), "(1, 2, 3)\n");
}

int
main(void)
{
    static const struct test_case tests[] = {
        TEST(frame_is_of_a_thread_by_name_ident_native_id_or_itself),
        TEST(names_of_a_frame_are_attributes_and_items),
        TEST(name_that_is_set_is_what_the_function_goes_on_with),
        TEST(name_of_a_module_s_frame_can_be_set),
        TEST(code_runs_in_a_frame),
        TEST(frame_is_of_a_task_by_name_or_itself),
        TEST(what_is_no_thread_is_an_error),
        TEST(threads_lists_them),
        TEST(threads_are_listed_where_get_ident_is_patched),
        TEST(class_that_frame_has_met_can_go),
        TEST(where_prints_the_stacks_again),
        TEST(names_that_the_application_has_stay_its_own),
    };
    return RUN_TESTS(tests);
}
