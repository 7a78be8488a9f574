/* Snapshot: what is made of a frozen copy's text, of source files and of /proc, whatever is in
 * them; and copies that die. That a stuck process's stacks come is shown in e2e_*.c. */
#include <Python.h>

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <string.h>
#include <sys/inotify.h>
#include <sys/mman.h>

static atomic_bool is_dead; /* the file system that a file called `dead` is on */

static int
open_on_it(const char *path, int flags, mode_t mode)
{
    while (strcmp(path, "dead") == 0 && atomic_load(&is_dead)) {
        (void)poll(NULL, 0, 1);
    }
    return open(path, flags, mode);
}

static bool is_memfd_refused; /* as by a seccomp filter */

static int
create_memory_file(const char *name, unsigned flags)
{
    errno = EPERM;
    return is_memfd_refused ? -1 : memfd_create(name, flags);
}

#define memfd_create create_memory_file
#define FIRST_THREE(one, two, three, ...) one, two, three
#define open(...) open_on_it(FIRST_THREE(__VA_ARGS__, 0, 0))

#include "../manhole.c"

#include "unit.h"

#define END "#############################################\n\n\n"

static char directory[32]; /* the working directory of all tests */

static void
write_text(const char *name, const char *text)
{
    int fd = open(name, O_CREAT | O_TRUNC | O_WRONLY | O_CLOEXEC, 0600);
    assert_int_equal(write(fd, text, strlen(text)), strlen(text));
    (void)close(fd);
}

/* A copy of exactly these bytes, so that a sanitizer sees who reads beyond; for free(). */
static char *
copy_bytes(const char *string)
{
    size_t length = strlen(string);
    char *bytes = malloc(length > 0 ? length : 1);
    assert_non_null(bytes);
    for (size_t i = 0; i < length; i++) {
        bytes[i] = string[i];
    }
    return bytes;
}

/* Ends the text, and returns it. */
static const char *
string_of(struct text *text)
{
    append_bytes(text, "", 1);
    assert_non_null(text->bytes);
    return text->bytes;
}

/* Frees the text. */
static void
assert_text(const char *name, struct text *text, const char *wanted)
{
    if (strcmp(string_of(text), wanted) != 0) {
        fail_msg("%s\n--- got\n%s\n--- wanted\n%s", name, text->bytes, wanted);
    }
    free_text(text);
}

/* ---- Lines and facts -------------------------------------------------------------------- */

static void
text_is_taken_line_by_line(void **state)
{
    static const char *const wanted[] = {"one", "", "three"};
    static const char text[] = "one\n\nthree";
    char *bytes = copy_bytes(text);
    struct slice rest = {bytes, strlen(text)};
    struct slice line;
    (void)state;
    for (size_t i = 0; i < 3; i++) {
        assert_true(next_line(&rest, &line));
        assert_int_equal(line.length, strlen(wanted[i]));
        assert_memory_equal(line.bytes, wanted[i], line.length);
    }
    assert_false(next_line(&rest, &line));
    free(bytes);
}

static const struct {
    const char *line;
    unsigned long ident; /* 0: not a line of facts */
    unsigned long native_id;
    bool holds_gil;
    const char *name;
} facts_rows[] = {
    {"@ 140001 12 1 MainThread", 140001, 12, true, "MainThread"},
    {"@ 140001 0 0 ", 140001, 0, false, ""},
    {"@ 18446744073709551615 4194304 0 Thread-7 (_worker)", ULONG_MAX, 4194304, false,
     "Thread-7 (_worker)"},
    {"@ 1 2 0 @ 3 4 1 odd name", 1, 2, false, "@ 3 4 1 odd name"},
    {"! 140001", 140001, 0, true, ""},
    {"? 140001", 140001, 0, false, ""},
    {"?", 0, 0, false, ""},
    {"", 0, 0, false, ""},
    {"@", 0, 0, false, ""},
    {"@ ", 0, 0, false, ""},
    {"@ 140001", 0, 0, false, ""},
    {"@ 140001 12", 0, 0, false, ""},
    {"@ -1 12 1 x", 0, 0, false, ""},
    {"@ x 12 1 x", 0, 0, false, ""},
    {"!", 0, 0, false, ""},
    {"!140001", 0, 0, false, ""},
    {"Thread 0x1 (most recent call first):", 0, 0, false, ""},
};

static void
facts_are_read_and_other_lines_left(void **state)
{
    (void)state;
    for (size_t i = 0; i < Py_ARRAY_LENGTH(facts_rows); i++) {
        char *bytes = copy_bytes(facts_rows[i].line);
        struct slice line = {bytes, strlen(facts_rows[i].line)};
        struct copied_facts facts = parse_facts(&line);
        if (facts.ident != facts_rows[i].ident ||
            facts.native_id != facts_rows[i].native_id ||
            facts.holds_gil != facts_rows[i].holds_gil ||
            facts.name.length != strlen(facts_rows[i].name) ||
            (facts.name.length > 0 &&
             memcmp(facts.name.bytes, facts_rows[i].name, facts.name.length) != 0)) {
            fail_msg("%s: %lu %lu %d %.*s", facts_rows[i].line, facts.ident,
                     facts.native_id, facts.holds_gil, (int)facts.name.length,
                     facts.name.bytes);
        }
        free(bytes);
    }
}

static void
long_name_is_read_whole(void **state)
{
    struct text text = {0};
    struct copied_facts facts;
    (void)state;
    append_string(&text, "@ 1 2 0 ");
    for (int i = 0; i < 300; i++) {
        append_string(&text, "x");
    }
    facts = parse_facts(&(struct slice){text.bytes, text.length});
    assert_int_equal(facts.ident, 1);
    assert_int_equal(facts.name.length, 300);
    free_text(&text);
}

/* Before 3.12 the holder of the GIL is a line of its own, in any place. */
static void
holder_of_the_gil_is_found_in_either_form(void **state)
{
    static const struct {
        const char *facts;
        bool holds_gil; /* thread 7 */
    } rows[] = {
        {"@ 7 70 1 seven\n@ 8 80 0 eight\n", true},
        {"@ 7 70 0 seven\n@ 8 80 1 eight\n", false},
        {"@ 7 70 0 seven\n@ 8 80 0 eight\n! 7\n", true},
        {"! 7\n@ 8 80 0 eight\n@ 7 70 0 seven\n", true},
        {"@ 7 70 0 seven\n! 8\n", false},
    };
    (void)state;
    for (size_t i = 0; i < Py_ARRAY_LENGTH(rows); i++) {
        char *bytes = copy_bytes(rows[i].facts);
        struct stacks stacks = {.is_frozen = true};
        const struct thread_stack *found = NULL;
        struct thread_stack seven = {0};
        read_facts(&stacks, (struct slice){bytes, strlen(rows[i].facts)});
        found = find_thread(&stacks, 7);
        if (found != NULL) {
            seven = *found;
        }
        assert_int_equal(seven.native_id, 70);
        assert_int_equal(seven.name.length, 5);
        assert_memory_equal(seven.name.bytes, "seven", 5);
        if ((seven.holds_gil == ANSWER_YES) != rows[i].holds_gil) {
            fail_msg("%s", rows[i].facts);
        }
        free_stacks(&stacks);
        free(bytes);
    }
}

