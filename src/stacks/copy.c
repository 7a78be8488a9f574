/* Copy: a frozen copy of the process writes down its Python stacks.
 * Runs on:  native threads of ours, DETACHED; the copy runs what is marked COPY_ONLY.
 * Touches:  a memory file, one real-time signal (faulthandler's), the spare descriptor.
 * A copy of the process is made by a raw clone: no SIGCHLD, no fork handlers, only the calling
 * thread lives in it. There faulthandler walks all frames without the GIL. Nothing moves in the
 * copy, and a copy that dies of what it reads is one copy less: the process never walks its own
 * living frames. The copy writes into the memory file, and the process reads that. Where it may not
 * have such a file, as behind a seccomp filter, a pipe does.
 *
 * How a copy is made.
 *
 *   1. take_snapshot() makes one copy at a time, under snapshot_lock. One that dies is made again
 *      after a pause, so that the thread that was in the middle of a change can get on. Where three
 *      die at the same thread, the next leaves out its frames. If all die the longest text is
 *      taken.
 *   2. try_copy() opens the memory file; where the process has no descriptor left, the spare one is
 *      closed for it. A pipe takes two, and holds 64 KiB: all that is written is read as it comes,
 *      or the copy would wait for room and be killed for that. Then a raw clone without any flag:
 *      the child shares nothing, tells its parent nothing when it ends (exit signal 0), and is seen
 *      by waitpid(__WALL) alone.
 *   3. copy_main(), in the copy, sees to it that it dies silently, whatever it dies of: with its
 *      parent, without a core, its fatal signals at their default. The memory file becomes its
 *      descriptor 2, for that is where faulthandler was told to write at install().
 *   4. describe_copy() has faulthandler's handler run, by a tgkill to itself: glibc's raise()
 *      would use the thread id that it remembers, the parent's. Then come the facts that
 *      faulthandler does not tell.
 *   5. reap_copy() reads for as long as something comes, then kills.
 *
 * Not fork(): it runs handlers, and waits for locks of the C library that another thread may hold.
 * Not a walk in the process itself: the threads that run would change what is read, and it is the
 * process that would die of it. Not Py_FatalError() in a copy that a seccomp filter keeps from
 * doing harm, which would need no signal and nothing at install: it is as reliable, but writes
 * once, so each hundred threads would take a copy of their own, and without a GIL it tells one
 * thread only.
 *
 * What runs in the copy, marked COPY_ONLY, lives by these rules:
 *
 *   - No lock is waited for and no memory asked for: whoever has the lock is not in the copy.
 *   - Nothing that Python owns is changed but what faulthandler is to find otherwise: the list of
 *     thread states, a thread's frames. The copy is thrown away.
 *   - What is read may be half changed, for the process was stopped anywhere. Dying of it is
 *     allowed, so the stacks come first, then the facts, then what is likeliest to die.
 *   - The C library believes to be in the thread that made the copy, of the process. What asks for
 *     its own thread or process goes to the kernel.
 */
#ifndef MANHOLE_STACKS_COPY_C
#define MANHOLE_STACKS_COPY_C

#include "../base/compat.c"
#include "../base/state.c"
#include "../base/locks.c"
#include "../base/basics.c"
#include "memory.c"

enum {
    /* For a frozen copy that writes nothing more, before it is killed; and copies made until one
     * does not die. Beside threads that run Python flat out about every third dies on 3.13. */
    SNAPSHOT_TIMEOUT_MS = 1000,
    SNAPSHOT_ATTEMPTS = 12,
    /* So many at the same thread in a row, and the next does without its frames. */
    DEATHS_AT_ONE_THREAD = 3,
    /* Before the second copy; twice that before the third. */
    SNAPSHOT_PAUSE_MS = 3,
    /* As many threads as faulthandler shows (its MAX_NTHREADS). */
    THREADS_AT_ONCE = 100,
};

/* The copy's line between faulthandler's text and the facts of each thread. */
static const char stacks_complete[] = "@@\n";

/* Its line before a part of faulthandler's whose first thread is not to be shown. */
static const char first_is_hidden[] = "&\n";

