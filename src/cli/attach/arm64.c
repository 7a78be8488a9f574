/* arm64: what cpu.c tells of, for this processor. It has run in an emulated machine (qemu-system),
 * with Linux 6.1 and 7.2, pages of 4 and of 16 KB, vectors of 64 bytes; on hardware it has not.
 *
 * Here the kernel undoes an interrupted system call before the stop: the thread stands at the
 * instruction, "svc", with its first argument back, and no number is told any more. So the number
 * is read where that instruction would find it, in x8. Three things follow:
 *   - a call that ended with EINTR, as epoll_pwait() does, has its result in the place of its first
 *     argument, so it cannot be begun anew for it;
 *   - a wait with a timeout of its own, nanosleep() say, is one that only the kernel can go on
 *     with. No debugger sees which kind it is, so it is told by its number;
 *   - at the beginning and the end of a system call, where we stop a thread that works for us, x7
 *     is the kernel's. Nothing is put back there.
 *
 * A function's return address is in x30, and the stack is always at a multiple of 16. Vectors of
 * SVE go into the frame with the others. A thread with live state of SME, or vectors of more than
 * 96 bytes, has more than a frame of ours can hold, and is never held.
 */
#ifndef MANHOLE_CLI_ATTACH_ARM64_C
#define MANHOLE_CLI_ATTACH_ARM64_C

#include "cpu.c"

#if HAS_ATTACH && !defined(__x86_64__)

#  include <elf.h>
#  include <linux/futex.h>
#  include <sys/auxv.h>
#  include <sys/ptrace.h>
#  include <sys/syscall.h>
#  include <sys/uio.h>
#  include <sys/user.h>

/* There is one of each kind of system call alone, which the C libraries call for the others. */
#  define SYS_open SYS_openat
#  define SYS_pause SYS_ppoll
#  define SYS_poll SYS_ppoll
#  define SYS_select SYS_pselect6
#  define SYS_epoll_wait SYS_epoll_pwait

enum {
    RED_ZONE = 0,
    FRAME_SIZE = 4608,  /* of a signal frame at most */
    UNDER_FRAME = 4608, /* room for what make_birth() fills in */
    MOST_VECTORS = 6,   /* in 16 bytes, as long as they may be */
    SVE_SIZE = 4096,    /* more than that takes, as ptrace gives it */
};

/* Sets of registers, by the numbers that ptrace knows them by. */
enum register_set {
    SET_SYSTEM_CALL = 0x404,
    SET_SVE = 0x405,
    SET_STREAMING = 0x40b, /* vectors of SME's */
    SET_ZA = 0x40c,        /* its matrix */
};

/* How the last three begin. */
struct set_header {
    uint32_t size;
    uint32_t most_size;
    uint16_t length; /* of a vector, in bytes */
    uint16_t most_length;
    uint16_t flags; /* 1: there is more than the vectors that all processors have */
    uint16_t unused;
};

struct cpu {
    struct user_regs_struct regs;
    struct user_fpsimd_struct vectors;
    long call;                   /* the system call's number; -1: it is in none */
    bool has_more;               /* than is kept here */
    size_t sve_size;             /* 0: the vectors above are all */
    unsigned char sve[SVE_SIZE]; /* the header, Z0 to Z31, P0 to P15, FFR */
};

/* In the C library "svc #0; ret", in the vdso or in musl "mov x8, #139; svc #0", which is
 * rt_sigreturn. */
static const unsigned char syscall_code[] = {0x01, 0, 0, 0xd4, 0xc0, 0x03, 0x5f, 0xd6};
static const unsigned char return_code[] = {0x68, 0x11, 0x80, 0xd2, 0x01, 0, 0, 0xd4};

/* ---- A stopped thread -------------------------------------------------------------- */

/* Returns how many bytes of that set have been read; -1: there is none. */
static long
read_set(pid_t tid, unsigned set, void *to, size_t size)
{
    struct iovec vector = {.iov_base = to, .iov_len = size};

    return ptrace(PTRACE_GETREGSET, tid, (unsigned long)set, &vector) == 0
               ? (long)vector.iov_len
               : -1;
}

