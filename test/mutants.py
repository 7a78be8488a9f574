"""Whether the tests see what they are there to see: deliberate bugs, one at a time.

    make mutants [TEST='*a vanished client*']

Each row changes one place of the sources in a copy of the tree, builds that, and runs the tests that
are to fail then; the same tests pass on the sources as they are. The last line sums up: N passed, N
failed, N skipped; a bug that no test catches has failed.
"""

import fnmatch
import os
import shutil
import subprocess
import sys
import tempfile

# What goes wrong; the file; what stands there, and stands instead; the program, and its tests.
MUTANTS = [
    (
        "everybody may enter",
        "src/door/socket.c",
        "    return peer->uid == 0 || peer->uid == geteuid();",
        "    return peer != NULL;",
        "e2e_log",
        "refused_client_is_told_in_the_log_alone",
    ),
    (
        "the socket stays at the end",
        "src/base/handlers.c",
        "            atomic_store(&door->left_for, unlink(door->name) < 0 ? errno : 0);\n"
        "        }\n        atomic_store(&door->bound",
        "        }\n        atomic_store(&door->bound",
        "e2e_exit",
        "exit_status_is_the_programs_and_the_socket_goes",
    ),
    (
        "whatever lies at the path is removed at the end",
        "src/base/handlers.c",
        "        if (lstat(door->name, &there) == 0 && there.st_dev == door->device &&\n"
        "            there.st_ino == door->inode) {",
        "        if (lstat(door->name, &there) == 0) {",
        "e2e_exit",
        "exit_leaves_a_path_that_is_somebody_elses_by_now",
    ),
    (
        "the socket's mode follows the umask",
        "src/door/socket.c",
        "    if (fd < 0 || fchmod(fd, S_IRUSR | S_IWUSR) < 0) {",
        "    if (fd < 0) {",
        "unit_socket",
        "door_is_the_owner_s_alone_whatever_the_umask",
    ),
    (
        "a look leaks a reference to each code object",
        "src/stacks/model.c",
        "        Py_XDECREF(stacks->positions[i].key.code);\n",
        "",
        "unit_dump",
        "*",
    ),
    (
        "the manhole's threads take signals",
        "src/base/basics.c",
        "    (void)pthread_sigmask(SIG_BLOCK, &manhole.options.sigmask, &previous);",
        "    (void)pthread_sigmask(SIG_BLOCK, NULL, &previous);",
        "e2e_signals",
        "threads_of_the_manhole_take_no_signal",
    ),
    (
        "the activating signal cuts system calls short",
        "src/server/activation.c",
        "    struct sigaction action = {.sa_handler = on_activate,\n"
        "                               .sa_flags = SA_RESTART | SA_ONSTACK};",
        "    struct sigaction action = {.sa_handler = on_activate, .sa_flags = SA_ONSTACK};",
        "e2e_signals",
        "signals_cut_no_read_short",
    ),
    (
        "the listener waits for a slow client",
        "src/session/output.c",
        "    int error = send_waiting(session, MSG_DONTWAIT);",
        "    int error = send_waiting(session, 0);",
        "e2e_sessions",
        "client_that_reads_nothing_of_what_the_application_prints_keeps_nobody_out",
    ),
    (
        "a log line for an object waits until the listener wakes by itself",
        "src/base/log.c",
        "    if (target == LOG_OBJECT && atomic_load(&manhole.started)) {",
        "    if (target == LOG_OBJECT && length == 0) {",
        "e2e_log",
        "object_gets_the_line_of_a_session_that_runs_on",
    ),
    (
        "a program's arguments are the application's, too",
        "src/session/programs.c",
        "    if (session == NULL || session->run.arguments == NULL) {",
        "    if (session == NULL || value == NULL) {",
        "e2e_noninteractive",
        "application_has_its_own_arguments_while_a_program_runs",
    ),
    (
        "there is no limit to clients",
        "src/session/session.c",
        "    if (taken >= most_sessions(channel)) {",
        "    if (taken < 0 && most_sessions(channel) == 0) {",
        "e2e_sessions",
        "client_beyond_the_limit_is_told",
    ),
    (
        "a web page's lines are run",
        "src/session/telnet.c",
        "    if (is_http_request(telnet->text, telnet->length)) {",
        "    if (telnet->length == 0) {",
        "e2e_tcp",
        "browser_runs_nothing",
    ),
    (
        "the client trusts every server of the process asked for",
        "src/cli/connection.c",
        "            server.uid == find_owner(target));",
        "            server.uid != find_owner(target));",
        "e2e_cli",
        "user_is_not_taken_in_by_the_process_of_another",
    ),
    (
        "a vanished client's loop goes on",
        "src/server/listener.c",
        " && is_gone(session)) {\n        session->gone_ms",
        " && session->gone_ms < 0) {\n        session->gone_ms",
        "e2e_sessions",
        "statement_of_a_client_that_vanished_is_interrupted",
    ),
    (
        "a vanished client keeps the listener busy",
        "src/server/listener.c",
        "        session->gone_ms = monotonic_ms();\n",
        "        session->gone_ms = 0;\n",
        "e2e_sessions",
        "interrupting_a_statement_that_cannot_be_keeps_no_processor_busy",
    ),
    (
        "a child takes its parent's path for its own",
        "src/door/socket.c",
        "        atomic_store(&manhole.doors[i].bound, false);\n"
        "        close_kept(&manhole.doors[i].listen_fd);\n",
        "        close_kept(&manhole.doors[i].listen_fd);\n",
        "e2e_fork",
        "child_that_ends_before_it_has_a_socket_leaves_the_parents_alone",
    ),
    (
        "a child keeps its parent's listening socket",
        "src/door/socket.c",
        "        close_kept(&manhole.doors[i].listen_fd);\n"
        "        keep_fd(&manhole.doors[i].given_fd, -1);\n",
        "        keep_fd(&manhole.doors[i].given_fd, -1);\n",
        "e2e_fork",
        "socket_of_a_killed_parent_refuses_though_its_child_lives",
    ),
    (
        "a child keeps its parent's clients",
        "src/session/session.c",
        "    atomic_store(&session->viewing, false);\n    close_kept(&session->fd);\n",
        "    atomic_store(&session->viewing, false);\n",
        "e2e_fork",
        "client_sees_the_end_of_a_killed_parent_though_its_child_lives",
    ),
    (
        "a program that is started inherits the clients",
        "src/door/socket.c",
        "    int fd = accept4(listen_fd, &address->any, size, SOCK_CLOEXEC);",
        "    int fd = accept4(listen_fd, &address->any, size, 0);",
        "e2e_fork",
        "program_that_is_started_inherits_no_descriptor",
    ),
    (
        "a client that is turned away stays connected",
        "src/server/listener.c",
        "    (void)close(fd);\n    log_line(\"Turned a client away: %s\", why);",
        "    log_line(\"Turned a client away: %s\", why);",
        "e2e_sessions",
        "client_beyond_the_limit_is_told",
    ),
    (
        "the streams stay ours after the last client",
        "src/session/borrowed.c",
        "    manhole.consoles--;\n    if (manhole.consoles == 0) {",
        "    manhole.consoles--;\n    if (manhole.consoles < 0) {",
        "e2e_console",
        "streams_are_the_app_s_again_after_the_last_client",
    ),
    (
        "a session's thread ends with the GIL",
        "src/session/attach.c",
        "    PyThreadState_Clear(tstate);\n    PyThreadState_DeleteCurrent();\n",
        "    PyThreadState_Clear(tstate);\n",
        "e2e_sessions",
        "place_of_a_client_that_left_is_free_again",
    ),
    (
        "a session leaves its thread state behind",
        "src/session/attach.c",
        "    PyThreadState_Clear(tstate);\n    PyThreadState_DeleteCurrent();\n",
        "    (void)tstate;\n    (void)PyEval_SaveThread();\n",
        "e2e_sessions",
        "session_leaves_no_thread_state",
    ),
    (
        "hang_timeout is always a second",
        "src/server/listener.c",
        "    int64_t patience_ms = seconds_to_ms(manhole.options.hang_timeout);",
        "    int64_t patience_ms = 1000;",
        "e2e_hang",
        "stacks_do_not_come_before_hang_timeout",
    ),
    (
        "the frozen copy is not reaped",
        "src/stacks/copy.c",
        "    reap_copy((pid_t)copy, raw, memory_fd < 0 ? pipe_end : memory_fd);\n",
        "    (void)poll(NULL, 0, 500);\n"
        "    (void)append_news(raw, memory_fd < 0 ? pipe_end : memory_fd, 0);\n",
        "e2e_hang",
        "application_sees_no_child_and_no_fork",
    ),
    (
        "an interrupt is for any client, whoever asks",
        "src/server/listener.c",
        "        bool meant = session->hang.watched && strcmp(session->card, card->id) == 0;",
        "        bool meant = session->hang.watched && card->id[0] != '\\0';",
        "e2e_sessions",
        "interrupt_reaches_the_client_that_asked",
    ),
    (
        "signals that the application ignores end it",
        "src/door/socket.c",
        "    return (action->sa_flags & SA_SIGINFO) == 0 && action->sa_handler == SIG_DFL;",
        "    return (action->sa_flags & SA_SIGINFO) == 0 && action->sa_handler != on_death;",
        "e2e_exit",
        "ignored_signal_stays_ignored",
    ),
    (
        "the dead socket of another user is removed",
        "src/door/socket.c",
        "    if (there.st_uid != geteuid()) {",
        "    if (there.st_uid == (uid_t)-1) {",
        "unit_socket",
        "*",
    ),
    (
        "a calling card's id fills its field to the last byte",
        "src/server/listener.c",
        "        (size_t)(slash - name) - sizeof(prefix) + 1 < sizeof(card.id) &&",
        "        (size_t)(slash - name) - sizeof(prefix) + 1 <= sizeof(card.id) &&",
        "fuzz_server",
        "card",
    ),
    (
        "a byte that is no UTF-8 goes into JSON as it is",
        "src/stacks/json.c",
        "            append_string(text, \"\\\\ufffd\");\n            size = 1;",
        "            append_bytes(text, string.bytes, 1);\n            size = 1;",
        "fuzz_server",
        "json",
    ),
    (
        "the client believes how long a status is",
        "src/cli/run.c",
        "        if (answer->kind == 'x' && count < answer->left) {",
        "        if (answer->kind == 'x' && count == 0) {",
        "fuzz_client",
        "frames",
    ),
    (
        "a signal goes to who does not catch it",
        "src/cli/connection.c",
        "    if ((strtoull(bits.text, NULL, 16) >> (number - 1) & 1) == 0) {",
        "    if (bits.text[0] == '\\0') {",
        "e2e_ways",
        "no_kind_of_process_is_sent_what_would_end_it",
    ),
    (
        "a signal goes to a manhole that does not wait for it",
        "src/cli/connection.c",
        "    if (advert.is_there && !is_awaited) {",
        "    if (advert.is_there && !is_awaited && number == 0) {",
        "e2e_ways",
        "no_kind_of_process_is_sent_what_would_end_it",
    ),
    (
        "a child catches what ends it",
        "src/door/socket.c",
        "    (void)pthread_once(&once, unwatch_in_children);\n",
        "    (void)once; (void)unwatch_in_children;\n",
        "e2e_ways",
        "no_kind_of_process_is_sent_what_would_end_it",
    ),
    (
        "a history that others may read stays so",
        "src/cli/history.c",
        "        (void)fchmod(fd, 0600);\n",
        "",
        "e2e_cli",
        "history_that_others_could_read_is_closed_to_them",
    ),
    (
        "the application's names are not found",
        "src/session/names.c",
        "        found = main == NULL || !PyModule_Check(main)\n",
        "        found = main != NULL || !PyModule_Check(main)\n",
        "e2e_console",
        "names_of_main_are_found_and_never_written",
    ),
    (
        "a name with an annotation is the application's too",
        "src/session/names.c",
        '    return text == NULL || strncmp(text, "__", 2) == 0;',
        "    return text == NULL;",
        "e2e_console",
        "names_of_main_are_found_and_never_written",
    ),
    (
        "arguments are not completed",
        "src/session/channels.c",
        '    "    found = arguments_in(names, text, start)\\n"\n',
        '    "    found = []\\n"\n',
        "e2e_channels",
        "lines_are_completed_by_what_may_stand_there",
    ),
    (
        "every colour goes to the terminal",
        "src/cli/terminal.c",
        "        bool is_known = code <= 1 || code == 31 || code == 35 || code == 36;",
        "        bool is_known = code < 108;",
        "e2e_terminal",
        "colours_of_tracebacks_alone_are_let_through",
    ),
    (
        "--no-color does nothing",
        "src/cli/main.c",
        "terminal.has_colours && !is_given(&request, OPTION_NO_COLOR);",
        "terminal.has_colours;",
        "e2e_terminal",
        "no_color_is_honoured",
    ),
    (
        "long values are not laid out",
        "src/session/shown.c",
        "    if (text == NULL || columns == 0 ||",
        "    if (text == NULL || columns != 0 ||",
        "e2e_terminal",
        "value_longer_than_a_line_is_laid_out",
    ),
    (
        "obj? is Python",
        "src/session/asked.c",
        "    if (!session->channel->marked ||",
        "    if (session->channel->marked ||",
        "e2e_terminal",
        "object_is_told_about_when_asked_for",
    ),
    (
        "Ctrl-C leaves behind what is awaited",
        "src/session/awaited.c",
        "            loop.call_soon_threadsafe(errand.cancel)",
        "            pass",
        "e2e_terminal",
        "await_runs_in_the_loop_of_the_process",
    ),
    (
        "exit() in what is awaited ends the loop",
        "src/session/awaited.c",
        "except (KeyboardInterrupt, SystemExit) as error:",
        "except KeyboardInterrupt as error:",
        "e2e_terminal",
        "await_leaves_the_loop_running",
    ),
    (
        "of several loops the first is taken",
        "src/session/awaited.c",
        "    if len(loops) == 1 or kept:",
        "    if loops or kept:",
        "e2e_terminal",
        "await_asks_in_which_of_several_loops",
    ),
    (
        "a statement can forge a line of the log",
        "src/session/serve.c",
        'PyUnicode_FromFormat("%R%s", first,',
        'PyUnicode_FromFormat("%U%s", first,',
        "e2e_log",
        "what_is_run_is_told_with_who_runs_it",
    ),
    (
        "audit=False does nothing",
        "src/session/serve.c",
        "    if (!manhole.options.audit || target_line",
        "    if (target_line",
        "e2e_log",
        "audit_False_tells_nothing_of_what_is_run",
    ),
]


