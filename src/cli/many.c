/* Side by side: -c and --stacks for several processes at once, so that none waits for another.
 *
 * Each is a job: a child of ours that does what we would do for one process, with /dev/null for its
 * input and pipes for its output. What comes through these is labelled: code's output line by line
 * as it comes, stacks as a block when they are complete, JSON as an element of one array:
 *
 *   4711: bread                        ==> 4711 python3 /srv/shop/app.py <==
 *   4712: milk                         ######### ProcessID=4711, ThreadID=... #########
 *
 * The parent reads all pipes, however many there are, and knows a job by the end of both of its
 * own. The status is the worst of all. A child dies with us, and its session with it.
 */
#ifndef MANHOLE_CLI_MANY_C
#define MANHOLE_CLI_MANY_C

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

struct jobs {
    const struct request *request;
    struct job *list; /* owned */
    size_t count;
    size_t begun;
    size_t shown;       /* stacks or tasks, in the order of the command line */
    bool *has_answered; /* shared with the children, for a status may be the code's own */
    struct readers readers;
};

/* In the child. It is not to outlive who shows what it says. */
static _Noreturn void
do_job(const struct jobs *jobs, size_t number, const int out[2], pid_t parent)
{
    struct request request = *jobs->request;
    int nothing = open("/dev/null", O_RDONLY | O_CLOEXEC);

    if (prctl(PR_SET_PDEATHSIG, SIGKILL) < 0 || getppid() != parent) {
        leave(STATUS_OUTPUT_GONE);
    }
    (void)dup2(nothing, STDIN_FILENO);
    (void)dup2(out[0], STDOUT_FILENO);
    (void)dup2(out[1], STDERR_FILENO);
    look_at_terminal();
    terminal.is_raw = true; /* whoever shows it sees to that */
    request.deadline =
        find_deadline(&request); /* from now on, however many came before */
    leave(serve(&request, jobs->list[number].target, &jobs->has_answered[number]));
}

/* Forks the child of a job, and keeps the reading ends of its two pipes. */
static void
start_job(struct jobs *jobs, size_t number)
{
    struct job *job = &jobs->list[number];
    int out[2];
    int err[2];
    const pid_t parent = getpid();

    if (pipe2(out, O_CLOEXEC) < 0 || pipe2(err, O_CLOEXEC) < 0 ||
        (job->child = fork()) < 0) {
        fail(STATUS_TROUBLE,
             "cannot start a process for each: %m; ask for fewer at once");
    }
    if (job->child == 0) {
        do_job(jobs, number, (const int[]){out[1], err[1]}, parent);
    }
    (void)close(out[1]);
    (void)close(err[1]);
    job->fd[0] = out[0];
    job->fd[1] = err[0];
}

/* ---- What a job says --------------------------------------------------------------- */

/* All of the stacks under a title. */
static void
show_block(struct job *job)
{
    OWNED_BUFFER shown = {.data = NULL};
    OWNED_BUFFER command = {.data = NULL};

    if (job->text[0].length == 0) {
        return;
    }
    find_command(job->target->pid, &command);
    append_paint(&shown, PROMPT, print("==> %s ", label_of(job->target).text).text);
    append_harmless(&shown, text_of(&command), command.length);
    append_text(&shown, " <==\n");
    write_all(STDOUT_FILENO, shown.data, shown.length);
    show_lines(STDOUT_FILENO, NULL, &job->text[0], true);
}

