#!/bin/bash
# make test with every CPython from 3.9 that this machine has: those in PATH, in pyenv's folder and
# in /usr/bin, each once. One line a Python as it ends, the output of those that failed, and in the
# end the sum of all: N passed, N failed, N skipped.
#
# Environment: MAKE; DEBIAN_PYTHON (the only one that runs test/system_*.c); EXCEPT (a Python that
# has run all of make test already: it is left out, and so are test/system_*.c); all else as make
# test.
set -u
shopt -s nullglob

make=${MAKE:-make}
debian_python=$(realpath "${DEBIAN_PYTHON:-/usr/bin/python3}")
logs=${BUILD_ROOT:-build}/test-all
mkdir -p "$logs" || exit 1

candidates=()
IFS=: read -ra folders <<<"$PATH"
for folder in "${folders[@]}" /usr/local/bin /usr/bin; do
    candidates+=("$folder"/python3 "$folder"/python3.[0-9] "$folder"/python3.[0-9]*[0-9t])
done
pyenv_root=${PYENV_ROOT:-$(pyenv root 2>/dev/null)}
candidates+=("${pyenv_root:-$HOME/.pyenv}"/versions/*/bin/python3)

# Prints "VERSION REALPATH", and fails for what is not a CPython that can be built for.
describe='
import os, platform, sys, sysconfig
assert sys.implementation.name == "cpython" and sys.version_info >= (3, 9)
assert os.path.exists(sysconfig.get_path("include") + "/Python.h")
print(platform.python_version() + sys.abiflags, os.path.realpath(sys.executable))'

found=$(for python in "${candidates[@]}"; do
    "$python" -c "$describe" 2>/dev/null
done | sort -u -V)
if [ -z "$found" ]; then
    echo "no CPython from 3.9 with its headers here" >&2
    exit 1
fi
except=''
if [ -n "${EXCEPT:-}" ]; then
    except=$("$EXCEPT" -c "$describe") || exit 1
fi

passed=0 failed=0 skipped=0
table=''
while read -r version python; do
    if [ "$version $python" = "$except" ]; then
        printf '%-9s %-40s %s\n' "$version" 'left out: EXCEPT' "$python"
        continue
    fi
    log=$logs/$version.log
    options=(PYTHON="$python" NO_SETUP=1)
    [ "$python" = "$debian_python" ] && [ -z "$except" ] || options+=(NO_SYSTEM_TESTS=1)
    SECONDS=0
    "$make" --no-print-directory test "${options[@]}" >"$log" 2>&1 </dev/null
    status=$?
    closing=$(grep -E '^[0-9]+ passed, [0-9]+ failed, [0-9]+ skipped$' "$log" | tail -n 1)
    if [[ $closing =~ ([0-9]+)[^0-9]+([0-9]+)[^0-9]+([0-9]+) ]]; then
        passed=$((passed + BASH_REMATCH[1]))
        failed=$((failed + BASH_REMATCH[2]))
        skipped=$((skipped + BASH_REMATCH[3]))
    else
        closing="did not come to its end (status $status)"
        failed=$((failed + 1))
        status=1
    fi
    [ $status -eq 0 ] || cat "$log"
    line=$(printf '%-9s %-40s %4d s  %s' "$version" "$closing" "$SECONDS" "$python")
    echo "$line"
    table+=$line$'\n'
done <<<"$found"

[ "$failed" -eq 0 ] || printf '\n%s' "$table" # the logs above are long
echo
echo "$passed passed, $failed failed, $skipped skipped"
[ "$failed" -eq 0 ]
