/* e2e_console.c - what a client sees and may do, and what the application notices of it:
 * nothing.
 */
#include "support.h"

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* The obedient program: its main thread does what each line of its stdin says and prints
 * the value, or the exception, in one line. */
#define OBEDIENT                                                                         \
  "import builtins, io, manhole, os, sys, threading\n"                                   \
  "names = globals()\n"                                                                  \
  "def obey(line):\n"                                                                    \
  "    try:\n"                                                                           \
  "        return eval(line, names)\n"                                                   \
  "    except SyntaxError:\n"                                                            \
  "        return exec(line, names)\n"                                                   \
  "while True:\n"                                                                        \
  "    line = os.read(0, 4096).decode()\n"                                               \
  "    if not line: break\n"                                                             \
  "    try:\n"                                                                           \
  "        answer = str(obey(line.strip()))\n"                                           \
  "    except BaseException as error:\n"                                                 \
  "        answer = f'{type(error).__name__}: {error}'\n"                                \
  "    os.write(1, (answer + '\\n').encode())\n"

/* Has the program do a line. Returns its answer, without the newline. */
static const char *
tell(struct process *app, const char *line)
{
    write_stdin(app, format_text("%s\n", line));
    const char *answer = wait_for_text(app, OUT, "\n", DEADLINE);
    return format_text("%.*s", (int)strlen(answer) - 1, answer);
}

/* The obedient program, with a manhole. */
static struct process *
start_app(void)
{
    struct process *app = start_target(OBEDIENT);
    assert_string_equal(tell(app, "m = manhole.install()"), "None");
    return app;
}

/* Has the application's main thread print a line: to sys.NAME. */
static void
print_to(struct process *app, const char *name, const char *text)
{
    enum stream stream = strstr(name, "err") != NULL ? ERR : OUT;
    write_stdin(app, format_text("print('%s', file=sys.%s)\n", text, name));
    wait_for_text(app, stream, format_text("%s\n", text), DEADLINE);
    wait_for_text(app, OUT, "None\n", DEADLINE);
}

static struct client *
enter(struct process *app)
{
    struct client *client = connect_to(app);
    client_wait_for(client, ">>> ");
    return client;
}

/* Ends the session, and waits until the application is as it was before. */
static void
leave(struct process *app, struct client *client)
{
    client_send(client, "exit()\n");
    client_read_until_eof(client);
    wait_for_text(app, ERR, "]: Cleaned up.\n", DEADLINE);
}

/* ======================================================================================
 * The stack dump and the banner
 * ====================================================================================== */

static const char *
banner(void)
{
    const char *text;
    run_command(LIST(python(), "-c",
                     "import sys\n"
                     "print('Python', sys.version, 'on', sys.platform)"),
                "", &text, NULL);
    return format_text(
        "%sType \"help\", \"copyright\", \"credits\" or \"license\" for more "
        "information.\n(ManholeConsole)\n",
        text);
}

/* Without the lines of facts, which python-manhole has not. */
static const char *
without_facts(const char *dump)
{
    static const char begin[] = "Thread: ";
    const char *rest = "";
    for (const char *line = dump; *line != '\0'; line += strcspn(line, "\n") + 1) {
        size_t length = strcspn(line, "\n") + 1;
        if (line[length - 1] == '\0') {
            return format_text("%s%s", rest, line);
        }
        if (strncmp(line, begin, strlen(begin)) != 0) {
            rest = format_text("%s%.*s", rest, (int)length, line);
        }
    }
    return rest;
}

/* Each of its lines with a frame is the same line while it waits and before. */
static void
greeting_is_as_ever_to_the_byte(void)
{
    require_gil();
    struct process *app = start_target(
        INSTALL("") "import _thread, os, threading\n"
                    "def outer():\n"
                    "    inner()\n"
                    "def inner():\n"
                    "\tprint(threading.get_ident()); lock.release(); held.acquire()\n"
                    "lock, held = _thread.allocate_lock(), _thread.allocate_lock()\n"
                    "lock.acquire(), held.acquire()\n"
                    "_thread.start_new_thread(outer, ())\n"
                    "lock.acquire(); print(threading.get_ident()); print('ready'); "
                    "os.read(0, 1)\n");
    const char *worker = wait_for_text(app, OUT, "\n", DEADLINE);
    const char *thread = wait_for_text(app, OUT, "\n", DEADLINE);
    wait_until_ready(app);
    const char *file = test_path(strrchr(app->title, '/') + 1);
    file = format_text("%.*s", (int)strcspn(file, " "), file);
    const char *wanted = format_text(
        "\n######### ProcessID=%d, ThreadID=%.*s #########\n"
        "File: \"%s\", line 4, in outer\n"
        "  inner()\n"
        "File: \"%s\", line 6, in inner\n"
        "  print(threading.get_ident()); lock.release(); held.acquire()\n"
        "\n######### ProcessID=%d, ThreadID=%.*s #########\n"
        "File: \"%s\", line 10, in <module>\n"
        "  lock.acquire(); print(threading.get_ident()); print('ready'); os.read(0, 1)\n"
        "#############################################\n\n\n"
        "%s>>> ",
        (int)app->pid, (int)strlen(worker) - 1, worker, file, file, (int)app->pid,
        (int)strlen(thread) - 1, thread, file, banner());
    assert_string_equal(without_facts(client_wait_for(connect_to(app), ">>> ")), wanted);
}

