"""attach_matrix.py - manhole-cli --attach into many kinds of process, again and again; CI does not run it.

    python3 test/attach_matrix.py [--runs 12] [--stacks] BUILD PYTHON [KIND ...]

BUILD is what `make where` prints, PYTHON the one that it was built for. Each run starts a process that
counts and checks itself, attaches at some moment, has it answer, and looks whether it goes on as if
nothing had been: signal masks, tracer, children, threads, standard error, exit status. With --stacks it
is looked at from outside instead. Prints a line for each kind: runs, refused, harmed, the time of the
client, and the longest time that it held a thread, in ms (median, 95th, longest).
"""

import argparse
import os
import random
import subprocess
import sys
import tempfile
import time

# What all kinds begin with: turn() counts, check() notes what is wrong, is_over() is asked often.
HEAD = """
import mmap, os, signal, struct, sys, threading, time
page = mmap.mmap(os.open(sys.argv[1], os.O_RDWR), 4096)
lock = threading.Lock()
def add(at):
    with lock:
        struct.pack_into("Q", page, at, struct.unpack_from("Q", page, at)[0] + 1)
def turn():
    add(0)
def check(is_right, what=""):
    if not is_right:
        add(8)
        print("WRONG", what, file=sys.stderr)
def is_over():
    return page[16]
def in_threads(count, work):
    threads = [threading.Thread(target=work, args=(i + 1,)) for i in range(count)]
    for thread in threads: thread.start()
    for thread in threads: thread.join()
def ready(pid=os.getpid()):
    struct.pack_into("Q", page, 24, pid)
"""
TAIL = """
if __name__ == "__main__":
    sys.exit(7 if struct.unpack_from("Q", page, 8)[0] == 0 else 1)
"""

