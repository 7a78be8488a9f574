/* The program. */
#ifndef MANHOLE_CLI_MAIN_C
#define MANHOLE_CLI_MAIN_C

#include "messages.c"
#include "terminal.c"
#include "target.c"
#include "options.c"
#include "signals.c"
#include "run.c"
#include "serve.c"
#include "processes.c"
#include "many.c"
#include "elsewhere.c"
#include "local_shell.c"

/* A descriptor 0, 1 or 2 that the caller has closed would be taken by the socket, and then
 * read as if it were standard input. /dev/null takes its place: an input at its end, an
 * output that takes everything. */
static void
keep_standard_descriptors(void)
{
    int fd = 0;
    do {
        fd = open("/dev/null", O_RDWR); /* for who we start, too */
    } while (fd >= 0 && fd <= STDERR_FILENO);
    if (fd >= 0) {
        (void)close(fd);
    }
}

/* Does it for those that --all, --children or --match mean: of the console there can be one. */
static enum exit_status
serve_selected(const struct request *request)
{
    struct processes processes = find_processes();
    struct target *targets = NULL; /* owned */
    enum exit_status status = STATUS_OK;
    bool answered = false;

    select_processes(&processes, request);
    if (processes.count == 0 && is_selection(request)) {
        fail(STATUS_NO_CONNECTION,
             "none of the processes that are meant has a manhole for you; "
             "see manhole-cli --list");
    }
    if (request->action == ACTION_CONSOLE) {
        if (processes.count == 1 && is_selection(request)) {
            return serve(request, &processes.list[0].target, &answered);
        }
        if (!terminal.is_typed_on || !terminal.is_shown_on) {
            fail_usage(
                "%zu processes are meant, a console is of one; see manhole-cli --list",
                processes.count);
        }
        return serve(request, ask_which(&processes), &answered);
    }
    targets = calloc(processes.count, sizeof(*targets));
    for (size_t i = 0; targets != NULL && i < processes.count; i++) {
        targets[i] = processes.list[i].target;
    }
    status = serve_many(request, targets, targets != NULL ? processes.count : 0);
    free(targets);
    return status;
}

/* Does it for the PIDs of the command line. */
static enum exit_status
serve_named(const struct request *request)
{
    struct target *targets = calloc(request->pids, sizeof(*targets)); /* owned */
    enum exit_status status = STATUS_OK;
    bool answered = false;

    if (request->pids == 1 && (request->flags & FLAG_BRIEF) == 0) {
        struct target target = request->target;
        free(targets);
        return target.config == NULL || choose_server(target.config, &target)
                   ? serve(request, &target, &answered)
                   : STATUS_OK;
    }
    for (size_t i = 0; targets != NULL && i < request->pids; i++) {
        targets[i] = parse_target(request->pid[i]);
    }
    status = serve_many(request, targets, targets != NULL ? request->pids : 0);
    free(targets);
    return status;
}

int
main(int argc, char **argv)
{
    static struct request request = {.timeout_s = DEFAULT_TIMEOUT_S};

    keep_standard_descriptors();
    (void)signal(SIGPIPE, SIG_IGN); /* output that nobody reads is an error of write() */
    (void)set_handler(SIGINT, on_early_interrupt);
    look_at_terminal(false);
    parse_command_line(argc, argv, &request);
    terminal.is_raw = (request.flags & FLAG_RAW) != 0;
    if (request.host != NULL || request.command != NULL) {
        go_elsewhere(&request);
    }
    if (request.action == ACTION_LIST) {
        return (int)list_processes();
    }
    if (request.action == ACTION_CLEAN) {
        return (int)clean_sockets();
    }
    if (request.action == ACTION_RUN) {
        read_source(&request);
    }
    request.deadline = find_deadline(&request);
    return (int)(request.pids > 0 ? serve_named(&request) : serve_selected(&request));
}

#endif /* MANHOLE_CLI_MAIN_C */
