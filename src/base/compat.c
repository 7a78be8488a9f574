/* Compatibility: the markers that say who may call what, references and descriptors that their
 * block gives back, and the differences between CPython 3.9 and 3.15.
 * Runs on:  any thread; each function's marker says whether attached.
 *
 * This is the only room with PY_VERSION_HEX in it, and the only one that names what is CPython's
 * own: a name with an underscore, a field of a struct. Each such use says which versions need it,
 * and what there is no public function for. They are of five kinds:
 *
 *   Is the interpreter ending, is this thread attached: public from 3.13 on.
 *   Frames and exceptions: the same functions everywhere, by the names of the newest versions.
 *   What a frozen copy reads of its memory (src/stacks/copy.c): a thread state's fields, an
 *   object's attributes. It has no thread state of its own, so it can call no function that wants
 *   one. Locks of CPython's that a fork or an interrupt can leave in a bad state: new_state_lock,
 *   settle_interrupts().
 *   What makes a frozen copy run Python (src/frozen/python.c): the list of thread states.
 */
#ifndef MANHOLE_BASE_COMPAT_C
#define MANHOLE_BASE_COMPAT_C

#include "base.h"

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
/* Attaches on a way that the checker cannot follow, and has detached again when it returns. */
#define MAY_ATTACH CHECKED(no_thread_safety_analysis)

/* Whether the calling thread is attached to Python. Before 3.12 CPython knows one holder of the GIL
 * only: it is the calling thread when that has made it, also for a subinterpreter. */
static bool
is_attached(void)
{
#if PY_VERSION_HEX >= 0x030d0000
    return PyThreadState_GetUnchecked() != NULL;
#elif PY_VERSION_HEX >= 0x030c0000
    return _PyThreadState_UncheckedGet() != NULL;
#else
    PyThreadState *holder = _PyThreadState_UncheckedGet();
    return holder != NULL && (holder == PyGILState_GetThisThreadState() ||
                              holder->thread_id == PyThread_get_thread_ident());
#endif
}

/* A new reference that its block gives back, whichever way it is left:
 *     OWNED PyObject *name = PyUnicode_FromString("x");
 * One that is handed on: return steal_reference(&name). No goto may jump past the declaration, and
 * the block may not detach() and leave without reattach(). */
#define OWNED __attribute__((cleanup(drop_reference)))

/* Where C is compiled with -fexceptions, as Fedora's packages are, pthread_exit() runs clean-ups,
 * too: those of a session's thread that CPython before 3.14 ends in the middle of a call, see
 * reattach(). Such a thread is not attached. */
#ifdef __EXCEPTIONS
#  define MAY_BE_UNWOUND true
#else
#  define MAY_BE_UNWOUND false
#endif

/* The clean-up of OWNED. */
ATTACHED static inline void
drop_reference(PyObject **owned)
{
    if (!MAY_BE_UNWOUND || is_attached()) {
        Py_XDECREF(*owned);
    }
}

/* Takes a reference out of the hands of the block that owns it. */
ATTACHED static inline PyObject *
steal_reference(PyObject **owned)
{
    PyObject *stolen = *owned;
    *owned = NULL;
    return stolen;
}

/* A descriptor that its block closes, errno kept; one that is handed on: return steal_fd(&fd). */
#define OWNED_FD __attribute__((cleanup(close_owned_fd)))

/* The clean-up of OWNED_FD. */
static inline void
close_owned_fd(const int *owned)
{
    int error = errno;
    if (*owned >= 0) {
        (void)close(*owned);
    }
    errno = error;
}

static inline int
steal_fd(int *owned)
{
    int stolen = *owned;
    *owned = -1;
    return stolen;
}

/* What io has in C, which is always there: io itself is a file, and from 3.14 on Python starts
 * without it, so a process that cannot read its library any more may have none. */
#define IO_MODULE "_io"
#define RAW_IO_BASE "_RawIOBase"

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

/* In *found a new reference to sys.NAME; NULL when there is none. Returns 0, or -1 with an
 * exception when that cannot be told. */
