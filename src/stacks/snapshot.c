/* Snapshot: the stacks of a process whose interpreter does not answer.
 * Runs on:  native threads of ours, DETACHED; the frozen copy runs what is marked COPY_ONLY.
 * Touches:  a memory file, one real-time signal (faulthandler's), /proc/self/task.
 * A copy of the process is made by a raw clone: no SIGCHLD, no fork handlers, only the calling
 * thread lives in it. There faulthandler walks all frames without the GIL. Nothing moves in the
 * copy, and a copy that dies of what it reads is one copy less: the process never walks its own
 * living frames. The copy writes into the memory file, the process reads it and tells the client.
 */
#ifndef MANHOLE_STACKS_SNAPSHOT_C
#define MANHOLE_STACKS_SNAPSHOT_C

#include "../base/compat.c"
#include "../base/state.c"
#include "../base/locks.c"
#include "../base/basics.c"
#include "copy.c"
#include "copied.c"
#include "kernel.c"
#include "sources.c"

/* A frame as it is shown. */
struct shown_frame {
    struct slice path; /* NUL-terminated */
    struct slice function;
    long line;
    struct slice source; /* empty: not to be had */
};

/* Appends a frame in our words, which are python-manhole's. */
static void
append_shown_frame(struct text *text, const struct shown_frame *frame)
{
    append_string(text, "File: \"");
    append_bytes(text, frame->path.bytes, frame->path.length);
    append_format(text, "\", line %ld, in ", frame->line);
    append_bytes(text, frame->function.bytes, frame->function.length);
    append_string(text, "\n");
    if (frame->source.length > 0) {
        append_string(text, "  ");
        append_bytes(text, frame->source.bytes, frame->source.length);
        append_string(text, "\n");
    }
}

/* A frame of a copy, as faulthandler tells of it. */
struct copied_frame {
    struct text path; /* NUL-terminated */
    struct text function;
    struct shown_frame shown;
};

static void
free_copied_frame(struct copied_frame *frame)
{
    free_text(&frame->path);
    free_text(&frame->function);
}

/* Reads a frame, `  File "F", line N in NAME` in faulthandler's words. Returns false for a line of
 * another form ("...", "<no Python frame>"), and when there is no memory. */
DETACHED static bool
read_copied_frame(struct copied_frame *frame, struct slice line, struct sources *sources)
{
    static const char middle[] = "\", line ";
    const char *end = NULL;
    const char *rest = NULL; /* of the line, behind what has been read */
    struct slice function;
    struct source *source = NULL;
    for (size_t i = 0; i + sizeof(middle) - 1 <= line.length; i++) {
        if (memcmp(line.bytes + i, middle, sizeof(middle) - 1) == 0) {
            end = line.bytes + i;
        }
    }
    if (!starts_with(&line, "  File \"") || end == NULL || end < line.bytes + 8) {
        return false;
    }
    append_unescaped(&frame->path,
                     (struct slice){line.bytes + 8, (size_t)(end - line.bytes) - 8});
    append_bytes(&frame->path, "", 1);
    rest = end + sizeof(middle) - 1;
    if (*rest >= '0' && *rest <= '9') { /* strtol() would skip a newline to find one */
        char *number_end = NULL;
        frame->shown.line = strtol(rest, &number_end, 10);
        rest = number_end;
    }
    function = (struct slice){rest, (size_t)(line.bytes + line.length - rest)};
    if (starts_with(&function, " in ")) {
        function.bytes += 4;
        function.length -= 4;
    }
    append_unescaped(&frame->function, function);
    if (frame->path.failed || frame->function.failed) {
        free_copied_frame(frame);
        return false;
    }
    source = add_source(sources, frame->path.bytes);
    if (source != NULL && !source->loaded) {
        load_source(source);
    }
    if (source != NULL) {
        frame->shown.source = source_line(source, frame->shown.line);
    }
    frame->shown.path = (struct slice){frame->path.bytes, frame->path.length - 1};
    frame->shown.function = (struct slice){frame->function.bytes, frame->function.length};
    return true;
}

