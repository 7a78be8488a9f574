/* e2e_exit.c - how a process with a manhole ends: as it would without, and tidily. */
#include "support.h"

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define ROWS(table) (sizeof(table) / sizeof((table)[0]))

#define STAYS "daemon_connection=False"
#define DROPS "daemon_connection=True"

/* Says when the end has begun, to the process's own stdout alone: atexit runs what was
 * registered last first. */
#define SAYS_END "import atexit, os, sys; atexit.register(os.write, 1, b'exiting\\n')\n"

/* Ends when its stdin is closed. */
#define ENDING(options, end) INSTALL(options) SAYS_END READY STAY end

static struct client *
client_at_prompt(struct process *app)
{
    struct client *client = connect_to(app);
    client_wait_for(client, ">>> ");
    return client;
}

static int
end_of(struct process *app)
{
    close_stdin(app);
    return wait_for_exit(app, DEADLINE);
}

/* The end of main(), until it waits for the clients or lets them go. */
static void
begin_end_of(struct process *app)
{
    close_stdin(app);
    wait_for_text(app, OUT, "exiting", DEADLINE);
    wait_for_no_path(socket_path_of(app->pid), DEADLINE);
}

/* Nothing of a crash, and no exception that somebody swallowed. */
static void
assert_quiet(struct process *app)
{
    assert_not_contains(text_of(app, ERR), "Fatal");
    assert_not_contains(text_of(app, ERR), "Exception");
    assert_not_contains(text_of(app, ERR), "Traceback");
    assert_no_path(socket_path_of(app->pid));
}

/* ---- With a client: daemon_connection both ways ------------------------------------ */

static void
exit_waits_for_the_client(void)
{
    struct process *app = start_target(ENDING(STAYS, ""));
    struct client *client = client_at_prompt(app);
    begin_end_of(app);
    assert_string_equal(client_ask(client, "6 * 7"), "42\n");
    client_close(client);
    assert_int_equal(wait_for_exit(app, DEADLINE), 0);
    assert_quiet(app);
}

static void
exit_waits_for_each_client(void)
{
    struct process *app = start_target(ENDING(STAYS, ""));
    struct client *first = client_at_prompt(app);
    struct client *second = client_at_prompt(app);
    begin_end_of(app);
    client_send(first, "exit()\n");
    client_read_until_eof(first);
    assert_string_equal(client_ask(second, "6 * 7"), "42\n");
    client_send(second, "exit()\n");
    assert_int_equal(wait_for_exit(app, DEADLINE), 0);
    assert_quiet(app);
}

static void
exit_waits_for_the_output_of_a_statement(void)
{
    struct process *app = start_target(ENDING(STAYS, ""));
    struct client *client = client_at_prompt(app);
    client_send(client, "sys.stdin.readline(), 'was read'\n");
    begin_end_of(app);
    client_send(client, "a line\n");
    client_wait_for(client, "('a line\\n', 'was read')\n>>> ");
    client_close(client);
    assert_int_equal(wait_for_exit(app, DEADLINE), 0);
}

static void
client_that_leaves_an_endless_statement_lets_the_process_end(void)
{
    struct process *app = start_target(ENDING(STAYS, ""));
    struct client *client = client_at_prompt(app);
    client_send(client, "if True:\n    print('begun')\n    while True: pass\n\n");
    client_wait_for(client, "begun\n");
    begin_end_of(app);
    client_close(client);
    assert_int_equal(wait_for_exit(app, DEADLINE), 0);
    assert_quiet(app);
}

static void
exit_admits_no_new_client(void)
{
    struct process *app = start_target(ENDING(STAYS, ""));
    struct client *client = client_at_prompt(app);
    begin_end_of(app);
    assert_false(is_served(socket_path_of(app->pid)));
    client_close(client);
    assert_int_equal(wait_for_exit(app, DEADLINE), 0);
}

static void
daemon_connection_lets_a_client_at_the_prompt_go(void)
{
    struct process *app = start_target(ENDING(DROPS, ""));
    struct client *client = client_at_prompt(app);
    assert_int_equal(end_of(app), 0);
    client_read_until_eof(client);
    assert_quiet(app);
}

#define STUBBORN                                                                         \
  "def stubborn():\n"                                                                    \
  "    while True:\n"                                                                    \
  "        try:\n"                                                                       \
  "            while True: pass\n"                                                       \
  "        except BaseException: pass\n\n"

