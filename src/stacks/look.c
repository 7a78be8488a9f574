/* Look: the stacks of a process whose interpreter answers, asked of it.
 * Runs on:  sessions and application threads: ATTACHED to look and to describe, DETACHED for files.
 * Touches:  nothing but frames, what threading and linecache have, and the files that frames name.
 *
 * The application stands still for the look alone, so that does as little as it can:
 *
 *   1. look_at_threads() takes each thread's topmost frame from sys._current_frames(), goes
 *      outwards, and notes for each frame its code object and instruction. (Where other
 *      interpreters may have a GIL of their own, it asks each thread of ours instead: their frames
 *      would not stand still.) Nothing in it lets go of the GIL: what it sees was so at one moment.
 *      The cyclic collector is paused for it, since it may run any Python code, and making frame
 *      objects may set it off.
 *   2. describe_thread() and describe_position() then find names, files and line numbers. That
 *      takes longer, is C throughout, and would keep the others from running: let_others_run()
 *      steps back every few milliseconds. No Python code runs here either; what a thread's object
 *      says is read from its attributes, not from its properties.
 *   3. detach_with_sources() lets go of the GIL and reads the source files without it. Only lines
 *      that are in no file of UTF-8 take Python again, in linecache. So a client is told all with
 *      the GIL taken once, which matters beside threads that compute, and no module is imported
 *      for it.
 *
 * Without a GIL there is no such moment: other threads go on while one walks their frames. There a
 * frozen copy is looked at instead, also of a process that is well.
 */
#ifndef MANHOLE_STACKS_LOOK_C
#define MANHOLE_STACKS_LOOK_C

#include "../base/compat.c"
#include "../base/state.c"
#include "../base/basics.c"
#include "../base/library.c"
#include "copy.c"
#include "sources.c"
#include "model.c"

enum {
    /* What describing may keep other threads from running, in one go: as long as a thread of
     * Python's own that computes. */
    HOLD_MS = 5,
};

/* ---- The look ------------------------------------------------------------------------ */

/* Of a position that is known already no more than its index is noted: code and globals are given
 * back at once. Returns false without memory. */
ATTACHED static bool
record_frame(struct stacks *stacks, PyFrameObject *frame)
{
    OWNED PyObject *code = (PyObject *)PyFrame_GetCode(frame);
    struct code_position *position = add_frame(
        stacks, &(struct position_key){(PyCodeObject *)code, get_instruction(frame),
                                       .line = {NULL, 0}});
    if (position != NULL && position->globals == NULL) { /* it is new */
        position->key.code = (PyCodeObject *)steal_reference(&code);
        position->globals = get_globals(frame);
    }
    return position != NULL;
}

/* Records a frame and all outside it. Returns how many those are, as far as there was memory. */
ATTACHED static size_t
record_stack(struct stacks *stacks, PyObject *top)
{
    const size_t first = stacks->frame_count;
    PyFrameObject *frame = (PyFrameObject *)Py_NewRef(top); /* owned */
    while (frame != NULL && record_frame(stacks, frame)) {
        PyFrameObject *back = PyFrame_GetBack(frame);
        Py_DECREF(frame);
        frame = back;
    }
    Py_XDECREF(frame);
    return stacks->frame_count - first;
}

/* The topmost frame of each thread of our interpreter, by ident. Returns a new dict, or NULL with
 * an exception. */
ATTACHED static PyObject *
collect_own_frames(void)
{
    OWNED PyObject *frames = PyDict_New();
    PyThreadState *tstate = PyInterpreterState_ThreadHead(PyInterpreterState_Get());
    for (; frames != NULL && tstate != NULL; tstate = PyThreadState_Next(tstate)) {
        OWNED PyObject *frame = (PyObject *)PyThreadState_GetFrame(tstate);
        if (frame == NULL) {
            continue;
        }
        OWNED PyObject *ident = PyLong_FromUnsignedLong(tstate->thread_id);
        if (ident == NULL || PyDict_SetItem(frames, ident, frame) < 0) {
            return NULL;
        }
    }
    return steal_reference(&frames);
}