KINDS = {
    "sleep": """
ready()
while not is_over():
    before = time.monotonic()
    time.sleep(0.1)
    check(time.monotonic() - before > 0.0999, "slept too short")
    turn()
""",
    "lock": """
free = threading.Lock()
free.acquire()
def wake(_):
    while not is_over():
        time.sleep(0.02)
        turn()
    free.release()
threading.Thread(target=wake, args=(1,)).start()
ready()
check(free.acquire(timeout=600), "lock")
""",
    "busy": """
def work(n):
    while not is_over():
        check(sum(i * n for i in range(2000)) == 1999000 * n, "sum")
        turn()
ready()
in_threads(8, work)
""",
    "one": """
ready()
while not is_over():
    i = 0
    while i < 100000: i += 1
    turn()
""",
    "malloc": """
import random
ready()
while not is_over():
    kept = []
    for _ in range(1000):
        kept.append(bytearray(random.randrange(513, 70000)))
        if len(kept) > 50: del kept[random.randrange(50)]
    check(not any(any(each[:64]) for each in kept), "dirty")
    turn()
""",
    "mallocs": """
import random, zlib
data = os.urandom(3000) * 7
def work(_):
    while not is_over():
        for _ in range(20):
            check(zlib.decompress(zlib.compress(data, 1)) == data, "zlib")
            [bytes(random.randrange(600, 9000)) for _ in range(20)]
        turn()
ready()
in_threads(8, work)
""",
    "asyncio": """
import asyncio
async def main():
    loop = asyncio.get_running_loop()
    ready()
    while not is_over():
        before = loop.time()
        await asyncio.sleep(0.02)
        check(loop.time() - before > 0.0195, "early")
        turn()
asyncio.run(main())
""",
    "epoll": """
import select
reader, writer = os.pipe()
epoll = select.epoll()
epoll.register(reader, select.EPOLLIN)
def write(_):
    while not is_over():
        time.sleep(0.03)
        os.write(writer, b"x")
    os.write(writer, b"x")
threading.Thread(target=write, args=(1,)).start()
ready()
while not is_over():
    check(epoll.poll() == [(reader, select.EPOLLIN)], "epoll")
    check(os.read(reader, 1) == b"x", "pipe")
    turn()
""",
    "gevent": """
import gevent.monkey
gevent.monkey.patch_all()
import gevent.queue
queue = gevent.queue.Queue()
def ask():
    while not is_over():
        time.sleep(0.02)
        queue.put("bread")
    queue.put("")
def answer():
    while not is_over():
        before = time.monotonic()
        gevent.sleep(0.02)
        check(time.monotonic() - before > 0.0195, "early")
        check(queue.get() in ("bread", ""), "queue")
        turn()
ready()
gevent.joinall([gevent.spawn(ask), gevent.spawn(answer)], raise_error=True)
""",
    "gunicorn": """
import gunicorn.app.base
class App(gunicorn.app.base.BaseApplication):
    def load_config(self):
        for name, value in (("bind", "unix:" + sys.argv[1] + ".sock"), ("workers", 1),
                            ("loglevel", "critical"), ("post_worker_init", begin)):
            self.cfg.set(name, value)
    def load(self):
        def answer(environ, start_response):
            start_response("200 OK", [("Content-Length", "5000")])
            return [b"x" * 5000]
        return answer
def ask():
    import socket
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(sys.argv[1] + ".sock")
        client.sendall(b"GET / HTTP/1.0\\r\\n\\r\\n")
        with client.makefile("rb") as file:
            return file.read().count(b"x")
def begin(worker):
    ready(os.getpid())
    def work():
        while not is_over():
            check(ask() == 5000, "answer")
            turn()
        os.kill(os.getppid(), signal.SIGTERM)
    threading.Thread(target=work).start()
try:
    App().run()
except SystemExit as exit:
    check(exit.code in (0, None), "gunicorn")
""",
    "celery": """
import celery, celery.signals, logging, warnings
warnings.simplefilter("ignore")  # of running as root
sys.__stderr__ = open(os.devnull, "w")  # "Warm shutdown"
logging.disable(logging.CRITICAL)
app = celery.Celery("kind", broker="memory://")
app.conf.update(worker_hijack_root_logger=False, worker_send_task_events=False)
@app.task(ignore_result=True)
def add_up(n):
    check(sum(range(n)) == n * (n - 1) // 2, "task")
    turn()
@celery.signals.worker_process_init.connect
def begin(**_):
    ready(os.getpid())
@celery.signals.worker_ready.connect
def work(**_):
    def send():
        while not is_over():
            add_up.delay(1000)
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGTERM)
    threading.Thread(target=send).start()
try:
    app.worker_main(["-q", "worker", "--pool=prefork", "--concurrency=1", "--without-gossip",
                     "--without-mingle", "--without-heartbeat", "--loglevel=CRITICAL"])
except SystemExit as exit:
    check(exit.code in (0, None), "celery")
""",
    "uwsgi": """
import subprocess
socket_path = sys.argv[1] + ".sock"
def application(environ, start_response):
    start_response("200 OK", [("Content-Length", "5000")])
    return [b"x" * 5000]
def ask():
    import socket
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(socket_path)
        client.sendall(b"GET / HTTP/1.0\\r\\n\\r\\n")
        with client.makefile("rb") as file:
            return file.read().count(b"x")
def begin():
    def work():
        while not is_over():
            check(ask() == 5000, "answer")
            turn()
    ready(os.getpid())
    threading.Thread(target=work, daemon=True).start()
if __name__ == "__main__":
    server = subprocess.Popen(["uwsgi", "--plugin", "python3", "--http-socket", socket_path,
                               "--wsgi-file", __file__, "--master", "--processes", "2",
                               "--enable-threads", "--disable-logging", "--logto", os.devnull,
                               "--die-on-term", "--pyargv", sys.argv[1]])
    while not is_over() and server.poll() is None: time.sleep(0.02)
    server.terminate()
    check(server.wait() == 0, "uwsgi")
else:
    import uwsgi
    uwsgi.post_fork_hook = lambda: uwsgi.worker_id() == 1 and begin()
""",
    "import": """
import importlib
names = ["json", "decimal", "_decimal", "ctypes", "csv", "fractions", "email.message", "argparse"]
ready()
while not is_over():
    for name in names:
        for each in [each for each in list(sys.modules) if each == name or each.startswith(name + ".")]:
            del sys.modules[each]
        importlib.import_module(name)
    turn()
""",
    "dlopen": """
import _ctypes
ready()
while not is_over():
    for name in "libm.so.6", "libresolv.so.2", "libz.so.1", "libexpat.so.1", "liblzma.so.5":
        try: _ctypes.dlclose(_ctypes.dlopen(name, 2))
        except OSError: pass
    turn()
""",
    "fork": """
import warnings
warnings.filterwarnings("ignore", "This process", DeprecationWarning)  # 3.12: it has threads
ready()
while not is_over():
    child = os.fork()
    if child == 0: os._exit(3)
    found, status = os.waitpid(-1, 0)
    check((found, status) == (child, 3 << 8), "stranger %d %x" % (found, status))
    turn()
""",
    "spawn": """
import subprocess
ready()
while not is_over():
    check(subprocess.run(["/bin/echo", "x"], stdout=subprocess.PIPE).stdout == b"x\\n", "echo")
    turn()
""",
    "threads": """
ready()
while not is_over():
    in_threads(10, lambda n: turn())
""",
    "signals": """
hits = [0]
def on_alarm(*_): hits[0] += 1; bytearray(1000)
signal.signal(signal.SIGALRM, on_alarm)
for each in signal.SIGCHLD, signal.SIGTRAP, signal.SIGCONT:
    signal.signal(each, lambda number, _: check(False, "signal %d" % number))
signal.setitimer(signal.ITIMER_REAL, 0.0007, 0.0007)
ready()
while not is_over():
    [bytearray(3000) for _ in range(1000)]
    time.sleep(0.001)
    turn()
signal.setitimer(signal.ITIMER_REAL, 0)
check(hits[0] > 10, "hits")
""",
    "stuck": """
import ctypes
ready()
check(ctypes.PyDLL(None).sleep(1) == 0, "cut short")
while not is_over():
    time.sleep(0.01)
    turn()
""",
    "float": """
import math
wanted = None
ready()
while not is_over():
    x = 0.1
    for i in range(3000): x = math.sin(x) * 1.7 + i * 1e-3
    wanted = wanted or x
    check(x == wanted, "float")
    turn()
""",
}
KINDS["container"] = KINDS["sleep"]
# Namespaces of its own for users, mounts and processes, and a /tmp of its own.
CONTAINER = ["unshare", "-U", "-r", "-m", "-p", "-f", "--kill-child", "--mount-proc", "sh", "-c"]
CONTAINER += ['mount -t tmpfs none /tmp && exec "$@"', "sh"]
# Loaded into the client: notes from PTRACE_INTERRUPT to PTRACE_DETACH, in microseconds.
HELD = r"""
#include <dlfcn.h>
#include <stdarg.h>
#include <stdio.h>
#include <sys/ptrace.h>
#include <time.h>
static struct { long tid, us; } held[4096];
static long longest;
static long now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000000 + t.tv_nsec / 1000;
}
long ptrace(enum __ptrace_request request, ...) {
    static long (*real)(int, long, void *, void *);
    va_list rest;
    va_start(rest, request);
    long tid = va_arg(rest, int);
    void *address = va_arg(rest, void *), *data = va_arg(rest, void *);
    va_end(rest);
    if (!real) *(void **)&real = dlsym(RTLD_NEXT, "ptrace");
    if (request == PTRACE_INTERRUPT && held[tid % 4096].tid != tid) {
        held[tid % 4096].tid = tid;
        held[tid % 4096].us = now();
    }
    long result = real(request, tid, address, data);
    if (request == PTRACE_DETACH && held[tid % 4096].tid == tid) {
        long us = now() - held[tid % 4096].us;
        held[tid % 4096].tid = 0;
        longest = us > longest ? us : longest;
    }
    return result;
}
__attribute__((destructor)) static void tell(void) {
    fprintf(stderr, "HELD %ld\n", longest);
}
"""
NO_CHILDREN = set(KINDS) - {"fork", "spawn"}


