"""harm.py - many ways to do damage from the prompt of a frozen copy: none reaches the process.

    PYTHON test/frozen/harm.py BUILD     (build/3.11.7; also as another user than root)

An application has files, sockets, SQLite with a write-ahead log, shared memory, a pipe to itself,
buffered files, locks on files and a child. Each line below is run in a copy of it, of a process that
is well and of one whose Python is stuck; then the application says what it has: all as before. Before
Linux 6.10 mprotect() makes writable what is large and shared. CI does not run it.
"""
import json
import os
import subprocess
import sys

BUILD = sys.argv[1]

APPLICATION = r'''
import sys; sys.path.insert(0, BUILD)
import fcntl, hashlib, json, mmap, multiprocessing.shared_memory, os, signal, socket, sqlite3, tempfile
import ctypes, resource, threading
os.chdir(tempfile.mkdtemp())
signals, forks = [], []
for number in (signal.SIGCHLD, signal.SIGUSR1, signal.SIGUSR2):
    signal.signal(number, lambda number, frame: signals.append(number))
signal.signal(signal.SIGALRM, lambda number, frame: signals.append(number))
os.register_at_fork(before=lambda: forks.append('before'), after_in_parent=lambda: forks.append('after'))
shm = multiprocessing.shared_memory.SharedMemory(create=True, size=64); shm.buf[:4] = b'kept'
child_reads, child_writes = os.pipe()
child = os.fork()
if child == 0:
    os.close(child_writes); os.read(child_reads, 1); os._exit(0)
forks.clear()
file = open('file', 'w+b', buffering=0); file.write(b'kept'); os.chmod('file', 0o640)
mapped = mmap.mmap(file.fileno(), 4)
seen = mmap.mmap(file.fileno(), 4, access=mmap.ACCESS_READ)
memory = os.memfd_create('memory'); os.ftruncate(memory, 64 << 20)
sparse = mmap.mmap(memory, 64 << 20); sparse[-4:] = b'kept'
large = open('large', 'w+b'); large.truncate(300 << 20); big = mmap.mmap(large.fileno(), 300 << 20); big[:4] = b'kept'
events = os.eventfd(1, os.EFD_NONBLOCK) if hasattr(os, 'eventfd') else None
queue = multiprocessing.Queue(); queue.put('kept')
value = multiprocessing.Value('i', 7); event = multiprocessing.Event(); semaphore = multiprocessing.Semaphore(1)
ours, terminal = os.openpty(); terminal_name = os.ttyname(terminal)
os.mkfifo('fifo'); fifo = os.open('fifo', os.O_RDWR | os.O_NONBLOCK); os.write(fifo, b'kept')
leased = open('leased', 'w+'); fcntl.fcntl(leased, fcntl.F_SETLEASE, fcntl.F_WRLCK)
buffered = open('buffered', 'w'); buffered.write('half')   # not flushed
locked = open('locked', 'w'); fcntl.flock(locked, fcntl.LOCK_EX)
posix = open('posix', 'w'); fcntl.lockf(posix, fcntl.LOCK_EX)
db = sqlite3.connect('db', check_same_thread=False, isolation_level=None); db.execute('pragma journal_mode=wal')
db.execute('create table t(x)'); db.execute("insert into t values('kept')")
pipe_reads, pipe_writes = os.pipe(); os.write(pipe_writes, b'kept'); os.set_blocking(pipe_reads, False)
one, two = socket.socketpair(); one.setblocking(False); two.setblocking(False); two.sendall(b'kept')
server = socket.create_server(('127.0.0.1', 0))
os.mkdir('folder'); os.symlink('file', 'link')
lock = threading.Lock()
data = ['kept']
import manhole; manhole.install(hang_timeout=0.1, verbose=False)

def state():
    early = list(signals)   # below there are children of its own
    def peek(s, n=100):
        try: return s.recv(n, socket.MSG_PEEK).decode()
        except BlockingIOError: return ''
    def is_locked(name, call):
        code = f"import fcntl,sys; f=open({name!r},'a'); fcntl.{call}(f, fcntl.LOCK_EX|fcntl.LOCK_NB)"
        import subprocess
        return subprocess.run([sys.executable, '-Sc', code], capture_output=True).returncode != 0
    import array, termios
    waiting = array.array('i', [0]); fcntl.ioctl(pipe_reads, termios.FIONREAD, waiting)
    found = dict(
        files=sorted(os.listdir('.')), folder=os.listdir('folder'), file=open('file', 'rb').read().decode(),
        mode=os.stat('file').st_mode, position=file.seek(0, 1), mapped=mapped[:].decode(), shm=bytes(shm.buf[:4]).decode(),
        buffered=open('buffered').read(), rows=db.execute('select * from t').fetchall(),
        check=db.execute('pragma integrity_check').fetchall(), pipe=waiting[0], socket=[peek(one), peek(two)],
        flock=is_locked('locked', 'flock'), lockf=is_locked('posix', 'lockf'), child=os.waitpid(child, os.WNOHANG),
        server=server.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN), data=data, lock=lock.locked(),
        cwd=len(os.getcwd()) > 1, nice=os.nice(0), uid=os.getuid(), fds=len(os.listdir('/proc/self/fd')),
        threads=len(os.listdir('/proc/self/task')), blocking=[os.get_blocking(pipe_reads), os.get_blocking(pipe_writes)],
        affinity=sorted(os.sched_getaffinity(0)), link=os.readlink('link'), mask=os.umask(0o22))
    os.umask(found['mask'])
    while os.waitpid(-1, os.WNOHANG)[0] not in (0,): pass
    fcntl.ioctl(fifo, termios.FIONREAD, waiting)
    found.update(
        seen=seen[:].decode(), sparse=os.fstat(memory).st_blocks, big=big[:4].decode(), fifo=waiting[0],
        event=event.is_set(), value=value.value, semaphore=semaphore.get_value(), queue=queue.qsize(),
        terminal=repr(termios.tcgetattr(terminal)), size=fcntl.ioctl(terminal, termios.TIOCGWINSZ, bytes(8)).hex(),
        pipe_size=fcntl.fcntl(pipe_reads, 1032), lease=fcntl.fcntl(leased, fcntl.F_GETLEASE), policy=os.sched_getscheduler(0),
        limits=repr([resource.getrlimit(n) for n in range(16)]), counted=events and open(f'/proc/self/fdinfo/{events}').read())
    found.update(signals=early, forks=[f for f in forks])
    signals.clear(); forks.clear()
    return json.dumps(found, default=str)

libc = ctypes.PyDLL(None)
byte = ctypes.create_string_buffer(1)
print(os.getpid(), flush=True)
while True:
    libc.read(0, byte, 1) if MODE == 'stuck' else os.read(0, 1)
    print(state(), flush=True)
'''