static bool
write_set(pid_t tid, unsigned set, const void *from, size_t size)
{
    struct iovec vector = {.iov_base = NULL, .iov_len = size};

    memcpy(&vector.iov_base, &from,
           sizeof(from)); /* only read, though the type says no */
    return ptrace(PTRACE_SETREGSET, tid, (unsigned long)set, &vector) == 0;
}

/* The system call at which a thread stands, with the instructions before and at its program
 * counter; behind one only if that has ended as no other does. */
static long
call_at(const struct user_regs_struct *regs, uint64_t instructions)
{
    const uint32_t supervisor_call = 0xd4000001;
    const long number = (int)regs->regs[8];
    bool is_before = (uint32_t)(instructions >> 32) == supervisor_call;
    bool is_behind =
        (uint32_t)instructions == supervisor_call && (long)regs->regs[0] == -EINTR;

    return is_before || (is_behind && number == SYS_epoll_pwait) ? number : -1;
}

/* The system call that a stopped thread is in. Where it stops for us the kernel tells. */
static long
find_call(pid_t tid, const struct user_regs_struct *regs)
{
    int number = -1;

    if (read_set(tid, SET_SYSTEM_CALL, &number, sizeof(number)) > 0 && number >= 0) {
        return number;
    }
    errno = 0;
    long instructions = ptrace(PTRACE_PEEKTEXT, tid, regs->pc - 4, NULL);
    return errno == 0 ? call_at(regs, (uint64_t)instructions) : -1;
}

/* Reads what there is besides plain vectors. */
static void
read_more(pid_t tid, struct cpu *cpu)
{
    struct set_header header = {.flags = 0};
    bool is_streaming = read_set(tid, SET_STREAMING, &header, sizeof(header)) > 0 &&
                        (header.flags & 1) != 0;
    bool has_matrix = read_set(tid, SET_ZA, &header, sizeof(header)) > 0 &&
                      header.size > sizeof(header);

    cpu->has_more = is_streaming || has_matrix;
    cpu->sve_size = 0;
    if (read_set(tid, SET_SVE, cpu->sve, sizeof(cpu->sve)) > 0) {
        memcpy(&header, cpu->sve, sizeof(header));
        cpu->sve_size = (header.flags & 1) != 0 ? (header.size + 15) / 16 * 16 : 0;
        cpu->has_more |= cpu->sve_size > 0 && header.length > MOST_VECTORS * 16;
    }
}

static bool
read_cpu(pid_t tid, struct cpu *cpu)
{
    if (read_set(tid, NT_PRSTATUS, &cpu->regs, sizeof(cpu->regs)) < 0 ||
        read_set(tid, NT_FPREGSET, &cpu->vectors, sizeof(cpu->vectors)) < 0) {
        return false;
    }
    cpu->call = find_call(tid, &cpu->regs);
    read_more(tid, cpu);
    return true;
}

static bool
write_regs(pid_t tid, const struct cpu *cpu)
{
    return write_set(tid, NT_PRSTATUS, &cpu->regs, sizeof(cpu->regs));
}

static bool
write_cpu(pid_t tid, struct cpu *cpu)
{
    return (cpu->sve_size > 0
                ? write_set(tid, SET_SVE, cpu->sve, cpu->sve_size)
                : write_set(tid, NT_FPREGSET, &cpu->vectors, sizeof(cpu->vectors))) &&
           write_regs(tid, cpu);
}

static uint64_t
program_counter(const struct cpu *cpu)
{
    return cpu->regs.pc;
}

static uint64_t
stack_pointer(const struct cpu *cpu)
{
    return cpu->regs.sp;
}

/* The system call that the stop has interrupted; -1: it was in none. */
static long
call_number(const struct cpu *cpu)
{
    return cpu->call;
}

static uint64_t
call_argument(const struct cpu *cpu, int number)
{
    return cpu->regs.regs[number];
}

static long
call_result(const struct cpu *cpu)
{
    return (long)cpu->regs.regs[0];
}

/* Whether a thread stands before a call that it was in, and that goes on for what was left of its
 * timeout: the kernel has noted that. Other timeouts are moments, or the kernel has written into
 * them what was left. */
