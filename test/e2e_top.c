/* e2e_top.c - manhole-cli top: what processes do, or the threads of one, again and again. */
#include "support.h"

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define CLI(...) LIST(build_path("manhole-cli"), __VA_ARGS__)

/* With a loop that has three tasks. */
#define SERVICE(arguments)                                                               \
  INSTALL(arguments)                                                                     \
  "import asyncio\n"                                                                     \
  "async def serve(): await asyncio.Event().wait()\n"                                    \
  "async def main():\n"                                                                  \
  "    print('ready', flush=True)\n"                                                     \
  "    await asyncio.gather(serve(), serve())\n"                                         \
  "asyncio.run(main())\n"

/* A process whose GIL is stuck in a C function that holds it, until its stdin is closed. */
#define STUCK                                                                            \
  INSTALL("hang_timeout=0.1")                                                            \
  "import ctypes\n"                                                                      \
  "def work(): ctypes.PyDLL(None).getchar()\n" READY "work()\n"

static const char *
pid_of(const struct process *app)
{
    return format_text("%d", (int)app->pid);
}

/* A program that is ready, and waits. */
static struct process *
start_service(const char *program)
{
    struct process *app = start_target(program);
    wait_for_text(app, OUT, "ready\n", DEADLINE);
    wait_until_asleep(app->pid);
    return app;
}

static void
top_of_processes_has_for_each_its_tasks_and_where_it_is(void)
{
    require_gil();
    const char *out = NULL;
    struct process *service = start_service(SERVICE(""));
    struct process *other = start_service(TARGET(""));
    assert_int_equal(run_command(CLI("top", pid_of(service), pid_of(other), "-t", "0"),
                                 NULL, &out, NULL),
                     0);
    assert_matches(out, "^[0-9:]+  2 processes\n +PID S ");
    assert_matches(out, format_text("^ *%s S +- +[0-9.]+M +[0-9]+ +3  in select, by "
                                    "<module> at .*/target[0-9]+\\.py:[0-9]+$",
                                    pid_of(service)));
    assert_matches(out, format_text("^ *%s S .* -  in <module> at .*/target[0-9]+\\.py:",
                                    pid_of(other)));
    assert_not_contains(out, "\033");
}

static void
top_of_a_stuck_process_names_the_thread_that_holds_the_gil(void)
{
    const char *out = NULL;
    require_gil();
    struct process *app = start_service(STUCK);
    assert_int_equal(run_command(CLI("top", pid_of(app), "-t", "3"), NULL, &out, NULL),
                     0);
    assert_matches(out, format_text("^ *%s sleeping .* GIL MainThread +in work at "
                                    ".*/target[0-9]+\\.py:[0-9]+  .*getchar",
                                    pid_of(app)));
    close_stdin(app);
}

/* It looks at least twice. */
static void
log_of_a_process_tells_of_the_first_look_alone(void)
{
    const char *log;
    int times = 0;
    struct process *app = start_service(SERVICE(""));
    assert_int_equal(run_command(CLI("top", pid_of(app), "-t", "2.1"), NULL, NULL, NULL),
                     0);
    log = text_of(app, ERR);
    while ((log = strstr(log, "Accepted connection")) != NULL) {
        log++;
        times++;
    }
    assert_int_equal(times, 1);
}

/* Of two views the second begins where the first has, and Ctrl-C leaves the last one there. */
static void
top_on_a_terminal_writes_over_the_last_view(void)
{
    struct process *app = start_service(TARGET(""));
    struct process *top = start_process(.argv = CLI("top", pid_of(app)), .terminal = true,
                                        .env = LIST("TERM=xterm"));
    wait_for_text(top, OUT, "\033[H", DEADLINE);
    wait_for_text(top, OUT, "MainThread", DEADLINE);
    wait_for_text(top, OUT, "\033[J", DEADLINE);
    wait_for_text(top, OUT, "\033[H", DEADLINE);
    wait_for_text(top, OUT, "MainThread", DEADLINE);
    write_stdin(top, "\003");
    assert_int_equal(wait_for_exit(top, DEADLINE), 130);
}

int
main(void)
{
    static const struct test_case tests[] = {
        TEST(top_of_processes_has_for_each_its_tasks_and_where_it_is),
        TEST(top_of_a_stuck_process_names_the_thread_that_holds_the_gil),
        TEST(log_of_a_process_tells_of_the_first_look_alone),
        TEST(top_on_a_terminal_writes_over_the_last_view),
    };
    return RUN_TESTS(tests);
}
