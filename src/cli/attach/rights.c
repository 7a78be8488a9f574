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
#include "maps.c"

#if HAS_ATTACH

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

/* Who holds the process: a process can have one tracer. */
static _Noreturn void
fail_traced(pid_t pid, long tracer)
{
    OWNED_BUFFER name = {.data = NULL};

    (void)read_proc((pid_t)tracer, "comm", &name);
    fail(STATUS_NO_CONNECTION,
         "process %d is traced by process %ld (%.*s), and can have one tracer; end that, "
         "then "
         "try again",
         (int)pid, tracer, (int)strcspn(text_of(&name), "\n"), text_of(&name));
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
    long tracer = strtol(read_status(pid, "TracerPid").text, NULL, 10);
    uid_t uid = 0;

    if (tracer != 0) {
        fail_traced(pid, tracer);
    }
    if (say_owner(pid)) {
        leave(STATUS_NO_CONNECTION);
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
    long tracer = strtol(read_status(pid, "TracerPid").text, NULL, 10);

    if (tracer != 0) {
        fail_traced(pid, tracer);
    }
    if (say_hindrance(pid)) {
        leave(STATUS_NO_CONNECTION);
    }
    if (strtol(read_status(pid, "CoreDumping").text, NULL, 10) != 0) {
        fail(STATUS_NO_CONNECTION,
             "process %d has crashed, and its core is being written", (int)pid);
    }
    if (strstr(read_status(pid, "x86_Thread_features").text, "shstk") != NULL) {
        fail(STATUS_NO_CONNECTION,
             "process %d has a shadow stack, behind which no thread of it can be lent",
             (int)pid);
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

#endif /* HAS_ATTACH */

#endif /* MANHOLE_CLI_ATTACH_RIGHTS_C */
