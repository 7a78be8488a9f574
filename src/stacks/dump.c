/* Dump: the stacks as text, in python-manhole's form to the letter; and how a caller gets them.
 * Runs on:  sessions and application threads, ATTACHED, which detach for files and for the text;
 *           helpers, DETACHED, for the frozen copy.
 * Touches:  /proc/self/task, read; what filling the model does.
 *
 * Whoever wants stacks is one of these:
 *
 *     a client, or the application, while Python answers   detach_with_stacks(), append_stacks()
 *     a client, while it does not                          append_snapshot()
 *     who wants those of single threads and greenlets      open_stacks() ... close_stacks()
 *
 * Threads with the same stack are shown once, under the headers of all: a pool of a thousand that
 * wait is a screen and not fifty thousand lines. Scripts look for these lines, each byte of them:
 *
 *     ######### ProcessID=4711, ThreadID=139849 #########
 *     ######### ProcessID=4711, ThreadID=139850 #########
 *     2 threads with the same stack: Worker-1, Worker-2
 *     File: "shop.py", line 2, in sell
 *       take(apple)
 *     #############################################
 *
 * What a frozen copy has told is for somebody whose process is stuck, so there each header has the
 * kernel's word on the thread below it, "Thread: Worker-1, TID 4712 (shop), sleeping in
 * futex_wait", and threads that Python knows nothing of come at the end.
 */
#ifndef MANHOLE_STACKS_DUMP_C
#define MANHOLE_STACKS_DUMP_C

#include "../base/compat.c"
#include "../base/state.c"
#include "../base/basics.c"
#include "copy.c"
#include "kernel.c"
#include "sources.c"
#include "model.c"
#include "copied.c"
#include "look.c"

/* ---- The text ------------------------------------------------------------------------ */

static void
append_slice(struct text *text, struct slice slice)
{
    append_bytes(text, slice.bytes, slice.length);
}

static void
append_frame(struct text *text, const struct shown_frame *frame)
{
    if (frame->path != NULL) {
        append_string(text, "File: \"");
        append_string(text, frame->path);
        append_format(text, "\", line %ld, in ", frame->line);
    }
    append_slice(text, frame->function);
    append_string(text, "\n");
    if (frame->source.length > 0) {
        append_string(text, "  ");
        append_slice(text, frame->source);
        append_string(text, "\n");
    }
}

/* Appends a thread's frames, outermost first. */
static void
append_frames(struct text *text, const struct stacks *stacks, size_t first, size_t count)
{
    for (; count > 0; count--) {
        const struct shown_frame frame = show_frame(stacks, first + count - 1);
        append_frame(text, &frame);
    }
}

/* Appends a line that says what thread it is: "Thread: Worker, TID 7 (shop), sleeping in read". Of
 * another interpreter than the manhole's, also which. */
DETACHED static void
append_thread_facts(struct text *text, const struct thread_stack *thread)
{
    static const char intro[] = "Thread: ";
    const char *before = intro; /* of the next fact */
    if (thread->name.length > 0) {
        append_string(text, before);
        append_bytes(text, thread->name.bytes, thread->name.length);
        before = ", ";
    }
    if (thread->interpreter != OWN_INTERPRETER) {
        append_format(text, "%sof interpreter %lld", before, thread->interpreter);
        before = ", ";
    }
    if (thread->native_id != 0) {
        append_string(text, before);
        append_kernel_state(text, thread->native_id);
        before = ", ";
    }
    if (thread->holds_gil == ANSWER_YES) {
        append_format(text, "%sholds the GIL", before);
        before = ", ";
    }
    append_string(text, before == intro ? "" : "\n");
}

/* Appends the names of the threads of a group, for the headers alone tell little then. */
static void
append_group_names(struct text *text, const struct stacks *stacks, size_t group)
{
    for (size_t i = group; i < stacks->thread_count; i++) {
        const struct thread_stack *thread = &stacks->threads[i];
        if (thread->is_shown && thread->group == group) {
            append_string(text, i == group ? " " : ", ");
            append_string(text, thread->name.bytes == NULL ? "?" : "");
            append_bytes(text, thread->name.bytes, thread->name.length);
        }
    }
}

