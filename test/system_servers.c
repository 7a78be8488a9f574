/* system_servers.c - gunicorn and uWSGI as Debian has them, started with PYTHONMANHOLE and not
 * changed otherwise. They serve on a Unix socket in the test's directory.
 */
#include "support.h"

#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { WORKERS = 3, MAX_CHILDREN = 16 };

/* A server and the processes under it. */
struct server {
    struct process *master;
    const char *door; /* where it serves HTTP */
    int last_signal;  /* the last one that a worker sets a handler for; 0: not known */
};

static const char FLASK_APP[] = //
    "import os, time\n"
    "from flask import Flask\n"
    "app = Flask(__name__)\n"
    "served = 0\n"
    "@app.route('/')\n"
    "def hello():\n"
    "    global served\n"
    "    served += 1\n"
    "    return 'hello from %d' % os.getpid()\n"
    "@app.route('/slow')\n"
    "def a_slow_page():\n"
    "    while not os.path.exists('go-on'):\n"
    "        time.sleep(0.01)\n"
    "    return 'went on'\n";

static const char WSGI_APP[] = //
    "import os, time\n"
    "def application(environ, start_response):\n"
    "    while environ['PATH_INFO'] == '/slow' and not os.path.exists('go-on'):\n"
    "        time.sleep(0.01)\n"
    "    slow = environ['PATH_INFO'] == '/slow'\n"
    "    body = b'went on' if slow else b'hello from %d' % os.getpid()\n"
    "    start_response('200 OK', [('Content-Length', str(len(body)))])\n"
    "    return [body]\n";

/* Asks for pages one after another until its stdin ends; says how it went. */
static const char LOAD[] = //
    "import select, socket, sys\n"
    "served = failed = 0\n"
    "while not select.select([0], [], [], 0)[0]:\n"
    "    try:\n"
    "        with socket.socket(socket.AF_UNIX) as client:\n"
    "            client.connect(sys.argv[1])\n"
    "            client.sendall(b'GET / HTTP/1.0\\r\\n\\r\\n')\n"
    "            page = b''.join(iter(lambda: client.recv(4096), b''))\n"
    "        served += b'hello from' in page\n"
    "        failed += b'hello from' not in page\n"
    "    except OSError as exc:\n"
    "        failed += 1\n"
    "    if served == 1: print('ready', flush=True)\n"
    "print(served, 'served,', failed, 'failed')\n";

/* ---- Helpers ----------------------------------------------------------------------- */

/* Sends a request, does not wait for the answer. */
static struct client *
request(struct server server, const char *page)
{
    struct client *client = connect_client(server.door);
    client_send(client, format_text("GET %s HTTP/1.0\r\n\r\n", page));
    return client;
}

static void
assert_serves(struct server server)
{
    assert_contains(client_read_until_eof(request(server, "/")), "hello from ");
}

/* Lets the slow page go on, which is then served to its end. */
static void
assert_serves_after(struct client *slow, const char *text)
{
    write_file("go-on", "");
    assert_contains(client_read_until_eof(slow), text);
}

/* Returns once the first page has been served. */
static struct process *
start_load(struct server server)
{
    struct process *load = start_target(LOAD, .argv = LIST(server.door));
    wait_until_ready(load);
    return load;
}

/* The children that a wait is for. */
struct brood {
    pid_t parent;
    size_t wanted;
    pid_t gone;      /* must not be among them */
    int last_signal; /* see struct server */
    pid_t pids[MAX_CHILDREN];
};

/* Whether a process, if it is still there, has a handler for a signal. */
static bool
is_caught(int signal_number, pid_t pid)
{
    unsigned long long caught = 0;
    char line[256];
    FILE *status = fopen(format_text("/proc/%d/status", (int)pid), "re");
    while (status != NULL && fgets(line, sizeof(line), status) != NULL) {
        if (strncmp(line, "SigCgt:", 7) == 0) {
            caught = strtoull(line + 7, NULL, 16);
        }
    }
    if (status != NULL) {
        (void)fclose(status);
    }
    return (caught >> (signal_number - 1) & 1) != 0;
}

