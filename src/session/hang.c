/* Hang: what a client is to hear within hang_timeout, and whether it has.
 * Runs on:  the session's thread, which asks and answers; a reporter, which tells.
 * Touches:  the hang watch of struct session, under its out_lock.
 *
 * How it works. Nobody polls Python, or a thread. A client that waits is written down as one that
 * waits, with the time, and crossed out when Python has come to speak to it; the listener, which
 * needs no Python, sleeps until the first of those times is hang_timeout old.
 *
 *        HANG_NONE  -- the client asks -->  HANG_ASKED  -- too long -->  HANG_REPORTED
 *            ^                                  |                             |
 *            |<-------- Python answers ---------+<-------- the same ----------|
 *            |                                                                v
 *            +<---- Python answers: note_answer() says that it was told -- HANG_TOLD
 *
 *   The client asks: when it comes in (start_session), when its prompt goes out, and with each line
 *   that it sends (expect_answer), in the thread that is about to attach for it.
 *   Python answers: that thread is attached (settle_report). While a reporter sends, it waits for
 *   the end of that: the client never gets an answer in the middle of a report.
 *   Too long: the listener sends out a reporter, see the room report.
 *
 * Two times: asked_ms is since when the client waits; waiting_ms is since when the session's thread
 * waits for Python, and not for its client or for an import. By the latter a process is known to be
 * stuck before the next client asks. Imports are slow beside threads that compute, and no sign of a
 * hang: while a session imports it is given IMPORT_FACTOR times as long, anew with each module.
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

/* While it is set the client is given more time, see IMPORT_FACTOR. */
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
    lock_leaf(&session->out_lock);
    session->hang.waiting_ms = now_ms;
    session->hang.asked_ms = now_ms;
    session->hang.state = HANG_ASKED;
    unlock(&session->out_lock);

    /* A listener that wakes in time anyway sees it then: most lines cost it nothing. */
    int64_t wakes_at_ms = atomic_load(&manhole.wakes_at_ms);
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
    lock_leaf(&session->out_lock);
    while (session->outbox.sending) {
        (void)pthread_cond_wait(&session->out_free, &session->out_lock);
    }
    bool told = note_answer(session);
    unlock(&session->out_lock);
    return told;
}

/* The same, for who is attached, and stays so unless a reporter is in the middle of it. */
ATTACHED static bool
settle_report_attached(struct session *session)
{
    lock_leaf(&session->out_lock);
    bool sending = session->outbox.sending;
    bool told = !sending && note_answer(session);
    unlock(&session->out_lock);
    if (sending) {
        PyThreadState *tstate = detach();
        told = settle_report(session);
        reattach(tstate);
    }
    return told;
}

#endif /* MANHOLE_SESSION_HANG_C */
