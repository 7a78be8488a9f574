/* Inject: a manhole in a process that has none, by a thread that is made there.
 *
 *   1  A thread that may be lent (carrier.c) is stopped. It makes three system calls for us: memory
 *      of its own for all this, access to it, and a memory file, into which we write the module. So
 *      it does not matter which files the process sees.
 *   2  It calls pthread_create() once, on a stack of ours, and is put back as it was. It never
 *      loads anything: the loader runs code of libraries, which may wait for anything.
 *   3  The new thread holds nothing that anybody waits for, so it may wait: for the loader, then
 *      for the GIL. It loads the module and calls its entry, manhole_attached(), with an order:
 *      options, and where our memory is. src/attached.c goes on from there.
 *   4  We read in the order's state how that went, and have a thread unmap our memory. It is us who
 *      do that, for nobody else knows that the lent thread is home: without us the memory stays.
 *
 * docs/internals.rst has the order, for it is what two programs have to agree on.
 */
#ifndef MANHOLE_CLI_ATTACH_INJECT_C
#define MANHOLE_CLI_ATTACH_INJECT_C

#include "carrier.c"
#include "module_file.c"

#if HAS_ATTACH

/* How far it has come; stored by the new thread. */
enum order_state {
    ORDER_MADE,
    ORDER_LOADING,    /* the module */
    ORDER_WAITING,    /* for the GIL */
    ORDER_INSTALLING, /* runs install() */
    ORDER_FAILED,     /* error tells why */
    ORDER_DONE,
    ORDER_NOT_LOADED, /* error tells what the loader said */
};

/* What the module's entry is called with. */
struct order {
    uint32_t state;
    uint32_t keeps;     /* the manhole stays when the last client has left */
    uint32_t cancelled; /* nobody wants it any more */
    int32_t fd;         /* of the memory file, to close; -1: none */
    char error[512];
    char options[2048]; /* of install(), as Python text */
};

/* What sent_code and sent_thread work with, at the beginning of our memory: addresses of functions,
 * room for what these want, and the order. */
struct errand {
    uint64_t entry; /* 0: the module is still to be loaded */
    uint64_t dlopen;
    uint64_t dlsym;
    uint64_t dlerror;
    uint64_t attr_init;
    uint64_t set_detached;
    uint64_t set_stack_size;
    uint64_t create;
    uint64_t stack_size;
    uint64_t thread;
    uint64_t attributes[16];
    char path[64];
    char name[32];
    struct order order;
};

#  define CHECK_OFFSET(FIELD, OFFSET)                                                    \
    _Static_assert(offsetof(struct errand, FIELD) == (OFFSET), "see ERRAND_" #FIELD)
CHECK_OFFSET(create, 56);
CHECK_OFFSET(attributes, 80);
CHECK_OFFSET(path, 208);
CHECK_OFFSET(name, 272);
CHECK_OFFSET(order.state, 304);
CHECK_OFFSET(order.fd, 316);
CHECK_OFFSET(order.error, 320);

/* Our memory in the process. */
enum {
    MEMORY_SIZE = 256 * 1024,
    FRAME_AT = 64 * 1024,
    CODE_AT = MEMORY_SIZE - 64 * 1024, /* a page that may be executed, of any size */
    STACK_TOP = CODE_AT,
    THREAD_STACK_SIZE = 8 * 1024 * 1024, /* as the module's own for Python have */
};

/* What is done to one process. */
struct attaching {
    const struct request *request;
    struct image image;
    struct errand errand;
    struct buffer module; /* what is in its file; empty: the process has it already */
    uint64_t memory;      /* in the process; 0: none yet */
    long error;           /* that came of it: an errno, LOST, or 0 */
};

/* ---- Before anybody is stopped ----------------------------------------------------- */

/* Fills in the addresses. Ends the program when one is missing. */
static void
find_functions(struct attaching *attaching)
{
    struct errand *errand = &attaching->errand;
    const struct image *image = &attaching->image;
    const struct {
        const char *name;
        uint64_t *address;
    } rows[] = {
        {"dlopen", &errand->dlopen},
        {"dlsym", &errand->dlsym},
        {"dlerror", &errand->dlerror},
        {"pthread_attr_init", &errand->attr_init},
        {"pthread_attr_setdetachstate", &errand->set_detached},
        {"pthread_attr_setstacksize", &errand->set_stack_size},
        {"pthread_create", &errand->create},
    };

    for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
        *rows[i].address = find_libc(image, rows[i].name);
        if (*rows[i].address == 0) {
            check_life(image->pid);
            fail(STATUS_NO_CONNECTION,
                 "process %d has no %s() in its C library, so it can load no module",
                 (int)image->pid, rows[i].name);
        }
    }
    errand->entry = find_python(image, entry_name);
}

