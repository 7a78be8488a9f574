/* e2e_sessions.c - many clients of one process: none waits for another, none holds up the
 * application, and each can be interrupted.
 */
#include "support.h"

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <linux/sockios.h>
#include <sys/ioctl.h>
#include <unistd.h>

enum {
    MAX_SESSIONS = 64, /* the default */
    /* More than what a client's socket and the application's copies for it hold. */
    FLOOD_LINES = 40000,
};

static struct process *
start_ready(const char *program)
{
    struct process *app = start_target(program);
    wait_until_ready(app);
    return app;
}

static struct client *
client_at_prompt(const struct process *app)
{
    struct client *client = connect_to(app);
    client_wait_for(client, ">>> ");
    return client;
}

static void
assert_answers(struct client *client)
{
    assert_string_equal(client_ask(client, "6 * 7"), "42\n");
}

static const char *
path_of(const struct process *app)
{
    return socket_path_of(app->pid);
}

/* A statement that has said "begun" and does not end. */
static void
client_begin_endless(struct client *client)
{
    client_send(client, "if print('begun') is None:\n    while True: pass\n\n");
    client_wait_for(client, "begun\n");
}

/* Output that this client will not read. */
static void
client_begin_flood(struct client *client)
{
    client_send(client, "while True: print('x' * 1000)\n\n");
    client_wait_for(client, "xxx");
}

/* ======================================================================================
 * Clients side by side.
 * ======================================================================================
 */

static void
client_in_an_endless_loop_keeps_nobody_out(void)
{
    struct process *app = start_ready(TARGET(""));
    client_begin_endless(client_at_prompt(app));
    assert_answers(client_at_prompt(app));
}

static void
client_that_stopped_reading_keeps_nobody_out(void)
{
    struct process *app = start_ready(TARGET(""));
    client_begin_flood(client_at_prompt(app));
    assert_answers(client_at_prompt(app));
}

/* Ctrl-Z in the middle of the greeting. */
static void
client_that_is_stopped_keeps_nobody_out(void)
{
    struct process *app = start_ready(TARGET(""));
    struct process *cli = start_process(.argv = LIST(build_path("manhole-cli"),
                                                     format_text("%d", (int)app->pid)));
    wait_for_text(cli, OUT, ">>> ", DEADLINE);
    send_signal(cli, SIGSTOP);
    write_stdin(cli, "while True: print('x' * 1000)\n\n");
    assert_answers(client_at_prompt(app));
}

static void
clients_that_never_speak_keep_nobody_out(void)
{
    struct process *app = start_ready(TARGET(""));
    for (int i = 0; i < 20; i++) {
        connect_to(app);
    }
    assert_answers(client_at_prompt(app));
}

static void
flood_of_connections_passes_and_leaves_nothing(void)
{
    struct process *app = start_ready(TARGET("verbose=False"));
    struct client *client = client_at_prompt(app);
    client_ask(client, "import os");
    int fds = count_fds(app->pid);
    int threads = count_threads(app->pid);
    for (int i = 0; i < 500; i++) {
        client_close(connect_to(app));
    }
    assert_answers(client);
    wait_for_usage(app->pid, fds, threads);
}

static void
client_beyond_the_limit_is_told(void)
{
    struct process *app = start_ready(TARGET("max_sessions=2"));
    struct client *first = client_at_prompt(app);
    struct client *second = client_at_prompt(app);
    assert_string_equal(client_read_until_eof(connect_to(app)),
                        "manhole: 2 clients are connected already; try again later\n");
    wait_for_text(app, ERR, "Turned a client away: 2 clients are connected already",
                  DEADLINE);
    assert_answers(first);
    assert_answers(second);
}

static void
place_of_a_client_that_left_is_free_again(void)
{
    struct process *app = start_ready(TARGET("max_sessions=1"));
    for (int i = 0; i < 3; i++) {
        struct client *client = client_at_prompt(app);
        client_send(client, "exit()\n");
        client_read_until_eof(client);
    }
}

static void
sixty_four_clients_are_served_and_one_more_is_not(void)
{
    struct process *app = start_ready(TARGET("verbose=False"));
    struct client *clients[MAX_SESSIONS];
    for (int i = 0; i < MAX_SESSIONS; i++) {
        clients[i] = client_at_prompt(app);
    }
    client_begin_endless(clients[0]);
    client_begin_flood(clients[1]);
    assert_string_equal(client_read_until_eof(connect_to(app)),
                        "manhole: 64 clients are connected already; try again later\n");
    for (int i = 2; i < MAX_SESSIONS; i++) {
        assert_answers(clients[i]);
    }
    close_stdin(app);
    for (int i = 0; i < MAX_SESSIONS; i++) {
        client_close(clients[i]);
    }
    assert_int_equal(wait_for_exit(app, DEADLINE), 0);
}

/* ======================================================================================
 * The application beside them.
 * ======================================================================================
 */

/* Prints numbered lines, as many as it is told to, into a file: the test reads what the
 * clients get. Then says so on stderr, of which a client hears nothing. */
#define PRINTER                                                                          \
  "import os, sys\n"                                                                     \
  "sys.stdout = open('printed', 'w')\n"                                                  \
  "os.write(2, b'ready\\n')\n"                                                           \
  "for text in iter(lambda: os.read(0, 100), b''):\n"                                    \
  "    for i in range(int(text)): print('line %9d' % i + '.' * 85)\n"                    \
  "    sys.stdout.flush()\n"                                                             \
  "    os.write(2, b'printed\\n')\n"

static struct process *
start_printer(void)
{
    struct process *app = start_target(INSTALL("verbose=False") PRINTER);
    wait_for_text(app, ERR, "ready\n", DEADLINE);
    return app;
}

static void
print_lines(struct process *app, int count)
{
    write_stdin(app, format_text("%d\n", count));
    wait_for_text(app, ERR, "printed\n", DEADLINE);
}

