/* e2e_tcp.c - the option listen, clients by TCP, and eventlet's idiom: telnet, nc, another user. */
#include "support.h"

#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

enum {
    NOBODY = 65534,
};

#define ON_A_PORT "listen='localhost:0'"

/* ---- Helpers ----------------------------------------------------------------------- */

static void
need_root(void)
{
    if (geteuid() != 0) {
        skip_test("needs root, to be two users");
    }
}

/* The number behind this in what the process logs from here on. */
static int
port_behind(struct process *app, const char *text)
{
    wait_for_text(app, ERR, text, DEADLINE);
    return (int)strtol(wait_for_text(app, ERR, "\n", DEADLINE), NULL, 10);
}

static int
port_of(struct process *app)
{
    int port = port_behind(app, "Manhole TCP address: 127.0.0.1:");
    rewind_stream(app, OUT);
    wait_until_ready(app); /* a client sees what the program prints, that too */
    rewind_stream(app, OUT);
    return port;
}

static const char *
text_of_port(int port)
{
    return format_text("%d", port);
}

static struct client *
client_at_prompt(int port)
{
    struct client *client = connect_port(port);
    client_wait_for(client, ">>> ");
    return client;
}

/* A person's telnet, at a terminal. */
static struct process *
start_telnet_in(int port, const char *locale)
{
    require_program("telnet");
    struct process *telnet =
        start_process(.argv = LIST("telnet", "127.0.0.1", text_of_port(port)),
                      .env = LIST(locale), .terminal = true);
    wait_for_text(telnet, OUT, ">>> ", DEADLINE);
    return telnet;
}

static struct process *
start_telnet(int port)
{
    return start_telnet_in(port, "LC_ALL=C.UTF-8");
}

/* Types a line; returns what comes up to the next prompt. */
static const char *
ask_telnet(struct process *telnet, const char *line)
{
    write_stdin(telnet, format_text("%s\n", line));
    return wait_for_text(telnet, OUT, ">>> ", DEADLINE);
}

/* What a program says on stderr that tries to install with these arguments. */
static const char *
error_of(const char *arguments)
{
    struct process *app = start_target(format_text(INSTALL("%s"), arguments));
    assert_int_equal(wait_for_exit(app, DEADLINE), 1);
    return text_of(app, ERR);
}

/* ---- Where to listen ---------------------------------------------------------------- */

static void
client_of_a_port_has_stacks_and_console(void)
{
    struct process *app = start_target(TARGET(ON_A_PORT ", locals={'answer': 42}"));
    struct client *client = connect_port(port_of(app));
    assert_contains(client_wait_for(client, ">>> "), "ThreadID=");
    assert_string_equal(client_ask(client, "answer"), "42\n");
    wait_for_text(app, ERR, "Accepted connection on fd:", DEADLINE);
    assert_matches(wait_for_text(app, ERR, "\n", DEADLINE),
                   format_text(" from 127.0.0.1:[0-9]+ UID:%d$", (int)geteuid()));
}

static void
port_that_was_chosen_is_told_to_the_program(void)
{
    struct process *app =
        start_target("import manhole; it = manhole.install(" ON_A_PORT ")\n"
                     "print(it.addresses, it.uds_name, it)\n" READY STAY);
    int port = port_of(app);
    wait_for_text(app, OUT, "ready", DEADLINE);
    assert_contains(text_of(app, OUT),
                    format_text("['127.0.0.1:%d'] None <manhole.Manhole at "
                                "'127.0.0.1:%d'>",
                                port, port));
}

static void
every_place_of_a_list_is_served(void)
{
    struct process *app = start_target(
        TARGET("listen=['localhost:0', '[::1]:0', './door-%(pid)s', b'other']"));
    int v4 = port_of(app);
    int v6 = port_behind(app, "Manhole TCP address: [::1]:");
    const char *const *const command = LIST("nc", "-N", "::1", text_of_port(v6));
    const char *out = NULL;
    client_at_prompt(v4);
    assert_int_equal(run_command(command, "print(6 * 7)\n", &out, NULL), 0);
    assert_contains(out, ">>> 42\n");
    connect_client(test_path(format_text("door-%d", (int)app->pid)));
    connect_client(test_path("other"));
}

static void
listen_replaces_the_usual_path(void)
{
    struct process *app = start_target(TARGET(ON_A_PORT));
    wait_until_ready(app);
    assert_no_path(socket_path_of(app->pid));
}

static void
socket_path_is_served_beside_listen(void)
{
    struct process *app = start_target(TARGET(ON_A_PORT ", socket_path='door'"));
    client_at_prompt(port_of(app));
    connect_client(test_path("door"));
}

static void
paths_are_removed_at_the_end(void)
{
    struct process *app = start_target(TARGET("listen=['./one', './two']"));
    wait_until_ready(app);
    assert_path_exists(test_path("two"));
    send_signal(app, SIGTERM);
    assert_int_equal(wait_for_exit(app, DEADLINE), -SIGTERM);
    assert_no_path(test_path("one"));
    assert_no_path(test_path("two"));
}

static void
address_that_others_can_reach_is_refused(void)
{
    static const char *const addresses[] = {"0.0.0.0:3000", "[::]:3000", "192.0.2.7:3000",
                                            "[2001:db8::7]:3000",
                                            "[::ffff:127.0.0.1]:3000"};
    for (size_t i = 0; i < sizeof(addresses) / sizeof(*addresses); i++) {
        const char *error = error_of(format_text("listen='%s'", addresses[i]));
        assert_contains(error,
                        "ValueError: install() option 'listen' must be an address of "
                        "this machine alone, as localhost is, not ");
        assert_contains(error,
                        "manhole-cli --host HOST PID, or a tunnel to localhost, ssh -L "
                        "3000:localhost:3000 HOST");
    }
}

