/* Completion: Tab at a prompt.
 *
 * The session is asked beside the console what may stand in place of what stands before the cursor:
 * an answer is lines, each of which begins with that. It is completed as far as the session leaves
 * no choice, else the choice is shown, in columns. What it has none of, or a server that knows no
 * such question, leaves the line as it is. At a prompt of our own who has put that is asked.
 */
#ifndef MANHOLE_CLI_COMPLETION_C
#define MANHOLE_CLI_COMPLETION_C

#include "block.c"

#ifdef HAVE_LIBEDIT

/* How long the beginning is that all lines have in common. */
static size_t
common_length(const struct buffer *lines)
{
    size_t common = strcspn(text_of(lines), "\n");

    for (size_t start = common + 1; start < lines->length;) {
        const char *line = lines->data + start;
        size_t same = 0;
        while (same < common && line[same] == lines->data[same]) {
            same++;
        }
        common = same;
        start += strcspn(line, "\n") + 1;
    }
    while (common > 0 && ((unsigned char)lines->data[common] & 0xc0) == 0x80) {
        common--; /* not in the middle of a character */
    }
    return common;
}

/* How much of a line that may go on in several ways is not shown with them: all before the name. In
 * a string a dot is a part of one. */
static size_t
count_hidden(const char *line)
{
    const char *name = line + strlen(line);

    while (name > line && strchr(" \t/'\"([{,=:;", name[-1]) == NULL) {
        name--;
    }
    if (name == line || strchr("/'\"", name[-1]) == NULL) {
        const char *dot = strrchr(name, '.');
        name = dot != NULL ? dot + 1 : name;
    }
    return (size_t)(name - line);
}

/* Shows what may follow, in columns. */
static void
show_matches(const struct buffer *matches, const char *line)
{
    size_t hidden = count_hidden(line);
    size_t columns = (size_t)count_columns();
    size_t width = 0;
    size_t column = 0;
    size_t length = 0;

    for (size_t i = 0; i < matches->length; i += length) {
        length = next_line(matches, i, true);
        width = length - hidden + 1 > width ? length - hidden + 1 : width;
    }
    for (size_t i = 0; i < matches->length; i += length) {
        length = next_line(matches, i, true);
        size_t shown = length - hidden - 1;
        append_harmless(&editor.out, matches->data + i + hidden, shown);
        column += width;
        if (column + width > columns || i + length >= matches->length) {
            append_text(&editor.out, "\n");
            column = 0;
        }
        else {
            append_format(&editor.out, "%*s", (int)(width - shown), "");
        }
    }
    show_output();
}

/* Whether each line begins with the start and goes on behind it. */
static bool
are_matches(const struct buffer *lines, const char *start)
{
    for (size_t i = 0; i < lines->length; i += next_line(lines, i, true)) {
        if (strncmp(lines->data + i, start, strlen(start)) != 0) {
            return false;
        }
    }
    return lines->length > 0 && ends_with(lines, "\n");
}

/* Inserts a name, without the quote and bracket at its end that stand there already. */
static void
insert_name(EditLine *el, char *name)
{
    const LineInfoW *line = el_wline(el);
    char *closing = name + strlen(name);

    while (closing > name && strchr("'\"])", closing[-1]) != NULL) {
        closing--;
    }
    for (; *closing != '\0'; closing++) {
        size_t length = strlen(closing);
        size_t same = 0;
        while (same < length && line->cursor + same < line->lastchar &&
               line->cursor[same] == (wchar_t)closing[same]) {
            same++;
        }
        if (same == length) {
            *closing = '\0';
            break;
        }
    }
    (void)el_insertstr(el, name);
}

/* What the line may become, of which that much stands before the cursor. */
static void
find_matches(const struct buffer *start, struct buffer *matches)
{
    OWNED_BUFFER question = {.data = NULL};

    if (editor.server < 0) {
        editor.complete_locally(text_of(start), matches);
        return;
    }
    append_format(&question, "%s\n", text_of(start));
    ask_aside(editor.target, "complete", &question, matches);
}

/* Tab: indents at the start of a line; else completes what stands before the cursor as far as the
 * session leaves no choice, or shows the choice. */
static unsigned char
on_tab(EditLine *el, int key)
{
    const LineInfoW *line = el_wline(el);
    OWNED_BUFFER start = {.data = NULL};
    OWNED_BUFFER matches = {.data = NULL};

    (void)key;
    append_characters(&start, line->buffer, line->cursor);
    if (editor.server >= 0 && strspn(text_of(&start), " \t") == start.length) {
        return el_insertstr(el, "    ") == 0 ? CC_REFRESH : CC_ERROR;
    }
    find_matches(&start, &matches);
    if (are_matches(&matches, text_of(&start))) {
        size_t common = common_length(&matches);
        if (common > start.length) {
            matches.data[common] = '\0';
            insert_name(el, matches.data + start.length);
        }
        else if (line_length(&matches) < matches.length) {
            show_matches(&matches, text_of(&start));
        }
    }
    return CC_REFRESH;
}

#endif /* HAVE_LIBEDIT */

#endif /* MANHOLE_CLI_COMPLETION_C */
