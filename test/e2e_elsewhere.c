/* e2e_elsewhere.c - manhole-cli on another machine (--host, by ssh) or in a container (--exec): the
 * same options, streams and statuses. The other machine is this one, by Debian's sshd on loopback.
 */
#include "support.h"

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define CLI(...) LIST(build_path("manhole-cli"), __VA_ARGS__)

static const char *
start_app(void)
{
    struct process *app = start_target(TARGET(""));
    wait_until_ready(app);
    return format_text("%d", (int)app->pid);
}

/* PATH with the manhole-cli of this build and programs of the test's own before all others. */
static const char *
path_here(void)
{
    /* NOLINTNEXTLINE(concurrency-mt-unsafe): there is one thread */
    const char *path = getenv("PATH");
    return format_text("PATH=%s:%s:/usr/sbin:%s", test_path("bin"), build_path("."),
                       path);
}

static int
run_cli(const char *const argv[], const char *input, const char **out, const char **err)
{
    return run_process(start_process(.argv = argv, .env = LIST(path_here())), input, out,
                       err);
}

static void
run_or_fail(const char *command)
{
    const char *err = NULL;
    if (run_process(
            start_process(.argv = LIST("sh", "-c", command), .env = LIST(path_here())),
            NULL, NULL, &err) != 0) {
        fail_msg("%s: %s", command, err);
    }
}

/* A program in the test's own bin, before all others in PATH. */
static void
write_program(const char *name, const char *text)
{
    (void)mkdir(test_path("bin"), 0700);
    const char *path = write_file(format_text("bin/%s", name), text);
    assert_int_equal(chmod(path, 0700), 0);
}

/* An sshd for this user on loopback, and an ssh that goes there as host "there". */
static void
start_sshd(void)
{
    if (geteuid() != 0) {
        skip_test("sshd wants to be root");
    }
    if (access("/usr/sbin/sshd", X_OK) != 0) {
        skip_test("no sshd");
    }
    int port = free_port();
    run_or_fail("mkdir -p /run/sshd && ssh-keygen -q -t ed25519 -N '' -f host && "
                "ssh-keygen -q -t ed25519 -N '' -f user");
    const char *config =
        format_text("Port %d\nListenAddress 127.0.0.1\nHostKey %s\nUsePAM no\n"
                    "AuthorizedKeysFile %s\nStrictModes no\nPidFile none\n"
                    "PermitRootLogin yes\nSetEnv %s\n",
                    port, test_path("host"), test_path("user.pub"), path_here());
    (void)start_process(.argv = LIST("/usr/sbin/sshd", "-D", "-e", "-f",
                                     write_file("sshd_config", config)));
    write_program("ssh", format_text("#!/bin/sh\nexec /usr/bin/ssh -F %s \"$@\"\n",
                                     test_path("ssh_config")));
    (void)write_file(
        "ssh_config",
        format_text("Host there\nHostName 127.0.0.1\nPort %d\nIdentityFile %s\n"
                    "UserKnownHostsFile %s\nStrictHostKeyChecking no\nLogLevel ERROR\n"
                    "BatchMode yes\nConnectionAttempts 50\n",
                    port, test_path("user"), test_path("known")));
}

static void
code_runs_on_another_machine(void)
{
    const char *out = NULL;
    const char *err = NULL;
    start_sshd();
    const char *pid = start_app();
    const char *code = "import sys; print(\"it's\", sys.argv, input()); sys.exit(7)";
    assert_int_equal(run_cli(CLI("--host", "there", pid, "-c", code, "a b", "$HOME"),
                             "typed\n", &out, &err),
                     7);
    assert_string_equal(out, "it's ['-c', 'a b', '$HOME'] typed\n");
    assert_string_equal(err, "");
}

static void
script_that_is_here_runs_there(void)
{
    const char *out = NULL;
    start_sshd();
    const char *pid = start_app();
    const char *script = write_file("here.py", "import sys\nprint(sys.argv[1:])\n");
    assert_int_equal(
        run_cli(CLI("--host=there", pid, "-f", script, "x"), NULL, &out, NULL), 0);
    assert_string_equal(out, "['x']\n");
}

static void
stacks_come_from_another_machine(void)
{
    const char *out = NULL;
    start_sshd();
    const char *pid = start_app();
    assert_int_equal(run_cli(CLI("--host", "there", pid, "--stacks"), NULL, &out, NULL),
                     0);
    assert_contains(out, format_text("ProcessID=%s,", pid));
}

