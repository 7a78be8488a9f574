/* Options: from Python, C and the environment into struct options. That wrong values are refused
 * one by one is shown in e2e_options.c. */
#include "../manhole.c"

#include "unit.h"

/* The value of a Python expression, new. */
ATTACHED static PyObject *
evaluate(const char *expression)
{
    PyObject *names = PyDict_New();
    PyObject *value = NULL;
    (void)PyDict_SetItemString(names, "__builtins__", PyEval_GetBuiltins());
    value = PyRun_String(expression, Py_eval_input, names, names);
    Py_DECREF(names);
    if (value == NULL) {
        PyErr_Print();
        fail_msg("%s", expression);
    }
    return value;
}

/* As install(**KEYWORDS) would. Returns 0, or -1 with an exception. */
ATTACHED static int
parse(struct options *options, PyObject *keywords)
{
    PyObject *empty = PyTuple_New(0);
    int result = 0;
    *options = default_options();
    result = parse_options(options, empty, keywords, PyExc_RuntimeError);
    Py_DECREF(empty);
    return result;
}

ATTACHED static int
parse_text(struct options *options, const char *arguments)
{
    struct text expression = {0};
    PyObject *keywords = NULL;
    int result = 0;
    append_string(&expression, "dict(");
    append_string(&expression, arguments);
    append_bytes(&expression, ")", 2);
    keywords = evaluate(expression.bytes);
    result = parse(options, keywords);
    Py_DECREF(keywords);
    free_text(&expression);
    return result;
}

/* The message of the current exception, which is taken. Freed by the caller. */
ATTACHED static char *
take_message(PyObject *type)
{
    PyObject *exception = take_exception();
    PyObject *message = PyObject_Str(exception);
    char *copy = strdup(PyUnicode_AsUTF8(message));
    assert_true(PyObject_TypeCheck(exception, (PyTypeObject *)type));
    Py_DECREF(exception);
    Py_DECREF(message);
    return copy;
}

/* ---- Values -------------------------------------------------------------------------- */

#define FIELD(name) offsetof(struct options, name)

static const struct {
    const char *arguments;
    size_t offset; /* of an int */
    int value;
} int_rows[] = {
    {"", FIELD(verbose), 1},
    {"verbose=False", FIELD(verbose), 0},
    {"verbose=None", FIELD(verbose), 0},
    {"verbose=10**30", FIELD(verbose), 1},
    {"", FIELD(verbose_destination.fd), 2},
    {"verbose_destination=0", FIELD(verbose_destination.fd), 0},
    {"verbose_destination=__import__('sys').stderr", FIELD(verbose_destination.fd), -1},
    {"", FIELD(strict), 1},
    {"strict=0", FIELD(strict), 0},
    {"", FIELD(patch_fork), 1},
    {"patch_fork=False", FIELD(patch_fork), 0},
    {"", FIELD(activate_on), 0},
    {"activate_on=None", FIELD(activate_on), 0},
    {"activate_on='USR1'", FIELD(activate_on), SIGUSR1},
    {"activate_on='SIGUSR1'", FIELD(activate_on), SIGUSR1},
    {"activate_on='sigusr1'", FIELD(activate_on), SIGUSR1},
    {"activate_on='Usr1'", FIELD(activate_on), SIGUSR1},
    {"activate_on=12", FIELD(activate_on), SIGUSR2},
    {"activate_on=__import__('signal').SIGUSR2", FIELD(activate_on), SIGUSR2},
    {"activate_on='RTMIN'", FIELD(activate_on), 34},
    {"activate_on=64", FIELD(activate_on), 64},
    {"", FIELD(oneshot_on), 0},
    {"oneshot_on='HUP'", FIELD(oneshot_on), SIGHUP},
    {"", FIELD(thread), 1},
    {"thread=False", FIELD(thread), 0},
    {"", FIELD(max_sessions), 64},
    {"max_sessions=1", FIELD(max_sessions), 1},
    {"max_sessions=256", FIELD(max_sessions), MAX_SESSIONS},
    {"", FIELD(daemon_connection), 0},
    {"daemon_connection=1", FIELD(daemon_connection), 1},
    {"", FIELD(audit), 1},
    {"audit=False", FIELD(audit), 0},
    {"", FIELD(redirect_stderr), 1},
    {"redirect_stderr=False", FIELD(redirect_stderr), 0},
    {"connection_handler='repl'", FIELD(connection_handler.kind), HANDLER_REPL},
    {"connection_handler='exec'", FIELD(connection_handler.kind), HANDLER_EXEC},
    {"connection_handler='commands'", FIELD(connection_handler.kind), HANDLER_COMMANDS},
    {"connection_handler=print", FIELD(connection_handler.kind), HANDLER_CALLABLE},
    {"", FIELD(enable), 0},
    {"enable=None", FIELD(enable), 0},
    {"enable=()", FIELD(enable), 0},
    {"enable=''", FIELD(enable), 0},
    {"enable='console'", FIELD(enable), FEATURE_CONSOLE},
    {"enable=['debugger']", FIELD(enable), FEATURE_DEBUGGER},
    {"enable={'console', 'debugger'}", FIELD(enable), FEATURE_CONSOLE | FEATURE_DEBUGGER},
    {"enable='debugger, console'", FIELD(enable), FEATURE_CONSOLE | FEATURE_DEBUGGER},
};

