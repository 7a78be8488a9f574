/* Attach: into a process that has no manhole, or a look at it from outside, by the way that is
 * open.
 *
 *   ptrace()   a thread that is made there (inject.c), a copy that tells (outside.c). It needs
 *              nothing of the process's Python, but to know the processor (cpu.c).
 *   PEP 768    where that does not do: what the main thread runs (remote.c), CPython 3.14 and
 *              newer.
 *
 * What is found here of the process is found before anything is done to it.
 */
#ifndef MANHOLE_CLI_ATTACH_ATTACH_C
#define MANHOLE_CLI_ATTACH_ATTACH_C

#include "inject.c"
#include "outside.c"
#include "remote.c"
#include "told.c"

/* Whether a manhole is to be put in: there is none yet, open or closed, or it would go and is to
 * stay. */
static bool
wants_attaching(const struct request *request, const struct target *target)
{
    if (!is_given(request, OPTION_ATTACH)) {
        return false;
    }
    if (target->by_path || target->pid == 0) {
        fail(STATUS_USAGE,
             "argument %s: wants the PID of a process, not the path of a socket",
             name_of(OPTION_ATTACH).text);
    }
    struct advert advert = read_advert(target->pid);
    return !advert.is_there || (advert.is_temporary && is_given(request, OPTION_KEEP));
}

#if HAS_IMAGES

/* Gives the process a manhole, or ends the program. */
static void
attach(const struct request *request, pid_t pid)
{
    static struct image image;

    look_at_process(&image, request, pid);
    const struct text obstacle = find_obstacle(pid);
#  if HAS_ATTACH
    if (obstacle.text[0] == '\0') {
        inject(request, &image);
        return;
    }
#  endif
    attach_remotely(request, &image, obstacle.text);
}

/* Prints the stacks of a process that gets no manhole, or ends the program. */
static void
show_stacks_from_outside(const struct request *request, pid_t pid)
{
    static struct image image;
    OWNED_BUFFER answer = {.data = NULL};
    OWNED_BUFFER shown = {.data = NULL};
    bool is_json = is_given(request, OPTION_JSON) || is_given(request, OPTION_BRIEF);

    look_at_process(&image, request, pid);
    const struct text obstacle = find_obstacle(pid);
#  if HAS_ATTACH
    if (obstacle.text[0] == '\0') {
        look_from_outside(&image, &answer);
    }
#  endif
    if (answer.length == 0) {
        look_remotely(request, &image, obstacle.text, &answer);
    }
    format_stacks(&shown, pid, &answer, is_json);
    show_lines(STDOUT_FILENO, NULL, &shown, true);
}

#else

static _Noreturn void
attach(const struct request *request, pid_t pid)
{
    (void)request;
    fail(STATUS_NO_CONNECTION,
         "cannot attach to process %d: this is for processors of 64 bits", (int)pid);
}

static _Noreturn void
show_stacks_from_outside(const struct request *request, pid_t pid)
{
    attach(request, pid);
}

#endif /* HAS_IMAGES */

#endif /* MANHOLE_CLI_ATTACH_ATTACH_C */