def word(page, at):
    with open(page, "rb") as file:
        return int.from_bytes(file.read()[at : at + 8], "little")


def set_over(page):
    with open(page, "r+b") as file:
        file.seek(16)
        file.write(b"\1")


def wait_for(is_true, seconds=30):
    end = time.monotonic() + seconds
    while not is_true() and time.monotonic() < end:
        time.sleep(0.003)
    return is_true()


def status_of(pid, task):
    try:
        with open(f"/proc/{pid}/task/{task}/status") as file:
            return dict(line.split(":\t", 1) for line in file if ":\t" in line)
    except (FileNotFoundError, ProcessLookupError):
        return {}


def children_of(pid):
    with open(f"/proc/{pid}/task/{pid}/children") as file:
        return file.read()


def look(pid, kind):
    """What is not as it was."""
    for task in os.listdir(f"/proc/{pid}/task"):
        status = status_of(pid, task)
        if status and (status["TracerPid"] != "0\n" or status["State"][0] in "Tt"):
            yield f"thread {task} is held"
        if status and int(status["SigBlk"], 16) and "anhole" not in status["Name"]:
            yield f"thread {task} has signals blocked"
    if kind in NO_CHILDREN and children_of(pid):
        yield "children"


def end(process):
    process.kill()
    process.wait()


