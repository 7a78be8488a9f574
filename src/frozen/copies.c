/* Copies: how the process makes frozen copies that run Python, looks after them, and ends them.
 * Runs on:  the thread that makes one, and stays with it to its end: a copy dies with it.
 * Touches:  one process for each copy, and a mapping; another while it is made.
 *
 * A copy is made by clone() without a flag: nothing is shared, its end is no SIGCHLD, waitpid()
 * sees it with __WALL alone, and no handlers of fork() run. freeze() makes one after the other
 * until one lives: says, on a page that it shares with the process (the board), that it has Python
 * and has done what it had to import. Of a process that was caught at a bad moment the next try is
 * at another, so the pauses grow. One that waits before that, for a lock that a vanished thread has
 * taken, is ended: the kernel says that it sleeps. Time alone would not tell, for beside busy
 * threads a good one is slow.
 *
 * watch_copy() then stays with it until its end, which comes
 *   by itself             its client has left its prompt;
 *   with the client       who has hung up needs it no more;
 *   by its being idle     it had nothing to do for copy_idle_ms;
 *   for want of memory    its own memory is what the copy writes, and what the process writes
 *                         meanwhile: see is_memory_low().
 */
#ifndef MANHOLE_FROZEN_COPIES_C
#define MANHOLE_FROZEN_COPIES_C

#include "../base/compat.c"
#include "../base/state.c"
#include "../base/locks.c"
#include "../base/basics.c"
#include "../base/log.c"
#include "../stacks/memory.c"
#include "../stacks/kernel.c"
#include "fence.c"
#include "python.c"

/* What came of a copy that was to be made. */
enum freeze_result {
    FREEZE_DONE,
    FREEZE_DIED,      /* each of them */
    FREEZE_NO_HOLDER, /* nobody has the GIL: Python is not stuck, or not any more */
    FREEZE_SUBINTERPRETERS,
    FREEZE_NO_FENCE,
    FREEZE_NO_STACK,
    FREEZE_NO_MEMORY,
    FREEZE_REFUSED, /* the kernel made none: errno */
    FREEZE_NOT_HERE,
    FREEZE_TOO_MANY,
    FREEZE_NO_CLIENT, /* who wanted it has left */
};

/* Why a copy ended. */
enum copy_end {
    END_BY_ITSELF,
    END_OF_CLIENT,
    END_IDLE,
    END_NO_MEMORY,
    END_KILLED, /* by somebody else, or it crashed */
};

#if CAN_FREEZE

enum {
    COPY_ATTEMPTS = 40,
    COPY_HOLDER_ATTEMPTS = 3,  /* in a row, while threads hand the GIL on */
    COPY_LOOK_MS = 2,          /* between two looks at one that is being made, */
    COPY_PATIENCE_MS = 300,    /* which sleeps, */
    COPY_TIMEOUT_MS = 20000,   /* or does not, but gets nowhere */
    COPY_WATCH_MS = 100,       /* between two looks at one that lives */
    COPY_FAREWELL_LOOKS = 100, /* for one whose client has left to end by itself */
};

/* That a copy may do nothing for. Unit tests have less. */
static int64_t copy_idle_ms = 600 * INT64_C(1000);

/* What a copy shares with the process. */
struct board {
    _Atomic bool is_ready; /* the copy's word: it has Python, */
    _Atomic bool may_live; /* and the process's: it knows whom to interrupt */
    struct log_page log;
};

/* What a copy is made of: memory of the thread that makes it, which the copy has at the same
 * place. */
struct freezing {
    pid_t original;
    bool attached; /* who makes it is, up to the first copy, and while it makes one: */
    PyThreadState *tstate; /* its state while it is not */
    int client_fd;
    char *stack;
    struct board *board;                      /* there as long as the copy */
    void (*note)(void *argument, pid_t copy); /* in the process: it has begun */
    void (*live)(void *argument, struct board *board);
    void *argument;
};

