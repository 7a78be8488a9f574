/* e2e_ways.c - manhole-cli PID finds the way in, wherever the process listens, says what opens a
 * manhole that is closed, and sends no signal that could end a process.
 */
#include "support.h"

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

enum { NOBODY = 65534 };

#define CLI(...) LIST(build_path("manhole-cli"), __VA_ARGS__)

static const char *
number(pid_t pid)
{
    return format_text("%d", (int)pid);
}

static struct process *
start_app(const char *program)
{
    struct process *app = start_target(program);
    wait_until_ready(app);
    return app;
}

/* The state of its main thread as ps shows it; 0: it is not there. */
static char
state_of(pid_t pid)
{
    const char *stat = format_text("/proc/%d/stat", (int)pid);
    if (!path_exists(stat)) {
        return '\0';
    }
    return strrchr(read_file(stat), ')')[2];
}

static void
need_root(void)
{
    if (geteuid() != 0) {
        skip_test("only root can do this");
    }
}

/* Skips the test where a command does not work that asks the kernel for something. */
static void
need(const char *const argv[])
{
    need_root();
    if (run_command(argv, NULL, NULL, NULL) != 0) {
        skip_test("%s does not work here", argv[0]);
    }
}

/* A copy of manhole-cli where any user may run it. */
static const char *
public_cli(void)
{
    const char *program = test_path("manhole-cli");
    assert_int_equal(
        run_command(LIST("install", "-m755", build_path("manhole-cli"), program), NULL,
                    NULL, NULL),
        0);
    assert_int_equal(chmod(test_directory(), 0755), 0);
    return program;
}

/* ======================================================================================
 * What is sent.
 * ======================================================================================
 */

/* Whose signal is pending, or has begun to end it, does not sleep until that is dealt with. */
static bool
is_settled(void *argument)
{
    return strchr("RD", state_of(*(pid_t *)argument)) == NULL ||
           state_of(*(pid_t *)argument) == '\0';
}

/* A process that does not answer, in a kind of its own; NULL: there is none here. */
static pid_t
start_command(const char *command)
{
    struct process *process =
        start_process(.argv = LIST("sh", "-c", format_text("exec %s", command)));
    const char *program = format_text("%.*s", (int)strcspn(command, " "), command);
    const char *name = format_text("/proc/%d/comm", (int)process->pid);
    if (strcmp(program, "env") != 0) {
        while (strncmp(read_file(name), program, strlen(program)) != 0) {
            watch_for(1);
        }
    }
    wait_until_asleep(process->pid);
    return process->pid;
}

static pid_t
start_python(const char *program)
{
    return start_app(format_text("%s" READY STAY, program))->pid;
}

/* The program prints the number of another process. */
static pid_t
start_relative(const char *program)
{
    struct process *parent = start_target(program);
    const char *said = wait_for_text(parent, OUT, " is it\n", DEADLINE);
    return (pid_t)strtol(said, NULL, 10);
}

static bool
is_stopped(void *argument)
{
    return state_of(*(pid_t *)argument) == 'T';
}

static pid_t
stop_python(const char *program)
{
    pid_t pid = start_python(program);
    (void)kill(pid, SIGSTOP);
    wait_until(is_stopped, &pid, "it is stopped", DEADLINE);
    return pid;
}

static struct process *container; /* that start_contained() has started, or NULL */

/* The first process of a pid namespace, with a /proc and mounts of its own. */
static pid_t
start_contained(const char *program)
{
    pid_t inside = 0;
    if (geteuid() != 0 ||
        run_command(LIST("unshare", "--pid", "--mount", "--fork", "true"), NULL, NULL,
                    NULL) != 0) {
        return 0;
    }
    const char *path = write_file("inside.py", program);
    container =
        start_process(.argv = LIST("unshare", "--pid", "--mount", "--fork",
                                   "--kill-child", "--mount-proc", python(), path));
    wait_for_text(container, OUT, "ready\n", DEADLINE);
    assert_int_equal(list_children(container->pid, &inside, 1), 1);
    return inside;
}

