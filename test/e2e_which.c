/* e2e_which.c - manhole-cli finds its processes: lists, masters with their workers, side by side,
 * containers, other machines, and what it does with a socket that somebody else has put there.
 *
 * The machine may have other processes with a manhole: none of the commands here means those.
 */
#include "support.h"

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#define CLI(...) LIST(build_path("manhole-cli"), __VA_ARGS__)

static struct process *
start_app(const char *program)
{
    struct process *app = start_target(program);
    wait_until_ready(app);
    return app;
}

static const char *
pid_of(const struct process *process)
{
    return format_text("%d", (int)process->pid);
}

static const char *
list(void)
{
    const char *out = NULL;
    assert_int_equal(run_command(CLI("--list"), NULL, &out, NULL), 0);
    return out;
}

/* Program text of a process with children that stay until the master is gone: the last of them is
 * stuck in C with the GIL. */
#define MASTER                                                                           \
  "import ctypes, os, time\n"                                                            \
  "os.environ['PYTHONMANHOLE'] = ''\n"                                                   \
  "import manhole; manhole.install(reinstall_delay=0, hang_timeout=0.3)\n"               \
  "parent = os.getpid()\n"                                                               \
  "for i in range(3):\n"                                                                 \
  "    if os.fork() == 0:\n"                                                             \
  "        while not os.path.exists('/tmp/manhole-%d' % os.getpid()): time.sleep(.01)\n" \
  "        open('worker%d' % i, 'w').write(str(os.getpid()))\n"                          \
  "        if i == 2: ctypes.PyDLL(None).sleep(60)\n"                                    \
  "        while os.getppid() == parent: time.sleep(.02)\n"                              \
  "        raise SystemExit\n"                                                           \
  "while not all(os.path.exists('worker%d' % i) and open('worker%d' % i).read()\n"       \
  "              for i in range(3)): time.sleep(.01)\n" READY STAY                       \
  "os.kill(int(open('worker2').read()), 9)\n"                                            \
  "os.unlink('/tmp/manhole-' + open('worker2').read())\n"

static const char *
worker(int number)
{
    return read_file(test_path(format_text("worker%d", number)));
}

static void
end_master(struct process *master)
{
    pid_t workers[8];
    size_t count = list_children(master->pid, workers, 8);
    close_stdin(master);
    assert_int_equal(wait_for_exit(master, DEADLINE), 0);
    for (size_t i = 0; i < count; i++) {
        wait_for_no_path(socket_path_of(workers[i]), DEADLINE);
    }
}

/* ======================================================================================
 * Lists
 * ======================================================================================
 */

static void
list_shows_a_process_that_answers(void)
{
    struct process *app = start_app(TARGET(""));
    assert_matches(list(),
                   format_text("^ *%d +[a-z0-9]+ +3\\.[0-9]+ +[0-9]+m[0-9]+s +answers +"
                               ".*target[0-9]+\\.py$",
                               (int)app->pid));
}

static void
list_shows_what_signal_opens_a_closed_manhole(void)
{
    struct process *app =
        start_target(READY STAY, .env = LIST("PYTHONMANHOLE=activate_on='USR2'"));
    wait_until_ready(app);
    assert_matches(list(), format_text("^ *%d .* -s USR2 +", (int)app->pid));
}

static void
list_leaves_a_oneshot_to_its_client(void)
{
    struct process *app = start_app(TARGET("oneshot_on='USR1'"));
    send_signal(app, SIGUSR1);
    wait_for_path(socket_path_of(app->pid), DEADLINE);
    for (int i = 0; i < 2; i++) {
        assert_matches(list(), format_text("^ *%d .* answers +", (int)app->pid));
    }
    struct client *client = connect_client(socket_path_of(app->pid));
    client_wait_for(client, ">>> ");
    assert_string_equal(client_ask(client, "6 * 7"), "42\n");
}