/* All are there, and have come so far that a signal is not lost on them. */
static bool
is_complete(void *argument)
{
    struct brood *brood = argument;
    size_t count = list_children(brood->parent, brood->pids, MAX_CHILDREN);
    for (size_t i = 0; i < count; i++) {
        if (brood->pids[i] == brood->gone ||
            (brood->last_signal != 0 && !is_caught(brood->last_signal, brood->pids[i]))) {
            return false;
        }
    }
    return count == brood->wanted;
}

static struct brood
workers_of(struct server server, size_t count)
{
    struct brood brood = {
        .parent = server.master->pid, .wanted = count, .last_signal = server.last_signal};
    wait_until(is_complete, &brood, "the workers are there", DEADLINE);
    return brood;
}

static struct client *
client_at_prompt(pid_t pid)
{
    struct client *client = connect_client(socket_path_of(pid));
    client_wait_for(client, ">>> ");
    return client;
}

static void
assert_answers(pid_t pid)
{
    struct client *client = client_at_prompt(pid);
    client_ask(client, "import os");
    assert_string_equal(client_ask(client, "os.getpid()"), format_text("%d\n", (int)pid));
    client_close(client);
}

/* The master and every worker, each with its own number. */
static void
assert_all_answer(struct server server, const struct brood *workers)
{
    assert_answers(server.master->pid);
    for (size_t i = 0; i < workers->wanted; i++) {
        assert_answers(workers->pids[i]);
    }
}

/* The way a supervisor stops it. */
static void
assert_stops_without_a_trace(struct server server, const struct brood *workers)
{
    send_signal(server.master, SIGTERM);
    assert_int_equal(wait_for_exit(server.master, DEADLINE), 0);
    assert_no_path(socket_path_of(server.master->pid));
    for (size_t i = 0; i < workers->wanted; i++) {
        assert_no_path(socket_path_of(workers->pids[i]));
    }
}

/* By the signal that a test has named for it; where it is lost, connecting fails. */
static void
activate(pid_t pid)
{
    assert_int_equal(kill(pid, SIGURG), 0);
}

/* By SIGKILL, so that its socket stays. */
static void
kill_worker(pid_t pid)
{
    expect_socket_left(socket_path_of(pid));
    kill(pid, SIGKILL);
}

static void
assert_new_worker_answers(struct server server, struct brood *workers)
{
    workers->gone = workers->pids[0];
    kill_worker(workers->gone);
    wait_until(is_complete, workers, "a new worker is there", DEADLINE);
    assert_all_answer(server, workers);
}

/* ---- gunicorn ---------------------------------------------------------------------- */

/* variable: "PYTHONMANHOLE=..."; option: one more for gunicorn. */
static struct server
start_gunicorn(const char *variable, const char *option)
{
    require_debian_module("gunicorn");
    require_debian_module("flask");
    write_file("app.py", FLASK_APP);
    const char *door = test_path("http");
    struct process *master =
        start_process(.argv =
                          LIST(debian_python(), "-m", "gunicorn", "--workers", "3",
                               "--bind", format_text("unix:%s", door), "--worker-tmp-dir",
                               test_directory(), option, "app:app"),
                      .env = LIST(variable), .debian = true);
    return (struct server){master, door, SIGABRT};
}

static void
assert_gunicorn_answers_and_serves(const char *option)
{
    struct server server = start_gunicorn("PYTHONMANHOLE=", option);
    struct brood workers = workers_of(server, WORKERS);
    assert_all_answer(server, &workers);
    assert_serves(server);
    assert_stops_without_a_trace(server, &workers);
}

static void
gunicorn_master_and_workers_answer(void)
{
    assert_gunicorn_answers_and_serves("--log-level=info");
}

static void
gunicorn_with_preload_master_and_workers_answer(void)
{
    assert_gunicorn_answers_and_serves("--preload");
}