/* As in the dump of a stuck process. The busy one computes without the GIL, or it would be luck
 * which of the others waits for that. */
static void
greeting_tells_name_kernel_id_and_wait_of_each_thread(void)
{
    static const struct {
        const char *name;
        const char *does;
    } rows[] = {
        {"MainThread", "sleeping in read"},
        {"waits", "sleeping in futex"},
        {"polls", "sleeping in p?poll"},
        {"sleeps", "sleeping in (clock_nanosleep|p?select6?)"}, /* before 3.11 */
        {"busy", "running"},
    };
    require_gil();
    struct process *app = start_target(INSTALL(
        "") "import hashlib, select, threading, time\n"
            "def spin(): hashlib.pbkdf2_hmac('sha256', b'', b'', 10 ** 9)\n"
            "threads = {name: threading.Thread(target=run, name=name, daemon=True)\n"
            "           for name, run in dict(\n"
            "               waits=threading.Event().wait, polls=select.poll().poll,\n"
            "               sleeps=lambda: time.sleep(1000), busy=spin).items()}\n"
            "for t in threads.values(): t.start()\n"
            "def call_of(name):\n"
            "    task = f'/proc/self/task/{threads[name].native_id}'\n"
            "    with open(f'{task}/syscall') as file: return file.read().split()[0]\n"
            "def is_at_rest():\n"
            "    calls = {call_of(name) for name in ('waits', 'polls', 'sleeps')}\n"
            "    return len(calls) == 3 and 'running' not in calls\n"
            "while not is_at_rest() or call_of('busy') != 'running':\n"
            "    time.sleep(0.001)\n"
            "for t in threading.enumerate(): print(t.name, t.native_id)\n" READY STAY);
    wait_until_ready(app);
    wait_until_asleep(app->pid);
    const char *greeting = client_wait_for(connect_to(app), ">>> ");
    for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
        const char *printed = strstr(text_of(app, OUT), rows[i].name);
        assert_non_null(printed);
        printed += strlen(rows[i].name) + 1;
        assert_matches(greeting,
                       format_text("^######### ProcessID=%d, ThreadID=[0-9]+ #########\n"
                                   "Thread: %s, TID %.*s \\(.*\\), %s\nFile: \"",
                                   (int)app->pid, rows[i].name,
                                   (int)strcspn(printed, "\n"), printed, rows[i].does));
    }
}

static void
frame_without_source_is_a_header_alone(void)
{
    require_gil();
    struct process *app =
        start_target(INSTALL("") "exec(compile('print(\"ready\", flush=True); input()', "
                                 "'no such file.py', 'exec'))\n");
    wait_until_ready(app);
    client_wait_for(connect_to(app),
                    "File: \"no such file.py\", line 1, in <module>\n"
                    "#############################################\n\n\nPython ");
}

static void
dump_shows_names_in_any_script(void)
{
    require_gil();
    struct process *app = start_target(
        INSTALL("") "exec(compile('def größe():\\n print(\"ready\", flush=True); "
                    "input()\\ngröße()', 'ü\\u6f22\\ud800.py', 'exec'))\n");
    wait_until_ready(app);
    struct client *client = connect_to(app);
    client_wait_for(client, "File: \"ü漢\\ud800.py\", line 2, in größe\n#####");
    client_wait_for(client, ">>> ");
}

static void
dump_stacktraces_of_a_session_goes_to_its_client_alone(void)
{
    struct process *app = start_app();
    struct client *client = enter(app);
    struct client *other = enter(app);
    const char *dump = client_ask(client, "dump_stacktraces()");
    assert_contains(dump, "File: \"<console>\", line 1, in <module>\n");
    assert_contains(dump, "in <module>\n  line = os.read(0, 4096).decode()\n");
    assert_string_equal(client_ask(other, "1"), "1\n");
    assert_not_contains(text_of(app, ERR), "####");
    assert_not_contains(text_of(app, OUT), "####");
}

/* ======================================================================================
 * The console, compared with Python's own
 * ====================================================================================== */

