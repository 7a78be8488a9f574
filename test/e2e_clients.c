/* e2e_clients.c - the programs that people connect with besides manhole-cli: socat, nc, rlwrap,
 * Python's own socket. Piped input is run to its end and all its output comes back; on a
 * terminal they are a console; however they leave, the application notices nothing.
 */
#include "support.h"

#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

enum {
    MAX_WORDS = 12,
    MUCH = 3 * 1000 * 1000,
};

/* ---- The clients ------------------------------------------------------------------- */

/* In a command it stands for the socket's path, alone or at the end of a word. */
#define PLACEHOLDER "PATH"

/* Copies as socat does: all of stdin, a half-close, all that comes. */
static const char COPY[] = //
    "import socket, sys\n"
    "client = socket.socket(socket.AF_UNIX)\n"
    "client.connect(sys.argv[1])\n"
    "client.sendall(sys.stdin.buffer.read())\n"
    "client.shutdown(socket.SHUT_WR)\n"
    "for data in iter(lambda: client.recv(65536), b''): sys.stdout.buffer.write(data)\n";

/* Each ends its side of the connection where its stdin ends. socat then gives the other side
 * half a second unless -t says more; OpenBSD's nc wants -N. */
static const char *const piped[][MAX_WORDS] = {
    {"manhole-cli", "PATH"},
    {"socat", "-t", "60", "-", "unix-connect:PATH"},
    {"socat", "-t", "60", "stdio", "unix-client:PATH"},
    {"nc", "-N", "-U", "PATH"},
    {"rlwrap", "nc", "-N", "-U", "PATH"},
    {"python3", "-c", COPY, "PATH"},
};

/* Those that are a console on a terminal, as docs/client.rst has them. */
static const char *const interactive[][MAX_WORDS] = {
    {"manhole-cli", "PATH"},
    {"socat", "-", "unix-connect:PATH"},
    {"nc", "-U", "PATH"},
    {"rlwrap", "nc", "-U", "PATH"},
    {"rlwrap", "socat", "-", "unix-connect:PATH"},
};

/* Debian's socat, for one, is built without readline. */
static const char *const socat_readline[MAX_WORDS] = {"socat", "readline",
                                                      "unix-connect:PATH"};

#define ROWS(table) (sizeof(table) / sizeof((table)[0]))

/* One word of a command, for this socket and this build. */
static const char *
fill_in(const char *word, const char *path)
{
    const size_t end = sizeof(PLACEHOLDER) - 1;
    size_t length = strlen(word);
    if (strcmp(word, "manhole-cli") == 0) {
        return build_path(word);
    }
    if (strcmp(word, "python3") == 0) {
        return python();
    }
    if (length >= end && strcmp(word + length - end, PLACEHOLDER) == 0) {
        return format_text("%.*s%s", (int)(length - end), word, path);
    }
    return word;
}

static void
require_clients(void)
{
    require_program("socat");
    require_program("nc");
    require_program("rlwrap");
}

static struct process *
start_command(const char *const words[], const struct process *app, bool terminal)
{
    const char *argv[MAX_WORDS] = {0};
    for (size_t i = 0; words[i] != NULL; i++) {
        argv[i] = fill_in(words[i], socket_path_of(app->pid));
    }
    return start_process(.argv = argv, .terminal = terminal, .env = LIST("TERM=xterm"));
}

/* ---- The application --------------------------------------------------------------- */

/* Prints the line that its stdin says as often as that says: "1000 text". */
#define TALKATIVE                                                                        \
  READY                                                                                  \
  "import os\n"                                                                          \
  "for line in iter(lambda: os.read(0, 4096).decode(), ''):\n"                           \
  "    count, text = line.split()\n"                                                     \
  "    for i in range(int(count)): print(text, flush=True)\n"                            \
  "    print('said', flush=True)\n"