/* One that patches what it imports, after the manhole is there. */
static void
assert_gunicorn_answers_with_workers_of(const char *class, const char *module)
{
    require_debian_module(module);
    struct server server = start_gunicorn("PYTHONMANHOLE=reinstall_delay=0.01",
                                          format_text("--worker-class=%s", class));
    struct brood workers = workers_of(server, WORKERS);
    assert_serves(server);
    assert_all_answer(server, &workers);
    assert_serves(server);
    assert_stops_without_a_trace(server, &workers);
}

static void
gunicorn_workers_with_threads_answer(void)
{
    assert_gunicorn_answers_with_workers_of("gthread", "gunicorn");
}

static void
gunicorn_workers_of_gevent_answer(void)
{
    assert_gunicorn_answers_with_workers_of("gevent", "gevent");
}

static void
gunicorn_workers_of_eventlet_answer(void)
{
    require_debian_module("gunicorn.workers.geventlet"); /* until gunicorn 25 */
    assert_gunicorn_answers_with_workers_of("eventlet", "eventlet");
}

static void
gunicorn_worker_that_comes_for_a_killed_one_answers(void)
{
    struct server server =
        start_gunicorn("PYTHONMANHOLE=reinstall_delay=0.01", "--preload");
    struct brood workers = workers_of(server, WORKERS);
    assert_new_worker_answers(server, &workers);
    assert_serves(server);
}

static void
gunicorn_workers_that_come_with_a_reload_answer(void)
{
    struct server server =
        start_gunicorn("PYTHONMANHOLE=reinstall_delay=0.01", "--preload");
    struct brood workers = workers_of(server, WORKERS);
    struct brood old = workers;
    assert_all_answer(server, &workers);
    send_signal(server.master, SIGHUP);
    for (size_t i = 0; i < WORKERS; i++) {
        wait_for_no_path(socket_path_of(old.pids[i]), DEADLINE);
        workers.gone = old.pids[i];
        wait_until(is_complete, &workers, "new workers are there", DEADLINE);
    }
    assert_all_answer(server, &workers);
}

/* What it is for: a request hangs, and one looks where. */
static void
gunicorn_request_that_hangs_is_seen_in_its_worker(void)
{
    struct server server =
        start_gunicorn("PYTHONMANHOLE=reinstall_delay=0.01", "--workers=1");
    struct brood workers = workers_of(server, 1);
    struct client *hanging = request(server, "/slow");
    const char *seen = "";
    long end_ms = now_ms() + DEADLINE;
    while (strstr(seen, "\n  time.sleep(0.01)\n") == NULL) {
        assert_true(now_ms() < end_ms);
        struct client *client = connect_client(socket_path_of(workers.pids[0]));
        seen = client_wait_for(client, ">>> ");
        client_close(client);
    }
    assert_contains(seen, "in a_slow_page\n");
    assert_serves_after(hanging, "went on");
}

static void
gunicorn_serves_on_while_clients_come_and_go(void)
{
    const char *out;
    struct server server =
        start_gunicorn("PYTHONMANHOLE=reinstall_delay=0.01", "--preload");
    struct brood workers = workers_of(server, WORKERS);
    struct process *load = start_load(server);
    for (int i = 0; i < 5; i++) {
        assert_all_answer(server, &workers);
    }
    assert_int_equal(run_process(load, "", &out, NULL), 0);
    assert_matches(out, "^[1-9][0-9]* served, 0 failed$");
}

/* With daemon_connection a prompt that somebody left open holds up no restart. */
static void
gunicorn_stops_beside_a_client_at_the_prompt(void)
{
    struct server server = start_gunicorn(
        "PYTHONMANHOLE=daemon_connection=True, reinstall_delay=0.01", "--preload");
    struct brood workers = workers_of(server, WORKERS);
    client_at_prompt(server.master->pid);
    client_at_prompt(workers.pids[0]);
    assert_stops_without_a_trace(server, &workers);
}