static void
what_is_no_place_is_refused_by_name(void)
{
    static const char *const values[] = {
        "''",      "'3000'",     "':3000'",       "'localhost:'",    "'localhost:70000'",
        "'::1:3'", "'[::1]'",    "'localhost:x'", "'localhost: 80'", "[]",
        "3000",    "['./a', 7]", "['./a'] * 9",
    };
    for (size_t i = 0; i < sizeof(values) / sizeof(*values); i++) {
        const char *error = error_of(format_text("listen=%s", values[i]));
        assert_contains(error,
                        "Error: install() option 'listen' must be HOST:PORT, a path "
                        "with a '/' in it, a list of 1 to 8 of these, or None, not ");
    }
    assert_contains(error_of("listen='no.such.host.invalid:1'"),
                    "option 'listen' is 'no.such.host.invalid:1', but "
                    "no.such.host.invalid: ");
}

static void
port_that_is_taken_is_a_line_in_the_log(void)
{
    struct process *first = start_target(TARGET(ON_A_PORT));
    int port = port_of(first);
    struct process *second =
        start_target(format_text(TARGET("listen=['localhost:%d', './door']"), port));
    wait_until_ready(second);
    assert_contains(
        text_of(second, ERR),
        format_text("Cannot listen at 127.0.0.1:%d: Address already in use", port));
    connect_client(test_path("door"));
}

static void
released_port_is_free_and_its_clients_stay(void)
{
    struct process *app =
        start_target("import manhole, os, socket; it = manhole.install(" ON_A_PORT ")\n"
                     "print('ready')\nos.read(0, 1)\nit.release()\n"
                     "print('released')\n" STAY);
    int port = port_of(app);
    struct client *client = client_at_prompt(port);
    write_stdin(app, "x");
    wait_for_text(app, OUT, "released", DEADLINE);
    struct process *next =
        start_target(format_text(TARGET("listen='localhost:%d'"), port));
    assert_int_equal(port_of(next), port);
    client_send(client, "6 * 7\n");
    client_wait_for(client, "42\n>>> ");
    client_send(client, "while True: pass\n\n");
    client_send(client, "\003");
    client_wait_for(client, "KeyboardInterrupt");
}

static void
socket_that_was_given_is_as_before_after_release(void)
{
    struct process *app =
        start_target("import manhole, os, socket\n"
                     "it = manhole.install()\n"
                     "server = socket.create_server(('127.0.0.1', 0))\n"
                     "manhole.backdoor_server(server)\n"
                     "print(os.get_blocking(server.fileno()), flush=True)\n"
                     "it.release()\n"
                     "print(os.get_blocking(server.fileno()), flush=True)\n" STAY);
    wait_for_text(app, OUT, "False\nTrue\n", DEADLINE);
}

/* ---- Children ------------------------------------------------------------------------ */

#define THE_CHILD "__import__('__main__').child == 0"
#define FORK_A_CHILD                                                                     \
  "import os, time\n"                                                                    \
  "child = os.fork()\n"                                                                  \
  "if child == 0:\n"                                                                     \
  "    while True: time.sleep(1)\n" READY STAY "os.kill(child, 9)\n"

static void
child_says_that_the_port_is_its_parents_and_has_its_own_path(void)
{
    struct process *app =
        start_target("import manhole\n"
                     "port = manhole.install(" ON_A_PORT ", verbose=False).addresses[0]\n"
                     "manhole.install(strict=False, reinstall_delay=0,\n"
                     "    listen=[port, './door-%(pid)s'])\n" FORK_A_CHILD);
    int port = port_of(app);
    wait_for_text(
        app, ERR,
        format_text("Cannot listen at 127.0.0.1:%d: the port is in use; a forked "
                    "process can have one of its own with port 0, or a path with "
                    "%%(pid)s\n",
                    port),
        DEADLINE);
    wait_for_text(app, ERR, "Manhole UDS path: ./door-", DEADLINE);
    wait_until_ready(app);
    assert_string_equal(client_ask(client_at_prompt(port), THE_CHILD), "False\n");
}

static void
child_has_a_port_of_its_own_where_any_will_do(void)
{
    struct process *app =
        start_target(INSTALL(ON_A_PORT ", reinstall_delay=0") FORK_A_CHILD);
    int parents = port_of(app);
    int childs = port_of(app);
    wait_until_ready(app);
    assert_string_equal(client_ask(client_at_prompt(parents), THE_CHILD), "False\n");
    assert_string_equal(client_ask(client_at_prompt(childs), THE_CHILD), "True\n");
}

/* A process that becomes a daemon forks, and its parent ends. */
static void
child_whose_parent_has_ended_has_the_port(void)
{
    struct process *app =
        start_target("import manhole, os\n"
                     "port = manhole.install(" ON_A_PORT ", verbose=False).addresses[0]\n"
                     "manhole.install(strict=False, reinstall_delay=2, listen=port)\n"
                     "if os.fork(): os._exit(0)\n" READY STAY);
    int port = port_of(app);
    assert_int_equal(port_of(app), port);
    struct client *client = client_at_prompt(port);
    assert_string_equal(client_ask(client, "6 * 7"), "42\n");
    client_close(client);
    close_stdin(app);
}

/* ---- Who may come in ----------------------------------------------------------------- */

static struct process *
start_nc_as(uid_t uid, int port, const char *input)
{
    require_program("nc");
    struct process *nc =
        start_process(.argv = LIST("nc", "-N", "127.0.0.1", text_of_port(port)),
                      .uid = uid);
    write_stdin(nc, input);
    close_stdin(nc);
    return nc;
}

