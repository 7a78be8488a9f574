/* Telnet: what a TCP client sends, made the plain text that a session reads.
 * Runs on:  a helper, DETACHED, beside the session's own thread; that thread starts it.
 * Touches:  the session's descriptors; through interrupt_session() what it runs.
 *
 * How it works. telnet(1), nc(1) and any program are served alike. The helper reads the client's
 * socket byte by byte (decode_byte) and writes what is text to a pair of sockets, from which the
 * session reads (plain_fd) as a Unix client's session does from its client. It takes a thread of
 * its own because Ctrl-C must be seen while the session's runs something or waits for Python.
 *
 *   Lines may end with LF, CR LF or CR NUL. Telnet's commands (RFC 854) are taken out: who offers
 *   an option or asks for one is told no, an end of file (Ctrl-D at the start of a line) ends the
 *   input.
 *
 *   Ctrl-C, as a command or as a byte, interrupts what runs, and takes back the line that is half
 *   typed or waits to be read. Which of these it will be cannot be known here, so it is both: the
 *   text gets a line that ends with Ctrl-C, which the session drops when it comes to it; and before
 *   that is passed on, what runs is interrupted (pass_interrupt). Until the line has been read,
 *   what the session begins to run is interrupted, too: taken_back.
 *
 *   A web page can have its user's browser send any text to a port: a client whose first line is
 *   one of HTTP's is let go before a line of it is run (check_first_line).
 *
 *   Eight bits. A telnet that is not asked for binary (RFC 856) looks at seven bits of what is
 *   typed, and makes commands of the bytes that are control characters by these: 0x9c, of UTF-8's
 *   most common, is Ctrl-\. It cannot be asked at once, for nc would show that. So what it does in
 *   the middle of a character is undone, and it is asked when it has shown what it is and that it
 *   is needed.
 */
#ifndef MANHOLE_SESSION_TELNET_C
#define MANHOLE_SESSION_TELNET_C

#include "../base/compat.c"
#include "../base/state.c"
#include "../base/locks.c"
#include "../base/basics.c"
#include "../base/log.c"
#include "../door/tcp.c"
#include "output.c"
#include "interrupt.c"

enum {
    /* How long a TCP client's Ctrl-C waits for Python before the session may read on. */
    INTERRUPT_PATIENCE_MS = 100,
    /* From the end of what a TCP client sends to the look whether it is still there to read. */
    SETTLE_MS = 20,
};

enum {
    CTRL_C = 3,
    CTRL_D = 4,
    /* Telnet's commands, from RFC 854; the end of file and suspend from RFC 1184. */
    TELNET_EOF = 236,
    TELNET_SUSP = 237,
    TELNET_SE = 240,
    TELNET_BRK = 243,
    TELNET_IP = 244,
    TELNET_AO = 245,
    TELNET_SB = 250,
    TELNET_WILL = 251,
    TELNET_WONT = 252,
    TELNET_DO = 253,
    TELNET_DONT = 254,
    TELNET_IAC = 255,
    /* An option, from RFC 856. */
    TELNET_BINARY = 0,
};

/* What the next byte is. */
enum telnet_state {
    TELNET_TEXT,
    TELNET_AFTER_CR,
    TELNET_COMMAND,      /* after IAC */
    TELNET_OPTION,       /* after IAC and one of WILL, WONT, DO, DONT */
    TELNET_SUBOPTION,    /* up to IAC SE */
    TELNET_SUBOPTION_IAC /* after IAC in there */
};

/* What came of a byte beside text. */
enum telnet_event {
    TELNET_NOTHING,
    TELNET_END,
    TELNET_REFUSE,     /* answer with verb and option */
    TELNET_ASK_BINARY, /* for bytes as they are */
};

struct telnet {
    enum telnet_state state;
    bool in_line;         /* the line has begun */
    bool interrupted;     /* in what is in text */
    bool checked;         /* that the first line is none of HTTP's */
    bool is_telnet;       /* by its commands, or its ends of lines */
    bool beyond_ascii;    /* what is typed there */
    bool asked_binary;    /* or it has offered that itself */
    int missing;          /* bytes of the UTF-8 character that has begun */
    unsigned char verb;   /* of the command being read; of the answer */
    unsigned char option; /* of the answer */
    size_t length;        /* of text */
    char text[4096];
};

/* What is half typed, or waits for a line, gets one that says so, see is_taken_back(). */
static void
decode_interrupt(struct telnet *telnet)
{
    telnet->text[telnet->length++] = CTRL_C;
    telnet->text[telnet->length++] = '\n';
    telnet->in_line = false;
    telnet->interrupted = true;
}

