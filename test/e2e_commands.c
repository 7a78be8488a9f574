/* e2e_commands.c - the shell of commands, connection_handler='commands': ispyd's commands and
 * prompts, and nobody runs code in it.
 */
#include "support.h"

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define COMMANDS "connection_handler='commands'"

/* A client of such a shell. */
struct visitor {
    struct process *app;
    struct client *client;
};

static struct visitor
visit(const char *options)
{
    struct visitor visitor = {
        .app = start_target(format_text(INSTALL("%s") EVALUATE, options))};
    wait_until_ready(visitor.app);
    visitor.client = connect_to(visitor.app);
    return visitor;
}

static const char *
prompt_of(struct visitor visitor, const char *shell)
{
    return format_text("(%s:%d) ", shell, (int)visitor.app->pid);
}

/* Sends a line; returns what is answered up to the prompt of this shell. */
static const char *
ask(struct visitor visitor, const char *line, const char *shell)
{
    const char *prompt = prompt_of(visitor, shell);
    client_send(visitor.client, format_text("%s\n", line));
    const char *answer = client_wait_for(visitor.client, prompt);
    return format_text("%.*s", (int)(strlen(answer) - strlen(prompt)), answer);
}

/* At the prompt of a sub-shell. */
static struct visitor
visit_shell(const char *options, const char *shell)
{
    struct visitor visitor = visit(options);
    client_wait_for(visitor.client, prompt_of(visitor, "manhole"));
    assert_string_equal(ask(visitor, format_text("shell %s", shell), shell), "");
    return visitor;
}

/* ---- The outermost shell ----------------------------------------------------------- */

static void
client_is_at_a_prompt_at_once(void)
{
    struct visitor visitor = visit(COMMANDS);
    const char *prompt = prompt_of(visitor, "manhole");
    assert_string_equal(client_wait_for(visitor.client, prompt), prompt);
}

static void
help_lists_the_commands_as_ispyd_does(void)
{
    struct visitor visitor = visit(COMMANDS);
    client_wait_for(visitor.client, prompt_of(visitor, "manhole"));
    assert_string_equal(ask(visitor, "help", "manhole"),
                        "\nDocumented commands (type help <topic>):\n"
                        "========================================\n"
                        "exit  help  plugins  prompt  shell\n\n");
}

static void
plugins_are_listed_as_ispyd_does(void)
{
    struct visitor visitor = visit(COMMANDS);
    client_wait_for(visitor.client, prompt_of(visitor, "manhole"));
    assert_string_equal(ask(visitor, "plugins", "manhole"),
                        "['debugger', 'process', 'python', 'wsgi']\n");
}

static void
exclamation_mark_enters_a_shell_and_exit_leaves_it(void)
{
    struct visitor visitor = visit(COMMANDS);
    client_wait_for(visitor.client, prompt_of(visitor, "manhole"));
    assert_string_equal(ask(visitor, "!process", "process"), "");
    assert_string_equal(ask(visitor, "exit", "manhole"), "");
    assert_string_equal(ask(visitor, "! wsgi", "wsgi"), "");
    assert_string_equal(ask(visitor, "exit", "manhole"), "");
    client_send(visitor.client, "exit\n");
    assert_string_equal(client_read_until_eof(visitor.client), "");
}

static void
prompt_can_be_off_here_and_further_in(void)
{
    struct visitor visitor = visit(COMMANDS);
    client_wait_for(visitor.client, prompt_of(visitor, "manhole"));
    client_send(visitor.client, "prompt off\n!process\npid\nexit\nprompt on\n");
    assert_string_equal(
        client_wait_for(visitor.client, prompt_of(visitor, "manhole")),
        format_text("%d\n(manhole:%d) ", (int)visitor.app->pid, (int)visitor.app->pid));
}

