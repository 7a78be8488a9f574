/* e2e_attach.c - manhole-cli --attach: into a process that never heard of a manhole, by ptrace.
 *
 * What is attached to counts on meanwhile, and has to go on as if nothing had been: same signal
 * masks, nobody's tracee, no children, nothing on standard error, its own exit status. Where ptrace
 * is not allowed, or for another processor than x86-64 and arm64, all of these are skipped.
 */
#include "support.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

/* Sleeps in short turns with its own signal handler, and counts them, until its stdin is closed. */
#define COUNTING                                                                         \
  "import os, select, sys, threading\n"                                                  \
  "turns = 0\nwhile not select.select([0], [], [], 0.002)[0]:"                           \
  " turns += 1 if turns else print('ready', flush=True) or 1\n"                          \
  "sys.exit(7)\n"

static void
require_attaching(void)
{
#if !defined(__x86_64__) && !defined(__aarch64__)
    skip_test("--attach is for x86-64 and arm64");
#endif
    if (is_sanitized() || is_wrapped()) {
        skip_test("a sanitizer's library cannot be loaded later, and valgrind has its "
                  "own threads");
    }
}

/* Becomes the one tracer that a process can have; it goes on. */
static void
begin_trace(const struct process *app)
{
    if (ptrace(PTRACE_SEIZE, app->pid, NULL, NULL) < 0) {
        skip_test("ptrace is not allowed here: %s", strerror(errno));
    }
}

static void
end_trace(const struct process *app)
{
    assert_int_equal(ptrace(PTRACE_INTERRUPT, app->pid, NULL, NULL), 0);
    assert_int_equal(waitpid(app->pid, NULL, __WALL), app->pid);
    assert_int_equal(ptrace(PTRACE_DETACH, app->pid, NULL, NULL), 0);
}

static void
require_ptrace(const struct process *app)
{
    begin_trace(app);
    end_trace(app);
}

/* A process that has not been told of manhole, not even by a path, with one more variable. */
static struct process *
start_unprepared_with(const char *program, const char *variable)
{
    struct process *app;
    require_attaching();
    app = start_target(program, .env = LIST("PYTHONPATH", "PYTHONMANHOLE", variable));
    wait_until_ready(app);
    require_ptrace(app);
    return app;
}

static struct process *
start_unprepared(const char *program)
{
    return start_unprepared_with(program, NULL);
}

static const char *
number(pid_t pid)
{
    return format_text("%d", (int)pid);
}

/* What stands behind this name in /proc/PID/status. */
static const char *
status_of(pid_t pid, const char *name)
{
    const char *status = read_file(format_text("/proc/%d/status", (int)pid));
    const char *line = strstr(status, name);
    assert_non_null(line);
    return format_text("%.*s", (int)strcspn(line, "\n"), line);
}

static bool
is_zombie(void *argument)
{
    return strstr(status_of(*(pid_t *)argument, "State:"), "Z (zombie)") != NULL;
}

/* Whether anything of it is left in the process but the mapped file. */
static bool
has_no_manhole(void *argument)
{
    const pid_t pid = *(pid_t *)argument;
    return count_threads(pid) == 1 && access(socket_path_of(pid), F_OK) < 0;
}

/* It goes on, and ends as it wants to. */
static void
assert_unharmed(struct process *app)
{
    const char *children =
        format_text("/proc/%d/task/%d/children", (int)app->pid, (int)app->pid);
    assert_string_equal(status_of(app->pid, "TracerPid:"), "TracerPid:\t0");
    assert_string_equal(status_of(app->pid, "SigBlk:"), "SigBlk:\t0000000000000000");
    assert_string_equal(read_file(children), ""); /* nor a dead one */
    close_stdin(app);
    assert_int_equal(wait_for_exit(app, DEADLINE), 7);
    assert_string_equal(app->text[ERR].data, "");
}

static void
code_runs_in_a_process_that_had_no_manhole(void)
{
    struct process *app = start_unprepared(COUNTING);
    const char *out;
    const char *err;
    int status = run_command(LIST(build_path("manhole-cli"), "--attach", number(app->pid),
                                  "-c", "import __main__; print(__main__.turns > 0)"),
                             NULL, &out, &err);
    assert_string_equal(err, "");
    assert_int_equal(status, 0);
    assert_string_equal(out, "True\n");
    wait_until(has_no_manhole, &app->pid, "the manhole is released", DEADLINE);
    assert_unharmed(app);
}

static void
kept_manhole_stays_until_it_is_detached(void)
{
    struct process *app = start_unprepared(COUNTING);
    const char *cli = build_path("manhole-cli");
    const char *out;
    assert_int_equal(run_command(LIST(cli, "--attach=locals={'bread': 3}", "--keep",
                                      number(app->pid), "-c", "print(bread)"),
                                 NULL, &out, NULL),
                     0);
    assert_string_equal(out, "3\n");
    watch_for(700); /* longer than it lingers otherwise */
    assert_int_equal(
        run_command(LIST(cli, number(app->pid), "-c", "print(4)"), NULL, &out, NULL), 0);
    assert_string_equal(out, "4\n");
    assert_int_equal(
        run_command(LIST(cli, "--detach", number(app->pid)), NULL, NULL, NULL), 0);
    wait_until(has_no_manhole, &app->pid, "the manhole is released", DEADLINE);
    assert_unharmed(app);
}

