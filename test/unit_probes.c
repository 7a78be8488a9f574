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

ATTACHED static int
leave_shop(void **state)
{
    (void)state;
    Py_XDECREF(reset_probes());
    PyErr_Clear();
    return 0;
}

/* What a command prints: its text, or its exception's; "" for None. */
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

/* What a command on one probe prints. */
ATTACHED static const char *
printed_of(PyObject *(*command)(PyObject *), const char *name)
{
    PyObject *str = PyUnicode_FromString(name);
    const char *text = printed(command(str));
    Py_DECREF(str);
    return text;
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
    assert_string_equal(printed(list_probes()), "[]");
    assert_string_equal(printed_of(insert_probe, "shop:sell"), "");
    assert_string_equal(printed_of(insert_probe, "shop:give"), "");
    assert_string_equal(printed(list_probes()), "['shop:give', 'shop:sell']");
    assert_string_equal(printed_of(remove_probe, "shop:give"), "");
    assert_string_equal(printed(list_probes()), "['shop:sell']");
    assert_string_equal(printed(reset_probes()), "");
    assert_string_equal(printed(list_probes()), "[]");
}

ATTACHED static void
tracebacks_are_those_of_probes_that_have_one(void **state)
{
    static const char start[] = "{'shop:sell': <traceback object at 0x";
    (void)state;
    (void)printed_of(insert_probe, "shop:sell");
    (void)printed_of(insert_probe, "shop:give");
    assert_string_equal(printed(probe_tracebacks()), "{}");
    fail_once();
    assert_memory_equal(printed(probe_tracebacks()), start, sizeof(start) - 1);
    assert_non_null(strstr(printed_of(print_probe, "shop:sell"),
                           "in sell\nZeroDivisionError: division by zero\n"));
    assert_string_equal(printed_of(discard_probe, "shop:sell"), "");
    assert_string_equal(printed(probe_tracebacks()), "{}");
}

ATTACHED static void
commands_on_what_is_not_there_say_what_is(void **state)
{
    static PyObject *(*const commands[])(PyObject *) = {remove_probe, discard_probe,
                                                        print_probe, debug_probe};
    (void)state;
    (void)printed_of(insert_probe, "shop:sell");
    for (size_t i = 0; i < Py_ARRAY_LENGTH(commands); i++) {
        assert_string_equal(printed_of(commands[i], "shop:give"),
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
    (void)printed_of(insert_probe, "shop:sell");
    Py_DECREF(run("sell(1)", Py_eval_input));
    assert_string_equal(printed_of(print_probe, "shop:sell"), message);
    assert_string_equal(printed_of(debug_probe, "shop:sell"), message);
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
