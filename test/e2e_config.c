/* e2e_config.c - install(config=...): ispyd's configuration file, and the plugins that it names. */
#include "support.h"

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

/* As it comes with ispyd. */
static const char sample[] = "[ispyd]\n"
                             "#listen = /tmp/ispyd.sock\n"
                             "listen = /tmp/ispyd-%(pid)s.sock\n"
                             "#listen = localhost:12345\n"
                             "plugins = %(builtins)s\n"
                             "\n"
                             "[python:console]\n"
                             "enabled = true\n";

static struct process *
start_obedient(void)
{
    struct process *app = start_target("import manhole\n" EVALUATE);
    wait_until_ready(app);
    return app;
}

/* Installs with a file of this content, which listens where test_path("door") is unless it says
 * something else. */
static struct process *
start_with(const char *content, const char *more)
{
    struct process *app = start_obedient();
    (void)write_file("test.ini", content);
    assert_contains(
        evaluate(app, format_text("manhole.install(config='test.ini'%s)", more)),
        "<manhole.Manhole at ");
    return app;
}

/* Asks at a prompt "(NAME:PID) "; returns the answer up to the next one like that. */
static const char *
ask(struct process *app, struct client *client, const char *line, const char *shell)
{
    const char *prompt = format_text("(%s:%d) ", shell, (int)app->pid);
    client_send(client, format_text("%s\n", line));
    const char *answer = client_wait_for(client, prompt);
    return format_text("%.*s", (int)(strlen(answer) - strlen(prompt)), answer);
}

/* A client at the prompt of the outermost shell. */
static struct client *
visit(struct process *app, const char *path)
{
    struct client *client = connect_client(path);
    client_wait_for(client, format_text("(manhole:%d) ", (int)app->pid));
    return client;
}

/* ---- The file ----------------------------------------------------------------------- */

static void
sample_of_ispyd_works_as_it_is(void)
{
    struct stat status;
    struct process *app = start_with(sample, "");
    const char *path = format_text("/tmp/ispyd-%d.sock", (int)app->pid);
    struct client *client = visit(app, path);
    assert_int_equal(stat(path, &status), 0);
    assert_int_equal(status.st_mode & 0777, 0600);
    assert_string_equal(ask(app, client, "plugins", "manhole"),
                        "['debugger', 'process', 'python', 'wsgi']\n");
    assert_contains(ask(app, client, "!debugger", "manhole"), "plugin is disabled");
    assert_string_equal(ask(app, client, "!python", "python"), "");
    client_send(client, "console\n");
    client_wait_for(client, ">>> ");
    assert_string_equal(client_ask(client, "40 + 2"), "42\n");
    client_close(client);
    close_stdin(app);
    assert_int_equal(wait_for_exit(app, DEADLINE), 0);
    assert_no_path(path);
}

static void
environment_can_name_the_file(void)
{
    const char *path = write_file("test.ini", sample);
    struct process *app =
        start_target("import manhole\n" EVALUATE,
                     .env = LIST(format_text("PYTHONMANHOLE=config='%s'", path)));
    wait_until_ready(app);
    struct client *client = visit(app, format_text("/tmp/ispyd-%d.sock", (int)app->pid));
    assert_string_equal(ask(app, client, "!process", "process"), "");
}

static void
everything_is_off_unless_the_file_says_so(void)
{
    static const char *const files[] = {
        "[manhole]\n",
        "[manhole]\n[python:console]\n[debugger]\n",
        "[manhole]\n[python:console]\nenabled = false\n[debugger]\nenabled = no\n",
        "[manhole]\n[python:console]\nenabled = OFF\n[debugger]\nenabled = 0\n",
        "[manhole]\nplugins = debugger python\n[console]\nenabled = true\n",
    };
    for (size_t i = 0; i < sizeof(files) / sizeof(files[0]); i++) {
        struct process *app = start_with(files[i], "");
        struct client *client = visit(app, socket_path_of(app->pid));
        assert_contains(ask(app, client, "!debugger", "manhole"), "plugin is disabled");
        assert_string_equal(ask(app, client, "!python", "python"), "");
        assert_contains(ask(app, client, "console", "python"), "console is disabled");
    }
}

static void
what_install_is_told_wins_over_the_file(void)
{
    struct process *app = start_with(sample, ", listen='./door', enable=()");
    struct client *client = visit(app, test_path("door"));
    assert_no_path(format_text("/tmp/ispyd-%d.sock", (int)app->pid));
    assert_string_equal(ask(app, client, "!python", "python"), "");
    assert_contains(ask(app, client, "console", "python"), "console is disabled");
    evaluate(app, "manhole.install(strict=False, config='test.ini', "
                  "connection_handler='repl')");
    client_wait_for(connect_client(format_text("/tmp/ispyd-%d.sock", (int)app->pid)),
                    "(ManholeConsole)\n>>> ");
}

