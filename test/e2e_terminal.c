/* e2e_terminal.c - manhole-cli at a terminal: what a user types, and what the screen then shows.
 *
 * The screens are tmux's, 80 columns by 24 rows: it keeps them as a terminal would show them, and
 * types keys. Where the bytes themselves matter, a bare pseudo-terminal is read.
 */
#include "support.h"

#include <poll.h>
#include <regex.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#define CLI(...) LIST(build_path("manhole-cli"), __VA_ARGS__)

/* What a server of the test's begins with. */
#define LISTEN                                                                           \
  "import os, random, socket\n"                                                          \
  "path = '/tmp/manhole-%d' % os.getpid()\n"                                             \
  "listener = socket.socket(socket.AF_UNIX)\n"                                           \
  "listener.bind(path)\n"                                                                \
  "listener.listen()\n"

/* ======================================================================================
 * Screens
 * ======================================================================================
 */

static const char *screen_socket;

#define TMUX(...) LIST("tmux", "-S", screen_socket, __VA_ARGS__)

static void
tmux(const char *const argv[])
{
    const char *err = NULL;
    if (run_command(argv, NULL, NULL, &err) != 0) {
        fail_msg("tmux: %s", err);
    }
}

/* Skips the test where manhole-cli was built without libedit. */
static void
require_editor(void)
{
    const char *out = NULL;
    assert_int_equal(run_command(CLI("--version"), NULL, &out, NULL), 0);
    if (strstr(out, "libedit") == NULL) {
        skip_test("manhole-cli was built without libedit");
    }
}

/* Runs a shell command on a screen of its own. The test's environment is the screen's. */
static void
open_screen(const char *command)
{
    require_editor();
    require_program("tmux");
    screen_socket = test_path("tmux");
    (void)start_process(.argv = TMUX("-f", "/dev/null", "-D"), .env = LIST("TMUX"));
    wait_for_path(screen_socket, DEADLINE);
    tmux(TMUX("new-session", "-d", "-x", "80", "-y", "24", command));
}

static const char *
screen(void)
{
    const char *out = NULL;
    assert_int_equal(run_command(TMUX("capture-pane", "-p"), NULL, &out, NULL), 0);
    return out;
}

static bool
is_seen(void *expression)
{
    return regexec(expression, screen(), 0, NULL, 0) == 0;
}

/* Waits until the screen matches an extended regular expression; ^ and $ match at each line. Blanks
 * at the ends of lines are not to be had. */
static void
see(const char *text)
{
    regex_t expression;
    assert_int_equal(regcomp(&expression, text, REG_EXTENDED | REG_NEWLINE | REG_NOSUB),
                     0);
    wait_until(is_seen, &expression, format_text("the screen shows %s", text), DEADLINE);
    regfree(&expression);
}

/* Types text as it is; keys by their names: "Enter", "C-c", "Up". */
static void
type(const char *text)
{
    tmux(TMUX("send-keys", "-l", "--", text));
}

static void
press(const char *key)
{
    tmux(TMUX("send-keys", key));
}

/* Presses it again where it has no effect: of a completion that takes the process longer than a
 * second, as the first may do, the client shows nothing. */
static void
press_until(const char *key, const char *text)
{
    enum { TIMES = 10, LOOKS = 20, LOOK_MS = 100 };
    regex_t expression;
    assert_int_equal(regcomp(&expression, text, REG_EXTENDED | REG_NEWLINE | REG_NOSUB),
                     0);
    for (int i = 0; i < TIMES * LOOKS && !is_seen(&expression); i++) {
        if (i % LOOKS == 0) {
            press(key);
        }
        (void)poll(NULL, 0, LOOK_MS);
    }
    regfree(&expression);
    see(text);
}

static void
enter(const char *line)
{
    type(line);
    press("Enter");
}

/* A console of a new process on a screen, at its first prompt. */
static struct process *
open_console(const char *program, const char *options)
{
    struct process *app = start_target(program);
    wait_until_ready(app);
    open_screen(
        format_text("TERM=screen-256color %s --quiet %d %s; echo status=$?; exec cat",
                    build_path("manhole-cli"), (int)app->pid, options));
    see(">>>");
    return app;
}

/* A client at a bare pseudo-terminal. */
static struct process *
start_at_terminal(const struct process *app, const char *const env[], const char *option)
{
    struct process *cli =
        start_process(.argv = CLI("--quiet", format_text("%d", (int)app->pid), option),
                      .terminal = true, .env = env);
    wait_for_text(cli, OUT, ">>> ", DEADLINE);
    return cli;
}

static void
leave_by_ctrl_d(struct process *cli)
{
    write_stdin(cli, "\004");
    assert_int_equal(wait_for_exit(cli, DEADLINE), 0);
}

/* What terminals call themselves: each has other sequences, and dumb none. */
static const char *const terms[] = {
    "TERM=xterm-256color", "TERM=screen", "TERM=tmux-256color",
    "TERM=linux",          "TERM=vt100",  "TERM=dumb",
};

enum { TERMS = sizeof(terms) / sizeof(terms[0]) };

/* ======================================================================================
 * Editing
 * ======================================================================================
 */

static void
line_is_edited_before_it_is_sent(void)
{
    (void)open_console(TARGET(""), "");
    type("10+1");
    press("Left");
    press("Left");
    press("BSpace");
    press("Home");
    type("6");
    press("Enter");
    see(">>> 61\\+1\n62\n>>>");
}

static void
history_is_kept_across_runs(void)
{
    struct process *app = open_console(TARGET(""), "");
    enter("answer = 6 * 7");
    see("answer = 6 \\* 7\n>>>");
    press("C-d");
    see("status=0");
    tmux(TMUX("respawn-pane", "-k",
              format_text("TERM=screen %s --quiet %d", build_path("manhole-cli"),
                          (int)app->pid)));
    see("^>>>");
    press("Up");
    see(">>> answer = 6 \\* 7");
}

static void
history_goes_back_beyond_a_line_that_is_no_text(void)
{
    (void)write_file(".manhole_history", "40 + 2\n\xff\n");
    (void)open_console(TARGET(""), "");
    press("Up");
    press("Enter");
    see("^>>> 40 \\+ 2\n42\n>>>$");
}

static void
history_of_clients_side_by_side_has_all_their_lines(void)
{
    require_editor();
    enum { CLIENTS = 4, LINES = 25 };
    struct process *app = start_target(TARGET(""));
    struct process *clients[CLIENTS];
    struct stat status;

    wait_until_ready(app);
    for (int i = 0; i < CLIENTS; i++) {
        clients[i] =
            start_process(.argv = CLI("--quiet", format_text("%d", (int)app->pid)),
                          .terminal = true, .env = LIST("TERM=xterm", "NO_COLOR=1"));
        wait_for_text(clients[i], OUT, ">>> ", DEADLINE);
    }
    for (int line = 0; line < LINES; line++) {
        for (int i = 0; i < CLIENTS; i++) {
            write_stdin(clients[i], format_text("0x%d%02d\n", i + 1, line));
        }
    }
    for (int i = 0; i < CLIENTS; i++) {
        const char *last = format_text("0x%d%02d", i + 1, LINES - 1);
        wait_for_text(clients[i], OUT, format_text("%ld\r\n", strtol(last, NULL, 16)),
                      DEADLINE);
        wait_for_text(clients[i], OUT, ">>> ", DEADLINE);
        write_stdin(clients[i], "\004");
        assert_int_equal(wait_for_exit(clients[i], DEADLINE), 0);
    }
    const char *history = read_file(test_path(".manhole_history"));
    assert_int_equal(strlen(history), (size_t)CLIENTS * LINES * strlen("0x000\n"));
    for (int i = 0; i < CLIENTS * LINES; i++) {
        assert_matches(history, format_text("^0x%d%02d$", i % CLIENTS + 1, i / CLIENTS));
    }
    assert_int_equal(stat(test_path(".manhole_history"), &status), 0);
    assert_int_equal(status.st_mode & 07777, 0600);
}

static void
wide_characters_are_edited_as_what_they_are(void)
{
    (void)open_console(TARGET(""), "");
    type("len(\"漢字é\")");
    press("Left");
    press("Left");
    press("BSpace");
    press("Left");
    type("ü");
    see(">>> len\\(\"漢ü字\"\\)");
    press("Enter");
    see("\n3\n>>>");
}

static void
line_longer_than_the_screen_is_edited(void)
{
    const char *numbers = "1111111111+1111111111+1111111111+1111111111+1111111111+"
                          "1111111111+1111111111+1111111111+1111111111";
    (void)open_console(TARGET(""), "");
    type(numbers);
    press("Home");
    type("-");
    press("Enter");
    see("\n7777777777\n>>>");
}

