/* Stacks: --stacks, --tasks, --greenlets and --json, a text that the server sends and then closes.
 *
 * There is no protocol about it, so what came has to tell by itself what it is:
 *
 *     a dump       ends with a line of 45 '#'; shown as it comes, in colour on a terminal
 *     JSON         ends with "}" and a newline; shown when it is whole, for half of it is none
 *     tasks        end as a dump does, and are shown when they are whole, too
 *     a console    goes on behind its dump: so answers a manhole that is older than the question
 *     a refusal    a single line that begins with "manhole: ", for standard error
 *     cut short    none of these: the process ended meanwhile, or the connection broke, and the
 *                  exit status says so, lest a script take half of the threads for all of them
 *
 * Of a process that is stuck a dump begins with a line that begins so, too, but others follow.
 */
#ifndef MANHOLE_CLI_STACKS_C
#define MANHOLE_CLI_STACKS_C

#include "run.c"

/* One line that says why there is nothing, instead of stacks. */
static bool
is_refusal(const struct buffer *text)
{
    return strncmp(text_of(text), "manhole: ", 9) == 0 &&
           line_length(text) == text->length;
}

/* Nothing came, or a refusal. */
static enum exit_status
say_no_stacks(struct buffer *text, int server, const struct target *target)
{
    if (text->length > 0) {
        show_lines(STDERR_FILENO, NULL, text, true);
    }
    else if (has_ended(server_pid(server))) {
        return say_cut(server, target, "its stacks were there");
    }
    else {
        say_error("process %s has closed the connection without a word",
                  label_of(target).text);
    }
    return STATUS_NO_CONNECTION;
}

#define END_OF_DUMP "#############################################\n"

/* Whether all has come: a dump has a line of its own at its end, and JSON is one line. A process
 * that dies in between closes as well, and what is cut must not pass for the whole. */
static bool
is_complete(const struct buffer *text, bool is_json, bool is_tasks)
{
    return is_json    ? ends_with(text, "}\n")
           : is_tasks ? ends_with(text, END_OF_DUMP "\n\n")
                      : strstr(text_of(text), END_OF_DUMP) != NULL;
}

/* Some has come: the rest is missing, or it is a console. */
static enum exit_status
say_incomplete(const struct buffer *text, int server, const struct target *target,
               bool is_tasks)
{
    if (strstr(text_of(text), END_OF_DUMP) == NULL) {
        return say_cut(server, target,
                       is_tasks ? "its tasks were complete" : "its stacks were complete");
    }
    say_error(
        "the manhole of process %s is older, and does not know what it was asked for; "
        "--stacks alone shows its stacks",
        label_of(target).text);
    return STATUS_NO_CONNECTION;
}

/* A refusal is one line, so with the first whole line it is known whether stacks come. */
static enum exit_status
show_stacks(int server, const struct request *request, const struct target *target)
{
    struct task task = {
        .server = server, .target = target, .deadline = request->deadline};
    OWNED_BUFFER text = {.data = NULL};
    struct pollfd fds[1 + 2] = {{.fd = server, .events = POLLIN}};
    bool is_json = is_given(request, OPTION_JSON) || is_given(request, OPTION_BRIEF);
    bool is_tasks = is_look_at_tasks(request);
    bool is_held = is_json || is_tasks; /* until it is whole */
    bool is_begun = false;
    bool is_whole = false;

    follow_signal(SIGINT);
    (void)shutdown(server, SHUT_WR);
    while (!task.is_over) {
        if (!wait_on_task(&task, fds, 1)) {
            continue;
        }
        bool is_end = !read_answer(&task, &text);
        size_t readable = is_end ? text.length : line_length(&text);
        is_whole = (is_whole && !is_held) || is_complete(&text, is_json, is_tasks);
        is_begun = is_begun || (readable > 0 && !is_refusal(&text));
        if (is_begun && (!is_held || (is_end && is_whole))) {
            show_lines(STDOUT_FILENO, NULL, &text, is_end);
        }
        if (is_end) {
            end_task(&task, !is_begun  ? say_no_stacks(&text, server, target)
                            : is_whole ? STATUS_OK
                                       : say_incomplete(&text, server, target, is_tasks));
        }
    }
    return task.status;
}

#endif /* MANHOLE_CLI_STACKS_C */
