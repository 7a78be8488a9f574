/* Signals: let in only while we wait, so that they can be dealt with as any other news.
 * Before there is a connection Ctrl-C simply ends the program.
 */
#ifndef MANHOLE_CLI_SIGNALS_C
#define MANHOLE_CLI_SIGNALS_C

#include "messages.c"

static volatile sig_atomic_t is_signal_due[NSIG];
static sigset_t mask_while_waiting;

/* Only what signal-safety(7) allows. */
static void
on_signal(int number)
{
    is_signal_due[number] = 1;
}

/* The same; there is nothing to tidy up. */
static void
on_early_interrupt(int number)
{
    (void)number;
    _exit(STATUS_INTERRUPTED);
}

/* Unless the caller has the signal ignored (nohup, "&" in a script). Returns whether it is not. */
static bool
set_handler(int number, void (*handler)(int))
{
    struct sigaction action = {.sa_flags = 0};

    if (sigaction(number, NULL, &action) == 0 && action.sa_handler == SIG_IGN) {
        return false;
    }
    action = (struct sigaction){.sa_handler = handler, .sa_flags = SA_RESTART};
    return sigaction(number, &action, NULL) == 0;
}

/* From now on take_due() tells of it. */
static void
follow_signal(int number)
{
    static bool is_first = true;
    sigset_t set;

    (void)sigemptyset(&set);
    (void)sigaddset(&set, number);
    (void)pthread_sigmask(SIG_BLOCK, &set, is_first ? &mask_while_waiting : NULL);
    is_first = false;
    (void)set_handler(number, on_signal);
}

/* Whether it has come since the last call. */
static bool
take_due(int number)
{
    bool is_due = is_signal_due[number] != 0;
    is_signal_due[number] = 0;
    return is_due;
}

/* As poll(), with the signals that are followed let in: -1 then, to be looked at. */
static int
poll_with_signals(struct pollfd fds[], nfds_t count, int patience_ms)
{
    struct timespec patience = {.tv_sec = patience_ms / 1000,
                                .tv_nsec = patience_ms % 1000 * 1000000L};
    int ready =
        ppoll(fds, count, patience_ms < 0 ? NULL : &patience, &mask_while_waiting);

    if (ready < 0 && errno != EINTR) {
        fail(STATUS_TROUBLE, "cannot wait for input: %m");
    }
    if (ready > 0) {
        /* ppoll() lets none in when it need not wait, as beside a flood of output. */
        sigset_t blocked;
        (void)pthread_sigmask(SIG_SETMASK, &mask_while_waiting, &blocked);
        (void)pthread_sigmask(SIG_SETMASK, &blocked, NULL);
    }
    return ready;
}

/* As poll(), for any count: the kernel takes no more entries than a process may have descriptors,
 * and those that are -1 count. */
static int
poll_many(struct pollfd fds[], size_t count, int patience_ms)
{
    struct pollfd *open =
        calloc(count + 1, sizeof(*open)); /* owned: those that are not -1 */
    size_t opened = 0;
    int ready = 0;

    if (open == NULL) {
        fail(STATUS_TROUBLE, "out of memory");
    }
    for (size_t i = 0; i < count; i++) {
        fds[i].revents = 0;
        if (fds[i].fd >= 0) {
            open[opened++] = fds[i];
        }
    }
    ready = poll(open, opened, patience_ms);
    opened = 0;
    for (size_t i = 0; i < count; i++) {
        if (fds[i].fd >= 0) {
            fds[i].revents = open[opened++].revents;
        }
    }
    free(open);
    return ready;
}

#endif /* MANHOLE_CLI_SIGNALS_C */
