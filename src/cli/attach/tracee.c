/* Tracee: holding a thread of the process by ptrace, having it make system calls, putting it back.
 *
 * A thread is seized, which does not stop it, and then interrupted, which sends it no signal. While
 * it is held:
 *   - what it was is kept: registers, vectors, signal mask. restore() puts that back, and lets go.
 *   - a signal frame with all that lies on its stack, below what it uses (cpu.c), or later in
 *     memory of ours. Whatever it runs for us returns there. So a client that is killed, which
 *     lets the kernel detach from all its tracees, leaves a thread that finishes what it does,
 *     goes home by rt_sigreturn, and is as it was. This holds between any two steps here.
 *   - all signals are blocked in it, but those that a fault of ours would raise: none is lost, they
 *     wait. Blocked only once there is a way back that unblocks them, that is, after the registers.
 *   - a signal that is on its way when it stops is delivered first.
 *   - a fault's signal that somebody sends meanwhile waits as well, see postpone().
 *
 * What lay below its stack is put back, too: a coroutine's stack may have somebody else's data
 * there. All of this runs in a thread of ours that lives no longer than that, see trace().
 */
#ifndef MANHOLE_CLI_ATTACH_TRACEE_C
#define MANHOLE_CLI_ATTACH_TRACEE_C

#include "../signals.c"
#include "arm64.c"
#include "elf.c"
#include "rights.c"
#include "x86_64.c"
#include <pthread.h>

#if HAS_ATTACH

enum {
    STOPPED_AS_ASKED = 128, /* PTRACE_EVENT_STOP */
    AT_SYSCALL = SIGTRAP | 0x80,
    STOP_PATIENCE_MS = 20,     /* for a thread to stop */
    LENDING_PATIENCE_S = 3,    /* for one that may be lent */
    REMOTE_PATIENCE_MS = 2000, /* for what takes microseconds */
    SCRATCH_SIZE = FRAME_SIZE + UNDER_FRAME,
};

/* A thread that is held. */
struct lent {
    pid_t tid;
    const struct image *image;
    struct cpu was;
    uint64_t mask;  /* of signals, as it was */
    uint64_t frame; /* where the way home lies */
    uint64_t
        scratch; /* below its stack: the frame at first, and under that UNDER_FRAME */
    unsigned char below[SCRATCH_SIZE]; /* what was there */
};

enum stop {
    STOP_LATE = -1, /* it has not stopped in time */
    STOP_GONE = -2, /* there is no such thread any more */
};

/* Where these bytes are in what an object has to be executed; 0: nowhere. */
static uint64_t
find_code(const struct image *image, const struct object *object, const void *bytes,
          size_t count)
{
    for (size_t i = 0; i < image->mapping_count; i++) {
        const struct mapping *mapping = &image->mappings[i];
        size_t size = (size_t)(mapping->end - mapping->start);
        if (!mapping->is_executable || mapping->start < object->base ||
            mapping->start >= object->end) {
            continue;
        }
        OWNED char *code = allocate(size, 1);
        const char *at = peek(image->pid, mapping->start, code, size)
                             ? memmem(code, size, bytes, count)
                             : NULL;
        if (at != NULL) {
            return mapping->start + (uint64_t)(at - code);
        }
    }
    return 0;
}

/* Also where it may only be executed. */
static bool
poke_code(pid_t pid, uint64_t address, const void *from, size_t size)
{
    OWNED_FD memory = open(proc_path(pid, "mem").text, O_RDWR | O_CLOEXEC);
    return memory >= 0 && pwrite(memory, from, size, (off_t)address) == (ssize_t)size;
}

static struct gadgets gadgets;

/* Finds them in the C library; from a handler glibc on arm64 returns by the vdso. Ends the program
 * where they are not both there. */
