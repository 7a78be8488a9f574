/* system_frameworks.c - gevent, eventlet, asyncio, uvloop, Celery and Django as Debian has them:
 * their loops serve on whatever a client of the manhole does, and can be looked into.
 */
#include "support.h"

#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { MAX_CHILDREN = 16 };

/* ---- Programs with a loop ---------------------------------------------------------- */

/* They serve at the socket "door". To a line "print" they print for a long time from their loop,
 * to "block" they block it in C; to any other they say how often their timer has come. */

/* Threads and sockets as everybody knows them; all of it greenlets once they are patched. */
#define GREEN                                                                            \
  "import ctypes, socket, threading, time\n"                                             \
  "ticks = 0\n"                                                                          \
  "def tick():\n"                                                                        \
  "    global ticks\n"                                                                   \
  "    while True:\n"                                                                    \
  "        time.sleep(0.002)\n"                                                          \
  "        ticks += 1\n"                                                                 \
  "def serve(client):\n"                                                                 \
  "    for line in client.makefile('r'):\n"                                              \
  "        if line == 'print\\n': print('a line of text\\n' * 200000, flush=True)\n"     \
  "        if line == 'block\\n': ctypes.CDLL(None).pause()\n"                           \
  "        client.sendall(b'ticks %d.\\n' % ticks)\n"                                    \
  "def in_background(function, *args):\n"                                                \
  "    threading.Thread(target=function, args=args, daemon=True).start()\n"              \
  "listener = socket.socket(socket.AF_UNIX)\n"                                           \
  "listener.bind('door')\n"                                                              \
  "listener.listen()\n"                                                                  \
  "in_background(tick)\n" READY "while True:\n"                                          \
  "    in_background(serve, listener.accept()[0])\n"

#define GEVENT "import gevent.monkey; gevent.monkey.patch_all()\n"
#define EVENTLET "import eventlet; eventlet.monkey_patch()\n"

/* An error that the loop meets goes to stderr, with a traceback, as ever. */
#define ASYNCIO                                                                          \
  "import asyncio, ctypes\n"                                                             \
  "ticks = 0\n"                                                                          \
  "async def tick():\n"                                                                  \
  "    global ticks\n"                                                                   \
  "    while True:\n"                                                                    \
  "        await asyncio.sleep(0.002)\n"                                                 \
  "        ticks += 1\n"                                                                 \
  "async def serve(reader, writer):\n"                                                   \
  "    async for line in reader:\n"                                                      \
  "        if line == b'print\\n': print('a line of text\\n' * 200000, flush=True)\n"    \
  "        if line == b'block\\n': ctypes.CDLL(None).pause()\n"                          \
  "        writer.write(b'ticks %d.\\n' % ticks)\n"                                      \
  "async def add(one, other):\n"                                                         \
  "    return one + other\n"                                                             \
  "async def main():\n"                                                                  \
  "    global loop\n"                                                                    \
  "    loop = asyncio.get_running_loop()\n"                                              \
  "    ticker = loop.create_task(tick(), name='the ticker')\n"                           \
  "    server = await asyncio.start_unix_server(serve, 'door')\n"                        \
  "    print('ready', flush=True)\n"                                                     \
  "    await server.serve_forever()\n"                                                   \
  "asyncio.run(main())\n"

#define UVLOOP "import uvloop; uvloop.install()\n"

/* eventlet patches what resolves names as well, which takes a second. */
#define QUICK "EVENTLET_NO_GREENDNS=yes"

static const struct framework {
    const char *module; /* that Debian's python must have */
    const char *before; /* the install */
    const char *after;
} gevent_first = {"gevent", GEVENT, GREEN}, gevent_second = {"gevent", "", GEVENT GREEN},
  eventlet_first = {"eventlet", EVENTLET, GREEN},
  eventlet_second = {"eventlet", "", EVENTLET GREEN},
  asyncio_alone = {"asyncio", "", ASYNCIO},
  asyncio_on_uvloop = {"uvloop", UVLOOP, ASYNCIO};

