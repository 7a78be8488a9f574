/* Helpers: native threads that the listener sends out for what may take long.
 * Runs on:  themselves. A reporter stays DETACHED, an interrupter attaches.
 * Touches:  the session that they were sent for, whose slot they hold until they are done.
 *
 * How a hang is noticed. A client that waits must hear something within hang_timeout, from its own
 * thread or else from a reporter. The times and flags are in struct session, under out_lock.
 *
 *   1. The listener takes a session in at asked_ms; or, later, a line comes from the client, and
 *      expect_answer() sets asked_ms anew, and HANG_ASKED. waiting_ms is since when the
 *      session's thread waits to get into Python.
 *   2. Python answers: the session's thread is in, sets HANG_NONE (note_answer) and goes on. This
 *      is all that happens in a healthy process.
 *   3. Python does not: the listener, which slept until asked_ms + hang_timeout (report_time), sets
 *      HANG_REPORTED and sends out a reporter. That makes a frozen copy, which may take a while,
 *      and it may be told meanwhile that it is late: is_report_due() asks once more while it has
 *      the right to send, so a report and an answer never come both at once.
 *   4. HANG_TOLD says that the client has the whole report. When Python answers after all, the
 *      console leaves out the stacks, which the client has seen, and begins with its prompt.
 *
 * A side channel that asks for stacks alone gets the report in place of its answer, and is done.
 * When others have found out before that Python does not answer, such a client has no session
 * thread at all, only a reporter of its own (lone_reporter_main): a stuck process is never full
 * of waiting threads. Modules that a session imports are allowed more time (IMPORT_FACTOR), for
 * they are slow beside busy threads and no sign of a hang.
 */
#ifndef MANHOLE_SESSION_REPORT_C
#define MANHOLE_SESSION_REPORT_C

#include "../base/compat.c"
#include "../base/state.c"
#include "../base/locks.c"
#include "../base/basics.c"
#include "../stacks/model.c"
#include "../stacks/dump.c"
#include "../stacks/json.c"
#include "output.c"
#include "hang.c"
#include "interrupt.c"
#include "programs.c"
#include "session.c"

static const char prompt_follows[] =
    "manhole: the prompt comes here as soon as Python answers.\n";

/* The earliest of what the sessions' threads wait for Python since; 0: none waits. */
static int64_t
waiting_since(void)
{
    int64_t since_ms = 0;
    for (size_t i = 0; i < atomic_load(&manhole.sessions_end); i++) {
        struct session *session = &manhole.sessions[i];
        lock_leaf(&session->out_lock);
        if (session->hang.waiting_ms != 0 &&
            (since_ms == 0 || session->hang.waiting_ms < since_ms)) {
            since_ms = session->hang.waiting_ms;
        }
        unlock(&session->out_lock);
    }
    return since_ms;
}

/* Appends the line that says how long Python has not answered. */
static void
append_silence(struct text *text)
{
    struct tm since = {0};
    char when[32] = "";
    double waited = manhole.options.hang_timeout;
    int64_t since_ms = waiting_since();
    int64_t waited_s = since_ms == 0 ? 0 : (monotonic_ms() - since_ms) / 1000;
    time_t seconds = time(NULL) - (time_t)waited_s;
    waited = (double)waited_s < waited + 1 ? waited : (double)waited_s;
    (void)strftime(when, sizeof(when), "%H:%M:%S", gmtime_r(&seconds, &since));
    append_format(text,
                  "manhole: Python has not answered for %s s, since %s UTC: the GIL is "
                  "held or the interpreter is stuck.\n",
                  format_seconds(waited).text, when);
}

/* Offers what a client may do meanwhile, where it can be had. */
static void
append_offer(struct text *text)
{
    if (CAN_FREEZE && may_run_code()) {
        append_format(
            text,
            "manhole: 'manhole-cli --frozen %ld' gives a prompt in a frozen copy "
            "of it meanwhile.\n",
            (long)getpid());
    }
}

