/* e2e_cli.c - manhole-cli as its users see it: help, mistakes, signals, paths, streams.
 *
 * Most of its servers are fakes, for they do what no manhole does: serve under another
 * uid, never read, never close. Two kinds: the test itself listens and then plays the
 * server step by step (the PID asked for is its own); or a small Python program does,
 * where much goes to and fro at once.
 */
#include "support.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

enum {
    NOBODY = 65534,
    BIG_INPUT = 5 * 1024 * 1024,
    BIG_OUTPUT = 50 * 1024 * 1024,
};

#define USAGE "usage: manhole-cli [-h] [-t TIMEOUT] [-1 | -2 | -s SIGNAL] PID\n"
#define MISTAKE(text) USAGE "manhole-cli: error: " text "\n"

/* Arguments of manhole-cli, to be run to its end or only started. */
#define CLI(...) LIST(build_path("manhole-cli"), __VA_ARGS__)

/* ======================================================================================
 * Servers that the test plays itself.
 * ======================================================================================
 */

/* Listens at a path under an effective uid: that is what a client's SO_PEERCRED says. */
static int
listen_as(const char *path, uid_t uid, int backlog)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    uid_t own = geteuid();
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

    (void)snprintf(address.sun_path, sizeof(address.sun_path), "%s", path);
    (void)unlink(path);
    assert_true(fd >= 0);
    assert_int_equal(bind(fd, (struct sockaddr *)&address, sizeof(address)), 0);
    assert_int_equal(seteuid(uid), 0);
    int result = listen(fd, backlog);
    assert_int_equal(seteuid(own), 0);
    assert_int_equal(result, 0);
    return fd;
}

static int
listen_at(const char *path)
{
    return listen_as(path, geteuid(), 8);
}

/* Something to read, or somebody to accept. */
static bool
has_news(int fd)
{
    struct pollfd polled = {.fd = fd, .events = POLLIN};
    return poll(&polled, 1, 0) > 0;
}

static bool
has_input(void *client)
{
    return has_news(*(int *)client);
}

struct arrival {
    int listener;
    int client; /* the server's end; -1: nobody yet */
};

static bool
takes_client(void *data)
{
    struct arrival *arrival = data;
    struct sockaddr_un card = {.sun_family = AF_UNIX};
    socklen_t size = sizeof(card) - 1;

    if (has_news(arrival->listener)) {
        arrival->client =
            accept4(arrival->listener, (struct sockaddr *)&card, &size, SOCK_CLOEXEC);
        assert_true(arrival->client >= 0);
        if (strstr(card.sun_path + 1, LISTING) != NULL) {
            (void)close(arrival->client);
            arrival->client = -1;
        }
    }
    return arrival->client >= 0;
}

/* Returns the server's end of the next connection. */
static int
accept_client(int listen_fd)
{
    struct arrival arrival = {.listener = listen_fd, .client = -1};
    wait_until(takes_client, &arrival, "a client connects", DEADLINE);
    return arrival.client;
}

static void
say(int fd, const char *text)
{
    assert_int_equal(send(fd, text, strlen(text), MSG_NOSIGNAL), strlen(text));
}

/* Reads to the client's end of input, and says what came. */
static const char *
hear_all(int fd)
{
    static char heard[4096];
    size_t length = 0;
    ssize_t count = 0;
    struct timeval patience = {.tv_sec = DEADLINE / 1000};

    assert_int_equal(setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof(patience)),
                     0);
    while ((count = recv(fd, heard + length, sizeof(heard) - 1 - length, 0)) > 0) {
        length += (size_t)count;
    }
    if (count < 0) { /* an end, too: the client went without reading all */
        assert_int_equal(errno, ECONNRESET);
    }
    heard[length] = '\0';
    return heard;
}

static void
stop_listening(int listen_fd, const char *path)
{
    (void)close(listen_fd);
    (void)unlink(path);
}

/* The numbers of this process, as they stand on a command line. */
static const char *
own_pid(void)
{
    return format_text("%d", (int)getpid());
}

static const char *
own_path(void)
{
    return socket_path_of(getpid());
}

/* A process that does nothing; its stdin keeps it. */
static struct process *
start_idle_process(void)
{
    struct process *process = start_process(.argv = LIST("cat"));
    write_stdin(process, "here\n");
    wait_for_text(process, OUT, "here\n",
                  DEADLINE); /* it has removed what was at its path */
    return process;
}

static void
end_idle_process(struct process *process)
{
    close_stdin(process);
    assert_int_equal(wait_for_exit(process, DEADLINE), 0);
}

static void
need_root(void)
{
    if (geteuid() != 0) {
        skip_test("only root can take on another uid");
    }
}

/* ======================================================================================
 * Servers in Python: they serve one client at /tmp/manhole-PID.
 * ======================================================================================
 */

/* A body may use client and read_all(). The path is gone as soon as it has served. */
#define SERVER(body)                                                                     \
  "import os, socket\n"                                                                  \
  "path = '/tmp/manhole-%d' % os.getpid()\n"                                             \
  "def read_all():\n"                                                                    \
  "    parts = []\n"                                                                     \
  "    while not parts or parts[-1]:\n"                                                  \
  "        parts.append(client.recv(1 << 20))\n"                                         \
  "    return b''.join(parts)\n"                                                         \
  "listener = socket.socket(socket.AF_UNIX)\n"                                           \
  "listener.bind(path)\n"                                                                \
  "listener.listen()\n" READY ACCEPT "os.unlink(path)\n" body "client.close()\n" STAY

static struct process *
start_server(const char *program)
{
    struct process *server = start_target(program);
    wait_until_ready(server);
    return server;
}

static const char *
pid_of(const struct process *process)
{
    return format_text("%d", (int)process->pid);
}

/* ======================================================================================
 * Help and mistakes.
 * ======================================================================================
 */

