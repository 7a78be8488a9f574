/* Output: bytes on their way to a client.
 * Runs on:  the session's thread sends its own and waits for its client, or leaves it where a
 *           statement prints much; application threads leave an echo of what they print and never
 *           wait; the listener carries what is left.
 * Touches:  the outbox of struct session. Whoever has set sending sends, nobody else.
 *
 * How it works. A client's socket has three kinds of writers. The session's own thread may wait for
 * its client as long as it likes; threads of the application that print, and the listener, may not
 * wait at all. `sending` is the right to call send(), and with it goes the duty to send first what
 * waits already, so that a client sees everything in the order in which it was written.
 *
 *   The ring. A client with a console has a ring of RING_SIZE bytes, made with the first echo. A
 *   thread of the application puts an echo of what it prints into the ring of every such client
 *   (echo_to_client) and goes on; where nothing waited before, and nobody sends just now, it rings
 *   for the listener. Between head and tail is what waits; both only grow, and the remainder by
 *   RING_SIZE is the place in the ring.
 *
 *   What is missed. Bytes that find no room are counted, and from then on all others are, until
 *   the ring has run empty. Then one line says how many were not shown. So no line is torn, and a
 *   client that stops reading costs the application no more than an addition.
 *
 *   A flood. What a statement prints is sent at once, with the interpreter released, until it has
 *   written FLOOD_BEGINS times; from then on it goes into the ring as well, for the listener to
 *   send, as long as no more than MAX_LEFT bytes wait: a loop that prints a million lines would
 *   otherwise let go of the GIL a million times. left_end is where such bytes end, and send_left()
 *   sees them out before the session hangs up.
 *
 *   A prompt, and the value that stands before it, wait in `unsent` until the session reads again:
 *   one send for both, at the moment when it lets go of the interpreter anyway.
 *
 * Who may write when, then: an application thread, into the ring, under out_lock, at any time; the
 * listener and a reporter, to the socket, while they have `sending`; the session's thread, to the
 * socket while it has `sending`, and it waits for that. The lock is never held over a send().
 */
#ifndef MANHOLE_SESSION_OUTPUT_C
#define MANHOLE_SESSION_OUTPUT_C

#include "../base/compat.c"
#include "../base/state.c"
#include "../base/locks.c"
#include "../base/basics.c"

enum {
    /* Bytes of the application's output kept for a slow client; and of a session's own among them,
     * once a statement has written so often. */
    RING_SIZE = 1024 * 1024,
    MAX_LEFT = 256 * 1024,
    FLOOD_BEGINS = 16,
    /* Bytes in one frame of a program's output. */
    MAX_FRAME = 16 * 1024,
};

/* Room left in the ring. Under out_lock. */
static size_t
ring_room(const struct session *session)
{
    return RING_SIZE - (session->outbox.tail - session->outbox.head);
}

/* Under out_lock, and there is room. */
static void
fill_ring(struct session *session, const char *bytes, size_t length)
{
    size_t start = session->outbox.tail % RING_SIZE;
    size_t first = length < RING_SIZE - start ? length : RING_SIZE - start;
    memcpy(session->ring + start, bytes, first);
    memcpy(session->ring, bytes + first, length - first);
    session->outbox.tail += length;
}

/* The longest prefix of at most room bytes that does not cut a UTF-8 character. */
static size_t
utf8_prefix(const char *bytes, size_t length, size_t room)
{
    size_t prefix = length < room ? length : room;
    if (prefix < length) {
        while (prefix > 0 && ((unsigned char)bytes[prefix] & 0xC0) == 0x80) {
            prefix--;
        }
    }
    return prefix;
}

/* Fast path for a stalled client: only adds to its count, without the lock, for print() waits for
 * this. Returns whether the client misses something already; else nothing is counted. */
static bool
add_to_missed(struct session *session, size_t length)
{
    size_t missed = atomic_load(&session->missed);
    while (missed > 0 && atomic_load(&session->ring) != NULL) {
        if (atomic_compare_exchange_weak(&session->missed, &missed, missed + length)) {
            return true;
        }
    }
    return false;
}

