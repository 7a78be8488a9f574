/* History: what was typed at a terminal, for the next time. A line each, as readline keeps it.
 *
 * Clients side by side append under a lock, a line in one write(), so their lines do not mix; who
 * finds the file too long when he starts keeps its last half, in place. To have no history is no
 * error: who wants none kept has a link to /dev/null there.
 */
#ifndef MANHOLE_CLI_HISTORY_C
#define MANHOLE_CLI_HISTORY_C

#include "terminal.c"

enum {
    HISTORY_SIZE = 1024 * 1024, /* bytes; beyond, the older half is dropped */
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

/* Appends a line, given with its newline. Neither an empty one is kept nor one beyond the limit. */
static void
remember_line(const char *line, size_t length)
{
    if (length <= 1 || length > HISTORY_LINE_SIZE) {
        return;
    }
    OWNED_FD fd = lock_history(O_WRONLY | O_APPEND);
    if (fd >= 0) {
        (void)!write(fd, line, length);
    }
}

/* The same of what was read, by lines that gather in typed. */
static void
remember_typed(struct buffer *typed, const char *bytes, size_t count)
{
    size_t length = 0;

    append(typed, bytes, history_path[0] != '\0' ? count : 0);
    while ((length = line_length(typed)) > 0) {
        remember_line(typed->data, length);
        drop(typed, length);
    }
}

#endif /* MANHOLE_CLI_HISTORY_C */
