/* Socket: where the door is, who may come through it, and what may lie in its place. */
#include "../manhole.c"

#include "unit.h"

static int log_fd; /* to read what was logged */

/* Each test is in a directory of its own, which it leaves empty. */
static int
enter_directory(void **state)
{
    static char directory[32];
    int ends[2];
    (void)snprintf(directory, sizeof(directory), "/tmp/mh-XXXXXX");
    if (mkdtemp(directory) == NULL || chdir(directory) < 0 ||
        pipe2(ends, O_CLOEXEC | O_NONBLOCK) < 0) {
        return -1;
    }
    log_fd = ends[0];
    keep_fd(&logger.fd, ends[1]);
    logger.enabled = true;
    manhole.options.socket_path = strdup("door");
    *state = directory;
    return 0;
}

static int
leave_directory(void **state)
{
    (void)close(log_fd);
    close_kept(&logger.fd);
    logger.enabled = false;
    free(manhole.options.socket_path);
    manhole.options.socket_path = NULL;
    return chdir("/") < 0 || rmdir(*state) < 0 ? -1 : 0;
}

#define IN_DIRECTORY(test)                                                               \
  cmocka_unit_test_setup_teardown(test, enter_directory, leave_directory)

static void
assert_logged(const char *name, const char *wanted)
{
    char log[4096] = "";
    (void)!read(log_fd, log, sizeof(log) - 1);
    if (strstr(log, wanted) == NULL) {
        fail_msg("%s: the log has not '%s' but '%s'", name, wanted, log);
    }
}

/* Binds a socket and listens. Returns its descriptor. */
static int
serve(const char *path)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    (void)snprintf(address.sun_path, sizeof(address.sun_path), "%s", path);
    assert_int_equal(bind(fd, (struct sockaddr *)&address, sizeof(address)), 0);
    assert_int_equal(listen(fd, 1), 0);
    return fd;
}

/* ---- Paths ---------------------------------------------------------------------------- */

/* # stands for the process's pid. */
static const struct {
    const char *option;
    const char *path;
    bool per_process;
} paths[] = {
    {NULL, "/tmp/manhole-#", true}, {"/run/door", "/run/door", false},
    {"%(pid)s", "#", true},         {"a/%(pid)s/%(pid)s.b", "a/#/#.b", true},
    {"100%", "100%", false},        {"%%(pid)s", "%#", true},
    {"%(pid", "%(pid", false},      {"%(pid)d%s%n", "%(pid)d%s%n", false},
    {"%(PID)s", "%(PID)s", false},
};

/* The path of a row, # replaced. */
static void
write_wanted(const char *path, struct text *wanted)
{
    for (; *path != '\0'; path++) {
        if (*path == '#') {
            append_format(wanted, "%ld", (long)getpid());
        }
        else {
            append_bytes(wanted, path, 1);
        }
    }
    append_bytes(wanted, "", 1);
}

static void
pid_in_a_path_is_replaced(void **state)
{
    (void)state;
    for (size_t i = 0; i < Py_ARRAY_LENGTH(paths); i++) {
        struct text wanted = {0};
        char path[100];
        write_wanted(paths[i].path, &wanted);
        assert_int_equal(expand_path(paths[i].option, path, sizeof(path)),
                         wanted.length - 1);
        assert_string_equal(path, wanted.bytes);
        assert_int_equal(is_path_per_process(paths[i].option), paths[i].per_process);
        free_text(&wanted);
    }
}

static void
path_without_room_tells_its_length(void **state)
{
    char path[8] = ".......";
    (void)state;
    assert_int_equal(expand_path("1234567", path, sizeof(path)), 7);
    assert_string_equal(path, "1234567");
    assert_int_equal(expand_path("12345678", path, sizeof(path)), 8);
    assert_string_equal(path, "");
    assert_int_equal(expand_path("12345678", NULL, 0), 8);
}

/* ---- Peers ---------------------------------------------------------------------------- */