/* ---- Blocks: lines of one statement ---- */

/* Of a terminal that marks what is pasted. */
static void
paste(const char *text)
{
    tmux(TMUX("set-buffer", text));
    tmux(TMUX("paste-buffer", "-p"));
}

static void
line_behind_a_colon_begins_indented(void)
{
    (void)open_console(TARGET(""), "");
    enter("for a in 6, 7: # 'twice'");
    see("\n\\.\\.\\.$");
    enter("for b in {8: 9}:");
    see("9\\}:\n\\.\\.\\.$");
    enter("print(a * b)");
    see("b\\)\n\\.\\.\\.$");
    press("BSpace");
    enter("print(a)");
    see("a\\)\n\\.\\.\\.$");
    press("Enter");
    see(">>> for a in 6, 7: # 'twice'\n"
        "\\.\\.\\.     for b in \\{8: 9\\}:\n"
        "\\.\\.\\.         print\\(a \\* b\\)\n"
        "\\.\\.\\.     print\\(a\\)\n"
        "\\.\\.\\.\n48\n6\n56\n7\n>>>");
    enter("if print('a:'): ':'");
    press("Enter");
    see("a:\n>>>$");
}

/* And of what was typed ahead, which may be a paste of a terminal that marks none. */
static void
blanks_that_are_typed_replace_the_indentation(void)
{
    (void)open_console(TARGET(""), "");
    enter("if True:");
    enter("  if True:");
    enter("      print(6 * 7)");
    press("Enter");
    see("\n42\n>>>$");
    type("if True:\r    if True:\r        7 * 7\r    8 * 7\r\r");
    see("\n49\n56\n>>>$");
}

static void
block_is_recalled_and_edited_as_one(void)
{
    (void)open_console(TARGET(""), "");
    enter("for i in range(2):");
    enter("print(i + 10)");
    press("Enter");
    see("\n10\n11\n>>>$");
    enter("1 + 1");
    see("\n2\n>>>$");
    type("7 # typed");
    press("Up");
    press("Up");
    see(">>> for i in range\\(2\\):\n\\.\\.\\.     print\\(i \\+ 10\\)\n\\.\\.\\.$");
    press("Up");
    press("End");
    press("BSpace");
    type("0)");
    press("Down");
    press("Enter");
    see("\\.\\.\\.     print\\(i \\+ 100\\)\n\\.\\.\\.\n100\n101\n>>>$");
    type("7 # typed");
    press("Up");
    see("100\\)\n\\.\\.\\.$");
    press("Down");
    see("101\n>>> 7 # typed$");
}

static void
lines_of_a_block_are_inserted_and_joined(void)
{
    (void)open_console(TARGET(""), "");
    paste("if True:\n    print(6 * 7)\nprint(8 * 8)");
    see("print\\(8 \\* 8\\)$");
    press("Up");
    press("Up");
    press("End");
    press("Enter");
    type("print(7 * 7) or ");
    tmux(TMUX("send-keys", "-N", "5", "Right"));
    press("BSpace"); /* of four blanks it leaves none */
    press("BSpace");
    see("^>>> if True:\n\\.\\.\\.     print\\(7 \\* 7\\) or print\\(6 \\* 7\\)\n"
        "\\.\\.\\. print\\(8 \\* 8\\)$");
    press("Left");
    press("Down");
    press("Enter");
    see("\n49\n42\n64\n>>>$");
}

static void
sent_lines_of_a_block_are_edited_too(void)
{
    struct process *app =
        open_console(INSTALL("") READY "while True: print(input() * 3)\n", "");
    enter("for i in [6]:");
    see("\n\\.\\.\\.$");
    enter("print(i * 6)");
    see("print\\(i \\* 6\\)\n\\.\\.\\.$");
    press("Up");
    press("End");
    press("Left");
    press("BSpace");
    type("7");
    write_stdin(app, "tick\n");
    see("tickticktick\n>>> for i in \\[6\\]:\n\\.\\.\\.     print\\(i \\* 7\\)\n"
        "\\.\\.\\.$");
    press("Down");
    press("Enter");
    see("\n>>> for i in \\[6\\]:\n\\.\\.\\.     print\\(i \\* 7\\)\n\\.\\.\\.\n42\n>>>$");
    assert_not_contains(screen(), "Interrupt");
    close_stdin(app);
}

static void
block_is_one_entry_of_the_history(void)
{
    const char *path = write_file(".manhole_history", "import os # older\n");
    struct process *app = open_console(TARGET(""), "");
    enter("if True:");
    enter("print(6 * 7)");
    press("Enter");
    see("\n42\n>>>$");
    press("C-d");
    see("status=0");
    assert_string_equal(read_file(path),
                        "import os # older\nif True:\r\n    print(6 * 7)\r\n\n");
    tmux(TMUX("respawn-pane", "-k",
              format_text("TERM=screen %s --quiet %d", build_path("manhole-cli"),
                          (int)app->pid)));
    see("^>>>");
    press("Up");
    see("^>>> if True:\n\\.\\.\\.     print\\(6 \\* 7\\)\n\\.\\.\\.$");
    press("Up");
    press("Up");
    press("Up");
    see("^>>> import os # older$");
}

static void
block_longer_than_the_screen_is_edited(void)
{
    const char *text = "a = 0\n";
    (void)open_console(TARGET(""), "");
    for (int i = 1; i <= 40; i++) {
        text = format_text("%sa += %d\n", text, i);
    }
    paste(format_text("%sa", text));
    see("\n\\.\\.\\. a$");
    tmux(TMUX("send-keys", "-N", "40", "Up"));
    see("^>>> a = 0\n\\.\\.\\. a \\+= 1\n");
    press("End");
    type("00");
    tmux(TMUX("send-keys", "-N", "40", "Down"));
    see("\n\\.\\.\\. a$");
    press("Enter");
    see("\n\\.\\.\\. a\n919\n>>>$");
}

/* It goes on when the file is there. */
#define UNTIL(file) "while not __import__('os').path.exists('" file "'): pass"

static void
pasted_function_with_empty_lines_arrives_whole(void)
{
    (void)open_console(TARGET(""), "");
    paste("def f(a):\n    b = a\n\n    if b:\n        return b + 1\n\n"
          "    return \"\"\"none\n\n    left\"\"\"\nprint(f(1))\nf(0) # half");
    see("\n\\.\\.\\. f\\(0\\) # half$");
    press("Enter");
    see("\n2\n.none.n.n    left.\n>>>");
}

/* As a file would be run; what follows an error is not. */
static void
paste_is_one_unit(void)
{
    static const struct {
        const char *text;
        const char *shown; /* behind it */
    } rows[] = {
        {"def f(): return 10 + 1\nprint(f())\n", "\n11\n"},
        {"for i in range(2): print(20 + i)\nprint(22)\n", "\n20\n21\n22\n"},
        {"with open('/dev/null') as f: print(30)\nf.closed\n", "\n30\nTrue\n"},
        {"def f():\n    return 40\n# column 0\nf() + 1\n", "\n41\n"},
        {"if not 1:\n    print(0)\n\nelif not 1:\n    pass\n\nelse:\n    print(50)\n",
         "\n50\n"},
        {"try:\n    1 / 0\n\nexcept ZeroDivisionError:\n    print(60)\n\nfinally:\n"
         "    print(61)\n",
         "\n60\n61\n"},
        {"    def method(self):\n        return 70\n\n    method(0) + 1\n", "\n71\n"},
        {"        80 + 1\n", "\n81\n"},
        {">>> def f():\n...     return 90\n...\n>>> f()\n90\n>>> f() + 1\n91\n",
         "\n90\n91\n"},
        {"    >>> 100 + 1\n    101\n", "\n101\n"},
        {"print(110)\n1 / 0\nprint(111)\n",
         "\n110\nTraceback .*\n  File .<console>., line 2, in <module>\n"
         "ZeroDivisionError: division by zero\n"},
        {"print(120)\nx = = 1\n", "line 2\n    x = = 1\n +\\^+\nSyntaxError: .*\n"},
        {"a = (130,\n131)\n\n\na\n", "\n\\(130, 131\\)\n"},
    };
    (void)open_console(TARGET(""), "");
    for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
        paste(rows[i].text);
        see(format_text("%s>>>\n*$", rows[i].shown));
        press("C-l");
        see("^>>>\n*$");
    }
}