static const struct framework *const frameworks[] = {
    &gevent_first,    &gevent_second, &eventlet_first,
    &eventlet_second, &asyncio_alone, &asyncio_on_uvloop,
};

/* ---- Helpers ----------------------------------------------------------------------- */

static struct process *
start_loop(const struct framework *framework, const char *options)
{
    require_debian_module(framework->module);
    const char *program = format_text("%s" INSTALL("%s") "%s", framework->before, options,
                                      framework->after);
    struct process *app = start_target(program, .debian = true, .env = LIST(QUICK));
    wait_until_ready(app);
    return app;
}

static struct client *
client_at_prompt(pid_t pid)
{
    struct client *client = connect_client(socket_path_of(pid));
    client_wait_for(client, ">>> ");
    return client;
}

/* Looks again until the text is in the stacks. Returns the client that has seen it. */
static struct client *
client_that_sees(pid_t pid, const char *text)
{
    long end_ms = now_ms() + DEADLINE;
    struct client *client = connect_client(socket_path_of(pid));
    while (strstr(client_wait_for(client, ">>> "), text) == NULL) {
        assert_true(now_ms() < end_ms);
        client_close(client);
        client = connect_client(socket_path_of(pid));
    }
    return client;
}

static struct client *
customer_of_the_loop(void)
{
    return connect_client(test_path("door"));
}

static long
ask_for_ticks(struct client *customer)
{
    client_send(customer, "how many?\n");
    client_wait_for(customer, "ticks ");
    return strtol(client_wait_for(customer, "."), NULL, 10);
}

/* Two answers on one connection, another on a new one; meanwhile the timer comes. */
static void
assert_serves(struct client *customer)
{
    long end_ms = now_ms() + DEADLINE;
    long before = ask_for_ticks(customer);
    while (ask_for_ticks(customer) <= before + 2) {
        assert_true(now_ms() < end_ms);
        watch_for(2);
    }
    struct client *other = customer_of_the_loop();
    ask_for_ticks(other);
    client_close(other);
}

static void
assert_no_complaint(struct process *app)
{
    assert_not_contains(text_of(app, ERR), "Traceback");
    assert_not_contains(text_of(app, ERR), "Error");
    /* Of what is deprecated eventlet warns, itself, and CPython since 3.12, os.fork(). */
    static const char deprecated[] = "Deprecation";
    const size_t length = sizeof(deprecated) - 1;
    const char *err = text_of(app, ERR);
    for (const char *at = strstr(err, "Warning"); at != NULL;
         at = strstr(at + 1, "Warning")) {
        assert_true((size_t)(at - err) >= length &&
                    memcmp(at - length, deprecated, length) == 0);
    }
}

/* ---- The loop serves on ------------------------------------------------------------ */

/* Clients that stay, that work for ever, that read nothing though there is much, that vanish. */
static void
assert_serves_whatever_clients_do(const struct framework *framework)
{
    struct process *app = start_loop(framework, "");
    struct client *customer = customer_of_the_loop();
    struct client *staying = client_at_prompt(app->pid);
    assert_serves(customer);
    struct client *working = client_at_prompt(app->pid);
    client_send(working, "while True: pass\n\n");
    assert_serves(customer);
    client_send(customer, "print\n");
    client_wait_for(customer, ".");
    assert_serves(customer);
    client_close(working);
    assert_serves(customer);
    client_close(staying);
    struct client *last = client_at_prompt(app->pid);
    assert_string_equal(client_ask(last, "40 + 2"), "42\n");
    client_close(last);
    assert_serves(customer);
    assert_no_complaint(app);
}

static void
gevent_serves_whatever_clients_do(void)
{
    assert_serves_whatever_clients_do(&gevent_first);
}

static void
gevent_that_patches_after_the_install_serves_whatever_clients_do(void)
{
    assert_serves_whatever_clients_do(&gevent_second);
}

static void
eventlet_serves_whatever_clients_do(void)
{
    assert_serves_whatever_clients_do(&eventlet_first);
}

