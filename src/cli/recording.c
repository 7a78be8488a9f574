/* Recording: --record keeps what is seen of a session, in asciinema's format, version 2.
 *
 *     {"version": 2, "width": 80, "height": 24, "timestamp": 1796000000, "env": {"TERM": "xterm"}}
 *     [0.214501, "o", ">>> "]       what was shown, and when
 *     [3.002117, "r", "100x30"]     the window is that large from here on
 *
 * What is seen comes from many: libedit draws the line that is typed, the terminal itself echoes
 * where there is no libedit, children and ssh write as they like. So none of them is asked. As with
 * script(1) the client becomes a child, which has
 *
 *     for all standard streams that are a terminal   one pseudo-terminal, set as ours was
 *     for an output that is none                     a pipe of its own
 *     for an input that is none                      that input
 *
 * and we copy: from our terminal, which is raw meanwhile, to the pseudo-terminal; what comes back,
 * and from the pipes, to where it would have gone, and into the file. What is typed is in there if
 * it was echoed.
 *
 * The client has a session of its own, so that Ctrl-C at the pseudo-terminal is a signal to it.
 * What stops it stops us, then the shell has the terminal as it was; what we are sent is sent on to
 * it, and as it ends we end.
 *
 * The file is new, and its owner's alone. Each line goes there whole, so who is killed leaves one
 * that can be played. When it cannot be written to, half a line is cut off, that is said, and the
 * session goes on without.
 */
#ifndef MANHOLE_CLI_RECORDING_C
#define MANHOLE_CLI_RECORDING_C

#include "terminal.c"
#include "signals.c"

enum {
    SCREEN, /* the pseudo-terminal; then by their descriptors' numbers what are pipes; */
    STREAMS = STDERR_FILENO + 1,
    KEYS = 2 * STREAMS, /* of what poll() waits for: behind these, and where they go */
};

/* What the client writes. */
struct stream {
    int from;                 /* -1: there is none, or it is over */
    int to;                   /* where it would have gone */
    bool is_plain;            /* a pipe: newlines have no carriage return before them */
    struct buffer unfinished; /* a character of which the rest is still to come */
};

static struct recorder {
    const char *path;
    int fd;       /* -1: it could not be written to */
    off_t length; /* of its whole lines */
    double begun;
    int terminal;            /* ours; -1: no stream is one */
    struct termios settings; /* that it had */
    struct winsize size;
    struct stream streams[STREAMS];
    bool has_keyboard;  /* what is typed there is for the client */
    struct buffer keys; /* on their way to the pseudo-terminal */
    bool are_keys_over;
    pid_t client;
} recorder = {.fd = -1, .terminal = -1};

/* ---- The file ---------------------------------------------------------------------- */

/* As JSON has it, without the quotes. What is no UTF-8 becomes U+FFFD. The bytes end with a NUL. */
static void
append_escaped(struct buffer *out, const char *bytes, size_t count, bool is_plain)
{
    for (size_t i = 0; i < count;) {
        wchar_t c = 0;
        size_t length = decode(bytes + i, &c);
        if (length == 0) {
            append_text(out, "\\ufffd");
        }
        else if (c == L'\n') {
            append_text(out, is_plain ? "\\r\\n" : "\\n");
        }
        else if (c == L'\r') {
            append_text(out, "\\r");
        }
        else if (c < 0x20 || c == 0x7f) {
            append_format(out, "\\u%04x", (unsigned)c);
        }
        else {
            append_text(out, c == L'"' || c == L'\\' ? "\\" : "");
            append(out, bytes + i, length);
        }
        i += length > 0 ? length : 1;
    }
}

/* Says why there will be no more of it, once. What was written of the last line goes, so that the
 * file ends with a whole one. The terminal is raw, and has the client's text: so the message begins
 * and ends a line of its own. */
static void
give_up_recording(void)
{
    const char *start_of_line = recorder.terminal >= 0 ? "\r\n" : "";
    int error = errno;

    (void)!ftruncate(recorder.fd, recorder.length);
    (void)close(recorder.fd);
    recorder.fd = -1;
    errno = error;
    (void)fputs(start_of_line, stderr);
    say_error("cannot write to the recording %s: %m; it ends here, the session goes on",
              quote(recorder.path).text);
    (void)fputs(start_of_line[0] != '\0' ? "\r" : "", stderr);
}

static void
write_recorded(const struct buffer *line)
{
    size_t done = 0;

    while (recorder.fd >= 0 && done < line->length) {
        ssize_t count = write(recorder.fd, line->data + done, line->length - done);
        if (count < 0) {
            give_up_recording();
            return;
        }
        done += (size_t)count;
    }
    recorder.length += (off_t)done;
}

