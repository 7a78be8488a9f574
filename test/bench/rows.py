"""The rows of bench.py: a function each, named as BENCH has it, that returns its figures."""

import contextlib
import os
import shutil
import socket
import statistics
import subprocess
import sys
import threading
import time

from support import (
    PATIENCE_S,
    PROMPT,
    Client,
    Figure,
    NotMeasured,
    alternate,
    at_least_share_of,
    below,
    columns,
    least,
    more_than_bare,
    none_at_all,
    prompt_ms,
    share_of,
    times_less_than_theirs,
)

# ---- A process that nobody asks anything -----------------------------------------------------

IMPORT = """
begin = time.perf_counter_ns()
import manhole
manhole.install(verbose=False)
tell((time.perf_counter_ns() - begin) / 1e6)
"""

MODULES = """
before = set(sys.modules)
install()
tell(len(set(sys.modules) - before - set(sys.builtin_module_names) - {"manhole"}))
"""


def row_import(place, _):
    samples = alternate(31, place.by_side(), lambda side: place.run(side, IMPORT))
    modules = alternate(1, place.by_side(), lambda side: place.run(side, MODULES))
    return [
        Figure("import + install", "ms", samples, [below(1, "ms"), times_less_than_theirs(15)]),
        Figure("modules that it imports", "", modules, [none_at_all()]),
    ]


IDLE = """
tell(os.getpid())
asked()
tell(install())
asked()
"""


def resident_kib(pid):
    """Returns what is resident, and what of it is the process's own."""
    with open("/proc/%d/smaps_rollup" % pid) as file:
        lines = dict(line.split(":") for line in file if line.count(":") == 1)
    return [int(lines[name].split()[0]) for name in ("Rss", "Anonymous")]


def memory_of_manhole(target):
    """Returns by how much both grow."""
    target.hear()
    before = resident_kib(target.pid)
    target.say()
    target.wait_for_socket()
    time.sleep(0.05)
    return [kib - kib_before for kib, kib_before in zip(resident_kib(target.pid), before)]


def row_memory(place, _):
    def measure(side):
        with place.target(side, IDLE) as target:
            return memory_of_manhole(target)

    resident, own = columns(alternate(9, place.by_side(), measure))
    return [
        Figure("resident, idle: of its own", "KiB", own, [below(128, "KiB")]),
        Figure("resident, idle: with the library's pages", "KiB", resident, [below(128, "KiB")]),
    ]


def context_switches(pid):
    """Returns the context switches of all threads so far."""
    switches = 0
    for tid in os.listdir("/proc/%d/task" % pid):
        with open("/proc/%d/task/%s/status" % (pid, tid)) as file:
            switches += sum(int(line.split()[1]) for line in file if "ctxt_switches" in line)
    return switches


class Tracer:
    """strace on all threads of a process, from now on."""

    def __init__(self, pid, path):
        if not shutil.which("strace"):
            raise NotMeasured("strace is missing; on Debian: apt-get install strace")
        self.path = path
        self.process = subprocess.Popen(
            ["strace", "-f", "-o", path, "-p", str(pid)], stderr=subprocess.PIPE
        )
        said = self.process.stderr.readline()
        if b"attached" not in said:
            raise NotMeasured(said.decode().strip())

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.communicate()
        os.unlink(self.path)

    def calls(self):
        """Ends it. Returns the number of system calls that began since."""
        self.process.terminate()
        self.process.wait()
        with open(self.path) as file:
            begun = [line for line in file if "(" in line and " resumed>" not in line]
        # strace shows the call that it finds a thread in as well.
        return len(begun) - len({line.split()[0] for line in begun})


def row_idle(place, options):
    with contextlib.ExitStack() as stack:
        traced, watched = (stack.enter_context(place.targets(SERVE)) for _ in range(2))
        time.sleep(0.2)
        tracers = {
            side: stack.enter_context(
                Tracer(target.pid, os.path.join(place.scratch, "strace." + side))
            )
            for side, target in traced.items()
        }
        before = {side: context_switches(target.pid) for side, target in watched.items()}
        time.sleep(options.idle_seconds)
        switches = {
            side: [context_switches(target.pid) - before[side]]
            for side, target in watched.items()
        }
        calls = {side: [tracer.calls()] for side, tracer in tracers.items()}
    seconds = "in %g s" % options.idle_seconds
    return [
        Figure("idle: context switches " + seconds, "", switches, [none_at_all()]),
        Figure("idle: system calls " + seconds, "", calls, [none_at_all()]),
    ]