/* gunicorn has a use of its own for USR1, USR2, HUP, TTIN, TTOU and WINCH; not for URG. */
static void
gunicorn_worker_is_activated_alone(void)
{
    struct server server = start_gunicorn("PYTHONMANHOLE=activate_on='URG'", "--preload");
    struct brood workers = workers_of(server, WORKERS);
    assert_serves(server); /* so its start, and with it the fork, is over */
    activate(workers.pids[1]);
    assert_answers(workers.pids[1]);
    assert_no_path(socket_path_of(server.master->pid));
    assert_no_path(socket_path_of(workers.pids[0]));
    activate(server.master->pid);
    assert_answers(server.master->pid);
    assert_stops_without_a_trace(server, &workers);
}

/* ---- uWSGI ------------------------------------------------------------------------- */

/* options, variables: lists. */
static struct server
start_uwsgi(const char *app, const char *const options[], const char *const variables[])
{
    const char *argv[24] = {"uwsgi_python3", "--master", "--die-on-term", "--need-app"};
    size_t count = 4;
    const char *door = test_path("http");
    require_program("uwsgi_python3");
    argv[count++] = "--http-socket";
    argv[count++] = door;
    argv[count++] = "--wsgi-file";
    argv[count++] = write_file("app.py", app);
    while (*options != NULL && count + 1 < sizeof(argv) / sizeof(argv[0])) {
        argv[count++] = *options++;
    }
    argv[count] = NULL;
    struct process *master = start_process(
            .argv = argv, .env = variables, .debian = true,
            /* Two signals at once would be too much for it: it calls exit() in their
                       * handlers. */
            .ends_its_children = true);
    wait_for_text(master, ERR, "spawned uWSGI worker 1", DEADLINE);
    return (struct server){master, door, 0};
}

#define TWO_WORKERS "--processes", "2"
#define AT_ONCE LIST("PYTHONMANHOLE=reinstall_delay=0.01, hang_timeout=0.5")

/* Newer ones have threads enabled whether asked to or not. */
static void
require_no_threads(struct server server)
{
    if (strstr(text_of(server.master, ERR), "python threads support enabled") != NULL) {
        skip_test("this uWSGI lets go of the GIL");
    }
}

static void
assert_uwsgi_answers_and_serves(const char *const options[])
{
    struct server server = start_uwsgi(WSGI_APP, options, AT_ONCE);
    struct brood workers = workers_of(server, 2);
    assert_all_answer(server, &workers);
    assert_serves(server);
    assert_new_worker_answers(server, &workers);
}

static void
uwsgi_workers_answer_where_it_tells_python_after_the_fork(void)
{
    if (is_debian_python_from(13)) {
        skip_test("since CPython 3.13 that ends every worker, with a manhole or without");
    }
    assert_uwsgi_answers_and_serves(
        LIST(TWO_WORKERS, "--enable-threads", "--py-call-osafterfork"));
}

static void
uwsgi_workers_answer_with_its_fork_hooks(void)
{
    assert_uwsgi_answers_and_serves(
        LIST(TWO_WORKERS, "--enable-threads", "--py-call-uwsgi-fork-hooks"));
}

static void
uwsgi_workers_with_threads_answer(void)
{
    assert_uwsgi_answers_and_serves(
        LIST(TWO_WORKERS, "--threads", "2", "--py-call-uwsgi-fork-hooks"));
}

/* Its workers are forked as any C program forks. */
static void
uwsgi_workers_answer_where_it_does_not_tell_python(void)
{
    assert_uwsgi_answers_and_serves(LIST(TWO_WORKERS, "--enable-threads"));
}

static void
uwsgi_workers_with_threads_answer_where_it_does_not_tell_python(void)
{
    assert_uwsgi_answers_and_serves(LIST(TWO_WORKERS, "--threads", "4"));
}

