/* Descriptors and clocks: an application may close what is ours and open its own there. */
#include "../manhole.c"

#include "unit.h"

static int
open_null(void)
{
    int fd = open("/dev/null", O_RDWR | O_CLOEXEC);
    assert_true(fd >= 0);
    return fd;
}

static bool
is_open_fd(int fd)
{
    return fcntl(fd, F_GETFD) >= 0;
}

/* Has the application close a descriptor that we keep, and open a file of its own there. */
static void
take_over(const struct kept_fd *kept)
{
    int number = atomic_load(&kept->number);
    int theirs = open_null();
    assert_int_equal(dup2(theirs, number), number);
    (void)close(theirs);
}

/* ---- Descriptors --------------------------------------------------------------------- */

static void
closing_twice_is_harmless(void **state)
{
    struct kept_fd kept = {.number = -1};
    int number = open_null();
    int theirs = -1;
    (void)state;
    keep_fd(&kept, number);
    close_kept(&kept);
    assert_false(is_open_fd(number));
    theirs = open_null();
    assert_int_equal(theirs, number);
    close_kept(&kept);
    assert_true(is_open_fd(theirs));
    (void)close(theirs);
}

static void
kept_descriptor_is_known_until_it_is_closed(void **state)
{
    struct kept_fd kept = {.number = -1};
    int fd = open_null();
    (void)state;
    assert_int_equal(kept_number(&kept), -1);
    assert_false(is_lost(&kept));
    keep_fd(&kept, fd);
    assert_int_equal(kept_number(&kept), fd);
    assert_false(is_lost(&kept));
    close_kept(&kept);
    assert_false(is_open_fd(fd));
    assert_int_equal(kept_number(&kept), -1);
    assert_false(is_lost(&kept));
}

static void
descriptor_closed_behind_our_back_is_lost(void **state)
{
    struct kept_fd kept = {.number = -1};
    (void)state;
    keep_fd(&kept, open_null());
    (void)close(atomic_load(&kept.number));
    assert_true(is_lost(&kept));
    assert_int_equal(kept_number(&kept), -1);
    close_kept(&kept);
    assert_false(is_lost(&kept));
}

static void
descriptor_of_the_application_s_is_left_alone(void **state)
{
    struct kept_fd kept = {.number = -1};
    int ends[2];
    (void)state;
    assert_int_equal(pipe2(ends, O_CLOEXEC), 0);
    keep_fd(&kept, ends[1]);
    take_over(&kept);
    assert_true(is_lost(&kept));
    close_kept(&kept);
    assert_true(is_open_fd(ends[1]));
    (void)close(ends[0]);
    (void)close(ends[1]);
}

/* ---- Bells ---------------------------------------------------------------------------- */

static bool
is_ringing(const struct kept_fd *bell)
{
    struct pollfd watched = {.fd = kept_number(bell), .events = POLLIN};
    return poll(&watched, 1, 0) == 1;
}

static void
close_bells(void)
{
    close_kept(&manhole.wake_bell);
    close_kept(&manhole.news_bell);
}

static void
bell_rings_until_it_is_silenced(void **state)
{
    (void)state;
    assert_int_equal(open_bells(), 0);
    assert_false(is_ringing(&manhole.wake_bell));
    for (int i = 0; i < 10000; i++) { /* never waits, however many nobody hears */
        ring_bell(&manhole.wake_bell);
    }
    assert_true(is_ringing(&manhole.wake_bell));
    assert_false(is_ringing(&manhole.news_bell));
    silence_bell(&manhole.wake_bell);
    assert_false(is_ringing(&manhole.wake_bell));
    silence_bell(&manhole.wake_bell);
    close_bells();
}

static void
bell_cannot_be_rung_by_another_process(void **state)
{
    struct sockaddr_un address = {0};
    socklen_t size = sizeof(address);
    int stranger = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    (void)state;
    assert_int_equal(open_bells(), 0);
    assert_int_equal(
        getsockname(kept_number(&manhole.wake_bell), (struct sockaddr *)&address, &size),
        0);
    assert_int_equal(sendto(stranger, "", 1, 0, (struct sockaddr *)&address, size), -1);
    assert_false(is_ringing(&manhole.wake_bell));
    (void)close(stranger);
    close_bells();
}

static void
bells_are_made_once_and_anew_when_lost(void **state)
{
    int wake = -1;
    (void)state;
    assert_int_equal(open_bells(), 0);
    wake = kept_number(&manhole.wake_bell);
    assert_int_equal(open_bells(), 0);
    assert_int_equal(kept_number(&manhole.wake_bell), wake);
    take_over(&manhole.wake_bell);
    ring_bell(&manhole.wake_bell); /* harmless */
    assert_int_equal(open_bells(), 0);
    assert_int_not_equal(kept_number(&manhole.wake_bell), wake);
    assert_true(is_open_fd(wake));
    (void)close(wake);
    close_bells();
}

