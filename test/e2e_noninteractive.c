/* e2e_noninteractive.c - manhole-cli -c, -f and --stacks: streams and exit statuses, as scripts
 * see them.
 */
#include "support.h"

#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define CLI(...) LIST(build_path("manhole-cli"), __VA_ARGS__)

/* A process whose GIL is stuck in a C function that holds it, until its stdin is closed. */
#define STUCK                                                                            \
  INSTALL("hang_timeout=0.3")                                                            \
  "import ctypes, threading\n"                                                           \
  "threading.Thread(target=threading.Event().wait, daemon=True, "                        \
  "name='parked').start()\n" READY "ctypes.PyDLL(None).getchar()\n"

static const char *
start_app(const char *program, struct process **app)
{
    *app = start_target(program);
    wait_until_ready(*app);
    wait_until_asleep((*app)->pid);
    return format_text("%d", (int)(*app)->pid);
}

/* ======================================================================================
 * Streams and statuses of code
 * ======================================================================================
 */

static const struct run {
    const char *code;
    int status;
    const char *out;
    const char *err;
} runs[] = {
    {.code = "print(1)", .status = 0, .out = "1\n", .err = ""},
    {.code = "", .status = 0, .out = "", .err = ""},
    {.code = "1", .status = 0, .out = "", .err = ""},
    {.code = "import sys; sys.stdout.write('a\\0b'); print('e', file=sys.stderr)",
     .status = 0,
     .out = "a",
     .err = "e\n"},
    {.code = "import sys; sys.exit(0)", .status = 0, .out = "", .err = ""},
    {.code = "import sys; sys.exit()", .status = 0, .out = "", .err = ""},
    {.code = "import sys; sys.exit(7)", .status = 7, .out = "", .err = ""},
    {.code = "import sys; sys.exit(256 + 3)", .status = 3, .out = "", .err = ""},
    {.code = "import sys; sys.exit(-1)", .status = 255, .out = "", .err = ""},
    {.code = "import sys; sys.exit('no')", .status = 1, .out = "", .err = "no\n"},
    {.code = "raise SystemExit(5)", .status = 5, .out = "", .err = ""},
    {.code = "print(2); 1/0",
     .status = 1,
     .out = "2\n",
     .err =
         "Traceback (most recent call last):\n  File \"<string>\", line 1, in <module>\n"
         "ZeroDivisionError: division by zero\n"},
    {.code = "\xc3\xa9 = 'h\xc3\xa9'; print(\xc3\xa9)",
     .status = 0,
     .out = "h\xc3\xa9\n",
     .err = ""},
    {.code = "-1", .status = 0, .out = "", .err = ""},
    {.code = "import os; print(os.getpid() > 0, __name__)",
     .status = 0,
     .out = "True __main__\n",
     .err = ""},
};

static void
code_gives_its_output_and_its_status(void)
{
    struct process *app = NULL;
    const char *pid = start_app(TARGET(""), &app);
    for (size_t i = 0; i < sizeof(runs) / sizeof(runs[0]); i++) {
        const struct run *run = &runs[i];
        const char *out = NULL;
        const char *err = NULL;
        int status = run_command(CLI(pid, "-c", run->code), NULL, &out, &err);
        if (status != run->status || strcmp(out, run->out) != 0 ||
            strcmp(err, run->err) != 0) {
            fail_msg("%s: status %d, stdout \"%s\", stderr \"%s\"", run->code, status,
                     out, err);
        }
    }
}

static void
code_that_does_not_compile_is_a_traceback_and_1(void)
{
    struct process *app = NULL;
    const char *err = NULL;
    const char *pid = start_app(TARGET(""), &app);
    assert_int_equal(run_command(CLI(pid, "-c", "1 +"), NULL, NULL, &err), 1);
    assert_contains(err, "SyntaxError: invalid syntax\n");
}

static void
code_may_stand_before_the_pid(void)
{
    struct process *app = NULL;
    const char *out = NULL;
    const char *pid = start_app(TARGET(""), &app);
    assert_int_equal(run_command(CLI("-cprint(3)", pid), NULL, &out, NULL), 0);
    assert_string_equal(out, "3\n");
}

