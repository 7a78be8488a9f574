/* e2e_hindrances.c - what manhole-cli says of a process that cannot answer, or that nobody
 * could: each reason in a line of its own, with what to do.
 */
#include "support.h"

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static const char *
number(pid_t pid)
{
    return format_text("%d", (int)pid);
}

/* Runs manhole-cli, which does not try for long, without input. Returns what it says on
 * stderr. */
static const char *
ask_for(pid_t pid)
{
    const char *out = NULL;
    const char *err = NULL;
    int status = run_command(LIST(build_path("manhole-cli"), "-t0.01", number(pid)), NULL,
                             &out, &err);
    assert_int_equal(status, 5);
    assert_string_equal(out, "");
    return err;
}

/* It says that nobody answered, as ever, and then why, in one line. */
static void
assert_reason(pid_t pid, const char *reason)
{
    assert_string_equal(ask_for(pid),
                        format_text("Failed to connect to '/tmp/manhole-%d': Timeout\n"
                                    "manhole-cli: error: %s\n",
                                    (int)pid, reason));
}

static struct process *
start_ready(const char *program)
{
    struct process *app = start_target(program);
    wait_until_ready(app);
    return app;
}

struct expected_state {
    pid_t pid;
    char state;
};

static bool
is_in_state(void *argument)
{
    const struct expected_state *expected = argument;
    const char *stat = read_file(format_text("/proc/%d/stat", (int)expected->pid));
    return strrchr(stat, ')')[2] == expected->state;
}

static void
wait_for_state(pid_t pid, char state)
{
    struct expected_state expected = {.pid = pid, .state = state};
    wait_until(is_in_state, &expected, "the process is in this state", DEADLINE);
}

/* Holds all threads of a process, as a debugger does, until its own stdin is closed. */
static struct process *
start_tracer(pid_t pid)
{
    struct process *tracer =
        start_target("import ctypes, os, sys\n"
                     "SEIZE, INTERRUPT = 0x4206, 0x4207\n"
                     "ptrace = ctypes.CDLL(None, use_errno=True).ptrace\n"
                     "ptrace.argtypes = [ctypes.c_long] * 4\n"
                     "ptrace.restype = ctypes.c_long\n"
                     "for thread in os.listdir('/proc/%s/task' % sys.argv[1]):\n"
                     "    for request in SEIZE, INTERRUPT:\n"
                     "        if ptrace(request, int(thread), 0, 0) < 0:\n"
                     "            sys.exit(print('ready error', ctypes.get_errno()))\n"
                     "    os.waitpid(int(thread), 0x40000000)\n" /* __WALL */
                     READY STAY,
                     .argv = LIST(number(pid)));
    wait_until_ready(tracer);
    if (strstr(text_of(tracer, OUT), "error") != NULL) {
        skip_test("no process can be traced here: %s", text_of(tracer, OUT));
    }
    return tracer;
}

#define STOPPED "process is stopped: PID %d; 'kill -CONT %d' lets it go on"
#define TRACED                                                                           \
  "process is traced: PID %d is held by a debugger or strace; let it go on there"

/* ======================================================================================
 * Nobody serves the socket.
 * ======================================================================================
 */

static void
dead_process_is_told(void)
{
    struct process *app = start_process(.argv = LIST("true"));
    wait_for_exit(app, DEADLINE);
    assert_reason(app->pid, format_text("process %d is not there", (int)app->pid));
}

static void
zombie_is_told(void)
{
    struct process *parent = start_target("import os\n"
                                          "pid = os.fork()\n"
                                          "if pid == 0: os._exit(0)\n"
                                          "print(pid, flush=True)\n" STAY);
    pid_t pid = (pid_t)strtol(wait_for_text(parent, OUT, "\n", DEADLINE), NULL, 10);
    wait_for_state(pid, 'Z');
    assert_reason(pid, format_text("process %d has ended and waits for its parent to "
                                   "notice; there is nothing to look into",
                                   (int)pid));
    close_stdin(parent);
    assert_int_equal(wait_for_exit(parent, DEADLINE), 0);
}

static void
process_without_a_manhole_is_told(void)
{
    struct process *app = start_process(.argv = LIST("cat"));
    assert_reason(app->pid,
                  format_text("process %d seems to have no manhole: it wants "
                              "manhole.install(), or PYTHONMANHOLE in its environment, "
                              "when it starts; 'manhole-cli --attach %d' puts one in",
                              (int)app->pid, (int)app->pid));
}

static void
manhole_that_was_released_is_none(void)
{
    struct process *app =
        start_ready("import manhole\nmanhole.install().release()\n" READY STAY);
    assert_contains(ask_for(app->pid), " seems to have no manhole: ");
}

static void
manhole_that_waits_for_its_signal_is_told(void)
{
    struct process *app = start_ready(TARGET("activate_on='USR1'"));
    assert_reason(app->pid, format_text("process %d has a manhole that is closed: it "
                                        "opens on USR1: manhole-cli %d -1",
                                        (int)app->pid, (int)app->pid));
}

static void
stopped_process_without_a_socket_is_told(void)
{
    struct process *app = start_process(.argv = LIST("cat"));
    send_signal(app, SIGSTOP);
    wait_for_state(app->pid, 'T');
    assert_reason(app->pid, format_text(STOPPED, (int)app->pid, (int)app->pid));
    send_signal(app, SIGCONT);
}

static void
traced_process_without_a_socket_is_told(void)
{
    struct process *app = start_ready(READY STAY);
    start_tracer(app->pid);
    assert_reason(app->pid, format_text(TRACED, (int)app->pid));
}

