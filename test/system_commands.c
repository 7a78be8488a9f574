/* system_commands.c - the commands of ispyd's README, by manhole-cli, in a Flask application under
 * Debian's gunicorn that has its configuration file beside it, as ispyd's users have.
 */
#include "support.h"

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { WORKERS = 2 };

/* Two lines of ispyd's own, changed: ShellManager(config_file), WSGIApplicationWrapper(app). */
static const char FLASK_APP[] = //
    "import os, time\n"
    "import flask, manhole\n"
    "config_file = os.path.join(os.path.dirname(__file__), 'ispyd.ini')\n"
    "manhole.install(config=config_file)\n"
    "application = flask.Flask(__name__)\n"
    "application.wsgi_app = manhole.wsgi(application.wsgi_app)\n"
    "def look_up(ware):\n"
    "    prices = {'tea': 3}\n"
    "    return prices[ware]\n"
    "@application.route('/price/<ware>')\n"
    "def price(ware):\n"
    "    return 'the price is %d' % look_up(ware)\n"
    "@application.route('/')\n"
    "def hello():\n"
    "    return 'hello from %d' % os.getpid()\n"
    "@application.route('/slow')\n"
    "def a_slow_page():\n"
    "    while not os.path.exists('go-on'):\n"
    "        time.sleep(0.01)\n"
    "    return 'went on'\n";

/* ispyd's sample but for the folder, which is the test's. */
static const char SAMPLE[] = //
    "[ispyd]\n"
    "#listen = /tmp/ispyd.sock\n"
    "listen = %s/ispyd-%%(pid)s.sock\n"
    "#listen = localhost:12345\n"
    "plugins = %%(builtins)s\n"
    "\n"
    "[python:console]\n"
    "enabled = %s\n"
    "\n"
    "[debugger]\n"
    "enabled = %s\n";

struct server {
    struct process *master;
    const char *door;           /* where it serves HTTP */
    pid_t workers[WORKERS + 1]; /* the smaller number first */
};

static const char *
path_of(pid_t worker)
{
    return format_text("%s/ispyd-%d.sock", test_directory(), (int)worker);
}

/* The workers are there, and so are their sockets. */
static bool
is_up(void *argument)
{
    struct server *server = argument;
    size_t count = list_children(server->master->pid, server->workers, WORKERS + 1);
    return count == WORKERS && path_exists(path_of(server->workers[0])) &&
           path_exists(path_of(server->workers[1]));
}

static struct server
start_gunicorn(const char *enabled)
{
    struct server server = {.door = test_path("http")};
    require_debian_module("gunicorn");
    require_debian_module("flask");
    (void)write_file("app.py", FLASK_APP);
    (void)write_file("ispyd.ini",
                     format_text(SAMPLE, test_directory(), enabled, enabled));
    server.master =
        start_process(.argv = LIST(debian_python(), "-m", "gunicorn", "--workers", "2",
                                   "--bind", format_text("unix:%s", server.door),
                                   "--worker-tmp-dir", test_directory(), "app"),
                      .debian = true);
    wait_until(is_up, &server, "the workers are up", DEADLINE);
    if (server.workers[0] > server.workers[1]) {
        server.workers[2] = server.workers[0];
        server.workers[0] = server.workers[1];
        server.workers[1] = server.workers[2];
    }
    return server;
}

static const char *
get(struct server server, const char *page)
{
    struct client *client = connect_client(server.door);
    client_send(client, format_text("GET %s HTTP/1.0\r\n\r\n", page));
    return client_read_until_eof(client);
}

/* What "manhole-cli ispyd.ini" shows of these lines. */
static const char *
ispy(const char *lines)
{
    const char *out = NULL;
    assert_int_equal(
        run_command(LIST(build_path("manhole-cli"), "ispyd.ini"), lines, &out, NULL), 0);
    return out;
}

/* What a command shows in a shell of the first or second worker. */
static const char *
ask_worker(int number, const char *shell, const char *command)
{
    static const char marker[] = "@@\n"; /* is no command, and so is shown as it is */
    const char *out = ispy(format_text("connect %d\nprompt off\nshell %s\n%s%s\n%s",
                                       number, shell, marker, command, marker));
    const char *start = strstr(out, marker) + strlen(marker);
    const char *end = strstr(start, "*** Unknown syntax: @@\n");
    assert_non_null(end);
    return format_text("%.*s", (int)(end - start), start);
}

static const char *
ispy_shell(const char *shell, const char *command)
{
    return ask_worker(2, shell, command);
}

