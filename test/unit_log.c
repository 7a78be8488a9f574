/* Log: what a frozen copy leaves on its page reaches the log, and a page that lies hurts nobody. */
#include "../manhole.c"

#include "unit.h"

#include <string.h>

#if CAN_FREEZE

static int log_fd; /* to read what was logged */
static struct log_page page;

/* The log is a pipe: who wants lines to go to the page says so. */
static int
open_log(void **state)
{
    int ends[2];
    (void)state;
    memset(&page, 0, sizeof(page));
    if (pipe2(ends, O_CLOEXEC | O_NONBLOCK) < 0) {
        return -1;
    }
    log_fd = ends[0];
    keep_fd(&logger.fd, ends[1]);
    logger.enabled = true;
    return 0;
}

static int
close_log(void **state)
{
    (void)state;
    relay_log(NULL);
    (void)close(log_fd);
    close_kept(&logger.fd);
    logger.enabled = false;
    return 0;
}

#  define WITH_LOG(test) cmocka_unit_test_setup_teardown(test, open_log, close_log)

/* What was logged since, without what stands before each line. */
static const char *
read_log(void)
{
    static char text[1 << 16];
    static char bare[1 << 16];
    char *rest = NULL;
    ssize_t got = read(log_fd, text, sizeof(text) - 1);
    bare[0] = '\0';
    text[got > 0 ? got : 0] = '\0';
    for (char *line = strtok_r(text, "\n", &rest); line != NULL;
         line = strtok_r(NULL, "\n", &rest)) {
        const char *said = strstr(line, "]: ");
        strcat(bare, said == NULL ? line : said + 3);
        strcat(bare, "\n");
    }
    return bare;
}

/* As a copy does. */
static void
log_as_copy(const char *said)
{
    relay_log(&page);
    log_line("%s", said);
    relay_log(NULL);
}

static void
lines_of_a_copy_come_when_they_are_passed_on(void **state)
{
    (void)state;
    log_as_copy("one");
    log_as_copy("two");
    assert_string_equal(read_log(), "");
    pass_lines_on(&page);
    assert_string_equal(read_log(), "one\ntwo\n");
    pass_lines_on(&page);
    assert_string_equal(read_log(), "");
}

static void
lines_go_on_where_the_page_and_its_numbers_begin_again(void **state)
{
    (void)state;
    page.left = page.taken = UINT32_MAX - 5;
    for (int i = 0; i < 3000; i++) {
        log_as_copy("fifty bytes are none too many for one of the lines");
        pass_lines_on(&page);
        assert_string_equal(read_log(),
                            "fifty bytes are none too many for one of the lines\n");
    }
}

static void
line_that_the_page_does_not_come_to_take_is_lost_whole(void **state)
{
    char most[LOG_PAGE_SIZE / 20];
    char *rest = NULL;
    size_t lines = 0;
    (void)state;
    memset(most, 'x', sizeof(most));
    most[sizeof(most) - 1] = '\0';
    for (int i = 0; i < 21; i++) {
        log_as_copy(most);
    }
    pass_lines_on(&page);
    char *logged = strdup(read_log());
    for (char *line = strtok_r(logged, "\n", &rest); line != NULL;
         line = strtok_r(NULL, "\n", &rest)) {
        assert_string_equal(line, most);
        lines++;
    }
    free(logged);
    assert_in_range(lines, 15, 20);
    log_as_copy("more");
    pass_lines_on(&page);
    assert_string_equal(read_log(), "more\n");
}

/* Who has the copy can write to it what it likes. */
static void
page_that_lies_is_read_once_and_no_further(void **state)
{
    (void)state;
    memset(page.bytes, 'x', sizeof(page.bytes)); /* not one end of a line */
    page.left = UINT32_MAX / 2;
    page.taken = UINT32_MAX / 2 + 2;
    pass_lines_on(&page);
    const char *logged = read_log();
    assert_in_range(strlen(logged), 1, LOG_PAGE_SIZE);
    for (const char *line = logged; *line != '\0'; line = strchr(line, '\n') + 1) {
        assert_in_range(strcspn(line, "\n"), 1, LOG_LINE_SIZE);
    }
    log_as_copy("honest");
    pass_lines_on(&page);
    assert_string_equal(read_log(), "honest\n");
}

static void
copy_of_a_process_without_a_log_leaves_nothing(void **state)
{
    (void)state;
    logger.enabled = false;
    log_as_copy("one");
    assert_int_equal(page.left, 0);
}

#else

static void
copy_leaves_its_lines_on_a_page(void **state)
{
    (void)state;
    SKIP_UNIT_TEST("no frozen copy is made here");
}

#endif /* CAN_FREEZE */

int
main(void)
{
    static const struct CMUnitTest tests[] = {
#if CAN_FREEZE
        WITH_LOG(lines_of_a_copy_come_when_they_are_passed_on),
        WITH_LOG(lines_go_on_where_the_page_and_its_numbers_begin_again),
        WITH_LOG(line_that_the_page_does_not_come_to_take_is_lost_whole),
        WITH_LOG(page_that_lies_is_read_once_and_no_further),
        WITH_LOG(copy_of_a_process_without_a_log_leaves_nothing),
#else
        cmocka_unit_test(copy_leaves_its_lines_on_a_page),
#endif
    };
    return RUN_UNIT_TESTS(tests);
}