/* Runs in the copy alone: ASYNC_SAFE, and raw system calls where glibc would ask its own
 * record of the thread, which is stale after a raw clone. May read any memory; may die.
 */
#define COPY_ONLY ASYNC_SAFE

/* How a snapshot ended. */
enum copy_result {
    COPY_DONE,
    COPY_DIED,    /* or hung, and was killed */
    COPY_NO_ROOM, /* it could bring the OOM killer */
    COPY_REFUSED, /* the kernel made none: errno */
};

struct thread_facts {
    unsigned long ident;
    unsigned long native_id; /* 0: not seen */
    PyObject *name;          /* borrowed str, NULL: not seen */
};

/* Puts a character as UTF-8. Returns how many bytes that are. */
static size_t
put_utf8(char bytes[4], unsigned long character)
{
    /* The bits that say in the first byte how many follow, which have six bits each. */
    static const unsigned char first[] = {0x00, 0xC0, 0xE0, 0xF0};
    const unsigned more = character < 0x80      ? 0
                          : character < 0x800   ? 1
                          : character < 0x10000 ? 2
                                                : 3;
    bytes[0] = (char)(first[more] | (character >> (6 * more)));
    for (unsigned i = 1; i <= more; i++) {
        bytes[i] = (char)(0x80 | ((character >> (6 * (more - i))) & 0x3F));
    }
    return more + 1;
}

static bool
is_surrogate(unsigned long character)
{
    return character >= 0xD800 && character <= 0xDFFF;
}

/* Writes "@ IDENT NATIVE_ID HOLDS_GIL NAME"; in the name '?' for what would end the line, could be
 * an order to a terminal, or has no UTF-8. */
COPY_ONLY static void
write_facts(int fd, const struct thread_facts *facts, bool holds_gil)
{
    char piece[256];
    size_t length = (size_t)snprintf(piece, sizeof(piece), "@ %lu %lu %d ", facts->ident,
                                     facts->native_id, holds_gil);
    Py_ssize_t name_length = facts->name == NULL ? 0 : PyUnicode_GET_LENGTH(facts->name);
    for (Py_ssize_t i = 0; i < name_length; i++) {
        Py_UCS4 character = PyUnicode_READ_CHAR(facts->name, i);
        if (character < ' ' || (character >= 0x7f && character < 0xa0) ||
            is_surrogate(character)) {
            character = '?';
        }
        if (length + 4 >= sizeof(piece)) {
            (void)!write(fd, piece, length);
            length = 0;
        }
        length += put_utf8(piece + length, character);
    }
    piece[length++] = '\n';
    (void)!write(fd, piece, length);
}

/* The value of a str key in a dict, without hashing. Returns a borrowed reference or
 * NULL. */
COPY_ONLY static PyObject *
find_item(PyObject *dict, const char *key)
{
    PyObject *name = NULL;  /* borrowed */
    PyObject *value = NULL; /* borrowed */
    Py_ssize_t position = 0;
    while (PyDict_Next(dict, &position, &name, &value)) {
        if (PyUnicode_CheckExact(name) &&
            PyUnicode_CompareWithASCIIString(name, key) == 0) {
            return value;
        }
    }
    return NULL;
}

/* Notes name and native id of a thread, which find() finds in holder. Only beside its ident: what
 * does not have that may be anything. */
COPY_ONLY static void
note_facts(struct thread_facts *facts, PyObject *find(PyObject *, const char *),
           PyObject *holder)
{
    PyObject *ident = find(holder, "_ident"); /* borrowed, and so are these */
    PyObject *native_id = find(holder, "_native_id");
    PyObject *name = find(holder, "_name");
    if (ident == NULL || !PyLong_CheckExact(ident) ||
        PyLong_AsUnsignedLongMask(ident) != facts->ident) {
        return;
    }
    if (native_id != NULL && PyLong_CheckExact(native_id)) {
        facts->native_id = PyLong_AsUnsignedLongMask(native_id);
    }
    if (name != NULL && PyUnicode_CheckExact(name)) {
        facts->name = name;
    }
}