static void
list_of_another_user_is_told_nothing_by_a_oneshot(void)
{
    if (geteuid() != 0) {
        skip_test("only root can take on another uid");
    }
    struct process *app = start_app(TARGET("oneshot_on='USR1'"));
    const char *path = socket_path_of(app->pid);
    send_signal(app, SIGUSR1);
    wait_for_path(path, DEADLINE);
    assert_int_equal(chmod(path, 0666), 0);
    assert_int_equal(seteuid(65534), 0);
    struct client *theirs =
        connect_as(path, format_text("manhole-cli/%d.1" LISTING, (int)getpid()));
    assert_int_equal(seteuid(0), 0);
    assert_string_equal(client_read_until_eof(theirs), "");
    wait_for_text(app, ERR, "SuspiciousClient", DEADLINE);
    struct client *client = connect_client(path);
    client_wait_for(client, ">>> ");
    assert_string_equal(client_ask(client, "6 * 7"), "42\n");
}

static void
list_finds_a_socket_elsewhere(void)
{
    const char *out = NULL;
    struct process *app =
        start_target("import os\n" TARGET("socket_path=os.path.abspath('my-manhole')"),
                     .argv = LIST("which-is-elsewhere"));
    wait_until_ready(app);
    assert_matches(list(), format_text("^ *%d .* answers +", (int)app->pid));
    assert_int_equal(run_command(CLI("--match", "which-is-elsewhere", "-c", "print(1)"),
                                 NULL, &out, NULL),
                     0);
    assert_string_equal(out, format_text("%s: 1\n", pid_of(app)));
}

static void
list_shows_who_does_not_answer(void)
{
    struct process *app = start_app(TARGET(""));
    send_signal(app, SIGSTOP);
    assert_matches(list(), format_text("^ *%d .* silent +", (int)app->pid));
    send_signal(app, SIGCONT);
}

/* Runs a program where /tmp is empty and this test's own, so that what it removes is nobody
 * else's. */
static const char *
run_in_empty_tmp(const char *program)
{
    const char *out = NULL;
    const char *err = NULL;
    const char *script = format_text("exec 3<%s && mount -t tmpfs none /tmp && "
                                     "exec \"$0\" - /proc/self/fd/3 <&0",
                                     build_path("manhole-cli"));
    if (geteuid() != 0 ||
        run_command(LIST("unshare", "--mount", "true"), NULL, NULL, NULL) != 0) {
        skip_test("no mount namespace to be had here");
    }
    struct process *process =
        start_process(.argv = LIST("unshare", "--mount", "sh", "-c", script, python()));
    if (run_process(process, program, &out, &err) != 0) {
        fail_msg("%s", err);
    }
    return out;
}

static void
clean_removes_dead_sockets_of_mine_and_no_others(void)
{
    const char *out = run_in_empty_tmp(
        "import os, socket, subprocess, sys\n"
        "def leave(number, dead=True, owner=0):\n"
        "    door = socket.socket(socket.AF_UNIX)\n"
        "    door.bind('/tmp/manhole-%d' % number)\n"
        "    door.listen()\n"
        "    os.chown('/tmp/manhole-%d' % number, owner, -1)\n"
        "    if dead: door.close()\n"
        "    return door\n"
        "leave(999999998)\n"
        "leave(999999997, owner=65534)\n"
        "living = leave(os.getpid(), dead=False)\n"
        "open('/tmp/manhole-999999996', 'w').close()\n"
        "subprocess.run([sys.argv[1], '--clean'], check=True, pass_fds=[3])\n"
        "print([name for name in sorted(os.listdir('/tmp')) if 'manhole' in name])\n");
    assert_matches(out, "^removed /tmp/manhole-999999998$");
    assert_matches(out,
                   "^\\['manhole-[0-9]+', 'manhole-999999996', 'manhole-999999997'\\]$");
}

static void
without_arguments_at_a_terminal_it_asks_which(void)
{
    struct process *app = start_app(TARGET(""));
    struct process *cli = start_process(.argv = LIST(build_path("manhole-cli")),
                                        .terminal = true, .env = LIST("TERM=dumb"));
    const char *shown = wait_for_text(cli, OUT, "Which one? [1-", DEADLINE);
    const char *row = strstr(shown, format_text("%7d ", (int)app->pid));
    assert_non_null(row);
    while (row > shown && row[-1] != '\n') {
        row--;
    }
    write_stdin(cli, format_text("%ld\n", strtol(row, NULL, 10)));
    wait_for_text(cli, OUT, ">>> ", DEADLINE);
    assert_contains(text_of(cli, OUT), format_text("ProcessID=%d,", (int)app->pid));
    write_stdin(cli, "\004");
    assert_int_equal(wait_for_exit(cli, DEADLINE), 0);
}

