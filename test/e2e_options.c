/* e2e_options.c - each option of install(), right and wrong, and the rest of the module's
 * public names, against real processes.
 */
#include "support.h"

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

/* ======================================================================================
 * The obedient program: its main thread does what each line of its stdin says and prints
 * the value, or the exception, in one line.
 * ====================================================================================== */

#define OBEDIENT                                                                         \
  "import inspect, manhole, os, signal, socket, sys, threading\n"                        \
  "names = globals()\n"                                                                  \
  "def threads():\n"                                                                     \
  "    return len(os.listdir('/proc/self/task'))\n"                                      \
  "def signals(task, field):\n"                                                          \
  "    for line in open(f'/proc/self/task/{task}/status'):\n"                            \
  "        if line.startswith(field):\n"                                                 \
  "            mask = int(line.split()[1], 16)\n"                                        \
  "            return [n for n in range(1, 65) if mask >> n - 1 & 1]\n"                  \
  "def caught(): # 32 and 33 are the C library's own\n"                                  \
  "    return [n for n in signals(os.getpid(), 'SigCgt') if n not in (32, 33)]\n"        \
  "def blocked(name):\n"                                                                 \
  "    for task in os.listdir('/proc/self/task'):\n"                                     \
  "        if open(f'/proc/self/task/{task}/comm').read().startswith(name):\n"           \
  "            return signals(task, 'SigBlk')\n"                                         \
  "def obey(line):\n"                                                                    \
  "    try:\n"                                                                           \
  "        return eval(line, names)\n"                                                   \
  "    except SyntaxError:\n"                                                            \
  "        return exec(line, names)\n"                                                   \
  "while True:\n"                                                                        \
  "    line = os.read(0, 4096).decode()\n"                                               \
  "    if not line: break\n"                                                             \
  "    try:\n"                                                                           \
  "        answer = str(obey(line.strip()))\n"                                           \
  "    except BaseException as error:\n"                                                 \
  "        answer = f'{type(error).__name__}: {error}'\n"                                \
  "    os.write(1, (answer + '\\n').encode())\n"

/* Has the program do a line. Returns its answer, without the newline. */
static const char *
tell(struct process *app, const char *line)
{
    write_stdin(app, format_text("%s\n", line));
    const char *answer = wait_for_text(app, OUT, "\n", DEADLINE);
    return format_text("%.*s", (int)strlen(answer) - 1, answer);
}

/* The obedient program, after manhole.install(arguments). */
static struct process *
start_with(const char *arguments)
{
    struct process *app = start_target(OBEDIENT);
    assert_string_equal(tell(app, format_text("m = manhole.install(%s)", arguments)),
                        "None");
    return app;
}

/* A client at its prompt. */
static struct client *
enter(const char *path)
{
    struct client *client = connect_client(path);
    client_wait_for(client, ">>> ");
    return client;
}

/* Shows that the process answers at the path. */
static void
assert_serves(const char *path)
{
    struct client *client = enter(path);
    assert_string_equal(client_ask(client, "40 + 2"), "42\n");
    client_close(client);
}

static pid_t
read_child_pid(struct process *app)
{
    wait_for_text(app, OUT, "child ", DEADLINE);
    return (pid_t)strtol(wait_for_text(app, OUT, " ", DEADLINE), NULL, 10);
}

/* ======================================================================================
 * verbose, verbose_destination
 * ====================================================================================== */

static void
verbose_False_writes_no_line(void)
{
    struct process *app = start_target(TARGET("verbose=False"));
    wait_until_ready(app);
    struct client *client = enter(socket_path_of(app->pid));
    client_send(client, "exit()\n");
    client_read_until_eof(client);
    close_stdin(app);
    assert_int_equal(wait_for_exit(app, DEADLINE), 0);
    assert_string_equal(text_of(app, ERR), "");
}

static void
verbose_destination_may_be_a_descriptor(void)
{
    struct process *app = start_target(TARGET("verbose_destination=1"));
    wait_for_text(app, OUT, "]: Waiting for new connection", DEADLINE);
    assert_string_equal(text_of(app, ERR), "");
}

static void
verbose_destination_may_be_an_object_that_gets_whole_lines(void)
{
    struct process *app =
        start_target("class Log:\n"
                     "    def write(self, line):\n"
                     "        print(type(line).__name__, ascii(line), flush=True)\n"
                     "log = Log()\n" TARGET("verbose_destination=log"));
    wait_until_ready(app);
    client_send(enter(socket_path_of(app->pid)), "exit()\n");
    wait_for_text(app, OUT, "Cleaned up.", DEADLINE);
    close_stdin(app);
    wait_for_exit(app, DEADLINE);
    assert_matches(text_of(app, OUT),
                   "^str 'Manhole\\[[0-9]+:[0-9]+\\.[0-9]{4}\\]: Cleaned up\\.\\\\n'$");
    assert_string_equal(text_of(app, ERR), "");
}

static void
log_object_that_raises_disturbs_nobody(void)
{
    static const char *const exceptions[] = {"ValueError", "KeyboardInterrupt",
                                             "SystemExit"};
    for (size_t i = 0; i < sizeof(exceptions) / sizeof(exceptions[0]); i++) {
        struct process *app =
            start_target(format_text("class Log:\n"
                                     "    def write(self, line):\n"
                                     "        raise %s('no room for ' + line)\n"
                                     "log = Log()\n" TARGET("verbose_destination=log"),
                                     exceptions[i]));
        wait_until_ready(app);
        assert_serves(socket_path_of(app->pid));
        close_stdin(app);
        assert_int_equal(wait_for_exit(app, DEADLINE), 0);
        assert_string_equal(text_of(app, ERR), "");
    }
}

static void
log_descriptor_that_is_closed_or_full_disturbs_nobody(void)
{
    static const char *const programs[] = {
        "import os\n"
        "fd = os.dup(2)\n"
        "os.close(fd)\n" TARGET("verbose_destination=fd"),
        "import os\n"
        "unread, fd = os.pipe()\n"
        "os.set_blocking(fd, False)\n"
        "try:\n"
        "    while True: os.write(fd, b'x' * 4096)\n"
        "except BlockingIOError: os.set_blocking(fd, True)\n" TARGET(
            "verbose_destination=fd"),
    };
    for (size_t i = 0; i < sizeof(programs) / sizeof(programs[0]); i++) {
        struct process *app = start_target(programs[i]);
        wait_until_ready(app);
        assert_serves(socket_path_of(app->pid));
        close_stdin(app);
        assert_int_equal(wait_for_exit(app, DEADLINE), 0);
    }
}

/* ======================================================================================
 * strict, release()
 * ====================================================================================== */

static void
second_install_raises_and_the_first_goes_on(void)
{
    struct process *app = start_with("");
    assert_contains(tell(app, "manhole.install()"),
                    "AlreadyInstalled: Manhole already installed!");
    assert_contains(tell(app, "manhole.install(strict=True, activate_on='USR1')"),
                    "AlreadyInstalled: ");
    assert_serves(socket_path_of(app->pid));
}

static void
strict_False_moves_the_socket_and_keeps_one_thread(void)
{
    struct process *app = start_with("");
    const char *second = test_path("second");
    assert_string_equal(tell(app, "threads()"), "2");
    tell(app, format_text("manhole.install(strict=False, socket_path='%s')", second));
    assert_no_path(socket_path_of(app->pid));
    assert_serves(second);
    assert_string_equal(tell(app, "m.uds_name"), second);
    wait_for_text(app, ERR, "Cleaned up.", DEADLINE);
}

static void
strict_False_ends_the_thread_of_the_first(void)
{
    struct process *app = start_with("");
    tell(app, "manhole.install(strict=False, thread=False)");
    wait_for_usage(app->pid, count_fds(app->pid), 1); /* it goes after it is joined */
    assert_no_path(socket_path_of(app->pid));
}

