/* e2e_frozen.c - what is done in a frozen copy of the process does nothing, and shows all of it.
 *
 * test/frozen/harm.py tries more than these few, and takes longer.
 */
#include "support.h"

#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/sysinfo.h>
#include <sys/un.h>
#include <unistd.h>

#define CLI(...) LIST(build_path("manhole-cli"), __VA_ARGS__)
#define FROZEN(...) CLI("--frozen", __VA_ARGS__)

/* Stays in a function that has a local of its own. */
#define APP                                                                              \
  INSTALL("hang_timeout=0.3")                                                            \
  "import os\n"                                                                          \
  "goods = ['bread']\n"                                                                  \
  "def serve(request):\n"                                                                \
  "    " READY "    while os.read(0, 4096): pass\n"                                      \
  "serve('milk')\n"

/* Keeps the GIL there until a byte comes, and goes on. */
#define STUCK_APP                                                                        \
  INSTALL("hang_timeout=0.3")                                                            \
  "import ctypes\n"                                                                      \
  "goods = ['bread']\n"                                                                  \
  "byte = ctypes.create_string_buffer(1)\n"                                              \
  "def serve(request):\n"                                                                \
  "    " READY "    ctypes.PyDLL(None).read(0, byte, 1)\n"                               \
  "    print(goods, flush=True)\n"                                                       \
  "serve('milk')\n" STAY

static struct process *
start_app(const char *program)
{
    require_copies();
    struct process *app = start_target(program);
    wait_until_ready(app);
    wait_until_asleep(app->pid);
    return app;
}

static const char *
pid_of(const struct process *app)
{
    return format_text("%d", (int)app->pid);
}

/* Runs code in a copy. Returns what it prints. */
static const char *
run_frozen(const struct process *app, const char *code)
{
    const char *out = NULL;
    const char *err = NULL;
    int status = run_command(FROZEN(pid_of(app), "-c", code), NULL, &out, &err);
    if (status != 0) {
        fail_msg("status %d: %s%s", status, out, err);
    }
    return out;
}

/* A console in a copy, at its first prompt. */
static struct process *
start_frozen_console(const struct process *app)
{
    struct process *console = start_process(.argv = FROZEN(pid_of(app)), .terminal = true,
                                            .env = LIST("TERM=dumb"));
    wait_for_text(console, OUT, ">>> ", DEADLINE);
    return console;
}

/* The process that serves it. */
static pid_t
find_copy(const struct process *app)
{
    pid_t children[4] = {0};
    size_t count = list_children(app->pid, children, 4);
    assert_int_equal(count, 1);
    return children[0];
}

static bool
has_no_copy(void *argument)
{
    pid_t children[4];
    return list_children(((const struct process *)argument)->pid, children, 4) == 0;
}

/* ---- What is seen ------------------------------------------------------------------ */

static void
copy_shows_frames_and_keeps_what_is_done_to_itself(void)
{
    struct process *app = start_app(APP);
    assert_string_equal(run_frozen(app,
                                   "import __main__; __main__.goods.clear()\n"
                                   "print(frame('MainThread').request, __main__.goods)"),
                        "milk []\n");
    assert_string_equal(run_frozen(app, "import __main__; print(__main__.goods)"),
                        "['bread']\n");
}

static void
copy_comes_while_python_is_stuck_and_harms_nothing(void)
{
    struct process *app = start_app(STUCK_APP);
    for (int i = 0; i < 2; i++) { /* found out by the first, known to the second */
        assert_string_equal(
            run_frozen(app, "import __main__; __main__.goods.clear()\n"
                            "print(frame('MainThread').request, __main__.goods)"),
            "milk []\n");
    }
    write_stdin(app, "x");
    wait_for_text(app, OUT, "['bread']\n", DEADLINE);
    assert_string_equal(run_frozen(app, "print(1)"), "1\n");
}