/* Nothing waits, and nobody sends who would take along what comes now: the listener has to. Under
 * out_lock. */
static bool
is_idle(const struct session *session)
{
    return !session->outbox.sending && session->outbox.head == session->outbox.tail;
}

/* Leaves an echo for one client. What does not fit is counted, and so is all that follows
 * until the ring has been emptied and the note about it put in: no torn lines in between. */
static void
echo_to_client(struct session *session, const char *bytes, size_t length)
{
    bool wake = false;
    if (add_to_missed(session, length)) {
        return;
    }
    lock_leaf(&session->out_lock);
    if (session->ring == NULL && atomic_load(&session->viewing)) {
        session->ring = malloc(RING_SIZE);
    }
    if (!atomic_load(&session->viewing)) {
        /* It has left since the caller looked. */
    }
    else if (session->ring == NULL || session->missed > 0) {
        atomic_fetch_add(&session->missed, length);
    }
    else {
        size_t kept = utf8_prefix(bytes, length, ring_room(session));
        wake = is_idle(session);
        fill_ring(session, bytes, kept);
        session->missed = length - kept;
    }
    unlock(&session->out_lock);
    if (wake) {
        ring_bell(&manhole.wake_bell);
    }
}

/* From now on the client sees what the application prints. One caller at a time. */
static void
begin_viewing(struct session *session)
{
    const size_t end = (size_t)(session - manhole.sessions) + 1;
    if (atomic_load(&manhole.viewers_end) < end) {
        atomic_store(&manhole.viewers_end, end);
    }
    atomic_store(&session->viewing, true);
    atomic_fetch_add(&manhole.viewers, 1);
}

static void
end_viewing(struct session *session)
{
    atomic_store(&session->viewing, false);
    atomic_fetch_sub(&manhole.viewers, 1);
}

/* Leaves an echo for every client that has a console. In a child that has not forgotten its parent
 * yet a thread that is gone may hold their locks. */
static void
echo_to_clients(const char *bytes, size_t length)
{
    size_t end = is_owner() ? atomic_load(&manhole.viewers_end) : 0;
    for (size_t i = 0; i < end; i++) {
        if (atomic_load(&manhole.sessions[i].viewing)) {
            echo_to_client(&manhole.sessions[i], bytes, length);
        }
    }
}

/* The next piece of the ring in one stretch; puts the note about what was missed in when
 * the ring is empty. Returns its length, 0: nothing waits. Under out_lock. */
static size_t
next_waiting(struct session *session, const char **piece)
{
    const struct outbox *outbox = &session->outbox;
    if (outbox->head == outbox->tail && session->missed > 0 && session->ring != NULL) {
        char note[80];
        int length = snprintf(note, sizeof(note), "\n[manhole: %zu bytes not shown]\n",
                              atomic_exchange(&session->missed, 0));
        fill_ring(session, note, (size_t)length);
    }
    size_t start = outbox->head % RING_SIZE;
    size_t waiting = outbox->tail - outbox->head;
    *piece = session->ring == NULL ? NULL : session->ring + start;
    return waiting < RING_SIZE - start ? waiting : RING_SIZE - start;
}

/* As send(), and waits for a client that does not read, also where somebody has set O_NONBLOCK on
 * the shared socket, unless flags have MSG_DONTWAIT. */
DETACHED static ssize_t
send_patiently(struct session *session, const char *bytes, size_t length, int flags)
{
    struct pollfd client = {.fd = atomic_load(&session->fd.number), .events = POLLOUT};
    ssize_t sent = -1;
    do {
        sent = send(kept_number(&session->fd), bytes, length, flags | MSG_NOSIGNAL);
    } while (sent < 0 && errno == EAGAIN && (flags & MSG_DONTWAIT) == 0 &&
             poll(&client, 1, -1) >= 0);
    return sent;
}

