/* Hindrances: why nobody answers, as far as /proc shows it.
 *
 * "Timeout" helps nobody at three in the morning: a process that is stopped, or frozen with its
 * container, or held by a debugger, that belongs to another user, waits for a signal to open its
 * manhole, or has none, looks the same from its socket. So whoever has waited in vain asks here,
 * and who gets no byte from one that listens soon asks say_hindrance(). Each say_...() writes one
 * line with what to do next, or is silent and returns false when it sees no such thing. Nothing is
 * guessed: what may not be looked at is not spoken of.
 * To add a reason: a function of this kind, its turn in say_why(), and a test.
 */
#ifndef MANHOLE_CLI_HINDRANCES_C
#define MANHOLE_CLI_HINDRANCES_C

#include "adverts.c"

/* Whether a file of a cgroup's has these words. */
static bool
has_words(const char *hierarchy, const char *cgroup, const char *file, const char *words)
{
    OWNED_BUFFER content = {.data = NULL};
    struct text path = print("/sys/fs/cgroup%s%.*s/%s", hierarchy,
                             (int)strcspn(cgroup, "\n"), cgroup, file);

    return read_file(path.text, &content) && strstr(text_of(&content), words) != NULL;
}

/* Whether the cgroup of a process is frozen, or one above it, as docker pause does that. In its
 * stat it sleeps then, or waits for a disk. */
static bool
is_frozen(pid_t pid)
{
    static const char freezer[] =
        ":freezer:";                     /* "6:freezer:/a/b", of the first version */
    static const char unified[] = "0::"; /* "0::/a/b", of the second */
    OWNED_BUFFER cgroups = {.data = NULL};

    (void)read_proc(pid, "cgroup", &cgroups);
    const char *first = strstr(text_of(&cgroups), freezer);
    const char *second = strstr(text_of(&cgroups), unified);
    return (first != NULL &&
            has_words("/freezer", first + strlen(freezer), "freezer.state", "FROZEN")) ||
           (second != NULL &&
            (has_words("", second + strlen(unified), "cgroup.events", "frozen 1") ||
             has_words("/unified", second + strlen(unified), "cgroup.events",
                       "frozen 1")));
}

/* What keeps a process from answering. */
static bool
say_hindrance(pid_t pid)
{
    enum { THREADS = 20 };
    const int number = (int)pid;

    switch (process_state(pid)) {
    case 0:
        say_error("process %d is not there", number);
        return true;
    case 'T':
        say_error("process is stopped: PID %d; 'kill -CONT %d' lets it go on", number,
                  number);
        return true;
    case 't':
        say_error("process is traced: PID %d is held by a debugger or strace; let it go "
                  "on there",
                  number);
        return true;
    case 'Z':
    case 'X':
        say_error(
            strtol(read_stat(pid, THREADS).text, NULL, 10) > 1
                ? "the main thread of process %d has ended; the others run on, but "
                  "the kernel shows nothing of such a process"
                : "process %d has ended and waits for its parent to notice; there is "
                  "nothing to look into",
            number);
        return true;
    default:
        if (is_frozen(pid)) {
            say_error("process is frozen: PID %d is in a cgroup that was paused; who did "
                      "that lets it go on, as with docker unpause",
                      number);
            return true;
        }
        return false;
    }
}

/* The name of a user, or his number where he has none. */
static struct text
user_of(uid_t uid)
{
    char names[4096];
    struct passwd entry;
    struct passwd *found = NULL;
    bool is_known =
        getpwuid_r(uid, &entry, names, sizeof(names), &found) == 0 && found != NULL;

    return is_known ? print("%s", found->pw_name) : print("%u", (unsigned)uid);
}

/* Whether it is another user's, and so for him and root alone. */
static bool
say_owner(pid_t pid)
{
    uid_t uid = 0;

    if (geteuid() == 0 || !find_uid(pid, &uid) || uid == geteuid()) {
        return false;
    }
    say_error("process %d belongs to %s; run manhole-cli as %s%s", (int)pid,
              user_of(uid).text, user_of(uid).text, uid != 0 ? ", or as root" : "");
    return true;
}

/* The same of its socket, which stays the user's that the process was when it opened it. */
static bool
say_owner_of_socket(const struct target *target)
{
    struct stat file;

    if (geteuid() == 0 || stat(target->path, &file) < 0 || file.st_uid == geteuid()) {
        return false;
    }
    say_error("the socket %s belongs to %s, as it does where process %d opened it before "
              "it changed its user; run manhole-cli as %s%s",
              quote(target->path).text, user_of(file.st_uid).text, (int)target->pid,
              user_of(file.st_uid).text, file.st_uid != 0 ? ", or as root" : "");
    return true;
}

/* The value of a variable in the environment that the process was started with, of which this is a
 * copy; NULL: there was none. */
static const char *
find_variable(const struct buffer *environment, const char *name)
{
    size_t length = strlen(name);

    for (size_t i = 0; i < environment->length; i += strlen(environment->data + i) + 1) {
        const char *variable = environment->data + i;
        if (strncmp(variable, name, length) == 0 && variable[length] == '=') {
            return variable + length + 1;
        }
    }
    return NULL;
}

static bool
has_variable(pid_t pid, const char *name)
{
    OWNED_BUFFER environment = {.data = NULL};

    (void)read_proc(pid, "environ", &environment);
    return find_variable(&environment, name) != NULL;
}