/* Of what a threading.Thread refers to, for the dict that its attributes may be in. */
COPY_ONLY static int
visit_thread(PyObject *object, void *argument)
{
    if (PyDict_CheckExact(object)) {
        note_facts(argument, find_item, object);
    }
    return 0;
}

/* What threading knows of a thread: its entry in threading._active. */
COPY_ONLY static void
find_thread_object(struct thread_facts *facts)
{
    PyObject *threading =
        find_item(snapshot.modules, "threading"); /* borrowed, as all here */
    if (threading == NULL || !PyModule_Check(threading)) {
        return;
    }
    PyObject *active = find_item(PyModule_GetDict(threading), "_active");
    if (active == NULL || !PyDict_Check(active)) {
        return;
    }

    PyObject *ident = NULL;
    PyObject *thread = NULL;
    Py_ssize_t position = 0;
    while (PyDict_Next(active, &position, &ident, &thread)) {
        if (PyLong_CheckExact(ident) &&
            PyLong_AsUnsignedLongMask(ident) == facts->ident &&
            Py_TYPE(thread)->tp_traverse != NULL) {
            note_facts(facts, read_attribute, thread);
            (void)Py_TYPE(thread)->tp_traverse(thread, visit_thread, facts);
            return;
        }
    }
}

/* Idents of threads at whose frames copies have died: the next ones leave these out. Of a thread
 * that is stuck while it makes a frame, say, each copy dies, and all threads behind it in the list
 * would stay unknown. Under snapshot_lock. */
static struct {
    unsigned long idents[SNAPSHOT_ATTEMPTS];
    size_t count;
} unreadable;

COPY_ONLY static bool
is_unreadable(unsigned long ident)
{
    for (size_t i = 0; i < unreadable.count; i++) {
        if (unreadable.idents[i] == ident) {
            return true;
        }
    }
    return false;
}

COPY_ONLY static void
forget_unreadable(void)
{
    PyInterpreterState *interpreter = PyInterpreterState_Head();
    for (; interpreter != NULL; interpreter = PyInterpreterState_Next(interpreter)) {
        PyThreadState *tstate = PyInterpreterState_ThreadHead(interpreter);
        for (; tstate != NULL; tstate = tstate->next) {
            if (is_unreadable(tstate->thread_id)) {
                forget_frames(tstate);
            }
        }
    }
}

/* The thread that faulthandler was at when a copy came no further; 0: none. */
static unsigned long
last_thread(const struct text *raw)
{
    static const char mark[] = "hread 0x";
    const size_t length = sizeof(mark) - 1;
    unsigned long ident = 0;
    for (size_t i = 0; i + length < raw->length; i++) {
        if (memcmp(raw->bytes + i, mark, length) == 0) {
            char digits[17] = "";
            size_t rest = raw->length - i - length;
            memcpy(digits, raw->bytes + i + length,
                   rest < sizeof(digits) ? rest : sizeof(digits) - 1);
            ident = strtoul(digits, NULL, 16);
        }
    }
    return ident;
}

/* Takes threads that have just been begun, and have no id yet, off the lists: from CPython 3.14 on
 * faulthandler takes them for freed, and stops there. That leaves the heads. */
COPY_ONLY static void
leave_out_new_threads(void)
{
    PyInterpreterState *interpreter = PyInterpreterState_Head();
    for (; interpreter != NULL; interpreter = PyInterpreterState_Next(interpreter)) {
        PyThreadState *tstate = PyInterpreterState_ThreadHead(interpreter);
        for (; tstate != NULL; tstate = tstate->next) {
            while (tstate->next != NULL && tstate->next->thread_id == 0) {
                tstate->next = tstate->next->next;
            }
        }
    }
}

/* Has faulthandler write the stacks of an interpreter. It goes through no more than
 * THREADS_AT_ONCE, and through the list of the main interpreter, for this thread has no state: it
 * is asked again and again, with the next ones linked behind the head of that list, which it so
 * repeats. A head without an id has this thread's meanwhile, and is not shown. */