/* The two ways to undo an install() that has taken both signals. */
static const char *const undoings[] = {
    "manhole.install(strict=False, thread=False)",
    "m.release()",
};

#define HEAR                                                                             \
  "for name in ('SIGUSR1', 'SIGUSR2'): signal.signal(getattr(signal, name), "            \
  "lambda number, frame: os.write(1, b'heard %d, ' % number))"

static void
undone_install_gives_signals_back_to_handlers_in_python(void)
{
    for (size_t i = 0; i < sizeof(undoings) / sizeof(undoings[0]); i++) {
        struct process *app = start_target(OBEDIENT);
        tell(app, HEAR);
        tell(app, "m = manhole.install(activate_on='USR1', oneshot_on='USR2')");
        tell(app, undoings[i]);
        send_signal(app, SIGUSR1);
        wait_for_text(app, OUT, "heard 10, ", DEADLINE);
        send_signal(app, SIGUSR2);
        wait_for_text(app, OUT, "heard 12, ", DEADLINE);
        assert_no_path(socket_path_of(app->pid));
    }
}

static void
undone_install_gives_signals_back_to_the_default_action(void)
{
    static const int signals[] = {SIGUSR1, SIGUSR2, SIGTERM};
    for (size_t i = 0; i < sizeof(signals) / sizeof(signals[0]); i++) {
        struct process *app = start_with("activate_on='USR1', oneshot_on='USR2'");
        send_signal(app, SIGUSR1);
        wait_for_path(socket_path_of(app->pid), DEADLINE);
        tell(app, "m.release()");
        assert_no_path(socket_path_of(app->pid));
        send_signal(app, signals[i]);
        assert_int_equal(wait_for_exit(app, DEADLINE), -signals[i]);
    }
}

static void
undone_install_leaves_a_handler_that_the_app_has_set_since(void)
{
    for (size_t i = 0; i < sizeof(undoings) / sizeof(undoings[0]); i++) {
        struct process *app = start_with("activate_on='USR1', oneshot_on='USR2'");
        tell(app, HEAR);
        tell(app, undoings[i]);
        send_signal(app, SIGUSR1);
        wait_for_text(app, OUT, "heard 10, ", DEADLINE);
        send_signal(app, SIGUSR2);
        wait_for_text(app, OUT, "heard 12, ", DEADLINE);
    }
}

static void
undone_install_catches_no_signal_that_was_not_caught(void)
{
    if (is_wrapped()) {
        skip_test("valgrind catches them all");
    }
    static const char *const rows[] = {"", "activate_on='USR1', oneshot_on='USR2'"};
    for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
        struct process *app = start_target(OBEDIENT);
        const char *before = tell(app, "caught()");
        tell(app, format_text("m = manhole.install(%s)", rows[i]));
        send_signal(app, i == 0 ? SIGCHLD : SIGUSR1);
        assert_serves(socket_path_of(app->pid));
        assert_string_not_equal(tell(app, "caught()"), before);
        tell(app, "m.release()");
        assert_string_equal(tell(app, "caught()"), before);
    }
}

static void
release_removes_everything_and_install_works_again(void)
{
    struct process *app = start_with("");
    int fds = count_fds(app->pid);
    for (int i = 0; i < 20; i++) {
        assert_string_equal(tell(app, "m.release()"), "None");
        assert_no_path(socket_path_of(app->pid));
        wait_for_usage(app->pid, count_fds(app->pid), 1); /* it goes after it is joined */
        assert_contains(tell(app, "manhole.install()"), "Manhole");
    }
    wait_for_usage(app->pid, fds, count_threads(app->pid));
    assert_serves(socket_path_of(app->pid));
}

/* As a signal handler in Python may have it; it must not wait for itself. */
static void
install_in_the_middle_of_an_install_is_refused(void)
{
    static const char message[] =
        "install() or release() is at work in this very thread; try again later\n";
    struct process *app =
        start_target("import faulthandler, manhole, socket\n"
                     "def try_all():\n"
                     "    for f in (manhole.install, lambda: "
                     "manhole.handle_connection_repl(socket.socket())):\n"
                     "        try: f()\n"
                     "        except RuntimeError as error: print(error, flush=True)\n"
                     "register = faulthandler.register\n"
                     "faulthandler.register = lambda *a, **k: [try_all(), "
                     "register(*a, **k)]\n" TARGET(""));
    wait_for_text(app, OUT, message, DEADLINE);
    wait_for_text(app, OUT, message, DEADLINE);
    assert_serves(socket_path_of(app->pid));
}

static void
release_twice_is_harmless(void)
{
    struct process *app = start_with("");
    assert_string_equal(tell(app, "m.release()"), "None");
    assert_string_equal(tell(app, "m.release()"), "None");
    wait_for_usage(app->pid, count_fds(app->pid), 1); /* it goes after it is joined */
}

static void
client_that_is_in_stays_after_release(void)
{
    struct process *app = start_with("");
    struct client *client = enter(socket_path_of(app->pid));
    tell(app, "m.release()");
    assert_string_equal(client_ask(client, "40 + 2"), "42\n");
    client_send(client, "exit()\n");
    client_read_until_eof(client);
    assert_string_equal(tell(app, "sys.stdout is sys.__stdout__"), "True");
}

/* There is no listener that would carry what a statement prints much. */
static void
flood_of_a_client_that_stays_after_release_comes_at_once(void)
{
    struct process *app = start_with("");
    struct client *client = enter(socket_path_of(app->pid));
    assert_string_equal(client_ask(client, "0"), "0\n");
    tell(app, "m.release()");
    client_send(client,
                "for i in range(100): print(i, '.'); i == 99 and input('name? ')\n\n");
    client_wait_for(client, "99 .\nname? ");
    client_send(client, "me\n");
    client_wait_for(client, ">>> ");
}

static void
client_may_release_the_manhole_that_it_is_in(void)
{
    struct process *app = start_with("locals={'manhole': manhole}");
    struct client *client = enter(socket_path_of(app->pid));
    client_ask(client, "m = manhole.install(strict=False)");
    assert_string_equal(client_ask(client, "m.release()"), "");
    assert_no_path(socket_path_of(app->pid));
    assert_string_equal(client_ask(client, "40 + 2"), "42\n");
}

/* ======================================================================================
 * patch_fork, reinstall_delay
 * ====================================================================================== */

/* The thread that will listen is started by the fork itself, so it can be counted. */
#define FORKS                                                                            \
  "import os, warnings\n"                                                                \
  "warnings.simplefilter('ignore') # fork() warns of threads\n"                          \
  "if os.fork() == 0:\n"                                                                 \
  "    count = len(os.listdir('/proc/self/task'))\n"                                     \
  "    os.write(1, b'child %d has %d\\n' % (os.getpid(), count))\n" STAY

static void
patch_fork_False_gives_a_child_no_manhole(void)
{
    struct process *app = start_target(INSTALL("patch_fork=False") FORKS);
    pid_t child = read_child_pid(app);
    wait_for_text(app, OUT, "has 1\n", DEADLINE);
    assert_no_path(socket_path_of(child));
    assert_not_contains(text_of(app, ERR), "Fork detected");
    assert_serves(socket_path_of(app->pid));
}

static void
child_listens_after_reinstall_delay(void)
{
    struct process *app = start_target(INSTALL("reinstall_delay=0.05") FORKS);
    pid_t child = read_child_pid(app);
    wait_for_text(app, OUT, "has 2\n", DEADLINE);
    assert_serves(socket_path_of(child));
    assert_serves(socket_path_of(app->pid));
}

static void
child_does_not_listen_before_reinstall_delay(void)
{
    struct process *app = start_target(INSTALL("reinstall_delay=3600") FORKS);
    pid_t child = read_child_pid(app);
    wait_for_text(app, OUT, "has 2\n", DEADLINE);
    wait_for_text(app, ERR, "Delaying UDS binding 3600 seconds ...\n", DEADLINE);
    watch_for(100);
    assert_no_path(socket_path_of(child));
    close_stdin(app);
    assert_int_equal(wait_for_exit(app, DEADLINE), 0);
}

