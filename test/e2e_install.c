/* e2e_install.c - installing, in all its ways, and PYTHONMANHOLE through the manhole.pth that is
 * installed. Nothing here needs a network.
 */
#include "support.h"

#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

/* Without what a sanitizer's run preloads: compilers and pip are not under test. */
#define PLAIN LIST("LD_PRELOAD", "PYTHONPATH", "PYTHONUSERBASE")

/* Runs make on the sources, with a build folder of these tests' own, quick to make. Returns its
 * status. */
static int
try_make(const char *target, const char *python_path, const char *prefix,
         const char *destdir, const char **out, const char **err)
{
    struct process *make =
        start_process(.argv = LIST("make", "--silent", "-C", source_path("."), target,
                                   "CFLAGS=-O0",
                                   format_text("BUILD_ROOT=%s", build_path("install")),
                                   format_text("PYTHON=%s", python_path),
                                   format_text("PREFIX=%s", prefix),
                                   format_text("DESTDIR=%s", destdir)),
                      .env = PLAIN);
    return run_process(make, NULL, out, err);
}

/* Returns what it says. */
static const char *
run_make(const char *target, const char *python_path, const char *prefix,
         const char *destdir)
{
    const char *out;
    const char *err;
    if (try_make(target, python_path, prefix, destdir, &out, &err) != 0) {
        fail_msg("make %s: %s", target, err);
    }
    return out;
}

/* A new virtual environment in the test's directory. Returns the path of its python. */
static const char *
make_virtual_environment(void)
{
    const char *python_path = test_path("venv/bin/python");
    struct process *venv =
        start_process(.argv = LIST(python(), "-m", "venv", "--without-pip",
                                   "--system-site-packages", test_path("venv")),
                      .env = PLAIN);
    assert_int_equal(run_process(venv, NULL, NULL, NULL), 0);
    return python_path;
}

/* Where packages go that are installed for this Python. */
static const char *
packages_of(const char *python_path)
{
    const char *out;
    const char *ask = "import sysconfig; print(sysconfig.get_path('platlib'), end='')";
    struct process *asked =
        start_process(.argv = LIST(python_path, "-c", ask), .env = PLAIN);
    assert_int_equal(run_process(asked, NULL, &out, NULL), 0);
    return out;
}

/* What python-manhole's own installation leaves, with this program as its module. */
static void
put_python_manhole(const char *python_path, const char *program)
{
    const char *folder = packages_of(python_path) + strlen(test_path(""));
    assert_int_equal(mkdir(test_path(format_text("%s/manhole", folder)), 0755), 0);
    (void)write_file(format_text("%s/manhole/__init__.py", folder), program);
    folder = format_text("%s/manhole-1.8.1.dist-info", folder);
    assert_int_equal(mkdir(test_path(folder), 0755), 0);
    (void)write_file(format_text("%s/METADATA", folder),
                     "Metadata-Version: 2.1\nName: manhole\nVersion: 1.8.1\n");
}

/* The files below a folder whose paths say manhole, one a line, sorted. */
static const char *
installed_files(const char *folder)
{
    const char *out;
    const char *find =
        format_text("cd %s && find . -type f -path '*manhole*' | sort", folder);
    assert_int_equal(run_command(LIST("sh", "-c", find), NULL, &out, NULL), 0);
    return out;
}

/* What a program prints about the module, started so with PYTHONMANHOLE=text. */
static const char *
run_with_manhole(const char *python_path, const char *text, const char **err)
{
    const char *out;
    const char *look =
        "import sys; print('imported' if 'manhole' in sys.modules else 'not')";
    struct process *app =
        start_process(.argv = LIST(python_path, "-c", look),
                      .env = LIST("PYTHONPATH", "PYTHONUSERBASE",
                                  format_text("PYTHONMANHOLE=%s", text)));
    assert_int_equal(run_process(app, NULL, &out, err), 0);
    return out;
}

/* ---- make install ------------------------------------------------------------------ */

