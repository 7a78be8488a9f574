/* Memory: each allocation in turn fails, Python's and our own. What is asked for is then done, or
 * is refused with an exception and leaves nothing; nothing crashes. (Not where CPython itself does:
 * the compiler, and on 3.13 the making of types and functions.) unit_calls.c is the same with
 * calls. */
#include <Python.h>

#include <stdbool.h>
#include <stdint.h>
#include <string.h>

#ifndef OF_CALLS
#  define OF_CALLS false
#endif

/* What allocations pass through, or, OF_CALLS, our calls of Python. */
static struct gate {
    int64_t allowed; /* how many succeed before one fails */
    bool shut;       /* that one, and all after it */
    bool refused;    /* one has failed */
} gate = {.allowed = INT64_MAX};

static void
open_gate(void)
{
    gate.allowed = INT64_MAX;
    gate.shut = false;
    gate.refused = false;
}

static bool
is_refused(void)
{
    bool refused = gate.allowed == 0 || (gate.shut && gate.refused);
    gate.allowed -= gate.allowed >= 0;
    gate.refused = gate.refused || refused;
    return refused;
}

/* ---- Python's allocators, with the gate before them ------------------------------------ */

static PyMemAllocatorEx originals[2]; /* by domain */

static void *
python_malloc(void *original, size_t size)
{
    const PyMemAllocatorEx *allocator = original;
    bool refused = !OF_CALLS && is_refused();
    return refused ? NULL : allocator->malloc(allocator->ctx, size);
}

static void *
python_calloc(void *original, size_t count, size_t size)
{
    const PyMemAllocatorEx *allocator = original;
    bool refused = !OF_CALLS && is_refused();
    return refused ? NULL : allocator->calloc(allocator->ctx, count, size);
}

static void *
python_realloc(void *original, void *memory, size_t size)
{
    const PyMemAllocatorEx *allocator = original;
    bool refused = !OF_CALLS && is_refused();
    return refused ? NULL : allocator->realloc(allocator->ctx, memory, size);
}

static void
python_free(void *original, void *memory)
{
    const PyMemAllocatorEx *allocator = original;
    allocator->free(allocator->ctx, memory);
}

static void
set_allocators(void)
{
    static const PyMemAllocatorDomain domains[] = {PYMEM_DOMAIN_MEM, PYMEM_DOMAIN_OBJ};
    for (size_t i = 0; i < Py_ARRAY_LENGTH(domains); i++) {
        PyMemAllocatorEx ours = {&originals[i], python_malloc, python_calloc,
                                 python_realloc, python_free};
        PyMem_GetAllocator(domains[i], &originals[i]);
        PyMem_SetAllocator(domains[i], &ours);
    }
}

/* ---- manhole.c's own calls, as make faults has them -------------------------------------- */

#define FAULTS_PYTHON
#include "faults/faults.h"

int
fault_at(const struct fault_site *site)
{
    static const char *const ours[] = {"calloc", "malloc", "realloc", "strdup"};
    const char *name = site->function + (site->function[0] == '_');
    bool counts = OF_CALLS && strncmp(name, "Py", 2) == 0;
    for (size_t i = 0; i < Py_ARRAY_LENGTH(ours); i++) {
        counts = counts || strcmp(name, ours[i]) == 0;
    }
    return counts && is_refused() ? ENOMEM : 0;
}

int
fault_of_bytes(const struct fault_site *site, int fd)
{
    (void)site;
    (void)fd;
    return 0;
}

#pragma GCC diagnostic ignored "-Wshadow" /* one call may be another's argument */
#include "../manhole.c"

#include "unit.h"

/* ---- What is tried ------------------------------------------------------------------------ */

static PyObject *module;   /* manhole */
static PyObject *program;  /* __main__, borrowed */
static PyObject *keywords; /* for install() */

/* Each returns 0, or -1 with an exception; undoes what it has done. */

ATTACHED static int
try_options(void)
{
    PyObject *empty = PyTuple_New(0);
    struct options options = default_options();
    int result =
        empty == NULL ? -1 : parse_options(&options, empty, keywords, PyExc_RuntimeError);
    drop_options(&options);
    Py_XDECREF(empty);
    return result;
}

ATTACHED static int
try_wrong_option(void)
{
    PyObject *nonsense = PyUnicode_FromString("nonsense");
    if (nonsense != NULL) {
        raise_unknown_option(nonsense);
    }
    Py_XDECREF(nonsense);
    if (PyErr_ExceptionMatches(PyExc_TypeError)) {
        PyErr_Clear();
        return 0;
    }
    return -1;
}

ATTACHED static void
release_with_memory(void)
{
    const struct gate before = gate;
    PyObject *exception = NULL;
    open_gate();
    exception = take_exception();
    release();
    if (exception != NULL) {
        PyErr_SetObject((PyObject *)Py_TYPE(exception), exception);
        Py_DECREF(exception);
    }
    gate = before;
}