/* The loaded module is used again, not a second copy. */
static void
second_attach_loads_nothing(void)
{
    struct process *app = start_unprepared(COUNTING);
    const char *maps;
    int mapped = 0;
    for (int i = 0; i < 3; i++) {
        assert_int_equal(run_command(LIST(build_path("manhole-cli"), "--attach",
                                          number(app->pid), "-c", "pass"),
                                     NULL, NULL, NULL),
                         0);
        wait_until(has_no_manhole, &app->pid, "the manhole is released", DEADLINE);
    }
    maps = read_file(format_text("/proc/%d/maps", (int)app->pid));
    for (const char *at = maps; (at = strstr(at, "/memfd:manhole")) != NULL; at++) {
        mapped += strstr(at, "\n") != NULL && strncmp(at - 40, "r-xp", 4) != 0;
    }
    assert_in_range(mapped, 1, 6); /* segments of one file */
    assert_unharmed(app);
}

/* The GIL is held for good: the prompt cannot come, the stacks do, and nothing is left behind. */
static void
stacks_come_from_outside_while_the_gil_is_held(void)
{
    struct process *app =
        start_unprepared("import ctypes, sys, time\n" READY "def stuck_here():\n"
                         "    ctypes.PyDLL(None).read(0, None, 0)\n"
                         "    ctypes.PyDLL(None).getchar()\n"
                         "stuck_here()\n"
                         "sys.exit(7)\n");
    const char *out;
    const char *err;
    int status;
    wait_until_asleep(app->pid);
    status = run_command(
        LIST(build_path("manhole-cli"), "--attach", "--stacks", number(app->pid)), NULL,
        &out, &err);
    assert_string_equal(err, "");
    assert_int_equal(status, 0);
    assert_contains(out, ", in stuck_here\n  ctypes.PyDLL(None).getchar()\n");
    assert_contains(out, "#############################################\n");
    assert_int_equal(count_threads(app->pid), 1);
    assert_not_contains(read_file(format_text("/proc/%d/maps", (int)app->pid)), "memfd");
    assert_unharmed(app);
}

static void
stacks_from_outside_come_as_json_and_brief(void)
{
    struct process *app = start_unprepared(COUNTING);
    const char *out;
    assert_int_equal(run_command(LIST(build_path("manhole-cli"), "--attach", "--stacks",
                                      "--json", number(app->pid)),
                                 NULL, &out, NULL),
                     0);
    assert_matches(out, "^\\{\"pid\": [0-9]+, \"python\": null, \"version\": 1, "
                        "\"source\": \"frozen copy\"");
    assert_contains(
        out, "\"function\": \"<module>\", \"qualname\": null, \"source\": \"while");
    assert_int_equal(run_command(LIST(build_path("manhole-cli"), "--attach", "--brief",
                                      number(app->pid)),
                                 NULL, &out, NULL),
                     0);
    assert_contains(out, "1 x in <module> at ");
    assert_unharmed(app);
}

static void
assert_refused(const struct process *app, const char *option, const char *reason)
{
    const char *err;
    int status = run_command(
        LIST(build_path("manhole-cli"), "--attach", option, number(app->pid), "-c", "1"),
        NULL, NULL, &err);
    assert_in_range(status, 1, 5);
    assert_contains(err, reason);
}

static void
refusals_name_what_is_missing_and_touch_nothing(void)
{
    struct process *app =
        start_unprepared_with(COUNTING, "PYTHON_DISABLE_REMOTE_DEBUG=1");
    const char *nothing =
        write_file("module.so", "This manhole is for CPython 2.7, glibc (1)");
    assert_refused(app, format_text("--module=%s", nothing),
                   "is for nothing known here, but");
    assert_refused(app, format_text("--module=%s", test_directory()),
                   "there is no module for");
    const char *beside =
        "mkdir -p a/empty a/beside && cp $0/manhole*.so a/beside/manhole.so";
    assert_int_equal(
        run_command(LIST("sh", "-c", beside, build_path("")), NULL, NULL, NULL), 0);
    assert_refused(app, format_text("--module=%s", test_path("a/empty")),
                   "there is no module for that in ");
    const char *cut = "head -c 4096 $0/manhole*.so >cut.so &&"
                      "grep -aho 'This manhole is for .* (' $0/manhole*.so >>cut.so";
    assert_int_equal(run_command(LIST("sh", "-c", cut, build_path("")), NULL, NULL, NULL),
                     0);
    assert_refused(app, format_text("--module=%s", test_path("cut.so")),
                   "is for nothing known here, but");
    assert_refused(app, "--attach=no_such_option=1", "no_such_option");
    begin_trace(app);
    assert_refused(app, "--raw", format_text("is traced by process %d", (int)getpid()));
    end_trace(app);
    send_signal(app, SIGSTOP);
    assert_refused(app, "--raw", format_text("'kill -CONT %d'", (int)app->pid));
    send_signal(app, SIGCONT);
    assert_unharmed(app);
}

