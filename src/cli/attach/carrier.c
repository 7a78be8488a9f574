/* Carrier: which thread of the process may be lent to call into its C library, and when.
 *
 * pthread_create() takes locks of the C library, as malloc's. A thread that is stopped while it has
 * one of these would wait for itself for ever. So it must be at a place where it has none:
 *   - running code outside of the C library, of the loader, and of whoever exports a malloc: no
 *     lock of theirs is held there, for none of them calls back while it holds one;
 *   - or waiting in a system call that none of them makes with a lock held. A futex is theirs when
 *     it lies in their data, or at the head of one of malloc's heaps. Any other may be the lock of
 *     an allocator that we do not know; those are held for moments, so who has waited for a tenth
 *     of a second waits for something else;
 *   - and not in a signal handler, which may have interrupted any of that: no frame of one is on
 *     its stack;
 *   - and not in a restartable sequence (librseq, tcmalloc), which the kernel would not begin anew.
 *
 * Threads are tried in the order of what /proc says of them, those that wait first, the main thread
 * first among equals, for its affinity and priority are the process's. Each try takes a tenth of a
 * millisecond; who does not fit is let go as it was. One in a loop of malloc fits sooner or later.
 */
#ifndef MANHOLE_CLI_ATTACH_CARRIER_C
#define MANHOLE_CLI_ATTACH_CARRIER_C

#include "tracee.c"
#include <linux/futex.h>

#if HAS_ATTACH

enum {
    TRIED_AT_ONCE = 16,     /* threads in a round */
    LONG_WAIT_MS = 100,     /* for no allocator's lock */
    STACK_LOOK = 256 * 1024 /* bytes in which a handler would show */
};

/* How a thread is to be tried; the main thread comes before others of its kind. */
enum rank { WAITS, WAITS_IN_EPOLL = 2, MAY_HAVE_LOCK = 4, RUNS = 6, UNFIT = 8 };

struct candidate {
    pid_t tid;
    int rank;
};

/* ---- What it waits for ------------------------------------------------------------- */

/* Whether no C library makes this system call while it holds a lock that pthread_create() wants. */
static bool
is_harmless(long number)
{
    static const long harmless[] = {
        SYS_poll,
        SYS_ppoll,
        SYS_select,
        SYS_pselect6,
        SYS_nanosleep,
        SYS_wait4,
        SYS_waitid,
        SYS_pause,
        SYS_rt_sigsuspend,
        SYS_read,
        SYS_readv,
        SYS_write,
        SYS_writev,
        SYS_recvfrom,
        SYS_recvmsg,
        SYS_accept,
        SYS_accept4,
        SYS_connect,
        SYS_sendto,
        SYS_sendmsg,
        SYS_flock,
        SYS_fcntl,
        SYS_open,
        SYS_openat,
        SYS_fsync,
        SYS_epoll_wait,
        SYS_futex,
        SYS_epoll_pwait,
        SYS_restart_syscall,
        SYS_clock_nanosleep,
#  ifdef SYS_epoll_pwait2
        SYS_epoll_pwait2,
#  endif
    };

    for (size_t i = 0; i < sizeof(harmless) / sizeof(harmless[0]); i++) {
        if (harmless[i] == number) {
            return true;
        }
    }
    return false;
}

/* A wait for a futex may have begun anew, with its timeout as restart_syscall() knows it. */
static bool
is_futex(long number)
{
    return number == SYS_futex || number == SYS_restart_syscall;
}

/* Whether it is a lock of the C library or of an allocator, by its address. One that is no address
 * is the number of a clock, or of descriptors, of another call that has begun anew. */
static bool
is_library_lock(const struct image *image, uint64_t address)
{
    enum { LEAST_ADDRESS = 4096, HEAP_SIZE = 1 << 26, HEAP_HEAD = 256 };
    const struct object *object = object_at(image, address);

    if (object != NULL) {
        return object->is_libc || object->has_malloc;
    }
    return address >= LEAST_ADDRESS && address % HEAP_SIZE < HEAP_HEAD;
}

/* Whether it waits as for a mutex of the C library's kind: until the word is no longer 2. */
static bool
is_mutex_wait(long number, uint64_t operation, uint64_t value)
{
    return number == SYS_futex && (operation & (uint64_t)FUTEX_CMD_MASK) == FUTEX_WAIT &&
           (uint32_t)value == 2;
}

/* Whether it wakes another thread, so waits for nothing. A thread of musl's that ends wakes who
 * joins it when it has left the list of threads, and has that list's lock to its end. Another one
 * that it makes then is in no list, so takes its own end for that of the process: exit(). */
