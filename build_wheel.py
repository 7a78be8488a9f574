"""The build backend of pyproject.toml (PEP 517), with nothing but the standard library.

A wheel holds what make install brings, as that lays it out: so there is one description of the build
and of its files, the Makefile. It is called cmanhole, for PyPI's manhole is python-manhole, which
`pip install -U manhole` would put in its place; its version says which python-manhole it replaces.

    python build_wheel.py FOLDER [--alone]    ends with a message where python-manhole is in that folder,
                                              and warns where the path has it; --alone: only the former
"""

import base64
import hashlib
import importlib.metadata
import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
import zipfile

NAME = "cmanhole"
REPLACES = "1.8.1"  # of python-manhole: programs written for it work unchanged

SOURCES = """manhole.c manhole.h manhole_cli.c src manhole.pth manhole.start manhole.pyi
    manhole_main.py manhole-cli.1 completion Makefile LICENSE README.rst CHANGELOG.rst CONTRIBUTING.rst
    docs pyproject.toml build_wheel.py build_deb.sh test""".split()

# The part of the C library that any Linux has; who needs more is not for all of them (PEP 600).
GLIBC = {"libc.so.6", "libm.so.6", "libpthread.so.0", "libdl.so.2", "librt.so.1"}


def build_wheel(wheel_directory, config_settings=None, metadata_directory=None):
    """What pip calls: it shows nothing but what goes wrong, so python-manhole is an error."""
    refuse_python_manhole(sysconfig.get_path("platlib"))
    return make_wheel(wheel_directory)


def make_wheel(folder):
    compiler = os.environ.get("CC", "cc").split()[0]
    for tool, package in ("make", "make"), (compiler, "gcc"), ("objdump", "binutils"):
        if shutil.which(tool) is None:
            sys.exit(f"{tool} is missing; on Debian: apt-get install {package}")
    name = f"{NAME}-{version()}"
    python_tag = "cp%d%d" % sys.version_info[:2]
    libedit = static_libedit()
    with tempfile.TemporaryDirectory() as work:
        contents, platform_tag = install(work, f"{name}.data", libedit)
    tag = f"{python_tag}-{python_tag}{sys.abiflags}-{platform_tag}"
    info = f"{name}.dist-info"
    contents[f"{info}/METADATA"] = metadata()
    contents[f"{info}/WHEEL"] = (
        f"Wheel-Version: 1.0\nGenerator: build_wheel.py\nRoot-Is-Purelib: false\nTag: {tag}\n".encode()
    )
    contents[f"{info}/LICENSE"] = read("LICENSE")
    for library in ["edit", "ncurses", "bsd", "md"] if libedit else []:
        terms = f"/usr/share/doc/lib{library}-dev/copyright"
        if os.path.exists(terms):
            contents[f"{info}/LICENSE.lib{library}"] = read(terms)
    record = "".join(f"{path},{digest(data)},{len(data)}\n" for path, data in contents.items())
    contents[f"{info}/RECORD"] = f"{record}{info}/RECORD,,\n".encode()
    wheel = f"{name}-{tag}.whl"
    os.makedirs(folder, exist_ok=True)
    with zipfile.ZipFile(os.path.join(folder, wheel), "w") as archive:
        for path, data in contents.items():
            entry = zipfile.ZipInfo(path)
            entry.external_attr = (0o100755 if "/scripts/" in path else 0o100644) << 16
            archive.writestr(entry, data, zipfile.ZIP_DEFLATED)
    return wheel


def install(work, data, options):
    """The files by their names in the wheel, and the platform that they are for."""
    root = work + "/image/wheel"
    make = ["make", "install", "PYTHON=" + shlex.quote(sys.executable), f"DESTDIR={work}/image", "PREFIX=/wheel"]
    subprocess.run([*make, f"BUILD_ROOT={work}/build", *options], check=True)
    contents, programs = {}, []
    for folder, _, files in os.walk(root):
        for file in files:
            path = os.path.relpath(os.path.join(folder, file), root)
            name = re.sub("^lib.*?/(site|dist)-packages/", "", path)
            name = re.sub("^bin/", data + "/scripts/", name)
            name = re.sub("^share/", data + "/data/share/", name)
            contents[name] = read(folder, file)
            if contents[name].startswith(b"\x7fELF"):
                programs.append(os.path.join(folder, file))
    return dict(sorted(contents.items())), platform_of(programs)