/* Body of a copy. It ends in live(). */
MAY_ATTACH static int
frozen_main(void *argument)
{
    const struct freezing *freezing = argument;
    if (!fence_in(freezing->original, freezing->client_fd, freezing->board)) {
        end_copy(EXIT_NOT_FENCED);
    }
    make_locks_anew();
    atomic_store(&manhole.owner, getpid()); /* so that the hook of a fork does nothing */
    become_python(freezing->original, freezing->attached, freezing->stack);
    freezing->live(freezing->argument, freezing->board);
    _exit(0);
}

/* In the copy: it is ready to live. */
COPY_ONLY static void
wait_on_board(struct board *board)
{
    atomic_store(&board->is_ready, true);
    while (!atomic_load(&board->may_live)) {
        (void)poll(NULL, 0, 1);
    }
}

/* Whether the copy sleeps: it waits for something, and nobody is there to give it. */
DETACHED static bool
is_asleep(pid_t copy)
{
    char folder[40];
    char stat[KERNEL_FILE_SIZE];
    (void)snprintf(folder, sizeof(folder), "/proc/%ld", (long)copy);
    read_kernel_file(stat, folder, "stat");
    const char *behind_name = strrchr(stat, ')');
    return behind_name != NULL && (behind_name[2] == 'S' || behind_name[2] == 'D');
}

/* Waits until the copy has Python, or is no more. Returns true, or false and how it ended. */
DETACHED static bool
await_copy(pid_t copy, const struct board *board, int *status)
{
    const int64_t deadline_ms = monotonic_ms() + COPY_TIMEOUT_MS;
    int asleep_ms = 0;
    while (waitpid(copy, status, __WALL | WNOHANG) == 0) {
        if (atomic_load(&board->is_ready)) {
            return true;
        }
        (void)poll(NULL, 0, COPY_LOOK_MS);
        asleep_ms = is_asleep(copy) ? asleep_ms + COPY_LOOK_MS : 0;
        if (asleep_ms >= COPY_PATIENCE_MS || ms_until(deadline_ms) == 0) {
            (void)kill(copy, SIGKILL);
        }
    }
    return false;
}

/* What the end of a copy says of the next one. */
static enum freeze_result
judge_end(int status)
{
    switch (WIFEXITED(status) ? WEXITSTATUS(status) : 0) {
    case EXIT_NOT_FENCED:
        return FREEZE_NO_FENCE;
    case EXIT_SUBINTERPRETERS:
        return FREEZE_SUBINTERPRETERS;
    case EXIT_NO_MEMORY:
        return FREEZE_NO_MEMORY;
    case EXIT_NO_STACK:
        return FREEZE_NO_STACK;
    case EXIT_NO_HOLDER:
        return FREEZE_NO_HOLDER;
    default:
        return FREEZE_DIED;
    }
}

/* Makes one copy and waits until it lives. Detached from then on: the process may get stuck now,
 * and the copy has to be looked after. */
