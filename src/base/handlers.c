/* Async-signal-safe code: the three handlers. Only signal-safety(7) calls and other ASYNC_SAFE
 * functions here; errno saved first and restored last.
 * Runs on:  whichever thread the kernel picks, at any instruction.
 * Touches:  atomics, and a door's path while bound says that it is whole.
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

/* After a change of manhole.wishes. */
ASYNC_SAFE static void
wake_listener(void)
{
    (void)sem_post(&manhole.wake);
    ring_bell(&manhole.wake_bell);
}

/* For activate_on. Wakes the listener, which was made for this at install. */
ASYNC_SAFE static void
on_activate(int signum)
{
    int saved_errno = errno;
    (void)signum;
    if (is_owner()) {
        atomic_fetch_or(&manhole.wishes, WISH_OPEN);
        wake_listener();
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