static void
child_of_an_app_with_a_path_of_its_own_has_none(void)
{
    const char *path = test_path("only one");
    struct process *app = start_target(
        "import sys, warnings\n"
        "warnings.simplefilter('ignore') # of fork(), which the client would "
        "see\n" INSTALL("socket_path=sys.argv[1], reinstall_delay=0") FORKS,
        .argv = LIST(path));
    wait_for_text(app, OUT, "has 1\n", DEADLINE);
    assert_serves(path);
}

/* ======================================================================================
 * activate_on, oneshot_on, oneshot_timeout, thread
 * ====================================================================================== */

static void
activate_on_takes_names_and_numbers(void)
{
    const struct {
        const char *value;
        int signal_number;
    } rows[] = {
        {"'USR1'", SIGUSR1},
        {"'SIGUSR1'", SIGUSR1},
        {"10", SIGUSR1},
        {"signal.SIGUSR2", SIGUSR2},
        {"'usr2'", SIGUSR2},
        {"'WINCH'", SIGWINCH},
        {"signal.SIGRTMIN + 3", SIGRTMIN + 3},
    };
    for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
        struct process *app = start_with(format_text("activate_on=%s", rows[i].value));
        assert_no_path(socket_path_of(app->pid));
        send_signal(app, rows[i].signal_number);
        assert_serves(socket_path_of(app->pid));
    }
}

static void
second_activating_signal_changes_nothing(void)
{
    struct process *app = start_with("activate_on='USR1'");
    send_signal(app, SIGUSR1);
    struct client *client = enter(socket_path_of(app->pid));
    send_signal(app, SIGUSR1);
    send_signal(app, SIGUSR1);
    assert_string_equal(client_ask(client, "40 + 2"), "42\n");
    assert_serves(socket_path_of(app->pid));
    assert_string_equal(tell(app, "40 + 2"), "42");
}

static void
oneshot_takes_names_and_numbers(void)
{
    static const char *const values[] = {"'USR2'", "'SIGUSR2'", "12", "signal.SIGUSR2"};
    for (size_t i = 0; i < sizeof(values) / sizeof(values[0]); i++) {
        struct process *app = start_with(format_text("oneshot_on=%s", values[i]));
        assert_no_path(socket_path_of(app->pid));
        assert_int_equal(count_threads(app->pid), 1);
        send_signal(app, SIGUSR2);
        assert_serves(socket_path_of(app->pid));
    }
}

static void
oneshot_serves_one_client_in_the_main_thread(void)
{
    struct process *app = start_with("oneshot_on='USR2'");
    for (int i = 0; i < 2; i++) {
        send_signal(app, SIGUSR2);
        struct client *client = enter(socket_path_of(app->pid));
        client_ask(client, "import threading");
        assert_string_equal(
            client_ask(client, "threading.current_thread() is threading.main_thread()"),
            "True\n");
        client_send(client, "exit()\n");
        client_read_until_eof(client);
        assert_string_equal(tell(app, "'goes on'"), "goes on");
        assert_no_path(socket_path_of(app->pid));
    }
}

static void
oneshot_that_nobody_comes_to_gives_up(void)
{
    struct process *app = start_with("oneshot_on='USR2', oneshot_timeout=1");
    send_signal(app, SIGUSR2);
    wait_for_text(app, ERR, "]: Oneshot failure: TimeoutError(", DEADLINE);
    assert_string_equal(tell(app, "'goes on'"), "goes on");
    assert_no_path(socket_path_of(app->pid));
    send_signal(app, SIGUSR2);
    assert_serves(socket_path_of(app->pid));
}

static void
activate_on_and_oneshot_on_work_side_by_side(void)
{
    struct process *app = start_with("activate_on='USR1', oneshot_on='USR2'");
    send_signal(app, SIGUSR2);
    struct client *client = enter(socket_path_of(app->pid));
    client_send(client, "exit()\n");
    client_read_until_eof(client);
    assert_string_equal(tell(app, "'goes on'"), "goes on");
    send_signal(app, SIGUSR1);
    assert_serves(socket_path_of(app->pid));
}

static void
oneshot_on_outside_the_main_thread_installs_nothing(void)
{
    struct process *app = start_target(OBEDIENT);
    tell(app,
         "def work(): names['answer'] = obey(\"manhole.install(oneshot_on='USR2')\")");
    tell(app,
         "threading.excepthook = lambda x: names.update(raised=x.exc_type.__name__)");
    tell(app, "t = threading.Thread(target=work); t.start(); t.join()");
    assert_string_equal(tell(app, "raised"), "ValueError");
    assert_string_equal(tell(app, "signal.getsignal(12) is signal.SIG_DFL"), "True");
    assert_contains(tell(app, "manhole.install(oneshot_on='USR2')"), "Manhole");
}

static void
thread_False_starts_nothing(void)
{
    struct process *app = start_with("thread=False");
    assert_int_equal(count_threads(app->pid), 1);
    assert_no_path(socket_path_of(app->pid));
}

static void
thread_False_leaves_activate_on_alone(void)
{
    struct process *app = start_with("thread=False, activate_on='USR1'");
    assert_no_path(socket_path_of(app->pid));
    send_signal(app, SIGUSR1);
    assert_serves(socket_path_of(app->pid));
}

static void
handle_oneshot_serves_the_thread_that_calls_it(void)
{
    static const char *const calls[] = {"m.handle_oneshot()",
                                        "m.handle_oneshot(10, None)"};
    struct process *app =
        start_with("thread=False, locals={'me': threading.get_ident()}");
    for (size_t i = 0; i < sizeof(calls) / sizeof(calls[0]); i++) {
        write_stdin(app, calls[i]);
        struct client *client = enter(socket_path_of(app->pid));
        client_ask(client, "import threading");
        assert_string_equal(client_ask(client, "threading.get_ident() == me"), "True\n");
        client_send(client, "exit()\n");
        client_read_until_eof(client);
        wait_for_text(app, OUT, "None\n", DEADLINE);
        assert_no_path(socket_path_of(app->pid));
    }
}

static void
handle_oneshot_never_raises(void)
{
    struct process *app = start_with("thread=False, socket_path='/nowhere/at/all'");
    assert_string_equal(tell(app, "m.handle_oneshot()"), "None");
    wait_for_text(app, ERR, "]: Oneshot failure: ", DEADLINE);
}

/* ======================================================================================
 * sigmask
 * ====================================================================================== */

static void
assert_threads_block(const char *arguments, const char *numbers)
{
    struct process *app = start_with(arguments);
    enter(socket_path_of(app->pid));
    assert_string_equal(tell(app, "[n for n in blocked('Manhole') if n < 65]"), numbers);
    assert_string_equal(tell(app, "blocked('Manhole <')"), numbers);
    assert_string_equal(tell(app, "sorted(signal.pthread_sigmask(0, []))"), "[]");
}

static void
sigmask_blocks_what_it_names_in_our_threads_alone(void)
{
    assert_threads_block("sigmask=['USR1', 'SIGUSR2', 15]", "[10, 12, 15]");
    assert_threads_block("sigmask={signal.SIGCHLD}", "[17]");
}

static void
sigmask_None_blocks_nothing(void)
{
    assert_threads_block("sigmask=None", "[]");
    assert_threads_block("sigmask=()", "[]");
}

/* Nobody can block KILL and STOP; a thread's own fault must reach its handler. */
static void
default_sigmask_blocks_all_but_faults(void)
{
    if (is_wrapped()) {
        skip_test("valgrind keeps a signal for itself");
    }
    struct process *app = start_with("");
    enter(socket_path_of(app->pid));
    assert_string_equal(
        tell(app, "sorted(set(manhole.ALL_SIGNALS).difference(blocked('Manhole')))"),
        "[4, 5, 6, 7, 8, 9, 11, 19, 31]");
    assert_string_equal(
        tell(app, "sorted(set(manhole.ALL_SIGNALS).difference(blocked('Manhole <')))"),
        "[4, 5, 6, 7, 8, 9, 11, 19, 31]");
}

