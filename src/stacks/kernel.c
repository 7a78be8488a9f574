/* Kernel: what the kernel says of a thread, beside its Python stack.
 * Runs on:  any native thread, DETACHED.
 * Touches:  /proc/self/task, read.
 *
 * A stack says which line a thread is at, not whether it computes there or waits, and for what. The
 * kernel knows: its state, and the system call that it sleeps in, which is what a reader of Python
 * knows: futex is a lock or the GIL, epoll_wait an event loop. In a disk wait the function inside
 * the kernel (wchan) tells more, for there it is the file system's; and it stands in for a call
 * that has no name here. Nothing of this asks a disk, or waits.
 *
 * It is read as soon as nobody has to stand still for it, so after the frames, and threads go on:
 * one that is "running" may have got since what its frames wait for. To read it before would be no
 * nearer; and while frames are looked at, all that compute wait for the GIL, which tells nothing.
 *
 * Each read takes microseconds, and there may be thousands of threads. So one file is all that is
 * read of a thread that has a name and waits as most do; its name in the kernel is for the others.
 */
#ifndef MANHOLE_STACKS_KERNEL_C
#define MANHOLE_STACKS_KERNEL_C

#include "../base/compat.c"
#include "../base/state.c"
#include "../base/basics.c"

/* What the kernel has a thread do, at one moment. {0}: it was not asked, or does not tell. */
struct kernel_state {
    const char *name;  /* in a word: "sleeping"; NULL: not known */
    char command[16];  /* what it calls the thread: comm */
    char waits_in[48]; /* a system call, or a function of the kernel's; may be empty */
};

