/* support.c - the fixtures of support.h. One thread; everything is read by poll().
 *
 * The test program is the "subreaper" of all that it starts: a process whose parent ends
 * becomes its child, so none can slip away unseen. Every process that it starts leads a
 * session of its own, and gets SIGTERM from the kernel when the test program dies.
 */
#define SUPPORT_C
#include "support.h"
#include "config.h" /* made by the Makefile: TEST_PYTHON and what belongs to it */

#include <ctype.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <grp.h>
#include <limits.h>
#include <netinet/in.h>
#include <poll.h>
#include <regex.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum {
    SETTLE_MS = 500,     /* for a process on its way into a system call */
    TICK_MS = 5,         /* between two looks at something that poll() cannot see */
    SCAN_MS = 50,        /* between two looks for new descendants */
    GRACE_MS = 10000,    /* from SIGTERM to SIGKILL */
    LINGER_MS = 5000,    /* for what the processes of a test leave to go away by itself */
    READ_SIZE = 1 << 16, /* bytes at a time */
    SHOWN_SIZE = 20000,  /* bytes shown of each text after a failure */
    MAX_PROCESSES = 4096,
};

struct kept {
    struct kept *next;
    void *memory; /* owned */
};

struct expected {
    struct expected *next; /* both kept by the test */
    const char *path;
};

/* The running test. All of it is emptied by its end. */
static struct {
    const char *name;
    const char *file; /* the test's line that support.c works for */
    int line;
    bool passed;
    bool skipped;
    char directory[32];
    struct process *processes;
    struct client *clients;
    struct kept *kept;
    pid_t seen[MAX_PROCESSES]; /* every process and descendant noticed */
    size_t seen_count;
    long scanned_ms;
    struct expected *expected; /* sockets that the test knows to stay */
    size_t fd_count;           /* of the test program, when the test began */
    struct timespec began;     /* by the clock of the file system */
} current;

/* ======================================================================================
 * Failures, memory, clock.
 * ======================================================================================
 */

void
called_from(const char *file, int line)
{
    current.file = file;
    current.line = line;
}

static void fail_test(const char *format, ...)
    __attribute__((format(printf, 1, 2), noreturn));

static void
fail_test(const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    vprintf(format, arguments); /* cmocka's own functions cut at 1024 bytes */
    va_end(arguments);
    puts("");
    _fail(current.file, current.line);
    abort(); /* _fail() does not return */
}

void
skip_test(const char *format, ...)
{
    va_list arguments;
    print_message("skipped: %s: ", current.name);
    va_start(arguments, format);
    vprint_message(format, arguments);
    va_end(arguments);
    print_message("\n");
    current.skipped = true;
    _skip(__FILE__, __LINE__);
    abort(); /* _skip() does not return */
}

/* Hands memory to the running test. */
static void *
keep(void *memory)
{
    struct kept *kept = malloc(sizeof(*kept));
    if (memory == NULL || kept == NULL) {
        fail_test("out of memory");
    }
    *kept = (struct kept){.next = current.kept, .memory = memory};
    current.kept = kept;
    return memory;
}

static void
free_kept(void)
{
    while (current.kept != NULL) {
        struct kept *kept = current.kept;
        current.kept = kept->next;
        free(kept->memory);
        free(kept);
    }
}

static const char *
keep_bytes(const char *bytes, size_t count)
{
    char *copy = keep(calloc(count + 1, 1));
    memcpy(copy, bytes, count);
    return copy;
}

const char *
format_text(const char *format, ...)
{
    char *text = NULL;
    va_list arguments;
    va_start(arguments, format);
    if (vasprintf(&text, format, arguments) < 0) {
        text = NULL;
    }
    va_end(arguments);
    return keep(text);
}

long
now_ms(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

/* Milliseconds, stretched where everything is slow. */
static long
stretched(long ms)
{
    const char *slowness = getenv("MANHOLE_TEST_SLOWNESS");
    long factor = slowness != NULL ? strtol(slowness, NULL, 10) : 1;
    return factor > 1 ? ms * factor : ms;
}

long
deadline_ms(void)
{
    return stretched(30000);
}

/* ======================================================================================
 * Texts that grow.
 * ======================================================================================
 */

static void
append(struct text *text, const char *bytes, size_t count)
{
    if (text->length + count + 1 > text->size) {
        text->size = 2 * text->size + count + 1;
        text->data = realloc(text->data, text->size);
        if (text->data == NULL) {
            fail_test("out of memory");
        }
    }
    memcpy(text->data + text->length, bytes, count);
    text->length += count;
    text->data[text->length] = '\0';
}

/* Whether the text holds what is waited for; then the next wait begins behind it. */
static const char *
take_until(struct text *text, const char *wanted)
{
    const char *start = text->data + text->seen;
    const char *match = memmem(start, text->length - text->seen, wanted, strlen(wanted));
    if (match == NULL) {
        return NULL;
    }
    const char *end = match + strlen(wanted);
    text->seen = (size_t)(end - text->data);
    return keep_bytes(start, (size_t)(end - start));
}

static const char *
take_rest(struct text *text)
{
    const char *rest = keep_bytes(text->data + text->seen, text->length - text->seen);
    text->seen = text->length;
    return rest;
}

/* Reads what there is. Returns false at the end; a terminal ends with EIO, a socket may
 * be reset. */
static bool
read_available(int fd, struct text *text)
{
    char bytes[READ_SIZE];
    for (;;) {
        ssize_t count = read(fd, bytes, sizeof(bytes));
        if (count > 0) {
            append(text, bytes, (size_t)count);
        }
        else if (count == 0) {
            return false;
        }
        else if (errno != EINTR) {
            return errno == EAGAIN;
        }
    }
}

static void
show_text(const char *title, const struct text *text)
{
    if (text->length == 0) {
        return;
    }
    size_t hidden = text->length > SHOWN_SIZE ? text->length - SHOWN_SIZE : 0;
    print_message("--- %s\n", title);
    if (hidden > 0) {
        print_message("[%zu bytes before this]\n", hidden);
    }
    (void)fwrite(text->data + hidden, 1, text->length - hidden, stdout);
    print_message("%s", text->data[text->length - 1] == '\n' ? "" : "[no newline]\n");
}

/* ======================================================================================
 * Files.
 * ======================================================================================
 */

const char *
test_directory(void)
{
    return current.directory;
}

const char *
test_path(const char *name)
{
    return format_text("%s/%s", current.directory, name);
}

const char *
write_file(const char *name, const char *text)
{
    const char *path = test_path(name);
    FILE *file = fopen(path, "we");
    if (file == NULL || fputs(text, file) < 0 || fclose(file) != 0) {
        fail_test("cannot write %s: %s", path, strerror(errno));
    }
    return path;
}

/* The text of a file, or NULL with errno. Files of /proc have no size, so it is read to
 * the end. */
static const char *
try_read_file(const char *path)
{
    struct text text = {0};
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) {
        return NULL;
    }
    append(&text, "", 0);
    read_available(fd, &text);
    close(fd);
    return keep(text.data);
}

