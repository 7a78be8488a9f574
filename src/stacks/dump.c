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
 * wait is a screen and not fifty thousand lines. Scripts look for the headers and the lines with
 * frames, each byte of them; below each header stands what is known of that thread:
 *
 *     ######### ProcessID=4711, ThreadID=139849 #########
 *     Thread: Worker-1, TID 4712, sleeping in futex
 *     ######### ProcessID=4711, ThreadID=139850 #########
 *     Thread: Worker-2, TID 4713, sleeping in futex
 *     2 threads with the same stack:
 *     File: "shop.py", line 2, in Till.sell
 *       take(apple)
 *     #############################################
 *
 * A function has its class where Python tells that; not the functions around it, for it is looked
 * for by its name. Who has a dump made of a process that answers has the GIL for it, and no other
 * thread: "holds the GIL" is said of one that is shown, the calling one. A frozen copy tells who
 * has it while Python does not answer, and threads that Python knows nothing of come at its end.
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

/* "Till.sell" of what Python calls "main.<locals>.Till.sell"; "sell" where it has no such name. */
static struct slice
name_with_class(const struct shown_frame *frame)
{
    static const struct slice mark = {"<locals>.", 9};
    struct slice name = frame->qualname;
    const char *found = name.bytes == NULL ? NULL : find_last(name, mark);
    if (found != NULL) {
        found += mark.length;
        name.length -= (size_t)(found - name.bytes);
        name.bytes = found;
    }
    return name.length > 0 ? name : frame->function;
}

static void
append_frame(struct text *text, const struct shown_frame *frame)
{
    if (frame->path != NULL) {
        append_string(text, "File: \"");
        append_string(text, frame->path);
        append_format(text, "\", line %ld, in ", frame->line);
    }
    append_slice(text, name_with_class(frame));
    append_string(text, "\n");
    if (frame->source.length > 0) {
        append_string(text, "  ");
        append_slice(text, frame->source);
        append_string(text, "\n");
    }
}

/* Appends a thread's frames, outermost first. */
static void
append_frames(struct text *text, struct stacks *stacks, size_t first, size_t count)
{
    for (; count > 0; count--) {
        append_written(text, stacks, first + count - 1, append_frame);
    }
}

/* Appends a line that says what thread it is: "Thread: Worker, TID 7, sleeping in read". One
 * without a name has what the kernel calls it: "Thread: TID 7 (shop), running"; one of another
 * interpreter than the manhole's also which. */
static void
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
        append_kernel_state(text, thread->native_id, &thread->kernel);
        before = ", ";
    }
    if (thread->holds_gil == ANSWER_YES) {
        append_format(text, "%sholds the GIL", before);
        before = ", ";
    }
    append_string(text, before == intro ? "" : "\n");
}

/* Appends the headers of all threads of a group. */
static void
append_headers(struct text *text, const struct stacks *stacks, size_t group)
{
    size_t count = 0;
    size_t i = group;
    append_string(text, "\n");
    do {
        append_format(text, "######### ProcessID=%ld, ThreadID=%lu #########\n",
                      (long)getpid(), stacks->threads[i].ident);
        append_thread_facts(text, &stacks->threads[i]);
        i = stacks->threads[i].next;
        count++;
    } while (i != 0);
    if (count > 1) {
        append_format(text, "%zu threads with the same stack:\n", count);
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
        const struct kernel_state kernel = read_kernel_state(ids[i]);
        append_kernel_state(text, ids[i], &kernel);
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

static bool
is_newer(const struct source *source)
{
    return source->is_newer;
}

/* Appends a line that names up to three of the files that are so, if there are any. */
static void
append_files(struct text *text, const struct stacks *stacks,
             bool is_so(const struct source *source), const char *line)
{
    enum { NAMED = 3 };
    size_t count = 0;
    for (size_t i = 0; i < stacks->sources.count; i++) {
        const struct source *source = &stacks->sources.files[i];
        if (is_so(source)) {
            append_string(text, count == 0 ? line : count < NAMED ? ", " : "");
            append_string(text, count < NAMED ? source->path : "");
            count++;
        }
    }
    if (count > NAMED) {
        append_format(text, " and %zu more", count - NAMED);
    }
    append_string(text, count > 0 ? "\n" : "");
}

/* Appends which source lines are missing, or may be others than those that run. */
static void
append_source_notes(struct text *text, const struct stacks *stacks)
{
    append_files(text, stacks, is_to_be_read,
                 "Without lines, for a file system does not answer: ");
    append_files(text, stacks, is_newer,
                 "Newer than the process, so their lines may not be what runs: ");
}

/* Appends all threads: headers of those with the same stack, and that once. */
static void
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
    append_source_notes(text, stacks);
    append_bytes(text, stacks->tasks.bytes, stacks->tasks.length);
    append_string(text, "#############################################\n\n\n");
}

/* ---- Who gets them ------------------------------------------------------------------- */

/* How stacks are written: as the dump, or as JSON; and what is read of tasks for that. */
struct form {
    void (*append)(struct text *text, struct stacks *stacks);
    void (*add_tasks)(struct stacks *stacks); /* ATTACHED; or NULL: nothing */
};

static const struct form dump_form = {.append = append_dump};

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
    if (form->add_tasks != NULL) {
        form->add_tasks(stacks);
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
