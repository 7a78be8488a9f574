/* e2e_signals.c - activate_on and oneshot_on in real processes. */
#include "support.h"

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define ACTIVATED "activate_on='USR1'"
#define ONESHOT "oneshot_on='USR1'"

/* Says each line of its stdin back, through Python's own system calls. */
#define ECHO                                                                             \
  READY                                                                                  \
  "import os\n"                                                                          \
  "for line in iter(lambda: os.read(0, 4096), b''): os.write(1, b'echo ' + line)\n"

static struct client *
client_at_prompt(const struct process *app)
{
    struct client *client = connect_to(app);
    client_wait_for(client, ">>> ");
    return client;
}

static const char *
path_of(const struct process *app)
{
    return socket_path_of(app->pid);
}

static struct process *
start_ready(const char *program)
{
    struct process *app = start_target(program);
    wait_until_ready(app);
    return app;
}

static void
open_by_signal(struct process *app)
{
    assert_no_path(path_of(app));
    send_signal(app, SIGUSR1);
    wait_for_path(path_of(app), DEADLINE);
}

/* The main thread of an ECHO program is at its own work. */
static void
assert_goes_on(struct process *app)
{
    write_stdin(app, "hello\n");
    wait_for_text(app, OUT, "echo hello\n", DEADLINE);
}

/* ---- activate_on ------------------------------------------------------------------- */

static void
signal_opens_the_socket(void)
{
    struct process *app = start_ready(INSTALL(ACTIVATED) ECHO);
    open_by_signal(app);
    struct client *client = client_at_prompt(app);
    assert_string_equal(client_ask(client, "1 + 1"), "2\n");
    assert_goes_on(app);
}

/* A mutex that is locked twice: its system call is never cut short, so the main thread
 * does not come back to where Python would handle a signal. */
#define STUCK_IN(library)                                                                \
  "import ctypes\n"                                                                      \
  "c = ctypes." library "(None)\n"                                                       \
  "mutex = ctypes.create_string_buffer(256)\n"                                           \
  "c.pthread_mutex_lock(mutex)\n" READY "c.pthread_mutex_lock(mutex)\n"

static void
signal_opens_though_the_main_thread_stays_in_c(void)
{
    require_signals_at_once();
    struct process *app = start_ready(INSTALL(ACTIVATED) STUCK_IN("CDLL"));
    open_by_signal(app);
    struct client *client = client_at_prompt(app);
    assert_string_equal(client_ask(client, "1 + 1"), "2\n");
    send_signal(app, SIGTERM);
    assert_int_equal(wait_for_exit(app, DEADLINE), -SIGTERM);
    assert_no_path(path_of(app));
}

static void
signal_opens_though_the_main_thread_keeps_the_gil(void)
{
    require_signals_at_once();
    struct process *app = start_ready(INSTALL(ACTIVATED) STUCK_IN("PyDLL"));
    open_by_signal(app);
    send_signal(app, SIGTERM);
    assert_int_equal(wait_for_exit(app, DEADLINE), -SIGTERM);
    assert_no_path(path_of(app));
}

static void
signal_opens_though_the_main_thread_pauses(void)
{
    struct process *app =
        start_ready(INSTALL(ACTIVATED) "import ctypes\n"
                                       "pause = ctypes.CDLL(None).pause\n" READY
                                       "while True: pause()\n");
    open_by_signal(app);
    client_at_prompt(app);
}

static void
signal_opens_though_the_main_thread_computes(void)
{
    require_signals_at_once();
    struct process *app =
        start_ready(INSTALL(ACTIVATED) READY "while True: sum(range(10 ** 8))\n");
    open_by_signal(app);
}

