"""Measures manhole beside python-manhole and the least possible, and holds it to its goals.

    make bench [PEER=folder of python-manhole's package] [BENCH=row] [BENCH_OPTIONS=...]

Rounds of ours, theirs and the least possible alternate, so that whatever else the machine does
falls on all alike; what is shown are medians. The table goes to standard output, all that was
measured to a JSON file. The exit status is 1 when a row failed; with --strict also when a goal was
missed, or not judged.
"""

import argparse
import importlib.util
import json
import os
import platform
import sys
import time
import traceback

import rows
from support import NotMeasured, Place

ROWS = {
    name[len("row_") :]: function
    for name, function in vars(rows).items()
    if name.startswith("row_")
}


def installed_peer():
    """Returns the folder of a python-manhole that this Python has, or an empty string."""
    spec = importlib.util.find_spec("manhole")
    is_package = spec is not None and spec.submodule_search_locations
    return os.path.dirname(spec.submodule_search_locations[0]) if is_package else ""


def parse_options():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("rows", nargs="*", metavar="ROW", help="of: " + " ".join(ROWS))
    parser.add_argument("--build", required=True, help="folder of our module and manhole-cli")
    parser.add_argument("--peer", help="folder that holds python-manhole's package")
    parser.add_argument("--json", help="default: bench.json in the build folder")
    parser.add_argument("--idle-seconds", type=float, default=60)
    parser.add_argument("--strict", action="store_true", help="fail when a goal is not met")
    options = parser.parse_args()
    for name in options.rows:
        if name not in ROWS:
            parser.error("no row %r; there are: %s" % (name, " ".join(ROWS)))
    options.peer = options.peer or installed_peer()
    if options.peer and not os.path.exists(os.path.join(options.peer, "manhole/__init__.py")):
        parser.error("no package manhole in %s" % options.peer)
    options.json = options.json or os.path.join(options.build, "bench.json")
    return options


# ---- The table, in the form that docs/benchmarks.rst has it ----------------------------------

COLUMNS = ("what", "ours", "theirs", "bare", "goal", "reached", "met")


def number(value, unit):
    if value is None:
        return ""
    return (("%.0f %s" if abs(value) >= 1000 else "%.3g %s") % (value, unit)).strip()


def lines_of(figure):
    """Returns the figure's lines of the table: one for each goal."""
    lines = []
    for goal in figure.goals or [None]:
        first = not lines
        shown = [figure.what] + [
            number(figure.median(side), figure.unit) for side in ("ours", "theirs", "bare")
        ]
        reached, met = figure.judge(goal) if goal else (None, None)
        lines.append(
            (shown if first else ["\\", "", "", ""])
            + [
                goal.text if goal else "",
                "" if reached is None else goal.shown % reached,
                {None: "", True: "yes", False: "NO"}[met],
            ]
        )
    return lines


def table(lines):
    widths = [max(map(len, column)) for column in zip(COLUMNS, *lines)]
    rule = ["=" * width for width in widths]
    shown = [rule, COLUMNS, rule, *lines, rule]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths)).rstrip()
        for line in shown
    )


def as_json(figure):
    goals = []
    for goal in figure.goals:
        reached, met = figure.judge(goal)
        goals.append({"goal": goal.text, "reached": reached, "met": met})
    return {
        "what": figure.what,
        "unit": figure.unit,
        "medians": {side: figure.median(side) for side in figure.samples},
        "samples": figure.samples,
        "goals": goals,
    }


def main():
    options = parse_options()
    place = Place(
        build=os.path.abspath(options.build),
        scratch=os.path.join(os.path.abspath(options.build), "bench"),
        peer=options.peer and os.path.abspath(options.peer),
    )
    figures = []
    missing, failed = [], []
    for name in options.rows or ROWS:
        begin = time.monotonic()
        try:
            figures += ROWS[name](place, options)
        except NotMeasured as reason:
            missing.append("%s: not measured: %s" % (name, reason))
        except Exception:
            traceback.print_exc()
            failed.append(name)
        print("%s: %.0f s" % (name, time.monotonic() - begin), file=sys.stderr)
    print(table([line for figure in figures for line in lines_of(figure)]))
    for line in missing + ["%s: failed" % name for name in failed]:
        print(line)
    verdicts = [figure.judge(goal)[1] for figure in figures for goal in figure.goals]
    counts = [verdicts.count(verdict) for verdict in (True, False, None)]
    print("%d goals met, %d missed, %d not judged" % tuple(counts))
    with open(options.json, "w") as file:
        json.dump(
            {
                "python": platform.python_version(),
                "machine": platform.platform(),
                "processors": os.cpu_count(),
                "figures": [as_json(figure) for figure in figures],
                "not measured": missing,
            },
            file,
            indent=1,
        )
    not_all_met = missing or counts[1] or counts[2]
    return 1 if failed or (options.strict and not_all_met) else 0


if __name__ == "__main__":
    sys.exit(main())
