#!/bin/bash
# Looks for the Debian packages that the build, the tests or the linters need, and installs the
# missing ones: as root, or with a sudo that asks nothing. Where that cannot be, it prints the
# command to run and fails. Elsewhere than on Debian it does nothing: the compiler says what it
# misses, and the tests of programs that are not there are skipped.
#
# usage: [PYTHON=python3] setup.sh build|test|docs|doctest|bench|wheel|deb|valgrind|coverage|fuzz|lint|
#     newest|compile-arm64|compile-musl|arm64|musl|ci
set -u

python=${PYTHON:-python3}

has_headers() {
    "$python" -c 'import os, sys, sysconfig
sys.exit(not os.path.exists(sysconfig.get_path("include") + "/Python.h"))' 2>/dev/null
}

packages=(gcc libc6-dev make libedit-dev)
has_headers || packages+=(python3 python3-dev)
tests=(
    python3-dev pkg-config libcmocka-dev procps    # what the tests are made with
    socat netcat-openbsd rlwrap telnet             # clients
    tmux openssh-client openssh-server             # screens, and another machine
    python3-jsonschema
    python3-venv python3-pip mypy dpkg-dev lintian # installing
    python3-sphinx                                 # documents; it brings rst2html
    gunicorn python3-flask                         # servers
    uwsgi-core uwsgi-plugin-python3
    python3-gevent python3-eventlet python3-uvloop # other loops
)
fuzzers=(clang libclang-rt-dev) # libFuzzer is in the latter
linters=(clang clang-format clang-tidy cppcheck shellcheck)
newest=(mmdebstrap)
arm64=(gcc-aarch64-linux-gnu mmdebstrap)
musl=(musl-tools)
case ${1:-build} in
build) ;;
test) packages+=("${tests[@]}") ;;
docs) packages+=(python3-sphinx) ;;
doctest) packages+=(python3-venv) ;;
bench) packages+=(strace) ;;
wheel) packages+=(binutils) ;;
deb) packages+=(python3 python3-dev dpkg-dev) ;;
valgrind) packages+=("${tests[@]}" valgrind) ;;
coverage) packages+=("${tests[@]}" clang llvm) ;;
fuzz) packages+=("${fuzzers[@]}") ;;
lint) packages+=(libcmocka-dev "${linters[@]}") ;;
newest) packages+=("${newest[@]}") ;;
compile-arm64) packages+=("${arm64[@]}") ;;
compile-musl) packages+=("${musl[@]}") ;;
arm64) packages+=("${arm64[@]}" qemu-user-static) ;;
musl) packages+=("${musl[@]}" xz-utils) ;;
ci) packages+=("${tests[@]}" "${linters[@]}" "${fuzzers[@]}" "${newest[@]}" "${arm64[@]}" "${musl[@]}") ;;
*)
    sed -n 's/^# usage: /usage: /p; s/^#     /    /p' "$0" >&2
    exit 2
    ;;
esac

command -v apt-get >/dev/null && command -v dpkg-query >/dev/null || exit 0

missing=()
for package in "${packages[@]}"; do
    state=$(dpkg-query --show --showformat '${db:Status-Status}' "$package" 2>/dev/null)
    [ "$state" = installed ] || missing+=("$package")
done
[ ${#missing[@]} -gt 0 ] || exit 0

as_root=()
if [ "$(id -u)" -ne 0 ]; then
    as_root=(sudo -n)
fi
install=(apt-get install --yes --no-install-recommends "${missing[@]}")
if [ "$(id -u)" -eq 0 ] || sudo -n true 2>/dev/null; then
    echo "Installing: ${missing[*]}"
    export DEBIAN_FRONTEND=noninteractive
    "${as_root[@]}" apt-get update --quiet && "${as_root[@]}" "${install[@]}" && exit 0
fi
echo "Packages are missing. Install them with:" >&2
echo "    sudo ${install[*]}" >&2
exit 1
