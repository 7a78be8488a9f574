/* Copied: the stacks of a process whose interpreter does not answer, from a frozen copy's text.
 * Runs on:  native threads of ours, DETACHED.
 * Touches:  what the room copy does; the source files that frames name.
 *
 * What a copy writes, in this order, and all of it may be cut short, for the copy may have died:
 *
 *     Thread 0x00007f31 (most recent call first):     faulthandler's stacks, innermost frame first;
 *       File "shop.py", line 2 in sell                what is not ASCII is escaped
 *     &                                               the thread that follows was told before
 *     % 1                                             those that follow are interpreter 1's
 *     @@                                              the stacks are complete
 *     @ 139849 4711 1 MainThread                      facts: ident, native id, has the GIL, name
 *     ! 139849                                        has the GIL, as CPython before 3.12 knows it
 *     ? 139850                                        left out: copies have died of its frames
 *
 * Each line of a stack becomes the key of a code position, as it is, and so is taken to pieces once
 * however many threads are there. The text stays with the stacks: their keys point into it.
 */
#ifndef MANHOLE_STACKS_COPIED_C
#define MANHOLE_STACKS_COPIED_C

#include "../base/compat.c"
#include "../base/state.c"
#include "../base/basics.c"
#include "copy.c"
#include "sources.c"
#include "model.c"

/* ---- Threads and their frames -------------------------------------------------------- */

/* Reads faulthandler's part. */
static void
read_stacks(struct stacks *stacks, struct slice text)
{
    struct thread_stack *thread = NULL;
    struct slice line;
    long long interpreter = OWN_INTERPRETER;
    bool is_hidden = false;
    while (next_line(&text, &line)) {
        if (starts_with(&line, "&")) {
            is_hidden = true;
            thread = NULL;
        }
        else if (starts_with(&line, "% ")) {
            interpreter = strtoll(line.bytes + 2, NULL, 10);
            thread = NULL;
        }
        else if (starts_with(&line, "Thread 0x") ||
                 starts_with(&line, "Current thread 0x")) {
            unsigned long ident = strtoul(memchr(line.bytes, '0', line.length), NULL, 16);
            thread = is_hidden || ident == 0 ? NULL : add_thread(stacks, ident);
            is_hidden = false;
            if (thread != NULL) {
                thread->is_shown = true;
                thread->interpreter = interpreter;
            }
        }
        else if (thread != NULL && starts_with(&line, "  ") &&
                 add_frame(stacks, &(struct position_key){.line = line}) != NULL) {
            thread->count++;
        }
    }
}

/* ---- Facts --------------------------------------------------------------------------- */

/* What a line says of one thread. */
struct copied_facts {
    unsigned long ident; /* 0: it is none of those lines */
    unsigned long native_id;
    bool holds_gil;
    bool is_unreadable;
    struct slice name;
};

/* Takes a number and the blank behind it off the front of text. Returns false for none. */
static bool
remove_number(const char **text, unsigned long *number)
{
    char *end = NULL;
    if (**text < '0' || **text > '9') {
        return false;
    }
    *number = strtoul(*text, &end, 10);
    *text = *end == ' ' ? end + 1 : end;
    return true;
}

/* Reads "@ IDENT NATIVE_ID HOLDS_GIL NAME", "! IDENT" or "? IDENT". */
static struct copied_facts
parse_facts(const struct slice *line)
{
    const struct copied_facts none = {0};
    struct copied_facts facts = {0};
    char copy[80]; /* the numbers end in it */
    const char *text = copy + 2;
    unsigned long holder = 0;
    size_t length = line->length < sizeof(copy) ? line->length : sizeof(copy) - 1;
    memcpy(copy, line->bytes, length);
    copy[length] = '\0';

    if (starts_with(line, "@ ") && remove_number(&text, &facts.ident) &&
        remove_number(&text, &facts.native_id) && remove_number(&text, &holder)) {
        facts.name.bytes = line->bytes + (text - copy);
        facts.name.length =
            strnlen(facts.name.bytes, line->length - (size_t)(text - copy));
    }
    else if ((starts_with(line, "! ") || starts_with(line, "? ")) &&
             remove_number(&text, &facts.ident)) {
        facts.is_unreadable = copy[0] == '?';
        holder = copy[0] == '!';
    }
    else {
        return none;
    }
    facts.holds_gil = holder != 0;
    return facts;
}