/* An element of one array with the documents of all. */
static void
show_document(struct job *job, bool is_first, bool is_tasks)
{
    struct buffer *text = &job->text[0];
    OWNED_BUFFER shown = {.data = NULL};

    append_text(&shown, is_first ? "[" : ",\n");
    while (ends_with(text, "\n")) {
        text->data[--text->length] = '\0';
    }
    if (text->length == 0) {
        append_format(&shown, "{\"pid\": %s, \"python\": null, %s}",
                      job->target->pid == 0 ? "null" : label_of(job->target).text,
                      is_tasks ? "\"tasks\": null, \"greenlets\": null"
                               : "\"version\": 1, \"source\": null, \"threads\": null");
    }
    else if (terminal.is_shown_on) {
        append_harmless(&shown, text->data, text->length);
    }
    else {
        append(&shown, text->data, text->length);
    }
    write_all(STDOUT_FILENO, shown.data, shown.length);
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
is_busy(const struct job *job)
{
    return job->fd[0] >= 0 || job->fd[1] >= 0;
}

/* Reads what one stream of a child has. The end of both is the job's. */
static void
read_job(struct job *job, int stream)
{
    char bytes[CHUNK_SIZE];
    ssize_t count = read(job->fd[stream], bytes, sizeof(bytes));

    if (append_some(&job->text[stream], bytes, count)) {
        return;
    }
    if (count < 0) {
        say_error("cannot read what %s says: %m", label_of(job->target).text);
        job->status = STATUS_TROUBLE;
    }
    (void)close(job->fd[stream]);
    job->fd[stream] = -1;
    if (!is_busy(job)) {
        end_job(job);
    }
}

/* Shows what has come of a job line by line: all but stacks and tasks. */
static void
show_job_lines(const struct jobs *jobs, struct job *job, int stream)
{
    if (jobs->request->action == ACTION_RUN || stream == 1) {
        show_lines(STDOUT_FILENO + stream, label_of(job->target).text, &job->text[stream],
                   job->fd[stream] < 0);
    }
}

/* Shows the stacks or tasks that are complete, in the order of the command line; briefs are of all
 * at once. */
static void
show_in_order(struct jobs *jobs)
{
    for (; jobs->shown < jobs->begun && jobs->list[jobs->shown].fd[0] < 0;
         jobs->shown++) {
        struct job *job = &jobs->list[jobs->shown];
        if (is_given(jobs->request, OPTION_JSON)) {
            show_document(job, jobs->shown == 0, is_look_at_tasks(jobs->request));
        }
        else if (!is_given(jobs->request, OPTION_BRIEF)) {
            show_block(job);
        }
    }
}

/* What there is to say when all have ended. */
static void
show_end(const struct jobs *jobs)
{
    struct briefs briefs = {.is_of_one = jobs->count == 1};

    if (is_given(jobs->request, OPTION_JSON) && jobs->shown > 0) {
        write_all(STDOUT_FILENO, "]\n", 2);
    }
    if (is_given(jobs->request, OPTION_BRIEF)) {
        for (size_t i = 0; i < jobs->count; i++) {
            read_document(&briefs, &jobs->list[i].text[0]);
        }
        show_briefs(&briefs);
    }
}

/* ---- All of them ------------------------------------------------------------------- */

/* Begins as many as may be at once, and returns whether any is not over. */
static bool
begin_jobs(struct jobs *jobs)
{
    size_t busy = 0;

    for (size_t i = 0; i < jobs->begun; i++) {
        busy += is_busy(&jobs->list[i]);
    }
    for (; jobs->begun < jobs->count && busy < JOBS_AT_ONCE; busy++) {
        start_job(jobs, jobs->begun++);
    }
    return busy > 0;
}

/* Waits for any of the jobs, and deals with it. When nobody reads our output any more that is the
 * end of all, as it is of one: the children end with us. */
static void
attend_jobs(struct jobs *jobs)
{
    const size_t streams = 2 * jobs->begun;
    OWNED struct pollfd *fds = allocate(streams + 2, sizeof(*fds));

    for (size_t i = 0; i < streams; i++) {
        fds[i] = (struct pollfd){.fd = jobs->list[i / 2].fd[i % 2], .events = POLLIN};
    }
    watch_readers(&jobs->readers, fds + streams);
    if (poll_many(fds, streams + 2, -1) <= 0) {
        return;
    }
    if (lost_readers(&jobs->readers, fds + streams)) {
        leave(STATUS_OUTPUT_GONE);
    }
    for (size_t i = 0; i < streams; i++) {
        if (fds[i].fd >= 0 && fds[i].revents != 0) {
            read_job(&jobs->list[i / 2], (int)(i % 2));
            show_job_lines(jobs, &jobs->list[i / 2], (int)(i % 2));
        }
    }
    if (is_look(jobs->request)) {
        show_in_order(jobs);
    }
}

/* Serves all; the status is the worst of theirs. */
static enum exit_status
serve_many(const struct request *request, const struct target *targets, size_t count)
{
    struct jobs jobs = {.request = request, .count = count};
    enum exit_status status = STATUS_OK;
    size_t answered = 0;

    jobs.list = allocate(count, sizeof(*jobs.list));
    jobs.has_answered =
        mmap(NULL, count, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (jobs.has_answered == MAP_FAILED) {
        fail(STATUS_TROUBLE, "out of memory");
    }
    for (size_t i = 0; i < count; i++) {
        jobs.list[i].target = &targets[i];
    }
    /* Who ignores it, or was started so, learns of no child how it ended. */
    (void)signal(SIGCHLD, SIG_DFL);
    while (begin_jobs(&jobs)) {
        attend_jobs(&jobs);
    }
    show_end(&jobs);
    for (size_t i = 0; i < count; i++) {
        answered += jobs.has_answered[i];
        status = jobs.list[i].status > status ? jobs.list[i].status : status;
    }
    if (!is_given(request, OPTION_QUIET)) {
        (void)fprintf(stderr, "manhole-cli: %zu of %zu answered\n", answered, count);
    }
    free(jobs.list);
    return status;
}

#endif /* MANHOLE_CLI_MANY_C */
