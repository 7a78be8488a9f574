/* unit_probes.c - what the commands on probes and requests print. */
#include "../manhole.c"

#include "unit.h"

static const char SHOP[] = "def sell(n):\n"
                           "    return 1 / n\n"
                           "def give(n): return n\n";

ATTACHED static PyObject *
run(const char *source, int start)
{
    PyObject *names = PyModule_GetDict(PyImport_AddModule("shop"));
    PyObject *result = NULL;
    (void)PyDict_SetItemString(names, "__builtins__", PyEval_GetBuiltins());
    result = PyRun_String(source, start, names, names);
    assert_non_null(result);
    return result;
}

ATTACHED static int
enter_shop(void **state)
{
    (void)state;
    Py_DECREF(run(SHOP, Py_file_input));
    return 0;
}

/* Its text, or its exception's; "" for None. */
ATTACHED static const char *
printed(PyObject *result /* new, or NULL */)
{
    static char buffer[4096];
    PyObject *exception = result == NULL ? take_exception() : NULL;
    PyObject *text = exception == NULL ? Py_XNewRef(result) : PyObject_Str(exception);
    assert_non_null(text);
    (void)snprintf(buffer, sizeof(buffer), "%s",
                   text == Py_None ? "" : PyUnicode_AsUTF8(text));
    Py_XDECREF(result);
    Py_XDECREF(exception);
    Py_XDECREF(text);
    return buffer;
}

/* What a command prints. */
ATTACHED static const char *
command(const char *command_name, const char *probe_name /* or NULL */)
{
    OWNED PyObject *name = PyUnicode_FromString(command_name);
    OWNED PyObject *argument =
        probe_name == NULL ? NULL : PyUnicode_FromString(probe_name);
    return printed(run_probe_command(name, argument));
}

ATTACHED static int
leave_shop(void **state)
{
    (void)state;
    (void)command("reset", NULL);
    return 0;
}

ATTACHED static void
fail_once(void)
{
    Py_DECREF(run("try: sell(0)\nexcept ZeroDivisionError: pass\n", Py_file_input));
}

ATTACHED static void
probes_are_listed_as_ispyd_lists_them(void **state)
{
    (void)state;
    assert_string_equal(command("list", NULL), "[]");
    assert_string_equal(command("insert", "shop:sell"), "");
    assert_string_equal(command("insert", "shop:give"), "");
    assert_string_equal(command("list", NULL), "['shop:give', 'shop:sell']");
    assert_string_equal(command("remove", "shop:give"), "");
    assert_string_equal(command("list", NULL), "['shop:sell']");
    assert_string_equal(command("reset", NULL), "");
    assert_string_equal(command("list", NULL), "[]");
}

ATTACHED static void
tracebacks_are_those_of_probes_that_have_one(void **state)
{
    static const char start[] = "{'shop:sell': <traceback object at 0x";
    (void)state;
    (void)command("insert", "shop:sell");
    (void)command("insert", "shop:give");
    assert_string_equal(command("tracebacks", NULL), "{}");
    fail_once();
    assert_memory_equal(command("tracebacks", NULL), start, sizeof(start) - 1);
    assert_non_null(strstr(command("print", "shop:sell"),
                           "in sell\nZeroDivisionError: division by zero\n"));
    assert_string_equal(command("discard", "shop:sell"), "");
    assert_string_equal(command("tracebacks", NULL), "{}");
}

ATTACHED static void
commands_on_what_is_not_there_say_what_is(void **state)
{
    static const char *const commands[] = {"remove", "discard", "print", "debug"};
    (void)state;
    (void)command("insert", "shop:sell");
    for (size_t i = 0; i < Py_ARRAY_LENGTH(commands); i++) {
        assert_string_equal(command(commands[i], "shop:give"),
                            "there is no probe 'shop:give'; there are ['shop:sell']");
    }
}

ATTACHED static void
nothing_is_examined_where_nothing_failed(void **state)
{
    static const char message[] =
        "'shop:sell' has no traceback: in 1 calls since the probe was "
        "inserted 0 exceptions have left it, and none is kept";
    (void)state;
    (void)command("insert", "shop:sell");
    Py_DECREF(run("sell(1)", Py_eval_input));
    assert_string_equal(command("print", "shop:sell"), message);
    assert_string_equal(command("debug", "shop:sell"), message);
}

ATTACHED static void
requests_are_described_or_that_there_are_none(void **state)
{
    PyObject *response = NULL;
    (void)state;
    assert_string_equal(printed(describe_requests()), "No active transactions.");
    response =
        run("__import__('manhole').wsgi(lambda e, s: [])({'A': 1}, None)", Py_eval_input);
    assert_memory_equal(printed(describe_requests()), "\n==== 1 ====\n", 13);
    assert_non_null(strstr(printed(describe_requests()), " seconds\n\nA = 1\n\n"));
    Py_DECREF(response);
    assert_string_equal(printed(describe_requests()), "No active transactions.");
}

CHECKED(no_thread_safety_analysis)
int
main(void)
{
    static const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(probes_are_listed_as_ispyd_lists_them, enter_shop,
                                        leave_shop),
        cmocka_unit_test_setup_teardown(tracebacks_are_those_of_probes_that_have_one,
                                        enter_shop, leave_shop),
        cmocka_unit_test_setup_teardown(commands_on_what_is_not_there_say_what_is,
                                        enter_shop, leave_shop),
        cmocka_unit_test_setup_teardown(nothing_is_examined_where_nothing_failed,
                                        enter_shop, leave_shop),
        cmocka_unit_test(requests_are_described_or_that_there_are_none),
    };
    int failed = 0;
    Py_InitializeEx(0);
    manhole.module = make_module();
    failed = RUN_UNIT_TESTS(tests);
    Py_CLEAR(manhole.module);
    return Py_FinalizeEx() < 0 || failed;
}
