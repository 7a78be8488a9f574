"""The pieces of work in which calls fail."""

import collections
import contextlib
import os
import signal
import socket
import time

from orders import SOURCES
from processes import PROMPT, Client, Fault, Unserved, forget_predecessor, run_client, wait_until

# ---- Of an application ------------------------------------------------------------------------


def use_console(app):
    with Client(app.address) as client:
        client.wait_for(PROMPT)
        client.ask("1 + 1", "2")
        client.ask("import sys", "")
        client.ask("print('x' * 50000)", "x" * 50000)
        client.ask("1 / 0", "ZeroDivisionError")
        client.ask("1 1", "SyntaxError")
        client.ask("sys.stdout.writelines(['ab', 'cd'])", "abcd")
        client.send("def f():\n    return input()\n\n")
        client.wait_for("... ... " + PROMPT)
        client.send("f()\nhello\n")
        if "hello" not in client.wait_for(PROMPT):
            raise Unserved(client.all)
        client.ask("sys.stderr.write('to' + 'the client')", "tothe client")
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


def get_stacks(app, text="in tick"):
    for option, wanted in (("--stacks", text), ("--json", '"function"')):
        status, out, err = run_client(app, [option, "PID"])
        if status != 0 or wanted not in out:
            raise Unserved("%d %s %s" % (status, out, err))


def complete(app):
    with Client(app.address, "faults.1/terminal") as console:
        console.wait_for("\1?%s\2" % PROMPT)
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


def execute(app):
    """Each line is run, and answers nothing."""
    with Client(app.address) as client:
        client.send("log.write('executed')\n")
        client.socket.shutdown(socket.SHUT_WR)
        answer = client.read_to_end()
    if "executed" not in app.do("log.take()"):
        raise Unserved(answer)


def be_served(app):
    with Client(app.address) as client:
        if "served" not in client.read_to_end():
            raise Unserved(client.all)


def fill(app):
    """One client more than there may be."""
    wait_until(app.is_idle)  # the one before may not quite have gone
    with Client(app.address) as client:
        client.wait_for(PROMPT)
        with Client(app.address) as another:
            answer = another.read_to_end()
        client.ask("1 + 1", "2")
    if "manhole: 1 clients are connected already" not in answer:
        raise Unserved(answer)


def look_in_again(app):
    wait_until(app.is_idle)
    look_in(app)


def get_stacks_while_stuck(app):
    app.order("usleep(300000)")
    time.sleep(0.01)
    try:
        get_stacks(app, "in <module>")
    finally:
        app.answer()


def use_backdoor(app):
    opened = app.do("open_backdoor()")
    try:
        with Client(("127.0.0.1", int(opened))) as client:
            client.wait_for(PROMPT)
            client.ask("1 + 1", "2")
            client.send("exit()\n")
            client.read_to_end()
    except ValueError:
        raise Unserved(opened) from None
    finally:
        app.do("close_backdoor()")


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


def do_chore(call):
    """A function of chores.py, in the application's main thread."""

    def use(app):
        answer = app.do("__import__('chores').%s" % call)
        if answer != "None":
            raise Unserved(answer)

    return use


def do_chores(*calls):
    def use(app):
        for call in calls:
            do_chore(call)(app)

    return use


def look_in_after_chore(app):
    do_chore("check()")(app)
    look_in(app)


def converse(lines, prompt=PROMPT):
    """Types lines, each with what the answer has in it."""

    def use(app):
        with Client(app.address) as client:
            client.wait_for(prompt % {"pid": app.pid})
            for line, wanted in lines:
                client.ask(line % {"pid": app.pid}, wanted, prompt % {"pid": app.pid})
            client.send("exit\n" if prompt == SHELL else "exit()\n")
            client.read_to_end()

    return use


def use_debugger(app):
    """With what the application does between two commands."""
    do_chore("check()")(app)
    try:
        with Client(app.address) as client:
            prompt = SHELL % {"pid": app.pid}
            client.wait_for(prompt)
            for line, wanted in DEBUGGING:
                if line is None:
                    app.do("__import__('chores').divide(1, 0)")
                else:
                    client.ask(line, wanted, "(Pdb) " if wanted == "divide" else prompt)
    finally:
        do_chore("put_back()")(app)


def look_in_at_debugger(app):
    do_chore("check()")(app)
    look_in_at_commands(app)


def use_console_in_shell(app):
    with Client(app.address) as client:
        prompt = SHELL % {"pid": app.pid}
        client.wait_for(prompt)
        client.ask("!python", "", prompt)
        client.ask("console", "")
        client.ask("6 * 7", "42")
        client.ask("exit()", "", prompt)