/* What a filter would say is told to nobody: it might kill. */
static void
filter_of_a_process_is_tried_only_when_told_to(void)
{
    struct process *app = start_unprepared(
        "import ctypes, struct\n"
        "allow = ctypes.create_string_buffer(struct.pack('HBBI', 6, 0, 0, 0x7fff0000))\n"
        "rules = struct.pack('HxxxxxxP', 1, ctypes.addressof(allow))\n"
        "c = ctypes.PyDLL(None)\n"
        "if c.prctl(38, 1, 0, 0, 0) or c.prctl(22, 2, rules): print('none')\n" COUNTING);
    const char *out;
    if (strstr(text_of(app, OUT), "none") != NULL) {
        skip_test("no such filter here");
    }
    assert_refused(app, "--raw", "is behind a seccomp filter, which might kill it");
    assert_int_equal(run_command(LIST(build_path("manhole-cli"), "--attach", "--yes",
                                      number(app->pid), "-c", "print(6 * 7)"),
                                 NULL, &out, NULL),
                     0);
    assert_string_equal(out, "42\n");
    wait_until(has_no_manhole, &app->pid, "the manhole is released", DEADLINE);
    assert_unharmed(app);
}

/* Nothing stays of a file that says it fits, and that the loader does not take. */
static void
module_that_cannot_be_loaded_leaves_no_descriptor(void)
{
    struct process *app = start_unprepared(COUNTING);
    int fds = count_fds(app->pid);
    assert_int_equal(
        run_command(LIST("sh", "-c",
                         "sed 's/libc[.]so/libq.so/g' $0/manhole*.so >broken.so",
                         build_path("")),
                    NULL, NULL, NULL),
        0);
    assert_refused(app, format_text("--module=%s", test_path("broken.so")),
                   "takes no manhole: ");
    assert_int_equal(count_fds(app->pid), fds);
    assert_unharmed(app);
}

/* As would be loaded by root who has the client in /tmp. */
static void
module_of_another_user_is_not_taken(void)
{
    struct process *app = start_unprepared(COUNTING);
    if (geteuid() != 0) {
        skip_test("only root can give a file away");
    }
    const char *give = "mkdir -p a/b && cp $0/manhole*.so a/b/manhole.so &&"
                       "chown 12345 a/b/manhole.so";
    assert_int_equal(
        run_command(LIST("sh", "-c", give, build_path("")), NULL, NULL, NULL), 0);
    assert_refused(app, format_text("--module=%s", test_path("a/b")),
                   "manhole.so is for that, but is another user's");
    assert_unharmed(app);
}

/* The application was quicker: what the last client leaves is its own. */
static void
manhole_that_was_installed_meanwhile_stays(void)
{
    struct process *client;
    struct process *app;
    require_attaching();
    app = start_target("import ctypes, select, sys, manhole\n"
                       "sys.setswitchinterval(1000)\n" READY
                       "ctypes.PyDLL(None).getchar()\n" /* holds the GIL */
                       "manhole.install(verbose=False)\n"
                       "sys.setswitchinterval(0.005)\n"
                       "select.select([0], [], [])\n"
                       "sys.exit(7)\n");
    wait_until_ready(app);
    require_ptrace(app);
    client = start_process(.argv = LIST(build_path("manhole-cli"), "--attach",
                                        number(app->pid), "-c", "print(5)"));
    wait_for_text(client, ERR, "does not let go of the GIL", DEADLINE);
    write_stdin(app, "\n");
    assert_int_equal(wait_for_exit(client, DEADLINE), 0);
    watch_for(700); /* longer than one that is on loan lingers */
    assert_true(path_exists(socket_path_of(app->pid)));
    close_stdin(app);
    assert_int_equal(wait_for_exit(app, DEADLINE), 7);
}

/* It comes while the other has not come back: that tells a log of the application's. */
static void
application_installs_its_own_in_place_of_one_that_is_just_being_installed(void)
{
    struct process *app;
    const char *slowly = "--attach=verbose=True, "
                         "verbose_destination=__import__('__main__').log";
    const char *out;
    require_attaching();
    app = start_target("import select, sys, threading, manhole\n"
                       "told, installed = threading.Event(), threading.Event()\n"
                       "class Log:\n"
                       "    def write(self, text): told.set(); installed.wait()\n"
                       "    def flush(self): pass\n"
                       "log = Log()\n" READY "told.wait()\n"
                       "manhole.install(verbose=False)\n"
                       "installed.set()\n"
                       "select.select([0], [], [])\n"
                       "sys.exit(7)\n");
    wait_until_ready(app);
    require_ptrace(app);
    assert_int_equal(run_command(LIST(build_path("manhole-cli"), slowly, number(app->pid),
                                      "-c", "print(5)"),
                                 NULL, &out, NULL),
                     0);
    assert_string_equal(out, "5\n");
    close_stdin(app);
    assert_int_equal(wait_for_exit(app, DEADLINE), 7);
}