/* What a client's statement may be doing when the process ends without waiting for it.
 * Each says "begun" first. */
static const char *const statements[] = {
    "print('begun')\nwhile True: pass\n\n",
    "while True: print('begun')\n\n",
    "print('begun'); __import__('time').sleep(3600)\n",
    "print('begun'); sys.stdin.read()\n",
    "print('begun'); input('? ')\n",
    "print('begun'); __import__('threading').Event().wait()\n",
    "print('begun'); __import__('subprocess').Popen('cat', stdin=-1).wait()\n",
    STUBBORN "print('begun'); stubborn()\n",
};

/* All at once, for the exit gives the most stubborn of them a second. */
static void
daemon_connection_lets_every_statement_go(void)
{
    struct process *apps[ROWS(statements)];
    struct client *clients[ROWS(statements)];
    for (size_t i = 0; i < ROWS(statements); i++) {
        apps[i] = start_target(ENDING(DROPS, "sys.exit(5)"));
    }
    for (size_t i = 0; i < ROWS(statements); i++) {
        clients[i] = client_at_prompt(apps[i]);
        client_send(clients[i], statements[i]);
        client_wait_for(clients[i], "begun\n");
        close_stdin(apps[i]);
    }
    for (size_t i = 0; i < ROWS(statements); i++) {
        assert_int_equal(wait_for_exit(apps[i], DEADLINE), 5);
        client_read_until_eof(clients[i]);
        assert_quiet(apps[i]);
    }
}

/* CPython before 3.13 takes the thread that imports threading for the main one, and joins
 * it at exit; since then it takes that thread's native id for the main one's. */
static void
client_that_imports_threading_first_does_not_pass_for_the_main_thread(void)
{
    struct process *app =
        start_target("import _thread, sys\n"
                     "sys.modules.pop('threading', None)\n" /* as some .pth import it */
                     ENDING(DROPS ", locals={'me': _thread.get_ident()}", "sys.exit(5)"));
    struct client *client = client_at_prompt(app);
    client_ask(client, "import threading");
    assert_string_equal(client_ask(client, "threading.main_thread().ident == me"),
                        "True\n");
    assert_string_equal(
        client_ask(client, "threading.main_thread().native_id == os.getpid()"), "True\n");
    assert_int_equal(end_of(app), 5);
    client_read_until_eof(client);
}

/* Callbacks that were registered before the manhole's run after it, and let go of the GIL. */
static void
statement_that_outlasts_the_manhole_does_not_end_the_process(void)
{
    struct process *app =
        start_target("import atexit, os\n"
                     "reader, writer = os.pipe()\n"
                     "def tidy_up():\n"
                     "    os.write(writer, b'x')\n"
                     "    while len(os.listdir('/proc/self/task')) > 1: pass\n"
                     "    os.write(1, b'tidied up\\n')\n"
                     "atexit.register(tidy_up)\n" //
                     ENDING(DROPS ", locals={'reader': reader}", "sys.exit(5)"));
    struct client *client = client_at_prompt(app);
    client_send(client, "print('be' + 'gun'); os.read(reader, 1)\n");
    client_wait_for(client, "begun\n");
    assert_int_equal(end_of(app), 5);
    assert_contains(text_of(app, OUT), "tidied up\n");
    client_read_until_eof(client);
}

static void
daemon_connection_lets_a_client_that_does_not_read_go(void)
{
    struct process *app = start_target(ENDING(DROPS, ""));
    struct client *client = client_at_prompt(app);
    client_send(client, "while True: print('x' * 10000)\n\n");
    client_wait_for(client, "xxx");
    begin_end_of(app);
    assert_int_equal(wait_for_exit(app, DEADLINE), 0);
    assert_quiet(app);
}

static void
daemon_connection_lets_a_handler_of_the_program_go(void)
{
    struct process *app = start_target("def handler(client):\n"
                                       "    client.sendall(b'hello')\n"
                                       "    client.recv(100)\n"
                                       "    client.sendall(b'never sent')\n" //
                                       ENDING(DROPS ", connection_handler=handler", ""));
    struct client *client = connect_to(app);
    client_wait_for(client, "hello");
    assert_int_equal(end_of(app), 0);
    assert_not_contains(client_read_until_eof(client), "never");
    assert_no_path(socket_path_of(app->pid));
}