WAYS = r'''
m.file.write(b'lost')
m.file.truncate(0)
m.file.seek(2)
os.write(m.file.fileno(), b'lost')
os.pwrite(m.file.fileno(), b'lost', 0)
os.ftruncate(m.file.fileno(), 0)
os.fchmod(m.file.fileno(), 0)
os.lseek(m.file.fileno(), 3, 0)
m.mapped[:] = b'lost'
m.mapped.flush()
m.shm.buf[:4] = b'lost'
m.shm.unlink()
m.seen.madvise(mmap.MADV_REMOVE)
m.big.madvise(mmap.MADV_REMOVE)
m.big[:4] = b'lost'
mapping('/large'); libc.mprotect(mapping('/large'), 4096, 3); ctypes.memmove(mapping('/large'), b'lost', 4)
[libc.mprotect(at, 4096, 3) or ctypes.memmove(at, b'lost', 4) for at in mappings('/file')]
libc.munmap(mapping('/large'), 4096); libc.mremap(mapping('/large'), 4096, 8192, 1)
mmap.mmap(os.open('file', os.O_RDONLY), 4)[:] = b'lost'
mmap.mmap(os.open('/proc/%d/fd/%d' % (os.getppid(), m.memory), os.O_RDONLY), 4096)[:4] = b'lost'
os.open('/proc/%d/fd/%d' % (os.getppid(), m.memory), os.O_RDWR)
os.write(m.memory, b'lost'); os.ftruncate(m.memory, 0)
fcntl.fcntl(m.memory, 1033, 0xf)
m.value.value = 0; m.event.set()
m.semaphore.acquire(); m.semaphore.release(); m.semaphore.release()
m.queue.get(timeout=1)
m.queue.put('lost'); time.sleep(0.2)
os.write(m.events, bytes([1]) + bytes(7))
os.read(m.events, 8)
termios.tcsetattr(m.terminal, 0, [0] * 6 + [[b'0'] * 32])
fcntl.ioctl(os.open(m.terminal_name, os.O_RDONLY | os.O_NOCTTY), termios.TIOCSWINSZ, bytes(range(8)))
fcntl.ioctl(os.open(m.terminal_name, os.O_RDONLY), termios.TIOCSTI, b'x')
os.open(m.terminal_name, os.O_WRONLY)
os.write(m.fifo, b'lost'); os.read(m.fifo, 4)
os.open('fifo', os.O_WRONLY | os.O_NONBLOCK)
os.open('fifo', os.O_RDWR)
os.open('/proc/%d/fd/%d' % (os.getppid(), m.pipe_writes), os.O_WRONLY)
fcntl.fcntl(m.leased, fcntl.F_SETLEASE, fcntl.F_UNLCK)
fcntl.fcntl(os.open('file', os.O_RDONLY), fcntl.F_SETLEASE, fcntl.F_RDLCK)
fcntl.flock(os.open('file', os.O_RDONLY), fcntl.LOCK_EX)
fcntl.fcntl(m.pipe_reads, fcntl.F_SETOWN, os.getppid())
fcntl.fcntl(m.pipe_reads, 1031, 4096)
one, two = os.pipe(); fcntl.fcntl(one, fcntl.F_SETFL, os.O_ASYNC); fcntl.fcntl(one, fcntl.F_SETOWN, os.getppid()); os.write(two, b'x')
socket.socketpair()[0].bind(chr(0) + 'lost')
socket.socketpair(socket.AF_INET)
one, two = socket.socketpair(); socket.send_fds(one, [b'x'], [1])
os.kill(os.getpid(), signal.SIGSTOP)
signal.raise_signal(signal.SIGTSTP)
[os.kill(os.getpid(), signal.SIGRTMIN + 3) for _ in range(2000)]
os.kill(0, signal.SIGUSR1)
[libc.syscall(62, ctypes.c_long(x << 32 | os.getppid()), 10) for x in (1, os.getpid())]
libc.syscall(234, os.getpid(), os.getppid(), 10); libc.syscall(200, os.getppid(), 10)
[libc.syscall(0x40000000 | n, os.getppid(), 10, 0, 0) for n in (1, 2, 57, 62, 234, 512, 521, 532)]
[libc.syscall(n, 0, 0, 0, 0, 0, 0) for n in range(425, 480) if n not in (435, 439, 441, 449)]
[libc.syscall(n, os.open('file', 0), 0, os.open('file', 0), 0, 4, 0) for n in (40, 275, 276, 278, 326, 277)]
libc.syscall(257, -100, b'file', 3); libc.syscall(257, -100, b'.', 0o20200000, 0o600)
libc.syscall(56, 0x100 | 0x4000 | 17, 0, 0, 0, 0); libc.syscall(56, 0x8000 | 17, 0, 0, 0, 0)
os.setxattr('file', 'user.x', b'lost')
os.posix_spawn('/bin/touch', ['touch', 'lost'], {})
resource.setrlimit(resource.RLIMIT_NOFILE, (3, 3))
m.buffered.write('lost' * 10000); m.buffered.flush()
m.buffered.close()
fcntl.flock(m.locked, fcntl.LOCK_UN)
m.locked.close(); m.posix.close()
fcntl.lockf(m.posix, fcntl.LOCK_UN)
m.db.execute("insert into t values('lost')")
m.db.execute('drop table t')
m.db.execute('pragma wal_checkpoint(truncate)')
m.db.close()
sqlite3.connect('db').execute("insert into t values('lost')")
os.read(m.pipe_reads, 4)
os.write(m.pipe_writes, b'lost')
os.set_blocking(m.pipe_reads, True)
m.one.recv(4)
m.two.sendall(b'lost')
m.two.shutdown(2)
m.server.accept()
m.server.close()
socket.create_connection(m.server.getsockname())
os.kill(m.child, 9)
os.write(m.child_writes, b'x')
os.close(m.child_writes)
os.kill(os.getppid(), 9)
os.kill(os.getppid(), signal.SIGUSR1)
os.killpg(os.getpgid(os.getppid()), signal.SIGUSR2)
signal.pthread_kill(threading.main_thread().ident, signal.SIGUSR1)
signal.alarm(1); time.sleep(0.01)
os.unlink('file')
os.rename('file', 'lost')
os.truncate('file', 0)
os.chmod('file', 0)
os.utime('file', (0, 0))
open('file', 'w')
open('lost', 'w')
os.open('file', os.O_RDONLY | os.O_TRUNC)
os.mkdir('lost')
os.rmdir('folder')
os.symlink('file', 'lost')
os.link('file', 'lost')
os.unlink('link')
subprocess.run(['touch', 'lost'])
os.system('touch lost')
os.fork() or open('lost', 'w')
os.execv('/bin/touch', ['touch', 'lost'])
multiprocessing.Process(target=print).start()
shutil.rmtree('.')
tempfile.NamedTemporaryFile(dir='.')
open('/proc/%d/mem' % os.getppid(), 'r+b')
open('/proc/%d/fd/%d' % (os.getppid(), m.file.fileno()), 'wb')
open('/proc/%d/oom_score_adj' % os.getppid(), 'w').write('1000')
libc.ptrace(16, os.getppid(), 0, 0)
libc.process_vm_writev(os.getppid(), ctypes.byref(ctypes.c_long()), 1, ctypes.byref(ctypes.c_long()), 1, 0)
libc.shmget(1, 100, 0o1600); libc.semget(1, 1, 0o1600)
libc.syscall(434, os.getppid(), 0); libc.syscall(425, 8, 0)
os.sched_setaffinity(os.getppid(), [0])
os.setpriority(os.PRIO_PROCESS, os.getppid(), 19)
resource.prlimit(os.getppid(), resource.RLIMIT_NOFILE, (3, 3))
os.setuid(12345)
os.chdir('/')
os.umask(0)
m.data.clear(); m.lock.acquire()
[threading.Thread(target=m.file.write, args=(b'lost',)).start() for _ in range(8)]
gc.collect(); m.__dict__.clear()
ctypes.memset(id(m.data), 0, 16); gc.collect()
os.abort()
os._exit(3)
sys.exit(3)
atexit.register(open, 'lost', 'w'); raise SystemExit
faulthandler.enable(); ctypes.string_at(0)
while True: m.data.append(bytes(1 << 20)) if len(m.data) < 200 else sys.exit()
'''.strip().splitlines()

