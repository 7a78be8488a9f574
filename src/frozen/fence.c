/* Fence: what a frozen copy of the process may not do.
 * Runs on:  the copy's only thread, before anything else there.
 * Touches:  the copy: its signals, limits, descriptors, mappings, name, system calls.
 *
 * A copy has all that the process had open and mapped, and its rights. Whoever types at its prompt
 * believes that nothing matters there, so nothing may. Before it runs a line of Python:
 *
 *   Descriptors. All but the client's become /dev/null. They are not closed: the application's own
 *   objects would then write into whatever gets their numbers next.
 *
 *   Memory that others share with the process (multiprocessing's, a mapped file, SQLite's index of
 *   its log) is replaced by the copy's own, at the same addresses, with what was in it. Beyond
 *   SHARED_MOST it can be read only; what a device maps not even that. What stays shared is sealed:
 *   nobody makes it writable, where the kernel knows that (6.10).
 *
 *   System calls. A seccomp filter lets through what is listed in allowed[], and nothing else: the
 *   rest fails with EPERM. Files are opened for reading only; no socket is made, no process, no
 *   signal sent, not to itself either, for a copy that stops is a SIGCHLD to the process; no lock
 *   taken on a file, nobody's rights changed. It is a list of what is let through, for the kernel
 *   has new calls each year.
 *
 *   Its end. It dies with the thread of the process that has made it, without a core, without a
 *   SIGCHLD; before anything else where memory is short; never by exit(), which would flush what
 *   the application has buffered.
 *
 * What is read is read: from a FIFO, a terminal or, by /proc, a pipe of the process's own that is
 * opened by its name it is gone. The CPU is shared, too, and what a cgroup may have of it.
 */
#ifndef MANHOLE_FROZEN_FENCE_C
#define MANHOLE_FROZEN_FENCE_C

#include "../base/compat.c"
#include "../base/state.c"
#include "../base/basics.c"
#include "../stacks/copy.c"

#if CAN_FREEZE
#  include <linux/audit.h>
#  include <linux/filter.h>
#  include <linux/magic.h>
#  include <linux/seccomp.h>
#  include <sys/mman.h>
#  include <sys/statfs.h>
#  include <sys/sysinfo.h>
#  include <sys/sysmacros.h>
#  include <sys/uio.h>

enum {
    /* Bytes of shared memory that are copied; what is more cannot be written to. */
    SHARED_MOST = 256 * 1024 * 1024,
    /* Seconds of computing, after which a copy that nobody can stop ends. */
    COPY_CPU_S = 600,
    COPY_NICE = 5,
};

/* ---- Descriptors --------------------------------------------------------------------- */

/* An entry of a folder, as the kernel writes it: with readdir() comes malloc(). */
struct folder_entry {
    uint64_t inode;
    int64_t offset;
    unsigned short size;
    unsigned char type;
    char name[];
};

/* Puts /dev/null in the place of every descriptor but these. */
COPY_ONLY static bool
replace_listed(int list_fd, int null_fd, int client_fd)
{
    _Alignas(struct folder_entry) char entries[4096];
    long length = 0;
    while ((length = syscall(SYS_getdents64, list_fd, entries, sizeof(entries))) > 0) {
        const struct folder_entry *entry = NULL;
        for (long at = 0; at < length; at += entry->size) {
            entry = (const void *)(entries + at);
            int fd = entry->name[0] == '.' ? -1 : (int)strtol(entry->name, NULL, 10);
            if (fd >= 0 && fd != client_fd && fd != null_fd && fd != list_fd &&
                dup3(null_fd, fd, fd > STDERR_FILENO ? O_CLOEXEC : 0) < 0) {
                return false;
            }
        }
    }
    return length == 0;
}

/* Whether it is the kernel's: in a chroot, say, it may be a file, which would be written to. */
COPY_ONLY static bool
is_null_device(int fd)
{
    struct stat file;
    return fstat(fd, &file) == 0 && S_ISCHR(file.st_mode) &&
           file.st_rdev == makedev(1, 3);
}