/* kthreadd; in a container there is none. */
static pid_t
find_kernel_thread(const char *unused)
{
    (void)unused;
    return path_exists("/proc/2/comm") &&
                   strcmp(read_file("/proc/2/comm"), "kthreadd\n") == 0
               ? 2
               : 0;
}

/* The parent tells of the child when that has begun: it closes its end of a pipe, as a program does
 * that it becomes. */
#define FORKS(how, child)                                                                \
  "import os, sys, time\n"                                                               \
  "parent = os.getpid()\n"                                                               \
  "begun, begins = os.pipe()\n"                                                          \
  "def stay():\n"                                                                        \
  "    os.close(begins)\n"                                                               \
  "    while os.getppid() == parent: time.sleep(.02)\n"                                  \
  "    os._exit(0)\n"                                                                    \
  "pid = " how "\n"                                                                      \
  "if pid == 0:\n"                                                                       \
  "    " child "\n"                                                                      \
  "os.close(begins)\n"                                                                   \
  "os.read(begun, 1)\n"                                                                  \
  "print(pid, 'is it', flush=True)\n" STAY
#define IN_C "(__import__('ctypes').PyDLL(None).fork())"

/* What is asked of each is sent no signal, and so none of them ends. status: manhole-cli's. */
static const struct kind {
    const char *name;
    pid_t (*start)(const char *text);
    const char *text;
    const char *option;
    int status;
} kinds[] = {
    {"sleep", start_command, "sleep 900", "-1", 3},
    {"a shell", start_command, "dash", "-1", 3},
    {"bash that traps another", start_command, "bash -c \"trap : USR2; read x\"", "-1",
     3},
    {"bash that ignores it", start_command, "bash -c \"trap '' USR1; read x\"", "-1", 3},
    {"perl", start_command, "perl -e \"sleep 900\"", "-2", 3},
    {"cat", start_command, "cat", "-2", 3},
    {"tail", start_command, "tail -f /dev/null", "-sHUP", 3},
    {"what ignores it", start_command, "env --ignore-signal=USR1 sleep 900", "-1", 3},
    {"what SIGKILL would end", start_command, "sleep 900", "-s9", 3},
    {"what SIGSTOP would stop", start_command, "sleep 900", "-sSTOP", 3},
    {"plain Python", start_python, "", "-1", 3},
    {"Python with faulthandler", start_python,
     "import faulthandler; faulthandler.enable()\n", "-sTERM", 3},
    {"Python with another handler", start_python,
     "import signal; signal.signal(signal.SIGUSR2, print)\n", "-1", 3},
    {"a manhole that is loaded", start_python, "import manhole\n", "-1", 3},
    {"a manhole that was released", start_python,
     "import manhole; manhole.install().release()\n", "-1", 3},
    {"a manhole that is open", start_python, INSTALL(""), "-1", 0},
    {"the same, other signal", start_python, INSTALL(""), "-2", 0},
    {"the same, by a number that ends all", start_python, INSTALL(""), "-s9", 0},
    {"one that is open elsewhere", start_python, INSTALL("socket_path='own.sock'"), "-1",
     0},
    {"one that is open by TCP", start_python, INSTALL("listen='localhost:0'"), "-1", 5},
    {"one whose socket was removed", start_python,
     INSTALL("") "import os; os.unlink('/tmp/manhole-%d' % os.getpid())\n", "-1", 3},
    {"one that is stopped", stop_python, INSTALL(""), "-1", 5},
    {"one that waits for another", start_python, INSTALL("activate_on='USR2'"), "-1", 3},
    {"the same, the application catching it", start_python,
     "import signal; signal.signal(signal.SIGUSR1, lambda *args: os._exit(1))\n" INSTALL(
         "activate_on='USR2'"),
     "-1", 3},
    {"the same, open", start_python,
     INSTALL("activate_on='USR2'") //
     "import os, time; os.kill(os.getpid(), 12)\n"
     "while not os.path.exists('/tmp/manhole-%d' % os.getpid()): time.sleep(.01)\n",
     "-1", 0},
    {"one whose handler was replaced", start_python,
     INSTALL("activate_on='USR1'") //
     "import signal; signal.signal(signal.SIGUSR1, signal.SIG_DFL)\n",
     "-1", 3},
    {"a oneshot that waits for another", start_python, INSTALL("oneshot_on='USR2'"), "-1",
     3},
    {"a child without a manhole", start_relative,
     INSTALL("patch_fork=False") FORKS("os.fork()", "stay()"), "-1", 3},
    {"a child that has none yet", start_relative,
     INSTALL("reinstall_delay=900") FORKS("os.fork()", "stay()"), "-1", 3},
    {"a child forked in C", start_relative,
     INSTALL("patch_fork=False") FORKS(IN_C, "stay()"), "-1", 3},
    {"a child of who waits for another", start_relative,
     INSTALL("activate_on='USR2', reinstall_delay=0") FORKS("os.fork()", "stay()"), "-1",
     3},
    {"another program in a child", start_relative,
     INSTALL("") FORKS("os.fork()", "os.execvp('cat', ['cat'])"), "-1", 3},
    {"a zombie", start_relative,
     "import os, time\n"
     "pid = os.fork()\n"
     "if pid == 0: os._exit(0)\n"
     "os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)\n"
     "print(pid, 'is it', flush=True)\n" STAY,
     "-1", 3},
    {"a thread's number", start_relative,
     INSTALL("") //
     "import threading\n"
     "thread = threading.Thread(target=threading.Event().wait, daemon=True)\n"
     "thread.start()\n"
     "print(thread.native_id, 'is it', flush=True)\n" STAY,
     "-1", 0},
    {"the first in a container", start_contained, READY STAY, "-1", 3},
    {"a manhole in a container", start_contained, TARGET("socket_path='inside.sock'"),
     "-2", 0},
    {"a kernel thread", find_kernel_thread, "", "-1", 3},
};

