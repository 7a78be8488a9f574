/* native.c - what bench.py needs that Python cannot do.
 *
 * walk() is the least that any dump of all stacks has to do while it keeps the application from
 * running, walk_tasks() the same of tasks; hold() is a C call that computes, or waits, and does not
 * let go of the GIL; keep_thread() is the least that it takes to have a thread in each forked
 * child; serve() greets each client from a thread of its own, and knows nothing of Python.
 *
 * SPDX-License-Identifier: BSD-2-Clause
 */
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <frameobject.h>

#include <poll.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

static long long
now_ns(void)
{
    struct timespec now;
    (void)clock_gettime(CLOCK_MONOTONIC, &now);
    return (long long)now.tv_sec * 1000000000 + now.tv_nsec;
}

struct seen {
    Py_ssize_t frames;
    Py_ssize_t letters; /* of all names and file names, so that each is looked at */
};

static void
look_at_frame(PyFrameObject *frame, struct seen *seen)
{
    PyCodeObject *code = PyFrame_GetCode(frame); /* owned */
    seen->frames++;
    seen->letters += PyUnicode_GET_LENGTH(code->co_filename);
    seen->letters += PyUnicode_GET_LENGTH(code->co_name);
    seen->letters += PyFrame_GetLineNumber(frame) > 0;
    Py_DECREF(code);
}

static PyObject *
walk(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(ignored))
{
    struct seen seen = {0};
    long long begin_ns = now_ns();
    PyThreadState *state = PyInterpreterState_ThreadHead(PyInterpreterState_Get());
    for (; state != NULL; state = PyThreadState_Next(state)) {
        PyFrameObject *frame = PyThreadState_GetFrame(state); /* owned */
        while (frame != NULL) {
            look_at_frame(frame, &seen);
            PyFrameObject *back = PyFrame_GetBack(frame);
            Py_DECREF(frame);
            frame = back;
        }
    }
    return Py_BuildValue("Lnn", now_ns() - begin_ns, seen.frames, seen.letters);
}

/* A new reference, or NULL. */
static PyObject *
find(PyObject *object, const char *name)
{
    PyObject *found = PyObject_GetAttrString(object, name);
    PyErr_Clear();
    return found;
}

static void
look_at_task(PyObject *task, struct seen *seen)
{
    PyObject *waiter = find(task, "_fut_waiter"); /* owned */
    Py_XDECREF(waiter);
    PyObject *coroutine = find(task, "_coro"); /* owned */
    while (coroutine != NULL && PyCoro_CheckExact(coroutine)) {
        PyObject *frame = find(coroutine, "cr_frame");   /* owned */
        PyObject *awaited = find(coroutine, "cr_await"); /* owned */
        if (frame != NULL && PyFrame_Check(frame)) {
            look_at_frame((PyFrameObject *)frame, seen);
        }
        Py_XDECREF(frame);
        Py_DECREF(coroutine);
        coroutine = awaited;
    }
    Py_XDECREF(coroutine);
}

static PyObject *
walk_tasks(PyObject *Py_UNUSED(module), PyObject *tasks)
{
    struct seen seen = {0};
    long long begin_ns = now_ns();
    for (Py_ssize_t i = 0; i < PyList_Size(tasks); i++) {
        look_at_task(PyList_GetItem(tasks, i), &seen);
    }
    return Py_BuildValue("Lnn", now_ns() - begin_ns, seen.frames, seen.letters);
}

static PyObject *
hold(PyObject *Py_UNUSED(module), PyObject *seconds)
{
    double length = PyFloat_AsDouble(seconds);
    if (length == -1.0 && PyErr_Occurred()) {
        return NULL;
    }
    long long end_ns = now_ns() + (long long)(length * 1e9);
    while (now_ns() < end_ns) {
        (void)nanosleep(&(struct timespec){.tv_nsec = 1000000}, NULL);
    }
    Py_RETURN_NONE;
}

static void *
sleep_on(void *unused)
{
    (void)poll(NULL, 0, -1);
    return unused;
}

static void
start_thread(void)
{
    pthread_t thread;
    (void)pthread_create(&thread, NULL, sleep_on, NULL);
}

/* Sends as much as a client of a manhole sees first in a process of one thread, and waits until it
 * answers. */
static void *
greet(void *argument)
{
    int fd = *(int *)argument; /* owned */
    char bytes[331];
    free(argument);
    memset(bytes, '-', sizeof(bytes));
    memcpy(bytes + sizeof(bytes) - 4, ">>> ", 4);
    if (send(fd, bytes, sizeof(bytes), MSG_NOSIGNAL) > 0) {
        (void)recv(fd, bytes, sizeof(bytes), 0);
    }
    (void)close(fd);
    return NULL;
}

static void *
greet_all(void *argument)
{
    struct pollfd server = {.fd = *(int *)argument, .events = POLLIN};
    int *fd = NULL; /* owned, handed over */
    pthread_t thread;
    free(argument);
    while (poll(&server, 1, -1) == 1 && (fd = malloc(sizeof(*fd))) != NULL) {
        *fd = accept4(server.fd, NULL, NULL, SOCK_CLOEXEC);
        if (pthread_create(&thread, NULL, greet, fd) == 0) {
            (void)pthread_detach(thread);
        }
    }
    return NULL;
}

static PyObject *
serve(PyObject *Py_UNUSED(module), PyObject *path)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    const char *bytes = PyUnicode_AsUTF8(path);
    int *fd = malloc(sizeof(*fd)); /* owned, handed over */
    pthread_t thread;
    if (bytes == NULL || fd == NULL || strlen(bytes) >= sizeof(address.sun_path)) {
        free(fd);
        return PyErr_Occurred() ? NULL : PyErr_Format(PyExc_ValueError, "%R", path);
    }
    memcpy(address.sun_path, bytes, strlen(bytes));
    (void)unlink(bytes); /* of an earlier process with this number */
    *fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (bind(*fd, (struct sockaddr *)&address, sizeof(address)) < 0 ||
        listen(*fd, 64) < 0 || pthread_create(&thread, NULL, greet_all, fd) != 0) {
        free(fd);
        return PyErr_SetFromErrno(PyExc_OSError);
    }
    Py_RETURN_NONE;
}

static PyObject *
keep_thread(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(ignored))
{
    start_thread();
    (void)pthread_atfork(NULL, NULL, start_thread);
    Py_RETURN_NONE;
}

static PyMethodDef methods[] = {
    {"walk", walk, METH_NOARGS,
     "walk() -> (ns, frames, letters): look once at each frame of each thread."},
    {"walk_tasks", walk_tasks, METH_O,
     "walk_tasks(list) -> (ns, frames, letters): look once at each frame of each task."},
    {"hold", hold, METH_O, "hold(seconds): wait, and let no other thread run Python."},
    {"serve", serve, METH_O, "serve(path): send as much as a manhole to each client."},
    {"keep_thread", keep_thread, METH_NOARGS,
     "keep_thread(): start a thread that sleeps, here and in each forked child."},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT,
    .m_name = "native",
    .m_methods = methods,
};

PyMODINIT_FUNC PyInit_native(void);

PyMODINIT_FUNC
PyInit_native(void)
{
    return PyModule_Create(&definition);
}