static void
app_prints_on_whatever_its_clients_do(void)
{
    struct process *app = start_printer();
    client_at_prompt(app); /* and reads no more */
    client_begin_flood(client_at_prompt(app));
    client_begin_endless(client_at_prompt(app));
    print_lines(app, FLOOD_LINES);
    print_lines(app, FLOOD_LINES);
}

/* It is the listener that is to send it, without waiting: in one piece, which fits the copies kept
 * for a client and not its socket. The second that comes finds the listener back from there. */
static void
client_that_reads_nothing_of_what_the_application_prints_keeps_nobody_out(void)
{
    struct process *app =
        start_ready(INSTALL("") "import os, sys\n" READY "sys.stdin.readline()\n"
                                "print('%' * 900000)\n"
                                "os.write(1, b'printed')\n" STAY);
    client_at_prompt(app); /* and reads no more */
    write_stdin(app, "\n");
    wait_for_text(app, OUT, "printed",
                  DEADLINE); /* clients that come hear nothing of it */
    assert_answers(client_at_prompt(app));
    assert_answers(client_at_prompt(app));
}

/* What came is the beginning of what was printed, a note, and what was printed afterwards;
 * and the note has the number of all that is missing. */
static void
what_a_slow_client_misses_is_counted_and_told(void)
{
    struct process *app = start_printer();
    struct client *client = client_at_prompt(app);
    print_lines(app, FLOOD_LINES);
    const char *shown = client_wait_for(client, "\n[manhole: ");
    const char *number = client_wait_for(client, " bytes not shown]\n");
    size_t length = strlen(shown) - strlen("\n[manhole: ");
    const char *printed = read_file(test_path("printed"));
    assert_memory_equal(shown, printed, length);
    assert_int_equal(length + strtoul(number, NULL, 10), strlen(printed));
    print_lines(app, 1);
    assert_string_equal(client_wait_for(client, "\n"),
                        format_text("line         0%.85s\n", printed + 14));
    client_ask(client, "");
    assert_answers(client);
}

static void
client_that_reads_gets_every_line(void)
{
    struct process *app = start_printer();
    struct client *client = client_at_prompt(app);
    for (int i = 0; i < 20; i++) {
        print_lines(app, 500);
        client_wait_for(client, "line       499");
    }
    assert_not_contains(client->text.data, "not shown");
}

/* Eight threads that count as fast as they can: a turn at the GIL may take its time. */
#define NEIGHBOURS                                                                       \
  INSTALL("hang_timeout=60, locals={'counts': (counts := [0] * 8)}")                     \
  "import threading\n"                                                                   \
  "def spin(i):\n"                                                                       \
  "    while True: counts[i] += 1\n"                                                     \
  "for i in range(8):\n"                                                                 \
  "    threading.Thread(target=spin, args=(i,), daemon=True).start()\n"

static void
busy_neighbours_keep_their_share(void)
{
    struct process *app = start_ready(NEIGHBOURS READY STAY);
    client_close(client_at_prompt(app));
    struct client *client = client_at_prompt(app);
    client_ask(client, "before = list(counts)");
    client_send(client, "while not all(now > then + 1000 for now, then in "
                        "zip(counts, before)): pass\n\n");
    client_wait_for(client, ">>> ");
    client_ask(client, "import sys");
    assert_string_equal(client_ask(client, "sys.getswitchinterval()"), "0.005\n");
}

/* Or it would wait for its turn at the GIL between the two. */
static void
value_comes_with_the_prompt_beside_busy_neighbours(void)
{
    struct client *client = client_at_prompt(start_ready(NEIGHBOURS READY STAY));
    for (int i = 0; i < 5; i++) {
        client_send(client, "6 * 7\n");
        client_wait_for(client, "42\n");
        assert_string_equal(client->text.data + client->text.seen, ">>> ");
        client_wait_for(client, ">>> ");
    }
}

/* ======================================================================================
 * Interrupts: a connection of its own, which bears the client's card and that wish.
 * ======================================================================================
 */

static struct client *
client_with_card(const struct process *app, const char *id)
{
    struct client *client =
        connect_as(path_of(app), format_text("manhole-cli/%s/repl", id));
    client_wait_for(client, ">>> ");
    return client;
}

/* Returns the answer. */
static const char *
ask_for_interrupt(const struct process *app, const char *id)
{
    static unsigned number;
    return client_read_until_eof(connect_as(
        path_of(app), format_text("manhole-cli/%s/interrupt.%u", id, ++number)));
}

/* The test's own, for the names are the machine's. */
static const char *
own_id(int number)
{
    return format_text("%d.%d", (int)getpid(), number);
}

static void
interrupt_ends_the_statement_alone(void)
{
    struct process *app = start_ready(TARGET(""));
    struct client *client = client_with_card(app, own_id(1));
    client_ask(client, "kept = 1");
    for (int i = 0; i < 3; i++) {
        client_begin_endless(client);
        assert_string_equal(ask_for_interrupt(app, own_id(1)), "interrupted\n");
        client_wait_for(client, "KeyboardInterrupt\n>>> ");
    }
    assert_string_equal(client_ask(client, "kept"), "1\n");
}

static void
interrupt_reaches_the_client_that_asked(void)
{
    struct process *app = start_ready(TARGET(""));
    struct client *first = client_with_card(app, own_id(1));
    struct client *second = client_with_card(app, own_id(2));
    client_begin_endless(first);
    client_begin_endless(second);
    assert_string_equal(ask_for_interrupt(app, own_id(2)), "interrupted\n");
    client_wait_for(second, "KeyboardInterrupt\n>>> ");
    assert_answers(second);
    assert_string_equal(ask_for_interrupt(app, own_id(1)), "interrupted\n");
    assert_not_contains(client_wait_for(first, "KeyboardInterrupt\n>>> "), ">>> begun");
}