/* Each ends at the next primary prompt. One after the other in one session. */
static const char *const inputs[] = {
    "",
    "   ",
    "# a comment",
    "1 + 1",
    "_",
    "None",
    "x = 5",
    "x; x + 1; 'two'",
    "'\xc3\xa9 \xe2\x98\x83'",
    "\xc3\xa9 = 3; \xc3\xa9",
    "print('a', 'b')",
    "print('no newline', end='')",
    "print('to stderr', file=sys.stderr)",
    "sys.stdout.write('written')",
    "undefined",
    "os.pth",
    "1/0",
    "1 +",
    "if 1",
    "x y",
    "print 'old'",
    "f(\n)",
    ")",
    "'unclosed",
    "\xc2\xa0",
    "  indented = 1",
    "1 = x",
    "return 1",
    "raise ValueError('two\\nlines')",
    "raise KeyboardInterrupt",
    "raise GeneratorExit",
    "import does_not_exist",
    "eval('1 +')",
    "exec('1/0')",
    "assert 0, 'a message'",
    "assert (1, 'always true')",
    "(1,\n2,\n3)",
    "'''a\nb'''",
    "x = \\\n7",
    "for i in range(3): i\n",
    "if 0:\n  pass\nelse:\n  'else'\n",
    "while True: break\n",
    "def f():\n    return 1/0\n",
    "f()",
    "@property\ndef p(self): pass\n",
    "async def g(): pass\n",
    "try: f()\nexcept Exception: raise KeyError('k')\n",
    "try: f()\nexcept Exception as e: raise KeyError('k') from e\n",
    "try: f()\nexcept Exception: raise KeyError('k') from None\n",
    "with open(os.devnull) as z: z.name\n",
    "class Bad(Exception):\n  def __str__(self): 1/0\n",
    "raise Bad",
    "class Worse:\n  def __repr__(self): raise Bad\n",
    "Worse()",
    "def half():\n  x = (\n)\n",
    "def half():\n  pass\n 1\n",
    "raise ExceptionGroup('all', [ValueError(1), KeyError(2)])",
    "exit",
    "quit",
    "copyright",
    "help",
    "__name__",
    "__file__",
    "input('a prompt: ')\nan answer",
    "sys.stdin.readline()\nanother",
    "del x; x",
};

static void
console_answers_as_python_s_own(void)
{
    struct process *app = start_app();
    struct process *own = start_target(
        "import code, os, sys\n"
        "sys.stderr = sys.stdout\n"
        "code.InteractiveConsole({'os': os, 'sys': sys}).interact(banner='')\n");
    struct client *client = enter(app);
    wait_for_text(own, OUT, ">>> ", DEADLINE);
    for (size_t i = 0; i < sizeof(inputs) / sizeof(inputs[0]); i++) {
        write_stdin(own, format_text("%s\n", inputs[i]));
        client_send(client, format_text("%s\n", inputs[i]));
        const char *wanted = wait_for_text(own, OUT, ">>> ", DEADLINE);
        const char *got = client_wait_for(client, ">>> ");
        assert_string_equal(format_text("%s\n=>\n%s", inputs[i], got),
                            format_text("%s\n=>\n%s", inputs[i], wanted));
    }
}

static void
block_is_prompted_for_and_run_at_its_end(void)
{
    struct client *client = enter(start_app());
    client_send(client, "for i in 'ab':\n");
    assert_string_equal(client_wait_for(client, "... "), "... ");
    client_send(client, "  print(i)\n");
    assert_string_equal(client_wait_for(client, "... "), "... ");
    assert_string_equal(client_ask(client, ""), "a\nb\n");
}

/* ======================================================================================
 * The end of a session
 * ====================================================================================== */

static const struct {
    const char *line;
    const char *answer; /* NULL: any */
} endings[] = {
    {"exit()", ""},
    {"quit()", ""},
    {"exit(3)", ""},
    {"sys.exit()", ""},
    {"sys.exit('with a message')", ""},
    {"raise SystemExit", ""},
    {"def f(): sys.exit()\n\nf()", "... >>> "},
    {"sys.stdin.close()", NULL},
};

static void
ending_a_session_ends_it_alone(void)
{
    struct process *app = start_app();
    struct client *other = enter(app);
    for (size_t i = 0; i < sizeof(endings) / sizeof(endings[0]); i++) {
        struct client *client = enter(app);
        client_send(client, format_text("%s\n1 + 1\n", endings[i].line));
        const char *rest = client_read_until_eof(client);
        if (endings[i].answer != NULL) {
            assert_string_equal(
                format_text("%s => %s", endings[i].line, rest),
                format_text("%s => %s", endings[i].line, endings[i].answer));
        }
        assert_string_equal(client_ask(other, "40 + 2"), "42\n");
        assert_string_equal(tell(app, "sys.stdin.closed, sys.__stdin__.closed"),
                            "(False, False)");
    }
    close_stdin(app);
    client_close(other);
    assert_int_equal(wait_for_exit(app, DEADLINE), 0);
}

static void
end_of_input_ends_the_session_as_in_any_console(void)
{
    struct process *app = start_app();
    struct client *client = enter(app);
    client_send(client, "x = 1\nx");
    client_shutdown_write(client);
    assert_string_equal(client_read_until_eof(client),
                        ">>> 1\n>>> \nnow exiting ManholeConsole...\n");
    assert_string_equal(client_ask(enter(app), "40 + 2"), "42\n");
}

static void
piped_input_is_answered_to_its_end(void)
{
    struct process *app = start_app();
    struct client *client = connect_to(app);
    client_send(client, "for i in range(3): print('line', i)\n\n");
    client_shutdown_write(client);
    assert_contains(client_read_until_eof(client),
                    ">>> ... line 0\nline 1\nline 2\n>>> \nnow exiting");
}

/* ======================================================================================
 * Input
 * ====================================================================================== */