static bool
is_timed_wait(const struct cpu *cpu)
{
    const uint64_t operation = call_argument(cpu, 1);
    const bool has_timeout = call_argument(cpu, 3) != 0;

    switch (call_number(cpu)) {
    case SYS_nanosleep:
    case SYS_restart_syscall:
        return true;
    case SYS_clock_nanosleep:
        return (operation & TIMER_ABSTIME) == 0;
    case SYS_futex:
        return (operation & (uint64_t)FUTEX_CMD_MASK) == FUTEX_WAIT && has_timeout;
    default:
        return false;
    }
}

/* After calls of ours the kernel does not see that it has to do this. */
static void
settle_call(struct cpu *cpu)
{
    if (is_timed_wait(cpu)) {
        cpu->regs.regs[8] = SYS_restart_syscall;
    }
}

/* Has it go on there. The kernel's note that it has just branched has to go, or "bti", where
 * that is wanted, would fault. */
static void
redirect(struct cpu *cpu, uint64_t code, uint64_t stack, uint64_t return_to)
{
    enum { BRANCH_TYPE = 0xc00 };
    struct user_regs_struct *regs = &cpu->regs;

    regs->pc = code;
    regs->sp = stack;
    regs->regs[30] = return_to;
    regs->pstate &= ~(uint64_t)BRANCH_TYPE;
}

/* Has the thread make a system call, and then return from a handler with that frame. */
static void
prepare_syscall(struct cpu *cpu, const struct gadgets *gadgets, uint64_t frame,
                long number, const uint64_t arguments[6])
{
    redirect(cpu, gadgets->call, frame, gadgets->back);
    memcpy(cpu->regs.regs, arguments, 6 * sizeof(*arguments));
    cpu->regs.regs[8] = (uint64_t)number;
}

/* Has the thread call a function as C does, the stack free below an aligned address. The frame is
 * for sent_code. */
static void
prepare_call(struct cpu *cpu, uint64_t function, uint64_t stack, uint64_t first,
             uint64_t second, uint64_t frame)
{
    redirect(cpu, function, stack, 0);
    cpu->regs.regs[0] = first;
    cpu->regs.regs[1] = second;
    cpu->regs.regs[20] = frame;
}

/* ---- The way home ------------------------------------------------------------------ */

/* As the kernel lays it out on the stack: siginfo, which rt_sigreturn does not read, the context,
 * and records, each with its kind and size. */
struct frame {
    uint64_t siginfo[16];
    uint64_t flags;
    uint64_t link;
    uint64_t stack;
    uint64_t stack_flags;
    uint64_t stack_size;
    uint64_t mask;
    uint64_t unused[16];
    uint64_t fault;
    uint64_t regs[31];
    uint64_t sp;
    uint64_t pc;
    uint64_t pstate;
    uint64_t padding;
    struct {
        uint32_t kind;
        uint32_t size;
        uint32_t status;
        uint32_t control;
        unsigned char vectors[32 * 16];
    } simd;
};

enum { SIMD = 0x46508001, SVE = 0x53564501 }; /* kinds of records */

_Static_assert(offsetof(struct frame, fault) == 304 &&
                   offsetof(struct frame, simd) == 592,
               "as the kernel has them");

/* Fills in the record of SVE's vectors, if there is one, and returns its size. It is laid out as
 * ptrace gives them, less the header. */
static size_t
make_sve(const struct cpu *cpu, unsigned char *bytes)
{
    struct set_header header;
    struct {
        uint32_t kind;
        uint32_t size;
        uint16_t length;
        uint16_t unused[3];
    } record = {.kind = SVE};

    if (cpu->sve_size == 0) {
        return 0;
    }
    memcpy(&header, cpu->sve, sizeof(header));
    size_t vectors = (size_t)header.length * 32 + header.length / 8U * 17;
    record.length = header.length;
    record.size = (uint32_t)(sizeof(record) + vectors + 15) / 16 * 16;
    memcpy(bytes, &record, sizeof(record));
    memcpy(bytes + sizeof(record), cpu->sve + sizeof(header), vectors);
    return record.size;
}