static void
interrupt_with_nothing_to_interrupt_is_answered(void)
{
    struct process *app = start_ready(TARGET(""));
    struct client *client = client_with_card(app, own_id(1));
    assert_string_equal(ask_for_interrupt(app, own_id(1)), "idle\n");
    assert_string_equal(ask_for_interrupt(app, own_id(2)), "unknown\n");
    assert_answers(client);
}

/* Keeps the GIL from one byte on its stdin to the next. */
#define HOLDS_GIL_AT_TIMES                                                               \
  INSTALL("")                                                                            \
  "import ctypes, os\n"                                                                  \
  "library = ctypes.PyDLL(None)\n"                                                       \
  "byte = ctypes.create_string_buffer(1)\n"                                              \
  "def hold(): library.write(1, b'holds\\n', 6); library.read(0, byte, 1)\n" READY       \
  "while os.read(0, 1): hold()\n"

static struct process *
start_holding_gil_at_times(void)
{
    struct process *app = start_target(HOLDS_GIL_AT_TIMES);
    wait_until_ready(app);
    return app;
}

static void
hold_gil(struct process *app)
{
    write_stdin(app, "x");
    wait_for_text(app, OUT, "holds\n", DEADLINE);
    wait_until_asleep(app->pid);
}

static void
interrupt_of_what_has_not_begun_is_kept(void)
{
    static const struct {
        const char *block; /* before it; or NULL */
        const char *typed;
    } rows[] = {
        {NULL, "exec('while True: pass')\n"},
        {"if True:\n", "    pass\n"},
        {NULL, "\2exec('while True: pass')\5"},
        {"def f():\n", "\6exec('while True: pass')\5"},
    };
    require_gil();
    for (size_t i = 0; i < sizeof(rows) / sizeof(*rows); i++) {
        struct process *app = start_holding_gil_at_times();
        struct client *client = connect_as(
            path_of(app), format_text("manhole-cli/%s/terminal", own_id((int)i)));
        client_wait_for(client, ">>> \2");
        if (rows[i].block != NULL) {
            client_send(client, rows[i].block);
            client_wait_for(client, "... \2");
        }
        hold_gil(app);
        client_send(client, rows[i].typed);
        assert_string_equal(ask_for_interrupt(app, own_id((int)i)), "interrupted\n");
        write_stdin(app, "x");
        client_wait_for(client, "KeyboardInterrupt\n");
        client_wait_for(client, ">>> \2");
        client_send(client, "6 * 7\n");
        client_wait_for(client, "42\n");
    }
}

static bool
has_all_been_read(void *client)
{
    int unread = 0;
    return ioctl(((struct client *)client)->fd, SIOCOUTQ, &unread) == 0 && unread == 0;
}

static void
interrupt_tears_no_text_that_comes_in_pieces(void)
{
    static const struct {
        const char *beginning;
        const char *end;
    } rows[] = {
        {"\2torn = 1\n", "torn = 2\n\5"},
        {"torn = 1; 1 +", "1; torn = 2\n"},
    };
    for (size_t i = 0; i < sizeof(rows) / sizeof(*rows); i++) {
        struct process *app = start_holding_gil_at_times();
        struct client *client = connect_as(
            path_of(app), format_text("manhole-cli/%s/terminal", own_id((int)i)));
        client_wait_for(client, ">>> \2");
        hold_gil(app);
        client_send(client, rows[i].beginning);
        assert_string_equal(ask_for_interrupt(app, own_id((int)i)), "interrupted\n");
        write_stdin(app, "x");
        wait_until(has_all_been_read, client, "the beginning is read", DEADLINE);
        client_send(client, rows[i].end);
        client_wait_for(client, "KeyboardInterrupt\n");
        client_wait_for(client, ">>> \2");
        client_send(client, "torn\n");
        client_wait_for(client, "NameError");
    }
}

static void
interrupt_at_the_first_prompt_of_a_copy_is_not_left_for_a_line(void)
{
    require_copies();
    struct process *app = start_ready(TARGET(""));
    struct client *client = connect_as(
        path_of(app), format_text("manhole-cli/%s/frozen-terminal", own_id(1)));
    client_wait_for(client, "frozen\n");
    client_send(client, "x");
    client_wait_for(client, "copy>>> \2");
    assert_string_equal(ask_for_interrupt(app, own_id(1)), "interrupted\n");
    client_wait_for(client, "KeyboardInterrupt\n");
    client_wait_for(client, "copy>>> \2");
    client_send(client, "6 * 7\n");
    assert_not_contains(client_wait_for(client, "42\n"), "KeyboardInterrupt");
}

/* Sends a program as manhole-cli does. */
static void
send_program(struct client *client, const char *source)
{
    const char *text = format_text("<string>%c-c%c%s", 0, 0, source);
    size_t length = sizeof("<string>") + sizeof("-c") + strlen(source);
    const unsigned char head[4] = {0, 0, (unsigned char)(length >> 8),
                                   (unsigned char)length};
    client_send_bytes(client, head, sizeof(head));
    client_send_bytes(client, text, length);
}

static void
interrupt_before_the_program_has_come_is_kept(void)
{
    static const char *const channels[] = {"exec", "frozen-exec"};
    for (size_t i = 0; i < sizeof(channels) / sizeof(*channels); i++) {
        struct process *app = start_ready(TARGET(""));
        struct client *client = connect_as(
            path_of(app), format_text("manhole-cli/%s/%s", own_id(1), channels[i]));
        if (i > 0) {
            require_copies();
            client_wait_for(client, "frozen\n");
        }
        assert_string_equal(ask_for_interrupt(app, own_id(1)), "interrupted\n");
        send_program(client, "while True: pass");
        client_wait_for(client, "KeyboardInterrupt\n");
    }
}

static void
interrupt_is_no_session(void)
{
    struct process *app = start_ready(TARGET("max_sessions=1"));
    struct client *client = client_with_card(app, own_id(1));
    client_begin_endless(client);
    assert_string_equal(ask_for_interrupt(app, own_id(1)), "interrupted\n");
    client_wait_for(client, "KeyboardInterrupt\n>>> ");
}