static void
file_may_name_several_places(void)
{
    struct process *app =
        start_with("[manhole]\nlisten =\n    localhost:0\n    ./door-%(pid)s\n", "");
    wait_for_text(app, ERR, "Manhole TCP address: 127.0.0.1:", DEADLINE);
    const int port = (int)strtol(wait_for_text(app, ERR, "\n", DEADLINE), NULL, 10);
    client_wait_for(connect_port(port), format_text("(manhole:%d) ", (int)app->pid));
    visit(app, test_path(format_text("door-%d", (int)app->pid)));
}

static void
plugins_of_the_file_are_those_that_there_are(void)
{
    struct process *app = start_with("[ispyd]\nplugins =\n"
                                     "    ispyd.plugins.python:PythonShell\n"
                                     "    process  ; by its short name\n",
                                     "");
    struct client *client = visit(app, socket_path_of(app->pid));
    assert_string_equal(ask(app, client, "plugins", "manhole"),
                        "['process', 'python']\n");
    assert_contains(ask(app, client, "!wsgi", "manhole"), "There is no plugin");
}

/* What is wrong, and what of it must be in the message. */
static const struct {
    const char *content;
    const char *message;
} wrong_files[] = {
    {"", "'test.ini': must have a section [manhole] or [ispyd], not none"},
    {"[python]\n", "must have a section [manhole] or [ispyd], not none"},
    {"[manhole]\n[ispyd]\n", "must have a section [manhole] or [ispyd], not both"},
    {"listen = /tmp/x\n", "'test.ini': File contains no section headers."},
    {"[manhole]\nlisten = /tmp/x\nnonsense\n", "line 3"},
    {"[manhole]\nlisten = /tmp/x\nlisten = /tmp/y\n", "'listen' in section 'manhole'"},
    {"[manhole]\nlisten = door\n", "'test.ini': [manhole] listen must be HOST:PORT or a "
                                   "path with a '/' in it, or up to 8 "
                                   "of these on a line each, not 'door'"},
    {"[manhole]\nlisten =\n  localhost:0\n  localhost:70000\n", "localhost:70000'"},
    {"[ispyd]\nlisten =\n", "[ispyd] listen must be "},
    {"[ispyd]\nlisten = /" /* too long */
     "1234567890123456789012345678901234567890123456789012345678901234567890"
     "1234567890123456789012345678901234567890123456789012345678901234567890\n",
     "[ispyd] listen: install() option 'listen' is 141 bytes long"},
    {"[ispyd]\nlisten = /tmp/%(pid)s\nlitsen = x\n",
     "'test.ini': [ispyd] litsen is not known; it may have listen, plugins"},
    {"[ispyd]\n[python:console]\nenabled = maybe\n",
     "[python:console] enabled must be true or false, not 'maybe'"},
    {"[ispyd]\n[debugger]\nenabled =\n", "[debugger] enabled must be true or false"},
    {"[ispyd]\n[debugger]\nenable = true\n",
     "[debugger] enable is not known; it may have enabled"},
    {"[ispyd]\nlisten = /tmp/\xff\n", "utf-8"},
};

static void
wrong_file_is_refused_and_installs_nothing(void)
{
    struct process *app = start_obedient();
    for (size_t i = 0; i < sizeof(wrong_files) / sizeof(wrong_files[0]); i++) {
        (void)write_file("test.ini", wrong_files[i].content);
        const char *answer = evaluate(app, "manhole.install(config='test.ini')");
        assert_contains(answer, "ValueError: install() option 'config': 'test.ini': ");
        assert_contains(answer, wrong_files[i].message);
        assert_string_equal(evaluate(app, "os.listdir('/proc/self/task')[1:]"), "[]");
    }
}

static void
missing_file_is_named(void)
{
    struct process *app = start_obedient();
    assert_string_equal(
        evaluate(app, "manhole.install(config='nowhere.ini')"),
        "FileNotFoundError: [Errno 2] No such file or directory: 'nowhere.ini'");
    assert_contains(evaluate(app, "manhole.install(config=os.curdir)"),
                    "IsADirectoryError: ");
}

/* ---- Plugins ------------------------------------------------------------------------ */