static void
no_kind_of_process_is_sent_what_would_end_it(void)
{
    for (size_t i = 0; i < sizeof(kinds) / sizeof(kinds[0]); i++) {
        const struct kind *kind = &kinds[i];
        const char *err = NULL;
        pid_t pid = kind->start(kind->text);
        if (pid == 0) {
            continue; /* there is none here, as no kernel thread is to be seen in a container */
        }
        char before = state_of(pid);
        int status =
            run_command(CLI(kind->option, number(pid), "-c", "1"), NULL, NULL, &err);
        wait_until(is_settled, &pid, "it sleeps again, or has ended", DEADLINE);
        char after = state_of(pid);
        if (status != kind->status || after == '\0' ||
            (strchr("ZXTt", after) != NULL && after != before)) {
            fail_msg("%s: manhole-cli ended with %d, expected %d; the process was %c "
                     "before and is %c; %s",
                     kind->name, status, kind->status, before, after, err);
        }
        if (before == 'T') {
            (void)kill(pid, SIGCONT);
        }
        if (container != NULL) { /* what asks it to end does not reach who is in there */
            close_stdin(container);
            assert_int_equal(wait_for_exit(container, DEADLINE), 0);
            container = NULL;
        }
    }
}

static void
nothing_is_sent_where_proc_shows_other_processes(void)
{
    const char *err = NULL;
    need(LIST("unshare", "--pid", "--fork", "true"));
    const char *script = "sleep 900 & \"$0\" -1 $!; status=$?; kill $!; exit $status";
    assert_int_equal(run_command(LIST("unshare", "--pid", "--fork", "sh", "-c", script,
                                      build_path("manhole-cli")),
                                 NULL, NULL, &err),
                     3);
    assert_contains(err, "nothing was sent: /proc does not tell whether process ");
}