ATTACHED static void
value_arrives_in_its_field(void **state)
{
    (void)state;
    for (size_t i = 0; i < Py_ARRAY_LENGTH(int_rows); i++) {
        struct options options;
        int value = 0;
        assert_int_equal(parse_text(&options, int_rows[i].arguments), 0);
        memcpy(&value, (char *)&options + int_rows[i].offset, sizeof(value));
        if (value != int_rows[i].value) {
            fail_msg("(%s): %d, not %d", int_rows[i].arguments, value, int_rows[i].value);
        }
        drop_options(&options);
    }
}

static const struct {
    const char *arguments;
    size_t offset; /* of a double */
    double value;
} seconds_rows[] = {
    {"", FIELD(reinstall_delay), 0.5},
    {"reinstall_delay=0", FIELD(reinstall_delay), 0.0},
    {"", FIELD(start_timeout), 0.5},
    {"start_timeout=2", FIELD(start_timeout), 2.0},
    {"", FIELD(oneshot_timeout), 60.0},
    {"oneshot_timeout=0.25", FIELD(oneshot_timeout), 0.25},
    {"", FIELD(hang_timeout), 1.0},
    {"hang_timeout=1e300", FIELD(hang_timeout), 1e300},
};

ATTACHED static void
seconds_arrive_in_their_field(void **state)
{
    (void)state;
    for (size_t i = 0; i < Py_ARRAY_LENGTH(seconds_rows); i++) {
        struct options options;
        double value = 0;
        assert_int_equal(parse_text(&options, seconds_rows[i].arguments), 0);
        memcpy(&value, (char *)&options + seconds_rows[i].offset, sizeof(value));
        if (value < seconds_rows[i].value || value > seconds_rows[i].value) {
            fail_msg("(%s): %g", seconds_rows[i].arguments, value);
        }
        drop_options(&options);
    }
}

static const struct {
    const char *arguments;
    const char *path; /* NULL: none */
} path_rows[] = {
    {"", NULL},
    {"socket_path=None", NULL},
    {"socket_path='door'", "door"},
    {"socket_path=b'door'", "door"},
    {"socket_path=__import__('pathlib').Path('a') / 'door'", "a/door"},
    {"socket_path='/%(pid)s'", "/%(pid)s"},
    {"socket_path='\\xe9\\udcff'", "\xc3\xa9\xff"},
};

ATTACHED static void
path_is_taken_as_bytes(void **state)
{
    (void)state;
    for (size_t i = 0; i < Py_ARRAY_LENGTH(path_rows); i++) {
        struct options options;
        const char *path = path_rows[i].path;
        assert_int_equal(parse_text(&options, path_rows[i].arguments), 0);
        if ((options.socket_path == NULL) != (path == NULL) ||
            (path != NULL && strcmp(options.socket_path, path) != 0)) {
            fail_msg("(%s): %s", path_rows[i].arguments, options.socket_path);
        }
        drop_options(&options);
    }
}

static const struct {
    const char *arguments;
    const char *blocked; /* of "USR1 CHLD SEGV", one 0 or 1 each */
} mask_rows[] = {
    {"", "110"},
    {"sigmask='ALL_SIGNALS'", "110"},
    {"sigmask=__import__('signal').valid_signals()", "110"},
    {"sigmask=None", "000"},
    {"sigmask=[]", "000"},
    {"sigmask=['USR1', 'SEGV']", "100"},
    {"sigmask={17}", "010"},
    {"sigmask=iter(['SIGCHLD', 10])", "110"},
};

/* A fault of a thread's own is never blocked: the kernel would end the process without a word. */
ATTACHED static void
mask_spares_faults(void **state)
{
    static const int signals[] = {SIGUSR1, SIGCHLD, SIGSEGV};
    (void)state;
    for (size_t i = 0; i < Py_ARRAY_LENGTH(mask_rows); i++) {
        struct options options;
        char blocked[4] = "";
        assert_int_equal(parse_text(&options, mask_rows[i].arguments), 0);
        for (size_t j = 0; j < 3; j++) {
            blocked[j] = sigismember(&options.sigmask, signals[j]) ? '1' : '0';
        }
        if (strcmp(blocked, mask_rows[i].blocked) != 0) {
            fail_msg("(%s): %s", mask_rows[i].arguments, blocked);
        }
        drop_options(&options);
    }
}