static void
client_of_another_uid_gets_no_byte(void)
{
    need_root();
    struct process *app = start_target(TARGET(ON_A_PORT));
    int port = port_of(app);
    struct process *nc = start_nc_as(NOBODY, port, "open('seen', 'w')\n");
    (void)wait_for_exit(nc, DEADLINE);
    assert_string_equal(text_of(nc, OUT), "");
    assert_matches(
        wait_for_text(app, ERR, "or ROOT.\n", DEADLINE),
        "SuspiciousClient: Can't accept client with 127.0.0.1:[0-9]+ UID:65534. "
        "It doesn't match the current EUID:0 or ROOT.$");
    assert_no_path(test_path("seen"));
    client_at_prompt(port);
}

static void
flood_of_another_user_keeps_nobody_out(void)
{
    need_root();
    struct process *app = start_target(TARGET(ON_A_PORT));
    int port = port_of(app);
    (void)start_process(.argv = LIST("bash", "-c",
                                     "while true </dev/tcp/127.0.0.1/$0; do :; done",
                                     text_of_port(port)),
                        .uid = NOBODY);
    for (int refused = 0; refused < 50; refused++) {
        wait_for_text(app, ERR, "or ROOT.\n", DEADLINE);
    }
    struct client *client = client_at_prompt(port);
    assert_string_equal(client_ask(client, "6 * 7"), "42\n");
}

/* Its socket is nobody's any more, which looks like root's. */
static void
client_that_closes_before_it_is_looked_at_is_refused(void)
{
    need_root();
    struct process *app = start_target(TARGET(ON_A_PORT));
    int port = port_of(app);
    wait_until_ready(app);
    send_signal(app, SIGSTOP);
    struct process *client =
        start_process(.argv = LIST("bash", "-c",
                                   "echo \"open('seen', 'w')\" >/dev/tcp/127.0.0.1/$0",
                                   text_of_port(port)),
                      .uid = NOBODY);
    assert_int_equal(wait_for_exit(client, DEADLINE), 0);
    send_signal(app, SIGCONT);
    assert_matches(wait_for_text(app, ERR, "or ROOT.\n", DEADLINE),
                   "SuspiciousClient: Can't accept client with 127.0.0.1:[0-9]+ "
                   "UID:unknown\\. ");
    client_at_prompt(port);
    assert_no_path(test_path("seen"));
}

static void
root_may_enter_another_users_process(void)
{
    need_root();
    struct process *app = start_target(TARGET(ON_A_PORT), .debian = true, .uid = NOBODY);
    struct client *client = client_at_prompt(port_of(app));
    assert_string_equal(client_ask(client, "os.geteuid()"), "65534\n");
}

/* It is the right user's, but who knows which page it shows. */
static void
browser_runs_nothing(void)
{
    static const int lengths[] = {1, 500, 9000};
    struct process *app = start_target(TARGET(ON_A_PORT));
    int port = port_of(app);
    for (size_t i = 0; i < sizeof(lengths) / sizeof(*lengths); i++) {
        struct client *client = client_at_prompt(port);
        client_send(client, format_text("POST /%0*d HTTP/1.1\r\nHost: localhost\r\n\r\n"
                                        "open('seen', 'w')\n",
                                        lengths[i], 0));
        client_read_until_eof(client);
        wait_for_text(app, ERR, " away: it sends HTTP", DEADLINE);
        wait_for_text(app, ERR, "Cleaned up.", DEADLINE);
        assert_no_path(test_path("seen"));
    }
}

static void
first_line_may_come_in_pieces_or_without_an_end(void)
{
    struct process *app = start_target(TARGET(ON_A_PORT));
    int port = port_of(app);
    struct client *client = client_at_prompt(port);
    client_send(client, "print(6");
    watch_for(50);
    client_send(client, " * 7)\n");
    client_wait_for(client, "42\n>>> ");
    client = client_at_prompt(port);
    client_send(client, "print(6 * 7)");
    client_shutdown_write(client);
    assert_contains(client_read_until_eof(client), "42\n");
}

/* ---- Telnet --------------------------------------------------------------------------- */

static void
telnet_talks_to_python(void)
{
    struct process *app = start_target(TARGET(ON_A_PORT));
    struct process *telnet = start_telnet(port_of(app));
    assert_contains(ask_telnet(telnet, "6 * 7"), "\n42\r\n");
    write_stdin(telnet, "def f():\n");
    wait_for_text(telnet, OUT, "... ", DEADLINE);
    write_stdin(telnet, "    return 'é'\n");
    wait_for_text(telnet, OUT, "... ", DEADLINE);
    ask_telnet(telnet, "");
    assert_contains(ask_telnet(telnet, "f(), len(f())"), "('é', 1)\r\n");
}

/* Which telnet makes commands of, unless it is told not to: a Ctrl-\ of the second byte of U+672C,
 * say. */
static void
telnet_sends_characters_beyond_ascii(void)
{
    static const char *const locales[] = {"LC_ALL=C.UTF-8", "LC_ALL=C"};
    int port = port_of(start_target(TARGET(ON_A_PORT)));
    for (size_t i = 0; i < sizeof(locales) / sizeof(*locales); i++) {
        struct process *telnet = start_telnet_in(port, locales[i]);
        assert_contains(ask_telnet(telnet, "print(ascii(\"\u65e5\u672c\u00e9\"), 6 * 7)"),
                        "'\\u65e5\\u672c\\xe9' 42\r\n");
        for (unsigned byte = 0x80; byte < 0xc0; byte++) {
            assert_contains(
                ask_telnet(telnet, format_text("ascii('\xc4%c'), ascii('\xe1%c\x80')",
                                               (int)byte, (int)byte)),
                format_text("(\"'\\\\u%04x'\", \"'\\\\u1%03x'\")\r\n", 0x80 + byte,
                            (byte - 0x80) << 6));
        }
        write_stdin(telnet, "while True: pass\n\n"); /* and Ctrl-C is one as before */
        wait_for_text(telnet, OUT, "... ", DEADLINE);
        write_stdin(telnet, "\003");
        wait_for_text(telnet, OUT, "KeyboardInterrupt", DEADLINE);
    }
}