/* As the thread of a session does that gets the GIL just when Python was given up. */
static void
main_thread_is_meant_where_one_without_a_frame_has_the_gil(void)
{
    struct process *app = start_app(
        INSTALL("hang_timeout=0.3") "import _thread, ctypes\n"
                                    "byte = ctypes.create_string_buffer(1)\n"
                                    "def serve(request):\n"
                                    "    read = ctypes.PyDLL(None).read\n"
                                    "    " READY
                                    "    _thread.start_new_thread(read, (0, byte, 1))\n"
                                    "    while not byte.raw.strip(b'\\0'): pass\n"
                                    "serve('milk')\n" STAY);
    const char *out = NULL;
    assert_string_equal(run_frozen(app, "print(frame().request)"), "milk\n");
    assert_int_equal(
        run_command(CLI("--stacks", "--locals", pid_of(app)), NULL, &out, NULL), 0);
    assert_contains(out, "request = 'milk'");
    write_stdin(app, "x");
}

/* Python takes who is there after a fork for the main thread. */
static void
thread_that_threading_does_not_know_is_not_the_main_one(void)
{
    const char *out = NULL;
    struct process *app = start_app(INSTALL(
        "hang_timeout=0.3") "import _thread, ctypes\n"
                            "byte = ctypes.create_string_buffer(1)\n"
                            "def work(job):\n"
                            "    ctypes.PyDLL(None).read(0, byte, 1)\n"
                            "def serve(request):\n"
                            "    " READY "    _thread.start_new_thread(work, ('bake',))\n"
                            "    while not byte.raw.strip(b'\\0'): pass\n"
                            "serve('milk')\n" STAY);
    assert_string_equal(
        run_frozen(app, "print(frame().job, frame('MainThread').request)"),
        "bake milk\n");
    assert_int_equal(
        run_command(CLI("--stacks", "--locals", pid_of(app)), NULL, &out, NULL), 0);
    assert_contains(out, format_text("\nThread: MainThread, TID %d,", (int)app->pid));
    assert_null(strstr(out, "gone"));
    write_stdin(app, "x");
}

static void
copy_is_offered_when_a_statement_cannot_begin(void)
{
    struct process *app = start_app(
        INSTALL("hang_timeout=0.3") "import ctypes, os\n" READY "os.read(0, 1)\n"
                                    "ctypes.PyDLL(None).getchar()\n");
    struct process *console = start_process(.argv = CLI("--no-dump", pid_of(app)));
    wait_for_text(console, OUT, ">>> ", DEADLINE);
    write_stdin(app, "x");
    wait_until_asleep(app->pid);
    for (int i = 0; i < 3; i++) { /* the first may come before the process is stuck */
        write_stdin(console, "1 + 1\n");
    }
    wait_for_text(console, OUT,
                  format_text("'manhole-cli --frozen %d' gives a prompt", (int)app->pid),
                  DEADLINE);
    close_stdin(app);
}

static void
console_says_whose_copy_it_is(void)
{
    struct process *app = start_app(APP);
    struct process *console = start_frozen_console(app);
    rewind_stream(console, OUT);
    wait_for_text(
        console, OUT,
        format_text("This is a frozen copy of process %d as of 20", (int)app->pid),
        DEADLINE);
    write_stdin(console, "where()\n");
    wait_for_text(console, OUT, format_text("ProcessID=%d,", (int)app->pid), DEADLINE);
    write_stdin(console, "exit()\n");
    assert_int_equal(wait_for_exit(console, DEADLINE), 0);
}

static void
code_in_a_copy_has_its_arguments_and_its_status(void)
{
    struct process *app = start_app(APP);
    const char *out = NULL;
    int status = run_command(
        FROZEN(pid_of(app), "-c", "import sys; print(sys.argv[1:], input()); sys.exit(7)",
               "a", "b"),
        "typed\n", &out, NULL);
    assert_int_equal(status, 7);
    assert_string_equal(out, "['a', 'b'] typed\n");
}

/* Both look up the state of the thread by a thread-local variable. */
static void
copy_traces_memory_and_is_called_back_by_c(void)
{
    struct process *app = start_app("import tracemalloc; tracemalloc.start()\n" APP);
    assert_string_equal(run_frozen(app,
                                   "import ctypes, tracemalloc\n"
                                   "print(ctypes.CFUNCTYPE(ctypes.c_int)(lambda: 7)(),"
                                   " tracemalloc.is_tracing())"),
                        "7 True\n");
}

