#!/bin/bash
# Runs the test programs named as arguments, several at once, and sums up what cmocka counts. What a
# program prints is kept apart and shown whole when it has ended.
# Exit status 0: nothing failed. The last line: N passed, N failed, N skipped.
#
# Environment, all optional: TEST (a pattern), JOBS (how many programs at once; otherwise as many
# as there are processors), PYTHON_HOME (for programs that embed Python), VALGRIND (not empty: under
# valgrind), VALGRIND_TOOL (helgrind or drd; otherwise memcheck), PROGRAM_TIMEOUT (seconds that a
# program may take).
set -u
set -m # each program leads a group of its own, and SIGINT means to it what it means to any program
shopt -s nullglob

root=$(dirname "$(dirname "$(realpath "$0")")")
jobs=${JOBS:-$(nproc)}
seconds=${PROGRAM_TIMEOUT:-${VALGRIND:+7200}}
seconds=${seconds:-300}

export MANHOLE_TEST_FILTER=${TEST:-}
export LC_ALL=C.UTF-8
# CPython frees not all at its end; and it gives threads that register a signal with faulthandler an
# alternate stack, which asan would take for its own.
export ASAN_OPTIONS=detect_leaks=0:use_sigaltstack=0
export UBSAN_OPTIONS=print_stacktrace=1
# A forked child would tell of its parent's threads, which it does not have, and has its own.
export TSAN_OPTIONS=report_thread_leaks=0:die_after_fork=0:suppressions=$root/test/tsan.supp
valgrind=()
if [ -n "${VALGRIND:-}" ]; then
    # PYTHONMALLOC: valgrind cannot see into Python's own allocator. Its threads run one at a time;
    # without fair-sched one that computes keeps the others from it.
    valgrind=(env PYTHONMALLOC=malloc valgrind --quiet --fair-sched=try --vgdb=no --error-exitcode=99
        --suppressions="$root/test/valgrind.supp")
    # A frozen copy is a child with one thread that looks at what others had begun to write.
    [ -n "${VALGRIND_TOOL:-}" ] && valgrind+=("--tool=$VALGRIND_TOOL" --child-silent-after-fork=yes)
    pythons=/usr/lib/valgrind/python3.supp
    [ -e $pythons ] && valgrind+=("--suppressions=$pythons")
    # The fixtures look for files called report.* in the test's directory, the targets' own.
    export MANHOLE_TEST_WRAPPER="${valgrind[*]} --log-file=report.%p"
    export MANHOLE_TEST_SLOWNESS=20
fi

work=$(mktemp -d) || exit 1
clean_up() {
    local group
    for group in $(jobs -p); do
        kill -- "-$group" 2>/dev/null
    done
    wait
    rm -rf "$work"
}
trap clean_up EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

# run_program PROGRAM: leaves $work/NAME.log once it has ended, and before that NAME.status.
run_program() {
    local name command
    name=$(basename "$1")
    command=("$1")
    if [[ $name == unit_* ]]; then
        command=(env ${PYTHON_HOME:+"PYTHONHOME=$PYTHON_HOME"} "${valgrind[@]}" "$1")
    fi
    SECONDS=0
    timeout --foreground -k 30 "$seconds" "${command[@]}" >"$work/$name.part" 2>&1 </dev/null
    echo "$? $SECONDS" >"$work/$name.status"
    mv "$work/$name.part" "$work/$name.log"
}

# count PASSED LOG: the number in cmocka's summary line.
count() {
    local number
    number=$(sed -n "s/^\[  $1 *\] \(.*: \)\?\([0-9]*\) test(s).*/\2/p" "$2" | tail -n 1)
    echo "${number:-0}"
}

passed=0 failed=0 skipped=0
reasons='' failures=''

# Shows and counts the programs that have ended since the last call.
show_ended() {
    local log name status took failed_here at
    for log in "$work"/*.log; do
        name=$(basename "$log" .log)
        read -r status took <"${log%.log}.status"
        if [ "$status" -ne 0 ] || grep -q '^\[ RUN' "$log"; then
            printf '\n----- %s, %d s\n' "$name" "$took"
            cat "$log"
        fi
        failed_here=$(count FAILED "$log")
        if [ "$status" -ne 0 ] && [ "$failed_here" -eq 0 ]; then
            at=$(sed -n 's/^\[ RUN *\] //p' "$log" | tail -n 1)
            case $status in
            124 | 137) status="did not end within $seconds s and was ended" ;;
            *) status="ended with status $status" ;;
            esac
            echo "$name $status; its last test was ${at:-none}"
            failed_here=1
            failures+="$name: ${at:-?} ($status)"$'\n'
        fi
        passed=$((passed + $(count PASSED "$log")))
        failed=$((failed + failed_here))
        skipped=$((skipped + $(count SKIPPED "$log")))
        reasons+=$(sed -n 's/^skipped: //p' "$log")$'\n'
        failures+=$(sed -n "/ listed below:\$/d; s/^\[  FAILED  \] /$name: /p" "$log" | sort -u)$'\n'
        rm "$log"
    done
}

# Waits until fewer than this many programs run.
wait_for_fewer_than() {
    while [ "$(jobs -rp | wc -l)" -ge "$1" ]; do
        wait -n
        show_ended
    done
}

for program in "$@"; do
    wait_for_fewer_than "$jobs"
    run_program "$program" &
done
wait_for_fewer_than 1
show_ended

list() {
    sed '/^$/d' <<<"$2" | sed "s/^/$1: /"
}
echo
list skipped "$reasons"
list failed "$failures"
echo "$passed passed, $failed failed, $skipped skipped"
[ "$failed" -eq 0 ]
