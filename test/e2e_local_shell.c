/* e2e_local_shell.c - manhole-cli NAME.ini: ispyd's local shell, which finds the processes that a
 * configuration file means and connects to one.
 */
#include "support.h"

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#define CLI(...) LIST(build_path("manhole-cli"), __VA_ARGS__)

/* Writes test.ini, whose sockets are in the test's directory: i-PID. */
static void
write_config(const char *more)
{
    (void)write_file("test.ini", format_text("[ispyd]\nlisten = %s/i-%%(pid)s\n%s",
                                             test_directory(), more));
}

static struct process *
start_app(void)
{
    struct process *app = start_target(TARGET("config='test.ini'"));
    wait_until_ready(app);
    return app;
}

/* The socket of an application, as the file has it. */
static const char *
path_of(const struct process *app)
{
    return format_text("%s/i-%d", test_directory(), (int)app->pid);
}

/* A socket that nobody listens at. */
static const char *
leave_dead_socket(const char *name)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    const char *path = format_text("%s/%s", test_directory(), name);
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    (void)snprintf(address.sun_path, sizeof(address.sun_path), "%s", path);
    assert_int_equal(bind(fd, (const struct sockaddr *)&address, sizeof(address)), 0);
    (void)close(fd);
    return path;
}

/* What the local shell writes when it is given these lines. */
static const char *
tell(const char *lines)
{
    const char *out = NULL;
    assert_int_equal(run_command(CLI("test.ini"), lines, &out, NULL), 0);
    return out;
}

/* ---- The shell ---------------------------------------------------------------------- */

static void
help_lists_the_commands_as_ispyd_does(void)
{
    write_config("");
    assert_string_equal(tell("help\n? exit\nhelp nothing\nnothing\n\nexit\nhelp\n"),
                        "(manhole) \n"
                        "Documented commands (type help <topic>):\n"
                        "========================================\n"
                        "connect  exit  help  servers\n\n"
                        "(manhole) exit\n    Leave.\n"
                        "(manhole) *** No help on 'nothing'\n"
                        "(manhole) *** Unknown syntax: 'nothing'; \"help\" lists the "
                        "commands\n"
                        "(manhole) (manhole) ");
}

static void
servers_are_listed_by_number_and_dead_ones_marked(void)
{
    write_config("");
    struct process *app = start_app();
    const char *dead = leave_dead_socket("i-3");
    (void)leave_dead_socket("i-3x");
    (void)leave_dead_socket("i-");
    (void)leave_dead_socket("ii-3");
    (void)write_file("i-4", "no socket");
    assert_string_equal(tell("servers\n"),
                        format_text("(manhole) 1: (1, '%s') dead\n2: (1, '%s')\n"
                                    "(manhole) \n",
                                    dead, path_of(app)));
}

static void
connect_leads_to_the_one_with_that_number(void)
{
    write_config("");
    struct process *apps[2] = {start_app(), start_app()};
    int greater = apps[0]->pid < apps[1]->pid;
    const char *out = tell("servers\nconnect 2\n!process\npid\nexit\nexit\n");
    assert_contains(out, format_text("1: (1, '%s')\n2: (1, '%s')\n",
                                     path_of(apps[1 - greater]), path_of(apps[greater])));
    assert_contains(out, format_text("(process:%1$d) %1$d\n", (int)apps[greater]->pid));
}

static void
the_only_server_needs_no_number(void)
{
    write_config("");
    struct process *app = start_app();
    assert_string_equal(tell("connect\nexit\n"),
                        format_text("(manhole) (manhole:%d) ", (int)app->pid));
}