def use_streams(app):
    """The application's threads and a session have the same ones."""
    do_chore("replace_streams()")(app)
    try:
        with Client(app.address) as client:
            client.wait_for(PROMPT)
            for line, wanted in STREAMS:
                client.ask(line, wanted)
            do_chore("use_streams()")(app)
            client.send("exit()\n")
            client.read_to_end()
    finally:
        do_chore("restore_streams()")(app)


def run_odd_programs(app):
    for arguments, status, wanted in ODD_PROGRAMS:
        done = run_client(app, [*arguments, "PID"], "in\n")
        if done[0] != status or wanted not in done[1] + done[2]:
            raise Unserved("%d %s %s" % done)


def send_what_is_refused(app):
    with Client(app.address, "faults.3/exec") as client:
        client.send("no program\n")
        client.socket.shutdown(socket.SHUT_WR)
        answer = client.read_to_end()
    if "manhole: " not in answer:
        raise Unserved(answer)


def send_http(app):
    with Client(app.address) as client:
        client.wait_for(PROMPT)
        client.send("GET / HTTP/1.1\r\n")
        client.read_to_end()


def send_long_line(app):
    with Client(app.address) as client:
        client.wait_for(PROMPT)
        client.ask("#" * (17 << 20), "line too long")


def be_served_by_gevent(app):
    do_chore("pretend_gevent()")(app)
    try:
        be_served(app)
    finally:
        do_chore("forget_gevent()")(app)


def fork_at_the_prompt(app):
    with Client(app.address) as client:
        client.wait_for(PROMPT)
        client.ask("import os", "")
        client.ask("child = os.fork()", "")
        client.ask("os.waitpid(child, 0)[1]", "0")


def install_from_environment(app):
    """As the interpreter does at its start."""
    app.do("os.environ.update(PYTHONMANHOLE='locals={}')")
    app.do("__import__('site').addsitedir(%r)" % app.folder)
    if not wait_until(lambda: os.path.exists(app.path), 1):
        raise Unserved("no socket")
    look_in(app)


def install_and(use, options=""):
    def install_and_use(app):
        installed = app.do("install(%s)" % options)
        if "Manhole" not in installed:
            raise Unserved(installed)
        use(app)

    return install_and_use


def install_by_c(app):
    do_chore("install_by_c()")(app)
    activate(app)
    do_chore("dump_by_c()")(app)


def install_over_dead_socket(app):
    do_chore("leave_dead_socket()")(app)
    try:
        install_and(look_in)(app)
    except Unserved:
        os.unlink(app.path)  # which is not the application's
        raise


def daemon_exits(app):
    """It does not wait for its client's statement."""
    with Client(app.address) as client:
        client.wait_for(PROMPT)
        client.send("import time\nwhile not print('begun'): time.sleep(0.01)\n\n")
        client.wait_for("begun")
        app.process.stdin.close()
        client.read_to_end()


# options None: the scenario itself installs. aim: see run.py, may_fail_in().
Scenario = collections.namedtuple("Scenario", "name options use look_in status aim")
NEW = "new"


def scenario(name, use, options="", look_in=look_in, status=0, aim=None):
    return Scenario(name, options, use, look_in, status, aim)


SHELL = ":%(pid)d) "  # prompts of the shells of commands
RUN_CHILD = "run_child(__import__('chores').%s)"
MANY_OPTIONS = """verbose_destination=log, listen=['localhost:0', '/tmp/manhole-%(pid)s'],
 sigmask=['HUP'], enable='console, debugger', redirect_stderr=False""".replace("\n", "")