/* Whether a handler's frame begins with this word of a stack: the kernel writes no flags, no link,
 * and the record of all processors' vectors before others. */
static bool
is_handler_frame(const uint64_t words[], size_t count)
{
    enum { FLAGS = 16, LINK = 17, FIRST_RECORD = 74, SIZE = 528 };
    const uint64_t record = (uint64_t)SIZE << 32 | SIMD;

    return count > FIRST_RECORD && words[FLAGS] == 0 && words[LINK] == 0 &&
           words[FIRST_RECORD] == record;
}

/* Fills bytes, FRAME_SIZE of them, with a frame that is to lie at that address, and returns its
 * size; 0: it cannot be made. Where to return to, and its address, are no part of it here. */
static size_t
make_frame(const struct cpu *cpu, uint64_t mask, uint64_t return_to, uint64_t address,
           unsigned char *bytes)
{
    enum { KEEP_STACK = 0x7fffffff };
    struct frame frame = {
        .stack_flags = KEEP_STACK, /* is refused, so the signal stack stays as it is */
        .mask = mask,
        .sp = cpu->regs.sp,
        .pc = cpu->regs.pc,
        .pstate = cpu->regs.pstate,
        .simd = {.kind = SIMD,
                 .size = sizeof(frame.simd),
                 .status = cpu->vectors.fpsr,
                 .control = cpu->vectors.fpcr},
    };

    (void)return_to;
    (void)address;
    memcpy(frame.regs, cpu->regs.regs, sizeof(frame.regs));
    memcpy(frame.simd.vectors, cpu->vectors.vregs, sizeof(frame.simd.vectors));
    if (is_timed_wait(cpu)) { /* only the kernel knows how much of the timeout was left */
        frame.pc += 4;
        frame.regs[0] = (uint64_t)-EINTR;
    }
    memset(bytes, 0, FRAME_SIZE); /* and an empty record is the end */
    memcpy(bytes, &frame, sizeof(frame));
    size_t size = make_sve(cpu, bytes + sizeof(frame));
    return cpu->has_more ? 0 : sizeof(frame) + size + 16;
}

/* Fills bytes, UNDER_FRAME of them, with what a copy finds at its stack's end, that address: it is
 * to leave as soon as it runs. It returns as the thread does whose copy it is, so to a frame. */
static size_t
make_birth(const struct cpu *cpu, uint64_t leave_at, uint64_t address,
           unsigned char *bytes)
{
    struct cpu born = {.regs = cpu->regs, .call = -1};

    redirect(&born, leave_at, cpu->regs.sp / 16 * 16, 0);
    born.regs.regs[0] = 0;
    return make_frame(&born, ~0UL, 0, address, bytes);
}

/* ---- The code that goes over ------------------------------------------------------- */

