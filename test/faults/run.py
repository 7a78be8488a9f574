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

What fails is tried once more, with more time.

--most N does N of those runs, picked from all over but always the same. A line for each function
and the sums, then what no scenario has reached, then what failed. The last line: N passed, N failed,
N skipped.
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
import zlib

from orders import END, ERRORS, NO_MEMORY, Order, name_of, number_of
from processes import (
    DEADLINE,
    PATIENCE,
    Application,
    Fault,
    Pace,
    Unserved,
    client_command,
    client_environment,
    patiently,
    run_client,
    wait_until,
)
from scenarios import COMMANDS, FILES, FRESH, LASTING, NEW

# ---- Runs of an application ---------------------------------------------------------------------

# What says, in the log or to a client, that something went wrong.
COMPLAINT = re.compile(
    r"[Ee]rror|SystemExit|WARNING|[Ff]ailure|Cannot|cannot|Can't|Turned|manhole: (?!Python has)"
    r"|\[Errno|without|skipped|not shown|No frozen copy|told of no thread|no memory|left behind"
)
# And that does when the fault was that the other side had gone.
GOODBYE = re.compile(r"disconnected|DONE")
SETTLING = 0.2  # seconds
WITHOUT_FAULT = 8  # times as long may all take then: it costs nothing
GONE = (errno.EPIPE, errno.ECONNRESET, END)


# One fault: a row of the plan. chance: a number that is its own in all plans.
Run = collections.namedtuple("Run", "scenario index nth fault chance")


