/* Outside: the stacks of a process that has no manhole, and gets none.
 *
 *   1  Any thread is held, wherever it is, and makes a raw clone() for us: a copy of the process
 *      with this one thread, in which nothing moves. It has no lock that we need, for nothing but
 *      the kernel is called. Then it is put back: it stood still for as long as clone() takes.
 *   2  The copy, which ptrace holds from its birth, calls Py_FatalError(). That is in every
 *      CPython, takes no GIL, writes the stacks of all threads to standard error, and aborts. Its
 *      standard error is a memory file that we read, and a filter of the kernel's lets it do
 *      nothing else: above all it may send no signal, for musl's abort() would send it to the
 *      process.
 *   3  The copy is killed, and the held thread's process waits for it, so that no zombie is left:
 *      it was born without a signal to its parent, which so does not hear of it.
 *
 * A copy may have been made in the middle of a change that faulthandler trips over: a copy has
 * crashed then, and another one is made. The copy dies with us. A client that is killed between 1
 * and 3 leaves a zombie, which goes with the process.
 */
#ifndef MANHOLE_CLI_ATTACH_OUTSIDE_C
#define MANHOLE_CLI_ATTACH_OUTSIDE_C

#include "../stacks.c"
#include "carrier.c"
#include "inject.c"

#if HAS_ATTACH

#  include <linux/filter.h>
#  include <linux/seccomp.h>

enum {
    COPY_TRIES = 12, /* copies, until one has told all */
    COPY_PATIENCE_MS = 5000,
    COPY_MEMORY = 1024 * 1024,
    WORDS_AT = 0, /* in that memory */
    PROGRAM_AT = 64,
    FILTER_AT = 128,
};

/* A copy, held, as it was born. */
struct copy {
    struct lent lent;
    pid_t inner; /* its number in the process's own pid namespace */
};

/* ---- Making it --------------------------------------------------------------------- */

/* Has the held thread make the copy. Should we die before we hold that, it returns to _exit() at
 * once. Returns its pid, or a negative errno. */
static long
clone_thread(struct lent *lent, struct copy *copy)
{
    const uint64_t leave_at = find_libc(lent->image, "_exit");
    enum { END_OF_SYSCALL = 2 }; /* such a number is told at other stops */
    unsigned long born = 0;

    (void)ptrace(PTRACE_SETOPTIONS, lent->tid, NULL,
                 (unsigned long)(PTRACE_O_TRACESYSGOOD | PTRACE_O_TRACECLONE));
    if (!poke(lent->tid, lent->scratch, &leave_at, sizeof(leave_at))) {
        return -EFAULT;
    }
    long result = call_kernel(lent, SYS_clone, ARGUMENTS(0, lent->scratch));
    bool is_born = result != LOST &&
                   ptrace(PTRACE_GETEVENTMSG, lent->tid, NULL, &born) == 0 &&
                   born > END_OF_SYSCALL;
    if (is_born) {
        struct cpu cpu = lent->was;
        bool is_back = run_to_syscall(lent->tid) && read_cpu(lent->tid, &cpu);
        copy->inner = is_back ? (pid_t)call_result(&cpu) : 0;
        result = (long)born;
    }
    return result;
}

/* Makes a copy and holds it; 0 or an errno. */
static int
make_copy(struct image *image, struct copy *copy)
{
    static struct lent lent;

    if (!hold_any_thread(image, &lent)) {
        return EBUSY;
    }
    long pid = clone_thread(&lent, copy);
    (void)run_to_rest(lent.tid);
    restore(&lent);
    if (pid == LOST || is_error(pid)) {
        return pid == LOST ? ESRCH : (int)-pid;
    }
    copy->lent = lent;
    copy->lent.tid = (pid_t)pid;
    (void)await_status(copy->lent.tid, REMOTE_PATIENCE_MS);
    (void)ptrace(PTRACE_SETOPTIONS, copy->lent.tid, NULL,
                 (unsigned long)(PTRACE_O_TRACESYSGOOD | PTRACE_O_EXITKILL));
    return 0;
}

