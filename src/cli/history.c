/* History: what was typed at a terminal, for the next time. A line each, as readline
 * keeps it. Clients side by side append under a lock, a line in one write(), so their lines
 * do not mix; who finds the file too long when he starts keeps its last half, in place.
 */
#ifndef MANHOLE_CLI_HISTORY_C
#define MANHOLE_CLI_HISTORY_C

#include "terminal.c"

enum {
    HISTORY_SIZE = 1024 * 1024, /* bytes; beyond, the older half is dropped */
};

static char history_path[PATH_MAX]; /* "": nothing is kept */

/* Returns it locked, or -1. To have no history is no error. */
static int
lock_history(int flags)
{
    struct stat status;
    int fd = history_path[0] == '\0'
                 ? -1
                 : open(history_path, flags | O_CREAT | O_CLOEXEC | O_NOCTTY | O_NONBLOCK,
                        0600);
    /* Who wants none kept has a link to /dev/null there. */
    if (fd >= 0 &&
        (fstat(fd, &status) < 0 || !S_ISREG(status.st_mode) || flock(fd, LOCK_EX) < 0)) {
        (void)close(fd);
        history_path[0] = '\0';
        return -1;
    }
    return fd;
}

/* Keeps the last half of a file that has grown too long. */
static void
shorten_history(int fd)
{
    struct stat status;
    struct buffer kept = {.data = NULL}; /* owned */
    char bytes[4096];
    off_t from = 0;
    ssize_t count = 0;
    size_t start = 0;

    if (fstat(fd, &status) < 0 || status.st_size <= HISTORY_SIZE) {
        return;
    }
    from = status.st_size - HISTORY_SIZE / 2;
    while ((count = pread(fd, bytes, sizeof(bytes), from)) > 0) {
        append(&kept, bytes, (size_t)count);
        from += count;
    }
    start = line_length(&kept);
    /* In this order nothing is lost when we end in between. */
    if (count == 0 && pwrite(fd, text_of(&kept) + start, kept.length - start, 0) ==
                          (ssize_t)(kept.length - start)) {
        (void)!ftruncate(fd, (off_t)(kept.length - start));
    }
    free(kept.data);
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
    int fd = -1;

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
    fd = lock_history(O_RDWR);
    if (fd >= 0) {
        (void)fchmod(fd, 0600);
        shorten_history(fd);
        (void)close(fd);
    }
}

/* Appends a line, given with its newline. Neither an empty one is kept nor one beyond the
 * limit. */
static void
remember_line(const char *line, size_t length)
{
    int fd = -1;

    if (length <= 1 || length > HISTORY_LINE_SIZE) {
        return;
    }
    fd = lock_history(O_WRONLY | O_APPEND);
    if (fd >= 0) {
        (void)!write(fd, line, length);
        (void)close(fd);
    }
}

/* Gathers what was read into lines. */
static void
remember_typed(const char *bytes, size_t count)
{
    static struct buffer typed;
    size_t length = 0;

    if (history_path[0] != '\0') {
        append(&typed, bytes, count);
        while ((length = line_length(&typed)) > 0) {
            remember_line(typed.data, length);
            drop(&typed, length);
        }
    }
}

#endif /* MANHOLE_CLI_HISTORY_C */
