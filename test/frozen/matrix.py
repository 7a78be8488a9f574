"""matrix.py - how often a frozen copy is had, of what kind of process; and whether that is unharmed.

    PYTHON test/frozen/matrix.py BUILD [N [KIND ...]]     (build/3.11.7; N a cell, 20 without a word)

Each kind is a process of its own, of which N copies are made one after the other. What it counts and
has is looked at before and after. For each kind: how many came by the first attempt of manhole-cli, how
many after up to two more, how many never; the longest wait; harmed or not. A kind whose module this
Python has not got is left out. CI does not run it.
"""
import os
import signal
import subprocess
import sys
import time

BUILD = sys.argv[1]
PREFIX = r'''
import sys; sys.path.insert(0, BUILD)
import ctypes, os, signal, threading, time
seen, ticks = [], [0]
signal.signal(signal.SIGCHLD, lambda *_: seen.append('SIGCHLD'))
os.register_at_fork(before=lambda: seen.append('fork'))
import manhole; manhole.install(hang_timeout=0.3, verbose=False)
def sound(*_):
    try: children = os.waitpid(-1, os.WNOHANG)
    except ChildProcessError: children = None
    os.write(1, repr((seen, children)).encode() + b'\n')
signal.signal(signal.SIGUSR1, sound)
def ready(): os.write(1, b'ready\n')
def busy():
    while True: ticks[0] += 1; [{'a': i} for i in range(50)]
def threads(count, target=busy):
    for _ in range(count): threading.Thread(target=target, daemon=True).start()
'''
STUCK = '''
libc = ctypes.PyDLL(None)
ready()
while True: libc.sleep(1 << 30)
'''
ALLOCATES = '''def allocate():
    while True: [bytes(i * 97 % 5000) for i in range(1000)]
threads(8, allocate); ready()
while True: time.sleep(1)'''
KINDS = {
    'sleeps': 'ready()\nwhile True: time.sleep(1)',
    '8 threads compute': 'threads(8); ready()\nbusy()',
    '40 threads compute': 'threads(40); ready()\nbusy()',
    'collects garbage': 'import gc\nready()\nwhile True: a = [[] for _ in range(20000)]; gc.collect()',
    'starts threads': 'ready()\nwhile True: t = threading.Thread(target=int); t.start(); t.join()',
    'imports': 'import importlib, json.decoder\nready()\nwhile True: importlib.reload(json.decoder)',
    'asyncio': '''import asyncio
async def one():
    while True: await asyncio.sleep(0.001)
async def main():
    tasks = [asyncio.create_task(one()) for _ in range(50)]; ready(); await asyncio.gather(*tasks)
asyncio.run(main())''',
    'uvloop': '''import asyncio, uvloop
async def one():
    while True: await asyncio.sleep(0.001)
async def main():
    tasks = [asyncio.create_task(one()) for _ in range(50)]; ready(); await asyncio.gather(*tasks)
uvloop.install(); asyncio.run(main())''',
    'gevent': '''import gevent
def one():
    while True: gevent.sleep(0.001)
jobs = [gevent.spawn(one) for _ in range(50)]; ready(); gevent.joinall(jobs)''',
    '2 GB': 'blocks = [b"x" * 2**20 for _ in range(2048)]; ready()\nwhile True: time.sleep(1)',
    'little address space': '''import resource
size = int(open('/proc/self/statm').read().split()[0]) * 4096
resource.setrlimit(resource.RLIMIT_AS, (size + 2**28,) * 2); ready()
while True: time.sleep(1)''',
    'no free descriptors': '''import resource
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 1024)); taken = []
try:
    while True: taken.append(os.dup(1))
except OSError: ready()
while True: time.sleep(1)''',
    'jemalloc': ALLOCATES,
    'tcmalloc': ALLOCATES,
    'stuck in C': STUCK,
    'stuck in C beside 8 threads': 'threads(8)' + STUCK,
    'stuck in a loop of C': 'ready()\nwhile True: sum(iter(int, 1))',
    'stuck in a regular expression': "import re\nready()\nre.match('(a*)*b', 'a' * 40)",
    'stuck in C that allocates': '''import itertools
ready()
while True: sum(map(len, map(bytes, itertools.repeat(5000))))''',
}
# The kinds that have another allocator, and its library.
LIBRARIES = {'jemalloc': 'libjemalloc.so.2', 'tcmalloc': 'libtcmalloc_minimal.so.4'}
UNSOUND_WHILE_STUCK = [kind for kind in KINDS if kind.startswith('stuck')]


