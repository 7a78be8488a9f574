/* Snapshot: the stacks of a process whose interpreter does not answer.
 * Runs on:  native threads of ours, DETACHED; the frozen copy runs what is marked COPY_ONLY.
 * Touches:  a memory file, one real-time signal (faulthandler's), /proc/self/task.
 * A copy of the process is made by a raw clone: no SIGCHLD, no fork handlers, only the calling
 * thread lives in it. There faulthandler walks all frames without the GIL. Nothing moves in the
 * copy, and a copy that dies of what it reads is one copy less: the process never walks its own
 * living frames. The copy writes into the memory file, the process reads it and tells the client.
 */
#ifndef MANHOLE_STACKS_SNAPSHOT_C
#define MANHOLE_STACKS_SNAPSHOT_C

#include "../base/compat.c"
#include "../base/state.c"
#include "../base/locks.c"
#include "../base/basics.c"

/* The copy's line between faulthandler's text and the facts of each thread. */
static const char stacks_complete[] = "@@\n";

/* And its line before a part of faulthandler's whose first thread is not to be shown. */
static const char first_is_hidden[] = "&\n";

/* Runs in the copy alone: ASYNC_SAFE, and raw system calls where glibc would ask its own
 * record of the thread, which is stale after a raw clone. May read any memory; may die.
 */
#define COPY_ONLY ASYNC_SAFE

/* How a snapshot ended. */
enum copy_result {
    COPY_DONE,
    COPY_DIED,    /* or hung, and was killed */
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
    size_t count = 0;
    if (character < 0x80) {
        bytes[count++] = (char)character;
    }
    else if (character < 0x800) {
        bytes[count++] = (char)(0xC0 | (character >> 6));
        bytes[count++] = (char)(0x80 | (character & 0x3F));
    }
    else if (character < 0x10000) {
        bytes[count++] = (char)(0xE0 | (character >> 12));
        bytes[count++] = (char)(0x80 | ((character >> 6) & 0x3F));
        bytes[count++] = (char)(0x80 | (character & 0x3F));
    }
    else {
        bytes[count++] = (char)(0xF0 | ((character >> 18) & 0x07));
        bytes[count++] = (char)(0x80 | ((character >> 12) & 0x3F));
        bytes[count++] = (char)(0x80 | ((character >> 6) & 0x3F));
        bytes[count++] = (char)(0x80 | (character & 0x3F));
    }
    return count;
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

/* Takes name and native id of a thread, which find() finds in holder. Only beside its ident: what
 * does not have that may be anything. */
COPY_ONLY static void
take_facts(struct thread_facts *facts, PyObject *find(PyObject *, const char *),
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
        take_facts(argument, find_item, object);
    }
    return 0;
}

/* What threading knows of a thread: its entry in threading._active. */
COPY_ONLY static void
find_thread_object(struct thread_facts *facts)
{
    PyObject *threading = find_item(snapshot.modules, "threading"); /* borrowed */
    PyObject *active = NULL;                                        /* borrowed */
    PyObject *ident = NULL;                                         /* borrowed */
    PyObject *thread = NULL;                                        /* borrowed */
    Py_ssize_t position = 0;
    if (threading != NULL && PyModule_Check(threading)) {
        active = find_item(PyModule_GetDict(threading), "_active");
    }
    if (active == NULL || !PyDict_Check(active)) {
        return;
    }
    while (PyDict_Next(active, &position, &ident, &thread)) {
        if (PyLong_CheckExact(ident) &&
            PyLong_AsUnsignedLongMask(ident) == facts->ident &&
            Py_TYPE(thread)->tp_traverse != NULL) {
            take_facts(facts, read_attribute, thread);
            (void)Py_TYPE(thread)->tp_traverse(thread, visit_thread, facts);
            return;
        }
    }
}

/* Has faulthandler write the stacks. It goes through no more than THREADS_AT_ONCE, and through the
 * list of the main interpreter, for this thread has no state: it is asked again and again, with the
 * next ones linked behind the head of that list, which it so repeats. */
COPY_ONLY static void
write_stacks(int fd)
{
    PyThreadState *head = PyInterpreterState_ThreadHead(PyInterpreterState_Main());
    PyThreadState *behind_head = head == NULL ? NULL : head->next;
    PyThreadState *next = snapshot.interpreter == PyInterpreterState_Main()
                              ? behind_head
                              : PyInterpreterState_ThreadHead(snapshot.interpreter);
    bool is_shown = next == behind_head;
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
    }
}

/* Whether the kernel knows such a thread of a process. After a fork CPython's record of the thread
 * that has forked is the parent's, before 3.14; the kernel's number of it is the process's. */
