/* Model: the stacks of a process: threads, their frames, and what is known of each.
 * Runs on:  any thread. Only memory, but for read_beside_python(), DETACHED; nothing here fails
 *           otherwise than for want of it.
 *
 * There are two ways to fill it, and whoever writes it need not know which it was:
 *
 *     look.c    asks the living interpreter, ATTACHED      \   struct   /  dump.c  text for people
 *     copied.c  reads what a frozen copy of it has written /   stacks   \  json.c  for programs
 *
 * A frame is no more than the index of a code position, for the same function stands at the same
 * line in many threads: a thousand workers that wait have a few dozen positions among them. So a
 * look at them is quick, each position is described once, and two threads have the same stack when
 * their indexes are the same.
 *
 * What tells two positions apart depends on who fills: the code object and the instruction, or the
 * line in faulthandler's words. Two calls in one line are two positions then, and look alike.
 *
 * Without memory it stays as complete as it is, and says so in `failed`.
 */
#ifndef MANHOLE_STACKS_MODEL_C
#define MANHOLE_STACKS_MODEL_C

#include "../base/compat.c"
#include "../base/state.c"
#include "../base/basics.c"
#include "kernel.c"
#include "sources.c"

enum {
    /* Of the tables that find a code position, and a stack. */
    HASH_ROWS = 512,
    OWN_INTERPRETER = -1,
};

static const uint64_t HASH_PRIME = 0x100000001b3U;

/* In which a session's thread serves its client, from 3.15 on. */
#define SESSION_FUNCTION "serve_client"

/* What may be known or not. */
enum answer {
    ANSWER_NO,
    ANSWER_YES,
    ANSWER_UNKNOWN,
};

/* What tells a code position from others. One of both is empty. */
struct position_key {
    PyCodeObject *code; /* owned by the position */
    int instruction;
    struct slice line; /* a copy's, in the copy's text */
};

/* Where in the code some frames are. */
struct code_position {
    struct position_key key;
    PyObject *
        globals; /* owned, of an attached look: they know the loader, which has the source */
    size_t next; /* index + 1 of one with the same hash */
    /* Described afterwards, which takes ten times as long as the look: */
    bool has_file; /* else it is shown in faulthandler's words: "..." */
    size_t source; /* index of its file */
    struct text function;
    struct text qualname; /* with what it is in; its bytes NULL: not known */
    long line;
    struct text written; /* as it goes out; empty: not written yet */
};

/* A thread, and what is known of it beside its stack: its facts. */
struct thread_stack {
    unsigned long ident;
    long long interpreter; /* its id; OWN_INTERPRETER: the manhole's */
    bool is_shown; /* else its facts alone are there, or it is one of ours that waits */
    size_t first;  /* index of the innermost frame */
    size_t count;
    size_t group; /* index of the first thread that has the same stack */
    size_t older; /* of such a first one: index + 1 of another with the same hash */
    size_t next;  /* index of the next thread of the group; 0: there is none */
    /* What threading and the kernel call it: */
    struct text name;        /* its bytes NULL: not known */
    unsigned long native_id; /* 0: not known */
    struct kernel_state kernel;
    enum answer holds_gil;
    enum answer daemon;
};

/* All of it. {0} is empty; free_stacks() makes it so again. */
struct stacks {
    struct thread_stack *threads; /* owned */
    size_t thread_count;
    size_t thread_capacity;
    size_t *frames; /* owned: indexes of positions; a thread's lie together */
    size_t frame_count;
    size_t frame_capacity;
    struct code_position *positions; /* owned */
    size_t position_count;
    size_t position_capacity;
    size_t latest[HASH_ROWS]; /* of each hash: index + 1 of the latest position */
    struct sources sources;
    bool is_frozen;      /* a frozen copy told it, whose text is here */
    struct text copy;    /* owned: what it wrote */
    struct text note;    /* owned: why that is not all, for people */
    struct text tasks;   /* owned: what is told of tasks, as it goes out */
    struct text *locals; /* owned: the variables of each frame, as they go out; or NULL */
    bool failed;         /* there was no memory for all */
};

/* Returns a new thread, whose frames come next; NULL without memory. It stays where it is until the
 * next is added. */
static struct thread_stack *
add_thread(struct stacks *stacks, unsigned long ident)
{
    struct thread_stack *threads = with_room(stacks->threads, stacks->thread_count,
                                             &stacks->thread_capacity, sizeof(*threads));
    if (threads == NULL) {
        stacks->failed = true;
        return NULL;
    }

    stacks->threads = threads;
    threads[stacks->thread_count] = (struct thread_stack){.ident = ident,
                                                          .interpreter = OWN_INTERPRETER,
                                                          .first = stacks->frame_count,
                                                          .daemon = ANSWER_UNKNOWN};
    return &threads[stacks->thread_count++];
}

