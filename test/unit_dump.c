/* Stack dump: which threads have the same stack, their names, and where source lines come from. The
 * form of the dump is shown in e2e_console.c. */
#include <Python.h>

#include <fcntl.h>
#include <poll.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <string.h>

static atomic_bool is_dead; /* the file system that a file called `dead.py` is on */

static int
open_on_it(const char *path, int flags, mode_t mode)
{
    const char *name = strrchr(path, '/');
    while (name != NULL && strcmp(name, "/dead.py") == 0 && atomic_load(&is_dead)) {
        (void)poll(NULL, 0, 1);
    }
    return open(path, flags, mode);
}

#define FIRST_THREE(one, two, three, ...) one, two, three
#define open(...) open_on_it(FIRST_THREE(__VA_ARGS__, 0, 0))

#include "../manhole.c"

#include "unit.h"

ATTACHED static void
run(const char *program)
{
    assert_int_equal(PyRun_SimpleString(program), 0);
}

/* The dump, for free(). */
ATTACHED static char *
dump(void)
{
    struct text text = {0};
    assert_int_equal(append_stacks(&text, &dump_form), 0);
    assert_null(PyErr_Occurred());
    append_bytes(&text, "", 1);
    return text.bytes;
}

static int
count(const char *text, const char *piece)
{
    int times = 0;
    while ((text = strstr(text, piece)) != NULL) {
        text += strlen(piece);
        times++;
    }
    return times;
}

static void
assert_count(const char *text, const char *piece, int times)
{
    if (count(text, piece) != times) {
        fail_msg("not %d times '%s' in\n%s", times, piece, text);
    }
}

/* Threads called a, b, c that wait at one place, one called d at another; all at rest. */
static const char start_threads[] =
    "import sys, threading, time\n"
    "gate = threading.Lock(); gate.acquire()\n"
    "def park(): gate.acquire(); gate.release()\n"
    "def wait(): gate.acquire(); gate.release()\n"
    "threads = [threading.Thread(target=park, name=name) for name in 'abc']\n"
    "threads.append(threading.Thread(target=wait, name='d'))\n"
    "for thread in threads: thread.daemon = True; thread.start()\n"
    "def tops():\n"
    "    frames = sys._current_frames()\n"
    "    return [frames.get(thread.ident) for thread in threads]\n"
    "def at_rest():\n"
    "    places = [(f.f_code.co_name, f.f_lasti) for f in tops() if f]\n"
    "    return len(set(places[:3])) == 1 and len(places) == 4 and all(\n"
    "        name in ('park', 'wait') for name, place in places)\n"
    "while not at_rest(): time.sleep(0.001)\n";

static const char end_threads[] = "gate.release()\n"
                                  "for thread in threads: thread.join()\n";

/* ---- Groups ---------------------------------------------------------------------------- */

ATTACHED static void
same_stack_is_shown_once_below_all_its_threads(void **state)
{
    char *text = NULL;
    (void)state;
    SKIP_WITHOUT_GIL();
    run(start_threads);
    text = dump();
    assert_count(text, "######### ProcessID=", 4);
    assert_count(text, ", in park\n", 1);
    assert_count(text, ", in wait\n", 1);
    assert_count(text, " threads with the same stack:\n", 1);
    assert_count(text, "3 threads with the same stack:\nFile: \"", 1);
    for (const char *name = "abcd"; *name != '\0'; name++) {
        char line[] = " #########\nThread: ?, TID ";
        *strchr(line, '?') = *name;
        assert_count(text, line, 1);
    }
    free(text);
    run(end_threads);
}