COPY_ONLY static void
write_stacks(int fd, PyInterpreterState *interpreter)
{
    PyThreadState *head = PyInterpreterState_ThreadHead(PyInterpreterState_Main());
    PyThreadState *behind_head = head == NULL ? NULL : head->next;
    const bool is_main = interpreter == PyInterpreterState_Main();
    const bool is_new = head != NULL && head->thread_id == 0;
    bool is_shown = is_main && !is_new;
    PyThreadState *next =
        is_main ? behind_head : PyInterpreterState_ThreadHead(interpreter);
    if (next != NULL && next->thread_id == 0) {
        next = next->next;
    }
    if (is_new) {
        head->thread_id = (unsigned long)pthread_self();
    }
    do {
        if (head != NULL) {
            head->next = next;
        }
        if (!is_shown) {
            (void)!write(fd, first_is_hidden, sizeof(first_is_hidden) - 1);
        }
        is_shown = false;
        (void)syscall(SYS_tgkill, (long)syscall(SYS_getpid), (long)syscall(SYS_gettid),
                      (long)snapshot.signum);
        for (int i = 1; next != NULL && i < THREADS_AT_ONCE; i++) {
            next = next->next;
        }
    } while (next != NULL);
    if (head != NULL) {
        head->next = behind_head;
        head->thread_id = is_new ? 0 : head->thread_id;
    }
}

/* The stacks of all interpreters, ours first; before those of each other one a line "% ID". */
COPY_ONLY static void
write_all_stacks(int fd)
{
    write_stacks(fd, snapshot.interpreter);
    for (PyInterpreterState *other = PyInterpreterState_Head(); other != NULL;
         other = PyInterpreterState_Next(other)) {
        char line[40];
        int length = snprintf(line, sizeof(line), "%% %lld\n",
                              (long long)PyInterpreterState_GetID(other));
        if (other != snapshot.interpreter) {
            (void)!write(fd, line, (size_t)length);
            write_stacks(fd, other);
        }
    }
}

/* Whether the kernel knows such a thread of a process. After a fork CPython's record of the thread
 * that has forked is the parent's, before 3.14; the kernel's number of it is the process's. */
ASYNC_SAFE static bool
is_task(pid_t pid, unsigned long native_id)
{
    return syscall(SYS_tgkill, (long)pid, (long)native_id, 0L) == 0 || errno != ESRCH;
}

/* Has the copy write which threads it was told to leave out. */
COPY_ONLY static void
write_unreadable(int fd)
{
    for (size_t i = 0; i < unreadable.count; i++) {
        char line[40];
        int length = snprintf(line, sizeof(line), "? %lu\n", unreadable.idents[i]);
        (void)!write(fd, line, (size_t)length);
    }
}

/* A line for each thread of an interpreter. */
COPY_ONLY static void
write_all_facts(int fd, PyInterpreterState *interpreter)
{
    const pid_t pid = atomic_load(&manhole.owner);
    for (PyThreadState *tstate = PyInterpreterState_ThreadHead(interpreter);
         tstate != NULL; tstate = tstate->next) {
        struct thread_facts facts = {.ident = tstate->thread_id,
                                     .native_id = native_id_of(tstate)};
        if (facts.ident == 0) {
            continue;
        }
        find_thread_object(&facts);
        if (!is_task(pid, facts.native_id)) {
            bool oldest = tstate->next == NULL && interpreter == snapshot.interpreter;
            facts.native_id = oldest ? (unsigned long)pid : 0;
        }
        write_facts(fd, &facts, holds_gil(tstate));
    }
}

/* The stacks first, for they matter most; then a line of facts for each thread; last, on
 * older CPythons, the question that aborts when nobody holds the GIL. */
COPY_ONLY static void
describe_copy(int fd)
{
    forget_unreadable();
    leave_out_new_threads();
    write_all_stacks(fd);
    (void)!write(fd, stacks_complete, sizeof(stacks_complete) - 1);

    write_unreadable(fd);
    write_all_facts(fd, snapshot.interpreter);
    for (PyInterpreterState *other = PyInterpreterState_Head(); other != NULL;
         other = PyInterpreterState_Next(other)) {
        if (other != snapshot.interpreter) {
            write_all_facts(fd, other);
        }
    }
    ask_gil_holder(fd);
}

