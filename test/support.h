/* support.h - what the tests stand on: real processes, real sockets, no sleeps.
 *
 * A test program is a table of functions. The function's name is the claim it shows; its
 * body says what is given, what happens and what must then hold:
 *
 *     static void
 *     expression_is_evaluated_in_the_process(void)
 *     {
 *         struct process *app = start_target(TARGET("locals={'answer': 42}"));
 *         struct client *client = connect_to(app);
 *         client_wait_for(client, ">>> ");
 *         client_send(client, "answer + 1\n");
 *         client_wait_for(client, "43");
 *     }
 *
 *     int
 *     main(void)
 *     {
 *         static const struct test_case tests[] = {
 *             TEST(expression_is_evaluated_in_the_process),
 *         };
 *         return RUN_TESTS(tests);
 *     }
 *
 * A function that waits fails the test itself when its deadline passes, so nothing here
 * returns an error to check. Whatever a test starts or opens through these functions is
 * ended, closed and freed after it; what the functions return lives until then. After a
 * failure everything that went to and fro is shown.
 *
 * A test fails, too, when it leaves something behind: a process, a socket
 * /tmp/manhole-PID, a descriptor of the test program, a sanitizer's or valgrind's report.
 *
 * Environment (make sets what is needed):
 *
 *   MANHOLE_TEST_FILTER    run what matches this pattern, '*uid*' (make test TEST=...)
 *   MANHOLE_TEST_KEEP      not empty: keep each test's directory, say where it is
 *   MANHOLE_TEST_SLOWNESS  every deadline is multiplied by this (valgrind)
 *   MANHOLE_TEST_WRAPPER   put before targets and programs of this build (valgrind)
 *   MANHOLE_PYTHON         instead of the Python that this was built for
 *   MANHOLE_DEBIAN_PYTHON, MANHOLE_DEBIAN_BUILD   the same for Debian's
 *
 * One thread, one test at a time: the state of the running test is static in support.c.
 */
#ifndef SUPPORT_H
#define SUPPORT_H

#include <stdarg.h>
#include <setjmp.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include <cmocka.h>

/* ---- The table of tests ------------------------------------------------------------ */

struct test_case {
    const char *name;
    void (*body)(void);
};

#define TEST(function)                                                                   \
  {                                                                                      \
    .name = #function, .body = (function)                                                \
  }
#define RUN_TESTS(tests) run_test_table((tests), sizeof(tests) / sizeof((tests)[0]))

/* Runs each test in a directory of its own, with the checks above. Returns main()'s
 * status. */
int run_test_table(const struct test_case tests[], size_t count);

/* Leaves the running test. It is counted, and listed with its reason. */
void skip_test(const char *format, ...) __attribute__((format(printf, 1, 2), noreturn));

/* Skips the test when PATH has no such program; when Debian's python3 has no such module.
 */
void require_program(const char *name);
void require_debian_module(const char *name);

/* Holds a document, or each of an array of them, to test/SCHEMA.schema.json, with Debian's
 * jsonschema. Returns it. */
const char *check_json(const char *schema, const char *document);

/* ---- Files ------------------------------------------------------------------------- */

/* The test's own directory, short enough for a socket's path; also the processes' HOME,
 * TMPDIR and working directory. */
const char *test_directory(void);

/* The path of a file in it. */
const char *test_path(const char *name);

/* Writes such a file, and returns its path. */
const char *write_file(const char *name, const char *text);

/* The whole text of any file; fails the test when it cannot be read. */
const char *read_file(const char *path);

/* A path in the folder of this build ("manhole-cli"); in the sources ("manhole.pth"). */
const char *build_path(const char *name);
const char *source_path(const char *name);

bool path_exists(const char *path);

/* ---- Processes --------------------------------------------------------------------- */

enum stream { OUT, ERR };

/* All that was read from one stream or one client, and how far the waits have come. */
struct text {
    char *data; /* NUL-terminated, though NULs may be inside; never NULL */
    size_t length;
    size_t size;
    size_t seen; /* the next wait looks from here on */
};