/* ---- Frames ------------------------------------------------------------------------------ */

/* What a copy has written, read; for free_stacks(). */
static struct stacks
read_as_copy(const char *stacks, const char *facts)
{
    struct stacks read = {.is_frozen = true};
    append_string(&read.copy, stacks);
    append_string(&read.copy, stacks_complete);
    append_string(&read.copy, facts);
    append_bytes(&read.copy, "", 1);
    read_copy(&read);
    (void)read_beside_python(&read);
    return read;
}

/* A single frame, in what words a client sees it. */
static void
assert_frame(const char *line, const char *wanted)
{
    char stack[256];
    struct stacks stacks;
    struct text text = {0};
    (void)snprintf(stack, sizeof(stack), "Thread 0x1 (most recent call first):\n%s\n",
                   line);
    stacks = read_as_copy(stack, "");
    append_frames(&text, &stacks, 0, stacks.frame_count);
    assert_text(line, &text, wanted);
    free_stacks(&stacks);
}

static const struct {
    const char *escaped;
    const char *bytes;
} escapes[] = {
    {"plain/file.py", "plain/file.py"},
    {"caf\\xe9.py", "caf\xc3\xa9.py"},
    {"\\u20ac", "\xe2\x82\xac"},
    {"\\U0001f40d", "\xf0\x9f\x90\x8d"},
    {"\\xe9\\u20ac\\U0001f40d", "\xc3\xa9\xe2\x82\xac\xf0\x9f\x90\x8d"},
    {"\\x4", "\\x4"},
    {"\\xzz", "\\xzz"},
    {"\\u123", "\\u123"},
    {"\\U0011ffff", "\\U0011ffff"},
    {"C:\\new\\", "C:\\new\\"},
    {"\\udcff", "\\udcff"}, /* has no UTF-8 */
};

static void
escapes_of_faulthandler_are_utf8_again(void **state)
{
    (void)state;
    for (size_t i = 0; i < Py_ARRAY_LENGTH(escapes); i++) {
        char *bytes = copy_bytes(escapes[i].escaped);
        struct text text = {0};
        append_unescaped(&text, (struct slice){bytes, strlen(escapes[i].escaped)});
        assert_text(escapes[i].escaped, &text, escapes[i].bytes);
        free(bytes);
    }
}

static const struct {
    const char *line; /* as faulthandler writes it */
    const char *text;
} frames[] = {
    {"  File \"shop.py\", line 2 in sell",
     "File: \"shop.py\", line 2, in sell\n  take(apple)\n"},
    {"  File \"shop.py\", line 3 in sell", "File: \"shop.py\", line 3, in sell\n"},
    {"  File \"shop.py\", line 4 in <module>",
     "File: \"shop.py\", line 4, in <module>\n  end()\n"},
    {"  File \"shop.py\", line 5 in sell", "File: \"shop.py\", line 5, in sell\n"},
    {"  File \"shop.py\", line 0 in sell", "File: \"shop.py\", line 0, in sell\n"},
    {"  File \"shop.py\", line 99999999999999999999 in sell",
     "File: \"shop.py\", line 9223372036854775807, in sell\n"},
    {"  File \"caf\\xe9.py\", line 1 in men\\xfc",
     "File: \"caf\xc3\xa9.py\", line 1, in men\xc3\xbc\n  espresso\n"},
    {"  File \"a\", line 7 in b\", line 1 in c",
     "File: \"a\", line 7 in b\", line 1, in c\n"},
    {"  File \"<string>\", line 1 in <module>",
     "File: \"<string>\", line 1, in <module>\n"},
    {"  File \"\", line 1 in f", "File: \"\", line 1, in f\n"},
    {"  File ???, line 1 in f", "  File ???, line 1 in f\n"},
    {"  File \"cut", "  File \"cut\n"},
    {"  File \", line 1", "  File \", line 1\n"},
    {"  <no Python frame>", "  <no Python frame>\n"},
    {"  ...", "  ...\n"},
};

static void
frame_is_told_in_our_words_with_its_source(void **state)
{
    (void)state;
    write_text("shop.py", "def sell():\r\n \ttake(apple) \r\n\n\f end()");
    write_text("caf\xc3\xa9.py", "espresso\n");
    for (size_t i = 0; i < Py_ARRAY_LENGTH(frames); i++) {
        assert_frame(frames[i].line, frames[i].text);
    }
    assert_int_equal(unlink("shop.py"), 0);
    assert_int_equal(unlink("caf\xc3\xa9.py"), 0);
}

static void
number_of_the_next_line_is_not_this_ones(void **state)
{
    (void)state;
    assert_frame("  File \"a\", line \n 7 in f", "File: \"a\", line 0, in \n");
}

/* ---- Source files ------------------------------------------------------------------------- */

static void
put_huge_file(const char *name)
{
    write_text(name, "line\n");
    assert_int_equal(truncate(name, MAX_SOURCE + 1), 0);
}

static void
put_fifo(const char *name)
{
    assert_int_equal(mkfifo(name, 0600), 0);
}

static void
put_directory(const char *name)
{
    assert_int_equal(mkdir(name, 0700), 0);
}

static void
put_link_to_terminal(const char *name)
{
    assert_int_equal(symlink("/dev/ptmx", name), 0);
}

static void
put_empty_file(const char *name)
{
    write_text(name, "");
}

static void
put_nothing(const char *name)
{
    (void)name;
}

static void
assert_line(const struct source *source, long number, const char *wanted)
{
    const struct slice line = source_line(source, number);
    assert_int_equal(line.length, strlen(wanted));
    assert_memory_equal(line.bytes, wanted, line.length);
}

/* A file name in a dump can be anything. */
static void
only_files_of_a_sensible_size_are_read(void **state)
{
    static void (*const puts_it[])(const char *) = {
        put_huge_file,        put_fifo,       put_directory,
        put_link_to_terminal, put_empty_file, put_nothing,
    };
    (void)state;
    for (size_t i = 0; i < Py_ARRAY_LENGTH(puts_it); i++) {
        struct sources sources = {0};
        struct source *source = add_source(&sources, "file");
        want_line(source, 1);
        puts_it[i]("file");
        load_source(source);
        assert_line(source, 1, "");
        free_sources(&sources);
        (void)remove("file");
    }
}

static void
nothing_is_taken_out_of_a_fifo(void **state)
{
    struct sources sources = {0};
    char left[8];
    int fd = -1;
    (void)state;
    put_fifo("file");
    fd = open("file", O_RDWR | O_NONBLOCK);
    assert_int_equal(write(fd, "line\n", 5), 5);
    want_line(add_source(&sources, "file"), 1);
    load_source(&sources.files[0]);
    assert_int_equal(read(fd, left, sizeof(left)), 5);
    assert_int_equal(close(fd), 0);
    free_sources(&sources);
    assert_int_equal(unlink("file"), 0);
}