static void
further_signals_are_harmless(void)
{
    struct process *app = start_ready(INSTALL(ACTIVATED) ECHO);
    struct stat before;
    struct stat after;
    open_by_signal(app);
    struct client *client = client_at_prompt(app);
    client_ask(client, ""); /* the console's modules have been read */
    int fds = count_fds(app->pid);
    int threads = count_threads(app->pid);
    assert_int_equal(lstat(path_of(app), &before), 0);
    for (int i = 0; i < 1000; i++) {
        send_signal(app, SIGUSR1);
    }
    assert_string_equal(client_ask(client, "1 + 1"), "2\n");
    assert_int_equal(lstat(path_of(app), &after), 0);
    assert_int_equal(after.st_ino, before.st_ino);
    wait_for_usage(app->pid, fds, threads);
    assert_goes_on(app);
    close_stdin(app);
    client_close(client);
    assert_int_equal(wait_for_exit(app, DEADLINE), 0);
}

/* Through ctypes, for Python itself would try again. */
static void
signals_cut_no_read_short(void)
{
    require_signals_at_once();
    struct process *app = start_ready(INSTALL(
        ACTIVATED) "import ctypes, os\n"
                   "read = ctypes.CDLL(None, use_errno=True).read\n"
                   "buffer = ctypes.create_string_buffer(100)\n" READY "while True:\n"
                   "    count = read(0, buffer, 100)\n"
                   "    os.write(1, b'count %d errno %d\\n' % (count,\n"
                   "             ctypes.get_errno()))\n"
                   "    if count == 0: break\n");
    for (int i = 0; i < 30; i++) {
        for (int j = 0; j < 20; j++) {
            send_signal(app, SIGUSR1);
        }
        wait_for_path(path_of(app), DEADLINE);
        write_stdin(app, "12345");
        wait_for_text(app, OUT, "\n", DEADLINE);
    }
    assert_not_contains(text_of(app, OUT), "count -1");
    assert_not_contains(text_of(app, OUT), "errno 4");
}

static void
socket_that_a_cleaner_removed_is_opened_again(void)
{
    struct process *app = start_ready(INSTALL(ACTIVATED) ECHO);
    open_by_signal(app);
    struct client *before = client_at_prompt(app);
    assert_int_equal(unlink(path_of(app)), 0);
    open_by_signal(app);
    struct client *after = client_at_prompt(app);
    assert_string_equal(client_ask(before, "'before'"), "'before'\n");
    assert_string_equal(client_ask(after, "'after'"), "'after'\n");
}

static void
signal_leaves_a_file_at_the_path_alone(void)
{
    struct process *app = start_ready(INSTALL(ACTIVATED ", socket_path='door'") ECHO);
    write_file("door", "precious");
    send_signal(app, SIGUSR1);
    wait_for_text(app, ERR, "something that is not a socket is there", DEADLINE);
    assert_string_equal(read_file(test_path("door")), "precious");
    assert_goes_on(app);
    assert_int_equal(unlink(test_path("door")), 0);
    send_signal(app, SIGUSR1);
    wait_for_path(test_path("door"), DEADLINE);
}

/* ---- What was there before is there again ------------------------------------------ */

/* A disposition of SIGUSR1: how it is set, and what the signal then does. */
static const struct disposition {
    const char *name;
    const char *set;
    const char *seen; /* on stdout */
    int status;
} dispositions[] = {
    {"Python", "signal.signal(signal.SIGUSR1, lambda *_: print('Python'))\n",
     "Python\nwent on\n", 0},
    {"C", "faulthandler.register(signal.SIGUSR1, sys.stdout)\n", "most recent call first",
     0},
    {"ignored", "signal.signal(signal.SIGUSR1, signal.SIG_IGN)\n", "went on\n", 0},
    {"default", "", "", -SIGUSR1},
};

#define SIGNAL_ITSELF "os.kill(os.getpid(), signal.SIGUSR1); print('went on')\n"

static void
assert_disposition(struct process *app, const struct disposition *row)
{
    int status = wait_for_exit(app, DEADLINE);
    if (status != row->status) {
        fail_msg("%s: status %d", row->name, status);
    }
    assert_contains(text_of(app, OUT), row->seen);
    assert_not_contains(text_of(app, ERR), "Error");
}

static void
assert_release_restores(const char *options)
{
    for (size_t i = 0; i < 4; i++) {
        struct process *app =
            start_target(format_text("import faulthandler, manhole, os, signal, sys\n"
                                     "%smanhole.install(%s).release()\n" SIGNAL_ITSELF,
                                     dispositions[i].set, options));
        assert_disposition(app, &dispositions[i]);
    }
}

