/* Python: how a frozen copy of the process comes to run Python.
 * Runs on:  the copy's only thread, on a stack of its own.
 * Touches:  the copy: its thread pointer, Python's list of threads, threading's.
 *
 * Python runs in whoever has the GIL, and knows that thread by its thread-local variables. In a
 * copy there is but the thread that has made it. So that one becomes another:
 *
 *   A process that is stuck. The copy looks who has the GIL (find_gil_holder) and sets its own
 *   thread pointer to that thread's, which is what CPython keeps as thread_id: from then on it is
 *   that thread, to the C library and to Python, with its thread state, its errno, its GIL. It
 *   stands on a stack of its own, on top of the frame at which that thread was. Nothing is sent to
 *   the process for it, and nothing waits. What that thread was in the middle of may be half done:
 *   then the copy dies, or hangs, and another is made (src/frozen/copies.c).
 *
 *   A process that is well. A thread that is attached makes the copy, so nothing in Python is half
 *   done. It then becomes the main thread.
 *
 *   From CPython 3.13 on a signal interrupts what runs in the main thread alone: there the copy of
 *   a process that is stuck becomes that, too, if it was another that had the GIL.
 *
 * Then Python is told that it was forked (make_python_anew). Its hooks run, the application's among
 * them, behind the fence.
 *
 * Not a signal to the thread that has the GIL, to have it make the copy: what it waits in would be
 * cut short. Not PyThreadState_Swap(), which waits for the GIL from 3.12 on. Not the copy's own
 * thread-local variables under another's thread state: PyGILState_Check() says no then, and what
 * C calls back crashes.
 */
#ifndef MANHOLE_FROZEN_PYTHON_C
#define MANHOLE_FROZEN_PYTHON_C

#include "../base/compat.c"
#include "../base/state.c"
#include "../base/basics.c"
#include "../stacks/copy.c"
#include "../stacks/look.c"
#include "heap.c"

#if CAN_FREEZE
#  include <asm/prctl.h>

enum {
    COPY_STACK_SIZE = 8 * 1024 * 1024,
    /* Frames that a prompt may need, on top of a thread that has used up its own. */
    MORE_RECURSION = 1000,
    /* Small blocks of each size, and sizes: see become_thread(). */
    STOCK_SIZES = 64,
    STOCK_EACH = 16,
};

/* How a copy ends that has not come to run Python. */
enum copy_exit {
    EXIT_NOT_FENCED = 101,
    EXIT_NO_HOLDER,       /* nobody had the GIL just then */
    EXIT_SUBINTERPRETERS, /* no copy lives beside another interpreter */
    EXIT_NO_MEMORY,
    EXIT_NO_STACK, /* CPython 3.14 before 3.14.2 */
};

COPY_ONLY static _Noreturn void
end_copy(enum copy_exit status)
{
    _exit((int)status);
}

/* From here on the calling thread is that other one. That may have been in the middle of malloc(),
 * which keeps small blocks for each thread: so these are given a stock, of this thread's memory. */
COPY_ONLY static void
become_thread(const PyThreadState *tstate)
{
    static void *stock[STOCK_SIZES * STOCK_EACH];
    for (size_t i = 0; i < Py_ARRAY_LENGTH(stock); i++) {
        stock[i] = malloc(24 + 16 * (i / STOCK_EACH));
    }
    (void)syscall(SYS_arch_prctl, ARCH_SET_FS, tstate->thread_id);
    for (size_t i = 0; i < Py_ARRAY_LENGTH(stock); i++) {
        free(stock[i]);
    }
}

/* Python is forked, and threading remembers its threads all the same: who looks at frames wants
 * their names. */
ATTACHED static void
fork_python(PyThreadState *own)
{
    OWNED PyObject *active = get_active_threads();
    OWNED PyObject *threads = active == NULL ? NULL : PyDict_Copy(active);
    if (!make_python_anew(own)) {
        end_copy(EXIT_NO_MEMORY);
    }
    if (threads != NULL) {
        PyDict_Clear(
            active); /* of a thread that it did not know it has made the main one */
        (void)PyDict_Update(active, threads);
    }
    PyErr_Clear();
}

/* Ctrl-C is KeyboardInterrupt, whatever the application has made of it; nobody is woken by
 * signals. */
ATTACHED static void
take_signals(void)
{
    OWNED PyObject *signals = PyImport_ImportModule("_signal");
    OWNED PyObject *handler = find_attribute(signals, "default_int_handler");
    if (handler != NULL) {
        Py_XDECREF(PyObject_CallMethod(signals, "signal", "iO", SIGINT, handler));
        PyErr_Clear();
        Py_XDECREF(PyObject_CallMethod(signals, "set_wakeup_fd", "i", -1));
    }
    PyErr_Clear();
}

/* Notes where the thread is that the copy has taken over, and rids it of what is the application's:
 * tracing, a limit to its depth. */
ATTACHED static void
settle_in(pid_t original, unsigned long holder, unsigned long main_ident)
{
    PyThreadState *own = PyThreadState_Get();
    frozen.original = original;
    frozen.holder = holder;
    frozen.meant = PyLong_FromUnsignedLong(holder != 0 ? holder : main_ident);
    frozen.ident = PyLong_FromUnsignedLong(own->thread_id);
    frozen.frame = (PyObject *)PyThreadState_GetFrame(own);
    PyEval_SetTrace(NULL, NULL);
    PyEval_SetProfile(NULL, NULL);
    Py_SetRecursionLimit(Py_GetRecursionLimit() + MORE_RECURSION);
    take_signals();
}

MAY_ATTACH static void
become_main_thread(PyThreadState *main_thread, void *stack)
{
    if (main_thread != PyThreadState_Get()) {
        (void)PyEval_SaveThread();
        become_thread(main_thread);
        reattach_forked(main_thread);
        if (!set_stack(main_thread, stack, COPY_STACK_SIZE)) {
            end_copy(EXIT_NO_STACK);
        }
        PyErr_Clear();
        fork_python(main_thread);
    }
}

/* Whether the thread runs Python's code. A session's that has got the GIL just now does not. */
ATTACHED static bool
has_frame(PyThreadState *tstate)
{
    OWNED PyObject *frame = (PyObject *)PyThreadState_GetFrame(tstate);
    return frame != NULL;
}

/* Makes the calling thread, of a copy, one that runs Python, attached. */
ATTACHES static void
become_python(pid_t original, bool is_attached_now, void *stack)
{
    PyInterpreterState *interpreter = manhole.interpreter;
    if (PyInterpreterState_Next(PyInterpreterState_Head()) != NULL) {
        end_copy(EXIT_SUBINTERPRETERS);
    }
    PyThreadState *main_thread = find_oldest_thread(interpreter);
    PyThreadState *own =
        is_attached_now ? PyThreadState_Get() : find_gil_holder(interpreter);
    if (own == NULL) {
        end_copy(EXIT_NO_HOLDER);
    }
    if (!use_own_heap()) {
        end_copy(EXIT_NO_MEMORY);
    }

    if (!is_attached_now) {
        become_thread(own);
    }
    if (!set_stack(own, stack, COPY_STACK_SIZE)) {
        end_copy(EXIT_NO_STACK);
    }
    PyErr_Clear();
    const unsigned long holder = is_attached_now || !has_frame(own) ? 0 : own->thread_id;
    fork_python(own);
    if (is_attached_now || SIGNALS_NEED_MAIN_THREAD) {
        become_main_thread(main_thread, stack);
    }
    settle_in(original, holder, main_thread->thread_id);
}

#endif /* CAN_FREEZE */
#endif /* MANHOLE_FROZEN_PYTHON_C */