STREAMS = [
    ("import sys", ""),
    ("sys.stdout", "manhole.Stream stdout of"),
    ("sys.stdout.fileno() > 2", "True"),
    ("sys.stdout.encoding", "utf-8"),
    ("sys.stdout.flush = 1", "Error"),
    ("exec('with sys.stdout: pass')", ""),
    ("sys.stdout.buffer.write(b'bytes')", "bytes5"),
    ("next(sys.stdin)\nline", "line"),
    ("next(iter(sys.stdin))\nline", "line"),
]
PLUGINS = [
    ("plugins", "mine"),
    ("help shell", "shell"),
    ("!mine", ""),
    ("help", "greet"),
    ("help greet", "Greets"),
    ("greet you", "hello you"),
    ("fail", "ZeroDivisionError"),
    ("exit", ""),
    ("!idle", ""),
    ("!python", ""),
    ("maxint", "maxsize"),
    ("console", "disabled"),
    ("exit", ""),
    ("!nothing", "nothing"),
    ("!wsgi", ""),
    ("requests", "No active"),
    ("exit", ""),
]
DEBUGGING = [
    ("!debugger", ""),
    ("insert chores:divide", ""),
    ("list", "chores:divide"),
    ("print chores:divide", "***"),
    (None, None),
    ("list", "chores:divide"),
    ("tracebacks", "traceback object"),
    ("print chores:divide", "ZeroDivisionError"),
    ("debug chores:divide", "divide"),
    ("q", ""),
    ("discard chores:divide", ""),
    ("remove chores:divide", ""),
    ("reset", ""),
    ("exit", ""),
]
ARGUMENTS = """
import sys, threading
def use():
    kept = sys.argv
    try:
        del sys.argv
    finally:
        sys.argv = kept
thread = threading.Thread(target=use)
thread.start()
thread.join()
sys.argv = ['mine']
print(sys.argv, input())
sys.stdout.fileno()
"""
ODD_PROGRAMS = [
    (["-c", ARGUMENTS], 1, "['mine'] in\n"),
    (["-c", "exit('a text')"], 1, "a text\n"),
    (["-c", "class E(Exception): __str__ = 5\nraise E"], 1, "E"),
    (["-f", "program.py"], 0, "from a file\n"),
]


# An application that stays for all faults of the scenario; after each look_in() must work.
LASTING = [
    scenario("console", use_console),
    scenario("programs", run_programs),
    scenario("stacks", get_stacks),
    scenario("complete", complete),
    scenario("interrupt", interrupt),
    scenario("vanish", vanish),
    scenario("stuck", look_in_while_stuck, "hang_timeout=0.05"),
    scenario("activate", activate, "activate_on='USR1'", activate),
    scenario("oneshot", use_oneshot, "oneshot_on='USR1', oneshot_timeout=1", use_oneshot),
    scenario("fork", use_child, "reinstall_delay=0.05"),
    scenario("tcp", use_tcp, "listen='localhost:0'"),
    scenario("commands", use_commands, "connection_handler='commands'", look_in_at_commands),
    scenario("log to object", look_in, "verbose_destination=log"),
    scenario("reinstall", reinstall, None, reinstall),
    scenario("exec", execute, "connection_handler='exec', locals={'log': log}", execute),
    scenario("callable", be_served, "connection_handler=serve", be_served),
    scenario("full", fill, "max_sessions=1", look_in_again),
    scenario("stacks while stuck", get_stacks_while_stuck, "hang_timeout=0.05"),
    scenario("backdoor", use_backdoor, look_in=use_backdoor),
    scenario("probes", do_chores("observe()", "look_at_probed()"), "", look_in_after_chore, aim=NEW),
    scenario("requests", do_chore("serve_requests()"), "", look_in_after_chore, aim=NEW),
    scenario("greenlets", do_chore("serve_in_greenlets()"), "", look_in_after_chore, aim=NEW),
    scenario(
        "debugger",
        use_debugger,
        "connection_handler='commands', enable='debugger'",
        look_in_at_debugger,
        aim=NEW,
    ),
    scenario(
        "plugins", converse(PLUGINS, SHELL), "config='plugins.ini'", look_in_at_commands, aim=NEW
    ),
    scenario(
        "console in a shell",
        use_console_in_shell,
        "config='ispyd.ini'",
        look_in_at_commands,
        aim=NEW,
    ),
    scenario("streams", use_streams, aim=NEW),
    scenario("odd programs", run_odd_programs, aim=NEW),
    scenario("refused", send_what_is_refused, aim=NEW),
    scenario("http", send_http, "listen='localhost:0'", aim=NEW),
    scenario("long line", send_long_line, aim=NEW),
    scenario("gevent", be_served_by_gevent, "connection_handler=serve", be_served, aim=NEW),
    scenario("fork at the prompt", fork_at_the_prompt, aim=NEW),
    scenario(
        "module",
        do_chores("ask_peer()", "dump()", "handle_connections()", "refuse_options()", "backdoor()"),
        aim=NEW,
    ),
    scenario("own handler", look_in, "connection_handler=__import__('chores').handle", aim=NEW),
    scenario(
        "multiprocessing", do_chore(RUN_CHILD % "wait_for_socket"), "reinstall_delay=0.02", aim=NEW
    ),
]
# A new application for each fault: what is called once in a process's life.
FRESH = [
    scenario("install", look_in, "locals={'a': 1}, socket_path='/tmp/manhole-%(pid)s'"),
    scenario("install activated", activate, "activate_on='USR1'"),
    scenario("install oneshot", use_oneshot, "oneshot_on='USR1', oneshot_timeout=1"),
    scenario("install tcp", look_in, "listen='localhost:0'"),
    scenario("install commands", look_in_at_commands, "config='ispyd.ini'"),
    scenario("terminated", be_ended, status=-signal.SIGTERM),
    scenario("exit", exit_beside_client),
    scenario("exit of a daemon", daemon_exits, "daemon_connection=True", aim=NEW),
    scenario("install with options", look_in, MANY_OPTIONS, aim=NEW),
    scenario("install by PYTHONMANHOLE", install_from_environment, None, aim=NEW),
    scenario("install by C", install_by_c, None, aim=NEW),
    scenario("install over a dead socket", install_over_dead_socket, None, aim=NEW),
    scenario("install in a child", do_chore(RUN_CHILD % "install_and_wait"), None, aim=NEW),
    scenario("first completion", complete, aim=NEW),
    scenario("first program", run_programs, aim=NEW),
]