const char *
read_file(const char *path)
{
    const char *text = try_read_file(path);
    if (text == NULL) {
        fail_test("cannot read %s: %s", path, strerror(errno));
    }
    return text;
}

/* The folder of the running test program. */
static const char *
build_directory(void)
{
    static char directory[PATH_MAX];
    if (directory[0] == '\0') {
        ssize_t length = readlink("/proc/self/exe", directory, sizeof(directory) - 1);
        char *slash = length > 0 ? strrchr(directory, '/') : NULL;
        if (slash == NULL) {
            fail_test("cannot read /proc/self/exe");
        }
        *slash = '\0';
    }
    return directory;
}

const char *
build_path(const char *name)
{
    return format_text("%s/%s", build_directory(), name);
}

const char *
source_path(const char *name)
{
    return format_text("%s/%s", TEST_SOURCES, name);
}

/* A socket that some process before this test has left behind. Its pid may be that of a process of
 * the test by now. */
static bool
is_stale(const char *path, const struct stat *status)
{
    static const char prefix[] = "/tmp/manhole-";
    return strncmp(path, prefix, strlen(prefix)) == 0 && S_ISSOCK(status->st_mode) &&
           (status->st_ctim.tv_sec < current.began.tv_sec ||
            (status->st_ctim.tv_sec == current.began.tv_sec &&
             status->st_ctim.tv_nsec < current.began.tv_nsec));
}

bool
path_exists(const char *path)
{
    struct stat status;
    return lstat(path, &status) == 0 && !is_stale(path, &status);
}

static int
remove_entry(const char *path, const struct stat *status, int kind, struct FTW *place)
{
    (void)status;
    (void)kind;
    (void)place;
    (void)remove(path);
    return 0;
}

static void
remove_tree(const char *path)
{
    (void)nftw(path, remove_entry, 16, FTW_DEPTH | FTW_PHYS);
}

/* ======================================================================================
 * What the kernel says of processes.
 * ======================================================================================
 */

static int
count_entries(const char *path)
{
    int count = 0;
    struct dirent *entry;
    DIR *directory = opendir(path);
    if (directory == NULL) {
        fail_test("cannot list %s: %s", path, strerror(errno));
    }
    while ((entry = readdir(directory)) != NULL) {
        count += entry->d_name[0] != '.';
    }
    closedir(directory);
    return count;
}

int
count_fds(pid_t pid)
{
    return count_entries(format_text("/proc/%d/fd", (int)pid));
}

int
count_threads(pid_t pid)
{
    return count_entries(format_text("/proc/%d/task", (int)pid));
}

struct usage {
    pid_t pid;
    int fds;
    int threads;
};

static bool
is_within(void *argument)
{
    const struct usage *most = argument;
    return count_fds(most->pid) <= most->fds && count_threads(most->pid) <= most->threads;
}

void
wait_for_usage(pid_t pid, int fds, int threads)
{
    struct usage most = {pid, fds, threads};
    wait_until(is_within, &most, "it has no more descriptors and threads than before",
               DEADLINE);
}

long
rss_kib(pid_t pid)
{
    const char *status = read_file(format_text("/proc/%d/status", (int)pid));
    const char *line = strstr(status, "\nVmRSS:");
    if (line == NULL) {
        fail_test("process %d has no VmRSS", (int)pid);
    }
    return strtol(line + strlen("\nVmRSS:"), NULL, 10);
}

struct relation {
    pid_t pid;
    pid_t parent;
    char state; /* as in proc(5) */
};

/* From a line like "42 (a name) S 1 ...", where the name may hold anything. */
static bool
look_up_relation(const char *pid, struct relation *relation)
{
    char path[64];
    char line[512];
    (void)snprintf(path, sizeof(path), "/proc/%s/stat", pid);
    FILE *file = isdigit((unsigned char)pid[0]) ? fopen(path, "re") : NULL;
    if (file == NULL) {
        return false;
    }
    const char *fields = fgets(line, sizeof(line), file) ? strrchr(line, ')') : NULL;
    (void)fclose(file);
    if (fields == NULL || strlen(fields) < strlen(") S 1")) {
        return false;
    }
    relation->pid = (pid_t)strtol(pid, NULL, 10);
    relation->state = fields[2];
    relation->parent = (pid_t)strtol(fields + 4, NULL, 10);
    return true;
}

/* Every process of the machine, in the order of /proc. */
static size_t
list_relations(struct relation relations[], size_t size)
{
    size_t count = 0;
    struct dirent *entry;
    DIR *processes = opendir("/proc");
    while (processes != NULL && count < size && (entry = readdir(processes)) != NULL) {
        count += look_up_relation(entry->d_name, &relations[count]);
    }
    if (processes != NULL) {
        closedir(processes);
    }
    return count;
}

size_t
list_children(pid_t pid, pid_t children[], size_t size)
{
    static struct relation relations[MAX_PROCESSES];
    size_t count = 0;
    size_t processes = list_relations(relations, MAX_PROCESSES);
    for (size_t i = 0; i < processes && count < size; i++) {
        if (relations[i].parent == pid && relations[i].state != 'Z') {
            children[count++] = relations[i].pid;
        }
    }
    return count;
}

/* ======================================================================================
 * The processes of a test: reading, reaping, remembering.
 * ======================================================================================
 */

static bool
is_remembered(pid_t pid)
{
    for (size_t i = 0; i < current.seen_count; i++) {
        if (current.seen[i] == pid) {
            return true;
        }
    }
    return false;
}

static void
remember(pid_t pid)
{
    if (!is_remembered(pid) && current.seen_count < MAX_PROCESSES) {
        current.seen[current.seen_count++] = pid;
    }
}

/* Again and again, for a child's number may be less than its parent's. */
static void
remember_descendants(void)
{
    static struct relation relations[MAX_PROCESSES];
    size_t count = list_relations(relations, MAX_PROCESSES);
    size_t known;
    do {
        known = current.seen_count;
        for (size_t i = 0; i < count; i++) {
            if (relations[i].parent == getpid() || is_remembered(relations[i].parent)) {
                remember(relations[i].pid);
            }
        }
    } while (current.seen_count > known);
}

/* Those that came and went between two looks are known from their log lines. */
static void
remember_pids_in_log(const struct text *log)
{
    static const char mark[] = "Manhole[";
    const char *line = log->data;
    while ((line = strstr(line, mark)) != NULL) {
        line += strlen(mark);
        pid_t pid = (pid_t)strtol(line, NULL, 10);
        if (pid > 1) {
            remember(pid);
        }
    }
}

static struct process *
find_process(pid_t pid)
{
    struct process *process = current.processes;
    while (process != NULL && process->pid != pid) {
        process = process->next;
    }
    return process;
}

/* Takes the status of every child that ended, orphans of the processes included. */
static void
reap(void)
{
    pid_t pid;
    int status;
    while ((pid = waitpid(-1, &status, WNOHANG)) > 0) {
        struct process *process = find_process(pid);
        remember(pid);
        if (process != NULL) {
            process->exited = true;
            process->status =
                WIFSIGNALED(status) ? -WTERMSIG(status) : WEXITSTATUS(status);
            process->killed |= process->status == -SIGKILL;
        }
    }
}

