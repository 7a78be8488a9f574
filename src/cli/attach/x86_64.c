/* x86-64: what cpu.c tells of, for this processor.
 *
 * A stop leaves an interrupted system call as it has ended: the number beside the registers, the
 * result one that only a debugger sees, from which the kernel goes on when the thread does. So what
 * is put back as it was is begun anew by the kernel; in the frame we undo it.
 */
#ifndef MANHOLE_CLI_ATTACH_X86_64_C
#define MANHOLE_CLI_ATTACH_X86_64_C

#include "cpu.c"

#if HAS_ATTACH && defined(__x86_64__)

#  include <cpuid.h>
#  include <elf.h>
#  include <sys/ptrace.h>
#  include <sys/syscall.h>
#  include <sys/uio.h>
#  include <sys/user.h>

enum {
    RED_ZONE = 128,          /* below the stack pointer, in use all the same */
    XSTATE_SIZE = 16 * 1024, /* more than any processor has */
    FRAME_SIZE = 17 * 1024,  /* of a signal frame at most */
    UNDER_FRAME = 1024,      /* room for what make_birth() fills in */
};

struct cpu {
    struct user_regs_struct regs;
    unsigned char xstate[XSTATE_SIZE]; /* as XSAVE lays it out */
    size_t xstate_size;
};

/* In the C library or the vdso: "syscall; ret", and what glibc and musl both return to from a
 * handler, "mov $15, %rax; syscall", which is rt_sigreturn. */
static const unsigned char syscall_code[] = {0x0f, 0x05, 0xc3};
static const unsigned char return_code[] = {0x48, 0xc7, 0xc0, 0x0f, 0, 0, 0, 0x0f, 0x05};

static bool
read_cpu(pid_t tid, struct cpu *cpu)
{
    struct iovec vector = {.iov_base = cpu->xstate, .iov_len = sizeof(cpu->xstate)};

    if (ptrace(PTRACE_GETREGS, tid, NULL, &cpu->regs) < 0 ||
        ptrace(PTRACE_GETREGSET, tid, NT_X86_XSTATE, &vector) < 0) {
        return false;
    }
    cpu->xstate_size = vector.iov_len;
    return true;
}

static bool
write_regs(pid_t tid, const struct cpu *cpu)
{
    return ptrace(PTRACE_SETREGS, tid, NULL, &cpu->regs) == 0;
}

static bool
write_cpu(pid_t tid, struct cpu *cpu)
{
    struct iovec vector = {.iov_base = cpu->xstate, .iov_len = cpu->xstate_size};

    return ptrace(PTRACE_SETREGSET, tid, NT_X86_XSTATE, &vector) == 0 &&
           write_regs(tid, cpu);
}

static uint64_t
program_counter(const struct cpu *cpu)
{
    return cpu->regs.rip;
}

static uint64_t
stack_pointer(const struct cpu *cpu)
{
    return cpu->regs.rsp;
}

/* The system call that the stop has interrupted; -1: it was in none. */
static long
call_number(const struct cpu *cpu)
{
    return (long)cpu->regs.orig_rax;
}

static uint64_t
call_argument(const struct cpu *cpu, int number)
{
    const uint64_t arguments[] = {cpu->regs.rdi, cpu->regs.rsi, cpu->regs.rdx};
    return arguments[number];
}

static long
call_result(const struct cpu *cpu)
{
    return (long)cpu->regs.rax;
}

/* The kernel does not begin epoll_wait() anew behind a stop. Where it waits without a timeout that
 * is done as the kernel does it: back to the instruction, with the number in its register. */
static void
settle_call(struct cpu *cpu)
{
    struct user_regs_struct *regs = &cpu->regs;
    bool is_epoll =
        call_number(cpu) == SYS_epoll_wait || call_number(cpu) == SYS_epoll_pwait;

    if (is_epoll && call_result(cpu) == -EINTR && (int)regs->r10 < 0) {
        regs->rax = regs->orig_rax;
        regs->rip -= 2;
        regs->orig_rax = (uint64_t)-1;
    }
}

/* Has the thread make a system call, and then return to where the frame says, its first word. */
static void
prepare_syscall(struct cpu *cpu, const struct gadgets *gadgets, uint64_t frame,
                long number, const uint64_t arguments[6])
{
    struct user_regs_struct *regs = &cpu->regs;

    regs->rip = gadgets->call;
    regs->rsp = frame;
    regs->rax = (uint64_t)number;
    regs->orig_rax = (uint64_t)-1; /* the call that was interrupted is none of ours */
    regs->rdi = arguments[0];
    regs->rsi = arguments[1];
    regs->rdx = arguments[2];
    regs->r10 = arguments[3];
    regs->r8 = arguments[4];
    regs->r9 = arguments[5];
}

/* Has the thread call a function as C does, the stack free below an aligned address. The frame is
 * for sent_code, with its first word taken off, as by a return. */