/* Those of /proc have no size, and to read some of them takes out what is there, or never ends. */
static void
nothing_is_taken_out_of_a_file_without_a_size(void **state)
{
    struct sources sources = {0};
    (void)state;
    want_line(add_source(&sources, "/proc/self/stat"), 1);
    load_source(&sources.files[0]);
    assert_line(&sources.files[0], 1, "");
    free_sources(&sources);
}

/* There may be one descriptor for all that a look reads. */
static void
files_are_opened_when_it_is_their_turn(void **state)
{
    struct sources sources = {0};
    struct reading *reading = NULL;
    struct pollfd opened = {.fd = inotify_init1(IN_CLOEXEC), .events = POLLIN};
    (void)state;
    write_text("file", "one\n");
    assert_true(inotify_add_watch(opened.fd, "file", IN_OPEN) >= 0);
    want_line(add_source(&sources, "file"), 1);
    reading = begin_reading(&sources);
    assert_int_equal(poll(&opened, 1, 50), 0);
    (void)end_reading(&sources, reading);
    assert_int_equal(poll(&opened, 1, 0), 1);
    free_sources(&sources);
    assert_int_equal(close(opened.fd), 0);
    assert_int_equal(unlink("file"), 0);
}

static void
without_a_thread_files_are_read_all_the_same(void **state)
{
    struct sources sources = {0};
    (void)state;
    write_text("file", "one\rtwo\n");
    want_line(add_source(&sources, "file"), 1);
    /* Python has other lines, but of no frame that it knows. */
    assert_false(end_reading(&sources, make_reading(&sources)));
    assert_true(sources.files[0].python_is_asked);
    assert_line(&sources.files[0], 1, "one\rtwo");
    free_sources(&sources);
    assert_int_equal(unlink("file"), 0);
}

static void
source_is_read_once_a_dump(void **state)
{
    struct sources sources = {0};
    (void)state;
    for (int i = 0; i < 2; i++) {
        write_text("file", i == 0 ? "before\n" : "after!\n");
        want_line(add_source(&sources, "file"), 1);
        (void)end_reading(&sources, begin_reading(&sources));
        assert_line(&sources.files[0], 1, "before");
    }
    free_sources(&sources);
    assert_int_equal(unlink("file"), 0);
}

static void
line_that_is_wanted_later_is_read_too(void **state)
{
    struct sources sources = {0};
    (void)state;
    write_text("file", "one\ntwo\nthree\n");
    for (long number = 3; number > 0; number--) {
        want_line(add_source(&sources, "file"), number);
        (void)end_reading(&sources, begin_reading(&sources));
        assert_true(sources.files[0].loaded);
    }
    load_source(&sources.files[0]); /* as where there is no thread */
    assert_line(&sources.files[0], 1, "one");
    assert_line(&sources.files[0], 2, "two");
    assert_line(&sources.files[0], 3, "three");
    free_sources(&sources);
    assert_int_equal(unlink("file"), 0);
}

/* What stands where one piece of a file ends and the next begins. */
static const struct {
    const char *text;
    const char *second; /* of its lines */
    bool is_for_python;
} at_ends_of_pieces[] = {
    {"\nsecond\nthird", "second", false}, {"\r\nsecond\r\nthird", "second", false},
    {"\rsecond\nthird", "third", true}, /* as the file system has it */
    {"\nsecond\r", "second", true},       {"\n\nthird", "", false},
};

static void
line_is_whole_wherever_a_piece_ends(void **state)
{
    static char text[PIECE_SIZE + 40];
    (void)state;
    for (size_t i = 0; i < Py_ARRAY_LENGTH(at_ends_of_pieces); i++) {
        const size_t length = strlen(at_ends_of_pieces[i].text);
        for (size_t before = 0; before <= length; before++) {
            struct sources sources = {0};
            const size_t first = PIECE_SIZE - before;
            memset(text, 'x', first);
            memcpy(text + first, at_ends_of_pieces[i].text, length + 1);
            write_text("file", text);
            want_line(add_source(&sources, "file"), 1);
            want_line(&sources.files[0], 2);
            sources.files[0].position = 1; /* Python has it */
            assert_int_equal(end_reading(&sources, begin_reading(&sources)),
                             at_ends_of_pieces[i].is_for_python);
            assert_line(&sources.files[0], 2, at_ends_of_pieces[i].second);
            if (!at_ends_of_pieces[i].is_for_python) {
                assert_int_equal(source_line(&sources.files[0], 1).length, first);
            }
            free_sources(&sources);
        }
    }
    assert_int_equal(unlink("file"), 0);
}

static void
each_of_many_files_is_itself(void **state)
{
    struct sources sources = {0};
    (void)state;
    for (int i = 0; i < 200; i++) {
        char name[16];
        (void)snprintf(name, sizeof(name), "file%d", i % 100);
        assert_string_equal(add_source(&sources, name)->path, name);
    }
    assert_int_equal(sources.count, 100);
    free_sources(&sources);
}

/* ---- Threads ------------------------------------------------------------------------------- */

/* $ stands for the process's pid. */
#define HEADER(ident) "\n######### ProcessID=$, ThreadID=" #ident " #########\n"

/* The stacks that a copy wrote, in what words a client sees them. */
static void
assert_threads(const char *stacks, const char *facts, const char *format)
{
    struct stacks read = read_as_copy(stacks, facts);
    struct text text = {0};
    struct text wanted = {0};
    append_threads(&text, &read);
    for (; *format != '\0'; format++) {
        if (*format == '$') {
            append_format(&wanted, "%ld", (long)getpid());
        }
        else {
            append_bytes(&wanted, format, 1);
        }
    }
    assert_text(stacks, &text, string_of(&wanted));
    free_stacks(&read);
    free_text(&wanted);
}

static void
stacks_are_told_outermost_first(void **state)
{
    (void)state;
    assert_threads(
        "Thread 0x00000010 (most recent call first):\n"
        "  File \"in\", line 1 in inner\n"
        "  File \"out\", line 2 in outer\n"
        "\n"
        "Current thread 0x00000011 (most recent call first):\n"
        "  <no Python frame>\n",
        "",
        HEADER(16) "File: \"out\", line 2, in outer\nFile: \"in\", line 1, in inner\n" //
        HEADER(17) "  <no Python frame>\n");
}

/* It comes with every hundred threads, and with another interpreter's. */
static void
head_of_the_list_is_told_once(void **state)
{
    (void)state;
    assert_threads("Thread 0x1 (most recent call first):\n"
                   "  one\n"
                   "Thread 0x2 (most recent call first):\n"
                   "  two\n"
                   "&\n"
                   "Thread 0x1 (most recent call first):\n"
                   "  one\n"
                   "Thread 0x3 (most recent call first):\n"
                   "  three\n",
                   "", HEADER(1) "  one\n" HEADER(2) "  two\n" HEADER(3) "  three\n");
}

