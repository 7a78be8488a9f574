/* Attached: the manhole of a process that did not install one, but was attached to.
 * Runs on:  a thread that manhole-cli --attach has made here; it holds nothing, and has all signals
 *           blocked but those of faults.
 * Touches:  the client's memory in this process, which it unmaps; else what install() touches.
 *
 * src/cli/attach/inject.c tells how the thread and this module come into the process. Here it
 * waits for the GIL, calls install(), and tells the client by the order's state how that went; the
 * client connects then as to any manhole. Our memory in the process, the order's, is unmapped when
 * the client has read that, or does not within a second, for it may be gone.
 *
 * Unless the manhole is to be kept the thread stays, without a thread state, and looks a few times a
 * second whether somebody is in. When the last client has left, or none has come, it releases the
 * manhole. What then stays are the mapped file and the module in sys.modules; nothing runs. It is
 * no harm that release() may come twice: it does nothing the second time.
 *
 * Children that are forked meanwhile get no manhole (patch_fork=False): nobody would release it.
 */
#ifndef MANHOLE_ATTACHED_C
#define MANHOLE_ATTACHED_C

#include "base/compat.c"
#include "base/state.c"
#include "base/basics.c"
#include "session/attach.c"
#include "session/session.c"
#include "server/install.c"
#include "module.c"
#include "c_api.c"

enum {
    ORDER_PATIENCE_MS = 1000,  /* until the client has read the state */
    VISIT_PATIENCE_MS = 10000, /* for the first client to come */
    LINGER_MS = 500,           /* for the next one, as in a loop of a shell */
    VISIT_LOOK_MS = 50,
};

/* How far it has come. What the client made is ORDER_MADE and ORDER_LOADING. */
enum order_state {
    ORDER_WAITING = 2, /* for the GIL */
    ORDER_INSTALLING,
    ORDER_FAILED, /* error tells why */
    ORDER_DONE,
    ORDER_READ, /* the client has read one of these two */
};

/* As src/cli/attach/inject.c has it: two programs have to agree on it, so a change wants another
 * name of manhole_attached(). */
struct order {
    _Atomic uint32_t state;
    uint32_t keeps;
    _Atomic uint32_t cancelled;
    int32_t fd;
    uint64_t memory;
    uint64_t memory_size;
    char error[512];
    char options[2048];
};

#ifdef Py_GIL_DISABLED
#  define THREADING_WORD "t"
#else
#  define THREADING_WORD ""
#endif
#ifdef __GLIBC__
#  define LIBC_WORD "glibc"
#else
#  define LIBC_WORD "musl"
#endif
#define WORD(NUMBER) WORD_(NUMBER)
#define WORD_(NUMBER) #NUMBER

/* By these words the client knows which file fits a process. */
__attribute__((used)) static const char built_for[] =
    "This manhole is for CPython " WORD(PY_MAJOR_VERSION) "." WORD(
        PY_MINOR_VERSION) THREADING_WORD ", " LIBC_WORD " (" MANHOLE_VERSION ")";

/* A client has said so: the manhole stays when the last one has left. */
static _Atomic bool is_kept;

/* Installs with the client's options, which win over ours. Returns 0, or -1 with an exception. */
ATTACHED static int
install_as_ordered(const char *options)
{
    OWNED PyObject *module = get_module();
    OWNED PyObject *text =
        PyUnicode_FromFormat("**{**dict(verbose=False, patch_fork=False), **dict(%s)}", options);
    OWNED PyObject *result =
        module == NULL || text == NULL ? NULL : eval_install(module, text);
    return result == NULL ? -1 : 0;
}

/* Installs, unless somebody has meanwhile, or the client has given up. Returns the state. */
ATTACHED static enum order_state
follow_order(struct order *order)
{
    atomic_store(&order->state, ORDER_INSTALLING);
    if (atomic_load(&order->cancelled) != 0) {
        (void)snprintf(order->error, sizeof(order->error), "the client has given up");
        return ORDER_FAILED;
    }
    if (order->keeps != 0) {
        atomic_store(&is_kept, true);
    }
    if ((manhole.installed && is_owner()) || install_as_ordered(order->options) == 0) {
        return ORDER_DONE;
    }
    OWNED PyObject *exception = take_exception();
    (void)describe_exception(exception, order->error, sizeof(order->error));
    return ORDER_FAILED;
}

/* With a thread state of this thread's, in the main interpreter, for as long as that takes. */
DETACHED static enum order_state
install_attached(struct order *order)
{
    enum order_state state = ORDER_FAILED;
    PyThreadState *tstate = Py_IsInitialized() && !is_finalizing()
                                ? new_thread_state(PyInterpreterState_Main())
                                : NULL;
    if (tstate == NULL) {
        (void)snprintf(order->error, sizeof(order->error),
                       "its Python has not started yet, or is ending");
        return state;
    }
    atomic_store(&order->state, ORDER_WAITING);
    reattach(tstate);
    state = follow_order(order);
    forget_dummy_thread();
    PyThreadState_Clear(tstate);
    PyThreadState_DeleteCurrent();
    return state;
}

/* Tells the client, waits until it knows, and takes its memory away. */
DETACHED static void
answer_order(struct order *order, enum order_state state)
{
    const uintptr_t memory = (uintptr_t)order->memory;
    const size_t size = (size_t)order->memory_size;
    int64_t deadline_ms = monotonic_ms() + ORDER_PATIENCE_MS;

    atomic_store(&order->state, state);
    while (atomic_load(&order->state) != ORDER_READ && monotonic_ms() < deadline_ms) {
        (void)poll(NULL, 0, 1);
    }
    (void)munmap((void *)memory, size); /* NOLINT(performance-no-int-to-ptr): as mmap() gave it */
}

/* Returns when the last client has left, or none has come. */
DETACHED static void
await_last_client(unsigned visits)
{
    int64_t deadline_ms = monotonic_ms() + VISIT_PATIENCE_MS;
    while (monotonic_ms() < deadline_ms && is_owner() && !atomic_load(&is_kept)) {
        (void)poll(NULL, 0, VISIT_LOOK_MS);
        if (count_sessions() > 0 || atomic_load(&manhole.visits) != visits) {
            visits = atomic_load(&manhole.visits);
            deadline_ms = monotonic_ms() + LINGER_MS;
        }
    }
}

/* Not where the interpreter ends, which releases it by itself. */
DETACHED static void
release_attached(void)
{
    PyThreadState *tstate = enter_interpreter();
    if (tstate == NULL) {
        return;
    }
    if (!atomic_load(&is_kept) && release() < 0) {
        PyErr_Clear();
    }
    leave_interpreter(tstate);
}

PyAPI_FUNC(void *) manhole_attached(void *argument);

/* What the client's code jumps to, in the new thread; argument: the order. */
DETACHED void *
manhole_attached(void *argument)
{
    struct order *order = argument;
    const unsigned visits = atomic_load(&manhole.visits);

    (void)prctl(PR_SET_NAME, "Manhole attach");
    if (order->fd >= 0) {
        (void)close(order->fd); /* the loader has mapped it */
    }
    enum order_state state = install_attached(order);
    answer_order(order, state);
    if (state == ORDER_DONE && !atomic_load(&is_kept)) {
        await_last_client(visits);
        release_attached();
    }
    return NULL;
}

#endif /* MANHOLE_ATTACHED_C */