static void
words_behind_code_are_its_arguments_and_nobody_elses(void)
{
    struct process *app = NULL;
    const char *out = NULL;
    const char *pid =
        start_app(INSTALL("") "import sys; sys.argv = ['app']\n" READY STAY, &app);
    const char *code = "import sys; print(sys.argv)";
    assert_int_equal(
        run_command(CLI(pid, "-c", code, "a", "-", "--", "-t", "b c"), NULL, &out, NULL),
        0);
    assert_string_equal(out, "['-c', 'a', '-', '-t', 'b c']\n");
    struct client *client = connect_to(app);
    client_wait_for(client, ">>> ");
    assert_contains(client_ask(client, "import sys; sys.argv\n"), "['app']");
}

static void
argparse_of_a_program_reads_that_one_s_arguments(void)
{
    struct process *app = NULL;
    const char *out = NULL;
    const char *pid = start_app("import argparse\n" TARGET(""), &app);
    const char *code = "import argparse\n"
                       "parser = argparse.ArgumentParser()\n"
                       "parser.add_argument('word')\n"
                       "print(parser.parse_args().word)";
    assert_int_equal(run_command(CLI(pid, "-c", code, "mine"), NULL, &out, NULL), 0);
    assert_string_equal(out, "mine\n");
}

static void
application_has_its_own_arguments_while_a_program_runs(void)
{
    struct process *app = NULL;
    const char *out = NULL;
    const char *pid = start_app("import sys, threading\n"
                                "sys.argv = ['app']\n"
                                "asked, answered = threading.Event(), threading.Event()\n"
                                "def look():\n"
                                "    global seen\n"
                                "    asked.wait()\n"
                                "    seen = sys.argv\n"
                                "    sys.argv = ['app', 'new']\n"
                                "    answered.set()\n"
                                "threading.Thread(target=look, daemon=True).start()\n" //
                                INSTALL("") READY STAY,
                                &app);
    const char *code = "import __main__, sys\n"
                       "sys.argv = ['set']\n"
                       "__main__.asked.set()\n"
                       "__main__.answered.wait()\n"
                       "print(sys.argv, __main__.seen)";
    assert_int_equal(run_command(CLI(pid, "-c", code), NULL, &out, NULL), 0);
    assert_string_equal(out, "['set'] ['app']\n");
    struct client *client = connect_to(app);
    client_wait_for(client, ">>> ");
    assert_string_equal(client_ask(client, "sys.argv"), "['app', 'new']\n");
    /* Once the program's session is over. */
    const char *is_module = "any(iter(lambda: type(sys) is type(os), True))";
    assert_string_equal(client_ask(client, is_module), "False\n");
}

static void
script_is_run_with_its_name_and_arguments(void)
{
    struct process *app = NULL;
    const char *out = NULL;
    const char *err = NULL;
    const char *pid = start_app(TARGET(""), &app);
    const char *script =
        write_file("s.py", "import sys\nprint(sys.argv[1:], __file__)\n1/0\n");
    assert_int_equal(run_command(CLI(pid, "-f", script, "x"), NULL, &out, &err), 1);
    assert_string_equal(out, format_text("['x'] %s\n", script));
    assert_contains(err, format_text("File \"%s\", line 3, in <module>\n", script));
}

static void
script_may_come_from_standard_input(void)
{
    struct process *app = NULL;
    const char *out = NULL;
    const char *pid = start_app(TARGET(""), &app);
    assert_int_equal(run_command(CLI(pid, "-f", "-", "x"),
                                 "import sys\nprint(sys.argv)\n", &out, NULL),
                     0);
    assert_string_equal(out, "['-', 'x']\n");
}

static void
script_that_is_not_there_is_an_error(void)
{
    struct process *app = NULL;
    const char *err = NULL;
    const char *pid = start_app(TARGET(""), &app);
    assert_int_equal(run_command(CLI(pid, "-f", "nowhere.py"), NULL, NULL, &err), 1);
    assert_string_equal(
        err, "manhole-cli: error: cannot read the script 'nowhere.py': No such "
             "file or directory\n");
}

