/* Log: one line for each thing that happens, for the operator and for scripts.
 * Runs on:  every thread; log_line() never runs Python, and blocks in a frozen copy alone.
 * Touches:  the verbose options, under log_lock; a Python destination, in deliver_log() alone.
 *
 * How it works. A line for a descriptor is written at once, in one piece, if the descriptor takes
 * it now: whoever logs must not wait for who reads, and rather loses the line. The descriptor is
 * the application's own, so it is written to only while it is the file that it was at install():
 * who has closed it may have opened a file with data in its place.
 *
 * A line for a Python object cannot be written at once: whoever has something to say may be
 * detached, in the middle of something, or in a session's thread, whose print() is its client's. It
 * waits in a bounded queue, and the listener is told, which sends out a courier: a thread that
 * attaches, delivers what waits, and leaves. Only where there may be no listener is deliver_log()
 * called by others: at the end of install(), release() and the process, for a oneshot and what else
 * serves its client in a thread of the application's, and when a session ends that has outlived
 * the listener. One thread at a time delivers, so the lines keep their order.
 *
 * A frozen copy has no destination of its own. It leaves its lines on a page that it shares with
 * the process (relay_log), and there the thread that stays with it passes them on (pass_lines_on).
 */
#ifndef MANHOLE_BASE_LOG_C
#define MANHOLE_BASE_LOG_C

#include "compat.c"
#include "state.c"
#include "locks.c"
#include "basics.c"

enum {
    /* Log lines that wait for a Python object to take them. */
    LOG_QUEUE_LENGTH = 256,
    /* Bytes of them that a frozen copy may leave between two looks. */
    LOG_PAGE_SIZE = 1 << 16,
    LOG_PAGE_PATIENCE_MS = 1000, /* until there is room */
};

struct log_entry {
    struct log_entry *next;
    char line[]; /* NUL-terminated */
};

/* Lines that wait for the object. */
struct log_queue {
    struct log_entry *first;
    struct log_entry *last;
    int length;
    bool delivering; /* a thread is at it, and takes along what comes meanwhile */
};

/* Whole lines of a frozen copy, which the process has not taken yet. The numbers of bytes that were
 * ever left, and taken, go round. */
struct log_page {
    _Atomic uint32_t left;  /* by the copy alone */
    _Atomic uint32_t taken; /* by the process alone */
    char bytes[LOG_PAGE_SIZE];
};

/* All under log_lock. */
static struct {
    bool enabled;
    struct log_page *page; /* in a frozen copy: they go there */
    PyObject *object;      /* owned, has write(str); NULL: lines go to the descriptor */
    struct kept_fd fd; /* nothing is written to what the application has there since */
    struct log_queue queue;
} logger = {.fd.number = -1};

/* A destination that cannot take the line now loses it: a full pipe must not stop the listener. One
 * that nobody reads (POLLERR) must not cost a SIGPIPE. */
static void
write_log_fd(const char *line, size_t length)
{
    struct pollfd target = {.fd = kept_number(&logger.fd), .events = POLLOUT};
    if (target.fd >= 0 && poll(&target, 1, 0) == 1 && target.revents == POLLOUT) {
        (void)!write(target.fd, line, length);
    }
}

/* Under log_lock. */
static void
queue_log_line(const char *line, size_t length)
{
    struct log_entry *entry = logger.queue.length == LOG_QUEUE_LENGTH
                                  ? NULL
                                  : malloc(sizeof(*entry) + length + 1);
    if (entry == NULL) {
        return; /* this line is lost, the queue stays as it is */
    }
    entry->next = NULL;
    memcpy(entry->line, line, length + 1);
    if (logger.queue.last == NULL) {
        logger.queue.first = entry;
    }
    else {
        logger.queue.last->next = entry;
    }
    logger.queue.last = entry;
    logger.queue.length++;
}