static void
selection_that_is_none_is_told_so(void)
{
    static const struct {
        const char *line;
        const char *answer;
    } rows[] = {
        {"connect", "Multiple servers, which should be used? \"servers\" lists them.\n"},
        {"connect two", "Server selection not an integer.\n"},
        {"connect 1.5", "Server selection not an integer.\n"},
        {"connect 0", "Invalid server selected: there are 1 to 2.\n"},
        {"connect 3", "Invalid server selected: there are 1 to 2.\n"},
        {"connect -1", "Invalid server selected: there are 1 to 2.\n"},
        {"connect 99999999999999999999", "Invalid server selected: there are 1 to 2.\n"},
        {"connect 1", "any more; \"servers\" looks again.\n"},
    };
    write_config("");
    assert_contains(tell("connect\n"),
                    "No servers to connect to: there is no socket like ");
    (void)leave_dead_socket("i-3");
    (void)leave_dead_socket("i-4");
    for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
        const char *out = tell(format_text("%s\nexit\n", rows[i].line));
        assert_contains(format_text("%s: %s", rows[i].line, out), rows[i].answer);
    }
}

static void
server_that_came_later_is_found(void)
{
    write_config("");
    struct process *shell = start_process(.argv = CLI("test.ini"));
    wait_for_text(shell, OUT, "(manhole) ", DEADLINE);
    write_stdin(shell, "servers\n");
    wait_for_text(shell, OUT, "(manhole) ", DEADLINE);
    struct process *app = start_app();
    write_stdin(shell, "servers\nconnect 1\n");
    wait_for_text(shell, OUT, format_text("(manhole:%d) ", (int)app->pid), DEADLINE);
    close_stdin(shell);
    assert_int_equal(wait_for_exit(shell, DEADLINE), 0);
}

/* Refused first, then enabled in the same file, and used. */
static void
console_is_refused_and_then_enabled_and_used(void)
{
    static const char session[] = "connect\nshell python\nthreads\nconsole\n6 * 7\n";
    write_config("plugins = %(builtins)s\n");
    struct process *app = start_app();
    const char *out = tell(session);
    assert_contains(out, "ThreadID=");
    assert_contains(out, "Sorry, the Python console is disabled.");
    assert_contains(out, "*** Unknown syntax: 6 * 7\n");
    close_stdin(app);
    assert_int_equal(wait_for_exit(app, DEADLINE), 0);
    write_config("plugins = %(builtins)s\n[python:console]\nenabled = true\n");
    (void)start_app();
    assert_contains(tell(session), "(ManholeConsole)\n>>> 42\n");
}

/* ---- The file ----------------------------------------------------------------------- */

static void
listen_may_have_the_number_more_than_once(void)
{
    (void)mkdir(test_path("7"), 0700);
    (void)mkdir(test_path("8"), 0700);
    (void)leave_dead_socket("7/door*-7");
    (void)leave_dead_socket("7/door*-8");
    (void)leave_dead_socket("8/doorx-8");
    (void)write_file("test.ini",
                     format_text("[manhole]\nlisten: %s/%%(pid)s/door*-%%(pid)s ; here\n",
                                 test_directory()));
    const char *out = tell("servers\n");
    assert_contains(out, "1: (1, '");
    assert_contains(out, "7/door*-7') dead\n(manhole) ");
}

static void
listen_may_have_no_number(void)
{
    (void)write_file("test.ini",
                     format_text("# ours\n[other]\nlisten = /nowhere\n[manhole]\n"
                                 "LISTEN = %s\n",
                                 test_path("door")));
    struct process *app = start_app();
    assert_contains(tell("servers\nconnect\nexit\n"),
                    format_text("1: (1, '%s')\n(manhole) (manhole:%d) ",
                                test_path("door"), (int)app->pid));
}

static void
listen_is_read_as_install_reads_it(void)
{
    static const struct {
        const char *before;
        const char *behind;
    } rows[] = {
        {"\xef\xbb\xbf[manhole]\nlisten = ", "\n  /nowhere\n"},
        {"[manhole]\n  plugins = a\n  listen = ", "\n"},
        {"[manhole]\nlisten =\n  # two places:\n\t", " ; the first\n  /nowhere\n"},
    };
    for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
        const char *path = leave_dead_socket(format_text("i-%zu", i + 1));
        (void)write_file("test.ini", format_text("%s%s/i-%%(pid)s%s", rows[i].before,
                                                 test_directory(), rows[i].behind));
        assert_contains(tell("servers\n"), format_text("(1, '%s') dead", path));
    }
}

