/* Stacks: --stacks and --json, a text that the server sends and then closes.
 *
 * There is no protocol about it, so what came has to tell by itself what it is:
 *
 *     a dump       ends with a line of 45 '#'; shown as it comes, in colour on a terminal
 *     JSON         ends with "}" and a newline; shown when it is whole, for half of it is none
 *     a refusal    a single line that begins with "manhole: ", for standard error
 *     cut short    none of these: the process ended meanwhile, or the connection broke, and the exit
 *                  status says so, lest a script take half of the threads for all of them
 *
 * Of a process that is stuck a dump begins with a line that begins so, too, but others follow.
 */
#ifndef MANHOLE_CLI_STACKS_C
#define MANHOLE_CLI_STACKS_C

#include "terminal.c"
#include "target.c"
#include "options.c"
#include "connection.c"
#include "signals.c"
#include "channels.c"
#include "relay.c"
#include "run.c"

/* Writes the lines that are whole, in colour where there is any. At the end also the rest. */
static void
show_lines(struct buffer *text, bool is_end)
{
    struct buffer shown = {.data = NULL}; /* owned */
    size_t done = 0;
    size_t length = 0;

    while ((length = next_line(text, done, is_end)) > 0) {
        bool is_whole = text->data[done + length - 1] == '\n';
        if (!terminal.is_shown_on || terminal.is_raw) {
            append(&shown, text->data + done, length);
        }
        else {
            append_line(&shown, text->data + done, is_whole ? length - 1 : length);
        }
        done += length;
    }
    drop(text, done);
    write_all(STDOUT_FILENO, text_of(&shown), shown.length);
    free(shown.data);
}

/* One line that says why there is nothing, instead of stacks. */
static bool
is_refusal(const struct buffer *text)
{
    return strncmp(text_of(text), "manhole: ", 9) == 0 &&
           line_length(text) == text->length;
}

/* Nothing came, or a refusal. */
static enum exit_status
say_no_stacks(const struct buffer *text, int server, const struct target *target)
{
    struct outlet err = open_outlet(STDERR_FILENO);

    if (text->length > 0) {
        let_out(&err, text->data, text->length);
    }
    else if (has_ended(server_pid(server))) {
        return say_cut(server, target, "its stacks were there");
    }
    else {
        say_error("process %s has closed the connection without a word",
                  label_of(target).text);
    }
    free(err.unfinished.data);
    return STATUS_NO_CONNECTION;
}

/* What it comes to when the server has closed. */
static enum exit_status
conclude_stacks(const struct buffer *text, bool is_begun, bool is_whole, int server,
                const struct target *target)
{
    if (!is_begun) {
        return say_no_stacks(text, server, target);
    }
    return is_whole ? STATUS_OK : say_cut(server, target, "its stacks were complete");
}

/* The line that ends a dump, and all of JSON, which is one line. */
static bool
has_end_of_stacks(const struct buffer *text, bool is_json)
{
    static const char end[] = "#############################################\n";
    return !is_json
               ? strstr(text_of(text), end) != NULL
               : text->length >= 2 && strcmp(text->data + text->length - 2, "}\n") == 0;
}

/* A dump is shown as it comes. JSON that is cut is none: it is shown when it is whole. */
static enum exit_status
show_stacks(int server, const struct request *request, const struct target *target)
{
    struct errand errand = {
        .server = server, .target = target, .deadline = request->deadline};
    struct buffer text = {.data = NULL}; /* owned */
    struct pollfd fds[1] = {{.fd = server, .events = POLLIN}};
    bool is_json = (request->flags & FLAG_JSON) != 0;
    bool is_begun = false;
    bool is_whole = false;

    follow_signal(SIGINT);
    (void)shutdown(server, SHUT_WR);
    while (!errand.is_over) {
        if (!wait_on_errand(&errand, fds, 1)) {
            continue;
        }
        bool is_end = !read_answer(&errand, &text);
        is_whole = is_whole || has_end_of_stacks(&text, is_json);
        is_begun = is_begun || ((is_end ? text.length : line_length(&text)) > 0 &&
                                !is_refusal(&text));
        if (is_begun && (!is_json || (is_end && is_whole))) {
            show_lines(&text, is_end);
        }
        if (is_end) {
            end_errand(&errand,
                       conclude_stacks(&text, is_begun, is_whole, server, target));
        }
    }
    free(text.data);
    return errand.status;
}

#endif /* MANHOLE_CLI_STACKS_C */
