"""The pieces of work in which calls fail."""

import collections
import contextlib
import os
import signal
import socket
import time

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
    time.sleep(0.05)  # the one before may not quite have gone
    with Client(app.address) as client:
        client.wait_for(PROMPT)
        with Client(app.address) as another:
            answer = another.read_to_end()
        client.ask("1 + 1", "2")
    if "manhole: 1 clients are connected already" not in answer:
        raise Unserved(answer)


def look_in_again(app):
    time.sleep(0.05)
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
]

# ---- Of manhole-cli -----------------------------------------------------------------------------

# input: text for its stdin; or what is typed at a terminal, and what must then be shown.
Command = collections.namedtuple("Command", "name arguments wanted input status")


def command(name, arguments, wanted, given="", status=0):
    return Command(name, arguments, wanted, given, status)


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
    command("terminal", ["PID"], ["42", "abab", "TypeError"], TYPED),
    command("host", ["--exec", "env", "-c", "print(6 * 7)", "PID"], ["42\n"]),
    command("help", ["--help"], ["usage: "]),
]