IMPORTS = ('atexit ctypes faulthandler fcntl gc mmap multiprocessing os resource shutil signal socket sqlite3 '
           'subprocess sys tempfile termios threading time').replace(' ', ', ')
HELPERS = '''libc = ctypes.CDLL(None)
def mappings(name):
    return [ctypes.c_void_p(int(line.split('-')[0], 16)) for line in open('/proc/self/maps')
            if line.rstrip().endswith(name)]
def mapping(name): return mappings(name)[0]
'''


def start(mode):
    program = f'BUILD, MODE = {BUILD!r}, {mode!r}\n' + APPLICATION
    app = subprocess.Popen([sys.executable, '-c', program], stdin=subprocess.PIPE,
                           stdout=subprocess.PIPE, text=True)
    return app, app.stdout.readline().strip()


def ask(app):
    app.stdin.write('x')
    app.stdin.flush()
    return json.loads(app.stdout.readline())


def main():
    harmed = 0
    for mode in 'well', 'stuck':
        app, pid = start(mode)
        ask(app)
        before = ask(app)
        answers = {}
        for way in WAYS:
            code = f'import __main__ as m, {IMPORTS}\n{HELPERS}{way}\n'
            done = subprocess.run([BUILD + '/manhole-cli', '--frozen', '-t', '20', '-c', code, pid],
                                  capture_output=True, text=True)
            kind = 'an exception' if done.returncode == 1 else f'status {done.returncode}'
            answers[kind] = answers.get(kind, 0) + 1
            if 'no frozen copy' in done.stderr:
                print(mode, 'NO COPY', way, done.stderr)
            after = ask(app)
            for sign in ('threads', 'fds'):   # a session's go a moment after its client
                after[sign] = before[sign] = 0
            if after != before:
                harmed += 1
                print(mode, 'HARMED', way, {k: (before[k], after[k]) for k in after if after[k] != before[k]})
                before = after
        print(mode, len(WAYS), 'ways:', answers)
        app.stdin.close()
        app.kill()
        app.wait()
        os.unlink(f'/tmp/manhole-{pid}')
    print('harmed:', harmed)
    return harmed > 0


sys.exit(main())