/* Others are sent nothing that is not text. */
static void
nobody_but_telnet_is_asked_for_binary(void)
{
    int port = port_of(start_target(TARGET(ON_A_PORT)));
    struct client *client = client_at_prompt(port);
    client_send(client, "ascii('\u00e9')\n");
    assert_string_equal(client_wait_for(client, ">>> "), "\"'\\\\xe9'\"\n>>> ");
    client = client_at_prompt(port);
    client_send(client, "6 * 7\r\n");
    assert_string_equal(client_wait_for(client, ">>> "), "42\n>>> ");
    client_send(client, "ascii('\u00e9')\r\n");
    assert_int_equal(client_wait_for(client, "\n>>> ")[0], '\377');
}

static void
line_that_is_not_utf_8_is_named(void)
{
    struct process *app = start_target(TARGET(ON_A_PORT));
    struct client *client = client_at_prompt(port_of(app));
    client_send(client, "print('\351')\n");
    assert_string_equal(client_wait_for(client, ">>> "),
                        "manhole: what came is not UTF-8, so it was not run; type it "
                        "again, and see that the terminal sends UTF-8\n>>> ");
    client_send(client, "6 * 7\n");
    client_wait_for(client, "42\n>>> ");
}

static void
ctrl_c_in_telnet_interrupts_what_runs(void)
{
    static const char *const statements[] = {
        "while True: pass",
        "while True: print(\"x\" * 100)",
        "input()",
    };
    struct process *app = start_target(TARGET(ON_A_PORT));
    struct process *telnet = start_telnet(port_of(app));
    for (size_t i = 0; i < sizeof(statements) / sizeof(*statements); i++) {
        write_stdin(telnet,
                    format_text("exec('open(\"%zu\", \"w\").close()\\n%s')\n", i,
                                statements[i])); /* begun when the file is there */
        wait_for_path(test_path(format_text("%zu", i)), DEADLINE);
        write_stdin(telnet, "\003");
        wait_for_text(telnet, OUT, "KeyboardInterrupt", DEADLINE);
        assert_contains(ask_telnet(telnet, "'to' 'gether'"), ">>> ");
        wait_for_text(telnet, OUT, "'together'", DEADLINE);
    }
}

static void
ctrl_c_in_telnet_drops_an_unfinished_statement(void)
{
    struct process *app = start_target(TARGET(ON_A_PORT));
    struct process *telnet = start_telnet(port_of(app));
    write_stdin(telnet, "if True:\n");
    wait_for_text(telnet, OUT, "... ", DEADLINE);
    write_stdin(telnet, "\003");
    wait_for_text(telnet, OUT, "KeyboardInterrupt\r\n>>> ", DEADLINE);
    assert_contains(ask_telnet(telnet, "6 * 7"), "42\r\n");
}

static void
ctrl_c_in_telnet_drops_a_half_typed_command(void)
{
    struct process *app =
        start_target(TARGET(ON_A_PORT ", connection_handler='commands'"));
    require_program("telnet");
    struct process *telnet =
        start_process(.argv = LIST("telnet", "127.0.0.1", text_of_port(port_of(app))),
                      .terminal = true);
    const char *prompt = format_text("(manhole:%d) ", (int)app->pid);
    wait_for_text(telnet, OUT, prompt, DEADLINE);
    write_stdin(telnet, "exit");
    wait_for_text(telnet, OUT, "exit", DEADLINE);
    write_stdin(telnet, "\003");
    wait_for_text(telnet, OUT, prompt, DEADLINE);
    write_stdin(telnet, "plugins\n");
    assert_contains(wait_for_text(telnet, OUT, prompt, DEADLINE), "'process'");
}

static void
ctrl_d_in_telnet_ends_the_session(void)
{
    struct process *app = start_target(TARGET(ON_A_PORT));
    struct process *telnet = start_telnet(port_of(app));
    write_stdin(telnet, "\004");
    wait_for_text(telnet, OUT, "now exiting ManholeConsole...", DEADLINE);
    wait_for_exit(telnet, DEADLINE);
    wait_for_text(app, ERR, "Cleaned up.", DEADLINE);
}

/* A negotiation in the middle of a word, as a telnet at port 23 begins one; a command; a line that
 * ends as RFC 854 has it; and one as a terminal in raw mode sends it. */
static void
negotiation_is_answered_with_no_and_never_seen(void)
{
    static const char wishes[] =
        "4\377\375\003\377\373\0302 +\377\361\377\372\030\0X\377\360 1\r\n";
    static const char answer[] = "\377\374\003\377\376\030";
    struct process *app = start_target(TARGET(ON_A_PORT));
    struct client *client = client_at_prompt(port_of(app));
    client_send_bytes(client, wishes, sizeof(wishes) - 1);
    client_wait_for(client, answer);
    assert_string_equal(client_wait_for(client, ">>> "), "43\n>>> ");
    client_send_bytes(client, "6 *\r\0", 5);
    client_wait_for(client, "SyntaxError");
}