static void
prepare_call(struct cpu *cpu, uint64_t function, uint64_t stack, uint64_t first,
             uint64_t second, uint64_t frame)
{
    enum { DIRECTION = 0x400 }; /* which C wants to be clear */
    struct user_regs_struct *regs = &cpu->regs;

    regs->rip = function;
    regs->rsp = stack - 8;
    regs->orig_rax = (uint64_t)-1;
    regs->rdi = first;
    regs->rsi = second;
    regs->r12 = frame + sizeof(uint64_t);
    regs->eflags &= ~(uint64_t)DIRECTION;
}

/* ---- The way home ------------------------------------------------------------------ */

/* As the kernel lays it out on the stack, less siginfo, which rt_sigreturn does not read. */
struct frame {
    uint64_t return_to;
    uint64_t flags;
    uint64_t link;
    uint64_t stack;
    uint64_t stack_flags;
    uint64_t stack_size;
    uint64_t regs[23];
    uint64_t fpstate;
    uint64_t reserved[8];
    uint64_t mask;
};

/* The size of the vectors with these features, as XSAVE lays them out. */
static size_t
xstate_size(uint64_t features)
{
    size_t size = 512 + 64;
    unsigned length = 0;
    unsigned offset = 0;
    unsigned flags = 0;
    unsigned unused = 0;

    for (unsigned i = 2; i < 63; i++) {
        bool is_there = (features >> i & 1) != 0 &&
                        __get_cpuid_count(0xd, i, &length, &offset, &flags, &unused) != 0;
        bool is_users = (flags & 1) == 0;
        if (is_there && length > 0 && is_users && offset + length > size) {
            size = offset + length;
        }
    }
    return size;
}

/* Fills in the vectors and what the kernel wants around them: in bytes of theirs that are free its
 * own words, and a mark at the end. Returns how many bytes that is. */
static size_t
make_fpstate(const struct cpu *cpu, unsigned char *bytes)
{
    enum { SOFTWARE_AT = 464, HEADER_AT = 512 };
    const uint64_t amx = 3UL << 17;
    const uint32_t end = 0x46505845; /* "EXPF" */
    uint32_t software[12] = {0x46505853 /* "SXPF" */};
    uint64_t features = 0; /* of the process, where the kernel tells a debugger */
    uint64_t used = 0;

    memcpy(&features, cpu->xstate + SOFTWARE_AT, sizeof(features));
    memcpy(&used, cpu->xstate + HEADER_AT, sizeof(used));
    /* With tiles in it, of a process that has not asked for them, the kernel takes none of it. */
    features &= (used & amx) == 0 ? ~amx : ~0UL;
    size_t size = xstate_size(features);
    if (size > cpu->xstate_size) {
        return 0;
    }
    memcpy(bytes, cpu->xstate, size);
    software[1] = (uint32_t)(size + sizeof(end));
    memcpy(&software[2], &features, sizeof(features));
    software[4] = (uint32_t)size;
    memcpy(bytes + SOFTWARE_AT, software, sizeof(software));
    memcpy(bytes + size, &end, sizeof(end));
    return size + sizeof(end);
}

/* Where the thread goes on: at a system call that the kernel would begin anew, or behind one. */
static void
resume_call(const struct cpu *cpu, uint64_t *counter, uint64_t *result)
{
    if (call_number(cpu) < 0) {
        return;
    }
    switch (-call_result(cpu)) {
    case SYS:
    case NOINTR:
    case NOHAND:
        *counter -= 2;
        *result = cpu->regs.orig_rax;
        break;
    case RESTART_BLOCK: /* only the kernel knows how much of the timeout was left */
        *result = (uint64_t)-EINTR;
        break;
    default:
        break;
    }
}

/* Whether a handler's frame begins with this word of a stack, whoever is its return address: the
 * kernel writes no link, few flags, and the user's code and stack segment. */
static bool
is_handler_frame(const uint64_t words[], size_t count)
{
    enum { FLAGS = 1, LINK = 2, SEGMENTS = 24, MOST_FLAGS = 7 };
    const uint64_t segments = 0x002b000000000033; /* in 64-bit code */

    return count > SEGMENTS && words[FLAGS] <= MOST_FLAGS && words[LINK] == 0 &&
           words[SEGMENTS] == segments;
}

/* Fills bytes, FRAME_SIZE of them, with a frame that is to lie at that address, and returns its
 * size; 0: it cannot be made. Its first word is the address to return to. */
static size_t
make_frame(const struct cpu *cpu, uint64_t mask, uint64_t return_to, uint64_t address,
           unsigned char *bytes)
{
    enum { WITH_XSTATE = 1, WITH_SS = 2, STRICT_SS = 4, KEEP_STACK = 0x7fffffff };
    const struct user_regs_struct *r = &cpu->regs;
    uint64_t counter = r->rip;
    uint64_t result = r->rax;
    size_t at = (size_t)((address + sizeof(struct frame) + 63) / 64 * 64 - address);

    memset(bytes, 0, FRAME_SIZE);
    size_t size = make_fpstate(cpu, bytes + at);
    resume_call(cpu, &counter, &result);
    struct frame frame = {
        .return_to = return_to,
        .flags = WITH_XSTATE | WITH_SS | STRICT_SS,
        .stack_flags = KEEP_STACK, /* is refused, so the signal stack stays as it is */
        .regs = {r->r8, r->r9, r->r10, r->r11, r->r12, r->r13, r->r14, r->r15, r->rdi,
                 r->rsi, r->rbp, r->rbx, r->rdx, result, r->rcx, r->rsp, counter,
                 r->eflags, (r->cs & 0xffff) | (r->ss & 0xffff) << 48},
        .fpstate = address + at,
        .mask = mask,
    };
    memcpy(bytes, &frame, sizeof(frame));
    return size == 0 ? 0 : at + size;
}