/* ======================================================================================
 * socket_path, uds_name
 * ====================================================================================== */

static void
socket_path_replaces_the_usual_one(void)
{
    const char *path = test_path("of my own");
    struct stat status;
    struct process *app = start_with(format_text("socket_path='%s'", path));
    assert_serves(path);
    assert_string_equal(tell(app, "m.uds_name"), path);
    assert_no_path(socket_path_of(app->pid));
    assert_int_equal(stat(path, &status), 0);
    assert_int_equal(status.st_mode, S_IFSOCK | 0600);
    close_stdin(app);
    assert_int_equal(wait_for_exit(app, DEADLINE), 0);
    assert_no_path(path);
}

static void
socket_path_may_be_any_kind_of_path(void)
{
    static const char *const forms[] = {"path", "os.fsencode(path)",
                                        "__import__('pathlib').Path(path)"};
    struct process *app = start_target(OBEDIENT);
    const char *path = test_path("any");
    tell(app, format_text("path = '%s'", path));
    for (size_t i = 0; i < sizeof(forms) / sizeof(forms[0]); i++) {
        tell(app,
             format_text("m = manhole.install(strict=False, socket_path=%s)", forms[i]));
        assert_serves(path);
        assert_string_equal(tell(app, "m.uds_name"), path);
    }
}

static void
socket_path_may_be_as_long_as_a_socket_can(void)
{
    const char *folder = test_path("");
    char name[120] = "";
    memset(name, 'x', 107 - strlen(folder));
    const char *path = format_text("%s%s", folder, name);
    start_with(format_text("socket_path='%s'", path));
    assert_serves(path);
}

static void
pid_in_socket_path_is_replaced_and_children_have_their_own(void)
{
    struct process *app = start_target(
        "import sys\n" INSTALL("socket_path=sys.argv[1], reinstall_delay=0") FORKS,
        .argv = LIST(test_path("at-%(pid)s-of-%(pid)s")));
    pid_t child = read_child_pid(app);
    assert_serves(test_path(format_text("at-%d-of-%d", (int)app->pid, (int)app->pid)));
    assert_serves(test_path(format_text("at-%d-of-%d", (int)child, (int)child)));
    close_stdin(app);
    assert_int_equal(wait_for_exit(app, DEADLINE), 0);
    assert_no_path(test_path(format_text("at-%d-of-%d", (int)app->pid, (int)app->pid)));
}

static void
uds_name_is_the_path_open_or_not(void)
{
    struct process *app = start_with("activate_on='USR1'");
    const char *path = socket_path_of(app->pid);
    assert_string_equal(tell(app, "m.uds_name"), path);
    assert_no_path(path);
    send_signal(app, SIGUSR1);
    wait_for_path(path, DEADLINE);
    assert_string_equal(tell(app, "m.uds_name"), path);
    assert_contains(tell(app, "m.uds_name = 'x'"), "AttributeError");
}

/* ======================================================================================
 * start_timeout
 * ====================================================================================== */

/* With no time at all the thread is late, if not each time. */
static void
listener_that_is_late_costs_a_warning_and_serves(void)
{
    struct process *app = start_target(
        "import manhole\n"
        "lines = []\n"
        "class Log:\n"
        "    def write(self, line): lines.append(line)\n"
        "late = []\n"
        "while not late:\n"
        "    manhole.install(verbose_destination=Log(), strict=False, start_timeout=0)\n"
        "    late = [line for line in lines if 'WARNING' in line]\n"
        "print(late[0], end='', flush=True)\n" STAY);
    wait_for_text(app, OUT, "\n", DEADLINE);
    assert_matches(text_of(app, OUT),
                   "^Manhole\\[[0-9]+:[0-9.]+\\]: WARNING: Waited 0 seconds but Manhole "
                   "thread didn't start yet :\\($");
    assert_serves(socket_path_of(app->pid));
}

static void
socket_is_there_when_install_returns(void)
{
    struct process *app = start_target(
        INSTALL("start_timeout=60") "import os\n"
                                    "print('there', "
                                    "os.path.exists(f'/tmp/manhole-{os.getpid()}'))\n");
    wait_for_text(app, OUT, "there True\n", DEADLINE);
}

/* ======================================================================================
 * max_sessions
 * ====================================================================================== */

static void
one_client_more_than_max_sessions_is_told_so(void)
{
    struct process *app = start_with("max_sessions=2");
    const char *path = socket_path_of(app->pid);
    struct client *first = enter(path);
    enter(path);
    assert_string_equal(client_read_until_eof(connect_client(path)),
                        "manhole: 2 clients are connected already; try again later\n");
    client_send(first, "exit()\n");
    client_read_until_eof(first);
    wait_for_text(app, ERR, "]: Cleaned up.\n", DEADLINE);
    wait_for_text(app, ERR, "]: Waiting for new connection", DEADLINE);
    assert_string_equal(tell(app, "'goes on'"), "goes on");
}

/* ======================================================================================
 * locals
 * ====================================================================================== */

static void
locals_are_names_in_the_console(void)
{
    struct process *app = start_with("locals={'answer': 42, 'os': 'mine'}");
    struct client *client = enter(socket_path_of(app->pid));
    assert_string_equal(client_ask(client, "answer"), "42\n");
    assert_string_equal(client_ask(client, "os"), "'mine'\n");
}

static void
console_has_the_usual_names(void)
{
    struct process *app = start_with("");
    struct client *client = enter(socket_path_of(app->pid));
    assert_string_equal(client_ask(client, "sorted(n for n in dir() if n[:2] != '__')"),
                        "['dump_stacktraces', 'frame', 'loop', 'os', 'socket', 'sys', "
                        "'tasks', 'threads', 'traceback', 'where']\n");
}

static void
console_does_not_change_the_dict_of_locals(void)
{
    struct process *app = start_with("locals=names.setdefault('mine', {'answer': 42})");
    struct client *client = enter(socket_path_of(app->pid));
    assert_string_equal(client_ask(client, "answer = other = 1"), "");
    assert_string_equal(tell(app, "mine"), "{'answer': 42}");
    struct client *second = enter(socket_path_of(app->pid));
    assert_string_equal(client_ask(second, "answer"), "42\n");
}

static void
locals_may_be_any_mapping(void)
{
    struct process *app =
        start_with("locals=__import__('types').MappingProxyType({'answer': 42})");
    assert_string_equal(client_ask(enter(socket_path_of(app->pid)), "answer"), "42\n");
}

/* ======================================================================================
 * redirect_stderr
 * ====================================================================================== */

static void
stderr_of_a_session_goes_to_its_client(void)
{
    struct process *app = start_with("audit=False");
    struct client *client = enter(socket_path_of(app->pid));
    assert_string_equal(client_ask(client, "n = sys.stderr.write('to stderr\\n')"),
                        "to stderr\n");
    assert_not_contains(text_of(app, ERR), "to stderr");
}

static void
redirect_stderr_False_leaves_stderr_to_the_app(void)
{
    struct process *app = start_with("redirect_stderr=False");
    struct client *client = enter(socket_path_of(app->pid));
    assert_string_equal(client_ask(client, "n = sys.stderr.write('to stderr\\n')"), "");
    wait_for_text(app, ERR, "to stderr\n", DEADLINE);
    tell(app, "sys.stderr.write('of the app\\n')");
    wait_for_text(app, ERR, "of the app\n", DEADLINE);
    assert_string_equal(client_ask(client, "n = sys.stdout.write('to stdout\\n')"),
                        "to stdout\n");
}

