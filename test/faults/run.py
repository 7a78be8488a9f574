"""Each call of manhole.c and manhole_cli.c that can fail fails, one at a time.

    python3 test/faults/run.py FOLDER [--most N] [--only SCENARIO[,SCENARIO]] [--log FILE]

FOLDER has the module and manhole-cli compiled with faults.h: every place that calls something that
can fail is a site. A scenario is a piece of work for an application with a manhole, or for
manhole-cli. It is done once to count how often it comes by each site; then once more for each of
those calls and each error that the function may give. Where a scenario calls the same site many
times, its first, second, middle and last call fail.

After each fault an application must do its own work as before, in two threads; the client has
what it asked for, or it or the log says why not; the next client is served; descriptors and threads
are as many as before; and after the end no socket is left. manhole-cli must do what it was asked
for, or say why not, with another status than 0; and it leaves the terminal as it was.

--most N does N of those runs, evenly spread. A line for each function, then what failed, then what
no scenario has reached. The last line: N passed, N failed, N skipped.
"""

import argparse
import collections
import contextlib
import errno
import fcntl
import mmap
import os
import pty
import re
import select
import shlex
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import termios
import time

DEADLINE = 5  # seconds, for what takes milliseconds
PATIENCE = 1  # for a text that may not come because of the fault
SOURCES = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
PROMPT = ">>> "

# ---- Which errors a function gives ---------------------------------------------------------

SHORT, END = -1, -2  # as in faults.h
RECEIVED = ["EINTR", "ECONNRESET", SHORT, END]
SENT = ["EINTR", "EPIPE", "ENOBUFS", SHORT]
ERRORS = {
    "accept4": ["EMFILE", "ENFILE", "ENOMEM", "ECONNABORTED", "EINTR"],
    "bind": ["EACCES", "EADDRINUSE", "ENOSPC", "EROFS"],
    "close": ["EINTR", "EIO"],
    "connect": ["ECONNREFUSED", "EAGAIN", "EINTR", "EACCES"],
    "dup2": ["EINTR", "EMFILE"],
    "execlp": ["ENOENT", "ENOMEM"],
    "execvp": ["ENOENT", "ENOMEM"],
    "fchmod": ["EPERM"],
    "fclose": ["ENOSPC"],
    "fcntl": ["EMFILE", "EBADF"],
    "ferror": ["EIO"],
    "fflush": ["ENOSPC", "EIO"],
    "fgets": ["EIO"],
    "flock": ["EINTR", "ENOLCK"],
    "fopen": ["EMFILE", "EACCES", "ENOMEM"],
    "fork": ["EAGAIN", "ENOMEM"],
    "fstat": [],  # of an open descriptor it does not fail
    "ftruncate": ["EIO"],
    "getpeername": ["ENOBUFS", "ENOTCONN"],
    "getpwuid_r": ["EMFILE", "ENOMEM"],
    "getrandom": ["EINTR", "ENOSYS"],
    "getsockname": ["ENOBUFS"],
    "getsockopt": ["ENOBUFS"],
    "ioctl": ["ENOTTY", "EIO"],
    "kill": ["EPERM", "ESRCH"],
    "listen": ["EADDRINUSE"],
    "lstat": ["EACCES", "ENOMEM"],
    "memfd_create": ["EMFILE", "ENOMEM"],
    "open": ["EMFILE", "ENFILE", "EACCES", "ENOMEM"],
    "opendir": ["EMFILE", "ENOMEM"],
    "pipe2": ["EMFILE", "ENFILE"],
    "poll": ["EINTR", "ENOMEM"],
    "ppoll": ["EINTR", "ENOMEM"],
    "prctl": ["EINVAL"],
    "pread": ["EIO", SHORT, END],
    "pthread_create": ["EAGAIN"],
    "pthread_key_create": ["EAGAIN"],
    "pwrite": ["ENOSPC", SHORT],
    "read": ["EINTR", "EIO", SHORT, END],
    "readdir": ["EBADF"],
    "readlink": ["EACCES", "ENOENT"],
    "recv": RECEIVED,
    "send": SENT,
    "setrlimit": ["EPERM"],
    "setsockopt": ["ENOBUFS"],
    "shutdown": ["ENOTCONN"],
    "socket": ["EMFILE", "ENFILE", "ENOBUFS"],
    "socketpair": ["EMFILE", "ENFILE"],
    "stat": ["EACCES", "ENOMEM"],
    "syscall": ["EAGAIN", "ENOMEM"],
    "unlink": ["EACCES", "EROFS"],
    "waitpid": ["EINTR", "ECHILD"],
    "write": ["EINTR", "ENOSPC", "EPIPE", SHORT],
}
NO_MEMORY = ["ENOMEM"]  # all others, Python's among them


