/* What manhole.h promises to a C program: errors, threads, subinterpreters, Python that ends and
 * begins again. Each test has a Python of its own. */
#include <stdbool.h>
#include <time.h>

/* A clock of the day that is set back right after each look at it. */
static bool is_set_back;

static int
look_at_clock(clockid_t clock, struct timespec *now)
{
    int result = clock_gettime(clock, now);
    now->tv_sec += clock == CLOCK_REALTIME && is_set_back ? 86400 : 0;
    return result;
}
#define clock_gettime look_at_clock
#include "../manhole.c"

#include "unit.h"

#define END "#############################################\n\n\n"

/* Without signal handlers of Python's: the program may be any. */
static int
begin_python(void **state)
{
    (void)state;
    Py_InitializeEx(0);
    return 0;
}

static int
end_python(void **state)
{
    (void)state;
    return Py_FinalizeEx();
}

#define WITH_PYTHON(test) cmocka_unit_test_setup_teardown(test, begin_python, end_python)

static manhole_options
quiet_options(void)
{
    manhole_options options = MANHOLE_OPTIONS_DEFAULT;
    options.verbose = 0;
    return options;
}

ATTACHED static void
install_quietly(void)
{
    const manhole_options options = quiet_options();
    if (manhole_install(&options) < 0) {
        PyErr_Print();
        fail();
    }
}

/* Takes the current exception. Returns its type's name, and says what it is. */
ATTACHED static const char *
take_exception_name(void)
{
    static char name[80];
    PyObject *exception = take_exception();
    PyObject *text = NULL;
    assert_non_null(exception);
    text = PyObject_Str(exception);
    (void)snprintf(name, sizeof(name), "%s: %s", Py_TYPE(exception)->tp_name,
                   PyUnicode_AsUTF8(text));
    Py_XDECREF(text);
    Py_DECREF(exception);
    return name;
}

static bool
path_exists(const char *path)
{
    struct stat status;
    return lstat(path, &status) == 0;
}

/* Where there is a socket, or will be. */
static int
connect_at(const char *path)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    int result = -1;
    (void)snprintf(address.sun_path, sizeof(address.sun_path), "%s", path);
    for (int ms = 0; ms < 30000 && result < 0; ms++) {
        result = connect(fd, (struct sockaddr *)&address, sizeof(address));
        (void)poll(NULL, 0, result < 0 ? 1 : 0);
    }
    assert_int_equal(result, 0);
    return fd;
}

static int
connect_client(void)
{
    return connect_at(manhole.doors[0].name);
}

static void
send_string(int fd, const char *text)
{
    assert_int_equal(send(fd, text, strlen(text), MSG_NOSIGNAL), strlen(text));
}

/* Reads until this has come, or to the end. Returns whether it has. */
static bool
read_until(int fd, const char *wanted)
{
    char bytes[65536];
    size_t length = 0;
    ssize_t count = 1;
    bytes[0] = '\0';
    while (count > 0 && length < sizeof(bytes) - 1 && strstr(bytes, wanted) == NULL) {
        count = read(fd, bytes + length, sizeof(bytes) - 1 - length);
        length += count > 0 ? (size_t)count : 0;
        bytes[length] = '\0';
    }
    return strstr(bytes, wanted) != NULL;
}

/* What a client that sends this, exit() last, is shown must contain wanted. */
CHECKED(no_thread_safety_analysis)
static void
assert_answer(const char *input, const char *wanted)
{
    PyThreadState *tstate = detach();
    int fd = connect_client();
    bool answered = false;
    send_string(fd, input);
    answered = read_until(fd, wanted);
    while (read_until(fd, "\n")) {
    }
    (void)close(fd);
    reattach(tstate);
    if (!answered) {
        fail_msg("%s: no %s", input, wanted);
    }
}

/* ---- manhole_install(), manhole_release() --------------------------------------------- */

ATTACHED static void
module_is_the_one_that_import_finds(void **state)
{
    (void)state;
    install_quietly();
    assert_true(path_exists(manhole.doors[0].name));
    assert_int_equal(PyRun_SimpleString("import manhole\n"
                                        "try: manhole.install()\n"
                                        "except manhole.AlreadyInstalled: pass\n"
                                        "else: 1 / 0\n"),
                     0);
    assert_answer("import manhole; 'here', manhole.__version__\nexit()\n",
                  "('here', '" MANHOLE_VERSION "')");
    assert_int_equal(manhole_release(), 0);
    assert_false(path_exists(manhole.doors[0].name));
}