static void
redirect_stderr_False_sends_dump_and_tracebacks_to_the_client(void)
{
    struct process *app = start_with("redirect_stderr=False");
    struct client *client = connect_client(socket_path_of(app->pid));
    assert_contains(client_wait_for(client, ">>> "), "######### ProcessID=");
    assert_contains(client_ask(client, "1/0"), "\nZeroDivisionError: ");
    assert_contains(client_ask(client, "1+"), "SyntaxError: ");
    assert_contains(client_ask(client, "dump_stacktraces()"), "######### ProcessID=");
    assert_not_contains(text_of(app, ERR), "ZeroDivisionError");
    assert_not_contains(text_of(app, ERR), "####");
}

/* ======================================================================================
 * connection_handler
 * ====================================================================================== */

static void
exec_handler_runs_lines_and_answers_nothing(void)
{
    struct process *app = start_with("connection_handler='exec'");
    struct client *client = connect_to(app);
    client_send(client, "print('line', 6 * 7)\nexit()\n");
    assert_string_equal(client_read_until_eof(client), "");
    wait_for_text(app, OUT, "line 42\n", DEADLINE);
}

static void
exec_handler_sets_names_in_the_dict_of_locals(void)
{
    struct process *app = start_with(
        "connection_handler='exec', locals=names.setdefault('mine', {'answer': 42})");
    struct client *client = connect_to(app);
    client_send(client, "other = answer + 1\nexit()\n");
    client_read_until_eof(client);
    assert_string_equal(tell(app, "mine"), "{'answer': 42, 'other': 43}");
}

static void
exec_handler_ends_with_its_input(void)
{
    struct process *app = start_with("connection_handler='exec'");
    struct client *client = connect_to(app);
    client_send(client, "print('no newline')");
    client_shutdown_write(client);
    assert_string_equal(client_read_until_eof(client), "");
    wait_for_text(app, OUT, "no newline\n", DEADLINE);
}

static void
exec_handler_ends_with_an_error(void)
{
    struct process *app = start_with("connection_handler='exec'");
    struct client *client = connect_to(app);
    client_send(client, "1/0\nprint('not reached')\n");
    assert_string_equal(client_read_until_eof(client), "");
    wait_for_text(app, ERR, "ManholeConnectionThread failure: ZeroDivisionError(",
                  DEADLINE);
    assert_string_equal(tell(app, "'goes on'"), "goes on");
    assert_not_contains(text_of(app, OUT), "not reached");
}

#define HANDLER(body) "def handler(client):\n" body "\n"

static void
callable_is_given_a_real_socket(void)
{
    struct process *app = start_target("import socket\n" HANDLER(
        "    print(type(client) is socket.socket, client.family == socket.AF_UNIX,\n"
        "          client.gettimeout(), flush=True)\n"
        "    client.sendall(b'say: ')\n"
        "    client.sendall(client.recv(100).upper())\n")
                                           TARGET("connection_handler=handler"));
    wait_until_ready(app); /* for its threads' prints may mix */
    struct client *client = connect_to(app);
    client_wait_for(client, "say: ");
    client_send(client, "something");
    assert_string_equal(client_read_until_eof(client), "SOMETHING");
    wait_for_text(app, OUT, "True True None\n", DEADLINE);
}

static void
callable_may_close_its_socket_or_not(void)
{
    static const char *const handlers[] = {
        HANDLER("    client.sendall(b'bye')"),
        HANDLER("    client.sendall(b'bye')\n    client.close()"),
        HANDLER("    client.sendall(b'bye')\n    os.close(client.detach())"),
    };
    for (size_t i = 0; i < sizeof(handlers) / sizeof(handlers[0]); i++) {
        struct process *app = start_target(format_text(
            "import os\n%simport manhole; manhole.install(connection_handler=handler)\n"
            "print('ready'); os.read(0, 1)\n",
            handlers[i]));
        wait_until_ready(app);
        int fds = count_fds(app->pid);
        int threads = count_threads(app->pid);
        assert_string_equal(client_read_until_eof(connect_to(app)), "bye");
        assert_string_equal(client_read_until_eof(connect_to(app)), "bye");
        wait_for_usage(app->pid, fds, threads);
    }
}

static void
callable_that_raises_loses_only_its_client(void)
{
    struct process *app = start_target(HANDLER("    raise LookupError('no luck')\n")
                                           TARGET("connection_handler=handler"));
    for (int i = 0; i < 2; i++) {
        assert_string_equal(client_read_until_eof(connect_to(app)), "");
        wait_for_text(app, ERR,
                      "]: ManholeConnectionThread failure: LookupError('no luck')\n",
                      DEADLINE);
    }
}

static void
callable_may_hand_its_client_to_the_console(void)
{
    struct process *app = start_target(
        "import manhole\n" HANDLER("    client.sendall(b'welcome\\n')\n"
                                   "    manhole.handle_connection_repl(client)\n"
                                   "    print('back in the handler', flush=True)\n")
            TARGET("connection_handler=handler, locals={'answer': 42}"));
    struct client *client = connect_to(app);
    client_wait_for(client, "welcome\n\n######### ProcessID=");
    client_wait_for(client, "(ManholeConsole)\n>>> ");
    assert_string_equal(client_ask(client, "answer"), "42\n");
    client_send(client, "exit()\n");
    client_read_until_eof(client);
    wait_for_text(app, OUT, "back in the handler\n", DEADLINE);
}

static void
callable_may_hand_its_client_to_the_exec_handler(void)
{
    struct process *app = start_target(
        "import manhole\n" HANDLER("    manhole.handle_connection_exec(client)\n")
            TARGET("connection_handler=handler, locals={'answer': 42}"));
    struct client *client = connect_to(app);
    client_send(client, "print('it is', answer)\nexit()\n");
    assert_string_equal(client_read_until_eof(client), "");
    wait_for_text(app, OUT, "it is 42\n", DEADLINE);
}

static void
callable_may_put_something_between_its_client_and_the_console(void)
{
    struct process *app = start_target("import manhole, socket, threading\n" HANDLER(
        "    ours, theirs = socket.socketpair()\n"
        "    def pump():\n"
        "        for text in iter(lambda: ours.recv(4096), b''):\n"
        "            client.sendall(text.upper())\n"
        "    ours.sendall(b'print(\"loud\")\\nexit()\\n')\n"
        "    thread = threading.Thread(target=pump)\n"
        "    thread.start()\n"
        "    manhole.handle_connection_repl(theirs)\n"
        "    theirs.close()\n"
        "    thread.join()\n") TARGET("connection_handler=handler"));
    assert_contains(client_read_until_eof(connect_to(app)),
                    "(MANHOLECONSOLE)\n>>> LOUD\n>>> ");
}

static void
callable_may_keep_its_client(void)
{
    struct process *app =
        start_with("connection_handler=names.setdefault('kept', []).append");
    struct client *client = connect_to(app);
    wait_for_text(app, ERR, "]: Accepted connection", DEADLINE);
    wait_for_text(app, ERR, "]: Waiting for new connection", DEADLINE);
    assert_string_equal(tell(app, "kept[0].sendall(b'later')"), "None");
    client_wait_for(client, "later");
    client_send(client, "and back");
    assert_string_equal(tell(app, "kept[0].recv(100)"), "b'and back'");
    tell(app, "kept.pop().close()");
    assert_string_equal(client_read_until_eof(client), "");
}

static void
the_handlers_of_the_module_are_callables_too(void)
{
    struct process *app = start_with("connection_handler=manhole.handle_connection_repl");
    assert_serves(socket_path_of(app->pid));
}

static void
app_may_serve_a_socket_of_its_own(void)
{
    struct process *app = start_with("thread=False, locals={'answer': 42}");
    tell(app, "ours, theirs = socket.socketpair()");
    tell(app,
         "t = threading.Thread(target=manhole.handle_connection_repl, args=[theirs])");
    tell(app, "t.start()");
    tell(app, "ours.sendall(b'answer + 1\\nexit()\\n')");
    tell(app, "t.join(); theirs.close()");
    assert_string_equal(tell(app, "ours.makefile().read()[-11:].encode()"),
                        "b'>>> 43\\n>>> '");
    assert_string_equal(tell(app, "sys.stdout is sys.__stdout__"), "True");
}

