/* Stack dump: what every Python thread is doing.
 * Runs on:  sessions and application threads: ATTACHED for the look, DETACHED for source files and
 *           for the text.
 * Touches:  nothing but frames, what linecache has, and the file's own structs.
 * The application stands still only for the look, which records code, globals and instruction only.
 * A client is told all that with the GIL taken once, and no module is imported for it: Python is
 * asked for those lines alone that are in no file of UTF-8.
 */
#ifndef MANHOLE_STACKS_DUMP_C
#define MANHOLE_STACKS_DUMP_C

#include "../base/compat.c"
#include "../base/state.c"
#include "../base/basics.c"
#include "../base/library.c"
#include "copy.c"
#include "copied.c"
#include "sources.c"
#include "snapshot.c"

enum {
    /* What making a dump's text may keep other threads from running, in one go: as long as a
     * thread of Python's own that computes. */
    HOLD_MS = 5,
    /* Of the table that finds the spot that a frame of a look is at. */
    SPOT_ROWS = 512,
};

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

#endif /* MANHOLE_STACKS_DUMP_C */