/* Waits for something to read, reads it, reaps. client, or NULL: is read as well. */
static void
pump(struct client *client, long timeout_ms)
{
    struct pollfd polled[MAX_PROCESSES];
    struct text *texts[MAX_PROCESSES];
    int *fds[MAX_PROCESSES];
    nfds_t count = 0;
    for (struct process *p = current.processes; p != NULL; p = p->next) {
        for (int i = OUT; i <= ERR; i++) {
            if (p->stream_fd[i] >= 0 && count + 1 < MAX_PROCESSES) {
                polled[count] = (struct pollfd){p->stream_fd[i], POLLIN, 0};
                fds[count] = &p->stream_fd[i];
                texts[count++] = &p->text[i];
            }
        }
    }
    if (client != NULL && client->fd >= 0 && !client->at_eof) {
        polled[count] = (struct pollfd){client->fd, POLLIN, 0};
        fds[count] = NULL;
        texts[count++] = &client->text;
    }
    (void)poll(polled, count, (int)timeout_ms);
    for (nfds_t i = 0; i < count; i++) {
        if (polled[i].revents == 0 || read_available(polled[i].fd, texts[i])) {
            continue;
        }
        if (fds[i] == NULL) {
            client->at_eof = true;
            continue;
        }
        close(*fds[i]);
        *fds[i] = -1;
    }
    reap();
    if (now_ms() >= current.scanned_ms + SCAN_MS) {
        remember_descendants();
        current.scanned_ms = now_ms();
    }
}

/* ======================================================================================
 * Starting processes.
 * ======================================================================================
 */

static const char *
setting(const char *name, const char *built_in)
{
    const char *value = getenv(name);
    return value != NULL && value[0] != '\0' ? value : built_in;
}

const char *
include_flags(void)
{
    return "-isystem " TEST_INCLUDE;
}

const char *
link_flags(void)
{
    return TEST_LIBPYTHON;
}

const char *
python(void)
{
    return setting("MANHOLE_PYTHON", TEST_PYTHON);
}

bool
has_gil(void)
{
    const char *const ask[] = {
        python(), "-c",
        "import sys, sysconfig; sys.exit(sysconfig.get_config_var('Py_GIL_DISABLED') or "
        "0)",
        NULL};
    return run_command(ask, NULL, NULL, NULL) == 0;
}

void
require_gil(void)
{
    if (!has_gil()) {
        skip_test("this Python has no GIL");
    }
}

void
require_copies(void)
{
#if !defined(__x86_64__) || !defined(__GLIBC__)
    skip_test("copies are made on x86-64 with glibc alone");
#endif
    require_gil();
    if (is_wrapped() || is_sanitized()) {
        skip_test("a sanitizer's or valgrind's memory is not forked by itself");
    }
}

bool
is_python_from(int minor)
{
    const char *const ask[] = {
        python(), "-c",
        format_text("import sys; sys.exit(sys.version_info < (3, %d))", minor), NULL};
    return run_command(ask, NULL, NULL, NULL) == 0;
}

const char *
debian_python(void)
{
    const char *path = setting("MANHOLE_DEBIAN_PYTHON", TEST_DEBIAN_PYTHON);
    if (path[0] == '\0') {
        skip_test("there is no Python of the distribution here");
    }
    return path;
}

bool
is_debian_python_from(int minor)
{
    (void)debian_python();
    static const char tag[] = TEST_DEBIAN_TAG; /* 3.MINOR... */
    return strtol(strchr(tag, '.') + 1, NULL, 10) >= minor;
}

static const char *
debian_build_directory(void)
{
    (void)debian_python();
    const char *built_in = format_text("%s/../%s", build_directory(), TEST_DEBIAN_TAG);
    return setting("MANHOLE_DEBIAN_BUILD", built_in);
}

void
require_program(const char *name)
{
    const char *path = getenv("PATH");
    char *copy = keep(strdup(path != NULL ? path : ""));
    char *rest = NULL;
    for (char *folder = strtok_r(copy, ":", &rest); folder != NULL;
         folder = strtok_r(NULL, ":", &rest)) {
        if (access(format_text("%s/%s", folder, name), X_OK) == 0) {
            return;
        }
    }
    skip_test("there is no %s in PATH", name);
}

void
require_debian_module(const char *name)
{
    const char *look = format_text("import importlib.util as u, sys; "
                                   "sys.exit(u.find_spec('%s') is None)",
                                   name);
    if (run_command(LIST(debian_python(), "-c", look), NULL, NULL, NULL) != 0) {
        skip_test("%s has no module %s", debian_python(), name);
    }
}

/* The schemas refer to each other by name. */
const char *
check_json(const char *schema, const char *document)
{
    const char *err = NULL;
    const char *check =
        "import json, jsonschema, sys\n"
        "document = json.load(sys.stdin)\n"
        "schema = json.load(open(sys.argv[1]))\n"
        "names = jsonschema.RefResolver('file://' + sys.argv[1], schema)\n"
        "for one in document if type(document) is list else [document]:\n"
        "    jsonschema.validate(one, schema, resolver=names)\n";
    const char *path = source_path(format_text("test/%s.schema.json", schema));
    struct process *checker =
        start_process(.argv = LIST(debian_python(), "-c", check, path),
                      .env = LIST("LD_PRELOAD"));
    if (run_process(checker, document, NULL, &err) != 0) {
        fail_msg("%s\n%s", err, document);
    }
    return document;
}

struct list {
    const char **items; /* owned, ends with NULL; the strings are kept by the test */
    size_t count;
};

static void
add(struct list *list, const char *item)
{
    list->items = realloc(list->items, (list->count + 2) * sizeof(*list->items));
    if (list->items == NULL) {
        fail_test("out of memory");
    }
    list->items[list->count++] = item;
    list->items[list->count] = NULL;
}

static void
add_all(struct list *list, const char *const *items)
{
    for (; items != NULL && *items != NULL; items++) {
        add(list, *items);
    }
}

/* What would let the tester's own environment, or that of make, into a test. */
static bool
is_foreign(const char *variable)
{
    static const char *const prefixes[] = {
        "PYTHON",         "MANHOLE",     "MAKE",      "MFLAGS=",          "VIRTUAL_ENV=",
        "CONFIG=",        "BUILD_ROOT=", "CFLAGS=",   "CPPFLAGS=",        "LDFLAGS=",
        "DEBIAN_PYTHON=", "DESTDIR=",    "NO_SETUP=", "NO_SYSTEM_TESTS=", "PREFIX=",
        "SANITIZE=",      "TEST=",       "VALGRIND=", "WERROR=",          "COLUMNS=",
        "LINES=",         "JOBS=",       "LIBEDIT=",
    };
    for (size_t i = 0; i < sizeof(prefixes) / sizeof(prefixes[0]); i++) {
        if (strncmp(variable, prefixes[i], strlen(prefixes[i])) == 0) {
            return true;
        }
    }
    return false;
}