static void
console_at_a_terminal_is_one_there_too(void)
{
    start_sshd();
    const char *pid = start_app();
    struct process *cli =
        start_process(.argv = CLI("--host", "there", pid), .terminal = true,
                      .env = LIST("TERM=dumb", path_here()));
    wait_for_text(cli, OUT, ">>> ", DEADLINE);
    write_stdin(cli, "import os; os.getpid()\n");
    wait_for_text(cli, OUT, format_text("\r\n%s\r\n>>> ", pid), DEADLINE);
    write_stdin(cli, "\004");
    assert_int_equal(wait_for_exit(cli, DEADLINE), 0);
}

static void
ssh_that_is_missing_is_told(void)
{
    if (is_wrapped()) {
        skip_test("the wrapper would be missing, too");
    }
    const char *err = NULL;
    struct process *cli =
        start_process(.argv = CLI("--host", "there", "1"), .env = LIST("PATH=/nowhere"));
    assert_int_equal(run_process(cli, NULL, NULL, &err), 1);
    assert_string_equal(
        err, "manhole-cli: error: cannot run ssh: No such file or directory; is it "
             "installed?\n");
}

static void
ssh_that_is_refused_says_it_itself(void)
{
    const char *err = NULL;
    require_program("ssh");
    write_program(
        "ssh", format_text("#!/bin/sh\nexec /usr/bin/ssh -p %d -o BatchMode=yes \"$@\"\n",
                           free_port()));
    assert_int_equal(run_cli(CLI("--host", "127.0.0.1", "1"), NULL, NULL, &err), 255);
    assert_contains(err, "Connection refused");
}

static void
host_that_looks_like_an_option_is_none(void)
{
    const char *out = NULL;
    write_program("ssh", "#!/bin/sh\nfor word; do echo \"<$word>\"; done\n");
    assert_int_equal(run_cli(CLI("--host=-oProxyCommand=x", "1"), NULL, &out, NULL), 0);
    assert_string_equal(out, "<-T>\n<-->\n<-oProxyCommand=x>\n< 'manhole-cli' '1'>\n");
}

/* PIDs behind -c would be arguments of the code, and code that is empty must not be lost. */
static void
words_mean_over_there_what_they_mean_here(void)
{
    static const struct {
        const char *words[6];
        const char *sent;
    } rows[] = {
        {{"1", "2", "-c", "x"}, " 'manhole-cli' '1' '2' '-c' 'x'"},
        {{"-t5", "1", "-c", "", "a"},
         " 'manhole-cli' '1' '--timeout=5' '-c' '' '--' 'a'"},
        {{"1", "-c", "-c", "--", "x"}, " 'manhole-cli' '1' '-c' '-c' '--' 'x'"},
        {{"-1t=5", "1", "-c==x"}, " 'manhole-cli' '1' '--timeout=5' '-USR1' '-c' '=x'"},
        {{"--match==x", "--stacks"}, " 'manhole-cli' '--stacks' '--match==x'"},
    };
    write_program("ssh", "#!/bin/sh\necho \"<$4>\"\n");
    for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
        const char *const *words = rows[i].words;
        const char *out = NULL;
        assert_int_equal(run_cli(CLI("--host", "there", words[0], words[1], words[2],
                                     words[3], words[4]),
                                 NULL, &out, NULL),
                         0);
        assert_string_equal(out, format_text("<%s>\n", rows[i].sent));
    }
}

static void
any_command_that_gives_a_pipe_will_do(void)
{
    const char *out = NULL;
    const char *pid = start_app();
    const char *code = "import sys; print(sys.argv, \"'\", input()); sys.exit(9)";
    assert_int_equal(
        run_cli(CLI("--exec", "env A=1", pid, "-c", code, "$x y"), "typed\n", &out, NULL),
        9);
    assert_string_equal(out, "['-c', '$x y'] ' typed\n");
}

static void
console_comes_through_a_pipe(void)
{
    const char *out = NULL;
    const char *pid = start_app();
    assert_int_equal(run_cli(CLI("--exec", "env", pid), "print(6 * 7)\n", &out, NULL), 0);
    assert_contains(out, ">>> 42\n");
}

int
main(void)
{
    static const struct test_case tests[] = {
        TEST(code_runs_on_another_machine),
        TEST(script_that_is_here_runs_there),
        TEST(stacks_come_from_another_machine),
        TEST(console_at_a_terminal_is_one_there_too),
        TEST(ssh_that_is_missing_is_told),
        TEST(ssh_that_is_refused_says_it_itself),
        TEST(host_that_looks_like_an_option_is_none),
        TEST(words_mean_over_there_what_they_mean_here),
        TEST(any_command_that_gives_a_pipe_will_do),
        TEST(console_comes_through_a_pipe),
    };
    return RUN_TESTS(tests);
}