/* ======================================================================================
 * Wrong values
 * ====================================================================================== */

static const struct wrong_value {
    const char *arguments;
    const char *exception;
    const char *message; /* a piece of it */
} wrong_values[] = {
    {"unheard_of=1", "TypeError", "'unheard_of'"},
    {"Verbose=True", "TypeError", "verbose_destination, strict, patch_fork, activate_on"},
    {"True, 2, True, True", "TypeError", "at most 3 positional"},
    {"True, verbose=True", "TypeError", "multiple values for option 'verbose'"},
    {"verbose='False'", "TypeError", "'verbose' must be True or False, not 'False'"},
    {"verbose=1.5", "TypeError", "'verbose'"},
    {"verbose_destination=None", "TypeError",
     "'verbose_destination' must be a file desc"},
    {"verbose_destination='log'", "TypeError", "an object with write(str), not 'log'"},
    {"verbose_destination=True", "TypeError", "'verbose_destination'"},
    {"verbose_destination=-1", "ValueError", "'verbose_destination'"},
    {"verbose_destination=2**70", "ValueError", "'verbose_destination'"},
    {"strict='no'", "TypeError", "'strict' must be True or False"},
    {"patch_fork=[]", "TypeError", "'patch_fork' must be True or False"},
    {"thread='yes'", "TypeError", "'thread' must be True or False"},
    {"activate_on='NOPE'", "ValueError", "'activate_on' must be the name (\"USR1\""},
    {"activate_on=''", "ValueError", "'activate_on'"},
    {"activate_on='SIG'", "ValueError", "'activate_on'"},
    {"activate_on='SIG_DFL'", "ValueError", "'activate_on'"},
    {"activate_on='_DFL'", "ValueError", "'activate_on'"},
    {"activate_on='NAL'", "ValueError", "'activate_on'"},
    {"activate_on='USR1\\0'", "ValueError", "'activate_on'"},
    {"activate_on='U' * 100", "ValueError", "'activate_on'"},
    {"activate_on=0", "ValueError", "'activate_on'"},
    {"activate_on=-10", "ValueError", "'activate_on'"},
    {"activate_on=32", "ValueError", "'activate_on'"},
    {"activate_on=65", "ValueError", "'activate_on'"},
    {"activate_on=2**70", "ValueError", "'activate_on'"},
    {"activate_on='KILL'", "ValueError", "'activate_on'"},
    {"activate_on=signal.SIGSTOP", "ValueError", "'activate_on'"},
    {"activate_on=10.0", "TypeError", "'activate_on'"},
    {"activate_on=b'USR1'", "TypeError", "'activate_on'"},
    {"activate_on=True", "TypeError", "'activate_on'"},
    {"oneshot_on='NOPE'", "ValueError", "'oneshot_on' must be the name (\"USR1\""},
    {"oneshot_on=9", "ValueError", "'oneshot_on'"},
    {"oneshot_on=0", "ValueError", "'oneshot_on'"},
    {"oneshot_on=[]", "TypeError", "'oneshot_on'"},
    {"activate_on='USR1', oneshot_on='USR1'", "ConfigurationConflict", "signal 10"},
    {"oneshot_on=12, activate_on='SIGUSR2'", "ConfigurationConflict", "signal 12"},
    {"sigmask='USR1'", "TypeError", "'sigmask' must be an iterable of signal names"},
    {"sigmask=10", "TypeError", "'sigmask'"},
    {"sigmask=[1.5]", "TypeError", "'sigmask'"},
    {"sigmask=['NOPE']", "ValueError", "'sigmask'"},
    {"sigmask=[0]", "ValueError", "'sigmask'"},
    {"sigmask=(1//0 for x in 'x')", "ZeroDivisionError", ""},
    {"socket_path=5", "TypeError", "'socket_path' must be a path, or None, not 5"},
    {"socket_path=''", "ValueError", "'socket_path' is 0 bytes long"},
    {"socket_path='/tmp/' + 'x' * 103", "ValueError", "108 bytes long"},
    {"socket_path='/tmp/' + '%(pid)s' * 103", "ValueError", "'socket_path' is "},
    {"socket_path='a\\0b'", "ValueError", "null"},
    {"reinstall_delay=-0.1", "ValueError",
     "'reinstall_delay' must be a number of seconds"},
    {"reinstall_delay=float('nan')", "ValueError", "'reinstall_delay'"},
    {"reinstall_delay=float('inf')", "ValueError", "'reinstall_delay'"},
    {"reinstall_delay='1'", "TypeError", "'reinstall_delay'"},
    {"reinstall_delay=None", "TypeError", "'reinstall_delay'"},
    {"start_timeout=-1", "ValueError", "'start_timeout' must be a number of seconds"},
    {"start_timeout=[]", "TypeError", "'start_timeout'"},
    {"oneshot_timeout=-1", "ValueError", "'oneshot_timeout' must be a number of seconds"},
    {"oneshot_timeout='soon'", "TypeError", "'oneshot_timeout'"},
    {"oneshot_timeout=10**400", "ValueError", "'oneshot_timeout'"},
    {"hang_timeout=-1", "ValueError", "'hang_timeout' must be a number of seconds"},
    {"hang_timeout='1'", "TypeError", "'hang_timeout'"},
    {"max_sessions=0", "ValueError",
     "'max_sessions' must be a whole number from 1 to 256"},
    {"max_sessions=257", "ValueError", "'max_sessions'"},
    {"max_sessions=2**70", "ValueError", "'max_sessions'"},
    {"max_sessions=1.0", "TypeError", "'max_sessions'"},
    {"max_sessions=True", "TypeError", "'max_sessions'"},
    {"locals=5", "TypeError", "'locals' must be a mapping of names, or None, not 5"},
    {"locals='abc'", "TypeError", "'locals' must be a mapping"},
    {"locals=[1]", "TypeError", "'locals' must be a mapping"},
    {"daemon_connection='x'", "TypeError", "'daemon_connection' must be True or False"},
    {"redirect_stderr=0.0", "TypeError", "'redirect_stderr' must be True or False"},
    {"connection_handler='shell'", "ValueError",
     "'connection_handler' must be 'repl', 'e"},
    {"connection_handler=5", "TypeError", "'connection_handler' must be 'repl', 'exec'"},
    {"connection_handler=None", "TypeError", "'connection_handler'"},
    {"enable='pdb'", "ValueError",
     "'enable' must be an iterable of 'console' and 'debugger', or None"},
    {"enable=[5]", "ValueError", "'enable'"},
    {"config=5", "TypeError", "'config' must be the path of a file, or None, not 5"},
    {"enable=True", "TypeError", "'enable'"},
};

static void
wrong_value_is_named_and_installs_nothing(void)
{
    struct process *app = start_target(OBEDIENT);
    for (size_t i = 0; i < sizeof(wrong_values) / sizeof(wrong_values[0]); i++) {
        const struct wrong_value *row = &wrong_values[i];
        const char *answer =
            tell(app, format_text("manhole.install(%s)", row->arguments));
        const char *wanted = format_text("%s => %s: ", row->arguments, row->exception);
        const char *got = format_text("%s => %s", row->arguments, answer);
        assert_contains(got, wanted);
        assert_contains(got, row->message);
        assert_string_equal(tell(app, "m = threads()"), "None");
    }
    assert_string_equal(tell(app, "threads()"), "1");
    assert_contains(tell(app, "manhole.install()"), "Manhole");
    assert_serves(socket_path_of(app->pid));
}

static void
wrong_value_leaves_an_installed_manhole_alone(void)
{
    struct process *app = start_with("");
    assert_contains(tell(app, "manhole.install(strict=False, locals=5)"), "TypeError: ");
    assert_serves(socket_path_of(app->pid));
}