/* Two calls in one line are two positions: the stacks look alike and are not the same. */
static void
stacks_that_only_look_alike_are_not_the_same(void **state)
{
    const struct position_key keys[] = {
        {.code = (PyCodeObject *)1, .instruction = 10},
        {.code = (PyCodeObject *)2, .instruction = 10},
        {.code = (PyCodeObject *)1, .instruction = 12},
        {.code = (PyCodeObject *)1, .instruction = 10},
        {.line = {"one", 3}},
        {.line = {"one, two", 3}},
        {.line = {"two", 3}},
    };
    static const size_t groups[] = {0, 1, 2, 0, 4, 4, 6};
    struct stacks stacks = {.is_frozen = false};
    (void)state;
    for (size_t i = 0; i < Py_ARRAY_LENGTH(keys); i++) {
        struct thread_stack *thread = add_thread(&stacks, i + 1);
        thread->is_shown = true;
        thread->count = 1;
        assert_non_null(add_frame(&stacks, &keys[i]));
    }
    group_threads(&stacks);
    for (size_t i = 0; i < Py_ARRAY_LENGTH(keys); i++) {
        if (stacks.threads[i].group != groups[i]) {
            fail_msg("thread %zu", i);
        }
    }
    for (size_t i = 0; i < stacks.position_count; i++) {
        stacks.positions[i].key.code = NULL; /* none of them is one */
    }
    free_stacks(&stacks);
}

/* ---- Facts and names --------------------------------------------------------------------- */

ATTACHED static PyObject *
py_dump(PyObject *self, PyObject *unused)
{
    char *text = dump();
    PyObject *result = PyUnicode_FromString(text);
    (void)self;
    (void)unused;
    free(text);
    return result;
}

/* Two stacks of one look; returns nothing of them. */
ATTACHED static PyObject *
py_look_twice(PyObject *self, PyObject *unused)
{
    struct stacks stacks = {.is_frozen = false};
    struct text text = {0};
    (void)self;
    (void)unused;
    assert_int_equal(open_stacks(&stacks), 0);
    for (int i = 0; i < 2; i++) {
        assert_int_equal(append_stack_of(&text, &stacks, PyThread_get_thread_ident()), 0);
    }
    close_stacks(&stacks);
    free_text(&text);
    Py_RETURN_NONE;
}

static PyMethodDef dump_method = {"dump", py_dump, METH_NOARGS, NULL};
static PyMethodDef look_twice_method = {"look_twice", py_look_twice, METH_NOARGS, NULL};

ATTACHED static void
give_dump_to_main(void)
{
    PyObject *function = PyCFunction_New(&dump_method, NULL);
    (void)PyDict_SetItemString(PyModule_GetDict(PyImport_AddModule("__main__")), "dump",
                               function);
    Py_DECREF(function);
}

/* Whatever is in threading's dict. */
ATTACHED static void
name_that_cannot_be_had_is_none(void **state)
{
    static const char *const rows[] = {
        "{}",
        "None",
        "{7: None}",
        "{7: type('T', (), {'name': 5})()}",
        "{7: type('T', (), {'name': property(lambda self: 1 / 0)})()}",
        "type('D', (dict,), {'__getitem__': lambda self, key: 1 / 0})()",
    };
    (void)state;
    for (size_t i = 0; i < Py_ARRAY_LENGTH(rows); i++) {
        PyObject *names = PyDict_Copy(PyEval_GetBuiltins());
        PyObject *active = PyRun_String(rows[i], Py_eval_input, names, names);
        struct thread_stack thread = {.ident = 7};
        describe_thread(&thread, active);
        if (thread.name.bytes != NULL || PyErr_Occurred() != NULL) {
            fail_msg("%s", rows[i]);
        }
        Py_DECREF(active);
        Py_DECREF(names);
    }
}

ATTACHED static void
threads_have_no_names_without_threading(void **state)
{
    PyObject *active = NULL;
    (void)state;
    run("import sys; hidden = sys.modules.pop('threading', None)\n");
    active = get_active_threads();
    assert_null(PyErr_Occurred());
    run("if hidden: sys.modules['threading'] = hidden\n");
    assert_null(active);
}

/* Who looks has the GIL, and each other thread has none. */
ATTACHED static void
calling_thread_holds_the_gil(void **state)
{
    (void)state;
    SKIP_WITHOUT_GIL();
    give_dump_to_main();
    run(start_threads);
    run("text = dump()\n"
        "assert text.count(', holds the GIL') == 1, text\n"
        "assert f'MainThread, TID {threading.main_thread().native_id}, ' in text, text\n"
        "assert ', running, holds the GIL\\nFile: ' in text, text\n");
    run(end_threads);
}