def static_libedit():
    """What links libedit into the client, whose library not every Linux has; nothing where there is none."""
    libedit = "-Wl,-Bstatic -ledit -ltinfo -lbsd -lmd -Wl,-Bdynamic"
    program = b"#include <histedit.h>\nint main(void) { return el_init(0, 0, 0, 0) != 0; }"
    command = [os.environ.get("CC", "cc"), "-x", "c", "-", "-o", os.devnull, *libedit.split()]
    tried = subprocess.run(command, input=program, stderr=subprocess.DEVNULL)
    return [] if tried.returncode else ["LIBEDIT=" + libedit]


def platform_of(programs):
    """manylinux_2_N or musllinux_1_N, by the newest version of the C library that one of them needs, as
    auditwheel has it; linux where they need other libraries."""
    facts = "".join(subprocess.check_output(["objdump", "-p", path], text=True) for path in programs)
    here = re.sub("[-.]", "_", sysconfig.get_platform())
    needed = {name for name in re.findall(r"NEEDED +(\S+)", facts) if not name.startswith("ld-")}
    if needed <= GLIBC:
        minor = max(map(int, re.findall(r" GLIBC_2\.(\d+)", facts)))
        return re.sub("^linux", f"manylinux_2_{minor}", here)
    if all(name.startswith("libc.") for name in needed):
        return re.sub("^linux", f"musllinux_{musl_version()}", here)
    return here


def musl_version():
    """Its programs do not tell which they need; so it is the one here, which says so on standard error."""
    (loader,) = [name for name in os.listdir("/lib") if name.startswith("ld-musl-")]
    told = subprocess.run(["/lib/" + loader], stderr=subprocess.PIPE, text=True).stderr
    return "_".join(re.search(r"Version (\d+)\.(\d+)", told).groups())


def refuse_python_manhole(folder):
    """It has files of the same names in there, and its uninstallation takes them along."""
    for other in importlib.metadata.distributions(name="manhole", path=[folder]):
        sys.exit(
            f"\nmanhole {other.version} is installed in {folder}: python-manhole, or this program before "
            f"it was called {NAME}. Take it away first, then install this again:\n"
            f"    {sys.executable} -m pip uninstall manhole\n"
        )


def warn_of_python_manhole(path):
    """Whoever comes first on the path is imported."""
    for other in importlib.metadata.distributions(name="manhole", path=path):
        print(
            f"warning: manhole {other.version} is installed in {other.locate_file('')}, too, and may be the "
            f"one that is imported. To take it away:\n    {sys.executable} -m pip uninstall manhole",
            file=sys.stderr,
        )


def build_sdist(sdist_directory, config_settings=None):
    name = f"{NAME}-{version()}"
    sdist = name + ".tar.gz"
    with tempfile.NamedTemporaryFile() as info:
        info.write(metadata())
        info.flush()
        with tarfile.open(os.path.join(sdist_directory, sdist), "w:gz") as archive:
            for source in filter(os.path.exists, SOURCES):
                archive.add(source, f"{name}/{source}")
            archive.add(info.name, f"{name}/PKG-INFO")
    return sdist


def version():
    """Of the header, and behind it what pip takes for the builder's own part: 1.1.0+manhole1.8.1."""
    own = re.search(rb'#define MANHOLE_VERSION "(.+)"', read("manhole.h")).group(1).decode()
    return f"{own}+manhole{REPLACES}"


def metadata():
    return f"""\
Metadata-Version: 2.1
Name: {NAME}
Version: {version()}
Summary: A debugging socket for any CPython process; replaces python-manhole {REPLACES}
License: BSD-2-Clause
Requires-Python: >=3.9
Provides-Dist: manhole ({REPLACES})
Obsoletes-Dist: manhole
""".encode()


def read(*path):
    with open(os.path.join(*path), "rb") as file:
        return file.read()


def digest(data):
    hashed = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).decode()
    return "sha256=" + hashed.rstrip("=")


if __name__ == "__main__":
    refuse_python_manhole(sys.argv[1])
    if "--alone" not in sys.argv:
        warn_of_python_manhole(sys.path)
