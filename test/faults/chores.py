"""What an application does of itself that has to do with its manhole: it probes, serves requests,
calls what the module offers. Each chore is a function: it says Wrong when something is not as it
should be, and leaves all as it was.
"""

import asyncio
import contextlib
import ctypes
import inspect
import io
import multiprocessing
import os
import pickle
import signal
import socket
import sys
import time
import types
import weakref
from wsgiref.util import FileWrapper

import manhole


class Wrong(Exception):
    """Whatever this says, it is no complaint of manhole's."""


def expect(is_so, *what):
    if not is_so:
        raise Wrong(*what)


@contextlib.contextmanager
def raises(expected):
    """Any other exception goes on, MemoryError among them."""
    try:
        yield
    except expected:
        return
    raise Wrong("no %s" % expected)


# ---- Probes -------------------------------------------------------------------------------------


def divide(a, by=1):
    """Divides."""
    return a / by


def count_down(n):
    while n:
        n -= (yield 1 / n) or 1
    raise OSError("zero")


async def fetch(n):
    return 1 / n


async def stream(n):
    while n:
        yield 1 / n
        n -= 1


class Base:
    def inherited(self, n):
        return 1 / n


class Till(Base):
    def method(self, n):
        return 1 / n

    @staticmethod
    def static(n):
        return 1 / n

    @classmethod
    def of_class(cls, n):
        return 1 / n

    bound = divide.__call__


async def drain(n):
    return [part async for part in stream(n)]


# Name: how it is called with 1; and with 0, when it fails.
PROBED = {
    "divide": lambda n: divide(1, by=n),
    "Till.inherited": lambda n: Till().inherited(n),
    "Till.method": lambda n: Till().method(n),
    "Till.static": lambda n: Till.static(n),
    "Till.of_class": lambda n: Till.of_class(n),
    "Till.bound": lambda n: Till().bound(1, n),
    "fetch": lambda n: asyncio.run(fetch(n)),
}
PRISTINE = divide, count_down, stream, fetch, dict(vars(Till))


def put_back():
    """What fails once can be done again."""
    try:
        manhole.unprobe()
    except MemoryError:
        manhole.unprobe()


def check():
    """Nothing is left of any chore."""
    expect((divide, count_down, stream, fetch, dict(vars(Till))) == PRISTINE, "still probed")
    expect(type(divide) is type(check) and not manhole.probes(), manhole.probes())
    expect(not manhole.requests(), manhole.requests())


def observe():
    """Functions of all kinds."""
    try:
        for name, call in PROBED.items():
            probe = manhole.probe("chores:" + name)
            expect(call(1) == 1, name)
            with raises(ZeroDivisionError):
                call(0)
            expect((probe.calls, probe.exceptions) == (2, 1), name, probe)
            probe.remove()
        manhole.probe("chores:count_down")
        expect(next(count_down(2)) == 0.5)
        with raises(OSError):
            list(count_down(2))
        generator = count_down(5)
        expect((next(generator), generator.send(3)) == (1 / 5, 1 / 2))
        with raises(KeyError):
            generator.throw(KeyError())
        count_down(2).close()
        manhole.probe("chores:stream")
        expect(asyncio.run(drain(2)) == [0.5, 1])
        with raises(LookupError):
            manhole.unprobe("chores:nothing")
    finally:
        put_back()


def look_at_probed():
    """It is as functools.wraps() makes it to who looks."""
    before = divide
    facts = divide.__name__, inspect.signature(before)
    try:
        probe = manhole.probe("chores:divide")
        expect(divide is not before, "not probed")
        expect((divide.__name__, inspect.signature(divide)) == facts)
        expect(divide.__wrapped__ is before, "not wrapped")
        expect(pickle.loads(pickle.dumps(divide)) is divide)
        divide.mark = 1
        del divide.mark
        with raises(AttributeError):
            divide.nothing
        with raises(ZeroDivisionError):
            divide(1, 0)
        expect("divide" in repr(divide) and "2 calls" not in repr(probe))
        expect("by" in str(manhole.probes()) or "divide" in str(manhole.probes()))
        text = io.StringIO()
        with contextlib.redirect_stdout(text):
            probe.print()
        expect("ZeroDivisionError" in text.getvalue() == probe.traceback)
        probe.discard()
        expect(probe.traceback is None)
    finally:
        put_back()