ATTACHED static int
find_sys(const char *name, PyObject **found)
{
#if PY_VERSION_HEX >= 0x030d0000
    OWNED PyObject *module = PyImport_AddModuleRef("sys");
    *found = NULL;
    return module == NULL || PyObject_GetOptionalAttrString(module, name, found) < 0 ? -1
                                                                                     : 0;
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

/* Shows visit() each object that the garbage collector knows of, until it returns 0; from CPython
 * 3.12 on without a list of them all. Returns 0, or -1 with an exception. */
ATTACHED static int
visit_objects(PyObject *gc /* the module */,
              int (*visit)(PyObject *object, void *argument), void *argument)
{
#if PY_VERSION_HEX >= 0x030c0000
    (void)gc;
    PyUnstable_GC_VisitObjects(visit, argument);
    return 0;
#else
    int go_on = 1;
    OWNED PyObject *objects = PyObject_CallMethod(gc, "get_objects", NULL);
    for (Py_ssize_t i = 0; objects != NULL && go_on && i < PyList_GET_SIZE(objects);
         i++) {
        go_on = visit(PyList_GET_ITEM(objects, i), argument);
    }
    return objects == NULL ? -1 : 0;
#endif
}

/* Whether sys._current_frames() may be called. It goes through all interpreters, and from 3.12 on
 * one may have a GIL of its own, and frames that run on meanwhile: CPython dies of that. A new one
 * comes first in the list, and takes our GIL to be made, so the main one at its head is alone. */
ATTACHED static bool
may_ask_for_frames(void)
{
#if PY_VERSION_HEX >= 0x030c0000
    return PyInterpreterState_Head() == PyInterpreterState_Main();
#else
    return true;
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
    OWNED PyObject *type = NULL;
    OWNED PyObject *traceback = NULL;
    PyObject *value = NULL; /* owned, handed to the caller */
    PyErr_Fetch(&type, &value, &traceback);
    if (type != NULL) {
        PyErr_NormalizeException(&type, &value, &traceback);
    }
    if (traceback != NULL) {
        (void)PyException_SetTraceback(value, traceback);
    }
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
 * way in may. So fork() waits for it, the C library's too; and so does who walks over that list.
 * But not for long: under tracemalloc what is allocated for a new thread state waits for the GIL,
 * which whoever is attached would keep for ever. That comes before the list is touched. */
enum { FORKS_WAIT_FOR_NEW_STATES = PY_VERSION_HEX < 0x030d0000 };

static pthread_mutex_t new_state_lock = PTHREAD_MUTEX_INITIALIZER;

/* Returns whether it is locked. */
static bool
lock_new_state_soon(void)
{
    enum { PATIENCE_MS = 100 };
    bool locked =
        FORKS_WAIT_FOR_NEW_STATES && pthread_mutex_trylock(&new_state_lock) == 0;
    for (int ms = 0; FORKS_WAIT_FOR_NEW_STATES && !locked && ms < PATIENCE_MS; ms++) {
        (void)poll(NULL, 0, 1);
        locked = pthread_mutex_trylock(&new_state_lock) == 0;
    }
    return locked;
}

static void
unlock_new_state(bool locked)
{
    if (locked) {
        (void)pthread_mutex_unlock(&new_state_lock);
    }
}

/* In a forked child. */
static void
make_new_state_lock_anew(void)
{
    (void)pthread_mutex_init(&new_state_lock, NULL);
}

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

/* Takes a thread's frames away, for who walks them next. Writes memory alone: a frozen copy's. */
ASYNC_SAFE static void
forget_frames(PyThreadState *tstate)
{
#if PY_VERSION_HEX >= 0x030d0000
    tstate->current_frame = NULL;
#elif PY_VERSION_HEX >= 0x030b0000
    tstate->cframe->current_frame = NULL;
#else
    tstate->frame = NULL;
#endif
}

/* Runs a program of ours, an expression or statements. PyRun_String() in a thread of ours would
 * make CPython forget that the application is about to end with a KeyboardInterrupt, and its
 * exit status with it. Returns a new reference, or NULL with an exception. */
ATTACHED static PyObject *
run_source(const char *source, int start, PyObject *names)
{
    OWNED PyObject *code = Py_CompileString(source, "<string>", start);
    return code == NULL ? NULL : PyEval_EvalCode(code, names, names);
}

/* Takes back what the calling thread was to be interrupted with, if it was. Before 3.13 an
 * interrupt of one thread has all of them look for theirs, at each call and turn of a loop, until
 * some thread has got one: they are slower, and on 3.11 one that is traced or profiled comes no
 * further. So one is raised, and let out in an expression that does nothing: then nobody looks.
 * Who is still to have one does, as soon as it has the GIL again. Keeps the current exception. */
ATTACHED static void
settle_interrupts(void)
{
    PyObject *const nobodys = PyExc_StopAsyncIteration; /* no signal handler raises it */
    PyObject *raised = take_exception();                /* owned, handed back */
    OWNED PyObject *names = PyDict_New();
    OWNED PyObject *code = Py_CompileString("0", "<string>", Py_eval_input);
    bool out = names == NULL || code == NULL;
    PyErr_Clear();
    (void)PyThreadState_SetAsyncExc(PyThread_get_thread_ident(), out ? NULL : nobodys);
    for (int attempts = 3; !out && attempts > 0; attempts--) {
        OWNED PyObject *result = PyEval_EvalCode(code, names, names);
        out = result != NULL || PyErr_ExceptionMatches(nobodys);
        if (out) {
            PyErr_Clear();
        }
        else {
            PyErr_WriteUnraisable(NULL); /* a signal came just now */
        }
    }
    put_back_exception(raised);
}

/* Whether sys.modules has it. */
ATTACHED static bool
is_imported(const char *name)
{
    return PyDict_GetItemString(PyImport_GetModuleDict(), name) != NULL;
}

/* Whether the calling thread is the interpreter's first, and threading is not imported yet. The
 * list has the latest thread in front, and who deletes one has the GIL. */
ATTACHED static bool
is_to_import_threading(void)
{
    if (is_imported("threading")) {
        return false;
    }
    PyThreadState *first = PyInterpreterState_ThreadHead(PyInterpreterState_Get());
    for (PyThreadState *next = first; next != NULL; next = PyThreadState_Next(next)) {
        first = next;
    }
    return first == PyThreadState_Get();
}

/* Tells threading, which another thread has imported, which thread is the main one: the
 * interpreter's first, whose lock threading lets go at exit. It would take the importing thread for
 * that; from 3.13 on its native id alone. Up to 3.12 nothing else can be done where the main thread
 * runs no Python just now, and 3.15 has the fields still. Returns 0, or -1 with an exception. */
ATTACHED static int
tell_threading_main(void)
{
    static const char program[] =
        "import _thread, sys, threading\n"
        "main = threading._main_thread\n"
        "main._native_id = native_id\n"
        "if sys.version_info < (3, 13):\n"
        "    lock = _thread.allocate_lock()\n"
        "    lock.acquire()\n"
        "    threading._shutdown_locks.discard(main._tstate_lock)\n"
        "    main._tstate_lock = lock\n"
        "    threading._active.pop(main._ident, None)\n"
        "    threading._active[ident] = main\n"
        "    main._ident = ident\n";
    PyThreadState *state = PyInterpreterState_ThreadHead(PyInterpreterState_Get());
    unsigned long ident = 0; /* of the last in the list, the latest being in front */
    for (; state != NULL; state = PyThreadState_Next(state)) {
        ident = state->thread_id;
    }
    OWNED PyObject *names =
        Py_BuildValue("{sO sk sl}", "__builtins__", PyEval_GetBuiltins(), "ident", ident,
                      "native_id", (long)getpid());
    OWNED PyObject *result =
        names == NULL ? NULL : run_source(program, Py_file_input, names);
    return result == NULL ? -1 : 0;
}

/* A thread state for the calling thread, which is not attached. Returns NULL without memory. */
DETACHED static PyThreadState *
new_thread_state(PyInterpreterState *interpreter)
{
    if (FORKS_WAIT_FOR_NEW_STATES) {
        (void)pthread_mutex_lock(&new_state_lock);
    }
    PyThreadState *tstate = PyThreadState_New(interpreter);
    unlock_new_state(FORKS_WAIT_FOR_NEW_STATES);
    return tstate;
}

/* ---- For a frozen copy that becomes Python: src/frozen/python.c ------------------------------ */

/* Where a copy can be more than read: the thread pointer is set by a system call, and is what the C
 * library and CPython know a thread by. Not tried elsewhere. Without a GIL no copy has a thread at
 * which Python stands still. */
#if defined(__x86_64__) && defined(__GLIBC__) && !defined(Py_GIL_DISABLED)
#  define CAN_FREEZE true
#else
#  define CAN_FREEZE false
#endif

#if CAN_FREEZE

#  if PY_VERSION_HEX >= 0x030e0000
/* Not in 3.14.0 and 3.14.1, where a module that was built with a later one has to load, too. */
extern int PyUnstable_ThreadState_SetStackProtection(PyThreadState *, void *, size_t)
    __attribute__((weak));
#  endif

/* From 3.14 on Python knows a thread's stack by its addresses, and has to be told of another.
 * Returns false where it cannot be: no code of Python's would run on that. */
ASYNC_SAFE static bool
set_stack(PyThreadState *tstate, void *start, size_t size)
{
#  if PY_VERSION_HEX >= 0x030e0000
    return PyUnstable_ThreadState_SetStackProtection != NULL &&
           PyUnstable_ThreadState_SetStackProtection(tstate, start, size) == 0;
#  else
    (void)tstate;
    (void)start;
    (void)size;
    return true;
#  endif
}

/* The thread that has the GIL; NULL: none. Reads memory alone. */
ASYNC_SAFE static PyThreadState *
find_gil_holder(PyInterpreterState *interpreter)
{
#  if PY_VERSION_HEX < 0x030c0000
    (void)interpreter;
    return _PyThreadState_UncheckedGet();
#  else
    PyThreadState *tstate = PyInterpreterState_ThreadHead(interpreter);
    while (tstate != NULL && !holds_gil(tstate)) {
        tstate = tstate->next;
    }
    return tstate;
#  endif
}

/* Whether a signal interrupts what runs in the main thread alone, also after a fork of another. */
enum { SIGNALS_NEED_MAIN_THREAD = PY_VERSION_HEX >= 0x030d0000 };

/* The thread state that was made first: the main thread's. Reads memory alone. */
ASYNC_SAFE static PyThreadState *
find_oldest_thread(PyInterpreterState *interpreter)
{
    PyThreadState *oldest = PyInterpreterState_ThreadHead(interpreter);
    while (oldest != NULL && oldest->next != NULL) {
        oldest = oldest->next;
    }
    return oldest;
}

/* Notes a state as the thread's where it has none. */
#  if PY_VERSION_HEX < 0x030b0000
#    define NOTE_STATE _PyThreadState_Init
#  else
#    define NOTE_STATE _PyThreadState_SetCurrent /* of 3.11 alone */
#  endif
#  if PY_VERSION_HEX < 0x030c0000
PyAPI_FUNC(void) NOTE_STATE(PyThreadState *tstate);
#  endif

/* Attaches a thread of a copy that was forked by another. Python finds a thread's state by a
 * thread-local variable, which it has made anew at that fork, for that other alone. Without this
 * one it takes the state that make_python_anew() deletes: tracemalloc and what C calls back crash.
 */
ATTACHES static void
reattach_forked(PyThreadState *tstate)
{
#  if PY_VERSION_HEX >= 0x030c0000
    tstate->_status.bound_gilstate = 0; /* so it is bound again */
    PyEval_RestoreThread(tstate);
#  else
    PyEval_RestoreThread(tstate);
    NOTE_STATE(tstate);
#  endif
}

/* Makes Python one of this process, in which there is no thread but the calling one. It would
 * delete the states of all others, and with them what their frames are made of: 3.15 dies of
 * looking at them then. So they are taken out of its list meanwhile. Its head is not to be had, so
 * a new state is made for that, which is what it deletes. From 3.13 on it gives the import lock
 * back, and has to have it for that. What the kernel calls the thread stays as it was in the
 * process, whose stacks are shown. Returns false without memory. */
ATTACHED static bool
make_python_anew(PyThreadState *own)
{
    PyThreadState *head = PyThreadState_New(own->interp);
    if (head == NULL) {
        return false;
    }
    PyThreadState *first = head->next;
    PyThreadState *before = own == first ? NULL : own->prev;
    PyThreadState *behind = own->next;
    first->prev = NULL;
    head->next = own;
    own->prev = head;
    own->next = NULL;

#  if PY_VERSION_HEX >= 0x030d0000
    PyObject *imp = PyDict_GetItemString(PyImport_GetModuleDict(), "_imp"); /* borrowed */
    Py_XDECREF(imp == NULL ? NULL : PyObject_CallMethod(imp, "acquire_lock", NULL));
#  endif
#  if PY_VERSION_HEX >= 0x030b0000
    const unsigned long native_id = own->native_thread_id;
    PyOS_AfterFork_Child();
    own->native_thread_id = native_id;
#  else
    PyOS_AfterFork_Child();
#  endif

    own->next = before == NULL ? behind : first;
    if (before != NULL) {
        first->prev = own;
        before->next = behind;
    }
    if (behind != NULL) {
        behind->prev = before == NULL ? own : before;
    }
    return true;
}

#endif /* CAN_FREEZE */

#ifdef Py_GIL_DISABLED
#  define HAS_GIL false
#else
#  define HAS_GIL true
#endif

/* Whether a call that waits, in whatever thread, looks for what that is to be interrupted with when
 * a signal cuts it short. Before 3.15 it just waits on. */
#if PY_VERSION_HEX >= 0x030f0000
#  define WAITS_CAN_BE_ENDED true
#else
#  define WAITS_CAN_BE_ENDED false
#endif

/* Whether CPython's own profiler, profiling.sampling, gives up at a thread state that has no frame:
 * "Failed to parse initial frame in chain". It came with 3.15. */
#if PY_VERSION_HEX >= 0x030f0000
#  define PROFILER_NEEDS_FRAMES true
#else
#  define PROFILER_NEEDS_FRAMES false
#endif

ATTACHED static PyObject *
refuse_new(PyTypeObject *type, PyObject *arguments, PyObject *keywords)
{
    (void)arguments;
    (void)keywords;
    PyErr_Format(PyExc_TypeError, "cannot create '%s' instances", type->tp_name);
    return NULL;
}

#endif /* MANHOLE_BASE_COMPAT_C */