static void
input_reads_from_the_client(void)
{
    struct client *client = enter(start_app());
    client_send(client, "name = input('Your name? ')\n");
    assert_string_equal(client_wait_for(client, "? "), "Your name? ");
    assert_string_equal(client_ask(client, "Ada"), "");
    assert_string_equal(client_ask(client, "name"), "'Ada'\n");
}

static void
pdb_works_in_a_session(void)
{
    struct client *client = enter(start_app());
    assert_contains(client_ask(client, "def f(x): return 1/x\n"), "... ");
    assert_contains(client_ask(client, "f(0)"), "ZeroDivisionError");
    client_send(client, "import pdb; pdb.pm()\n");
    client_wait_for(client, "(Pdb) ");
    client_send(client, "p x + 41\n");
    assert_string_equal(client_wait_for(client, "(Pdb) "), "41\n(Pdb) ");
    assert_string_equal(client_ask(client, "q"), "");
}

static void
app_reads_its_own_input_while_a_client_is_in(void)
{
    static const char *const readers[] = {"sys.stdin.readline()", "input()",
                                          "next(iter(sys.stdin))"};
    for (size_t i = 0; i < sizeof(readers) / sizeof(readers[0]); i++) {
        struct process *app = start_target(
            format_text("import sys; import manhole; manhole.install()\n"
                        "for i in range(3): print('app read ' + %s.strip())\n",
                        readers[i]));
        struct client *client = enter(app);
        write_stdin(app, "one\n");
        wait_for_text(app, OUT, "app read one\n", DEADLINE);
        client_wait_for(client, "app read one\n");
        client_send(client, "line = input('?')\n");
        client_wait_for(client, "?");
        write_stdin(app, "two\n");
        wait_for_text(app, OUT, "app read two\n", DEADLINE);
        client_wait_for(client, "app read two\n");
        client_ask(client, "for the session");
        assert_string_equal(client_ask(client, "line"), "'for the session'\n");
        leave(app, client);
        write_stdin(app, "three\n");
        wait_for_text(app, OUT, "app read three\n", DEADLINE);
    }
}

/* ======================================================================================
 * Output
 * ====================================================================================== */

static void
print_of_the_app_reaches_all_clients_and_its_own_stdout_once(void)
{
    static const char *const streams[] = {"stdout", "__stdout__", "stderr", "__stderr__"};
    struct process *app = start_app();
    struct client *first = enter(app);
    struct client *second = enter(app);
    for (size_t i = 0; i < sizeof(streams) / sizeof(streams[0]); i++) {
        print_to(app, streams[i], "to all");
        assert_string_equal(client_wait_for(first, "\n"), "to all\n");
        assert_string_equal(client_wait_for(second, "\n"), "to all\n");
        assert_string_equal(client_ask(first, "1"), "1\n");
        assert_string_equal(client_ask(second, "1"), "1\n");
    }
    assert_string_equal(tell(app, "1"), "1");
}

static void
thread_of_the_app_is_seen_by_clients(void)
{
    struct process *app = start_app();
    struct client *client = enter(app);
    tell(app, "t = threading.Thread(target=print, args=['from', 'a thread'])");
    assert_string_equal(tell(app, "t.start(); t.join()"), "from a thread");
    assert_string_equal(client_wait_for(client, "\n"), "from a thread\n");
}

static void
output_of_a_session_reaches_its_client_alone(void)
{
    static const char *const statements[] = {
        "print('mine')",
        "n = sys.stdout.write('mine\\n')",
        "n = sys.stderr.write('mine\\n')",
        "print('mine', file=sys.__stdout__)",
        "sys.stdout.writelines(['mi', 'ne\\n'])",
        "n = sys.stdout.buffer.write(b'mine\\n'); sys.stdout.buffer.flush()",
        "import subprocess; n = subprocess.run(['echo', 'mine'], stdout=sys.stdout)",
        "'mine'; print()",
    };
    struct process *app = start_app();
    struct client *client = enter(app);
    struct client *other = enter(app);
    for (size_t i = 0; i < sizeof(statements) / sizeof(statements[0]); i++) {
        assert_contains(client_ask(client, statements[i]), "mine");
        assert_string_equal(client_ask(other, "1"), "1\n");
    }
    assert_string_equal(tell(app, "'nothing'"), "nothing");
    assert_not_contains(text_of(app, OUT), "mine");
    assert_not_contains(text_of(app, ERR), "mine");
}

static void
names_of_a_session_are_its_own(void)
{
    struct process *app = start_app();
    struct client *client = enter(app);
    struct client *other = enter(app);
    client_ask(client, "x = 1");
    assert_contains(client_ask(other, "x"), "NameError");
}

static void
sessions_may_be_in_the_middle_of_blocks_at_once(void)
{
    struct process *app = start_app();
    struct client *client = enter(app);
    struct client *other = enter(app);
    client_send(client, "if 1:\n  'first'\n");
    client_send(other, "if 1:\n  'second'\n");
    client_wait_for(client, "... ... ");
    client_wait_for(other, "... ... ");
    assert_string_equal(client_ask(client, ""), "'first'\n");
    assert_string_equal(client_ask(other, ""), "'second'\n");
}

