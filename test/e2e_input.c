/* e2e_input.c - what a client may send by mistake or in malice, and what may be in the way of
 * the socket: it costs the client its line or its session, never the application anything.
 */
#include "support.h"

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

enum {
    NOBODY = 65534,
    LONG_LINE = 5 * 1000 * 1000,
    TOO_LONG_LINE = 16 * 1024 * 1024 + 4,
    GARBAGE_SIZE = 64 * 1024,
    CROWD = 80, /* more than max_sessions, all at once */
};

/* A string literal with NULs in it, and its length. */
#define BYTES(literal) (literal), sizeof(literal) - 1

/* ---- The application, and how it is ------------------------------------------------ */

/* Says each line of its stdin back. */
#define ECHO                                                                             \
  READY                                                                                  \
  "import os\n"                                                                          \
  "for line in iter(lambda: os.read(0, 4096), b''): os.write(1, b'echo ' + line)\n"

/* What it holds while no client is there. */
struct app {
    struct process *process;
    int fds;
    int threads;
};

static struct app
start_app(const char *program)
{
    struct app app = {.process = start_target(program)};
    wait_until_ready(app.process);
    wait_for_text(app.process, ERR, "Waiting for new connection", DEADLINE);
    app.fds = count_fds(app.process->pid);
    app.threads = count_threads(app.process->pid);
    return app;
}

static struct client *
client_at_prompt(const struct app *app)
{
    struct client *client = connect_to(app->process);
    client_wait_for(client, ">>> ");
    return client;
}

static bool
holds_nothing_more(void *argument)
{
    const struct app *app = argument;
    return count_fds(app->process->pid) <= app->fds &&
           count_threads(app->process->pid) <= app->threads;
}

static void
assert_goes_on(const struct app *app)
{
    write_stdin(app->process, "hello\n");
    wait_for_text(app->process, OUT, "echo hello\n", DEADLINE);
}

/* It goes about its business, serves the next client, and nothing of the last one is left. */
static void
assert_healthy(struct app *app)
{
    assert_goes_on(app);
    struct client *client = client_at_prompt(app);
    assert_string_equal(client_ask(client, "40 + 2"), "42\n");
    client_close(client);
    wait_until(holds_nothing_more, app, "nothing of its clients is left", DEADLINE);
}

/* ---- Lines ------------------------------------------------------------------------- */

/* Bytes, and what must be in the answer to them; afterwards the session must go on. */
static const struct line {
    const char *bytes;
    size_t length;
    const char *answer;
} lines[] = {
    {BYTES("1 + 1\r\n"), "2\n"},
    {BYTES("def f():\r\n  return 5\r\n\r\nf()\r\n"), "... ... >>> 5\n"},
    {BYTES("\n"), ""},
    {BYTES("\f1 + 1\n"), "2\n"},
    {BYTES("\xff\n"), "manhole: what came is not UTF-8"},
    {BYTES("ord('\xe4\xbd')\n"),
     "manhole: what came is not UTF-8"},                            /* half a character */
    {BYTES("'\xed\xa0\x80'\n"), "manhole: what came is not UTF-8"}, /* a surrogate */
    {BYTES("'\xc0\x80'\n"), "manhole: what came is not UTF-8"},     /* overlong */
    {BYTES("ord('\xe4\xbd\xa0')\n"), "20320\n"},
    {BYTES("\xef\xbb\xbf"
           "1 + 1\n"),
     "SyntaxError"},
    {BYTES("1 + 1\0\n"), "null bytes"},
    {BYTES("\0\0\0\0\n"), "null bytes"},
    {BYTES("\x03\n"), "SyntaxError"},               /* Ctrl-C */
    {BYTES("\xff\xf4\xff\xfd\x06\n"), "not UTF-8"}, /* and telnet's */
    {BYTES("\x04\n"), "SyntaxError"},               /* Ctrl-D */
    {BYTES("\x1b[A\x1b[A\n"), "SyntaxError"},       /* arrows */
    {BYTES("  1\n"), "IndentationError"},
    {BYTES("if 1:\n\t2\n        3\n\n"), "TabError"},
    {BYTES("'abc\n"), "SyntaxError"},
    {BYTES("'''\n\xff\n"), "... manhole: what came is not UTF-8"},
    {BYTES("GET / HTTP/1.0\r\n\r\n"), "NameError: name 'GET' is not defined"},
    {BYTES("\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\n"),
     "manhole: what came is not UTF-8"},
};

