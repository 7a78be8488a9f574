/* Serve: one process, the way the command line says: its console, code, or stacks. The word for
 * each on the calling card is the server's, see its channels.
 */
#ifndef MANHOLE_CLI_SERVE_C
#define MANHOLE_CLI_SERVE_C

#include "editor.c"
#include "stacks.c"
#include "attach/attach.c"
#include "memory.c"

/* What a copy serves begins when it is told to: behind open_frozen() the process may be too big. */
static int
open_channel(const struct request *request, struct target *target, const char *channel)
{
    if (!is_given(request, OPTION_FROZEN) && !is_given(request, OPTION_LOCALS)) {
        return open_connection(request, target, channel);
    }
    int server = open_frozen(request, target, channel);
    (void)send(server, "\n", 1, MSG_NOSIGNAL);
    return server;
}

/* The console of a process: with the line editor where there can be one. */
static enum exit_status
hold_console(const struct request *request, struct target *target)
{
    static const char *const channels[2][2] = {{"repl", "quiet"},
                                               {"terminal", "terminal-quiet"}};
    bool has_no_dump =
        is_given(request, OPTION_NO_DUMP) || is_given(request, OPTION_QUIET);
    const char *channel = channels[terminal.is_typed_on][has_no_dump];

    if (is_given(request, OPTION_FROZEN)) {
        channel = terminal.is_typed_on ? "frozen-terminal" : "frozen";
    }
    find_history();
#ifdef HAVE_LIBEDIT
    if (open_editor()) {
        return converse(open_channel(request, target, channel), target);
    }
#else
    if (is_interactive() && !terminal.is_quiet) {
        (void)fprintf(stderr,
                      "%s: built without libedit: no line editing, history, "
                      "completion or colours here; with libedit-dev (Debian's "
                      "name for it) make builds it anew\n",
                      program);
    }
#endif
    return relay_session(open_channel(request, target, channel), target);
}

/* Does for one process what is asked for. */
static enum exit_status
serve(const struct request *request, const struct target *asked, bool *answered)
{
    struct target target = *asked; /* and where it was found */

    if (wants_attaching(request, &target)) {
        if (request->action == ACTION_STACKS) {
            show_stacks_from_outside(request, target.pid);
            *answered = true;
            return STATUS_OK;
        }
        attach(request, target.pid);
    }
    if (is_given(request, OPTION_MEMORY)) {
        return compare_memory(request, &target, answered);
    }
    if (request->action == ACTION_RUN) {
        int server = is_given(request, OPTION_FROZEN)
                         ? open_frozen(request, &target, "frozen-exec")
                         : open_connection(request, &target, "exec");
        return run_code(server, request, &target, answered, NULL);
    }
    if (is_look(request)) {
        static const char *const channels[][2] = {
            [ACTION_STACKS] = {"stacks", "json"},
            [ACTION_TASKS] = {"tasks", "tasks-json"},
            [ACTION_GREENLETS] = {"greenlets", "greenlets-json"}};
        bool is_json = is_given(request, OPTION_JSON) || is_given(request, OPTION_BRIEF);
        const char *channel = !is_given(request, OPTION_LOCALS)
                                  ? channels[request->action][is_json]
                              : is_json ? "frozen-json"
                                        : "frozen-stacks";
        int server = open_channel(request, &target, channel);
        enum exit_status status = show_stacks(server, request, &target);
        *answered = status == STATUS_OK;
        return status;
    }
    return hold_console(request, &target);
}

#endif /* MANHOLE_CLI_SERVE_C */