/* Shows a line in place of a thread's frames, which are none. */
static void
replace_frames(struct stacks *stacks, struct thread_stack *thread)
{
    static const char line[] = "  <its frames cannot be read>";
    const struct position_key key = {.line = {line, sizeof(line) - 1}};
    thread->is_shown = true;
    thread->first = stacks->frame_count;
    thread->count = add_frame(stacks, &key) != NULL;
}

static void
note_copied_facts(struct stacks *stacks, struct thread_stack *thread,
                  const struct copied_facts *facts)
{
    if (facts->is_unreadable) {
        replace_frames(stacks, thread);
    }
    if (facts->holds_gil) {
        thread->holds_gil = ANSWER_YES;
    }
    if (facts->native_id != 0) {
        thread->native_id = facts->native_id;
    }
    if (facts->name.length > 0) {
        free_text(&thread->name);
        append_bytes(&thread->name, facts->name.bytes, facts->name.length);
    }
}

/* Reads the part that the copy itself has written. A thread that runs in two interpreters has a
 * stack in each. One without any is added, too: so it is known what the kernel calls it. */
static void
read_facts(struct stacks *stacks, struct slice text)
{
    struct slice line;
    while (next_line(&text, &line)) {
        const struct copied_facts facts = parse_facts(&line);
        if (facts.ident == 0 || (find_thread(stacks, facts.ident) == NULL &&
                                 add_thread(stacks, facts.ident) == NULL)) {
            continue;
        }
        for (size_t i = 0; i < stacks->thread_count; i++) {
            if (stacks->threads[i].ident == facts.ident) {
                note_copied_facts(stacks, &stacks->threads[i], &facts);
            }
        }
    }
}

/* ---- Frames -------------------------------------------------------------------------- */

/* faulthandler writes what is not ASCII as \xe9, \u20ac, \U0001f40d: back to UTF-8. */
static void
append_unescaped(struct text *text, struct slice slice)
{
    while (slice.length > 0) {
        size_t digits = 0;
        size_t used = 1;
        if (slice.length > 1 && slice.bytes[0] == '\\') {
            const char *kinds = "xuU";
            const char *kind = strchr(kinds, slice.bytes[1]);
            digits = kind == NULL || *kind == '\0' ? 0 : (size_t)2 << (kind - kinds);
        }

        if (digits > 0 && slice.length >= 2 + digits) {
            char number[9] = "";
            char *end = NULL;
            memcpy(number, slice.bytes + 2, digits);
            unsigned long character = strtoul(number, &end, 16);
            if (*end == '\0' && character <= 0x10FFFF && !is_surrogate(character)) {
                char bytes[4];
                append_bytes(text, bytes, put_utf8(bytes, character));
                used = 2 + digits;
            }
        }
        if (used == 1) {
            append_bytes(text, slice.bytes, 1);
        }
        slice.bytes += used;
        slice.length -= used;
    }
}

/* The last place in a slice where a string stands; NULL: nowhere. */
static const char *
find_last(struct slice slice, struct slice string)
{
    const char *found = NULL;
    for (size_t i = 0; i + string.length <= slice.length; i++) {
        if (memcmp(slice.bytes + i, string.bytes, string.length) == 0) {
            found = slice.bytes + i;
        }
    }
    return found;
}

/* Takes `  File "F", line N in NAME` to pieces. A line of another form ("...", "<no Python frame>")
 * stays what it is. */
static void
describe_line(struct stacks *stacks, size_t index)
{
    const struct slice middle = {"\", line ", 8};
    const struct slice line = stacks->positions[index].key.line;
    const char *end = find_last(line, middle); /* of the file's name */
    if (!starts_with(&line, "  File \"") || end == NULL || end < line.bytes + 8) {
        return;
    }

    struct text path = {0};
    append_unescaped(&path,
                     (struct slice){line.bytes + 8, (size_t)(end - line.bytes) - 8});
    append_bytes(&path, "", 1);

    const char *rest = end + middle.length;
    long number = 0;
    if (*rest >= '0' && *rest <= '9') { /* strtol() would skip a newline to find one */
        char *number_end = NULL;
        number = strtol(rest, &number_end, 10);
        rest = number_end;
    }

    struct slice name = {rest, (size_t)(line.bytes + line.length - rest)};
    struct text function = {0};
    if (starts_with(&name, " in ")) {
        name.bytes += 4;
        name.length -= 4;
    }
    append_unescaped(&function, name);
    if (!path.failed) {
        describe_as(stacks, index, path.bytes, function, number);
    }
    stacks->failed = stacks->failed || path.failed || function.failed;
    free_text(&path);
}

