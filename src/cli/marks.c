/* Marks: what a console and a client at a terminal tell each other among the bytes of a session.
 *
 *   to the server     Ctrl-C (3), Ctrl-D (4), a paste between 2 and 5, or 6 and 5
 *   from the server   1 "?>>> " 2   somebody reads; 1 "?" 2   one who is not the console
 *                     1 "!" 2       he has a line that was sent before he asked
 *
 * The server is told by the calling card that lines are typed at a terminal, for then Ctrl-C and
 * Ctrl-D are for who reads there: the console, input() or Pdb. They go over as those bytes, and two
 * more stand around what is pasted, which the console runs as one; with 6 before it, instead of the
 * lines that the console has of a block.
 *
 * The server in turn says between two bytes when somebody begins to read: "?" and the prompt, if it
 * is one of the console's, of which "... " is one that goes on with a statement; and "!" when he
 * has a line that was sent before. So a prompt is known for one, whatever other threads print. Who
 * puts no such marks, as python-manhole's server, takes no keys either.
 */
#ifndef MANHOLE_CLI_MARKS_C
#define MANHOLE_CLI_MARKS_C

#include "channels.c"

enum { MARK_BEGIN = 1, MARK_END = 2, MARK_SIZE = 256 };
enum {
    KEY_PASTE = 2,
    KEY_INTERRUPT = 3,
    KEY_END = 4,
    KEY_PASTED = 5,
    KEY_PASTE_ANEW = 6,
};

enum mark { NO_MARK, MARK_UNFINISHED, MARK_WAITS, MARK_HAS_READ, MARK_BROKEN };

static struct marks {
    bool are_put;
    bool is_inside;
    bool is_begun;      /* by the last byte */
    struct buffer text; /* of one, so far */
    bool is_asked;      /* by who is not the console that begins a statement */
} marks;

/* What has come with a byte. A broken mark was none: its text is to be shown. What another begins
 * in is broken: the process wrote the first byte of one, and asks now. */
static enum mark
parse_mark(char byte)
{
    bool was_inside = marks.is_inside;

    if (!was_inside || marks.is_begun) {
        empty(&marks.text);
    }
    marks.is_begun = byte == MARK_BEGIN;
    if (marks.is_begun) {
        marks.is_inside = true;
        return was_inside ? MARK_BROKEN : MARK_UNFINISHED;
    }
    if (!was_inside) {
        return NO_MARK;
    }
    if (byte != MARK_END) {
        append(&marks.text, &byte, 1);
        marks.is_inside = byte != '\n' && marks.text.length < MARK_SIZE;
        return marks.is_inside ? MARK_UNFINISHED : MARK_BROKEN;
    }
    marks.is_inside = false;
    if (strcmp(text_of(&marks.text), "!") == 0) {
        marks.is_asked = false;
        return MARK_HAS_READ;
    }
    if (marks.text.length == 0 || marks.text.data[0] != '?') {
        return MARK_BROKEN;
    }
    marks.is_asked = marks.text.length == 1 || strcmp(marks.text.data, "?... ") == 0;
    marks.are_put = true;
    forget_interrupt();
    return MARK_WAITS;
}

#endif /* MANHOLE_CLI_MARKS_C */