static void
peer_is_who_the_kernel_says(void **state)
{
    struct peer peer = {0};
    int ends[2];
    (void)state;
    assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM, 0, ends), 0);
    assert_int_equal(read_peer(ends[0], &peer), 0);
    assert_int_equal(peer.pid, getpid());
    assert_int_equal(peer.uid, geteuid());
    assert_int_equal(peer.gid, getegid());
    (void)close(ends[0]);
    (void)close(ends[1]);
}

static void
descriptor_without_peer_has_an_error(void **state)
{
    const struct {
        int fd;
        int error;
    } rows[] = {
        {-1, EBADF},
        {open("/dev/null", O_RDONLY | O_CLOEXEC), ENOTSOCK},
        {socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0), ENOTCONN},
        {socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0), ENOTCONN},
    };
    (void)state;
    for (size_t i = 0; i < Py_ARRAY_LENGTH(rows); i++) {
        struct peer peer = {0};
        assert_int_equal(read_peer(rows[i].fd, &peer), -1);
        assert_int_equal(errno, rows[i].error);
        (void)close(rows[i].fd);
    }
}

static void
root_and_the_own_user_may_enter(void **state)
{
    const struct peer root = {.pid = 1, .uid = 0, .gid = 1234};
    const struct peer own = {.pid = 0, .uid = geteuid(), .gid = 1234};
    const struct peer other = {.pid = getpid(), .uid = geteuid() + 1, .gid = getegid()};
    const struct peer nobody = {.pid = 0, .uid = (uid_t)-1, .gid = (gid_t)-1};
    (void)state;
    assert_true(may_enter(&root));
    assert_true(may_enter(&own));
    assert_false(may_enter(&other));
    assert_false(may_enter(&nobody));
}

static void
refusal_names_both_sides(void **state)
{
    const struct peer peer = {.pid = 7, .uid = 4294967294, .gid = 9};
    char text[160];
    char wanted[160];
    (void)state;
    describe_refusal(&peer, text, sizeof(text));
    (void)snprintf(wanted, sizeof(wanted),
                   "Can't accept client with PID:7 UID:4294967294 GID:9. It doesn't "
                   "match the current EUID:%ld or ROOT.",
                   (long)geteuid());
    assert_string_equal(text, wanted);
}

/* ---- What lies at the path ------------------------------------------------------------- */

static void
put_dead_socket(const char *path)
{
    (void)close(serve(path));
}

static void
put_file(const char *path)
{
    (void)close(open(path, O_CREAT | O_WRONLY | O_CLOEXEC, 0600));
}

static void
put_directory(const char *path)
{
    (void)mkdir(path, 0700);
}

static void
put_link_to_nothing(const char *path)
{
    (void)!symlink("nothing", path);
}

static void
put_fifo(const char *path)
{
    (void)mkfifo(path, 0600);
}

static const struct obstacle {
    const char *name;
    void (*put)(const char *path);
    bool stays;
} obstacles[] = {
    {"a dead socket", put_dead_socket, false},
    {"a file", put_file, true},
    {"a directory", put_directory, true},
    {"a symbolic link", put_link_to_nothing, true},
    {"a fifo", put_fifo, true},
};

static void
only_a_dead_socket_is_removed(void **state)
{
    (void)state;
    for (size_t i = 0; i < Py_ARRAY_LENGTH(obstacles); i++) {
        struct stat there;
        obstacles[i].put("door");
        if ((open_doors() == 0) != obstacles[i].stays) {
            fail_msg("%s is in the way", obstacles[i].name);
        }
        assert_logged(obstacles[i].name, obstacles[i].stays
                                             ? "door: something that is not a socket is "
                                               "there; move it away"
                                             : "Manhole UDS path: door");
        assert_int_equal(is_open(), !obstacles[i].stays);
        close_doors();
        assert_int_equal(lstat("door", &there), obstacles[i].stays ? 0 : -1);
        (void)remove("door");
    }
}