/* One thread may have a stack in each of two interpreters. */
static void
thread_of_another_interpreter_says_so(void **state)
{
    static const char stacks[] = "Thread 0x1 (most recent call first):\n"
                                 "  File \"a\", line 1 in f\n"
                                 "% 7\n"
                                 "&\n"
                                 "Thread 0x1 (most recent call first):\n"
                                 "  File \"a\", line 1 in f\n"
                                 "Thread 0x1 (most recent call first):\n"
                                 "  two\n"
                                 "Thread 0x2 (most recent call first):\n"
                                 "  three\n";
    struct stacks read = read_as_copy(stacks, "@ 1 0 1 MainThread\n");
    struct text json = {0};
    const char *end = NULL;
    (void)state;
    SKIP_WITHOUT_GIL();
    assert_threads(stacks, "@ 1 0 1 MainThread\n",
                   HEADER(1) "Thread: MainThread, holds the GIL\nFile: \"a\", line 1, in "
                             "f\n" HEADER(1) "Thread: MainThread, of interpreter 7, "
                                             "holds the GIL\n  two\n" HEADER(
                                                 2) "Thread: of interpreter 7\n  "
                                                    "three\n");
    append_json(&json, &read);
    end = strstr(string_of(&json), "\"name\": \"MainThread\", \"frames\"");
    assert_non_null(end);
    assert_non_null(strstr(end, "\"name\": \"MainThread\", \"interpreter\": 7, "));
    assert_non_null(strstr(end, "\"name\": null, \"interpreter\": 7, "));
    free_text(&json);
    free_stacks(&read);
}

static void
what_is_no_stack_is_left_out(void **state)
{
    (void)state;
    assert_threads("nonsense\n  File \"x\", line 1 in f\n"
                   "Thread 0x1 (most recent call first):\n"
                   "Fatal error\n"
                   "  one\n",
                   "", HEADER(1) "  one\n");
}

static void
facts_of_a_thread_stand_under_its_header(void **state)
{
    (void)state;
    SKIP_WITHOUT_GIL();
    assert_threads("Thread 0x1 (most recent call first):\n  one\n"
                   "Thread 0x2 (most recent call first):\n  two\n"
                   "Thread 0x3 (most recent call first):\n  three\n"
                   "Thread 0x4 (most recent call first):\n  four\n",
                   "@ 1 0 1 MainThread\n@ 2 0 0 Worker\n@ 3 4194304 0 \n! 4\n", //
                   HEADER(1) "Thread: MainThread, holds the GIL\n  one\n"       //
                   HEADER(2) "Thread: Worker\n  two\n"                          //
                   HEADER(3) "Thread: TID 4194304, gone\n  three\n" HEADER(
                       4) "Thread: holds the GIL\n  four\n");
}

static void
same_stack_is_told_once_under_all_its_headers(void **state)
{
    (void)state;
    SKIP_WITHOUT_GIL();
    assert_threads("Thread 0x1 (most recent call first):\n  one\n  two\n\n"
                   "Thread 0x2 (most recent call first):\n  one\n\n"
                   "Thread 0x3 (most recent call first):\n  one\n  two\n\n"
                   "Current thread 0x4 (most recent call first):\n  one\n  two\n",
                   "@ 1 0 1 MainThread\n@ 3 0 0 Worker\n",
                   "\n######### ProcessID=$, ThreadID=1 #########\n"
                   "Thread: MainThread, holds the GIL\n"
                   "######### ProcessID=$, ThreadID=3 #########\n"
                   "Thread: Worker\n"
                   "######### ProcessID=$, ThreadID=4 #########\n"
                   "3 threads with the same stack:\n  two\n  one\n" //
                   HEADER(2) "  one\n");
}

/* A copy may die at any byte. */
static void
text_may_break_off_anywhere(void **state)
{
    static const char whole[] = "Thread 0x0000000a (most recent call first):\n"
                                "  File \"caf\\xe9\", line 12 in f\n"
                                "  File \"b\", line 3 in <module>\n"
                                "\n"
                                "Current thread 0x0000000b (most recent call first):\n"
                                "  File \"\\U0001f40d\", line 1 in g\n"
                                "@@\n"
                                "@ 10 0 1 MainThread\n"
                                "@ 11 12345678 0 Thread-1\n"
                                "! 10\n";
    (void)state;
    for (size_t length = 0; length < sizeof(whole); length++) {
        struct stacks stacks = {.is_frozen = true};
        struct text text = {0};
        append_bytes(&stacks.copy, whole, length);
        append_bytes(&stacks.copy, "", 1);
        read_copy(&stacks);
        append_dump(&text, &stacks);
        assert_false(text.failed);
        free_stacks(&stacks);
        free_text(&text);
    }
}

/* ---- /proc --------------------------------------------------------------------------------- */

static void
kernel_state_is_that_of_the_thread(void **state)
{
    char wanted[64];
    struct text text = {0};
    (void)state;
    (void)prctl(PR_SET_NAME, "a) Z (b\nc");
    const struct kernel_state kernel = read_kernel_state((unsigned long)getpid());
    append_kernel_state(&text, (unsigned long)getpid(), &kernel);
    (void)prctl(PR_SET_NAME, "unit_snapshot");
    (void)snprintf(wanted, sizeof(wanted), "TID %ld (a) Z (b?c), running",
                   (long)getpid());
    assert_ptr_equal(strstr(string_of(&text), wanted), text.bytes);
    free_text(&text);
}

/* What the kernel calls a thread that has a name is neither read nor shown. */
static void
named_thread_has_the_same_state(void **state)
{
    char wanted[64];
    struct text text = {0};
    (void)state;
    const struct kernel_state own = read_named_state((unsigned long)getpid());
    const struct kernel_state gone = read_named_state(4194304);
    append_kernel_state(&text, (unsigned long)getpid(), &own);
    append_string(&text, "\n");
    append_kernel_state(&text, 4194304, &gone);
    (void)snprintf(wanted, sizeof(wanted), "TID %ld, running\nTID 4194304, gone",
                   (long)getpid());
    assert_text("both", &text, wanted);
    free_text(&text);
}

static void
thread_that_is_gone_is_gone(void **state)
{
    struct text text = {0};
    (void)state;
    const struct kernel_state kernel = read_kernel_state(4194304); /* more than any pid */
    append_kernel_state(&text, 4194304, &kernel);
    assert_text("no thread", &text, "TID 4194304, gone");
}

static void
each_state_has_a_name(void **state)
{
    (void)state;
    assert_string_equal(state_name('R'), "running");
    assert_string_equal(state_name('S'), "sleeping");
    assert_string_equal(state_name('D'), "disk wait");
    assert_string_equal(state_name('t'), "traced");
    assert_string_equal(state_name('?'), "in an unknown state");
}

struct other_thread {
    int started[2]; /* pipes */
    int end[2];
    long native_id;
};