/* The process may have no descriptor left: the bells make room, which are ours and of no use here.
 */
COPY_ONLY static bool
replace_descriptors(int client_fd)
{
    (void)close(atomic_load(&manhole.wake_bell.number));
    (void)close(atomic_load(&manhole.news_bell.number));
    const int null_fd = open("/dev/null", O_RDWR | O_CLOEXEC);
    const int list_fd = open("/proc/self/fd", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    bool replaced = is_null_device(null_fd) && list_fd >= 0 &&
                    replace_listed(list_fd, null_fd, client_fd);
    (void)close(list_fd);
    (void)close(null_fd);
    return replaced;
}

/* An address as /proc writes it. */
COPY_ONLY static char *
read_address(const char *text, char **behind, int base)
{
    return (char *)strtoul(text, behind, base); /* NOLINT(performance-no-int-to-ptr) */
}

/* ---- Memory -------------------------------------------------------------------------- */

/* Copies memory of the process's own that may have holes: a file can be shorter than its mapping,
 * and reading there would be the end. Returns false where the kernel does not do it. */
COPY_ONLY static bool
copy_with_holes(void *to, void *from, size_t size)
{
    enum { PAGE = 4096 };
    for (size_t at = 0; at < size;) {
        const struct iovec source = {(char *)from + at, size - at};
        const struct iovec target = {(char *)to + at, size - at};
        ssize_t copied = (ssize_t)syscall(SYS_process_vm_readv, syscall(SYS_getpid),
                                          &target, 1UL, &source, 1UL, 0UL);
        if (copied < 0 && errno != EFAULT) {
            return false;
        }
        at += copied > 0 ? (size_t)copied : PAGE;
    }
    return true;
}

/* Whether a shared mapping is memory alone: what nobody has written to yet takes none, and would,
 * for good, by being read. The kernel tells what there is, but not from what it has swapped out. */
COPY_ONLY static bool
may_be_sparse(const char *path)
{
    struct statfs file_system;
    struct sysinfo memory;
    const bool is_memory =
        strncmp(path, "/dev/zero", 9) == 0 || strncmp(path, "/memfd:", 7) == 0 ||
        strncmp(path, "/SYSV", 5) == 0 ||
        (strncmp(path, "/dev/shm/", 9) == 0 && statfs("/dev/shm", &file_system) == 0 &&
         file_system.f_type == TMPFS_MAGIC);
    return is_memory && sysinfo(&memory) == 0 && memory.freeswap == memory.totalswap;
}

/* As copy_with_holes(), leaving out the pages that there are not. */
COPY_ONLY static bool
copy_present(char *to, char *from, size_t size)
{
    enum { PAGE = 4096 };
    unsigned char present[1024];
    for (size_t at = 0; at < size; at += PAGE) {
        const size_t page = at / PAGE % sizeof(present);
        const size_t rest = size - at;
        if (page == 0 &&
            mincore(from + at,
                    rest < PAGE * sizeof(present) ? rest : PAGE * sizeof(present),
                    present) < 0) {
            return false;
        }
        if ((present[page] & 1) != 0 && !copy_with_holes(to + at, from + at, PAGE)) {
            return false;
        }
    }
    return true;
}

/* What stays shared keeps its protection, until the copy's end. */
COPY_ONLY static void
seal_mapping(const char *begin, size_t size)
{
    (void)syscall(462 /* mseal */, begin, size, 0UL);
}

/* Makes one shared and writable mapping the copy's own. */
COPY_ONLY static bool
unshare_mapping(char *begin, size_t size, const char *path, size_t *copied)
{
    const bool is_device = strncmp(path, "/dev/", 5) == 0 &&
                           strncmp(path, "/dev/shm/", 9) != 0 &&
                           strncmp(path, "/dev/zero", 9) != 0;
    if (is_device || *copied + size > SHARED_MOST) {
        bool is_protected = mprotect(begin, size, is_device ? PROT_NONE : PROT_READ) == 0;
        seal_mapping(begin, size);
        return is_protected;
    }
    *copied += size;
    char *fresh =
        mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    return fresh != MAP_FAILED &&
           (may_be_sparse(path) ? copy_present(fresh, begin, size)
                                : copy_with_holes(fresh, begin, size)) &&
           mremap(fresh, size, size, MREMAP_MAYMOVE | MREMAP_FIXED, begin) != MAP_FAILED;
}

/* One line of /proc/self/maps: "7f10-7f20 rw-s 00000000 00:01 1024  /dev/shm/name". */
COPY_ONLY static bool
unshare_line(const char *line, const char *own_board, size_t *copied)
{
    char *at = NULL;
    char *begin = read_address(line, &at, 16);
    const char *end = read_address(at + 1, &at, 16);
    if (at[4] != 's' || begin == own_board) {
        return true;
    }
    if (at[2] != 'w') {
        seal_mapping(begin, (size_t)(end - begin));
        return true;
    }
    const char *path = strchr(at, '/');
    return unshare_mapping(begin, (size_t)(end - begin), path == NULL ? "" : path,
                           copied);
}

/* All of them but the board, by which the copy tells the process how far it is. */
COPY_ONLY static bool
unshare_memory(const void *own_board)
{
    char lines[8192];
    size_t length = 0;
    size_t copied = 0;
    ssize_t got = 0;
    bool done = true;
    const int fd = open("/proc/self/maps", O_RDONLY | O_CLOEXEC);
    while (done && (got = read(fd, lines + length, sizeof(lines) - 1 - length)) > 0) {
        char *line = lines;
        char *newline = NULL;
        length += (size_t)got;
        lines[length] = '\0';
        while (done && (newline = strchr(line, '\n')) != NULL) {
            *newline = '\0';
            done = unshare_line(line, own_board, &copied);
            line = newline + 1;
        }
        length -= (size_t)(line - lines);
        memmove(lines, line, length);
    }
    (void)close(fd);
    return done && got == 0 && length == 0; /* else there is a line that is too long */
}

/* ---- System calls -------------------------------------------------------------------- */

/* Whatever the arguments. What stays in the copy, or tells it something. */
static const unsigned allowed[] = {
    /* files and what was opened */
    SYS_read,
    SYS_pread64,
    SYS_readv,
    SYS_preadv,
    SYS_preadv2,
    SYS_write,
    SYS_pwrite64,
    SYS_writev,
    SYS_close,
    SYS_lseek,
    SYS_dup,
    SYS_dup2,
    SYS_dup3,
    SYS_fstat,
    SYS_stat,
    SYS_lstat,
    SYS_newfstatat,
    SYS_statx,
    SYS_statfs,
    SYS_fstatfs,
    SYS_access,
    SYS_faccessat,
    SYS_readlink,
    SYS_readlinkat,
    SYS_getdents,
    SYS_getdents64,
    SYS_getcwd,
    SYS_chdir,
    SYS_fchdir,
    SYS_umask,
    SYS_fadvise64,
    SYS_getxattr,
    SYS_lgetxattr,
    SYS_fgetxattr,
    SYS_listxattr,
    439 /* faccessat2 */,
    /* memory */
    SYS_mmap,
    SYS_munmap,
    SYS_mremap,
    SYS_mprotect,
    SYS_brk,
    SYS_mincore,
    SYS_memfd_create,
    SYS_membarrier,
    SYS_process_vm_readv,
    /* threads of its own; clone() below */
    SYS_futex,
    449 /* futex_waitv */,
    SYS_set_robust_list,
    SYS_get_robust_list,
    SYS_set_tid_address,
    SYS_arch_prctl,
    334 /* rseq */,
    SYS_sched_yield,
    SYS_sched_getaffinity,
    SYS_sched_getparam,
    SYS_sched_getscheduler,
    SYS_sched_get_priority_max,
    SYS_sched_get_priority_min,
    SYS_getpriority,
    SYS_exit,
    SYS_exit_group,
    SYS_restart_syscall,
    SYS_wait4,
    SYS_waitid,
    /* who and when */
    SYS_getpid,
    SYS_getppid,
    SYS_gettid,
    SYS_getuid,
    SYS_geteuid,
    SYS_getgid,
    SYS_getegid,
    SYS_getresuid,
    SYS_getresgid,
    SYS_getgroups,
    SYS_getpgid,
    SYS_getpgrp,
    SYS_getsid,
    SYS_getcpu,
    SYS_getrusage,
    SYS_getrlimit,
    SYS_sysinfo,
    SYS_uname,
    SYS_getrandom,
    SYS_time,
    SYS_times,
    SYS_gettimeofday,
    SYS_clock_gettime,
    SYS_clock_getres,
    SYS_nanosleep,
    SYS_clock_nanosleep,
    SYS_alarm,
    SYS_getitimer,
    SYS_setitimer,
    SYS_timerfd_create,
    SYS_timerfd_settime,
    SYS_timerfd_gettime,
    /* signals that come to it */
    SYS_rt_sigaction,
    SYS_rt_sigprocmask,
    SYS_rt_sigreturn,
    SYS_rt_sigpending,
    SYS_rt_sigtimedwait,
    SYS_rt_sigsuspend,
    SYS_sigaltstack,
    SYS_pause,
    /* waiting, and what asyncio makes a loop of */
    SYS_poll,
    SYS_ppoll,
    SYS_select,
    SYS_pselect6,
    SYS_epoll_create,
    SYS_epoll_create1,
    SYS_epoll_ctl,
    SYS_epoll_wait,
    SYS_epoll_pwait,
    441 /* epoll_pwait2 */,
    SYS_eventfd,
    SYS_eventfd2,
    SYS_pipe,
    SYS_pipe2,
    /* the client; sendto() below. No sendmsg(), which may have an address. */
    SYS_recvfrom,
    SYS_recvmsg,
    SYS_shutdown,
    SYS_getsockopt,
    SYS_setsockopt,
    SYS_getsockname,
    SYS_getpeername,
};

/* A call that is let through where its argument is as it has to be. */
struct condition {
    unsigned call;
    unsigned argument;
    enum { IS, HAS_NONE_OF } test;
    unsigned value; /* of its lower half */
};

enum { WRITES = O_WRONLY | O_RDWR | O_CREAT | O_TRUNC };

static const struct condition conditions[] = {
    {SYS_openat, 2, HAS_NONE_OF, WRITES},
    {SYS_open, 1, HAS_NONE_OF, WRITES},
    {SYS_sendto, 5, IS, 0}, /* no address: what has no length is none */
    {SYS_fcntl, 1, IS, F_DUPFD},
    {SYS_fcntl, 1, IS, F_DUPFD_CLOEXEC},
    {SYS_fcntl, 1, IS, F_GETFD},
    {SYS_fcntl, 1, IS, F_SETFD},
    {SYS_fcntl, 1, IS, F_GETFL},
    {SYS_fcntl, 1, IS, F_SETFL},
    {SYS_ioctl, 1, IS, FIONREAD},
    {SYS_ioctl, 1, IS, FIONBIO},
    {SYS_ioctl, 1, IS, FIOCLEX},
    {SYS_ioctl, 1, IS, FIONCLEX},
    {SYS_ioctl, 1, IS, TCGETS},
    {SYS_ioctl, 1, IS, TIOCGWINSZ},
    {SYS_prlimit64, 0, IS, 0},
    {SYS_prctl, 0, IS, PR_SET_NAME},
    {SYS_prctl, 0, IS, PR_GET_NAME},
    {SYS_tgkill, 2, IS, 0},           /* whether it is there */
    {SYS_socketpair, 0, IS, AF_UNIX}, /* another may load its module */
    /* Of what allocators ask for. Another way, MADV_REMOVE, empties a file that is mapped. */
    {SYS_madvise, 2, IS, MADV_DONTNEED},
    {SYS_madvise, 2, IS, MADV_FREE},
    {SYS_madvise, 2, IS, MADV_HUGEPAGE},
    {SYS_madvise, 2, IS, MADV_NOHUGEPAGE},
    {SYS_madvise, 2, IS, 102 /* MADV_GUARD_INSTALL */},
    {SYS_madvise, 2, IS, 103 /* MADV_GUARD_REMOVE */},
};

/* The filter as it grows. */
struct filter {
    unsigned short length;
    struct sock_filter code[1024];
};

COPY_ONLY static void
add(struct filter *filter, unsigned code, unsigned value, unsigned if_so, unsigned if_not)
{
    filter->code[filter->length++] = (struct sock_filter)BPF_JUMP(
        (unsigned short)code, value, (unsigned char)if_so, (unsigned char)if_not);
}

/* The number of the call is looked at by what follows. */
COPY_ONLY static void
add_load(struct filter *filter, size_t offset)
{
    add(filter, BPF_LD | BPF_W | BPF_ABS, (unsigned)offset, 0, 0);
}

COPY_ONLY static void
add_return(struct filter *filter, unsigned verdict)
{
    add(filter, BPF_RET | BPF_K, verdict, 0, 0);
}

COPY_ONLY static void
add_condition(struct filter *filter, const struct condition *condition)
{
    const unsigned argument = condition->argument * sizeof(uint64_t);
    const bool is = condition->test == IS;
    add(filter, BPF_JMP | BPF_JEQ | BPF_K, condition->call, 0, 4);
    add_load(filter, offsetof(struct seccomp_data, args) + argument);
    add(filter, BPF_JMP | (is ? BPF_JEQ : BPF_JSET) | BPF_K, condition->value, is ? 0 : 1,
        is ? 1 : 0);
    add_return(filter, SECCOMP_RET_ALLOW);
    add_load(filter, offsetof(struct seccomp_data, nr));
}

COPY_ONLY static void
add_conditions(struct filter *filter)
{
    for (size_t i = 0; i < Py_ARRAY_LENGTH(conditions); i++) {
        add_condition(filter, &conditions[i]);
    }
    /* A thread, but no process. clone3() has its flags in memory: the C library then tries this. */
    add(filter, BPF_JMP | BPF_JEQ | BPF_K, SYS_clone, 0, 4);
    add_load(filter, offsetof(struct seccomp_data, args));
    add(filter, BPF_JMP | BPF_JSET | BPF_K, CLONE_THREAD, 0, 1);
    add_return(filter, SECCOMP_RET_ALLOW);
    add_load(filter, offsetof(struct seccomp_data, nr));
    add(filter, BPF_JMP | BPF_JEQ | BPF_K, 435 /* clone3 */, 0, 1);
    add_return(filter, SECCOMP_RET_ERRNO | ENOSYS);
}

/* Returns false where the kernel has no such filters, or lets nobody have one. */
COPY_ONLY static bool
filter_calls(void)
{
    struct filter filter = {.length = 0};
    struct sock_fprog program = {.filter = filter.code};
    add_load(&filter, offsetof(struct seccomp_data, arch));
    add(&filter, BPF_JMP | BPF_JEQ | BPF_K, AUDIT_ARCH_X86_64, 1, 0);
    add_return(&filter, SECCOMP_RET_ERRNO | EPERM);
    add_load(&filter, offsetof(struct seccomp_data, nr));
    add_conditions(&filter);
    for (size_t i = 0; i < Py_ARRAY_LENGTH(allowed); i++) {
        add(&filter, BPF_JMP | BPF_JEQ | BPF_K, allowed[i], 0, 1);
        add_return(&filter, SECCOMP_RET_ALLOW);
    }
    add_return(&filter, SECCOMP_RET_ERRNO | EPERM);
    program.len = filter.length;
    return prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0 &&
           prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) == 0;
}