def name_of(fault):
    names = {SHORT: "short", END: "end"}
    return names.get(fault) or errno.errorcode[fault]


def number_of(fault):
    return getattr(errno, fault) if isinstance(fault, str) else fault


# ---- The order that faults.c takes ----------------------------------------------------------

HEADER = struct.Struct("IIiII12x")
SITE = struct.Struct("40sII")
MAX_SITES = 2048
Site = collections.namedtuple("Site", "source line function where")


def find_functions(source):
    """The name of the function at each line of a C file."""
    names, name = [""], ""
    for line in open(os.path.join(SOURCES, source)):
        match = re.match(r"(?:[^#]*[ *])?(\w+)\(", line)
        if match and line[0] not in " \t#/}" and not line.startswith("static const"):
            name = match[1]
        names.append(name)
    return names


class Order:
    def __init__(self, folder, source):
        self.path = os.path.join(folder, source + ".order")
        self.source = source
        size = HEADER.size + MAX_SITES * SITE.size
        with open(self.path, "wb") as file:
            file.truncate(size)
        with open(self.path, "r+b") as file:
            self.map = mmap.mmap(file.fileno(), size)
        self.sites = []

    def read_sites(self):
        functions = find_functions(self.source)
        count = HEADER.unpack_from(self.map)[4]
        for i in range(count):
            name, line, _ = SITE.unpack_from(self.map, HEADER.size + i * SITE.size)
            name = name.rstrip(b"\0").decode().replace("_SizeT", "")
            self.sites.append(Site(self.source, line, name.lstrip("_"), functions[line]))

    def disarm(self):
        self.map[0:4] = bytes(4)

    def give(self, index=-1, nth=0, fault=0):
        """A fault at one site; at none. The counts begin anew."""
        self.disarm()
        for i in range(MAX_SITES):
            end = HEADER.size + (i + 1) * SITE.size
            self.map[end - 4 : end] = bytes(4)
        self.map[4:16] = struct.pack("IiI", nth, fault, 0)
        self.map[0:4] = struct.pack("I", index + 1)

    def is_done(self):
        return HEADER.unpack_from(self.map)[3] > 0

    def counts(self):
        """The calls of each site. Something must have run with it."""
        if not self.sites:
            self.read_sites()
        return [
            SITE.unpack_from(self.map, HEADER.size + i * SITE.size)[2]
            for i in range(len(self.sites))
        ]


# ---- Processes and clients --------------------------------------------------------------------


class Fault(Exception):
    """What must not be."""


class Unserved(Exception):
    """A client did not get what it asked for; the text that it got instead."""


class Ended(Unserved):
    """The other side has closed."""


class Hang(Fault):
    pass


def read_until(fd, text, is_enough, what, seconds=DEADLINE):
    """Reads on until is_enough(text). Raises Ended at the end of the stream."""
    deadline = time.monotonic() + seconds
    while not is_enough(text):
        left = deadline - time.monotonic()
        if left <= 0 or not select.select([fd], [], [], left)[0]:
            raise Hang("hangs: waits for %s after %r" % (what, bytes(text[-300:])))
        try:
            piece = os.read(fd, 65536)
        except OSError:
            piece = b""
        if not piece:
            raise Ended(text.decode(errors="replace"))
        text += piece
    return text