ATTACHED static void
module_of_the_inittab_is_used(void **state)
{
    PyObject *module = NULL;
    (void)state;
    assert_int_equal(PyRun_SimpleString("import manhole, sys\n"
                                        "assert manhole.__spec__.origin == 'built-in'\n"),
                     0);
    module = PyImport_ImportModule("manhole");
    install_quietly();
    assert_ptr_equal(manhole.module, module);
    Py_DECREF(module);
}

/* Like PyImport_AppendInittab() before Py_Initialize(). */
static int
begin_python_with_module(void **state)
{
    (void)PyImport_AppendInittab("manhole", PyInit_manhole);
    return begin_python(state);
}

ATTACHED static void
null_installs_with_the_defaults(void **state)
{
    int kept = dup(STDERR_FILENO);
    int null = open("/dev/null", O_WRONLY | O_CLOEXEC);
    (void)state;
    (void)dup2(null, STDERR_FILENO); /* the log's default */
    assert_int_equal(manhole_install(NULL), 0);
    (void)dup2(kept, STDERR_FILENO);
    (void)close(kept);
    (void)close(null);
    assert_true(manhole.options.verbose);
    assert_int_equal(manhole_release(), 0);
}

/* What a program may get wrong, and the beginning of the exception that it is told. */
#define MISTAKE(name, statement)                                                         \
  static void name(manhole_options *options)                                             \
  {                                                                                      \
    statement;                                                                           \
  }
MISTAKE(set_no_signal, options->activate_on = 99)
MISTAKE(set_sigkill, options->oneshot_on = SIGKILL)
MISTAKE(set_one_signal_twice, options->activate_on = options->oneshot_on = SIGUSR1)
MISTAKE(set_negative_descriptor, options->verbose_destination = -1)
MISTAKE(set_negative_time, options->hang_timeout = -1.0)
MISTAKE(set_no_time, options->oneshot_timeout = (double)NAN)
MISTAKE(set_no_sessions, options->max_sessions = 0)
MISTAKE(set_no_path, options->socket_path = "")
MISTAKE(set_path_not_utf8, options->socket_path = "\xff")
MISTAKE(set_handler, options->connection_handler = "shell")
MISTAKE(set_locals, options->locals = (PyObject *)&PyLong_Type)

static const struct {
    void (*change)(manhole_options *options);
    const char *exception;
} mistakes[] = {
    {set_no_signal, "ValueError: install() option 'activate_on' must be"},
    {set_sigkill, "ValueError: install() option 'oneshot_on' must be"},
    {set_one_signal_twice, "ConfigurationConflict: "},
    {set_negative_descriptor, "ValueError: install() option 'verbose_destination'"},
    {set_negative_time, "ValueError: install() option 'hang_timeout'"},
    {set_no_time, "ValueError: install() option 'oneshot_timeout'"},
    {set_no_sessions, "ValueError: install() option 'max_sessions'"},
    {set_no_path, "ValueError: install() option 'socket_path' is 0 bytes"},
    {set_path_not_utf8, "UnicodeDecodeError: "},
    {set_handler, "ValueError: install() option 'connection_handler'"},
    {set_locals, "TypeError: install() option 'locals'"},
};

ATTACHED static void
wrong_option_is_named_and_nothing_installed(void **state)
{
    (void)state;
    for (size_t i = 0; i < Py_ARRAY_LENGTH(mistakes); i++) {
        manhole_options options = quiet_options();
        const char *name = NULL;
        mistakes[i].change(&options);
        assert_int_equal(manhole_install(&options), -1);
        name = take_exception_name();
        if (strstr(name, mistakes[i].exception) != name) {
            fail_msg("%s, not %s", name, mistakes[i].exception);
        }
        assert_false(manhole.installed);
    }
}

ATTACHED static void
second_install_fails_unless_it_may_replace_the_first(void **state)
{
    manhole_options options = quiet_options();
    (void)state;
    install_quietly();
    assert_int_equal(manhole_install(&options), -1);
    assert_non_null(strstr(take_exception_name(), "AlreadyInstalled"));
    assert_answer("6 * 7\nexit()\n", "42");
    options.strict = 0;
    options.connection_handler = "exec";
    assert_int_equal(manhole_install(&options), 0);
    assert_int_equal(manhole.options.connection_handler.kind, HANDLER_EXEC);
    assert_int_equal(manhole_release(), 0);
}