static struct thread_stack *
find_thread(const struct stacks *stacks, unsigned long ident)
{
    for (size_t i = 0; i < stacks->thread_count; i++) {
        if (stacks->threads[i].ident == ident) {
            return &stacks->threads[i];
        }
    }
    return NULL;
}

/* Asks the kernel of all threads, at as much the same moment as can be. */
DETACHED static void
read_kernel_states(struct stacks *stacks)
{
    for (size_t i = 0; i < stacks->thread_count; i++) {
        struct thread_stack *thread = &stacks->threads[i];
        if (thread->native_id != 0) {
            thread->kernel = thread->name.length > 0
                                 ? read_named_state(thread->native_id)
                                 : read_kernel_state(thread->native_id);
        }
    }
}

/* Reads what Python need not be asked for: what the threads do, and lines of source. Returns
 * whether it is to be asked for other lines. */
DETACHED static bool
read_beside_python(struct stacks *stacks)
{
    struct reading *reading = begin_reading(&stacks->sources);
    read_kernel_states(stacks);
    return end_reading(&stacks->sources, reading);
}

/* The row of a key. Code objects lie 16 bytes apart at least, so their last bits tell nothing. */
static size_t
hash_key(const struct position_key *key)
{
    uint64_t hash = (((size_t)key->code >> 4) ^ (size_t)key->instruction) * HASH_PRIME;
    for (size_t i = 0; i < key->line.length; i++) {
        hash = (hash ^ (unsigned char)key->line.bytes[i]) * HASH_PRIME;
    }
    return hash % HASH_ROWS;
}

static bool
is_same_position(const struct position_key *one, const struct position_key *other)
{
    return one->code == other->code && one->instruction == other->instruction &&
           one->line.length == other->line.length &&
           (one->line.length == 0 ||
            memcmp(one->line.bytes, other->line.bytes, one->line.length) == 0);
}

/* The index of this position, a new one's if there is none yet; SIZE_MAX without memory. */
static size_t
find_position(struct stacks *stacks, const struct position_key *key)
{
    size_t *latest = &stacks->latest[hash_key(key)];
    for (size_t i = *latest; i != 0; i = stacks->positions[i - 1].next) {
        if (is_same_position(&stacks->positions[i - 1].key, key)) {
            return i - 1;
        }
    }

    struct code_position *positions =
        with_room(stacks->positions, stacks->position_count, &stacks->position_capacity,
                  sizeof(*positions));
    if (positions == NULL) {
        return SIZE_MAX;
    }
    stacks->positions = positions;
    positions[stacks->position_count] =
        (struct code_position){.key = *key, .next = *latest};
    *latest = ++stacks->position_count;
    return stacks->position_count - 1;
}

/* Adds the next frame outwards. Returns its position, which stays where it is until the next frame
 * is added; NULL without memory. */
static struct code_position *
add_frame(struct stacks *stacks, const struct position_key *key)
{
    size_t *frames = with_room(stacks->frames, stacks->frame_count,
                               &stacks->frame_capacity, sizeof(*frames));
    if (frames != NULL) {
        stacks->frames = frames;
    }
    size_t position = frames == NULL ? SIZE_MAX : find_position(stacks, key);
    if (position == SIZE_MAX) {
        stacks->failed = true;
        return NULL;
    }
    frames[stacks->frame_count++] = position;
    return &stacks->positions[position];
}

/* Says in which file, function and line a position is. Takes over what function holds. */
static void
describe_as(struct stacks *stacks, size_t index, const char *path, struct text function,
            long line)
{
    struct code_position *position = &stacks->positions[index];
    struct source *source = add_source(&stacks->sources, path);
    position->has_file = source != NULL;
    position->function = function;
    position->line = line;
    if (source == NULL) {
        stacks->failed = true;
        return;
    }
    position->source = (size_t)(source - stacks->sources.files);
    want_line(source, line);
}

/* A frame as it is shown. */
struct shown_frame {
    const char *path; /* NULL: there is a line of another form alone, in function */
    struct slice function;
    struct slice qualname; /* its bytes NULL: not known */
    long line;
    struct slice source; /* empty: not to be had */
};

static struct shown_frame
show_frame(const struct stacks *stacks, size_t frame)
{
    const struct code_position *position = &stacks->positions[stacks->frames[frame]];
    if (!position->has_file) {
        return (struct shown_frame){.function = position->key.line};
    }
    const struct source *source = &stacks->sources.files[position->source];
    return (struct shown_frame){
        .path = source->path,
        .function = {position->function.bytes, position->function.length},
        .qualname = {position->qualname.bytes, position->qualname.length},
        .line = position->line,
        .source = source_line(source, position->line),
    };
}