static void
interrupt_is_not_logged(void)
{
    struct process *app = start_ready(TARGET(""));
    struct client *client = client_with_card(app, own_id(1));
    wait_for_text(app, ERR, "Accepted connection", DEADLINE);
    client_begin_endless(client);
    assert_string_equal(ask_for_interrupt(app, own_id(1)), "interrupted\n");
    client_wait_for(client, "KeyboardInterrupt\n>>> ");
    client_send(client, "exit()\n");
    assert_not_contains(wait_for_text(app, ERR, "Cleaned up.", DEADLINE),
                        "Accepted connection");
}

static void
interrupt_reaches_a_statement_that_prints_to_nobody(void)
{
    struct process *app = start_ready(TARGET(""));
    struct client *client = client_with_card(app, own_id(1));
    client_begin_flood(client);
    assert_string_equal(ask_for_interrupt(app, own_id(1)), "interrupted\n");
    client_wait_for(client, "KeyboardInterrupt\n>>> ");
    assert_answers(client);
}

static void
require_waits_that_can_be_ended(void)
{
    if (!is_python_from(15)) {
        skip_test("before CPython 3.15 a call waits on, whatever its thread is to raise");
    }
}

static void
interrupt_ends_a_call_that_waits(void)
{
    static const char *const calls[] = {
        "time.sleep(1000)", "sock.recv(1)", "select.select([sock], [], [])",
        "child.wait()",     "input()",
    };
    require_waits_that_can_be_ended();
    struct process *app = start_ready(TARGET(""));
    struct client *client = client_with_card(app, own_id(1));
    client_ask(client, "import select, socket, subprocess, time");
    client_ask(client, "sock, other = socket.socketpair()");
    /* made before, for who is interrupted while it is made leaves it behind */
    client_ask(client, "child = subprocess.Popen(['cat'], stdin=subprocess.PIPE)");
    for (size_t i = 0; i < sizeof(calls) / sizeof(calls[0]); i++) {
        client_send(client, format_text("print('begun'); %s\n", calls[i]));
        client_wait_for(client, "begun\n");
        assert_string_equal(ask_for_interrupt(app, own_id(1)), "interrupted\n");
        client_wait_for(client, "KeyboardInterrupt\n>>> ");
    }
    assert_answers(client);
}

/* The interrupter gets the GIL just when the thread is about to wait. */
static void
interrupt_ends_a_call_that_is_about_to_wait(void)
{
    require_waits_that_can_be_ended();
    struct process *app = start_ready(TARGET(""));
    struct client *client = client_with_card(app, own_id(1));
    client_ask(client, "import ctypes, operator, time; from functools import partial");
    client_ask(client, "keep_gil = partial(ctypes.PyDLL(None).usleep, 20000)");
    client_ask(client, "wait = partial(time.sleep, 1000)");
    for (int i = 0; i < 30; i++) {
        client_send(client,
                    "print('begun'); list(map(operator.call, [keep_gil, wait]))\n");
        client_wait_for(client, "begun\n");
        assert_string_equal(ask_for_interrupt(app, own_id(1)), "interrupted\n");
        client_wait_for(client, "KeyboardInterrupt\n>>> ");
    }
}

static bool
has_three_threads(void *argument)
{
    return count_threads(((struct process *)argument)->pid) == 3;
}

/* Its handlers would run for nothing. */
static void
interrupt_sends_no_signal_that_the_application_has_taken(void)
{
    struct process *app =
        start_ready(INSTALL("") "import os, signal, sys\n"
                                "heard, sys.ends = [], os.pipe()\n"
                                "for s in range(signal.SIGRTMIN, signal.SIGRTMAX + 1):\n"
                                "    signal.signal(s, lambda s, _: heard.append(s))\n" //
                    EVALUATE);
    struct client *client = client_with_card(app, own_id(1));
    client_ask(client, "import os, sys");
    client_send(client, "print('begun'); os.read(sys.ends[0], 1)\n");
    client_wait_for(client, "begun\n");
    assert_string_equal(ask_for_interrupt(app, own_id(1)), "interrupted\n");
    wait_until(has_three_threads, app, "the interrupter has done its work", DEADLINE);
    assert_string_equal(evaluate(app, "heard"), "[]");
    evaluate(app, "os.write(sys.ends[1], b'x')");
    client_wait_for(client, "KeyboardInterrupt\n");
}

static bool
has_four_threads(void *argument)
{
    return count_threads(((struct process *)argument)->pid) == 4;
}

/* An exception in the import system may leave a lock behind that nobody ever opens. The finder, a C
 * function, keeps the statement in there until another client lets it go. */
static void
interrupt_waits_until_an_import_is_over(void)
{
    require_gil();
    struct process *app = start_ready(TARGET(""));
    struct client *client = client_with_card(app, own_id(1));
    struct client *other = client_at_prompt(app);
    client_ask(client, "import ctypes, functools, os, sys");
    client_ask(client, "sys.ends = os.pipe()");
    client_ask(client, "class Finder: find_spec = functools.partial("
                       "ctypes.CDLL(None).read, sys.ends[0], bytes(1), 1)\n");
    client_ask(client, "sys.meta_path.append(Finder)");
    client_send(client, "print('begun'); import not_there\n");
    client_wait_for(client, "begun\n");
    client_ask(other, "import os, sys");
    while (strstr(client_ask(other, "sys._current_frames()"), "_find_spec") == NULL) {
    }
    assert_string_equal(ask_for_interrupt(app, own_id(1)), "interrupted\n");
    wait_until(has_four_threads, app, "the interrupter has given up", DEADLINE);
    client_ask(other, "os.write(sys.ends[1], b'x')");
    assert_contains(client_wait_for(client, ">>> "), "AttributeError");
}