static void
standard_input_is_the_codes(void)
{
    struct process *app = NULL;
    const char *out = NULL;
    const char *pid = start_app(TARGET(""), &app);
    assert_int_equal(
        run_command(CLI(pid, "-c", "import sys; print(input(), sys.stdin.read())"),
                    "first\nsecond\nthird", &out, NULL),
        0);
    assert_string_equal(out, "first second\nthird\n");
}

static void
standard_input_that_is_not_wanted_is_left_to_others(void)
{
    struct process *app = NULL;
    const char *out = NULL;
    const char *pid = start_app(TARGET(""), &app);
    const char *loop =
        format_text("%s %s -c 'print(1)'; cat", build_path("manhole-cli"), pid);
    assert_int_equal(run_command(LIST("sh", "-c", loop), "left\n", &out, NULL), 0);
    assert_string_equal(out, "1\nleft\n");
}

static void
big_output_arrives_whole(void)
{
    struct process *app = NULL;
    const char *out = NULL;
    const char *pid = start_app(TARGET(""), &app);
    assert_int_equal(
        run_command(CLI(pid, "-c", "for i in range(100000): print('%09d' % i)"), NULL,
                    &out, NULL),
        0);
    assert_int_equal(strlen(out), 1000000);
    assert_string_equal(out + 999990, "000099999\n");
}

static void
application_sees_nothing_of_it(void)
{
    struct process *app = NULL;
    const char *pid = start_app(TARGET("verbose=False"), &app);
    assert_int_equal(run_command(CLI(pid, "-c", "print(1); 1/0"), NULL, NULL, NULL), 1);
    close_stdin(app);
    assert_int_equal(wait_for_exit(app, DEADLINE), 0);
    assert_string_equal(text_of(app, OUT), "ready\n");
    assert_string_equal(text_of(app, ERR), "");
}

/* ======================================================================================
 * When it does not go well
 * ======================================================================================
 */

static void
timeout_ends_code_that_takes_longer(void)
{
    struct process *app = NULL;
    const char *err = NULL;
    const char *pid = start_app(TARGET(""), &app);
    assert_int_equal(
        run_command(CLI("-t", "0.3", pid, "-c", "while True: pass"), NULL, NULL, &err),
        124);
    assert_matches(
        err, "^manhole-cli: error: process [0-9]+ has not finished within the timeout");
    assert_int_equal(run_command(CLI(pid, "-c", "print(1)"), NULL, NULL, NULL), 0);
}

static void
timeout_ends_the_wait_for_a_stuck_process(void)
{
    struct process *app = NULL;
    const char *pid = start_app(STUCK, &app);
    assert_int_equal(
        run_command(CLI("-t", "0.3", pid, "-c", "print(1)"), NULL, NULL, NULL), 124);
    close_stdin(app);
}

static void
stopped_process_is_told(void)
{
    struct process *app = NULL;
    const char *err = NULL;
    const char *pid = start_app(TARGET(""), &app);
    send_signal(app, SIGSTOP);
    assert_int_equal(run_command(CLI(pid, "-c", "print(1)"), NULL, NULL, &err), 5);
    assert_contains(err, "process is stopped");
    send_signal(app, SIGCONT);
}

static void
process_that_dies_in_the_middle_is_told(void)
{
    struct process *app = NULL;
    const char *out = NULL;
    const char *err = NULL;
    const char *pid = start_app(TARGET(""), &app);
    const char *code = "import os; print(1, flush=True); os.kill(os.getpid(), 9)";
    assert_int_equal(run_command(CLI(pid, "-c", code), NULL, &out, &err), 6);
    assert_string_equal(out, "1\n");
    assert_contains(err, " has ended before the code had ended\n");
    assert_int_equal(wait_for_exit(app, DEADLINE), -SIGKILL);
}