/* Each topic says something, and begins with how the command is typed. */
static void
every_command_has_help(void)
{
    static const struct {
        const char *shell;
        const char *commands; /* a blank between two */
    } rows[] = {
        {"process", "cwd egid euid exit gid help pid prompt uid"},
        {"python",
         "argv console defaultencoding environ executable exit filesystemencoding "
         "help maxint maxsize maxunicode modules path platform prefix prompt "
         "tasks threads version"},
        {"debugger", "debug discard exit help insert list print prompt remove reset "
                     "tracebacks"},
        {"wsgi", "exit help prompt requests"},
    };
    for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
        struct visitor visitor =
            visit_shell(COMMANDS ", enable='debugger'", rows[i].shell);
        char words[300];
        char *rest = NULL;
        (void)snprintf(words, sizeof(words), "%s", rows[i].commands);
        for (char *word = strtok_r(words, " ", &rest); word != NULL;
             word = strtok_r(NULL, " ", &rest)) {
            assert_contains(ask(visitor, "help", rows[i].shell), word);
            assert_matches(ask(visitor, format_text("? %s", word), rows[i].shell),
                           format_text("^%s.*\n    [A-Z].*\\.\n$", word));
        }
    }
}

static void
what_is_no_command_is_told_so(void)
{
    static const struct {
        const char *line;
        const char *answer;
    } rows[] = {
        {"frobnicate", "*** Unknown syntax: frobnicate\n"},
        {"1 + 1", "*** Unknown syntax: 1 + 1\n"},
        {"shell nope", "*** There is no plugin named 'nope'; \"plugins\" lists them\n"},
        {"help nope", "*** No help on nope\n"},
        {"prompt maybe", "*** A prompt is on or off\n"},
        {"", ""},
        {"   \t ", ""},
    };
    struct visitor visitor = visit(COMMANDS);
    client_wait_for(visitor.client, prompt_of(visitor, "manhole"));
    for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
        assert_string_equal(ask(visitor, rows[i].line, "manhole"), rows[i].answer);
    }
}

static void
end_of_input_leaves_from_any_depth(void)
{
    struct visitor visitor = visit_shell(COMMANDS, "python");
    client_send(visitor.client,
                "maxsize\nprefix"); /* a last line without an end counts */
    client_shutdown_write(visitor.client);
    assert_matches(client_read_until_eof(visitor.client),
                   "^[0-9]+\n.*/.*\n\\(python:[0-9]+\\) \n$");
    wait_for_text(visitor.app, ERR, "DONE.", DEADLINE);
}

static void
client_that_vanishes_further_in_leaves_nothing_behind(void)
{
    struct visitor visitor = visit_shell(COMMANDS, "python");
    int fds = count_fds(visitor.app->pid);
    int threads = count_threads(visitor.app->pid);
    client_send(visitor.client, "version\nmaxs"); /* half a command is none */
    client_close(visitor.client);
    wait_for_text(visitor.app, ERR, "Cleaned up.\n", DEADLINE);
    visitor.client = connect_to(visitor.app);
    client_wait_for(visitor.client, prompt_of(visitor, "manhole"));
    wait_for_usage(visitor.app->pid, fds, threads);
}

static void
clients_are_each_in_a_place_of_their_own(void)
{
    struct visitor one = visit_shell(COMMANDS, "python");
    struct visitor other = {.app = one.app, .client = connect_to(one.app)};
    client_wait_for(other.client, prompt_of(other, "manhole"));
    assert_string_equal(ask(other, "!process", "process"), "");
    assert_string_equal(ask(one, "platform", "python"), "linux\n");
}

/* ---- process, python ---------------------------------------------------------------- */

/* What the command shows is what the program sees. */
struct shown {
    const char *command;
    const char *expression;
};

static void
assert_shown(const char *shell, const struct shown rows[], size_t count)
{
    struct visitor visitor = visit_shell(COMMANDS, shell);
    for (size_t i = 0; i < count; i++) {
        const char *shown = ask(visitor, rows[i].command, shell);
        assert_string_equal(
            shown, format_text("%s\n", evaluate(visitor.app, rows[i].expression)));
    }
}

