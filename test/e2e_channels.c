/* e2e_channels.c - what a client's calling card can ask for instead of a console. */
#include "support.h"

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define BANNER "(ManholeConsole)"
#define DUMP_END "#############################################\n\n\n"

/* Keeps the GIL until its stdin has a byte, says so, stays. */
#define HOLD_GIL                                                                         \
  "import ctypes, threading\n"                                                           \
  "library = ctypes.PyDLL(None)\n"                                                       \
  "byte = ctypes.create_string_buffer(1)\n"                                              \
  "def hold(): library.read(0, byte, 1)\n" READY "hold()\n"                              \
  "print('released', flush=True)\n" STAY

static struct process *
start_ready(const char *program)
{
    struct process *app = start_target(program);
    wait_until_ready(app);
    return app;
}

/* It says that it is ready just before it keeps the GIL. */
static struct process *
start_stuck(const char *program)
{
    struct process *app = start_ready(program);
    wait_until_asleep(app->pid);
    return app;
}

static struct process *
start_holder(void)
{
    return start_stuck(INSTALL("hang_timeout=0.2") HOLD_GIL);
}

/* Connects with the calling card of one run of manhole-cli, of which no two are the same. */
static struct client *
connect_wishing(const struct process *app, const char *wish)
{
    static int number;
    const char *card =
        format_text("manhole-cli/%ld.7/%s.%d", (long)getpid(), wish, ++number);
    return connect_as(socket_path_of(app->pid), card);
}

/* ---- quiet ------------------------------------------------------------------------- */

static void
quiet_console_begins_with_its_banner(void)
{
    struct process *app = start_ready(TARGET(""));
    struct client *client = connect_wishing(app, "quiet");
    assert_not_contains(client_wait_for(client, ">>> "), "ThreadID");
    assert_string_equal(client_ask(client, "6 * 7"), "42\n");
}

static void
quiet_console_of_a_stuck_process_says_why_without_stacks(void)
{
    struct process *app = start_holder();
    struct client *client = connect_wishing(app, "quiet");
    const char *told = client_wait_for(client, "as soon as Python answers.\n");
    assert_contains(told, "Python has not answered");
    assert_not_contains(told, "ThreadID");
    write_stdin(app, "x");
    assert_not_contains(client_wait_for(client, ">>> "), "ThreadID");
}

static void
unknown_wish_gets_the_console_with_stacks(void)
{
    struct process *app = start_ready(TARGET(""));
    struct client *client = connect_wishing(app, "nonsense");
    client_wait_for(client, DUMP_END);
    client_wait_for(client, ">>> ");
}

/* ---- stacks ------------------------------------------------------------------------ */

static void
stacks_are_the_dump_alone(void)
{
    struct process *app =
        start_ready(INSTALL("") "import os\ndef main_works():\n    " READY
                                "    while os.read(0, 9): pass\n"
                                "main_works()\n");
    struct client *client = connect_wishing(app, "stacks");
    const char *dump = client_read_until_eof(client);
    assert_matches(dump, "^######### ProcessID=[0-9]+, ThreadID=[0-9]+ #########$");
    assert_contains(dump, ", in main_works\n");
    assert_string_equal(dump + strlen(dump) - strlen(DUMP_END), DUMP_END);
    assert_not_contains(dump, BANNER);
    assert_not_contains(dump, ">>>");
}

static void
stacks_of_a_stuck_process_come_from_the_frozen_copy(void)
{
    struct process *app = start_holder();
    struct client *client = connect_wishing(app, "stacks");
    const char *dump = client_read_until_eof(client);
    assert_matches(dump, "^manhole: Python has not answered for 0.2 s, since .* UTC: ");
    assert_contains(dump, ", in hold\n");
    assert_not_contains(dump, "as soon as Python answers");
    write_stdin(app, "x");
    wait_for_text(app, OUT, "released\n", DEADLINE);
}

/* However often one asks: neither threads nor sessions pile up behind the GIL. */
static void
stuck_process_shows_its_stacks_again_and_again(void)
{
    struct process *app =
        start_stuck(INSTALL("hang_timeout=0.05, max_sessions=1") HOLD_GIL);
    for (int i = 0; i < 40; i++) {
        struct client *client = connect_wishing(app, "stacks");
        assert_contains(client_read_until_eof(client), ", in hold\n");
        client_close(client);
    }
    assert_true(count_threads(app->pid) < 10);
    write_stdin(app, "x");
    wait_for_text(app, OUT, "released\n", DEADLINE);
    assert_contains(client_read_until_eof(connect_wishing(app, "stacks")), DUMP_END);
}

static void
stacks_come_beside_as_many_consoles_as_there_may_be(void)
{
    struct process *app = start_ready(TARGET("max_sessions=1"));
    struct client *console = connect_to(app);
    client_wait_for(console, ">>> ");
    assert_contains(client_read_until_eof(connect_wishing(app, "stacks")), DUMP_END);
    assert_contains(client_read_until_eof(connect_to(app)), "manhole: 1 clients");
}

static void
side_channels_are_bounded_and_take_no_place_of_a_console(void)
{
    struct process *app = start_ready(TARGET("max_sessions=1"));
    for (int i = 0; i < 16; i++) {
        connect_wishing(app, "complete"); /* and does not send a line */
    }
    assert_contains(client_read_until_eof(connect_wishing(app, "stacks")),
                    "manhole: 16 clients are connected already");
    client_wait_for(connect_to(app), ">>> ");
}

