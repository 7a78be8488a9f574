/* The program: the command line, then whatever it asks for, of one process or of several.
 *
 * Before anything is opened, descriptors 0 to 2 are made sure of, output that nobody reads becomes
 * an error of write(), and Ctrl-C ends the program. With --record the rest is a child's. Then: over
 * there (--host, --exec), or about all processes (--list, --clean), or for those that are named or
 * selected. Of these, one is served in this process, several by a child each.
 */
#ifndef MANHOLE_CLI_MAIN_C
#define MANHOLE_CLI_MAIN_C

#include "many.c"
#include "top.c"
#include "elsewhere.c"
#include "local_shell.c"
#include "recording.c"

/* A descriptor 0, 1 or 2 that the caller has closed would be taken by the socket, and then read as
 * if it were standard input. /dev/null takes its place: an input at its end, an output that takes
 * everything. */
static void
keep_standard_descriptors(void)
{
    int fd = 0;
    do {
        fd = open("/dev/null", O_RDWR); /* for who we start, too */
    } while (fd >= 0 && fd <= STDERR_FILENO);
    close_fd(&fd);
}

/* Does it for those that --all, --children or --match mean, or asks which: of the console there can
 * be one. */
static enum exit_status
serve_selected(const struct request *request)
{
    bool attaches = is_given(request, OPTION_ATTACH);
    struct processes processes = find_processes(attaches);
    bool answered = false;

    select_processes(&processes, request);
    if (processes.count == 0 && is_selection(request)) {
        fail(STATUS_NO_CONNECTION, "none of the processes that are meant %s",
             attaches ? "runs Python, or is yours"
                      : "has a manhole for you; see manhole-cli --list");
    }
    OWNED struct target *targets = allocate(processes.count, sizeof(*targets));
    for (size_t i = 0; i < processes.count; i++) {
        targets[i] = processes.list[i].target;
    }
    if (request->action != ACTION_CONSOLE) {
        return serve_many(request, targets, processes.count);
    }
    if (processes.count == 1 && is_selection(request)) {
        return serve(request, targets, &answered);
    }
    if (!is_interactive()) {
        fail(STATUS_USAGE,
             "%zu processes are meant, a console is of one; see manhole-cli --list",
             processes.count);
    }
    return serve(request, ask_which(&processes), &answered);
}

/* Does it for the PIDs of the command line. */
static enum exit_status
serve_named(const struct request *request)
{
    struct target target = request->target;
    bool answered = false;

    if (request->pids == 1 && !is_given(request, OPTION_BRIEF)) {
        return target.config == NULL || choose_server(target.config, &target)
                   ? serve(request, &target, &answered)
                   : STATUS_OK;
    }
    OWNED struct target *targets = allocate(request->pids, sizeof(*targets));
    for (size_t i = 0; i < request->pids; i++) {
        targets[i] = parse_target(request->pid[i]);
    }
    return serve_many(request, targets, request->pids);
}

int
main(int argc, char **argv)
{
    static struct request request = {.timeout_s = DEFAULT_TIMEOUT_S};

    keep_standard_descriptors();
    (void)signal(SIGPIPE, SIG_IGN); /* output that nobody reads is an error of write() */
    set_handler(SIGINT, on_early_interrupt);
    look_at_terminal();
    parse_command_line(argc, argv, &request);
    if (is_given(&request, OPTION_RECORD)) {
        record(request.given[OPTION_RECORD], terminal.is_shown_on ||
                                                 request.action == ACTION_CONSOLE ||
                                                 is_elsewhere(&request));
    }
    terminal.is_raw = is_given(&request, OPTION_RAW);
    terminal.has_colours = terminal.has_colours && !is_given(&request, OPTION_NO_COLOR);
    terminal.is_quiet = is_given(&request, OPTION_QUIET);
    if (is_elsewhere(&request)) {
        go_elsewhere(&request);
    }
    if (request.action == ACTION_LIST) {
        return (int)list_processes();
    }
    if (request.action == ACTION_CLEAN) {
        return (int)clean_sockets();
    }
    request.deadline = find_deadline(&request);
    if (request.action == ACTION_TOP) {
        return (int)watch_processes(&request);
    }
    if (request.action == ACTION_RUN) {
        read_source(&request);
    }
    return (int)(request.pids > 0 ? serve_named(&request) : serve_selected(&request));
}

#endif /* MANHOLE_CLI_MAIN_C */