ATTACHED static void
release_without_install_is_harmless(void **state)
{
    (void)state;
    assert_int_equal(manhole_release(), 0);
    install_quietly();
    assert_int_equal(manhole_release(), 0);
    assert_int_equal(manhole_release(), 0);
    assert_null(PyErr_Occurred());
}

ATTACHED static void
other_module_of_that_name_is_not_taken(void **state)
{
    (void)state;
    assert_int_equal(
        PyRun_SimpleString("import sys, types\n"
                           "sys.modules['manhole'] = types.ModuleType('x')\n"),
        0);
    assert_int_equal(manhole_install(NULL), -1);
    assert_non_null(strstr(take_exception_name(), "ImportError: another module named"));
    assert_false(manhole.installed);
}

ATTACHED static void
name_given_to_the_console_may_be_dropped_after_install(void **state)
{
    manhole_options options = quiet_options();
    (void)state;
    options.locals = Py_BuildValue("{si}", "answer", 42);
    assert_int_equal(manhole_install(&options), 0);
    Py_DECREF(options.locals);
    assert_answer("answer + 1\nexit()\n", ">>> 43");
    assert_int_equal(manhole_release(), 0);
}

/* A thread that Python did not start. */
CHECKED(no_thread_safety_analysis)
static void *
install_in_thread(void *unused)
{
    PyGILState_STATE gil = PyGILState_Ensure();
    install_quietly();
    PyGILState_Release(gil);
    return unused;
}

ATTACHED
CHECKED(no_thread_safety_analysis)
static void
any_attached_thread_may_install(void **state)
{
    pthread_t thread;
    PyThreadState *tstate = detach();
    (void)state;
    assert_int_equal(pthread_create(&thread, NULL, install_in_thread, NULL), 0);
    assert_int_equal(pthread_join(thread, NULL), 0);
    reattach(tstate);
    assert_answer("6 * 7\nexit()\n", ">>> 42");
    assert_int_equal(manhole_release(), 0);
}

/* ---- manhole_dump_stacks() ------------------------------------------------------------- */

/* Of a dump to a pipe. */
struct dump {
    int result;
    int error;
    char text[16384];
};

static void
dump_to_pipe(struct dump *dump)
{
    int ends[2];
    ssize_t length = 0;
    assert_int_equal(pipe2(ends, O_CLOEXEC | O_NONBLOCK), 0);
    errno = 0;
    dump->result = manhole_dump_stacks(ends[1]);
    dump->error = errno;
    length = read(ends[0], dump->text, sizeof(dump->text) - 1);
    dump->text[length < 0 ? 0 : length] = '\0';
    (void)close(ends[0]);
    (void)close(ends[1]);
}

static void *
dump_in_thread(void *dump)
{
    dump_to_pipe(dump);
    return NULL;
}

CHECKED(no_thread_safety_analysis)
static void *
dump_in_attached_thread(void *dump)
{
    PyGILState_STATE gil = PyGILState_Ensure();
    dump_to_pipe(dump);
    assert_non_null(PyGILState_GetThisThreadState());
    PyGILState_Release(gil);
    return NULL;
}

/* For Python to call: dumps attached, with a frame of a script's on the stack. */
ATTACHED static PyObject *
py_dump(PyObject *dump, PyObject *unused)
{
    (void)unused;
    dump_to_pipe(PyCapsule_GetPointer(dump, NULL));
    return PyErr_Occurred() ? NULL : Py_NewRef(Py_None);
}

/* For Python to call: keeps the GIL while a thread without it dumps. */
ATTACHED static PyObject *
py_dump_elsewhere(PyObject *dump, PyObject *unused)
{
    pthread_t thread;
    (void)unused;
    assert_int_equal(
        pthread_create(&thread, NULL, dump_in_thread, PyCapsule_GetPointer(dump, NULL)),
        0);
    assert_int_equal(pthread_join(thread, NULL), 0);
    return Py_NewRef(Py_None);
}

static PyMethodDef dump_method = {"dump", py_dump, METH_NOARGS, NULL};
static PyMethodDef dump_elsewhere_method = {"dump", py_dump_elsewhere, METH_NOARGS, NULL};

/* Runs a script whose function work() calls the method. */
ATTACHED static void
dump_from_script(PyMethodDef *method, struct dump *dump)
{
    PyObject *names = PyModule_GetDict(PyImport_AddModule("__main__"));
    PyObject *capsule = PyCapsule_New(dump, NULL, NULL);
    PyObject *function = PyCFunction_New(method, capsule);
    (void)PyDict_SetItemString(names, "dump", function);
    assert_int_equal(PyRun_SimpleString("def work(): dump()\nwork()\n"), 0);
    Py_DECREF(function);
    Py_DECREF(capsule);
}