/* Sets "NAME=value", or takes away "NAME". */
static void
set_variable(struct list *env, const char *variable)
{
    size_t name_length = strcspn(variable, "=");
    size_t kept = 0;
    for (size_t i = 0; i < env->count; i++) {
        if (strncmp(env->items[i], variable, name_length) != 0 ||
            env->items[i][name_length] != '=') {
            env->items[kept++] = env->items[i];
        }
    }
    env->count = kept;
    if (variable[name_length] == '=') {
        add(env, variable);
    }
    else if (env->items != NULL) {
        env->items[kept] = NULL;
    }
}

static struct list
make_environment(const struct launch *how)
{
    struct list env = {0};
    const char *build = how->debian ? debian_build_directory() : build_directory();
    for (char **variable = environ; *variable != NULL; variable++) {
        if (!is_foreign(*variable)) {
            add(&env, *variable);
        }
    }
    set_variable(&env, format_text("HOME=%s", current.directory));
    set_variable(&env, format_text("TMPDIR=%s", current.directory));
    set_variable(&env, format_text("PYTHONPATH=%s", build));
    set_variable(&env, format_text("PYTHONUSERBASE=%s/user", build)); /* manhole.pth */
    set_variable(&env, "PYTHONUNBUFFERED=1");
    set_variable(&env, "LC_ALL=C.UTF-8");
    set_variable(&env, "TERM=xterm");
    if (TEST_PRELOAD[0] != '\0') {
        /* CPython frees not all at its end. faulthandler gives the thread that registers with it a
         * stack for signals, which the sanitizer would take for its own when that thread ends. */
        static const char asan[] = "detect_leaks=0:use_sigaltstack=0";
        const char *log = test_path("report");
        set_variable(&env, format_text("LD_PRELOAD=%s", TEST_PRELOAD));
        set_variable(&env, format_text("ASAN_OPTIONS=%s:log_path=%s", asan, log));
        set_variable(&env,
                     format_text("UBSAN_OPTIONS=print_stacktrace=1:log_path=%s", log));
        /* Those that fork go on with threads; see test/tsan.supp. */
        static const char tsan[] =
            "report_thread_leaks=0:die_after_fork=0:history_size=5:"
            "suppressions=" TEST_SOURCES "/test/tsan.supp";
        set_variable(&env, format_text("TSAN_OPTIONS=%s:log_path=%s", tsan, log));
    }
    for (const char *const *v = how->env; v != NULL && *v != NULL; v++) {
        set_variable(&env, *v);
    }
    return env;
}

/* exec's parameters lack a const that they could have. */
static char *const *
for_exec(const char *const words[])
{
    union {
        const char *const *ours;
        char *const *theirs;
    } list = {.ours = words};
    return list.theirs;
}

/* A program begins with what a shell at a terminal gives it, whatever started the tests: make in
 * the background, say, ignores SIGINT. */
static void
restore_signals(void)
{
    sigset_t none;
    sigemptyset(&none);
    for (int i = 1; i < SIGRTMAX; i++) {
        (void)signal(i, SIG_DFL);
    }
    sigprocmask(SIG_SETMASK, &none, NULL);
}

/* In the child, to the exec. Writes what fails to stderr. */
static void
become(const struct launch *how, const int fds[3], const char *const argv[],
       const char *const env[])
{
    setsid();
    for (int i = 0; i < 3; i++) {
        dup2(fds[i], i);
    }
    (void)close_range(3, UINT_MAX,
                      CLOSE_RANGE_CLOEXEC); /* those of whoever runs the tests */
    if (how->terminal) {
        ioctl(STDIN_FILENO, TIOCSCTTY, 0);
    }
    (void)unlink(socket_path_of(getpid())); /* of a process that had this number before */
    restore_signals();
    if (chdir(current.directory) == 0 &&
        (how->uid == 0 ||
         (setgroups(0, NULL) == 0 && setgid(how->uid) == 0 && setuid(how->uid) == 0))) {
        prctl(PR_SET_PDEATHSIG, SIGTERM); /* now, for setuid() takes it back */
        execvpe(argv[0], for_exec(argv), for_exec(env));
    }
    (void)fprintf(stderr, "cannot start %s: %s\n", argv[0], strerror(errno));
    _exit(127);
}

/* Two descriptors a stream: ours and the child's. */
struct plumbing {
    int ours[3];
    int theirs[3];
};

static void
open_pipe(int *read_fd, int *write_fd)
{
    int fds[2];
    if (pipe2(fds, O_CLOEXEC) != 0) {
        fail_test("pipe2: %s", strerror(errno));
    }
    *read_fd = fds[0];
    *write_fd = fds[1];
}

static struct plumbing
open_pipes(void)
{
    struct plumbing p;
    open_pipe(&p.theirs[0], &p.ours[0]);
    open_pipe(&p.ours[1], &p.theirs[1]);
    open_pipe(&p.ours[2], &p.theirs[2]);
    return p;
}

static struct plumbing
open_terminal(void)
{
    struct winsize size = {.ws_row = 24, .ws_col = 80};
    struct plumbing p = {{-1, -1, -1}, {-1, -1, -1}};
    char name[64];
    int master = posix_openpt(O_RDWR | O_NOCTTY | O_CLOEXEC);
    if (master < 0 || grantpt(master) != 0 || unlockpt(master) != 0 ||
        ptsname_r(master, name, sizeof(name)) != 0) {
        fail_test("no pseudo-terminal: %s", strerror(errno));
    }
    ioctl(master, TIOCSWINSZ, &size);
    p.ours[1] = master;
    for (int i = 0; i < 3; i++) {
        p.theirs[i] = open(name, O_RDWR | O_NOCTTY | O_CLOEXEC);
    }
    return p;
}

static char *
join(const char *const words[])
{
    struct text line = {0};
    append(&line, "", 0);
    for (; *words != NULL; words++) {
        append(&line, *words, strnlen(*words, 60));
        append(&line, " ", 1);
    }
    return line.data;
}

static struct process *
start(const struct launch *how, const char *const argv[])
{
    struct plumbing streams = how->terminal ? open_terminal() : open_pipes();
    struct list env = make_environment(how);
    struct process *process = calloc(1, sizeof(*process));
    if (process == NULL) {
        fail_test("out of memory");
    }
    if (how->uid != 0) {
        chmod(current.directory, 0777);
    }
    int begun = -1;
    int at_exec = -1;
    char nothing = 0;
    open_pipe(&begun, &at_exec);
    (void)fflush(stdout);
    pid_t pid = fork();
    if (pid < 0) {
        fail_test("fork: %s", strerror(errno));
    }
    if (pid == 0) {
        become(how, streams.theirs, argv, env.items);
    }
    /* The exec closes the other end: what the child does before, it has done. */
    close(at_exec);
    while (read(begun, &nothing, 1) < 0 && errno == EINTR) {
    }
    close(begun);
    *process = (struct process){
        .pid = pid,
        .stdin_fd = streams.ours[0],
        .stream_fd = {streams.ours[1], streams.ours[2]},
        .terminal = how->terminal,
        .ends_its_children = how->ends_its_children,
        .title = join(argv),
        .next = current.processes,
    };
    append(&process->text[OUT], "", 0);
    append(&process->text[ERR], "", 0);
    append(&process->sent, "", 0);
    current.processes = process;
    remember(pid);
    for (int i = 0; i < 3; i++) {
        close(streams.theirs[i]);
        if (streams.ours[i] >= 0) {
            fcntl(streams.ours[i], F_SETFL, O_NONBLOCK);
        }
    }
    free(env.items);
    return process;
}

