/* e2e_requests.c - WSGI applications behind manhole.wsgi(): they behave as without it, and what
 * they are at can be listed.
 */
#include "support.h"

/* Names for programs that play the server. def environ(**more); start_response, whose write() adds
 * to `written`; def ids(): those in flight. */
#define SERVER                                                                           \
  "import gc, io, manhole, os, sys, threading, time\n"                                   \
  "from wsgiref.util import FileWrapper, setup_testing_defaults\n"                       \
  "manhole.install(verbose=False)\n"                                                     \
  "written = []\n"                                                                       \
  "def start_response(status, headers, exc_info=None): return written.append\n"          \
  "def environ(**more):\n"                                                               \
  "    given = {'wsgi.file_wrapper': FileWrapper, **more}\n"                             \
  "    setup_testing_defaults(given)\n"                                                  \
  "    return given\n"                                                                   \
  "def ids(): return [request.id for request in manhole.requests()]\n"                   \
  "def call(application, **more):\n"                                                     \
  "    return manhole.wsgi(application)(environ(**more), start_response)\n"

/* Runs statements that assert what must hold. */
static void
assert_runs(const char *statements)
{
    struct process *app = start_target(format_text(SERVER "%s", statements));
    assert_int_equal(wait_for_exit(app, DEADLINE), 0);
    assert_string_equal(text_of(app, ERR), "");
}

/* ---- In flight ---------------------------------------------------------------------- */

static void
request_is_in_flight_until_its_response_is_closed(void)
{
    assert_runs("def application(environ, start_response):\n"
                "    assert ids() == [1]\n"
                "    yield b'one'\n"
                "    assert ids() == [1]\n"
                "    yield b'two'\n"
                "response = call(application)\n"
                "assert b' '.join(response) == b'one two' and ids() == [1]\n"
                "response.close()\n"
                "assert ids() == []\n"
                "response.close()\n");
}

static void
request_knows_who_when_where_and_what(void)
{
    assert_runs("def application(given, start_response):\n"
                "    global request\n"
                "    time.sleep(0.01)\n"
                "    request, = manhole.requests()\n"
                "    given['later'] = 1\n"
                "    return []\n"
                "before = time.time()\n"
                "call(application, color='red')\n"
                "assert request.thread_id == threading.get_ident()\n"
                "assert before - 1 < request.start_time < time.time() + 1\n"
                "assert 0.01 <= request.duration < 60\n"
                "assert request.environ['color'] == 'red'\n"
                "assert 'later' not in request.environ\n"
                "assert 'in application\\n' in request.stack\n");
}

static void
thread_of_a_request_is_the_one_that_works_at_it(void)
{
    assert_runs("threads = []\n"
                "def application(environ, start_response):\n"
                "    for i in range(2):\n"
                "        yield b''\n"
                "        threads.append(manhole.requests()[0].thread_id)\n"
                "response = call(application)\n"
                "thread = threading.Thread(target=list, args=[response])\n"
                "thread.start()\n"
                "thread.join()\n"
                "assert threads == [thread.ident] * 2 and ids() == [1]\n");
}

static void
text_of_a_request_is_ispyd_s(void)
{
    struct process *app =
        start_target(SERVER "class Odd:\n"
                            "    def __repr__(self): 1 / 0\n"
                            "def application(environ, start_response):\n"
                            "    print(*manhole.requests())\n"
                            "    return []\n"
                            "manhole.wsgi(application)(\n"
                            "    {'b': 2, 'a': 'x', 'c': Odd()}, start_response)\n");
    assert_int_equal(wait_for_exit(app, DEADLINE), 0);
    assert_matches(text_of(app, OUT),
                   "^\n==== 1 ====\n\nthread_id = [0-9]+\n"
                   "start_time = [A-Z][a-z]{2} [A-Z][a-z]{2} [ 0-9:]+\n"
                   "duration = 0\\.[0-9]{6} seconds\n\n"
                   "a = 'x'\nb = 2\nc = <Odd object without a repr>\n\n"
                   "File: \".*\", line [0-9]+, in <module>\n  .*\n"
                   "(.*\n)*File: \".*\", line [0-9]+, in application\n"
                   "  print\\(\\*manhole.requests\\(\\)\\)\n");
}