/* Appends the headers of all threads of a group. */
DETACHED static void
append_headers(struct text *text, const struct stacks *stacks, size_t group)
{
    size_t count = 0;
    append_string(text, "\n");
    for (size_t i = group; i < stacks->thread_count; i++) {
        const struct thread_stack *thread = &stacks->threads[i];
        if (!thread->is_shown || thread->group != group) {
            continue;
        }
        append_format(text, "######### ProcessID=%ld, ThreadID=%lu #########\n",
                      (long)process_id(), thread->ident);
        if (stacks->is_frozen) {
            append_thread_facts(text, thread);
        }
        count++;
    }
    if (count > 1) {
        append_format(text, "%zu threads with the same stack:", count);
        if (!stacks->is_frozen) {
            append_group_names(text, stacks, group);
        }
        append_string(text, "\n");
    }
}

static bool
is_listed(const struct stacks *stacks, unsigned long native_id)
{
    for (size_t i = 0; i < stacks->thread_count; i++) {
        if (stacks->threads[i].native_id == native_id) {
            return true;
        }
    }
    return false;
}

/* The ids of all threads that the stacks do not know, but the calling one. Returns how many there
 * are, in *ids, for free(); -1 with errno when they are not to be had. */
DETACHED static ssize_t
list_other_threads(const struct stacks *stacks, unsigned long **ids)
{
    const unsigned long own_id = (unsigned long)syscall(SYS_gettid);
    struct dirent *entry = NULL;
    size_t count = 0;
    size_t capacity = 0;
    DIR *tasks = opendir("/proc/self/task"); /* owned */
    if (tasks == NULL) {
        return -1;
    }

    /* NOLINTNEXTLINE(concurrency-mt-unsafe): only this thread has this DIR */
    while ((entry = readdir(tasks)) != NULL) {
        unsigned long native_id = strtoul(entry->d_name, NULL, 10);
        if (native_id == 0 || native_id == own_id || is_listed(stacks, native_id)) {
            continue;
        }
        unsigned long *roomy = with_room(*ids, count, &capacity, sizeof(**ids));
        if (roomy == NULL) {
            (void)closedir(tasks);
            errno = ENOMEM;
            return -1;
        }
        *ids = roomy;
        roomy[count++] = native_id;
    }
    (void)closedir(tasks); /* there may be no second descriptor for what follows */
    return (ssize_t)count;
}

/* Appends the kernel's view of every thread that the stacks say nothing of. */
DETACHED static void
append_other_threads(struct text *text, const struct stacks *stacks)
{
    unsigned long *ids = NULL; /* owned */
    const ssize_t count = list_other_threads(stacks, &ids);
    if (count < 0) {
        append_format(text, "/proc/self/task: %s\n", error_text(errno));
    }
    else {
        append_string(text, "\nOther threads of the process, as the kernel sees them:\n");
    }
    for (ssize_t i = 0; i < count; i++) {
        append_string(text, "  ");
        append_kernel_state(text, ids[i]);
        append_string(text, "\n");
    }
    free(ids);
}

/* Appends why the stacks are not all that they should be. */
static void
append_note(struct text *text, const struct stacks *stacks)
{
    append_bytes(text, stacks->note.bytes, stacks->note.length);
    append_string(text, stacks->note.length > 0 ? "\n" : "");
}

/* Appends all threads: headers of those with the same stack, and that once. */
DETACHED static void
append_threads(struct text *text, struct stacks *stacks)
{
    group_threads(stacks);
    for (size_t i = 0; i < stacks->thread_count; i++) {
        const struct thread_stack *thread = &stacks->threads[i];
        if (thread->is_shown && thread->group == i) {
            append_headers(text, stacks, i);
            append_frames(text, stacks, thread->first, thread->count);
        }
    }
}

DETACHED static void
append_dump(struct text *text, struct stacks *stacks)
{
    append_note(text, stacks);
    append_threads(text, stacks);
    if (stacks->is_frozen) {
        append_other_threads(text, stacks);
    }
    append_string(text, "#############################################\n\n\n");
}