static void
release_restores_what_activate_on_replaced(void)
{
    assert_release_restores(ACTIVATED);
}

static void
release_restores_what_oneshot_on_replaced(void)
{
    assert_release_restores(ONESHOT);
}

static void
second_install_restores_what_the_first_replaced(void)
{
    struct process *app = start_target("import os, signal\n"
                                       "signal.signal(signal.SIGUSR1,\n"
                                       "              lambda *_: print('Python'))\n" //
                                       INSTALL(ACTIVATED)                            //
                                       INSTALL("strict=False, activate_on='USR2'")   //
                                       SIGNAL_ITSELF);
    assert_int_equal(wait_for_exit(app, DEADLINE), 0);
    assert_string_equal(text_of(app, OUT), "Python\nwent on\n");
}

/* The application has its reasons. */
static void
assert_release_keeps_later_handler(const char *options)
{
    for (size_t i = 0; i < 3; i++) {
        struct process *app =
            start_target(format_text("import faulthandler, manhole, os, signal, sys\n"
                                     "it = manhole.install(%s)\n"
                                     "%sit.release()\n" SIGNAL_ITSELF,
                                     options, dispositions[i].set));
        assert_disposition(app, &dispositions[i]);
    }
}

static void
release_keeps_a_handler_set_after_activate_on(void)
{
    assert_release_keeps_later_handler(ACTIVATED);
}

static void
release_keeps_a_handler_set_after_oneshot_on(void)
{
    assert_release_keeps_later_handler(ONESHOT);
}

/* However soon release() comes after the signal. */
static void
release_after_a_signal_leaves_nothing(void)
{
    struct process *app = start_target(
        "import manhole, os, signal\n"
        "def count():\n"
        "    return [len(os.listdir('/proc/self/' + x))\n"
        "            for x in ('fd', 'task')]\n"
        "def cycle():\n"
        "    it = manhole.install(" ACTIVATED ", verbose=False)\n"
        "    os.kill(os.getpid(), signal.SIGUSR1)\n"
        "    it.release()\n"
        "    assert not os.path.exists(it.uds_name)\n"
        "cycle()\n"
        "while count()[1] > 1: pass\n"
        "before = count()\n"
        "for i in range(200): cycle()\n"
        "while count() != before: pass\n"); /* a thread goes after it is joined */
    assert_int_equal(wait_for_exit(app, DEADLINE), 0);
}

/* The listener's thread and the session's. A helper's may come and go beside them. */
#define LOOK                                                                             \
  "def look(task):\n"                                                                    \
  "    try: text = open('/proc/self/task/%s/status' % task).read()\n"                    \
  "    except OSError: return None\n"                                                    \
  "    mask = int(text.split('SigBlk:')[1].split()[0], 16)\n"                            \
  "    return 'Manhole' in text and [s for s in signals if not mask >> s - 1 & 1]\n"

/* Those of the application get them all. */
static void
threads_of_the_manhole_take_no_signal(void)
{
    struct process *app = start_ready(TARGET(""));
    struct client *client = client_at_prompt(app);
    client_ask(client, "from signal import SIGHUP, SIGINT, SIGUSR1, SIGTERM, SIGCHLD");
    client_ask(client, "signals = SIGHUP, SIGINT, SIGUSR1, SIGTERM, SIGCHLD");
    client_ask(client, LOOK);
    client_ask(client, "taken = [look(task) for task in os.listdir('/proc/self/task')]");
    assert_string_equal(client_ask(client, "taken.count([]) >= 2"), "True\n");
    assert_string_equal(client_ask(client, "[t for t in taken if t]"), "[]\n");
}

/* ---- oneshot_on -------------------------------------------------------------------- */

static void
oneshot_is_served_in_the_main_thread(void)
{
    struct process *app = start_ready(INSTALL(ONESHOT) ECHO);
    open_by_signal(app);
    struct client *client = client_at_prompt(app);
    client_ask(client, "import threading as t");
    assert_string_equal(client_ask(client, "t.current_thread() is t.main_thread()"),
                        "True\n");
}