static void
process_that_dies_in_its_console_is_told(void)
{
    static const struct {
        const char *options;
        const char *typed;
        int status;
    } rows[] = {
        {"", "os._exit(3)\n", 3},
        {"", "os.kill(os.getpid(), 9)\n6 * 7\n", -SIGKILL},
        {"", "os.abort()\n", -SIGABRT},
        {"", "import time; os.kill(os.getpid(), 15); time.sleep(60)\n", -SIGTERM},
        {"connection_handler='exec'", "import os; os._exit(4)\n", 4},
    };
    for (size_t i = 0; i < sizeof(rows) / sizeof(*rows); i++) {
        struct process *app = NULL;
        const char *err = NULL;
        const char *program = format_text(
            "import resource\n"
            "resource.setrlimit(resource.RLIMIT_CORE, (0, 0))\n" INSTALL("%s") READY STAY,
            rows[i].options);
        const char *pid = start_app(program, &app);
        expect_socket_left(socket_path_of(app->pid));
        assert_int_equal(run_command(CLI(pid), rows[i].typed, NULL, &err), 6);
        assert_string_equal(err, format_text("manhole-cli: error: process %s has ended "
                                             "before its console was left\n",
                                             pid));
        assert_int_equal(wait_for_exit(app, DEADLINE), rows[i].status);
    }
}

static void
console_that_ends_otherwise_is_a_success(void)
{
    static const char *const lines[] = {"6 * 7\n", "6 * 7\nexit()\n",
                                        "6 * 7\nimport manhole; manhole.release()\n"};
    for (size_t i = 0; i < sizeof(lines) / sizeof(*lines); i++) {
        struct process *app = NULL;
        const char *out = NULL;
        const char *err = NULL;
        const char *pid = start_app(TARGET(""), &app);
        assert_int_equal(run_command(CLI(pid), lines[i], &out, &err), 0);
        assert_contains(out, "42\n");
        assert_string_equal(err, "");
    }
}

static void
console_that_its_ending_process_waits_for_is_a_success(void)
{
    struct process *app = NULL;
    const char *pid = start_app(TARGET("daemon_connection=False"), &app);
    struct process *cli = start_process(.argv = CLI(pid));
    wait_for_text(cli, OUT, ">>> ", DEADLINE);
    close_stdin(app);
    assert_int_equal(run_process(cli, "6 * 7\n", NULL, NULL), 0);
    assert_string_equal(text_of(cli, ERR), "");
    assert_int_equal(wait_for_exit(app, DEADLINE), 0);
}

static void
output_that_nobody_wants_ends_it_with_141(void)
{
    struct process *app = NULL;
    const char *out = NULL;
    const char *pid = start_app(TARGET(""), &app);
    const char *pipeline =
        format_text("(%s %s -c 'while True: print(1)'; echo $? >&3) 3>status | "
                    "head -n 1",
                    build_path("manhole-cli"), pid);
    assert_int_equal(run_command(LIST("sh", "-c", pipeline), NULL, &out, NULL), 0);
    assert_string_equal(out, "1\n");
    assert_string_equal(read_file(test_path("status")), "141\n");
}

static void
interrupt_ends_the_code_with_130(void)
{
    struct process *app = NULL;
    const char *pid = start_app(TARGET(""), &app);
    struct process *cli =
        start_process(.argv =
                          CLI(pid, "-c", "print('going', flush=True)\nwhile True: pass"));
    wait_for_text(cli, OUT, "going", DEADLINE);
    send_signal(cli, SIGINT);
    assert_int_equal(wait_for_exit(cli, DEADLINE), 130);
    assert_contains(text_of(cli, ERR), "KeyboardInterrupt");
}

/* The client says that it is late only where one is on its way. */
static void
interrupt_ends_code_that_python_has_not_begun_yet(void)
{
    struct process *app = NULL;
    const char *pid =
        start_app(INSTALL("") "import ctypes\n"
                              "byte = ctypes.create_string_buffer(1)\n" READY
                              "ctypes.PyDLL(None).read(0, byte, 1)\n" STAY,
                  &app);
    wait_until_asleep(app->pid);
    struct process *cli = start_process(.argv = CLI(pid, "-c", "while True: pass"));
    wait_for_text(app, ERR, "Accepted connection", DEADLINE);
    wait_until_asleep(cli->pid);
    send_signal(cli, SIGINT);
    wait_for_text(cli, ERR, "KeyboardInterrupt comes when the call returns", DEADLINE);
    write_stdin(app, "x");
    assert_int_equal(wait_for_exit(cli, DEADLINE), 130);
    assert_contains(text_of(cli, ERR), "\nKeyboardInterrupt\n");
}