static struct process *
start_cli_at_terminal(const struct process *app)
{
    struct process *cli = start_process(.argv = LIST(build_path("manhole-cli"),
                                                     format_text("%d", (int)app->pid)),
                                        .terminal = true);
    wait_for_text(cli, OUT, ">>> ", DEADLINE);
    return cli;
}

#define CTRL_C "\003"

static void
ctrl_c_ends_the_statement_alone(void)
{
    struct process *app = start_ready(TARGET(""));
    struct process *cli = start_cli_at_terminal(app);
    for (int i = 0; i < 3; i++) {
        write_stdin(cli, "if print('be' 'gun') is None:\n    while True: pass\n\n");
        wait_for_text(cli, OUT, "begun", DEADLINE);
        write_stdin(cli, CTRL_C);
        wait_for_text(cli, OUT, "KeyboardInterrupt", DEADLINE);
        wait_for_text(cli, OUT, ">>> ", DEADLINE);
    }
    write_stdin(cli, "6 * 7\n");
    wait_for_text(cli, OUT, "42", DEADLINE);
    write_stdin(cli, "exit()\n");
    assert_int_equal(wait_for_exit(cli, DEADLINE), 0);
}

static void
second_ctrl_c_leaves_a_statement_that_does_not_end(void)
{
    struct process *app = start_ready(TARGET(""));
    struct process *cli = start_cli_at_terminal(app);
    write_stdin(cli, "import os\nwhile True:\n"
                     "    try: os.write(1, b'begun\\n') and os.read(0, 1)\n"
                     "    except KeyboardInterrupt: pass\n\n");
    wait_for_text(app, OUT, "begun\n", DEADLINE); /* on its way into a call for good */
    write_stdin(cli, CTRL_C);
    wait_for_text(cli, OUT, "^C", DEADLINE);
    watch_for(50);
    write_stdin(cli, CTRL_C);
    wait_for_text(cli, OUT, "manhole-cli: left; the statement has not ended yet",
                  DEADLINE);
    assert_int_equal(wait_for_exit(cli, DEADLINE), 130);
    assert_answers(client_at_prompt(app));
}

/* With an editor and without; where code is run from a script, too. */
static void
ctrl_c_in_a_call_says_when_it_comes_and_that_another_leaves(void)
{
    static const char code[] = "import _thread, os; lock = _thread.allocate_lock(); "
                               "os.write(1, b'begun %d\\n' % _thread.get_native_id()); "
                               "lock.acquire() and lock.acquire()";
    static const char said[] = "still running: KeyboardInterrupt comes when the call "
                               "returns; Ctrl-C again leaves";
    static const struct {
        const char *term;
        const char *code; /* NULL: typed */
    } rows[] = {{"TERM=xterm", NULL}, {"TERM=dumb", NULL}, {"TERM=xterm", code}};
    struct process *app = start_ready(TARGET(""));
    const char *pid = format_text("%d", (int)app->pid);
    for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
        struct process *cli =
            start_process(.argv = LIST(build_path("manhole-cli"), pid,
                                       rows[i].code == NULL ? NULL : "-c", rows[i].code),
                          .terminal = true, .env = LIST(rows[i].term));
        if (rows[i].code == NULL) {
            wait_for_text(cli, OUT, ">>> ", DEADLINE);
            write_stdin(cli, format_text("%s\n", code));
        }
        wait_for_text(app, OUT, "begun ", DEADLINE);
        wait_until_asleep(
            (pid_t)strtol(wait_for_text(app, OUT, "\n", DEADLINE), NULL, 10));
        write_stdin(cli, CTRL_C);
        wait_for_text(cli, OUT, said, DEADLINE);
        write_stdin(cli, CTRL_C);
        wait_for_text(cli, OUT, "manhole-cli: left; the statement has not ended yet",
                      DEADLINE);
        assert_int_equal(wait_for_exit(cli, DEADLINE), 130);
    }
}

static void
ctrl_c_that_has_an_effect_is_not_called_late(void)
{
    struct process *app = start_ready(TARGET(""));
    struct process *cli = start_cli_at_terminal(app);
    write_stdin(cli, "if print('be' 'gun') is None:\n    while True: pass\n\n");
    wait_for_text(cli, OUT, "begun", DEADLINE);
    write_stdin(cli, CTRL_C);
    wait_for_text(cli, OUT, "KeyboardInterrupt", DEADLINE);
    wait_for_text(cli, OUT, ">>> ", DEADLINE);
    watch_for(1200); /* longer than it waits for an effect */
    write_stdin(cli, "exit()\n");
    assert_int_equal(wait_for_exit(cli, DEADLINE), 0);
    assert_not_contains(text_of(cli, OUT), "still running");
}

static void
ctrl_c_does_the_same_without_line_editing(void)
{
    struct process *app = start_ready(TARGET(""));
    struct process *cli = start_process(.argv = LIST(build_path("manhole-cli"),
                                                     format_text("%d", (int)app->pid)),
                                        .env = LIST("TERM=dumb"), .terminal = true);
    wait_for_text(cli, OUT, ">>> ", DEADLINE);
    write_stdin(cli, CTRL_C);
    wait_for_text(cli, OUT, "manhole-cli: nothing is running; Ctrl-D leaves", DEADLINE);
    write_stdin(cli, "if print('be' 'gun') is None:\n    while True: pass\n\n");
    wait_for_text(cli, OUT, "begun", DEADLINE);
    write_stdin(cli, CTRL_C);
    wait_for_text(cli, OUT, "KeyboardInterrupt", DEADLINE);
    wait_for_text(cli, OUT, ">>> ", DEADLINE);
    write_stdin(cli, "exit()\n");
    assert_int_equal(wait_for_exit(cli, DEADLINE), 0);
}