static void
stacks_come_whatever_the_connection_handler(void)
{
    struct process *app = start_ready(TARGET("connection_handler='exec'"));
    assert_contains(client_read_until_eof(connect_wishing(app, "stacks")), DUMP_END);
}

/* ---- json -------------------------------------------------------------------------- */

/* Reads a document to its end and has Python load it, which is strict, and look at it. Returns what
 * that printed. */
static const char *
look_at_json(struct client *client, const char *code)
{
    const char *out = NULL;
    const char *err = NULL;
    const char *program =
        format_text("import json, sys\ndocument = json.load(sys.stdin)\n"
                    "threads = {t['name']: t for t in document['threads']}\n"
                    "%s\n",
                    code);
    int status = run_command(LIST(python(), "-c", program), client_read_until_eof(client),
                             &out, &err);
    assert_string_equal(err, "");
    assert_int_equal(status, 0);
    return out;
}

/* A file with a name and a line that JSON has to escape. */
#define ODD_FILE                                                                         \
  "import linecache, sys, threading\n"                                                   \
  "name = 'odd \\\\ \\\" \\t \\u20ac \\udcff.py'\n"                                      \
  "source = 'def odd(stop):\\n    stop.wait()  # \\\\ \\\" \\x7f \\u20ac \\ud800\\n'\n"  \
  "linecache.cache[name] = len(source), None, source.splitlines(True), name\n"           \
  "stop = threading.Event()\n"                                                           \
  "exec(compile(source.replace('\\ud800', ''), name, 'exec'))\n"                         \
  "threading.Thread(target=odd, args=(stop,), name='t \\\" \\udcff', "                   \
  "daemon=True).start()\n"

static void
json_tells_threads_with_their_frames(void)
{
    require_gil();
    struct process *app = start_ready(INSTALL("") ODD_FILE READY STAY);
    wait_until_asleep(app->pid);
    const char *seen = look_at_json(
        connect_wishing(app, "json"),
        "odd = threads['t \\\" \\\\udcff']\n"
        "main = threads['MainThread']\n"
        "print(document['pid'], document['source'], document['python'], 'note' in "
        "document)\n"
        "print(sorted(odd) == sorted('id native_id name state waits_in holds_gil "
        "daemon frames'.split()))\n"
        "print(odd['daemon'], main['daemon'], odd['holds_gil'], odd['state'])\n"
        "print(main['native_id'], type(odd['id']).__name__)\n"
        "print(main['waits_in'], odd['frames'][0]['qualname'], document['version'])\n"
        "frame = [f for f in odd['frames'] if f['function'] == 'odd'][0]\n"
        "print(sorted(frame), frame['line'])\n"
        "print(ascii(frame['file']), ascii(frame['source']))\n"
        "print(main['frames'][0]['function'], len(main['frames'][0]['source']) > 5)\n"
        "print(odd['frames'][0]['function'])");
    assert_contains(seen, format_text("%ld attached 3.", (long)app->pid));
    assert_matches(seen, " False\nTrue\nTrue False False (sleeping|running)\n");
    assert_contains(seen, format_text("%ld int\n", (long)app->pid));
    assert_matches(seen, "^read (Thread._bootstrap|None) 1$");
    assert_contains(seen, "['file', 'function', 'line', 'qualname', 'source'] 2\n");
    assert_contains(seen, "'odd \\\\ \" \\t \\u20ac \\\\udcff.py' ");
    assert_contains(seen, "'stop.wait()  # \\\\ \" \\x7f \\u20ac \\\\ud800'\n");
    assert_contains(seen, "<module> True\n_bootstrap\n");
}

static void
json_of_a_stuck_process_comes_from_the_frozen_copy(void)
{
    require_gil();
    struct process *app = start_holder();
    const char *seen = look_at_json(
        connect_wishing(app, "json"),
        "main = threads['MainThread']\n"
        "print(document['pid'], document['source'], 'note' in document)\n"
        "print(main['native_id'], main['daemon'], main['holds_gil'], main['state'])\n"
        "print([f['function'] for f in main['frames']], main['frames'][0]['source'])");
    assert_contains(seen, format_text("%ld frozen copy False\n", (long)app->pid));
    assert_contains(seen, format_text("%ld None True sleeping\n", (long)app->pid));
    assert_contains(seen, "['<module>', 'hold'] hold()\n");
    write_stdin(app, "x");
    wait_for_text(app, OUT, "released\n", DEADLINE);
}

static void
json_says_when_there_is_no_frozen_copy(void)
{
    struct process *app = start_stuck(INSTALL(
        "hang_timeout=0.2") "import signal\n"
                            "for signum in range(signal.SIGRTMIN, signal.SIGRTMAX + 1):\n"
                            "    signal.signal(signum, signal.SIG_IGN)\n" HOLD_GIL);
    assert_contains(look_at_json(connect_wishing(app, "json"), "print(document['note'])"),
                    "No frozen copy of the process can be made");
    write_stdin(app, "x");
    wait_for_text(app, OUT, "released\n", DEADLINE);
}

/* ---- complete ---------------------------------------------------------------------- */

static const char *
complete(const struct process *app, const char *line)
{
    struct client *client = connect_wishing(app, "complete");
    client_send(client, line);
    return client_read_until_eof(client);
}