static void
server_that_knows_no_code_is_told(void)
{
    const char *err = NULL;
    struct process *old =
        start_target("import os, socket\n"
                     "path = '/tmp/manhole-%d' % os.getpid()\n"
                     "listener = socket.socket(socket.AF_UNIX)\n"
                     "listener.bind(path)\n"
                     "listener.listen()\n" READY ACCEPT "os.unlink(path)\n"
                     "client.sendall(b'\\n###### ProcessID=1\\n>>> ')\n"
                     "client.recv(100)\n");
    wait_until_ready(old);
    assert_int_equal(
        run_command(CLI(format_text("%d", (int)old->pid), "-c", "1"), NULL, NULL, &err),
        5);
    assert_contains(err, "knows no -c");
}

/* ======================================================================================
 * Stacks
 * ======================================================================================
 */

static void
stacks_are_the_dump_alone(void)
{
    struct process *app = NULL;
    const char *out = NULL;
    const char *err = NULL;
    const char *pid = start_app(TARGET(""), &app);
    assert_int_equal(run_command(CLI("--stacks", pid), NULL, &out, &err), 0);
    assert_matches(out, "^#########  ?ProcessID=[0-9]+, ThreadID=[0-9]+ #########$");
    assert_contains(out, "  while os.read(0, 4096): pass\n");
    assert_not_contains(out, ">>>");
    assert_not_contains(out, "ManholeConsole");
    assert_string_equal(err, "");
}

static void
stacks_of_a_stuck_process_are_those_of_its_copy(void)
{
    require_gil();
    struct process *app = NULL;
    const char *out = NULL;
    const char *pid = start_app(STUCK, &app);
    assert_int_equal(run_command(CLI("--stacks", pid), NULL, &out, NULL), 0);
    assert_contains(out, "manhole: Python has not answered");
    assert_contains(out, "ctypes.PyDLL(None).getchar()");
    assert_contains(out, "parked");
    close_stdin(app);
}

static void
json_is_by_the_schema(void)
{
    require_gil();
    struct process *app = NULL;
    const char *out = NULL;
    require_debian_module("jsonschema");
    const char *pid = start_app(TARGET(""), &app);
    assert_int_equal(run_command(CLI("--stacks", "--json", pid), NULL, &out, NULL), 0);
    assert_contains(check_json("stacks", out), "\"source\": \"attached\"");
    assert_contains(out, "\"source\": \"while os.read(0, 4096): pass\"");
}

static void
json_with_variables_is_by_the_schema(void)
{
    require_gil();
    struct process *app = NULL;
    const char *out = NULL;
#if !defined(__x86_64__) || !defined(__GLIBC__)
    skip_test("copies are made on x86-64 with glibc alone");
#endif
    if (is_wrapped() || is_sanitized()) {
        skip_test("a sanitizer's or valgrind's memory is not forked by itself");
    }
    require_debian_module("jsonschema");
    const char *pid = start_app(TARGET(""), &app);
    assert_int_equal(
        run_command(CLI("--stacks", "--locals", "--json", pid), NULL, &out, NULL), 0);
    assert_contains(check_json("stacks", out), "\"source\": \"frozen copy\"");
    assert_contains(out, ", \"locals\": {");
}

/* It reads the memory of the process, which takes the right to trace it; of a file it may tell the
 * name alone. */
