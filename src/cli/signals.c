/* Signals and waiting: signals are let in only while we wait, so that they can be dealt with as any
 * other news: poll_with_signals() returns, consume_signal() tells which has come.
 *
 * Before there is a session Ctrl-C simply ends the program, by the handler that main() sets. From
 * follow_signal() on the signal is blocked but for that waiting. A signal that the caller has
 * ignored (nohup, "&" in a script) stays so.
 */
#ifndef MANHOLE_CLI_SIGNALS_C
#define MANHOLE_CLI_SIGNALS_C

#include "buffer.c"

static struct {
    volatile sig_atomic_t is_due[NSIG];
    sigset_t mask_while_waiting;
    bool is_begun; /* and that mask is known */
} followed;

/* Only what signal-safety(7) allows. */
static void
on_signal(int number)
{
    followed.is_due[number] = 1;
}

/* The same; there is nothing to tidy up. */
static void
on_early_interrupt(int number)
{
    (void)number;
    _exit(STATUS_INTERRUPTED);
}

/* Unless the caller has the signal ignored. System calls go on behind it. */
static void
set_handler(int number, void (*handler)(int))
{
    struct sigaction action = {.sa_flags = 0};

    if (sigaction(number, NULL, &action) == 0 && action.sa_handler != SIG_IGN) {
        action = (struct sigaction){.sa_handler = handler, .sa_flags = SA_RESTART};
        (void)sigaction(number, &action, NULL);
    }
}

/* From now on consume_signal() tells of it. */
static void
follow_signal(int number)
{
    sigset_t set;

    (void)sigemptyset(&set);
    (void)sigaddset(&set, number);
    (void)pthread_sigmask(SIG_BLOCK, &set,
                          followed.is_begun ? NULL : &followed.mask_while_waiting);
    followed.is_begun = true;
    set_handler(number, on_signal);
}

/* Whether it has come since the last call. */
static bool
consume_signal(int number)
{
    bool is_due = followed.is_due[number] != 0;
    followed.is_due[number] = 0;
    return is_due;
}

/* Seconds of a clock that only goes forward. */
static double
now_s(void)
{
    struct timespec now = {.tv_sec = 0};
    (void)clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + (double)now.tv_nsec / 1e9;
}

/* Milliseconds to wait at most before the deadline; -1: for ever. What is no number is over. */
static int
patience_until(double deadline)
{
    double left_ms = (deadline - now_s()) * 1e3;
    return left_ms > INT_MAX ? -1 : left_ms > 0 ? (int)left_ms + 1 : 0;
}

/* As poll(), with the signals that are followed let in: -1 then, to be looked at. */
static int
poll_with_signals(struct pollfd fds[], nfds_t count, int patience_ms)
{
    const sigset_t *mask = &followed.mask_while_waiting;
    struct timespec patience = {.tv_sec = patience_ms / 1000,
                                .tv_nsec = patience_ms % 1000 * 1000000L};
    int ready = ppoll(fds, count, patience_ms < 0 ? NULL : &patience, mask);

    if (ready < 0 && errno != EINTR) {
        fail(STATUS_TROUBLE, "cannot wait for input: %m");
    }
    if (ready > 0) {
        /* ppoll() lets none in when it need not wait, as beside a flood of output. */
        sigset_t blocked;
        (void)pthread_sigmask(SIG_SETMASK, mask, &blocked);
        (void)pthread_sigmask(SIG_SETMASK, &blocked, NULL);
    }
    return ready;
}

/* A signal ends it early, which does no harm: the caller looks at the clock; one that a local shell
 * had let in only while it waited ends the program. */
static void
pause_s(double seconds)
{
    static const int endings[] = {SIGINT, SIGTERM, SIGHUP, SIGQUIT};

    (void)poll_with_signals(NULL, 0, (int)(seconds * 1e3) + 1);
    for (size_t i = 0; i < sizeof(endings) / sizeof(endings[0]); i++) {
        if (consume_signal(endings[i])) {
            leave((enum exit_status)(128 + endings[i]));
        }
    }
}

/* As poll(), for any count: the kernel takes no more entries than a process may have descriptors,
 * and those that are -1 count. */
static int
poll_many(struct pollfd fds[], size_t count, int patience_ms)
{
    OWNED struct pollfd *open =
        allocate(count, sizeof(*open)); /* those that are not -1 */
    size_t opened = 0;

    for (size_t i = 0; i < count; i++) {
        fds[i].revents = 0;
        if (fds[i].fd >= 0) {
            open[opened++] = fds[i];
        }
    }
    int ready = poll(open, opened, patience_ms);
    for (size_t i = count; i-- > 0;) {
        if (fds[i].fd >= 0) {
            fds[i].revents = open[--opened].revents;
        }
    }
    return ready;
}

#endif /* MANHOLE_CLI_SIGNALS_C */