def wait_until(is_so, seconds=DEADLINE):
    deadline = time.monotonic() + seconds
    while not is_so():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.002)
    return True


class Client:
    def __init__(self, address, card=None):
        self.text = bytearray()
        self.all = ""
        self.socket = socket.socket(
            socket.AF_INET if isinstance(address, tuple) else socket.AF_UNIX
        )
        try:
            if card is not None:
                self.socket.bind("\0manhole-cli/%s" % card)
            wait_until(lambda: self.socket.connect_ex(address) != errno.ECONNREFUSED, PATIENCE)
            self.socket.getpeername()
        except OSError as error:
            self.socket.close()
            raise Unserved("connect: %s" % error) from error

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.socket.close()

    def send(self, text):
        try:
            self.socket.sendall(text.encode())
        except OSError:
            pass  # what it then reads says more

    def read(self, is_enough, what):
        """Who has answered wrongly, but still does, is no hang."""
        fd = self.socket.fileno()
        try:
            read_until(fd, self.text, is_enough, what, PATIENCE)
        except Hang:
            size = len(self.text)
            self.send("\n")
            read_until(fd, self.text, lambda text: len(text) > size, what)
            raise Unserved(self.all + self.text.decode(errors="replace")) from None

    def wait_for(self, text):
        wanted = text.encode()
        try:
            self.read(lambda got: wanted in got, repr(text))
        except Unserved as unserved:
            raise Unserved(self.all + str(unserved)) from None
        before, _, rest = bytes(self.text).partition(wanted)
        self.text = bytearray(rest)
        answer = before.decode(errors="replace")
        self.all += answer + text
        return answer

    def read_to_end(self):
        """All that it has received."""
        try:
            self.read(lambda _: False, "the end")
        except Ended:
            pass
        return self.all + self.text.decode(errors="replace")

    def ask(self, line, wanted, prompt=PROMPT):
        """The answer must have this in it, or else the client is unserved."""
        self.send(line + "\n")
        if wanted not in self.wait_for(prompt):
            raise Unserved(self.all)


# It works for itself in two threads: one ticks, the main thread does what stdin says, line by line.
APPLICATION = """
import ctypes, os, signal, sys, threading, time
sys.path.insert(0, %(folder)r)
ticks = 0
def tick():
    global ticks
    while True:
        time.sleep(0.005)
        ticks += 1
threading.Thread(target=tick, daemon=True).start()
ctypes.PyDLL, usleep = None, ctypes.PyDLL(None).usleep # keeps the GIL
def install(**options):
    import manhole
    global it
    it = manhole.install(**options)
    return it
def fork():
    global child, pipe
    ends = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(ends[1])
        os.read(ends[0], 1)
        sys.exit(0)
    os.close(ends[0])
    pipe = ends[1]
    return child
def join():
    os.close(pipe)
    return os.waitpid(child, 0)[1]
def count():
    return len(os.listdir('/proc/self/fd')), len(os.listdir('/proc/self/task'))
class Lines(list):
    write = list.append
names = globals()
def lines():
    rest = b''
    while True:
        piece = os.read(0, 4096)
        if not piece:
            return
        rest += piece
        while b'\\n' in rest:
            line, _, rest = rest.partition(b'\\n')
            yield line.decode()
for line in lines():
    try:
        answer = repr(eval(line, names))
    except Exception as error:
        answer = 'raised %%r' %% error
    os.write(1, answer.encode() + b'\\n')
"""


def client_command(app, arguments):
    named = [str(app.pid) if word == "PID" else word for word in arguments]
    return [os.path.join(app.folder, "manhole-cli"), *named]


def run_client(app, arguments, stdin="", order=None):
    """manhole-cli: its status, and what it says on stdout and stderr."""
    try:
        done = subprocess.run(
            client_command(app, arguments),
            input=stdin,
            capture_output=True,
            text=True,
            timeout=DEADLINE,
            env=client_environment(app, order),
            cwd=app.folder,
        )
    except subprocess.TimeoutExpired:
        raise Fault("hangs: manhole-cli " + shlex.join(arguments)) from None
    return done.returncode, done.stdout, done.stderr