static void
frames_are_those_that_cpython_s_own_tool_tells(void)
{
    struct process *app = NULL;
    const char *out = NULL;
    const char *dump = NULL;
    require_gil();
    if (!is_python_from(15)) {
        skip_test("only from CPython 3.15 on");
    }
    const char *pid = start_app(
        INSTALL("") "import os, queue, threading\n"
                    "class Worker(threading.Thread):\n"
                    "    def run(self): queue.Queue().get()\n"
                    "for _ in range(3): Worker(daemon=True).start()\n" READY STAY,
        &app);
    wait_until_asleep(app->pid);
    if (run_command(LIST(python(), "-m", "profiling.sampling", "dump", "-a", pid), NULL,
                    &dump, NULL) != 0) {
        skip_test("CPython's own tool may not look at the process");
    }
    const char *theirs = write_file("dump", dump);
    assert_int_equal(run_command(CLI(pid, "--stacks", "--json"), NULL, &out, NULL), 0);
    const char *compare =
        "import json, re, sys\n"
        "ours = [[(frame['file'].split('/')[-1], frame['line'], "
        "frame['function'].split('.')[-1])\n"
        "         for frame in thread['frames']] for thread in "
        "json.load(sys.stdin)['threads']]\n"
        "theirs = [[(file.split('/')[-1], int(line), name.split('.')[-1]) for file, "
        "line, name in\n"
        "           re.findall('  File \"(.*)\", line (.*), in (.*)', thread)]\n"
        "          for thread in open(sys.argv[1]).read().split('Stack dump')[1:]]\n"
        "print(sorted(ours) == sorted(theirs) and len(ours) == 4 or (ours, theirs))\n";
    assert_int_equal(run_command(LIST(python(), "-c", compare, theirs), out, &out, NULL),
                     0);
    assert_string_equal(out, "True\n");
}

/* It gives up at a thread without frames, as one that waits for its client is in C. */
static void
cpython_s_own_profiler_works_beside_a_client(void)
{
    struct process *app = NULL;
    const char *out = NULL;
    const char *err = NULL;
    require_gil();
    if (!is_python_from(15)) {
        skip_test("only from CPython 3.15 on");
    }
    const char *pid = start_app(INSTALL("") READY STAY, &app);
    const char *const *dump =
        LIST(python(), "-m", "profiling.sampling", "dump", "-a", pid);
    if (run_command(dump, NULL, &out, NULL) != 0) {
        skip_test("CPython's own tool may not look at the process");
    }
    struct client *client = connect_to(app);
    const char *greeting = client_wait_for(client, ">>> ");
    assert_null(strstr(greeting, "serve_client"));
    assert_int_equal(run_command(dump, NULL, &out, &err), 0);
    assert_contains(out, "in <module>");
    assert_contains(out, "in serve_client");
}

/* Faster than it can be shown. */
#define FLOOD "while True: print('xxx ' * 100000)"

static void
ctrl_c_gets_in_beside_a_flood(void)
{
    struct process *app = NULL;
    const char *pid = start_app(TARGET(""), &app);
    struct process *cli = start_process(.argv = CLI(pid, "-c", FLOOD), .terminal = true);
    wait_for_text(cli, OUT, "xxx", DEADLINE);
    write_stdin(cli, "\003");
    assert_int_equal(wait_for_exit(cli, DEADLINE), 130);
}

static void
timeout_is_over_in_the_middle_of_a_flood(void)
{
    struct process *app = NULL;
    const char *pid = start_app(TARGET(""), &app);
    struct process *cli =
        start_process(.argv = CLI("-t", "1", pid, "-c", FLOOD), .terminal = true);
    assert_int_equal(wait_for_exit(cli, DEADLINE), 124);
}

static void
process_that_is_gone_is_not_waited_for(void)
{
    const char *err = NULL;
    struct process *ended = start_process(.argv = LIST("true"));
    assert_int_equal(wait_for_exit(ended, DEADLINE), 0);
    const char *pid = format_text("%d", (int)ended->pid);
    assert_int_equal(run_command(CLI("-t", "600", pid, "-c", "1"), NULL, NULL, &err), 5);
    assert_contains(err, "is not there");
}

/* What an ssh has left, which was interrupted, for one. */
static void
code_ends_when_nobody_reads_its_output(void)
{
    struct process *app = NULL;
    const char *pid = start_app(TARGET(""), &app);
    const char *script = format_text("{ %s %s -c 'import time\nwhile True: "
                                     "time.sleep(0.01)'; echo $? >status; } 2>&1 | true",
                                     build_path("manhole-cli"), pid);
    assert_int_equal(run_command(LIST("sh", "-c", script), NULL, NULL, NULL), 0);
    wait_for_path(test_path("status"), DEADLINE);
}