static void
record_event(const char *kind, const char *bytes, size_t count, bool is_plain)
{
    OWNED_BUFFER line = {.data = NULL};

    append_format(&line, "[%.6f, \"%s\", \"", now_s() - recorder.begun, kind);
    append_escaped(&line, bytes, count, is_plain);
    append_text(&line, "\"]\n");
    write_recorded(&line);
}

static void
begin_file(void)
{
    static const char *const names[] = {"SHELL", "TERM"};
    OWNED_BUFFER line = {.data = NULL};
    const char *comma = "";

    append_format(&line,
                  "{\"version\": 2, \"width\": %d, \"height\": %d, \"timestamp\": %lld, "
                  "\"env\": {",
                  recorder.size.ws_col, recorder.size.ws_row, (long long)time(NULL));
    for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++) {
        /* NOLINTNEXTLINE(concurrency-mt-unsafe): there is one thread */
        const char *value = getenv(names[i]);
        if (value != NULL) {
            append_format(&line, "%s\"%s\": \"", comma, names[i]);
            append_escaped(&line, value, strlen(value), false);
            append_text(&line, "\"");
            comma = ", ";
        }
    }
    append_text(&line, "}}\n");
    recorder.begun = now_s();
    write_recorded(&line);
}

/* Nothing that is there already is written over: another recording is as precious, and a link that
 * somebody has left in /tmp may lead anywhere. */
static void
open_recording(const char *path)
{
    recorder.path = path;
    recorder.fd = open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    if (recorder.fd < 0 && errno == EEXIST) {
        fail(STATUS_TROUBLE,
             "%s is there already, and is not overwritten; give --record a new name",
             quote(path).text);
    }
    if (recorder.fd < 0) {
        fail(STATUS_TROUBLE, "cannot write the recording %s: %m", quote(path).text);
    }
}

/* ---- The terminal ------------------------------------------------------------------ */

/* While it is held keys go through as they are, and what they mean is the pseudo-terminal's to say:
 * Ctrl-C, an echo, a line. Where no keys come from it, it stays as it is, and its Ctrl-C is ours to
 * pass on. */
static void
hold_outer_terminal(bool is_held)
{
    struct termios raw = recorder.settings;

    if (recorder.has_keyboard) {
        cfmakeraw(&raw);
        (void)tcsetattr(recorder.terminal, TCSADRAIN,
                        is_held ? &raw : &recorder.settings);
    }
}

static void
release_outer_terminal(void)
{
    hold_outer_terminal(false);
}

/* It begins with the settings and the size of ours. The streams that are terminals are taken for
 * the same one, as those of a shell's are. Returns the client's end, or -1 where there is none. */
static int
open_pseudo_terminal(void)
{
    static const int fds[] = {STDOUT_FILENO, STDERR_FILENO, STDIN_FILENO};
    struct stream *screen = &recorder.streams[SCREEN];
    struct winsize size = {.ws_row = 0};
    char name[64] = "";

    recorder.size = (struct winsize){.ws_row = 24, .ws_col = 80};
    screen->from = -1;
    for (size_t i = 0; i < 3 && recorder.terminal < 0; i++) {
        recorder.terminal = isatty(fds[i]) == 1 ? fds[i] : -1;
    }
    if (recorder.terminal < 0) {
        return -1;
    }
    screen->to = recorder.terminal;
    screen->from = posix_openpt(O_RDWR | O_NOCTTY | O_NONBLOCK | O_CLOEXEC);
    int end = screen->from < 0 || grantpt(screen->from) < 0 ||
                      unlockpt(screen->from) < 0 ||
                      ptsname_r(screen->from, name, sizeof(name)) != 0
                  ? -1
                  : open(name, O_RDWR | O_NOCTTY | O_CLOEXEC);
    if (end < 0) {
        fail(STATUS_TROUBLE, "cannot open a pseudo-terminal to record from: %m");
    }
    (void)tcgetattr(recorder.terminal, &recorder.settings);
    (void)tcsetattr(end, TCSANOW, &recorder.settings);
    if (ioctl(recorder.terminal, TIOCGWINSZ, &size) == 0) {
        (void)ioctl(end, TIOCSWINSZ, &size);
    }
    if (size.ws_row > 0 && size.ws_col > 0) {
        recorder.size = size; /* a container's may be 0 by 0 */
    }
    return end;
}

