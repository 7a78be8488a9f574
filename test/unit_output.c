/* Output: what the application prints is copied to clients, and never waits for one. */
#include <Python.h>

#include <stdbool.h>

static bool no_memory;

static void *
malloc_or_fail(size_t size)
{
    return no_memory ? NULL : malloc(size);
}

#define malloc malloc_or_fail
#include "../manhole.c"
#undef malloc

#include "unit.h"

static struct session *const session = &session_table[0];
static int client_fd;

/* A session that wants copies, with a client that does not read unless a test does. */
static int
open_client(void **state)
{
    int ends[2];
    (void)state;
    make_session_locks(session);
    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends) < 0) {
        return -1;
    }
    client_fd = ends[0];
    session->outbox.head = 0;
    session->outbox.tail = 0;
    session->missed = 0;
    keep_fd(&session->fd, ends[1]);
    atomic_store(&manhole.owner, getpid());
    begin_viewing(session);
    return 0;
}

static int
close_client(void **state)
{
    (void)state;
    (void)close(client_fd);
    close_kept(&session->fd);
    free(session->ring);
    session->ring = NULL;
    end_viewing(session);
    return 0;
}

#define WITH_CLIENT(test) cmocka_unit_test_setup_teardown(test, open_client, close_client)

static void
print(const char *string)
{
    echo_to_clients(string, strlen(string));
}

/* Prints that many bytes, "0123456789012...". */
static void
print_digits(size_t count)
{
    char *bytes = malloc(count);
    assert_non_null(bytes);
    for (size_t i = 0; i < count; i++) {
        bytes[i] = (char)('0' + i % 10);
    }
    echo_to_clients(bytes, count);
    free(bytes);
}

/* Appends what has come to the client; true when there was something. */
static bool
receive(struct text *received)
{
    char bytes[65536];
    ssize_t count = recv(client_fd, bytes, sizeof(bytes), MSG_DONTWAIT);
    if (count > 0) {
        append_bytes(received, bytes, (size_t)count);
    }
    return count > 0;
}

/* The listener carries, the client reads, until nothing is left. */
static void
receive_all(struct text *received)
{
    do {
        carry_waiting(session);
    } while (receive(received) || has_waiting(session));
}

static void
assert_received(const char *wanted)
{
    struct text received = {0};
    receive_all(&received);
    append_bytes(&received, "", 1);
    assert_string_equal(received.bytes, wanted);
    free_text(&received);
}

/* ---- What is kept ----------------------------------------------------------------------- */

static void
copies_come_in_order(void **state)
{
    (void)state;
    print("one\n");
    print("two\n");
    assert_received("one\ntwo\n");
    print("three\n");
    assert_received("three\n");
}

static void
session_that_does_not_view_is_left_alone(void **state)
{
    (void)state;
    end_viewing(session);
    print("secret");
    begin_viewing(session);
    assert_null(session->ring);
    assert_received("");
}

/* Pieces of all lengths, around the end of the ring again and again. */
static void
every_byte_comes_once_around_the_ring(void **state)
{
    struct text received = {0};
    size_t printed = 0;
    (void)state;
    for (size_t length = 1; printed < 3 * (size_t)RING_SIZE;
         length = length * 3 % 99991) {
        print_digits(length);
        printed += length;
        receive_all(&received);
    }
    assert_int_equal(received.length, printed);
    for (size_t i = 0, length = 1; i < received.length; length = length * 3 % 99991) {
        for (size_t j = 0; j < length; j++, i++) {
            assert_int_equal(received.bytes[i], '0' + j % 10);
        }
    }
    free_text(&received);
}

/* ---- What is not ------------------------------------------------------------------------ */

static void
print_never_waits_and_what_is_missed_is_counted(void **state)
{
    struct text received = {0};
    char note[80];
    (void)state;
    for (int i = 0; i < 100; i++) {
        print_digits(RING_SIZE / 10 + 1);
    }
    (void)snprintf(note, sizeof(note), "\n[manhole: %d bytes not shown]\n",
                   100 * (RING_SIZE / 10 + 1) - RING_SIZE);
    receive_all(&received);
    assert_int_equal(received.length, RING_SIZE + strlen(note));
    assert_memory_equal(received.bytes + RING_SIZE, note, strlen(note));
    free_text(&received);
    print("on we go\n");
    assert_received("on we go\n");
}

