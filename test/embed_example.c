/* embed_example.c - a C program that embeds Python, with manhole.c dropped in.
 *
 *     cc -o embed_example embed_example.c manhole.c \
 *         $(python3-config --includes --ldflags --embed) -pthread
 *     ./embed_example script.py
 *
 * It runs the script once, then calls the script's handle(line) for each line of its standard
 * input. While it waits for a line it does not hold the GIL. Beside that:
 *
 *     manhole-cli PID -1    SIGUSR1 opens the manhole: stacks and a prompt, with the script's names
 *     kill -QUIT PID        (or Ctrl-\) writes all stacks to stderr, even while handle() hangs
 */
#include <Python.h>

#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <unistd.h>

#include "manhole.h"

/* A thread that Python knows nothing of: nothing that Python does can stop it. */
static void *
write_stacks_at_sigquit(void *signals)
{
    int signum = 0;
    while (sigwait(signals, &signum) == 0) {
        if (manhole_dump_stacks(STDERR_FILENO) < 0) {
            perror("manhole_dump_stacks");
        }
    }
    return NULL;
}

/* Before all other threads, which so inherit that SIGQUIT is not for them. */
static void
start_watcher(void)
{
    static sigset_t signals;
    pthread_t watcher;
    (void)sigemptyset(&signals);
    (void)sigaddset(&signals, SIGQUIT);
    (void)pthread_sigmask(SIG_BLOCK, &signals, NULL);
    if (pthread_create(&watcher, NULL, write_stacks_at_sigquit, &signals) == 0) {
        (void)pthread_detach(watcher);
    }
}

/* The program's own work. Called with the GIL, and waits without. */
static void
work(PyObject *handle)
{
    char line[1024];
    PyThreadState *tstate = PyEval_SaveThread();
    while (fgets(line, sizeof(line), stdin) != NULL) {
        PyObject *result = NULL;
        PyEval_RestoreThread(tstate);
        result = PyObject_CallFunction(handle, "s", line);
        if (result == NULL) {
            PyErr_Print();
        }
        Py_XDECREF(result);
        tstate = PyEval_SaveThread();
    }
    PyEval_RestoreThread(tstate);
}

int
main(int argc, char *argv[])
{
    manhole_options options = MANHOLE_OPTIONS_DEFAULT;
    FILE *script = argc == 2 ? fopen(argv[1], "re") : NULL;
    PyObject *names = NULL;  /* borrowed */
    PyObject *handle = NULL; /* borrowed */
    if (script == NULL) {
        perror(argc == 2 ? argv[1] : "usage: embed_example SCRIPT");
        return 2;
    }
    start_watcher();
    (void)PyImport_AppendInittab("manhole",
                                 PyInit_manhole); /* for the script's imports */
    Py_Initialize();
    names = PyModule_GetDict(PyImport_AddModule("__main__"));
    options.activate_on = SIGUSR1;
    options.locals = names;
    if (manhole_install(&options) < 0) {
        PyErr_Print(); /* an option is wrong, say: the program can do without */
    }
    if (PyRun_SimpleFileExFlags(script, argv[1], 1, NULL) == 0) {
        handle = PyDict_GetItemString(names, "handle");
    }
    if (handle != NULL) {
        work(handle);
    }
    if (manhole_release() < 0) { /* Py_FinalizeEx() would do it, too */
        PyErr_Print();
    }
    return Py_FinalizeEx() < 0 || handle == NULL;
}