/* Puts the errand together. */
static void
prepare_errand(struct attaching *attaching)
{
    struct errand *errand = &attaching->errand;
    const struct request *request = attaching->request;
    const char *arguments = request->given[OPTION_ATTACH];

    if (strlen(arguments) >= sizeof(errand->order.options)) {
        fail(STATUS_USAGE, "argument %s: more than %zu bytes of options",
             name_of(OPTION_ATTACH).text, sizeof(errand->order.options) - 1);
    }
    find_functions(attaching);
    if (errand->entry == 0) {
        find_module(request, &attaching->image, &attaching->module);
    }
    errand->stack_size = THREAD_STACK_SIZE;
    (void)snprintf(errand->name, sizeof(errand->name), "%s", entry_name);
    errand->order.keeps = is_given(request, OPTION_KEEP);
    (void)snprintf(errand->order.options, sizeof(errand->order.options), "%s", arguments);
}

/* ---- While a thread is held -------------------------------------------------------- */

/* Makes our memory. It is born to be executed, and what is written to loses that: the other way
 * round is what hardened systems forbid. Returns 0 or a negative errno. */
static long
make_memory(struct attaching *attaching, const struct lent *lent)
{
    long memory = call_kernel(lent, SYS_mmap,
                              ARGUMENTS(0, MEMORY_SIZE, PROT_READ | PROT_EXEC,
                                        MAP_PRIVATE | MAP_ANONYMOUS, (uint64_t)-1));

    if (memory == LOST || is_error(memory)) {
        return memory;
    }
    attaching->memory = (uint64_t)memory;
    return call_kernel(lent, SYS_mprotect,
                       ARGUMENTS(attaching->memory, CODE_AT, PROT_READ | PROT_WRITE));
}

/* Makes the memory file, its name being the errand's path, and fills it. Kernels before 6.3 know
 * no flag for one that may be executed. Returns its descriptor, or a negative errno. */
static long
make_file(const struct attaching *attaching, const struct lent *lent)
{
    const uint64_t name = attaching->memory + offsetof(struct errand, path);
    const struct buffer *module = &attaching->module;
    enum { MAY_BE_EXECUTED = 0x10 };

    long fd = call_kernel(lent, SYS_memfd_create,
                          ARGUMENTS(name, MFD_CLOEXEC | MAY_BE_EXECUTED));
    if (fd == -EINVAL) {
        fd = call_kernel(lent, SYS_memfd_create, ARGUMENTS(name, MFD_CLOEXEC));
    }
    if (fd == LOST || is_error(fd)) {
        return fd;
    }
    struct text path = proc_path(attaching->image.pid, print("fd/%ld", fd).text);
    OWNED_FD file = open(path.text, O_WRONLY | O_CLOEXEC);
    if (file < 0 || !fill_file(file, module->data, module->length)) {
        int error = errno;
        (void)call_kernel(lent, SYS_close, ARGUMENTS((uint64_t)fd));
        return -error;
    }
    return fd;
}

/* All of the errand, the code, and the way home, which from now on is not on the thread's stack. */
static bool
fill_memory(const struct attaching *attaching, struct lent *lent)
{
    return poke(lent->tid, attaching->memory, &attaching->errand,
                sizeof(attaching->errand)) &&
           poke_code(lent->tid, attaching->memory + CODE_AT, sent_code, sent_size) &&
           place_frame(lent, attaching->memory + FRAME_AT);
}

/* Has the thread run sent_code, and returns pthread_create()'s result, or LOST: it waits for a lock
 * that somebody does not let go. */