/* Ends it, and has a thread of the process take its exit status: by its number, for without one
 * wait4() would take that of a child of the application's. */
static void
end_copy(struct image *image, const struct copy *copy)
{
    static struct lent lent;
    int status = 0;
    long buried = 0;

    (void)kill(copy->lent.tid, SIGKILL);
    while (waitpid(copy->lent.tid, &status, __WALL) == copy->lent.tid &&
           WIFSTOPPED(status)) {
    }
    for (int i = 0; i < HOLD_TRIES && buried == 0 && copy->inner > 0; i++) {
        if (hold_any_thread(image, &lent)) {
            buried = call_kernel(&lent, SYS_wait4,
                                 ARGUMENTS((uint64_t)copy->inner, 0, __WALL | WNOHANG));
            (void)run_to_rest(lent.tid);
            restore(&lent);
        }
        doze();
    }
}

/* ---- Having it write --------------------------------------------------------------- */

/* One instruction of a filter for system calls. */
static struct sock_filter
instruction(unsigned code, unsigned value, size_t if_so, size_t if_not)
{
    return (struct sock_filter){
        .code = (uint16_t)code, .jt = (uint8_t)if_so, .jf = (uint8_t)if_not, .k = value};
}

/* Confines the copy: it may write to standard error and do what needs nobody else. What would send
 * a signal or end it stops it, with SIGSYS: that is where it is done. All else fails with EPERM. */
static bool
confine_copy(const struct lent *lent, uint64_t memory)
{
    static const unsigned allowed[] = {
        SYS_rt_sigprocmask, SYS_rt_sigaction, SYS_sigaltstack,   SYS_getpid, SYS_gettid,
        SYS_futex,          SYS_brk,          SYS_mmap,          SYS_munmap, SYS_mprotect,
        SYS_madvise,        SYS_sched_yield,  SYS_clock_gettime,
    };
    static const unsigned ends[] = {
        SYS_tgkill, SYS_tkill,     SYS_kill, SYS_rt_sigqueueinfo, SYS_rt_tgsigqueueinfo,
        SYS_exit,   SYS_exit_group};
    enum {
        ALLOWED = sizeof(allowed) / sizeof(allowed[0]),
        ENDS = sizeof(ends) / sizeof(ends[0]),
        LAST = ALLOWED + ENDS + 7,
    };
    const unsigned load = BPF_LD | BPF_W | BPF_ABS;
    const unsigned is_equal = BPF_JMP | BPF_JEQ | BPF_K;
    const unsigned end = BPF_RET | BPF_K;
    struct sock_filter filter[LAST];
    struct {
        uint64_t length;
        uint64_t filter;
    } program_of_filter = {LAST, memory + FILTER_AT};
    size_t at = 0;

    filter[at++] = instruction(load, offsetof(struct seccomp_data, nr), 0, 0);
    for (size_t i = 0; i < ALLOWED; i++, at++) {
        filter[at] = instruction(is_equal, allowed[i], LAST - 2 - at, 0);
    }
    for (size_t i = 0; i < ENDS; i++, at++) {
        filter[at] = instruction(is_equal, ends[i], LAST - 3 - at, 0);
    }
    filter[at++] = instruction(is_equal, SYS_write, 0, 2);
    filter[at++] = instruction(load, offsetof(struct seccomp_data, args[0]), 0, 0);
    filter[at++] = instruction(is_equal, STDERR_FILENO, 2, 0);
    filter[at++] = instruction(end, SECCOMP_RET_ERRNO | EPERM, 0, 0);
    filter[at++] = instruction(end, SECCOMP_RET_TRAP, 0, 0);
    filter[at++] = instruction(end, SECCOMP_RET_ALLOW, 0, 0);
    return poke(lent->tid, memory + PROGRAM_AT, &program_of_filter,
                sizeof(program_of_filter)) &&
           poke(lent->tid, memory + FILTER_AT, filter, sizeof(filter)) &&
           call_kernel(lent, SYS_prctl, ARGUMENTS(PR_SET_NO_NEW_PRIVS, 1)) == 0 &&
           call_kernel(
               lent, SYS_prctl,
               ARGUMENTS(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, memory + PROGRAM_AT)) == 0;
}

