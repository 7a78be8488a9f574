/* Buffers: bytes that grow, whole files in one, and what a block gives back at its end.
 *
 * OWNED, OWNED_BUFFER, OWNED_FD and OWNED_FOLDER before a variable release what it has when its
 * block ends, however that is left (the compiler's cleanup attribute); so functions return early.
 * So a pointer into what is owned must not be returned: it would be released just before. Where
 * the program cannot go on, as without memory, it ends: there is nobody here to hand such an error
 * to.
 */
#ifndef MANHOLE_CLI_BUFFER_C
#define MANHOLE_CLI_BUFFER_C

#include "messages.c"

/* Behind the last byte there is always a NUL, unless nothing was ever added: then data is NULL. */
struct buffer {
    char *data; /* owned */
    size_t length;
    size_t size;
};

static void
free_memory(void *pointer) /* of a variable */
{
    free(*(void **)pointer);
}

static void
free_buffer(struct buffer *buffer)
{
    free(buffer->data);
}

static void
close_fd(const int *fd)
{
    if (*fd >= 0) {
        (void)close(*fd);
    }
}

static void
close_folder(DIR **folder)
{
    if (*folder != NULL) {
        (void)closedir(*folder);
    }
}

#define OWNED __attribute__((cleanup(free_memory)))
#define OWNED_BUFFER __attribute__((cleanup(free_buffer))) struct buffer
#define OWNED_FD __attribute__((cleanup(close_fd))) int
#define OWNED_FOLDER __attribute__((cleanup(close_folder))) DIR *

/* Zeroed, and never NULL, also for none at all. */
static void *
allocate(size_t count, size_t size)
{
    void *memory = calloc(count + 1, size);
    if (memory == NULL) {
        fail(STATUS_TROUBLE, "out of memory");
    }
    return memory;
}

/* Doubles the room when it is full, so that a byte at a time costs little. */
static void
append(struct buffer *buffer, const void *bytes, size_t count)
{
    if (buffer->length + count >= buffer->size) {
        buffer->size = 2 * (buffer->length + count) + 64;
        buffer->data = realloc(buffer->data, buffer->size);
        if (buffer->data == NULL) {
            fail(STATUS_TROUBLE, "out of memory");
        }
    }
    if (count > 0) {
        memcpy(buffer->data + buffer->length, bytes, count);
    }
    buffer->length += count;
    buffer->data[buffer->length] = '\0';
}

static void
append_text(struct buffer *buffer, const char *text)
{
    append(buffer, text, strlen(text));
}

static void __attribute__((format(printf, 2, 3)))
append_format(struct buffer *buffer, const char *format, ...)
{
    OWNED char *text = NULL;
    va_list arguments;

    va_start(arguments, format);
    int length = vasprintf(&text, format, arguments);
    va_end(arguments);
    if (length < 0) {
        fail(STATUS_TROUBLE, "out of memory");
    }
    append(buffer, text, (size_t)length);
}

/* Takes the first bytes away. */
static void
drop(struct buffer *buffer, size_t count)
{
    if (buffer->length > 0) {
        memmove(buffer->data, buffer->data + count, buffer->length - count + 1);
        buffer->length -= count;
    }
}

/* Its room is kept, for what comes next. */
static void
empty(struct buffer *buffer)
{
    drop(buffer, buffer->length);
}

/* The content as a string, also of a buffer that never had any. */
static const char *
text_of(const struct buffer *buffer)
{
    return buffer->data != NULL ? buffer->data : "";
}

static bool
ends_with(const struct buffer *buffer, const char *text)
{
    size_t length = strlen(text);
    return buffer->data != NULL && buffer->length >= length &&
           memcmp(buffer->data + buffer->length - length, text, length) == 0;
}

/* The length of the line that begins there, with its newline; 0: there is no whole one. At the end
 * of all what is left is one. */
static size_t
next_line(const struct buffer *buffer, size_t start, bool is_end)
{
    const char *line = text_of(buffer) + start;
    size_t left = buffer->length - start;
    const char *newline = memchr(line, '\n', left);
    return newline != NULL ? (size_t)(newline - line) + 1 : is_end ? left : 0;
}

static size_t
line_length(const struct buffer *buffer)
{
    return next_line(buffer, 0, false);
}

/* After an interrupted or premature call the next poll() decides anew. */
static bool
is_passing(int error)
{
    return error == EINTR || error == EAGAIN;
}

/* Adds what read() or recv() has put into bytes, and returned. Returns false at the end, as which
 * an error counts. */
static bool
append_some(struct buffer *buffer, const char *bytes, ssize_t count)
{
    append(buffer, bytes, count > 0 ? (size_t)count : 0);
    return count > 0 || (count < 0 && is_passing(errno));
}

/* Adds all that there is to read. False, with errno, when that has no end. */
static bool
read_all(int fd, struct buffer *content)
{
    char bytes[4096];
    ssize_t count = 0;

    while ((count = read(fd, bytes, sizeof(bytes))) > 0) {
        append(content, bytes, (size_t)count);
    }
    return count == 0;
}

static bool
read_file(const char *path, struct buffer *content)
{
    OWNED_FD fd = open(path, O_RDONLY | O_CLOEXEC);
    return fd >= 0 && read_all(fd, content);
}

/* Writes all of it; ends the program when that cannot be. */
static void
write_all(int fd, const char *bytes, size_t count)
{
    while (count > 0) {
        ssize_t written = write(fd, bytes, count);
        if (written < 0 && errno == EPIPE) {
            leave(STATUS_OUTPUT_GONE);
        }
        if (written < 0 && errno == EAGAIN) { /* somebody else has set O_NONBLOCK */
            struct pollfd output = {.fd = fd, .events = POLLOUT};
            (void)poll(&output, 1, -1);
        }
        else if (written < 0 && errno != EINTR) {
            fail(STATUS_TROUBLE, "cannot write to standard %s: %m",
                 fd == STDOUT_FILENO ? "output" : "error");
        }
        bytes += written > 0 ? written : 0;
        count -= written > 0 ? (size_t)written : 0;
    }
}

#endif /* MANHOLE_CLI_BUFFER_C */
