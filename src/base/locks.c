/* Locks: which there are, and what may happen while one is held.
 * Runs on:  any thread; a function's marker says where it must be attached.
 *
 * The GIL is one more lock, which a session may have to wait for as long as the application likes,
 * and free-threaded builds have none. So no lock of ours relies on it, and there are two kinds,
 * never mixed:
 *
 *   install_lock, sys_lock, import_lock   may be held while Python runs. lock_attached() waits for
 *       one detached: its holder may need the GIL to come to its end. import_lock is also taken by
 *       lock_imports() and by whoever forks.
 *   leaves: table_lock, log_lock, out_lock of a session. Held for a few instructions, never while
 *       attaching, detaching, sending or running Python; so they may be taken in either state. Two
 *       are never held at once.
 *   snapshot_lock   is apart: held while a frozen copy is made and waited for. Who is attached may
 *       try it, but not wait for it.
 *
 * A signal handler in Python runs in the middle of whatever its thread does, and may call us:
 * import_lock counts how often its thread has it, and install_lock refuses by an exception.
 * A forked child makes all of them anew: the thread that held one is gone.
 */
#ifndef MANHOLE_BASE_LOCKS_C
#define MANHOLE_BASE_LOCKS_C

#include "compat.c"
#include "state.c"

static pthread_mutex_t install_lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_mutex_t sys_lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_mutex_t import_lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_mutex_t table_lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_mutex_t log_lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_mutex_t snapshot_lock = PTHREAD_MUTEX_INITIALIZER;

/* Waits detached: the holder may need to attach before it can let go. */
ATTACHED static void
lock_attached(pthread_mutex_t *lock)
{
    if (pthread_mutex_trylock(lock) != 0) {
        PyThreadState *tstate = detach();
        (void)pthread_mutex_lock(lock);
        reattach(tstate);
    }
}

static void
lock_leaf(pthread_mutex_t *lock)
{
    (void)pthread_mutex_lock(lock);
}

static void
unlock(pthread_mutex_t *lock)
{
    (void)pthread_mutex_unlock(lock);
}

/* How often the calling thread has import_lock: a signal handler in Python may fork, or serve a
 * oneshot's client, in the middle of a fork of its own thread's. */
static _Thread_local unsigned import_locks;

/* Returns whether the calling thread has it, once more. */
static bool
try_imports(void)
{
    bool locked = import_locks > 0 || pthread_mutex_trylock(&import_lock) == 0;
    import_locks += locked;
    return locked;
}

ATTACHED static void
lock_imports(void)
{
    if (!try_imports()) {
        lock_attached(&import_lock);
        import_locks = 1;
    }
}

/* Also for a fork that has not got it in time, and in a forked child: does nothing there. */
static void
unlock_imports(void)
{
    if (import_locks > 0 && --import_locks == 0) {
        unlock(&import_lock);
    }
}

static void
make_import_lock_anew(void)
{
    import_locks = 0;
    (void)pthread_mutex_init(&import_lock, NULL);
}

/* The thread that is in install() or release(), 0: none. */
static _Atomic unsigned long installer;

ATTACHED static void
raise_at_work(void)
{
    PyErr_SetString(
        PyExc_RuntimeError,
        "install() or release() is at work in this very thread; try again later");
}

/* Returns 0, or -1 with RuntimeError: a signal handler in Python may find that its own thread is at
 * it already. */
ATTACHED static int
lock_install(void)
{
    if (atomic_load(&installer) == PyThread_get_thread_ident()) {
        raise_at_work();
        return -1;
    }
    lock_attached(&install_lock);
    atomic_store(&installer, PyThread_get_thread_ident());
    return 0;
}

static void
unlock_install(void)
{
    atomic_store(&installer, 0);
    unlock(&install_lock);
}

/* Before the first use, and in a forked child. */
static void
make_session_locks(struct session *session)
{
    pthread_condattr_t timed;
    (void)pthread_condattr_init(&timed);
    (void)pthread_condattr_setclock(&timed, CLOCK_MONOTONIC);
    (void)pthread_mutex_init(&session->out_lock, NULL);
    (void)pthread_cond_init(&session->out_free, &timed);
    (void)pthread_condattr_destroy(&timed);
}

static void
make_locks_anew(void)
{
    (void)pthread_mutex_init(&install_lock, NULL);
    atomic_store(&installer, 0);
    (void)pthread_mutex_init(&sys_lock, NULL);
    make_import_lock_anew();
    (void)pthread_mutex_init(&table_lock, NULL);
    (void)pthread_mutex_init(&log_lock, NULL);
    (void)pthread_mutex_init(&snapshot_lock, NULL);
    for (size_t i = 0; i < atomic_load(&manhole.sessions_end); i++) {
        make_session_locks(&manhole.sessions[i]);
    }
}

#endif /* MANHOLE_BASE_LOCKS_C */