static void
assert_dumped(const struct dump *dump, const char *piece)
{
    const char *end = strstr(dump->text, END);
    assert_int_equal(dump->result, 0);
    if (strstr(dump->text, piece) == NULL || end == NULL || strlen(end) != strlen(END)) {
        fail_msg("no '%s' in\n%s", piece, dump->text);
    }
}

#define WORK "File: \"<string>\", line 1, in work\n"

ATTACHED static void
attached_thread_dumps_without_install(void **state)
{
    struct dump dump;
    (void)state;
    dump_from_script(&dump_method, &dump);
    if (HAS_GIL) {
        assert_dumped(&dump, WORK);
    }
    else { /* the stacks are a frozen copy's, which install() prepares */
        assert_int_equal(dump.result, -1);
        assert_int_equal(dump.error, ENOTSUP);
    }
}

/* Its state has no id yet, and CPython from 3.14 on takes it for freed. The latest is the first in
 * the list, so both are tried: at its head and behind that. */
CHECKED(no_thread_safety_analysis) /* detaches */
static void
thread_that_has_just_begun_hides_no_other(void **state)
{
    PyThreadState *begun[2];
    const unsigned long ident = PyThread_get_thread_ident();
    (void)state;
    SKIP_UNDER_THREAD_SANITIZER();
    install_quietly();
    for (size_t i = 0; i < 2; i++) {
        begun[i] = PyThreadState_New(PyInterpreterState_Get());
    }
    for (size_t i = 0; i < 2; i++) {
        struct text text = {0};
        begun[i]->thread_id = 0;
        PyThreadState *tstate = PyEval_SaveThread();
        append_snapshot(&text, &dump_form);
        PyEval_RestoreThread(tstate);
        append_bytes(&text, "", 1);
        begun[i]->thread_id = ident;
        assert_non_null(strstr(text.bytes, "ThreadID="));
        assert_non_null(strstr(text.bytes, "Thread: MainThread, "));
        free_text(&text);
    }
    for (size_t i = 0; i < 2; i++) {
        PyThreadState_Clear(begun[i]);
        PyThreadState_Delete(begun[i]);
    }
}

ATTACHED static void
attached_thread_dumps_with_install(void **state)
{
    struct dump dump;
    (void)state;
    if (!HAS_GIL) {
        SKIP_UNDER_THREAD_SANITIZER();
    }
    install_quietly();
    dump_from_script(&dump_method, &dump);
    assert_dumped(&dump, WORK);
}

ATTACHED static void
thread_without_python_dumps_while_python_hangs(void **state)
{
    struct dump dump;
    (void)state;
    SKIP_UNDER_THREAD_SANITIZER();
    install_quietly();
    dump_from_script(&dump_elsewhere_method, &dump);
    assert_dumped(&dump, WORK);
}

ATTACHED static void
thread_without_python_needs_an_installed_manhole(void **state)
{
    (void)state;
    for (int i = 0; i < 2; i++) {
        struct dump dump;
        dump_from_script(&dump_elsewhere_method, &dump);
        assert_int_equal(dump.result, -1);
        assert_int_equal(dump.error, ENOTSUP);
        assert_string_equal(dump.text, "");
        install_quietly();
        assert_int_equal(manhole_release(), 0);
    }
}

ATTACHED
CHECKED(no_thread_safety_analysis)
static void
thread_of_the_program_may_attach_and_dump(void **state)
{
    struct dump dump;
    pthread_t thread;
    PyThreadState *tstate = NULL;
    (void)state;
    install_quietly();
    tstate = detach();
    assert_int_equal(pthread_create(&thread, NULL, dump_in_attached_thread, &dump), 0);
    assert_int_equal(pthread_join(thread, NULL), 0);
    reattach(tstate);
    assert_dumped(&dump, "\n");
}

ATTACHED static void
descriptor_that_takes_nothing_is_an_errno_and_no_exception(void **state)
{
    const struct {
        int fd;
        int error;
    } rows[] = {
        {-1, EBADF},
        {open("/dev/null", O_RDONLY | O_CLOEXEC), EBADF},
        {open("/dev/full", O_WRONLY | O_CLOEXEC), ENOSPC},
    };
    (void)state;
    install_quietly();
    for (size_t i = 0; i < Py_ARRAY_LENGTH(rows); i++) {
        assert_int_equal(manhole_dump_stacks(rows[i].fd), -1);
        assert_int_equal(errno, rows[i].error);
        assert_null(PyErr_Occurred());
        (void)close(rows[i].fd);
    }
}

