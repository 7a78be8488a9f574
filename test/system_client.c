/* system_client.c - manhole-cli with servers as Debian has them: a master and its workers.
 */
#include "support.h"

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/wait.h>
#include <unistd.h>

enum { WORKERS = 4, MOST_WORKERS = 8, PATIENCE_MS = 3000 };

#define CLI(...) LIST(build_path("manhole-cli"), __VA_ARGS__)

/* One request gets its worker stuck in C, with the GIL; another waits, and has an order. */
static const char APP[] = //
    "import ctypes, os, time\n"
    "def tell(name):\n"
    "    with open(name + '-', 'w') as file: file.write('%d' % os.getpid())\n"
    "    os.rename(name + '-', name)\n"
    "def serve(order):\n"
    "    tell('slow')\n"
    "    while not os.path.exists('go-on'):\n"
    "        time.sleep(0.01)\n"
    "def application(environ, start_response):\n"
    "    if environ['PATH_INFO'] == '/stuck':\n"
    "        tell('stuck')\n"
    "        ctypes.PyDLL(None).sleep(600)\n"
    "    if environ['PATH_INFO'] == '/slow':\n"
    "        serve({'milk': 3})\n"
    "    start_response('200 OK', [])\n"
    "    return [b'hello']\n";

/* A gunicorn with workers. */
struct server {
    struct process *master;
    const char *master_pid;
    const char *door; /* where it serves HTTP */
    bool has_manholes;
    pid_t workers[MOST_WORKERS];
};

static bool
are_all_up(void *argument)
{
    struct server *server = argument;
    size_t up = 0;
    size_t count = list_children(server->master->pid, server->workers, MOST_WORKERS);
    for (size_t i = 0; i < count; i++) {
        up += !server->has_manholes || is_served(socket_path_of(server->workers[i]));
    }
    return up == WORKERS;
}

static struct server
start_gunicorn(bool has_manholes)
{
    struct server server = {.door = test_path("http"), .has_manholes = has_manholes};
    require_debian_module("gunicorn");
    (void)write_file("app.py", APP);
    server.master =
        start_process(.argv =
                          LIST(debian_python(), "-m", "gunicorn", "--workers", "4",
                               "--timeout", "600", "--graceful-timeout", "10", "--bind",
                               format_text("unix:%s", server.door), "app:application"),
                      .env = LIST(has_manholes ? "PYTHONMANHOLE=reinstall_delay=0.01"
                                               : "PYTHONMANHOLE"),
                      .debian = true);
    server.master_pid = format_text("%d", (int)server.master->pid);
    wait_until(are_all_up, &server, "all workers answer", DEADLINE);
    return server;
}

/* Sends a request that does not end by itself. Returns its worker. */
static const char *
begin_request(const struct server *server, const char *name, struct client **client)
{
    *client = connect_client(server->door);
    client_send(*client, format_text("GET /%s HTTP/1.0\r\n\r\n", name));
    wait_for_path(test_path(name), DEADLINE);
    return read_file(test_path(name));
}

/* What manhole-cli prints of it, and of nothing that is wrong. */
static const char *
show(const char *const argv[])
{
    const char *out = NULL;
    const char *err = NULL;
    if (run_command(argv, NULL, &out, &err) != 0) {
        fail_msg("%s", err);
    }
    return out;
}

static void
stop_server(const struct server *server)
{
    send_signal(server->master, SIGTERM);
    assert_int_equal(wait_for_exit(server->master, DEADLINE), 0);
}

static void
stacks_of_gunicorn_and_its_workers_come_although_one_is_stuck(void)
{
    const char *out = NULL;
    const char *err = NULL;
    struct client *client = NULL;
    struct server server = start_gunicorn(true);
    const char *stuck = begin_request(&server, "stuck", &client);

    long begin_ms = now_ms();
    struct process *cli =
        start_process(.argv = CLI("--children", server.master_pid, "--stacks"));
    assert_int_equal(wait_for_exit(cli, DEADLINE * PATIENCE_MS / 30000), 0);
    out = text_of(cli, OUT);
    err = text_of(cli, ERR);

    assert_true(now_ms() - begin_ms < DEADLINE);
    assert_string_equal(err, "manhole-cli: 5 of 5 answered\n");
    const char *block = strstr(out, format_text("==> %s ", stuck));
    assert_non_null(block);
    assert_matches(block, "^manhole: Python has not answered");
    assert_contains(block, "ctypes.PyDLL(None).sleep(600)");
    assert_contains(out, format_text("==> %s ", server.master_pid));
    expect_socket_left(socket_path_of((pid_t)strtol(stuck, NULL, 10)));
    assert_int_equal(kill((pid_t)strtol(stuck, NULL, 10), SIGKILL), 0);
    wait_until(are_all_up, &server, "all workers answer", DEADLINE);
    stop_server(&server);
}

