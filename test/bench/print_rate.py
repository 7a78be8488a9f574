"""How fast an application prints, without a client and with one that has stopped reading.

    PYTHONPATH=$(make where) python3 test/bench/print_rate.py [ROUNDS [SECONDS]]

Eight threads print as fast as they can, to /dev/null, in one process. Rounds without a client
and rounds with a stalled one alternate, so that whatever else the machine does falls on both
alike. Prints the rate of each round, the medians, and their ratio; the exit status is 0 when
the application keeps at least 90 % of its rate.
"""

import os
import socket
import statistics
import subprocess
import sys
import time

THREADS = 8
LEAST = 0.9

TARGET = """
import os, sys, threading, time
import manhole

it = manhole.install(verbose=False)
sys.stdout = open(os.devnull, 'w')
counts = [0] * int(sys.argv[1])

def work(i):
    while True:
        print('a line of the application, as they are: 0123456789')
        counts[i] += 1

for i in range(len(counts)):
    threading.Thread(target=work, args=(i,), daemon=True).start()
os.write(1, it.uds_name.encode() + b'\\n')
while os.read(0, 1):
    os.write(1, b'%d %d\\n' % (sum(counts), time.monotonic_ns()))
it.release()
os._exit(0)
"""


class Target:
    def __init__(self):
        self.process = subprocess.Popen(
            [sys.executable, "-c", TARGET, str(THREADS)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        self.path = self.process.stdout.readline().decode().strip()

    def look(self):
        """Returns the number of prints so far, and when that was in seconds."""
        self.process.stdin.write(b"?")
        self.process.stdin.flush()
        count, when_ns = map(int, self.process.stdout.readline().split())
        return count, when_ns / 1e9

    def rate(self, seconds):
        count, when = self.look()
        time.sleep(seconds)
        count_after, when_after = self.look()
        return (count_after - count) / (when_after - when)

    def end(self):
        self.process.stdin.close()
        self.process.wait()


def stalled_client(path):
    """Returns a client that has come to its prompt and reads no more."""
    client = socket.socket(socket.AF_UNIX)
    client.connect(path)
    seen = b""
    while b">>> " not in seen:
        part = client.recv(1 << 16)
        if not part:
            sys.exit("the manhole hung up: %r" % seen[-200:])
        seen = seen[-10:] + part
    return client


def main():
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 9
    seconds = float(sys.argv[2]) if len(sys.argv) > 2 else 1.0
    target = Target()
    rates = {"no client": [], "stalled client": []}
    try:
        target.rate(seconds)  # to warm up
        for _ in range(rounds):
            rates["no client"].append(target.rate(seconds))
            with stalled_client(target.path):
                target.rate(0.2)  # until nothing more is kept for it
                rates["stalled client"].append(target.rate(seconds))
            target.rate(0.2)  # until the session has ended
    finally:
        target.end()
    print("CPython %s, %d threads, prints a second:" % (sys.version.split()[0], THREADS))
    for name, values in rates.items():
        each = " ".join("%.0f" % value for value in values)
        print("%-15s median %9.0f   (%s)" % (name, statistics.median(values), each))
    ratio = statistics.median(rates["stalled client"]) / statistics.median(rates["no client"])
    print("with a stalled client %.1f %% of the rate without" % (100 * ratio))
    return 0 if ratio >= LEAST else 1


if __name__ == "__main__":
    sys.exit(main())