static void
find_gadgets(const struct image *image)
{
    for (size_t i = 0; i < image->object_count; i++) {
        const struct object *object = &image->objects[i];
        if (object->is_libc && gadgets.call == 0) {
            gadgets.call = find_code(image, object, syscall_code, sizeof(syscall_code));
        }
        if ((object->is_libc || object->is_vdso) && gadgets.back == 0) {
            gadgets.back = find_code(image, object, return_code, sizeof(return_code));
        }
    }
    if (gadgets.call == 0 || gadgets.back == 0) {
        check_life(image->pid);
        fail(STATUS_NO_CONNECTION,
             "process %d has a C library that is neither glibc nor musl as they are "
             "known here",
             (int)image->pid);
    }
}

/* ---- Stops ------------------------------------------------------------------------- */

/* Returns the status of a tracee that stops, or an enum stop. SIGCHLD is blocked. */
static int
await_status(pid_t tid, int patience_ms)
{
    const double deadline = now_s() + patience_ms / 1e3;
    sigset_t child;
    int status = 0;

    (void)sigemptyset(&child);
    (void)sigaddset(&child, SIGCHLD);
    for (;;) {
        pid_t found = waitpid(tid, &status, __WALL | WNOHANG);
        int left_ms = patience_until(deadline);
        if (found != 0) {
            return found == tid && WIFSTOPPED(status) ? status : STOP_GONE;
        }
        if (left_ms == 0) {
            return STOP_LATE;
        }
        (void)sigtimedwait(&child, NULL,
                           &(struct timespec){.tv_sec = left_ms / 1000,
                                              .tv_nsec = left_ms % 1000 * 1000000L});
    }
}

/* Awaits the stop of a seized thread that was interrupted; a signal on its way is delivered. errno
 * is EAGAIN when that has not come in time. */
static bool
await_stop(pid_t tid, int patience_ms)
{
    const double deadline = now_s() + patience_ms / 1e3;

    for (;;) {
        int status = await_status(tid, patience_until(deadline));
        if (status < 0) {
            errno = status == STOP_LATE ? EAGAIN : ESRCH;
            return false;
        }
        int event = status >> 16;
        if (event == STOPPED_AS_ASKED) {
            errno = EBUSY; /* by SIGSTOP, with all others of the process */
            return WSTOPSIG(status) == SIGTRAP;
        }
        /* Any stop takes the place of the one that was asked for. Asked for anew before it goes on,
         * that comes before another signal. */
        (void)ptrace(PTRACE_INTERRUPT, tid, NULL, NULL);
        if (ptrace(PTRACE_CONT, tid, NULL, event != 0 ? 0L : (long)WSTOPSIG(status)) <
            0) {
            return false;
        }
    }
}

static void
let_go(pid_t tid)
{
    (void)ptrace(PTRACE_DETACH, tid, NULL, NULL);
}

/* Seizes and stops a thread. False when it is gone, or does not stop just now, being in the
 * kernel's deepest sleep, or waiting for vfork()'s child: then the end of trace() lets go of it. */
static bool
stop_thread(pid_t pid, pid_t tid)
{
    if (ptrace(PTRACE_SEIZE, tid, NULL, (unsigned long)PTRACE_O_TRACESYSGOOD) < 0) {
        int error = errno;
        if (error != ESRCH &&
            !has_ended(tid)) { /* EPERM for one that has just ended, too */
            fail_denied(pid, error);
        }
        return false;
    }
    (void)ptrace(PTRACE_INTERRUPT, tid, NULL, NULL);
    if (!await_stop(tid, STOP_PATIENCE_MS)) {
        let_go(tid);
        return false;
    }
    return true;
}

/* ---- Keeping, and putting back ----------------------------------------------------- */

static pid_t too_large; /* a thread of which there is no frame; 0: none was seen */

/* Puts the way home there. */
static bool
place_frame(struct lent *lent, uint64_t address)
{
    unsigned char bytes[FRAME_SIZE];
    size_t size = make_frame(&lent->was, lent->mask, gadgets.back, address, bytes);

    too_large = size == 0 ? lent->tid : too_large;
    if (size == 0 || !poke(lent->tid, address, bytes, size)) {
        return false;
    }
    lent->frame = address;
    return true;
}