static void *
be_other_thread(void *argument)
{
    struct other_thread *other = argument;
    char byte = 0;
    other->native_id = syscall(SYS_gettid);
    (void)prctl(PR_SET_NAME, "other");
    (void)close(other->started[1]);
    (void)!read(other->end[0], &byte, 1);
    return NULL;
}

/* All that neither have facts nor tell the tale. */
static void
other_threads_are_those_without_facts(void **state)
{
    struct other_thread other;
    pthread_t thread;
    char byte = 0;
    char facts[64];
    struct stacks stacks = {.is_frozen = true};
    struct text without = {0};
    struct text with = {0};
    (void)state;
    SKIP_UNDER_THREAD_SANITIZER();
    assert_int_equal(pipe2(other.started, O_CLOEXEC), 0);
    assert_int_equal(pipe2(other.end, O_CLOEXEC), 0);
    assert_int_equal(pthread_create(&thread, NULL, be_other_thread, &other), 0);
    assert_int_equal(read(other.started[0], &byte, 1), 0);
    (void)snprintf(facts, sizeof(facts), "@ 1 %ld 0 x\n", other.native_id);
    append_other_threads(&without, &stacks);
    read_facts(&stacks, (struct slice){facts, strlen(facts)});
    append_other_threads(&with, &stacks);
    free_stacks(&stacks);
    assert_non_null(strstr(string_of(&without), " (other), "));
    assert_null(strstr(string_of(&without), " (unit_snapshot), "));
    assert_null(strstr(string_of(&with), " (other), "));
    (void)close(other.end[1]);
    assert_int_equal(pthread_join(thread, NULL), 0);
    (void)close(other.started[0]);
    (void)close(other.end[0]);
    free_text(&without);
    free_text(&with);
}

/* ---- Copies ---------------------------------------------------------------------------------- */

/* What becomes of each copy in turn, the last one of all that follow. */
enum fate {
    LIVES,
    DIES_AT_ONCE,
    DIES_LATE,
    DIES_AT_TWO,
    LIVES_IN_FILES,
    WRITES_MUCH,
    HANGS,
};

enum { MUCH = 10000 }; /* frames, 300 KB */

static const enum fate *fates;
static size_t fate_count;
static struct {
    _Atomic size_t count;
} * copies_made; /* shared with the copies */

/* In faulthandler's place. */
static void
on_snapshot(int signum)
{
    static const char stack[] = "Thread 0x1 (most recent call first):\n  one\n";
    size_t number = atomic_fetch_add(&copies_made->count, 1);
    enum fate fate = fates[number < fate_count ? number : fate_count - 1];
    (void)signum;
    if (fate != DIES_AT_ONCE) {
        (void)!write(STDERR_FILENO, stack, sizeof(stack) - 1);
    }
    if (fate == HANGS) {
        (void)poll(NULL, 0, -1);
    }
    if (fate == LIVES_IN_FILES) {
        static const char files[] = "Thread 0x2 (most recent call first):\n"
                                    "  File \"alive\", line 1 in inner\n"
                                    "  File \"dead\", line 1 in outer\n";
        (void)!write(STDERR_FILENO, files, sizeof(files) - 1);
        fate = LIVES;
    }
    if (fate == WRITES_MUCH) {
        static const char frame[] = "  File \"none\", line 1 in much\n";
        for (int i = 0; i < MUCH; i++) {
            (void)!write(STDERR_FILENO, frame, sizeof(frame) - 1);
        }
        fate = LIVES;
    }
    if (fate == DIES_AT_TWO) {
        static const char two[] = "Thread 0x2 (most recent call first):\n";
        (void)!write(STDERR_FILENO, two, sizeof(two) - 1);
        fate = is_unreadable(2) ? LIVES : fate;
    }
    if (fate != LIVES) {
        (void)syscall(SYS_kill, syscall(SYS_getpid), SIGKILL);
    }
}

static void
set_handler(void (*handler)(int))
{
    const struct sigaction action = {.sa_handler = handler};
    (void)sigaction(SIGRTMIN, &action, NULL);
}

