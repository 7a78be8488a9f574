#!/bin/bash
# Runs the test programs named as arguments, one after another, and sums up what cmocka counts.
# Exit status 0: nothing failed. The last line: N passed, N failed, N skipped.
#
# Environment, all optional: TEST (a pattern), PYTHON_HOME (for programs that embed Python),
# VALGRIND (not empty: under valgrind), PROGRAM_TIMEOUT (seconds a program).
set -u

root=$(dirname "$(dirname "$(realpath "$0")")")
log=$(mktemp) || exit 1
trap 'rm -f "$log"' EXIT

export MANHOLE_TEST_FILTER=${TEST:-}
export ASAN_OPTIONS=detect_leaks=0 # CPython frees not all at its end
export UBSAN_OPTIONS=print_stacktrace=1
valgrind=()
if [ -n "${VALGRIND:-}" ]; then
    # PYTHONMALLOC: valgrind cannot see into Python's own allocator.
    valgrind=(env PYTHONMALLOC=malloc valgrind --quiet --error-exitcode=99
        --suppressions="$root/test/valgrind.supp")
    pythons=/usr/lib/valgrind/python3.supp
    [ -e $pythons ] && valgrind+=("--suppressions=$pythons")
    # The fixtures look for files called report.* in the test's directory, the targets' own.
    export MANHOLE_TEST_WRAPPER="${valgrind[*]} --log-file=report.%p"
    export MANHOLE_TEST_SLOWNESS=20
fi

# The number in cmocka's summary line: count PASSED.
count() {
    local number
    number=$(sed -n "s/^\[  $1 *\] \([0-9]*\) test(s).*/\1/p" "$log" | tail -n 1)
    echo "${number:-0}"
}

passed=0 failed=0 skipped=0
reasons='' failures=''
for program in "$@"; do
    name=$(basename "$program")
    command=("$program")
    if [[ $name == unit_* ]]; then
        command=(env ${PYTHON_HOME:+"PYTHONHOME=$PYTHON_HOME"} "${valgrind[@]}" "$program")
    fi
    timeout --foreground -k 30 "${PROGRAM_TIMEOUT:-1800}" "${command[@]}" 2>&1 | tee "$log"
    status=${PIPESTATUS[0]}
    failed_here=$(count FAILED)
    if [ "$status" -ne 0 ] && [ "$failed_here" -eq 0 ]; then
        echo "$name ended with status $status"
        failed_here=1
        failures+="$name (status $status)"$'\n'
    fi
    passed=$((passed + $(count PASSED)))
    failed=$((failed + failed_here))
    skipped=$((skipped + $(count SKIPPED)))
    reasons+=$(sed -n 's/^skipped: //p' "$log")$'\n'
    failures+=$(sed -n "/ listed below:\$/d; s/^\[  FAILED  \] /$name: /p" "$log" | sort -u)$'\n'
done

list() {
    sed '/^$/d' <<<"$2" | sed "s/^/$1: /"
}
echo
list skipped "$reasons"
list failed "$failures"
echo "$passed passed, $failed failed, $skipped skipped"
[ "$failed" -eq 0 ]