static void
refusals_are_not_answered(void)
{
    static const char refusals[] = "\377\374\003\377\376\0306 * 7\n";
    struct process *app = start_target(TARGET(ON_A_PORT));
    struct client *client = client_at_prompt(port_of(app));
    client_send_bytes(client, refusals, sizeof(refusals) - 1);
    assert_string_equal(client_wait_for(client, ">>> "), "42\n>>> ");
}

/* Telnet's "synch": the command's last byte is TCP's urgent one. */
static void
urgent_interrupt_keeps_its_place(void)
{
    struct process *app = start_target(TARGET(ON_A_PORT));
    struct client *client = client_at_prompt(port_of(app));
    client_send(client, "print('begun')\nwhile True: pass\n\n");
    client_wait_for(client, "... ");
    assert_int_equal(send(client->fd, "\377\364\377\362", 4, MSG_OOB), 4);
    client_wait_for(client, "KeyboardInterrupt");
    client_send(client, "\003"); /* in case that the first came before the loop */
    client_wait_for(client, ">>> ");
    client_send(client, "6 * 7\n");
    client_wait_for(client, "42\n");
}

/* ---- nc, and clients that leave --------------------------------------------------------- */

static void
nc_that_only_ends_its_input_gets_all_output(void)
{
    require_program("nc");
    struct process *app = start_target(TARGET(ON_A_PORT));
    const char *out = NULL;
    run_command(LIST("nc", "-N", "127.0.0.1", text_of_port(port_of(app))),
                "import time; time.sleep(0.3); print('x' * 100000, 'end')\n", &out, NULL);
    assert_contains(out, "xxx end\n>>> \nnow exiting ManholeConsole...\n");
}

static void
loop_of_a_client_that_left_is_interrupted(void)
{
    struct process *app = start_target(TARGET(ON_A_PORT));
    int port = port_of(app);
    struct client *client = client_at_prompt(port);
    client_send(client,
                "if True:\n    open('begun', 'w').close()\n    while True: pass\n\n");
    wait_for_path(test_path("begun"), DEADLINE);
    client_close(client);
    wait_for_text(app, ERR, "Cleaned up.", DEADLINE);
}

static void
half_a_line_of_a_client_that_left_is_not_run(void)
{
    struct process *app = start_target(TARGET(ON_A_PORT));
    struct client *client = client_at_prompt(port_of(app));
    client_send(client, "open('run', 'w')");
    client_close(client);
    wait_for_text(app, ERR, "Cleaned up.", DEADLINE);
    assert_no_path(test_path("run"));
}

static void
clients_that_come_and_go_leave_nothing(void)
{
    struct process *app = start_target(TARGET(ON_A_PORT));
    int port = port_of(app);
    int fds = 0;
    int threads = 0;
    for (int i = 0; i < 5; i++) {
        client_close(client_at_prompt(port));
        wait_for_text(app, ERR, "Cleaned up.", DEADLINE);
        wait_for_text(app, ERR, "Waiting for new connection", DEADLINE);
        struct client *last = client_at_prompt(port);
        client_send(last, "exit()\n");
        client_read_until_eof(last);
        wait_for_text(app, ERR, "Cleaned up.", DEADLINE);
        wait_for_text(app, ERR, "Waiting for new connection", DEADLINE);
        watch_for(100);
        fds = i == 0 ? count_fds(app->pid) : fds;
        threads = i == 0 ? count_threads(app->pid) : threads;
    }
    wait_for_usage(app->pid, fds, threads);
}

/* ---- Other ways to open, and a Python that is stuck --------------------------------------- */

static void
signal_opens_the_port(void)
{
    struct process *app = start_target(TARGET(ON_A_PORT ", activate_on='USR1'"));
    wait_until_ready(app);
    send_signal(app, SIGUSR1);
    client_at_prompt(port_of(app));
}

static void
oneshot_serves_a_client_of_the_port(void)
{
    struct process *app = start_target(TARGET(ON_A_PORT ", oneshot_on='USR1'"));
    wait_until_ready(app);
    send_signal(app, SIGUSR1);
    struct client *client = client_at_prompt(port_of(app));
    assert_contains(client_ask(client, "__import__('threading').current_thread()"),
                    "MainThread");
    client_send(client, "while True: pass\n\n");
    client_close(client);
    wait_for_text(app, ERR, "Cleaned up.", DEADLINE);
}

static void
stuck_process_shows_its_stacks(void)
{
    struct process *app = start_target(
        INSTALL(ON_A_PORT ", hang_timeout=0.1") "import ctypes\n" READY
                                                "ctypes.PyDLL(None).pause()\n");
    int port = port_of(app);
    wait_until_ready(app);
    struct client *client = connect_port(port);
    client_wait_for(client, "Python has not answered for");
    client_wait_for(client, "ctypes.PyDLL(None).pause()");
}

/* ---- eventlet's idiom ---------------------------------------------------------------------- */

/* The example of its documentation with the import changed. */
#define EVENTLET                                                                         \
  "import eventlet\n"                                                                    \
  "import manhole as backdoor\n"                                                         \
  "sleep = eventlet.sleep\n"                                                             \
  "eventlet.spawn(backdoor.backdoor_server, eventlet.listen(('localhost', 0)), "         \
  "locals())\n"
#define GEVENT                                                                           \
  "import gevent, gevent.socket\n"                                                       \
  "import manhole as backdoor\n"                                                         \
  "sleep = gevent.sleep\n"                                                               \
  "sock = gevent.socket.socket()\n"                                                      \
  "sock.bind(('localhost', 0)); sock.listen()\n"                                         \
  "gevent.spawn(backdoor.backdoor_server, sock, locals())\n"