/* Else a client would see halves of lines with holes between. */
static void
nothing_is_kept_until_the_note_is_in(void **state)
{
    struct text received = {0};
    (void)state;
    print_digits(RING_SIZE + 1);
    carry_waiting(session);
    assert_true(receive(&received)); /* there is room again, but for the note only */
    print("x");
    receive_all(&received);
    append_bytes(&received, "", 1);
    assert_string_equal(received.bytes + RING_SIZE, "\n[manhole: 2 bytes not shown]\n");
    free_text(&received);
}

static void
client_that_does_not_read_stops_nobody(void **state)
{
    (void)state;
    print_digits(RING_SIZE);
    carry_waiting(session); /* comes back, although not all can be sent */
    assert_true(has_waiting(session));
    carry_waiting(session);
    assert_true(has_waiting(session));
}

static void
client_that_has_left_costs_nothing_more(void **state)
{
    (void)state;
    print("to whom?");
    (void)shutdown(client_fd, SHUT_RDWR);
    carry_waiting(session); /* no SIGPIPE */
    assert_false(has_waiting(session));
}

static void
without_memory_all_is_counted(void **state)
{
    (void)state;
    no_memory = true;
    print("lost");
    no_memory = false;
    assert_false(has_waiting(session));
    print("too");
    assert_received("\n[manhole: 7 bytes not shown]\n");
}

/* ---- Characters are not cut --------------------------------------------------------------- */

static void
prefix_ends_between_characters(void **state)
{
    static const struct {
        const char *bytes;
        size_t room;
        size_t prefix;
    } rows[] = {
        {"abc", 0, 0},
        {"abc", 2, 2},
        {"abc", 3, 3},
        {"abc", 9, 3},
        {"\xc3\xa9", 1, 0},
        {"\xc3\xa9", 2, 2},
        {"a\xe2\x82\xac", 2, 1},
        {"a\xe2\x82\xac", 3, 1},
        {"a\xe2\x82\xac", 4, 4},
        {"a\xe2\x82\xac z", 4, 4},
        {"\xf0\x9f\x90\x8d", 3, 0},
        {"\x80\x80\x80", 2, 0}, /* no UTF-8: the end of a piece that was cut by others */
    };
    (void)state;
    for (size_t i = 0; i < Py_ARRAY_LENGTH(rows); i++) {
        size_t got = utf8_prefix(rows[i].bytes, strlen(rows[i].bytes), rows[i].room);
        if (got != rows[i].prefix) {
            fail_msg("row %zu: %zu", i, got);
        }
    }
}

static void
character_that_finds_half_of_its_room_is_missed_whole(void **state)
{
    struct text received = {0};
    (void)state;
    print_digits(RING_SIZE - 2);
    print("\xe2\x82\xac");
    receive_all(&received);
    append_bytes(&received, "", 1);
    assert_string_equal(received.bytes + RING_SIZE - 2,
                        "\n[manhole: 3 bytes not shown]\n");
    free_text(&received);
}

/* ---- The session's own output -------------------------------------------------------------- */

static void
own_output_comes_after_the_copies_before_it(void **state)
{
    const char *own = "own\n";
    size_t length = strlen(own);
    (void)state;
    print("copy\n");
    begin_sending(session);
    print("late\n");
    assert_false(has_waiting(session)); /* whoever sends takes them along */
    assert_int_equal(send_own(session, &own, &length), 0);
    end_sending(session);
    assert_int_equal(length, 0);
    assert_received("copy\nlate\nown\n");
}

static void
own_output_to_a_client_that_left_is_an_error(void **state)
{
    const char *own = "own\n";
    size_t length = strlen(own);
    (void)state;
    (void)shutdown(client_fd, SHUT_RDWR);
    begin_sending(session);
    assert_int_equal(send_own(session, &own, &length), EPIPE);
    end_sending(session);
    assert_int_equal(length, 4);
}

static size_t wanted_length;