ASYNC_SAFE static bool
is_task(pid_t pid, unsigned long native_id)
{
    return syscall(SYS_tgkill, (long)pid, (long)native_id, 0L) == 0 || errno != ESRCH;
}

/* The stacks first, for they matter most; then a line of facts for each thread; last, on
 * older CPythons, the question that aborts when nobody holds the GIL. */
COPY_ONLY static void
describe_copy(int fd)
{
    pid_t pid = atomic_load(&manhole.owner);
    write_stacks(fd);
    (void)!write(fd, stacks_complete, sizeof(stacks_complete) - 1);
    for (PyThreadState *tstate = PyInterpreterState_ThreadHead(snapshot.interpreter);
         tstate != NULL; tstate = tstate->next) {
        struct thread_facts facts = {.ident = tstate->thread_id,
                                     .native_id = native_id_of(tstate)};
        if (facts.ident != 0) {
            find_thread_object(&facts);
            if (!is_task(pid, facts.native_id)) {
                bool oldest = tstate->next == NULL;
                facts.native_id = oldest ? (unsigned long)pid : 0;
            }
            write_facts(fd, &facts, holds_gil(tstate));
        }
    }
    ask_gil_holder(fd);
}

/* Body of the copy. Whatever kills it, it dies without a word: no core, no handler, no
 * stderr. */
COPY_ONLY static void
copy_main(int memory_fd)
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
    (void)dup2(memory_fd,
               STDERR_FILENO); /* a copy of the table too: nobody else sees it */
    for (size_t i = 0; i < Py_ARRAY_LENGTH(fatal); i++) {
        (void)sigaction(fatal[i], &action, NULL);
    }
    (void)sigfillset(&own);
    (void)sigdelset(&own, snapshot.signum);
    for (size_t i = 0; i < Py_ARRAY_LENGTH(fatal); i++) {
        (void)sigdelset(&own, fatal[i]);
    }
    (void)pthread_sigmask(SIG_SETMASK, &own, NULL);
    describe_copy(STDERR_FILENO);
    (void)syscall(SYS_exit_group, 0);
}

