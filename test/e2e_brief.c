/* e2e_brief.c - manhole-cli --brief: equal stacks in one line; and the order of several. */
#include "support.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define CLI(...) LIST(build_path("manhole-cli"), __VA_ARGS__)

/* Three threads that wait at one place, one that waits at another. */
#define APP                                                                              \
  INSTALL("hang_timeout=0.3")                                                            \
  "import ctypes, os, threading\n"                                                       \
  "def serve(): threading.Event().wait()\n"                                              \
  "def watch(): threading.Event().wait()\n"                                              \
  "for i in range(3):\n"                                                                 \
  "    threading.Thread(target=serve, daemon=True, name='server %d' % i).start()\n"      \
  "threading.Thread(target=watch, daemon=True, name='\"watcher\"').start()\n"

static const char *
start_app(const char *program, struct process **app)
{
    *app = start_target(program);
    wait_until_ready(*app);
    wait_until_asleep((*app)->pid);
    return format_text("%d", (int)(*app)->pid);
}

static void
equal_stacks_of_a_process_are_one_line_with_the_names_of_the_threads(void)
{
    struct process *app = NULL;
    const char *out = NULL;
    const char *pid = start_app(APP READY STAY, &app);
    assert_int_equal(run_command(CLI("--stacks", "--brief", pid), NULL, &out, NULL), 0);
    assert_matches(out,
                   "^3 x (sleeping )?in wait, by serve at .*/target[0-9]+.py:[0-9]+: "
                   "server [012], server [012], server [012]\n"
                   "(.*\n)*1 x (sleeping )?in wait, by watch at ");
    assert_matches(
        out, "^1 x (sleeping )?in <module> at .*/target[0-9]+.py:[0-9]+: MainThread$");
    assert_contains(out, ": \\\"watcher\\\"\n");
}

static void
equal_stacks_of_several_processes_are_one_line_with_their_pids(void)
{
    struct process *app = NULL;
    const char *out = NULL;
    const char *program = write_file("app.py", APP READY STAY);
    const char *pid[3];
    for (size_t i = 0; i < 3; i++) {
        app = start_process(.argv = LIST(python(), program));
        wait_for_text(app, OUT, "ready\n", DEADLINE);
        wait_until_asleep(app->pid);
        pid[i] = format_text("%d", (int)app->pid);
    }
    assert_int_equal(
        run_command(CLI("--brief", pid[2], pid[0], pid[1]), NULL, &out, NULL), 0);
    assert_matches(out, format_text("^9 x (sleeping )?in wait, by serve at .*: %s %s %s\n"
                                    "3 x .*: %s %s %s\n"
                                    "3 x .*: %s %s %s\n$",
                                    pid[2], pid[0], pid[1], pid[2], pid[0], pid[1],
                                    pid[2], pid[0], pid[1]));
}

static void
stuck_process_is_brief_too(void)
{
    struct process *app = NULL;
    const char *out = NULL;
    const char *pid = start_app(APP READY "ctypes.PyDLL(None).getchar()\n", &app);
    assert_int_equal(run_command(CLI("--brief", pid), NULL, &out, NULL), 0);
    assert_matches(out, "^3 x sleeping in wait, by serve at ");
    assert_matches(out, has_gil() ? "^1 x holding the GIL in <module> at .*: MainThread$"
                                  : "^1 x sleeping in <module> at ");
    close_stdin(app);
}

/* No copy of it can be made where the signal for that is missing. */
static void
stuck_process_that_shows_no_threads_says_why(void)
{
    struct process *app = NULL;
    const char *out = NULL;
    const char *err = NULL;
    require_gil();
    if (is_wrapped()) {
        skip_test("valgrind keeps a signal for itself");
    }
    const char *pid = start_app("import signal\n"
                                "for n in range(signal.SIGRTMIN, signal.SIGRTMAX + 1):\n"
                                "    signal.signal(n, print)\n" APP READY
                                "ctypes.PyDLL(None).getchar()\n",
                                &app);
    assert_int_equal(run_command(CLI("--brief", pid), NULL, &out, &err), 0);
    assert_string_equal(out, "");
    assert_contains(err, format_text("%s: manhole: No frozen copy of the process can be "
                                     "made: no real-time signal was free",
                                     pid));
    close_stdin(app);
}

static void
process_that_does_not_answer_is_named_on_standard_error(void)
{
    struct process *app = NULL;
    const char *out = NULL;
    const char *err = NULL;
    const char *pid = start_app(APP READY STAY, &app);
    const char *none = format_text("%d", (int)getpid());
    assert_int_equal(run_command(CLI("--brief", none, pid), NULL, &out, &err), 5);
    assert_contains(out, format_text(": %s\n", pid));
    assert_contains(err, format_text("%s: manhole-cli: error: ", none));
    assert_contains(err, "manhole-cli: 1 of 2 answered\n");
}

/* The one that is stuck answers last. */
static void
stacks_of_several_processes_come_in_the_order_of_the_command_line(void)
{
    struct process *stuck = NULL;
    struct process *app = NULL;
    const char *out = NULL;
    const char *first = start_app(APP READY "ctypes.PyDLL(None).getchar()\n", &stuck);
    const char *second = start_app(APP READY STAY, &app);
    assert_int_equal(run_command(CLI("--stacks", first, second), NULL, &out, NULL), 0);
    assert_matches(out, format_text("^==> %s (.*\n)*==> %s ", first, second));
    assert_int_equal(run_command(CLI("--json", first, second), NULL, &out, NULL), 0);
    assert_matches(out,
                   format_text("\"pid\": %s, (.*\n)*.*\"pid\": %s, ", first, second));
    close_stdin(stuck);
}

static void
brief_goes_with_stacks_alone(void)
{
    static const char *const others[] = {"--json", "--tasks", "--list"};
    const char *err = NULL;
    for (size_t i = 0; i < 3; i++) {
        assert_int_equal(run_command(CLI("1", "--brief", others[i]), NULL, NULL, &err),
                         2);
        assert_contains(err, "error: argument --brief: only with --stacks, and not with "
                             "--json\n");
    }
}

int
main(void)
{
    static const struct test_case tests[] = {
        TEST(equal_stacks_of_a_process_are_one_line_with_the_names_of_the_threads),
        TEST(equal_stacks_of_several_processes_are_one_line_with_their_pids),
        TEST(stuck_process_is_brief_too),
        TEST(stuck_process_that_shows_no_threads_says_why),
        TEST(process_that_does_not_answer_is_named_on_standard_error),
        TEST(stacks_of_several_processes_come_in_the_order_of_the_command_line),
        TEST(brief_goes_with_stacks_alone),
    };
    return RUN_TESTS(tests);
}
