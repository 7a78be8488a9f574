/* Sources: lines of source files, read without Python.
 * Runs on:  any native thread, DETACHED where files are read.
 * Touches:  the source files that frames name, read; a thread of its own for a while.
 *
 * A frame is easier to recognize by its line than by its number, but Python may be stuck, and
 * linecache with it; and what a thread does is told before it goes on. So the files are read here,
 * once a dump and up to the last line that a frame is at; those lines alone are kept. Where
 * that is not what Python sees (another encoding, a lone CR, no such file) and Python answers,
 * linecache is asked: see the room look.
 *
 * A name can be anything: a FIFO, a terminal, a file of gigabytes. Only regular files are read, up
 * to MAX_SOURCE, and opened so that it neither waits nor becomes the controlling terminal.
 *
 * The file system may be dead, and then open() does not return, whatever its flags: a server of NFS
 * that is gone, which may be why the process hangs. So a thread of its own reads, and is waited for
 * SOURCES_PATIENCE_S; what it has by then is taken, and the dump names the other files. What comes
 * later is thrown away: the frames are out, and such a file system is back after minutes, if at
 * all, when its lines would be printed into whatever the client does then, and --stacks would not
 * end before. The next dump has them.
 *
 * A file that was changed after the process began may have other lines than those that run: its age
 * is compared, and told. A forked child runs what its parent has read, so the parent's beginning
 * counts where that has had a manhole.
 */
#ifndef MANHOLE_STACKS_SOURCES_C
#define MANHOLE_STACKS_SOURCES_C

#include "../base/compat.c"
#include "../base/state.c"
#include "../base/locks.c"
#include "../base/basics.c"

enum {
    /* Bytes of a source file that lines are read from. */
    MAX_SOURCE = 4 * 1024 * 1024,
    /* So many at a time. */
    PIECE_SIZE = 16 * 1024,
    /* Until all files are read, which is 1 ms as a rule. Those behind one that cannot be read go
     * without their lines, too. Not hang_timeout, which may be 0. */
    SOURCES_PATIENCE_S = 1,
    /* By so much may a file seem newer than who has read it: clocks are rounded. */
    CLOCK_SLACK_S = 1,
};

/* ---- Pieces of text ------------------------------------------------------------------ */

/* A piece of text that somebody else owns. */
struct slice {
    const char *bytes;
    size_t length;
};