struct process {
    pid_t pid;           /* leads a session of its own */
    struct text text[2]; /* by enum stream */
    bool exited;         /* as far as anybody looked; see wait_for_exit() */
    int status;          /* once exited: the exit code, or minus the signal's number */
    /* the fixtures' own */
    int stream_fd[2]; /* by enum stream; -1 once at its end */
    int stdin_fd;     /* -1: closed, or it is stream_fd[OUT], a terminal */
    bool terminal;
    bool ends_its_children;
    bool says_ready;   /* its program has READY STAY in it */
    bool killed;       /* by SIGKILL: cannot have tidied up */
    bool status_taken; /* by the test: a crash is its business */
    char *title;       /* for messages */
    struct text sent;
    struct process *next;
};

/* How to start a process. Lists end with NULL: LIST("a", "b"). */
struct launch {
    const char *program;     /* start_target(): the text of the Python program */
    const char *const *argv; /* the program's name and arguments; a target's: arguments */
    const char *const *env;  /* "NAME=value"; "NAME" alone takes the variable away */
    const char *const *python_options; /* start_target(): LIST("-X", "dev") */
    const char *example;    /* start_example(): not this build's, but this program */
    bool debian;            /* Debian's python3 and the module built for it */
    bool ends_its_children; /* SIGTERM at the test's end is for it alone */
    bool terminal;          /* the three streams are one pseudo-terminal, read as OUT */
    uid_t uid;              /* not 0: run as this user and group; needs root */
};

#define LIST(...) ((const char *const[]){__VA_ARGS__, NULL})

/* Starts a real python on a program text, with this build's manhole module importable,
 * manhole.pth at work and output unbuffered:
 *     start_target(text)
 *     start_target(text, .env = LIST("PYTHONMANHOLE="), .terminal = true)
 * The environment is the tester's, less PYTHON*, MANHOLE* and what make adds. What Debian
 * has for its own python3 alone (gevent, flask, ...) wants .debian = true. */
#define start_target(...) start_python_target((struct launch){.program = __VA_ARGS__})

/* Starts any other program in the same environment:
 *     start_process(.argv = LIST("socat", "-", path))
 * Debian's programs that load the module (gunicorn, uwsgi) want .debian = true. */
#define start_process(...) start_any_process((struct launch){__VA_ARGS__})

/* Starts build/.../embed_example, the C program with manhole.c inside, so that its Python
 * finds its standard library: start_example(.argv = LIST("an argument")). */
#define start_example(...) start_embedded_python((struct launch){__VA_ARGS__})

struct process *start_python_target(struct launch how);
struct process *start_any_process(struct launch how);
struct process *start_embedded_python(struct launch how);

/* The python of the targets; Debian's, which skips the test where there is none. */
const char *python(void);

/* What a compiler needs for a program that embeds it. */
const char *include_flags(void);
const char *link_flags(void);

/* Whether python() has a GIL: without one nothing waits for a thread that is stuck, and all looks
 * are at frozen copies. require_gil() skips the test. */
bool has_gil(void);
void require_gil(void);
/* Skips the test where no frozen copy runs Python. */
void require_copies(void);
bool is_python_from(int minor); /* CPython 3.MINOR or newer */
const char *debian_python(void);

/* Whether it is CPython 3.MINOR or newer. */
bool is_debian_python_from(int minor);

/* Waits for the text in what comes after the last text waited for in this stream, so that
 * a row of waits demands that order. Returns what came up to and with the match. */
#define DEADLINE deadline_ms()
long deadline_ms(void);
const char *wait_for_text(struct process *process, enum stream stream, const char *text,
                          long timeout_ms);

/* What an EVALUATE makes of an expression, an exception as "TYPE: TEXT". */
const char *evaluate(struct process *app, const char *expression);

/* All that was read so far. rewind_stream(): the next wait looks at all of it again. */
const char *text_of(const struct process *process, enum stream stream);
void rewind_stream(struct process *process, enum stream stream);

/* Waits for the line "ready" on standard output: programs made with TARGET() print it. */
void wait_until_ready(struct process *process);

/* Waits for the end, and for the last of the output. Returns the exit code, or minus the
 * number of the signal that killed it. */
