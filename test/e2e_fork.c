/* e2e_fork.c - what becomes of a manhole in the children of its process. */
#include "support.h"

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* tell(): a line on the first process's standard output, in one piece however many write.
 * stay(): in a child, until the first process has ended. */
#define HELPERS                                                                          \
  "import os, sys, signal, warnings, manhole\n"                                          \
  "warnings.simplefilter('ignore') # fork() warns of threads\n"                          \
  "leash, held = os.pipe()\n"                                                            \
  "out = os.dup(1)\n"                                                                    \
  "def tell(*words):\n"                                                                  \
  "    os.write(out, (' '.join(map(str, words)) + '\\n').encode())\n"                    \
  "def stay():\n"                                                                        \
  "    os.close(held)\n"                                                                 \
  "    os.read(leash, 1)\n"

/* fork() as a C program does it that tells Python of it, uWSGI for one. */
#define C_FORK                                                                           \
  "import ctypes\n"                                                                      \
  "def c_fork():\n"                                                                      \
  "    python = ctypes.pythonapi\n"                                                      \
  "    python.PyOS_BeforeFork()\n"                                                       \
  "    pid = python.fork()\n"                                                            \
  "    python.PyOS_AfterFork_Child() if pid == 0 else python.PyOS_AfterFork_Parent()\n"  \
  "    return pid\n"

/* By the time the child tells its number, the fork is behind it. */
#define FORK_AND_TELL(fork)                                                              \
  "pid = " fork "\n"                                                                     \
  "if pid == 0: tell('child', os.getpid())\n"

#define CHILD_STAYS "if pid == 0: stay(); sys.exit(0)\n"

static pid_t
next_child(struct process *app)
{
    wait_for_text(app, OUT, "child ", DEADLINE);
    return (pid_t)strtol(wait_for_text(app, OUT, "\n", DEADLINE), NULL, 10);
}

static struct client *
client_at_prompt(const char *path)
{
    struct client *client = connect_client(path);
    client_wait_for(client, ">>> ");
    return client;
}

/* Whoever answers at this path is that process. */
static void
assert_answers_at(const char *path, pid_t pid)
{
    struct client *client = client_at_prompt(path);
    assert_string_equal(client_ask(client, "os.getpid()"), format_text("%d\n", (int)pid));
    client_close(client);
}

static void
assert_answers(pid_t pid)
{
    assert_answers_at(socket_path_of(pid), pid);
}

/* No thread that could open a socket now or later. */
static void
assert_has_no_manhole(pid_t pid)
{
    assert_int_equal(count_threads(pid), 1);
    assert_no_path(socket_path_of(pid));
}

/* ---- Every way to fork ------------------------------------------------------------- */

static void
assert_both_answer(const char *program)
{
    struct process *app = start_target(program);
    pid_t child = next_child(app);
    assert_answers(child);
    assert_answers(app->pid);
    close_stdin(app);
    assert_int_equal(wait_for_exit(app, DEADLINE), 0);
    wait_for_no_path(socket_path_of(child), DEADLINE);
}

#define FORKED(fork)                                                                     \
  HELPERS INSTALL("reinstall_delay=0.01") FORK_AND_TELL(fork) CHILD_STAYS STAY

static void
child_of_os_fork_answers(void)
{
    assert_both_answer(FORKED("os.fork()"));
}

static void
child_of_os_forkpty_answers(void)
{
    if (is_wrapped()) {
        skip_test("valgrind warns of an ioctl of forkpty()'s");
    }
    assert_both_answer(FORKED("os.forkpty()[0]"));
}

static void
child_of_a_fork_in_c_that_tells_python_answers(void)
{
    assert_both_answer(C_FORK FORKED("c_fork()"));
}

#define FORKED_BY_A_THREAD                                                               \
  HELPERS INSTALL("reinstall_delay=0.01") "import threading\n"                           \
                                          "def fork():\n"                                \
                                          "    if os.fork() == 0:\n"                     \
                                          "        tell('child', os.getpid())\n"         \
                                          "        stay()\n"                             \
                                          "thread = threading.Thread(target=fork)\n"     \
                                          "thread.start(); thread.join()\n" STAY

static void
child_forked_by_another_thread_answers(void)
{
    struct process *app = start_target(FORKED_BY_A_THREAD);
    assert_answers(next_child(app));
    assert_answers(app->pid);
}

/* As it does where there is no manhole. */
static void
child_forked_by_another_thread_ends_with_it(void)
{
    struct process *app = start_target(FORKED_BY_A_THREAD);
    const char *path = socket_path_of(next_child(app));
    wait_for_path(path, DEADLINE);
    close_stdin(app);
    assert_int_equal(wait_for_exit(app, DEADLINE), 0);
    wait_for_no_path(path, DEADLINE);
}

/* For a fork beside a thread that may be allocating: asan leaves the locks of its allocator to the
 * child as they were. */