static void
any_line_costs_at_most_itself(void)
{
    struct app app = start_app(INSTALL("") ECHO);
    struct client *client = client_at_prompt(&app);
    for (size_t i = 0; i < sizeof(lines) / sizeof(lines[0]); i++) {
        client_send_bytes(client, lines[i].bytes, lines[i].length);
        client_send(client, "print('line', 'done')\n");
        const char *answer = client_wait_for(client, "line done\n>>> ");
        if (strstr(answer, lines[i].answer) == NULL) {
            fail_msg("line %zu: no '%s' in '%s'", i, lines[i].answer, answer);
        }
    }
    client_close(client);
    assert_healthy(&app);
}

/* Nested too deeply, or too long: what Python's compiler gives up on, in its own words. */
static const struct statement {
    const char *first;
    const char *again; /* so many times */
    int count;
    const char *last;
    const char *answer;
} statements[] = {
    {"", "(", 1000, "\n", "too many nested parentheses"},
    {"", "-", 20000, "1\n", "Error"},
    {"x", ".y", 20000, "\n", "Error"},
};

static void
send_statement(struct client *client, const struct statement *statement)
{
    client_send(client, statement->first);
    for (int i = 0; i < statement->count; i++) {
        client_send(client, statement->again);
    }
    client_send(client, statement->last);
}

static void
statement_beyond_the_compiler_costs_itself_alone(void)
{
    struct app app = start_app(INSTALL("") ECHO);
    struct client *client = client_at_prompt(&app);
    for (size_t i = 0; i < sizeof(statements) / sizeof(statements[0]); i++) {
        send_statement(client, &statements[i]);
        client_send(client, "print('line', 'done')\n");
        assert_contains(client_wait_for(client, "line done\n>>> "), statements[i].answer);
    }
    client_close(client);
    assert_healthy(&app);
}

static void
line_of_megabytes_is_run(void)
{
    struct app app = start_app(INSTALL("") ECHO);
    struct client *client = client_at_prompt(&app);
    client_send(client, format_text("len('%0*d')\n", LONG_LINE, 0));
    client_wait_for(client, format_text("%d\n>>> ", LONG_LINE));
    client_close(client);
    assert_healthy(&app);
}

/* With what comes after it on the same line: a half would be another statement. */
static void
line_that_is_too_long_is_left_out_whole(void)
{
    struct app app = start_app(INSTALL("") ECHO);
    struct client *client = client_at_prompt(&app);
    client_send(client, format_text("'%0*d'; print('ran' * 2)\n", TOO_LONG_LINE, 0));
    const char *answer = client_wait_for(client, ">>> ");
    assert_string_equal(answer, "manhole: line too long (limit: 16 MiB), ignored\n>>> ");
    assert_string_equal(client_ask(client, "40 + 2"), "42\n");
    client_close(client);
    assert_healthy(&app);
}

/* It may be the harmless half of something that is not. */
static void
half_a_line_of_a_client_that_vanishes_is_not_run(void)
{
    struct app app = start_app(INSTALL("") ECHO);
    for (int i = 0; i < 10; i++) {
        struct client *client = client_at_prompt(&app);
        client_send(client, "open('half', 'w').close()");
        client_close(client);
    }
    assert_healthy(&app);
    assert_no_path(test_path("half"));
}

/* ---- Anything at all --------------------------------------------------------------- */

/* The same at each run. */
static void
fill_with_garbage(unsigned char *bytes, size_t size, uint32_t seed)
{
    for (size_t i = 0; i < size; i++) {
        seed ^= seed << 13;
        seed ^= seed >> 17;
        seed ^= seed << 5;
        bytes[i] = (unsigned char)seed;
    }
}