static struct client *
console_with_names(const struct process *app)
{
    struct client *console = connect_wishing(app, "repl");
    client_wait_for(console, ">>> ");
    client_ask(console, "alpha_one = alpha_two = 'x'");
    client_ask(console, "alpha_call = lambda x: exit()");
    return console;
}

static void
names_of_the_console_with_the_same_id_are_completed(void)
{
    static const struct {
        const char *line;
        const char *matches;
    } rows[] = {
        {"alpha_o\n", "alpha_one\n"},
        {"alpha_c\n", "alpha_call(\n"},
        {"alpha_one.isasc\n", "alpha_one.isascii("},
        {"os.path.__na\n", "os.path.__name__\n"},
        {"nowhere\n", ""},
        {"nowhere.x\n", ""},
        {"alpha_call(1).\n", ""},
        {"\n", ""},
        {" \t\n", ""},
        {"\xff\n", ""},
        {"h\xc3\xa9\n", ""},
        {"((((\n", ""},
    };
    struct process *app = start_ready(TARGET(""));
    struct client *console = console_with_names(app);
    for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
        const char *matches = complete(app, rows[i].line);
        assert_int_equal(strncmp(matches, rows[i].matches, strlen(rows[i].matches)), 0);
        assert_true(rows[i].matches[0] != '\0' || matches[0] == '\0');
    }
    assert_contains(complete(app, "alpha_\n"), "alpha_one\n");
    assert_string_equal(client_ask(console, "'readline' in sys.modules"), "False\n");
}

/* What the names stand for; whatever of it runs to complete a line says so. */
static const char completable[] =
    "import functools, os, sys\n"
    "os.makedirs('directory')\n"
    "os.makedirs('not_imported/inner')\n"
    "for name in ('directory/one.txt', 'directory/two.txt', 'not_imported/__init__.py',\n"
    "             'not_imported/inner/__init__.py', 'not_imported/inner/deepest.py'):\n"
    "    open(name, 'w').write('print(\"has run\")')\n"
    "class Thing:\n"
    "    __slots__ = ('slot', '__dict__')\n"
    "    def __init__(self, size=1, *, sizable=2): pass\n"
    "    def method(self): pass\n"
    "    @property\n"
    "    def prop(self): print('has run'); return sys\n"
    "    @functools.cached_property\n"
    "    def cached(self): print('has run'); return sys\n"
    "    def __getattr__(self, name): print('has run'); raise AttributeError(name)\n"
    "class Lazy(Thing):\n"
    "    __class__ = property(lambda self: print('has run'))\n"
    "def find(kind, /, kindred, *rest, kinder=1): pass\n"
    "thing = Thing()\n"
    "thing.slot = thing.own = sys\n"
    "thing.lazy = Lazy()\n"
    "keys = {'alpha': 1, 'alpine': 2, 'quo\"te': 3, 'new\\nline': 4, 5: 6}\n";

static void
lines_are_completed_by_what_may_stand_there(void)
{
    /* The line, then all that it may become. */
    static const char *const rows[][2] = {
        /* names of files */
        {"open('dir", "open('directory/"},
        {"open('directory/", "open('directory/one.txt'\nopen('directory/two.txt'"},
        {"x = open(\"directory/on", "x = open(\"directory/one.txt\""},
        {"f('''directory/tw", "f('''directory/two.txt'''"},
        {"open('nowhere/", ""},
        {"# 'dir", ""},
        /* keys */
        {"keys['al", "keys['alpha']\nkeys['alpine']"},
        {"1 + keys[ \"alpi", "1 + keys[ \"alpine\"]"},
        {"keys[\"quo", ""},
        {"keys['new", ""},
        {"thing.keys['", ""},
        {"os.environ['PAT", "os.environ['PATH']"},
        /* modules */
        {"import not_imp", "import not_imported"},
        {"import os, not_imp", "import os, not_imported"},
        {"x = 1; import not_imp", "x = 1; import not_imported"},
        {"import json.dec", "import json.decoder"},
        {"import os.pa", "import os.path"},
        {"from xml import d", "from xml import dom"},
        {"from xml.dom.minido", "from xml.dom.minidom"},
        {"from not_imported.inner import ", "from not_imported.inner import deepest"},
        {"from os import pathc",
         "from os import pathconf\nfrom os import pathconf_names"},
        {"from os import (sep, pathse", "from os import (sep, pathsep"},
        {"from os imp", "from os import "},
        {"import os a", "import os as "},
        {"from os import path cl", ""},
        /* keywords where they can stand, names everywhere */
        {"whi", "while "},
        {"if 1: whi", "if 1: while "},
        {"x = 1; whi", "x = 1; while "},
        {"x = whi", ""},
        {"f(whi", ""},
        {"{1: whi", ""},
        {"lambda: whi", ""},
        {"x whi", ""},
        {"def whi", ""},
        {"return Tru", "return True"},
        {"x if y els", "x if y else "},
        {"x Tru", ""},
        {"p keys", "p keys"},
        {"'a;b' + thin", "'a;b' + thing"},
        /* attributes, of which none is asked for its value */
        {"thing.",
         "thing.cached\nthing.lazy\nthing.method(\nthing.own\nthing.prop\nthing.slot"},
        {"thing.slot.getrec", "thing.slot.getrecursionlimit("},
        {"x = thing.own.getrec", "x = thing.own.getrecursionlimit("},
        {"thing.method.__func", ""},
        {"thing.prop.getrec", ""},
        {"thing.cached.getrec", ""},
        {"thing.nothing.getrec", ""},
        {"thing.prop['", ""},
        {"thing.lazy.ow", ""},
        {"'text'.low", ""},
        {"f().rea", ""},
        {"12.rea", ""},
        /* names of the application's __main__, and what functions call their arguments */
        {"Laz", "Lazy("},
        {"Lazy.meth", "Lazy.method("},
        {"find(kind", "find(kinder=\nfind(kindred="},
        {"find((1, '('), ", "find((1, '('), kinder=\nfind((1, '('), kindred="},
        {"x = 1 + find(f(2), kinde", "x = 1 + find(f(2), kinder="},
        {"find(kinder=kinde", ""},
        {"find(1)(kinde", ""},
        {"find[(kinde", ""},
        {"Thing(siz", "Thing(sizable=\nThing(size="},
        {"sorted(keys, ", "sorted(keys, key=\nsorted(keys, reverse="},
        {"thing.prop(siz", ""},
    };
    struct process *app = start_ready(format_text(
        "import os, sys; os.chdir(r'%s'); sys.path.insert(0, '')\n%s", test_path(""),
        format_text("%s%s", completable,
                    INSTALL("locals={'thing': thing, 'keys': keys}") READY STAY)));
    struct client *console = console_with_names(app);
    for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
        const char *matches = complete(app, format_text("%s\n", rows[i][0]));
        const char *right = rows[i][1][0] == '\0' ? "" : format_text("%s\n", rows[i][1]);
        if (strcmp(matches, right) != 0) {
            fail_msg("%s becomes %s", rows[i][0], matches);
        }
    }
    assert_string_equal(client_ask(console, "'not_imported' in sys.modules"), "False\n");
    assert_not_contains(text_of(app, OUT), "has run");
    assert_not_contains(console->text.data, "has run");
}

