/* many_dumps.c - make dumps: whether looking harms, as often as one likes.
 *
 * A process with eight threads that compute, threads, tasks and interpreters that come and go is
 * looked at so many times, attached and by a frozen copy. Told is how many copies died of what they
 * read, which is allowed, and how many of the dumps were not whole. All has to go on as before:
 * each of those threads gets on after the last dump, and Python ends as ever.
 *
 *     many_dumps 2000        0: only the process, for a minute, to compare
 */
#include <Python.h>

#include <stdatomic.h>
#include <sys/mman.h>

static unsigned copies_made;

static int
create_memory_file(const char *name, unsigned flags)
{
    copies_made++;
    return memfd_create(name, flags);
}

#define memfd_create create_memory_file

#include "../manhole.c"

enum { BARE_S = 60 };

static const char program[] =
    "import asyncio, manhole, sys, threading, time\n"
    "manhole.install(verbose=False)\n"
    "stop, counts, threads = False, {}, []\n"
    "def run(work, name):\n"
    "    number = 0\n"
    "    while not stop:\n"
    "        work(number)\n"
    "        number += 1\n"
    "        counts[name] = number\n"
    "def leaf(n): return n and leaf(n - 1)\n"
    "class Till:\n"
    "    def sell(self, number):\n"
    "        leaf(10 + number % 7)\n"
    "        try: raise ValueError(number)\n"
    "        except ValueError: sum(x for x in range(number % 50))\n"
    "async def child(n):\n"
    "    await asyncio.sleep(n % 5 / 1000)\n"
    "async def parents(number):\n"
    "    await asyncio.gather(*(asyncio.ensure_future(child(n)) for n in range(20)))\n"
    "def tasks(number): asyncio.run(parents(number))\n"
    "def visitor(number):\n"
    "    thread = threading.Thread(target=leaf, args=(50,), name='visitor')\n"
    "    thread.start(); thread.join()\n"
    "try:\n"
    "    import _interpreters as subs\n"
    "    kinds = [dict(config='legacy'), dict(config='isolated')]\n"
    "    create = lambda kind: subs.create(kind['config'])\n"
    "except ImportError:\n"
    "    import _xxsubinterpreters as subs\n"
    "    kinds = [dict(isolated=True), dict(isolated=False)]\n"
    "    create = lambda kind: subs.create(**kind)\n"
    "code = 'def leaf(n): return n and leaf(n - 1)\\nfor i in range(300): leaf(20)'\n"
    "def interpreters(number):\n"
    "    sub = create(kinds[number % 2])\n"
    "    subs.run_string(sub, code)\n"
    "    subs.destroy(sub)\n"
    "    time.sleep(0.01)\n"
    "works = {f'busy-{i}': Till().sell for i in range(8)}\n"
    "works.update(tasks=tasks, visitors=visitor, interpreters=interpreters)\n"
    "for name in works:\n"
    "    threads.append(threading.Thread(target=run, args=(works[name], name), "
    "name=name))\n"
    "    threads[-1].start()\n"
    "def go_on():\n"
    "    before, end = dict(counts), time.monotonic() + 120\n"
    "    while any(counts.get(name, 0) <= before.get(name, 0) for name in works):\n"
    "        assert time.monotonic() < end, (before, counts)\n"
    "        time.sleep(0.01)\n"
    "def end():\n"
    "    global stop\n"
    "    go_on()\n"
    "    stop = True\n"
    "    for thread in threads: thread.join(120); assert not thread.is_alive(), thread\n"
    "    return sorted(counts.items())\n"
    "go_on()\n";

static const char died[] = " copies of the process died";

struct figures {
    unsigned whole;
    unsigned lacking;
    unsigned dead; /* of these, those of which all copies died */
    double longest_ms;
};

static double
now_ms(void)
{
    struct timespec now;
    (void)clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec * 1e3 + (double)now.tv_nsec / 1e6;
}

/* Whether the text is that of a whole dump, with all eight in it. */
static bool
is_whole(struct text *text)
{
    append_bytes(text, "", 1);
    bool whole = !text->failed && strstr(text->bytes, "\n####################") != NULL &&
                 strstr(text->bytes, died) == NULL;
    for (int i = 0; i < 8 && whole; i++) {
        char name[16];
        (void)snprintf(name, sizeof(name), ": busy-%d,", i);
        whole = strstr(text->bytes, name) != NULL;
    }
    return whole;
}

static void
note(struct figures *figures, struct text *text, double began_ms)
{
    const double took_ms = now_ms() - began_ms;
    const bool whole = is_whole(text);
    figures->whole += whole;
    figures->lacking += !whole;
    figures->dead += strstr(text->bytes, died) != NULL;
    if (!whole && figures->lacking == 1) {
        (void)fprintf(stderr, "The first that is not whole:\n%s", text->bytes);
    }
    figures->longest_ms = took_ms > figures->longest_ms ? took_ms : figures->longest_ms;
    free_text(text);
}

/* Runs detached but for the attached look. */
MAY_ATTACH static void
look(long dumps, struct figures *asked, struct figures *copied)
{
    for (long i = 0; i < dumps; i++) {
        struct text text = {0};
        double began_ms = now_ms();
        append_snapshot(&text, &dump_form);
        note(copied, &text, began_ms);

        PyGILState_STATE state = PyGILState_Ensure();
        began_ms = now_ms();
        if (append_stacks(&text, &dump_form) < 0) {
            PyErr_Print();
        }
        PyGILState_Release(state);
        note(asked, &text, began_ms);
    }
}

MAY_ATTACH int
main(int count, char **words)
{
    const long dumps = count == 2 ? strtol(words[1], NULL, 10) : -1;
    struct figures asked = {0};
    struct figures copied = {0};
    if (dumps < 0) {
        (void)fprintf(stderr, "usage: many_dumps NUMBER\n");
        return 2;
    }

    (void)PyImport_AppendInittab("manhole", PyInit_manhole);
    Py_InitializeEx(0);
    if (PyRun_SimpleString(program) != 0) {
        return 1;
    }
    PyThreadState *main_state = PyEval_SaveThread();
    copies_made = 0;
    look(dumps, &asked, &copied);
    if (dumps == 0) {
        (void)sleep(BARE_S);
    }
    PyEval_RestoreThread(main_state);

    printf("%.6s: %ld dumps each way; asked: %u whole, longest %.0f ms; copied: %u "
           "whole, "
           "longest %.0f ms, %u copies, of which %u died\n",
           Py_GetVersion(), dumps, asked.whole, asked.longest_ms, copied.whole,
           copied.longest_ms, copies_made, copies_made - (unsigned)dumps + copied.dead);
    (void)fflush(stdout);
    if (PyRun_SimpleString("print('unharmed:', end())\n") != 0 || Py_FinalizeEx() < 0) {
        return 1;
    }
    return asked.lacking + copied.lacking != 0;
}