static void
help_begins_as_python_manholes(void)
{
    const char *out = NULL;
    const char *err = NULL;

    assert_int_equal(run_command(CLI("--help"), NULL, &out, &err), 0);

    const char *theirs =
        "usage: manhole-cli [-h] [-t TIMEOUT] [-1 | -2 | -s SIGNAL] PID\n"
        "\n"
        "Connect to a manhole.\n"
        "\n"
        "positional arguments:\n"
        "  PID                   A numerical process id, or a path in the form:\n"
        "                        /tmp/manhole-1234\n"
        "\n"
        "options:\n"
        "  -h, --help            show this help message and exit\n"
        "  -t TIMEOUT, --timeout TIMEOUT\n"
        "                        Timeout to use. Default: 1 seconds.\n"
        "  -1, -USR1             Send USR1 (10) to the process before connecting.\n"
        "  -2, -USR2             Send USR2 (12) to the process before connecting.\n"
        "  -s SIGNAL, --signal SIGNAL\n"
        "                        Send the given SIGNAL to the process before\n"
        "                        connecting.\n";
    assert_int_equal(strncmp(out, theirs, strlen(theirs)), 0); /* ours follow */
    assert_string_equal(err, "");
}

/* Each heading stands alone, and these options follow it before the next one. */
static void
help_groups_its_options(void)
{
    static const struct {
        const char *heading;
        const char *options[7];
    } groups[] = {
        {"\noptions:\n",
         {"-h,", "-t ", "-s ", "--no-dump ", "--raw ", "--no-color ", "--version "}},
        {"\nrun and print:\n",
         {"-c ", "-f ", "--stacks ", "--tasks ", "--greenlets ", "--json "}},
        {"\nwhich processes:\n",
         {"--list ", "--clean ", "--all ", "--children ", "--match "}},
        {"\nelsewhere:\n", {"--host ", "--exec "}},
    };
    const char *out = NULL;
    assert_int_equal(run_command(CLI("--help"), NULL, &out, NULL), 0);

    const char *at = out;
    for (size_t i = 0; i < sizeof(groups) / sizeof(groups[0]); i++) {
        at = strstr(at, groups[i].heading);
        assert_non_null(at);
        at += strlen(groups[i].heading);
        const char *end = strstr(at, "\n\n");
        for (size_t j = 0; j < 6 && groups[i].options[j] != NULL; j++) {
            const char *entry = strstr(at, format_text("  %s", groups[i].options[j]));
            assert_true(entry != NULL && (end == NULL || entry < end));
        }
    }
}

#define SIGNAL_NUMBERS                                                                   \
  "1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, "      \
  "23, 24, 25, 26, 27, 28, 29, 30, 31, 34, 64"
#define NOT_A_PID                                                                        \
  "argument PID: PID must be in one of these forms: 1234 or /tmp/manhole-1234"

/* The texts are those of argparse for python-manhole's own parser, save those for process 0, which
 * is no process, and to signal it would hit the client itself; for an argument that is no number
 * but a word of its own (1_0, --); and for a letter or an argument too much, where getopt does not
 * know the word. */
#define MEANS(error, ...)                                                                \
  {                                                                                      \
    .arguments = {__VA_ARGS__}, .text = MISTAKE(error)                                   \
  }
static const struct mistake {
    const char *arguments[6];
    const char *text;
} mistakes[] = {
    MEANS("the following arguments are required: PID", NULL),
    MEANS("the following arguments are required: PID", "-1"),
    MEANS("the following arguments are required: PID", "--"),
    MEANS("the following arguments are required: PID", "-5"),
    MEANS("the following arguments are required: PID", "--bogus"),
    MEANS("unrecognized arguments: --bogus", "--bogus", "1"),
    MEANS("unrecognized arguments: 2", "1", "2"),
    MEANS("unrecognized arguments: -x 2 3", "1", "2", "-x", "3"),
    MEANS("unrecognized arguments: -2", "-1", "1", "--", "-2"),
    MEANS("unrecognized arguments: -USR12", "-USR12", "1"),
    MEANS(NOT_A_PID, "abc"),
    MEANS(NOT_A_PID, ""),
    MEANS(NOT_A_PID, "-"),
    MEANS(NOT_A_PID, "0"),
    MEANS(NOT_A_PID, "manhole-12"),
    MEANS(NOT_A_PID, "/tmp/manhole-"),
    MEANS(NOT_A_PID, "/tmp/manhole-1x"),
    MEANS(NOT_A_PID, "/etc/passwd"),
    MEANS(NOT_A_PID, "--", "-1"),
    MEANS("argument -t/--timeout: invalid float value: 'abc'", "-t", "abc", "1"),
    MEANS("argument -t/--timeout: invalid float value: ''", "--timeout=", "1"),
    MEANS("argument -t/--timeout: invalid float value: '0x1'", "-t0x1", "1"),
    MEANS("argument -t/--timeout: invalid float value: '1_0'", "-t1_0", "1"),
    MEANS("argument -t/--timeout: invalid float value: '--'", "-t", "--", "1"),
    MEANS("argument -t/--timeout: expected one argument", "1", "-t"),
    MEANS("argument -s/--signal: expected one argument", "1", "-s"),
    MEANS("argument -s/--signal: Invalid signal number 99. Expected one "
          "of: " SIGNAL_NUMBERS,
          "-s", "99", "1"),
    MEANS("argument -s/--signal: Invalid signal number -5. Expected one "
          "of: " SIGNAL_NUMBERS,
          "-s-5", "1"),
    MEANS("argument -s/--signal: Invalid signal name 'FOO'.", "-s", "foo", "1"),
    MEANS("argument -s/--signal: Invalid signal name \"F'OO\".", "-s", "f'oo", "1"),
    MEANS("argument -s/--signal: Invalid signal name 'A\\n\\udcff'.", "-s", "a\n\xff",
          "1"),
    MEANS("argument -s/--signal: Invalid signal name 'SIGSIGINT'.", "-s", "SIGSIGINT",
          "1"),
    MEANS("argument -s/--signal: Invalid signal name ''.", "--signal=", "1"),
    MEANS("argument -2/-USR2: not allowed with argument -1/-USR1", "-1", "-2", "1"),
    MEANS("argument -2/-USR2: not allowed with argument -1/-USR1", "-12", "1"),
    MEANS("argument -1/-USR1: not allowed with argument -s/--signal", "-s9", "-1", "1"),
    MEANS("argument -s/--signal: not allowed with argument -1/-USR1", "-1s9", "1"),
    MEANS("ambiguous option: -U could match -USR1, -USR2", "-U", "1"),
    MEANS("unrecognized arguments: -1x", "-1x", "1"),
    MEANS("unrecognized arguments: -1=3", "-1=3", "1"),
    MEANS("unrecognized arguments: --stacks=3", "--stacks=3", "1"),
    MEANS("argument --attach: not with --list, --clean or top", "--attach", "--list"),
    MEANS("argument --attach: not with --list, --clean or top", "--attach", "top"),
    MEANS("argument --keep: only with --attach", "--keep", "1"),
    MEANS("argument --module: only with --attach", "--module", "m.so", "--detach", "1"),
};