ATTACHED static int
try_install(void)
{
    SKIP_UNDER_THREAD_SANITIZER();
    PyObject *empty = PyTuple_New(0);
    PyObject *result = empty == NULL ? NULL : install(module, empty, keywords);
    int installed = result == NULL ? -1 : 0;
    release_with_memory();
    Py_XDECREF(result);
    Py_XDECREF(empty);
    return installed;
}

ATTACHED static int
try_dump(void)
{
    struct text text = {0};
    int result = append_stacks(&text, &dump_form);
    free_text(&text);
    return result;
}

/* As from a frozen copy. */
ATTACHED static int
try_copied_threads(void)
{
    static const char whole[] = "Thread 0x1 (most recent call first):\n"
                                "  File \"" __FILE__ "\", line 1 in f\n"
                                "  File \"caf\\xe9\", line 2 in g\n"
                                "@@\n"
                                "@ 1 1 1 MainThread\n";
    struct stacks copied = {.is_frozen = true};
    struct text text = {0};
    PyThreadState *tstate = detach();
    append_bytes(&copied.copy, whole, sizeof(whole));
    if (!copied.copy.failed) {
        read_copy(&copied);
        (void)end_reading(&copied.sources, begin_reading(&copied.sources));
        append_dump(&text, &copied);
    }
    reattach(tstate);
    if (text.failed || copied.failed || copied.copy.failed) {
        PyErr_NoMemory();
    }
    free_stacks(&copied);
    free_text(&text);
    return PyErr_Occurred() == NULL ? 0 : -1;
}

/* What wraps an application's functions are functions, made when they are needed. */
#if PY_VERSION_HEX >= 0x030c0000 && !OF_CALLS
#  define SKIP_WITH_FRAGILE_FUNCTIONS()                                                  \
    SKIP_UNIT_TEST("CPython from 3.12 on dies when there is no memory for a function")
#else
#  define SKIP_WITH_FRAGILE_FUNCTIONS() ((void)0)
#endif

/* Removes the probe that may be there, with all memory: the function is the one before then. Keeps
 * the exception that is set. */
ATTACHED static void
assert_unprobed(PyObject *before)
{
    const struct gate shut = gate;
    PyObject *exception = NULL;
    PyObject *nothing = NULL;
    open_gate();
    nothing = PyTuple_New(0);
    exception = PyErr_Occurred() == NULL ? NULL : take_exception();
    Py_XDECREF(py_unprobe(module, nothing));
    assert_null(PyErr_Occurred());
    assert_ptr_equal(PyDict_GetItemString(PyModule_GetDict(program), "fail"), before);
    if (exception != NULL) {
        put_back_exception(exception);
    }
    Py_XDECREF(nothing);
    gate = shut;
}

/* On a function that fails. */
ATTACHED static int
try_probe(void)
{
    SKIP_WITH_FRAGILE_FUNCTIONS();
    PyObject *before = PyObject_GetAttrString(program, "fail");
    PyObject *name = before == NULL ? NULL : PyUnicode_FromString("__main__:fail");
    PyObject *probe = name == NULL ? NULL : py_probe(module, name);
    PyObject *probed = probe == NULL ? NULL : PyObject_GetAttrString(program, "fail");
    PyObject *exception = NULL;
    if (probed != NULL && PyObject_CallOneArg(probed, Py_None) == NULL &&
        PyErr_ExceptionMatches(PyExc_TypeError)) {
        PyErr_Clear();
        exception = PyObject_GetAttrString(probe, "exception");
    }
    if (before != NULL) {
        assert_unprobed(before);
    }
    Py_XDECREF(before);
    Py_XDECREF(name);
    Py_XDECREF(probe);
    Py_XDECREF(probed);
    Py_XDECREF(exception);
    if (PyErr_Occurred() != NULL && PyErr_ExceptionMatches(PyExc_SystemError)) {
        /* CPython 3.11 loses an exception when there is no memory for a frame that it passes. */
        (void)PyErr_NoMemory();
    }
    return PyErr_Occurred() == NULL ? 0 : -1;
}

/* With all memory, and without the frames of the exception that is set, which is kept. */
ATTACHED static void
assert_none_in_flight(void)
{
    const struct gate shut = gate;
    PyObject *exception = NULL;
    PyObject *requests = NULL;
    open_gate();
    exception = PyErr_Occurred() == NULL ? NULL : take_exception();
    if (exception != NULL) {
        (void)PyException_SetTraceback(exception, Py_None);
        PyException_SetContext(exception, NULL);
    }
    requests = get_requests(module);
    assert_non_null(requests);
    assert_int_equal(PyList_GET_SIZE(requests), 0);
    Py_DECREF(requests);
    if (exception != NULL) {
        put_back_exception(exception);
    }
    gate = shut;
}

