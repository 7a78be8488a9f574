/* Imports: what sessions need of the standard library, and of our own parts.
 * Runs on:  the session's thread, ATTACHED.
 * Touches:  sys.modules, by import, under import_lock.
 * Nothing is imported at install, so that an application that nobody visits pays for nothing; the
 * first client waits for it. import_lock is ours, not CPython's: whoever forks takes it, so no
 * child begins in the middle of an import of ours.
 */
#ifndef MANHOLE_SESSION_IMPORTS_C
#define MANHOLE_SESSION_IMPORTS_C

#include "../base/compat.c"
#include "../base/state.c"
#include "../base/locks.c"
#include "../base/log.c"
#include "../base/library.c"
#include "../base/parts.c"
#include "output.c"
#include "hang.c"

/* Tells the log of modules that cannot be imported, and the client, but who has a protocol of its
 * own. Never raises. */
ATTACHED static void
tell_missing(struct session *session, const char *names, PyObject *why /* or NULL */,
             const char *ahead /* of the client's line; NULL: it is told nothing */)
{
    char line[LOG_LINE_SIZE];
    char text[LOG_LINE_SIZE / 2];
    (void)snprintf(line, sizeof(line), "%smanhole: cannot import %s: %s\n",
                   ahead == NULL ? "" : ahead, names,
                   describe_exception(why, text, sizeof(text)));
    log_line("Cannot import %s: %s", names, text);
    if (ahead != NULL && write_as(session, FRAME_ERROR, line, strlen(line)) < 0) {
        PyErr_Clear(); /* it is gone: that is found out soon enough */
    }
}

/* Imports what sessions need, in small steps: each lets go of the GIL for every file that it looks
 * for, which takes its time beside threads that compute (IMPORT_FACTOR). A fork waits until that is
 * done: the child of one in the middle of it could never import those modules, for CPython does not
 * make their locks anew. What cannot be imported is told as tell_missing() does. Returns whether
 * there was any. Never raises. */
ATTACHED static bool
import_needed_modules(struct session *session, const char *ahead)
{
    static const char *const names[] = {
        "os",         "enum",     "re",        "collections", "selectors",
        "socket",     "token",    "codecs",    "tokenize",    "linecache",
        "contextlib", "textwrap", "traceback", "codeop",      "code"};
    char missing[200] = "";
    OWNED PyObject *why = NULL; /* of the first that is missing */
    set_importing(session, true);
    lock_imports();
    for (size_t i = 0; i < Py_ARRAY_LENGTH(names); i++) {
        OWNED PyObject *module = import_standard(names[i]);
        if (module == NULL) {
            OWNED PyObject *raised = take_exception();
            size_t length = strlen(missing);
            (void)snprintf(missing + length, sizeof(missing) - length, "%s%s",
                           length == 0 ? "" : ", ", names[i]);
            why = why == NULL ? steal_reference(&raised) : why;
        }
        note_progress();
    }
    unlock_imports();
    set_importing(session, false);

    if (missing[0] == '\0') {
        return false;
    }
    tell_missing(session, missing, why, ahead);
    return true;
}

/* get_from_part(), of one that imports: a fork waits for that, and it is no hang. */
ATTACHED static PyObject *
import_part(struct session *session, const struct part *part, const char *name)
{
    set_importing(session, true);
    lock_imports();
    PyObject *found = get_from_part(manhole.module, part, name); /* new */
    unlock_imports();
    set_importing(session, false);
    return found;
}

#endif /* MANHOLE_SESSION_IMPORTS_C */
