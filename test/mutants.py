"""Whether the tests see what they are there to see: deliberate bugs, one at a time.

    make mutants

Each row changes one place of the sources in a copy of the tree, builds that, and runs the tests that
are to fail then; the same tests pass on the sources as they are. The last line sums up: N passed, N
failed, N skipped; a bug that no test catches has failed.
"""

import os
import shutil
import subprocess
import sys
import tempfile

# What goes wrong; the file; what stands there, and stands instead; the program, and its tests.
MUTANTS = [
    (
        "everybody may enter",
        "manhole.c",
        "    return peer->uid == 0 || peer->uid == geteuid();",
        "    return peer != NULL;",
        "e2e_log",
        "refused_client_is_told_in_the_log_alone",
    ),
    (
        "the socket stays at the end",
        "manhole.c",
        "            (void)unlink(door->name);\n        }\n        atomic_store(&door->bound",
        "        }\n        atomic_store(&door->bound",
        "e2e_exit",
        "exit_status_is_the_programs_and_the_socket_goes",
    ),
    (
        "whatever lies at the path is removed at the end",
        "manhole.c",
        "        if (lstat(door->name, &there) == 0 && there.st_dev == door->device &&\n"
        "            there.st_ino == door->inode) {",
        "        if (lstat(door->name, &there) == 0) {",
        "e2e_exit",
        "exit_leaves_a_path_that_is_somebody_elses_by_now",
    ),
    (
        "the socket's mode follows the umask",
        "manhole.c",
        "    if (fd < 0 || fchmod(fd, S_IRUSR | S_IWUSR) < 0) {",
        "    if (fd < 0) {",
        "unit_socket",
        "door_is_the_owner_s_alone_whatever_the_umask",
    ),
    (
        "a look leaks a reference to each code object",
        "manhole.c",
        "        Py_DECREF(look->frames[i].code);\n",
        "",
        "unit_dump",
        "*",
    ),
    (
        "the manhole's threads take signals",
        "manhole.c",
        "    (void)pthread_sigmask(SIG_BLOCK, &manhole.options.sigmask, &previous);",
        "    (void)pthread_sigmask(SIG_BLOCK, NULL, &previous);",
        "e2e_signals",
        "threads_of_the_manhole_take_no_signal",
    ),
    (
        "the activating signal cuts system calls short",
        "manhole.c",
        "    struct sigaction action = {.sa_handler = on_activate,\n"
        "                               .sa_flags = SA_RESTART | SA_ONSTACK};",
        "    struct sigaction action = {.sa_handler = on_activate, .sa_flags = SA_ONSTACK};",
        "e2e_signals",
        "signals_cut_no_read_short",
    ),
    (
        "the listener waits for a slow client",
        "manhole.c",
        "    error = send_copies(session, MSG_DONTWAIT);",
        "    error = send_copies(session, 0);",
        "e2e_sessions",
        "small_pieces_for_a_client_that_stopped_reading_keep_nobody_out",
    ),
    (
        "there is no limit to clients",
        "manhole.c",
        "    if (taken >= most_sessions(wish)) {",
        "    if (taken < 0 && most_sessions(wish) == 0) {",
        "e2e_sessions",
        "client_beyond_the_limit_is_told",
    ),
    (
        "a web page's lines are run",
        "manhole.c",
        "    if (is_http_request(telnet->text, telnet->length)) {",
        "    if (telnet->length == 0) {",
        "e2e_tcp",
        "browser_runs_nothing",
    ),
    (
        "the client trusts every server of the process asked for",
        "manhole_cli.c",
        "           (server->uid == 0 || server->uid == geteuid() || server->uid == *owner);",
        "           (server->uid != (uid_t)-1 || *owner == 0);",
        "e2e_cli",
        "user_is_not_taken_in_by_the_process_of_another",
    ),
    (
        "a vanished client's loop goes on",
        "manhole.c",
        "            session->gone_ms = monotonic_ms();\n",
        "            session->gone_ms = 0;\n",
        "e2e_sessions",
        "statement_of_a_client_that_vanished_is_interrupted",
    ),
]


def run(tree, program, pattern):
    """Returns the exit status of some tests of a tree, or None when it cannot be built."""
    build = ["make", "--silent", "-C", tree, "all", "importable"]
    where = subprocess.run(
        ["make", "--silent", "-C", tree, "where"], capture_output=True, text=True, check=True
    ).stdout.strip()
    made = subprocess.run(
        [*build, os.path.join(where, program)], capture_output=True, text=True
    )
    if made.returncode != 0:
        print(made.stderr)
        return None
    home = subprocess.run(
        ["make", "--silent", "-C", tree, "home"], capture_output=True, text=True, check=True
    ).stdout.strip()
    environment = dict(os.environ, MANHOLE_TEST_FILTER=pattern, LC_ALL="C.UTF-8")
    if program.startswith("unit_"):
        environment["PYTHONHOME"] = home
    try:
        return subprocess.run(
            [os.path.join(tree, where, program)],
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            timeout=120,
        ).returncode
    except subprocess.TimeoutExpired:
        return 124


def try_mutant(tree, mutant):
    """Returns what became of it, and whether that is well."""
    _, name, old, new, program, pattern = mutant
    path = os.path.join(tree, name)
    with open(path) as file:
        source = file.read()
    if source.count(old) != 1:
        return "its place is there %d times" % source.count(old), False
    try:
        with open(path, "w") as file:
            file.write(source.replace(old, new))
        status = run(tree, program, pattern)
    finally:
        with open(path, "w") as file:
            file.write(source)
    if status is None:
        return "it cannot be built", False
    return ("caught", True) if status != 0 else ("NOT CAUGHT", False)


def main():
    root = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    caught = 0
    sound = True
    os.environ["NO_SETUP"] = "yes"
    for variable in ("MAKEFLAGS", "MAKELEVEL", "BUILD_ROOT"):
        os.environ.pop(variable, None)
    with tempfile.TemporaryDirectory(prefix="manhole-mutants-") as folder:
        os.chmod(folder, 0o755)  # some tests are another user's, too
        tree = os.path.join(folder, "tree")
        shutil.copytree(root, tree, ignore=shutil.ignore_patterns("build", ".git"))
        for mutant in MUTANTS:
            if run(tree, *mutant[4:]) != 0:
                print("%s: fails without any bug: %s" % mutant[4:], flush=True)
                sound = False
        for mutant in MUTANTS if sound else ():
            text, well = try_mutant(tree, mutant)
            caught += well
            print("%-56s %s by %s: %s" % (mutant[0], text, mutant[4], mutant[5]), flush=True)
    print("%d passed, %d failed, 0 skipped" % (caught, len(MUTANTS) - caught))
    return 0 if caught == len(MUTANTS) else 1


if __name__ == "__main__":
    sys.exit(main())