/* Starts argv, behind the wrapper (valgrind, say) when it is ours. */
static struct process *
start_wrapped(const struct launch *how, const struct list *argv, bool ours)
{
    struct list command = {0};
    const char *wrapper = getenv("MANHOLE_TEST_WRAPPER");
    if (ours && wrapper != NULL) {
        char *rest = NULL;
        for (char *word = strtok_r(keep(strdup(wrapper)), " ", &rest); word != NULL;
             word = strtok_r(NULL, " ", &rest)) {
            add(&command, word);
        }
    }
    add_all(&command, argv->items);
    if (command.items == NULL) {
        fail_test("there is no program to start");
    }
    struct process *process = start(how, command.items);
    free(command.items);
    free(argv->items);
    return process;
}

struct process *
start_python_target(struct launch how)
{
    static unsigned number;
    struct list argv = {0};
    add(&argv, how.debian ? debian_python() : python());
    add_all(&argv, how.python_options);
    add(&argv, write_file(format_text("target%u.py", ++number), how.program));
    add_all(&argv, how.argv);
    struct process *process = start_wrapped(&how, &argv, true);
    process->says_ready = strstr(how.program, READY STAY) != NULL;
    return process;
}

struct process *
start_any_process(struct launch how)
{
    struct list argv = {0};
    add_all(&argv, how.argv);
    const char *build = build_directory();
    bool ours = argv.count > 0 && strncmp(argv.items[0], build, strlen(build)) == 0;
    return start_wrapped(&how, &argv, ours);
}

struct process *
start_embedded_python(struct launch how)
{
    struct list argv = {0};
    struct list env = {0};
    add(&argv, how.example != NULL ? how.example : build_path("embed_example"));
    add_all(&argv, how.argv);
    add(&env, "PYTHONHOME=" TEST_PYTHON_HOME);
    add_all(&env, how.env);
    how.env = env.items;
    struct process *process = start_wrapped(&how, &argv, true);
    free(env.items);
    return process;
}

/* ======================================================================================
 * Talking to processes.
 * ======================================================================================
 */

static const char *
stream_name(const struct process *process, enum stream stream)
{
    return process->terminal ? "terminal" : stream == OUT ? "stdout" : "stderr";
}

const char *
text_of(const struct process *process, enum stream stream)
{
    return process->text[stream].data;
}

void
rewind_stream(struct process *process, enum stream stream)
{
    process->text[stream].seen = 0;
}

const char *
wait_for_text(struct process *process, enum stream stream, const char *text,
              long timeout_ms)
{
    struct text *read = &process->text[stream];
    long end_ms = now_ms() + timeout_ms;
    for (;;) {
        bool at_end = process->stream_fd[stream] < 0;
        const char *taken = take_until(read, text);
        if (taken != NULL) {
            return taken;
        }
        if (at_end) {
            fail_test("\"%s\" never came on %s of process %d (%s): it is closed", text,
                      stream_name(process, stream), (int)process->pid, process->title);
        }
        if (now_ms() >= end_ms) {
            fail_test("\"%s\" did not come on %s of process %d (%s) in %ld ms", text,
                      stream_name(process, stream), (int)process->pid, process->title,
                      timeout_ms);
        }
        pump(NULL, SCAN_MS);
    }
}

const char *
evaluate(struct process *app, const char *expression)
{
    write_stdin(app, format_text("%s\n", expression));
    wait_for_text(app, OUT, "<", DEADLINE);
    const char *answer = wait_for_text(app, OUT, ">\n", DEADLINE);
    return format_text("%.*s", (int)strlen(answer) - 2, answer);
}

void
wait_until_ready(struct process *process)
{
    wait_for_text(process, OUT, "ready", DEADLINE);
    wait_for_text(process, OUT, "\n", DEADLINE); /* print() may write it apart */
}

static bool
has_ended(const struct process *process, long timeout_ms)
{
    long end_ms = now_ms() + timeout_ms;
    reap();
    while (!process->exited && now_ms() < end_ms) {
        pump(NULL, TICK_MS);
    }
    pump(NULL, 0); /* the last of its output */
    return process->exited;
}

int
wait_for_exit(struct process *process, long timeout_ms)
{
    if (!has_ended(process, timeout_ms)) {
        fail_test("process %d (%s) did not end in %ld ms", (int)process->pid,
                  process->title, timeout_ms);
    }
    process->status_taken = true;
    return process->status;
}

bool
is_wrapped(void)
{
    return getenv("MANHOLE_TEST_WRAPPER") != NULL;
}

bool
is_sanitized(void)
{
    return TEST_PRELOAD[0] != '\0';
}

void
require_signals_at_once(void)
{
#ifdef __SANITIZE_THREAD__
    skip_test("the thread sanitizer keeps signals back");
#endif
}

/* Python runs a handler between two instructions: for a signal that comes between the last of them
 * and a system call, only after that. So a main thread on its way into one is let get there. */
static void
let_settle(const struct process *process)
{
    const long deadline = now_ms() + SETTLE_MS;
    struct relation relation = {.state = 'R'};
    while (now_ms() < deadline && relation.state == 'R' &&
           look_up_relation(format_text("%d", (int)process->pid), &relation)) {
        (void)poll(NULL, 0, relation.state == 'R' ? 1 : 0);
    }
}

void
send_signal(struct process *process, int signal_number)
{
    let_settle(process);
    if (process->exited || kill(process->pid, signal_number) != 0) {
        fail_test("no process %d (%s) to signal", (int)process->pid, process->title);
    }
    if (signal_number == SIGKILL) {
        process->killed = true;
    }
}

void
write_stdin(struct process *process, const char *text)
{
    int fd = process->terminal ? process->stream_fd[OUT] : process->stdin_fd;
    size_t left = strlen(text);
    long end_ms = now_ms() + DEADLINE;
    append(&process->sent, text, left);
    while (left > 0) {
        ssize_t count = write(fd, text, left);
        if (count > 0) {
            text += count;
            left -= (size_t)count;
        }
        else if (errno == EPIPE) {
            return; /* it has ended, or wants no more */
        }
        else if (errno != EAGAIN) {
            fail_test("cannot write to process %d (%s): %s", (int)process->pid,
                      process->title, strerror(errno));
        }
        else if (now_ms() >= end_ms) {
            fail_test("process %d (%s) does not read its input", (int)process->pid,
                      process->title);
        }
        else {
            pump(NULL, TICK_MS);
        }
    }
}

