/* system_install.c - what is installed, as mypy, auditwheel and lintian see it, and dpkg.
 */
#include "support.h"

#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

/* Runs a target of make's for Debian's Python, as those do who build packages. Returns what it
 * says last. */
static const char *
make_package(const char *target)
{
    struct process *make =
        start_process(.argv = LIST("make", "--silent", "-C", source_path("."), target,
                                   "NO_SETUP=yes", "CFLAGS=-O0",
                                   format_text("PYTHON=%s", debian_python()),
                                   format_text("DEBIAN_PYTHON=%s", debian_python()),
                                   format_text("BUILD_ROOT=%s", test_directory())),
                      .env = LIST("LD_PRELOAD", "PYTHONPATH", "PYTHONUSERBASE"));
    if (wait_for_exit(make, 4 * DEADLINE) != 0) {
        fail_msg("make %s: %s", target, text_of(make, ERR));
    }
    const char *out = text_of(make, OUT);
    return format_text("%.*s", (int)strcspn(out, "\n"), out);
}

/* Fails the test with all that a program says when that finds something. */
static const char *
check(const char *const argv[])
{
    const char *out;
    const char *err;
    struct process *program = start_process(.argv = argv,
                                            .env = LIST("LD_PRELOAD", "PYTHONUSERBASE",
                                                        "MYPY_CACHE_DIR=/dev/null"),
                                            .debian = true);
    if (run_process(program, NULL, &out, &err) != 0) {
        fail_msg("%s: %s%s", argv[0], out, err);
    }
    return out;
}

/* By mypy's own comparison: each name, each argument with its kind and default. */
static void
stub_says_of_each_name_what_the_module_has(void)
{
    if (is_sanitized()) {
        skip_test("mypy is not under test");
    }
    require_debian_module("mypy");
    (void)write_file("manhole.pyi", read_file(source_path("manhole.pyi")));
    (void)check(LIST("env", format_text("MYPYPATH=%s", test_directory()), debian_python(),
                     "-m", "mypy.stubtest", "manhole"));
}

/* As its users have it, who have told mypy nothing. */
static void
mypy_finds_the_types_of_an_installed_copy(void)
{
    require_debian_module("mypy");
    static const char program[] = "import manhole\n"
                                  "manhole.install(activate_on='USR1').release()\n"
                                  "reveal_type(manhole.probe('a:b').exceptions)\n"
                                  "manhole.install(activate=1)\n";
    const char *out;
    (void)write_file("app.py", program);
    (void)check(LIST(debian_python(), "-m", "venv", "--without-pip", test_path("venv")));
    struct process *make =
        start_process(.argv = LIST("make", "--silent", "-C", source_path("."), "install",
                                   "CFLAGS=-O0",
                                   format_text("PYTHON=%s", test_path("venv/bin/python")),
                                   format_text("BUILD_ROOT=%s", test_directory())),
                      .env = LIST("LD_PRELOAD", "PYTHONPATH", "PYTHONUSERBASE"));
    assert_int_equal(run_process(make, NULL, NULL, NULL), 0);
    struct process *mypy =
        start_process(.argv = LIST(debian_python(), "-m", "mypy", "--strict",
                                   "--python-executable", test_path("venv/bin/python"),
                                   "app.py"),
                      .env = LIST("PYTHONPATH", "LD_PRELOAD", "MYPY_CACHE_DIR=/dev/null"),
                      .debian = true);
    (void)run_process(mypy, NULL, &out, NULL);
    assert_matches(out, "^app.py:3: note: Revealed type is \"(builtins\\.)?int\"$");
    assert_contains(out, "app.py:4: error: Unexpected keyword argument \"activate\"");
    assert_contains(out, "Found 1 error in 1 file");
}

static void
wheel_has_a_name_of_its_own_and_says_what_it_replaces(void)
{
    static const char look[] = "import sys, zipfile\n"
                               "with zipfile.ZipFile(sys.argv[1]) as wheel:\n"
                               "    print(*wheel.namelist(), sep='\\n')\n"
                               "    print(*(wheel.read(n).decode() for n in "
                               "wheel.namelist() if 'METADATA' in n))\n";
    const char *wheel = make_package("wheel");
    assert_matches(strrchr(wheel, '/'),
                   "^/cmanhole-1\\.1\\.0\\+manhole1\\.8\\.1-cp3[0-9]+-cp3[0-9]+t?-"
                   "manylinux_2_[0-9]+_[a-z0-9_]+\\.whl$");
    const char *out = check(LIST(debian_python(), "-c", look, wheel));
    assert_matches(out, "^manhole/__init__\\.cpython-.*\\.so$");
    assert_contains(out,
                    "\nmanhole/__init__.pyi\nmanhole/__main__.py\nmanhole/py.typed\n");
    assert_contains(out, ".data/scripts/manhole-cli\n");
    assert_contains(out, ".data/data/share/man/man1/manhole-cli.1\n");
    assert_contains(out, "Name: cmanhole\nVersion: 1.1.0+manhole1.8.1\n");
    assert_contains(out, "Obsoletes-Dist: manhole\n");
}