static void
eventlet_that_patches_after_the_install_serves_whatever_clients_do(void)
{
    assert_serves_whatever_clients_do(&eventlet_second);
}

static void
asyncio_serves_whatever_clients_do(void)
{
    assert_serves_whatever_clients_do(&asyncio_alone);
}

static void
uvloop_serves_whatever_clients_do(void)
{
    assert_serves_whatever_clients_do(&asyncio_on_uvloop);
}

/* ---- The loop is blocked ----------------------------------------------------------- */

static void
assert_seen_where_it_blocks(const struct framework *framework)
{
    struct process *app = start_loop(framework, "");
    struct client *customer = customer_of_the_loop();
    ask_for_ticks(customer);
    client_send(customer, "block\n");
    struct client *client = client_that_sees(app->pid, "CDLL(None).pause()\n");
    assert_string_equal(client_ask(client, "40 + 2"), "42\n");
}

static void
gevent_is_seen_where_its_hub_is_blocked(void)
{
    assert_seen_where_it_blocks(&gevent_first);
}

static void
eventlet_is_seen_where_its_hub_is_blocked(void)
{
    assert_seen_where_it_blocks(&eventlet_second);
}

static void
asyncio_is_seen_where_its_loop_is_blocked(void)
{
    assert_seen_where_it_blocks(&asyncio_alone);
}

static void
uvloop_is_seen_where_its_loop_is_blocked(void)
{
    assert_seen_where_it_blocks(&asyncio_on_uvloop);
}

/* ---- Signals ----------------------------------------------------------------------- */

/* And the next test finds the path free. */
static void
end_loop(struct process *app)
{
    assert_no_complaint(app);
    send_signal(app, SIGTERM);
    assert_int_equal(wait_for_exit(app, DEADLINE), -SIGTERM);
    assert_no_path(socket_path_of(app->pid));
    assert_int_equal(unlink(test_path("door")), 0);
}

static void
signal_opens_the_manhole_of_any_loop(void)
{
    for (size_t i = 0; i < sizeof(frameworks) / sizeof(frameworks[0]); i++) {
        struct process *app = start_loop(frameworks[i], "activate_on='USR1'");
        struct client *customer = customer_of_the_loop();
        assert_serves(customer);
        assert_no_path(socket_path_of(app->pid));
        send_signal(app, SIGUSR1);
        struct client *client = client_at_prompt(app->pid);
        assert_string_equal(client_ask(client, "40 + 2"), "42\n");
        assert_serves(customer);
        end_loop(app);
    }
}

/* Served in the loop's own thread, which waits meanwhile and then goes on. */
static void
oneshot_is_served_by_any_loop(void)
{
    for (size_t i = 0; i < sizeof(frameworks) / sizeof(frameworks[0]); i++) {
        struct process *app = start_loop(frameworks[i], "oneshot_on='USR1'");
        struct client *customer = customer_of_the_loop();
        assert_serves(customer);
        send_signal(app, SIGUSR1);
        struct client *client = client_at_prompt(app->pid);
        client_ask(client, "import __main__");
        long ticks = strtol(client_ask(client, "__main__.ticks"), NULL, 10);
        client_send(customer, "how many?\n");
        assert_int_equal(strtol(client_ask(client, "__main__.ticks"), NULL, 10), ticks);
        client_send(client, "exit()\n");
        client_read_until_eof(client);
        client_wait_for(customer, ".");
        assert_serves(customer);
        end_loop(app);
    }
}

/* ---- At the prompt ----------------------------------------------------------------- */

