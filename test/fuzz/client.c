/* client.c - fuzz targets of manhole_cli.c: what processes, terminals, files, /proc tell it. */
#ifndef _GNU_SOURCE
#  define _GNU_SOURCE
#endif
#include <errno.h>
#include <fcntl.h>
#include <sanitizer/lsan_interface.h>
#include <setjmp.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

/* ---- The outside world, as far as a target plays it ----------------------------------------- */

static jmp_buf
    *way_back;        /* where to go instead of ending the program; NULL: nobody asked */
static int left_with; /* the status that it would have ended with */

static struct {
    const char *bytes;
    size_t length;
    uint32_t seed;
} incoming; /* what recv() gives, piece by piece */

static char *told; /* owned: what went to standard output and error */
static size_t told_length;

static _Noreturn void leave_target(int status);
static int open_file(const char *path, int flags, ...);
static ssize_t write_down(int fd, const void *bytes, size_t count);
static ssize_t take_incoming(int fd, void *bytes, size_t size, int flags);

#define exit leave_target
#define open open_file
#define write write_down
#define recv take_incoming
#define isatty(fd) ((fd) >= 0)
#define main manhole_cli_main
int manhole_cli_main(int argc, char **argv);
#include "../../manhole_cli.c"
#undef exit
#undef open
#undef write
#undef recv
#undef isatty
#undef main

#include "fuzz.h"

static _Noreturn void
leave_target(int status)
{
    MUST(way_back != NULL);
    left_with = status;
    longjmp(*way_back, 1); /* NOLINT(cert-err52-cpp): as exit() would */
}

/* Whether a file is the input's: all of /proc but what is ours. */
static bool
is_played(const char *path)
{
    return strncmp(path, "/proc/", 6) == 0 && strncmp(path, "/proc/self/", 11) != 0;
}

static int
open_file(const char *path, int flags, ...)
{
    return open(is_played(path) ? file_path : path, flags, 0600);
}

static ssize_t
write_down(int fd, const void *bytes, size_t count)
{
    char *grown = NULL;
    if (fd != STDOUT_FILENO && fd != STDERR_FILENO) {
        return write(fd, bytes, count);
    }
    grown = realloc(told, told_length + count + 1);
    MUST(grown != NULL);
    told = grown;
    memcpy(told + told_length, bytes, count);
    told_length += count;
    told[told_length] = '\0';
    return (ssize_t)count;
}

static ssize_t
take_incoming(int fd, void *bytes, size_t size, int flags)
{
    size_t count = next_piece(&incoming.seed, incoming.length);
    (void)fd;
    (void)flags;
    count = count < size ? count : size;
    memcpy(bytes, incoming.bytes, count);
    incoming.bytes += count;
    incoming.length -= count;
    return (ssize_t)count;
}

static void
forget_told(void)
{
    free(told);
    told = NULL;
    told_length = 0;
}

/* Takes what was told. */
static struct buffer
take_told(void)
{
    struct buffer taken = {.data = told, .length = told_length, .size = told_length + 1};
    told = NULL;
    told_length = 0;
    return taken;
}

static bool
is_same(const struct buffer *one, const struct buffer *other)
{
    return one->length == other->length &&
           (one->length == 0 || memcmp(one->data, other->data, one->length) == 0);
}

/* ---- What a terminal may get ---------------------------------------------------------------- */

/* Whether text moves nothing but the cursor, and is UTF-8. Apart from what is tested: wide
 * characters of the C library's. */
static bool
is_tame(const char *text, size_t length)
{
    mbstate_t state = {0};
    for (size_t i = 0; i < length;) {
        wchar_t c = 0;
        size_t count = mbrtowc(&c, text + i, length - i, &state);
        if (count == 0 || count > MB_LEN_MAX) {
            return false; /* a NUL, no character, or half of one */
        }
        if ((c < 0x20 && c != L'\n' && c != L'\t' && c != L'\r') ||
            (c >= 0x7f && c < 0xa0) || (c >= 0x202a && c <= 0x202e) ||
            (c >= 0x2066 && c <= 0x2069)) {
            return false;
        }
        i += count;
    }
    return true;
}

