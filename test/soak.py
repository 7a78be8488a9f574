"""A web application under load, and clients of its manholes that behave in all the ways they may.

    make soak [SOAK_SECONDS=600]

Gunicorn serves requests without a pause. Meanwhile clients come, type, flood, stall and vanish;
workers fork, end and are replaced; signals come at random. At the end the application must have
answered every request, and have no more descriptors, threads and sockets than before, and of memory
hardly more than after the first third. The last line sums up: N passed, N failed, N skipped.
"""

import argparse
import collections
import contextlib
import http.client
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time

APPLICATION = """
import os, threading, time

def application(environ, start_response):
    path = environ["PATH_INFO"]
    body = b"x" * 1000
    if path == "/print":
        print("a line of text that everybody hears\\n" * 50, end="", flush=True)
    elif path == "/fork":
        child = os.fork()
        if child == 0:
            time.sleep(0.05)
            os._exit(0)  # which leaves its socket
        os.waitpid(child, 0)
        try:
            os.unlink("/tmp/manhole-%d" % child)
        except FileNotFoundError:
            pass
    elif path == "/slow":
        time.sleep(0.1)
    start_response("200 OK", [("Content-Length", str(len(body)))])
    return [body]
"""
WORKERS = 3
THREADS = 4
PATIENCE_S = 60
# The first part of the run, before memory is looked at: malloc() gives each thread one of eight arenas
# a processor, and it takes hundreds of sessions until each has grown to the size of the largest.
WARM_UP = 1 / 3
# What a process may have grown by in the rest, which is no leak of so many sessions. In KiB.
MEMORY_TOLERANCE = 3072

counts = collections.Counter()
over = threading.Event()


class UnixConnection(http.client.HTTPConnection):
    def __init__(self, path):
        super().__init__("localhost", timeout=PATIENCE_S)
        self.path = path

    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self.path)


# ---- What there is of a process ------------------------------------------------------------


def children(pid):
    with open("/proc/%d/task/%d/children" % (pid, pid)) as file:
        return sorted(int(child) for child in file.read().split())


def memory(pid):
    """Anonymous memory, in KiB."""
    with open("/proc/%d/status" % pid) as file:
        return next(int(line.split()[1]) for line in file if line.startswith("RssAnon:"))


def belongings(pid):
    return {
        "descriptors": len(os.listdir("/proc/%d/fd" % pid)),
        "threads": len(os.listdir("/proc/%d/task" % pid)),
    }


def wait_until(condition, what):
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        if time.monotonic() > deadline:
            raise SystemExit("soak: not so after %d s: %s" % (PATIENCE_S, what))
        time.sleep(0.02)


# ---- Load ----------------------------------------------------------------------------------


def request(door, path):
    connection = UnixConnection(door)
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        if response.status == 200 and len(response.read()) == 1000:
            counts["requests"] += 1
            return
        counts["failed requests"] += 1
    except (OSError, http.client.HTTPException) as error:
        counts["failed requests"] += 1
        print("soak: a request failed: %r" % error, flush=True)
    finally:
        connection.close()


def load(door, chance):
    while not over.is_set():
        request(door, chance.choice(["/", "/", "/", "/print", "/fork", "/slow"]))


# ---- Clients -------------------------------------------------------------------------------