/* What programs ask of a text file before they write to it. */
static void
output_of_a_session_is_a_text_file_that_is_no_terminal(void)
{
    static const struct {
        const char *line;
        const char *answer;
    } rows[] = {
        {"o = sys.stdout; o.isatty(), o.readable(), o.seekable(), o.writable()",
         "(False, False, False, True)\n"},
        {"o.encoding, o.errors, o.mode, o.name",
         "('utf-8', 'backslashreplace', 'w', '<manhole>')\n"},
        {"o.closed, o.line_buffering, o.newlines, o.buffer is o",
         "(False, False, None, True)\n"},
        {"o.__enter__() is o, o.__exit__(None, None, None), o.close(), o.flush()",
         "(True, None, None, None)\n"},
        {"o.write('x\\n'), o.writelines(['a', 'b\\n']), o.write(b'y\\n')",
         "x\nab\ny\n(2, None, 2)\n"},
        {"fails(list, o), fails(next, o)",
         "(OSError('not readable'), OSError('not readable'))\n"},
        {"fails(o.write, 5)",
         "TypeError(\"a bytes-like object is required, not 'int'\")\n"},
        {"fails(o.writelines, ['z\\n', 5, 'w'])",
         "z\nTypeError(\"a bytes-like object is required, not 'int'\")\n"},
        {"fails(type(o))", "TypeError(\"cannot create 'manhole.Stream' instances\")\n"},
        {"fails(setattr, o, 'flush', 1)",
         "AttributeError(\"'flush' of a client's stream cannot be set\")\n"},
        {"fails(delattr, o, 'buffer')",
         "AttributeError(\"'buffer' of a client's stream cannot be set\")\n"},
    };
    struct process *app = start_app();
    struct client *client = enter(app);
    client_ask(client, "import sys\n"
                       "def fails(f, *arguments):\n"
                       "    try: f(*arguments)\n"
                       "    except Exception as error: return error\n");
    client_wait_for(client, ">>> ");
    for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
        assert_string_equal(client_ask(client, rows[i].line), rows[i].answer);
    }
}

static void
streams_are_the_app_s_own_to_its_other_threads(void)
{
    static const struct {
        const char *line;
        const char *answer;
    } rows[] = {
        {"sys.stdout.fileno(), sys.stdout.name, sys.stdin.fileno()",
         "(1, '<stdout>', 0)"},
        {"repr(sys.stdout)[:46]", "<manhole.Stream stdout of <_io.TextIOWrapper n"},
        {"sys.stdout.mood = 'mine'", "None"},
        {"before.mood", "mine"},
        {"next(sys.stdout)", "UnsupportedOperation: not readable"},
        {"iter(sys.stdout) is before", "True"},
        {"with sys.stderr as f: kept = f is sys.stderr", "None"},
        {"kept, sys.stderr.closed, sys.stdout.closed", "(True, True, False)"},
    };
    struct process *app = start_app();
    tell(app, "before = sys.stdout");
    struct client *client = enter(app);
    for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
        assert_string_equal(tell(app, rows[i].line), rows[i].answer);
    }
    client_ask(client, "1");
}

/* As programs do that look on at what they print. */
static void
write_that_the_app_replaces_calls_the_one_before(void)
{
    struct process *app = start_app();
    struct client *client = enter(app);
    tell(app, "seen = []");
    tell(app, "old = sys.stdout.write");
    tell(app, "tee = lambda s: [seen.append(s), old(s)][1]");
    tell(app, "sys.stdout.write = tee");
    print_to(app, "stdout", "to all");
    assert_string_equal(client_wait_for(client, "\n"), "to all\n");
    assert_string_equal(client_ask(client, "1"), "1\n");
    assert_string_equal(tell(app, "seen[0]"), "to all");
    leave(app, client);
    print_to(app, "stdout", "to itself");
}

/* A script's usual first line; sys.stdout is the process's. */
static void
wrapper_of_a_session_s_buffer_serves_the_app_too(void)
{
    struct process *app = start_app();
    struct client *client = enter(app);
    client_ask(client,
               "import io; sys.stdout = io.TextIOWrapper(sys.stdout.buffer, 'utf-8', "
               "write_through=True)");
    print_to(app, "stdout", "of the app");
    client_wait_for(client, "of the app\n");
}

static void
stream_of_a_session_is_reconfigured_without_effect(void)
{
    struct client *client = enter(start_app());
    assert_string_equal(client_ask(client, "sys.stdout.reconfigure(encoding='latin-1')"),
                        "");
    assert_string_equal(
        client_ask(client, "sys.stdout.encoding, sys.stdout.write_through"),
        "('utf-8', True)\n");
}

static void
typed_input_is_a_file_with_name_and_mode(void)
{
    struct client *client = enter(start_app());
    assert_string_equal(client_ask(client, "sys.stdin.name, sys.stdin.mode"),
                        "('<manhole>', 'r')\n");
}

/* Standard error shows as \\udc80 what has no UTF-8; a client has no error from it either. */
static void
text_of_the_app_that_is_no_unicode_is_shown_escaped(void)
{
    struct process *app = start_app();
    struct client *client = enter(app);
    print_to(app, "stderr", "\\udc80x");
    client_wait_for(client, "\\udc80x\n");
}