static struct process *
start_app(void)
{
    struct process *app = start_target(INSTALL("") TALKATIVE);
    wait_until_ready(app);
    return app;
}

static void
assert_goes_on(struct process *app)
{
    write_stdin(app, "1 hello\n");
    wait_for_text(app, OUT, "hello\nsaid\n", DEADLINE);
}

/* The main thread and the listener. */
static bool
has_no_session(void *argument)
{
    const struct process *app = argument;
    return count_threads(app->pid) == 2;
}

static void
assert_alone_again(struct process *app)
{
    wait_until(has_no_session, app, "its sessions have ended", DEADLINE);
    assert_goes_on(app);
}

/* ---- Piped input ------------------------------------------------------------------- */

static void
assert_ends(struct process *client, const char *name)
{
    int status = wait_for_exit(client, DEADLINE);
    if (status != 0) {
        fail_msg("%s: status %d", name, status);
    }
}

/* How often a character stands in a text. */
static int
count_of(const char *text, char wanted)
{
    int count = 0;
    for (; *text != '\0'; text++) {
        count += *text == wanted;
    }
    return count;
}

/* Much of it, after the input has ended, and the last line without a newline. */
static void
piped_input_brings_all_its_output(void)
{
    require_clients();
    struct process *app = start_app();
    for (size_t i = 0; i < ROWS(piped); i++) {
        struct process *client = start_command(piped[i], app, false);
        write_stdin(client, format_text("print('%%' * %d)\nprint('la' + 'st')", MUCH));
        close_stdin(client);
        assert_ends(client, piped[i][0]);
        assert_int_equal(count_of(text_of(client, OUT), '%'), MUCH);
        assert_contains(text_of(client, OUT),
                        "%\n>>> last\n>>> \nnow exiting ManholeConsole...\n");
    }
    assert_alone_again(app);
}

/* The input is over long before the statement is. */
static void
statement_that_outlives_its_input_is_finished(void)
{
    require_clients();
    struct process *app = start_app();
    for (size_t i = 0; i < ROWS(piped); i++) {
        struct process *client = start_command(piped[i], app, false);
        write_stdin(client, "open('begun', 'w').close()\n"
                            "while not os.path.exists('go-on'): pass\n\n"
                            "print('fini' + 'shed')\n");
        close_stdin(client);
        wait_for_path(test_path("begun"), DEADLINE);
        write_file("go-on", "");
        assert_ends(client, piped[i][0]);
        assert_contains(text_of(client, OUT), ">>> finished\n");
        assert_int_equal(unlink(test_path("begun")) | unlink(test_path("go-on")), 0);
    }
    assert_alone_again(app);
}

static void
empty_input_brings_the_stacks_and_ends(void)
{
    require_clients();
    struct process *app = start_app();
    for (size_t i = 0; i < ROWS(piped); i++) {
        struct process *client = start_command(piped[i], app, false);
        close_stdin(client);
        assert_ends(client, piped[i][0]);
        assert_matches(text_of(client, OUT), "^######### ProcessID=[0-9]+, ThreadID=");
        assert_contains(text_of(client, OUT), "\nnow exiting ManholeConsole...\n");
    }
    assert_alone_again(app);
}

/* Although its own stdin is still open. */
static void
exit_in_the_input_ends_the_client(void)
{
    require_clients();
    struct process *app = start_app();
    for (size_t i = 0; i < 3; i++) {
        struct process *client = start_command(interactive[i], app, false);
        write_stdin(client, "exit()\n");
        assert_ends(client, interactive[i][0]);
    }
    assert_alone_again(app);
}

/* Without -N it does not tell the session that its input has ended. */
static void
nc_without_N_stays_until_it_is_told_to_exit(void)
{
    require_clients();
    static const char *const words[] = {"nc", "-U", "PATH", NULL};
    struct process *app = start_app();
    struct process *client = start_command(words, app, false);
    write_stdin(client, "40 + 2\nexit()\n");
    close_stdin(client);
    assert_ends(client, "nc -U");
    assert_contains(text_of(client, OUT), ">>> 42\n>>> ");
    assert_alone_again(app);
}

