/* e2e_probes.c - functions that keep what they failed with: probed at a manhole's prompt and in
 * code, called as ever, put back as they were.
 */
#include "support.h"

/* A module that programs import and probes go into. */
static const char SHOP[] = //
    "import functools\n"
    "def divide(a: int, *, by=1) -> float:\n"
    "    'Divides.'\n"
    "    quotient = a / by\n"
    "    return quotient\n"
    "def count_down(n):\n"
    "    while n: n -= (yield 1 / n) or 1\n"
    "    raise ValueError('zero')\n"
    "async def fetch(n): return 1 / n\n"
    "async def stream(n):\n"
    "    while n: yield 1 / n; n -= 1\n"
    "    raise ValueError('zero')\n"
    "class Base:\n"
    "    def inherited(self, n): return 1 / n\n"
    "class Till(Base):\n"
    "    'A class.'\n"
    "    def __init__(self, n=1): self.first = 1 / n\n"
    "    def method(self, n): return 1 / n\n"
    "    async def later(self, n): return 1 / n\n"
    "    @staticmethod\n"
    "    def static(n): return 1 / n\n"
    "    @classmethod\n"
    "    def of_class(cls, n): return cls, 1 / n\n"
    "    @functools.lru_cache(None)\n"
    "    def cached(self, n): return 1 / n\n"
    "    bound = [].append\n"
    "    size = property(lambda self: 1)\n"
    "class Drawer(Till): pass\n"
    "till = Till()\n";

#define USE "import asyncio, gc, inspect, manhole, shop, sys, weakref\n"

/* def fails(f, *arguments): the exception that a call raises. */
#define FAILS                                                                            \
  "def fails(f, *arguments, **keywords):\n"                                              \
  "    try: f(*arguments, **keywords)\n"                                                 \
  "    except Exception as error: return error\n"

/* Runs statements that assert what must hold, in a program with the module above. */
static void
assert_runs(const char *statements)
{
    write_file("shop.py", SHOP);
    struct process *app = start_target(format_text(USE FAILS "%s", statements));
    assert_int_equal(wait_for_exit(app, DEADLINE), 0);
    assert_string_equal(text_of(app, ERR), "");
}

/* ---- At the prompt ------------------------------------------------------------------ */

/* Divides by what each line of its stdin says, says how it went, goes on. */
#define SELLS                                                                            \
  USE "manhole.install(verbose=False)\n" READY "for line in sys.stdin:\n"                \
      "    try: print('sold', shop.divide(7, by=int(line)), flush=True)\n"               \
      "    except Exception as error: print(repr(error), flush=True)\n"

static struct process *
start_shop(void)
{
    write_file("shop.py", SHOP);
    struct process *app = start_target(SELLS);
    wait_until_ready(app);
    return app;
}

/* At the prompt, with a probe inserted. */
static struct client *
enter_with_probe(const struct process *app)
{
    struct client *client = connect_to(app);
    client_wait_for(client, ">>> ");
    client_ask(client, "import manhole");
    assert_string_equal(client_ask(client, "probe = manhole.probe('shop:divide')"), "");
    return client;
}

static void
sell(struct process *app, const char *by, const char *outcome)
{
    write_stdin(app, by);
    wait_for_text(app, OUT, outcome, DEADLINE);
}

static void
probe_keeps_what_the_program_failed_with(void)
{
    struct process *app = start_shop();
    struct client *client = enter_with_probe(app);
    sell(app, "7\n", "sold 1.0\n");
    sell(app, "0\n", "ZeroDivisionError('division by zero')\n");
    client_wait_for(client, "ZeroDivisionError");
    client_wait_for(client, "\n");
    assert_string_equal(client_ask(client, "probe"),
                        "<manhole.Probe 'shop:divide': 2 calls, 1 exception>\n");
    assert_matches(
        client_ask(client, "probe.print()"),
        "^Traceback .*\n  File \".*shop.py\", line 4, in divide\n"
        "    quotient = a / by\n(.*\n)?ZeroDivisionError: division by zero\n$");
}

static void
debug_is_a_post_mortem_while_the_program_goes_on(void)
{
    struct process *app = start_shop();
    struct client *client = enter_with_probe(app);
    sell(app, "0\n", "ZeroDivisionError('division by zero')\n");
    client_send(client, "probe.debug()\n");
    client_wait_for(client, "-> quotient = a / by\n(Pdb) ");
    client_send(client, "p a, by\n");
    client_wait_for(client, "(7, 0)\n(Pdb) ");
    sell(app, "2\n", "sold 3.5\n");
    client_wait_for(client, "sold 3.5\n");
    assert_string_equal(client_ask(client, "q"), "");
    assert_string_equal(client_ask(client, "1 + 1"), "2\n");
}