/* And no function around it: it is looked for by its own name. */
ATTACHED static void
function_is_shown_with_its_class(void **state)
{
    (void)state;
    SKIP_WITHOUT_GIL();
    give_dump_to_main();
    run("class Till:\n"
        "    def sell(self): return (lambda: dump())()\n"
        "def outer():\n"
        "    class Shop(Till):\n"
        "        def open(self): return self.sell()\n"
        "    def inner(): return Shop().open()\n"
        "    return inner()\n"
        "import sys\n"
        "names = [line.split(', in ')[1] for line in outer().splitlines() if ', in ' in "
        "line]\n"
        "wanted = ['outer', 'inner', 'Shop.open', 'Till.sell', '<lambda>']\n"
        "if sys.version_info < (3, 11):\n"
        "    wanted = [name.split('.')[-1] for name in wanted]\n"
        "assert names[-5:] == wanted, names\n");
}

/* ---- Source ------------------------------------------------------------------------------- */

/* What dump() shows beneath the function that has called it. PREPARATION makes `show(name)`, whose
 * code object has the file name `name`. */
static const char stacked_program[] =
    "import os, sys, zipfile\n"
    "def write(name, source):\n"
    "    with open(name, 'wb') as file: file.write(source)\n"
    "def make(name, lines=1):\n"
    "    names = {'dump': dump}\n"
    "    exec(compile('\\n' * (lines - 1) + 'def show(): return dump()', name, 'exec'), "
    "names)\n"
    "    return names['show']\n"
    "def shown(show):\n"
    "    below = show().split(', in show\\n', 1)[1]\n"
    "    return below.split('\\n')[0] if below.startswith('  ') else None\n";