/* An install() of the application's own finds one on loan, takes its place, and stays. */
static void
application_installs_its_own_in_place_of_one_on_loan(void)
{
    struct process *app =
        start_unprepared("import select, sys\n" READY "sys.stdin.readline()\n"
                         "import manhole\n"
                         "manhole.install(verbose=False)\n"
                         "print('own', flush=True)\n"
                         "select.select([0], [], [])\n"
                         "sys.exit(7)\n");
    struct process *client = start_process(.argv = LIST(build_path("manhole-cli"),
                                                        "--attach", number(app->pid)));
    wait_for_text(client, OUT, ">>>", DEADLINE);
    write_stdin(app, "\n");
    wait_for_text(app, OUT, "own", DEADLINE);
    close_stdin(client);
    assert_int_equal(wait_for_exit(client, DEADLINE), 0);
    watch_for(700); /* longer than one that is on loan lingers */
    assert_true(path_exists(socket_path_of(app->pid)));
    close_stdin(app);
    assert_int_equal(wait_for_exit(app, DEADLINE), 7);
    assert_string_equal(app->text[ERR].data, "");
}

static void
process_without_its_main_thread_is_told_from_a_dead_one(void)
{
    struct process *app = start_target("import ctypes, os, sys, threading\n"
                                       "def work():\n"
                                       "    sys.stdin.read()\n"
                                       "    os._exit(7)\n"
                                       "threading.Thread(target=work).start()\n" READY
                                       "ctypes.CDLL(None).pthread_exit(None)\n");
    wait_until_ready(app);
    wait_until(is_zombie, &app->pid, "the main thread has ended", DEADLINE);
    assert_refused(app, "--raw", "has ended; the others run on");
    close_stdin(app);
    assert_int_equal(wait_for_exit(app, DEADLINE), 7);
}

/* Whoever made the handler's frame return: here not the C library. */
static void
thread_in_a_handler_is_not_lent(void)
{
    struct process *app = start_unprepared(
        "import ctypes, mmap, os, sys\n"
        "page = mmap.mmap(-1, 4096, prot=7)\n"
        "page.write(bytes.fromhex('48c7c00f0000000f05'))\n" /* rt_sigreturn() */
        "at = ctypes.addressof(ctypes.c_char.from_buffer(page))\n"
        "libc = ctypes.CDLL(None)\n"
        "handler = ctypes.cast(libc.getchar, ctypes.c_void_p).value\n"
        "libc.syscall(13, 10, (ctypes.c_ulong * 4)(handler, 0x04000000, at, 0), None, "
        "8)\n" READY "os.kill(os.getpid(), 10)\n"
        "sys.exit(7)\n");
    wait_until_asleep(app->pid);
    assert_refused(app, "--raw", "came to a place where it may be lent");
    close_stdin(app);
    assert_int_equal(wait_for_exit(app, DEADLINE), 7);
}

/* Names that look like what is around them. */
static void
strange_file_names_do_no_harm_to_a_look(void)
{
    struct process *app =
        start_unprepared("import os, select, sys\n"
                         "os.mkfifo('pipe')\n"
                         "names = ['pipe', ', line 3', 'hread 0x5 ']\n"
                         "def wait():\n"
                         "    if names: exec(compile('wait()', names.pop(), 'exec'))\n"
                         "    else: select.select([0], [], [])\n" READY "wait()\n"
                         "sys.exit(7)\n");
    const char *out;
    wait_until_asleep(app->pid);
    assert_int_equal(run_command(LIST(build_path("manhole-cli"), "--attach", "--stacks",
                                      "--json", number(app->pid)),
                                 NULL, &out, NULL),
                     0);
    assert_contains(out, "\"file\": \"hread 0x5 \", \"line\": 1");
    assert_contains(out, "\"file\": \", line 3\", \"line\": 1");
    assert_contains(out, "\"file\": \"pipe\", \"line\": 1");
    assert_null(strstr(strstr(out, "\"id\": ") + 1, "\"id\": ")); /* one thread */
    assert_unharmed(app);
}

/* ---- Several ----------------------------------------------------------------------- */

/* A master with two workers, and a child that is no Python. */
#define FAMILY                                                                           \
  "import os, select, subprocess, sys\n"                                                 \
  "other = subprocess.Popen(['sleep', '1000'])\n"                                        \
  "workers = [os.fork()]\n"                                                              \
  "if workers[0]: workers.append(os.fork())\n"                                           \
  "def wait_for_end(): select.select([0], [], [])\n"                                     \
  "if 0 in workers:\n"                                                                   \
  "    wait_for_end()\n"                                                                 \
  "    os._exit(7)\n"                                                                    \
  "print(*workers)\n" READY "wait_for_end()\n"                                           \
  "other.kill()\n"                                                                       \
  "other.wait()\n"                                                                       \
  "for each in workers: assert os.waitpid(each, 0)[1] == 7 << 8\n"                       \
  "sys.exit(7)\n"

/* FAMILY's, which it has printed. */
static void
read_workers(struct process *app, int workers[2])
{
    char *behind = NULL;
    workers[0] = (int)strtol(text_of(app, OUT), &behind, 10);
    workers[1] = (int)strtol(behind, NULL, 10);
    assert_true(workers[0] > 0 && workers[1] > 0);
}