static void
frames_of_a_copy_are_debugged_and_errors_say_what_it_is(void)
{
    struct process *app = start_app(STUCK_APP);
    struct process *console = start_frozen_console(app);
    write_stdin(console, "debug()\n");
    wait_for_text(console, OUT, "(Pdb) ", DEADLINE);
    write_stdin(console, "p request\n");
    wait_for_text(console, OUT, "'milk'", DEADLINE);
    write_stdin(console, "q\n");
    wait_for_text(console, OUT, "copy>>> ", DEADLINE);
    write_stdin(console, "open('made', 'w')\n");
    wait_for_text(console, OUT, "manhole: this is a frozen copy: ", DEADLINE);
    write_stdin(console, "exit()\n");
    assert_int_equal(wait_for_exit(console, DEADLINE), 0);
}

/* As old versions of docker's: process_vm_readv() is denied. */
static void
list_grows_in_a_copy_behind_a_filter_of_the_process(void)
{
    struct process *app = start_app(
        INSTALL("") "import ctypes, struct\n"
                    "goods = ['bread'] * 5000\n"
                    "rules = ((32, 0, 0, 0), (21, 0, 1, 310), (6, 0, 0, 0x50001),\n"
                    "         (6, 0, 0, 0x7fff0000))\n"
                    "code = ctypes.create_string_buffer(\n"
                    "    b''.join(struct.pack('HBBI', *rule) for rule in rules))\n"
                    "filter = struct.pack('H6xP', 4, ctypes.addressof(code))\n"
                    "libc = ctypes.CDLL(None)\n"
                    "libc.prctl(38, 1, 0, 0, 0)\n"
                    "assert libc.syscall(317, 1, 1, filter) == 0\n" READY STAY);
    assert_string_equal(run_frozen(app, "from __main__ import goods\n"
                                        "goods.extend(range(5000))\n"
                                        "print(goods[0], goods[-1])"),
                        "bread 4999\n");
}

/* ---- What is not to be done -------------------------------------------------------- */

static void
copy_reaches_no_file_no_process_and_no_memory_of_others(void)
{
    struct process *app = start_app(
        INSTALL("") "import mmap, os, tempfile\n"
                    "file = open('written', 'w+b'); file.write(b'kept'); file.flush()\n"
                    "shared = mmap.mmap(file.fileno(), 4)\n"
                    "seen = mmap.mmap(file.fileno(), 4, access=mmap.ACCESS_READ)\n"
                    "ours = mmap.mmap(-1, 4); ours[:] = b'kept'\n" EVALUATE);
    assert_string_equal(
        run_frozen(
            app,
            "import __main__ as m, mmap, os, signal, socket\n"
            "def fails(call, *arguments):\n"
            "    try: call(*arguments)\n"
            "    except OSError as error: return error.errno in (1, 9, 22, 88)\n"
            "m.shared[:] = m.ours[:] = b'lost'\n"
            "m.file.write(b'lost'); m.file.flush(); os.write(m.file.fileno(), b'lost')\n"
            "print(all([fails(open, 'made', 'w'), fails(os.unlink, 'written'),\n"
            "           fails(os.truncate, 'written', 0), fails(os.mkdir, 'made'),\n"
            "           fails(m.seen.madvise, mmap.MADV_REMOVE),\n"
            "           fails(os.kill, os.getppid(), signal.SIGTERM), fails(os.fork),\n"
            "           fails(socket.socket), fails(os.system, 'true') is not False,\n"
            "           fails(os.setuid, 0), fails(os.nice, 1)]))"),
        "True\n");
    assert_string_equal(evaluate(app, "(shared[:], ours[:], open('written').read(), "
                                      "os.path.exists('made'))"),
                        "(b'kept', b'kept', 'kept', False)");
}

