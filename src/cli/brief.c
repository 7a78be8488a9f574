/* Brief: --brief, the stacks of all threads and tasks of all processes, equal ones in one line.
 * It is made of what --stacks --json gives, so it is the same for a process that is stuck. That is
 * read by lines, for the server begins one for each thread and each frame; a key with its quotes
 * cannot stand in a string, where quotes are escaped. What is shown is as JSON escapes it.
 *
 * Of a stack is told where it is, which for a waiting thread is in the standard library, and the
 * innermost frame of the application's own, which says whose work that is. Stacks are equal here
 * when that is. Tasks and greenlets have lines of their own, by the same rule. Most come first,
 * then the processes in their order.
 */
#ifndef MANHOLE_CLI_BRIEF_C
#define MANHOLE_CLI_BRIEF_C

#include "terminal.c"

enum { BRIEF_MEMBERS = 20 }; /* that a line names; of more it tells the number */

/* Bytes of a document, as they are there. */
struct json {
    const char *bytes; /* NULL: null, or it is not there */
    size_t length;
};

/* Threads with the same stack; or tasks, or greenlets. */
struct brief {
    const char *kind;    /* "task ", "greenlet "; "" is a thread */
    struct buffer place; /* what is told of them */
    struct json state;   /* of all of them; else none */
    struct buffer members;
    struct json process; /* of the last one */
    size_t named;
    size_t count;
    size_t order; /* in which they came */
};

struct briefs {
    struct brief *list; /* owned */
    size_t count;
    bool is_of_one; /* process, whose threads are named; else the processes are */
};

static struct json
line_at(const struct buffer *document, size_t start)
{
    size_t length = next_line(document, start, true);
    return (struct json){length == 0 ? "" : document->data + start, length};
}

/* The value behind this key in a line: without its quotes, if it has any. */
static struct json
find_member(struct json line, const char *key)
{
    const char *end = line.bytes + line.length;
    const char *at = memmem(line.bytes, line.length, key, strlen(key));
    const char *start = NULL;
    bool is_string = false;

    if (at == NULL || at + strlen(key) == end) {
        return (struct json){NULL, 0};
    }
    start = at + strlen(key);
    is_string = *start == '"';
    start += is_string;
    for (at = start; at < end && (is_string ? *at != '"' : strchr(",}]\n", *at) == NULL);
         at++) {
        at += is_string && *at == '\\' && at + 1 < end;
    }
    return !is_string && strncmp(start, "null", 4) == 0
               ? (struct json){NULL, 0}
               : (struct json){start, (size_t)(at - start)};
}

static void
append_json(struct buffer *out, struct json json)
{
    append(out, json.bytes, json.length);
}

/* Whether a file is of the application's own: not of Python, nor installed beside it. */
static bool
is_own_file(struct json file)
{
    static const char *const others[] = {"/lib/python3", "/site-packages/",
                                         "/dist-packages/", "<frozen ", "<manhole>"};

    for (size_t i = 0; i < sizeof(others) / sizeof(others[0]); i++) {
        if (memmem(file.bytes, file.length, others[i], strlen(others[i])) != NULL) {
            return false;
        }
    }
    return true;
}

static bool
is_same_json(struct json one, struct json other)
{
    return one.length == other.length &&
           (one.length == 0 || memcmp(one.bytes, other.bytes, one.length) == 0);
}

/* Says where a stack is: its innermost frame, and its innermost one of the application's own. */
static void
append_place(struct buffer *out, struct json inner, struct json ours)
{
    struct json at = ours.bytes == NULL ? inner : ours;

    if (inner.bytes == NULL) {
        append_text(out, "without a frame");
        return;
    }
    append_text(out, "in ");
    append_json(out, find_member(inner, "\"function\": "));
    if (ours.bytes != NULL && ours.bytes != inner.bytes) {
        append_text(out, ", by ");
        append_json(out, find_member(ours, "\"function\": "));
    }
    append_text(out, " at ");
    append_json(out, find_member(at, "\"file\": "));
    append_text(out, ":");
    append_json(out, find_member(at, "\"line\": "));
}

/* What a line of the document is about. */
static const char *
kind_of(struct json line)
{
    bool is_task = find_member(line, "\"coroutine\": ").bytes != NULL;
    bool is_greenlet = find_member(line, "\"run\": ").bytes != NULL;
    return is_task ? "task " : is_greenlet ? "greenlet " : "";
}

/* Those of a kind that are at this place; a new one where there are none yet. */
static struct brief *
find_brief(struct briefs *briefs, const char *kind, struct buffer *place /* taken over */)
{
    for (size_t i = 0; i < briefs->count; i++) {
        if (strcmp(briefs->list[i].kind, kind) == 0 &&
            strcmp(briefs->list[i].place.data, place->data) == 0) {
            free(place->data);
            return &briefs->list[i];
        }
    }
    briefs->list = realloc(briefs->list, (briefs->count + 1) * sizeof(*briefs->list));
    if (briefs->list == NULL) {
        fail(STATUS_TROUBLE, "out of memory");
    }
    briefs->list[briefs->count] =
        (struct brief){.kind = kind, .place = *place, .order = briefs->count};
    return &briefs->list[briefs->count++];
}