def start(kind):
    library = LIBRARIES.get(kind)
    app = subprocess.Popen([sys.executable, '-c', f'BUILD = {BUILD!r}\n' + PREFIX + KINDS[kind]],
                           stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, bufsize=0,
                           env={**os.environ, 'LD_PRELOAD': library, 'PYTHONMALLOC': 'malloc'}
                           if library else None)
    is_there = app.stdout.readline() == b'ready\n'
    if is_there and library:
        with open(f'/proc/{app.pid}/maps') as maps:
            is_there = library in maps.read()
    if not is_there:
        app.kill()
        app.wait()
    return app if is_there else None


def copy(app):
    begin = time.monotonic()
    done = subprocess.run([BUILD + '/manhole-cli', '--frozen', '-t', '60', '-c',
                           'import __main__; frame(); print(type(__main__.seen).__name__)', str(app.pid)],
                          capture_output=True, text=True)
    return done.stdout == 'list\n', time.monotonic() - begin, (done.stderr.splitlines() or [''])[-1]


def facts(app):
    with open(f'/proc/{app.pid}/task/{app.pid}/children') as children:
        return len(os.listdir(f'/proc/{app.pid}/fd')), children.read()


def settled(app):
    """What it has when that has been the same for a second: the copy and its session have gone."""
    before, since = facts(app), time.monotonic()
    while time.monotonic() < since + 1:
        time.sleep(0.1)
        if facts(app) != before:
            before, since = facts(app), time.monotonic()
    return before


def is_unharmed(app, kind, before):
    for _ in range(50):         # the last copy and its session go a moment after their client
        if app.poll() is not None:
            return f'ended with {app.returncode}'
        if facts(app) == before:
            break
        time.sleep(0.1)
    else:
        return f'{before} became {facts(app)}'
    if kind in UNSOUND_WHILE_STUCK:
        return 'unharmed'
    app.send_signal(signal.SIGUSR1)
    said = app.stdout.readline()
    return 'unharmed' if said == b'([], None)\n' else f'it says {said!r}'


def run(kind, count):
    app = start(kind)
    if app is None:
        return 'left out'
    tries, slowest, why = [0, 0, 0, 0], 0, set()
    for _ in range(2):   # of a stuck process the first clients wait in line for Python, and go on so
        copy(app)
        before = settled(app)
    for _ in range(count):
        for attempt in range(3):
            came, seconds, error = copy(app)
            slowest = max(slowest, seconds)
            if came:
                break
            why.add(error)
        tries[attempt if came else 3] += 1
    verdict = is_unharmed(app, kind, before)
    app.kill()
    app.wait()
    if os.path.exists(f'/tmp/manhole-{app.pid}'):
        os.unlink(f'/tmp/manhole-{app.pid}')
    return (f'{tries[0]:4} at once {tries[1] + tries[2]:3} after repeats {tries[3]:3} never, '
            f'{slowest:5.2f} s at most; {verdict} {sorted(why) or ""}')


def main():
    count = int(sys.argv[2]) if len(sys.argv) > 2 else 20
    print(sys.version.split()[0], f'{count} a kind')
    for kind in sys.argv[3:] or KINDS:
        print(f'{kind:30}', run(kind, count), flush=True)


main()