static void
signal_of_several_goes_to_those_alone_that_wait_for_it(void)
{
    const char *out = NULL;
    const char *err = NULL;
    struct process *ones[] = {start_app(TARGET("activate_on='USR1'")),
                              start_app(TARGET("activate_on='USR2'")),
                              start_app(TARGET("")), start_app(READY STAY)};
    assert_int_equal(
        run_command(CLI("-1", number(ones[0]->pid), number(ones[1]->pid),
                        number(ones[2]->pid), number(ones[3]->pid), "-c", "print(1)"),
                    NULL, &out, &err),
        3);
    assert_contains(out, format_text("%d: 1\n", (int)ones[0]->pid));
    assert_contains(out, format_text("%d: 1\n", (int)ones[2]->pid));
    assert_contains(
        err, format_text("%d: manhole-cli: error: nothing was sent", (int)ones[1]->pid));
    assert_contains(
        err, format_text("%d: manhole-cli: error: nothing was sent", (int)ones[3]->pid));
    assert_contains(err, "2 of 4 answered\n");
    for (size_t i = 0; i < sizeof(ones) / sizeof(ones[0]); i++) {
        close_stdin(ones[i]);
        assert_int_equal(wait_for_exit(ones[i], DEADLINE), 0);
    }
}

static void
local_shell_sends_none_to_who_is_open(void)
{
    const char *out = NULL;
    (void)write_file("test.ini", format_text("[manhole]\nlisten = %s\nenabled = true\n"
                                             "[python:console]\nenabled = true\n",
                                             test_path("own.sock")));
    struct process *app = start_app(TARGET("socket_path='own.sock'"));
    assert_int_equal(run_command(CLI("-1", "test.ini"), "connect\n6 * 7\n", &out, NULL),
                     0);
    assert_contains(out, ">>> 42\n");
    close_stdin(app);
    assert_int_equal(wait_for_exit(app, DEADLINE), 0);
}

static void
refusal_names_the_signal_that_would_do(void)
{
    const char *err = NULL;
    struct process *app = start_app(TARGET("activate_on='RTMIN'"));
    assert_int_equal(run_command(CLI("-1", number(app->pid)), NULL, NULL, &err), 3);
    assert_string_equal(
        err, format_text(
                 "manhole-cli: error: nothing was sent: the manhole of process %d does "
                 "not wait for signal 10 (USR1), which may end it; it opens on RTMIN: "
                 "manhole-cli %d -s RTMIN\n",
                 (int)app->pid, (int)app->pid));
}

static void
process_that_the_signal_ended_is_told(void)
{
    const char *err = NULL;
    struct process *app = start_app(
        "import os, signal, time\n"
        "signal.signal(signal.SIGUSR1, lambda *args: os._exit(7))\n" READY
        /* no call that waits for good: Python might be just before it as the signal comes */
        "while True: time.sleep(0.01)\n");
    struct process *cli = start_process(.argv = CLI("-1", "-t60", number(app->pid)));
    assert_int_equal(run_process(cli, NULL, NULL, &err), 5);
    assert_int_equal(wait_for_exit(app, DEADLINE), 7);
    assert_contains(err,
                    format_text("process %d has ended: signal 10 (USR1) has ended it",
                                (int)app->pid));
}

/* ======================================================================================
 * What is told of a manhole that is closed.
 * ======================================================================================
 */

static const char *
list(void)
{
    const char *out = NULL;
    assert_int_equal(run_command(CLI("--list"), NULL, &out, NULL), 0);
    return out;
}

/* What manhole-cli says that finds nobody. */
static const char *
ask_in_vain(pid_t pid)
{
    const char *err = NULL;
    assert_int_equal(run_command(CLI("-t0.01", number(pid)), NULL, NULL, &err), 5);
    return err;
}

/* What setproctitle() does to have room. */
#define WIPE_ENVIRONMENT                                                                 \
  "import ctypes\n"                                                                      \
  "fields = open('/proc/self/stat').read().rpartition(')')[2].split()\n"                 \
  "begin, end = int(fields[47]), int(fields[48])\n"                                      \
  "ctypes.memset(begin, 0, end - begin)\n"