static bool
is_wake(long number, uint64_t operation)
{
    return number == SYS_futex && (operation & (uint64_t)FUTEX_CMD_MASK) == FUTEX_WAKE;
}

/* Whether musl's dlopen() makes it, with a lock that pthread_create() wants. */
static bool
is_load(const struct image *image, long number)
{
    return image->is_musl &&
           (number == SYS_open || number == SYS_read || number == SYS_fcntl);
}

/* Ranks a thread by the system call that it is in. */
static int
rank_call(const struct image *image, long number, const uint64_t arguments[3])
{
    if (!is_harmless(number) || is_wake(number, arguments[1]) ||
        (is_futex(number) && is_library_lock(image, arguments[0]))) {
        return UNFIT;
    }
    if (is_mutex_wait(number, arguments[1], arguments[2]) || is_load(image, number)) {
        return MAY_HAVE_LOCK;
    }
    /* epoll may see EINTR */
    return number == SYS_epoll_wait || number == SYS_epoll_pwait ? WAITS_IN_EPOLL : WAITS;
}

/* ---- In which order they are tried ------------------------------------------------- */

/* Ranks a thread by /proc/PID/task/TID/syscall: "running", or the call's number and arguments. */
static struct candidate
rank_thread(const struct image *image, pid_t tid)
{
    struct candidate candidate = {.tid = tid, .rank = RUNS};
    OWNED_BUFFER content = {.data = NULL};
    uint64_t arguments[3] = {0};
    long number = -1;

    (void)read_proc(image->pid, print("task/%d/syscall", (int)tid).text, &content);
    if (strncmp(text_of(&content), "running", 7) != 0) {
        /* NOLINTNEXTLINE(cert-err34-c): the kernel writes no number that is too great */
        (void)sscanf(text_of(&content), "%ld %" SCNx64 " %" SCNx64 " %" SCNx64, &number,
                     &arguments[0], &arguments[1], &arguments[2]);
        candidate.rank = rank_call(image, number, arguments);
    }
    candidate.rank += tid != image->pid;
    return candidate;
}

static int
compare_candidates(const void *a, const void *b)
{
    return ((const struct candidate *)a)->rank - ((const struct candidate *)b)->rank;
}

/* All threads, the best first. The caller frees the list. */
static struct candidate *
list_candidates(const struct image *image, size_t *count)
{
    OWNED_FOLDER tasks = opendir(proc_path(image->pid, "task").text);
    struct candidate *list = NULL;
    size_t size = 0;
    pid_t tid = 0;

    *count = 0;
    while (next_number(tasks, "", &tid)) {
        if (*count == size) {
            size = 2 * size + 64;
            list = realloc(list, size * sizeof(*list));
            if (list == NULL) {
                fail(STATUS_TROUBLE, "out of memory");
            }
        }
        list[(*count)++] = rank_thread(image, tid);
    }
    if (*count == 0 || has_ended(image->pid)) {
        fail_ended(image->pid);
    }
    qsort(list, *count, sizeof(*list), compare_candidates);
    return list;
}

/* ---- Whether a stopped thread may be lent ------------------------------------------ */

static const struct mapping *
mapping_at(const struct image *image, uint64_t address)
{
    for (size_t i = 0; i < image->mapping_count; i++) {
        if (address >= image->mappings[i].start && address < image->mappings[i].end) {
            return &image->mappings[i];
        }
    }
    return NULL;
}

/* Whether a handler's frame is on its stack. The stack may have grown since. */
static bool
is_in_handler(struct image *image, pid_t tid, uint64_t stack)
{
    const struct mapping *mapping = mapping_at(image, stack);

    if (mapping == NULL && read_mappings(image)) {
        mapping = mapping_at(image, stack);
    }
    if (mapping == NULL) {
        return true;
    }
    uint64_t start = stack / 8 * 8;
    size_t size = (size_t)(mapping->end - start);
    size = size < STACK_LOOK ? size : STACK_LOOK;
    OWNED uint64_t *words = allocate(size / 8, 8);
    if (!peek(tid, start, words, size / 8 * 8)) {
        return true;
    }
    for (size_t i = 0; i < size / 8; i++) {
        if (is_handler_frame(&words[i], size / 8 - i)) {
            return true;
        }
    }
    return false;
}

/* Whether it is in a restartable sequence. The kernel tells where the thread notes that, and there
 * is the sequence's description: version and flags, start, length. */
