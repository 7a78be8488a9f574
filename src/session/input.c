/* Input: what a client types, on its way to who reads it.
 * Runs on:  the session's thread, ATTACHED; DETACHED while it waits for its client.
 * Touches:  the session's own fields.
 *
 * How it works. sys.stdin is, in the session's thread, a text file over an object of class Typed,
 * the only one that reads from the client: the console's lines, input(), Pdb and a program's stdin
 * all come through read_typed(). To wait for the client is to let go of Python; on the way back in
 * the session has a client that waits for an answer, see the room hang. Bytes that are no UTF-8
 * become lone surrogates: the line fails with an error, and the session goes on.
 *
 *   Keys. A client at a terminal, whose channel is marked, sends its keys Ctrl-C and Ctrl-D as
 *   those bytes among the text, and each is for who reads just then, be it the console, input() or
 *   Pdb. So never more is read than up to the next key: what follows is the next reader's.
 *
 *   Marks. What such a client hears is marked in turn, for it must know whether somebody reads, and
 *   what the prompt is: "\1?PROMPT\2" when the session begins to wait, "\1!\2" when it has got
 *   something. Of input() and Pdb the prompt is the line that they have written before, and PROMPT
 *   is empty.
 *
 *   A paste comes between two more keys. To the console each is the end of a read: the first ends
 *   an empty line, by which it knows that all up to the second is one text (read_input); to all
 *   others they are nothing. The first may be another, by which the text stands for a block of
 *   which the console has the first lines: one that was edited where it was typed.
 *
 *   Taken back. A TCP client's Ctrl-C cannot overtake the text before it as a side channel does.
 *   The line that it stands in ends with it, and is none: see read_line(), and the room telnet.
 */
#ifndef MANHOLE_SESSION_INPUT_C
#define MANHOLE_SESSION_INPUT_C

#include "../base/compat.c"
#include "../base/state.c"
#include "../base/basics.c"
#include "../base/parts.c"
#include "../door/socket.c"
#include "output.c"
#include "streams.c"
#include "hang.c"
#include "telnet.c"

enum {
    /* Characters of one line typed at the prompt. */
    MAX_LINE = 16 * 1024 * 1024,
};

/* The client has closed its connection, not just its writing side: it will see no answer. */
static bool
is_gone(struct session *session)
{
    struct pollfd client = {.fd = atomic_load(&session->fd.number), .events = 0};
    return poll(&client, 1, 0) == 1 && (client.revents & (POLLHUP | POLLNVAL)) != 0;
}

static bool
ends_line(PyObject *line)
{
    Py_ssize_t length = PyUnicode_GetLength(line);
    return length > 0 && PyUnicode_ReadChar(line, length - 1) == '\n';
}

/* Keys beside Ctrl-C and Ctrl-D. */
enum { PASTE_BEGINS = 2, PASTE_ENDS = 5, PASTE_BEGINS_ANEW = 6 };

/* Whether a byte is no text but a key of the client's. */
static bool
is_key(const struct session *session, char byte)
{
    return session->channel->marked &&
           (byte == CTRL_C || byte == CTRL_D || byte == PASTE_BEGINS ||
            byte == PASTE_ENDS || byte == PASTE_BEGINS_ANEW);
}

/* The prompt, with the marks for a client that wants them. */
static void
append_prompt(struct text *text, const struct session *session, const char *prompt)
{
    append_string(text, session->channel->marked ? "\1?" : "");
    append_string(text, prompt);
    append_string(text, session->channel->marked ? "\2" : "");
}

/* Returns the descriptor, the session's, at which the client's bytes are to be read; or -1 with an
 * exception. */
ATTACHED static int
open_input_fd(struct session *session)
{
    int fd = kept_number(&session->fd);
    int flags = fcntl(fd, F_GETFL);
    if (flags >= 0 && (flags & O_NONBLOCK) != 0) { /* a socket object's timeout set it */
        (void)fcntl(fd, F_SETFL, flags & ~O_NONBLOCK);
    }
    if (is_inet(fd) && atomic_load(&session->plain_fd.number) < 0) {
        PyThreadState *tstate = detach();
        fd = open_telnet(session);
        int error = errno;
        reattach(tstate);
        errno = error;
    }
    if (fd < 0) {
        PyErr_SetFromErrno(PyExc_OSError);
    }
    return fd;
}