/* Reads a small file that /proc has of a thread into a string; an empty one when it has none. */
DETACHED static void
read_of_thread(unsigned long native_id, const char *file, char *text, size_t size)
{
    char path[64];
    (void)snprintf(path, sizeof(path), "/proc/self/task/%lu/%s", native_id, file);
    OWNED_FD int fd = open(path, O_RDONLY | O_CLOEXEC);
    ssize_t length = fd < 0 ? -1 : read(fd, text, size - 1);
    text[length < 0 ? 0 : length] = '\0';
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

/* A system call that threads of Python's wait in. */
struct waiting_call {
    long number;
    const char *name;
    bool may_ask_a_disk; /* so its state may be "disk wait" */
};

/* Returns NULL for another. */
static const struct waiting_call *
find_call(long number)
{
    static const struct waiting_call rows[] = {
        {SYS_futex, "futex", false},
        {SYS_ppoll, "ppoll", false},
        {SYS_pselect6, "pselect6", false},
        {SYS_epoll_pwait, "epoll_pwait", false},
#ifdef SYS_poll /* arm64 has none of these */
        {SYS_poll, "poll", false},
        {SYS_select, "select", false},
        {SYS_epoll_wait, "epoll_wait", false},
        {SYS_pause, "pause", false},
        {SYS_open, "open", true},
#endif
        {SYS_read, "read", true},
        {SYS_readv, "readv", true},
        {SYS_pread64, "pread64", true},
        {SYS_recvfrom, "recvfrom", false},
        {SYS_recvmsg, "recvmsg", false},
        {SYS_write, "write", true},
        {SYS_writev, "writev", true},
        {SYS_sendto, "sendto", false},
        {SYS_sendmsg, "sendmsg", false},
        {SYS_accept, "accept", false},
        {SYS_accept4, "accept4", false},
        {SYS_connect, "connect", false},
        {SYS_nanosleep, "nanosleep", false},
        {SYS_clock_nanosleep, "clock_nanosleep", false},
        {SYS_wait4, "wait4", false},
        {SYS_waitid, "waitid", false},
        {SYS_rt_sigtimedwait, "rt_sigtimedwait", false},
        {SYS_rt_sigsuspend, "rt_sigsuspend", false},
        {SYS_flock, "flock", true},
        {SYS_fcntl, "fcntl", true},
        {SYS_fsync, "fsync", true},
        {SYS_openat, "openat", true},
        {SYS_semtimedop, "semtimedop", false},
    };
    for (size_t i = 0; i < Py_ARRAY_LENGTH(rows); i++) {
        if (rows[i].number == number) {
            return &rows[i];
        }
    }
    return NULL;
}

/* What a thread waits in, as its "syscall" has it; NULL for none that has a name here. */
DETACHED static const struct waiting_call *
read_call(unsigned long native_id, char *call, size_t size)
{
    read_of_thread(native_id, "syscall", call, size);
    return call[0] >= '0' && call[0] <= '9' ? find_call(strtol(call, NULL, 10)) : NULL;
}

/* Finds what a thread that does not run waits in. A kernel that hides its functions from all but
 * root has a 0 for one. */
DETACHED static void
read_wait(struct kernel_state *kernel, unsigned long native_id, bool is_disk_wait)
{
    char call[256]; /* "202 0x7f31 ...", "running", "-1 0x7f31": in no call */
    char function[sizeof(kernel->waits_in)];
    const struct waiting_call *known = read_call(native_id, call, sizeof(call));
    const size_t digits = strspn(call, "0123456789");
    if (known == NULL || is_disk_wait) {
        read_of_thread(native_id, "wchan", function, sizeof(function));
        function[strcspn(function, "\n")] = '\0';
        if (function[0] != '\0' && strcmp(function, "0") != 0) {
            (void)snprintf(kernel->waits_in, sizeof(kernel->waits_in), "%s", function);
            return;
        }
    }
    if (known != NULL) {
        (void)snprintf(kernel->waits_in, sizeof(kernel->waits_in), "%s", known->name);
    }
    else if (digits > 0) {
        (void)snprintf(kernel->waits_in, sizeof(kernel->waits_in), "system call %.*s",
                       (int)digits, call);
    }
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

/* All that is told of a thread. */
DETACHED static struct kernel_state
read_kernel_state(unsigned long native_id)
{
    struct kernel_state kernel = {.name = NULL};
    char stat[512]; /* "7 (command) S ...", and the command may have any byte in it */
    read_of_thread(native_id, "stat", stat, sizeof(stat));
    const char *command = strchr(stat, '(');
    const char *end = strrchr(stat, ')');
    if (command == NULL || end == NULL || strlen(end) < 3) {
        kernel.name = is_thread_gone(native_id) ? "gone" : NULL;
        return kernel;
    }

    (void)snprintf(kernel.command, sizeof(kernel.command), "%.*s",
                   (int)(end - command - 1), command + 1);
    for (char *byte = kernel.command; *byte != '\0'; byte++) {
        if ((unsigned char)*byte < ' ' || *byte == 0x7f) {
            *byte = '?';
        }
    }
    kernel.name = state_name(end[2]);
    if (end[2] != 'R') {
        read_wait(&kernel, native_id, end[2] == 'D');
    }
    return kernel;
}

/* Of a thread that has a name: all but what the kernel calls it. */
DETACHED static struct kernel_state
read_named_state(unsigned long native_id)
{
    char call[256];
    const struct waiting_call *known = read_call(native_id, call, sizeof(call));
    struct kernel_state kernel = {.name = state_name(known == NULL ? 'R' : 'S')};
    if (known == NULL ? strncmp(call, "running", 7) != 0 : known->may_ask_a_disk) {
        kernel = read_kernel_state(native_id);
        kernel.command[0] = '\0';
    }
    else if (known != NULL) {
        (void)snprintf(kernel.waits_in, sizeof(kernel.waits_in), "%s", known->name);
    }
    return kernel;
}

/* Appends "TID 12 (comm), sleeping in futex", as far as /proc has shown it. */
static void
append_kernel_state(struct text *text, unsigned long native_id,
                    const struct kernel_state *kernel)
{
    append_format(text, "TID %lu", native_id);
    if (kernel->command[0] != '\0') {
        append_format(text, " (%s)", kernel->command);
    }
    append_format(text, ", %s",
                  kernel->name == NULL ? "its state is not to be read" : kernel->name);
    if (kernel->waits_in[0] != '\0') {
        append_format(text, " in %s", kernel->waits_in);
    }
}

#endif /* MANHOLE_STACKS_KERNEL_C */