/* Sends what waits. The caller has set sending. flags: MSG_DONTWAIT or 0. Returns 0 when
 * nothing waits any more, else an errno value (EAGAIN: the client does not read just
 * now). */
DETACHED static int
send_waiting(struct session *session, int flags)
{
    for (;;) {
        const char *piece = NULL;
        lock_leaf(&session->out_lock);
        size_t length = next_waiting(session, &piece);
        unlock(&session->out_lock);
        if (length == 0) {
            return 0;
        }
        ssize_t sent = send_patiently(session, piece, length, flags);
        if (sent < 0) {
            return errno;
        }
        lock_leaf(&session->out_lock);
        session->outbox.head += (size_t)sent;
        unlock(&session->out_lock);
    }
}

/* Something waits that a session's own sending has left behind, or a client that stalls: the
 * listener's to carry. */
static bool
has_waiting(struct session *session)
{
    lock_leaf(&session->out_lock);
    bool waiting = !session->outbox.sending && atomic_load(&session->viewing) &&
                   (session->outbox.head != session->outbox.tail ||
                    (session->missed > 0 && session->ring != NULL));
    unlock(&session->out_lock);
    return waiting;
}

/* The listener's part: sends what the client takes without waiting for it. Where the kernel has no
 * memory it is missed; where the client is gone it is dropped, and its own thread finds out. */
DETACHED static void
carry_waiting(struct session *session)
{
    struct outbox *outbox = &session->outbox;
    lock_leaf(&session->out_lock);
    bool ours = !outbox->sending && atomic_load(&session->viewing);
    outbox->sending = outbox->sending || ours;
    unlock(&session->out_lock);
    if (!ours) {
        return;
    }

    int error = send_waiting(session, MSG_DONTWAIT);
    lock_leaf(&session->out_lock);
    if (error == ENOBUFS || error == ENOMEM) {
        session->missed += outbox->tail - outbox->head;
        outbox->head = outbox->tail;
    }
    else if (error != 0 && error != EAGAIN && error != EINTR) {
        outbox->head = outbox->tail;
        outbox->refused = true;
        session->missed = 0;
    }
    outbox->sending = false;
    (void)pthread_cond_broadcast(&session->out_free);
    unlock(&session->out_lock);
}

/* Takes the right to send, when whoever has it is done. */
DETACHED static void
begin_sending(struct session *session)
{
    lock_leaf(&session->out_lock);
    while (session->outbox.sending) {
        (void)pthread_cond_wait(&session->out_free, &session->out_lock);
    }
    session->outbox.sending = true;
    unlock(&session->out_lock);
}

/* Gives the right to send back; what has come meanwhile is the listener's. */
DETACHED static void
end_sending(struct session *session)
{
    lock_leaf(&session->out_lock);
    session->outbox.sending = false;
    bool left = session->outbox.head != session->outbox.tail || session->missed > 0;
    (void)pthread_cond_broadcast(&session->out_free);
    unlock(&session->out_lock);
    if (left) {
        ring_bell(&manhole.wake_bell);
    }
}

/* Sends a session's own bytes, after what came before them. Advances *bytes
 * and *length by what was sent. Returns 0, or an errno value; EINTR may come with half of
 * it sent. */
DETACHED static int
send_own(struct session *session, const char **bytes, size_t *length)
{
    int error = send_waiting(session, 0);
    while (error == 0 && *length > 0) {
        ssize_t sent = send_patiently(session, *bytes, *length, 0);
        if (sent < 0) {
            error = errno;
        }
        else {
            *bytes += sent;
            *length -= (size_t)sent;
        }
    }
    return error;
}

/* Sends to the session's client, in the session's thread, waiting for it as long as it takes.
 * Advances *bytes and *length by what was sent. Returns 0, or an errno value. */
DETACHED static int
send_detached(struct session *session, const char **bytes, size_t *length)
{
    begin_sending(session);
    int error = send_own(session, bytes, length);
    end_sending(session);
    return error;
}

