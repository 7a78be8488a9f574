/* e2e_single.c - make single: the two files that are dropped into other people's trees. */
#include "support.h"

#include <string.h>

/* A folder with what make single writes, and with the example, nothing else. */
static const char *
make_single(void)
{
    const char *folder = test_path("single");
    const char *err;
    struct process *make =
        start_process(.argv = LIST("make", "--silent", "-C", source_path("."), "single",
                                   format_text("BUILD_ROOT=%s", test_path("."))),
                      .env = LIST("LD_PRELOAD", "MAKEFLAGS"));
    if (run_process(make, NULL, NULL, &err) != 0) {
        fail_msg("make single: %s", err);
    }
    write_file("single/embed_example.c", read_file(source_path("test/embed_example.c")));
    return folder;
}

/* Runs a command line of the shell in a folder. Returns what it prints. */
static const char *
run_in(const char *folder, const char *command)
{
    const char *out;
    const char *err;
    struct process *shell =
        start_process(.argv =
                          LIST("sh", "-c", format_text("cd %s && %s", folder, command)),
                      .env = LIST("LD_PRELOAD"));
    if (run_process(shell, NULL, &out, &err) != 0) {
        fail_msg("%s: %s", command, err);
    }
    return out;
}

static const char *
exported_symbols(const char *object)
{
    return run_in(
        test_directory(),
        format_text("nm -g --defined-only %s | cut -d ' ' -f 3 | sort", object));
}

static void
one_file_and_the_header_make_a_program_with_a_manhole(void)
{
    const char *folder = make_single();
    const char *out;
    const char *script = write_file("script.py", "import manhole\n"
                                                 "def handle(line): pass\n"
                                                 "print(manhole.__name__)\n");
    struct process *app;
    run_in(folder, format_text("cc -pthread %s -o example manhole.c embed_example.c %s",
                               include_flags(), link_flags()));
    app =
        start_example(.argv = LIST(script), .example = format_text("%s/example", folder));
    assert_int_equal(run_process(app, NULL, &out, NULL), 0);
    assert_string_equal(out, "manhole\n");
}

static void
one_file_exports_what_the_rooms_export(void)
{
    const char *folder = make_single();
    const char *exported;
    if (is_sanitized()) {
        skip_test("a sanitizer adds symbols of its own");
    }
    run_in(folder, format_text("cc -c -pthread %s manhole.c", include_flags()));
    exported = exported_symbols(format_text("%s/manhole.o", folder));
    assert_contains(exported, "manhole_install\n");
    assert_contains(exported, "PyInit_manhole\n");
    assert_string_equal(exported, exported_symbols(build_path("manhole.o")));
}

static void
client_is_one_file_too(void)
{
    const char *folder = make_single();
    run_in(folder, "cc -o manhole-cli manhole_cli.c -lm");
    assert_contains(run_in(folder, "./manhole-cli --help"), "usage: manhole-cli");
}

/* A session's thread comes back to a Python that is ending: the last object of the process lets it,
 * and waits until it is gone. */
static void
clean_ups_of_a_thread_that_exit_ends_touch_no_python(void)
{
    const char *folder = make_single();
    if (is_sanitized() || is_python_from(14)) {
        skip_test(
            "a sanitizer's library is not loaded first; from 3.14 on no thread ends so");
    }
    run_in(folder, format_text("cc -shared -fPIC -fexceptions -pthread %s -o manhole.so "
                               "manhole.c",
                               include_flags()));
    struct process *app = start_target(format_text(
        "import os, sys, time\n"
        "sys.path.insert(0, '%s')\n"
        "import manhole\n"
        "ends = os.pipe()\n"
        "class Last:\n"
        "    def __del__(self, write=os.write, sleep=time.sleep, end=ends[1],\n"
        "                list=os.listdir):\n"
        "        count = len(list('/proc/self/task'))\n"
        "        write(end, b'.')\n"
        "        while len(list('/proc/self/task')) == count:\n"
        "            sleep(0.01)\n"
        "        write(1, b'last\\n')\n"
        "last = Last()\n"
        "manhole.install(connection_handler='exec', daemon_connection=True,\n"
        "                locals={'read': os.read, 'end': ends[0]})\n" READY STAY,
        folder));
    struct client *client = connect_to(app);
    /* The interrupt of who exits is not to end the loop: it may come as soon as 1 is printed. */
    client_send(client, "exec('while True:\\n try: print(1); read(end, 1)\\n "
                        "except BaseException: pass')\n");
    wait_for_text(app, OUT, "1\n", DEADLINE);
    close_stdin(app);
    wait_for_text(app, OUT, "last", DEADLINE);
    assert_int_equal(wait_for_exit(app, DEADLINE), 0);
}

int
main(void)
{
    static const struct test_case tests[] = {
        TEST(one_file_and_the_header_make_a_program_with_a_manhole),
        TEST(one_file_exports_what_the_rooms_export),
        TEST(client_is_one_file_too),
        TEST(clean_ups_of_a_thread_that_exit_ends_touch_no_python),
    };
    return RUN_TESTS(tests);
}