/* Of shared memory that nobody has written to a page is made by whoever reads it, for good. */
static void
shared_memory_does_not_grow_by_being_copied(void)
{
    struct sysinfo memory;
    if (sysinfo(&memory) < 0 || memory.freeswap != memory.totalswap) {
        skip_test("what is swapped out cannot be told from what there is not");
    }
    struct process *app = start_app(INSTALL(
        "") "import mmap, os\n"
            "path = f'/dev/shm/manhole-test-{os.getpid()}'\n"
            "named = os.open(path, os.O_RDWR | os.O_CREAT); os.unlink(path)\n"
            "fds = [named, os.memfd_create('memory')]\n"
            "size = 64 << 20; shared = []\n"
            "for fd in fds:\n"
            "    os.ftruncate(fd, size); shared.append(mmap.mmap(fd, size))\n"
            "    shared[-1][size - 4:] = b'kept'\n"
            "def blocks(): return [os.fstat(fd).st_blocks for fd in fds]\n" EVALUATE);
    const char *before = evaluate(app, "blocks()");
    assert_string_equal(run_frozen(app, "import __main__ as m\n"
                                        "print(*[one[m.size - 8:] for one in m.shared])"),
                        "b'\\x00\\x00\\x00\\x00kept' b'\\x00\\x00\\x00\\x00kept'\n");
    assert_string_equal(evaluate(app, "blocks()"), before);
}

/* A mapping that is for reading, of a file that was opened for writing, too. */
static void
what_a_copy_shares_cannot_be_made_writable(void)
{
    enum { MSEAL = 462 };
    if (syscall(MSEAL, 0, 0, 0) < 0) {
        skip_test("this kernel does not seal mappings");
    }
    struct process *app = start_app(INSTALL(
        "") "import mmap\n"
            "file = open('written', 'w+b'); file.write(b'kept'); file.flush()\n"
            "seen = mmap.mmap(file.fileno(), 4, access=mmap.ACCESS_READ)\n" READY STAY);
    assert_string_equal(
        run_frozen(app,
                   "import __main__ as m, ctypes\n"
                   "libc = ctypes.CDLL(None, use_errno=True)\n"
                   "line = next(l for l in open('/proc/self/maps') if '/written' in l)\n"
                   "at = ctypes.c_void_p(int(line.split('-')[0], 16))\n"
                   "print(m.seen[:], libc.mprotect(at, 4096, 3), ctypes.get_errno())"),
        "b'kept' -1 1\n");
}

/* The process's threads would not run until it ends, nor the one that ends it. */
static void
copy_of_a_real_time_process_is_an_ordinary_one(void)
{
    struct process *app =
        start_app("import os\n"
                  "try: os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))\n"
                  "except PermissionError: pass\n" INSTALL("") EVALUATE);
    if (strcmp(evaluate(app, "os.sched_getscheduler(0)"), "1") != 0) {
        skip_test("no process can be one in real time here");
    }
    assert_string_equal(run_frozen(app, "import os; print(os.sched_getscheduler(0))"),
                        "0\n");
}

/* The process's list of mappings has a line for which there is no room: what is behind it is not
 * known, so it would stay shared. */
static void
copy_is_refused_whose_mappings_cannot_be_read(void)
{
    const char *err = NULL;
    struct process *app = start_app(
        INSTALL("") "import mmap, os\n"
                    "here = os.getcwd()\n"
                    "for _ in range(10): os.mkdir('\\n' * 250); os.chdir('\\n' * 250)\n"
                    "file = open('written', 'w+b'); file.write(b'kept'); file.flush()\n"
                    "shared = mmap.mmap(file.fileno(), 4); os.chdir(here)\n" READY STAY);
    assert_int_equal(run_command(FROZEN(pid_of(app), "-c", "1"), NULL, NULL, &err), 5);
    assert_contains(err, "without its fence it might do harm");
}

/* An address whose lower half is 0, where a filter's first look would see none. */
static void
copy_sends_nothing_to_a_socket_by_its_name(void)
{
    struct process *app =
        start_app(INSTALL("") "import os, socket\n"
                              "bound = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)\n"
                              "bound.bind('bound'); bound.setblocking(False)\n" EVALUATE);
    assert_string_equal(
        run_frozen(app,
                   "import ctypes, socket\n"
                   "libc = ctypes.CDLL(None, use_errno=True)\n"
                   "libc.mmap.restype = ctypes.c_void_p\n"
                   "at = libc.mmap(ctypes.c_void_p(1 << 32), 4096, 3, 0x32, -1, 0)\n"
                   "ctypes.memmove(at, b'\\1\\0bound\\0', 8)\n"
                   "one, two = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)\n"
                   "libc.sendto(one.fileno(), b'lost', 4, 0, ctypes.c_void_p(at), 8)\n"
                   "print(at == 1 << 32, ctypes.get_errno())"),
        "True 1\n");
}

