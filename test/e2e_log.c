/* e2e_log.c - the log, line by line: scripts look for these texts, in this order. Between
 * the lines that a test names there is no other.
 */
#include "support.h"

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

/* The text of the next line of the log, which is that of process pid and well-formed:
 * Manhole[PID:SECONDS.4digits]: TEXT. */
static const char *
next_line_of(struct process *app, enum stream stream, pid_t pid)
{
    const char *line = wait_for_text(app, stream, "\n", DEADLINE);
    const char *head = format_text("Manhole[%d:", (int)pid);
    assert_matches(line, format_text("^Manhole\\[%d:[0-9]+\\.[0-9]{4}\\]: ", (int)pid));
    assert_in_range(strtol(line + strlen(head), NULL, 10), time(NULL) - 3600,
                    time(NULL) + 1);
    const char *text = strstr(line, "]: ") + strlen("]: ");
    return format_text("%.*s", (int)strlen(text) - 1, text);
}

static const char *
next_line(struct process *app)
{
    return next_line_of(app, ERR, app->pid);
}

/* What follows take the stream and the pid from these, which differ in a few tests. */
struct log {
    struct process *app;
    enum stream stream;
    pid_t pid;
};

static void
expect_in(const struct log *log, const char *text)
{
    assert_string_equal(next_line_of(log->app, log->stream, log->pid), text);
}

static void
expect_line(struct process *app, const char *text)
{
    assert_string_equal(next_line(app), text);
}

static void
expect_opening_in(const struct log *log)
{
    expect_in(log, format_text("Manhole UDS path: %s", socket_path_of(log->pid)));
    expect_in(log,
              format_text("Waiting for new connection (in pid:%d) ...", (int)log->pid));
}

static void
expect_waiting(struct process *app)
{
    expect_line(app,
                format_text("Waiting for new connection (in pid:%d) ...", (int)app->pid));
}

static void
expect_opening(struct process *app)
{
    expect_opening_in(&(struct log){app, ERR, app->pid});
}

/* The client is this test program, and is still served: the descriptor named is a socket
 * of the app's. */
static void
expect_acceptance_in(const struct log *log)
{
    static const char before[] = "Accepted connection on fd:";
    char target[64] = "";
    const char *text = next_line_of(log->app, log->stream, log->pid);
    assert_contains(text, before);
    int fd = (int)strtol(strstr(text, before) + strlen(before), NULL, 10);
    assert_string_equal(
        text, format_text("Accepted connection on fd:%d from PID:%d UID:%d GID:%d", fd,
                          (int)getpid(), (int)geteuid(), (int)getegid()));
    const char *link = format_text("/proc/%d/fd/%d", (int)log->pid, fd);
    assert_true(readlink(link, target, sizeof(target) - 1) > 0);
    assert_contains(target, "socket:[");
}

static void
expect_start_in(const struct log *log)
{
    expect_in(log, "Started ManholeConnectionThread thread. Checking credentials ...");
    expect_acceptance_in(log);
}

static void
expect_start(struct process *app)
{
    expect_start_in(&(struct log){app, ERR, app->pid});
}

static struct client *
enter(struct process *app)
{
    struct client *client = connect_to(app);
    client_wait_for(client, ">>> ");
    return client;
}

static void
leave(struct client *client)
{
    client_send(client, "exit()\n");
    client_read_until_eof(client);
}

/* Who is served is this test program. */
static void
expect_audit_in(const struct log *log, const char *literal)
{
    expect_in(log, format_text("Running for PID:%d UID:%d GID:%d: %s", (int)getpid(),
                               (int)geteuid(), (int)getegid(), literal));
}

/* Shows that the log ends here: nothing more came to the end of the process. */
static void
expect_no_more(struct process *app)
{
    const char *rest;
    assert_int_equal(run_process(app, NULL, NULL, &rest), 0);
    assert_string_equal(rest, "");
}

/* ======================================================================================
 * A listener and its sessions
 * ====================================================================================== */

static void
console_session_is_told_from_start_to_end(void)
{
    struct process *app = start_target(TARGET(""));
    expect_opening(app);
    for (int i = 0; i < 2; i++) {
        struct client *client = enter(app);
        expect_start(app);
        leave(client);
        expect_audit_in(&(struct log){app, ERR, app->pid}, "'exit()'");
        expect_line(app, "DONE.");
        expect_line(app, "Cleaned up.");
        expect_waiting(app);
    }
    expect_no_more(app);
}

