/* fuzz.h - for test/fuzz/PROGRAM.c, which include ../../manhole.c or ../../manhole_cli.c first.
 *
 * A program has a table of targets; FUZZ_TARGET in the environment says which one libFuzzer is to
 * try, and "list" prints their names. A target is a function of bytes that come from outside. It
 * holds what it calls to its promises with MUST(), so that an input which makes a wrong answer is
 * found as well as one that crashes:
 *
 *     static const struct fuzz_target targets[] = {
 *         {.name = "telnet", .attempt = fuzz_telnet, .most = 1024},
 *     };
 *
 * test/fuzz/run.sh runs them all. What once failed stays in test/fuzz/corpus/TARGET.
 */
#ifndef FUZZ_H
#define FUZZ_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

struct fuzz_target {
    const char *name;
    void (*attempt)(const char *bytes, size_t length);
    size_t most; /* bytes of an input */
    bool needs_python;
};

/* Which one of the table is tried. */
static const struct fuzz_target *tried_target;

#define MUST(condition) must((condition), #condition, __func__, __LINE__)

static inline void
must(bool is_so, const char *condition, const char *function, int line)
{
    if (!is_so) {
        (void)fprintf(stderr, "%s, line %d: not so: %s\n", function, line, condition);
        abort();
    }
}

/* What libFuzzer calls. */
int LLVMFuzzerInitialize(const int *argc, char ***argv);
int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t length);

/* Picks the target that FUZZ_TARGET names. Ends the program where it names none. */
static inline void
choose_target(const struct fuzz_target *targets, size_t count)
{
    const char *name = getenv("FUZZ_TARGET"); /* one thread */
    for (size_t i = 0; name != NULL && i < count; i++) {
        if (strcmp(name, "list") == 0) {
            (void)printf("%s %zu %d\n", targets[i].name, targets[i].most,
                         targets[i].needs_python);
        }
        else if (strcmp(name, targets[i].name) == 0) {
            tried_target = &targets[i];
        }
    }
    if (tried_target == NULL) {
        (void)fflush(stdout);
        _exit(name != NULL && strcmp(name, "list") == 0 ? 0 : 2);
    }
}

/* A NUL-terminated copy of its own, for the sanitizer to see who reads beyond it. */
static inline char *
copy_of(const char *bytes, size_t length)
{
    char *copy = malloc(length + 1); /* owned, handed to the caller */
    MUST(copy != NULL);
    if (length > 0) {
        memcpy(copy, bytes, length);
    }
    copy[length] = '\0';
    return copy;
}

/* What stands in for a file of /proc or elsewhere, see file_with(). */
static char file_path[64];

/* Makes it a file with these bytes. Returns its descriptor, which stays open and the same. */
static inline int
file_with(const char *bytes, size_t length)
{
    static int fd = -1;
    if (fd < 0) {
        fd = memfd_create("fuzz", MFD_CLOEXEC);
        (void)snprintf(file_path, sizeof(file_path), "/proc/self/fd/%d", fd);
    }
    MUST(fd >= 0 && ftruncate(fd, 0) == 0);
    MUST(pwrite(fd, bytes, length, 0) == (ssize_t)length);
    return fd;
}

/* Takes pieces off the front of bytes, as a socket might deliver them: each as long as the next
 * digit of the seed says, from 1 to 8 bytes; a seed of 0 leaves them in one. Returns the length. */
static inline size_t
next_piece(uint32_t *seed, size_t left)
{
    size_t length = left;
    if (*seed != 0) {
        *seed = *seed * 1664525U + 1013904223U;
        length = 1 + (*seed >> 24) % 8;
    }
    return length < left ? length : left;
}

#endif
