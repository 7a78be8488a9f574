/* Interrupts: what is left of them in the interpreter. CPython before 3.13 has one flag for all
 * threads, which says that one of them is to raise an exception: it slows each of them down, and on
 * 3.11 stops those that are traced. Only CPython's own headers tell how it stands. */
#include <patchlevel.h>
#if PY_VERSION_HEX < 0x030d0000
#  define Py_BUILD_CORE 1
#endif
#include "../manhole.c"

#if PY_VERSION_HEX < 0x030d0000
#  include <internal/pycore_interp.h>
#endif

#include "unit.h"

static int
begin_python(void **state)
{
    (void)state;
    Py_Initialize();
    return 0;
}

static int
end_python(void **state)
{
    (void)state;
    return Py_FinalizeEx();
}

#define WITH_PYTHON(test) cmocka_unit_test_setup_teardown(test, begin_python, end_python)

static void
assert_nobody_looks_for_interrupts(void)
{
#if PY_VERSION_HEX < 0x030d0000
    assert_int_equal(PyInterpreterState_Get()->ceval.pending.async_exc, 0);
#endif
}

/* Whether the calling thread raises what it has been interrupted with. */
static bool
is_interrupted(void)
{
    bool interrupted = PyRun_SimpleString("try: (lambda: 0)()\n"
                                          "except KeyboardInterrupt: found = True\n"
                                          "else: found = False\n") < 0;
    PyObject *names = PyModule_GetDict(PyImport_AddModule("__main__"));
    return interrupted || PyDict_GetItemString(names, "found") == Py_True;
}

static struct session *
new_session(void)
{
    static struct session session;
    session = (struct session){0};
    atomic_store(&session.run.ident, PyThread_get_thread_ident());
    return &session;
}

ATTACHED static void
statement_leaves_nobody_looking_for_interrupts(void **state)
{
    struct session *session = new_session();
    (void)state;
    begin_running(session);
    end_running(session);
    assert_nobody_looks_for_interrupts();
}

ATTACHED static void
interrupt_too_late_is_taken_back(void **state)
{
    struct session *session = new_session();
    (void)state;
    begin_running(session);
    strike(session, PyExc_KeyboardInterrupt);
    end_running(session);
    assert_nobody_looks_for_interrupts();
    assert_false(is_interrupted());
}

ATTACHED static void
exception_of_the_statement_outlives_an_interrupt_too_late(void **state)
{
    struct session *session = new_session();
    (void)state;
    begin_running(session);
    strike(session, PyExc_KeyboardInterrupt);
    PyErr_SetString(PyExc_ValueError, "the statement's");
    end_running(session);
    assert_true(PyErr_ExceptionMatches(PyExc_ValueError));
    PyErr_Clear();
}

/* The client's Ctrl-C in time.sleep(). */
CHECKED(no_thread_safety_analysis)
static void *
interrupt_from_beside(void *argument)
{
    struct session *session = argument;
    PyGILState_STATE attached = PyGILState_Ensure();
    raise_in_session(session, PyExc_KeyboardInterrupt);
    assert_nobody_looks_for_interrupts();
    PyGILState_Release(attached);
    return NULL;
}

ATTACHED static void
interrupt_of_a_call_that_waits_keeps_nobody_else_looking(void **state)
{
    struct session *session = new_session();
    pthread_t interrupter;
    (void)state;
    begin_running(session);
    Py_BEGIN_ALLOW_THREADS
    assert_int_equal(pthread_create(&interrupter, NULL, interrupt_from_beside, session),
                     0);
    (void)pthread_join(interrupter, NULL);
    Py_END_ALLOW_THREADS
    assert_true(is_interrupted());
    end_running(session);
    assert_nobody_looks_for_interrupts();
}

int
main(void)
{
    static const struct CMUnitTest tests[] = {
        WITH_PYTHON(statement_leaves_nobody_looking_for_interrupts),
        WITH_PYTHON(interrupt_too_late_is_taken_back),
        WITH_PYTHON(exception_of_the_statement_outlives_an_interrupt_too_late),
        WITH_PYTHON(interrupt_of_a_call_that_waits_keeps_nobody_else_looking),
    };
    return RUN_UNIT_TESTS(tests);
}