static void
install_under_destdir_and_prefix_puts_a_package_there(void)
{
    const char *root = test_path("root");
    run_make("install", python(), "/opt/my tools", root);
    const char *files = installed_files(root);
    assert_matches(files, "^\\./opt/my tools/bin/manhole-cli$");
    assert_matches(
        files, "^\\./opt/my tools/lib/python3\\.[0-9]+t?/site-packages/manhole\\.pth$");
    assert_matches(files, "/site-packages/manhole/__init__\\.cpython-.*\\.so$");
    assert_contains(files, "/site-packages/manhole/__init__.pyi\n");
    assert_contains(files, "/site-packages/manhole/__main__.py\n");
    assert_contains(files, "/site-packages/manhole/py.typed\n");
}

static void
uninstall_takes_away_all_that_install_brought(void)
{
    const char *root = test_path("root");
    run_make("install", python(), "", root);
    assert_contains(installed_files(root), "/manhole-cli\n");
    run_make("uninstall", python(), "", root);
    assert_string_equal(installed_files(root), "");
}

static void
install_for_debian_under_usr_local_uses_dist_packages(void)
{
    const char *root = test_path("root");
    assert_not_contains(run_make("install", debian_python(), "/usr/local", root),
                        "completion");
    const char *files = installed_files(root);
    assert_matches(files,
                   "^\\./usr/local/lib/python3\\.[0-9]+/dist-packages/manhole\\.pth$");
    assert_matches(files, "^\\./usr/local/bin/manhole-cli$");
}

/* A Python that says it is 3.18, whose site reads no code from .pth files, but .start files: of
 * the folder that STAND_IN names, if it is there. Returns the path of its program. */
static const char *
make_stand_in(void)
{
    const char *program = test_path("stand-in/python");
    assert_int_equal(mkdir(test_path("stand-in"), 0755), 0);
    write_file("stand-in/sitecustomize.py",
               "import os, pkgutil, sys, sysconfig\n" /* which asks for the version */
               "sys.version_info = (3, 18, 0, 'final', 0)\n"
               "folder = os.environ.get('STAND_IN')\n"
               "for name in os.listdir(folder) if folder else ():\n"
               "    if name.endswith('.start'):\n"
               "        sys.path.append(folder)\n"
               "        for line in open(os.path.join(folder, name)):\n"
               "            if line.strip() and line[0] != '#':\n"
               "                pkgutil.resolve_name(line.strip())()\n");
    write_file("stand-in/python", format_text("#!/bin/sh\nPYTHONPATH=%s exec %s \"$@\"\n",
                                              test_path("stand-in"), python()));
    assert_int_equal(chmod(program, 0755), 0);
    return program;
}

static void
install_from_3_18_brings_a_start_file_and_no_pth(void)
{
    const char *err;
    const char *stand_in = make_stand_in();
    const char *root = test_path("root");
    run_make("install", stand_in, "/opt/tools", root);
    const char *files = installed_files(root);
    assert_contains(files, "/site-packages/manhole.start\n");
    assert_not_contains(files, "manhole.pth");
    const char *find = format_text("ls -d %s/opt/tools/lib/python3*/site-packages", root);
    const char *folder;
    assert_int_equal(run_command(LIST("sh", "-c", find), NULL, &folder, NULL), 0);
    folder = format_text("STAND_IN=%.*s", (int)strcspn(folder, "\n"), folder);
    struct process *app =
        start_process(.argv = LIST(stand_in, "-c", "pass"),
                      .env = LIST(folder, "PYTHONUSERBASE", "PYTHONMANHOLE="));
    assert_int_equal(run_process(app, NULL, NULL, &err), 0);
    assert_contains(err, "Manhole UDS path: ");
    app = start_process(.argv = LIST(stand_in, "-c", "pass"),
                        .env = LIST(folder, "PYTHONUSERBASE", "PYTHONMANHOLE"));
    assert_int_equal(run_process(app, NULL, NULL, &err), 0);
    assert_string_equal(err, "");
    run_make("uninstall", stand_in, "/opt/tools", root);
    assert_string_equal(installed_files(root), "");
}

static void
virtual_environment_has_module_variable_and_client(void)
{
    const char *out;
    const char *err;
    const char *venv_python = make_virtual_environment();
    const char *script = test_path("venv/share/bash-completion/completions/manhole-cli");
    assert_contains(run_make("install", venv_python, "", ""),
                    format_text("completion: . '%s'\n", script));
    assert_path_exists(script);
    assert_string_equal(run_with_manhole(venv_python, "", &err), "imported\n");
    assert_matches(
        err, "^Manhole\\[[0-9]+:[0-9.]+\\]: Manhole UDS path: /tmp/manhole-[0-9]+$");
    assert_not_contains(err, "Failed");
    assert_int_equal(
        run_command(LIST(test_path("venv/bin/manhole-cli"), "--help"), NULL, &out, NULL),
        0);
    assert_contains(out, "usage: manhole-cli");
}