/* ======================================================================================
 * Several
 * ======================================================================================
 */

static void
code_runs_in_several_side_by_side_and_is_labelled(void)
{
    const char *out = NULL;
    const char *err = NULL;
    struct process *one = start_app(TARGET(""));
    struct process *two = start_app(TARGET(""));
    assert_int_equal(
        run_command(CLI(pid_of(one), pid_of(two), "-c", "print('here')\nprint('it is')"),
                    NULL, &out, &err),
        0);
    assert_contains(out, format_text("%s: here\n", pid_of(one)));
    assert_contains(out, format_text("%s: it is\n", pid_of(two)));
    assert_string_equal(err, "manhole-cli: 2 of 2 answered\n");
}

static void
status_of_several_is_the_worst(void)
{
    const char *err = NULL;
    struct process *one = start_app(TARGET(""));
    struct process *two = start_app(TARGET(""));
    const char *code = format_text(
        "import os, sys; sys.exit(3 if os.getpid() == %s else 0)", pid_of(two));
    assert_int_equal(
        run_command(CLI(pid_of(one), pid_of(two), "-c", code), NULL, NULL, &err), 3);
    assert_string_equal(err, "manhole-cli: 2 of 2 answered\n");
}

/* Then the kernel forgets how a child ended. */
static void
status_of_several_is_known_where_sigchld_was_ignored(void)
{
    const char *err = NULL;
    struct process *one = start_app(TARGET(""));
    struct process *two = start_app(TARGET(""));
    assert_int_equal(
        run_command(LIST("env", "--ignore-signal=CHLD", build_path("manhole-cli"),
                         pid_of(one), pid_of(two), "-c", "raise SystemExit(3)"),
                    NULL, NULL, &err),
        3);
    assert_string_equal(err, "manhole-cli: 2 of 2 answered\n");
}

static void
one_that_is_stopped_delays_none(void)
{
    struct process *one = start_app(TARGET(""));
    struct process *two = start_app(TARGET(""));
    send_signal(two, SIGSTOP);
    struct process *cli =
        start_process(.argv = CLI(pid_of(two), pid_of(one), "-c", "print('here')"));
    wait_for_text(cli, OUT, format_text("%s: here\n", pid_of(one)), DEADLINE);
    assert_int_equal(wait_for_exit(cli, DEADLINE), 5);
    assert_contains(
        text_of(cli, ERR),
        format_text("%s: manhole-cli: error: process is stopped", pid_of(two)));
    assert_contains(text_of(cli, ERR), "manhole-cli: 1 of 2 answered\n");
    send_signal(two, SIGCONT);
}

static bool
has_no_children(void *argument)
{
    const pid_t *children = argument;
    return children[0] == 0 ||
           (!path_exists(format_text("/proc/%d/fd/0", (int)children[0])) &&
            !path_exists(format_text("/proc/%d/fd/0", (int)children[1])));
}

/* Each asks its process in a child. */
static void
nothing_is_left_of_who_asks_several(void)
{
    struct process *one = start_app(TARGET(""));
    struct process *two = start_app(TARGET(""));
    pid_t children[2] = {0};
    struct process *cli =
        start_process(.argv = CLI(
                          pid_of(one), pid_of(two), "-c",
                          "import time; print('here')\nwhile True: time.sleep(0.01)"));
    wait_for_text(cli, OUT, "here\n", DEADLINE);
    wait_for_text(cli, OUT, "here\n", DEADLINE);
    assert_int_equal(list_children(cli->pid, children, 2), 2);
    send_signal(cli, SIGKILL);
    wait_until(has_no_children, children, "the children have ended", DEADLINE);
}

/* As behind an ssh that was interrupted. */
static void
output_of_several_that_nobody_wants_ends_it_with_141(void)
{
    struct process *one = start_app(TARGET(""));
    struct process *two = start_app(TARGET(""));
    const char *pipeline =
        format_text("(%s %s %s -c 'while True: pass' 2>&1; echo $? >&3) 3>status | true",
                    build_path("manhole-cli"), pid_of(one), pid_of(two));
    assert_int_equal(run_command(LIST("sh", "-c", pipeline), NULL, NULL, NULL), 0);
    assert_string_equal(read_file(test_path("status")), "141\n");
}