/* Hides the threads of sessions whose client has nothing running. They have a frame only so that
 * others do not stumble over them. For when all is described. */
static void
hide_sessions(struct stacks *stacks)
{
    for (size_t i = 0; i < stacks->thread_count; i++) {
        struct thread_stack *thread = &stacks->threads[i];
        if (thread->count != 1) {
            continue;
        }
        const struct shown_frame frame = show_frame(stacks, thread->first);
        thread->is_shown =
            thread->is_shown &&
            !(frame.path != NULL && strcmp(frame.path, "<manhole>") == 0 &&
              frame.function.length == strlen(SESSION_FUNCTION) &&
              memcmp(frame.function.bytes, SESSION_FUNCTION, frame.function.length) == 0);
    }
}

static bool
is_same_stack(const struct stacks *stacks, const struct thread_stack *one,
              const struct thread_stack *other)
{
    return one->count == other->count &&
           (one->count == 0 ||
            memcmp(&stacks->frames[one->first], &stacks->frames[other->first],
                   one->count * sizeof(*stacks->frames)) == 0);
}

/* Returns the row of a stack. */
static size_t
hash_stack(const struct stacks *stacks, const struct thread_stack *thread)
{
    uint64_t hash = 0;
    for (size_t i = thread->first; i < thread->first + thread->count; i++) {
        hash = (hash ^ stacks->frames[i]) * HASH_PRIME;
    }
    return (hash >> 32) % HASH_ROWS;
}

/* Returns the index of the first thread that has this one's stack, which may be itself. */
static size_t
find_group(struct stacks *stacks, size_t index, size_t *latest)
{
    struct thread_stack *thread = &stacks->threads[index];
    for (size_t i = *latest; i != 0; i = stacks->threads[i - 1].older) {
        if (is_same_stack(stacks, &stacks->threads[i - 1], thread)) {
            return i - 1;
        }
    }
    thread->older = *latest;
    *latest = index + 1;
    return index;
}

/* Finds the threads with the same stacks: a thousand may all wait in one, or each in its own. Where
 * variables are shown each is for itself. */
static void
group_threads(struct stacks *stacks)
{
    size_t latest[HASH_ROWS] = {0}; /* of each: index + 1 of the latest group's first */
    for (size_t i = 0; i < stacks->thread_count; i++) {
        struct thread_stack *thread = &stacks->threads[i];
        thread->group = thread->is_shown && stacks->locals == NULL
                            ? find_group(stacks, i, &latest[hash_stack(stacks, thread)])
                            : i;
    }
    /* Backwards, so that each group is in order. */
    for (size_t i = stacks->thread_count; i-- > 0;) {
        struct thread_stack *first = &stacks->threads[stacks->threads[i].group];
        if (first != &stacks->threads[i]) {
            stacks->threads[i].next = first->next;
            first->next = i;
        }
    }
}

/* Appends a frame as append_frame() writes it, the same for all of these stacks. Each position is
 * written once: threads of one kind share most of theirs. */
static void
append_written(struct text *text, struct stacks *stacks, size_t frame,
               void append_frame(struct text *text, const struct shown_frame *frame))
{
    struct code_position *position = &stacks->positions[stacks->frames[frame]];
    if (position->written.length == 0) {
        const struct shown_frame shown = show_frame(stacks, frame);
        append_frame(&position->written, &shown);
    }
    append_bytes(text, position->written.bytes, position->written.length);
    text->failed = text->failed || position->written.failed;
}

/* ATTACHED, if it was filled so. */
static void
free_stacks(struct stacks *stacks)
{
    for (size_t i = 0; i < stacks->thread_count; i++) {
        free_text(&stacks->threads[i].name);
    }
    for (size_t i = 0; i < stacks->position_count; i++) {
        Py_XDECREF(stacks->positions[i].key.code);
        Py_XDECREF(stacks->positions[i].globals);
        free_text(&stacks->positions[i].function);
        free_text(&stacks->positions[i].qualname);
        free_text(&stacks->positions[i].written);
    }
    for (size_t i = 0; stacks->locals != NULL && i < stacks->frame_count; i++) {
        free_text(&stacks->locals[i]);
    }
    free(stacks->locals);
    free(stacks->threads);
    free(stacks->frames);
    free(stacks->positions);
    free_sources(&stacks->sources);
    free_text(&stacks->copy);
    free_text(&stacks->note);
    free_text(&stacks->tasks);
    *stacks = (struct stacks){0};
}

#endif /* MANHOLE_STACKS_MODEL_C */