static void
signal_that_opens_it_is_told(void)
{
    static const struct {
        const char *options, *shown, *how;
    } rows[] = {
        {"activate_on='USR1'", "USR1", "-1"},
        {"activate_on='USR2'", "USR2", "-2"},
        {"activate_on='HUP'", "HUP", "-s HUP"},
        {"oneshot_on='USR2'", "USR2", "-2"},
        {"activate_on='USR1', oneshot_on='USR2'", "USR1", "-1"},
    };
    for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
        struct process *app = start_app(format_text(
            INSTALL("%s") WIPE_ENVIRONMENT "os = None\n" READY STAY, rows[i].options));
        assert_contains(ask_in_vain(app->pid),
                        format_text("closed: it opens on %s: manhole-cli %d %s\n",
                                    rows[i].shown, (int)app->pid, rows[i].how));
        assert_matches(list(),
                       format_text("^ *%d .* -s %s +", (int)app->pid, rows[i].shown));
    }
}

static void
signal_without_a_name_is_told_with_kill(void)
{
    struct process *app = start_app(TARGET("activate_on=40"));
    assert_contains(
        ask_in_vain(app->pid),
        format_text("it opens on signal 40: kill -40 %d, then manhole-cli %d\n",
                    (int)app->pid, (int)app->pid));
}

/* An application that closes all descriptors takes neither away. */
static void
signal_is_told_after_all_descriptors_were_closed(void)
{
    struct process *app = start_app(
        INSTALL("activate_on='USR1'") "import os; os.closerange(3, 256)\n" READY STAY);
    struct process *oneshot = start_app(
        INSTALL("oneshot_on='USR1'") "import os; os.closerange(3, 256)\n" READY STAY);
    assert_contains(ask_in_vain(app->pid), "it opens on USR1: ");
    assert_contains(ask_in_vain(oneshot->pid), "it opens on USR1: ");
}

static void
child_tells_its_own_signal(void)
{
    static const char *const options[] = {"activate_on='USR1'", "oneshot_on='USR1'"};
    for (size_t i = 0; i < 2; i++) {
        pid_t child = start_relative(
            format_text(INSTALL("%s") FORKS("os.fork()", "stay()"), options[i]));
        assert_contains(ask_in_vain(child), "it opens on USR1: ");
    }
}

/* Its handler stays there, and does nothing. */
static void
child_that_has_no_manhole_tells_no_signal(void)
{
    pid_t child = start_relative(INSTALL("oneshot_on='USR1', patch_fork=False")
                                     FORKS("os.fork()", "stay()"));
    assert_contains(ask_in_vain(child), " seems to have no manhole: ");
}

static void
nothing_is_told_after_release(void)
{
    struct process *app =
        start_app("import manhole\n"
                  "manhole.install(oneshot_on='USR1').release()\n"
                  "manhole.install(activate_on='USR1').release()\n" READY STAY);
    assert_contains(ask_in_vain(app->pid), " seems to have no manhole: ");
}

/* ======================================================================================
 * Where it is found.
 * ======================================================================================
 */

/* The process answers code. */
static void
assert_found(pid_t pid, pid_t inside)
{
    const char *out = NULL;
    const char *err = NULL;
    int status = run_command(CLI(number(pid), "-c", "import os; print(os.getpid())"),
                             NULL, &out, &err);
    if (status != 0) {
        fail_msg("manhole-cli ended with %d: %s", status, err);
    }
    assert_string_equal(out, format_text("%d\n", (int)inside));
}

/* The same of one that cannot read its standard library any more. */
static void
assert_stacks_found(pid_t pid)
{
    const char *out = NULL;
    assert_int_equal(run_command(CLI(number(pid), "--stacks"), NULL, &out, NULL), 0);
    assert_contains(out, format_text("ProcessID=%d,", (int)pid));
}

static void
path_of_any_name_is_found(void)
{
    struct process *app =
        start_app(TARGET("socket_path=__import__('os').path.abspath('debug.sock')"));
    assert_found(app->pid, app->pid);
    assert_matches(list(), format_text("^ *%d .* answers +", (int)app->pid));
}