static void
paste_of_a_beginning_is_finished_by_hand(void)
{
    (void)open_console(TARGET(""), "");
    paste("def f():\n");
    see("\n\\.\\.\\.$");
    enter("    return 6 * 7");
    press("Enter");
    see("\n>>>$");
    enter("f()");
    see("\n42\n>>>");
}

static void
paste_into_a_block_goes_on_with_it(void)
{
    (void)open_console(TARGET(""), "");
    enter("if True:");
    see("\n\\.\\.\\.$");
    paste("    print(6 * 7)\n\n    print(7 * 7)\n");
    see("print\\(7 \\* 7\\)\n\\.\\.\\.$");
    press("Enter");
    see("\n42\n49\n>>>$");
    enter("if True:");
    see("\n\\.\\.\\.$");
    paste("    print(8 * 7)\n\nprint(8 * 8)\n");
    see("\n56\n64\n>>>$");
}

static void
paste_at_input_is_lines_to_it(void)
{
    (void)open_console(TARGET(""), "");
    enter("input('a '), input('b ')");
    see("^a$");
    paste("one\ntwo\n6 * 7\n");
    see("\n.*\\('one', 'two'\\)\n42\n>>>$");
}

static void
paste_that_was_typed_ahead_is_one_unit_too(void)
{
    (void)open_console(TARGET(""), "");
    enter(UNTIL("go"));
    press("Enter");
    paste("def f():\n    a = 6\n\n    return a * 7\nf()\n");
    see("^f\\(\\)$");
    (void)write_file("go", "");
    see("\n42\n>>>");
}

static void
ctrl_c_drops_a_paste_that_is_being_finished(void)
{
    (void)open_console(TARGET(""), "");
    paste("print(6 * 7)\nprint(7 * 7)");
    see("\n\\.\\.\\. print\\(7 \\* 7\\)$");
    press("C-c");
    see("print\\(7 \\* 7\\)\\^C\n>>>$");
    enter("1 + 1");
    see("\\^C\n>>> 1 \\+ 1\n2\n>>>$");
}

/* ======================================================================================
 * Output beside the line being typed
 * ======================================================================================
 */

static void
output_of_other_threads_appears_above_the_line(void)
{
    struct process *app = open_console(INSTALL("") READY "while True:\n"
                                                         "    line = input()\n"
                                                         "    print(line * 3)\n",
                                       "");
    type("40 + 2 #half typed");
    see(">>> 40 \\+ 2 #half typed");
    write_stdin(app, "tick\n");
    see("tickticktick\n>>> 40 \\+ 2 #half typed");
    press("Enter");
    see(">>> 40 \\+ 2 #half typed\n42\n>>>");
    close_stdin(app);
}

static void
prompts_are_marked_for_an_editor(void)
{
    struct process *app = start_target(TARGET(""));
    wait_until_ready(app);
    struct client *client =
        connect_as(socket_path_of(app->pid), "manhole-cli/1.1/terminal-quiet");
    client_wait_for(client, "(ManholeConsole) Names of __main__ are found");
    client_wait_for(client, "\n\1?>>> \2");
    client_send(client, "if True:\n");
    client_wait_for(client, "\1!\2");
    client_wait_for(client, "\1?... \2");
    assert_not_contains(client->text.data, "ThreadID=");
}

/* Three lines at once: the session reads them together, and asks for none of the other two. */
static void
prompt_is_marked_when_somebody_reads_and_keys_are_for_him(void)
{
    struct process *app = start_target(TARGET(""));
    wait_until_ready(app);
    struct client *client =
        connect_as(socket_path_of(app->pid), "manhole-cli/1.1/terminal-quiet");
    client_wait_for(client, "\1?>>> \2");
    client_send(client, "6 * 7\ninput('name: ')\njo\n");
    assert_string_equal(client_wait_for(client, ">>> \2"),
                        "\1!\00242\nname: 'jo'\n\1?>>> \2");
    client_send(client, "input('name: ')\n");
    assert_string_equal(client_wait_for(client, "?\2"), "\1!\2name: \1?\2");
    client_send(client, "\4");
    client_wait_for(client, "EOFError: EOF when reading a line\n\1?>>> \2");
    client_send(client, "input('name: ')\n");
    client_wait_for(client, "name: \1?\2");
    client_send(client, "\3");
    client_wait_for(client, "KeyboardInterrupt\n\1?>>> \2");
}

/* Its bytes are those that they always were: what would be a key at a terminal is text. */
static void
prompt_is_seen_behind_the_first_byte_of_a_mark(void)
{
    (void)open_console(TARGET(""), "");
    enter("import sys; written = sys.stdout.write('\\1')");
    see("^>>>$");
    enter("6 * 7");
    see("^>>> 6 \\* 7\n42\n>>>$");
}

static void
prompt_is_seen_behind_a_nul(void)
{
    (void)open_console(TARGET(""), "");
    enter("import sys; written = sys.stdout.write('\\0')");
    see("^\\^@>>>$");
}

static void
keys_of_who_has_no_terminal_are_text(void)
{
    struct process *app = start_target(TARGET(""));
    wait_until_ready(app);
    struct client *client = connect_to(app);
    client_wait_for(client, ">>> ");
    client_send(client, "input()\n\2\3\4\5\n");
    client_wait_for(client, "'\\x02\\x03\\x04\\x05'\n>>> ");
    client_send(client, "input()\n");
    client_shutdown_write(client);
    assert_contains(client_read_until_eof(client), "EOFError");
}

static void
typed_ahead_the_prompt_of_input_is_shown(void)
{
    (void)open_console(TARGET(""), "");
    enter(UNTIL("go"));
    press("Enter");
    enter("1 + 1");
    enter("input('name: ')");
    see("^input\\('name: '\\)$");
    (void)write_file("go", "");
    see("\n2\nname:$");
    enter("jo");
    see("name: jo\n'jo'\n>>>");
}

static void
typed_ahead_the_prompt_of_pdb_is_shown(void)
{
    (void)open_console(TARGET(""), "");
    enter(UNTIL("go"));
    press("Enter");
    enter("import pdb; pdb.set_trace()");
    enter("p 6 * 7");
    see("^p 6 \\* 7$");
    (void)write_file("go", "");
    see("42\n\\(Pdb\\)$");
    enter("c");
    see("\\(Pdb\\) c\n>>>");
}

static void
typed_ahead_the_statement_that_runs_has_no_prompt(void)
{
    (void)open_console(TARGET(""), "");
    enter(UNTIL("go"));
    press("Enter");
    enter("print('one')");
    enter(UNTIL("end"));
    press("Enter");
    (void)write_file("go", "");
    see("^one$");
    type("print('last')");
    see("^print\\('last'\\)$");
    (void)write_file("end", "");
    see("^>>> print\\('last'\\)$");
    press("Enter");
    see("\nlast\n>>>");
}

static void
output_above_a_line_of_several_rows_leaves_it_whole(void)
{
    struct process *app =
        open_console(INSTALL("") READY "while True: print(input() * 3)\n", "");
    type("\"");
    for (int i = 0; i < 20; i++) {
        type("漢字");
    }
    type("\"");
    type(" + \"and more than one row of it, so that it takes a third\"[:0]");
    see("takes a third");
    write_stdin(app, "tock\n");
    see("tocktocktock\n>>> .漢字");
    press("Enter");
    see("\n字.\n>>>");
    close_stdin(app);
}

static void
prompts_of_input_and_pdb_are_the_editors(void)
{
    (void)open_console(TARGET(""), "");
    enter("input(\"who are you? \")");
    see("^who are you\\?$");
    type("jo");
    press("BSpace");
    enter("im");
    see("who are you\\? jim\n.jim.\n>>>");
}

static void
line_survives_a_resize(void)
{
    (void)open_console(TARGET(""), "");
    type("\"a line of fifty characters that is to be wrapped\" # soon");
    tmux(TMUX("resize-window", "-x", "40", "-y", "20"));
    see(">>> .a line of fifty characters that is ?\nto be");
    press("BSpace");
    press("Enter");
    see("wrapped.\n>>>");
}

/* ======================================================================================
 * Keys with a meaning
 * ======================================================================================
 */

static void
ctrl_d_leaves_and_the_terminal_is_as_before(void)
{
    struct process *app = start_target(TARGET(""));
    wait_until_ready(app);
    open_screen(
        format_text("stty -a >before; TERM=screen %s %d; echo status=$?; stty -a >after; "
                    "cmp before after && echo same; exec cat",
                    build_path("manhole-cli"), (int)app->pid));
    see(">>>");
    press("C-d");
    see("status=0\nsame");
}