static void
uwsgi_mule_answers(void)
{
    struct server server =
        start_uwsgi(WSGI_APP, LIST("--enable-threads", "--mule"), AT_ONCE);
    struct brood worker_and_mule = workers_of(server, 2);
    assert_all_answer(server, &worker_and_mule);
    send_signal(server.master, SIGTERM); /* it kills its mules: their sockets stay */
    assert_int_equal(wait_for_exit(server.master, DEADLINE), 0);
    expect_socket_left(socket_path_of(worker_and_mule.pids[0]));
    expect_socket_left(socket_path_of(worker_and_mule.pids[1]));
}

/* The master has a manhole before the application is loaded, in each worker, and installs. */
static void
uwsgi_lazy_application_may_install_where_its_master_has(void)
{
    const char *app = format_text(
        "import manhole; manhole.install(locals={'lazy': 'yes'})\n%s", WSGI_APP);
    struct server server = start_uwsgi(
        app, LIST("--processes", "1", "--enable-threads", "--lazy-apps"), AT_ONCE);
    struct brood workers = workers_of(server, 1);
    assert_serves(server); /* so it has loaded the application */
    struct client *client = client_at_prompt(workers.pids[0]);
    assert_string_equal(client_ask(client, "lazy"), "'yes'\n");
    client_close(client);
    assert_answers(server.master->pid);
}

static void
uwsgi_worker_is_activated_alone(void)
{
    struct server server = start_uwsgi(WSGI_APP, LIST(TWO_WORKERS, "--enable-threads"),
                                       LIST("PYTHONMANHOLE=activate_on='URG'"));
    struct brood workers = workers_of(server, 2);
    activate(workers.pids[1]);
    assert_answers(workers.pids[1]);
    assert_no_path(socket_path_of(server.master->pid));
    assert_no_path(socket_path_of(workers.pids[0]));
    assert_stops_without_a_trace(server, &workers);
}

/* What somebody does at the master's prompt; the worker that comes meanwhile has to serve. */
static void
assert_new_worker_serves_beside(const char *greeting, const char *statement,
                                const char *const options[])
{
    struct server server = start_uwsgi(WSGI_APP, options, AT_ONCE);
    struct brood workers = workers_of(server, 1);
    if (strcmp(*options, "--enable-threads") != 0) {
        require_no_threads(server);
    }
    struct client *client = connect_client(socket_path_of(server.master->pid));
    client_wait_for(client, greeting);
    client_send(client, statement);
    for (int i = 0; i < 3; i++) {
        workers.gone = workers.pids[0];
        kill_worker(workers.gone);
        wait_until(is_complete, &workers, "a new worker is there", DEADLINE);
        assert_serves(server);
    }
    client_close(client);
}

static void
uwsgi_worker_is_none_the_worse_for_a_statement_in_the_master(void)
{
    assert_new_worker_serves_beside(">>> ", "while True: pass\n\n",
                                    LIST("--enable-threads"));
}

/* It never releases the GIL. */
static void
uwsgi_worker_is_none_the_worse_for_a_client_who_waits_for_the_master(void)
{
    assert_new_worker_serves_beside("the prompt comes here as soon as", "1\n",
                                    LIST("--processes", "1"));
}

/* All the children that were there before are gone, and as many are there. */
static bool
is_reloaded(void *argument)
{
    struct brood *old = argument;
    struct brood now = {.parent = old->parent, .wanted = old->wanted};
    if (!is_complete(&now)) {
        return false;
    }
    for (size_t i = 0; i < now.wanted; i++) {
        for (size_t j = 0; j < now.wanted; j++) {
            if (now.pids[i] == old->pids[j]) {
                return false;
            }
        }
    }
    *old = now;
    return true;
}

/* MANHOLE_TEST_RELOADS=50 for the long run. */
static int
number_of_reloads(void)
{
    const char *number = getenv("MANHOLE_TEST_RELOADS");
    return number == NULL ? 3 : (int)strtol(number, NULL, 10);
}

/* Each time somebody has been at every prompt, and computes at the master's. Now and then a request
 * fails, as it does without a manhole: a worker that is about to read it is told to go. */