/* How long the colour is that begins here, one of ours or of CPython's tracebacks; 0: none does. */
static size_t
skip_colour(const char *text, bool *is_painted)
{
    size_t count = strncmp(text, "\033[", 2) == 0 ? strspn(text + 2, "0123456789;") : 0;
    const char *end = text + 2 + count;
    unsigned long code = 0;
    if (strncmp(text, "\033[", 2) != 0 || *end != 'm') {
        return 0;
    }
    for (const char *at = text + 2; at < end; at += *at == ';') {
        char *rest = NULL;
        code = strtoul(at, &rest, 10);
        at = rest;
        if (code > 2 && code != 31 && code != 32 && code != 35 && code != 36) {
            return 0;
        }
    }
    *is_painted = code != 0;
    return count + 3;
}

/* The same once such colours are taken out, each of which ends on its line. */
static bool
is_tame_in_colours(const char *text, size_t length)
{
    struct buffer bare = {.data = NULL};
    bool is_painted = false;
    bool is_good = true;
    for (size_t i = 0; i < length; i++) {
        size_t colour = skip_colour(text + i, &is_painted);
        if (colour > 0) {
            i += colour - 1;
        }
        else {
            is_good = is_good && !(is_painted && text[i] == '\n');
            append(&bare, text + i, 1);
        }
    }
    is_good = is_good && !is_painted && is_tame(text_of(&bare), bare.length);
    free(bare.data);
    return is_good;
}

/* The first byte of an input says how it is cut, the rest is the input. */
static uint32_t
take_seed(const char **bytes, size_t *length)
{
    uint32_t seed = *length == 0 ? 0 : (unsigned char)**bytes;
    *bytes += *length > 0;
    *length -= *length > 0;
    return seed;
}

static struct buffer
tame_in_pieces(const char *bytes, size_t length, uint32_t seed)
{
    struct buffer unfinished = {.data = NULL};
    struct buffer all = {.data = NULL};
    while (length > 0) {
        size_t count = next_piece(&seed, length);
        append_piece(&all, &unfinished, bytes, count);
        bytes += count;
        length -= count;
    }
    free(unfinished.data);
    return all;
}

/* The console's output, for a terminal. */
static void
fuzz_filter(const char *bytes, size_t length)
{
    uint32_t seed = take_seed(&bytes, &length);
    struct buffer input = {.data = NULL};
    struct buffer whole;
    struct buffer pieces;
    append(&input, bytes, length);
    append(&input, "\n", 1); /* so that no character is left over */
    whole = tame_in_pieces(input.data, input.length, 0);
    pieces = tame_in_pieces(input.data, input.length, seed);
    MUST(is_tame(whole.data, whole.length));
    MUST(is_same(&whole, &pieces));
    free(input.data);
    free(whole.data);
    free(pieces.data);
}

static struct buffer
show_in_pieces(const char *bytes, size_t length, uint32_t seed)
{
    struct buffer text = {.data = NULL};
    append_text(&text, "#########\n"); /* no traceback goes on from before */
    while (length > 0) {
        size_t count = next_piece(&seed, length);
        append(&text, bytes, count);
        bytes += count;
        length -= count;
        show_lines(STDOUT_FILENO, NULL, &text, length == 0);
    }
    MUST(text.length == 0 || strcmp(text.data, "#########\n") == 0);
    free(text.data);
    return take_told();
}

/* Stacks, in colours; and what is said when there are none. */
static void
fuzz_stacks(const char *bytes, size_t length)
{
    uint32_t seed = take_seed(&bytes, &length);
    struct buffer whole = show_in_pieces(bytes, length, 0);
    struct buffer pieces = show_in_pieces(bytes, length, seed);
    MUST(is_tame_in_colours(text_of(&whole), whole.length));
    MUST(is_same(&whole, &pieces));
    free(whole.data);
    free(pieces.data);
}