def spread(count):
    """Which of so many calls fail: the first, second, middle and last."""
    return sorted({1, min(2, count), (count + 1) // 2, count})


def may_fail_in(scenario, site, tally):
    """An aim is a C function, whose sites alone then fail; or NEW: those that no scenario above it
    has reached."""
    if scenario.aim == NEW:
        return tally.calls[site] == 0
    return scenario.aim in (None, site.where)


def plan_runs(scenario, order, counts, tally):
    for index, count in enumerate(counts):
        if count > 0 and may_fail_in(scenario, order.sites[index], tally):
            site = order.sites[index]
            for fault in map(number_of, ERRORS.get(site.function, NO_MEMORY)):
                for i, nth in enumerate(spread(count)):
                    name = (scenario.name, site.where, site.function, name_of(fault), i)
                    chance = zlib.crc32(repr(name).encode())
                    yield Run(scenario, index, nth, fault, chance)


ANY = None
# What is as it should be, although nobody says a word: (file, its function, the fault).
ACCEPTED = {
    ("manhole_cli.c", "read_server", "end"): "a console's end looks so",
    ("manhole_cli.c", "read_server", "ECONNRESET"): "a console's end looks so",
    ("manhole_cli.c", "send_some", "EPIPE"): "a console's end looks so",
    ("manhole_cli.c", "receive_output", "end"): "a console's end looks so",
    ("manhole_cli.c", "receive_output", "ECONNRESET"): "a console's end looks so",
    ("manhole_cli.c", "read_keys", "end"): "the terminal has hung up",
    ("manhole_cli.c", "read_keys", "EIO"): "the terminal has hung up",
    ("manhole_cli.c", "edit_line", "ENOMEM"): "the editor's word for the end of its input",
    ("manhole_cli.c", "read_stdin", "end"): "the input's own end",
    ("manhole_cli.c", "read_all", "end"): "the end of an empty file",
    ("manhole_cli.c", "read_line", "end"): "the input's own end",
    ("manhole_cli.c", "read_job", "end"): "a pipe of a child that printed nothing",
    ("manhole_cli.c", "open_editor", "ENOMEM"): "a terminal without the editor",
    ("manhole_cli.c", "connect_once", "EACCES"): "a Tab that finds no names says nothing",
    ("manhole_cli.c", "connect_once", "EAGAIN"): "a Tab that finds no names says nothing",
    ("manhole_cli.c", "connect_once", "ECONNREFUSED"): "a Tab that finds no names says nothing",
    ("manhole_cli.c", "connect_once", "EINTR"): "a Tab that finds no names says nothing",
    ("manhole_cli.c", "ask_aside", ANY): "a Tab that finds no names says nothing",
    ("manhole.c", "append_environ", "ENOMEM"): "a dict's own key is found without memory",
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
    ("manhole.c", "receive_up_to_key", "end"): "a client that leaves has no more to run",
}


def reason_of(run, order):
    site = order.sites[run.index]
    place = (site.source, site.where)
    return ACCEPTED.get((*place, name_of(run.fault))) or ACCEPTED.get((*place, ANY))


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
        self.doubts = 0  # failed at first
        self.accepted = 0

    def note_growth(self, scenario, kib):
        line = "%s: the application has grown by %d KiB" % (scenario.name, kib)
        print(line, file=self.log, flush=True)
        if kib > MOST_GROWTH_KIB:
            self.failures.append(line)

    def count(self, order, counts):
        for site, calls in zip(order.sites, counts):
            self.calls[site] += calls

    def note_doubt(self, run, message):
        self.doubts += 1
        print("%s, at first: %s" % (run.scenario.name, message), file=self.log, flush=True)

    def note(self, run, order, message, failed=False):
        site = order.sites[run.index]
        reason = reason_of(run, order)
        if failed and reason:
            message, failed = "accepted: %s: %s" % (reason, message), False
            self.accepted += 1
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
    log, message = "", None

    def is_told():  # the line may just be being written
        nonlocal log, message
        log += app.new_log()
        message = complaint_in(log) or complaint_in(unserved)
        if message is None and run is not None and run.fault in GONE:
            message = complaint_in(log, GOODBYE)
        return message is not None

    if not wait_until(is_told, SETTLING):
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
        app.idle = app.count()
        for _ in range(3):
            scenario.use(app)
            scenario.look_in(app)
    except (Fault, Unserved) as fault:
        app.clean_up()
        raise Fault("without a fault: %s" % fault) from None
    wait_until(app.is_idle, PATIENCE / WITHOUT_FAULT)  # never, where a signal opens it
    app.new_log()
    return app


def fault_with_log(fault, app):
    """The application, which may hang, goes, and leaves word."""
    app.kill()
    text = "%s\n%s" % (fault, "" if app.log.closed else app.new_log())
    app.clean_up()
    return Fault(text)


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


def persist(work):
    """What has no fault in it may yet be too slow for a limit of its own: it has three tries."""
    for _ in range(2):
        try:
            return work()
        except (Fault, Unserved):
            pass
    return work()


class Lasting:
    """An application that stays for all faults of a scenario."""

    source = "manhole.c"

    def __init__(self, folder, order, scenario):
        self.folder, self.order, self.scenario = folder, order, scenario
        self.app = self.before = self.memory = None

    def count(self):
        app = start(self.folder, self.order, self.scenario)
        self.order.give()
        self.scenario.use(app)
        time.sleep(0.05)  # for threads that have not quite ended
        counts = self.order.counts()
        end(app, self.scenario, 0)
        return counts

    def begin(self):
        if self.app is None:
            self.app = persist(lambda: start(self.folder, self.order, self.scenario))
            self.before, self.memory = self.app.count(), self.app.memory_kib()

    def do(self, run):
        try:
            return serve_and_judge(self.app, run, self.order, self.before)
        except Fault as fault:
            app, self.app = self.app, None
            raise fault_with_log(fault, app) from None

    def finish(self, tally):
        self.order.give()
        if self.app is not None:
            tally.note_growth(self.scenario, self.app.memory_kib() - self.memory)
            end(self.app, self.scenario, 0)


class Fresh:
    """A new application for each fault."""

    source = "manhole.c"

    def __init__(self, folder, order, scenario):
        self.folder, self.order, self.scenario = folder, order, scenario

    def use(self, app, run=None):
        """The message, if there is one."""
        try:
            set_up(app, self.scenario.options)
            self.scenario.use(app)
        except Unserved as unserved:
            if app.process.poll() is None and not app.process.stdin.closed:
                app.check_work()
            return excuse(app, run, str(unserved))
        return complaint_in(app.new_log())

    def count(self):
        self.order.give()
        message = self.do()
        if message:
            raise Fault("without a fault: " + message)
        return self.order.counts()

    def begin(self):
        pass

    def do(self, run=None):
        app = Application(self.folder, self.order)
        try:
            message = self.use(app, run)
            end(app, self.scenario, self.scenario.status)
        except Fault as fault:
            raise fault_with_log(fault, app) from None
        return message

    def finish(self, tally):
        pass


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
    app = None  # the same for all

    def __init__(self, folder, order, scenario):
        self.order, self.scenario = order, scenario
        if Commands.app is None:
            Commands.app = self.start(folder)

    @staticmethod
    def start(folder):
        app = Application(folder)
        set_up(app, "activate_on='USR1'")
        os.kill(app.pid, signal.SIGUSR1)
        wait_until(lambda: os.path.exists(app.path))
        listens = {
            "faults.ini": app.path,
            "any.ini": "/tmp/manhole-%(pid)s",
            "tcp.ini": "127.0.0.1:" + app.do("open_backdoor()"),
        }
        for name, place in listens.items():
            with open(os.path.join(folder, name), "w") as file:
                file.write("[ispyd]\nlisten = %s\n" % place)
        return app

    def use(self):
        if self.scenario.prepare is not None:
            self.scenario.prepare(self.app)
        typed = isinstance(self.scenario.input, list)
        return (run_at_terminal if typed else run_piped)(self.app, self.scenario, self.order)

    def count(self):
        self.order.give()
        self.use()  # what is kept is kept
        self.order.give()
        message = self.use()
        if message and message.startswith("status "):
            raise Fault("without a fault: " + message)
        return self.order.counts()

    def begin(self):
        pass

    def do(self, run):
        message = self.use()
        self.app.check_work()
        return message

    def finish(self, tally):
        pass

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
        cwd=app.folder,
        start_new_session=True,
        preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
    )
    text = bytearray()
    try:
        for keys, wanted in row.input:
            start = len(text)
            os.write(master, keys.encode())
            if not read_terminal(master, text, process, start, wanted):
                for key in (b"\3", b"\r", b"\4", b"\4"):  # what is typed with a Ctrl-C is lost
                    os.write(master, key)
                    read_terminal(master, text, process, 0, "nothing")
                break
        deadline = time.monotonic() + patiently(DEADLINE)
        while read_terminal(master, text, process, 0, None) and time.monotonic() < deadline:
            pass
        process.wait(patiently(0.1))
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
    deadline = time.monotonic() + patiently(PATIENCE)
    while wanted is None or wanted.encode() not in text[start:]:
        if select.select([master], [], [], 0.02)[0]:
            text += os.read(master, 65536)
        elif process.poll() is not None or time.monotonic() > deadline:
            return process.poll() is None and wanted is None
    return True


# ---- The whole ----------------------------------------------------------------------------------


def sample(runs, most):
    """At most so many, from all scenarios, and the same ones each time: neither how often a call
    comes nor an edit elsewhere changes much of it."""
    return sorted(runs, key=lambda run: run.chance)[:most]


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
    print(
        "%d of %d sites reached; %d faults, %d survived, %d of these accepted; %d at the second try"
        % (
            sum(tally.calls[site] > 0 for site in sites),
            len(sites),
            sum(tally.runs.values()),
            sum(tally.runs.values()) - sum(tally.failed.values()),
            tally.accepted,
            tally.doubts,
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
    Pace.slowness = WITHOUT_FAULT
    for kind, row in kinds:
        order = orders[kind.source]
        try:
            counts = persist(kind(folder, order, row).count)
        except (Fault, Unserved) as fault:
            tally.failures.append("%s: %s" % (row.name, fault))
            continue
        plan += plan_runs(row, order, counts, tally)
        tally.count(order, counts)
    return plan


def attempt(worker, run, slowness):
    """Returns the message, and whether it is that of a failure."""
    Pace.slowness = WITHOUT_FAULT
    worker.order.give()
    worker.begin()
    Pace.slowness = slowness
    worker.order.give(run.index, run.nth, run.fault)
    try:
        return worker.do(run), False
    except Fault as fault:
        return str(fault), True


def do_run(worker, run, tally):
    """On a machine that is busy all may be too slow: what fails has a second chance, and more time.
    The log tells of both."""
    message, failed = attempt(worker, run, 1)
    if failed and not reason_of(run, worker.order):
        tally.note_doubt(run, message)
        message, failed = attempt(worker, run, WITHOUT_FAULT)
    tally.note(run, worker.order, message, failed)


def do_runs(kinds, runs, folder, orders, tally):
    for kind, row in kinds:
        began = time.monotonic()
        mine = [run for run in runs if run.scenario is row]
        if not mine:
            continue
        worker = kind(folder, orders[kind.source], row)
        try:
            for run in mine:
                do_run(worker, run, tally)
            worker.finish(tally)
        except Fault as fault:
            tally.failures.append("%s, given up: %s" % (row.name, fault))
        took = time.monotonic() - began
        print("%-26s %5d faults %6.1f s" % (row.name, len(mine), took), flush=True)
    Commands.end()


def main():
    # What a shell has put into the background ignores it, and so would the clients.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    parser = argparse.ArgumentParser()
    parser.add_argument("folder")
    parser.add_argument("--most", type=int)
    parser.add_argument("--only", default="")
    parser.add_argument("--log", default=os.devnull)
    arguments = parser.parse_args()
    folder = os.path.abspath(arguments.folder)
    for name, text in FILES.items():
        path = os.path.join(folder, name)
        with open(path, "w") as file:
            file.write(text)
        os.chmod(path, 0o755 if text.startswith("#!") else 0o644)
    orders = {source: Order(folder, source) for source in ("manhole.c", "manhole_cli.c")}
    kinds = [(Fresh, row) for row in FRESH] + [(Lasting, row) for row in LASTING]
    kinds += [(Commands, row) for row in COMMANDS]
    only = [name for name in arguments.only.split(",") if name]
    with open(arguments.log, "w") as log:
        tally = Tally(log)
        runs = make_plan(kinds, folder, orders, tally)
        runs = [run for run in runs if not only or run.scenario.name in only]
        runs = sample(runs, arguments.most)
        do_runs(kinds, runs, folder, orders, tally)
    print_functions(tally, orders)
    for failure in tally.failures:
        print("failed: " + failure)
    passed = sum(tally.runs.values()) - sum(tally.failed.values())
    print("%d passed, %d failed, %d skipped" % (passed, len(tally.failures), tally.missed))
    return len(tally.failures) > 0


sys.exit(main())