static void
completion_goes_on_while_the_console_computes(void)
{
    struct process *app = start_ready(TARGET("max_sessions=1"));
    struct client *console = console_with_names(app);
    client_send(console, "alpha_new = 0\n"
                         "while True: alpha_new or print('u' + 'p'); alpha_new = 1\n\n");
    client_wait_for(console, "up\n");
    assert_string_equal(complete(app, "alpha_t\n"), "alpha_two\n");
    assert_string_equal(client_read_until_eof(connect_wishing(app, "interrupt")),
                        "interrupted\n");
    client_wait_for(console, "KeyboardInterrupt\n>>> ");
}

/* Its session has imported modules, which is watched, and has ended. */
static void
completion_that_is_over_passes_for_no_hang(void)
{
    struct process *app = start_ready(TARGET("hang_timeout=0.1"));
    struct client *console = console_with_names(app);
    assert_string_equal(complete(app, "alpha_o\n"), "alpha_one\n");
    client_ask(console, "import time; time.sleep(0.3)");
    assert_string_equal(complete(app, "alpha_t\n"), "alpha_two\n");
    assert_contains(
        look_at_json(connect_wishing(app, "json"), "print(document['source'])"),
        has_gil() ? "attached\n" : "frozen copy\n"); /* where all looks are such */
}

static void
completion_of_an_unknown_id_is_empty(void)
{
    struct process *app = start_ready(TARGET("locals={'alpha': 1}"));
    struct client *console = connect_to(app);
    client_wait_for(console, ">>> ");
    assert_string_equal(complete(app, "alp\n"), "");
}

static void
matches_are_many_but_bounded_and_differ(void)
{
    struct process *app = start_ready(TARGET(""));
    struct client *console = console_with_names(app);
    client_ask(console, "globals().update({'beta%d' % i: i for i in range(900)})");
    client_ask(console, "globals()['beta\\nx'] = 1");
    size_t lines = 0;
    for (const char *next = complete(app, "beta\n"); *next != '\0'; next++) {
        lines += *next == '\n';
    }
    assert_int_equal(lines, 500);
}

static void
what_is_no_line_is_not_completed(void)
{
    struct process *app = start_ready(TARGET(""));
    struct client *console = console_with_names(app);
    char line[6000] = "";
    memset(line, 'a', sizeof(line) - 1);
    assert_string_equal(complete(app, line), "");
    struct client *client = connect_wishing(app, "complete");
    client_send(client, "alpha_o");
    client_shutdown_write(client);
    assert_string_equal(client_read_until_eof(client), "");
    assert_string_equal(client_ask(console, "6 * 7"), "42\n");
}

static bool
has_one_thread_less_than(void *argument)
{
    const long *now = argument;
    return count_threads((pid_t)now[0]) < now[1];
}

/* The property never returns: its client gives up, and that ends it. */
static void
completion_that_hangs_ends_with_its_client(void)
{
    struct process *app = start_ready(INSTALL("") "class Slow:\n"
                                                  "    def __dir__(self):\n"
                                                  "        print('slow', flush=True)\n"
                                                  "        while True: pass\n"
                                                  "import builtins\n"
                                                  "builtins.alpha = Slow()\n" READY STAY);
    struct client *console = console_with_names(app);
    struct client *client = connect_wishing(app, "complete");
    client_send(client, "alpha.x\n");
    client_wait_for(console, "slow\n");
    long now[] = {app->pid, count_threads(app->pid)};
    client_close(client);
    wait_until(has_one_thread_less_than, now, "the helper has ended", DEADLINE);
}