# ---- From the connection to the prompt -------------------------------------------------------

SERVE = """
tell(install())
while asked():
    pass
"""


# The same without a manhole: a thread of C for each client, which knows nothing of Python.
BARE_SERVE = """
import native
path = "/tmp/manhole-%d" % os.getpid()
native.serve(path)
tell(path)
while asked():
    pass
"""


def row_prompt(place, _):
    programs = place.by_side(bare="none")

    def start(side):
        return place.target(side, BARE_SERVE if side == "none" else SERVE)

    def measure_first(side):
        with start(side) as target:
            return prompt_ms(target.wait_for_socket())

    first = alternate(15, programs, measure_first)
    with contextlib.ExitStack() as stack:
        targets = {name: stack.enter_context(start(side)) for name, side in programs.items()}
        for target in targets.values():
            target.wait_for_socket()
        later = alternate(101, targets, prompt_ms)
    what = "prompt, idle process%s; bare: a thread of C"
    return [
        Figure(what % "", "ms", later, [share_of("theirs", 0.4)]),
        Figure(what % ", first client", "ms", first, [share_of("theirs", 0.4)]),
    ]


BUSY = """
begin = threading.Lock()
begin.acquire()

def compute():
    begin.acquire()
    begin.release()
    x = 0
    while True:
        x += 1

for _ in range(4):
    start(compute)
tell(install() if sys.argv[1] != "none" else None)
asked()
begin.release()
tell(0)
asked()
tell(0)
"""


def row_busy(place, _):
    """A process of its own for each client: python-manhole sets the switch interval to 36 minutes
    when one leaves, and may have to wait for the GIL just then."""

    def measure(side):
        with place.target(side, BUSY, side) as target:
            if side == "none":
                target.hear()
            else:
                prompt_ms(target.wait_for_socket())  # to warm up
            target.ask()
            time.sleep(0.2)  # until each of them has computed, and the main thread waits
            if side == "none":
                return target.asking_ms()
            with target.client() as client:
                return client.read_until(PROMPT) * 1e3

    samples = alternate(51, place.by_side(bare="none"), measure)
    goals = [share_of("bare", 1.5), times_less_than_theirs(8)]
    return [Figure("prompt beside 4 busy threads; bare: a GIL hand-over", "ms", samples, goals)]


HANG = """
import native
tell(install())
while asked():
    native.hold(float(sys.argv[1]))
"""
HANG_TIMEOUT_S = 1
HELD_S = 2


def stack_while_stuck_ms(target):
    target.say()
    time.sleep(0.05)  # until the GIL is held
    with target.client() as client:
        seconds = client.read_until(b"ThreadID=")
        client.read_until(PROMPT)
        client.leave()
    return seconds * 1e3


def row_hang(place, _):
    with place.targets(HANG, HELD_S) as targets:
        samples = alternate(5, targets, stack_while_stuck_ms)
    what = "first stack, GIL stuck for %g s" % HELD_S
    return [Figure(what, "ms", samples, [below(HANG_TIMEOUT_S * 1000 + 20, "ms")])]


# Each time it tells how long a bare walk takes, and, of a thread that does nothing but tick, the
# longest gap and the sum of the gaps until it is asked again.
TICK = """
import native

def tick(gaps, ticking):
    last = time.perf_counter_ns()
    while ticking:
        now = time.perf_counter_ns()
        if now - last > 100000:
            gaps.append((now - last) / 1e6)
        last = now

def tick_when_asked(walk):
    while asked():
        ns, frames, _ = walk()
        tell([ns / 1e6, frames])
        asked()
        gaps, ticking = [], [True]
        ticker = threading.Thread(target=tick, args=(gaps, ticking), daemon=True)
        ticker.start()
        tell(0)
        asked()
        ticking.clear()
        ticker.join()
        tell([max(gaps, default=0), sum(gaps)])
"""