static void
close_fd(int *fd)
{
    if (*fd >= 0) {
        close(*fd);
        *fd = -1;
    }
}

void
close_stdin(struct process *process)
{
    close_fd(&process->stdin_fd);
}

int
run_process(struct process *process, const char *stdin_text, const char **out,
            const char **err)
{
    if (stdin_text != NULL) {
        write_stdin(process, stdin_text);
    }
    close_stdin(process);
    int status = wait_for_exit(process, DEADLINE);
    if (out != NULL) {
        *out = take_rest(&process->text[OUT]);
    }
    if (err != NULL) {
        *err = take_rest(&process->text[ERR]);
    }
    return status;
}

int
run_command(const char *const argv[], const char *stdin_text, const char **out,
            const char **err)
{
    return run_process(start_process(.argv = argv), stdin_text, out, err);
}

/* ======================================================================================
 * Waiting for anything.
 * ======================================================================================
 */

void
wait_until(bool (*is_true)(void *argument), void *argument, const char *what,
           long timeout_ms)
{
    long end_ms = now_ms() + timeout_ms;
    while (!is_true(argument)) {
        if (now_ms() >= end_ms) {
            fail_test("not so in %ld ms: %s", timeout_ms, what);
        }
        pump(NULL, TICK_MS);
    }
}

static bool
is_asleep(void *pid)
{
    struct relation relation = {.state = 'R'};
    return look_up_relation(format_text("%d", (int)*(pid_t *)pid), &relation) &&
           relation.state == 'S';
}

void
wait_until_asleep(pid_t pid)
{
    wait_until(is_asleep, &pid, format_text("process %d sleeps", (int)pid), DEADLINE);
}

static bool
is_there(void *path)
{
    return path_exists(path);
}

static bool
is_not_there(void *path)
{
    return !path_exists(path);
}

void
wait_for_path(const char *path, long timeout_ms)
{
    wait_until(is_there, keep(strdup(path)), format_text("%s exists", path), timeout_ms);
}

void
wait_for_no_path(const char *path, long timeout_ms)
{
    wait_until(is_not_there, keep(strdup(path)), format_text("%s is gone", path),
               timeout_ms);
}

void
watch_for(long duration_ms)
{
    long end_ms = now_ms() + duration_ms;
    long left_ms;
    while ((left_ms = end_ms - now_ms()) > 0) {
        pump(NULL, left_ms < SCAN_MS ? left_ms : SCAN_MS);
    }
}

int
free_port(void)
{
    struct sockaddr_in address = {.sin_family = AF_INET,
                                  .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t size = sizeof(address);
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd < 0 || bind(fd, (struct sockaddr *)&address, size) != 0 ||
        getsockname(fd, (struct sockaddr *)&address, &size) != 0) {
        fail_test("no free port: %s", strerror(errno));
    }
    close(fd);
    return ntohs(address.sin_port);
}

/* ======================================================================================
 * Clients.
 * ======================================================================================
 */

const char *
socket_path_of(pid_t pid)
{
    return format_text("/tmp/manhole-%d", (int)pid);
}

static struct sockaddr_un
socket_address(const char *path)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    if (strlen(path) >= sizeof(address.sun_path)) {
        fail_test("too long for a socket: %s", path);
    }
    memcpy(address.sun_path, path, strlen(path));
    return address;
}

/* Returns a connected socket, or -1 with errno. abstract_name may be NULL. */
static int
try_to_connect(const char *path, const char *abstract_name)
{
    struct sockaddr_un address = socket_address(path);
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd < 0) {
        fail_test("socket: %s", strerror(errno));
    }
    if (abstract_name != NULL) {
        struct sockaddr_un own = {.sun_family = AF_UNIX};
        size_t length = strnlen(abstract_name, sizeof(own.sun_path) - 1);
        memcpy(own.sun_path + 1, abstract_name, length);
        socklen_t size = (socklen_t)(offsetof(struct sockaddr_un, sun_path) + 1 + length);
        if (bind(fd, (struct sockaddr *)&own, size) != 0) {
            fail_test("cannot bind @%s: %s", abstract_name, strerror(errno));
        }
    }
    if (connect(fd, (struct sockaddr *)&address, sizeof(address)) != 0) {
        int reason = errno;
        close(fd);
        errno = reason;
        return -1;
    }
    return fd;
}

static bool
has_said_ready(const struct process *process)
{
    const char *ready = strstr(process->text[OUT].data, "ready");
    return ready != NULL && strchr(ready, '\n') != NULL;
}

static void
let_it_get_ready(const struct process *process)
{
    long end_ms = now_ms() + DEADLINE;
    while (process->says_ready && process->stream_fd[OUT] >= 0 &&
           !has_said_ready(process) && now_ms() < end_ms) {
        pump(NULL, SCAN_MS);
    }
}

static const struct process *
find_process_at(const char *path)
{
    const struct process *process = current.processes;
    while (process != NULL && strcmp(socket_path_of(process->pid), path) != 0) {
        process = process->next;
    }
    return process;
}

/* process: given up when it ends, or NULL. */
static struct client *
connect_patiently(const struct process *process, const char *path,
                  const char *abstract_name)
{
    long end_ms = now_ms() + DEADLINE;
    struct client *client = calloc(1, sizeof(*client));
    int fd;
    if (client == NULL) {
        fail_test("out of memory");
    }
    *client = (struct client){.fd = -1, .path = strdup(path), .next = current.clients};
    append(&client->text, "", 0);
    append(&client->sent, "", 0);
    current.clients = client;
    if (find_process_at(path) != NULL) {
        let_it_get_ready(find_process_at(path));
    }
    while ((fd = try_to_connect(path, abstract_name)) < 0) {
        if (now_ms() >= end_ms || (process != NULL && process->exited)) {
            fail_test("cannot connect to %s: %s%s", path, strerror(errno),
                      process != NULL && process->exited ? "; its process ended" : "");
        }
        pump(NULL, TICK_MS);
    }
    fcntl(fd, F_SETFL, O_NONBLOCK);
    client->fd = fd;
    return client;
}

struct client *
connect_to(const struct process *process)
{
    return connect_patiently(process, socket_path_of(process->pid), NULL);
}