/* A line of another form stands as it is. */
DETACHED static void
append_copied_frame(struct text *text, struct slice line, struct sources *sources)
{
    struct copied_frame frame = {.shown.line = 0};
    if (!read_copied_frame(&frame, line, sources)) {
        append_bytes(text, line.bytes, line.length);
        append_string(text, "\n");
        return;
    }
    append_shown_frame(text, &frame.shown);
    free_copied_frame(&frame);
}

/* Appends a thread's header and what is known of it. */
DETACHED static void
append_copied_header(struct text *text, const struct copied_thread *thread)
{
    const struct thread_note *note = &thread->note;
    append_format(text, "######### ProcessID=%ld, ThreadID=%lu #########\n",
                  (long)getpid(), thread->ident);
    if (note->name.length > 0) {
        append_string(text, "Thread: ");
        append_bytes(text, note->name.bytes, note->name.length);
        append_string(text, note->native_id != 0 ? ", " : "");
    }
    else if (note->native_id != 0) {
        append_string(text, "Thread: ");
    }
    if (note->native_id != 0) {
        append_kernel_state(text, note->native_id);
    }
    if (note->holds_gil) {
        append_string(text, ", holds the GIL");
    }
    if (note->name.length > 0 || note->native_id != 0) {
        append_string(text, "\n");
    }
}

enum {
    MAX_COPIED_FRAMES = 128 /* faulthandler stops at 100 and says so in one more line */
};

/* Splits a thread's frames into lines, innermost first. Returns how many there are. */
static size_t
split_frames(const struct copied_thread *thread, struct slice lines[MAX_COPIED_FRAMES])
{
    struct slice rest = thread->frames;
    size_t count = 0;
    while (count < MAX_COPIED_FRAMES && next_line(&rest, &lines[count])) {
        count += starts_with(&lines[count], "  ");
    }
    return count;
}

/* A session's thread that has no frames yet: it waits for the very interpreter that is stuck. */
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

/* Whether a thread of a copy is one to show. */
static bool
is_copied_stack(const struct copied_thread *thread)
{
    return thread->has_stack && !is_waiting_session(thread->ident);
}

static bool
is_same_copied_stack(const struct copied_thread *one, const struct copied_thread *other)
{
    return one->frames.length == other->frames.length &&
           (one->frames.length == 0 ||
            memcmp(one->frames.bytes, other->frames.bytes, one->frames.length) == 0);
}

/* Appends all threads of a copy: headers of those with the same stack, and that once, outermost
 * frame first. */
DETACHED static void
append_copied_threads(struct text *text, struct copied *copied)
{
    struct sources sources = {0};
    for (size_t i = 0; i < copied->count; i++) {
        struct copied_thread *thread = &copied->threads[i];
        struct slice lines[MAX_COPIED_FRAMES];
        size_t line_count = 0;
        size_t same = 0;
        if (thread->shown || !is_copied_stack(thread)) {
            continue;
        }
        append_string(text, "\n");
        for (size_t k = i; k < copied->count; k++) {
            struct copied_thread *other = &copied->threads[k];
            if (!other->shown && is_same_copied_stack(thread, other) &&
                is_copied_stack(other)) { /* last, for it goes through all sessions */
                append_copied_header(text, other);
                other->shown = true;
                same++;
            }
        }
        if (same > 1) {
            append_format(text, "%zu threads with the same stack:\n", same);
        }
        line_count = split_frames(thread, lines);
        while (line_count > 0) {
            append_copied_frame(text, lines[--line_count], &sources);
        }
    }
    free_sources(&sources);
}

static bool
is_noted(const struct copied *copied, unsigned long native_id)
{
    for (size_t i = 0; i < copied->count; i++) {
        if (copied->threads[i].note.native_id == native_id) {
            return true;
        }
    }
    return false;
}