THREADS = """

gate = threading.Lock()
gate.acquire()
reached = threading.Semaphore(0)

# The bits of i make each thread's stack another one.
def even(i, depth):
    descend(i, depth)

def odd(i, depth):
    descend(i, depth)

def descend(i, depth):
    if depth == 0:
        reached.release()
        gate.acquire()
    else:
        (odd if i & 1 else even)(i >> 1, depth - 2)

count, depth = int(sys.argv[1]), int(sys.argv[2])
threading.stack_size(256 * 1024)
for i in range(count):
    start(descend, i, depth - 4)  # 3 of threading's, one of its own
    reached.acquire()

tell(install())
tick_when_asked(native.walk)
"""
THREAD_COUNT, FRAME_COUNT = 1000, 50


def look_at_threads(target):
    """Returns the ms to the prompt, of the longest stall, of all of them, of a bare walk."""
    walk_ms, frames = target.ask()
    if frames < THREAD_COUNT * FRAME_COUNT:
        raise RuntimeError("only %d frames" % frames)
    idle_ms = prompt_ms(target)
    target.ask()
    with target.client() as client:
        client.read_until(PROMPT)
        stalls_ms = target.ask()  # before it leaves, see row_busy()
        client.leave()
    return (idle_ms, *stalls_ms, walk_ms)


def row_threads(place, _):
    with place.targets(TICK + THREADS, THREAD_COUNT, FRAME_COUNT) as targets:
        prompt, longest, total, walk = columns(alternate(9, targets, look_at_threads))
    longest["bare"] = walk["ours"]
    what = "%d threads x %d frames: " % (THREAD_COUNT, FRAME_COUNT)
    return [
        Figure(what + "prompt", "ms", prompt, [times_less_than_theirs(5)]),
        Figure(
            what + "longest stall; bare: a walk in C",
            "ms",
            longest,
            [times_less_than_theirs(10), share_of("bare", 2)],
        ),
        Figure(what + "sum of stalls", "ms", total),
    ]


TASKS = """
import asyncio

async def leaf(gate):
    await gate.wait()

def serve(tasks):
    tell(install())
    tick_when_asked(lambda: native.walk_tasks(tasks))

async def main():
    gate = asyncio.Event()
    tasks = [asyncio.create_task(leaf(gate)) for _ in range(int(sys.argv[1]))]
    await asyncio.sleep(0)
    start(serve, tasks)
    await gate.wait()

asyncio.run(main())
"""
TASK_COUNT = 10000


def look_at_tasks(place, target, option):
    """Returns the ms of manhole-cli, of the longest stall, of all of them, of a bare walk."""
    command = [place.build + "/manhole-cli", str(target.pid), *option.split()]
    environment = place.environment("none")
    walk_ms, frames = target.ask()
    if frames < 2 * TASK_COUNT:
        raise RuntimeError("only %d frames" % frames)
    idle_ms = run_ms(command, os.devnull, environment)
    target.ask()
    run_ms(command, os.devnull, environment)
    return (idle_ms, *target.ask(), walk_ms)


def row_tasks(place, _):
    options = ["--tasks", "--stacks", "--stacks --json"]
    with place.target("ours", TICK + TASKS, TASK_COUNT) as target:
        target.wait_for_socket()
        looks = alternate(
            9, dict(zip(options, options)), lambda option: look_at_tasks(place, target, option)
        )
    figures = []
    for option in options:
        taken, longest, total, walk = columns({"ours": looks[option]})
        longest["bare"] = walk["ours"]
        what = "%d tasks, %s: " % (TASK_COUNT, option)
        figures += [
            Figure(what + "manhole-cli", "ms", taken),
            Figure(what + "longest stall; bare: a walk in C", "ms", longest, [share_of("bare", 2)]),
            Figure(what + "sum of stalls", "ms", total),
        ]
    return figures


BRIEF = """
def serve():
    threading.Event().wait()

for _ in range(int(sys.argv[1])):
    start(serve)
tell(install())
asked()
"""
WORKERS, WORKER_THREADS = 8, 50


