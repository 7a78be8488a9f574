"""make doctest: types what the documents show, and compares what comes.

usage: transcripts.py SOURCES [PAGE...]

In every page each ".. code-block:: console" is a transcript. Its lines that begin with a prompt (of
the shell, of Python, of pdb, of the shell of commands) are typed, in order, at a terminal of its own
(a dumb one: lines are not edited); the others are what has to appear there. In these

- "..." stands for any text, and alone on a line for any lines, also for none;
- a number of four digits or more stands for any number, such as a process id, and 12:34:56 for any time,
  and two blanks or more for any number of them;
- /srv/shop is the folder in which the page is played.

Right after what is typed at a prompt of Python, "..." is Python's prompt for a line more, left empty.
"^C" at the start of a line is typed as soon as the lines above it have come. A command of the shell has
to succeed, unless its status is asked for next, by "echo $?". Where a command that is started with "&"
speaks of manhole, its manhole is waited for, and that it sleeps.

A command in the README's table, "I want to ...", has to be among what the recipes type. Any other block
with ":name: FILE" is written to that file. The README and CONTRIBUTING are played in a
copy of the sources, and what the README installs is what the other pages use. Nothing is left: all processes of the
terminal's session are ended.

The last line: N passed, N failed, N skipped; each block counts.
"""

import contextlib
import os
import pty
import re
import select
import shutil
import signal
import sys
import tempfile
import termios
import time

LONGEST_S = 300  # of a command: make install
PATIENCE_S = 30  # for the right text, once there is a prompt
SHOWN_FOLDER = "/srv/shop"
PROMPT = re.compile(r"(\$|>>>|\.\.\.|\(Pdb\)|\((?:manhole|process|python|wsgi|queue)(?::\d+)?\))( |$)")


class Step:
    """What is typed, and what the screen then shows: lines, and the prompt after them."""

    def __init__(self, prompt, typed):
        self.prompt = prompt
        self.typed = typed
        self.lines = []

    def pattern(self, following):
        """Of the screen, from the typed text's echo on to the prompt that follows."""
        text = "" if self.typed == "\x03" else as_pattern(self.typed, literal=True) + r" *\n"
        for i, line in enumerate(self.lines):
            if line == "...":
                text += r"(?:.*\n)*?"
            elif following == "^C" and i == len(self.lines) - 1:
                text += as_pattern(line) + r" *\n?"
            else:
                text += as_pattern(line) + r" *\n"
        prompt = "" if following == "^C" else as_pattern(following) + " "
        return re.compile(text + prompt + r"\Z")


def as_pattern(line, literal=False):
    parts = [line] if literal else line.split("...")
    pattern = ".*".join(re.escape(part) for part in parts)
    if literal:
        return pattern
    pattern = re.sub(r"\d{4,}|\d\d:\d\d:\d\d", r"[\\d:]+", pattern)
    return re.sub(r"(\\ ){2,}", " +", pattern)


class Block:
    def __init__(self, page, line, language, name, text):
        self.where = f"{page}:{line}"
        self.language = language
        self.name = name
        self.text = text

    def steps(self):
        steps = []
        for line in self.text:
            found = PROMPT.match(line)
            after_python = steps and not steps[-1].lines and steps[-1].prompt in (">>>", "...")
            if found and (found[1] != "..." or (after_python and steps[-1].typed)):
                steps.append(Step(found[1], line[found.end() :]))
            elif line.startswith("^C"):
                steps.append(Step("^C", "\x03"))
                steps[-1].lines.append(line[len("^C") :])
            else:
                assert steps, f"{self.where}: the transcript does not begin with a prompt"
                steps[-1].lines.append(line)
        return steps


def blocks_of(page, path):
    """All code-blocks: directive, options, an empty line, and what is indented."""
    with open(path, encoding="utf-8") as file:
        lines = file.read().split("\n")
    at = 0
    while at < len(lines):
        found = re.match(r"( *).*\.\. code-block:: (\S+)$", lines[at])
        at += 1
        if not found:
            continue
        began, indent, name, text = at, None, None, []
        while at < len(lines) and (not lines[at] or indent_of(lines[at]) > len(found[1])):
            option = re.match(r" +:(\w+): (.*)$", lines[at])
            if option and indent is None:
                name = option[2] if option[1] == "name" else name
            elif lines[at] or text:
                indent = indent_of(lines[at]) if indent is None else indent
                text.append(lines[at][indent:].rstrip())
            at += 1
        while text and not text[-1]:
            text.pop()
        yield Block(page, began, found[2], name, text)


