"""Each call of manhole.c and manhole_cli.c that can fail fails, one at a time.

    python3 test/faults/run.py FOLDER [--most N] [--only SCENARIO[,SCENARIO]] [--log FILE]

FOLDER has the module and manhole-cli compiled with faults.h: every place that calls something that
can fail is a site. A scenario is a piece of work for an application with a manhole, or for
manhole-cli. It is done once to count how often it comes by each site; then once more for each of
those calls and each error that the function may give. Where a scenario calls the same site many
times, its first, second, middle and last call fail.

After each fault an application must do its own work as before, in two threads; the client has
what it asked for, or it or the log says why not; the next client is served; descriptors and threads
are as many as before, and memory in the end is nearly; and after the end no socket is left.
manhole-cli must do what it was asked for, or say why not, with another status than 0; and it leaves
the terminal as it was. ACCEPTED lists what is as it should be although nobody says a word.

--most N does N of those runs, evenly spread. A line for each function, then what failed, then what
no scenario has reached. The last line: N passed, N failed, N skipped.
"""

import argparse
import collections
import errno
import fcntl
import os
import pty
import re
import select
import signal
import subprocess
import sys
import termios
import time

from orders import END, ERRORS, NO_MEMORY, Order, name_of, number_of
from processes import (
    DEADLINE,
    PATIENCE,
    Application,
    Fault,
    Unserved,
    client_command,
    client_environment,
    run_client,
    wait_until,
)
from scenarios import COMMANDS, FILES, FRESH, LASTING

# ---- Runs of an application ---------------------------------------------------------------------

# What says, in the log or to a client, that something went wrong.
COMPLAINT = re.compile(
    r"[Ee]rror|SystemExit|WARNING|[Ff]ailure|Cannot|cannot|Can't|Turned|manhole: (?!Python has)|without|skipped"
    r"|not shown|No frozen copy|told of no thread"
)
# And that does when the fault was that the other side had gone.
GOODBYE = re.compile(r"disconnected|DONE")
SETTLING = 0.2  # seconds
GONE = (errno.EPIPE, errno.ECONNRESET, END)


class Run(collections.namedtuple("Run", "scenario index nth fault")):
    """One fault: a row of the plan."""


