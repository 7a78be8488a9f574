#!/bin/bash
# The module and the client for another machine or C library than this one's: compiled without a
# warning, and with "test" tried by test/smoke.sh. Where that cannot be, it is said, and counts as
# skipped. The last line: N passed, N failed, N skipped.
#   arm64   with gcc-aarch64-linux-gnu and Debian's Python for arm64, unpacked by mmdebstrap; tried
#           under qemu-user-static, as root.
#   musl    with musl-gcc, the client statically, and the headers of PYTHON; tried with a CPython
#           that is built from Debian's source package with musl-gcc.
#
# usage: foreign.sh arm64|musl compile|test
# Environment: BUILD_ROOT, CFLAGS, VERSION, PYTHON_INCLUDE (all from the Makefile).
set -u

target=$1
sources=$(dirname "$(dirname "$(realpath "$0")")")
folder=$(realpath -m "${BUILD_ROOT:-build}/$target")
mkdir -p "$folder" || exit 1
read -ra flags <<<"${CFLAGS:-}"

end() { # PASSED FAILED SKIPPED [WHY]
    [ -z "${4:-}" ] || echo "$4"
    echo "$1 passed, $2 failed, $3 skipped"
    exit "$2"
}

need() {
    command -v "$1" >/dev/null || end 0 0 1 "skipped: there is no $1 here"
}

as_root=()
need_root() {
    [ "$(id -u)" -eq 0 ] && return
    as_root=(sudo -n)
    sudo -n true 2>/dev/null || end 0 0 1 "skipped: $target needs root"
}

# compile CC INCLUDE: the module and the client into $folder.
compile() {
    "$1" "${flags[@]}" -Werror -fPIC -fvisibility=hidden -fno-canonical-system-headers \
        -isystem "$2" -shared -o "$folder/manhole.so" "$sources/manhole.c" -lm ||
        end 0 1 0 "the module does not compile for $target"
    "$1" "${flags[@]}" -Werror -DMANHOLE_VERSION="$VERSION" "${static[@]}" \
        -o "$folder/manhole-cli" "$sources/manhole_cli.c" ||
        end 0 1 0 "the client does not compile for $target"
}

# The compiler $folder/cc: a shell's script, from standard input.
make_compiler() {
    cat >"$folder/cc" && chmod +x "$folder/cc"
}

make_arm64_root() {
    need mmdebstrap
    need_root
    # Unpacked, for this machine cannot run what would install it.
    "${as_root[@]}" rm -rf "$1" "$1.part"
    "${as_root[@]}" mmdebstrap --quiet --mode=root --variant=extract --architectures=arm64 \
        --include=python3,libpython3-dev,libc6-dev,libcmocka-dev bookworm "$1.part" &&
        "${as_root[@]}" mkdir -p "$1.part/proc" && "${as_root[@]}" mv "$1.part" "$1"
}

arm64() {
    local root=$folder/root
    static=()
    need aarch64-linux-gnu-gcc
    if [ ! -e "$root/usr/include/cmocka.h" ]; then
        make_arm64_root "$root" || end 0 0 1 "skipped: no Debian for arm64 can be had here"
    fi
    make_compiler <<<"#!/bin/sh
exec aarch64-linux-gnu-gcc --sysroot='$root' \"\$@\""
    compile "$folder/cc" "$(echo "$root"/usr/include/python3.*)"
    "$folder/cc" "${flags[@]}" -Werror -D_GNU_SOURCE -o "$folder/unit_attach" \
        "$sources/test/unit_attach.c" -lcmocka ||
        end 0 1 0 "the test of --attach does not compile for $target"
    [ "$1" = test ] || return
    need qemu-aarch64-static
    need_root
    "${as_root[@]}" install -D -t "$root/smoke" "$folder/manhole.so" "$folder/manhole-cli" \
        "$folder/unit_attach" "$(command -v qemu-aarch64-static)"
    # shellcheck disable=SC2016 # the inner shell's
    exec "${as_root[@]}" unshare --mount --pid --fork --kill-child bash -c \
        'mount -t proc proc "$1/proc" && exec "$2" "$1/smoke" /smoke /usr/bin/python3 \
            chroot "$1" /smoke/qemu-aarch64-static' \
        smoke "$root" "$sources/test/smoke.sh"
}

# The orig.tar of this Debian's Python, built with the compiler $folder/cc.
build_musl_python() {
    local apt=(apt-get --quiet -o Dir::Etc::SourceList="$folder/sources.list"
        -o Dir::Etc::SourceParts=- -o Dir::State::Lists="$folder/lists"
        -o APT::Sandbox::User= -o Debug::NoLocking=true)
    local name uri
    name=$(apt-cache depends python3 | sed -n 's/^ *Depends: \(python3\.[0-9]*\)$/\1/p' | head -n 1)
    # shellcheck disable=SC2016 # apt's
    uri=$(apt-get indextargets --format '$(REPO_URI)' 'Identifier: Packages' | head -n 1)
    mkdir -p "$folder/lists/partial" "$folder/source"
    (
        # shellcheck source=/dev/null
        . /etc/os-release
        echo "deb-src $uri $VERSION_CODENAME main"
    ) >"$folder/sources.list"
    cd "$folder/source" &&
        "${apt[@]}" update && "${apt[@]}" source --download-only "$name" &&
        tar --strip-components=1 -xf "$name"_*.orig.tar.* &&
        PKG_CONFIG_LIBDIR=/ ./configure --quiet CC="$folder/cc" --prefix="$folder/python.part" --without-ensurepip \
            --disable-test-modules &&
        make --silent -j"$(nproc)" && make --silent install &&
        mv "$folder/python.part" "$folder/python"
}

musl() {
    local multiarch
    static=(-static)
    need musl-gcc
    multiarch=$(gcc -print-multiarch)
    mkdir -p "$folder/include/$multiarch"
    ln -sfn /usr/include/linux /usr/include/asm-generic "/usr/include/$multiarch/asm" "$folder/include"
    for headers in "/usr/include/$multiarch"/python3*; do # of a Python of Debian's
        [ ! -d "$headers" ] || ln -sfn "$headers" "$folder/include/$multiarch"
    done
    # Not what gcc says of itself, which CPython's configure would ask for.
    make_compiler <<<"#!/bin/sh
case \$* in
*-print-multiarch*) echo $(uname -m)-linux-musl ;;
*) exec musl-gcc -idirafter '$folder/include' \"\$@\" ;;
esac"
    if [ "$1" = compile ]; then
        compile "$folder/cc" "$PYTHON_INCLUDE"
        return
    fi
    [ -d "$folder/python" ] || build_musl_python >"$folder/python.log" 2>&1 ||
        end 0 0 1 "skipped: CPython cannot be built here, see $folder/python.log"
    compile "$folder/cc" "$(echo "$folder"/python/include/python3.*)"
    exec "$sources/test/smoke.sh" "$folder" "$folder" "$folder/python/bin/python3"
}

case $target in
arm64) arm64 "$2" ;;
musl) musl "$2" ;;
esac
end 1 0 0
