/* Listener: the thread that nothing in Python can stop.
 * Runs on:  itself. DETACHED for life: whoever calls Python here breaks the first invariant.
 * Touches:  the socket, the slots of sessions, the copies that wait in them.
 *
 * How it sleeps. One turn of listener_main() does what it was told (obey_orders()), then watches:
 * poll() without a timeout while nothing is due, so an idle process is never woken. What it waits
 * for is the wake bell, the doors, and each session's descriptor, the latter to see that a client
 * leaves while its thread is busy, or that it can take again what waits for it. A timeout there is
 * only for who waits too long for Python (hang_timeout), for what a vanished client has left
 * running, and after an accept() that found no room.
 *
 * How it is told. tell_listener() sets a bit of manhole.orders, posts the semaphore and rings the
 * bell; a signal handler may do it. The semaphore is what is slept on while there is nothing to
 * poll: it needs no descriptor. Whoever waits for what the listener then does waits for the news
 * bell.
 *
 * What an application may do to us. It may close every descriptor: poll() returns at once for those
 * (POLLNVAL), and they are opened anew (recover_descriptors()); one that was asleep is given up,
 * see enum turn. It may use up all descriptors: then one client gets the spare one, and for another
 * accept() is tried again after ACCEPT_PAUSE_MS, and said once.
 *
 * The calling card. A client may bind its socket to an abstract name before it connects,
 * manhole-cli/ID/CHANNEL, and the kernel hands it to us with the connection. ID is the same for all
 * connections of one client: PROCESS.NUMBER, and at a terminal .COLUMNS behind it, with a "c" where
 * that takes colours. Who has no such card, or another CHANNEL, gets what connection_handler
 * says.
 *   quiet      the same without the stacks.
 *   terminal, terminal-quiet
 *              the console with and without the stacks, for who types: with keys and marks, see
 *              is_key().
 *   interrupt  raises KeyboardInterrupt in what the client with this ID runs; says in a line what
 *              became of it.
 *   complete   reads a line, up to the cursor; sends what it may become in the session of the
 *              client with this ID, a line each. No word on any error.
 *   stacks     sends the stacks alone; from a frozen copy when Python does not answer.
 *   json       the same as a JSON document.
 *   watch, watch-again
 *              the same with the number of tasks alone; but for the first time the log is silent.
 *   frozen, frozen-terminal, frozen-exec
 *              the console and exec in a frozen copy of the process. Sends "frozen" and a newline
 *              first, for the client to know. A console begins with a byte of the client's.
 *   frozen-stacks, frozen-json
 *              the same with stacks and json, and the variables of each frame.
 *   tasks, tasks-json, greenlets, greenlets-json
 *              sends what each task and greenlet, or each greenlet, waits for; from a frozen copy
 *              when Python does not answer.
 *   exec       reads a program and runs it: four bytes of length, the high one first; then file
 *              name, sys.argv's elements and source, a NUL between two. What follows is its stdin.
 *              Sends frames (a kind; four bytes of length; so many bytes): 'o' stdout, 'e' stderr,
 *              'i', empty, when it reads for the first time; last 'x', the exit status in decimal.
 * All but a console's and interrupt's answers end with the connection; one that starts "manhole: "
 * in their place is a refusal. They run whatever connection_handler is: the credentials are what
 * lets a client in. Only exec is refused where commands are all that there is. To add one: a row in
 * channels[].
 */
#ifndef MANHOLE_SERVER_LISTENER_C
#define MANHOLE_SERVER_LISTENER_C

#include "../base/compat.c"
#include "../base/state.c"
#include "../base/locks.c"
#include "../base/basics.c"
#include "../base/log.c"
#include "../base/handlers.c"
#include "../door/socket.c"
#include "../session/output.c"
#include "../session/attach.c"
#include "../session/interrupt.c"
#include "../session/console.c"
#include "../session/programs.c"
#include "../session/channels.c"
#include "../session/session.c"
#include "../session/report.c"
#include "../session/frozen.c"