static void *
read_slowly(void *argument)
{
    struct text *received = argument;
    struct pollfd client = {.fd = client_fd, .events = POLLIN};
    while (received->length < wanted_length) {
        (void)poll(&client, 1, -1);
        (void)receive(received);
    }
    return NULL;
}

/* A handler that is given the client's socket may set O_NONBLOCK, which is the socket's. */
static void
own_output_waits_for_its_client_even_when_told_not_to(void **state)
{
    static char zeros[4000000];
    const char *own = zeros;
    size_t length = sizeof(zeros);
    struct text received = {0};
    pthread_t reader;
    (void)state;
    (void)fcntl(kept_number(&session->fd), F_SETFL, O_NONBLOCK);
    wanted_length = sizeof(zeros);
    assert_int_equal(pthread_create(&reader, NULL, read_slowly, &received), 0);
    begin_sending(session);
    assert_int_equal(send_own(session, &own, &length), 0);
    end_sending(session);
    assert_int_equal(pthread_join(reader, NULL), 0);
    assert_int_equal(received.length, sizeof(zeros));
    free_text(&received);
}

/* So they do in front of a session's own. */
static void
copies_wait_for_their_client_even_when_told_not_to(void **state)
{
    static char zeros[200000];
    const int small = 4096;
    struct text received = {0};
    pthread_t reader;
    (void)state;
    memset(zeros, '0', sizeof(zeros) - 1);
    (void)setsockopt(kept_number(&session->fd), SOL_SOCKET, SO_SNDBUF, &small,
                     sizeof(small));
    (void)fcntl(kept_number(&session->fd), F_SETFL, O_NONBLOCK);
    print(zeros);
    wanted_length = sizeof(zeros) - 1;
    assert_int_equal(pthread_create(&reader, NULL, read_slowly, &received), 0);
    begin_sending(session);
    assert_int_equal(send_waiting(session, 0), 0);
    end_sending(session);
    assert_int_equal(pthread_join(reader, NULL), 0);
    assert_int_equal(received.length, wanted_length);
    free_text(&received);
}

/* As the one that a reporter was sent for before Python answered, and asked for more. */
static void
report_for_a_wait_that_is_over_is_not_sent(void **state)
{
    static const struct channel channel = {.name = "repl"};
    struct text report = {0};
    char bytes[16];
    (void)state;
    session->channel = &channel;
    append_string(&report, "report\n");
    session->hang.state = HANG_REPORTED;
    expect_answer(session);
    send_report(session, &report, 0);
    assert_int_equal(recv(client_fd, bytes, sizeof(bytes), MSG_DONTWAIT), -1);
    session->hang.state = HANG_REPORTED;
    send_report(session, &report, 0);
    assert_int_equal(recv(client_fd, bytes, sizeof(bytes), MSG_DONTWAIT), 7);
    (void)settle_report(session);
    free_text(&report);
}

int
main(void)
{
    static const struct CMUnitTest tests[] = {
        WITH_CLIENT(copies_come_in_order),
        WITH_CLIENT(session_that_does_not_view_is_left_alone),
        WITH_CLIENT(every_byte_comes_once_around_the_ring),
        WITH_CLIENT(print_never_waits_and_what_is_missed_is_counted),
        WITH_CLIENT(nothing_is_kept_until_the_note_is_in),
        WITH_CLIENT(client_that_does_not_read_stops_nobody),
        WITH_CLIENT(client_that_has_left_costs_nothing_more),
        WITH_CLIENT(without_memory_all_is_counted),
        cmocka_unit_test(prefix_ends_between_characters),
        WITH_CLIENT(character_that_finds_half_of_its_room_is_missed_whole),
        WITH_CLIENT(own_output_comes_after_the_copies_before_it),
        WITH_CLIENT(own_output_to_a_client_that_left_is_an_error),
        WITH_CLIENT(own_output_waits_for_its_client_even_when_told_not_to),
        WITH_CLIENT(copies_wait_for_their_client_even_when_told_not_to),
        WITH_CLIENT(report_for_a_wait_that_is_over_is_not_sent),
    };
    return RUN_UNIT_TESTS(tests);
}