static void
silent_server_can_be_listed_again(void)
{
    struct process *silent = start_target("import socket\n"
                                          "listener = socket.socket(socket.AF_UNIX)\n"
                                          "listener.bind('silent')\n"
                                          "listener.listen()\n" READY STAY);
    wait_until_ready(silent);
    (void)write_file("test.ini",
                     format_text("[manhole]\nlisten = %s\n", test_path("silent")));
    assert_contains(tell("servers\nservers\n"), test_path("silent"));
}

static void
without_listen_it_is_the_usual_socket(void)
{
    (void)write_file("test.ini", "[manhole]\n");
    struct process *app = start_app();
    assert_contains(tell("servers\n"),
                    format_text(": (1, '%s')\n", socket_path_of(app->pid)));
}

static void
wrong_file_is_named_with_the_line(void)
{
    static const struct {
        const char *content; /* NULL: there is no file */
        const char *message;
    } rows[] = {
        {NULL, "cannot read 'test.ini': No such file or directory\n"},
        {"", "'test.ini' has no section [manhole] or [ispyd]\n"},
        {"[manhole]\nlisten = /x\nnonsense\n",
         "'test.ini', line 3: 'nonsense' is neither [section] nor key = value\n"},
        {"[manhole]\nlisten = door\n",
         "'test.ini': listen must be the absolute path of a socket or host:port, not "
         "'door'\n"},
        {"[manhole]\nlisten = host:\n", "or host:port, not 'host:'\n"},
        {"[manhole]\nlisten = :1\n", "or host:port, not ':1'\n"},
        {"[manhole]\nlisten = host:70000\n", "or host:port, not 'host:70000'\n"},
    };
    for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
        const char *err = NULL;
        if (rows[i].content != NULL) {
            (void)write_file("test.ini", rows[i].content);
        }
        assert_int_equal(run_command(CLI("test.ini"), NULL, NULL, &err), 1);
        assert_contains(err, "manhole-cli: error: ");
        assert_contains(err, rows[i].message);
    }
}

static void
file_goes_with_no_other_action(void)
{
    static const char *const rows[][4] = {{"test.ini", "-c", "1"},
                                          {"--stacks", "test.ini", "1234"},
                                          {"1234", "--stacks", "test.ini"}};
    write_config("");
    for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
        const char *err = NULL;
        assert_int_equal(
            run_command(CLI(rows[i][0], rows[i][1], rows[i][2]), NULL, NULL, &err), 2);
        assert_contains(err, "'test.ini' is a configuration file");
    }
}

/* ---- At a terminal ------------------------------------------------------------------- */

static void
terminal_has_the_local_shell_and_then_the_process(void)
{
    write_config("");
    struct process *app = start_app();
    struct process *shell = start_process(.argv = CLI("test.ini"), .terminal = true,
                                          .env = LIST("TERM=xterm"));
    wait_for_text(shell, OUT, "(manhole) ", DEADLINE);
    write_stdin(shell, "servers\r");
    wait_for_text(shell, OUT, path_of(app), DEADLINE);
    wait_for_text(shell, OUT, "(manhole) ", DEADLINE);
    write_stdin(shell, "connect nonsense\t"); /* completed by nothing */
    wait_for_text(shell, OUT, "nonsense", DEADLINE);
    write_stdin(shell, "\003");
    wait_for_text(shell, OUT, "^C", DEADLINE);
    wait_for_text(shell, OUT, "(manhole) ", DEADLINE);
    write_stdin(shell, "connect 1\r");
    wait_for_text(shell, OUT, format_text("(manhole:%d)", (int)app->pid), DEADLINE);
    write_stdin(shell, "!process\r");
    wait_for_text(shell, OUT, "(process:", DEADLINE);
    write_stdin(shell, "c\t\r"); /* completed over there */
    wait_for_text(shell, OUT, test_directory(), DEADLINE);
    write_stdin(shell, "exit\rexit\r");
    assert_int_equal(wait_for_exit(shell, DEADLINE), 0);
    assert_not_contains(text_of(shell, OUT), "not an integer");
}