/* The application, slice(), makes a response of its environ: a server would complain. */
ATTACHED static int
try_request(void)
{
    SKIP_WITH_FRAGILE_FUNCTIONS();
    PyObject *wsgi = PyObject_CallMethod(module, "wsgi", "O", (PyObject *)&PySlice_Type);
    PyObject *given = wsgi == NULL ? NULL : Py_BuildValue("{ss}", "PATH_INFO", "/");
    PyObject *response =
        given == NULL ? NULL : PyObject_CallFunction(wsgi, "OO", given, Py_None);
    PyObject *requests = response == NULL ? NULL : get_requests(module);
    PyObject *shown = requests == NULL ? NULL : PyObject_Repr(requests);
    Py_XDECREF(wsgi);
    Py_XDECREF(given);
    Py_XDECREF(response);
    Py_XDECREF(requests);
    Py_XDECREF(shown);
    assert_none_in_flight();
    return PyErr_Occurred() == NULL ? 0 : -1;
}

#if OF_CALLS /* CPython imports and compiles then */
/* C is no configuration. */
ATTACHED static int
try_config(void)
{
    PyObject *path = PyUnicode_FromString(__FILE__);
    PyObject *given = path == NULL ? NULL : PySet_New(NULL);
    PyObject *said =
        given == NULL ? NULL : call_part(module, &config_part, "read", path, given);
    Py_XDECREF(path);
    Py_XDECREF(given);
    assert_null(said);
    if (PyErr_ExceptionMatches(PyExc_ValueError)) {
        PyErr_Clear();
        return 0;
    }
    return -1;
}

ATTACHED static int
try_live_names(void)
{
    PyObject *before = manhole.module;
    PyObject *names = NULL;
    manhole.module = module; /* borrowed, for as long as this */
    names = make_names(PyModule_GetDict(module), true);
    manhole.module = before;
    Py_XDECREF(names);
    return names == NULL ? -1 : 0;
}
#endif

/* Fails the n-th allocation or call, for every n, until there is no n-th. */
ATTACHED static void
try_with_little_memory(int (*try)(void), bool shut)
{
    bool enough = false;
    assert_int_equal(try(), 0); /* imports, caches, a sanitizer's own thread */
    const size_t tasks = count_entries("/proc/self/task");
    for (int64_t n = 0; !enough; n++) {
        int result = 0;
        gate = (struct gate){.allowed = n, .shut = shut};
        result = try();
        enough = !gate.refused;
        open_gate();
        if ((result < 0) != (PyErr_Occurred() != NULL) || (enough && result < 0) ||
            (result < 0 && PyErr_ExceptionMatches(PyExc_SystemError))) {
            PyErr_Print();
            fail_msg("%s %d: %d", OF_CALLS ? "call" : "allocation", (int)n, result);
        }
        PyErr_Clear();
        assert_false(manhole.installed);
        assert_entries_fall_to("/proc/self/task", tasks);
    }
}

#define TRIAL(name, what)                                                                \
  ATTACHED static void name(void **state)                                                \
  {                                                                                      \
    (void)state;                                                                         \
    try_with_little_memory((what), false);                                               \
    try_with_little_memory((what), true);                                                \
  }

TRIAL(options_are_parsed_or_refused, try_options)
TRIAL(unknown_option_is_named_or_memory_lacks, try_wrong_option)
TRIAL(manhole_is_installed_or_nothing, try_install)
TRIAL(stacks_are_dumped_or_refused, try_dump)
TRIAL(text_of_a_copy_is_told_or_refused, try_copied_threads)
TRIAL(probe_keeps_an_exception_or_says_why_not, try_probe)
TRIAL(request_is_listed_or_refused, try_request)
#if OF_CALLS
TRIAL(file_is_refused_or_memory_lacks, try_config)
TRIAL(names_are_live_or_memory_lacks, try_live_names)
#endif

CHECKED(no_thread_safety_analysis)
int
main(void)
{
    static const struct CMUnitTest tests[] = {
        cmocka_unit_test(options_are_parsed_or_refused),
        cmocka_unit_test(unknown_option_is_named_or_memory_lacks),
        cmocka_unit_test(manhole_is_installed_or_nothing),
        cmocka_unit_test(stacks_are_dumped_or_refused),
        cmocka_unit_test(text_of_a_copy_is_told_or_refused),
        cmocka_unit_test(probe_keeps_an_exception_or_says_why_not),
        cmocka_unit_test(request_is_listed_or_refused),
#if OF_CALLS
        cmocka_unit_test(file_is_refused_or_memory_lacks),
        cmocka_unit_test(names_are_live_or_memory_lacks),
#endif
    };
    int failed = 0;
    set_allocators();
    Py_InitializeEx(0);
    /* 3.13 tells of each error that a function of its own hides. */
    (void)PyRun_SimpleString("import sys; sys.unraisablehook = lambda hidden: None");
    (void)PyRun_SimpleString("def fail(n): raise TypeError(n)");
    program = PyImport_AddModule("__main__");
    module = make_module();
    keywords = Py_BuildValue("{sOsOsssssdsis(is)}", "verbose", Py_False, "locals",
                             PyModule_GetDict(module), "socket_path", "/tmp/mh-%(pid)s",
                             "activate_on", "USR1", "hang_timeout", 1.5, "max_sessions",
                             7, "sigmask", 12, "HUP");
    failed = RUN_UNIT_TESTS(tests);
    Py_XDECREF(keywords);
    Py_XDECREF(module);
    return Py_FinalizeEx() < 0 || failed;
}
