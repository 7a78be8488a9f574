#include "support.h"
#include <signal.h>
#include <stdio.h>
static void evaluates(void)
{
    struct process *app = start_target(TARGET("locals={'answer': 42}"));
    struct client *client = connect_to(app);
    wait_until_ready(app);
    client_wait_for(client, ">>> ");
    assert_string_equal(client_ask(client, "answer + 1"), "43\n");
    client_close(client);
    close_stdin(app);
    assert_int_equal(wait_for_exit(app, DEADLINE), 0);
}
static void stays(void)
{
    struct process *app = start_target(TARGET(""));
    wait_until_ready(app);
    wait_for_path(socket_path_of(app->pid), DEADLINE);
}
static void fails_contains(void)
{
    struct process *app = start_target(TARGET(""));
    struct client *client = connect_to(app);
    assert_contains(client_wait_for(client, ">>> "), "Nothing like that");
}
static void waits(void)
{
    struct process *app = start_target(TARGET(""));
    wait_for_text(app, OUT, "Lala", 500);
}
static void leaves_child(void)
{
    struct process *app = start_target("import os,time\nif os.fork()==0: os.setsid(); time.sleep(1000)\n");
    wait_for_exit(app, DEADLINE);
}
static void crashes(void)
{
    struct process *app = start_target("import os\nos.abort()\n");
    wait_for_text(app, OUT, "x", 100000);
}
static void killed(void)
{
    struct process *app = start_target(TARGET(""));
    wait_for_path(socket_path_of(app->pid), DEADLINE);
    send_signal(app, SIGKILL);
    assert_int_equal(wait_for_exit(app, DEADLINE), -9);
}
static void pty(void)
{
    struct process *p = start_process(.argv = LIST("python3", "-c", "print(input('x? ')[::-1], __import__('os').get_terminal_size())"), .terminal = true);
    wait_for_text(p, OUT, "x? ", DEADLINE);
    write_stdin(p, "hello\n");
    assert_contains(wait_for_text(p, OUT, "olleh", DEADLINE), "hello\r\n");
    wait_for_text(p, OUT, "columns=80", DEADLINE);
}
static void commands(void)
{
    const char *out, *err;
    assert_int_equal(run_command(LIST("sh", "-c", "cat; echo e >&2; id -u; exit 3"), "in\n", &out, &err), 3);
    assert_string_equal(out, "in\n0\n"); assert_string_equal(err, "e\n");
    assert_int_equal(run_process(start_process(.argv=LIST("id", "-u"), .uid = 65534), NULL, &out, NULL), 0);
    assert_matches(out, "^65534$");
    printf("threads %d fds %d %ld\n", count_threads(1), count_fds(1), rss_kib(1));
}
static void skipping(void) { require_debian_module("gevent"); require_program("socat"); require_program("nosuch"); }
static void env(void)
{
    struct process *app = start_target("import sys\nprint(sys.argv[1:], 'manhole' in sys.modules)\n" READY STAY, .env = LIST("PYTHONMANHOLE=", "A=b"), .argv = LIST("x", "y"), .python_options = LIST("-X", "dev"));
    wait_for_text(app, OUT, "['x', 'y'] True", DEADLINE);
}
static void segv(void)
{
    struct process *app = start_target("import ctypes, manhole\nmanhole.install()\nctypes.string_at(0)\n");
    wait_for_exit(app, DEADLINE);
}
int main(void) {
    static const struct test_case tests[] = {TEST(evaluates), TEST(stays), TEST(fails_contains), TEST(waits), TEST(leaves_child), TEST(crashes), TEST(killed), TEST(pty), TEST(commands), TEST(skipping), TEST(env),TEST(segv)};
    return RUN_TESTS(tests);
}