/* Where the lines of a file come from. */
static const struct {
    const char *name;
    const char *program; /* ends with the expression that must be so */
} sources_of_lines[] = {
    {"UTF-8", "write('a.py', b'# one\\n \\t caf\\xc3\\xa9 \\r\\n')\n"
              "assert shown(make(os.path.abspath('a.py'), 2)) == '  caf\\xe9'\n"},
    {"a mark before it", "write('a.py', b'\\xef\\xbb\\xbfone\\n')\n"
                         "assert shown(make(os.path.abspath('a.py'))) == '  one'\n"},
    {"another encoding",
     "write('a.py', b'#!/bin/python\\n# vim: set fileencoding=latin-1 :\\ncaf\\xe9\\n')\n"
     "assert shown(make(os.path.abspath('a.py'), 3)) == '  caf\\xe9'\n"},
    {"lines that end with CR",
     "write('a.py', b'one\\rtwo\\rthree\\n')\n"
     "assert shown(make(os.path.abspath('a.py'), 2)) == '  two'\n"},
    {"a file that has changed", "write('a.py', b'before\\n')\n"
                                "show = make(os.path.abspath('a.py'))\n"
                                "assert shown(show) == '  before'\n"
                                "write('a.py', b'after\\n')\n"
                                "assert shown(show) == '  after'\n"},
    {"two files in another encoding",
     "write('a.py', b'# coding: latin-1\\n\\xe9\\n')\n"
     "write('b.py', b'# coding: latin-1\\n\\n\\xe8\\n')\n"
     "inner, outer = make(os.path.abspath('a.py'), 2), make(os.path.abspath('b.py'), 3)\n"
     "outer.__globals__['dump'] = inner\n"
     "assert shown(outer) == '  \\xe8'\n"
     "assert outer().split(', in show\\n')[2].split('\\n')[0] == '  \\xe9'\n"
     "os.unlink('b.py')\n"},
    {"linecache, which has less of it",
     "import linecache\n"
     "getlines, linecache.getlines = linecache.getlines, lambda name: []\n"
     "write('a.py', b'one\\rtwo\\n')\n"
     "assert shown(make(os.path.abspath('a.py'))) is None\n"
     "linecache.getlines = getlines\n"},
    {"no file", "assert shown(make('/nonexistent/a.py')) is None\n"},
    {"a FIFO, which nobody writes",
     "os.unlink('a.py'); os.mkfifo('a.py')\n"
     "assert shown(make(os.path.abspath('a.py'))) is None\n"
     "os.unlink('a.py')\n"},
    {"a line that is not there",
     "write('a.py', b'one\\n')\n"
     "assert shown(make(os.path.abspath('a.py'), 3)) is None\n"},
    {"an empty line", "write('a.py', b' \\n')\n"
                      "assert shown(make(os.path.abspath('a.py'))) is None\n"},
    {"linecache, of no file",
     "import linecache\n"
     "linecache.cache['<made>'] = 4, None, ['made\\n'], '<made>'\n"
     "assert shown(make('<made>')) == '  made'\n"
     "del linecache.cache['<made>']\n"
     "assert shown(make('<made>')) is None\n"},
    {"linecache, two lines of no file",
     "linecache.cache['<made>'] = 4, None, ['one\\n', 'two\\n'], '<made>'\n"
     "inner, outer = make('<made>'), make('<made>', 2)\n"
     "outer.__globals__['dump'] = inner\n"
     "assert shown(outer) == '  two'\n"
     "assert outer().split(', in show\\n')[2].split('\\n')[0] == '  one'\n"
     "del linecache.cache['<made>']\n"},
    {"a name relative to sys.path", "os.mkdir('folder')\n"
                                    "write('folder/rel.py', b'along the path\\n')\n"
                                    "sys.path.append(os.path.abspath('folder'))\n"
                                    "assert shown(make('rel.py')) == '  along the path'\n"
                                    "sys.path.pop()\n"
                                    "os.unlink('folder/rel.py'); os.rmdir('folder')\n"},
    {"a zip file",
     "with zipfile.ZipFile('a.py', 'w') as file:\n"
     "    file.writestr('zipped.py', 'def show(): return dump()  # zip\\n')\n"
     "sys.path.insert(0, os.path.abspath('a.py'))\n"
     "import zipped\n"
     "zipped.dump = dump\n"
     "assert shown(zipped.show) == '  def show(): return dump()  # zip'\n"
     "del sys.path[0], sys.modules['zipped']\n"},
    {"a template",
     "write('a.py', b'one\\n')\n"
     "names = {'dump': dump, '__file__': os.__file__, '__loader__': os.__loader__,\n"
     "         '__name__': 'os'}\n"
     "exec(compile('def show(): return dump()', '/none/t.html', 'exec'), names)\n"
     "assert shown(names['show']) is None\n"},
};

ATTACHED static void
line_is_found_wherever_it_is(void **state)
{
    (void)state;
    SKIP_WITHOUT_GIL();
    give_dump_to_main();
    run(stacked_program);
    for (size_t i = 0; i < Py_ARRAY_LENGTH(sources_of_lines); i++) {
        if (PyRun_SimpleString(sources_of_lines[i].program) != 0) {
            fail_msg("%s", sources_of_lines[i].name);
        }
    }
    run("os.unlink('a.py')");
}

ATTACHED static void
line_in_utf8_is_found_without_any_module(void **state)
{
    (void)state;
    SKIP_WITHOUT_GIL();
    give_dump_to_main();
    run(stacked_program);
    run("write('a.py', b'one\\n')\n"
        "show = make(os.path.abspath('a.py'))\n"
        "kept = {name: sys.modules.pop(name, None) for name in ('linecache', "
        "'tokenize')}\n"
        "assert shown(show) == '  one'\n"
        "assert not kept.keys() & sys.modules.keys()\n"
        "sys.modules.update((name, kept[name]) for name in kept if kept[name])\n"
        "os.unlink('a.py')\n");
}