/* ---- On a terminal ----------------------------------------------------------------- */

static void
assert_is_a_console(const char *const words[], struct process *app)
{
    struct process *client = start_command(words, app, true);
    wait_for_text(client, OUT, ">>> ", DEADLINE);
    write_stdin(client, "'for' + 'ty'\n");
    wait_for_text(client, OUT, "'forty'", DEADLINE);
    wait_for_text(client, OUT, ">>> ", DEADLINE);
    assert_goes_on(app);
    wait_for_text(client, OUT, "hello", DEADLINE);
    write_stdin(client, "exit()\n");
    assert_ends(client, words[0]);
}

/* At the key with the arrow up. */
static void
assert_brings_the_last_line_again(const char *const words[], struct process *app)
{
    struct process *client = start_command(words, app, true);
    wait_for_text(client, OUT, ">>> ", DEADLINE);
    write_stdin(client, "'for' + 'ty'\n");
    wait_for_text(client, OUT, "'forty'", DEADLINE);
    wait_for_text(client, OUT, ">>> ", DEADLINE);
    write_stdin(client, "\x1b[A\n");
    wait_for_text(client, OUT, "'forty'", DEADLINE);
}

static void
client_on_a_terminal_is_a_console(void)
{
    require_clients();
    struct process *app = start_app();
    for (size_t i = 0; i < ROWS(interactive); i++) {
        assert_is_a_console(interactive[i], app);
    }
    assert_alone_again(app);
}

static void
rlwrap_has_a_history(void)
{
    require_clients();
    assert_brings_the_last_line_again(interactive[3], start_app());
}

static void
socat_with_readline_is_a_console_with_a_history(void)
{
    const char *out = "";
    require_clients();
    run_command(LIST("socat", "-V"), NULL, &out, NULL);
    if (strstr(out, "#define WITH_READLINE") == NULL) {
        skip_test("this socat is built without readline");
    }
    struct process *app = start_app();
    assert_is_a_console(socat_readline, app);
    assert_brings_the_last_line_again(socat_readline, app);
}

/* These have no Ctrl-C of their own: they end, and what they leave behind is interrupted. */
static void
ctrl_c_ends_the_client_and_what_it_left_running(void)
{
    require_clients();
    struct process *app = start_app();
    for (size_t i = 1; i <= 2; i++) {
        struct process *client = start_command(interactive[i], app, true);
        wait_for_text(client, OUT, ">>> ", DEADLINE);
        write_stdin(client, "while not open('begun', 'w').close(): pass\n\n");
        wait_for_path(test_path("begun"), DEADLINE);
        write_stdin(client, "\x03");
        wait_for_exit(client, DEADLINE);
        assert_alone_again(app);
        assert_int_equal(unlink(test_path("begun")), 0);
    }
}

/* ---- Stalled, vanished ------------------------------------------------------------- */

/* Ctrl-Z: the client is there and reads nothing. */
static void
stopped_client_holds_up_nothing_and_learns_what_it_missed(void)
{
    require_clients();
    struct process *app = start_app();
    struct process *client = start_command(interactive[1], app, true);
    wait_for_text(client, OUT, ">>> ", DEADLINE);
    send_signal(client, SIGSTOP);
    write_stdin(app, "50000 a-line-of-fifty-characters-that-nobody-is-waiting-for\n");
    wait_for_text(app, OUT, "said\n", DEADLINE);
    struct client *other = connect_to(app);
    client_wait_for(other, ">>> ");
    assert_contains(client_ask(other, "40 + 2"), "42\n");
    send_signal(client, SIGCONT);
    wait_for_text(client, OUT, " bytes not shown]", DEADLINE);
}