enum {
    /* Of those that do, which is glibc's own; musl's is 128 KiB. */
    PYTHON_STACK_SIZE = 8 * 1024 * 1024,
    /* How many times hang_timeout a module of a session's first imports may take: beside eight
     * threads that compute "re" takes over a second, and nothing is stuck. */
    IMPORT_FACTOR = 10,
    /* Before the next accept() after one that found no room. */
    ACCEPT_PAUSE_MS = 200,
};

/* A client that cannot be served is told why, if it listens, and let go. */
DETACHED static void
turn_away(int fd, const char *why)
{
    char line[160];
    int length = snprintf(line, sizeof(line), "manhole: %s\n", why);
    (void)send(fd, line, (size_t)length, MSG_NOSIGNAL | MSG_DONTWAIT);
    (void)close(fd);
    log_line("Turned a client away: %s", why);
}

static bool
is_python_stuck(void)
{
    int64_t since_ms = waiting_since();
    return since_ms != 0 &&
           monotonic_ms() - since_ms >= seconds_to_ms(manhole.options.hang_timeout);
}

/* A client that may come in. */
struct client {
    int fd; /* owned, handed to the session */
    struct peer peer;
    const char *card; /* the id on it */
    const struct channel *channel;
    const struct door *door; /* that the application has given; NULL: another */
    PyObject *locals;        /* owned, handed to the session; or NULL */
};

/* Fills a new session's slot with what the listener knows of the client. stuck: its own thread
 * tells the client at once, and nobody else has to. */
static void
note_client(struct session *session, const struct client *client, bool stuck)
{
    (void)snprintf(session->card, sizeof(session->card), "%s", client->card);
    session->door = client->door;
    session->door_serial = client->door == NULL ? 0 : client->door->serial;
    session->locals = client->locals;
    lock_leaf(&session->out_lock);
    session->hang.watched = true;
    session->hang.asked_ms = monotonic_ms();
    session->hang.state = stuck                                        ? HANG_REPORTED
                          : client->channel->receive == receive_frozen ? HANG_NONE
                                                                       : HANG_ASKED;
    unlock(&session->out_lock);
}

/* Returns whether the client is in; if not, it is gone, and locals still the caller's. */
DETACHED static bool
start_session(const struct client *client)
{
    const struct channel *channel = client->channel;
    bool is_frozen = channel->serve_copy != NULL;
    bool stuck = (channel->aside || is_frozen) && is_python_stuck();
    char why[120];
    if (stuck && channel->report == NULL && !is_frozen) {
        (void)close(client->fd); /* it is about Python alone, and does not want to wait */
        return false;
    }
    struct session *session = claim_session(client->fd, &client->peer, channel);
    if (session == NULL) {
        (void)snprintf(why, sizeof(why),
                       "%d clients are connected already; try again later",
                       most_sessions(channel));
        turn_away(client->fd, why);
        return false;
    }

    note_client(session, client, stuck);
    int error = start_thread(NULL,
                             !stuck      ? session_main
                             : is_frozen ? lone_freezer_main
                                         : lone_reporter_main,
                             session, PYTHON_STACK_SIZE);
    if (error != 0) {
        (void)snprintf(why, sizeof(why), "cannot start a thread for you: %s",
                       error_text(error));
        turn_away(fcntl(client->fd, F_DUPFD_CLOEXEC, 0), why);
        session->locals = NULL;
        release_session(session);
    }
    return error == 0;
}

/* Checks who an accepted client is. Returns whether it may come in; if not, it is gone. */
DETACHED static bool
admit_client(int fd, struct peer *peer, const struct channel *channel)
{
    if (!channel->unlogged) {
        log_line("Started ManholeConnectionThread thread. Checking credentials ...");
    }
    if (identify_peer(fd, peer) < 0 || !may_enter(peer)) {
        char why[200];
        describe_refusal(peer, why, sizeof(why));
        log_line("SuspiciousClient: %s", why);
        if (is_open()) {
            log_waiting();
        }
        (void)close(fd);
        return false;
    }
    if (!channel->unlogged) {
        log_accepted(fd, peer);
    }
    return true;
}

/* A client's calling card: the abstract name that it was bound to, manhole-cli/ID/CHANNEL, with
 * whatever it takes to make that unique behind a dot: manhole-cli/4711.1/interrupt.2 */
