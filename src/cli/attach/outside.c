/* Outside: the stacks of a process that has no manhole, and gets none.
 *
 *   1  Any thread is held, wherever it is, and makes a raw clone() for us: a copy of the process
 *      with this one thread, in which nothing moves. It has no lock that we need, for nothing but
 *      the kernel is called. Then it is put back: it stood still for as long as clone() takes.
 *   2  The copy, which ptrace holds from its birth, calls Py_FatalError(). That is in every
 *      CPython, takes no GIL, writes the stacks of all threads to standard error, and aborts. Its
 *      standard error is a memory file that we read, and a filter of the kernel's lets it do
 *      nothing else: above all it may send no signal, for musl's abort() would send it to the
 *      process.
 *   3  The copy is killed, and the held thread's process waits for it, so that no zombie is left:
 *      it was born without a signal to its parent, which so does not hear of it.
 *
 * A copy may have been made in the middle of a change that faulthandler trips over: a copy has
 * crashed then, and another one is made. The copy dies with us. A client that is killed between 1
 * and 3 leaves a zombie, which goes with the process.
 */
#ifndef MANHOLE_CLI_ATTACH_OUTSIDE_C
#define MANHOLE_CLI_ATTACH_OUTSIDE_C

#include "carrier.c"

#if HAS_ATTACH

#  include <linux/filter.h>
#  include <linux/seccomp.h>

enum {
    COPY_TRIES = 12, /* copies, until one has told all */
    COPY_PATIENCE_MS = 5000,
    COPY_MEMORY = 1024 * 1024,
    WORDS_AT = 0, /* in that memory */
    PROGRAM_AT = 64,
    FILTER_AT = 128,
};

/* A copy, held, as it was born. */
struct copy {
    struct lent lent;
    pid_t inner; /* its number in the process's own pid namespace */
};

/* ---- Making it --------------------------------------------------------------------- */

/* Has the held thread make the copy. Should we die before we hold that, it returns to _exit() at
 * once. Returns its pid, or a negative errno. */
static long
clone_thread(struct lent *lent, struct copy *copy)
{
    const uint64_t leave_at = find_libc(lent->image, "_exit");
    enum { END_OF_SYSCALL = 2 }; /* such a number is told at other stops */
    unsigned char birth[UNDER_FRAME];
    const size_t size = make_birth(&lent->was, leave_at, lent->scratch, birth);
    unsigned long born = 0;

    (void)ptrace(PTRACE_SETOPTIONS, lent->tid, NULL,
                 (unsigned long)(PTRACE_O_TRACESYSGOOD | PTRACE_O_TRACECLONE));
    if (!poke(lent->tid, lent->scratch, birth, size)) {
        return -EFAULT;
    }
    long result = call_kernel(lent, SYS_clone, ARGUMENTS(0, lent->scratch));
    bool is_born = result != LOST &&
                   ptrace(PTRACE_GETEVENTMSG, lent->tid, NULL, &born) == 0 &&
                   born > END_OF_SYSCALL;
    if (is_born) {
        struct cpu cpu = lent->was;
        bool is_back = run_to_syscall(lent->tid) && read_cpu(lent->tid, &cpu);
        copy->inner = is_back ? (pid_t)call_result(&cpu) : 0;
        result = (long)born;
    }
    /* On arm64 the result is the first argument, 0, until the call has ended. */
    return is_born || result == LOST || is_error(result) ? result : -ESRCH;
}

/* Has the held thread make a copy, and holds that; 0 or an errno. */
static int
make_copy(struct lent *lent, struct copy *copy)
{
    long pid = clone_thread(lent, copy);

    put_back(lent);
    if (pid == LOST || is_error(pid)) {
        return pid == LOST ? ESRCH : (int)-pid;
    }
    copy->lent = *lent;
    copy->lent.tid = (pid_t)pid;
    (void)await_status(copy->lent.tid, REMOTE_PATIENCE_MS);
    (void)ptrace(PTRACE_SETOPTIONS, copy->lent.tid, NULL,
                 (unsigned long)(PTRACE_O_TRACESYSGOOD | PTRACE_O_EXITKILL));
    return 0;
}

static void
kill_copy(const struct copy *copy)
{
    int status = 0;

    (void)kill(copy->lent.tid, SIGKILL);
    while (waitpid(copy->lent.tid, &status, __WALL) == copy->lent.tid &&
           WIFSTOPPED(status)) {
    }
}