/* No thread came. Ends the program if that may be why. */
static void
check_frames(pid_t pid)
{
    if (too_large != 0) {
        fail(
            STATUS_NO_CONNECTION,
            "thread %d of process %d has more in its processor's registers than a signal "
            "frame of ours can hold (SME, long vectors), so it is not held; try again",
            (int)too_large, (int)pid);
    }
}

static bool
place_frame_on_stack(struct lent *lent)
{
    return place_frame(lent, lent->scratch + UNDER_FRAME);
}

/* Notes all that a stopped thread is, and puts the way home on its stack. */
static bool
keep_thread(struct lent *lent)
{
    if (!read_cpu(lent->tid, &lent->was) ||
        ptrace(PTRACE_GETSIGMASK, lent->tid, sizeof(lent->mask), &lent->mask) < 0) {
        return false;
    }
    lent->scratch = (stack_pointer(&lent->was) - RED_ZONE - SCRATCH_SIZE) / 64 * 64;
    return peek(lent->tid, lent->scratch, lent->below, sizeof(lent->below)) &&
           place_frame_on_stack(lent);
}

/* Puts all back, and lets go: the process is as it was. One that is not stopped refuses: then its
 * stack is left alone, for its way home lies there, or it is another program's after an exec. */
static void
restore(struct lent *lent)
{
    settle_call(&lent->was);
    (void)ptrace(PTRACE_SETSIGMASK, lent->tid, sizeof(lent->mask), &lent->mask);
    if (write_cpu(lent->tid, &lent->was)) {
        (void)poke(lent->tid, lent->scratch, lent->below, sizeof(lent->below));
    }
    let_go(lent->tid);
}

/* ---- Having it do something -------------------------------------------------------- */

/* Whether a signal that is to be delivered now is somebody's, and no fault of what it runs for us.
 * It is blocked then: the kernel, given it back, keeps it until the mask is put back. SIGSTOP takes
 * effect, for it cannot be blocked; that does not keep us from going on. */
static bool
postpone(pid_t tid, int signal)
{
    siginfo_t info = {.si_code = SI_KERNEL};
    uint64_t mask = 0;

    (void)ptrace(PTRACE_GETSIGINFO, tid, NULL, &info);
    if (signal != SIGSTOP && info.si_code > 0) {
        return false;
    }
    (void)ptrace(PTRACE_GETSIGMASK, tid, sizeof(mask), &mask);
    mask |= 1UL << (signal - 1);
    return ptrace(PTRACE_SETSIGMASK, tid, sizeof(mask), &mask) == 0;
}

/* Runs to the next beginning or end of a system call, or to the birth of a copy. */
static bool
run_to_syscall(pid_t tid)
{
    int signal = 0;

    for (;;) {
        if (ptrace(PTRACE_SYSCALL, tid, NULL, (long)signal) < 0) {
            return false;
        }
        int status = await_status(tid, REMOTE_PATIENCE_MS);
        if (status < 0) {
            return false;
        }
        int event = status >> 16;
        if (event == PTRACE_EVENT_CLONE || WSTOPSIG(status) == AT_SYSCALL) {
            return true;
        }
        signal =
            event == 0 ? WSTOPSIG(status) : 0; /* else stopped by SIGSTOP, meanwhile */
        if (signal != 0 && !postpone(tid, signal)) {
            return false;
        }
    }
}

/* From the end of a system call to a stop as at first, where the registers that are put back are
 * taken for those of an interrupted call, if they are. */
static bool
run_to_rest(pid_t tid)
{
    if (ptrace(PTRACE_INTERRUPT, tid, NULL, NULL) < 0 ||
        ptrace(PTRACE_CONT, tid, NULL, NULL) < 0) {
        return false;
    }
    int status = await_status(tid, REMOTE_PATIENCE_MS);
    return status > 0 && status >> 16 == STOPPED_AS_ASKED;
}

/* After system calls of ours. */
static void
put_back(struct lent *lent)
{
    (void)run_to_rest(lent->tid);
    restore(lent);
}