static void
app_without_std_streams_can_be_entered(void)
{
    struct process *app = start_target(
        "import sys\n"
        "sys.stdin = sys.stdout = sys.stderr = None\n"
        "sys.__stdin__ = sys.__stdout__ = sys.__stderr__ = None\n" INSTALL("") STAY);
    struct client *client = enter(app);
    assert_string_equal(client_ask(client, "print('a', file=sys.stderr)"), "a\n");
    assert_string_equal(client_ask(client, "x = input()\ny"), "");
    assert_string_equal(client_ask(client, "x"), "'y'\n");
    leave(app, client);
    assert_string_equal(client_ask(enter(app), "print('a')"), "a\n");
}

static void
app_without_stderr_is_told_that_it_writes_no_text(void)
{
    struct process *app =
        start_target("import sys\nsys.stderr = None\n" INSTALL("") EVALUATE);
    struct client *client = enter(app);
    assert_string_equal(evaluate(app, "sys.stderr.write('text')"), "4");
    assert_contains(evaluate(app, "sys.stderr.write(5)"), "TypeError: ");
    leave(app, client);
}

/* ======================================================================================
 * What is left of a session in the application
 * ====================================================================================== */

static void
session_leaves_sys_and_builtins_as_they_were(void)
{
    struct process *app = start_app();
    tell(app,
         "def look(): return {(m.__name__, n): v for m in (sys, builtins) for n, v in "
         "vars(m).items()}");
    leave(app, enter(app)); /* the first one imports what it needs */
    tell(app, "before = look()");
    struct client *client = enter(app);
    client_ask(client, "1 + 1");
    client_ask(client, "1/0");
    client_ask(client, "1 +");
    leave(app, client);
    assert_string_equal(
        tell(app, "after = look(); changed = [n for n in set(before) | set(after) if "
                  "before.get(n, 0) is not after.get(n, 0)]"),
        "None");
    assert_string_equal(tell(app, "changed"), "[]");
    assert_string_equal(
        tell(app, "[n for n in vars(sys) if n[:4] == 'last' or n[:2] == 'ps']"), "[]");
}

static void
streams_are_the_app_s_again_after_the_last_client(void)
{
    struct process *app = start_app();
    tell(app,
         "def look(): return [getattr(sys, n) for n in ('stdin', 'stdout', 'stderr', "
         "'__stdin__', '__stdout__', '__stderr__', 'displayhook')]");
    tell(app, "before = look()");
    struct client *client = enter(app);
    struct client *other = enter(app);
    leave(app, client);
    print_to(app, "stdout", "to those who stay");
    client_wait_for(other, "to those who stay\n");
    leave(app, other);
    assert_string_equal(tell(app, "look() == before"), "True");
}

static void
stream_that_the_app_has_set_meanwhile_is_left_alone(void)
{
    struct process *app = start_app();
    struct client *client = enter(app);
    tell(app, "sys.stdout = mine = io.StringIO()");
    leave(app, client);
    assert_string_equal(tell(app, "sys.stdout is mine"), "True");
    assert_string_equal(tell(app, "sys.stderr is sys.__stderr__"), "True");
}

static void
session_prints_to_its_client_whatever_stream_the_app_sets(void)
{
    struct process *app = start_app();
    struct client *client = enter(app);
    tell(app, "sys.stdout = mine = io.StringIO()");
    assert_string_equal(client_ask(client, "print('to the client')"), "to the client\n");
    assert_string_equal(tell(app, "repr(mine.getvalue())"), "''");
    print_to(app, "__stdout__", "to both");
    leave(app, client);
    assert_string_equal(tell(app, "sys.stdout is mine"), "True");
}

static void
stream_kept_from_a_session_s_time_serves_its_owner_on(void)
{
    struct process *app = start_app();
    tell(app, "original = sys.stdout");
    struct client *client = enter(app);
    tell(app, "sys.kept = sys.stdout");
    leave(app, client);
    assert_string_equal(tell(app, "sys.kept is original"), "False");
    print_to(app, "kept", "through the old one");
    assert_string_equal(tell(app, "sys.kept.buffer is original.buffer"), "True");
    assert_string_equal(
        tell(app, "sys.kept.fileno(), sys.kept.encoding, sys.kept.flush()"),
        "(1, 'utf-8', None)");
    client = enter(app);
    print_to(app, "kept", "seen by a later client");
    client_wait_for(client, "seen by a later client\n");
}

static void
underscore_is_the_session_s_own(void)
{
    struct process *app = start_app();
    tell(app, "builtins._ = 'gettext'");
    struct client *client = enter(app);
    struct client *other = enter(app);
    assert_string_equal(client_ask(client, "40 + 2"), "42\n");
    assert_string_equal(client_ask(client, "_ + 1"), "43\n");
    assert_string_equal(client_ask(client, "import builtins; print(builtins._)"),
                        "gettext\n");
    assert_string_equal(client_ask(other, "_"), "'gettext'\n");
    assert_string_equal(tell(app, "builtins._"), "gettext");
}