static void
assert_reloads_lose_no_worker(const char *const options[])
{
    const char *out;
    struct server server = start_uwsgi(WSGI_APP, options, AT_ONCE);
    struct brood workers = workers_of(server, 2);
    struct process *load = start_load(server);
    for (int i = number_of_reloads(); i > 0; i--) {
        assert_all_answer(server, &workers);
        struct client *client = client_at_prompt(server.master->pid);
        client_send(client, "while True: pass\n\n");
        send_signal(server.master, SIGHUP);
        wait_until(is_reloaded, &workers, "new workers are there", DEADLINE);
        client_close(client);
    }
    assert_all_answer(server, &workers);
    assert_int_equal(run_process(load, "", &out, NULL), 0);
    assert_matches(out, "^[1-9][0-9]* served, [0-9]* failed$");
    assert_not_contains(text_of(server.master, ERR), "DAMN ! worker"); /* it died */
    assert_stops_without_a_trace(server, &workers);
}

static void
uwsgi_reloads_lose_no_worker(void)
{
    assert_reloads_lose_no_worker(
        LIST(TWO_WORKERS, "--enable-threads", "--disable-logging"));
}

static void
uwsgi_reloads_of_lazy_workers_lose_no_worker(void)
{
    assert_reloads_lose_no_worker(
        LIST(TWO_WORKERS, "--enable-threads", "--disable-logging", "--lazy-apps"));
}

static void
uwsgi_stopped_leaves_no_socket(void)
{
    struct server server =
        start_uwsgi(WSGI_APP, LIST(TWO_WORKERS, "--enable-threads"), AT_ONCE);
    struct brood workers = workers_of(server, 2);
    assert_all_answer(server, &workers);
    assert_stops_without_a_trace(server, &workers);
}

/* Each worker loads the application by itself, so there is no fork to be told of. */
static void
uwsgi_lazy_application_installs_by_itself(void)
{
    const char *app = format_text("import manhole; manhole.install()\n%s", WSGI_APP);
    struct server server = start_uwsgi(
        app, LIST(TWO_WORKERS, "--enable-threads", "--lazy-apps"), LIST("PYTHONMANHOLE"));
    struct brood workers = workers_of(server, 2);
    assert_answers(workers.pids[0]);
    assert_answers(workers.pids[1]);
    assert_serves(server);
    assert_stops_without_a_trace(server, &workers);
}

/* Between requests such a worker keeps the GIL: the stacks come, the prompt has to wait. */
static void
uwsgi_without_threads_sends_stacks_and_prompts_during_a_request(void)
{
    struct server server =
        start_uwsgi(WSGI_APP, LIST("--processes", "1"),
                    LIST("PYTHONMANHOLE=reinstall_delay=0.01, hang_timeout=0.1"));
    require_no_threads(server);
    struct brood workers = workers_of(server, 1);
    struct client *client = connect_client(socket_path_of(workers.pids[0]));
    client_wait_for(client, "holds the GIL");
    client_wait_for(client, "manhole: the prompt comes here as soon as Python answers.");
    struct client *slow = request(server, "/slow");
    client_wait_for(client, ">>> ");
    assert_string_equal(client_ask(client, "40 + 2"), "42\n");
    client_close(client);
    assert_serves_after(slow, "went on");
}

/* The recipe that python-manhole's documents give: a number written to a file becomes a
 * signal of uWSGI's (not of the kernel's), which each worker handles in its main thread. */
static const char ONESHOT_APP[] = //
    "import os, manhole, uwsgi\n"
    "with open('wanted', 'w'): pass\n"
    "seen = []\n" /* a signal may come late, when the file has changed again */
    "def open_manhole(signum):\n"
    "    with open('wanted') as wanted:\n"
    "        words = wanted.read().split()\n"
    "        if words[:1] == [str(os.getpid())] and words not in seen:\n"
    "            seen.append(words)\n"
    "            manhole.install(strict=False, thread=False).handle_oneshot(signum, "
    "signum)\n"
    "uwsgi.register_signal(17, 'workers', open_manhole)\n"
    "uwsgi.add_file_monitor(17, 'wanted')\n";