/* In a frozen copy, under log_lock. Returns false while there is no room. */
static bool
leave_line(const char *line, size_t length)
{
    struct log_page *page = logger.page;
    const uint32_t left = atomic_load(&page->left);
    if (length > LOG_PAGE_SIZE - (left - atomic_load(&page->taken))) {
        return false;
    }
    for (size_t i = 0; i < length; i++) {
        page->bytes[(left + i) % LOG_PAGE_SIZE] = line[i];
    }
    atomic_store(&page->left, left + (uint32_t)length);
    return true;
}

/* Where a line goes now. */
enum log_target { LOG_NOWHERE, LOG_FD, LOG_OBJECT, LOG_PAGE, LOG_FULL_PAGE };

/* Queues a line for the object, or leaves it on the page, if it is to go there. */
static enum log_target
target_line(const char *line /* NULL: only look */, size_t length)
{
    enum log_target target = LOG_NOWHERE;
    lock_leaf(&log_lock);
    if (logger.enabled) {
        target = logger.page != NULL     ? LOG_PAGE
                 : logger.object != NULL ? LOG_OBJECT
                                         : LOG_FD;
    }
    if (target == LOG_OBJECT && line != NULL) {
        queue_log_line(line, length);
    }
    if (target == LOG_PAGE && line != NULL && !leave_line(line, length)) {
        target = LOG_FULL_PAGE;
    }
    unlock(&log_lock);
    return target;
}

/* Sends a whole line on its way. A copy waits for room: it keeps nobody up, and what is run there
 * is not to go by unseen. */
static void
send_line(const char *line, size_t length)
{
    enum log_target target = target_line(line, length);
    for (int ms = 0; target == LOG_FULL_PAGE && ms < LOG_PAGE_PATIENCE_MS; ms++) {
        (void)poll(NULL, 0, 1);
        target = target_line(line, length);
    }
    if (target == LOG_FD) {
        write_log_fd(line, length);
    }
    if (target == LOG_OBJECT && atomic_load(&manhole.started)) {
        wake_listener(); /* in its first turn it looks by itself */
    }
}

/* Says one thing, in a line without its newline. */
__attribute__((format(printf, 1, 2))) static void
log_line(const char *format, ...)
{
    char line[LOG_LINE_SIZE];
    struct timespec now = {0};
    va_list arguments;
    if (target_line(NULL, 0) == LOG_NOWHERE) {
        return;
    }

    (void)clock_gettime(CLOCK_REALTIME, &now);
    size_t length =
        (size_t)snprintf(line, sizeof(line), "Manhole[%ld:%lld.%04ld]: ", (long)getpid(),
                         (long long)now.tv_sec, now.tv_nsec / 100000);
    va_start(arguments, format);
    (void)vsnprintf(line + length, sizeof(line) - length - 1, format, arguments);
    va_end(arguments);
    length = strlen(line);
    line[length++] = '\n';
    line[length] = '\0';
    send_line(line, length);
}

#if CAN_FREEZE

/* In the process: passes on what a copy has logged. The page is no better than who has the copy:
 * whatever it says, this reads bytes of the page, and ends. */
static void
pass_lines_on(struct log_page *page)
{
    char line[LOG_LINE_SIZE];
    size_t length = 0;
    const uint32_t left = atomic_load(&page->left);
    uint32_t taken = atomic_load(&page->taken);
    for (int i = 0; i < LOG_PAGE_SIZE && taken != left; i++) {
        line[length++] = page->bytes[taken++ % LOG_PAGE_SIZE];
        if (line[length - 1] == '\n' || length == sizeof(line) - 1) {
            line[length - 1] = '\n';
            line[length] = '\0';
            send_line(line, length);
            length = 0;
        }
    }
    atomic_store(&page->taken, left);
}

#endif /* CAN_FREEZE */

/* Becomes the one thread that delivers, so that the lines keep their order. */
static bool
begin_delivery(void)
{
    lock_leaf(&log_lock);
    bool mine = !logger.queue.delivering && logger.queue.first != NULL;
    logger.queue.delivering = logger.queue.delivering || mine;
    unlock(&log_lock);
    return mine;
}

/* Returns the oldest queued line, malloc'd, and in *object a new reference to where it is to go.
 * NULL when there is none: the delivery is over, in the same step, so no line is left behind. */