/* Follows where characters of UTF-8 begin and end. */
static void
follow_utf8(struct telnet *telnet, unsigned char byte)
{
    if (byte >= 0xc2 && byte <= 0xf4) {
        telnet->missing = byte >= 0xf0 ? 3 : byte >= 0xe0 ? 2 : 1;
    }
    else {
        telnet->missing -= telnet->missing > 0 && (byte & 0xc0) == 0x80;
        telnet->missing = (byte & 0xc0) == 0x80 ? telnet->missing : 0;
    }
    telnet->beyond_ascii = telnet->beyond_ascii || byte >= 0x80;
}

/* A byte that is no command: text, or a key. */
static enum telnet_event
decode_text(struct telnet *telnet, unsigned char byte)
{
    if (byte == TELNET_IAC) {
        telnet->state = TELNET_COMMAND;
        return TELNET_NOTHING;
    }
    follow_utf8(telnet, byte);
    if (byte == CTRL_C) {
        decode_interrupt(telnet);
        return TELNET_NOTHING;
    }
    if (byte == CTRL_D && !telnet->in_line) {
        return TELNET_END;
    }
    telnet->state = byte == '\r' ? TELNET_AFTER_CR : TELNET_TEXT;
    telnet->is_telnet = telnet->is_telnet || byte == '\r';
    telnet->in_line = byte != '\r' && byte != '\n';
    telnet->text[telnet->length++] = (char)(byte == '\r' ? '\n' : byte);
    return TELNET_NOTHING;
}

/* The byte that telnet has made this command of, if it was typed inside a character; 0: none. */
static unsigned char
mangled_byte(unsigned char command)
{
    static const struct {
        unsigned char command;
        unsigned char byte;
    } rows[] = {
        {TELNET_IP, 0x83},   {TELNET_EOF, 0x84}, {TELNET_AO, 0x8f},
        {TELNET_SUSP, 0x9a}, {TELNET_BRK, 0x9c},
    };
    for (size_t i = 0; i < Py_ARRAY_LENGTH(rows); i++) {
        if (rows[i].command == command) {
            return rows[i].byte;
        }
    }
    return 0;
}

/* The byte behind IAC. */
static enum telnet_event
decode_command(struct telnet *telnet, unsigned char byte)
{
    telnet->state = TELNET_TEXT;
    telnet->verb = byte;
    telnet->is_telnet = telnet->is_telnet || byte != TELNET_IAC;
    if (telnet->missing > 0 && mangled_byte(byte) != 0) {
        return decode_text(telnet, mangled_byte(byte));
    }
    switch (byte) {
    case TELNET_IAC: /* the byte 255 itself */
        follow_utf8(telnet, byte);
        telnet->text[telnet->length++] = (char)byte;
        return TELNET_NOTHING;
    case TELNET_WILL:
    case TELNET_WONT:
    case TELNET_DO:
    case TELNET_DONT:
        telnet->state = TELNET_OPTION;
        return TELNET_NOTHING;
    case TELNET_SB:
        telnet->state = TELNET_SUBOPTION;
        return TELNET_NOTHING;
    case TELNET_IP:
    case TELNET_BRK:
        decode_interrupt(telnet);
        return TELNET_NOTHING;
    case TELNET_EOF:
        return TELNET_END;
    default:
        return TELNET_NOTHING;
    }
}

/* Asks for bytes as they are, once; who offers that himself is answered with the same. */
static enum telnet_event
ask_binary(struct telnet *telnet)
{
    bool asked = telnet->asked_binary;
    telnet->asked_binary = true;
    return asked ? TELNET_NOTHING : TELNET_ASK_BINARY;
}

/* What is not wanted, or no more, is as it is already: no answer, or they would go on for ever. */
static enum telnet_event
decode_option(struct telnet *telnet, unsigned char byte)
{
    telnet->state = TELNET_TEXT;
    telnet->option = byte;
    switch (telnet->verb) {
    case TELNET_DO:
        telnet->verb = TELNET_WONT;
        return TELNET_REFUSE;
    case TELNET_WILL:
        telnet->verb = TELNET_DONT;
        return byte == TELNET_BINARY ? ask_binary(telnet) : TELNET_REFUSE;
    default:
        return TELNET_NOTHING;
    }
}