/* In a frozen copy our own frames stand on those of the thread that it has taken over. Returns 0,
 * or -1 with an exception. */
ATTACHED static int
show_taken_over(PyObject *frames)
{
    if (frozen.ident == NULL) {
        return 0;
    }
    if (frozen.frame != NULL) {
        return PyDict_SetItem(frames, frozen.ident, frozen.frame);
    }
    const int is_there = PyDict_Contains(frames, frozen.ident); /* if Python runs, here */
    return is_there == 1 ? PyDict_DelItem(frames, frozen.ident) : is_there;
}

/* The topmost frame of each thread, by ident; of other interpreters too, where that is safe.
 * Nothing in it lets go of the GIL, where there is one. Returns a new dict, or NULL with an
 * exception. */
ATTACHED static PyObject *
collect_frames(void)
{
    if (!may_ask_for_frames()) {
        return collect_own_frames();
    }
    PyObject *current_frames = PySys_GetObject("_current_frames"); /* borrowed */
    if (current_frames == NULL) {
        PyErr_SetString(PyExc_RuntimeError, "sys._current_frames is gone");
        return NULL;
    }
    OWNED PyObject *frames = PyObject_CallNoArgs(current_frames);
    return frames == NULL || show_taken_over(frames) < 0 ? NULL
                                                         : steal_reference(&frames);
}

/* Returns 0, or -1 with an exception. */
ATTACHED static int
record_threads(struct stacks *stacks)
{
    const unsigned long holder =
        frozen.original != 0 ? frozen.holder : PyThread_get_thread_ident();
    OWNED PyObject *frames = collect_frames();
    if (frames == NULL) {
        return -1;
    }

    PyObject *ident = NULL; /* borrowed */
    PyObject *top = NULL;   /* borrowed */
    Py_ssize_t next = 0;
    while (PyDict_Next(frames, &next, &ident, &top)) {
        struct thread_stack *thread = add_thread(stacks, PyLong_AsUnsignedLong(ident));
        if (thread != NULL) {
            thread->is_shown = true;
            thread->holds_gil = thread->ident == holder ? ANSWER_YES : ANSWER_NO;
            thread->count = record_stack(stacks, top);
        }
    }
    if (stacks->failed) {
        PyErr_NoMemory();
        return -1;
    }
    return 0;
}

/* Notes what the kernel calls the threads of our interpreter, as CPython has it. They are in the
 * list as in the look, but for those without a frame: so each is found where the last one was. */
ATTACHED static void
note_native_ids(struct stacks *stacks)
{
    PyThreadState *tstate = PyInterpreterState_ThreadHead(PyInterpreterState_Get());
    size_t next = 0;
    for (; tstate != NULL; tstate = PyThreadState_Next(tstate)) {
        size_t i = next;
        while (i < stacks->thread_count &&
               stacks->threads[i].ident != tstate->thread_id) {
            i++;
        }
        if (i < stacks->thread_count) {
            stacks->threads[i].native_id = native_id_of(tstate);
            next = i + 1;
        }
    }
}

/* One look at all threads. Returns 0, or -1 with an exception. */
ATTACHED static int
look_at_threads(struct stacks *stacks)
{
    bool collecting = pause_gc();
    int result = record_threads(stacks);
    resume_gc(collecting);
    return result;
}

/* ---- What threading says of a thread ------------------------------------------------- */

/* A str as UTF-8, for free_text(). Its bytes are NULL when it is no str. What has no UTF-8 (lone
 * surrogates) becomes \udcff. Never raises. */
ATTACHED static struct text
copy_str(PyObject *str /* or NULL */)
{
    struct text text = {0};
    if (str != NULL && PyUnicode_Check(str)) {
        append_str(&text, str);
        append_bytes(&text, "",
                     1); /* so that C can read it, and an empty one has bytes */
        text.length -= text.length > 0;
    }
    return text;
}