struct card {
    char id[CARD_SIZE];
    char channel[16];
};

/* Reads a card. A client without one, plain nc, or with another's, has empty fields. */
static struct card
read_card(const struct sockaddr_un *address, socklen_t size)
{
    static const char prefix[] = "manhole-cli/";
    struct card card = {"", ""};
    char name[sizeof(address->sun_path) + 1] = "";
    const char *slash = NULL;
    const size_t offset = offsetof(struct sockaddr_un, sun_path) + 1;
    if (address->sun_family != AF_UNIX || size <= offset || size > sizeof(*address) ||
        address->sun_path[0] != '\0') {
        return card;
    }
    memcpy(name, address->sun_path + 1, size - offset);
    slash = strrchr(name, '/');
    if (strncmp(name, prefix, sizeof(prefix) - 1) == 0 && slash != NULL &&
        slash >= name + sizeof(prefix) &&
        (size_t)(slash - name) - sizeof(prefix) + 1 < sizeof(card.id) &&
        strlen(slash + 1) < sizeof(card.channel)) {
        memcpy(card.id, name + sizeof(prefix) - 1,
               (size_t)(slash - name) - sizeof(prefix) + 1);
        (void)snprintf(card.channel, sizeof(card.channel), "%s", slash + 1);
        card.channel[strcspn(card.channel, ".")] = '\0';
    }
    return card;
}

/* Interrupts what the client with this id runs, and answers in a word what became of it. Takes
 * over fd. */
DETACHED static void
answer_interrupt(int fd, const struct card *card)
{
    static const char *const answers[] = {"idle\n", "interrupted\n", "still running\n"};
    const char *answer = "unknown\n";
    for (size_t i = 0; i < atomic_load(&manhole.sessions_end); i++) {
        struct session *session = &manhole.sessions[i];
        lock_leaf(&session->out_lock);
        bool meant = session->hang.watched && strcmp(session->card, card->id) == 0;
        unlock(&session->out_lock);
        if (meant && session->channel->serve != serve_completion) {
            int times = interrupt_session(session, true);
            answer = answers[times < 2 ? times : 2];
        }
    }
    (void)send(fd, answer, strlen(answer), MSG_NOSIGNAL | MSG_DONTWAIT);
    (void)close(fd);
}

/* The side channels; any other word on a card, and none, is a console's. */
static const struct channel channels[] = {
    {.name = "complete",
     .aside = true,
     .unlogged = true,
     .receive = receive_line,
     .serve = serve_completion},
    {.name = "interrupt", .unlogged = true}, /* answered by the listener */
    {.name = "quiet", .no_stacks = true},
    {.name = "terminal", .marked = true},
    {.name = "terminal-quiet", .marked = true, .no_stacks = true},
    {.name = "exec", .framed = true, .receive = receive_program, .serve = serve_program},
    {.name = "frozen",
     .no_stacks = true,
     .receive = receive_frozen,
     .serve = serve_frozen,
     .serve_copy = serve_console},
    {.name = "frozen-terminal",
     .no_stacks = true,
     .marked = true,
     .receive = receive_frozen,
     .serve = serve_frozen,
     .serve_copy = serve_console},
    {.name = "frozen-exec",
     .framed = true,
     .receive = receive_frozen,
     .serve = serve_frozen,
     .serve_copy = serve_program},
    {.name = "frozen-stacks",
     .aside = true,
     .receive = receive_frozen,
     .serve = serve_frozen,
     .serve_copy = serve_locals},
    {.name = "frozen-json",
     .aside = true,
     .receive = receive_frozen,
     .serve = serve_frozen,
     .serve_copy = serve_locals_json},
    {.name = "json", .aside = true, .serve = serve_json, .report = report_json},
    {.name = "watch", .aside = true, .serve = serve_watch, .report = report_json},
    {.name = "watch-again",
     .aside = true,
     .unlogged = true,
     .serve = serve_watch,
     .report = report_json},
    {.name = "stacks", .aside = true, .serve = serve_stacks, .report = report_stacks},
    {.name = "tasks",
     .aside = true,
     .serve = serve_tasks,
     .report = report_tasks,
     .serve_copy = serve_tasks},
    {.name = "tasks-json",
     .aside = true,
     .serve = serve_tasks_json,
     .serve_copy = serve_tasks_json},
    {.name = "greenlets",
     .aside = true,
     .serve = serve_greenlets,
     .report = report_tasks,
     .serve_copy = serve_greenlets},
    {.name = "greenlets-json",
     .aside = true,
     .serve = serve_greenlets_json,
     .serve_copy = serve_greenlets_json},
};

