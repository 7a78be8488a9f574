/* JSON: the same stacks for programs. {"pid", "python", "source", "threads": [{"id", "native_id",
 * "name", "state", "holds_gil", "daemon", "frames": [{"file", "line", "function", "source"}]}]},
 * null for what is not known, frames outermost first; a "note" where a frozen copy is not whole, an
 * "error" where there are no stacks at all.
 * Runs on:  sessions, ATTACHED, for the look; helpers, DETACHED, for the frozen copy.
 * Touches:  nothing but frames, source files and the file's own structs.
 */
#ifndef MANHOLE_STACKS_JSON_C
#define MANHOLE_STACKS_JSON_C

#include "../base/compat.c"
#include "../base/state.c"
#include "../base/basics.c"
#include "copied.c"
#include "kernel.c"
#include "sources.c"
#include "snapshot.c"
#include "dump.c"

/* The length of the UTF-8 character that the bytes begin with, 0: they begin with none. */
static size_t
utf8_size(struct slice bytes)
{
    unsigned char first = (unsigned char)bytes.bytes[0];
    unsigned char second = bytes.length > 1 ? (unsigned char)bytes.bytes[1] : 0;
    size_t size = first < 0x80   ? 1
                  : first < 0xC2 ? 0
                  : first < 0xE0 ? 2
                  : first < 0xF0 ? 3
                                 : 4;
    bool too_long = (first == 0xE0 && second < 0xA0) || (first == 0xF0 && second < 0x90);
    bool surrogate = first == 0xED && second > 0x9F;
    bool too_large = first > 0xF4 || (first == 0xF4 && second > 0x8F);
    if (size > bytes.length || too_long || surrogate || too_large) {
        return 0;
    }
    for (size_t i = 1; i < size; i++) {
        if (((unsigned char)bytes.bytes[i] & 0xC0) != 0x80) {
            return 0;
        }
    }
    return size;
}

/* Appends a string. A byte that is no UTF-8 becomes U+FFFD. */
static void
append_json_string(struct text *text, struct slice string)
{
    append_string(text, "\"");
    while (string.length > 0) {
        unsigned char first = (unsigned char)string.bytes[0];
        size_t size = utf8_size(string);
        if (size == 0) {
            append_string(text, "\\ufffd");
            size = 1;
        }
        else if (first == '"' || first == '\\') {
            append_format(text, "\\%c", first);
        }
        else if (first < ' ' || first == 0x7F) {
            append_format(text, "\\u%04x", first);
        }
        else {
            append_bytes(text, string.bytes, size);
        }
        string.bytes += size;
        string.length -= size;
    }
    append_string(text, "\"");
}

/* The same, for what a text has gathered. */
static void
append_json_text(struct text *text, const struct text *string)
{
    append_json_string(text, (struct slice){string->bytes, string->length});
    text->failed = text->failed || string->failed;
}

/* Before each element: a comma behind another one. */
static void
append_json_comma(struct text *text)
{
    if (text->length > 0 && strchr("[{", text->bytes[text->length - 1]) == NULL) {
        append_string(text, ",");
    }
    append_string(text, "\n");
}

/* 0 is not known. */
static void
append_json_id(struct text *text, const char *key, unsigned long id)
{
    if (id == 0) {
        append_format(text, "\"%s\": null", key);
    }
    else {
        append_format(text, "\"%s\": %lu", key, id);
    }
}

static void
append_json_answer(struct text *text, const char *key, enum answer answer)
{
    static const char *const words[] = {"false", "true", "null"};
    append_format(text, "\"%s\": %s", key, words[answer]);
}

/* Up to the threads. source: a literal. */
static void
begin_json(struct text *text, const char *source)
{
    const char *version = Py_GetVersion();
    append_format(text, "{\"pid\": %ld, \"python\": ", (long)getpid());
    append_json_string(text, (struct slice){version, strcspn(version, " ")});
    append_format(text, ", \"source\": \"%s\", \"threads\": [", source);
}

/* What is known of a thread but its frames. */
struct thread_view {
    unsigned long ident;
    unsigned long native_id; /* 0: not known */
    enum answer holds_gil;
    enum answer daemon;
    struct slice name; /* its bytes NULL: not known */
};