/* threading._active, when threading is imported. Returns a new reference, or NULL; never raises. */
ATTACHED static PyObject *
get_active_threads(void)
{
    PyObject *modules = PyImport_GetModuleDict();                     /* borrowed */
    PyObject *threading = PyDict_GetItemString(modules, "threading"); /* borrowed */
    PyObject *active =
        threading == NULL ? NULL : PyObject_GetAttrString(threading, "_active"); /* new */
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
    PyObject *modules = PyImport_GetModuleDict();                     /* borrowed */
    PyObject *threading = PyDict_GetItemString(modules, "threading"); /* borrowed */
    OWNED PyObject *main_thread = find_attribute(threading, "_main_thread");
    return main_thread == thread;
}

/* Adds what threading says of a thread. Never raises. */
ATTACHED static void
describe_thread(struct thread_stack *stack, PyObject *active /* dict, or NULL */)
{
    OWNED PyObject *ident = PyLong_FromUnsignedLong(stack->ident);
    OWNED PyObject *thread =
        active == NULL || ident == NULL ? NULL : PyObject_GetItem(active, ident);
    PyErr_Clear();
    if (thread == NULL) { /* started in C: the kernel's number is all */
        return;
    }

    OWNED PyObject *name = get_thread_property(thread, "_name", "name");
    stack->name = copy_str(name);

    OWNED PyObject *native_id = get_thread_property(thread, "_native_id", "native_id");
    if (native_id != NULL && PyLong_Check(native_id)) {
        stack->native_id = PyLong_AsUnsignedLongMask(native_id);
    }
    if (is_main_thread(thread) && !is_task(process_id(), stack->native_id)) {
        stack->native_id =
            (unsigned long)process_id(); /* threading has it of before a fork */
    }

    OWNED PyObject *daemon = get_thread_property(thread, "_daemonic", "daemon");
    if (daemon != NULL && PyBool_Check(daemon)) {
        stack->daemon = daemon == Py_True ? ANSWER_YES : ANSWER_NO;
    }
    PyErr_Clear();
}

/* ---- Lines that Python alone has ----------------------------------------------------- */

/* Whether this file is the module's own. Code that was compiled under another name, as templates
 * are, has the globals of a module whose loader knows nothing of it. Never raises. */
ATTACHED static bool
is_module_of(PyObject *globals, PyObject *filename)
{
    OWNED PyObject *file = PyMapping_GetItemString(globals, "__file__");
    bool same = file != NULL && PyObject_RichCompareBool(file, filename, Py_EQ) == 1;
    PyErr_Clear();
    return same;
}

/* Takes what is wanted of a list as linecache has it, whose lines end with a newline. Never
 * raises. */
ATTACHED static void
take_lines(struct source *source, PyObject *lines)
{
    const Py_ssize_t count = PyList_Check(lines) ? PyList_GET_SIZE(lines) : 0;
    forget_lines(source);
    for (size_t i = 0; i < source->line_count; i++) {
        struct source_line *wanted = &source->lines[i];
        if (wanted->number <= count) {
            wanted->text = copy_str(PyList_GET_ITEM(lines, wanted->number - 1));
        }
        if (wanted->text.bytes != NULL) {
            wanted->text.length = strcspn(wanted->text.bytes, "\n");
        }
    }
}

/* Takes what linecache has of no file: what was typed, a doctest's, what attrs has made. It is
 * asked for what it has, and that alone. Never raises. */
ATTACHED static void
take_kept_lines(struct source *source, PyObject *filename)
{
    PyObject *modules = PyImport_GetModuleDict();                     /* borrowed */
    PyObject *linecache = PyDict_GetItemString(modules, "linecache"); /* borrowed */
    OWNED PyObject *cache = linecache != NULL && PyModule_Check(linecache)
                                ? find_attribute(linecache, "cache")
                                : NULL;
    PyObject *entry = cache != NULL && PyDict_Check(cache)
                          ? PyDict_GetItemWithError(cache, filename)
                          : NULL; /* borrowed: (size, mtime, lines, filename) */
    if (entry != NULL && PyTuple_Check(entry) && PyTuple_GET_SIZE(entry) == 4 &&
        PyTuple_GET_ITEM(entry, 1) == Py_None) {
        take_lines(source, PyTuple_GET_ITEM(entry, 2));
        source->loaded = true;
    }
    PyErr_Clear();
}

