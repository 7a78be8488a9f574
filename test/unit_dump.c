/* Stack dump: which threads have the same stack, their names, and where source lines come from. The
 * form of the dump is shown in e2e_console.c. */
#include "../manhole.c" /* NOLINT(bugprone-suspicious-include): its statics */

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
    assert_int_equal(append_look(&text, &dump_form), 0);
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
same_stack_is_shown_once_with_all_its_threads(void **state)
{
    static const char title[] = " #########\n3 threads with the same stack: ";
    char *text = NULL;
    const char *names = NULL; /* "a, b, c" in some order */
    (void)state;
    run(start_threads);
    text = dump();
    assert_count(text, "######### ProcessID=", 4);
    assert_count(text, ", in park\n", 1);
    assert_count(text, ", in wait\n", 1);
    assert_count(text, " threads with the same stack: ", 1);
    assert_count(text, title, 1);
    names = strstr(text, title) + strlen(title);
    assert_memory_equal(names + strlen("a, b, c"), "\nFile: \"", 8);
    for (const char *name = "abc"; *name != '\0'; name++) {
        assert_non_null(memchr(names, *name, strlen("a, b, c")));
    }
    free(text);
    run(end_threads);
}

/* Two calls in one line are two places: the stacks look alike and are not the same. */
static void
same_hash_is_not_the_same_stack(void **state)
{
    struct frame_record frames[] = {
        {.code = (PyCodeObject *)1, .instruction = 10},
        {.code = (PyCodeObject *)2, .instruction = 10},
        {.code = (PyCodeObject *)1, .instruction = 12},
        {.code = (PyCodeObject *)1, .instruction = 10},
    };
    struct look look = {.frames = frames, .frame_count = 4};
    const struct thread_record threads[] = {
        {.first = 0, .count = 1}, {.first = 1, .count = 1},
        {.first = 2, .count = 1}, {.first = 3, .count = 1},
        {.first = 3, .count = 0}, {.first = 3, .count = 1, .hash = 1},
    };
    static const bool same[] = {true, false, false, true, false, false};
    (void)state;
    for (size_t i = 0; i < Py_ARRAY_LENGTH(threads); i++) {
        if (is_same_stack(&look, &threads[0], &threads[i]) != same[i]) {
            fail_msg("thread %zu", i);
        }
    }
}

/* ---- Names ------------------------------------------------------------------------------ */

/* Whatever is in threading's dict. */
ATTACHED static void
name_that_cannot_be_had_is_a_question_mark(void **state)
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
        struct text text = {0};
        append_thread_name(&text, active, 7);
        if (text.length != 1 || text.bytes[0] != '?' || PyErr_Occurred() != NULL) {
            fail_msg("%s", rows[i]);
        }
        free_text(&text);
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

/* ---- Source ------------------------------------------------------------------------------- */

static const struct {
    int number;
    const char *text;
} source_lines[] = {
    {1, "one"}, {2, "two"}, {3, NULL},  {4, NULL}, {5, "caf\xc3\xa9"},
    {6, NULL},  {0, NULL},  {-1, NULL}, {7, NULL}, {INT_MAX, NULL},
};

ATTACHED static void
source_line_is_shown_without_blanks_around_it(void **state)
{
    PyObject *names = PyDict_Copy(PyEval_GetBuiltins());
    PyObject *lines =
        PyRun_String("['one\\n', '\\t two \\r\\n', ' \\n', '', 'caf\\xe9', 6]",
                     Py_eval_input, names, names);
    (void)state;
    for (size_t i = 0; i < Py_ARRAY_LENGTH(source_lines); i++) {
        PyObject *line = strip_line(lines, source_lines[i].number);
        assert_null(PyErr_Occurred());
        if (source_lines[i].text == NULL) {
            assert_null(line);
        }
        else {
            assert_non_null(line);
            assert_string_equal(PyUnicode_AsUTF8(line), source_lines[i].text);
        }
        Py_XDECREF(line);
    }
    Py_DECREF(lines);
    Py_DECREF(names);
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
    run("import linecache; kept = vars(linecache).copy()\n");
    for (size_t i = 0; i < Py_ARRAY_LENGTH(programs); i++) {
        char *text = NULL;
        run(programs[i]);
        run(start_threads);
        text = dump();
        assert_count(text, ", in park\n", 1);
        free(text);
        run(end_threads);
        run("vars(linecache).update(kept)\n");
    }
}

/* ---- All of it ---------------------------------------------------------------------------- */

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

static PyMethodDef dump_method = {"dump", py_dump, METH_NOARGS, NULL};

ATTACHED static void
every_frame_of_a_deep_stack_is_shown(void **state)
{
    PyObject *function = PyCFunction_New(&dump_method, NULL);
    (void)state;
    (void)PyDict_SetItemString(PyModule_GetDict(PyImport_AddModule("__main__")), "dump",
                               function);
    run("def deep(n): return dump() if n == 0 else deep(n - 1)\n"
        "text = deep(800)\n"
        "assert text.count('in deep\\n') == 801, text\n"
        "assert text.index('in <module>') < text.index('in deep')\n");
    Py_DECREF(function);
}

ATTACHED static void
interpreter_without_current_frames_is_an_error(void **state)
{
    struct text text = {0};
    (void)state;
    run("import sys; kept = sys._current_frames; del sys._current_frames\n");
    assert_int_equal(append_look(&text, &dump_form), -1);
    assert_true(PyErr_ExceptionMatches(PyExc_RuntimeError));
    PyErr_Clear();
    free_text(&text);
    run("sys._current_frames = kept\n");
}

ATTACHED static void
dump_leaves_the_collector_and_all_references_as_they_were(void **state)
{
    (void)state;
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
        cmocka_unit_test(same_stack_is_shown_once_with_all_its_threads),
        cmocka_unit_test(same_hash_is_not_the_same_stack),
        cmocka_unit_test(name_that_cannot_be_had_is_a_question_mark),
        cmocka_unit_test(threads_have_no_names_without_threading),
        cmocka_unit_test(source_line_is_shown_without_blanks_around_it),
        cmocka_unit_test(linecache_may_do_what_it_likes),
        cmocka_unit_test(every_frame_of_a_deep_stack_is_shown),
        cmocka_unit_test(interpreter_without_current_frames_is_an_error),
        cmocka_unit_test(dump_leaves_the_collector_and_all_references_as_they_were),
    };
    int failed = 0;
    Py_InitializeEx(0);
    failed = RUN_UNIT_TESTS(tests);
    return Py_FinalizeEx() < 0 || failed;
}