static struct buffer
label_in_pieces(const char *bytes, size_t length, uint32_t seed)
{
    struct buffer text = {.data = NULL};
    (void)paint_of_line("#########");
    while (length > 0) {
        size_t count = next_piece(&seed, length);
        append(&text, bytes, count);
        bytes += count;
        length -= count;
        show_lines(STDOUT_FILENO, "7", &text, length == 0);
    }
    MUST(text.length == 0);
    free(text.data);
    return take_told();
}

/* What one of several processes says. */
static void
fuzz_labels(const char *bytes, size_t length)
{
    uint32_t seed = take_seed(&bytes, &length);
    struct buffer whole = label_in_pieces(bytes, length, 0);
    struct buffer pieces = label_in_pieces(bytes, length, seed);
    MUST(is_tame_in_colours(text_of(&whole), whole.length));
    MUST(is_same(&whole, &pieces));
    for (size_t i = 0; i < whole.length; i += strcspn(whole.data + i, "\n") + 1) {
        MUST(strncmp(whole.data + i, "7: ", 3) == 0);
    }
    free(whole.data);
    free(pieces.data);
}

/* ---- Frames of -c and -f -------------------------------------------------------------------- */

/* What they come to, in other words than parse_frames() has. */
struct reading {
    struct buffer output;
    long status;
    bool is_refused;
    bool wants_input;
};

static struct reading
read_frames(const char *bytes, size_t length)
{
    struct reading reading = {.status = -1};
    size_t at = 0;
    while (at < length && !reading.is_refused) {
        size_t size = 0;
        size_t here = 0;
        char kind = bytes[at];
        reading.is_refused = kind != 'o' && kind != 'e' && kind != 'x' && kind != 'i';
        if (reading.is_refused || length - at < 5) {
            break;
        }
        for (size_t i = 1; i < 5; i++) {
            size = size * 256 + (unsigned char)bytes[at + i];
        }
        at += 5;
        here = size < length - at ? size : length - at;
        if (kind == 'o' || kind == 'e') {
            append(&reading.output, bytes + at, here);
        }
        else if (kind == 'x' && here == size) {
            char *digits = copy_of(bytes + at, here < 15 ? here : 15); /* owned */
            reading.status = strtol(digits, NULL, 10) & 0xff;
            free(digits);
        }
        reading.wants_input = reading.wants_input || kind == 'i';
        at += here;
    }
    return reading;
}

static void
fuzz_frames(const char *bytes, size_t length)
{
    uint32_t seed = take_seed(&bytes, &length);
    struct reading reading = read_frames(bytes, length);
    struct answer answer = {
        .status = -1, .out = {.fd = STDOUT_FILENO}, .err = {.fd = STDERR_FILENO}};
    struct task task = {.server = -1};
    struct buffer shown;
    incoming.bytes = bytes;
    incoming.length = length;
    incoming.seed = seed;
    while (!answer.is_refusal && read_answer(&task, &answer.bytes)) {
        parse_frames(&answer);
    }
    shown = take_told();
    MUST(is_same(&shown, &reading.output));
    MUST(answer.is_refusal == reading.is_refused);
    MUST(answer.wants_input == reading.wants_input);
    MUST(answer.status == reading.status);
    MUST(answer.status >= -1 && answer.status <= 255);
    free(shown.data);
    free(answer.bytes.data);
    free(reading.output.data);
}

/* A refusal at a terminal: of code, and of stacks. */
static void
fuzz_refusal(const char *bytes, size_t length)
{
    struct target target = {.pid = 1};
    struct task task = {.server = -1, .target = &target};
    struct buffer text = {.data = NULL};
    struct buffer shown;
    struct answer answer = {.status = -1,
                            .is_refusal = true,
                            .err = {.fd = STDERR_FILENO, .is_terminal = true}};
    append_text(&answer.bytes, "manhole: ");
    append(&answer.bytes, bytes, length);
    MUST(conclude(&answer, &task) == STATUS_NO_CONNECTION);
    shown = take_told();
    MUST(is_tame_in_colours(text_of(&shown), shown.length));
    free(shown.data);
    append(&text, bytes, length);
    append(&text, "\n", 1); /* so that no character is left over */
    MUST(say_no_stacks(&text, -1, &target) == STATUS_NO_CONNECTION);
    shown = take_told();
    MUST(is_tame_in_colours(text_of(&shown), shown.length));
    free(shown.data);
    free(answer.bytes.data);
    free(text.data);
}