static void
assert_survives_garbage(const char *options)
{
    static unsigned char garbage[GARBAGE_SIZE];
    struct app app = start_app(format_text(INSTALL("%s") ECHO, options));
    for (uint32_t seed = 1; seed <= 5; seed++) {
        struct client *client = connect_to(app.process);
        fill_with_garbage(garbage, sizeof(garbage), seed);
        client_send_bytes(client, garbage, sizeof(garbage));
        client_shutdown_write(client);
        client_read_until_eof(client);
    }
    assert_goes_on(&app);
    wait_until(holds_nothing_more, &app, "nothing of its clients is left", DEADLINE);
}

static void
garbage_ends_with_its_session(void)
{
    assert_survives_garbage("");
}

static void
garbage_ends_with_its_session_of_the_exec_handler(void)
{
    assert_survives_garbage("connection_handler='exec'");
}

static void
garbage_ends_with_its_oneshot_session(void)
{
    static unsigned char garbage[GARBAGE_SIZE];
    struct app app = {.process = start_target(INSTALL("oneshot_on='USR1'") ECHO)};
    wait_until_ready(app.process);
    send_signal(app.process, SIGUSR1);
    struct client *client = connect_to(app.process);
    fill_with_garbage(garbage, sizeof(garbage), 7);
    client_send_bytes(client, garbage, sizeof(garbage));
    client_shutdown_write(client);
    client_read_until_eof(client);
    assert_goes_on(&app);
}

/* ---- Too much ---------------------------------------------------------------------- */

/* Sends a line again and again, until the kernel takes no more for a while. */
static void
flood(struct client *client, const char *line)
{
    char block[4096] = "";
    size_t length = strlen(line);
    int refusals = 0;
    long end_ms = now_ms() + DEADLINE / 10;
    for (size_t i = 0; i + length < sizeof(block); i += length) {
        memcpy(block + i, line, length);
    }
    while (refusals < 10 && now_ms() < end_ms) {
        if (send(client->fd, block, strlen(block), MSG_DONTWAIT | MSG_NOSIGNAL) < 0) {
            refusals++;
            watch_for(5);
        }
    }
}

/* It never reads what it is answered, so at last its session waits for it; nobody else does. */
static void
client_that_floods_hinders_nobody(void)
{
    static const char *const floods[] = {"1\n", "'x' * 100000\n", "x", "\xff\n", "(\n"};
    struct app app = start_app(INSTALL("") ECHO);
    for (size_t i = 0; i < sizeof(floods) / sizeof(floods[0]); i++) {
        struct client *flooder = client_at_prompt(&app);
        flood(flooder, floods[i]);
        struct client *other = client_at_prompt(&app);
        assert_string_equal(client_ask(other, "40 + 2"), "42\n");
        client_close(other);
        assert_goes_on(&app);
        client_close(flooder);
    }
    assert_healthy(&app);
}

/* All at once; none says a word, none stays, and some are turned away. */
static void
crowd_of_clients_leaves_nothing(void)
{
    struct client *crowd[CROWD];
    struct app app = start_app(INSTALL("") ECHO);
    for (int round = 0; round < 3; round++) {
        for (int i = 0; i < CROWD; i++) {
            crowd[i] = connect_to(app.process);
        }
        for (int i = 0; i < CROWD; i++) {
            client_wait_for(crowd[i], "\n");
        }
        for (int i = 0; i < CROWD; i++) {
            client_close(crowd[i]);
        }
    }
    wait_until(holds_nothing_more, &app, "nothing of the crowd is left", DEADLINE);
    assert_healthy(&app);
}

