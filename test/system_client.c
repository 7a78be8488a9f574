/* system_client.c - manhole-cli with servers as Debian has them: a master and its workers.
 */
#include "support.h"

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { WORKERS = 4, MOST_WORKERS = 8, PATIENCE_MS = 3000 };

/* One request gets its worker stuck in C, with the GIL. */
static const char APP[] = //
    "import ctypes, os\n"
    "def application(environ, start_response):\n"
    "    if environ['PATH_INFO'] == '/stuck':\n"
    "        open('stuck', 'w').write('%d' % os.getpid())\n"
    "        ctypes.PyDLL(None).sleep(600)\n"
    "    start_response('200 OK', [])\n"
    "    return [b'hello']\n";

static bool
are_all_up(void *master)
{
    pid_t workers[MOST_WORKERS];
    size_t up = 0;
    size_t count = list_children(*(pid_t *)master, workers, MOST_WORKERS);
    for (size_t i = 0; i < count; i++) {
        up += is_served(socket_path_of(workers[i]));
    }
    return up == WORKERS;
}

static void
stacks_of_gunicorn_and_its_workers_come_although_one_is_stuck(void)
{
    const char *out = NULL;
    const char *err = NULL;
    require_debian_module("gunicorn");
    (void)write_file("app.py", APP);
    const char *door = test_path("http");
    struct process *master =
        start_process(.argv =
                          LIST(debian_python(), "-m", "gunicorn", "--workers", "4",
                               "--timeout", "600", "--graceful-timeout", "10", "--bind",
                               format_text("unix:%s", door), "app:application"),
                      .env = LIST("PYTHONMANHOLE=reinstall_delay=0.01"), .debian = true);
    wait_until(are_all_up, &master->pid, "all workers answer", DEADLINE);
    client_send(connect_client(door), "GET /stuck HTTP/1.0\r\n\r\n");
    wait_for_path(test_path("stuck"), DEADLINE);

    long begin_ms = now_ms();
    struct process *cli =
        start_process(.argv = LIST(build_path("manhole-cli"), "--children",
                                   format_text("%d", (int)master->pid), "--stacks"));
    assert_int_equal(wait_for_exit(cli, DEADLINE * PATIENCE_MS / 30000), 0);
    out = text_of(cli, OUT);
    err = text_of(cli, ERR);

    assert_true(now_ms() - begin_ms < DEADLINE);
    assert_string_equal(err, "manhole-cli: 5 of 5 answered\n");
    const char *stuck = read_file(test_path("stuck"));
    const char *block = strstr(out, format_text("==> %s ", stuck));
    assert_non_null(block);
    assert_matches(block, "^manhole: Python has not answered");
    assert_contains(block, "ctypes.PyDLL(None).sleep(600)");
    assert_contains(out, format_text("==> %d ", (int)master->pid));
    expect_socket_left(socket_path_of((pid_t)strtol(stuck, NULL, 10)));
    assert_int_equal(kill((pid_t)strtol(stuck, NULL, 10), SIGKILL), 0);
    wait_until(are_all_up, &master->pid, "all workers answer", DEADLINE);
    send_signal(master, SIGTERM);
    assert_int_equal(wait_for_exit(master, DEADLINE), 0);
}

int
main(void)
{
    static const struct test_case tests[] = {
        TEST(stacks_of_gunicorn_and_its_workers_come_although_one_is_stuck),
    };
    return RUN_TESTS(tests);
}