/* ---- Having it write --------------------------------------------------------------- */

/* One instruction of a filter for system calls. */
static struct sock_filter
instruction(unsigned code, unsigned value, size_t if_so, size_t if_not)
{
    return (struct sock_filter){
        .code = (uint16_t)code, .jt = (uint8_t)if_so, .jf = (uint8_t)if_not, .k = value};
}

/* Confines the copy: it may write to standard error and do what needs nobody else. What would send
 * a signal or end it stops it, with SIGSYS: that is where it is done. All else fails with EPERM. */
static bool
confine_copy(const struct lent *lent, uint64_t memory)
{
    static const unsigned allowed[] = {
        SYS_rt_sigprocmask, SYS_rt_sigaction, SYS_sigaltstack,   SYS_getpid, SYS_gettid,
        SYS_futex,          SYS_brk,          SYS_mmap,          SYS_munmap, SYS_mprotect,
        SYS_madvise,        SYS_sched_yield,  SYS_clock_gettime,
    };
    static const unsigned ends[] = {
        SYS_tgkill, SYS_tkill,     SYS_kill, SYS_rt_sigqueueinfo, SYS_rt_tgsigqueueinfo,
        SYS_exit,   SYS_exit_group};
    enum {
        ALLOWED = sizeof(allowed) / sizeof(allowed[0]),
        ENDS = sizeof(ends) / sizeof(ends[0]),
        LAST = ALLOWED + ENDS + 7,
    };
    const unsigned load = BPF_LD | BPF_W | BPF_ABS;
    const unsigned is_equal = BPF_JMP | BPF_JEQ | BPF_K;
    const unsigned end = BPF_RET | BPF_K;
    struct sock_filter filter[LAST];
    struct {
        uint64_t length;
        uint64_t filter;
    } program_of_filter = {LAST, memory + FILTER_AT};
    size_t at = 0;

    filter[at++] = instruction(load, offsetof(struct seccomp_data, nr), 0, 0);
    for (size_t i = 0; i < ALLOWED; i++, at++) {
        filter[at] = instruction(is_equal, allowed[i], LAST - 2 - at, 0);
    }
    for (size_t i = 0; i < ENDS; i++, at++) {
        filter[at] = instruction(is_equal, ends[i], LAST - 3 - at, 0);
    }
    filter[at++] = instruction(is_equal, SYS_write, 0, 2);
    filter[at++] = instruction(load, offsetof(struct seccomp_data, args[0]), 0, 0);
    filter[at++] = instruction(is_equal, STDERR_FILENO, 2, 0);
    filter[at++] = instruction(end, SECCOMP_RET_ERRNO | EPERM, 0, 0);
    filter[at++] = instruction(end, SECCOMP_RET_TRAP, 0, 0);
    filter[at++] = instruction(end, SECCOMP_RET_ALLOW, 0, 0);
    return poke(lent->tid, memory + PROGRAM_AT, &program_of_filter,
                sizeof(program_of_filter)) &&
           poke(lent->tid, memory + FILTER_AT, filter, sizeof(filter)) &&
           call_kernel(lent, SYS_prctl, ARGUMENTS(PR_SET_NO_NEW_PRIVS, 1)) == 0 &&
           call_kernel(
               lent, SYS_prctl,
               ARGUMENTS(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, memory + PROGRAM_AT)) == 0;
}

/* Puts a memory file in the place of the copy's standard error. Returns our own descriptor of it,
 * or -1. Descriptor 0 is free for it then, where the process has no other left. */
static int
redirect_copy(const struct lent *lent, uint64_t memory)
{
    static const char words[] = "stacks";

    if (!poke(lent->tid, memory + WORDS_AT, words, sizeof(words))) {
        return -1;
    }
    (void)call_kernel(lent, SYS_close, ARGUMENTS(STDIN_FILENO));
    long fd =
        call_kernel(lent, SYS_memfd_create, ARGUMENTS(memory + WORDS_AT, MFD_CLOEXEC));
    if (fd == LOST || is_error(fd) ||
        call_kernel(lent, SYS_dup3, ARGUMENTS((uint64_t)fd, STDERR_FILENO, 0)) !=
            STDERR_FILENO) {
        return -1;
    }
    return open(proc_path(lent->tid, print("fd/%ld", fd).text).text,
                O_RDONLY | O_CLOEXEC);
}

