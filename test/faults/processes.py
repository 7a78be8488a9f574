"""Applications with a manhole, clients of theirs, manhole-cli; and what is waited for."""

import ast
import contextlib
import errno
import os
import re
import select
import shlex
import socket
import subprocess
import sys
import tempfile
import time

DEADLINE = 5  # seconds, for what takes milliseconds
PATIENCE = 1  # for a text that may not come because of the fault
PROMPT = ">>> "


class Pace:
    """All waiting may take so many times as long."""

    slowness = 1


def patiently(seconds):
    return seconds * Pace.slowness


class Fault(Exception):
    """What must not be."""


class Unserved(Exception):
    """A client did not get what it asked for; the text that it got instead."""


class Ended(Unserved):
    """The other side has closed."""


class Hang(Fault):
    pass


def read_until(fd, text, is_enough, what, seconds=DEADLINE):
    """Reads on until is_enough(text). Raises Ended at the end of the stream."""
    deadline = time.monotonic() + patiently(seconds)
    while not is_enough(text):
        left = deadline - time.monotonic()
        if left <= 0 or not select.select([fd], [], [], left)[0]:
            raise Hang("hangs: waits for %s after %r" % (what, bytes(text[-300:])))
        try:
            piece = os.read(fd, 65536)
        except OSError:
            piece = b""
        if not piece:
            raise Ended(text.decode(errors="replace"))
        text += piece
    return text


def wait_until(is_so, seconds=DEADLINE):
    deadline = time.monotonic() + patiently(seconds)
    while not is_so():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.002)
    return True


class Client:
    def __init__(self, address, card=None):
        self.text = bytearray()
        self.all = ""
        self.socket = socket.socket(
            socket.AF_INET if isinstance(address, tuple) else socket.AF_UNIX
        )
        try:
            if card is not None:
                self.socket.bind("\0manhole-cli/%s" % card)
            wait_until(lambda: self.socket.connect_ex(address) != errno.ECONNREFUSED, PATIENCE)
            self.socket.getpeername()
        except OSError as error:
            self.socket.close()
            raise Unserved("connect: %s" % error) from error

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.socket.close()

    def send(self, text):
        try:
            self.socket.sendall(text.encode())
        except OSError:
            pass  # what it then reads says more

    def read(self, is_enough, what):
        """Who has answered wrongly, but still does, is no hang."""
        fd = self.socket.fileno()
        try:
            read_until(fd, self.text, is_enough, what, PATIENCE)
        except Hang:
            size = len(self.text)
            self.send("\n")
            read_until(fd, self.text, lambda text: len(text) > size, what)
            raise Unserved(self.all + self.text.decode(errors="replace")) from None

    def wait_for(self, text):
        wanted = text.encode()
        try:
            self.read(lambda got: wanted in got, repr(text))
        except Unserved as unserved:
            raise Unserved(self.all + str(unserved)) from None
        before, _, rest = bytes(self.text).partition(wanted)
        self.text = bytearray(rest)
        answer = before.decode(errors="replace")
        self.all += answer + text
        return answer

    def read_to_end(self):
        """All that it has received."""
        try:
            self.read(lambda _: False, "the end")
        except Ended:
            pass
        return self.all + self.text.decode(errors="replace")

    def ask(self, line, wanted, prompt=PROMPT):
        """The answer must have this in it, or else the client is unserved."""
        self.send(line + "\n")
        if wanted not in self.wait_for(prompt):
            raise Unserved(self.all)


# It works for itself in two threads: one ticks, the main thread does what stdin says, line by line.
APPLICATION = """
import ctypes, os, signal, socket, sys, threading, time
sys.path.insert(0, %(folder)r)
ticks = 0
def tick():
    global ticks
    while True:
        time.sleep(0.005)
        ticks += 1
threading.Thread(target=tick, daemon=True).start()
usleep = ctypes.PyDLL(None).usleep # keeps the GIL
def install(**options):
    import manhole
    global it
    it = manhole.install(**options)
    return it
def fork():
    global child, pipe
    ends = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(ends[1])
        os.read(ends[0], 1)
        sys.exit(0)
    os.close(ends[0])
    pipe = ends[1]
    return child
def join():
    os.close(pipe)
    return os.waitpid(child, 0)[1]
def count():
    return len(os.listdir('/proc/self/fd')), len(os.listdir('/proc/self/task'))
class Lines(list):
    write = list.append
    def take(self):
        text = ''.join(self)
        self.clear()
        return text
log = Lines()
def serve(client):
    client.sendall(b'served')
    client.close()
def open_backdoor():
    import manhole
    global backdoor
    backdoor = socket.create_server(('127.0.0.1', 0))
    manhole.backdoor_server(backdoor)
    return backdoor.getsockname()[1]
def close_backdoor():
    backdoor.shutdown(socket.SHUT_RDWR)
    backdoor.close()
names = globals()
def lines():
    rest = b''
    while True:
        piece = os.read(0, 4096)
        if not piece:
            return
        rest += piece
        while b'\\n' in rest:
            line, _, rest = rest.partition(b'\\n')
            yield line.decode()
for line in lines():
    try:
        answer = repr(eval(line, names))
    except Exception as error:
        answer = 'raised %%r' %% error
    os.write(1, answer.encode() + b'\\n')
"""