/* ---- The editor ----------------------------------------------------------------------------- */

#ifdef HAVE_LIBEDIT

/* Between bytes '\1' stands what takes no room; the rest is tame. */
static bool
is_tame_prompt(const char *prompt)
{
    bool is_good = true;
    bool is_hidden = false;
    for (const char *part = prompt; is_good; is_hidden = !is_hidden) {
        size_t length = strcspn(part, "\1");
        is_good = is_hidden ? strncmp(part, "\033[1;32m", length) == 0 ||
                                  strncmp(part, " \033[0m\b", length) == 0
                            : is_tame(part, length) && memchr(part, '\n', length) == NULL;
        if (part[length] == '\0') {
            return is_good && !is_hidden;
        }
        part += length + 1;
    }
    return false;
}

static void
forget_editor(void)
{
    free(editor.line.data);
    free(editor.aside.data);
    free(editor.out.data);
    free(editor.prompt.data);
    free(editor.keys.data);
    free(marks.text.data);
    memset(&editor, 0, sizeof(editor));
    memset(&marks, 0, sizeof(marks));
}

/* All that the server says, above the line or in its prompt. */
static struct buffer
edit_in_pieces(const char *bytes, size_t length, uint32_t seed)
{
    struct buffer all = {.data = NULL};
    incoming.bytes = bytes;
    incoming.length = length;
    incoming.seed = seed;
    marks.are_put = true; /* else a prompt is guessed, by what arrives together */
    while (editor.way_out == NO_WAY_OUT) {
        receive_output();
        MUST(editor.line.length <= LINE_SIZE);
        MUST(editor.aside.length <= LINE_SIZE);
        append(&all, text_of(&editor.out), editor.out.length);
        empty(&editor.out);
    }
    MUST(is_tame_prompt(prompt_of(NULL)));
    append_text(&all, editor.prompt.data);
    forget_editor();
    return all;
}

/* Whether no line is longer than the screen is wide: such a one becomes output, row by row, as it
 * arrives. */
static bool
is_narrow(const char *bytes, size_t length)
{
    struct buffer line = {.data = NULL};
    bool is_good = true;
    for (size_t i = 0, count = 0; i < length; i += count + 1) {
        const char *newline = memchr(bytes + i, '\n', length - i);
        count = newline == NULL ? length - i : (size_t)(newline - bytes) - i;
        empty(&line);
        append(&line, bytes + i, count);
        is_good = is_good && move_over_text(&(struct cell){.row = 0}, &line) == 0;
    }
    free(line.data);
    return is_good;
}

static void
fuzz_editor(const char *bytes, size_t length)
{
    uint32_t seed = take_seed(&bytes, &length);
    struct buffer whole;
    struct buffer pieces;
    (void)paint_of_line("#########");
    whole = edit_in_pieces(bytes, length, 0);
    (void)paint_of_line("#########");
    pieces = edit_in_pieces(bytes, length, seed);
    MUST(is_same(&whole, &pieces) || !is_narrow(bytes, length));
    free(whole.data);
    free(pieces.data);
    incoming.bytes = bytes; /* by a server that puts no marks */
    incoming.length = length;
    incoming.seed = seed;
    while (editor.way_out == NO_WAY_OUT) {
        receive_output();
        MUST(is_tame_in_colours(text_of(&editor.out), editor.out.length));
        MUST(is_tame_prompt(prompt_of(NULL)));
        empty(&editor.out);
    }
    forget_editor();
}