static void
every_mistake_is_answered_as_by_argparse(void)
{
    for (size_t i = 0; i < sizeof(mistakes) / sizeof(mistakes[0]); i++) {
        const char *const *a = mistakes[i].arguments;
        const char *out = NULL;
        const char *err = NULL;

        int status = run_command(CLI(a[0], a[1], a[2], a[3], a[4]), NULL, &out, &err);

        if (status != 2 || strcmp(err, mistakes[i].text) != 0 || out[0] != '\0') {
            fail_msg(
                "row %zu (%s): status %d, stdout \"%s\", stderr \"%s\", expected \"%s\"",
                i, a[0] != NULL ? a[0] : "", status, out, err, mistakes[i].text);
        }
    }
}

static void
socket_path_beyond_sun_path_is_a_mistake(void)
{
    char name[101];
    const char *err = NULL;
    (void)memset(name, 'x', sizeof(name) - 1);
    name[sizeof(name) - 1] = '\0';
    assert_int_equal(chdir(test_directory()), 0); /* the name alone does fit */
    int listener = listen_at(name);
    assert_int_equal(chdir("/"), 0);

    assert_int_equal(run_command(CLI(test_path(name)), NULL, NULL, &err), 2);

    assert_contains(err, "the path of a socket has at most 107 bytes");
    (void)close(listener);
}

/* ======================================================================================
 * Signals. They go to this process, which catches them, for no others are sent, has them blocked
 * and looks whether they came.
 * ======================================================================================
 */

static void
take_no_notice(int number)
{
    (void)number;
}

/* Has handlers for all signals that can have one, or what was there before. */
static void
catch_all(bool is_begin)
{
    static struct sigaction before[NSIG];
    const struct sigaction action = {.sa_handler = take_no_notice};

    for (int number = 1; number < NSIG; number++) {
        if (is_begin) {
            before[number].sa_handler = SIG_DFL;
            (void)sigaction(number, &action, &before[number]);
        }
        else {
            (void)sigaction(number, &before[number], NULL);
        }
    }
}

/* Runs manhole-cli, without waiting for a manhole, on arguments of which "PID" stands for
 * this process. Returns the signal that came, or 0. */
static int
signal_sent_by(const char *const arguments[])
{
    const struct timespec at_once = {.tv_sec = 0};
    const char *argv[10] = {build_path("manhole-cli"), "-t0"};
    sigset_t all;
    sigset_t before;

    for (size_t i = 0; arguments[i] != NULL; i++) {
        argv[i + 2] = strcmp(arguments[i], "PID") == 0 ? own_pid() : arguments[i];
    }
    (void)sigfillset(&all);
    (void)sigdelset(&all, SIGCHLD);
    assert_int_equal(pthread_sigmask(SIG_BLOCK, &all, &before), 0);
    catch_all(true);
    int status = run_command(argv, NULL, NULL, NULL);
    int got = sigtimedwait(&all, NULL, &at_once);
    catch_all(false);
    assert_int_equal(pthread_sigmask(SIG_SETMASK, &before, NULL), 0);
    assert_int_equal(status, 5);
    return got > 0 ? got : 0;
}

/* The numbers of the real-time signals are no constants, so rows say LAST for SIGRTMAX. */
enum { LAST = -1 };

#define SENDS(signal_number, ...)                                                        \
  {                                                                                      \
    .arguments = {__VA_ARGS__}, .number = (signal_number)                                \
  }
static const struct spelling {
    const char *arguments[6];
    int number;
} spellings[] = {
    SENDS(0, "PID"),
    SENDS(SIGUSR1, "-1", "PID"),
    SENDS(SIGUSR1, "PID", "-1"),
    SENDS(SIGUSR1, "-USR1", "PID"),
    SENDS(SIGUSR2, "-2", "PID"),
    SENDS(SIGUSR2, "-USR2", "PID"),
    SENDS(SIGUSR1, "-1t0", "PID"),
    SENDS(SIGUSR1, "-1t", "0", "PID"),
    SENDS(SIGUSR1, "-11", "PID"),
    SENDS(SIGUSR1, "-1", "--", "PID"),
    SENDS(SIGUSR1, "-1", "PID", "--"),
    SENDS(SIGUSR2, "-s", "USR2", "PID"),
    SENDS(SIGUSR2, "-sUSR2", "PID"),
    SENDS(SIGUSR2, "-s=USR2", "PID"),
    SENDS(SIGUSR2, "-s", "12", "PID"),
    SENDS(SIGUSR2, "-s", "SIGUSR2", "PID"),
    SENDS(SIGUSR2, "-s", "sigusr2", "PID"),
    SENDS(SIGUSR2, "-s", "usr2", "PID"),
    SENDS(SIGHUP, "-s", "hup", "PID"),
    SENDS(SIGWINCH, "-s1", "-s", "winch", "PID"),
    SENDS(LAST, "-srtmax", "PID"),
    SENDS(LAST, "-s64", "PID"),
    SENDS(SIGUSR2, "--signal=USR2", "PID"),
    SENDS(SIGUSR2, "--signal", "USR2", "PID"),
    SENDS(SIGUSR2, "--sig=USR2", "PID"),
    SENDS(SIGUSR2, "--s", "12", "PID"),
    SENDS(SIGUSR2, "PID", "--signal=12", "--time=0"),
};

static void
signal_is_meant_by_number_name_and_signame(void)
{
    for (size_t i = 0; i < sizeof(spellings) / sizeof(spellings[0]); i++) {
        int expected = spellings[i].number == LAST ? SIGRTMAX : spellings[i].number;

        if (spellings[i].number == LAST && is_wrapped()) {
            continue; /* valgrind keeps that one for itself */
        }
        int got = signal_sent_by(spellings[i].arguments);

        if (got != expected) {
            fail_msg("row %zu (%s): signal %d came, expected %d", i,
                     spellings[i].arguments[0], got, expected);
        }
    }
}