int wait_for_exit(struct process *process, long timeout_ms);

void send_signal(struct process *process, int signal_number);
void write_stdin(struct process *process, const char *text);
void close_stdin(struct process *process);

/* Writes stdin_text, or nothing when it is NULL, ends stdin and waits for the end; out
 * and err may be NULL. Returns as wait_for_exit() does. run_command() starts the command
 * as well. */
int run_process(struct process *process, const char *stdin_text, const char **out,
                const char **err);
int run_command(const char *const argv[], const char *stdin_text, const char **out,
                const char **err);

/* What the kernel says of any process. The process must be there. */
int count_fds(pid_t pid);
int count_threads(pid_t pid);
/* Waits until it has no more than these: what a session had goes a moment after its client. */
void wait_for_usage(pid_t pid, int fds, int threads);
long rss_kib(pid_t pid);
size_t list_children(pid_t pid, pid_t children[], size_t size);

/* Looks every few milliseconds until is_true(argument). what: "three workers are up", for
 * the message. Output of the processes is read meanwhile, here as in every other wait. */
void wait_until(bool (*is_true)(void *argument), void *argument, const char *what,
                long timeout_ms);
/* The main thread waits in a system call, as a process does once it has said that it is ready. */
void wait_until_asleep(pid_t pid);
void wait_for_path(const char *path, long timeout_ms);
void wait_for_no_path(const char *path, long timeout_ms);

/* Reads the processes' output for this long, to show that something does not happen. */
void watch_for(long duration_ms);

/* A TCP port of 127.0.0.1 that was free a moment ago. */
int free_port(void);

/* Milliseconds of a clock that only goes forward. */
long now_ms(void);

/* ---- Clients ----------------------------------------------------------------------- */

/* A connection to a manhole. It reads only inside client_...(), so a client that stops
 * reading is one that is not called. */
struct client {
    int fd; /* -1 once closed */
    struct text text;
    struct text sent;
    bool at_eof;
    char *path;
    struct client *next;
};

/* /tmp/manhole-PID. */
const char *socket_path_of(pid_t pid);

/* Connects, trying again until DEADLINE while the socket is not there or refuses; to a
 * process that runs a TARGET() not before that has said so, or the client would see "ready".
 * connect_as(): with the socket bound to this abstract name (no leading NUL) before. */
struct client *connect_to(const struct process *process);
struct client *connect_client(const char *path);
struct client *connect_as(const char *path, const char *abstract_name);

/* Connects to a port of 127.0.0.1 on which somebody listens already. */
struct client *connect_port(int port);

/* Whether somebody answers on this socket now. */
bool is_served(const char *path);

void client_send(struct client *client, const char *text);
void client_send_bytes(struct client *client, const void *bytes, size_t count);

/* Waits for text after the last one waited for. Returns what came up to and with it. */
const char *client_wait_for(struct client *client, const char *text);

/* Sends a line, waits for the next prompt ">>> ". Returns what came before the prompt. */
const char *client_ask(struct client *client, const char *line);

/* Reads to the end; returns what came after the last wait. A reset is an end, too. */
const char *client_read_until_eof(struct client *client);

void client_shutdown_write(struct client *client);
void client_close(struct client *client);

/* ---- Program texts ----------------------------------------------------------------- */

/* With time enough for a machine that is busy; what a test says itself wins. */
#define INSTALL(arguments)                                                               \
  "import manhole; manhole.install(**{'hang_timeout': 60, 'start_timeout': 60, "         \
  "**dict(" arguments ")})\n"
#define READY "print('ready', flush=True)\n"
/* The calling card of `manhole-cli --list`. With it a test beside this one looks in at every
 * manhole there is: the servers that tests play do not take it for their client. */
#define LISTING "/interrupt.l"
#define ACCEPT                                                                           \
  "client, card = listener.accept()\n"                                                   \
  "while '" LISTING "' in str(card):\n"                                                  \
  "    client, card = listener.accept()\n"
