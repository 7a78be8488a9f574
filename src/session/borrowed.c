/* Borrowed: attributes of sys that are ours while clients have consoles.
 * Runs on:  a session's thread that begins or ends, ATTACHED; any that is at exit, or forked.
 * Touches:  sys, by manhole.borrowed[], under sys_lock.
 *
 * How it works. manhole.borrowed[] has a row for each attribute: what was there, and what we have
 * put there. When the last console goes, the old object returns, but only where ours still stands:
 * what the application has set meanwhile is its own. A client that comes later finds the attribute
 * as it is then; and before each statement of a client ours are put back (replace_streams), so that
 * its print() is its own whatever the application redirects.
 *
 *   Old references. A logging handler that was made while a client was there keeps our stream for
 *   the life of the process. It goes on writing to its original. For one original get_stream()
 *   hands out the same stream again, so streams do not pile up on each other. print() only
 *   borrows what it finds in sys while it writes: the last KEPT_STREAMS streams are kept alive
 *   for it.
 *
 *   No destructor under the lock. The last reference to an object of the application's runs code of
 *   its own, which may wait for anything: who has sys_lock holds a reference to all that the rows
 *   have (lock_sys), and lets go of them behind it.
 */
#ifndef MANHOLE_SESSION_BORROWED_C
#define MANHOLE_SESSION_BORROWED_C

#include "../base/compat.c"
#include "../base/state.c"
#include "../base/locks.c"
#include "output.c"
#include "streams.c"

enum {
    /* Stream objects that outlive their client. */
    KEPT_STREAMS = 48,
};

/* Keeps one of our streams alive, as the last of KEPT_STREAMS: print() and its like only borrow
 * what they find in sys, and may be in the middle of it when it is taken out. Never raises. */
ATTACHED static void
keep_stream(PyObject *stream /* or any other object, or NULL */)
{
    struct module_state *state = installed_state();
    if (stream == NULL || Py_TYPE(stream) != (PyTypeObject *)state->stream_type) {
        return;
    }
    OWNED PyObject *kept = Py_NewRef(stream); /* while it is not in the list */
    for (Py_ssize_t i = PyList_GET_SIZE(state->streams) - 1; i >= 0; i--) {
        if (PyList_GET_ITEM(state->streams, i) == kept) {
            (void)PySequence_DelItem(state->streams, i);
        }
    }
    (void)PyList_Append(state->streams, kept);
    if (PyList_GET_SIZE(state->streams) > KEPT_STREAMS) {
        (void)PySequence_DelItem(state->streams, 0);
    }
    PyErr_Clear();
}

/* Returns a stream for what stands in sys.NAME, new, or NULL with an exception; the one that was
 * made for the very same before, if it is still kept. */
ATTACHED static PyObject *
get_stream(const char *name, PyObject *original)
{
    PyObject *streams = installed_state()->streams; /* borrowed */
    OWNED PyObject *found = NULL;
    for (Py_ssize_t i = 0; i < PyList_GET_SIZE(streams) && found == NULL; i++) {
        struct stream *stream = (struct stream *)PyList_GET_ITEM(streams, i);
        if (stream->original == original && stream->is_input == is_input(name)) {
            found = Py_NewRef((PyObject *)stream);
        }
    }
    if (found == NULL) {
        found = make_stream(name, original);
    }
    keep_stream(found);
    return steal_reference(&found);
}

/* Sets sys.NAME, and remembers what was there: what the application has set since, too. Under
 * sys_lock. Returns 0, or -1 with an exception. */
ATTACHED static int
borrow_attribute(struct borrowed_attribute *attribute, PyObject *ours)
{
    OWNED PyObject *current = get_sys(attribute->name);
    if (attribute->ours == NULL || attribute->ours != current) {
        Py_XSETREF(attribute->previous, Py_XNewRef(current));
    }
    keep_stream(attribute->ours);
    Py_XSETREF(attribute->ours, Py_NewRef(ours));
    return PySys_SetObject(attribute->name, ours);
}

/* Puts back what was there, where ours still stands; for any stream of ours its original, for the
 * application may have put an earlier one back itself (redirect_stdout). Under sys_lock. */
ATTACHED static void
give_back_attribute(struct borrowed_attribute *attribute)
{
    OWNED PyObject *current = get_sys(attribute->name);
    PyObject *previous = attribute->previous; /* borrowed */
    bool ours = attribute->ours != NULL && current == attribute->ours;
    if (current != NULL &&
        Py_TYPE(current) == (PyTypeObject *)installed_state()->stream_type) {
        previous = ((struct stream *)current)->original;
        ours = true;
    }
    keep_stream(current);
    keep_stream(attribute->ours);
    if (ours && PySys_SetObject(attribute->name, previous) < 0) {
        PyErr_Clear();
    }
    Py_CLEAR(attribute->ours);
    Py_CLEAR(attribute->previous);
}