def indent_of(line):
    return len(line) - len(line.lstrip(" "))


class Terminal:
    """A shell at a terminal of its own, in a folder."""

    def __init__(self, folder, environment):
        self.folder = folder
        self.state = os.path.join(folder, ".state")  # status of the last command, and $!
        self.raw = b""
        self.pid, self.fd = pty.fork()
        if self.pid == 0:
            os.chdir(folder)
            settings = termios.tcgetattr(0)
            settings[3] |= termios.NOFLSH  # Ctrl-C throws nothing away that was typed or printed
            termios.tcsetattr(0, termios.TCSANOW, settings)
            os.execvpe("bash", ["bash", "--norc", "--noprofile", "--noediting", "-i"], environment)

    def screen(self):
        """All since it was typed; without ^C, which the kernel shows before or after its effect."""
        text = self.raw.decode("utf-8", "replace").replace("\r", "").replace("^C", "")
        return text.replace(os.path.realpath(self.folder), SHOWN_FOLDER)

    def type(self, text):
        self.raw = b""
        os.write(self.fd, (text if text == "\x03" else text + "\n").encode())

    def wait_for(self, pattern, following):
        """Until the screen matches; the text that did not, or None."""
        deadline = time.monotonic() + LONGEST_S
        has_prompt = False
        while True:
            screen = self.screen()
            if pattern.match(screen):
                return None
            if not has_prompt and re.fullmatch(as_pattern(following) + " ", screen.split("\n")[-1]):
                has_prompt = True
                deadline = time.monotonic() + PATIENCE_S
            left = deadline - time.monotonic()
            if left < 0 or not select.select([self.fd], [], [], left)[0]:
                return screen
            try:
                self.raw += os.read(self.fd, 65536)
            except OSError:
                return screen + "[the shell has ended]"

    def status_and_job(self):
        with open(self.state, encoding="ascii") as file:
            status, job = file.read().rstrip("\n").split(" ")
        return int(status), int(job or 0)

    def processes(self):
        """All of this terminal's session but the shell."""
        return [pid for pid in process_ids() if pid != self.pid and self.owns(pid)]

    def owns(self, pid):
        state = words_of_stat(pid)
        return state[:1] not in ([], ["Z"]) and state[3] == str(self.pid)

    def end(self):
        """End all that was started; the sockets that stayed behind."""
        pids = self.processes()
        for number in (signal.SIGTERM, signal.SIGKILL):
            for pid in self.processes():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, number)
            until(lambda: not self.processes(), 10)
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)
        os.close(self.fd)
        left = [path for path in map("/tmp/manhole-{}".format, pids) if os.path.exists(path)]
        for path in left:
            os.unlink(path)
        return left


def process_ids():
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]


def words_of_stat(pid):
    """From the state on; none when it is gone."""
    with contextlib.suppress(OSError), open(f"/proc/{pid}/stat", encoding="utf-8") as file:
        return file.read().rpartition(")")[2].split()
    return []


def until(is_true, seconds):
    deadline = time.monotonic() + seconds
    while not is_true() and time.monotonic() < deadline:
        time.sleep(0.02)


def is_settled(pid):
    """Whether it has ended, or has a thread of manhole's and is asleep, now and a moment later."""

    def is_asleep():
        return words_of_stat(pid)[:1] == ["S"]

    def has_listener():
        for task in os.listdir(f"/proc/{pid}/task"):
            with open(f"/proc/{pid}/task/{task}/comm", encoding="utf-8") as file:
                if file.read().startswith("Manhole"):
                    return True
        return False

    try:
        if not (has_listener() and is_asleep()):
            return False
    except OSError:
        return words_of_stat(pid)[:1] in ([], ["Z"])
    time.sleep(0.1)
    return is_asleep()