def client_environment(app, order):
    path = app.folder + ":" + os.environ["PATH"]
    environment = dict(os.environ, HOME=app.folder, TERM="xterm", PATH=path)
    if order is not None:
        environment["FAULTS"] = order.path
    return environment


def forget_predecessor(path):
    """A socket that a process with this number has left long ago, which another of ours now has."""
    with contextlib.suppress(FileNotFoundError):
        if os.lstat(path).st_mtime < time.time() - 1:
            os.unlink(path)


class Application:
    def __init__(self, folder, order=None):
        self.log = tempfile.TemporaryFile(dir=folder)
        self.logged = 0
        self.answers = bytearray()
        environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
        if order is not None:
            environment["FAULTS"] = order.path
        self.process = subprocess.Popen(
            [sys.executable, "-c", APPLICATION % {"folder": folder}],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.log,
            env=environment,
            cwd=folder,
            bufsize=0,
        )
        self.pid = self.process.pid
        self.path = "/tmp/manhole-%d" % self.pid
        self.folder = folder
        self.address = self.path  # of its clients
        forget_predecessor(self.path)

    def order(self, line):
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.write(line.encode() + b"\n")

    def answer(self):
        try:
            read_until(
                self.process.stdout.fileno(), self.answers, lambda t: b"\n" in t, "app"
            )
        except Unserved:
            status = self.process.wait(DEADLINE)
            raise Fault("the application has ended: %d" % status) from None
        answer, _, rest = bytes(self.answers).partition(b"\n")
        self.answers = bytearray(rest)
        return answer.decode()

    def do(self, expression):
        self.order(expression)
        return self.answer()

    def new_log(self):
        """What it has logged since the last call."""
        self.log.seek(self.logged)
        text = self.log.read()
        self.logged += len(text)
        return text.decode(errors="replace")

    def count(self):
        """Its descriptors and threads."""
        return tuple(map(int, re.findall(r"\d+", self.do("count()"))))

    def check_work(self):
        ticks = int(self.do("ticks"))
        if not wait_until(lambda: int(self.do("ticks")) > ticks):
            raise Fault("a thread of the application's stands still")

    def end(self):
        """Its exit status."""
        self.process.stdin.close()
        try:
            return self.process.wait(DEADLINE)
        except subprocess.TimeoutExpired:
            raise Fault("the application does not end") from None

    def clean_up(self):
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        for stream in (self.process.stdin, self.process.stdout, self.log):
            with contextlib.suppress(OSError):
                stream.close()
        left = os.path.lexists(self.path)
        with contextlib.suppress(OSError):
            os.unlink(self.path)
        return left


# ---- Scenarios of the application ---------------------------------------------------------------


def use_console(app):
    with Client(app.address) as client:
        client.wait_for(PROMPT)
        client.ask("1 + 1", "2")
        client.ask("print('x' * 50000)", "x" * 50000)
        client.ask("1 / 0", "ZeroDivisionError")
        client.send("def f():\n    return input()\n\n")
        client.wait_for("... ... " + PROMPT)
        client.send("f()\nhello\n")
        if "hello" not in client.wait_for(PROMPT):
            raise Unserved(client.all)
        client.ask("import sys; sys.stderr.write('to' + 'the client')", "tothe client")
        app.do("print('a ' + 'copy')")
        client.wait_for("a copy")
        client.send("exit()\n")
        client.read_to_end()


def look_in(app):
    """What every next client must have."""
    with Client(app.address) as client:
        client.wait_for(PROMPT)
        client.ask("40 + 2", "42")