/* With the variable that gives the Python a manhole of its own, whose socket goes. */
static void
python_m_runs_the_client_that_was_installed_with_the_module(void)
{
    const char *venv_python = make_virtual_environment();
    run_make("install", venv_python, "", "");
    struct process *app = start_target(TARGET("locals={'answer': 42}"));
    wait_until_ready(app);
    const char *pid = format_text("%d", (int)app->pid);
    const char *const client[] = {venv_python,     "-m", "manhole", pid, "-c",
                                  "print(answer)", NULL};
    struct process *run =
        start_process(.argv = client,
                      .env = LIST("PYTHONPATH", "PYTHONUSERBASE", "PYTHONMANHOLE="));
    const char *out;
    assert_int_equal(run_process(run, NULL, &out, NULL), 0);
    assert_string_equal(out, "42\n");

    assert_int_equal(unlink(test_path("venv/bin/manhole-cli")), 0);
    const char *err;
    run = start_process(.argv = client, .env = LIST("PYTHONPATH", "PYTHONUSERBASE"));
    assert_int_equal(run_process(run, NULL, NULL, &err), 1);
    assert_contains(err, "python -m manhole: no bin/manhole-cli in a folder around ");
}

static void
install_replaces_the_single_file_of_former_versions(void)
{
    const char *root = test_path("root");
    run_make("install", python(), "/opt", root);
    const char *move =
        "cd \"$0\"/opt/lib/python3*/site-packages &&"
        "for file in manhole/__init__.*.so; do mv $file manhole${file##*__init__};"
        "done";
    assert_int_equal(run_command(LIST("sh", "-c", move, root), NULL, NULL, NULL), 0);
    assert_matches(installed_files(root), "/site-packages/manhole\\.cpython-.*\\.so$");
    run_make("install", python(), "/opt", root);
    assert_not_contains(installed_files(root), "/site-packages/manhole.cpython");
}

/* ---- Beside python-manhole ---------------------------------------------------------- */

static void
install_stops_where_python_manhole_is(void)
{
    const char *venv_python = make_virtual_environment();
    const char *err;
    put_python_manhole(venv_python, "");
    assert_int_equal(try_make("install", venv_python, "", "", NULL, &err), 2);
    assert_contains(err, format_text("manhole 1.8.1 is installed in %s: python-manhole",
                                     packages_of(venv_python)));
    assert_contains(err, format_text("    %s -m pip uninstall manhole\n", venv_python));
    assert_no_path(test_path("venv/bin/manhole-cli"));
}

static void
install_elsewhere_warns_of_python_manhole_on_the_path(void)
{
    const char *venv_python = make_virtual_environment();
    const char *err;
    put_python_manhole(venv_python, "");
    const char *prefix = test_path("elsewhere");
    assert_int_equal(try_make("install", venv_python, prefix, "", NULL, &err), 0);
    assert_contains(err, format_text("warning: manhole 1.8.1 is installed in %s, too",
                                     packages_of(venv_python)));
    assert_path_exists(test_path("elsewhere/bin/manhole-cli"));
}