static void
require_allocator_for_forks(void)
{
    if (is_sanitized()) {
        skip_test("a child may wait for a lock of asan's allocator for ever");
    }
}

static void
grandchild_answers(void)
{
    require_allocator_for_forks();
    struct process *app = start_target(HELPERS INSTALL("reinstall_delay=0.01") //
                                       "if os.fork() == 0:\n"
                                       "    tell('child', os.getpid())\n"
                                       "    if os.fork() == 0:\n"
                                       "        tell('child', os.getpid())\n"
                                       "    stay()\n"
                                       "    sys.exit(0)\n" STAY);
    pid_t child = next_child(app);
    pid_t grandchild = next_child(app);
    assert_answers(grandchild);
    assert_answers(child);
    assert_answers(app->pid);
}

/* As daemons start; those that leave by os._exit() cannot tidy up. */
static void
daemon_that_forked_twice_answers(void)
{
    require_allocator_for_forks();
    struct process *app = start_target(HELPERS INSTALL("reinstall_delay=0.5") //
                                       "if os.fork(): os._exit(0)\n"
                                       "os.setsid()\n"
                                       "if os.fork(): os._exit(0)\n"
                                       "tell('child', os.getpid())\n" STAY);
    pid_t daemon = next_child(app);
    expect_socket_left(socket_path_of(app->pid));
    assert_answers(daemon);
    close_stdin(app);
    wait_for_no_path(socket_path_of(daemon), DEADLINE);
}

/* ---- multiprocessing --------------------------------------------------------------- */

/* Run as a file, so that children can import it; argument: how to start them. */
#define MULTIPROCESSING(body)                                                            \
  "import multiprocessing, os, sys, manhole\n"                                           \
  "def tell():\n"                                                                        \
  "    os.write(1, b'child %d\\n' % os.getpid())\n"                                      \
  "def work(event):\n"                                                                   \
  "    tell()\n"                                                                         \
  "    event.wait()\n"                                                                   \
  "if __name__ == '__main__':\n"                                                         \
  "    context = multiprocessing.get_context(sys.argv[1])\n" body

#define END_OF_MAIN                                                                      \
  "    os.write(1, b'joined\\n')\n"                                                      \
  "    while os.read(0, 4096): pass\n"

#define MAIN_WAITS_FOR_A_LINE "    os.read(0, 1)\n"

#define PROCESS(end)                                                                     \
  INSTALL("reinstall_delay=0.01")                                                        \
  MULTIPROCESSING("    event = context.Event()\n"                                        \
                  "    child = context.Process(target=work, args=[event])\n"             \
                  "    child.start()\n" MAIN_WAITS_FOR_A_LINE "    " end "()\n"          \
                  "    child.join()\n" END_OF_MAIN)

#define POOL(end)                                                                        \
  INSTALL("reinstall_delay=0.01")                                                        \
  MULTIPROCESSING("    pool = context.Pool(2, tell)\n"                                   \
                  "    assert pool.map(abs, [-1, -2]) == [1, 2]\n" MAIN_WAITS_FOR_A_LINE \
                  "    pool." end "()\n"                                                 \
                  "    pool.join()\n" END_OF_MAIN)

#define EXECUTOR                                                                         \
  INSTALL("reinstall_delay=0.01")                                                        \
  MULTIPROCESSING("    from concurrent.futures import ProcessPoolExecutor\n"             \
                  "    with ProcessPoolExecutor(1, context, tell) as pool:\n"            \
                  "        assert pool.submit(abs, -1).result() == 1\n"                  \
                  "    " MAIN_WAITS_FOR_A_LINE END_OF_MAIN)

/* The child answers while it lives and leaves no socket; the parent then still answers. */
static void
assert_children_answer(const char *method, const char *program, int children)
{
    struct process *app = start_target(program, .argv = LIST(method));
    pid_t pids[2] = {0};
    for (int i = 0; i < children; i++) {
        pids[i] = next_child(app);
    }
    for (int i = 0; i < children; i++) {
        assert_answers(pids[i]);
    }
    write_stdin(app, "\n");
    wait_for_text(app, OUT, "joined", DEADLINE);
    for (int i = 0; i < children; i++) {
        assert_no_path(socket_path_of(pids[i]));
    }
    assert_answers(app->pid);
    close_stdin(app);
    assert_int_equal(wait_for_exit(app, DEADLINE), 0);
}