/* Passes on how large our window is. The client is sent SIGWINCH by that. */
static void
follow_size(void)
{
    struct winsize size = recorder.size;

    (void)ioctl(recorder.terminal, TIOCGWINSZ, &size);
    if (size.ws_col != recorder.size.ws_col || size.ws_row != recorder.size.ws_row) {
        const struct text text = print("%dx%d", size.ws_col, size.ws_row);
        recorder.size = size;
        (void)ioctl(recorder.streams[SCREEN].from, TIOCSWINSZ, &size);
        record_event("r", text.text, strlen(text.text), false);
    }
}

/* ---- Copying ----------------------------------------------------------------------- */

static void
end_stream(struct stream *stream)
{
    close_fd(&stream->from);
    stream->from = -1;
}

static void
record_output(struct stream *stream, size_t count)
{
    if (count > 0) {
        record_event("o", stream->unfinished.data, count, stream->is_plain);
        drop(&stream->unfinished, count);
    }
}

/* An end is an error, too: EIO of a pseudo-terminal whose other end nobody has any more. */
static void
copy_stream(struct stream *stream)
{
    char bytes[CHUNK_SIZE];
    struct buffer *text = &stream->unfinished;
    ssize_t count = read(stream->from, bytes, sizeof(bytes));

    if (!append_some(text, bytes, count)) {
        end_stream(stream);
    }
    else if (count > 0) {
        write_all(stream->to, bytes, (size_t)count);
        record_output(stream, text->length - count_unfinished(text->data, text->length));
    }
}

/* What is typed goes to the pseudo-terminal. No more is read before that has taken it. */
static void
copy_keys(const struct pollfd *input)
{
    char bytes[512];
    int to = recorder.streams[SCREEN].from;

    if (input->revents != 0) {
        ssize_t count = read(terminal.input, bytes, sizeof(bytes));
        recorder.are_keys_over = !append_some(&recorder.keys, bytes, count);
    }
    if (to >= 0 && recorder.keys.length > 0) {
        ssize_t count = write(to, recorder.keys.data, recorder.keys.length);
        drop(&recorder.keys, count > 0 ? (size_t)count : 0);
    }
}

/* Copies what there is, and waits for it if wanted. Returns whether there was any. An output that
 * nobody reads any more is closed to the client, too, who knows what to do then. */
static bool
copy_some(bool waits)
{
    bool has_keys = recorder.keys.length > 0;
    bool reads_keys = recorder.has_keyboard && !recorder.are_keys_over && !has_keys;
    struct pollfd fds[KEYS + 1] = {
        [KEYS] = {.fd = reads_keys ? terminal.input : -1, .events = POLLIN}};
    bool has_any = false;

    for (int i = 0; i < STREAMS; i++) {
        const struct stream *stream = &recorder.streams[i];
        fds[i] = (struct pollfd){.fd = stream->from, .events = POLLIN};
        fds[STREAMS + i] = (struct pollfd){.fd = stream->from < 0 ? -1 : stream->to};
    }
    fds[SCREEN].events = (short)(POLLIN | (has_keys ? POLLOUT : 0));
    if (poll_with_signals(fds, KEYS + 1, waits ? -1 : 0) <= 0) {
        return false;
    }
    copy_keys(&fds[KEYS]);
    for (int i = 0; i < STREAMS; i++) {
        if ((fds[i].revents & ~POLLOUT) != 0) {
            copy_stream(&recorder.streams[i]);
            has_any = true;
        }
        else if (fds[STREAMS + i].revents != 0) {
            end_stream(&recorder.streams[i]);
        }
    }
    return has_any;
}

/* ---- The client -------------------------------------------------------------------- */

/* It has stopped itself: so do we, until the shell lets us go on. Where we have no shell either,
 * the kernel stops us not, and the client goes on at once. The window may have another size by
 * then. */
static void
stop_beside_client(void)
{
    hold_outer_terminal(false);
    (void)raise(SIGTSTP);
    hold_outer_terminal(true);
    follow_size();
    (void)kill(-recorder.client, SIGCONT);
}

/* All that the client has started has them, as from its terminal. */
static void
pass_signals_on(void)
{
    static const int passed[] = {SIGINT, SIGTERM, SIGHUP, SIGQUIT};

    for (size_t i = 0; i < sizeof(passed) / sizeof(passed[0]); i++) {
        if (consume_signal(passed[i])) {
            (void)kill(-recorder.client, passed[i]);
        }
    }
    if (consume_signal(SIGWINCH)) {
        follow_size();
    }
}