/* Body of the copy. Whatever kills it, it dies without a word: no core, no handler, no
 * stderr. */
COPY_ONLY static void
copy_main(int fd)
{
    static const int fatal[] = {SIGSEGV, SIGBUS,  SIGFPE, SIGILL,
                                SIGABRT, SIGTRAP, SIGSYS};
    const struct rlimit no_core = {0};
    struct rlimit file_size;
    struct sigaction action = {.sa_handler = SIG_DFL};
    sigset_t own;

    (void)prctl(PR_SET_PDEATHSIG, SIGKILL);
    (void)prctl(PR_SET_DUMPABLE, 0);
    (void)setrlimit(RLIMIT_CORE, &no_core);
    if (getrlimit(RLIMIT_FSIZE, &file_size) == 0) {
        file_size.rlim_cur = file_size.rlim_max;
        (void)setrlimit(RLIMIT_FSIZE, &file_size);
    }

    /* The table of descriptors is a copy, too: nobody else sees it. */
    (void)dup2(fd, STDERR_FILENO);

    for (size_t i = 0; i < Py_ARRAY_LENGTH(fatal); i++) {
        (void)sigaction(fatal[i], &action, NULL);
    }
    /* None but these: a handler of the application's is not to run here. */
    (void)sigfillset(&own);
    (void)sigdelset(&own, snapshot.signum);
    for (size_t i = 0; i < Py_ARRAY_LENGTH(fatal); i++) {
        (void)sigdelset(&own, fatal[i]);
    }
    (void)pthread_sigmask(SIG_SETMASK, &own, NULL);

    describe_copy(STDERR_FILENO);
    (void)syscall(SYS_exit_group, 0);
}

/* Appends what a copy has written since, in a file behind the offset. Returns how much that is. */
DETACHED static off_t
append_news(struct text *text, int fd, off_t offset)
{
    char piece[4096];
    off_t total = 0;
    ssize_t length = 0;
    do {
        length = pread(fd, piece, sizeof(piece), offset + total);
        if (length < 0 && errno == ESPIPE) {
            length = read(fd, piece, sizeof(piece));
        }
        length = length < 0 ? 0 : length;
        append_bytes(text, piece, (size_t)length);
        total += length;
    } while (length > 0);
    return total;
}

/* Appends what the copy writes, as long as it does. How it ended does not matter. */
DETACHED static void
reap_copy(pid_t copy, struct text *raw, int fd)
{
    int64_t deadline_ms = monotonic_ms() + SNAPSHOT_TIMEOUT_MS;
    off_t size = 0;
    int status = 0;
    pid_t reaped = 0;
    while (reaped == 0) {
        reaped = waitpid(copy, &status, __WALL | WNOHANG);
        const off_t more = append_news(raw, fd, size);
        if (more > 0) {
            size += more;
            deadline_ms = monotonic_ms() + SNAPSHOT_TIMEOUT_MS;
        }
        if (reaped == 0 && ms_until(deadline_ms) == 0) {
            (void)kill(copy, SIGKILL);
            do {
                reaped = waitpid(copy, &status, __WALL);
            } while (reaped < 0 && errno == EINTR);
        }
        else if (reaped == 0) {
            (void)poll(NULL, 0, 1);
        }
    }
}

/* The signal is still faulthandler's: the application may have taken it since. */
static bool
is_snapshot_ready(void)
{
    struct sigaction current;
    return snapshot.signum != 0 && sigaction(snapshot.signum, NULL, &current) == 0 &&
           current.sa_handler == snapshot.handler;
}

/* A file in memory for a copy to write into; -1 with errno. Where the process has no descriptor
 * left the spare one makes room for it. */
static int
open_memory_file(void)
{
    int fd = memfd_create("manhole", MFD_CLOEXEC);
    if (fd < 0 && (errno == EMFILE || errno == ENFILE)) {
        close_kept(&snapshot.spare);
        fd = memfd_create("manhole", MFD_CLOEXEC);
    }
    return fd;
}