static void
signal_to_nobody_is_an_error(void)
{
    struct process *gone = start_idle_process();
    const char *err = NULL;
    end_idle_process(gone);

    assert_int_equal(run_command(CLI("-1", pid_of(gone)), NULL, NULL, &err), 3);

    assert_string_equal(
        err,
        format_text("manhole-cli: error: cannot send signal 10 (USR1) to process %d: "
                    "No such process; look for its number with ps or pgrep\n",
                    (int)gone->pid));
}

static void
signal_to_a_process_of_another_user_is_an_error(void)
{
    need_root();
    const char *program = test_path("manhole-cli"); /* where any user may run it */
    const char *err = NULL;
    assert_int_equal(
        run_command(LIST("install", "-m755", build_path("manhole-cli"), program), NULL,
                    NULL, NULL),
        0);

    struct process *cli =
        start_process(.argv = LIST(program, "-1", own_pid()), .uid = NOBODY);

    assert_int_equal(run_process(cli, NULL, NULL, &err), 3);
    assert_string_equal(err,
                        format_text("manhole-cli: error: process %s belongs to root; "
                                    "run manhole-cli as root\n",
                                    own_pid()));
}

static void
signal_for_a_path_that_is_served_is_not_sent(void)
{
    const char *path = test_path("own.sock");
    int listener = listen_at(path);
    sigset_t wanted;
    sigset_t pending;
    (void)sigemptyset(&wanted);
    (void)sigaddset(&wanted, SIGUSR1);
    assert_int_equal(pthread_sigmask(SIG_BLOCK, &wanted, NULL), 0);
    catch_all(true);

    struct process *cli = start_process(.argv = CLI("-1", path));
    int client = accept_client(listener);
    (void)close(client);
    int status = wait_for_exit(cli, DEADLINE);

    (void)sigpending(&pending);
    catch_all(false);
    assert_int_equal(pthread_sigmask(SIG_UNBLOCK, &wanted, NULL), 0);
    assert_int_equal(sigismember(&pending, SIGUSR1), 0);
    assert_int_equal(status, 0);
    stop_listening(listener, path);
}

static void
signal_for_a_path_where_nobody_answers_is_an_error(void)
{
    const char *path = test_path("own.sock");
    const char *err = NULL;
    (void)close(listen_at(path));

    assert_int_equal(run_command(CLI("-1", path), NULL, NULL, &err), 3);

    assert_string_equal(
        err,
        format_text("manhole-cli: error: cannot tell whom to send signal 10, nobody "
                    "answers at '%s': Connection refused; give the PID of the process "
                    "instead\n",
                    path));
}

static void
signal_is_not_sent_where_another_process_serves_the_path(void)
{
    struct process *asked = start_idle_process();
    const char *path = test_path(format_text("manhole-%d", (int)asked->pid));
    int listener = listen_at(path);
    const char *err = NULL;

    assert_int_equal(run_command(CLI("-s9", path), NULL, NULL, &err), 4);

    assert_contains(err, "nothing was sent");
    end_idle_process(asked); /* with 0: no signal came */
    stop_listening(listener, path);
}

/* ======================================================================================
 * Paths, and the way to a connection.
 * ======================================================================================
 */

/* Runs manhole-cli on this argument against a server that says one word. */
static void
expect_served(const char *pid_argument, const char *path)
{
    int listener = listen_at(path);
    struct process *cli = start_process(.argv = CLI(pid_argument));
    int client = accept_client(listener);
    say(client, "hello\n");
    (void)close(client);
    stop_listening(listener, path);
    assert_int_equal(wait_for_exit(cli, DEADLINE), 0);
    assert_string_equal(text_of(cli, OUT), "hello\n");
    assert_string_equal(text_of(cli, ERR), "");
}

static void
number_means_the_socket_of_that_process(void)
{
    expect_served(own_pid(), own_path());
}

static void
number_means_that_also_where_a_socket_has_this_name(void)
{
    const char *decoy = test_path(own_pid());
    int listener = listen_at(decoy);
    expect_served(own_pid(), own_path());
    stop_listening(listener, decoy);
}

static void
path_of_that_socket_means_the_same(void)
{
    expect_served(own_path(), own_path());
}

static void
path_that_ends_like_that_means_the_same(void)
{
    expect_served(format_text("/no/such/place/manhole-%s", own_pid()), own_path());
}

static void
path_that_ends_like_that_is_used_where_it_is_a_socket(void)
{
    const char *path = test_path(format_text("manhole-%s", own_pid()));
    expect_served(path, path);
}

static void
path_of_any_socket_is_used(void)
{
    expect_served(test_path("own.sock"), test_path("own.sock"));
}

static void
name_of_a_socket_in_the_working_directory_is_used(void)
{
    expect_served("own.sock", test_path("own.sock"));
}

/* The first line is all that python-manhole's client says. */
static const char *
timeout_at_a_process_without_manhole(void)
{
    return format_text(
        "Failed to connect to '%s': Timeout\n"
        "manhole-cli: error: process %s seems to have no manhole: it wants "
        "manhole.install(), or PYTHONMANHOLE in its environment, when it "
        "starts; 'manhole-cli --attach %s' puts one in\n",
        own_path(), own_pid(), own_pid());
}

static void
nobody_there_is_a_timeout(void)
{
    const char *err = NULL;
    long start_ms = now_ms();

    assert_int_equal(run_command(CLI("-t0.3", own_pid()), NULL, NULL, &err), 5);

    assert_string_equal(err, timeout_at_a_process_without_manhole());
    assert_true(now_ms() - start_ms >= 300);
}

static void
socket_that_nobody_serves_is_a_timeout(void)
{
    const char *err = NULL;
    (void)close(listen_at(own_path()));

    assert_int_equal(run_command(CLI("-t", ".1", own_pid()), NULL, NULL, &err), 5);

    assert_string_equal(err, timeout_at_a_process_without_manhole());
    (void)unlink(own_path());
}

static void
server_may_come_late(void)
{
    struct process *cli = start_process(.argv = CLI("-t", "inf", own_pid()));
    watch_for(50); /* so that it has failed by then */

    int listener = listen_at(own_path());
    (void)close(accept_client(listener));

    stop_listening(listener, own_path());
    assert_int_equal(wait_for_exit(cli, DEADLINE), 0);
    assert_string_equal(text_of(cli, ERR), "");
}