/* Adds a thread to those that have the same stack. */
static void
add_to_brief(struct brief *brief, struct json thread, struct json process, bool is_of_one)
{
    static const struct json holding = {"holding the GIL", 15};
    struct json state = find_member(thread, "\"state\": ");
    struct json name = find_member(thread, "\"name\": ");

    if (is_same_json(find_member(thread, "\"holds_gil\": "), (struct json){"true", 4})) {
        state = holding;
    }
    if (name.bytes == NULL) {
        name = find_member(thread, "\"id\": ");
    }
    brief->state = brief->count == 0 || is_same_json(state, brief->state)
                       ? state
                       : (struct json){NULL, 0};
    brief->count++;
    if (is_of_one || brief->count == 1 || !is_same_json(process, brief->process)) {
        brief->process = process;
        brief->named++;
        if (brief->named <= BRIEF_MEMBERS) {
            append_text(&brief->members, brief->named == 1 ? "" : is_of_one ? ", " : " ");
            append_json(&brief->members, is_of_one ? name : process);
        }
    }
}

/* Adds the thread or task whose line begins here, with the lines of its frames. Returns how long
 * all of that is. */
static size_t
read_thread(struct briefs *briefs, const struct buffer *document, size_t start,
            struct json process)
{
    struct json thread = line_at(document, start);
    struct json frame = line_at(document, start + thread.length);
    struct json inner = {NULL, 0};
    struct json ours = {NULL, 0};
    struct buffer place = {.data = NULL}; /* owned, handed to the brief */
    size_t length = thread.length;

    for (; find_member(frame, "{\"file\": ").bytes != NULL;
         frame = line_at(document, start + length)) {
        ours = is_own_file(find_member(frame, "{\"file\": ")) ? frame : ours;
        inner = frame;
        length += frame.length;
    }
    append_place(&place, inner, ours);
    add_to_brief(find_brief(briefs, kind_of(thread), &place), thread, process,
                 briefs->is_of_one);
    return length;
}

/* Says why threads are missing, where a frozen copy could not be made or is not whole. */
static void
show_note(const struct buffer *document, struct json process)
{
    struct json all = {text_of(document), document->length};
    struct json note = find_member(all, "\"note\": ");
    OWNED_BUFFER line = {.data = NULL};
    OWNED_BUFFER shown = {.data = NULL};

    if (note.bytes == NULL) {
        return;
    }
    append_json(&line, process);
    append_text(&line, ": manhole: ");
    append_json(&line, note);
    append_text(&line, "\n");
    append_harmless(&shown, line.data, line.length);
    write_all(STDERR_FILENO, shown.data, shown.length);
}

/* Adds the threads of a document, which lives as long as the briefs do. */
static void
read_document(struct briefs *briefs, const struct buffer *document)
{
    struct json process = find_member(line_at(document, 0), "{\"pid\": ");

    for (size_t start = 0; start < document->length;) {
        struct json line = line_at(document, start);
        bool is_thread = find_member(line, "\"frames\": ").bytes != NULL;
        start += is_thread ? read_thread(briefs, document, start, process) : line.length;
    }
    show_note(document, process);
}

/* Most threads first, then who came first. */
static int
compare_briefs(const void *one, const void *other)
{
    const struct brief *a = one;
    const struct brief *b = other;
    bool is_after = a->count == b->count ? a->order > b->order : a->count < b->count;
    return is_after ? 1 : -1;
}

/* Writes a line for each, and forgets them. */
static void
show_briefs(struct briefs *briefs)
{
    OWNED_BUFFER shown = {.data = NULL};

    if (briefs->count > 0) {
        qsort(briefs->list, briefs->count, sizeof(*briefs->list), compare_briefs);
    }
    for (size_t i = 0; i < briefs->count; i++) {
        struct brief *brief = &briefs->list[i];
        OWNED_BUFFER line = {.data = NULL};
        append_format(&line, "%zu x %s", brief->count, brief->kind);
        append_json(&line, brief->state);
        append_format(&line, "%s%s: %s", brief->state.bytes == NULL ? "" : " ",
                      brief->place.data, text_of(&brief->members));
        if (brief->named > BRIEF_MEMBERS) {
            append_format(&line, " and %zu more", brief->named - BRIEF_MEMBERS);
        }
        append_harmless(&shown, line.data, line.length);
        append_text(&shown, "\n");
        free_buffer(&brief->place);
        free_buffer(&brief->members);
    }
    write_all(STDOUT_FILENO, text_of(&shown), shown.length);
    free(briefs->list);
}

#endif /* MANHOLE_CLI_BRIEF_C */
