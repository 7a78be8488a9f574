/* Side by side: -c and --stacks for several processes at once, each in a child of ours that
 * does what it does for one. What a child says comes here through pipes and is labelled:
 * code's output line by line as it comes, stacks as a block when they are complete.
 */
#ifndef MANHOLE_CLI_MANY_C
#define MANHOLE_CLI_MANY_C

#include "messages.c"
#include "terminal.c"
#include "target.c"
#include "options.c"
#include "signals.c"
#include "channels.c"
#include "run.c"
#include "stacks.c"
#include "brief.c"
#include "serve.c"
#include "processes.c"

enum {
    JOBS_AT_ONCE = 128, /* processes that are served side by side */
};

struct job {
    const struct target *target;
    pid_t child;
    int fd[2]; /* its standard output and error; -1: at their end */
    struct buffer text[2];
    enum exit_status status;
};

/* Where a child leaves word that its process answered: the status alone may be the code's own. */
static bool *has_answered; /* shared, one for each job */

static void
start_job(struct job *job, const struct request *request, bool *answered)
{
    int out[2];
    int err[2];
    const pid_t parent = getpid();

    if (pipe2(out, O_CLOEXEC) < 0 || pipe2(err, O_CLOEXEC) < 0 ||
        (job->child = fork()) < 0) {
        fail(STATUS_TROUBLE,
             "cannot start a process for each: %m; ask for fewer at once");
    }
    if (job->child == 0) {
        struct request own = *request;
        int nothing = open("/dev/null", O_RDONLY | O_CLOEXEC);
        /* Not to outlive who shows what it says; the process then ends what was left to it. */
        if (prctl(PR_SET_PDEATHSIG, SIGKILL) < 0 || getppid() != parent) {
            leave(STATUS_OUTPUT_GONE);
        }
        (void)dup2(nothing, STDIN_FILENO);
        (void)dup2(out[1], STDOUT_FILENO);
        (void)dup2(err[1], STDERR_FILENO);
        look_at_terminal(true);
        if ((own.flags & FLAG_BRIEF) != 0) {
            own.flags |= FLAG_JSON;
        }
        own.deadline = find_deadline(request); /* from now on, however many came before */
        leave(serve(&own, job->target, answered));
    }
    (void)close(out[1]);
    (void)close(err[1]);
    job->fd[0] = out[0];
    job->fd[1] = err[0];
}

/* Writes the lines that are whole, labelled; at the end also the rest. */
static void
show_labelled(struct job *job, int stream, bool is_end)
{
    struct buffer *text = &job->text[stream];
    struct buffer shown = {.data = NULL}; /* owned */
    const int fd = STDOUT_FILENO + stream;
    const bool is_terminal = isatty(fd) == 1;
    size_t done = 0;
    size_t length = 0;

    while ((length = next_line(text, done, is_end)) > 0) {
        size_t visible = text->data[done + length - 1] == '\n' ? length - 1 : length;
        append_text(&shown, label_of(job->target).text);
        append_text(&shown, ": ");
        if (is_terminal) {
            append_line(&shown, text->data + done, visible);
        }
        else {
            append(&shown, text->data + done, visible);
            append_text(&shown, "\n");
        }
        done += length;
    }
    drop(text, done);
    write_all(fd, text_of(&shown), shown.length);
    free(shown.data);
}

/* All of the stacks under a title. */
static void
show_block(struct job *job)
{
    struct buffer shown = {.data = NULL};   /* owned */
    struct buffer command = {.data = NULL}; /* owned */
    char title[sizeof(struct quoted) + 8];

    if (job->text[0].length > 0) {
        find_command(job->target->pid, &command);
        (void)snprintf(title, sizeof(title), "==> %s ", label_of(job->target).text);
        append_paint(&shown, PROMPT, title);
        append_harmless(&shown, text_of(&command), command.length);
        append_text(&shown, " <==\n");
        write_all(STDOUT_FILENO, shown.data, shown.length);
        show_lines(&job->text[0], true);
    }
    free(shown.data);
    free(command.data);
}

/* An element of one array with the documents of all. */
static void
show_document(struct job *job, bool is_first, bool is_tasks)
{
    struct buffer shown = {.data = NULL}; /* owned */

    append_text(&shown, is_first ? "[" : ",\n");
    while (job->text[0].length > 0 &&
           job->text[0].data[job->text[0].length - 1] == '\n') {
        job->text[0].data[--job->text[0].length] = '\0';
    }
    if (job->text[0].length > 0 && terminal.is_shown_on) {
        append_harmless(&shown, job->text[0].data, job->text[0].length);
    }
    else if (job->text[0].length > 0) {
        append(&shown, job->text[0].data, job->text[0].length);
    }
    else {
        append_text(&shown, "{\"pid\": ");
        append_text(&shown, job->target->pid == 0 ? "null" : label_of(job->target).text);
        append_text(&shown,
                    is_tasks
                        ? ", \"python\": null, \"tasks\": null, \"greenlets\": null}"
                        : ", \"python\": null, \"source\": null, \"threads\": null}");
    }
    write_all(STDOUT_FILENO, shown.data, shown.length);
    free(shown.data);
}

/* Takes the child's exit status, unless something worse is known. */
static void
end_job(struct job *job)
{
    enum exit_status ended_with = STATUS_TROUBLE;
    int status = 0;

    if (waitpid(job->child, &status, 0) != job->child) {
        say_error("cannot tell what became of %s: %m", label_of(job->target).text);
    }
    else if (WIFEXITED(status)) {
        ended_with = (enum exit_status)WEXITSTATUS(status);
    }
    else {
        say_error("what asked process %s was ended by signal %d; ask again",
                  label_of(job->target).text, WTERMSIG(status));
    }
    job->status = ended_with > job->status ? ended_with : job->status;
}

