/* e2e_hang.c - processes whose Python does not answer still tell what they are doing.
 *
 * This file is compiled twice: as the test program, and by that, with STUCK_EXTENSION
 * defined, as the extension module `stuck`, whose functions hang in the ways that a real
 * one can.
 */
#ifdef STUCK_EXTENSION

#  define PY_SSIZE_T_CLEAN
#  include <Python.h>

#  include <errno.h>
#  include <poll.h>
#  include <pthread.h>
#  include <signal.h>
#  include <stdio.h>
#  include <stdlib.h>
#  include <string.h>
#  include <sys/mman.h>
#  include <sys/wait.h>
#  include <unistd.h>

/* From here on the GIL is held until the function returns. */
static void
say_ready(void)
{
    (void)!write(STDOUT_FILENO, "ready\n", 6);
}

static PyObject *
spin(PyObject *module, PyObject *unused)
{
    volatile int still = 1;
    (void)module;
    (void)unused;
    say_ready();
    while (still) {
    }
    Py_RETURN_NONE;
}

/* Until a byte comes on stdin: looks for children as an application does that reaps its own.
 * Returns how often it saw one. */
static PyObject *
look_for_children(PyObject *module, PyObject *unused)
{
    struct pollfd input = {.fd = STDIN_FILENO, .events = POLLIN};
    long seen = 0;
    (void)module;
    (void)unused;
    say_ready();
    while (poll(&input, 1, 0) == 0) {
        int status = 0;
        seen += waitpid(-1, &status, WNOHANG) >= 0 || errno != ECHILD;
    }
    return PyLong_FromLong(seen);
}

static void
on_fork(void)
{
    (void)!write(STDERR_FILENO, "fork handler\n", 13);
}

static PyObject *
watch_forks(PyObject *module, PyObject *unused)
{
    (void)module;
    (void)unused;
    (void)pthread_atfork(on_fork, on_fork, on_fork);
    Py_RETURN_NONE;
}

static struct {
    char *start;
    size_t size;
    volatile sig_atomic_t is_hit;
} heap;

/* In the middle of malloc(), whose lock is held: stays until a byte comes on stdin. */
static void
on_heap_access(int signal_number)
{
    char byte = 0;
    (void)signal_number;
    (void)mprotect(heap.start, heap.size, PROT_READ | PROT_WRITE);
    heap.is_hit = 1;
    say_ready();
    (void)!read(STDIN_FILENO, &byte, 1);
}

static void
find_heap(void)
{
    char line[512];
    FILE *maps = fopen("/proc/self/maps", "re");
    while (maps != NULL && fgets(line, sizeof(line), maps) != NULL) {
        unsigned long start = 0;
        unsigned long end = 0;
        if (strstr(line, "[heap]") != NULL &&
            sscanf(line, "%lx-%lx", &start, &end) == 2) {
            heap.start = (char *)start;
            heap.size = end - start;
        }
    }
    if (maps != NULL) {
        (void)fclose(maps);
    }
}

/* Takes the heap's pages away, so that malloc() itself faults. */
static PyObject *
hold_malloc(PyObject *module, PyObject *unused)
{
    struct sigaction action = {.sa_handler = on_heap_access};
    struct sigaction before;
    void *volatile memory = NULL;
    (void)module;
    (void)unused;
    find_heap();
    (void)sigaction(SIGSEGV, &action, &before);
    (void)mprotect(heap.start, heap.size, PROT_NONE);
    memory = malloc(8000); /* more than what a thread keeps for itself */
    (void)mprotect(heap.start, heap.size, PROT_READ | PROT_WRITE);
    (void)sigaction(SIGSEGV, &before, NULL);
    free(memory);
    return PyBool_FromLong(heap.is_hit);
}

