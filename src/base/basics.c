/* Basics: descriptors, clocks, threads, text.
 * Runs on:  any thread, attached or not, but for append_str().
 * Touches:  what it is given.
 *
 * An application that makes itself a daemon closes every descriptor there is, ours too, and opens
 * its own under the same numbers. So what we keep for long, a struct kept_fd, knows what it was by
 * device and inode, and is asked (kept_number()) before each use: we never read, write or close
 * what has become the application's. is_lost() has the listener open its own anew.
 *
 * Two bells stay for the life of a process: wake_bell wakes the listener, news_bell whoever waits
 * in install(), release() or at exit for what the listener or a session has done. To ring one is
 * safe in a signal handler.
 */
#ifndef MANHOLE_BASE_BASICS_C
#define MANHOLE_BASE_BASICS_C

#include "compat.c"
#include "state.c"

enum {
    /* Python's signal handlers are due in a wait, and a signal may come just before poll(). */
    SIGNAL_CHECK_MS = 500,
};

/* Takes over a descriptor, or the -1 of who could open none. */
static void
keep_fd(struct kept_fd *kept, int fd)
{
    struct stat status = {0};
    if (fd >= 0) {
        (void)fstat(fd, &status);
    }
    atomic_store(&kept->device, status.st_dev);
    atomic_store(&kept->inode, status.st_ino);
    atomic_store(&kept->number, fd);
}

/* Its number; -1 when there is none, or none of ours any more. */
ASYNC_SAFE static int
kept_number(const struct kept_fd *kept)
{
    int fd = atomic_load(&kept->number);
    struct stat status;
    bool ours = fd >= 0 && fstat(fd, &status) == 0 &&
                status.st_dev == atomic_load(&kept->device) &&
                status.st_ino == atomic_load(&kept->inode);
    return ours ? fd : -1;
}

/* Closes it if it is still ours, and forgets it. */
static void
close_kept(struct kept_fd *kept)
{
    int fd = kept_number(kept);
    /* Of two who close it at once only one may: the number can be another's by then. */
    if (atomic_exchange(&kept->number, -1) == fd && fd >= 0) {
        (void)close(fd);
    }
}

/* The application has closed it behind our back. */
static bool
is_lost(const struct kept_fd *kept)
{
    return atomic_load(&kept->number) >= 0 && kept_number(kept) < 0;
}

/* A bell: who polls it wakes. A socket that is connected to itself. An eventfd would do, but all
 * eventfds and epolls have one inode: kept_number() could not tell ours from one of the
 * application's. Nobody else can send to it: only what it is connected to can. */
ASYNC_SAFE static void
ring_bell(const struct kept_fd *bell)
{
    int fd = kept_number(bell);
    if (fd >= 0) {
        /* Fails only when its queue is full: then the reader has been woken long ago. */
        (void)!write(fd, "", 1);
    }
}

/* Has the listener look again: at its orders, at what waits in the log or for a client. */
ASYNC_SAFE static void
wake_listener(void)
{
    (void)sem_post(&manhole.wake);
    ring_bell(&manhole.wake_bell);
}

ASYNC_SAFE static void
tell_listener(enum listener_order order)
{
    atomic_fetch_or(&manhole.orders, (unsigned)order);
    wake_listener();
}

static void
silence_bell(const struct kept_fd *bell)
{
    int fd = kept_number(bell);
    char byte = 0;
    while (fd >= 0 && read(fd, &byte, sizeof(byte)) > 0) {
    }
}

/* Returns a descriptor, or -1 with errno. */
static int
open_bell(void)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    socklen_t size = sizeof(address);
    OWNED_FD int fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    /* Only a family: the kernel finds an address, which is in no file system. */
    if (fd < 0 || bind(fd, (struct sockaddr *)&address, sizeof(address.sun_family)) < 0 ||
        getsockname(fd, (struct sockaddr *)&address, &size) < 0 ||
        connect(fd, (struct sockaddr *)&address, size) < 0) {
        return -1;
    }
    return steal_fd(&fd);
}

/* Once made the bells stay for the life of the process: a handler or an application thread may be
 * about to ring one at any moment. Returns 0, or -1 with errno. */
static int
open_bells(void)
{
    struct kept_fd *const bells[] = {&manhole.wake_bell, &manhole.news_bell};
    for (size_t i = 0; i < Py_ARRAY_LENGTH(bells); i++) {
        if (kept_number(bells[i]) < 0) {
            keep_fd(bells[i], open_bell());
        }
        if (atomic_load(&bells[i]->number) < 0) {
            return -1;
        }
    }
    return 0;
}