/* On each kind of terminal; dumb has no editor. */
static void
ctrl_d_ends_the_reader_alone(void)
{
    static const struct {
        const char *line;
        const char *prompt;
        const char *end;
    } readers[] = {
        {"input('name: ')", "name: ", "EOFError"},
        {"import pdb; pdb.pm(); 'be' 'hind'", "(Pdb) ", "'behind'"},
        {"import code; code.interact('nested')", "nested", "exiting InteractiveConsole"},
        {"print(1 + 1), __import__('sys').stdin.read() + 'read'", "2", "'read')"},
    };
    struct process *app = start_target(TARGET(""));
    wait_until_ready(app);
    for (size_t i = 0; i < TERMS; i++) {
        struct process *cli = start_at_terminal(app, LIST(terms[i], "NO_COLOR=1"), NULL);
        for (size_t j = 0; j < sizeof(readers) / sizeof(readers[0]); j++) {
            write_stdin(cli, format_text("%s\n", readers[j].line));
            wait_for_text(cli, OUT, readers[j].line, DEADLINE);
            wait_for_text(cli, OUT, readers[j].prompt, DEADLINE);
            write_stdin(cli, "\004");
            wait_for_text(cli, OUT, readers[j].end, DEADLINE);
            wait_for_text(cli, OUT, ">>> ", DEADLINE);
        }
        leave_by_ctrl_d(cli);
    }
}

/* To a server that says that somebody reads, and who is not the console. */
static void
ctrl_c_is_for_the_reader(void)
{
    for (size_t i = 0; i < TERMS; i++) {
        struct process *server = start_target(
            LISTEN READY ACCEPT "os.unlink(path)\nclient.sendall(b'name: \\1?\\2')\n"
                                "print('got', client.recv(9), flush=True)\n"
                                "client.close()\n" STAY);
        wait_until_ready(server);
        struct process *cli =
            start_process(.argv = CLI(format_text("%d", (int)server->pid)),
                          .terminal = true, .env = LIST(terms[i], "NO_COLOR=1"));
        wait_for_text(cli, OUT, "name: ", DEADLINE);
        write_stdin(cli, "\003");
        wait_for_text(server, OUT, "got b'\\x03'\n", DEADLINE);
        assert_int_equal(wait_for_exit(cli, DEADLINE), 0);
    }
}

static void
ctrl_c_interrupts_the_statement_and_the_session_goes_on(void)
{
    (void)open_console(TARGET(""), "");
    enter("if print(\"going\") is None:");
    enter("    while True: pass");
    press("Enter");
    see("\ngoing");
    press("C-c");
    see("KeyboardInterrupt\n>>>");
    enter("1 + 1");
    see("\n2\n>>>");
}

/* "^C" is shown for what it interrupts. */
static void
ctrl_c_interrupts_a_statement_that_python_has_not_begun_yet(void)
{
    require_editor();
    struct process *app = start_target(
        INSTALL("") "import ctypes, os\n"
                    "library = ctypes.PyDLL(None)\n"
                    "byte = ctypes.create_string_buffer(1)\n" READY "os.read(0, 1)\n"
                    "library.write(1, b'holds\\n', 6)\n"
                    "library.read(0, byte, 1)\n" STAY);
    wait_until_ready(app);
    struct process *cli = start_at_terminal(app, LIST("TERM=xterm"), NULL);
    write_stdin(app, "x");
    wait_for_text(app, OUT, "holds\n", DEADLINE);
    wait_until_asleep(app->pid);
    write_stdin(cli, "exec('while True: pass')\r");
    wait_for_text(cli, OUT, "pass')\r\n", DEADLINE);
    write_stdin(cli, "\003");
    wait_for_text(cli, OUT, "^C", DEADLINE);
    write_stdin(app, "x");
    wait_for_text(cli, OUT, "KeyboardInterrupt", DEADLINE);
    wait_for_text(cli, OUT, ">>> ", DEADLINE);
    leave_by_ctrl_d(cli);
}

static void
ctrl_c_drops_the_line_being_typed(void)
{
    (void)open_console(TARGET(""), "");
    type("this is nothing");
    see(">>> this is nothing"); /* a signal drops what the editor has not read yet */
    press("C-c");
    see("this is nothing\\^C\n>>>");
    enter("1 + 1");
    see("\n2\n>>>");
}

static void
ctrl_c_drops_a_block_being_typed(void)
{
    (void)open_console(TARGET(""), "");
    enter("def f():");
    see("\n\\.\\.\\.");
    press("C-c");
    see("KeyboardInterrupt\n>>>");
    enter("1 + 1");
    see("\n2\n>>>");
}

static void
prompt_after_ctrl_c_stands_once(void)
{
    require_copies();
    (void)open_console(TARGET(""), "--frozen");
    press("C-c");
    see("KeyboardInterrupt\ncopy>>>$");
    press("C-c");
    see("KeyboardInterrupt\n\\^C\nKeyboardInterrupt\ncopy>>>$");
}

/* Of a client below a shell: Ctrl-Z, what the terminal is then, fg, and the rest of the line. */
static void
stop_amidst_a_line(void)
{
    type("40 + ");
    see(">>> 40 \\+");
    press("C-z");
    see("Stopped.*(\n.*)?\nshell:");
    enter("stty -a | grep -c \" icanon\"; fg");
    see("\n1\n(.*\n)*>>> 40 \\+");
    enter("2");
    see("\n42\n>>>");
}

static void
ctrl_z_gives_the_shell_its_terminal_and_fg_takes_it_back(void)
{
    struct process *app = start_target(TARGET(""));
    require_program("bash");
    wait_until_ready(app);
    open_screen("PS1=shell: exec bash --norc --noprofile -i");
    see("shell:");
    enter(format_text("TERM=screen %s %d", build_path("manhole-cli"), (int)app->pid));
    see(">>>");
    stop_amidst_a_line();
}

static void
sigterm_restores_the_terminal(void)
{
    struct process *app = start_target(TARGET(""));
    wait_until_ready(app);
    open_screen(format_text("stty -a >before; TERM=screen sh -c \"echo \\$\\$ >pid; exec "
                            "%s %d\"; echo status=$?; "
                            "stty -a >after; cmp before after && echo same; exec cat",
                            build_path("manhole-cli"), (int)app->pid));
    see(">>>");
    assert_int_equal(kill((pid_t)strtol(read_file(test_path("pid")), NULL, 10), SIGTERM),
                     0);
    see("status=143\nsame");
}

/* ======================================================================================
 * Completion
 * ======================================================================================
 */

static void
tab_completes_a_name_and_an_attribute(void)
{
    (void)open_console(TARGET("locals={'an_unusual_name': __import__('os')}"), "");
    type("an_un");
    press_until("Tab", ">>> an_unusual_name");
    type(".getpg");
    press("Tab");
    see("\\.getpg");
    press("Tab");
    see("getpgid\\(? +getpgrp\\(?\\)?");
    see(">>> an_unusual_name.getpg");
}

static void
tab_completes_files_keys_and_modules(void)
{
    (void)open_console(
        format_text("import os; os.chdir(r'%s'); keys = {'alpha': 7}\n"
                    "os.mkdir('directory'); os.chdir('directory')\n"
                    "for name in 'one file', 'two-files.txt', 'two-files.tgz':\n"
                    "    open(name, 'w')\n"
                    "os.chdir('..')\n%s",
                    test_path(""), TARGET("locals={'keys': keys}")),
        "");
    type("open('dir");
    press_until("Tab", "open\\('directory/$");
    type("one");
    press("Tab");
    press("Enter"); /* the bracket is missing */
    see(">>> open\\('directory/one file'$");
    press("C-c");
    see("\n>>>$");
    type("print(keys['']) # '");
    for (int i = 0; i < 7; i++) {
        press("Left");
    }
    type("al");
    press("Tab"); /* what stands behind the cursor is not put there twice */
    press("Enter");
    see("^>>> print\\(keys\\['alpha'\\]\\) # '\n7$");
    type("open('directory/tw");
    press("Tab");
    press("Tab");
    see("^two-files.tgz' +two-files.txt'$");
    press("C-c");
    type("import ctyp");
    press("Tab");
    see(">>> import ctypes$");
}

static void
tab_indents_an_empty_line(void)
{
    (void)open_console(TARGET(""), "");
    enter("if True:");
    see("\\.\\.\\.");
    press("Tab");
    enter("print(12345 + 1)");
    press("Enter");
    see("\n12346\n>>>");
}