static bool
has_no_more_threads_than(void *argument)
{
    const long *now = argument;
    return count_threads((pid_t)now[0]) <= now[1];
}

static void
completion_in_a_stuck_process_is_given_up_at_once(void)
{
    struct process *app = start_stuck(INSTALL("hang_timeout=0.05") HOLD_GIL);
    client_read_until_eof(
        connect_wishing(app, "stacks")); /* finds out that it is stuck */
    long now[] = {app->pid, count_threads(app->pid)};
    for (int i = 0; i < 40; i++) {
        assert_string_equal(client_read_until_eof(connect_wishing(app, "complete")), "");
    }
    wait_until(has_no_more_threads_than, now, "the helpers have ended", DEADLINE);
    write_stdin(app, "x");
    wait_for_text(app, OUT, "released\n", DEADLINE);
}

static void
completion_is_not_logged(void)
{
    struct process *app = start_ready(TARGET("audit=False"));
    struct client *console = console_with_names(app);
    rewind_stream(app, ERR);
    wait_for_text(app, ERR, "Accepted connection", DEADLINE);
    size_t length = strlen(text_of(app, ERR));
    assert_string_equal(complete(app, "alpha_o\n"), "alpha_one\n");
    assert_string_equal(client_ask(console, "6 * 7"), "42\n");
    assert_int_equal(strlen(text_of(app, ERR)), length);
}

/* ---- exec -------------------------------------------------------------------------- */

/* What came in the frames of each kind. */
struct result {
    const char *out;
    const char *err;
    const char *status;
    int wishes; /* for input */
};

static void
append_payload(const char **text, const char *payload, size_t length)
{
    *text = format_text("%s%.*s", *text, (int)length, payload);
}

/* Reads frames to the end of the connection; anything else fails the test. */
static struct result
read_result(struct client *client)
{
    struct result result = {"", "", "", 0};
    client_read_until_eof(client);
    const unsigned char *next = (const unsigned char *)client->text.data;
    size_t left = client->text.length;
    while (left > 0) {
        assert_true(left >= 5);
        size_t length = (size_t)next[1] << 24 | (size_t)next[2] << 16 |
                        (size_t)next[3] << 8 | next[4];
        assert_true(left >= 5 + length);
        assert_string_equal(result.status, "");
        const char **text = next[0] == 'o'   ? &result.out
                            : next[0] == 'e' ? &result.err
                                             : &result.status;
        assert_non_null(strchr("oexi", next[0]));
        if (next[0] == 'i') {
            result.wishes++;
        }
        else {
            append_payload(text, (const char *)next + 5, length);
        }
        next += 5 + length;
        left -= 5 + length;
    }
    return result;
}

/* Sends a request whose fields, with a NUL behind each but the last, are of this length. */
static void
send_request(struct client *client, const char *fields, size_t length)
{
    const unsigned char head[] = {(unsigned char)(length >> 24),
                                  (unsigned char)(length >> 16),
                                  (unsigned char)(length >> 8), (unsigned char)length};
    client_send_bytes(client, head, sizeof(head));
    client_send_bytes(client, fields, length);
}

/* The source sent as manhole-cli -c does, with two arguments. */
static struct client *
start_program(const struct process *app, const char *source)
{
    static const char arguments[] = "<string>\0-c\0one\0two";
    char request[4096];
    struct client *client = connect_wishing(app, "exec");
    memcpy(request, arguments, sizeof(arguments));
    (void)snprintf(request + sizeof(arguments), sizeof(request) - sizeof(arguments), "%s",
                   source);
    send_request(client, request, sizeof(arguments) + strlen(source));
    return client;
}

static struct result
run_program(const struct process *app, const char *source)
{
    struct client *client = start_program(app, source);
    client_shutdown_write(client);
    return read_result(client);
}

static void
program_has_streams_and_a_status_of_its_own(void)
{
    static const struct {
        const char *source;
        const char *out;
        const char *err;
        const char *status;
    } rows[] = {
        {"print(6 * 7)", "42\n", "", "0"},
        {"", "", "", "0"},
        {"import sys; print('a'); print('b', file=sys.stderr); print('c')", "a\nc\n",
         "b\n", "0"},
        {"import sys; sys.exit(3)", "", "", "3"},
        {"import sys; sys.exit()", "", "", "0"},
        {"import sys; sys.exit('no')", "", "no\n", "1"},
        {"import sys; sys.exit(-1)", "", "", "-1"},
        {"exit(4)", "", "", "4"},
        {"import sys; sys.stdout.buffer.write(b'raw\\n')", "raw\n", "", "0"},
        {"print('h\xc3\xa9', chr(0xdcff))", "h\xc3\xa9 \\udcff\n", "", "0"},
        {"import sys; print(sys.argv)", "['-c', 'one', 'two']\n", "", "0"},
        {"print(__name__, '__file__' in globals())", "__main__ False\n", "", "0"},
        {"import os, sys; print(answer, sys.stdin.read() == '')", "42 True\n", "", "0"},
        {"1\n'shown?'", "", "", "0"},
        {"import sys; sys.displayhook(5)", "5\n", "", "0"},
        {"import os; dump_stacktraces and None", "", "", "0"},
    };
    struct process *app = start_ready(TARGET("locals={'answer': 42}"));
    for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
        struct result result = run_program(app, rows[i].source);
        assert_string_equal(result.out, rows[i].out);
        assert_string_equal(result.err, rows[i].err);
        assert_string_equal(result.status, rows[i].status);
    }
    assert_string_equal(text_of(app, OUT), "ready\n");
}

