/* Helpers: native threads that the listener sends out for what may take long.
 * Runs on:  themselves. A reporter stays DETACHED, an interrupter attaches.
 * Touches:  the session that they were sent for, whose slot they hold until they are done.
 */
#ifndef MANHOLE_SESSION_REPORT_C
#define MANHOLE_SESSION_REPORT_C

#include "../base/compat.c"
#include "../base/state.c"
#include "../base/locks.c"
#include "../base/basics.c"
#include "../base/log.c"
#include "../door/socket.c"
#include "../stacks/snapshot.c"
#include "../stacks/json.c"
#include "output.c"
#include "console.c"
#include "session.c"

/* Sends out a helper; the slot stays taken meanwhile. Returns whether it went. */
DETACHED static bool
send_helper(struct session *session, void *(*body)(void *))
{
    int error = 0;
    lock_leaf(&session->out_lock);
    session->helpers++;
    unlock(&session->out_lock);
    error = start_thread(NULL, body, session, SMALL_STACK_SIZE);
    if (error != 0) {
        lock_leaf(&session->out_lock);
        session->helpers--;
        (void)pthread_cond_broadcast(&session->out_free);
        unlock(&session->out_lock);
        log_line("Cannot start a thread for the client of %s: %s",
                 describe_peer(&session->peer).text, error_text(error));
    }
    return error == 0;
}