/* The answer at Tab: a word, a newline, then what it may become. */
static void
fuzz_matches(const char *bytes, size_t length)
{
    char *word = copy_of(bytes, length); /* owned */
    struct buffer matches = {.data = NULL};
    size_t word_length = strcspn(word, "\n");
    if (word_length + 1 < length) {
        append(&matches, bytes + word_length + 1, length - word_length - 1);
    }
    word[word_length] = '\0';
    if (matches.data != NULL && are_matches(&matches, word)) {
        size_t common = common_length(&matches);
        MUST(common <= strcspn(matches.data, "\n"));
        for (size_t i = 0; i < matches.length; i += strcspn(matches.data + i, "\n") + 1) {
            MUST(strncmp(matches.data + i, matches.data, common) == 0);
        }
        if (common > strlen(word)) {
            MUST(strncmp(matches.data, word, strlen(word)) == 0);
        }
        show_matches(&matches, word);
    }
    free(word);
    free(matches.data);
    forget_editor();
}

/* Keys. */
static void
fuzz_keys(const char *bytes, size_t length)
{
    uint32_t seed = take_seed(&bytes, &length);
    struct buffer whole = {.data = NULL};
    struct buffer pieces = {.data = NULL};
    wchar_t key = 0;
    append(&editor.keys, bytes, length);
    while (next_key(&key)) {
        MUST(key >= 0 && key <= 0x10ffff && !(key >= 0xd800 && key <= 0xdfff));
        append(&whole, &key, sizeof(key));
    }
    MUST(editor.keys.length <= 3);
    empty(&editor.keys);
    for (size_t i = 0, count = 0; i < length; i += count) {
        count = next_piece(&seed, length - i);
        append(&editor.keys, bytes + i, count);
        while (next_key(&key)) {
            append(&pieces, &key, sizeof(key));
        }
    }
    MUST(is_same(&whole, &pieces));
    free(whole.data);
    free(pieces.data);
    forget_editor();
}

#endif

/* ---- The command line ----------------------------------------------------------------------- */

/* A request, and the words that it points into. */
struct understood {
    struct request request;
    bool is_good;
};

/* Parses words, each of which ends with a NUL. */
static void
understand(char *words, size_t length, struct understood *understood)
{
    jmp_buf back;
    static char *argv[512]; /* more than an input and what is built of it can have */
    int argc = 0;
    argv[0] = words;
    for (size_t i = 0; i < length; i += strlen(words + i) + 1) {
        MUST(argc < 511);
        argv[argc++] = words + i;
    }
    argv[argc] = NULL;
    memset(&understood->request, 0, sizeof(understood->request));
    understood->request.timeout_s = DEFAULT_TIMEOUT_S;
    understood->is_good = false;
    way_back = &back;
    __lsan_disable();        /* what a way out leaves behind goes with the program */
    if (setjmp(back) == 0) { /* NOLINT(cert-err52-cpp) */
        parse_command_line(argc, argv, &understood->request);
        understood->is_good = true;
    }
    else {
        MUST(left_with == STATUS_USAGE || left_with == STATUS_OK);
    }
    __lsan_enable();
    way_back = NULL;
}

static bool
is_same_text(const char *one, const char *other)
{
    return one == other || (one != NULL && other != NULL && strcmp(one, other) == 0);
}

static bool
is_same_number(double one, double other)
{
    return isnan(one) ? isnan(other) : one <= other && one >= other;
}

/* Whether two command lines ask for the same, wherever. */
static bool
asks_the_same(const struct request *one, const struct request *other)
{
    bool is_alike = one->action == other->action && one->signal == other->signal &&
                    one->ancestor == other->ancestor && one->pids == other->pids &&
                    one->arguments == other->arguments &&
                    is_same_number(one->timeout_s, other->timeout_s);
    for (int i = 0; is_alike && i < OPTIONS; i++) {
        bool is_there = options[i].group != PLACE_GROUP && i != OPTION_FILE;
        is_alike = is_there ? is_same_text(one->given[i], other->given[i])
                            : i != OPTION_FILE ||
                                  (one->given[i] == NULL) == (other->given[i] == NULL);
    }
    for (size_t i = 0; is_alike && i < one->pids; i++) {
        is_alike = is_same_text(one->pid[i], other->pid[i]);
    }
    for (size_t i = 0; is_alike && i < one->arguments; i++) {
        is_alike = is_same_text(one->argument[i], other->argument[i]);
    }
    return is_alike;
}

