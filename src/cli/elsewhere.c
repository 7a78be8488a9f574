/* Elsewhere: --host and --exec have the manhole-cli over there do it all, with the same options.
 *
 * We become ssh, or a shell that runs the command: theirs are the streams, the exit status and,
 * when nobody can be reached, the message. The command line goes over anew, each word quoted for
 * the one shell that reads it: that of --host over there, for --exec ours. A script is read here,
 * so it goes over as standard input.
 */
#ifndef MANHOLE_CLI_ELSEWHERE_C
#define MANHOLE_CLI_ELSEWHERE_C

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
 * code's argument. "-t5 --host there 1 -c x a" becomes
 *
 *    'manhole-cli' '1' '--timeout=5' '-c' 'x' '--' 'a'
 */
static void
build_command(const struct request *request, struct buffer *out)
{
    append_quoted(out, program);
    if (request->action == ACTION_TOP) {
        append_quoted(out, "top");
    }
    for (size_t i = 0; i < request->pids; i++) {
        append_quoted(out, request->pid[i]);
    }
    for (int i = 0; i < OPTIONS; i++) {
        const struct known_option *option = &options[i];
        OWNED_BUFFER word = {.data = NULL};
        if (request->given[i] == NULL || option->group == PLACE_GROUP ||
            i == OPTION_RECORD) { /* is done here */
            continue;
        }
        if (option->name == NULL) { /* -c and -f, whose argument may be empty */
            append_format(&word, "-%s", option->letter);
            append_quoted(out, word.data);
            append_quoted(out, i == OPTION_FILE ? "-" : request->given[i]);
            continue;
        }
        append_format(&word, "%s%s%s%s", dashes_of(option), option->name,
                      option->metavar != NULL ? "=" : "", request->given[i]);
        append_quoted(out, word.data);
    }
    if (request->arguments > 0) {
        append_quoted(out, "--");
    }
    for (size_t i = 0; i < request->arguments; i++) {
        append_quoted(out, request->argument[i]);
    }
}

/* Whether what is done has a use for standard input. */
static bool
wants_input(const struct request *request)
{
    return request->action == ACTION_CONSOLE ||
           (request->action == ACTION_RUN &&
            (is_given(request, OPTION_FILE) ||
             (request->pids == 1 && !is_selection(request))));
}

/* What we become finds as its standard input. */
static void
prepare_input(const struct request *request)
{
    const char *file = request->given[OPTION_FILE];

    if (file != NULL && strcmp(file, "-") != 0) {
        int fd = open(file, O_RDONLY | O_CLOEXEC);
        if (fd < 0 || dup2(fd, STDIN_FILENO) < 0) {
            fail(STATUS_TROUBLE, "cannot read the script %s: %m", quote(file).text);
        }
    }
    if (!wants_input(request)) { /* what calls us in a loop may read on from there */
        int nothing = open("/dev/null", O_RDONLY | O_CLOEXEC);
        (void)dup2(nothing, STDIN_FILENO);
    }
}

/* Runs it there instead of us. */
static _Noreturn void
go_elsewhere(const struct request *request)
{
    const char *host = request->given[OPTION_HOST];
    bool wants_terminal =
        (request->action == ACTION_CONSOLE || request->action == ACTION_TOP) &&
        is_interactive();
    struct buffer command = {.data = NULL};

    prepare_input(request);
    (void)signal(SIGPIPE, SIG_DFL);
    (void)signal(SIGINT, SIG_DFL);
    if (host == NULL) {
        append_format(&command, "exec %s", request->given[OPTION_EXEC]);
    }
    build_command(request, &command);
    if (host != NULL) {
        (void)execlp("ssh", "ssh", wants_terminal ? "-t" : "-T", "--", host, command.data,
                     (char *)NULL);
    }
    else {
        (void)execlp("sh", "sh", "-c", command.data, (char *)NULL);
    }
    fail(STATUS_TROUBLE, "cannot run %s: %m; is it installed?",
         host != NULL ? "ssh" : "sh");
}

#endif /* MANHOLE_CLI_ELSEWHERE_C */