/* Up to the frames. */
static void
begin_json_thread(struct text *text, const struct thread_view *view)
{
    const char *state = view->native_id == 0 ? NULL : read_state(view->native_id);
    append_json_comma(text);
    append_string(text, "{");
    append_json_id(text, "id", view->ident);
    append_string(text, ", ");
    append_json_id(text, "native_id", view->native_id);
    append_string(text, ", \"state\": ");
    if (state == NULL) {
        append_string(text, "null");
    }
    else {
        append_json_string(text, (struct slice){state, strlen(state)});
    }
    append_string(text, ", ");
    append_json_answer(text, "holds_gil", view->holds_gil);
    append_string(text, ", ");
    append_json_answer(text, "daemon", view->daemon);
    append_string(text, ", \"name\": ");
    if (view->name.bytes == NULL) {
        append_string(text, "null");
    }
    else {
        append_json_string(text, view->name);
    }
    append_string(text, ", \"frames\": [");
}

static void
append_json_frame(struct text *text, const struct shown_frame *frame)
{
    append_string(text, "{\"file\": ");
    append_json_string(text, frame->path);
    append_format(text, ", \"line\": %ld, \"function\": ", frame->line);
    append_json_string(text, frame->function);
    append_string(text, ", \"source\": ");
    if (frame->source.length > 0) {
        append_json_string(text, frame->source);
    }
    else {
        append_string(text, "null");
    }
    append_string(text, "}");
}

/* One thread of a frozen copy. */
DETACHED static void
append_json_copied_thread(struct text *text, const struct copied_thread *thread,
                          struct sources *sources)
{
    const struct thread_note *note = &thread->note;
    const struct thread_view view = {
        .ident = thread->ident,
        .native_id = note->native_id,
        .holds_gil = !HAS_GIL          ? ANSWER_UNKNOWN
                     : note->holds_gil ? ANSWER_YES
                                       : ANSWER_NO,
        .daemon = ANSWER_UNKNOWN,
        .name = {note->name.length == 0 ? NULL : note->name.bytes, note->name.length},
    };
    struct slice lines[MAX_COPIED_FRAMES];
    size_t count = split_frames(thread, lines);
    begin_json_thread(text, &view);
    while (count > 0) {
        struct copied_frame frame = {.shown.line = 0};
        if (!read_copied_frame(&frame, lines[--count], sources)) {
            continue;
        }
        append_json_comma(text);
        append_json_frame(text, &frame.shown);
        free_copied_frame(&frame);
    }
    append_string(text, "]}");
}

/* Appends the whole document of a process whose interpreter does not answer. */
DETACHED static void
append_json_snapshot(struct text *text)
{
    struct examination examination = {.error = 0};
    struct sources sources = {0};
    struct text note = {0};
    examine_copy(&examination);
    begin_json(text, "frozen copy");
    for (size_t i = 0; i < examination.copied.count; i++) {
        if (is_copied_stack(&examination.copied.threads[i])) {
            append_json_copied_thread(text, &examination.copied.threads[i], &sources);
        }
    }
    append_string(text, "]");
    append_lone_copy_note(&note, &examination);
    if (note.length > 0) {
        append_string(text, ", \"note\": ");
        append_json_text(text, &note);
    }
    append_string(text, "}\n");
    free_sources(&sources);
    free_text(&note);
    free_examination(&examination);
}

/* One thread of the look, up to its frames. The looker itself has the GIL while it looks. */
static bool
append_json_thread(struct text *text, struct look *look, size_t index)
{
    const struct thread_record *thread = &look->threads[index];
    begin_json_thread(text, &(struct thread_view){.ident = thread->ident,
                                                  .native_id = thread->native_id,
                                                  .daemon = thread->daemon,
                                                  .name = thread->name.utf8});
    return true;
}

static void
begin_json_look(struct text *text)
{
    begin_json(text, "attached");
}

static const struct form json_form = {
    .begin = begin_json_look,
    .begin_thread = append_json_thread,
    .separate_frames = append_json_comma,
    .append_frame = append_json_frame,
    .thread_end = "]}",
    .end = "]}\n",
    .append_snapshot = append_json_snapshot,
};

#endif /* MANHOLE_STACKS_JSON_C */