/* Whether all PIDs mean something here: over there they may, and what looks like one. */
static bool
is_every_pid_good(const struct request *request)
{
    bool is_good = true;
    for (size_t i = 0; i < request->pids; i++) {
        is_good = is_good && parse_pid(request->pid[i]) != 0;
    }
    return is_good;
}

/* What a shell makes of quoted words; each is to end with a NUL. */
static struct buffer
unquote(const char *text)
{
    struct buffer words = {.data = NULL};
    bool is_inside = false;
    for (const char *c = text; *c != '\0'; c++) {
        if (*c == '\'') {
            is_inside = !is_inside;
        }
        else if (is_inside) {
            append(&words, c, 1);
        }
        else if (*c == '\\' && c[1] != '\0') {
            append(&words, ++c, 1);
        }
        else {
            MUST(*c == ' ');
            if (c != text) {
                append(&words, "", 1);
            }
        }
    }
    MUST(!is_inside);
    append(&words, "", 1);
    return words;
}

/* Arguments, each with a NUL behind it; and how they are passed on by ssh or --exec. */
static void
fuzz_arguments(const char *bytes, size_t length)
{
    static struct understood here;
    static struct understood there;
    char *words = copy_of(bytes, length); /* owned */
    struct buffer quoted = {.data = NULL};
    struct buffer list = {.data = NULL};
    understand(words, length, &here);
    if (here.is_good) {
        MUST(here.request.signal >= 0 && here.request.signal <= SIGRTMAX);
        MUST(here.request.pids <= MAX_WORDS && here.request.arguments <= MAX_WORDS);
        MUST(here.request.pids > 0 || is_selection(&here.request) ||
             here.request.action == ACTION_LIST || here.request.action == ACTION_CLEAN);
        build_command(&here.request, &quoted);
        list = unquote(quoted.data);
        understand(list.data, list.length, &there);
        MUST(there.is_good || !is_every_pid_good(&here.request));
        MUST(!there.is_good || asks_the_same(&here.request, &there.request));
    }
    free(words);
    free(list.data);
    free(quoted.data);
}

/* Numbers, signals, PIDs and what is quoted of them. */
static void
fuzz_values(const char *bytes, size_t length)
{
    char *text = copy_of(bytes, length); /* owned */
    struct text quoted = quote(text);
    char written_pid[32];
    double number = 0;
    long whole = 0;
    int signal = signal_number(text);
    pid_t pid = parse_pid(text);
    size_t end = strlen(quoted.text);
    MUST(end >= 2 && end < sizeof(quoted.text) && quoted.text[0] == quoted.text[end - 1]);
    MUST(is_tame(quoted.text, end) || strstr(text, "\xe2\x80") != NULL ||
         strstr(text, "\xe2\x81") !=
             NULL); /* Python's repr() shows what turns the text */
    MUST(strpbrk(quoted.text, "\n\t\r") == NULL);
    MUST(signal >= 0 && signal <= SIGRTMAX);
    MUST(pid >= 0);
    if (pid > 0) {
        (void)snprintf(written_pid, sizeof(written_pid), "/tmp/manhole-%d", (int)pid);
        MUST(parse_pid(written_pid) == pid);
    }
    if (parse_int(text, &whole)) {
        MUST(parse_float(text, &number) && strpbrk(text, "0123456789") != NULL);
    }
    else if (parse_float(text, &number)) {
        MUST(strpbrk(text, "0123456789nN") != NULL && strpbrk(text, "xXpP") == NULL);
    }
    free(text);
}

/* ---- /proc ---------------------------------------------------------------------------------- */