static int
prepare_copies(void **state)
{
    (void)state;
    copies_made = mmap(NULL, sizeof(*copies_made), PROT_READ | PROT_WRITE,
                       MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    snapshot.signum = SIGRTMIN;
    snapshot.handler = on_snapshot;
    snapshot.interpreter = PyInterpreterState_Get();
    snapshot.modules = PyImport_GetModuleDict();
    set_handler(on_snapshot);
    return copies_made == MAP_FAILED;
}

static int
forget_copies(void **state)
{
    (void)state;
    (void)munmap(copies_made, sizeof(*copies_made));
    set_handler(SIG_DFL);
    snapshot.modules = NULL;
    return 0;
}

#define WITH_COPIES(test)                                                                \
  cmocka_unit_test_setup_teardown(test, prepare_copies, forget_copies)

#define SET_FATES(...)                                                                   \
  do {                                                                                   \
    static const enum fate array[] = {__VA_ARGS__};                                      \
    fates = array;                                                                       \
    fate_count = Py_ARRAY_LENGTH(array);                                                 \
  } while (0)

/* Of the snapshot, whose end is left to see. */
static void
assert_snapshot(const char *wanted)
{
    struct text text = {0};
    append_snapshot(&text, &dump_form);
    if (strstr(string_of(&text), wanted) == NULL || strstr(text.bytes, END) == NULL) {
        fail_msg("%s\nis not in\n%s", wanted, text.bytes);
    }
    free_text(&text);
    assert_int_equal(waitpid(-1, NULL, WNOHANG | __WALL), -1); /* no copy is left */
    assert_int_equal(errno, ECHILD);
}

static void
copy_that_lives_is_the_only_one(void **state)
{
    (void)state;
    SKIP_UNDER_THREAD_SANITIZER();
    SET_FATES(LIVES);
    assert_snapshot("ThreadID=1 #########\n  one\n");
    assert_int_equal(atomic_load(&copies_made->count), 1);
}

static void
copy_that_dies_is_made_again(void **state)
{
    (void)state;
    SKIP_UNDER_THREAD_SANITIZER();
    SET_FATES(DIES_AT_ONCE, DIES_LATE, LIVES);
    assert_snapshot("ThreadID=1 #########\n  one\n");
    assert_int_equal(atomic_load(&copies_made->count), 3);
}

static void
copy_that_hangs_is_ended_and_made_again(void **state)
{
    (void)state;
    SKIP_UNDER_THREAD_SANITIZER();
    SET_FATES(HANGS, LIVES);
    assert_snapshot("ThreadID=1 #########\n  one\n");
    assert_int_equal(atomic_load(&copies_made->count), 2);
}

static void
best_of_dead_copies_is_shown(void **state)
{
    (void)state;
    SKIP_UNDER_THREAD_SANITIZER();
    SET_FATES(DIES_AT_ONCE, DIES_LATE, DIES_AT_ONCE);
    assert_snapshot("The frozen copies of the process died; what the best one told:\n"
                    "\n######### ");
    assert_int_equal(atomic_load(&copies_made->count), SNAPSHOT_ATTEMPTS);
}

static void
assert_much_comes(void)
{
    struct text text = {0};
    SET_FATES(WRITES_MUCH);
    append_snapshot(&text, &dump_form);
    size_t count = 0;
    for (const char *at = string_of(&text); (at = strstr(at, ", in much\n")) != NULL;
         at++) {
        count++;
    }
    assert_int_equal(count, MUCH);
    free_text(&text);
    assert_int_equal(atomic_exchange(&copies_made->count, 0), 1);
}

/* A pipe holds 64 KiB; a copy that hangs is ended as ever. */
static void
pipe_does_where_no_memory_file_may_be_had(void **state)
{
    (void)state;
    SKIP_UNDER_THREAD_SANITIZER();
    close_kept(&snapshot.spare);
    const size_t descriptors = count_entries("/proc/self/fd");
    assert_much_comes();
    is_memfd_refused = true;
    assert_much_comes();
    SET_FATES(HANGS, DIES_LATE, LIVES);
    assert_snapshot("ThreadID=1 #########\n  one\n");
    assert_int_equal(atomic_load(&copies_made->count), 3);
    is_memfd_refused = false;
    close_kept(&snapshot.spare);
    assert_int_equal(count_entries("/proc/self/fd"), descriptors);
}

/* It hid all threads behind it. */
static void
thread_that_copies_die_of_is_left_out(void **state)
{
    (void)state;
    SKIP_UNDER_THREAD_SANITIZER();
    SET_FATES(DIES_AT_TWO);
    assert_snapshot("ThreadID=1 #########\n  one\n"
                    "\n######### ");
    assert_int_equal(atomic_load(&copies_made->count), DEATHS_AT_ONE_THREAD + 1);
    SET_FATES(DIES_AT_TWO, DIES_AT_ONCE, DIES_AT_TWO);
    atomic_store(&copies_made->count, 0);
    assert_snapshot("ThreadID=2 #########\n  <its frames cannot be read>\n");
    assert_int_equal(atomic_load(&copies_made->count), 2 + DEATHS_AT_ONE_THREAD + 1);
}

/* Exits with 0 in a child. */
ATTACHED static PyObject *
py_forget_frames(PyObject *self, PyObject *unused)
{
    PyThreadState *tstate = PyThreadState_Get();
    int status = 1;
    pid_t child = fork();
    (void)self;
    (void)unused;
    if (child == 0) {
        const bool was_in_code = is_in_python_code(tstate);
        forget_frames(tstate);
        _exit(was_in_code && PyThreadState_GetFrame(tstate) == NULL ? 0 : 2);
    }
    (void)waitpid(child, &status, 0);
    return PyLong_FromLong(status);
}

ATTACHED static void
frames_that_are_forgotten_are_not_walked(void **state)
{
    static PyMethodDef method = {"forget", py_forget_frames, METH_NOARGS, NULL};
    PyObject *function = PyCFunction_New(&method, NULL);
    (void)state;
    (void)PyDict_SetItemString(PyModule_GetDict(PyImport_AddModule("__main__")), "forget",
                               function);
    assert_int_equal(PyRun_SimpleString("def f(): return forget()\nassert f() == 0\n"),
                     0);
    Py_DECREF(function);
}

static void
signal_that_the_application_took_makes_no_copy(void **state)
{
    (void)state;
    set_handler(SIG_IGN);
    assert_snapshot(
        "which faulthandler had for it, is somebody else's now.\n\nOther threads of the");
    assert_int_equal(atomic_load(&copies_made->count), 0);
}

/* It is what many processes are stuck for. */
static void
dead_file_system_keeps_no_client_from_the_stacks(void **state)
{
    (void)state;
    SKIP_UNDER_THREAD_SANITIZER();
    SET_FATES(LIVES_IN_FILES);
    write_text("alive", "line of inner\n");
    write_text("dead", "line of outer\n");
    assert_snapshot("File: \"dead\", line 1, in outer\n  line of outer\n"
                    "File: \"alive\", line 1, in inner\n  line of inner\n");
    atomic_store(&is_dead, true);
    assert_snapshot("File: \"dead\", line 1, in outer\n"
                    "File: \"alive\", line 1, in inner\n  line of inner\n");
    const size_t tasks = count_entries("/proc/self/task");
    assert_snapshot("File: \"dead\", line 1, in outer\n"
                    "File: \"alive\", line 1, in inner\n");
    assert_snapshot("Without lines, for a file system does not answer: alive, dead\n");
    assert_int_equal(count_entries("/proc/self/task"), tasks); /* one is stuck, not two */
    atomic_store(&is_dead, false);
    (void)unlink("alive");
    (void)unlink("dead");
}

/* A cgroup that allows so many bytes and counts so many, of which some are cache; in both forms. */
static void
put_cgroup(unsigned long most, unsigned long current, unsigned long cache)
{
    char text[4][128];
    (void)snprintf(text[0], sizeof(text[0]), "%lu\n", most);
    (void)snprintf(text[1], sizeof(text[1]), "%lu\n", current);
    (void)snprintf(text[2], sizeof(text[2]),
                   "cache 7\ntotal_inactive_file %lu\ntotal_active_file %lu\n", cache / 2,
                   cache / 2);
    (void)snprintf(text[3], sizeof(text[3]),
                   "anon 7\ninactive_file %lu\nactive_file %lu\n", cache / 2, cache / 2);
    (void)mkdir("cgroup", 0700);
    (void)mkdir("cgroup/memory", 0700);
    write_text("cgroup/memory/memory.limit_in_bytes", text[0]);
    write_text("cgroup/memory/memory.usage_in_bytes", text[1]);
    write_text("cgroup/memory/memory.stat", text[2]);
    write_text("cgroup/memory.max", text[0]);
    write_text("cgroup/memory.current", text[1]);
    write_text("cgroup/memory.stat", text[3]);
}

static void
remove_cgroup(void)
{
    static const char *const names[] = {"cgroup/memory/memory.limit_in_bytes",
                                        "cgroup/memory/memory.usage_in_bytes",
                                        "cgroup/memory/memory.stat",
                                        "cgroup/memory",
                                        "cgroup/memory.max",
                                        "cgroup/memory.current",
                                        "cgroup/memory.stat",
                                        "cgroup"};
    for (size_t i = 0; i < Py_ARRAY_LENGTH(names); i++) {
        assert_int_equal(remove(names[i]), 0);
    }
}

/* The OOM killer would take the process, not the copy. */
static void
no_copy_is_made_where_the_cgroup_has_no_room_for_it(void **state)
{
    static const unsigned long mb = 1024UL * 1024UL;
    const char *root = cgroup_root;
    (void)state;
    SKIP_UNDER_THREAD_SANITIZER();
    SET_FATES(LIVES);
    atomic_store(&copies_made->count, 0);
    cgroup_root = "cgroup";
    put_cgroup(100 * mb, 99 * mb, 0);
    assert_snapshot("No frozen copy of the process can be made: its memory cgroup has");
    assert_int_equal(atomic_load(&copies_made->count), 0);
    put_cgroup(100 * mb, 99 * mb, 90 * mb);
    assert_snapshot("ThreadID=1 #########\n  one\n");
    put_cgroup(100 * mb, 50 * mb, 0);
    assert_snapshot("ThreadID=1 #########\n  one\n");
    write_text("cgroup/memory.max", "max\n");
    write_text("cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n");
    assert_snapshot("ThreadID=1 #########\n  one\n");
    remove_cgroup();
    cgroup_root = root;
}

/* Each version counts in files of its own. */
static void
memory_that_a_cgroup_has_left_is_read_in_both_forms(void **state)
{
    (void)state;
    put_cgroup(1000, 900, 100);
    assert_int_equal(left_in("cgroup/memory", &cgroup_v1, 100), 200);
    assert_int_equal(left_in("cgroup", &cgroup_v2, 100), 200);
    assert_true(left_in("cgroup", &cgroup_v1, 100) == UINT64_MAX);
    put_cgroup(1000, 1200, 100);
    assert_int_equal(left_in("cgroup/memory", &cgroup_v1, 100), 0);
    assert_int_equal(left_in("cgroup", &cgroup_v2, 100), 0);
    remove_cgroup();
}

/* ---- Copies that run Python ------------------------------------------------------------ */

#if CAN_FREEZE

/* Watches a child that sleeps for ever, in place of a copy. */
static enum copy_end
watch_sleeping_child(void)
{
    int ends[2];
    struct board *board = mmap(NULL, sizeof(*board), PROT_READ | PROT_WRITE,
                               MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    struct session session = {.copy = fork()};
    if (session.copy == 0) {
        (void)poll(NULL, 0, -1);
        _exit(0);
    }
    assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM, 0, ends), 0);
    assert_int_equal(pthread_mutex_init(&session.out_lock, NULL), 0);
    keep_fd(&session.fd, ends[0]);
    enum copy_end end = watch_copy(&session, board);
    (void)close(ends[0]);
    (void)close(ends[1]);
    assert_int_equal(session.copy, 0); /* it is reaped */
    return end;
}