static void
tab_completes_the_commands_of_the_local_shell(void)
{
    write_config("");
    struct process *shell = start_process(.argv = CLI("test.ini"), .terminal = true,
                                          .env = LIST("TERM=xterm"));
    wait_for_text(shell, OUT, "(manhole) ", DEADLINE);
    write_stdin(shell, "\t");
    wait_for_text(shell, OUT, "connect   exit", DEADLINE);
    wait_for_text(shell, OUT, "(manhole) ", DEADLINE);
    write_stdin(shell, "h\tse\t\r");
    wait_for_text(shell, OUT, "List the processes that can be connected to.", DEADLINE);
    write_stdin(shell, "ex\t\r");
    assert_int_equal(wait_for_exit(shell, DEADLINE), 0);
}

static void
shell_without_an_editor_sleeps_until_a_line_comes(void)
{
    write_config("");
    struct process *shell = start_process(.argv = CLI("test.ini"), .terminal = true,
                                          .env = LIST("TERM=dumb"));
    wait_for_text(shell, OUT, "(manhole) ", DEADLINE);
    wait_until_asleep(shell->pid);
    write_stdin(shell, "exit\n");
    assert_int_equal(wait_for_exit(shell, DEADLINE), 0);
}

/* There the editor has signals wait, and nobody accepts who connects. */
static void
ctrl_c_ends_a_connect_that_waits(void)
{
    struct process *full =
        start_target("import socket\n"
                     "listener, client = socket.socket(socket.AF_UNIX), "
                     "socket.socket(socket.AF_UNIX)\n"
                     "listener.bind('full')\n"
                     "listener.listen(0)\n"
                     "client.connect('full')\n" READY STAY);
    wait_until_ready(full);
    (void)write_file("test.ini",
                     format_text("[manhole]\nlisten = %s\n", test_path("full")));
    struct process *shell = start_process(.argv = CLI("-t", "inf", "test.ini"),
                                          .terminal = true, .env = LIST("TERM=xterm"));
    wait_for_text(shell, OUT, "(manhole) ", DEADLINE);
    write_stdin(shell, "connect\r");
    wait_for_text(shell, OUT, "connect\r\n", DEADLINE);
    write_stdin(shell, "\003");
    assert_int_equal(wait_for_exit(shell, DEADLINE), 130);
    assert_contains(text_of(shell, OUT), "\033[?2004l");
}

static void
end_of_typing_leaves_the_local_shell(void)
{
    write_config("");
    struct process *shell = start_process(.argv = CLI("test.ini"), .terminal = true,
                                          .env = LIST("TERM=xterm"));
    wait_for_text(shell, OUT, "(manhole) ", DEADLINE);
    write_stdin(shell, "\004");
    assert_int_equal(wait_for_exit(shell, DEADLINE), 0);
}

/* ---- TCP ----------------------------------------------------------------------------- */

/* Listens at a TCP port, tells which, and goes on with the first client. */
#define LISTEN                                                                           \
  "import socket\n"                                                                      \
  "server = socket.create_server(('127.0.0.1', 0))\n"                                    \
  "print('port', server.getsockname()[1], flush=True)\n"                                 \
  "client = server.accept()[0]\n"

/* Writes a test.ini for the port that the process tells. */
static void
write_config_for(struct process *app)
{
    wait_for_text(app, OUT, "port ", DEADLINE);
    long port = strtol(wait_for_text(app, OUT, "\n", DEADLINE), NULL, 10);
    (void)write_file("test.ini", format_text("[ispyd]\nlisten = localhost:%ld\n", port));
}

static void
server_may_be_a_port_of_this_machine(void)
{
    struct process *app = start_target(
        INSTALL("") LISTEN "manhole.handle_connection_commands(client)\n" STAY);
    write_config_for(app);
    const char *out = tell("servers\nconnect\nplugins\nexit\n");
    assert_matches(out, "^\\(manhole\\) 1: \\(2, \\('localhost', [0-9]+\\)\\)$");
    assert_contains(out, format_text("(manhole:%d) ['debugger', ", (int)app->pid));
}

