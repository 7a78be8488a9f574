/* system_requests.c - a live Flask application under Debian's gunicorn: what it failed with is
 * examined, and what it is at is listed, while it serves.
 */
#include "support.h"

#include <unistd.h>

static const char SHOP[] = //
    "import manhole, os, time\n"
    "from flask import Flask\n"
    "app = Flask(__name__)\n"
    "app.wsgi_app = manhole.wsgi(app.wsgi_app)\n"
    "def look_up(ware):\n"
    "    prices = {'tea': 3}\n"
    "    return prices[ware]\n"
    "@app.route('/price/<ware>')\n"
    "def price(ware): return 'the price is %d' % look_up(ware)\n"
    "@app.route('/slow')\n"
    "def a_slow_page():\n"
    "    while not os.path.exists('go-on'):\n"
    "        time.sleep(0.01)\n"
    "    return 'went on'\n";

/* One worker, so that it is known who serves. class: of its kind, gthread has threads. */
static struct process *
start_gunicorn(const char *class)
{
    require_debian_module("gunicorn");
    require_debian_module("flask");
    write_file("shop.py", SHOP);
    return start_process(.argv = LIST(debian_python(), "-m", "gunicorn", "--threads", "3",
                                      "--worker-class", class, "--bind",
                                      format_text("unix:%s", test_path("http")),
                                      "--worker-tmp-dir", test_directory(), "shop:app"),
                         .env = LIST("PYTHONMANHOLE=reinstall_delay=0.01"),
                         .debian = true);
}

/* At the prompt in the worker, which has imported the application. */
static struct client *
enter_worker(const struct process *gunicorn)
{
    pid_t worker = 0;
    wait_for_path(test_path("http"), DEADLINE);
    while (list_children(gunicorn->pid, &worker, 1) == 0) {
        watch_for(10);
    }
    struct client *client = connect_client(socket_path_of(worker));
    client_wait_for(client, ">>> ");
    client_ask(client, "import manhole, time");
    client_send(client, "while not hasattr(sys.modules.get('shop'), 'a_slow_page'):\n"
                        "    time.sleep(0.01)\n\n");
    client_wait_for(client, "... ... >>> ");
    return client;
}

/* Sends a request, does not wait for the answer. */
static struct client *
request(const char *page)
{
    struct client *client = connect_client(test_path("http"));
    client_send(client, format_text("GET %s HTTP/1.0\r\n\r\n", page));
    return client;
}

static void
assert_answer(const char *page, const char *answer)
{
    assert_contains(client_read_until_eof(request(page)), answer);
}

static void
exception_of_a_live_request_is_examined_while_the_application_serves(void)
{
    struct process *gunicorn = start_gunicorn("gthread");
    struct client *client = enter_worker(gunicorn);
    client_ask(client, "probe = manhole.probe('shop:look_up')");
    assert_answer("/price/milk", "500 INTERNAL SERVER ERROR");
    client_send(client, "probe.debug()\n");
    client_wait_for(client, "look_up()\n-> return prices[ware]\n(Pdb) ");
    client_send(client, "p ware, prices\n");
    client_wait_for(client, "('milk', {'tea': 3})\n(Pdb) ");
    assert_answer("/price/tea", "the price is 3");
    assert_string_equal(client_ask(client, "q"), "");
    client_ask(client, "probe.remove()");
    assert_answer("/price/tea", "the price is 3");
    client_close(client);
}

/* Flask calls a view by its own table: its methods are where a probe is. */
static void
every_view_is_seen_from_a_method_of_flask(void)
{
    struct process *gunicorn = start_gunicorn("gthread");
    struct client *client = enter_worker(gunicorn);
    client_ask(client, "probe = manhole.probe('flask.app:Flask.dispatch_request')");
    assert_answer("/price/tea", "the price is 3");
    assert_answer("/price/milk", "500 INTERNAL SERVER ERROR");
    assert_contains(client_ask(client, "probe"), ": 2 calls, 1 exception>\n");
    assert_contains(client_ask(client, "probe.print()"), "KeyError: 'milk'\n");
    client_close(client);
}

static void
assert_request_is_listed_with_its_stack(const char *class)
{
    struct process *gunicorn = start_gunicorn(class);
    struct client *client = enter_worker(gunicorn);
    assert_string_equal(client_ask(client, "manhole.requests()"), "[]\n");
    struct client *slow = request("/slow?ware=tea");
    client_send(client, "while 'a_slow_page' not in str(manhole.requests()): pass\n\n");
    client_wait_for(client, "... >>> ");
    client_ask(client, "looks = [str(manhole.requests()) for _ in range(50)]");
    assert_string_equal(client_ask(client, "all('a_slow_page' in l for l in looks)"),
                        "True\n");
    const char *shown = client_ask(client, "print(*manhole.requests())");
    assert_contains(shown, "\nQUERY_STRING = 'ware=tea'\n");
    assert_contains(shown, "in a_slow_page\n");
    assert_answer("/price/tea", "the price is 3");
    write_file("go-on", "");
    assert_contains(client_read_until_eof(slow), "went on");
    client_send(client, "while manhole.requests(): pass\n\n");
    client_wait_for(client, "... >>> ");
    client_close(client);
}

static void
request_in_flight_is_listed_with_its_stack(void)
{
    assert_request_is_listed_with_its_stack("gthread");
}

/* All in one thread, and suspended while somebody looks. */
static void
request_in_a_greenlet_is_listed_with_its_stack(void)
{
    require_debian_module("gevent");
    assert_request_is_listed_with_its_stack("gevent");
}

static void
request_in_a_greenlet_of_eventlet_is_listed_with_its_stack(void)
{
    require_debian_module("gunicorn.workers.geventlet"); /* until gunicorn 25 */
    require_debian_module("eventlet");
    assert_request_is_listed_with_its_stack("eventlet");
}

int
main(void)
{
    static const struct test_case tests[] = {
        TEST(exception_of_a_live_request_is_examined_while_the_application_serves),
        TEST(every_view_is_seen_from_a_method_of_flask),
        TEST(request_in_flight_is_listed_with_its_stack),
        TEST(request_in_a_greenlet_is_listed_with_its_stack),
        TEST(request_in_a_greenlet_of_eventlet_is_listed_with_its_stack),
    };
    return RUN_TESTS(tests);
}