ATTACHED static void
exception_of_the_caller_stays(void **state)
{
    struct dump dump;
    (void)state;
    install_quietly();
    PyErr_SetString(PyExc_KeyError, "kept");
    dump_to_pipe(&dump);
    assert_int_equal(dump.result, 0);
    assert_non_null(strstr(take_exception_name(), "KeyError: 'kept'"));
}

/* ---- Python ends and begins again --------------------------------------------------------- */

/* Sends something only when Python is likely to wait at its end. */
static void *
leave_late(void *client)
{
    int *fd = client;
    (void)poll(NULL, 0, 50);
    send_string(*fd, "40 + 2\nexit()\n");
    if (!read_until(*fd, "42")) {
        *fd = -1;
    }
    return NULL;
}

/* Also for those who were in before the manhole was released. */
CHECKED(no_thread_safety_analysis)
static void
end_of_python_waits_for_clients(void **state)
{
    (void)state;
    for (int released = 0; released < 2; released++) {
        pthread_t leaver;
        PyThreadState *tstate = NULL;
        int fd = -1;
        int client = -1;
        Py_InitializeEx(0);
        install_quietly();
        client = fd = connect_client();
        tstate = detach();
        assert_true(read_until(fd, ">>> "));
        reattach(tstate);
        assert_int_equal(released ? manhole_release() : 0, 0);
        assert_int_equal(pthread_create(&leaver, NULL, leave_late, &client), 0);
        assert_int_equal(Py_FinalizeEx(), 0);
        assert_int_equal(pthread_join(leaver, NULL), 0);
        assert_int_equal(client, fd);
        (void)close(fd);
    }
}

/* Whether it leaves before or after the manhole is released. */
CHECKED(no_thread_safety_analysis)
static void
end_of_python_interrupts_what_a_client_left_running(void **state)
{
    (void)state;
    for (int released = 0; released < 2; released++) {
        PyThreadState *tstate = NULL;
        int fd = -1;
        Py_InitializeEx(0);
        install_quietly();
        tstate = detach();
        fd = connect_client();
        send_string(fd, "while True: pass\n\n");
        assert_true(read_until(fd, "... "));
        reattach(tstate);
        assert_int_equal(released ? manhole_release() : 0, 0);
        (void)close(fd);
        assert_int_equal(Py_FinalizeEx(), 0);
    }
}

ATTACHED static void
python_may_end_and_begin_again(void **state)
{
    const size_t threads = count_entries("/proc/self/task");
    size_t fds = 0;
    (void)state;
    for (int i = 0; i < 5; i++) {
        Py_InitializeEx(0);
        install_quietly();
        assert_answer("import threading, json; [2 * n for n in range(3)]\nexit()\n",
                      "[0, 2, 4]");
        assert_int_equal(Py_FinalizeEx(), 0);
        assert_false(path_exists(manhole.doors[0].name));
        fds = i == 0 ? count_entries("/proc/self/fd") : fds;
    }
    assert_entries_fall_to("/proc/self/fd", fds);
    assert_entries_fall_to("/proc/self/task", threads);
}

ATTACHED static void
dump_after_python_s_end_is_refused(void **state)
{
    struct dump dump;
    (void)state;
    Py_InitializeEx(0);
    install_quietly();
    assert_int_equal(Py_FinalizeEx(), 0);
    dump_to_pipe(&dump);
    assert_int_equal(dump.result, -1);
    assert_int_equal(dump.error, ENOTSUP);
}

/* ---- Subinterpreters ----------------------------------------------------------------------- */

ATTACHED static void
client_is_in_the_interpreter_that_installed(void **state)
{
    PyThreadState *main_thread = PyThreadState_Get();
    PyThreadState *sub = NULL;
    (void)state;
    assert_int_equal(PyRun_SimpleString("where = 'main'\n"), 0);
    install_quietly();
    sub = Py_NewInterpreter();
    assert_int_equal(PyRun_SimpleString("where = 'sub'\n"), 0);
    (void)PyThreadState_Swap(main_thread);
    assert_answer("__import__('__main__').where\nexit()\n", ">>> 'main'");
    (void)PyThreadState_Swap(sub);
    Py_EndInterpreter(sub);
    (void)PyThreadState_Swap(main_thread);
    assert_answer("__import__('__main__').where\nexit()\n", ">>> 'main'");
    assert_int_equal(manhole_release(), 0);
}