def row_brief(place, _):
    with contextlib.ExitStack() as stack:
        workers = [
            stack.enter_context(place.target("ours", BRIEF, WORKER_THREADS)).wait_for_socket()
            for _ in range(WORKERS)
        ]
        pids = [str(worker.pid) for worker in workers]
        commands = {
            side: [place.build + "/manhole-cli", option, *pids]
            for side, option in (("ours", "--brief"), ("bare", "--json"))
        }
        environment = place.environment("none")
        samples = alternate(21, commands, lambda command: run_ms(command, os.devnull, environment))
    what = "%d processes x %d threads: --brief; bare: --stacks --json" % (WORKERS, WORKER_THREADS)
    return [Figure(what, "ms", samples)]


FROZEN = """
memory = bytearray(int(sys.argv[1]) << 20)
memory[::4096] = b"x" * len(memory[::4096])
for _ in range(int(sys.argv[2])):
    start(threading.Event().wait)
tell(install())
tick_when_asked(native.walk)
"""
FROZEN_MIB, FROZEN_THREADS = 100, 50


def row_frozen(place, _):
    asked = {"--frozen -c 1": "-c 1", "--stacks --locals": "--stacks"}
    environment = place.environment("none")

    def run(target, options):
        command = [place.build + "/manhole-cli", str(target.pid), *options.split()]
        return run_ms(command, os.devnull, environment)

    def look(target, options):
        target.ask()
        idle_ms = run(target, options)
        target.ask()
        run(target, options)
        return (idle_ms, target.ask()[0])

    figures = []
    with place.target("ours", TICK + FROZEN, FROZEN_MIB, FROZEN_THREADS) as target:
        target.wait_for_socket()
        for copied, plain in asked.items():
            sides = {"ours": copied, "bare": plain}
            taken, stall = columns(alternate(9, sides, lambda options: look(target, options)))
            what = "%d MB, %d threads, %s; bare: %s" % (FROZEN_MIB, FROZEN_THREADS, copied, plain)
            figures += [
                Figure(what, "ms", taken),
                Figure(what + ": longest stall", "ms", stall),
            ]
    with place.target("ours", HANG, HELD_S) as target:
        target.wait_for_socket()

        def ask_while_stuck(options):
            target.say()
            time.sleep(0.05)  # until the GIL is held
            taken_ms = run(target, options)
            with target.client() as client:
                client.read_until(PROMPT)  # it is let go of
                client.leave()
            return taken_ms

        samples = alternate(5, {"ours": "--frozen -c 1"}, ask_while_stuck)
    figures.append(Figure("--frozen -c 1, GIL stuck for %g s" % HELD_S, "ms", samples))
    return figures


# ---- A session -------------------------------------------------------------------------------

LINE = "len(sys.modules)"

# The same without a manhole: a thread that reads the line, runs it and answers.
BARE_LINE = """
import socket

def serve(server):
    client = server.accept()[0]
    client.sendall(b">>> ")
    answer = []
    sys.displayhook = lambda value: answer.append(repr(value))
    names = {"sys": sys}
    while True:
        line = client.recv(4096)
        exec(compile(line, "<bare>", "single"), names)
        client.sendall((answer.pop() + "\\n>>> ").encode())

def alone(line):
    names = {"sys": sys}
    begin = time.perf_counter_ns()
    exec(compile(line, "<bare>", "single"), names)
    return (time.perf_counter_ns() - begin) / 1e6

path = "/tmp/manhole-%d" % os.getpid()
server = socket.socket(socket.AF_UNIX)
server.bind(path)
server.listen()
start(serve, server)
tell(path)
while asked():
    tell(alone(sys.argv[1]))
"""


@contextlib.contextmanager
def one_processor():
    """For this process and what it starts: else it is luck who finds the other on its own."""
    processors = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {max(processors)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, processors)