static void
process_shows_what_the_process_is(void)
{
    static const struct shown rows[] = {
        {"pid", "os.getpid()"}, {"uid", "os.getuid()"},   {"euid", "os.geteuid()"},
        {"gid", "os.getgid()"}, {"egid", "os.getegid()"}, {"cwd", "os.getcwd()"},
    };
    assert_shown("process", rows, sizeof(rows) / sizeof(rows[0]));
}

static void
python_shows_what_python_is(void)
{
    static const struct shown rows[] = {
        {"platform", "sys.platform"},
        {"version", "sys.version"},
        {"prefix", "sys.prefix"},
        {"path", "sys.path"},
        {"executable", "sys.executable"},
        {"argv", "sys.argv"},
        {"defaultencoding", "sys.getdefaultencoding()"},
        {"filesystemencoding", "sys.getfilesystemencoding()"},
        {"maxsize", "sys.maxsize"},
        {"maxunicode", "sys.maxunicode"},
        {"environ", "dict(os.environ)"},
        {"modules", "sorted(name for name in sys.modules if '.' not in name)"},
        {"modules nothing.like.this", "[]"}, /* and fnmatch is imported from here on */
        {"modules *", "sorted(sys.modules)"},
        {"modules os*", "sorted(name for name in sys.modules if name.startswith('os'))"},
    };
    assert_shown("python", rows, sizeof(rows) / sizeof(rows[0]));
}

static void
maxint_answers_with_maxsize_and_says_so(void)
{
    struct visitor visitor = visit_shell(COMMANDS, "python");
    assert_string_equal(
        ask(visitor, "maxint", "python"),
        format_text("%s\nPython 3 has no maxint, for its ints have no limit: this is "
                    "maxsize.\n",
                    evaluate(visitor.app, "sys.maxsize")));
}

static void
threads_shows_the_stack_of_every_thread(void)
{
    struct visitor visitor = visit_shell(COMMANDS, "python");
    const char *answer = ask(visitor, "threads", "python");
    assert_contains(answer,
                    format_text("ProcessID=%d, ThreadID=", (int)visitor.app->pid));
    assert_contains(answer, "for line in iter(sys.stdin.readline, ''):");
}

/* Keeps the GIL until its stdin has a byte, stays. */
#define HOLD_GIL                                                                         \
  "import ctypes\n"                                                                      \
  "byte = ctypes.create_string_buffer(1)\n"                                              \
  "def hold(): ctypes.PyDLL(None).read(0, byte, 1)\n" READY "hold()\n" STAY

static void
client_of_a_stuck_interpreter_has_the_stacks_and_then_its_prompt(void)
{
    struct visitor visitor = {
        .app = start_target(INSTALL(COMMANDS ", hang_timeout=0.1") HOLD_GIL)};
    wait_until_ready(visitor.app);
    wait_until_asleep(visitor.app->pid);
    visitor.client = connect_to(visitor.app);
    client_send(visitor.client, "!python\nthreads\n");
    client_wait_for(visitor.client, "manhole: Python has not answered for ");
    client_wait_for(visitor.client, "in hold\n");
    client_wait_for(visitor.client, "the prompt comes here as soon as Python answers.\n");
    write_stdin(visitor.app, "x");
    client_wait_for(visitor.client, prompt_of(visitor, "manhole"));
    client_wait_for(visitor.client, prompt_of(visitor, "python"));
    client_wait_for(visitor.client, "ThreadID=");
}

static void
threads_typed_to_a_stuck_interpreter_is_answered_without_it(void)
{
    require_gil();
    struct visitor visitor = {
        .app = start_target(INSTALL(COMMANDS ", hang_timeout=0.1") //
                            "import os\n" READY "os.read(0, 1)\n" HOLD_GIL)};
    wait_for_text(visitor.app, OUT, "ready\n", DEADLINE);
    visitor.client = connect_client(socket_path_of(visitor.app->pid));
    client_send(visitor.client, "!python\nplatform\n");
    client_wait_for(visitor.client, "linux\n");
    client_wait_for(visitor.client, prompt_of(visitor, "python")); /* it is done */
    write_stdin(visitor.app, "x");
    wait_for_text(visitor.app, OUT, "ready\n", DEADLINE); /* to hold it */
    wait_until_asleep(visitor.app->pid);
    client_send(visitor.client, "threads\n");
    client_wait_for(visitor.client, "manhole: Python has not answered for ");
    client_wait_for(visitor.client, "in hold\n");
    client_wait_for(visitor.client, "the prompt comes here as soon as Python answers.\n");
    write_stdin(visitor.app, "x");
    client_wait_for(visitor.client, prompt_of(visitor, "python"));
    assert_contains(ask(visitor, "platform", "python"), "linux\n");
}