/* Appends the kernel's view of every thread that the copy says nothing of. */
DETACHED static void
append_other_threads(struct text *text, const struct copied *copied)
{
    const unsigned long own_id = (unsigned long)syscall(SYS_gettid);
    struct dirent *entry = NULL;
    unsigned long *ids = NULL; /* owned */
    size_t count = 0;
    size_t capacity = 0;
    DIR *tasks = opendir("/proc/self/task"); /* owned */
    if (tasks == NULL) {
        append_format(text, "/proc/self/task: %s\n", error_text(errno));
        return;
    }
    append_string(text, "\nOther threads of the process, as the kernel sees them:\n");
    /* NOLINTNEXTLINE(concurrency-mt-unsafe): only this thread has this DIR */
    while ((entry = readdir(tasks)) != NULL) {
        unsigned long native_id = strtoul(entry->d_name, NULL, 10);
        if (native_id == 0 || native_id == own_id || is_noted(copied, native_id)) {
            continue;
        }
        if (count == capacity) {
            unsigned long *more = NULL;
            capacity = capacity == 0 ? 64 : 2 * capacity;
            more = realloc(ids, capacity * sizeof(*ids));
            if (more == NULL) {
                text->failed = true;
                break;
            }
            ids = more;
        }
        ids[count++] = native_id;
    }
    (void)closedir(tasks); /* there may be no second descriptor */
    for (size_t i = 0; i < count; i++) {
        append_string(text, "  ");
        append_kernel_state(text, ids[i]);
        append_string(text, "\n");
    }
    free(ids);
}

/* What came of an attempt at a frozen copy. */
struct examination {
    struct text raw; /* owned: what the copy wrote; copied points into it */
    struct copied copied;
    enum copy_result result;
    int error; /* errno, for COPY_REFUSED */
};

DETACHED static void
examine_copy(struct examination *examination)
{
    examination->result = take_snapshot(&examination->raw);
    examination->error = errno;
    append_bytes(&examination->raw, "", 1); /* numbers are read up to what ends them */
    if (!examination->raw.failed) {
        examination->copied = read_copied(&examination->raw);
    }
}

DETACHED static void
free_examination(struct examination *examination)
{
    free_copied(&examination->copied);
    free_text(&examination->raw);
    lock_leaf(&snapshot_lock);
    open_spare();
    unlock(&snapshot_lock);
}

/* Appends why there is not all that there should be; nothing when there is. */
static void
append_copy_note(struct text *text, const struct examination *examination)
{
    if (examination->result == COPY_REFUSED && examination->error == EBUSY &&
        snapshot.signum == 0) {
        append_string(text,
                      "No frozen copy of the process can be made: no real-time signal "
                      "was free for faulthandler at install, its log tells.");
    }
    else if (examination->result == COPY_REFUSED && examination->error == EBUSY) {
        append_format(text,
                      "No frozen copy of the process can be made: signal %d, which "
                      "faulthandler had for it, is somebody else's now.",
                      snapshot.signum);
    }
    else if (examination->result == COPY_REFUSED) {
        append_format(text, "No frozen copy of the process can be made: %s.",
                      error_text(examination->error));
    }
    else if (examination->result == COPY_DIED) {
        append_string(text,
                      "The frozen copies of the process died; what the best one told:");
    }
    if (examination->copied.failed || examination->raw.failed) {
        append_string(text, " There was no memory for all threads.");
    }
}

/* As append_copy_note(), where the copy is all that there is. */
static void
append_lone_copy_note(struct text *text, const struct examination *examination)
{
    const size_t length = text->length;
    bool is_bare = true;
    append_copy_note(text, examination);
    for (size_t i = 0; i < examination->copied.count; i++) {
        is_bare = is_bare && !is_copied_stack(&examination->copied.threads[i]);
    }
    if (is_bare && text->length == length) { /* the queue of its signal was full, say */
        append_string(text, "The frozen copy of the process told of no thread.");
    }
}

/* Appends the dump of a process whose interpreter does not answer. */
DETACHED static void
append_snapshot(struct text *text)
{
    struct examination examination = {.error = 0};
    const size_t length = text->length;
    examine_copy(&examination);
    append_lone_copy_note(text, &examination);
    append_string(text, text->length > length ? "\n" : "");
    append_copied_threads(text, &examination.copied);
    append_other_threads(text, &examination.copied);
    append_string(text, "#############################################\n\n\n");
    free_examination(&examination);
}

#endif /* MANHOLE_STACKS_SNAPSHOT_C */