/* Fills bytes, UNDER_FRAME of them, with what a copy finds at its stack's end, that address: it is
 * to leave as soon as it runs. */
static size_t
make_birth(const struct cpu *cpu, uint64_t leave_at, uint64_t address,
           unsigned char *bytes)
{
    (void)cpu;
    (void)address;
    memcpy(bytes, &leave_at, sizeof(leave_at));
    return sizeof(leave_at);
}

/* ---- The code that goes over ------------------------------------------------------- */

/* The frame is in r12, the result in r13. */
__asm__(".pushsection .rodata\n"
        ".balign 16\n"
        "sent_code:\n"
        "  sub $8, %rsp\n" /* for calls to find it aligned */
        "  mov %rdi, %rbx\n"
        "  lea " ERRAND_ATTRIBUTES "(%rbx), %rdi\n"
        "  call *" ERRAND_ATTR_INIT "(%rbx)\n"
        "  test %eax, %eax\n"
        "  jnz 1f\n"
        "  lea " ERRAND_ATTRIBUTES "(%rbx), %rdi\n"
        "  mov $1, %esi\n" /* PTHREAD_CREATE_DETACHED */
        "  call *" ERRAND_SET_DETACHED "(%rbx)\n"
        "  test %eax, %eax\n"
        "  jnz 1f\n"
        "  lea " ERRAND_ATTRIBUTES "(%rbx), %rdi\n"
        "  mov " ERRAND_STACK_SIZE "(%rbx), %rsi\n"
        "  call *" ERRAND_SET_STACK_SIZE "(%rbx)\n"
        "  test %eax, %eax\n"
        "  jnz 1f\n"
        "  lea " ERRAND_THREAD "(%rbx), %rdi\n"
        "  lea " ERRAND_ATTRIBUTES "(%rbx), %rsi\n"
        "  lea sent_thread(%rip), %rdx\n"
        "  mov %rbx, %rcx\n"
        "  call *" ERRAND_CREATE "(%rbx)\n"
        "1:\n"
        "  mov %eax, %r13d\n"
        "  mov $39, %eax\n"
        "  syscall\n"
        "sent_sign:\n"
        "  mov %r12, %rsp\n"
        "  mov $15, %eax\n"
        "  syscall\n"
        "  ud2\n"
        ".balign 16\n"
        "sent_thread:\n"
        "  push %rbx\n"
        "  mov %rdi, %rbx\n"
        "  movl $1, " ERRAND_STATE "(%rbx)\n" /* ORDER_LOADING */
        "  mov " ERRAND_ENTRY "(%rbx), %rax\n"
        "  test %rax, %rax\n"
        "  jnz 2f\n"
        "  lea " ERRAND_PATH "(%rbx), %rdi\n"
        "  mov $2, %esi\n" /* RTLD_NOW */
        "  call *" ERRAND_DLOPEN "(%rbx)\n"
        "  test %rax, %rax\n"
        "  jz 3f\n"
        "  mov %rax, %rdi\n"
        "  lea " ERRAND_NAME "(%rbx), %rsi\n"
        "  call *" ERRAND_DLSYM "(%rbx)\n"
        "  test %rax, %rax\n"
        "  jz 3f\n"
        "2:\n"
        "  lea " ERRAND_ORDER "(%rbx), %rdi\n"
        "  pop %rbx\n"
        "  jmp *%rax\n"
        "3:\n" /* dlerror()'s text goes with the thread, so it is copied */
        "  call *" ERRAND_DLERROR "(%rbx)\n"
        "  mov %rax, %rsi\n"
        "  lea " ERRAND_ERROR "(%rbx), %rdi\n"
        "  mov $" ERRAND_ERROR_ROOM ", %ecx\n"
        "4:\n"
        "  lodsb\n"
        "  stosb\n"
        "  test %al, %al\n"
        "  loopnz 4b\n"
        "  mov " ERRAND_FD "(%rbx), %edi\n" /* nobody else knows of it */
        "  mov $3, %eax\n"                  /* close() */
        "  syscall\n"
        "  movl $6, " ERRAND_STATE "(%rbx)\n" /* ORDER_NOT_LOADED */
        "  xor %eax, %eax\n"
        "  pop %rbx\n"
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
    return (int)cpu->regs.r13;
}

/* Whether a process has one, to which a frame of ours would be a lie. */
static bool
has_shadow_stack(pid_t pid)
{
    return strstr(read_status(pid, "x86_Thread_features").text, "shstk") != NULL;
}

#endif /* HAS_ATTACH */

#endif /* MANHOLE_CLI_ATTACH_X86_64_C */
