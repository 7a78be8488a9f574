/* Elsewhere: --host and --exec have the manhole-cli over there do it all, with the same options.
 * Theirs are the streams, the exit status and, when they cannot be reached, the message.
 */
#ifndef MANHOLE_CLI_ELSEWHERE_C
#define MANHOLE_CLI_ELSEWHERE_C

#include "messages.c"
#include "terminal.c"
#include "options.c"

/* As a shell reads it as one word. */
static void
append_quoted(struct buffer *out, const char *word)
{
    append_text(out, " '");
    for (; *word != '\0'; word++) {
        append_text(out, *word == '\'' ? "'\\''" : (const char[]){*word, '\0'});
    }
    append_text(out, "'");
}

/* The command line as it has to be over there: all PIDs first, for behind -c one more would be the
 * code's argument. A script is read here, so it goes over as standard input. */
static void
build_command(struct request *request, void (*add)(struct buffer *out, const char *word),
              struct buffer *out)
{
    add(out, program);
    for (size_t i = 0; i < request->pids; i++) {
        add(out, request->pid[i]);
    }
    for (size_t i = 0; i < OPTIONS; i++) {
        const struct option *option = &options[i];
        struct buffer word = {.data = NULL}; /* owned */
        if ((request->taken & 1U << i) == 0 || option->is_elsewhere) {
            continue;
        }
        append_text(&word, option->names[0]);
        if (option->is_literal) { /* may be empty, which glued on would be nothing */
            add(out, word.data);
            empty(&word);
        }
        if (option->metavar != NULL) {
            append_text(&word, option->names[0][1] == '-' ? "=" : "");
            append_text(&word, option->take == take_file ? "-" : request->given[i]);
        }
        add(out, word.data);
        free(word.data);
    }
    if (request->arguments > 0) {
        add(out, "--");
    }
    for (size_t i = 0; i < request->arguments; i++) {
        add(out, request->argument[i]);
    }
}

/* A word of a list that execvp() can have: each ends with a NUL. */
static void
append_word(struct buffer *out, const char *word)
{
    append(out, word, strlen(word) + 1);
}

/* Whether what is done has a use for standard input. */
static bool
wants_input(const struct request *request)
{
    return request->action == ACTION_CONSOLE ||
           (request->action == ACTION_RUN &&
            (request->file != NULL || (request->pids == 1 && !is_selection(request))));
}

/* Runs it there instead of us. */
static _Noreturn void
go_elsewhere(struct request *request)
{
    struct buffer command = {.data = NULL};
    bool wants_terminal =
        request->action == ACTION_CONSOLE && terminal.is_typed_on && terminal.is_shown_on;
    const char *name = "ssh";
    char *words[MAX_WORDS];
    size_t count = 0;

    if (request->file != NULL && strcmp(request->file, "-") != 0) {
        int fd = open(request->file, O_RDONLY | O_CLOEXEC);
        if (fd < 0 || dup2(fd, STDIN_FILENO) < 0) {
            fail(STATUS_TROUBLE, "cannot read the script %s: %m",
                 quote(request->file).text);
        }
    }
    if (!wants_input(request)) { /* what calls us in a loop may read on from there */
        int nothing = open("/dev/null", O_RDONLY | O_CLOEXEC);
        (void)dup2(nothing, STDIN_FILENO);
    }
    (void)signal(SIGPIPE, SIG_DFL);
    (void)signal(SIGINT, SIG_DFL);
    if (request->host != NULL) {
        build_command(request, append_quoted, &command);
        (void)execlp(name, name, wants_terminal ? "-t" : "-T", "--", request->host,
                     command.data, (char *)NULL);
    }
    else {
        struct buffer script = {.data = NULL};
        name = "sh";
        append_text(&script, "exec ");
        append_text(&script, request->command);
        append_text(&script, " \"$@\"");
        append_word(&command, name);
        append_word(&command, "-c");
        append_word(&command, script.data);
        append_word(&command, name);
        build_command(request, append_word, &command);
        for (size_t i = 0; i < command.length; i += strlen(command.data + i) + 1) {
            if (count + 1 == MAX_WORDS) {
                fail_usage("at most %d words can be handed to --exec", MAX_WORDS);
            }
            words[count++] = command.data + i;
        }
        words[count] = NULL;
        (void)execvp(name, words);
    }
    fail(STATUS_TROUBLE, "cannot run %s: %m; is it installed?", name);
}

#endif /* MANHOLE_CLI_ELSEWHERE_C */