static PyMethodDef methods[] = {
    {"spin", spin, METH_NOARGS, NULL},
    {"look_for_children", look_for_children, METH_NOARGS, NULL},
    {"watch_forks", watch_forks, METH_NOARGS, NULL},
    {"hold_malloc", hold_malloc, METH_NOARGS, NULL},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef definition = {PyModuleDef_HEAD_INIT, .m_name = "stuck",
                                        .m_size = -1, .m_methods = methods};

PyMODINIT_FUNC PyInit_stuck(void);

PyMODINIT_FUNC
PyInit_stuck(void)
{
    PyObject *module = PyModule_Create(&definition);
#  ifdef Py_GIL_DISABLED
    (void)PyUnstable_Module_SetGIL(module, Py_MOD_GIL_NOT_USED);
#  endif
    return module;
}

#else

#  include "support.h"

#  include <signal.h>
#  include <stdio.h>
#  include <stdlib.h>
#  include <string.h>
#  include <sys/resource.h>
#  include <unistd.h>

/* Short, so that a test does not wait; one test has the default. */
#  define SOON "hang_timeout=0.05"

/* What the client sees first of a process that hangs, and what ends the dump. */
#  define HANGS "manhole: Python has not answered for "
#  define PROMPT_LATER "manhole: the prompt comes here as soon as Python answers.\n"

/* Three threads at rest in a function of their own. Tells the kernel's number of each. */
#  define PARKED_THREADS                                                                 \
    "import ctypes, os, threading, time\n"                                               \
    "event = threading.Event()\n"                                                        \
    "def park():\n"                                                                      \
    "    event.wait() # parked here\n"                                                   \
    "for i in range(3):\n"                                                               \
    "    threading.Thread(target=park, name='parked-' + str(i), daemon=True).start()\n"  \
    "while len(event._cond._waiters) < 3: time.sleep(0.001)\n"                           \
    "for t in threading.enumerate():\n"                                                  \
    "    print('thread', t.name, t.native_id, flush=True)\n"                             \
    "c = ctypes.PyDLL(None)\n"                                                           \
    "byte = ctypes.create_string_buffer(1)\n"

/* Keeps the GIL until the test writes to the process's stdin. */
#  define HOLD_GIL "c.read(0, byte, 1) # held here\n"

/* A whole program that hangs until then, and goes on. */
#  define HANGING(options)                                                               \
    INSTALL(options) PARKED_THREADS READY HOLD_GIL "print('went on', flush=True)\n" STAY

/* It said that it is ready just before the call that does not come back. */
static struct process *
start_hanging(const char *program)
{
    struct process *app = start_target(program);
    wait_until_ready(app);
    wait_until_asleep(app->pid);
    return app;
}

static const char *
client_read_dump(struct client *client)
{
    client_wait_for(client, HANGS);
    return client_wait_for(client, PROMPT_LATER);
}

static void
end_hang(struct process *app)
{
    write_stdin(app, "x");
    wait_for_text(app, OUT, "went on\n", DEADLINE);
}

static void
assert_at_prompt(struct client *client)
{
    client_wait_for(client, ">>> ");
    client_send(client, "6 * 7\n");
    /* And what the app prints, and a report that came too late. */
    client_wait_for(client, "42\n");
    client_wait_for(client, ">>> ");
}

/* The line that the dump of a stuck process has of its main thread. */
static void
assert_main_thread_holds(const char *dump, const char *state)
{
    assert_matches(dump, format_text("^Thread: MainThread, .*, %s.*%s$", state,
                                     has_gil() ? ", holds the GIL" : ""));
}

/* Builds the extension where the process finds it. */
static void
build_extension(void)
{
    const char *include = NULL;
    const char *err = NULL;
    require_program("cc");
    run_command(LIST(python(), "-c",
                     "import sysconfig\n"
                     "print(sysconfig.get_path('include'), end='')\n"),
                NULL, &include, NULL);
    if (!path_exists(format_text("%s/Python.h", include))) {
        skip_test("this Python has no Python.h");
    }
    int status = run_command(LIST("cc", "-shared", "-fPIC", "-O1", "-DSTUCK_EXTENSION",
                                  format_text("-I%s", include), "-o",
                                  test_path("stuck.so"), source_path("test/e2e_hang.c")),
                             NULL, NULL, &err);
    if (status != 0) {
        fail_msg("cc: %s", err);
    }
}

/* ======================================================================================
 * What the client sees while the GIL is held.
 * ======================================================================================
 */

/* The kernel's number that the process printed for a thread. */
static const char *
native_id_of(const struct process *app, const char *name)
{
    const char *key = format_text("thread %s ", name);
    const char *found = strstr(text_of(app, OUT), key);
    assert_non_null(found);
    found += strlen(key);
    return format_text("%.*s", (int)strspn(found, "0123456789"), found);
}

static void
assert_threads_shown(const struct process *app, const char *dump)
{
    static const char *const names[] = {"MainThread", "parked-0", "parked-1", "parked-2"};
    for (size_t i = 0; i < 4; i++) {
        assert_matches(dump,
                       format_text("^######### ProcessID=%d, ThreadID=[0-9]+ "
                                   "#########\nThread: %s, TID %s, [a-z]+",
                                   (int)app->pid, names[i], native_id_of(app, names[i])));
    }
}

/* Ways of C code to keep the GIL for ever. */
static const struct hold {
    const char *name;
    const char *program;
    const char *line;  /* where the main thread is, as the dump shows it */
    const char *state; /* what the kernel says of it */
} holds[] = {
    {"a call that sleeps", PARKED_THREADS READY "c.sleep(1000) # held here\n",
     "  c.sleep(1000) # held here\n", "sleeping"},
    {"a mutex that is locked twice",
     PARKED_THREADS "mutex = ctypes.create_string_buffer(256)\n"
                    "c.pthread_mutex_lock(mutex)\n" READY
                    "c.pthread_mutex_lock(mutex) # held here\n",
     "  c.pthread_mutex_lock(mutex) # held here\n", "sleeping"},
    {"a call that reads", PARKED_THREADS READY HOLD_GIL, "  " HOLD_GIL, "sleeping"},
};

static void
assert_hang_shown(const struct process *app, const struct hold *hold)
{
    struct client *client = connect_to(app);
    const char *dump = client_read_dump(client);
    assert_threads_shown(app, dump);
    assert_contains(dump, "  event.wait() # parked here\n");
    if (strstr(dump, hold->line) == NULL) {
        fail_msg("%s: the dump does not show its line", hold->name);
    }
    assert_main_thread_holds(dump, hold->state);
    client_close(client);
}

static void
stacks_come_while_c_code_holds_the_gil(void)
{
    for (size_t i = 0; i < sizeof(holds) / sizeof(holds[0]); i++) {
        assert_hang_shown(
            start_hanging(format_text(INSTALL(SOON) "%s", holds[i].program)), &holds[i]);
    }
}

static void
stacks_come_while_an_extension_spins_with_the_gil(void)
{
    static const struct hold spinning = {"an extension", NULL, "  stuck.spin()\n",
                                         "running"};
    build_extension();
    struct process *app =
        start_target(INSTALL(SOON) PARKED_THREADS "import stuck\nstuck.spin()\n");
    wait_until_ready(app);
    assert_hang_shown(app, &spinning);
}

static void
prompt_comes_on_the_same_connection_when_the_call_ends(void)
{
    struct process *app = start_hanging(HANGING(SOON));
    struct client *client = connect_to(app);
    client_read_dump(client);
    end_hang(app);
    assert_at_prompt(client);
}

static void
each_client_gets_the_stacks_and_the_prompt(void)
{
    struct process *app = start_hanging(HANGING(SOON));
    struct client *clients[6];
    for (size_t i = 0; i < 3; i++) {
        clients[i] = connect_to(app);
        assert_threads_shown(app, client_read_dump(clients[i]));
    }
    for (size_t i = 3; i < 6; i++) {
        clients[i] = connect_to(app);
    }
    for (size_t i = 3; i < 6; i++) {
        assert_threads_shown(app, client_read_dump(clients[i]));
    }
    end_hang(app);
    for (size_t i = 0; i < 6; i++) {
        assert_at_prompt(clients[i]);
    }
}

static void
stacks_come_after_a_second_unless_said_otherwise(void)
{
    struct process *app = start_hanging(
        "import manhole; manhole.install()\n" PARKED_THREADS READY HOLD_GIL STAY);
    struct client *client = connect_to(app);
    assert_contains(client_wait_for(client, "UTC:"), HANGS "1 s, since ");
}

static void
stacks_do_not_come_before_hang_timeout(void)
{
    struct process *app = start_hanging(HANGING("hang_timeout=1.5"));
    long begin_ms = now_ms();
    client_wait_for(connect_to(app), HANGS);
    assert_true(now_ms() - begin_ms >= 1500);
}

static void
hang_timeout_0_sends_the_stacks_at_once(void)
{
    struct process *app = start_hanging(HANGING("hang_timeout=0"));
    struct client *client = connect_to(app);
    assert_contains(client_wait_for(client, "UTC:"), HANGS "0 s, since ");
    assert_threads_shown(app, client_wait_for(client, PROMPT_LATER));
}

static void
client_that_leaves_a_hung_process_leaves_nothing_in_it(void)
{
    struct process *app = start_hanging(HANGING(SOON));
    int fds = count_fds(app->pid);
    for (int i = 0; i < 5; i++) {
        struct client *client = connect_to(app);
        client_read_dump(client);
        client_close(client);
    }
    end_hang(app);
    struct client *last = connect_to(app);
    client_wait_for(last, ">>> ");
    client_ask(last, "import os, threading");
    client_send(last, "while len(os.listdir('/proc/self/task')) > 6: pass\n\n");
    client_wait_for(last, ">>> "); /* main, three parked, listener, this session */
    client_close(last);
    struct client *after = connect_to(app);
    client_wait_for(after, ">>> ");
    wait_for_usage(app->pid, fds + 1, 6);
}

/* ======================================================================================
 * What the application sees of it: nothing.
 * ======================================================================================
 */

static void
application_sees_no_child_and_no_fork(void)
{
    require_gil(); /* else a greeting makes a copy, too: when all is over */
    build_extension();
    struct process *app =
        start_target(INSTALL(SOON) PARKED_THREADS
                     "import signal, stuck\n"
                     "def tell(*_): print('SIGCHLD', flush=True)\n"
                     "signal.signal(signal.SIGCHLD, tell)\n"
                     "os.register_at_fork(before=lambda: print('fork', flush=True))\n"
                     "stuck.watch_forks()\n"
                     "print('children', stuck.look_for_children(), flush=True)\n"
                     "os.read(0, 1)\n"
                     "WALL = 0x40000000 # also what a raw clone has made\n"
                     "try: print(os.waitpid(-1, os.WNOHANG | WALL))\n"
                     "except ChildProcessError: print('none', flush=True)\n" STAY);
    wait_until_ready(app);
    for (int i = 0; i < 5; i++) {
        struct client *client = connect_to(app);
        assert_threads_shown(app, client_read_dump(client));
        client_close(client);
    }
    write_stdin(app, "x");
    wait_for_text(app, OUT, "none\n", DEADLINE);
    assert_matches(text_of(app, OUT), "^ready\nchildren 0\nnone$");
    assert_not_contains(text_of(app, ERR), "fork handler");
}

/* A C library's reading function does not try again, as Python does. */
#  define READ_100000                                                                    \
    "import ctypes, os\n"                                                                \
    "c = ctypes.CDLL(None, use_errno=True)\n"                                            \
    "stdin = ctypes.c_void_p.in_dll(c, 'stdin')\n"                                       \
    "buffer = ctypes.create_string_buffer(100000)\n" READY                               \
    "count = c.fread(buffer, 1, 100000, stdin)\n"                                        \
    "print('count', count, 'errno', ctypes.get_errno(), flush=True)\n"

static void
activating_signals_cut_nothing_short(void)
{
    struct process *app = start_hanging(INSTALL("activate_on='USR1'") READ_100000 STAY);
    const char *piece = format_text("%0100d", 0);
    for (int i = 0; i < 1000; i++) {
        send_signal(app, SIGUSR1);
        write_stdin(app, piece);
    }
    wait_for_text(app, OUT, "count 100000 errno 0\n", DEADLINE);
    wait_for_path(socket_path_of(app->pid), DEADLINE);
}

static void
program_goes_on_as_if_nothing_had_been(void)
{
    struct process *app = start_hanging(HANGING(SOON));
    struct client *client = connect_to(app);
    client_read_dump(client);
    end_hang(app);
    assert_at_prompt(client);
    client_close(client);
    close_stdin(app);
    assert_int_equal(wait_for_exit(app, DEADLINE), 0);
}

/* ======================================================================================
 * No copy can be made, or every copy dies: that is said, and what the kernel knows is shown.
 * ======================================================================================
 */

static void
assert_kernels_view(const struct process *app, const char *dump)
{
    static const char *const names[] = {"MainThread", "parked-0", "parked-1", "parked-2"};
    for (size_t i = 0; i < 4; i++) {
        assert_matches(dump, format_text("^  TID %s \\(.*\\), sleeping",
                                         native_id_of(app, names[i])));
    }
}

static void
copies_that_die_are_told(void)
{
    struct process *app = start_hanging( //
        INSTALL(SOON) PARKED_THREADS     //
        "import resource\n"              /* what the copy writes to has a size, too */
        "resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))\n" READY HOLD_GIL);
    struct client *client = connect_to(app);
    const char *dump = client_read_dump(client);
    assert_contains(dump, "The frozen copies of the process died");
    assert_kernels_view(app, dump);
}

static void
signal_that_the_application_took_is_told(void)
{
    if (is_wrapped()) {
        skip_test("valgrind keeps a signal for itself");
    }
    struct process *app =
        start_hanging(INSTALL(SOON) PARKED_THREADS
                      "import signal\n"
                      "for s in range(signal.SIGRTMIN, signal.SIGRTMAX + 1):\n"
                      "    signal.signal(s, lambda *_: None)\n" READY HOLD_GIL);
    struct client *client = connect_to(app);
    const char *dump = client_read_dump(client);
    assert_matches(dump,
                   "^No frozen copy of the process can be made: signal [0-9]+, .* is "
                   "somebody else's now\\.$");
    assert_kernels_view(app, dump);
}

static void
want_of_a_free_signal_is_told(void)
{
    if (is_wrapped()) {
        skip_test("valgrind keeps a signal for itself");
    }
    struct process *app =
        start_hanging("import signal\n"
                      "for s in range(signal.SIGRTMIN, signal.SIGRTMAX + 1):\n"
                      "    signal.signal(s, lambda *_: None)\n" INSTALL(SOON)
                          PARKED_THREADS READY HOLD_GIL);
    struct client *client = connect_to(app);
    const char *dump = client_read_dump(client);
    assert_contains(dump,
                    "No frozen copy of the process can be made: no real-time signal "
                    "was free for faulthandler at install, its log tells.\n");
    assert_kernels_view(app, dump);
}

/* Nobody can tell what its threads do, but they are there. */
static void
threads_without_proc_are_not_said_to_be_gone(void)
{
    if (geteuid() != 0) {
        skip_test("only root can change its root");
    }
    struct process *app = start_hanging("import ctypes, os\n" INSTALL(SOON) PARKED_THREADS
                                        "os.mkdir('empty')\n"
                                        "os.chroot('empty')\n" READY HOLD_GIL);
    struct client *client = connect_to(app);
    /* Without a GIL only imports wait for the call, and there is nothing to import. */
    const char *dump =
        has_gil() ? client_read_dump(client) : client_wait_for(client, ">>> ");
    assert_not_contains(dump, "gone");
    assert_matches(dump, "^Thread: MainThread, TID [0-9]+, its state is not to be read");
    expect_socket_left(socket_path_of(app->pid));
}

/* As mod_wsgi runs its applications. */
static void
stuck_subinterpreter_shows_its_own_stacks(void)
{
    require_gil();
    struct process *app = start_target(
        "try:\n"
        "    import _interpreters as subs; sub = subs.create('legacy')\n"
        "except ImportError:\n"
        "    import _xxsubinterpreters as subs; sub = subs.create(isolated=False)\n"
        "subs.run_string(sub, '''if True:\n"
        "    import ctypes, manhole, os, threading\n"
        "    manhole.install(hang_timeout=0.3)\n"
        "    def park(): threading.Event().wait()\n"
        "    threading.Thread(target=park, daemon=True).start()\n"
        "    def hang(): ctypes.PyDLL(None).sleep(1000)\n"
        "    os.write(1, b'ready\\\\n')\n"
        "    hang()\n"
        "''')\n");
    wait_until_ready(app);
    struct client *client = connect_to(app);
    client_send(client, "1\n"); /* should it have come before the hang */
    client_wait_for(client, HANGS);
    const char *dump = client_wait_for(client, PROMPT_LATER);
    assert_contains(dump, "in park\n");
    assert_contains(dump, "in hang\n");
}

/* It may be what holds the GIL. */
static void
stacks_of_all_interpreters_come_from_a_copy(void)
{
    require_gil();
    struct process *app = start_target(
        "import manhole, os\n"
        "try:\n"
        "    import _interpreters as subs; sub = subs.create('legacy')\n"
        "except ImportError:\n"
        "    import _xxsubinterpreters as subs; sub = subs.create(isolated=False)\n"
        "manhole.install(hang_timeout=0.3)\n"
        "def run_it(): subs.run_string(sub, '''if True:\n"
        "    import ctypes, os, threading\n"
        "    def park(): threading.Event().wait()\n"
        "    threading.Thread(target=park, daemon=True).start()\n"
        "    def hang(): ctypes.PyDLL(None).sleep(1000)\n"
        "    os.write(1, b'ready\\\\n')\n"
        "    hang()\n"
        "''')\n"
        "run_it()\n");
    wait_until_ready(app);
    struct client *client = connect_to(app);
    client_send(client, "1\n"); /* should it have come before the hang */
    client_wait_for(client, HANGS);
    const char *dump = client_wait_for(client, PROMPT_LATER);
    assert_contains(dump, "in run_it\n");
    assert_matches(dump, "^Thread: (.*, )?of interpreter [0-9]+, .*holds the GIL");
    assert_contains(dump, "in hang\n");
    assert_contains(dump, "in park\n");
}

/* Its frames come and go while ours stand still. */
static void
look_does_no_harm_beside_an_interpreter_with_a_gil_of_its_own(void)
{
    require_gil();
    struct process *app = start_target(
        "import manhole, os, sys, threading\n"
        "if sys.version_info < (3, 12):\n"
        "    subs = None\n"
        "elif sys.version_info < (3, 13):\n"
        "    import _xxsubinterpreters as subs; sub = subs.create(isolated=True)\n"
        "else:\n"
        "    import _interpreters as subs; sub = subs.create('isolated')\n"
        "manhole.install(verbose=False)\n"
        "code = 'def leaf(n): return n and leaf(n - 1)\\nwhile True: leaf(20)'\n"
        "if subs: threading.Thread(target=subs.run_string, args=(sub, code),\n"
        "                          daemon=True).start()\n"
        "def wait_here():\n"
        "    os.write(1, b'ready\\n' if subs else b'none\\n')\n"
        "    threading.Event().wait()\n"
        "wait_here()\n");
    if (strstr(wait_for_text(app, OUT, "\n", DEADLINE), "none") != NULL) {
        skip_test("such interpreters came with CPython 3.12");
    }
    for (int i = 0; i < 50; i++) {
        struct client *client = connect_to(app);
        client_wait_for(client, "in wait_here\n");
        client_wait_for(client, ">>> ");
        client_close(client);
    }
}

static void
signal_that_the_application_took_stays_its_own(void)
{
    struct process *app =
        start_target("import manhole, os, signal, sys\n"
                     "it = manhole.install()\n"
                     "heard = set()\n"
                     "signals = range(signal.SIGRTMIN, signal.SIGRTMAX + 1)\n"
                     "for s in signals: signal.signal(s, lambda s, _: heard.add(s))\n"
                     "it.release()\n"
                     "for s in signals: os.kill(os.getpid(), s)\n"
                     "sys.exit(heard != set(signals))\n");
    assert_int_equal(wait_for_exit(app, DEADLINE), 0);
}

/* As a user of its own, for the kernel counts all processes of a user. With room for so many
 * more threads. */
static struct process *
start_limited(int room)
{
    if (geteuid() != 0) {
        skip_test("only root can take on another uid");
    }
    const unsigned uid = 100000 + (unsigned)getpid();
    return start_hanging(format_text(
        PARKED_THREADS "import manhole, resource\n"
                       "os.setgid(%u); os.setuid(%u)\n"
                       "manhole.install(" SOON ")\n"
                       "most = len(os.listdir('/proc/self/task')) + %d\n"
                       "resource.setrlimit(resource.RLIMIT_NPROC, (most, most))\n" //
        READY HOLD_GIL,
        uid, uid, room));
}

/* Room for the session and for who would make the copy. */
static void
limit_of_processes_is_told(void)
{
    struct process *app = start_limited(2);
    struct client *client = connect_to(app);
    const char *dump = client_read_dump(client);
    assert_contains(dump, "No frozen copy of the process can be made: Resource "
                          "temporarily unavailable");
    assert_kernels_view(app, dump);
}

static void
limit_of_threads_is_told(void)
{
    struct process *app = start_limited(1);
    struct client *client = connect_to(app);
    const char *dump = client_read_dump(client);
    assert_contains(dump, "No thread can be started to make a frozen copy");
    assert_kernels_view(app, dump);
}

static void
limit_of_threads_is_told_to_who_asks_for_tasks(void)
{
    require_gil();
    const char *err = NULL;
    struct process *app = start_limited(1);
    int status = run_command(
        LIST(build_path("manhole-cli"), "--tasks", format_text("%d", (int)app->pid)),
        NULL, NULL, &err);
    assert_int_equal(status, 5);
    assert_contains(err, "no thread can be started to make a frozen copy");
}

/* A filter that refuses memfd_create(), as sandboxes have; and so many stacks that a pipe cannot
 * hold them. */
static void
stacks_come_behind_a_seccomp_filter(void)
{
    struct process *app = start_target(
        "import ctypes, os, platform, struct, sys, threading, time\n"
        "number = {'x86_64': 319, 'aarch64': 279}[platform.machine()]\n"
        "rules = [(0x20, 0, 0, 0), (0x15, 0, 1, number), (6, 0, 0, 0x50001),\n"
        "         (6, 0, 0, 0x7fff0000)]\n"
        "code = b''.join(struct.pack('HBBI', *rule) for rule in rules)\n"
        "code = ctypes.create_string_buffer(code)\n"
        "filter = struct.pack('HxxxxxxP', len(rules), ctypes.addressof(code))\n"
        "c = ctypes.PyDLL(None)\n"
        "c.prctl(38, 1, 0, 0, 0); c.prctl(22, 2, ctypes.create_string_buffer(filter))\n"
        "try: os.memfd_create('x'); print('none')\n"
        "except PermissionError: print('refused')\n"
        "except OSError as error: print('none', error)\n" INSTALL(
            SOON) "event = threading.Event()\n"
                  "def descend(n): descend(n - 1) if n else event.wait()\n"
                  "for i in range(30):\n"
                  "    threading.Thread(target=descend, args=(80,), "
                  "daemon=True).start()\n"
                  "while len(event._cond._waiters) < 30: time.sleep(0.001)\n" READY
                  "c.sleep(1000)\n");
    wait_until_ready(app);
    if (strstr(text_of(app, OUT), "none") != NULL) {
        skip_test("no such filter here");
    }
    const char *dump = client_read_dump(connect_to(app));
    assert_contains(dump, "30 threads with the same stack:\n");
    assert_matches(dump, "^Thread: Thread-30.*, TID [0-9]+, ");
    assert_contains(dump, "  c.sleep(1000)\n");
}

static void
client_without_a_thread_is_told(void)
{
    struct process *app = start_limited(0);
    assert_string_equal(client_read_until_eof(connect_to(app)),
                        "manhole: cannot start a thread for you: Resource temporarily "
                        "unavailable\n");
}

#  define TAKE_DESCRIPTORS                                                               \
    "import os\n"                                                                        \
    "taken = []\n"                                                                       \
    "try:\n"                                                                             \
    "    while True: taken.append(os.dup(0))\n"                                          \
    "except OSError: os.close(taken.pop())\n"

/* Room for the client alone. */
static void
limit_of_descriptors_does_no_harm(void)
{
    struct process *app =
        start_hanging(INSTALL(SOON) PARKED_THREADS TAKE_DESCRIPTORS READY HOLD_GIL
                      "for fd in taken: os.close(fd)\n");
    struct client *client = connect_to(app);
    assert_threads_shown(app, client_read_dump(client));
}

static void
limit_of_descriptors_leaves_room_for_a_client(void)
{
    struct process *app =
        start_target(INSTALL("") TAKE_DESCRIPTORS READY "import time\n"
                                                        "while True: time.sleep(0.01)\n");
    wait_until_ready(app);
    struct client *client = connect_to(app);
    assert_matches(client_wait_for(client, ">>> "), "^  (while True|print\\('ready')");
    assert_string_equal(client_ask(client, "6 * 7"), "42\n");
}

/* The application has a limit for the size of its files; the copy makes none. */
static void
limit_of_file_sizes_does_no_harm(void)
{
    struct process *app =
        start_hanging(INSTALL(SOON) PARKED_THREADS
                      "import resource\n"
                      "_, most = resource.getrlimit(resource.RLIMIT_FSIZE)\n"
                      "resource.setrlimit(resource.RLIMIT_FSIZE, (0, most))\n" //
                      READY HOLD_GIL);
    struct client *client = connect_to(app);
    assert_threads_shown(app, client_read_dump(client));
}

/* Less than a thread's usual stack wants. */
static void
limit_of_memory_does_no_harm(void)
{
    if (is_wrapped()) {
        skip_test("valgrind wants more memory");
    }
    struct process *app = start_hanging(
        INSTALL(SOON) PARKED_THREADS
        "import resource\n"
        "used = int(open('/proc/self/statm').read().split()[0]) * 4096\n"
        "most = used + (12 << 20)\n"
        "resource.setrlimit(resource.RLIMIT_AS, (most, most))\n" READY HOLD_GIL);
    struct client *client = connect_to(app);
    assert_threads_shown(app, client_read_dump(client));
}

/* ======================================================================================
 * Other ways not to answer.
 * ======================================================================================
 */

static void
stacks_come_while_the_stuck_thread_is_inside_malloc(void)
{
    build_extension();
    struct process *app =
        start_target(INSTALL(SOON) PARKED_THREADS
                     "import stuck\n"
                     "print('held', stuck.hold_malloc(), flush=True)\n" STAY);
    const char *said = wait_for_text(app, OUT, "\n", DEADLINE);
    while (strstr(said, "ready") == NULL && strstr(said, "held") == NULL) {
        said = wait_for_text(app, OUT, "\n", DEADLINE);
    }
    if (strstr(said, "held") != NULL) {
        skip_test("this malloc() keeps its memory elsewhere");
    }
    struct client *client = connect_to(app);
    assert_threads_shown(app, client_read_dump(client));
    write_stdin(app, "x");
    wait_for_text(app, OUT, "held True\n", DEADLINE);
    assert_at_prompt(client);
}

static void
manhole_cli_opens_a_hung_process_by_its_signal(void)
{
    struct process *app = start_hanging(HANGING("activate_on='USR1', " SOON));
    struct process *cli = start_process(.argv = LIST(build_path("manhole-cli"), "-1",
                                                     format_text("%d", (int)app->pid)));
    wait_for_text(cli, OUT, HANGS, DEADLINE);
    assert_threads_shown(app, wait_for_text(cli, OUT, PROMPT_LATER, DEADLINE));
    write_stdin(cli, "6 * 7\n");
    end_hang(app);
    wait_for_text(cli, OUT, "42\n", DEADLINE);
    close_stdin(cli);
    assert_int_equal(wait_for_exit(cli, DEADLINE), 0);
}

/* Nothing of Python's is held here: it is just that its main thread never comes back. */
static void
manhole_cli_gets_a_prompt_though_the_main_thread_is_deadlocked(void)
{
    struct process *app = start_hanging(
        INSTALL("activate_on='USR1'") "import ctypes\n"
                                      "c = ctypes.CDLL(None)\n"
                                      "mutex = ctypes.create_string_buffer(256)\n"
                                      "c.pthread_mutex_lock(mutex)\n" READY
                                      "c.pthread_mutex_lock(mutex) # for ever\n");
    const char *out = NULL;
    int status = run_command(
        LIST(build_path("manhole-cli"), "-1", format_text("%d", (int)app->pid)),
        "6 * 7\n", &out, NULL);
    assert_int_equal(status, 0);
    assert_contains(out, "  c.pthread_mutex_lock(mutex) # for ever\n");
    assert_contains(out, "(ManholeConsole)\n>>> 42\n");
}

static void
line_typed_to_a_process_that_has_got_stuck_is_answered_with_stacks(void)
{
    require_gil();
    struct process *app = start_hanging(INSTALL(SOON) PARKED_THREADS READY
                                        "os.read(0, 1)\n"
                                        "print('holds it', flush=True)\n" HOLD_GIL
                                        "print('went on', flush=True)\n" STAY);
    struct client *client = connect_to(app);
    assert_at_prompt(client);
    write_stdin(app, "x");
    wait_for_text(app, OUT, "holds it\n", DEADLINE);
    wait_until_asleep(app->pid);
    client_send(client, "6 * 7\n");
    const char *dump = client_read_dump(client);
    assert_threads_shown(app, dump);
    assert_contains(dump, "  " HOLD_GIL);
    end_hang(app);
    client_wait_for(client, "42\n>>> ");
}

static void
prompt_comes_though_a_module_is_being_imported(void)
{
    write_file("endless.py", READY STAY);
    struct process *app = start_hanging(INSTALL("hang_timeout=1000") "import endless\n");
    struct client *client = connect_to(app);
    const char *greeting = client_wait_for(client, ">>> ");
    assert_matches(greeting, "^File: \".*endless.py\", line [0-9]+, in <module>$");
    assert_string_equal(client_ask(client, "6 * 7"), "42\n");
}

static void
modules_of_the_console_that_take_their_time_are_no_hang(void)
{
    require_gil();
    struct process *app = start_hanging(
        INSTALL("hang_timeout=1") "import sys, time\n"
                                  "class Slow:\n"
                                  "    def find_spec(self, name, *rest):\n"
                                  "        if name == 'code': time.sleep(2)\n"
                                  "sys.meta_path.insert(0, Slow())\n" READY STAY);
    struct client *client = connect_to(app);
    client_wait_for(client, ">>> ");
    assert_string_equal(client_ask(client, "6 * 7"), "42\n");
    assert_not_contains(client->text.data, HANGS);
}

static void
stacks_come_while_the_import_lock_is_held(void)
{
    struct process *app =
        start_hanging(INSTALL("hang_timeout=0.5") PARKED_THREADS
                      "import _imp\n"
                      "_imp.acquire_lock()\n" READY "os.read(0, 1) # held here\n"
                      "_imp.release_lock()\n"
                      "print('went on', flush=True)\n" STAY);
    struct client *client = connect_to(app);
    const char *dump = client_wait_for(client, ">>> ");
    assert_not_contains(dump, HANGS);
    assert_contains(dump, "  os.read(0, 1) # held here\n");
    dump = client_read_dump(client); /* the console itself has modules to import */
    assert_threads_shown(app, dump);
    assert_contains(dump, "  os.read(0, 1) # held here\n");
    end_hang(app);
    assert_at_prompt(client);
}

/* So the thread that has the GIL is not asked for it before that time. */
static void
stacks_come_though_the_switch_interval_is_endless(void)
{
    require_gil();
    struct process *app =
        start_target(INSTALL(SOON) PARKED_THREADS
                     "import signal, sys\n"
                     "going = []\n"
                     "signal.signal(signal.SIGUSR2, lambda *_: going.append(1))\n"
                     "sys.setswitchinterval(1000)\n" READY "while not going: pass\n"
                     "print('went on', flush=True)\n" STAY);
    wait_until_ready(app);
    struct client *client = connect_to(app);
    const char *dump = client_read_dump(client);
    assert_threads_shown(app, dump);
    assert_main_thread_holds(dump, "running");
    send_signal(app, SIGUSR2);
    wait_for_text(app, OUT, "went on\n", DEADLINE);
    assert_at_prompt(client);
    client_ask(client, "import sys");
    assert_contains(client_ask(client, "sys.getswitchinterval()"), "1000.0\n");
}

/* Sends signals as fast as a shell can. */
static struct process *
start_storm(const struct process *app)
{
    return start_process(.argv =
                             LIST("sh", "-c",
                                  "while kill -USR1 \"$0\"; do kill -USR2 \"$0\"; done",
                                  format_text("%d", (int)app->pid)));
}

static void
signal_storm_keeps_nobody_out(void)
{
    struct process *app = start_target(
        "import signal\n"
        "signal.signal(signal.SIGUSR2, lambda *_: None)\n" INSTALL("activate_on='USR1'")
            READY "while True: sum(range(1000))\n");
    wait_until_ready(app);
    struct process *storm = start_storm(app);
    for (int i = 0; i < 5; i++) {
        struct client *client = connect_to(app);
        client_wait_for(client, ">>> ");
        assert_string_equal(client_ask(client, "6 * 7"), "42\n");
        client_close(client);
    }
    send_signal(storm, SIGTERM);
    assert_int_equal(wait_for_exit(storm, DEADLINE), -SIGTERM);
}

static void
stacks_come_in_a_signal_storm(void)
{
    struct process *app = start_hanging(
        "import signal\n"
        "signal.signal(signal.SIGUSR2, lambda *_: None)\n" //
        INSTALL("activate_on='USR1', " SOON) PARKED_THREADS
        "mutex = ctypes.create_string_buffer(256)\n"
        "c.pthread_mutex_lock(mutex)\n" READY "c.pthread_mutex_lock(mutex)\n");
    struct process *storm = start_storm(app);
    for (int i = 0; i < 3; i++) {
        struct client *client = connect_to(app);
        assert_threads_shown(app, client_read_dump(client));
        client_close(client);
    }
    send_signal(storm, SIGTERM);
    assert_int_equal(wait_for_exit(storm, DEADLINE), -SIGTERM);
}

int
main(void)
{
    static const struct test_case tests[] = {
        TEST(stacks_come_while_c_code_holds_the_gil),
        TEST(stacks_come_while_an_extension_spins_with_the_gil),
        TEST(prompt_comes_on_the_same_connection_when_the_call_ends),
        TEST(each_client_gets_the_stacks_and_the_prompt),
        TEST(stacks_come_after_a_second_unless_said_otherwise),
        TEST(stacks_do_not_come_before_hang_timeout),
        TEST(hang_timeout_0_sends_the_stacks_at_once),
        TEST(client_that_leaves_a_hung_process_leaves_nothing_in_it),
        TEST(application_sees_no_child_and_no_fork),
        TEST(activating_signals_cut_nothing_short),
        TEST(program_goes_on_as_if_nothing_had_been),
        TEST(copies_that_die_are_told),
        TEST(signal_that_the_application_took_is_told),
        TEST(want_of_a_free_signal_is_told),
        TEST(threads_without_proc_are_not_said_to_be_gone),
        TEST(stuck_subinterpreter_shows_its_own_stacks),
        TEST(stacks_of_all_interpreters_come_from_a_copy),
        TEST(look_does_no_harm_beside_an_interpreter_with_a_gil_of_its_own),
        TEST(signal_that_the_application_took_stays_its_own),
        TEST(limit_of_processes_is_told),
        TEST(limit_of_threads_is_told),
        TEST(limit_of_threads_is_told_to_who_asks_for_tasks),
        TEST(stacks_come_behind_a_seccomp_filter),
        TEST(client_without_a_thread_is_told),
        TEST(limit_of_descriptors_does_no_harm),
        TEST(limit_of_descriptors_leaves_room_for_a_client),
        TEST(limit_of_file_sizes_does_no_harm),
        TEST(limit_of_memory_does_no_harm),
        TEST(stacks_come_while_the_stuck_thread_is_inside_malloc),
        TEST(manhole_cli_opens_a_hung_process_by_its_signal),
        TEST(manhole_cli_gets_a_prompt_though_the_main_thread_is_deadlocked),
        TEST(line_typed_to_a_process_that_has_got_stuck_is_answered_with_stacks),
        TEST(prompt_comes_though_a_module_is_being_imported),
        TEST(modules_of_the_console_that_take_their_time_are_no_hang),
        TEST(stacks_come_while_the_import_lock_is_held),
        TEST(stacks_come_though_the_switch_interval_is_endless),
        TEST(signal_storm_keeps_nobody_out),
        TEST(stacks_come_in_a_signal_storm),
    };
    return RUN_TESTS(tests);
}

#endif