static void
link_to_a_dead_socket_leaves_both(void **state)
{
    (void)state;
    put_dead_socket("socket");
    assert_int_equal(symlink("socket", "door"), 0);
    assert_int_equal(open_doors(), 0);
    assert_int_equal(unlink("door"), 0);
    assert_int_equal(unlink("socket"), 0);
}

/* The rest of a process that another one took the number of, or of a test's. */
static void
socket_of_our_own_process_is_replaced(void **state)
{
    int before = serve("door");
    (void)state;
    assert_int_equal(open_doors(), 1);
    close_doors();
    (void)close(before);
}

/* Runs a child that serves "door" until it is told to end. Returns its pid. */
static pid_t
start_server(int *told)
{
    int ready[2];
    int end[2];
    char byte = 0;
    pid_t child = 0;
    assert_int_equal(pipe2(ready, O_CLOEXEC), 0);
    assert_int_equal(pipe2(end, O_CLOEXEC), 0);
    child = fork();
    if (child == 0) {
        (void)serve("door");
        (void)close(end[1]);
        (void)close(ready[1]);
        _exit(read(end[0], &byte, 1) != 0);
    }
    (void)close(ready[1]);
    (void)close(end[0]);
    assert_int_equal(read(ready[0], &byte, 1), 0);
    (void)close(ready[0]);
    *told = end[1];
    return child;
}

static void
socket_that_another_process_serves_is_left(void **state)
{
    int told = -1;
    pid_t child = start_server(&told);
    (void)state;
    for (int i = 0; i < 4; i++) { /* also when its queue is full */
        assert_int_equal(open_doors(), 0);
        assert_logged("served", "door: another process answers there; use another");
    }
    (void)close(told);
    assert_int_equal(waitpid(child, NULL, 0), child);
    assert_int_equal(open_doors(), 1);
    close_doors();
}

static void
socket_of_another_user_is_left(void **state)
{
    (void)state;
    put_dead_socket("door");
    if (chown("door", geteuid() + 1, getegid()) < 0) {
        (void)unlink("door");
        SKIP_UNIT_TEST("needs root");
    }
    assert_int_equal(open_doors(), 0);
    assert_logged("another's",
                  "door: a socket of another user is there; have it removed");
    assert_int_equal(unlink("door"), 0);
}

/* ---- The door --------------------------------------------------------------------------- */

static void
use_path(const char *path)
{
    free(manhole.options.socket_path);
    manhole.options.socket_path = strdup(path);
}

static void
door_that_cannot_be_opened_is_one_log_line(void **state)
{
    static const struct {
        const char *path;
        const char *line;
    } rows[] = {
        {"nowhere/door", "Cannot listen at nowhere/door: No such file or directory\n"},
        {"/dev/null/door", "Cannot listen at /dev/null/door: Not a directory\n"},
        {"/proc/door", "Cannot listen at /proc/door: "},
    };
    int before = dup(0);
    int after = -1;
    (void)state;
    for (size_t i = 0; i < Py_ARRAY_LENGTH(rows); i++) {
        use_path(rows[i].path);
        assert_int_equal(open_doors(), 0);
        assert_logged(rows[i].path, rows[i].line);
        assert_false(is_open());
        assert_false(atomic_load(&manhole.doors[0].bound));
    }
    (void)close(before);
    after = dup(0);
    assert_int_equal(after, before); /* no descriptor is left open */
    (void)close(after);
}

static void
door_is_the_owner_s_alone_whatever_the_umask(void **state)
{
    static const mode_t masks[] = {0, 022, 077};
    (void)state;
    for (size_t i = 0; i < Py_ARRAY_LENGTH(masks); i++) {
        mode_t before = umask(masks[i]);
        struct stat there = {0};
        assert_int_equal(open_doors(), 1);
        (void)umask(before);
        assert_int_equal(lstat("door", &there), 0);
        assert_int_equal(there.st_mode, S_IFSOCK | 0600);
        close_doors();
        assert_int_equal(lstat("door", &there), -1);
    }
}

