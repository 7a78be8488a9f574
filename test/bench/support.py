"""What the rows of bench.py stand on: processes with a manhole, clients, rounds, figures."""

import contextlib
import dataclasses
import json
import os
import select
import socket
import statistics
import struct
import subprocess
import sys
import time

PROMPT = b">>> "
# For anything that should take a moment; a process that is stuck ends the row.
PATIENCE_S = 60

# The first lines of every program that runs with a manhole, or without one: it tells values to
# this process, and waits to be asked for the next.
PREAMBLE = """
import json, os, sys, threading, time

def tell(value):
    os.write(1, json.dumps(value).encode() + b'\\n')

def asked():
    return os.read(0, 1)

def install():
    import manhole
    return manhole.install(verbose=False).uds_name

def start(function, *arguments):
    threading.Thread(target=function, args=arguments, daemon=True).start()
"""


class NotMeasured(Exception):
    """Something that a row needs is missing; the message says what, and what to do."""


@dataclasses.dataclass
class Place:
    """Where things are."""

    build: str  # our module and manhole-cli
    scratch: str  # a folder of the bench's own, with the module of native.c
    peer: str  # the folder that holds python-manhole's package, or empty

    @property
    def sides(self):
        return ["ours", "theirs"] if self.peer else ["ours"]

    def by_side(self, **more):
        return dict({side: side for side in self.sides}, **more)

    def environment(self, side):
        """Returns an environment in which `import manhole` means that of the side."""
        folders = {"ours": [self.build], "theirs": [self.peer], "none": []}[side] + [self.scratch]
        kept = {name: os.environ[name] for name in ("PATH", "TMPDIR") if name in os.environ}
        return dict(kept, PYTHONPATH=":".join(folders), HOME=self.scratch, LC_ALL="C.UTF-8")

    def target(self, side, program, *arguments):
        return Target(self.environment(side), self.scratch, PREAMBLE + program, arguments)

    @contextlib.contextmanager
    def targets(self, program, *arguments):
        """Processes with a manhole that run the same program, a dict by side."""
        with contextlib.ExitStack() as stack:
            targets = {side: self.target(side, program, *arguments) for side in self.sides}
            for target in targets.values():
                stack.enter_context(target)
            for target in targets.values():
                target.wait_for_socket()
            yield targets

    def run(self, side, program, *arguments):
        """Returns what a program that ends by itself has told."""
        with self.target(side, program, *arguments) as target:
            return target.hear()


class Target:
    """A process. Its first word, if it has a manhole, is the path of its socket."""

    def __init__(self, environment, folder, program, arguments):
        self.socket_path = None
        self.process = subprocess.Popen(
            [sys.executable, "-c", program, *map(str, arguments)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=environment,
            cwd=folder,
        )

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.communicate()
        with contextlib.suppress(FileNotFoundError):
            os.unlink("/tmp/manhole-%d" % self.pid)

    @property
    def pid(self):
        return self.process.pid

    def hear(self):
        """Returns the next value that it tells."""
        line = b""
        while not line.endswith(b"\n"):
            if not select.select([self.process.stdout], [], [], PATIENCE_S)[0]:
                raise RuntimeError("nothing said within %d s" % PATIENCE_S)
            part = os.read(self.process.stdout.fileno(), 1 << 16)
            if not part:
                raise RuntimeError("ended with status %d" % self.process.wait())
            line += part
        return json.loads(line)

    def say(self):
        self.process.stdin.write(b"?")
        self.process.stdin.flush()

    def ask(self):
        self.say()
        return self.hear()

    def asking_ms(self):
        """Returns the time from a byte that a thread waits for in read(), to its answer."""
        begin = time.perf_counter()
        self.ask()
        return (time.perf_counter() - begin) * 1e3

    def wait_for_socket(self):
        """Hears its path. python-manhole's is not there at once."""
        self.socket_path = self.hear()
        deadline = time.monotonic() + PATIENCE_S
        while not os.path.exists(self.socket_path):
            if time.monotonic() > deadline:
                raise RuntimeError("no socket at " + self.socket_path)
            time.sleep(0.001)
        time.sleep(0.02)  # python-manhole's listen() after its bind()
        return self

    def client(self):
        return Client(self.socket_path)


class Client:
    """A client of a manhole. It blocks in the kernel, with no poll() before each recv()."""

    def __init__(self, address, family=socket.AF_UNIX):
        self.unread = b""
        self.begin = time.perf_counter()
        self.socket = socket.socket(family)
        patience = struct.pack("ll", PATIENCE_S, 0)
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, patience)
        self.socket.connect(address)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.socket.close()

    def receive(self):
        try:
            part = self.socket.recv(1 << 18)
        except BlockingIOError:
            raise RuntimeError("nothing came within %d s" % PATIENCE_S) from None
        if not part:
            raise RuntimeError("the manhole hung up")
        return part

    def read_until(self, text):
        """Reads up to the text. Returns the seconds since the connection was begun."""
        while text not in self.unread:
            self.unread = self.unread[1 - len(text) :] + self.receive()
        self.unread = self.unread.split(text, 1)[1]
        return time.perf_counter() - self.begin

    def send(self, line):
        self.socket.sendall(line.encode() + b"\n")

    def round_trip(self, line):
        """Returns the seconds from a line sent to the next prompt."""
        begin = time.perf_counter()
        self.send(line)
        self.read_until(PROMPT)
        return time.perf_counter() - begin

    def leave(self):
        """Ends the session, and returns when the server has closed its end."""
        self.send("exit()")
        while self.socket.recv(1 << 18):
            pass