/* A session that has none would take it, and hang it up at its end. */
static void
terminal_that_a_copy_opens_does_not_become_its_own(void)
{
    struct process *app = start_app(INSTALL("") "import os\n"
                                                "ours, theirs = os.openpty()\n"
                                                "name = os.ttyname(theirs)\n" READY STAY);
    assert_string_equal(
        run_frozen(app,
                   "import __main__, os\n"
                   "of = lambda: open('/proc/thread-self/stat').read().split()[-46]\n"
                   "before = of(); os.open(__main__.name, os.O_RDONLY)\n"
                   "print(of() == before)"),
        "True\n");
}

static void
process_sees_nothing_of_its_copies(void)
{
    struct process *app = start_app(
        INSTALL("") "import gc, os, signal\n"
                    "seen = []\n"
                    "signal.signal(signal.SIGCHLD, lambda *_: seen.append('SIGCHLD'))\n"
                    "os.register_at_fork(before=lambda: seen.append('fork'),\n"
                    "                    after_in_parent=lambda: seen.append('fork'))\n"
                    "def wait():\n"
                    "    try: return os.waitpid(-1, os.WNOHANG)\n"
                    "    except ChildProcessError: return 'none'\n" EVALUATE);
    int fds = 0;
    run_frozen(app, "1");
    fds = count_fds(app->pid);
    struct process *console = start_frozen_console(app);
    write_stdin(console, "import os, signal; os.kill(os.getpid(), signal.SIGSTOP)\n");
    wait_for_text(console, OUT, "PermissionError", DEADLINE);
    assert_string_equal(evaluate(app, "(seen, wait())"), "([], 'none')");
    write_stdin(console, "exit()\n");
    assert_int_equal(wait_for_exit(console, DEADLINE), 0);
    wait_until(has_no_copy, app, "the copy is gone", DEADLINE);
    assert_string_equal(evaluate(app, "(seen, wait())"), "([], 'none')");
    wait_for_usage(app->pid, fds, 2);
}

static void
copy_goes_first_where_memory_is_short_without_a_descriptor_too(void)
{
    struct process *app = start_app(INSTALL(
        "hang_timeout=0.3") "import ctypes, os, resource\n"
                            "stuck = ctypes.PyDLL(None).getchar\n"
                            "resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))\n" READY
                            "try:\n"
                            "    while True: last = os.dup(0)\n"
                            "except OSError: os.close(last)\n"
                            "stuck()\n");
    assert_string_equal(run_frozen(app, "print(open('/proc/self/oom_score_adj').read())"),
                        "1000\n\n");
    close_stdin(app);
}

/* ---- Variables --------------------------------------------------------------------- */

static void
stacks_tell_what_variables_hold_whatever_their_repr_does(void)
{
    const char *out = NULL;
    struct process *app = start_app(INSTALL(
        "hang_timeout=0.3") "import ctypes, os, threading\n"
                            "class Late:\n"
                            "    def __repr__(self): os.write(1, b'ran'); self.lock()\n"
                            "class Wrong:\n"
                            "    def __repr__(self): raise SystemExit\n"
                            "def serve(request):\n"
                            "    late, wrong, data = Late(), Wrong(), b'x' * 10**7\n"
                            "    lock = threading.Lock(); lock.acquire()\n"
                            "    Late.lock, many = lock.acquire, [*range(10**6)]\n"
                            "    " READY "    ctypes.PyDLL(None).getchar()\n"
                            "serve('milk')\n");
    const char *pid = pid_of(app);
    assert_int_equal(run_command(CLI("--stacks", "--locals", pid), NULL, &out, NULL), 0);
    assert_contains(out, ", holds the GIL\n");
    assert_contains(out, "in serve\n  ctypes.PyDLL(None).getchar()\n"
                         "    request = 'milk'\n"
                         "    late = <Late, whose repr takes too long>\n"
                         "    wrong = <Wrong, whose repr raises SystemExit>\n");
    assert_matches(out, "^    data = b'x{100}'[.]{3}$");
    assert_contains(out, "    many = [0, 1, 2, 3, 4, 5, ...]\n");
    close_stdin(app);
    assert_int_equal(wait_for_exit(app, DEADLINE), 0);
    assert_null(strstr(text_of(app, OUT), "ran"));
}