static void
program_that_raises_has_its_traceback_on_stderr(void)
{
    static const struct {
        const char *source;
        const char *error;
    } rows[] = {
        {"1 / 0", "^  File \"<string>\", line 1, in <module>$"},
        {"1 / 0", "^ZeroDivisionError: division by zero$"},
        {"def f(", "^SyntaxError: "},
        {"raise KeyboardInterrupt", "^KeyboardInterrupt$"},
        {"class E(Exception):\n    def __str__(self): 1 / 0\nraise E",
         "^E: <(exception str|unprintable)"},
    };
    struct process *app = start_ready(TARGET(""));
    for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
        struct result result = run_program(app, rows[i].source);
        assert_matches(result.err, rows[i].error);
        assert_not_contains(result.err, "manhole");
        assert_string_equal(result.out, "");
        assert_string_equal(result.status, "1");
    }
}

static void
program_from_a_file_knows_its_name(void)
{
    static const char request[] = "dir/script.py\0dir/script.py\0print(__file__)\n1 / 0";
    struct process *app = start_ready(TARGET(""));
    struct client *client = connect_wishing(app, "exec");
    send_request(client, request, sizeof(request) - 1);
    struct result result = read_result(client);
    assert_string_equal(result.out, "dir/script.py\n");
    assert_contains(result.err, "File \"dir/script.py\", line 2, in <module>");
}

static void
what_follows_the_program_is_its_stdin(void)
{
    struct process *app = start_ready(TARGET(""));
    struct client *client =
        start_program(app, "import sys\nprint(input('name? '))\nprint(sys.stdin.read())");
    client_send(client, "Ada\nrest\nof it");
    client_shutdown_write(client);
    assert_string_equal(read_result(client).out, "name? Ada\nrest\nof it\n");
}

/* Until it is killed by its stdin: asks the application's main thread what it sees. */
#define ASKED                                                                            \
  INSTALL("")                                                                            \
  "import os, sys\n"                                                                     \
  "sys.argv[:] = ['app', '-x']\n"                                                        \
  "held = sys.argv\n" READY "while os.read(0, 9):\n"                                     \
  "    sys.argv.append('more')\n"                                                        \
  "    print(sys.argv, held is sys.argv, sys.stdout is sys.__stdout__, flush=True)\n"

static void
arguments_and_streams_of_the_application_stay_its_own(void)
{
    struct process *app = start_ready(ASKED);
    struct client *client = start_program(
        app,
        "import sys\nfrom sys import argv\nsys.argv[0] = 'mine'\nprint('up', argv)\n"
        "sys.argv = ['new']\nprint(input(), sys.argv, __import__('argparse')._sys.argv)");
    client_wait_for(client, "up");
    client_wait_for(client, "['mine', 'one', 'two']");
    write_stdin(app, "x");
    wait_for_text(app, OUT, "['app', '-x', 'more'] True", DEADLINE);
    client_send(client, "go\n");
    assert_contains(read_result(client).out, "go ['new'] ['new']\n");
    write_stdin(app, "x");
    wait_for_text(app, OUT, "['app', '-x', 'more', 'more'] True True\n", DEADLINE);
    assert_string_equal(
        run_program(
            app,
            "import sys; print(type(sys).__mro__[1].__name__, len(sys.__dict__['argv']))")
            .out,
        "module 4\n");
    struct client *console = connect_to(app);
    client_wait_for(console, ">>> ");
    assert_string_equal(client_ask(console, "type(sys) is type(os)"), "True\n");
    assert_string_equal(client_ask(console, "sys.argv is sys.__dict__['argv']"),
                        "True\n");
}

static void
programs_run_side_by_side_with_their_own_arguments(void)
{
    static const char first[] = "<string>\0first\0import sys; print(input(), sys.argv)";
    static const char second[] = "<string>\0second\0import sys; print(input(), sys.argv)";
    struct process *app = start_ready(TARGET(""));
    struct client *one = connect_wishing(app, "exec");
    struct client *two = connect_wishing(app, "exec");
    send_request(one, first, sizeof(first) - 1);
    send_request(two, second, sizeof(second) - 1);
    client_send(two, "b\n");
    assert_string_equal(read_result(two).out, "b ['second']\n");
    client_send(one, "a\n");
    assert_string_equal(read_result(one).out, "a ['first']\n");
}

static void
program_hears_nothing_of_the_application(void)
{
    struct process *app = start_ready(INSTALL(
        "") "import os\n" READY "while os.read(0, 9): print('app prints', flush=True)\n");
    struct client *console = connect_to(app);
    client_wait_for(console, ">>> ");
    struct client *client = start_program(app, "print('up')\nprint(input())");
    client_wait_for(client, "up");
    write_stdin(app, "x");
    wait_for_text(app, OUT, "app prints\n", DEADLINE);
    client_wait_for(console, "app prints\n");
    client_send(client, "done\n");
    assert_string_equal(read_result(client).out, "up\ndone\n");
}