static bool
is_busy_job(const struct job *job)
{
    return job->fd[0] >= 0 || job->fd[1] >= 0;
}

/* Reads what one stream of a child has. The end of both is the job's. */
static void
read_job(struct job *job, int stream)
{
    char bytes[16 * 1024];
    ssize_t count = read(job->fd[stream], bytes, sizeof(bytes));

    if (count > 0) {
        append(&job->text[stream], bytes, (size_t)count);
        return;
    }
    if (count < 0 && is_passing(errno)) {
        return;
    }
    if (count < 0) {
        say_error("cannot read what %s says: %m", label_of(job->target).text);
        job->status = STATUS_TROUBLE;
    }
    (void)close(job->fd[stream]);
    job->fd[stream] = -1;
    if (!is_busy_job(job)) {
        end_job(job);
    }
}

/* Shows the stacks or tasks that are complete, in the order of the command line; of briefs, which
 * are of all, none. */
static void
show_in_order(struct job *jobs, size_t count, const struct request *request,
              size_t *shown)
{
    for (; *shown < count && jobs[*shown].fd[0] < 0; (*shown)++) {
        if ((request->flags & FLAG_JSON) != 0) {
            show_document(&jobs[*shown], *shown == 0, request->action == ACTION_TASKS);
        }
        else if ((request->flags & FLAG_BRIEF) == 0) {
            show_block(&jobs[*shown]);
        }
    }
}

/* Shows the brief stacks of all. */
static void
show_briefly(const struct job *jobs, size_t count)
{
    struct briefs briefs = {.is_of_one = count == 1};

    for (size_t i = 0; i < count; i++) {
        read_document(&briefs, &jobs[i].text[0]);
    }
    show_briefs(&briefs);
}

static size_t
count_busy(const struct job *jobs, size_t count)
{
    size_t busy = 0;

    for (size_t i = 0; i < count; i++) {
        busy += is_busy_job(&jobs[i]);
    }
    return busy;
}

/* Reads what a stream of a child has, and shows it, unless it is to be shown as a whole. */
static void
attend_stream(struct job *job, int stream, const struct request *request)
{
    read_job(job, stream);
    if (stream == 1 || !is_look(request)) {
        show_labelled(job, stream, job->fd[stream] < 0);
    }
}

/* Waits for any of the jobs, and deals with it. Returns whether there was one. When nobody reads
 * any of our outputs, as behind an ssh that was interrupted, that is the end of all, as it is of
 * one. */
static bool
attend_jobs(struct job *jobs, size_t count, const struct request *request, size_t *shown)
{
    static bool is_unread[2]; /* nobody reads our standard output, error */
    struct pollfd *fds = calloc(2 * count + 2, sizeof(*fds)); /* owned */
    bool is_busy = false;

    if (fds == NULL) {
        fail(STATUS_TROUBLE, "out of memory");
    }
    for (size_t i = 0; i < 2 * count; i++) {
        fds[i] = (struct pollfd){.fd = jobs[i / 2].fd[i % 2], .events = POLLIN};
        is_busy = is_busy || fds[i].fd >= 0;
    }
    for (int i = 0; i < 2; i++) {
        fds[2 * count + (size_t)i].fd = is_unread[i] ? -1 : STDOUT_FILENO + i;
    }
    if (is_busy && poll_many(fds, 2 * count + 2, -1) > 0) {
        for (size_t i = 0; i < 2; i++) {
            is_unread[i] = is_unread[i] || fds[2 * count + i].revents != 0;
        }
        if (is_unread[0] && is_unread[1]) {
            leave(STATUS_OUTPUT_GONE);
        }
        for (size_t i = 0; i < 2 * count; i++) {
            if (fds[i].fd >= 0 && fds[i].revents != 0) {
                attend_stream(&jobs[i / 2], (int)(i % 2), request);
            }
        }
        if (is_look(request)) {
            show_in_order(jobs, count, request, shown);
        }
    }
    free(fds);
    return is_busy;
}

/* Serves all; the status is the worst of theirs. */
static enum exit_status
serve_many(const struct request *request, const struct target *targets, size_t count)
{
    struct job *jobs = calloc(count, sizeof(*jobs)); /* owned */
    enum exit_status status = STATUS_OK;
    size_t shown = 0;
    size_t answered = 0;
    size_t begun = 0;

    has_answered =
        mmap(NULL, count, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (jobs == NULL || has_answered == MAP_FAILED) {
        fail(STATUS_TROUBLE, "out of memory");
    }
    /* Who ignores it, or was started so, learns of no child how it ended. */
    (void)signal(SIGCHLD, SIG_DFL);
    do {
        for (; begun < count && count_busy(jobs, begun) < JOBS_AT_ONCE; begun++) {
            jobs[begun].target = &targets[begun];
            start_job(&jobs[begun], request, &has_answered[begun]);
        }
    } while (attend_jobs(jobs, begun, request, &shown));
    write_all(STDOUT_FILENO, "]\n",
              (request->flags & FLAG_JSON) != 0 && shown > 0 ? 2 : 0);
    if ((request->flags & FLAG_BRIEF) != 0) {
        show_briefly(jobs, count);
    }
    for (size_t i = 0; i < count; i++) {
        answered += has_answered[i];
        status = jobs[i].status > status ? jobs[i].status : status;
    }
    if ((request->flags & FLAG_QUIET) == 0) {
        (void)fprintf(stderr, "manhole-cli: %zu of %zu answered\n", answered, count);
    }
    free(jobs);
    return status;
}

#endif /* MANHOLE_CLI_MANY_C */