def make(tree, *what):
    """Returns how make ended, with all that it said."""
    command = ["make", "--silent", "-C", tree, *what]
    return subprocess.run(command, capture_output=True, text=True)


def fuzz(tree, target):
    """Returns 0 when no input makes the target fail, or None when it cannot be built."""
    tried = make(tree, "fuzz", "TEST=" + target, "FUZZ_SECONDS=5")
    if " passed, " not in tried.stdout:
        print(tried.stderr)
        return None
    return tried.returncode


def run(tree, program, pattern):
    """Returns the exit status of some tests of a tree, or None when it cannot be built."""
    if program.startswith("fuzz_"):
        return fuzz(tree, pattern)
    # The Makefile names its targets from the tree on; "where" prints an absolute path.
    build = os.path.relpath(make(tree, "where").stdout.strip(), tree)
    path = os.path.join(build, program)
    made = make(tree, "all", "importable", path)
    if made.returncode != 0:
        print(made.stderr)
        return None
    environment = dict(os.environ, MANHOLE_TEST_FILTER=pattern, LC_ALL="C.UTF-8")
    if program.startswith("unit_"):
        environment["PYTHONHOME"] = make(tree, "home").stdout.strip()
    try:
        return subprocess.run(
            [os.path.join(tree, path)],
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
    wanted = os.environ.pop("TEST", "") or "*"
    mutants = [mutant for mutant in MUTANTS if fnmatch.fnmatch(mutant[0], wanted)]
    caught = 0
    sound = True
    os.environ["NO_SETUP"] = "yes"
    for variable in ("MAKEFLAGS", "MAKELEVEL", "BUILD_ROOT"):
        os.environ.pop(variable, None)
    with tempfile.TemporaryDirectory(prefix="manhole-mutants-") as folder:
        os.chmod(folder, 0o755)  # some tests are another user's, too
        tree = os.path.join(folder, "tree")
        shutil.copytree(root, tree, ignore=shutil.ignore_patterns("build", ".git"))
        for mutant in mutants:
            if run(tree, *mutant[4:]) != 0:
                print("%s: fails without any bug: %s" % mutant[4:], flush=True)
                sound = False
        for mutant in mutants if sound else ():
            text, well = try_mutant(tree, mutant)
            caught += well
            print("%-56s %s by %s: %s" % (mutant[0], text, mutant[4], mutant[5]), flush=True)
    print("%d passed, %d failed, 0 skipped" % (caught, len(mutants) - caught))
    return 0 if caught == len(mutants) > 0 else 1


if __name__ == "__main__":
    sys.exit(main())