static long
make_thread(const struct attaching *attaching, const struct lent *lent)
{
    const uint64_t code = attaching->memory + CODE_AT;
    struct cpu cpu = lent->was;

    prepare_call(&cpu, code, attaching->memory + STACK_TOP, attaching->memory, 0,
                 lent->frame);
    if (!write_regs(lent->tid, &cpu)) {
        return LOST;
    }
    block_signals(lent->tid);
    do {
        if (!run_to_syscall(lent->tid) || !read_cpu(lent->tid, &cpu)) {
            return LOST;
        }
    } while (!is_at_sign(&cpu, code));
    return run_to_syscall(lent->tid) ? errand_result(&cpu) : LOST;
}

/* All that the held thread does for us. Returns 0, an errno, or LOST. */
static long
run_errand(struct attaching *attaching, struct lent *lent)
{
    struct errand *errand = &attaching->errand;

    errand->order.fd = -1;
    (void)snprintf(errand->path, sizeof(errand->path), "manhole");
    attaching->memory = 0;
    long result = make_memory(attaching, lent);
    if (result == 0 && attaching->module.length > 0) {
        if (!poke(lent->tid, attaching->memory, errand, sizeof(*errand))) {
            return EFAULT;
        }
        result = make_file(attaching, lent);
        errand->order.fd = (int32_t)result;
        (void)snprintf(errand->path, sizeof(errand->path), "/proc/self/fd/%ld", result);
    }
    if (result == LOST || is_error(result)) {
        return result == LOST ? LOST : -result;
    }
    return fill_memory(attaching, lent) ? make_thread(attaching, lent) : EFAULT;
}

/* Whether it waits for the first lock that pthread_create() wants. musl's second one is that of the
 * list of threads. The kernel opens that when a thread ends, so it is no private futex. */
static bool
waits_without_lock(const struct cpu *cpu)
{
    return call_number(cpu) == SYS_futex &&
           (call_argument(cpu, 1) & FUTEX_PRIVATE_FLAG) != 0;
}

/* It has not come back in time. Where it waits for its first lock it is taken back, and held.
 * Elsewhere in the C library, frozen say, or short of memory, it may have a lock, so it goes home
 * by itself, and needs what was made. Returns whether it is held. */
static bool
regain_thread(const struct lent *lent)
{
    struct cpu cpu = lent->was;
    bool is_called_out = lent->frame != lent->scratch + UNDER_FRAME;

    (void)ptrace(PTRACE_INTERRUPT, lent->tid, NULL, NULL);
    int status = await_status(lent->tid, REMOTE_PATIENCE_MS);
    /* One that waited in a system call stops at the end of that first. */
    bool is_stopped = status > 0 && (status >> 16 == STOPPED_AS_ASKED ||
                                     WSTOPSIG(status) == AT_SYSCALL);
    if (is_called_out && is_stopped && read_cpu(lent->tid, &cpu) &&
        !waits_without_lock(&cpu)) {
        let_go(lent->tid);
        return false;
    }
    return true;
}

/* Takes away what was made, by the held thread. */
static void
clean_up(const struct attaching *attaching, struct lent *lent)
{
    const int32_t fd = attaching->errand.order.fd;

    (void)place_frame_on_stack(lent);
    if (fd >= 0) {
        (void)call_kernel(lent, SYS_close, ARGUMENTS((uint64_t)fd));
    }
    if (attaching->memory != 0) {
        (void)call_kernel(lent, SYS_munmap, ARGUMENTS(attaching->memory, MEMORY_SIZE));
    }
}

/* Holds a thread for that, and puts it back, whatever comes of it. What was made is taken away when
 * there is no thread that would. One that waited in vain for a lock may be lent at another moment.
 * */
static bool
borrow_thread(void *argument, unsigned round)
{
    static struct lent lent;
    struct attaching *attaching = argument;

    if (!lend_thread(&attaching->image, round, &lent)) {
        return false;
    }
    attaching->error = run_errand(attaching, &lent);
    if (attaching->error == LOST && !regain_thread(&lent)) {
        return true;
    }
    if (attaching->error != 0) {
        clean_up(attaching, &lent);
    }
    put_back(&lent);
    return attaching->error != LOST || has_ended(attaching->image.pid);
}

/* ---- Afterwards -------------------------------------------------------------------- */