def client_command(app, arguments):
    names = {"PID": str(app.pid), "FOLDER": re.escape(app.folder)}
    named = [names.get(word, word) for word in arguments]
    return [os.path.join(app.folder, "manhole-cli"), *named]


def run_client(app, arguments, stdin="", order=None):
    """manhole-cli: its status, and what it says on stdout and stderr."""
    try:
        done = subprocess.run(
            client_command(app, arguments),
            input=stdin,
            capture_output=True,
            text=True,
            timeout=patiently(DEADLINE),
            env=client_environment(app, order),
            cwd=app.folder,
        )
    except subprocess.TimeoutExpired:
        raise Fault("hangs: manhole-cli " + shlex.join(arguments)) from None
    return done.returncode, done.stdout, done.stderr


def client_environment(app, order):
    path = app.folder + ":" + os.environ["PATH"]
    environment = dict(os.environ, HOME=app.folder, TERM="xterm", PATH=path)
    if order is not None:
        environment["FAULTS"] = order.path
    return environment


def forget_predecessor(path):
    """A socket that a process with this number has left long ago, which another of ours now has."""
    with contextlib.suppress(FileNotFoundError):
        if os.lstat(path).st_mtime < time.time() - 1:
            os.unlink(path)


class Application:
    def __init__(self, folder, order=None):
        self.log = tempfile.TemporaryFile(dir=folder)
        self.logged = 0
        self.answers = bytearray()
        environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
        if order is not None:
            environment["FAULTS"] = order.path
        self.process = subprocess.Popen(
            [sys.executable, "-c", APPLICATION % {"folder": folder}],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.log,
            env=environment,
            cwd=folder,
            bufsize=0,
        )
        self.pid = self.process.pid
        self.path = "/tmp/manhole-%d" % self.pid
        self.folder = folder
        self.address = self.path  # of its clients
        self.idle = None  # what count() is then
        forget_predecessor(self.path)

    def order(self, line):
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.write(line.encode() + b"\n")

    def answer(self):
        try:
            read_until(
                self.process.stdout.fileno(), self.answers, lambda t: b"\n" in t, "app"
            )
        except Unserved:
            status = self.process.wait(patiently(DEADLINE))
            raise Fault("the application has ended: %d" % status) from None
        answer, _, rest = bytes(self.answers).partition(b"\n")
        self.answers = bytearray(rest)
        return answer.decode()

    def do(self, expression):
        self.order(expression)
        return self.answer()

    def new_log(self):
        """What it has logged since the last call, on stderr and to its object."""
        self.log.seek(self.logged)
        text = self.log.read()
        self.logged += len(text)
        object_has = ""
        if self.process.poll() is None and not self.process.stdin.closed:
            with contextlib.suppress(Fault):
                object_has = ast.literal_eval(self.do("log.take()"))
        return text.decode(errors="replace") + object_has

    def count(self):
        """Its descriptors and threads."""
        return tuple(map(int, re.findall(r"\d+", self.do("count()"))))

    def is_idle(self):
        return self.count() == self.idle

    def memory_kib(self):
        with open("/proc/%d/statm" % self.pid) as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") // 1024

    def check_work(self):
        ticks = int(self.do("ticks"))
        if not wait_until(lambda: int(self.do("ticks")) > ticks):
            raise Fault("a thread of the application's stands still")

    def end(self):
        """Its exit status."""
        self.process.stdin.close()
        try:
            return self.process.wait(patiently(DEADLINE))
        except subprocess.TimeoutExpired:
            raise Fault("the application does not end") from None

    def kill(self):
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()

    def clean_up(self):
        self.kill()
        for stream in (self.process.stdin, self.process.stdout, self.log):
            with contextlib.suppress(OSError):
                stream.close()
        left = os.path.lexists(self.path)
        with contextlib.suppress(OSError):
            os.unlink(self.path)
        return left