/* The row of a name in manhole.borrowed. */
static struct borrowed_attribute *
borrowed_row(const char *name)
{
    struct borrowed_attribute *row = manhole.borrowed;
    while (strcmp(row->name, name) != 0) {
        row++;
    }
    return row;
}

/* Puts a stream of ours into sys.NAME, unless there is none to stand in for or one of
 * ours is there already. Under sys_lock. Returns 0, or -1 with an exception. */
ATTACHED static int
place_stream(const char *name)
{
    OWNED PyObject *original = NULL;
    int result = find_sys(name, &original);
    if (original == NULL ||
        Py_TYPE(original) == (PyTypeObject *)installed_state()->stream_type) {
        return result;
    }
    OWNED PyObject *stream = get_stream(name, original);
    return stream == NULL ? -1 : borrow_attribute(borrowed_row(name), stream);
}

/* Under sys_lock. Returns 0, or -1 with an exception. */
ATTACHED static int
place_streams(bool redirect_stderr)
{
    static const char *const names[] = {"stdin",      "__stdin__", "stdout",
                                        "__stdout__", "stderr",    "__stderr__"};
    size_t count = redirect_stderr ? 6 : 4;
    for (size_t i = 0; i < count; i++) {
        if (place_stream(names[i]) < 0) {
            return -1;
        }
    }
    return 0;
}

/* Under sys_lock. Returns 0, or -1 with an exception. */
ATTACHED static int
place_displayhook(void)
{
    OWNED PyObject *hook = PyObject_GetAttrString(manhole.module, "_displayhook");
    return hook == NULL ? -1 : borrow_attribute(borrowed_row("displayhook"), hook);
}

/* References to all that manhole.borrowed refers to while sys_lock is held: the last one to an
 * object of the application's runs code of its own, which may wait for anything. */
struct held {
    /* Two for each; owned, or NULL. Py_ARRAY_LENGTH() is no constant in GNU C from 3.13 on. */
    PyObject *objects[2 * sizeof(manhole.borrowed) / sizeof(manhole.borrowed[0])];
};

/* Takes sys_lock, waiting detached, and references to all that the rows have. */
ATTACHED static void
lock_sys(struct held *held)
{
    PyObject **next = held->objects;
    lock_attached(&sys_lock);
    for (size_t i = 0; i < Py_ARRAY_LENGTH(manhole.borrowed); i++) {
        *next++ = Py_XNewRef(manhole.borrowed[i].ours);
        *next++ = Py_XNewRef(manhole.borrowed[i].previous);
    }
}

/* Here, and not before, destructors of the application's may run. */
ATTACHED static void
unlock_sys(struct held *held)
{
    unlock(&sys_lock);
    for (size_t i = 0; i < Py_ARRAY_LENGTH(held->objects); i++) {
        Py_XDECREF(held->objects[i]);
    }
}

/* Puts the streams back in place where the application has set its own since: a session's print()
 * is its client's whatever the application redirects. Never raises. */
ATTACHED static void
replace_streams(void)
{
    struct held held;
    lock_sys(&held);
    if (manhole.consoles > 0 && place_streams(manhole.options.redirect_stderr != 0) < 0) {
        PyErr_Clear();
    }
    unlock_sys(&held);
}

ATTACHED static void
give_back_attributes(void)
{
    for (size_t i = 0; i < Py_ARRAY_LENGTH(manhole.borrowed); i++) {
        give_back_attribute(&manhole.borrowed[i]);
    }
}

/* From here on the calling thread's std streams are the session's client. Returns 0, or
 * -1 with an exception. */
ATTACHED static int
open_streams(struct session *session)
{
    struct held held;
    int result = 0;
    lock_sys(&held);
    result = place_streams(wants_stderr(session));
    if (result == 0 && manhole.consoles == 0) {
        result = place_displayhook();
    }
    if (result == 0) {
        manhole.consoles++;
        session->run.has_console = true;
        if (!session->channel->framed) {
            begin_viewing(session);
        }
    }
    else if (manhole.consoles == 0) {
        PyObject *raised = take_exception(); /* owned */
        give_back_attributes();
        put_back_exception(raised);
    }
    unlock_sys(&held);
    return result;
}

/* From here on they are the application's, in this thread too; in sys, when this was the last
 * console. Never raises. */
ATTACHED static void
close_streams(struct session *session)
{
    struct held held;
    if (!session->run.has_console) {
        return;
    }
    lock_sys(&held);
    session->run.has_console = false;
    if (!session->channel->framed) {
        end_viewing(session);
    }
    manhole.consoles--;
    if (manhole.consoles == 0) {
        give_back_attributes();
    }
    unlock_sys(&held);
}

#endif /* MANHOLE_SESSION_BORROWED_C */