/* What a patched module does in a session's thread does not touch the loop of the main one. */
static void
assert_green_prompt_works(const struct framework *framework)
{
    struct process *app = start_loop(framework, "");
    struct client *customer = customer_of_the_loop();
    struct client *client = client_at_prompt(app->pid);
    client_ask(client, "import queue, socket, threading, time");
    client_ask(client, "time.sleep(0.001)");
    assert_string_equal(client_ask(client, "threading.Event().wait(0.001)"), "False\n");
    client_ask(client, "q = queue.Queue(); q.put(42)");
    assert_string_equal(client_ask(client, "q.get()"), "42\n");
    client_ask(client, "a, b = socket.socketpair()");
    assert_string_equal(client_ask(client, "a.send(b'ping'); b.recv(9)"), "4\nb'ping'\n");
    client_ask(client, "thread = threading.Thread(target=print, args=['from', 'afar'])");
    assert_string_equal(client_ask(client, "thread.start(); thread.join()"),
                        "from afar\n");
    assert_serves(customer);
    assert_no_complaint(app);
}

static void
prompt_of_gevent_may_wait(void)
{
    assert_green_prompt_works(&gevent_first);
}

static void
prompt_of_eventlet_may_wait(void)
{
    assert_green_prompt_works(&eventlet_first);
}

/* One of theirs would wait for a loop that the session's thread does not have. */
static void
handler_is_given_a_socket_that_nobody_has_patched(void)
{
    static const char handler[] = "connection_handler=lambda client: client.sendall("
                                  "client.recv(9) + type(client).__module__.encode())";
    for (size_t i = 0; i < 4; i++) {
        struct process *app = start_loop(frameworks[i], handler);
        struct client *client = connect_to(app);
        client_send(client, "ping ");
        assert_string_equal(client_read_until_eof(client), "ping socket");
        end_loop(app);
    }
}

/* The stacks show the one that runs; this all the others. */
static void
assert_greenlets_are_seen(const struct framework *framework)
{
    struct process *app = start_loop(framework, "");
    struct client *customer = customer_of_the_loop();
    ask_for_ticks(customer);
    struct client *client = client_at_prompt(app->pid);
    client_ask(client, "import gc, greenlet");
    client_ask(client,
               "all = [g for g in gc.get_objects() if isinstance(g, greenlet.greenlet)]");
    const char *seen = client_ask(
        client, "for g in all: g.gr_frame and traceback.print_stack(g.gr_frame)\n");
    assert_matches(seen, ", in tick$");
    assert_matches(seen, ", in serve$");
    assert_serves(customer);
}

static void
greenlets_of_gevent_are_seen(void)
{
    assert_greenlets_are_seen(&gevent_second);
}

static void
greenlets_of_eventlet_are_seen(void)
{
    assert_greenlets_are_seen(&eventlet_second);
}

static const char *
show(const struct process *app, const char *option)
{
    const char *out = NULL;
    const char *pid = format_text("%d", (int)app->pid);
    assert_int_equal(
        run_command(LIST(build_path("manhole-cli"), pid, option), NULL, &out, NULL), 0);
    return out;
}

static const char *
show_tasks(const struct process *app)
{
    return show(app, "--tasks");
}

/* One that waits has spawned three that wait. */
#define SPAWN                                                                            \
  "import __main__ as app, time\n"                                                       \
  "def leaf(order):\n"                                                                   \
  "    time.sleep(1000)\n"                                                               \
  "def parent():\n"                                                                      \
  "    app.children = [spawn(leaf, order) for order in range(3)]\n"                      \
  "    time.sleep(1000)\n"                                                               \
  "app.oldest = spawn(parent)\n"                                                         \
  "app.oldest.name = 'the parent'\n"                                                     \
  "time.sleep(0.01)\n" READY "time.sleep(1000)\n"

