/* e2e_channels.c - what a client's calling card can ask for instead of a console. */
#include "support.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define BANNER "(ManholeConsole)"
#define DUMP_END "#############################################\n\n\n"

/* Keeps the GIL until its stdin has a byte, says so, stays. */
#define HOLD_GIL                                                                         \
  "import ctypes\n"                                                                      \
  "library = ctypes.PyDLL(None)\n"                                                       \
  "byte = ctypes.create_string_buffer(1)\n"                                              \
  "def hold(): library.read(0, byte, 1)\n" READY "hold()\n"                              \
  "print('released', flush=True)\n" STAY

static struct process *
start_ready(const char *program)
{
    struct process *app = start_target(program);
    wait_until_ready(app);
    return app;
}

static struct process *
start_holder(void)
{
    return start_ready(INSTALL("hang_timeout=0.2") HOLD_GIL);
}

/* Connects with the calling card of one run of manhole-cli. */
static struct client *
connect_wishing(const struct process *app, const char *wish)
{
    const char *card = format_text("manhole-cli/%ld.7/%s", (long)getpid(), wish);
    return connect_as(socket_path_of(app->pid), card);
}

/* ---- quiet ------------------------------------------------------------------------- */

static void
quiet_console_begins_with_its_banner(void)
{
    struct process *app = start_ready(TARGET(""));
    struct client *client = connect_wishing(app, "quiet");
    assert_not_contains(client_wait_for(client, ">>> "), "ThreadID");
    assert_string_equal(client_ask(client, "6 * 7"), "42\n");
}

static void
quiet_console_of_a_stuck_process_says_why_without_stacks(void)
{
    struct process *app = start_holder();
    struct client *client = connect_wishing(app, "quiet");
    const char *told = client_wait_for(client, "as soon as Python answers.\n");
    assert_contains(told, "Python has not answered");
    assert_not_contains(told, "ThreadID");
    write_stdin(app, "x");
    assert_not_contains(client_wait_for(client, ">>> "), "ThreadID");
}

static void
unknown_wish_gets_the_console_with_stacks(void)
{
    struct process *app = start_ready(TARGET(""));
    struct client *client = connect_wishing(app, "nonsense");
    client_wait_for(client, DUMP_END);
    client_wait_for(client, ">>> ");
}

/* ---- stacks ------------------------------------------------------------------------ */

static void
stacks_are_the_dump_alone(void)
{
    struct process *app =
        start_ready(INSTALL("") "import os\ndef main_works():\n    " READY
                                "    while os.read(0, 9): pass\n"
                                "main_works()\n");
    struct client *client = connect_wishing(app, "stacks");
    const char *dump = client_read_until_eof(client);
    assert_matches(dump, "^######### ProcessID=[0-9]+, ThreadID=[0-9]+ #########$");
    assert_contains(dump, ", in main_works\n");
    assert_string_equal(dump + strlen(dump) - strlen(DUMP_END), DUMP_END);
    assert_not_contains(dump, BANNER);
    assert_not_contains(dump, ">>>");
}

static void
stacks_of_a_stuck_process_come_from_the_frozen_copy(void)
{
    struct process *app = start_holder();
    struct client *client = connect_wishing(app, "stacks");
    const char *dump = client_read_until_eof(client);
    assert_matches(dump, "^manhole: Python has not answered for 0.2 s, since .* UTC: ");
    assert_contains(dump, ", in hold\n");
    assert_not_contains(dump, "as soon as Python answers");
    write_stdin(app, "x");
    wait_for_text(app, OUT, "released\n", DEADLINE);
}

/* However often one asks: neither threads nor sessions pile up behind the GIL. */
static void
stuck_process_shows_its_stacks_again_and_again(void)
{
    struct process *app =
        start_ready(INSTALL("hang_timeout=0.05, max_sessions=1") HOLD_GIL);
    for (int i = 0; i < 40; i++) {
        struct client *client = connect_wishing(app, format_text("stacks.%d", i));
        assert_contains(client_read_until_eof(client), ", in hold\n");
        client_close(client);
    }
    assert_true(count_threads(app->pid) < 10);
    write_stdin(app, "x");
    wait_for_text(app, OUT, "released\n", DEADLINE);
    assert_contains(client_read_until_eof(connect_wishing(app, "stacks")), DUMP_END);
}

static void
stacks_come_beside_as_many_consoles_as_there_may_be(void)
{
    struct process *app = start_ready(TARGET("max_sessions=1"));
    struct client *console = connect_to(app);
    client_wait_for(console, ">>> ");
    assert_contains(client_read_until_eof(connect_wishing(app, "stacks")), DUMP_END);
    assert_contains(client_read_until_eof(connect_to(app)), "manhole: 1 clients");
}

static void
stacks_come_whatever_the_connection_handler(void)
{
    struct process *app = start_ready(TARGET("connection_handler='exec'"));
    assert_contains(client_read_until_eof(connect_wishing(app, "stacks")), DUMP_END);
}

int
main(void)
{
    static const struct test_case tests[] = {
        TEST(quiet_console_begins_with_its_banner),
        TEST(quiet_console_of_a_stuck_process_says_why_without_stacks),
        TEST(unknown_wish_gets_the_console_with_stacks),
        TEST(stacks_are_the_dump_alone),
        TEST(stacks_of_a_stuck_process_come_from_the_frozen_copy),
        TEST(stuck_process_shows_its_stacks_again_and_again),
        TEST(stacks_come_beside_as_many_consoles_as_there_may_be),
        TEST(stacks_come_whatever_the_connection_handler),
    };
    return RUN_TESTS(tests);
}
