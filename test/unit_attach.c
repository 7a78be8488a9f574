/* Attach: what depends on the processor, without ptrace(), so that an emulator can try it. A signal
 * frame that we have made is returned to, in this very process, down to an instruction that traps;
 * the trap's handler tells what a thread has found itself to be. */
#define main manhole_cli_main
int manhole_cli_main(int argc, char **argv);
#include "../manhole_cli.c"
#undef main

#include "unit.h"

#if HAS_ATTACH

#  include <dlfcn.h>
#  include <link.h>
#  include <sys/auxv.h>
#  include <ucontext.h>

static void *
pointer_to(uint64_t address)
{
    void *pointer = NULL;

    memcpy(&pointer, &address, sizeof(pointer));
    return pointer;
}

/* ---- The processor's part ----------------------------------------------------------------- */

/* A system call, and behind it what traps. */
void test_call(void) __attribute__((visibility("hidden")));
void test_trap(void) __attribute__((visibility("hidden")));

#  ifdef __x86_64__

__asm__(".pushsection .text\n"
        "test_call: syscall\n"
        "test_trap: ud2\n"
        ".popsection\n");

enum { CALL_SIZE = 2 };

static const unsigned char trap_code[] = {0x0f, 0x0b};

/* What a handler has been told, as ptrace gives it. */
static void
cpu_of(const ucontext_t *context, struct cpu *cpu)
{
    enum { SOFTWARE_AT = 464, FEATURES_AT = 472, SIZE_AT = 480 };
    const greg_t *g = context->uc_mcontext.gregs;
    const unsigned char *vectors = (const unsigned char *)context->uc_mcontext.fpregs;
    uint32_t size = 0;

    memset(cpu, 0, sizeof(*cpu));
    cpu->regs = (struct user_regs_struct){
        .r8 = (uint64_t)g[REG_R8],
        .r9 = (uint64_t)g[REG_R9],
        .r10 = (uint64_t)g[REG_R10],
        .r11 = (uint64_t)g[REG_R11],
        .r12 = (uint64_t)g[REG_R12],
        .r13 = (uint64_t)g[REG_R13],
        .r14 = (uint64_t)g[REG_R14],
        .r15 = (uint64_t)g[REG_R15],
        .rdi = (uint64_t)g[REG_RDI],
        .rsi = (uint64_t)g[REG_RSI],
        .rbp = (uint64_t)g[REG_RBP],
        .rbx = (uint64_t)g[REG_RBX],
        .rdx = (uint64_t)g[REG_RDX],
        .rax = (uint64_t)g[REG_RAX],
        .rcx = (uint64_t)g[REG_RCX],
        .rsp = (uint64_t)g[REG_RSP],
        .rip = (uint64_t)g[REG_RIP],
        .eflags = (uint64_t)g[REG_EFL] & 0xeff, /* without the trap's own */
        .cs = (uint64_t)g[REG_CSGSFS] & 0xffff,
        .ss = (uint64_t)g[REG_CSGSFS] >> 48,
        .orig_rax = (uint64_t)-1,
    };
    memcpy(&size, vectors + SIZE_AT, sizeof(size));
    assert_in_range(size, 576, sizeof(cpu->xstate));
    memcpy(cpu->xstate, vectors, size);
    memcpy(cpu->xstate + SOFTWARE_AT, vectors + FEATURES_AT, sizeof(uint64_t));
    cpu->xstate_size = size;
}

/* Where the vectors are, of 16 bytes, and their upper halves. */
enum { XMM_AT = 160, YMM_AT = 576, VECTORS_SIZE = 16 * 16, X87_SIZE = XMM_AT };

static bool
has_upper_halves(const struct cpu *cpu)
{
    return (cpu->xstate[464] & 4) != 0;
}