static void
greenlets_of_gevent_are_below_who_spawned_them(void)
{
    static const struct framework spawning = {"gevent", GEVENT,
                                              "from gevent import spawn\n" SPAWN};
    struct process *app = start_loop(&spawning, "");
    const char *seen = show_tasks(app);
    assert_matches(seen,
                   "^######### ProcessID=[0-9]+, Hub in ThreadID=[0-9]+.*, greenlets: ");
    assert_matches(seen, "^    the parent: parent, waiting\n    File: \".*, in parent\n"
                         "(    File: .*\n)*"
                         "        3 greenlets: leaf, waiting: Greenlet at 0x.*\n"
                         "        File: \".*, in leaf\n        File: .*, in sleep$");
    assert_string_equal(show(app, "--greenlets"), seen);
    assert_matches(show(app, "--stacks"),
                   "^######### ProcessID=[0-9]+, greenlets: [0-9]+ #########\n(.*\n)*"
                   "3 x waiting in .*, by leaf at .*: Greenlet at 0x.*, Greenlet at "
                   "0x.*, Greenlet at 0x[0-9a-f]+$");
    struct client *client = client_at_prompt(app->pid);
    assert_matches(client_ask(client, "frame('the parent', -1)"),
                   ", in parent; names: >$");
    client_ask(client, "import __main__ as app");
    assert_string_equal(client_ask(client, "frame(app.children[1], -1).order"), "1\n");
}

static void
greenlets_of_eventlet_are_told_where_they_wait(void)
{
    static const struct framework spawning = {"eventlet", EVENTLET,
                                              "from eventlet import spawn\n" SPAWN};
    struct process *app = start_loop(&spawning, "");
    const char *seen = show_tasks(app);
    assert_matches(seen, "^3 greenlets: main, waiting: GreenThread at 0x.*\n"
                         "File: .*, in main\nFile: .*, in leaf\n");
    assert_matches(
        seen, "^the parent: main, waiting\nFile: .*, in main\nFile: .*, in parent\n");
}

/* A nursery's tasks are below the one whose it is. */
static void
tasks_of_trio_are_below_their_nurserys_own(void)
{
    require_debian_module("trio");
    struct process *app =
        start_target(INSTALL("") "import trio\n"
                                 "async def leaf(): await trio.sleep_forever()\n"
                                 "async def parent():\n"
                                 "    async with trio.open_nursery() as nursery:\n"
                                 "        for _ in range(3): nursery.start_soon(leaf, "
                                 "name='child')\n"
                                 "        await trio.sleep(0.05)\n"
                                 "        print('ready', flush=True)\n"
                                 "trio.run(parent)\n",
                     .debian = true);
    wait_until_ready(app);
    wait_until_asleep(app->pid);
    assert_matches(show_tasks(app),
                   "^######### ProcessID=[0-9]+, trio, thread not known, tasks: [0-9]+ "
                   "#########\n(.*\n)*    __main__.parent: parent, waiting\n"
                   "    File: .*, in parent\n(    File: .*\n)*"
                   "        3 tasks: leaf, waiting: child, child, child\n"
                   "        File: .*, in leaf$");
    assert_matches(show(app, "--stacks"),
                   "^3 x waiting in .*, by leaf at .*: child, child, child$");
    assert_contains(show(app, "--greenlets"), "No greenlet.\n");
}

static bool
has_no_session(void *argument)
{
    const struct process *app = argument;
    return count_threads(app->pid) == 2;
}

/* gevent itself leaves that to the thread. */
static void
gevent_hub_of_a_session_ends_with_it(void)
{
    struct process *app = start_loop(&gevent_first, "");
    int fds = count_fds(app->pid);
    for (int i = 0; i < 3; i++) {
        struct client *client = client_at_prompt(app->pid);
        client_ask(client, "import time; time.sleep(0.001)");
        client_close(client);
        wait_until(has_no_session, app, "the session has ended", DEADLINE);
    }
    assert_int_equal(count_fds(app->pid), fds);
}

static void
assert_loop_works_for_the_prompt(const struct framework *framework)
{
    struct process *app = start_loop(framework, "");
    struct client *customer = customer_of_the_loop();
    ask_for_ticks(customer);
    struct client *client = client_at_prompt(app->pid);
    client_ask(client, "import asyncio, __main__ as app");
    const char *seen = client_ask(
        client, "for task in asyncio.all_tasks(app.loop): task.print_stack()\n");
    assert_matches(seen, "Stack for <Task pending name='the ticker' coro=<tick\\(\\)");
    assert_matches(seen, ", in serve$");
    client_ask(client,
               "sum = asyncio.run_coroutine_threadsafe(app.add(40, 2), app.loop)");
    assert_string_equal(client_ask(client, "sum.result(60)"), "42\n");
    assert_serves(customer);
    assert_no_complaint(app);
}