class Clients:
    """Each method is one way to behave. pid: of a process with a manhole."""

    def __init__(self, cli, chance):
        self.cli = cli
        self.chance = chance

    def run(self, *arguments, text=None):
        """A manhole-cli that may fail, for its process may just have ended."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            subprocess.run(
                [self.cli, *arguments],
                input=text,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                text=True,
                timeout=PATIENCE_S,
            )

    def connect(self, pid):
        client = socket.socket(socket.AF_UNIX)
        try:
            client.settimeout(PATIENCE_S)
            client.connect("/tmp/manhole-%d" % pid)
        except OSError:
            client.close()
            return None
        return client

    def type_and_leave(self, pid):
        self.run(str(pid), text="import os\nos.getpid()\n1/0\n[n for n in range(1000)]\n")

    def run_code(self, pid):
        self.run(str(pid), "-c", "import gc; print(len(gc.get_objects()))")

    def look(self, pid):
        self.run(str(pid), self.chance.choice(["--stacks", "--json"]))

    def list_all(self, pid):
        self.run("--list")

    def flood(self, pid):
        clients = [self.connect(pid) for _ in range(100)]
        for client in filter(None, clients):
            client.close()

    def stall(self, pid):
        """Has much written to it, and reads none."""
        client = self.connect(pid)
        if client:
            with contextlib.suppress(OSError):
                client.sendall(b"for _ in range(1000): print('x' * 10000)\n\n")
            over.wait(1)
            client.close()

    def vanish(self, pid):
        """Ends by SIGKILL in the middle of a statement."""
        process = subprocess.Popen(
            [self.cli, str(pid)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        with contextlib.suppress(OSError):
            process.stdin.write(b"while True: pass\n\n")
            process.stdin.flush()
            over.wait(0.2)
        process.kill()
        with contextlib.suppress(OSError):
            process.stdin.close()
        process.wait()

    def interrupt(self, pid):
        process = subprocess.Popen(
            [self.cli, str(pid), "-c", "while True: pass"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        over.wait(0.3)
        process.send_signal(signal.SIGINT)
        process.wait()

    WAYS = [type_and_leave, run_code, look, list_all, flood, stall, vanish, interrupt]

    def behave(self, master):
        while not over.is_set():
            with contextlib.suppress(OSError):
                way = self.chance.choice(self.WAYS)
                way(self, self.chance.choice([master, *children(master)]))
                counts[way.__name__] += 1


def replace_workers(master, kept, chance):
    """Ends workers gracefully, but for the one that is kept, and sends signals that mean nothing."""
    while not over.wait(chance.uniform(0.5, 2)):
        with contextlib.suppress(OSError):
            others = [pid for pid in children(master) if pid != kept]
            if others and chance.random() < 0.5:
                os.kill(chance.choice(others), signal.SIGTERM)
                counts["workers ended"] += 1
            else:
                os.kill(chance.choice([master, kept]), signal.SIGUSR1)
                counts["signals"] += 1


# ---- The whole -----------------------------------------------------------------------------


def start_application(python, modules, folder):
    with open(os.path.join(folder, "soaked.py"), "w") as file:
        file.write(APPLICATION)
    environment = dict(os.environ, PYTHONPATH=modules, PYTHONMANHOLE="reinstall_delay=0.05")
    environment["PYTHONUSERBASE"] = os.path.join(modules, "user")
    return subprocess.Popen(
        [python, "-m", "gunicorn", "--workers", str(WORKERS), "--threads", str(THREADS)]
        + ["--bind", "unix:" + os.path.join(folder, "http"), "--worker-tmp-dir", folder]
        + ["--graceful-timeout", str(PATIENCE_S), "--timeout", str(PATIENCE_S)]
        + ["--log-level", "error", "soaked"],
        cwd=folder,
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=open(os.path.join(folder, "log"), "w"),
    )


def is_whole(master):
    pids = [master, *children(master)]
    return len(pids) == WORKERS + 1 and all(
        os.path.exists("/tmp/manhole-%d" % pid) for pid in pids
    )


def work(master, kept, door, cli, seconds, seed):
    """All that goes on, for so long; then until nothing is left of it."""
    actors = [
        threading.Thread(target=load, args=(door, random.Random(seed + 10 + i)))
        for i in range(4)
    ]
    actors += [
        threading.Thread(target=Clients(cli, random.Random(seed + 20 + i)).behave, args=(master,))
        for i in range(4)
    ]
    actors += [
        threading.Thread(target=replace_workers, args=(master, kept, random.Random(seed + 1)))
    ]
    over.clear()
    for actor in actors:
        actor.start()
    over.wait(seconds)
    over.set()
    for actor in actors:
        actor.join()
    settle(master, kept)
    wait_until(lambda: is_whole(master), "every process has its socket")


def soak(master, door, cli, seconds, seed):
    """Returns what there was of the master and the kept worker before, after a while, and at the
    end."""
    kept = children(master)[0]
    clients = Clients(cli, random.Random(seed))

    def look():
        return {pid: (belongings(pid), memory(pid)) for pid in (master, kept)}

    for way in Clients.WAYS * 3:  # imports, caches
        for pid in (master, kept):
            way(clients, pid)
    wait_until(lambda: has_all_threads(door, kept), "the worker has all its threads")
    settle(master, kept)
    looks = [look()]
    for part in (WARM_UP, 1 - WARM_UP):
        work(master, kept, door, cli, part * seconds, seed + len(looks) * 100)
        looks.append(look())
    return looks


def has_all_threads(door, worker):
    """Whether it has, after more requests at once: gunicorn's pool grows as it is needed."""
    requests = [
        threading.Thread(target=request, args=(door, "/slow"))
        for _ in range(4 * WORKERS * THREADS)
    ]
    for thread in requests:
        thread.start()
    for thread in requests:
        thread.join()
    return belongings(worker)["threads"] >= 2 + THREADS  # with the main thread and the listener


