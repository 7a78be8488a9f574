/* Remote: CPython's own way in, from 3.14 on (PEP 768), for where ptrace() does not do: a process
 * can have one tracer, may have a shadow stack, and run on a processor that cpu.c does not know.
 *
 * The path of a script and a flag are written into the main thread's state. When that thread comes
 * to a safe point, between two instructions of Python's, it runs the script, which loads the module
 * and installs, as any client's order, or writes all stacks into a file. Where the fields
 * are the runtime tells in a table that it begins with. To write there takes the right of ptrace().
 *
 *    /tmp/manhole-attach-XXXXXX/   of the process's own /tmp, and its user's
 *        options, manhole.so       what the script reads
 *        said                      what it has to say; "" for success; is there when it is done
 *
 * The limits are the way's own. A main thread that sleeps, waits, or is stuck in C never comes to
 * that point, so what was asked is taken back after some seconds, and nothing stays pending. While
 * the flag is set by a read and a write the thread may do the same unseen, as with
 * sys.remote_exec(). And such a manhole stays: but for --detach, and an install() of the
 * application's own, which takes its place, nobody closes it.
 */
#ifndef MANHOLE_CLI_ATTACH_REMOTE_C
#define MANHOLE_CLI_ATTACH_REMOTE_C

#include "../signals.c"
#include "module_file.c"
#include "rights.c"

#if HAS_IMAGES

enum {
    PLEASE_STOP =
        1 << 5, /* of the words that a thread looks at between its instructions */
    REMOTE_PATIENCE_S = 10, /* without --timeout */
    REMOTE_LOOK_MS = 5,
};

/* The table's beginning, which all versions have in common. */
struct debug_offsets {
    char cookie[8];
    uint64_t version;
    uint64_t free_threaded;
    uint64_t runtime_size;
    uint64_t finalizing;
    uint64_t interpreters_head;
    uint64_t interpreter_size;
    uint64_t interpreter_id;
    uint64_t interpreter_next;
    uint64_t threads_head;
    uint64_t threads_main;
};

/* And its end. */
struct debugger_support {
    uint64_t breaker; /* in a thread's state, as is the area */
    uint64_t area;
    uint64_t is_enabled; /* in an interpreter's */
    uint64_t is_pending; /* in the area, as is the path */
    uint64_t path;
    uint64_t path_size;
};

/* A script that is to be run. */
struct remote {
    pid_t pid;
    uint64_t breaker; /* addresses in the process */
    uint64_t is_pending;
    uint64_t path;
    uint64_t path_size;
    struct text folder; /* as we see it */
    int files;          /* its descriptor */
};

/* ---- The fields -------------------------------------------------------------------- */

/* Where in the table that is; 0: of no such version. */
static uint64_t
support_at(uint64_t version)
{
    static const uint64_t places[] = {[14] = 712, [15] = 840};
    const uint64_t minor = version >> 16 & 0xff;

    return version >> 24 == 3 && minor < sizeof(places) / sizeof(places[0])
               ? places[minor]
               : 0;
}

/* Finds the state of the main interpreter, which is the oldest, the last of the list. */
static bool
find_interpreter(pid_t pid, uint64_t head, uint64_t next, uint64_t *interpreter)
{
    enum { MOST_INTERPRETERS = 10000 };
    uint64_t at = 0;

    *interpreter = 0;
    if (!peek(pid, head, &at, sizeof(at))) {
        return false;
    }
    for (int i = 0; at != 0 && i < MOST_INTERPRETERS; i++) {
        *interpreter = at;
        if (!peek(pid, at + next, &at, sizeof(at))) {
            return false;
        }
    }
    return *interpreter != 0;
}

/* Whether the process lets scripts be run in it, and where that is asked for. */
static bool
find_remote(const struct image *image, struct remote *remote)
{
    const pid_t pid = image->pid;
    const uint64_t runtime = find_python(image, "_PyRuntime");
    struct debug_offsets table;
    struct debugger_support support;
    uint64_t interpreter = 0;
    uint64_t thread = 0;
    int is_enabled = 0;

    if (runtime == 0 || !peek(pid, runtime, &table, sizeof(table)) ||
        memcmp(table.cookie, "xdebugpy", sizeof(table.cookie)) != 0 ||
        support_at(table.version) == 0 ||
        !peek(pid, runtime + support_at(table.version), &support, sizeof(support)) ||
        !find_interpreter(pid, runtime + table.interpreters_head, table.interpreter_next,
                          &interpreter) ||
        !peek(pid, interpreter + support.is_enabled, &is_enabled, sizeof(is_enabled)) ||
        is_enabled != 1 ||
        !peek(pid, interpreter + table.threads_main, &thread, sizeof(thread)) ||
        thread == 0) {
        return false;
    }
    *remote = (struct remote){
        .pid = pid,
        .breaker = thread + support.breaker,
        .is_pending = thread + support.area + support.is_pending,
        .path = thread + support.area + support.path,
        .path_size = support.path_size,
    };
    return true;
}