/* Code in all that run Python: one has a manhole already, one is stopped, and says so. */
static void
code_runs_in_a_master_and_its_workers(void)
{
    struct process *app = start_unprepared(FAMILY);
    const char *cli = build_path("manhole-cli");
    const char *const *const asked = LIST(cli, "--attach", "--children", number(app->pid),
                                          "-c", "import os; print('I am', os.getpid())");
    const char *out;
    const char *err;
    int workers[2];
    read_workers(app, workers);
    assert_int_equal(
        run_command(LIST(cli, "--attach", "--keep", number(app->pid), "-c", "pass"), NULL,
                    NULL, NULL),
        0);
    assert_int_equal(run_command(asked, NULL, &out, &err), 0);
    assert_string_equal(err, "manhole-cli: 3 of 3 answered\n");
    assert_contains(out, format_text("%d: I am %d\n", (int)app->pid, (int)app->pid));
    assert_contains(out, format_text("%d: I am %d\n", workers[0], workers[0]));
    assert_contains(out, format_text("%d: I am %d\n", workers[1], workers[1]));
    assert_int_equal(kill(workers[0], SIGSTOP), 0);
    assert_int_equal(run_command(asked, NULL, &out, &err), 5);
    assert_contains(err, format_text("'kill -CONT %d'", workers[0]));
    assert_contains(err, "manhole-cli: 2 of 3 answered\n");
    assert_contains(out, format_text("%d: I am %d\n", workers[1], workers[1]));
    assert_int_equal(kill(workers[0], SIGCONT), 0);
    for (int i = 0; i < 2; i++) {
        wait_until(has_no_manhole, &workers[i], "the manhole is released", DEADLINE);
    }
    close_stdin(app);
    assert_int_equal(wait_for_exit(app, DEADLINE), 7);
    assert_string_equal(app->text[ERR].data, "");
}

/* In the order of their numbers, each under a title; nothing stays in any. */
static void
stacks_of_a_master_and_its_workers_come_from_outside(void)
{
    struct process *app = start_unprepared(FAMILY);
    const char *cli = build_path("manhole-cli");
    const char *out;
    const char *err;
    int workers[2];
    read_workers(app, workers);
    assert_int_equal(
        run_command(LIST(cli, "--attach", "--stacks", "--children", number(app->pid)),
                    NULL, &out, &err),
        0);
    assert_string_equal(err, "manhole-cli: 3 of 3 answered\n");
    assert_matches(out, format_text("^==> %d .* <==$", (int)app->pid));
    out = strstr(out, format_text("==> %d ", workers[0]));
    assert_non_null(out);
    assert_contains(out, format_text("==> %d ", workers[1]));
    assert_int_equal(
        run_command(LIST(cli, "--attach", "--brief", "--children", number(app->pid)),
                    NULL, &out, NULL),
        0);
    assert_contains(out, "3 x in wait_for_end at ");
    assert_int_equal(count_threads(app->pid) + count_threads(workers[0]), 2);
    close_stdin(app);
    assert_int_equal(wait_for_exit(app, DEADLINE), 7);
    assert_string_equal(app->text[ERR].data, "");
}

/* ---- CPython's own way ------------------------------------------------------------- */

static void
require_remote(void)
{
    if (!is_python_from(14)) {
        skip_test("from CPython 3.14 on");
    }
}

/* Where ptrace() is taken, the main thread loads the manhole, which stays. */
static void
traced_process_is_asked_by_its_main_thread(void)
{
    require_remote();
    struct process *app = start_unprepared(COUNTING);
    const char *cli = build_path("manhole-cli");
    const char *out;
    const char *err;
    begin_trace(app);
    assert_int_equal(run_command(LIST(cli, "--attach", number(app->pid), "--stacks"),
                                 NULL, &out, &err),
                     0);
    assert_contains(err, "its main thread is asked instead (PEP 768)\n");
    assert_contains(out, ", in <module>\n");
    assert_int_equal(count_threads(app->pid), 1);
    assert_int_equal(run_command(LIST(cli, "--attach=locals={'bread': '3\"'}",
                                      number(app->pid), "-c", "print(bread)"),
                                 NULL, &out, &err),
                     0);
    assert_string_equal(out, "3\"\n");
    assert_contains(err,
                    format_text("stays until 'manhole-cli --detach %d'", (int)app->pid));
    end_trace(app);
    assert_int_equal(
        run_command(LIST(cli, "--detach", number(app->pid)), NULL, NULL, NULL), 0);
    wait_until(has_no_manhole, &app->pid, "the manhole is released", DEADLINE);
    assert_unharmed(app);
}

static void
application_installs_its_own_in_place_of_one_that_it_was_asked_for(void)
{
    require_remote();
    struct process *app = start_target(
        "import select, sys\n" READY
        "while 'manhole' not in sys.modules: select.select([], [], [], 0.002)\n"
        "sys.modules['manhole'].install(verbose=False)\n"
        "select.select([0], [], [])\n"
        "sys.exit(7)\n");
    wait_until_ready(app);
    begin_trace(app);
    (void)run_command(
        LIST(build_path("manhole-cli"), "--attach", number(app->pid), "-c", "print(5)"),
        NULL, NULL, NULL); /* its connection may be cut */
    end_trace(app);
    close_stdin(app);
    assert_int_equal(wait_for_exit(app, DEADLINE), 7);
}

