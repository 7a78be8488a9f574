"""kills.py - kill -9 at every moment of a frozen copy's life: of its client, of its process, of itself.

    PYTHON test/frozen/kills.py BUILD [STEP_MS]      (build/3.11.7; a kill each STEP_MS, 1 without a word)

For a process that is well and for one that is stuck. After each kill nothing may be left over: no copy
without its client or its process, no descriptor more in the process, and the next client has its copy.
A line for each: how many kills, how many of them hit a copy that was there. CI does not run it.
"""
import os
import signal
import subprocess
import sys
import time

BUILD = sys.argv[1]
STEP_S = float(sys.argv[2]) / 1000 if len(sys.argv) > 2 else 0.001
PREFIX = f'''
import sys; sys.path.insert(0, {BUILD!r})
import ctypes, os, time
import manhole; manhole.install(hang_timeout=0.1, verbose=False)
os.write(1, b'ready\\n')
'''
KINDS = {
    'well': ('while True: time.sleep(1)', 0.12),
    'stuck': ('while True: ctypes.PyDLL(None).usleep(60000000)', 0.25),
}


def start(kind):
    app = subprocess.Popen([sys.executable, '-c', PREFIX + KINDS[kind][0]], stdout=subprocess.PIPE,
                           stderr=subprocess.DEVNULL)
    assert app.stdout.readline() == b'ready\n'
    return app


def ask(app, code, **options):
    return subprocess.Popen([BUILD + '/manhole-cli', '--frozen', '-t', '60', '-c', code, str(app.pid)],
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def copies_of(pid):
    found = []
    for other in filter(str.isdigit, os.listdir('/proc')):
        try:
            with open(f'/proc/{other}/stat') as stat:
                fields = stat.read().rpartition(')')[2].split()
        except OSError:
            continue
        if int(fields[1]) == pid and fields[0] != 'Z':
            found.append(int(other))
    return found


def settles(is_so):
    for _ in range(300):
        if is_so():
            return True
        time.sleep(0.05)
    return False


def descriptors(app):
    return len(os.listdir(f'/proc/{app.pid}/fd'))


def fewest_descriptors(app):
    """How many it has when its client is gone, which takes a moment."""
    seen = []
    for _ in range(20):
        time.sleep(0.05)
        seen.append(descriptors(app))
    return min(seen)


def answers(app):
    client = ask(app, 'print(6 * 7)')
    return client.communicate(timeout=90)[0] == '42\n'


def kill(pid):
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        pass


def after_step(kind, victim, app, delay_s, normal):
    """Kills the victim so long after the client's start. Returns whether a copy was there, and what is wrong."""
    client = ask(app, 'import time; time.sleep(0.05); print(6 * 7)')
    time.sleep(delay_s)
    copies = copies_of(app.pid)
    for pid in {'client': [client.pid], 'process': [app.pid], 'copy': copies}[victim]:
        kill(pid)
    out, err = client.communicate(timeout=90)
    if victim == 'process':
        app.wait()
        return bool(copies), None if settles(lambda: not any(map(alive, copies))) else 'a copy outlives its process'
    if victim == 'copy' and (client.returncode == 0) != (out == '42\n'):
        return bool(copies), f'client: {client.returncode} {out!r} {err!r}'
    if not settles(lambda: not copies_of(app.pid)):
        return bool(copies), 'a copy outlives its client'
    if not settles(lambda: descriptors(app) == normal):
        return bool(copies), f'{descriptors(app)} descriptors, not {normal}'
    return bool(copies), None if answers(app) else 'no copy afterwards'


def alive(pid):
    return os.path.exists(f'/proc/{pid}')


def run(kind, victim):
    kills, hits, wrong, delay_s = 0, 0, [], 0
    app = start(kind)
    assert answers(app)
    assert settles(lambda: not copies_of(app.pid))
    normal = fewest_descriptors(app)
    while delay_s < KINDS[kind][1]:
        if app.poll() is not None:
            if victim != 'process':
                wrong.append(f'the process ended with {app.returncode}')
            remove(app)
            app = start(kind)
        hit, what = after_step(kind, victim, app, delay_s, normal)
        kills, hits, delay_s = kills + 1, hits + hit, delay_s + STEP_S
        if what:
            wrong.append(f'at {delay_s * 1000:.1f} ms: {what}')
    kill(app.pid)
    app.wait()
    remove(app)
    print(f'{kind:6} {victim:8} {kills:4} kills, {hits:4} beside a copy;', wrong or 'nothing left over', flush=True)


def remove(app):
    try:
        os.unlink(f'/tmp/manhole-{app.pid}')
    except FileNotFoundError:
        pass


for kind in KINDS:
    for victim in ('client', 'process', 'copy'):
        run(kind, victim)