def settle(*pids):
    """Waits until the last sessions are gone, whose number of threads no longer changes then."""
    for pid in pids:
        seen = collections.deque(maxlen=50)

        def is_still(pid=pid, seen=seen):
            seen.append(tuple(belongings(pid).values()))
            return len(seen) == seen.maxlen and len(set(seen)) == 1

        wait_until(is_still, "process %d is at rest" % pid)


def judge(looks, names):
    """Yields (text, whether it is well)."""
    yield "%d requests" % counts["requests"], counts["requests"] > 0
    yield "%d failed requests" % counts["failed requests"], counts["failed requests"] == 0
    for pid, name in names.items():
        before, warm, after = (look[pid] for look in looks)
        for what, count in before[0].items():
            now = after[0][what]
            yield "%s: %s %d -> %d" % (name, what, count, now), now <= count
        text = "%s: memory %d -> %d -> %d KiB" % (name, before[1], warm[1], after[1])
        yield text, after[1] - warm[1] <= MEMORY_TOLERANCE


def main():
    # What a shell has put into the background ignores it, and so would the clients.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("python", help="a Python that has gunicorn")
    parser.add_argument("modules", help="the folder of its module manhole")
    parser.add_argument("cli", help="manhole-cli")
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    modules, cli = os.path.abspath(options.modules), os.path.abspath(options.cli)
    folder = tempfile.mkdtemp(prefix="manhole-soak-")
    gunicorn = start_application(options.python, modules, folder)
    verdicts = []
    began = time.monotonic()
    try:
        door = os.path.join(folder, "http")
        wait_until(lambda: os.path.exists(door) and is_whole(gunicorn.pid), "gunicorn is up")
        kept = children(gunicorn.pid)[0]
        looks = soak(gunicorn.pid, door, cli, options.seconds, options.seed)
        verdicts += judge(looks, {gunicorn.pid: "master", kept: "worker"})
        pids = [gunicorn.pid, *children(gunicorn.pid)]
        gunicorn.terminate()
        status = gunicorn.wait(PATIENCE_S)
        left = [pid for pid in pids if os.path.exists("/tmp/manhole-%d" % pid)]
        verdicts.append(("gunicorn ended with status %d" % status, status == 0))
        verdicts.append(("%d sockets left" % len(left), not left))
    finally:
        gunicorn.kill()
        gunicorn.wait()
        if all(well for _, well in verdicts) and verdicts:
            shutil.rmtree(folder)
        else:
            print("soak: gunicorn's log is in", folder)
    print("soak: %.1f minutes" % ((time.monotonic() - began) / 60))
    for what, count in sorted(counts.items()):
        print("  %-20s %d" % (what, count))
    for text, well in verdicts:
        print("  %s %s" % ("ok    " if well else "FAILED", text))
    failed = sum(not well for _, well in verdicts)
    print("%d passed, %d failed, 0 skipped" % (len(verdicts) - failed, failed))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