/* Ends with 7, or another status when its main thread has loaded the module. */
#define WAITING                                                                          \
  "import select, sys\n" READY "select.select([0], [], [])\n"                            \
  "sys.exit(7 + ('manhole' in sys.modules))\n"

/* What is asked of a main thread that does not come round is taken back. */
static void
main_thread_that_waits_is_not_asked_for_good(void)
{
    require_remote();
    struct process *app = start_unprepared(WAITING);
    wait_until_asleep(app->pid);
    begin_trace(app);
    assert_refused(app, "-t0.2", "has not come back to Python code within 0.2 s");
    end_trace(app);
    assert_unharmed(app);
}

static void
ctrl_c_takes_back_what_a_main_thread_is_asked(void)
{
    require_remote();
    struct process *app = start_unprepared(WAITING);
    wait_until_asleep(app->pid);
    begin_trace(app);
    struct process *cli =
        start_process(.argv = LIST(build_path("manhole-cli"), "--attach", "-t60",
                                   number(app->pid), "-c", "pass"));
    wait_for_text(cli, ERR, "its main thread is asked instead (PEP 768)\n", DEADLINE);
    wait_until_asleep(cli->pid);
    send_signal(cli, SIGINT);
    assert_int_equal(wait_for_exit(cli, DEADLINE), 130);
    end_trace(app);
    assert_unharmed(app);
}

/* ---- A client that is killed ------------------------------------------------------- */

/* Whether a tracee is at the beginning of ptrace() or of what writes into the process. */
static bool
is_at_step(pid_t tid)
{
    struct {
        unsigned char op, pad[7];
        uint64_t unused[2];
        uint64_t number;
    } info[8] = {{0}};
    const long size = (long)sizeof(info);
    return ptrace(0x420e /* PTRACE_GET_SYSCALL_INFO */, tid, size, info) > 0 &&
           info[0].op == 1 &&
           (info[0].number == SYS_ptrace || info[0].number == SYS_process_vm_writev ||
            info[0].number == SYS_pwrite64);
}

/* What happens at the n-th such step of a client, before that is done. */
struct disturbance {
    long nth; /* 0: at nearly each */
    pid_t
        whom; /* 0: the client itself; another one that was stopped goes on a while later */
    int signal;
};

/* Runs the client with these arguments and disturbs it so. Returns its status, and notes how many
 * steps it has made. */
static int
disturb_client(const struct disturbance *disturbance, const char *const argv[],
               long *steps)
{
    enum {
        A_WHILE = 50, /* system calls of the client's */
        MERCY = 7,    /* with a signal at the stop itself it might come to no fit place */
    };
    const char *errors_path = test_path("errors");
    const pid_t client = fork();
    const long options = PTRACE_O_EXITKILL | PTRACE_O_TRACESYSGOOD | PTRACE_O_TRACECLONE;
    char *const *arguments;
    pid_t tid = client;
    pid_t whom = disturbance->whom != 0 ? disturbance->whom : client;
    const bool goes_on_later = disturbance->signal != SIGKILL;
    long calls = 0;
    int status = 0;
    *steps = 0;
    assert_true(client >= 0);
    if (client == 0) {
        int null = open("/dev/null", O_RDWR);
        int errors = open(errors_path, O_WRONLY | O_CREAT | O_TRUNC, 0600);
        (void)dup2(null, 0);
        (void)dup2(null, 1);
        (void)dup2(errors, 2);
        (void)setpgid(0, 0);
        (void)ptrace(PTRACE_TRACEME, 0, NULL, NULL);
        memcpy(&arguments, &argv, sizeof(arguments)); /* which execv() only reads */
        (void)execv(argv[0], arguments);
        _exit(127);
    }
    assert_int_equal(waitpid(client, &status, __WALL), client);
    assert_int_equal(ptrace(PTRACE_SETOPTIONS, client, NULL, options), 0);
    while (tid != client || WIFSTOPPED(status)) {
        int number = WIFSTOPPED(status) ? WSTOPSIG(status) : 0;
        bool is_signal = number != (SIGTRAP | 0x80) && number != SIGTRAP &&
                         number != SIGSTOP; /* as a new thread's first stop */
        if (number == (SIGTRAP | 0x80) && is_at_step(tid) &&
            (++*steps == disturbance->nth ||
             (disturbance->nth == 0 && *steps % MERCY != 0))) {
            (void)kill(whom, disturbance->signal);
        }
        calls += *steps >= disturbance->nth;
        if (goes_on_later && calls % A_WHILE == 0) {
            (void)kill(whom, SIGCONT);
        }
        (void)ptrace(PTRACE_SYSCALL, tid, NULL, is_signal ? (long)number : 0L);
        tid = waitpid(-client, &status, __WALL | (goes_on_later ? WNOHANG : 0));
        for (int idle = 1; tid == 0; idle++) {
            (void)usleep(100);
            if (idle % 1000 == 0) { /* it waits for who is stopped */
                (void)kill(whom, SIGCONT);
            }
            tid = waitpid(-client, &status, __WALL | WNOHANG);
        }
        assert_true(tid > 0);
    }
    return status;
}