/* ---- What is off --------------------------------------------------------------------- */

static void
console_is_refused_and_told_how_to_be_enabled(void)
{
    struct visitor visitor = visit_shell(COMMANDS, "python");
    assert_string_equal(
        ask(visitor, "console", "python"),
        "Sorry, the Python console is disabled. To enable it: \"enabled = true\" in "
        "section "
        "[python:console] of the configuration file, or install(enable='console').\n");
    assert_string_equal(ask(visitor, "import os", "python"),
                        "*** Unknown syntax: import os\n");
}

static void
debugger_is_refused_and_told_how_to_be_enabled(void)
{
    struct visitor visitor = visit(COMMANDS ", enable='console'");
    client_wait_for(visitor.client, prompt_of(visitor, "manhole"));
    assert_string_equal(
        ask(visitor, "shell debugger", "manhole"),
        "Sorry, the debugger plugin is disabled. To enable it: \"enabled = true\" in "
        "section "
        "[debugger] of the configuration file, or install(enable='debugger').\n");
}

static void
console_that_is_enabled_is_one_and_gives_back_to_the_shell(void)
{
    struct visitor visitor = visit_shell(COMMANDS ", enable='console'", "python");
    client_send(visitor.client, "console\n");
    client_wait_for(visitor.client, "(ManholeConsole)\n>>> ");
    assert_string_equal(client_ask(visitor.client, "import os; os.getpid()"),
                        format_text("%d\n", (int)visitor.app->pid));
    assert_string_equal(client_ask(visitor.client, "print('to', 'me')"), "to me\n");
    assert_string_equal(ask(visitor, "exit()", "python"), "");
    assert_string_equal(ask(visitor, "platform", "python"), "linux\n");
    assert_string_equal(evaluate(visitor.app, "sys.stdout is sys.__stdout__"), "True");
}

static void
lines_typed_ahead_of_a_console_are_read_by_whose_turn_it_is(void)
{
    struct visitor visitor = visit_shell(COMMANDS ", enable=['console']", "python");
    client_send(visitor.client, "console\n'con' + 'sole'\nquit(1)\nplatform\n"
                                "console\nraise SystemExit\nmaxunicode\nexit\n");
    client_wait_for(visitor.client, "'console'\n");
    client_wait_for(visitor.client, "linux\n");
    client_wait_for(visitor.client, "1114111\n");
    client_wait_for(visitor.client, prompt_of(visitor, "manhole"));
}

static void
program_is_refused_unless_the_console_is_enabled(void)
{
    static const char code[] = "print(6 * 7)";
    const char *out = NULL;
    const char *err = NULL;
    struct visitor closed = visit(COMMANDS);
    const char *pid = format_text("%d", (int)closed.app->pid);
    const char *cli = build_path("manhole-cli");
    assert_int_not_equal(run_command(LIST(cli, pid, "-c", code), NULL, &out, &err), 0);
    assert_string_equal(out, "");
    assert_contains(err, "nobody may run code here");
    struct visitor open = visit(COMMANDS ", enable='console'");
    pid = format_text("%d", (int)open.app->pid);
    assert_int_equal(run_command(LIST(cli, pid, "-c", code), NULL, &out, &err), 0);
    assert_string_equal(out, "42\n");
}

/* Records what other threads than the main one compile, run, import, open or start, once what the
 * shell itself needs has been imported. */
