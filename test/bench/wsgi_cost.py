"""What manhole.wsgi() costs a request.

    PYTHONPATH=$(make where) python3 test/bench/wsgi_cost.py [ROUNDS [REQUESTS]]

Plays the server for applications of several kinds: calls, iterates, closes. Rounds with and
without the middleware alternate, so that whatever else the machine does falls on both alike.
Prints, for each kind, the medians of both in nanoseconds a request, and their difference; the
exit status is 0 when it is less than 2000 ns for each.
"""

import io
import statistics
import sys
import time
from wsgiref.util import FileWrapper, setup_testing_defaults

import manhole

MOST_NS = 2000


def listing(environ, start_response):
    start_response("200 OK", [])
    return [b"body"]


def generating(environ, start_response):
    start_response("200 OK", [])
    yield b"body"


def sending_a_file(environ, start_response):
    start_response("200 OK", [])
    return environ["wsgi.file_wrapper"](io.BytesIO(b"body"))


def start_response(status, headers, exc_info=None):
    pass


def time_of_a_request(application, requests):
    environ = {"wsgi.file_wrapper": FileWrapper}
    setup_testing_defaults(environ)
    start = time.perf_counter_ns()
    for _ in range(requests):
        response = application(environ, start_response)
        for _ in response:
            pass
        if hasattr(response, "close"):
            response.close()
    return (time.perf_counter_ns() - start) / requests


def main():
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 15
    requests = int(sys.argv[2]) if len(sys.argv) > 2 else 20000
    worst = 0
    print("CPython %s, ns a request:" % sys.version.split()[0])
    for application in listing, generating, sending_a_file:
        wrapped = manhole.wsgi(application)
        plain, behind = [], []
        for _ in range(rounds):
            plain.append(time_of_a_request(application, requests))
            behind.append(time_of_a_request(wrapped, requests))
        cost = statistics.median(behind) - statistics.median(plain)
        print(
            "%-15s without %7.1f   behind manhole.wsgi() %7.1f   it costs %7.1f"
            % (application.__name__, statistics.median(plain), statistics.median(behind), cost)
        )
        worst = max(worst, cost)
    return 0 if worst < MOST_NS else 1


if __name__ == "__main__":
    sys.exit(main())
