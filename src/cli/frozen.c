/* Frozen: a copy of the process instead of the process itself.
 *
 * A manhole that is older than the question would give us the process itself, a console where what
 * is typed counts. So nothing goes over before it has said "frozen". The copy is made when it has
 * got something from us, so until then we may still leave: for a process that is large stands still
 * meanwhile, its page tables being copied.
 */
#ifndef MANHOLE_CLI_FROZEN_C
#define MANHOLE_CLI_FROZEN_C

#include "channels.c"

enum {
    FROZEN_LARGE_MB = 4096,    /* resident, from where on we ask */
    FROZEN_MS_PER_GB = 25,     /* that a process stands still: measured at 2 GB */
    HELLO_PATIENCE_MS = 10000, /* a machine may be that busy */
};

static const char frozen_hello[] = "frozen\n";

/* Ends the program if the process is so large that the pause may be felt, unless --yes was given.
 */
static void
check_size(const struct request *request, const struct target *target, int server)
{
    pid_t pid = server_pid(server);
    long resident_mb =
        pid > 0 ? strtol(read_status(pid, "VmRSS").text, NULL, 10) / 1024 : 0;

    if (resident_mb > FROZEN_LARGE_MB && !is_given(request, OPTION_YES)) {
        fail(STATUS_USAGE,
             "process %s has %.1f GB in memory and would stand still for about %ld ms to "
             "be copied; with --yes it is",
             label_of(target).text, (double)resident_mb / 1024,
             resident_mb * FROZEN_MS_PER_GB / 1024);
    }
}

/* Reads a line, no further. Returns false when none comes. */
static bool
read_hello(int server, struct buffer *line)
{
    double deadline = now_s() + HELLO_PATIENCE_MS / 1e3;
    char byte = 0;

    while (line->length < QUOTED_SIZE && byte != '\n') {
        struct pollfd fd = {.fd = server, .events = POLLIN};
        if (poll(&fd, 1, patience_until(deadline)) != 1 ||
            recv(server, &byte, 1, 0) != 1) {
            return false;
        }
        append(line, &byte, 1);
    }
    return byte == '\n';
}

/* As open_connection(), to a manhole that knows what a frozen copy is. -1: this one does not, or
 * does not answer; nothing was sent. */
static int
try_frozen(const struct request *request, struct target *target, const char *channel)
{
    OWNED_BUFFER line = {.data = NULL};
    int server = open_connection(request, target, channel);
    struct pollfd answer = {.fd = server, .events = POLLIN};

    if (poll(&answer, 1, FIRST_BYTE_PATIENCE_MS) == 0 &&
        say_hindrance(server_pid(server))) {
        leave(STATUS_NO_CONNECTION);
    }
    bool is_line = read_hello(server, &line);
    if (is_line && strcmp(text_of(&line), frozen_hello) == 0) {
        check_size(request, target, server);
        return server;
    }
    if (is_line && strncmp(text_of(&line), "manhole: ", 9) == 0) {
        show_lines(STDERR_FILENO, NULL, &line, true);
        leave(STATUS_NO_CONNECTION);
    }
    (void)close(server);
    return -1;
}

static int
open_frozen(const struct request *request, struct target *target, const char *channel)
{
    if (target->port != 0) {
        fail(STATUS_USAGE, "argument --frozen: not over TCP; run manhole-cli over there, "
                           "with --host or --exec");
    }
    int server = try_frozen(request, target, channel);
    if (server < 0) {
        fail(STATUS_NO_CONNECTION,
             "the manhole of process %s makes no frozen copies: it is older, or does not "
             "answer; nothing was sent",
             label_of(target).text);
    }
    return server;
}

#endif /* MANHOLE_CLI_FROZEN_C */