#define WATCHFUL                                                                         \
  INSTALL(COMMANDS)                                                                      \
  "import _thread, cmd, fnmatch, sys\n"                                                  \
  "main, seen = _thread.get_ident(), []\n"                                               \
  "watched = ('compile', 'exec', 'import', 'open', 'os.', 'subprocess.', 'socket.',\n"   \
  "           'ctypes.', 'marshal.', 'code.', 'function.', 'pickle.', 'builtins.')\n"    \
  "def hook(event, arguments):\n"                                                        \
  "    if _thread.get_ident() != main and event.startswith(watched):\n"                  \
  "        seen.append((event, arguments))\n"                                            \
  "class Trap:\n"                                                                        \
  "    def __getattribute__(self, name): seen.append(name)\n"                            \
  "    def __format__(self, spec): seen.append(spec)\n"                                  \
  "trap = Trap()\n" EVALUATE

static const char *const attempts[] = {
    /* code */
    "__import__('os').mkdir('evil')",
    "import os; os.mkdir('evil')",
    "eval __import__('os').mkdir('evil')",
    "exec open('evil', 'w')",
    "; __import__('os').mkdir('evil')",
    "cwd; __import__('os').mkdir('evil')",
    "help __import__('os').mkdir('evil')",
    "?__import__('os').mkdir('evil')",
    "modules __import__('os').mkdir('evil')",
    "modules [a-z]*(?{evil})",
    "modules (?P<a>.*)",
    "prompt __import__('os').mkdir('evil')",
    "prompt on; import os",
    "console __import__('os').mkdir('evil')",
    "console\rimport os; os.mkdir('evil')",
    "!!touch evil",
    "!touch evil",
    "! os",
    "|touch evil",
    "`touch evil`",
    "$(touch evil)",
    "> evil",
    /* names */
    "__class__",
    "do_exit",
    "do_shell",
    "default evil",
    "cmdloop",
    "shell __class__",
    "shell __main__",
    "shell this",
    "shell antigravity",
    "shell antigravity:fly",
    "shell main",
    "shell manhole",
    "shell ispyd.plugins.python:PythonShell",
    "shell None",
    "shell ",
    "shell debugger console",
    "help __class__",
    "help __doc__",
    "help do_help",
    "help ../../etc/passwd",
    "help trap",
    "plugins trap",
    "plugins append this",
    /* paths */
    "shell ../evil",
    "shell /tmp/evil.py",
    "modules /etc/*",
    "modules ../*",
    "cwd /etc",
    "cwd > evil",
    /* formats */
    "%s%n%s%n %(pid)s",
    "{0.__class__.__mro__}",
    "shell %s%n",
    "shell {trap}",
    "help %n%s",
    "help {trap.evil}",
    "modules %s%n",
    "prompt %s",
    /* what upsets a pattern */
    "modules [",
    "modules [!",
    "modules []]",
    "modules *a*a*a*a*a*a*a*a*a*a*a*a*a*a*a*a*a*a*a*a*a*a*a*a*a*a*b",
    "modules \\",
    /* pdb, where it is not enabled */
    "debug trap:evil",
    "insert __main__:hook",
    "pdb",
    "EOF",
};

/* In each shell, from its prompt on: what it takes to come there is not the client's. */
static void
nothing_that_is_typed_is_run(void)
{
    static const char *const shells[] = {"manhole", "process", "python", "wsgi"};
    struct visitor visitor = {.app = start_target(WATCHFUL)};
    wait_until_ready(visitor.app);
    evaluate(visitor.app, "sys.addaudithook(hook)");
    for (size_t i = 0; i < sizeof(shells) / sizeof(shells[0]); i++) {
        visitor.client = connect_to(visitor.app);
        client_send(visitor.client, format_text("!%s\n!%s\n", shells[i], shells[i]));
        client_wait_for(visitor.client, prompt_of(visitor, shells[i]));
        const char *modules = evaluate(visitor.app, "seen.clear() or len(sys.modules)");
        for (size_t j = 0; j < sizeof(attempts) / sizeof(attempts[0]); j++) {
            client_send(visitor.client, format_text("%s\n", attempts[j]));
        }
        client_shutdown_write(visitor.client);
        assert_not_contains(client_read_until_eof(visitor.client), "Traceback");
        assert_string_equal(evaluate(visitor.app, "seen"), "[]");
        assert_string_equal(evaluate(visitor.app, "len(sys.modules)"), modules);
    }
    assert_no_path(test_path("evil"));
}