/* Nor does linecache, whose os.stat() would not return. A stuck reader is the only one. */
ATTACHED static void
dead_file_system_keeps_no_client_from_its_dump(void **state)
{
    (void)state;
    SKIP_WITHOUT_GIL();
    give_dump_to_main();
    run(stacked_program);
    run("import linecache; linecache.checkcache = linecache.getlines = None\n"
        "write('dead.py', b'one\\n')\n"
        "show = make(os.path.abspath('dead.py'))\n"
        "assert shown(show) == '  one'\n");
    atomic_store(&is_dead, true);
    run("text = show()\n"
        "below = text.split(', in show\\n', 1)[1]\n"
        "assert below.startswith('Without lines, for a file system does not answer: '), "
        "text\n"
        "assert '/dead.py\\n####' in below, text\n"
        "before = set(os.listdir('/proc/self/task'))\n"
        "assert ', in show\\nWithout lines' in show()\n"
        "assert set(os.listdir('/proc/self/task')) == before\n");
    atomic_store(&is_dead, false);
    run("while set(os.listdir('/proc/self/task')) == before: pass\n" /* the reader */
        "assert shown(show) == '  one'\n"
        "os.unlink('dead.py'); import importlib; importlib.reload(linecache)\n");
}

/* A process that was started with a file knows nothing of what was put in its place. */
ATTACHED static void
file_that_is_newer_than_the_process_is_told(void **state)
{
    (void)state;
    SKIP_WITHOUT_GIL();
    give_dump_to_main();
    note_process_start();
    run(stacked_program);
    run("import time\n"
        "write('new.py', b'one\\n')\n"
        "show = make(os.path.abspath('new.py'))\n"
        "os.utime('new.py', (time.time() - 100,) * 2)\n"
        "assert 'Newer' not in show(), show()\n"
        "os.utime('new.py', (time.time() + 100,) * 2)\n"
        "assert shown(show) == '  one'\n"
        "line = 'Newer than the process, so their lines may not be what runs: '\n"
        "assert show().count(f'\\n{line}{os.path.abspath(\"new.py\")}\\n####') == 1\n"
        "os.unlink('new.py')\n");
}

/* A program may put there what it likes: a frame's line is one line. */
ATTACHED static void
line_of_linecache_ends_with_its_newline(void **state)
{
    struct source source = {.path = NULL};
    PyObject *lines = Py_BuildValue("[sss]", "one\n", "two\ntoo\n", "three");
    (void)state;
    for (long number = 1; number <= 4; number++) {
        want_line(&source, number);
    }
    take_lines(&source, lines);
    for (size_t i = 0; i < 3; i++) {
        static const char *const wanted[] = {"one", "two", "three"};
        const struct slice line = source_line(&source, (long)i + 1);
        assert_int_equal(line.length, strlen(wanted[i]));
        assert_memory_equal(line.bytes, wanted[i], line.length);
    }
    assert_int_equal(source_line(&source, 4).length, 0);
    forget_lines(&source);
    free(source.lines);
    Py_DECREF(lines);
}

/* Applications replace linecache's functions; some fail. */
ATTACHED static void
linecache_may_do_what_it_likes(void **state)
{
    static const char *const programs[] = {
        "linecache.getlines = lambda *a: 1 / 0",
        "linecache.getlines = lambda *a: None",
        "linecache.getlines = lambda *a: [None]",
        "linecache.checkcache = linecache.lazycache = lambda *a: 1 / 0",
        "del linecache.getlines, linecache.lazycache",
    };
    (void)state;
    SKIP_WITHOUT_GIL();
    give_dump_to_main();
    run(stacked_program);
    run("import linecache; kept = vars(linecache).copy()\n");
    for (size_t i = 0; i < Py_ARRAY_LENGTH(programs); i++) {
        run(programs[i]);
        run("assert shown(make('/nonexistent/a.py')) is None\n");
        run("vars(linecache).update(kept)\n");
    }
    run("asked = []\n"
        "linecache.getlines = lambda name: asked.append(name) or ['asked\\n']\n"
        "assert shown(make('/nonexistent/a.py')) == '  asked'\n"
        "assert '/nonexistent/a.py' in asked\n"
        "vars(linecache).update(kept)\n");
}