#define NEITHER                                                                          \
  "import socket, time\n"                                                                \
  "import manhole as backdoor\n"                                                         \
  "sleep = time.sleep\n"                                                                 \
  "sock = socket.create_server(('localhost', 0))\n"                                      \
  "backdoor.backdoor_server(sock, locals())\n"

/* An application that serves on: what it counts is in a name of the console. */
#define COUNT                                                                            \
  "def myfunc(): return 'my'\n"                                                          \
  "counter = 0\n"                                                                        \
  "while True:\n"                                                                        \
  "    sleep(0.002)\n"                                                                   \
  "    counter += 1\n"

#define GREEN .debian = true, .env = LIST("EVENTLET_NO_GREENDNS=yes")

static int
backdoor_port(struct process *app)
{
    return port_behind(app, "Backdoor server listening on 127.0.0.1:");
}

/* What the application has counted, as a telnet sees it. */
static long
count_in(struct process *telnet)
{
    const char *text = ask_telnet(telnet, "counter");
    const char *line = strstr(text, "counter\r\n"); /* the terminal's echo */
    return strtol(line != NULL ? line + strlen("counter\r\n") : text, NULL, 10);
}

static void
assert_two_telnets_see_it_count(struct process *app)
{
    int port = backdoor_port(app);
    struct process *one = start_telnet(port);
    struct process *other = start_telnet(port);
    long before = 0;
    assert_contains(text_of(one, OUT), "Type \"help\", \"copyright\"");
    assert_not_contains(text_of(one, OUT), "ThreadID=");
    assert_contains(ask_telnet(one, "myfunc()"), "'my'\r\n");
    before = count_in(one);
    assert_true(before >= 0);
    assert_contains(ask_telnet(other, "'in the other'; print('seen by the other alone')"),
                    "seen by");
    watch_for(100);
    assert_true(count_in(one) > before);
    assert_not_contains(text_of(one, OUT), "seen by");
    ask_telnet(one, "counter = 10 ** 9");
    watch_for(100);
    assert_true(count_in(other) > 1000000000);
}

static void
eventlets_example_runs_with_two_telnets(void)
{
    require_debian_module("eventlet");
    assert_two_telnets_see_it_count(start_target(EVENTLET COUNT, GREEN));
}

static void
eventlets_example_runs_with_everything_patched(void)
{
    require_debian_module("eventlet");
    assert_two_telnets_see_it_count(
        start_target("import eventlet; eventlet.monkey_patch()\n" EVENTLET COUNT, GREEN));
}

static void
gevents_sockets_serve_two_telnets(void)
{
    require_debian_module("gevent");
    assert_two_telnets_see_it_count(start_target(
        "import gevent.monkey; gevent.monkey.patch_all()\n" GEVENT COUNT, GREEN));
}

static void
backdoor_blocks_no_program_without_a_loop(void)
{
    assert_two_telnets_see_it_count(start_target(NEITHER COUNT));
}

/* An accept() loop of the application's own. */
#define ACCEPT_TCP(accept)                                                               \
  "import socket, threading, manhole\n"                                                  \
  "listener = socket.create_server(('localhost', 0))\n"                                  \
  "print('at', listener.getsockname()[1], 'now', flush=True)\n"                          \
  "while True:\n"                                                                        \
  "    " accept "\n"

static int
port_at(struct process *app)
{
    wait_for_text(app, OUT, "at ", DEADLINE);
    return (int)strtol(wait_for_text(app, OUT, " ", DEADLINE), NULL, 10);
}

static void
backdoor_serves_connections_that_the_program_accepts(void)
{
    struct process *app = start_target(ACCEPT_TCP(
        "connection = listener.accept(); manhole.backdoor(connection, {'x': 'y'}); "
        "connection[0].close()"));
    int port = port_at(app);
    struct client *one = client_at_prompt(port);
    struct client *other = client_at_prompt(port);
    assert_string_equal(client_ask(one, "x"), "'y'\n");
    assert_string_equal(client_ask(other, "x"), "'y'\n");
}

/* Both ends of its connection are IPv6 addresses that stand for IPv4's. */
static void
backdoor_serves_an_ipv4_client_of_an_ipv6_socket(void)
{
    struct process *app = start_target(
        "import socket, manhole\n"
        "try: listener = socket.create_server(('::', 0), family=socket.AF_INET6, "
        "dualstack_ipv6=True)\n"
        "except OSError: listener = socket.create_server(('localhost', 0))\n"
        "print('at', listener.getsockname()[1], 'now', flush=True)\n"
        "manhole.backdoor(listener.accept(), {'family': listener.family.name})\n" STAY);
    struct client *client = client_at_prompt(port_at(app));
    if (strcmp(client_ask(client, "family"), "'AF_INET6'\n") != 0) {
        skip_test("this machine has no IPv6");
    }
    wait_for_text(app, ERR, " from 127.0.0.1:", DEADLINE);
}

static void
backdoor_may_be_a_unix_socket(void)
{
    struct process *app =
        start_target("import socket, manhole\n"
                     "listener = socket.create_server('door', family=socket.AF_UNIX)\n"
                     "manhole.backdoor_server(listener, {'x': 'y'})\n" READY STAY);
    wait_until_ready(app);
    assert_contains(text_of(app, ERR), "Backdoor server listening on door\n");
    struct client *client = connect_client(test_path("door"));
    client_wait_for(client, ">>> ");
    assert_string_equal(client_ask(client, "x"), "'y'\n");
}

/* One server more: word that one is closed comes before its place is free. */
static bool
serves_one_more(void *app)
{
    return strstr(evaluate(app, "serve()"), "socket") != NULL;
}

