"""attach_matrix.py - manhole-cli --attach into many kinds of process, again and again; CI does not run it.

    python3 test/attach_matrix.py [--runs 12] [--stacks] BUILD PYTHON [KIND ...]

BUILD is what `make where` prints, PYTHON the one that it was built for. Each run starts a process that
counts and checks itself, attaches at some moment, has it answer, and looks whether it goes on as if
nothing had been: signal masks, tracer, children, threads, standard error, exit status. With --stacks it
is looked at from outside instead. Prints a line for each kind: runs, refused, harmed, and the time of the
client in ms (median, 95th, longest).
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
import mmap, os, struct, sys, threading, time
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
def ready():
    page[24] = 1
"""
TAIL = """
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
    "import": """
import importlib
names = ["json", "decimal", "_decimal", "ctypes", "csv", "fractions", "email.message", "argparse"]
ready()
while not is_over():
    for name in names:
        for each in [each for each in sys.modules if each == name or each.startswith(name + ".")]:
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


def look(process, kind):
    """What is not as it was."""
    pid = process.pid
    for task in os.listdir(f"/proc/{pid}/task"):
        status = status_of(pid, task)
        if status and (status["TracerPid"] != "0\n" or status["State"][0] in "Tt"):
            yield f"thread {task} is held"
        if status and int(status["SigBlk"], 16) and "anhole" not in status["Name"]:
            yield f"thread {task} has signals blocked"
    if kind in NO_CHILDREN and open(f"/proc/{pid}/task/{pid}/children").read():
        yield "children"


def run_once(options, kind, folder):
    """Returns the client's ms, whether it was refused, and what was harmed."""
    page = os.path.join(folder, "page")
    program = os.path.join(folder, kind + ".py")
    with open(page, "wb") as file:
        file.write(bytes(4096))
    with open(program, "w") as file:
        file.write(HEAD + KINDS[kind] + TAIL)
    errors = open(os.path.join(folder, "errors"), "w+")
    process = subprocess.Popen([options.python, program, page], stderr=errors)
    wait_for(lambda: word(page, 24) == 1)
    time.sleep(random.random() * 0.1)
    client = [options.build + "/manhole-cli", "--attach", str(process.pid)]
    client += ["--stacks"] if options.stacks else ["-c", "print(6 * 7)"]
    begun = time.monotonic()
    done = subprocess.run(client, capture_output=True, text=True, timeout=60)
    took = (time.monotonic() - begun) * 1e3
    wanted = kind + ".py" if options.stacks else "42\n"
    harmed = [] if done.returncode or wanted in done.stdout else [f"answered {done.stdout!r}"]
    wait_for(lambda: not list(look(process, kind)), 3)  # fork() and others block signals, too
    harmed += look(process, kind)
    turns = word(page, 0)
    if not wait_for(lambda: word(page, 0) > turns + 1 or process.poll() is not None):
        harmed.append("goes on no more")
    set_over(page)
    try:
        status = process.wait(30)
    except subprocess.TimeoutExpired:
        status = "it hangs"
        process.kill()
        process.wait()
    if status != 7:
        harmed.append(f"status {status}")
    errors.seek(0)
    harmed += filter(None, [errors.read()[-300:]])
    errors.close()
    if os.path.exists(f"/tmp/manhole-{process.pid}"):
        os.unlink(f"/tmp/manhole-{process.pid}")
        harmed.append("socket left")
    return took, done.stderr.strip() if done.returncode else "", harmed


def run_kind(options, kind):
    times, refused, harmed = [], [], []
    for _ in range(options.runs):
        with tempfile.TemporaryDirectory() as folder:
            took, refusal, harm = run_once(options, kind, folder)
        times.append(took)
        refused += [refusal] if refusal else []
        harmed += [harm] if harm else []
    times.sort()
    middle, late = times[len(times) // 2], times[int(len(times) * 0.95)]
    print(
        f"{kind:9} {options.runs} runs, {len(refused)} refused, {len(harmed)} harmed; "
        f"{middle:.0f} {late:.0f} {times[-1]:.0f} ms",
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
    bad = sum([run_kind(options, kind) for kind in options.kinds or KINDS])
    sys.exit(bad > 0)


if __name__ == "__main__":
    main()