static void
assert_tasks_are_seen(const struct framework *framework, const char *loop)
{
    struct process *app = start_loop(framework, "");
    ask_for_ticks(customer_of_the_loop());
    const char *seen = show_tasks(app);
    assert_matches(seen, format_text("^######### ProcessID=[0-9]+, %s, ", loop));
    assert_matches(
        seen,
        "^the ticker: tick, (waiting for Future|ready|running)\nFile: .*, in tick$");
    assert_matches(seen, "serve, waiting for Future\nFile: .*, in serve\n(File: .*\n)*"
                         "File: .*streams.py\", line [0-9]+, in _wait_for_data$");
}

static void
tasks_of_asyncio_are_seen(void)
{
    assert_tasks_are_seen(&asyncio_alone, "_UnixSelectorEventLoop in ThreadID=[0-9]+ .*");
}

static void
tasks_of_uvloop_are_seen(void)
{
    assert_tasks_are_seen(&asyncio_on_uvloop, "Loop, thread not known");
}

static void
asyncio_loop_works_for_the_prompt(void)
{
    assert_loop_works_for_the_prompt(&asyncio_alone);
}

static void
uvloop_loop_works_for_the_prompt(void)
{
    assert_loop_works_for_the_prompt(&asyncio_on_uvloop);
}

/* ---- Fork -------------------------------------------------------------------------- */

/* Both fork by a function of their own, which calls the original. */
#define FORK                                                                             \
  "import os, time\n"                                                                    \
  "child = os.fork()\n"                                                                  \
  "if child: print('child', child, flush=True)\n"                                        \
  "while not os.path.exists('go-on'): time.sleep(0.001)\n"                               \
  "if child: os.waitpid(child, 0)\n"

static void
assert_child_answers(const char *module, const char *patch)
{
    require_debian_module(module);
    struct process *app =
        start_target(format_text("%s" INSTALL("reinstall_delay=0.01") FORK, patch),
                     .debian = true, .env = LIST(QUICK));
    wait_for_text(app, OUT, "child ", DEADLINE);
    pid_t child = (pid_t)strtol(wait_for_text(app, OUT, "\n", DEADLINE), NULL, 10);
    struct client *client = client_at_prompt(child);
    assert_string_equal(client_ask(client, "os.getppid()"),
                        format_text("%d\n", app->pid));
    client_ask(client, "import time; time.sleep(0.001)");
    client_close(client);
    write_file("go-on", "");
    assert_int_equal(wait_for_exit(app, DEADLINE), 0);
    assert_no_path(socket_path_of(child));
    assert_no_complaint(app);
}

static void
child_of_gevent_answers(void)
{
    assert_child_answers("gevent", GEVENT);
}

static void
child_of_eventlet_answers(void)
{
    assert_child_answers("eventlet", EVENTLET);
}

/* ---- Django ------------------------------------------------------------------------ */

/* All of a project in one file. */
static const char DJANGO_APP[] = //
    "import os, sys, time\n"
    "from django.conf import settings\n"
    "from django.core.management import execute_from_command_line\n"
    "from django.core.wsgi import get_wsgi_application\n"
    "from django.http import HttpResponse\n"
    "from django.urls import path\n"
    "settings.configure(ROOT_URLCONF=__name__, ALLOWED_HOSTS=['*'], SECRET_KEY='x',\n"
    "                   DEBUG=True, SHOP='open')\n"
    "def a_view(request):\n"
    "    while 'slow' in request.path and not os.path.exists('go-on'):\n"
    "        time.sleep(0.01)\n"
    "    return HttpResponse('hello from %d' % os.getpid())\n"
    "urlpatterns = [path('', a_view), path('slow', a_view)]\n"
    "if __name__ == '__main__':\n"
    "    execute_from_command_line(sys.argv)\n"
    "else:\n"
    "    application = get_wsgi_application()\n";

