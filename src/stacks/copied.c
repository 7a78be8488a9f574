/* Copied: what a frozen copy wrote, read into threads and facts.
 * Runs on:  native threads of ours, DETACHED. Only reads bytes.
 * First come faulthandler's stacks, then the line stacks_complete, then a line of facts for each
 * thread. All of it may be cut short, for the copy may have died.
 */
#ifndef MANHOLE_STACKS_COPIED_C
#define MANHOLE_STACKS_COPIED_C

#include "../base/compat.c"
#include "../base/state.c"
#include "copy.c"

/* A piece of text that somebody else owns. */
struct slice {
    const char *bytes;
    size_t length;
};

/* Takes a line, without its newline, off the front of rest. Returns false at the end. */
static bool
next_line(struct slice *rest, struct slice *line)
{
    const char *newline = NULL;
    if (rest->length == 0) {
        return false;
    }
    newline = memchr(rest->bytes, '\n', rest->length);
    line->bytes = rest->bytes;
    line->length = newline == NULL ? rest->length : (size_t)(newline - rest->bytes);
    rest->bytes += line->length + (newline != NULL);
    rest->length -= line->length + (newline != NULL);
    return true;
}

static bool
starts_with(const struct slice *slice, const char *prefix)
{
    size_t length = strlen(prefix);
    return slice->length >= length && memcmp(slice->bytes, prefix, length) == 0;
}

/* What is known of one thread of the copy. */
struct thread_note {
    unsigned long native_id; /* 0: unknown */
    bool holds_gil;
    struct slice name; /* empty: unknown */
};

/* Takes a number and the blank behind it off the front of text. Returns false for none. */
static bool
take_number(const char **text, unsigned long *number)
{
    char *end = NULL;
    if (**text < '0' || **text > '9') {
        return false;
    }
    *number = strtoul(*text, &end, 10);
    *text = *end == ' ' ? end + 1 : end;
    return true;
}

/* Reads a line of facts, "@ IDENT NATIVE_ID HOLDS_GIL NAME" or "! IDENT". Returns the ident, 0 for
 * any other line. */
static unsigned long
read_facts(const struct slice *line, struct thread_note *note)
{
    char copy[80]; /* the numbers end in it */
    const char *text = copy + 2;
    unsigned long ident = 0;
    unsigned long holder = 0;
    size_t length = line->length < sizeof(copy) ? line->length : sizeof(copy) - 1;
    memcpy(copy, line->bytes, length);
    copy[length] = '\0';
    if (starts_with(line, "! ") && take_number(&text, &ident)) {
        note->holds_gil = true;
        return ident;
    }
    if (starts_with(line, "@ ") && take_number(&text, &ident) &&
        take_number(&text, &note->native_id) && take_number(&text, &holder)) {
        note->holds_gil = holder != 0;
        note->name.bytes = line->bytes + (text - copy);
        note->name.length =
            strnlen(note->name.bytes, line->length - (size_t)(text - copy));
        return ident;
    }
    return 0;
}

/* What a copy says of one thread. */
struct copied_thread {
    unsigned long ident;
    bool has_stack;      /* else only its facts are there */
    bool shown;          /* its header is written */
    struct slice frames; /* lines of faulthandler's, innermost first */
    struct thread_note note;
};

/* What a copy wrote, read. It points into the text. */
struct copied {
    struct copied_thread *threads; /* owned */
    size_t count;
    size_t capacity;
    bool failed; /* there was no memory for all of them */
};

/* Returns a new one, or NULL without memory. */
static struct copied_thread *
add_copied_thread(struct copied *copied, unsigned long ident)
{
    if (copied->count == copied->capacity) {
        size_t capacity = copied->capacity == 0 ? 64 : 2 * copied->capacity;
        struct copied_thread *threads =
            realloc(copied->threads, capacity * sizeof(*threads));
        if (threads == NULL) {
            copied->failed = true;
            return NULL;
        }
        copied->threads = threads;
        copied->capacity = capacity;
    }
    copied->threads[copied->count] = (struct copied_thread){.ident = ident};
    return &copied->threads[copied->count++];
}

static struct copied_thread *
find_copied_thread(const struct copied *copied, unsigned long ident)
{
    for (size_t i = 0; i < copied->count; i++) {
        if (copied->threads[i].ident == ident) {
            return &copied->threads[i];
        }
    }
    return NULL;
}

/* Reads faulthandler's part. */
static void
read_stacks(struct copied *copied, struct slice stacks)
{
    struct copied_thread *thread = NULL;
    struct slice line;
    bool is_hidden = false;
    while (next_line(&stacks, &line)) {
        if (starts_with(&line, "&")) {
            is_hidden = true;
            thread = NULL;
        }
        else if (starts_with(&line, "Thread 0x") ||
                 starts_with(&line, "Current thread 0x")) {
            unsigned long ident = strtoul(memchr(line.bytes, '0', line.length), NULL, 16);
            thread = is_hidden || ident == 0 ? NULL : add_copied_thread(copied, ident);
            is_hidden = false;
            if (thread != NULL) {
                thread->has_stack = true;
                thread->frames.bytes = stacks.bytes;
            }
        }
        else if (thread != NULL && starts_with(&line, "  ")) {
            thread->frames.length =
                (size_t)(line.bytes + line.length - thread->frames.bytes);
        }
    }
}

/* Reads the part that the copy itself has written. */
static void
read_all_facts(struct copied *copied, struct slice facts)
{
    struct slice line;
    while (next_line(&facts, &line)) {
        struct thread_note note = {0};
        unsigned long ident = read_facts(&line, &note);
        struct copied_thread *thread =
            ident == 0 ? NULL : find_copied_thread(copied, ident);
        if (ident != 0 && thread == NULL) {
            thread = add_copied_thread(copied, ident);
        }
        if (thread == NULL) {
            continue;
        }
        note.holds_gil = note.holds_gil || thread->note.holds_gil;
        if (note.native_id == 0 && note.name.length == 0) {
            thread->note.holds_gil = note.holds_gil;
        }
        else {
            thread->note = note;
        }
    }
}

/* Reads what a copy wrote, which may break off anywhere. To be freed by free_copied(). */
static struct copied
read_copied(const struct text *raw)
{
    const size_t marker = sizeof(stacks_complete) - 1;
    struct copied copied = {0};
    struct slice stacks = {raw->bytes, raw->length};
    struct slice facts = {NULL, 0};
    const char *found = raw->length == 0
                            ? NULL
                            : memmem(raw->bytes, raw->length, stacks_complete, marker);
    if (found != NULL) {
        stacks.length = (size_t)(found - raw->bytes);
        facts.bytes = found + marker;
        facts.length = raw->length - stacks.length - marker;
    }
    read_stacks(&copied, stacks);
    read_all_facts(&copied, facts);
    return copied;
}

static void
free_copied(struct copied *copied)
{
    free(copied->threads);
    *copied = (struct copied){0};
}

#endif /* MANHOLE_STACKS_COPIED_C */