static void
value_is_shown_before_what_its_line_does_next(void)
{
    static const char *const lines[] = {
        "5; wait()\n", "for i in [5]: i; wait()\n\n",
        "show()\n",    "sys.stdout.write('') or 5; wait()\n",
        "5\nwait()\n",
    };
    struct process *app = start_app();
    struct client *client = enter(app);
    tell(app, "there, here = os.pipe()");
    client_ask(client, format_text("wait = lambda: [os.read(%s, 1), None][1]",
                                   tell(app, "there")));
    client_ask(client, "show = lambda: [sys.displayhook(5), wait()][1]");
    for (size_t i = 0; i < sizeof(lines) / sizeof(lines[0]); i++) {
        client_send(client, lines[i]);
        client_wait_for(client, "5\n");
        assert_string_equal(tell(app, "os.write(here, b'x')"), "1");
        client_wait_for(client, ">>> ");
    }
}

static void
what_a_value_replaces_prints_behind_it(void)
{
    struct client *client = enter(start_app());
    client_ask(client, "T = type('T', (), {'__del__': lambda self: print('gone')})");
    client_ask(client, "T()");
    assert_string_equal(client_ask(client, "5"), "5\ngone\n");
}

static void
lines_typed_ahead_have_each_its_value_and_prompt(void)
{
    struct client *client = enter(start_app());
    client_send(client, "1\n1 / 0\n(2,\n3)\n4\n");
    client_wait_for(client, "1\n>>> ");
    client_wait_for(client, "division by zero\n>>> ... (2, 3)\n>>> 4\n>>> ");
}

static void
compiler_warns_of_a_line_once(void)
{
    static const char warning[] = "SyntaxWarning: ";
    struct client *client = enter(start_app());
    const char *answer = client_ask(client, "1 is 1");
    assert_contains(answer, warning);
    assert_not_contains(strstr(answer, warning) + 1, warning);
    answer = client_ask(client, "'\\d'"); /* before 3.12 of no such kind */
    assert_contains(answer, "'\\\\d'\n");
    if (strstr(answer, warning) != NULL) {
        assert_not_contains(strstr(answer, warning) + 1, warning);
    }
}

static void
displayhook_of_the_app_is_the_app_s(void)
{
    struct process *app = start_app();
    tell(app, "shown = []");
    tell(app, "sys.displayhook = shown.append");
    struct client *client = enter(app);
    assert_string_equal(client_ask(client, "'mine'"), "'mine'\n");
    tell(app, "exec(compile('\"the app\\'s\"', '', 'single'))");
    assert_string_equal(tell(app, "shown"), "[\"the app's\"]");
    leave(app, client);
    assert_string_equal(tell(app, "sys.displayhook == shown.append"), "True");
}

static void
displayhook_that_a_client_sets_shows_its_values(void)
{
    struct client *client = enter(start_app());
    client_ask(client, "sys.displayhook = lambda x: print('shown:', x)");
    assert_string_equal(client_ask(client, "42"), "shown: 42\n");
}

static void
excepthooks_of_the_app_hear_nothing_of_a_session(void)
{
    struct process *app = start_app();
    tell(app, "heard = []");
    tell(app, "sys.excepthook = threading.excepthook = sys.unraisablehook = lambda *x: "
              "heard.append(x)");
    struct client *client = enter(app);
    assert_contains(client_ask(client, "1/0"), "\nZeroDivisionError: ");
    assert_contains(client_ask(client, "1 +"), "SyntaxError: ");
    assert_contains(client_ask(client, "raise GeneratorExit"), "\nGeneratorExit\n");
    leave(app, client);
    assert_string_equal(tell(app, "heard"), "[]");
    assert_not_contains(text_of(app, ERR), "Error");
}

static void
prompt_is_not_put_into_sys(void)
{
    struct client *client = enter(start_app());
    assert_string_equal(client_ask(client, "hasattr(sys, 'ps1'), hasattr(sys, 'ps2')"),
                        "(False, False)\n");
}

static void
switch_interval_is_never_touched(void)
{
    struct process *app = start_app();
    tell(app, "sys.setswitchinterval(0.25)");
    struct client *client = enter(app);
    assert_string_equal(client_ask(client, "sys.getswitchinterval()"), "0.25\n");
    leave(app, client);
    assert_string_equal(tell(app, "sys.getswitchinterval()"), "0.25");
}

static bool
has_two_threads(void *app)
{
    return count_threads(((struct process *)app)->pid) == 2;
}

static void
threading_forgets_a_session(void)
{
    struct process *app = start_app();
    tell(app, "before = threading.enumerate()");
    struct client *client = enter(app);
    client_ask(client, "import threading; t = threading.current_thread()");
    leave(app, client);
    wait_until(has_two_threads, app, "the session's thread is gone", DEADLINE);
    assert_string_equal(tell(app, "threading.enumerate() == before"), "True");
}

/* ======================================================================================
 * Forks typed at the prompt
 * ====================================================================================== */

static void
fork_in_a_session_ends_in_the_child_when_the_statement_does(void)
{
    struct process *app = start_app();
    struct client *client = enter(app);
    assert_string_equal(client_ask(client, "pid = os.fork()"), "");
    assert_string_equal(client_ask(client, "os.waitpid(pid, 0) == (pid, 0)"), "True\n");
    assert_string_equal(client_ask(client, "40 + 2"), "42\n");
}