static bool
is_in_sequence(const struct lent *lent)
{
    const int get_configuration =
        0x420f; /* PTRACE_GET_RSEQ_CONFIGURATION, which is new */
    struct {
        uint64_t address;
        uint32_t size, signature, flags, padding;
    } area = {0};
    uint64_t sequence = 0;
    uint64_t words[3] = {0};

    return ptrace(get_configuration, lent->tid, sizeof(area), &area) ==
               (long)sizeof(area) &&
           area.address != 0 && peek(lent->tid, area.address + 8, &sequence, 8) &&
           sequence != 0 && peek(lent->tid, sequence, words, sizeof(words)) &&
           program_counter(&lent->was) - words[1] < words[2];
}

/* Whether a thread sleeps since we first saw it, some time ago. Each of our stops has it go to
 * sleep once more. */
static bool
sleeps_long(pid_t pid, pid_t tid)
{
    static struct {
        pid_t tid;
        long switches;
        double since;
    } seen[TRIED_AT_ONCE];
    static size_t count;
    OWNED_BUFFER status = {.data = NULL};

    (void)read_proc(pid, print("task/%d/status", (int)tid).text, &status);
    const char *line = strstr(text_of(&status), "\nvoluntary_ctxt_switches:");
    long switches = line != NULL ? strtol(strchr(line, ':') + 1, NULL, 10) : 0;
    for (size_t i = 0; i < count; i++) {
        if (seen[i].tid == tid) {
            bool is_same = switches <= seen[i].switches + 2;
            seen[i].switches = switches;
            seen[i].since = is_same ? seen[i].since : now_s();
            return now_s() - seen[i].since > LONG_WAIT_MS / 1e3;
        }
    }
    if (count < TRIED_AT_ONCE) {
        seen[count].tid = tid;
        seen[count].switches = switches;
        seen[count++].since = now_s();
    }
    return false;
}

/* Whether it may call pthread_create(). */
static bool
may_be_lent(struct image *image, const struct lent *lent)
{
    const struct cpu *cpu = &lent->was;
    const struct object *object = object_at(image, program_counter(cpu));
    const uint64_t arguments[] = {call_argument(cpu, 0), call_argument(cpu, 1),
                                  call_argument(cpu, 2)};
    const bool is_in_library = object != NULL && (object->is_libc || object->has_malloc);
    const int rank = call_number(cpu) < 0 ? (is_in_library ? UNFIT : RUNS)
                                          : rank_call(image, call_number(cpu), arguments);

    return (object == NULL || !object->is_loader) && rank < UNFIT &&
           (rank != MAY_HAVE_LOCK || sleeps_long(image->pid, lent->tid)) &&
           !is_in_handler(image, lent->tid, stack_pointer(cpu));
}

/* Holds that thread, if fits() says so or is NULL; else it is let go as it was. None is held in a
 * restartable sequence. */
static bool
hold_thread(struct image *image, pid_t tid, struct lent *lent,
            bool (*fits)(struct image *image, const struct lent *lent))
{
    *lent = (struct lent){.tid = tid, .image = image};
    if (!stop_thread(image->pid, tid)) {
        return false;
    }
    if (!keep_thread(lent)) {
        let_go(tid);
        return false;
    }
    if (is_in_sequence(lent) || (fits != NULL && !fits(image, lent))) {
        restore(lent);
        return false;
    }
    return true;
}

/* Holds a thread that may be lent, if any of a round is at such a place. Those that look unfit are
 * tried once in a while, for /proc may be behind. */
static bool
lend_thread(struct image *image, unsigned round, struct lent *lent)
{
    size_t count = 0;
    OWNED struct candidate *list = list_candidates(image, &count);

    for (size_t i = 0; i < count && i < TRIED_AT_ONCE; i++) {
        bool is_tried = list[i].rank < UNFIT || round % 8 == 7;
        if (is_tried && hold_thread(image, list[i].tid, lent, may_be_lent)) {
            return true;
        }
    }
    return false;
}

/* Holds any thread, for system calls alone: in each round another one, who waits before who would
 * notice. */
static bool
hold_any_thread(struct image *image, unsigned round, struct lent *lent)
{
    size_t count = 0;
    OWNED struct candidate *list = list_candidates(image, &count);

    return hold_thread(image, list[round % count].tid, lent, NULL);
}

/* Has any thread make a system call. False where none was held. */
static bool
call_in_any_thread(struct image *image, unsigned round, long number,
                   const uint64_t arguments[6], long *result)
{
    static struct lent lent;

    if (!hold_any_thread(image, round, &lent)) {
        return false;
    }
    *result = call_kernel(&lent, number, arguments);
    put_back(&lent);
    return true;
}

#endif /* HAS_ATTACH */

#endif /* MANHOLE_CLI_ATTACH_CARRIER_C */