ATTACHED static void
subinterpreter_may_install_and_end(void **state)
{
    PyThreadState *main_thread = PyThreadState_Get();
    (void)state;
    for (int i = 0; i < 2; i++) {
        PyThreadState *sub = Py_NewInterpreter();
        assert_int_equal(PyRun_SimpleString("where = 'sub'\n"), 0);
        install_quietly();
        assert_answer("__import__('__main__').where\nexit()\n", ">>> 'sub'");
        Py_EndInterpreter(sub);
        (void)PyThreadState_Swap(main_thread);
        assert_false(path_exists(manhole.doors[0].name));
    }
    install_quietly();
    assert_answer("__import__('__main__').__name__\nexit()\n", ">>> '__main__'");
    assert_int_equal(manhole_release(), 0);
}

ATTACHED static void
subinterpreter_that_ends_leaves_another_s_manhole(void **state)
{
    PyThreadState *main_thread = PyThreadState_Get();
    PyThreadState *sub = NULL;
    (void)state;
    install_quietly();
    sub = Py_NewInterpreter();
    assert_int_equal(manhole_install(NULL), -1);
    assert_non_null(strstr(take_exception_name(), "AlreadyInstalled"));
    Py_EndInterpreter(sub);
    (void)PyThreadState_Swap(main_thread);
    assert_answer("6 * 7\nexit()\n", ">>> 42");
    assert_int_equal(manhole_release(), 0);
}

/* Since 3.12. Its thread holds another GIL than the sessions of the first manhole. */
ATTACHED static void
subinterpreter_with_a_gil_of_its_own_is_refused(void **state)
{
#if PY_VERSION_HEX >= 0x030c0000
    const PyInterpreterConfig config = {.allow_threads = 1,
                                        .check_multi_interp_extensions = 1,
                                        .gil = PyInterpreterConfig_OWN_GIL};
    PyThreadState *main_thread = PyThreadState_Get();
    PyThreadState *sub = NULL;
    (void)state;
    assert_false(PyStatus_Exception(Py_NewInterpreterFromConfig(&sub, &config)));
    assert_int_equal(manhole_install(NULL), -1);
    assert_non_null(strstr(take_exception_name(), "ImportError"));
    Py_EndInterpreter(sub);
    (void)PyThreadState_Swap(main_thread);
    install_quietly();
    assert_answer("6 * 7\nexit()\n", ">>> 42");
    assert_int_equal(manhole_release(), 0);
#else
    (void)state;
    SKIP_UNIT_TEST("needs CPython 3.12");
#endif
}

/* ---- A fork beside a thread that is on its way in --------------------------------------- */

#if PY_VERSION_HEX < 0x030c0000
static bool
main_thread_sleeps(void)
{
    char path[64];
    char state = '?';
    FILE *file = NULL;
    (void)snprintf(path, sizeof(path), "/proc/self/task/%d/stat", (int)getpid());
    file = fopen(path, "r");
    assert_non_null(file);
    assert_int_equal(fscanf(file, "%*d (%*[^)]) %c", &state), 1);
    (void)fclose(file);
    return state == 'S';
}

static _Atomic bool is_in;

static void *
enter_slowly(void *is_on_its_way)
{
    assert_true(lock_new_state_soon());
    (void)sem_post(is_on_its_way);
    while (!main_thread_sleeps()) {
        (void)sched_yield();
    }
    atomic_store(&is_in, true);
    unlock_new_state(true);
    return NULL;
}
#endif

/* Or the child would wait for that thread, which it does not have. */
ATTACHED
CHECKED(no_thread_safety_analysis)
static void
fork_waits_for_a_thread_on_its_way_in(void **state)
{
#if PY_VERSION_HEX < 0x030c0000
    int status = -1;
    pid_t child = 0;
    pthread_t thread;
    sem_t is_on_its_way;
    PyThreadState *tstate = NULL;
    (void)state;
    install_quietly();
    tstate = new_thread_state(PyInterpreterState_Get());
    assert_int_equal(sem_init(&is_on_its_way, 0, 0), 0);
    assert_int_equal(pthread_create(&thread, NULL, enter_slowly, &is_on_its_way), 0);
    while (sem_trywait(&is_on_its_way) != 0) {
        (void)sched_yield();
    }
    child = fork();
    if (child == 0) {
        _exit(atomic_load(&is_in) ? 0 : 1);
    }
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_int_equal(status, 0);
    assert_int_equal(pthread_join(thread, NULL), 0);
    (void)sem_destroy(&is_on_its_way);
    PyThreadState_Clear(tstate);
    PyThreadState_Delete(tstate);
#else
    (void)state;
    SKIP_UNIT_TEST("since CPython 3.12 the child makes that lock anew");
#endif
}