static void
one_client_too_many_is_told_so(void)
{
    struct app app = start_app(INSTALL("max_sessions=2") ECHO);
    struct client *first = client_at_prompt(&app);
    struct client *second = client_at_prompt(&app);
    struct client *third = connect_to(app.process);
    assert_matches(client_read_until_eof(third),
                   "^manhole: 2 clients are connected already");
    assert_string_equal(client_ask(first, "'first'"), "'first'\n");
    client_close(first);
    client_close(second);
    wait_until(holds_nothing_more, &app, "there is room again", DEADLINE);
    assert_healthy(&app);
}

/* ---- Calling cards ----------------------------------------------------------------- */

#define TEN "0123456789"
#define A_SESSION "\n#########"

/* The abstract name that a client's socket has, and how its conversation begins. */
static const struct card {
    const char *name;
    const char *answer;
} cards[] = {
    {"m", A_SESSION},
    {"manhole-cl", A_SESSION},
    {"manhole-cli", A_SESSION},
    {"manhole-cli/", A_SESSION},
    {"manhole-cli//", A_SESSION},
    {"manhole-cli///", A_SESSION},
    {"manhole-cli/4711", A_SESSION},
    {"manhole-cli/4711/", A_SESSION},
    {"manhole-cli/4711/repl", A_SESSION},
    {"manhole-cli/4711/inter", A_SESSION},
    {"manhole-cli/4712/interrupt", "unknown\n"},
    {"manhole-cli/4712/interrupt.1", "unknown\n"},
    {"manhole-cli/4711/interruption", A_SESSION},
    {"manhole-cli//interrupt", A_SESSION},
    {"manhole-cli/%s%n/interrupt", "unknown\n"},
    {"manhole-cli/\xff\xfe\x01/repl", A_SESSION},
    {"manhole-cli/a/b/c/repl", A_SESSION},
    {"manhole-cli/" TEN TEN TEN "012345678/interrupt", "unknown\n"},
    {"manhole-cli/" TEN TEN TEN "0123456789/interrupt", A_SESSION}, /* too long an id */
    {"manhole-cli/4711/" TEN TEN, A_SESSION},
    /* As long as a name can be. */
    {"manhole-cli/" TEN TEN TEN TEN TEN TEN TEN TEN TEN "01234", A_SESSION},
};

static void
any_calling_card_is_answered(void)
{
    struct app app = start_app(INSTALL("hang_timeout=600") ECHO);
    const char *path = socket_path_of(app.process->pid);
    for (size_t i = 0; i < sizeof(cards) / sizeof(cards[0]); i++) {
        struct client *client = connect_as(path, cards[i].name);
        client_wait_for(client, "\n");
        const char *begin = client->text.data;
        if (strncmp(begin, cards[i].answer, strlen(begin)) != 0 &&
            strncmp(begin, cards[i].answer, strlen(cards[i].answer)) != 0) {
            fail_msg("'%s' is answered '%s'", cards[i].name, begin);
        }
        client_close(client);
    }
    assert_healthy(&app);
}

/* ---- The system gives nothing more ------------------------------------------------- */

/* Returns what it was. */
static rlim_t
set_limit(const struct app *app, enum __rlimit_resource resource, rlim_t current)
{
    struct rlimit limit = {0};
    assert_int_equal(prlimit(app->process->pid, resource, NULL, &limit), 0);
    rlim_t before = limit.rlim_cur;
    limit.rlim_cur = current;
    assert_int_equal(prlimit(app->process->pid, resource, &limit, NULL), 0);
    return before;
}

/* The number that its next descriptor will have. */
static rlim_t
lowest_free_fd(pid_t pid)
{
    rlim_t fd = 0;
    while (path_exists(format_text("/proc/%d/fd/%d", (int)pid, (int)fd))) {
        fd++;
    }
    return fd;
}

static void
an_app_without_descriptors_has_one_for_a_client(void)
{
    struct app app = start_app(INSTALL("") ECHO);
    rlim_t before = set_limit(&app, RLIMIT_NOFILE, lowest_free_fd(app.process->pid));
    for (int i = 0; i < 3; i++) { /* the next one has it again */
        struct client *client = connect_to(app.process);
        client_wait_for(client, ">>> ");
        assert_string_equal(client_ask(client, "40 + 2"), "42\n");
        client_close(client);
    }
    set_limit(&app, RLIMIT_NOFILE, before);
    assert_healthy(&app);
}