/* A program that serves its socket as python-manhole does, as far as the client can see. */
static void
client_says_that_a_process_has_python_manhole(void)
{
    const char *venv_python = make_virtual_environment();
    const char *err;
    put_python_manhole(venv_python, "import os, socket\n"
                                    "os.umask(0o22)\n"
                                    "path = '/tmp/manhole-%d' % os.getpid()\n"
                                    "listener = socket.socket(socket.AF_UNIX)\n"
                                    "listener.bind(path)\n"
                                    "listener.listen()\n" READY "for i in range(2):\n"
                                    "    card = '" LISTING "'\n"
                                    "    while '" LISTING "' in str(card):\n"
                                    "        client, card = listener.accept()\n"
                                    "    client.close()\n"
                                    "os.unlink(path)\n");
    const char *activated = format_text("export VIRTUAL_ENV='%s' PATH=\"%s:$PATH\"\n"
                                        "exec python -c 'import manhole'",
                                        test_path("venv"), test_path("venv/bin"));
    struct process *app =
        start_process(.argv = LIST("sh", "-c", activated), .env = PLAIN);
    wait_until_ready(app);
    const char *cli = build_path("manhole-cli");
    const char *pid = format_text("%d", (int)app->pid);
    (void)run_command(LIST(cli, pid), "", NULL, &err);
    assert_contains(err, format_text("manhole-cli: process %s has python-manhole, of "
                                     "'%s/manhole', which gives a prompt and no more. "
                                     "For all of it: '%s' -m pip uninstall manhole, ",
                                     pid, packages_of(venv_python), venv_python));
    (void)run_command(LIST(cli, "--quiet", pid), "", NULL, &err);
    assert_not_contains(err, "python-manhole");
    assert_int_equal(wait_for_exit(app, DEADLINE), 0);
}

/* ---- Without libedit ---------------------------------------------------------------- */

/* The compiler of a machine on which its header is missing. */
static void
build_and_client_without_libedit_say_what_is_lost(void)
{
    const char *compiler = test_path("without-libedit");
    (void)write_file("without-libedit",
                     "#!/bin/sh\ncase \"$*\" in '-E -') exit 1;; esac\nexec cc \"$@\"\n");
    assert_int_equal(chmod(compiler, 0755), 0);
    const char *build =
        "set -- -C \"$0\" CC=\"$1\" PYTHON=\"$2\" CFLAGS=-O0 BUILD_ROOT=\"$PWD\"\n"
        "make -s \"$@\" \"$(make -s \"$@\" where)/manhole-cli\" && make -s \"$@\" where";
    struct process *make = start_process(.argv = LIST("sh", "-c", build, source_path("."),
                                                      compiler, python()),
                                         .env = PLAIN);
    const char *out;
    const char *err;
    assert_int_equal(run_process(make, NULL, &out, &err), 0);
    assert_contains(err, "libedit (histedit.h) is missing");
    assert_contains(err, "apt-get install libedit-dev");

    const char *cli = format_text("%.*s/manhole-cli", (int)strcspn(out, "\n"), out);
    struct process *app = start_target(TARGET(""));
    wait_until_ready(app);
    struct process *console =
        start_process(.argv = LIST(cli, format_text("%d", (int)app->pid)),
                      .terminal = true);
    (void)wait_for_text(console, OUT, "built without libedit: no line editing", DEADLINE);
    (void)wait_for_text(console, OUT, ">>> ", DEADLINE);
    write_stdin(console, "\x04");
    assert_int_equal(wait_for_exit(console, DEADLINE), 0);
}

static void
tool_that_is_missing_is_named_with_the_command_that_brings_it(void)
{
    static const struct {
        const char *command;
        const char *advice;
    } rows[] = {
        {"make CC=/no/cc", "/no/cc is missing; on Debian: apt-get install gcc\n"},
        {"make PYTHON=/no/python", "/no/python does not run; say PYTHON=...\n"},
        {"PATH=/no \"$0\" -c 'import build_wheel; build_wheel.make_wheel(\"/no\")'",
         "make is missing; on Debian: apt-get install make\n"},
        {"PATH=/no /bin/bash ./build_deb.sh",
         "dpkg-deb is missing; on Debian: apt-get install dpkg-dev binutils gzip\n"},
    };
    for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
        const char *line =
            format_text("cd '%s' && %s", source_path("."), rows[i].command);
        struct process *build =
            start_process(.argv = LIST("sh", "-c", line, python()),
                          .env = LIST("LD_PRELOAD", "PYTHONPATH", "PYTHONUSERBASE",
                                      "PYTHONDONTWRITEBYTECODE=1",
                                      format_text("BUILD_ROOT=%s", test_directory())));
        const char *err;
        assert_int_not_equal(run_process(build, NULL, NULL, &err), 0);
        assert_contains(err, rows[i].advice);
    }
}

