"""The build backend of pyproject.toml (PEP 517), with nothing but the standard library.

A wheel holds what make install brings: the module and manhole.pth (from CPython 3.18 on
manhole.start) in site-packages, manhole-cli in bin. make builds them, so there is one description of the build, the Makefile.
"""

import base64
import hashlib
import os
import re
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
import zipfile

SOURCES = """manhole.c manhole.h manhole_cli.c src manhole.pth manhole.start manhole-cli.1 completion
    Makefile LICENSE README.rst CHANGELOG.rst CONTRIBUTING.rst docs pyproject.toml build_wheel.py
    test""".split()


def build_wheel(wheel_directory, config_settings=None, metadata_directory=None):
    name = "manhole-" + version()
    python_tag = "cp%d%d" % sys.version_info[:2]
    platform_tag = re.sub("[-.]", "_", sysconfig.get_platform())
    tag = f"{python_tag}-{python_tag}{sys.abiflags}-{platform_tag}"
    module = "manhole" + sysconfig.get_config_var("EXT_SUFFIX")
    startup = "manhole.pth" if sys.version_info < (3, 18) else "manhole.start"
    info = f"{name}.dist-info"
    share = f"{name}.data/data/share"
    with tempfile.TemporaryDirectory() as build:
        make = ["make", "all", "PYTHON=" + sys.executable, "BUILD_ROOT=" + build]
        subprocess.run(make, check=True)
        (folder,) = os.listdir(build)
        contents = {
            module: read(build, folder, module),
            startup: read(startup),
            f"{name}.data/scripts/manhole-cli": read(build, folder, "manhole-cli"),
            f"{share}/man/man1/manhole-cli.1": read("manhole-cli.1"),
            f"{share}/bash-completion/completions/manhole-cli": read(
                "completion", "manhole-cli.bash"
            ),
            f"{share}/zsh/site-functions/_manhole-cli": read("completion", "_manhole-cli"),
            f"{info}/LICENSE": read("LICENSE"),
            f"{info}/METADATA": metadata(),
            f"{info}/WHEEL": (
                "Wheel-Version: 1.0\nGenerator: build_wheel.py\nRoot-Is-Purelib: false\n"
                f"Tag: {tag}\n"
            ).encode(),
        }
    record = "".join(f"{path},{digest(data)},{len(data)}\n" for path, data in contents.items())
    contents[f"{info}/RECORD"] = f"{record}{info}/RECORD,,\n".encode()
    wheel = f"{name}-{tag}.whl"
    with zipfile.ZipFile(os.path.join(wheel_directory, wheel), "w") as archive:
        for path, data in contents.items():
            entry = zipfile.ZipInfo(path)
            entry.external_attr = (0o100755 if "/scripts/" in path else 0o100644) << 16
            archive.writestr(entry, data, zipfile.ZIP_DEFLATED)
    return wheel


def build_sdist(sdist_directory, config_settings=None):
    name = "manhole-" + version()
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
    return re.search(rb'#define MANHOLE_VERSION "(.+)"', read("manhole.h")).group(1).decode()


def metadata():
    return f"""\
Metadata-Version: 2.1
Name: manhole
Version: {version()}
Summary: A debugging socket for any CPython process, in one C file
License: BSD-2-Clause
Requires-Python: >=3.9
""".encode()


def read(*path):
    with open(os.path.join(*path), "rb") as file:
        return file.read()


def digest(data):
    hashed = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).decode()
    return "sha256=" + hashed.rstrip("=")