/* Something else in each register. */
static void
fill(struct cpu *cpu)
{
    struct user_regs_struct *r = &cpu->regs;
    __typeof__(r->r8) *const registers[] = {&r->r8,  &r->r9,  &r->r10, &r->r11, &r->r12,
                                            &r->r13, &r->r14, &r->r15, &r->rdi, &r->rsi,
                                            &r->rbp, &r->rbx, &r->rdx, &r->rax, &r->rcx};

    for (size_t i = 0; i < sizeof(registers) / sizeof(registers[0]); i++) {
        *registers[i] = 0x0101010101010101UL * (i + 1);
    }
    r->eflags = 0x202 | 0x8c1; /* carry, zero, sign, overflow */
    cpu->xstate[512] |= 7;     /* all of them are in use */
    for (int i = 0; i < VECTORS_SIZE; i++) {
        cpu->xstate[XMM_AT + i] = (unsigned char)(i * 3 + 1);
        if (has_upper_halves(cpu)) {
            cpu->xstate[YMM_AT + i] = (unsigned char)(i * 5 + 2);
        }
    }
}

static void
assert_same_vectors(const struct cpu *cpu, const struct cpu *wanted)
{
    assert_memory_equal(cpu->xstate, wanted->xstate, X87_SIZE);
    assert_memory_equal(cpu->xstate + XMM_AT, wanted->xstate + XMM_AT, VECTORS_SIZE);
    if (has_upper_halves(wanted)) {
        assert_memory_equal(cpu->xstate + YMM_AT, wanted->xstate + YMM_AT, VECTORS_SIZE);
    }
}

static void
set_place(struct cpu *cpu, uint64_t counter, uint64_t stack)
{
    cpu->regs.rip = counter;
    cpu->regs.rsp = stack;
}

/* As a stop leaves it that has come upon test_call. */
static void
interrupt_call(struct cpu *cpu, bool is_timed)
{
    cpu->regs.rip = (uint64_t)test_trap;
    cpu->regs.orig_rax = is_timed ? SYS_nanosleep : SYS_getppid;
    cpu->regs.rax = (uint64_t) - (is_timed ? RESTART_BLOCK : NOHAND);
}

static void
note_call(struct cpu *cpu, long number)
{
    cpu->regs.orig_rax = (uint64_t)number;
}

static _Noreturn void
enter(const unsigned char *frame)
{
    __asm__ volatile("mov %0, %%rsp\n"
                     "mov $15, %%eax\n"
                     "syscall\n" ::"r"(frame + sizeof(uint64_t))
                     : "memory");
    __builtin_unreachable();
}

#  else

__asm__(".pushsection .text\n"
        "test_call: svc #0\n"
        "test_trap: udf #0\n"
        ".popsection\n");

enum { CALL_SIZE = 4 };

static const unsigned char trap_code[] = {0, 0, 0, 0};

/* The record of that kind in a handler's frame, or NULL. */
static const unsigned char *
find_record(const ucontext_t *context, uint32_t kind)
{
    uint32_t head[2] = {0};

    for (const unsigned char *at = context->uc_mcontext.__reserved;; at += head[1]) {
        memcpy(head, at, sizeof(head));
        if (head[0] == kind || head[0] == 0) {
            return head[0] == kind ? at : NULL;
        }
    }
}

/* What a handler has been told, as ptrace gives it. */
static void
cpu_of(const ucontext_t *context, struct cpu *cpu)
{
    enum { STATUS_AT = 8, VECTORS_AT = 16, LENGTH_AT = 8, SVE_AT = 16 };
    const mcontext_t *m = &context->uc_mcontext;
    const unsigned char *simd = find_record(context, SIMD);
    const unsigned char *sve = find_record(context, SVE);
    struct set_header header = {.flags = 1};

    memset(cpu, 0, sizeof(*cpu));
    memcpy(cpu->regs.regs, m->regs, sizeof(cpu->regs.regs));
    cpu->regs.sp = m->sp;
    cpu->regs.pc = m->pc;
    cpu->regs.pstate = m->pstate;
    cpu->call = -1;
    memcpy(&cpu->vectors.fpsr, simd + STATUS_AT, sizeof(cpu->vectors.fpsr));
    memcpy(&cpu->vectors.fpcr, simd + STATUS_AT + 4, sizeof(cpu->vectors.fpcr));
    memcpy(cpu->vectors.vregs, simd + VECTORS_AT, sizeof(cpu->vectors.vregs));
    if (sve != NULL) {
        memcpy(&header.length, sve + LENGTH_AT, sizeof(header.length));
        size_t size = header.length * 32U + header.length / 8U * 17;
        header.size = (uint32_t)(sizeof(header) + size);
        cpu->sve_size = (header.size + 15) / 16 * 16;
        assert_in_range(header.length, 16, MOST_VECTORS * 16);
        memcpy(cpu->sve, &header, sizeof(header));
        memcpy(cpu->sve + sizeof(header), sve + SVE_AT, size);
    }
}