/* ---- How it ends ------------------------------------------------------------------- */

static void
interrupt_reaches_what_runs_in_a_copy(void)
{
    struct process *app = start_app(STUCK_APP);
    struct process *code =
        start_process(.argv = FROZEN(pid_of(app), "-c",
                                     "print('runs', flush=True)\nwhile 1: pass"));
    wait_for_text(code, OUT, "runs\n", DEADLINE);
    send_signal(code, SIGINT);
    wait_for_text(code, ERR, "KeyboardInterrupt\n", DEADLINE);
    assert_int_equal(wait_for_exit(code, DEADLINE), 130);
    wait_until(has_no_copy, app, "the copy is gone", DEADLINE);
}

static void
copy_ends_with_its_client(void)
{
    struct process *app = start_app(APP);
    struct process *code =
        start_process(.argv = FROZEN(pid_of(app), "-c",
                                     "print('runs', flush=True)\nwhile 1: pass"));
    wait_for_text(code, OUT, "runs\n", DEADLINE);
    send_signal(code, SIGKILL);
    (void)wait_for_exit(code, DEADLINE);
    wait_until(has_no_copy, app, "the copy is gone", DEADLINE);
}

/* Whoever has made it looks after it without Python. */
static void
copy_ends_with_its_client_when_the_process_gets_stuck_meanwhile(void)
{
    require_copies();
    struct process *app = start_target(
        INSTALL("hang_timeout=60") "import ctypes, glob\n"
                                   "def has_copy():\n"
                                   "    try: return any(open(name).read() for name in\n"
                                   "                    "
                                   "glob.glob('/proc/self/task/*/children'))\n"
                                   "    except OSError: return False\n" READY
                                   "while not has_copy(): pass\n"
                                   "ctypes.PyDLL(None).getchar()\n");
    wait_until_ready(app);
    const char *endless = "import signal\n"
                          "signal.signal(signal.SIGINT, signal.SIG_IGN)\n"
                          "print('runs', flush=True)\nwhile 1: pass";
    struct process *code = start_process(.argv = FROZEN(pid_of(app), "-c", endless));
    wait_for_text(code, OUT, "runs\n", DEADLINE);
    send_signal(code, SIGKILL);
    (void)wait_for_exit(code, DEADLINE);
    wait_until(has_no_copy, app, "the copy is gone", DEADLINE);
    close_stdin(app);
}

static bool
is_gone(void *argument)
{
    return kill(*(const pid_t *)argument, 0) < 0;
}

static void
copy_ends_with_its_process(void)
{
    struct process *app = start_app(APP);
    struct process *console = start_frozen_console(app);
    pid_t copy = find_copy(app);
    send_signal(app, SIGKILL);
    wait_until(is_gone, &copy, "the copy is gone", DEADLINE);
    wait_for_text(console, OUT, "has ended before its console was left", DEADLINE);
    (void)wait_for_exit(app, DEADLINE);
    (void)wait_for_exit(console, DEADLINE);
}

static void
process_does_not_wait_for_who_looks_at_its_copy(void)
{
    struct process *app = start_app(APP);
    (void)start_frozen_console(app);
    pid_t copy = find_copy(app);
    close_stdin(app);
    assert_int_equal(wait_for_exit(app, DEADLINE), 0);
    wait_until(is_gone, &copy, "the copy is gone", DEADLINE);
}

static void
killed_copy_is_told_to_its_client(void)
{
    struct process *app = start_app(APP);
    struct process *console = start_frozen_console(app);
    (void)kill(find_copy(app), SIGKILL);
    wait_for_text(console, OUT, "manhole: the frozen copy has ended: it was killed",
                  DEADLINE);
    (void)wait_for_exit(console, DEADLINE);
    assert_string_equal(run_frozen(app, "print(1)"), "1\n");
}

/* ---- Refusals ---------------------------------------------------------------------- */