/* Puts a memory file in the place of the copy's standard error. Returns our own descriptor of it,
 * or -1. Descriptor 0 is free for it then, where the process has no other left. */
static int
redirect_copy(const struct lent *lent, uint64_t memory)
{
    static const char words[] = "stacks";

    if (!poke(lent->tid, memory + WORDS_AT, words, sizeof(words))) {
        return -1;
    }
    (void)call_kernel(lent, SYS_close, ARGUMENTS(STDIN_FILENO));
    long fd =
        call_kernel(lent, SYS_memfd_create, ARGUMENTS(memory + WORDS_AT, MFD_CLOEXEC));
    if (fd == LOST || is_error(fd) ||
        call_kernel(lent, SYS_dup3, ARGUMENTS((uint64_t)fd, STDERR_FILENO, 0)) !=
            STDERR_FILENO) {
        return -1;
    }
    return open(proc_path(lent->tid, print("fd/%ld", fd).text).text,
                O_RDONLY | O_CLOEXEC);
}

/* Has the copy call Py_FatalError(), and returns whether it came to its end. It comes to rest
 * first, for what it was in the middle of is not to begin anew. */
static bool
run_fatal_error(const struct lent *lent, uint64_t memory)
{
    const uint64_t function = find_python(lent->image, "Py_FatalError");
    const uint64_t nowhere = 0;
    const uint64_t no_signals = 0;
    struct cpu cpu = lent->was;
    int status = STOPPED_AS_ASKED << 16;

    if (!run_to_rest(lent->tid) ||
        !poke(lent->tid, memory + COPY_MEMORY - 16 - 8, &nowhere, sizeof(nowhere))) {
        return false;
    }
    prepare_call(&cpu, function, memory + COPY_MEMORY - 16, memory + WORDS_AT, 0, 0);
    if (!write_regs(lent->tid, &cpu)) {
        return false;
    }
    (void)ptrace(PTRACE_SETSIGMASK, lent->tid, sizeof(no_signals), &no_signals);
    while (status > 0 && status >> 16 == STOPPED_AS_ASKED) {
        (void)ptrace(PTRACE_CONT, lent->tid, NULL, NULL);
        status = await_status(lent->tid, COPY_PATIENCE_MS);
    }
    return status > 0 && WSTOPSIG(status) == SIGSYS;
}

/* What is asked of a process, and what came of it. */
struct outside_look {
    struct image image;
    struct buffer answer;
    int result; /* 0: it is the answer; an errno: there can be no copy; -1: the copies died */
};

/* Has one copy tell. Returns that result; -1: another one may tell more. */
static int
ask_copy(struct image *image, struct buffer *answer)
{
    static struct copy copy;
    int error = make_copy(image, &copy);

    if (error != 0) {
        return error;
    }
    long memory = call_kernel(&copy.lent, SYS_mmap,
                              ARGUMENTS(0, COPY_MEMORY, PROT_READ | PROT_WRITE,
                                        MAP_PRIVATE | MAP_ANONYMOUS, (uint64_t)-1));
    bool is_whole = false;
    if (memory != LOST && !is_error(memory)) {
        OWNED_FD file = redirect_copy(&copy.lent, (uint64_t)memory);
        is_whole = file >= 0 && confine_copy(&copy.lent, (uint64_t)memory) &&
                   run_fatal_error(&copy.lent, (uint64_t)memory);
        is_whole = is_whole && lseek(file, 0, SEEK_SET) == 0 && read_all(file, answer) &&
                   strstr(text_of(answer), "most recent call first") != NULL;
    }
    end_copy(image, &copy);
    return is_whole ? 0 : -1;
}