/* With an editor, and without. */
static void
quiet_client_makes_no_remarks(void)
{
    static const char *const terms[] = {"TERM=xterm", "TERM=dumb"};
    struct process *app = start_ready(TARGET(""));
    for (size_t i = 0; i < sizeof(terms) / sizeof(*terms); i++) {
        struct process *cli =
            start_process(.argv = LIST(build_path("manhole-cli"), "--quiet",
                                       format_text("%d", (int)app->pid)),
                          .env = LIST(terms[i]), .terminal = true);
        wait_for_text(cli, OUT, ">>> ", DEADLINE);
        write_stdin(cli, CTRL_C);
        watch_for(100); /* a signal, beside which keys are dropped */
        write_stdin(cli, "6 * 7\n");
        wait_for_text(cli, OUT, "42", DEADLINE);
        write_stdin(cli, "\004");
        assert_int_equal(wait_for_exit(cli, DEADLINE), 0);
        assert_not_contains(text_of(cli, OUT), "manhole-cli");
    }
}

static void
ctrl_c_at_the_prompt_says_what_leaves(void)
{
    struct process *app = start_ready(TARGET(""));
    struct process *cli = start_cli_at_terminal(app);
    write_stdin(cli, CTRL_C);
    wait_for_text(cli, OUT, "manhole-cli: nothing is running; Ctrl-D leaves", DEADLINE);
    write_stdin(cli, "6 * 7\n");
    wait_for_text(cli, OUT, "42", DEADLINE);
    write_stdin(cli, "\004");
    assert_int_equal(wait_for_exit(cli, DEADLINE), 0);
}

/* ======================================================================================
 * Clients that leave.
 * ======================================================================================
 */

static bool
has_two_threads(void *argument)
{
    return count_threads(((struct process *)argument)->pid) == 2;
}

/* The main thread and the listener are left. */
static void
assert_session_ends(struct process *app)
{
    wait_until(has_two_threads, app, "the session has ended", DEADLINE);
}

static void
statement_of_a_client_that_vanished_is_interrupted(void)
{
    /* Each tells of itself that it runs: a client that has left by then cannot be sent a prompt. */
    static const char *const statements[] = {
        "if True:\n    print('begun')\n    while True: pass\n\n",
        "if True:\n    print('begun')\n    while True: print('x' * 1000)\n\n",
        "import time\nif True:\n    print('begun')\n    while True: time.sleep(0.01)\n\n",
        "print('begun'); input()\n",
    };
    struct process *app = start_ready(TARGET(""));
    for (size_t i = 0; i < sizeof(statements) / sizeof(statements[0]); i++) {
        struct client *client = client_at_prompt(app);
        client_send(client, statements[i]);
        client_wait_for(client, "begun\n");
        client_close(client);
        assert_session_ends(app);
    }
}

static void
statement_that_takes_interrupts_is_interrupted_again(void)
{
    struct process *app = start_ready(TARGET(""));
    struct client *client = client_at_prompt(app);
    client_send(client, "def stubborn():\n"
                        "    try:\n"
                        "        print('begun')\n"
                        "        while True: pass\n"
                        "    except KeyboardInterrupt: pass\n"
                        "    while True: pass\n"
                        "\n"
                        "stubborn()\n");
    client_wait_for(client, "begun\n");
    client_close(client);
    assert_session_ends(app);
}

/* As a debugger, a profiler or coverage has it: every call of its main thread is looked at. */
#define TRACED                                                                           \
  INSTALL("")                                                                            \
  "import sys\n"                                                                         \
  "def look(*event): return look\n"                                                      \
  "def called(): return 'called'\n"                                                      \
  "def under(watch):\n"                                                                  \
  "    watch(look)\n"                                                                    \
  "    try: return called()\n"                                                           \
  "    finally: watch(None)\n" EVALUATE

static void
assert_traced_code_runs(struct process *app)
{
    assert_string_equal(evaluate(app, "under(sys.settrace)"), "called");
    assert_string_equal(evaluate(app, "under(sys.setprofile)"), "called");
}

static void
traced_program_goes_on_after_a_statement(void)
{
    struct process *app = start_ready(TRACED);
    assert_answers(client_at_prompt(app));
    assert_traced_code_runs(app);
}

/* Ctrl-C in a call that lasts: the interrupt is on its way until that returns. */
static void
traced_program_goes_on_beside_a_call_that_is_interrupted(void)
{
    struct process *app = start_ready(TRACED);
    struct client *client = client_with_card(app, own_id(1));
    client_ask(client, "import os, sys; sys.ends = os.pipe()");
    client_send(client, "print('begun'); os.read(sys.ends[0], 1)\n");
    client_wait_for(client, "begun\n");
    assert_string_equal(ask_for_interrupt(app, own_id(1)), "interrupted\n");
    wait_until(has_three_threads, app, "the interrupter has done its work", DEADLINE);
    assert_traced_code_runs(app);
    evaluate(app, "os.write(sys.ends[1], b'x')"); /* whose answer the client sees, too */
    client_wait_for(client, "KeyboardInterrupt\n");
    client_wait_for(client, ">>> ");
    assert_traced_code_runs(app);
}

static void
breakpoint_goes_on_that_is_not_the_first_statement(void)
{
    struct process *app = start_ready(TARGET(""));
    struct client *client = client_at_prompt(app);
    assert_answers(client);
    client_send(client, "def halve(n): return n // 2\n\n"
                        "def stopped(n):\n    breakpoint()\n    return halve(n)\n\n"
                        "stopped(6)\n");
    client_wait_for(client, "(Pdb) ");
    client_send(client, "n\n");
    client_wait_for(client, "(Pdb) ");
    client_send(client, "c\n");
    client_wait_for(client, "3\n>>> ");
    assert_answers(client);
}

/* Once a second is enough, for as long as it goes on in C. What else there is to do takes less
 * than a thousandth of the time. */