/* Blocks all signals but those of a fault of ours. */
static void
block_signals(pid_t tid)
{
    static const int faults[] = {SIGSEGV, SIGBUS, SIGILL, SIGTRAP, SIGSYS, SIGFPE};
    uint64_t mask = ~0UL;

    for (size_t i = 0; i < sizeof(faults) / sizeof(faults[0]); i++) {
        mask &= ~(1UL << (faults[i] - 1));
    }
    (void)ptrace(PTRACE_SETSIGMASK, tid, sizeof(mask), &mask);
}

#  define ARGUMENTS(...)                                                                 \
    (const uint64_t[6])                                                                  \
    {                                                                                    \
      __VA_ARGS__                                                                        \
    }

enum {
    LOST = -100000
}; /* instead of a system call's result: the thread does not come back */

/* Has the thread make a system call, and returns its result, or LOST. A clone() that a signal has
 * come before the kernel begins anew. */
static long
call_kernel(const struct lent *lent, long number, const uint64_t arguments[6])
{
    struct cpu cpu = lent->was;

    prepare_syscall(&cpu, &gadgets, lent->frame, number, arguments);
    if (!write_regs(lent->tid, &cpu)) {
        return LOST;
    }
    block_signals(lent->tid);
    bool is_back = false;
    do {
        is_back = run_to_syscall(lent->tid);            /* to its beginning */
        is_back = is_back && run_to_syscall(lent->tid); /* and to its end */
        is_back = is_back && read_cpu(lent->tid, &cpu);
    } while (is_back && call_result(&cpu) == -NOINTR);
    return is_back ? call_result(&cpu) : LOST;
}

static bool
is_error(long result)
{
    return result < 0 && result >= -4095;
}

/* What is done while threads of the process may be held. round counts from 0. Returns false where
 * no thread came to do it with: it is tried again then. */
typedef bool traced_work(void *argument, unsigned round);

/* One round of it. */
struct trace {
    traced_work *work;
    void *argument;
    unsigned round;
    bool is_done;
    pid_t tid; /* of the tracer */
};

static void *
trace_once(void *argument)
{
    struct trace *trace = argument;

    trace->tid = (pid_t)syscall(SYS_gettid);
    trace->is_done = trace->work(trace->argument, trace->round);
    return NULL;
}

/* For a moment of no fixed length, lest we always come at the same place of a loop. */
static void
doze(void)
{
    struct timespec now;

    (void)clock_gettime(CLOCK_MONOTONIC, &now);
    (void)nanosleep(&(struct timespec){.tv_nsec = 200000 + now.tv_nsec % 1000000}, NULL);
}

/* Calls work until it is done, or for some seconds, and returns whether it was. Each round has a
 * thread of its own, with all signals blocked: nothing but SIGKILL is to end us while a thread is
 * held. When a tracer ends, and to the kernel each thread is one, it lets go of all that it has
 * seized: so no thread stays held that was asked to stop and has not stopped yet. That is done when
 * the kernel knows the tracer no more, a moment after pthread_join(). */
static bool
trace(traced_work *work, void *argument)
{
    const double deadline = now_s() + LENDING_PATIENCE_S;
    struct trace trace = {.work = work, .argument = argument};
    sigset_t all;
    sigset_t before;

    (void)sigfillset(&all);
    (void)pthread_sigmask(SIG_SETMASK, &all, &before);
    do {
        pthread_t tracer;
        int error = pthread_create(&tracer, NULL, trace_once, &trace);
        if (error != 0) {
            errno = error;
            fail(STATUS_TROUBLE, "cannot start a thread: %m");
        }
        (void)pthread_join(tracer, NULL);
        while (syscall(SYS_tgkill, getpid(), trace.tid, 0) == 0) {
            (void)sched_yield();
        }
        trace.round++;
        if (!trace.is_done) {
            doze();
        }
    } while (!trace.is_done && now_s() < deadline);
    (void)pthread_sigmask(SIG_SETMASK, &before, NULL);
    return trace.is_done;
}

#endif /* HAS_ATTACH */

#endif /* MANHOLE_CLI_ATTACH_TRACEE_C */