static void
one_backdoor_more_than_there_may_be_is_refused_until_one_closes(void)
{
    struct process *app =
        start_target("import socket, manhole\n"
                     "def serve():\n"
                     "    server = socket.create_server(('localhost', 0))\n"
                     "    manhole.backdoor_server(server)\n"
                     "    return server\n"
                     "servers = [serve() for i in range(8)]\n" EVALUATE);
    assert_string_equal(evaluate(app, "serve()"),
                        "RuntimeError: 8 backdoor servers are open already");
    evaluate(app, "servers.pop().shutdown(socket.SHUT_RDWR)");
    wait_for_text(app, ERR, "the application has closed its socket", DEADLINE);
    wait_until(serves_one_more, app, "one more is served", DEADLINE);
}

static void
eventlets_own_accept_loop_works(void)
{
    require_debian_module("eventlet");
    struct process *app =
        start_target("import eventlet, manhole\n"
                     "listener = eventlet.listen(('localhost', 0))\n"
                     "print('at', listener.getsockname()[1], 'now', flush=True)\n"
                     "def serve():\n"
                     "    while True: manhole.backdoor(listener.accept(), globals())\n"
                     "eventlet.spawn(serve)\n"
                     "sleep = eventlet.sleep\n" COUNT,
                     GREEN);
    int port = port_at(app);
    assert_string_equal(client_ask(client_at_prompt(port), "myfunc()"), "'my'\n");
    assert_string_equal(client_ask(client_at_prompt(port), "counter >= 0"), "True\n");
}

static void
install_may_come_after_a_backdoor(void)
{
    struct process *app = start_target(NEITHER INSTALL("locals={'mine': 1}") READY STAY);
    int port = backdoor_port(app);
    wait_until_ready(app);
    assert_contains(client_ask(client_at_prompt(port), "mine"), "NameError");
    struct client *client = connect_to(app);
    client_wait_for(client, ">>> ");
    assert_string_equal(client_ask(client, "mine"), "1\n");
}

static void
backdoor_may_come_after_an_install_of_any_kind(void)
{
    static const char *const arguments[] = {"", "thread=False", "activate_on='USR1'",
                                            "oneshot_on='USR1'",
                                            "connection_handler='exec'"};
    for (size_t i = 0; i < sizeof(arguments) / sizeof(*arguments); i++) {
        struct process *app =
            start_target(format_text(INSTALL("%s") NEITHER READY STAY, arguments[i]));
        int port = backdoor_port(app);
        struct client *client = NULL;
        wait_until_ready(app);
        client = client_at_prompt(port);
        assert_string_equal(client_ask(client, "6 * 7"), "42\n");
    }
}

static void
backdoor_alone_opens_no_other_socket(void)
{
    struct process *app = start_target(NEITHER READY STAY);
    wait_until_ready(app);
    assert_no_path(socket_path_of(app->pid));
}

static void
client_of_a_backdoor_does_not_keep_the_process(void)
{
    struct process *app = start_target(NEITHER READY STAY);
    struct client *client = client_at_prompt(backdoor_port(app));
    close_stdin(app);
    assert_int_equal(wait_for_exit(app, DEADLINE), 0);
    client_read_until_eof(client);
}

static void
closing_the_socket_ends_the_server(void)
{
    static const char *const ends[] = {"sock.close()", "sock.shutdown(socket.SHUT_RDWR)"};
    for (size_t i = 0; i < sizeof(ends) / sizeof(*ends); i++) {
        struct process *app =
            start_target(format_text(NEITHER "import os\n%s\n" READY STAY, ends[i]));
        int port = backdoor_port(app);
        wait_until_ready(app);
        (void)run_command(LIST("nc", "-N", "127.0.0.1", text_of_port(port)), "", NULL,
                          NULL);
        wait_for_text(app, ERR, "is closed: the application has closed its socket",
                      DEADLINE);
    }
}

static void
backdoor_of_a_stuck_program_shows_its_stacks(void)
{
    struct process *app =
        start_target(NEITHER "import ctypes\n" READY "ctypes.PyDLL(None).pause()\n");
    int port = backdoor_port(app);
    wait_until_ready(app);
    client_wait_for(connect_port(port), "ctypes.PyDLL(None).pause()");
}

static void
other_user_at_a_backdoor_is_refused_and_it_serves_on(void)
{
    need_root();
    struct process *app = start_target(NEITHER COUNT);
    int port = backdoor_port(app);
    struct process *nc = start_nc_as(NOBODY, port, "counter = -10 ** 9\n");
    (void)wait_for_exit(nc, DEADLINE);
    assert_string_equal(text_of(nc, OUT), "");
    wait_for_text(app, ERR, "UID:65534. It doesn't match", DEADLINE);
    assert_string_equal(client_ask(client_at_prompt(port), "counter >= 0"), "True\n");
}

static void
other_user_does_not_end_the_programs_accept_loop(void)
{
    need_root();
    struct process *app = start_target(ACCEPT_TCP("manhole.backdoor(listener.accept())"));
    int port = port_at(app);
    struct process *nc = start_nc_as(NOBODY, port, "6 * 7\n");
    (void)wait_for_exit(nc, DEADLINE);
    assert_string_equal(text_of(nc, OUT), "");
    assert_string_equal(client_ask(client_at_prompt(port), "6 * 7"), "42\n");
}

