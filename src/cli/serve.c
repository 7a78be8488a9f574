/* Serve: one process, the way the command line says: its console, code, or stacks. */
#ifndef MANHOLE_CLI_SERVE_C
#define MANHOLE_CLI_SERVE_C

#include "terminal.c"
#include "target.c"
#include "options.c"
#include "connection.c"
#include "history.c"
#include "relay.c"
#include "editor.c"
#include "run.c"
#include "stacks.c"

/* The console of a process: with the line editor where there can be one. */
static enum exit_status
hold_console(const struct request *request, struct target *target)
{
    bool is_quiet = (request->flags & FLAG_NO_DUMP) != 0;
    const char *wish = terminal.is_typed_on ? (is_quiet ? "terminal-quiet" : "terminal")
                       : is_quiet           ? "quiet"
                                            : "repl";

    find_history();
#ifdef HAVE_LIBEDIT
    if (open_editor()) {
        return converse(open_connection(request, target, wish), target);
    }
#endif
    return relay(open_connection(request, target, wish), target);
}

/* Does for one process what is asked for. */
static enum exit_status
serve(const struct request *request, const struct target *asked, bool *answered)
{
    struct target target = *asked; /* and where it was found */
    bool is_json = (request->flags & FLAG_JSON) != 0;
    const char *wish = NULL;
    enum exit_status status = STATUS_OK;

    switch (request->action) {
    case ACTION_RUN:
        return run_code(open_connection(request, &target, "exec"), request, &target,
                        answered);
    case ACTION_STACKS:
    case ACTION_TASKS:
        wish = request->action == ACTION_STACKS ? (is_json ? "json" : "stacks")
               : is_json                        ? "tasks-json"
                                                : "tasks";
        status = show_stacks(open_connection(request, &target, wish), request, &target);
        *answered = status == STATUS_OK;
        return status;
    default:
        return hold_console(request, &target);
    }
}

#endif /* MANHOLE_CLI_SERVE_C */