static void
full_queue_of_the_server_is_a_timeout(void)
{
    int listener = listen_as(own_path(), geteuid(), 0);
    struct client *first = connect_client(own_path());
    const char *err = NULL;

    assert_int_equal(run_command(CLI("-t", ".2", own_pid()), NULL, NULL, &err), 5);

    assert_string_equal(err, timeout_at_a_process_without_manhole());
    client_close(first);
    stop_listening(listener, own_path());
}

static void
other_failure_is_said_once(void)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    const char *path = test_path("datagrams");
    const char *err = NULL;
    int fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    (void)snprintf(address.sun_path, sizeof(address.sun_path), "%s", path);
    assert_int_equal(bind(fd, (struct sockaddr *)&address, sizeof(address)), 0);

    assert_int_equal(run_command(CLI("-t", ".2", path), NULL, NULL, &err), 5);

    assert_string_equal(
        err,
        format_text("Failed to connect to '%s': OSError(91, 'Protocol wrong type for "
                    "socket')\n"
                    "Failed to connect to '%s': Timeout\n",
                    path, path));
    (void)close(fd);
}

/* ======================================================================================
 * Who serves.
 * ======================================================================================
 */

/* With input that waits from the start. */
static struct process *
start_with_secret(const char *pid_argument)
{
    return start_process(.argv = LIST("sh", "-c", "exec \"$0\" \"$1\" <\"$2\"",
                                      build_path("manhole-cli"), pid_argument,
                                      write_file("input", "secret\n")));
}

static void
server_of_another_uid_gets_no_byte(void)
{
    need_root();
    const char *path = test_path("own.sock");
    int listener = listen_as(path, NOBODY, 8);

    struct process *cli = start_with_secret(path);
    int client = accept_client(listener);
    (void)send(client, "trust me\n", 9, MSG_NOSIGNAL);

    assert_int_equal(wait_for_exit(cli, DEADLINE), 4);
    assert_string_equal(hear_all(client), "");
    assert_string_equal(text_of(cli, OUT), "");
    assert_matches(text_of(cli, ERR),
                   format_text("^manhole-cli: error: '%s' is served by PID:%d UID:65534 "
                               "GID:[0-9]+, not by UID:0 or root; nothing was sent",
                               path, (int)getpid()));
    (void)close(client);
    stop_listening(listener, path);
}

static void
socket_of_a_process_served_by_another_gets_no_byte(void)
{
    struct process *asked = start_idle_process();
    const char *path = socket_path_of(asked->pid);
    int listener = listen_at(path);

    struct process *cli = start_with_secret(pid_of(asked));
    int client = accept_client(listener);

    assert_int_equal(wait_for_exit(cli, DEADLINE), 4);
    assert_string_equal(hear_all(client), "");
    assert_contains(text_of(cli, ERR), format_text("'%s' is served by PID:%d UID:%u ",
                                                   path, (int)getpid(), geteuid()));
    assert_contains(text_of(cli, ERR),
                    format_text(", not by PID:%d UID:%u;", (int)asked->pid, geteuid()));
    end_idle_process(asked);
    (void)close(client);
    stop_listening(listener, path);
}

static void
root_may_talk_to_the_process_of_any_user(void)
{
    need_root();
    int listener = -1;
    /* the process asked for is this one: its effective uid is nobody's meanwhile */
    struct process *cli = start_process(.argv = CLI("-t", "inf", own_pid()));
    assert_int_equal(seteuid(NOBODY), 0);
    listener = listen_at(own_path());
    int client = accept_client(listener);
    say(client, "hello\n");
    (void)close(client);
    int status = wait_for_exit(cli, DEADLINE);
    assert_int_equal(seteuid(0), 0);

    assert_int_equal(status, 0);
    assert_string_equal(text_of(cli, OUT), "hello\n");
    stop_listening(listener, own_path());
}

/* He has put it there for who asks for a process that has ended, and whose number he has now. */
static void
user_is_not_taken_in_by_the_process_of_another(void)
{
    need_root();
    const uid_t other = 1;
    struct process *cli =
        start_process(.argv = CLI("-t", "inf", own_pid()), .uid = NOBODY);
    assert_int_equal(seteuid(other), 0);
    mode_t umask_before = umask(0);
    int listener = listen_at(own_path());
    (void)umask(umask_before);
    int client = accept_client(listener);
    int status = wait_for_exit(cli, DEADLINE);
    assert_int_equal(seteuid(0), 0);

    assert_int_equal(status, 4);
    assert_string_equal(hear_all(client), "");
    assert_contains(text_of(cli, ERR),
                    format_text("is served by PID:%s UID:1 ", own_pid()));
    (void)close(client);
    stop_listening(listener, own_path());
}

static void
client_shows_its_calling_card(void)
{
    struct sockaddr_un card = {.sun_family = AF_UNIX};
    socklen_t size = sizeof(card);
    int listener = listen_at(own_path());
    struct process *cli = start_process(.argv = CLI(own_pid()));

    int client = accept_client(listener);
    assert_int_equal(getpeername(client, (struct sockaddr *)&card, &size), 0);

    assert_int_equal(card.sun_path[0], '\0');
    const char *name =
        format_text("%.*s", (int)(size - offsetof(struct sockaddr_un, sun_path) - 1),
                    card.sun_path + 1);
    assert_matches(name, format_text("^manhole-cli/%d\\.[0-9]+/repl$", (int)cli->pid));
    (void)close(client);
    stop_listening(listener, own_path());
    assert_int_equal(wait_for_exit(cli, DEADLINE), 0);
}

/* ======================================================================================
 * Input and output.
 * ======================================================================================
 */

static void
piped_input_brings_all_its_output(void)
{
    struct process *app = start_server(
        SERVER("client.sendall(b'>>> ')\n"
               "code = read_all()\n" /* returns at the end of the client's input */
               "client.sendall(code.upper())\n"));
    const char *out = NULL;

    assert_int_equal(run_command(CLI(pid_of(app)), "print(1)\n", &out, NULL), 0);

    assert_string_equal(out, ">>> PRINT(1)\n");
}