/* Takes one byte in; there is room for two more in text. */
static enum telnet_event
decode_byte(struct telnet *telnet, unsigned char byte)
{
    switch (telnet->state) {
    case TELNET_COMMAND:
        return decode_command(telnet, byte);
    case TELNET_OPTION:
        return decode_option(telnet, byte);
    case TELNET_SUBOPTION:
        telnet->state = byte == TELNET_IAC ? TELNET_SUBOPTION_IAC : TELNET_SUBOPTION;
        return TELNET_NOTHING;
    case TELNET_SUBOPTION_IAC:
        telnet->state = byte == TELNET_SE ? TELNET_TEXT : TELNET_SUBOPTION;
        return TELNET_NOTHING;
    case TELNET_AFTER_CR:
        telnet->state = TELNET_TEXT;
        return byte == '\n' || byte == '\0' ? TELNET_NOTHING : decode_text(telnet, byte);
    case TELNET_TEXT:
        break;
    }
    return decode_text(telnet, byte);
}

static bool
is_being_interrupted(struct session *session)
{
    lock_leaf(&session->out_lock);
    bool interrupted = session->run.interrupted;
    unlock(&session->out_lock);
    return interrupted;
}

/* The session has read all that it was given, so also the line of the last Ctrl-C. */
static bool
has_read_all(struct session *session)
{
    int unread = 0;
    return ioctl(kept_number(&session->plain_fd), FIONREAD, &unread) == 0 && unread == 0;
}

/* Interrupts what the session runs. It is to have its exception before it can read the line that
 * comes with it, if Python answers. */
DETACHED static void
pass_interrupt(struct session *session, struct telnet *telnet)
{
    telnet->interrupted = false;
    atomic_store(&session->run.taken_back, true);
    (void)interrupt_session(session, false);
    for (int ms = 0; ms < INTERRUPT_PATIENCE_MS && is_being_interrupted(session); ms++) {
        (void)poll(NULL, 0, 1);
    }
}

/* For what one more byte may come to. */
static bool
has_room(const struct telnet *telnet)
{
    return telnet->length + 2 <= sizeof(telnet->text);
}

/* Whether text begins with METHOD /... HTTP/, or is all of one line that may be so. */
static bool
is_http_request(const char *text, size_t length)
{
    const char *newline = memchr(text, '\n', length);
    size_t end = newline == NULL ? length : (size_t)(newline - text);
    size_t method = 0;
    while (method < end && text[method] >= 'A' && text[method] <= 'Z') {
        method++;
    }
    return method > 0 && end - method > 1 && text[method] == ' ' &&
           (text[method + 1] == '/' || text[method + 1] == 'h') &&
           (newline == NULL || memmem(text, end, " HTTP/", 6) != NULL);
}

/* Any web page can have this very user's browser send what it likes to our port, behind the lines
 * that make it HTTP: none of them must be run. Returns whether the text, which has its first line
 * by now, may be passed on. */
DETACHED static bool
check_first_line(struct session *session, struct telnet *telnet)
{
    telnet->checked = true;
    if (is_http_request(telnet->text, telnet->length)) {
        log_line(
            "Turned the client at %s away: it sends HTTP, as a web page may have told "
            "a browser to",
            session->peer.address);
        (void)shutdown(kept_number(&session->fd), SHUT_RDWR);
        telnet->length = 0; /* whoever tries to pass it on once more has nothing */
        return false;
    }
    return true;
}

/* Hands the text over to the session, as fast as that reads. Returns whether it takes it. */
DETACHED static bool
send_text(struct session *session, struct telnet *telnet)
{
    const char *next = telnet->text;
    while (telnet->length > 0) {
        ssize_t sent =
            send(kept_number(&session->telnet_fd), next, telnet->length, MSG_NOSIGNAL);
        if (sent < 0 && errno != EINTR) {
            if (errno != EPIPE) { /* the session reads no more */
                log_line("Cannot pass on what a TCP client sends: %s", error_text(errno));
            }
            return false;
        }
        if (sent > 0) {
            next += sent;
            telnet->length -= (size_t)sent;
        }
    }
    return true;
}

/* The same, of text that may be passed on; before it the Ctrl-C in it. */
DETACHED static bool
pass_text(struct session *session, struct telnet *telnet)
{
    if (!telnet->checked) {
        if (has_room(telnet) && memchr(telnet->text, '\n', telnet->length) == NULL) {
            return true; /* when there is more of it */
        }
        if (!check_first_line(session, telnet)) {
            return false;
        }
    }
    if (telnet->interrupted) {
        pass_interrupt(session, telnet);
    }
    else if (has_read_all(session)) {
        atomic_store(&session->run.taken_back, false);
    }
    return send_text(session, telnet);
}