# ---- Of manhole-cli -----------------------------------------------------------------------------

# input: text for its stdin; or what is typed at a terminal, and what must then be shown.
# prepare: is called before each run.
Command = collections.namedtuple("Command", "name arguments wanted input status prepare aim")


def command(name, arguments, wanted, given="", status=0, prepare=None, aim=None):
    return Command(name, arguments, wanted, given, status, prepare, aim)


def leave_dead_socket(_):
    with contextlib.suppress(FileNotFoundError):
        os.unlink(DEAD)
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(DEAD)


def leave_long_history(app):
    """Twice what is kept."""
    with open(os.path.join(app.folder, ".manhole_history"), "w") as file:
        file.write("remembered line\n" * 80000)


def read_source(*path):
    with open(os.path.join(SOURCES, *path)) as file:
        return file.read()


# In the folder of applications and clients.
FILES = {
    "ispyd.ini": "[ispyd]\nlisten = /tmp/manhole-%(pid)s\nplugins = %(builtins)s\n"
    "[python:console]\nenabled = true\n",
    "plugins.ini": "[ispyd]\nlisten = /tmp/manhole-%(pid)s\n"
    "plugins = python wsgi chores:Mine chores:Idle chores:Nothing\n",
    "broken.ini": "plugins = %(builtins)s\n",
    "wrong.ini": "[ispyd]\n[debugger]\nenabled = perhaps\n",
    "program.py": "print('from a file')\n",
    "chores.py": read_source("test", "faults", "chores.py"),
    "manhole.pth": read_source("manhole.pth"),
    "ssh": "#!/bin/sh\nfor last; do :; done\nexec sh -c \"$last\"\n",
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
    ("while True: pass\r", "... "),
    ("\r", "\r\n"),
    ("\3", "KeyboardInterrupt"),
    ("\4", "now exiting"),
]
DEAD = "/tmp/manhole-%d" % (900000000 + os.getpid())  # beyond all pids
ASKED = [("", "Which one? [1-"), ("q\r", "")]
LOCAL = [("", "(manhole) "), ("servers\r", "1: "), ("connect\r", ">>> "), ("\4", "exiting")]
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
    command("terminal", ["PID"], ["42", "abab", "TypeError"], TYPED),
    command("host", ["--exec", "env", "-c", "print(6 * 7)", "PID"], ["42\n"]),
    command("help", ["--help"], ["usage: "]),
    command("--match", ["-c", "print(40 + 2)", "--match", "FOLDER"], ["42\n"], aim=NEW),
    command("--clean", ["--clean"], [DEAD], prepare=leave_dead_socket, aim="clean_sockets"),
    command("which", [], ["Which one?"], ASKED, aim=NEW),
    command("TCP", ["tcp.ini"], ["42\n"], "connect\n40 + 2\n", aim=NEW),
    command("script elsewhere", ["--exec", "env", "-f", "program.py", "PID"], ["file\n"], aim=NEW),
    command("ssh", ["--host", "here", "-c", "print(6 * 7)", "PID"], ["42\n"], aim=NEW),
    command("any socket", ["any.ini"], ["1: "], "servers\n", aim=NEW),
    command("local terminal", ["faults.ini"], [], LOCAL, aim=NEW),
    command("history", ["PID"], ["42"], TYPED[:2] + TYPED[-1:], prepare=leave_long_history, aim=NEW),
]