static void
path_is_found_that_its_signal_opens(void)
{
    const char *out = NULL;
    struct process *app = start_app(
        TARGET("activate_on='USR2', socket_path=__import__('os').path.abspath('a')"));
    assert_int_equal(
        run_command(CLI("-2", number(app->pid), "-c", "print(1)"), NULL, &out, NULL), 0);
    assert_string_equal(out, "1\n");
}

static void
relative_path_is_found(void)
{
    const char *out = NULL;
    struct process *app = start_app(TARGET("socket_path='debug.sock'"));
    const char *script = format_text("cd / && exec %s %d -c 'print(1)'",
                                     build_path("manhole-cli"), (int)app->pid);
    assert_int_equal(run_command(LIST("sh", "-c", script), NULL, &out, NULL), 0);
    assert_string_equal(out, "1\n");
}

/* The default path is that of a process that had the number before. */
static void
path_is_found_beside_a_dead_socket_at_the_usual_place(void)
{
    struct process *app = start_app(
        INSTALL("socket_path='debug.sock'") //
        "import os, socket\n"
        "path = '/tmp/manhole-%d' % os.getpid()\n"
        "socket.socket(socket.AF_UNIX).bind(path)\n" READY STAY "os.unlink(path)\n");
    assert_found(app->pid, app->pid);
    close_stdin(app);
    assert_int_equal(wait_for_exit(app, DEADLINE), 0);
}

static void
port_is_found(void)
{
    static const char *const hosts[] = {"127.0.0.1", "[::1]"};
    for (size_t i = 0; i < 2; i++) {
        const char *out = NULL;
        struct process *app =
            start_target(format_text(TARGET("listen='%s:0'"), hosts[i]));
        wait_until_ready(app);
        if (strstr(text_of(app, ERR), "Cannot listen") != NULL) {
            continue; /* there is no IPv6 */
        }
        assert_int_equal(
            run_command(CLI("--no-dump", number(app->pid)), "6 * 7\n", &out, NULL), 0);
        assert_contains(out, ">>> 42\n");
        assert_matches(list(), format_text("^ *%d .* answers +", (int)app->pid));
    }
}

static void
port_alone_is_told_to_who_wants_more_than_a_console(void)
{
    const char *err = NULL;
    struct process *app = start_app(TARGET("listen='localhost:0'"));
    assert_int_equal(run_command(CLI("--stacks", number(app->pid)), NULL, NULL, &err), 5);
    assert_matches(err, "process [0-9]+ listens at '127.0.0.1:[0-9]+' alone, and by TCP "
                        "there is a console");
}

static void
port_in_a_network_of_its_own_is_found(void)
{
    const char *out = NULL;
    need(LIST("unshare", "--net", "true"));
    const char *program = "import ctypes, fcntl, socket, struct\n"
                          "ctypes.CDLL(None).unshare(0x40000000)\n" /* CLONE_NEWNET */
                          "up = struct.pack('16sh14x', b'lo', 0x49)\n"
                          "fcntl.ioctl(socket.socket(), 0x8914, up)\n" /* SIOCSIFFLAGS */
        TARGET("listen='127.0.0.1:0'");
    struct process *app = start_app(program);
    assert_int_equal(
        run_command(CLI("--no-dump", number(app->pid)), "6 * 7\n", &out, NULL), 0);
    assert_contains(out, ">>> 42\n");
    assert_matches(list(), format_text("^ *%d .* answers +", (int)app->pid));
}

static void
socket_is_found_that_was_opened_before_chroot(void)
{
    need_root();
    struct process *app = start_app(INSTALL("") "import os\n"
                                                "os.mkdir('jail')\n"
                                                "os.chroot('jail')\n"
                                                "os.chdir('/')\n" READY STAY);
    assert_stacks_found(app->pid);
    assert_matches(list(), format_text("^ *%d .* answers +", (int)app->pid));
    expect_socket_left(socket_path_of(app->pid)); /* from in there it is not to be seen */
}