static void
client_that_vanishes_is_told_from_start_to_end(void)
{
    struct process *app = start_target(TARGET(""));
    expect_opening(app);
    struct client *client = enter(app);
    expect_start(app);
    client_close(client);
    wait_for_text(app, ERR, "]: DONE.\n", DEADLINE);
    expect_line(app, "Cleaned up.");
    expect_waiting(app);
    expect_no_more(app);
}

static void
exec_session_is_told_from_start_to_end(void)
{
    struct process *app = start_target(TARGET("connection_handler='exec'"));
    expect_opening(app);
    struct client *client = connect_to(app);
    expect_start(app);
    client_send(client, "x = 'a\\tb'\n");
    expect_line(app, "Running: \"x = 'a\\\\tb'\\n\".");
    client_send(client, "\n");
    expect_line(app, "Running: '\\n'.");
    leave(client);
    expect_line(app, "Running: 'exit()\\n'.");
    expect_line(app, "Exiting exec loop.");
    expect_waiting(app);
    expect_no_more(app);
}

static void
exec_session_that_its_client_ends_says_no_more(void)
{
    struct process *app = start_target(TARGET("connection_handler='exec'"));
    expect_opening(app);
    struct client *client = connect_to(app);
    expect_start(app);
    client_send(client, "x = 1");
    client_shutdown_write(client);
    expect_line(app, "Running: 'x = 1'.");
    expect_waiting(app);
}

static void
exec_session_that_fails_says_why(void)
{
    struct process *app = start_target(TARGET("connection_handler='exec'"));
    expect_opening(app);
    struct client *client = connect_to(app);
    expect_start(app);
    client_send(client, "raise LookupError('no luck')\n");
    expect_line(app, "Running: \"raise LookupError('no luck')\\n\".");
    expect_line(app, "ManholeConnectionThread failure: LookupError('no luck')");
    expect_waiting(app);
}

/* Long lines are cut, and stay lines. */
static void
exec_session_s_long_line_is_one_line_of_the_log(void)
{
    char statement[20001];
    struct process *app = start_target(TARGET("connection_handler='exec'"));
    expect_opening(app);
    memset(statement, '#', sizeof(statement) - 1);
    statement[sizeof(statement) - 1] = '\0';
    struct client *client = connect_to(app);
    expect_start(app);
    client_send(client, format_text("%s\nexit()\n", statement));
    assert_contains(next_line(app), "Running: '######");
    expect_line(app, "Running: 'exit()\\n'.");
    expect_line(app, "Exiting exec loop.");
}

static void
session_of_a_callable_is_told_from_start_to_end(void)
{
    struct process *app =
        start_target(TARGET("connection_handler=lambda client: client.recv(1)"));
    expect_opening(app);
    struct client *client = connect_to(app);
    expect_start(app);
    client_send(client, "x");
    expect_waiting(app);
    assert_string_equal(client_read_until_eof(client), "");
}

static void
session_of_a_callable_that_raises_says_why(void)
{
    struct process *app =
        start_target(TARGET("connection_handler=lambda client: {}[client.recv(1)]"));
    expect_opening(app);
    struct client *client = connect_to(app);
    expect_start(app);
    client_send(client, "x");
    expect_line(app, "ManholeConnectionThread failure: KeyError(b'x')");
    expect_waiting(app);
}

/* Of each the first line, cut short, in a literal: none of it can pass for a line of the log. */
static void
what_is_run_is_told_with_who_runs_it(void)
{
    char statement[1000];
    const char *program = "print(6 * 7)\nprint(8)\n";
    memset(statement, '1', sizeof(statement) - 1);
    statement[sizeof(statement) - 1] = '\0';
    struct process *app = start_target(TARGET(""));
    struct log log = {app, ERR, app->pid};
    wait_for_text(app, ERR, "Waiting for new connection", DEADLINE);
    wait_for_text(app, ERR, "\n", DEADLINE);
    struct client *client = enter(app);
    expect_start(app);
    client_ask(client, "x = 'a\\tb'\x1b");
    expect_audit_in(&log, "\"x = 'a\\\\tb'\\x1b\"");
    client_ask(client, "");
    client_send(client, "def f():\n    return 1\n\n");
    client_wait_for(client, "... >>> ");
    expect_audit_in(&log, "'def f():'");
    client_ask(client, statement);
    expect_audit_in(&log, format_text("'%.200s' ...", statement));
    leave(client);
    expect_audit_in(&log, "'exit()'");
    const char *cli = build_path("manhole-cli");
    const char *pid = format_text("%d", (int)app->pid);
    assert_int_equal(run_command(LIST(cli, pid, "-c", program), NULL, NULL, NULL), 0);
    wait_for_text(app, ERR, "Running a program: <string>.\n", DEADLINE);
    assert_matches(next_line(app),
                   "^Running for PID:[0-9]+ UID:.*: 'print\\(6 \\* 7\\)' ...$");
}

