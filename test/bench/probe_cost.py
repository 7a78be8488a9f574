"""What a probe that does not fire costs a call.

    PYTHONPATH=$(make where) python3 test/bench/probe_cost.py [ROUNDS [CALLS]]

Calls functions of several kinds, rounds with and without a probe alternating, so that whatever
else the machine does falls on both alike. Prints, for each kind, the medians of both in
nanoseconds a call, less those of an empty loop, and their difference; the exit status is 0 when
a probe on a function or a method costs less than 150 ns.
"""

import asyncio
import statistics
import sys
import time

import manhole

MOST_NS = 150


def function(a, b):
    return a


def generator(a, b):
    yield a


async def coroutine(a, b):
    return a


class Class:
    def method(self, a, b):
        return a

    @staticmethod
    def static(a, b):
        return a

    @classmethod
    def of_class(cls, a, b):
        return a


KINDS = {
    "function": ("__main__:function", "function(1, 2)"),
    "method": ("__main__:Class.method", "instance.method(1, 2)"),
    "static method": ("__main__:Class.static", "instance.static(1, 2)"),
    "class method": ("__main__:Class.of_class", "instance.of_class(1, 2)"),
    "generator": ("__main__:generator", "list(generator(1, 2))"),
    "coroutine": ("__main__:coroutine", "await coroutine(1, 2)"),
}
HELD = ("function", "method")


def loop_over(statement):
    """Returns a function of its own that runs the statement CALLS times and tells the time."""
    source = (
        "async def loop(calls, instance):\n"
        "    start = time.perf_counter_ns()\n"
        "    for _ in range(calls): %s\n"
        "    return (time.perf_counter_ns() - start) / calls\n" % statement
    )
    names = dict(globals())
    names.update(vars(sys.modules["__main__"]))
    exec(source, vars(sys.modules["__main__"]), names)
    return names["loop"]


def measure(statement, name, rounds, calls):
    """Returns the median without a probe, and that with one."""
    loops = {probed: loop_over(statement) for probed in (False, True)}
    times = {False: [], True: []}
    for probed in [False, True] * rounds:
        if probed and name:
            manhole.probe(name)
        times[probed].append(asyncio.run(loops[probed](calls, Class())))
        manhole.unprobe()
    return statistics.median(times[False]), statistics.median(times[True])


def main():
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 15
    calls = int(sys.argv[2]) if len(sys.argv) > 2 else 100000
    empty = min(measure("pass", None, rounds, calls))
    worst = 0
    print("CPython %s, ns a call:" % sys.version.split()[0])
    for kind, (name, statement) in KINDS.items():
        without, with_probe = measure(statement, name, rounds, calls)
        cost = with_probe - without
        print(
            "%-14s without %6.1f   probed %6.1f   the probe %6.1f"
            % (kind, without - empty, with_probe - empty, cost)
        )
        if kind in HELD:
            worst = max(worst, cost)
    return 0 if worst < MOST_NS else 1


if __name__ == "__main__":
    sys.exit(main())