static void
ctrl_d_leaves_the_post_mortem_alone(void)
{
    struct process *app = start_shop();
    struct client *client = enter_with_probe(app);
    sell(app, "0\n", "ZeroDivisionError('division by zero')\n");
    client_send(client, "probe.debug()\n");
    client_wait_for(client, "(Pdb) ");
    client_shutdown_write(client);
    client_read_until_eof(client);
    sell(app, "7\n", "sold 1.0\n");
}

static void
probe_that_caught_nothing_says_so(void)
{
    struct process *app = start_shop();
    struct client *client = enter_with_probe(app);
    sell(app, "7\n", "sold 1.0\n");
    client_wait_for(client, "sold 1.0\n");
    static const char *const asks[] = {"probe.print()", "probe.debug()"};
    for (size_t i = 0; i < 2; i++) {
        assert_contains(
            client_ask(client, asks[i]),
            "LookupError: 'shop:divide' has no traceback: in 1 calls since the "
            "probe was inserted 0 exceptions have left it, and none is kept\n");
    }
    assert_string_equal(client_ask(client, "probe.traceback"), "");
}

static void
probe_stays_when_its_client_leaves(void)
{
    struct process *app = start_shop();
    client_close(enter_with_probe(app));
    sell(app, "0\n", "ZeroDivisionError('division by zero')\n");
    struct client *client = connect_to(app);
    client_wait_for(client, ">>> ");
    client_ask(client, "import manhole");
    assert_string_equal(client_ask(client, "manhole.probes()"),
                        "[<manhole.Probe 'shop:divide': 1 call, 1 exception>]\n");
    assert_contains(client_ask(client, "manhole.probe('shop:divide').traceback"),
                    "ZeroDivisionError");
}

/* ---- What the program sees ----------------------------------------------------------- */

static void
probed_function_is_what_functools_wraps_makes_of_it(void)
{
    assert_runs("import copy, pickle\n"
                "before = shop.divide\n"
                "before.mark = 1\n"
                "facts = lambda f: (inspect.signature(f), f.__name__, f.__qualname__, "
                "f.__doc__,\n"
                "                   f.__module__, f.__annotations__, f.mark,\n"
                "                   inspect.isfunction(f), inspect.getsource(f))\n"
                "expected = facts(before)\n"
                "manhole.probe('shop:divide')\n"
                "f = shop.divide\n"
                "assert f is not before and f.__wrapped__ is before\n"
                "assert facts(f) == expected and not hasattr(before, '__wrapped__')\n"
                "assert pickle.loads(pickle.dumps(f)) is f and copy.deepcopy(f) is f\n");
}

/* As a task of Celery's or what lru_cache() makes: the program calls more than it. */
static void
probed_object_that_is_called_has_its_attributes_still(void)
{
    assert_runs("import functools, pickle\n"
                "class Task:\n"
                "    count = 0\n"
                "    def __call__(self, n): return 1 / n\n"
                "    def delay(self): return self.count\n"
                "shop.task = task = Task()\n"
                "shop.half = functools.partial(shop.divide, by=2)\n"
                "for name in 'shop:task', 'shop:half', 'shop:Till.cached':\n"
                "    manhole.probe(name)\n"
                "task.count = 1\n"
                "assert shop.task(1) == 1 and shop.task.delay() == 1\n"
                "shop.till.cached(1)\n"
                "shop.Till.cached.cache_clear()\n"
                "assert shop.Till.cached.cache_info().currsize == 0\n"
                "assert pickle.loads(pickle.dumps(shop.half))(1) == 0.5\n");
}

/* As time.monotonic: what a class takes from a module binds then as it did. */
static void
probed_function_that_does_not_bind_goes_on_so(void)
{
    assert_runs(
        "import pickle, time\n"
        "shop.bound = [1, 2].count\n"
        "probes = [manhole.probe('time:monotonic'), manhole.probe('shop:bound')]\n"
        "class Timer: clock, count = time.monotonic, shop.bound\n"
        "assert Timer().clock() > 0 and Timer().count(2) == 1\n"
        "assert [probe.calls for probe in probes] == [1, 1]\n"
        "assert pickle.loads(pickle.dumps(time.monotonic)) is time.monotonic\n"
        "shop.clock = time.monotonic\n"
        "assert 'probed already' in str(fails(manhole.probe, 'shop:clock'))\n"
        "for probe in probes: probe.remove()\n"
        "assert Timer().clock() > 0 and Timer().count(2) == 1\n");
}