static void
interrupting_a_statement_that_cannot_be_keeps_no_processor_busy(void)
{
    if (is_wrapped()) {
        skip_test("valgrind takes processor time of its own");
    }
    struct process *app = start_ready(TARGET(""));
    struct client *vanishing = client_at_prompt(app);
    struct client *watching = client_at_prompt(app);
    client_send(vanishing, "import ctypes\n"
                           "ctypes.CDLL(None).system(b'echo begun; exec sleep 2')\n");
    wait_for_text(app, OUT, "begun\n", DEADLINE);
    client_ask(watching, "import time; before = time.process_time()");
    client_close(vanishing);
    watch_for(1500);
    assert_string_equal(client_ask(watching, "time.process_time() - before < 0.03"),
                        "True\n");
}

/* Each is a structure with a stack of Python's own, which nobody would free. */
static void
session_leaves_no_thread_state(void)
{
    struct process *app =
        start_ready(INSTALL("") //
                    "import ctypes; api = ctypes.pythonapi\n"
                    "next_state = api.PyThreadState_Next\n"
                    "first_state = api.PyInterpreterState_ThreadHead\n"
                    "interpreter = api.PyInterpreterState_Get\n"
                    "for f in next_state, first_state, interpreter:\n"
                    "    f.restype = ctypes.c_void_p\n"
                    "def count(state):\n"
                    "    return 0 if not state else "
                    "1 + count(next_state(ctypes.c_void_p(state)))\n"
                    "def states():\n"
                    "    return count(first_state(ctypes.c_void_p(interpreter())))\n" //
                    EVALUATE);
    assert_string_equal(evaluate(app, "states()"), "1");
    struct client *client = client_at_prompt(app);
    assert_string_equal(evaluate(app, "states()"), "2");
    client_close(client);
    assert_session_ends(app);
    assert_string_equal(evaluate(app, "states()"), "1");
}

static void
input_that_was_piped_is_finished(void)
{
    struct process *app = start_ready(TARGET(""));
    struct client *client = client_at_prompt(app);
    client_send(client, "import time\n"
                        "for i in range(4): print('begun', i); time.sleep(0.1)\n\n"
                        "print('fini' 'shed')\n");
    client_wait_for(client, "begun 0\n");
    client_shutdown_write(client);
    const char *rest = client_read_until_eof(client);
    assert_contains(rest, "begun 3\n");
    assert_contains(rest, "finished\n");
    assert_session_ends(app);
}

/* The base takes its time, so that each of them finds no class yet. */
static void
clients_that_come_at_once_share_the_class_of_their_console(void)
{
    struct process *app =
        start_target("import code, time\n"
                     "class Slow(code.InteractiveConsole):\n"
                     "    def __init_subclass__(cls): time.sleep(0.5)\n"
                     "code.InteractiveConsole = Slow\n" TARGET("locals={'Slow': Slow}"));
    struct client *first = connect_to(app);
    struct client *second = connect_to(app);
    client_wait_for(first, ">>> ");
    client_wait_for(second, ">>> ");
    assert_string_equal(client_ask(second, "len(Slow.__subclasses__())"), "1\n");
}

/* The exception of a statement is kept, for pdb.pm(); with the next one its frames go. */
static void
destructor_that_waits_holds_nobody_else_up(void)
{
    struct process *app = start_target("import os, threading\n"
                                       "gate = threading.Event()\n"
                                       "class Slow:\n"
                                       "    def __del__(self):\n"
                                       "        os.write(1, b'let go of\\n')\n"
                                       "        gate.wait()\n"
                                       "def fail():\n"
                                       "    slow = Slow()\n"
                                       "    raise ValueError\n" //
                                       TARGET("locals={'fail': fail, 'gate': gate}"));
    struct client *first = client_at_prompt(app);
    assert_contains(client_ask(first, "fail()"), "ValueError");
    client_send(first, "1 / 0\n");
    wait_for_text(app, OUT, "let go of\n", DEADLINE);
    struct client *second = client_at_prompt(app);
    assert_string_equal(client_ask(second, "gate.set()"), "");
    client_wait_for(first, ">>> ");
}

/* ======================================================================================
 * Very many threads.
 * ======================================================================================
 */

/* Fewer where the tests are slow: valgrind has room for 500. */
static int
many_threads(void)
{
#ifdef __SANITIZE_ADDRESS__
    return 300; /* its shadow memory makes each copy of the process slow */
#else
    return getenv("MANHOLE_TEST_SLOWNESS") != NULL ? 100 : 2000;
#endif
}

#define CROWD                                                                            \
  "import sys, threading\n"                                                              \
  "count, depth = int(sys.argv[1]), 99\n"                                                \
  "event = threading.Event()\n"                                                          \
  "barrier = threading.Semaphore(0)\n"                                                   \
  "def descend(n):\n"                                                                    \
  "    if n == 0:\n"                                                                     \
  "        barrier.release()\n"                                                          \
  "        event.wait()\n"                                                               \
  "    else:\n"                                                                          \
  "        descend(n - 1)\n"                                                             \
  "threading.stack_size(256 * 1024)\n"                                                   \
  "for i in range(count):\n"                                                             \
  "    threading.Thread(target=descend, args=(depth,), name='one-%d' % i,\n"             \
  "                     daemon=True).start()\n"                                          \
  "for i in range(count): barrier.acquire()\n"                                           \
  "while len(event._cond._waiters) < count: pass\n"

static size_t
count_of(const char *text, const char *part)
{
    size_t count = 0;
    for (const char *at = text; (at = strstr(at, part)) != NULL; at += strlen(part)) {
        count++;
    }
    return count;
}

static void
same_stacks_are_shown_once_with_all_their_threads(void)
{
    require_gil(); /* else a frozen copy is looked at, which shows each stack */
    const int count = many_threads();
    struct process *app = start_target(CROWD INSTALL("hang_timeout=1000") READY STAY,
                                       .argv = LIST(format_text("%d", count)));
    wait_until_ready(app);
    const char *greeting = client_wait_for(connect_to(app), ">>> ");
    const char *header = format_text("######### ProcessID=%d, ThreadID=", (int)app->pid);
    assert_int_equal(count_of(greeting, header), count + 1);
    assert_in_range(count_of(greeting, ", in descend\n"), 100, 1000);
    for (int i = 0; i < count; i++) {
        assert_contains(greeting, format_text("\nThread: one-%d, TID ", i));
    }
}