static void
third_copy_is_refused(void)
{
    struct process *app = start_app(APP);
    const char *err = NULL;
    struct process *first = start_frozen_console(app);
    (void)start_frozen_console(app);
    assert_int_equal(run_command(FROZEN(pid_of(app), "-c", "1"), NULL, NULL, &err), 5);
    assert_contains(err, "manhole: no frozen copy can be made: there are two");
    write_stdin(first, "exit()\n");
    assert_int_equal(wait_for_exit(first, DEADLINE), 0);
}

/* What is resident is a small file, mapped again and again. */
static void
large_process_is_copied_when_that_is_said_alone(void)
{
    const char *out = NULL;
    const char *err = NULL;
    struct process *app = start_app(
        INSTALL("") "import mmap, os, tempfile\n"
                    "size, populate = 64 << 20, 0x8000\n"
                    "file = tempfile.TemporaryFile(); file.truncate(size)\n"
                    "maps = [mmap.mmap(file.fileno(), size,\n"
                    "                  mmap.MAP_SHARED | populate, mmap.PROT_READ)\n"
                    "        for _ in range(66)]\n" READY STAY);
    const char *pid = pid_of(app);
    assert_int_equal(run_command(FROZEN(pid, "-c", "print(1)"), NULL, NULL, &err), 2);
    assert_contains(err, "GB in memory and would stand still for about ");
    assert_int_equal(run_command(CLI("--stacks", "--locals", pid), NULL, NULL, &err), 2);
    assert_contains(err, "; with --yes it is");
    assert_int_equal(
        run_command(FROZEN("--yes", pid, "-c", "print(1)"), NULL, &out, NULL), 0);
    assert_string_equal(out, "1\n");
}

static void
process_with_subinterpreters_is_refused(void)
{
    const char *err = NULL;
    struct process *app =
        start_app(INSTALL("") "try: import _interpreters as i\n"
                              "except ImportError: import _xxsubinterpreters as i\n"
                              "other = i.create()\n" READY STAY);
    assert_int_equal(run_command(FROZEN(pid_of(app), "-c", "1"), NULL, NULL, &err), 5);
    assert_contains(err, "subinterpreters");
}

static void
shell_of_commands_gives_no_copy(void)
{
    const char *err = NULL;
    struct process *app = start_app(TARGET("connection_handler='commands'"));
    assert_int_equal(run_command(FROZEN(pid_of(app), "-c", "1"), NULL, NULL, &err), 5);
    assert_contains(err, "nobody may run code here");
}

/* A console where none was asked for would run what is typed in the living process. */
static void
older_manhole_gets_not_a_byte(void)
{
    const char *err = NULL;
    struct process *server = start_target(
        "import os, socket\n"
        "listener = socket.socket(socket.AF_UNIX)\n"
        "listener.bind(f'/tmp/manhole-{os.getpid()}'); listener.listen()\n"
        "print('ready', flush=True)\n" ACCEPT "os.unlink(f'/tmp/manhole-{os.getpid()}')\n"
        "client.sendall(b'Python 3.11\\n')\n"
        "print('got', client.recv(100), flush=True)\n" STAY);
    wait_until_ready(server);
    int status = run_command(FROZEN(pid_of(server), "-c", "print(1)"), NULL, NULL, &err);
    assert_int_equal(status, 5);
    assert_contains(err, "makes no frozen copies");
    wait_for_text(server, OUT, "got b''\n", DEADLINE);
}

/* Who did what is found there afterwards, as with a prompt in the process itself. */
static void
log_has_what_is_run_in_a_copy(void)
{
    struct process *apps[] = {start_app(APP), start_app(STUCK_APP)};
    for (size_t i = 0; i < 2; i++) {
        (void)run_frozen(apps[i], "goods = 'in a program'");
        wait_for_text(apps[i], ERR, ": \"goods = 'in a program'\"\n", DEADLINE);
        struct process *console = start_frozen_console(apps[i]);
        const char *copy = format_text("Manhole[%d:", (int)find_copy(apps[i]));
        write_stdin(console, "goods = 'typed'\n");
        wait_for_text(apps[i], ERR, copy, DEADLINE);
        wait_for_text(apps[i], ERR, ": \"goods = 'typed'\"\n", DEADLINE);
        write_stdin(console, "exit()\n");
        wait_for_text(apps[i], ERR, "The frozen copy has ended\n", DEADLINE);
    }
}