static void
socket_that_will_not_do_is_refused(void)
{
    static const struct {
        const char *call;
        const char *error;
    } rows[] = {
        {"backdoor_server(socket.create_server(('0.0.0.0', 0)))",
         "ValueError: the socket of backdoor_server() must be an address of this machine "
         "alone, as localhost is, not 0.0.0.0:"},
        {"backdoor_server(socket.socket())",
         "ValueError: backdoor_server() needs a socket that listens; for a connected one "
         "there is backdoor((conn, addr))"},
        {"backdoor_server(open('/dev/null'))", "OSError: [Errno 88]"},
        {"backdoor_server('x')",
         "TypeError: argument must be an int, or have a fileno()"},
        {"backdoor_server(socket.create_server(('localhost', 0)), 7)",
         "TypeError: backdoor_server() argument 'locals' must be a mapping of names, or "
         "None, not 7"},
        {"backdoor(socket.socket())", "TypeError: "},
        {"backdoor((socket.socket(), None), locals=7)",
         "TypeError: backdoor() argument 'locals' must be a mapping of names, or None, "
         "not 7"},
    };
    for (size_t i = 0; i < sizeof(rows) / sizeof(*rows); i++) {
        struct process *app = start_target(
            format_text("import manhole, socket\nmanhole.%s\n", rows[i].call));
        assert_int_equal(wait_for_exit(app, DEADLINE), 1);
        assert_contains(text_of(app, ERR), rows[i].error);
    }
}

/* eventlet sets builtins._, and gettext's users have it in their modules. */
static void
console_leaves_an_underscore_of_the_program_alone(void)
{
    struct process *app = start_target("_ = 'theirs'\n" NEITHER READY STAY);
    int port = backdoor_port(app);
    wait_until_ready(app);
    struct client *client = client_at_prompt(port);
    assert_string_equal(client_ask(client, "6 * 7"), "42\n");
    assert_string_equal(client_ask(client, "_ + 1"), "43\n");
    assert_string_equal(client_ask(client, "__import__('__main__')._"), "'theirs'\n");
    client_ask(client, "def f(): return sleep, _\n");
    assert_string_equal(client_ask(client, "6 * 7"), "42\n");
    assert_matches(client_ask(client, "f()"), "function sleep>, 42\\)$");
    assert_string_equal(client_ask(client, "'sleep' in dir(), 'sleep' in globals()"),
                        "(True, True)\n");
}

int
main(void)
{
    static const struct test_case tests[] = {
        TEST(client_of_a_port_has_stacks_and_console),
        TEST(port_that_was_chosen_is_told_to_the_program),
        TEST(every_place_of_a_list_is_served),
        TEST(listen_replaces_the_usual_path),
        TEST(socket_path_is_served_beside_listen),
        TEST(paths_are_removed_at_the_end),
        TEST(address_that_others_can_reach_is_refused),
        TEST(what_is_no_place_is_refused_by_name),
        TEST(port_that_is_taken_is_a_line_in_the_log),
        TEST(released_port_is_free_and_its_clients_stay),
        TEST(child_says_that_the_port_is_its_parents_and_has_its_own_path),
        TEST(child_has_a_port_of_its_own_where_any_will_do),
        TEST(socket_that_was_given_is_as_before_after_release),
        TEST(child_whose_parent_has_ended_has_the_port),
        TEST(client_of_another_uid_gets_no_byte),
        TEST(flood_of_another_user_keeps_nobody_out),
        TEST(client_that_closes_before_it_is_looked_at_is_refused),
        TEST(root_may_enter_another_users_process),
        TEST(browser_runs_nothing),
        TEST(first_line_may_come_in_pieces_or_without_an_end),
        TEST(telnet_talks_to_python),
        TEST(telnet_sends_characters_beyond_ascii),
        TEST(nobody_but_telnet_is_asked_for_binary),
        TEST(line_that_is_not_utf_8_is_named),
        TEST(ctrl_c_in_telnet_interrupts_what_runs),
        TEST(ctrl_c_in_telnet_drops_an_unfinished_statement),
        TEST(ctrl_c_in_telnet_drops_a_half_typed_command),
        TEST(ctrl_d_in_telnet_ends_the_session),
        TEST(negotiation_is_answered_with_no_and_never_seen),
        TEST(refusals_are_not_answered),
        TEST(urgent_interrupt_keeps_its_place),
        TEST(nc_that_only_ends_its_input_gets_all_output),
        TEST(loop_of_a_client_that_left_is_interrupted),
        TEST(half_a_line_of_a_client_that_left_is_not_run),
        TEST(clients_that_come_and_go_leave_nothing),
        TEST(signal_opens_the_port),
        TEST(oneshot_serves_a_client_of_the_port),
        TEST(stuck_process_shows_its_stacks),
        TEST(eventlets_example_runs_with_two_telnets),
        TEST(eventlets_example_runs_with_everything_patched),
        TEST(gevents_sockets_serve_two_telnets),
        TEST(backdoor_blocks_no_program_without_a_loop),
        TEST(backdoor_serves_connections_that_the_program_accepts),
        TEST(backdoor_serves_an_ipv4_client_of_an_ipv6_socket),
        TEST(backdoor_may_be_a_unix_socket),
        TEST(one_backdoor_more_than_there_may_be_is_refused_until_one_closes),
        TEST(eventlets_own_accept_loop_works),
        TEST(install_may_come_after_a_backdoor),
        TEST(backdoor_may_come_after_an_install_of_any_kind),
        TEST(backdoor_alone_opens_no_other_socket),
        TEST(client_of_a_backdoor_does_not_keep_the_process),
        TEST(closing_the_socket_ends_the_server),
        TEST(backdoor_of_a_stuck_program_shows_its_stacks),
        TEST(other_user_at_a_backdoor_is_refused_and_it_serves_on),
        TEST(other_user_does_not_end_the_programs_accept_loop),
        TEST(socket_that_will_not_do_is_refused),
        TEST(console_leaves_an_underscore_of_the_program_alone),
    };
    return RUN_TESTS(tests);
}