static const struct channel *
find_channel(const char *name)
{
    for (size_t i = 0; i < Py_ARRAY_LENGTH(channels); i++) {
        if (strcmp(channels[i].name, name) == 0) {
            return &channels[i];
        }
    }
    return &plain_channel;
}

/* accept() has failed, but the next one may do: the client has left again; or our descriptor is
 * lost, which recover_descriptors() sees to, or shut down, which is_done_with() finds. */
static bool
is_passing(int error)
{
    return error == EAGAIN || error == ECONNABORTED || error == EINTR || error == EBADF ||
           error == EINVAL;
}

/* Accepts one client. Returns 0, or -1 when there is no room for any just now. */
DETACHED static int
accept_client(const struct door *door)
{
    union address address = {.any.sa_family = AF_UNSPEC};
    socklen_t size = sizeof(address);
    int listen_fd = kept_number(&door->listen_fd);
    bool given = atomic_load(&door->given_fd.number) >= 0;
    if (given) { /* a process that shares it may have had it block again */
        (void)fcntl(listen_fd, F_SETFL, fcntl(listen_fd, F_GETFL) | O_NONBLOCK);
    }
    int fd = accept_next(listen_fd, &address, &size); /* owned */
    if (fd < 0) {
        return is_passing(errno) ? 0 : -1;
    }

    struct card card = read_card(&address.un, size);
    struct client client = {
        .fd = fd,
        .card = card.id,
        .channel = given ? &backdoor_channel : find_channel(card.channel),
        .door = given ? door : NULL,
    };
    if (!admit_client(fd, &client.peer, client.channel)) {
        return 0;
    }
    if (strcmp(card.channel, "interrupt") == 0) {
        answer_interrupt(fd, &card);
    }
    else {
        (void)start_session(&client);
    }
    return 0;
}

/* What a listener does; each has a number of its own above these bits. One that sleeps in poll()
 * while the application closes the bell cannot be woken: it is given up, and another takes its
 * place. Should it wake after all, by a client that leaves, it touches nothing and ends. */
enum turn {
    TURN_AWAKE, /* its number alone */
    TURN_POLLING,
    TURN_GIVEN_UP,
    TURN_OVER,
    NEXT_LISTENER,
};

static enum turn
listeners_turn(void)
{
    return (enum turn)(atomic_load(&manhole.turn) % NEXT_LISTENER);
}

static unsigned
latest_listener(void)
{
    return atomic_load(&manhole.turn) / NEXT_LISTENER * NEXT_LISTENER;
}

/* Returns false when the listener was not as it is said to have been. */
static bool
take_turn(unsigned listener, enum turn before, enum turn after)
{
    unsigned turn = listener + before;
    return atomic_compare_exchange_strong(&manhole.turn, &turn, listener + after);
}

/* What the listener knows from one turn of its loop to the next, and what it waits for in one. */
struct watch {
    unsigned listener;       /* whose it is */
    bool accept_fails;       /* said once, until it works again */
    int64_t accept_again_ms; /* monotonic; 0: at once */
    struct pollfd fds[1 + MAX_DOORS + MAX_SESSIONS];
    struct {
        struct door *door;
        struct session *session;
    } whose[1 + MAX_DOORS + MAX_SESSIONS]; /* neither: the bell's */
    nfds_t count;
    int64_t wake_ms; /* monotonic: the next thing to do whatever happens; -1: none */
};

static void
watch_fd(struct watch *watch, int fd, short events, struct door *door,
         struct session *session)
{
    watch->fds[watch->count] = (struct pollfd){.fd = fd, .events = events};
    watch->whose[watch->count].door = door;
    watch->whose[watch->count++].session = session;
}

