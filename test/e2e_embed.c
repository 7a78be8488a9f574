/* C programs that embed Python: test/embed_example.c with scripts of the tests. What manhole.h
 * promises of errors and threads is in unit_embedding.c. */
#include "support.h"

#include <signal.h>
#include <stdio.h>
#include <string.h>

#define SAY_READY "print('ready', flush=True)\n"
#define HANDLE "def handle(line):\n"
/* handle(): runs the line, as exec() does. */
#define EXECUTE HANDLE "    exec(line, globals())\n"
/* handle(): holds the GIL in C until something comes through stdin. */
#define HANG                                                                             \
  "import ctypes\n"                                                                      \
  "hang = ctypes.PyDLL(None).getchar\n" HANDLE                                           \
  "    print('hangs', flush=True); hang()\n"                                             \
  "    print('goes on', flush=True)\n"
#define HANGING "script.py\", line 4, in handle\n  print('hangs', flush=True); hang()\n"

/* Starts the example on a script, and waits until it is in its loop. */
static struct process *
start_script(const char *script)
{
    const char *path = write_file("script.py", format_text("%s" SAY_READY, script));
    struct process *app = start_example(.argv = LIST(path));
    wait_until_ready(app);
    return app;
}

/* Activates the manhole and goes in. */
static struct client *
open_manhole(struct process *app)
{
    send_signal(app, SIGUSR1);
    struct client *client = connect_to(app);
    client_wait_for(client, ">>> ");
    return client;
}

static void
assert_ends_well(struct process *app)
{
    close_stdin(app);
    assert_int_equal(wait_for_exit(app, DEADLINE), 0);
    assert_no_path(socket_path_of(app->pid));
}

/* ---- The prompt ---------------------------------------------------------------------- */

static void
client_has_a_prompt_with_the_names_of_the_script(void)
{
    struct process *app = start_script("answer = 42\n" EXECUTE);
    struct client *client = open_manhole(app);
    assert_string_equal(client_ask(client, "answer + 1"), "43\n");
    client_ask(client, "handle('answer = 5')");
    client_close(client);
    write_stdin(app, "print('the answer is', answer, flush=True)\n");
    wait_for_text(app, OUT, "the answer is 5\n", DEADLINE);
    assert_ends_well(app);
}

static void
program_works_on_beside_a_client(void)
{
    struct process *app = start_script(EXECUTE);
    struct client *client = open_manhole(app);
    client_send(client, "while True: pass\n\n");
    write_stdin(app, "print('beside', flush=True)\n");
    wait_for_text(app, OUT, "beside\n", DEADLINE);
    client_wait_for(client, "beside");
    client_close(client);
    assert_ends_well(app);
}

static void
script_finds_the_same_manhole_by_import(void)
{
    struct process *app =
        start_script("import manhole\n" EXECUTE "try: manhole.install()\n"
                     "except manhole.AlreadyInstalled: print('the same')\n");
    rewind_stream(app, OUT);
    wait_for_text(app, OUT, "the same\n", DEADLINE);
    struct client *client = open_manhole(app);
    client_ask(client, "import manhole as m");
    assert_string_equal(client_ask(client, "m is manhole"), "True\n");
    client_close(client);
    assert_ends_well(app);
}

static void
script_that_fails_ends_the_program_and_leaves_nothing(void)
{
    const char *path = write_file("script.py", "1 / 0\n");
    struct process *app = start_example(.argv = LIST(path));
    assert_int_equal(wait_for_exit(app, DEADLINE), 1);
    assert_contains(text_of(app, ERR), "ZeroDivisionError");
    assert_no_path(socket_path_of(app->pid));
}

static void
script_that_cannot_be_read_is_told(void)
{
    struct process *app = start_example(.argv = LIST("nowhere.py"));
    assert_int_equal(wait_for_exit(app, DEADLINE), 2);
    assert_string_equal(text_of(app, ERR), "nowhere.py: No such file or directory\n");
}