/* 200 times two pipes, though never all at once. */
static void
more_are_asked_than_there_may_be_descriptors(void)
{
    const char *err = NULL;
    const char *command = format_text("ulimit -n 300; %s --stacks $(seq 4200001 4200200)",
                                      build_path("manhole-cli"));
    assert_int_equal(run_command(LIST("sh", "-c", command), NULL, NULL, &err), 5);
    assert_contains(err, "manhole-cli: 0 of 200 answered\n");
}

/* What calls it in a loop goes on with its own input. */
static void
list_over_there_reads_no_input(void)
{
    const char *out = NULL;
    const char *eat = write_file("eat.sh", "cat >/dev/null\n");
    const char *script =
        format_text("printf 'left\\n' | { %s --exec 'sh %s' --list; cat; }",
                    build_path("manhole-cli"), eat);
    assert_int_equal(run_command(LIST("sh", "-c", script), NULL, &out, NULL), 0);
    assert_string_equal(out, "left\n");
}

static void
children_are_the_master_and_its_workers(void)
{
    const char *out = NULL;
    const char *err = NULL;
    struct process *master = start_app(MASTER);
    long begin_ms = now_ms();
    assert_int_equal(
        run_command(CLI("--children", pid_of(master), "--stacks"), NULL, &out, &err), 0);
    assert_true(now_ms() - begin_ms < DEADLINE);
    assert_string_equal(err, "manhole-cli: 4 of 4 answered\n");
    assert_matches(out, format_text("^==> %s .* <==$", pid_of(master)));
    for (int i = 0; i < 3; i++) {
        assert_matches(out, format_text("^==> %s .* <==$", worker(i)));
    }
    assert_contains(out, "ctypes.PyDLL(None).sleep(60)");
    end_master(master);
}

static void
json_of_several_is_one_array(void)
{
    const char *out = NULL;
    struct process *master = start_app(MASTER);
    assert_int_equal(run_command(CLI("--children", pid_of(master), "--json", "--quiet"),
                                 NULL, &out, NULL),
                     0);
    const char *count =
        "import json, sys; print(sorted(d['pid'] for d in json.load(sys.stdin)))";
    assert_int_equal(run_command(LIST(python(), "-c", count), out, &out, NULL), 0);
    for (int i = 0; i < 3; i++) {
        assert_contains(out, worker(i));
    }
    end_master(master);
}

static void
json_of_those_that_are_named_is_one_array_too(void)
{
    const char *out = NULL;
    struct process *one = start_app(TARGET(""));
    struct process *two = start_app(TARGET(""));
    assert_int_equal(
        run_command(CLI("--json", pid_of(one), pid_of(two)), NULL, &out, NULL), 0);
    assert_matches(out, "^\\[\\{\"pid\": ");
    assert_matches(out, "\\}\\]$");
}

static void
match_looks_at_the_command_line(void)
{
    const char *out = NULL;
    struct process *app = start_target(TARGET(""), .argv = LIST("an-unusual-argument"));
    wait_until_ready(app);
    (void)start_app(TARGET(""));
    assert_int_equal(run_command(CLI("--match", "an-unusu+al-arg", "-c", "print(1)"),
                                 NULL, &out, NULL),
                     0);
    assert_string_equal(out, format_text("%s: 1\n", pid_of(app)));
}

static void
match_of_one_is_enough_for_a_console(void)
{
    const char *out = NULL;
    struct process *app =
        start_target(TARGET(""), .argv = LIST("another-unusual-argument"));
    wait_until_ready(app);
    assert_int_equal(
        run_command(CLI("--match", "another-unusual-arg"), "print(41 + 1)\n", &out, NULL),
        0);
    assert_contains(out, ">>> 42\n");
}