/* ---- Who gets them ------------------------------------------------------------------- */

/* How stacks are written: as the dump, or as JSON. */
struct form {
    void (*append)(struct text *text, struct stacks *stacks);
};

static const struct form dump_form = {append_dump};

/* Appends all stacks of a process whose interpreter does not answer. */
DETACHED static void
append_snapshot(struct text *text, const struct form *form)
{
    struct stacks stacks = {.is_frozen = true};
    look_at_copy(&stacks);
    form->append(text, &stacks);
    free_stacks(&stacks);
    take_spare_back();
}

/* Appends all stacks and stays detached: what follows needs the GIL no more. Where there is none
 * the frames of the others run on while one walks them: a frozen copy is looked at instead. Returns
 * what to reattach(). Where the text has failed there is an exception, or there was no memory for
 * it. free_stacks() when attached again. */
DETACHES static PyThreadState *
detach_with_stacks(struct text *text, const struct form *form, struct stacks *stacks)
{
    if (!HAS_GIL) {
        PyThreadState *tstate = detach();
        append_snapshot(text, form);
        return tstate;
    }
    if (look_around(stacks) < 0) {
        text->failed = true;
        return detach();
    }
    PyThreadState *tstate = detach_with_sources(stacks);
    form->append(text, stacks);
    text->failed = text->failed || stacks->failed;
    return tstate;
}

/* The same for who stays attached. Returns 0, or -1 with an exception. */
ATTACHED static int
append_stacks(struct text *text, const struct form *form)
{
    struct stacks stacks = {.is_frozen = false};
    reattach(detach_with_stacks(text, form, &stacks));
    free_stacks(&stacks);
    if (text->failed && !PyErr_Occurred()) {
        PyErr_NoMemory();
    }
    return text->failed ? -1 : 0;
}

/* Looks at all threads, for who asks for some. Returns 0, or -1 with an exception; close_stacks()
 * either way. */
ATTACHED static int
open_stacks(struct stacks *stacks)
{
    if (HAS_GIL) {
        return look_at_threads(stacks);
    }
    PyThreadState *tstate = detach();
    look_at_copy(stacks);
    take_spare_back();
    reattach(tstate);
    return 0;
}

ATTACHED static void
close_stacks(struct stacks *stacks)
{
    free_stacks(stacks);
}

/* Describes frames and appends them. Returns 0, or -1 with an exception. */
ATTACHED static int
describe_frames(struct text *text, struct stacks *stacks, size_t first, size_t count)
{
    for (size_t i = first; i < first + count; i++) {
        describe_position(stacks, stacks->frames[i]);
    }
    reattach(detach_with_sources(stacks));
    append_frames(text, stacks, first, count);
    if (text->failed || (stacks->failed && !stacks->is_frozen)) {
        PyErr_NoMemory();
        return -1;
    }
    return 0;
}

/* Appends the stack of one thread, outermost frame first; nothing for one that is not there.
 * Returns 0, or -1 with an exception. */
ATTACHED static int
append_stack_of(struct text *text, struct stacks *stacks, unsigned long ident)
{
    const struct thread_stack *thread = find_thread(stacks, ident);
    append_note(text, stacks);
    return thread == NULL ? 0
                          : describe_frames(text, stacks, thread->first, thread->count);
}

/* Appends the stack that ends with this frame, which stands still: a greenlet's, say. Returns 0, or
 * -1 with an exception. */
ATTACHED static int
append_stack_from(struct text *text, struct stacks *stacks, PyObject *frame)
{
    const size_t first = stacks->frame_count;
    const size_t count = record_stack(stacks, frame);
    return describe_frames(text, stacks, first, count);
}

/* The dump as a new str, or NULL with an exception. */
ATTACHED static PyObject *
make_dump(void)
{
    struct text dump = {0};
    PyObject *text = NULL; /* new, handed to the caller */
    if (append_stacks(&dump, &dump_form) == 0) {
        text =
            PyUnicode_DecodeUTF8(dump.bytes, (Py_ssize_t)dump.length, "backslashreplace");
    }
    free_text(&dump);
    return text;
}

#endif /* MANHOLE_STACKS_DUMP_C */
