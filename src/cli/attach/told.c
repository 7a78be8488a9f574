/* Told: what faulthandler wrote of a process's stacks, shown as the module's own dump has them, or
 * as JSON of the same form.
 *
 *    Current thread 0x00007f2b1c3d4740 (most recent call first):
 *      File "/srv/shop/leak.py", line 10 in work
 *      File "/srv/shop/leak.py", line 12 in <module>
 *
 * Of a thread there is its identity alone, and no more than a hundred frames. The lines of the
 * source are read here, from the files as the process sees them.
 */
#ifndef MANHOLE_CLI_ATTACH_TOLD_C
#define MANHOLE_CLI_ATTACH_TOLD_C

#include "../stacks.c"

/* A frame, as faulthandler writes it: "  File "PATH", line 7 in FUNCTION", what is not plain
 * escaped with backslashes. */
struct shown_frame {
    const char *path;
    int path_length;
    long line;
    const char *function;
    int function_length;
};

/* False for "  <no Python frame>", and for the "  ..." behind the hundredth one. */
static bool
parse_frame(const char *line, struct shown_frame *frame)
{
    static const char start[] = "  File \"";
    const char *end = strchr(line, '\n');

    if (strncmp(line, start, strlen(start)) != 0) {
        return false;
    }
    const char *path = line + strlen(start);
    const char *number = memmem(path, (size_t)(end - path), "\", line ", 8);
    if (number == NULL) {
        return false;
    }
    char *behind = NULL;
    frame->path = path;
    frame->path_length = (int)(number - path);
    frame->line = strtol(number + 8, &behind, 10);
    behind += strncmp(behind, " in ", 4) == 0 ? 4 : 0;
    frame->function = behind;
    frame->function_length = (int)(end - behind);
    return true;
}

/* A line of the source, without what indents it; as the process sees the file. What is none, a
 * pipe say, is not waited for. */
static void
append_source(struct buffer *out, pid_t pid, const struct shown_frame *frame)
{
    OWNED_BUFFER source = {.data = NULL};
    struct text start = frame->path[0] == '/' ? root_of(pid) : proc_path(pid, "cwd/");
    struct text path = print("%s%.*s", start.text, frame->path_length, frame->path);
    struct stat status;
    size_t at = 0;
    size_t length = 0;

    if (stat(path.text, &status) == 0 && S_ISREG(status.st_mode)) {
        (void)read_file(path.text, &source);
    }
    for (long i = 1; i < frame->line && (length = next_line(&source, at, true)) > 0;
         i++) {
        at += length;
    }
    length = next_line(&source, at, true);
    if (length > 0) {
        const char *line = source.data + at;
        size_t indent = strspn(line, " \t");
        size_t end = strcspn(line, "\r\n");
        append(out, line + indent, end > indent ? end - indent : 0);
    }
}

/* A JSON string of what faulthandler has written, in which all is plain but these two. */
static void
append_json_word(struct buffer *out, const char *text, size_t length)
{
    append_text(out, "\"");
    for (size_t i = 0; i < length; i++) {
        unsigned char c = (unsigned char)text[i];
        if (c < ' ' || c >= 0x7f) {
            append_format(out, "\\u%04x", c < ' ' ? c : 0xfffdU);
            continue;
        }
        append(out, "\\", c == '"' || c == '\\');
        append(out, &text[i], 1);
    }
    append_text(out, "\"");
}

static void
append_frame(struct buffer *out, pid_t pid, const char *line, bool is_json)
{
    struct shown_frame frame;
    OWNED_BUFFER source = {.data = NULL};

    if (!parse_frame(line, &frame)) {
        append_format(out, "%.*s\n", is_json ? 0 : (int)strcspn(line, "\n"), line);
        return;
    }
    append_source(&source, pid, &frame);
    if (!is_json) {
        append_format(out, "File: \"%.*s\", line %ld, in %.*s\n", frame.path_length,
                      frame.path, frame.line, frame.function_length, frame.function);
        append_format(out, source.length > 0 ? "  %s\n" : "%s", text_of(&source));
        return;
    }
    append_text(out, ends_with(out, "[") ? "\n{\"file\": " : ",\n{\"file\": ");
    append_json_word(out, frame.path, (size_t)frame.path_length);
    append_format(out, ", \"line\": %ld, \"function\": ", frame.line);
    append_json_word(out, frame.function, (size_t)frame.function_length);
    append_text(out, ", \"qualname\": null, \"source\": ");
    if (source.length > 0) {
        append_json_word(out, source.data, source.length);
    }
    else {
        append_text(out, "null");
    }
    append_text(out, "}");
}

/* The thread that begins with this line, "Thread 0x7f (most recent call first):", and its frames up
 * to an empty line, in our order: the outermost first. */
static void
append_outside_thread(struct buffer *out, pid_t pid, const char *line, bool is_json)
{
    const char *frames = strchr(line, '\n') + 1;
    const char *end = strstr(frames, "\n\n");
    unsigned long ident = strtoul(strstr(line, "0x"), NULL, 16);

    end = end != NULL ? end : frames + strlen(frames) - 1; /* at its last newline */
    if (is_json) {
        append_format(out,
                      "{\"id\": %lu, \"native_id\": null, \"state\": null, \"waits_in\": "
                      "null, \"holds_gil\": null, "
                      "\"daemon\": null, \"name\": null, \"frames\": [",
                      ident);
    }
    else {
        append_format(out, "\n######### ProcessID=%d, ThreadID=%lu #########\n", (int)pid,
                      ident);
    }
    for (const char *at = end; at > frames;) {
        const char *last = memrchr(frames, '\n', (size_t)(at - frames));
        const char *start = last != NULL ? last + 1 : frames;
        append_frame(out, pid, start, is_json);
        at = start - 1;
    }
    append_text(out, is_json ? "]}" : "");
}

/* The next line that begins a thread, from the beginning of a line on; NULL: there is none. */
static const char *
next_outside_thread(const char *line)
{
    while (strncmp(line, "Thread 0x", 9) != 0 &&
           strncmp(line, "Current thread 0x", 17) != 0) {
        const char *end = strchr(line, '\n');
        if (end == NULL) {
            return NULL;
        }
        line = end + 1;
    }
    return line;
}

/* All threads, as the module's own dump has them. */
static void
format_stacks(struct buffer *out, pid_t pid, const struct buffer *answer, bool is_json)
{
    const char *at = next_outside_thread(text_of(answer));
    bool is_first = true;

    if (is_json) {
        append_format(out,
                      "{\"pid\": %d, \"python\": null, \"version\": 1, \"source\": "
                      "\"frozen copy\", "
                      "\"threads\": [",
                      (int)pid);
    }
    for (; at != NULL; at = next_outside_thread(strchr(at, '\n') + 1)) {
        append_text(out, !is_json ? "" : is_first ? "\n" : ",\n");
        append_outside_thread(out, pid, at, is_json);
        is_first = false;
    }
    append_text(out, is_json ? "]}\n" : END_OF_DUMP "\n\n");
}

#endif /* MANHOLE_CLI_ATTACH_TOLD_C */