static void
piped_input_works_on_a_real_manhole(void)
{
    struct process *app = start_target(TARGET(""));
    const char *out = NULL;
    wait_until_ready(app);

    assert_int_equal(run_command(CLI(pid_of(app)), "print(6 * 7)\n", &out, NULL), 0);

    assert_contains(out, "(ManholeConsole)\n>>> 42\n");
    close_stdin(app);
    assert_int_equal(wait_for_exit(app, DEADLINE), 0);
}

static void
close_by_the_server_ends_it_while_stdin_is_open(void)
{
    int listener = listen_at(own_path());
    struct process *cli = start_process(.argv = CLI(own_pid()));

    (void)close(accept_client(listener));

    assert_int_equal(wait_for_exit(cli, DEADLINE), 0);
    stop_listening(listener, own_path());
}

static void
close_with_input_unread_is_an_end_as_well(void)
{
    int listener = listen_at(own_path());
    struct process *cli = start_process(.argv = CLI(own_pid()));
    int client = accept_client(listener);
    write_stdin(cli, "exit()\nnever read\n");
    wait_until(has_input, &client, "the input is there", DEADLINE); /* or to be read */
    say(client, "bye\n");

    (void)close(client);

    assert_int_equal(wait_for_exit(cli, DEADLINE), 0);
    assert_string_equal(text_of(cli, OUT), "bye\n");
    stop_listening(listener, own_path());
}

static void
killed_server_ends_it(void)
{
    struct process *app = start_server(SERVER("print('accepted', flush=True)\n"
                                              "read_all()\n"));
    struct process *cli = start_process(.argv = CLI(pid_of(app)));
    wait_for_text(app, OUT, "accepted", DEADLINE);

    send_signal(app, SIGKILL);

    assert_int_equal(wait_for_exit(cli, DEADLINE), 6);
    assert_string_equal(text_of(cli, ERR),
                        format_text("manhole-cli: error: process %s has ended before its "
                                    "console was left\n",
                                    pid_of(app)));
}

static long
cpu_time_ms(const struct process *process)
{
    struct timespec used = {.tv_sec = 0};
    clockid_t clock = CLOCK_REALTIME;
    assert_int_equal(clock_getcpuclockid(process->pid, &clock), 0);
    assert_int_equal(clock_gettime(clock, &used), 0);
    return used.tv_sec * 1000 + used.tv_nsec / 1000000;
}

static void
waiting_costs_no_processor_time(void)
{
    int listener = listen_at(own_path());
    struct process *cli = start_process(.argv = CLI(own_pid()));
    int client = accept_client(listener);
    close_stdin(cli);
    assert_string_equal(hear_all(client), "");

    long before_ms = cpu_time_ms(cli);
    watch_for(200);

    assert_true(cpu_time_ms(cli) - before_ms < 20);
    (void)close(client);
    stop_listening(listener, own_path());
    assert_int_equal(wait_for_exit(cli, DEADLINE), 0);
}

/* One byte sequence of every value, NUL and invalid UTF-8 included, both ways. */
static void
bytes_pass_as_they_are(void)
{
    struct process *app = start_server(SERVER("client.sendall(read_all()[::-1])\n"));
    const char *command = format_text(
        "import subprocess, sys\n"
        "every = bytes(range(256)) * 300\n"
        "run = subprocess.run(sys.argv[1:], input=every, stdout=subprocess.PIPE)\n"
        "print(run.returncode, run.stdout == every[::-1])\n");
    const char *out = NULL;

    run_command(LIST(python(), "-c", command, build_path("manhole-cli"), pid_of(app)),
                NULL, &out, NULL);

    assert_string_equal(out, "0 True\n");
}

static void
big_input_arrives_whole(void)
{
    struct process *app =
        start_server(SERVER("data = read_all()\n"
                            "good = data == b'0123456789abcde\\n' * (len(data) // 16)\n"
                            "client.sendall(b'%d %r' % (len(data), good))\n"));
    char *input = calloc(BIG_INPUT + 1, 1);
    const char *out = NULL;
    assert_non_null(input);
    for (size_t i = 0; i < BIG_INPUT; i++) {
        input[i] = "0123456789abcde\n"[i % 16];
    }

    int status = run_command(CLI(pid_of(app)), input, &out, NULL);

    free(input);
    assert_int_equal(status, 0);
    assert_string_equal(out, format_text("%d True", BIG_INPUT));
}

static void
big_output_arrives_whole(void)
{
    struct process *app = start_server(SERVER("client.sendall(b'0123456789abcde\\n' * ("
                                              "50 << 16"
                                              "))\n"));
    const char *out = NULL;

    assert_int_equal(run_command(CLI(pid_of(app)), "", &out, NULL), 0);

    assert_int_equal(strlen(out), BIG_OUTPUT);
    for (size_t i = 0; i < BIG_OUTPUT; i++) {
        if (out[i] != "0123456789abcde\n"[i % 16]) {
            fail_msg("byte %zu is wrong", i);
        }
    }
}

/* The server neither reads nor closes before it has said all, and the input is more than
 * what sockets and pipes hold. */
static void
server_that_reads_nothing_does_not_hold_up_output(void)
{
    int listener = listen_at(own_path());
    struct process *feeder =
        start_process(.argv = LIST("sh", "-c", "yes | \"$0\" \"$1\"",
                                   build_path("manhole-cli"), own_pid()));
    int client = accept_client(listener);
    wait_until(has_input, &client, "input has come", DEADLINE);
    watch_for(100); /* the socket fills */

    say(client, "still here\n");

    wait_for_text(feeder, OUT, "still here\n", DEADLINE);
    (void)close(client);
    assert_int_equal(wait_for_exit(feeder, DEADLINE), 0);
    stop_listening(listener, own_path());
}

