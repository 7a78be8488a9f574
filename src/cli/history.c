/* History: what was typed at a terminal, for the next time. A line each, as readline keeps it; of a
 * block all lines but the last one end with a carriage return, too, as CPython's own prompt has it.
 *
 * Clients side by side append under a lock, a line in one write(), so their lines do not mix; who
 * finds the file too long when he starts keeps its last half, in place. To have no history is no
 * error: who wants none kept has a link to /dev/null there.
 */
#ifndef MANHOLE_CLI_HISTORY_C
#define MANHOLE_CLI_HISTORY_C

#include "terminal.c"

enum {
    HISTORY_ENTRY_SIZE = 64 * 1024, /* bytes; a longer one is not kept */
    HISTORY_SIZE = 1024 * 1024,     /* bytes; beyond, the older half is dropped */
};

static char history_path[PATH_MAX]; /* "": nothing is kept */

/* Returns it locked, or -1. */
static int
lock_history(int flags)
{
    const int all_flags = flags | O_CREAT | O_CLOEXEC | O_NOCTTY | O_NONBLOCK;
    struct stat status;
    int fd = history_path[0] == '\0' ? -1 : open(history_path, all_flags, 0600);

    if (fd >= 0 &&
        (fstat(fd, &status) < 0 || !S_ISREG(status.st_mode) || flock(fd, LOCK_EX) < 0)) {
        (void)close(fd);
        history_path[0] = '\0';
        return -1;
    }
    return fd;
}

/* Keeps the last half of a file that has grown too long. In this order nothing is lost when we end
 * in between. */
static void
shorten_history(int fd)
{
    struct stat status;
    OWNED_BUFFER kept = {.data = NULL};

    if (fstat(fd, &status) < 0 || status.st_size <= HISTORY_SIZE ||
        lseek(fd, status.st_size - HISTORY_SIZE / 2, SEEK_SET) < 0 ||
        !read_all(fd, &kept)) {
        return;
    }
    size_t start = line_length(&kept);
    size_t left = kept.length - start;
    if (pwrite(fd, text_of(&kept) + start, left, 0) == (ssize_t)left) {
        (void)!ftruncate(fd, (off_t)left);
    }
}

/* Finds ~/.manhole_history if lines will come from a terminal. */
static void
find_history(void)
{
    /* NOLINTNEXTLINE(concurrency-mt-unsafe): there is one thread */
    const char *home = getenv("HOME");
    char names[4096];
    struct passwd entry;
    struct passwd *found = NULL;

    if (!terminal.is_typed_on) {
        return;
    }
    if ((home == NULL || home[0] == '\0') &&
        getpwuid_r(getuid(), &entry, names, sizeof(names), &found) == 0 &&
        found != NULL) {
        home = found->pw_dir;
    }
    if (home == NULL ||
        snprintf(history_path, sizeof(history_path), "%s/.manhole_history", home) >=
            (int)sizeof(history_path)) {
        history_path[0] = '\0';
    }
    OWNED_FD fd = lock_history(O_RDWR);
    if (fd >= 0) {
        (void)fchmod(fd, 0600);
        shorten_history(fd);
    }
}

/* An entry of the editor's as the file has it. */
static void
append_entry(struct buffer *out, const struct buffer *entry)
{
    for (size_t i = 0, length = 0; i < entry->length; i += length) {
        length = next_line(entry, i, true);
        append(out, entry->data + i, length - 1);
        append_text(out, i + length < entry->length ? "\r\n" : "\n");
    }
}

/* Takes an entry away from the end of the file, if nobody has appended another since. */
static void
take_entry_back(int fd, const struct buffer *entry)
{
    OWNED_BUFFER known = {.data = NULL};
    OWNED_BUFFER found = {.data = NULL};

    append_entry(&known, entry);
    off_t start = lseek(fd, 0, SEEK_END) - (off_t)known.length;
    if (start >= 0 && lseek(fd, start, SEEK_SET) == start && read_all(fd, &found) &&
        found.length == known.length &&
        memcmp(found.data, known.data, known.length) == 0) {
        (void)!ftruncate(fd, start);
    }
}

/* Appends an entry, given with a newline at its end. Neither an empty one is kept nor one beyond
 * the limit. replaced: the last one that was kept, of which this is more; or NULL. */
static void
remember_entry(const struct buffer *entry, const struct buffer *replaced)
{
    OWNED_BUFFER bytes = {.data = NULL};

    if (entry->length <= 1 || entry->length > HISTORY_ENTRY_SIZE) {
        return;
    }
    append_entry(&bytes, entry);
    OWNED_FD fd = lock_history(O_RDWR | O_APPEND);
    if (fd >= 0 && replaced != NULL) {
        take_entry_back(fd, replaced);
    }
    if (fd >= 0) {
        (void)!write(fd, bytes.data, bytes.length);
    }
}

/* The same of what was read, by lines that gather in typed. */
static void
remember_typed(struct buffer *typed, const char *bytes, size_t count)
{
    size_t length = 0;

    append(typed, bytes, history_path[0] != '\0' ? count : 0);
    while ((length = line_length(typed)) > 0) {
        OWNED_BUFFER line = {.data = NULL};
        append(&line, typed->data, length);
        drop(typed, length);
        remember_entry(&line, NULL);
    }
}

#endif /* MANHOLE_CLI_HISTORY_C */