# ---- Requests -----------------------------------------------------------------------------------


class Body:
    """With a close() of its own."""

    closed = 0

    def __iter__(self):
        return iter([b"a", b"b"])

    def close(self):
        Body.closed += 1


RESPONSES = {
    "list": lambda: [b"a", b"b"],
    "generator": lambda: (part for part in (b"a", b"b")),
    "body": Body,
    "file": lambda: FileWrapper(io.BytesIO(b"ab"), 1),
}


def serve_request(make):
    """As a server does it."""
    given = {"PATH_INFO": "/slow", "wsgi.file_wrapper": FileWrapper}
    response = manhole.wsgi(lambda environ, start_response: make())(given, None)
    try:
        if hasattr(response, "__len__"):
            expect(len(response) == 2)
        request = manhole.requests()[0]
        text = str(request)
        expect("PATH_INFO = '/slow'" in text, text)
        expect("in serve_request" in request.stack, request.stack)
        expect(b"".join(response) == b"ab")
    finally:
        if hasattr(response, "close"):
            try:
                response.close()
            except MemoryError:
                response.close()


def serve_requests():
    for make in RESPONSES.values():
        serve_request(make)
        check()


class Greenlet:
    gr_frame = sys._getframe()


def serve_in_greenlets():
    """A module of this name is enough."""
    greenlet = Greenlet()
    sys.modules["greenlet"] = types.SimpleNamespace(getcurrent=lambda: greenlet)
    try:
        response = manhole.wsgi(lambda environ, start_response: [b"ab"])({}, None)
        expect(len(manhole.requests()) == 1)
        expect(next(iter(response)) == b"ab")
    finally:
        del sys.modules["greenlet"]
    response.close()
    expect(weakref.ref(greenlet)() is greenlet)


# ---- Streams ------------------------------------------------------------------------------------


class Output(io.StringIO):
    """Stays open."""

    def close(self):
        pass


def replace_streams():
    sys.stdout, sys.stderr = Output(), None


def use_streams():
    """Of a client, while it is connected."""
    with sys.stdout as stream:
        stream.writelines(["kept", "\udc80"])
    sys.stdout.mark = 1
    expect(sys.stdout.mark == 1 and sys.stdout.getvalue() == "kept\udc80")
    sys.stdout.seek(0)
    expect(list(sys.stdout) == ["kept\udc80"])
    expect(next(iter(sys.stdout), None) is None)
    with contextlib.suppress(StopIteration):
        next(sys.stdout)
    expect(sys.stderr.write("lost") == 4)
    with raises(OSError):
        sys.stderr.fileno()
    sys.displayhook(None)


def restore_streams():
    sys.stdout, sys.stderr = sys.__stdout__, sys.__stderr__


# ---- Plugins of a shell of commands -------------------------------------------------------------


class Mine:
    name = "mine"

    def activate(self, config):
        return False

    def shutdown(self):
        pass

    def do_greet(self, line):
        """Greets."""
        print("hello", line, self.stdin.fileno() > 2, file=self.stdout)

    def do_fail(self, line):
        1 / 0


class Idle:
    name = "idle"

    def activate(self, config):
        return True


# ---- What else the module offers ----------------------------------------------------------------


def ask_peer():
    one, other = socket.socketpair()
    with one, other:
        pid, uid, _ = manhole.get_peercred(one)[:3]
        expect((pid, uid) == (os.getpid(), os.getuid()), pid, uid)
        manhole.check_credentials(one)


def dump():
    """To sys.stderr, which is a log here."""
    text, before = io.StringIO(), sys.stderr
    sys.stderr = text
    try:
        manhole.dump_stacktraces()
    finally:
        sys.stderr = before
    expect("in tick" in text.getvalue(), text.getvalue())


def converse(serve, wanted):
    one, other = socket.socketpair()
    with one, other:
        one.sendall(b"print(40 + 2)\nexit()\nexit\n")
        one.shutdown(socket.SHUT_WR)
        serve(other)
        other.close()
        text = b"".join(iter(lambda: one.recv(65536), b"")).decode()
    expect(wanted in text, text)