static void
audit_False_tells_nothing_of_what_is_run(void)
{
    struct process *app = start_target(TARGET("audit=False"));
    expect_opening(app);
    struct client *client = enter(app);
    expect_start(app);
    client_ask(client, "x = 1");
    leave(client);
    expect_line(app, "DONE.");
}

static void
object_gets_the_lines_in_order(void)
{
    struct process *app =
        start_target("import os\n"
                     "class Log:\n"
                     "    def write(self, line): os.write(1, line.encode())\n"
                     "log = Log()\n" INSTALL("verbose_destination=log") STAY);
    struct log log = {app, OUT, app->pid};
    expect_opening_in(&log);
    struct client *client = enter(app);
    expect_start_in(&log);
    leave(client);
    expect_audit_in(&log, "'exit()'");
    expect_in(&log, "DONE.");
    expect_in(&log, "Cleaned up.");
    expect_in(&log,
              format_text("Waiting for new connection (in pid:%d) ...", (int)app->pid));
    expect_no_more(app);
}

/* The second line has come with the first: nothing else wakes the listener when it is run. */
static void
object_gets_the_line_of_a_session_that_runs_on(void)
{
    struct process *app = start_target(
        "import os\n"
        "class Log:\n"
        "    def write(self, line): os.write(1, line.encode())\n"
        "log = Log()\n" INSTALL(
            "verbose_destination=log, connection_handler='exec', hang_timeout=3600")
            STAY);
    struct log log = {app, OUT, app->pid};
    expect_opening_in(&log);
    struct client *client = connect_to(app);
    expect_start_in(&log);
    client_send(client, "import time; time.sleep(0.5)\nimport time; time.sleep(3600)\n");
    expect_in(&log, "Running: 'import time; time.sleep(0.5)\\n'.");
    expect_in(&log, "Running: 'import time; time.sleep(3600)\\n'.");
}

/* A session's thread is named "Manhole < PID:...". Who writes may keep it as long as he likes. */
static void
object_gets_no_line_in_a_client_s_thread(void)
{
    struct process *app = start_target(
        "import os\n"
        "class Log:\n"
        "    def write(self, line):\n"
        "        with open('/proc/thread-self/comm') as file: name = file.readline()\n"
        "        os.write(1, f'{name.strip()}: {line}'.encode())\n" INSTALL(
            "verbose_destination=Log()") STAY);
    for (int i = 0; i < 5; i++) {
        leave(enter(app));
        assert_not_contains(wait_for_text(app, OUT, "Cleaned up.", DEADLINE),
                            "Manhole < ");
        assert_not_contains(wait_for_text(app, OUT, "Waiting", DEADLINE), "Manhole < ");
    }
}

static void
object_gets_the_last_line_of_a_session_that_outlives_the_listener(void)
{
    struct process *app =
        start_target("import os, sys\n"
                     "class Log:\n"
                     "    def write(self, line): os.write(1, "
                     "line.encode())\n"
                     "import manhole\n"
                     "installed = manhole.install(verbose_destination=Log())\n" READY
                     "sys.stdin.readline()\n"
                     "installed.release()\n"
                     "print('released')\n" STAY);
    struct client *client = enter(app);
    write_stdin(app, "\n");
    wait_for_text(app, OUT, "released\n", DEADLINE);
    leave(client);
    wait_for_text(app, OUT, "Cleaned up.", DEADLINE);
}

static void
log_goes_on_where_it_went_while_a_client_has_the_streams(void)
{
    struct process *app = start_target(
        "import sys\n" TARGET("verbose_destination=sys.stderr, redirect_stderr=True"));
    struct client *first = enter(app);
    leave(enter(app));
    wait_for_text(app, ERR, "]: Cleaned up.\n", DEADLINE);
    assert_not_contains(client_ask(first, "1"), "Manhole[");
    assert_not_contains(first->text.data, "Manhole[");
}

/* ======================================================================================
 * Refused clients
 * ====================================================================================== */

