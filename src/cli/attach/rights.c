/* Rights: what keeps us from attaching, said before anybody is stopped, with the command that
 * helps.
 *
 * /proc/PID/status tells what would be hopeless or a bad idea: a process that another debugger
 * holds, that is stopped, or is on its way out. What only the kernel can say, that we may not, is
 * an EPERM of the first read of the process's memory or of the first ptrace(); why is worked out
 * afterwards from what /proc shows of it and of us. Nothing of this program can raise a right: each
 * message names what is missing, and the command with which it is there.
 */
#ifndef MANHOLE_CLI_ATTACH_RIGHTS_C
#define MANHOLE_CLI_ATTACH_RIGHTS_C

#include "../hindrances.c"
#include "../options.c"
#include "arm64.c"
#include "elf.c"
#include "x86_64.c"

#if HAS_IMAGES

enum {
    CAPABILITY_PTRACE = 19, /* CAP_SYS_PTRACE, whose header musl has not */
};

/* Whether we have that capability: root has not in most containers, and a user may have been given
 * it. */
static bool
may_trace_all(void)
{
    return (strtoull(read_status(0, "CapEff").text, NULL, 16) >> CAPABILITY_PTRACE & 1) !=
           0;
}

/* Why ptrace() does not do for a process, although its memory may be read; "" for no reason. */
static struct text
find_obstacle(pid_t pid)
{
#  if !HAS_ATTACH
    return print("process %d: by ptrace() this is for x86-64 and arm64 alone so far",
                 (int)pid);
#  else
    long tracer = strtol(read_status(pid, "TracerPid").text, NULL, 10);
    OWNED_BUFFER name = {.data = NULL};

    if (tracer != 0) {
        (void)read_proc((pid_t)tracer, "comm", &name);
        return print(
            "process %d is traced by process %ld (%.*s), and can have one tracer; "
            "end that, then try again",
            (int)pid, tracer, (int)strcspn(text_of(&name), "\n"), text_of(&name));
    }
    if (has_shadow_stack(pid)) {
        return print(
            "process %d has a shadow stack, behind which no thread of it can be lent",
            (int)pid);
    }
    /* Nobody traces this program, which is another error. */
    if (ptrace(PTRACE_CONT, getpid(), NULL, NULL) < 0 && errno != ESRCH) {
        return print(
            "ptrace() is forbidden here: %m; in a container by its seccomp profile");
    }
    return print("%s", "");
#  endif
}

/* The process has ended under our hands. Nobody serves a socket that it may have made by then. */
static _Noreturn void
fail_ended(pid_t pid)
{
    (void)unlink(target_of(pid).path);
    fail(STATUS_CUT, "process %d has ended meanwhile", (int)pid);
}

/* Something has gone wrong with it. Ends the program if that is why, which shows a moment later. */
static void
check_life(pid_t pid)
{
    enum { LOOKS = 50 };

    for (int i = 0; i < LOOKS; i++) {
        if (has_ended(pid)) {
            fail_ended(pid);
        }
        (void)poll(NULL, 0, 1);
    }
}

/* Yama's setting, or -1 where the kernel has none. */
static long
ptrace_scope(void)
{
    OWNED_BUFFER scope = {.data = NULL};

    return read_file("/proc/sys/kernel/yama/ptrace_scope", &scope)
               ? strtol(text_of(&scope), NULL, 10)
               : -1;
}