/* A client may come at any moment, also while the process is ending. */
static void
clients_that_come_during_exit_do_no_harm(void)
{
    static const char *const modes[] = {STAYS, DROPS};
    for (size_t i = 0; i < 6; i++) {
        struct process *app =
            start_target(format_text(ENDING("%s", "sys.exit(4)"), modes[i % 2]));
        wait_until_ready(app);
        close_stdin(app);
        while (is_served(socket_path_of(app->pid))) {
        }
        assert_int_equal(wait_for_exit(app, DEADLINE), 4);
        assert_quiet(app);
    }
}

/* ---- However Python ends ----------------------------------------------------------- */

static const struct {
    const char *end;
    int status;
} endings[] = {
    {"", 0},
    {"import sys; sys.exit(7)", 7},
    {"raise SystemExit('why')", 1},
    {"raise ValueError('uncaught')", 1},
    {"raise KeyboardInterrupt", -SIGINT},
    {"import atexit; atexit.register(lambda: 1 / 0)", 0},
    {"import atexit, os; atexit.register(os._exit, 9); manhole.install(strict=False)", 9},
};

static void
exit_status_is_the_programs_and_the_socket_goes(void)
{
    for (size_t i = 0; i < ROWS(endings); i++) {
        struct process *app = start_target(
            format_text("%s%s%s%s\n", INSTALL(""), READY, STAY, endings[i].end));
        wait_until_ready(app);
        assert_path_exists(socket_path_of(app->pid));
        assert_int_equal(end_of(app), endings[i].status);
        assert_no_path(socket_path_of(app->pid));
    }
}

static void
exit_status_survives_a_client_that_was_waited_for(void)
{
    for (size_t i = 0; i < 5; i++) {
        struct process *app = start_target(format_text(
            "%s%s%s%s%s\n", INSTALL(""), SAYS_END, READY, STAY, endings[i].end));
        struct client *client = client_at_prompt(app);
        /* Its modules are imported: whoever runs a str meanwhile, in whatever thread, makes CPython
         * forget that it ends with a KeyboardInterrupt. */
        client_ask(client, "0");
        begin_end_of(app);
        client_close(client);
        assert_int_equal(wait_for_exit(app, DEADLINE), endings[i].status);
    }
}

/* Python joins them before it finalizes. */
static void
answers_while_the_last_threads_are_joined(void)
{
    struct process *app = start_target(INSTALL("") //
                                       "import os, threading\n"
                                       "def work():\n"
                                       "    while os.read(0, 4096): pass\n"
                                       "threading.Thread(target=work).start()\n" READY);
    struct client *client = client_at_prompt(app);
    client_ask(client, "import threading");
    client_ask(client, "threading.main_thread().join()");
    client_close(client);
    assert_int_equal(end_of(app), 0);
}

static void
manhole_never_activated_ends_quietly(void)
{
    static const char *const options[] = {"activate_on='USR1'", "oneshot_on='USR1'",
                                          "thread=False"};
    for (size_t i = 0; i < ROWS(options); i++) {
        struct process *app = start_target(
            format_text("import manhole; manhole.install(verbose=False, %s)\n"
                        "raise SystemExit(3)\n",
                        options[i]));
        assert_int_equal(end_of(app), 3);
        assert_string_equal(text_of(app, ERR), "");
    }
}

static void
interrupt_ends_the_wait_for_a_client(void)
{
    struct process *app = start_target(ENDING(STAYS, "sys.exit(7)"));
    struct client *client = client_at_prompt(app);
    begin_end_of(app);
    send_signal(app, SIGINT);
    client_read_until_eof(client);
    assert_int_equal(wait_for_exit(app, DEADLINE), 7);
    assert_not_contains(text_of(app, ERR), "Fatal");
}

static void
interrupt_ends_the_wait_for_an_endless_statement(void)
{
    struct process *app = start_target(ENDING(STAYS, "sys.exit(7)"));
    struct client *client = client_at_prompt(app);
    client_send(client, "while True: pass\n\n");
    begin_end_of(app);
    send_signal(app, SIGINT);
    assert_int_equal(wait_for_exit(app, DEADLINE), 7);
    assert_not_contains(text_of(app, ERR), "Fatal");
}

