/* e2e_library.c - what a session needs of the standard library: never the application's own modules
 * of the same name, and not so much that there is no prompt without it.
 */
#include "support.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define SAYS_OWN "print('own', __name__, flush=True)\nmine = True\n"

/* A program of this name in a folder with such modules, which say when they are run. */
static struct process *
start_beside(const char *name, const char *program, const char *const modules[])
{
    for (size_t i = 0; modules[i] != NULL; i++) {
        (void)write_file(format_text("%s.py", modules[i]), SAYS_OWN);
    }
    struct process *app =
        start_process(.argv = LIST(python(), write_file(name, program)));
    wait_until_ready(app);
    return app;
}

static struct client *
enter(const struct process *app)
{
    struct client *client = connect_to(app);
    client_wait_for(client, ">>> ");
    return client;
}

static void
assert_console_works(struct client *client)
{
    assert_string_equal(client_ask(client, "6 * 7"), "42\n");
    assert_string_equal(client_ask(client, "1 / 0"),
                        "Traceback (most recent call last):\n"
                        "  File \"<console>\", line 1, in <module>\n"
                        "ZeroDivisionError: division by zero\n");
    assert_contains(client_ask(client, "x = = 1"), "SyntaxError: invalid syntax");
    assert_string_equal(client_ask(client, "for i in range(2): i\n"), "... 0\n1\n");
    assert_string_equal(client_ask(client, "sum([1,\n2])"), "... 3\n");
}

/* ---- Modules of the application that have a name of the standard library's ----------------- */

static void
script_that_has_the_name_of_a_module_is_not_run_again(void)
{
    struct process *app = start_beside(
        "code.py", "print('run', __name__, flush=True)\n" TARGET(""), LIST("unrelated"));
    struct client *client = enter(app);
    assert_console_works(client);
    assert_string_equal(client_ask(client, "'code' in sys.modules"), "False\n");
    rewind_stream(app, OUT);
    assert_string_equal(wait_for_text(app, OUT, "ready\n", DEADLINE),
                        "run __main__\nready\n");
    assert_string_equal(text_of(app, OUT), "run __main__\nready\n");
}

static void
modules_of_the_application_are_not_run_by_a_session(void)
{
    struct process *app = start_beside("main.py", TARGET(""),
                                       LIST("socket", "token", "traceback", "linecache",
                                            "selectors", "textwrap", "contextlib",
                                            "threading", "math", "array", "rlcompleter"));
    struct client *client = enter(app);
    assert_console_works(client);
    assert_string_equal(client_ask(client, "socket.socket.__name__"), "'socket'\n");
    assert_string_equal(client_ask(client, "traceback.format_exc()"),
                        "'NoneType: None\\n'\n");
    assert_string_equal(text_of(app, OUT), "ready\n");
    assert_contains(client_ask(client, "import socket; socket.mine"), "True\n");
}

static void
module_that_the_application_has_imported_stays_its_own(void)
{
    struct process *app = start_beside("main.py", "import code, traceback\n" TARGET(""),
                                       LIST("code", "traceback"));
    struct client *client = enter(app);
    assert_console_works(client);
    assert_string_equal(client_ask(client, "sys.modules['code'].mine"), "True\n");
    assert_string_equal(client_ask(client, "hasattr(traceback, 'mine')"), "False\n");
}

static void
shell_of_commands_runs_no_module_of_the_application(void)
{
    struct process *app = start_beside("main.py", TARGET("connection_handler='commands'"),
                                       LIST("cmd", "fnmatch", "linecache"));
    struct client *client = connect_to(app);
    client_send(client, "help\n");
    client_wait_for(client, "Documented commands");
    client_send(client, "shell python\nmodules sys*\nexit\nexit\n");
    assert_contains(client_read_until_eof(client), "sys");
    assert_string_equal(text_of(app, OUT), "ready\n");
}

static void
library_is_found_whatever_sys_path_says(void)
{
    struct process *app =
        start_target(INSTALL("") "import collections.abc, sys; del sys.path[:]\n" //
                     READY STAY);
    wait_until_ready(app);
    assert_console_works(enter(app));
}

static void
entry_of_sys_path_that_is_no_text_is_passed_by(void)
{
    struct process *app =
        start_target("import sys; sys.path.insert(0, None)\n" TARGET(""));
    wait_until_ready(app);
    assert_console_works(enter(app));
    assert_null(strstr(text_of(app, ERR), "Cannot import"));
}

static void
module_that_the_application_has_blocked_is_had_all_the_same(void)
{
    struct process *app =
        start_target("import sys; sys.modules['code'] = None\n" TARGET(""));
    wait_until_ready(app);
    assert_console_works(enter(app));
}

