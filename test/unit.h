/* unit.h - for test/unit_ROOM.c, which include ../manhole.c first and so cannot have support.h,
 * whose names are much the same. Plain cmocka; the pattern of make test TEST=... is honoured:
 *
 *     int
 *     main(void)
 *     {
 *         static const struct CMUnitTest tests[] = {
 *             cmocka_unit_test(path_too_long_is_refused),
 *         };
 *         return RUN_UNIT_TESTS(tests);
 *     }
 *
 * make runs them with PYTHONHOME set, so that the Python they embed finds its library.
 */
#ifndef UNIT_H
#define UNIT_H

#include <dirent.h>
#include <errno.h>
#include <poll.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

#include <cmocka.h>

#define RUN_UNIT_TESTS(tests)                                                            \
  (set_unit_filter(),                                                                    \
   cmocka_run_group_tests_name(program_invocation_short_name, (tests), NULL, NULL) != 0)

/* Leaves the running test, counted and with its reason. */
#define SKIP_UNIT_TEST(reason)                                                           \
  do {                                                                                   \
    printf("skipped: %s: %s\n", __func__, (reason));                                     \
    skip();                                                                              \
  } while (0)

/* The thread sanitizer keeps a signal back until the thread that gets it calls the C library, which
 * a frozen copy never does, has a thread of its own, and takes a thread that a forked child makes
 * for one of the parent's. */
#ifdef __SANITIZE_THREAD__
#  define SKIP_UNDER_THREAD_SANITIZER()                                                  \
    SKIP_UNIT_TEST("the thread sanitizer is in the way")
#else
#  define SKIP_UNDER_THREAD_SANITIZER() ((void)0)
#endif

/* There all looks are at frozen copies, which install() prepares. */
#define SKIP_WITHOUT_GIL()                                                               \
  do {                                                                                   \
    if (!HAS_GIL) {                                                                      \
      SKIP_UNIT_TEST("this Python has no GIL");                                          \
    }                                                                                    \
  } while (false)

static inline void
set_unit_filter(void)
{
    const char *pattern = getenv("MANHOLE_TEST_FILTER");
    cmocka_set_test_filter(pattern != NULL && pattern[0] != '\0' ? pattern : NULL);
}

/* The entries of a directory, the two dots included. */
static inline size_t
count_entries(const char *path)
{
    DIR *directory = opendir(path);
    size_t count = 0;
    assert_non_null(directory);
    while (readdir(directory) != NULL) { /* NOLINT(concurrency-mt-unsafe): own DIR */
        count++;
    }
    (void)closedir(directory);
    return count;
}

/* Waits until they are no more than before: a thread that nobody joins is there a moment longer,
 * and may have been counted. */
static inline void
assert_entries_fall_to(const char *path, size_t before)
{
    for (int ms = 0; ms < 30000 && count_entries(path) > before; ms++) {
        (void)poll(NULL, 0, 1);
    }
    assert_in_range(count_entries(path), 1, before);
}

#endif