/* SIGTERM, too: whoever asks a process to end shall not have to kill it. */
static void
termination_ends_the_wait_for_a_client(void)
{
    struct process *app = start_target(ENDING(STAYS, ""));
    struct client *client = client_at_prompt(app);
    begin_end_of(app);
    send_signal(app, SIGTERM);
    client_read_until_eof(client);
    assert_int_equal(wait_for_exit(app, DEADLINE), -SIGTERM);
}

/* ---- Signals ----------------------------------------------------------------------- */

#define NO_CORE "import resource; resource.setrlimit(resource.RLIMIT_CORE, (0, 0))\n"

static const struct {
    const char *name;
    int number;
} death_signals[] = {
    {"SIGTERM", SIGTERM}, {"SIGINT", SIGINT},   {"SIGHUP", SIGHUP},
    {"SIGQUIT", SIGQUIT}, {"SIGUSR1", SIGUSR1}, {"SIGUSR2", SIGUSR2},
    {"SIGALRM", SIGALRM}, {"SIGXCPU", SIGXCPU},
};

/* SIGINT's disposition, too, is the default where a shell starts a program so. */
static void
death_by_a_signal_is_that_signals_and_the_socket_goes(void)
{
    for (size_t i = 0; i < ROWS(death_signals); i++) {
        struct process *app =
            start_target(NO_CORE "import signal\n"
                                 "signal.signal(signal.SIGINT, signal.SIG_DFL)\n" //
                         TARGET(""));
        wait_until_ready(app);
        assert_path_exists(socket_path_of(app->pid));
        send_signal(app, death_signals[i].number);
        assert_int_equal(wait_for_exit(app, DEADLINE), -death_signals[i].number);
        assert_no_path(socket_path_of(app->pid));
    }
}

static void
interrupt_ends_python_as_ever(void)
{
    struct process *app = start_target(TARGET(""));
    wait_until_ready(app);
    send_signal(app, SIGINT);
    assert_int_equal(wait_for_exit(app, DEADLINE), -SIGINT);
    assert_no_path(socket_path_of(app->pid));
    assert_contains(text_of(app, ERR), "KeyboardInterrupt");
}

static void
termination_does_not_wait_for_a_client(void)
{
    struct process *app = start_target(TARGET(STAYS));
    struct client *client = client_at_prompt(app);
    client_send(client, "while True: pass\n\n");
    send_signal(app, SIGTERM);
    assert_int_equal(wait_for_exit(app, DEADLINE), -SIGTERM);
    client_read_until_eof(client);
    assert_no_path(socket_path_of(app->pid));
}

/* Each child is told to open its door and, a moment later, to end: at times while it binds. */
static void
death_by_a_signal_while_the_socket_opens_leaves_none(void)
{
    struct process *app = start_target(INSTALL(
        "activate_on='USR1', verbose=False") "import os, signal\n"
                                             "left = []\n"
                                             "for i in range(400):\n"
                                             "    pid = os.fork()\n"
                                             "    while pid == 0: signal.pause()\n"
                                             "    path = '/tmp/manhole-%d' % pid\n"
                                             "    if os.path.exists(path):\n"
                                             "        os.unlink(path) # a dead one's\n"
                                             "    os.kill(pid, signal.SIGUSR1)\n"
                                             "    while not os.path.exists(path):\n"
                                             "        if i % 3 == 0: break\n"
                                             "    os.kill(pid, signal.SIGTERM)\n"
                                             "    os.waitpid(pid, 0)\n"
                                             "    left += [path] * os.path.exists(path)\n"
                                             "    if left: break\n"
                                             "print('left', left)\n");
    wait_for_text(app, OUT, "left []\n", DEADLINE);
}

#define HANDLES_TERM                                                                     \
  "import signal, sys\n"                                                                 \
  "def terminate(*arguments):\n"                                                         \
  "    print('terminated')\n"                                                            \
  "    sys.exit(3)\n"                                                                    \
  "signal.signal(signal.SIGTERM, terminate)\n"

static void
assert_handler_is_in_charge(const char *program)
{
    struct process *app = start_target(program);
    wait_until_ready(app);
    assert_path_exists(socket_path_of(app->pid));
    send_signal(app, SIGTERM);
    wait_for_text(app, OUT, "terminated", DEADLINE);
    assert_int_equal(wait_for_exit(app, DEADLINE), 3);
    assert_no_path(socket_path_of(app->pid));
}