static void
servers_are_the_workers_and_connect_reaches_the_one(void)
{
    struct server server = start_gunicorn("true");
    const char *out = ispy("help\nservers\nconnect 2\nhelp\nplugins\nexit\n");
    assert_contains(out, "connect  exit  help  servers\n");
    assert_contains(out,
                    format_text("1: (1, '%s')\n2: (1, '%s')\n",
                                path_of(server.workers[0]), path_of(server.workers[1])));
    assert_contains(
        out, format_text("(manhole:%d) \nDocumented commands", (int)server.workers[1]));
    assert_contains(out, "exit  help  plugins  prompt  shell\n");
    assert_contains(out, "['debugger', 'process', 'python', 'wsgi']\n");
}

static void
process_commands_show_the_worker(void)
{
    struct server server = start_gunicorn("true");
    assert_contains(ispy_shell("process", "help"),
                    "cwd  egid  euid  exit  gid  help  pid  prompt  uid\n");
    assert_string_equal(ispy_shell("process", "pid"),
                        format_text("%d\n", (int)server.workers[1]));
    assert_string_equal(ispy_shell("process", "cwd"),
                        format_text("%s\n", test_directory()));
    assert_string_equal(ispy_shell("process", "uid"), format_text("%d\n", (int)getuid()));
    assert_string_equal(ispy_shell("process", "euid"),
                        format_text("%d\n", (int)geteuid()));
    assert_string_equal(ispy_shell("process", "gid"), format_text("%d\n", (int)getgid()));
    assert_string_equal(ispy_shell("process", "egid"),
                        format_text("%d\n", (int)getegid()));
}

static void
python_commands_show_the_interpreter(void)
{
    static const char *const rows[][2] = {
        {"argv", "'--workers', '2', "},
        {"defaultencoding", "^utf-8\n$"},
        {"environ", "^\\{.*'PATH': '.*\\}\n$"},
        {"executable", "/python3"},
        {"filesystemencoding", "^utf-8\n$"},
        {"maxint", "^9223372036854775807\nPython 3 has no maxint"},
        {"maxsize", "^9223372036854775807\n$"},
        {"maxunicode", "^1114111\n$"},
        {"modules", "'flask', .*'gunicorn', .*'manhole'"},
        {"modules flask.j*", "^\\['flask.json', .*\\]\n$"},
        {"path", "^\\['.*\\]\n$"},
        {"platform", "^linux\n$"},
        {"prefix", "^/usr\n$"},
        {"version", "^3\\.[0-9]+\\.[0-9]+ "},
    };
    (void)start_gunicorn("true");
    for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
        assert_matches(ispy_shell("python", rows[i][0]), rows[i][1]);
    }
}

/* Both workers may get it; so each has its own. */
static void
threads_shows_where_a_request_hangs(void)
{
    struct server server = start_gunicorn("true");
    struct client *hanging = connect_client(server.door);
    client_send(hanging, "GET /slow HTTP/1.0\r\n\r\n");
    long end_ms = now_ms() + DEADLINE;
    const char *out = "";
    while (strstr(out, "\n  time.sleep(0.01)\n") == NULL) {
        assert_true(now_ms() < end_ms);
        out = format_text("%s%s", ispy("connect 1\n!python\nthreads\n"),
                          ispy("connect 2\n!python\nthreads\n"));
    }
    assert_contains(out, "in a_slow_page\n");
    (void)write_file("go-on", "");
    assert_contains(client_read_until_eof(hanging), "went on");
}

/* Has a request fail where there is a probe. Returns the number of the worker that served it. */
static int
fail_at_a_probe(struct server server)
{
    for (int worker = 1; worker <= WORKERS; worker++) {
        assert_string_equal(ask_worker(worker, "debugger", "insert app:look_up"), "");
    }
    assert_contains(get(server, "/price/milk"), "500 INTERNAL SERVER ERROR");
    const bool is_first =
        strstr(ask_worker(1, "debugger", "tracebacks"), "app:look_up") != NULL;
    return is_first ? 1 : 2;
}

static void
debugger_keeps_what_a_live_request_raised(void)
{
    struct server server = start_gunicorn("true");
    int worker = fail_at_a_probe(server);
    assert_string_equal(ask_worker(worker, "debugger", "list"), "['app:look_up']\n");
    assert_matches(ask_worker(worker, "debugger", "tracebacks"),
                   "^\\{'app:look_up': <traceback object at 0x[0-9a-f]+>\\}\n$");
    assert_matches(ask_worker(worker, "debugger", "print app:look_up"),
                   "in look_up\n    return prices\\[ware\\]\n(.*\n)?KeyError: 'milk'\n$");
    assert_string_equal(ask_worker(worker, "debugger", "discard app:look_up"), "");
    assert_string_equal(ask_worker(worker, "debugger", "tracebacks"), "{}\n");
    assert_string_equal(ask_worker(worker, "debugger", "remove app:look_up"), "");
    assert_string_equal(ask_worker(worker, "debugger", "list"), "[]\n");
}