/* A module with plugins as they were written for ispyd, less Python 2's print. */
static const char plugins_module[] = //
    "import time\n"
    "events = []\n"
    "class QueueShell(object):\n"
    "    name = 'queue'\n"
    "    secret = 'evil'\n"
    "    def activate(self, config):\n"
    "        self.size = config.get('queue', 'size')\n"
    "        return config.get('queue', 'closed') == 'yes'\n"
    "    def shutdown(self):\n"
    "        events.append('shutdown')\n"
    "    def do_size(self, line):\n"
    "        '''size\n"
    "        Display the size of the queue.'''\n"
    "        print(self.size, repr(line), file=self.stdout)\n"
    "    def do_greet(self, line):\n"
    "        self.stdout.write('who? ')\n"
    "        self.stdout.flush()\n"
    "        print('hello', self.stdin.readline().strip(), file=self.stdout)\n"
    "    def do_fail(self, line):\n"
    "        raise KeyError(line)\n"
    "    def do_hang(self, line):\n"
    "        print('hanging', file=self.stdout)\n"
    "        while True: time.sleep(0.001)\n"
    "    def do_show(self, line):\n"
    "        __import__('sys').displayhook(line)\n"
    "    def do_fork(self, line):\n"
    "        import os\n"
    "        if os.fork(): print('child:', os.wait()[1], file=self.stdout)\n"
    "    def do_leave(self, line):\n"
    "        return True\n"
    "    def method(self):\n"
    "        events.append('method')\n"
    "    def __getattr__(self, name):\n"
    "        events.append(name)\n"
    "        raise AttributeError(name)\n"
    "class Plain:\n"
    "    name = 'plain'\n"
    "    def do_nothing(self, line): pass\n"
    "class Nameless: pass\n"
    "class Spaced: name = 'a b'\n"
    "class Double: name = 'python'\n"
    "class Broken:\n"
    "    name = 'broken'\n"
    "    def __init__(self): raise RuntimeError('born broken')\n"
    "class Inactive:\n"
    "    name = 'inactive'\n"
    "    def activate(self, config): raise RuntimeError('not today')\n";

/* Installs with these plugins and [queue] closed = CLOSED; a client at the first prompt. */
static struct client *
visit_with_plugins(struct process **app, const char *plugins, const char *closed)
{
    (void)write_file("mine.py", plugins_module);
    *app = start_with(format_text("[manhole]\nplugins = %s\n"
                                  "[queue]\nsize = 3\nclosed = %s\n",
                                  plugins, closed),
                      "");
    return visit(*app, socket_path_of((*app)->pid));
}

static void
plugin_is_a_shell_with_its_methods_as_commands(void)
{
    struct process *app = NULL;
    struct client *client =
        visit_with_plugins(&app, "%(builtins)s mine:QueueShell", "no");
    assert_string_equal(ask(app, client, "plugins", "manhole"),
                        "['debugger', 'process', 'python', 'queue', 'wsgi']\n");
    assert_string_equal(ask(app, client, "!queue", "queue"), "");
    const char *help = ask(app, client, "help", "queue");
    assert_contains(help, "\nexit  help  prompt  size\n");
    assert_contains(help, "Undocumented commands:\n======================\n"
                          "fail  fork  greet  hang  leave  show\n");
    assert_matches(ask(app, client, "help size", "queue"),
                   "^size\n *Display the size of the queue\\.\n$");
    assert_string_equal(ask(app, client, "size  of it ", "queue"), "3 'of it'\n");
    assert_string_equal(ask(app, client, "show", "queue"), "''\n");
    client_send(client, "greet\n");
    client_wait_for(client, "who? ");
    assert_string_equal(ask(app, client, "you", "queue"), "hello you\n");
    assert_string_equal(ask(app, client, "exit", "manhole"), "");
    assert_string_equal(evaluate(app, "sys.modules['mine'].events"), "['shutdown']");
    assert_string_equal(evaluate(app, "sys.stdout is sys.__stdout__"), "True");
}

static void
plugin_that_is_not_active_is_not_entered(void)
{
    struct process *app = NULL;
    struct client *client = visit_with_plugins(
        &app, "mine:QueueShell mine:Broken mine:Inactive mine:Plain", "yes");
    assert_string_equal(ask(app, client, "!queue", "manhole"), "");
    assert_string_equal(ask(app, client, "!broken", "manhole"), "*** born broken\n");
    assert_contains(ask(app, client, "!inactive", "manhole"),
                    "RuntimeError: not today\n");
    assert_string_equal(ask(app, client, "!plain", "plain"), "");
    assert_string_equal(ask(app, client, "nothing", "plain"), "");
    assert_string_equal(ask(app, client, "help nothing", "plain"),
                        "*** No help on nothing\n");
}

static void
error_of_a_plugin_costs_the_command_alone(void)
{
    struct process *app = NULL;
    struct client *client = visit_with_plugins(&app, "mine:QueueShell", "no");
    assert_string_equal(ask(app, client, "!queue", "queue"), "");
    const char *answer = ask(app, client, "fail here", "queue");
    assert_contains(answer, "Traceback (most recent call last):\n");
    assert_contains(answer, "in do_fail\n");
    assert_contains(answer, "KeyError: 'here'\n");
    assert_string_equal(ask(app, client, "size", "queue"), "3 ''\n");
    assert_string_equal(ask(app, client, "leave", "manhole"), "");
}