static void
handler_set_before_install_is_in_charge(void)
{
    assert_handler_is_in_charge(HANDLES_TERM TARGET(""));
}

static void
handler_set_after_install_is_in_charge(void)
{
    assert_handler_is_in_charge(INSTALL("") HANDLES_TERM READY STAY);
}

static void
ignored_signal_stays_ignored(void)
{
    struct process *app =
        start_target("import signal\n"
                     "signal.signal(signal.SIGHUP, signal.SIG_IGN)\n" TARGET(""));
    wait_until_ready(app);
    send_signal(app, SIGHUP);
    struct client *client = client_at_prompt(app);
    assert_string_equal(client_ask(client, "1 + 1"), "2\n");
}

/* The kernel's mask of all the signals that a process handles. Threads there must have
 * been, for the C library handles one or two of its own then. */
#define SHOW_HANDLED                                                                     \
  "import threading\n"                                                                   \
  "threading.Thread().start()\n"                                                         \
  "print(open('/proc/self/status').read().split('SigCgt:')[1].split()[0])\n"

static void
default_actions_are_back_after_release(void)
{
    struct process *bare = start_target(SHOW_HANDLED);
    struct process *app = start_target("import manhole\n"
                                       "manhole.install(activate_on='USR1').release()\n"
                                       "manhole.install(oneshot_on='USR1').release()\n"
                                       "manhole.install().release()\n" SHOW_HANDLED);
    assert_int_equal(end_of(bare), 0);
    assert_int_equal(end_of(app), 0);
    assert_string_equal(text_of(app, OUT), text_of(bare, OUT));
}

/* The kernel spares the first process of a container signals that it does not handle. */
static void
first_process_of_a_container_ignores_termination(void)
{
    require_program("unshare");
    if (run_command(LIST("unshare", "--pid", "--fork", "true"), NULL, NULL, NULL) != 0) {
        skip_test("a pid namespace cannot be made here");
    }
    struct process *app =
        start_process(.argv = LIST("unshare", "--pid", "--fork", "--kill-child", python(),
                                   "-c",
                                   "import signal\n" INSTALL("socket_path='door'") //
                                   "os = __import__('os')\n"
                                   "os.kill(1, signal.SIGTERM)\n"
                                   "print('pid', os.getpid(), flush=True)\n" STAY));
    wait_for_text(app, OUT, "pid 1\n", DEADLINE);
    struct client *client = connect_client(test_path("door"));
    client_wait_for(client, ">>> ");
    client_close(client);
    assert_int_equal(end_of(app), 0);
    assert_no_path(test_path("door"));
}

/* ---- Sockets that stay ------------------------------------------------------------- */

#define AT_DOOR "socket_path='door'"

static void
next_process_removes_the_socket_that_a_sudden_exit_left(void)
{
    static const char *const ends[] = {"os._exit(0)", "os.kill(os.getpid(), 9)"};
    for (size_t i = 0; i < ROWS(ends); i++) {
        struct process *app =
            start_target(format_text("import os\n%s%s\n", INSTALL(AT_DOOR), ends[i]));
        wait_for_exit(app, DEADLINE);
        assert_path_exists(test_path("door"));
        app = start_target(TARGET(AT_DOOR));
        wait_until_ready(app);
        struct client *client = connect_client(test_path("door"));
        client_wait_for(client, ">>> ");
        client_close(client);
        assert_int_equal(end_of(app), 0);
        assert_no_path(test_path("door"));
    }
}

static void
program_that_execs_itself_has_its_socket_again(void)
{
    struct process *app =
        start_target("import os, sys\n" INSTALL("") //
                     "if len(sys.argv) == 1:\n"
                     "    os.execv(sys.executable, [sys.executable,\n"
                     "             sys.argv[0], 'again'])\n" READY STAY);
    wait_until_ready(app);
    struct client *client = client_at_prompt(app);
    assert_string_equal(client_ask(client, "sys.argv[1]"), "'again'\n");
    client_close(client);
    assert_int_equal(end_of(app), 0);
    assert_quiet(app);
}

/* Whatever stands at the path by then is not ours to remove. */
static void
exit_leaves_a_path_that_is_somebody_elses_by_now(void)
{
    struct process *app = start_target(TARGET(AT_DOOR));
    wait_until_ready(app);
    assert_int_equal(unlink(test_path("door")), 0);
    write_file("door", "precious");
    assert_int_equal(end_of(app), 0);
    assert_string_equal(read_file(test_path("door")), "precious");
}