/* Asks for a page until somebody serves it. */
static struct process *
start_request(int port, const char *page)
{
    static const char program[] = "import sys, time, urllib.request\n"
                                  "end = time.monotonic() + 60\n"
                                  "while True:\n"
                                  "    try:\n"
                                  "        page = urllib.request.urlopen(sys.argv[1])\n"
                                  "        break\n"
                                  "    except OSError:\n"
                                  "        assert time.monotonic() < end\n"
                                  "        time.sleep(0.01)\n"
                                  "print(page.read().decode())\n";
    const char *url = format_text("http://127.0.0.1:%d/%s", port, page);
    return start_target(program, .argv = LIST(url), .env = LIST("no_proxy=*"));
}

/* Returns the number of the process that has served it. */
static pid_t
finish_request(struct process *request)
{
    wait_for_text(request, OUT, "hello from ", DEADLINE);
    return (pid_t)strtol(wait_for_text(request, OUT, "\n", DEADLINE), NULL, 10);
}

/* Where a request hangs, and what is set. */
static void
assert_project_is_seen(pid_t server, int port)
{
    struct process *slow = start_request(port, "slow");
    struct client *client = client_that_sees(server, "in a_view\n");
    client_ask(client, "from django.conf import settings");
    assert_string_equal(client_ask(client, "settings.SHOP"), "'open'\n");
    client_send(client, "exit()\n");
    client_read_until_eof(client);
    write_file("go-on", "");
    assert_int_equal(finish_request(slow), server);
}

/* The reloader and its server; Ctrl-C at the terminal reaches both. */
static void
django_runserver_has_a_manhole_in_both_its_processes(void)
{
    require_debian_module("django");
    int port = free_port();
    const char *app = write_file("app.py", DJANGO_APP);
    struct process *reloader =
        start_process(.argv = LIST(debian_python(), app, "runserver",
                                   format_text("127.0.0.1:%d", port)),
                      .env = LIST("PYTHONMANHOLE="), .debian = true);
    pid_t server = finish_request(start_request(port, ""));
    assert_int_not_equal(server, reloader->pid);
    assert_project_is_seen(server, port);
    struct client *client = client_at_prompt(reloader->pid);
    assert_string_equal(client_ask(client, "os.getpid()"),
                        format_text("%d\n", (int)reloader->pid));
    client_close(client);
    assert_int_equal(kill(-reloader->pid, SIGINT), 0);
    assert_int_equal(wait_for_exit(reloader, DEADLINE), 0);
    wait_for_no_path(socket_path_of(server), DEADLINE);
    assert_no_path(socket_path_of(reloader->pid));
}

static void
django_under_gunicorn_has_a_manhole_in_its_worker(void)
{
    require_debian_module("django");
    require_debian_module("gunicorn");
    int port = free_port();
    write_file("app.py", DJANGO_APP);
    struct process *master =
        start_process(.argv = LIST(debian_python(), "-m", "gunicorn", "--bind",
                                   format_text("127.0.0.1:%d", port), "--worker-tmp-dir",
                                   test_directory(), "app"),
                      .env = LIST("PYTHONMANHOLE=reinstall_delay=0.01"), .debian = true);
    pid_t worker = finish_request(start_request(port, ""));
    assert_project_is_seen(worker, port);
    send_signal(master, SIGTERM);
    assert_int_equal(wait_for_exit(master, DEADLINE), 0);
    assert_no_path(socket_path_of(worker));
}

/* ---- Celery ------------------------------------------------------------------------ */

/* Its broker is a directory. What closes the door of a pool process, which ends by _exit(), is
 * the recipe of docs/recipes.rst. */
