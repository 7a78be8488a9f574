#!/bin/bash
# make deb: a Debian package, python3-cmanhole, of what make install brings, for Debian's python3. Its
# name is not python3-manhole for the reason that pip's is not manhole, see build_wheel.py; it stands
# for that package, and takes its place.
#
# Environment: PYTHON, MAKE, BUILD_ROOT, CFLAGS; DEBFULLNAME and DEBEMAIL, whom it names as its
# maintainer, else nobody.
set -eu
umask 022

for tool in dpkg-deb dpkg-shlibdeps strip gzip; do
    command -v "$tool" >/dev/null || {
        echo "$tool is missing; on Debian: apt-get install dpkg-dev binutils gzip" >&2
        exit 1
    }
done
[ -n "$PYTHON" ] || {
    echo "Debian's python3 is missing: apt-get install python3-dev" >&2
    exit 1
}

name=python3-cmanhole
version=$(sed -n 's/^#define MANHOLE_VERSION "\(.*\)"/\1-1/p' manhole.h)
replaced=$("$PYTHON" -c 'import build_wheel; print(build_wheel.REPLACES)')
architecture=$(dpkg --print-architecture)
maintainer="${DEBFULLNAME:-The manhole authors} <${DEBEMAIL:-nobody@manhole.invalid}>"
package=$BUILD_ROOT/${name}_${version}_$architecture.deb
work=$(realpath -m "$BUILD_ROOT/deb")
root=$work/root
documents=$root/usr/share/doc/$name

rm -rf "$root" "$work/debian"
"${MAKE:-make}" --no-print-directory install PYTHON="$PYTHON" PREFIX=/usr DESTDIR="$root" \
    BUILD_ROOT="$work/build" CFLAGS="$CFLAGS" CPPFLAGS="$(dpkg-buildflags --get CPPFLAGS)" \
    LDFLAGS="$(dpkg-buildflags --get LDFLAGS) -Wl,-z,now"
mapfile -t programs < <(find "$root/usr" -name '*.so' -o -path "$root/usr/bin/*")
strip --remove-section=.comment --remove-section=.note "${programs[@]}"
mkdir -p "$root/usr/share/zsh/vendor-completions" "$documents" "$root/DEBIAN"
mv "$root"/usr/share/zsh/site-functions/* "$root/usr/share/zsh/vendor-completions"
rmdir "$root/usr/share/zsh/site-functions"
cp README.rst docs/*.rst "$documents"
cp CHANGELOG.rst "$documents/changelog"
cat >"$documents/changelog.Debian" <<END
$name ($version) unstable; urgency=medium

  * What make deb built of these sources; changelog.gz tells what is new.

 -- $maintainer  $(date --rfc-email --date="@${SOURCE_DATE_EPOCH:-$(date +%s)}")
END
{
    echo 'Format: https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/'
    printf '\nFiles: *\n'
    sed -n 's/^Copyright (c)/Copyright:/p' LICENSE
    printf 'License: BSD-2-clause\n'
    sed -e '1,/^Copyright/d' -e '/./!s/^/./' -e 's/^/ /' LICENSE | sed '1d'
} >"$documents/copyright"
gzip -9n "$documents"/changelog* "$root/usr/share/man/man1/manhole-cli.1"

mkdir -p "$work/debian"
printf 'Source: %s\n\nPackage: %s\nArchitecture: any\n' "$name" "$name" >"$work/debian/control"
libraries=$(cd "$work" && dpkg-shlibdeps -O "${programs[@]}" | sed 's/^shlibs:Depends=//')
minor=$("$PYTHON" -c 'import sys; print(sys.version_info.minor)')
cat >"$root/DEBIAN/control" <<END
Package: $name
Version: $version
Section: python
Priority: optional
Architecture: $architecture
Maintainer: $maintainer
Installed-Size: $(du -k -s --exclude=DEBIAN "$root" | cut -f 1)
Depends: python3 (>= 3.$minor~), python3 (<< 3.$((minor + 1))), $libraries
Provides: python3-manhole (= $replaced)
Conflicts: python3-manhole
Replaces: python3-manhole
Description: debugging socket for any CPython process
 Connect to a running Python process, and see the stack of every thread, also
 while Python is stuck; then have a Python prompt inside the living process.
 .
 This package has the module "manhole", for which programs written for
 python-manhole $replaced work unchanged, and its client, manhole-cli.
END

# What python3 -m manhole compiles is to go with the package.
cat >"$root/DEBIAN/postinst" <<END
#!/bin/sh
set -e
if [ "\$1" = configure ] && command -v py3compile >/dev/null 2>&1; then
    py3compile -p $name
fi
END
cat >"$root/DEBIAN/prerm" <<END
#!/bin/sh
set -e
if command -v py3clean >/dev/null 2>&1; then
    py3clean -p $name
fi
END
chmod 755 "$root/DEBIAN/postinst" "$root/DEBIAN/prerm"
(cd "$root" && find usr -type f -print0 | sort -z | xargs -0 md5sum >DEBIAN/md5sums)

dpkg-deb --root-owner-group --build "$root" "$package" >/dev/null
echo "$package"