/* Of a C library that is newer than all that it knows it finds no tag, but the same versions. */
static void
auditwheel_agrees_with_the_tag_of_a_wheel(void)
{
    require_program("auditwheel");
    const char *wheel = make_package("wheel");
    const char *tag = strstr(wheel, "manylinux_2_");
    int newest = (int)strtol(tag + strlen("manylinux_2_"), NULL, 10);
    const char *out = check(LIST("auditwheel", "show", wheel));
    assert_contains(out, format_text("'GLIBC_2.%d'", newest));
    for (int newer = newest + 1; newer < newest + 50; newer++) {
        assert_not_contains(out, format_text("'GLIBC_2.%d'", newer));
    }
    tag = format_text("tag to \"%.*s\"", (int)strcspn(tag, "."), tag);
    assert_contains(out, strstr(out, "tag to \"linux_") != NULL ? "libc.so.6" : tag);
}

/* Runs shell commands, as root, in a layer above this system that nobody else sees and that goes
 * with them; a.deb in it is the package. Skips the test where there can be none. */
static const char *
run_in_overlay(const char *package, const char *commands)
{
    static const char inside[] =
        "cd \"$0\" && mount -t tmpfs none . && cd . && mkdir upper work root || exit 77\n"
        "mount -t overlay -o lowerdir=/,upperdir=upper,workdir=work none root || exit "
        "77\n"
        "mount -t proc none root/proc && mount --bind /dev root/dev || exit 77\n"
        "cp \"$1\" root/a.deb && exec chroot root env -i PATH=\"$PATH\" sh -euxc "
        "\"$2\"\n";
    const char *folder = test_path("system");
    assert_int_equal(mkdir(folder, 0755), 0);
    if (run_command(LIST("unshare", "--mount", "true"), NULL, NULL, NULL) != 0) {
        skip_test("no namespace of mounts here: are you root?");
    }
    struct process *shell =
        start_process(.argv =
                          LIST("unshare", "--mount", "--pid", "--fork", "--kill-child",
                               "sh", "-c", inside, folder, package, commands));
    int status = wait_for_exit(shell, DEADLINE);
    if (status == 77) {
        skip_test("nothing can be mounted here");
    }
    assert_int_equal(status, 0);
    return text_of(shell, OUT);
}

static void
debian_package_is_accepted_by_lintian_works_and_goes_without_a_trace(void)
{
    static const char use[] =
        "cd /; dpkg --install a.deb\n"
        "dpkg --verify python3-cmanhole\n"
        "PYTHONMANHOLE= /usr/bin/python3 -c 'import time; time.sleep(600)' 2>log &\n"
        "until grep 'Waiting for new connection' log; do sleep 0.01; done\n"
        "/usr/bin/python3 -m manhole $! -c 'import manhole; print(manhole.__file__)'\n"
        "manhole-cli $! --stacks; kill $!; wait $! || :\n"
        "test -e /usr/share/man/man1/manhole-cli.1.gz\n"
        "dpkg --remove python3-cmanhole\n"
        "test ! -e /usr/lib/python3/dist-packages/manhole && echo gone\n";
    require_program("lintian");
    const char *package = make_package("deb");
    (void)check(LIST("lintian", "--fail-on", "error", "--allow-root", package));
    const char *out = run_in_overlay(package, use);
    assert_contains(out, "/usr/lib/python3/dist-packages/manhole/__init__.cpython-");
    assert_contains(out, "Thread: MainThread");
    assert_contains(out, "gone\n");
}

int
main(void)
{
    static const struct test_case tests[] = {
        TEST(stub_says_of_each_name_what_the_module_has),
        TEST(mypy_finds_the_types_of_an_installed_copy),
        TEST(wheel_has_a_name_of_its_own_and_says_what_it_replaces),
        TEST(auditwheel_agrees_with_the_tag_of_a_wheel),
        TEST(debian_package_is_accepted_by_lintian_works_and_goes_without_a_trace),
    };
    return RUN_TESTS(tests);
}
