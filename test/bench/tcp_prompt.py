"""How long a client waits for its prompt, by TCP and by the Unix socket.

    PYTHONPATH=$(make where) python3 test/bench/tcp_prompt.py [ROUNDS]

One idle process serves both. Rounds alternate, so that whatever else the machine does falls on
both alike. A round connects, waits for the first prompt, asks one question, leaves. Prints the
medians; their difference is what it takes to ask the kernel for the client's user and to take
telnet out of what the client sends. The exit status is 0 when TCP costs at most 2 ms more.
"""

import socket
import statistics
import subprocess
import sys
import time

MOST_MS = 2.0

TARGET = """
import os, sys
import manhole

it = manhole.install(verbose=False, listen=['localhost:0', './bench-%(pid)s.sock'])
print(*it.addresses, flush=True)
os.read(0, 1)
"""


def read_until_prompt(client):
    seen = b""
    while not seen.endswith(b">>> "):
        part = client.recv(1 << 16)
        if not part:
            sys.exit("the manhole hung up: %r" % seen[-200:])
        seen += part


def measure_ms(family, address):
    """Returns the milliseconds to the first prompt, and of one question."""
    with socket.socket(family) as client:
        begin = time.perf_counter()
        client.connect(address)
        read_until_prompt(client)
        prompt = time.perf_counter()
        client.sendall(b"1 + 1\n")
        read_until_prompt(client)
        answer = time.perf_counter()
        client.sendall(b"exit()\n")
        while client.recv(1 << 16):
            pass
    return (prompt - begin) * 1e3, (answer - prompt) * 1e3


def main():
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 101
    target = subprocess.Popen(
        [sys.executable, "-c", TARGET], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    medians = {}
    try:
        tcp, path = target.stdout.readline().decode().split()
        host, port = tcp.split(":")
        ways = {
            "Unix socket": (socket.AF_UNIX, path),
            "TCP": (socket.AF_INET, (host, int(port))),
        }
        times = {name: [] for name in ways}
        for way in ways.values():
            measure_ms(*way)  # to warm up
        for _ in range(rounds):
            for name, way in ways.items():
                times[name].append(measure_ms(*way))
    finally:
        target.stdin.close()
        target.wait()
    print("CPython %s, medians of %d rounds:" % (sys.version.split()[0], rounds))
    for name, pairs in times.items():
        prompt, answer = (statistics.median(column) for column in zip(*pairs))
        medians[name] = prompt
        print("%-12s prompt %6.3f ms, question %6.3f ms" % (name, prompt, answer))
    return 0 if medians["TCP"] - medians["Unix socket"] <= MOST_MS else 1


if __name__ == "__main__":
    sys.exit(main())
