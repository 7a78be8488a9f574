/* e2e_install.c - installing, in all its ways, and PYTHONMANHOLE through the manhole.pth that is
 * installed. Nothing here needs a network.
 */
#include "support.h"

#include <string.h>
#include <sys/stat.h>

/* Without what a sanitizer's run preloads: compilers and pip are not under test. */
#define PLAIN LIST("LD_PRELOAD", "PYTHONPATH", "PYTHONUSERBASE")

/* Runs make on the sources, with a build folder of these tests' own, quick to make. Returns what it
 * says. */
static const char *
run_make(const char *target, const char *python_path, const char *prefix,
         const char *destdir)
{
    const char *out;
    const char *err;
    struct process *make =
        start_process(.argv = LIST("make", "--silent", "-C", source_path("."), target,
                                   "CFLAGS=-O0",
                                   format_text("BUILD_ROOT=%s", build_path("install")),
                                   format_text("PYTHON=%s", python_path),
                                   format_text("PREFIX=%s", prefix),
                                   format_text("DESTDIR=%s", destdir)),
                      .env = PLAIN);
    if (run_process(make, NULL, &out, &err) != 0) {
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

/* The files below a folder whose names say manhole, one a line, sorted. */
static const char *
installed_files(const char *folder)
{
    const char *out;
    const char *find =
        format_text("cd %s && find . -type f -name '*manhole*' | sort", folder);
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
install_under_destdir_and_prefix_puts_three_files_there(void)
{
    const char *root = test_path("root");
    run_make("install", python(), "/opt/tools", root);
    const char *files = installed_files(root);
    assert_matches(files, "^\\./opt/tools/bin/manhole-cli$");
    assert_matches(files,
                   "^\\./opt/tools/lib/python3\\.[0-9]+t?/site-packages/manhole\\.pth$");
    assert_matches(files, "/site-packages/manhole\\.cpython-.*\\.so$");
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
        TEST(install_under_destdir_and_prefix_puts_three_files_there),
        TEST(uninstall_takes_away_all_that_install_brought),
        TEST(install_for_debian_under_usr_local_uses_dist_packages),
        TEST(install_from_3_18_brings_a_start_file_and_no_pth),
        TEST(virtual_environment_has_module_variable_and_client),
        TEST(bash_completes_signals_by_the_names_that_are_taken),
        TEST(pip_install_needs_no_network_and_brings_the_same),
        TEST(variable_unset_imports_nothing),
        TEST(variable_empty_installs_with_the_defaults),
        TEST(variable_text_is_the_arguments_of_install),
        TEST(variable_is_ignored_where_python_ignores_its_own),
        TEST(variable_with_a_mistake_is_one_line_and_the_program_goes_on),
        TEST(variable_without_the_module_is_one_line_and_the_program_goes_on),
    };
    return RUN_TESTS(tests);
}