/* ---- The files --------------------------------------------------------------------- */

/* Adds a file to the folder, the process's user's as that will be. */
static void
add_file(const struct remote *remote, const char *name, const char *bytes, size_t count)
{
    OWNED_FD file =
        openat(remote->files, name, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    uid_t uid = geteuid();

    (void)find_uid(remote->pid, &uid);
    if (file < 0 || !fill_file(file, bytes, count) ||
        (uid != geteuid() && fchown(file, uid, (gid_t)-1) < 0)) {
        fail(STATUS_TROUBLE, "cannot write %s/%s: %m", remote->folder.text, name);
    }
}

/* Makes the folder, where the process sees it, too. */
static void
make_folder(struct remote *remote)
{
    remote->folder = print("%.32s/tmp/manhole-attach-XXXXXX", root_of(remote->pid).text);
    if (mkdtemp(remote->folder.text) == NULL ||
        (remote->files = open(remote->folder.text,
                              O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC)) < 0) {
        fail(STATUS_TROUBLE, "cannot make the folder %s: %m", remote->folder.text);
    }
}

/* By the folder's descriptor: its name might mean another one by now. */
static void
remove_folder(const struct remote *remote)
{
    static const char *const names[] = {"script.py", "options", "manhole.so", "saying",
                                        "said"};

    for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++) {
        (void)unlinkat(remote->files, names[i], 0);
    }
    (void)rmdir(remote->folder.text);
}

/* The folder's path as the process has it. */
static const char *
inner_folder(const struct remote *remote)
{
    return strstr(remote->folder.text, "/tmp/manhole-attach-");
}

/* ---- Asking ------------------------------------------------------------------------ */

/* Asks for it: the script's path, then the flag, then the bit that has the thread look. */
static bool
ask_for_script(const struct remote *remote, const char *path)
{
    const int yes = 1;
    uint64_t breaker = 0;

    if (!poke(remote->pid, remote->path, path, strlen(path) + 1) ||
        !poke(remote->pid, remote->is_pending, &yes, sizeof(yes)) ||
        !peek(remote->pid, remote->breaker, &breaker, sizeof(breaker))) {
        return false;
    }
    breaker |= PLEASE_STOP;
    return poke(remote->pid, remote->breaker, &breaker, sizeof(breaker));
}

/* Takes back what was asked, and the files. */
static void
withdraw(const struct remote *remote)
{
    const int no = 0;

    (void)poke(remote->pid, remote->is_pending, &no, sizeof(no));
    remove_folder(remote);
}

/* Waits a moment; at a Ctrl-C, takes all back and ends the program. */
static void
doze_or_leave(const struct remote *remote)
{
    sigset_t ctrl_c;
    const struct timespec moment = {.tv_nsec = REMOTE_LOOK_MS * 1000000L};

    (void)sigemptyset(&ctrl_c);
    (void)sigaddset(&ctrl_c, SIGINT);
    if (sigtimedwait(&ctrl_c, NULL, &moment) == SIGINT) {
        withdraw(remote);
        leave(STATUS_INTERRUPTED);
    }
}

/* Waits until the script has said something, which is added to the answer. */
static void
await_said(const struct remote *remote, double patience_s, struct buffer *answer)
{
    const double deadline = now_s() + patience_s;
    const int pid = (int)remote->pid;
    int file = -1;

    while ((file = openat(remote->files, "said", O_RDONLY | O_NOFOLLOW | O_CLOEXEC)) <
           0) {
        if (has_ended(remote->pid)) {
            withdraw(remote);
            fail_ended(remote->pid);
        }
        if (!(now_s() < deadline)) {
            withdraw(remote);
            fail(STATUS_NO_CONNECTION,
                 "the main thread of process %d has not come back to Python code within "
                 "%g s, and so has run no script; nothing stays pending, and --timeout "
                 "waits longer",
                 pid, patience_s);
        }
        doze_or_leave(remote);
    }
    (void)read_all(file, answer);
    (void)close(file);
    remove_folder(remote);
}