static void
stuck_process_shows_all_of_very_many_threads(void)
{
    const int count = many_threads();
    struct process *app =
        start_target(CROWD INSTALL("hang_timeout=0.05") //
                     "import ctypes\n" READY "ctypes.PyDLL(None).pause()\n",
                     .argv = LIST(format_text("%d", count)));
    wait_until_ready(app);
    struct client *client = connect_to(app);
    client_wait_for(client, "manhole: Python has not answered");
    const char *dump = client_wait_for(client, "as soon as Python answers.\n");
    const char *header = format_text("######### ProcessID=%d, ThreadID=", (int)app->pid);
    assert_int_equal(count_of(dump, header), count + 1);
    assert_int_equal(count_of(dump, "\nThread: one-"), count);
    assert_in_range(count_of(dump, "  event.wait()\n"), 1, count);
}

/* More than the socket takes, and no more than may be left to the listener: it is there when the
 * statement is over. */
static void
all_that_a_statement_printed_comes_before_its_exit(void)
{
    struct process *app = start_ready(TARGET(""));
    struct client *client = client_at_prompt(app);
    client_send(client, "exec('for i in range(25000): print(\"%\" * 9)\\n"
                        "open(\"printed\", \"w\").close()\\nraise SystemExit')\n");
    wait_for_path(test_path("printed"), DEADLINE);
    assert_int_equal(count_of(client_read_until_eof(client), "%%%\n"), 25000);
}

/* As musl's threads have, where the system says nothing else. */
#define SMALL_DEFAULT_STACK                                                              \
  "import ctypes\n"                                                                      \
  "libc, attributes = ctypes.CDLL(None), ctypes.create_string_buffer(256)\n"             \
  "libc.pthread_attr_init(attributes)\n"                                                 \
  "libc.pthread_attr_setstacksize(attributes, ctypes.c_size_t(128 * 1024))\n"            \
  "assert libc.pthread_setattr_default_np(attributes) == 0\n"

static void
deep_recursion_fits_where_threads_have_small_stacks(void)
{
    struct process *app = start_ready(SMALL_DEFAULT_STACK TARGET(""));
    struct client *client = client_at_prompt(app);
    client_ask(client, "deep = lambda n: n and max(sorted([n - 1], key=deep))");
    assert_string_equal(client_ask(client, "deep(200)"), "199\n");
}

int
main(void)
{
    static const struct test_case tests[] = {
        TEST(client_in_an_endless_loop_keeps_nobody_out),
        TEST(client_that_stopped_reading_keeps_nobody_out),
        TEST(all_that_a_statement_printed_comes_before_its_exit),
        TEST(deep_recursion_fits_where_threads_have_small_stacks),
        TEST(client_that_is_stopped_keeps_nobody_out),
        TEST(clients_that_never_speak_keep_nobody_out),
        TEST(flood_of_connections_passes_and_leaves_nothing),
        TEST(client_beyond_the_limit_is_told),
        TEST(place_of_a_client_that_left_is_free_again),
        TEST(sixty_four_clients_are_served_and_one_more_is_not),
        TEST(app_prints_on_whatever_its_clients_do),
        TEST(client_that_reads_nothing_of_what_the_application_prints_keeps_nobody_out),
        TEST(what_a_slow_client_misses_is_counted_and_told),
        TEST(client_that_reads_gets_every_line),
        TEST(busy_neighbours_keep_their_share),
        TEST(value_comes_with_the_prompt_beside_busy_neighbours),
        TEST(interrupt_ends_the_statement_alone),
        TEST(interrupt_reaches_the_client_that_asked),
        TEST(interrupt_with_nothing_to_interrupt_is_answered),
        TEST(interrupt_of_what_has_not_begun_is_kept),
        TEST(interrupt_tears_no_text_that_comes_in_pieces),
        TEST(interrupt_at_the_first_prompt_of_a_copy_is_not_left_for_a_line),
        TEST(interrupt_before_the_program_has_come_is_kept),
        TEST(interrupt_is_no_session),
        TEST(interrupt_is_not_logged),
        TEST(interrupt_reaches_a_statement_that_prints_to_nobody),
        TEST(interrupt_ends_a_call_that_waits),
        TEST(interrupt_ends_a_call_that_is_about_to_wait),
        TEST(interrupt_sends_no_signal_that_the_application_has_taken),
        TEST(interrupt_waits_until_an_import_is_over),
        TEST(ctrl_c_ends_the_statement_alone),
        TEST(second_ctrl_c_leaves_a_statement_that_does_not_end),
        TEST(ctrl_c_in_a_call_says_when_it_comes_and_that_another_leaves),
        TEST(ctrl_c_that_has_an_effect_is_not_called_late),
        TEST(ctrl_c_does_the_same_without_line_editing),
        TEST(quiet_client_makes_no_remarks),
        TEST(ctrl_c_at_the_prompt_says_what_leaves),
        TEST(statement_of_a_client_that_vanished_is_interrupted),
        TEST(statement_that_takes_interrupts_is_interrupted_again),
        TEST(traced_program_goes_on_after_a_statement),
        TEST(traced_program_goes_on_beside_a_call_that_is_interrupted),
        TEST(breakpoint_goes_on_that_is_not_the_first_statement),
        TEST(interrupting_a_statement_that_cannot_be_keeps_no_processor_busy),
        TEST(session_leaves_no_thread_state),
        TEST(input_that_was_piped_is_finished),
        TEST(clients_that_come_at_once_share_the_class_of_their_console),
        TEST(destructor_that_waits_holds_nobody_else_up),
        TEST(same_stacks_are_shown_once_with_all_their_threads),
        TEST(stuck_process_shows_all_of_very_many_threads),
    };
    return RUN_TESTS(tests);
}