static void
clients_wait_until_the_app_has_descriptors_again(void)
{
    struct app app = start_app(INSTALL("") ECHO);
    enum { MANY = 3 }; /* it has two to spare: for a client and for a copy */
    struct client *clients[MANY];
    assert_healthy(&app); /* all is imported now */
    rlim_t before = set_limit(&app, RLIMIT_NOFILE, lowest_free_fd(app.process->pid));
    for (int i = 0; i < MANY; i++) {
        clients[i] = connect_to(app.process);
    }
    wait_for_text(app.process, ERR, "Cannot accept a client: Too many open files. ",
                  DEADLINE);
    assert_goes_on(&app);
    set_limit(&app, RLIMIT_NOFILE, before);
    for (int i = 0; i < MANY; i++) {
        client_wait_for(clients[i], ">>> ");
        assert_string_equal(client_ask(clients[i], "40 + 2"), "42\n");
        client_close(clients[i]);
    }
    assert_healthy(&app);
}

/* Bytes of its address space, with some more for Python, yet not enough for a stack. */
static rlim_t
size_now(const struct app *app)
{
    const char *pages = read_file(format_text("/proc/%d/statm", (int)app->process->pid));
    return strtoul(pages, NULL, 10) * (rlim_t)sysconf(_SC_PAGESIZE) + 4UL * 1024 * 1024;
}

static void
client_for_whom_there_is_no_thread_is_told_so(void)
{
    struct app app = start_app(INSTALL("") ECHO);
    rlim_t before = set_limit(&app, RLIMIT_AS, size_now(&app));
    assert_matches(client_read_until_eof(connect_to(app.process)),
                   "^manhole: cannot start a thread for you: ");
    assert_goes_on(&app);
    set_limit(&app, RLIMIT_AS, before);
    assert_healthy(&app);
}

#define WITHOUT_DESCRIPTORS                                                              \
  "which = resource.RLIMIT_NOFILE\n"                                                     \
  "before = resource.getrlimit(which)\n"                                                 \
  "resource.setrlimit(which, (os.dup(0), before[1]))\n"

/* As a user of its own, for the kernel counts all processes of a user. */
#define WITHOUT_THREADS                                                                  \
  "os.setgid(100000 + os.getpid()); os.setuid(100000 + os.getpid())\n"                   \
  "which = resource.RLIMIT_NPROC\n"                                                      \
  "before = resource.getrlimit(which)\n"                                                 \
  "resource.setrlimit(which, (1, before[1]))\n"

/* Imported before: the other user may not be let in where this Python is. */
#define LIMITED(how, arguments)                                                          \
  "import manhole, os, resource, threading\n"                                            \
  "import code, contextlib, socket, textwrap, tokenize, traceback\n" how                 \
  INSTALL(arguments) "free = lambda: resource.setrlimit(which, before)\n"

static void
assert_installs_when_free(const char *limited, const char *why)
{
    struct app app = {.process = start_target(
                          format_text("%sfree()\nmanhole.install()\n%s", limited, ECHO))};
    wait_for_text(app.process, ERR, format_text("Cannot start listening: %s. ", why),
                  DEADLINE);
    assert_goes_on(&app);
    client_wait_for(connect_to(app.process), ">>> ");
}

static void
install_without_descriptors_is_a_log_line_and_may_be_tried_again(void)
{
    assert_installs_when_free(LIMITED(WITHOUT_DESCRIPTORS, ""), "Too many open files");
}

static void
install_without_threads_is_a_log_line_and_may_be_tried_again(void)
{
    if (geteuid() != 0) {
        skip_test("needs root to become another user");
    }
    assert_installs_when_free(LIMITED(WITHOUT_THREADS, ""),
                              "Resource temporarily unavailable");
}

