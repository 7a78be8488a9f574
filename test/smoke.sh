#!/bin/bash
# The few things without which all else is nothing, of a module and a client for another machine or C
# library than this one's: for test/foreign.sh.
# The last line: N passed, N failed, N skipped.
#
# usage: smoke.sh FOLDER SEEN PYTHON [RUNNER...]
#   FOLDER  has manhole.so and manhole-cli, and with a RUNNER unit_attach
#   SEEN    what it is called by PYTHON
#   RUNNER  what runs all of them: chroot, an emulator
set -u

folder=$1 seen=$2 python=$3
shift 3
cli=("$@" "$seen/manhole-cli" --timeout 60)
passed=0 failed=0 skipped=0
targets=()
trap 'kill "${targets[@]}" 2>/dev/null' EXIT

# A thread, and a child when it is asked for one, or what nothing in Python can interrupt.
cat >"$folder/target.py" <<'END'
import os, re, sys, threading, time
sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import manhole
asked, forked = threading.Event(), threading.Event()
def work(): threading.Event().wait()
def stuck(): re.match("(a*)*b", "a" * 100)
threading.Thread(target=work, name="Arbeit \u00fc", daemon=True).start()
manhole.install(reinstall_delay=0.01, hang_timeout=1, verbose=False)
if sys.argv[1] == "hangs": stuck()
asked.wait()
child = os.fork()
forked.set()
time.sleep(600)
END

# It has no manhole.
cat >"$folder/stranger.py" <<'END'
import os, sys, time
def wait_for(path):
    open("begun", "w").close()
    while not os.path.exists(path): time.sleep(0.01)
os.chdir(os.path.dirname(os.path.abspath(__file__)))
wait_for("over")
sys.exit(7)
END
rm -f "$folder"/begun "$folder"/over

start() { # HOW...: leaves pid
    "$@" &
    pid=$!
    targets+=("$pid")
}

# check CLAIM PATTERN COMMAND...: what it prints is matched by the regular expression.
check() {
    local claim=$1 pattern=$2 output
    shift 2
    output=$("$@" 2>&1)
    if grep -q -- "$pattern" <<<"$output"; then
        passed=$((passed + 1))
        echo "ok: $claim"
    else
        failed=$((failed + 1))
        printf 'FAILED: %s: no "%s" in\n%s\n' "$claim" "$pattern" "$output"
    fi
}

ask() { # PID CODE
    "${cli[@]}" -c "$2" "$1"
}

type_in() { # PID LINE
    echo "$2" | "${cli[@]}" "$1"
}

passes() { # COMMAND...
    "$@" && echo "all of it passed"
}

start "$@" "$python" "$seen/target.py" serves
server=$pid
check "it is installed and runs code" '^42$' ask "$server" 'print(6 * 7)'
check "there is a prompt" '^>>> 42$' type_in "$server" '6 * 7'
check "stacks of all threads" ', in work$' "${cli[@]}" --stacks "$server"
child=$(ask "$server" 'import __main__ as m; m.asked.set(); m.forked.wait(60); print(m.child)')
targets+=("$child")
check "a forked child has its own" "^$server\$" ask "$child" 'import os; print(os.getppid())'
check "deep recursion fits" '^199$' ask "$server" \
    'deep = lambda n: n and max(sorted([n - 1], key=deep)); print(deep(200))'

if [ $# -gt 0 ]; then
    check "--attach: frames, and the code that is sent" '^all of it passed$' passes "$@" "$seen/unit_attach"
    # qemu-user knows no clone() without a signal to the parent, which a frozen copy is.
    skipped=5
    echo "skipped: stacks of a stuck process, with the names of its threads: no frozen copy under qemu"
    echo "skipped: all else of --attach, for qemu-user knows no ptrace()"
else
    start "$python" "$seen/target.py" hangs
    check "stacks of a stuck process" ', in stuck$' "${cli[@]}" --stacks "$pid"
    check "with the names of its threads" '^Thread: Arbeit ü, ' "${cli[@]}" --stacks "$pid"
    start "$python" "$seen/stranger.py"
    while [ ! -e "$folder/begun" ] && [ -e "/proc/$pid" ]; do sleep 0.1; done
    check "stacks of a process without a manhole" ', in wait_for$' "${cli[@]}" --attach --stacks "$pid"
    check "which is given one" '^42$' \
        "${cli[@]}" --attach --module "$seen/manhole.so" -c 'print(6 * 7)' "$pid"
    touch "$folder/over"
    wait "$pid"
    check "and ends as it would have" '^7$' echo $?
fi

echo "$passed passed, $failed failed, $skipped skipped"
[ "$failed" -eq 0 ]