def row_line(place, _):
    with contextlib.ExitStack() as stack:
        stack.enter_context(one_processor())
        targets = stack.enter_context(place.targets(SERVE))
        bare = stack.enter_context(place.target("none", BARE_LINE, LINE))
        measures = {}
        for side, target in dict(targets, bare=bare.wait_for_socket()).items():
            client = stack.enter_context(target.client())
            client.read_until(PROMPT)
            measures[side] = lambda client=client: client.round_trip(LINE) * 1e3
        samples = alternate(501, dict(measures, alone=bare.ask), lambda measure: measure())
    alone = {"ours": samples["ours"], "bare": samples.pop("alone")}
    what = "a line's round trip; bare: "
    return [
        Figure(
            what + "recv, compile, exec, send",
            "ms",
            samples,
            [share_of("theirs", 0.5), share_of("bare", 2)],
        ),
        Figure(what + "compile, exec", "ms", alone, [share_of("bare", 2)]),
    ]


OUTPUT_MB = 100
OUTPUTS = {
    "lines of 100 bytes": "for i in range(%d): print('x' * 99)\n" % (OUTPUT_MB * 10000),
    "pieces of 1 MB": "for i in range(%d): print('x' * 999999)\n" % OUTPUT_MB,
}


def output_mb_s(target, code):
    with target.client() as client:
        client.read_until(PROMPT)
        seconds = client.round_trip(code)
        client.leave()
    return OUTPUT_MB / seconds


def row_output(place, _):
    figures = []
    with place.targets(SERVE) as targets:
        for shape, code in OUTPUTS.items():
            samples = alternate(5, targets, lambda target: output_mb_s(target, code))
            what = "%d MB of output, %s" % (OUTPUT_MB, shape)
            figures.append(Figure(what, "MB/s", samples, [at_least_share_of("theirs", 1)]))
    return figures


def row_tcp(place, _):
    program = "import manhole; places = ['localhost:0', './%(pid)s.sock']\n"
    program += "tell(manhole.install(verbose=False, listen=places).addresses); asked()"
    with place.target("ours", program) as target:
        tcp, path = target.hear()
        host, port = tcp.split(":")
        ways = {
            "ours": ((host, int(port)), socket.AF_INET),
            "bare": (os.path.join(place.scratch, path), socket.AF_UNIX),
        }

        def measure(way):
            with Client(*way) as client:
                seconds = client.read_until(PROMPT)
                client.leave()
            return seconds * 1e3

        samples = alternate(101, ways, measure)
        os.unlink(ways["bare"][0])
    what = "prompt by TCP; bare: by the Unix socket"
    return [Figure(what, "ms", samples, [more_than_bare(2, "ms")])]


# ---- What the application notices ------------------------------------------------------------

PRINT = """
path = install()
sys.stdout = open(os.devnull, "w")
counts = [0] * 8

def work(i):
    while True:
        print("a line of the application, as they are: 0123456789")
        counts[i] += 1

for i in range(len(counts)):
    start(work, i)
tell(path)
while asked():
    tell([sum(counts), time.monotonic()])
"""
PRINT_S = 0.5


def print_rate(target):
    count, when = target.ask()
    time.sleep(PRINT_S)
    count_after, when_after = target.ask()
    return (count_after - count) / (when_after - when)


def read_all(client):
    while client.socket.recv(1 << 18):
        pass


def print_rate_share(target, reads):
    """Returns what is left of the rate with a client at its prompt."""
    print_rate(target)  # to warm up
    before = print_rate(target)
    with target.client() as client:
        client.read_until(PROMPT)
        reader = threading.Thread(target=read_all, args=(client,))
        if reads:
            reader.start()
        time.sleep(0.2)  # until nothing more is kept for one that does not read
        share = print_rate(target) / before
        if reads:
            client.socket.shutdown(socket.SHUT_RDWR)
            reader.join()
    return share


def row_print(place, _):
    def measure(side, reads):
        with place.target(side, PRINT) as target:
            return print_rate_share(target.wait_for_socket(), reads)

    figures = []
    for state, reads in (("attached", True), ("stalled", False)):
        samples = alternate(5, place.by_side(), lambda side: measure(side, reads))
        what = "print rate of 8 threads, client %s; 1: no client" % state
        figures.append(Figure(what, "", samples, [least(0.9)]))
    return figures