static void *
ask_copies(void *argument)
{
    struct outside_look *look = argument;

    for (int i = 0; i < COPY_TRIES && look->result < 0; i++) {
        empty(&look->answer);
        look->result = ask_copy(&look->image, &look->answer);
    }
    return NULL;
}

/* ---- Showing it -------------------------------------------------------------------- */

/* A frame, as faulthandler writes it: "  File "PATH", line 7 in FUNCTION", what is not plain
 * escaped with backslashes. */
struct shown_frame {
    const char *path;
    int path_length;
    long line;
    const char *function;
    int function_length;
};

/* False for "  <no Python frame>", and for the "  ..." behind the hundredth one. */
static bool
parse_frame(const char *line, struct shown_frame *frame)
{
    static const char start[] = "  File \"";
    const char *end = strchr(line, '\n');

    if (strncmp(line, start, strlen(start)) != 0) {
        return false;
    }
    const char *path = line + strlen(start);
    const char *number = memmem(path, (size_t)(end - path), "\", line ", 8);
    if (number == NULL) {
        return false;
    }
    char *behind = NULL;
    frame->path = path;
    frame->path_length = (int)(number - path);
    frame->line = strtol(number + 8, &behind, 10);
    behind += strncmp(behind, " in ", 4) == 0 ? 4 : 0;
    frame->function = behind;
    frame->function_length = (int)(end - behind);
    return true;
}

/* A line of the source, without what indents it; as the process sees the file. What is none, a
 * pipe say, is not waited for. */
static void
append_source(struct buffer *out, pid_t pid, const struct shown_frame *frame)
{
    OWNED_BUFFER source = {.data = NULL};
    struct text start = frame->path[0] == '/' ? root_of(pid) : proc_path(pid, "cwd/");
    struct text path = print("%s%.*s", start.text, frame->path_length, frame->path);
    struct stat status;
    size_t at = 0;
    size_t length = 0;

    if (stat(path.text, &status) == 0 && S_ISREG(status.st_mode)) {
        (void)read_file(path.text, &source);
    }
    for (long i = 1; i < frame->line && (length = next_line(&source, at, true)) > 0;
         i++) {
        at += length;
    }
    length = next_line(&source, at, true);
    if (length > 0) {
        const char *line = source.data + at;
        size_t indent = strspn(line, " \t");
        size_t end = strcspn(line, "\r\n");
        append(out, line + indent, end > indent ? end - indent : 0);
    }
}

/* A JSON string of what faulthandler has written, in which all is plain but these two. */
static void
append_json_word(struct buffer *out, const char *text, size_t length)
{
    append_text(out, "\"");
    for (size_t i = 0; i < length; i++) {
        unsigned char c = (unsigned char)text[i];
        if (c < ' ' || c >= 0x7f) {
            append_format(out, "\\u%04x", c < ' ' ? c : 0xfffdU);
            continue;
        }
        append(out, "\\", c == '"' || c == '\\');
        append(out, &text[i], 1);
    }
    append_text(out, "\"");
}

static void
append_frame(struct buffer *out, pid_t pid, const char *line, bool is_json)
{
    struct shown_frame frame;
    OWNED_BUFFER source = {.data = NULL};

    if (!parse_frame(line, &frame)) {
        append_format(out, "%.*s\n", is_json ? 0 : (int)strcspn(line, "\n"), line);
        return;
    }
    append_source(&source, pid, &frame);
    if (!is_json) {
        append_format(out, "File: \"%.*s\", line %ld, in %.*s\n", frame.path_length,
                      frame.path, frame.line, frame.function_length, frame.function);
        append_format(out, source.length > 0 ? "  %s\n" : "%s", text_of(&source));
        return;
    }
    append_text(out, ends_with(out, "[") ? "\n{\"file\": " : ",\n{\"file\": ");
    append_json_word(out, frame.path, (size_t)frame.path_length);
    append_format(out, ", \"line\": %ld, \"function\": ", frame.line);
    append_json_word(out, frame.function, (size_t)frame.function_length);
    append_text(out, ", \"qualname\": null, \"source\": ");
    if (source.length > 0) {
        append_json_word(out, source.data, source.length);
    }
    else {
        append_text(out, "null");
    }
    append_text(out, "}");
}