static void
child_that_a_plugin_forks_ends_with_the_command(void)
{
    struct process *app = NULL;
    struct client *client = visit_with_plugins(&app, "mine:QueueShell", "no");
    assert_string_equal(ask(app, client, "!queue", "queue"), "");
    assert_contains(ask(app, client, "fork", "queue"), "child: 0\n");
    assert_string_equal(ask(app, client, "size", "queue"), "3 ''\n");
}

static void
command_of_a_plugin_can_be_interrupted(void)
{
    struct process *app = NULL;
    client_close(visit_with_plugins(&app, "mine:QueueShell", "no"));
    const char *path = socket_path_of(app->pid);
    struct client *client = connect_as(path, "manhole-cli/test.9/repl");
    client_send(client, "!queue\nhang\n");
    client_wait_for(client, "hanging\n");
    struct client *aside = connect_as(path, "manhole-cli/test.9/interrupt.1");
    assert_string_equal(client_read_until_eof(aside), "interrupted\n");
    client_wait_for(client, "\nKeyboardInterrupt\n");
    assert_string_equal(ask(app, client, "size", "queue"), "");
    assert_string_equal(ask(app, client, "", "queue"), "3 ''\n");
}

/* Only what the class has as do_NAME can be reached. */
static void
nothing_else_of_a_plugin_is_reached(void)
{
    static const char *const attempts[] = {
        "method",      "secret",           "do_size",     "__init__",      "activate",
        "shutdown",    "size.__globals__", "stdout",      "stdin",         "name",
        "_QueueShell", "help method",      "help secret", "help __doc__",  "nonsense",
        "shell plain", "console",          "__class__",   "help __init__", "EOF",
    };
    struct process *app = NULL;
    struct client *client = visit_with_plugins(&app, "mine:QueueShell", "no");
    assert_string_equal(ask(app, client, "!queue", "queue"), "");
    for (size_t i = 0; i < sizeof(attempts) / sizeof(attempts[0]); i++) {
        const char *answer = ask(app, client, attempts[i], "queue");
        assert_not_contains(answer, "evil");
        assert_not_contains(answer, "Traceback");
    }
    assert_string_equal(evaluate(app, "sys.modules['mine'].events"), "[]");
}

static void
broken_plugin_is_reported_and_skipped(void)
{
    static const char *const reports[] = {
        "['plain', 'python']\n",
        "skipped: nowhere:Shell: ModuleNotFoundError(\"No module named 'nowhere'\"",
        "skipped: mine:Missing: AttributeError(",
        "skipped: mine: ValueError('a plugin is named as module:Class')\n",
        "skipped: mine:Nameless: AttributeError(",
        "skipped: mine:Spaced: ValueError(\"its name is 'a b', not an identifier",
        "skipped: mine:Double: ValueError(\"another plugin is named 'python'\")\n",
        "skipped: ispyd.plugins.profiler:ProfilerShell: ModuleNotFoundError(",
        "skipped: mine:Plain: ValueError(\"another plugin is named 'plain'\")\n",
    };
    struct process *app = NULL;
    struct client *client = visit_with_plugins(
        &app,
        "nowhere:Shell mine:Missing mine mine:Nameless mine:Spaced mine:Double "
        "ispyd.plugins.profiler:ProfilerShell mine:Plain mine:Plain python",
        "no");
    const char *answer = ask(app, client, "plugins", "manhole");
    for (size_t i = 0; i < sizeof(reports) / sizeof(reports[0]); i++) {
        assert_contains(answer, reports[i]);
    }
    wait_for_text(app, ERR, "Plugin skipped: nowhere:Shell: ModuleNotFoundError",
                  DEADLINE);
    assert_string_equal(ask(app, client, "!plain", "plain"), "");
}

int
main(void)
{
    static const struct test_case tests[] = {
        TEST(sample_of_ispyd_works_as_it_is),
        TEST(environment_can_name_the_file),
        TEST(everything_is_off_unless_the_file_says_so),
        TEST(what_install_is_told_wins_over_the_file),
        TEST(file_may_name_several_places),
        TEST(plugins_of_the_file_are_those_that_there_are),
        TEST(wrong_file_is_refused_and_installs_nothing),
        TEST(missing_file_is_named),
        TEST(plugin_is_a_shell_with_its_methods_as_commands),
        TEST(plugin_that_is_not_active_is_not_entered),
        TEST(error_of_a_plugin_costs_the_command_alone),
        TEST(child_that_a_plugin_forks_ends_with_the_command),
        TEST(command_of_a_plugin_can_be_interrupted),
        TEST(nothing_else_of_a_plugin_is_reached),
        TEST(broken_plugin_is_reported_and_skipped),
    };
    return RUN_TESTS(tests);
}
