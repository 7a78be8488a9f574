"""python -m manhole PID: the client that was installed with the module.

make install and pip put this file beside the module, as manhole/__main__.py. All layouts, a virtual
environment's, --user's, --target's, Debian's, have the program in bin/ of a folder around that.
"""

import os
import pathlib
import sys

import manhole


def main():
    package = pathlib.Path(__file__).resolve().parent
    for folder in package.parents:
        client = folder / "bin" / "manhole-cli"
        if client.is_file():
            manhole._release()  # with PYTHONMANHOLE there is one here, whose socket would stay
            os.execv(client, ["manhole-cli", *sys.argv[1:]])
    sys.exit(f"python -m manhole: no bin/manhole-cli in a folder around {package}: install it again")


if __name__ == "__main__":
    main()