static void
tab_gives_up_when_python_is_busy_and_says_nothing(void)
{
    struct process *app =
        open_console(INSTALL("") READY "import ctypes\n"
                                       "while True:\n"
                                       "    input()\n"
                                       "    print('busy', flush=True)\n"
                                       "    ctypes.PyDLL(None).sleep(4)\n",
                     "");
    write_stdin(app, "now\n");
    wait_for_text(app, OUT, "busy\n", DEADLINE);
    type("impo");
    press("Tab");
    type("rting");
    see("^>>> importing$");
    close_stdin(app);
}

static void
ctrl_c_drops_a_paste_that_has_not_ended(void)
{
    struct process *app = start_target(TARGET(""));
    wait_until_ready(app);
    struct process *cli = start_process(.argv = LIST(build_path("manhole-cli"),
                                                     format_text("%d", (int)app->pid)),
                                        .terminal = true, .env = LIST("TERM=xterm"));
    wait_for_text(cli, OUT, ">>> ", DEADLINE);
    write_stdin(cli, "\033[200~1 / ");
    watch_for(100); /* nothing of it is seen before its end */
    write_stdin(cli, "\003");
    wait_for_text(cli, OUT, "^C", DEADLINE);
    wait_for_text(cli, OUT, ">>> ", DEADLINE);
    write_stdin(cli, "6 * 7\r");
    wait_for_text(cli, OUT, "42", DEADLINE);
    write_stdin(cli, "\004");
    assert_int_equal(wait_for_exit(cli, DEADLINE), 0);
}

static void
completion_calls_nothing(void)
{
    (void)open_console(TARGET("locals={'f': lambda: print('called')}"), "");
    type("f().rea");
    press("Tab");
    type("l #");
    see(">>> f\\(\\)\\.real #$");
}

/* ======================================================================================
 * What the process may do to the terminal
 * ======================================================================================
 */

/* While a statement runs, and while nothing does. */
static void
process_that_dies_under_the_editor_is_told(void)
{
    for (int runs = 0; runs < 2; runs++) {
        struct process *app = start_target(TARGET(""));
        wait_until_ready(app);
        struct process *cli = start_at_terminal(app, LIST("TERM=xterm"), NULL);
        if (runs) {
            write_stdin(cli, "os.kill(os.getpid(), 9)\n");
        }
        else {
            send_signal(app, SIGKILL);
        }
        assert_int_equal(wait_for_exit(cli, DEADLINE), 6);
        assert_contains(text_of(cli, OUT),
                        format_text("\r\nmanhole-cli: error: process %d has ended before "
                                    "its console was left\r\n",
                                    (int)app->pid));
        assert_int_equal(wait_for_exit(app, DEADLINE), -SIGKILL);
    }
}

static void
session_that_ends_otherwise_under_the_editor_is_a_success(void)
{
    static const char *const ends[] = {"exit()\n", "import manhole; manhole.release()\n"};
    for (size_t i = 0; i < sizeof(ends) / sizeof(*ends); i++) {
        struct process *app = start_target(TARGET(""));
        wait_until_ready(app);
        struct process *cli = start_at_terminal(app, LIST("TERM=xterm"), NULL);
        write_stdin(cli, ends[i]);
        if (i > 0) { /* its own session goes on */
            wait_for_text(cli, OUT, ">>> ", DEADLINE);
            write_stdin(cli, "\004");
        }
        assert_int_equal(wait_for_exit(cli, DEADLINE), 0);
        assert_not_contains(text_of(cli, OUT), "error");
    }
}

static void
control_sequences_of_the_process_are_shown_not_sent(void)
{
    struct process *app = start_target(TARGET(""));
    wait_until_ready(app);
    struct process *cli = start_at_terminal(app, LIST("TERM=xterm"), NULL);
    write_stdin(cli,
                "import sys; sys.stdout.write('\\x1b]0;owned\\x07 \\x9b2J \\x08\\n')\n");
    wait_for_text(cli, OUT, "^[]0;owned^G \\x9b2J ^H\r\n", DEADLINE);
    leave_by_ctrl_d(cli);
    assert_not_contains(text_of(cli, OUT), "\033]0;");
}

/* Its errors go to the terminal, though the output does not. */
static void
control_sequences_of_several_are_shown_not_sent(void)
{
    struct process *one = start_target(TARGET(""));
    struct process *two = start_target(TARGET(""));
    wait_until_ready(one);
    wait_until_ready(two);
    struct process *cli =
        start_process(.argv = LIST(
                          "sh", "-c",
                          format_text(
                              "%s %d %d -c 'import sys; "
                              "sys.stderr.write(\"\\033]0;owned\\007\\n\")' >output",
                              build_path("manhole-cli"), (int)one->pid, (int)two->pid)),
                      .terminal = true, .env = LIST("TERM=xterm"));
    wait_for_text(cli, OUT, ": ^[]0;owned^G\r\n", DEADLINE);
    assert_int_equal(wait_for_exit(cli, DEADLINE), 0);
    assert_not_contains(text_of(cli, OUT), "\033");
}

static void
control_sequences_are_sent_when_asked_for(void)
{
    struct process *app = start_target(TARGET(""));
    wait_until_ready(app);
    struct process *cli = start_at_terminal(app, LIST("TERM=xterm"), "--raw");
    write_stdin(cli, "import sys; sys.stdout.write('\\x1b]0;mine\\x07\\n')\n");
    wait_for_text(cli, OUT, "\033]0;mine\007\r\n", DEADLINE);
    leave_by_ctrl_d(cli);
}

static void
traceback_and_prompt_are_coloured(void)
{
    require_editor();
    struct process *app = start_target(TARGET(""));
    wait_until_ready(app);
    struct process *cli = start_at_terminal(app, LIST("TERM=xterm", "NO_COLOR"), NULL);
    write_stdin(cli, "1/0\n");
    wait_for_text(cli, OUT, "\033[1;31mTraceback (most recent call last):\033[0m\r\n",
                  DEADLINE);
    wait_for_text(
        cli, OUT,
        is_python_from(13)
            ? "\033[1;35mZeroDivisionError\033[0m: \033[35mdivision by zero\033[0m"
            : "\033[1;31mZeroDivisionError: division by zero\033[0m\r\n",
        DEADLINE);
    wait_for_text(cli, OUT, "\033[1;32m>>> \033[0m", DEADLINE);
    leave_by_ctrl_d(cli);
}

/* Whether what is written next has the terminal's own colour. */
static bool
is_unpainted(const char *text)
{
    bool unpainted = true;
    for (const char *c = strstr(text, "\033["); c != NULL; c = strstr(c + 1, "\033[")) {
        size_t length = strspn(c + 2, "0123456789;");
        if (c[2 + length] == 'm') {
            unpainted = strncmp(c + 2, "0m", 2) == 0 || length == 0;
        }
    }
    return unpainted;
}

static void
colour_of_the_prompt_ends_with_it(void)
{
    require_editor();
    struct process *app = start_target(TARGET(""));
    wait_until_ready(app);
    for (size_t i = 0; i < TERMS; i++) {
        struct process *cli = start_at_terminal(app, LIST(terms[i], "NO_COLOR"), NULL);
        write_stdin(cli, "'typed'");
        wait_for_text(cli, OUT, "'typed'", DEADLINE);
        if (!is_unpainted(text_of(cli, OUT))) {
            fail_msg("%s: what is typed has the prompt's colour", terms[i]);
        }
        write_stdin(cli, "\n");
        wait_for_text(cli, OUT, "typed", DEADLINE);
        wait_for_text(cli, OUT, ">>> ", DEADLINE);
        leave_by_ctrl_d(cli);
    }
}

static void
stacks_are_coloured_where_a_thread_begins(void)
{
    require_gil();
    struct process *app = start_target(TARGET(""));
    wait_until_ready(app);
    struct process *cli =
        start_process(.argv = CLI("--stacks", format_text("%d", (int)app->pid)),
                      .terminal = true, .env = LIST("TERM=xterm", "NO_COLOR"));
    assert_int_equal(wait_for_exit(cli, DEADLINE), 0);
    assert_contains(text_of(cli, OUT),
                    format_text("\033[1;36m######### ProcessID=%d,", (int)app->pid));
    assert_contains(text_of(cli, OUT), "#########\033[0m\r\nThread: MainThread, ");
}

/* By the environment, and by the option. */
static void
no_color_is_honoured(void)
{
    struct process *app = start_target(TARGET(""));
    wait_until_ready(app);
    for (int by_option = 0; by_option < 2; by_option++) {
        struct process *cli = start_at_terminal(
            app, LIST("TERM=xterm", by_option ? "NO_COLOR" : "NO_COLOR=1"),
            by_option ? "--no-color" : NULL);
        write_stdin(cli, "1/0\n");
        wait_for_text(cli, OUT, "\nZeroDivisionError: division by zero\r\n", DEADLINE);
        wait_for_text(cli, OUT, ">>> ", DEADLINE);
        leave_by_ctrl_d(cli);
        assert_not_contains(text_of(cli, OUT), "\033[1;3");
    }
}