/* The program that a process runs, by the path that it was called by, which in a virtual
 * environment is more than the kernel's own. By its name alone it is called where the environment
 * is activated, which says so in a variable. */
static void
find_program(pid_t pid, char *found, size_t size)
{
    OWNED_BUFFER words = {.data = NULL};
    OWNED_BUFFER environment = {.data = NULL};
    struct text program_file = proc_path(pid, "exe");

    (void)read_proc(pid, "cmdline", &words);
    (void)read_proc(pid, "environ", &environment);
    const char *word = text_of(&words);
    const char *venv = find_variable(&environment, "VIRTUAL_ENV");
    struct text within = print("%s/bin/%s", venv != NULL ? venv : "", word);
    bool is_within = venv != NULL && access(within.text, X_OK) == 0 &&
                     is_same_file(within.text, program_file.text);
    if (word[0] == '/' || is_within) {
        (void)snprintf(found, size, "%s", word[0] == '/' ? word : within.text);
        return;
    }
    ssize_t length = readlink(program_file.text, found, size - 1);
    found[length > 0 ? length : 0] = '\0';
}

/* Finds where the Python that a process runs has python-manhole: the folder with its package. */
static bool
find_python_manhole(pid_t pid, char *found, size_t size)
{
    static const char *const places[] = {"", "/local"}; /* which is pip's on Debian */
    char python[PATH_MAX] = "";
    glob_t packages = {.gl_pathc = 0};

    find_program(pid, python, sizeof(python));
    char *folder = strstr(python, "/bin/");
    for (size_t i = 0; folder != NULL && packages.gl_pathc == 0 && i < 2; i++) {
        char pattern[PATH_MAX + 128];
        (void)snprintf(pattern, sizeof(pattern),
                       "%.32s%.*s%s/lib*/python3*/*-packages/manhole/__init__.py",
                       root_of(pid).text, (int)(folder - python), python, places[i]);
        /* NOLINTNEXTLINE(concurrency-mt-unsafe): there is one thread */
        (void)glob(pattern, 0, NULL, &packages);
    }
    bool is_found = packages.gl_pathc > 0;
    if (is_found) {
        *strrchr(packages.gl_pathv[0], '/') = '\0';
        (void)snprintf(found, size, "%s", packages.gl_pathv[0]);
    }
    globfree(&packages);
    return is_found;
}

/* Says of python-manhole that it is who answers. That opens its socket with the mode that the umask
 * gives, which is ours only by chance; so of a manhole of our own no more is asked than that. */
static void
say_python_manhole(const struct target *target)
{
    char package[PATH_MAX];
    char python[PATH_MAX];
    struct stat file;

    if (target->pid == 0 || stat(target->path, &file) < 0 ||
        (file.st_mode & 0777) == 0600 || !read_advert(target->pid).has_no_module ||
        !find_python_manhole(target->pid, package, sizeof(package))) {
        return;
    }
    find_program(target->pid, python, sizeof(python));
    (void)fprintf(stderr,
                  "%s: process %d has python-manhole, of %s, which gives a prompt and no "
                  "more. For all of it: %s -m pip uninstall manhole, install this one "
                  "there (again), and start the process anew\n",
                  program, (int)target->pid, quote(package).text, quote(python).text);
}

/* The commonest mistake gets a line of its own: the variable is there, and Python never saw it. */
static void
say_no_manhole(pid_t pid, const struct advert *advert)
{
    char python[PATH_MAX];

    if (advert->has_no_module && has_variable(pid, "PYTHONMANHOLE")) {
        find_program(pid, python, sizeof(python));
        say_error("PYTHONMANHOLE is set for process %d, but manhole is not installed in "
                  "%s, or that was started with -I, -E or -S",
                  (int)pid, quote(python).text);
    }
    else {
        say_error("process %d seems to have no manhole: it wants manhole.install(), or "
                  "PYTHONMANHOLE in its environment, when it starts; 'manhole-cli "
                  "--attach %d' puts one in",
                  (int)pid, (int)pid);
    }
}

/* After a timeout: all of this. signal: that was sent, or 0. */
static void
say_why(const struct target *target, int signal)
{
    struct target hidden = *target;
    const pid_t pid = target->pid;

    if (pid != 0 && signal != 0 && has_ended(pid)) {
        say_error("process %d has ended: signal %d (%s) has ended it, which it caught; "
                  "its own log may tell more",
                  (int)pid, signal, signal_name(signal));
        return;
    }
    if (pid == 0 || say_hindrance(pid) || say_owner(pid) || say_owner_of_socket(target)) {
        return;
    }
    struct advert advert = read_advert(pid);
    bool is_awaiting = opening_signal(&advert) != 0;
    struct text opening = describe_opening(pid, &advert);
    if (find_listening_socket(&hidden) == HIDDEN) {
        say_error("process %d listens at %s, which leads there no more: the file was "
                  "removed, or only the process sees it (nsenter -m -t %d); %s",
                  (int)pid, quote(hidden.path).text, (int)pid,
                  is_awaiting ? opening.text : "no signal opens it anew");
    }
    else if (is_awaiting) {
        say_error("process %d has a manhole that is closed: %s", (int)pid, opening.text);
    }
    else if (advert.is_there) {
        say_error("process %d has a manhole, and waits for no signal, but it does not "
                  "listen where it can be seen from here; its log tells where",
                  (int)pid);
    }
    else {
        say_no_manhole(pid, &advert);
    }
}

#endif /* MANHOLE_CLI_HINDRANCES_C */