MAY_ATTACH static enum freeze_result
try_to_freeze(struct freezing *freezing)
{
    enum freeze_result result = FREEZE_REFUSED;
    int status = 0;
    pid_t copy = -1;
    freezing->board = mmap(NULL, sizeof(struct board), PROT_READ | PROT_WRITE,
                           MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    freezing->stack = mmap(NULL, COPY_STACK_SIZE, PROT_READ | PROT_WRITE,
                           MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (freezing->board != MAP_FAILED && freezing->stack != MAP_FAILED) {
        copy = clone(frozen_main, freezing->stack + COPY_STACK_SIZE, 0, freezing);
    }
    int error = errno;

    freezing->tstate = freezing->attached ? detach() : NULL;
    if (freezing->board != MAP_FAILED) { /* no child's, nor another copy's */
        (void)madvise(freezing->board, sizeof(struct board), MADV_DONTFORK);
    }
    if (copy > 0 && await_copy(copy, freezing->board, &status)) {
        freezing->note(freezing->argument, copy);
        atomic_store(&freezing->board->may_live, true);
        result = FREEZE_DONE;
    }
    else if (copy > 0) {
        result = judge_end(status);
    }
    if (freezing->stack != MAP_FAILED) {
        (void)munmap(freezing->stack, COPY_STACK_SIZE);
    }
    if (result != FREEZE_DONE && freezing->board != MAP_FAILED) {
        (void)munmap(freezing->board, sizeof(struct board));
    }
    errno = error;
    return result;
}

/* Waits so long for the client to leave. Returns whether it has. */
static bool
has_client_left(int client_fd, int patience_ms)
{
    struct pollfd client = {.fd = client_fd, .events = 0};
    return client_fd < 0 || (poll(&client, 1, patience_ms) == 1 &&
                             (client.revents & (POLLHUP | POLLERR | POLLNVAL)) != 0);
}

/* Makes copies until one lives. Each has the process stand still: none is made for a client that
 * has left meanwhile. */
MAY_ATTACH static enum freeze_result
freeze(struct freezing *freezing)
{
    enum freeze_result result =
        is_memory_low() || is_memory_short() ? FREEZE_NO_MEMORY : FREEZE_DIED;
    int free_in_a_row = 0;
    freezing->original = getpid();
    for (int i = 0; (result == FREEZE_DIED || result == FREEZE_NO_HOLDER) &&
                    free_in_a_row < COPY_HOLDER_ATTEMPTS && i < COPY_ATTEMPTS;
         i++) {
        if (has_client_left(freezing->client_fd, i)) {
            return FREEZE_NO_CLIENT;
        }
        reattach(freezing->tstate);
        result = try_to_freeze(freezing);
        free_in_a_row = result == FREEZE_NO_HOLDER ? free_in_a_row + 1 : 0;
    }
    return result;
}

/* How often the copy has waited for something; 0: /proc does not tell. */
DETACHED static uint64_t
count_waits(pid_t copy)
{
    char folder[40];
    char text[KERNEL_FILE_SIZE];
    (void)snprintf(folder, sizeof(folder), "/proc/%ld", (long)copy);
    read_kernel_file(text, folder, "status");
    return number_behind(text, "\nvoluntary_ctxt_switches:");
}

/* Takes a copy's status if it has ended; then nobody may send it a signal any more. */
DETACHED static bool
reap_frozen(struct session *session, int *status)
{
    lock_leaf(&session->out_lock);
    bool ended = waitpid(session->copy, status, __WALL | WNOHANG) != 0;
    session->copy = ended ? 0 : session->copy;
    unlock(&session->out_lock);
    return ended;
}

/* When a copy last did something. */
struct activity {
    uint64_t waits;
    int64_t at_ms;
};

/* Looks for a while at a copy that lives. Returns why it is to end; END_BY_ITSELF: it is not. */
DETACHED static enum copy_end
check_on_copy(struct session *session, struct activity *activity)
{
    const uint64_t waits = count_waits(session->copy);
    if (waits == 0 || waits != activity->waits) {
        *activity = (struct activity){waits, monotonic_ms()};
    }
    if (has_client_left(kept_number(&session->fd), COPY_WATCH_MS)) {
        return END_OF_CLIENT;
    }
    if (is_memory_low()) {
        return END_NO_MEMORY;
    }
    return ms_until(activity->at_ms + copy_idle_ms) == 0 ? END_IDLE : END_BY_ITSELF;
}

/* Stays with the copy that serves the session until its end. Takes the board over. Returns why the
 * copy ended. */
DETACHED static enum copy_end
watch_copy(struct session *session, struct board *board)
{
    const pid_t copy = session->copy;
    enum copy_end end = END_BY_ITSELF;
    struct activity activity = {0, monotonic_ms()};
    int status = 0;
    int farewell = 0;
    while (!reap_frozen(session, &status)) {
        pass_lines_on(&board->log);
        if (end == END_BY_ITSELF) {
            end = check_on_copy(session, &activity);
            continue;
        }
        (void)poll(NULL, 0, COPY_LOOK_MS);
        if (end != END_OF_CLIENT || farewell++ >= COPY_FAREWELL_LOOKS) {
            (void)kill(copy, SIGKILL); /* the number is its own until it is reaped */
        }
    }
    pass_lines_on(&board->log);
    (void)munmap(board, sizeof(*board));
    return WIFEXITED(status) ? END_BY_ITSELF : end == END_BY_ITSELF ? END_KILLED : end;
}

#endif /* CAN_FREEZE */
#endif /* MANHOLE_FROZEN_COPIES_C */