/* Shows that the test above would have seen it. */
static void
the_console_would_have_been_seen(void)
{
    struct visitor visitor = {.app = start_target(WATCHFUL)};
    wait_until_ready(visitor.app);
    evaluate(visitor.app, "__import__('manhole').install(strict=False, " COMMANDS
                          ", enable='console') and sys.addaudithook(hook)");
    visitor.client = connect_to(visitor.app);
    client_send(visitor.client, "!python\nconsole\nimport os; os.mkdir('evil')\n");
    client_shutdown_write(visitor.client);
    client_read_until_eof(visitor.client);
    assert_contains(evaluate(visitor.app, "seen"), "os.mkdir");
    assert_path_exists(test_path("evil"));
}

static void
odd_bytes_cost_a_line_at_most(void)
{
    struct visitor visitor = visit(COMMANDS);
    static const char odd[] = "sh\0ell python\n\0\nhelp\0\n\xff\xfe\n\x1b[2J\n\r\n"
                              "shell p\xc3ython\nshell python\0\nmodules \0\xff\n";
    client_wait_for(visitor.client, prompt_of(visitor, "manhole"));
    client_send_bytes(visitor.client, odd, sizeof(odd) - 1);
    client_send(visitor.client, "!process\n");
    client_wait_for(visitor.client, prompt_of(visitor, "process"));
    assert_not_contains(visitor.client->text.data, "python:");
}

static void
long_lines_are_answered_shortly(void)
{
    enum { LONG = 1024 * 1024 };
    static const char *const starts[] = {"x",        "help ",   "shell ",
                                         "modules ", "prompt ", "?"};
    char *line = malloc(LONG + 1);
    struct visitor visitor = visit_shell(COMMANDS, "python");
    memset(line, '*', LONG);
    line[LONG] = '\0';
    for (size_t i = 0; i < sizeof(starts) / sizeof(starts[0]); i++) {
        memcpy(line, starts[i], strlen(starts[i]));
        assert_in_range(strlen(ask(visitor, line, "python")), 1, 200);
        memset(line, '*', 10);
    }
    free(line);
}

/* ---- Beside the console's own ways --------------------------------------------------- */

/* The names of the shell where the client is; what it types is not evaluated to find them. */
static void
words_are_completed_from_the_shell_where_the_client_is(void)
{
    struct visitor visitor = {.app = start_target(TARGET(COMMANDS))};
    wait_until_ready(visitor.app);
    const char *path = socket_path_of(visitor.app->pid);
    visitor.client = connect_as(path, "manhole-cli/test.1/terminal");
    client_wait_for(visitor.client, "\1?(manhole:");
    static const struct {
        const char *line; /* sent first */
        const char *text;
        const char *matches;
    } rows[] = {
        {"", "pl", "plugins\n"},
        {"", "p", "plugins\nprompt\nprocess\npython\n"},
        {"", "print", ""},
        {"", "sys.version_info.maj", ""},
        {"!process", "e", "egid\neuid\nexit\n"},
    };
    for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
        client_send(visitor.client, format_text("%s\nhelp\n", rows[i].line));
        client_wait_for(visitor.client, "Documented commands");
        client_wait_for(visitor.client, "\2");
        struct client *aside =
            connect_as(path, format_text("manhole-cli/test.1/complete.%zu", i));
        client_send(aside, format_text("%s\n", rows[i].text));
        assert_string_equal(client_read_until_eof(aside), rows[i].matches);
    }
}