static const char CELERY_APP[] = //
    "import os, time\n"
    "from celery import Celery\n"
    "from celery.signals import worker_process_shutdown, worker_ready\n"
    "import manhole\n"
    "door = manhole.install(reinstall_delay=0.01)\n"
    "where = {'data_folder_in': '.', 'data_folder_out': '.', 'polling_interval': 0.01}\n"
    "app = Celery('tasks', broker='filesystem://', broker_transport_options=where)\n"
    "@app.task\n"
    "def a_slow_task():\n"
    "    while not os.path.exists('go-on'):\n"
    "        time.sleep(0.01)\n"
    "    os.write(1, b'went on\\n')\n"
    "@worker_process_shutdown.connect\n"
    "def close_door(**arguments):\n"
    "    door.release()\n"
    "@worker_ready.connect\n"
    "def say_so(**arguments):\n"
    "    os.write(1, b'worker ready\\n')\n";

static void
celery_worker_and_its_pool_have_manholes(void)
{
    pid_t pool[MAX_CHILDREN];
    require_debian_module("celery");
    write_file("tasks.py", CELERY_APP);
    /* Before there is a worker: this broker may read a message that is half written. */
    struct process *sender =
        start_process(.argv = LIST(debian_python(), "-c",
                                   "import tasks; tasks.a_slow_task.delay()"),
                      .debian = true);
    assert_int_equal(run_process(sender, NULL, NULL, NULL), 0);
    struct process *worker =
        start_process(.argv = LIST(debian_python(), "-m", "celery", "--app", "tasks",
                                   "worker", "--concurrency", "1", "--without-gossip",
                                   "--without-mingle"),
                      .env = LIST("C_FORCE_ROOT=yes"), .debian = true);
    wait_for_text(worker, OUT, "worker ready\n", DEADLINE);
    assert_int_equal(list_children(worker->pid, pool, MAX_CHILDREN), 1);
    client_close(client_at_prompt(worker->pid));
    client_close(client_that_sees(pool[0], "in a_slow_task\n"));
    write_file("go-on", "");
    wait_for_text(worker, OUT, "went on\n", DEADLINE);
    send_signal(worker, SIGTERM);
    assert_int_equal(wait_for_exit(worker, DEADLINE), 0);
    assert_no_path(socket_path_of(pool[0]));
}

int
main(void)
{
    static const struct test_case tests[] = {
        TEST(gevent_serves_whatever_clients_do),
        TEST(gevent_that_patches_after_the_install_serves_whatever_clients_do),
        TEST(eventlet_serves_whatever_clients_do),
        TEST(eventlet_that_patches_after_the_install_serves_whatever_clients_do),
        TEST(asyncio_serves_whatever_clients_do),
        TEST(uvloop_serves_whatever_clients_do),
        TEST(gevent_is_seen_where_its_hub_is_blocked),
        TEST(eventlet_is_seen_where_its_hub_is_blocked),
        TEST(asyncio_is_seen_where_its_loop_is_blocked),
        TEST(uvloop_is_seen_where_its_loop_is_blocked),
        TEST(signal_opens_the_manhole_of_any_loop),
        TEST(oneshot_is_served_by_any_loop),
        TEST(prompt_of_gevent_may_wait),
        TEST(prompt_of_eventlet_may_wait),
        TEST(handler_is_given_a_socket_that_nobody_has_patched),
        TEST(greenlets_of_gevent_are_seen),
        TEST(greenlets_of_eventlet_are_seen),
        TEST(gevent_hub_of_a_session_ends_with_it),
        TEST(greenlets_of_gevent_are_below_who_spawned_them),
        TEST(greenlets_of_eventlet_are_told_where_they_wait),
        TEST(tasks_of_trio_are_below_their_nurserys_own),
        TEST(tasks_of_asyncio_are_seen),
        TEST(tasks_of_uvloop_are_seen),
        TEST(asyncio_loop_works_for_the_prompt),
        TEST(uvloop_loop_works_for_the_prompt),
        TEST(child_of_gevent_answers),
        TEST(child_of_eventlet_answers),
        TEST(django_runserver_has_a_manhole_in_both_its_processes),
        TEST(django_under_gunicorn_has_a_manhole_in_its_worker),
        TEST(celery_worker_and_its_pool_have_manholes),
    };
    return RUN_TESTS(tests);
}