static void
socket_is_found_that_was_opened_before_a_mount_namespace(void)
{
    need(LIST("unshare", "--mount", "true"));
    struct process *app =
        start_app(INSTALL("") //
                  "import code, ctypes, os\n"
                  "libc = ctypes.CDLL(None)\n"
                  "libc.unshare(0x20000)\n"                        /* CLONE_NEWNS */
                  "libc.mount(None, b'/', None, 0x44000, None)\n"  /* private */
                  "libc.mount(b'none', b'/tmp', b'tmpfs', 0, 0)\n" /* over the socket */
                  READY STAY);
    assert_found(app->pid, app->pid);
    expect_socket_left(socket_path_of(app->pid));
}

/* With what leads to it from here, the path is longer than a socket's address can be. */
static void
long_path_in_a_container_is_found(void)
{
    need(LIST("unshare", "--mount", "true"));
    const char *program = "import ctypes, os\n"
                          "libc = ctypes.CDLL(None)\n"
                          "libc.unshare(0x20000)\n"
                          "libc.mount(None, b'/', None, 0x44000, None)\n"
                          "os.mkdir('inside')\n"
                          "libc.mount(b'none', b'inside', b'tmpfs', 0, 0)\n"
                          "path = os.path.abspath('inside') + '/'\n"
                          "path += 'x' * (107 - len(path))\n" TARGET("socket_path=path");
    struct process *app = start_app(program);
    assert_found(app->pid, app->pid);
}

/* Its name is one of ours, but nobody connects to find out. */
static void
sockets_of_the_application_are_left_alone(void)
{
    const char *program = "import socket\n"
                          "own = socket.socket(socket.AF_UNIX)\n"
                          "own.bind('manhole-of-the-application')\n"
                          "own.listen()\n"
                          "own.settimeout(0)\n" INSTALL("activate_on='USR1'") READY STAY
        "try: print('came', own.accept())\n"
        "except BlockingIOError: print('nobody')\n";
    struct process *app = start_app(program);
    (void)ask_in_vain(app->pid);
    assert_matches(list(), format_text("^ *%d .* -s USR1 +", (int)app->pid));
    close_stdin(app);
    wait_for_text(app, OUT, "nobody\n", DEADLINE);
}

/* The server sees who connects as nobody, if that is root. */
static void
root_comes_as_its_user_to_a_process_that_knows_no_root(void)
{
    need(
        LIST("setpriv", "--reuid=65534", "unshare", "--user", "--map-root-user", "true"));
    const char *program = write_file("target.py", TARGET(""));
    assert_int_equal(chmod(test_directory(), 0777), 0);
    assert_int_equal(
        run_command(LIST("sh", "-c", format_text("cp %s/*.so .", build_path("."))), NULL,
                    NULL, NULL),
        0);
    struct process *app =
        start_process(.argv = LIST("setpriv", "--reuid=65534", "unshare", "--user",
                                   "--map-root-user", debian_python(), program),
                      .debian = true);
    wait_until_ready(app);
    assert_found(app->pid, app->pid);
    close_stdin(app);
    assert_int_equal(wait_for_exit(app, DEADLINE), 0);
}

/* ======================================================================================
 * Why it is not found.
 * ======================================================================================
 */

static void
process_of_another_user_is_told(void)
{
    const char *err = NULL;
    need_root();
    struct process *app = start_app(TARGET("activate_on='USR1'"));
    struct process *cli =
        start_process(.argv = LIST(public_cli(), "-t0.01", number(app->pid)),
                      .uid = NOBODY);
    assert_int_equal(run_process(cli, NULL, NULL, &err), 5);
    assert_string_equal(err,
                        format_text("Failed to connect to '/tmp/manhole-%d': Timeout\n"
                                    "manhole-cli: error: process %d belongs to root; run "
                                    "manhole-cli as root\n",
                                    (int)app->pid, (int)app->pid));
}

