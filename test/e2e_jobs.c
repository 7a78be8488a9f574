/* e2e_jobs.c - manhole-cli --log-level, --report and --memory: what one wants at 3 a.m. in one
 * command.
 */
#include "support.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define CLI(...) LIST(build_path("manhole-cli"), __VA_ARGS__)

/* A program with a logger, which answers what it is asked. */
#define SHOP                                                                             \
  INSTALL("")                                                                            \
  "import logging\n"                                                                     \
  "log = logging.getLogger('shop.orders')\n"                                             \
  "log.setLevel('ERROR')\n"                                                              \
  "handler = logging.StreamHandler()\n"                                                  \
  "log.addHandler(handler)\n"

static const char *
pid_of(const struct process *app)
{
    return format_text("%d", (int)app->pid);
}

static void
log_level_of_all_workers_is_set_and_given_back(void)
{
    const char *out = NULL;
    struct process *first = start_target(SHOP EVALUATE);
    struct process *second = start_target(SHOP EVALUATE);
    wait_until_ready(first);
    wait_until_ready(second);
    assert_int_equal(run_command(CLI(pid_of(first), pid_of(second), "--log-level",
                                     "shop.orders=debug"),
                                 NULL, &out, NULL),
                     0);
    assert_contains(
        out, format_text("%s: shop.orders had ERROR, has DEBUG\n", pid_of(second)));
    assert_string_equal(evaluate(first, "log.level"), "10");
    assert_string_equal(evaluate(second, "log.level"), "10");
    /* Once more, and what comes back is still what the program had. */
    assert_int_equal(
        run_command(CLI(pid_of(first), "--log-level=shop.orders=INFO"), NULL, NULL, NULL),
        0);
    assert_int_equal(
        run_command(CLI(pid_of(first), pid_of(second), "--log-level=restore"), NULL, NULL,
                    NULL),
        0);
    assert_string_equal(evaluate(first, "log.level"), "40");
    assert_string_equal(evaluate(second, "log.level"), "40");
}

static void
log_level_says_what_keeps_the_lines_from_being_seen(void)
{
    const char *out = NULL;
    struct process *app = start_target(SHOP "handler.setLevel('WARNING')\n" EVALUATE);
    wait_until_ready(app);
    assert_int_equal(run_command(CLI(pid_of(app), "--log-level", "shop.orders=DEBUG"),
                                 NULL, &out, NULL),
                     0);
    assert_contains(out, "<StreamHandler <stderr> (WARNING)> has a level of its own");
}

static void
log_level_of_a_logger_or_level_that_is_not_there_changes_nothing(void)
{
    const char *err = NULL;
    struct process *app = start_target(SHOP EVALUATE);
    wait_until_ready(app);
    assert_int_equal(run_command(CLI(pid_of(app), "--log-level", "shop.order=DEBUG"),
                                 NULL, NULL, &err),
                     1);
    assert_contains(err, "no logger is called 'shop.order'; there are ");
    assert_int_equal(
        run_command(CLI(pid_of(app), "--log-level", "shop.orders=ALL"), NULL, NULL, &err),
        1);
    assert_contains(err, "no level is called 'ALL'; say DEBUG, ");
    assert_int_equal(
        run_command(CLI(pid_of(app), "--log-level", "shop.orders=²"), NULL, NULL, &err),
        1);
    assert_contains(err, "no level is called '²'; say DEBUG, ");
    assert_string_equal(
        evaluate(app, "(log.level, sorted(logging.root.manager.loggerDict))"),
        "(40, ['shop', 'shop.orders'])");
}

static void
report_has_threads_and_files_but_no_secret(void)
{
    require_gil();
    const char *out = NULL;
    const char *file = write_file("stock.txt", "bread\n");
    const char *program = format_text(
        INSTALL("") "import os, tempfile, threading\n"
                    "stock = open('%s')\n"
                    "os.chdir(tempfile.mkdtemp())\n"
                    "os.rmdir(os.getcwd())\n"
                    "threading.Thread(target=threading.Event().wait, daemon=True, "
                    "name='baker').start()\n" READY STAY,
        file);
    struct process *app = start_target(
        program,
        .argv = LIST("--password=hunter2", "postgres://shop:hunter2@db/orders",
                     "{\"token\": \"hunter2\"}", "Authorization: Bearer hunter2",
                     "--secret", "hunter2 and hunter2", "https://hunter2@git/"),
        .env = LIST("SHOP_KEY=hunter2", "LD_SDK_KEY=hunter2", "PYTHON_DB=hunter2",
                    "TZ=Europe/Paris"));
    wait_until_ready(app);
    assert_int_equal(run_command(CLI(pid_of(app), "--report"), NULL, &out, NULL), 0);
    assert_matches(out, format_text("^Report of process %s on ", pid_of(app)));
    assert_matches(
        out, "^  command .* --password=\\*\\*\\* postgres://shop:\\*\\*\\*@db/orders ");
    assert_matches(out, "^  user .*, in /.* \\(deleted\\)$");
    assert_matches(out, "^  baker, [0-9]+, daemon$");
    assert_contains(out, format_text(" %s\n", file));
    assert_matches(out, format_text("unix %s$", socket_path_of(app->pid)));
    assert_contains(out, "\n  TZ=Europe/Paris\n");
    assert_contains(out, "\n  SHOP_KEY is left out\n");
    assert_not_contains(out, "hunter2");
}