static void
wake_at(struct watch *watch, int64_t time_ms)
{
    if (watch->wake_ms < 0 || time_ms < watch->wake_ms) {
        watch->wake_ms = time_ms;
    }
}

static bool
has_report(const struct channel *channel)
{
    enum handler_kind kind = manhole.options.connection_handler.kind;
    if (channel->serve == NULL) {
        return kind == HANDLER_REPL || kind == HANDLER_COMMANDS;
    }
    return channel->report != NULL || channel->serve_copy != NULL ||
           channel->serve == serve_console;
}

/* When the client must have heard something; -1: it has, or is not the listener's. */
static int64_t
report_time(struct session *session)
{
    int64_t patience_ms = seconds_to_ms(manhole.options.hang_timeout);
    int64_t time_ms = -1;
    lock_leaf(&session->out_lock);
    if (session->hang.watched && session->hang.state == HANG_ASKED &&
        has_report(session->channel)) {
        bool takes_turns = HAS_GIL && session->hang.importing;
        time_ms =
            session->hang.asked_ms + patience_ms * (takes_turns ? IMPORT_FACTOR : 1);
    }
    unlock(&session->out_lock);
    return time_ms;
}

static bool
is_listeners(struct session *session)
{
    bool ours = false;
    lock_leaf(&session->out_lock);
    ours = session->hang.watched;
    unlock(&session->out_lock);
    return ours;
}

/* The application has closed or shut down a socket that it has given us. */
static bool
is_done_with(const struct door *door)
{
    int listens = 0;
    socklen_t size = sizeof(listens);
    if (atomic_load(&door->given_fd.number) < 0) {
        return false;
    }
    (void)getsockopt(kept_number(&door->listen_fd), SOL_SOCKET, SO_ACCEPTCONN, &listens,
                     &size);
    return is_lost(&door->given_fd) || !listens;
}

/* Whether there is a door, and it is the listener's. */
static bool
sees_to_door(struct door *door)
{
    if (!is_door_open(door) ||
        (door < manhole.doors + MAX_OWN_DOORS && atomic_load(&manhole.oneshot))) {
        return false;
    }
    if (is_done_with(door)) {
        log_line("Backdoor server at %s is closed: the application has closed its socket",
                 door->name);
        close_kept(&door->listen_fd);
        return false;
    }
    return true;
}

static void
watch_doors(struct watch *watch)
{
    for (size_t i = 0; i < MAX_DOORS; i++) {
        struct door *door = &manhole.doors[i];
        if (sees_to_door(door)) {
            watch_fd(watch, atomic_load(&door->listen_fd.number), POLLIN, door, NULL);
        }
    }
}

/* Fills in what to wait for. A session's descriptor is always watched: that its client leaves must
 * be seen while its thread is busy. */
DETACHED static void
prepare_watch(struct watch *watch)
{
    watch->count = 0;
    watch->wake_ms = -1;
    atomic_store(&manhole.wakes_at_ms,
                 -1); /* before the sessions are read, see expect_answer() */
    /* Also descriptors that are lost: poll() returns at once for them, and all is opened anew. */
    watch_fd(watch, atomic_load(&manhole.wake_bell.number), POLLIN, NULL, NULL);
    if (watch->accept_again_ms != 0 && ms_until(watch->accept_again_ms) > 0) {
        wake_at(watch, watch->accept_again_ms);
    }
    else {
        watch_doors(watch);
    }
    for (size_t i = 0; i < atomic_load(&manhole.sessions_end); i++) {
        struct session *session = &manhole.sessions[i];
        int fd = atomic_load(&session->fd.number);
        if (fd < 0 || !is_listeners(session)) {
            continue;
        }
        if (session->gone_ms != 0) {
            wake_at(watch, session->gone_ms + GONE_CHECK_MS);
        }
        else {
            watch_fd(watch, fd, has_waiting(session) ? POLLOUT : 0, NULL, session);
        }
        if (report_time(session) >= 0) {
            wake_at(watch, report_time(session));
        }
    }
}