/* Ends the program with what has gone wrong while the thread was held. */
static _Noreturn void
fail_errand(pid_t pid, long error)
{
    check_life(pid);
    if (error == LOST) {
        fail(STATUS_NO_CONNECTION,
             "process %d makes no thread: it waits for a lock that is not let go, or for "
             "memory; the thread that was lent is let go. Stacks need none: %s --attach "
             "--stacks %d",
             (int)pid, program, (int)pid);
    }
    if (error == EMFILE) {
        fail(STATUS_NO_CONNECTION,
             "process %d has no descriptor left for a manhole; 'prlimit --pid %d "
             "--nofile=N' gives "
             "it more, 'manhole-cli --attach --stacks %d' needs none",
             (int)pid, (int)pid, (int)pid);
    }
    errno = (int)error;
    fail(STATUS_NO_CONNECTION, "cannot attach to process %d: %m, says the kernel to it",
         (int)pid);
}

static uint64_t
order_at(const struct attaching *attaching)
{
    return attaching->memory + offsetof(struct errand, order);
}

/* The thread is made, and waits for what others have. With -t that long, else as long as it takes.
 */
static void
wait_on(const struct attaching *attaching, double waited, bool *is_told)
{
    const struct request *request = attaching->request;
    const int pid = (int)attaching->image.pid;

    if (is_given(request, OPTION_TIMEOUT) && !(waited < request->timeout_s)) {
        const uint32_t yes = 1;
        (void)poke(attaching->image.pid,
                   order_at(attaching) + offsetof(struct order, cancelled), &yes,
                   sizeof(yes));
        fail(STATUS_NO_CONNECTION,
             "process %d does not let go of the GIL, or of a lock of its loader, within "
             "the "
             "timeout; its stacks: %s --attach --stacks %d",
             pid, program, pid);
    }
    if (waited > FIRST_BYTE_PATIENCE_MS / 1e3 && !*is_told) {
        *is_told = true;
        say_error(
            "process %d does not let go of the GIL; the manhole comes when it does (its "
            "stacks: %s --attach --stacks %d)",
            pid, program, pid);
    }
    doze();
}

/* Has a thread unmap our memory. Not where the loader has said no, for then the new thread is still
 * on its way out of there. */
static bool
unmap_memory(void *argument, unsigned round)
{
    struct attaching *attaching = argument;
    long result = 0;

    return call_in_any_thread(&attaching->image, round, SYS_munmap,
                              ARGUMENTS(attaching->memory, MEMORY_SIZE), &result);
}

/* Returns when the new thread is done with the order, which is read. */
static void
await_thread(const struct attaching *attaching, struct order *order)
{
    const double begun = now_s();
    bool is_told = false;

    for (;;) {
        if (!peek(attaching->image.pid, order_at(attaching), order, sizeof(*order))) {
            fail_ended(attaching->image.pid);
        }
        if (order->state >= ORDER_FAILED) {
            order->error[sizeof(order->error) - 1] = '\0';
            return;
        }
        wait_on(attaching, now_s() - begun, &is_told);
    }
}

/* Gives the process a manhole, or ends the program. */
static void
inject(const struct request *request, const struct image *image)
{
    static struct attaching attaching;
    const pid_t pid = image->pid;
    struct order order;

    attaching.request = request;
    attaching.image = *image;
    find_gadgets(image);
    prepare_errand(&attaching);
    if (!trace(borrow_thread, &attaching) && attaching.error == 0) {
        check_frames(pid);
        fail(STATUS_NO_CONNECTION,
             "no thread of process %d came to a place where it may be lent, within %d s; "
             "try again",
             (int)pid, LENDING_PATIENCE_S);
    }
    if (attaching.error != 0) {
        fail_errand(pid, attaching.error);
    }
    await_thread(&attaching, &order);
    if (order.state != ORDER_NOT_LOADED) {
        (void)trace(unmap_memory, &attaching);
    }
    if (order.state != ORDER_DONE) {
        fail(STATUS_NO_CONNECTION, "process %d takes no manhole: %s", (int)pid,
             order.error);
    }
}

#endif /* HAS_ATTACH */

#endif /* MANHOLE_CLI_ATTACH_INJECT_C */