/* The thread that begins with this line, "Thread 0x7f (most recent call first):", and its frames up
 * to an empty line, in our order: the outermost first. */
static void
append_outside_thread(struct buffer *out, pid_t pid, const char *line, bool is_json)
{
    const char *frames = strchr(line, '\n') + 1;
    const char *end = strstr(frames, "\n\n");
    unsigned long ident = strtoul(strstr(line, "0x"), NULL, 16);

    end = end != NULL ? end : frames + strlen(frames) - 1; /* at its last newline */
    if (is_json) {
        append_format(out,
                      "{\"id\": %lu, \"native_id\": null, \"state\": null, \"waits_in\": "
                      "null, \"holds_gil\": null, "
                      "\"daemon\": null, \"name\": null, \"frames\": [",
                      ident);
    }
    else {
        append_format(out, "\n######### ProcessID=%d, ThreadID=%lu #########\n", (int)pid,
                      ident);
    }
    for (const char *at = end; at > frames;) {
        const char *last = memrchr(frames, '\n', (size_t)(at - frames));
        const char *start = last != NULL ? last + 1 : frames;
        append_frame(out, pid, start, is_json);
        at = start - 1;
    }
    append_text(out, is_json ? "]}" : "");
}

/* The next line that begins a thread, from the beginning of a line on; NULL: there is none. */
static const char *
next_outside_thread(const char *line)
{
    while (strncmp(line, "Thread 0x", 9) != 0 &&
           strncmp(line, "Current thread 0x", 17) != 0) {
        const char *end = strchr(line, '\n');
        if (end == NULL) {
            return NULL;
        }
        line = end + 1;
    }
    return line;
}

/* All threads, as the module's own dump has them. */
static void
format_stacks(struct buffer *out, pid_t pid, const struct buffer *answer, bool is_json)
{
    const char *at = next_outside_thread(text_of(answer));
    bool is_first = true;

    if (is_json) {
        append_format(out,
                      "{\"pid\": %d, \"python\": null, \"version\": 1, \"source\": "
                      "\"frozen copy\", "
                      "\"threads\": [",
                      (int)pid);
    }
    for (; at != NULL; at = next_outside_thread(strchr(at, '\n') + 1)) {
        append_text(out, !is_json ? "" : is_first ? "\n" : ",\n");
        append_outside_thread(out, pid, at, is_json);
        is_first = false;
    }
    append_text(out, is_json ? "]}\n" : END_OF_DUMP "\n\n");
}

/* Prints the stacks of a process that has no manhole. */
static enum exit_status
show_stacks_from_outside(const struct request *request, pid_t pid)
{
    static struct outside_look look = {.result = -1};
    OWNED_BUFFER shown = {.data = NULL};
    bool is_json = is_given(request, OPTION_JSON) || is_given(request, OPTION_BRIEF);

    look_at_process(&look.image, request, pid);
    trace(ask_copies, &look);
    if (look.result != 0) {
        errno = look.result;
        fail(STATUS_NO_CONNECTION,
             look.result > 0
                 ? "cannot make a copy of process %d: %m"
                 : "the copies of process %d died before they had told their stacks",
             (int)pid);
    }
    format_stacks(&shown, pid, &look.answer, is_json);
    show_lines(STDOUT_FILENO, NULL, &shown, true);
    return STATUS_OK;
}

#else

static _Noreturn enum exit_status
show_stacks_from_outside(const struct request *request, pid_t pid)
{
    attach(request, pid);
}

#endif /* HAS_ATTACH */

#endif /* MANHOLE_CLI_ATTACH_OUTSIDE_C */