static void
door_that_was_replaced_is_lost_and_left(void **state)
{
    struct stat there;
    (void)state;
    assert_int_equal(open_doors(), 1);
    assert_false(is_path_lost(&manhole.doors[0]));
    assert_int_equal(rename("door", "kept"), 0); /* or the inode may come again */
    assert_true(is_path_lost(&manhole.doors[0]));
    put_file("door");
    assert_true(is_path_lost(&manhole.doors[0]));
    close_doors();
    assert_int_equal(lstat("door", &there), 0);
    assert_int_equal(unlink("door"), 0);
    assert_int_equal(unlink("kept"), 0);
}

static void
path_is_removed_once(void **state)
{
    struct stat there;
    (void)state;
    assert_int_equal(open_doors(), 1);
    assert_int_equal(link("door", "kept"), 0);
    remove_paths();
    assert_int_equal(lstat("door", &there), -1);
    assert_int_equal(rename("kept", "door"), 0); /* the very same inode */
    remove_paths();
    close_doors();
    assert_int_equal(unlink("door"), 0);
}

static void
handle_signal(int signum)
{
    (void)signum;
}

static bool
is_handled_by(int signum, void (*handler)(int))
{
    struct sigaction current;
    return sigaction(signum, NULL, &current) == 0 && current.sa_handler == handler;
}

/* What the application has set, before or since, is the application's. */
static void
only_default_actions_are_replaced_while_the_door_is_open(void **state)
{
    const struct sigaction theirs = {.sa_handler = handle_signal};
    const struct sigaction ignored = {.sa_handler = SIG_IGN};
    const struct sigaction usual = {.sa_handler = SIG_DFL};
    (void)state;
    assert_int_equal(sigaction(SIGPIPE, &usual, NULL), 0); /* a parent may ignore it */
    assert_int_equal(sigaction(SIGHUP, &theirs, NULL), 0);
    assert_int_equal(sigaction(SIGQUIT, &ignored, NULL), 0);
    assert_int_equal(open_doors(), 1);
    assert_true(is_handled_by(SIGTERM, on_death));
    assert_true(is_handled_by(SIGUSR2, on_death));
    assert_int_equal(sigaction(SIGUSR2, &theirs, NULL), 0);
    close_doors();
    assert_true(is_handled_by(SIGTERM, SIG_DFL));
    assert_true(is_handled_by(SIGUSR2, handle_signal));
    assert_true(is_handled_by(SIGHUP, handle_signal));
    assert_true(is_handled_by(SIGQUIT, SIG_IGN));
    assert_true(is_handled_by(SIGPIPE, SIG_DFL));
    for (size_t i = 0; i < Py_ARRAY_LENGTH(death_signals); i++) {
        (void)sigaction(death_signals[i], &usual, NULL);
    }
}

int
main(void)
{
    static const struct CMUnitTest tests[] = {
        cmocka_unit_test(pid_in_a_path_is_replaced),
        cmocka_unit_test(path_without_room_tells_its_length),
        cmocka_unit_test(peer_is_who_the_kernel_says),
        cmocka_unit_test(descriptor_without_peer_has_an_error),
        cmocka_unit_test(root_and_the_own_user_may_enter),
        cmocka_unit_test(refusal_names_both_sides),
        IN_DIRECTORY(only_a_dead_socket_is_removed),
        IN_DIRECTORY(link_to_a_dead_socket_leaves_both),
        IN_DIRECTORY(socket_of_our_own_process_is_replaced),
        IN_DIRECTORY(socket_that_another_process_serves_is_left),
        IN_DIRECTORY(socket_of_another_user_is_left),
        IN_DIRECTORY(door_that_cannot_be_opened_is_one_log_line),
        IN_DIRECTORY(door_is_the_owner_s_alone_whatever_the_umask),
        IN_DIRECTORY(door_that_was_replaced_is_lost_and_left),
        IN_DIRECTORY(path_is_removed_once),
        IN_DIRECTORY(only_default_actions_are_replaced_while_the_door_is_open),
    };
    return RUN_UNIT_TESTS(tests);
}