static void
program_goes_on_after_each_oneshot(void)
{
    struct process *app = start_ready(INSTALL(ONESHOT) ECHO);
    for (int i = 0; i < 3; i++) {
        open_by_signal(app);
        struct client *client = client_at_prompt(app);
        assert_string_equal(client_ask(client, "1 + 1"), "2\n");
        client_send(client, "exit()\n");
        client_read_until_eof(client);
        wait_for_no_path(path_of(app), DEADLINE);
        assert_goes_on(app);
    }
}

/* The kernel refuses it, EINVAL, to a process with a second thread; for other reasons to any. */
#define ENTER_A_USER_NAMESPACE                                                           \
  "import ctypes, errno\n"                                                               \
  "def enter():\n"                                                                       \
  "    libc = ctypes.CDLL(None, use_errno=True)\n"                                       \
  "    assert libc.unshare(0x10000000) == 0 or ctypes.get_errno() != errno.EINVAL\n"

static void
user_namespace_may_be_entered_where_oneshot_is_waited_for(void)
{
    struct process *app =
        start_target(INSTALL(ONESHOT) ENTER_A_USER_NAMESPACE "enter()\n" ECHO);
    assert_goes_on(app);
}

static void
user_namespace_may_be_entered_before_exec_with_patch_fork_false(void)
{
    struct process *app = start_target(
        INSTALL("patch_fork=False") ENTER_A_USER_NAMESPACE
        "import subprocess; subprocess.run('true', preexec_fn=enter, check=True)\n" ECHO);
    assert_goes_on(app);
}

static void
second_signal_while_oneshot_waits_is_harmless(void)
{
    struct process *app = start_ready(INSTALL(ONESHOT) ECHO);
    send_signal(app, SIGUSR1);
    send_signal(app, SIGUSR1);
    wait_for_path(path_of(app), DEADLINE);
    send_signal(app, SIGUSR1);
    struct client *client = client_at_prompt(app);
    assert_string_equal(client_ask(client, "1 + 1"), "2\n");
    client_close(client);
    assert_goes_on(app);
}

static void
second_signal_while_oneshot_serves_is_harmless(void)
{
    struct process *app = start_ready(INSTALL(ONESHOT) ECHO);
    open_by_signal(app);
    struct client *client = client_at_prompt(app);
    wait_until_asleep(app->pid);
    send_signal(app, SIGUSR1);
    wait_for_text(app, ERR, "Oneshot failure", DEADLINE);
    assert_string_equal(client_ask(client, "1 + 1"), "2\n");
    client_close(client);
    assert_goes_on(app);
}

static void
oneshot_without_a_client_times_out(void)
{
    struct process *app = start_ready(INSTALL(ONESHOT ", oneshot_timeout=0.05") ECHO);
    for (int i = 0; i < 2; i++) {
        send_signal(app, SIGUSR1);
        wait_for_text(app, ERR, "Oneshot failure: ", DEADLINE);
        wait_for_no_path(path_of(app), DEADLINE);
        assert_goes_on(app);
    }
}

static void
oneshot_that_waits_gives_up_when_the_manhole_is_released(void)
{
    struct process *app =
        start_ready("import manhole, os, threading, time\n"
                    "m = manhole.install(" ONESHOT ")\n"
                    "def release():\n"
                    "    while not os.path.exists(m.uds_name): time.sleep(0.01)\n"
                    "    m.release()\n"
                    "threading.Thread(target=release).start()\n" ECHO);
    send_signal(app, SIGUSR1);
    wait_for_text(app, ERR, "the manhole was released meanwhile", DEADLINE);
    assert_no_path(path_of(app));
    assert_goes_on(app);
}