/* As people write them. */
static void
loose_values_are_taken(void)
{
    static const char *const rows[] = {
        "False",
        "verbose=0",
        "verbose=None",
        "True, sys.stderr, False",
        "verbose_destination=sys.stderr.fileno()",
        "daemon_connection=1",
        "thread=0",
        "sigmask=range(1, 20)",
        "sigmask=iter([10])",
        "reinstall_delay=0",
        "start_timeout=1e300",
        "locals={}",
        "locals=None, socket_path=None, activate_on=None, oneshot_on=None",
        "**{'strict': True, 'connection_handler': print}",
    };
    struct process *app = start_target(OBEDIENT);
    for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
        const char *answer = tell(app, format_text("manhole.install(%s)", rows[i]));
        assert_contains(format_text("%s => %s", rows[i], answer), "=> <manhole.Manhole");
        tell(app, "manhole.install(strict=False).release()");
    }
}

/* ======================================================================================
 * Exceptions, credentials
 * ====================================================================================== */

static void
exceptions_are_the_four_of_old(void)
{
    static const char *const names[] = {"AlreadyInstalled", "NotInstalled",
                                        "ConfigurationConflict", "SuspiciousClient"};
    struct process *app = start_target(OBEDIENT);
    for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++) {
        assert_string_equal(
            tell(app, format_text("manhole.%s.__mro__[:2], manhole.%s.__doc__ is None",
                                  names[i], names[i])),
            format_text("((<class 'manhole.%s'>, <class 'Exception'>), False)",
                        names[i]));
    }
}

static void
what_needs_an_installed_manhole_says_so(void)
{
    static const char *const calls[] = {
        "m.handle_oneshot()",
        "manhole.check_credentials(a)",
        "manhole.handle_connection_repl(a)",
        "manhole.handle_connection_exec(a)",
    };
    struct process *app = start_with("");
    tell(app, "a, b = socket.socketpair()");
    tell(app, "m.release()");
    for (size_t i = 0; i < sizeof(calls) / sizeof(calls[0]); i++) {
        assert_string_equal(tell(app, calls[i]),
                            "NotInstalled: Manhole is not installed!");
    }
}

static void
get_peercred_tells_who_is_on_the_other_side(void)
{
    struct process *app = start_target(OBEDIENT);
    tell(app, "a, b = socket.socketpair()");
    assert_string_equal(
        tell(app, "manhole.get_peercred(a)"),
        format_text("(%d, %d, %d)", (int)app->pid, (int)getuid(), (int)getgid()));
    assert_contains(tell(app, "manhole.get_peercred('a')"), "TypeError: ");
    assert_contains(tell(app, "manhole.get_peercred(open('/dev/null'))"), "OSError: ");
    assert_contains(tell(app, "manhole.get_peercred()"), "TypeError: ");
}

static void
get_peercred_of_a_socket_without_peer_raises(void)
{
    struct process *app = start_target(OBEDIENT);
    assert_contains(tell(app, "manhole.get_peercred(socket.socket())"), "OSError: ");
    assert_contains(tell(app, "manhole.get_peercred(socket.socket(socket.AF_UNIX))"),
                    "OSError: ");
}

static void
check_credentials_lets_the_own_user_in(void)
{
    struct process *app = start_with("thread=False");
    tell(app, "a, b = socket.socketpair()");
    assert_string_equal(
        tell(app, "manhole.check_credentials(a)"),
        format_text("(%d, %d, %d)", (int)app->pid, (int)getuid(), (int)getgid()));
    const char *fd = tell(app, "a.fileno()");
    wait_for_text(
        app, ERR,
        format_text("]: Accepted connection on fd:%s from PID:%d UID:%d GID:%d\n", fd,
                    (int)app->pid, (int)getuid(), (int)getgid()),
        DEADLINE);
}

static void
check_credentials_refuses_another_user(void)
{
    if (geteuid() != 0) {
        skip_test("needs root to become two other users");
    }
    struct process *app = start_with("thread=False");
    tell(app, "os.seteuid(65533)");
    tell(app, "a, b = socket.socketpair()");
    tell(app, "os.seteuid(0); os.seteuid(65534)");
    assert_string_equal(
        tell(app, "manhole.check_credentials(a)"),
        format_text("SuspiciousClient: Can't accept client with PID:%d UID:65533 GID:%d. "
                    "It doesn't match the current EUID:65534 or ROOT.",
                    (int)app->pid, (int)getgid()));
    tell(app, "os.seteuid(0)");
}

/* ======================================================================================
 * What else the module offers
 * ====================================================================================== */

static void
dump_stacktraces_prints_to_stderr(void)
{
    struct process *app = start_with("thread=False");
    assert_string_equal(tell(app, "manhole.dump_stacktraces()"), "None");
    wait_for_text(app, ERR,
                  format_text("\n######### ProcessID=%d, ThreadID=", (int)app->pid),
                  DEADLINE);
    wait_for_text(app, ERR, "in obey\n  return eval(line, names)\n", DEADLINE);
    wait_for_text(app, ERR, "#############################################\n\n\n",
                  DEADLINE);
    assert_not_contains(text_of(app, OUT), "####");
}

static void
dump_stacktraces_prints_to_stdout_when_stderr_is_the_app_s(void)
{
    struct process *app = start_with("thread=False, redirect_stderr=False");
    write_stdin(app, "manhole.dump_stacktraces()");
    wait_for_text(app, OUT, "######### ProcessID=", DEADLINE);
    wait_for_text(app, OUT, "#############################################\n\n\nNone\n",
                  DEADLINE);
    assert_not_contains(text_of(app, ERR), "####");
}

static void
dump_stacktraces_works_without_install(void)
{
    require_gil();
    struct process *app = start_target(OBEDIENT);
    assert_string_equal(tell(app, "manhole.dump_stacktraces()"), "None");
    wait_for_text(app, ERR, "######### ProcessID=", DEADLINE);
}

static void
ALL_SIGNALS_are_those_that_python_names(void)
{
    struct process *app = start_target(OBEDIENT);
    assert_string_equal(
        tell(app, "manhole.ALL_SIGNALS == tuple(sorted({int(getattr(signal, n)) for n in "
                  "dir(signal) if n.startswith('SIG') and '_' not in n}))"),
        "True");
}

static void
version_is_that_of_the_header_and_of_the_newest_changes(void)
{
    struct process *app = start_target(OBEDIENT);
    const char *version = tell(app, "manhole.__version__");
    const char *changes = strstr(read_file(source_path("CHANGELOG.rst")), "\n\n");
    assert_contains(read_file(source_path("manhole.h")),
                    format_text("#define MANHOLE_VERSION \"%s\"\n", version));
    assert_memory_equal(changes + 2, format_text("%s ", version), strlen(version) + 1);
}

static const struct {
    const char *name;
    const char *value;
} default_values[] = {
    {"verbose", "True"},
    {"verbose_destination", "2"},
    {"strict", "True"},
    {"patch_fork", "True"},
    {"activate_on", "None"},
    {"oneshot_on", "None"},
    {"thread", "True"},
    {"socket_path", "None"},
    {"listen", "None"},
    {"reinstall_delay", "0.5"},
    {"start_timeout", "0.5"},
    {"oneshot_timeout", "60"},
    {"hang_timeout", "1"},
    {"max_sessions", "64"},
    {"locals", "None"},
    {"daemon_connection", "False"},
    {"audit", "True"},
    {"redirect_stderr", "True"},
    {"config", "None"},
    {"enable", "None"},
    {"connection_handler", "repl"},
};