/* The other way round: who does not read our output must still be able to give input. */
static void
output_that_nobody_reads_does_not_hold_up_input(void)
{
    struct process *app = start_server(SERVER(
        "import threading\n"
        "threading.Thread(target=client.sendall, args=(b'x' * (8 << 20),)).start()\n"
        "line = client.recv(100)\n"
        "print('heard', line, flush=True)\n"
        "read_all()\n"));
    const char *command =
        "import fcntl, os, subprocess, sys, time\n"
        "out, theirs = os.pipe()\n"
        "fcntl.fcntl(theirs, 1031, 8192)\n" /* F_SETPIPE_SZ: less than a chunk */
        "run = subprocess.Popen(sys.argv[1:], stdin=subprocess.PIPE, stdout=theirs)\n"
        "os.close(theirs)\n"
        "time.sleep(0.2)\n" /* stdout fills */
        "run.stdin.write(b'hello')\n"
        "run.stdin.flush()\n"
        "sys.stdin.read()\n"
        "run.stdin.close()\n"
        "length = len(open(out, 'rb').read())\n"
        "print(run.wait(), length)\n";
    struct process *driver =
        start_process(.argv = LIST(python(), "-c", command, build_path("manhole-cli"),
                                   pid_of(app)));

    wait_for_text(app, OUT, "heard b'hello'", DEADLINE);

    close_stdin(driver);
    assert_int_equal(wait_for_exit(driver, DEADLINE), 0);
    assert_string_equal(text_of(driver, OUT), format_text("0 %d\n", 8 << 20));
}

/* Runs a command against a server that says one word when the client's input has ended.
 * Returns what the command prints. */
static const char *
run_against_server(const char *const argv[])
{
    int listener = listen_at(own_path());
    struct process *command = start_process(.argv = argv);
    int client = accept_client(listener);
    assert_string_equal(hear_all(client), "");
    say(client, "hello\n");
    (void)close(client);
    stop_listening(listener, own_path());
    (void)wait_for_exit(command, DEADLINE);
    return text_of(command, OUT);
}

/* The same with a shell command, in which $0 is manhole-cli and $1 this process. */
static const char *
run_in_shell(const char *command)
{
    return run_against_server(
        LIST("sh", "-c", command, build_path("manhole-cli"), own_pid()));
}

static void
stdin_may_be_dev_null(void)
{
    assert_string_equal(run_in_shell("\"$0\" \"$1\" </dev/null; echo $?"), "hello\n0\n");
}

static void
stdin_may_be_closed(void)
{
    assert_string_equal(run_in_shell("\"$0\" \"$1\" <&-; echo $?"), "hello\n0\n");
}

static void
stdout_may_be_a_file(void)
{
    assert_string_equal(run_in_shell("\"$0\" \"$1\" </dev/null >out; echo $?; cat out"),
                        "0\nhello\n");
}

static void
full_disk_is_an_error(void)
{
    assert_string_equal(run_in_shell("\"$0\" \"$1\" </dev/null 2>&1 >/dev/full; echo $?"),
                        "manhole-cli: error: cannot write to standard output: No space "
                        "left on device\n1\n");
}

static void
output_that_nobody_wants_ends_it_quietly(void)
{
    const char *command = "import os, subprocess, sys\n"
                          "gone, out = os.pipe()\n"
                          "os.close(gone)\n"
                          "null = subprocess.DEVNULL\n"
                          "print(subprocess.run(sys.argv[1:], stdin=null, stdout=out,\n"
                          "                     stderr=sys.stdout).returncode)\n";
    const char *out = run_against_server(
        LIST(python(), "-c", command, build_path("manhole-cli"), own_pid()));

    assert_string_equal(out, "141\n");
}

/* ======================================================================================
 * At a terminal.
 * ======================================================================================
 */

/* Starts it at a terminal against a server of the test's. */
static struct process *
start_at_terminal(int listener, int *client)
{
    struct process *cli = start_process(.argv = CLI(own_pid()), .terminal = true);
    *client = accept_client(listener);
    say(*client, ">>> ");
    wait_for_text(cli, OUT, ">>> ", DEADLINE);
    return cli;
}

/* Of a server that knows no interrupts: the client asks for one by a second connection. */
static bool
catches_interrupts(void *process)
{
    const char *status =
        read_file(format_text("/proc/%d/status", (int)((struct process *)process)->pid));
    const char *caught = strstr(status, "SigCgt:");
    return caught != NULL &&
           (strtoul(caught + strlen("SigCgt:"), NULL, 16) & 1UL << (SIGINT - 1)) != 0;
}

static void
interrupt_ends_the_wait_for_a_server_with_130(void)
{
    struct process *cli = start_process(.argv = CLI("-t", "60", own_pid()));
    wait_until(catches_interrupts, cli, "manhole-cli has begun", DEADLINE);
    send_signal(cli, SIGINT);
    assert_int_equal(wait_for_exit(cli, DEADLINE), 130);
}

static void
ctrl_c_ends_it_with_130(void)
{
    int client = -1;
    int listener = listen_at(own_path());
    struct process *cli = start_at_terminal(listener, &client);

    write_stdin(cli, "\003");
    (void)close(accept_client(listener));

    assert_int_equal(wait_for_exit(cli, DEADLINE), 130);
    (void)close(client);
    stop_listening(listener, own_path());
}

static void
ctrl_d_ends_the_input_alone(void)
{
    int client = -1;
    int listener = listen_at(own_path());
    struct process *cli = start_at_terminal(listener, &client);

    write_stdin(cli, "exit\n\004");
    assert_string_equal(hear_all(client), "exit\n");
    say(client, "goodbye");
    (void)close(client);

    wait_for_text(cli, OUT, "goodbye", DEADLINE);
    assert_int_equal(wait_for_exit(cli, DEADLINE), 0);
    stop_listening(listener, own_path());
}

static void
lines_typed_are_appended_to_the_history(void)
{
    const char *path = write_file(".manhole_history", "from before\n");
    int client = -1;
    int listener = listen_at(own_path());
    struct process *cli = start_at_terminal(listener, &client);

    write_stdin(cli, "print(1)\n\n  x = 2\n\004");
    (void)hear_all(client);
    (void)close(client);

    assert_int_equal(wait_for_exit(cli, DEADLINE), 0);
    assert_string_equal(read_file(path), "from before\nprint(1)\n  x = 2\n");
    stop_listening(listener, own_path());
}

static void
new_history_is_for_its_owner_alone(void)
{
    struct stat status;
    int client = -1;
    int listener = listen_at(own_path());
    mode_t before = umask(0);
    struct process *cli = start_at_terminal(listener, &client);
    (void)umask(before);

    (void)close(client);

    assert_int_equal(wait_for_exit(cli, DEADLINE), 0);
    assert_int_equal(stat(test_path(".manhole_history"), &status), 0);
    assert_int_equal(status.st_mode & 07777, 0600);
    stop_listening(listener, own_path());
}