static void
errors_of_a_program_are_its_own_without_redirect_stderr(void)
{
    struct process *app = start_ready(TARGET("redirect_stderr=False"));
    struct client *console = connect_to(app);
    client_wait_for(console, ">>> ");
    struct client *client =
        start_program(app, "import sys\nprint('mine', file=sys.stderr)\ninput()");
    client_wait_for(client, "mine");
    client_send(console, "print('app' + 's', file=sys.stderr)\n");
    wait_for_text(app, ERR, "apps\n", DEADLINE);
    client_send(client, "\n");
    assert_string_equal(read_result(client).err, "mine\n");
    assert_string_equal(client_ask(console, ""), "");
    assert_not_contains(text_of(app, ERR), "mine");
}

static void
running_program_is_interrupted_by_its_id(void)
{
    struct process *app = start_ready(TARGET(""));
    struct client *client = start_program(app, "print('up')\nwhile True: pass");
    client_wait_for(client, "up");
    assert_string_equal(client_read_until_eof(connect_wishing(app, "interrupt")),
                        "interrupted\n");
    struct result result = read_result(client);
    assert_matches(result.err, "^KeyboardInterrupt$");
    assert_string_equal(result.status, "1");
}

static void
program_of_a_vanished_client_is_interrupted(void)
{
    struct process *app = start_ready(TARGET(""));
    /* Its print() has come back when it computes: that would fail as well. */
    struct client *client =
        start_program(app, "import os\ntry:\n    print('up')\n"
                           "    os.write(1, b'computes\\n')\n    while True: pass\n"
                           "finally: os.write(1, b'interrupted\\n')");
    wait_for_text(app, OUT, "computes\n", DEADLINE);
    client_close(client);
    wait_for_text(app, OUT, "interrupted\n", DEADLINE);
    assert_string_equal(run_program(app, "print(1)").out, "1\n");
}

static void
stalled_client_of_a_program_stops_nobody_else(void)
{
    struct process *app = start_ready(
        INSTALL("") "import os\n" READY
                    "while os.read(0, 9): print('app goes on', flush=True)\n");
    struct client *client =
        start_program(app, "print('up')\nwhile True: print('x' * 100000)");
    client_wait_for(client, "up");
    write_stdin(app, "x");
    wait_for_text(app, OUT, "app goes on\n", DEADLINE);
    assert_string_equal(run_program(app, "print(1)").out, "1\n");
    client_close(client);
    close_stdin(app);
    assert_int_equal(wait_for_exit(app, DEADLINE), 0);
}

static bool
has_four_threads(void *argument)
{
    return count_threads(((struct process *)argument)->pid) == 4;
}

/* From 3.15 on also where a program waits for its client to read. */
static void
interrupt_cuts_no_frame(void)
{
    struct process *app = start_ready(TARGET(""));
    struct client *console = connect_wishing(app, "repl");
    client_wait_for(console, ">>> ");
    struct client *client = start_program(
        app, "import sys\nprint('up')\nsys.printed = 0\nwhile sys.printed < 999:\n"
             "    print('x' * 100000)\n    sys.printed += 1");
    client_wait_for(client, "up");
    client_ask(console, "import sys");
    const char *before = "";
    const char *printed = client_ask(console, "sys.printed");
    while (strcmp(printed, before) != 0) {
        watch_for(50);
        before = printed;
        printed = client_ask(console, "sys.printed");
    }
    assert_string_equal(client_read_until_eof(connect_wishing(app, "interrupt")),
                        "interrupted\n");
    wait_until(has_four_threads, app, "the interrupter has done its work", DEADLINE);
    struct result result = read_result(client);
    assert_matches(result.err, "^KeyboardInterrupt$");
    assert_string_equal(result.status, "1");
}

static void
large_output_arrives_whole(void)
{
    struct process *app = start_ready(TARGET(""));
    struct result result = run_program(app, "print('x' * 500000)");
    assert_int_equal(strlen(result.out), 500001);
    assert_string_equal(result.status, "0");
}

static void
subprocess_on_framed_stdout_is_refused(void)
{
    struct process *app = start_ready(TARGET(""));
    struct result result = run_program(app, "import io\ntry: sys.stdout.fileno()\nexcept "
                                            "io.UnsupportedOperation: print('no')");
    assert_string_equal(result.out, "no\n");
}

static void
what_is_no_program_is_refused(void)
{
    static const struct {
        const char *bytes;
        size_t length;
        const char *answer;
    } rows[] = {
        {"", 0, "manhole: no program came\n"},
        {"\0\0", 2, "manhole: no program came\n"},
        {"\0\0\1\0x\0", 6, "manhole: only a part of the program came\n"},
        {"\0\0\0\3abc", 7, "manhole: the program has no file name\n"},
        {"\0\0\0\0", 4, "manhole: the program has no file name\n"},
        {"\1\0\0\1", 4, "manhole: the program is larger than 16 MiB\n"},
        {"print(1)\n", 9, "manhole: the program is larger than 16 MiB\n"},
    };
    struct process *app = start_ready(TARGET(""));
    for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
        struct client *client = connect_wishing(app, "exec");
        client_send_bytes(client, rows[i].bytes, rows[i].length);
        client_shutdown_write(client);
        assert_string_equal(client_read_until_eof(client), rows[i].answer);
    }
    assert_string_equal(run_program(app, "print(1)").out, "1\n");
}