static void
reset_takes_all_probes_away(void)
{
    int worker = fail_at_a_probe(start_gunicorn("true"));
    assert_string_equal(ask_worker(worker, "debugger", "reset"), "");
    assert_string_equal(ask_worker(worker, "debugger", "list"), "[]\n");
    assert_string_equal(ask_worker(worker, "debugger", "tracebacks"), "{}\n");
}

static void
request_that_failed_is_debugged_while_the_application_serves(void)
{
    struct server server = start_gunicorn("true");
    int worker = fail_at_a_probe(server);
    struct process *cli =
        start_process(.argv = LIST(build_path("manhole-cli"), "ispyd.ini"));
    write_stdin(cli, format_text("connect %d\n!debugger\ndebug app:look_up\n", worker));
    wait_for_text(cli, OUT, "look_up()\n-> return prices[ware]\n(Pdb) ", DEADLINE);
    write_stdin(cli, "p ware, prices\n");
    wait_for_text(cli, OUT, "('milk', {'tea': 3})\n(Pdb) ", DEADLINE);
    assert_contains(get(server, "/price/tea"), "the price is 3");
    write_stdin(cli, "q\nlist\n");
    wait_for_text(cli, OUT, "['app:look_up']\n", DEADLINE);
    close_stdin(cli);
    assert_int_equal(wait_for_exit(cli, DEADLINE), 0);
}

static void
requests_shows_the_one_that_hangs(void)
{
    struct server server = start_gunicorn("true");
    struct client *hanging = connect_client(server.door);
    client_send(hanging, "GET /slow?ware=tea HTTP/1.0\r\n\r\n");
    long end_ms = now_ms() + DEADLINE;
    const char *out = "";
    while (strstr(out, "in a_slow_page\n") == NULL) {
        assert_true(now_ms() < end_ms);
        out = format_text("%s%s", ask_worker(1, "wsgi", "requests"),
                          ask_worker(2, "wsgi", "requests"));
    }
    assert_matches(out, "^start_time = ");
    assert_matches(out, "^duration = ");
    assert_matches(out, "^thread_id = ");
    assert_contains(out, "\nQUERY_STRING = 'ware=tea'\n");
    assert_contains(out, "No active transactions.\n"); /* in the other worker */
    (void)write_file("go-on", "");
    assert_contains(client_read_until_eof(hanging), "went on");
}

static void
console_is_refused_where_it_is_not_enabled(void)
{
    struct server server = start_gunicorn("false");
    assert_contains(ispy_shell("python", "console"),
                    "Sorry, the Python console is disabled.");
    assert_contains(ispy("connect 2\n!debugger\n"),
                    "Sorry, the debugger plugin is disabled.");
    assert_contains(get(server, "/"), "hello from ");
}

static void
console_is_used_while_the_application_serves(void)
{
    struct server server = start_gunicorn("true");
    const char *out = ispy("connect 2\nshell python\nconsole\nimport os\nos.getcwd()\n"
                           "import flask; flask.__name__\nexit()\nplatform\n");
    assert_contains(out,
                    format_text("(ManholeConsole)\n>>> >>> '%s'\n", test_directory()));
    assert_contains(out, ">>> 'flask'\n");
    assert_contains(out, format_text("(python:%d) linux\n", (int)server.workers[1]));
    assert_contains(get(server, "/"), "hello from ");
}

static void
workers_take_their_sockets_with_them(void)
{
    struct server server = start_gunicorn("true");
    send_signal(server.master, SIGTERM);
    assert_int_equal(wait_for_exit(server.master, DEADLINE), 0);
    assert_contains(ispy("servers\nconnect\n"), "No servers to connect to");
}

int
main(void)
{
    static const struct test_case tests[] = {
        TEST(servers_are_the_workers_and_connect_reaches_the_one),
        TEST(process_commands_show_the_worker),
        TEST(python_commands_show_the_interpreter),
        TEST(threads_shows_where_a_request_hangs),
        TEST(debugger_keeps_what_a_live_request_raised),
        TEST(reset_takes_all_probes_away),
        TEST(request_that_failed_is_debugged_while_the_application_serves),
        TEST(requests_shows_the_one_that_hangs),
        TEST(console_is_refused_where_it_is_not_enabled),
        TEST(console_is_used_while_the_application_serves),
        TEST(workers_take_their_sockets_with_them),
    };
    return RUN_TESTS(tests);
}