/* Copies until the client has ended, then what it has left there. That its streams end is not
 * waited for: a connection that ssh keeps in the background has them, too. SIGCHLD only ends the
 * waiting; whether the client has stopped or ended is asked for each time. */
static _Noreturn void
attend_client(void)
{
    static const int followed_signals[] = {SIGINT,  SIGTERM,  SIGHUP,
                                           SIGQUIT, SIGWINCH, SIGCHLD};
    int status = 0;
    pid_t changed = 0;

    (void)signal(SIGXFSZ, SIG_IGN); /* a limit is an error of write() */
    (void)signal(SIGCHLD, SIG_DFL); /* who ignores it learns of no child how it ended */
    for (size_t i = 0; i < sizeof(followed_signals) / sizeof(followed_signals[0]); i++) {
        follow_signal(followed_signals[i]);
    }
    (void)atexit(release_outer_terminal);
    hold_outer_terminal(true);
    begin_file();
    while ((changed = waitpid(recorder.client, &status, WNOHANG | WUNTRACED)) == 0 ||
           (changed > 0 && WIFSTOPPED(status))) {
        if (changed > 0) {
            stop_beside_client();
        }
        (void)copy_some(true);
        pass_signals_on();
    }
    while (copy_some(false)) {
    }
    for (int i = 0; i < STREAMS; i++) {
        record_output(&recorder.streams[i], recorder.streams[i].unfinished.length);
    }
    leave((enum exit_status)(WIFEXITED(status) ? WEXITSTATUS(status)
                                               : 128 + WTERMSIG(status)));
}

/* The kernel lets SIGTSTP stop nobody in a session without a shell, who could not let him go on
 * again; but we can. SIGSTOP always stops. */
static void
on_recorded_stop(int number)
{
    (void)number;
    (void)raise(SIGSTOP);
}

/* In the child, which goes on as the client. It is not to outlive who shows what it says; and it
 * keeps none of our ends, by which it would not see that we are gone. */
static void
become_client(const int ends[3], pid_t parent)
{
    (void)setsid();
    if (prctl(PR_SET_PDEATHSIG, SIGHUP) < 0 || getppid() != parent) {
        leave(STATUS_OUTPUT_GONE);
    }
    close_fd(&recorder.fd);
    for (int i = 0; i < STREAMS; i++) {
        close_fd(&recorder.streams[i].from);
    }
    if (terminal.input != STDIN_FILENO) {
        (void)close(terminal.input);
    }
    for (int fd = 0; fd < 3; fd++) {
        (void)dup2(ends[fd], fd);
        (void)ioctl(fd, TIOCSCTTY, 0); /* of those that are the pseudo-terminal */
    }
    set_handler(SIGTSTP, on_recorded_stop);
    look_at_terminal();
    terminal.is_recorded = true;
}

/* The client's ends of its three streams. They are closed when it starts another program. */
static void
open_streams(int ends[3])
{
    int pseudo_terminal = open_pseudo_terminal();
    int fds[2] = {-1, -1};

    ends[STDIN_FILENO] = recorder.has_keyboard ? pseudo_terminal : STDIN_FILENO;
    for (int fd = STDOUT_FILENO; fd <= STDERR_FILENO; fd++) {
        struct stream *stream = &recorder.streams[fd];
        *stream = (struct stream){.from = -1, .to = fd, .is_plain = true};
        ends[fd] = pseudo_terminal;
        if (isatty(fd) != 1) {
            if (pipe2(fds, O_CLOEXEC) < 0) {
                fail(STATUS_TROUBLE, "cannot open a pipe to record from: %m");
            }
            stream->from = fds[0];
            ends[fd] = fds[1];
        }
    }
}

/* Returns in the client alone, which is a child from here on. Where nobody types, the terminal is
 * left to a pager that the output goes to: that has it raw itself, and sets it back as it was. */
static void
record(const char *path, bool is_typed)
{
    const pid_t parent = getpid();
    int ends[3];

    recorder.has_keyboard = is_typed && terminal.is_typed_on;
    open_streams(ends);
    open_recording(path);
    recorder.client = fork();
    if (recorder.client < 0) {
        fail(STATUS_TROUBLE, "cannot start a process to record: %m");
    }
    if (recorder.client == 0) {
        become_client(ends, parent);
        return;
    }
    for (int fd = 0; fd < 3; fd++) {
        if (ends[fd] > STDERR_FILENO) {
            (void)close(ends[fd]); /* some are the same */
        }
    }
    attend_client();
}

#endif /* MANHOLE_CLI_RECORDING_C */
