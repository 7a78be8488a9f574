"""Measures manhole-cli beside the tools of CPython's own that look into a running process: python
-m pdb -p, asyncio ps and pstree (3.14), profiling.sampling dump and attach (3.15).

    make bench-tools PYTHON=python3.15    # as root, for it changes users and namespaces

In each of ROUNDS rounds each tool asks a process of its own, for one that cannot get in may hinder
the next. A cell is the median of what that takes, from the tool's start to its end. "refused": it
says that it cannot; "waits": it had shown nothing after PATIENCE_S, and was killed; "nothing": it
found nothing to show. What it said then goes to standard error, once a cell.
"""

import contextlib
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time

ROUNDS = 5
PATIENCE_S = 3
ROOT, NOBODY, SOMEBODY = 0, 65534, 65533

# What a process may do: its main thread does what it is told, another one runs tasks.
PROGRAM = """
import asyncio, ctypes, os, sys, threading, time
import manhole
async def wait():
    asyncio.get_running_loop().call_later(0.05, begun.set)
    await asyncio.create_task(asyncio.Event().wait(), name="idler")
def runs_tasks(): asyncio.run(wait())
def beside(): runs_tasks()
def computes():
    while True: sum(range(1000))
def reads(): os.read(os.pipe()[0], 1)
def keeps_the_gil(): ctypes.PyDLL(None).sleep(3600)
os.setgid(int(sys.argv[2]))
os.setuid(int(sys.argv[2]))
manhole.install(verbose=False)
begun = threading.Event()
threading.Thread(target=beside, daemon=True).start()
begun.wait()
time.sleep(0.1) # until all tasks wait
os.write(1, b"ready")
globals()[sys.argv[1]]()
"""

# A tool: its arguments, and what there is in its answer when it has done its work.
PYTHON = [sys.executable, "-m"]
TOOLS = {
    "manhole-cli --stacks": (["manhole-cli", "--stacks"], "in beside"),
    "manhole-cli -c": (["manhole-cli", "-c", "print(7 ** 20)"], "79792266297612001"),
    "pdb -p": (PYTHON + ["pdb", "-c", "p 7 ** 20", "-p"], "79792266297612001"),
    "asyncio ps": (PYTHON + ["asyncio", "ps"], "idler"),
    "asyncio pstree": (PYTHON + ["asyncio", "pstree"], "idler"),
}
if sys.version_info >= (3, 15):
    SAMPLING = PYTHON + ["profiling.sampling"]
    TOOLS["sampling dump -a"] = (SAMPLING + ["dump", "-a"], "in beside")
    TOOLS["sampling attach -a -d 1"] = (SAMPLING + ["attach", "-a", "-d", "1"], "(beside)")

CONTAINER = "unshare --mount --pid --ipc --net --fork --kill-child --mount-proc sh -c".split()
CONTAINER += ['mount -t tmpfs tmpfs /tmp && exec "$0" "$@"']
# A process: what it does, which user it has made itself, behind which command; who asks. Who has
# changed its user may not be traced by others of that user: the kernel's "dumpable".
SITUATIONS = {
    "computes": dict(does="computes"),
    "waits in read()": dict(does="reads"),
    "waits for tasks of asyncio": dict(does="runs_tasks"),
    "is in C that keeps the GIL": dict(does="keeps_the_gil"),
    "is another user's; root asks": dict(does="computes", user=NOBODY),
    "is the asking user's, no ptrace": dict(does="computes", user=NOBODY, asker=NOBODY),
    "is another user's": dict(does="computes", asker=SOMEBODY),
    "is in a container": dict(does="computes", behind=CONTAINER),
}


def innermost(pid):
    """Returns the process itself, or in a container the only one that has no child."""
    while True:
        with open("/proc/%d/task/%d/children" % (pid, pid)) as file:
            children = file.read().split()
        if not children:
            return pid
        pid = int(children[0])


@contextlib.contextmanager
def running(does, user, behind):
    """Starts a process. Yields its pid."""
    process = subprocess.Popen(
        [*behind, sys.executable, "-c", PROGRAM, does, str(user)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    try:
        if process.stdout.read(5) != b"ready":
            raise RuntimeError("the process ended with status %d" % process.wait())
        pid = innermost(process.pid)
        time.sleep(0.1)  # it says that it is ready just before it does what it is there for
        yield pid
    finally:
        process.kill()
        process.communicate()
        with contextlib.suppress(FileNotFoundError):
            os.unlink("/tmp/manhole-%d" % process.pid)


def ask(arguments, wanted, pid, asker):
    """Runs a tool once. Returns how many milliseconds it took, or a word; and what it said."""
    began = time.monotonic()
    tool = subprocess.Popen(
        [*arguments, str(pid)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        user=asker,
        group=asker,
        extra_groups=[],
        start_new_session=True,
    )
    try:
        said = tool.communicate(timeout=PATIENCE_S)[0].decode()
    except subprocess.TimeoutExpired:
        os.killpg(tool.pid, signal.SIGKILL)
        return "waits", tool.communicate()[0].decode()
    took_ms = (time.monotonic() - began) * 1000
    if wanted in said:
        return took_ms, said
    return ("nothing" if tool.returncode == 0 else "refused"), said


def measure(situation, does, user=ROOT, asker=ROOT, behind=()):
    """Returns a cell for each tool."""
    answers = {name: [] for name in TOOLS}
    for name, (arguments, wanted) in list(TOOLS.items()) * ROUNDS:
        with running(does, user, behind) as pid:
            answer, said = ask(arguments, wanted, pid, asker)
        if isinstance(answer, str) and answer not in answers[name]:
            line = said.strip().split("\n")[-1]
            print("%s; %s: %s: %s" % (situation, name, answer, line), file=sys.stderr)
        answers[name].append(answer)
    return [cell_of(answers[name]) for name in TOOLS]


def cell_of(answers):
    words = {answer for answer in answers if isinstance(answer, str)}
    if not words:
        return "%.0f ms" % statistics.median(answers)
    return words.pop() if len(set(answers)) == 1 else "varies"


def print_table(rows):
    widths = [max(map(len, column)) for column in zip(*rows)]
    rule = "  ".join("=" * width for width in widths)
    lines = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
    print("\n".join([rule, lines[0], rule, *lines[1:], rule]))


def main():
    build = os.path.abspath(sys.argv[1])
    os.environ.update(
        PYTHONPATH=build, PATH=build + ":" + os.environ["PATH"], HOME=tempfile.gettempdir()
    )
    os.chdir("/")
    print("CPython %s, medians of %d rounds" % (sys.version.split()[0], ROUNDS))
    cells = [[name, *measure(name, **how)] for name, how in SITUATIONS.items()]
    print_table([["a process that", *TOOLS], *cells])


main()
