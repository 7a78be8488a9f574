/* Attached: the manhole of a process that did not install one, but was attached to.
 * Runs on:  a thread that manhole-cli --attach has made here; it holds nothing, and has all signals
 *           blocked but those of faults.
 * Touches:  the order, and what install() touches.
 *
 * src/cli/attach/inject.c tells how the thread and this module come into the process. Here it
 * waits for the GIL, calls install(), and tells the client by the order's state how that went; the
 * client connects then as to any manhole. The order is in memory that the client has made in this
 * process, and takes away when it has read that.
 *
 * Unless the manhole is to be kept the thread stays, without a thread state, and looks a few times
 * a second whether somebody is in. When the last client has left, or none has come, it releases the
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
};

/* As src/cli/attach/inject.c has it: two programs have to agree on it, so a change wants another
 * name of manhole_attached(). */
struct order {
    _Atomic uint32_t state;
    uint32_t keeps;
    _Atomic uint32_t cancelled;
    int32_t fd;
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
    "This manhole is for CPython " WORD(PY_MAJOR_VERSION) "." WORD(PY_MINOR_VERSION)
        THREADING_WORD ", " LIBC_WORD " (" MANHOLE_VERSION ")";

/* The manhole that an order has installed goes when the last client has left. One of the
 * application's own, which may have taken its place, is not replaceable. */
static _Atomic bool is_on_loan;

/* Installs with the client's options, which win over ours. An install() of the application's own
 * takes its place, as if there were none. Returns 0, or -1 with an exception. */
ATTACHED static int
install_as_ordered(const char *options)
{
    if (!is_imported("threading") &&
        (load_threading() < 0 ||
         (is_imported("threading") && tell_threading_main() < 0))) {
        return -1;
    }
    OWNED PyObject *module = get_module();
    OWNED PyObject *text = PyUnicode_FromFormat(
        "**{**dict(verbose=False, patch_fork=False), **dict(%s)}", options);
    is_ordered = true;
    OWNED PyObject *result =
        module == NULL || text == NULL ? NULL : eval_install(module, text);
    is_ordered = false;
    return result == NULL ? -1 : 0;
}

static bool
is_installed_here(void)
{
    return manhole.installed && is_owner();
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
    bool was_there = is_installed_here();
    bool is_new = !was_there && install_as_ordered(order->options) == 0;
    if (is_new || is_installed_here()) { /* by somebody who was quicker */
        PyErr_Clear();
        bool was_on_loan = is_new || (atomic_load(&is_on_loan) && manhole.replaceable);
        atomic_store(&is_on_loan, was_on_loan && order->keeps == 0);
        return ORDER_DONE;
    }
    OWNED PyObject *exception = take_exception();
    (void)describe_exception(exception, order->error, sizeof(order->error));
    return ORDER_FAILED;
}

/* With a thread state of this thread's, in the main interpreter, for as long as that takes. */
MAY_ATTACH static enum order_state
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

/* Whether there is a manhole here that is ours to release. */
static bool
is_temporary(void)
{
    return is_installed_here() && manhole.replaceable && atomic_load(&is_on_loan);
}

/* Returns when the last client has left, or none has come, or there is nothing to release. */
DETACHED static void
await_last_client(unsigned visits)
{
    int64_t deadline_ms = monotonic_ms() + VISIT_PATIENCE_MS;
    while (monotonic_ms() < deadline_ms && is_temporary()) {
        (void)poll(NULL, 0, VISIT_LOOK_MS);
        if (count_sessions() > 0 || atomic_load(&manhole.visits) != visits) {
            visits = atomic_load(&manhole.visits);
            deadline_ms = monotonic_ms() + LINGER_MS;
        }
    }
}

/* Not where the interpreter ends, which releases it by itself. */
MAY_ATTACH static void
release_attached(void)
{
    PyThreadState *tstate = enter_interpreter();
    if (tstate == NULL) {
        return;
    }
    if (release() < 0) {
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
    atomic_store(&order->state, state); /* the last word: the order may be gone now */
    if (state == ORDER_DONE) {
        await_last_client(visits);
    }
    if (state == ORDER_DONE && is_temporary()) {
        release_attached();
    }
    return NULL;
}

#endif /* MANHOLE_ATTACHED_C */