/* What send_detached() has come to; sends the rest behind a signal. Returns 0, or -1 with an
 * exception: ConnectionError when the client is gone. */
ATTACHED static int
conclude_sending(struct session *session, int error, const char *bytes, size_t length)
{
    while (error == EINTR) {
        if (PyErr_CheckSignals() < 0) {
            return -1;
        }
        PyThreadState *tstate = detach();
        error = send_detached(session, &bytes, &length);
        reattach(tstate);
    }
    if (error != 0) {
        errno = error;
        PyErr_SetFromErrno(PyExc_OSError);
        return -1;
    }
    return 0;
}

/* Sends to the session's client from its own thread, detached. Returns 0, or -1 with an
 * exception. */
ATTACHED static int
send_client(struct session *session, const char *bytes, size_t length)
{
    PyThreadState *tstate = detach();
    int error = send_detached(session, &bytes, &length);
    reattach(tstate);
    return conclude_sending(session, error, bytes, length);
}

/* Leaves a session's own bytes in the ring, in their order, for the listener to send: a
 * statement that prints much would otherwise let go of the GIL with each piece. What it prints
 * first is sent at once; so is all where no listener watches, the client is slow, or gone. Returns
 * whether they are left. */
ATTACHED static bool
leave_to_listener(struct session *session, const char *bytes, size_t length)
{
    struct outbox *outbox = &session->outbox;
    bool wake = false;
    if (outbox->writes < FLOOD_BEGINS) {
        outbox->writes++;
        return false;
    }
    lock_leaf(&session->out_lock);
    if (session->ring == NULL) {
        session->ring = malloc(RING_SIZE);
    }
    bool left = session->ring != NULL && session->hang.watched && !session->guarded &&
                !outbox->refused && atomic_load(&session->viewing) &&
                session->missed == 0 && length <= MAX_LEFT &&
                outbox->tail - outbox->head <= MAX_LEFT - length;
    if (left) {
        wake = is_idle(session);
        fill_ring(session, bytes, length);
        outbox->left_end = outbox->tail;
    }
    unlock(&session->out_lock);
    if (wake) {
        ring_bell(&manhole.wake_bell);
    }
    return left;
}

/* Whether there was memory for what has been appended. Returns 0, or -1 with an exception. */
ATTACHED static int
check_unsent(struct session *session)
{
    if (session->outbox.unsent.failed) {
        free_text(&session->outbox.unsent);
        PyErr_NoMemory();
        return -1;
    }
    return 0;
}

/* Sends what waits until the session reads, in its thread. Returns 0, or an errno value; with EINTR
 * the rest still waits. */
DETACHED static int
send_unsent_detached(struct session *session)
{
    const char *rest = session->outbox.unsent.bytes;
    size_t length = session->outbox.unsent.length;
    int error = length == 0 ? 0 : send_detached(session, &rest, &length);
    if (error == EINTR) {
        memmove(session->outbox.unsent.bytes, rest, length);
        session->outbox.unsent.length = length;
    }
    else {
        free_text(&session->outbox.unsent);
    }
    return error;
}

/* The same for who writes, or has read what was there already. Returns 0, or -1 with an
 * exception. */
ATTACHED static int
send_unsent(struct session *session)
{
    struct text unsent = session->outbox.unsent;
    int result = 0;
    if (unsent.length > 0) {
        session->outbox.unsent = (struct text){0};
        result = send_client(session, unsent.bytes, unsent.length);
        free_text(&unsent);
    }
    return result;
}

/* Sends what was left to the listener and waits still, before the session hangs up. Never
 * raises. */
ATTACHED static void
send_left(struct session *session)
{
    lock_leaf(&session->out_lock);
    bool waits = session->outbox.head < session->outbox.left_end;
    unlock(&session->out_lock);
    if (send_unsent(session) < 0 || (waits && send_client(session, "", 0) < 0)) {
        PyErr_Clear();
    }
}

