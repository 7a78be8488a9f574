/* JSON: the same stacks for programs. test/stacks.schema.json describes the document.
 * Runs on:  sessions and helpers, DETACHED.
 * Touches:  nothing.
 *
 *     {"pid", "python", "version", "source", "threads": [{"id", "native_id", "state", "waits_in",
 *      "holds_gil", "daemon", "name", "frames": [{"file", "line", "function", "qualname",
 *      "source"}]}], "unread_files", "newer_files", "note"}
 *
 * null stands for what is not known, frames come outermost first. A thread of another interpreter
 * than the manhole's has that one's id as its "interpreter". There is a "note" where a frozen
 * copy is not whole. Each thread has frames of its own, also where two are the same. A document may
 * come from a process in any state, and still be one: what is no UTF-8 in it becomes U+FFFD.
 *
 * Members may come; when one goes, or means something else, "version" rises.
 */
#ifndef MANHOLE_STACKS_JSON_C
#define MANHOLE_STACKS_JSON_C

#include "../base/compat.c"
#include "../base/state.c"
#include "../base/basics.c"
#include "kernel.c"
#include "sources.c"
#include "model.c"
#include "dump.c"

enum {
    JSON_VERSION = 1
}; /* manhole-cli writes it too, for a process that it cannot ask */

/* The length of the UTF-8 character that the bytes begin with, 0: they begin with none. As RFC 3629
 * has it: no surrogate, nothing above U+10FFFF, none in more bytes than it takes. Whoever reads the
 * document refuses all of it for one of these. */
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

/* Appends a string; null where there is none. A byte that is no UTF-8 becomes U+FFFD. */
static void
append_json_string(struct text *text, struct slice string)
{
    if (string.bytes == NULL) {
        append_string(text, "null");
        return;
    }
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

/* A string, or NULL, as a slice. */
static struct slice
as_slice(const char *string)
{
    return (struct slice){string, string == NULL ? 0 : strlen(string)};
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

/* Up to the frames. */
static void
begin_json_thread(struct text *text, const struct thread_stack *thread)
{
    append_json_comma(text);
    append_string(text, "{");
    append_json_id(text, "id", thread->ident);
    append_string(text, ", ");
    append_json_id(text, "native_id", thread->native_id);

    const struct kernel_state *kernel = &thread->kernel;
    append_string(text, ", \"state\": ");
    append_json_string(text, as_slice(kernel->name));
    append_string(text, ", \"waits_in\": ");
    append_json_string(text,
                       as_slice(kernel->waits_in[0] == '\0' ? NULL : kernel->waits_in));
    append_string(text, ", ");
    append_json_answer(text, "holds_gil", thread->holds_gil);
    append_string(text, ", ");
    append_json_answer(text, "daemon", thread->daemon);
    append_string(text, ", \"name\": ");
    append_json_text(text, &thread->name);
    if (thread->interpreter != OWN_INTERPRETER) {
        append_format(text, ", \"interpreter\": %lld", thread->interpreter);
    }
    append_string(text, ", \"frames\": [");
}

static void
append_json_frame(struct text *text, const struct shown_frame *frame)
{
    append_string(text, "{\"file\": ");
    append_json_string(text, as_slice(frame->path));
    append_format(text, ", \"line\": %ld, \"function\": ", frame->line);
    append_json_string(text, frame->function);
    append_string(text, ", \"qualname\": ");
    append_json_string(text, frame->qualname);
    append_string(text, ", \"source\": ");
    append_json_string(text, frame->source.length > 0 ? frame->source : as_slice(NULL));
    append_string(text, "}");
}

static void
append_json_thread(struct text *text, struct stacks *stacks,
                   const struct thread_stack *thread)
{
    begin_json_thread(text, thread);
    for (size_t i = thread->first + thread->count; i > thread->first; i--) {
        if (stacks->positions[stacks->frames[i - 1]].has_file) {
            append_json_comma(text);
            append_written(text, stacks, i - 1, append_json_frame);
        }
    }
    append_string(text, "]}");
}

/* Appends the names of the files that are so. */
static void
append_json_files(struct text *text, const char *key, const struct stacks *stacks,
                  bool is_so(const struct source *source))
{
    append_format(text, ", \"%s\": [", key);
    for (size_t i = 0; i < stacks->sources.count; i++) {
        const struct source *source = &stacks->sources.files[i];
        if (is_so(source)) {
            append_json_comma(text);
            append_json_string(text, as_slice(source->path));
        }
    }
    append_string(text, "]");
}

/* Appends the whole document. */
static void
append_json(struct text *text, struct stacks *stacks)
{
    const char *version = Py_GetVersion();
    append_format(text, "{\"pid\": %ld, \"python\": ", (long)getpid());
    append_json_string(text, (struct slice){version, strcspn(version, " ")});
    append_format(text, ", \"version\": %d, \"source\": \"%s\", \"threads\": [",
                  JSON_VERSION, stacks->is_frozen ? "frozen copy" : "attached");
    for (size_t i = 0; i < stacks->thread_count; i++) {
        if (stacks->threads[i].is_shown) {
            append_json_thread(text, stacks, &stacks->threads[i]);
        }
    }
    append_string(text, "]");
    append_json_files(text, "unread_files", stacks, is_to_be_read);
    append_json_files(text, "newer_files", stacks, is_newer);
    if (stacks->tasks.length > 0) {
        append_string(text, ", ");
        append_bytes(text, stacks->tasks.bytes, stacks->tasks.length);
    }
    if (stacks->note.length > 0) {
        append_string(text, ", \"note\": ");
        append_json_text(text, &stacks->note);
    }
    append_string(text, "}\n");
}

static const struct form json_form = {.append = append_json};

#endif /* MANHOLE_STACKS_JSON_C */