static void
probed_generator_that_may_be_awaited_may_still(void)
{
    assert_runs("import types\n"
                "@types.coroutine\n"
                "def pause(n):\n"
                "    yield\n"
                "    return 1 / n\n"
                "shop.pause = pause\n"
                "probe = manhole.probe('shop:pause')\n"
                "async def run(n): return await shop.pause(n)\n"
                "assert asyncio.run(run(2)) == 0.5\n"
                "assert type(fails(asyncio.run, run(0))) is ZeroDivisionError\n"
                "assert (probe.calls, probe.exceptions) == (2, 1)\n"
                "manhole.probe('shop:count_down')\n"
                "assert not inspect.isawaitable(shop.count_down(1))\n");
}

static void
construction_by_object_is_not_probed(void)
{
    assert_runs("class New:\n"
                "    def __new__(cls, n): return object.__new__(cls)\n"
                "class Init:\n"
                "    def __init__(self, n): pass\n"
                "shop.New, shop.Init = New, Init\n"
                "for name in 'shop:New.__init__', 'shop:Init.__new__':\n"
                "    assert \"is object's own\" in str(fails(manhole.probe, name))\n"
                "    New(1), Init(1)\n"
                "manhole.probe('shop:New.__new__'), manhole.probe('shop:Init.__init__')\n"
                "New(1), Init(1)\n");
}

/* What is probed, and how it is called: each with 1, and with 0, which fails. */
#define EVERYTHING                                                                       \
  "import contextlib\n"                                                                  \
  "async def drain(n): return [x async for x in shop.stream(1)]\n"                       \
  "async def ask(n): return await shop.fetch(n)\n"                                       \
  "till = shop.till\n"                                                                   \
  "calls = {\n"                                                                          \
  "    'shop:divide': lambda n: shop.divide(1, by=n),\n"                                 \
  "    'shop:Till.inherited': lambda n: till.inherited(n),\n"                            \
  "    'shop:Till.__init__': lambda n: shop.Till(n),\n"                                  \
  "    'shop:Till.method': lambda n: till.method(n),\n"                                  \
  "    'shop:Till.static': lambda n: (till.static(n), shop.Till.static(n)),\n"           \
  "    'shop:Till.of_class': lambda n: shop.Drawer.of_class(n),\n"                       \
  "    'shop:Till.cached': lambda n: till.cached(n),\n"                                  \
  "    'shop:fetch': lambda n: asyncio.run(ask(n)),\n"                                   \
  "    'shop:Till.later': lambda n: asyncio.run(till.later(n)),\n"                       \
  "}\n"

static void
every_kind_of_function_works_and_is_observed(void)
{
    assert_runs(EVERYTHING "for name, call in calls.items():\n"
                           "    expected = None if '__init__' in name else call(1)\n"
                           "    probe = manhole.probe(name)\n"
                           "    got = call(1)\n"
                           "    assert expected is None or got == expected, name\n"
                           "    assert probe.traceback is None and probe.calls, name\n"
                           "    error = fails(call, 0)\n"
                           "    assert isinstance(error, ZeroDivisionError), name\n"
                           "    assert probe.exception is error, name\n"
                           "    manhole.unprobe(name)\n");
}

static void
generators_are_observed_to_their_end(void)
{
    assert_runs("import collections.abc\n"
                "probe = manhole.probe('shop:count_down')\n"
                "def outer(n): return (yield from shop.count_down(n))\n"
                "assert inspect.isgeneratorfunction(shop.count_down)\n"
                "g = shop.count_down(2)\n"
                "assert '<generator object count_down' in repr(g)\n"
                "assert inspect.isgenerator(g) and not inspect.isawaitable(g)\n"
                "assert isinstance(g, collections.abc.Generator) and g.gi_code\n"
                "assert next(g) == 0.5 and g.send(1) == 1 and probe.exceptions == 0\n"
                "assert fails(next, g).args == ('zero',) and probe.exceptions == 1\n"
                "g = outer(5)\n"
                "assert (next(g), g.send(3)) == (1 / 5, 1 / 2)\n"
                "assert isinstance(fails(g.throw, OSError()), OSError)\n"
                "assert isinstance(probe.exception, OSError)\n"
                "g = outer(5); next(g); g.close()\n"
                "assert fails(next, g).__class__ is StopIteration\n"
                "assert probe.exceptions == 2\n");
}