static void
socket_that_is_roots_after_setuid_is_a_log_line_at_exit(void)
{
    if (geteuid() != 0) {
        skip_test("needs root to become another user");
    }
    struct process *app =
        start_target(INSTALL("") "import os\nos.setuid(65534)\n" READY STAY);
    const char *path = socket_path_of(app->pid);
    wait_until_ready(app);
    assert_int_equal(end_of(app), 0);
    assert_contains(
        text_of(app, ERR),
        format_text("Cannot remove %s: Operation not permitted. It is UID:0's, "
                    "this process UID:65534's. ",
                    path));
    assert_int_equal(unlink(path), 0);
}

/* ---- Many times -------------------------------------------------------------------- */

/* MANHOLE_TEST_EXITS=200 for the long run. */
static int
number_of_exits(void)
{
    const char *number = getenv("MANHOLE_TEST_EXITS");
    return number == NULL ? 5 : (int)strtol(number, NULL, 10);
}

static void
exits_dropping_a_client_at_the_prompt_all_end_well(void)
{
    for (int i = 0; i < number_of_exits(); i++) {
        struct process *app = start_target(ENDING(DROPS, "sys.exit(len('ends'))"));
        struct client *client = client_at_prompt(app);
        assert_int_equal(end_of(app), 4);
        client_read_until_eof(client);
        client_close(client);
        assert_quiet(app);
    }
}

static void
exits_waiting_for_a_client_at_the_prompt_all_end_well(void)
{
    for (int i = 0; i < number_of_exits(); i++) {
        struct process *app = start_target(ENDING(STAYS, "sys.exit(len('ends'))"));
        struct client *client = client_at_prompt(app);
        begin_end_of(app);
        client_close(client);
        assert_int_equal(wait_for_exit(app, DEADLINE), 4);
        assert_quiet(app);
    }
}

int
main(void)
{
    static const struct test_case tests[] = {
        TEST(exit_waits_for_the_client),
        TEST(exit_waits_for_each_client),
        TEST(exit_waits_for_the_output_of_a_statement),
        TEST(client_that_leaves_an_endless_statement_lets_the_process_end),
        TEST(exit_admits_no_new_client),
        TEST(daemon_connection_lets_a_client_at_the_prompt_go),
        TEST(daemon_connection_lets_every_statement_go),
        TEST(client_that_imports_threading_first_does_not_pass_for_the_main_thread),
        TEST(statement_that_outlasts_the_manhole_does_not_end_the_process),
        TEST(daemon_connection_lets_a_client_that_does_not_read_go),
        TEST(daemon_connection_lets_a_handler_of_the_program_go),
        TEST(clients_that_come_during_exit_do_no_harm),
        TEST(exit_status_is_the_programs_and_the_socket_goes),
        TEST(exit_status_survives_a_client_that_was_waited_for),
        TEST(answers_while_the_last_threads_are_joined),
        TEST(manhole_never_activated_ends_quietly),
        TEST(interrupt_ends_the_wait_for_a_client),
        TEST(interrupt_ends_the_wait_for_an_endless_statement),
        TEST(termination_ends_the_wait_for_a_client),
        TEST(death_by_a_signal_is_that_signals_and_the_socket_goes),
        TEST(death_by_a_signal_while_the_socket_opens_leaves_none),
        TEST(interrupt_ends_python_as_ever),
        TEST(termination_does_not_wait_for_a_client),
        TEST(handler_set_before_install_is_in_charge),
        TEST(handler_set_after_install_is_in_charge),
        TEST(ignored_signal_stays_ignored),
        TEST(default_actions_are_back_after_release),
        TEST(first_process_of_a_container_ignores_termination),
        TEST(next_process_removes_the_socket_that_a_sudden_exit_left),
        TEST(program_that_execs_itself_has_its_socket_again),
        TEST(exit_leaves_a_path_that_is_somebody_elses_by_now),
        TEST(socket_that_is_roots_after_setuid_is_a_log_line_at_exit),
        TEST(exits_dropping_a_client_at_the_prompt_all_end_well),
        TEST(exits_waiting_for_a_client_at_the_prompt_all_end_well),
    };
    return RUN_TESTS(tests);
}