/* The address of a loopback port. */
static struct sockaddr_in
port_address(int port)
{
    return (struct sockaddr_in){.sin_family = AF_INET,
                                .sin_port = htons((uint16_t)port),
                                .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
}

struct client *
connect_port(int port)
{
    struct sockaddr_in address = port_address(port);
    struct client *client = calloc(1, sizeof(*client));
    if (client == NULL) {
        fail_test("out of memory");
    }
    *client = (struct client){.path = strdup(format_text("127.0.0.1:%d", port)),
                              .next = current.clients};
    append(&client->text, "", 0);
    append(&client->sent, "", 0);
    current.clients = client;
    client->fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (connect(client->fd, (struct sockaddr *)&address, sizeof(address)) != 0) {
        fail_test("cannot connect to %s: %s", client->path, strerror(errno));
    }
    fcntl(client->fd, F_SETFL, O_NONBLOCK);
    return client;
}

struct client *
connect_client(const char *path)
{
    return connect_patiently(NULL, path, NULL);
}

struct client *
connect_as(const char *path, const char *abstract_name)
{
    return connect_patiently(NULL, path, abstract_name);
}

bool
is_served(const char *path)
{
    int fd = try_to_connect(path, NULL);
    if (fd < 0) {
        return false;
    }
    close(fd);
    return true;
}

void
client_send_bytes(struct client *client, const void *bytes, size_t count)
{
    const char *next = bytes;
    long end_ms = now_ms() + DEADLINE;
    append(&client->sent, bytes, count);
    while (count > 0) {
        ssize_t sent = send(client->fd, next, count, MSG_NOSIGNAL);
        if (sent > 0) {
            next += sent;
            count -= (size_t)sent;
        }
        else if (errno != EAGAIN) {
            fail_test("cannot send to %s: %s", client->path, strerror(errno));
        }
        else if (now_ms() >= end_ms) {
            fail_test("%s does not read what it is sent", client->path);
        }
        else {
            pump(client, TICK_MS);
        }
    }
}

void
client_send(struct client *client, const char *text)
{
    client_send_bytes(client, text, strlen(text));
}

const char *
client_wait_for(struct client *client, const char *text)
{
    long end_ms = now_ms() + DEADLINE;
    for (;;) {
        bool at_eof = client->at_eof || client->fd < 0;
        const char *taken = take_until(&client->text, text);
        if (taken != NULL) {
            return taken;
        }
        if (at_eof || now_ms() >= end_ms) {
            fail_test("\"%s\" did not come from %s; what came last:\n%s", text,
                      at_eof ? "the manhole, which closed the connection" : client->path,
                      client->text.data + client->text.seen);
        }
        pump(client, SCAN_MS);
    }
}

const char *
client_ask(struct client *client, const char *line)
{
    client_send(client, format_text("%s\n", line));
    const char *answer = client_wait_for(client, ">>> ");
    return keep_bytes(answer, strlen(answer) - strlen(">>> "));
}

const char *
client_read_until_eof(struct client *client)
{
    long end_ms = now_ms() + DEADLINE;
    while (!client->at_eof) {
        if (now_ms() >= end_ms) {
            fail_test("%s keeps the connection open", client->path);
        }
        pump(client, SCAN_MS);
    }
    return take_rest(&client->text);
}

void
client_shutdown_write(struct client *client)
{
    shutdown(client->fd, SHUT_WR);
}

void
client_close(struct client *client)
{
    close_fd(&client->fd);
}

/* ======================================================================================
 * What must hold.
 * ======================================================================================
 */

void
assert_contains(const char *haystack, const char *needle)
{
    if (strstr(haystack, needle) == NULL) {
        fail_test("this is missing:\n%s\nfrom:\n%s", needle, haystack);
    }
}

void
assert_not_contains(const char *haystack, const char *needle)
{
    if (strstr(haystack, needle) != NULL) {
        fail_test("this should not be there:\n%s\nin:\n%s", needle, haystack);
    }
}

void
assert_matches(const char *text, const char *expression)
{
    regex_t compiled;
    char reason[256];
    int error = regcomp(&compiled, expression, REG_EXTENDED | REG_NEWLINE | REG_NOSUB);
    if (error != 0) {
        regerror(error, &compiled, reason, sizeof(reason));
        fail_test("bad expression %s: %s", expression, reason);
    }
    error = regexec(&compiled, text, 0, NULL, 0);
    regfree(&compiled);
    if (error != 0) {
        fail_test("nothing matches:\n%s\nin:\n%s", expression, text);
    }
}

void
assert_path_exists(const char *path)
{
    if (!path_exists(path)) {
        fail_test("%s is missing", path);
    }
}

void
assert_no_path(const char *path)
{
    if (path_exists(path)) {
        fail_test("%s is there", path);
    }
}

/* ======================================================================================
 * The end of a test: nothing may be left of it.
 * ======================================================================================
 */

void
expect_socket_left(const char *path)
{
    struct expected *expected = keep(calloc(1, sizeof(*expected)));
    *expected =
        (struct expected){.next = current.expected, .path = format_text("%s", path)};
    current.expected = expected;
}

static bool
is_expected(const char *path)
{
    const struct expected *expected = current.expected;
    while (expected != NULL && strcmp(expected->path, path) != 0) {
        expected = expected->next;
    }
    return expected != NULL;
}

__attribute__((format(printf, 2, 3))) static void
complain(struct text *problems, const char *format, ...)
{
    char *line = NULL;
    va_list arguments;
    va_start(arguments, format);
    if (vasprintf(&line, format, arguments) >= 0) {
        append(problems, line, strlen(line));
        append(problems, "\n", 1);
        free(line);
    }
    va_end(arguments);
}

/* To a process with its whole group; to it alone while it has none yet: a child that has not come
 * to its setsid(). */
static void
signal_group(pid_t pid, int signal_number)
{
    if (kill(-pid, signal_number) != 0 && errno == ESRCH) {
        kill(pid, signal_number);
    }
}

/* Ends what still runs: a living process with its whole group. The children of one that
 * has ended get no signal, for they should have ended, too. */
static void
end_processes(struct text *problems)
{
    for (struct process *p = current.processes; p != NULL; p = p->next) {
        if (!has_ended(p, 0) && p->ends_its_children) {
            (void)kill(p->pid, SIGTERM);
        }
        else if (!has_ended(p, 0)) {
            signal_group(p->pid, SIGTERM);
            signal_group(p->pid, SIGCONT);
        }
    }
    for (struct process *p = current.processes; p != NULL; p = p->next) {
        if (has_ended(p, stretched(GRACE_MS))) {
            continue;
        }
        if (!p->killed) {
            complain(problems, "process %d (%s) goes on after SIGTERM", (int)p->pid,
                     p->title);
        }
        p->killed = true;
        signal_group(p->pid, SIGKILL);
        has_ended(p, stretched(GRACE_MS));
    }
}

/* What of the processes' own children is still there, given some time, is a problem. */
static void
end_descendants(struct text *problems)
{
    pid_t left[64];
    size_t count;
    long end_ms = now_ms() + stretched(LINGER_MS);
    while ((count = list_children(getpid(), left, 64)) > 0 && now_ms() < end_ms) {
        pump(NULL, TICK_MS);
    }
    for (; count > 0; count = list_children(getpid(), left, 64)) {
        for (size_t i = 0; i < count; i++) {
            const char *command =
                try_read_file(format_text("/proc/%d/cmdline", (int)left[i]));
            complain(problems, "process %d is left (%s)", (int)left[i],
                     command != NULL ? command : "gone now");
            remember(left[i]);
            kill(left[i], SIGKILL);
            waitpid(left[i], NULL, 0);
        }
    }
}

static void
remove_sockets(struct text *problems)
{
    for (const struct process *p = current.processes; p != NULL; p = p->next) {
        remember_pids_in_log(&p->text[OUT]);
        remember_pids_in_log(&p->text[ERR]);
    }
    for (size_t i = 0; i < current.seen_count; i++) {
        const char *path = socket_path_of(current.seen[i]);
        const struct process *owner = find_process(current.seen[i]);
        long end_ms = now_ms() + stretched(LINGER_MS);
        /* A grandchild is nobody's for a moment, when its parent ends: it may still be at it. */
        while (path_exists(path) && kill(current.seen[i], 0) == 0 && now_ms() < end_ms) {
            pump(NULL, TICK_MS);
        }
        if (!path_exists(path)) {
            continue;
        }
        if (!is_expected(path) && (owner == NULL || !owner->killed)) {
            complain(problems, "socket %s is left", path);
        }
        unlink(path);
    }
    for (const struct expected *e = current.expected; e != NULL; e = e->next) {
        unlink(e->path);
    }
}

/* Sanitizers and valgrind write to files called report.PID. */
static void
collect_reports(struct text *problems)
{
    struct dirent *entry;
    DIR *directory = opendir(current.directory);
    while (directory != NULL && (entry = readdir(directory)) != NULL) {
        const char *report = strncmp(entry->d_name, "report", strlen("report")) == 0
                                 ? try_read_file(test_path(entry->d_name))
                                 : NULL;
        if (report != NULL && report[0] != '\0') {
            complain(problems, "%s:\n%s", entry->d_name, report);
        }
    }
    if (directory != NULL) {
        closedir(directory);
    }
}

static void
look_for_crashes(struct text *problems)
{
    for (const struct process *p = current.processes; p != NULL; p = p->next) {
        int signal_number = -p->status;
        bool crashed = signal_number == SIGSEGV || signal_number == SIGABRT ||
                       signal_number == SIGBUS || signal_number == SIGILL ||
                       signal_number == SIGFPE;
        if (crashed && !p->status_taken) {
            complain(problems, "process %d (%s) died of signal %d, %s", (int)p->pid,
                     p->title, signal_number, strsignal(signal_number));
        }
    }
}

static void
close_all(struct text *problems)
{
    for (struct process *p = current.processes; p != NULL; p = p->next) {
        close_fd(&p->stdin_fd);
        close_fd(&p->stream_fd[OUT]);
        close_fd(&p->stream_fd[ERR]);
    }
    for (struct client *c = current.clients; c != NULL; c = c->next) {
        close_fd(&c->fd);
    }
    size_t fd_count = (size_t)count_fds(getpid());
    if (fd_count > current.fd_count) {
        complain(problems, "the test program has %zu descriptors more than before",
                 fd_count - current.fd_count);
        current.fd_count = fd_count;
    }
}

/* Ends and removes everything. Returns what should not have been there, a line each. */
static const char *
tidy_up(void)
{
    struct text problems = {0};
    append(&problems, "", 0);
    end_processes(&problems);
    end_descendants(&problems);
    remove_sockets(&problems);
    look_for_crashes(&problems);
    collect_reports(&problems);
    close_all(&problems);
    return keep(problems.data);
}

static void
show_transcripts(void)
{
    for (const struct process *p = current.processes; p != NULL; p = p->next) {
        print_message("=== process %d: %s\n", (int)p->pid, p->title);
        print_message(p->exited ? "    ended: %d\n" : "    runs\n", p->status);
        show_text("sent to its stdin", &p->sent);
        show_text(stream_name(p, OUT), &p->text[OUT]);
        show_text(stream_name(p, ERR), &p->text[ERR]);
    }
    for (const struct client *c = current.clients; c != NULL; c = c->next) {
        print_message("=== client of %s%s\n", c->path, c->at_eof ? ", at its end" : "");
        show_text("sent by the client", &c->sent);
        show_text("received by the client", &c->text);
    }
}

static void
free_all(void)
{
    while (current.processes != NULL) {
        struct process *process = current.processes;
        current.processes = process->next;
        free(process->text[OUT].data);
        free(process->text[ERR].data);
        free(process->sent.data);
        free(process->title);
        free(process);
    }
    while (current.clients != NULL) {
        struct client *client = current.clients;
        current.clients = client->next;
        free(client->text.data);
        free(client->sent.data);
        free(client->path);
        free(client);
    }
    free_kept();
}

/* ======================================================================================
 * The table of tests.
 * ======================================================================================
 */

static int
begin_test(void **state)
{
    const struct test_case *test = *state;
    memset(&current, 0, sizeof(current));
    current.name = test->name;
    current.file = __FILE__;
    current.line = __LINE__;
    clock_gettime(CLOCK_REALTIME_COARSE, &current.began);
    strcpy(current.directory, "/tmp/mh-XXXXXX");
    current.fd_count = (size_t)count_fds(getpid());
    return mkdtemp(current.directory) == NULL || chmod(current.directory, 0755) != 0;
}

static void
run_body(void **state)
{
    const struct test_case *test = *state;
    test->body();
    const char *problems = tidy_up();
    if (problems[0] != '\0') {
        fail_test("%s left something behind:\n%s", test->name, problems);
    }
    current.passed = true;
}

/* After a pass, a failure or a skip; the last two left run_body() by a long jump. */
static int
end_test(void **state)
{
    (void)state;
    const char *keep_directory = getenv("MANHOLE_TEST_KEEP");
    const char *problems = current.passed ? "" : tidy_up();
    if (!current.passed && !current.skipped) {
        show_transcripts();
        (void)fputs(problems, stdout);
    }
    if (keep_directory != NULL && keep_directory[0] != '\0') {
        print_message("kept: %s\n", current.directory);
    }
    else {
        remove_tree(current.directory);
    }
    free_all();
    return 0;
}

int
run_test_table(const struct test_case tests[], size_t count)
{
    const char *filter = getenv("MANHOLE_TEST_FILTER");
    struct CMUnitTest *table = calloc(count, sizeof(*table));
    struct test_case *copy = calloc(count, sizeof(*copy)); /* state is not const */
    if (table == NULL || copy == NULL) {
        free(table);
        free(copy);
        return EXIT_FAILURE;
    }
    memcpy(copy, tests, count * sizeof(*copy));
    for (size_t i = 0; i < count; i++) {
        table[i] = (struct CMUnitTest){
            .name = tests[i].name,
            .test_func = run_body,
            .setup_func = begin_test,
            .teardown_func = end_test,
            .initial_state = &copy[i],
        };
    }
    (void)signal(SIGPIPE, SIG_IGN);
    (void)setvbuf(stdout, NULL, _IOLBF, 0);
    prctl(PR_SET_CHILD_SUBREAPER, 1);
    if (filter != NULL && filter[0] != '\0') {
        cmocka_set_test_filter(filter);
    }
    int failed =
        _cmocka_run_group_tests(program_invocation_short_name, table, count, NULL, NULL);
    free(copy);
    free(table);
    return failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
