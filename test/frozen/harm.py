"""harm.py - fifty ways to do damage from the prompt of a frozen copy: none reaches the process.

    PYTHON test/frozen/harm.py BUILD     (build/3.11.7; also as another user than root)

An application has files, sockets, SQLite with a write-ahead log, shared memory, a pipe to itself,
buffered files, locks on files and a child. Each line below is run in a copy of it, of a process that
is well and of one whose Python is stuck; then the application says what it has: all as before. CI does
not run it.
"""
import json
import subprocess
import sys

BUILD = sys.argv[1]

APPLICATION = r'''
import sys; sys.path.insert(0, BUILD)
import fcntl, hashlib, json, mmap, multiprocessing.shared_memory, os, signal, socket, sqlite3, tempfile
import ctypes, threading
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
    found.update(signals=[s for s in signals if s != signal.SIGCHLD], forks=[f for f in forks])
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

IMPORTS = ('atexit ctypes faulthandler fcntl gc multiprocessing os resource shutil signal socket sqlite3 '
           'subprocess sys tempfile threading time').replace(' ', ', ')


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
            code = f'import __main__ as m, {IMPORTS}\nlibc = ctypes.CDLL(None)\n{way}\n'
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
    print('harmed:', harmed)
    return harmed > 0


sys.exit(main())