/* ======================================================================================
 * Somebody does, and says nothing.
 * ======================================================================================
 */

static struct process *
start_cli(const struct process *app)
{
    return start_process(.argv = LIST(build_path("manhole-cli"), number(app->pid)));
}

/* The client waits on, and gets its prompt. */
static void
assert_goes_on(struct process *cli)
{
    wait_for_text(cli, OUT, ">>> ", DEADLINE);
    write_stdin(cli, "6 * 7\n");
    wait_for_text(cli, OUT, "42\n", DEADLINE);
    close_stdin(cli);
    assert_int_equal(wait_for_exit(cli, DEADLINE), 0);
}

/* Both at once, for the client is patient. */
static void
process_that_is_stopped_or_traced_is_told_while_the_client_waits(void)
{
    struct process *stopped = start_ready(TARGET(""));
    struct process *traced = start_ready(TARGET(""));
    send_signal(stopped, SIGSTOP);
    wait_for_state(stopped->pid, 'T');
    struct process *tracer = start_tracer(traced->pid);
    struct process *first = start_cli(stopped);
    struct process *second = start_cli(traced);
    wait_for_text(first, ERR, "\n", DEADLINE);
    wait_for_text(second, ERR, "\n", DEADLINE);
    send_signal(stopped, SIGCONT);
    close_stdin(tracer);
    assert_goes_on(first);
    assert_goes_on(second);
    assert_string_equal(text_of(first, ERR),
                        format_text("manhole-cli: error: " STOPPED "\n",
                                    (int)stopped->pid, (int)stopped->pid));
    assert_string_equal(
        text_of(second, ERR),
        format_text("manhole-cli: error: " TRACED "\n", (int)traced->pid));
}

/* Where a cgroup of either version can be made, and how it is frozen and let go. */
static const struct freezer {
    const char *folder;
    const char *file;
    const char *freeze;
    const char *thaw;
} freezers[] = {
    {"/sys/fs/cgroup/freezer", "freezer.state", "FROZEN", "THAWED"},
    {"/sys/fs/cgroup/unified", "cgroup.freeze", "1", "0"},
    {"/sys/fs/cgroup", "cgroup.freeze", "1", "0"},
};

static bool
put_text(const char *path, const char *text)
{
    FILE *file = fopen(path, "we");
    bool is_written = file != NULL && fputs(text, file) >= 0;
    return file != NULL && fclose(file) == 0 && is_written;
}

/* As after docker pause. The client says so without waiting for a timeout, and waits on. */
static void
frozen_cgroup_is_told_while_the_client_waits(void)
{
    int tried = 0;
    for (size_t i = 0; i < sizeof(freezers) / sizeof(freezers[0]); i++) {
        const struct freezer *freezer = &freezers[i];
        const char *folder =
            format_text("%s/manhole-test-%d", freezer->folder, (int)getpid());
        if (!path_exists(format_text("%s/cgroup.procs", freezer->folder)) ||
            mkdir(folder, 0700) < 0) {
            continue;
        }
        const char *file = format_text("%s/%s", folder, freezer->file);
        struct process *app = start_ready(TARGET(""));
        struct process *cli = NULL;
        if (put_text(format_text("%s/cgroup.procs", folder), number(app->pid)) &&
            put_text(file, freezer->freeze)) {
            tried++;
            cli = start_cli(app);
            wait_for_text(cli, ERR, "\n", DEADLINE);
            (void)put_text(file, freezer->thaw);
            assert_goes_on(cli);
            assert_contains(text_of(cli, ERR),
                            format_text("manhole-cli: error: process is frozen: PID %d ",
                                        (int)app->pid));
        }
        close_stdin(app);
        assert_int_equal(wait_for_exit(app, DEADLINE), 0);
        assert_int_equal(rmdir(folder), 0);
    }
    if (tried == 0) {
        skip_test("no cgroup can be frozen here");
    }
}

/* The queue of a listener that is stopped is full: even the connection does not come about. */
static void
stopped_process_with_a_full_queue_is_told(void)
{
    struct process *app =
        start_ready("import os, socket\n"
                    "listener = socket.socket(socket.AF_UNIX)\n"
                    "path = '/tmp/manhole-%d' % os.getpid()\n"
                    "listener.bind(path)\n"
                    "listener.listen(0)\n"
                    "client = socket.socket(socket.AF_UNIX)\n"
                    "client.connect(path)\n" READY STAY "os.unlink(path)\n");
    send_signal(app, SIGSTOP);
    wait_for_state(app->pid, 'T');
    assert_reason(app->pid, format_text(STOPPED, (int)app->pid, (int)app->pid));
    send_signal(app, SIGCONT);
    close_stdin(app);
    assert_int_equal(wait_for_exit(app, DEADLINE), 0);
}

int
main(void)
{
    static const struct test_case tests[] = {
        TEST(dead_process_is_told),
        TEST(zombie_is_told),
        TEST(process_without_a_manhole_is_told),
        TEST(manhole_that_was_released_is_none),
        TEST(manhole_that_waits_for_its_signal_is_told),
        TEST(stopped_process_without_a_socket_is_told),
        TEST(traced_process_without_a_socket_is_told),
        TEST(process_that_is_stopped_or_traced_is_told_while_the_client_waits),
        TEST(frozen_cgroup_is_told_while_the_client_waits),
        TEST(stopped_process_with_a_full_queue_is_told),
    };
    return RUN_TESTS(tests);
}