static void
copy_that_does_nothing_is_ended(void **state)
{
    const int64_t usual_ms = copy_idle_ms;
    (void)state;
    copy_idle_ms = 1;
    assert_int_equal(watch_sleeping_child(), END_IDLE);
    copy_idle_ms = usual_ms;
}

/* The process is never what has to go for a copy. */
static void
copy_is_not_made_and_does_not_stay_where_memory_is_short(void **state)
{
    static const unsigned long mb = 1024UL * 1024UL;
    const char *root = cgroup_root;
    struct freezing none = {.attached = false};
    (void)state;
    cgroup_root = "cgroup";
    put_cgroup(100 * mb, 91 * mb, 0);
    assert_int_equal(freeze(&none), FREEZE_NO_MEMORY);
    assert_int_equal(watch_sleeping_child(), END_NO_MEMORY);
    put_cgroup(10 * mb, 89 * mb / 10, 0); /* page tables would not fit */
    assert_int_equal(freeze(&none), FREEZE_NO_MEMORY);
    remove_cgroup();
    cgroup_root = root;
}

/* It may be gone before Python answers, and after each copy that dies. */
static void
copy_is_not_made_for_a_client_that_has_left(void **state)
{
    int ends[2];
    struct freezing freezing = {.attached = false};
    (void)state;
    assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM, 0, ends), 0);
    freezing.client_fd = ends[0];
    (void)close(ends[1]);
    assert_int_equal(freeze(&freezing), FREEZE_NO_CLIENT);
    (void)close(ends[0]);
}

/* As one that has answered just when its client had waited for too long: Python is there for it. */
static void
copy_without_python_is_not_made_where_nobody_has_the_gil(void **state)
{
    int ends[2];
    struct freezing freezing = {.attached = false};
    (void)state;
    SKIP_UNDER_THREAD_SANITIZER();
    SKIP_WITHOUT_GIL();
    assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM, 0, ends), 0);
    freezing.client_fd = ends[0];
    manhole.interpreter = PyInterpreterState_Get();
    PyThreadState *tstate = PyEval_SaveThread();
    enum freeze_result result = freeze(&freezing);
    PyEval_RestoreThread(tstate);
    manhole.interpreter = NULL;
    assert_int_equal(result, FREEZE_NO_HOLDER);
    (void)close(ends[0]);
    (void)close(ends[1]);
}

#endif /* CAN_FREEZE */

static void
without_descriptors_no_copy_is_made(void **state)
{
    struct rlimit limit;
    struct rlimit none;
    (void)state;
    assert_int_equal(getrlimit(RLIMIT_NOFILE, &limit), 0);
    none = (struct rlimit){.rlim_cur = 0, .rlim_max = limit.rlim_max};
    assert_int_equal(setrlimit(RLIMIT_NOFILE, &none), 0);
    assert_snapshot("No frozen copy of the process can be made: Too many open files.\n");
    assert_int_equal(setrlimit(RLIMIT_NOFILE, &limit), 0);
}

/* ---- Facts of threads ------------------------------------------------------------------ */

static const char threads_program[] =
    "import threading\n"
    "stop = threading.Event()\n"
    "ready = threading.Semaphore(0)\n"
    "def park(): ready.release(); stop.wait()\n"
    "class Odd(threading.Thread):\n"
    "    def __init__(self):\n"
    "        self.first = 'not the name'; self.second = 12345\n"
    "        super().__init__(target=park, name='Odd one')\n"
    "class Own(threading.Thread):\n"
    "    def __init__(self):\n"
    "        super().__init__(target=park, name='Own attributes')\n"
    "        self.password = 'secret'; self.none = None; self.options = {}\n"
    "        self.like_one = {'_ident': 1, '_name': 'not the name'}\n"
    "        self.also = 'secret'; self.flag = True; self.number = 12345\n"
    "class Asked(threading.Thread):\n"
    "    def __init__(self):\n"
    "        super().__init__(target=park, name='Asked for its dict')\n"
    "        vars(self)['more'] = 'not the name'\n"
    "threads = [threading.Thread(target=park, name='Caf\\xe9 ' + 200 * 'x'), "
    "Odd(), Own(), Asked(), threading.Thread(target=park)]\n"
    "for thread in threads: thread.daemon = True; thread.start(); ready.acquire()\n"
    "threads[4].name = 'Renamed'\n"
    "threads.append(threading.main_thread())\n"
    "truth = [(t.ident, t.native_id, t.name) for t in threads]\n";