static void
oneshot_client_that_vanishes_lets_the_program_go_on(void)
{
    static const struct {
        const char *statement; /* NULL: gone before the prompt */
        const char *answer;    /* gone after it */
    } rows[] = {
        {NULL, ""},
        {"", ""},
        {"half a li", ""},
        {"if True:\n    print('begun')\n    while True: pass\n\n", "begun\n"},
        {"while True: print('x' * 1000)\n\n", "xxx"},
    };
    struct process *app = start_ready(INSTALL(ONESHOT) ECHO);
    for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
        open_by_signal(app);
        struct client *client = connect_to(app);
        if (rows[i].statement != NULL) {
            client_wait_for(client, ">>> ");
            client_send(client, rows[i].statement);
            client_wait_for(client, rows[i].answer);
        }
        client_close(client);
        wait_for_no_path(path_of(app), DEADLINE);
        assert_goes_on(app);
    }
}

/* Before, the program goes on when the call returns. */
static void
oneshot_client_that_vanishes_from_a_call_lets_the_program_go_on_from_3_15_on(void)
{
    if (!is_python_from(15)) {
        skip_test("before CPython 3.15 a call waits on, whatever its thread is to raise");
    }
    struct process *app = start_ready(INSTALL(ONESHOT) ECHO);
    open_by_signal(app);
    struct client *client = connect_to(app);
    client_wait_for(client, ">>> ");
    client_send(client, "import time; print('begun'); time.sleep(1000)\n");
    client_wait_for(client, "begun\n");
    client_close(client);
    wait_for_no_path(path_of(app), DEADLINE);
    assert_goes_on(app);
}

static void
interrupt_while_oneshot_waits_reaches_the_program(void)
{
    struct process *app = start_ready(INSTALL(ONESHOT) ECHO);
    open_by_signal(app);
    send_signal(app, SIGINT);
    assert_int_equal(wait_for_exit(app, DEADLINE), -SIGINT);
    assert_contains(text_of(app, ERR), "KeyboardInterrupt");
    assert_no_path(path_of(app));
}

#define EXITS_BY_SIGTERM                                                                 \
  "import signal, sys\n"                                                                 \
  "signal.signal(signal.SIGTERM, lambda *_: sys.exit(3))\n"

static void
handler_that_exits_while_install_imports_ends_the_program(void)
{
    struct process *app =
        start_target(EXITS_BY_SIGTERM
                     "import os\n"
                     "sys.modules.pop('threading', None)\n" /* as some .pth import it */
                     "def terminate(event, arguments):\n"
                     "    if event == 'import' and arguments[0] == 'threading':\n"
                     "        os.kill(os.getpid(), signal.SIGTERM)\n"
                     "sys.addaudithook(terminate)\n" INSTALL(""));
    assert_int_equal(wait_for_exit(app, DEADLINE), 3);
    assert_no_path(path_of(app));
}

static void
handler_that_exits_while_oneshot_waits_ends_the_program(void)
{
    struct process *app = start_ready(EXITS_BY_SIGTERM INSTALL(ONESHOT) ECHO);
    open_by_signal(app);
    send_signal(app, SIGTERM);
    assert_int_equal(wait_for_exit(app, DEADLINE), 3);
    assert_no_path(path_of(app));
}

static void
handler_that_exits_while_oneshot_serves_ends_the_program(void)
{
    struct process *app = start_ready(EXITS_BY_SIGTERM INSTALL(ONESHOT) ECHO);
    open_by_signal(app);
    struct client *client = client_at_prompt(app);
    wait_until_asleep(app->pid);
    send_signal(app, SIGTERM);
    client_read_until_eof(client);
    assert_int_equal(wait_for_exit(app, DEADLINE), 3);
    assert_no_path(path_of(app));
}

static void
handler_that_exits_ends_a_oneshot_with_the_shell_of_commands(void)
{
    struct process *app = start_ready(
        EXITS_BY_SIGTERM INSTALL(ONESHOT ", connection_handler='commands'") ECHO);
    open_by_signal(app);
    struct client *client = connect_client(path_of(app));
    client_wait_for(client, format_text("(manhole:%d) ", (int)app->pid));
    wait_until_asleep(app->pid);
    send_signal(app, SIGTERM);
    assert_string_equal(client_read_until_eof(client), "");
    assert_int_equal(wait_for_exit(app, DEADLINE), 3);
}