static void
fork_in_a_session_prints_to_the_app_s_stdout_in_the_child(void)
{
    struct process *app = start_app();
    struct client *client = enter(app);
    client_send(client, "if os.fork() == 0: print('in the child')\n\n");
    wait_for_text(app, OUT, "in the child\n", DEADLINE);
    client_wait_for(client, "... >>> ");
    assert_string_equal(client_ask(client, "os.wait()[1]"), "0\n");
    assert_not_contains(client->text.data, "in the child\n");
}

static void
fork_in_a_session_may_end_as_it_likes(void)
{
    struct client *client = enter(start_app());
    client_ask(client, "pid = os.fork() or os._exit(7)");
    assert_string_equal(client_ask(client, "os.waitpid(pid, 0)[1] >> 8"), "7\n");
}

static void
child_forked_in_a_session_leaves_no_socket(void)
{
    struct process *app = start_target(TARGET("reinstall_delay=0"));
    struct client *client = enter(app);
    client_ask(client, "pid = os.fork() or any(iter(lambda: "
                       "os.path.exists(f'/tmp/manhole-{os.getpid()}'), True))");
    const char *pid = client_ask(client, "pid");
    assert_string_equal(client_ask(client, "os.waitpid(pid, 0)[1]"), "0\n");
    assert_no_path(socket_path_of((pid_t)strtol(pid, NULL, 10)));
}

static void
console_that_cannot_begin_tells_its_client_why(void)
{
    struct process *app = start_target(
        "class Names:\n"
        "    def __getitem__(self, name): pass\n"
        "    def keys(self): raise ValueError('no names')\n" TARGET("locals=Names()"));
    assert_matches(client_read_until_eof(connect_to(app)),
                   "^manhole: REPL failed with ValueError\\('no names'\\)\\.$");
}

int
main(void)
{
    static const struct test_case tests[] = {
        TEST(greeting_is_as_ever_to_the_byte),
        TEST(greeting_tells_name_kernel_id_and_wait_of_each_thread),
        TEST(frame_without_source_is_a_header_alone),
        TEST(dump_shows_names_in_any_script),
        TEST(dump_stacktraces_of_a_session_goes_to_its_client_alone),
        TEST(console_answers_as_python_s_own),
        TEST(block_is_prompted_for_and_run_at_its_end),
        TEST(ending_a_session_ends_it_alone),
        TEST(end_of_input_ends_the_session_as_in_any_console),
        TEST(piped_input_is_answered_to_its_end),
        TEST(input_reads_from_the_client),
        TEST(pdb_works_in_a_session),
        TEST(app_reads_its_own_input_while_a_client_is_in),
        TEST(print_of_the_app_reaches_all_clients_and_its_own_stdout_once),
        TEST(thread_of_the_app_is_seen_by_clients),
        TEST(output_of_a_session_reaches_its_client_alone),
        TEST(names_of_a_session_are_its_own),
        TEST(sessions_may_be_in_the_middle_of_blocks_at_once),
        TEST(output_of_a_session_is_a_text_file_that_is_no_terminal),
        TEST(streams_are_the_app_s_own_to_its_other_threads),
        TEST(write_that_the_app_replaces_calls_the_one_before),
        TEST(wrapper_of_a_session_s_buffer_serves_the_app_too),
        TEST(stream_of_a_session_is_reconfigured_without_effect),
        TEST(typed_input_is_a_file_with_name_and_mode),
        TEST(text_of_the_app_that_is_no_unicode_is_shown_escaped),
        TEST(app_without_std_streams_can_be_entered),
        TEST(app_without_stderr_is_told_that_it_writes_no_text),
        TEST(session_leaves_sys_and_builtins_as_they_were),
        TEST(streams_are_the_app_s_again_after_the_last_client),
        TEST(stream_that_the_app_has_set_meanwhile_is_left_alone),
        TEST(session_prints_to_its_client_whatever_stream_the_app_sets),
        TEST(stream_kept_from_a_session_s_time_serves_its_owner_on),
        TEST(underscore_is_the_session_s_own),
        TEST(value_is_shown_before_what_its_line_does_next),
        TEST(what_a_value_replaces_prints_behind_it),
        TEST(lines_typed_ahead_have_each_its_value_and_prompt),
        TEST(compiler_warns_of_a_line_once),
        TEST(displayhook_of_the_app_is_the_app_s),
        TEST(displayhook_that_a_client_sets_shows_its_values),
        TEST(excepthooks_of_the_app_hear_nothing_of_a_session),
        TEST(prompt_is_not_put_into_sys),
        TEST(switch_interval_is_never_touched),
        TEST(threading_forgets_a_session),
        TEST(fork_in_a_session_ends_in_the_child_when_the_statement_does),
        TEST(fork_in_a_session_prints_to_the_app_s_stdout_in_the_child),
        TEST(fork_in_a_session_may_end_as_it_likes),
        TEST(child_forked_in_a_session_leaves_no_socket),
        TEST(console_that_cannot_begin_tells_its_client_why),
    };
    return RUN_TESTS(tests);
}