DETACHED static void
accept_clients(struct watch *watch, struct door *door)
{
    watch->accept_again_ms = 0;
    if (!sees_to_door(door) || accept_client(door) == 0) {
        watch->accept_fails = false;
        return;
    }
    if (!watch->accept_fails) {
        log_line("Cannot accept a client: %s. Waiting until there is room.",
                 error_text(errno));
    }
    watch->accept_fails = true;
    watch->accept_again_ms = monotonic_ms() + ACCEPT_PAUSE_MS;
}

/* What is due without any event: stacks for who waits too long, an interrupt for what a vanished
 * client has left running, again and again until it ends. */
DETACHED static void
look_after(struct session *session)
{
    int64_t now_ms = monotonic_ms();
    int64_t report_ms = report_time(session);
    if (report_ms >= 0 && report_ms <= now_ms) {
        if (session->channel->serve_copy != NULL) {
            send_freezer(session);
        }
        else {
            report_session(session);
        }
    }
    if (session->gone_ms != 0 && session->gone_ms + GONE_CHECK_MS <= now_ms) {
        session->gone_ms = now_ms;
        (void)interrupt_session(session, false);
    }
}

/* Sleeps until there is something to do. With nothing to watch but the bell it sleeps on the
 * semaphore, which an application that closes all descriptors cannot close: activate_on still
 * works. Returns how many descriptors have something; a negative number, too, when it is given
 * up. */
DETACHED static int
wait_for_events(struct watch *watch)
{
    if (watch->count == 1 && watch->wake_ms < 0) {
        (void)sem_wait(&manhole.wake);
        silence_bell(&manhole.wake_bell);
        return -1;
    }
    atomic_store(&manhole.wakes_at_ms, watch->wake_ms);
    (void)take_turn(watch->listener, TURN_AWAKE, TURN_POLLING);
    int ready = poll(watch->fds, watch->count, ms_until(watch->wake_ms));
    if (!take_turn(watch->listener, TURN_POLLING, TURN_AWAKE)) {
        return -1;
    }
    if (watch->fds[0].revents != 0) {
        silence_bell(&manhole.wake_bell);
    }
    return ready;
}

/* A session's descriptor takes what waits for it, or its client has left. */
DETACHED static void
serve_events(struct session *session, short events)
{
    if ((events & POLLOUT) != 0) {
        carry_waiting(session);
    }
    if ((events & (POLLHUP | POLLERR | POLLNVAL)) != 0 && is_gone(session)) {
        session->gone_ms = monotonic_ms();
        (void)interrupt_session(session, false);
    }
}

/* One turn: waits, then does what is due. */
DETACHED static void
watch_descriptors(struct watch *watch)
{
    prepare_watch(watch);
    if (wait_for_events(watch) < 0) {
        return;
    }
    for (nfds_t i = 1; i < watch->count; i++) {
        if (watch->whose[i].session != NULL) {
            serve_events(watch->whose[i].session, watch->fds[i].revents);
        }
        else if (watch->fds[i].revents != 0) {
            accept_clients(watch, watch->whose[i].door);
        }
    }
    for (size_t i = 0; i < atomic_load(&manhole.sessions_end); i++) {
        if (atomic_load(&manhole.sessions[i].fd.number) >= 0 &&
            is_listeners(&manhole.sessions[i])) {
            look_after(&manhole.sessions[i]);
        }
    }
}

/* Does what it was told. Returns the orders that it found. */
DETACHED static unsigned
obey_orders(void)
{
    unsigned orders = 0;
    while (sem_trywait(&manhole.wake) == 0) {
    }
    orders = atomic_exchange(&manhole.orders, 0);
    if ((orders & ORDER_CLOSE) != 0) {
        close_given_doors();
    }
    if ((orders & (ORDER_CLOSE | ORDER_STOP)) != 0) {
        close_doors();
        ring_bell(&manhole.news_bell);
    }
    else if ((orders & ORDER_OPEN) != 0 && atomic_load(&manhole.oneshot)) {
        atomic_fetch_or(&manhole.orders,
                        ORDER_OPEN); /* again when that is over, which wakes us */
    }
    else if ((orders & ORDER_OPEN) != 0 && open_doors() > 0) {
        log_waiting();
    }
    return orders;
}