static void
helper_done(struct session *session)
{
    lock_leaf(&session->out_lock);
    session->helpers--;
    (void)pthread_cond_broadcast(&session->out_free);
    unlock(&session->out_lock);
}

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
        if (session->waiting_ms != 0 &&
            (since_ms == 0 || session->waiting_ms < since_ms)) {
            since_ms = session->waiting_ms;
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

/* For a client that waits for its prompt. */
DETACHED static void
report_to_console(struct text *text, const struct session *session)
{
    append_silence(text);
    if (!session->wish->no_stacks || session->wish->stacks_if_stuck) {
        append_string(text, "The stacks, from a frozen copy of the process:\n");
        append_snapshot(text);
    }
    append_string(text, prompt_follows);
}

/* For a client that asked for the stacks. */
DETACHED static void
report_stacks(struct text *text, const struct session *session)
{
    (void)session;
    append_silence(text);
    append_string(text, "The stacks, from a frozen copy of the process:\n");
    append_snapshot(text);
}

/* For a client that asked for them as JSON. */
DETACHED static void
report_json(struct text *text, const struct session *session)
{
    (void)session;
    append_json_snapshot(text);
}

/* Appends what the session's client is told when Python does not answer. */
DETACHED static void
append_report(struct text *text, const struct session *session)
{
    if (session->wish->report != NULL) {
        session->wish->report(text, session);
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
    due = session->reported && !session->answered;
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
        bool cut = report->failed && session->wish->report != NULL;
        const char *bytes = cut ? too_little : report->bytes;
        size_t length = cut ? sizeof(too_little) - 1 : report->length;
        session->told = send_own(session, &bytes, &length) == 0 && !report->failed;
    }
    else {
        (void)send(kept_number(&session->fd), report->bytes, report->length,
                   flags | MSG_NOSIGNAL);
    }
    if (session->wish->report != NULL) {
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
    session->reported = true;
    unlock(&session->out_lock);
    if (send_helper(session, reporter_main)) {
        return;
    }
    append_silence(&text);
    append_string(&text,
                  "No thread can be started to make a frozen copy of the process.\n");
    append_other_threads(&text, &(struct copied){0});
    append_string(&text, prompt_follows);
    send_report(session, &text, MSG_DONTWAIT);
    free_text(&text);
}

/* Whether a thread is in the import system's own code: an exception there may leave a lock behind
 * that nobody ever opens, and the application would import nothing for the rest of its life (seen
 * after some hundred interrupts). Without a GIL it cannot be asked. Never raises. */
ATTACHED static bool
is_importing(unsigned long ident)
{
    static const char importlib[] = "<frozen importlib._bootstrap"; /* _external, too */
    PyObject *current_frames = HAS_GIL ? get_sys("_current_frames") : NULL; /* owned */
    PyObject *key = PyLong_FromUnsignedLong(ident);                         /* owned */
    PyObject *frames = NULL;                                                /* owned */
    PyObject *frame = NULL;                                                 /* owned */
    PyCodeObject *code = NULL;                                              /* owned */
    const char *file = NULL;
    bool importing = false;
    if (current_frames != NULL && key != NULL) {
        frames = PyObject_CallNoArgs(current_frames);
        frame = frames == NULL ? NULL : PyObject_GetItem(frames, key);
    }
    if (frame != NULL) {
        code = PyFrame_GetCode((PyFrameObject *)frame);
        file = PyUnicode_AsUTF8(code->co_filename);
        importing = file != NULL && strncmp(file, importlib, sizeof(importlib) - 1) == 0;
    }
    PyErr_Clear();
    Py_XDECREF(current_frames);
    Py_XDECREF(key);
    Py_XDECREF(frames);
    Py_XDECREF(frame);
    Py_XDECREF(code);
    return importing;
}

/* Raises an exception in what the session runs, if it does: as soon as it is out of the import
 * system, or not at all when that lasts. */
ATTACHED static void
raise_in_session(struct session *session, PyObject *type)
{
    int64_t deadline_ms = monotonic_ms() + IMPORT_PATIENCE_MS;
    bool importing = false;
    while (atomic_load(&session->running) &&
           (importing = is_importing(atomic_load(&session->ident))) &&
           ms_until(deadline_ms) > 0) {
        PyThreadState *tstate = detach();
        (void)poll(NULL, 0, 1);
        reattach(tstate);
    }
    if (atomic_load(&session->running) && !importing) {
        strike(session, type);
        settle_interrupts(); /* the session may be long in coming */
    }
}

/* Body of an interrupter: raises KeyboardInterrupt in what the session runs, if it still does. */
DETACHED
CHECKED(no_thread_safety_analysis) static void *interrupter_main(void *argument)
{
    struct session *session = argument;
    PyThreadState *tstate = enter_interpreter();
    if (tstate != NULL) {
        raise_in_session(session, PyExc_KeyboardInterrupt);
    }
    /* Before the session can go on: for what it runs next there is to be another. */
    lock_leaf(&session->out_lock);
    session->interrupted = false;
    unlock(&session->out_lock);
    if (tstate != NULL) {
        leave_interpreter(tstate);
    }
    helper_done(session);
    return NULL;
}

/* Interrupts what the session runs. Returns how often it has been; 0: nothing runs. */
DETACHED static int
interrupt_session(struct session *session)
{
    bool running = atomic_load(&session->running);
    bool send = false;
    lock_leaf(&session->out_lock);
    send = running && !session->interrupted;
    session->interrupted = session->interrupted || send;
    unlock(&session->out_lock);
    if (send && !send_helper(session, interrupter_main)) {
        lock_leaf(&session->out_lock);
        session->interrupted = false;
        unlock(&session->out_lock);
    }
    return running ? atomic_fetch_add(&session->interrupts, 1) + 1 : 0;
}

/* Body of a guard, for a session that no listener looks after, a oneshot's or one that outlives
 * release(): interrupts what a vanished client has left running, again and again until the session
 * is over, which hangs up at its end, too. */
DETACHED static void *
guard_main(void *argument)
{
    struct session *session = argument;
    struct pollfd client = {.fd = atomic_load(&session->fd.number), .events = 0};
    while (!atomic_load(&session->over) && poll(&client, 1, GONE_CHECK_MS) <= 0) {
    }
    lock_leaf(&session->out_lock);
    while (!session->over) {
        struct timespec again = {0};
        unlock(&session->out_lock);
        (void)interrupt_session(session);
        lock_leaf(&session->out_lock);
        (void)clock_gettime(CLOCK_MONOTONIC, &again);
        again.tv_sec += GONE_CHECK_MS / 1000;
        if (!session->over) {
            (void)pthread_cond_timedwait(&session->out_free, &session->out_lock, &again);
        }
    }
    unlock(&session->out_lock);
    helper_done(session);
    return NULL;
}

/* Once a session. */
DETACHED static void
send_guard(struct session *session)
{
    bool send = false;
    lock_leaf(&session->out_lock);
    send = !session->guarded && !atomic_load(&session->over);
    session->guarded = session->guarded || send;
    unlock(&session->out_lock);
    if (send) {
        (void)send_helper(session, guard_main);
    }
}

/* For the clients that stay when there is no listener any more. */
DETACHED static void
send_guards(void)
{
    for (size_t i = 0; i < atomic_load(&manhole.sessions_end); i++) {
        struct session *session = &manhole.sessions[i];
        lock_leaf(&session->out_lock);
        bool there = session->asked_ms != 0;
        unlock(&session->out_lock);
        if (there) {
            send_guard(session);
        }
    }
}

#endif /* MANHOLE_SESSION_REPORT_C */