static void
program_is_one_of_max_sessions(void)
{
    struct process *app = start_ready(TARGET("max_sessions=1"));
    struct client *client = start_program(app, "print('up')\ninput()");
    client_wait_for(client, "up");
    assert_contains(client_read_until_eof(connect_wishing(app, "exec")),
                    "manhole: 1 clients");
}

static void
program_in_a_oneshot_runs_in_the_main_thread(void)
{
    struct process *app =
        start_ready(INSTALL("oneshot_on='USR1'") "import time, threading\n" READY
                                                 "while True: time.sleep(0.01)\n");
    send_signal(app, SIGUSR1);
    wait_for_path(socket_path_of(app->pid), DEADLINE);
    struct result result =
        run_program(app, "import sys, threading\n"
                         "print(threading.current_thread() is threading.main_thread())\n"
                         "print(sys.argv)\nsys.exit(3)");
    assert_string_equal(result.out, "True\n['-c', 'one', 'two']\n");
    assert_string_equal(result.status, "3");
    wait_for_no_path(socket_path_of(app->pid), DEADLINE);
    send_signal(app, SIGUSR1);
    wait_for_path(socket_path_of(app->pid), DEADLINE);
    assert_contains(client_read_until_eof(connect_wishing(app, "stacks")), DUMP_END);
    send_signal(app, SIGTERM);
    assert_int_equal(wait_for_exit(app, DEADLINE), -SIGTERM);
}

/* The child has neither the client nor what was made for the program. */
static void
program_may_fork(void)
{
    struct process *app = start_ready(TARGET("patch_fork=False"));
    struct result result = run_program(
        app, "import os, sys\n"
             "pid = os.fork()\n"
             "if pid == 0:\n"
             "    print('child', type(sys) is type(os), sys.argv == ['-c'], flush=True)\n"
             "    os._exit(5)\n"
             "print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), sys.argv[0])");
    assert_string_equal(result.out, "5 -c\n");
    assert_string_equal(result.status, "0");
    wait_for_text(app, OUT, "child True False\n", DEADLINE);
}

/* At exit the application tells its client nothing that would look like an end of the program. */
static void
program_that_the_application_ends_has_no_status(void)
{
    struct process *app = start_ready(TARGET("daemon_connection=True"));
    struct client *client = start_program(app, "print('up')\nwhile True: pass");
    client_wait_for(client, "up");
    close_stdin(app);
    assert_int_equal(wait_for_exit(app, DEADLINE), 0);
    assert_string_equal(read_result(client).status, "");
}

int
main(void)
{
    static const struct test_case tests[] = {
        TEST(quiet_console_begins_with_its_banner),
        TEST(quiet_console_of_a_stuck_process_says_why_without_stacks),
        TEST(unknown_wish_gets_the_console_with_stacks),
        TEST(stacks_are_the_dump_alone),
        TEST(stacks_of_a_stuck_process_come_from_the_frozen_copy),
        TEST(stuck_process_shows_its_stacks_again_and_again),
        TEST(stacks_come_beside_as_many_consoles_as_there_may_be),
        TEST(side_channels_are_bounded_and_take_no_place_of_a_console),
        TEST(stacks_come_whatever_the_connection_handler),
        TEST(json_tells_threads_with_their_frames),
        TEST(json_of_a_stuck_process_comes_from_the_frozen_copy),
        TEST(json_says_when_there_is_no_frozen_copy),
        TEST(names_of_the_console_with_the_same_id_are_completed),
        TEST(lines_are_completed_by_what_may_stand_there),
        TEST(completion_goes_on_while_the_console_computes),
        TEST(completion_that_is_over_passes_for_no_hang),
        TEST(completion_of_an_unknown_id_is_empty),
        TEST(matches_are_many_but_bounded_and_differ),
        TEST(what_is_no_line_is_not_completed),
        TEST(completion_that_hangs_ends_with_its_client),
        TEST(completion_in_a_stuck_process_is_given_up_at_once),
        TEST(completion_is_not_logged),
        TEST(program_has_streams_and_a_status_of_its_own),
        TEST(program_that_raises_has_its_traceback_on_stderr),
        TEST(program_from_a_file_knows_its_name),
        TEST(what_follows_the_program_is_its_stdin),
        TEST(arguments_and_streams_of_the_application_stay_its_own),
        TEST(programs_run_side_by_side_with_their_own_arguments),
        TEST(program_hears_nothing_of_the_application),
        TEST(errors_of_a_program_are_its_own_without_redirect_stderr),
        TEST(running_program_is_interrupted_by_its_id),
        TEST(program_of_a_vanished_client_is_interrupted),
        TEST(stalled_client_of_a_program_stops_nobody_else),
        TEST(interrupt_cuts_no_frame),
        TEST(large_output_arrives_whole),
        TEST(subprocess_on_framed_stdout_is_refused),
        TEST(what_is_no_program_is_refused),
        TEST(program_is_one_of_max_sessions),
        TEST(program_in_a_oneshot_runs_in_the_main_thread),
        TEST(program_may_fork),
        TEST(program_that_the_application_ends_has_no_status),
    };
    return RUN_TESTS(tests);
}