/* Kills it at that step. Returns whether it came so far. */
static bool
kill_client_at(long nth, const char *const argv[])
{
    const struct disturbance death = {.nth = nth, .signal = SIGKILL};
    long steps;
    return WIFSIGNALED(disturb_client(&death, argv, &steps));
}

/* Whether it has counted on since. */
struct count {
    pid_t pid;
    long switches;
};

static bool
has_counted_on(void *argument)
{
    const struct count *count = argument;
    const char *line = status_of(count->pid, "voluntary_ctxt_switches:");
    return strtol(strchr(line, ':') + 1, NULL, 10) > count->switches + 3;
}

static void
assert_goes_on(pid_t pid)
{
    struct count count = {.pid = pid};
    const char *line = status_of(pid, "voluntary_ctxt_switches:");
    count.switches = strtol(strchr(line, ':') + 1, NULL, 10);
    wait_until(has_counted_on, &count, "the process counts on", DEADLINE);
    assert_string_equal(status_of(pid, "TracerPid:"), "TracerPid:\t0");
    assert_string_equal(status_of(pid, "SigBlk:"), "SigBlk:\t0000000000000000");
}

/* At each step of attaching. Where the manhole has come all the same, it goes again. */
static void
client_that_is_killed_at_any_step_does_no_harm(void)
{
    struct process *app = start_unprepared(COUNTING);
    const char *cli = build_path("manhole-cli");
    long steps = 0;
    while (kill_client_at(steps + 1,
                          LIST(cli, "--attach", number(app->pid), "-c", "pass"))) {
        steps++;
        assert_goes_on(app->pid);
        if (count_threads(app->pid) > 1) { /* or it waits long for somebody to come */
            (void)run_command(LIST(cli, "-t5", "--detach", number(app->pid)), NULL, NULL,
                              NULL);
        }
        wait_until(has_no_manhole, &app->pid, "the manhole is released", DEADLINE);
    }
    assert_in_range(steps, 20, 1000);
    assert_unharmed(app);
}

/* No copy runs on. A dead one may be left, which goes with the process. */
static bool
has_no_living_copy(void *argument)
{
    pid_t copy;
    return list_children(*(pid_t *)argument, &copy, 1) == 0;
}

static void
client_that_is_killed_at_any_step_of_a_look_does_no_harm(void)
{
    struct process *app = start_unprepared(COUNTING);
    long steps = 0;
    while (kill_client_at(steps + 1, LIST(build_path("manhole-cli"), "--attach",
                                          "--stacks", number(app->pid)))) {
        steps++;
        assert_goes_on(app->pid);
        wait_until(has_no_living_copy, &app->pid, "no copy is left", DEADLINE);
    }
    assert_in_range(steps, 20, 1000);
    close_stdin(app);
    assert_int_equal(wait_for_exit(app, DEADLINE), 7);
    assert_string_equal(app->text[ERR].data, "");
}

/* ---- A process that is killed ------------------------------------------------------ */

/* Forks a child for each line, and takes the exit status of all that comes of it: where a child has
 * died, what it leaves is ours. */
#define NURSERY                                                                          \
  "import ctypes, os, sys, time\n"                                                       \
  "ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)\n" /* PR_SET_CHILD_SUBREAPER */               \
      READY "for line in sys.stdin:\n"                                                   \
  "    child = os.fork()\n"                                                              \
  "    while child == 0: time.sleep(0.002)\n"                                            \
  "    print(child, 'begins')\n"                                                         \
  "    while True:\n"                                                                    \
  "        try: os.wait()\n"                                                             \
  "        except ChildProcessError: break\n"                                            \
  "    print('ends')\n"                                                                  \
  "sys.exit(7)\n"

/* At each step of a client. It says so and ends, unless a copy has told all by then; neither a copy
 * nor a socket is left. */
static void
assert_death_at_any_step_is_told(const char *const words[])
{
    struct process *app = start_unprepared(NURSERY);
    struct disturbance death = {.signal = SIGKILL};
    bool was_killed = true;
    while (was_killed) {
        long steps;
        int status;
        write_stdin(app, "\n");
        const char *line = wait_for_text(app, OUT, " begins\n", DEADLINE);
        death.whom = (pid_t)strtol(line, NULL, 10);
        death.nth++;
        status = disturb_client(
            &death, LIST(words[0], words[1], words[2], words[3], number(death.whom)),
            &steps);
        was_killed = steps >= death.nth;
        assert_true(WIFEXITED(status));
        assert_true(was_killed || WEXITSTATUS(status) == 0);
        if (WEXITSTATUS(status) != 0) {
            assert_matches(read_file(test_path("errors")), " (has ended|is not there)");
        }
        (void)kill(death.whom, SIGKILL);
        wait_for_text(app, OUT, "ends\n", DEADLINE);
        if (strstr(read_file(test_path("errors")), " has ended meanwhile") != NULL) {
            assert_false(path_exists(socket_path_of(death.whom)));
        }
        (void)unlink(socket_path_of(death.whom)); /* of one that was connected to */
    }
    assert_in_range(death.nth, 20, 1000);
    assert_unharmed(app);
}