static void
coroutines_and_async_generators_are_observed(void)
{
    assert_runs("fetch = manhole.probe('shop:fetch')\n"
                "stream = manhole.probe('shop:stream')\n"
                "assert inspect.iscoroutinefunction(shop.fetch)\n"
                "assert inspect.isasyncgenfunction(shop.stream)\n"
                "async def main():\n"
                "    task = asyncio.create_task(shop.fetch(0))\n"
                "    await asyncio.wait([task])\n"
                "    assert fetch.exception is task.exception()\n"
                "    got = []\n"
                "    try:\n"
                "        async for part in shop.stream(2): got.append(part)\n"
                "    except ValueError as error: assert stream.exception is error\n"
                "    a = shop.stream(3)\n"
                "    assert inspect.isasyncgen(a) and not inspect.isawaitable(a)\n"
                "    assert await a.asend(None) == 1 / 3\n"
                "    await a.aclose()\n"
                "    assert stream.exceptions == 1 and got == [0.5, 1]\n"
                "    a = shop.stream(3); await a.asend(None)\n"
                "    try: await a.athrow(OSError('thrown'))\n"
                "    except OSError as error: assert stream.exception is error\n"
                "    assert stream.exceptions == 2\n"
                "asyncio.run(main())\n"
                "assert asyncio.run(shop.fetch(4)) == 0.25\n");
}

static void
functions_in_c_are_observed(void)
{
    assert_runs("import time\n"
                "before = time.sleep\n"
                "probe = manhole.probe('time:sleep')\n"
                "error = fails(time.sleep, 'long')\n"
                "assert probe.exception is error and 'in fails' in probe.traceback\n"
                "assert time.sleep(0) is None and time.sleep.__name__ == 'sleep'\n"
                "probe.remove()\n"
                "assert time.sleep is before\n");
}

/* ---- Putting back --------------------------------------------------------------------- */

static void
removal_restores_exactly_what_was_there(void)
{
    assert_runs(EVERYTHING
                "names = lambda: [(k, id(v)) for o in (shop, shop.Base, shop.Till)\n"
                "                 for k, v in vars(o).items() if k[:2] != '__'\n"
                "                 or k == '__init__']\n"
                "before = names()\n"
                "for name in calls: manhole.probe(name)\n"
                "assert names() != before and 'inherited' in vars(shop.Till)\n"
                "manhole.unprobe()\n"
                "assert names() == before and manhole.probes() == []\n");
}

static void
what_somebody_else_put_there_is_left_and_said(void)
{
    assert_runs(
        "probe = manhole.probe('shop:divide')\n"
        "passes = shop.divide\n"
        "shop.divide = print\n"
        "error = fails(manhole.unprobe)\n"
        "assert isinstance(error, RuntimeError) and str(error) == (\n"
        "    \"the probe is gone, but 'shop:divide' is something else by now, \"\n"
        "    '<built-in function print>: that was left there'), error\n"
        "assert shop.divide is print and manhole.probes() == []\n"
        "assert passes(1, by=2) == 0.5 and 'removed' in repr(probe)\n"
        "probe = manhole.probe('shop:fetch')\n"
        "del shop.fetch\n"
        "assert 'and so is' in str(fails(probe.remove))\n"
        "assert 'removed already' in str(fails(probe.remove))\n");
}

static void
frames_go_with_discard_and_removal(void)
{
    assert_runs("class Big: pass\n"
                "def sell():\n"
                "    big = Big()\n"
                "    fails(shop.divide, big)\n"
                "    return weakref.ref(big)\n"
                "probe = manhole.probe('shop:divide')\n"
                "for let_go in probe.discard, sell, probe.remove:\n"
                "    kept = sell()\n"
                "    gc.collect()\n"
                "    assert kept() is not None, let_go\n"
                "    let_go()\n"
                "    gc.collect()\n"
                "    assert kept() is None, let_go\n"
                "assert probe.traceback is None\n");
}

/* A signal's receiver, say, that was connected while the probe was there. */
static void
weak_references_live_as_long_as_the_function(void)
{
    assert_runs("probe = manhole.probe('shop:divide')\n"
                "receiver = weakref.ref(shop.divide)\n"
                "probe.remove()\n"
                "gc.collect()\n"
                "assert receiver()(1, by=2) == 0.5\n");
}

/* As a function in C is none: the object that it is called through stays out of its arguments. */
static void
what_binds_to_no_object_binds_to_none_with_its_probe(void)
{
    assert_runs("shop.Till.length = len\n"
                "before = vars(shop.Till)['length']\n"
                "probe = manhole.probe('shop:Till.length')\n"
                "assert shop.till.length('abc') == shop.Till.length('abc') == 3\n"
                "assert probe.calls == 2 and probe.name == 'shop:Till.length'\n"
                "probe.remove()\n"
                "assert vars(shop.Till)['length'] is before\n");
}