def prompt_ms(target):
    """Returns the time from a connection to its prompt. The session has ended afterwards."""
    with target.client() as client:
        seconds = client.read_until(PROMPT)
        client.leave()
    time.sleep(0.01)  # python-manhole takes the next one when the last one's thread has ended
    return seconds * 1e3


def alternate(rounds, subjects, measure):
    """Measures each of the subjects, a dict, once a round; returns a list of values for each.

    So whatever else the machine does falls on all alike. One more round, the first, warms up.
    """
    samples = {name: [] for name in subjects}
    for i in range(rounds + 1):
        for name, subject in subjects.items():
            value = measure(subject)
            if i > 0:
                samples[name].append(value)
    return samples


def columns(samples):
    """Takes samples of tuples apart: returns a dict of samples for each place in the tuples."""
    count = len(next(iter(samples.values()))[0])
    return [
        {side: [value[i] for value in values] for side, values in samples.items()}
        for i in range(count)
    ]


# ---- Figures, and the goals that they are held to --------------------------------------------


@dataclasses.dataclass
class Goal:
    text: str
    of: str  # what ours is compared to, one of Figure.samples; or empty
    reach: object  # (ours, other) -> the number that is judged
    is_met: object  # that number -> bool
    shown: str = "%.3g"  # how that number is shown


@dataclasses.dataclass
class Figure:
    what: str
    unit: str
    samples: dict  # "ours", "theirs", "bare" (no manhole, the least possible): lists of numbers
    goals: list = dataclasses.field(default_factory=list)

    def median(self, side):
        values = self.samples.get(side)
        return statistics.median(values) if values else None

    def judge(self, goal):
        """Returns the number that a goal is about, and whether it is met; None where unknown."""
        other = self.median(goal.of) if goal.of else 0
        if other is None:
            return None, None
        reached = goal.reach(self.median("ours"), other)
        return reached, goal.is_met(reached)


def _quotient(a, b):
    return a / b if b else float("inf")


def below(limit, unit):
    return Goal("under %g %s" % (limit, unit), "", lambda ours, _: ours, lambda x: x < limit)


def none_at_all():
    return Goal("none", "", lambda ours, _: ours, lambda x: x == 0)


def least(limit):
    return Goal("at least %g" % limit, "", lambda ours, _: ours, lambda x: x >= limit)


def more_than_bare(limit, unit):
    text = "under %g %s more than bare" % (limit, unit)
    return Goal(text, "bare", lambda ours, bare: ours - bare, lambda x: x < limit, "%+.3g")


def share_of(side, limit):
    return Goal("at most %gx %s" % (limit, side), side, _quotient, lambda x: x <= limit, "%.2fx")


def times_less_than_theirs(limit):
    return Goal(
        "theirs at least %gx ours" % limit,
        "theirs",
        lambda ours, theirs: _quotient(theirs, ours),
        lambda x: x >= limit,
        "%.1fx",
    )


def at_least_share_of(side, limit):
    return Goal("at least %gx %s" % (limit, side), side, _quotient, lambda x: x >= limit, "%.2fx")