/* IAC, a verb and an option, between two pieces of the session's own output, never within one. */
DETACHED static void
send_option(struct session *session, unsigned char verb, unsigned char option)
{
    const char answer[] = {(char)TELNET_IAC, (char)verb, (char)option};
    const char *bytes = answer;
    size_t length = sizeof(answer);
    begin_sending(session);
    (void)send_own(session, &bytes, &length);
    end_sending(session);
}

/* Does what bytes from the client ask for. Returns false at the end of its input. Answers go out
 * before a Ctrl-C that came with them has its effect: telnet drops what it gets until they come. */
DETACHED static bool
decode_bytes(struct session *session, struct telnet *telnet, const unsigned char *bytes,
             size_t length)
{
    bool more = true;
    for (size_t i = 0; i < length && more; i++) {
        enum telnet_event event = decode_byte(telnet, bytes[i]);
        if (event == TELNET_NOTHING && telnet->is_telnet && telnet->beyond_ascii) {
            event = ask_binary(telnet);
        }
        if (event == TELNET_REFUSE) {
            send_option(session, telnet->verb, telnet->option);
        }
        else if (event == TELNET_ASK_BINARY) {
            send_option(session, TELNET_DO, TELNET_BINARY);
        }
        more = event != TELNET_END;
        if (!has_room(telnet)) {
            more = pass_text(session, telnet) && more;
        }
    }
    return pass_text(session, telnet) && more;
}

/* Waits for bytes of the client. Returns false when no more come. */
DETACHED static bool
receive_more(struct session *session, struct telnet *telnet)
{
    unsigned char bytes[4096];
    struct pollfd client = {.fd = atomic_load(&session->fd.number), .events = POLLIN};
    (void)poll(&client, 1, -1);
    ssize_t got = recv(kept_number(&session->fd), bytes, sizeof(bytes), MSG_DONTWAIT);
    return got < 0 ? errno == EAGAIN || errno == EINTR
                   : got > 0 && decode_bytes(session, telnet, bytes, (size_t)got);
}

/* Waits so long for the other side to close the connection, which TCP does not tell from the end of
 * what it sends until we send something; makes it look to poll() as it does of other clients.
 * Returns whether it is gone, or the session over. */
DETACHED static bool
wait_until_gone(struct session *session, int timeout_ms)
{
    struct pollfd client = {.fd = atomic_load(&session->fd.number), .events = 0};
    bool gone = poll(&client, 1, timeout_ms) > 0 || atomic_load(&session->over);
    if (!gone && is_far_end_closed(client.fd)) {
        (void)shutdown(kept_number(&session->fd), SHUT_RDWR);
        gone = true;
    }
    return gone;
}

/* Body of the helper. */
DETACHED static void *
telnet_main(void *argument)
{
    struct session *session = argument;
    struct telnet telnet = {.state = TELNET_TEXT};
    while (receive_more(session, &telnet)) {
    }
    if (!telnet.checked) {
        telnet.checked = true; /* the first line is the last, and has no end */
        (void)pass_text(session, &telnet);
    }
    bool gone = wait_until_gone(session, SETTLE_MS);
    (void)shutdown(kept_number(&session->telnet_fd), SHUT_WR);
    while (!gone) {
        gone = wait_until_gone(session, GONE_CHECK_MS);
    }
    close_kept(&session->telnet_fd);
    helper_done(session);
    return NULL;
}

/* From here on the session's client is one of telnet's kind. Returns the descriptor to read it
 * from, or -1 with errno. */
DETACHED static int
open_telnet(struct session *session)
{
    const int yes = 1;
    int ends[2];
    int fd = kept_number(&session->fd);
    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends) < 0) {
        return -1;
    }
    keep_fd(&session->plain_fd, ends[0]);
    keep_fd(&session->telnet_fd, ends[1]);
    (void)setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &yes, sizeof(yes));
    /* Telnet marks its Ctrl-C as urgent: it is to stay where it is in the stream all the same. */
    (void)setsockopt(fd, SOL_SOCKET, SO_OOBINLINE, &yes, sizeof(yes));
    if (!send_helper(session, telnet_main)) {
        close_kept(&session->telnet_fd);
        errno = EAGAIN;
        return -1;
    }
    return ends[0];
}

#endif /* MANHOLE_SESSION_TELNET_C */