ATTACHED static struct log_entry *
next_log_entry(PyObject **object)
{
    lock_leaf(&log_lock);
    struct log_entry *entry = logger.queue.first;
    if (entry == NULL) {
        logger.queue.delivering = false;
    }
    else {
        *object = Py_XNewRef(logger.object);
        logger.queue.first = entry->next;
        logger.queue.length--;
        if (logger.queue.first == NULL) {
            logger.queue.last = NULL;
        }
    }
    unlock(&log_lock);
    return entry;
}

/* Hands the queued lines to the Python object. Keeps the current exception, adds none. */
ATTACHED static void
deliver_log(void)
{
    if (!begin_delivery()) {
        return;
    }
    PyObject *raised = take_exception(); /* owned, handed back */
    for (;;) {
        OWNED PyObject *object = NULL;
        struct log_entry *entry = next_log_entry(&object); /* owned */
        if (entry == NULL) {
            break;
        }
        OWNED PyObject *line = PyUnicode_DecodeUTF8(
            entry->line, (Py_ssize_t)strlen(entry->line), "backslashreplace");
        free(entry);
        if (object != NULL && line != NULL) {
            Py_XDECREF(PyObject_CallMethod(object, "write", "O", line));
        }
        PyErr_Clear(); /* logging never raises into the application */
    }
    put_back_exception(raised);
}

/* "ValueError('why')", for a log line, in a buffer of this size. Never raises. */
ATTACHED static const char *
describe_exception(PyObject *exception /* or NULL */, char *text, size_t size)
{
    OWNED PyObject *repr = exception == NULL ? NULL : PyObject_Repr(exception);
    const char *utf8 = repr == NULL ? NULL : PyUnicode_AsUTF8(repr);
    if (utf8 == NULL) {
        PyErr_Clear();
        utf8 = "an exception that has no repr()";
    }
    (void)snprintf(text, size, "%s", utf8);
    return text;
}

/* Logs PREFIX, repr(exception), SUFFIX and drops the exception. */
ATTACHED static void
log_exception(const char *prefix, PyObject *exception /* new: taken over */,
              const char *suffix)
{
    char text[LOG_LINE_SIZE];
    log_line("%s%s%s", prefix, describe_exception(exception, text, sizeof(text)), suffix);
    Py_XDECREF(exception);
}

/* What is descriptor 2 is no standard error, which programs that are executed inherit: that was
 * closed, and a file opened in its place. */
static bool
has_no_stderr(void)
{
    return (fcntl(STDERR_FILENO, F_GETFD) & FD_CLOEXEC) != 0;
}

/* Where lines go from now on; NULL: nowhere. Lines queued for an earlier object are
 * dropped. */
ATTACHED static void
configure_log(const struct destination *destination)
{
    int fd = destination == NULL ? -1 : destination->fd;
    fd = fd == STDERR_FILENO && has_no_stderr() ? -1 : fd;

    lock_leaf(&log_lock);
    PyObject *previous = logger.object;           /* owned */
    struct log_entry *entry = logger.queue.first; /* owned, and so are those behind it */
    logger.enabled = destination != NULL;
    logger.object = destination == NULL ? NULL : Py_XNewRef(destination->object);
    keep_fd(&logger.fd, fd);
    logger.queue = (struct log_queue){.delivering = logger.queue.delivering};
    unlock(&log_lock);

    while (entry != NULL) {
        struct log_entry *next = entry->next;
        free(entry);
        entry = next;
    }
    Py_XDECREF(previous);
}

#if CAN_FREEZE

/* In a frozen copy: its lines go to this page, if the process has a log. */
static void
relay_log(struct log_page *page)
{
    lock_leaf(&log_lock);
    logger.page = page;
    unlock(&log_lock);
}

#endif /* CAN_FREEZE */

/* In a child: the parent delivers them. */
static void
forget_log_lines(void)
{
    logger.queue = (struct log_queue){0};
}

static bool
is_log_waiting(void)
{
    lock_leaf(&log_lock);
    bool waiting = logger.queue.first != NULL;
    unlock(&log_lock);
    return waiting;
}

#endif /* MANHOLE_BASE_LOG_C */