/* ---- What it is to others ------------------------------------------------------------ */

/* Its own name in ps, in place of the process's command line: where that begins and ends is in
 * fields 48 and 49. */
COPY_ONLY static void
rename_copy(pid_t original)
{
    enum { BEFORE_ARGUMENTS = 46 };
    char text[2048] = "";
    const int fd = open("/proc/self/stat", O_RDONLY | O_CLOEXEC);
    const char *field = read(fd, text, sizeof(text) - 1) > 0 ? strrchr(text, ')') : NULL;
    (void)close(fd);
    for (int i = 0; field != NULL && i < BEFORE_ARGUMENTS; i++) {
        field = strchr(field + 1, ' ');
    }
    if (field != NULL) {
        char *behind = NULL;
        char *begin = read_address(field, &behind, 10);
        const char *end = read_address(behind, &behind, 10);
        if (begin != NULL && end > begin) {
            memset(begin, 0, (size_t)(end - begin));
            (void)snprintf(begin, (size_t)(end - begin), "manhole: frozen copy of %ld",
                           (long)original);
        }
    }
    (void)prctl(PR_SET_NAME, "frozen copy");
}

/* It is the first to go when memory is short. */
COPY_ONLY static void
offer_to_oom_killer(void)
{
    const int fd = open("/proc/self/oom_score_adj", O_WRONLY | O_CLOEXEC);
    (void)!write(fd, "1000", 4);
    (void)close(fd);
}

