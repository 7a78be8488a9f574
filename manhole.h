/* manhole.h - a debugging socket for any CPython process.
 *
 * Three ways to use manhole.c, one translation unit that needs nothing but CPython 3.9 or newer:
 *
 *   1. As an extension module:  import manhole; manhole.install()
 *   2. Dropped into a C program that embeds CPython: compile manhole.c in, include this header,
 *      call manhole_install() after Py_Initialize(). For `import manhole` to find the same copy
 *      before that call: PyImport_AppendInittab("manhole", PyInit_manhole).
 *   3. Through the environment: PYTHONMANHOLE='activate_on="USR1"' python app.py
 *
 * README.rst has the whole story. SPDX-License-Identifier: BSD-2-Clause
 */
#ifndef MANHOLE_H
#define MANHOLE_H

#include <Python.h>

#define MANHOLE_VERSION "1.1.0"

#ifdef __cplusplus
extern "C" {
#endif

/* The options of manhole_install(). Start from MANHOLE_OPTIONS_DEFAULT and set what
 * differs; a field left as there means what manhole.install() means by it, and is checked
 * the same way. Strings and objects are read or referenced during the call; none needs to
 * outlive it. */
typedef struct manhole_options {
    int verbose;             /* boolean: write log lines. Default 1. */
    int verbose_destination; /* descriptor for the log lines, as it is now. Default 2. */
    int strict;              /* boolean: a second install fails. Default 1. */
    int patch_fork;          /* boolean: forked children get a manhole. Default 1. */
    int thread;              /* boolean: always-on listener. Default 1. */
    int activate_on;         /* signal number that opens the listener; 0: none. */
    int oneshot_on;          /* signal number that serves one client; 0: none. */
    int daemon_connection;  /* boolean: exit although clients are connected. Default 0. */
    int redirect_stderr;    /* boolean: stderr goes to the client too. Default 1. */
    double reinstall_delay; /* seconds a forked child waits to bind. Default 0.5. */
    double start_timeout;   /* seconds to wait for the listener. Default 0.5. */
    double oneshot_timeout; /* seconds oneshot waits for a client. Default 60. */
    double hang_timeout; /* seconds until stacks come without Python's help. Default 1. */
    int max_sessions;    /* clients at once, 1 to 256. Default 64. */
    const char *socket_path; /* UTF-8 path, %(pid)s allowed; NULL: /tmp/manhole-PID. */
    const char *connection_handler; /* "repl", "exec" or "commands"; NULL: "repl". */
    PyObject *locals;               /* borrowed dict of names for the console, or NULL. */
    const char *listen; /* "localhost:3000" or a path, instead of the usual; or NULL. */
    const char *config; /* UTF-8 path of a configuration file; NULL: none. With one
                           connection_handler NULL means "commands". */
    const char *enable; /* "console", "debugger" or both with a comma; NULL: neither. */
    int audit; /* boolean: with verbose, log the first line of what is run. Default 1. */
} manhole_options;

#define MANHOLE_OPTIONS_DEFAULT                                                          \
  {                                                                                      \
    1, 2, 1, 1, 1, 0, 0, 0, 1, 0.5, 0.5, 60.0, 1.0, 64, NULL, NULL, NULL, NULL, NULL,    \
        NULL, 1                                                                          \
  }

/* Installs the manhole in the calling thread's interpreter; NULL: all defaults.
 * The caller is attached to Python (holds the GIL) and, for oneshot_on, is the main
 * thread. Returns 0, or -1 with a Python exception set: ValueError or TypeError (an
 * option, named), manhole.ConfigurationConflict, manhole.AlreadyInstalled (strict),
 * ImportError (another module called manhole is there), RuntimeError (called in the middle of
 * itself), MemoryError, OSError. */
PyAPI_FUNC(int) manhole_install(const manhole_options *options);

/* Undoes manhole_install(): the listener, its socket, the signal handlers. Clients that
 * are connected stay. Harmless when nothing is installed. The caller is attached to
 * Python. Returns 0, or -1 with a Python exception set. Py_Finalize() does it by itself, and lets
 * the clients go: it waits for them first, unless daemon_connection is set. */
PyAPI_FUNC(int) manhole_release(void);

/* Writes the stack of every Python thread to the descriptor fd. Any thread may call it. One that
 * is attached to Python gets what a client sees at once, and is detached while it writes. One that
 * is not waits for nobody: it gets the stacks from a frozen copy of the process, as a client does
 * when the GIL is stuck, and as everybody does where there is no GIL; that needs an installed
 * manhole (else errno is ENOTSUP). So a watchdog thread of the program's can call it while Python
 * hangs. Returns 0, or -1 with errno and no Python exception. */
PyAPI_FUNC(int) manhole_dump_stacks(int fd);

/* The module's initialisation function, for PyImport_AppendInittab(). */
PyMODINIT_FUNC PyInit_manhole(void);

#ifdef __cplusplus
}
#endif

#endif