static void
prompt_is_marked_for_an_editor_even_when_it_is_off(void)
{
    struct process *app = start_target(TARGET(COMMANDS));
    wait_until_ready(app);
    struct client *client =
        connect_as(socket_path_of(app->pid), "manhole-cli/t.1/terminal");
    client_wait_for(client, format_text("\1?(manhole:%d) \2", (int)app->pid));
    client_send(client, "prompt off\n");
    client_wait_for(client, "\1!\2");
    client_wait_for(client, "\1?\2");
}

static void
oneshot_serves_the_shell_too(void)
{
    struct visitor visitor = {
        .app = start_target(INSTALL(COMMANDS ", oneshot_on='USR1'") EVALUATE)};
    wait_until_ready(visitor.app);
    send_signal(visitor.app, SIGUSR1);
    visitor.client = connect_to(visitor.app);
    client_wait_for(visitor.client, prompt_of(visitor, "manhole"));
    assert_string_equal(ask(visitor, "!python", "python"), "");
    assert_string_equal(ask(visitor, "platform", "python"), "linux\n");
    client_send(visitor.client, "exit\nexit\n");
    client_read_until_eof(visitor.client);
    assert_string_equal(evaluate(visitor.app, "1 + 1"), "2");
}

static void
socket_of_ones_own_is_served_with_the_shell(void)
{
    struct process *app = start_target("import socket, threading\n" INSTALL(
        "") "ours, theirs = socket.socketpair()\n"
            "threading.Thread(target=manhole.handle_connection_commands,"
            " args=(theirs,)).start()\n"
            "ours.sendall(b'!process\\npid\\nexit\\nexit\\n')\n"
            "print(ours.makefile().read(), flush=True)\n" READY STAY);
    wait_until_ready(app);
    rewind_stream(app, OUT);
    wait_for_text(app, OUT,
                  format_text("(process:%d) %d\n", (int)app->pid, (int)app->pid),
                  DEADLINE);
}

static void
without_the_option_there_is_the_python_console(void)
{
    struct process *app = start_target(TARGET(""));
    struct client *client = connect_to(app);
    client_wait_for(client, ">>> ");
    assert_string_equal(client_ask(client, "1 + 1"), "2\n");
}

int
main(void)
{
    static const struct test_case tests[] = {
        TEST(client_is_at_a_prompt_at_once),
        TEST(help_lists_the_commands_as_ispyd_does),
        TEST(plugins_are_listed_as_ispyd_does),
        TEST(exclamation_mark_enters_a_shell_and_exit_leaves_it),
        TEST(prompt_can_be_off_here_and_further_in),
        TEST(every_command_has_help),
        TEST(what_is_no_command_is_told_so),
        TEST(end_of_input_leaves_from_any_depth),
        TEST(client_that_vanishes_further_in_leaves_nothing_behind),
        TEST(clients_are_each_in_a_place_of_their_own),
        TEST(process_shows_what_the_process_is),
        TEST(python_shows_what_python_is),
        TEST(maxint_answers_with_maxsize_and_says_so),
        TEST(threads_shows_the_stack_of_every_thread),
        TEST(client_of_a_stuck_interpreter_has_the_stacks_and_then_its_prompt),
        TEST(threads_typed_to_a_stuck_interpreter_is_answered_without_it),
        TEST(console_is_refused_and_told_how_to_be_enabled),
        TEST(debugger_is_refused_and_told_how_to_be_enabled),
        TEST(console_that_is_enabled_is_one_and_gives_back_to_the_shell),
        TEST(lines_typed_ahead_of_a_console_are_read_by_whose_turn_it_is),
        TEST(program_is_refused_unless_the_console_is_enabled),
        TEST(nothing_that_is_typed_is_run),
        TEST(the_console_would_have_been_seen),
        TEST(odd_bytes_cost_a_line_at_most),
        TEST(long_lines_are_answered_shortly),
        TEST(words_are_completed_from_the_shell_where_the_client_is),
        TEST(prompt_is_marked_for_an_editor_even_when_it_is_off),
        TEST(oneshot_serves_the_shell_too),
        TEST(socket_of_ones_own_is_served_with_the_shell),
        TEST(without_the_option_there_is_the_python_console),
    };
    return RUN_TESTS(tests);
}