static void
colours_of_tracebacks_alone_are_let_through(void)
{
    require_editor();
    struct process *app = start_target(TARGET(""));
    wait_until_ready(app);
    struct process *cli = start_at_terminal(app, LIST("TERM=xterm", "NO_COLOR"), NULL);
    write_stdin(cli, "print('\\33[1;31mred\\33[0m \\33[1;32m>>> \\33[31;8mhidden "
                     "\\33[40mblack \\33[2Jgone')\n");
    wait_for_text(cli, OUT,
                  "\033[1;31mred\033[0m ^[[1;32m>>> ^[[31;8mhidden ^[[40mblack "
                  "^[[2Jgone\033[0m\r\n",
                  DEADLINE);
    leave_by_ctrl_d(cli);
}

/* ======================================================================================
 * Values
 * ====================================================================================== */

/* As wide as the screen; what fills several is cut, which is said. */
static void
value_longer_than_a_line_is_laid_out(void)
{
    (void)open_console("deep = []\n"
                       "for _ in range(300): deep = [*range(100), deep]\n" TARGET(
                           "locals={'fruit': {n: 'x' * 30 for n in range(3)}}"),
                       "");
    enter("fruit");
    see("^\\{0: 'x{30}',\n 1: 'x{30}',\n 2: 'x{30}'\\}\n>>>$");
    enter("list(fruit)");
    see("^\\[0, 1, 2\\]\n>>>$");
    enter("'y' * 100000");
    see("^y+\n\\.\\.\\. [0-9]+ characters more: print\\(repr\\(_\\)\\) shows "
        "all\n>>>$");
    enter("len(_)");
    see("^100000\n>>>$");
    /* pprint would take many seconds for this. */
    enter("deep");
    see("^\\.\\.\\. 97602 characters more: ");
}

static void
object_is_told_about_when_asked_for(void)
{
    (void)write_file("shop.py", "def count(stock, *, kind='tea'):\n"
                                "    \"Count one kind.\"\n"
                                "    return stock[kind]\n"
                                "class Unbound:\n"
                                "    def __call__(self): pass\n"
                                "    def __getattr__(self, name): raise OverflowError\n"
                                "unbound = Unbound()\n"
                                "import sys\n"
                                "is_lazy = sys.version_info >= (3, 14)\n"
                                "exec('def late(x%s): 0' % (': Missing' * is_lazy))\n");
    (void)open_console("import sys; sys.path.insert(0, '.'); import shop\n" TARGET(""),
                       "");
    enter("shop.count?");
    see("^shop.count\\(stock, \\*, kind='tea'\\)\n    Count one kind.\nFile: "
        "\".*shop.py\", line "
        "1\n>>>$");
    enter("shop.count??");
    see("^def count\\(stock, \\*, kind='tea'\\):\n    \"Count one kind.\"\n    return "
        "stock\\[kind\\]\nFile");
    enter("shop.unbound?");
    see("^shop.unbound: shop.Unbound\n    no documentation\nFile: \".*shop.py\", line "
        "4\n");
    enter("shop.late?");
    see("^shop.late\\(x(: Missing)?\\)\n    no documentation\n");
    enter("?shop.nothing");
    see("^AttributeError: module 'shop' has no attribute 'nothing'\n>>>$");
    enter("'what?'");
    see("^'what\\?'\n>>>$");
}

static void
dumb_terminal_gets_no_escape_sequence(void)
{
    struct process *app = start_target(TARGET(""));
    wait_until_ready(app);
    struct process *cli = start_at_terminal(app, LIST("TERM=dumb"), NULL);
    write_stdin(cli, "1/0\n");
    wait_for_text(cli, OUT, "ZeroDivisionError: division by zero\r\n>>> ", DEADLINE);
    leave_by_ctrl_d(cli);
    assert_not_contains(text_of(cli, OUT), "\033");
}

/* ======================================================================================
 * Names of the application, and what its loops run
 * ====================================================================================== */

static void
names_of_main_are_found_at_the_prompt(void)
{
    (void)open_console("stock = {'apples': 3}\n" TARGET(""), "");
    enter("stock['apples']");
    see("^3\n>>>$");
    type("sto");
    press("Tab");
    see("^>>> stock$");
}

/* A program whose loops run, each in a thread: the first in the main one. */
#define LOOPS(others)                                                                    \
  "import asyncio, threading, time\n"                                                    \
  "async def tell(x):\n"                                                                 \
  "    await asyncio.sleep(0)\n"                                                         \
  "    return threading.current_thread().name, x\n"                                      \
  "async def sleep():\n"                                                                 \
  "    global end\n"                                                                     \
  "    try: print('asleep'); await asyncio.sleep(1000)\n"                                \
  "    except asyncio.CancelledError: end = 'cancelled'; raise\n"                        \
  "async def main():\n    " READY "    await asyncio.sleep(1000)\n"                      \
  "for name in " others ":\n"                                                            \
  "    threading.Thread(target=asyncio.new_event_loop().run_forever, name=name,\n"       \
  "                     daemon=True).start()\n" INSTALL("") "asyncio.run(main())\n"

static void
await_runs_in_the_loop_of_the_process(void)
{
    (void)open_console(LOOPS("()"), "");
    enter("await tell(6)");
    see("^\\('MainThread', 6\\)\n>>>$");
    enter("x = await asyncio.gather(tell(7), tell(8))");
    enter("x, len(_), loop()[0].is_running()");
    see("^\\(\\[\\('MainThread', 7\\), \\('MainThread', 8\\)\\], 2, True\\)\n>>>$");
    enter("await tell(9).nothing");
    see("^AttributeError: 'coroutine' object has no attribute 'nothing'\n>>>$");
    enter("await sleep()");
    see("^asleep$");
    press("C-c");
    see("KeyboardInterrupt\n>>>$");
    enter("end");
    see("^'cancelled'\n>>>$");
}

/* What would end a loop ends the session. */
static void
await_leaves_the_loop_running(void)
{
    struct process *app = open_console(LOOPS("()"), "");
    enter("n = loop()[0].call_soon_threadsafe(time.sleep, 3); await tell(1)");
    see("^manhole: the loop does not answer:");
    see("^>>>$");
    enter("async def leave(): exit()");
    press("Enter");
    enter("await leave()");
    see("^status=0$");
    tmux(TMUX("respawn-pane", "-k",
              format_text("%s %d", build_path("manhole-cli"), (int)app->pid)));
    see(">>>$");
    enter("await tell(2)");
    see("^\\('MainThread', 2\\)\n>>>$");
}

static void
await_does_not_outlive_its_loop(void)
{
    require_gil();
    (void)open_console("import asyncio\n"
                       "async def stop():\n"
                       "    asyncio.get_running_loop().stop()\n"
                       "    await asyncio.sleep(1000)\n" INSTALL(
                           "") "loop = asyncio.new_event_loop()\n"
                               "loop.call_soon(exec, 'print(\"ready\", flush=True)')\n"
                               "loop.run_forever()\n" STAY,
                       "");
    enter("await stop()");
    see("^RuntimeError: the loop has ended meanwhile\n>>>$");
}

static void
await_asks_in_which_of_several_loops(void)
{
    require_gil();
    (void)open_console(LOOPS("['one', 'two']"), "");
    enter("len(loop())");
    see("^3\n>>>$");
    enter("await tell(1)");
    see("^[0-2]: .*Loop in thread two$");
    see("^In which loop\\?$");
    const char *row = strstr(screen(), "Loop in thread two");
    while (row[-1] != '\n') {
        row--;
    }
    enter(format_text("%c", *row));
    see("^\\('two', 1\\)\n>>>$");
    enter("await tell(2)");
    see("^\\('two', 2\\)\n>>>$");
}

/* ======================================================================================
 * Recordings
 * ======================================================================================
 */

/* Holds a recording to asciinema's format. Returns what it shows; a new size in brackets. */
static const char *
play(const char *path)
{
    static const char program[] =
        "import json, sys\n"
        "head, *events = map(json.loads, open(sys.argv[1], encoding='utf-8'))\n"
        "assert head['version'] == 2 and head['timestamp'] > 1e9, head\n"
        "assert head['width'] > 0 and head['height'] > 0, head\n"
        "assert head['env']['TERM'], head\n"
        "times = [time for time, kind, text in events]\n"
        "assert times == sorted(times), times\n"
        "for time, kind, text in events:\n"
        "    print({'o': text, 'r': f'[{text}]'}[kind], end='')\n";
    const char *out = NULL;
    const char *err = NULL;
    if (run_command(LIST(python(), "-c", program, path), NULL, &out, &err) != 0) {
        fail_msg("%s", err);
    }
    return out;
}