static void
fuzz_proc(const char *bytes, size_t length)
{
    struct buffer command = {.data = NULL};
    struct buffer lists = {.data = NULL};
    struct target target = {.pid = 1, .path = "/tmp/manhole-1"};
    char *line = copy_of(bytes, length); /* owned */
    const struct inodes inodes = {.list = {1, 12345}, .count = 2};
    struct advert advert = {.is_there = false};
    struct tcp_listener listener;
    char *rest = NULL;
    const char *path = NULL;
    size_t listeners = 0;
    uid_t uid = 0;
    (void)file_with(bytes, length);
    (void)inner_pid(1);
    (void)read_stat(1, 4);
    (void)process_state(1);
    (void)has_ended(1);
    (void)find_uid(1, &uid);
    MUST(strlen(age_of(1).text) > 0);
    read_thread_name(&advert, line);
    MUST(advert.is_there || advert.signals[0] == 0);
    read_maps(&advert, line);
    MUST(strlen(describe_opening(1, &advert).text) > 0);
    (void)thread_group(1);
    (void)read_status(1, "SigCgt");
    find_command(1, &command);
    MUST(command.length <= length + 1);
    MUST(strlen(text_of(&command)) == command.length);
    (void)read_tcp_lists(1, &lists);
    rest = lists.data;
    while (next_tcp_listener(&rest, &listener)) {
        MUST(strrchr(listener.address, ':') != NULL && listener.port >= 0);
        listeners++;
    }
    MUST(listeners <= 2 * (length / 8));
    (void)search_paths(&target, &inodes);
    MUST(strlen(target.path) < sizeof(target.path));
    line[strcspn(line, "\n")] = '\0';
    path = listening_path(line, &inodes);
    MUST(path == NULL || strchr(path, '\n') == NULL);
    free(command.data);
    free(lists.data);
    free(line);
}

/* ---- Configuration file, local shell, history ----------------------------------------------- */

/* The lines of NAME.ini. */
static void
fuzz_config(const char *bytes, size_t length)
{
    static struct config
        config;        /* static, like the text: what is left behind by a jump */
    static char *text; /* owned */
    jmp_buf back;
    config = (struct config){.name = "a.ini"};
    text = copy_of(bytes, length);
    way_back = &back;
    if (setjmp(back) == 0) { /* NOLINT(cert-err52-cpp) */
        char *rest = NULL;
        int number = 0;
        for (char *line = strtok_r(text, "\n", &rest); line != NULL;
             line = strtok_r(NULL, "\n", &rest)) {
            parse_config_line(&config, line, ++number);
        }
        MUST(config.has_section || config.listen.length == 0);
        if (config.listen.length > 0 && config.listen.data[0] != '/') {
            int port = parse_port(&config);
            MUST(port > 0 && port <= 65535);
        }
    }
    else {
        MUST(left_with == STATUS_TROUBLE);
    }
    way_back = NULL;
    free(text);
    free(config.listen.data);
}

/* A template, a newline, a path. */
static void
fuzz_template(const char *bytes, size_t length)
{
    char *template = copy_of(bytes, length); /* owned */
    char *path = template + strcspn(template, "\n");
    struct buffer expanded = {.data = NULL};
    pid_t pid = 0;
    if (*path != '\0') {
        *path++ = '\0';
    }
    pid = match_path(template, path);
    for (const char *c = template; *c != '\0'; c++) {
        bool is_marker = strncmp(c, pid_marker, strlen(pid_marker)) == 0;
        char number[16];
        (void)snprintf(number, sizeof(number), "%d", (int)pid);
        append(&expanded, is_marker ? number : c, is_marker ? strlen(number) : 1);
        c += is_marker ? strlen(pid_marker) - 1 : 0;
    }
    MUST(pid >= 0);
    if (pid > 0 && strstr(path, "0") == NULL) { /* 007 is 7, and not written so */
        MUST(strcmp(text_of(&expanded), path) == 0);
    }
    free(template);
    free(expanded.data);
}

/* Lines of the shell in which a process is chosen. */
static void
fuzz_local_shell(const char *bytes, size_t length)
{
    struct local_shell shell = {.config = {.name = "a.ini", .has_section = true}};
    char *text = copy_of(bytes, length); /* owned */
    char *rest = NULL;
    append_text(&shell.config.listen, "/nonexistent/manhole-%(pid)s");
    add_server(&shell.servers, "/nonexistent/manhole-1", 1, 0);
    add_server(&shell.servers, "/nonexistent/manhole-2", 2, 0);
    for (char *line = strtok_r(text, "\n", &rest); line != NULL && !shell.is_over;
         line = strtok_r(NULL, "\n", &rest)) {
        obey_locally(&shell, line);
    }
    MUST(shell.chosen == NULL); /* nobody is there */
    free(text);
    free(shell.config.listen.data);
    free(shell.servers.list);
}