/* Each of which manhole-cli takes; and what bash then shows of some of them. */
static void
bash_completes_signals_by_the_names_that_are_taken(void)
{
    static const char script[] =
        ". \"$1/completion/manhole-cli.bash\"\n"
        "complete_words() {\n"
        "    COMP_WORDS=(manhole-cli \"$@\") COMP_CWORD=$# COMPREPLY=()\n"
        "    _manhole_cli\n"
        "    echo \"$* => ${COMPREPLY[*]}\"\n"
        "}\n"
        "complete_words -s RT; complete_words -s us; complete_words --signal = SIGUS\n"
        "complete_words -s '' >/dev/null\n"
        "for name in \"${COMPREPLY[@]}\"; do\n"
        "    \"$2\" -s \"$name\" 2>&1 | grep 'Invalid signal'\n"
        "done\n"
        "echo ${#COMPREPLY[@]}\n";
    const char *out;
    require_program("bash");
    assert_int_equal(run_command(LIST("bash", "-c", script, "bash", source_path("."),
                                      build_path("manhole-cli")),
                                 NULL, &out, NULL),
                     0);
    assert_matches(out, "^-s RT => RTMIN RTMAX\n-s us => USR1 USR2\n"
                        "--signal = SIGUS => SIGUSR1 SIGUSR2\n[0-9]{2}\n");
}

static void
pip_install_needs_no_network_and_brings_the_same(void)
{
    const char *err;
    const char *venv_python = make_virtual_environment();
    const char *const pip[] = {venv_python,      "-m", "pip", "install", "--no-index",
                               source_path("."), NULL};
    if (run_command(LIST(venv_python, "-c", "import pip"), NULL, NULL, NULL) != 0) {
        skip_test("%s has no pip", python());
    }
    struct process *installation =
        start_process(.argv = pip,
                      .env = LIST("LD_PRELOAD", "PYTHONPATH", "PYTHONUSERBASE",
                                  "PIP_CONFIG_FILE=/dev/null", "CFLAGS=-O0"));
    assert_int_equal(run_process(installation, NULL, NULL, NULL), 0);
    assert_path_exists(test_path("venv/bin/manhole-cli"));
    assert_string_equal(run_with_manhole(venv_python, "", &err), "imported\n");
    assert_contains(err, "Manhole UDS path: ");
}

/* pip shows what a backend says when that fails, and only then. */
static void
pip_install_stops_where_python_manhole_is(void)
{
    const char *venv_python = make_virtual_environment();
    const char *err;
    const char *const pip[] = {venv_python,      "-m", "pip", "install", "--no-index",
                               source_path("."), NULL};
    if (run_command(LIST(venv_python, "-c", "import pip"), NULL, NULL, NULL) != 0) {
        skip_test("%s has no pip", python());
    }
    put_python_manhole(venv_python, "");
    struct process *installation =
        start_process(.argv = pip,
                      .env = LIST("LD_PRELOAD", "PYTHONPATH", "PYTHONUSERBASE",
                                  "PIP_CONFIG_FILE=/dev/null"));
    assert_int_equal(run_process(installation, NULL, NULL, &err), 1);
    assert_contains(err, "manhole 1.8.1 is installed in ");
    assert_contains(err, "-m pip uninstall manhole");
    assert_no_path(test_path("venv/bin/manhole-cli"));
}

/* ---- PYTHONMANHOLE ----------------------------------------------------------------- */

static const char SAYS_IF_IMPORTED[] =
    "import sys\n"
    "print('imported' if 'manhole' in sys.modules else 'not imported')\n" READY STAY;

static void
variable_unset_imports_nothing(void)
{
    struct process *app = start_target(SAYS_IF_IMPORTED);
    wait_until_ready(app);
    assert_string_equal(text_of(app, OUT), "not imported\nready\n");
    assert_string_equal(text_of(app, ERR), "");
    assert_false(is_served(socket_path_of(app->pid)));
}

static void
variable_empty_installs_with_the_defaults(void)
{
    struct process *app = start_target(SAYS_IF_IMPORTED, .env = LIST("PYTHONMANHOLE="));
    client_wait_for(connect_to(app), ">>> ");
}

static void
variable_text_is_the_arguments_of_install(void)
{
    const char *path = test_path("door");
    const char *variable =
        format_text("PYTHONMANHOLE=socket_path='%s', locals={'a': 42}", path);
    struct process *app = start_target(SAYS_IF_IMPORTED, .env = LIST(variable));
    wait_until_ready(app);
    struct client *client = connect_client(path);
    client_wait_for(client, ">>> ");
    assert_string_equal(client_ask(client, "a"), "42\n");
}

