/* e2e_closed.c - applications that close every descriptor they find, as programs do that make
 * themselves daemons: the manhole opens its own anew, and never takes one of theirs for its own.
 */
#include "support.h"

#include <dirent.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/syscall.h>

/* Closes all, then has files of its own under the same numbers; fills them. */
#define CLOSE_ALL                                                                        \
  "import os\n"                                                                          \
  "os.closerange(3, 256)\n"                                                              \
  "files = [open('mine-%d' % i, 'w') for i in range(8)]\n"                               \
  "for file in files: print('mine', file=file, flush=True)\n"

static struct process *
start_closed(const char *options)
{
    const char *install = format_text(INSTALL("%s"), options);
    struct process *app =
        start_target(format_text("%s%s", install, CLOSE_ALL READY STAY));
    wait_until_ready(app);
    return app;
}

static void
assert_files_unharmed(void)
{
    for (int i = 0; i < 8; i++) {
        const char *path = test_path(format_text("mine-%d", i));
        assert_string_equal(read_file(path), "mine\n");
    }
}

/* The first to come finds the old socket, whose last descriptor goes at that moment. */
static void
wake_listener(struct process *app)
{
    (void)is_served(socket_path_of(app->pid));
    wait_for_text(app, ERR, "closed by the application. Opening them again.", DEADLINE);
    wait_for_text(app, ERR, "Waiting for new connection", DEADLINE);
}

static struct client *
client_at_prompt(const struct process *app)
{
    struct client *client = connect_to(app);
    client_wait_for(client, ">>> ");
    return client;
}

static void
listener_opens_its_descriptors_anew(void)
{
    struct process *app = start_closed("");
    wake_listener(app);
    struct client *client = client_at_prompt(app);
    assert_string_equal(client_ask(client, "6 * 7"), "42\n");
    assert_files_unharmed();
}

static void
signal_opens_the_socket_all_the_same(void)
{
    struct process *app = start_closed("activate_on='USR1'");
    send_signal(app, SIGUSR1);
    wait_for_path(socket_path_of(app->pid), DEADLINE);
    struct client *client = client_at_prompt(app);
    assert_string_equal(client_ask(client, "6 * 7"), "42\n");
    assert_files_unharmed();
}

static void
exit_does_not_wait_for_a_listener_that_hears_nothing(void)
{
    struct process *app = start_closed("");
    close_stdin(app);
    assert_int_equal(wait_for_exit(app, DEADLINE), 0);
    assert_no_path(socket_path_of(app->pid));
    assert_files_unharmed();
}

static void
manhole_is_released_and_installed_again(void)
{
    struct process *app = start_target(INSTALL("") CLOSE_ALL //
                                       "m = manhole.install(strict=False)\n"
                                       "m.release()\n"
                                       "manhole.install()\n" READY STAY);
    wait_until_ready(app);
    struct client *client = client_at_prompt(app);
    assert_string_equal(client_ask(client, "6 * 7"), "42\n");
    assert_files_unharmed();
}

static bool
has_one_listener_and_no_session(void *argument)
{
    return count_threads(((const struct process *)argument)->pid) == 2;
}

/* It sleeps where nothing can wake it but the client that it watches. */
static void
listener_that_was_given_up_ends_when_it_wakes(void)
{
    struct process *app =
        start_target(INSTALL("") "import os\nos.read(0, 1)\n" CLOSE_ALL //
                                 "m = manhole.install(strict=False)\n" READY
                                 "os.read(0, 1)\nm.release()\n"
                                 "manhole.install()\nprint('again')\n" STAY);
    wait_for_path(socket_path_of(app->pid), DEADLINE);
    struct client *client = client_at_prompt(app);
    write_stdin(app, "x");
    wait_until_ready(app);
    client_close(client);
    wait_until(has_one_listener_and_no_session, app, "the first listener ends", DEADLINE);
    write_stdin(app, "x");
    wait_for_text(app, OUT, "again\n", DEADLINE);
    assert_string_equal(client_ask(client_at_prompt(app), "6 * 7"), "42\n");
    assert_files_unharmed();
}