/* The kinds of frames. */
enum frame_kind {
    FRAME_OUTPUT = 'o',
    FRAME_ERROR = 'e',
    FRAME_STATUS = 'x',
    FRAME_WANTS_INPUT = 'i', /* empty: the client may send what its standard input has */
};

/* As send_client(), in frames: a kind, the length as four bytes, the high one first, and as many
 * bytes. */
ATTACHED static int
write_frames(struct session *session, enum frame_kind kind, const char *bytes,
             size_t length)
{
    while (length > 0) {
        size_t size = length < MAX_FRAME ? length : MAX_FRAME;
        char frame[5 + MAX_FRAME];
        const char head[5] = {(char)kind, (char)(size >> 24), (char)(size >> 16),
                              (char)(size >> 8), (char)size};
        memcpy(frame, head, sizeof(head));
        memcpy(frame + sizeof(head), bytes, size);
        if (send_client(session, frame, sizeof(head) + size) < 0) {
            return -1;
        }
        bytes += size;
        length -= size;
    }
    return 0;
}

/* As send_client(), but what may wait for the listener does, and in frames where the client has
 * asked for them. */
ATTACHED static int
write_as(struct session *session, enum frame_kind kind, const char *bytes, size_t length)
{
    if (session->channel->framed) {
        return write_frames(session, kind, bytes, length);
    }
    if (send_unsent(session) < 0) {
        return -1;
    }
    return leave_to_listener(session, bytes, length)
               ? 0
               : send_client(session, bytes, length);
}

/* Lets the client of a program know that its input is wanted, once. */
ATTACHED static void
ask_for_input(struct session *session)
{
    static const char head[5] = {FRAME_WANTS_INPUT};
    if (session->channel->framed && !session->run.asked_for_input) {
        session->run.asked_for_input = true;
        if (send_client(session, head, sizeof(head)) < 0) {
            PyErr_Clear();
            /* The input is at its end, also where the client is still there and waits. */
            (void)shutdown(kept_number(&session->fd), SHUT_RD);
        }
    }
}

/* As write_as(), for a str. */
ATTACHED static int
write_str_as(struct session *session, enum frame_kind kind, PyObject *str)
{
    Py_ssize_t length = 0;
    const char *bytes = PyUnicode_AsUTF8AndSize(str, &length);
    if (bytes != NULL) {
        return write_as(session, kind, bytes, (size_t)length);
    }

    struct text text = {0};
    int result = -1;
    PyErr_Clear();
    append_str(&text, str);
    if (text.failed) {
        PyErr_NoMemory();
    }
    else {
        result = write_as(session, kind, text.bytes, text.length);
    }
    free_text(&text);
    return result;
}

/* Writes to the session's client what is no error. */
ATTACHED static int
write_client(struct session *session, const char *bytes, size_t length)
{
    return write_as(session, FRAME_OUTPUT, bytes, length);
}

ATTACHED static int
write_client_str(struct session *session, PyObject *str)
{
    return write_str_as(session, FRAME_OUTPUT, str);
}

/* No more bytes to or from this client; the descriptor is closed with the session. */
DETACHED static void
hang_up(struct session *session)
{
    char unread[4096];
    int fd = kept_number(&session->fd);
    begin_sending(session);
    (void)send_waiting(session, MSG_DONTWAIT);
    end_sending(session);
    lock_leaf(&session->out_lock);
    atomic_store(&session->over, true);
    (void)pthread_cond_broadcast(&session->out_free);
    unlock(&session->out_lock);
    (void)shutdown(fd, SHUT_RDWR);
    (void)shutdown(kept_number(&session->plain_fd), SHUT_RDWR);
    /* What stays unread would turn into ECONNRESET behind our last bytes. */
    while (recv(fd, unread, sizeof(unread), MSG_DONTWAIT) > 0) {
    }
}

#endif /* MANHOLE_SESSION_OUTPUT_C */