/* They keep PYTHONPATH from Python, too: so site is told where things are. */
static void
variable_is_ignored_where_python_ignores_its_own(void)
{
    static const char *const switches[] = {"-s", "-E", "-I"};
    const char *program =
        format_text("import site, sys\n"
                    "sys.path.insert(0, '%s')\n"
                    "site.addsitedir('%s')\n%s",
                    build_path("."), test_directory(), SAYS_IF_IMPORTED);
    (void)write_file("manhole.pth", read_file(source_path("manhole.pth")));
    for (size_t i = 0; i < sizeof(switches) / sizeof(switches[0]); i++) {
        struct process *app =
            start_process(.argv = LIST(python(), switches[i], "-c", program),
                          .env = LIST("PYTHONMANHOLE="));
        wait_until_ready(app);
        assert_string_equal(text_of(app, OUT),
                            i == 0 ? "imported\nready\n" : "not imported\nready\n");
    }
}

static void
variable_with_a_mistake_is_one_line_and_the_program_goes_on(void)
{
    static const struct {
        const char *text;
        const char *line;
    } mistakes[] = {
        {"activate_on=",
         "^Failed to manhole\\.install\\(activate_on=\\): SyntaxError\\(.*\\)$"},
        {"nonsense=1",
         "^Failed to manhole\\.install\\(nonsense=1\\): TypeError\\(.*\\)$"},
        {"activate_on='NO'",
         "^Failed to manhole\\.install\\(activate_on='NO'\\): .*Error\\(.*\\)$"},
        {"1/0", "^Failed to manhole\\.install\\(1/0\\): ZeroDivisionError\\(.*\\)$"},
    };
    for (size_t i = 0; i < sizeof(mistakes) / sizeof(mistakes[0]); i++) {
        const char *variable = format_text("PYTHONMANHOLE=%s", mistakes[i].text);
        struct process *app = start_target(SAYS_IF_IMPORTED, .env = LIST(variable));
        wait_until_ready(app);
        const char *err = text_of(app, ERR);
        assert_matches(err, mistakes[i].line);
        assert_ptr_equal(strchr(err, '\n'), err + strlen(err) - 1);
    }
}

static void
variable_without_the_module_is_one_line_and_the_program_goes_on(void)
{
    struct process *app = start_target(
        SAYS_IF_IMPORTED, .env = LIST("PYTHONMANHOLE=strict=False", "PYTHONPATH"));
    wait_until_ready(app);
    /* CPython 3.15 adds the name. */
    assert_matches(text_of(app, ERR),
                   "^Failed to manhole\\.install\\(strict=False\\): ModuleNotFoundError"
                   "\\(\"No module named 'manhole'\"(, name='manhole')?\\)\n$");
}

int
main(void)
{
    static const struct test_case tests[] = {
        TEST(install_under_destdir_and_prefix_puts_a_package_there),
        TEST(uninstall_takes_away_all_that_install_brought),
        TEST(install_for_debian_under_usr_local_uses_dist_packages),
        TEST(install_from_3_18_brings_a_start_file_and_no_pth),
        TEST(virtual_environment_has_module_variable_and_client),
        TEST(python_m_runs_the_client_that_was_installed_with_the_module),
        TEST(install_replaces_the_single_file_of_former_versions),
        TEST(install_stops_where_python_manhole_is),
        TEST(install_elsewhere_warns_of_python_manhole_on_the_path),
        TEST(client_says_that_a_process_has_python_manhole),
        TEST(build_and_client_without_libedit_say_what_is_lost),
        TEST(tool_that_is_missing_is_named_with_the_command_that_brings_it),
        TEST(bash_completes_signals_by_the_names_that_are_taken),
        TEST(pip_install_needs_no_network_and_brings_the_same),
        TEST(pip_install_stops_where_python_manhole_is),
        TEST(variable_unset_imports_nothing),
        TEST(variable_empty_installs_with_the_defaults),
        TEST(variable_text_is_the_arguments_of_install),
        TEST(variable_is_ignored_where_python_ignores_its_own),
        TEST(variable_with_a_mistake_is_one_line_and_the_program_goes_on),
        TEST(variable_without_the_module_is_one_line_and_the_program_goes_on),
    };
    return RUN_TESTS(tests);
}