static void
signature_tells_every_option_and_default(void)
{
    size_t count = sizeof(default_values) / sizeof(default_values[0]);
    struct process *app = start_target(OBEDIENT);
    tell(app, "s = inspect.signature(manhole.install).parameters");
    for (size_t i = 0; i < count; i++) {
        assert_string_equal(
            tell(app, format_text("'%s', s['%s'].default", default_values[i].name,
                                  default_values[i].name)),
            format_text(i == count - 1 ? "('%s', '%s')" : "('%s', %s)",
                        default_values[i].name, default_values[i].value));
    }
    assert_string_equal(tell(app, "len(s)"), format_text("%zu", count + 1));
    assert_string_equal(tell(app, "[n for n in s if s[n].kind != s[n].KEYWORD_ONLY]"),
                        "['verbose', 'verbose_destination', 'strict']");
}

static void
values_of_the_signature_may_be_passed(void)
{
    if (is_wrapped()) {
        skip_test("valgrind keeps a signal for itself");
    }
    struct process *app = start_target(OBEDIENT);
    tell(app, "s = inspect.signature(manhole.install).parameters");
    assert_contains(tell(app, "manhole.install(**{n: s[n].default for n in s})"),
                    "<manhole.Manhole at ");
    assert_string_equal(
        tell(app, "sorted(set(manhole.ALL_SIGNALS).difference(blocked('Manhole')))"),
        "[4, 5, 6, 7, 8, 9, 11, 19, 31]");
}

static void
help_tells_every_option(void)
{
    const char *help;
    assert_int_equal(run_process(start_target("import manhole\nhelp(manhole.install)\n"),
                                 "", &help, NULL),
                     0);
    for (size_t i = 0; i < sizeof(default_values) / sizeof(default_values[0]); i++) {
        assert_matches(help, format_text("^ *%s = ", default_values[i].name));
    }
    assert_matches(help, "^ *sigmask = ");
}

static void
every_public_name_has_help_and_signature(void)
{
    struct process *app = start_target(OBEDIENT);
    assert_string_equal(tell(app, "[n for n in dir(manhole) if n[0] != '_' and not "
                                  "inspect.getdoc(getattr(manhole, n))]"),
                        "[]");
    assert_string_equal(
        tell(app, "[str(inspect.signature(getattr(manhole, n))) for n in dir(manhole) if "
                  "inspect.isroutine(getattr(manhole, n)) and n[0] != '_' and n != "
                  "'install']"),
        "['(conn_info, locals=None)', '(sock, locals=None)', '(sock, /)', '()', '(sock, "
        "/)', "
        "'(client, /)', '(client, /)', '(client, /)', '(name, /)', '()', '()', "
        "'(name=None, /)', "
        "'(application, /)']");
    tell(app, "m = manhole.install()");
    assert_string_equal(tell(app, "str(inspect.signature(m.handle_oneshot))"),
                        "(signum=None, frame=None, /)");
    assert_string_equal(tell(app, "str(inspect.signature(m.release))"), "()");
}

int
main(void)
{
    static const struct test_case tests[] = {
        TEST(verbose_False_writes_no_line),
        TEST(verbose_destination_may_be_a_descriptor),
        TEST(verbose_destination_may_be_an_object_that_gets_whole_lines),
        TEST(log_object_that_raises_disturbs_nobody),
        TEST(log_descriptor_that_is_closed_or_full_disturbs_nobody),
        TEST(second_install_raises_and_the_first_goes_on),
        TEST(strict_False_moves_the_socket_and_keeps_one_thread),
        TEST(strict_False_ends_the_thread_of_the_first),
        TEST(undone_install_gives_signals_back_to_handlers_in_python),
        TEST(undone_install_gives_signals_back_to_the_default_action),
        TEST(undone_install_leaves_a_handler_that_the_app_has_set_since),
        TEST(undone_install_catches_no_signal_that_was_not_caught),
        TEST(release_removes_everything_and_install_works_again),
        TEST(install_in_the_middle_of_an_install_is_refused),
        TEST(release_twice_is_harmless),
        TEST(client_that_is_in_stays_after_release),
        TEST(flood_of_a_client_that_stays_after_release_comes_at_once),
        TEST(client_may_release_the_manhole_that_it_is_in),
        TEST(patch_fork_False_gives_a_child_no_manhole),
        TEST(child_listens_after_reinstall_delay),
        TEST(child_does_not_listen_before_reinstall_delay),
        TEST(child_of_an_app_with_a_path_of_its_own_has_none),
        TEST(activate_on_takes_names_and_numbers),
        TEST(second_activating_signal_changes_nothing),
        TEST(oneshot_takes_names_and_numbers),
        TEST(oneshot_serves_one_client_in_the_main_thread),
        TEST(oneshot_that_nobody_comes_to_gives_up),
        TEST(activate_on_and_oneshot_on_work_side_by_side),
        TEST(oneshot_on_outside_the_main_thread_installs_nothing),
        TEST(thread_False_starts_nothing),
        TEST(thread_False_leaves_activate_on_alone),
        TEST(handle_oneshot_serves_the_thread_that_calls_it),
        TEST(handle_oneshot_never_raises),
        TEST(sigmask_blocks_what_it_names_in_our_threads_alone),
        TEST(sigmask_None_blocks_nothing),
        TEST(default_sigmask_blocks_all_but_faults),
        TEST(socket_path_replaces_the_usual_one),
        TEST(socket_path_may_be_any_kind_of_path),
        TEST(socket_path_may_be_as_long_as_a_socket_can),
        TEST(pid_in_socket_path_is_replaced_and_children_have_their_own),
        TEST(uds_name_is_the_path_open_or_not),
        TEST(listener_that_is_late_costs_a_warning_and_serves),
        TEST(socket_is_there_when_install_returns),
        TEST(one_client_more_than_max_sessions_is_told_so),
        TEST(locals_are_names_in_the_console),
        TEST(console_has_the_usual_names),
        TEST(console_does_not_change_the_dict_of_locals),
        TEST(locals_may_be_any_mapping),
        TEST(stderr_of_a_session_goes_to_its_client),
        TEST(redirect_stderr_False_leaves_stderr_to_the_app),
        TEST(redirect_stderr_False_sends_dump_and_tracebacks_to_the_client),
        TEST(exec_handler_runs_lines_and_answers_nothing),
        TEST(exec_handler_sets_names_in_the_dict_of_locals),
        TEST(exec_handler_ends_with_its_input),
        TEST(exec_handler_ends_with_an_error),
        TEST(callable_is_given_a_real_socket),
        TEST(callable_may_close_its_socket_or_not),
        TEST(callable_that_raises_loses_only_its_client),
        TEST(callable_may_hand_its_client_to_the_console),
        TEST(callable_may_hand_its_client_to_the_exec_handler),
        TEST(callable_may_put_something_between_its_client_and_the_console),
        TEST(callable_may_keep_its_client),
        TEST(the_handlers_of_the_module_are_callables_too),
        TEST(app_may_serve_a_socket_of_its_own),
        TEST(wrong_value_is_named_and_installs_nothing),
        TEST(wrong_value_leaves_an_installed_manhole_alone),
        TEST(loose_values_are_taken),
        TEST(exceptions_are_the_four_of_old),
        TEST(what_needs_an_installed_manhole_says_so),
        TEST(get_peercred_tells_who_is_on_the_other_side),
        TEST(get_peercred_of_a_socket_without_peer_raises),
        TEST(check_credentials_lets_the_own_user_in),
        TEST(check_credentials_refuses_another_user),
        TEST(dump_stacktraces_prints_to_stderr),
        TEST(dump_stacktraces_prints_to_stdout_when_stderr_is_the_app_s),
        TEST(dump_stacktraces_works_without_install),
        TEST(ALL_SIGNALS_are_those_that_python_names),
        TEST(version_is_that_of_the_header_and_of_the_newest_changes),
        TEST(signature_tells_every_option_and_default),
        TEST(values_of_the_signature_may_be_passed),
        TEST(help_tells_every_option),
        TEST(every_public_name_has_help_and_signature),
    };
    return RUN_TESTS(tests);
}