/* The name of each test: a start method and what the children are. */
#define MULTIPROCESSING_TEST(method, kind, program, children)                            \
  static void method##_##kind##_answers_and_leaves_no_socket(void)                       \
  {                                                                                      \
    assert_children_answer(#method, (program), (children));                              \
  }

#define MULTIPROCESSING_TESTS(method)                                                    \
  MULTIPROCESSING_TEST(method, process_that_ends, PROCESS("event.set"), 1)               \
  MULTIPROCESSING_TEST(method, process_terminated, PROCESS("child.terminate"), 1)        \
  MULTIPROCESSING_TEST(method, pool_closed, POOL("close"), 2)                            \
  MULTIPROCESSING_TEST(method, pool_terminated, POOL("terminate"), 2)                    \
  MULTIPROCESSING_TEST(method, executor, EXECUTOR, 1)

MULTIPROCESSING_TESTS(fork)
MULTIPROCESSING_TESTS(forkserver)
MULTIPROCESSING_TESTS(spawn)

#define MULTIPROCESSING_ROWS(method)                                                     \
  TEST(method##_process_that_ends_answers_and_leaves_no_socket),                         \
      TEST(method##_process_terminated_answers_and_leaves_no_socket),                    \
      TEST(method##_pool_closed_answers_and_leaves_no_socket),                           \
      TEST(method##_pool_terminated_answers_and_leaves_no_socket),                       \
      TEST(method##_executor_answers_and_leaves_no_socket)

static const char child_that_installs[] =
    MULTIPROCESSING("    child = context.Process(target=install_and_end)\n"
                    "    child.start(); child.join()\n"
                    "    tell()\n"
                    "    os.read(0, 1)\n");

/* Its parent has none. multiprocessing ends such a child by os._exit(). */
static void
process_that_installs_by_itself_leaves_no_socket(void)
{
    static const char *const methods[] = {"fork", "forkserver", "spawn"};
    for (size_t i = 0; i < sizeof(methods) / sizeof(methods[0]); i++) {
        struct process *app = start_target(
            format_text("def install_and_end():\n"
                        "    manhole.install()\n"
                        "    os.write(1, b'child %%d\\n' %% os.getpid())\n"
                        "    assert os.path.exists('/tmp/manhole-%%d' %% os.getpid())\n"
                        "%s",
                        child_that_installs),
            .argv = LIST(methods[i]));
        pid_t child = next_child(app);
        next_child(app);
        assert_no_path(socket_path_of(child));
    }
}

/* ---- reinstall_delay --------------------------------------------------------------- */

/* Longer than any test. */
#define LATE "reinstall_delay=3600"

/* What a child does at once after the fork; the number of a child is told by the child. */
static void
assert_quick_child_leaves_nothing(const char *child)
{
    struct process *app = start_target(format_text("%s%sif os.fork() == 0:\n"
                                                   "    tell('child', os.getpid())\n"
                                                   "    %s\n"
                                                   "pid, status = os.wait()\n"
                                                   "tell('status', status)\n"
                                                   "%s",
                                                   HELPERS, INSTALL(LATE), child, STAY));
    pid_t pid = next_child(app);
    wait_for_text(app, OUT, "status 0\n", DEADLINE);
    assert_no_path(socket_path_of(pid));
    assert_not_contains(text_of(app, ERR),
                        format_text("Manhole UDS path: %s", socket_path_of(pid)));
}

static void
child_that_exits_within_the_delay_leaves_nothing(void)
{
    assert_quick_child_leaves_nothing("os._exit(0)");
}

/* Nor has it to wait until the delay is over. */
static void
child_that_finalizes_within_the_delay_leaves_nothing(void)
{
    assert_quick_child_leaves_nothing("sys.exit(0)");
}

static void
child_that_execs_within_the_delay_leaves_nothing(void)
{
    assert_quick_child_leaves_nothing("os.execv('/bin/sh', ['sh', '-c', 'exit 0'])");
}

static void
child_that_a_signal_ends_within_the_delay_leaves_nothing(void)
{
    struct process *app =
        start_target(HELPERS INSTALL(LATE) FORK_AND_TELL("os.fork()") CHILD_STAYS STAY);
    pid_t child = next_child(app);
    wait_for_text(app, ERR, "Delaying UDS binding 3600 seconds ...", DEADLINE);
    assert_int_equal(kill(child, SIGTERM), 0);
    close_stdin(app);
    assert_int_equal(wait_for_exit(app, DEADLINE), 0);
    assert_no_path(socket_path_of(child));
}

static void
subprocess_with_a_preexec_function_leaves_nothing(void)
{
    struct process *app =
        start_target(HELPERS INSTALL(LATE) //
                     "import subprocess\n"
                     "run = subprocess.Popen(['sh', '-c', 'read line'], stdin=-1,\n"
                     "                       preexec_fn=lambda: None)\n"
                     "tell('child', run.pid)\n" STAY);
    pid_t child = next_child(app);
    assert_has_no_manhole(child);
    assert_answers(app->pid);
}

static void
child_says_that_it_reinstalls(void)
{
    struct process *app =
        start_target(HELPERS INSTALL("reinstall_delay=0.25") FORK_AND_TELL("os.fork()") //
                     CHILD_STAYS STAY);
    pid_t child = next_child(app);
    const char *lines[] = {"Fork detected. Reinstalling Manhole.\n",
                           "Delaying UDS binding 0.25 seconds ...\n",
                           format_text("Manhole UDS path: %s\n", socket_path_of(child))};
    for (size_t i = 0; i < sizeof(lines) / sizeof(lines[0]); i++) {
        const char *log = wait_for_text(app, ERR, lines[i], DEADLINE);
        assert_contains(log, format_text("Manhole[%d:", (int)child));
    }
}

/* ---- Options that say who has a manhole -------------------------------------------- */

/* The parent's socket has this path in the test's directory. */
static struct process *
start_forking_at(const char *options, pid_t *child)
{
    struct process *app =
        start_target(format_text("%smanhole.install(%s)\n%s%s%s", HELPERS, options,
                                 FORK_AND_TELL("os.fork()"), CHILD_STAYS, STAY));
    *child = next_child(app);
    return app;
}

static void
assert_kernel_knows_main_thread_of(const char *program)
{
    struct process *app = start_target(program);
    const char *child = format_text("%d", (int)next_child(app));
    const char *out;
    wait_for_path(format_text("/tmp/manhole-%s", child), DEADLINE);
    assert_int_equal(
        run_command(LIST(build_path("manhole-cli"), "--json", child), NULL, &out, NULL),
        0);
    assert_contains(out,
                    format_text("\"native_id\": %s, \"state\": \"sleeping\"", child));
}

#define CHILD_OF_FORK                                                                    \
  HELPERS INSTALL("reinstall_delay=0.01, hang_timeout=0.2") "import ctypes, "            \
                                                            "threading\n" FORK_AND_TELL( \
                                                                "os.fork()")

static void
main_thread_of_a_child_is_told_by_the_number_it_has(void)
{
    assert_kernel_knows_main_thread_of(CHILD_OF_FORK CHILD_STAYS STAY);
}

static void
main_thread_of_a_stuck_child_is_told_by_the_number_it_has(void)
{
    require_gil();
    assert_kernel_knows_main_thread_of(
        CHILD_OF_FORK
        "if pid == 0:\n"
        "    os.close(held)\n"
        "    ctypes.PyDLL(None).read(leash, ctypes.create_string_buffer(1), 1)\n"
        "    os._exit(0)\n" STAY);
}

static void
custom_socket_path_stays_the_parents(void)
{
    pid_t child = 0;
    struct process *app =
        start_forking_at("socket_path='door', reinstall_delay=0", &child);
    assert_has_no_manhole(child);
    assert_answers_at(test_path("door"), app->pid);
    close_stdin(app);
    assert_int_equal(wait_for_exit(app, DEADLINE), 0);
    assert_no_path(test_path("door"));
}

/* However the child ends. door: NULL for /tmp/manhole-PID. */
static void
assert_ending_child_spares_its_parents(const char *door, const char *install)
{
    static const char *const ends[] = {"sys.exit(0)", "os._exit(0)",
                                       "os.kill(os.getpid(), signal.SIGTERM)"};
    for (size_t i = 0; i < sizeof(ends) / sizeof(ends[0]); i++) {
        struct process *app =
            start_target(format_text("%s%sif os.fork() == 0: %s\nos.wait()\n%s%s",
                                     HELPERS, install, ends[i], READY, STAY));
        wait_until_ready(app);
        assert_answers_at(door != NULL ? door : socket_path_of(app->pid), app->pid);
        close_stdin(app);
        wait_for_exit(app, DEADLINE);
    }
}

static void
child_that_ends_leaves_the_parents_socket_alone(void)
{
    assert_ending_child_spares_its_parents(test_path("door"),
                                           INSTALL("socket_path='door'"));
}

/* It is the owner of a manhole already, and knows of no path but its parent's. */
static void
child_that_ends_before_it_has_a_socket_leaves_the_parents_alone(void)
{
    assert_ending_child_spares_its_parents(NULL, INSTALL(LATE));
}

static void
pid_in_socket_path_gives_each_child_its_own(void)
{
    pid_t child = 0;
    struct process *app =
        start_forking_at("socket_path='door-%(pid)s', reinstall_delay=0", &child);
    assert_answers_at(test_path(format_text("door-%d", (int)child)), child);
    assert_answers_at(test_path(format_text("door-%d", (int)app->pid)), app->pid);
}

static void
child_is_activated_on_its_own(void)
{
    pid_t child = 0;
    struct process *app = start_forking_at("activate_on='USR1'", &child);
    assert_int_equal(kill(child, SIGUSR1), 0);
    assert_answers(child);
    assert_no_path(socket_path_of(app->pid));
}

static void
parent_is_activated_without_its_child(void)
{
    pid_t child = 0;
    struct process *app = start_forking_at("activate_on='USR1'", &child);
    send_signal(app, SIGUSR1);
    assert_answers(app->pid);
    assert_no_path(socket_path_of(child));
}

static void
child_of_an_activated_parent_waits_for_its_own_signal(void)
{
    struct process *app =
        start_target(HELPERS INSTALL("activate_on='USR1'") READY
                     "os.read(0, 1)\n" FORK_AND_TELL("os.fork()") CHILD_STAYS STAY);
    wait_until_ready(app);
    send_signal(app, SIGUSR1);
    wait_for_path(socket_path_of(app->pid), DEADLINE);
    write_stdin(app, "\n");
    pid_t child = next_child(app);
    assert_no_path(socket_path_of(child));
    assert_int_equal(kill(child, SIGUSR1), 0);
    assert_answers(child);
}

static void
child_serves_oneshot_on_its_own_signal(void)
{
    pid_t child = 0;
    struct process *app = start_forking_at("oneshot_on='USR2'", &child);
    wait_until_asleep(child);
    assert_int_equal(kill(child, SIGUSR2), 0);
    assert_answers(child);
    wait_for_no_path(socket_path_of(child), DEADLINE);
    assert_no_path(socket_path_of(app->pid));
}

static void
patch_fork_false_leaves_children_without(void)
{
    pid_t child = 0;
    struct process *app = start_forking_at("patch_fork=False, reinstall_delay=0", &child);
    assert_has_no_manhole(child);
    assert_answers(app->pid);
}

static void
child_left_without_may_install_its_own(void)
{
    struct process *app = start_target(HELPERS INSTALL("patch_fork=False") //
                                       FORK_AND_TELL("os.fork()")          //
                                       "if pid == 0: manhole.install()\n"  //
                                       CHILD_STAYS STAY);
    pid_t child = next_child(app);
    assert_answers(child);
    assert_answers(app->pid);
}

/* Whose signals were the parent's manhole's: they neither end nor disturb the child. */
static void
assert_signal_passes_child_by(const char *option)
{
    struct process *app =
        start_target(format_text("%smanhole.install(patch_fork=False, %s='USR1')\n"
                                 "if os.fork() == 0:\n"
                                 "    os.kill(os.getpid(), signal.SIGUSR1)\n"
                                 "    tell('child', os.getpid())\n"
                                 "    stay()\n"
                                 "    sys.exit(0)\n%s",
                                 HELPERS, option, STAY));
    assert_has_no_manhole(next_child(app));
}

static void
activating_signal_passes_a_child_left_without_by(void)
{
    assert_signal_passes_child_by("activate_on");
}

static void
oneshot_signal_passes_a_child_left_without_by(void)
{
    assert_signal_passes_child_by("oneshot_on");
}

/* ---- C programs that fork without a word to Python --------------------------------- */

static void
child_that_python_does_not_know_of_leaves_the_socket_alone(void)
{
    static const char *const ends[] = {"os.kill(os.getpid(), signal.SIGTERM)",
                                       "sys.exit(0)"};
    for (size_t i = 0; i < sizeof(ends) / sizeof(ends[0]); i++) {
        struct process *app = start_target(
            format_text("%s%simport ctypes\n"
                        "if ctypes.pythonapi.fork() == 0: %s\nos.wait()\n%s%s",
                        HELPERS, INSTALL(""), ends[i], READY, STAY));
        wait_until_ready(app);
        assert_answers(app->pid);
        close_stdin(app);
        assert_int_equal(wait_for_exit(app, DEADLINE), 0);
    }
}

/* A library that Python code calls, which forks to run another program, as subprocess does in
 * CPython 3.9: a thread made there would be made for nothing. */
static void
child_that_python_code_forks_in_c_has_no_thread(void)
{
    struct process *app =
        start_target(HELPERS INSTALL("reinstall_delay=0") //
                     "import ctypes\n"
                     "for library in ctypes.pythonapi, ctypes.CDLL(None):\n"
                     "    pid = library.fork()\n"
                     "    if pid == 0:\n"
                     "        tell('child', os.getpid())\n"
                     "        stay(); os._exit(0)\n" STAY);
    assert_has_no_manhole(next_child(app));
    assert_has_no_manhole(next_child(app));
    assert_answers(app->pid);
}

static void
child_that_python_does_not_know_of_may_install_its_own(void)
{
    struct process *app = start_target(HELPERS INSTALL("") //
                                       "import ctypes\n"
                                       "if ctypes.pythonapi.fork() == 0:\n"
                                       "    manhole.install()\n"
                                       "    tell('child', os.getpid())\n"
                                       "    stay(); sys.exit(0)\n" STAY);
    assert_answers(next_child(app));
    assert_answers(app->pid);
}

/* ---- Clients of the parent --------------------------------------------------------- */

/* Forks when it gets a line; both then live as long as its stdin is open. */
#define FORK_WHEN_TOLD                                                                   \
  READY                                                                                  \
  "import warnings; warnings.simplefilter('ignore')\n"                                   \
  "os.read(0, 1)\n"                                                                      \
  "pid = os.fork()\n"                                                                    \
  "if pid == 0:\n"                                                                       \
  "    tell('child', os.getpid())\n"                                                     \
  "    print('printed', type(sys.stdout).__module__)\n" STAY

static struct client *
client_before_the_fork(struct process *app)
{
    wait_until_ready(app);
    struct client *client = client_at_prompt(socket_path_of(app->pid));
    write_stdin(app, "\n");
    return client;
}

static void
client_sees_the_end_of_a_killed_parent_though_its_child_lives(void)
{
    struct process *app = start_target(HELPERS INSTALL(LATE) FORK_WHEN_TOLD);
    struct client *client = client_before_the_fork(app);
    pid_t child = next_child(app);
    send_signal(app, SIGKILL);
    client_read_until_eof(client);
    assert_int_equal(kill(child, 0), 0);
    close_stdin(app);
}

static bool
is_refused(void *path)
{
    return !is_served(path);
}

/* Else who connects would wait in a queue that nobody looks into. */
static void
socket_of_a_killed_parent_refuses_though_its_child_lives(void)
{
    struct process *app = start_target(HELPERS INSTALL(LATE) FORK_WHEN_TOLD);
    char path[64];
    (void)snprintf(path, sizeof(path), "%s", socket_path_of(app->pid));
    client_close(client_before_the_fork(app));
    pid_t child = next_child(app);
    send_signal(app, SIGKILL);
    wait_until(is_refused, path, "nobody listens there any more", DEADLINE);
    assert_int_equal(kill(child, 0), 0);
    close_stdin(app);
}

static void
client_sees_the_end_of_its_session_though_a_child_lives(void)
{
    struct process *app = start_target(HELPERS INSTALL(LATE) FORK_WHEN_TOLD);
    struct client *client = client_before_the_fork(app);
    pid_t child = next_child(app);
    client_send(client, "exit()\n");
    client_read_until_eof(client);
    assert_int_equal(kill(child, 0), 0);
    assert_answers(app->pid);
}

static void
prints_of_a_child_go_to_its_original_stdout(void)
{
    struct process *app = start_target(HELPERS INSTALL(LATE) FORK_WHEN_TOLD);
    struct client *client = client_before_the_fork(app);
    wait_for_text(app, OUT, "printed _io", DEADLINE);
    assert_not_contains(client_ask(client, "1"), "printed");
}

static void
client_is_served_on_after_a_fork(void)
{
    struct process *app = start_target(HELPERS INSTALL(LATE) FORK_WHEN_TOLD);
    struct client *client = client_before_the_fork(app);
    next_child(app);
    rewind_stream(app, OUT);
    wait_for_text(app, OUT, "printed", DEADLINE);
    assert_string_equal(client_ask(client, "'a' + 'b'"), "'ab'\n");
}

static void
statement_that_forks_returns_to_the_client_once(void)
{
    struct process *app = start_target(TARGET(LATE));
    struct client *client = client_at_prompt(socket_path_of(app->pid));
    assert_matches(client_ask(client, "os.fork()"), "^[1-9][0-9]*\n$");
    assert_string_equal(client_ask(client, "os.wait()[1]"), "0\n");
    assert_string_equal(client_ask(client, "1 + 1"), "2\n");
}

static void
multiprocessing_works_in_a_session(void)
{
    struct process *app = start_target("import multiprocessing\n" TARGET(LATE));
    struct client *client = client_at_prompt(socket_path_of(app->pid));
    client_ask(client, "context = __import__('multiprocessing').get_context('fork')");
    client_ask(client, "p = context.Process(target=print, args=['in the child'])");
    client_ask(client, "p.start()");
    wait_for_text(app, OUT, "in the child", DEADLINE);
    client_ask(client, "p.join()");
    assert_string_equal(client_ask(client, "p.exitcode"), "0\n");
}

/* ---- Nothing left over ------------------------------------------------------------- */

static void
program_that_is_started_inherits_no_descriptor(void)
{
    struct process *app =
        start_target(HELPERS INSTALL("") READY "import subprocess\n"
                                               "os.read(0, 1)\n"
                                               "subprocess.run(['ls', '-l', "
                                               "'/proc/self/fd'], close_fds=False)\n"
                                               "tell('listed')\n" STAY);
    client_before_the_fork(app);
    const char *links = wait_for_text(app, OUT, "listed", DEADLINE);
    assert_contains(links, "pipe:");
    assert_not_contains(links, "socket:");
    assert_not_contains(links, "anon_inode:");
    assert_not_contains(links, "memfd:");
}

struct usage {
    int fds;
    int threads;
    long rss;
};

static struct usage
usage_of(const struct process *app)
{
    return (struct usage){count_fds(app->pid), count_threads(app->pid),
                          rss_kib(app->pid)};
}

/* Forks as often as each line of its stdin says; what a child does is text. Then tells
 * how many of their sockets are there. A child may have the pid of somebody's who left one. */
static struct process *
start_forker(const char *options, const char *child)
{
    struct process *app =
        start_target(format_text("%smanhole.install(%s, verbose=False)\n"
                                 "stale = os.listdir('/tmp')\n"
                                 "for line in sys.stdin:\n"
                                 "    sockets = 0\n"
                                 "    for i in range(int(line)):\n"
                                 "        pid = os.fork()\n"
                                 "        if pid == 0: %s\n"
                                 "        assert os.waitpid(pid, 0)[1] == 0\n"
                                 "        name = 'manhole-%%d' %% pid\n"
                                 "        sockets += name not in stale and \\\n"
                                 "            os.path.exists('/tmp/' + name)\n"
                                 "    tell('sockets', sockets)\n",
                                 HELPERS, options, child),
                     .python_options = LIST("-W", "ignore"));
    write_stdin(app, "50\n"); /* until allocators have their sizes */
    wait_for_text(app, OUT, "sockets ", DEADLINE);
    return app;
}

static void
assert_nothing_accumulates(struct process *app, const char *forks)
{
    struct usage before = usage_of(app);
    write_stdin(app, forks);
    wait_for_text(app, OUT, "sockets ", DEADLINE);
    struct usage after = usage_of(app);
    assert_in_range(after.fds, 0, before.fds);
    assert_in_range(after.threads, 0, before.threads);
    if (!is_wrapped()) { /* whose own memory grows */
        assert_in_range(after.rss, 0, before.rss + 512);
    }
}

static void
thousand_forks_leave_nothing_in_the_parent(void)
{
    struct process *app = start_forker(LATE, "os._exit(0)");
    assert_nothing_accumulates(app, "1000\n");
}

static void
thousand_forks_beside_a_client_leave_nothing_in_the_parent(void)
{
    struct process *app = start_forker(LATE, "os._exit(0)");
    struct client *client = client_at_prompt(socket_path_of(app->pid));
    assert_string_equal(client_ask(client, "0"),
                        "0\n"); /* it has imported what it needs */
    assert_nothing_accumulates(app, "1000\n");
    assert_string_equal(client_ask(client, "1 + 1"), "2\n");
}

static void
children_that_finalize_leave_no_socket(void)
{
    struct process *app = start_forker("reinstall_delay=0", "sys.exit(0)");
    write_stdin(app, "50\n");
    wait_for_text(app, OUT, "sockets 0\n", DEADLINE);
}

/* Each child is forked at whatever moment of a connection that happens to be. */
static void
forks_while_clients_come_and_go_lose_no_client(void)
{
    require_allocator_for_forks();
    struct process *app = start_forker(LATE, "os._exit(0)");
    write_stdin(app, "300\n");
    for (int i = 0; i < 50; i++) {
        assert_answers(app->pid);
    }
    wait_for_text(app, OUT, "sockets ", DEADLINE);
}

/* The finder holds the first session up in the middle of an import until the fork is due. */
static void
child_can_import_what_a_session_was_importing(void)
{
    struct process *app = start_target(HELPERS INSTALL(
        LATE) "import threading\n"
              "importing, forking = threading.Event(), threading.Event()\n"
              "class Finder:\n"
              "    def find_spec(name, path=None, target=None):\n"
              "        if name == 'code':\n"
              "            importing.set()\n"
              "            forking.wait()\n"
              "sys.meta_path.insert(0, Finder)\n" READY "importing.wait()\n"
              "forking.set()\n"
              "pid = os.fork()\n"
              "if pid == 0:\n"
              "    signal.alarm(20)\n"
              "    import code\n"
              "    os._exit(0)\n"
              "tell('status', os.waitpid(pid, 0)[1])\n" STAY);
    wait_until_ready(app);
    client_at_prompt(socket_path_of(app->pid));
    wait_for_text(app, OUT, "status 0\n", DEADLINE);
}

/* The hook of the program's own comes first, so it runs when the manhole's has. */
#define IN_THE_MIDDLE_OF_A_FORK(act)                                                     \
  HELPERS "def act():\n" act "acts = [act]\n"                                            \
          "os.register_at_fork(before=lambda: acts and acts.pop()())\n"
#define FORK_AND_WAIT "if os.fork() == 0: os._exit(0)\nos.wait()\n"

static void
fork_in_the_middle_of_a_fork_shuts_no_client_out(void)
{
    struct process *app = start_target(
        IN_THE_MIDDLE_OF_A_FORK("    if os.fork() == 0: os._exit(0)\n    os.wait()\n")
            INSTALL(LATE) FORK_AND_WAIT READY STAY);
    wait_until_ready(app);
    assert_answers(app->pid);
}

static void
oneshot_in_the_middle_of_a_fork_is_served(void)
{
    struct process *app = start_target(
        IN_THE_MIDDLE_OF_A_FORK("    signal.raise_signal(signal.SIGUSR1)\n    pass\n")
            INSTALL("oneshot_on='USR1'") FORK_AND_WAIT READY STAY);
    wait_for_path(socket_path_of(app->pid), DEADLINE);
    struct client *client = client_at_prompt(socket_path_of(app->pid));
    assert_string_equal(client_ask(client, "6 * 7"), "42\n");
    client_close(client);
    wait_until_ready(app);
}

/* Before 3.13 a thread that is new to Python waits for the GIL there, which whoever forks has: the
 * program lets go of it for nobody before that. Its client tells when the session is on its way. */
static void
fork_goes_on_under_tracemalloc_while_a_client_comes(void)
{
    struct process *app =
        start_target(HELPERS INSTALL("patch_fork=False") //
                     "import glob, mmap, socket, tracemalloc\n"
                     "tracemalloc.start()\n"
                     "came = mmap.mmap(-1, 1)\n"
                     "parent = os.getpid()\n"
                     "def is_session_asleep():\n"
                     "    tasks = glob.glob('/proc/%d/task/*/stat' % parent)\n"
                     "    return any('(Manhole <' in text and ') S ' in text\n"
                     "               for text in [open(task).read() for task in tasks])\n"
                     "sys.setswitchinterval(1000)\n"
                     "if os.fork() == 0:\n"
                     "    client = socket.socket(socket.AF_UNIX)\n"
                     "    client.connect('/tmp/manhole-%d' % parent)\n"
                     "    while not is_session_asleep(): pass\n"
                     "    came[0] = 1\n"
                     "    os._exit(0)\n"
                     "while came[0] == 0: pass\n" FORK_AND_WAIT "os.wait()\n" READY STAY);
    wait_until_ready(app);
}

int
main(void)
{
    static const struct test_case tests[] = {
        TEST(child_of_os_fork_answers),
        TEST(child_of_os_forkpty_answers),
        TEST(child_of_a_fork_in_c_that_tells_python_answers),
        TEST(child_forked_by_another_thread_answers),
        TEST(child_forked_by_another_thread_ends_with_it),
        TEST(grandchild_answers),
        TEST(daemon_that_forked_twice_answers),
        MULTIPROCESSING_ROWS(fork),
        MULTIPROCESSING_ROWS(forkserver),
        MULTIPROCESSING_ROWS(spawn),
        TEST(process_that_installs_by_itself_leaves_no_socket),
        TEST(child_that_exits_within_the_delay_leaves_nothing),
        TEST(child_that_finalizes_within_the_delay_leaves_nothing),
        TEST(child_that_execs_within_the_delay_leaves_nothing),
        TEST(child_that_a_signal_ends_within_the_delay_leaves_nothing),
        TEST(subprocess_with_a_preexec_function_leaves_nothing),
        TEST(child_says_that_it_reinstalls),
        TEST(main_thread_of_a_child_is_told_by_the_number_it_has),
        TEST(main_thread_of_a_stuck_child_is_told_by_the_number_it_has),
        TEST(custom_socket_path_stays_the_parents),
        TEST(child_that_ends_leaves_the_parents_socket_alone),
        TEST(child_that_ends_before_it_has_a_socket_leaves_the_parents_alone),
        TEST(pid_in_socket_path_gives_each_child_its_own),
        TEST(child_is_activated_on_its_own),
        TEST(parent_is_activated_without_its_child),
        TEST(child_of_an_activated_parent_waits_for_its_own_signal),
        TEST(child_serves_oneshot_on_its_own_signal),
        TEST(patch_fork_false_leaves_children_without),
        TEST(child_left_without_may_install_its_own),
        TEST(activating_signal_passes_a_child_left_without_by),
        TEST(oneshot_signal_passes_a_child_left_without_by),
        TEST(child_that_python_does_not_know_of_leaves_the_socket_alone),
        TEST(child_that_python_code_forks_in_c_has_no_thread),
        TEST(child_that_python_does_not_know_of_may_install_its_own),
        TEST(client_sees_the_end_of_a_killed_parent_though_its_child_lives),
        TEST(socket_of_a_killed_parent_refuses_though_its_child_lives),
        TEST(client_sees_the_end_of_its_session_though_a_child_lives),
        TEST(prints_of_a_child_go_to_its_original_stdout),
        TEST(client_is_served_on_after_a_fork),
        TEST(statement_that_forks_returns_to_the_client_once),
        TEST(multiprocessing_works_in_a_session),
        TEST(program_that_is_started_inherits_no_descriptor),
        TEST(thousand_forks_leave_nothing_in_the_parent),
        TEST(thousand_forks_beside_a_client_leave_nothing_in_the_parent),
        TEST(children_that_finalize_leave_no_socket),
        TEST(forks_while_clients_come_and_go_lose_no_client),
        TEST(child_can_import_what_a_session_was_importing),
        TEST(fork_in_the_middle_of_a_fork_shuts_no_client_out),
        TEST(oneshot_in_the_middle_of_a_fork_is_served),
        TEST(fork_goes_on_under_tracemalloc_while_a_client_comes),
    };
    return RUN_TESTS(tests);
}