/* As a daemon does that needs root to begin with. */
static void
owner_of_the_socket_is_told_to_the_user_of_the_process(void)
{
    const char *err = NULL;
    need_root();
    struct process *app =
        start_app(INSTALL("") "import os; os.setuid(65534)\n" READY STAY);
    struct process *cli =
        start_process(.argv = LIST(public_cli(), "-t0.01", number(app->pid)),
                      .uid = NOBODY);
    assert_int_equal(run_process(cli, NULL, NULL, &err), 5);
    assert_contains(
        err, format_text("the socket '/tmp/manhole-%d' belongs to root, as it does where "
                         "process %d opened it before it changed its user; run "
                         "manhole-cli as root\n",
                         (int)app->pid, (int)app->pid));
    assert_stacks_found(app->pid);
    expect_socket_left(socket_path_of(app->pid));
}

static void
socket_that_was_removed_is_told(void)
{
    struct process *app = start_app(
        INSTALL("") "import os; os.unlink('/tmp/manhole-%d' % os.getpid())\n" READY STAY);
    assert_contains(ask_in_vain(app->pid),
                    format_text("process %d listens at '/tmp/manhole-%d', which leads "
                                "there no more",
                                (int)app->pid, (int)app->pid));
}

static void
python_without_the_module_is_named(void)
{
    struct process *app = start_target(READY STAY, .python_options = LIST("-S"),
                                       .env = LIST("PYTHONMANHOLE="));
    wait_until_ready(app);
    assert_contains(
        ask_in_vain(app->pid),
        format_text(
            "PYTHONMANHOLE is set for process %d, but manhole is not installed in "
            "'%s', or that was started with -I, -E or -S\n",
            (int)app->pid, python()));
}

static void
name_that_a_process_gives_itself_is_shown_harmless(void)
{
    const char *program =
        format_text("import os, sys\n"
                    "if len(sys.argv) == 1:\n"
                    "    os.execv('%s', ['/\\x1b[31m', '-S', __file__, ''])\n" READY STAY,
                    python());
    struct process *app = start_target(program, .env = LIST("PYTHONMANHOLE=nothing("));
    wait_until_ready(app);
    assert_contains(ask_in_vain(app->pid), "is not installed in '/\\x1b[31m', or ");
}

static void
variable_of_what_is_no_python_says_nothing(void)
{
    struct process *app =
        start_process(.argv = LIST("cat"), .env = LIST("PYTHONMANHOLE="));
    assert_contains(ask_in_vain(app->pid), " seems to have no manhole: ");
}

int
main(void)
{
    static const struct test_case tests[] = {
        TEST(no_kind_of_process_is_sent_what_would_end_it),
        TEST(nothing_is_sent_where_proc_shows_other_processes),
        TEST(signal_of_several_goes_to_those_alone_that_wait_for_it),
        TEST(local_shell_sends_none_to_who_is_open),
        TEST(refusal_names_the_signal_that_would_do),
        TEST(process_that_the_signal_ended_is_told),
        TEST(signal_that_opens_it_is_told),
        TEST(signal_without_a_name_is_told_with_kill),
        TEST(signal_is_told_after_all_descriptors_were_closed),
        TEST(child_tells_its_own_signal),
        TEST(child_that_has_no_manhole_tells_no_signal),
        TEST(nothing_is_told_after_release),
        TEST(path_of_any_name_is_found),
        TEST(path_is_found_that_its_signal_opens),
        TEST(relative_path_is_found),
        TEST(path_is_found_beside_a_dead_socket_at_the_usual_place),
        TEST(port_is_found),
        TEST(port_alone_is_told_to_who_wants_more_than_a_console),
        TEST(port_in_a_network_of_its_own_is_found),
        TEST(socket_is_found_that_was_opened_before_chroot),
        TEST(socket_is_found_that_was_opened_before_a_mount_namespace),
        TEST(long_path_in_a_container_is_found),
        TEST(sockets_of_the_application_are_left_alone),
        TEST(root_comes_as_its_user_to_a_process_that_knows_no_root),
        TEST(process_of_another_user_is_told),
        TEST(owner_of_the_socket_is_told_to_the_user_of_the_process),
        TEST(socket_that_was_removed_is_told),
        TEST(python_without_the_module_is_named),
        TEST(name_that_a_process_gives_itself_is_shown_harmless),
        TEST(variable_of_what_is_no_python_says_nothing),
    };
    return RUN_TESTS(tests);
}