def spread(count):
    """Which of so many calls fail: the first, second, middle and last."""
    return sorted({1, min(2, count), (count + 1) // 2, count})


def plan_runs(scenario, order, counts):
    for index, count in enumerate(counts):
        if count > 0:
            for fault in ERRORS.get(order.sites[index].function, NO_MEMORY):
                for nth in spread(count):
                    yield Run(scenario, index, nth, number_of(fault))


# What is as it should be, although nobody says a word: (file, its function, the fault).
ACCEPTED = {
    ("manhole_cli.c", "read_server", "end"): "a console's end looks so",
    ("manhole_cli.c", "read_server", "ECONNRESET"): "a console's end looks so",
    ("manhole_cli.c", "write_server", "EPIPE"): "a console's end looks so",
    ("manhole_cli.c", "take_output", "end"): "a console's end looks so",
    ("manhole_cli.c", "take_output", "ECONNRESET"): "a console's end looks so",
    ("manhole_cli.c", "send_unsent", "EPIPE"): "a console's end looks so",
    ("manhole_cli.c", "read_keys", "end"): "the terminal has hung up",
    ("manhole_cli.c", "read_keys", "EIO"): "the terminal has hung up",
    ("manhole_cli.c", "type_line", "ENOMEM"): "the editor's word for the end of its input",
    ("manhole_cli.c", "read_stdin", "end"): "the input's own end",
    ("manhole_cli.c", "read_source", "end"): "the end of an empty file",
    ("manhole_cli.c", "read_line", "end"): "the input's own end",
    ("manhole_cli.c", "read_job", "end"): "a pipe of a child that printed nothing",
    ("manhole_cli.c", "read_job", "EIO"): "pipes know no such error",
    ("manhole_cli.c", "open_editor", "ENOMEM"): "a terminal without the editor",
    ("manhole.c", "on_death", "EPERM"): "oneself is not another user",
    ("manhole.c", "on_death", "ESRCH"): "oneself is there",
    ("manhole.c", "answer_interrupt", "EINTR"): "a send that does not wait is not interrupted",
    ("manhole.c", "answer_interrupt", "short"): "a dozen bytes are not cut",
    ("manhole.c", "is_inet", "ENOBUFS"): "what kind of socket it is is always told",
    ("manhole.c", "is_done_with", "ENOBUFS"): "whether it listens is always told",
    ("manhole.c", "ring_bell", "EINTR"): "a socket's own, which does not wait: no such error",
    ("manhole.c", "ring_bell", "ENOSPC"): "a socket's own: no such error",
    ("manhole.c", "ring_bell", "EPIPE"): "a socket's own: no such error",
    ("manhole.c", "remove_path", "EACCES"): "nobody may remove the socket",
    ("manhole.c", "remove_path", "EROFS"): "nobody may remove the socket",
    ("manhole.c", "remove_path", "ENOMEM"): "it may be another's socket",
}


# Of an application in a scenario's hundreds of runs. What it keeps of one would be more.
MOST_GROWTH_KIB = 4096


class Tally:
    """What was done, and what came of it. Writes each run to the log."""

    def __init__(self, log):
        self.log = log
        self.calls = collections.Counter()  # by site
        self.runs = collections.Counter()  # by site
        self.failed = collections.Counter()  # by site
        self.failures = []
        self.missed = 0  # the call did not come

    def note_growth(self, scenario, kib):
        line = "%s: the application has grown by %d KiB" % (scenario.name, kib)
        print(line, file=self.log, flush=True)
        if kib > MOST_GROWTH_KIB:
            self.failures.append(line)

    def count(self, order, counts):
        for site, calls in zip(order.sites, counts):
            self.calls[site] += calls

    def note(self, run, order, message, failed=False):
        site = order.sites[run.index]
        reason = ACCEPTED.get((site.source, site.where, name_of(run.fault)))
        if failed and reason:
            message, failed = "accepted: %s: %s" % (reason, message), False
        if not order.is_done() and not failed:
            self.missed += 1
            message = "skipped: this time there was no such call"
        else:
            self.runs[site] += 1
        line = "%s: %s in %s() at %s:%d, call %d, %s: %s" % (
            run.scenario.name,
            site.function,
            site.where,
            site.source,
            site.line,
            run.nth,
            name_of(run.fault),
            message or "unnoticed",
        )
        print("FAILED " * failed + line, file=self.log, flush=True)
        if failed:
            self.failed[site] += 1
            self.failures.append(line)


def set_up(app, options):
    """Installs, and finds where clients are to go."""
    if options is None:
        return
    installed = app.do("install(%s)" % options)
    if installed.startswith("raised"):
        raise Unserved(installed)
    port = re.search(r"127\.0\.0\.1:(\d+)", installed)
    if port:
        app.address = ("127.0.0.1", int(port[1]))


def complaint_in(text, pattern=COMPLAINT):
    """The last line of it that says that something went wrong."""
    lines = [line for line in text.splitlines() if pattern.search(line)]
    return lines[-1][-300:] if lines else None


def excuse(app, run, unserved):
    """Why a client did not get what it asked for: it was told, or the log was."""
    time.sleep(0.02)  # for the line that is just being written
    log = app.new_log()
    message = complaint_in(log) or complaint_in(unserved)
    if message is None and run is not None and run.fault in GONE:
        message = complaint_in(log, GOODBYE)
    if message is None:
        raise Fault("silence: the client got %r, the log %r" % (unserved[-300:], log[-300:]))
    if "SystemError" in message:  # Python's word for an exception that was left set
        raise Fault("a wrong message: " + message)
    return message


def check_next_client(app, look_in):
    try:
        look_in(app)
    except Unserved as unserved:
        text = str(unserved)[-300:] + app.new_log()[-500:]
        raise Fault("the next client is not served: %r" % text) from None


def serve_and_judge(app, run, order, before):
    """The message of a run, if it had one."""
    scenario, message = run.scenario, None
    try:
        scenario.use(app)
    except Unserved as unserved:
        message = excuse(app, run, str(unserved))
    wait_until(lambda: app.count() == before, SETTLING)  # sessions end after their clients
    done = order.is_done()
    order.disarm()
    app.check_work()
    check_next_client(app, scenario.look_in)
    if not wait_until(lambda: app.count() == before):
        raise Fault("descriptors and threads: %s, were %s" % (app.count(), before))
    if message is not None and not done:
        raise Fault("without a fault: " + message)
    return message or complaint_in(app.new_log())


def start(folder, order, scenario):
    """One that has settled: what is imported is imported, what is kept is kept."""
    app = Application(folder, order)
    try:
        set_up(app, scenario.options)
        installed = app.count()
        for _ in range(3):
            scenario.use(app)
            scenario.look_in(app)
    except Unserved as unserved:
        app.clean_up()
        raise Fault("without a fault: %s" % unserved) from None
    wait_until(lambda: app.count() == installed, PATIENCE)  # more, where a signal opens it
    app.new_log()
    return app


def end(app, scenario, status):
    """It tidies up after itself."""
    try:
        got = app.end()
    finally:
        left = app.clean_up()
    if left:
        raise Fault("leaves its socket")
    if got not in (status, 0):  # 0: the fault kept the rest from being done
        raise Fault("its status is %d" % got)


class Lasting:
    """An application that stays for all faults of a scenario."""

    source = "manhole.c"

    @staticmethod
    def count(folder, order, scenario):
        app = start(folder, order, scenario)
        order.give()
        scenario.use(app)
        time.sleep(0.05)  # for threads that have not quite ended
        counts = order.counts()
        end(app, scenario, 0)
        return counts

    @staticmethod
    def run(folder, order, scenario, runs, tally):
        app = before = memory = None
        for run in runs:
            if app is None:
                app = start(folder, order, scenario)
                before, memory = app.count(), app.memory_kib()
            order.give(run.index, run.nth, run.fault)
            try:
                message = serve_and_judge(app, run, order, before)
                tally.note(run, order, message)
            except Fault as fault:
                tally.note(run, order, "%s\n%s" % (fault, app.new_log()), failed=True)
                app.clean_up()
                app = None
        order.give()
        if app is not None:
            tally.note_growth(scenario, app.memory_kib() - memory)
            end(app, scenario, 0)


class Fresh:
    """A new application for each fault."""

    source = "manhole.c"

    @staticmethod
    def use(app, scenario, run=None):
        """The message, if there is one."""
        try:
            set_up(app, scenario.options)
            scenario.use(app)
        except Unserved as unserved:
            if app.process.poll() is None and not app.process.stdin.closed:
                app.check_work()
            return excuse(app, run, str(unserved))
        return complaint_in(app.new_log())

    @classmethod
    def count(cls, folder, order, scenario):
        order.give()
        app = Application(folder, order)
        message = cls.use(app, scenario)
        end(app, scenario, scenario.status)
        if message:
            raise Fault("without a fault: " + message)
        return order.counts()

    @classmethod
    def run(cls, folder, order, scenario, runs, tally):
        for run in runs:
            order.give(run.index, run.nth, run.fault)
            app = Application(folder, order)
            try:
                message = cls.use(app, scenario, run)
                end(app, scenario, scenario.status)
                tally.note(run, order, message)
            except Fault as fault:
                text = "%s\n%s" % (fault, "" if app.log.closed else app.new_log())
                tally.note(run, order, text, failed=True)
            finally:
                app.clean_up()


def check_status(status, out, err, wanted, expected):
    """manhole-cli has done what it was asked for, or says why not."""
    rest = out
    for text in wanted:
        before, found, rest = rest.partition(text)
        if not found:
            break
    else:
        if status == expected:
            return complaint_in(err)
    if status < 0:
        raise Fault("manhole-cli died of signal %d" % -status)
    if status == 0 and complaint_in(err) is None:
        raise Fault("silence: status 0, %r and %r" % (out[-200:], err[-200:]))
    if not err.strip() and status not in (expected, 141):
        raise Fault("silence: status %d, %r" % (status, out[-200:]))
    return "status %d, %s" % (status, err.strip() or out[-100:])


class Commands:
    """manhole-cli, each time anew, for an application that knows no faults."""

    source = "manhole_cli.c"
    app = None

    @classmethod
    def once(cls, folder, order, scenario):
        if cls.app is None:
            cls.app = Application(folder)
            set_up(cls.app, "activate_on='USR1'")
            os.kill(cls.app.pid, signal.SIGUSR1)
            wait_until(lambda: os.path.exists(cls.app.path))
            with open(os.path.join(folder, "faults.ini"), "w") as file:
                file.write("[ispyd]\nlisten = %s\n" % cls.app.path)
        typed = isinstance(scenario.input, list)
        return (run_at_terminal if typed else run_piped)(cls.app, scenario, order)

    @classmethod
    def count(cls, folder, order, scenario):
        order.give()
        cls.once(folder, order, scenario)
        order.give()
        message = cls.once(folder, order, scenario)
        if message and message.startswith("status "):
            raise Fault("without a fault: " + message)
        return order.counts()

    @classmethod
    def run(cls, folder, order, scenario, runs, tally):
        for run in runs:
            order.give(run.index, run.nth, run.fault)
            try:
                tally.note(run, order, cls.once(folder, order, scenario))
                cls.app.check_work()
            except Fault as fault:
                tally.note(run, order, str(fault), failed=True)

    @classmethod
    def end(cls):
        if cls.app is not None:
            end(cls.app, None, 0)


def run_piped(app, row, order):
    """All of its streams are pipes."""
    done = run_client(app, row.arguments, row.input, order)
    return check_status(*done, row.wanted, row.status)


def run_at_terminal(app, row, order):
    """Its streams are a terminal, whose settings it must put back."""
    master, slave = pty.openpty()
    before = termios.tcgetattr(slave)
    process = subprocess.Popen(
        client_command(app, row.arguments),
        stdin=slave,
        stdout=slave,
        stderr=slave,
        env=client_environment(app, order),
        start_new_session=True,
        preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
    )
    text = bytearray()
    try:
        for keys, wanted in row.input:
            start = len(text)
            os.write(master, keys.encode())
            if not read_terminal(master, text, process, start, wanted):
                os.write(master, b"\3\r\4\4")
                break
        deadline = time.monotonic() + DEADLINE
        while read_terminal(master, text, process, 0, None) and time.monotonic() < deadline:
            pass
        process.wait(0.1)
        if termios.tcgetattr(slave) != before:
            raise Fault("the terminal is not as it was")
    except subprocess.TimeoutExpired:
        raise Fault("hangs: manhole-cli at a terminal, after %r" % bytes(text[-300:])) from None
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
        os.close(master)
        os.close(slave)
    out = text.decode(errors="replace")
    return check_status(process.returncode, out, out, row.wanted, row.status)


def read_terminal(master, text, process, start, wanted):
    """Returns whether the text has come; if not, this time is over, or the process."""
    deadline = time.monotonic() + PATIENCE
    while wanted is None or wanted.encode() not in text[start:]:
        if select.select([master], [], [], 0.02)[0]:
            text += os.read(master, 65536)
        elif process.poll() is not None or time.monotonic() > deadline:
            return process.poll() is None and wanted is None
    return True


# ---- The whole ----------------------------------------------------------------------------------


def sample(runs, most):
    """At most so many, evenly spread."""
    if most is None or len(runs) <= most:
        return runs
    return [runs[i * len(runs) // most] for i in range(most)]


def print_functions(tally, orders):
    sites = [site for order in orders.values() for site in order.sites]
    names = sorted({site.function for site in sites}, key=str.lower)
    print("%-32s %5s %7s %7s %6s %8s" % ("", "sites", "reached", "calls", "faults", "survived"))
    for name in names:
        here = [site for site in sites if site.function == name]
        print(
            "%-32s %5d %7d %7d %6d %8d"
            % (
                name,
                len(here),
                sum(tally.calls[site] > 0 for site in here),
                sum(tally.calls[site] for site in here),
                sum(tally.runs[site] for site in here),
                sum(tally.runs[site] - tally.failed[site] for site in here),
            )
        )
    print("\nReached by no scenario:")
    for source in orders:
        where = collections.defaultdict(list)
        for site in sites:
            if site.source == source and tally.calls[site] == 0:
                where[site.where].append("%s:%d" % (site.function, site.line))
        for function, calls in where.items():
            print("  %s %s(): %s" % (source, function, ", ".join(calls)))


def make_plan(kinds, folder, orders, tally):
    """Counts. Returns the runs that there are to do."""
    plan = []
    for kind, row in kinds:
        order = orders[kind.source]
        try:
            counts = kind.count(folder, order, row)
        except (Fault, Unserved) as fault:
            tally.failures.append("%s: %s" % (row.name, fault))
            continue
        tally.count(order, counts)
        plan += plan_runs(row, order, counts)
    return plan


def do_runs(kinds, runs, folder, orders, tally):
    for kind, row in kinds:
        began = time.monotonic()
        mine = [run for run in runs if run.scenario is row]
        try:
            kind.run(folder, orders[kind.source], row, mine, tally)
        except Fault as fault:
            tally.failures.append("%s, given up: %s" % (row.name, fault))
        took = time.monotonic() - began
        print("%-20s %5d faults %6.1f s" % (row.name, len(mine), took), flush=True)
    Commands.end()


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("folder")
    parser.add_argument("--most", type=int)
    parser.add_argument("--only", default="")
    parser.add_argument("--log", default=os.devnull)
    arguments = parser.parse_args()
    folder = os.path.abspath(arguments.folder)
    for name, text in FILES.items():
        with open(os.path.join(folder, name), "w") as file:
            file.write(text)
    orders = {source: Order(folder, source) for source in ("manhole.c", "manhole_cli.c")}
    kinds = [(Fresh, row) for row in FRESH] + [(Lasting, row) for row in LASTING]
    kinds += [(Commands, row) for row in COMMANDS]
    only = [name for name in arguments.only.split(",") if name]
    kinds = [(kind, row) for kind, row in kinds if not only or row.name in only]
    with open(arguments.log, "w") as log:
        tally = Tally(log)
        runs = sample(make_plan(kinds, folder, orders, tally), arguments.most)
        do_runs(kinds, runs, folder, orders, tally)
    print_functions(tally, orders)
    for failure in tally.failures:
        print("failed: " + failure)
    passed = sum(tally.runs.values()) - sum(tally.failed.values())
    print("%d passed, %d failed, %d skipped" % (passed, len(tally.failures), tally.missed))
    return len(tally.failures) > 0


sys.exit(main())