/* ---- What is refused ------------------------------------------------------------------- */

static void
name_that_means_no_function_is_refused_and_says_why(void)
{
    assert_runs(
        "class Own:\n"
        "    def __get__(self, till, till_type): return till\n"
        "    def __call__(self): pass\n"
        "shop.Till.own = Own()\n"
        "usage = 'a probe\\'s name is module:function or module:Class.method, not %r'\n"
        "rows = {\n"
        "    '': usage % '', 'divide': usage % 'divide',\n"
        "    ':divide': usage % ':divide', 'shop:': usage % 'shop:',\n"
        "    'shop:nothing': 'has no name \\'nothing\\'',\n"
        "    'shop:Till.nothing': '<class \\'shop.Till\\'> has no name \\'nothing\\'',\n"
        "    'wave:open': 'no module \\'wave\\' is imported, and a probe imports "
        "nothing',\n"
        "    'shop:Till': 'is a class: name a method of it, such as '\n"
        "                 '\\'shop:Till.__init__\\'',\n"
        "    'shop:Till.size': 'is a property object, which cannot be called',\n"
        "    'shop:till.method': 'is an object of <class \\'shop.Till\\'>: a probe "
        "goes',\n"
        "    'builtins:list.append': 'type \\'list\\'',\n"
        "    'shop:Till.own': 'is a Own object, which binds to instances in a way of its "
        "'\n"
        "                     'own: name the function that it calls',\n"
        "}\n"
        "for name, message in rows.items():\n"
        "    error = fails(manhole.probe, name)\n"
        "    assert message in str(error), (name, error)\n"
        "assert 'a str, not int' in str(fails(manhole.probe, 5))\n"
        "assert 'wave' not in sys.modules and manhole.probes() == []\n");
}

static void
one_function_has_one_probe(void)
{
    assert_runs("probe = manhole.probe('shop:divide')\n"
                "assert manhole.probe('shop:divide') is probe\n"
                "alias = sys.modules[__name__].alias = shop.divide\n"
                "assert str(fails(manhole.probe, '__main__:alias')) == (\n"
                "    \"'__main__:alias' is probed already, as 'shop:divide'\")\n"
                "assert str(fails(manhole.unprobe, 'shop:fetch')) == (\n"
                "    \"there is no probe 'shop:fetch'; there are ['shop:divide']\")\n");
}

static void
threads_insert_and_remove_and_call_at_once(void)
{
    assert_runs("import threading, time\n"
                "before = shop.divide\n"
                "end = time.monotonic() + 0.5\n"
                "def call():\n"
                "    while time.monotonic() < end: fails(shop.divide, 1, by=0)\n"
                "def probe():\n"
                "    while time.monotonic() < end:\n"
                "        fails(lambda: manhole.probe('shop:divide').traceback)\n"
                "        fails(manhole.unprobe, 'shop:divide')\n"
                "threads = [threading.Thread(target=f) for f in [call, probe] * 3]\n"
                "for thread in threads: thread.start()\n"
                "for thread in threads: thread.join()\n"
                "manhole.unprobe()\n"
                "assert shop.divide is before\n");
}

int
main(void)
{
    static const struct test_case tests[] = {
        TEST(probe_keeps_what_the_program_failed_with),
        TEST(debug_is_a_post_mortem_while_the_program_goes_on),
        TEST(ctrl_d_leaves_the_post_mortem_alone),
        TEST(probe_that_caught_nothing_says_so),
        TEST(probe_stays_when_its_client_leaves),
        TEST(probed_function_is_what_functools_wraps_makes_of_it),
        TEST(probed_object_that_is_called_has_its_attributes_still),
        TEST(probed_function_that_does_not_bind_goes_on_so),
        TEST(probed_generator_that_may_be_awaited_may_still),
        TEST(construction_by_object_is_not_probed),
        TEST(every_kind_of_function_works_and_is_observed),
        TEST(generators_are_observed_to_their_end),
        TEST(coroutines_and_async_generators_are_observed),
        TEST(functions_in_c_are_observed),
        TEST(removal_restores_exactly_what_was_there),
        TEST(what_somebody_else_put_there_is_left_and_said),
        TEST(frames_go_with_discard_and_removal),
        TEST(weak_references_live_as_long_as_the_function),
        TEST(what_binds_to_no_object_binds_to_none_with_its_probe),
        TEST(name_that_means_no_function_is_refused_and_says_why),
        TEST(one_function_has_one_probe),
        TEST(threads_insert_and_remove_and_call_at_once),
    };
    return RUN_TESTS(tests);
}