static void
activating_signal_is_harmless_where_there_is_no_thread(void)
{
    if (geteuid() != 0) {
        skip_test("needs root to become another user");
    }
    struct app app = {
        .process = start_target(LIMITED(WITHOUT_THREADS, "activate_on='USR1'") ECHO)};
    wait_until_ready(app.process);
    send_signal(app.process, SIGUSR1);
    assert_goes_on(&app);
}

static void
oneshot_works_where_there_is_no_thread(void)
{
    if (geteuid() != 0) {
        skip_test("needs root to become another user");
    }
    struct app app = {
        .process = start_target(LIMITED(WITHOUT_THREADS, "oneshot_on='USR1'") ECHO)};
    wait_until_ready(app.process);
    send_signal(app.process, SIGUSR1);
    struct client *client = connect_to(app.process);
    client_wait_for(client, ">>> ");
    assert_string_equal(client_ask(client, "6 * 7"), "42\n");
    client_send(client, "exit()\n");
    client_read_until_eof(client);
    assert_goes_on(&app);
}

/* ---- In the way of the socket ------------------------------------------------------ */

static void
make_file(const char *path)
{
    assert_string_equal(write_file("door", "precious"), path);
}

static void
make_directory(const char *path)
{
    assert_int_equal(mkdir(path, 0755), 0);
}

static void
make_fifo(const char *path)
{
    assert_int_equal(mkfifo(path, 0666), 0);
}

static void
make_link_to_nothing(const char *path)
{
    assert_int_equal(symlink("nowhere", path), 0);
}

static void
make_link_to_itself(const char *path)
{
    assert_int_equal(symlink(path, path), 0);
}

static void
make_link_to_a_file(const char *path)
{
    assert_int_equal(symlink(write_file("target", "precious"), path), 0);
}

/* Whose process is gone. */
static void
make_socket(const char *path)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    (void)snprintf(address.sun_path, sizeof(address.sun_path), "%s", path);
    assert_int_equal(bind(fd, (struct sockaddr *)&address, sizeof(address)), 0);
    assert_int_equal(close(fd), 0);
}

static void
make_link_to_a_socket(const char *path)
{
    make_socket(test_path("dead"));
    assert_int_equal(symlink("dead", path), 0);
}

static void
make_socket_of_another_user(const char *path)
{
    make_socket(path);
    assert_int_equal(lchown(path, NOBODY, NOBODY), 0);
}

static const struct obstacle {
    void (*make)(const char *path);
    const char *said;
} obstacles[] = {
    {make_file, "something that is not a socket is there"},
    {make_directory, "something that is not a socket is there"},
    {make_fifo, "something that is not a socket is there"},
    {make_link_to_nothing, "something that is not a socket is there"},
    {make_link_to_itself, "something that is not a socket is there"},
    {make_link_to_a_file, "something that is not a socket is there"},
    {make_link_to_a_socket, "something that is not a socket is there"},
    {make_socket_of_another_user, "a socket of another user is there"}, /* root's test */
};

#define AT_DOOR INSTALL("socket_path='door'") ECHO

static void
assert_runs_without_a_door(const char *said)
{
    struct app app = {.process = start_target(AT_DOOR)};
    wait_for_text(app.process, ERR, format_text("Cannot listen at door: %s", said),
                  DEADLINE);
    wait_until_ready(app.process);
    assert_goes_on(&app);
    close_stdin(app.process);
    assert_int_equal(wait_for_exit(app.process, DEADLINE), 0);
}

static void
what_is_in_the_way_of_the_socket_stays(void)
{
    const char *door = test_path("door");
    for (size_t i = 0; i < sizeof(obstacles) / sizeof(obstacles[0]); i++) {
        struct stat before;
        struct stat after;
        if (obstacles[i].make == make_socket_of_another_user && geteuid() != 0) {
            continue;
        }
        obstacles[i].make(door);
        assert_int_equal(lstat(door, &before), 0);
        assert_runs_without_a_door(obstacles[i].said);
        assert_int_equal(lstat(door, &after), 0);
        assert_int_equal(before.st_ino, after.st_ino);
        assert_int_equal(remove(door), 0);
    }
}