/* ---- Refusals ------------------------------------------------------------------------- */

/* No option takes this; the next one that is added will not either. */
ATTACHED static void
refusal_names_option_value_and_what_is_allowed(void **state)
{
    (void)state;
    for (size_t i = 0; i < Py_ARRAY_LENGTH(option_rows); i++) {
        const struct option_row *row = &option_rows[i];
        PyObject *keywords = PyDict_New();
        PyObject *nonsense = evaluate("3j");
        struct options options;
        char *message = NULL;
        (void)PyDict_SetItemString(keywords, row->name, nonsense);
        assert_int_equal(parse(&options, keywords), -1);
        drop_options(&options);
        message = take_message(PyExc_TypeError);
        if (strstr(message, row->name) == NULL || strstr(message, row->allowed) == NULL ||
            strstr(message, "not 3j") == NULL) {
            fail_msg("%s", message);
        }
        free(message);
        Py_DECREF(nonsense);
        Py_DECREF(keywords);
    }
}

ATTACHED static void
unknown_option_is_told_all_that_there_are(void **state)
{
    struct options options;
    char *message = NULL;
    (void)state;
    assert_int_equal(parse_text(&options, "activate=1"), -1);
    drop_options(&options);
    message = take_message(PyExc_TypeError);
    assert_non_null(strstr(message, "'activate'"));
    for (size_t i = 0; i < Py_ARRAY_LENGTH(option_rows); i++) {
        if (strstr(message, option_rows[i].name) == NULL) {
            fail_msg("%s is not in: %s", option_rows[i].name, message);
        }
    }
    free(message);
}

/* What came before the mistake is given back. */
ATTACHED static void
refusal_keeps_no_reference(void **state)
{
    PyObject *names = PyDict_New();
    PyObject *keywords = Py_BuildValue("{sOsOsisO}", "locals", names,
                                       "connection_handler", (PyObject *)&PyType_Type,
                                       "socket_path", 5, "verbose_destination", names);
    Py_ssize_t before = Py_REFCNT(names);
    struct options options;
    (void)state;
    assert_int_equal(parse(&options, keywords), -1);
    free(take_message(PyExc_TypeError));
    assert_ptr_equal(options.locals, names);
    drop_options(&options);
    assert_int_equal(Py_REFCNT(names), before);
    Py_DECREF(keywords);
    Py_DECREF(names);
}

/* ---- From C ----------------------------------------------------------------------------- */

ATTACHED static struct options
parse_c(const manhole_options *c_options)
{
    PyObject *keywords = make_keywords(c_options);
    struct options options;
    assert_non_null(keywords);
    assert_int_equal(parse(&options, keywords), 0);
    Py_DECREF(keywords);
    return options;
}

/* Goes through the fields of the tables above; mask and path are the caller's. */
static void
assert_same_options(const struct options *options, const struct options *wanted)
{
    const char *bytes = (const char *)options;
    const char *wanted_bytes = (const char *)wanted;
    for (size_t i = 0; i < Py_ARRAY_LENGTH(int_rows); i++) {
        size_t offset = int_rows[i].offset;
        if (memcmp(bytes + offset, wanted_bytes + offset, sizeof(int)) != 0) {
            fail_msg("the field of install(%s)", int_rows[i].arguments);
        }
    }
    for (size_t i = 0; i < Py_ARRAY_LENGTH(seconds_rows); i++) {
        size_t offset = seconds_rows[i].offset;
        if (memcmp(bytes + offset, wanted_bytes + offset, sizeof(double)) != 0) {
            fail_msg("the field of install(%s)", seconds_rows[i].arguments);
        }
    }
    assert_ptr_equal(options->locals, wanted->locals);
}

ATTACHED static void
defaults_of_the_header_are_those_of_install(void **state)
{
    const manhole_options c_options = MANHOLE_OPTIONS_DEFAULT;
    struct options options = parse_c(&c_options);
    struct options defaults = default_options();
    (void)state;
    assert_same_options(&options, &defaults);
    assert_null(options.socket_path);
}