enum { PASTED_LINES = 2000 };

static bool
are_all_logged(void *argument)
{
    const char *count = evaluate(argument, "open('log').read().count(\": 'line = \")");
    return strcmp(count, format_text("%d", PASTED_LINES)) == 0;
}

/* More than there is room for between two looks of the process. */
static void
log_has_all_that_is_pasted_into_a_copy(void)
{
    struct process *app = start_app("import os\n" INSTALL(
        "verbose_destination=os.open('log', os.O_CREAT | os.O_WRONLY)") EVALUATE);
    char *lines = malloc((size_t)PASTED_LINES * 20);
    size_t length = 0;
    assert_non_null(lines);
    for (int i = 0; i < PASTED_LINES; i++) {
        length += (size_t)snprintf(lines + length, 20, "line = %d\n", i);
    }
    int status = run_command(FROZEN(pid_of(app)), lines, NULL, NULL);
    free(lines);
    assert_int_equal(status, 0);
    wait_until(are_all_logged, app, "all lines are in the log", DEADLINE);
}

static void
frozen_stands_with_a_console_or_code_alone(void)
{
    const char *err = NULL;
    assert_int_equal(run_command(FROZEN("--stacks", "1"), NULL, NULL, &err), 2);
    assert_contains(err, "argument --frozen: only with a console, -c or -f");
    assert_int_equal(run_command(CLI("--yes", "1"), NULL, NULL, &err), 2);
    assert_contains(err, "argument --yes: only with --frozen, --locals, --memory or "
                         "--attach");
    assert_int_equal(run_command(CLI("--locals", "--brief", "1"), NULL, NULL, &err), 2);
    assert_contains(err, "argument --locals: only with --stacks, and not with --brief");
}

int
main(void)
{
    static const struct test_case tests[] = {
        TEST(copy_shows_frames_and_keeps_what_is_done_to_itself),
        TEST(copy_comes_while_python_is_stuck_and_harms_nothing),
        TEST(main_thread_is_meant_where_one_without_a_frame_has_the_gil),
        TEST(thread_that_threading_does_not_know_is_not_the_main_one),
        TEST(copy_is_offered_when_a_statement_cannot_begin),
        TEST(console_says_whose_copy_it_is),
        TEST(frames_of_a_copy_are_debugged_and_errors_say_what_it_is),
        TEST(code_in_a_copy_has_its_arguments_and_its_status),
        TEST(copy_traces_memory_and_is_called_back_by_c),
        TEST(list_grows_in_a_copy_behind_a_filter_of_the_process),
        TEST(copy_reaches_no_file_no_process_and_no_memory_of_others),
        TEST(shared_memory_does_not_grow_by_being_copied),
        TEST(what_a_copy_shares_cannot_be_made_writable),
        TEST(copy_of_a_real_time_process_is_an_ordinary_one),
        TEST(copy_is_refused_whose_mappings_cannot_be_read),
        TEST(copy_sends_nothing_to_a_socket_by_its_name),
        TEST(terminal_that_a_copy_opens_does_not_become_its_own),
        TEST(process_sees_nothing_of_its_copies),
        TEST(copy_goes_first_where_memory_is_short_without_a_descriptor_too),
        TEST(stacks_tell_what_variables_hold_whatever_their_repr_does),
        TEST(interrupt_reaches_what_runs_in_a_copy),
        TEST(copy_ends_with_its_client),
        TEST(copy_ends_with_its_client_when_the_process_gets_stuck_meanwhile),
        TEST(copy_ends_with_its_process),
        TEST(process_does_not_wait_for_who_looks_at_its_copy),
        TEST(killed_copy_is_told_to_its_client),
        TEST(third_copy_is_refused),
        TEST(large_process_is_copied_when_that_is_said_alone),
        TEST(process_with_subinterpreters_is_refused),
        TEST(shell_of_commands_gives_no_copy),
        TEST(older_manhole_gets_not_a_byte),
        TEST(log_has_what_is_run_in_a_copy),
        TEST(log_has_all_that_is_pasted_into_a_copy),
        TEST(frozen_stands_with_a_console_or_code_alone),
    };
    return RUN_TESTS(tests);
}