/* Nobody answers there, so it is one of one's own that a crash has left. */
static void
dead_socket_in_the_way_is_replaced(void)
{
    make_socket(test_path("door"));
    struct process *app = start_target(AT_DOOR);
    wait_for_text(app, ERR, "Manhole UDS path: door", DEADLINE);
    client_wait_for(connect_client(test_path("door")), ">>> ");
}

static void
socket_of_a_living_process_in_the_way_stays_its_own(void)
{
    struct process *first = start_target(AT_DOOR);
    wait_until_ready(first);
    assert_runs_without_a_door("another process answers there");
    struct client *client = connect_client(test_path("door"));
    client_wait_for(client, ">>> ");
    assert_string_equal(client_ask(client, "os.getpid()"),
                        format_text("%d\n", (int)first->pid));
}

/* A path at which there can be no socket, and why. */
static const struct place {
    const char *path;
    const char *said;
} places[] = {
    {"nowhere/door", "No such file or directory"},
    {"file/door", "Not a directory"},
    {"loop/door", "Too many levels of symbolic links"},
    {"/proc/door", "No such file or directory"},
};

static void
path_that_cannot_be_is_a_log_line(void)
{
    write_file("file", "");
    assert_int_equal(symlink("loop", test_path("loop")), 0);
    for (size_t i = 0; i < sizeof(places) / sizeof(places[0]); i++) {
        const char *program =
            format_text(INSTALL("socket_path='%s'") ECHO, places[i].path);
        struct app app = {.process = start_target(program)};
        wait_for_text(
            app.process, ERR,
            format_text("Cannot listen at %s: %s\n", places[i].path, places[i].said),
            DEADLINE);
        wait_until_ready(app.process);
        assert_goes_on(&app);
    }
}

/* The test's directory is its owner's alone. */
static void
path_where_one_may_not_write_is_a_log_line(void)
{
    if (geteuid() != 0) {
        skip_test("needs root to become another user");
    }
    struct app app = {
        .process = start_target(
            "import manhole, os\n"
            "os.seteuid(65534)\n" INSTALL(
                "socket_path='door', start_timeout=600") "os.seteuid(0)\n" ECHO)};
    wait_for_text(app.process, ERR, "Cannot listen at door: Permission denied\n",
                  DEADLINE);
    wait_until_ready(app.process);
    assert_goes_on(&app);
}

int
main(void)
{
    static const struct test_case tests[] = {
        TEST(any_line_costs_at_most_itself),
        TEST(statement_beyond_the_compiler_costs_itself_alone),
        TEST(line_of_megabytes_is_run),
        TEST(line_that_is_too_long_is_left_out_whole),
        TEST(half_a_line_of_a_client_that_vanishes_is_not_run),
        TEST(garbage_ends_with_its_session),
        TEST(garbage_ends_with_its_session_of_the_exec_handler),
        TEST(garbage_ends_with_its_oneshot_session),
        TEST(client_that_floods_hinders_nobody),
        TEST(crowd_of_clients_leaves_nothing),
        TEST(one_client_too_many_is_told_so),
        TEST(any_calling_card_is_answered),
        TEST(an_app_without_descriptors_has_one_for_a_client),
        TEST(clients_wait_until_the_app_has_descriptors_again),
        TEST(client_for_whom_there_is_no_thread_is_told_so),
        TEST(install_without_descriptors_is_a_log_line_and_may_be_tried_again),
        TEST(install_without_threads_is_a_log_line_and_may_be_tried_again),
        TEST(activating_signal_is_harmless_where_there_is_no_thread),
        TEST(oneshot_works_where_there_is_no_thread),
        TEST(what_is_in_the_way_of_the_socket_stays),
        TEST(dead_socket_in_the_way_is_replaced),
        TEST(socket_of_a_living_process_in_the_way_stays_its_own),
        TEST(path_that_cannot_be_is_a_log_line),
        TEST(path_where_one_may_not_write_is_a_log_line),
    };
    return RUN_TESTS(tests);
}