static void
program_that_takes_its_time_passes_for_no_hang(void)
{
    struct process *app = NULL;
    const char *out = NULL;
    const char *pid = start_app(TARGET("hang_timeout=0.1"), &app);
    struct process *program = start_process(
            .argv = CLI(
                pid, "-c",
                "import sys, time; time.sleep(0.3); print('slept'); sys.stdin.read()"));
    wait_for_text(program, OUT, "slept\n", DEADLINE);
    assert_int_equal(run_command(CLI("--stacks", "--json", pid), NULL, &out, NULL), 0);
    assert_contains(out, has_gil() ? "\"source\": \"attached\""
                                   : "\"source\": \"frozen copy\"");
    close_stdin(program);
    assert_int_equal(wait_for_exit(program, DEADLINE), 0);
}

/* A server that sends the beginning of something, and then does as told. */
#define HALF(bytes, then)                                                                \
  "import os, socket\n"                                                                  \
  "path = '/tmp/manhole-%%d' %% os.getpid()\n"                                           \
  "listener = socket.socket(socket.AF_UNIX)\n"                                           \
  "listener.bind(path)\n"                                                                \
  "listener.listen()\n" READY ACCEPT "os.unlink(path)\n"                                 \
  "client.sendall(" bytes ")\n"                                                          \
  "client.recv(1)\n" then "\n"

static void
stacks_that_are_cut_are_told(void)
{
    static const char *const bytes[] = {
        "b''", "b'######### ProcessID=1, ThreadID=2 #########\\n  File: \"'",
        "b'{\"pid\": 1, \"threads\": ['"};
    static const char *const thens[] = {"os.kill(os.getpid(), 9)",
                                        "client.close()\n" STAY};
    for (size_t i = 0; i < 2 * sizeof(bytes) / sizeof(*bytes); i++) {
        struct process *app = NULL;
        const char *out = NULL;
        const char *err = NULL;
        bool is_json = i / 2 == 2;
        bool is_told_otherwise = i == 1; /* nothing came, and it lives on */
        const char *pid =
            start_app(format_text(HALF("%s", "%s"), bytes[i / 2], thens[i % 2]), &app);
        assert_int_equal(
            run_command(CLI(pid, is_json ? "--json" : "--stacks"), NULL, &out, &err),
            is_told_otherwise ? 5 : 6);
        assert_contains(err, i % 2 == 0 ? "has ended before its stacks were "
                                        : "has closed the connection ");
        assert_int_equal(strlen(out) > 0, i / 2 == 1);
    }
}

static void
json_that_is_cut_leaves_that_of_others_valid(void)
{
    struct process *app = NULL;
    const char *out = NULL;
    const char *pid = start_app(
        format_text(HALF("%s", "%s"), "b'{\"pid\": 1, \"threads\": ['", "os._exit(3)"),
        &app);
    const char *other = start_app(TARGET(""), &app);
    assert_int_equal(run_command(CLI("--stacks", "--json", pid, other), NULL, &out, NULL),
                     6);
    assert_contains(out, format_text("{\"pid\": %s, \"python\": null", pid));
    assert_contains(out, format_text("{\"pid\": %s, \"python\": \"3", other));
}

static void
json_of_who_does_not_answer_is_by_the_schema(void)
{
    struct process *app = NULL;
    const char *out = NULL;
    require_debian_module("jsonschema");
    const char *pid = start_app(TARGET(""), &app);
    struct process *ended = start_process(.argv = LIST("true"));
    assert_int_equal(wait_for_exit(ended, DEADLINE), 0);
    const char *none = format_text("%d", (int)ended->pid);
    assert_int_equal(run_command(CLI("--stacks", "--json", pid, none), NULL, &out, NULL),
                     5);
    assert_contains(check_json("stacks", out),
                    format_text("\"pid\": %s, \"python\": null", none));
}

static void
json_of_a_stuck_process_is_by_the_schema(void)
{
    require_gil();
    struct process *app = NULL;
    const char *out = NULL;
    require_debian_module("jsonschema");
    const char *pid = start_app(STUCK, &app);
    assert_int_equal(run_command(CLI("--stacks", "--json", pid), NULL, &out, NULL), 0);
    assert_contains(check_json("stacks", out), "\"source\": \"frozen copy\"");
    assert_contains(out, "\"holds_gil\": true");
    close_stdin(app);
}