static void
library_is_shared_where_no_name_is_taken(void)
{
    struct process *app = start_target(TARGET(""));
    wait_until_ready(app);
    struct client *client = enter(app);
    assert_console_works(client);
    assert_string_equal(client_ask(client, "import code, traceback as shared"), "");
    assert_string_equal(client_ask(client, "shared is traceback"), "True\n");
    assert_string_equal(client_ask(client, "[n for n in sys.modules if 'manhole.' in n]"),
                        "[]\n");
}

/* ---- No module can be imported any more ---------------------------------------------------- */

#define REFUSE_IMPORTS                                                                   \
  "import sys\n"                                                                         \
  "def refuse(event, rest):\n"                                                           \
  "    if event == 'import': raise ImportError('no more')\n"                             \
  "sys.addaudithook(refuse)\n"

static struct process *
start_that_imports_nothing(const char *options)
{
    const char *install = format_text(INSTALL("%s"), options);
    struct process *app =
        start_target(format_text("%simport os\n%s", install, REFUSE_IMPORTS READY STAY));
    wait_until_ready(app);
    return app;
}

/* Behind the first prompt, and with one of its own. */
static struct client *
enter_without_modules(struct process *app, const char *why)
{
    struct client *client = enter(app);
    assert_matches(client_wait_for(client, ">>> "),
                   format_text("^manhole: cannot import .*traceback.*code: %s", why));
    wait_for_text(app, ERR, "]: Cannot import ", DEADLINE);
    return client;
}

static void
console_serves_without_its_modules(void)
{
    struct process *app = start_that_imports_nothing("locals={'answer': 42}");
    struct client *client = enter_without_modules(app, "ImportError\\('no more'\\)");
    assert_console_works(client);
    assert_string_equal(client_ask(client, "answer, 'traceback' in globals()"),
                        "(42, False)\n");
    assert_string_equal(client_ask(client, "if answer:\n    answer\nelse:\n    0\n"),
                        "... ... ... ... 42\n");
    assert_string_equal(client_ask(client, "'''a\nb'''"), "... 'a\\nb'\n");
    assert_string_equal(client_ask(client, "# nothing"), "");
    client_send(client, "exit()\n");
    client_read_until_eof(client);
    wait_for_text(app, ERR, "Cleaned up.", DEADLINE);
}

static void
console_serves_in_another_root(void)
{
    if (geteuid() != 0) {
        skip_test("only root may change it");
    }
    struct process *app =
        start_target(format_text("%simport os\nos.chroot('%s')\nos.chdir('/')\n%s",
                                 INSTALL(""), test_directory(), READY STAY));
    wait_until_ready(app);
    expect_socket_left(socket_path_of(app->pid)); /* it is in the old one */
    struct client *client = enter_without_modules(app, "");
    assert_console_works(client);
}

static int
run_code(const struct process *app, const char *code, const char **out, const char **err)
{
    return run_command(
        LIST(build_path("manhole-cli"), "-c", code, format_text("%d", (int)app->pid)),
        NULL, out, err);
}

static void
program_runs_without_its_modules(void)
{
    const char *out = NULL;
    const char *err = NULL;
    struct process *app = start_that_imports_nothing("");
    assert_int_equal(run_code(app, "print(6 * 7)", &out, &err), 0);
    assert_string_equal(out, "42\n");
    assert_contains(err, "manhole: cannot import ");
    assert_int_equal(run_code(app, "1 / 0", &out, &err), 1);
    assert_contains(err, "Traceback (most recent call last):\n"
                         "  File \"<string>\", line 1, in <module>\n"
                         "ZeroDivisionError: division by zero\n");
}

static void
program_that_cannot_begin_tells_why(void)
{
    const char *out = NULL;
    const char *err = NULL;
    struct process *app =
        start_target("class Names:\n"
                     "    def __getitem__(self, name): pass\n"
                     "    def keys(self): raise ValueError('no names')\n" //
                     TARGET("locals=Names()"));
    wait_until_ready(app);
    assert_int_not_equal(run_code(app, "print(6 * 7)", &out, &err), 0);
    assert_string_equal(out, "");
    assert_contains(err, "manhole: Program failed with ValueError('no names').\n");
    wait_for_text(app, ERR, "Program failed with ValueError('no names').", DEADLINE);
}

int
main(void)
{
    static const struct test_case tests[] = {
        TEST(script_that_has_the_name_of_a_module_is_not_run_again),
        TEST(modules_of_the_application_are_not_run_by_a_session),
        TEST(module_that_the_application_has_imported_stays_its_own),
        TEST(shell_of_commands_runs_no_module_of_the_application),
        TEST(library_is_found_whatever_sys_path_says),
        TEST(entry_of_sys_path_that_is_no_text_is_passed_by),
        TEST(module_that_the_application_has_blocked_is_had_all_the_same),
        TEST(library_is_shared_where_no_name_is_taken),
        TEST(console_serves_without_its_modules),
        TEST(console_serves_in_another_root),
        TEST(program_runs_without_its_modules),
        TEST(program_that_cannot_begin_tells_why),
    };
    return RUN_TESTS(tests);
}
