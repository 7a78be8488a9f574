/* Kernel: what the kernel says of a thread, beside its Python stack.
 * Runs on:  any native thread.
 * Touches:  /proc/PID/task, read; in a frozen copy that of the process, as it is now.
 *
 * A stack says which line a thread is at, not whether it computes there or waits, and for what. The
 * kernel knows: its state, and the function inside the kernel that it sleeps in (wchan: futex_wait,
 * do_epoll_wait, pipe_read). A kernel that hides these from all but root has a 0 there; then the
 * number of the system call may still be had. Nothing here asks a disk, or waits.
 */
#ifndef MANHOLE_STACKS_KERNEL_C
#define MANHOLE_STACKS_KERNEL_C

#include "../base/compat.c"
#include "../base/state.c"
#include "../base/basics.c"

/* Reads a small file of /proc into a string, up to the first newline. Quick: no disk is asked. */
static void
read_proc(const char *path, char *text, size_t size)
{
    OWNED_FD int fd = open(path, O_RDONLY | O_CLOEXEC);
    ssize_t length = fd < 0 ? -1 : read(fd, text, size - 1);
    text[length < 0 ? 0 : length] = '\0';
    text[strcspn(text, "\n")] = '\0';
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
    char stat[512]; /* "7 (name) S ...", and the name may have any byte in it */
    (void)snprintf(path, sizeof(path), "/proc/%ld/task/%lu/stat", (long)process_id(),
                   native_id);
    read_proc(path, stat, sizeof(stat));
    const char *after_name = strrchr(stat, ')');
    return after_name == NULL || strlen(after_name) < 3 ? NULL
                                                        : state_name(after_name[2]);
}

/* Not so where nothing can be read: /proc is not mounted, or there is no descriptor left. */
static bool
is_thread_gone(unsigned long native_id)
{
    char path[64];
    (void)snprintf(path, sizeof(path), "/proc/%ld/task/%lu", (long)process_id(),
                   native_id);
    return access(path, F_OK) < 0 && errno == ENOENT &&
           access("/proc/self/task", F_OK) == 0;
}

/* Appends "TID 12 (comm), sleeping in futex_wait_queue", as far as /proc shows it. */
DETACHED static void
append_kernel_state(struct text *text, unsigned long native_id)
{
    char path[64];
    char where[128];

    append_format(text, "TID %lu", native_id);
    (void)snprintf(path, sizeof(path), "/proc/%ld/task/%lu/comm", (long)process_id(),
                   native_id);
    read_proc(path, where, sizeof(where));
    if (where[0] != '\0') {
        append_format(text, " (%s)", where);
    }

    const char *state = read_state(native_id);
    if (state == NULL) {
        append_string(text, is_thread_gone(native_id) ? ", gone"
                                                      : ", its state is not to be read");
        return;
    }
    append_format(text, ", %s", state);

    (void)snprintf(path, sizeof(path), "/proc/%ld/task/%lu/wchan", (long)process_id(),
                   native_id);
    read_proc(path, where, sizeof(where));
    if (where[0] != '\0' && strcmp(where, "0") != 0) {
        append_format(text, " in %s", where);
    }
    else {
        (void)snprintf(path, sizeof(path), "/proc/%ld/task/%lu/syscall",
                       (long)process_id(), native_id);
        read_proc(path, where, sizeof(where));
        where[strcspn(where, " ")] = '\0';
        if (where[0] >= '0' && where[0] <= '9') {
            append_format(text, " in system call %s", where);
        }
    }
}

#endif /* MANHOLE_STACKS_KERNEL_C */