/* manhole.pth is read by Py_Initialize(): the variable comes first, the program goes on. */
static void
variable_installs_in_an_embedded_python_too(void)
{
    const char *path = write_file("script.py", EXECUTE SAY_READY);
    struct process *app =
        start_example(.argv = LIST(path), .env = LIST("PYTHONMANHOLE=locals={'a': 42}"));
    wait_until_ready(app);
    struct client *client = connect_to(app);
    client_wait_for(client, ">>> ");
    assert_string_equal(client_ask(client, "a + 1"), "43\n");
    assert_contains(text_of(app, ERR), "AlreadyInstalled");
    client_close(client);
    assert_ends_well(app);
}

static void
handler_that_exits_ends_the_program_with_its_status(void)
{
    struct process *app = start_script("import sys\n" EXECUTE);
    struct client *client = open_manhole(app);
    client_close(client);
    write_stdin(app, "sys.exit(7)\n");
    assert_int_equal(wait_for_exit(app, DEADLINE), 7);
    assert_no_path(socket_path_of(app->pid));
}

/* ---- Stacks at the program's own request --------------------------------------------- */

static void
stacks_are_written_while_no_thread_runs_python(void)
{
    struct process *app = start_script(EXECUTE);
    send_signal(app, SIGQUIT);
    wait_for_text(app, ERR, "), sleeping", DEADLINE);
    wait_for_text(app, ERR, "#############################################\n", DEADLINE);
    assert_not_contains(text_of(app, ERR), "manhole_dump_stacks");
    assert_ends_well(app);
}

static void
stacks_are_written_while_python_hangs(void)
{
    struct process *app = start_script(HANG);
    write_stdin(app, "a line\n");
    wait_for_text(app, OUT, "hangs\n", DEADLINE);
    for (int i = 0; i < 3; i++) {
        send_signal(app, SIGQUIT);
        wait_for_text(app, ERR, HANGING, DEADLINE);
        wait_for_text(app, ERR, "#############################################\n",
                      DEADLINE);
    }
    write_stdin(app, "x");
    wait_for_text(app, OUT, "goes on\n", DEADLINE);
    assert_ends_well(app);
}

static void
client_is_told_the_stacks_while_python_hangs(void)
{
    struct process *app = start_script(HANG);
    write_stdin(app, "a line\n");
    wait_for_text(app, OUT, "hangs\n", DEADLINE);
    send_signal(app, SIGUSR1);
    struct client *client = connect_to(app);
    client_wait_for(client, HANGING);
    write_stdin(app, "x");
    client_wait_for(client, ">>> ");
    client_close(client);
    assert_ends_well(app);
}

/* ---- What embedders have and `python` has not ----------------------------------------- */

/* The main thread stays the main thread, whoever imports threading first. */
static void
threading_that_a_client_imports_first_knows_the_main_thread(void)
{
    struct process *app = start_script(
        "import manhole, sys, _thread; main = _thread.get_ident()\n"
        "sys.modules.pop('threading', None) # a .pth file may be to blame\n"
        "manhole.install(strict=False, activate_on='USR1', locals=globals())\n" EXECUTE);
    struct client *client = open_manhole(app);
    client_ask(client, "import threading");
    assert_string_equal(client_ask(client, "threading.main_thread().ident == main"),
                        "True\n");
    assert_string_equal(client_ask(client, "threading.current_thread().ident == main"),
                        "False\n");
    write_stdin(app, "import threading\n");
    write_stdin(app, "print(threading.current_thread().name, flush=True)\n");
    wait_for_text(app, OUT, "MainThread\n", DEADLINE);
    client_close(client);
    assert_ends_well(app);
}

int
main(void)
{
    static const struct test_case tests[] = {
        TEST(client_has_a_prompt_with_the_names_of_the_script),
        TEST(program_works_on_beside_a_client),
        TEST(script_finds_the_same_manhole_by_import),
        TEST(script_that_fails_ends_the_program_and_leaves_nothing),
        TEST(script_that_cannot_be_read_is_told),
        TEST(variable_installs_in_an_embedded_python_too),
        TEST(handler_that_exits_ends_the_program_with_its_status),
        TEST(stacks_are_written_while_no_thread_runs_python),
        TEST(stacks_are_written_while_python_hangs),
        TEST(client_is_told_the_stacks_while_python_hangs),
        TEST(threading_that_a_client_imports_first_knows_the_main_thread),
    };
    return RUN_TESTS(tests);
}