/* A pipe in place of that. Returns its end for the copy, the other in *reading; -1 with errno. */
static int
open_pipe(int *reading)
{
    int ends[2] = {-1, -1};
    if (pipe2(ends, O_CLOEXEC) == 0) {
        (void)fcntl(ends[0], F_SETFL, O_NONBLOCK); /* the copy's end stays as it is */
    }
    *reading = ends[0];
    return ends[1];
}

/* Makes one copy and appends what it wrote. */
DETACHED static enum copy_result
try_copy(struct text *raw)
{
    if (!is_snapshot_ready()) {
        errno = EBUSY;
        return COPY_REFUSED;
    }
    OWNED_FD int pipe_end = -1; /* for reading */
    OWNED_FD int memory_fd = open_memory_file();
    OWNED_FD int copy_end =
        memory_fd < 0 && errno != EMFILE && errno != ENFILE ? open_pipe(&pipe_end) : -1;
    const int writing = memory_fd < 0 ? copy_end : memory_fd;
    if (writing < 0) {
        return COPY_REFUSED;
    }

    long copy = syscall(SYS_clone, 0UL, NULL, NULL, NULL, 0UL);
    if (copy == 0) {
        copy_main(writing);
    }
    if (copy < 0) {
        return COPY_REFUSED;
    }

    reap_copy((pid_t)copy, raw, memory_fd < 0 ? pipe_end : memory_fd);
    return raw->length > 0 && memmem(raw->bytes, raw->length, stacks_complete,
                                     sizeof(stacks_complete) - 1) != NULL
               ? COPY_DONE
               : COPY_DIED;
}

/* Fills raw with what a copy wrote, the best of a few. Copies are made one at a time. */
DETACHED static enum copy_result
take_snapshot(struct text *raw)
{
    enum copy_result result = is_memory_short() ? COPY_NO_ROOM : COPY_DIED;
    unsigned long died_at =
        0; /* the thread that the last copies came to, so many in a row */
    int deaths = 0;
    int saved_errno = 0;

    lock_leaf(&snapshot_lock);
    unreadable.count = 0;
    for (int attempt = 0; attempt < SNAPSHOT_ATTEMPTS && result == COPY_DIED; attempt++) {
        struct text tried = {0};
        /* The thread that was caught in the middle of a change may not run just now. */
        (void)poll(NULL, 0, attempt * SNAPSHOT_PAUSE_MS);
        result = try_copy(&tried);
        saved_errno = errno;

        if (result == COPY_DIED) {
            const unsigned long ident = last_thread(&tried);
            deaths = ident == died_at ? deaths + 1 : 1;
            died_at = ident;
            if (ident != 0 && deaths == DEATHS_AT_ONE_THREAD) { /* not by chance */
                unreadable.idents[unreadable.count++] = ident;
            }
        }

        if (result == COPY_DONE || tried.length > raw->length) {
            struct text worse = *raw;
            *raw = tried;
            tried = worse;
        }
        free_text(&tried);
    }
    unlock(&snapshot_lock);
    errno = saved_errno;
    return result;
}

/* Has a descriptor to spare for the next copy, if there may be one: not when a session ends after
 * release(). */
static void
open_spare(void)
{
    if (snapshot.signum != 0 && kept_number(&snapshot.spare) < 0) {
        keep_fd(&snapshot.spare, socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0));
    }
}

/* Lets a session have the spare descriptor, to import and to read sources with, when it can get no
 * other. Not while a copy is made, which may last. */
static void
lend_spare(int fd)
{
    int other = fcntl(fd, F_DUPFD_CLOEXEC, 0);
    if (other >= 0) {
        (void)close(other);
    }
    else if (pthread_mutex_trylock(&snapshot_lock) == 0) {
        close_kept(&snapshot.spare);
        unlock(&snapshot_lock);
    }
}

static void
take_spare_back(void)
{
    if (pthread_mutex_trylock(&snapshot_lock) == 0) {
        open_spare();
        unlock(&snapshot_lock);
    }
}

#endif /* MANHOLE_STACKS_COPY_C */