def run_programs(app):
    program = "print('out'); import sys; print('err', file=sys.stderr); print(input()); exit(3)"
    status, out, err = run_client(app, ["-c", program, "PID"], "in\n")
    if (status, out, err) != (3, "out\nin\n", "err\n"):
        raise Unserved("%d %s %s" % (status, out, err))
    status, out, err = run_client(app, ["-t", "0.1", "-c", "while True: pass", "PID"])
    if status != 124:
        raise Unserved("%d %s %s" % (status, out, err))


def get_stacks(app):
    for option, wanted in (("--stacks", "in tick"), ("--json", '"function"')):
        status, out, err = run_client(app, [option, "PID"])
        if status != 0 or wanted not in out:
            raise Unserved("%d %s %s" % (status, out, err))


def complete(app):
    with Client(app.address, "faults.1/edit") as console:
        console.wait_for("\1%s\2" % PROMPT)
        with Client(app.address, "faults.1/complete") as client:
            client.send("is\n")
            client.read_to_end()  # nothing, if it cannot be made
        console.send("1 + 1\n")
        console.wait_for("2\n")


def interrupt(app):
    with Client(app.address, "faults.2/repl") as console:
        console.wait_for(PROMPT)
        console.send("while not print('begun'): pass\n\n")
        console.wait_for("begun")
        with Client(app.address, "faults.2/interrupt") as client:
            client.read_to_end()
        console.wait_for("KeyboardInterrupt")
        console.wait_for(PROMPT)


def look_in_while_stuck(app):
    app.order("usleep(300000)")
    time.sleep(0.01)
    try:
        with Client(app.address) as client:
            client.wait_for("in <module>")
            client.wait_for(PROMPT)
            client.ask("1 + 1", "2")
    finally:
        app.answer()


def vanish(app):
    with Client(app.address) as client:
        client.wait_for(PROMPT)
        client.send("while True: pass\n\n")
        client.wait_for("... ")
    with Client(app.address) as client:
        client.send("print('" + "x" * 1000)


def activate(app):
    with contextlib.suppress(FileNotFoundError):
        os.unlink(app.path)
    os.kill(app.pid, signal.SIGUSR1)
    if not wait_until(lambda: os.path.exists(app.path), 1):
        raise Unserved("no socket")
    look_in(app)


def use_oneshot(app):
    os.kill(app.pid, signal.SIGUSR1)
    if not wait_until(lambda: os.path.exists(app.path), 1):
        raise Unserved("no socket")
    with Client(app.address) as client:
        client.wait_for(PROMPT)
        client.ask("1 + 1", "2")
        client.send("exit()\n")
        client.read_to_end()
    wait_until(lambda: not os.path.exists(app.path))


def use_child(app):
    child = app.do("fork()")
    path = "/tmp/manhole-" + child
    forget_predecessor(path)
    try:
        if not wait_until(lambda: os.path.exists(path), 1):
            raise Unserved("no socket of the child's")
        with Client(path) as client:
            client.wait_for(PROMPT)
            client.ask("1 + 1", "2")
    finally:
        status = app.do("join()")
        if os.path.exists(path):
            os.unlink(path)
            raise Fault("a child's socket is left")
        if status != "0":
            raise Fault("the child has ended with status " + status)


def use_tcp(app):
    use_console(app)
    with Client(app.address) as client:
        client.wait_for(PROMPT)
        client.send("while not print('begun'): pass\n\n")
        client.wait_for("begun")
        client.send("\3")
        client.wait_for("KeyboardInterrupt")
        client.wait_for(PROMPT)


def use_commands(app):
    prompt = ":%d) " % app.pid
    with Client(app.address) as client:
        client.wait_for(prompt)
        for line, wanted in (
            ("help", "plugins"),
            ("plugins", "process"),
            ("!process", ""),
            ("cwd", app.folder),
            ("exit", ""),
            ("!python", ""),
            ("threads", "in tick"),
            ("modules sy*", "sys"),
            ("environ", "PATH"),
            ("nonsense", "nonsense"),
            ("exit", ""),
        ):
            client.ask(line, wanted, prompt)
        client.send("exit\n")
        client.read_to_end()