ATTACHED static void
linecache_is_asked_once_a_look(void **state)
{
    PyObject *function = NULL;
    (void)state;
    SKIP_WITHOUT_GIL();
    give_dump_to_main();
    run(stacked_program);
    function = PyCFunction_New(&look_twice_method, NULL);
    assert_int_equal(
        PyObject_SetAttrString(PyImport_AddModule("__main__"), "look_twice", function),
        0);
    Py_DECREF(function);
    run("import linecache\n"
        "asked = []\n"
        "getlines = linecache.getlines\n"
        "linecache.getlines = lambda name: asked.append(name) or []\n"
        "show = make('/nonexistent/a.py')\n"
        "show.__globals__['dump'] = look_twice\n"
        "show()\n"
        "linecache.getlines = getlines\n"
        "assert asked.count('/nonexistent/a.py') == 1, asked\n");
}

/* ---- All of it ---------------------------------------------------------------------------- */

ATTACHED static void
every_frame_of_a_deep_stack_is_shown(void **state)
{
    (void)state;
    SKIP_WITHOUT_GIL();
    give_dump_to_main();
    run("def deep(n): return dump() if n == 0 else deep(n - 1)\n"
        "text = deep(800)\n"
        "assert text.count('in deep\\n') == 801, text\n"
        "assert text.index('in <module>') < text.index('in deep')\n");
}

ATTACHED static void
interpreter_without_current_frames_is_an_error(void **state)
{
    struct text text = {0};
    (void)state;
    SKIP_WITHOUT_GIL();
    run("import sys; kept = sys._current_frames; del sys._current_frames\n");
    assert_int_equal(append_stacks(&text, &dump_form), -1);
    assert_true(PyErr_ExceptionMatches(PyExc_RuntimeError));
    PyErr_Clear();
    free_text(&text);
    run("sys._current_frames = kept\n");
}

ATTACHED static void
dump_leaves_the_collector_and_all_references_as_they_were(void **state)
{
    (void)state;
    SKIP_WITHOUT_GIL();
    run(start_threads);
    run("import gc; gc.disable(); gc.collect()\n"
        "def counts(): return [sys.getrefcount(f.__code__) for f in (park, wait)]\n"
        "before = counts()\n");
    for (int i = 0; i < 10; i++) {
        free(dump());
    }
    run("gc.collect(); assert counts() == before and not gc.isenabled()\n"
        "gc.enable()\n");
    free(dump());
    run("assert gc.isenabled()\n");
    run(end_threads);
}

int
main(void)
{
    static const struct CMUnitTest tests[] = {
        cmocka_unit_test(same_stack_is_shown_once_below_all_its_threads),
        cmocka_unit_test(stacks_that_only_look_alike_are_not_the_same),
        cmocka_unit_test(name_that_cannot_be_had_is_none),
        cmocka_unit_test(threads_have_no_names_without_threading),
        cmocka_unit_test(calling_thread_holds_the_gil),
        cmocka_unit_test(function_is_shown_with_its_class),
        cmocka_unit_test(line_is_found_wherever_it_is),
        cmocka_unit_test(line_in_utf8_is_found_without_any_module),
        cmocka_unit_test(dead_file_system_keeps_no_client_from_its_dump),
        cmocka_unit_test(file_that_is_newer_than_the_process_is_told),
        cmocka_unit_test(line_of_linecache_ends_with_its_newline),
        cmocka_unit_test(linecache_may_do_what_it_likes),
        cmocka_unit_test(linecache_is_asked_once_a_look),
        cmocka_unit_test(every_frame_of_a_deep_stack_is_shown),
        cmocka_unit_test(interpreter_without_current_frames_is_an_error),
        cmocka_unit_test(dump_leaves_the_collector_and_all_references_as_they_were),
    };
    int failed = 0;
    Py_InitializeEx(0);
    failed = RUN_UNIT_TESTS(tests);
    return Py_FinalizeEx() < 0 || failed;
}