static void
recording_has_what_the_screen_had(void)
{
    const char *path = test_path("cast");
    struct stat status;
    (void)open_console(TARGET(""), format_text("--record %s", path));
    enter("'漢' * 3");
    see("漢漢漢'\n>>>");
    tmux(TMUX("resize-window", "-x", "99", "-y", "30"));
    enter("6 * 7; 1 / 0");
    see("\n42\n(.*\n)*ZeroDivisionError.*\n>>>");
    press("C-d");
    see("status=0");
    const char *shown = play(path);
    assert_matches(shown, ">>> .*'漢' \\* 3\r*\n(.*\n)?.*'漢漢漢'\r\n");
    assert_matches(shown, "\\[99x30\\](.*\n)*.*6 \\* 7; 1 / 0(.*\n)*.*42\r\n");
    assert_int_equal(stat(path, &status), 0);
    assert_int_equal(status.st_mode & 07777, 0600);
}

static void
recording_goes_on_after_ctrl_z(void)
{
    const char *path = test_path("cast");
    struct process *app = start_target(TARGET(""));
    require_program("bash");
    wait_until_ready(app);
    open_screen("PS1=shell: exec bash --norc --noprofile -i");
    see("shell:");
    enter(format_text("TERM=screen %s --record %s %d", build_path("manhole-cli"), path,
                      (int)app->pid));
    see(">>>");
    stop_amidst_a_line();
    press("C-d");
    see("now exiting.*\nshell:");
    const char *shown = play(path);
    assert_contains(shown, "42\r\n");
    assert_not_contains(shown, "shell:");
}

static void
recorded_client_without_an_editor_stops_at_ctrl_z_too(void)
{
    struct process *app = start_target(TARGET(""));
    require_program("bash");
    wait_until_ready(app);
    open_screen("PS1=shell: exec bash --norc --noprofile -i");
    see("shell:");
    enter(format_text("TERM=dumb %s --record %s --no-dump %d", build_path("manhole-cli"),
                      test_path("cast"), (int)app->pid));
    see(">>>");
    press("C-z");
    see("Stopped.*(\n.*)?\nshell:");
    enter("fg");
    see("shell:fg\n");
    enter("6 * 7");
    see("\n42\n>>>");
    press("C-d");
    see("now exiting.*\nshell:");
}

/* Standard output and error stay apart, and what is of several bytes is whole. */
static void
recording_of_what_is_no_terminal_has_its_text(void)
{
    const char *out = NULL;
    const char *err = NULL;
    const char *path = test_path("cast");
    struct process *app = start_target(TARGET(""));
    wait_until_ready(app);
    assert_int_equal(
        run_command(CLI("--record", path, format_text("%d", (int)app->pid), "-c",
                        "import sys; print('x' + 'é' * 99999); sys.exit('\"no\"')"),
                    NULL, &out, &err),
        1);
    assert_int_equal(strlen(out), 1 + 2 * 99999 + 1);
    assert_string_equal(err, "\"no\"\n");
    const char *shown = play(path);
    assert_contains(shown, "xéé");
    assert_contains(shown, "éé\r\n");
    assert_contains(shown, "\"no\"\r\n");
    assert_not_contains(shown, "\xef\xbf\xbd");
}

static void
recording_is_a_new_file(void)
{
    const char *err = NULL;
    const char *path = write_file("cast", "mine\n");
    assert_int_equal(run_command(CLI("--record", path, "--list"), NULL, NULL, &err), 1);
    assert_contains(err, "is there already, and is not overwritten; give --record a new");
    assert_string_equal(read_file(path), "mine\n");
    assert_int_equal(
        run_command(CLI("--record", "/proc/cast", "--list"), NULL, NULL, &err), 1);
    assert_contains(err, "cannot write the recording '/proc/cast': No such file");
}

static void
session_goes_on_when_its_recording_cannot(void)
{
    const char *err = NULL;
    const char *path = test_path("cast");
    struct process *app = start_target(TARGET(""));
    wait_until_ready(app);
    const char *command =
        format_text("ulimit -f 1; exec %s --record %s %d -c 'print(9 * \"word \" * 99); "
                    "print(6 * 7)'",
                    build_path("manhole-cli"), path, (int)app->pid);
    const char *out = NULL;
    assert_int_equal(run_command(LIST("sh", "-c", command), NULL, &out, &err), 0);
    assert_contains(out, "word \n42\n");
    assert_matches(err, "^manhole-cli: error: cannot write to the recording '.*cast': "
                        "File too large; it ends here, the session goes on$");
    (void)play(path);
}

static void
recording_of_a_client_that_was_killed_can_be_played(void)
{
    const char *path = test_path("cast");
    struct process *app = start_target(TARGET(""));
    pid_t client[2] = {0};
    wait_until_ready(app);
    struct process *cli =
        start_process(.argv = CLI("--record", path, format_text("%d", (int)app->pid)),
                      .terminal = true, .env = LIST("TERM=xterm"));
    wait_for_text(cli, OUT, ">>> ", DEADLINE);
    assert_int_equal(list_children(cli->pid, client, 2), 1);
    send_signal(cli, SIGKILL);
    assert_int_equal(wait_for_exit(cli, DEADLINE), -SIGKILL);
    wait_for_no_path(format_text("/proc/%d", (int)client[0]), DEADLINE);
    assert_contains(play(path), "ManholeConsole");
}

/* The end of its input is the client's end, who had the terminal raw, and set it back. */
static void
recorded_client_leaves_the_terminal_to_a_pager(void)
{
    struct process *app = start_target(TARGET(""));
    wait_until_ready(app);
    struct process *pager = start_process(
            .argv = LIST(
                "sh", "-c",
                format_text("exec 3<&0; %s --record %s --stacks %d | { stty -icanon "
                            "<&3; cat >/dev/null; stty -a <&3; echo over; }",
                            build_path("manhole-cli"), test_path("cast"), (int)app->pid)),
            .terminal = true);
    assert_contains(wait_for_text(pager, OUT, "over", DEADLINE), "-icanon");
}

/* ======================================================================================
 * Top
 * ======================================================================================
 */

static void
top_shows_a_view_in_place_of_the_last_one(void)
{
    struct process *app = start_target(TARGET(""));
    wait_until_ready(app);
    open_screen(format_text("TERM=screen %s top %d; echo status=$?; exec cat",
                            build_path("manhole-cli"), (int)app->pid));
    see("^ +TID STATE.*\n +[0-9]+ sleeping.*MainThread .* at ");
    char *clock = strndup(screen(), 8);
    assert_non_null(clock);
    long end_ms = now_ms() + DEADLINE;
    while (strncmp(screen(), clock, 8) == 0) {
        assert_true(now_ms() < end_ms);
    }
    free(clock);
    see("^[0-9:]+  [0-9]+ S, CPU .*\n +TID STATE.*\n +[0-9]+ sleeping.*MainThread .* "
        "at ");
    assert_null(strstr(strstr(screen(), "TID STATE") + 1, "TID STATE"));
    press("C-c");
    see("status=130");
}

/* ======================================================================================
 * Whatever a server sends
 * ======================================================================================
 */

/* A server of one client: sends what the expression says, closes, and stays. */
#define SERVER(bytes)                                                                    \
  LISTEN READY ACCEPT "os.unlink(path)\n"                                                \
                      "client.sendall(" bytes ")\n"                                      \
                      "client.close()\n" STAY

static const char *
show_all_of(const char *server_program, const char *term)
{
    struct process *server = start_target(server_program);
    wait_until_ready(server);
    struct process *cli = start_process(.argv = CLI(format_text("%d", (int)server->pid)),
                                        .terminal = true, .env = LIST(term));
    assert_int_equal(wait_for_exit(cli, DEADLINE), 0);
    return text_of(cli, OUT);
}

static void
ten_megabytes_without_a_newline_are_shown(void)
{
    const char *shown =
        show_all_of(SERVER("b'0123456789' * (1 << 20) + b'the end'"), "TERM=xterm");
    assert_contains(shown, "the end");
    assert_true(strlen(shown) > (size_t)10 << 20);
}

static void
what_takes_no_room_is_shown_without_a_newline(void)
{
    assert_contains(
        show_all_of(
            SERVER("('\\0' * (1 << 19) + '\\u0301' * (1 << 18)).encode() + b'the end'"),
            "TERM=xterm"),
        "the end");
}