static void
requests_are_listed_at_the_prompt(void)
{
    struct process *app =
        start_target(SERVER "def application(environ, start_response):\n"
                            "    print('ready', flush=True)\n"
                            "    while os.read(0, 4096): pass\n"
                            "    return []\n"
                            "call(application, PATH_INFO='/slow')\n"
                            "while not os.path.exists('go-on'): time.sleep(0.01)\n");
    wait_until_ready(app);
    struct client *client = connect_to(app);
    client_wait_for(client, ">>> ");
    client_ask(client, "import manhole");
    const char *shown = client_ask(client, "manhole.requests()");
    assert_contains(shown, "\n==== 1 ====\n\nthread_id = ");
    assert_contains(shown, "\nPATH_INFO = '/slow'\n");
    assert_contains(shown, "in application\n  while os.read(0, 4096): pass\n");
    close_stdin(app);
    client_send(client, "import time\nwhile manhole.requests(): time.sleep(0.01)\n\n");
    client_wait_for(client, "... ");
    client_wait_for(client, ">>> ");
    assert_string_equal(client_ask(client, "manhole.requests()"), "[]\n");
    write_file("go-on", "");
}

static void
forked_child_has_no_request_of_its_parent(void)
{
    assert_runs("import warnings\n"
                "warnings.simplefilter('ignore') # of 3.12 and newer: threads and fork\n"
                "def application(environ, start_response):\n"
                "    child = os.fork()\n"
                "    if not child: os._exit(len(ids()))\n"
                "    assert os.waitpid(child, 0)[1] == 0 and ids() == [1]\n"
                "    return []\n"
                "call(application)\n");
}

/* ---- The application behaves as without ------------------------------------------------ */

static void
response_is_an_iterable_as_long_as_the_application_s(void)
{
    assert_runs(
        "parts = [b'a', b'b']\n"
        "response = call(lambda environ, start_response: parts)\n"
        "assert len(response) == 2\n"
        "assert list(response) == parts and list(response) == parts\n"
        "response = call(lambda environ, start_response: (part for part in parts))\n"
        "assert not hasattr(response, '__len__') and list(response) == parts\n");
}

static void
write_and_start_response_are_the_server_s_own(void)
{
    assert_runs("def application(given, start):\n"
                "    assert start is start_response\n"
                "    start('200 OK', [])(b'written')\n"
                "    return []\n"
                "call(application)\n"
                "assert written == [b'written']\n");
}

static void
close_is_passed_on_and_its_exception_passes(void)
{
    assert_runs("class Body:\n"
                "    closed = 0\n"
                "    def __iter__(self): return iter([b'x'])\n"
                "    def close(self):\n"
                "        self.closed += len(ids())\n"
                "        raise OSError('close')\n"
                "body = Body()\n"
                "response = call(lambda environ, start_response: body)\n"
                "try: response.close()\n"
                "except OSError as error: assert str(error) == 'close'\n"
                "assert body.closed == 1 and ids() == []\n");
}

static void
exceptions_pass_and_end_the_request(void)
{
    assert_runs("def fails(environ, start_response): raise KeyError('call')\n"
                "def fails_later(environ, start_response):\n"
                "    yield b''\n"
                "    raise KeyError('part')\n"
                "for application in fails, fails_later:\n"
                "    try: b''.join(call(application))\n"
                "    except KeyError as error: pass\n"
                "    else: assert False\n"
                "    assert ids() == []\n"
                "try: manhole.wsgi(fails)()\n"
                "except TypeError as error: assert 'missing 2' in str(error)\n");
}

