/* Memory: --memory, two looks at the objects of a process, some seconds apart.
 *
 * A look is a program of ours (room jobs), which runs twice. What the first finds it prints, as
 * text that is the second's last argument: so the second knows what grew, and we need not read it.
 * Between the two nothing of ours is in the process.
 *
 * Each counts in a frozen copy of its own: the process stands still only while its page tables are
 * copied, and may be stuck. Where no copy can be made the process itself is counted, and stands
 * still for that, which is said.
 */
#ifndef MANHOLE_CLI_MEMORY_C
#define MANHOLE_CLI_MEMORY_C

#include "run.c"
#include "attach/attach.c"

/* A look at the process itself or at a copy, as its argument says. kept: as run_code() has it. */
static enum exit_status
look_once(int server, const struct request *look, const struct target *target,
          bool *answered, struct buffer *kept)
{
    enum exit_status status = run_code(server, look, target, answered, kept);
    (void)close(server);
    return status;
}

/* The first look, at a copy. Returns whether there can be one; then the status, and what was found.
 */
static bool
look_at_copy(const struct request *look, struct target *target, bool *answered,
             struct buffer *found, enum exit_status *status)
{
    static const char no_copy[] = "manhole: no frozen copy can be made: ";
    int server = target->port == 0 ? try_frozen(look, target, "frozen-exec") : -1;

    if (server < 0) {
        return false;
    }
    *status = look_once(server, look, target, answered, found);
    bool is_made = strncmp(text_of(found), no_copy, strlen(no_copy)) != 0;
    if (strncmp(text_of(found), "manhole: ", 9) == 0) { /* a refusal */
        show_lines(STDERR_FILENO, NULL, found, true);
    }
    return is_made;
}

/* The first look, which decides at what both are. */
static enum exit_status
look_first(struct request *look, struct target *target, bool *answered,
           struct buffer *found)
{
    enum exit_status status = STATUS_OK;

    if (look_at_copy(look, target, answered, found, &status)) {
        return status;
    }
    if (!terminal.is_quiet) {
        (void)fprintf(stderr,
                      "%s: process %s is counted without a copy, and stands still "
                      "meanwhile\n",
                      program, label_of(target).text);
    }
    look->argument[0] = "process";
    return look_once(open_connection(look, target, "exec"), look, target, answered,
                     found);
}

/* Waits for the second look. Returns false, with the status, when nobody wants it any more. */
static bool
wait_between_looks(double deadline, enum exit_status *status)
{
    struct readers readers = {.are_gone = {false}};
    struct pollfd fds[2];

    while (now_s() < deadline) {
        watch_readers(&readers, fds);
        int ready = poll_with_signals(fds, 2, patience_until(deadline));
        if (ready > 0 && lost_readers(&readers, fds)) {
            *status = STATUS_OUTPUT_GONE;
            return false;
        }
        if (consume_signal(SIGINT)) {
            *status = STATUS_INTERRUPTED;
            return false;
        }
    }
    return true;
}

/* Both looks. A manhole that was put in may be gone in between, as its last client is. */
static enum exit_status
compare_memory(const struct request *request, struct target *target, bool *answered)
{
    struct request look = *request;
    OWNED_BUFFER found = {.data = NULL};
    double seconds = 0;

    look.argument[0] = "copy";
    look.argument[1] = "";
    look.arguments = 2;
    enum exit_status status = look_first(&look, target, answered, &found);
    if (status != STATUS_OK) {
        return status;
    }
    (void)parse_float(request->given[OPTION_MEMORY], &seconds);
    if (!terminal.is_quiet && isatty(STDERR_FILENO) == 1) {
        (void)fprintf(stderr, "%s: looking again in %g s\n", program, seconds);
    }
    double due = now_s() + seconds;
    if (!wait_between_looks(due < request->deadline ? due : request->deadline, &status)) {
        return status;
    }
    if (wants_attaching(request, target)) {
        attach(request, target->pid);
    }
    look.argument[1] = text_of(&found);
    bool is_copy = strcmp(look.argument[0], "copy") == 0;
    int server = is_copy ? open_frozen(&look, target, "frozen-exec")
                         : open_connection(&look, target, "exec");
    return look_once(server, &look, target, answered, NULL);
}

#endif /* MANHOLE_CLI_MEMORY_C */