/* Something else in each register. SVE's vectors begin with the others. */
static void
fill(struct cpu *cpu)
{
    enum { FLAGS = 0xf0000000 }; /* negative, zero, carry, overflow */
    unsigned char *vectors = (unsigned char *)cpu->vectors.vregs;
    struct set_header header;

    for (size_t i = 0; i < 31; i++) {
        cpu->regs.regs[i] = 0x0101010101010101UL * (i + 1);
    }
    cpu->regs.pstate ^= FLAGS;
    for (int i = 0; i < 32 * 16; i++) {
        vectors[i] = (unsigned char)(i * 3 + 1);
    }
    cpu->vectors.fpsr = 0x1f;     /* exceptions that have been */
    cpu->vectors.fpcr = 3U << 22; /* rounding towards zero */
    if (cpu->sve_size > 0) {
        memcpy(&header, cpu->sve, sizeof(header));
        for (size_t i = sizeof(header); i < header.size; i++) {
            cpu->sve[i] = (unsigned char)(i * 5 + 2);
        }
        for (size_t i = 0; i < 32; i++) {
            memcpy(cpu->sve + sizeof(header) + i * header.length, vectors + i * 16, 16);
        }
    }
}

static void
assert_same_vectors(const struct cpu *cpu, const struct cpu *wanted)
{
    assert_memory_equal(&cpu->vectors, &wanted->vectors, sizeof(cpu->vectors));
    assert_int_equal(cpu->sve_size, wanted->sve_size);
    assert_memory_equal(cpu->sve, wanted->sve, sizeof(cpu->sve));
}

static void
set_place(struct cpu *cpu, uint64_t counter, uint64_t stack)
{
    cpu->regs.pc = counter;
    cpu->regs.sp = stack;
}

/* As a stop leaves it that has come upon test_call. */
static void
interrupt_call(struct cpu *cpu, bool is_timed)
{
    cpu->call = is_timed ? SYS_nanosleep : SYS_getppid;
    cpu->regs.regs[8] = (uint64_t)cpu->call;
    cpu->regs.pc = (uint64_t)test_call;
}

static void
note_call(struct cpu *cpu, long number)
{
    cpu->call = number;
}

static _Noreturn void
enter(const unsigned char *frame)
{
    __asm__ volatile("mov sp, %0\n"
                     "mov x8, #139\n"
                     "svc #0\n" ::"r"(frame)
                     : "memory");
    __builtin_unreachable();
}

#  endif

/* ---- What a thread has found itself to be -------------------------------------------------- */

static sigjmp_buf way_out;
static struct cpu seen; /* at the trap */
static uint64_t seen_mask;
static struct cpu at_sign; /* on the way to it */
static uint64_t sign;      /* where that is; 0: nowhere */

/* At the sign it goes on, behind the system call that the trap has taken the place of. */
static void
on_trap(int signal, siginfo_t *info, void *argument)
{
    ucontext_t *context = argument;

    (void)signal;
    (void)info;
    cpu_of(context, &seen);
    memcpy(&seen_mask, &context->uc_sigmask, sizeof(seen_mask));
    if (sign != 0 && program_counter(&seen) == sign - CALL_SIZE) {
        at_sign = seen;
#  ifdef __x86_64__
        context->uc_mcontext.gregs[REG_RIP] += CALL_SIZE;
#  else
        context->uc_mcontext.pc += CALL_SIZE;
#  endif
        return;
    }
    siglongjmp(way_out, 1);
}

