/* Async-signal-safe code: the three handlers. Only signal-safety(7) calls and other ASYNC_SAFE
 * functions here; errno saved first and restored last.
 * Runs on:  whichever thread the kernel picks, at any instruction.
 * Touches:  atomics, and a door's path while bound says that it is whole.
 *
 * on_activate() opens nothing itself, for it may have hit a thread in the middle of malloc(): it
 * sets a bit for the listener, which was made at install() for this, and wakes it. In a child that
 * C code has forked the handler finds itself in a process that owns nothing. It notes the child's
 * pid, and the fork hook, if Python's own fork it was, opens the socket then.
 *
 * on_death() stands in for SIG_DFL, where that is what the process had (watch_death_signals()). It
 * removes the sockets' paths, then dies of the same signal. Two races are closed. The path may just
 * be being made: bind() and the note that it is ours (bound) are one step for signals of the same
 * thread, which are blocked meanwhile, and the handler in another thread waits for that (binding).
 * Or the listener is about to make one: leaving, set first, forbids it.
 */
#ifndef MANHOLE_BASE_HANDLERS_C
#define MANHOLE_BASE_HANDLERS_C

#include "compat.c"
#include "state.c"
#include "basics.c"

enum {
    /* How long a signal that ends the process waits for bind() to return. */
    BIND_PATIENCE_MS = 100,
};

ASYNC_SAFE static bool
is_binding(void)
{
    bool binding = false;
    for (size_t i = 0; i < MAX_OWN_DOORS; i++) {
        binding = binding || atomic_load(&manhole.doors[i].binding);
    }
    return binding;
}

/* Two threads at once do no harm: the second finds nothing of ours. */
ASYNC_SAFE static void
remove_path(struct door *door)
{
    struct stat there;
    if (atomic_load(&door->bound)) {
        if (lstat(door->name, &there) == 0 && there.st_dev == door->device &&
            there.st_ino == door->inode) {
            atomic_store(&door->left_for, unlink(door->name) < 0 ? errno : 0);
        }
        atomic_store(&door->bound, false);
    }
}

/* Removes the sockets' paths, those that are ours and there. No signal may come in between, for its
 * handler may end the process. The listener takes microseconds to bind; it is waited for a little
 * longer, but not for ever. */
ASYNC_SAFE static void
remove_paths(void)
{
    sigset_t all;
    sigset_t before;
    (void)sigfillset(&all);
    (void)pthread_sigmask(SIG_SETMASK, &all, &before);
    for (int ms = 0; ms < BIND_PATIENCE_MS && is_binding(); ms++) {
        (void)poll(NULL, 0, 1);
    }
    for (size_t i = 0; i < MAX_OWN_DOORS; i++) {
        remove_path(&manhole.doors[i]);
    }
    (void)pthread_sigmask(SIG_SETMASK, &before, NULL);
}

/* For activate_on. Wakes the listener, which was made for this at install. */
ASYNC_SAFE static void
on_activate(int signum)
{
    int saved_errno = errno;
    (void)signum;
    if (is_owner()) {
        tell_listener(ORDER_OPEN);
    }
    else {
        atomic_store(&manhole.activated_child, getpid());
    }
    errno = saved_errno;
}

/* For the signal that ends a session's wait: a system call that it cuts short returns, which is all
 * that is wanted. Whoever else it hits does not notice more than that. */
ASYNC_SAFE static void
on_end_wait(int signum)
{
    (void)signum;
}

/* For a signal whose default action ends the process: the path goes first, then the
 * process, by the very same signal, so that its exit status tells the truth. */
ASYNC_SAFE static void
on_death(int signum)
{
    int saved_errno = errno;
    struct sigaction action = {.sa_handler = SIG_DFL};
    if (is_owner()) {
        atomic_store(&manhole.leaving,
                     true); /* first, or the listener might bind behind us */
        remove_paths();
    }
    (void)sigaction(signum, &action, NULL);
    (void)kill(getpid(), signum); /* blocked in here: delivered when we return */
    errno = saved_errno;
}

#endif /* MANHOLE_BASE_HANDLERS_C */