def look_in_at_commands(app):
    with Client(app.address) as client:
        client.wait_for(":%d) " % app.pid)


def reinstall(app):
    installed = app.do("install()")
    try:
        if "Manhole" not in installed:
            raise Unserved(installed)
        look_in(app)
    finally:
        released = app.do("it.release()")
        if released != "None":
            raise Unserved(released)


def be_ended(app):
    """By SIGTERM, with a client that is connected."""
    with Client(app.address) as client:
        client.wait_for(PROMPT)
        app.process.send_signal(signal.SIGTERM)
        client.read_to_end()


def exit_beside_client(app):
    with Client(app.address) as client:
        client.wait_for(PROMPT)
        app.process.stdin.close()
        client.ask("1 + 1", "2")
        client.send("exit()\n")
        client.read_to_end()


# options None: the scenario itself installs.
Scenario = collections.namedtuple("Scenario", "name options use look_in status")


def scenario(name, use, options="", look_in=look_in, status=0):
    return Scenario(name, options, use, look_in, status)


# An application that stays for all faults of the scenario; after each look_in() must work.
LASTING = [
    scenario("console", use_console),
    scenario("programs", run_programs),
    scenario("stacks", get_stacks),
    scenario("complete", complete),
    scenario("interrupt", interrupt),
    scenario("vanish", vanish),
    scenario("stuck", look_in_while_stuck, "hang_timeout=0.05"),
    scenario("activate", activate, "activate_on='USR1'"),
    scenario("oneshot", use_oneshot, "oneshot_on='USR1', oneshot_timeout=2", use_oneshot),
    scenario("fork", use_child, "reinstall_delay=0.05"),
    scenario("tcp", use_tcp, "listen='localhost:0'"),
    scenario("commands", use_commands, "connection_handler='commands'", look_in_at_commands),
    scenario("log to object", look_in, "verbose_destination=log"),
    scenario("reinstall", reinstall, None, reinstall),
]
# A new application for each fault: what is called once in a process's life.
FRESH = [
    scenario("install", look_in, "locals={'a': 1}, socket_path='/tmp/manhole-%(pid)s'"),
    scenario("install activated", activate, "activate_on='USR1'"),
    scenario("install oneshot", use_oneshot, "oneshot_on='USR1', oneshot_timeout=2"),
    scenario("install tcp", look_in, "listen='localhost:0'"),
    scenario("install commands", look_in_at_commands, "config='ispyd.ini'"),
    scenario("terminated", be_ended, status=-signal.SIGTERM),
    scenario("exit", exit_beside_client),
]

# ---- Runs of an application ---------------------------------------------------------------------

# What says, in the log or to a client, that something went wrong.
COMPLAINT = re.compile(
    r"[Ee]rror|SystemExit|WARNING|[Ff]ailure|Cannot|cannot|Can't|Turned|manhole: |without|skipped|not shown"
)
# And that does when the fault was that the other side had gone.
GOODBYE = re.compile(r"disconnected|DONE")
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
    ("manhole.c", "remove_path", "EACCES"): "nobody may remove the socket",
    ("manhole.c", "remove_path", "EROFS"): "nobody may remove the socket",
    ("manhole.c", "remove_path", "ENOMEM"): "it may be another's socket",
}


class Tally:
    """What was done, and what came of it. Writes each run to the log."""

    def __init__(self, log):
        self.log = log
        self.calls = collections.Counter()  # by site
        self.runs = collections.Counter()  # by site
        self.failed = collections.Counter()  # by site
        self.failures = []
        self.missed = 0  # the call did not come

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
            return
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
    app.do("globals().__setitem__('log', Lines())")
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
    app = Application(folder, order)
    set_up(app, scenario.options)
    installed = app.count()
    for _ in range(3):  # what is imported is imported then, what is kept is kept
        scenario.use(app)
        scenario.look_in(app)
    wait_until(lambda: app.count() == installed, PATIENCE)  # less, where a signal opens it
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
        app, before = None, None
        for run in runs:
            if app is None:
                app = start(folder, order, scenario)
                before = app.count()
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
            end(app, scenario, 0)


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