/* See open_input_fd(). */
static int
input_fd(struct session *session)
{
    return kept_number(atomic_load(&session->plain_fd.number) >= 0 ? &session->plain_fd
                                                                   : &session->fd);
}

/* As recv(), up to the next key, or that key alone. */
DETACHED static ssize_t
receive_up_to_key(struct session *session, int fd, char *bytes, size_t size)
{
    ssize_t got = recv(fd, bytes, size, session->channel->marked ? MSG_PEEK : 0);
    size_t length = 0;
    if (got <= 0 || !session->channel->marked) {
        return got;
    }
    while (length < (size_t)got && !is_key(session, bytes[length])) {
        length++;
    }
    atomic_store(&session->run.unbegun, true);
    return recv(fd, bytes, length == 0 ? 1 : length, 0);
}

/* The session has got something to read. An error shows when it writes on. */
DETACHED static void
send_read_mark(struct session *session)
{
    const char *mark = "\1!\2";
    size_t length = strlen(mark);
    session->run.says_it_reads = false;
    while (send_detached(session, &mark, &length) == EINTR) {
    }
}

/* Sends what waits for that, then waits for what the client sends: detached but once, for a process
 * whose threads compute gives the GIL back after some time only. Returns how many bytes there are,
 * 0 at the end, or -1 with errno. While they wait for Python to take them the session has not
 * answered. */
ATTACHED static ssize_t
receive_typed(struct session *session, char *bytes, size_t size)
{
    PyThreadState *tstate = detach();
    struct pollfd client = {.fd = input_fd(session), .events = POLLIN};
    int error = send_unsent_detached(session);
    ssize_t got = -1;
    while (error == 0 && got < 0) {
        got = receive_up_to_key(session, client.fd, bytes, size);
        error = got < 0 ? errno : 0;
        if (error == EAGAIN) { /* somebody has set O_NONBLOCK on the shared socket */
            error = poll(&client, 1, -1) < 0 ? errno : 0;
        }
    }
    session->run.is_cut = got > 0 && !is_key(session, bytes[0]) && bytes[got - 1] != '\n';
    if (got > 0 && session->channel->marked && !session->run.pasting) {
        send_read_mark(session);
    }
    if (got > 0 &&
        (is_key(session, bytes[0]) || memchr(bytes, '\n', (size_t)got) != NULL)) {
        expect_answer(session);
    }
    reattach(tstate);
    (void)settle_report_attached(session);
    errno = error;
    return got;
}

/* As receive_typed(), and says before that it waits. Returns -1 with an exception. */
ATTACHED static ssize_t
await_typed(struct session *session, char *bytes, size_t size)
{
    ssize_t got = -1;
    if (check_interrupts(session) < 0) {
        session->run.says_it_reads = false;
        return -1;
    }
    if (session->channel->marked && !session->run.says_it_reads &&
        !session->run.pasting) {
        session->run.says_it_reads = true;
        append_prompt(&session->outbox.unsent, session,
                      session->run.prompt == NULL ? "" : session->run.prompt);
        if (check_unsent(session) < 0) {
            return -1;
        }
    }
    do {
        got = receive_typed(session, bytes, size);
    } while (got < 0 && errno == EINTR && PyErr_CheckSignals() == 0);
    if (got < 0 && !PyErr_Occurred()) {
        PyErr_SetFromErrno(PyExc_OSError);
    }
    session->run.says_it_reads = session->run.says_it_reads && got >= 0;
    return got;
}

/* Reads what is typed. Of the keys an end is one, and so are both ends of a paste to the console;
 * Ctrl-C is an exception. Returns how many bytes there are, or -1 with an exception. */