enum { NOBODY = 65534 };

#define ROOT_OF_A_NAMESPACE(...) LIST("unshare", "--user", "--map-root-user", __VA_ARGS__)

/* Another user's client of a socket that somebody has opened to all: prints what it gets.
 */
static struct process *
start_client_of_another_user(const char *path)
{
    if (geteuid() != 0) {
        skip_test("needs root to become another user");
    }
    wait_for_path(path, DEADLINE);
    assert_int_equal(chmod(path, 0666), 0);
    return start_target("import os, socket, sys\n"
                        "os.seteuid(65534)\n"
                        "client = socket.socket(socket.AF_UNIX)\n"
                        "client.connect(sys.argv[1])\n"
                        "print(client.recv(100), flush=True)\n",
                        .argv = LIST(path));
}

static const char *
refusal_of(const struct process *client)
{
    return format_text(
        "Can't accept client with PID:%d UID:65534 GID:%d. It doesn't match "
        "the current EUID:0 or ROOT.",
        (int)client->pid, (int)getegid());
}

/* A program of the test directory, whose descriptor 2 the shell has dealt with. Returns what its
 * data.db holds in the end. Its log would go there. */
static const char *
data_after_a_session(const char *shell, const char *program)
{
    const char *script = format_text("exec \"$0\" \"$1\" %s", shell);
    struct process *app = start_process(.argv = LIST("sh", "-c", script, python(),
                                                     write_file("app.py", program)));
    wait_until_ready(app);
    struct client *client = connect_to(app);
    client_wait_for(client, ">>> ");
    client_close(client);
    close_stdin(app);
    assert_int_equal(wait_for_exit(app, DEADLINE), 0);
    return read_file(test_path("data.db"));
}

#define OPEN_DATA                                                                        \
  "import os; data = os.open('data.db', os.O_WRONLY | os.O_CREAT)\n"                     \
  "os.write(data, b'data')\n"

static void
file_that_is_opened_in_place_of_the_log_gets_no_line(void)
{
    const char *program =
        INSTALL("") "import os; os.close(2)\n" OPEN_DATA "assert data == 2\n" READY STAY;
    assert_string_equal(data_after_a_session("", program), "data");
}

static void
file_that_was_opened_where_the_log_would_go_gets_no_line(void)
{
    const char *program = OPEN_DATA "assert data == 2\n" INSTALL("") READY STAY;
    assert_string_equal(data_after_a_session("2>&-", program), "data");
}

static void
file_in_place_of_a_descriptor_of_one_s_own_gets_no_line(void)
{
    const char *program = "import os; log = os.open('log', os.O_WRONLY | os.O_CREAT)\n" //
        INSTALL("verbose_destination=log") "os.close(log)\n"                            //
        OPEN_DATA "assert data == log\n" READY STAY;
    assert_string_equal(data_after_a_session("", program), "data");
    assert_contains(read_file(test_path("log")), "Manhole UDS path");
}

static void
refused_client_is_told_in_the_log_alone(void)
{
    struct process *app = start_target(TARGET(""));
    expect_opening(app);
    struct process *client = start_client_of_another_user(socket_path_of(app->pid));
    expect_line(app, "Started ManholeConnectionThread thread. Checking credentials ...");
    expect_line(app, format_text("SuspiciousClient: %s", refusal_of(client)));
    expect_waiting(app);
    wait_for_text(client, OUT, "b''\n", DEADLINE);
    expect_no_more(app);
}

/* Who is root in a user namespace of his own is outside of it who he was. */
static void
root_of_another_users_namespace_is_that_user(void)
{
    if (geteuid() != 0) {
        skip_test("needs root to become another user");
    }
    require_program("nc");
    struct process *app = start_target(TARGET(""));
    const char *path = socket_path_of(app->pid);
    wait_until_ready(app);
    assert_int_equal(chmod(path, 0666), 0);
    if (wait_for_exit(start_process(.argv = ROOT_OF_A_NAMESPACE("true"), .uid = NOBODY),
                      DEADLINE) != 0) {
        skip_test("no user namespaces to be had here");
    }
    struct process *client =
        start_process(.argv = ROOT_OF_A_NAMESPACE("nc", "-U", path), .uid = NOBODY);
    wait_for_text(app, ERR, "SuspiciousClient: Can't accept client with PID:", DEADLINE);
    assert_contains(wait_for_text(app, ERR, "\n", DEADLINE), " UID:65534 ");
    close_stdin(client);
    (void)wait_for_exit(client, DEADLINE);
    assert_string_equal(text_of(client, OUT), "");
}