/* The traps come on a stack of their own. cmocka has a handler of its own at the beginning of each
 * test. */
static void
catch_traps(void)
{
    static unsigned char stack[128 * 1024];
    const stack_t signal_stack = {.ss_sp = stack, .ss_size = sizeof(stack)};
    struct sigaction action = {.sa_flags = SA_SIGINFO | SA_ONSTACK};

    action.sa_sigaction = on_trap;
    assert_int_equal(sigaltstack(&signal_stack, NULL), 0);
    assert_int_equal(sigaction(SIGILL, &action, NULL), 0);
}

/* Returns to the frame, and comes back when the thread of that has trapped. */
static void
return_to_frame(const unsigned char *frame)
{
    if (sigsetjmp(way_out, 1) == 0) {
        enter(frame);
    }
}

/* What is here is as in the process: an errand, frames, code, a stack. */
static unsigned char *memory;

static int
make_memory_here(void **state)
{
    (void)state;
    memory = mmap(NULL, MEMORY_SIZE, PROT_READ | PROT_WRITE | PROT_EXEC,
                  MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    return memory != MAP_FAILED ? 0 : -1;
}

enum { OTHER_FRAME_AT = FRAME_AT - 24 * 1024 };

/* A thread that would trap, every register of it different, to come home to. */
static void
make_home(struct cpu *home)
{
    catch_traps();
    if (sigsetjmp(way_out, 1) == 0) {
        test_trap();
    }
    *home = seen;
    fill(home);
    set_place(home, (uint64_t)test_trap, (uint64_t)memory + STACK_TOP - 4096);
}

/* Puts a frame of that into the memory. */
static unsigned char *
lay_frame(const struct cpu *cpu, size_t at)
{
    const uint64_t mask = 1UL << (SIGUSR2 - 1) | 1UL << (40 - 1);
    unsigned char *frame = memory + at;
    size_t size = make_frame(cpu, mask, (uint64_t)memory + CODE_AT + sizeof(syscall_code),
                             (uint64_t)frame, frame);

    assert_in_range(size, 1, FRAME_SIZE);
    return frame;
}

static void
assert_is_home(const struct cpu *home)
{
    assert_int_equal(seen_mask, 1UL << (SIGUSR2 - 1) | 1UL << (40 - 1));
    assert_memory_equal(&seen.regs, &home->regs, sizeof(seen.regs));
    assert_same_vectors(&seen, home);
}

static void
a_frame_gives_back_registers_vectors_and_mask(void **state)
{
    struct cpu home;
    stack_t before;
    stack_t after;

    (void)state;
    make_home(&home);
    assert_int_equal(sigaltstack(NULL, &before), 0);
    return_to_frame(lay_frame(&home, FRAME_AT));
    assert_is_home(&home);
    assert_int_equal(sigaltstack(NULL, &after), 0);
    assert_memory_equal(&after, &before, sizeof(after));
}

static void
an_interrupted_call_begins_anew_or_says_eintr(void **state)
{
    struct cpu cpu;

    (void)state;
    make_home(&cpu);
    interrupt_call(&cpu, false);
    return_to_frame(lay_frame(&cpu, FRAME_AT));
    assert_int_equal(call_result(&seen), getppid());
    assert_int_equal(program_counter(&seen), (uint64_t)test_trap);
    interrupt_call(&cpu, true);
    return_to_frame(lay_frame(&cpu, FRAME_AT));
    assert_int_equal(call_result(&seen), -EINTR);
    assert_int_equal(program_counter(&seen), (uint64_t)test_trap);
}

/* ---- Without us ---------------------------------------------------------------------------- */

/* Has the thread of home make a system call and go home by itself. */
static void
call_and_go_home(const struct cpu *home, long number, const uint64_t arguments[6])
{
    const struct gadgets both = {.call = (uint64_t)memory + CODE_AT,
                                 .back =
                                     (uint64_t)memory + CODE_AT + sizeof(syscall_code)};
    const unsigned char *frame = lay_frame(home, FRAME_AT);
    struct cpu cpu = *home;

    memcpy(memory + CODE_AT, syscall_code, sizeof(syscall_code));
    memcpy(memory + CODE_AT + sizeof(syscall_code), return_code, sizeof(return_code));
    __builtin___clear_cache((char *)memory + CODE_AT, (char *)memory + MEMORY_SIZE);
    prepare_syscall(&cpu, &both, (uint64_t)frame, number, arguments);
    return_to_frame(lay_frame(&cpu, OTHER_FRAME_AT));
}

static void
a_call_of_ours_ends_at_home(void **state)
{
    struct cpu home;
    int ends[2];
    char byte = 0;

    (void)state;
    assert_int_equal(pipe(ends), 0);
    make_home(&home);
    call_and_go_home(&home, SYS_write, ARGUMENTS((uint64_t)ends[1], (uint64_t) "x", 1));
    assert_is_home(&home);
    assert_int_equal(read(ends[0], &byte, 1), 1);
    assert_int_equal(byte, 'x');
    (void)close(ends[0]);
    (void)close(ends[1]);
}

static _Noreturn void
leave_copy(void)
{
    _exit(42);
}

static void
a_copy_without_us_leaves(void **state)
{
    unsigned char *birth = memory + OTHER_FRAME_AT - UNDER_FRAME - 1024;
    struct cpu home;
    int status = 0;

    (void)state;
    make_home(&home);
    size_t size = make_birth(&home, (uint64_t)leave_copy, (uint64_t)birth, birth);
    assert_in_range(size, 8, UNDER_FRAME);
    call_and_go_home(&home, SYS_clone, ARGUMENTS(SIGCHLD, (uint64_t)birth));
    assert_is_home(&home);
    assert_in_range(wait(&status), 1, INT_MAX);
    assert_int_equal(WEXITSTATUS(status), 42);
}

/* ---- The code that goes over --------------------------------------------------------------- */

static struct errand *
make_errand(void)
{
    struct errand *errand = (struct errand *)(void *)memory;

    memset(memory, 0, FRAME_AT);
    *errand = (struct errand){
        .dlopen = (uint64_t)dlopen,
        .dlsym = (uint64_t)dlsym,
        .dlerror = (uint64_t)dlerror,
        .attr_init = (uint64_t)pthread_attr_init,
        .set_detached = (uint64_t)pthread_attr_setdetachstate,
        .set_stack_size = (uint64_t)pthread_attr_setstacksize,
        .create = (uint64_t)pthread_create,
        .stack_size = THREAD_STACK_SIZE,
        .path = "/nowhere/manhole.so",
        .name = "entry",
        .order = {.fd = -1, .options = "untouched"},
    };
    return errand;
}

/* Has a thread run sent_code, and go home. With a trap at the sign that is looked at, too. */
static void
run_sent_code(bool looks)
{
    unsigned char *code = memory + CODE_AT;
    struct cpu home;

    make_home(&home);
    memcpy(code, sent_code, sent_size);
    sign = looks ? (uint64_t)code + sent_sign_at : 0;
    if (looks) {
        memcpy(code + sent_sign_at - CALL_SIZE, trap_code, sizeof(trap_code));
    }
    __builtin___clear_cache((char *)code, (char *)code + sent_size);
    struct cpu cpu = home;
    prepare_call(&cpu, (uint64_t)code, (uint64_t)memory + STACK_TOP, (uint64_t)memory, 0,
                 (uint64_t)lay_frame(&home, FRAME_AT));
    return_to_frame(lay_frame(&cpu, OTHER_FRAME_AT));
    assert_is_home(&home);
}

/* Until the new thread has stored such a state. */
static void
await_state(const struct errand *errand, uint32_t state)
{
    for (int ms = 0;
         ms < 30000 && __atomic_load_n(&errand->order.state, __ATOMIC_ACQUIRE) != state;
         ms++) {
        (void)poll(NULL, 0, 1);
    }
    assert_int_equal(errand->order.state, state);
}

static size_t entry_stack_size;
static int entry_kind;

/* What the thread jumps to. */
static void *
entry(struct order *order)
{
    pthread_attr_t attributes;

    (void)pthread_getattr_np(pthread_self(), &attributes);
    (void)pthread_attr_getstacksize(&attributes, &entry_stack_size);
    (void)pthread_attr_getdetachstate(&attributes, &entry_kind);
    (void)pthread_attr_destroy(&attributes);
    bool is_loading = order->state == ORDER_LOADING;
    __atomic_store_n(&order->state, is_loading ? ORDER_DONE : ORDER_FAILED,
                     __ATOMIC_RELEASE);
    return NULL;
}

static void
the_code_makes_a_thread_that_jumps_to_the_entry(void **state)
{
    struct errand *errand = make_errand();

    (void)state;
    errand->entry = (uint64_t)entry;
    run_sent_code(false);
    await_state(errand, ORDER_DONE);
    assert_int_equal(entry_stack_size, THREAD_STACK_SIZE);
    assert_int_equal(entry_kind, PTHREAD_CREATE_DETACHED);
}

static char library;

static void *
load_library(const char *path, int flags)
{
    bool is_ours = strcmp(path, "/nowhere/manhole.so") == 0 && flags == RTLD_NOW;
    return is_ours ? &library : NULL;
}

static void *
find_entry(void *handle, const char *name)
{
    bool is_ours = handle == &library && strcmp(name, "entry") == 0;
    return is_ours ? pointer_to((uint64_t)entry) : NULL;
}

static void
the_thread_loads_the_module_first(void **state)
{
    struct errand *errand = make_errand();

    (void)state;
    errand->dlopen = (uint64_t)load_library;
    errand->dlsym = (uint64_t)find_entry;
    run_sent_code(false);
    await_state(errand, ORDER_DONE);
}

static void
what_the_loader_says_is_told(void **state)
{
    struct errand *errand = make_errand();
    const int fd = dup(STDOUT_FILENO);

    (void)state;
    errand->order.fd = fd;
    run_sent_code(false);
    await_state(errand, ORDER_NOT_LOADED);
    assert_non_null(strstr(errand->order.error, "/nowhere/manhole.so: cannot open"));
    assert_int_equal(fcntl(fd, F_GETFD), -1);
}

static char *
say_much(void)
{
    static char text[4096];

    memset(text, '!', sizeof(text) - 1);
    return text;
}

static void
what_the_loader_says_at_length_is_cut(void **state)
{
    struct errand *errand = make_errand();

    (void)state;
    errand->dlerror = (uint64_t)say_much;
    run_sent_code(false);
    await_state(errand, ORDER_NOT_LOADED);
    assert_int_equal(strspn(errand->order.error, "!"), sizeof(errand->order.error) - 1);
    assert_string_equal(errand->order.options, "untouched");
}

static int
fails(void)
{
    return EAGAIN;
}

static void
each_error_before_the_thread_is_the_result(void **state)
{
    struct errand *errand = make_errand();
    uint64_t *const functions[] = {&errand->attr_init, &errand->set_detached,
                                   &errand->set_stack_size, &errand->create};

    (void)state;
    for (size_t i = 0; i < sizeof(functions) / sizeof(functions[0]); i++) {
        (void)make_errand();
        errand->entry = (uint64_t)entry;
        *functions[i] = (uint64_t)fails;
        run_sent_code(true);
        assert_int_equal(errand_result(&at_sign), EAGAIN);
        assert_int_equal(errand->order.state, ORDER_MADE);
    }
}

static void
the_sign_is_a_call_at_its_place(void **state)
{
    struct errand *errand = make_errand();
    const uint64_t code = (uint64_t)memory + CODE_AT;

    (void)state;
    errand->entry = (uint64_t)entry;
    run_sent_code(true);
    await_state(errand, ORDER_DONE);
    assert_int_equal(errand_result(&at_sign), 0);
    set_place(&at_sign, code + sent_sign_at, 0);
    assert_false(is_at_sign(&at_sign, code));
    note_call(&at_sign, SYS_getpid);
    assert_true(is_at_sign(&at_sign, code));
    assert_false(is_at_sign(&at_sign, code + 4));
}

/* ---- What is found in a process ------------------------------------------------------------ */

static const uint64_t *above_handler;
static bool handler_is_seen;

/* Whether there is a frame between these. */
static bool
has_handler_frame(const uint64_t *from, const uint64_t *to)
{
    for (; from < to; from++) {
        if (is_handler_frame(from, (size_t)(to - from))) {
            return true;
        }
    }
    return false;
}

static void
on_handled(int signal)
{
    const uint64_t *here = __builtin_frame_address(0);

    (void)signal;
    handler_is_seen = has_handler_frame(here, above_handler);
}

static void
a_handler_shows_on_the_stack(void **state)
{
    struct sigaction before;

    (void)state;
    above_handler = __builtin_frame_address(0);
    assert_int_equal(
        sigaction(SIGUSR1, &(struct sigaction){.sa_handler = on_handled}, &before), 0);
    assert_int_equal(raise(SIGUSR1), 0);
    assert_true(handler_is_seen);
    assert_false(has_handler_frame(above_handler, above_handler + 128));
    (void)sigaction(SIGUSR1, &before, NULL);
}

/* Which of both an object has. */
static int
look_at_object(struct dl_phdr_info *object, size_t size, void *argument)
{
    bool *has = argument;
    bool is_vdso = object->dlpi_addr == getauxval(AT_SYSINFO_EHDR);

    (void)size;
    if (!is_vdso && strstr(object->dlpi_name, "libc.") == NULL) {
        return 0;
    }
    for (size_t i = 0; i < object->dlpi_phnum; i++) {
        const ElfW(Phdr) *segment = &object->dlpi_phdr[i];
        const void *code = pointer_to(object->dlpi_addr + segment->p_vaddr);
        if (segment->p_type == PT_LOAD && (segment->p_flags & PF_X) != 0) {
            has[0] |= !is_vdso && memmem(code, segment->p_memsz, syscall_code,
                                         sizeof(syscall_code)) != NULL;
            has[1] |=
                memmem(code, segment->p_memsz, return_code, sizeof(return_code)) != NULL;
        }
    }
    return 0;
}

static void
the_c_library_or_the_vdso_has_what_we_jump_to(void **state)
{
    bool has[2] = {false, false};

    (void)state;
    (void)dl_iterate_phdr(look_at_object, has);
    assert_true(has[0]);
#  ifdef __aarch64__
    if (getauxval(AT_SYSINFO_EHDR) == 0) {
        SKIP_UNIT_TEST("this emulator has no vdso");
    }
#  endif
    assert_true(has[1]);
}

#  ifdef __aarch64__

static void
a_call_is_told_by_the_instruction(void **state)
{
    const uint64_t behind = 0xd4000001;
    const uint64_t at = behind << 32;
    struct user_regs_struct regs = {.regs = {[0] = 7, [8] = SYS_epoll_pwait}};

    (void)state;
    assert_int_equal(call_at(&regs, at), SYS_epoll_pwait);
    assert_int_equal(call_at(&regs, behind), -1);
    regs.regs[0] = (uint64_t)-EINTR;
    assert_int_equal(call_at(&regs, behind), SYS_epoll_pwait);
    assert_int_equal(call_at(&regs, 0), -1);
    regs.regs[8] = SYS_futex; /* its address is lost */
    assert_int_equal(call_at(&regs, behind), -1);
}

static void
a_wait_for_a_time_is_gone_on_with(void **state)
{
    static const struct {
        long number;
        uint64_t operation;
        uint64_t timeout;
        bool is_timed;
    } rows[] = {
        {SYS_nanosleep, 0, 0, true},
        {SYS_restart_syscall, 0, 0, true},
        {SYS_clock_nanosleep, 0, 1, true},
        {SYS_clock_nanosleep, TIMER_ABSTIME, 1, false},
        {SYS_futex, FUTEX_WAIT | FUTEX_PRIVATE_FLAG, 1, true},
        {SYS_futex, FUTEX_WAIT | FUTEX_PRIVATE_FLAG, 0, false},
        {SYS_futex, FUTEX_WAIT_BITSET, 1, false},
        {SYS_ppoll, 1, 1, false},
    };

    (void)state;
    for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
        struct cpu cpu = {.call = rows[i].number};
        const long wanted = rows[i].is_timed ? SYS_restart_syscall : rows[i].number;
        cpu.regs.regs[1] = rows[i].operation;
        cpu.regs.regs[3] = rows[i].timeout;
        cpu.regs.regs[8] = (uint64_t)rows[i].number;
        settle_call(&cpu);
        assert_int_equal(cpu.regs.regs[8], wanted);
    }
}