static void
frozen_copy_is_made_all_the_same(void)
{
    struct process *app =
        start_target(INSTALL("hang_timeout=0.3") CLOSE_ALL //
                     "import ctypes\n" READY "ctypes.PyDLL(None).pause()\n");
    wait_until_ready(app);
    wake_listener(app);
    struct client *client = connect_to(app);
    client_wait_for(client, ".pause()");
    client_wait_for(client, "as soon as Python answers");
    assert_files_unharmed();
}

/* A thread of the process waits for what its client types. */
static bool
is_reading(void *argument)
{
    const struct process *app = argument;
    const char *tasks = format_text("/proc/%d/task", (int)app->pid);
    DIR *threads = opendir(tasks);
    bool reading = false;
    assert_non_null(threads);
    for (struct dirent *entry = NULL; (entry = readdir(threads)) != NULL;) {
        const char *call = format_text("%s/%s/syscall", tasks, entry->d_name);
        reading = reading || (entry->d_name[0] != '.' && path_exists(call) &&
                              strtol(read_file(call), NULL, 10) == SYS_recvfrom);
    }
    (void)closedir(threads);
    return reading;
}

/* The session reads on, for the kernel keeps the connection as long; what is answered to it must go
 * to nobody. */
static void
sockets_of_the_application_s_are_never_a_client_s(void)
{
    struct process *app =
        start_target(INSTALL("") READY //
                     "import os, select, socket\n"
                     "os.read(0, 1)\n"
                     "os.closerange(3, 256)\n"
                     "pairs = [socket.socketpair() for i in range(8)]\n"
                     "print('closed', flush=True)\n"
                     "os.read(0, 1)\n"
                     "ends = [end for pair in pairs for end in pair]\n"
                     "print('disturbed', select.select(ends, [], [], 0)[0])\n"
                     "for end in ends: end.send(b'works')\n" STAY);
    wait_until_ready(app);
    struct client *client = client_at_prompt(app);
    assert_string_equal(client_ask(client, "6 * 7"), "42\n");
    wait_until(is_reading, app, "the session reads", DEADLINE);
    write_stdin(app, "x");
    wait_for_text(app, OUT, "closed\n", DEADLINE);
    client_send(client, "6 * 7\n");
    wait_for_text(app, ERR, "Cleaned up", DEADLINE);
    client_close(client);
    write_stdin(app, "x");
    wait_for_text(app, OUT, "disturbed []\n", DEADLINE);
    close_stdin(app);
    assert_int_equal(wait_for_exit(app, DEADLINE), 0);
}

static bool
has_ended(void *pid)
{
    return !path_exists(format_text("/proc/%d/fd/0", (int)*(pid_t *)pid));
}

/* fork, setsid, fork, close: as python-daemon and its like do it. */
static void
daemon_has_a_manhole(void)
{
    if (is_sanitized()) { /* the second fork is beside a thread that begins */
        skip_test("a child may wait for a lock of asan's allocator for ever");
    }
    struct process *app = start_target(INSTALL("reinstall_delay=0.3") //
                                       "import os\n"
                                       "if os.fork(): os._exit(0)\n"
                                       "os.setsid()\n"
                                       "if os.fork(): os._exit(0)\n" CLOSE_ALL
                                       "print('daemon', os.getpid(), flush=True)\n" STAY);
    const char *said = wait_for_text(app, OUT, "\n", DEADLINE);
    assert_contains(said, "daemon ");
    pid_t pid = (pid_t)strtol(said + 7, NULL, 10);
    expect_socket_left(socket_path_of(app->pid)); /* os._exit() asks nobody */
    struct client *client = connect_client(socket_path_of(pid));
    client_wait_for(client, ">>> ");
    assert_files_unharmed();
    client_close(client);
    close_stdin(app);
    wait_for_no_path(socket_path_of(pid), DEADLINE);
    wait_until(has_ended, &pid, "the daemon has ended", DEADLINE);
}

int
main(void)
{
    static const struct test_case tests[] = {
        TEST(listener_opens_its_descriptors_anew),
        TEST(signal_opens_the_socket_all_the_same),
        TEST(exit_does_not_wait_for_a_listener_that_hears_nothing),
        TEST(manhole_is_released_and_installed_again),
        TEST(listener_that_was_given_up_ends_when_it_wakes),
        TEST(frozen_copy_is_made_all_the_same),
        TEST(sockets_of_the_application_s_are_never_a_client_s),
        TEST(daemon_has_a_manhole),
    };
    return RUN_TESTS(tests);
}