/* Has the copy call Py_FatalError(), and returns whether it came to its end. It comes to rest
 * first, for what it was in the middle of is not to begin anew. */
static bool
run_fatal_error(const struct lent *lent, uint64_t memory)
{
    const uint64_t function = find_python(lent->image, "Py_FatalError");
    const uint64_t nowhere = 0;
    const uint64_t no_signals = 0;
    struct cpu cpu = lent->was;
    int status = STOPPED_AS_ASKED << 16;

    if (!run_to_rest(lent->tid) ||
        !poke(lent->tid, memory + COPY_MEMORY - 16 - 8, &nowhere, sizeof(nowhere))) {
        return false;
    }
    prepare_call(&cpu, function, memory + COPY_MEMORY - 16, memory + WORDS_AT, 0, 0);
    if (!write_regs(lent->tid, &cpu)) {
        return false;
    }
    (void)ptrace(PTRACE_SETSIGMASK, lent->tid, sizeof(no_signals), &no_signals);
    while (status > 0 && status >> 16 == STOPPED_AS_ASKED) {
        (void)ptrace(PTRACE_CONT, lent->tid, NULL, NULL);
        status = await_status(lent->tid, COPY_PATIENCE_MS);
    }
    return status > 0 && WSTOPSIG(status) == SIGSYS;
}

/* What is asked of a process, and what came of it. */
struct outside_look {
    struct image image;
    struct copy copy;
    struct buffer answer;
    int result; /* 0: it is the answer; an errno: there can be no copy; -1: the copies died */
};

/* Whether the copy has told all; then that is the answer. */
static bool
has_told(const struct lent *copy, struct buffer *answer)
{
    long memory = call_kernel(copy, SYS_mmap,
                              ARGUMENTS(0, COPY_MEMORY, PROT_READ | PROT_WRITE,
                                        MAP_PRIVATE | MAP_ANONYMOUS, (uint64_t)-1));

    if (memory == LOST || is_error(memory)) {
        return false;
    }
    OWNED_FD file = redirect_copy(copy, (uint64_t)memory);
    return file >= 0 && confine_copy(copy, (uint64_t)memory) &&
           run_fatal_error(copy, (uint64_t)memory) && lseek(file, 0, SEEK_SET) == 0 &&
           read_all(file, answer) &&
           strstr(text_of(answer), "most recent call first") != NULL;
}

/* Makes a copy and asks it. */
static bool
ask_copy(void *argument, unsigned round)
{
    static struct lent lent;
    struct outside_look *look = argument;

    if (!hold_any_thread(&look->image, round, &lent)) {
        return false;
    }
    look->result = make_copy(&lent, &look->copy);
    if (look->result == 0) {
        look->result = has_told(&look->copy.lent, &look->answer) ? 0 : -1;
        kill_copy(&look->copy);
    }
    return true;
}

/* Has a thread of the process take the dead copy's exit status: by its number, for without one
 * wait4() would take that of a child of the application's. */
static bool
bury_copy(void *argument, unsigned round)
{
    struct outside_look *look = argument;
    long buried = 0;

    return look->copy.inner <= 0 ||
           (call_in_any_thread(&look->image, round, SYS_wait4,
                               ARGUMENTS((uint64_t)look->copy.inner, 0, __WALL | WNOHANG),
                               &buried) &&
            buried != 0);
}

/* Asks copies, until one has told all. */
static void
ask_copies(struct outside_look *look)
{
    look->result = -1;
    for (int i = 0; i < COPY_TRIES && look->result < 0; i++) {
        empty(&look->answer);
        look->copy.inner = 0;
        if (!trace(ask_copy, look)) {
            look->result = EBUSY;
        }
        (void)trace(bury_copy, look);
    }
}

/* Has copies tell all stacks, or ends the program. */
static void
look_from_outside(const struct image *image, struct buffer *answer)
{
    static struct outside_look look;

    find_gadgets(image);
    look.image = *image;
    ask_copies(&look);
    if (look.result != 0) {
        check_life(image->pid);
        check_frames(image->pid);
        errno = look.result;
        fail(STATUS_NO_CONNECTION,
             look.result > 0
                 ? "cannot make a copy of process %d: %m"
                 : "the copies of process %d died before they had told their stacks",
             (int)image->pid);
    }
    *answer = look.answer;
}

#endif /* HAS_ATTACH */

#endif /* MANHOLE_CLI_ATTACH_OUTSIDE_C */