static void
plain_vectors_come_back_by_themselves(void **state)
{
    struct cpu home;

    (void)state;
    make_home(&home);
    home.sve_size = 0;
    return_to_frame(lay_frame(&home, FRAME_AT));
    assert_memory_equal(&seen.vectors, &home.vectors, sizeof(home.vectors));
}

static void
a_jump_of_ours_is_no_branch_that_bti_would_refuse(void **state)
{
    enum { BRANCHED = 0xc00, CARRY = 1 << 29 };
    struct cpu cpu = {.regs = {.pstate = BRANCHED | CARRY}};

    (void)state;
    prepare_call(&cpu, 0, 0, 0, 0, 0);
    assert_int_equal(cpu.regs.pstate, CARRY);
}

static void
what_a_frame_cannot_hold_makes_none(void **state)
{
    static unsigned char bytes[FRAME_SIZE];
    struct cpu home;

    (void)state;
    make_home(&home);
    home.has_more = true;
    assert_int_equal(make_frame(&home, 0, 0, 0, bytes), 0);
}

#  endif

int
main(void)
{
    static const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_frame_gives_back_registers_vectors_and_mask),
        cmocka_unit_test(an_interrupted_call_begins_anew_or_says_eintr),
        cmocka_unit_test(a_call_of_ours_ends_at_home),
        cmocka_unit_test(a_copy_without_us_leaves),
        cmocka_unit_test(the_code_makes_a_thread_that_jumps_to_the_entry),
        cmocka_unit_test(the_thread_loads_the_module_first),
        cmocka_unit_test(what_the_loader_says_is_told),
        cmocka_unit_test(what_the_loader_says_at_length_is_cut),
        cmocka_unit_test(each_error_before_the_thread_is_the_result),
        cmocka_unit_test(the_sign_is_a_call_at_its_place),
        cmocka_unit_test(a_handler_shows_on_the_stack),
        cmocka_unit_test(the_c_library_or_the_vdso_has_what_we_jump_to),
#  ifdef __aarch64__
        cmocka_unit_test(a_call_is_told_by_the_instruction),
        cmocka_unit_test(a_wait_for_a_time_is_gone_on_with),
        cmocka_unit_test(plain_vectors_come_back_by_themselves),
        cmocka_unit_test(a_jump_of_ours_is_no_branch_that_bti_would_refuse),
        cmocka_unit_test(what_a_frame_cannot_hold_makes_none),
#  endif
    };

    set_unit_filter();
    return cmocka_run_group_tests_name(program_invocation_short_name, tests,
                                       make_memory_here, NULL) != 0;
}

#else

int
main(void)
{
    puts("skipped: --attach is for x86-64 and arm64");
    return 0;
}

#endif /* HAS_ATTACH */