static void
memory_names_the_type_whose_number_grew(void)
{
    const char *out = NULL;
    struct process *app = start_target(
        INSTALL("") "import threading, time\n"
                    "class Kind(type):\n"
                    "    def __eq__(self, other): return self is other\n"
                    "class Order(metaclass=Kind):\n"
                    "    def __init__(self): self.lines = []\n"
                    "orders = []\n"
                    "def leak():\n"
                    "    while True: orders.append(Order()); time.sleep(0.001)\n"
                    "threading.Thread(target=leak, daemon=True).start()\n" READY STAY);
    wait_until_ready(app);
    assert_int_equal(run_command(CLI(pid_of(app), "--memory=0.5"), NULL, &out, NULL), 0);
    assert_matches(out, format_text("^process %s, two looks 0\\.5 s apart\n"
                                    "resident .* MiB .* MiB\n(.*\n)*\n[0-9,]+ objects, ",
                                    pid_of(app)));
    assert_matches(out, "^ +[0-9,]+ +\\+[0-9,]+  __main__\\.Order$");
    assert_contains(out, "\ntracemalloc is off.");
    assert_int_equal(
        run_command(CLI(pid_of(app), "-c", "import tracemalloc; tracemalloc.start()"),
                    NULL, NULL, NULL),
        0);
    assert_int_equal(run_command(CLI(pid_of(app), "--memory=0.5"), NULL, &out, NULL), 0);
    assert_matches(out, "^  .*/target[0-9]+\\.py:[0-9]+: size=.* \\(\\+");
}

/* Python is in a C function that holds the GIL, until its stdin is closed. */
static void
job_in_a_process_that_is_stuck_says_so_and_what_helps(void)
{
    static const char *const jobs[] = {"--memory", "--report", "--log-level=INFO"};
    require_gil();
    struct process *app = start_target(INSTALL("") "import ctypes\n" READY
                                                   "ctypes.PyDLL(None).getchar()\n");
    wait_until_ready(app);
    wait_until_asleep(app->pid);
    for (size_t i = 0; i < sizeof(jobs) / sizeof(jobs[0]); i++) {
        const char *err = NULL;
        assert_int_equal(
            run_command(CLI(pid_of(app), jobs[i], "-t", "0.2"), NULL, NULL, &err), 124);
        assert_matches(err,
                       format_text("^manhole-cli: error: the Python of process %s did "
                                   "not come to %.8s.* in time; .* --stacks shows$",
                                   pid_of(app), jobs[i]));
    }
    close_stdin(app);
}

/* Its Python is in a C function that holds the GIL, so it could not count itself. */
static void
memory_of_a_process_that_is_stuck_is_counted_in_copies(void)
{
    const char *out = NULL;
    const char *err = NULL;
    require_copies();
    struct process *app = start_target(INSTALL(
        "hang_timeout=0.1") "import ctypes\n" READY "ctypes.PyDLL(None).getchar()\n");
    wait_until_ready(app);
    wait_until_asleep(app->pid);
    assert_int_equal(run_command(CLI(pid_of(app), "--memory=0.1"), NULL, &out, &err), 0);
    assert_matches(out, "^[0-9,]+ objects, counted in a frozen copy$");
    assert_string_equal(err, "");
    close_stdin(app);
}

static void
memory_is_counted_in_the_process_where_there_is_no_copy(void)
{
    const char *out = NULL;
    const char *err = NULL;
    struct process *app =
        start_target(INSTALL("") "try: import _interpreters as i\n"
                                 "except ImportError: import _xxsubinterpreters as i\n"
                                 "other = i.create()\n" READY STAY);
    wait_until_ready(app);
    assert_int_equal(run_command(CLI(pid_of(app), "--memory=0.1"), NULL, &out, &err), 0);
    assert_matches(out,
                   "^[0-9,]+ objects, for which it stood still [0-9]+ and [0-9]+ ms$");
    assert_matches(err, format_text("^manhole: no frozen copy can be made: .*\n"
                                    "manhole-cli: process %s is counted without a copy, "
                                    "and stands still meanwhile\n",
                                    pid_of(app)));
}

/* Each in one piece, under its title, though the first line of each comes a while before the rest.
 */
static void
looks_at_memory_of_several_processes_are_not_mixed(void)
{
    const char *out = NULL;
    struct process *first = start_target(TARGET(""));
    struct process *second = start_target(TARGET(""));
    wait_until_ready(first);
    wait_until_ready(second);
    assert_int_equal(
        run_command(CLI("--memory=0.3", pid_of(second), pid_of(first)), NULL, &out, NULL),
        0);
    assert_matches(out, format_text("^==> %s .* <==\nprocess %s, .*\nresident (.*\n)*"
                                    "tracemalloc .*\n(.*\n)?==> %s .* <==\nprocess %s, ",
                                    pid_of(second), pid_of(second), pid_of(first),
                                    pid_of(first)));
}

int
main(void)
{
    static const struct test_case tests[] = {
        TEST(log_level_of_all_workers_is_set_and_given_back),
        TEST(log_level_says_what_keeps_the_lines_from_being_seen),
        TEST(log_level_of_a_logger_or_level_that_is_not_there_changes_nothing),
        TEST(report_has_threads_and_files_but_no_secret),
        TEST(memory_names_the_type_whose_number_grew),
        TEST(job_in_a_process_that_is_stuck_says_so_and_what_helps),
        TEST(memory_of_a_process_that_is_stuck_is_counted_in_copies),
        TEST(memory_is_counted_in_the_process_where_there_is_no_copy),
        TEST(looks_at_memory_of_several_processes_are_not_mixed),
    };
    return RUN_TESTS(tests);
}