/* The master does so after it has started the workers. */
static bool
is_watching_a_file(void *argument)
{
    const struct process *master = argument;
    for (int fd = 0; fd < 64; fd++) {
        const char *path = format_text("/proc/%d/fdinfo/%d", (int)master->pid, fd);
        if (path_exists(path) && strstr(read_file(path), "inotify wd:") != NULL) {
            return true;
        }
    }
    return false;
}

/* In one piece, for each change of the file is a signal. */
static void
ask_for(pid_t worker)
{
    static int times;
    int fd = open(test_path("wanted"), O_WRONLY | O_CLOEXEC);
    assert_int_equal(dprintf(fd, "%-10d%10d\n", (int)worker, ++times), 21);
    close(fd);
}

static void
assert_uwsgi_worker_serves_one_client(struct server server, pid_t worker)
{
    ask_for(worker);
    struct client *client = client_at_prompt(worker);
    assert_contains(client->text.data, "in open_manhole\n");
    client_ask(client, "import os");
    assert_string_equal(client_ask(client, "os.getpid()"),
                        format_text("%d\n", (int)worker));
    client_send(client, "exit()\n");
    client_read_until_eof(client);
    wait_for_no_path(socket_path_of(worker), DEADLINE);
    assert_serves(server);
}

static void
uwsgi_signal_opens_the_manhole_of_one_worker(void)
{
    const char *app = format_text("%s%s", ONESHOT_APP, WSGI_APP);
    struct server server = start_uwsgi(app, LIST(TWO_WORKERS), LIST("PYTHONMANHOLE"));
    struct brood workers = workers_of(server, 2);
    wait_until(is_watching_a_file, server.master, "uWSGI watches the file", DEADLINE);
    for (int i = 0; i < 2; i++) {
        assert_uwsgi_worker_serves_one_client(server, workers.pids[0]);
        assert_uwsgi_worker_serves_one_client(server, workers.pids[1]);
    }
    assert_stops_without_a_trace(server, &workers);
}

int
main(void)
{
    static const struct test_case tests[] = {
        TEST(gunicorn_master_and_workers_answer),
        TEST(gunicorn_with_preload_master_and_workers_answer),
        TEST(gunicorn_workers_with_threads_answer),
        TEST(gunicorn_workers_of_gevent_answer),
        TEST(gunicorn_workers_of_eventlet_answer),
        TEST(gunicorn_worker_that_comes_for_a_killed_one_answers),
        TEST(gunicorn_workers_that_come_with_a_reload_answer),
        TEST(gunicorn_request_that_hangs_is_seen_in_its_worker),
        TEST(gunicorn_serves_on_while_clients_come_and_go),
        TEST(gunicorn_stops_beside_a_client_at_the_prompt),
        TEST(gunicorn_worker_is_activated_alone),
        TEST(uwsgi_workers_answer_where_it_tells_python_after_the_fork),
        TEST(uwsgi_workers_answer_with_its_fork_hooks),
        TEST(uwsgi_workers_with_threads_answer),
        TEST(uwsgi_workers_answer_where_it_does_not_tell_python),
        TEST(uwsgi_workers_with_threads_answer_where_it_does_not_tell_python),
        TEST(uwsgi_mule_answers),
        TEST(uwsgi_lazy_application_may_install_where_its_master_has),
        TEST(uwsgi_worker_is_activated_alone),
        TEST(uwsgi_worker_is_none_the_worse_for_a_statement_in_the_master),
        TEST(uwsgi_worker_is_none_the_worse_for_a_client_who_waits_for_the_master),
        TEST(uwsgi_reloads_lose_no_worker),
        TEST(uwsgi_reloads_of_lazy_workers_lose_no_worker),
        TEST(uwsgi_stopped_leaves_no_socket),
        TEST(uwsgi_lazy_application_installs_by_itself),
        TEST(uwsgi_without_threads_sends_stacks_and_prompts_during_a_request),
        TEST(uwsgi_signal_opens_the_manhole_of_one_worker),
    };
    return RUN_TESTS(tests);
}
