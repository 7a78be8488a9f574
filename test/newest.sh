#!/bin/bash
# make test-all in a throw-away Debian sid, which has CPythons that the stable one has not. It lies in
# build/newest, is made anew when it is not there, and needs root, or a sudo that asks nothing. Where
# it cannot be made that is said, and counts as skipped.
# The last line: N passed, N failed, N skipped.
#
# Environment: BUILD_ROOT, CFLAGS, WERROR, TEST, JOBS, as make has them.
set -u

folder=$(realpath -m "${BUILD_ROOT:-build}")/newest
root=$folder/root
sources=$(dirname "$(dirname "$(realpath "$0")")")

skip() {
    echo "skipped: $1"
    echo "0 passed, 0 failed, 1 skipped"
    exit 0
}

packages=(
    gcc libc6-dev make libedit-dev python3-all-dev # the build
    pkg-config libcmocka-dev procps mount          # what the tests are made with
    socat netcat-openbsd rlwrap telnet             # clients
    tmux openssh-client openssh-server             # screens, and another machine
    python3-jsonschema
    python3-venv python3-pip mypy                  # installing
    python3-auditwheel
    gunicorn python3-flask                         # servers
    uwsgi-core uwsgi-plugin-python3
    python3-gevent python3-eventlet python3-uvloop python3-trio # other loops
)

as_root=()
if [ "$(id -u)" -ne 0 ]; then
    as_root=(sudo -n)
    sudo -n true 2>/dev/null || skip "no Debian sid without root"
fi

# No Release file of sid's is fresh for longer than a week.
make_root() {
    "${as_root[@]}" rm -rf "$root.part"
    mkdir -p "$folder" &&
        "${as_root[@]}" mmdebstrap --quiet --variant=apt --mode=root \
            --aptopt='Acquire::Check-Valid-Until "false"' \
            --include="$(IFS=,; echo "${packages[*]}")" sid "$root.part" &&
        "${as_root[@]}" mkdir "$root.part/sources" &&
        mv "$root.part" "$root"
}

if [ ! -d "$root" ]; then
    command -v mmdebstrap >/dev/null || skip "no mmdebstrap here"
    make_root || skip "mmdebstrap cannot make a Debian sid here"
fi

# A machine that was booted a moment ago, with small pids. Nothing stays mounted, and no process.
# As / and not by chroot, in which there are no user namespaces.
# shellcheck disable=SC2016 # the inner shell's
inside='
mount --bind "$1" "$1" && cd "$1" &&
    mount --bind "$2" sources && mount --rbind /dev dev && mount -t proc proc proc &&
    mount -t tmpfs -o mode=1777 tmp tmp && pivot_root . mnt && umount -l /mnt || exit 1
shift 2
exec chroot . "$@"'
# Not /proc/uptime, which counts on while a machine sleeps. mmdebstrap is Perl itself.
up=$(perl -MTime::HiRes=clock_gettime,CLOCK_MONOTONIC -e 'print int clock_gettime(CLOCK_MONOTONIC)')
exec "${as_root[@]}" unshare --mount --pid --time --monotonic "-$up" --boottime "-$up" \
    --fork --kill-child \
    bash -c "$inside" newest "$root" "$sources" \
    env -i HOME=/root PATH=/usr/sbin:/usr/bin:/sbin:/bin \
    make --no-print-directory -C /sources test-all NO_SETUP=1 BUILD_ROOT=/build \
    CFLAGS="${CFLAGS:--O2 -g}" WERROR="${WERROR:-}" TEST="${TEST:-}" JOBS="${JOBS:-$(nproc)}"