/* An application may have bells like ours: dup2() of one is not ours either. */
static void
socket_in_the_place_of_a_bell_is_not_rung(void **state)
{
    int theirs = open_bell();
    int number = -1;
    (void)state;
    assert_int_equal(open_bells(), 0);
    number = atomic_load(&manhole.wake_bell.number);
    assert_int_equal(dup2(theirs, number), number);
    ring_bell(&manhole.wake_bell);
    assert_int_equal(recv(theirs, &(char){0}, 1, MSG_DONTWAIT), -1);
    (void)close(theirs);
    (void)close(number);
    close_bells();
}

static void
bells_need_descriptors(void **state)
{
    struct rlimit limit;
    struct rlimit none;
    (void)state;
    assert_int_equal(getrlimit(RLIMIT_NOFILE, &limit), 0);
    none = (struct rlimit){.rlim_cur = 0, .rlim_max = limit.rlim_max};
    assert_int_equal(setrlimit(RLIMIT_NOFILE, &none), 0);
    assert_int_equal(open_bells(), -1);
    assert_int_equal(errno, EMFILE);
    assert_int_equal(setrlimit(RLIMIT_NOFILE, &limit), 0);
    assert_int_equal(kept_number(&manhole.wake_bell), -1);
}

/* ---- Clocks --------------------------------------------------------------------------- */

static void
seconds_are_milliseconds_for_poll(void **state)
{
    static const struct {
        double seconds;
        int ms;
    } rows[] = {
        {0, 0},           {1e-9, 1},   {0.0005, 1},
        {0.5, 500},       {60, 60000}, {2147483.647, INT_MAX},
        {1e300, INT_MAX},
    };
    (void)state;
    for (size_t i = 0; i < Py_ARRAY_LENGTH(rows); i++) {
        if (seconds_to_ms(rows[i].seconds) != rows[i].ms) {
            fail_msg("%g s: %d ms", rows[i].seconds, seconds_to_ms(rows[i].seconds));
        }
    }
}

static void
deadline_is_a_timeout_for_poll(void **state)
{
    const int64_t now = monotonic_ms();
    const int64_t hour = 3600000;
    (void)state;
    assert_int_equal(ms_until(-1), -1);
    assert_int_equal(ms_until(0), 0);
    assert_int_equal(ms_until(now - 1), 0);
    assert_in_range(ms_until(now + hour), hour / 2, hour);
    assert_int_equal(ms_until(INT64_MAX), INT_MAX);
}

static void
wait_is_sliced_for_signals(void **state)
{
    (void)state;
    assert_int_equal(slice_of(-1), SIGNAL_CHECK_MS);
    assert_int_equal(slice_of(INT_MAX), SIGNAL_CHECK_MS);
    assert_int_equal(slice_of(1), 1);
    assert_int_equal(slice_of(0), 0);
}

#if CAN_FREEZE

/* In a chroot, say, what a copy is given in the place of all that was open would be written to. */
static void
null_device_is_told_from_a_file_in_its_place(void **state)
{
    FILE *file = tmpfile();
    int null_fd = open("/dev/null", O_RDWR | O_CLOEXEC);
    int zero_fd = open("/dev/zero", O_RDWR | O_CLOEXEC);
    (void)state;
    assert_non_null(file);
    assert_true(is_null_device(null_fd));
    assert_false(is_null_device(zero_fd));
    assert_false(is_null_device(fileno(file)));
    assert_false(is_null_device(-1));
    (void)close(null_fd);
    (void)close(zero_fd);
    (void)fclose(file);
}

#endif /* CAN_FREEZE */

int
main(void)
{
    static const struct CMUnitTest tests[] = {
        cmocka_unit_test(closing_twice_is_harmless),
        cmocka_unit_test(kept_descriptor_is_known_until_it_is_closed),
        cmocka_unit_test(descriptor_closed_behind_our_back_is_lost),
        cmocka_unit_test(descriptor_of_the_application_s_is_left_alone),
        cmocka_unit_test(bell_rings_until_it_is_silenced),
        cmocka_unit_test(bell_cannot_be_rung_by_another_process),
        cmocka_unit_test(bells_are_made_once_and_anew_when_lost),
        cmocka_unit_test(socket_in_the_place_of_a_bell_is_not_rung),
        cmocka_unit_test(bells_need_descriptors),
        cmocka_unit_test(seconds_are_milliseconds_for_poll),
        cmocka_unit_test(deadline_is_a_timeout_for_poll),
        cmocka_unit_test(wait_is_sliced_for_signals),
#if CAN_FREEZE
        cmocka_unit_test(null_device_is_told_from_a_file_in_its_place),
#endif
    };
    return RUN_UNIT_TESTS(tests);
}