static void
process_that_is_killed_at_any_step_is_told(void)
{
    assert_death_at_any_step_is_told(
        LIST(build_path("manhole-cli"), "-c", "pass", "--attach"));
}

static void
process_that_is_killed_at_any_step_of_a_look_is_told(void)
{
    assert_death_at_any_step_is_told(
        LIST(build_path("manhole-cli"), "--stacks", "--raw", "--attach"));
}

/* One that is a fault's cannot be blocked in the thread that is lent, for it might be ours. Amidst
 * so many the client may find no place to come in; then the next one does. Not select(): what a
 * handler left in its large buffers, on the stack, is taken for one that runs. */
static void
signal_of_a_fault_that_is_sent_at_any_step_arrives(void)
{
    struct process *app = start_unprepared(
        "import select, signal, sys\n"
        "hits = []\n"
        "signal.signal(signal.SIGSEGV, lambda *a: hits.append(1))\n" READY
        "stdin = select.poll(); stdin.register(0, select.POLLIN | select.POLLHUP)\n"
        "while not stdin.poll(2): pass\n"
        "sys.exit(7 if hits else 8)\n");
    const struct disturbance fault = {.whom = app->pid, .signal = SIGSEGV};
    const char *cli = build_path("manhole-cli");
    enum { REFUSED = 5 << 8 };
    const char *const *const look = LIST(cli, "--attach", "--stacks", number(app->pid));
    const char *const *const run = LIST(cli, "--attach", number(app->pid), "-c", "pass");
    long steps;
    int status = disturb_client(&fault, look, &steps);
    assert_true(status == 0 || status == REFUSED);
    status = disturb_client(&fault, run, &steps);
    assert_true(status == 0 || status == REFUSED);
    assert_int_equal(run_command(run, NULL, NULL, NULL), 0);
    wait_until(has_no_manhole, &app->pid, "the manhole is released", DEADLINE);
    assert_unharmed(app);
}

/* It is neither lost nor keeps the client from coming in when the process goes on. */
static void
process_that_is_stopped_meanwhile_goes_on(void)
{
    struct process *app = start_unprepared(COUNTING);
    struct disturbance stop = {.nth = 4, .whom = app->pid, .signal = SIGSTOP};
    long steps;
    for (; stop.nth <= 44; stop.nth += 10) { /* most of these while a thread is held */
        assert_int_equal(disturb_client(&stop,
                                        LIST(build_path("manhole-cli"), "--attach",
                                             number(app->pid), "-c", "pass"),
                                        &steps),
                         0);
        assert_in_range(steps, stop.nth, 1000);
        assert_goes_on(app->pid);
        wait_until(has_no_manhole, &app->pid, "the manhole is released", DEADLINE);
    }
    assert_unharmed(app);
}

int
main(void)
{
    static const struct test_case tests[] = {
        TEST(code_runs_in_a_process_that_had_no_manhole),
        TEST(kept_manhole_stays_until_it_is_detached),
        TEST(second_attach_loads_nothing),
        TEST(stacks_come_from_outside_while_the_gil_is_held),
        TEST(stacks_from_outside_come_as_json_and_brief),
        TEST(refusals_name_what_is_missing_and_touch_nothing),
        TEST(filter_of_a_process_is_tried_only_when_told_to),
        TEST(module_that_cannot_be_loaded_leaves_no_descriptor),
        TEST(module_of_another_user_is_not_taken),
        TEST(manhole_that_was_installed_meanwhile_stays),
        TEST(application_installs_its_own_in_place_of_one_on_loan),
        TEST(application_installs_its_own_in_place_of_one_that_is_just_being_installed),
        TEST(process_without_its_main_thread_is_told_from_a_dead_one),
        TEST(thread_in_a_handler_is_not_lent),
        TEST(strange_file_names_do_no_harm_to_a_look),
        TEST(code_runs_in_a_master_and_its_workers),
        TEST(stacks_of_a_master_and_its_workers_come_from_outside),
        TEST(traced_process_is_asked_by_its_main_thread),
        TEST(application_installs_its_own_in_place_of_one_that_it_was_asked_for),
        TEST(main_thread_that_waits_is_not_asked_for_good),
        TEST(ctrl_c_takes_back_what_a_main_thread_is_asked),
        TEST(client_that_is_killed_at_any_step_does_no_harm),
        TEST(client_that_is_killed_at_any_step_of_a_look_does_no_harm),
        TEST(process_that_is_killed_at_any_step_is_told),
        TEST(process_that_is_killed_at_any_step_of_a_look_is_told),
        TEST(signal_of_a_fault_that_is_sent_at_any_step_arrives),
        TEST(process_that_is_stopped_meanwhile_goes_on),
    };
    return RUN_TESTS(tests);
}