static bool
has_lost_door(void)
{
    bool lost = false;
    for (size_t i = 0; i < MAX_OWN_DOORS; i++) {
        lost = lost || is_lost(&manhole.doors[i].listen_fd);
    }
    return lost;
}

/* An application that makes itself a daemon closes every descriptor there is: opens ours anew.
 * Returns false when that cannot be done: nothing would wake the listener any more. */
DETACHED static bool
recover_descriptors(void)
{
    bool woken = !is_lost(&manhole.wake_bell) && !is_lost(&manhole.news_bell);
    if (woken && !has_lost_door()) {
        return true;
    }
    log_line("WARNING: The manhole's descriptors were closed by the application. Opening "
             "them again.");
    if (open_bells() < 0) {
        log_line("Cannot go on listening: %s", error_text(errno));
        close_doors();
        return false;
    }
    if (is_open() && !atomic_load(&manhole.oneshot) && open_doors() > 0) {
        log_waiting();
    }
    return true;
}

/* A child that is about to exec or exit leaves no socket behind. */
DETACHED static void
delay_binding(void)
{
    int64_t deadline_ms = monotonic_ms() + manhole.bind_delay_ms;
    if (manhole.bind_delay_ms > 0) {
        log_line("Delaying UDS binding %s seconds ...",
                 format_seconds(manhole.options.reinstall_delay).text);
    }
    while (atomic_load(&manhole.orders) == 0 && ms_until(deadline_ms) > 0 &&
           recover_descriptors()) {
        struct pollfd wake = {.fd = atomic_load(&manhole.wake_bell.number),
                              .events = POLLIN};
        (void)poll(&wake, 1, ms_until(deadline_ms));
    }
}

/* Body of a courier: carries log lines to a Python object. */
DETACHED MAY_ATTACH static void *
courier_main(void *unused)
{
    PyThreadState *tstate = enter_interpreter();
    (void)unused;
    if (tstate != NULL) {
        deliver_log();
        leave_interpreter(tstate);
    }
    atomic_store(&manhole.courier_is_out, false);
    if (tstate != NULL && is_log_waiting()) {
        wake_listener(); /* of a line that came since it did not send another */
    }
    return NULL;
}

/* One at a time: behind a stuck interpreter they would pile up. */
DETACHED static void
send_courier(void)
{
    if (is_log_waiting() && !atomic_exchange(&manhole.courier_is_out, true) &&
        start_thread(NULL, courier_main, NULL, PYTHON_STACK_SIZE) != 0) {
        atomic_store(&manhole.courier_is_out, false);
    }
}

/* Else for a signal, or for what the application has given us, alone. */
static bool
opens_at_once(const struct options *options)
{
    return options->thread && options->activate_on == 0 && options->oneshot_on == 0;
}

/* The name of the calling thread, the listener: manhole-cli reads there that a process has a
 * manhole, and by the number the signal that opens it. */
DETACHED static void
name_listener(void)
{
    char name[16] = "Manhole";
    if (manhole.options.activate_on != 0) {
        (void)snprintf(name, sizeof(name), "Manhole %d", manhole.options.activate_on);
    }
    (void)pthread_setname_np(pthread_self(), name);
}

DETACHED static void *
listener_main(void *unused)
{
    struct watch watch = {.listener = atomic_load(&manhole.turn)};
    (void)unused;
    name_listener();
    delay_binding();
    if (opens_at_once(&manhole.options)) {
        tell_listener(ORDER_OPEN);
    }
    while (atomic_load(&manhole.turn) == watch.listener && recover_descriptors() &&
           (obey_orders() & ORDER_STOP) == 0) {
        if (!atomic_exchange(&manhole.started, true)) {
            ring_bell(&manhole.news_bell);
        }
        send_courier();
        watch_descriptors(&watch);
    }
    (void)take_turn(watch.listener, TURN_AWAKE, TURN_OVER);
    return NULL;
}

#endif /* MANHOLE_SERVER_LISTENER_C */