/* No handler of the application's runs here, and Ctrl-C at its terminal is not for the copy; nor is
 * what is typed there: to read it is an error. Not a session of its own: the first terminal that it
 * opened, a serial line, say, would be that session's, and be hung up at its end for all. */
COPY_ONLY static void
leave_signals(void)
{
    struct sigaction action = {.sa_handler = SIG_DFL};
    sigset_t none;
    for (int signum = 1; signum < NSIG; signum++) {
        (void)sigaction(signum, &action, NULL);
    }
    action.sa_handler = SIG_IGN;
    (void)sigaction(SIGPIPE, &action, NULL);
    (void)sigaction(SIGTTIN, &action, NULL);
    (void)sigemptyset(&none);
    (void)pthread_sigmask(SIG_SETMASK, &none, NULL);
    (void)setpgid(0, 0);
}

/* First of all in a copy. Returns whether it can hurt nobody. */
COPY_ONLY static bool
fence_in(pid_t original, int client_fd, const void *own_board)
{
    const struct rlimit no_core = {0};
    const struct rlimit cpu = {COPY_CPU_S, COPY_CPU_S};
    const struct sched_param ordinary = {0};
    if (prctl(PR_SET_PDEATHSIG, SIGKILL) < 0 || syscall(SYS_getppid) != original) {
        return false;
    }
    (void)setrlimit(RLIMIT_CORE, &no_core);
    (void)setrlimit(RLIMIT_CPU, &cpu);
    leave_signals();
    /* Beside one that computes in real time nothing of the process would run. */
    (void)sched_setscheduler(0, SCHED_OTHER, &ordinary);
    (void)!nice(COPY_NICE);
    if (!replace_descriptors(client_fd)) { /* then there are some for the rest */
        return false;
    }
    offer_to_oom_killer();
    rename_copy(original);
    /* Last what hides /proc/self from who is not root. */
    return unshare_memory(own_board) && prctl(PR_SET_DUMPABLE, 0) == 0 && filter_calls();
}

#endif /* CAN_FREEZE */
#endif /* MANHOLE_FROZEN_FENCE_C */
