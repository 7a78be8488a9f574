/* Hang: what a client is to hear within hang_timeout, and whether it has.
 * Runs on:  the session's thread, which asks and answers; what a reporter tells, see there.
 * Touches:  the hang watch of struct session, under its out_lock.
 */
#ifndef MANHOLE_SESSION_HANG_C
#define MANHOLE_SESSION_HANG_C

#include "../base/compat.c"
#include "../base/state.c"
#include "../base/locks.c"
#include "../base/basics.c"

/* Whoever waits for modules to be imported, by itself or by another session, waits for nothing that
 * is stuck: there is a new one. */
static void
note_progress(void)
{
    int64_t now_ms = monotonic_ms();
    for (size_t i = 0; i < atomic_load(&manhole.sessions_end); i++) {
        struct session *session = &manhole.sessions[i];
        lock_leaf(&session->out_lock);
        if (session->hang.importing && session->hang.state != HANG_NONE) {
            session->hang.asked_ms = now_ms;
            session->hang.waiting_ms = session->hang.waiting_ms == 0 ? 0 : now_ms;
        }
        unlock(&session->out_lock);
    }
}

static void
set_importing(struct session *session, bool importing)
{
    lock_leaf(&session->out_lock);
    session->hang.importing = importing;
    unlock(&session->out_lock);
}

/* Notes since when the session's thread waits for Python; 0: it does not. */
static void
note_waiting(struct session *session, int64_t time_ms)
{
    lock_leaf(&session->out_lock);
    session->hang.waiting_ms = time_ms;
    unlock(&session->out_lock);
}

/* A client asks, or waits for its console: it must have heard something within hang_timeout, or a
 * reporter tells it why not. */
DETACHED static void
expect_answer(struct session *session)
{
    int64_t now_ms = monotonic_ms();
    int64_t wakes_at_ms = -1;
    lock_leaf(&session->out_lock);
    session->hang.waiting_ms = now_ms;
    session->hang.asked_ms = now_ms;
    session->hang.state = HANG_ASKED;
    unlock(&session->out_lock);
    /* A listener that wakes in time anyway sees it then: most lines cost it nothing. */
    wakes_at_ms = atomic_load(&manhole.wakes_at_ms);
    if (wakes_at_ms < 0 ||
        wakes_at_ms > now_ms + seconds_to_ms(manhole.options.hang_timeout)) {
        ring_bell(&manhole.wake_bell);
    }
}

/* Under out_lock, when nobody sends. Returns whether a reporter has told the client already. */
static bool
note_answer(struct session *session)
{
    bool told = session->hang.state == HANG_TOLD;
    session->hang.state = HANG_NONE;
    session->hang.waiting_ms = 0;
    return told;
}

/* The client has the whole of a report. The caller has set sending. */
static void
note_told(struct session *session)
{
    lock_leaf(&session->out_lock);
    session->hang.state = HANG_TOLD;
    unlock(&session->out_lock);
}

/* Python has answered: no reporter has to any more. Returns as note_answer(). */
DETACHED static bool
settle_report(struct session *session)
{
    bool told = false;
    lock_leaf(&session->out_lock);
    while (
        session->outbox.sending) { /* a reporter in the middle of it comes to its end */
        (void)pthread_cond_wait(&session->out_free, &session->out_lock);
    }
    told = note_answer(session);
    unlock(&session->out_lock);
    return told;
}

/* The same, for who is attached, and stays so unless a reporter is in the middle of it. */
ATTACHED static bool
settle_report_attached(struct session *session)
{
    bool sending = false;
    bool told = false;
    lock_leaf(&session->out_lock);
    sending = session->outbox.sending;
    told = !sending && note_answer(session);
    unlock(&session->out_lock);
    if (sending) {
        PyThreadState *tstate = detach();
        told = settle_report(session);
        reattach(tstate);
    }
    return told;
}

#endif /* MANHOLE_SESSION_HANG_C */
