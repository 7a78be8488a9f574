#!/bin/bash
# Runs the fuzz targets of the programs named as arguments, one after the other, each for a while.
# What is known of a target is in test/fuzz/corpus/TARGET. What is found beside that is left in
# NAME.work/TARGET, NAME the program's; inputs that fail in NAME.failures, and their paths are
# printed.
# Exit status 0: nothing failed. The last line: N passed, N failed, N skipped.
#
# Environment, all optional: FUZZ_SECONDS (for each target; default 10; 0: what is known and no
# more), FUZZ_SEED (default 1: the same inputs each time, as far as the time goes; 0: others each
# time, beside those found before), TEST (a pattern of targets), PYTHON_HOME (for programs that
# embed Python).
set -u

corpus=$(dirname "$(realpath "$0")")/corpus
seconds=${FUZZ_SECONDS:-10}
limit=-max_total_time=$seconds
[ "$seconds" -eq 0 ] && limit=-runs=0
# As in test/run.sh. Leaks are looked for in targets without Python, which keeps what it likes.
export ASAN_OPTIONS=use_sigaltstack=0
export UBSAN_OPTIONS=print_stacktrace=1
export PYTHONMALLOC=malloc
[ -n "${PYTHON_HOME:-}" ] && export PYTHONHOME=$PYTHON_HOME

passed=0 failed=0
failures=''

# stat NAME LOG: a figure that libFuzzer prints at its end.
stat() {
    sed -n "s/^stat::$1: *//p" "$2"
}

# run_target PROGRAM NAME MOST NEEDS_PYTHON: MOST bytes an input may have.
run_target() {
    local program=$1 name=$2 most=$3 leaks=$((1 - $4)) status coverage
    local work=$1.work/$2 log=$1.work/$2.log
    [ "${FUZZ_SEED:-1}" -eq 0 ] || rm -rf "$work"
    mkdir -p "$work" "$program.failures"
    FUZZ_TARGET=$name timeout -k 10 $((seconds + 120)) "$program" "$work" "$corpus/$name" \
        -seed="${FUZZ_SEED:-1}" "$limit" -max_len="$most" -timeout=20 \
        -detect_leaks="$leaks" -rss_limit_mb=2048 -print_final_stats=1 \
        -artifact_prefix="$program.failures/$name-" >"$log" 2>&1 </dev/null
    status=$?
    coverage=$(sed -n 's/^#[0-9]*[[:space:]].* cov: \([0-9]*\) .*/\1/p' "$log" | tail -n 1)
    printf '%-12s %9s executions, coverage %5s, %4s new inputs\n' "$name" \
        "$(stat number_of_executed_units "$log")" "${coverage:--}" "$(stat new_units_added "$log")"
    if [ "$status" -eq 0 ]; then
        passed=$((passed + 1))
        return
    fi
    failed=$((failed + 1))
    failures+="failed: $name (status $status)"$'\n'
    printf '\n----- %s\n' "$name"
    grep -v -E '^#[0-9]+|^INFO: ' "$log"
}

for program in "$@"; do
    targets=$(FUZZ_TARGET=list "$program") || exit 1
    while read -r name most needs_python; do
        # shellcheck disable=SC2053 # a pattern
        if [[ -z ${TEST:-} || $name == $TEST ]]; then
            run_target "$program" "$name" "$most" "$needs_python"
        fi
    done <<<"$targets"
done

echo
printf '%s' "$failures"
echo "$passed passed, $failed failed, 0 skipped"
[ "$failed" -eq 0 ] && [ "$passed" -gt 0 ]