class Command:
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
        return scenario.use(cls.app, scenario.arguments, scenario, order)

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


def run_piped(app, arguments, row, order):
    """All of its streams are pipes."""
    done = run_client(app, arguments, row.input, order)
    return check_status(*done, row.wanted, row.status)


def run_at_terminal(app, arguments, row, order):
    """Its streams are a terminal, whose settings it must put back."""
    master, slave = pty.openpty()
    before = termios.tcgetattr(slave)
    process = subprocess.Popen(
        client_command(app, arguments),
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


CommandRow = collections.namedtuple("CommandRow", "name use arguments input wanted status")


def command(name, arguments, wanted, given="", status=0, use=run_piped):
    return CommandRow(name, use, arguments, given, wanted, status)


FILES = {
    "ispyd.ini": "[ispyd]\nplugins = %(builtins)s\n[python:console]\nenabled = true\n",
    "program.py": "print('from a file')\n",
}
PROGRAM = "print('out'); print(input()); exit(3)"
TYPED = [
    ("", ">>> "),
    ("40 + 2\r", "42\r\n"),
    ("def f():\r", "... "),
    ("  return 'ab' * 2\r\r", ">>> "),
    ("f()\r", "'abab'"),
    ("isinst\t", "ance("),
    ("1, 2)\r", "TypeError"),
    ("while True: pass\r\r", "... "),
    ("\3", "KeyboardInterrupt"),
    ("\4", "now exiting"),
]
COMMANDS = [
    command("-c", ["-c", PROGRAM, "PID"], ["out\nin\n"], "in\n", 3),
    command("-f", ["-f", "program.py", "PID"], ["from a file\n"]),
    command("-t", ["-t", "0.2", "-c", "while True: pass", "PID"], [], status=124),
    command("piped", ["PID"], ["42\n", "ZeroDivisionError"], "40 + 2\n1 / 0\n"),
    command("signal", ["-1", "PID"], ["42\n"], "40 + 2\n"),
    command("--stacks", ["--stacks", "PID"], ["in tick", "in <module>"]),
    command("--json", ["--json", "PID"], ['"threads"', "tick"]),
    command("--list", ["--list"], ["PID"]),
    command("--children", ["-c", "print(40 + 2)", "--children", "PID"], ["42\n"]),
    command("no process", ["-t", "0.1", "/tmp/manhole-999999999"], [], status=5),
    command("local shell", ["faults.ini"], ["1: ", ">>> 42"], "servers\nconnect\n40 + 2\n"),
    command("terminal", ["PID"], ["42", "abab", "TypeError"], TYPED, use=run_at_terminal),
    command("host", ["--exec", "env", "-c", "print(6 * 7)", "PID"], ["42\n"]),
    command("help", ["--help"], ["usage: "]),
]


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
    kinds += [(Command, row) for row in COMMANDS]
    only = [name for name in arguments.only.split(",") if name]
    with open(arguments.log, "w") as log:
        tally = Tally(log)
        plan, done = [], []
        for kind, row in kinds:
            if not only or row.name in only:
                order = orders[kind.source]
                counts = kind.count(folder, order, row)
                tally.count(order, counts)
                plan += plan_runs(row, order, counts)
                done.append((kind, row))
        runs = sample(plan, arguments.most)
        for kind, row in done:
            began = time.monotonic()
            mine = [run for run in runs if run.scenario is row]
            kind.run(folder, orders[kind.source], row, mine, tally)
            took = time.monotonic() - began
            print("%-20s %5d faults %6.1f s" % (row.name, len(mine), took), flush=True)
    Command.end()
    print_functions(tally, orders)
    for failure in tally.failures:
        print("failed: " + failure)
    failed = len(tally.failures)
    print("%d passed, %d failed, %d skipped" % (sum(tally.runs.values()) - failed, failed, tally.missed))
    return failed > 0


sys.exit(main())