/* Has the process run this text, with these names for the folder and all else of ours in it. */
static void
run_script(const struct request *request, struct remote *remote, const char *text,
           struct buffer *answer)
{
    OWNED_BUFFER script = {.data = NULL};
    struct text path = print("%s/script.py", inner_folder(remote));
    sigset_t ctrl_c;

    append_format(&script, "def run(folder):\n%s", text);
    append_format(&script, "run('%s/')\n", inner_folder(remote));
    add_file(remote, "script.py", script.data, script.length);
    uid_t uid = geteuid();
    (void)find_uid(remote->pid, &uid);
    (void)sigemptyset(&ctrl_c);
    (void)sigaddset(&ctrl_c, SIGINT);
    (void)pthread_sigmask(SIG_BLOCK, &ctrl_c, NULL);
    if ((uid != geteuid() && fchown(remote->files, uid, (gid_t)-1) < 0) ||
        strlen(path.text) >= remote->path_size || !ask_for_script(remote, path.text)) {
        int error = errno;
        withdraw(remote);
        errno = error;
        fail(STATUS_TROUBLE, "cannot ask process %d to run a script: %m",
             (int)remote->pid);
    }
    await_said(remote,
               is_given(request, OPTION_TIMEOUT) ? request->timeout_s : REMOTE_PATIENCE_S,
               answer);
    (void)pthread_sigmask(SIG_UNBLOCK, &ctrl_c, NULL);
}

/* ---- What is asked for ------------------------------------------------------------- */

/* Ends the program where this way is closed as well. */
static void
open_way(const struct image *image, const char *obstacle, struct remote *remote)
{
    if (!find_remote(image, remote)) {
        fail(STATUS_NO_CONNECTION, "%s", obstacle);
    }
    if (!terminal.is_quiet) {
        say_error("%s; its main thread is asked instead (PEP 768)", obstacle);
    }
    make_folder(remote);
}

/* Gives the process a manhole, or ends the program. */
static void
attach_remotely(const struct request *request, const struct image *image,
                const char *obstacle)
{
    static const char text[] =
        "    import os, sys\n"
        "    try:\n"
        "        manhole = sys.modules.get('manhole')\n"
        "        if manhole is None:\n"
        "            from importlib import util\n"
        "            spec = util.spec_from_file_location('manhole', folder + "
        "'manhole.so')\n"
        "            manhole = util.module_from_spec(spec)\n"
        "            sys.modules['manhole'] = manhole\n"
        "            spec.loader.exec_module(manhole)\n"
        "        with open(folder + 'options') as file:\n"
        "            options = eval(f'dict({file.read()})', {**vars(manhole), 'manhole': "
        "manhole})\n"
        "        install = getattr(manhole, '_install_by_order', manhole.install)\n"
        "        install(**{'verbose': False, 'patch_fork': False, **options})\n"
        "        said = ''\n"
        "    except BaseException as error:\n"
        "        said = f'{type(error).__name__}: {error}'\n"
        "    with open(folder + 'saying', 'w', errors='replace') as file:\n"
        "        file.write(said)\n"
        "    os.rename(folder + 'saying', folder + 'said')\n";
    const char *arguments = request->given[OPTION_ATTACH];
    OWNED_BUFFER module = {.data = NULL};
    OWNED_BUFFER said = {.data = NULL};
    struct remote remote;

    if (find_python(image, entry_name) == 0) {
        find_module(request, image, &module);
    }
    open_way(image, obstacle, &remote);
    add_file(&remote, "manhole.so", text_of(&module), module.length);
    add_file(&remote, "options", arguments, strlen(arguments));
    run_script(request, &remote, text, &said);
    if (said.length > 0) {
        fail(STATUS_NO_CONNECTION, "process %d takes no manhole: %s", (int)image->pid,
             text_of(&said));
    }
    if (!terminal.is_quiet) {
        say_error("the manhole of process %d stays until '%s --detach %d'",
                  (int)image->pid, program, (int)image->pid);
    }
}

/* Has the process write all stacks as faulthandler does; they are added to the answer. */
static void
look_remotely(const struct request *request, const struct image *image,
              const char *obstacle, struct buffer *answer)
{
    static const char text[] = "    import faulthandler, os\n"
                               "    with open(folder + 'saying', 'w') as file:\n"
                               "        faulthandler.dump_traceback(file)\n"
                               "    os.rename(folder + 'saying', folder + 'said')\n";
    struct remote remote;

    open_way(image, obstacle, &remote);
    run_script(request, &remote, text, answer);
}

#endif /* HAS_IMAGES */

#endif /* MANHOLE_CLI_ATTACH_REMOTE_C */