static void
oneshot_that_refuses_its_client_says_why(void)
{
    struct process *app = start_target("import manhole\n"
                                       "m = manhole.install(thread=False)\n"
                                       "m.handle_oneshot()\n" READY STAY);
    expect_opening(app);
    struct process *client = start_client_of_another_user(socket_path_of(app->pid));
    expect_line(app, format_text("Oneshot failure: SuspiciousClient(\"%s\")",
                                 refusal_of(client)));
    wait_until_ready(app);
    wait_for_text(client, OUT, "b''\n", DEADLINE);
}

/* ======================================================================================
 * Signals
 * ====================================================================================== */

static void
activation_is_announced_and_told_when_it_comes(void)
{
    struct process *app = start_target(TARGET("activate_on='USR1'"));
    expect_line(app,
                "Not patching os.fork and os.forkpty. Activation is done by signal 10");
    wait_until_ready(app);
    send_signal(app, SIGUSR1);
    expect_opening(app);
    struct client *client = enter(app);
    expect_start(app);
    leave(client);
    expect_audit_in(&(struct log){app, ERR, app->pid}, "'exit()'");
    expect_line(app, "DONE.");
    expect_line(app, "Cleaned up.");
    expect_waiting(app);
}

static void
second_activation_is_not_told(void)
{
    struct process *app = start_target(TARGET("activate_on='USR1'"));
    expect_line(app,
                "Not patching os.fork and os.forkpty. Activation is done by signal 10");
    wait_until_ready(app);
    send_signal(app, SIGUSR1);
    expect_opening(app);
    send_signal(app, SIGUSR1);
    struct client *client = enter(app);
    expect_start(app);
    client_close(client);
}

/* After each session the main thread is asked whether it is back at its work. */
static void
oneshot_is_announced_and_told_when_it_comes(void)
{
    struct process *app = start_target("import os\n" INSTALL("oneshot_on='USR2'") READY
                                       "while os.read(0, 1): os.write(1, b'back\\n')\n");
    expect_line(app, "Not patching os.fork and os.forkpty. Oneshot activation is done by "
                     "signal 12");
    wait_until_ready(app);
    for (int i = 0; i < 2; i++) {
        send_signal(app, SIGUSR2);
        expect_opening(app);
        struct client *client = enter(app);
        expect_acceptance_in(&(struct log){app, ERR, app->pid});
        leave(client);
        expect_audit_in(&(struct log){app, ERR, app->pid}, "'exit()'");
        expect_line(app, "DONE.");
        expect_line(app, "Cleaned up.");
        write_stdin(app, ".");
        wait_for_text(app, OUT, "back\n", DEADLINE);
        assert_no_path(socket_path_of(app->pid));
    }
    expect_no_more(app);
}

static void
oneshot_that_nobody_comes_to_says_so(void)
{
    struct process *app = start_target(TARGET("oneshot_on='USR2', oneshot_timeout=0.05"));
    wait_until_ready(app);
    next_line(app);
    send_signal(app, SIGUSR2);
    expect_opening(app);
    expect_line(app, format_text("Oneshot failure: TimeoutError('no client came to %s in "
                                 "time')",
                                 socket_path_of(app->pid)));
}

static void
of_two_signals_the_activating_one_is_announced(void)
{
    struct process *app = start_target(TARGET("oneshot_on='USR2', activate_on='USR1'"));
    wait_until_ready(app);
    expect_line(app,
                "Not patching os.fork and os.forkpty. Activation is done by signal 10");
    expect_no_more(app);
}

/* ======================================================================================
 * Paths, forks
 * ====================================================================================== */

static void
path_of_one_s_own_is_announced(void)
{
    const char *path = test_path("mine");
    struct process *app = start_target("import sys\n" TARGET("socket_path=sys.argv[1]"),
                                       .argv = LIST(path));
    wait_until_ready(app);
    expect_line(app, format_text("Manhole UDS path: %s", path));
    expect_waiting(app);
    expect_line(app, format_text("Not patching os.fork and os.forkpty. Using user socket "
                                 "path %s",
                                 path));
    expect_no_more(app);
}