def handle_connections():
    converse(manhole.handle_connection_repl, "42\n")
    converse(manhole.handle_connection_exec, "")
    converse(manhole.handle_connection_commands, "(manhole:")


def backdoor():
    """As eventlet's function of that name."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        client = socket.create_connection(server.getsockname())
        served = server.accept()
        with client, served[0]:
            manhole.backdoor(served, {"answer": 42})
            served[0].close()
            client.sendall(b"print(answer)\nlater = 1\nexit()\n")
            text = b"".join(iter(lambda: client.recv(65536), b"")).decode()
    expect("42\n" in text, text)


def handle(client):
    """A connection_handler that calls ours, with the session's own socket."""
    manhole.handle_connection_repl(client)


def refuse_options():
    for wrong in (
        {"config": "broken.ini"},
        {"config": "wrong.ini"},
        {"enable": ["nonsense"]},
        {"listen": ["nonsense"]},
        {"sigmask": [1000]},
        {"locals": 1},
    ):
        with raises((ValueError, TypeError)):
            manhole.install(**wrong)


# ---- gevent's, which is not there ---------------------------------------------------------------


class Hub:
    destroyed = 0

    def destroy(self, destroy_loop):
        Hub.destroyed += 1


def pretend_gevent():
    sys.modules["gevent.monkey"] = types.SimpleNamespace(get_original=lambda *_: socket.socket)
    sys.modules["gevent._hub_local"] = types.SimpleNamespace(get_hub_if_exists=Hub)


def forget_gevent():
    del sys.modules["gevent.monkey"], sys.modules["gevent._hub_local"]


# ---- Children of multiprocessing ----------------------------------------------------------------


def wait_for_socket():
    path = "/tmp/manhole-%d" % os.getpid()
    deadline = time.monotonic() + 1
    while not os.path.exists(path) and time.monotonic() < deadline:
        time.sleep(0.002)


def install_and_wait():
    manhole.install()
    wait_for_socket()


def run_child(target):
    child = multiprocessing.get_context("fork").Process(target=target)
    child.start()
    child.join()
    path = "/tmp/manhole-%d" % child.pid
    expect(child.exitcode == 0, child.exitcode)
    if os.path.exists(path):
        os.unlink(path)
        raise Wrong("a socket is left")


def leave_dead_socket():
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind("/tmp/manhole-%d" % os.getpid())


# ---- The C API ----------------------------------------------------------------------------------


class Options(ctypes.Structure):
    """manhole_options"""

    _fields_ = [
        *((name, ctypes.c_int) for name in "verbose destination strict fork thread".split()),
        *((name, ctypes.c_int) for name in "activate_on oneshot_on daemon stderr".split()),
        *((name, ctypes.c_double) for name in "reinstall start oneshot hang".split()),
        ("max_sessions", ctypes.c_int),
        ("socket_path", ctypes.c_char_p),
        ("connection_handler", ctypes.c_char_p),
        ("locals", ctypes.py_object),
        *((name, ctypes.c_char_p) for name in ("listen", "config", "enable")),
    ]


def install_by_c():
    """As a program does that embeds Python and has not imported the module."""
    api = ctypes.PyDLL(manhole.__file__)
    del sys.modules["manhole"]
    options = Options(1, 2, 1, 1, 1, 0, 0, 0, 1, 0.5, 0.5, 60.0, 1.0, 64)
    options.activate_on = signal.SIGUSR1
    options.connection_handler = b"repl"
    options.locals = {"a": 1}
    expect(api.manhole_install(ctypes.byref(options)) == 0)


def dump_by_c():
    """By a thread that has the GIL and by one that has not: all of it, or an error."""
    for load in (ctypes.PyDLL, ctypes.CDLL):
        ours, theirs = os.pipe()
        with open(ours, "rb") as pipe:
            try:
                failed = load(manhole.__file__, use_errno=True).manhole_dump_stacks(theirs)
            finally:
                os.close(theirs)
            text = pipe.read().decode()
        if failed:
            raise OSError(ctypes.get_errno(), "manhole_dump_stacks")
        expect("in tick" in text, text)
