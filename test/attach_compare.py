"""attach_compare.py - into a process that has no manhole: this, gdb, and CPython's own way; CI does not run it.

    python3 test/attach_compare.py [--runs 20] BUILD PYTHON [KIND ...]

BUILD is what `make where` prints, PYTHON the one that it was built for. Every tool is asked to have a
process write 6 * 7 into a file, a fresh process each time, of kinds as in attach_matrix.py and two more.
Nothing within 3 seconds: "waits"; the tool is then told to end, and killed if it does not. Prints for
each kind and tool: how often the file came, in what time (median and longest, from the tool's start),
and how many processes did not go on as if nothing had been.

    manhole-cli    --attach PID -c CODE
    cli, stacks    --attach PID --stacks, into the file
    gdb, call      as pyrasite: PyGILState_Ensure(), PyRun_SimpleString(), PyGILState_Release() are called
    gdb, malloc    as memray: a breakpoint where memory is asked for or signals are looked at, there
                   dlopen(), here of the C library, and PyRun_SimpleString()
    remote_exec    sys.remote_exec() of the same PYTHON, from 3.14 on
"""

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import time

import attach_matrix

PATIENCE_S = 3
SAFE_PLACES = "malloc calloc realloc free PyErr_CheckSignals PyCallable_Check".split()
attach_matrix.KINDS["gil"] = """
import ctypes
ready()
ctypes.PyDLL(None).sleep(5)
while not is_over():
    time.sleep(0.01)
    turn()
"""
attach_matrix.KINDS["deadlock"] = """
def work(_):
    while not is_over():
        time.sleep(0.02)
        turn()
    while os.path.exists("/tmp/manhole-%d" % os.getpid()):
        time.sleep(0.02)
    os._exit(7 if struct.unpack_from("Q", page, 8)[0] == 0 else 1)
threading.Thread(target=work, args=(1,)).start()
held = threading.Lock()
held.acquire()
ready()
held.acquire()
"""
KINDS = ["sleep", "epoll", "busy", "malloc", "gil", "deadlock"]


def code(path):
    return f"import os; open('{path}.part', 'w').write(str(6 * 7)); os.rename('{path}.part', '{path}')"


def gdb(pid, commands):
    words = ["gdb", "-nx", "-batch", "-p", str(pid)]
    for each in commands:
        words += ["-ex", each]
    return words


def quoted(text):
    return '"' + text.replace('"', '\\"') + '"'


def ask_gdb(options, pid, path):
    return gdb(
        pid,
        [
            "call (int)PyGILState_Ensure()",
            f"call (int)PyRun_SimpleString({quoted(code(path))})",
            "call (void)PyGILState_Release($1)",
        ],
    )


def ask_gdb_as_memray(options, pid, path):
    return gdb(
        pid,
        [
            "set unwindonsignal on",
            *("break " + place for place in SAFE_PLACES),
            "continue",
            "delete",
            'call (void *)dlopen("libc.so.6", 2)',
            "call (int)PyGILState_Ensure()",
            f"call (int)PyRun_SimpleString({quoted(code(path))})",
            "call (void)PyGILState_Release($2)",
        ],
    )


def ask_remote_exec(options, pid, path):
    with open(path + ".py", "w") as file:
        file.write(code(path))
    return [options.python, "-c", f"import sys; sys.remote_exec({pid}, '{path}.py')"]


def ask_manhole(options, pid, path):
    return [options.build + "/manhole-cli", "--attach", str(pid), "-c", code(path)]


def ask_manhole_for_stacks(options, pid, path):
    command = '"$0" --attach --stacks $1 >"$2.part" && mv "$2.part" "$2"'
    return ["sh", "-c", command, options.build + "/manhole-cli", str(pid), path]


TOOLS = {
    "manhole-cli": ask_manhole,
    "cli, stacks": ask_manhole_for_stacks,
    "gdb, call": ask_gdb,
    "gdb, malloc": ask_gdb_as_memray,
    "remote_exec": ask_remote_exec,
}


def ask(options, pid, kind):
    """As attach_matrix.ask_client(); the time until the file came is noted in options.times."""
    path = os.path.join(options.folder, "said")
    begun = time.monotonic()
    tool = subprocess.Popen(
        options.tool(options, pid, path), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    is_said = attach_matrix.wait_for(lambda: os.path.exists(path), PATIENCE_S)
    took = (time.monotonic() - begun) * 1e3
    try:
        if not is_said:
            tool.send_signal(signal.SIGTERM)
        tool.wait(PATIENCE_S)
    except subprocess.TimeoutExpired:
        tool.kill()
        tool.wait()
    if is_said:
        options.times.append(took)
        os.unlink(path)
    return "" if is_said else "waits", [], 0


def compare(options, kind, name):
    options.times, harmed = [], 0
    options.tool, options.ask = TOOLS[name], ask
    for _ in range(options.runs):
        with tempfile.TemporaryDirectory(dir="/var/tmp") as options.folder:
            *_, harm = attach_matrix.run_once(options, kind, options.folder)
            if harm:
                harmed += 1
                print("        ", harm, file=sys.stderr, flush=True)
    times = sorted(options.times)
    took = f"{times[len(times) // 2]:7.0f} {times[-1]:7.0f} ms" if times else "waits".rjust(18)
    print(f"{kind:9} {name:12} {len(times):3} of {options.runs} {took}   harmed {harmed}", flush=True)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("build")
    parser.add_argument("python")
    parser.add_argument("kinds", nargs="*", default=KINDS)
    options = parser.parse_args()
    has_remote = subprocess.run([options.python, "-c", "import sys; sys.remote_exec"], stderr=subprocess.DEVNULL)
    for kind in options.kinds:
        for name in TOOLS:
            if name != "remote_exec" or has_remote.returncode == 0:
                compare(options, kind, name)


if __name__ == "__main__":
    main()