/* Waits for the copy, as long as it writes. How it ended does not matter, only what it wrote. */
DETACHED static void
reap_copy(pid_t copy, int memory_fd)
{
    int64_t deadline_ms = monotonic_ms() + SNAPSHOT_TIMEOUT_MS;
    struct stat file = {0};
    off_t size = 0;
    int status = 0;
    pid_t reaped = 0;
    while (reaped == 0) {
        reaped = waitpid(copy, &status, __WALL | WNOHANG);
        if (fstat(memory_fd, &file) == 0 && file.st_size > size) {
            size = file.st_size;
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

/* Appends all that the file holds. */
DETACHED static void
append_file(struct text *text, int fd)
{
    char piece[4096];
    ssize_t length = 0;
    for (off_t offset = 0; (length = pread(fd, piece, sizeof(piece), offset)) > 0;
         offset += length) {
        append_bytes(text, piece, (size_t)length);
    }
}

/* Makes one copy and appends what it wrote. */
DETACHED static enum copy_result
try_copy(struct text *raw)
{
    const size_t marker = sizeof(stacks_complete) - 1;
    int memory_fd = -1; /* owned */
    long copy = -1;
    if (!is_snapshot_ready()) {
        errno = EBUSY;
        return COPY_REFUSED;
    }
    memory_fd = memfd_create("manhole", MFD_CLOEXEC);
    if (memory_fd < 0 && (errno == EMFILE || errno == ENFILE)) {
        close_kept(&snapshot.spare);
        memory_fd = memfd_create("manhole", MFD_CLOEXEC);
    }
    if (memory_fd < 0) {
        return COPY_REFUSED;
    }
    copy = syscall(SYS_clone, 0UL, NULL, NULL, NULL, 0UL);
    if (copy == 0) {
        copy_main(memory_fd);
    }
    if (copy < 0) {
        int error = errno;
        (void)close(memory_fd);
        errno = error;
        return COPY_REFUSED;
    }
    reap_copy((pid_t)copy, memory_fd);
    append_file(raw, memory_fd);
    (void)close(memory_fd);
    return raw->length > 0 &&
                   memmem(raw->bytes, raw->length, stacks_complete, marker) != NULL
               ? COPY_DONE
               : COPY_DIED;
}

/* Fills raw with what a copy wrote, the best of a few. Copies are made one at a time. */
DETACHED static enum copy_result
take_snapshot(struct text *raw)
{
    enum copy_result result = COPY_DIED;
    int saved_errno = 0;
    lock_leaf(&snapshot_lock);
    for (int attempt = 0; attempt < SNAPSHOT_ATTEMPTS && result == COPY_DIED; attempt++) {
        struct text tried = {0};
        /* The thread that was caught in the middle of a change may not run just now. */
        (void)poll(NULL, 0, attempt * SNAPSHOT_PAUSE_MS);
        result = try_copy(&tried);
        saved_errno = errno;
        if (tried.length > raw->length) {
            struct text shorter = *raw;
            *raw = tried;
            tried = shorter;
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
        keep_fd(&snapshot.spare, memfd_create("manhole", MFD_CLOEXEC));
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

/* A piece of text that somebody else owns. */
struct slice {
    const char *bytes;
    size_t length;
};

/* Takes a line, without its newline, off the front of rest. Returns false at the end. */
static bool
next_line(struct slice *rest, struct slice *line)
{
    const char *newline = NULL;
    if (rest->length == 0) {
        return false;
    }
    newline = memchr(rest->bytes, '\n', rest->length);
    line->bytes = rest->bytes;
    line->length = newline == NULL ? rest->length : (size_t)(newline - rest->bytes);
    rest->bytes += line->length + (newline != NULL);
    rest->length -= line->length + (newline != NULL);
    return true;
}

static bool
starts_with(const struct slice *slice, const char *prefix)
{
    size_t length = strlen(prefix);
    return slice->length >= length && memcmp(slice->bytes, prefix, length) == 0;
}

/* What is known of one thread of the copy. */
struct thread_note {
    unsigned long native_id; /* 0: unknown */
    bool holds_gil;
    struct slice name; /* empty: unknown */
};

/* Takes a number and the blank behind it off the front of text. Returns false for none. */
static bool
take_number(const char **text, unsigned long *number)
{
    char *end = NULL;
    if (**text < '0' || **text > '9') {
        return false;
    }
    *number = strtoul(*text, &end, 10);
    *text = *end == ' ' ? end + 1 : end;
    return true;
}

/* Reads a line of facts, "@ IDENT NATIVE_ID HOLDS_GIL NAME" or "! IDENT". Returns the ident, 0 for
 * any other line. */
static unsigned long
read_facts(const struct slice *line, struct thread_note *note)
{
    char copy[80]; /* the numbers end in it */
    const char *text = copy + 2;
    unsigned long ident = 0;
    unsigned long holder = 0;
    size_t length = line->length < sizeof(copy) ? line->length : sizeof(copy) - 1;
    memcpy(copy, line->bytes, length);
    copy[length] = '\0';
    if (starts_with(line, "! ") && take_number(&text, &ident)) {
        note->holds_gil = true;
        return ident;
    }
    if (starts_with(line, "@ ") && take_number(&text, &ident) &&
        take_number(&text, &note->native_id) && take_number(&text, &holder)) {
        note->holds_gil = holder != 0;
        note->name.bytes = line->bytes + (text - copy);
        note->name.length =
            strnlen(note->name.bytes, line->length - (size_t)(text - copy));
        return ident;
    }
    return 0;
}

/* What a copy says of one thread. */
struct copied_thread {
    unsigned long ident;
    bool has_stack;      /* else only its facts are there */
    bool shown;          /* its header is written */
    struct slice frames; /* lines of faulthandler's, innermost first */
    struct thread_note note;
};

/* What a copy wrote, read. It points into the text. */
struct copied {
    struct copied_thread *threads; /* owned */
    size_t count;
    size_t capacity;
    bool failed; /* there was no memory for all of them */
};

/* Returns a new one, or NULL without memory. */
static struct copied_thread *
add_copied_thread(struct copied *copied, unsigned long ident)
{
    if (copied->count == copied->capacity) {
        size_t capacity = copied->capacity == 0 ? 64 : 2 * copied->capacity;
        struct copied_thread *threads =
            realloc(copied->threads, capacity * sizeof(*threads));
        if (threads == NULL) {
            copied->failed = true;
            return NULL;
        }
        copied->threads = threads;
        copied->capacity = capacity;
    }
    copied->threads[copied->count] = (struct copied_thread){.ident = ident};
    return &copied->threads[copied->count++];
}

static struct copied_thread *
find_copied_thread(const struct copied *copied, unsigned long ident)
{
    for (size_t i = 0; i < copied->count; i++) {
        if (copied->threads[i].ident == ident) {
            return &copied->threads[i];
        }
    }
    return NULL;
}

/* Reads faulthandler's part. */
static void
read_stacks(struct copied *copied, struct slice stacks)
{
    struct copied_thread *thread = NULL;
    struct slice line;
    bool is_hidden = false;
    while (next_line(&stacks, &line)) {
        if (starts_with(&line, "&")) {
            is_hidden = true;
            thread = NULL;
        }
        else if (starts_with(&line, "Thread 0x") ||
                 starts_with(&line, "Current thread 0x")) {
            unsigned long ident = strtoul(memchr(line.bytes, '0', line.length), NULL, 16);
            thread = is_hidden || ident == 0 ? NULL : add_copied_thread(copied, ident);
            is_hidden = false;
            if (thread != NULL) {
                thread->has_stack = true;
                thread->frames.bytes = stacks.bytes;
            }
        }
        else if (thread != NULL && starts_with(&line, "  ")) {
            thread->frames.length =
                (size_t)(line.bytes + line.length - thread->frames.bytes);
        }
    }
}

/* Reads the part that the copy itself has written. */
static void
read_all_facts(struct copied *copied, struct slice facts)
{
    struct slice line;
    while (next_line(&facts, &line)) {
        struct thread_note note = {0};
        unsigned long ident = read_facts(&line, &note);
        struct copied_thread *thread =
            ident == 0 ? NULL : find_copied_thread(copied, ident);
        if (ident != 0 && thread == NULL) {
            thread = add_copied_thread(copied, ident);
        }
        if (thread == NULL) {
            continue;
        }
        note.holds_gil = note.holds_gil || thread->note.holds_gil;
        if (note.native_id == 0 && note.name.length == 0) {
            thread->note.holds_gil = note.holds_gil;
        }
        else {
            thread->note = note;
        }
    }
}

/* Reads what a copy wrote, which may break off anywhere. To be freed by free_copied(). */
static struct copied
read_copied(const struct text *raw)
{
    const size_t marker = sizeof(stacks_complete) - 1;
    struct copied copied = {0};
    struct slice stacks = {raw->bytes, raw->length};
    struct slice facts = {NULL, 0};
    const char *found = raw->length == 0
                            ? NULL
                            : memmem(raw->bytes, raw->length, stacks_complete, marker);
    if (found != NULL) {
        stacks.length = (size_t)(found - raw->bytes);
        facts.bytes = found + marker;
        facts.length = raw->length - stacks.length - marker;
    }
    read_stacks(&copied, stacks);
    read_all_facts(&copied, facts);
    return copied;
}

static void
free_copied(struct copied *copied)
{
    free(copied->threads);
    *copied = (struct copied){0};
}

/* Reads a small file of /proc into a string, up to the first newline. Quick: no disk is asked. */
static void
read_proc(const char *path, char *text, size_t size)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    ssize_t length = fd < 0 ? -1 : read(fd, text, size - 1);
    text[length < 0 ? 0 : length] = '\0';
    text[strcspn(text, "\n")] = '\0';
    if (fd >= 0) {
        (void)close(fd);
    }
}

static const char *
state_name(char state)
{
    static const struct {
        char state;
        const char *name;
    } rows[] = {{'R', "running"}, {'S', "sleeping"}, {'D', "disk wait"}, {'T', "stopped"},
                {'t', "traced"},  {'Z', "zombie"},   {'X', "dead"},      {'I', "idle"}};
    for (size_t i = 0; i < Py_ARRAY_LENGTH(rows); i++) {
        if (rows[i].state == state) {
            return rows[i].name;
        }
    }
    return "in an unknown state";
}

/* What the kernel has a thread do, in a word; NULL: it has none like this. */
static const char *
read_state(unsigned long native_id)
{
    char path[64];
    char stat[512];
    const char *after_name = NULL;
    (void)snprintf(path, sizeof(path), "/proc/self/task/%lu/stat", native_id);
    read_proc(path, stat, sizeof(stat));
    after_name = strrchr(stat, ')');
    return after_name == NULL || strlen(after_name) < 3 ? NULL
                                                        : state_name(after_name[2]);
}

/* Not so where nothing can be read: /proc is not mounted, or there is no descriptor left. */
static bool
is_thread_gone(unsigned long native_id)
{
    char path[64];
    (void)snprintf(path, sizeof(path), "/proc/self/task/%lu", native_id);
    return access(path, F_OK) < 0 && errno == ENOENT &&
           access("/proc/self/task", F_OK) == 0;
}

/* Appends "TID 12 (comm), sleeping in futex_wait_queue", as far as /proc shows it. */
DETACHED static void
append_kernel_state(struct text *text, unsigned long native_id)
{
    char path[64];
    char where[128];
    const char *state = NULL;
    append_format(text, "TID %lu", native_id);
    (void)snprintf(path, sizeof(path), "/proc/self/task/%lu/comm", native_id);
    read_proc(path, where, sizeof(where));
    if (where[0] != '\0') {
        append_format(text, " (%s)", where);
    }
    state = read_state(native_id);
    if (state == NULL) {
        append_string(text, is_thread_gone(native_id) ? ", gone"
                                                      : ", its state is not to be read");
        return;
    }
    append_format(text, ", %s", state);
    (void)snprintf(path, sizeof(path), "/proc/self/task/%lu/wchan", native_id);
    read_proc(path, where, sizeof(where));
    if (where[0] != '\0' && strcmp(where, "0") != 0) {
        append_format(text, " in %s", where);
    }
    else {
        (void)snprintf(path, sizeof(path), "/proc/self/task/%lu/syscall", native_id);
        read_proc(path, where, sizeof(where));
        where[strcspn(where, " ")] = '\0';
        if (where[0] >= '0' && where[0] <= '9') {
            append_format(text, " in system call %s", where);
        }
    }
}

struct source {
    char *path;  /* owned */
    char *bytes; /* owned, of map_pages(); NULL: not to be had */
    size_t size;
    size_t length;       /* what of that is text */
    struct slice *lines; /* owned, of map_pages(); may be NULL */
    size_t line_count;
    bool loaded;     /* or tried to */
    bool is_special; /* no regular file: to read it may never end */
    /* Of a look: */
    bool seen;            /* the rest is known */
    bool python_is_asked; /* linecache may have what the file system has not */
    size_t frame;         /* one of those that are in this file */
};

/* Source files, each read once a dump. */
struct sources {
    struct source *files; /* owned */
    size_t count;
    size_t capacity;
};

/* Memory that goes back to the system at once: of what free() gets, each thread's arena keeps some.
 * Returns NULL when there is none. */
static void *
map_pages(size_t size)
{
    void *pages =
        mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    return pages == MAP_FAILED ? NULL : pages;
}

/* Makes room for the text. */
static void
map_bytes(struct source *source, size_t size)
{
    source->bytes = map_pages(size);
    source->size = size;
}

/* Reads a regular file of a reasonable size whole. */
DETACHED static void
read_file(struct source *source)
{
    struct stat status = {0};
    int fd = open(source->path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
    source->is_special = fd >= 0 && fstat(fd, &status) == 0 && !S_ISREG(status.st_mode);
    if (fd >= 0 && S_ISREG(status.st_mode) && status.st_size <= MAX_SOURCE) {
        map_bytes(source, (size_t)status.st_size + 1);
    }
    while (source->bytes != NULL && source->length < (size_t)status.st_size) {
        ssize_t got = read(fd, source->bytes + source->length,
                           (size_t)status.st_size - source->length);
        if (got <= 0) {
            break;
        }
        source->length += (size_t)got;
    }
    if (fd >= 0) {
        (void)close(fd);
    }
}

/* Finds the lines. */
static void
index_lines(struct source *source)
{
    static const char mark[] =
        "\xef\xbb\xbf"; /* of UTF-8; some editors begin a file with it */
    struct slice rest = {source->bytes, source->bytes == NULL ? 0 : source->length};
    struct slice line = {NULL, 0};
    size_t count = 0;
    if (starts_with(&rest, mark)) {
        rest.bytes += sizeof(mark) - 1;
        rest.length -= sizeof(mark) - 1;
    }
    for (struct slice each = rest; next_line(&each, &line); count++) {
    }
    if (count > 0) {
        source->lines = map_pages(count * sizeof(*source->lines));
    }
    while (source->lines != NULL && next_line(&rest, &line)) {
        source->lines[source->line_count++] = line;
    }
}

DETACHED static void
load_source(struct source *source)
{
    source->loaded = true;
    read_file(source);
    index_lines(source);
}

static void
forget_lines(struct source *source)
{
    if (source->bytes != NULL) {
        (void)munmap(source->bytes, source->size);
    }
    if (source->lines != NULL) {
        (void)munmap(source->lines, source->line_count * sizeof(*source->lines));
    }
    source->bytes = NULL;
    source->length = 0;
    source->lines = NULL;
    source->line_count = 0;
}

/* Returns the entry of this file, a new one if there is none yet; NULL when there is no memory. It
 * stays where it is until the next is added. */
static struct source *
add_source(struct sources *sources, const char *path)
{
    struct source *source = NULL;
    for (size_t i = 0; i < sources->count; i++) {
        if (strcmp(sources->files[i].path, path) == 0) {
            return &sources->files[i];
        }
    }
    if (sources->count == sources->capacity) {
        size_t capacity = sources->capacity == 0 ? 16 : sources->capacity * 2;
        struct source *grown = realloc(sources->files, capacity * sizeof(*grown));
        if (grown == NULL) {
            return NULL;
        }
        sources->files = grown;
        sources->capacity = capacity;
    }
    source = &sources->files[sources->count];
    *source = (struct source){.path = strdup(path)};
    if (source->path == NULL) {
        return NULL;
    }
    sources->count++;
    return source;
}

static void
free_sources(struct sources *sources)
{
    for (size_t i = 0; i < sources->count; i++) {
        forget_lines(&sources->files[i]);
        free(sources->files[i].path);
    }
    free(sources->files);
    *sources = (struct sources){0};
}

/* The number-th line of a source, without blanks around it; empty when there is none. */
static struct slice
source_line(const struct source *source, long number)
{
    struct slice line = {NULL, 0};
    if (number < 1 || (unsigned long)number > source->line_count) {
        return line;
    }
    line = source->lines[number - 1];
    while (line.length > 0 && strchr(" \t\r\f", line.bytes[line.length - 1]) != NULL) {
        line.length--;
    }
    while (line.length > 0 && strchr(" \t\f", line.bytes[0]) != NULL) {
        line.bytes++;
        line.length--;
    }
    return line;
}

/* faulthandler writes what is not ASCII as \xe9, \u20ac, \U0001f40d: back to UTF-8. */
static void
append_unescaped(struct text *text, struct slice slice)
{
    while (slice.length > 0) {
        size_t digits = 0;
        size_t used = 1;
        if (slice.length > 1 && slice.bytes[0] == '\\') {
            const char *kinds = "xuU";
            const char *kind = strchr(kinds, slice.bytes[1]);
            digits = kind == NULL || *kind == '\0' ? 0 : (size_t)2 << (kind - kinds);
        }
        if (digits > 0 && slice.length >= 2 + digits) {
            char number[9] = "";
            char *end = NULL;
            unsigned long character = 0;
            memcpy(number, slice.bytes + 2, digits);
            character = strtoul(number, &end, 16);
            if (*end == '\0' && character <= 0x10FFFF && !is_surrogate(character)) {
                char bytes[4];
                append_bytes(text, bytes, put_utf8(bytes, character));
                used = 2 + digits;
            }
        }
        if (used == 1) {
            append_bytes(text, slice.bytes, 1);
        }
        slice.bytes += used;
        slice.length -= used;
    }
}

/* A frame as it is shown. */
struct shown_frame {
    struct slice path; /* NUL-terminated */
    struct slice function;
    long line;
    struct slice source; /* empty: not to be had */
};

/* Appends a frame in our words, which are python-manhole's. */
static void
append_shown_frame(struct text *text, const struct shown_frame *frame)
{
    append_string(text, "File: \"");
    append_bytes(text, frame->path.bytes, frame->path.length);
    append_format(text, "\", line %ld, in ", frame->line);
    append_bytes(text, frame->function.bytes, frame->function.length);
    append_string(text, "\n");
    if (frame->source.length > 0) {
        append_string(text, "  ");
        append_bytes(text, frame->source.bytes, frame->source.length);
        append_string(text, "\n");
    }
}

/* A frame of a copy, as faulthandler tells of it. */
struct copied_frame {
    struct text path; /* NUL-terminated */
    struct text function;
    struct shown_frame shown;
};

static void
free_copied_frame(struct copied_frame *frame)
{
    free_text(&frame->path);
    free_text(&frame->function);
}

/* Reads a frame, `  File "F", line N in NAME` in faulthandler's words. Returns false for a line of
 * another form ("...", "<no Python frame>"), and when there is no memory. */
DETACHED static bool
read_copied_frame(struct copied_frame *frame, struct slice line, struct sources *sources)
{
    static const char middle[] = "\", line ";
    const char *end = NULL;
    const char *rest = NULL; /* of the line, behind what has been read */
    struct slice function;
    struct source *source = NULL;
    for (size_t i = 0; i + sizeof(middle) - 1 <= line.length; i++) {
        if (memcmp(line.bytes + i, middle, sizeof(middle) - 1) == 0) {
            end = line.bytes + i;
        }
    }
    if (!starts_with(&line, "  File \"") || end == NULL || end < line.bytes + 8) {
        return false;
    }
    append_unescaped(&frame->path,
                     (struct slice){line.bytes + 8, (size_t)(end - line.bytes) - 8});
    append_bytes(&frame->path, "", 1);
    rest = end + sizeof(middle) - 1;
    if (*rest >= '0' && *rest <= '9') { /* strtol() would skip a newline to find one */
        char *number_end = NULL;
        frame->shown.line = strtol(rest, &number_end, 10);
        rest = number_end;
    }
    function = (struct slice){rest, (size_t)(line.bytes + line.length - rest)};
    if (starts_with(&function, " in ")) {
        function.bytes += 4;
        function.length -= 4;
    }
    append_unescaped(&frame->function, function);
    if (frame->path.failed || frame->function.failed) {
        free_copied_frame(frame);
        return false;
    }
    source = add_source(sources, frame->path.bytes);
    if (source != NULL && !source->loaded) {
        load_source(source);
    }
    if (source != NULL) {
        frame->shown.source = source_line(source, frame->shown.line);
    }
    frame->shown.path = (struct slice){frame->path.bytes, frame->path.length - 1};
    frame->shown.function = (struct slice){frame->function.bytes, frame->function.length};
    return true;
}

/* A line of another form stands as it is. */
DETACHED static void
append_copied_frame(struct text *text, struct slice line, struct sources *sources)
{
    struct copied_frame frame = {.shown.line = 0};
    if (!read_copied_frame(&frame, line, sources)) {
        append_bytes(text, line.bytes, line.length);
        append_string(text, "\n");
        return;
    }
    append_shown_frame(text, &frame.shown);
    free_copied_frame(&frame);
}

/* Appends a thread's header and what is known of it. */
DETACHED static void
append_copied_header(struct text *text, const struct copied_thread *thread)
{
    const struct thread_note *note = &thread->note;
    append_format(text, "######### ProcessID=%ld, ThreadID=%lu #########\n",
                  (long)getpid(), thread->ident);
    if (note->name.length > 0) {
        append_string(text, "Thread: ");
        append_bytes(text, note->name.bytes, note->name.length);
        append_string(text, note->native_id != 0 ? ", " : "");
    }
    else if (note->native_id != 0) {
        append_string(text, "Thread: ");
    }
    if (note->native_id != 0) {
        append_kernel_state(text, note->native_id);
    }
    if (note->holds_gil) {
        append_string(text, ", holds the GIL");
    }
    if (note->name.length > 0 || note->native_id != 0) {
        append_string(text, "\n");
    }
}

enum {
    MAX_COPIED_FRAMES = 128 /* faulthandler stops at 100 and says so in one more line */
};

/* Splits a thread's frames into lines, innermost first. Returns how many there are. */
static size_t
split_frames(const struct copied_thread *thread, struct slice lines[MAX_COPIED_FRAMES])
{
    struct slice rest = thread->frames;
    size_t count = 0;
    while (count < MAX_COPIED_FRAMES && next_line(&rest, &lines[count])) {
        count += starts_with(&lines[count], "  ");
    }
    return count;
}

/* A session's thread that has no frames yet: it waits for the very interpreter that is stuck. */
static bool
is_waiting_session(unsigned long ident)
{
    for (size_t i = 0; i < atomic_load(&manhole.sessions_end); i++) {
        const struct session *session = &manhole.sessions[i];
        if (atomic_load(&session->fd.number) >= 0 && session->ident == ident &&
            !atomic_load(&session->running)) {
            return true;
        }
    }
    return false;
}

/* Whether a thread of a copy is one to show. */
static bool
is_copied_stack(const struct copied_thread *thread)
{
    return thread->has_stack && !is_waiting_session(thread->ident);
}

static bool
is_same_copied_stack(const struct copied_thread *one, const struct copied_thread *other)
{
    return one->frames.length == other->frames.length &&
           (one->frames.length == 0 ||
            memcmp(one->frames.bytes, other->frames.bytes, one->frames.length) == 0);
}

/* Appends all threads of a copy: headers of those with the same stack, and that once, outermost
 * frame first. */
DETACHED static void
append_copied_threads(struct text *text, struct copied *copied)
{
    struct sources sources = {0};
    for (size_t i = 0; i < copied->count; i++) {
        struct copied_thread *thread = &copied->threads[i];
        struct slice lines[MAX_COPIED_FRAMES];
        size_t line_count = 0;
        size_t same = 0;
        if (thread->shown || !is_copied_stack(thread)) {
            continue;
        }
        append_string(text, "\n");
        for (size_t k = i; k < copied->count; k++) {
            struct copied_thread *other = &copied->threads[k];
            if (!other->shown && is_same_copied_stack(thread, other) &&
                is_copied_stack(other)) { /* last, for it goes through all sessions */
                append_copied_header(text, other);
                other->shown = true;
                same++;
            }
        }
        if (same > 1) {
            append_format(text, "%zu threads with the same stack:\n", same);
        }
        line_count = split_frames(thread, lines);
        while (line_count > 0) {
            append_copied_frame(text, lines[--line_count], &sources);
        }
    }
    free_sources(&sources);
}

static bool
is_noted(const struct copied *copied, unsigned long native_id)
{
    for (size_t i = 0; i < copied->count; i++) {
        if (copied->threads[i].note.native_id == native_id) {
            return true;
        }
    }
    return false;
}

/* Appends the kernel's view of every thread that the copy says nothing of. */
DETACHED static void
append_other_threads(struct text *text, const struct copied *copied)
{
    const unsigned long own_id = (unsigned long)syscall(SYS_gettid);
    struct dirent *entry = NULL;
    unsigned long *ids = NULL; /* owned */
    size_t count = 0;
    size_t capacity = 0;
    DIR *tasks = opendir("/proc/self/task"); /* owned */
    if (tasks == NULL) {
        append_format(text, "/proc/self/task: %s\n", error_text(errno));
        return;
    }
    append_string(text, "\nOther threads of the process, as the kernel sees them:\n");
    /* NOLINTNEXTLINE(concurrency-mt-unsafe): only this thread has this DIR */
    while ((entry = readdir(tasks)) != NULL) {
        unsigned long native_id = strtoul(entry->d_name, NULL, 10);
        if (native_id == 0 || native_id == own_id || is_noted(copied, native_id)) {
            continue;
        }
        if (count == capacity) {
            unsigned long *more = NULL;
            capacity = capacity == 0 ? 64 : 2 * capacity;
            more = realloc(ids, capacity * sizeof(*ids));
            if (more == NULL) {
                text->failed = true;
                break;
            }
            ids = more;
        }
        ids[count++] = native_id;
    }
    (void)closedir(tasks); /* there may be no second descriptor */
    for (size_t i = 0; i < count; i++) {
        append_string(text, "  ");
        append_kernel_state(text, ids[i]);
        append_string(text, "\n");
    }
    free(ids);
}

/* What came of an attempt at a frozen copy. */
struct examination {
    struct text raw; /* owned: what the copy wrote; copied points into it */
    struct copied copied;
    enum copy_result result;
    int error; /* errno, for COPY_REFUSED */
};

DETACHED static void
examine_copy(struct examination *examination)
{
    examination->result = take_snapshot(&examination->raw);
    examination->error = errno;
    append_bytes(&examination->raw, "", 1); /* numbers are read up to what ends them */
    if (!examination->raw.failed) {
        examination->copied = read_copied(&examination->raw);
    }
}

DETACHED static void
free_examination(struct examination *examination)
{
    free_copied(&examination->copied);
    free_text(&examination->raw);
    lock_leaf(&snapshot_lock);
    open_spare();
    unlock(&snapshot_lock);
}

/* Appends why there is not all that there should be; nothing when there is. */
static void
append_copy_note(struct text *text, const struct examination *examination)
{
    if (examination->result == COPY_REFUSED && examination->error == EBUSY &&
        snapshot.signum == 0) {
        append_string(text,
                      "No frozen copy of the process can be made: no real-time signal "
                      "was free for faulthandler at install, its log tells.");
    }
    else if (examination->result == COPY_REFUSED && examination->error == EBUSY) {
        append_format(text,
                      "No frozen copy of the process can be made: signal %d, which "
                      "faulthandler had for it, is somebody else's now.",
                      snapshot.signum);
    }
    else if (examination->result == COPY_REFUSED) {
        append_format(text, "No frozen copy of the process can be made: %s.",
                      error_text(examination->error));
    }
    else if (examination->result == COPY_DIED) {
        append_string(text,
                      "The frozen copies of the process died; what the best one told:");
    }
    if (examination->copied.failed || examination->raw.failed) {
        append_string(text, " There was no memory for all threads.");
    }
}

/* As append_copy_note(), where the copy is all that there is. */
static void
append_lone_copy_note(struct text *text, const struct examination *examination)
{
    const size_t length = text->length;
    bool is_bare = true;
    append_copy_note(text, examination);
    for (size_t i = 0; i < examination->copied.count; i++) {
        is_bare = is_bare && !is_copied_stack(&examination->copied.threads[i]);
    }
    if (is_bare && text->length == length) { /* the queue of its signal was full, say */
        append_string(text, "The frozen copy of the process told of no thread.");
    }
}

/* Appends the dump of a process whose interpreter does not answer. */
DETACHED static void
append_snapshot(struct text *text)
{
    struct examination examination = {.error = 0};
    const size_t length = text->length;
    examine_copy(&examination);
    append_lone_copy_note(text, &examination);
    append_string(text, text->length > length ? "\n" : "");
    append_copied_threads(text, &examination.copied);
    append_other_threads(text, &examination.copied);
    append_string(text, "#############################################\n\n\n");
    free_examination(&examination);
}

#endif /* MANHOLE_STACKS_SNAPSHOT_C */