ATTACHED static ssize_t
read_typed(struct session *session, char *bytes, size_t size)
{
    for (;;) {
        ssize_t got = await_typed(session, bytes, size);
        if (got <= 0 || !is_key(session, bytes[0])) {
            return got;
        }
        if (bytes[0] == CTRL_C) {
            PyErr_SetNone(PyExc_KeyboardInterrupt);
            return -1;
        }
        if (bytes[0] == CTRL_D || session->run.takes_paste) {
            bool was_pasting = session->run.pasting;
            session->run.anew = bytes[0] == PASTE_BEGINS_ANEW || session->run.anew;
            session->run.pasting =
                bytes[0] == PASTE_BEGINS || bytes[0] == PASTE_BEGINS_ANEW;
            if (bytes[0] != PASTE_ENDS || was_pasting) {
                return 0;
            }
        }
    }
}

/* readinto(buffer), as an object under a buffered reader has it. */
ATTACHED static PyObject *
typed_readinto(PyObject *module, PyObject *target)
{
    Py_buffer view;
    (void)module;
    if (current_session == NULL) {
        PyErr_SetString(PyExc_OSError, "only a session's thread reads its client");
        return NULL;
    }
    if (PyObject_GetBuffer(target, &view, PyBUF_WRITABLE) < 0) {
        return NULL;
    }
    ssize_t got = read_typed(current_session, view.buf, (size_t)view.len);
    PyBuffer_Release(&view);
    return got < 0 ? NULL : PyLong_FromSsize_t(got);
}

ATTACHED static PyObject *
typed_fileno(PyObject *module, PyObject *unused)
{
    (void)module;
    (void)unused;
    if (current_session == NULL) {
        PyErr_SetString(PyExc_OSError, "only a session's thread has its client");
        return NULL;
    }
    return make_descriptor(input_fd(current_session));
}

static PyMethodDef typed_functions[] = {
    {"fileno", typed_fileno, METH_NOARGS, NULL},
    {"readinto", typed_readinto, METH_O, NULL},
    {NULL, NULL, 0, NULL},
};

static const char typed_program[] =
    "import " IO_MODULE " as io\n"
    "class Typed(io." RAW_IO_BASE "):\n"
    "    name = '<manhole>'\n"
    "    fileno = staticmethod(fileno)\n"
    "    readinto = staticmethod(readinto)\n"
    "    def readable(self):\n"
    "        return True\n"
    "def open():\n"
    "    file = io.TextIOWrapper(io.BufferedReader(Typed()), 'utf-8', "
    "'surrogateescape')\n"
    "    file.mode = 'r'\n"
    "    return file\n";

static const struct part typed_part = {
    .name = "typed",
    .program = typed_program,
    .functions = typed_functions,
};

/* What sys.stdin is to be in the session's thread. Returns a new reference, or NULL with an
 * exception. */
ATTACHED static PyObject *
open_input(struct session *session)
{
    return open_input_fd(session) < 0
               ? NULL
               : call_part(manhole.module, &typed_part, "open", NULL, NULL);
}

/* Drops the rest of a line that is too long, says so. Returns a new empty line, or NULL. */
ATTACHED static PyObject *
skip_line(struct session *session)
{
    static const char message[] = "manhole: line too long (limit: 16 MiB), ignored\n";
    bool skipped = false;
    while (!skipped) {
        OWNED PyObject *rest =
            PyObject_CallMethod(session->run.input, "readline", "i", MAX_LINE);
        if (rest == NULL) {
            return NULL;
        }
        skipped = PyUnicode_GetLength(rest) == 0 || ends_line(rest);
    }
    return write_client(session, message, sizeof(message) - 1) < 0
               ? NULL
               : PyUnicode_FromString("\n");
}

/* Reads a line from the client, with its newline. Returns a new str, empty at the end of
 * input, or NULL with an exception. Half a line of a client that is gone is no line: it
 * may be the first half of something harmless that is not. */