static void
match_of_several_is_too_many_for_a_console(void)
{
    const char *err = NULL;
    for (int i = 0; i < 2; i++) {
        wait_until_ready(start_target(TARGET(""), .argv = LIST("one-of-two-arguments")));
    }
    assert_int_equal(
        run_command(CLI("--match", "one-of-two-arguments$"), "1\n", NULL, &err), 2);
    assert_contains(err,
                    "2 processes are meant, a console is of one; see manhole-cli --list");
}

static void
match_of_none_is_an_error(void)
{
    const char *err = NULL;
    assert_int_equal(
        run_command(CLI("--match", "^nobody-is-called-like-that$", "-c", "1"), NULL, NULL,
                    &err),
        5);
    assert_contains(err, "none of the processes that are meant has a manhole for you");
}

static void
wrong_expression_is_a_mistake(void)
{
    const char *err = NULL;
    assert_int_equal(run_command(CLI("--match", "(", "-c", "1"), NULL, NULL, &err), 2);
    assert_contains(err, "error: argument --match: '(': ");
}

/* ======================================================================================
 * Containers
 * ======================================================================================
 */

static void
process_in_a_container_is_found_by_its_pid_here(void)
{
    const char *out = NULL;
    if (geteuid() != 0 ||
        run_command(LIST("unshare", "--pid", "--mount", "--fork", "true"), NULL, NULL,
                    NULL) != 0) {
        skip_test("no namespaces to be had here");
    }
    const char *program = write_file(
        "contained.py", INSTALL("") "import os\n"
                                    "print('ready', os.getpid(), flush=True)\n" STAY);
    const char *script = format_text(
        "mkdir own && cp %s %s/*.so own && mount --bind own /tmp && exec %s /tmp/%s",
        program, build_path("."), python(), "contained.py");
    struct process *container =
        start_process(.argv = LIST("unshare", "--pid", "--mount", "--fork",
                                   "--kill-child", "--mount-proc", "sh", "-c", script),
                      .env = LIST("PYTHONPATH=/tmp"));
    pid_t inside = 0;
    wait_for_text(container, OUT, "ready 1\n", DEADLINE);
    assert_int_equal(list_children(container->pid, &inside, 1), 1);
    const char *pid = format_text("%d", (int)inside);
    assert_no_path(socket_path_of(inside));
    assert_int_equal(
        run_command(CLI(pid, "-c", "import os; print(os.getpid())"), NULL, &out, NULL),
        0);
    assert_string_equal(out, "1\n");
    assert_int_equal(run_command(CLI("--stacks", pid), NULL, &out, NULL), 0);
    assert_contains(out, "ProcessID=1,");
    assert_matches(list(), format_text("^ *%s .* answers +", pid));
    close_stdin(container);
    assert_int_equal(wait_for_exit(container, DEADLINE), 0);
}

int
main(void)
{
    static const struct test_case tests[] = {
        TEST(list_shows_a_process_that_answers),
        TEST(list_shows_what_signal_opens_a_closed_manhole),
        TEST(list_leaves_a_oneshot_to_its_client),
        TEST(list_of_another_user_is_told_nothing_by_a_oneshot),
        TEST(list_finds_a_socket_elsewhere),
        TEST(list_shows_who_does_not_answer),
        TEST(clean_removes_dead_sockets_of_mine_and_no_others),
        TEST(without_arguments_at_a_terminal_it_asks_which),
        TEST(code_runs_in_several_side_by_side_and_is_labelled),
        TEST(status_of_several_is_the_worst),
        TEST(status_of_several_is_known_where_sigchld_was_ignored),
        TEST(one_that_is_stopped_delays_none),
        TEST(nothing_is_left_of_who_asks_several),
        TEST(output_of_several_that_nobody_wants_ends_it_with_141),
        TEST(more_are_asked_than_there_may_be_descriptors),
        TEST(list_over_there_reads_no_input),
        TEST(children_are_the_master_and_its_workers),
        TEST(json_of_several_is_one_array),
        TEST(json_of_those_that_are_named_is_one_array_too),
        TEST(match_looks_at_the_command_line),
        TEST(match_of_one_is_enough_for_a_console),
        TEST(match_of_several_is_too_many_for_a_console),
        TEST(match_of_none_is_an_error),
        TEST(wrong_expression_is_a_mistake),
        TEST(process_in_a_container_is_found_by_its_pid_here),
    };
    return RUN_TESTS(tests);
}