static int64_t
monotonic_ms(void)
{
    struct timespec now = {0};
    (void)clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

/* For poll(): milliseconds until the deadline, 0 when it has passed; -1 for a deadline of
 * -1. */
static int
ms_until(int64_t deadline_ms)
{
    if (deadline_ms < 0) {
        return -1;
    }
    int64_t left = deadline_ms - monotonic_ms();
    if (left < 0) {
        return 0;
    }
    return left > INT_MAX ? INT_MAX : (int)left;
}

/* As much of a timeout for poll() as may pass before signals are looked at. */
static int
slice_of(int timeout_ms)
{
    return timeout_ms < 0 || timeout_ms > SIGNAL_CHECK_MS ? SIGNAL_CHECK_MS : timeout_ms;
}

static int
seconds_to_ms(double seconds)
{
    double ms = ceil(seconds * 1000.0);
    return ms > (double)INT_MAX ? INT_MAX : (int)ms;
}

struct seconds_text {
    char text[32];
};

/* As printf's %g, with a point in every locale. */
static struct seconds_text
format_seconds(double seconds)
{
    struct seconds_text formatted;
    (void)snprintf(formatted.text, sizeof(formatted.text), "%g", seconds);
    size_t point = strspn(formatted.text, "0123456789");
    if (formatted.text[point] == ',') {
        formatted.text[point] = '.';
    }
    return formatted;
}

/* Has a signal wait, or come, in the calling thread. */
static void
set_blocked(int signum, bool blocked)
{
    sigset_t set;
    (void)sigemptyset(&set);
    (void)sigaddset(&set, signum);
    (void)pthread_sigmask(blocked ? SIG_BLOCK : SIG_UNBLOCK, &set, NULL);
}

/* Starts a thread with the sigmask option's signals blocked from its first instruction.
 * thread NULL: detached. Returns 0, or an errno value. */
static int
start_thread(pthread_t *thread, void *(*body)(void *), void *argument, size_t stack_size)
{
    pthread_t unused;
    pthread_attr_t attributes;
    sigset_t previous;
    int error = pthread_attr_init(&attributes);
    if (error != 0) {
        return error;
    }
    (void)pthread_attr_setstacksize(&attributes, stack_size);
    if (thread == NULL) {
        (void)pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
    }
    (void)pthread_sigmask(SIG_BLOCK, &manhole.options.sigmask, &previous);
    error =
        pthread_create(thread == NULL ? &unused : thread, &attributes, body, argument);
    (void)pthread_sigmask(SIG_SETMASK, &previous, NULL);
    (void)pthread_attr_destroy(&attributes);
    return error;
}

/* strerror(), whose text another thread may change, in a buffer of the calling thread's. */
static const char *
error_text(int error)
{
    static _Thread_local char buffer[80];
#ifdef __GLIBC__
    return strerror_r(error, buffer, sizeof(buffer));
#else
    return strerror_r(error, buffer, sizeof(buffer)) == 0 ? buffer : "unknown error";
#endif
}

/* Returns whether so many bytes more have room. */
static bool
make_room(struct text *text, size_t length)
{
    if (!text->failed && text->capacity - text->length < length) {
        size_t capacity = (text->capacity + length) * 2;
        char *grown = realloc(text->bytes, capacity);
        if (grown == NULL) {
            text->failed = true;
        }
        else {
            text->bytes = grown;
            text->capacity = capacity;
        }
    }
    return !text->failed;
}

static void
append_bytes(struct text *text, const char *bytes, size_t length)
{
    if (length > 0 && make_room(text, length)) {
        memcpy(text->bytes + text->length, bytes, length);
        text->length += length;
    }
}

static void
append_string(struct text *text, const char *string)
{
    append_bytes(text, string, strlen(string));
}

/* For short pieces: a number, a header. What does not fit 256 bytes is cut. */
__attribute__((format(printf, 2, 3))) static void
append_format(struct text *text, const char *format, ...)
{
    char piece[256];
    va_list arguments;
    va_start(arguments, format);
    int length = vsnprintf(piece, sizeof(piece), format, arguments);
    va_end(arguments);
    if (length > 0) {
        size_t size = (size_t)length;
        append_bytes(text, piece, size < sizeof(piece) ? size : sizeof(piece) - 1);
    }
}

/* Appends a str as UTF-8, what has no UTF-8 (lone surrogates) as \udcff. Never raises. */
ATTACHED static void
append_str(struct text *text, PyObject *str)
{
    Py_ssize_t length = 0;
    const char *bytes = PyUnicode_AsUTF8AndSize(str, &length);
    if (bytes != NULL) {
        append_bytes(text, bytes, (size_t)length);
        return;
    }
    PyErr_Clear();
    OWNED PyObject *encoded = PyUnicode_AsEncodedString(str, "utf-8", "backslashreplace");
    if (encoded == NULL) {
        PyErr_Clear();
        append_string(text, "?");
        return;
    }
    append_bytes(text, PyBytes_AS_STRING(encoded), (size_t)PyBytes_GET_SIZE(encoded));
}

/* MODULE.NAME(*arguments, **keywords). Returns a new reference, or NULL with an exception: also
 * that of who could not make the arguments. */
ATTACHED static PyObject *
call_imported(const char *module_name, const char *name,
              PyObject *arguments /* new tuple, or NULL: taken over */,
              PyObject *keywords /* new dict, or NULL: taken over */)
{
    OWNED PyObject *positional = arguments;
    OWNED PyObject *named = keywords;
    if (PyErr_Occurred()) {
        return NULL;
    }
    OWNED PyObject *module = PyImport_ImportModule(module_name);
    OWNED PyObject *function =
        module == NULL ? NULL : PyObject_GetAttrString(module, name);
    return function == NULL ? NULL : PyObject_Call(function, positional, named);
}

static void
free_text(struct text *text)
{
    free(text->bytes);
    *text = (struct text){0};
}

#endif /* MANHOLE_BASE_BASICS_C */