/* Takes a line, without its newline, off the front of rest. Returns false at the end. */
static bool
next_line(struct slice *rest, struct slice *line)
{
    if (rest->length == 0) {
        return false;
    }
    const char *newline = memchr(rest->bytes, '\n', rest->length);
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

/* Room for one more element of an array, behind so many. Returns where it is then; NULL without
 * memory: it is where it was. */
static void *
with_room(void *array, size_t count, size_t *capacity, size_t size)
{
    if (count < *capacity) {
        return array;
    }
    size_t more = *capacity == 0 ? 8 : *capacity * 2;
    void *grown = realloc(array, more * size);
    if (grown != NULL) {
        *capacity = more;
    }
    return grown;
}

/* ---- Files --------------------------------------------------------------------------- */

/* A line that some frame is at. */
struct source_line {
    long number;
    struct text text; /* owned, with the blanks around it */
};

struct source {
    char *path;                /* owned */
    struct source_line *lines; /* owned: those that are wanted, by number */
    size_t line_count;
    size_t line_capacity;
    bool loaded;          /* what is wanted, or tried to */
    bool is_newer;        /* than the process */
    bool is_special;      /* no regular file: to read it may never end */
    bool python_is_asked; /* linecache may have what the file system has not */
    size_t position; /* index + 1 of a code position in this file; 0: Python has none */
};

/* Source files. One is read again when more lines of it are wanted. */
struct sources {
    struct source *files; /* owned */
    size_t count;
    size_t capacity;
};

/* When the process began, in seconds of the wall clock; 0: not known. */
static _Atomic int64_t process_began_s;

/* At install, in the first process that has a manhole. */
static void
note_process_start(void)
{
    enum { BEHIND_STATE = 19 }; /* fields of /proc/self/stat, up to starttime */
    char stat[1024];
    struct timespec boot = {0};
    struct timespec now = {0};
    OWNED_FD int fd = open("/proc/self/stat", O_RDONLY | O_CLOEXEC);
    ssize_t length = fd < 0 ? -1 : read(fd, stat, sizeof(stat) - 1);
    stat[length < 0 ? 0 : length] = '\0';

    const char *field = strrchr(stat, ')');
    for (int i = 0; i <= BEHIND_STATE && field != NULL; i++) {
        field = strchr(field + 1, ' ');
    }
    const int64_t ticks = sysconf(_SC_CLK_TCK);
    if (field == NULL || ticks <= 0 || atomic_load(&process_began_s) != 0) {
        return;
    }
    (void)clock_gettime(CLOCK_BOOTTIME, &boot);
    (void)clock_gettime(CLOCK_REALTIME, &now);
    atomic_store(&process_began_s,
                 now.tv_sec - boot.tv_sec + strtoll(field, NULL, 10) / ticks);
}

static bool
is_newer_than_process(const struct stat *file)
{
    const int64_t began_s = atomic_load(&process_began_s);
    return began_s != 0 && file->st_mtim.tv_sec > began_s + CLOCK_SLACK_S;
}

/* Returns the entry of this file, a new one if there is none yet; NULL when there is no memory. It
 * stays where it is until the next is added. */
static struct source *
add_source(struct sources *sources, const char *path)
{
    for (size_t i = 0; i < sources->count; i++) {
        if (strcmp(sources->files[i].path, path) == 0) {
            return &sources->files[i];
        }
    }

    struct source *files =
        with_room(sources->files, sources->count, &sources->capacity, sizeof(*files));
    if (files == NULL) {
        return NULL;
    }
    sources->files = files;

    struct source *source = &files[sources->count];
    *source = (struct source){.path = strdup(path)};
    if (source->path == NULL) {
        return NULL;
    }
    sources->count++;
    return source;
}

/* Has a line read, too; without memory it is not. */
static void
want_line(struct source *source, long number)
{
    size_t i = source->line_count;
    while (i > 0 && source->lines[i - 1].number > number) {
        i--;
    }
    if (number < 1 || (i > 0 && source->lines[i - 1].number == number)) {
        return;
    }

    struct source_line *lines = with_room(source->lines, source->line_count,
                                          &source->line_capacity, sizeof(*lines));
    if (lines != NULL) {
        source->lines = lines;
        memmove(&lines[i + 1], &lines[i], (source->line_count - i) * sizeof(*lines));
        lines[i] = (struct source_line){.number = number};
        source->line_count++;
        source->loaded = false;
    }
}

/* A wanted line without blanks around it; empty when there is none. */
static struct slice
source_line(const struct source *source, long number)
{
    /* Of UTF-8; some editors begin a file with it. */
    static const char mark[] = "\xef\xbb\xbf";
    struct slice line = {NULL, 0};
    for (size_t i = 0; i < source->line_count; i++) {
        const struct text *text = &source->lines[i].text;
        if (source->lines[i].number == number && !text->failed) {
            line = (struct slice){text->bytes, text->length};
        }
    }
    if (number == 1 && starts_with(&line, mark)) {
        line.bytes += sizeof(mark) - 1;
        line.length -= sizeof(mark) - 1;
    }
    while (line.length > 0 && strchr(" \t\r\f", line.bytes[line.length - 1]) != NULL) {
        line.length--;
    }
    while (line.length > 0 && strchr(" \t\f", line.bytes[0]) != NULL) {
        line.bytes++;
        line.length--;
    }
    return line;
}

static void
forget_lines(struct source *source)
{
    for (size_t i = 0; i < source->line_count; i++) {
        free_text(&source->lines[i].text);
    }
}

static void
free_sources(struct sources *sources)
{
    for (size_t i = 0; i < sources->count; i++) {
        forget_lines(&sources->files[i]);
        free(sources->files[i].lines);
        free(sources->files[i].path);
    }
    free(sources->files);
    *sources = (struct sources){0};
}

/* ---- Reading ------------------------------------------------------------------------- */

/* Whether a line names an encoding other than UTF-8, as PEP 263 has it: `coding[:=]\s*([-\w.]+)` in
 * a comment. */
static bool
names_other_encoding(struct slice line)
{
    static const char word[] = "coding";
    char comment[200] = ""; /* of a line that is longer, so much */
    const char *name = comment;
    memcpy(comment, line.bytes,
           line.length < sizeof(comment) ? line.length : sizeof(comment) - 1);
    if (comment[strspn(comment, " \t\f")] != '#') {
        return false;
    }

    while ((name = strstr(name, word)) != NULL) {
        name += sizeof(word) - 1;
        if (*name == ':' || *name == '=') {
            name += 1 + strspn(name + 1, " \t");
            return strncasecmp(name, "utf-8", 5) != 0 &&
                   strncasecmp(name, "utf_8", 5) != 0 &&
                   strncasecmp(name, "utf8", 4) != 0;
        }
    }
    return false;
}

/* How far a file is read. */
struct scan {
    long number;      /* of the line that comes next, or goes on */
    size_t next;      /* index of the first wanted line that is not whole */
    bool is_after_cr; /* which may be half a line's end */
    /* In another encoding, or with a lone CR, which ends a line for Python. */
    bool is_for_python;
};

/* Whether one of the first two lines names another encoding. */
static bool
begins_with_other_encoding(struct slice rest)
{
    struct slice line = {NULL, 0};
    bool is_named = false;
    for (int i = 0; i < 2 && next_line(&rest, &line); i++) {
        is_named = is_named || names_other_encoding(line);
    }
    return is_named;
}

/* Whether there is a CR that ends no CR LF. */
static bool
has_lone_cr(struct scan *scan, struct slice piece)
{
    const char *const end = piece.bytes + piece.length;
    const char *cr = memchr(piece.bytes, '\r', piece.length);
    bool is_lone = scan->is_after_cr && piece.bytes[0] != '\n';
    scan->is_after_cr = piece.bytes[piece.length - 1] == '\r';
    while (cr != NULL && cr + 1 < end && !is_lone) {
        is_lone = cr[1] != '\n';
        cr = memchr(cr + 1, '\r', (size_t)(end - cr) - 1);
    }
    return is_lone;
}

/* Takes the wanted lines out of the next piece of a file. */
static void
scan_piece(struct source *source, struct scan *scan, struct slice piece)
{
    while (piece.length > 0 && scan->next < source->line_count) {
        struct source_line *wanted = &source->lines[scan->next];
        const char *newline = memchr(piece.bytes, '\n', piece.length);
        const size_t length =
            newline == NULL ? piece.length : (size_t)(newline - piece.bytes);
        if (scan->number == wanted->number) {
            append_bytes(&wanted->text, piece.bytes, length);
            scan->next += newline != NULL;
        }
        scan->number += newline != NULL;
        piece.bytes += length + (newline != NULL);
        piece.length -= length + (newline != NULL);
    }
}

/* Reads a file up to the last line that is wanted, and no more than its size: those of /proc have
 * none, and some no end. Returns whether Python would see other lines. */
DETACHED static bool
scan_file(struct source *source, int fd, size_t size)
{
    char bytes[PIECE_SIZE];
    struct scan scan = {.number = 1};
    size_t done = 0;
    ssize_t got = 1;
    while (scan.next < source->line_count && got > 0) {
        const size_t left = size - done;
        got = read(fd, bytes, left < sizeof(bytes) ? left : sizeof(bytes));
        if (got > 0) {
            const struct slice piece = {bytes, (size_t)got};
            scan.is_for_python = scan.is_for_python || has_lone_cr(&scan, piece) ||
                                 (done == 0 && begins_with_other_encoding(piece));
            scan_piece(source, &scan, piece);
            done += piece.length;
        }
    }
    return scan.is_for_python || (got == 0 && scan.is_after_cr);
}

/* Reads what is wanted of a regular file of a reasonable size. */
DETACHED static void
load_source(struct source *source)
{
    struct stat status = {0};
    OWNED_FD int fd = open(source->path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
    const bool is_open = fd >= 0 && fstat(fd, &status) == 0;
    const bool is_regular = is_open && S_ISREG(status.st_mode);
    const bool is_read = is_regular && status.st_size <= MAX_SOURCE;
    forget_lines(source);
    source->is_special = is_open && !is_regular;
    source->is_newer = is_regular && is_newer_than_process(&status);
    source->python_is_asked =
        is_read ? scan_file(source, fd, (size_t)status.st_size) : !source->is_special;
}

/* What is called <string> is in no file. */
static bool
is_in_file(const struct source *source)
{
    const size_t length = strlen(source->path);
    return source->path[0] != '<' || source->path[length - 1] != '>';
}

static bool
is_to_be_read(const struct source *source)
{
    return !source->loaded && is_in_file(source);
}

static bool
is_any_to_be_read(const struct sources *sources)
{
    size_t i = 0;
    while (i < sources->count && !is_to_be_read(&sources->files[i])) {
        i++;
    }
    return i < sources->count;
}

/* Reads what is wanted, whatever that takes. */
DETACHED static void
load_sources(struct sources *sources)
{
    for (size_t i = 0; i < sources->count; i++) {
        if (is_to_be_read(&sources->files[i])) {
            load_source(&sources->files[i]);
            sources->files[i].loaded = true;
        }
    }
}

/* ---- A thread that reads ------------------------------------------------------------- */

/* The process in which a reader is stuck, with nobody waiting for it: as long as it is there are no
 * others, or each look would leave one. 0: none is. In a forked child there is no such thread. */
static _Atomic pid_t stuck_reader_of;

/* Files that a thread of its own reads. Whoever is the last to need it frees it. */
struct reading {
    pthread_t thread;
    bool is_threaded;     /* else no thread was to be had */
    sem_t may_open;       /* there may be a single descriptor for all that is read */
    pthread_mutex_t lock; /* of all below */
    pthread_cond_t news;
    struct sources sources; /* those that are not loaded are the reader's, without it */
    bool is_done;
    bool is_abandoned; /* nobody waits for it any more */
};

static void
free_reading(struct reading *reading)
{
    free_sources(&reading->sources);
    (void)sem_destroy(&reading->may_open);
    (void)pthread_cond_destroy(&reading->news);
    (void)pthread_mutex_destroy(&reading->lock);
    free(reading);
}

/* Body of the thread. */
DETACHED static void *
reading_main(void *argument)
{
    struct reading *reading = argument;
    const size_t count = reading->sources.count;
    bool is_abandoned = false;
    while (sem_wait(&reading->may_open) < 0) { /* a signal came */
    }
    for (size_t i = 0; i < count && !is_abandoned; i++) {
        load_source(&reading->sources.files[i]); /* may return never */
        lock_leaf(&reading->lock);
        reading->sources.files[i].loaded = true;
        is_abandoned = reading->is_abandoned;
        unlock(&reading->lock);
    }

    lock_leaf(&reading->lock);
    reading->is_done = true;
    is_abandoned = reading->is_abandoned;
    (void)pthread_cond_signal(&reading->news);
    unlock(&reading->lock);
    if (is_abandoned) {
        atomic_store(&stuck_reader_of, 0);
        free_reading(reading);
    }
    return NULL;
}

/* Adds a file, as yet without its lines. */
static void
add_wanted(struct sources *sources, const struct source *wanted)
{
    struct source *source = add_source(sources, wanted->path);
    for (size_t i = 0; i < wanted->line_count && source != NULL; i++) {
        want_line(source, wanted->lines[i].number);
    }
}

/* Returns NULL without memory. */
static struct reading *
make_reading(const struct sources *sources)
{
    struct reading *reading = calloc(1, sizeof(*reading)); /* owned, for the caller */
    if (reading == NULL) {
        return NULL;
    }
    pthread_condattr_t timed;
    (void)pthread_condattr_init(&timed);
    (void)pthread_condattr_setclock(&timed, CLOCK_MONOTONIC);
    (void)pthread_mutex_init(&reading->lock, NULL);
    (void)pthread_cond_init(&reading->news, &timed);
    (void)pthread_condattr_destroy(&timed);
    (void)sem_init(&reading->may_open, 0, 0);
    for (size_t i = 0; i < sources->count; i++) {
        if (is_to_be_read(&sources->files[i])) {
            add_wanted(&reading->sources, &sources->files[i]);
        }
    }
    return reading;
}

/* Sends out a thread for what is wanted, which opens nothing as yet; none while an earlier one is
 * stuck. Returns what end_reading() takes. */
static struct reading *
begin_reading(const struct sources *sources)
{
    struct reading *reading = NULL; /* owned, for the caller */
    if (is_any_to_be_read(sources) && atomic_load(&stuck_reader_of) != getpid()) {
        reading = make_reading(sources);
    }
    if (reading != NULL) {
        reading->is_threaded =
            start_thread(&reading->thread, reading_main, reading, SMALL_STACK_SIZE) == 0;
    }
    return reading;
}

/* Takes the files that are there, under the lock. */
static void
take_files(struct sources *sources, struct reading *reading)
{
    for (size_t i = 0; i < reading->sources.count; i++) {
        struct source *theirs = &reading->sources.files[i];
        struct source *ours = theirs->loaded ? add_source(sources, theirs->path) : NULL;
        if (ours != NULL) {
            const struct source mine = *ours;
            *ours = *theirs;
            *theirs = mine;
            theirs->path = ours->path;
            ours->path = mine.path;
            ours->position = mine.position;
        }
    }
}

/* Has the thread read, and waits for it, but not for long. */
DETACHED static void
await_reader(struct sources *sources, struct reading *reading)
{
    const pthread_t thread = reading->thread;
    struct timespec deadline;
    (void)clock_gettime(CLOCK_MONOTONIC, &deadline);
    deadline.tv_sec += SOURCES_PATIENCE_S;
    (void)sem_post(&reading->may_open);
    lock_leaf(&reading->lock);
    while (!reading->is_done &&
           pthread_cond_timedwait(&reading->news, &reading->lock, &deadline) == 0) {
    }
    take_files(sources, reading);
    const bool is_done = reading->is_done;
    reading->is_abandoned = !is_done;
    if (!is_done) { /* under the lock: before it can be over */
        atomic_store(&stuck_reader_of, getpid());
    }
    unlock(&reading->lock);

    if (is_done) { /* it is not to be among the threads that are told */
        (void)pthread_join(thread, NULL);
        free_reading(reading);
    }
    else {
        (void)pthread_detach(thread);
    }
}

/* Reads what begin_reading() was given, as far as that is soon done, or there is no thread. Returns
 * whether Python is to be asked for other lines of some. */
DETACHED static bool
end_reading(struct sources *sources, struct reading *reading /* or NULL */)
{
    bool is_asked = false;
    if (reading != NULL && reading->is_threaded) {
        await_reader(sources, reading);
    }
    else if (reading != NULL) {
        free_reading(reading);
        load_sources(sources);
    }
    for (size_t i = 0; i < sources->count; i++) {
        const struct source *source = &sources->files[i];
        is_asked = is_asked || (source->python_is_asked && source->position != 0);
    }
    return is_asked;
}

#endif /* MANHOLE_STACKS_SOURCES_C */