static void
request_of_gunicorn_that_hangs_is_found_with_what_it_has(void)
{
    struct client *client = NULL;
    struct server server = start_gunicorn(true);
    const char *slow = begin_request(&server, "slow", &client);
    assert_matches(show(CLI("--children", server.master_pid, "--brief")),
                   format_text("^1 x .*in serve at .*/app\\.py:[0-9]+: %s$", slow));
    assert_matches(show(CLI(slow, "--stacks", "--locals")),
                   "in serve\n  time\\.sleep\\(0\\.01\\)\n +order = \\{'milk': 3\\}$");
    (void)write_file("go-on", "");
    assert_contains(client_read_until_eof(client), "hello");
    stop_server(&server);
}

static void
log_levels_memory_and_report_of_gunicorn_are_one_command_each(void)
{
    struct server server = start_gunicorn(true);
    const char *first = format_text("%d", (int)server.workers[0]);
    const char *seen =
        show(CLI("--children", server.master_pid, "--log-level", "gunicorn.error=DEBUG"));
    assert_contains(seen, format_text("%s: gunicorn.error had INFO, has DEBUG\n", first));
    seen = show(CLI("--children", server.master_pid, "--log-level", "restore"));
    assert_contains(seen, format_text("%s: gunicorn.error had DEBUG, has INFO\n", first));
    seen = show(CLI("--children", server.master_pid, "--memory=0.1"));
    assert_contains(seen, format_text("\nprocess %s, two looks 0.1 s apart\n", first));
    assert_matches(seen, "^[0-9,]+ objects, counted in a frozen copy$");
    seen = show(CLI(first, "--report"));
    assert_contains(seen, format_text("unix %s\n", server.door));
    assert_matches(seen, "^  gunicorn [0-9.]+$");
    stop_server(&server);
}

static void
worker_of_gunicorn_without_a_manhole_is_attached_to(void)
{
    struct client *client = NULL;
    if (is_sanitized() || is_wrapped()) {
        skip_test("a sanitizer's library cannot be loaded later");
    }
    struct server server = start_gunicorn(false);
    const char *slow = begin_request(&server, "slow", &client);
    if (ptrace(PTRACE_SEIZE, server.workers[0], NULL, NULL) < 0) {
        skip_test("ptrace is not allowed here: %s", strerror(errno));
    }
    assert_int_equal(ptrace(PTRACE_INTERRUPT, server.workers[0], NULL, NULL), 0);
    assert_int_equal(waitpid(server.workers[0], NULL, __WALL), server.workers[0]);
    assert_int_equal(ptrace(PTRACE_DETACH, server.workers[0], NULL, NULL), 0);
    assert_matches(show(CLI("--attach", slow, "--stacks")),
                   "/app\\.py\", line .*, in serve$");
    assert_string_equal(
        show(CLI("--attach", slow, "-c", "import os; print(os.getpid())")),
        format_text("%s\n", slow));
    (void)write_file("go-on", "");
    assert_contains(client_read_until_eof(client), "hello");
    wait_for_no_path(socket_path_of((pid_t)strtol(slow, NULL, 10)), DEADLINE);
    stop_server(&server);
}

int
main(void)
{
    static const struct test_case tests[] = {
        TEST(stacks_of_gunicorn_and_its_workers_come_although_one_is_stuck),
        TEST(request_of_gunicorn_that_hangs_is_found_with_what_it_has),
        TEST(log_levels_memory_and_report_of_gunicorn_are_one_command_each),
        TEST(worker_of_gunicorn_without_a_manhole_is_attached_to),
    };
    return RUN_TESTS(tests);
}