/* Python: evaluates each line of stdin, as evaluate() sends them, and prints what came of it. */
#define EVALUATE                                                                         \
  "import os, sys\n" READY "for line in iter(sys.stdin.readline, ''):\n"                 \
  "    try: print('<', eval(line), '>', sep='', flush=True)\n"                           \
  "    except Exception as e: print('<', type(e).__name__, ': ', e, '>', sep='', "       \
  "flush=True)\n"
/* Stays until its stdin is closed, in a system call that other threads can run beside. */
#define STAY "import os\nwhile os.read(0, 4096): pass\n"
/* A whole program: installs with these arguments, says so, stays. */
#define TARGET(arguments) INSTALL(arguments) READY STAY

/* ---- What must hold ---------------------------------------------------------------- */

void assert_contains(const char *haystack, const char *needle);
void assert_not_contains(const char *haystack, const char *needle);
/* An extended regular expression, see regex(7), in the text; ^ and $ match at each line.
 */
void assert_matches(const char *text, const char *expression);
void assert_path_exists(const char *path);
void assert_no_path(const char *path);

/* The test knows that this socket stays behind: it is removed. One of a process that
 * SIGKILL ended needs no such word. */
void expect_socket_left(const char *path);

/* Whether the programs run under valgrind. A test of what is different there skips itself. */
bool is_wrapped(void);

/* The same of a sanitizer. */
bool is_sanitized(void);

/* Skips the test under the thread sanitizer: that runs a handler when the thread's call of the C
 * library ends, and none in a thread that calls nothing. See tsan.h, too. */
void require_signals_at_once(void);

/* A string made as by printf. */
const char *format_text(const char *format, ...) __attribute__((format(printf, 1, 2)));

/* ---- Failures name the line of the test, not of support.c -------------------------- */

void called_from(const char *file, int line);

#ifndef SUPPORT_C
#  define HERE called_from(__FILE__, __LINE__)
#  define assert_contains(...) (HERE, assert_contains(__VA_ARGS__))
#  define assert_matches(...) (HERE, assert_matches(__VA_ARGS__))
#  define assert_no_path(...) (HERE, assert_no_path(__VA_ARGS__))
#  define assert_not_contains(...) (HERE, assert_not_contains(__VA_ARGS__))
#  define assert_path_exists(...) (HERE, assert_path_exists(__VA_ARGS__))
#  define client_ask(...) (HERE, client_ask(__VA_ARGS__))
#  define client_read_until_eof(...) (HERE, client_read_until_eof(__VA_ARGS__))
#  define client_send(...) (HERE, client_send(__VA_ARGS__))
#  define client_send_bytes(...) (HERE, client_send_bytes(__VA_ARGS__))
#  define client_wait_for(...) (HERE, client_wait_for(__VA_ARGS__))
#  define connect_as(...) (HERE, connect_as(__VA_ARGS__))
#  define connect_client(...) (HERE, connect_client(__VA_ARGS__))
#  define connect_port(...) (HERE, connect_port(__VA_ARGS__))
#  define connect_to(...) (HERE, connect_to(__VA_ARGS__))
#  define evaluate(...) (HERE, evaluate(__VA_ARGS__))
#  define run_command(...) (HERE, run_command(__VA_ARGS__))
#  define run_process(...) (HERE, run_process(__VA_ARGS__))
#  define send_signal(...) (HERE, send_signal(__VA_ARGS__))
#  define wait_for_exit(...) (HERE, wait_for_exit(__VA_ARGS__))
#  define wait_for_no_path(...) (HERE, wait_for_no_path(__VA_ARGS__))
#  define wait_for_path(...) (HERE, wait_for_path(__VA_ARGS__))
#  define wait_for_text(...) (HERE, wait_for_text(__VA_ARGS__))
#  define wait_for_usage(...) (HERE, wait_for_usage(__VA_ARGS__))
#  define wait_until(...) (HERE, wait_until(__VA_ARGS__))
#  define wait_until_asleep(...) (HERE, wait_until_asleep(__VA_ARGS__))
#  define wait_until_ready(...) (HERE, wait_until_ready(__VA_ARGS__))
#  define write_stdin(...) (HERE, write_stdin(__VA_ARGS__))
#endif

#endif