static void
file_of_the_server_s_is_passed_untouched_and_followed(void)
{
    assert_runs("def application(environ, start_response):\n"
                "    return environ['wsgi.file_wrapper'](io.BytesIO(b'file'))\n"
                "wrappers = {FileWrapper: FileWrapper, (lambda file: file): io.BytesIO}\n"
                "for wrapper, type_of_file in wrappers.items():\n"
                "    response = call(application, **{'wsgi.file_wrapper': wrapper})\n"
                "    assert type(response) is type_of_file and len(ids()) == 1\n"
                "    assert b''.join(response) == b'file'\n"
                "    del response\n"
                "    assert ids() == []\n");
}

static void
middleware_is_a_function_that_knows_its_application(void)
{
    assert_runs(
        "def application(environ, start_response):\n"
        "    'Sells.'\n"
        "class Application:\n"
        "    def __call__(self, environ, start_response): return [b'']\n"
        "wrapped = manhole.wsgi(application)\n"
        "assert wrapped.__wrapped__ is application\n"
        "assert (wrapped.__name__, wrapped.__doc__) == ('application', 'Sells.')\n"
        "an_object = Application()\n"
        "assert manhole.wsgi(an_object).__wrapped__ is an_object\n");
}

/* ---- What is forgotten ------------------------------------------------------------------ */

static void
response_that_nobody_closes_ends_when_it_is_forgotten(void)
{
    assert_runs("application = lambda environ, start_response: (x for x in [b''])\n"
                "response = call(application)\n"
                "assert ids() == [1]\n"
                "del response\n"
                "assert ids() == []\n"
                "given = environ()\n"
                "given['a cycle'] = manhole.wsgi(application)(given, start_response)\n"
                "del given\n"
                "assert ids() == [2]\n"
                "gc.collect()\n"
                "assert ids() == []\n");
}

static void
threads_serve_and_ask_at_once(void)
{
    assert_runs("def application(environ, start_response): yield b''\n"
                "wrapped = manhole.wsgi(application)\n"
                "end = time.monotonic() + 0.5\n"
                "def serve():\n"
                "    while time.monotonic() < end:\n"
                "        for _ in range(100):\n"
                "            response = wrapped(environ(), start_response)\n"
                "            b''.join(response)\n"
                "            response.close()\n"
                "def ask():\n"
                "    while time.monotonic() < end: str(manhole.requests())\n"
                "threads = [threading.Thread(target=f) for f in (serve, serve, ask)]\n"
                "for thread in threads: thread.start()\n"
                "for thread in threads: thread.join()\n"
                "assert ids() == []\n");
}

static void
what_cannot_be_called_is_refused(void)
{
    assert_runs("try: manhole.wsgi('app:application')\n"
                "except TypeError as error: assert str(error) == (\n"
                "    'wsgi() takes a WSGI application, called with environ and '\n"
                "    \"start_response, not 'app:application'\")\n"
                "else: assert False\n");
}

int
main(void)
{
    static const struct test_case tests[] = {
        TEST(request_is_in_flight_until_its_response_is_closed),
        TEST(request_knows_who_when_where_and_what),
        TEST(thread_of_a_request_is_the_one_that_works_at_it),
        TEST(text_of_a_request_is_ispyd_s),
        TEST(requests_are_listed_at_the_prompt),
        TEST(forked_child_has_no_request_of_its_parent),
        TEST(response_is_an_iterable_as_long_as_the_application_s),
        TEST(write_and_start_response_are_the_server_s_own),
        TEST(close_is_passed_on_and_its_exception_passes),
        TEST(exceptions_pass_and_end_the_request),
        TEST(file_of_the_server_s_is_passed_untouched_and_followed),
        TEST(middleware_is_a_function_that_knows_its_application),
        TEST(response_that_nobody_closes_ends_when_it_is_forgotten),
        TEST(threads_serve_and_ask_at_once),
        TEST(what_cannot_be_called_is_refused),
    };
    return RUN_TESTS(tests);
}