/* ---- All of it ----------------------------------------------------------------------- */

/* A session's thread at its prompt, or on its way there: it waits for the interpreter that is
 * stuck, or for its client. */
static bool
is_waiting_session(unsigned long ident)
{
    for (size_t i = 0; i < atomic_load(&manhole.sessions_end); i++) {
        const struct session *session = &manhole.sessions[i];
        if (atomic_load(&session->fd.number) >= 0 && session->run.ident == ident &&
            !atomic_load(&session->run.running)) {
            return true;
        }
    }
    return false;
}

/* Fills stacks from the text of a copy that they have, which may break off anywhere, and whose last
 * byte is NUL: numbers are read up to what ends them. */
DETACHED static void
read_copy(struct stacks *stacks)
{
    const size_t marker = sizeof(stacks_complete) - 1;
    const struct text *copy = &stacks->copy;
    const char *found = memmem(copy->bytes, copy->length, stacks_complete, marker);
    const char *end = found == NULL ? copy->bytes + copy->length : found;
    read_stacks(stacks, (struct slice){copy->bytes, (size_t)(end - copy->bytes)});
    if (found != NULL) {
        const char *facts = found + marker;
        read_facts(stacks,
                   (struct slice){facts, (size_t)(copy->bytes + copy->length - facts)});
    }

    for (size_t i = 0; i < stacks->thread_count; i++) {
        struct thread_stack *thread = &stacks->threads[i];
        thread->is_shown = thread->is_shown && !is_waiting_session(thread->ident);
        if (!HAS_GIL) {
            thread->holds_gil = ANSWER_UNKNOWN;
        }
    }
    for (size_t i = 0; i < stacks->position_count; i++) {
        describe_line(stacks, i);
    }
    hide_sessions(stacks);
}

/* Says why there is not all that there should be; nothing when there is. */
static void
note_copy_result(struct stacks *stacks, enum copy_result result, int error)
{
    static const char none[] = "No frozen copy of the process can be made: ";
    struct text *note = &stacks->note;
    if (result == COPY_REFUSED && error == EBUSY && snapshot.signum == 0) {
        append_string(note, none);
        append_string(note, "no real-time signal was free for faulthandler at install, "
                            "its log tells.");
    }
    else if (result == COPY_REFUSED && error == EBUSY) {
        append_string(note, none);
        append_format(note,
                      "signal %d, which faulthandler had for it, is somebody else's now.",
                      snapshot.signum);
    }
    else if (result == COPY_REFUSED) {
        append_format(note, "%s%s.", none, error_text(error));
    }
    else if (result == COPY_NO_ROOM) {
        append_string(note, none);
        append_string(note, "its memory cgroup has no room for its page tables, and the "
                            "kernel might kill the process for them.");
    }
    else if (result == COPY_DIED) {
        append_string(note,
                      "The frozen copies of the process died; what the best one told:");
    }

    if (stacks->failed) {
        append_string(note, " There was no memory for all threads.");
    }
    bool is_bare = note->length == 0;
    for (size_t i = 0; i < stacks->thread_count; i++) {
        is_bare = is_bare && !stacks->threads[i].is_shown;
    }
    if (is_bare) { /* the queue of its signal was full, say */
        append_string(note, "The frozen copy of the process told of no thread.");
    }
}

/* Fills stacks with what a frozen copy tells. take_spare_back() when all is read. */
DETACHED static void
look_at_copy(struct stacks *stacks)
{
    const enum copy_result result = take_snapshot(&stacks->copy);
    const int error = errno;
    stacks->is_frozen = true;
    append_bytes(&stacks->copy, "", 1);
    if (stacks->copy.failed) {
        stacks->failed = true;
    }
    else {
        read_copy(stacks);
        (void)read_beside_python(stacks);
    }
    note_copy_result(stacks, result, error);
}

#endif /* MANHOLE_STACKS_COPIED_C */