ATTACHED static PyObject *
read_any_line(struct session *session)
{
    if (PyErr_CheckSignals() < 0) {
        return NULL; /* in a oneshot: read() looks only when it is interrupted */
    }
    OWNED PyObject *line =
        PyObject_CallMethod(session->run.input, "readline", "i", MAX_LINE);
    if (line == NULL || send_unsent(session) < 0) { /* it had come with the one before */
        return NULL;
    }
    if (!PyUnicode_Check(line)) {
        PyErr_SetString(PyExc_TypeError, "sys.stdin.readline() returned no str");
        return NULL;
    }
    if (PyUnicode_GetLength(line) == MAX_LINE && !ends_line(line)) {
        return skip_line(session);
    }
    return !ends_line(line) && is_gone(session) ? PyUnicode_FromString("")
                                                : steal_reference(&line);
}

/* The line of a TCP client ends with Ctrl-C. Until it has been read, what came before it is
 * interrupted, too. */
static bool
is_taken_back(struct session *session, PyObject *line)
{
    Py_ssize_t length = PyUnicode_GetLength(line);
    return atomic_load(&session->plain_fd.number) >= 0 && length > 1 && ends_line(line) &&
           PyUnicode_ReadChar(line, length - 2) == CTRL_C;
}

/* As read_any_line(), but a line that its client has taken back is a KeyboardInterrupt; or nothing
 * at all, when that Ctrl-C has interrupted a statement, which is over by now. */
ATTACHED static PyObject *
read_line(struct session *session)
{
    for (;;) {
        OWNED PyObject *line = read_any_line(session);
        if (line == NULL || !is_taken_back(session, line)) {
            return steal_reference(&line);
        }
        atomic_store(&session->run.taken_back, false);
        if (atomic_load(&session->run.interrupts) == 0) {
            PyErr_SetNone(PyExc_KeyboardInterrupt);
            return NULL;
        }
        atomic_fetch_sub(&session->run.interrupts, 1);
    }
}

/* Reads the line that a prompt has asked for. Returns as read_line() does; NULL without an
 * exception after a SystemExit, which is not the client's, for nothing of its runs now: it goes
 * on where it came from. */
ATTACHED static PyObject *
await_line(struct session *session)
{
    session->outbox.writes = 0;
    if (session->run.input == NULL) {
        session->run.input = open_input(session);
    }
    PyObject *line = session->run.input == NULL ? NULL : read_line(session); /* new */
    if (line == NULL && PyErr_ExceptionMatches(PyExc_SystemExit)) {
        Py_XSETREF(session->run.raised, take_exception());
    }
    return line;
}

/* Asks with a prompt, and reads the line as await_line() does. At a terminal there is no prompt for
 * a line that was typed ahead, and has been read with another. */
ATTACHED static PyObject *
ask_line(struct session *session, const char *prompt)
{
    if (!session->channel->marked) {
        append_string(&session->outbox.unsent, prompt);
    }
    if (check_unsent(session) < 0) {
        return NULL;
    }
    session->run.prompt = prompt;
    PyObject *line = await_line(session); /* new */
    session->run.prompt = NULL;
    return line;
}

/* The rest of a paste of which the first key has been read. Returns a new str, empty when it is not
 * whole; or NULL with an exception. */
ATTACHED static PyObject *
read_paste(struct session *session)
{
    OWNED PyObject *text = PyObject_CallMethod(session->run.input, "read", "i", MAX_LINE);
    return text != NULL && session->run.pasting ? PyUnicode_FromString("")
                                                : steal_reference(&text);
}

/* Reads what the console is to run next: a line, or what was pasted. Returns as await_line(). */
ATTACHED static PyObject *
read_input(struct session *session, const char *prompt /* NULL: it is there already */,
           bool *is_paste)
{
    session->run.takes_paste = true;
    session->run.anew = false;
    OWNED PyObject *text =
        prompt == NULL ? await_line(session) : ask_line(session, prompt);
    *is_paste = session->run.pasting;
    if (text != NULL && session->run.pasting) {
        Py_SETREF(text, read_paste(session));
    }
    session->run.takes_paste = session->run.pasting = false;
    return steal_reference(&text);
}

#endif /* MANHOLE_SESSION_INPUT_C */