def ask_client(options, pid, kind):
    """Returns why it was refused, what went wrong, and for how long it held a thread, in ms."""
    client = [options.build + "/manhole-cli", "--attach", str(pid)]
    client += ["--stacks"] if options.stacks else ["-c", "print(6 * 7)"]
    environment = dict(os.environ, LD_PRELOAD=options.held)
    done = subprocess.run(client, capture_output=True, text=True, timeout=60, env=environment)
    wanted = kind + "_kind.py" if options.stacks else "42\n"
    wrong = [] if done.returncode or wanted in done.stdout else [f"answered {done.stdout!r}"]
    said, _, held = done.stderr.partition("HELD ")
    return said.strip() if done.returncode else "", wrong, int(held or 0) / 1e3


def run_once(options, kind, folder):
    """Returns the client's ms, whether it was refused, and what was harmed; None: no such program."""
    page = os.path.join(folder, "page")
    program = os.path.join(folder, kind + "_kind.py")
    with open(page, "wb") as file:
        file.write(bytes(4096))
    with open(program, "w") as file:
        file.write(HEAD + KINDS[kind] + TAIL)
    errors = open(os.path.join(folder, "errors"), "w+")
    within = CONTAINER if kind == "container" else []
    process = subprocess.Popen([*within, options.python, program, page], stderr=errors)
    wait_for(lambda: word(page, 24) or process.poll() is not None)
    pid = word(page, 24)
    if pid == 0:
        end(process)
        return None
    if within:
        pid = int(children_of(process.pid))
    time.sleep(random.random() * 0.1)
    begun = time.monotonic()
    refused, harmed, held = options.ask(options, pid, kind)
    took = (time.monotonic() - begun) * 1e3
    for _ in range(100):
        seen = list(look(pid, kind))
        if not seen:
            break
        time.sleep(0.03)  # fork() and others block signals, too, for a moment
    harmed += seen
    turns = word(page, 0)
    if not wait_for(lambda: word(page, 0) > turns + 1 or process.poll() is not None):
        harmed.append("goes on no more")
    set_over(page)
    try:
        status = process.wait(30)
    except subprocess.TimeoutExpired:
        status = "it hangs"
        end(process)
    if status != 7:
        harmed.append(f"status {status}")
    errors.seek(0)
    harmed += filter(None, [errors.read()[-300:]])
    errors.close()
    if os.path.exists(f"/tmp/manhole-{pid}"):
        os.unlink(f"/tmp/manhole-{pid}")
        harmed.append("socket left")
    return took, held, refused, harmed


def summary(times):
    times.sort()
    late = times[int(len(times) * 0.95)]
    return f"{times[len(times) // 2]:.1f} {late:.1f} {times[-1]:.1f}"


def run_kind(options, kind):
    times, helds, refused, harmed = [], [], [], []
    for _ in range(options.runs):
        with tempfile.TemporaryDirectory(dir="/var/tmp") as folder:
            outcome = run_once(options, kind, folder)
        if outcome is None:
            break
        took, held, refusal, harm = outcome
        times.append(took)
        helds.append(held)
        refused += [refusal] if refusal else []
        harmed += [harm] if harm else []
    if not times:
        print(f"{kind:9} is not to be had here", flush=True)
        return 0
    print(
        f"{kind:9} {len(times)} runs, {len(refused)} refused, {len(harmed)} harmed; "
        f"{summary(times)} ms, held {summary(helds)} ms",
        flush=True,
    )
    for each in refused[:2] + harmed[:3]:
        print("         ", each, flush=True)
    return len(refused) + len(harmed)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--runs", type=int, default=12)
    parser.add_argument("--stacks", action="store_true")
    parser.add_argument("build")
    parser.add_argument("python")
    parser.add_argument("kinds", nargs="*", default=[])
    options = parser.parse_args()
    options.ask = ask_client
    with tempfile.TemporaryDirectory() as folder:
        options.held = os.path.join(folder, "held.so")
        compiler = ["cc", "-shared", "-fPIC", "-w", "-D_GNU_SOURCE", "-xc", "-", "-o", options.held]
        subprocess.run(compiler, input=HELD, text=True, check=True)
        bad = sum([run_kind(options, kind) for kind in options.kinds or KINDS])
    sys.exit(bad > 0)


if __name__ == "__main__":
    main()
