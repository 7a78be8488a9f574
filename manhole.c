/* manhole.c - a debugging socket for any CPython process, in one file.
 *
 * A signal, or nothing at all, opens /tmp/manhole-PID. Who connects with the process's
 * own uid, or root's, sees the stack of every Python thread and then has a Python prompt
 * in the living process; or, where nobody may run code, a shell of commands. It is an
 * extension module (`import manhole`), a drop-in for C programs that embed CPython
 * (manhole.h), and an environment variable (PYTHONMANHOLE). README.rst says how to use it.
 *
 * THREADS
 *   listener     one native thread, made by install(). Never attaches to Python, so nothing that
 *                Python does can stop it. Asleep in poll() when idle. Accepts, checks credentials,
 *                starts sessions, carries copies of the application's output to slow clients.
 *   session      one native thread a client. Attaches with a thread state of its own, serves its
 *                client, detaches, ends. A oneshot session runs in the main thread instead.
 *   helpers      native threads for one errand: a reporter sends the stacks of a process whose
 *                Python does not answer, an interrupter raises KeyboardInterrupt in a session, a
 *                guard has a oneshot's session interrupted when its client has left, a courier
 *                carries log lines to a Python object; one beside each session of a TCP client
 *                takes telnet out of what that sends.
 *   application  its threads run the stream objects' write(), the fork hook, the exit callback and
 *                what manhole.* offers; the two signal handlers run in whichever thread is hit.
 *
 * WHAT IT TOUCHES IN A PROCESS
 *   files        the sockets' paths, with mode 0600; removed again by exit, release or a signal.
 *   descriptors  two sockets to wake threads, the listening ones, a spare one; one for each client,
 *                two more where it comes by TCP; a memory file while a frozen copy is made; a
 *                netlink socket while a TCP client's user is asked for. All close-on-exec.
 *   signals      activate_on (a C handler), oneshot_on (signal.signal), one real-time signal
 *                (faulthandler.register), and while the socket exists those of death_signals[] that
 *                were SIG_DFL. All are put back, but activate_on at exit: a late one must not kill.
 *   sys          std streams, __std*__ and displayhook while a client has a console; last_exc and
 *                its relatives when a client's statement raised; its class while a client's program
 *                runs, for sys.argv to be that program's own in its thread. All are put back.
 *   callbacks    atexit, os.register_at_fork, and in children multiprocessing.util: one each; C's
 *                atexit() and pthread_atfork(), and a key of the thread that forked a child.
 *   sockets      one that it is given to listen on does not block until release().
 *   functions    a probe stands in the module or class of the function that it was inserted at. It
 *                is put back when the probe is removed.
 *   mappings     with oneshot_on an empty page, whose name in /proc tells manhole-cli the signal.
 *   environment  PYTHONMANHOLE, named by manhole.pth or manhole.start, read once.
 *   modules      plugins that a configuration file names are imported when a client comes, and what
 *                sessions need of the standard library; as manhole.library.NAME where the
 *                application has such names.
 *
 * HOW TO READ IT
 *   Ground floor first; each room opens with a banner that says who runs it. Three markers say who
 *   may call a function, and clang's -Wthread-safety holds us to them: ATTACHED, DETACHED,
 *   ASYNC_SAFE. Unmarked: pure computation or leaf locks, any thread. Every PyObject * in a
 *   signature is borrowed unless its comment says "new"; what a function returns is new.
 *
 * SPDX-License-Identifier: BSD-2-Clause
 */
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <frameobject.h>
#include <structmember.h>

#include <arpa/inet.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/inet_diag.h>
#include <linux/netlink.h>
#include <linux/sock_diag.h>
#include <math.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <semaphore.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "manhole.h"

#if PY_VERSION_HEX < 0x03090000
#  error "manhole needs CPython 3.9 or newer"
#endif

/* Limits. One that a client can run into has its message near where it is enforced. */
enum {
    /* The most that the option max_sessions can be. */
    MAX_SESSIONS = 256,
    /* Places that the option listen can name. */
    MAX_PLACES = 8,
    /* Doors of the options: those places and socket_path. */
    MAX_OWN_DOORS = MAX_PLACES + 1,
    /* With the sockets that the application has given us to listen on. */
    MAX_DOORS = MAX_OWN_DOORS + 8,
    /* HOST:PORT of a TCP address, with the NUL: [ffff:...]:65535 */
    ADDRESS_SIZE = INET6_ADDRSTRLEN + 8,
    /* Bytes of a Unix socket's path, with the NUL. */
    SOCKET_PATH_SIZE = sizeof(((struct sockaddr_un *)0)->sun_path),
    /* Characters of one line typed at the prompt. */
    MAX_LINE = 16 * 1024 * 1024,
    /* Bytes of the application's output kept for a slow client; and of a session's own among them,
     * once a statement has written so often. */
    COPIES_SIZE = 1024 * 1024,
    MAX_LEFT = 256 * 1024,
    FLOOD_BEGINS = 16,
    /* Bytes of a log line; a pipe takes this much in one piece (PIPE_BUF). */
    LOG_LINE_SIZE = 4096,
    /* Log lines that wait for a Python object to take them. */
    LOG_QUEUE_LENGTH = 256,
    /* Bytes of a request on a side channel: a program with its arguments. */
    MAX_PROGRAM = 16 * 1024 * 1024,
    /* Bytes in one frame of a program's output. */
    MAX_FRAME = 16 * 1024,
    /* Without a byte of a request that has begun, or should have. */
    REQUEST_TIMEOUT_MS = 10000,
    /* Bytes of a line to complete, with its newline; and the most matches for it. */
    MAX_COMPLETION = 4097,
    MAX_MATCHES = 500,
    /* Characters of a value that goes out with the prompt. */
    MAX_SHOWN = 4096,
    /* Side channels open at once, beside max_sessions consoles and programs. */
    MAX_ASIDE = 16,
    /* Of threads that run none of the client's Python code. */
    SMALL_STACK_SIZE = 256 * 1024,
    /* Of those that do, which is glibc's own; musl's is 128 KiB. */
    PYTHON_STACK_SIZE = 8 * 1024 * 1024,
    /* What exit gives sessions that it has told to leave. */
    EXIT_GRACE_MS = 1000,
    /* How many times hang_timeout a module of a session's first imports may take: beside eight
     * threads that compute "re" takes over a second, and nothing is stuck. */
    IMPORT_FACTOR = 10,
    /* How long a fork waits for a session's first imports, which take 10 to 20. */
    FORK_PATIENCE_MS = 1000,
    /* Bytes of the id on a calling card, with the NUL. */
    CARD_SIZE = 40,
    /* Stream objects that outlive their client. */
    KEPT_STREAMS = 48,
    /* How long an interrupt waits for a statement to come out of the import system. */
    IMPORT_PATIENCE_MS = 1000,
    /* How often what a vanished client left running is interrupted. */
    GONE_CHECK_MS = 1000,
    /* Python's signal handlers are due in a wait, and a signal may come just before poll(). */
    SIGNAL_CHECK_MS = 500,
    /* What making a dump's text may keep other threads from running, in one go: as long as a
     * thread of Python's own that computes. */
    HOLD_MS = 5,
    /* Of the table that finds the spot that a frame of a look is at. */
    SPOT_ROWS = 512,
    /* How long a TCP client's Ctrl-C waits for Python before the session may read on. */
    INTERRUPT_PATIENCE_MS = 100,
    /* From the end of what a TCP client sends to the look whether it is still there to read. */
    SETTLE_MS = 20,
    /* What asking /proc for the user of a TCP client may take, if the kernel's diagnostics are not
     * there: the listener does nothing else meanwhile. */
    IDENTIFY_PATIENCE_MS = 250,
    /* Before the next accept() after one that found no room. */
    ACCEPT_PAUSE_MS = 200,
    /* How long a signal that ends the process waits for bind() to return. */
    BIND_PATIENCE_MS = 100,
    /* For a frozen copy that writes nothing more, before it is killed; and copies made until one
     * does not die. Beside threads that run Python flat out about every third dies on 3.13. */
    SNAPSHOT_TIMEOUT_MS = 1000,
    SNAPSHOT_ATTEMPTS = 12,
    /* Before the second copy; twice that before the third. */
    SNAPSHOT_PAUSE_MS = 3,
    /* As many threads as faulthandler shows (its MAX_NTHREADS). */
    THREADS_AT_ONCE = 100,
    /* Bytes of a source file that a snapshot reads lines from. */
    MAX_SOURCE = 4 * 1024 * 1024,
};

/* ======================================================================================
 * Markers and version shims: who may call what, and the CPythons' differences.
 * The only room with PY_VERSION_HEX in it.
 * ====================================================================================== */

#if defined(__clang__)
#  define CHECKED(x) __attribute__((x))
#else
#  define CHECKED(x)
#endif

/* Never defined: a name for the checker, which follows it as it would a lock. */
struct CHECKED(capability("role")) role {
    char unused;
};
extern struct role python;

#define ATTACHED                                                                         \
  CHECKED(requires_capability(python)) /* caller has an attached thread state */
#define DETACHED                                                                         \
  CHECKED(locks_excluded(python)) /* may block: caller must not be attached */
#define ASYNC_SAFE                /* signal-safety(7) and each other; errno is kept */
#define ATTACHES CHECKED(acquire_capability(python)) CHECKED(no_thread_safety_analysis)
#define DETACHES CHECKED(release_capability(python)) CHECKED(no_thread_safety_analysis)

/* The interpreter is ending, and whoever detaches now never comes back. */
static bool
is_finalizing(void)
{
#if PY_VERSION_HEX >= 0x030d0000
    return Py_IsFinalizing() != 0;
#else
    return _Py_IsFinalizing() != 0;
#endif
}

/* Lets other threads run Python. Returns what reattach() needs to come back. During finalization
 * there is nobody else to let run: the caller stays attached, NULL. */
DETACHES static PyThreadState *
detach(void)
{
    return is_finalizing() ? NULL : PyEval_SaveThread();
}

/* Comes back. When finalization has begun meanwhile CPython ends the calling thread in here instead
 * of returning, so nothing may be held across it that another thread waits for. */
ATTACHES static void
reattach(PyThreadState *tstate)
{
    if (tstate != NULL) {
        PyEval_RestoreThread(tstate);
    }
}

#if PY_VERSION_HEX < 0x030a0000
static inline PyObject *
Py_NewRef(PyObject *object)
{
    Py_INCREF(object);
    return object;
}

static inline PyObject *
Py_XNewRef(PyObject *object)
{
    Py_XINCREF(object);
    return object;
}
#endif

/* Whether the calling thread is attached to Python. Before 3.12 CPython knows one holder of the GIL
 * only; a thread of a subinterpreter is taken for one that is not. */
static bool
is_attached(void)
{
#if PY_VERSION_HEX >= 0x030d0000
    return PyThreadState_GetUnchecked() != NULL;
#elif PY_VERSION_HEX >= 0x030c0000
    return _PyThreadState_UncheckedGet() != NULL;
#else
    PyThreadState *own = PyGILState_GetThisThreadState();
    return own != NULL && own == _PyThreadState_UncheckedGet();
#endif
}

/* In *found a new reference to sys.NAME; NULL when there is none. Returns 0, or -1 with an
 * exception when that cannot be told. */
ATTACHED static int
find_sys(const char *name, PyObject **found)
{
#if PY_VERSION_HEX >= 0x030d0000
    PyObject *module = PyImport_AddModuleRef("sys"); /* owned */
    int result = -1;
    *found = NULL;
    if (module != NULL) {
        result = PyObject_GetOptionalAttrString(module, name, found) < 0 ? -1 : 0;
    }
    Py_XDECREF(module);
    return result;
#else
    *found = Py_XNewRef(PySys_GetObject(name));
    return 0;
#endif
}

/* sys.NAME. Returns a new reference; NULL, without an exception, when there is none. */
ATTACHED static PyObject *
get_sys(const char *name)
{
    PyObject *found = NULL; /* new, handed to the caller */
    if (find_sys(name, &found) < 0) {
        PyErr_Clear();
    }
    return found;
}

/* Keeps the cyclic collector, which may run any Python code, out of a stretch of C that
 * must not be interrupted. Needed where frame objects are made on demand, which is
 * since 3.11. */
ATTACHED static bool
pause_gc(void)
{
#if PY_VERSION_HEX >= 0x030b0000
    return PyGC_Disable() == 1;
#else
    return false;
#endif
}

ATTACHED static void
resume_gc(bool was_enabled)
{
#if PY_VERSION_HEX >= 0x030b0000
    if (was_enabled) {
        PyGC_Enable();
    }
#else
    (void)was_enabled;
#endif
}

/* Where in its code a frame is: PyCode_Addr2Line() makes a line of it when there is time. */
ATTACHED static int
get_instruction(PyFrameObject *frame)
{
#if PY_VERSION_HEX >= 0x030b0000
    return PyFrame_GetLasti(frame);
#elif PY_VERSION_HEX >= 0x030a0000
    return frame->f_lasti < 0 ? -1 : frame->f_lasti * 2;
#else
    return frame->f_lasti;
#endif
}

/* The globals of a frame. Returns a new reference. */
ATTACHED static PyObject *
get_globals(PyFrameObject *frame)
{
#if PY_VERSION_HEX >= 0x030b0000
    return PyFrame_GetGlobals(frame);
#else
    return Py_NewRef(frame->f_globals);
#endif
}

/* Takes the current exception. Returns it, normalized; NULL when there is none. */
ATTACHED static PyObject *
take_exception(void)
{
#if PY_VERSION_HEX >= 0x030c0000
    return PyErr_GetRaisedException();
#else
    PyObject *type = NULL;      /* owned */
    PyObject *value = NULL;     /* owned, handed to the caller */
    PyObject *traceback = NULL; /* owned */
    PyErr_Fetch(&type, &value, &traceback);
    if (type != NULL) {
        PyErr_NormalizeException(&type, &value, &traceback);
        if (traceback != NULL) {
            (void)PyException_SetTraceback(value, traceback);
        }
    }
    Py_XDECREF(type);
    Py_XDECREF(traceback);
    return value;
#endif
}

/* Sets the exception that take_exception() took, as it was; if it was none, nothing changes. Takes
 * over the reference. */
ATTACHED static void
put_back_exception(PyObject *exception /* new, or NULL */)
{
    if (exception == NULL) {
        return;
    }
#if PY_VERSION_HEX >= 0x030c0000
    PyErr_SetRaisedException(exception);
#else
    PyErr_Restore(Py_NewRef((PyObject *)Py_TYPE(exception)), exception,
                  PyException_GetTraceback(exception));
#endif
}

/* What runs between the two has the object to itself: by the object's own lock where there is no
 * GIL. It must run no Python code, which could let go of either. */
#ifdef Py_GIL_DISABLED
#  define BEGIN_CRITICAL_SECTION(object) Py_BEGIN_CRITICAL_SECTION(object)
#  define END_CRITICAL_SECTION() Py_END_CRITICAL_SECTION()
#else
#  define BEGIN_CRITICAL_SECTION(object)                                                 \
    {                                                                                    \
      (void)(object);
#  define END_CRITICAL_SECTION() }
#endif

/* The kernel's id of a thread, 0 where CPython does not keep it. Reads memory alone. */
ASYNC_SAFE static unsigned long
native_id_of(const PyThreadState *tstate)
{
#if PY_VERSION_HEX >= 0x030b0000
    return tstate->native_thread_id;
#else
    (void)tstate;
    return 0;
#endif
}

/* Whether a thread has the GIL, for a frozen copy to say. Reads memory alone. */
ASYNC_SAFE static bool
holds_gil(const PyThreadState *tstate)
{
#if PY_VERSION_HEX >= 0x030c0000 && !defined(Py_GIL_DISABLED)
    return tstate->_status.active != 0;
#else
    (void)tstate;
    return false;
#endif
}

/* Where an object of a class made in Python keeps its attributes, until somebody asks for its
 * __dict__: their values beside it, their names with the class, both in the same order. That is
 * CPython's own business, but no public function finds one by name without a thread state, which a
 * frozen copy's thread has not. The same from 3.11 to 3.15, but for where the values begin. */
#if PY_VERSION_HEX >= 0x030b0000 && PY_VERSION_HEX < 0x03100000
struct shared_name {
    PyObject *name; /* borrowed str */
    void *unused;
};

struct shared_names { /* struct _dictkeysobject */
    Py_ssize_t references;
    uint8_t log2_size;
    uint8_t log2_index_bytes;
    uint8_t kind;
    uint32_t version;
    Py_ssize_t usable;
    Py_ssize_t count;
    char indices[]; /* then the names, struct shared_name */
};

/* Returns NULL when the attributes are in a dict. */
ASYNC_SAFE static PyObject *const *
find_values(PyObject *object)
{
#  if PY_VERSION_HEX >= 0x030d0000
    enum { IS_VALID = 3 }; /* a byte of four in front of the values */
    const char *values = (const char *)object + Py_TYPE(object)->tp_basicsize;
    return PyType_HasFeature(Py_TYPE(object), Py_TPFLAGS_INLINE_VALUES) &&
                   values[IS_VALID] != 0
               ? (PyObject *const *)(const void *)(values + sizeof(PyObject *))
               : NULL;
#  elif PY_VERSION_HEX >= 0x030c0000
    const char *values = ((char **)object)[-3]; /* less 1; or the dict */
    return PyType_HasFeature(Py_TYPE(object), Py_TPFLAGS_MANAGED_DICT) &&
                   ((uintptr_t)values & 1) != 0
               ? (PyObject *const *)(const void *)(values + 1)
               : NULL;
#  else
    return PyType_HasFeature(Py_TYPE(object), Py_TPFLAGS_MANAGED_DICT)
               ? ((PyObject *const **)object)[-4]
               : NULL;
#  endif
}
#endif

/* An attribute that an object has outside of a dict, without running Python. Reads memory alone.
 * Returns a borrowed reference; NULL when there is none. */
ASYNC_SAFE static PyObject *
read_attribute(PyObject *object, const char *name)
{
#if PY_VERSION_HEX >= 0x030b0000 && PY_VERSION_HEX < 0x03100000
    PyObject *const *values = find_values(object);
    const struct shared_names *names = NULL;
    const struct shared_name *entries = NULL;
    if (values == NULL) {
        return NULL;
    }
    names = (const void *)((PyHeapTypeObject *)Py_TYPE(object))->ht_cached_keys;
    entries = (const void *)(names->indices + ((size_t)1 << names->log2_index_bytes));
    for (Py_ssize_t i = 0; i < names->count; i++) {
        if (PyUnicode_CompareWithASCIIString(entries[i].name, name) == 0) {
            return values[i];
        }
    }
#else
    (void)object;
    (void)name;
#endif
    return NULL;
}

/* Before 3.12 the holder is known to the process, not to the thread: writes "! IDENT".
 * Aborts when there is none: the last act of a frozen copy. */
ASYNC_SAFE static void
ask_gil_holder(int fd)
{
#if PY_VERSION_HEX < 0x030c0000
    char line[40];
    int length = snprintf(line, sizeof(line), "! %lu\n",
                          (unsigned long)PyThreadState_Get()->thread_id);
    (void)!write(fd, line, (size_t)length);
#else
    (void)fd;
#endif
}

/* Before 3.12 a child waits for the lock on the list of thread states before it makes it anew, for
 * ever if another thread has it at the fork. One that is attached has not; a thread of ours on its
 * way in may. So fork() waits for it, the C library's too; and so does who walks over that list. */
#if PY_VERSION_HEX < 0x030d0000
static pthread_mutex_t new_state_lock = PTHREAD_MUTEX_INITIALIZER;

static void
lock_new_state(void)
{
    (void)pthread_mutex_lock(&new_state_lock);
}

static void
unlock_new_state(void)
{
    (void)pthread_mutex_unlock(&new_state_lock);
}

#else
static void
lock_new_state(void)
{
}

static void
unlock_new_state(void)
{
}
#endif

/* The calling thread's thread state, attached or not; NULL: Python does not know the thread. */
static PyThreadState *
own_thread_state(void)
{
    return is_attached() ? PyThreadState_Get() : PyGILState_GetThisThreadState();
}

/* Whether a thread is in Python code, or in C that this has called: not so where a C program that
 * embeds Python is in code of its own. Reads memory alone: frame objects, which the public
 * functions make, are not to be had without the GIL. */
ASYNC_SAFE static bool
is_in_python_code(const PyThreadState *tstate)
{
#if PY_VERSION_HEX >= 0x030f0000
    return tstate->current_frame != tstate->base_frame;
#elif PY_VERSION_HEX >= 0x030d0000
    return tstate->current_frame != NULL;
#elif PY_VERSION_HEX >= 0x030b0000
    return tstate->cframe->current_frame != NULL;
#else
    return tstate->frame != NULL;
#endif
}

/* Runs a program of ours, an expression or statements. PyRun_String() in a thread of ours would
 * make CPython forget that the application is about to end with a KeyboardInterrupt, and its
 * exit status with it. Returns a new reference, or NULL with an exception. */
ATTACHED static PyObject *
run_source(const char *source, int start, PyObject *names)
{
    PyObject *code = Py_CompileString(source, "<string>", start); /* owned */
    PyObject *result = code == NULL ? NULL : PyEval_EvalCode(code, names, names);
    Py_XDECREF(code);
    return result;
}

/* Takes back what the calling thread was to be interrupted with, if it was. Before 3.13 an interrupt
 * of one thread has all of them look for theirs, at each call and turn of a loop, until some thread
 * has got one: they are slower, and on 3.11 one that is traced or profiled comes no further. So one
 * is raised, and let out in an expression that does nothing: then nobody looks. Who is still to have
 * one does, as soon as it has the GIL again. Keeps the current exception. */
ATTACHED static void
settle_interrupts(void)
{
    PyObject *const nobodys = PyExc_StopAsyncIteration; /* no signal handler raises it */
    PyObject *raised = take_exception();                /* owned, handed back */
    PyObject *names = PyDict_New();                     /* owned */
    PyObject *code = Py_CompileString("0", "<string>", Py_eval_input); /* owned */
    bool out = names == NULL || code == NULL;
    PyErr_Clear();
    (void)PyThreadState_SetAsyncExc(PyThread_get_thread_ident(), out ? NULL : nobodys);
    for (int attempts = 3; !out && attempts > 0; attempts--) {
        PyObject *result = PyEval_EvalCode(code, names, names); /* owned */
        out = result != NULL || PyErr_ExceptionMatches(nobodys);
        if (out) {
            PyErr_Clear();
        }
        else {
            PyErr_WriteUnraisable(NULL); /* a signal came just now */
        }
        Py_XDECREF(result);
    }
    Py_XDECREF(names);
    Py_XDECREF(code);
    put_back_exception(raised);
}

/* Whether sys.modules has it. */
ATTACHED static bool
is_imported(const char *name)
{
    return PyDict_GetItemString(PyImport_GetModuleDict(), name) != NULL;
}

/* Imports threading before a client does. Until 3.13 it takes the thread that imports it first for
 * the main thread: exit would wait for a session, and the application would never be told its own
 * main thread again. So that is put right at once. Never raises. */
ATTACHED static void
import_threading(void)
{
#if PY_VERSION_HEX >= 0x030d0000
    static const char repair[] = "import _thread, os, threading\n"
                                 "main = threading._main_thread\n"
                                 "if main._native_id == _thread.get_native_id() and "
                                 "main._ident != _thread.get_ident():\n"
                                 "    main._native_id = os.getpid()\n";
    PyObject *names =
        Py_BuildValue("{sO}", "__builtins__", PyEval_GetBuiltins()); /* owned */
    PyObject *result =
        names == NULL ? NULL : run_source(repair, Py_file_input, names); /* owned */
    PyErr_Clear();
    Py_XDECREF(names);
    Py_XDECREF(result);
#else
    static const char repair[] =
        "import _thread, os, threading\n"
        "main = threading._main_thread\n"
        "if main._ident == _thread.get_ident() != ident:\n"
        "    threading._active[ident] = threading._active.pop(main._ident)\n"
        "    main._ident, main._native_id = ident, os.getpid()\n"
        /* The main thread may have begun to join what it takes for another one. */
        "    if threading._SHUTTING_DOWN:\n"
        "        with threading._shutdown_locks_lock:\n"
        "            waits = main._tstate_lock not in threading._shutdown_locks\n"
        "            threading._shutdown_locks.discard(main._tstate_lock)\n"
        "        if waits: main._tstate_lock.release()\n";
    PyThreadState *tstate = PyThreadState_Get();
    PyThreadState *oldest = NULL;
    bool had_lock = tstate->on_delete != NULL; /* a thread of threading's own */
    PyObject *names = NULL;                    /* owned */
    PyObject *result = NULL;                   /* owned */
    lock_new_state();
    oldest = PyInterpreterState_ThreadHead(PyInterpreterState_Get());
    while (oldest->next != NULL) {
        oldest = oldest->next;
    }
    unlock_new_state();
    names = Py_BuildValue("{sOsk}", "__builtins__", PyEval_GetBuiltins(), "ident",
                          oldest->thread_id);
    if (names != NULL) {
        result = run_source(repair, Py_file_input, names);
    }
    PyErr_Clear();
    Py_XDECREF(names);
    Py_XDECREF(result);
    if (tstate != oldest && !had_lock && tstate->on_delete != NULL) {
        /* The main thread's lock: to be let go by it, not by the end of this thread. */
        PyObject *lock = tstate->on_delete_data; /* owned, a weak reference */
        tstate->on_delete = NULL;
        tstate->on_delete_data = NULL;
        Py_XDECREF(lock);
    }
#endif
}

/* A thread state for the calling thread, which is not attached. Returns NULL without memory. */
DETACHED static PyThreadState *
new_thread_state(PyInterpreterState *interpreter)
{
    PyThreadState *tstate = NULL;
    lock_new_state();
    tstate = PyThreadState_New(interpreter);
    unlock_new_state();
    return tstate;
}

#ifdef Py_GIL_DISABLED
#  define HAS_GIL false
#else
#  define HAS_GIL true
#endif

/* ======================================================================================
 * State: all that a process has of us, in one struct.
 * ====================================================================================== */

/* What a client is, as the kernel says. */
struct peer {
    pid_t pid; /* 0: not known, as of all TCP clients */
    uid_t uid; /* -1: not known */
    gid_t gid;
    char address[ADDRESS_SIZE]; /* HOST:PORT of a TCP client, else "" */
};

/* What a socket is bound to. */
union address {
    struct sockaddr any;
    struct sockaddr_un un;
    struct sockaddr_in v4;
    struct sockaddr_in6 v6;
};

/* Where to listen. */
struct place {
    char *path; /* owned, malloc'd, may have %(pid)s; NULL: /tmp/manhole-%(pid)s */
    union address address; /* of the family AF_INET or AF_INET6 when it is no path */
};

struct places {
    size_t count;
    struct place rows[MAX_PLACES];
};

/* Where log lines go. */
struct destination {
    int fd;           /* -1: to the object */
    PyObject *object; /* owned, has write(str); NULL: to the descriptor */
};

/* Who serves a client once it is in. */
enum handler_kind {
    HANDLER_REPL,
    HANDLER_EXEC,
    HANDLER_COMMANDS,
    HANDLER_CALLABLE,
};

/* What a command shell has only where it is enabled: there the client runs code. */
enum feature {
    FEATURE_CONSOLE = 1,
    FEATURE_DEBUGGER = 2,
};

struct handler {
    enum handler_kind kind;
    PyObject *callable; /* owned, NULL but for HANDLER_CALLABLE */
};

/* install()'s options, checked and converted. A field is named like its option. */
struct options {
    int verbose;
    struct destination verbose_destination;
    int strict;
    int patch_fork;
    int activate_on; /* signal number, 0: none */
    int oneshot_on;  /* signal number, 0: none */
    int thread;
    sigset_t sigmask;
    char *socket_path; /* owned, malloc'd; NULL: /tmp/manhole-%(pid)s, but for listen */
    struct places listen;
    double reinstall_delay; /* seconds */
    double start_timeout;   /* seconds */
    double oneshot_timeout; /* seconds */
    double hang_timeout;    /* seconds */
    int max_sessions;
    PyObject *locals; /* owned mapping, or NULL */
    int daemon_connection;
    int redirect_stderr;
    struct handler connection_handler;
    unsigned enable;    /* bits of enum feature */
    PyObject *config;   /* owned path, or NULL; and what the file says: */
    PyObject *settings; /* owned RawConfigParser, or NULL: there is no file */
    PyObject *plugins;  /* owned list of str; NULL: it does not say */
};

struct session;

/* Bytes that grow. After a failed allocation it stays as it was and failed is set. */
struct text {
    char *bytes; /* owned, malloc'd */
    size_t length;
    size_t capacity;
    bool failed;
};

/* What the client has asked for on its calling card. The rows are in the listener's room. */
struct wish {
    const char *name;
    bool aside;           /* needs a slot, but is none of max_sessions */
    bool no_stacks;       /* the console begins with its banner */
    bool stacks_if_stuck; /* but for a Python that does not answer */
    bool live_names;      /* of the application's locals, not a copy */
    bool framed;          /* the answer is in frames: stdout and stderr apart */
    bool marked;          /* typed at a terminal: see is_key() */
    bool unlogged;        /* too frequent for a line in the log each time */
    /* In the session's thread, before it attaches: reads the client's request. Returns whether
     * there is one; else the client has been told. NULL: there is none to wait for. */
    bool (*receive)(struct session *session);
    /* In the session's thread, attached; never raises. NULL: as connection_handler says. */
    void (*serve)(struct session *session, PyObject *locals);
    /* In a native thread: what the client gets, once and for all, when Python has not answered for
     * hang_timeout. NULL: nothing, or what a console gets. */
    void (*report)(struct text *text, const struct session *session);
};

/* A descriptor that we keep, and what it was when we opened it: an application that closes all
 * descriptors may have opened something of its own under the number since. */
struct kept_fd {
    _Atomic int number; /* -1: none */
    /* Written first. Who still has the number before finds that it is not ours. */
    _Atomic dev_t device;
    _Atomic ino_t inode;
};

enum session_state {
    SESSION_FREE,
    SESSION_TAKEN,
    SESSION_BURNT, /* a forked child's own stack still uses it: never handed out again */
};

/* A client and what serves it. Slots of a fixed table, so that a forked child finds every
 * descriptor that it inherited, and an application thread can look at all without a
 * global lock. */
/* NOLINTNEXTLINE(clang-analyzer-optin.performance.Padding): grouped by who writes them */
struct session {
    /* Under table_lock. */
    enum session_state state;
    /* Written before the session's thread starts. */
    struct kept_fd fd; /* blocking socket */
    struct peer peer;
    const struct wish *wish;
    char card[CARD_SIZE]; /* the id on its calling card, "" when it has none */
    /* The application's socket that it came through, or NULL: whose locals are meant, if that still
     * has this serial. */
    const struct door *door;
    unsigned door_serial;
    PyObject *locals;     /* owned, of backdoor(), or NULL */
    bool asked_for_input; /* by the session's own thread: see ask_for_input() */
    /* A TCP client's bytes without telnet's are read here; -1: they come over fd. */
    struct kept_fd plain_fd;
    struct kept_fd telnet_fd; /* the other end of that */
    /* The session's own thread's. */
    _Atomic unsigned long
        ident;              /* as threading.get_ident(); also read by who interrupts it */
    _Atomic bool running;   /* what the client sent runs just now: may be interrupted */
    _Atomic bool stricken;  /* an interrupt was raised in that, and may come late */
    _Atomic int interrupts; /* that it has got */
    /* A Ctrl-C of telnet's is still to be read: see is_taken_back(). */
    _Atomic bool taken_back;
    int writes;   /* since it was last asked for a line */
    bool one_act; /* the line that runs is over once it shows its value */
    /* A value and a prompt, which go out when the session reads or writes on. */
    struct text unsent;
    const char *prompt; /* borrowed: goes along when it says that it reads; NULL: none */
    bool says_it_reads; /* the client knows that it waits */
    bool takes_paste;   /* it reads for the console, */
    bool pasting;       /* which has the first part of a paste */
    bool has_console;   /* the std streams are this client's in its thread */
    PyObject *input;    /* owned text file that sys.stdin is in its thread */
    /* owned, under table_lock: the console's namespace, a dict; in a command shell a tuple of the
     * words that may be typed; NULL: neither */
    PyObject *names;
    PyObject *arguments; /* owned, sys.argv in its thread; NULL: the application's */
    char *request;       /* owned, malloc'd, NUL-terminated; NULL: the wish needs none */
    size_t request_length;
    PyObject *raised; /* owned SystemExit of the application's own, out of a oneshot */
    /* The listener's: monotonic, when it last looked after a client that left; 0: it is there. */
    int64_t gone_ms;
    /* Under out_lock. Whoever has set sending may send without the lock. */
    pthread_mutex_t out_lock;
    pthread_cond_t out_free; /* sending or helpers has changed */
    bool sending;
    _Atomic bool viewing; /* wants copies of what the application prints */
    char *_Atomic copies; /* ring of COPIES_SIZE bytes, or NULL before the first copy */
    size_t head; /* bytes ever sent and ever kept: their difference is what waits */
    size_t tail;
    size_t left_end; /* of the session's own bytes among them, see leave_to_listener() */
    bool refused;    /* a send() of the listener's has failed: the client is gone */
    /* Bytes that found no room since the last note about it. Away from 0 and back only under
     * out_lock; in between anybody may add to it. */
    _Atomic size_t missed;
    int64_t
        asked_ms; /* monotonic: the listener took it in; 0: it is none of the listener's */
    int64_t
        waiting_ms; /* monotonic: since when its thread waits for Python; 0: it does not */
    bool answered;  /* Python has spoken to the client */
    bool reported;  /* a reporter was sent, because it had not */
    bool told;      /* the client has the stacks from it */
    bool interrupted; /* an interrupter is on its way */
    bool guarded;     /* it has a guard */
    bool importing;   /* it waits for modules, which it or another session imports */
    _Atomic bool
        over; /* it has hung up: its place is free, a guard may go; also read unlocked */
    int helpers; /* reporters, interrupters and guards that still use the slot */
};

/* Wishes to the listener, bits of manhole.wishes. Each is followed by wake_listener(). */
enum {
    WISH_OPEN = 1,  /* the activating signal came */
    WISH_CLOSE = 2, /* close the socket, remove its path */
    WISH_STOP = 4,  /* end the thread */
};

/* An attribute of sys that we have set, and what was there before. */
struct borrowed_attribute {
    const char *name;
    PyObject *previous; /* owned, NULL: there was none */
    PyObject *ours;     /* owned, NULL: not borrowed now */
};

/* A socket that we listen on. Of the options' doors each has one of the first MAX_OWN_DOORS slots.
 * The others are for those that the application has given us, which stay when install() comes
 * after that; they are opened under install_lock. */
struct door {
    struct kept_fd listen_fd; /* closed by the listener, or when that has ended */
    struct kept_fd given_fd;  /* the application's own descriptor for it; -1: none */
    PyObject *given;          /* owned socket object: only to close it closes given_fd */
    bool was_blocking; /* before it was given; for both descriptors are one socket */
    PyObject *locals;  /* owned mapping for the consoles behind it, or NULL */
    _Atomic unsigned serial; /* of the socket in this slot */
    /* A Unix socket's path, whole whenever bound is true; whether it is ours is known again when
     * binding is not. Read by the handlers. A TCP socket's HOST:PORT. */
    char name[SOCKET_PATH_SIZE];
    _Atomic bool binding;
    _Atomic bool bound;
    _Atomic int left_for; /* errno of the path's removal, until it is logged; else 0 */
    dev_t device;
    ino_t inode;
};

/* Apart from what has initial values: a page of it is the process's own when it is first used. */
static struct session session_table[MAX_SESSIONS];

/* NOLINTNEXTLINE(clang-analyzer-optin.performance.Padding): grouped by who writes them */
static struct manhole {
    /* Under install_lock, attached. */
    bool installed;
    bool replaceable; /* by any install(): there was none here, or it cannot listen */
    bool has_exit_handler; /* C's; it cannot be taken back */
    _Atomic pid_t owner;   /* the process whose all this is; another one does nothing */
    struct options options;
    PyObject *module;           /* owned, while installed */
    PyObject *exit_callback;    /* owned, as registered with atexit */
    PyObject *previous_oneshot; /* owned, what signal.signal() returned */
    struct sigaction previous_oneshot_action;
    void (*oneshot_handler)(int); /* what signal.signal() has set: CPython's own */
    PyInterpreterState *interpreter;
    struct sigaction previous_activate;
    /* The listener: made and joined under install_lock. */
    bool has_listener;
    pthread_t listener;
    sem_t wake;               /* it sleeps on this while it has no descriptor to watch, */
    struct kept_fd wake_bell; /* else on this; each wish goes to both */
    _Atomic bool polling;     /* it does the latter */
    _Atomic int64_t
        wakes_at_ms; /* monotonic: then it looks at all sessions again; -1: who knows */
    struct kept_fd news_bell; /* rings when a session ends, or the listener has started */
    _Atomic unsigned wishes;
    _Atomic pid_t activated_child; /* has got activate_on before its fork hook ran */
    _Atomic bool started;          /* has bound, failed to, or sleeps until activated */
    int bind_delay_ms;             /* for the listener of a forked child */
    bool is_child;                 /* what only one process can have is the parent's */
    _Atomic bool courier_is_out;
    /* Nothing is bound any more in a process that is leaving. */
    _Atomic bool leaving;
    _Atomic bool
        oneshot; /* the doors are handle_oneshot()'s: the listener leaves them alone */
    struct door doors[MAX_DOORS];
    /* Sessions, under table_lock. */
    bool closing; /* the interpreter is about to end: nobody attaches any more */
    int entering; /* threads of ours that make their thread state just now */
    int inside;   /* threads of ours that are, or are about to be, attached */
    struct session *sessions; /* MAX_SESSIONS of them */
    _Atomic size_t
        sessions_end; /* those from here on were never used; grows under table_lock */
    _Atomic size_t viewers_end; /* no slot from here on has ever had viewing set */
    _Atomic int viewers;        /* sessions with viewing set: the streams' short cut */
    /* sys attributes, under sys_lock, attached. */
    int consoles;
    int programs;        /* sessions with an argv of their own */
    PyObject *sys_class; /* owned, what type(sys) was before the first of them */
    struct borrowed_attribute borrowed[11];
} manhole = {
    .sessions = session_table,
    .wake_bell.number = -1,
    .news_bell.number = -1,
    .doors = {[0 ... MAX_DOORS - 1] = {.listen_fd.number = -1, .given_fd.number = -1}},
    .borrowed =
        {
            {.name = "stdin"},
            {.name = "__stdin__"},
            {.name = "stdout"},
            {.name = "__stdout__"},
            {.name = "stderr"},
            {.name = "__stderr__"},
            {.name = "displayhook"},
            {.name = "last_type"},
            {.name = "last_value"},
            {.name = "last_traceback"},
            {.name = "last_exc"},
        },
};

/* What a frozen copy needs, settled at install so that nothing is asked for when it is
 * too late. */
static struct {
    int signum; /* its handler is faulthandler's, which writes to descriptor 2; 0: none was free */
    void (*handler)(int);
    PyInterpreterState *interpreter;
    PyObject *modules; /* owned, sys.modules */
    /* Nothing is in it: closed when a copy is to be made and the process has no other descriptor
     * left. Under snapshot_lock. */
    struct kept_fd spare;
} snapshot = {.spare = {.number = -1}};

/* The session that the calling thread serves, NULL in all threads of the application. */
static _Thread_local struct session *current_session;

/* What the module owns in one interpreter. */
struct module_state {
    PyObject *manhole_type;
    PyObject *stream_type;
    PyObject *manhole_object; /* what install() returns */
    bool has_fork_hook;
    bool has_multiprocessing_hook;
    PyObject *streams;      /* list of the last streams made, see get_stream() */
    PyObject *console_type; /* made at the first connection, NULL before */
    PyObject *input_type;   /* made at the first command shell, NULL before */
    PyObject *sys_type;     /* made at the first program, NULL before */
    PyObject *library;      /* dict, see import_standard() */
    PyObject *parts;        /* dict of name: module, see struct part */
    PyObject *already_installed;
    PyObject *not_installed;
    PyObject *configuration_conflict;
    PyObject *suspicious_client;
};

static struct PyModuleDef manhole_module;

/* The module's state in the interpreter that installed. Only while installed. */
ATTACHED static struct module_state *
installed_state(void)
{
    return PyModule_GetState(manhole.module);
}

/* True in the process that installed; false in a child that was forked behind CPython's
 * back. */
ASYNC_SAFE static bool
is_owner(void)
{
    return atomic_load(&manhole.owner) == getpid();
}

/* ======================================================================================
 * Locks. Two kinds, never mixed:
 *   install_lock, sys_lock, import_lock   may be held while Python runs; taken by lock_attached(),
 *                            and import_lock by whoever forks.
 *   leaves: table_lock, log_lock, out_lock of a session. Held for a few instructions, never while
 *   attaching, detaching, sending or running Python; so they may be taken in either state.
 *   snapshot_lock            held while a frozen copy is made and waited for: who is attached may
 *                            try it, but not wait for it.
 * A forked child makes all of them anew: the thread that held one is gone.
 * ====================================================================================== */

static pthread_mutex_t install_lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_mutex_t sys_lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_mutex_t import_lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_mutex_t table_lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_mutex_t log_lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_mutex_t snapshot_lock = PTHREAD_MUTEX_INITIALIZER;

/* Waits detached: the holder may need to attach before it can let go. */
ATTACHED static void
lock_attached(pthread_mutex_t *lock)
{
    if (pthread_mutex_trylock(lock) != 0) {
        PyThreadState *tstate = detach();
        (void)pthread_mutex_lock(lock);
        reattach(tstate);
    }
}

static void
lock_leaf(pthread_mutex_t *lock)
{
    (void)pthread_mutex_lock(lock);
}

/* The thread that is in install() or release(), 0: none. */
static _Atomic unsigned long installer;

ATTACHED static void
raise_at_work(void)
{
    PyErr_SetString(
        PyExc_RuntimeError,
        "install() or release() is at work in this very thread; try again later");
}

/* Returns 0, or -1 with RuntimeError: a signal handler in Python may find that its own thread is at
 * it already. */
ATTACHED static int
lock_install(void)
{
    if (atomic_load(&installer) == PyThread_get_thread_ident()) {
        raise_at_work();
        return -1;
    }
    lock_attached(&install_lock);
    atomic_store(&installer, PyThread_get_thread_ident());
    return 0;
}

static void
unlock(pthread_mutex_t *lock)
{
    (void)pthread_mutex_unlock(lock);
}

static void
unlock_install(void)
{
    atomic_store(&installer, 0);
    unlock(&install_lock);
}

/* Before the first use, and in a forked child. */
static void
make_session_locks(struct session *session)
{
    pthread_condattr_t timed;
    (void)pthread_condattr_init(&timed);
    (void)pthread_condattr_setclock(&timed, CLOCK_MONOTONIC);
    (void)pthread_mutex_init(&session->out_lock, NULL);
    (void)pthread_cond_init(&session->out_free, &timed);
    (void)pthread_condattr_destroy(&timed);
}

static void
make_locks_anew(void)
{
    (void)pthread_mutex_init(&install_lock, NULL);
    atomic_store(&installer, 0);
    (void)pthread_mutex_init(&sys_lock, NULL);
    (void)pthread_mutex_init(&import_lock, NULL);
    (void)pthread_mutex_init(&table_lock, NULL);
    (void)pthread_mutex_init(&log_lock, NULL);
    (void)pthread_mutex_init(&snapshot_lock, NULL);
    for (size_t i = 0; i < atomic_load(&manhole.sessions_end); i++) {
        make_session_locks(&manhole.sessions[i]);
    }
}

/* ======================================================================================
 * Descriptors, clocks, threads, text: what the rooms above build on.
 * ====================================================================================== */

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
    int fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0); /* owned */
    /* Only a family: the kernel finds an address, which is in no file system. */
    if (fd >= 0 &&
        (bind(fd, (struct sockaddr *)&address, sizeof(address.sun_family)) < 0 ||
         getsockname(fd, (struct sockaddr *)&address, &size) < 0 ||
         connect(fd, (struct sockaddr *)&address, size) < 0)) {
        int error = errno;
        (void)close(fd);
        errno = error;
        fd = -1;
    }
    return fd;
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
    int64_t left = 0;
    if (deadline_ms < 0) {
        return -1;
    }
    left = deadline_ms - monotonic_ms();
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
    size_t point = 0;
    (void)snprintf(formatted.text, sizeof(formatted.text), "%g", seconds);
    point = strspn(formatted.text, "0123456789");
    if (formatted.text[point] == ',') {
        formatted.text[point] = '.';
    }
    return formatted;
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

/* Appends what it has already at this place. */
static void
append_again(struct text *text, size_t start, size_t length)
{
    if (length > 0 && make_room(text, length)) {
        memcpy(text->bytes + text->length, text->bytes + start, length);
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
    int length = 0;
    va_start(arguments, format);
    length = vsnprintf(piece, sizeof(piece), format, arguments);
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
    PyObject *encoded =
        PyUnicode_AsEncodedString(str, "utf-8", "backslashreplace"); /* owned */
    if (encoded == NULL) {
        PyErr_Clear();
        append_string(text, "?");
        return;
    }
    append_bytes(text, PyBytes_AS_STRING(encoded), (size_t)PyBytes_GET_SIZE(encoded));
    Py_DECREF(encoded);
}

static void
free_text(struct text *text)
{
    free(text->bytes);
    *text = (struct text){0};
}

/* Modules of the standard library's, and not those of the application that have their names: a
 * script called code.py, say, stands before it in sys.path, and would run a second time. While there
 * is none, and the library's folder is in sys.path, this imports as everybody does. Else what the
 * application has imported of the library is shared. The rest is loaded from its folder under names
 * of our own, and so is what that imports in turn, at any time: `__import__` is ours in there. As
 * everybody does are imported: a submodule of a package that is shared; what a module in C imports;
 * a module in C itself, and warnings, which is half of C, unless the application has that name. */
static const char library_program[] =
    "import builtins, os, sys\n"
    "folder = os.path.dirname(os.__file__)\n"
    "private = 'manhole.library.'\n"
    "path_finder = [f for f in sys.meta_path if getattr(f, '__name__', '') == "
    "'PathFinder'][0]\n"
    "known = None\n"
    "def is_standard(module):\n"
    "    origin = getattr(getattr(module, '__spec__', None), 'origin', None)\n"
    "    inside = str(origin).startswith(folder + '/')\n"
    "    return origin in ('built-in', 'frozen') or (\n"
    "        inside and '-packages/' not in origin[len(folder):])\n"
    "def list_names(entry):\n"
    "    try:\n"
    "        return {file.partition('.')[0] for file in os.listdir(entry or '.')}\n"
    "    except OSError:\n"
    "        return set()\n"
    "def find_ahead(names, entry):\n"
    "    files = names if os.path.isfile(entry) else list_names(entry)\n"
    "    for name in names & files:\n"
    "        spec = path_finder.find_spec(name, [entry])\n"
    "        if spec is not None and spec.loader is not None:\n"
    "            yield name\n"
    "def find_others():\n"
    "    names = getattr(sys, 'stdlib_module_names', None)\n"
    "    if names is None:\n"
    "        names = list_names(folder) | list_names(folder + '/lib-dynload')\n"
    "    names = set(names).difference(sys.builtin_module_names)\n"
    "    end = sys.path.index(folder) if folder in sys.path else None\n"
    "    ahead = {name for entry in sys.path[:end] for name in find_ahead(names, "
    "entry)}\n"
    "    return ahead, any(not is_standard(sys.modules[name])\n"
    "                      for name in names.intersection(sys.modules))\n"
    "def look():\n"
    "    global known\n"
    "    if known is None or known[0] != sys.path:\n"
    "        known = list(sys.path), *find_others()\n"
    "    return known[1:]\n"
    "def import_normally(name):\n"
    "    builtins.__import__(name)\n"
    "    return sys.modules[name]\n"
    "def load(name):\n"
    "    parent, _, leaf = name.rpartition('.')\n"
    "    home = load(parent) if parent else None\n"
    "    if home is not None and home.__name__ == parent:\n"
    "        return import_normally(name)\n"
    "    if private + name in sys.modules:\n"
    "        return sys.modules[private + name]\n"
    "    if is_standard(sys.modules.get(name)):\n"
    "        return sys.modules[name]\n"
    "    path = [folder, folder + '/lib-dynload'] if home is None else home.__path__\n"
    "    spec = path_finder.find_spec(private + name, path)\n"
    "    ahead = name in look()[0]\n"
    "    one = folder in sys.path and (name == 'warnings' or "
    "spec and spec.origin.endswith('.so'))\n"
    "    if not ahead and (one or spec is None):\n"
    "        return import_normally(name)\n"
    "    if spec is None:\n"
    "        raise ModuleNotFoundError(f'no {name!r} in {folder!r}', name=name)\n"
    "    module = spec.loader.create_module(spec) or type(sys)(spec.name)\n"
    "    module.__spec__, module.__loader__ = spec, spec.loader\n"
    "    module.__file__, module.__package__ = spec.origin, spec.parent\n"
    "    module.__builtins__ = {**vars(builtins), '__import__': import_privately}\n"
    "    if spec.submodule_search_locations is not None:\n"
    "        module.__path__ = spec.submodule_search_locations\n"
    "    sys.modules[spec.name] = module\n"
    "    try:\n"
    "        spec.loader.exec_module(module)\n"
    "    except BaseException:\n"
    "        del sys.modules[spec.name]\n"
    "        raise\n"
    "    module = sys.modules[spec.name]\n"
    "    if home is not None:\n"
    "        setattr(home, leaf, module)\n"
    "    return module\n"
    "def import_privately(name, globals=None, locals=None, fromlist=(), level=0):\n"
    "    if level > 0:\n"
    "        home = globals['__package__'][len(private):].split('.')\n"
    "        name = '.'.join(home[:len(home) - level + 1] + ([name] if name else []))\n"
    "    module = load(name)\n"
    "    for item in fromlist or ():\n"
    "        if item != '*' and hasattr(module, '__path__') and not hasattr(module, "
    "item):\n"
    "            load(name + '.' + item)\n"
    "    return module if fromlist else load(name.partition('.')[0])\n"
    "def find(name):\n"
    "    if folder in sys.path and not any(look()):\n"
    "        module = import_normally(name)\n"
    "        if is_standard(module):\n"
    "            return module\n"
    "    return load(name)\n"
    "def is_found_normally(name):\n"
    "    return is_standard(sys.modules.get(name)) or (\n"
    "        folder in sys.path and name not in look()[0])\n"
    "find.is_found_normally = is_found_normally\n";

/* Returns that program's find(), new; NULL, without an exception, where there is no such folder. */
ATTACHED static PyObject *
get_finder(PyObject *library)
{
    PyObject *finder = Py_XNewRef(PyDict_GetItemString(library, "")); /* new */
    PyObject *names = NULL;                                           /* owned */
    PyObject *result = NULL;                                          /* owned */
    if (finder != NULL) {
        return finder;
    }
    names = Py_BuildValue("{sOss}", "__builtins__", PyEval_GetBuiltins(), "__name__",
                          "manhole");
    if (names != NULL) {
        result = run_source(library_program, Py_file_input, names);
    }
    if (result != NULL) {
        finder = PyMapping_GetItemString(names, "find");
    }
    if (finder != NULL && PyDict_SetItemString(library, "", finder) < 0) {
        Py_CLEAR(finder);
    }
    PyErr_Clear();
    Py_XDECREF(names);
    Py_XDECREF(result);
    return finder;
}

/* What we have of the standard library in this interpreter: modules by their names, the program
 * above by "". NULL: this interpreter has not installed. */
ATTACHED static PyObject *
find_library(void)
{
    bool here = manhole.module != NULL && manhole.interpreter == PyInterpreterState_Get();
    return here ? installed_state()->library : NULL;
}

/* Returns a module of the standard library's, new, the same each time; or NULL with an
 * exception. */
ATTACHED static PyObject *
import_standard(const char *name)
{
    PyObject *library = find_library(); /* borrowed */
    PyObject *finder = NULL;            /* owned */
    PyObject *module = NULL;            /* new, handed to the caller */
    if (library == NULL) {
        return PyImport_ImportModule(name);
    }
    module = Py_XNewRef(PyDict_GetItemString(library, name));
    if (module != NULL) {
        return module;
    }
    finder = get_finder(library);
    module = finder == NULL ? PyImport_ImportModule(name)
                            : PyObject_CallFunction(finder, "s", name);
    if (module != NULL && PyDict_SetItemString(library, name, module) < 0) {
        Py_CLEAR(module);
    }
    Py_XDECREF(finder);
    return module;
}

/* Whether who imports this gets the standard library's. Never raises. */
ATTACHED static bool
is_found_normally(const char *name)
{
    PyObject *library = find_library();                              /* borrowed */
    PyObject *finder = library == NULL ? NULL : get_finder(library); /* owned */
    PyObject *answer = NULL;                                         /* owned */
    bool normally = true;
    if (finder != NULL) {
        answer = PyObject_CallMethod(finder, "is_found_normally", "s", name);
        normally = answer != Py_False;
    }
    PyErr_Clear();
    Py_XDECREF(finder);
    Py_XDECREF(answer);
    return normally;
}

/* ======================================================================================
 * Log: one line for each thing that happens, for the operator and for scripts.
 * Runs on:  every thread; log_line() never runs Python and never blocks.
 * Touches:  the verbose options, under log_lock. A Python destination is only ever called by
 *           deliver_log(); the lines wait for it in a bounded queue.
 * ====================================================================================== */

struct log_entry {
    struct log_entry *next;
    char line[]; /* NUL-terminated */
};

/* All under log_lock. */
static struct {
    bool enabled;
    PyObject *object;  /* owned, has write(str); NULL: lines go to the descriptor */
    struct kept_fd fd; /* nothing is written to what the application has there since */
    struct log_entry *first;
    struct log_entry *last;
    int length;
    bool delivering; /* a thread is at it, and takes along what comes meanwhile */
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
    struct log_entry *entry = NULL; /* owned by the queue */
    if (logger.length == LOG_QUEUE_LENGTH) {
        return;
    }
    entry = malloc(sizeof(*entry) + length + 1);
    if (entry == NULL) {
        return;
    }
    entry->next = NULL;
    memcpy(entry->line, line, length + 1);
    if (logger.last == NULL) {
        logger.first = entry;
    }
    else {
        logger.last->next = entry;
    }
    logger.last = entry;
    logger.length++;
}

__attribute__((format(printf, 1, 2))) static void
log_line(const char *format, ...)
{
    char line[LOG_LINE_SIZE];
    struct timespec now = {0};
    va_list arguments;
    size_t length = 0;
    bool enabled = false;
    bool queued = false;
    lock_leaf(&log_lock);
    enabled = logger.enabled;
    unlock(&log_lock);
    if (!enabled) {
        return;
    }
    (void)clock_gettime(CLOCK_REALTIME, &now);
    length =
        (size_t)snprintf(line, sizeof(line), "Manhole[%ld:%lld.%04ld]: ", (long)getpid(),
                         (long long)now.tv_sec, now.tv_nsec / 100000);
    va_start(arguments, format);
    (void)vsnprintf(line + length, sizeof(line) - length - 1, format, arguments);
    va_end(arguments);
    length = strlen(line);
    line[length++] = '\n';
    line[length] = '\0';
    lock_leaf(&log_lock);
    enabled = logger.enabled;
    queued = logger.object != NULL;
    if (enabled && queued) {
        queue_log_line(line, length);
    }
    unlock(&log_lock);
    if (enabled && !queued) {
        write_log_fd(line, length);
    }
}

/* Becomes the one thread that delivers, so that the lines keep their order. */
static bool
begin_delivery(void)
{
    bool mine = false;
    lock_leaf(&log_lock);
    mine = !logger.delivering && logger.first != NULL;
    logger.delivering = logger.delivering || mine;
    unlock(&log_lock);
    return mine;
}

/* Returns the oldest queued line, malloc'd, and in *object a new reference to where it is to go.
 * NULL when there is none: the delivery is over, in the same step, so no line is left behind. */
ATTACHED static struct log_entry *
next_log_entry(PyObject **object)
{
    struct log_entry *entry = NULL;
    lock_leaf(&log_lock);
    entry = logger.first;
    if (entry == NULL) {
        logger.delivering = false;
    }
    else {
        *object = Py_XNewRef(logger.object);
        logger.first = entry->next;
        logger.length--;
        if (logger.first == NULL) {
            logger.last = NULL;
        }
    }
    unlock(&log_lock);
    return entry;
}

/* Hands the queued lines to the Python object. Keeps the current exception, adds none. */
ATTACHED static void
deliver_log(void)
{
    PyObject *type = NULL;      /* owned */
    PyObject *value = NULL;     /* owned */
    PyObject *traceback = NULL; /* owned */
    PyObject *object = NULL;    /* owned */
    struct log_entry *entry = NULL;
    if (!begin_delivery()) {
        return;
    }
    PyErr_Fetch(&type, &value, &traceback);
    while ((entry = next_log_entry(&object)) != NULL) {
        PyObject *line = PyUnicode_DecodeUTF8(
            entry->line, (Py_ssize_t)strlen(entry->line), "backslashreplace"); /* owned */
        PyObject *result = NULL;                                               /* owned */
        if (object != NULL && line != NULL) {
            result = PyObject_CallMethod(object, "write", "O", line);
        }
        PyErr_Clear(); /* logging never raises into the application */
        Py_XDECREF(line);
        Py_XDECREF(result);
        Py_CLEAR(object);
        free(entry);
    }
    PyErr_Restore(type, value, traceback);
}

/* "ValueError('why')", for a log line, in a buffer of this size. Never raises. */
ATTACHED static const char *
describe_exception(PyObject *exception /* or NULL */, char *text, size_t size)
{
    PyObject *repr = exception == NULL ? NULL : PyObject_Repr(exception); /* owned */
    const char *utf8 = repr == NULL ? NULL : PyUnicode_AsUTF8(repr);
    if (utf8 == NULL) {
        PyErr_Clear();
        utf8 = "an exception that has no repr()";
    }
    (void)snprintf(text, size, "%s", utf8);
    Py_XDECREF(repr);
    return text;
}

/* Logs PREFIX, repr(exception), SUFFIX and drops the exception. */
ATTACHED static void
log_exception(const char *prefix, PyObject *exception /* new: taken over */,
              const char *suffix)
{
    char text[LOG_LINE_SIZE];
    log_line("%s%s%s", prefix, describe_exception(exception, text, sizeof(text)), suffix);
    deliver_log();
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
    PyObject *previous = NULL; /* owned */
    struct log_entry *entry = NULL;
    int fd = destination == NULL ? -1 : destination->fd;
    fd = fd == STDERR_FILENO && has_no_stderr() ? -1 : fd;
    lock_leaf(&log_lock);
    previous = logger.object;
    entry = logger.first;
    logger.enabled = destination != NULL;
    logger.object = destination == NULL ? NULL : Py_XNewRef(destination->object);
    keep_fd(&logger.fd, fd);
    logger.first = NULL;
    logger.last = NULL;
    logger.length = 0;
    unlock(&log_lock);
    while (entry != NULL) {
        struct log_entry *next = entry->next;
        free(entry);
        entry = next;
    }
    Py_XDECREF(previous);
}

/* In a child: the parent delivers them. */
static void
forget_log_lines(void)
{
    logger.delivering = false;
    logger.first = NULL;
    logger.last = NULL;
    logger.length = 0;
}

static bool
is_log_waiting(void)
{
    bool waiting = false;
    lock_leaf(&log_lock);
    waiting = logger.first != NULL;
    unlock(&log_lock);
    return waiting;
}

/* ======================================================================================
 * Async-signal-safe code: the two handlers. Only signal-safety(7) calls and other ASYNC_SAFE
 * functions here; errno saved first and restored last.
 * Runs on:  whichever thread the kernel picks, at any instruction.
 * Touches:  atomics, and a door's path while bound says that it is whole.
 * ====================================================================================== */

ASYNC_SAFE static bool
is_binding(void)
{
    bool binding = false;
    for (size_t i = 0; i < MAX_OWN_DOORS; i++) {
        binding = binding || atomic_load(&manhole.doors[i].binding);
    }
    return binding;
}

/* Two threads at once do no harm: the second finds nothing of ours. */
ASYNC_SAFE static void
remove_path(struct door *door)
{
    struct stat there;
    if (atomic_load(&door->bound)) {
        if (lstat(door->name, &there) == 0 && there.st_dev == door->device &&
            there.st_ino == door->inode) {
            atomic_store(&door->left_for, unlink(door->name) < 0 ? errno : 0);
        }
        atomic_store(&door->bound, false);
    }
}

/* Removes the sockets' paths, those that are ours and there. No signal may come in between, for its
 * handler may end the process. The listener takes microseconds to bind; it is waited for a little
 * longer, but not for ever. */
ASYNC_SAFE static void
remove_paths(void)
{
    sigset_t all;
    sigset_t before;
    (void)sigfillset(&all);
    (void)pthread_sigmask(SIG_SETMASK, &all, &before);
    for (int ms = 0; ms < BIND_PATIENCE_MS && is_binding(); ms++) {
        (void)poll(NULL, 0, 1);
    }
    for (size_t i = 0; i < MAX_OWN_DOORS; i++) {
        remove_path(&manhole.doors[i]);
    }
    (void)pthread_sigmask(SIG_SETMASK, &before, NULL);
}

/* After a change of manhole.wishes. */
ASYNC_SAFE static void
wake_listener(void)
{
    (void)sem_post(&manhole.wake);
    ring_bell(&manhole.wake_bell);
}

/* For activate_on. Wakes the listener, which was made for this at install. */
ASYNC_SAFE static void
on_activate(int signum)
{
    int saved_errno = errno;
    (void)signum;
    if (is_owner()) {
        atomic_fetch_or(&manhole.wishes, WISH_OPEN);
        wake_listener();
    }
    else {
        atomic_store(&manhole.activated_child, getpid());
    }
    errno = saved_errno;
}

/* For a signal whose default action ends the process: the path goes first, then the
 * process, by the very same signal, so that its exit status tells the truth. */
ASYNC_SAFE static void
on_death(int signum)
{
    int saved_errno = errno;
    struct sigaction action = {.sa_handler = SIG_DFL};
    if (is_owner()) {
        atomic_store(&manhole.leaving,
                     true); /* first, or the listener might bind behind us */
        remove_paths();
    }
    (void)sigaction(signum, &action, NULL);
    (void)kill(getpid(), signum); /* blocked in here: delivered when we return */
    errno = saved_errno;
}

/* ======================================================================================
 * TCP: addresses of this machine, and whose socket is at the other end of a connection.
 * Runs on:  the listener thread; install(), and threads that hand us a socket. DETACHED throughout.
 * Touches:  nothing but descriptors of its own, open for one question.
 *
 * TCP knows no SO_PEERCRED. But who connects from this machine has a socket in the kernel, too, and
 * the socket diagnostics (sock_diag(7), where ss has it from) tell whose it is. Two traps, for the
 * user of a socket is only told as long as somebody has it open: one that was closed has no inode
 * and, as it seems, root's uid; and once the connection is over its addresses may be another's. So
 * a socket without an inode is nobody's, and the connection must live after we have asked.
 * ====================================================================================== */

static socklen_t
address_size(const union address *address)
{
    return address->any.sa_family == AF_INET6 ? sizeof(address->v6) : sizeof(address->v4);
}

/* Writes HOST:PORT, [HOST]:PORT for IPv6. text: ADDRESS_SIZE bytes. */
static void
format_address(const union address *address, char *text)
{
    bool v6 = address->any.sa_family == AF_INET6;
    char host[INET6_ADDRSTRLEN] = "";
    (void)inet_ntop(address->any.sa_family,
                    v6 ? (const void *)&address->v6.sin6_addr : &address->v4.sin_addr,
                    host, sizeof(host));
    (void)snprintf(text, ADDRESS_SIZE, v6 ? "[%s]:%d" : "%s:%d", host,
                   ntohs(v6 ? address->v6.sin6_port : address->v4.sin_port));
}

static bool
is_loopback(const union address *address)
{
    return address->any.sa_family == AF_INET6
               ? IN6_IS_ADDR_LOOPBACK(&address->v6.sin6_addr)
               : ntohl(address->v4.sin_addr.s_addr) >> 24 == IN_LOOPBACKNET;
}

/* The two ends of a connection, as its own end sees them. */
struct ends {
    union address own;
    union address far;
};

/* An IPv4 connection of an IPv6 socket becomes what it is. */
static void
unmap_address(union address *address)
{
    struct sockaddr_in v4 = {.sin_family = AF_INET, .sin_port = address->v6.sin6_port};
    if (address->any.sa_family == AF_INET6 &&
        IN6_IS_ADDR_V4MAPPED(&address->v6.sin6_addr)) {
        memcpy(&v4.sin_addr, address->v6.sin6_addr.s6_addr + 12, sizeof(v4.sin_addr));
        address->v4 = v4;
    }
}

/* Returns 0, or -1 with errno: the descriptor is no connected TCP socket. */
static int
read_ends(int fd, struct ends *ends)
{
    socklen_t own_size = sizeof(ends->own);
    socklen_t far_size = sizeof(ends->far);
    *ends = (struct ends){.own.any.sa_family = AF_UNSPEC};
    if (getsockname(fd, &ends->own.any, &own_size) < 0 ||
        getpeername(fd, &ends->far.any, &far_size) < 0) {
        return -1;
    }
    unmap_address(&ends->own);
    unmap_address(&ends->far);
    if (ends->own.any.sa_family != AF_INET && ends->own.any.sa_family != AF_INET6) {
        errno = EAFNOSUPPORT;
        return -1;
    }
    return 0;
}

/* What the kernel says of a socket. */
struct far_socket {
    unsigned state; /* TCP_ESTABLISHED, ... */
    unsigned inode; /* 0: nobody has it open */
    uid_t uid;
};

static void
copy_host(__be32 *host, const union address *address)
{
    if (address->any.sa_family == AF_INET6) {
        memcpy(host, &address->v6.sin6_addr, sizeof(address->v6.sin6_addr));
    }
    else {
        memcpy(host, &address->v4.sin_addr, sizeof(address->v4.sin_addr));
    }
}

/* What the kernel answers: a socket, or an error. */
union diagnosis {
    struct nlmsghdr header;
    char bytes[1024];
};

/* Returns 0, or an errno value. */
static int
read_diagnosis(union diagnosis *answer, size_t length, const struct ends *ends,
               struct far_socket *found)
{
    const struct inet_diag_msg *message = NLMSG_DATA(&answer->header);
    const struct nlmsgerr *failure = NLMSG_DATA(&answer->header);
    if (answer->header.nlmsg_type == NLMSG_ERROR &&
        length >= NLMSG_LENGTH(sizeof(*failure)) && failure->error < 0 &&
        failure->error > INT_MIN) {
        return -failure->error;
    }
    if (answer->header.nlmsg_type != SOCK_DIAG_BY_FAMILY ||
        length < NLMSG_LENGTH(sizeof(*message))) {
        return EPROTO;
    }
    if (message->id.idiag_sport != ends->far.v4.sin_port ||
        message->id.idiag_dport != ends->own.v4.sin_port) {
        return ENOENT; /* one that listens where the client was */
    }
    *found = (struct far_socket){.state = message->idiag_state,
                                 .inode = message->idiag_inode,
                                 .uid = message->idiag_uid};
    return 0;
}

/* The socket at the far end, by its two addresses: the kernel answers before send() returns.
 * Returns 0, or -1 with errno: ENOENT when there is none. */
DETACHED static int
ask_diagnostics(const struct ends *ends, struct far_socket *found)
{
    struct {
        struct nlmsghdr header;
        struct inet_diag_req_v2 body;
    } request = {
        .header = {.nlmsg_len = sizeof(request),
                   .nlmsg_type = SOCK_DIAG_BY_FAMILY,
                   .nlmsg_flags = NLM_F_REQUEST},
        .body = {.sdiag_family = (__u8)ends->far.any.sa_family,
                 .sdiag_protocol = IPPROTO_TCP,
                 .idiag_states = ~0U,
                 .id = {.idiag_sport = ends->far.v4.sin_port, /* of either family */
                        .idiag_dport = ends->own.v4.sin_port,
                        .idiag_cookie = {INET_DIAG_NOCOOKIE, INET_DIAG_NOCOOKIE}}},
    };
    union diagnosis answer = {.header = {.nlmsg_len = 0}};
    int fd = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_SOCK_DIAG); /* owned */
    ssize_t got = -1;
    int error = 0;
    copy_host(request.body.id.idiag_src, &ends->far);
    copy_host(request.body.id.idiag_dst, &ends->own);
    if (fd >= 0 && send(fd, &request, sizeof(request), MSG_DONTWAIT) >= 0) {
        got = recv(fd, &answer, sizeof(answer), MSG_DONTWAIT);
    }
    error = got < 0 ? errno : read_diagnosis(&answer, (size_t)got, ends, found);
    if (fd >= 0) {
        (void)close(fd);
    }
    errno = error;
    return error == 0 ? 0 : -1;
}

/* The address as /proc/net/tcp has it: words as they are in memory. text: ADDRESS_SIZE bytes. */
static void
format_as_proc(const union address *address, char *text)
{
    __be32 host[4] = {0};
    size_t words = address->any.sa_family == AF_INET6 ? 4 : 1;
    size_t length = 0;
    copy_host(host, address);
    for (size_t i = 0; i < words; i++) {
        length += (size_t)snprintf(text + length, ADDRESS_SIZE - length, "%08X", host[i]);
    }
    (void)snprintf(text + length, ADDRESS_SIZE - length, ":%04X",
                   ntohs(address->v4.sin_port));
}

/* Reads a line of /proc/net/tcp: its number, local and remote address, state, queues, timer,
 * retransmissions, uid, timeout, inode, ... Returns whether it is of the socket at the far end. */
static bool
parse_proc_line(char *line, const char *far, const char *own, struct far_socket *found)
{
    enum { LOCAL = 1, REMOTE = 2, STATE = 3, UID = 7, INODE = 9, FIELDS };
    const char *fields[FIELDS] = {NULL};
    char *rest = NULL;
    size_t count = 0;
    for (char *field = strtok_r(line, " ", &rest); field != NULL && count < FIELDS;
         field = strtok_r(NULL, " ", &rest)) {
        fields[count++] = field;
    }
    if (count < FIELDS || strcmp(fields[LOCAL], far) != 0 ||
        strcmp(fields[REMOTE], own) != 0) {
        return false;
    }
    *found = (struct far_socket){.state = (unsigned)strtoul(fields[STATE], NULL, 16),
                                 .uid = (uid_t)strtoul(fields[UID], NULL, 10),
                                 .inode = (unsigned)strtoul(fields[INODE], NULL, 10)};
    return true;
}

/* As ask_diagnostics(), from a list of all sockets. */
DETACHED static int
search_proc(const struct ends *ends, struct far_socket *found)
{
    const char *path =
        ends->far.any.sa_family == AF_INET6 ? "/proc/net/tcp6" : "/proc/net/tcp";
    FILE *file = fopen(path, "re"); /* owned */
    int64_t deadline_ms = monotonic_ms() + IDENTIFY_PATIENCE_MS;
    char far[ADDRESS_SIZE];
    char own[ADDRESS_SIZE];
    char line[512];
    int error = file == NULL ? errno : ENOENT;
    format_as_proc(&ends->far, far);
    format_as_proc(&ends->own, own);
    while (error == ENOENT && fgets(line, sizeof(line), file) != NULL) {
        if (parse_proc_line(line, far, own, found)) {
            error = 0;
        }
        else if (ms_until(deadline_ms) == 0) {
            error = ETIMEDOUT;
        }
    }
    if (file != NULL) {
        (void)fclose(file);
    }
    errno = error;
    return error == 0 ? 0 : -1;
}

/* Returns 0, or -1 with errno: the far end is not on this machine, or cannot be told. */
DETACHED static int
find_far_socket(const struct ends *ends, struct far_socket *found)
{
    int result = ask_diagnostics(ends, found);
    return result < 0 && errno != ENOENT ? search_proc(ends, found) : result;
}

/* Both sides of the connection are still there, so nobody else can have its addresses. */
static bool
is_connected(int fd)
{
    struct tcp_info info = {0};
    socklen_t size = sizeof(info);
    return getsockopt(fd, IPPROTO_TCP, TCP_INFO, &info, &size) == 0 &&
           (info.tcpi_state == TCP_ESTABLISHED || info.tcpi_state == TCP_CLOSE_WAIT);
}

/* Somebody has the far end open, perhaps only to read. */
static bool
is_held(const struct far_socket *far)
{
    return far->inode != 0 &&
           (far->state == TCP_ESTABLISHED || far->state == TCP_FIN_WAIT1 ||
            far->state == TCP_FIN_WAIT2);
}

/* Nobody has the other side of a TCP connection within this machine open any more. */
DETACHED static bool
is_far_end_closed(int fd)
{
    struct ends ends;
    struct far_socket far = {0};
    if (read_ends(fd, &ends) < 0) {
        return errno == ENOTCONN;
    }
    return find_far_socket(&ends, &far) == 0 ? !is_held(&far)
                                             : errno == ENOENT && is_loopback(&ends.far);
}

/* Who is on the other side of a TCP connection. Returns 0, or -1 with errno, the user unknown. */
DETACHED static int
read_tcp_peer(int fd, struct peer *peer)
{
    struct ends ends;
    struct far_socket far = {0};
    *peer = (struct peer){.uid = (uid_t)-1, .gid = (gid_t)-1};
    if (read_ends(fd, &ends) < 0) {
        return -1;
    }
    format_address(&ends.far, peer->address);
    if (find_far_socket(&ends, &far) < 0) {
        return -1;
    }
    if (!is_held(&far) || !is_connected(fd)) {
        errno = ENOTCONN;
        return -1;
    }
    peer->uid = far.uid;
    return 0;
}

/* ======================================================================================
 * Socket: where the door is, and who may come through it.
 * Runs on:  the listener thread; the main thread for oneshot. DETACHED throughout, except the two
 *           functions of the module that look at a socket object.
 * Touches:  the doors, the death signals. Never struct session, never sys.
 * ====================================================================================== */

/* Their default action is to end the process; Python leaves them at SIG_DFL. (SIGINT too,
 * where Python was told not to handle signals.) Signals that dump core because the
 * program is broken are not here: nothing more should run in it then. */
static const int death_signals[] = {SIGHUP,  SIGINT,  SIGQUIT, SIGTERM,
                                    SIGUSR1, SIGUSR2, SIGALRM, SIGXCPU};

static bool
is_default(const struct sigaction *action)
{
    return (action->sa_flags & SA_SIGINFO) == 0 && action->sa_handler == SIG_DFL;
}

static void
unwatch_death_signals(void)
{
    struct sigaction action = {.sa_handler = SIG_DFL};
    (void)sigemptyset(&action.sa_mask);
    for (size_t i = 0; i < Py_ARRAY_LENGTH(death_signals); i++) {
        struct sigaction current;
        if (sigaction(death_signals[i], NULL, &current) == 0 &&
            (current.sa_flags & SA_SIGINFO) == 0 && current.sa_handler == on_death) {
            (void)sigaction(death_signals[i], &action, NULL);
        }
    }
}

/* A forked child, also one of C, has no socket to remove, and would seem to catch what ends it. */
static void
unwatch_in_children(void)
{
    (void)pthread_atfork(NULL, NULL, unwatch_death_signals);
}

/* Only where the disposition is SIG_DFL: a handler of the application's will end the
 * process its own way. Not for pid 1, which the kernel spares signals that it does not
 * handle. */
DETACHED static void
watch_death_signals(void)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    struct sigaction action = {.sa_handler = on_death,
                               .sa_flags = SA_RESTART | SA_ONSTACK};
    (void)sigemptyset(&action.sa_mask);
    if (getpid() == 1) {
        return;
    }
    (void)pthread_once(&once, unwatch_in_children);
    for (size_t i = 0; i < Py_ARRAY_LENGTH(death_signals); i++) {
        struct sigaction current;
        if (sigaction(death_signals[i], NULL, &current) == 0 && is_default(&current) &&
            sigaction(death_signals[i], &action, &current) == 0 &&
            !is_default(&current)) {
            /* The application has set its own in between: it stays. */
            (void)sigaction(death_signals[i], &current, NULL);
        }
    }
}

/* Fills path (of size bytes) from what the options say, "%(pid)s" replaced by the pid.
 * Returns the length that it has or would need, without the NUL. */
static size_t
expand_path(const char *template, char *path, size_t size)
{
    static const char marker[] = "%(pid)s";
    const char *rest = template == NULL ? "/tmp/manhole-%(pid)s" : template;
    size_t length = 0;
    if (size > 0) {
        path[0] = '\0';
    }
    while (*rest != '\0') {
        char number[24];
        const char *piece = rest;
        size_t piece_length = strcspn(rest, "%");
        if (strncmp(rest, marker, sizeof(marker) - 1) == 0) {
            (void)snprintf(number, sizeof(number), "%ld", (long)getpid());
            piece = number;
            piece_length = strlen(number);
            rest += sizeof(marker) - 1;
        }
        else {
            piece_length = piece_length == 0 ? 1 : piece_length;
            rest += piece_length;
        }
        if (length + piece_length < size) {
            memcpy(path + length, piece, piece_length);
            path[length + piece_length] = '\0';
        }
        length += piece_length;
    }
    return length;
}

static bool
is_tcp(const struct place *place)
{
    return place->address.any.sa_family != AF_UNSPEC;
}

/* The path is the process's own: a child may have one too. */
static bool
is_path_per_process(const char *template)
{
    return template == NULL || strstr(template, "%(pid)s") != NULL;
}

/* A forked child can try to open this place, too. */
static bool
may_child_have(const struct place *place)
{
    return is_tcp(place) || is_path_per_process(place->path);
}

/* The n-th place of the options: first socket_path, whose default listen replaces. What it owns
 * stays the options'. Returns false when there is none. */
static bool
get_place(const struct options *options, size_t n, struct place *place)
{
    const size_t first = options->socket_path != NULL || options->listen.count == 0;
    if (n < first) {
        *place = (struct place){.path = options->socket_path};
        return true;
    }
    if (n - first < options->listen.count) {
        *place = options->listen.rows[n - first];
        return true;
    }
    return false;
}

static bool
has_place_for_child(const struct options *options)
{
    struct place place;
    bool has = false;
    for (size_t i = 0; !has && get_place(options, i, &place); i++) {
        has = may_child_have(&place);
    }
    return has;
}

static void
free_places(struct places *places)
{
    for (size_t i = 0; i < places->count; i++) {
        free(places->rows[i].path);
    }
    places->count = 0;
}

/* Who is on the other side of a connected Unix socket. Returns 0, or -1 with errno and a uid of
 * nobody's. */
static int
read_peer(int fd, struct peer *peer)
{
    struct ucred credentials = {0};
    socklen_t size = sizeof(credentials);
    peer->uid = (uid_t)-1;
    if (getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &credentials, &size) < 0) {
        return -1;
    }
    if (credentials.uid == (uid_t)-1) { /* not connected, or no Unix socket */
        errno = ENOTCONN;
        return -1;
    }
    *peer = (struct peer){credentials.pid, credentials.uid, credentials.gid, ""};
    return 0;
}

static bool
is_inet(int fd)
{
    int domain = AF_UNSPEC;
    socklen_t size = sizeof(domain);
    (void)getsockopt(fd, SOL_SOCKET, SO_DOMAIN, &domain, &size);
    return domain == AF_INET || domain == AF_INET6;
}

/* The same for a socket of either kind; *peer has what is known in any case. */
DETACHED static int
identify_peer(int fd, struct peer *peer)
{
    return is_inet(fd) ? read_tcp_peer(fd, peer) : read_peer(fd, peer);
}

static bool
may_enter(const struct peer *peer)
{
    return peer->uid == 0 || peer->uid == geteuid();
}

/* Is somebody serving the socket at this path? A listener whose process is gone counts as
 * nobody (a child that never ran our fork hook may hold its descriptor), and so does one
 * of our own. */
DETACHED static bool
is_answered(const struct sockaddr_un *address)
{
    struct peer peer = {0};
    bool answered = false;
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0) {
        return true; /* cannot tell: leave it alone */
    }
    if (connect(fd, (const struct sockaddr *)address, sizeof(*address)) == 0) {
        answered = read_peer(fd, &peer) < 0 ||
                   (peer.pid != getpid() && !(kill(peer.pid, 0) < 0 && errno == ESRCH));
    }
    else {
        answered = errno != ECONNREFUSED;
    }
    (void)close(fd);
    return answered;
}

/* Removes a dead socket of ours. Returns NULL when the path is free now, else why it is
 * not. */
DETACHED static const char *
clear_path(const struct sockaddr_un *address)
{
    struct stat there;
    if (lstat(address->sun_path, &there) < 0) {
        return errno == ENOENT ? NULL : error_text(errno);
    }
    if (!S_ISSOCK(there.st_mode)) {
        return "something that is not a socket is there; move it away or use another "
               "socket_path";
    }
    if (there.st_uid != geteuid()) {
        return "a socket of another user is there; have it removed or use another "
               "socket_path";
    }
    if (is_answered(address)) {
        return "another process answers there; use another socket_path";
    }
    if (unlink(address->sun_path) < 0 && errno != ENOENT) {
        return error_text(errno);
    }
    return NULL;
}

/* Binds to the door's path and notes that it is ours, without a signal in between that may end the
 * process. Returns 0, or -1 with an errno. */
DETACHED static int
bind_path(struct door *door, int fd, const struct sockaddr_un *address)
{
    sigset_t all;
    sigset_t before;
    struct stat there = {0};
    bool made = false;
    int result = -1;
    int error = 0;
    (void)sigfillset(&all);
    (void)pthread_sigmask(SIG_SETMASK, &all, &before);
    atomic_store(&door->binding, true);
    errno = ECANCELED;
    if (!atomic_load(&manhole.leaving)) {
        result = bind(fd, (const struct sockaddr *)address, sizeof(*address));
    }
    made = result == 0;
    if (made) {
        result = lstat(door->name, &there);
    }
    error = errno;
    if (result == 0) {
        door->device = there.st_dev;
        door->inode = there.st_ino;
        atomic_store(&door->bound, true);
    }
    else if (made) {
        (void)unlink(door->name); /* nobody would know later that it is ours */
    }
    atomic_store(&door->binding, false);
    (void)pthread_sigmask(SIG_SETMASK, &before, NULL);
    errno = error;
    return result;
}

/* Binds a new Unix socket. The mode is set before there is a path, so no umask and no moment leaves
 * it open to others. Returns NULL, or why not. */
DETACHED static const char *
open_path(struct door *door, int fd, const char *template)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    const char *why = NULL;
    if (expand_path(template, door->name, sizeof(door->name)) >=
        sizeof(door->name)) { /* with the longer number of a child */
        return "the path is too long for a socket; use a shorter one";
    }
    memcpy(address.sun_path, door->name, sizeof(address.sun_path));
    if (fd < 0 || fchmod(fd, S_IRUSR | S_IWUSR) < 0) {
        return error_text(errno);
    }
    watch_death_signals();
    if (bind_path(door, fd, &address) < 0) {
        why = errno == EADDRINUSE ? clear_path(&address) : error_text(errno);
        if (why == NULL && bind_path(door, fd, &address) < 0) {
            why = error_text(errno);
        }
    }
    return why;
}

/* Binds a new TCP socket. Returns NULL, or why not. */
DETACHED static const char *
open_port(struct door *door, int fd, const union address *address)
{
    const int yes = 1;
    union address chosen = *address;
    socklen_t size = sizeof(chosen);
    format_address(address, door->name);
    if (fd >= 0) { /* or a connection of before keeps the port for a minute */
        (void)setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof(yes));
        /* By this mode, which no application gives a socket, manhole-cli tells in /proc which of a
         * process's sockets are a manhole's. */
        (void)fchmod(fd, S_IRUSR | S_IWUSR);
    }
    if (fd < 0 || bind(fd, &address->any, address_size(address)) < 0 ||
        getsockname(fd, &chosen.any, &size) < 0) {
        return errno == EADDRINUSE && manhole.is_child
                   ? "the port is in use; a forked process can have one of its own with "
                     "port 0, or a path with %(pid)s"
                   : error_text(errno);
    }
    format_address(&chosen, door->name);
    return NULL;
}

static bool
is_door_open(const struct door *door)
{
    return atomic_load(&door->listen_fd.number) >= 0;
}

/* A door of the options is open, as far as we have opened it. */
static bool
is_open(void)
{
    bool open = false;
    for (size_t i = 0; i < MAX_OWN_DOORS; i++) {
        open = open || is_door_open(&manhole.doors[i]);
    }
    return open;
}

/* The path is gone or somebody else's now: a cleaner of /tmp, say. */
DETACHED static bool
is_path_lost(const struct door *door)
{
    struct stat there;
    return atomic_load(&door->bound) &&
           (lstat(door->name, &there) < 0 || there.st_dev != door->device ||
            there.st_ino != door->inode);
}

static void
close_door(struct door *door)
{
    remove_path(door);
    close_kept(&door->listen_fd);
}

/* After remove_paths(): what an application that was root at install() leaves behind. */
static void
log_left_paths(void)
{
    for (size_t i = 0; i < MAX_OWN_DOORS; i++) {
        const char *path = manhole.doors[i].name;
        int error = atomic_exchange(&manhole.doors[i].left_for, 0);
        struct stat there;
        if (error != 0 && lstat(path, &there) == 0) {
            log_line("Cannot remove %s: %s. It is UID:%ld's, this process UID:%ld's. "
                     "Remove it by hand.",
                     path, error_text(error), (long)there.st_uid, (long)geteuid());
        }
    }
}

/* Closes the doors of the options. Clients that are in stay. */
static void
close_doors(void)
{
    remove_paths();
    log_left_paths();
    for (size_t i = 0; i < MAX_OWN_DOORS; i++) {
        close_door(&manhole.doors[i]);
    }
    unwatch_death_signals();
}

static void
close_given_doors(void)
{
    for (size_t i = MAX_OWN_DOORS; i < MAX_DOORS; i++) {
        close_kept(&manhole.doors[i].listen_fd);
    }
}

/* In a child: the paths are the parent's. */
static void
forget_doors(void)
{
    for (size_t i = 0; i < MAX_DOORS; i++) {
        atomic_store(&manhole.doors[i].binding, false);
        atomic_store(&manhole.doors[i].bound, false);
        close_kept(&manhole.doors[i].listen_fd);
        keep_fd(&manhole.doors[i].given_fd, -1);
    }
}

static bool
has_given_door(void)
{
    bool has = false;
    for (size_t i = MAX_OWN_DOORS; i < MAX_DOORS; i++) {
        has = has || is_door_open(&manhole.doors[i]);
    }
    return has;
}

/* Returns whether the door is open now; if not, after a log line that says why. */
DETACHED static bool
open_door(struct door *door, const struct place *place)
{
    bool tcp = is_tcp(place);
    const char *why = NULL;
    int fd = socket(tcp ? place->address.any.sa_family : AF_UNIX,
                    SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK,
                    0); /* owned, handed to door->listen_fd */
    why = tcp ? open_port(door, fd, &place->address) : open_path(door, fd, place->path);
    if (why == NULL && listen(fd, MAX_SESSIONS) < 0) {
        why = error_text(errno);
    }
    if (why == NULL) {
        keep_fd(&door->listen_fd, fd);
        log_line("Manhole %s: %s", tcp ? "TCP address" : "UDS path", door->name);
        return true;
    }
    if (fd >= 0) {
        (void)close(fd);
    }
    remove_path(door);
    log_line("Cannot listen at %s: %s", door->name, why);
    return false;
}

/* Opens a door, if it is not open, or again where its path or descriptor was lost. Returns whether
 * it has. */
DETACHED static bool
see_to_door(struct door *door, const struct place *place)
{
    if (is_door_open(door)) {
        if (!is_path_lost(door) && !is_lost(&door->listen_fd)) {
            return false;
        }
        close_door(door);
    }
    if (manhole.is_child && !may_child_have(place)) {
        return false;
    }
    return open_door(door, place);
}

/* Opens those doors of the options that are not open. Returns how many that were. */
DETACHED static int
open_doors(void)
{
    struct place place;
    int opened = 0;
    for (size_t i = 0; get_place(&manhole.options, i, &place); i++) {
        opened += see_to_door(&manhole.doors[i], &place);
    }
    if (!is_open()) {
        unwatch_death_signals();
    }
    return opened;
}

/* For atexit(): exit() of a program that does not finalize Python, uWSGI's master for one. */
static void
remove_paths_at_exit(void)
{
    if (is_owner()) {
        atomic_store(&manhole.leaving, true);
        remove_paths();
        log_left_paths();
    }
}

static void
log_waiting(void)
{
    log_line("Waiting for new connection (in pid:%ld) ...", (long)getpid());
}

/* A peer as log lines name it. */
struct peer_text {
    char text[ADDRESS_SIZE + 26];
};

static struct peer_text
describe_peer(const struct peer *peer)
{
    struct peer_text described;
    char *text = described.text;
    const size_t size = sizeof(described.text);
    if (peer->uid == (uid_t)-1) {
        (void)snprintf(text, size, "%s%sUID:unknown", peer->address,
                       peer->address[0] == '\0' ? "" : " ");
    }
    else if (peer->address[0] == '\0') {
        (void)snprintf(text, size, "PID:%ld UID:%ld GID:%ld", (long)peer->pid,
                       (long)peer->uid, (long)peer->gid);
    }
    else {
        (void)snprintf(text, size, "%s UID:%ld", peer->address, (long)peer->uid);
    }
    return described;
}

static void
log_accepted(int fd, const struct peer *peer)
{
    log_line("Accepted connection on fd:%d from %s", fd, describe_peer(peer).text);
}

static void
describe_refusal(const struct peer *peer, char *text, size_t size)
{
    (void)snprintf(text, size,
                   "Can't accept client with %s. It doesn't match the current EUID:%ld "
                   "or ROOT.",
                   describe_peer(peer).text, (long)geteuid());
}

/* ======================================================================================
 * Snapshot: the stacks of a process whose interpreter does not answer.
 * Runs on:  native threads of ours, DETACHED; the frozen copy runs what is marked COPY_ONLY.
 * Touches:  a memory file, one real-time signal (faulthandler's), /proc/self/task.
 * A copy of the process is made by a raw clone: no SIGCHLD, no fork handlers, only the calling
 * thread lives in it. There faulthandler walks all frames without the GIL. Nothing moves in the
 * copy, and a copy that dies of what it reads is one copy less: the process never walks its own
 * living frames. The copy writes into the memory file, the process reads it and tells the client.
 * ====================================================================================== */

/* The copy's line between faulthandler's text and the facts of each thread. */
static const char stacks_complete[] = "@@\n";

/* And its line before a part of faulthandler's whose first thread is not to be shown. */
static const char first_is_hidden[] = "&\n";

/* Runs in the copy alone: ASYNC_SAFE, and raw system calls where glibc would ask its own
 * record of the thread, which is stale after a raw clone. May read any memory; may die.
 */
#define COPY_ONLY ASYNC_SAFE

/* How a snapshot ended. */
enum copy_result {
    COPY_DONE,
    COPY_DIED,    /* or hung, and was killed */
    COPY_REFUSED, /* the kernel made none: errno */
};

struct thread_facts {
    unsigned long ident;
    unsigned long native_id; /* 0: not seen */
    PyObject *name;          /* borrowed str, NULL: not seen */
};

/* Puts a character as UTF-8. Returns how many bytes that are. */
static size_t
put_utf8(char bytes[4], unsigned long character)
{
    size_t count = 0;
    if (character < 0x80) {
        bytes[count++] = (char)character;
    }
    else if (character < 0x800) {
        bytes[count++] = (char)(0xC0 | (character >> 6));
        bytes[count++] = (char)(0x80 | (character & 0x3F));
    }
    else if (character < 0x10000) {
        bytes[count++] = (char)(0xE0 | (character >> 12));
        bytes[count++] = (char)(0x80 | ((character >> 6) & 0x3F));
        bytes[count++] = (char)(0x80 | (character & 0x3F));
    }
    else {
        bytes[count++] = (char)(0xF0 | ((character >> 18) & 0x07));
        bytes[count++] = (char)(0x80 | ((character >> 12) & 0x3F));
        bytes[count++] = (char)(0x80 | ((character >> 6) & 0x3F));
        bytes[count++] = (char)(0x80 | (character & 0x3F));
    }
    return count;
}

static bool
is_surrogate(unsigned long character)
{
    return character >= 0xD800 && character <= 0xDFFF;
}

/* Writes "@ IDENT NATIVE_ID HOLDS_GIL NAME"; in the name '?' for what would end the line, could be
 * an order to a terminal, or has no UTF-8. */
COPY_ONLY static void
write_facts(int fd, const struct thread_facts *facts, bool holds_gil)
{
    char piece[256];
    size_t length = (size_t)snprintf(piece, sizeof(piece), "@ %lu %lu %d ", facts->ident,
                                     facts->native_id, holds_gil);
    Py_ssize_t name_length = facts->name == NULL ? 0 : PyUnicode_GET_LENGTH(facts->name);
    for (Py_ssize_t i = 0; i < name_length; i++) {
        Py_UCS4 character = PyUnicode_READ_CHAR(facts->name, i);
        if (character < ' ' || (character >= 0x7f && character < 0xa0) ||
            is_surrogate(character)) {
            character = '?';
        }
        if (length + 4 >= sizeof(piece)) {
            (void)!write(fd, piece, length);
            length = 0;
        }
        length += put_utf8(piece + length, character);
    }
    piece[length++] = '\n';
    (void)!write(fd, piece, length);
}

/* The value of a str key in a dict, without hashing. Returns a borrowed reference or
 * NULL. */
COPY_ONLY static PyObject *
find_item(PyObject *dict, const char *key)
{
    PyObject *name = NULL;  /* borrowed */
    PyObject *value = NULL; /* borrowed */
    Py_ssize_t position = 0;
    while (PyDict_Next(dict, &position, &name, &value)) {
        if (PyUnicode_CheckExact(name) &&
            PyUnicode_CompareWithASCIIString(name, key) == 0) {
            return value;
        }
    }
    return NULL;
}

/* Takes name and native id of a thread, which find() finds in holder. Only beside its ident: what
 * does not have that may be anything. */
COPY_ONLY static void
take_facts(struct thread_facts *facts, PyObject *find(PyObject *, const char *),
           PyObject *holder)
{
    PyObject *ident = find(holder, "_ident"); /* borrowed, and so are these */
    PyObject *native_id = find(holder, "_native_id");
    PyObject *name = find(holder, "_name");
    if (ident == NULL || !PyLong_CheckExact(ident) ||
        PyLong_AsUnsignedLongMask(ident) != facts->ident) {
        return;
    }
    if (native_id != NULL && PyLong_CheckExact(native_id)) {
        facts->native_id = PyLong_AsUnsignedLongMask(native_id);
    }
    if (name != NULL && PyUnicode_CheckExact(name)) {
        facts->name = name;
    }
}

/* Of what a threading.Thread refers to, for the dict that its attributes may be in. */
COPY_ONLY static int
visit_thread(PyObject *object, void *argument)
{
    if (PyDict_CheckExact(object)) {
        take_facts(argument, find_item, object);
    }
    return 0;
}

/* What threading knows of a thread: its entry in threading._active. */
COPY_ONLY static void
find_thread_object(struct thread_facts *facts)
{
    PyObject *threading = find_item(snapshot.modules, "threading"); /* borrowed */
    PyObject *active = NULL;                                        /* borrowed */
    PyObject *ident = NULL;                                         /* borrowed */
    PyObject *thread = NULL;                                        /* borrowed */
    Py_ssize_t position = 0;
    if (threading != NULL && PyModule_Check(threading)) {
        active = find_item(PyModule_GetDict(threading), "_active");
    }
    if (active == NULL || !PyDict_Check(active)) {
        return;
    }
    while (PyDict_Next(active, &position, &ident, &thread)) {
        if (PyLong_CheckExact(ident) &&
            PyLong_AsUnsignedLongMask(ident) == facts->ident &&
            Py_TYPE(thread)->tp_traverse != NULL) {
            take_facts(facts, read_attribute, thread);
            (void)Py_TYPE(thread)->tp_traverse(thread, visit_thread, facts);
            return;
        }
    }
}

/* Has faulthandler write the stacks. It goes through no more than THREADS_AT_ONCE, and through the
 * list of the main interpreter, for this thread has no state: it is asked again and again, with the
 * next ones linked behind the head of that list, which it so repeats. */
COPY_ONLY static void
write_stacks(int fd)
{
    PyThreadState *head = PyInterpreterState_ThreadHead(PyInterpreterState_Main());
    PyThreadState *behind_head = head == NULL ? NULL : head->next;
    PyThreadState *next = snapshot.interpreter == PyInterpreterState_Main()
                              ? behind_head
                              : PyInterpreterState_ThreadHead(snapshot.interpreter);
    bool is_shown = next == behind_head;
    do {
        if (head != NULL) {
            head->next = next;
        }
        if (!is_shown) {
            (void)!write(fd, first_is_hidden, sizeof(first_is_hidden) - 1);
        }
        is_shown = false;
        (void)syscall(SYS_tgkill, (long)syscall(SYS_getpid), (long)syscall(SYS_gettid),
                      (long)snapshot.signum);
        for (int i = 1; next != NULL && i < THREADS_AT_ONCE; i++) {
            next = next->next;
        }
    } while (next != NULL);
    if (head != NULL) {
        head->next = behind_head;
    }
}

/* Whether the kernel knows such a thread of a process. After a fork CPython's record of the thread
 * that has forked is the parent's, before 3.14; the kernel's number of it is the process's. */
ASYNC_SAFE static bool
is_task(pid_t pid, unsigned long native_id)
{
    return syscall(SYS_tgkill, (long)pid, (long)native_id, 0L) == 0 || errno != ESRCH;
}

/* The stacks first, for they matter most; then a line of facts for each thread; last, on
 * older CPythons, the question that aborts when nobody holds the GIL. */
COPY_ONLY static void
describe_copy(int fd)
{
    pid_t pid = atomic_load(&manhole.owner);
    write_stacks(fd);
    (void)!write(fd, stacks_complete, sizeof(stacks_complete) - 1);
    for (PyThreadState *tstate = PyInterpreterState_ThreadHead(snapshot.interpreter);
         tstate != NULL; tstate = tstate->next) {
        struct thread_facts facts = {.ident = tstate->thread_id,
                                     .native_id = native_id_of(tstate)};
        if (facts.ident != 0) {
            find_thread_object(&facts);
            if (!is_task(pid, facts.native_id)) {
                bool oldest = tstate->next == NULL;
                facts.native_id = oldest ? (unsigned long)pid : 0;
            }
            write_facts(fd, &facts, holds_gil(tstate));
        }
    }
    ask_gil_holder(fd);
}

/* Body of the copy. Whatever kills it, it dies without a word: no core, no handler, no
 * stderr. */
COPY_ONLY static void
copy_main(int memory_fd)
{
    static const int fatal[] = {SIGSEGV, SIGBUS,  SIGFPE, SIGILL,
                                SIGABRT, SIGTRAP, SIGSYS};
    const struct rlimit no_core = {0};
    struct rlimit file_size;
    struct sigaction action = {.sa_handler = SIG_DFL};
    sigset_t own;
    (void)prctl(PR_SET_PDEATHSIG, SIGKILL);
    (void)prctl(PR_SET_DUMPABLE, 0);
    (void)setrlimit(RLIMIT_CORE, &no_core);
    if (getrlimit(RLIMIT_FSIZE, &file_size) == 0) {
        file_size.rlim_cur = file_size.rlim_max;
        (void)setrlimit(RLIMIT_FSIZE, &file_size);
    }
    (void)dup2(memory_fd,
               STDERR_FILENO); /* a copy of the table too: nobody else sees it */
    for (size_t i = 0; i < Py_ARRAY_LENGTH(fatal); i++) {
        (void)sigaction(fatal[i], &action, NULL);
    }
    (void)sigfillset(&own);
    (void)sigdelset(&own, snapshot.signum);
    for (size_t i = 0; i < Py_ARRAY_LENGTH(fatal); i++) {
        (void)sigdelset(&own, fatal[i]);
    }
    (void)pthread_sigmask(SIG_SETMASK, &own, NULL);
    describe_copy(STDERR_FILENO);
    (void)syscall(SYS_exit_group, 0);
}

/* Waits for the copy, as long as it writes. How it ended does not matter, only what it wrote. */
DETACHED static void
reap_copy(pid_t copy, int memory_fd)
{
    int64_t deadline_ms = monotonic_ms() + SNAPSHOT_TIMEOUT_MS;
    struct stat file = {0};
    off_t size = 0;
    int status = 0;
    pid_t reaped = 0;
    while (reaped == 0) {
        reaped = waitpid(copy, &status, __WALL | WNOHANG);
        if (fstat(memory_fd, &file) == 0 && file.st_size > size) {
            size = file.st_size;
            deadline_ms = monotonic_ms() + SNAPSHOT_TIMEOUT_MS;
        }
        if (reaped == 0 && ms_until(deadline_ms) == 0) {
            (void)kill(copy, SIGKILL);
            do {
                reaped = waitpid(copy, &status, __WALL);
            } while (reaped < 0 && errno == EINTR);
        }
        else if (reaped == 0) {
            (void)poll(NULL, 0, 1);
        }
    }
}

/* The signal is still faulthandler's: the application may have taken it since. */
static bool
is_snapshot_ready(void)
{
    struct sigaction current;
    return snapshot.signum != 0 && sigaction(snapshot.signum, NULL, &current) == 0 &&
           current.sa_handler == snapshot.handler;
}

/* Appends all that the file holds. */
DETACHED static void
append_file(struct text *text, int fd)
{
    char piece[4096];
    ssize_t length = 0;
    for (off_t offset = 0; (length = pread(fd, piece, sizeof(piece), offset)) > 0;
         offset += length) {
        append_bytes(text, piece, (size_t)length);
    }
}

/* Makes one copy and appends what it wrote. */
DETACHED static enum copy_result
try_copy(struct text *raw)
{
    const size_t marker = sizeof(stacks_complete) - 1;
    int memory_fd = -1; /* owned */
    long copy = -1;
    if (!is_snapshot_ready()) {
        errno = EBUSY;
        return COPY_REFUSED;
    }
    memory_fd = memfd_create("manhole", MFD_CLOEXEC);
    if (memory_fd < 0 && (errno == EMFILE || errno == ENFILE)) {
        close_kept(&snapshot.spare);
        memory_fd = memfd_create("manhole", MFD_CLOEXEC);
    }
    if (memory_fd < 0) {
        return COPY_REFUSED;
    }
    copy = syscall(SYS_clone, 0UL, NULL, NULL, NULL, 0UL);
    if (copy == 0) {
        copy_main(memory_fd);
    }
    if (copy < 0) {
        int error = errno;
        (void)close(memory_fd);
        errno = error;
        return COPY_REFUSED;
    }
    reap_copy((pid_t)copy, memory_fd);
    append_file(raw, memory_fd);
    (void)close(memory_fd);
    return raw->length > 0 &&
                   memmem(raw->bytes, raw->length, stacks_complete, marker) != NULL
               ? COPY_DONE
               : COPY_DIED;
}

/* Fills raw with what a copy wrote, the best of a few. Copies are made one at a time. */
DETACHED static enum copy_result
take_snapshot(struct text *raw)
{
    enum copy_result result = COPY_DIED;
    int saved_errno = 0;
    lock_leaf(&snapshot_lock);
    for (int attempt = 0; attempt < SNAPSHOT_ATTEMPTS && result == COPY_DIED; attempt++) {
        struct text tried = {0};
        /* The thread that was caught in the middle of a change may not run just now. */
        (void)poll(NULL, 0, attempt * SNAPSHOT_PAUSE_MS);
        result = try_copy(&tried);
        saved_errno = errno;
        if (tried.length > raw->length) {
            struct text shorter = *raw;
            *raw = tried;
            tried = shorter;
        }
        free_text(&tried);
    }
    unlock(&snapshot_lock);
    errno = saved_errno;
    return result;
}

/* Has a descriptor to spare for the next copy, if there may be one: not when a session ends after
 * release(). */
static void
open_spare(void)
{
    if (snapshot.signum != 0 && kept_number(&snapshot.spare) < 0) {
        keep_fd(&snapshot.spare, memfd_create("manhole", MFD_CLOEXEC));
    }
}

/* Lets a session have the spare descriptor, to import and to read sources with, when it can get no
 * other. Not while a copy is made, which may last. */
static void
lend_spare(int fd)
{
    int other = fcntl(fd, F_DUPFD_CLOEXEC, 0);
    if (other >= 0) {
        (void)close(other);
    }
    else if (pthread_mutex_trylock(&snapshot_lock) == 0) {
        close_kept(&snapshot.spare);
        unlock(&snapshot_lock);
    }
}

static void
take_spare_back(void)
{
    if (pthread_mutex_trylock(&snapshot_lock) == 0) {
        open_spare();
        unlock(&snapshot_lock);
    }
}

/* A piece of text that somebody else owns. */
struct slice {
    const char *bytes;
    size_t length;
};

/* Takes a line, without its newline, off the front of rest. Returns false at the end. */
static bool
next_line(struct slice *rest, struct slice *line)
{
    const char *newline = NULL;
    if (rest->length == 0) {
        return false;
    }
    newline = memchr(rest->bytes, '\n', rest->length);
    line->bytes = rest->bytes;
    line->length = newline == NULL ? rest->length : (size_t)(newline - rest->bytes);
    rest->bytes += line->length + (newline != NULL);
    rest->length -= line->length + (newline != NULL);
    return true;
}

static bool
starts_with(const struct slice *slice, const char *prefix)
{
    size_t length = strlen(prefix);
    return slice->length >= length && memcmp(slice->bytes, prefix, length) == 0;
}

/* What is known of one thread of the copy. */
struct thread_note {
    unsigned long native_id; /* 0: unknown */
    bool holds_gil;
    struct slice name; /* empty: unknown */
};

/* Takes a number and the blank behind it off the front of text. Returns false for none. */
static bool
take_number(const char **text, unsigned long *number)
{
    char *end = NULL;
    if (**text < '0' || **text > '9') {
        return false;
    }
    *number = strtoul(*text, &end, 10);
    *text = *end == ' ' ? end + 1 : end;
    return true;
}

/* Reads a line of facts, "@ IDENT NATIVE_ID HOLDS_GIL NAME" or "! IDENT". Returns the ident, 0 for
 * any other line. */
static unsigned long
read_facts(const struct slice *line, struct thread_note *note)
{
    char copy[80]; /* the numbers end in it */
    const char *text = copy + 2;
    unsigned long ident = 0;
    unsigned long holder = 0;
    size_t length = line->length < sizeof(copy) ? line->length : sizeof(copy) - 1;
    memcpy(copy, line->bytes, length);
    copy[length] = '\0';
    if (starts_with(line, "! ") && take_number(&text, &ident)) {
        note->holds_gil = true;
        return ident;
    }
    if (starts_with(line, "@ ") && take_number(&text, &ident) &&
        take_number(&text, &note->native_id) && take_number(&text, &holder)) {
        note->holds_gil = holder != 0;
        note->name.bytes = line->bytes + (text - copy);
        note->name.length =
            strnlen(note->name.bytes, line->length - (size_t)(text - copy));
        return ident;
    }
    return 0;
}

/* What a copy says of one thread. */
struct copied_thread {
    unsigned long ident;
    bool has_stack;      /* else only its facts are there */
    bool shown;          /* its header is written */
    struct slice frames; /* lines of faulthandler's, innermost first */
    struct thread_note note;
};

/* What a copy wrote, read. It points into the text. */
struct copied {
    struct copied_thread *threads; /* owned */
    size_t count;
    size_t capacity;
    bool failed; /* there was no memory for all of them */
};

/* Returns a new one, or NULL without memory. */
static struct copied_thread *
add_copied_thread(struct copied *copied, unsigned long ident)
{
    if (copied->count == copied->capacity) {
        size_t capacity = copied->capacity == 0 ? 64 : 2 * copied->capacity;
        struct copied_thread *threads =
            realloc(copied->threads, capacity * sizeof(*threads));
        if (threads == NULL) {
            copied->failed = true;
            return NULL;
        }
        copied->threads = threads;
        copied->capacity = capacity;
    }
    copied->threads[copied->count] = (struct copied_thread){.ident = ident};
    return &copied->threads[copied->count++];
}

static struct copied_thread *
find_copied_thread(const struct copied *copied, unsigned long ident)
{
    for (size_t i = 0; i < copied->count; i++) {
        if (copied->threads[i].ident == ident) {
            return &copied->threads[i];
        }
    }
    return NULL;
}

/* Reads faulthandler's part. */
static void
read_stacks(struct copied *copied, struct slice stacks)
{
    struct copied_thread *thread = NULL;
    struct slice line;
    bool is_hidden = false;
    while (next_line(&stacks, &line)) {
        if (starts_with(&line, "&")) {
            is_hidden = true;
            thread = NULL;
        }
        else if (starts_with(&line, "Thread 0x") ||
                 starts_with(&line, "Current thread 0x")) {
            unsigned long ident = strtoul(memchr(line.bytes, '0', line.length), NULL, 16);
            thread = is_hidden || ident == 0 ? NULL : add_copied_thread(copied, ident);
            is_hidden = false;
            if (thread != NULL) {
                thread->has_stack = true;
                thread->frames.bytes = stacks.bytes;
            }
        }
        else if (thread != NULL && starts_with(&line, "  ")) {
            thread->frames.length =
                (size_t)(line.bytes + line.length - thread->frames.bytes);
        }
    }
}

/* Reads the part that the copy itself has written. */
static void
read_all_facts(struct copied *copied, struct slice facts)
{
    struct slice line;
    while (next_line(&facts, &line)) {
        struct thread_note note = {0};
        unsigned long ident = read_facts(&line, &note);
        struct copied_thread *thread =
            ident == 0 ? NULL : find_copied_thread(copied, ident);
        if (ident != 0 && thread == NULL) {
            thread = add_copied_thread(copied, ident);
        }
        if (thread == NULL) {
            continue;
        }
        note.holds_gil = note.holds_gil || thread->note.holds_gil;
        if (note.native_id == 0 && note.name.length == 0) {
            thread->note.holds_gil = note.holds_gil;
        }
        else {
            thread->note = note;
        }
    }
}

/* Reads what a copy wrote, which may break off anywhere. To be freed by free_copied(). */
static struct copied
read_copied(const struct text *raw)
{
    const size_t marker = sizeof(stacks_complete) - 1;
    struct copied copied = {0};
    struct slice stacks = {raw->bytes, raw->length};
    struct slice facts = {NULL, 0};
    const char *found = raw->length == 0
                            ? NULL
                            : memmem(raw->bytes, raw->length, stacks_complete, marker);
    if (found != NULL) {
        stacks.length = (size_t)(found - raw->bytes);
        facts.bytes = found + marker;
        facts.length = raw->length - stacks.length - marker;
    }
    read_stacks(&copied, stacks);
    read_all_facts(&copied, facts);
    return copied;
}

static void
free_copied(struct copied *copied)
{
    free(copied->threads);
    *copied = (struct copied){0};
}

/* Reads a small file of /proc into a string, up to the first newline. Quick: no disk is asked. */
static void
read_proc(const char *path, char *text, size_t size)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    ssize_t length = fd < 0 ? -1 : read(fd, text, size - 1);
    text[length < 0 ? 0 : length] = '\0';
    text[strcspn(text, "\n")] = '\0';
    if (fd >= 0) {
        (void)close(fd);
    }
}

static const char *
state_name(char state)
{
    static const struct {
        char state;
        const char *name;
    } rows[] = {{'R', "running"}, {'S', "sleeping"}, {'D', "disk wait"}, {'T', "stopped"},
                {'t', "traced"},  {'Z', "zombie"},   {'X', "dead"},      {'I', "idle"}};
    for (size_t i = 0; i < Py_ARRAY_LENGTH(rows); i++) {
        if (rows[i].state == state) {
            return rows[i].name;
        }
    }
    return "in an unknown state";
}

/* What the kernel has a thread do, in a word; NULL: it has none like this. */
static const char *
read_state(unsigned long native_id)
{
    char path[64];
    char stat[512];
    const char *after_name = NULL;
    (void)snprintf(path, sizeof(path), "/proc/self/task/%lu/stat", native_id);
    read_proc(path, stat, sizeof(stat));
    after_name = strrchr(stat, ')');
    return after_name == NULL || strlen(after_name) < 3 ? NULL
                                                        : state_name(after_name[2]);
}

/* Not so where nothing can be read: /proc is not mounted, or there is no descriptor left. */
static bool
is_thread_gone(unsigned long native_id)
{
    char path[64];
    (void)snprintf(path, sizeof(path), "/proc/self/task/%lu", native_id);
    return access(path, F_OK) < 0 && errno == ENOENT &&
           access("/proc/self/task", F_OK) == 0;
}

/* Appends "TID 12 (comm), sleeping in futex_wait_queue", as far as /proc shows it. */
DETACHED static void
append_kernel_state(struct text *text, unsigned long native_id)
{
    char path[64];
    char where[128];
    const char *state = NULL;
    append_format(text, "TID %lu", native_id);
    (void)snprintf(path, sizeof(path), "/proc/self/task/%lu/comm", native_id);
    read_proc(path, where, sizeof(where));
    if (where[0] != '\0') {
        append_format(text, " (%s)", where);
    }
    state = read_state(native_id);
    if (state == NULL) {
        append_string(text, is_thread_gone(native_id) ? ", gone"
                                                      : ", its state is not to be read");
        return;
    }
    append_format(text, ", %s", state);
    (void)snprintf(path, sizeof(path), "/proc/self/task/%lu/wchan", native_id);
    read_proc(path, where, sizeof(where));
    if (where[0] != '\0' && strcmp(where, "0") != 0) {
        append_format(text, " in %s", where);
    }
    else {
        (void)snprintf(path, sizeof(path), "/proc/self/task/%lu/syscall", native_id);
        read_proc(path, where, sizeof(where));
        where[strcspn(where, " ")] = '\0';
        if (where[0] >= '0' && where[0] <= '9') {
            append_format(text, " in system call %s", where);
        }
    }
}

struct source {
    char *path;  /* owned */
    char *bytes; /* owned, of map_pages(); NULL: not to be had */
    size_t size;
    size_t length;       /* what of that is text */
    struct slice *lines; /* owned, of map_pages(); may be NULL */
    size_t line_count;
    bool loaded;     /* or tried to */
    bool is_special; /* no regular file: to read it may never end */
    /* Of a look: */
    bool seen;            /* the rest is known */
    bool python_is_asked; /* linecache may have what the file system has not */
    size_t frame;         /* one of those that are in this file */
};

/* Source files, each read once a dump. */
struct sources {
    struct source *files; /* owned */
    size_t count;
    size_t capacity;
};

/* Memory that goes back to the system at once: of what free() gets, each thread's arena keeps some.
 * Returns NULL when there is none. */
static void *
map_pages(size_t size)
{
    void *pages =
        mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    return pages == MAP_FAILED ? NULL : pages;
}

/* Makes room for the text. */
static void
map_bytes(struct source *source, size_t size)
{
    source->bytes = map_pages(size);
    source->size = size;
}

/* Reads a regular file of a reasonable size whole. */
DETACHED static void
read_file(struct source *source)
{
    struct stat status = {0};
    int fd = open(source->path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
    source->is_special = fd >= 0 && fstat(fd, &status) == 0 && !S_ISREG(status.st_mode);
    if (fd >= 0 && S_ISREG(status.st_mode) && status.st_size <= MAX_SOURCE) {
        map_bytes(source, (size_t)status.st_size + 1);
    }
    while (source->bytes != NULL && source->length < (size_t)status.st_size) {
        ssize_t got = read(fd, source->bytes + source->length,
                           (size_t)status.st_size - source->length);
        if (got <= 0) {
            break;
        }
        source->length += (size_t)got;
    }
    if (fd >= 0) {
        (void)close(fd);
    }
}

/* Finds the lines. */
static void
index_lines(struct source *source)
{
    static const char mark[] =
        "\xef\xbb\xbf"; /* of UTF-8; some editors begin a file with it */
    struct slice rest = {source->bytes, source->bytes == NULL ? 0 : source->length};
    struct slice line = {NULL, 0};
    size_t count = 0;
    if (starts_with(&rest, mark)) {
        rest.bytes += sizeof(mark) - 1;
        rest.length -= sizeof(mark) - 1;
    }
    for (struct slice each = rest; next_line(&each, &line); count++) {
    }
    if (count > 0) {
        source->lines = map_pages(count * sizeof(*source->lines));
    }
    while (source->lines != NULL && next_line(&rest, &line)) {
        source->lines[source->line_count++] = line;
    }
}

DETACHED static void
load_source(struct source *source)
{
    source->loaded = true;
    read_file(source);
    index_lines(source);
}

static void
forget_lines(struct source *source)
{
    if (source->bytes != NULL) {
        (void)munmap(source->bytes, source->size);
    }
    if (source->lines != NULL) {
        (void)munmap(source->lines, source->line_count * sizeof(*source->lines));
    }
    source->bytes = NULL;
    source->length = 0;
    source->lines = NULL;
    source->line_count = 0;
}

/* Returns the entry of this file, a new one if there is none yet; NULL when there is no memory. It
 * stays where it is until the next is added. */
static struct source *
add_source(struct sources *sources, const char *path)
{
    struct source *source = NULL;
    for (size_t i = 0; i < sources->count; i++) {
        if (strcmp(sources->files[i].path, path) == 0) {
            return &sources->files[i];
        }
    }
    if (sources->count == sources->capacity) {
        size_t capacity = sources->capacity == 0 ? 16 : sources->capacity * 2;
        struct source *grown = realloc(sources->files, capacity * sizeof(*grown));
        if (grown == NULL) {
            return NULL;
        }
        sources->files = grown;
        sources->capacity = capacity;
    }
    source = &sources->files[sources->count];
    *source = (struct source){.path = strdup(path)};
    if (source->path == NULL) {
        return NULL;
    }
    sources->count++;
    return source;
}

static void
free_sources(struct sources *sources)
{
    for (size_t i = 0; i < sources->count; i++) {
        forget_lines(&sources->files[i]);
        free(sources->files[i].path);
    }
    free(sources->files);
    *sources = (struct sources){0};
}

/* The number-th line of a source, without blanks around it; empty when there is none. */
static struct slice
source_line(const struct source *source, long number)
{
    struct slice line = {NULL, 0};
    if (number < 1 || (unsigned long)number > source->line_count) {
        return line;
    }
    line = source->lines[number - 1];
    while (line.length > 0 && strchr(" \t\r\f", line.bytes[line.length - 1]) != NULL) {
        line.length--;
    }
    while (line.length > 0 && strchr(" \t\f", line.bytes[0]) != NULL) {
        line.bytes++;
        line.length--;
    }
    return line;
}

/* faulthandler writes what is not ASCII as \xe9, \u20ac, \U0001f40d: back to UTF-8. */
static void
append_unescaped(struct text *text, struct slice slice)
{
    while (slice.length > 0) {
        size_t digits = 0;
        size_t used = 1;
        if (slice.length > 1 && slice.bytes[0] == '\\') {
            const char *kinds = "xuU";
            const char *kind = strchr(kinds, slice.bytes[1]);
            digits = kind == NULL || *kind == '\0' ? 0 : (size_t)2 << (kind - kinds);
        }
        if (digits > 0 && slice.length >= 2 + digits) {
            char number[9] = "";
            char *end = NULL;
            unsigned long character = 0;
            memcpy(number, slice.bytes + 2, digits);
            character = strtoul(number, &end, 16);
            if (*end == '\0' && character <= 0x10FFFF && !is_surrogate(character)) {
                char bytes[4];
                append_bytes(text, bytes, put_utf8(bytes, character));
                used = 2 + digits;
            }
        }
        if (used == 1) {
            append_bytes(text, slice.bytes, 1);
        }
        slice.bytes += used;
        slice.length -= used;
    }
}

/* A frame as it is shown. */
struct shown_frame {
    struct slice path; /* NUL-terminated */
    struct slice function;
    long line;
    struct slice source; /* empty: not to be had */
};

/* Appends a frame in our words, which are python-manhole's. */
static void
append_shown_frame(struct text *text, const struct shown_frame *frame)
{
    append_string(text, "File: \"");
    append_bytes(text, frame->path.bytes, frame->path.length);
    append_format(text, "\", line %ld, in ", frame->line);
    append_bytes(text, frame->function.bytes, frame->function.length);
    append_string(text, "\n");
    if (frame->source.length > 0) {
        append_string(text, "  ");
        append_bytes(text, frame->source.bytes, frame->source.length);
        append_string(text, "\n");
    }
}

/* A frame of a copy, as faulthandler tells of it. */
struct copied_frame {
    struct text path; /* NUL-terminated */
    struct text function;
    struct shown_frame shown;
};

static void
free_copied_frame(struct copied_frame *frame)
{
    free_text(&frame->path);
    free_text(&frame->function);
}

/* Reads a frame, `  File "F", line N in NAME` in faulthandler's words. Returns false for a line of
 * another form ("...", "<no Python frame>"), and when there is no memory. */
DETACHED static bool
read_copied_frame(struct copied_frame *frame, struct slice line, struct sources *sources)
{
    static const char middle[] = "\", line ";
    const char *end = NULL;
    const char *rest = NULL; /* of the line, behind what has been read */
    struct slice function;
    struct source *source = NULL;
    for (size_t i = 0; i + sizeof(middle) - 1 <= line.length; i++) {
        if (memcmp(line.bytes + i, middle, sizeof(middle) - 1) == 0) {
            end = line.bytes + i;
        }
    }
    if (!starts_with(&line, "  File \"") || end == NULL || end < line.bytes + 8) {
        return false;
    }
    append_unescaped(&frame->path,
                     (struct slice){line.bytes + 8, (size_t)(end - line.bytes) - 8});
    append_bytes(&frame->path, "", 1);
    rest = end + sizeof(middle) - 1;
    if (*rest >= '0' && *rest <= '9') { /* strtol() would skip a newline to find one */
        char *number_end = NULL;
        frame->shown.line = strtol(rest, &number_end, 10);
        rest = number_end;
    }
    function = (struct slice){rest, (size_t)(line.bytes + line.length - rest)};
    if (starts_with(&function, " in ")) {
        function.bytes += 4;
        function.length -= 4;
    }
    append_unescaped(&frame->function, function);
    if (frame->path.failed || frame->function.failed) {
        free_copied_frame(frame);
        return false;
    }
    source = add_source(sources, frame->path.bytes);
    if (source != NULL && !source->loaded) {
        load_source(source);
    }
    if (source != NULL) {
        frame->shown.source = source_line(source, frame->shown.line);
    }
    frame->shown.path = (struct slice){frame->path.bytes, frame->path.length - 1};
    frame->shown.function = (struct slice){frame->function.bytes, frame->function.length};
    return true;
}

/* A line of another form stands as it is. */
DETACHED static void
append_copied_frame(struct text *text, struct slice line, struct sources *sources)
{
    struct copied_frame frame = {.shown.line = 0};
    if (!read_copied_frame(&frame, line, sources)) {
        append_bytes(text, line.bytes, line.length);
        append_string(text, "\n");
        return;
    }
    append_shown_frame(text, &frame.shown);
    free_copied_frame(&frame);
}

/* Appends a thread's header and what is known of it. */
DETACHED static void
append_copied_header(struct text *text, const struct copied_thread *thread)
{
    const struct thread_note *note = &thread->note;
    append_format(text, "######### ProcessID=%ld, ThreadID=%lu #########\n",
                  (long)getpid(), thread->ident);
    if (note->name.length > 0) {
        append_string(text, "Thread: ");
        append_bytes(text, note->name.bytes, note->name.length);
        append_string(text, note->native_id != 0 ? ", " : "");
    }
    else if (note->native_id != 0) {
        append_string(text, "Thread: ");
    }
    if (note->native_id != 0) {
        append_kernel_state(text, note->native_id);
    }
    if (note->holds_gil) {
        append_string(text, ", holds the GIL");
    }
    if (note->name.length > 0 || note->native_id != 0) {
        append_string(text, "\n");
    }
}

enum {
    MAX_COPIED_FRAMES = 128 /* faulthandler stops at 100 and says so in one more line */
};

/* Splits a thread's frames into lines, innermost first. Returns how many there are. */
static size_t
split_frames(const struct copied_thread *thread, struct slice lines[MAX_COPIED_FRAMES])
{
    struct slice rest = thread->frames;
    size_t count = 0;
    while (count < MAX_COPIED_FRAMES && next_line(&rest, &lines[count])) {
        count += starts_with(&lines[count], "  ");
    }
    return count;
}

/* A session's thread that has no frames yet: it waits for the very interpreter that is stuck. */
static bool
is_waiting_session(unsigned long ident)
{
    for (size_t i = 0; i < atomic_load(&manhole.sessions_end); i++) {
        const struct session *session = &manhole.sessions[i];
        if (atomic_load(&session->fd.number) >= 0 && session->ident == ident &&
            !atomic_load(&session->running)) {
            return true;
        }
    }
    return false;
}

/* Whether a thread of a copy is one to show. */
static bool
is_copied_stack(const struct copied_thread *thread)
{
    return thread->has_stack && !is_waiting_session(thread->ident);
}

static bool
is_same_copied_stack(const struct copied_thread *one, const struct copied_thread *other)
{
    return one->frames.length == other->frames.length &&
           (one->frames.length == 0 ||
            memcmp(one->frames.bytes, other->frames.bytes, one->frames.length) == 0);
}

/* Appends all threads of a copy: headers of those with the same stack, and that once, outermost
 * frame first. */
DETACHED static void
append_copied_threads(struct text *text, struct copied *copied)
{
    struct sources sources = {0};
    for (size_t i = 0; i < copied->count; i++) {
        struct copied_thread *thread = &copied->threads[i];
        struct slice lines[MAX_COPIED_FRAMES];
        size_t line_count = 0;
        size_t same = 0;
        if (thread->shown || !is_copied_stack(thread)) {
            continue;
        }
        append_string(text, "\n");
        for (size_t k = i; k < copied->count; k++) {
            struct copied_thread *other = &copied->threads[k];
            if (!other->shown && is_same_copied_stack(thread, other) &&
                is_copied_stack(other)) { /* last, for it goes through all sessions */
                append_copied_header(text, other);
                other->shown = true;
                same++;
            }
        }
        if (same > 1) {
            append_format(text, "%zu threads with the same stack:\n", same);
        }
        line_count = split_frames(thread, lines);
        while (line_count > 0) {
            append_copied_frame(text, lines[--line_count], &sources);
        }
    }
    free_sources(&sources);
}

static bool
is_noted(const struct copied *copied, unsigned long native_id)
{
    for (size_t i = 0; i < copied->count; i++) {
        if (copied->threads[i].note.native_id == native_id) {
            return true;
        }
    }
    return false;
}

/* Appends the kernel's view of every thread that the copy says nothing of. */
DETACHED static void
append_other_threads(struct text *text, const struct copied *copied)
{
    const unsigned long own_id = (unsigned long)syscall(SYS_gettid);
    struct dirent *entry = NULL;
    unsigned long *ids = NULL; /* owned */
    size_t count = 0;
    size_t capacity = 0;
    DIR *tasks = opendir("/proc/self/task"); /* owned */
    if (tasks == NULL) {
        append_format(text, "/proc/self/task: %s\n", error_text(errno));
        return;
    }
    append_string(text, "\nOther threads of the process, as the kernel sees them:\n");
    /* NOLINTNEXTLINE(concurrency-mt-unsafe): only this thread has this DIR */
    while ((entry = readdir(tasks)) != NULL) {
        unsigned long native_id = strtoul(entry->d_name, NULL, 10);
        if (native_id == 0 || native_id == own_id || is_noted(copied, native_id)) {
            continue;
        }
        if (count == capacity) {
            unsigned long *more = NULL;
            capacity = capacity == 0 ? 64 : 2 * capacity;
            more = realloc(ids, capacity * sizeof(*ids));
            if (more == NULL) {
                text->failed = true;
                break;
            }
            ids = more;
        }
        ids[count++] = native_id;
    }
    (void)closedir(tasks); /* there may be no second descriptor */
    for (size_t i = 0; i < count; i++) {
        append_string(text, "  ");
        append_kernel_state(text, ids[i]);
        append_string(text, "\n");
    }
    free(ids);
}

/* What came of an attempt at a frozen copy. */
struct examination {
    struct text raw; /* owned: what the copy wrote; copied points into it */
    struct copied copied;
    enum copy_result result;
    int error; /* errno, for COPY_REFUSED */
};

DETACHED static void
examine_copy(struct examination *examination)
{
    examination->result = take_snapshot(&examination->raw);
    examination->error = errno;
    append_bytes(&examination->raw, "", 1); /* numbers are read up to what ends them */
    if (!examination->raw.failed) {
        examination->copied = read_copied(&examination->raw);
    }
}

DETACHED static void
free_examination(struct examination *examination)
{
    free_copied(&examination->copied);
    free_text(&examination->raw);
    lock_leaf(&snapshot_lock);
    open_spare();
    unlock(&snapshot_lock);
}

/* Appends why there is not all that there should be; nothing when there is. */
static void
append_copy_note(struct text *text, const struct examination *examination)
{
    if (examination->result == COPY_REFUSED && examination->error == EBUSY &&
        snapshot.signum == 0) {
        append_string(text,
                      "No frozen copy of the process can be made: no real-time signal "
                      "was free for faulthandler at install, its log tells.");
    }
    else if (examination->result == COPY_REFUSED && examination->error == EBUSY) {
        append_format(text,
                      "No frozen copy of the process can be made: signal %d, which "
                      "faulthandler had for it, is somebody else's now.",
                      snapshot.signum);
    }
    else if (examination->result == COPY_REFUSED) {
        append_format(text, "No frozen copy of the process can be made: %s.",
                      error_text(examination->error));
    }
    else if (examination->result == COPY_DIED) {
        append_string(text,
                      "The frozen copies of the process died; what the best one told:");
    }
    if (examination->copied.failed || examination->raw.failed) {
        append_string(text, " There was no memory for all threads.");
    }
}

/* As append_copy_note(), where the copy is all that there is. */
static void
append_lone_copy_note(struct text *text, const struct examination *examination)
{
    const size_t length = text->length;
    bool is_bare = true;
    append_copy_note(text, examination);
    for (size_t i = 0; i < examination->copied.count; i++) {
        is_bare = is_bare && !is_copied_stack(&examination->copied.threads[i]);
    }
    if (is_bare && text->length == length) { /* the queue of its signal was full, say */
        append_string(text, "The frozen copy of the process told of no thread.");
    }
}

/* Appends the dump of a process whose interpreter does not answer. */
DETACHED static void
append_snapshot(struct text *text)
{
    struct examination examination = {.error = 0};
    const size_t length = text->length;
    examine_copy(&examination);
    append_lone_copy_note(text, &examination);
    append_string(text, text->length > length ? "\n" : "");
    append_copied_threads(text, &examination.copied);
    append_other_threads(text, &examination.copied);
    append_string(text, "#############################################\n\n\n");
    free_examination(&examination);
}

/* ======================================================================================
 * Stack dump: what every Python thread is doing.
 * Runs on:  sessions and application threads: ATTACHED for the look, DETACHED for source files and
 *           for the text.
 * Touches:  nothing but frames, what linecache has, and the file's own structs.
 * The application stands still only for the look, which records code, globals and instruction only.
 * A client is told all that with the GIL taken once, and no module is imported for it: Python is
 * asked for those lines alone that are in no file of UTF-8.
 * ====================================================================================== */

/* A str as UTF-8. */
struct name {
    PyObject *object;  /* owned: the str, or a bytes object; NULL: there is none */
    struct slice utf8; /* in object, NUL-terminated */
};

struct frame_record {
    PyCodeObject *code; /* owned */
    PyObject *globals;  /* owned: they know the loader, which may have the source */
    int instruction;
    size_t spot; /* once described: its index */
};

/* Where in the code some frames are. Found afterwards, which takes ten times as long as the
 * look. */
struct spot {
    const PyCodeObject *code; /* borrowed from a frame */
    int instruction;
    struct name path;
    struct name function;
    int line;
    size_t source; /* its index */
    size_t start;  /* once written: where in the text */
    size_t length; /* 0: not written yet */
};

/* What may be known or not. */
enum answer {
    ANSWER_NO,
    ANSWER_YES,
    ANSWER_UNKNOWN,
};

struct thread_record {
    unsigned long ident;
    size_t first; /* index of the innermost frame */
    size_t count;
    size_t hash; /* of all its frames: two with the same stack have the same */
    bool shown;
    size_t group; /* once shown: the thread with the same stack that came first */
    /* Once described, what threading says of it: */
    struct name name;
    unsigned long native_id; /* 0: not known */
    enum answer daemon;
};

/* Is looked at ATTACHED. Once it is described it can be written DETACHED. */
struct look {
    struct frame_record *frames; /* owned */
    size_t frame_count;
    size_t frame_capacity;
    struct thread_record *threads; /* owned */
    size_t thread_count;
    struct spot *spots; /* owned */
    size_t spot_count;
    size_t spot_capacity;
    /* Of each hash of (code, instruction): index + 1 of a spot that has it. */
    size_t latest[SPOT_ROWS];
    struct sources sources;
    size_t settled; /* so many of the sources need not be looked for any more */
};

/* Takes the reference over. What has no UTF-8 (lone surrogates) becomes \udcff; what is no str, or
 * for want of memory, there is none. Never raises. */
ATTACHED static struct name
take_name(PyObject *str /* new, or NULL */)
{
    struct name name = {.object = str};
    Py_ssize_t length = 0;
    if (str != NULL && PyUnicode_Check(str)) {
        name.utf8.bytes = PyUnicode_AsUTF8AndSize(str, &length);
        if (name.utf8.bytes == NULL) {
            PyErr_Clear();
            Py_SETREF(name.object,
                      PyUnicode_AsEncodedString(str, "utf-8", "backslashreplace"));
            if (name.object != NULL) {
                name.utf8.bytes = PyBytes_AS_STRING(name.object);
                length = PyBytes_GET_SIZE(name.object);
            }
        }
        name.utf8.length = (size_t)length;
    }
    if (name.utf8.bytes == NULL) {
        Py_CLEAR(name.object);
    }
    PyErr_Clear();
    return name;
}

ATTACHED static void
free_look(struct look *look)
{
    for (size_t i = 0; i < look->frame_count; i++) {
        Py_DECREF(look->frames[i].code);
        Py_DECREF(look->frames[i].globals);
    }
    for (size_t i = 0; i < look->thread_count; i++) {
        Py_XDECREF(look->threads[i].name.object);
    }
    for (size_t i = 0; i < look->spot_count; i++) {
        Py_XDECREF(look->spots[i].path.object);
        Py_XDECREF(look->spots[i].function.object);
    }
    PyMem_RawFree(look->frames);
    PyMem_RawFree(look->threads);
    PyMem_RawFree(look->spots);
    free_sources(&look->sources);
    *look = (struct look){0};
}

/* Makes a full array larger, of elements of this size. Returns where it is then, or NULL with an
 * exception: it is where it was. */
ATTACHED static void *
grow_array(void *array, size_t *capacity, size_t size)
{
    size_t more = *capacity == 0 ? 64 : *capacity * 2;
    void *grown = PyMem_RawRealloc(array, more * size);
    if (grown == NULL) {
        PyErr_NoMemory();
    }
    else {
        *capacity = more;
    }
    return grown;
}

ATTACHED static int
record_frame(struct look *look, PyFrameObject *frame)
{
    if (look->frame_count == look->frame_capacity) {
        struct frame_record *grown =
            grow_array(look->frames, &look->frame_capacity, sizeof(*look->frames));
        if (grown == NULL) {
            return -1;
        }
        look->frames = grown;
    }
    look->frames[look->frame_count].code = PyFrame_GetCode(frame);
    look->frames[look->frame_count].globals = get_globals(frame);
    look->frames[look->frame_count].instruction = get_instruction(frame);
    look->frame_count++;
    return 0;
}

static size_t
hash_frames(const struct frame_record *frames, size_t count)
{
    size_t hash = count;
    for (size_t i = 0; i < count; i++) {
        hash = (hash ^ (size_t)frames[i].code ^ (size_t)frames[i].instruction) *
               0x100000001b3U;
    }
    return hash;
}

/* Records a frame and all outside it. Returns 0, or -1 with an exception. */
ATTACHED static int
record_stack(struct look *look, PyObject *top)
{
    PyFrameObject *frame = (PyFrameObject *)Py_NewRef(top); /* owned */
    while (frame != NULL) {
        PyFrameObject *back = NULL;
        if (record_frame(look, frame) < 0) {
            Py_DECREF(frame);
            return -1;
        }
        back = PyFrame_GetBack(frame);
        Py_DECREF(frame);
        frame = back;
    }
    return 0;
}

ATTACHED static int
record_thread(struct look *look, PyObject *ident, PyObject *top)
{
    struct thread_record *thread = &look->threads[look->thread_count++];
    thread->ident = PyLong_AsUnsignedLong(ident);
    thread->first = look->frame_count;
    if (record_stack(look, top) < 0) {
        return -1;
    }
    thread->count = look->frame_count - thread->first;
    thread->hash = hash_frames(&look->frames[thread->first], thread->count);
    return 0;
}

/* One look at all threads. Nothing in it lets go of the GIL, where there is one. Returns
 * 0, or -1 with an exception; free_look() either way. */
ATTACHED static int
look_at_threads(struct look *look)
{
    PyObject *frames = NULL; /* owned dict of ident: topmost frame */
    PyObject *ident = NULL;  /* borrowed */
    PyObject *top = NULL;    /* borrowed */
    Py_ssize_t position = 0;
    PyObject *current_frames = PySys_GetObject("_current_frames"); /* borrowed */
    bool collecting = pause_gc();
    int result = -1;
    if (current_frames == NULL) {
        PyErr_SetString(PyExc_RuntimeError, "sys._current_frames is gone");
        goto done;
    }
    frames = PyObject_CallNoArgs(current_frames);
    if (frames == NULL) {
        goto done;
    }
    look->threads =
        PyMem_RawCalloc((size_t)PyDict_Size(frames) + 1, sizeof(*look->threads));
    if (look->threads == NULL) {
        PyErr_NoMemory();
        goto done;
    }
    while (PyDict_Next(frames, &position, &ident, &top)) {
        if (record_thread(look, ident, top) < 0) {
            goto done;
        }
    }
    result = 0;
done:
    Py_XDECREF(frames);
    resume_gc(collecting);
    return result;
}

/* Whether this file is the module's own. Code that was compiled under another name, as templates
 * are, has the globals of a module whose loader knows nothing of it. Never raises. */
ATTACHED static bool
is_module_of(PyObject *globals, PyObject *filename)
{
    PyObject *file = PyMapping_GetItemString(globals, "__file__"); /* owned */
    bool same = file != NULL && PyObject_RichCompareBool(file, filename, Py_EQ) == 1;
    PyErr_Clear();
    Py_XDECREF(file);
    return same;
}

/* Takes lines as linecache has them, with their newlines. Never raises. */
ATTACHED static void
take_lines(struct source *source, PyObject *lines)
{
    PyObject *empty = PyUnicode_FromString(""); /* owned */
    struct name whole = {NULL, {NULL, 0}};      /* owned */
    if (empty != NULL && PyList_Check(lines)) {
        whole = take_name(PyUnicode_Join(empty, lines));
    }
    PyErr_Clear();
    forget_lines(source);
    map_bytes(source, whole.utf8.length + 1);
    if (source->bytes != NULL && whole.utf8.length > 0) {
        memcpy(source->bytes, whole.utf8.bytes, whole.utf8.length);
        source->length = whole.utf8.length;
    }
    index_lines(source);
    Py_XDECREF(empty);
    Py_XDECREF(whole.object);
}

/* Takes what linecache has of no file: what was typed, a doctest's, what attrs has made. It is
 * asked for what it has, and that alone. Never raises. */
ATTACHED static void
take_kept_lines(struct source *source, PyObject *filename)
{
    PyObject *modules = PyImport_GetModuleDict();                     /* borrowed */
    PyObject *linecache = PyDict_GetItemString(modules, "linecache"); /* borrowed */
    PyObject *cache = NULL;                                           /* owned */
    PyObject *entry = NULL; /* borrowed: (size, mtime, lines, filename) */
    if (linecache != NULL && PyModule_Check(linecache)) {
        cache = PyObject_GetAttrString(linecache, "cache");
    }
    if (cache != NULL && PyDict_Check(cache)) {
        entry = PyDict_GetItemWithError(cache, filename);
    }
    if (entry != NULL && PyTuple_Check(entry) && PyTuple_GET_SIZE(entry) == 4 &&
        PyTuple_GET_ITEM(entry, 1) == Py_None) {
        take_lines(source, PyTuple_GET_ITEM(entry, 2));
        source->loaded = true;
    }
    PyErr_Clear();
    Py_XDECREF(cache);
}

/* Takes the lines of a source file as linecache finds them: along sys.path, by the module's loader
 * from a zip file, say, or in another encoding. It imports what it needs, and may let others run.
 * Never raises. */
ATTACHED static void
ask_linecache(struct source *source, const struct frame_record *frame)
{
    PyObject *filename = frame->code->co_filename;      /* borrowed */
    PyObject *linecache = import_standard("linecache"); /* owned */
    PyObject *checked = NULL;                           /* owned */
    PyObject *lazy = NULL;                              /* owned */
    PyObject *lines = NULL;                             /* owned */
    if (linecache != NULL) {
        checked = PyObject_CallMethod(linecache, "checkcache", "O", filename);
        PyErr_Clear();
        if (is_module_of(frame->globals, filename)) {
            lazy = PyObject_CallMethod(linecache, "lazycache", "OO", filename,
                                       frame->globals);
            PyErr_Clear();
        }
        lines = PyObject_CallMethod(linecache, "getlines", "O", filename);
    }
    if (lines != NULL) {
        take_lines(source, lines);
    }
    PyErr_Clear();
    Py_XDECREF(linecache);
    Py_XDECREF(checked);
    Py_XDECREF(lazy);
    Py_XDECREF(lines);
}

/* Whether a line names an encoding other than UTF-8, as PEP 263 has it: `coding[:=]\s*([-\w.]+)` in
 * a comment. */
static bool
names_other_encoding(struct slice line)
{
    static const char word[] = "coding";
    char comment[200] = ""; /* of a line that is longer, so much */
    const char *name = comment;
    memcpy(comment, line.bytes,
           line.length < sizeof(comment) ? line.length : sizeof(comment) - 1);
    if (comment[strspn(comment, " \t\f")] != '#') {
        return false;
    }
    while ((name = strstr(name, word)) != NULL) {
        name += sizeof(word) - 1;
        if (*name == ':' || *name == '=') {
            name += 1 + strspn(name + 1, " \t");
            return strncasecmp(name, "utf-8", 5) != 0 &&
                   strncasecmp(name, "utf_8", 5) != 0 &&
                   strncasecmp(name, "utf8", 4) != 0;
        }
    }
    return false;
}

/* Whether what was read is what Python sees: in UTF-8, and no line ends with a lone CR. */
static bool
is_as_python_reads_it(const struct source *source)
{
    const char *rest = source->bytes;
    size_t length = source->length;
    const char *cr = NULL;
    for (size_t i = 0; i < source->line_count && i < 2; i++) {
        if (names_other_encoding(source->lines[i])) {
            return false;
        }
    }
    while (length > 0 && (cr = memchr(rest, '\r', length)) != NULL) {
        length -= (size_t)(cr + 1 - rest);
        rest = cr + 1;
        if (length == 0 || *rest != '\n') {
            return false;
        }
    }
    return true;
}

/* Reads the files that the look is new to. Returns whether Python is to be asked for some. */
DETACHED static bool
read_sources(struct look *look)
{
    bool more = false;
    for (size_t i = look->settled; i < look->sources.count; i++) {
        struct source *source = &look->sources.files[i];
        const size_t length = strlen(source->path);
        if (source->loaded ||
            (source->path[0] == '<' && source->path[length - 1] == '>')) {
            continue;
        }
        load_source(source);
        source->python_is_asked =
            source->bytes == NULL ? !source->is_special : !is_as_python_reads_it(source);
        more = more || source->python_is_asked;
    }
    return more;
}

/* Detaches. Lines of source are found before it returns: nearly always without Python, so that a
 * look and what follows it need the GIL once. */
DETACHES static PyThreadState *
detach_with_sources(struct look *look)
{
    PyThreadState *tstate = detach();
    if (read_sources(look)) {
        reattach(tstate);
        for (size_t i = look->settled; i < look->sources.count; i++) {
            struct source *source = &look->sources.files[i];
            if (source->python_is_asked) {
                ask_linecache(source, &look->frames[source->frame]);
            }
        }
        tstate = detach();
    }
    look->settled = look->sources.count;
    return tstate;
}

/* Adds the spot that a frame is at. Returns 0, or -1 with an exception. */
ATTACHED static int
add_spot(struct look *look, size_t frame_index)
{
    const struct frame_record *frame = &look->frames[frame_index];
    struct spot *spot = NULL;
    struct source *source = NULL;
    if (look->spot_count == look->spot_capacity) {
        struct spot *grown =
            grow_array(look->spots, &look->spot_capacity, sizeof(*look->spots));
        if (grown == NULL) {
            return -1;
        }
        look->spots = grown;
    }
    spot = &look->spots[look->spot_count++];
    *spot = (struct spot){
        .code = frame->code,
        .instruction = frame->instruction,
        .path = take_name(Py_NewRef(frame->code->co_filename)),
        .function = take_name(Py_NewRef(frame->code->co_name)),
        .line = PyCode_Addr2Line(frame->code, frame->instruction),
    };
    source = spot->path.object == NULL || spot->function.object == NULL
                 ? NULL
                 : add_source(&look->sources, spot->path.utf8.bytes);
    if (source == NULL) {
        PyErr_NoMemory();
        return -1;
    }
    spot->source = (size_t)(source - look->sources.files);
    if (!source->seen) {
        source->seen = true;
        source->frame = frame_index;
        take_kept_lines(source, frame->code->co_filename);
    }
    return 0;
}

/* Finds the spots of some frames. Nothing in it lets go of the GIL. Returns 0, or -1 with an
 * exception. */
ATTACHED static int
describe_frames(struct look *look, size_t first, size_t count)
{
    for (size_t i = first; i < first + count; i++) {
        struct frame_record *frame = &look->frames[i];
        size_t *latest = &look->latest[hash_frames(frame, 1) % SPOT_ROWS];
        const struct spot *spot = *latest == 0 ? NULL : &look->spots[*latest - 1];
        if (spot == NULL || spot->code != frame->code ||
            spot->instruction != frame->instruction) {
            if (add_spot(look, i) < 0) {
                return -1;
            }
            *latest = look->spot_count;
        }
        frame->spot = *latest - 1;
    }
    return 0;
}

/* threading._active, when threading is imported. Returns a new reference, or NULL; never raises. */
ATTACHED static PyObject *
get_active_threads(void)
{
    PyObject *modules = PyImport_GetModuleDict();                     /* borrowed */
    PyObject *threading = PyDict_GetItemString(modules, "threading"); /* borrowed */
    PyObject *active = NULL;                                          /* new */
    if (threading != NULL) {
        active = PyObject_GetAttrString(threading, "_active");
    }
    PyErr_Clear();
    return active;
}

/* An attribute, new, or NULL; never raises. */
ATTACHED static PyObject *
find_attribute(PyObject *object /* or NULL */, const char *name)
{
    PyObject *value = object == NULL ? NULL : PyObject_GetAttrString(object, name);
    PyErr_Clear();
    return value;
}

/* What a property of Thread returns, without its Python code where it is the usual one: that could
 * let others run. Returns a new reference, or NULL; never raises. */
ATTACHED static PyObject *
get_thread_property(PyObject *thread, const char *attribute, const char *property)
{
    PyObject *value = find_attribute(thread, attribute);
    return value != NULL ? value : find_attribute(thread, property);
}

/* Never raises. */
ATTACHED static bool
is_main_thread(PyObject *thread)
{
    PyObject *modules = PyImport_GetModuleDict();                      /* borrowed */
    PyObject *threading = PyDict_GetItemString(modules, "threading");  /* borrowed */
    PyObject *main_thread = find_attribute(threading, "_main_thread"); /* owned */
    bool is_main = main_thread == thread;
    Py_XDECREF(main_thread);
    return is_main;
}

/* Adds what threading says of a thread. Never raises. */
ATTACHED static void
describe_thread(struct thread_record *record, PyObject *active /* dict, or NULL */)
{
    PyObject *key = PyLong_FromUnsignedLong(record->ident); /* owned */
    PyObject *thread = NULL;                                /* owned */
    PyObject *native_id = NULL;                             /* owned */
    PyObject *daemon = NULL;                                /* owned */
    record->daemon = ANSWER_UNKNOWN;
    if (active != NULL && key != NULL) {
        thread = PyObject_GetItem(active, key);
        PyErr_Clear();
    }
    if (thread != NULL) {
        record->name = take_name(get_thread_property(thread, "_name", "name"));
        native_id = get_thread_property(thread, "_native_id", "native_id");
        daemon = get_thread_property(thread, "_daemonic", "daemon");
    }
    if (native_id != NULL && PyLong_Check(native_id)) {
        record->native_id = PyLong_AsUnsignedLongMask(native_id);
        if (!is_task(getpid(), record->native_id)) {
            record->native_id = is_main_thread(thread) ? (unsigned long)getpid() : 0;
        }
    }
    if (daemon != NULL && PyBool_Check(daemon)) {
        record->daemon = daemon == Py_True ? ANSWER_YES : ANSWER_NO;
    }
    PyErr_Clear();
    Py_XDECREF(key);
    Py_XDECREF(thread);
    Py_XDECREF(native_id);
    Py_XDECREF(daemon);
}

/* All of it is C, so no switch of threads would come by itself. Returns since when the caller has
 * kept the others from running. */
ATTACHED static int64_t
let_others_run(int64_t held_since_ms)
{
    PyThreadState *tstate = NULL;
    if (monotonic_ms() - held_since_ms < HOLD_MS) {
        return held_since_ms;
    }
    tstate = detach();
    (void)poll(NULL, 0, 1); /* else this thread has it again before another is awake */
    reattach(tstate);
    return monotonic_ms();
}

/* A look at all threads, described. Returns 0, or -1 with an exception; free_look() either way. */
ATTACHED static int
look_around(struct look *look)
{
    PyObject *active = NULL; /* owned, may stay NULL */
    int64_t held_since_ms = monotonic_ms();
    int result = look_at_threads(look);
    if (result == 0) {
        active = get_active_threads();
    }
    for (size_t i = 0; result == 0 && i < look->thread_count; i++) {
        struct thread_record *thread = &look->threads[i];
        held_since_ms = let_others_run(held_since_ms);
        describe_thread(thread, active);
        result = describe_frames(look, thread->first, thread->count);
    }
    Py_XDECREF(active);
    return result;
}

static bool
is_same_stack(const struct look *look, const struct thread_record *one,
              const struct thread_record *other)
{
    const struct frame_record *frames = &look->frames[one->first];
    const struct frame_record *others = &look->frames[other->first];
    if (one->hash != other->hash || one->count != other->count) {
        return false;
    }
    for (size_t i = 0; i < one->count; i++) {
        if (frames[i].code != others[i].code ||
            frames[i].instruction != others[i].instruction) {
            return false;
        }
    }
    return true;
}

/* Appends the headers of a thread and of all after it that have the same stack, which are thereby
 * shown; for more than one their names too, for the headers alone tell little then. Returns false
 * when it is shown already. */
static bool
append_headers(struct text *text, struct look *look, size_t first)
{
    size_t count = 0;
    if (look->threads[first].shown) {
        return false;
    }
    append_string(text, "\n");
    for (size_t i = first; i < look->thread_count; i++) {
        struct thread_record *thread = &look->threads[i];
        if (!thread->shown && is_same_stack(look, &look->threads[first], thread)) {
            append_format(text, "######### ProcessID=%ld, ThreadID=%lu #########\n",
                          (long)getpid(), thread->ident);
            thread->shown = true;
            thread->group = first;
            count++;
        }
    }
    if (count > 1) {
        append_format(text, "%zu threads with the same stack:", count);
        for (size_t i = first; i < look->thread_count; i++) {
            if (look->threads[i].shown && look->threads[i].group == first) {
                const struct slice name = look->threads[i].name.utf8;
                append_string(text, i == first ? " " : ", ");
                append_bytes(text, name.bytes == NULL ? "?" : name.bytes,
                             name.bytes == NULL ? 1 : name.length);
            }
        }
        append_string(text, "\n");
    }
    return true;
}

/* How stacks are written: the dump, or JSON. */
struct form {
    void (*begin)(struct text *text);
    /* What comes before the frames of a thread. Returns false when it was shown with another. */
    bool (*begin_thread)(struct text *text, struct look *look, size_t index);
    void (*separate_frames)(struct text *text);
    void (*append_frame)(struct text *text, const struct shown_frame *frame);
    const char *thread_end;
    const char *end;
    void (*append_snapshot)(struct text *text);
};

static struct shown_frame
show_frame(const struct look *look, size_t frame)
{
    const struct spot *spot = &look->spots[look->frames[frame].spot];
    return (struct shown_frame){
        .path = spot->path.utf8,
        .function = spot->function.utf8,
        .line = spot->line,
        .source = source_line(&look->sources.files[spot->source], spot->line),
    };
}

/* Appends all stacks of a look that is described, whose sources are found. A spot is copied from
 * where it is in the text already: threads of one kind share most of theirs. */
DETACHED static void
append_look(struct text *text, const struct form *form, struct look *look)
{
    form->begin(text);
    for (size_t i = 0; i < look->thread_count; i++) {
        const struct thread_record *thread = &look->threads[i];
        if (!form->begin_thread(text, look, i)) {
            continue;
        }
        for (size_t j = thread->first + thread->count; j > thread->first; j--) {
            struct spot *spot = &look->spots[look->frames[j - 1].spot];
            form->separate_frames(text);
            if (spot->length > 0) {
                append_again(text, spot->start, spot->length);
            }
            else {
                const struct shown_frame frame = show_frame(look, j - 1);
                spot->start = text->length;
                form->append_frame(text, &frame);
                spot->length = text->length - spot->start;
            }
        }
        append_string(text, form->thread_end);
    }
    append_string(text, form->end);
}

/* Appends all stacks and stays detached: what follows needs the GIL no more. Where there is none
 * the frames of the others run on while one walks them: a frozen copy is looked at instead. Returns
 * what to reattach(). Where the text has failed there is an exception, or there was no memory for
 * it. free_look() either way. */
DETACHES static PyThreadState *
detach_with_stacks(struct text *text, const struct form *form, struct look *look)
{
    PyThreadState *tstate = NULL;
    if (HAS_GIL && look_around(look) < 0) {
        text->failed = true;
        return detach();
    }
    tstate = detach_with_sources(look);
    if (HAS_GIL) {
        append_look(text, form, look);
    }
    else {
        form->append_snapshot(text);
    }
    return tstate;
}

/* The same for who stays attached. Returns 0, or -1 with an exception. */
ATTACHED static int
append_stacks(struct text *text, const struct form *form)
{
    struct look look = {.frame_count = 0};
    reattach(detach_with_stacks(text, form, &look));
    free_look(&look);
    if (text->failed && !PyErr_Occurred()) {
        PyErr_NoMemory();
    }
    return text->failed ? -1 : 0;
}

static void
append_nothing(struct text *text)
{
    (void)text;
}

/* python-manhole's form to the letter. */
static const struct form dump_form = {
    .begin = append_nothing, /* each header brings the line before it */
    .begin_thread = append_headers,
    .separate_frames = append_nothing,
    .append_frame = append_shown_frame,
    .thread_end = "",
    .end = "#############################################\n\n\n",
    .append_snapshot = append_snapshot,
};

/* The stacks of single threads, of one look at all of them. */
struct stacks {
    struct look look;
    struct examination examination; /* without a GIL; with one it stays empty */
};

/* Returns 0, or -1 with an exception; close_stacks() either way. */
ATTACHED static int
open_stacks(struct stacks *stacks)
{
    if (!HAS_GIL) {
        PyThreadState *tstate = detach();
        examine_copy(&stacks->examination);
        reattach(tstate);
        return 0;
    }
    return look_at_threads(&stacks->look);
}

ATTACHED static void
close_stacks(struct stacks *stacks)
{
    free_look(&stacks->look);
    if (!HAS_GIL) {
        PyThreadState *tstate = detach();
        free_examination(&stacks->examination);
        reattach(tstate);
    }
}

DETACHED static void
append_copied_stack_of(struct text *text, const struct examination *examination,
                       unsigned long ident)
{
    struct sources sources = {0};
    append_copy_note(text, examination);
    for (size_t i = 0; i < examination->copied.count; i++) {
        const struct copied_thread *thread = &examination->copied.threads[i];
        struct slice lines[MAX_COPIED_FRAMES];
        size_t count = thread->ident == ident ? split_frames(thread, lines) : 0;
        while (count > 0) {
            append_copied_frame(text, lines[--count], &sources);
        }
    }
    free_sources(&sources);
}

/* Appends frames of the look, outermost first. Returns 0, or -1 with an exception. */
ATTACHED static int
append_frames(struct text *text, struct look *look, size_t first, size_t count)
{
    if (describe_frames(look, first, count) < 0) {
        return -1;
    }
    reattach(detach_with_sources(look));
    for (; count > 0; count--) {
        const struct shown_frame frame = show_frame(look, first + count - 1);
        append_shown_frame(text, &frame);
    }
    return 0;
}

/* Appends the stack of one thread, outermost frame first; nothing for one that is not there.
 * Returns 0, or -1 with an exception. */
ATTACHED static int
append_stack_of(struct text *text, struct stacks *stacks, unsigned long ident)
{
    int result = 0;
    if (!HAS_GIL) {
        PyThreadState *tstate = detach();
        append_copied_stack_of(text, &stacks->examination, ident);
        reattach(tstate);
        return 0;
    }
    for (size_t i = 0; result == 0 && i < stacks->look.thread_count; i++) {
        const struct thread_record *thread = &stacks->look.threads[i];
        if (thread->ident == ident) {
            result = append_frames(text, &stacks->look, thread->first, thread->count);
        }
    }
    return result;
}

/* Appends the stack that ends with this frame, which stands still: a greenlet's, say. Returns 0, or
 * -1 with an exception. */
ATTACHED static int
append_stack_from(struct text *text, struct stacks *stacks, PyObject *frame)
{
    const size_t first = stacks->look.frame_count;
    if (record_stack(&stacks->look, frame) < 0) {
        return -1;
    }
    return append_frames(text, &stacks->look, first, stacks->look.frame_count - first);
}

/* The same as a new str, or NULL with an exception. */
ATTACHED static PyObject *
make_dump(void)
{
    struct text dump = {0};
    PyObject *text = NULL; /* new, handed to the caller */
    if (append_stacks(&dump, &dump_form) == 0) {
        text =
            PyUnicode_DecodeUTF8(dump.bytes, (Py_ssize_t)dump.length, "backslashreplace");
    }
    free_text(&dump);
    return text;
}

/* ======================================================================================
 * JSON: the same stacks for programs. {"pid", "python", "source", "threads": [{"id", "native_id",
 * "name", "state", "holds_gil", "daemon", "frames": [{"file", "line", "function", "source"}]}]},
 * null for what is not known, frames outermost first; a "note" where a frozen copy is not whole, an
 * "error" where there are no stacks at all.
 * Runs on:  sessions, ATTACHED, for the look; helpers, DETACHED, for the frozen copy.
 * Touches:  nothing but frames, source files and the file's own structs.
 * ====================================================================================== */

/* The length of the UTF-8 character that the bytes begin with, 0: they begin with none. */
static size_t
utf8_size(struct slice bytes)
{
    unsigned char first = (unsigned char)bytes.bytes[0];
    unsigned char second = bytes.length > 1 ? (unsigned char)bytes.bytes[1] : 0;
    size_t size = first < 0x80   ? 1
                  : first < 0xC2 ? 0
                  : first < 0xE0 ? 2
                  : first < 0xF0 ? 3
                                 : 4;
    bool too_long = (first == 0xE0 && second < 0xA0) || (first == 0xF0 && second < 0x90);
    bool surrogate = first == 0xED && second > 0x9F;
    bool too_large = first > 0xF4 || (first == 0xF4 && second > 0x8F);
    if (size > bytes.length || too_long || surrogate || too_large) {
        return 0;
    }
    for (size_t i = 1; i < size; i++) {
        if (((unsigned char)bytes.bytes[i] & 0xC0) != 0x80) {
            return 0;
        }
    }
    return size;
}

/* Appends a string. A byte that is no UTF-8 becomes U+FFFD. */
static void
append_json_string(struct text *text, struct slice string)
{
    append_string(text, "\"");
    while (string.length > 0) {
        unsigned char first = (unsigned char)string.bytes[0];
        size_t size = utf8_size(string);
        if (size == 0) {
            append_string(text, "\\ufffd");
            size = 1;
        }
        else if (first == '"' || first == '\\') {
            append_format(text, "\\%c", first);
        }
        else if (first < ' ' || first == 0x7F) {
            append_format(text, "\\u%04x", first);
        }
        else {
            append_bytes(text, string.bytes, size);
        }
        string.bytes += size;
        string.length -= size;
    }
    append_string(text, "\"");
}

/* The same, for what a text has gathered. */
static void
append_json_text(struct text *text, const struct text *string)
{
    append_json_string(text, (struct slice){string->bytes, string->length});
    text->failed = text->failed || string->failed;
}

/* Before each element: a comma behind another one. */
static void
append_json_comma(struct text *text)
{
    if (text->length > 0 && strchr("[{", text->bytes[text->length - 1]) == NULL) {
        append_string(text, ",");
    }
    append_string(text, "\n");
}

/* 0 is not known. */
static void
append_json_id(struct text *text, const char *key, unsigned long id)
{
    if (id == 0) {
        append_format(text, "\"%s\": null", key);
    }
    else {
        append_format(text, "\"%s\": %lu", key, id);
    }
}

static void
append_json_answer(struct text *text, const char *key, enum answer answer)
{
    static const char *const words[] = {"false", "true", "null"};
    append_format(text, "\"%s\": %s", key, words[answer]);
}

/* Up to the threads. source: a literal. */
static void
begin_json(struct text *text, const char *source)
{
    const char *version = Py_GetVersion();
    append_format(text, "{\"pid\": %ld, \"python\": ", (long)getpid());
    append_json_string(text, (struct slice){version, strcspn(version, " ")});
    append_format(text, ", \"source\": \"%s\", \"threads\": [", source);
}

/* What is known of a thread but its frames. */
struct thread_view {
    unsigned long ident;
    unsigned long native_id; /* 0: not known */
    enum answer holds_gil;
    enum answer daemon;
    struct slice name; /* its bytes NULL: not known */
};

/* Up to the frames. */
static void
begin_json_thread(struct text *text, const struct thread_view *view)
{
    const char *state = view->native_id == 0 ? NULL : read_state(view->native_id);
    append_json_comma(text);
    append_string(text, "{");
    append_json_id(text, "id", view->ident);
    append_string(text, ", ");
    append_json_id(text, "native_id", view->native_id);
    append_string(text, ", \"state\": ");
    if (state == NULL) {
        append_string(text, "null");
    }
    else {
        append_json_string(text, (struct slice){state, strlen(state)});
    }
    append_string(text, ", ");
    append_json_answer(text, "holds_gil", view->holds_gil);
    append_string(text, ", ");
    append_json_answer(text, "daemon", view->daemon);
    append_string(text, ", \"name\": ");
    if (view->name.bytes == NULL) {
        append_string(text, "null");
    }
    else {
        append_json_string(text, view->name);
    }
    append_string(text, ", \"frames\": [");
}

static void
append_json_frame(struct text *text, const struct shown_frame *frame)
{
    append_string(text, "{\"file\": ");
    append_json_string(text, frame->path);
    append_format(text, ", \"line\": %ld, \"function\": ", frame->line);
    append_json_string(text, frame->function);
    append_string(text, ", \"source\": ");
    if (frame->source.length > 0) {
        append_json_string(text, frame->source);
    }
    else {
        append_string(text, "null");
    }
    append_string(text, "}");
}

/* One thread of a frozen copy. */
DETACHED static void
append_json_copied_thread(struct text *text, const struct copied_thread *thread,
                          struct sources *sources)
{
    const struct thread_note *note = &thread->note;
    const struct thread_view view = {
        .ident = thread->ident,
        .native_id = note->native_id,
        .holds_gil = !HAS_GIL          ? ANSWER_UNKNOWN
                     : note->holds_gil ? ANSWER_YES
                                       : ANSWER_NO,
        .daemon = ANSWER_UNKNOWN,
        .name = {note->name.length == 0 ? NULL : note->name.bytes, note->name.length},
    };
    struct slice lines[MAX_COPIED_FRAMES];
    size_t count = split_frames(thread, lines);
    begin_json_thread(text, &view);
    while (count > 0) {
        struct copied_frame frame = {.shown.line = 0};
        if (!read_copied_frame(&frame, lines[--count], sources)) {
            continue;
        }
        append_json_comma(text);
        append_json_frame(text, &frame.shown);
        free_copied_frame(&frame);
    }
    append_string(text, "]}");
}

/* Appends the whole document of a process whose interpreter does not answer. */
DETACHED static void
append_json_snapshot(struct text *text)
{
    struct examination examination = {.error = 0};
    struct sources sources = {0};
    struct text note = {0};
    examine_copy(&examination);
    begin_json(text, "frozen copy");
    for (size_t i = 0; i < examination.copied.count; i++) {
        if (is_copied_stack(&examination.copied.threads[i])) {
            append_json_copied_thread(text, &examination.copied.threads[i], &sources);
        }
    }
    append_string(text, "]");
    append_lone_copy_note(&note, &examination);
    if (note.length > 0) {
        append_string(text, ", \"note\": ");
        append_json_text(text, &note);
    }
    append_string(text, "}\n");
    free_sources(&sources);
    free_text(&note);
    free_examination(&examination);
}

/* One thread of the look, up to its frames. The looker itself has the GIL while it looks. */
static bool
append_json_thread(struct text *text, struct look *look, size_t index)
{
    const struct thread_record *thread = &look->threads[index];
    begin_json_thread(text, &(struct thread_view){.ident = thread->ident,
                                                  .native_id = thread->native_id,
                                                  .daemon = thread->daemon,
                                                  .name = thread->name.utf8});
    return true;
}

static void
begin_json_look(struct text *text)
{
    begin_json(text, "attached");
}

static const struct form json_form = {
    .begin = begin_json_look,
    .begin_thread = append_json_thread,
    .separate_frames = append_json_comma,
    .append_frame = append_json_frame,
    .thread_end = "]}",
    .end = "]}\n",
    .append_snapshot = append_json_snapshot,
};

/* ======================================================================================
 * Output: bytes on their way to a client.
 * Runs on:  the session's thread sends its own and waits for its client, or leaves it where a
 *           statement prints much; application threads leave copies of what they print and never
 *           wait; the listener carries what is left.
 * Touches:  the output fields of struct session. Whoever has set sending sends, nobody else.
 * ====================================================================================== */

/* Room left in the ring. Under out_lock. */
static size_t
ring_room(const struct session *session)
{
    return COPIES_SIZE - (session->tail - session->head);
}

/* Under out_lock, and there is room. */
static void
fill_ring(struct session *session, const char *bytes, size_t length)
{
    size_t start = session->tail % COPIES_SIZE;
    size_t first = length < COPIES_SIZE - start ? length : COPIES_SIZE - start;
    memcpy(session->copies + start, bytes, first);
    memcpy(session->copies, bytes + first, length - first);
    session->tail += length;
}

/* The longest prefix of at most room bytes that does not cut a UTF-8 character. */
static size_t
utf8_prefix(const char *bytes, size_t length, size_t room)
{
    size_t prefix = length < room ? length : room;
    if (prefix < length) {
        while (prefix > 0 && ((unsigned char)bytes[prefix] & 0xC0) == 0x80) {
            prefix--;
        }
    }
    return prefix;
}

/* Counts what a client misses that misses something already, as it does of a stalled one's every
 * line: without the lock, for print() waits for this. Returns whether that was so. */
static bool
add_to_missed(struct session *session, size_t length)
{
    size_t missed = atomic_load(&session->missed);
    while (missed > 0 && atomic_load(&session->copies) != NULL) {
        if (atomic_compare_exchange_weak(&session->missed, &missed, missed + length)) {
            return true;
        }
    }
    return false;
}

/* Leaves a copy for one client. What does not fit is counted, and so is all that follows
 * until the ring has been emptied and the note about it put in: no torn lines in between. */
static void
keep_copy(struct session *session, const char *bytes, size_t length)
{
    bool wake = false;
    if (add_to_missed(session, length)) {
        return;
    }
    lock_leaf(&session->out_lock);
    if (!atomic_load(&session->viewing)) {
        goto done;
    }
    if (session->copies == NULL) {
        session->copies = malloc(COPIES_SIZE);
    }
    if (session->copies == NULL || session->missed > 0) {
        atomic_fetch_add(&session->missed, length);
    }
    else {
        size_t kept = utf8_prefix(bytes, length, ring_room(session));
        wake = !session->sending && session->head == session->tail;
        fill_ring(session, bytes, kept);
        session->missed = length - kept;
    }
done:
    unlock(&session->out_lock);
    if (wake) {
        ring_bell(&manhole.wake_bell);
    }
}

/* From now on the client has copies of what the application prints. One caller at a time. */
static void
begin_viewing(struct session *session)
{
    const size_t end = (size_t)(session - manhole.sessions) + 1;
    if (atomic_load(&manhole.viewers_end) < end) {
        atomic_store(&manhole.viewers_end, end);
    }
    atomic_store(&session->viewing, true);
    atomic_fetch_add(&manhole.viewers, 1);
}

static void
end_viewing(struct session *session)
{
    atomic_store(&session->viewing, false);
    atomic_fetch_sub(&manhole.viewers, 1);
}

/* Leaves a copy for every client that has a console. In a child that has not forgotten its parent
 * yet a thread that is gone may hold their locks. */
static void
keep_copies(const char *bytes, size_t length)
{
    size_t end = is_owner() ? atomic_load(&manhole.viewers_end) : 0;
    for (size_t i = 0; i < end; i++) {
        if (atomic_load(&manhole.sessions[i].viewing)) {
            keep_copy(&manhole.sessions[i], bytes, length);
        }
    }
}

/* The next piece of the ring in one stretch; puts the note about what was missed in when
 * the ring is empty. Returns its length, 0: nothing waits. Under out_lock. */
static size_t
next_copies(struct session *session, const char **piece)
{
    size_t start = 0;
    size_t waiting = 0;
    if (session->head == session->tail && session->missed > 0 &&
        session->copies != NULL) {
        char note[80];
        int length = snprintf(note, sizeof(note), "\n[manhole: %zu bytes not shown]\n",
                              atomic_exchange(&session->missed, 0));
        fill_ring(session, note, (size_t)length);
    }
    start = session->head % COPIES_SIZE;
    waiting = session->tail - session->head;
    *piece = session->copies == NULL ? NULL : session->copies + start;
    return waiting < COPIES_SIZE - start ? waiting : COPIES_SIZE - start;
}

/* As send(), and waits for a client that does not read, also where somebody has set O_NONBLOCK on
 * the shared socket, unless flags have MSG_DONTWAIT. */
DETACHED static ssize_t
send_patiently(struct session *session, const char *bytes, size_t length, int flags)
{
    struct pollfd client = {.fd = atomic_load(&session->fd.number), .events = POLLOUT};
    ssize_t sent = -1;
    do {
        sent = send(kept_number(&session->fd), bytes, length, flags | MSG_NOSIGNAL);
    } while (sent < 0 && errno == EAGAIN && (flags & MSG_DONTWAIT) == 0 &&
             poll(&client, 1, -1) >= 0);
    return sent;
}

/* Sends what waits. The caller has set sending. flags: MSG_DONTWAIT or 0. Returns 0 when
 * nothing waits any more, else an errno value (EAGAIN: the client does not read just
 * now). */
DETACHED static int
send_copies(struct session *session, int flags)
{
    for (;;) {
        const char *piece = NULL;
        size_t length = 0;
        ssize_t sent = 0;
        lock_leaf(&session->out_lock);
        length = next_copies(session, &piece);
        unlock(&session->out_lock);
        if (length == 0) {
            return 0;
        }
        sent = send_patiently(session, piece, length, flags);
        if (sent < 0) {
            return errno;
        }
        lock_leaf(&session->out_lock);
        session->head += (size_t)sent;
        unlock(&session->out_lock);
    }
}

/* Copies that a session's own sending has left behind, or that a stalled client has: the
 * listener's to carry. */
static bool
has_copies(struct session *session)
{
    bool waiting = false;
    lock_leaf(&session->out_lock);
    waiting = !session->sending && atomic_load(&session->viewing) &&
              (session->head != session->tail ||
               (session->missed > 0 && session->copies != NULL));
    unlock(&session->out_lock);
    return waiting;
}

/* The listener's part: sends what the client takes without waiting for it. */
DETACHED static void
carry_copies(struct session *session)
{
    int error = 0;
    lock_leaf(&session->out_lock);
    if (session->sending || !atomic_load(&session->viewing)) {
        unlock(&session->out_lock);
        return;
    }
    session->sending = true;
    unlock(&session->out_lock);
    error = send_copies(session, MSG_DONTWAIT);
    lock_leaf(&session->out_lock);
    if (error == ENOBUFS || error == ENOMEM) {
        session->missed += session->tail - session->head;
        session->head = session->tail;
    }
    else if (error != 0 && error != EAGAIN && error != EINTR) {
        session->head = session->tail; /* gone: its own thread finds out */
        session->refused = true;
        session->missed = 0;
    }
    session->sending = false;
    (void)pthread_cond_broadcast(&session->out_free);
    unlock(&session->out_lock);
}

DETACHED static void
begin_sending(struct session *session)
{
    lock_leaf(&session->out_lock);
    while (session->sending) {
        (void)pthread_cond_wait(&session->out_free, &session->out_lock);
    }
    session->sending = true;
    unlock(&session->out_lock);
}

DETACHED static void
end_sending(struct session *session)
{
    bool left = false;
    lock_leaf(&session->out_lock);
    session->sending = false;
    left = session->head != session->tail || session->missed > 0;
    (void)pthread_cond_broadcast(&session->out_free);
    unlock(&session->out_lock);
    if (left) {
        ring_bell(&manhole.wake_bell);
    }
}

/* Sends a session's own bytes, after the copies that came before them. Advances *bytes
 * and *length by what was sent. Returns 0, or an errno value; EINTR may come with half of
 * it sent. */
DETACHED static int
send_own(struct session *session, const char **bytes, size_t *length)
{
    int error = send_copies(session, 0);
    while (error == 0 && *length > 0) {
        ssize_t sent = send_patiently(session, *bytes, *length, 0);
        if (sent < 0) {
            error = errno;
        }
        else {
            *bytes += sent;
            *length -= (size_t)sent;
        }
    }
    return error;
}

/* Sends to the session's client, in the session's thread, waiting for it as long as it takes.
 * Advances *bytes and *length by what was sent. Returns 0, or an errno value. */
DETACHED static int
send_detached(struct session *session, const char **bytes, size_t *length)
{
    int error = 0;
    begin_sending(session);
    error = send_own(session, bytes, length);
    end_sending(session);
    return error;
}

/* What send_detached() has come to; sends the rest behind a signal. Returns 0, or -1 with an
 * exception: ConnectionError when the client is gone. */
ATTACHED static int
conclude_sending(struct session *session, int error, const char *bytes, size_t length)
{
    while (error == EINTR) {
        PyThreadState *tstate = NULL;
        if (PyErr_CheckSignals() < 0) {
            return -1;
        }
        tstate = detach();
        error = send_detached(session, &bytes, &length);
        reattach(tstate);
    }
    if (error != 0) {
        errno = error;
        PyErr_SetFromErrno(PyExc_OSError);
        return -1;
    }
    return 0;
}

ATTACHED static int
send_client(struct session *session, const char *bytes, size_t length)
{
    PyThreadState *tstate = detach();
    int error = send_detached(session, &bytes, &length);
    reattach(tstate);
    return conclude_sending(session, error, bytes, length);
}

/* Leaves a session's own bytes among the copies, in their order, for the listener to send: a
 * statement that prints much would otherwise let go of the GIL with each piece. What it prints
 * first is sent at once; so is all where no listener watches, the client is slow, or gone. Returns
 * whether they are left. */
ATTACHED static bool
leave_to_listener(struct session *session, const char *bytes, size_t length)
{
    bool left = false;
    bool wake = false;
    if (session->writes < FLOOD_BEGINS) {
        session->writes++;
        return false;
    }
    lock_leaf(&session->out_lock);
    if (session->copies == NULL) {
        session->copies = malloc(COPIES_SIZE);
    }
    left = session->copies != NULL && session->asked_ms != 0 && !session->guarded &&
           !session->refused && atomic_load(&session->viewing) && session->missed == 0 &&
           length <= MAX_LEFT && session->tail - session->head <= MAX_LEFT - length;
    if (left) {
        wake = !session->sending && session->head == session->tail;
        fill_ring(session, bytes, length);
        session->left_end = session->tail;
    }
    unlock(&session->out_lock);
    if (wake) {
        ring_bell(&manhole.wake_bell);
    }
    return left;
}

/* Whether there was memory for what has been appended. Returns 0, or -1 with an exception. */
ATTACHED static int
check_unsent(struct session *session)
{
    if (session->unsent.failed) {
        free_text(&session->unsent);
        PyErr_NoMemory();
        return -1;
    }
    return 0;
}

/* Sends what waits until the session reads, in its thread. Returns 0, or an errno value; with EINTR
 * the rest still waits. */
DETACHED static int
send_unsent_detached(struct session *session)
{
    const char *rest = session->unsent.bytes;
    size_t length = session->unsent.length;
    int error = length == 0 ? 0 : send_detached(session, &rest, &length);
    if (error == EINTR) {
        memmove(session->unsent.bytes, rest, length);
        session->unsent.length = length;
    }
    else {
        free_text(&session->unsent);
    }
    return error;
}

/* The same for who writes, or has read what was there already. Returns 0, or -1 with an
 * exception. */
ATTACHED static int
send_unsent(struct session *session)
{
    struct text unsent = session->unsent;
    int result = 0;
    if (unsent.length > 0) {
        session->unsent = (struct text){0};
        result = send_client(session, unsent.bytes, unsent.length);
        free_text(&unsent);
    }
    return result;
}

/* Sends what was left to the listener and waits still, before the session hangs up. Never
 * raises. */
ATTACHED static void
send_left(struct session *session)
{
    bool waits = false;
    lock_leaf(&session->out_lock);
    waits = session->head < session->left_end;
    unlock(&session->out_lock);
    if (send_unsent(session) < 0 || (waits && send_client(session, "", 0) < 0)) {
        PyErr_Clear();
    }
}

/* The kinds of frames. */
enum frame_kind {
    FRAME_OUTPUT = 'o',
    FRAME_ERROR = 'e',
    FRAME_STATUS = 'x',
    FRAME_WANTS_INPUT = 'i', /* empty: the client may send what its standard input has */
};

/* As send_client(), as frames where the client has asked for them: a kind, the length as four
 * bytes, the high one first, and as many bytes. */
ATTACHED static int
write_as(struct session *session, enum frame_kind kind, const char *bytes, size_t length)
{
    if (!session->wish->framed) {
        if (send_unsent(session) < 0) {
            return -1;
        }
        return leave_to_listener(session, bytes, length)
                   ? 0
                   : send_client(session, bytes, length);
    }
    while (length > 0) {
        size_t size = length < MAX_FRAME ? length : MAX_FRAME;
        char frame[5 + MAX_FRAME];
        const char head[5] = {(char)kind, (char)(size >> 24), (char)(size >> 16),
                              (char)(size >> 8), (char)size};
        memcpy(frame, head, sizeof(head));
        memcpy(frame + sizeof(head), bytes, size);
        if (send_client(session, frame, sizeof(head) + size) < 0) {
            return -1;
        }
        bytes += size;
        length -= size;
    }
    return 0;
}

/* Lets the client of a program know that its input is wanted, once. */
ATTACHED static void
ask_for_input(struct session *session)
{
    static const char head[5] = {FRAME_WANTS_INPUT};
    if (session->wish->framed && !session->asked_for_input) {
        session->asked_for_input = true;
        if (send_client(session, head, sizeof(head)) < 0) {
            PyErr_Clear();
            /* The input is at its end, also where the client is still there and waits. */
            (void)shutdown(kept_number(&session->fd), SHUT_RD);
        }
    }
}

/* As write_as(), for a str. */
ATTACHED static int
write_str_as(struct session *session, enum frame_kind kind, PyObject *str)
{
    struct text text = {0};
    Py_ssize_t length = 0;
    const char *bytes = PyUnicode_AsUTF8AndSize(str, &length);
    int result = -1;
    if (bytes != NULL) {
        return write_as(session, kind, bytes, (size_t)length);
    }
    PyErr_Clear();
    append_str(&text, str);
    if (text.failed) {
        PyErr_NoMemory();
    }
    else {
        result = write_as(session, kind, text.bytes, text.length);
    }
    free_text(&text);
    return result;
}

/* Writes to the session's client what is no error. */
ATTACHED static int
write_client(struct session *session, const char *bytes, size_t length)
{
    return write_as(session, FRAME_OUTPUT, bytes, length);
}

ATTACHED static int
write_client_str(struct session *session, PyObject *str)
{
    return write_str_as(session, FRAME_OUTPUT, str);
}

/* ======================================================================================
 * Streams: the objects that stand in sys while a client has a console.
 * Runs on:  every thread that prints or reads, ATTACHED.
 * Touches:  sys, through borrow_attribute(); a client's output.
 * In a session's thread a stream is that client's. In any other it is the original in all but
 * write() and writelines(), which also leave a copy for the clients; so an old reference to one
 * of ours serves its owner for ever.
 * ====================================================================================== */

struct stream {
    PyObject_HEAD PyObject *original; /* owned: what stood in sys before, None too */
    PyObject *write_name;             /* owned, interned "write" */
    PyObject *write;           /* owned: this attribute, ready for print(); or NULL */
    const char *name;          /* of the attribute of sys */
    PyObject *weak_references; /* CPython's own */
    bool is_input;
    bool is_error;
};

/* The session whose client the calling thread's streams belong to, or NULL. */
static struct session *
console_session(void)
{
    return current_session != NULL && current_session->has_console ? current_session
                                                                   : NULL;
}

/* Whether the session wants sys.stderr: a program's errors are always its client's. */
static bool
wants_stderr(const struct session *session)
{
    return session->wish->framed || manhole.options.redirect_stderr;
}

/* The session whose client this stream is in the calling thread, or NULL: the original is. */
static struct session *
stream_session(const struct stream *stream)
{
    struct session *session = console_session();
    return session != NULL && stream->is_error && !wants_stderr(session) ? NULL : session;
}

ATTACHED static int
stream_traverse(PyObject *self, visitproc visit, void *arg)
{
    Py_VISIT(Py_TYPE(self));
    Py_VISIT(((struct stream *)self)->original);
    Py_VISIT(((struct stream *)self)->write);
    return 0;
}

/* What has a cycle with it may still write to it: that goes nowhere then. */
ATTACHED static int
stream_clear(PyObject *self)
{
    Py_CLEAR(((struct stream *)self)->write); /* which refers to self */
    Py_XSETREF(((struct stream *)self)->original, Py_NewRef(Py_None));
    return 0;
}

ATTACHED static void
stream_dealloc(PyObject *self)
{
    PyTypeObject *type = Py_TYPE(self);
    PyObject_GC_UnTrack(self);
    if (((struct stream *)self)->weak_references != NULL) {
        PyObject_ClearWeakRefs(self);
    }
    (void)stream_clear(self);
    Py_XDECREF(((struct stream *)self)->original);
    Py_XDECREF(((struct stream *)self)->write_name);
    type->tp_free(self);
    Py_DECREF(type);
}

ATTACHED static PyObject *
stream_repr(PyObject *self)
{
    struct stream *stream = (struct stream *)self;
    return PyUnicode_FromFormat("<manhole.Stream %s of %R>", stream->name,
                                stream->original);
}

/* Whose attributes the stream shows to the calling thread. Returns a borrowed reference;
 * self means the methods below. */
ATTACHED static PyObject *
stream_target(PyObject *self)
{
    struct stream *stream = (struct stream *)self;
    struct session *session = stream_session(stream);
    if (session != NULL) {
        if (stream->is_input) {
            ask_for_input(session);
        }
        if (!stream->is_input || session->input != NULL) {
            return stream->is_input ? session->input : self;
        }
    }
    return stream->original == Py_None && !stream->is_input ? self : stream->original;
}

ATTACHED static PyObject *
stream_getattro(PyObject *self, PyObject *name)
{
    struct stream *stream = (struct stream *)self;
    PyObject *target = NULL; /* borrowed */
    if (name == stream->write_name && stream->write != NULL) {
        return Py_NewRef(stream->write);
    }
    target = stream_target(self);
    if (target == self) {
        return PyObject_GenericGetAttr(self, name);
    }
    if (!stream->is_input &&
        (PyUnicode_CompareWithASCIIString(name, "write") == 0 ||
         PyUnicode_CompareWithASCIIString(name, "writelines") == 0)) {
        return PyObject_GenericGetAttr(self, name);
    }
    return PyObject_GetAttr(target, name);
}

ATTACHED static int
stream_setattro(PyObject *self, PyObject *name, PyObject *value)
{
    PyObject *target = stream_target(self);
    return target == self ? PyObject_GenericSetAttr(self, name, value)
                          : PyObject_SetAttr(target, name, value);
}

ATTACHED static PyObject *
stream_iter(PyObject *self)
{
    PyObject *target = stream_target(self);
    if (target == self) {
        PyErr_SetString(PyExc_OSError, "not readable");
        return NULL;
    }
    return PyObject_GetIter(target);
}

/* next(sys.stdin) */
ATTACHED static PyObject *
stream_iternext(PyObject *self)
{
    PyObject *target = stream_target(self);
    if (target == self) {
        PyErr_SetString(PyExc_OSError, "not readable");
        return NULL;
    }
    if (!PyIter_Check(target)) {
        PyErr_Format(PyExc_TypeError, "'%s' object is not an iterator",
                     Py_TYPE(target)->tp_name);
        return NULL;
    }
    return PyIter_Next(target); /* NULL without an exception at the end */
}

/* with sys.stdout: as the original does it; a session's client stays open. */
ATTACHED static PyObject *
stream_enter(PyObject *self, PyObject *unused)
{
    PyObject *target = stream_target(self);
    PyObject *entered = NULL; /* owned */
    (void)unused;
    if (target != self) {
        entered = PyObject_CallMethod(target, "__enter__", NULL);
        if (entered == NULL) {
            return NULL;
        }
        Py_DECREF(entered);
    }
    return Py_NewRef(self);
}

ATTACHED static PyObject *
stream_exit(PyObject *self, PyObject *arguments)
{
    PyObject *target = stream_target(self);
    PyObject *method = NULL; /* owned */
    PyObject *result = NULL; /* new, handed to the caller */
    if (target == self) {
        return Py_NewRef(Py_None);
    }
    method = PyObject_GetAttrString(target, "__exit__");
    if (method != NULL) {
        result = PyObject_CallObject(method, arguments);
        Py_DECREF(method);
    }
    return result;
}

/* Bytes too, in a session: sys.stdout.buffer is the stream itself there. */
ATTACHED static PyObject *
write_to_session(struct session *session, enum frame_kind kind, PyObject *data)
{
    Py_ssize_t length = 0;
    int result = -1;
    if (PyUnicode_Check(data)) {
        length = PyUnicode_GetLength(data);
        result = write_str_as(session, kind, data);
    }
    else {
        Py_buffer view;
        if (PyObject_GetBuffer(data, &view, PyBUF_SIMPLE) < 0) {
            return NULL;
        }
        length = view.len;
        result = write_as(session, kind, view.buf, (size_t)view.len);
        PyBuffer_Release(&view);
    }
    return result < 0 ? NULL : PyLong_FromSsize_t(length);
}

/* Leaves a copy of what an application thread has printed: a str, or the bytes that a wrapper of a
 * session's buffer has made of it. Never raises. */
ATTACHED static void
copy_to_clients(PyObject *str)
{
    Py_ssize_t length = 0;
    const char *bytes = NULL;
    if (PyBytes_Check(str)) {
        keep_copies(PyBytes_AS_STRING(str), (size_t)PyBytes_GET_SIZE(str));
    }
    if (!PyUnicode_Check(str)) {
        return;
    }
    bytes = PyUnicode_AsUTF8AndSize(str, &length);
    if (bytes != NULL) {
        keep_copies(bytes, (size_t)length);
    }
    else {
        struct text text = {0};
        PyErr_Clear();
        append_str(&text, str);
        if (text.length > 0) {
            keep_copies(text.bytes, text.length);
        }
        free_text(&text);
    }
}

/* Whether the application has put a write() of its own into the object. */
ATTACHED static bool
has_own_write(const struct stream *stream)
{
    PyObject *names = PyObject_GetAttrString(stream->original, "__dict__"); /* owned */
    bool own = names != NULL && PyMapping_HasKey(names, stream->write_name);
    PyErr_Clear();
    Py_XDECREF(names);
    return own;
}

/* The stream that the calling thread writes to the original of, or NULL. */
static _Thread_local const struct stream *passing_on;

/* Writes where it went without us. Returns what that does. */
ATTACHED static PyObject *
write_to_original(struct stream *stream, PyObject *data)
{
    const struct stream *outer = passing_on;
    PyObject *target = Py_NewRef(stream->original); /* owned */
    PyObject *method = NULL;                        /* owned */
    PyObject *result = NULL;                        /* new, handed to the caller */
    if (PyObject_CheckBuffer(
            data)) { /* a session's sys.stdout.buffer is the stream itself */
        PyObject *buffer = PyObject_GetAttrString(target, "buffer"); /* owned */
        if (buffer != NULL) {
            Py_SETREF(target, buffer);
        }
        PyErr_Clear();
    }
    else if (outer == stream && has_own_write(stream)) {
        /* It calls the one that it has replaced, which is ours: the type's does what that did. */
        method = PyObject_GetAttr((PyObject *)Py_TYPE(target), stream->write_name);
        result = method == NULL
                     ? NULL
                     : PyObject_CallFunctionObjArgs(method, target, data, NULL);
        goto done;
    }
    passing_on = stream;
    result = PyObject_CallMethodOneArg(target, stream->write_name, data);
    passing_on = outer;
done:
    Py_DECREF(target);
    Py_XDECREF(method);
    return result;
}

ATTACHED static PyObject *
stream_write(PyObject *self, PyObject *data)
{
    struct stream *stream = (struct stream *)self;
    struct session *session = stream_session(stream);
    PyObject *result = NULL;
    bool is_copied = false; /* by the call that this one is part of */
    if (session != NULL) {
        return write_to_session(session, stream->is_error ? FRAME_ERROR : FRAME_OUTPUT,
                                data);
    }
    if (stream->original == Py_None) {
        Py_ssize_t length = PyObject_Length(data);
        result = length < 0 ? NULL : PyLong_FromSsize_t(length);
    }
    else {
        is_copied =
            passing_on != NULL &&
            (!PyUnicode_Check(data) || (passing_on == stream && has_own_write(stream)));
        result = write_to_original(stream, data);
    }
    if (result != NULL && !is_copied && atomic_load(&manhole.viewers) > 0 &&
        !(stream->is_error && !manhole.options.redirect_stderr)) {
        copy_to_clients(data);
    }
    return result;
}

ATTACHED static PyObject *
stream_writelines(PyObject *self, PyObject *lines)
{
    PyObject *line = NULL;                        /* owned */
    PyObject *iterator = PyObject_GetIter(lines); /* owned */
    if (iterator == NULL) {
        return NULL;
    }
    while ((line = PyIter_Next(iterator)) != NULL) {
        PyObject *result = stream_write(self, line);
        Py_DECREF(line);
        if (result == NULL) {
            break;
        }
        Py_DECREF(result);
    }
    Py_DECREF(iterator);
    return PyErr_Occurred() ? NULL : Py_NewRef(Py_None);
}

/* For fileno(). Returns a new int, or NULL with OSError for -1: the descriptor is ours no more. */
ATTACHED static PyObject *
make_descriptor(int fd)
{
    if (fd < 0) {
        errno = EBADF;
        return PyErr_SetFromErrno(PyExc_OSError);
    }
    return PyLong_FromLong(fd);
}

/* Raises io.UnsupportedOperation, which callers of fileno() are prepared for. */
ATTACHED static void
refuse_fileno(const char *why)
{
    PyObject *io = PyImport_ImportModule("io"); /* owned */
    PyObject *type = io == NULL
                         ? NULL
                         : PyObject_GetAttrString(io, "UnsupportedOperation"); /* owned */
    if (type != NULL) {
        PyErr_SetString(type, why);
    }
    Py_XDECREF(io);
    Py_XDECREF(type);
}

/* The client's descriptor: subprocess.run(..., stdout=sys.stdout) shows at the client. Not where
 * stdout and stderr go in frames. */
ATTACHED static PyObject *
stream_fileno(PyObject *self, PyObject *unused)
{
    struct session *session = stream_session((struct stream *)self);
    (void)unused;
    if (session == NULL) {
        PyErr_SetString(PyExc_OSError,
                        "the original stream is None and has no descriptor");
        return NULL;
    }
    if (session->wish->framed) {
        refuse_fileno("what a program writes goes to its client in frames: there is no "
                      "descriptor for it");
        return NULL;
    }
    return make_descriptor(kept_number(&session->fd));
}

/* flush(), close(): every write has gone out by itself, and the client is not ours to
 * close. */
ATTACHED static PyObject *
stream_nothing(PyObject *self, PyObject *unused)
{
    (void)self;
    (void)unused;
    return Py_NewRef(Py_None);
}

/* isatty(), readable(), seekable() */
ATTACHED static PyObject *
stream_no(PyObject *self, PyObject *unused)
{
    (void)self;
    (void)unused;
    return Py_NewRef(Py_False);
}

ATTACHED static PyObject *
stream_writable(PyObject *self, PyObject *unused)
{
    (void)self;
    (void)unused;
    return Py_NewRef(Py_True);
}

/* A client has UTF-8, and all at once, whatever a program wishes. */
ATTACHED static PyObject *
stream_reconfigure(PyObject *self, PyObject *arguments, PyObject *keywords)
{
    (void)self;
    (void)arguments;
    (void)keywords;
    return Py_NewRef(Py_None);
}

static PyMethodDef stream_methods[] = {
    {"write", stream_write, METH_O, NULL},
    {"writelines", stream_writelines, METH_O, NULL},
    {"fileno", stream_fileno, METH_NOARGS, NULL},
    {"flush", stream_nothing, METH_NOARGS, NULL},
    {"close", stream_nothing, METH_NOARGS, NULL},
    {"reconfigure", (PyCFunction)(void (*)(void))stream_reconfigure,
     METH_VARARGS | METH_KEYWORDS, NULL},
    {"isatty", stream_no, METH_NOARGS, NULL},
    {"readable", stream_no, METH_NOARGS, NULL},
    {"seekable", stream_no, METH_NOARGS, NULL},
    {"writable", stream_writable, METH_NOARGS, NULL},
    {"__enter__", stream_enter, METH_NOARGS, NULL},
    {"__exit__", stream_exit, METH_VARARGS, NULL},
    {NULL, NULL, 0, NULL},
};

ATTACHED static PyObject *
stream_constant(PyObject *self, void *value)
{
    (void)self;
    return PyUnicode_FromString(value);
}

ATTACHED static PyObject *
stream_false(PyObject *self, void *unused)
{
    (void)self;
    (void)unused;
    return Py_NewRef(Py_False);
}

ATTACHED static PyObject *
stream_true(PyObject *self, void *unused)
{
    (void)self;
    (void)unused;
    return Py_NewRef(Py_True);
}

ATTACHED static PyObject *
stream_newlines(PyObject *self, void *unused)
{
    (void)self;
    (void)unused;
    return Py_NewRef(Py_None);
}

ATTACHED static PyObject *
stream_buffer(PyObject *self, void *unused)
{
    (void)unused;
    return Py_NewRef(self);
}

static char stream_encoding[] = "utf-8";
static char stream_errors[] = "backslashreplace";
static char stream_mode[] = "w";
static char stream_name[] = "<manhole>";

static PyGetSetDef stream_attributes[] = {
    {"encoding", stream_constant, NULL, NULL, stream_encoding},
    {"errors", stream_constant, NULL, NULL, stream_errors},
    {"mode", stream_constant, NULL, NULL, stream_mode},
    {"name", stream_constant, NULL, NULL, stream_name},
    {"closed", stream_false, NULL, NULL, NULL},
    {"line_buffering", stream_false, NULL, NULL, NULL},
    {"write_through", stream_true, NULL, NULL, NULL},
    {"newlines", stream_newlines, NULL, NULL, NULL},
    {"buffer", stream_buffer, NULL, NULL, NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

ATTACHED static PyObject *
refuse_new(PyTypeObject *type, PyObject *arguments, PyObject *keywords)
{
    (void)arguments;
    (void)keywords;
    PyErr_Format(PyExc_TypeError, "cannot create '%s' instances", type->tp_name);
    return NULL;
}

static PyMemberDef stream_members[] = {
    {"__weaklistoffset__", T_PYSSIZET, offsetof(struct stream, weak_references), READONLY,
     NULL},
    {NULL, 0, 0, 0, NULL},
};

static char stream_doc[] =
    "A std stream while a manhole client is connected.\n\n"
    "In the client's session it is the client; everywhere else it is the\n"
    "original stream, whose output the clients see a copy of.";

static PyType_Slot stream_slots[] = {
    {Py_tp_doc, stream_doc},           {Py_tp_new, refuse_new},
    {Py_tp_dealloc, stream_dealloc},   {Py_tp_traverse, stream_traverse},
    {Py_tp_clear, stream_clear},       {Py_tp_repr, stream_repr},
    {Py_tp_getattro, stream_getattro}, {Py_tp_setattro, stream_setattro},
    {Py_tp_iter, stream_iter},         {Py_tp_iternext, stream_iternext},
    {Py_tp_methods, stream_methods},   {Py_tp_getset, stream_attributes},
    {Py_tp_members, stream_members},   {0, NULL},
};

static PyType_Spec stream_spec = {
    .name = "manhole.Stream",
    .basicsize = sizeof(struct stream),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC,
    .slots = stream_slots,
};

static bool
is_input(const char *name)
{
    return strstr(name, "stdin") != NULL;
}

/* Returns a new stream, or NULL with an exception. name: a literal. */
ATTACHED static PyObject *
make_stream(const char *name, PyObject *original)
{
    PyTypeObject *type = (PyTypeObject *)installed_state()->stream_type;
    struct stream *stream = (struct stream *)type->tp_alloc(type, 0);
    if (stream == NULL) {
        return NULL;
    }
    stream->name = name;
    stream->is_input = is_input(name);
    stream->is_error = strstr(name, "stderr") != NULL;
    stream->original = Py_NewRef(original);
    stream->write_name = PyUnicode_InternFromString("write");
    if (stream->write_name != NULL && !stream->is_input) {
        stream->write = PyObject_GenericGetAttr((PyObject *)stream, stream->write_name);
    }
    if (stream->write_name == NULL || (stream->write == NULL && !stream->is_input)) {
        Py_DECREF((PyObject *)stream);
        return NULL;
    }
    return (PyObject *)stream;
}

/* Keeps one of our streams alive, as the last of KEPT_STREAMS: print() and its like only borrow
 * what they find in sys, and may be in the middle of it when it is taken out. Never raises. */
ATTACHED static void
keep_stream(PyObject *stream /* or any other object, or NULL */)
{
    struct module_state *state = installed_state();
    if (stream == NULL || Py_TYPE(stream) != (PyTypeObject *)state->stream_type) {
        return;
    }
    Py_INCREF(stream);
    for (Py_ssize_t i = PyList_GET_SIZE(state->streams) - 1; i >= 0; i--) {
        if (PyList_GET_ITEM(state->streams, i) == stream) {
            (void)PySequence_DelItem(state->streams, i);
        }
    }
    (void)PyList_Append(state->streams, stream);
    if (PyList_GET_SIZE(state->streams) > KEPT_STREAMS) {
        (void)PySequence_DelItem(state->streams, 0);
    }
    PyErr_Clear();
    Py_DECREF(stream);
}

/* Returns a stream for what stands in sys.NAME, new, or NULL with an exception; the one that was
 * made for the very same before, if it is still kept. */
ATTACHED static PyObject *
get_stream(const char *name, PyObject *original)
{
    PyObject *streams = installed_state()->streams; /* borrowed */
    PyObject *made = NULL;                          /* owned, handed to the caller */
    for (Py_ssize_t i = 0; i < PyList_GET_SIZE(streams) && made == NULL; i++) {
        struct stream *stream = (struct stream *)PyList_GET_ITEM(streams, i);
        if (stream->original == original && stream->is_input == is_input(name)) {
            made = Py_NewRef((PyObject *)stream);
        }
    }
    if (made == NULL) {
        made = make_stream(name, original);
    }
    keep_stream(made);
    return made;
}

/* Sets sys.NAME, and remembers what was there: what the application has set since, too. Under
 * sys_lock. Returns 0, or -1 with an exception. */
ATTACHED static int
borrow_attribute(struct borrowed_attribute *attribute, PyObject *ours)
{
    PyObject *current = get_sys(attribute->name); /* owned */
    if (attribute->ours == NULL || attribute->ours != current) {
        Py_XSETREF(attribute->previous, Py_XNewRef(current));
    }
    Py_XDECREF(current);
    keep_stream(attribute->ours);
    Py_XSETREF(attribute->ours, Py_NewRef(ours));
    return PySys_SetObject(attribute->name, ours);
}

/* Puts back what was there, where ours still stands; for any stream of ours its original, for the
 * application may have put an earlier one back itself (redirect_stdout). Under sys_lock. */
ATTACHED static void
give_back_attribute(struct borrowed_attribute *attribute)
{
    PyObject *current = get_sys(attribute->name); /* owned */
    PyObject *previous = attribute->previous;     /* borrowed */
    bool ours = attribute->ours != NULL && current == attribute->ours;
    if (current != NULL &&
        Py_TYPE(current) == (PyTypeObject *)installed_state()->stream_type) {
        previous = ((struct stream *)current)->original;
        ours = true;
    }
    keep_stream(current);
    keep_stream(attribute->ours);
    if (ours && PySys_SetObject(attribute->name, previous) < 0) {
        PyErr_Clear();
    }
    Py_XDECREF(current);
    Py_CLEAR(attribute->ours);
    Py_CLEAR(attribute->previous);
}

/* The row of a name in manhole.borrowed. */
static struct borrowed_attribute *
borrowed_row(const char *name)
{
    struct borrowed_attribute *row = manhole.borrowed;
    while (strcmp(row->name, name) != 0) {
        row++;
    }
    return row;
}

/* Puts a stream of ours into sys.NAME, unless there is none to stand in for or one of
 * ours is there already. Under sys_lock. Returns 0, or -1 with an exception. */
ATTACHED static int
place_stream(const char *name)
{
    PyObject *original = NULL; /* owned */
    PyObject *stream = NULL;   /* owned */
    int result = find_sys(name, &original);
    if (original != NULL &&
        Py_TYPE(original) != (PyTypeObject *)installed_state()->stream_type) {
        stream = get_stream(name, original);
        result = stream == NULL ? -1 : borrow_attribute(borrowed_row(name), stream);
    }
    Py_XDECREF(original);
    Py_XDECREF(stream);
    return result;
}

/* Under sys_lock. Returns 0, or -1 with an exception. */
ATTACHED static int
place_streams(bool redirect_stderr)
{
    static const char *const names[] = {"stdin",      "__stdin__", "stdout",
                                        "__stdout__", "stderr",    "__stderr__"};
    size_t count = redirect_stderr ? 6 : 4;
    for (size_t i = 0; i < count; i++) {
        if (place_stream(names[i]) < 0) {
            return -1;
        }
    }
    return 0;
}

/* Under sys_lock. Returns 0, or -1 with an exception. */
ATTACHED static int
place_displayhook(void)
{
    PyObject *hook = PyObject_GetAttrString(manhole.module, "_displayhook"); /* owned */
    int result = -1;
    if (hook != NULL) {
        result = borrow_attribute(borrowed_row("displayhook"), hook);
        Py_DECREF(hook);
    }
    return result;
}

/* References to all that manhole.borrowed refers to while sys_lock is held: the last one to an
 * object of the application's runs code of its own, which may wait for anything. */
struct held {
    PyObject *objects[2 * Py_ARRAY_LENGTH(manhole.borrowed)]; /* owned, or NULL */
};

ATTACHED static void
lock_sys(struct held *held)
{
    PyObject **next = held->objects;
    lock_attached(&sys_lock);
    for (size_t i = 0; i < Py_ARRAY_LENGTH(manhole.borrowed); i++) {
        *next++ = Py_XNewRef(manhole.borrowed[i].ours);
        *next++ = Py_XNewRef(manhole.borrowed[i].previous);
    }
}

ATTACHED static void
unlock_sys(struct held *held)
{
    unlock(&sys_lock);
    for (size_t i = 0; i < Py_ARRAY_LENGTH(held->objects); i++) {
        Py_XDECREF(held->objects[i]);
    }
}

/* Puts the streams back in place where the application has set its own since: a session's print()
 * is its client's whatever the application redirects. Never raises. */
ATTACHED static void
replace_streams(void)
{
    struct held held;
    lock_sys(&held);
    if (manhole.consoles > 0 && place_streams(manhole.options.redirect_stderr != 0) < 0) {
        PyErr_Clear();
    }
    unlock_sys(&held);
}

ATTACHED static void
give_back_attributes(void)
{
    for (size_t i = 0; i < Py_ARRAY_LENGTH(manhole.borrowed); i++) {
        give_back_attribute(&manhole.borrowed[i]);
    }
}

/* From here on the calling thread's std streams are the session's client. Returns 0, or
 * -1 with an exception. */
ATTACHED static int
open_streams(struct session *session)
{
    struct held held;
    int result = 0;
    lock_sys(&held);
    result = place_streams(wants_stderr(session));
    if (result == 0 && manhole.consoles == 0) {
        result = place_displayhook();
    }
    if (result == 0) {
        manhole.consoles++;
        session->has_console = true;
        if (!session->wish->framed) {
            begin_viewing(session);
        }
    }
    else if (manhole.consoles == 0) {
        PyObject *raised = take_exception(); /* owned */
        give_back_attributes();
        put_back_exception(raised);
    }
    unlock_sys(&held);
    return result;
}

ATTACHED static void
close_streams(struct session *session)
{
    struct held held;
    lock_sys(&held);
    if (session->has_console) {
        session->has_console = false;
        if (!session->wish->framed) {
            end_viewing(session);
        }
        manhole.consoles--;
        if (manhole.consoles == 0) {
            give_back_attributes();
        }
    }
    unlock_sys(&held);
}

/* ======================================================================================
 * Parts: what of this file is written in Python, compiled at its first use.
 * Runs on:  any thread, ATTACHED.
 * Touches:  nothing but what a part itself says.
 * What wraps functions of the application is best made of what Python wraps functions with: a
 * function that functools.wraps() has dressed is one to inspect, pickle, weakref and every
 * framework. A part is a module that stands in no sys.modules: an interpreter has it once, import
 * of manhole compiles none. Threads may run it at the same time, without a GIL as well, so a part
 * keeps to what is one step there: a read or write of an attribute, a method of a set, dict or list
 * in C. Locks it has none: whoever holds one could be gone with a fork, or be interrupted by a
 * signal handler that wants it.
 * ====================================================================================== */

struct part {
    const char *name;
    const char *program; /* Python */
    PyMethodDef
        *functions; /* in C, that it calls, beside standard() and counter(); or NULL */
};

static PyMethodDef part_functions[3];

/* Runs a part in its new module. Returns 0, or -1 with an exception. Its frames are seen in stacks
 * and tracebacks, as File "<manhole>". */
ATTACHED static int
run_part(PyObject *module, const struct part *part)
{
    PyObject *names = PyModule_GetDict(module); /* borrowed */
    PyObject *code = NULL;                      /* owned */
    PyObject *result = NULL;                    /* owned */
    if (PyModule_AddFunctions(module, part_functions) < 0 ||
        (part->functions != NULL && PyModule_AddFunctions(module, part->functions) < 0) ||
        PyDict_SetItemString(names, "__builtins__", PyEval_GetBuiltins()) < 0) {
        return -1;
    }
    code = Py_CompileString(part->program, "<manhole>", Py_file_input);
    if (code != NULL) {
        result = PyEval_EvalCode(code, names, names);
    }
    Py_XDECREF(code);
    Py_XDECREF(result);
    return result == NULL ? -1 : 0;
}

/* Of two threads that make a part at once, both get the one that is kept first. Returns a new
 * reference to its module, or NULL with an exception. */
ATTACHED static PyObject *
load_part(PyObject *parts /* dict */, const struct part *part)
{
    PyObject *name = PyUnicode_FromString(part->name); /* owned */
    PyObject *loaded = NULL;                           /* borrowed: parts keeps it */
    PyObject *module = NULL;                           /* owned */
    if (name == NULL) {
        return NULL;
    }
    loaded = PyDict_GetItemWithError(parts, name);
    if (loaded == NULL && PyErr_Occurred() == NULL) {
        module = PyModule_New("manhole");
        if (module != NULL && run_part(module, part) == 0) {
            loaded = PyDict_SetDefault(parts, name, module);
        }
    }
    Py_XINCREF(loaded);
    Py_XDECREF(module);
    Py_DECREF(name);
    return loaded;
}

/* Returns a new reference to what a part defines by a name, or NULL with an exception. */
ATTACHED static PyObject *
get_from_part(PyObject *manhole_py, const struct part *part, const char *name)
{
    struct module_state *state = PyModule_GetState(manhole_py);
    PyObject *module = load_part(state->parts, part); /* owned */
    PyObject *found = NULL;                           /* new, handed to the caller */
    if (module != NULL) {
        found = PyObject_GetAttrString(module, name);
        Py_DECREF(module);
    }
    return found;
}

/* Calls a function of a part. Returns a new reference, or NULL with an exception. */
ATTACHED static PyObject *
call_part(PyObject *manhole_py, const struct part *part, const char *function,
          PyObject *first /* borrowed, or NULL: no argument */,
          PyObject *second /* the same */)
{
    PyObject *callable = get_from_part(manhole_py, part, function); /* owned */
    PyObject *result = NULL; /* new, handed to the caller */
    if (callable != NULL) {
        result = PyObject_CallFunctionObjArgs(callable, first, second, NULL);
        Py_DECREF(callable);
    }
    return result;
}

/* For parts: import_standard(), for what the application may have a module of the same name as. */
ATTACHED static PyObject *
part_standard(PyObject *self, PyObject *name)
{
    const char *text = PyUnicode_AsUTF8(name);
    (void)self;
    return text == NULL ? NULL : import_standard(text);
}

/* ---- counter(): what += is not, without a GIL, and on 3.9 not with one either ------ */

/* Adds to the total, and returns it: a counter(0) only looks. */
ATTACHED static PyObject *
add_to_total(PyObject *capsule, PyObject *step)
{
    _Atomic uint64_t *total = PyCapsule_GetPointer(capsule, NULL);
    uint64_t added = PyLong_AsUnsignedLongLong(step);
    if (PyErr_Occurred() != NULL) {
        return NULL;
    }
    return PyLong_FromUnsignedLongLong(atomic_fetch_add(total, added) + added);
}

static PyMethodDef count_method = {"count", add_to_total, METH_O, NULL};

ATTACHED static void
free_total(PyObject *capsule)
{
    PyMem_Free(PyCapsule_GetPointer(capsule, NULL));
}

/* For parts: a function that counts from 0. */
ATTACHED static PyObject *
part_counter(PyObject *self, PyObject *unused)
{
    _Atomic uint64_t *total = PyMem_Calloc(1, sizeof(*total)); /* owned */
    PyObject *capsule = NULL;                                  /* owned */
    PyObject *counter = NULL; /* new, handed to the caller */
    (void)self;
    (void)unused;
    if (total == NULL) {
        return PyErr_NoMemory();
    }
    capsule = PyCapsule_New(total, NULL, free_total);
    if (capsule == NULL) {
        PyMem_Free(total);
        return NULL;
    }
    counter = PyCFunction_New(&count_method, capsule);
    Py_DECREF(capsule);
    return counter;
}

static PyMethodDef part_functions[] = {
    {"counter", part_counter, METH_NOARGS, NULL},
    {"standard", part_standard, METH_O, NULL},
    {NULL, NULL, 0, NULL},
};

/* ======================================================================================
 * Probes: functions that keep what they failed with, for a post mortem while the program goes on.
 * Runs on:  any thread of the application that calls them, and sessions; ATTACHED.
 * Touches:  the one name in a module or class that a probe is inserted at, and that only while what
 *           it has put there is still there.
 * A stand-in takes the function's home: a function that calls it, dressed by functools.wraps(). Its
 * probe is what one asks. Nothing of the application's runs to find a function, or is imported. A
 * probe keeps one exception, the latest, with its frames, until it is discarded. All of it is in
 * Python; what is C here gives it to who asks: the module's functions, and the commands.
 * ====================================================================================== */

static const char probes_program[] =
    "import sys\n"
    "functools = standard('functools')\n"
    "inspect = standard('inspect')\n"
    "types = standard('types')\n"
    "weakref = standard('weakref')\n"

    "by_name = {}\n"
    /* Stand-ins that outlive their probes, for those who have weak references to them. */
    "kept_stand_ins = []\n"

    /* isinstance() would ask the object itself, which may run anything. */
    "def is_a(object, *types):\n"
    "    return issubclass(type(object), types)\n"

    /* ---- What a probe keeps ---- */

    "class Probe:\n"
    "    '''A function under observation, as probe() returns it. It keeps the latest\n"
    "    exception that left the function, with its frames, until discard() or\n"
    "    remove().'''\n"

    "    def __init__(self, name):\n"
    "        self.name = name\n"
    "        self._calls = counter()\n"
    "        self._exceptions = counter()\n"
    "        self._kept = None, None\n"
    "        self._home = None\n"
    /* Has a member while the probe is in place: who removes it pops that, and so is alone. */
    "        self._in_place = set()\n"
    "        self._removed = False\n"

    "    def __repr__(self):\n"
    "        calls, exceptions = self.calls, self.exceptions\n"
    "        return \"<manhole.Probe '%s': %d call%s, %d exception%s%s>\" % (\n"
    "            self.name, calls, 's' * (calls != 1),\n"
    "            exceptions, 's' * (exceptions != 1), ', removed' * self._removed)\n"

    "    @property\n"
    "    def calls(self):\n"
    "        'How often the function was called.'\n"
    "        return self._calls(0)\n"

    "    @property\n"
    "    def exceptions(self):\n"
    "        'How many exceptions left it, a generator or coroutine of its included.'\n"
    "        return self._exceptions(0)\n"

    "    @property\n"
    "    def exception(self):\n"
    "        'The latest of them; None when none is kept.'\n"
    "        return self._kept[0]\n"

    "    @property\n"
    "    def traceback(self):\n"
    "        'The text of its traceback, from the function inwards; None as above.'\n"
    "        exception, frames = self._get_kept()\n"
    "        if exception is None:\n"
    "            return None\n"
    "        format_exception = standard('traceback').format_exception\n"
    "        return ''.join(format_exception(type(exception), exception, frames))\n"

    /* The frames that it has passed: the first is that of the stand-in. What a function in C has
     * raised has none of its own, and those that it passed since are shown. */
    "    def _get_kept(self):\n"
    "        exception, frames = self._kept\n"
    "        if frames is None and exception is not None:\n"
    "            frames = exception.__traceback__\n"
    "        return exception, frames\n"

    /* For stand-ins. A generator that is closed has not failed. Removal, which may come at the
     * same time, first says so and then drops what is kept: so it looks for that last. */
    "    def _failed(self, exception):\n"
    "        if not is_a(exception, GeneratorExit):\n"
    "            self._exceptions(1)\n"
    "            self._kept = exception, exception.__traceback__.tb_next\n"
    "            if self._removed:\n"
    "                self.discard()\n"

    "    def _fail_without(self):\n"
    "        raise LookupError(\n"
    "            \"'%s' has no traceback: in %d calls since the probe was inserted \"\n"
    "            \"%d exceptions have left it, and none is kept\"\n"
    "            % (self.name, self.calls, self.exceptions))\n"

    "    def _get_text(self):\n"
    "        text = self.traceback\n"
    "        if text is None:\n"
    "            self._fail_without()\n"
    "        return text\n"

    "    def discard(self):\n"
    "        'Let go of the exception that is kept, and so of all its frames.'\n"
    "        self._kept = None, None\n"

    "    def print(self):\n"
    "        'Print the traceback to sys.stdout. LookupError when none is kept.'\n"
    "        print(self._get_text(), end='')\n"

    /* The streams are the calling thread's; the process's SIGINT and ~/.pdbrc are let alone. */
    "    def debug(self):\n"
    "        '''Examine the exception with pdb, post mortem, on the streams of the\n"
    "        calling thread: at a manhole's prompt they are the client. The program\n"
    "        goes on meanwhile. LookupError when no exception is kept.'''\n"
    "        frames = self._get_kept()[1]\n"
    "        if frames is None:\n"
    "            self._fail_without()\n"
    "        debugger = standard('pdb').Pdb(stdin=sys.stdin, stdout=sys.stdout,\n"
    "                                       nosigint=True, readrc=False)\n"
    "        debugger.reset()\n"
    "        debugger.interaction(None, frames)\n"

    "    def remove(self):\n"
    "        '''Put back what was there before, and let go of the exception.\n"
    "        RuntimeError when somebody else has replaced it meanwhile: that is left\n"
    "        as it is. LookupError when the probe is removed already.'''\n"
    "        try:\n"
    "            self._in_place.pop()\n"
    "        except KeyError:\n"
    "            raise LookupError(\"the probe '%s' is %s\" % (\n"
    "                self.name, 'removed already' if self._removed\n"
    "                else 'only just being inserted')) from None\n"
    "        self._removed = True\n"
    "        try:\n"
    "            complaint = restore(self)\n"
    "        except BaseException:\n"
    "            self._removed = False\n"
    "            self._in_place.add(True)\n"
    "            raise\n"
    "        by_name.pop(self.name, None)\n"
    "        self.discard()\n"
    /* A signal's receiver, say: it took the stand-in for the function, which lives on. It
     * passes calls through for ever. */
    "        if weakref.getweakrefcount(self._home.stand_in):\n"
    "            kept_stand_ins.append(self._home.stand_in)\n"
    "        self._home = None\n"
    "        if complaint:\n"
    "            raise RuntimeError(complaint)\n"

    /* ---- Stand-ins ----
     * Each is of the function's own kind, so that who asks how to call it is told right. */

    /* What calls the function, and tells the probe. */
    "def make_call(function, called, failed):\n"
    "    if inspect.iscoroutinefunction(function):\n"
    "        async def probed(*arguments, **keywords):\n"
    "            called(1)\n"
    "            try:\n"
    "                return await function(*arguments, **keywords)\n"
    "            except BaseException as exception:\n"
    "                failed(exception)\n"
    "                raise\n"
    "    elif inspect.isasyncgenfunction(function):\n"
    /* What `yield from` does for the others. */
    "        async def probed(*arguments, **keywords):\n"
    "            called(1)\n"
    "            try:\n"
    "                generator = function(*arguments, **keywords)\n"
    "                step = generator.__anext__()\n"
    "                while True:\n"
    "                    try:\n"
    "                        part = await step\n"
    "                    except StopAsyncIteration:\n"
    "                        return\n"
    "                    try:\n"
    "                        step = generator.asend((yield part))\n"
    "                    except GeneratorExit:\n"
    "                        await generator.aclose()\n"
    "                        raise\n"
    "                    except BaseException as exception:\n"
    "                        step = generator.athrow(exception)\n"
    "            except BaseException as exception:\n"
    "                failed(exception)\n"
    "                raise\n"
    "    elif inspect.isgeneratorfunction(function):\n"
    "        def probed(*arguments, **keywords):\n"
    "            called(1)\n"
    "            try:\n"
    "                return (yield from function(*arguments, **keywords))\n"
    "            except BaseException as exception:\n"
    "                failed(exception)\n"
    "                raise\n"
    /* The coroutines of types.coroutine(). */
    "        flags = getattr(function, '__code__', probed.__code__).co_flags\n"
    "        if flags & inspect.CO_ITERABLE_COROUTINE:\n"
    "            probed = types.coroutine(probed)\n"
    "    else:\n"
    "        def probed(*arguments, **keywords):\n"
    "            called(1)\n"
    "            try:\n"
    "                return function(*arguments, **keywords)\n"
    "            except BaseException as exception:\n"
    "                failed(exception)\n"
    "                raise\n"
    "    return probed\n"

    "def binds(function):\n"
    "    kind = type(function)\n"
    "    return hasattr(kind, '__get__') and not issubclass(kind, types.MethodType)\n"

    /* Of what is called but no function of Python's: functions in C, partial(), lru_cache()'s,
     * Celery's tasks. It binds if that does, has its attributes, and is pickled as that is. */
    "class Probed:\n"
    "    def __init__(self, call, function):\n"
    "        self.__call = call\n"
    "        functools.update_wrapper(self, function, updated=())\n"

    "    def __call__(self, /, *arguments, **keywords):\n"
    "        return self.__call(*arguments, **keywords)\n"

    "    def __getattr__(self, name):\n"
    "        return getattr(self.__wrapped__, name)\n"

    "    def __reduce_ex__(self, protocol):\n"
    "        return self.__wrapped__.__reduce_ex__(protocol)\n"

    "class BindingProbed(Probed):\n"
    "    def __get__(self, object, owner=None):\n"
    "        return self if object is None else types.MethodType(self, object)\n"

    "def make_stand_in(function, probe):\n"
    "    call = make_call(function, probe._calls, probe._failed)\n"
    "    if is_a(function, types.FunctionType):\n"
    "        return functools.update_wrapper(call, function)\n"
    "    return (BindingProbed if binds(function) else Probed)(call, function)\n"

    /* ---- Where a function is ----
     * Looked for in dictionaries alone, so that nothing of the application's runs. */

    /* Returns what is there, and whether it is inherited. */
    "def look_up(parent, attribute):\n"
    "    for holder in parent.__mro__ if is_a(parent, type) else [parent]:\n"
    "        names = vars(holder)\n"
    "        if attribute in names:\n"
    "            return names[attribute], holder is not parent\n"
    "    raise LookupError(\"%r has no name '%s'\" % (parent, attribute))\n"

    /* The module or class that the function is in, and its name there. */
    "def find_parent(name):\n"
    "    if not is_a(name, str):\n"
    "        raise TypeError(\"a probe's name is a str, not %s\" % type(name).__name__)\n"
    "    module, _, path = name.partition(':')\n"
    "    if not module or not path:\n"
    "        raise ValueError(\"a probe's name is module:function or \"\n"
    "                         \"module:Class.method, not %r\" % name)\n"
    "    parent = sys.modules.get(module)\n"
    "    if parent is None:\n"
    "        raise LookupError(\n"
    "            \"no module '%s' is imported, and a probe imports nothing: import \"\n"
    "            \"it in the program, or name the module as sys.modules has it (the \"\n"
    "            \"program that was started is '__main__')\" % module)\n"
    "    *steps, attribute = path.split('.')\n"
    "    for step in steps:\n"
    "        parent, _ = look_up(parent, step)\n"
    "        if not is_a(parent, type, types.ModuleType):\n"
    "            raise TypeError(\n"
    "                \"'%s' is an object of %r: a probe goes into modules and \"\n"
    "                \"classes only; name the class\" % (step, type(parent)))\n"
    "    return parent, attribute\n"

    /* A bit of type.__flags__ that tells who binds as functions do. */
    "METHOD_DESCRIPTOR = 1 << 17\n"

    "def check_function(name, function, in_class):\n"
    "    kind = type(function)\n"
    "    for other in list(by_name.values()):\n"
    "        home = other._home\n"
    "        if home is not None and home.stand_in is function:\n"
    "            raise ValueError(\"'%s' is probed already, as '%s'\"\n"
    "                             % (name, other.name))\n"
    "    if is_a(function, type):\n"
    "        raise TypeError(\"'%s' is a class: name a method of it, such as \"\n"
    "                        \"'%s.__init__'\" % (name, name))\n"
    "    if not callable(function):\n"
    "        raise TypeError(\"'%s' is a %s object, which cannot be called: a probe \"\n"
    "                        \"goes on a function or method\" % (name, kind.__name__))\n"
    "    if in_class and binds(function) and not kind.__flags__ & METHOD_DESCRIPTOR:\n"
    "        raise TypeError(\"'%s' is a %s object, which binds to instances in a \"\n"
    "                        \"way of its own: name the function that it calls\"\n"
    "                        % (name, kind.__name__))\n"

    /* What a probe needs to know to be placed, and to be removed. */
    "def find_home(probe):\n"
    "    parent, attribute = find_parent(probe.name)\n"
    "    found, inherited = look_up(parent, attribute)\n"
    "    in_class = is_a(parent, type)\n"
    /* They look at what stands in their places in the class, and take no arguments where that is
     * anything else. */
    "    if (inherited and attribute in ('__new__', '__init__') and\n"
    "            found is vars(object)[attribute]):\n"
    "        raise TypeError(\"'%s' is object's own: name a method that the class or \"\n"
    "                        \"a base of it defines\" % probe.name)\n"
    "    wrapped = in_class and is_a(found, staticmethod, classmethod)\n"
    "    function = found.__func__ if wrapped else found\n"
    "    check_function(probe.name, function, in_class)\n"
    "    stand_in = make_stand_in(function, probe)\n"
    "    return types.SimpleNamespace(\n"
    "        parent=parent, attribute=attribute, found=found, inherited=inherited,\n"
    "        stand_in=stand_in, placed=type(found)(stand_in) if wrapped else stand_in)\n"

    /* Puts back what was there. Returns a complaint if something else is there by now. */
    "def restore(probe):\n"
    "    home = probe._home\n"
    "    try:\n"
    "        found, inherited = look_up(home.parent, home.attribute)\n"
    "    except LookupError:\n"
    "        return \"the probe is gone, and so is '%s' itself\" % probe.name\n"
    "    if found is not home.placed or inherited:\n"
    "        return (\"the probe is gone, but '%s' is something else by now, %r: \"\n"
    "                \"that was left there\" % (probe.name, found))\n"
    "    if home.inherited:\n"
    "        delattr(home.parent, home.attribute)\n"
    "    else:\n"
    "        setattr(home.parent, home.attribute, home.found)\n"

    /* ---- What is called from C ---- */

    /* The name is claimed first: of two threads one inserts. */
    "def probe(name):\n"
    "    probe = Probe(name)\n"
    "    if by_name.setdefault(name, probe) is not probe:\n"
    "        return find_probe(name)\n"
    "    try:\n"
    "        probe._home = find_home(probe)\n"
    "        setattr(probe._home.parent, probe._home.attribute, probe._home.placed)\n"
    "        probe._in_place.add(True)\n"
    "    except BaseException:\n"
    "        by_name.pop(name, None)\n"
    "        if probe._home is not None:\n"
    "            restore(probe)\n"
    "        raise\n"
    "    return probe\n"

    "def find_probe(name):\n"
    "    try:\n"
    "        return by_name[name]\n"
    "    except KeyError:\n"
    "        raise LookupError('there is no probe %r; there are %r'\n"
    "                          % (name, sorted(list(by_name)))) from None\n"

    "def probes():\n"
    "    return sorted(list(by_name.values()), key=lambda probe: probe.name)\n"

    "def unprobe(name):\n"
    "    find_probe(name).remove()\n"

    /* All are removed, whatever is complained of one. */
    "def unprobe_all():\n"
    "    failure = None\n"
    "    for probe in probes():\n"
    "        try:\n"
    "            probe.remove()\n"
    "        except Exception as exception:\n"
    "            failure = exception\n"
    "    if failure is not None:\n"
    "        raise failure\n"

    "def insert(name):\n"
    "    probe(name)\n"

    "def text_of(name):\n"
    "    return find_probe(name)._get_text()\n"

    "def discard(name):\n"
    "    find_probe(name).discard()\n"

    "def debug(name):\n"
    "    find_probe(name).debug()\n"

    "def list_names():\n"
    "    return repr(sorted(list(by_name)))\n"

    "def list_tracebacks():\n"
    "    kept = {}\n"
    "    for probe in probes():\n"
    "        exception, frames = probe._get_kept()\n"
    "        if exception is not None:\n"
    "            kept[probe.name] = frames\n"
    "    return repr(kept)\n";

static const struct part probes_part = {
    .name = "probes",
    .program = probes_program,
};

/* ---- The module's functions ------------------------------------------------------- */

PyDoc_STRVAR(
    py_probe_doc,
    "probe(name, /)\n--\n\n"
    "Keep the exceptions that leave a function, and return the Probe, or the one that\n"
    "is there already. name is module:function or module:Class.method, of a module\n"
    "that is imported. Static and class methods, generators and coroutines, and C\n"
    "functions too. Who has got the function itself before, by `from module import\n"
    "function` or in a table of its own, goes on calling it unobserved.\n"
    "ValueError, LookupError, TypeError: not a name, not there, not to be probed.");

ATTACHED static PyObject *
py_probe(PyObject *module, PyObject *name)
{
    return call_part(module, &probes_part, "probe", name, NULL);
}

PyDoc_STRVAR(py_probes_doc, "probes()\n--\n\n"
                            "Return a list of the probes, sorted by name.");

ATTACHED static PyObject *
py_probes(PyObject *module, PyObject *unused)
{
    (void)unused;
    return call_part(module, &probes_part, "probes", NULL, NULL);
}

PyDoc_STRVAR(
    py_unprobe_doc,
    "unprobe(name=None, /)\n--\n\n"
    "Remove the probe with this name, or all of them. What was there before is\n"
    "put back. LookupError when there is no such probe; RuntimeError when\n"
    "somebody else has replaced the function meanwhile: the probe is removed, and\n"
    "that is left as it is.");

ATTACHED static PyObject *
py_unprobe(PyObject *module, PyObject *arguments)
{
    PyObject *name = Py_None; /* borrowed */
    if (!PyArg_ParseTuple(arguments, "|O:unprobe", &name)) {
        return NULL;
    }
    return name == Py_None ? call_part(module, &probes_part, "unprobe_all", NULL, NULL)
                           : call_part(module, &probes_part, "unprobe", name, NULL);
}

static PyMethodDef probe_functions[] = {
    {"probe", py_probe, METH_O, py_probe_doc},
    {"probes", py_probes, METH_NOARGS, py_probes_doc},
    {"unprobe", py_unprobe, METH_VARARGS, py_unprobe_doc},
    {NULL, NULL, 0, NULL},
};

/* A row of module_slots[]: what the module has of this room. */
ATTACHED static int
exec_probes(PyObject *module)
{
    return PyModule_AddFunctions(module, probe_functions);
}

/* ---- The same for commands that a client types ---------------------------------------------
 * Each returns a new str to print, or None, or NULL with an exception whose message is for the
 * client. In a session's thread. */

ATTACHED static PyObject *
insert_probe(PyObject *name)
{
    return call_part(manhole.module, &probes_part, "insert", name, NULL);
}

ATTACHED static PyObject *
remove_probe(PyObject *name)
{
    return call_part(manhole.module, &probes_part, "unprobe", name, NULL);
}

ATTACHED static PyObject *
discard_probe(PyObject *name)
{
    return call_part(manhole.module, &probes_part, "discard", name, NULL);
}

ATTACHED static PyObject *
debug_probe(PyObject *name)
{
    return call_part(manhole.module, &probes_part, "debug", name, NULL);
}

ATTACHED static PyObject *
print_probe(PyObject *name)
{
    return call_part(manhole.module, &probes_part, "text_of", name, NULL);
}

ATTACHED static PyObject *
reset_probes(void)
{
    return call_part(manhole.module, &probes_part, "unprobe_all", NULL, NULL);
}

/* The names of all, sorted. */
ATTACHED static PyObject *
list_probes(void)
{
    return call_part(manhole.module, &probes_part, "list_names", NULL, NULL);
}

/* A dict of name: traceback, of those that have one. */
ATTACHED static PyObject *
probe_tracebacks(void)
{
    return call_part(manhole.module, &probes_part, "list_tracebacks", NULL, NULL);
}

/* ======================================================================================
 * Requests: what a WSGI application is at, as its middleware sees it.
 * Runs on:  any thread that serves or asks, ATTACHED.
 * Touches:  nothing of the application's. What it returns is passed on as it is where the server
 *           may know its type (a file), else behind an iterable that has its close().
 * A request is in flight from the call until close(), or until nobody has its response any more:
 * then its record dies, and with that the weak reference by which it is listed. So nothing here
 * keeps a request that a server has forgotten. Python is what serves; C looks at the stacks, all
 * of them in one go, which no Python code could.
 * ====================================================================================== */

static const char requests_program[] =
    "import os, sys, time\n"
    "functools = standard('functools')\n"
    "weakref = standard('weakref')\n"

    /* Weak references to the records. Each goes of itself when its record dies. */
    "in_flight = set()\n"
    /* The records of files that the server sends in a way of its own, by weak reference to them. */
    "of_files = {}\n"
    "next_id = counter()\n"

    /* A request, from the call of the application until its response is closed. Who has a reference
     * to it keeps it alive: the call, then the response. */
    "class Record:\n"
    "    __slots__ = ('id', 'process', 'environ', 'start', 'begun', 'worker',\n"
    "                 'reference', '__weakref__')\n"

    "    def __init__(self, environ):\n"
    "        self.id = next_id(1)\n"
    "        self.process = os.getpid()\n"
    "        self.environ = environ\n"
    "        self.start = time.time()\n"
    "        self.begun = time.monotonic()\n"
    "        self.note_worker()\n"
    "        self.reference = weakref.ref(self, in_flight.discard)\n"
    "        in_flight.add(self.reference)\n"

    /* The calling thread works at it, in a greenlet perhaps. Not a strong reference: a greenlet
     * that nobody else has is to end. */
    "    def note_worker(self):\n"
    "        greenlet = sys.modules.get('greenlet')\n"
    "        self.worker = ident(), greenlet and weakref.ref(greenlet.getcurrent())\n"

    "    def end(self):\n"
    "        in_flight.discard(self.reference)\n"

    /* Stands for the iterable that an application returned. */
    "class Response:\n"
    "    __slots__ = '_record', '_iterable'\n"

    "    def __init__(self, record, iterable):\n"
    "        self._record = record\n"
    "        self._iterable = iterable\n"

    /* Each time it begins where the iterable does: a list at its beginning. */
    "    def __iter__(self):\n"
    "        self._record.note_worker()\n"
    "        for part in self._iterable:\n"
    "            yield part\n"
    "            self._record.note_worker()\n"

    /* The end of the request, whatever the application's close() raises. */
    "    def close(self):\n"
    "        self._record.note_worker()\n"
    "        try:\n"
    "            close = getattr(self._iterable, 'close', None)\n"
    "            if close is not None:\n"
    "                close()\n"
    "        finally:\n"
    "            self._record.end()\n"

    /* Servers make a Content-Length of this. */
    "class SizedResponse(Response):\n"
    "    __slots__ = ()\n"

    "    def __len__(self):\n"
    "        return len(self._iterable)\n"

    /* Whether it is what the server's own wsgi.file_wrapper made, which it knows again and sends
     * without Python. uWSGI's is a function that returns the file itself. */
    "def is_file(environ, response):\n"
    "    wrapper = environ.get('wsgi.file_wrapper')\n"
    "    if isinstance(wrapper, type):\n"
    "        return isinstance(response, wrapper)\n"
    "    return wrapper is not None and hasattr(response, 'read')\n"

    /* The request ends with the file. At once, when that is of a type without weak references. */
    "def follow_file(record, file):\n"
    "    try:\n"
    "        of_files[weakref.ref(file, of_files.pop)] = record\n"
    "    except TypeError:\n"
    "        record.end()\n"

    "def wsgi(application):\n"
    "    if not callable(application):\n"
    "        raise TypeError('wsgi() takes a WSGI application, called with environ '\n"
    "                        'and start_response, not %r' % (application,))\n"
    "    def observed(environ, start_response):\n"
    "        record = Record(environ)\n"
    "        try:\n"
    "            response = application(environ, start_response)\n"
    "            if is_file(environ, response):\n"
    "                follow_file(record, response)\n"
    "                return response\n"
    "            sized = hasattr(type(response), '__len__')\n"
    "            return (SizedResponse if sized else Response)(record, response)\n"
    "        except BaseException:\n"
    "            record.end()\n"
    "            raise\n"
    "    return functools.update_wrapper(observed, application, updated=())\n"

    "class Request:\n"
    "    '''A request in flight, as requests() has seen it. Its text is that of ispyd's\n"
    "    command.'''\n"

    "    def __init__(self, record, stack):\n"
    "        self.id = record.id\n"
    "        self.thread_id = record.worker[0]\n"
    "        self.start_time = record.start\n"
    "        self.duration = time.monotonic() - record.begun\n"
    "        self.environ = dict(record.environ)\n"
    "        self.stack = stack\n"

    "    def __repr__(self):\n"
    "        return ('\\n==== %d ====\\n\\nthread_id = %d\\nstart_time = %s\\n'\n"
    "                'duration = %.6f seconds\\n\\n%s\\n%s' % (\n"
    "                    self.id, self.thread_id, time.ctime(self.start_time),\n"
    "                    self.duration, describe_environ(self.environ), self.stack))\n"

    /* Sorted by key, unless not all are str; whatever a key's str() and a value's repr() do. */
    "def describe_environ(environ):\n"
    "    items = list(environ.items())\n"
    "    try:\n"
    "        items.sort(key=lambda item: item[0])\n"
    "    except TypeError:\n"
    "        pass\n"
    "    return ''.join('%s = %s\\n' % (describe(key, str), describe(value, repr))\n"
    "                   for key, value in items)\n"

    "def describe(value, as_text):\n"
    "    try:\n"
    "        return as_text(value).encode('utf-8', 'backslashreplace').decode()\n"
    "    except BaseException:\n"
    "        return '<%s object without a %s>' % (\n"
    "            type(value).__name__, as_text.__name__)\n"

    /* Not those of the parent, in a child that was forked. */
    "def list_records():\n"
    "    records = [reference() for reference in list(in_flight)]\n"
    "    process = os.getpid()\n"
    "    return sorted((record for record in records\n"
    "                   if record is not None and record.process == process),\n"
    "                  key=lambda record: record.id)\n"

    "def list_workers(records):\n"
    "    return [record.worker for record in records]\n"

    "def make_requests(records, stacks):\n"
    "    return list(map(Request, records, stacks))\n"

    "def describe_requests(requests):\n"
    "    return ''.join(map(repr, requests)) or 'No active transactions.'\n";

/* threading.get_ident() as it is where nobody has patched it: gevent's is the greenlet's. */
ATTACHED static PyObject *
part_ident(PyObject *self, PyObject *unused)
{
    (void)self;
    (void)unused;
    return PyLong_FromUnsignedLong(PyThread_get_thread_ident());
}

static PyMethodDef requests_natives[] = {
    {"ident", part_ident, METH_NOARGS, NULL},
    {NULL, NULL, 0, NULL},
};

static const struct part requests_part = {
    .name = "requests",
    .program = requests_program,
    .functions = requests_natives,
};

/* ---- Stacks of those who work at requests ------------------------------------------- */

/* The frame that a greenlet is suspended in, new; NULL, without an exception, for one that runs, is
 * gone, or is none. */
ATTACHED static PyObject *
get_suspended_frame(PyObject *reference /* weak, or None */)
{
    PyObject *greenlet = reference == Py_None ? NULL : PyObject_CallNoArgs(reference);
    PyObject *frame = find_attribute(greenlet, "gr_frame"); /* owned, handed over */
    if (frame != NULL && !PyFrame_Check(frame)) {
        Py_CLEAR(frame);
    }
    Py_XDECREF(greenlet);
    return frame;
}

/* Returns a new list with the frame of each worker's greenlet, None where it has none; NULL with an
 * exception. Looks at all stacks in one go: what is not in a thread's just now is in a suspended
 * greenlet's. */
ATTACHED static PyObject *
look_at_workers(PyObject *workers /* list of (ident, weak reference or None) */,
                struct stacks *stacks)
{
    PyObject *frames = PyList_New(PyList_GET_SIZE(workers)); /* new */
    if (frames != NULL && open_stacks(stacks) < 0) {
        Py_CLEAR(frames);
    }
    for (Py_ssize_t i = 0; frames != NULL && i < PyList_GET_SIZE(frames); i++) {
        PyObject *reference = PyTuple_GET_ITEM(PyList_GET_ITEM(workers, i), 1);
        PyObject *frame = get_suspended_frame(reference); /* new, handed over */
        PyList_SET_ITEM(frames, i, frame != NULL ? frame : Py_NewRef(Py_None));
    }
    return frames;
}

/* The text of a worker's stack. Returns a new str, or NULL with an exception. */
ATTACHED static PyObject *
describe_stack(struct stacks *stacks, PyObject *worker, PyObject *frame)
{
    struct text text = {0};
    PyObject *stack = NULL; /* new, handed to the caller */
    int result = 0;
    if (frame == Py_None) {
        unsigned long ident = PyLong_AsUnsignedLong(PyTuple_GET_ITEM(worker, 0));
        result = append_stack_of(&text, stacks, ident);
    }
    else {
        result = append_stack_from(&text, stacks, frame);
    }
    if (result == 0) {
        stack =
            PyUnicode_DecodeUTF8(text.bytes, (Py_ssize_t)text.length, "backslashreplace");
    }
    free_text(&text);
    return stack;
}

/* Returns a new list of the workers' stacks, or NULL with an exception. */
ATTACHED static PyObject *
describe_stacks(PyObject *workers)
{
    struct stacks stacks = {0};
    PyObject *frames = look_at_workers(workers, &stacks);    /* owned */
    PyObject *texts = frames == NULL ? NULL : PyList_New(0); /* owned, handed over */
    for (Py_ssize_t i = 0; texts != NULL && i < PyList_GET_SIZE(frames); i++) {
        PyObject *text = describe_stack(&stacks, PyList_GET_ITEM(workers, i),
                                        PyList_GET_ITEM(frames, i)); /* owned */
        if (text == NULL || PyList_Append(texts, text) < 0) {
            Py_CLEAR(texts);
        }
        Py_XDECREF(text);
    }
    close_stacks(&stacks);
    Py_XDECREF(frames);
    return texts;
}

/* Those in flight, by id. Returns a new list, or NULL with an exception. */
ATTACHED static PyObject *
get_requests(PyObject *module)
{
    PyObject *records = call_part(module, &requests_part, "list_records", NULL, NULL);
    PyObject *workers = NULL;  /* owned list */
    PyObject *stacks = NULL;   /* owned list */
    PyObject *requests = NULL; /* new, handed to the caller */
    if (records != NULL) {
        workers = call_part(module, &requests_part, "list_workers", records, NULL);
    }
    if (workers != NULL) {
        stacks = describe_stacks(workers);
    }
    if (stacks != NULL) {
        requests = call_part(module, &requests_part, "make_requests", records, stacks);
    }
    Py_XDECREF(records);
    Py_XDECREF(workers);
    Py_XDECREF(stacks);
    return requests;
}

/* For a command that a client types, in a session's thread: what ispyd prints for `requests`.
 * Returns a new str, or NULL with an exception. */
ATTACHED static PyObject *
describe_requests(void)
{
    PyObject *requests = get_requests(manhole.module); /* owned */
    PyObject *text = NULL;                             /* new, handed to the caller */
    if (requests != NULL) {
        text = call_part(manhole.module, &requests_part, "describe_requests", requests,
                         NULL);
        Py_DECREF(requests);
    }
    return text;
}

/* ---- The module's functions ------------------------------------------------------- */

PyDoc_STRVAR(
    py_wsgi_doc,
    "wsgi(application, /)\n--\n\n"
    "Return a WSGI application that does as the given one, and whose requests are in\n"
    "requests() while they are in flight. It is a function; the given one is its\n"
    "__wrapped__.\n\n"
    "    application = manhole.wsgi(application)\n"
    "    app.wsgi_app = manhole.wsgi(app.wsgi_app)    # Flask");

ATTACHED static PyObject *
py_wsgi(PyObject *module, PyObject *application)
{
    return call_part(module, &requests_part, "wsgi", application, NULL);
}

PyDoc_STRVAR(
    py_requests_doc,
    "requests()\n--\n\n"
    "Return a list of the requests that applications of wsgi() are at, each with\n"
    "id, thread_id, start_time, duration, environ and stack. Printed, it shows\n"
    "them all. Its environ may have passwords and cookies in it.");

ATTACHED static PyObject *
py_requests(PyObject *module, PyObject *unused)
{
    (void)unused;
    return get_requests(module);
}

static PyMethodDef request_functions[] = {
    {"wsgi", py_wsgi, METH_O, py_wsgi_doc},
    {"requests", py_requests, METH_NOARGS, py_requests_doc},
    {NULL, NULL, 0, NULL},
};

/* A row of module_slots[]: what the module has of this room. */
ATTACHED static int
exec_requests(PyObject *module)
{
    return PyModule_AddFunctions(module, request_functions);
}

/* ======================================================================================
 * Telnet: what a TCP client sends, made the plain text that a session reads.
 * Runs on:  a helper, DETACHED, beside the session's own thread; that thread starts it.
 * Touches:  the session's descriptors; through interrupt_session() what it runs.
 *
 * telnet(1), nc(1) and any program are served alike. Lines may end with LF, CR LF or CR NUL.
 * Telnet's commands (RFC 854) are taken out: who offers an option or asks for one is told no,
 * Ctrl-C (as a command or as a byte) interrupts, an end of file (Ctrl-D at the start of a line)
 * ends the input. It takes a thread of its own because Ctrl-C must be seen while the session's runs
 * something or waits for Python.
 *
 * A telnet that is not asked for binary (RFC 856) looks at seven bits of what is typed, and makes
 * commands of the bytes that are control characters by these: 0x9c, of UTF-8's most common, is
 * Ctrl-\. It cannot be asked at once, for nc would show that. So what it does in the middle of a
 * character is undone, and it is asked when it has shown what it is and that it is needed.
 * ====================================================================================== */

DETACHED static bool send_helper(struct session *session, void *(*body)(void *));
DETACHED static int interrupt_session(struct session *session);
static void helper_done(struct session *session);

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
    bool interrupted = false;
    lock_leaf(&session->out_lock);
    interrupted = session->interrupted;
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
    atomic_store(&session->taken_back, true);
    (void)interrupt_session(session);
    for (int ms = 0; ms < INTERRUPT_PATIENCE_MS && is_being_interrupted(session); ms++) {
        (void)poll(NULL, 0, 1);
    }
}

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
pass_text(struct session *session, struct telnet *telnet)
{
    const char *next = telnet->text;
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
        atomic_store(&session->taken_back, false);
    }
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
take_bytes(struct session *session, struct telnet *telnet, const unsigned char *bytes,
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
take_more(struct session *session, struct telnet *telnet)
{
    unsigned char bytes[4096];
    struct pollfd client = {.fd = atomic_load(&session->fd.number), .events = POLLIN};
    ssize_t got = -1;
    (void)poll(&client, 1, -1);
    got = recv(kept_number(&session->fd), bytes, sizeof(bytes), MSG_DONTWAIT);
    return got < 0 ? errno == EAGAIN || errno == EINTR
                   : got > 0 && take_bytes(session, telnet, bytes, (size_t)got);
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
    bool gone = false;
    while (take_more(session, &telnet)) {
    }
    if (!telnet.checked) {
        telnet.checked = true; /* the first line is the last, and has no end */
        (void)pass_text(session, &telnet);
    }
    gone = wait_until_gone(session, SETTLE_MS);
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

/* ======================================================================================
 * Console: the prompt, and the other two ways to serve a client.
 * Runs on:  the session's thread, ATTACHED.
 * Touches:  the session's own fields; sys only through borrow_attribute().
 * The standard library compiles, runs and formats: ManholeConsole is code.InteractiveConsole with
 * its reporting of exceptions replaced, so that neither a crash reporter in sys.excepthook nor
 * another client hears of a typing error.
 * ====================================================================================== */

/* Whoever waits for modules to be imported, by itself or by another session, waits for nothing that
 * is stuck: there is a new one. */
static void
note_progress(void)
{
    int64_t now_ms = monotonic_ms();
    for (size_t i = 0; i < atomic_load(&manhole.sessions_end); i++) {
        struct session *session = &manhole.sessions[i];
        lock_leaf(&session->out_lock);
        if (session->importing && session->asked_ms != 0 && !session->answered) {
            session->asked_ms = now_ms;
            session->waiting_ms = session->waiting_ms == 0 ? 0 : now_ms;
        }
        unlock(&session->out_lock);
    }
}

static void
set_importing(struct session *session, bool importing)
{
    lock_leaf(&session->out_lock);
    session->importing = importing;
    unlock(&session->out_lock);
}

/* Tells the log of modules that cannot be imported, and the client, but who has a protocol of its
 * own. Takes over the exception. Never raises. */
ATTACHED static void
tell_missing(struct session *session, const char *names, PyObject *why /* new, or NULL */,
             const char *ahead /* of the client's line; NULL: it is told nothing */)
{
    char line[LOG_LINE_SIZE];
    char text[LOG_LINE_SIZE / 2];
    (void)snprintf(line, sizeof(line), "%smanhole: cannot import %s: %s\n",
                   ahead == NULL ? "" : ahead, names,
                   describe_exception(why, text, sizeof(text)));
    log_line("Cannot import %s: %s", names, text);
    deliver_log();
    if (ahead != NULL && write_as(session, FRAME_ERROR, line, strlen(line)) < 0) {
        PyErr_Clear(); /* it is gone: that is found out soon enough */
    }
    Py_XDECREF(why);
}

/* Imports what sessions need, in small steps: each lets go of the GIL for every file that it looks
 * for, which takes its time beside threads that compute (IMPORT_FACTOR). A fork waits until that is
 * done: the child of one in the middle of it could never import those modules, for CPython does not
 * make their locks anew. What cannot be imported is told as tell_missing() does. Returns whether
 * there was any. Never raises. */
ATTACHED static bool
import_needed_modules(struct session *session, const char *ahead)
{
    static const char *const names[] = {
        "os",         "enum",     "re",        "collections", "selectors",
        "socket",     "token",    "codecs",    "tokenize",    "linecache",
        "contextlib", "textwrap", "traceback", "codeop",      "code"};
    char missing[200] = "";
    PyObject *why = NULL; /* owned: of the first that is missing */
    set_importing(session, true);
    lock_attached(&import_lock);
    if (!is_imported("threading") && is_found_normally("threading")) {
        import_threading();
    }
    for (size_t i = 0; i < Py_ARRAY_LENGTH(names); i++) {
        PyObject *module = import_standard(names[i]); /* owned */
        if (module == NULL) {
            size_t length = strlen(missing);
            PyObject *raised = take_exception(); /* owned */
            (void)snprintf(missing + length, sizeof(missing) - length, "%s%s",
                           length == 0 ? "" : ", ", names[i]);
            why = why == NULL ? Py_XNewRef(raised) : why;
            Py_XDECREF(raised);
        }
        Py_XDECREF(module);
        note_progress();
    }
    unlock(&import_lock);
    set_importing(session, false);
    if (missing[0] != '\0') {
        tell_missing(session, missing, why, ahead);
    }
    return missing[0] != '\0';
}

/* get_from_part(), of one that imports: a fork waits for that, and it is no hang. */
ATTACHED static PyObject *
import_part(struct session *session, const struct part *part, const char *name)
{
    PyObject *found = NULL; /* new, handed to the caller */
    set_importing(session, true);
    lock_attached(&import_lock);
    found = get_from_part(manhole.module, part, name);
    unlock(&import_lock);
    set_importing(session, false);
    return found;
}

/* Remembers an exception for pdb.pm() as sys.last_value and its relatives, until the last
 * client leaves. Never raises. */
ATTACHED static void
remember_exception(PyObject *type, PyObject *value, PyObject *traceback)
{
    struct held held;
    const struct {
        const char *name;
        PyObject *value;
    } rows[] = {
        {"last_type", type},
        {"last_value", value},
        {"last_traceback", traceback},
        {"last_exc", value},
    };
    lock_sys(&held);
    for (size_t i = 0; i < Py_ARRAY_LENGTH(rows); i++) {
        if (borrow_attribute(borrowed_row(rows[i].name), rows[i].value) < 0) {
            PyErr_Clear();
        }
    }
    unlock_sys(&held);
}

/* What C alone makes of an exception, where the module traceback cannot be had. Returns a new str, or
 * NULL with an exception. */
ATTACHED static PyObject *
format_plainly(PyObject *exception, PyObject *traceback /* or None */)
{
    PyObject *io = PyImport_ImportModule("io"); /* owned */
    PyObject *file = NULL;                      /* owned */
    PyObject *shown = NULL;                     /* owned */
    PyObject *text = NULL;                      /* new, handed to the caller */
    if (io != NULL) {
        file = PyObject_CallMethod(io, "StringIO", NULL);
    }
    if (file != NULL &&
        (traceback == Py_None || PyTraceBack_Print(traceback, file) == 0)) {
        shown = PyObject_CallMethod(file, "getvalue", NULL);
    }
    if (shown != NULL) {
        text = PyUnicode_FromFormat("%U%s: %S\n", shown, Py_TYPE(exception)->tp_name,
                                    exception);
    }
    Py_XDECREF(io);
    Py_XDECREF(file);
    Py_XDECREF(shown);
    return text;
}

/* What traceback.format_exception() makes of an exception, or without its traceback what
 * format_exception_only() does. Returns a new str, or NULL with an exception. */
ATTACHED static PyObject *
format_raised(PyObject *exception, PyObject *traceback /* or None */, bool alone)
{
    PyObject *type = (PyObject *)Py_TYPE(exception); /* borrowed */
    PyObject *module = import_standard("traceback"); /* owned */
    PyObject *empty = NULL;                          /* owned */
    PyObject *lines = NULL;                          /* owned */
    PyObject *text = NULL;                           /* new, handed to the caller */
    if (module == NULL) {
        PyErr_Clear(); /* it has been told */
        return format_plainly(exception, alone ? Py_None : traceback);
    }
    lines = alone ? PyObject_CallMethod(module, "format_exception_only", "OO", type,
                                        exception)
                  : PyObject_CallMethod(module, "format_exception", "OOO", type,
                                        exception, traceback);
    empty = lines == NULL ? NULL : PyUnicode_FromString("");
    text = empty == NULL ? NULL : PyUnicode_Join(empty, lines);
    Py_DECREF(module);
    Py_XDECREF(empty);
    Py_XDECREF(lines);
    return text;
}

/* Writes a text to the client, which it takes over. Returns None, or NULL with an exception. */
ATTACHED static PyObject *
show_text(PyObject *text /* new, or NULL with an exception */)
{
    int result = text == NULL ? -1 : 0;
    if (text != NULL && current_session != NULL) {
        result = write_client_str(current_session, text);
    }
    Py_XDECREF(text);
    return result < 0 ? NULL : Py_NewRef(Py_None);
}

/* Shows the exception being handled, less the code module's own frame. */
ATTACHED static PyObject *
show_exception(bool alone)
{
    PyObject *type = NULL;         /* owned */
    PyObject *value = NULL;        /* owned */
    PyObject *raised_in = NULL;    /* owned */
    PyObject *ours_skipped = NULL; /* owned */
    PyObject *text = NULL;         /* new, handed to show_text() */
    PyErr_GetExcInfo(&type, &value, &raised_in);
    if (value == NULL) {
        PyErr_SetString(PyExc_RuntimeError, "no exception is being handled");
        goto done;
    }
    ours_skipped = raised_in == NULL || raised_in == Py_None
                       ? Py_NewRef(Py_None)
                       : PyObject_GetAttrString(raised_in, "tb_next");
    if (ours_skipped == NULL) {
        goto done;
    }
    if (type == NULL) {
        type = Py_NewRef((PyObject *)Py_TYPE(value));
    }
    remember_exception(type, value, ours_skipped);
    text = format_raised(value, ours_skipped, alone);
done:
    Py_XDECREF(type);
    Py_XDECREF(value);
    Py_XDECREF(raised_in);
    Py_XDECREF(ours_skipped);
    return show_text(text);
}

ATTACHED static PyObject *
console_showtraceback(PyObject *self, PyObject *unused)
{
    (void)self;
    (void)unused;
    return show_exception(false);
}

/* CPython 3.13 and newer hand the source over: the compiler's own errors have no line of it. Never
 * raises. */
ATTACHED static void
add_source_line(PyObject *error, PyObject *source)
{
    PyObject *text = PyObject_GetAttrString(error, "text");            /* owned */
    PyObject *number = PyObject_GetAttrString(error, "lineno");        /* owned */
    PyObject *lines = PyObject_CallMethod(source, "splitlines", NULL); /* owned */
    if (text != NULL && number != NULL && lines != NULL && PyList_Check(lines) &&
        PyObject_IsTrue(text) == 0) {
        PyObject *line =
            PyList_GetItem(lines, PyLong_AsSsize_t(number) - 1); /* borrowed */
        if (line != NULL) {
            (void)PyObject_SetAttrString(error, "text", line);
        }
    }
    PyErr_Clear();
    Py_XDECREF(text);
    Py_XDECREF(number);
    Py_XDECREF(lines);
}

/* Python would call it a codec's error, in a text that its client never typed. */
ATTACHED static PyObject *
show_undecodable(void)
{
    static const char message[] =
        "manhole: what came is not UTF-8, so it was not run; type it again, and see "
        "that the terminal sends UTF-8\n";
    struct session *session = current_session;
    return session != NULL && write_client(session, message, sizeof(message) - 1) < 0
               ? NULL
               : Py_NewRef(Py_None);
}

ATTACHED static PyObject *
console_showsyntaxerror(PyObject *self, PyObject *arguments, PyObject *keywords)
{
    PyObject *source =
        keywords == NULL ? NULL : PyDict_GetItemString(keywords, "source"); /* borrowed */
    PyObject *type = NULL;                                                  /* owned */
    PyObject *value = NULL;                                                 /* owned */
    PyObject *traceback = NULL;                                             /* owned */
    bool undecodable = false;
    (void)self;
    (void)arguments;
    PyErr_GetExcInfo(&type, &value, &traceback);
    if (source != NULL && value != NULL &&
        Py_TYPE(value) == (PyTypeObject *)PyExc_SyntaxError) {
        add_source_line(value, source);
    }
    undecodable =
        value != NULL && Py_TYPE(value) == (PyTypeObject *)PyExc_UnicodeEncodeError;
    Py_XDECREF(type);
    Py_XDECREF(value);
    Py_XDECREF(traceback);
    return undecodable ? show_undecodable() : show_exception(true);
}

static PyMethodDef console_methods[] = {
    {"showtraceback", console_showtraceback, METH_NOARGS, NULL},
    {"showsyntaxerror", (PyCFunction)(void (*)(void))console_showsyntaxerror,
     METH_VARARGS | METH_KEYWORDS, NULL},
    {NULL, NULL, 0, NULL},
};

/* A class of the standard library's with methods of ours, made at the first call and kept. */
struct derived {
    const char *name;
    const char *module;      /* of the base */
    const struct part *part; /* or one of ours, which makes it */
    const char *base;
    PyMethodDef *methods;
};

/* Returns a new reference to the base of such a class, or NULL with an exception. */
ATTACHED static PyObject *
find_base(const struct derived *derived)
{
    PyObject *from = NULL; /* owned */
    PyObject *base = NULL; /* new, handed to the caller */
    if (derived->part != NULL) {
        return get_from_part(manhole.module, derived->part, derived->base);
    }
    from = import_standard(derived->module);
    if (from != NULL) {
        base = PyObject_GetAttrString(from, derived->base);
        Py_DECREF(from);
    }
    return base;
}

/* Returns a new reference to a new class, or NULL with an exception. */
ATTACHED static PyObject *
make_derived(const struct derived *derived)
{
    PyObject *base = find_base(derived); /* owned */
    PyObject *type = NULL;               /* owned, handed to the caller */
    if (base == NULL) {
        return NULL;
    }
    type = PyObject_CallFunction((PyObject *)Py_TYPE(base), "s(O){ss}", derived->name,
                                 base, "__module__", "manhole");
    for (PyMethodDef *method = derived->methods; type != NULL && method->ml_name != NULL;
         method++) {
        PyObject *descriptor =
            PyDescr_NewMethod((PyTypeObject *)type, method); /* owned */
        if (descriptor == NULL ||
            PyObject_SetAttrString(type, method->ml_name, descriptor) < 0) {
            Py_CLEAR(type);
        }
        Py_XDECREF(descriptor);
    }
    Py_DECREF(base);
    return type;
}

/* Returns a new reference to the class, which is kept in *kept, the same for sessions that begin at
 * once; NULL with an exception. */
ATTACHED static PyObject *
get_derived(const struct derived *derived, PyObject **kept)
{
    PyObject *type = NULL; /* owned, handed to the caller */
    lock_attached(&import_lock);
    if (*kept == NULL) {
        *kept = make_derived(derived);
    }
    type = Py_XNewRef(*kept);
    unlock(&import_lock);
    return type;
}

/* Shows a value to the client: along with the prompt when nothing is left to run before that, for
 * each send lets go of the GIL, which other threads may keep for some time. */
ATTACHED static int
show_value(struct session *session, PyObject *shown /* str */)
{
    /* A function that calls the hook has other locals. */
    if (session->one_act && PyUnicode_GET_LENGTH(shown) <= MAX_SHOWN &&
        PyEval_GetLocals() == session->names) {
        session->one_act = false;
        append_str(&session->unsent, shown);
        return check_unsent(session);
    }
    PyErr_Clear(); /* without any frame there are no locals */
    return write_client_str(session, shown);
}

/* sys.displayhook while clients have consoles: `_` is a name of the session, never of
 * builtins. */
ATTACHED static PyObject *
py_displayhook(PyObject *module, PyObject *value)
{
    struct session *session = console_session();
    PyObject *shown = NULL;  /* owned */
    PyObject *result = NULL; /* new, handed to the caller */
    (void)module;
    if (session == NULL) {
        PyObject *original = NULL; /* owned */
        lock_attached(&sys_lock);
        original = Py_XNewRef(borrowed_row("displayhook")->previous);
        unlock(&sys_lock);
        if (original == NULL) {
            original = get_sys("__displayhook__");
        }
        if (original != NULL) {
            result = PyObject_CallOneArg(original, value);
            Py_DECREF(original);
            return result;
        }
        return Py_NewRef(Py_None);
    }
    if (value == Py_None) {
        return Py_NewRef(Py_None);
    }
    shown = PyUnicode_FromFormat("%R\n", value);
    if (shown != NULL && show_value(session, shown) == 0 &&
        (session->names == NULL ||
         !PyDict_Check(session->names) || /* a plugin's command has none */
         PyDict_SetItemString(session->names, "_", value) == 0)) {
        result = Py_NewRef(Py_None);
    }
    Py_XDECREF(shown);
    return result;
}

/* A namespace of eventlet's kind: the application's mapping is not copied but looked at, so that a
 * client sees it change, and what the client assigns the application finds there. But `_` and what
 * we add are the client's own. */
static const char live_names_program[] =
    "class Names(dict):\n"
    "    def __init__(self, own, theirs):\n"
    "        super().__init__({name: own[name] for name in own if name not in theirs})\n"
    "        self.theirs = theirs\n"
    "    def is_own(self, name):\n"
    "        return name == '_' or super().__contains__(name)\n"
    "    def __missing__(self, name):\n"
    "        return self.theirs[name]\n"
    "    def __contains__(self, name):\n"
    "        return super().__contains__(name) or name in self.theirs\n"
    "    def __setitem__(self, name, value):\n"
    "        if self.is_own(name):\n"
    "            super().__setitem__(name, value)\n"
    "        else:\n"
    "            self.theirs[name] = value\n"
    "    def __delitem__(self, name):\n"
    "        if self.is_own(name):\n"
    "            super().__delitem__(name)\n"
    "        else:\n"
    "            del self.theirs[name]\n"
    "    def keys(self):\n"
    "        return super().keys() | self.theirs.keys()\n";

static const struct part live_names_part = {.name = "live names",
                                            .program = live_names_program};

/* Returns a new dict of that class, or NULL with an exception. */
ATTACHED static PyObject *
make_live_names(PyObject *own, PyObject *theirs)
{
    return call_part(manhole.module, &live_names_part, "Names", own, theirs);
}

/* The console's namespace: python-manhole's names, as far as they can be imported, then those of
 * locals, copied or as they are at any time. Returns a new dict, or NULL with an exception. */
ATTACHED static PyObject *
make_names(PyObject *locals, bool live)
{
    static const char *const modules[] = {"sys", "os", "socket", "traceback"};
    PyObject *dump =
        PyObject_GetAttrString(manhole.module, "dump_stacktraces"); /* owned */
    PyObject *names = PyDict_New(); /* owned, handed to the caller */
    /* Else exec() in a module of our own would have them see its builtins. */
    bool failed = dump == NULL || names == NULL ||
                  PyDict_SetItemString(names, "__builtins__", PyEval_GetBuiltins()) < 0 ||
                  PyDict_SetItemString(names, "dump_stacktraces", dump) < 0;
    for (size_t i = 0; !failed && i < Py_ARRAY_LENGTH(modules); i++) {
        PyObject *module = import_standard(modules[i]); /* owned */
        failed = module != NULL && PyDict_SetItemString(names, modules[i], module) < 0;
        if (module == NULL) {
            PyErr_Clear(); /* it has been told */
        }
        Py_XDECREF(module);
    }
    if (!failed && locals != NULL && live) {
        Py_SETREF(names, make_live_names(names, locals));
    }
    else if (!failed && locals != NULL) {
        failed = PyDict_Update(names, locals) < 0;
    }
    if (failed) {
        Py_CLEAR(names);
    }
    Py_XDECREF(dump);
    return names;
}

/* Sets the session's namespace, which another session may be about to look at. */
ATTACHED static void
set_names(struct session *session, PyObject *names /* new: taken over; or NULL */)
{
    PyObject *previous = NULL; /* owned */
    lock_leaf(&table_lock);
    previous = session->names;
    session->names = names;
    unlock(&table_lock);
    Py_XDECREF(previous);
}

/* Python's own banner, as InteractiveConsole.interact() has it. */
static void
append_banner(struct text *text)
{
    append_string(text, "Python ");
    append_string(text, Py_GetVersion());
    append_string(text, " on ");
    append_string(text, Py_GetPlatform());
    append_string(text,
                  "\nType \"help\", \"copyright\", \"credits\" or \"license\" for more "
                  "information.\n(ManholeConsole)\n");
}

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

/* Drops the rest of a line that is too long, says so. Returns a new empty line, or NULL. */
ATTACHED static PyObject *
skip_line(struct session *session)
{
    static const char message[] = "manhole: line too long (limit: 16 MiB), ignored\n";
    bool skipped = false;
    while (!skipped) {
        PyObject *rest = PyObject_CallMethod(session->input, "readline", "i", MAX_LINE);
        if (rest == NULL) {
            return NULL;
        }
        skipped = PyUnicode_GetLength(rest) == 0 || ends_line(rest);
        Py_DECREF(rest);
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
    PyObject *line = NULL; /* owned, handed to the caller */
    if (PyErr_CheckSignals() < 0) {
        return NULL; /* in a oneshot: read() looks only when it is interrupted */
    }
    line = PyObject_CallMethod(session->input, "readline", "i", MAX_LINE);
    if (line == NULL) {
        return NULL;
    }
    if (send_unsent(session) < 0) { /* the line had come with the one before */
        Py_CLEAR(line);
    }
    else if (!PyUnicode_Check(line)) {
        PyErr_SetString(PyExc_TypeError, "sys.stdin.readline() returned no str");
        Py_CLEAR(line);
    }
    else if (PyUnicode_GetLength(line) == MAX_LINE && !ends_line(line)) {
        Py_SETREF(line, skip_line(session));
    }
    else if (!ends_line(line) && is_gone(session)) {
        Py_SETREF(line, PyUnicode_FromString(""));
    }
    return line;
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
    PyObject *line = read_any_line(session); /* owned, handed to the caller */
    while (line != NULL && is_taken_back(session, line)) {
        Py_CLEAR(line);
        atomic_store(&session->taken_back, false);
        if (atomic_load(&session->interrupts) > 0) {
            atomic_fetch_sub(&session->interrupts, 1);
            line = read_any_line(session);
        }
        else {
            PyErr_SetNone(PyExc_KeyboardInterrupt);
        }
    }
    return line;
}

ATTACHED static int release(void);

/* A statement forked, and this is the child, whose main() is our loop: there is nothing
 * to go back to, and its client belongs to the parent. */
ATTACHED static void
leave_forked_child(void)
{
    static const char *const names[] = {"stdout", "stderr"};
    for (size_t i = 0; i < Py_ARRAY_LENGTH(names); i++) {
        PyObject *stream = get_sys(names[i]); /* owned */
        PyObject *flushed = NULL;             /* owned */
        if (stream != NULL && stream != Py_None) {
            flushed = PyObject_CallMethod(stream, "flush", NULL);
        }
        PyErr_Clear();
        Py_XDECREF(stream);
        Py_XDECREF(flushed);
    }
    if (release() < 0) {
        PyErr_Clear();
    }
    _exit(0);
}

/* Raises an exception in what the session runs. */
ATTACHED static void
strike(struct session *session, PyObject *type)
{
    atomic_store(&session->stricken, true);
    (void)PyThreadState_SetAsyncExc(atomic_load(&session->ident), type);
}

/* Between these two the session runs what its client sent: it may be interrupted. */
ATTACHED static void
begin_running(struct session *session)
{
    bool taken_back = false;
    atomic_store(&session->running, true);
    taken_back = atomic_load(&session->taken_back);
    atomic_store(&session->interrupts, taken_back);
    if (taken_back) {
        strike(session, PyExc_KeyboardInterrupt);
    }
}

ATTACHED static void
end_running(struct session *session)
{
    atomic_store(&session->running, false);
    if (atomic_exchange(&session->stricken, false)) {
        settle_interrupts(); /* it may have come too late */
    }
    if (session->state == SESSION_BURNT && current_session == NULL) {
        leave_forked_child();
    }
}

/* What became of a line. */
enum verdict {
    LINE_DONE,
    LINE_WANTS_MORE,
    SESSION_OVER, /* with or without an exception set */
};

/* Tells the client what the compiler has given up on. Returns 0, or -1 with an exception. */
ATTACHED static int
show_compiler_error(void)
{
    PyObject *error = take_exception();                                 /* owned */
    PyObject *written = show_text(format_raised(error, Py_None, true)); /* owned */
    Py_XDECREF(error);
    Py_XDECREF(written);
    return written == NULL ? -1 : 0;
}

/* After an exception that left the console: an interrupt, or a statement beyond the compiler's
 * limits, only costs the statement. */
ATTACHED static enum verdict
judge_exception(struct session *session, PyObject *console)
{
    static const char message[] = "\nKeyboardInterrupt\n";
    PyObject *reset = NULL; /* owned */
    if (PyErr_ExceptionMatches(PyExc_KeyboardInterrupt)) {
        size_t skipped = session->wish->marked ? 1 : 0; /* there Ctrl-C ends the line */
        PyErr_Clear();
        if (write_client(session, message + skipped, sizeof(message) - 1 - skipped) < 0) {
            return SESSION_OVER;
        }
    }
    else if (PyErr_ExceptionMatches(PyExc_MemoryError) ||
             PyErr_ExceptionMatches(PyExc_RecursionError)) {
        if (show_compiler_error() < 0) {
            return SESSION_OVER;
        }
    }
    else {
        if (PyErr_ExceptionMatches(PyExc_SystemExit)) {
            PyErr_Clear();
        }
        return SESSION_OVER;
    }
    reset = PyObject_CallMethod(console, "resetbuffer", NULL);
    Py_XDECREF(reset);
    return reset == NULL ? SESSION_OVER : LINE_DONE;
}

/* Whether a line that begins a statement is all of it, and does but one thing: then the value that
 * it shows is its end. May say no to one that is: of a backslash the compiler may have to warn, and
 * the console sees to it that it does so once. */
static bool
is_one_act(PyObject *line)
{
    static const char *const signs = ":;\\";
    bool found = false;
    for (size_t i = 0; signs[i] != '\0' && !found; i++) {
        found = PyUnicode_FindChar(line, (Py_UCS4)signs[i], 0, PyUnicode_GET_LENGTH(line),
                                   1) != -1;
    }
    return !found;
}

/* Compiles such a line once, where the console does it twice and more to find out whether it goes
 * on. Returns new code; or NULL, without an exception when it is for the console to say why. */
ATTACHED static PyObject *
compile_one_act(PyObject *console, PyObject *line)
{
    PyObject *command = PyObject_GetAttrString(console, "compile"); /* owned */
    PyObject *compiler =
        command == NULL ? NULL : PyObject_GetAttrString(command, "compiler"); /* owned */
    PyObject *code = NULL; /* new, handed to the caller */
    if (compiler != NULL) {
        code = PyObject_CallFunction(compiler, "Oss", line, "<console>", "single");
    }
    if (code == NULL && PyErr_ExceptionMatches(PyExc_Exception)) {
        PyErr_Clear();
    }
    Py_XDECREF(command);
    Py_XDECREF(compiler);
    return code;
}

/* Runs what was pasted as a file would be: nothing of it when the compiler refuses a part, else one
 * statement after the other until one fails; but each shows its value, as it does at the prompt. It
 * may be indented, or have doctest's prompts. Where it is but the beginning of a statement, more is
 * wanted; into a block that is being typed it goes as it is, and the block goes on where its end is
 * indented. Nothing is imported for it. */
static const char paste_program[] =
    "def lines_of(text, first):\n"
    "    margin = first[:len(first) - len(first.lstrip())]\n"
    "    lines = [line.removeprefix(margin) for line in text.split('\\n')]\n"
    "    if first.startswith(margin + '>>>'):\n"
    "        return [line[4:] for line in lines if line.startswith(('>>>', '...'))]\n"
    "    return lines\n"
    "def compiled(console, source, only_ast):\n"
    "    def parse(source, mode):\n"
    "        return compile(source, console.filename, mode, only_ast, True)\n"
    "    for statement in parse(source, 'exec').body:\n"
    "        single = parse('0', 'single')\n"
    "        single.body = [statement]\n"
    "        yield console.compile.compiler(single, console.filename, 'single')\n"
    "def is_begun(console, source):\n"
    "    try:\n"
    "        return console.compile(source, console.filename, 'single') is None\n"
    "    except (OverflowError, SyntaxError, ValueError):\n"
    "        return False\n"
    "def run(console, text, only_ast):\n"
    "    full = [line for line in text.split('\\n') if line.strip()]\n"
    "    code = [line for line in full if not line.lstrip().startswith('#')]\n"
    "    if not console.buffer:\n"
    "        source = '\\n'.join(lines_of(text, (code or [''])[0]))\n"
    "    elif not full or full[-1][0].isspace():\n"
    "        return console.push(text)\n"
    "    else:\n"
    "        source = '\\n'.join([*console.buffer, text])\n"
    "        console.resetbuffer()\n"
    "    try:\n"
    "        statements = list(compiled(console, source, only_ast))\n"
    "    except (OverflowError, SyntaxError, ValueError):\n"
    "        if is_begun(console, source):\n"
    "            return console.push(source)\n"
    "        console.showsyntaxerror(console.filename, source=source)\n"
    "        return False\n"
    "    for statement in statements:\n"
    "        try:\n"
    "            exec(statement, console.locals)\n"
    "        except SystemExit:\n"
    "            raise\n"
    "        except BaseException:\n"
    "            console.showtraceback()\n"
    "            break\n"
    "    return False\n";

static const struct part paste_part = {.name = "paste", .program = paste_program};

/* Returns a new bool, whether more lines are wanted; or NULL with an exception. */
ATTACHED static PyObject *
run_paste(PyObject *console, PyObject *text)
{
    PyObject *run = get_from_part(manhole.module, &paste_part, "run"); /* owned */
    PyObject *more = NULL; /* new, handed to the caller */
    if (run != NULL) {
        more = PyObject_CallFunction(run, "OOi", console, text, PyCF_ONLY_AST);
    }
    Py_XDECREF(run);
    return more;
}

/* Runs what a line completes, if it does. Returns a new bool, whether more lines are wanted; or
 * NULL with an exception. */
ATTACHED static PyObject *
run_line(struct session *session, PyObject *console, PyObject *line)
{
    PyObject *code = session->one_act ? compile_one_act(console, line) : NULL; /* owned */
    PyObject *ran = NULL;                                                      /* owned */
    PyObject *more = NULL; /* new, handed to the caller */
    if (code != NULL) {
        ran = PyObject_CallMethod(console, "runcode", "O", code);
        more = ran == NULL ? NULL : Py_NewRef(Py_False);
    }
    else if (!PyErr_Occurred()) {
        more = PyObject_CallMethod(console, "push", "O", line);
    }
    Py_XDECREF(code);
    Py_XDECREF(ran);
    return more;
}

/* begins: no block is being typed. */
ATTACHED static enum verdict
push_line(struct session *session, PyObject *console, PyObject *line, bool begins,
          bool is_paste)
{
    Py_ssize_t length = PyUnicode_GetLength(line) - (ends_line(line) ? 1 : 0);
    PyObject *bare = PyUnicode_Substring(line, 0, length); /* owned */
    PyObject *more = NULL;                                 /* owned */
    enum verdict verdict = SESSION_OVER;
    if (bare == NULL) {
        return SESSION_OVER;
    }
    replace_streams();
    session->one_act = begins && !is_paste && is_one_act(bare);
    begin_running(session);
    more = is_paste ? run_paste(console, bare) : run_line(session, console, bare);
    end_running(session);
    session->one_act = false;
    if (more != NULL) {
        verdict = more == Py_True ? LINE_WANTS_MORE : LINE_DONE;
    }
    else {
        verdict = judge_exception(session, console);
    }
    Py_DECREF(bare);
    Py_XDECREF(more);
    return verdict;
}

/* Returns the descriptor, the session's, at which the client's bytes are to be read; or -1 with an
 * exception. */
ATTACHED static int
open_input_fd(struct session *session)
{
    int fd = kept_number(&session->fd);
    int flags = fcntl(fd, F_GETFL);
    if (flags >= 0 && (flags & O_NONBLOCK) != 0) {
        (void)fcntl(fd, F_SETFL,
                    flags & ~O_NONBLOCK); /* a socket object's timeout set it */
    }
    if (is_inet(fd) && atomic_load(&session->plain_fd.number) < 0) {
        PyThreadState *tstate = detach();
        int error = 0;
        fd = open_telnet(session);
        error = errno;
        reattach(tstate);
        errno = error;
    }
    if (fd < 0) {
        PyErr_SetFromErrno(PyExc_OSError);
    }
    return fd;
}

/* A client asks, or waits for its console: it must have heard something within hang_timeout, or a
 * reporter tells it why not. */
DETACHED static void
expect_answer(struct session *session)
{
    int64_t now_ms = monotonic_ms();
    int64_t wakes_at_ms = -1;
    lock_leaf(&session->out_lock);
    session->waiting_ms = now_ms;
    session->asked_ms = session->asked_ms == 0 ? 0 : now_ms; /* 0: nobody watches it */
    session->answered = false;
    session->reported = false;
    session->told = false;
    unlock(&session->out_lock);
    /* A listener that wakes in time anyway sees it then: most lines cost it nothing. */
    wakes_at_ms = atomic_load(&manhole.wakes_at_ms);
    if (wakes_at_ms < 0 ||
        wakes_at_ms > now_ms + seconds_to_ms(manhole.options.hang_timeout)) {
        ring_bell(&manhole.wake_bell);
    }
}

/* Under out_lock, when nobody sends. Returns whether a reporter has told the client already. */
static bool
note_answer(struct session *session)
{
    session->answered = true;
    session->waiting_ms = 0;
    return session->told;
}

/* Python has answered: no reporter has to any more. Returns as note_answer(). */
DETACHED static bool
settle_report(struct session *session)
{
    bool told = false;
    lock_leaf(&session->out_lock);
    while (session->sending) { /* a reporter in the middle of it comes to its end */
        (void)pthread_cond_wait(&session->out_free, &session->out_lock);
    }
    told = note_answer(session);
    unlock(&session->out_lock);
    return told;
}

/* The same, for who is attached, and stays so unless a reporter is in the middle of it. */
ATTACHED static bool
settle_report_attached(struct session *session)
{
    bool sending = false;
    bool told = false;
    lock_leaf(&session->out_lock);
    sending = session->sending;
    told = !sending && note_answer(session);
    unlock(&session->out_lock);
    if (sending) {
        PyThreadState *tstate = detach();
        told = settle_report(session);
        reattach(tstate);
    }
    return told;
}

/* See open_input_fd(). */
static int
input_fd(struct session *session)
{
    return kept_number(atomic_load(&session->plain_fd.number) >= 0 ? &session->plain_fd
                                                                   : &session->fd);
}

/* What is typed at a terminal: a client whose wish is marked sends its keys Ctrl-C and Ctrl-D as
 * those bytes among the text, and each is for who reads just then, be it the console, input() or
 * Pdb. What is pasted comes between two more, which make one of it to the console.
 *
 * What such a client hears is marked in turn, for it must know whether somebody reads, and what the
 * prompt is: "\1?PROMPT\2" when the session begins to wait, "\1!\2" when it has got something. Of
 * input() and Pdb the prompt is the line that they have written before, and PROMPT is empty. */
enum { PASTE_BEGINS = 2, PASTE_ENDS = 5 };

static bool
is_key(const struct session *session, char byte)
{
    return session->wish->marked && (byte == CTRL_C || byte == CTRL_D ||
                                     byte == PASTE_BEGINS || byte == PASTE_ENDS);
}

/* The prompt, with the marks for a client that wants them. */
static void
append_prompt(struct text *text, const struct session *session, const char *prompt)
{
    append_string(text, session->wish->marked ? "\1?" : "");
    append_string(text, prompt);
    append_string(text, session->wish->marked ? "\2" : "");
}

/* As recv(), up to the next key, or that key alone. */
DETACHED static ssize_t
receive_up_to_key(struct session *session, int fd, char *bytes, size_t size)
{
    ssize_t got = recv(fd, bytes, size, session->wish->marked ? MSG_PEEK : 0);
    size_t length = 0;
    if (got <= 0 || !session->wish->marked) {
        return got;
    }
    while (length < (size_t)got && !is_key(session, bytes[length])) {
        length++;
    }
    return recv(fd, bytes, length == 0 ? 1 : length, 0);
}

/* The session has got something to read. An error shows when it writes on. */
DETACHED static void
send_read_mark(struct session *session)
{
    const char *mark = "\1!\2";
    size_t length = strlen(mark);
    session->says_it_reads = false;
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
    if (got > 0 && session->wish->marked && !session->pasting) {
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
    if (session->wish->marked && !session->says_it_reads && !session->pasting) {
        session->says_it_reads = true;
        append_prompt(&session->unsent, session,
                      session->prompt == NULL ? "" : session->prompt);
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
    session->says_it_reads = session->says_it_reads && got >= 0;
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
        if (bytes[0] == CTRL_D || session->takes_paste) {
            bool was_pasting = session->pasting;
            session->pasting = bytes[0] == PASTE_BEGINS;
            if (bytes[0] != PASTE_ENDS || was_pasting) {
                return 0;
            }
        }
    }
}

ATTACHED static PyObject *
input_readinto(PyObject *self, PyObject *target)
{
    Py_buffer view;
    ssize_t got = -1;
    (void)self;
    if (current_session == NULL) {
        PyErr_SetString(PyExc_OSError, "only a session's thread reads its client");
        return NULL;
    }
    if (PyObject_GetBuffer(target, &view, PyBUF_WRITABLE) < 0) {
        return NULL;
    }
    got = read_typed(current_session, view.buf, (size_t)view.len);
    PyBuffer_Release(&view);
    return got < 0 ? NULL : PyLong_FromSsize_t(got);
}

ATTACHED static PyObject *
input_readable(PyObject *self, PyObject *unused)
{
    (void)self;
    (void)unused;
    return Py_NewRef(Py_True);
}

ATTACHED static PyObject *
input_fileno(PyObject *self, PyObject *unused)
{
    (void)self;
    (void)unused;
    if (current_session == NULL) {
        PyErr_SetString(PyExc_OSError, "only a session's thread has its client");
        return NULL;
    }
    return make_descriptor(input_fd(current_session));
}

static PyMethodDef input_methods[] = {
    {"readinto", input_readinto, METH_O, NULL},
    {"readable", input_readable, METH_NOARGS, NULL},
    {"fileno", input_fileno, METH_NOARGS, NULL},
    {NULL, NULL, 0, NULL},
};

/* A text file over what the client types. Returns a new reference, or NULL with an exception. */
ATTACHED static PyObject *
open_typed_input(struct session *session)
{
    static const struct derived derived = {
        .name = "Input", .module = "io", .base = "RawIOBase", .methods = input_methods};
    PyObject *type = get_derived(&derived, &installed_state()->input_type); /* owned */
    PyObject *io = type == NULL ? NULL : PyImport_ImportModule("io");       /* owned */
    PyObject *name = PyUnicode_FromString(stream_name);                     /* owned */
    PyObject *mode = PyUnicode_FromString("r");                             /* owned */
    PyObject *raw = NULL;                                                   /* owned */
    PyObject *buffer = NULL;                                                /* owned */
    PyObject *text = NULL; /* new, handed to the caller */
    if (io != NULL && name != NULL && mode != NULL && open_input_fd(session) >= 0) {
        raw = PyObject_CallNoArgs(type);
    }
    if (raw != NULL && PyObject_SetAttrString(raw, "name", name) == 0) {
        buffer = PyObject_CallMethod(io, "BufferedReader", "O", raw);
    }
    if (buffer != NULL) {
        text = PyObject_CallMethod(io, "TextIOWrapper", "Oss", buffer, "utf-8",
                                   "surrogateescape");
    }
    if (text != NULL && PyObject_SetAttrString(text, "mode", mode) < 0) {
        Py_CLEAR(text);
    }
    Py_XDECREF(type);
    Py_XDECREF(io);
    Py_XDECREF(name);
    Py_XDECREF(mode);
    Py_XDECREF(raw);
    Py_XDECREF(buffer);
    return text;
}

/* A text file over the client's socket, for reading; the descriptor stays the session's.
 * Bytes that are no UTF-8 become lone surrogates: the line fails with an error, the
 * session goes on. */
ATTACHED static PyObject *
open_input(struct session *session)
{
    int fd = open_input_fd(session);
    return fd < 0 ? NULL
                  : PyFile_FromFd(fd, stream_name, "r", -1, "utf-8", "surrogateescape",
                                  NULL, 0);
}

/* Reads the line that a prompt has asked for. Returns as read_line() does; NULL without an
 * exception after a SystemExit, which is not the client's, for nothing of its runs now: it goes
 * on where it came from. */
ATTACHED static PyObject *
await_line(struct session *session)
{
    PyObject *line = NULL; /* new, handed to the caller */
    session->writes = 0;
    if (session->input == NULL) {
        session->input = open_typed_input(session);
    }
    line = session->input == NULL ? NULL : read_line(session);
    if (line == NULL && PyErr_ExceptionMatches(PyExc_SystemExit)) {
        Py_XSETREF(session->raised, take_exception());
    }
    return line;
}

/* Asks with a prompt, and reads the line as await_line() does. At a terminal there is no prompt for
 * a line that was typed ahead, and has been read with another. */
ATTACHED static PyObject *
ask_line(struct session *session, const char *prompt)
{
    PyObject *line = NULL; /* new, handed to the caller */
    if (!session->wish->marked) {
        append_string(&session->unsent, prompt);
    }
    session->prompt = prompt;
    line = check_unsent(session) < 0 ? NULL : await_line(session);
    session->prompt = NULL;
    return line;
}

/* The rest of a paste of which the first key has been read. Returns a new str, empty when it is not
 * whole; or NULL with an exception. */
ATTACHED static PyObject *
read_paste(struct session *session)
{
    PyObject *text = PyObject_CallMethod(session->input, "read", "i", MAX_LINE);
    if (text != NULL && session->pasting) {
        Py_SETREF(text, PyUnicode_FromString(""));
    }
    return text;
}

/* Reads what the console is to run next: a line, or what was pasted. Returns as await_line(). */
ATTACHED static PyObject *
read_input(struct session *session, const char *prompt /* NULL: it is there already */,
           bool *is_paste)
{
    PyObject *text = NULL; /* owned, handed to the caller */
    session->takes_paste = true;
    text = prompt == NULL ? await_line(session) : ask_line(session, prompt);
    *is_paste = session->pasting;
    if (text != NULL && session->pasting) {
        Py_SETREF(text, read_paste(session));
    }
    session->takes_paste = session->pasting = false;
    return text;
}

/* Line, prompt, line, prompt; a prompt first, if a reporter has told the client something behind
 * that of the greeting. Returns with an exception set when it was one that ended it. */
ATTACHED static void
run_console(struct session *session, PyObject *console, bool told)
{
    static const char end_of_input[] = "\nnow exiting ManholeConsole...\n";
    PyObject *line = NULL; /* owned */
    bool is_paste = false;
    enum verdict verdict = LINE_DONE;
    line = read_input(session, told ? ">>> " : NULL, &is_paste);
    while (verdict != SESSION_OVER) {
        if (line == NULL) {
            verdict = judge_exception(session, console);
        }
        else if (PyUnicode_GetLength(line) == 0) {
            (void)write_client(session, end_of_input, sizeof(end_of_input) - 1);
            verdict = SESSION_OVER;
        }
        else {
            verdict = push_line(session, console, line, verdict == LINE_DONE, is_paste);
        }
        if (verdict != SESSION_OVER) {
            const char *prompt = verdict == LINE_WANTS_MORE ? "... " : ">>> ";
            Py_XSETREF(line, read_input(session, prompt, &is_paste));
        }
    }
    Py_XDECREF(line);
}

/* Sends the stacks, unless there is no form for them or a reporter was quicker; the banner and the
 * prompt, if it greets. All at once, and Python is let go of once: a process whose threads compute
 * gives the GIL back after some time only. Returns 0, or -1 with an exception. */
ATTACHED static int
send_stacks(struct session *session, const struct form *form /* or NULL */, bool greets)
{
    struct look look = {.frame_count = 0};
    struct text text = {0};
    const char *rest = NULL;
    size_t length = 0;
    int error = 0;
    int result = -1;
    PyThreadState *tstate =
        form == NULL ? detach() : detach_with_stacks(&text, form, &look);
    if (!text.failed && settle_report(session)) {
        free_text(&text);
    }
    if (greets) {
        append_banner(&text);
        append_prompt(&text, session, ">>> ");
        session->says_it_reads = true;
    }
    rest = text.bytes;
    length = text.length;
    if (!text.failed) {
        error = send_detached(session, &rest, &length);
    }
    if (greets) {
        expect_answer(session);
        /* The kernel puts who hears it behind us, for it takes us for done. */
        (void)sched_yield();
    }
    reattach(tstate);
    if (!text.failed) {
        result = conclude_sending(session, error, rest, length);
    }
    else if (!PyErr_Occurred()) {
        PyErr_NoMemory();
    }
    free_look(&look);
    free_text(&text);
    return result;
}

/* As much of code.InteractiveConsole as the prompt needs, for where that cannot be imported. What
 * more lines may complete is one with another error for each, or a bracket that is still open, as
 * codeop had it before CPython told of it. 0x200: PyCF_DONT_IMPLY_DEDENT, a block ends with an empty
 * line. */
static const char plain_console_program[] =
    "class Console:\n"
    "    filename = '<console>'\n"
    "    compile = property(lambda self: self)\n"
    "    def __init__(self, locals):\n"
    "        self.locals = locals\n"
    "        self.resetbuffer()\n"
    "    def resetbuffer(self):\n"
    "        self.buffer = []\n"
    "    def compiler(self, source, filename, symbol):\n"
    "        return compile(source, filename, symbol, 0x200, True)\n"
    "    def __call__(self, source, filename, symbol):\n"
    "        whole = self.is_whole(source)\n"
    "        return self.compiler(source, filename, symbol) if whole else None\n"
    "    def find_error(self, source):\n"
    "        try:\n"
    "            self.compiler(source, '<console>', 'single')\n"
    "        except (SyntaxError, ValueError, OverflowError) as error:\n"
    "            return repr(error)\n"
    "    def is_whole(self, source):\n"
    "        if self.find_error(source) is None:\n"
    "            return True\n"
    "        longer = [self.find_error(source + end) for end in ('\\n', '\\n\\n')]\n"
    "        return None is not longer[0] == longer[1] and 'never closed' not in "
    "longer[0]\n"
    "    def push(self, line):\n"
    "        self.buffer.append(line)\n"
    "        source = '\\n'.join(self.buffer)\n"
    "        if not any(line.split('#')[0].strip() for line in self.buffer):\n"
    "            source = 'pass'\n"
    "        if not self.is_whole(source):\n"
    "            return True\n"
    "        self.resetbuffer()\n"
    "        try:\n"
    "            code = self.compiler(source, '<console>', 'single')\n"
    "        except (SyntaxError, ValueError, OverflowError):\n"
    "            self.showsyntaxerror()\n"
    "        else:\n"
    "            self.runcode(code)\n"
    "        return False\n"
    "    def runcode(self, code):\n"
    "        try:\n"
    "            exec(code, self.locals)\n"
    "        except SystemExit:\n"
    "            raise\n"
    "        except:\n"
    "            self.showtraceback()\n";

static const struct part plain_console_part = {.name = "plain console",
                                               .program = plain_console_program};

/* Returns a new reference to the console's class, or NULL with an exception. A plain one is not
 * kept: the next session may have the other. */
ATTACHED static PyObject *
get_console_type(void)
{
    static const struct derived full = {.name = "ManholeConsole",
                                        .module = "code",
                                        .base = "InteractiveConsole",
                                        .methods = console_methods};
    static const struct derived plain = {.name = "ManholeConsole",
                                         .part = &plain_console_part,
                                         .base = "Console",
                                         .methods = console_methods};
    PyObject *type = NULL; /* new, handed to the caller */
    if (!is_found_normally("warnings")) {
        return make_derived(&plain); /* codeop takes it from sys.modules */
    }
    type = get_derived(&full, &installed_state()->console_type);
    if (type == NULL && PyErr_ExceptionMatches(PyExc_Exception)) {
        PyErr_Clear(); /* it has been told */
        type = make_derived(&plain);
    }
    return type;
}

/* The console of a client that has been greeted; and perhaps told something behind its prompt.
 * Returns with an exception set when it was one that ended it. */
ATTACHED static void
hold_console(struct session *session, bool told)
{
    PyObject *type = get_console_type(); /* owned */
    PyObject *console = NULL;            /* owned */
    console = type == NULL ? NULL : PyObject_CallOneArg(type, session->names);
    /* Also without a console: the shell around it goes on. */
    told = settle_report_attached(session) || told;
    if (console != NULL) {
        run_console(session, console, told);
    }
    Py_XDECREF(type);
    Py_XDECREF(console);
}

/* Logs why a handler ended with an exception, and tells the client, which would see but an end. */
ATTACHED static void
log_handler_exception(struct session *session, const char *prefix)
{
    char line[LOG_LINE_SIZE];
    char text[LOG_LINE_SIZE / 2];
    PyObject *exception = NULL; /* owned */
    if (PyErr_ExceptionMatches(PyExc_BrokenPipeError) ||
        PyErr_ExceptionMatches(PyExc_ConnectionResetError)) {
        PyErr_Clear();
        log_line("REPL client disconnected");
        deliver_log();
        return;
    }
    exception = take_exception();
    (void)snprintf(line, sizeof(line), "manhole: %s%s.\n", prefix,
                   describe_exception(exception, text, sizeof(text)));
    log_line("%s%s.", prefix, text);
    deliver_log();
    if (write_as(session, FRAME_ERROR, line, strlen(line)) < 0) {
        PyErr_Clear();
    }
    Py_XDECREF(exception);
}

/* The dump, then the console: its modules are imported while its client looks at the prompt.
 * Returns with an exception set when it was one that ended it. */
ATTACHED static void
talk(struct session *session, PyObject *locals)
{
    bool told = false;
    if (is_inet(kept_number(&session->fd))) { /* a Unix client's: behind the prompt */
        set_importing(session, true); /* it may wait for what another session imports */
        session->input = open_typed_input(session);
        set_importing(session, false);
    }
    if (PyErr_Occurred() || open_streams(session) < 0 ||
        send_stacks(session, session->wish->no_stacks ? NULL : &dump_form, true) < 0) {
        return;
    }
    if (!HAS_GIL) {
        lend_spare(kept_number(&session->fd)); /* again: the stacks came from a copy */
    }
    told = import_needed_modules(session, "\n");
    set_names(session, make_names(locals, session->wish->live_names));
    if (session->names != NULL) {
        hold_console(session, told);
    }
    if (PyErr_Occurred()) { /* what is said about it stands on a line of its own */
        PyObject *raised = take_exception(); /* owned, handed back */
        (void)write_client(session, "\n", 1);
        put_back_exception(raised);
    }
}

/* No more bytes to or from this client; the descriptor is closed with the session. */
DETACHED static void
hang_up(struct session *session)
{
    char unread[4096];
    int fd = kept_number(&session->fd);
    begin_sending(session);
    (void)send_copies(session, MSG_DONTWAIT);
    end_sending(session);
    lock_leaf(&session->out_lock);
    atomic_store(&session->over, true);
    (void)pthread_cond_broadcast(&session->out_free);
    unlock(&session->out_lock);
    (void)shutdown(fd, SHUT_RDWR);
    (void)shutdown(kept_number(&session->plain_fd), SHUT_RDWR);
    /* What stays unread would turn into ECONNRESET behind our last bytes. */
    while (recv(fd, unread, sizeof(unread), MSG_DONTWAIT) > 0) {
    }
}

/* Serves the session's client line by line, to the end. converse() opens the input, and may leave
 * an exception. Never raises. */
ATTACHED static void
serve_lines(struct session *session, PyObject *locals,
            void (*converse)(struct session *session, PyObject *locals))
{
    PyThreadState *tstate = NULL;
    converse(session, locals);
    if (PyErr_Occurred()) {
        log_handler_exception(session, "REPL failed with ");
    }
    log_line("DONE.");
    send_left(session);
    close_streams(session);
    Py_CLEAR(session->input);
    set_names(session, NULL);
    tstate = detach();
    hang_up(session);
    reattach(tstate);
    log_line("Cleaned up.");
    deliver_log();
}

/* Serves the session's client with the console. Never raises. */
ATTACHED static void
serve_console(struct session *session, PyObject *locals)
{
    serve_lines(session, locals, talk);
}

/* exit() in the exec handler's lines, and in a console that a command shell goes on after: Python's
 * own would close its input. */
ATTACHED static PyObject *
py_exit(PyObject *module, PyObject *unused)
{
    (void)module;
    (void)unused;
    PyErr_SetNone(PyExc_SystemExit);
    return NULL;
}

/* Runs one line of the exec handler. Returns 0, or -1 with an exception. */
ATTACHED static int
exec_line(struct session *session, PyObject *line, PyObject *locals)
{
    PyObject *repr = NULL;          /* owned */
    PyObject *globals = NULL;       /* owned */
    PyObject *exit_function = NULL; /* owned */
    PyObject *source = NULL;        /* owned */
    PyObject *code = NULL;          /* owned */
    PyObject *value = NULL;         /* owned */
    struct text shown = {0};
    if ((repr = PyObject_Repr(line)) == NULL || (globals = PyDict_New()) == NULL ||
        (exit_function = PyObject_GetAttrString(manhole.module, "_exit")) == NULL ||
        (source = PyUnicode_AsEncodedString(line, "utf-8", "surrogatepass")) == NULL) {
        goto done;
    }
    append_str(&shown, repr);
    append_bytes(&shown, "", 1);
    log_line("Running: %s.", shown.failed ? "?" : shown.bytes);
    deliver_log();
    if ((size_t)PyBytes_GET_SIZE(source) != strlen(PyBytes_AS_STRING(source))) {
        PyErr_SetString(PyExc_ValueError, "source code string cannot contain null bytes");
        goto done;
    }
    code = Py_CompileString(PyBytes_AS_STRING(source), "<manhole>", Py_file_input);
    if (code != NULL &&
        PyDict_SetItemString(globals, "__builtins__", PyEval_GetBuiltins()) == 0 &&
        PyDict_SetItemString(globals, "exit", exit_function) == 0) {
        begin_running(session);
        value = PyEval_EvalCode(code, globals, locals == NULL ? globals : locals);
        end_running(session);
    }
done:
    free_text(&shown);
    Py_XDECREF(repr);
    Py_XDECREF(globals);
    Py_XDECREF(exit_function);
    Py_XDECREF(source);
    Py_XDECREF(code);
    Py_XDECREF(value);
    return PyErr_Occurred() ? -1 : 0;
}

/* Serves the client with the exec handler: each line is run, nothing is answered. Never
 * raises. */
ATTACHED static void
serve_exec(struct session *session, PyObject *locals)
{
    PyThreadState *tstate = NULL;
    bool over = false;
    (void)import_needed_modules(session, "");
    session->input = open_input(session);
    while (session->input != NULL && !over) {
        PyObject *line = read_line(session); /* owned */
        over = line == NULL || PyUnicode_GetLength(line) == 0 ||
               exec_line(session, line, locals) < 0;
        Py_XDECREF(line);
    }
    if (PyErr_ExceptionMatches(PyExc_SystemExit)) {
        PyErr_Clear();
        log_line("Exiting exec loop.");
    }
    else if (PyErr_Occurred()) {
        log_exception("ManholeConnectionThread failure: ", take_exception(), "");
    }
    Py_CLEAR(session->input);
    tstate = detach();
    hang_up(session);
    reattach(tstate);
    deliver_log();
}

/* The socket class that the standard library was born with: gevent's and eventlet's would
 * want a hub in the session's thread. Returns a new reference, or NULL with an exception. */
ATTACHED static PyObject *
get_socket_class(void)
{
    static const struct {
        const char *patcher;
        const char *getter;
        const char *format;
    } rows[] = {
        {"gevent.monkey", "get_original", "ss"},
        {"eventlet.patcher", "original", "s"},
    };
    PyObject *module = NULL; /* owned */
    PyObject *type = NULL;   /* new, handed to the caller */
    for (size_t i = 0; i < Py_ARRAY_LENGTH(rows) && type == NULL; i++) {
        PyObject *patchers = PyImport_GetModuleDict(); /* borrowed */
        PyObject *patcher =
            PyDict_GetItemString(patchers, rows[i].patcher); /* borrowed */
        if (patcher == NULL) {
            continue;
        }
        Py_XSETREF(module, PyObject_CallMethod(patcher, rows[i].getter, rows[i].format,
                                               "socket", "socket"));
        type = module != NULL && PyModule_Check(module)
                   ? PyObject_GetAttrString(module, "socket")
                   : Py_XNewRef(module);
        PyErr_Clear();
    }
    if (type == NULL) {
        Py_XSETREF(module, import_standard("socket"));
        type = module == NULL ? NULL : PyObject_GetAttrString(module, "socket");
    }
    Py_XDECREF(module);
    return type;
}

/* A socket.socket on a duplicate of the client's descriptor: the handler may close it.
 * Returns a new reference, or NULL with an exception. */
ATTACHED static PyObject *
make_client_object(struct session *session)
{
    PyObject *type = get_socket_class(); /* owned */
    PyObject *keywords = NULL;           /* owned */
    PyObject *empty = PyTuple_New(0);    /* owned */
    PyObject *client = NULL;             /* new */
    int fd = fcntl(kept_number(&session->fd), F_DUPFD_CLOEXEC,
                   0); /* owned until client has it */
    if (fd < 0) {
        PyErr_SetFromErrno(PyExc_OSError);
        goto done;
    }
    keywords = Py_BuildValue("{si}", "fileno", fd);
    if (type != NULL && keywords != NULL && empty != NULL) {
        client = PyObject_Call(type, empty, keywords);
    }
    if (client != NULL) {
        fd = -1;
    }
done:
    if (fd >= 0) {
        (void)close(fd);
    }
    Py_XDECREF(type);
    Py_XDECREF(keywords);
    Py_XDECREF(empty);
    return client;
}

/* Serves the client with the connection_handler option's callable, which may keep it: the session
 * closes its own descriptor in the end, and does not hang up. Never raises. */
ATTACHED static void
serve_callable(struct session *session, PyObject *callable)
{
    PyObject *client = NULL; /* owned */
    PyObject *result = NULL; /* owned */
    (void)import_needed_modules(session, NULL);
    client = make_client_object(session);
    if (client != NULL) {
        begin_running(session);
        result = PyObject_CallOneArg(callable, client);
        end_running(session);
    }
    Py_XDECREF(result);
    if (PyErr_Occurred()) {
        log_exception("ManholeConnectionThread failure: ", take_exception(), "");
    }
    Py_XDECREF(client);
}

/* ======================================================================================
 * Programs: code that a client sends whole, with arguments, and whose status it waits for.
 * Runs on:  the session's thread: DETACHED while the request comes, then ATTACHED.
 * Touches:  the session's own fields; the type of the module sys, under sys_lock.
 * sys.argv is the session's own as its streams are. Nothing stands in for the list, though, for C
 * code asks what is a list and reads its memory: while programs run, sys is of a class of ours that
 * has argv as a property. What is in sys.__dict__ stays, and that is what C code sees.
 * ====================================================================================== */

ATTACHED static PyObject *
get_argv(PyObject *sys, void *unused)
{
    struct session *session = console_session();
    PyObject *argv = NULL; /* new, handed to the caller */
    (void)unused;
    if (session != NULL && session->arguments != NULL) {
        return Py_NewRef(session->arguments);
    }
    argv = PyMapping_GetItemString(PyModule_GetDict(sys), "argv");
    if (argv == NULL) {
        PyErr_SetString(PyExc_AttributeError, "module 'sys' has no attribute 'argv'");
    }
    return argv;
}

ATTACHED static int
set_argv(PyObject *sys, PyObject *value /* NULL: delete it */, void *unused)
{
    struct session *session = console_session();
    PyObject *names = PyModule_GetDict(sys); /* borrowed */
    (void)unused;
    if (session != NULL && session->arguments != NULL && value == NULL) {
        PyErr_SetString(PyExc_AttributeError, "sys.argv cannot be deleted here");
        return -1;
    }
    if (session != NULL && session->arguments != NULL) {
        Py_SETREF(session->arguments, Py_NewRef(value));
        return 0;
    }
    return value != NULL ? PyDict_SetItemString(names, "argv", value)
                         : PyDict_DelItemString(names, "argv");
}

static PyGetSetDef argv_attribute = {"argv", get_argv, set_argv, NULL, NULL};

/* The class of sys while programs run: a subclass of what it is without us. Returns a new
 * reference, or NULL with an exception. */
ATTACHED static PyObject *
get_sys_type(PyTypeObject *base)
{
    struct module_state *state = installed_state();
    PyObject *descriptor = NULL; /* owned */
    PyObject *type = NULL;       /* owned, handed to the caller */
    if (state->sys_type != NULL && ((PyTypeObject *)state->sys_type)->tp_base == base) {
        return Py_NewRef(state->sys_type);
    }
    type = PyObject_CallFunction((PyObject *)&PyType_Type, "s(O){ss}", base->tp_name,
                                 base, "__module__", "builtins");
    if (type != NULL) {
        descriptor = PyDescr_NewGetSet((PyTypeObject *)type, &argv_attribute);
    }
    if (descriptor == NULL || PyObject_SetAttrString(type, "argv", descriptor) < 0) {
        Py_CLEAR(type);
    }
    else {
        Py_XSETREF(state->sys_type, Py_NewRef(type)); /* kept: never freed while in use */
    }
    Py_XDECREF(descriptor);
    return type;
}

/* Gives sys its own class again, where ours is still in place. Under sys_lock. Never raises. */
ATTACHED static void
give_back_sys(void)
{
    PyObject *sys = PyDict_GetItemString(PyImport_GetModuleDict(), "sys"); /* borrowed */
    if (sys != NULL && manhole.sys_class != NULL &&
        (PyObject *)Py_TYPE(sys) == installed_state()->sys_type &&
        PyObject_SetAttrString(sys, "__class__", manhole.sys_class) < 0) {
        PyErr_Clear();
    }
    Py_CLEAR(manhole.sys_class);
}

/* From here on sys.argv is the session's in its thread. Returns 0, or -1 with an exception. */
ATTACHED static int
open_arguments(struct session *session, PyObject *arguments)
{
    PyObject *sys = NULL;  /* borrowed */
    PyObject *type = NULL; /* owned */
    int result = -1;
    lock_attached(&sys_lock);
    sys = PyDict_GetItemString(PyImport_GetModuleDict(), "sys");
    if (manhole.programs > 0) {
        result = 0;
    }
    else if (sys != NULL && (type = get_sys_type(Py_TYPE(sys))) != NULL) {
        manhole.sys_class = Py_NewRef((PyObject *)Py_TYPE(sys));
        result = PyObject_SetAttrString(sys, "__class__", type);
    }
    if (result == 0) {
        manhole.programs++;
        session->arguments = Py_NewRef(arguments);
    }
    else {
        Py_CLEAR(manhole.sys_class);
    }
    unlock(&sys_lock);
    Py_XDECREF(type);
    return result;
}

ATTACHED static void
close_arguments(struct session *session)
{
    if (session->arguments != NULL) {
        Py_CLEAR(session->arguments);
        lock_attached(&sys_lock);
        manhole.programs--;
        if (manhole.programs == 0) {
            give_back_sys();
        }
        unlock(&sys_lock);
    }
}

/* Reads some bytes of a request. Returns how many; 0: the client stalls, leaves or ends them. */
DETACHED static size_t
receive_some(struct session *session, char *bytes, size_t size)
{
    struct pollfd client = {.fd = atomic_load(&session->fd.number), .events = POLLIN};
    for (;;) {
        int ready = poll(&client, 1, REQUEST_TIMEOUT_MS);
        ssize_t got = ready > 0
                          ? recv(kept_number(&session->fd), bytes, size, MSG_DONTWAIT)
                          : ready;
        if (got >= 0) {
            return (size_t)got;
        }
        if (errno != EINTR && errno != EAGAIN) {
            return 0;
        }
    }
}

/* Reads so many bytes of a request. Returns false when not all come. */
DETACHED static bool
receive_bytes(struct session *session, char *bytes, size_t length)
{
    while (length > 0) {
        size_t got = receive_some(session, bytes, length);
        if (got == 0) {
            return false;
        }
        bytes += got;
        length -= got;
    }
    return true;
}

/* Tells the client why its request is none. Returns false, for receive() to return. */
DETACHED static bool
refuse_request(struct session *session, const char *why)
{
    char line[160];
    int length = snprintf(line, sizeof(line), "manhole: %s\n", why);
    (void)send(kept_number(&session->fd), line, (size_t)length,
               MSG_NOSIGNAL | MSG_DONTWAIT);
    log_line("Turned a client away: %s", why);
    return false;
}

/* Whether a client may send code: not where it gets a shell of commands without a console. */
static bool
may_run_code(void)
{
    bool may = false;
    lock_leaf(&table_lock);
    may = manhole.options.connection_handler.kind != HANDLER_COMMANDS ||
          (manhole.options.enable & FEATURE_CONSOLE) != 0;
    unlock(&table_lock);
    return may;
}

/* Four bytes of length, the high one first; then the fields, a NUL between two: the file that
 * tracebacks name, the elements of sys.argv, the source. */
DETACHED static bool
receive_program(struct session *session)
{
    unsigned char head[4];
    size_t length = 0;
    if (!may_run_code()) {
        return refuse_request(session,
                              "nobody may run code here: this manhole has a shell "
                              "of commands, without its console");
    }
    if (!receive_bytes(session, (char *)head, sizeof(head))) {
        return refuse_request(session, "no program came");
    }
    length =
        (size_t)head[0] << 24 | (size_t)head[1] << 16 | (size_t)head[2] << 8 | head[3];
    if (length > MAX_PROGRAM) {
        return refuse_request(session, "the program is larger than 16 MiB");
    }
    session->request = malloc(length + 1);
    if (session->request == NULL) {
        return refuse_request(session, "there is no memory for the program");
    }
    session->request[length] = '\0';
    session->request_length = length;
    if (!receive_bytes(session, session->request, length)) {
        return refuse_request(session, "only a part of the program came");
    }
    if (memchr(session->request, '\0', length) == NULL) {
        return refuse_request(session, "the program has no file name");
    }
    return true;
}

/* Where the program's text begins in the request: behind the last NUL. */
static const char *
find_program(const struct session *session)
{
    return (const char *)memrchr(session->request, '\0', session->request_length) + 1;
}

ATTACHED static PyObject *
decode_field(const char *field)
{
    return PyUnicode_DecodeUTF8(field, (Py_ssize_t)strlen(field), "surrogateescape");
}

/* What sys.argv is to be. Returns a new list, or NULL with an exception. */
ATTACHED static PyObject *
make_arguments(const struct session *session)
{
    PyObject *arguments = PyList_New(0); /* owned, handed to the caller */
    const char *field = session->request + strlen(session->request) + 1;
    const char *end = find_program(session);
    while (arguments != NULL && field < end) {
        PyObject *argument = decode_field(field); /* owned */
        if (argument == NULL || PyList_Append(arguments, argument) < 0) {
            Py_CLEAR(arguments);
        }
        Py_XDECREF(argument);
        field += strlen(field) + 1;
    }
    return arguments;
}

/* Makes the session's namespace that of a program. Returns 0, or -1 with an exception. */
ATTACHED static int
add_program_names(struct session *session, PyObject *file)
{
    PyObject *name = PyUnicode_FromString("__main__"); /* owned */
    int result = name == NULL ? -1 : 0;
    if (result == 0) {
        result = PyDict_SetItemString(session->names, "__name__", name);
    }
    if (result == 0) {
        result =
            PyDict_SetItemString(session->names, "__builtins__", PyEval_GetBuiltins());
    }
    if (result == 0 && session->request[0] != '<') {
        result = PyDict_SetItemString(session->names, "__file__", file);
    }
    Py_XDECREF(name);
    return result;
}

/* Runs the program. Returns what it raised, new, or NULL. */
ATTACHED static PyObject *
run_program(struct session *session, PyObject *file)
{
    PyObject *code = NULL;   /* owned */
    PyObject *result = NULL; /* owned */
    PyObject *raised = NULL; /* new, handed to the caller */
    begin_running(session);
    code = Py_CompileStringObject(find_program(session), file, Py_file_input, NULL, -1);
    if (code != NULL) {
        result = PyEval_EvalCode(code, session->names, session->names);
    }
    raised = take_exception();
    end_running(session);
    Py_XDECREF(code);
    Py_XDECREF(result);
    return raised;
}

/* As format_raised(), with the traceback. The exception's __str__() may be anything: it can be
 * interrupted. Returns a new str, or NULL with an exception. */
ATTACHED static PyObject *
format_exception(struct session *session, PyObject *exception)
{
    PyObject *traceback = PyException_GetTraceback(exception); /* owned, or NULL */
    PyObject *text = NULL; /* new, handed to the caller */
    begin_running(session);
    text = format_raised(exception, traceback == NULL ? Py_None : traceback, false);
    end_running(session);
    Py_XDECREF(traceback);
    return text;
}

/* Shows what a program raised, and sets its exit status, as Python itself would at its end: the
 * number or text of SystemExit, the traceback of all else. Returns 0, or -1 with an exception. */
ATTACHED static int
end_program(struct session *session, PyObject *raised /* or NULL */, long *status)
{
    PyObject *code = NULL; /* owned */
    PyObject *text = NULL; /* owned */
    int result = -1;
    *status = raised == NULL ? 0 : 1;
    if (raised == NULL) {
        return 0;
    }
    if (!PyErr_GivenExceptionMatches(raised, PyExc_SystemExit)) {
        text = format_exception(session, raised);
    }
    else if ((code = PyObject_GetAttrString(raised, "code")) != NULL) {
        if (code == Py_None || PyLong_Check(code)) {
            *status = code == Py_None ? 0 : PyLong_AsLong(code);
            PyErr_Clear();
            Py_DECREF(code);
            return 0;
        }
        text = PyUnicode_FromFormat("%S\n", code);
    }
    if (text == NULL) {
        PyErr_Clear();
        text = PyUnicode_FromFormat("%s\n", Py_TYPE(raised)->tp_name);
    }
    if (text != NULL) {
        result = write_str_as(session, FRAME_ERROR, text);
    }
    Py_XDECREF(code);
    Py_XDECREF(text);
    return result;
}

/* All of a program's life once everything is in place. Returns 0, or -1 with an exception. */
ATTACHED static int
run_to_the_end(struct session *session)
{
    PyObject *file = decode_field(session->request); /* owned */
    PyObject *raised = NULL;                         /* owned */
    char status_text[32];
    long status = 0;
    int result = -1;
    log_line("Running a program: %.200s.", session->request);
    deliver_log();
    if (file != NULL && add_program_names(session, file) == 0) {
        raised = run_program(session, file);
        result = end_program(session, raised, &status);
    }
    if (result == 0) {
        int length = snprintf(status_text, sizeof(status_text), "%ld", status);
        result = write_as(session, FRAME_STATUS, status_text, (size_t)length);
    }
    Py_XDECREF(file);
    Py_XDECREF(raised);
    return result;
}

/* Runs the program that the client has sent. Never raises. */
ATTACHED static void
serve_program(struct session *session, PyObject *locals)
{
    PyObject *arguments = NULL; /* owned */
    PyThreadState *tstate = NULL;
    (void)import_needed_modules(session, "");
    arguments = make_arguments(session);
    if (arguments != NULL) {
        set_names(session, make_names(locals, session->wish->live_names));
    }
    if (session->names != NULL) {
        session->input = open_input(session);
    }
    if (session->input != NULL && open_streams(session) == 0 &&
        open_arguments(session, arguments) == 0) {
        (void)run_to_the_end(session);
    }
    Py_XDECREF(arguments);
    if (PyErr_Occurred()) {
        log_handler_exception(session, "Program failed with ");
    }
    close_arguments(session);
    close_streams(session);
    Py_CLEAR(session->input);
    set_names(session, NULL);
    tstate = detach();
    hang_up(session);
    reattach(tstate);
    deliver_log();
}

/* ======================================================================================
 * Side channels: what a client gets instead of a console when its calling card says so.
 * Runs on:  the session's thread, ATTACHED.
 * Touches:  the session's own fields.
 * ====================================================================================== */

/* No more bytes to this client, from its own thread. */
ATTACHED static void
end_channel(struct session *session)
{
    PyThreadState *tstate = detach();
    hang_up(session);
    reattach(tstate);
}

/* Reads the line that is to be completed. */
DETACHED static bool
receive_line(struct session *session)
{
    char *newline = NULL;
    session->request = malloc(MAX_COMPLETION);
    while (session->request != NULL && newline == NULL) {
        char *next = session->request + session->request_length;
        size_t got =
            receive_some(session, next, MAX_COMPLETION - session->request_length);
        if (got == 0) {
            return false; /* no room: too long; or it does not come */
        }
        newline = memchr(next, '\n', got);
        session->request_length += got;
    }
    if (newline != NULL) {
        *newline = '\0';
        session->request_length = (size_t)(newline - session->request);
    }
    return newline != NULL;
}

/* The names of the console or command shell whose client has the same id. Returns a copy, which
 * stays as it is while that one runs on, or NULL, perhaps with an exception. */
ATTACHED static PyObject *
copy_names(const struct session *asking)
{
    PyObject *names = NULL; /* owned */
    PyObject *copy = NULL;  /* new, handed to the caller */
    lock_leaf(&table_lock);
    for (size_t i = 0; i < MAX_SESSIONS && names == NULL; i++) {
        const struct session *session = &manhole.sessions[i];
        if (session->state == SESSION_TAKEN && session->wish->serve == NULL &&
            strcmp(session->card, asking->card) == 0) {
            names = Py_XNewRef(session->names);
        }
    }
    unlock(&table_lock);
    if (names != NULL) {
        copy = PyDict_Check(names) ? PyDict_Copy(names) : Py_NewRef(names);
        Py_DECREF(names);
    }
    return copy;
}

/* Completes what stands before the cursor, a match being the whole line as it would become. It is
 * rlcompleter's work, but that evaluates what it completes, asks each attribute for its value, and
 * knows of no place where a keyword cannot stand. Of a command shell, whose words are in a tuple,
 * it sees no more than those. */
static const char completion_program[] =
    "for name in 'builtins inspect itertools keyword os pkgutil re sys types'.split():\n"
    "    globals()[name] = standard(name)\n"
    "machinery = standard('importlib.machinery')\n"
    /* Where a string begins that the end of the line is in, and its quotes; '#' in a comment. */
    "def find_string(line):\n"
    "    quotes, start, i = '', 0, 0\n"
    "    while i < len(line) and quotes != '#':\n"
    "        if not quotes and line[i] in '\"\\'#':\n"
    "            quotes = line[i]\n"
    "            if quotes != '#' and line.startswith(quotes * 3, i):\n"
    "                quotes *= 3\n"
    "            start = i = i + len(quotes)\n"
    "        elif quotes and line.startswith(quotes, i):\n"
    "            i += len(quotes)\n"
    "            quotes = ''\n"
    "        else:\n"
    "            i += 2 if quotes and line[i] == '\\\\' else 1\n"
    "    return start, quotes\n"
    /* An attribute as it is stored: properties and the like are not run. */
    "methods = (types.FunctionType, types.BuiltinFunctionType, types.MethodType,\n"
    "           types.MethodDescriptorType, types.WrapperDescriptorType,\n"
    "           types.ClassMethodDescriptorType)\n"
    "def attribute(value, name):\n"
    "    found = inspect.getattr_static(value, name)\n"
    "    kind = type(found)\n"
    "    if kind in (classmethod, staticmethod):\n"
    "        return found.__func__\n"
    "    if kind is types.MemberDescriptorType or (\n"
    "            kind is types.GetSetDescriptorType\n"
    "            and found.__objclass__.__module__ == 'builtins'):\n"
    "        return found.__get__(value)\n"
    "    if kind not in methods and any('__get__' in vars(base) for base in "
    "kind.__mro__):\n"
    "        raise AttributeError(name)\n"
    "    return found\n"
    "def look_up(dotted, names):\n"
    "    first, *rest = dotted.split('.')\n"
    "    value = names[first] if first in names else vars(builtins)[first]\n"
    "    for name in rest:\n"
    "        value = attribute(value, name)\n"
    "    return value\n"
    "def with_bracket(name, value):\n"
    "    is_called = callable(value) or type(value) in (classmethod, staticmethod)\n"
    "    return name + '(' if is_called else name\n"
    /* Names that begin with an underscore are for who types one. */
    "def is_wanted(name, text):\n"
    "    return (type(name) is str and name.startswith(text)\n"
    "            and name.startswith('_') <= text.startswith('_')\n"
    "            and name.startswith('__') <= (text != '_'))\n"
    /* The keywords that can stand behind the beginning of a statement. */
    "values = {'False', 'None', 'True', 'await', 'lambda', 'not', 'yield'}\n"
    "joints = {'and', 'as', 'async', 'else', 'for', 'from', 'if', 'in', 'is', 'not', "
    "'or'}\n"
    "behind = dict.fromkeys('as break class continue def del for global import lambda '\n"
    "                       'nonlocal pass'.split(), ())\n"
    "behind.update({'async': ('def', 'for', 'with'), 'not': values | {'in'},\n"
    "               'is': values, 'yield': values | {'from'}})\n"
    "behind.update(dict.fromkeys(('False', 'None', 'True'), joints))\n"
    "alone = {'False', 'None', 'True', 'break', 'continue', 'pass'}\n"
    "def keywords_behind(start):\n"
    "    start = start.strip()\n"
    "    last = re.search(r'\\w*$|\\W$', start)[0] or start[-1:]\n"
    "    begins = re.match('(async|class|def|el|except|f|if|try|w).*:$', start)\n"
    "    if not last or (begins and not re.search(r'\\blambda\\b|[([{][^)\\]}]*$', "
    "start)):\n"
    "        return keyword.kwlist\n"
    "    if last in behind or last in keyword.kwlist or start in keyword.softkwlist:\n"
    "        return behind.get(last, values)\n"
    "    return joints if last.isalnum() or last in ')]}\"\\'' or last.isidentifier() "
    "else values\n"
    "def names_in(names, text, start):\n"
    "    for word in keywords_behind(start):\n"
    "        if word.startswith(text):\n"
    "            yield word if word in alone else word + ' '\n"
    "    for space in names, vars(builtins):\n"
    "        for name, value in space.items():\n"
    "            if is_wanted(name, text) and not keyword.iskeyword(name):\n"
    "                yield with_bracket(name, value)\n"
    /* dir() would ask for __class__. */
    "def attributes(value, text):\n"
    "    kind = type(value)\n"
    "    if inspect.getattr_static(kind, '__dir__') is vars(object)['__dir__']:\n"
    "        found = {name for base in kind.__mro__ for name in vars(base)}\n"
    "        own = inspect.getattr_static(value, '__dict__', None)\n"
    "        if type(own) is types.GetSetDescriptorType:\n"
    "            found.update(own.__get__(value))\n"
    "    else:\n"
    "        found = dir(value)\n"
    "    return [name for name in found if is_wanted(name, text)]\n"
    "def attributes_in(names, dotted, dot, text):\n"
    "    value = look_up(dotted, names)\n"
    "    for name in attributes(value, text):\n"
    "        found = inspect.getattr_static(value, name, None)\n"
    "        yield dotted + dot + with_bracket(name, found)\n"
    "def in_code(line, names):\n"
    "    start = line.rpartition(';')[2]\n"
    "    text = re.search(r'[\\w.]*$', start)[0]\n"
    "    start = start[:len(start) - len(text)]\n"
    "    if re.match(r'\\s*(from|import)\\s', start):\n"
    "        return text, imports(start, text)\n"
    "    if '.' in text:\n"
    "        return text, attributes_in(names, *text.rpartition('.'))\n"
    "    return text, names_in(names, text, start) if text and not text[0].isdigit() "
    "else ()\n"
    /* Where the modules of a package are, which is not imported for that. */
    "def folders_of(package):\n"
    "    folders, name = sys.path, ''\n"
    "    for part in package.split('.') if package else ():\n"
    "        name += '.' + part if name else part\n"
    "        if name in sys.modules:\n"
    "            folders = inspect.getattr_static(sys.modules[name], '__path__', ())\n"
    "        else:\n"
    "            spec = machinery.PathFinder.find_spec(name, folders)\n"
    "            folders = spec and spec.submodule_search_locations or ()\n"
    "    return list(folders)\n"
    "def modules_in(package, text):\n"
    "    known = [*sys.builtin_module_names, *sys.modules]\n"
    "    start = package and package + '.'\n"
    "    known = [name[len(start):].partition('.')[0] for name in known if "
    "name.startswith(start)]\n"
    "    known += [module.name for module in pkgutil.iter_modules(folders_of(package))]\n"
    "    return [name for name in known if name.isidentifier() and is_wanted(name, "
    "text)]\n"
    "def imports(start, text):\n"
    "    names = r'(\\w+(\\s+as\\s+\\w+)?\\s*,\\s*)*$'\n"
    "    if re.match(r'\\s*(from\\s+|import\\s+([\\w.]+(\\s+as\\s+\\w+)?\\s*,\\s*)*)$', "
    "start):\n"
    "        package, dot, text = text.rpartition('.')\n"
    "        return [package + dot + name for name in modules_in(package, text)]\n"
    "    match = re.match(r'\\s*from\\s+([\\w.]+)\\s+import\\s*[\\s(]\\s*' + names, "
    "start)\n"
    "    if match:\n"
    "        module = sys.modules.get(match[1])\n"
    "        found = attributes(module, text) if module else ()\n"
    "        return [*found, *modules_in(match[1], text)]\n"
    "    word = 'import ' if re.match(r'\\s*from\\s+[\\w.]+\\s+$', start) else 'as '\n"
    "    return [word] * (text != '' and word.startswith(text))\n"
    "def keys_in(mapping, text):\n"
    "    keys = mapping if mapping is os.environ else dict.keys(mapping)\n"
    "    return (key for key in keys if type(key) is str and key.startswith(text))\n"
    "def files_in(text, quotes):\n"
    "    folder, slash, name = text.rpartition('/')\n"
    "    with os.scandir(folder + slash or '.') as entries:\n"
    "        for entry in entries:\n"
    "            if entry.name.startswith(name) and (name or entry.name[0] != '.'):\n"
    "                yield folder + slash + entry.name + ('/' if entry.is_dir() else "
    "quotes)\n"
    /* What would have to be escaped is left out. */
    "def in_string(text, quotes, before, names):\n"
    "    match = re.search(r'([^\\W\\d][\\w.]*)\\[\\s*$', before)\n"
    "    if match:\n"
    "        found = (key + quotes + ']' for key in keys_in(look_up(match[1], names), "
    "text))\n"
    "    else:\n"
    "        found = files_in(text, quotes)\n"
    "    for word in found:\n"
    "        bare = word.rstrip(quotes + ']')\n"
    "        if word.isprintable() and '\\\\' not in word and quotes[0] not in bare:\n"
    "            yield word\n"
    "def complete(line, names, most):\n"
    "    start, quotes = find_string(line)\n"
    "    if isinstance(names, tuple):\n"
    "        text = line.rpartition(' ')[2]\n"
    "        found = (word for word in names if word.startswith(text))\n"
    "    elif quotes == '#':\n"
    "        return []\n"
    "    elif quotes:\n"
    "        text = line[start:]\n"
    "        found = in_string(text, quotes, line[:start - len(quotes)], names)\n"
    "    else:\n"
    "        text, found = in_code(line, names)\n"
    "    start = line[:len(line) - len(text)]\n"
    "    found = (start + word + '\\n' for word in found if '\\n' not in word)\n"
    "    found = list(dict.fromkeys(itertools.islice(found, most)))\n"
    "    return found if isinstance(names, tuple) else sorted(found)\n";

static const struct part completion_part = {.name = "completion",
                                            .program = completion_program};

/* Sends the matches of the client's text in these names. Returns 0, or -1 with an exception. */
ATTACHED static int
send_matches(struct session *session, PyObject *names)
{
    PyObject *text = NULL; /* owned */
    PyObject *completion =
        import_part(current_session, &completion_part, "complete"); /* owned */
    PyObject *matches = NULL;                                       /* owned */
    PyObject *empty = PyUnicode_FromString("");                     /* owned */
    PyObject *lines = NULL;                                         /* owned */
    int result = -1;
    if (completion != NULL) {
        text = PyUnicode_DecodeUTF8(session->request, (Py_ssize_t)session->request_length,
                                    "strict");
    }
    begin_running(session);
    if (text != NULL) {
        matches = PyObject_CallFunction(completion, "OOi", text, names, (int)MAX_MATCHES);
    }
    end_running(session);
    lines = matches == NULL || empty == NULL ? NULL : PyUnicode_Join(empty, matches);
    if (lines != NULL) {
        result = write_client_str(session, lines);
    }
    Py_XDECREF(text);
    Py_XDECREF(completion);
    Py_XDECREF(matches);
    Py_XDECREF(empty);
    Py_XDECREF(lines);
    return result;
}

/* What the line may become that the client has typed so far; nothing at all on any error.
 * Never raises. */
ATTACHED static void
serve_completion(struct session *session, PyObject *locals)
{
    PyObject *names = NULL; /* owned */
    (void)locals;
    (void)import_needed_modules(session, NULL);
    names = copy_names(session);
    if (names != NULL && session->request[strspn(session->request, " \t\r")] != '\0') {
        (void)send_matches(session, names);
    }
    PyErr_Clear();
    Py_XDECREF(names);
    end_channel(session);
}

/* Never raises. */
ATTACHED static void
serve_look(struct session *session, const struct form *form)
{
    if (send_stacks(session, form, false) < 0) {
        log_handler_exception(session, "Stacks failed with ");
    }
    end_channel(session);
}

/* The stack dump alone. */
ATTACHED static void
serve_stacks(struct session *session, PyObject *locals)
{
    (void)locals;
    serve_look(session, &dump_form);
}

/* The same as JSON. */
ATTACHED static void
serve_json(struct session *session, PyObject *locals)
{
    (void)locals;
    serve_look(session, &json_form);
}

/* ======================================================================================
 * Commands: a shell of named commands instead of Python, for where nobody may run code. Names and
 * prompts are ispyd's.
 * Runs on:  the session's thread, ATTACHED.
 * Touches:  the session's own fields; sys only while a command or plugin has the client's streams.
 * The shells are classes of the standard library's cmd.Cmd, in a program that is compiled at the
 * first visit; what they need of C is the functions of commands_functions[]. Nothing here evaluates,
 * imports, formats with or opens what the client types: its first word is the rest of the name of a
 * method, as ASCII letters, digits and "_", and what stands behind it is handed over as text.
 * To add a command: a row or a method of its shell. To add a shell: a class, and a row in SHELLS.
 * ====================================================================================== */

static const char commands_program[] =
    "for name in 'cmd fnmatch importlib os sys traceback'.split():\n"
    "    globals()[name] = standard(name)\n"
    /* Characters of a glob, and of the name that a plugin gives itself. */
    "MAX_GLOB, MAX_PLUGIN_NAME = 100, 40\n"
    "\n"
    "HOW_TO_ENABLE = ('Sorry, the %s is disabled. To enable it: \"enabled = true\" in '\n"
    "                 'section [%s] of the configuration file, or '\n"
    "                 'install(enable=%r).')\n"
    "\n"
    "def say(text):\n"
    "    if text:\n"
    "        write(text if text.endswith('\\n') else text + '\\n')\n"
    "\n"
    "def summarize(error):\n"
    "    try:\n"
    "        message = str(error)\n"
    "    except Exception:\n"
    "        message = ''\n"
    "    return message or type(error).__name__\n"
    "\n"
    /* No docstrings: since 3.13 the compiler takes the indentation out of these. */
    "def helps(usage, text):\n"
    "    def add(method):\n"
    "        method.__doc__ = f'{usage}\\n    {text}'\n"
    "        return method\n"
    "    return add\n"
    "\n"
    "class Output:\n"
    "    write = staticmethod(write)\n"
    "\n"
    "class Shell(cmd.Cmd):\n"
    "    feature = None\n"
    "    def __init__(self, name, outer=None):\n"
    "        super().__init__(stdout=Output)\n"
    "        self.name, self.outer = name, outer\n"
    "        self.shows_prompt = outer is None or outer.shows_prompt\n"
    /* What Tab completes. */
    "    def words(self):\n"
    "        names = self.get_names()\n"
    "        return sorted({name[3:] for name in names if name[:3] == 'do_'})\n"
    "    def interact(self):\n"
    "        left = False\n"
    "        while not left:\n"
    "            offer(tuple(self.words()))\n"
    "            left = self.turn()\n"
    /* One line. Only SystemExit, and an error of the connection, get out of it. */
    "    def turn(self):\n"
    "        prompt = f'({self.name}:{os.getpid()}) ' if self.shows_prompt else ''\n"
    "        try:\n"
    "            line = ask(prompt)\n"
    "            if not line:\n"
    "                write('\\n')\n"
    "                raise SystemExit\n"
    "            return self.onecmd(line)\n"
    "        except KeyboardInterrupt:\n"
    "            write('\\nKeyboardInterrupt\\n')\n"
    "        except Exception as error:\n"
    "            write(f'*** {summarize(error)}\\n')\n"
    "    def emptyline(self):\n"
    "        pass\n"
    "    def default(self, line):\n"
    "        raise LookupError(f'Unknown syntax: {line:.80}')\n"
    "    @helps('exit', 'Leave this shell.')\n"
    "    def do_exit(self, _):\n"
    "        return True\n"
    "    @helps('help [COMMAND]',\n"
    "           'List the commands, or say what one does; ? is short for it.')\n"
    "    def do_help(self, topic):\n"
    "        if not topic:\n"
    "            return super().do_help('')\n"
    "        method = getattr(self, 'do_' + topic, None)\n"
    "        if method is None or not method.__doc__:\n"
    "            raise LookupError(f'No help on {topic:.80}')\n"
    "        say(method.__doc__)\n"
    "    @helps('prompt on|off', 'Show a prompt or none, here and in the shells '\n"
    "           'that are entered from here.')\n"
    "    def do_prompt(self, word):\n"
    "        if word not in ('on', 'off'):\n"
    "            raise ValueError('A prompt is on or off')\n"
    "        self.shows_prompt = word == 'on'\n"
    "\n"
    /* A class decorator: a method for each row, NAME: (what returns the text, help). */
    "def shows(rows):\n"
    "    def add(shell):\n"
    "        for name, (look, text) in rows.items():\n"
    "            def do(self, _, look=look):\n"
    "                say(run(look))\n"
    "            setattr(shell, 'do_' + name, helps(name, text)(do))\n"
    "        return shell\n"
    "    return add\n"
    "\n"
    "@shows({\n"
    "    'cwd': (os.getcwd, 'Show the current working directory of the process.'),\n"
    "    'egid': (lambda: str(os.getegid()),\n"
    "             'Show the effective group id of the process.'),\n"
    "    'euid': (lambda: str(os.geteuid()),\n"
    "             'Show the effective user id of the process.'),\n"
    "    'gid': (lambda: str(os.getgid()), 'Show the group id of the process.'),\n"
    "    'pid': (lambda: str(os.getpid()), 'Show the process id.'),\n"
    "    'uid': (lambda: str(os.getuid()), 'Show the user id of the process.'),\n"
    "})\n"
    "class Process(Shell):\n"
    "    pass\n"
    "\n"
    "@shows({\n"
    "    'argv': (lambda: str(sys.argv),\n"
    "             'Show sys.argv, what the process was started with.'),\n"
    "    'defaultencoding': (sys.getdefaultencoding,\n"
    "             'Show the encoding that Python takes where none is given.'),\n"
    "    'environ': (lambda: str(dict(os.environ)),\n"
    "             'Show os.environ: the environment at the start of Python, and '\n"
    "             'what was set since.'),\n"
    "    'executable': (lambda: str(sys.executable),\n"
    "             'Show sys.executable, the path of the Python that runs.'),\n"
    "    'filesystemencoding': (sys.getfilesystemencoding,\n"
    "             'Show the encoding of file names.'),\n"
    "    'maxint': (lambda: f'{sys.maxsize}\\nPython 3 has no maxint, for its ints '\n"
    "             'have no limit: this is maxsize.',\n"
    "             'Show sys.maxsize, for Python 3 has no sys.maxint.'),\n"
    "    'maxsize': (lambda: str(sys.maxsize),\n"
    "             'Show sys.maxsize, the most items that a list can have.'),\n"
    "    'maxunicode': (lambda: str(sys.maxunicode),\n"
    "             'Show sys.maxunicode, the highest code point of a character.'),\n"
    "    'path': (lambda: str(sys.path),\n"
    "             'Show sys.path, where modules are looked for.'),\n"
    "    'platform': (lambda: str(sys.platform), 'Show sys.platform.'),\n"
    "    'prefix': (lambda: str(sys.prefix),\n"
    "             'Show sys.prefix, where Python is installed.'),\n"
    "    'threads': (lambda: native('threads'), 'Show the stacks of all threads.'),\n"
    "    'version': (lambda: str(sys.version),\n"
    "             'Show sys.version, with the compiler and the date of the build.'),\n"
    "})\n"
    "class Python(Shell):\n"
    "    @helps('console', 'Open a Python console in the process, if that is '\n"
    "           'enabled; exit() leaves it.')\n"
    "    def do_console(self, _):\n"
    "        if 'console' in self.outer.enabled:\n"
    "            console(self.outer.locals)\n"
    "        else:\n"
    "            say(HOW_TO_ENABLE % ('Python console', 'python:console', 'console'))\n"
    "    @helps('modules [GLOB]', 'List the modules that are imported: those in no '\n"
    "           'package, or those whose names match GLOB (*, ?, [...]).')\n"
    "    def do_modules(self, glob):\n"
    "        names = [name for name in list(sys.modules) if isinstance(name, str)]\n"
    /* While it is matched no other thread runs. */
    "        if len(glob) > MAX_GLOB:\n"
    "            raise ValueError(f'A glob has at most {MAX_GLOB} characters')\n"
    "        if glob:\n"
    "            names = run(fnmatch.filter, names, glob)\n"
    "        else:\n"
    "            names = [name for name in names if '.' not in name]\n"
    "        say(str(sorted(names)))\n"
    "\n"
    "@shows({\n"
    "    'list': (lambda: native('list'), 'List the probes.'),\n"
    "    'reset': (lambda: native('reset'),\n"
    "             'Take all probes away and forget all tracebacks.'),\n"
    "    'tracebacks': (lambda: native('tracebacks'),\n"
    "             'List the probes that have kept a traceback.'),\n"
    "})\n"
    "class Debugger(Shell):\n"
    "    feature = 'debugger'\n"
    "    PROBED = ' module:function | module:Class.method'\n"
    "    @helps('debug' + PROBED,\n"
    "           'Run pdb post mortem on the traceback that the probe has kept.')\n"
    "    def do_debug(self, place):\n"
    "        say(with_streams(lambda: run(native, 'debug', place)))\n"
    "    @helps('discard' + PROBED, 'Forget the traceback that the probe has kept.')\n"
    "    def do_discard(self, place):\n"
    "        say(run(native, 'discard', place))\n"
    "    @helps('insert' + PROBED, 'Put a probe around a function: it keeps the '\n"
    "           'traceback of the last exception that leaves it.')\n"
    "    def do_insert(self, place):\n"
    "        say(run(native, 'insert', place))\n"
    "    @helps('print' + PROBED, 'Show the traceback that the probe has kept.')\n"
    "    def do_print(self, place):\n"
    "        say(run(native, 'print', place))\n"
    "    @helps('remove' + PROBED, 'Take the probe away: the function is what it was.')\n"
    "    def do_remove(self, place):\n"
    "        say(run(native, 'remove', place))\n"
    "\n"
    "@shows({\n"
    "    'requests': (lambda: native('requests'),\n"
    "             'Show the requests in flight: since when, their environ, and '\n"
    "             'the stack.'),\n"
    "})\n"
    "class Wsgi(Shell):\n"
    "    pass\n"
    "\n"
    "SHELLS = {'debugger': Debugger, 'process': Process, 'python': Python,\n"
    "          'wsgi': Wsgi}\n"
    "\n"
    "def with_streams(act):\n"
    "    open_streams()\n"
    "    try:\n"
    "        return act()\n"
    "    finally:\n"
    "        close_streams()\n"
    "\n"
    /* Of a plugin that is not ours: the methods do_NAME of its class are commands, too. */
    "class Plugin(Shell):\n"
    "    def __init__(self, name, outer, plugin):\n"
    "        self.plugin = plugin\n"
    "        super().__init__(name, outer)\n"
    "    def get_names(self):\n"
    "        return super().get_names() + dir(type(self.plugin))\n"
    "    def __getattr__(self, name):\n"
    "        if name[:3] != 'do_' or name not in dir(type(self.plugin)):\n"
    "            raise AttributeError(name)\n"
    "        method = getattr(self.plugin, name)\n"
    "        def do(argument):\n"
    "            return self.call(method, argument)\n"
    "        do.__doc__ = method.__doc__\n"
    "        return do\n"
    /* What it returns, as a bool; None: it has raised, and the client has seen the traceback. */
    "    def call(self, method, *arguments):\n"
    "        try:\n"
    "            return run(lambda: bool(method(*arguments)))\n"
    "        except Exception as error:\n"
    "            frames = error.__traceback__.tb_next.tb_next\n"
    "            lines = run(traceback.format_exception, type(error), error, frames)\n"
    "            write(''.join(lines))\n"
    "    def call_optional(self, name, *arguments):\n"
    "        method = getattr(self.plugin, name, None)\n"
    "        return False if method is None else self.call(method, *arguments)\n"
    "    def visit(self):\n"
    "        self.plugin.stdin = self.outer.input\n"
    "        self.plugin.stdout = sys.stdout\n"
    "        if self.call_optional('activate', self.outer.settings) is False:\n"
    "            try:\n"
    "                self.interact()\n"
    "            finally:\n"
    "                self.call_optional('shutdown')\n"
    "\n"
    "class Root(Shell):\n"
    "    def __init__(self, enabled, settings, locals, input):\n"
    "        super().__init__('manhole')\n"
    "        self.enabled, self.settings = enabled, settings\n"
    "        self.locals, self.input = locals, input\n"
    "        self.plugins, self.skipped = {}, []\n"
    "    def words(self):\n"
    "        return super().words() + list(self.plugins)\n"
    /* A broken one costs nobody more than itself. */
    "    def load(self, entries):\n"
    "        for entry in entries:\n"
    "            try:\n"
    "                run(self.add, entry)\n"
    "            except Exception as error:\n"
    "                self.skipped.append(f'{entry}: {error!r}')\n"
    "                log(self.skipped[-1])\n"
    /* Ours are named so, or by ispyd's name for them, "ispyd.plugins.python:PythonShell". */
    "    def add(self, entry):\n"
    "        ours = entry\n"
    "        if entry.startswith('ispyd.plugins.'):\n"
    "            ours = entry[14:].partition(':')[0]\n"
    "        if entry == '%(builtins)s':\n"
    "            self.plugins.update(SHELLS)\n"
    "        elif ours in SHELLS:\n"
    "            self.plugins[ours] = SHELLS[ours]\n"
    "        else:\n"
    "            self.add_foreign(entry)\n"
    "    def add_foreign(self, entry):\n"
    "        module, colon, name = entry.partition(':')\n"
    "        if not colon or ':' in name:\n"
    "            raise ValueError('a plugin is named as module:Class')\n"
    "        plugin = getattr(importlib.import_module(module), name)\n"
    "        name = plugin.name\n"
    "        if not (isinstance(name, str) and name.isidentifier() and\n"
    "                len(name) <= MAX_PLUGIN_NAME):\n"
    "            raise ValueError(f'its name is {name!r:.80}, not an identifier of at '\n"
    "                             f'most {MAX_PLUGIN_NAME} characters')\n"
    "        if name in SHELLS or name in self.plugins:\n"
    "            raise ValueError(f'another plugin is named {name!r}')\n"
    "        self.plugins[name] = plugin\n"
    "    @helps('plugins', 'List the plugins: what shell enters.')\n"
    "    def do_plugins(self, _):\n"
    "        say('\\nskipped: '.join([str(sorted(self.plugins))] + self.skipped))\n"
    "    @helps('shell NAME',\n"
    "           'Enter the shell of a plugin; !NAME is short for it, exit leaves it.')\n"
    "    def do_shell(self, name):\n"
    "        plugin = self.plugins.get(name)\n"
    "        if plugin is None:\n"
    "            raise LookupError(f'There is no plugin named {name!r:.80}; '\n"
    "                              '\"plugins\" lists them')\n"
    "        if SHELLS.get(name) is not plugin:\n"
    "            with_streams(lambda: Plugin(name, self, run(plugin)).visit())\n"
    "        elif plugin.feature is None or plugin.feature in self.enabled:\n"
    "            plugin(name, self).interact()\n"
    "        else:\n"
    "            say(HOW_TO_ENABLE % (f'{name} plugin', name, name))\n"
    "\n"
    "def visit(enabled, settings, entries, locals, input):\n"
    "    root = Root(enabled, settings, locals, input)\n"
    "    root.load(['%(builtins)s'] if entries is None else entries)\n"
    "    root.interact()\n";

/* ---- What that program calls ----------------------------------------------------------- */

/* ask(prompt): a line from the client; '' at its end. */
ATTACHED static PyObject *
commands_ask(PyObject *module, PyObject *prompt)
{
    const char *text = PyUnicode_AsUTF8(prompt);
    (void)module;
    return text == NULL ? NULL : ask_line(current_session, text);
}

/* run(callable, *arguments): in there, and nowhere else in the program, the client can interrupt. */
ATTACHED static PyObject *
commands_run(PyObject *module, PyObject *callable_and_arguments)
{
    PyObject *arguments =
        PyTuple_GetSlice(callable_and_arguments, 1, PY_SSIZE_T_MAX); /* owned */
    PyObject *result = NULL; /* new, handed to the caller */
    (void)module;
    if (arguments != NULL) {
        begin_running(current_session);
        result =
            PyObject_CallObject(PyTuple_GET_ITEM(callable_and_arguments, 0), arguments);
        end_running(current_session);
        Py_DECREF(arguments);
    }
    return result;
}

ATTACHED static PyObject *
commands_write(PyObject *module, PyObject *text)
{
    (void)module;
    return write_client_str(current_session, text) < 0 ? NULL : Py_NewRef(Py_None);
}

/* offer(words): a tuple of what may be typed next. */
ATTACHED static PyObject *
commands_offer(PyObject *module, PyObject *words)
{
    (void)module;
    set_names(current_session, Py_NewRef(words));
    return Py_NewRef(Py_None);
}

ATTACHED static PyObject *
commands_open_streams(PyObject *module, PyObject *unused)
{
    (void)module;
    (void)unused;
    return open_streams(current_session) < 0 ? NULL : Py_NewRef(Py_None);
}

ATTACHED static PyObject *
commands_close_streams(PyObject *module, PyObject *unused)
{
    (void)module;
    (void)unused;
    close_streams(current_session);
    return Py_NewRef(Py_None);
}

ATTACHED static PyObject *
commands_log(PyObject *module, PyObject *skipped)
{
    const char *text = PyUnicode_AsUTF8(skipped);
    (void)module;
    if (text != NULL) {
        log_line("Plugin skipped: %s", text);
        deliver_log();
    }
    return text == NULL ? NULL : Py_NewRef(Py_None);
}

/* native(name[, argument]): what other rooms have, as text. */
ATTACHED static PyObject *
commands_native(PyObject *module, PyObject *arguments)
{
    static const struct {
        const char *name;
        PyObject *(*look)(void); /* one of these */
        PyObject *(*act)(PyObject *argument);
    } natives[] = {
        {.name = "debug", .act = debug_probe},
        {.name = "discard", .act = discard_probe},
        {.name = "insert", .act = insert_probe},
        {.name = "list", .look = list_probes},
        {.name = "print", .act = print_probe},
        {.name = "remove", .act = remove_probe},
        {.name = "requests", .look = describe_requests},
        {.name = "reset", .look = reset_probes},
        {.name = "threads", .look = make_dump},
        {.name = "tracebacks", .look = probe_tracebacks},
    };
    const char *name = NULL;
    PyObject *argument = NULL; /* borrowed */
    (void)module;
    if (!PyArg_ParseTuple(arguments, "s|O", &name, &argument)) {
        return NULL;
    }
    for (size_t i = 0; i < Py_ARRAY_LENGTH(natives); i++) {
        if (strcmp(natives[i].name, name) == 0) {
            return natives[i].look != NULL ? natives[i].look() : natives[i].act(argument);
        }
    }
    PyErr_SetString(PyExc_LookupError, name);
    return NULL;
}

/* console(locals): the Python console, on the client's own lines. */
ATTACHED static PyObject *
commands_console(PyObject *module, PyObject *locals)
{
    struct session *session = current_session;
    PyObject *leave = PyObject_GetAttrString(manhole.module, "_exit"); /* owned */
    PyObject *raised = NULL; /* owned, or NULL */
    (void)module;
    if (leave != NULL) {
        set_names(session, make_names(locals == Py_None ? NULL : locals,
                                      session->wish->live_names));
    }
    if (leave != NULL && session->names != NULL &&
        PyDict_SetItemString(session->names, "exit", leave) == 0 &&
        PyDict_SetItemString(session->names, "quit", leave) == 0 &&
        open_streams(session) == 0 && send_stacks(session, NULL, true) == 0) {
        hold_console(session, false);
    }
    raised = take_exception();
    close_streams(session);
    put_back_exception(raised);
    Py_XDECREF(leave);
    return PyErr_Occurred() ? NULL : Py_NewRef(Py_None);
}

static PyMethodDef commands_functions[] = {
    {"ask", commands_ask, METH_O, NULL},
    {"close_streams", commands_close_streams, METH_NOARGS, NULL},
    {"console", commands_console, METH_O, NULL},
    {"log", commands_log, METH_O, NULL},
    {"native", commands_native, METH_VARARGS, NULL},
    {"offer", commands_offer, METH_O, NULL},
    {"open_streams", commands_open_streams, METH_NOARGS, NULL},
    {"run", commands_run, METH_VARARGS, NULL},
    {"write", commands_write, METH_O, NULL},
    {NULL, NULL, 0, NULL},
};

static const struct part commands_part = {
    .name = "commands",
    .program = commands_program,
    .functions = commands_functions,
};

/* Returns a new tuple of the features' names, or NULL with an exception. */
ATTACHED static PyObject *
name_features(unsigned enabled)
{
    return Py_BuildValue("ss", (enabled & FEATURE_CONSOLE) != 0 ? "console" : "",
                         (enabled & FEATURE_DEBUGGER) != 0 ? "debugger" : "");
}

/* The client's whole visit. Returns with an exception set when it was one that ended it. */
ATTACHED static void
converse_by_commands(struct session *session, PyObject *locals)
{
    unsigned enabled = 0;
    PyObject *entries = NULL;  /* owned, or NULL */
    PyObject *settings = NULL; /* owned, or NULL */
    PyObject *visit = NULL;    /* owned */
    PyObject *features = NULL; /* owned */
    PyObject *result = NULL;   /* owned */
    lock_leaf(&table_lock);
    enabled = manhole.options.enable;
    entries = Py_XNewRef(manhole.options.plugins);
    settings = Py_XNewRef(manhole.options.settings);
    unlock(&table_lock);
    (void)import_needed_modules(session, "");
    visit = import_part(session, &commands_part, "visit");
    if (visit == NULL && PyErr_ExceptionMatches(PyExc_Exception)) {
        tell_missing(session, "what the shell of commands needs", take_exception(), "");
    }
    session->input = visit == NULL ? NULL : open_typed_input(session);
    (void)settle_report_attached(session);
    features = session->input == NULL ? NULL : name_features(enabled);
    if (features != NULL) {
        result = PyObject_CallFunctionObjArgs(
            visit, features, settings == NULL ? Py_None : settings,
            entries == NULL ? Py_None : entries, locals == NULL ? Py_None : locals,
            session->input, NULL);
    }
    if (PyErr_Occurred() && PyErr_ExceptionMatches(PyExc_SystemExit)) {
        PyErr_Clear();
    }
    Py_XDECREF(entries);
    Py_XDECREF(settings);
    Py_XDECREF(visit);
    Py_XDECREF(features);
    Py_XDECREF(result);
}

/* Serves the session's client with the shell of commands. Never raises. */
ATTACHED static void
serve_commands(struct session *session, PyObject *locals)
{
    serve_lines(session, locals, converse_by_commands);
}

/* ======================================================================================
 * Session: one client, from accept() to the free slot.
 * Runs on:  a native thread of its own, or the main thread (oneshot), or the application thread
 *           that called handle_connection_repl() with a socket of its own.
 * Touches:  its slot of the table; threading's registry, to take its own entry out again.
 * ====================================================================================== */

/* A client without a calling card: plain nc. */
static const struct wish plain_wish = {.name = "repl"};

/* Of backdoor_server() and backdoor(), as eventlet's. */
static const struct wish backdoor_wish = {.name = "backdoor",
                                          .no_stacks = true,
                                          .stacks_if_stuck = true,
                                          .live_names = true,
                                          .serve = serve_console};

/* The most sessions at once of this kind. */
static int
most_sessions(const struct wish *wish)
{
    return wish->aside ? MAX_ASIDE : manhole.options.max_sessions;
}

/* A slot that was never used, or NULL when there is none. Under table_lock. */
static struct session *
make_session(void)
{
    const size_t end = atomic_load(&manhole.sessions_end);
    struct session *session = end < MAX_SESSIONS ? &manhole.sessions[end] : NULL;
    if (session != NULL) {
        make_session_locks(session);
        keep_fd(&session->fd, -1);
        keep_fd(&session->plain_fd, -1);
        keep_fd(&session->telnet_fd, -1);
        atomic_store(&manhole.sessions_end, end + 1);
    }
    return session;
}

/* Returns a slot for a connected socket, which it takes over; NULL when enough are taken. */
static struct session *
claim_session(int fd, const struct peer *peer, const struct wish *wish)
{
    struct session *session = NULL;
    int taken = 0;
    lock_leaf(&table_lock);
    for (size_t i = 0; i < atomic_load(&manhole.sessions_end); i++) {
        if (manhole.sessions[i].state == SESSION_TAKEN) {
            taken += manhole.sessions[i].wish->aside == wish->aside &&
                     !atomic_load(&manhole.sessions[i].over);
        }
        else if (manhole.sessions[i].state == SESSION_FREE && session == NULL) {
            session = &manhole.sessions[i];
        }
    }
    if (taken >= most_sessions(wish)) {
        session = NULL;
    }
    else if (session == NULL) {
        session = make_session();
    }
    if (session != NULL) {
        session->state = SESSION_TAKEN;
        session->peer = *peer;
        session->wish = wish;
        session->names = NULL;
        session->arguments = NULL;
        session->request = NULL;
        session->request_length = 0;
        session->card[0] = '\0';
        session->door = NULL;
        session->locals = NULL;
        session->asked_for_input = false;
        session->gone_ms = 0;
        session->writes = 0;
        session->prompt = NULL;
        session->says_it_reads = false;
        session->takes_paste = false;
        session->pasting = false;
        session->head = 0;
        session->tail = 0;
        session->left_end = 0;
        session->refused = false;
        session->missed = 0;
        session->asked_ms = 0;
        session->waiting_ms = 0;
        session->answered = false;
        session->reported = false;
        session->told = false;
        session->interrupted = false;
        session->guarded = false;
        session->importing = false;
        session->interrupts = 0;
        atomic_store(&session->taken_back, false);
        atomic_store(&session->over, false);
        keep_fd(&session->fd, fd);
    }
    unlock(&table_lock);
    return session;
}

/* Closes the client's descriptor and gives the slot back, once nobody else uses it. */
DETACHED static void
release_session(struct session *session)
{
    bool watched = false;
    lock_leaf(&session->out_lock);
    watched = session->asked_ms != 0;
    session->asked_ms = 0; /* the listener takes no more notice of it */
    session->waiting_ms = 0;
    atomic_store(&session->over, true);
    (void)pthread_cond_broadcast(&session->out_free);
    while (session->sending || session->helpers > 0) {
        (void)pthread_cond_wait(&session->out_free, &session->out_lock);
    }
    free(session->copies);
    session->copies = NULL;
    free(session->request);
    session->request = NULL;
    close_kept(&session->fd);
    close_kept(&session->plain_fd);
    unlock(&session->out_lock);
    lock_leaf(&table_lock);
    session->state = SESSION_FREE;
    unlock(&table_lock);
    ring_bell(&manhole.news_bell);
    if (watched) {
        wake_listener(); /* the client sees the end only when poll() has let go of its socket */
    }
}

static int
count_sessions(void)
{
    int count = 0;
    lock_leaf(&table_lock);
    for (size_t i = 0; i < atomic_load(&manhole.sessions_end); i++) {
        count += manhole.sessions[i].state == SESSION_TAKEN &&
                 &manhole.sessions[i] != current_session;
    }
    unlock(&table_lock);
    return count;
}

/* In a child. What a vanished thread owned is abandoned, not freed: it may be half changed. */
static void
forget_session(struct session *session)
{
    if (session == current_session || session->state == SESSION_BURNT) {
        session->state = SESSION_BURNT;
    }
    else {
        session->state = SESSION_FREE;
    }
    session->sending = false;
    session->has_console = false;
    session->waiting_ms = 0;
    session->helpers = 0;
    session->asked_ms = 0;
    session->copies = NULL;
    session->input = NULL;
    session->names = NULL;
    session->unsent = (struct text){0};
    session->locals = NULL;
    session->raised = NULL;
    atomic_store(&session->running, false);
    atomic_store(&session->viewing, false);
    close_kept(&session->fd);
    close_kept(&session->plain_fd);
    close_kept(&session->telnet_fd);
}

static void
forget_sessions(void)
{
    for (size_t i = 0; i < atomic_load(&manhole.sessions_end); i++) {
        forget_session(&manhole.sessions[i]);
    }
    current_session = NULL;
    atomic_store(&manhole.viewers, 0);
    manhole.consoles = 0;
    manhole.programs = 0;
    manhole.entering = 0;
    manhole.inside = 0;
    manhole.closing = false;
}

static int
read_under_table_lock(const int *count)
{
    int value = 0;
    lock_leaf(&table_lock);
    value = *count;
    unlock(&table_lock);
    return value;
}

/* Attaches a native thread of ours with a new thread state. Returns NULL, and stays
 * detached, when the interpreter is about to end or has no memory. */
ATTACHES static PyThreadState *
enter_interpreter(void)
{
    PyThreadState *tstate = NULL;
    PyInterpreterState *interpreter = NULL;
    bool may_enter = false;
    lock_leaf(&table_lock);
    may_enter = !manhole.closing;
    manhole.entering += may_enter;
    interpreter = manhole.interpreter;
    unlock(&table_lock);
    if (!may_enter) {
        return NULL;
    }
    /* Not under the lock: it may wait for all attached threads, or for the GIL. */
    tstate = new_thread_state(interpreter);
    if (tstate == NULL) {
        log_line("Cannot attach a thread to Python: out of memory");
    }
    lock_leaf(&table_lock);
    manhole.entering--;
    manhole.inside += tstate != NULL;
    unlock(&table_lock);
    ring_bell(&manhole.news_bell);
    if (tstate != NULL) {
        PyEval_RestoreThread(tstate);
    }
    return tstate;
}

/* Forgets the entry that threading makes for a thread it did not start, when a statement
 * (logging, say) asks for current_thread(): CPython before 3.13 keeps it for ever. Never
 * raises. */
ATTACHED static void
forget_dummy_thread(void)
{
    PyObject *active = get_active_threads();                                /* owned */
    PyObject *ident = PyLong_FromUnsignedLong(PyThread_get_thread_ident()); /* owned */
    if (active != NULL && ident != NULL && PyDict_Check(active) &&
        PyDict_Contains(active, ident) == 1) {
        (void)PyDict_DelItem(active, ident);
    }
    PyErr_Clear();
    Py_XDECREF(active);
    Py_XDECREF(ident);
}

/* A hub that gevent has made for this thread, when a statement waited in it: its descriptors are
 * closed by nobody else. Never raises. */
ATTACHED static void
destroy_hub(void)
{
    PyObject *modules = PyImport_GetModuleDict();                         /* borrowed */
    PyObject *local = PyDict_GetItemString(modules, "gevent._hub_local"); /* borrowed */
    PyObject *hub = NULL;                                                 /* owned */
    PyObject *destroyed = NULL;                                           /* owned */
    if (local != NULL) {
        hub = PyObject_CallMethod(local, "get_hub_if_exists", NULL);
    }
    if (hub != NULL && hub != Py_None) {
        destroyed = PyObject_CallMethod(hub, "destroy", "O", Py_True);
    }
    PyErr_Clear();
    Py_XDECREF(hub);
    Py_XDECREF(destroyed);
}

/* The way back out of enter_interpreter(). */
DETACHES static void
leave_interpreter(PyThreadState *tstate)
{
    destroy_hub();
    forget_dummy_thread();
    PyThreadState_Clear(tstate);
    PyThreadState_DeleteCurrent();
    lock_leaf(&table_lock);
    manhole.inside -= manhole.inside > 0; /* abandon_sessions() may have been faster */
    unlock(&table_lock);
    ring_bell(&manhole.news_bell);
}

ATTACHED static void
serve_as_configured(struct session *session, const struct handler *handler,
                    PyObject *locals)
{
    switch (handler->kind) {
    case HANDLER_REPL:
        serve_console(session, locals);
        break;
    case HANDLER_EXEC:
        serve_exec(session, locals);
        break;
    case HANDLER_COMMANDS:
        serve_commands(session, locals);
        break;
    case HANDLER_CALLABLE:
        serve_callable(session, handler->callable);
        break;
    }
}

/* The names that the session's console has beside python-manhole's. Under table_lock. Returns new,
 * or NULL. */
ATTACHED static PyObject *
take_locals(struct session *session)
{
    const struct door *door = session->door;
    PyObject *locals = session->locals; /* owned, handed to the caller */
    session->locals = NULL;
    if (session->wish != &backdoor_wish) {
        locals = Py_XNewRef(manhole.options.locals);
    }
    else if (door != NULL && door->serial == session->door_serial) {
        locals = Py_XNewRef(door->locals);
    }
    return locals;
}

/* Serves the session's client as its card and the options say, in the calling thread. Never
 * raises. */
ATTACHED static void
serve_session(struct session *session)
{
    struct session *outer = current_session;
    PyObject *locals = NULL;      /* owned */
    struct handler handler = {0}; /* its callable is owned */
    lock_leaf(&table_lock);
    locals = take_locals(session);
    handler = manhole.options.connection_handler;
    Py_XINCREF(handler.callable);
    unlock(&table_lock);
    current_session = session;
    lend_spare(kept_number(&session->fd));
    deliver_log();
    if (session->wish->serve != NULL) {
        session->wish->serve(session, locals);
    }
    else {
        serve_as_configured(session, &handler, locals);
    }
    take_spare_back();
    current_session = outer;
    Py_XDECREF(locals);
    Py_XDECREF(handler.callable);
}

/* Notes since when the session's thread waits for Python; 0: it does not. */
static void
note_waiting(struct session *session, int64_t time_ms)
{
    lock_leaf(&session->out_lock);
    session->waiting_ms = time_ms;
    unlock(&session->out_lock);
}

/* Body of a session's thread. That it may not get in is beyond the checker. */
DETACHED
CHECKED(no_thread_safety_analysis) static void *session_main(void *argument)
{
    struct session *session = argument;
    char name[32];
    PyThreadState *tstate = NULL;
    (void)snprintf(name, sizeof(name),
                   session->peer.address[0] == '\0' ? "Manhole < PID:%ld"
                                                    : "Manhole < TCP",
                   (long)session->peer.pid);
    name[15] = '\0'; /* all that the kernel takes */
    (void)pthread_setname_np(pthread_self(), name);
    atomic_store(&session->ident, PyThread_get_thread_ident());
    if (session->wish->receive == NULL || session->wish->receive(session)) {
        note_waiting(session, monotonic_ms());
        tstate = enter_interpreter();
        note_waiting(session, 0);
    }
    if (tstate != NULL) {
        serve_session(session);
        Py_CLEAR(session->raised);
        if (is_open() && !session->wish->unlogged) {
            log_waiting();
        }
        deliver_log();
        leave_interpreter(tstate);
    }
    else {
        hang_up(session);
    }
    release_session(session);
    return NULL;
}

/* Body of a courier: carries log lines to a Python object when no session does. */
DETACHED
CHECKED(no_thread_safety_analysis) static void *courier_main(void *unused)
{
    PyThreadState *tstate = enter_interpreter();
    (void)unused;
    if (tstate != NULL) {
        deliver_log();
        leave_interpreter(tstate);
    }
    atomic_store(&manhole.courier_is_out, false);
    return NULL;
}

/* ======================================================================================
 * Helpers: native threads that the listener sends out for what may take long.
 * Runs on:  themselves. A reporter stays DETACHED, an interrupter attaches.
 * Touches:  the session that they were sent for, whose slot they hold until they are done.
 * ====================================================================================== */

/* Sends out a helper; the slot stays taken meanwhile. Returns whether it went. */
DETACHED static bool
send_helper(struct session *session, void *(*body)(void *))
{
    int error = 0;
    lock_leaf(&session->out_lock);
    session->helpers++;
    unlock(&session->out_lock);
    error = start_thread(NULL, body, session, SMALL_STACK_SIZE);
    if (error != 0) {
        lock_leaf(&session->out_lock);
        session->helpers--;
        (void)pthread_cond_broadcast(&session->out_free);
        unlock(&session->out_lock);
        log_line("Cannot start a thread for the client of %s: %s",
                 describe_peer(&session->peer).text, error_text(error));
    }
    return error == 0;
}

static void
helper_done(struct session *session)
{
    lock_leaf(&session->out_lock);
    session->helpers--;
    (void)pthread_cond_broadcast(&session->out_free);
    unlock(&session->out_lock);
}

static const char prompt_follows[] =
    "manhole: the prompt comes here as soon as Python answers.\n";

/* The earliest of what the sessions' threads wait for Python since; 0: none waits. */
static int64_t
waiting_since(void)
{
    int64_t since_ms = 0;
    for (size_t i = 0; i < atomic_load(&manhole.sessions_end); i++) {
        struct session *session = &manhole.sessions[i];
        lock_leaf(&session->out_lock);
        if (session->waiting_ms != 0 &&
            (since_ms == 0 || session->waiting_ms < since_ms)) {
            since_ms = session->waiting_ms;
        }
        unlock(&session->out_lock);
    }
    return since_ms;
}

/* Appends the line that says how long Python has not answered. */
static void
append_silence(struct text *text)
{
    struct tm since = {0};
    char when[32] = "";
    double waited = manhole.options.hang_timeout;
    int64_t since_ms = waiting_since();
    int64_t waited_s = since_ms == 0 ? 0 : (monotonic_ms() - since_ms) / 1000;
    time_t seconds = time(NULL) - (time_t)waited_s;
    waited = (double)waited_s < waited + 1 ? waited : (double)waited_s;
    (void)strftime(when, sizeof(when), "%H:%M:%S", gmtime_r(&seconds, &since));
    append_format(text,
                  "manhole: Python has not answered for %s s, since %s UTC: the GIL is "
                  "held or the interpreter is stuck.\n",
                  format_seconds(waited).text, when);
}

/* For a client that waits for its prompt. */
DETACHED static void
report_to_console(struct text *text, const struct session *session)
{
    append_silence(text);
    if (!session->wish->no_stacks || session->wish->stacks_if_stuck) {
        append_string(text, "The stacks, from a frozen copy of the process:\n");
        append_snapshot(text);
    }
    append_string(text, prompt_follows);
}

/* For a client that asked for the stacks. */
DETACHED static void
report_stacks(struct text *text, const struct session *session)
{
    (void)session;
    append_silence(text);
    append_string(text, "The stacks, from a frozen copy of the process:\n");
    append_snapshot(text);
}

/* For a client that asked for them as JSON. */
DETACHED static void
report_json(struct text *text, const struct session *session)
{
    (void)session;
    append_json_snapshot(text);
}

/* Appends what the session's client is told when Python does not answer. */
DETACHED static void
append_report(struct text *text, const struct session *session)
{
    if (session->wish->report != NULL) {
        session->wish->report(text, session);
    }
    else {
        report_to_console(text, session);
    }
}

/* Python still owes what the reporter was sent for; who waits for another answer by now has no
 * reporter yet. */
static bool
is_report_due(struct session *session)
{
    bool due = false;
    lock_leaf(&session->out_lock);
    due = session->reported && !session->answered;
    unlock(&session->out_lock);
    return due;
}

/* Sends a report, unless Python has answered meanwhile. flags: MSG_DONTWAIT or 0. One without
 * memory is no half of it to who asked for nothing else: JSON would be cut. */
DETACHED static void
send_report(struct session *session, const struct text *report, int flags)
{
    static const char too_little[] = "manhole: there is no memory for the stacks\n";
    begin_sending(session);
    if (!is_report_due(session)) {
        end_sending(session);
        return;
    }
    if (flags == 0) {
        bool cut = report->failed && session->wish->report != NULL;
        const char *bytes = cut ? too_little : report->bytes;
        size_t length = cut ? sizeof(too_little) - 1 : report->length;
        session->told = send_own(session, &bytes, &length) == 0 && !report->failed;
    }
    else {
        (void)send(kept_number(&session->fd), report->bytes, report->length,
                   flags | MSG_NOSIGNAL);
    }
    if (session->wish->report != NULL) {
        (void)shutdown(kept_number(&session->fd), SHUT_RDWR); /* that was all of it */
    }
    end_sending(session);
}

/* Body of a reporter: beside the session's own thread, which still waits for Python. */
DETACHED static void *
reporter_main(void *argument)
{
    struct session *session = argument;
    struct text text = {0};
    append_report(&text, session);
    send_report(session, &text, 0);
    free_text(&text);
    helper_done(session);
    return NULL;
}

/* Body of a session of its own: its client wants nothing but the report, and others have found out
 * before that Python does not answer. So a stuck process is never full of waiting threads. */
DETACHED static void *
lone_reporter_main(void *argument)
{
    struct session *session = argument;
    struct text text = {0};
    append_report(&text, session);
    send_report(session, &text, 0);
    free_text(&text);
    hang_up(session);
    release_session(session);
    return NULL;
}

/* Where there is no thread to be had the listener says what it can by itself. */
DETACHED static void
report_session(struct session *session)
{
    struct text text = {0};
    lock_leaf(&session->out_lock);
    session->reported = true;
    unlock(&session->out_lock);
    if (send_helper(session, reporter_main)) {
        return;
    }
    append_silence(&text);
    append_string(&text,
                  "No thread can be started to make a frozen copy of the process.\n");
    append_other_threads(&text, &(struct copied){0});
    append_string(&text, prompt_follows);
    send_report(session, &text, MSG_DONTWAIT);
    free_text(&text);
}

/* Whether a thread is in the import system's own code: an exception there may leave a lock behind
 * that nobody ever opens, and the application would import nothing for the rest of its life (seen
 * after some hundred interrupts). Without a GIL it cannot be asked. Never raises. */
ATTACHED static bool
is_importing(unsigned long ident)
{
    static const char importlib[] = "<frozen importlib._bootstrap"; /* _external, too */
    PyObject *current_frames = HAS_GIL ? get_sys("_current_frames") : NULL; /* owned */
    PyObject *key = PyLong_FromUnsignedLong(ident);                         /* owned */
    PyObject *frames = NULL;                                                /* owned */
    PyObject *frame = NULL;                                                 /* owned */
    PyCodeObject *code = NULL;                                              /* owned */
    const char *file = NULL;
    bool importing = false;
    if (current_frames != NULL && key != NULL) {
        frames = PyObject_CallNoArgs(current_frames);
        frame = frames == NULL ? NULL : PyObject_GetItem(frames, key);
    }
    if (frame != NULL) {
        code = PyFrame_GetCode((PyFrameObject *)frame);
        file = PyUnicode_AsUTF8(code->co_filename);
        importing = file != NULL && strncmp(file, importlib, sizeof(importlib) - 1) == 0;
    }
    PyErr_Clear();
    Py_XDECREF(current_frames);
    Py_XDECREF(key);
    Py_XDECREF(frames);
    Py_XDECREF(frame);
    Py_XDECREF(code);
    return importing;
}

/* Raises an exception in what the session runs, if it does: as soon as it is out of the import
 * system, or not at all when that lasts. */
ATTACHED static void
raise_in_session(struct session *session, PyObject *type)
{
    int64_t deadline_ms = monotonic_ms() + IMPORT_PATIENCE_MS;
    bool importing = false;
    while (atomic_load(&session->running) &&
           (importing = is_importing(atomic_load(&session->ident))) &&
           ms_until(deadline_ms) > 0) {
        PyThreadState *tstate = detach();
        (void)poll(NULL, 0, 1);
        reattach(tstate);
    }
    if (atomic_load(&session->running) && !importing) {
        strike(session, type);
        settle_interrupts(); /* the session may be long in coming */
    }
}

/* Body of an interrupter: raises KeyboardInterrupt in what the session runs, if it still does. */
DETACHED
CHECKED(no_thread_safety_analysis) static void *interrupter_main(void *argument)
{
    struct session *session = argument;
    PyThreadState *tstate = enter_interpreter();
    if (tstate != NULL) {
        raise_in_session(session, PyExc_KeyboardInterrupt);
    }
    /* Before the session can go on: for what it runs next there is to be another. */
    lock_leaf(&session->out_lock);
    session->interrupted = false;
    unlock(&session->out_lock);
    if (tstate != NULL) {
        leave_interpreter(tstate);
    }
    helper_done(session);
    return NULL;
}

/* Interrupts what the session runs. Returns how often it has been; 0: nothing runs. */
DETACHED static int
interrupt_session(struct session *session)
{
    bool running = atomic_load(&session->running);
    bool send = false;
    lock_leaf(&session->out_lock);
    send = running && !session->interrupted;
    session->interrupted = session->interrupted || send;
    unlock(&session->out_lock);
    if (send && !send_helper(session, interrupter_main)) {
        lock_leaf(&session->out_lock);
        session->interrupted = false;
        unlock(&session->out_lock);
    }
    return running ? atomic_fetch_add(&session->interrupts, 1) + 1 : 0;
}

/* Body of a guard, for a session that no listener looks after, a oneshot's or one that outlives
 * release(): interrupts what a vanished client has left running, again and again until the session
 * is over, which hangs up at its end, too. */
DETACHED static void *
guard_main(void *argument)
{
    struct session *session = argument;
    struct pollfd client = {.fd = atomic_load(&session->fd.number), .events = 0};
    while (!atomic_load(&session->over) && poll(&client, 1, GONE_CHECK_MS) <= 0) {
    }
    lock_leaf(&session->out_lock);
    while (!session->over) {
        struct timespec again = {0};
        unlock(&session->out_lock);
        (void)interrupt_session(session);
        lock_leaf(&session->out_lock);
        (void)clock_gettime(CLOCK_MONOTONIC, &again);
        again.tv_sec += GONE_CHECK_MS / 1000;
        if (!session->over) {
            (void)pthread_cond_timedwait(&session->out_free, &session->out_lock, &again);
        }
    }
    unlock(&session->out_lock);
    helper_done(session);
    return NULL;
}

/* Once a session. */
DETACHED static void
send_guard(struct session *session)
{
    bool send = false;
    lock_leaf(&session->out_lock);
    send = !session->guarded && !atomic_load(&session->over);
    session->guarded = session->guarded || send;
    unlock(&session->out_lock);
    if (send) {
        (void)send_helper(session, guard_main);
    }
}

/* For the clients that stay when there is no listener any more. */
DETACHED static void
send_guards(void)
{
    for (size_t i = 0; i < atomic_load(&manhole.sessions_end); i++) {
        struct session *session = &manhole.sessions[i];
        lock_leaf(&session->out_lock);
        bool there = session->asked_ms != 0;
        unlock(&session->out_lock);
        if (there) {
            send_guard(session);
        }
    }
}

/* ======================================================================================
 * Listener: the thread that nothing in Python can stop.
 * Runs on:  itself. DETACHED for life: whoever calls Python here breaks the first invariant.
 * Touches:  the socket, the slots of sessions, the copies that wait in them.
 *
 * A client may bind its socket to an abstract name before it connects, manhole-cli/ID/WISH, and the
 * kernel hands it to us with the connection. ID is the same for all connections of one client. Who
 * has no such card, or another WISH, gets what connection_handler says.
 *   quiet      the same without the stacks.
 *   terminal, terminal-quiet
 *              the console with and without the stacks, for who types: with keys and marks, see
 *              is_key().
 *   interrupt  raises KeyboardInterrupt in what the client with this ID runs; says in a line what
 *              became of it.
 *   complete   reads a line, up to the cursor; sends what it may become in the session of the
 *              client with this ID, a line each. No word on any error.
 *   stacks     sends the stacks alone; from a frozen copy when Python does not answer.
 *   json       the same as a JSON document.
 *   exec       reads a program and runs it: four bytes of length, the high one first; then file
 *              name, sys.argv's elements and source, a NUL between two. What follows is its stdin.
 *              Sends frames (a kind; four bytes of length; so many bytes): 'o' stdout, 'e' stderr,
 *              'i', empty, when it reads for the first time; last 'x', the exit status in decimal.
 * All but a console's and interrupt's answers end with the connection; one that starts "manhole: "
 * in their place is a refusal. They run whatever connection_handler is: the credentials are what
 * lets a client in. Only exec is refused where commands are all that there is. To add one: a row in
 * wishes[].
 * ====================================================================================== */

/* A client that cannot be served is told why, if it listens, and let go. */
DETACHED static void
turn_away(int fd, const char *why)
{
    char line[160];
    int length = snprintf(line, sizeof(line), "manhole: %s\n", why);
    (void)send(fd, line, (size_t)length, MSG_NOSIGNAL | MSG_DONTWAIT);
    (void)close(fd);
    log_line("Turned a client away: %s", why);
}

static bool
is_python_stuck(void)
{
    int64_t since_ms = waiting_since();
    return since_ms != 0 &&
           monotonic_ms() - since_ms >= seconds_to_ms(manhole.options.hang_timeout);
}

/* A client that may come in. */
struct entrance {
    int fd; /* owned, handed to the session */
    struct peer peer;
    const char *card; /* the id on it */
    const struct wish *wish;
    const struct door *door; /* that the application has given; NULL: another */
    PyObject *locals;        /* owned, handed to the session; or NULL */
};

/* Returns whether the client is in; if not, it is gone, and locals still the caller's. */
DETACHED static bool
start_session(const struct entrance *entrance)
{
    const struct wish *wish = entrance->wish;
    struct session *session = NULL;
    bool stuck = wish->aside && is_python_stuck();
    int fd = entrance->fd;
    int error = 0;
    if (stuck && wish->report == NULL) {
        (void)close(fd); /* it is about Python alone, and does not want to wait */
        return false;
    }
    session = claim_session(fd, &entrance->peer, wish);
    if (session == NULL) {
        char why[80];
        (void)snprintf(why, sizeof(why),
                       "%d clients are connected already; try again later",
                       most_sessions(wish));
        turn_away(fd, why);
        return false;
    }
    (void)snprintf(session->card, sizeof(session->card), "%s", entrance->card);
    session->door = entrance->door;
    session->door_serial = entrance->door == NULL ? 0 : entrance->door->serial;
    session->locals = entrance->locals;
    lock_leaf(&session->out_lock);
    session->asked_ms = monotonic_ms();
    session->reported = stuck; /* by its own thread, at once */
    unlock(&session->out_lock);
    error = start_thread(NULL, stuck ? lone_reporter_main : session_main, session,
                         PYTHON_STACK_SIZE);
    if (error != 0) {
        char why[120];
        (void)snprintf(why, sizeof(why), "cannot start a thread for you: %s",
                       error_text(error));
        turn_away(fcntl(fd, F_DUPFD_CLOEXEC, 0), why);
        session->locals = NULL;
        release_session(session);
    }
    return error == 0;
}

/* Checks who an accepted client is. Returns whether it may come in; if not, it is gone. */
DETACHED static bool
admit_client(int fd, struct peer *peer, const struct wish *wish)
{
    if (!wish->unlogged) {
        log_line("Started ManholeConnectionThread thread. Checking credentials ...");
    }
    if (identify_peer(fd, peer) < 0 || !may_enter(peer)) {
        char why[200];
        describe_refusal(peer, why, sizeof(why));
        log_line("SuspiciousClient: %s", why);
        if (is_open()) {
            log_waiting();
        }
        (void)close(fd);
        return false;
    }
    if (!wish->unlogged) {
        log_accepted(fd, peer);
    }
    return true;
}

/* A client's calling card: the abstract name that it was bound to, manhole-cli/ID/WISH, with
 * whatever it takes to make that unique behind a dot: manhole-cli/4711.1/interrupt.2 */
struct card {
    char id[CARD_SIZE];
    char wish[16];
};

/* Reads a card. A client without one, plain nc, or with another's, has empty fields. */
static struct card
read_card(const struct sockaddr_un *address, socklen_t size)
{
    static const char prefix[] = "manhole-cli/";
    struct card card = {"", ""};
    char name[sizeof(address->sun_path) + 1] = "";
    const char *slash = NULL;
    const size_t offset = offsetof(struct sockaddr_un, sun_path) + 1;
    if (address->sun_family != AF_UNIX || size <= offset || size > sizeof(*address) ||
        address->sun_path[0] != '\0') {
        return card;
    }
    memcpy(name, address->sun_path + 1, size - offset);
    slash = strrchr(name, '/');
    if (strncmp(name, prefix, sizeof(prefix) - 1) == 0 && slash != NULL &&
        slash >= name + sizeof(prefix) &&
        (size_t)(slash - name) - sizeof(prefix) + 1 < sizeof(card.id) &&
        strlen(slash + 1) < sizeof(card.wish)) {
        memcpy(card.id, name + sizeof(prefix) - 1,
               (size_t)(slash - name) - sizeof(prefix) + 1);
        (void)snprintf(card.wish, sizeof(card.wish), "%s", slash + 1);
        card.wish[strcspn(card.wish, ".")] = '\0';
    }
    return card;
}

/* Interrupts what the client with this id runs, and answers in a word what became of it. Takes
 * over fd. */
DETACHED static void
answer_interrupt(int fd, const struct card *card)
{
    static const char *const answers[] = {"idle\n", "interrupted\n", "still running\n"};
    const char *answer = "unknown\n";
    for (size_t i = 0; i < atomic_load(&manhole.sessions_end); i++) {
        struct session *session = &manhole.sessions[i];
        lock_leaf(&session->out_lock);
        bool meant = session->asked_ms != 0 && strcmp(session->card, card->id) == 0;
        unlock(&session->out_lock);
        if (meant && session->wish->serve != serve_completion) {
            int times = interrupt_session(session);
            answer = answers[times < 2 ? times : 2];
        }
    }
    (void)send(fd, answer, strlen(answer), MSG_NOSIGNAL | MSG_DONTWAIT);
    (void)close(fd);
}

/* The side channels; any other wish, and none, is a console's. */
static const struct wish *
find_wish(const char *name)
{
    static const struct wish wishes[] = {
        {.name = "complete",
         .aside = true,
         .unlogged = true,
         .receive = receive_line,
         .serve = serve_completion},
        {.name = "interrupt", .unlogged = true}, /* answered by the listener */
        {.name = "quiet", .no_stacks = true},
        {.name = "terminal", .marked = true},
        {.name = "terminal-quiet", .marked = true, .no_stacks = true},
        {.name = "exec",
         .framed = true,
         .receive = receive_program,
         .serve = serve_program},
        {.name = "json", .aside = true, .serve = serve_json, .report = report_json},
        {.name = "stacks", .aside = true, .serve = serve_stacks, .report = report_stacks},
    };
    for (size_t i = 0; i < Py_ARRAY_LENGTH(wishes); i++) {
        if (strcmp(wishes[i].name, name) == 0) {
            return &wishes[i];
        }
    }
    return &plain_wish;
}

/* Accepts one client. Returns 0, or -1 when there is no room for any just now. */
DETACHED static int
accept_client(const struct door *door)
{
    struct peer peer = {0};
    struct card card;
    const struct wish *wish = NULL;
    bool given = false;
    union address address = {.any.sa_family = AF_UNSPEC};
    socklen_t size = sizeof(address);
    int listen_fd = kept_number(&door->listen_fd);
    int fd = -1; /* owned */
    given = atomic_load(&door->given_fd.number) >= 0;
    if (given) { /* a process that shares it may have had it block again */
        (void)fcntl(listen_fd, F_SETFL, fcntl(listen_fd, F_GETFL) | O_NONBLOCK);
    }
    fd = accept4(listen_fd, &address.any, &size, SOCK_CLOEXEC);
    if (fd < 0) {
        /* The client has left again; recover_descriptors() sees to it; or it is shut down, which
         * is_done_with() finds. All else may last. */
        return errno == EAGAIN || errno == ECONNABORTED || errno == EINTR ||
                       errno == EBADF || errno == EINVAL
                   ? 0
                   : -1;
    }
    card = read_card(&address.un, size);
    wish = given ? &backdoor_wish : find_wish(card.wish);
    if (!admit_client(fd, &peer, wish)) {
        return 0;
    }
    if (strcmp(card.wish, "interrupt") == 0) {
        answer_interrupt(fd, &card);
    }
    else {
        (void)start_session(&(struct entrance){.fd = fd,
                                               .peer = peer,
                                               .card = card.id,
                                               .wish = wish,
                                               .door = given ? door : NULL});
    }
    return 0;
}

/* What the listener knows from one turn of its loop to the next, and what it waits for in one. */
struct watch {
    bool accept_fails;       /* said once, until it works again */
    int64_t accept_again_ms; /* monotonic; 0: at once */
    struct pollfd fds[1 + MAX_DOORS + MAX_SESSIONS];
    struct {
        struct door *door;
        struct session *session;
    } whose[1 + MAX_DOORS + MAX_SESSIONS]; /* neither: the bell's */
    nfds_t count;
    int64_t wake_ms; /* monotonic: the next thing to do whatever happens; -1: none */
};

static void
watch_fd(struct watch *watch, int fd, short events, struct door *door,
         struct session *session)
{
    watch->fds[watch->count] = (struct pollfd){.fd = fd, .events = events};
    watch->whose[watch->count].door = door;
    watch->whose[watch->count++].session = session;
}

static void
wake_at(struct watch *watch, int64_t time_ms)
{
    if (watch->wake_ms < 0 || time_ms < watch->wake_ms) {
        watch->wake_ms = time_ms;
    }
}

static bool
has_report(const struct wish *wish)
{
    enum handler_kind kind = manhole.options.connection_handler.kind;
    if (wish->serve == NULL) {
        return kind == HANDLER_REPL || kind == HANDLER_COMMANDS;
    }
    return wish->report != NULL || wish->serve == serve_console;
}

/* When the client must have heard something; -1: it has, or is not the listener's. */
static int64_t
report_time(struct session *session)
{
    int64_t patience_ms = seconds_to_ms(manhole.options.hang_timeout);
    int64_t time_ms = -1;
    lock_leaf(&session->out_lock);
    if (session->asked_ms != 0 && !session->answered && !session->reported &&
        has_report(session->wish)) {
        bool takes_turns = HAS_GIL && session->importing;
        time_ms = session->asked_ms + patience_ms * (takes_turns ? IMPORT_FACTOR : 1);
    }
    unlock(&session->out_lock);
    return time_ms;
}

static bool
is_listeners(struct session *session)
{
    bool ours = false;
    lock_leaf(&session->out_lock);
    ours = session->asked_ms != 0;
    unlock(&session->out_lock);
    return ours;
}

/* The application has closed or shut down a socket that it has given us. */
static bool
is_done_with(const struct door *door)
{
    int listens = 0;
    socklen_t size = sizeof(listens);
    if (atomic_load(&door->given_fd.number) < 0) {
        return false;
    }
    (void)getsockopt(kept_number(&door->listen_fd), SOL_SOCKET, SO_ACCEPTCONN, &listens,
                     &size);
    return is_lost(&door->given_fd) || !listens;
}

/* Whether there is a door, and it is the listener's. */
static bool
sees_to_door(struct door *door)
{
    if (!is_door_open(door) ||
        (door < manhole.doors + MAX_OWN_DOORS && atomic_load(&manhole.oneshot))) {
        return false;
    }
    if (is_done_with(door)) {
        log_line("Backdoor server at %s is closed: the application has closed its socket",
                 door->name);
        close_kept(&door->listen_fd);
        return false;
    }
    return true;
}

static void
watch_doors(struct watch *watch)
{
    for (size_t i = 0; i < MAX_DOORS; i++) {
        struct door *door = &manhole.doors[i];
        if (sees_to_door(door)) {
            watch_fd(watch, atomic_load(&door->listen_fd.number), POLLIN, door, NULL);
        }
    }
}

/* Fills in what to wait for. A session's descriptor is always watched: that its client leaves must
 * be seen while its thread is busy. */
DETACHED static void
prepare_watch(struct watch *watch)
{
    watch->count = 0;
    watch->wake_ms = -1;
    atomic_store(&manhole.wakes_at_ms,
                 -1); /* before the sessions are read, see expect_answer() */
    /* Also descriptors that are lost: poll() returns at once for them, and all is opened anew. */
    watch_fd(watch, atomic_load(&manhole.wake_bell.number), POLLIN, NULL, NULL);
    if (watch->accept_again_ms != 0 && ms_until(watch->accept_again_ms) > 0) {
        wake_at(watch, watch->accept_again_ms);
    }
    else {
        watch_doors(watch);
    }
    for (size_t i = 0; i < atomic_load(&manhole.sessions_end); i++) {
        struct session *session = &manhole.sessions[i];
        int fd = atomic_load(&session->fd.number);
        if (fd < 0 || !is_listeners(session)) {
            continue;
        }
        if (session->gone_ms != 0) {
            wake_at(watch, session->gone_ms + GONE_CHECK_MS);
        }
        else {
            watch_fd(watch, fd, has_copies(session) ? POLLOUT : 0, NULL, session);
        }
        if (report_time(session) >= 0) {
            wake_at(watch, report_time(session));
        }
    }
}

DETACHED static void
accept_clients(struct watch *watch, struct door *door)
{
    watch->accept_again_ms = 0;
    if (!sees_to_door(door) || accept_client(door) == 0) {
        watch->accept_fails = false;
        return;
    }
    if (!watch->accept_fails) {
        log_line("Cannot accept a client: %s. Waiting until there is room.",
                 error_text(errno));
    }
    watch->accept_fails = true;
    watch->accept_again_ms = monotonic_ms() + ACCEPT_PAUSE_MS;
}

/* What is due without any event: stacks for who waits too long, an interrupt for what a vanished
 * client has left running, again and again until it ends. */
DETACHED static void
look_after(struct session *session)
{
    int64_t now_ms = monotonic_ms();
    int64_t report_ms = report_time(session);
    if (report_ms >= 0 && report_ms <= now_ms) {
        report_session(session);
    }
    if (session->gone_ms != 0 && session->gone_ms + GONE_CHECK_MS <= now_ms) {
        session->gone_ms = now_ms;
        (void)interrupt_session(session);
    }
}

/* Sleeps until there is something to do, then does it. With nothing to watch but the bell it
 * sleeps on the semaphore instead, which an application that closes all descriptors cannot close:
 * activate_on still works. */
DETACHED static void
watch_descriptors(struct watch *watch)
{
    int ready = 0;
    prepare_watch(watch);
    if (watch->count == 1 && watch->wake_ms < 0) {
        (void)sem_wait(&manhole.wake);
        silence_bell(&manhole.wake_bell);
        return;
    }
    atomic_store(&manhole.wakes_at_ms, watch->wake_ms);
    atomic_store(&manhole.polling, true);
    ready = poll(watch->fds, watch->count, ms_until(watch->wake_ms));
    atomic_store(&manhole.polling, false);
    if (ready < 0) {
        return;
    }
    if (watch->fds[0].revents != 0) {
        silence_bell(&manhole.wake_bell);
    }
    for (nfds_t i = 1; i < watch->count; i++) {
        struct session *session = watch->whose[i].session;
        short events = watch->fds[i].revents;
        if (session == NULL && events != 0) {
            accept_clients(watch, watch->whose[i].door);
        }
        if (session != NULL && (events & POLLOUT) != 0) {
            carry_copies(session);
        }
        if (session != NULL && (events & (POLLHUP | POLLERR | POLLNVAL)) != 0 &&
            is_gone(session)) {
            session->gone_ms = monotonic_ms();
            (void)interrupt_session(session);
        }
    }
    for (size_t i = 0; i < atomic_load(&manhole.sessions_end); i++) {
        if (atomic_load(&manhole.sessions[i].fd.number) >= 0 &&
            is_listeners(&manhole.sessions[i])) {
            look_after(&manhole.sessions[i]);
        }
    }
}

/* Does what the others have wished for. Returns the wishes that it found. */
DETACHED static unsigned
obey_wishes(void)
{
    unsigned wishes = 0;
    while (sem_trywait(&manhole.wake) == 0) {
    }
    wishes = atomic_exchange(&manhole.wishes, 0);
    if ((wishes & WISH_CLOSE) != 0) {
        close_given_doors();
    }
    if ((wishes & (WISH_CLOSE | WISH_STOP)) != 0) {
        close_doors();
        ring_bell(&manhole.news_bell);
    }
    else if ((wishes & WISH_OPEN) != 0 && atomic_load(&manhole.oneshot)) {
        atomic_fetch_or(&manhole.wishes,
                        WISH_OPEN); /* again when that is over, which wakes us */
    }
    else if ((wishes & WISH_OPEN) != 0 && open_doors() > 0) {
        log_waiting();
    }
    return wishes;
}

static bool
has_lost_door(void)
{
    bool lost = false;
    for (size_t i = 0; i < MAX_OWN_DOORS; i++) {
        lost = lost || is_lost(&manhole.doors[i].listen_fd);
    }
    return lost;
}

/* An application that makes itself a daemon closes every descriptor there is: opens ours anew.
 * Returns false when that cannot be done: nothing would wake the listener any more. */
DETACHED static bool
recover_descriptors(void)
{
    bool woken = !is_lost(&manhole.wake_bell) && !is_lost(&manhole.news_bell);
    if (woken && !has_lost_door()) {
        return true;
    }
    log_line("WARNING: The manhole's descriptors were closed by the application. Opening "
             "them again.");
    if (open_bells() < 0) {
        log_line("Cannot go on listening: %s", error_text(errno));
        close_doors();
        return false;
    }
    if (is_open() && !atomic_load(&manhole.oneshot) && open_doors() > 0) {
        log_waiting();
    }
    return true;
}

/* A child that is about to exec or exit leaves no socket behind. */
DETACHED static void
delay_binding(void)
{
    int64_t deadline_ms = monotonic_ms() + manhole.bind_delay_ms;
    if (manhole.bind_delay_ms > 0) {
        log_line("Delaying UDS binding %s seconds ...",
                 format_seconds(manhole.options.reinstall_delay).text);
    }
    while (atomic_load(&manhole.wishes) == 0 && ms_until(deadline_ms) > 0 &&
           recover_descriptors()) {
        struct pollfd wake = {.fd = atomic_load(&manhole.wake_bell.number),
                              .events = POLLIN};
        (void)poll(&wake, 1, ms_until(deadline_ms));
    }
}

/* One at a time: behind a stuck interpreter they would pile up. */
DETACHED static void
send_courier(void)
{
    if (is_log_waiting() && !atomic_exchange(&manhole.courier_is_out, true) &&
        start_thread(NULL, courier_main, NULL, PYTHON_STACK_SIZE) != 0) {
        atomic_store(&manhole.courier_is_out, false);
    }
}

/* Else for a signal, or for what the application has given us, alone. */
static bool
opens_at_once(const struct options *options)
{
    return options->thread && options->activate_on == 0 && options->oneshot_on == 0;
}

/* The name of the calling thread, the listener: manhole-cli reads there that a process has a
 * manhole, and by the number the signal that opens it. */
DETACHED static void
name_listener(void)
{
    char name[16] = "Manhole";
    if (manhole.options.activate_on != 0) {
        (void)snprintf(name, sizeof(name), "Manhole %d", manhole.options.activate_on);
    }
    (void)pthread_setname_np(pthread_self(), name);
}

DETACHED static void *
listener_main(void *unused)
{
    struct watch watch = {.accept_again_ms = 0};
    (void)unused;
    name_listener();
    delay_binding();
    if (opens_at_once(&manhole.options)) {
        atomic_fetch_or(&manhole.wishes, WISH_OPEN);
        wake_listener();
    }
    while (recover_descriptors() && (obey_wishes() & WISH_STOP) == 0) {
        if (!atomic_exchange(&manhole.started, true)) {
            ring_bell(&manhole.news_bell);
        }
        send_courier();
        watch_descriptors(&watch);
    }
    return NULL;
}

/* ======================================================================================
 * Activation: signals in, waiting for threads, and the oneshot session.
 * Runs on:  the threads that call install(), release() and handle_oneshot(), ATTACHED.
 * Touches:  the dispositions of activate_on and oneshot_on, the listener's thread.
 * ====================================================================================== */

/* Waits, detached, until is_done() or the monotonic deadline (-1: none). Signals of the
 * application are handled meanwhile. Returns 0 when done, 1 when late, -1 with an
 * exception from a handler. */
ATTACHED static int
wait_for_news(bool (*is_done)(void), int64_t deadline_ms)
{
    while (!is_done()) {
        struct pollfd news = {.fd = kept_number(&manhole.news_bell), .events = POLLIN};
        int timeout = ms_until(deadline_ms);
        PyThreadState *tstate = NULL;
        if (timeout == 0) {
            return 1;
        }
        tstate = detach();
        if (poll(&news, 1, slice_of(timeout)) > 0) {
            silence_bell(&manhole.news_bell);
        }
        reattach(tstate);
        if (PyErr_CheckSignals() < 0) {
            return -1;
        }
    }
    return 0;
}

static bool
has_started(void)
{
    return atomic_load(&manhole.started);
}

static bool
has_no_session(void)
{
    return count_sessions() == 0;
}

static bool
has_nobody_entering(void)
{
    return read_under_table_lock(&manhole.entering) == 0;
}

static bool
has_nobody_inside(void)
{
    return read_under_table_lock(&manhole.inside) == 0;
}

/* The listener sleeps in poll(), and the application has closed the bell that would wake it. */
static bool
is_listener_deaf(void)
{
    return is_lost(&manhole.wake_bell) && atomic_load(&manhole.polling);
}

static bool
has_closed_door(void)
{
    return !is_open() || is_listener_deaf();
}

static void
wish(unsigned wishes)
{
    atomic_fetch_or(&manhole.wishes, wishes);
    wake_listener();
}

/* Returns 0, or an errno value: no thread is to be had, or no descriptor to wake it by. */
static int
start_listener(void)
{
    int error = open_bells() < 0 ? errno : 0;
    atomic_store(&manhole.started, false);
    atomic_store(&manhole.polling, false);
    atomic_store(&manhole.wakes_at_ms, -1);
    /* One to open may have come in a child's first instant; one to stop was another listener's. */
    (void)atomic_fetch_and(&manhole.wishes, (unsigned)WISH_OPEN);
    (void)sem_init(&manhole.wake, 0, 0);
    if (error == 0) {
        error = start_thread(&manhole.listener, listener_main, NULL, SMALL_STACK_SIZE);
    }
    manhole.has_listener = error == 0;
    return error;
}

ATTACHED static void
stop_listener(void)
{
    if (manhole.has_listener) {
        PyThreadState *tstate = NULL;
        wish(WISH_STOP);
        if (is_listener_deaf()) {
            (void)pthread_detach(manhole.listener);
            close_doors();
        }
        else {
            tstate = detach();
            (void)pthread_join(manhole.listener, NULL);
            reattach(tstate);
        }
        if (!manhole.closing) {
            tstate = detach();
            send_guards();
            reattach(tstate);
        }
        manhole.has_listener = false;
    }
    else {
        close_doors(); /* a oneshot's, which may wait at them in another thread */
    }
}

/* A real-time signal that nobody uses, from the top; 0: there is none. */
static int
find_free_signal(void)
{
    for (int signum = SIGRTMAX; signum >= SIGRTMIN; signum--) {
        struct sigaction current;
        if (sigaction(signum, NULL, &current) == 0 && current.sa_handler == SIG_DFL &&
            signum != manhole.options.activate_on &&
            signum != manhole.options.oneshot_on) {
            return signum;
        }
    }
    return 0;
}

/* faulthandler.METHOD(signum, **keywords), keywords new, or NULL, also with an exception.
 * Returns 0, or -1 with an exception. */
ATTACHED static int
call_faulthandler(const char *method, PyObject *keywords /* new: taken over */)
{
    PyObject *module =
        PyErr_Occurred() ? NULL : PyImport_ImportModule("faulthandler"); /* owned */
    PyObject *function = module == NULL ? NULL : PyObject_GetAttrString(module, method);
    PyObject *arguments = Py_BuildValue("(i)", snapshot.signum); /* owned */
    PyObject *result = NULL;                                     /* owned */
    if (function != NULL && arguments != NULL) {
        result = PyObject_Call(function, arguments, keywords);
    }
    Py_XDECREF(module);
    Py_XDECREF(function);
    Py_XDECREF(arguments);
    Py_XDECREF(keywords);
    Py_XDECREF(result);
    return result == NULL ? -1 : 0;
}

#define NO_COPIES "Stacks of a stuck interpreter will not be available: "

/* Settles all that a frozen copy will need. Without it the manhole works, but for that: a log line
 * says so. The copy makes descriptor 2 its own, so that is what faulthandler is told. */
ATTACHED static void
open_snapshot(void)
{
    struct sigaction current = {.sa_handler = SIG_DFL};
    snapshot.signum = find_free_signal();
    snapshot.interpreter = manhole.interpreter;
    Py_XSETREF(snapshot.modules, Py_NewRef(PyImport_GetModuleDict()));
    if (snapshot.signum == 0) {
        log_line(NO_COPIES "no real-time signal is free for faulthandler");
    }
    else if (call_faulthandler("register",
                               Py_BuildValue("{sisOsO}", "file", STDERR_FILENO,
                                             "all_threads", Py_True, "chain", Py_False)) <
             0) {
        log_exception(NO_COPIES, take_exception(), "");
        snapshot.signum = 0;
    }
    else {
        (void)sigaction(snapshot.signum, NULL, &current);
    }
    snapshot.handler = current.sa_handler;
    open_spare();
}

/* faulthandler puts back what it found, also where the application has set its own since. */
ATTACHED static void
close_snapshot(void)
{
    struct sigaction theirs;
    bool put_back = snapshot.signum != 0 && !is_snapshot_ready() &&
                    sigaction(snapshot.signum, NULL, &theirs) == 0;
    if (snapshot.signum != 0 && call_faulthandler("unregister", NULL) < 0) {
        PyErr_Clear();
    }
    if (put_back) {
        (void)sigaction(snapshot.signum, &theirs, NULL);
    }
    snapshot.signum = 0;
    close_kept(&snapshot.spare);
    Py_CLEAR(snapshot.modules);
}

/* Not through signal.signal(): a Python handler waits for the main thread to return to
 * the interpreter, and would cut the application's system calls short. */
ATTACHED static int
watch_activate_on(int signum)
{
    struct sigaction action = {.sa_handler = on_activate,
                               .sa_flags = SA_RESTART | SA_ONSTACK};
    (void)sigemptyset(&action.sa_mask);
    if (sigaction(signum, &action, &manhole.previous_activate) < 0) {
        PyErr_SetFromErrno(PyExc_OSError);
        return -1;
    }
    return 0;
}

/* Restores what was there, unless the application has set its own since. */
static void
unwatch_activate_on(int signum)
{
    struct sigaction current;
    if (sigaction(signum, NULL, &current) == 0 && (current.sa_flags & SA_SIGINFO) == 0 &&
        current.sa_handler == on_activate) {
        (void)sigaction(signum, &manhole.previous_activate, NULL);
    }
}

/* signal.signal(signum, handler). Returns the previous handler, new, or NULL with an
 * exception. */
ATTACHED static PyObject *
set_python_handler(int signum, PyObject *handler)
{
    PyObject *module = PyImport_ImportModule("_signal"); /* owned */
    PyObject *previous = NULL;                           /* new, handed to the caller */
    if (module != NULL) {
        previous = PyObject_CallMethod(module, "signal", "iO", signum, handler);
    }
    Py_XDECREF(module);
    return previous;
}

/* A page that nobody uses, or NULL. Its name in /proc/self/maps tells manhole-cli which signal
 * oneshot_on is, as the listener's name does of activate_on: here there is no thread to bear it,
 * and an application that closes all descriptors leaves it alone. */
static void *oneshot_notice;

static void
remove_oneshot_notice(void)
{
    if (oneshot_notice != NULL) {
        (void)munmap(oneshot_notice, 1);
        oneshot_notice = NULL;
    }
}

/* A forked child has none until it says so itself. */
static void
put_up_oneshot_notice(int signum)
{
    char name[32];
    void *page = MAP_FAILED;
    int fd = -1; /* owned */
    (void)snprintf(name, sizeof(name), "manhole oneshot_on=%d", signum);
    fd = memfd_create(name, MFD_CLOEXEC);
    if (fd >= 0) {
        page = mmap(NULL, 1, PROT_NONE, MAP_SHARED, fd, 0);
        (void)close(fd);
    }
    if (page != MAP_FAILED) {
        (void)madvise(page, 1, MADV_DONTFORK);
        oneshot_notice = page;
    }
}

ATTACHED static int
watch_oneshot_on(int signum)
{
    struct sigaction action = {.sa_handler = SIG_DFL};
    PyObject *handler = PyObject_GetAttrString(installed_state()->manhole_object,
                                               "handle_oneshot"); /* owned */
    (void)sigaction(signum, NULL, &manhole.previous_oneshot_action);
    if (handler != NULL) {
        Py_XSETREF(manhole.previous_oneshot, set_python_handler(signum, handler));
        Py_DECREF(handler);
    }
    (void)sigaction(signum, NULL, &action);
    manhole.oneshot_handler = action.sa_handler;
    put_up_oneshot_notice(signum);
    return handler == NULL || manhole.previous_oneshot == NULL ? -1 : 0;
}

/* Whether the handler is still ours, not one that the application has set since. Never raises. */
ATTACHED static bool
is_oneshot_ours(int signum)
{
    PyObject *object = installed_state()->manhole_object;              /* borrowed */
    PyObject *ours = PyObject_GetAttrString(object, "handle_oneshot"); /* owned */
    PyObject *module = PyImport_ImportModule("_signal");               /* owned */
    PyObject *current = NULL;                                          /* owned */
    bool same = false;
    struct sigaction action = {.sa_handler = SIG_DFL};
    (void)sigaction(signum, NULL, &action);
    if (module != NULL && ours != NULL && action.sa_handler == manhole.oneshot_handler) {
        current = PyObject_CallMethod(module, "getsignal", "i", signum);
        same = current != NULL && PyObject_RichCompareBool(current, ours, Py_EQ) == 1;
    }
    PyErr_Clear();
    Py_XDECREF(ours);
    Py_XDECREF(module);
    Py_XDECREF(current);
    return same;
}

/* Restores what was there, unless the application has set its own since: Python's record of it and
 * then the handler itself, which Python does not know where C code has set it. */
ATTACHED static void
unwatch_oneshot_on(int signum)
{
    remove_oneshot_notice();
    if (manhole.previous_oneshot != NULL && is_oneshot_ours(signum)) {
        PyObject *ours = NULL; /* owned */
        if (manhole.previous_oneshot != Py_None) {
            ours = set_python_handler(signum, manhole.previous_oneshot);
            PyErr_Clear(); /* not the main thread: Python's record stays, the handler goes */
        }
        (void)sigaction(signum, &manhole.previous_oneshot_action, NULL);
        Py_XDECREF(ours);
    }
    Py_CLEAR(manhole.previous_oneshot);
}

/* How oneshot ends when it does not end well, with an exception. */
enum {
    ONESHOT_FAILED = -1,
    ONESHOT_INTERRUPTED = -2, /* the exception is that of another signal's handler */
};

/* Accepts oneshot's client, but no `manhole-cli --list`, which is answered and gone. Returns its
 * descriptor, or -1 with errno. */
DETACHED static int
accept_guest(int listen_fd)
{
    union address address = {.any.sa_family = AF_UNSPEC};
    socklen_t size = sizeof(address);
    int fd = accept4(listen_fd, &address.any, &size, SOCK_CLOEXEC);
    if (fd >= 0) {
        struct card card = read_card(&address.un, size);
        struct peer peer = {0};
        if (strcmp(card.wish, "interrupt") == 0) {
            if (admit_client(fd, &peer, find_wish(card.wish))) {
                answer_interrupt(fd, &card);
            }
            fd = -1;
            errno = EAGAIN;
        }
    }
    return fd;
}

/* Waits for a client at the open doors, or as long as may be before signals are looked at. Returns
 * its descriptor, or -1 with errno. */
DETACHED static int
accept_at_doors(int timeout_ms)
{
    struct pollfd doors[MAX_OWN_DOORS];
    int fd = -1;
    errno = EAGAIN;
    for (size_t i = 0; i < MAX_OWN_DOORS; i++) {
        doors[i] = (struct pollfd){.fd = kept_number(&manhole.doors[i].listen_fd),
                                   .events = POLLIN};
    }
    if (poll(doors, MAX_OWN_DOORS, slice_of(timeout_ms)) > 0) {
        for (size_t i = 0; i < MAX_OWN_DOORS && fd < 0; i++) {
            if (doors[i].revents != 0 && is_door_open(&manhole.doors[i])) {
                fd = accept_guest(doors[i].fd);
            }
        }
    }
    return fd;
}

/* Waits for a client at the open doors, signals handled. Returns its descriptor, or one of the
 * above. */
ATTACHED static int
wait_for_client(void)
{
    int64_t deadline_ms = monotonic_ms() + seconds_to_ms(manhole.options.oneshot_timeout);
    for (;;) {
        int timeout = ms_until(deadline_ms);
        int fd = -1;
        int error = 0;
        PyThreadState *tstate = NULL;
        if (!is_open()) {
            PyErr_SetString(PyExc_RuntimeError, "the manhole was released meanwhile");
            return ONESHOT_FAILED;
        }
        if (timeout == 0) {
            PyErr_Format(PyExc_TimeoutError, "no client came to %s in time",
                         manhole.doors[0].name);
            return -1;
        }
        tstate = detach();
        fd = accept_at_doors(timeout);
        error = errno;
        reattach(tstate);
        if (fd >= 0) {
            return fd;
        }
        if (error != EAGAIN && error != ECONNABORTED && error != EINTR) {
            errno = error;
            PyErr_SetFromErrno(PyExc_OSError);
            return -1;
        }
        if (PyErr_CheckSignals() < 0) {
            return ONESHOT_INTERRUPTED;
        }
    }
}

/* Raises SuspiciousClient, or logs that the client is accepted. Returns 0 or -1. */
ATTACHED static int
check_peer(PyObject *suspicious_client, int fd, struct peer *peer)
{
    PyThreadState *tstate = detach();
    int result = identify_peer(fd, peer);
    int error = errno;
    reattach(tstate);
    if (result < 0 && peer->address[0] == '\0') {
        errno = error;
        PyErr_SetFromErrno(PyExc_OSError);
        return -1;
    }
    if (!may_enter(peer)) {
        char why[200];
        describe_refusal(peer, why, sizeof(why));
        PyErr_SetString(suspicious_client, why);
        return -1;
    }
    log_accepted(fd, peer);
    deliver_log();
    return 0;
}

/* What a connected client's card asks for. */
static const struct wish *
read_wish(int fd)
{
    union address address = {.any.sa_family = AF_UNSPEC};
    socklen_t size = sizeof(address);
    return getpeername(fd, &address.any, &size) < 0
               ? &plain_wish
               : find_wish(read_card(&address.un, size).wish);
}

/* As the session's own thread would, in the calling one. Returns whether there is what to serve. */
ATTACHED static bool
receive_here(struct session *session)
{
    bool received = true;
    if (session->wish->receive != NULL) {
        PyThreadState *tstate = detach();
        received = session->wish->receive(session);
        if (!received) {
            hang_up(session);
        }
        reattach(tstate);
    }
    return received;
}

/* Serves a connected socket in the calling thread; takes fd over. Returns 0, or how it failed. */
ATTACHED static int
serve_here(int fd, const struct peer *peer, void (*serve)(struct session *))
{
    const struct wish *wish = serve == serve_session ? read_wish(fd) : &plain_wish;
    bool hangs_up = serve != serve_session || wish->serve != NULL ||
                    manhole.options.connection_handler.kind != HANDLER_CALLABLE;
    struct session *session = claim_session(fd, peer, wish);
    PyObject *raised = NULL; /* owned */
    PyThreadState *tstate = NULL;
    if (session == NULL) {
        (void)close(fd);
        PyErr_Format(PyExc_RuntimeError, "%d clients are connected already",
                     manhole.options.max_sessions);
        return ONESHOT_FAILED;
    }
    atomic_store(&session->ident, PyThread_get_thread_ident());
    if (hangs_up) {
        tstate = detach();
        send_guard(session);
        reattach(tstate);
    }
    if (receive_here(session)) {
        serve(session);
    }
    raised = session->raised;
    session->raised = NULL;
    tstate = detach();
    release_session(session);
    reattach(tstate);
    if (raised != NULL) {
        PyErr_SetObject((PyObject *)Py_TYPE(raised), raised);
        Py_DECREF(raised);
        return ONESHOT_INTERRUPTED;
    }
    return 0;
}

/* Opens the socket, takes one client, serves it. Returns 0, or how it failed. */
ATTACHED static int
serve_oneshot(void)
{
    struct peer peer = {0};
    PyThreadState *tstate = NULL;
    int opened = 0;
    int fd = -1; /* owned until serve_here() takes it */
    int result = ONESHOT_FAILED;
    if (is_open()) {
        PyErr_Format(PyExc_RuntimeError, "already listening at %s",
                     manhole.doors[0].name);
        return ONESHOT_FAILED;
    }
    atomic_store(&manhole.oneshot, true);
    tstate = detach();
    opened = open_doors();
    reattach(tstate);
    if (opened == 0) {
        PyErr_Format(PyExc_OSError, "cannot listen at %s", manhole.doors[0].name);
        goto done;
    }
    log_waiting();
    deliver_log();
    fd = wait_for_client();
    if (fd >= 0 && check_peer(installed_state()->suspicious_client, fd, &peer) == 0) {
        result = serve_here(fd, &peer, serve_session);
        fd = -1;
    }
    else if (fd == ONESHOT_INTERRUPTED) {
        result = ONESHOT_INTERRUPTED;
    }
    if (fd >= 0) {
        (void)close(fd);
    }
    close_doors();
done:
    atomic_store(&manhole.oneshot, false);
    wake_listener(); /* it may have been asked to open one of its own meanwhile */
    return result;
}

/* ======================================================================================
 * Fork and exit: what happens to all this in a child, and at the end.
 * Runs on:  the thread that forks, most of it in the child, and not ATTACHED where a C program does
 *           so without telling Python; the thread that finalizes the interpreter.
 * Touches:  everything: no other thread of ours is left, or is about to be.
 * ====================================================================================== */

ATTACHED static void
drop_options(struct options *options)
{
    Py_CLEAR(options->verbose_destination.object);
    Py_CLEAR(options->locals);
    Py_CLEAR(options->connection_handler.callable);
    Py_CLEAR(options->config);
    Py_CLEAR(options->settings);
    Py_CLEAR(options->plugins);
    free(options->socket_path);
    options->socket_path = NULL;
    free_places(&options->listen);
}

/* Registers the exit callback as the last, which is called first. It stays for the life of the
 * interpreter: clients stay after release(), too. Returns 0, or -1 with an exception. */
ATTACHED static int
add_exit_callback(void)
{
    static const char *const methods[] = {"unregister", "register"};
    PyObject *module = PyImport_ImportModule("atexit"); /* owned */
    PyObject *result = NULL;                            /* owned */
    for (size_t i = 0; module != NULL && i < Py_ARRAY_LENGTH(methods); i++) {
        Py_XSETREF(result,
                   PyObject_CallMethod(module, methods[i], "O", manhole.exit_callback));
        if (result == NULL) {
            break;
        }
    }
    Py_XDECREF(module);
    Py_XDECREF(result);
    return result == NULL ? -1 : 0;
}

/* From here on nothing is installed. */
ATTACHED static void
forget_options(void)
{
    struct options dropped; /* owned */
    Py_CLEAR(manhole.exit_callback);
    lock_leaf(&table_lock);
    dropped = manhole.options;
    manhole.options.locals = NULL;
    manhole.options.socket_path = NULL;
    manhole.options.listen.count = 0;
    manhole.options.verbose_destination.object = NULL;
    manhole.options.connection_handler.callable = NULL;
    manhole.options.config = NULL;
    manhole.options.settings = NULL;
    manhole.options.plugins = NULL;
    unlock(&table_lock);
    manhole.installed = false;
    drop_options(&dropped);
}

/* Fills a slot, whose socket is closed, with what belongs to another. */
ATTACHED static void
fill_door(struct door *door, PyObject *given /* or NULL */,
          PyObject *locals /* or NULL */)
{
    PyObject *old_given = door->given;   /* owned */
    PyObject *old_locals = door->locals; /* owned */
    lock_leaf(&table_lock);
    door->given = Py_XNewRef(given);
    door->locals = Py_XNewRef(locals);
    door->serial++;
    unlock(&table_lock);
    Py_XDECREF(old_given);
    Py_XDECREF(old_locals);
}

ATTACHED static void
empty_door(struct door *door)
{
    keep_fd(&door->given_fd, -1);
    fill_door(door, NULL, NULL);
}

/* Ends what backdoor_server() has begun. There is no listener. */
ATTACHED static void
drop_given_doors(void)
{
    close_given_doors();
    for (size_t i = MAX_OWN_DOORS; i < MAX_DOORS; i++) {
        empty_door(&manhole.doors[i]);
    }
}

/* The sockets that the application has given us block again, where they did. Not at its end: other
 * processes may listen at them. */
ATTACHED static void
restore_given_sockets(void)
{
    for (size_t i = MAX_OWN_DOORS; i < MAX_DOORS; i++) {
        const int fd = kept_number(&manhole.doors[i].given_fd);
        if (fd >= 0 && manhole.doors[i].was_blocking) {
            (void)fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) & ~O_NONBLOCK);
        }
    }
}

/* Undoes install(), also a half-done one. Clients that are in stay. Under install_lock. */
ATTACHED static void
uninstall(void)
{
    if (manhole.options.activate_on != 0) {
        unwatch_activate_on(manhole.options.activate_on);
    }
    if (manhole.options.oneshot_on != 0) {
        unwatch_oneshot_on(manhole.options.oneshot_on);
    }
    stop_listener();
    close_snapshot();
    forget_options();
}

/* Ends the input of every session but the calling thread's own, and raises SystemExit in
 * what it runs just now. */
ATTACHED static void
dismiss_sessions(void)
{
    for (size_t i = 0; i < atomic_load(&manhole.sessions_end); i++) {
        struct session *session = &manhole.sessions[i];
        lock_leaf(&table_lock);
        bool there = session->state == SESSION_TAKEN && session != current_session;
        if (there) {
            (void)shutdown(kept_number(&session->fd), SHUT_RDWR);
        }
        unlock(&table_lock);
        if (there) {
            raise_in_session(session, PyExc_SystemExit);
        }
    }
}

/* Whoever is still in never comes back from the interpreter that ends. One that begins later in the
 * same process is not to wait for them. */
static void
abandon_sessions(void)
{
    lock_leaf(&table_lock);
    for (size_t i = 0; i < atomic_load(&manhole.sessions_end); i++) {
        if (manhole.sessions[i].state == SESSION_TAKEN &&
            &manhole.sessions[i] != current_session) {
            manhole.sessions[i].state = SESSION_BURNT;
        }
    }
    manhole.inside = 0;
    unlock(&table_lock);
}

/* atexit: no new client; the connected ones are waited for, or with daemon_connection are
 * let go; then nobody attaches any more. A second Ctrl-C ends the waiting. */
ATTACHED static PyObject *
py_at_exit(PyObject *module, PyObject *unused)
{
    struct held held;
    int interrupted = 0;
    (void)module;
    (void)unused;
    if (!is_owner() || manhole.interpreter != PyInterpreterState_Get()) {
        return Py_NewRef(Py_None);
    }
    if (manhole.installed && manhole.has_listener) {
        wish(WISH_CLOSE);
        interrupted = wait_for_news(has_closed_door, -1);
    }
    if (interrupted == 0 && !manhole.options.daemon_connection && !is_finalizing()) {
        interrupted = wait_for_news(has_no_session, -1);
    }
    if (interrupted < 0) {
        PyErr_WriteUnraisable(NULL);
    }
    lock_leaf(&table_lock);
    manhole.closing = true;
    unlock(&table_lock);
    /* Microseconds, but not one may be left over: a thread state must not be made later. */
    while (wait_for_news(has_nobody_entering, -1) < 0) {
        PyErr_WriteUnraisable(NULL);
    }
    dismiss_sessions();
    /* In a subinterpreter that ends with the main one it is too late for them to get out. */
    if (!is_finalizing() &&
        wait_for_news(has_nobody_inside, monotonic_ms() + EXIT_GRACE_MS) < 0) {
        PyErr_WriteUnraisable(NULL);
    }
    abandon_sessions();
    lock_sys(&held);
    give_back_attributes();
    give_back_sys();
    unlock_sys(&held);
    if (lock_install() < 0) {
        return NULL;
    }
    if (manhole.installed) {
        manhole.options.activate_on =
            0; /* its handler stays: one that comes late must not kill */
        uninstall();
        drop_given_doors();
    }
    unlock_install();
    deliver_log();
    return Py_NewRef(Py_None);
}

/* A child that multiprocessing made ends by os._exit(), after the finalizers of
 * multiprocessing.util: our exit callback becomes one of them. The list of finalizers is
 * emptied after this hook has run, so it is entered by the module's own hook that runs
 * after that. Never raises. */
ATTACHED static void
tell_multiprocessing(void)
{
    PyObject *modules = PyImport_GetModuleDict();                           /* borrowed */
    PyObject *util = PyDict_GetItemString(modules, "multiprocessing.util"); /* borrowed */
    PyObject *hook =
        PyObject_GetAttrString(manhole.module, "_finalize_with_multiprocessing");
    PyObject *result = NULL; /* owned */
    if (util != NULL && hook != NULL && !installed_state()->has_multiprocessing_hook) {
        result = PyObject_CallMethod(util, "register_after_fork", "OO",
                                     installed_state()->manhole_type, hook);
        installed_state()->has_multiprocessing_hook = result != NULL;
    }
    PyErr_Clear();
    Py_XDECREF(hook);
    Py_XDECREF(result);
}

/* In a child of multiprocessing, called by it, or by install() when that comes later. It would hide
 * what this raises. */
ATTACHED static PyObject *
py_finalize_with_multiprocessing(PyObject *module, PyObject *unused)
{
    PyObject *util = PyImport_ImportModule("multiprocessing.util"); /* owned */
    PyObject *finalize = NULL;                                      /* owned */
    PyObject *arguments = NULL;                                     /* owned */
    PyObject *keywords = NULL;                                      /* owned */
    PyObject *result = NULL;                                        /* owned */
    (void)module;
    (void)unused;
    if (util != NULL && manhole.exit_callback != NULL) {
        finalize = PyObject_GetAttrString(util, "Finalize");
    }
    if (finalize != NULL) {
        arguments = Py_BuildValue("(OO)", Py_None, manhole.exit_callback);
    }
    if (arguments != NULL) {
        keywords = Py_BuildValue("{si}", "exitpriority", -1000);
    }
    if (keywords != NULL) {
        result = PyObject_Call(finalize, arguments, keywords);
    }
    if (PyErr_Occurred()) {
        log_exception("The socket will be left behind: ", take_exception(), "");
    }
    Py_XDECREF(util);
    Py_XDECREF(finalize);
    Py_XDECREF(arguments);
    Py_XDECREF(keywords);
    Py_XDECREF(result);
    return Py_NewRef(Py_None);
}

/* install() in a child of multiprocessing whose parent has no manhole, after the child's hooks have
 * run. Never raises. */
ATTACHED static void
finalize_in_child(void)
{
    PyObject *modules = PyImport_GetModuleDict(); /* borrowed */
    PyObject *process =
        PyDict_GetItemString(modules, "multiprocessing.process"); /* borrowed */
    PyObject *parent = NULL;                                      /* owned */
    PyObject *result = NULL;                                      /* owned */
    if (process != NULL) {
        parent = PyObject_CallMethod(process, "parent_process", NULL);
    }
    if (parent != NULL && parent != Py_None) {
        result = py_finalize_with_multiprocessing(manhole.module, NULL);
    }
    PyErr_Clear();
    Py_XDECREF(parent);
    Py_XDECREF(result);
}

/* In a child, while it has no other thread: forgets the parent's threads, clients and sockets. */
static void
forget_parent(void)
{
    make_locks_anew();
    forget_sessions();
    forget_doors();
    forget_log_lines();
    oneshot_notice = NULL; /* it did not come along */
    manhole.has_listener = false;
    atomic_store(&manhole.courier_is_out, false);
    atomic_store(&manhole.oneshot, false);
    atomic_store(&manhole.leaving, false);
    atomic_store(&manhole.wishes, 0);
    close_kept(&manhole.wake_bell);
    close_kept(&manhole.news_bell);
}

/* The same, and what takes Python to be given up. */
ATTACHED static void
forget_parent_attached(void)
{
    forget_parent();
    for (size_t i = 0; i < MAX_DOORS; i++) {
        empty_door(&manhole.doors[i]);
    }
    give_back_attributes();
    give_back_sys();
}

/* Threads of the process, ours included; 0: /proc does not tell. */
static long
count_process_threads(void)
{
    struct stat status;
    return stat("/proc/self/task", &status) < 0 ? 0 : (long)status.st_nlink - 2;
}

/* Destructor of last_thread_key, in the thread that forked this child, when that thread ends (which
 * it does not by exit()). When it was the last of the application's the process is to end with it:
 * our listener must not keep it. */
DETACHED static void
on_thread_end(void *unused)
{
    (void)unused;
    if (is_owner() && manhole.has_listener && count_process_threads() == 2) {
        remove_paths();
        atomic_fetch_or(&manhole.wishes, WISH_STOP);
        wake_listener();
    }
}

static pthread_key_t last_thread_key;
static pthread_once_t last_thread_once = PTHREAD_ONCE_INIT;

static void
make_last_thread_key(void)
{
    (void)pthread_key_create(&last_thread_key, on_thread_end);
}

static bool
may_reinstall(const struct options *options)
{
    return options->patch_fork && has_place_for_child(options);
}

/* In a child that has forgotten its parent, whose manhole it may have: starts its own. */
static void
start_in_child(void)
{
    const struct options *options = &manhole.options;
    int error = 0;
    atomic_store(&manhole.owner, getpid());
    manhole.is_child = true;
    (void)pthread_once(&last_thread_once, make_last_thread_key);
    (void)pthread_setspecific(last_thread_key, &manhole);
    if (atomic_load(&manhole.activated_child) == getpid()) {
        atomic_fetch_or(&manhole.wishes, WISH_OPEN);
    }
    if (options->oneshot_on != 0) {
        put_up_oneshot_notice(options->oneshot_on);
    }
    if (opens_at_once(options)) {
        log_line("Fork detected. Reinstalling Manhole.");
        manhole.bind_delay_ms = seconds_to_ms(options->reinstall_delay);
    }
    (void)open_bells();
    if (options->activate_on != 0 || opens_at_once(options)) {
        error = start_listener();
    }
    if (error != 0) {
        log_line("Cannot reinstall Manhole: %s", error_text(error));
    }
}

/* In a child whose parent has a manhole: its own, where there can be one. Where not, the handlers
 * of activate_on and oneshot_on stay, and do nothing: a signal to the whole family must not kill
 * the child. */
ATTACHED static void
reinstall(void)
{
    if (!may_reinstall(&manhole.options)) {
        close_snapshot();
        forget_options();
        atomic_store(&manhole.owner, 0);
        return;
    }
    tell_multiprocessing();
    start_in_child();
    deliver_log();
}

/* ---- A C program that forks and does not tell Python: uWSGI -------------------------------- */

/* Between Python's own hooks, which see to all. */
static _Thread_local bool python_tells;

/* The fork that the calling thread is in. */
static _Thread_local struct {
    bool untold;           /* it is such a one: table_lock is held meanwhile, */
    bool told;             /* or, for our clients' sake, Python is told after all, */
    PyThreadState *tstate; /* attached for that; NULL: it was */
} c_fork;

/* Other forks in C, subprocess's or those of a library that Python code has called, are for another
 * program, and pay for no more than this look. */
static bool
forks_for_itself(void)
{
    const PyThreadState *tstate = python_tells ? NULL : own_thread_state();
    return tstate != NULL && !is_in_python_code(tstate) && !is_finalizing() && is_owner();
}

/* Whether Python takes in who waits for it; else it is stuck, and so will the child be. */
static bool
has_python_answered(void)
{
    int64_t deadline_ms = monotonic_ms() + FORK_PATIENCE_MS;
    while (waiting_since() != 0 && ms_until(deadline_ms) > 0) {
        (void)poll(NULL, 0, 1);
    }
    return waiting_since() == 0;
}

/* A session that has the GIL at the fork, or waits for it, would leave the child waiting for it for
 * ever. So this fork becomes what Python's own is. Returns whether it has. */
CHECKED(no_thread_safety_analysis) static bool tell_python(void)
{
    c_fork.tstate = is_attached() ? NULL : own_thread_state();
    if (c_fork.tstate != NULL && !has_python_answered()) {
        return false;
    }
    reattach(c_fork.tstate);
    PyOS_BeforeFork();
    return true;
}

/* after: PyOS_AfterFork_Parent() or its like. */
CHECKED(no_thread_safety_analysis) static void tell_python_again(void (*after)(void))
{
    after();
    if (c_fork.tstate != NULL) {
        (void)detach();
    }
}

/* pthread_atfork()'s three. No session begins to attach during a fork that Python is not told of. */
static void
before_c_fork(void)
{
    c_fork.untold = forks_for_itself();
    c_fork.told = false;
    if (c_fork.untold) {
        lock_leaf(&table_lock);
        if (manhole.entering > 0 || manhole.inside > 0) {
            unlock(&table_lock);
            c_fork.told = tell_python();
            c_fork.untold = !c_fork.told;
            if (c_fork.untold) {
                lock_leaf(&table_lock);
            }
        }
    }
    lock_new_state();
}

static void
after_c_fork_in_parent(void)
{
    unlock_new_state();
    if (c_fork.untold) {
        unlock(&table_lock);
    }
    else if (c_fork.told) {
        tell_python_again(PyOS_AfterFork_Parent);
    }
}

/* Where Python is not told all is done without it. The listener first waits, as after any fork: a
 * child that becomes another program takes it along before it has done a thing. */
static void
after_c_fork_in_child(void)
{
    unlock_new_state();
    if (c_fork.untold) {
        unlock(&table_lock);
        if (manhole.installed && may_reinstall(&manhole.options)) {
            forget_parent();
            start_in_child();
            manhole.replaceable = true;
        }
    }
    else if (c_fork.told) {
        tell_python_again(PyOS_AfterFork_Child);
        manhole.replaceable = true;
    }
}

static pthread_once_t c_fork_once = PTHREAD_ONCE_INIT;

static void
add_c_fork_hook(void)
{
    (void)pthread_atfork(before_c_fork, after_c_fork_in_parent, after_c_fork_in_child);
}

/* ---- Python's own fork ------------------------------------------------------------------ */

/* Whether the calling thread has import_lock, from before it forks until after. */
static _Thread_local bool has_import_lock;

/* os.register_at_fork(before=...): see import_needed_modules(). No longer than a second, for the
 * imports may themselves wait for the thread that forks; by a clock that nobody sets, which
 * pthread_mutex_timedlock()'s is not. */
ATTACHED static PyObject *
py_before_fork(PyObject *module, PyObject *unused)
{
    (void)module;
    (void)unused;
    python_tells = true;
    has_import_lock = pthread_mutex_trylock(&import_lock) == 0;
    if (!has_import_lock) {
        const int64_t deadline_ms = monotonic_ms() + FORK_PATIENCE_MS;
        PyThreadState *tstate = detach();
        while (!has_import_lock && ms_until(deadline_ms) > 0) {
            (void)poll(NULL, 0, 1);
            has_import_lock = pthread_mutex_trylock(&import_lock) == 0;
        }
        reattach(tstate);
    }
    return Py_NewRef(Py_None);
}

ATTACHED static PyObject *
py_after_fork_in_parent(PyObject *module, PyObject *unused)
{
    (void)module;
    (void)unused;
    python_tells = false;
    if (has_import_lock) {
        has_import_lock = false;
        unlock(&import_lock);
    }
    return Py_NewRef(Py_None);
}

/* os.register_at_fork(after_in_child=...): os.fork(), forkpty(), multiprocessing, and C
 * programs that call PyOS_AfterFork_Child(). */
ATTACHED static PyObject *
py_after_fork_in_child(PyObject *module, PyObject *unused)
{
    (void)module;
    (void)unused;
    python_tells = false;
    has_import_lock = false;
    (void)pthread_mutex_init(&import_lock, NULL); /* whoever had it */
    if (atomic_load(&manhole.owner) != 0 && !is_owner()) {
        forget_parent_attached();
        if (manhole.installed) {
            reinstall();
        }
    }
    return Py_NewRef(Py_None);
}

/* Returns 0, or -1 with an exception. Hooks cannot be taken back: they ask what is
 * installed. */
ATTACHED static int
add_fork_hook(void)
{
    static const struct {
        const char *when;
        const char *name;
    } hooks[] = {
        {"before", "_before_fork"},
        {"after_in_parent", "_after_fork_in_parent"},
        {"after_in_child", "_after_fork_in_child"},
    };
    PyObject *posix = PyImport_ImportModule("posix"); /* owned */
    PyObject *function = NULL;                        /* owned */
    PyObject *keywords = PyDict_New();                /* owned */
    PyObject *arguments = PyTuple_New(0);             /* owned */
    PyObject *result = NULL;                          /* owned */
    int error = posix == NULL || keywords == NULL || arguments == NULL ? -1 : 0;
    for (size_t i = 0; error == 0 && i < sizeof(hooks) / sizeof(*hooks); i++) {
        PyObject *hook =
            PyObject_GetAttrString(manhole.module, hooks[i].name); /* owned */
        error = hook == NULL ? -1 : PyDict_SetItemString(keywords, hooks[i].when, hook);
        Py_XDECREF(hook);
    }
    if (error == 0) {
        function = PyObject_GetAttrString(posix, "register_at_fork");
    }
    if (function != NULL) {
        result = PyObject_Call(function, arguments, keywords);
    }
    error = result == NULL ? -1 : 0;
    Py_XDECREF(posix);
    Py_XDECREF(function);
    Py_XDECREF(keywords);
    Py_XDECREF(arguments);
    Py_XDECREF(result);
    return error;
}

/* ======================================================================================
 * Options: what install() takes. One row each; parser, error text, signature and docstring all
 * come from it.
 * Runs on:  the thread that calls install(), ATTACHED.
 * Touches:  the struct options that it is given, nothing else.
 * To add an option: a field in struct options, a row here, one in manhole.h, one in docs/options.rst.
 * ====================================================================================== */

/* X(name, parser, default as Python has it, help) */
#define POSITIONAL_OPTIONS(X)                                                            \
  X(verbose, parse_bool, "True", "write a log line for each thing that happens")         \
  X(verbose_destination, parse_destination, "2",                                         \
    "where they go: a descriptor, as it is then; or an object with write(str)")          \
  X(strict, parse_bool, "True",                                                          \
    "a second install raises AlreadyInstalled; False: it replaces the first")
#define KEYWORD_OPTIONS(X)                                                               \
  X(patch_fork, parse_bool, "True", "forked children get a manhole of their own")        \
  X(activate_on, parse_signal, "None",                                                   \
    "signal that opens the socket; until then there is none")                            \
  X(oneshot_on, parse_signal, "None",                                                    \
    "signal whose handler serves one client in the main thread")                         \
  X(thread, parse_bool, "True",                                                          \
    "listen always; activate_on and oneshot_on switch it off")                           \
  X(sigmask, parse_signals, "'ALL_SIGNALS'", "signals blocked in the manhole's threads") \
  X(socket_path, parse_path, "None",                                                     \
    "instead of /tmp/manhole-PID; %(pid)s in it is replaced, and then children have "    \
    "one too")                                                                           \
  X(listen, parse_listen, "None",                                                        \
    "where to listen instead: 'localhost:3000', '[::1]:3000', a path, or a list of "     \
    "several; port 0: one that is free; with socket_path: there, too")                   \
  X(reinstall_delay, parse_seconds, "0.5",                                               \
    "seconds that a forked child waits before it listens")                               \
  X(start_timeout, parse_seconds, "0.5",                                                 \
    "seconds that install waits for the listener before it warns")                       \
  X(oneshot_timeout, parse_seconds, "60", "seconds that oneshot waits for its client")   \
  X(hang_timeout, parse_seconds, "1",                                                    \
    "seconds that Python may take to answer a client before it is sent the stacks "      \
    "without it")                                                                        \
  X(max_sessions, parse_count, "64",                                                     \
    "clients at once; one more is told so and turned away")                              \
  X(locals, parse_mapping, "None", "names to add to the console's namespace")            \
  X(daemon_connection, parse_bool, "False",                                              \
    "the process may exit while clients are connected")                                  \
  X(redirect_stderr, parse_bool, "True",                                                 \
    "sys.stderr is the client's too in its session; False: it stays the application's")  \
  X(connection_handler, parse_handler, "'repl'",                                         \
    "who serves a client: 'repl', 'commands' (a shell of commands in which nobody can "  \
    "run code), 'exec', or a callable that is given its socket.socket")                  \
  X(config, parse_file, "None",                                                          \
    "path of a configuration file as ispyd has it; with one connection_handler is "      \
    "'commands', and what install() is told itself wins over the file")                  \
  X(enable, parse_features, "None",                                                      \
    "what the shell of commands has as well: 'console', 'debugger'; both let a client "  \
    "run code")

/* What a parser says of a value. After PARSED_FAILED an exception is set, which says it
 * better than the usual message would. A parser changes *field only when it takes the
 * value. */
enum parsed {
    PARSED_FAILED = -1,
    PARSED_OK,
    PARSED_WRONG_TYPE,
    PARSED_WRONG_VALUE,
};

/* None is false, as it always was; text is refused: "False" would be true. */
ATTACHED static enum parsed
parse_bool(PyObject *value, void *target)
{
    int *field = target;
    int is_true = 0;
    if (value != Py_None && !PyLong_Check(value)) {
        return PARSED_WRONG_TYPE;
    }
    is_true = PyObject_IsTrue(value); /* a subclass may say what it likes */
    if (is_true < 0) {
        return PARSED_FAILED;
    }
    *field = is_true;
    return PARSED_OK;
}

ATTACHED static enum parsed
parse_seconds(PyObject *value, void *target)
{
    double *field = target;
    double seconds = 0.0;
    if ((!PyFloat_Check(value) && !PyLong_Check(value)) || PyBool_Check(value)) {
        return PARSED_WRONG_TYPE;
    }
    seconds = PyFloat_AsDouble(value);
    if (seconds < 0.0 || !isfinite(seconds) || PyErr_Occurred()) {
        PyErr_Clear();
        return PARSED_WRONG_VALUE;
    }
    *field = seconds;
    return PARSED_OK;
}

ATTACHED static enum parsed
parse_count(PyObject *value, void *target)
{
    int *field = target;
    long count = 0;
    if (!PyLong_Check(value) || PyBool_Check(value)) {
        return PARSED_WRONG_TYPE;
    }
    count = PyLong_AsLong(value);
    PyErr_Clear();
    if (count < 1 || count > MAX_SESSIONS) {
        return PARSED_WRONG_VALUE;
    }
    *field = (int)count;
    return PARSED_OK;
}

/* "USR1", "SIGUSR1" or "usr1", by the interpreter's own list of signals. */
ATTACHED static enum parsed
parse_signal_name(PyObject *name, int *field)
{
    PyObject *module = PyImport_ImportModule("_signal"); /* owned */
    PyObject *upper =
        module == NULL ? NULL : PyObject_CallMethod(name, "upper", NULL); /* owned */
    PyObject *number = NULL;                                              /* owned */
    const char *text = upper == NULL ? NULL : PyUnicode_AsUTF8(upper);
    char full[32];
    enum parsed parsed = PARSED_WRONG_VALUE;
    if (text == NULL) {
        PyErr_Clear();
    }
    else if (strchr(text, '_') == NULL && strlen(text) < sizeof(full) - 3 &&
             strlen(text) == (size_t)PyUnicode_GET_LENGTH(upper)) {
        (void)snprintf(full, sizeof(full), "%s%s",
                       strncmp(text, "SIG", 3) == 0 ? "" : "SIG", text);
        number = PyObject_GetAttrString(module, full);
        if (number != NULL) {
            *field = (int)PyLong_AsLong(number);
            parsed = PARSED_OK;
        }
        PyErr_Clear();
    }
    Py_XDECREF(module);
    Py_XDECREF(upper);
    Py_XDECREF(number);
    return parsed;
}

ATTACHED static enum parsed
parse_any_signal(PyObject *value, int *field)
{
    sigset_t set;
    long number = 0;
    if (PyUnicode_Check(value)) {
        return parse_signal_name(value, field);
    }
    if (!PyLong_Check(value) || PyBool_Check(value)) {
        return PARSED_WRONG_TYPE;
    }
    number = PyLong_AsLong(value);
    PyErr_Clear();
    (void)sigemptyset(&set);
    if (number < 1 || number > INT_MAX || sigaddset(&set, (int)number) < 0) {
        return PARSED_WRONG_VALUE;
    }
    *field = (int)number;
    return PARSED_OK;
}

/* A signal that can be handled. */
ATTACHED static enum parsed
parse_signal(PyObject *value, void *target)
{
    int *field = target;
    int number = 0;
    enum parsed parsed = PARSED_OK;
    if (value != Py_None) {
        parsed = parse_any_signal(value, &number);
    }
    if (parsed != PARSED_OK) {
        return parsed;
    }
    if (number == SIGKILL || number == SIGSTOP) {
        return PARSED_WRONG_VALUE;
    }
    *field = number;
    return PARSED_OK;
}

/* A fault of the thread's own must reach its handler (faulthandler's, say): blocked, the
 * kernel would end the process without a word. */
static void
spare_faults(sigset_t *set)
{
    static const int faults[] = {SIGSEGV, SIGBUS,  SIGFPE, SIGILL,
                                 SIGTRAP, SIGABRT, SIGSYS};
    for (size_t i = 0; i < Py_ARRAY_LENGTH(faults); i++) {
        (void)sigdelset(set, faults[i]);
    }
}

ATTACHED static enum parsed
parse_signals(PyObject *value, void *target)
{
    sigset_t *field = target;
    PyObject *iterator = NULL; /* owned */
    PyObject *item = NULL;     /* owned */
    enum parsed parsed = PARSED_OK;
    (void)sigemptyset(field);
    if (value == Py_None) {
        return PARSED_OK;
    }
    if (PyUnicode_Check(value) &&
        PyUnicode_CompareWithASCIIString(value, "ALL_SIGNALS") == 0) {
        (void)sigfillset(field);
        spare_faults(field);
        return PARSED_OK;
    }
    iterator = PyUnicode_Check(value) ? NULL : PyObject_GetIter(value);
    if (iterator == NULL) {
        PyErr_Clear();
        return PARSED_WRONG_TYPE;
    }
    while (parsed == PARSED_OK && (item = PyIter_Next(iterator)) != NULL) {
        int number = 0;
        parsed = parse_any_signal(item, &number);
        if (parsed == PARSED_OK) {
            (void)sigaddset(field, number);
        }
        Py_DECREF(item);
    }
    Py_DECREF(iterator);
    spare_faults(field);
    return PyErr_Occurred() ? PARSED_FAILED : parsed;
}

ATTACHED static enum parsed
parse_destination(PyObject *value, void *target)
{
    struct destination *field = target;
    if (PyLong_Check(value) && !PyBool_Check(value)) {
        long fd = PyLong_AsLong(value);
        PyErr_Clear();
        if (fd < 0 || fd > INT_MAX) {
            return PARSED_WRONG_VALUE;
        }
        field->fd = (int)fd;
        Py_CLEAR(field->object);
        return PARSED_OK;
    }
    if (!PyObject_HasAttrString(value, "write")) {
        return PARSED_WRONG_TYPE;
    }
    field->fd = -1;
    Py_XSETREF(field->object, Py_NewRef(value));
    return PARSED_OK;
}

/* A new copy of a path for the option. Raises a ValueError of its own for one that no socket can
 * have. */
ATTACHED static enum parsed
copy_path(PyObject *value, const char *option, char **copy)
{
    PyObject *bytes = NULL; /* owned */
    size_t length = 0;
    if (!PyUnicode_FSConverter(value, &bytes)) {
        if (PyErr_ExceptionMatches(PyExc_TypeError)) {
            PyErr_Clear();
            return PARSED_WRONG_TYPE;
        }
        return PARSED_FAILED;
    }
    length = expand_path(PyBytes_AS_STRING(bytes), NULL, 0);
    if (length == 0 || length >= SOCKET_PATH_SIZE) {
        PyErr_Format(
            PyExc_ValueError,
            "install() option '%s' is %zu bytes long; a socket's path may have 1 "
            "to %d",
            option, length, SOCKET_PATH_SIZE - 1);
        Py_DECREF(bytes);
        return PARSED_FAILED;
    }
    *copy = strdup(PyBytes_AS_STRING(bytes));
    Py_DECREF(bytes);
    if (*copy == NULL) {
        PyErr_NoMemory();
        return PARSED_FAILED;
    }
    return PARSED_OK;
}

ATTACHED static enum parsed
parse_path(PyObject *value, void *target)
{
    char **field = target;
    char *path = NULL; /* owned */
    enum parsed parsed =
        value == Py_None ? PARSED_OK : copy_path(value, "socket_path", &path);
    if (parsed == PARSED_OK) {
        free(*field);
        *field = path;
    }
    return parsed;
}

/* Cuts HOST:PORT or [HOST]:PORT in two. Returns whether it is one; host: size bytes. */
static bool
split_address(const char *text, char *host, size_t size, uint16_t *port)
{
    const char *colon = strrchr(text, ':');
    const char *start = text;
    const char *end = colon;
    size_t digits = 0;
    if (colon == NULL) {
        return false;
    }
    if (*start == '[' && end[-1] == ']') {
        start++;
        end--;
    }
    else if (strchr(text, ':') != colon || strpbrk(text, "[]") != NULL) {
        return false;
    }
    digits = strspn(colon + 1, "0123456789");
    if (end <= start || (size_t)(end - start) >= size || digits < 1 || digits > 5 ||
        colon[1 + digits] != '\0' || strtoul(colon + 1, NULL, 10) > UINT16_MAX) {
        return false;
    }
    (void)snprintf(host, size, "%.*s", (int)(end - start), start);
    *port = (uint16_t)strtoul(colon + 1, NULL, 10);
    return true;
}

/* Raises ValueError for an address that others than this machine can reach. */
ATTACHED static void
refuse_address(const char *what, const union address *address)
{
    char text[ADDRESS_SIZE];
    int port = ntohs(address->v4.sin_port) != 0 ? ntohs(address->v4.sin_port) : 3000;
    format_address(address, text);
    PyErr_Format(
        PyExc_ValueError,
        "%s must be an address of this machine alone, as localhost is, not %s: who "
        "comes from elsewhere cannot be told from anybody else. Clients from there "
        "use manhole-cli --host HOST PID, or a tunnel to localhost, "
        "ssh -L %d:localhost:%d HOST",
        what, text, port, port);
}

/* Takes the first IPv4 address, or the first of all; each must be this machine's alone. */
ATTACHED static enum parsed
choose_address(const struct addrinfo *found, uint16_t port, union address *chosen)
{
    for (; found != NULL; found = found->ai_next) {
        union address address = {.any.sa_family = AF_UNSPEC};
        memcpy(&address, found->ai_addr, found->ai_addrlen);
        address.v4.sin_port = htons(port); /* where IPv6 has it, too */
        if (!is_loopback(&address)) {
            refuse_address("install() option 'listen'", &address);
            return PARSED_FAILED;
        }
        if (chosen->any.sa_family == AF_UNSPEC ||
            (chosen->any.sa_family != AF_INET && address.any.sa_family == AF_INET)) {
            *chosen = address;
        }
    }
    return PARSED_OK;
}

ATTACHED static enum parsed
parse_address(PyObject *value, union address *address)
{
    const struct addrinfo hints = {.ai_family = AF_UNSPEC, .ai_socktype = SOCK_STREAM};
    struct addrinfo *found = NULL; /* owned */
    char host[NI_MAXHOST];
    uint16_t port = 0;
    enum parsed parsed = PARSED_FAILED;
    PyThreadState *tstate = NULL;
    int error = 0;
    const char *text = PyUnicode_AsUTF8(value);
    if (text == NULL) {
        return PARSED_FAILED;
    }
    if (!split_address(text, host, sizeof(host), &port)) {
        return PARSED_WRONG_VALUE;
    }
    tstate = detach();
    error = getaddrinfo(host, NULL, &hints, &found);
    reattach(tstate);
    if (error != 0) {
        PyErr_Format(PyExc_ValueError, "install() option 'listen' is %R, but %s: %s",
                     value, host, gai_strerror(error));
        return PARSED_FAILED;
    }
    parsed = choose_address(found, port, address);
    freeaddrinfo(found);
    return parsed;
}

/* An address, or what has a slash in it or is no str: a path. */
ATTACHED static enum parsed
parse_place(PyObject *value, struct places *places)
{
    struct place *place = &places->rows[places->count];
    enum parsed parsed = PARSED_OK;
    if (places->count == MAX_PLACES) {
        return PARSED_WRONG_VALUE;
    }
    *place = (struct place){.path = NULL};
    if (PyUnicode_Check(value) &&
        PyUnicode_FindChar(value, '/', 0, PyUnicode_GetLength(value), 1) < 0) {
        parsed = parse_address(value, &place->address);
    }
    else {
        parsed = copy_path(value, "listen", &place->path);
    }
    places->count += parsed == PARSED_OK;
    return parsed;
}

ATTACHED static enum parsed
parse_listen(PyObject *value, void *target)
{
    struct places *field = target;
    struct places places = {0};
    PyObject *rows = NULL; /* owned */
    enum parsed parsed = PARSED_OK;
    if (PyList_Check(value) || PyTuple_Check(value)) {
        rows = PySequence_Tuple(value);
        parsed = rows == NULL                  ? PARSED_FAILED
                 : PyTuple_GET_SIZE(rows) == 0 ? PARSED_WRONG_VALUE
                                               : PARSED_OK;
        for (Py_ssize_t i = 0; parsed == PARSED_OK && i < PyTuple_GET_SIZE(rows); i++) {
            parsed = parse_place(PyTuple_GET_ITEM(rows, i), &places);
        }
    }
    else if (value != Py_None) {
        parsed = parse_place(value, &places);
    }
    Py_XDECREF(rows);
    if (parsed == PARSED_OK) {
        free_places(field);
        *field = places;
    }
    else {
        free_places(&places);
    }
    return parsed;
}

ATTACHED static enum parsed
parse_mapping(PyObject *value, void *target)
{
    PyObject **field = target;
    if (value != Py_None &&
        !PyObject_HasAttrString(value, "keys")) { /* as dict.update() asks */
        return PARSED_WRONG_TYPE;
    }
    Py_XSETREF(*field, value == Py_None ? NULL : Py_NewRef(value));
    return PARSED_OK;
}

ATTACHED static enum parsed
parse_handler(PyObject *value, void *target)
{
    struct handler *field = target;
    static const struct {
        const char *name;
        enum handler_kind kind;
    } rows[] = {
        {"repl", HANDLER_REPL}, {"exec", HANDLER_EXEC}, {"commands", HANDLER_COMMANDS}};
    if (PyCallable_Check(value)) {
        field->kind = HANDLER_CALLABLE;
        Py_XSETREF(field->callable, Py_NewRef(value));
        return PARSED_OK;
    }
    if (!PyUnicode_Check(value)) {
        return PARSED_WRONG_TYPE;
    }
    for (size_t i = 0; i < Py_ARRAY_LENGTH(rows); i++) {
        if (PyUnicode_CompareWithASCIIString(value, rows[i].name) == 0) {
            field->kind = rows[i].kind;
            return PARSED_OK;
        }
    }
    return PARSED_WRONG_VALUE;
}

/* Keeps the path, whatever os.fspath() takes; the file is read later. */
ATTACHED static enum parsed
parse_file(PyObject *value, void *target)
{
    PyObject **field = target;
    PyObject *path = value == Py_None ? NULL : PyOS_FSPath(value); /* owned */
    if (path == NULL && value != Py_None) {
        if (PyErr_ExceptionMatches(PyExc_MemoryError)) {
            return PARSED_FAILED;
        }
        PyErr_Clear();
        return PARSED_WRONG_TYPE;
    }
    Py_XSETREF(*field, path);
    return PARSED_OK;
}

/* The bit of a feature's name, 0: there is none such. */
ATTACHED static unsigned
feature_bit(PyObject *name)
{
    static const struct {
        const char *name;
        enum feature bit;
    } rows[] = {{"console", FEATURE_CONSOLE}, {"debugger", FEATURE_DEBUGGER}};
    for (size_t i = 0; i < Py_ARRAY_LENGTH(rows); i++) {
        if (PyUnicode_Check(name) &&
            PyUnicode_CompareWithASCIIString(name, rows[i].name) == 0) {
            return rows[i].bit;
        }
    }
    return 0;
}

/* Names in an iterable, or in one text with commas or blanks between them. */
ATTACHED static enum parsed
parse_features(PyObject *value, void *target)
{
    unsigned *field = target;
    PyObject *spaced = NULL; /* owned */
    PyObject *names = NULL;  /* owned */
    unsigned bits = 0;
    enum parsed parsed = PARSED_OK;
    if (value == Py_None) {
        *field = 0;
        return PARSED_OK;
    }
    if (PyUnicode_Check(value)) {
        spaced = PyObject_CallMethod(value, "replace", "ss", ",", " ");
        names = spaced == NULL ? NULL : PyObject_CallMethod(spaced, "split", NULL);
        Py_XDECREF(spaced);
    }
    else {
        names = PySequence_List(value);
    }
    if (names == NULL) {
        PyErr_Clear();
        return PARSED_WRONG_TYPE;
    }
    for (Py_ssize_t i = 0; i < PyList_GET_SIZE(names); i++) {
        unsigned bit = feature_bit(PyList_GET_ITEM(names, i));
        parsed = bit == 0 ? PARSED_WRONG_VALUE : parsed;
        bits |= bit;
    }
    Py_DECREF(names);
    if (parsed == PARSED_OK) {
        *field = bits;
    }
    return parsed;
}

/* A kind of option: its parser, and what its error message says is allowed. */
struct option_row {
    const char *name;
    enum parsed (*parse)(PyObject *value, void *target);
    size_t offset; /* of the field in struct options */
    const char *allowed;
};

#define ALLOWED_parse_bool "True or False"
#define ALLOWED_parse_seconds "a number of seconds, 0 or more"
#define ALLOWED_parse_count "a whole number from 1 to 256"
#define ALLOWED_parse_signal                                                             \
  "the name (\"USR1\", \"SIGUSR1\") or number of a signal, or None"
#define ALLOWED_parse_signals                                                            \
  "an iterable of signal names or numbers, 'ALL_SIGNALS', or None"
#define ALLOWED_parse_destination "a file descriptor, or an object with write(str)"
#define ALLOWED_parse_path "a path, or None"
#define ALLOWED_parse_listen                                                             \
  "HOST:PORT, a path with a '/' in it, a list of 1 to 8 of these, or None"
#define ALLOWED_parse_mapping "a mapping of names, or None"
#define ALLOWED_parse_handler                                                            \
  "'repl', 'exec', 'commands', or a callable that takes a socket"
#define ALLOWED_parse_file "the path of a file, or None"
#define ALLOWED_parse_features "an iterable of 'console' and 'debugger', or None"

#define OPTION_ROW(name, parser, default_text, help)                                     \
  {#name, parser, offsetof(struct options, name), ALLOWED_##parser},
#define OPTION_SIGNATURE(name, parser, default_text, help) ", " #name "=" default_text
#define OPTION_HELP(name, parser, default_text, help)                                    \
  "\n  " #name " = " default_text "\n      " help "."

static const struct option_row option_rows[] = {POSITIONAL_OPTIONS(OPTION_ROW)
                                                    KEYWORD_OPTIONS(OPTION_ROW)};

enum {
    POSITIONAL_COUNT = 3,
};

static struct options
default_options(void)
{
    struct options options = {
        .verbose = 1,
        .verbose_destination = {.fd = 2},
        .strict = 1,
        .patch_fork = 1,
        .thread = 1,
        .reinstall_delay = 0.5,
        .start_timeout = 0.5,
        .oneshot_timeout = 60.0,
        .hang_timeout = 1.0,
        .max_sessions = 64,
        .redirect_stderr = 1,
        .connection_handler = {.kind = HANDLER_REPL},
    };
    (void)sigfillset(&options.sigmask);
    spare_faults(&options.sigmask);
    return options;
}

/* Returns 0, or -1 with an exception that names the option and what it may be. */
ATTACHED static int
parse_option(struct options *options, const struct option_row *row, PyObject *value)
{
    enum parsed parsed = row->parse(value, (char *)options + row->offset);
    if (parsed == PARSED_WRONG_TYPE) {
        PyErr_Format(PyExc_TypeError, "install() option '%s' must be %s, not %R",
                     row->name, row->allowed, value);
    }
    else if (parsed == PARSED_WRONG_VALUE) {
        PyErr_Format(PyExc_ValueError, "install() option '%s' must be %s, not %R",
                     row->name, row->allowed, value);
    }
    return parsed == PARSED_OK ? 0 : -1;
}

/* For an option that there is not: names those that there are. */
ATTACHED static void
raise_unknown_option(PyObject *name)
{
    struct text known = {0};
    for (size_t i = 0; i < Py_ARRAY_LENGTH(option_rows); i++) {
        append_string(&known, i == 0 ? "" : ", ");
        append_string(&known, option_rows[i].name);
    }
    append_bytes(&known, "", 1);
    PyErr_Format(PyExc_TypeError, "install() got an unexpected option %R; it knows %s",
                 name, known.failed ? "others" : known.bytes);
    free_text(&known);
}

ATTACHED static int
parse_keyword(struct options *options, PyObject *name, PyObject *value,
              Py_ssize_t positional)
{
    for (size_t i = 0; i < Py_ARRAY_LENGTH(option_rows); i++) {
        if (PyUnicode_CompareWithASCIIString(name, option_rows[i].name) == 0) {
            if ((Py_ssize_t)i < positional) {
                PyErr_Format(PyExc_TypeError,
                             "install() got multiple values for option %R", name);
                return -1;
            }
            return parse_option(options, &option_rows[i], value);
        }
    }
    raise_unknown_option(name);
    return -1;
}

/* Fills options from install()'s arguments. Returns 0, or -1 with an exception;
 * drop_options() either way. */
ATTACHED static int
parse_options(struct options *options, PyObject *arguments, PyObject *keywords,
              PyObject *configuration_conflict)
{
    PyObject *name = NULL;  /* borrowed */
    PyObject *value = NULL; /* borrowed */
    Py_ssize_t position = 0;
    Py_ssize_t count = PyTuple_GET_SIZE(arguments);
    if (count > POSITIONAL_COUNT) {
        PyErr_Format(PyExc_TypeError,
                     "install() takes at most %d positional options (%zd given); "
                     "name the others",
                     POSITIONAL_COUNT, count);
        return -1;
    }
    for (Py_ssize_t i = 0; i < count; i++) {
        if (parse_option(options, &option_rows[i], PyTuple_GET_ITEM(arguments, i)) < 0) {
            return -1;
        }
    }
    while (keywords != NULL && PyDict_Next(keywords, &position, &name, &value)) {
        if (parse_keyword(options, name, value, count) < 0) {
            return -1;
        }
    }
    if (options->activate_on != 0 && options->activate_on == options->oneshot_on) {
        PyErr_Format(configuration_conflict,
                     "activate_on and oneshot_on are both signal %d; give each its own",
                     options->activate_on);
        return -1;
    }
    return 0;
}

/* ======================================================================================
 * Configuration file: what the option config names, an INI file as ispyd has it.
 * Runs on:  the thread that calls install(), ATTACHED.
 * Touches:  that file, once; the struct options that it is given.
 * A file that is wrong in any way is refused. Sections that are not in KNOWN are the plugins' own.
 * To add a setting: its key in KNOWN, and what it means at the end of read().
 * ====================================================================================== */

/* read() returns the parser, the main section's name, the text of listen, the list of plugins, or
 * None for these where the file does not say or install() was told; then whether the console is
 * enabled, the debugger is, and the client gets the shell of commands. */
static const char config_program[] =
    "configparser, io = standard('configparser'), standard('io')\n"
    "KNOWN = {'manhole': ('listen', 'plugins'), 'ispyd': ('listen', 'plugins'),\n"
    "         'python:console': ('enabled',), 'debugger': ('enabled',)}\n"
    "\n"
    "def read(path, given):\n"
    "    def refuse(text):\n"
    "        raise ValueError(f\"install() option 'config': {path!r}: {text}\") from "
    "None\n"
    "    def is_enabled(section):\n"
    "        try:\n"
    "            return parser.getboolean(section, 'enabled', fallback=False)\n"
    "        except ValueError:\n"
    "            refuse(f'[{section}] enabled must be true or false, '\n"
    "                   f'not {parser.get(section, \"enabled\")!r}')\n"
    "    parser = configparser.RawConfigParser(inline_comment_prefixes=';')\n"
    "    with io.open(path, encoding='utf-8-sig') as file:\n"
    "        try:\n"
    "            parser.read_file(file)\n"
    "        except (configparser.Error, ValueError) as error:\n"
    "            refuse(' '.join(str(error).split()))\n"
    "    main = [name for name in ('manhole', 'ispyd') if parser.has_section(name)]\n"
    "    if len(main) != 1:\n"
    "        refuse('must have a section [manhole] or [ispyd], not '\n"
    "               + ('both' if main else 'none'))\n"
    "    for section in filter(parser.has_section, KNOWN):\n"
    "        for key in parser.options(section):\n"
    "            if key not in KNOWN[section] and key not in parser.defaults():\n"
    "                refuse(f'[{section}] {key} is not known; it may have '\n"
    "                       + ', '.join(KNOWN[section]))\n"
    "    listen = parser.get(main[0], 'listen', fallback=None)\n"
    "    plugins = parser.get(main[0], 'plugins', fallback=None)\n"
    "    return (parser, main[0], None if 'listen' in given else listen,\n"
    "            None if plugins is None else plugins.split(),\n"
    "            'enable' not in given and is_enabled('python:console'),\n"
    "            'enable' not in given and is_enabled('debugger'),\n"
    "            'connection_handler' not in given)\n";

static const struct part config_part = {.name = "config", .program = config_program};

/* Returns 0, or -1 with an exception that names the place. */
ATTACHED static int
apply_listen(struct options *options, PyObject *section, PyObject *text)
{
    PyObject *bare = PyObject_CallMethod(text, "strip", NULL);              /* owned */
    PyObject *places = bare == NULL ? NULL : PyUnicode_Splitlines(bare, 0); /* owned */
    enum parsed parsed =
        places == NULL ? PARSED_FAILED : parse_listen(places, &options->listen);
    if (parsed == PARSED_FAILED && !PyErr_ExceptionMatches(PyExc_MemoryError)) {
        PyObject *raised = take_exception(); /* owned */
        PyErr_Format(PyExc_ValueError, "install() option 'config': %R: [%U] listen: %S",
                     options->config, section, raised);
        Py_DECREF(raised);
    }
    else if (parsed == PARSED_WRONG_TYPE || parsed == PARSED_WRONG_VALUE) {
        PyErr_Format(PyExc_ValueError,
                     "install() option 'config': %R: [%U] listen must be HOST:PORT or a "
                     "path with a '/' in it, or up to 8 of these on a line each, not %R",
                     options->config, section, text);
    }
    Py_XDECREF(bare);
    Py_XDECREF(places);
    return parsed == PARSED_OK ? 0 : -1;
}

/* Returns a new set of the options that install() was told itself, or NULL with an exception. */
ATTACHED static PyObject *
list_given(PyObject *keywords /* dict, or NULL */)
{
    PyObject *given = PySet_New(NULL); /* owned, handed to the caller */
    PyObject *name = NULL;             /* borrowed */
    PyObject *value = NULL;            /* borrowed */
    Py_ssize_t position = 0;
    while (given != NULL && keywords != NULL &&
           PyDict_Next(keywords, &position, &name, &value)) {
        if (value != Py_None && PySet_Add(given, name) < 0) {
            Py_CLEAR(given);
        }
    }
    return given;
}

/* Fills in what the file says and install() was not told. Returns 0, or -1 with an exception. */
ATTACHED static int
apply_config(PyObject *module, struct options *options,
             PyObject *keywords /* dict, or NULL */)
{
    PyObject *given = NULL;   /* owned */
    PyObject *said = NULL;    /* owned */
    PyObject *section = NULL; /* borrowed from it, and so are all of these */
    PyObject *listen = NULL;
    PyObject *plugins = NULL;
    int has_console = 0;
    int has_debugger = 0;
    int has_commands = 0;
    int result = -1;
    if (options->config == NULL) {
        return 0;
    }
    given = list_given(keywords);
    said = given == NULL
               ? NULL
               : call_part(module, &config_part, "read", options->config, given);
    if (said == NULL ||
        !PyArg_ParseTuple(said, "OOOOppp", &options->settings, &section, &listen,
                          &plugins, &has_console, &has_debugger, &has_commands)) {
        options->settings = NULL;
        goto done;
    }
    Py_INCREF(options->settings);
    options->plugins = plugins == Py_None ? NULL : Py_NewRef(plugins);
    options->enable |= has_console ? (unsigned)FEATURE_CONSOLE : 0;
    options->enable |= has_debugger ? (unsigned)FEATURE_DEBUGGER : 0;
    if (has_commands) {
        options->connection_handler.kind = HANDLER_COMMANDS;
    }
    result = listen == Py_None ? 0 : apply_listen(options, section, listen);
done:
    Py_XDECREF(given);
    Py_XDECREF(said);
    return result;
}

/* ======================================================================================
 * Install: putting it all in place, and saying so.
 * Runs on:  the thread that calls install() or release(), ATTACHED, under install_lock.
 * ====================================================================================== */

static bool
wants_listener(const struct options *options)
{
    return options->activate_on != 0 || opens_at_once(options) || has_given_door();
}

/* The line that python-manhole logs when forked children are not simply given a copy. */
static void
log_fork_policy(const struct options *options)
{
    if (!options->patch_fork) {
        return;
    }
    if (options->activate_on != 0) {
        log_line("Not patching os.fork and os.forkpty. Activation is done by signal %d",
                 options->activate_on);
    }
    else if (options->oneshot_on != 0) {
        log_line("Not patching os.fork and os.forkpty. Oneshot activation is done by "
                 "signal %d",
                 options->oneshot_on);
    }
    else if (!has_place_for_child(options)) {
        log_line("Not patching os.fork and os.forkpty. Using user socket path %s",
                 options->socket_path != NULL ? options->socket_path
                                              : options->listen.rows[0].path);
    }
}

/* What must be in place before the first thread or signal can come. Returns 0, or -1 with
 * an exception. */
ATTACHED static int
prepare(PyObject *module)
{
    struct module_state *state = PyModule_GetState(module);
    lock_leaf(&table_lock);
    manhole.closing = false;
    manhole.interpreter = PyInterpreterState_Get();
    unlock(&table_lock);
    manhole.bind_delay_ms = 0;
    manhole.is_child = false;
    Py_XSETREF(manhole.module, Py_NewRef(module));
    (void)open_bells(); /* without them waiting takes a little longer */
    (void)pthread_once(&c_fork_once, add_c_fork_hook);
    if (!state->has_fork_hook) {
        if (add_fork_hook() < 0) {
            return -1;
        }
        state->has_fork_hook = true;
    }
    open_snapshot();
    if (!manhole.has_exit_handler) {
        manhole.has_exit_handler = atexit(remove_paths_at_exit) == 0;
    }
    manhole.exit_callback = PyObject_GetAttrString(module, "_at_exit");
    if (manhole.exit_callback == NULL || add_exit_callback() < 0) {
        return -1;
    }
    tell_multiprocessing();
    finalize_in_child();
    return 0;
}

/* Returns 0, or -1 with an exception; uninstall() then. */
ATTACHED static int
start(PyObject *module)
{
    struct options *options = &manhole.options;
    if (prepare(module) < 0) {
        return -1;
    }
    if (options->oneshot_on != 0 && watch_oneshot_on(options->oneshot_on) < 0) {
        return -1;
    }
    if (wants_listener(options)) {
        int error = start_listener();
        if (error != 0) { /* the application can do without */
            log_line("Cannot start listening: %s. Another install() tries again; until "
                     "then only oneshot works.",
                     error_text(error));
        }
    }
    /* Last: from here on the signal finds everything that it needs. */
    return options->activate_on == 0 ? 0 : watch_activate_on(options->activate_on);
}

/* Waits for the socket to be there when install() returns; not under install_lock, for
 * handlers of the application's signals may run meanwhile. Returns 0, or -1 with such a
 * handler's exception. */
ATTACHED static int
wait_for_listener(void)
{
    int late = 0;
    if (manhole.has_listener) {
        late = wait_for_news(
            has_started, monotonic_ms() + seconds_to_ms(manhole.options.start_timeout));
        if (late > 0) {
            log_line("WARNING: Waited %s seconds but Manhole thread didn't start yet :(",
                     format_seconds(manhole.options.start_timeout).text);
        }
    }
    return late < 0 ? -1 : 0;
}

/* Takes over what options owns. Returns 0, or -1 with an exception and nothing installed. */
ATTACHED static int
install_locked(PyObject *module, struct options *options)
{
    struct module_state *state = PyModule_GetState(module);
    if (atomic_load(&manhole.owner) != 0 && !is_owner()) {
        forget_parent_attached(); /* forked by C code that ran no hook */
        forget_options();
    }
    if (manhole.installed) {
        if (options->strict && !manhole.replaceable) {
            PyErr_SetString(state->already_installed,
                            "Manhole already installed! (strict=False replaces it)");
            return -1;
        }
        uninstall();
    }
    atomic_store(&manhole.owner, getpid());
    lock_leaf(&table_lock);
    manhole.options = *options;
    unlock(&table_lock);
    *options = (struct options){0};
    configure_log(manhole.options.verbose ? &manhole.options.verbose_destination : NULL);
    if (start(module) < 0) {
        PyObject *exception = take_exception(); /* owned */
        uninstall();
        PyErr_SetObject((PyObject *)Py_TYPE(exception), exception);
        Py_DECREF(exception);
        return -1;
    }
    manhole.installed = true;
    manhole.replaceable = wants_listener(&manhole.options) && !manhole.has_listener;
    return 0;
}

/* install() itself. Returns the Manhole object, new, or NULL with an exception. */
ATTACHED static PyObject *
install(PyObject *module, PyObject *arguments, PyObject *keywords)
{
    struct module_state *state = PyModule_GetState(module);
    struct options options = default_options();
    int result =
        parse_options(&options, arguments, keywords, state->configuration_conflict);
    if (result == 0) {
        result = apply_config(module, &options, keywords);
    }
    if (result == 0) {
        result = lock_install();
    }
    if (result == 0) {
        result = install_locked(module, &options);
        unlock_install();
    }
    if (result == 0) {
        result = wait_for_listener();
        log_fork_policy(&manhole.options);
        deliver_log();
    }
    drop_options(&options);
    return result < 0 ? NULL : Py_NewRef(state->manhole_object);
}

/* Returns 0, or -1 with an exception. */
ATTACHED static int
release(void)
{
    if (lock_install() < 0) {
        return -1;
    }
    if (manhole.installed && is_owner()) {
        uninstall();
        restore_given_sockets();
        drop_given_doors();
    }
    unlock_install();
    deliver_log();
    return 0;
}

/* Returns 0, or -1 with NotInstalled. A signal handler may come in the middle of install(). */
ATTACHED static int
require_installed(PyObject *module)
{
    if (atomic_load(&installer) == PyThread_get_thread_ident()) {
        raise_at_work();
        return -1;
    }
    if (!manhole.installed) {
        struct module_state *state = PyModule_GetState(module);
        PyErr_SetString(state->not_installed, "Manhole is not installed!");
        return -1;
    }
    return 0;
}

/* ======================================================================================
 * Backdoor: eventlet.backdoor's two functions, for sockets that the application has.
 * Runs on:  any thread or greenlet of the application, ATTACHED; neither waits for a client.
 * Touches:  the doors from MAX_OWN_DOORS on.
 * The listener has a duplicate of a listening socket, so its clients are served though the
 * application's hub, or Python itself, is stuck.
 * ====================================================================================== */

/* What there must be to serve anybody: install() without a door, if nobody has called it yet, and a
 * listener. Under install_lock. Returns 0, or -1 with an exception. */
ATTACHED static int
provide_listener(PyObject *module)
{
    int result = 0;
    if (!manhole.installed || !is_owner()) {
        struct options options = default_options();
        options.thread = 0;
        options.daemon_connection =
            1; /* as with eventlet's, no client keeps the process */
        result = install_locked(module, &options);
        drop_options(&options);
        manhole.replaceable = result == 0;
    }
    if (result == 0 && !manhole.has_listener && (errno = start_listener()) != 0) {
        PyErr_SetFromErrno(PyExc_OSError);
        result = -1;
    }
    return result;
}

/* Returns 0, or -1 with ValueError or OSError: nobody may listen there, or nobody does. */
ATTACHED static int
check_listening(int fd, union address *address)
{
    int listens = 0;
    socklen_t size = sizeof(listens);
    socklen_t address_size = sizeof(*address);
    *address = (union address){.any.sa_family = AF_UNSPEC};
    if (getsockopt(fd, SOL_SOCKET, SO_ACCEPTCONN, &listens, &size) < 0 ||
        getsockname(fd, &address->any, &address_size) < 0) {
        PyErr_SetFromErrno(PyExc_OSError);
        return -1;
    }
    if (!listens) {
        PyErr_SetString(PyExc_ValueError,
                        "backdoor_server() needs a socket that listens; for a connected "
                        "one there is backdoor((conn, addr))");
        return -1;
    }
    if (is_inet(fd) && !is_loopback(address)) {
        refuse_address("the socket of backdoor_server()", address);
        return -1;
    }
    return 0;
}

/* Has the listener serve a duplicate of the socket. Under install_lock. Returns 0, or -1 with an
 * exception. */
ATTACHED static int
add_door(PyObject *sock, int fd, const union address *address, PyObject *locals)
{
    struct door *door = manhole.doors + MAX_OWN_DOORS;
    int listen_fd = -1; /* owned, handed to the door */
    int flags = 0;
    while (door < manhole.doors + MAX_DOORS && is_door_open(door)) {
        door++;
    }
    if (door == manhole.doors + MAX_DOORS) {
        PyErr_Format(PyExc_RuntimeError, "%d backdoor servers are open already",
                     MAX_DOORS - MAX_OWN_DOORS);
        return -1;
    }
    listen_fd = fcntl(fd, F_DUPFD_CLOEXEC, 0);
    flags = fcntl(fd, F_GETFL);
    /* Another process may accept first: the listener must not wait then. */
    if (listen_fd < 0 || flags < 0 || fcntl(fd, F_SETFL, flags | O_NONBLOCK) < 0) {
        PyErr_SetFromErrno(PyExc_OSError);
        if (listen_fd >= 0) {
            (void)close(listen_fd);
        }
        return -1;
    }
    if (is_inet(fd)) {
        format_address(address, door->name);
    }
    else {
        (void)snprintf(door->name, sizeof(door->name), "%s", address->un.sun_path);
    }
    fill_door(door, sock, locals);
    door->was_blocking = (flags & O_NONBLOCK) == 0;
    keep_fd(&door->given_fd, fd);
    keep_fd(&door->listen_fd, listen_fd);
    log_line("Backdoor server listening on %s", door->name);
    wake_listener();
    return 0;
}

/* The argument locals. Returns 0 with *locals borrowed or NULL, or -1 with TypeError. */
ATTACHED static int
check_locals(PyObject **locals, const char *function)
{
    if (*locals == Py_None) {
        *locals = NULL;
    }
    if (*locals != NULL && !PyObject_HasAttrString(*locals, "keys")) {
        PyErr_Format(PyExc_TypeError,
                     "%s() argument 'locals' must be " ALLOWED_parse_mapping ", not %R",
                     function, *locals);
        return -1;
    }
    return 0;
}

PyDoc_STRVAR(
    backdoor_server_doc,
    "backdoor_server(sock, locals=None)\n--\n\n"
    "Give each client of the listening socket sock a Python console with these "
    "names.\n\n"
    "As eventlet.backdoor.backdoor_server(), under eventlet, gevent, or neither; but "
    "it\n"
    "returns at once, clients are served by threads of their own, and only those of "
    "this\n"
    "process's user and root. From here on sock is the manhole's; to close it ends "
    "the\n"
    "server. install() may be called before, after, or not at all. ValueError when "
    "sock\n"
    "does not listen, or where others than this machine can reach it.");

ATTACHED static PyObject *
py_backdoor_server(PyObject *module, PyObject *arguments, PyObject *keywords)
{
    static char *names[] = {"sock", "locals", NULL};
    PyObject *sock = NULL;   /* borrowed */
    PyObject *locals = NULL; /* borrowed */
    union address address;
    int fd = -1;
    int result = -1;
    if (!PyArg_ParseTupleAndKeywords(arguments, keywords, "O|O:backdoor_server", names,
                                     &sock, &locals) ||
        check_locals(&locals, "backdoor_server") < 0 ||
        (fd = PyObject_AsFileDescriptor(sock)) < 0 || check_listening(fd, &address) < 0 ||
        lock_install() < 0) {
        return NULL;
    }
    if (provide_listener(module) == 0) {
        result = add_door(sock, fd, &address, locals);
    }
    unlock_install();
    deliver_log();
    return result < 0 ? NULL : Py_NewRef(Py_None);
}

PyDoc_STRVAR(
    backdoor_doc,
    "backdoor(conn_info, locals=None)\n--\n\n"
    "Give the client of a connected socket a Python console with these names.\n\n"
    "conn_info is (conn, addr), as accept() returns it. As "
    "eventlet.backdoor.backdoor():\n"
    "it returns at once, and conn may then be closed. A client that is neither root "
    "nor\n"
    "this process's user, or cannot be told, is a line in the log and let go.");

ATTACHED static PyObject *
py_backdoor(PyObject *module, PyObject *arguments, PyObject *keywords)
{
    static char *names[] = {"conn_info", "locals", NULL};
    struct entrance entrance = {.card = "", .wish = &backdoor_wish};
    PyObject *conn = NULL;    /* borrowed */
    PyObject *address = NULL; /* borrowed */
    PyObject *locals = NULL;  /* borrowed */
    PyThreadState *tstate = NULL;
    int fd = -1;
    int result = -1;
    bool in = false;
    if (!PyArg_ParseTupleAndKeywords(arguments, keywords, "(OO)|O:backdoor", names, &conn,
                                     &address, &locals) ||
        check_locals(&locals, "backdoor") < 0 ||
        (fd = PyObject_AsFileDescriptor(conn)) < 0 || lock_install() < 0) {
        return NULL;
    }
    result = provide_listener(module);
    unlock_install();
    if (result < 0) {
        return NULL;
    }
    entrance.fd = fcntl(fd, F_DUPFD_CLOEXEC, 0);
    if (entrance.fd < 0) {
        return PyErr_SetFromErrno(PyExc_OSError);
    }
    entrance.locals = Py_XNewRef(locals);
    tstate = detach();
    in = admit_client(entrance.fd, &entrance.peer, entrance.wish) &&
         start_session(&entrance);
    wake_listener();
    reattach(tstate);
    if (!in) {
        Py_XDECREF(entrance.locals);
    }
    deliver_log();
    return Py_NewRef(Py_None);
}

/* ======================================================================================
 * Module: what Python sees as `manhole`.
 * Runs on:  any thread of the application, ATTACHED.
 * ====================================================================================== */

#define HELP_INTRODUCTION                                                                \
  "Install the manhole in this process and return the Manhole object.\n"                 \
  "\n"                                                                                   \
  "A client that connects to the socket (manhole-cli PID) sees the stack of every\n"     \
  "thread and then has a Python prompt in this process. Options:\n"
#define HELP_ERRORS                                                                      \
  "\n\nAn option that is unknown, of a wrong type or value raises TypeError or\n"        \
  "ValueError and names it; one signal for both activate_on and oneshot_on raises\n"     \
  "ConfigurationConflict. A socket that cannot be opened is a log line: the\n"           \
  "application goes on."

PyDoc_STRVAR(
    install_doc,
    "install(verbose=True, verbose_destination=2, strict=True, *" KEYWORD_OPTIONS(
        OPTION_SIGNATURE) ")\n--\n\n" HELP_INTRODUCTION POSITIONAL_OPTIONS(OPTION_HELP)
        KEYWORD_OPTIONS(OPTION_HELP) HELP_ERRORS);

ATTACHED static PyObject *
py_install(PyObject *module, PyObject *arguments, PyObject *keywords)
{
    return install(module, arguments, keywords);
}

PyDoc_STRVAR(
    dump_stacktraces_doc,
    "dump_stacktraces()\n--\n\n"
    "Print the stack of every Python thread to sys.stderr (to sys.stdout when the\n"
    "manhole was installed with redirect_stderr=False).");

ATTACHED static PyObject *
py_dump_stacktraces(PyObject *module, PyObject *unused)
{
    PyObject *text = make_dump(); /* owned */
    PyObject *file = NULL;        /* owned */
    int result = -1;
    (void)module;
    (void)unused;
    if (text != NULL) {
        file = get_sys(manhole.installed && !manhole.options.redirect_stderr ? "stdout"
                                                                             : "stderr");
        result = file == NULL || file == Py_None
                     ? 0
                     : PyFile_WriteObject(text, file, Py_PRINT_RAW);
    }
    Py_XDECREF(text);
    Py_XDECREF(file);
    return result < 0 ? NULL : Py_NewRef(Py_None);
}

PyDoc_STRVAR(
    get_peercred_doc,
    "get_peercred(sock, /)\n--\n\n"
    "Return (pid, uid, gid) of the process at the other end of a connected Unix\n"
    "socket, as the kernel recorded it. OSError when the socket has no such peer.");

ATTACHED static PyObject *
peer_tuple(const struct peer *peer)
{
    return Py_BuildValue("(lll)", (long)peer->pid, (long)peer->uid,
                         peer->gid == (gid_t)-1 ? -1L : (long)peer->gid);
}

ATTACHED static PyObject *
py_get_peercred(PyObject *module, PyObject *sock)
{
    struct peer peer = {0};
    int fd = PyObject_AsFileDescriptor(sock);
    (void)module;
    if (fd < 0) {
        return NULL;
    }
    if (read_peer(fd, &peer) < 0) {
        return PyErr_SetFromErrno(PyExc_OSError);
    }
    return peer_tuple(&peer);
}

PyDoc_STRVAR(
    check_credentials_doc,
    "check_credentials(sock, /)\n--\n\n"
    "Return (pid, uid, gid) of the client on a connected socket, and log that it\n"
    "is accepted; of one by TCP on this machine (0, uid, -1). SuspiciousClient\n"
    "when its uid is neither root's nor this process's effective one;\n"
    "NotInstalled when no manhole is installed.");

ATTACHED static PyObject *
py_check_credentials(PyObject *module, PyObject *sock)
{
    struct module_state *state = PyModule_GetState(module);
    struct peer peer = {0};
    int fd = PyObject_AsFileDescriptor(sock);
    if (fd < 0 || require_installed(module) < 0 ||
        check_peer(state->suspicious_client, fd, &peer) < 0) {
        return NULL;
    }
    return peer_tuple(&peer);
}

/* Whether two descriptors are of one socket. */
static bool
is_same_file(int one, int other)
{
    struct stat first = {0};
    struct stat second = {0};
    return fstat(one, &first) == 0 && fstat(other, &second) == 0 &&
           first.st_dev == second.st_dev && first.st_ino == second.st_ino;
}

/* Serves a socket that Python code has, in its thread: the client of the session that the
 * calling thread serves already, or any other. */
ATTACHED static PyObject *
handle_connection(PyObject *module, PyObject *client, void (*serve)(struct session *))
{
    struct peer peer = {0};
    int fd = PyObject_AsFileDescriptor(client);
    if (fd < 0 || require_installed(module) < 0) {
        return NULL;
    }
    if (current_session != NULL && !current_session->has_console &&
        current_session->input == NULL &&
        is_same_file(fd, kept_number(&current_session->fd))) {
        serve(current_session);
        return Py_NewRef(Py_None);
    }
    (void)read_peer(fd,
                    &peer); /* the caller's to check: it may be a socketpair, or TCP */
    fd = fcntl(fd, F_DUPFD_CLOEXEC, 0);
    if (fd < 0) {
        return PyErr_SetFromErrno(PyExc_OSError);
    }
    return serve_here(fd, &peer, serve) < 0 ? NULL : Py_NewRef(Py_None);
}

/* Calls a handler with the installed locals; for a session that this thread did not have
 * yet. */
ATTACHED static void
serve_with_locals(struct session *session, void (*serve)(struct session *, PyObject *))
{
    struct session *outer = current_session;
    PyObject *locals = NULL; /* owned */
    lock_leaf(&table_lock);
    locals = Py_XNewRef(manhole.options.locals);
    unlock(&table_lock);
    current_session = session;
    serve(session, locals);
    current_session = outer;
    Py_XDECREF(locals);
}

ATTACHED static void
serve_repl_here(struct session *session)
{
    serve_with_locals(session, serve_console);
}

ATTACHED static void
serve_exec_here(struct session *session)
{
    serve_with_locals(session, serve_exec);
}

PyDoc_STRVAR(
    handle_connection_repl_doc,
    "handle_connection_repl(client, /)\n--\n\n"
    "Serve a connected socket with the stack dump and the console, in this thread,\n"
    "until the client leaves. For a connection_handler of one's own. It does not\n"
    "check who the client is. NotInstalled when no manhole is installed.");

ATTACHED static PyObject *
py_handle_connection_repl(PyObject *module, PyObject *client)
{
    return handle_connection(module, client, serve_repl_here);
}

ATTACHED static void
serve_commands_here(struct session *session)
{
    serve_with_locals(session, serve_commands);
}

PyDoc_STRVAR(
    handle_connection_commands_doc,
    "handle_connection_commands(client, /)\n--\n\n"
    "Serve a connected socket with the shell of commands, in this thread, until the\n"
    "client leaves. For a connection_handler of one's own. It does not check who the\n"
    "client is. NotInstalled when no manhole is installed.");

ATTACHED static PyObject *
py_handle_connection_commands(PyObject *module, PyObject *client)
{
    return handle_connection(module, client, serve_commands_here);
}

PyDoc_STRVAR(
    handle_connection_exec_doc,
    "handle_connection_exec(client, /)\n--\n\n"
    "Run each line that comes over a connected socket, in this thread, until the\n"
    "client leaves or calls exit(). Nothing is redirected or answered. It does not\n"
    "check who the client is. NotInstalled when no manhole is installed.");

ATTACHED static PyObject *
py_handle_connection_exec(PyObject *module, PyObject *client)
{
    return handle_connection(module, client, serve_exec_here);
}

/* Runs install(TEXT) with the names of this module. Returns new, or NULL with an
 * exception. */
ATTACHED static PyObject *
eval_install(PyObject *module, PyObject *text)
{
    PyObject *call = PyUnicode_FromFormat("install(%U)", text); /* owned */
    PyObject *names = PyDict_Copy(PyModule_GetDict(module));    /* owned */
    PyObject *result = NULL;                                    /* new */
    const char *source = call == NULL ? NULL : PyUnicode_AsUTF8(call);
    if (source != NULL && names != NULL &&
        PyDict_SetItemString(names, "__builtins__", PyEval_GetBuiltins()) == 0 &&
        PyDict_SetItemString(names, "manhole", module) == 0) {
        result = run_source(source, Py_eval_input, names);
    }
    Py_XDECREF(call);
    Py_XDECREF(names);
    return result;
}

PyDoc_STRVAR(
    install_from_environment_doc,
    "_install_from_environment()\n--\n\n"
    "install() with the text of PYTHONMANHOLE as its arguments, if it is there and\n"
    "nothing is installed yet. For manhole.pth and manhole.start: a failure is one line\n"
    "on sys.stderr, and the program goes on.");

/* python -E, -I: CPython ignores its own variables then. */
ATTACHED static bool
ignores_environment(void)
{
    PyObject *flags = get_sys("flags"); /* owned */
    PyObject *flag = NULL;              /* owned */
    bool ignores = false;
    if (flags != NULL) {
        flag = PyObject_GetAttrString(flags, "ignore_environment");
    }
    ignores = flag != NULL && PyObject_IsTrue(flag) == 1;
    PyErr_Clear();
    Py_XDECREF(flags);
    Py_XDECREF(flag);
    return ignores;
}

ATTACHED static PyObject *
py_install_from_environment(PyObject *module, PyObject *unused)
{
    /* NOLINTNEXTLINE(concurrency-mt-unsafe): Python's start-up, one thread */
    const char *value = getenv("PYTHONMANHOLE");
    PyObject *text = NULL;   /* owned */
    PyObject *result = NULL; /* owned */
    (void)unused;
    /* Both files may be there more than once. */
    if (value == NULL || is_owner() || ignores_environment()) {
        return Py_NewRef(Py_None);
    }
    text = PyUnicode_DecodeFSDefault(value);
    result = text == NULL ? NULL : eval_install(module, text);
    if (result == NULL) {
        PyObject *exception = take_exception(); /* owned */
        PySys_FormatStderr("Failed to manhole.install(%s): %R\n", value, exception);
        Py_XDECREF(exception);
    }
    PyErr_Clear();
    Py_XDECREF(text);
    Py_XDECREF(result);
    return Py_NewRef(Py_None);
}

static PyMethodDef module_methods[] = {
    {"install", (PyCFunction)(void (*)(void))py_install, METH_VARARGS | METH_KEYWORDS,
     install_doc},
    {"dump_stacktraces", py_dump_stacktraces, METH_NOARGS, dump_stacktraces_doc},
    {"get_peercred", py_get_peercred, METH_O, get_peercred_doc},
    {"check_credentials", py_check_credentials, METH_O, check_credentials_doc},
    {"handle_connection_repl", py_handle_connection_repl, METH_O,
     handle_connection_repl_doc},
    {"handle_connection_exec", py_handle_connection_exec, METH_O,
     handle_connection_exec_doc},
    {"backdoor_server", (PyCFunction)(void (*)(void))py_backdoor_server,
     METH_VARARGS | METH_KEYWORDS, backdoor_server_doc},
    {"backdoor", (PyCFunction)(void (*)(void))py_backdoor, METH_VARARGS | METH_KEYWORDS,
     backdoor_doc},
    {"handle_connection_commands", py_handle_connection_commands, METH_O,
     handle_connection_commands_doc},
    {"_install_from_environment", py_install_from_environment, METH_NOARGS,
     install_from_environment_doc},
    {"_displayhook", py_displayhook, METH_O, NULL},
    {"_exit", py_exit, METH_VARARGS, NULL},
    {"_at_exit", py_at_exit, METH_NOARGS, NULL},
    {"_before_fork", py_before_fork, METH_NOARGS, NULL},
    {"_after_fork_in_parent", py_after_fork_in_parent, METH_NOARGS, NULL},
    {"_after_fork_in_child", py_after_fork_in_child, METH_NOARGS, NULL},
    {"_finalize_with_multiprocessing", py_finalize_with_multiprocessing, METH_O, NULL},
    {NULL, NULL, 0, NULL},
};

/* The Manhole object: one an interpreter, without fields of its own. */

PyDoc_STRVAR(
    handle_oneshot_doc,
    "handle_oneshot($self, signum=None, frame=None, /)\n--\n\n"
    "Open the socket, serve one client in this thread, close the socket. A signal\n"
    "handler by its arguments. What goes wrong, and that nobody came within\n"
    "oneshot_timeout, is a log line; only what the handler of another signal raises\n"
    "meanwhile comes out. NotInstalled when nothing is installed and it is called\n"
    "without arguments.");

ATTACHED static PyObject *
manhole_handle_oneshot(PyObject *self, PyObject *arguments)
{
    PyObject *module = PyType_GetModule(Py_TYPE(self)); /* borrowed */
    if (!manhole.installed && PyTuple_GET_SIZE(arguments) > 0) {
        return Py_NewRef(Py_None); /* a signal, in a child that has no manhole */
    }
    if (require_installed(module) < 0) {
        if (PyTuple_GET_SIZE(arguments) == 0) {
            return NULL;
        }
        log_exception("Oneshot failure: ", take_exception(), "");
        return Py_NewRef(Py_None);
    }
    switch (serve_oneshot()) {
    case ONESHOT_FAILED:
        log_exception("Oneshot failure: ", take_exception(), "");
        break;
    case ONESHOT_INTERRUPTED:
        log_line("Oneshot failure: interrupted by another signal");
        deliver_log();
        return NULL;
    default:
        break;
    }
    /* A signal that came meanwhile: the system call that we interrupt does not look again. What is
     * raised here another handler has raised; it is the application's to have. */
    return PyErr_CheckSignals() < 0 ? NULL : Py_NewRef(Py_None);
}

PyDoc_STRVAR(release_doc, "release($self, /)\n--\n\n"
                          "Undo install(): the listener, its socket, the signal "
                          "handlers. Clients that are\n"
                          "connected stay. Harmless when nothing is installed.");

ATTACHED static PyObject *
manhole_release_method(PyObject *self, PyObject *unused)
{
    (void)self;
    (void)unused;
    return release() < 0 ? NULL : Py_NewRef(Py_None);
}

static PyMethodDef manhole_methods[] = {
    {"handle_oneshot", manhole_handle_oneshot, METH_VARARGS, handle_oneshot_doc},
    {"release", manhole_release_method, METH_NOARGS, release_doc},
    {NULL, NULL, 0, NULL},
};

/* The name of a place: of a TCP one that is open, with the port that it has got. Returns new, or
 * NULL. */
ATTACHED static PyObject *
name_place(const struct place *place, const struct door *door)
{
    char name[SOCKET_PATH_SIZE];
    if (!is_tcp(place)) {
        (void)expand_path(place->path, name, sizeof(name));
        return PyUnicode_DecodeFSDefault(name);
    }
    format_address(&place->address, name);
    return PyUnicode_FromString(is_door_open(door) ? door->name : name);
}

ATTACHED static PyObject *
manhole_addresses(PyObject *self, void *unused)
{
    PyObject *list = PyList_New(0); /* owned, handed to the caller */
    struct place place;
    (void)self;
    (void)unused;
    for (size_t i = 0; list != NULL && get_place(&manhole.options, i, &place); i++) {
        PyObject *name = name_place(&place, &manhole.doors[i]); /* owned */
        if (name == NULL || PyList_Append(list, name) < 0) {
            Py_CLEAR(list);
        }
        Py_XDECREF(name);
    }
    return list;
}

ATTACHED static PyObject *
manhole_uds_name(PyObject *self, void *unused)
{
    struct place place;
    (void)self;
    (void)unused;
    for (size_t i = 0; get_place(&manhole.options, i, &place); i++) {
        if (!is_tcp(&place)) {
            return name_place(&place, &manhole.doors[i]);
        }
    }
    return Py_NewRef(Py_None);
}

ATTACHED static PyObject *
manhole_repr(PyObject *self)
{
    static const char separator[] = ", ";
    PyObject *addresses = manhole_addresses(self, NULL); /* owned */
    PyObject *comma = PyUnicode_FromString(separator);   /* owned */
    PyObject *names = NULL;                              /* owned */
    PyObject *repr = NULL;                               /* new */
    if (addresses != NULL && comma != NULL) {
        names = PyUnicode_Join(comma, addresses);
    }
    if (names != NULL) {
        repr = PyUnicode_FromFormat("<manhole.Manhole at %R%s>", names,
                                    manhole.installed ? "" : ", released");
    }
    Py_XDECREF(addresses);
    Py_XDECREF(comma);
    Py_XDECREF(names);
    return repr;
}

static PyGetSetDef manhole_attributes[] = {
    {"uds_name", manhole_uds_name, NULL,
     "The path of the Unix socket, whether it is open or not; None: there is only "
     "TCP.",
     NULL},
    {"addresses", manhole_addresses, NULL,
     "All that install() was told to listen at: paths, and HOST:PORT with the port "
     "that\n"
     "was chosen where the option listen said 0.",
     NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

ATTACHED static void
manhole_dealloc(PyObject *self)
{
    PyTypeObject *type = Py_TYPE(self);
    type->tp_free(self);
    Py_DECREF(type);
}

static char manhole_type_doc[] = "The installed manhole, as install() returns it.";

static PyType_Slot manhole_slots[] = {
    {Py_tp_doc, manhole_type_doc},
    {Py_tp_new, refuse_new},
    {Py_tp_dealloc, manhole_dealloc},
    {Py_tp_repr, manhole_repr},
    {Py_tp_methods, manhole_methods},
    {Py_tp_getset, manhole_attributes},
    {0, NULL},
};

static PyType_Spec manhole_spec = {
    .name = "manhole.Manhole",
    .basicsize = sizeof(PyObject),
    .flags = Py_TPFLAGS_DEFAULT,
    .slots = manhole_slots,
};

/* The numbers of all signals that Python names, sorted. Returns a new tuple, or NULL. */
ATTACHED static PyObject *
make_all_signals(void)
{
    PyObject *module = PyImport_ImportModule("_signal"); /* owned */
    PyObject *numbers = PySet_New(NULL);                 /* owned */
    PyObject *sorted = NULL;                             /* owned */
    PyObject *all = NULL;                                /* new, handed to the caller */
    PyObject *name = NULL;                               /* borrowed */
    PyObject *value = NULL;                              /* borrowed */
    Py_ssize_t position = 0;
    if (module == NULL || numbers == NULL) {
        goto done;
    }
    while (PyDict_Next(PyModule_GetDict(module), &position, &name, &value)) {
        const char *text = PyUnicode_AsUTF8(name);
        if (text == NULL || (strncmp(text, "SIG", 3) == 0 && strchr(text, '_') == NULL &&
                             PySet_Add(numbers, value) < 0)) {
            goto done;
        }
    }
    sorted = PySequence_List(numbers);
    if (sorted != NULL && PyList_Sort(sorted) == 0) {
        all = PyList_AsTuple(sorted);
    }
done:
    Py_XDECREF(module);
    Py_XDECREF(numbers);
    Py_XDECREF(sorted);
    return all;
}

/* Adds value to the module, dropping the new reference. Returns 0, or -1 with an
 * exception. */
ATTACHED static int
add_object(PyObject *module, const char *name, PyObject *value /* new, or NULL */)
{
    int result = value == NULL ? -1 : PyObject_SetAttrString(module, name, value);
    Py_XDECREF(value);
    return result;
}

/* Makes an exception type, a member of the module and its state. Returns 0, or -1. */
ATTACHED static int
add_exception(PyObject *module, PyObject **slot, const char *name, const char *doc)
{
    *slot = PyErr_NewExceptionWithDoc(name, doc, NULL, NULL);
    return add_object(module, strchr(name, '.') + 1, Py_XNewRef(*slot));
}

ATTACHED static int
add_exceptions(PyObject *module, struct module_state *state)
{
    return add_exception(module, &state->already_installed, "manhole.AlreadyInstalled",
                         "install() with strict=True found a manhole installed.") < 0 ||
                   add_exception(module, &state->not_installed, "manhole.NotInstalled",
                                 "What was called needs an installed manhole.") < 0 ||
                   add_exception(module, &state->configuration_conflict,
                                 "manhole.ConfigurationConflict",
                                 "activate_on and oneshot_on are the same signal.") < 0 ||
                   add_exception(
                       module, &state->suspicious_client, "manhole.SuspiciousClient",
                       "The client is neither root nor this process's user.") < 0
               ? -1
               : 0;
}

ATTACHED static int
module_exec(PyObject *module)
{
    struct module_state *state = PyModule_GetState(module);
    PyTypeObject *type = NULL; /* borrowed */
    state->manhole_type = PyType_FromModuleAndSpec(module, &manhole_spec, NULL);
    state->stream_type = PyType_FromModuleAndSpec(module, &stream_spec, NULL);
    if (state->manhole_type == NULL || state->stream_type == NULL) {
        return -1;
    }
    type = (PyTypeObject *)state->manhole_type;
    state->manhole_object = type->tp_alloc(type, 0);
    state->streams = PyList_New(0);
    state->library = PyDict_New();
    state->parts = PyDict_New();
    if (state->manhole_object == NULL || state->streams == NULL ||
        state->library == NULL || state->parts == NULL ||
        add_exceptions(module, state) < 0 ||
        add_object(module, "ALL_SIGNALS", make_all_signals()) < 0 ||
        add_object(module, "Manhole", Py_NewRef(state->manhole_type)) < 0 ||
        PyModule_AddStringConstant(module, "__version__", MANHOLE_VERSION) < 0) {
        return -1;
    }
    return 0;
}

ATTACHED static int
/* NOLINTNEXTLINE(readability-function-cognitive-complexity): Py_VISIT is an if */
module_traverse(PyObject *module, visitproc visit, void *arg)
{
    struct module_state *state = PyModule_GetState(module);
    Py_VISIT(state->manhole_type);
    Py_VISIT(state->stream_type);
    Py_VISIT(state->manhole_object);
    Py_VISIT(state->streams);
    Py_VISIT(state->console_type);
    Py_VISIT(state->input_type);
    Py_VISIT(state->sys_type);
    Py_VISIT(state->library);
    Py_VISIT(state->parts);
    Py_VISIT(state->already_installed);
    Py_VISIT(state->not_installed);
    Py_VISIT(state->configuration_conflict);
    Py_VISIT(state->suspicious_client);
    return 0;
}

ATTACHED static int
/* NOLINTNEXTLINE(readability-function-cognitive-complexity): Py_CLEAR is an if */
module_clear(PyObject *module)
{
    struct module_state *state = PyModule_GetState(module);
    Py_CLEAR(state->manhole_type);
    Py_CLEAR(state->stream_type);
    Py_CLEAR(state->manhole_object);
    Py_CLEAR(state->streams);
    Py_CLEAR(state->console_type);
    Py_CLEAR(state->input_type);
    Py_CLEAR(state->sys_type);
    Py_CLEAR(state->library);
    Py_CLEAR(state->parts);
    Py_CLEAR(state->already_installed);
    Py_CLEAR(state->not_installed);
    Py_CLEAR(state->configuration_conflict);
    Py_CLEAR(state->suspicious_client);
    return 0;
}

ATTACHED static void
module_free(void *module)
{
    (void)module_clear(module);
}

static PyModuleDef_Slot module_slots[] = {
    {Py_mod_exec, (void *)module_exec},
    {Py_mod_exec, (void *)exec_probes},
    {Py_mod_exec, (void *)exec_requests},
#ifdef Py_mod_gil
    {Py_mod_gil, Py_MOD_GIL_NOT_USED},
#endif
    {0, NULL},
};

PyDoc_STRVAR(
    module_doc,
    "A debugging socket in this process: stacks of all threads, and a prompt.\n\n"
    "    import manhole\n"
    "    manhole.install()\n\n"
    "Then, in a shell: manhole-cli PID");

static struct PyModuleDef manhole_module = {
    PyModuleDef_HEAD_INIT,         .m_name = "manhole",
    .m_doc = module_doc,           .m_size = sizeof(struct module_state),
    .m_methods = module_methods,   .m_slots = module_slots,
    .m_traverse = module_traverse, .m_clear = module_clear,
    .m_free = module_free,
};

PyMODINIT_FUNC
PyInit_manhole(void)
{
    return PyModuleDef_Init(&manhole_module);
}

/* ======================================================================================
 * C API: manhole.h.
 * Runs on:  threads of the embedding program; each function's contract is in the header.
 * ====================================================================================== */

/* The module for a program that did not put it into the inittab. Returns new, or NULL. */
ATTACHED static PyObject *
make_module(void)
{
    PyObject *machinery = PyImport_ImportModule("importlib.machinery"); /* owned */
    PyObject *spec = NULL;                                              /* owned */
    PyObject *module = NULL; /* owned, handed to the caller */
    if (machinery != NULL) {
        spec = PyObject_CallMethod(machinery, "ModuleSpec", "sO", "manhole", Py_None);
    }
    if (spec != NULL) {
        module = PyModule_FromDefAndSpec(&manhole_module, spec);
    }
    if (module != NULL &&
        (PyModule_ExecDef(module, &manhole_module) < 0 ||
         PyDict_SetItemString(PyImport_GetModuleDict(), "manhole", module) < 0)) {
        Py_CLEAR(module);
    }
    Py_XDECREF(machinery);
    Py_XDECREF(spec);
    return module;
}

/* This very copy of the module. Returns new, or NULL with an exception. */
ATTACHED static PyObject *
get_module(void)
{
    PyObject *modules = PyImport_GetModuleDict();                /* borrowed */
    PyObject *module = PyDict_GetItemString(modules, "manhole"); /* borrowed */
    if (module != NULL && PyModule_Check(module) &&
        PyModule_GetDef(module) == &manhole_module) {
        return Py_NewRef(module);
    }
    if (module != NULL) {
        PyErr_SetString(
            PyExc_ImportError,
            "another module named manhole was imported before manhole_install()");
        return NULL;
    }
    return make_module();
}

/* 0 stands for None. */
ATTACHED static PyObject *
signal_object(int signum)
{
    return signum == 0 ? Py_NewRef(Py_None) : PyLong_FromLong(signum);
}

/* Returns a new dict, or NULL with an exception. */
ATTACHED static PyObject *
make_keywords(const manhole_options *options)
{
    PyObject *keywords = Py_BuildValue(
        "{sN si sN sN sN sN sN sN sN sd sd sd sd si sz sz sz sz sO}", "verbose",
        PyBool_FromLong(options->verbose), "verbose_destination",
        options->verbose_destination, "strict", PyBool_FromLong(options->strict),
        "patch_fork", PyBool_FromLong(options->patch_fork), "thread",
        PyBool_FromLong(options->thread), "activate_on",
        signal_object(options->activate_on), "oneshot_on",
        signal_object(options->oneshot_on), "daemon_connection",
        PyBool_FromLong(options->daemon_connection), "redirect_stderr",
        PyBool_FromLong(options->redirect_stderr), "reinstall_delay",
        options->reinstall_delay, "start_timeout", options->start_timeout,
        "oneshot_timeout", options->oneshot_timeout, "hang_timeout",
        options->hang_timeout, "max_sessions", options->max_sessions, "socket_path",
        options->socket_path, "listen", options->listen, "config", options->config,
        "enable", options->enable, "locals",
        options->locals == NULL ? Py_None : options->locals);
    PyObject *handler = NULL; /* owned */
    if (keywords != NULL &&
        options->connection_handler != NULL) { /* which is never None */
        handler = PyUnicode_FromString(options->connection_handler);
        if (handler == NULL ||
            PyDict_SetItemString(keywords, "connection_handler", handler) < 0) {
            Py_CLEAR(keywords);
        }
        Py_XDECREF(handler);
    }
    return keywords;
}

ATTACHED int
manhole_install(const manhole_options *options)
{
    static const manhole_options defaults = MANHOLE_OPTIONS_DEFAULT;
    PyObject *module = get_module();  /* owned */
    PyObject *empty = PyTuple_New(0); /* owned */
    PyObject *keywords = NULL;        /* owned */
    PyObject *result = NULL;          /* owned */
    if (module != NULL && empty != NULL) {
        keywords = make_keywords(options == NULL ? &defaults : options);
    }
    if (keywords != NULL) {
        result = install(module, empty, keywords);
    }
    Py_XDECREF(module);
    Py_XDECREF(empty);
    Py_XDECREF(keywords);
    Py_XDECREF(result);
    return result == NULL ? -1 : 0;
}

ATTACHED int
manhole_release(void)
{
    return release();
}

/* Returns 0, or -1 with errno. */
static int
write_all(int fd, const char *bytes, size_t length)
{
    while (length > 0) {
        ssize_t written = write(fd, bytes, length);
        if (written < 0 && errno != EINTR) {
            return -1;
        }
        if (written > 0) {
            bytes += written;
            length -= (size_t)written;
        }
    }
    return 0;
}

/* Appends the dump, made with the interpreter's help. Returns 0, or -1 with errno. */
ATTACHED static int
append_dump_without_error(struct text *dump)
{
    PyObject *type = NULL;      /* owned */
    PyObject *value = NULL;     /* owned */
    PyObject *traceback = NULL; /* owned */
    int result = 0;
    PyErr_Fetch(&type, &value, &traceback);
    result = append_stacks(dump, &dump_form);
    if (result < 0) {
        PyErr_Clear();
        errno = ENOMEM;
    }
    PyErr_Restore(type, value, traceback);
    return result;
}

CHECKED(no_thread_safety_analysis)
int
manhole_dump_stacks(int fd)
{
    struct text dump = {0};
    PyThreadState *tstate = NULL;
    const bool attached = is_attached();
    const bool looks =
        attached && HAS_GIL; /* else a frozen copy does, which install() prepares */
    int result = 0;
    int saved_errno = 0;
    if (looks) {
        result = append_dump_without_error(&dump);
    }
    if (attached) {
        tstate = detach();
    }
    if (!looks && (atomic_load(&manhole.owner) != getpid() || snapshot.signum == 0)) {
        errno = ENOTSUP;
        result = -1;
    }
    else if (!looks) {
        append_snapshot(&dump);
    }
    if (result == 0 && dump.failed) {
        errno = ENOMEM;
        result = -1;
    }
    if (result == 0) {
        result = write_all(fd, dump.bytes, dump.length);
    }
    saved_errno = errno;
    free_text(&dump);
    if (attached) {
        reattach(tstate);
    }
    errno = saved_errno;
    return result;
}