/* threading's objects are read as memory, without running Python. */
ATTACHED static void
threads_are_known_by_name_and_native_id(void **state)
{
    PyObject *names = PyModule_GetDict(PyImport_AddModule("__main__"));
    PyObject *truth = NULL;
    (void)state;
    assert_int_equal(PyRun_SimpleString(threads_program), 0);
    truth = PyDict_GetItemString(names, "truth");
    for (Py_ssize_t i = 0; i < PyList_Size(truth); i++) {
        struct thread_facts facts = {0};
        unsigned long native_id = 0;
        PyObject *name = NULL;
        assert_true(PyArg_ParseTuple(PyList_GetItem(truth, i), "kkU", &facts.ident,
                                     &native_id, &name));
        find_thread_object(&facts);
        assert_int_equal(facts.native_id, native_id);
        assert_non_null(facts.name);
        assert_int_equal(PyUnicode_Compare(facts.name, name), 0);
    }
    assert_int_equal(PyRun_SimpleString("stop.set()\n"
                                        "for t in threads[:-1]: t.join()\n"),
                     0);
}

/* A thread's object that is read where it is not what it seems. */
ATTACHED static void
name_counts_only_beside_the_known_ident(void **state)
{
    PyObject *names = PyModule_GetDict(PyImport_AddModule("__main__"));
    unsigned long ident = 0;
    struct thread_facts facts = {.native_id = 7};
    (void)state;
    assert_int_equal(PyRun_SimpleString("import threading\n"
                                        "other = threading.Thread(name='Other')\n"
                                        "other._ident = 12345\n"
                                        "threading._active[23456] = other\n"),
                     0);
    for (ident = 12345; ident <= 23456; ident += 11111) {
        facts.ident = ident;
        find_thread_object(&facts);
        assert_null(facts.name);
        assert_int_equal(facts.native_id, 7);
    }
    assert_int_equal(PyRun_SimpleString("del threading._active[23456]\n"), 0);
    assert_non_null(PyDict_GetItemString(names, "other"));
}

#define TEN(x) x x x x x x x x x x
#define LONG TEN(TEN("0123456789"))
ATTACHED static void
name_is_one_line_and_whole(void **state)
{
    static const char utf8[] = "Caf\xc3\xa9 \xe2\x82\xac \xf0\x9f\x90\x8d " LONG
                               "\n\x1b\x7f\xc2\x9b\xed\xb3\xbf";
    static const char wanted[] =
        "@ 1 2 1 Caf\xc3\xa9 \xe2\x82\xac \xf0\x9f\x90\x8d " LONG "?????\n";
    struct thread_facts facts = {.ident = 1, .native_id = 2};
    int ends[2];
    char line[sizeof(wanted)] = "";
    (void)state;
    assert_int_equal(pipe2(ends, O_CLOEXEC), 0);
    facts.name = PyUnicode_DecodeUTF8(utf8, sizeof(utf8) - 1, "surrogatepass");
    assert_non_null(facts.name);
    write_facts(ends[1], &facts, true);
    assert_int_equal(read(ends[0], line, sizeof(line)), sizeof(wanted) - 1);
    assert_string_equal(line, wanted);
    Py_DECREF(facts.name);
    (void)close(ends[0]);
    (void)close(ends[1]);
}

int
main(void)
{
    static const struct CMUnitTest tests[] = {
        cmocka_unit_test(text_is_taken_line_by_line),
        cmocka_unit_test(facts_are_read_and_other_lines_left),
        cmocka_unit_test(long_name_is_read_whole),
        cmocka_unit_test(holder_of_the_gil_is_found_in_either_form),
        cmocka_unit_test(escapes_of_faulthandler_are_utf8_again),
        cmocka_unit_test(frame_is_told_in_our_words_with_its_source),
        cmocka_unit_test(number_of_the_next_line_is_not_this_ones),
        cmocka_unit_test(only_files_of_a_sensible_size_are_read),
        cmocka_unit_test(nothing_is_taken_out_of_a_fifo),
        cmocka_unit_test(nothing_is_taken_out_of_a_file_without_a_size),
        cmocka_unit_test(files_are_opened_when_it_is_their_turn),
        cmocka_unit_test(without_a_thread_files_are_read_all_the_same),
        cmocka_unit_test(source_is_read_once_a_dump),
        cmocka_unit_test(line_that_is_wanted_later_is_read_too),
        cmocka_unit_test(line_is_whole_wherever_a_piece_ends),
        cmocka_unit_test(each_of_many_files_is_itself),
        cmocka_unit_test(stacks_are_told_outermost_first),
        cmocka_unit_test(head_of_the_list_is_told_once),
        cmocka_unit_test(thread_of_another_interpreter_says_so),
        cmocka_unit_test(what_is_no_stack_is_left_out),
        cmocka_unit_test(facts_of_a_thread_stand_under_its_header),
        cmocka_unit_test(same_stack_is_told_once_under_all_its_headers),
        cmocka_unit_test(text_may_break_off_anywhere),
        cmocka_unit_test(kernel_state_is_that_of_the_thread),
        cmocka_unit_test(named_thread_has_the_same_state),
        cmocka_unit_test(thread_that_is_gone_is_gone),
        cmocka_unit_test(each_state_has_a_name),
        cmocka_unit_test(other_threads_are_those_without_facts),
        WITH_COPIES(copy_that_lives_is_the_only_one),
        WITH_COPIES(copy_that_dies_is_made_again),
        WITH_COPIES(copy_that_hangs_is_ended_and_made_again),
        WITH_COPIES(best_of_dead_copies_is_shown),
        WITH_COPIES(pipe_does_where_no_memory_file_may_be_had),
        WITH_COPIES(thread_that_copies_die_of_is_left_out),
        cmocka_unit_test(frames_that_are_forgotten_are_not_walked),
        WITH_COPIES(signal_that_the_application_took_makes_no_copy),
        WITH_COPIES(dead_file_system_keeps_no_client_from_the_stacks),
        WITH_COPIES(no_copy_is_made_where_the_cgroup_has_no_room_for_it),
        cmocka_unit_test(memory_that_a_cgroup_has_left_is_read_in_both_forms),
#if CAN_FREEZE
        WITH_COPIES(copy_that_does_nothing_is_ended),
        WITH_COPIES(copy_is_not_made_and_does_not_stay_where_memory_is_short),
        WITH_COPIES(copy_is_not_made_for_a_client_that_has_left),
        WITH_COPIES(copy_without_python_is_not_made_where_nobody_has_the_gil),
#endif
        WITH_COPIES(without_descriptors_no_copy_is_made),
        WITH_COPIES(threads_are_known_by_name_and_native_id),
        WITH_COPIES(name_counts_only_beside_the_known_ident),
        cmocka_unit_test(name_is_one_line_and_whole),
    };
    int failed = 0;
    (void)snprintf(directory, sizeof(directory), "/tmp/mh-XXXXXX");
    if (mkdtemp(directory) == NULL || chdir(directory) < 0) {
        return 1;
    }
    Py_InitializeEx(0);
    failed = RUN_UNIT_TESTS(tests);
    return Py_FinalizeEx() < 0 || chdir("/") < 0 || rmdir(directory) < 0 || failed;
}