/* Each field has another value than its default and its neighbours. */
ATTACHED static void
each_field_of_the_header_arrives(void **state)
{
    PyObject *names = PyDict_New();
    const manhole_options c_options = {
        .verbose = 0,
        .verbose_destination = 7,
        .strict = 0,
        .patch_fork = 0,
        .thread = 0,
        .activate_on = SIGUSR1,
        .oneshot_on = SIGUSR2,
        .daemon_connection = 2,
        .redirect_stderr = 0,
        .reinstall_delay = 1.5,
        .start_timeout = 2.5,
        .oneshot_timeout = 3.5,
        .hang_timeout = 4.5,
        .max_sessions = 5,
        .socket_path = "door",
        .connection_handler = "exec",
        .locals = names,
        .enable = "console",
        .audit = 0,
    };
    struct options options = parse_c(&c_options);
    struct options wanted = default_options();
    (void)state;
    wanted.verbose = wanted.strict = wanted.patch_fork = wanted.thread = 0;
    wanted.verbose_destination.fd = 7;
    wanted.activate_on = SIGUSR1;
    wanted.oneshot_on = SIGUSR2;
    wanted.daemon_connection = 1;
    wanted.redirect_stderr = wanted.audit = 0;
    wanted.reinstall_delay = 1.5;
    wanted.start_timeout = 2.5;
    wanted.oneshot_timeout = 3.5;
    wanted.hang_timeout = 4.5;
    wanted.max_sessions = 5;
    wanted.connection_handler.kind = HANDLER_EXEC;
    wanted.enable = FEATURE_CONSOLE;
    wanted.locals = names;
    assert_same_options(&options, &wanted);
    assert_string_equal(options.socket_path, "door");
    drop_options(&options);
    Py_DECREF(names);
}

/* ---- From the environment ---------------------------------------------------------------- */

static const struct {
    const char *text;
    const char *error; /* the exception's name, NULL: installed */
} texts[] = {
    {"False", NULL},
    {"verbose=False, thread=False,", NULL},
    {"False, 2, True, thread=False", NULL},
    {"\n  verbose=False,\n  thread=False # a remark\n", NULL},
    {"0, connection_handler=handle_connection_exec, sigmask=ALL_SIGNALS", NULL},
    {"0, locals={'me': manhole}, oneshot_timeout=max(1, 2)", NULL},
    {"**dict(verbose=False)", NULL},
    {"activate_on=", "SyntaxError"},
    {"); import os; (", "SyntaxError"},
    {"# a remark", "SyntaxError"},
    {"strict=nonsense", "NameError"},
    {"1 / 0", "ZeroDivisionError"},
    {"unheard_of=1", "TypeError"},
    {"socket_path=''", "ValueError"},
    {"activate_on='USR1', oneshot_on='USR1'", "ConfigurationConflict"},
    {"verbose=type('', (int,), {'__bool__': lambda self: 1 / 0})()", "ZeroDivisionError"},
    {"\xff\xfe", "UnicodeEncodeError"},
};

ATTACHED static void
text_is_the_arguments_of_install(void **state)
{
    PyObject *module = make_module();
    (void)state;
    for (size_t i = 0; i < Py_ARRAY_LENGTH(texts); i++) {
        PyObject *text = PyUnicode_DecodeFSDefault(texts[i].text);
        PyObject *result = eval_install(module, text);
        PyObject *error = take_exception();
        const char *name = error == NULL ? NULL : Py_TYPE(error)->tp_name;
        const char *dot = name == NULL ? NULL : strrchr(name, '.');
        const char *short_name = dot == NULL ? name : dot + 1;
        bool right = texts[i].error == NULL
                         ? result != NULL
                         : short_name != NULL && strcmp(short_name, texts[i].error) == 0;
        if (!right || manhole.installed != (texts[i].error == NULL)) {
            fail_msg("install(%s): %s", texts[i].text, name == NULL ? "works" : name);
        }
        release();
        Py_XDECREF(error);
        Py_XDECREF(result);
        Py_DECREF(text);
    }
    Py_DECREF(module);
}

int
main(void)
{
    static const struct CMUnitTest tests[] = {
        cmocka_unit_test(value_arrives_in_its_field),
        cmocka_unit_test(seconds_arrive_in_their_field),
        cmocka_unit_test(path_is_taken_as_bytes),
        cmocka_unit_test(mask_spares_faults),
        cmocka_unit_test(refusal_names_option_value_and_what_is_allowed),
        cmocka_unit_test(unknown_option_is_told_all_that_there_are),
        cmocka_unit_test(refusal_keeps_no_reference),
        cmocka_unit_test(defaults_of_the_header_are_those_of_install),
        cmocka_unit_test(each_field_of_the_header_arrives),
        cmocka_unit_test(text_is_the_arguments_of_install),
    };
    int failed = 0;
    Py_InitializeEx(0);
    failed = RUN_UNIT_TESTS(tests);
    return Py_FinalizeEx() < 0 || failed;
}