/* ---- A program that forks for itself, and does not tell Python -------------------------- */

/* Forks attached to Python, or not. The child runs the statements; then it waits without the GIL
 * until the descriptor is closed. Returns its number. */
ATTACHED
CHECKED(no_thread_safety_analysis)
static pid_t
fork_and_run(bool attached, const char *statements, int leash)
{
    PyThreadState *tstate = attached ? NULL : PyEval_SaveThread();
    pid_t child = fork();
    char byte = 0;
    if (tstate != NULL) {
        PyEval_RestoreThread(tstate);
    }
    if (child == 0) {
        (void)alarm(60);
        if (PyRun_SimpleString(statements) != 0) {
            _exit(1);
        }
        (void)PyEval_SaveThread();
        while (leash >= 0 && read(leash, &byte, 1) > 0) {
        }
        _exit(0);
    }
    return child;
}

static void
assert_ends_well(pid_t child)
{
    int status = -1;
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_int_equal(status, 0);
}

ATTACHED
CHECKED(no_thread_safety_analysis)
static void
child_of_the_program_answers(void **state)
{
    manhole_options options = quiet_options();
    (void)state;
    options.reinstall_delay = 0.01;
    assert_int_equal(manhole_install(&options), 0);
    for (int attached = 0; attached < 2; attached++) {
        char path[64];
        int leash[2] = {-1, -1};
        int client = -1;
        assert_int_equal(pipe2(leash, O_CLOEXEC), 0);
        pid_t child = fork_and_run(attached, "answer = 42", leash[0]);
        (void)snprintf(path, sizeof(path), "/tmp/manhole-%d", (int)child);
        client = connect_at(path);
        send_string(client, "import __main__; 'the', __main__.answer\nexit()\n");
        assert_true(read_until(client, "('the', 42)"));
        (void)close(client);
        /* It does not tidy up. */
        assert_int_equal(kill(child, SIGKILL), 0);
        assert_int_equal(waitpid(child, NULL, 0), child);
        assert_int_equal(unlink(path), 0);
        (void)close(leash[0]);
        (void)close(leash[1]);
    }
}

ATTACHED
CHECKED(no_thread_safety_analysis)
static void
child_may_install_its_own(void **state)
{
    (void)state;
    SKIP_UNDER_THREAD_SANITIZER();
    install_quietly();
    for (int attached = 0; attached < 2; attached++) {
        assert_ends_well(fork_and_run(attached,
                                      "import manhole, os\n"
                                      "path = '/tmp/manhole-%d' % os.getpid()\n"
                                      "object = manhole.install(verbose=False)\n"
                                      "assert os.path.exists(path)\n"
                                      "object.release()\n"
                                      "assert not os.path.exists(path)\n",
                                      -1));
    }
}

/* The one that computes has the GIL in turns. */
ATTACHED
CHECKED(no_thread_safety_analysis)
static void
child_uses_python_though_a_client_computes_in_the_program(void **state)
{
    PyThreadState *tstate = NULL;
    int client = -1;
    (void)state;
    install_quietly();
    tstate = PyEval_SaveThread();
    client = connect_client();
    send_string(client, "print('at', 'it')\nwhile True: pass\n\n");
    assert_true(read_until(client, "at it"));
    PyEval_RestoreThread(tstate);
    for (int i = 0; i < 20; i++) {
        assert_ends_well(fork_and_run(i % 2 == 0, "sum(range(100000))", -1));
    }
    (void)close(client); /* which interrupts it */
}

struct keeper {
    int leash;
    _Atomic bool has_it;
};

/* Has the GIL until a byte comes. */
static void *
keep_gil(void *argument)
{
    struct keeper *keeper = argument;
    PyGILState_STATE gil = PyGILState_Ensure();
    char byte = 0;
    atomic_store(&keeper->has_it, true);
    (void)!read(keeper->leash, &byte, 1);
    PyGILState_Release(gil);
    return NULL;
}