/* ======================================================================================
 * The command line's own
 * ======================================================================================
 */

static void
version_is_printed(void)
{
    const char *out = NULL;
    assert_int_equal(run_command(CLI("--version"), NULL, &out, NULL), 0);
    assert_matches(out, "^manhole-cli [0-9]+\\.[0-9]+\\.[0-9]+ \\(.*\\)$");
}

static void
no_dump_is_a_console_without_stacks(void)
{
    struct process *app = NULL;
    const char *out = NULL;
    const char *pid = start_app(TARGET(""), &app);
    assert_int_equal(run_command(CLI("--no-dump", pid), "1+1\n", &out, NULL), 0);
    assert_contains(out, "(ManholeConsole)\n>>> 2\n");
    assert_not_contains(out, "ThreadID=");
}

static void
options_that_exclude_each_other_are_a_mistake(void)
{
    const char *err = NULL;
    assert_int_equal(run_command(CLI("1", "-c", "1", "--stacks"), NULL, NULL, &err), 2);
    assert_contains(err, "error: argument --stacks: not allowed with argument -c\n");
    assert_int_equal(run_command(CLI("1", "-c", "1", "--json"), NULL, NULL, &err), 2);
    assert_contains(
        err, "error: argument --json: only with --stacks, --tasks or --greenlets\n");
    assert_int_equal(run_command(CLI("1", "-c"), NULL, NULL, &err), 2);
    assert_contains(err, "error: argument -c: expected one argument\n");
}

int
main(void)
{
    static const struct test_case tests[] = {
        TEST(code_gives_its_output_and_its_status),
        TEST(code_that_does_not_compile_is_a_traceback_and_1),
        TEST(code_may_stand_before_the_pid),
        TEST(words_behind_code_are_its_arguments_and_nobody_elses),
        TEST(argparse_of_a_program_reads_that_one_s_arguments),
        TEST(application_has_its_own_arguments_while_a_program_runs),
        TEST(script_is_run_with_its_name_and_arguments),
        TEST(script_may_come_from_standard_input),
        TEST(script_that_is_not_there_is_an_error),
        TEST(standard_input_is_the_codes),
        TEST(standard_input_that_is_not_wanted_is_left_to_others),
        TEST(big_output_arrives_whole),
        TEST(application_sees_nothing_of_it),
        TEST(timeout_ends_code_that_takes_longer),
        TEST(timeout_ends_the_wait_for_a_stuck_process),
        TEST(stopped_process_is_told),
        TEST(process_that_dies_in_the_middle_is_told),
        TEST(process_that_dies_in_its_console_is_told),
        TEST(console_that_ends_otherwise_is_a_success),
        TEST(console_that_its_ending_process_waits_for_is_a_success),
        TEST(output_that_nobody_wants_ends_it_with_141),
        TEST(interrupt_ends_the_code_with_130),
        TEST(interrupt_ends_code_that_python_has_not_begun_yet),
        TEST(server_that_knows_no_code_is_told),
        TEST(stacks_are_the_dump_alone),
        TEST(stacks_of_a_stuck_process_are_those_of_its_copy),
        TEST(json_is_by_the_schema),
        TEST(json_with_variables_is_by_the_schema),
        TEST(frames_are_those_that_cpython_s_own_tool_tells),
        TEST(cpython_s_own_profiler_works_beside_a_client),
        TEST(ctrl_c_gets_in_beside_a_flood),
        TEST(timeout_is_over_in_the_middle_of_a_flood),
        TEST(process_that_is_gone_is_not_waited_for),
        TEST(code_ends_when_nobody_reads_its_output),
        TEST(program_that_takes_its_time_passes_for_no_hang),
        TEST(stacks_that_are_cut_are_told),
        TEST(json_that_is_cut_leaves_that_of_others_valid),
        TEST(json_of_who_does_not_answer_is_by_the_schema),
        TEST(json_of_a_stuck_process_is_by_the_schema),
        TEST(version_is_printed),
        TEST(no_dump_is_a_console_without_stacks),
        TEST(options_that_exclude_each_other_are_a_mistake),
    };
    return RUN_TESTS(tests);
}