static void
path_with_the_pid_in_it_is_every_child_s(void)
{
    struct process *app = start_target("import sys\n" TARGET("socket_path=sys.argv[1]"),
                                       .argv = LIST(test_path("mine-%(pid)s")));
    wait_until_ready(app);
    expect_line(app, format_text("Manhole UDS path: %s",
                                 test_path(format_text("mine-%d", (int)app->pid))));
    expect_waiting(app);
    expect_no_more(app);
}

static void
patch_fork_False_has_nothing_to_announce(void)
{
    struct process *app = start_target(TARGET("activate_on='USR1', patch_fork=False"));
    wait_until_ready(app);
    expect_no_more(app);
}

/* CPython 3.12 and newer warn of a fork beside threads, on the very stream. */
#define NO_WARNINGS .env = LIST("PYTHONWARNINGS=ignore")
#define FORKS                                                                            \
  "import os\n"                                                                          \
  "if os.fork() == 0:\n"                                                                 \
  "    os.write(1, b'child %d\\n' % os.getpid())\n" STAY

static void
child_tells_of_its_fork_and_delay(void)
{
    static const char *const delays[] = {"0.05", "0.1", "0.125"};
    for (size_t i = 0; i < sizeof(delays) / sizeof(delays[0]); i++) {
        struct process *app = start_target(
            "import sys\n" INSTALL("reinstall_delay=float(sys.argv[1])") FORKS,
            .argv = LIST(delays[i]), NO_WARNINGS);
        expect_opening(app);
        wait_for_text(app, OUT, "child ", DEADLINE);
        pid_t child = (pid_t)strtol(wait_for_text(app, OUT, "\n", DEADLINE), NULL, 10);
        struct log log = {app, ERR, child};
        expect_in(&log, "Fork detected. Reinstalling Manhole.");
        expect_in(&log, format_text("Delaying UDS binding %s seconds ...", delays[i]));
        expect_opening_in(&log);
    }
}

static void
child_without_delay_tells_of_its_fork(void)
{
    struct process *app = start_target(INSTALL("reinstall_delay=0") FORKS, NO_WARNINGS);
    expect_opening(app);
    wait_for_text(app, OUT, "child ", DEADLINE);
    pid_t child = (pid_t)strtol(wait_for_text(app, OUT, "\n", DEADLINE), NULL, 10);
    struct log log = {app, ERR, child};
    expect_in(&log, "Fork detected. Reinstalling Manhole.");
    expect_opening_in(&log);
}

int
main(void)
{
    static const struct test_case tests[] = {
        TEST(console_session_is_told_from_start_to_end),
        TEST(client_that_vanishes_is_told_from_start_to_end),
        TEST(exec_session_is_told_from_start_to_end),
        TEST(exec_session_that_its_client_ends_says_no_more),
        TEST(exec_session_that_fails_says_why),
        TEST(exec_session_s_long_line_is_one_line_of_the_log),
        TEST(session_of_a_callable_is_told_from_start_to_end),
        TEST(session_of_a_callable_that_raises_says_why),
        TEST(what_is_run_is_told_with_who_runs_it),
        TEST(audit_False_tells_nothing_of_what_is_run),
        TEST(object_gets_the_lines_in_order),
        TEST(object_gets_the_line_of_a_session_that_runs_on),
        TEST(object_gets_no_line_in_a_client_s_thread),
        TEST(object_gets_the_last_line_of_a_session_that_outlives_the_listener),
        TEST(log_goes_on_where_it_went_while_a_client_has_the_streams),
        TEST(file_that_is_opened_in_place_of_the_log_gets_no_line),
        TEST(file_that_was_opened_where_the_log_would_go_gets_no_line),
        TEST(file_in_place_of_a_descriptor_of_one_s_own_gets_no_line),
        TEST(refused_client_is_told_in_the_log_alone),
        TEST(root_of_another_users_namespace_is_that_user),
        TEST(oneshot_that_refuses_its_client_says_why),
        TEST(activation_is_announced_and_told_when_it_comes),
        TEST(second_activation_is_not_told),
        TEST(oneshot_is_announced_and_told_when_it_comes),
        TEST(oneshot_that_nobody_comes_to_says_so),
        TEST(of_two_signals_the_activating_one_is_announced),
        TEST(path_of_one_s_own_is_announced),
        TEST(path_with_the_pid_in_it_is_every_child_s),
        TEST(patch_fork_False_has_nothing_to_announce),
        TEST(child_tells_of_its_fork_and_delay),
        TEST(child_without_delay_tells_of_its_fork),
    };
    return RUN_TESTS(tests);
}