/* The kernel has said no, with that error. Says why, as far as it can be known. */
static _Noreturn void
fail_denied(pid_t pid, int error)
{
    const long scope = ptrace_scope();
    const int number = (int)pid;
    const struct text obstacle = find_obstacle(pid);
    uid_t uid = 0;

    if (say_owner(pid)) {
        leave(STATUS_NO_CONNECTION);
    }
    if (obstacle.text[0] != '\0') {
        fail(STATUS_NO_CONNECTION, "%s", obstacle.text);
    }
    errno = error;
    if (scope == 3) {
        fail(STATUS_NO_CONNECTION,
             "cannot attach to process %d: %m; kernel.yama.ptrace_scope is 3, which "
             "forbids it "
             "to everybody until the machine boots",
             number);
    }
    if (scope > 0 && !may_trace_all()) {
        fail(STATUS_NO_CONNECTION,
             "cannot attach to process %d: %m; kernel.yama.ptrace_scope is %ld: this "
             "takes root "
             "(sudo %s --attach %d), or for all of this user's processes 'sudo sysctl "
             "kernel.yama.ptrace_scope=0'",
             number, scope, program, number);
    }
    if (!may_trace_all() && geteuid() == 0) {
        fail(STATUS_NO_CONNECTION,
             "cannot attach to process %d: %m; root lacks CAP_SYS_PTRACE here: in a "
             "container "
             "started with --cap-add=SYS_PTRACE, or from the host",
             number);
    }
    if (!may_trace_all() && find_uid(pid, &uid)) {
        fail(STATUS_NO_CONNECTION,
             "cannot attach to process %d: %m; it has changed its user or has more "
             "rights than "
             "you (it is not dumpable): run %s as root",
             number, program);
    }
    fail(STATUS_NO_CONNECTION,
         "cannot attach to process %d: %m; a security module (SELinux: 'setsebool "
         "deny_ptrace "
         "off'), or a container's seccomp profile, forbids it",
         number);
}

/* How many filters of seccomp's a process is behind; before Linux 5.9 whether it is behind any. */
static long
count_filters(pid_t pid)
{
    struct text count = read_status(pid, "Seccomp_filters");
    struct text mode = read_status(pid, "Seccomp");

    return count.text[0] != '\0' ? strtol(count.text, NULL, 10)
                                 : strtol(mode.text, NULL, 10) == 2;
}

/* Ends the program when this is not to be tried. */
static void
check_process(const struct request *request, pid_t pid)
{
    if (say_hindrance(pid)) {
        leave(STATUS_NO_CONNECTION);
    }
    if (strtol(read_status(pid, "CoreDumping").text, NULL, 10) != 0) {
        fail(STATUS_NO_CONNECTION,
             "process %d has crashed, and its core is being written", (int)pid);
    }
    if (strtol(read_status(pid, "Seccomp").text, NULL, 10) == 1) {
        fail(STATUS_NO_CONNECTION,
             "process %d is in seccomp's strict mode: it may only read and write",
             (int)pid);
    }
    /* What it may do is told to nobody but root; those that we are behind, too, do not kill. */
    if (count_filters(pid) > count_filters(0) && !is_given(request, OPTION_YES)) {
        fail(STATUS_NO_CONNECTION,
             "process %d is behind a seccomp filter, which might kill it for what it is "
             "made to call: clone(), memfd_create(), mmap() of code. A container's "
             "usually only says no; --yes tries",
             (int)pid);
    }
}

/* Reads what is mapped, and ends the program where that tells that this is not for us. */
static void
look_at_process(struct image *image, const struct request *request, pid_t pid)
{
    char byte = 0;

    image->pid = pid;
    check_process(request, pid);
    if (!read_mappings(image)) {
        fail_denied(pid, errno);
    }
    if (image->mapping_count == 0) {
        fail(STATUS_NO_CONNECTION, "process %d is a thread of the kernel's", (int)pid);
    }
    if (!peek(pid, image->mappings[0].start, &byte, 1) && errno == EPERM) {
        fail_denied(pid, errno);
    }
    read_objects(image);
    if (find_python(image, "Py_FatalError") == 0) {
        check_life(pid);
        fail(STATUS_NO_CONNECTION, "process %d runs no CPython of this kind of processor",
             (int)pid);
    }
}

#endif /* HAS_IMAGES */

#endif /* MANHOLE_CLI_ATTACH_RIGHTS_C */