static void
mark_of_nothing_is_none(void)
{
    assert_contains(show_all_of(SERVER("b'before\\1\\2behind'"), "TERM=dumb"), "behind");
}

static void
any_bytes_are_shown_without_a_control_character(void)
{
    const char *shown = show_all_of(
        SERVER("random.Random(7).randbytes(300000).replace(b'\\r', b'')"), "TERM=dumb");
    assert_true(strlen(shown) > 300000);
    for (const char *c = shown; *c != '\0'; c++) {
        assert_true((unsigned char)*c >= 0x20 || strchr("\n\t\r", *c) != NULL);
        assert_true(*c != 0x7f);
    }
}

static void
refusal_of_stacks_is_shown_without_a_control_character(void)
{
    struct process *server =
        start_target(SERVER("b'manhole: not \\033]0;today\\007\\n'"));
    wait_until_ready(server);
    struct process *cli =
        start_process(.argv = CLI("--stacks", format_text("%d", (int)server->pid)),
                      .terminal = true, .env = LIST("TERM=xterm"));
    assert_int_equal(wait_for_exit(cli, DEADLINE), 5);
    assert_contains(text_of(cli, OUT), "manhole: not ^[]0;today^G\r\n");
}

static void
half_a_character_at_the_end_of_code_is_shown(void)
{
    struct process *app = start_target(TARGET(""));
    wait_until_ready(app);
    struct process *cli =
        start_process(.argv = CLI(
                          format_text("%d", (int)app->pid), "-c",
                          "import sys; n = sys.stdout.buffer.write(b'half \\xe6\\xbc')"),
                      .terminal = true, .env = LIST("TERM=xterm"));
    assert_int_equal(wait_for_exit(cli, DEADLINE), 0);
    assert_contains(text_of(cli, OUT), "half \\xe6\\xbc");
}

static void
json_of_several_is_shown_without_a_control_character(void)
{
    const char *program = SERVER("b'{\"name\": \"\\033]0;today\\007\"}\\n'");
    struct process *one = start_target(program);
    struct process *two = start_target(program);
    wait_until_ready(one);
    wait_until_ready(two);
    struct process *cli =
        start_process(.argv = CLI("--stacks", "--json", format_text("%d", (int)one->pid),
                                  format_text("%d", (int)two->pid)),
                      .terminal = true, .env = LIST("TERM=xterm"));
    assert_int_equal(wait_for_exit(cli, DEADLINE), 0);
    assert_contains(text_of(cli, OUT), "{\"name\": \"^[]0;today^G\"}]\r\n");
    assert_not_contains(text_of(cli, OUT), "\033");
}

static void
any_bytes_leave_the_editor_and_its_terminal_well(void)
{
    require_editor();
    const char *shown =
        show_all_of(SERVER("random.Random(8).randbytes(300000)"), "TERM=xterm");
    assert_contains(shown, "\033[?2004l");
    assert_not_contains(shown, "\033]");
    assert_not_contains(shown, "\033P");
}

static void
sudden_close_in_the_middle_of_a_character_is_an_end(void)
{
    assert_contains(show_all_of(SERVER("b'>>> abc\\xe6\\xbc'"), "TERM=xterm"), "abc");
}

int
main(void)
{
    static const struct test_case tests[] = {
        TEST(line_is_edited_before_it_is_sent),
        TEST(history_is_kept_across_runs),
        TEST(history_goes_back_beyond_a_line_that_is_no_text),
        TEST(history_of_clients_side_by_side_has_all_their_lines),
        TEST(wide_characters_are_edited_as_what_they_are),
        TEST(line_longer_than_the_screen_is_edited),
        TEST(line_behind_a_colon_begins_indented),
        TEST(blanks_that_are_typed_replace_the_indentation),
        TEST(block_is_recalled_and_edited_as_one),
        TEST(lines_of_a_block_are_inserted_and_joined),
        TEST(sent_lines_of_a_block_are_edited_too),
        TEST(block_is_one_entry_of_the_history),
        TEST(block_longer_than_the_screen_is_edited),
        TEST(pasted_function_with_empty_lines_arrives_whole),
        TEST(paste_is_one_unit),
        TEST(paste_of_a_beginning_is_finished_by_hand),
        TEST(paste_into_a_block_goes_on_with_it),
        TEST(paste_at_input_is_lines_to_it),
        TEST(paste_that_was_typed_ahead_is_one_unit_too),
        TEST(ctrl_c_drops_a_paste_that_is_being_finished),
        TEST(output_of_other_threads_appears_above_the_line),
        TEST(prompts_are_marked_for_an_editor),
        TEST(prompt_is_marked_when_somebody_reads_and_keys_are_for_him),
        TEST(prompt_is_seen_behind_the_first_byte_of_a_mark),
        TEST(prompt_is_seen_behind_a_nul),
        TEST(keys_of_who_has_no_terminal_are_text),
        TEST(typed_ahead_the_prompt_of_input_is_shown),
        TEST(typed_ahead_the_prompt_of_pdb_is_shown),
        TEST(typed_ahead_the_statement_that_runs_has_no_prompt),
        TEST(output_above_a_line_of_several_rows_leaves_it_whole),
        TEST(prompts_of_input_and_pdb_are_the_editors),
        TEST(line_survives_a_resize),
        TEST(ctrl_d_leaves_and_the_terminal_is_as_before),
        TEST(process_that_dies_under_the_editor_is_told),
        TEST(session_that_ends_otherwise_under_the_editor_is_a_success),
        TEST(ctrl_d_ends_the_reader_alone),
        TEST(ctrl_c_is_for_the_reader),
        TEST(ctrl_c_interrupts_the_statement_and_the_session_goes_on),
        TEST(ctrl_c_interrupts_a_statement_that_python_has_not_begun_yet),
        TEST(ctrl_c_drops_the_line_being_typed),
        TEST(ctrl_c_drops_a_block_being_typed),
        TEST(prompt_after_ctrl_c_stands_once),
        TEST(ctrl_z_gives_the_shell_its_terminal_and_fg_takes_it_back),
        TEST(sigterm_restores_the_terminal),
        TEST(tab_completes_a_name_and_an_attribute),
        TEST(tab_completes_files_keys_and_modules),
        TEST(tab_indents_an_empty_line),
        TEST(tab_gives_up_when_python_is_busy_and_says_nothing),
        TEST(ctrl_c_drops_a_paste_that_has_not_ended),
        TEST(completion_calls_nothing),
        TEST(control_sequences_of_the_process_are_shown_not_sent),
        TEST(control_sequences_of_several_are_shown_not_sent),
        TEST(control_sequences_are_sent_when_asked_for),
        TEST(traceback_and_prompt_are_coloured),
        TEST(colour_of_the_prompt_ends_with_it),
        TEST(stacks_are_coloured_where_a_thread_begins),
        TEST(no_color_is_honoured),
        TEST(colours_of_tracebacks_alone_are_let_through),
        TEST(names_of_main_are_found_at_the_prompt),
        TEST(await_runs_in_the_loop_of_the_process),
        TEST(await_leaves_the_loop_running),
        TEST(await_does_not_outlive_its_loop),
        TEST(await_asks_in_which_of_several_loops),
        TEST(value_longer_than_a_line_is_laid_out),
        TEST(object_is_told_about_when_asked_for),
        TEST(recording_has_what_the_screen_had),
        TEST(recording_goes_on_after_ctrl_z),
        TEST(recorded_client_without_an_editor_stops_at_ctrl_z_too),
        TEST(recording_of_what_is_no_terminal_has_its_text),
        TEST(recording_is_a_new_file),
        TEST(session_goes_on_when_its_recording_cannot),
        TEST(recording_of_a_client_that_was_killed_can_be_played),
        TEST(recorded_client_leaves_the_terminal_to_a_pager),
        TEST(top_shows_a_view_in_place_of_the_last_one),
        TEST(dumb_terminal_gets_no_escape_sequence),
        TEST(ten_megabytes_without_a_newline_are_shown),
        TEST(what_takes_no_room_is_shown_without_a_newline),
        TEST(mark_of_nothing_is_none),
        TEST(any_bytes_are_shown_without_a_control_character),
        TEST(refusal_of_stacks_is_shown_without_a_control_character),
        TEST(half_a_character_at_the_end_of_code_is_shown),
        TEST(json_of_several_is_shown_without_a_control_character),
        TEST(any_bytes_leave_the_editor_and_its_terminal_well),
        TEST(sudden_close_in_the_middle_of_a_character_is_an_end),
    };
    return RUN_TESTS(tests);
}