def play(terminal, block):
    """Type a transcript; None, or what went wrong."""
    steps = block.steps()
    followings = [step.prompt for step in steps[1:]] + ["$"]
    for step, following in zip(steps, followings):
        terminal.type(step.typed)
        pattern = step.pattern(following)
        if step.prompt == "$" and not step.lines and following == "$":
            pattern = re.compile(r"(?s).*(^|\n)\$ \Z")  # shows nothing of what it prints
        screen = terminal.wait_for(pattern, following)
        if screen is not None:
            shown = "\n".join(step.lines)
            return (
                f"after {step.typed!r} should come:\n{shown}\n{following}\n"
                f"but there is:\n{screen.partition(chr(10))[2]}"
            )
        if following == "$":
            next_typed = next((s.typed for s in steps[steps.index(step) + 1 :]), "")
            status, job = terminal.status_and_job()
            if status != 0 and "echo $?" not in (next_typed, step.typed):
                return f"{step.typed!r} has ended with status {status}\n{terminal.screen()}"
            if step.typed.endswith("&") and "manhole" in step.typed.lower():
                until(lambda: is_settled(job), 10)
    return None


def play_page(page, path, folder, environment):
    """How many blocks went well, how many did not; the first that does not is the last."""
    terminal = Terminal(folder, environment)
    passed = 0
    try:
        problem = terminal.wait_for(re.compile(r"\$ \Z"), "$")
        for block in blocks_of(page, path):
            if problem is not None:
                break
            if block.name:
                with open(os.path.join(folder, block.name), "w", encoding="utf-8") as file:
                    file.write("\n".join(block.text) + "\n")
            elif block.language == "console":
                problem = play(terminal, block)
                if problem is None:
                    passed += 1
                else:
                    problem = f"{block.where}: {problem}"
    finally:
        left = terminal.end()
    if problem is None and left:
        problem = f"{page}: these sockets were left: {' '.join(left)}"
    if problem is not None:
        print(f"\n----- {problem}")
    print(f"{page}: {passed} transcripts as shown" + ("" if problem is None else ", then one not"), flush=True)
    return passed, int(problem is not None)


def missing_recipes(sources):
    """The commands of the README's table that docs/recipes.rst does not play."""
    blocks = blocks_of("docs/recipes.rst", sources + "/docs/recipes.rst")
    typed = [s.typed for block in blocks if block.language == "console" for s in block.steps()]
    with open(sources + "/README.rst", encoding="utf-8") as file:
        commands = re.findall(r"^     - ``(manhole-cli .*)``$", file.read(), re.MULTILINE)
    shown = [re.sub("PID|MASTER", "$!", c) for c in commands if not re.search("--host|--exec", c)]
    return [command for command in shown if not any(line.startswith(command) for line in typed)]


def environment_of(folder, programs):
    environment = {
        "HOME": folder,
        "LC_ALL": "C.UTF-8",
        "PATH": os.pathsep.join([*programs, os.path.dirname(sys.executable), os.environ["PATH"]]),
        "PROMPT_COMMAND": f'echo "$? $!" >{folder}/.state',
        "PS1": "$ ",
        "TERM": "dumb",
        "USER": "root",
        "VIRTUAL_ENV_DISABLE_PROMPT": "1",
    }
    return environment


def main(sources, *pages):
    sources = os.path.abspath(sources)
    in_sources = ["README.rst", "CONTRIBUTING.rst"]
    every = in_sources[:]
    every += sorted("docs/" + name for name in os.listdir(sources + "/docs") if name.endswith(".rst"))
    work = os.path.realpath(tempfile.mkdtemp(prefix="transcripts-"))
    passed = failed = 0
    try:
        clone = os.path.join(work, "clone")
        os.mkdir(clone)
        for name in os.listdir(sources):
            if name not in ("build", ".git"):
                os.symlink(os.path.join(sources, name), os.path.join(clone, name))
        for page in every:
            if page != "README.rst" and pages and page not in pages:
                continue
            if not any(block.language == "console" for block in blocks_of(page, f"{sources}/{page}")):
                continue
            folder = clone
            if page not in in_sources:
                folder = os.path.join(work, os.path.basename(page))
                os.mkdir(folder)
            programs = [] if page in in_sources else [clone + "/venv/bin"]
            counts = play_page(page, os.path.join(sources, page), folder, environment_of(folder, programs))
            passed, failed = passed + counts[0], failed + counts[1]
            if page == "README.rst" and not os.path.exists(clone + "/venv/bin/manhole-cli"):
                break  # the others have nothing to play with
    finally:
        shutil.rmtree(work)
    for command in missing_recipes(sources):
        print(f"README.rst: docs/recipes.rst does not play {command}")
        failed += 1
    print(f"{passed} passed, {failed} failed, 0 skipped")
    return failed != 0


if __name__ == "__main__":
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda number, _: sys.exit(128 + number))
    sys.exit(main(*sys.argv[1:]))