/* Its child, which becomes another program, say, has no need of Python. */
ATTACHED
CHECKED(no_thread_safety_analysis)
static void
fork_goes_through_beside_a_client_who_waits_for_a_stuck_python(void **state)
{
    int leash[2] = {-1, -1};
    struct keeper keeper = {-1, false};
    PyThreadState *tstate = NULL;
    pthread_t thread;
    int client = -1;
    pid_t child = 0;
    (void)state;
    SKIP_WITHOUT_GIL();
    SKIP_UNDER_THREAD_SANITIZER();
    install_quietly();
    assert_int_equal(pipe2(leash, O_CLOEXEC), 0);
    keeper.leash = leash[0];
    tstate = PyEval_SaveThread();
    assert_int_equal(pthread_create(&thread, NULL, keep_gil, &keeper), 0);
    while (!atomic_load(&keeper.has_it)) {
        (void)sched_yield();
    }
    client = connect_client();
    assert_true(read_until(client, "manhole: the prompt comes here as soon as"));
    child = fork();
    if (child == 0) {
        _exit(0);
    }
    assert_ends_well(child);
    assert_int_equal(write(leash[1], "", 1), 1);
    assert_int_equal(pthread_join(thread, NULL), 0);
    (void)close(client);
    PyEval_RestoreThread(tstate);
}

/* It waits for what a session imports, but not until an hour of the day. */
ATTACHED static void
fork_does_not_wait_for_a_clock_that_is_set_back(void **state)
{
    (void)state;
    is_set_back = true;
    assert_int_equal(pthread_mutex_lock(&import_lock), 0);
    Py_XDECREF(py_before_fork(NULL, NULL));
    assert_int_equal(import_locks, 0);
    assert_int_equal(pthread_mutex_unlock(&import_lock), 0);
    Py_XDECREF(py_before_fork(NULL, NULL));
    assert_int_equal(import_locks, 1);
    Py_XDECREF(py_after_fork_in_parent(NULL, NULL));
    is_set_back = false;
}

int
main(void)
{
    static const struct CMUnitTest tests[] = {
        WITH_PYTHON(module_is_the_one_that_import_finds),
        WITH_PYTHON(null_installs_with_the_defaults),
        WITH_PYTHON(wrong_option_is_named_and_nothing_installed),
        WITH_PYTHON(second_install_fails_unless_it_may_replace_the_first),
        WITH_PYTHON(release_without_install_is_harmless),
        WITH_PYTHON(other_module_of_that_name_is_not_taken),
        WITH_PYTHON(name_given_to_the_console_may_be_dropped_after_install),
        WITH_PYTHON(any_attached_thread_may_install),
        WITH_PYTHON(attached_thread_dumps_without_install),
        WITH_PYTHON(thread_that_has_just_begun_hides_no_other),
        WITH_PYTHON(attached_thread_dumps_with_install),
        WITH_PYTHON(thread_without_python_dumps_while_python_hangs),
        WITH_PYTHON(thread_without_python_needs_an_installed_manhole),
        WITH_PYTHON(thread_of_the_program_may_attach_and_dump),
        WITH_PYTHON(descriptor_that_takes_nothing_is_an_errno_and_no_exception),
        WITH_PYTHON(exception_of_the_caller_stays),
        cmocka_unit_test(end_of_python_waits_for_clients),
        cmocka_unit_test(end_of_python_interrupts_what_a_client_left_running),
        cmocka_unit_test(python_may_end_and_begin_again),
        cmocka_unit_test(dump_after_python_s_end_is_refused),
        WITH_PYTHON(client_is_in_the_interpreter_that_installed),
        WITH_PYTHON(subinterpreter_may_install_and_end),
        WITH_PYTHON(subinterpreter_that_ends_leaves_another_s_manhole),
        WITH_PYTHON(subinterpreter_with_a_gil_of_its_own_is_refused),
        WITH_PYTHON(fork_waits_for_a_thread_on_its_way_in),
        WITH_PYTHON(child_of_the_program_answers),
        WITH_PYTHON(child_may_install_its_own),
        WITH_PYTHON(child_uses_python_though_a_client_computes_in_the_program),
        WITH_PYTHON(fork_goes_through_beside_a_client_who_waits_for_a_stuck_python),
        WITH_PYTHON(fork_does_not_wait_for_a_clock_that_is_set_back),
        /* Last, for the inittab stays. */
        cmocka_unit_test_setup_teardown(module_of_the_inittab_is_used,
                                        begin_python_with_module, end_python),
    };
    (void)alarm(300); /* Python that does not end is a failure, too */
    return RUN_UNIT_TESTS(tests);
}