/* Takes the lines of a source file as linecache finds them: along sys.path, by the module's loader
 * from a zip file, say, or in another encoding. It imports what it needs, and may let others run.
 * Never raises. */
ATTACHED static void
ask_linecache(struct source *source, const struct code_position *position)
{
    PyObject *filename = position->key.code->co_filename; /* borrowed */
    OWNED PyObject *linecache = import_standard("linecache");
    if (linecache == NULL) {
        PyErr_Clear();
        return;
    }

    Py_XDECREF(PyObject_CallMethod(linecache, "checkcache", "O", filename));
    PyErr_Clear();
    if (is_module_of(position->globals, filename)) {
        Py_XDECREF(PyObject_CallMethod(linecache, "lazycache", "OO", filename,
                                       position->globals));
        PyErr_Clear();
    }
    OWNED PyObject *lines = PyObject_CallMethod(linecache, "getlines", "O", filename);
    if (lines != NULL) {
        take_lines(source, lines);
    }
    PyErr_Clear();
}

/* Finds file, function and line of a position. Never raises. */
ATTACHED static void
describe_position(struct stacks *stacks, size_t index)
{
    const struct code_position *position = &stacks->positions[index];
    if (position->key.code == NULL || position->function.bytes != NULL) {
        return; /* a copy has told it, or it is described */
    }

    PyCodeObject *code = position->key.code; /* borrowed */
    struct text path = copy_str(code->co_filename);
    if (path.failed) {
        stacks->failed = true;
        free_text(&path);
        return;
    }
    describe_as(stacks, index, path.bytes, copy_str(code->co_name),
                PyCode_Addr2Line(code, position->key.instruction));
    free_text(&path);
    OWNED PyObject *qualname = find_attribute((PyObject *)code, "co_qualname"); /* 3.11 */
    stacks->positions[index].qualname = copy_str(qualname);

    if (!stacks->positions[index].has_file) {
        return;
    }
    struct source *source = &stacks->sources.files[stacks->positions[index].source];
    source->position = index + 1;
    if (!source->loaded) {
        take_kept_lines(source, code->co_filename);
    }
}

/* ---- All of it ----------------------------------------------------------------------- */

/* All of it is C, so no switch of threads would come by itself. Returns since when the caller has
 * kept the others from running. */
ATTACHED static int64_t
let_others_run(int64_t held_since_ms)
{
    if (monotonic_ms() - held_since_ms < HOLD_MS) {
        return held_since_ms;
    }
    PyThreadState *tstate = detach();
    (void)poll(NULL, 0, 1); /* else this thread has it again before another is awake */
    reattach(tstate);
    return monotonic_ms();
}

/* A look at all threads, described. Returns 0, or -1 with an exception. */
ATTACHED static int
look_around(struct stacks *stacks)
{
    int64_t held_since_ms = monotonic_ms();
    if (look_at_threads(stacks) < 0) {
        return -1;
    }
    note_native_ids(stacks);

    PyObject *active = get_active_threads(); /* owned, or NULL */
    for (size_t i = 0; i < stacks->thread_count; i++) {
        held_since_ms = let_others_run(held_since_ms);
        describe_thread(&stacks->threads[i], active);
    }
    for (size_t i = 0; i < stacks->position_count; i++) {
        held_since_ms = let_others_run(held_since_ms);
        describe_position(stacks, i);
    }
    hide_sessions(stacks);
    Py_XDECREF(active);
    return 0;
}

/* Detaches. What the threads do, and lines of source, are found before it returns: nearly always
 * without Python, so that a look and what follows it need the GIL once. */
DETACHES static PyThreadState *
detach_with_sources(struct stacks *stacks)
{
    struct sources *sources = &stacks->sources;
    PyThreadState *tstate = detach();
    if (read_beside_python(stacks)) {
        reattach(tstate);
        for (size_t i = 0; i < sources->count; i++) {
            struct source *source = &sources->files[i];
            if (source->python_is_asked && source->position != 0) {
                source->python_is_asked = false;
                ask_linecache(source, &stacks->positions[source->position - 1]);
            }
        }
        tstate = detach();
    }
    return tstate;
}

#endif /* MANHOLE_STACKS_LOOK_C */