static void
handler_that_exits_ends_a_oneshot_with_the_exec_handler(void)
{
    struct process *app =
        start_ready(EXITS_BY_SIGTERM INSTALL(ONESHOT ", connection_handler='exec'") ECHO);
    open_by_signal(app);
    struct client *client = connect_client(path_of(app));
    client_send(client, "print('served', flush=True)\n");
    wait_for_text(app, OUT, "served\n", DEADLINE);
    wait_until_asleep(app->pid);
    send_signal(app, SIGTERM);
    client_read_until_eof(client);
    assert_int_equal(wait_for_exit(app, DEADLINE), 3);
}

/* It raises in the middle of a statement, which passes for the statement's own exit. */
static void
handler_that_exits_ends_a_oneshot_whose_client_does_not_read(void)
{
    struct process *app = start_ready(EXITS_BY_SIGTERM INSTALL(ONESHOT) ECHO);
    open_by_signal(app);
    struct client *client = client_at_prompt(app);
    client_send(client, "while True: print('x' * 1000)\n\n");
    client_wait_for(client, "xxx");
    wait_until_asleep(app->pid); /* its socket is full */
    send_signal(app, SIGTERM);
    wait_for_text(app, ERR, "]: Cleaned up.\n", DEADLINE);
    assert_goes_on(app);
}

static void
termination_while_oneshot_waits_removes_the_socket(void)
{
    struct process *app = start_ready(INSTALL(ONESHOT) ECHO);
    open_by_signal(app);
    send_signal(app, SIGTERM);
    assert_int_equal(wait_for_exit(app, DEADLINE), -SIGTERM);
    assert_no_path(path_of(app));
}

int
main(void)
{
    static const struct test_case tests[] = {
        TEST(signal_opens_the_socket),
        TEST(signal_opens_though_the_main_thread_stays_in_c),
        TEST(signal_opens_though_the_main_thread_keeps_the_gil),
        TEST(signal_opens_though_the_main_thread_pauses),
        TEST(signal_opens_though_the_main_thread_computes),
        TEST(further_signals_are_harmless),
        TEST(signals_cut_no_read_short),
        TEST(socket_that_a_cleaner_removed_is_opened_again),
        TEST(signal_leaves_a_file_at_the_path_alone),
        TEST(release_restores_what_activate_on_replaced),
        TEST(release_restores_what_oneshot_on_replaced),
        TEST(second_install_restores_what_the_first_replaced),
        TEST(release_keeps_a_handler_set_after_activate_on),
        TEST(release_keeps_a_handler_set_after_oneshot_on),
        TEST(release_after_a_signal_leaves_nothing),
        TEST(threads_of_the_manhole_take_no_signal),
        TEST(oneshot_is_served_in_the_main_thread),
        TEST(program_goes_on_after_each_oneshot),
        TEST(user_namespace_may_be_entered_where_oneshot_is_waited_for),
        TEST(user_namespace_may_be_entered_before_exec_with_patch_fork_false),
        TEST(second_signal_while_oneshot_waits_is_harmless),
        TEST(second_signal_while_oneshot_serves_is_harmless),
        TEST(oneshot_without_a_client_times_out),
        TEST(oneshot_that_waits_gives_up_when_the_manhole_is_released),
        TEST(oneshot_client_that_vanishes_lets_the_program_go_on),
        TEST(
            oneshot_client_that_vanishes_from_a_call_lets_the_program_go_on_from_3_15_on),
        TEST(interrupt_while_oneshot_waits_reaches_the_program),
        TEST(handler_that_exits_while_install_imports_ends_the_program),
        TEST(handler_that_exits_while_oneshot_waits_ends_the_program),
        TEST(handler_that_exits_while_oneshot_serves_ends_the_program),
        TEST(handler_that_exits_ends_a_oneshot_with_the_shell_of_commands),
        TEST(handler_that_exits_ends_a_oneshot_with_the_exec_handler),
        TEST(handler_that_exits_ends_a_oneshot_whose_client_does_not_read),
        TEST(termination_while_oneshot_waits_removes_the_socket),
    };
    return RUN_TESTS(tests);
}