FORK = """
if sys.argv[1] == "thread":
    import native
    native.keep_thread()
elif sys.argv[1] != "none":
    install()
    time.sleep(0.05)
parent, child = [], []
reader, writer = os.pipe()
for _ in range(int(sys.argv[2])):
    begin = time.perf_counter_ns()
    pid = os.fork()
    end = time.perf_counter_ns()
    if pid == 0:
        os.write(writer, b"%d" % (end - begin))
        os._exit(0)
    parent.append(end - begin)
    child.append(int(os.read(reader, 32)))
    os.waitpid(pid, 0)
tell([sorted(values)[len(values) // 2] / 1e3 for values in (parent, child)])
"""
FORKS = 100


def row_fork(place, _):
    sides = place.by_side(bare="none", thread="thread")
    each = alternate(
        25,
        sides,
        lambda side: place.run("none" if side == "thread" else side, FORK, side, FORKS),
    )
    parent, child = columns(each)
    thread = {"ours": child["ours"], "bare": child.pop("thread")}
    del parent["thread"]
    what = "fork, until it returns in the %s; bare: no manhole%s"
    return [
        Figure(what % ("parent", ""), "us", parent, [more_than_bare(20, "us")]),
        Figure(what % ("child", ""), "us", child, [more_than_bare(20, "us")]),
        Figure(what % ("child", ", but a thread"), "us", thread, [more_than_bare(20, "us")]),
    ]


def of_calls(place, program, most):
    """Figures of a program that tells, by kind, ns without and ns with something of manhole's."""
    kinds = place.run("ours", program)
    return [
        Figure(what, "ns", {"ours": with_it, "bare": without}, [more_than_bare(most, "ns")])
        for what, (without, with_it) in kinds.items()
    ]


PROBE = """
import asyncio
import manhole

def function(a, b):
    return a

def generator(a, b):
    yield a

async def coroutine(a, b):
    return a

class Class:
    def method(self, a, b):
        return a

KINDS = {
    "function": "function(1, 2)",
    "Class.method": "instance.method(1, 2)",
    "generator": "list(generator(1, 2))",
    "coroutine": "await coroutine(1, 2)",
}
ROUNDS, CALLS = 15, 100000

SOURCE = \"\"\"
async def loop(calls, instance):
    begin = time.perf_counter_ns()
    for _ in range(calls): %s
    return (time.perf_counter_ns() - begin) / calls
\"\"\"

def ns_of_call(statement):
    exec(SOURCE % statement, globals())  # a function anew, for it specializes itself
    return asyncio.run(loop(CALLS, Class()))

def measure(name, statement):
    without, probed = [], []
    for _ in range(ROUNDS):
        without.append(ns_of_call(statement))
        manhole.probe("__main__:" + name)
        probed.append(ns_of_call(statement))
        manhole.unprobe()
    return without, probed

tell({"a call of a %s, probed; bare: not" % name: measure(name, statement)
      for name, statement in KINDS.items()})
"""


def row_probe(place, _):
    return of_calls(place, PROBE, 1000)


WSGI = """
import io
from wsgiref.util import FileWrapper, setup_testing_defaults
import manhole

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

ROUNDS, REQUESTS = 15, 20000

def ns_of_request(application):
    environ = {"wsgi.file_wrapper": FileWrapper}
    setup_testing_defaults(environ)
    begin = time.perf_counter_ns()
    for _ in range(REQUESTS):
        response = application(environ, start_response)
        for _ in response:
            pass
        if hasattr(response, "close"):
            response.close()
    return (time.perf_counter_ns() - begin) / REQUESTS

def measure(application):
    wrapped = manhole.wsgi(application)
    pairs = [(ns_of_request(application), ns_of_request(wrapped)) for _ in range(ROUNDS)]
    return list(zip(*pairs))

tell({"a request, %s, behind manhole.wsgi(); bare: not" % application.__name__:
      measure(application) for application in (listing, generating, sending_a_file)})
"""


def row_wsgi(place, _):
    return of_calls(place, WSGI, 4000)


# ---- Clients ---------------------------------------------------------------------------------

PEER_CLI = "import sys; sys.path.insert(0, %r); from manhole.cli import main; main()"