static void
history_that_others_could_read_is_closed_to_them(void)
{
    struct stat status;
    int client = -1;
    int listener = listen_at(own_path());
    assert_int_equal(chmod(write_file(".manhole_history", "1\n"), 0644), 0);
    struct process *cli = start_at_terminal(listener, &client);
    (void)close(client);
    assert_int_equal(wait_for_exit(cli, DEADLINE), 0);
    assert_int_equal(stat(test_path(".manhole_history"), &status), 0);
    assert_int_equal(status.st_mode & 07777, 0600);
    stop_listening(listener, own_path());
}

/* Who wants no history has a link to /dev/null there, which is everybody's. */
static void
history_that_is_a_device_stays_as_it_is(void)
{
    struct stat status;
    int client = -1;
    const char *device = test_path("null");
    if (mknod(device, S_IFCHR | 0666, makedev(1, 3)) < 0 || chmod(device, 0666) < 0) {
        skip_test("no device can be made here");
    }
    int listener = listen_at(own_path());
    assert_int_equal(symlink(device, test_path(".manhole_history")), 0);
    struct process *cli = start_at_terminal(listener, &client);
    write_stdin(cli, "a line\r");
    (void)close(client);
    assert_int_equal(wait_for_exit(cli, DEADLINE), 0);
    assert_int_equal(stat(device, &status), 0);
    assert_int_equal(status.st_mode & 07777, 0666);
    stop_listening(listener, own_path());
}

/* To half of what it may be at most, at the begin of a line. */
static void
history_that_is_too_long_is_shortened_from_its_front(void)
{
    enum { LINES = 60000, LINE = 20, HISTORY_SIZE = 1024 * 1024 };
    char *text = malloc(LINES * LINE + 1); /* owned */
    int client = -1;
    int listener = listen_at(own_path());
    assert_non_null(text);
    for (size_t i = 0; i < LINES; i++) {
        (void)snprintf(text + i * LINE, LINE + 1, "print(%012zu)\n", i);
    }
    (void)write_file(".manhole_history", text);
    struct process *cli = start_at_terminal(listener, &client);
    (void)close(client);
    assert_int_equal(wait_for_exit(cli, DEADLINE), 0);
    const char *kept = read_file(test_path(".manhole_history"));
    assert_in_range(strlen(kept), HISTORY_SIZE / 2 - LINE, HISTORY_SIZE / 2);
    assert_string_equal(kept, text + strlen(text) - strlen(kept));
    free(text);
    stop_listening(listener, own_path());
}

static void
piped_input_is_not_remembered(void)
{
    int listener = listen_at(own_path());
    struct process *cli = start_process(.argv = CLI(own_pid()));
    int client = accept_client(listener);

    write_stdin(cli, "print(1)\n");
    close_stdin(cli);
    assert_string_equal(hear_all(client), "print(1)\n");

    assert_no_path(test_path(".manhole_history"));
    (void)close(client);
    stop_listening(listener, own_path());
    assert_int_equal(wait_for_exit(cli, DEADLINE), 0);
}

int
main(void)
{
    static const struct test_case tests[] = {
        TEST(help_begins_as_python_manholes),
        TEST(help_groups_its_options),
        TEST(every_mistake_is_answered_as_by_argparse),
        TEST(socket_path_beyond_sun_path_is_a_mistake),
        TEST(signal_is_meant_by_number_name_and_signame),
        TEST(signal_to_nobody_is_an_error),
        TEST(signal_to_a_process_of_another_user_is_an_error),
        TEST(signal_for_a_path_that_is_served_is_not_sent),
        TEST(signal_for_a_path_where_nobody_answers_is_an_error),
        TEST(signal_is_not_sent_where_another_process_serves_the_path),
        TEST(number_means_the_socket_of_that_process),
        TEST(number_means_that_also_where_a_socket_has_this_name),
        TEST(path_of_that_socket_means_the_same),
        TEST(path_that_ends_like_that_means_the_same),
        TEST(path_that_ends_like_that_is_used_where_it_is_a_socket),
        TEST(path_of_any_socket_is_used),
        TEST(name_of_a_socket_in_the_working_directory_is_used),
        TEST(nobody_there_is_a_timeout),
        TEST(socket_that_nobody_serves_is_a_timeout),
        TEST(server_may_come_late),
        TEST(full_queue_of_the_server_is_a_timeout),
        TEST(other_failure_is_said_once),
        TEST(server_of_another_uid_gets_no_byte),
        TEST(socket_of_a_process_served_by_another_gets_no_byte),
        TEST(root_may_talk_to_the_process_of_any_user),
        TEST(user_is_not_taken_in_by_the_process_of_another),
        TEST(client_shows_its_calling_card),
        TEST(piped_input_brings_all_its_output),
        TEST(piped_input_works_on_a_real_manhole),
        TEST(close_by_the_server_ends_it_while_stdin_is_open),
        TEST(close_with_input_unread_is_an_end_as_well),
        TEST(killed_server_ends_it),
        TEST(waiting_costs_no_processor_time),
        TEST(bytes_pass_as_they_are),
        TEST(big_input_arrives_whole),
        TEST(big_output_arrives_whole),
        TEST(server_that_reads_nothing_does_not_hold_up_output),
        TEST(output_that_nobody_reads_does_not_hold_up_input),
        TEST(stdin_may_be_dev_null),
        TEST(stdin_may_be_closed),
        TEST(stdout_may_be_a_file),
        TEST(full_disk_is_an_error),
        TEST(output_that_nobody_wants_ends_it_quietly),
        TEST(interrupt_ends_the_wait_for_a_server_with_130),
        TEST(ctrl_c_ends_it_with_130),
        TEST(ctrl_d_ends_the_input_alone),
        TEST(lines_typed_are_appended_to_the_history),
        TEST(new_history_is_for_its_owner_alone),
        TEST(history_that_others_could_read_is_closed_to_them),
        TEST(history_that_is_a_device_stays_as_it_is),
        TEST(history_that_is_too_long_is_shortened_from_its_front),
        TEST(piped_input_is_not_remembered),
    };
    return RUN_TESTS(tests);
}