/* Says that it has come so far. */
#define BEGUN "open('begun', 'w').close()"

static void
killed_client_leaves_nothing(void)
{
    require_clients();
    static const char *const statements[] = {
        BEGUN "\n",
        BEGUN "\nhalf a li",
        "while not " BEGUN ": pass\n\n",
        "while not " BEGUN ": print('x' * 1000)\n\n",
    };
    struct process *app = start_app();
    for (size_t i = 0; i < ROWS(statements); i++) {
        struct process *client = start_command(interactive[1 + i % 2], app, false);
        wait_for_text(client, OUT, ">>> ", DEADLINE);
        write_stdin(client, statements[i]);
        wait_for_path(test_path("begun"), DEADLINE);
        send_signal(client, SIGKILL);
        wait_for_exit(client, DEADLINE);
        assert_alone_again(app);
        assert_int_equal(unlink(test_path("begun")), 0);
    }
}

/* Half-closed: it has said all, and reads on as slowly as it likes. */
static void
half_closed_client_gets_the_rest(void)
{
    struct process *app = start_app();
    struct client *client = connect_to(app);
    client_wait_for(client, ">>> ");
    client_send(client, format_text("print('%%' * %d)\n'last'", MUCH));
    client_shutdown_write(client);
    const char *rest = client_read_until_eof(client);
    assert_int_equal(count_of(rest, '%'), MUCH);
    assert_contains(rest, "%\n>>> 'last'\n>>> \nnow exiting ManholeConsole...\n");
    assert_alone_again(app);
}

/* It hears nothing more, and says so to the kernel: that is as good as gone. */
static void
client_that_has_closed_its_reading_side_is_let_go(void)
{
    struct process *app = start_app();
    struct client *client = connect_to(app);
    client_wait_for(client, ">>> ");
    assert_int_equal(shutdown(client->fd, SHUT_RD), 0);
    client_send(client, "1\n");
    assert_alone_again(app);
}

static void
all_kinds_are_served_side_by_side(void)
{
    require_clients();
    struct process *clients[3];
    struct process *app = start_app();
    for (size_t i = 0; i < 3; i++) {
        clients[i] = start_command(interactive[i], app, false);
        wait_for_text(clients[i], OUT, ">>> ", DEADLINE);
    }
    for (size_t i = 0; i < 3; i++) {
        write_stdin(clients[i], format_text("'number' + '%zu'\n", i));
        wait_for_text(clients[i], OUT, format_text("'number%zu'\n>>> ", i), DEADLINE);
    }
    assert_goes_on(app);
    for (size_t i = 0; i < 3; i++) {
        wait_for_text(clients[i], OUT, "hello\n", DEADLINE);
        write_stdin(clients[i], "exit()\n");
        assert_ends(clients[i], interactive[i][0]);
        assert_not_contains(text_of(clients[i], OUT),
                            format_text("'number%zu'", (i + 1) % 3));
    }
    assert_alone_again(app);
}

int
main(void)
{
    static const struct test_case tests[] = {
        TEST(piped_input_brings_all_its_output),
        TEST(statement_that_outlives_its_input_is_finished),
        TEST(empty_input_brings_the_stacks_and_ends),
        TEST(exit_in_the_input_ends_the_client),
        TEST(nc_without_N_stays_until_it_is_told_to_exit),
        TEST(client_on_a_terminal_is_a_console),
        TEST(rlwrap_has_a_history),
        TEST(socat_with_readline_is_a_console_with_a_history),
        TEST(ctrl_c_ends_the_client_and_what_it_left_running),
        TEST(stopped_client_holds_up_nothing_and_learns_what_it_missed),
        TEST(killed_client_leaves_nothing),
        TEST(half_closed_client_gets_the_rest),
        TEST(client_that_has_closed_its_reading_side_is_let_go),
        TEST(all_kinds_are_served_side_by_side),
    };
    return RUN_TESTS(tests);
}