def run_ms(command, input_path, environment):
    """Returns the time from the start of a program to its exit, which has to be 0."""
    actions = [
        (os.POSIX_SPAWN_OPEN, fd, path, flags, 0)
        for fd, path, flags in (
            (0, input_path, os.O_RDONLY),
            (1, os.devnull, os.O_WRONLY),
            (2, os.devnull, os.O_WRONLY),
        )
    ]
    begin = time.perf_counter()
    pid = os.posix_spawn(command[0], command, environment, file_actions=actions)
    _, status = os.waitpid(pid, 0)
    seconds = time.perf_counter() - begin
    if status:
        raise RuntimeError("%s ended with status %#x" % (command, status))
    return seconds * 1e3


def row_cli(place, _):
    typed = os.path.join(place.scratch, "typed")
    with open(typed, "w") as file:
        file.write("1\n")
    with place.targets(SERVE) as targets:
        pid = {side: str(target.pid) for side, target in targets.items()}
        commands = {"ours": [place.build + "/manhole-cli", pid["ours"], "-c", "1"]}
        if place.peer:
            commands["theirs"] = [sys.executable, "-c", PEER_CLI % place.peer, pid["theirs"]]
        commands["bare"] = [shutil.which("true")]
        environment = place.environment("none")
        samples = alternate(51, commands, lambda command: run_ms(command, typed, environment))
    what = "manhole-cli PID -c 1 (theirs: 1 from a pipe); bare: true"
    return [Figure(what, "ms", samples, [below(3, "ms"), times_less_than_theirs(20)])]


CLIENTS = """
import gc
tell(install())
while asked():
    gc.collect()
    tell({"descriptors": len(os.listdir("/proc/self/fd")),
          "threads": len(os.listdir("/proc/self/task")),
          "blocks of Python's": sys.getallocatedblocks(),
          "modules": len(sys.modules)})
"""
BATCHES, IN_TURN, AT_ONCE, A_FEW = 10, 100, 64, 8


def visit_ms(target):
    with target.client() as client:
        seconds = client.read_until(PROMPT)
        client.round_trip(LINE)
        client.leave()
    return seconds * 1e3


def crowd_ms(target, count):
    """Returns the ms a client until all have a prompt, of so many that came at once."""
    begin = time.perf_counter()
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(target.client()) for _ in range(count)]
        for client in clients:
            client.read_until(PROMPT)
        seconds = time.perf_counter() - begin
        for client in clients:
            client.leave()
    return seconds * 1e3 / count


def in_use(target):
    """Returns what the process has, once the threads of all sessions have ended."""
    deadline = time.monotonic() + PATIENCE_S
    counts = target.ask()
    while counts["threads"] > 2 and time.monotonic() < deadline:
        counts = target.ask()
    return dict(counts, KiB=resident_kib(target.pid)[0])


def row_clients(place, _):
    """Medians of several batches: a leak grows by one or more with each client, a cache now and
    then, and less with each batch."""
    with place.target("ours", CLIENTS) as target:
        target.wait_for_socket()
        counts = {"ours": AT_ONCE, "bare": A_FEW}
        crowds = alternate(BATCHES, counts, lambda count: crowd_ms(target, count))
        visit_ms(target)
        used = [in_use(target)]
        paces = []
        for _ in range(BATCHES):
            paces.append(statistics.median(visit_ms(target) for _ in range(IN_TURN)))
            crowd_ms(target, AT_ONCE)
            used.append(in_use(target))
    clients = IN_TURN + AT_ONCE
    growth = [
        Figure(
            "more %s a client, %d in turn and %d at once" % (name, IN_TURN, AT_ONCE),
            "",
            {"ours": [(now[name] - then[name]) / clients for then, now in zip(used, used[1:])]},
            [below(0.1, "a client")],
        )
        for name in used[0]
    ]
    half = BATCHES // 2
    pace = {"ours": paces[half:], "bare": paces[:half]}
    return growth + [
        Figure(
            "prompt, second %d of %d; bare: first" % (half * IN_TURN, BATCHES * IN_TURN),
            "ms",
            pace,
            [share_of("bare", 1.25)],
        ),
        Figure(
            "prompt, a client of %d at once; bare: of %d" % (AT_ONCE, A_FEW),
            "ms",
            crowds,
            [share_of("bare", 1.25)],
        ),
    ]