static void
port_that_nobody_listens_at_is_dead(void)
{
    (void)write_file("test.ini",
                     format_text("[ispyd]\nlisten = localhost:%d\n", free_port()));
    const char *out = tell("servers\nconnect\n");
    assert_contains(out, ")) dead\n");
    assert_contains(out, "Nobody answers at 'localhost:");
}

static void
port_of_another_user_gets_no_byte(void)
{
    const char *err = NULL;
    if (geteuid() != 0) {
        skip_test("only root can start a process as another user");
    }
    struct process *app =
        start_process(.argv = LIST(debian_python(), "-c",
                                   LISTEN "print('got', client.recv(1))\n"),
                      .uid = 65534);
    write_config_for(app);
    assert_int_equal(run_command(CLI("test.ini"), "connect\nplugins\n", NULL, &err), 4);
    assert_contains(err,
                    "is served by UID:65534, not by UID:0 or root; nothing was sent.");
    assert_not_contains(text_of(app, OUT), "got");
}

static void
port_of_nobody_knows_whom_gets_no_byte(void)
{
    const char *err = NULL;
    const char *script = "mount -t tmpfs none /proc && exec \"$0\" test.ini";
    if (geteuid() != 0 ||
        run_command(LIST("unshare", "--mount", "true"), NULL, NULL, NULL) != 0) {
        skip_test("no mount namespace to be had here");
    }
    if (is_sanitized()) {
        skip_test("the sanitizers cannot do without /proc");
    }
    struct process *app = start_target(LISTEN "print('got', client.recv(1))\n");
    write_config_for(app);
    assert_int_equal(run_command(LIST("unshare", "--mount", "sh", "-c", script,
                                      build_path("manhole-cli")),
                                 "connect\nplugins\n", NULL, &err),
                     4);
    assert_contains(err, "cannot tell who serves 'localhost:");
    assert_not_contains(text_of(app, OUT), "got");
}

static void
host_elsewhere_is_refused_with_the_way_there(void)
{
    static const char *const hosts[] = {"0.0.0.0:80", "192.0.2.1:3000",
                                        "[2001:db8::1]:3000"};
    for (size_t i = 0; i < sizeof(hosts) / sizeof(hosts[0]); i++) {
        const char *err = NULL;
        (void)write_file("test.ini", format_text("[ispyd]\nlisten = %s\n", hosts[i]));
        assert_int_equal(run_command(CLI("test.ini"), NULL, NULL, &err), 4);
        assert_contains(
            err, format_text("'%s' is not an address of this machine alone", hosts[i]));
        assert_contains(err, "manhole-cli --host HOST reaches");
    }
}

int
main(void)
{
    static const struct test_case tests[] = {
        TEST(help_lists_the_commands_as_ispyd_does),
        TEST(servers_are_listed_by_number_and_dead_ones_marked),
        TEST(connect_leads_to_the_one_with_that_number),
        TEST(the_only_server_needs_no_number),
        TEST(selection_that_is_none_is_told_so),
        TEST(server_that_came_later_is_found),
        TEST(console_is_refused_and_then_enabled_and_used),
        TEST(listen_may_have_the_number_more_than_once),
        TEST(listen_may_have_no_number),
        TEST(listen_is_read_as_install_reads_it),
        TEST(silent_server_can_be_listed_again),
        TEST(without_listen_it_is_the_usual_socket),
        TEST(wrong_file_is_named_with_the_line),
        TEST(file_goes_with_no_other_action),
        TEST(terminal_has_the_local_shell_and_then_the_process),
        TEST(tab_completes_the_commands_of_the_local_shell),
        TEST(shell_without_an_editor_sleeps_until_a_line_comes),
        TEST(ctrl_c_ends_a_connect_that_waits),
        TEST(end_of_typing_leaves_the_local_shell),
        TEST(server_may_be_a_port_of_this_machine),
        TEST(port_that_nobody_listens_at_is_dead),
        TEST(port_of_another_user_gets_no_byte),
        TEST(port_of_nobody_knows_whom_gets_no_byte),
        TEST(host_elsewhere_is_refused_with_the_way_there),
    };
    return RUN_TESTS(tests);
}
