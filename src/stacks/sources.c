/* Sources: lines of source files, read without Python.
 * Runs on:  any native thread, DETACHED.
 * Touches:  the source files that frames name, mapped for as long as a dump is written.
 */
#ifndef MANHOLE_STACKS_SOURCES_C
#define MANHOLE_STACKS_SOURCES_C

#include "../base/compat.c"
#include "../base/state.c"
#include "../base/basics.c"
#include "copy.c"
#include "copied.c"

enum {
    /* Bytes of a source file that a snapshot reads lines from. */
    MAX_SOURCE = 4 * 1024 * 1024,
};

struct source {
    char *path;  /* owned */
    char *bytes; /* owned, of map_pages(); NULL: not to be had */
    size_t size;
    size_t length;       /* what of that is text */
    struct slice *lines; /* owned, of map_pages(); may be NULL */
    size_t line_count;
    bool loaded;     /* or tried to */
    bool is_special; /* no regular file: to read it may never end */
    /* Of a look: */
    bool seen;            /* the rest is known */
    bool python_is_asked; /* linecache may have what the file system has not */
    size_t frame;         /* one of those that are in this file */
};

/* Source files, each read once a dump. */
struct sources {
    struct source *files; /* owned */
    size_t count;
    size_t capacity;
};

/* Memory that goes back to the system at once: of what free() gets, each thread's arena keeps some.
 * Returns NULL when there is none. */
static void *
map_pages(size_t size)
{
    void *pages =
        mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    return pages == MAP_FAILED ? NULL : pages;
}

/* Makes room for the text. */
static void
map_bytes(struct source *source, size_t size)
{
    source->bytes = map_pages(size);
    source->size = size;
}

/* Reads a regular file of a reasonable size whole. */
DETACHED static void
read_file(struct source *source)
{
    struct stat status = {0};
    int fd = open(source->path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
    source->is_special = fd >= 0 && fstat(fd, &status) == 0 && !S_ISREG(status.st_mode);
    if (fd >= 0 && S_ISREG(status.st_mode) && status.st_size <= MAX_SOURCE) {
        map_bytes(source, (size_t)status.st_size + 1);
    }
    while (source->bytes != NULL && source->length < (size_t)status.st_size) {
        ssize_t got = read(fd, source->bytes + source->length,
                           (size_t)status.st_size - source->length);
        if (got <= 0) {
            break;
        }
        source->length += (size_t)got;
    }
    if (fd >= 0) {
        (void)close(fd);
    }
}

/* Finds the lines. */
static void
index_lines(struct source *source)
{
    static const char mark[] =
        "\xef\xbb\xbf"; /* of UTF-8; some editors begin a file with it */
    struct slice rest = {source->bytes, source->bytes == NULL ? 0 : source->length};
    struct slice line = {NULL, 0};
    size_t count = 0;
    if (starts_with(&rest, mark)) {
        rest.bytes += sizeof(mark) - 1;
        rest.length -= sizeof(mark) - 1;
    }
    for (struct slice each = rest; next_line(&each, &line); count++) {
    }
    if (count > 0) {
        source->lines = map_pages(count * sizeof(*source->lines));
    }
    while (source->lines != NULL && next_line(&rest, &line)) {
        source->lines[source->line_count++] = line;
    }
}

DETACHED static void
load_source(struct source *source)
{
    source->loaded = true;
    read_file(source);
    index_lines(source);
}

static void
forget_lines(struct source *source)
{
    if (source->bytes != NULL) {
        (void)munmap(source->bytes, source->size);
    }
    if (source->lines != NULL) {
        (void)munmap(source->lines, source->line_count * sizeof(*source->lines));
    }
    source->bytes = NULL;
    source->length = 0;
    source->lines = NULL;
    source->line_count = 0;
}

/* Returns the entry of this file, a new one if there is none yet; NULL when there is no memory. It
 * stays where it is until the next is added. */
static struct source *
add_source(struct sources *sources, const char *path)
{
    struct source *source = NULL;
    for (size_t i = 0; i < sources->count; i++) {
        if (strcmp(sources->files[i].path, path) == 0) {
            return &sources->files[i];
        }
    }
    if (sources->count == sources->capacity) {
        size_t capacity = sources->capacity == 0 ? 16 : sources->capacity * 2;
        struct source *grown = realloc(sources->files, capacity * sizeof(*grown));
        if (grown == NULL) {
            return NULL;
        }
        sources->files = grown;
        sources->capacity = capacity;
    }
    source = &sources->files[sources->count];
    *source = (struct source){.path = strdup(path)};
    if (source->path == NULL) {
        return NULL;
    }
    sources->count++;
    return source;
}

static void
free_sources(struct sources *sources)
{
    for (size_t i = 0; i < sources->count; i++) {
        forget_lines(&sources->files[i]);
        free(sources->files[i].path);
    }
    free(sources->files);
    *sources = (struct sources){0};
}

/* The number-th line of a source, without blanks around it; empty when there is none. */
static struct slice
source_line(const struct source *source, long number)
{
    struct slice line = {NULL, 0};
    if (number < 1 || (unsigned long)number > source->line_count) {
        return line;
    }
    line = source->lines[number - 1];
    while (line.length > 0 && strchr(" \t\r\f", line.bytes[line.length - 1]) != NULL) {
        line.length--;
    }
    while (line.length > 0 && strchr(" \t\f", line.bytes[0]) != NULL) {
        line.bytes++;
        line.length--;
    }
    return line;
}

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
            unsigned long character = 0;
            memcpy(number, slice.bytes + 2, digits);
            character = strtoul(number, &end, 16);
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

#endif /* MANHOLE_STACKS_SOURCES_C */