/* The frame is in x20, the result in w21. */
__asm__(".pushsection .rodata\n"
        ".balign 16\n"
        "sent_code:\n"
        "  mov x19, x0\n"
        "  add x0, x19, #" ERRAND_ATTRIBUTES "\n"
        "  ldr x16, [x19, #" ERRAND_ATTR_INIT "]\n"
        "  blr x16\n"
        "  cbnz w0, 1f\n"
        "  add x0, x19, #" ERRAND_ATTRIBUTES "\n"
        "  mov w1, #1\n" /* PTHREAD_CREATE_DETACHED */
        "  ldr x16, [x19, #" ERRAND_SET_DETACHED "]\n"
        "  blr x16\n"
        "  cbnz w0, 1f\n"
        "  add x0, x19, #" ERRAND_ATTRIBUTES "\n"
        "  ldr x1, [x19, #" ERRAND_STACK_SIZE "]\n"
        "  ldr x16, [x19, #" ERRAND_SET_STACK_SIZE "]\n"
        "  blr x16\n"
        "  cbnz w0, 1f\n"
        "  add x0, x19, #" ERRAND_THREAD "\n"
        "  add x1, x19, #" ERRAND_ATTRIBUTES "\n"
        "  adr x2, sent_thread\n"
        "  mov x3, x19\n"
        "  ldr x16, [x19, #" ERRAND_CREATE "]\n"
        "  blr x16\n"
        "1:\n"
        "  mov w21, w0\n"
        "  mov x8, #172\n"
        "  svc #0\n"
        "sent_sign:\n"
        "  mov sp, x20\n"
        "  mov x8, #139\n"
        "  svc #0\n"
        "  udf #0\n"
        ".balign 16\n"
        "sent_thread:\n"
        "  stp x29, x30, [sp, #-32]!\n"
        "  mov x29, sp\n"
        "  str x19, [sp, #16]\n"
        "  mov x19, x0\n"
        "  mov w1, #1\n" /* ORDER_LOADING */
        "  str w1, [x19, #" ERRAND_STATE "]\n"
        "  ldr x16, [x19, #" ERRAND_ENTRY "]\n"
        "  cbnz x16, 2f\n"
        "  add x0, x19, #" ERRAND_PATH "\n"
        "  mov w1, #2\n" /* RTLD_NOW */
        "  ldr x16, [x19, #" ERRAND_DLOPEN "]\n"
        "  blr x16\n"
        "  cbz x0, 3f\n"
        "  add x1, x19, #" ERRAND_NAME "\n"
        "  ldr x16, [x19, #" ERRAND_DLSYM "]\n"
        "  blr x16\n"
        "  cbz x0, 3f\n"
        "  mov x16, x0\n"
        "2:\n"
        "  add x0, x19, #" ERRAND_ORDER "\n"
        "  ldr x19, [sp, #16]\n"
        "  ldp x29, x30, [sp], #32\n"
        "  br x16\n" /* by this register, as from a caller: "bti c" takes it */
        "3:\n"       /* dlerror()'s text goes with the thread, so it is copied */
        "  ldr x16, [x19, #" ERRAND_DLERROR "]\n"
        "  blr x16\n"
        "  add x1, x19, #" ERRAND_ERROR "\n"
        "  mov w2, #" ERRAND_ERROR_ROOM "\n"
        "4:\n"
        "  ldrb w3, [x0], #1\n"
        "  strb w3, [x1], #1\n"
        "  sub w2, w2, #1\n"
        "  cbz w3, 5f\n"
        "  cbnz w2, 4b\n"
        "5:\n"
        "  ldr w0, [x19, #" ERRAND_FD "]\n" /* nobody else knows of it */
        "  mov x8, #57\n"                   /* close() */
        "  svc #0\n"
        "  mov w1, #6\n" /* ORDER_NOT_LOADED, to be seen no sooner than the text */
        "  add x2, x19, #" ERRAND_STATE "\n"
        "  stlr w1, [x2]\n"
        "  mov x0, #0\n"
        "  ldr x19, [sp, #16]\n"
        "  ldp x29, x30, [sp], #32\n"
        "  ret\n"
        "sent_end:\n"
        ".balign 4\n"
        "sent_size: .long sent_end - sent_code\n"
        "sent_sign_at: .long sent_sign - sent_code\n"
        ".popsection\n");

/* Whether the thread stands behind the sign, in code that was sent to that address. */
static bool
is_at_sign(const struct cpu *cpu, uint64_t code)
{
    return program_counter(cpu) == code + sent_sign_at && call_number(cpu) == SYS_getpid;
}

static int
errand_result(const struct cpu *cpu)
{
    return (int)cpu->regs.regs[21];
}

/* Whether a process has one, to which a frame of ours would be a lie. It is told by the flags of
 * what is mapped, which take their time to read, so only on processors that can. */
static bool
has_shadow_stack(pid_t pid)
{
    enum { CONTROL_STACKS = 32 }; /* a bit of AT_HWCAP */
    OWNED_BUFFER maps = {.data = NULL};

    return (getauxval(AT_HWCAP) >> CONTROL_STACKS & 1) != 0 &&
           read_proc(pid, "smaps", &maps) && strstr(text_of(&maps), " ss ") != NULL;
}

#endif /* HAS_ATTACH */

#endif /* MANHOLE_CLI_ATTACH_ARM64_C */