/* For a client that waits for its prompt. */
DETACHED static void
report_to_console(struct text *text, const struct session *session)
{
    append_silence(text);
    if (!session->channel->no_stacks || session->channel->stacks_if_stuck) {
        append_string(text, "The stacks, from a frozen copy of the process:\n");
        append_snapshot(text, &dump_form);
    }
    append_offer(text);
    append_string(text, prompt_follows);
}

/* For a client that asked for the stacks. */
DETACHED static void
report_stacks(struct text *text, const struct session *session)
{
    (void)session;
    append_silence(text);
    append_string(text, "The stacks, from a frozen copy of the process:\n");
    append_snapshot(text, &dump_form);
}

/* For a client that asked for them as JSON. */
DETACHED static void
report_json(struct text *text, const struct session *session)
{
    (void)session;
    append_snapshot(text, &json_form);
}

/* For a client that asked for what Python alone can tell: in a copy, ahead of that. */
DETACHED static void
report_tasks(struct text *text, const struct session *session)
{
    (void)session;
    append_silence(text);
    append_string(text, "In a frozen copy of the process:\n");
}

/* Appends what the session's client is told when Python does not answer. */
DETACHED static void
append_report(struct text *text, const struct session *session)
{
    if (session->channel->report != NULL) {
        session->channel->report(text, session);
    }
    else {
        report_to_console(text, session);
    }
}

/* Python still owes what the reporter was sent for; who waits for another answer by now has no
 * reporter yet. */
static bool
is_report_due(struct session *session)
{
    bool due = false;
    lock_leaf(&session->out_lock);
    due = session->hang.state == HANG_REPORTED;
    unlock(&session->out_lock);
    return due;
}

/* Sends a report, unless Python has answered meanwhile. flags: MSG_DONTWAIT or 0. One without
 * memory is no half of it to who asked for nothing else: JSON would be cut. */
DETACHED static void
send_report(struct session *session, const struct text *report, int flags)
{
    static const char too_little[] = "manhole: there is no memory for the stacks\n";
    begin_sending(session);
    if (!is_report_due(session)) {
        end_sending(session);
        return;
    }
    if (flags == 0) {
        bool cut = report->failed && session->channel->report != NULL;
        const char *bytes = cut ? too_little : report->bytes;
        size_t length = cut ? sizeof(too_little) - 1 : report->length;
        if (send_own(session, &bytes, &length) == 0 && !report->failed) {
            note_told(session);
        }
    }
    else {
        (void)send(kept_number(&session->fd), report->bytes, report->length,
                   flags | MSG_NOSIGNAL);
    }
    if (session->channel->report != NULL) {
        (void)shutdown(kept_number(&session->fd), SHUT_RDWR); /* that was all of it */
    }
    end_sending(session);
}

/* Body of a reporter: beside the session's own thread, which still waits for Python. */
DETACHED static void *
reporter_main(void *argument)
{
    struct session *session = argument;
    struct text text = {0};
    append_report(&text, session);
    send_report(session, &text, 0);
    free_text(&text);
    helper_done(session);
    return NULL;
}

/* Body of a session of its own: its client wants nothing but the report, and others have found out
 * before that Python does not answer. So a stuck process is never full of waiting threads. */
DETACHED static void *
lone_reporter_main(void *argument)
{
    struct session *session = argument;
    struct text text = {0};
    append_report(&text, session);
    send_report(session, &text, 0);
    free_text(&text);
    hang_up(session);
    release_session(session);
    return NULL;
}

/* Where there is no thread to be had the listener says what it can by itself. */
DETACHED static void
report_session(struct session *session)
{
    struct text text = {0};
    lock_leaf(&session->out_lock);
    session->hang.state = HANG_REPORTED;
    unlock(&session->out_lock);
    if (send_helper(session, reporter_main)) {
        return;
    }
    append_silence(&text);
    append_string(&text,
                  "No thread can be started to make a frozen copy of the process.\n");
    append_other_threads(&text, &(struct stacks){0});
    append_string(&text, prompt_follows);
    send_report(session, &text, MSG_DONTWAIT);
    free_text(&text);
}

#endif /* MANHOLE_SESSION_REPORT_C */