/* What is typed goes to the history, and a file of any content is shortened. */
static void
fuzz_history(const char *bytes, size_t length)
{
    static char kept[2 * HISTORY_SIZE];
    bool is_long = length > 0 && bytes[0] == '\xff'; /* seldom, for it takes long */
    uint32_t seed = take_seed(&bytes, &length);
    int fd = file_with("", 0);
    struct buffer input = {.data = NULL};
    struct buffer typed = {.data = NULL};
    ssize_t count = 0;
    append(&input, bytes, length);
    append(&input, "\n", 1);
    (void)snprintf(history_path, sizeof(history_path), "%s", file_path);
    for (size_t i = 0, piece = 0; i < input.length; i += piece) {
        piece = next_piece(&seed, input.length - i);
        remember_typed(&typed, input.data + i, piece);
    }
    count = pread(fd, kept, sizeof(kept), 0);
    MUST(count >= 0 && (size_t)count <= input.length);
    for (ssize_t i = 0, line = 0; i < count; i += line) {
        const char *newline = memchr(kept + i, '\n', (size_t)(count - i));
        MUST(newline != NULL);
        line = newline + 1 - (kept + i);
        MUST(line > 1 && line <= HISTORY_ENTRY_SIZE);
    }
    if (is_long) {
        for (size_t i = 0; i + input.length <= sizeof(kept); i += input.length) {
            memcpy(kept + i, input.data, input.length);
        }
        kept[sizeof(kept) - 1] = '\n';
        (void)file_with(kept, sizeof(kept));
        shorten_history(fd);
        count = pread(fd, kept, sizeof(kept), 0);
        MUST(count >= 0 && count <= HISTORY_SIZE / 2);
        MUST(count == 0 || kept[count - 1] == '\n');
        MUST(count >= HISTORY_SIZE / 2 - (ssize_t)input.length);
    }
    free(input.data);
    free(typed.data);
    history_path[0] = '\0';
}

/* ---- The program ---------------------------------------------------------------------------- */

static const struct fuzz_target targets[] = {
    {.name = "filter", .attempt = fuzz_filter, .most = 512},
    {.name = "stacks", .attempt = fuzz_stacks, .most = 1024},
    {.name = "labels", .attempt = fuzz_labels, .most = 512},
    {.name = "frames", .attempt = fuzz_frames, .most = 512},
    {.name = "refusal", .attempt = fuzz_refusal, .most = 256},
#ifdef HAVE_LIBEDIT
    {.name = "editor", .attempt = fuzz_editor, .most = 5000},
    {.name = "matches", .attempt = fuzz_matches, .most = 512},
    {.name = "keys", .attempt = fuzz_keys, .most = 512},
#endif
    {.name = "arguments", .attempt = fuzz_arguments, .most = 256},
    {.name = "values", .attempt = fuzz_values, .most = 128},
    {.name = "proc", .attempt = fuzz_proc, .most = 1024},
    {.name = "config", .attempt = fuzz_config, .most = 512},
    {.name = "template", .attempt = fuzz_template, .most = 128},
    {.name = "local_shell", .attempt = fuzz_local_shell, .most = 256},
    {.name = "history", .attempt = fuzz_history, .most = 8192},
};

int
LLVMFuzzerInitialize(const int *argc, char ***argv)
{
    (void)argc;
    (void)argv;
    choose_target(targets, sizeof(targets) / sizeof(targets[0]));
    (void)setlocale(LC_CTYPE, "C.UTF-8");
    terminal = (struct terminal){.is_shown_on = true, .has_colours = true};
    MUST(freopen("/dev/null", "w", stdout) != NULL);
    return 0;
}

int
LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t length)
{
    tried_target->attempt((const char *)bytes, length);
    forget_told();
    return 0;
}
