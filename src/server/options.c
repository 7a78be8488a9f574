/* Options: what install() takes. One row each; parser, error text, signature and docstring all
 * come from it.
 * Runs on:  the thread that calls install(), ATTACHED.
 * Touches:  the struct options that it is given, nothing else.
 *
 * How it works. A row names the option, its parser, its default as the signature shows it, and its
 * help. All options are parsed before anything is installed, so a wrong one changes nothing. A
 * parser checks and converts one value, and has no words for what is wrong with it: it returns an
 * enum parsed, and parse_option() makes the message, which names the option, what it may be
 * (ALLOWED_parse_...) and what was given. PyArg_ParseTupleAndKeywords() would do for the parsing,
 * but its converters do not know whose value they have, and its errors do not say which options
 * there are.
 *
 * To add an option: a field in struct options, a row here, one in manhole.h, manhole.pyi and
 * docs/options.rst each.
 */
#ifndef MANHOLE_SERVER_OPTIONS_C
#define MANHOLE_SERVER_OPTIONS_C

#include "../base/compat.c"
#include "../base/state.c"
#include "../base/basics.c"
#include "../door/tcp.c"
#include "../door/socket.c"

/* X(name, parser, default as Python has it, help)
 * The first three may go without their names, as with python-manhole. */
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
  X(audit, parse_bool, "True",                                                           \
    "with verbose, log who runs what: the first line of each statement and program")     \
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
    if (value != Py_None && !PyLong_Check(value)) {
        return PARSED_WRONG_TYPE;
    }
    int is_true = PyObject_IsTrue(value); /* a subclass may say what it likes */
    if (is_true < 0) {
        return PARSED_FAILED;
    }
    *field = is_true;
    return PARSED_OK;
}

/* Any number, but no bool, which is an int, too: timeout=True is a mistake. */
ATTACHED static enum parsed
parse_seconds(PyObject *value, void *target)
{
    double *field = target;
    if ((!PyFloat_Check(value) && !PyLong_Check(value)) || PyBool_Check(value)) {
        return PARSED_WRONG_TYPE;
    }
    double seconds = PyFloat_AsDouble(value);
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
    if (!PyLong_Check(value) || PyBool_Check(value)) {
        return PARSED_WRONG_TYPE;
    }
    long count = PyLong_AsLong(value);
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
    OWNED PyObject *module = PyImport_ImportModule("_signal");
    OWNED PyObject *upper =
        module == NULL ? NULL : PyObject_CallMethod(name, "upper", NULL);
    const char *text = upper == NULL ? NULL : PyUnicode_AsUTF8(upper);
    char full[32];
    if (text == NULL) {
        PyErr_Clear();
        return PARSED_WRONG_VALUE;
    }
    /* SIG_BLOCK and the like are no signals; nor is what has a NUL in it, or no end. */
    if (strchr(text, '_') != NULL || strlen(text) >= sizeof(full) - 3 ||
        strlen(text) != (size_t)PyUnicode_GET_LENGTH(upper)) {
        return PARSED_WRONG_VALUE;
    }
    (void)snprintf(full, sizeof(full), "%s%s", strncmp(text, "SIG", 3) == 0 ? "" : "SIG",
                   text);
    OWNED PyObject *number = PyObject_GetAttrString(module, full);
    if (number == NULL) {
        PyErr_Clear();
        return PARSED_WRONG_VALUE;
    }
    *field = (int)PyLong_AsLong(number);
    return PARSED_OK;
}

ATTACHED static enum parsed
parse_any_signal(PyObject *value, int *field)
{
    sigset_t set;
    if (PyUnicode_Check(value)) {
        return parse_signal_name(value, field);
    }
    if (!PyLong_Check(value) || PyBool_Check(value)) {
        return PARSED_WRONG_TYPE;
    }
    long number = PyLong_AsLong(value);
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
    enum parsed parsed = value == Py_None ? PARSED_OK : parse_any_signal(value, &number);
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

/* Which signals are blocked in our threads: all, so that no handler of the application's runs in
 * one, unless it says which. */
ATTACHED static enum parsed
parse_signals(PyObject *value, void *target)
{
    sigset_t *field = target;
    PyObject *item = NULL; /* owned */
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

    OWNED PyObject *iterator = PyUnicode_Check(value) ? NULL : PyObject_GetIter(value);
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
    spare_faults(field);
    return PyErr_Occurred() ? PARSED_FAILED : parsed;
}

/* A descriptor is kept with what it is now; an object is asked for its write() at each line. */
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
    OWNED PyObject *bytes = NULL;
    if (!PyUnicode_FSConverter(value, &bytes)) {
        if (PyErr_ExceptionMatches(PyExc_TypeError)) {
            PyErr_Clear();
            return PARSED_WRONG_TYPE;
        }
        return PARSED_FAILED;
    }

    size_t length = expand_path(PyBytes_AS_STRING(bytes), NULL, 0);
    if (length == 0 || length >= SOCKET_PATH_SIZE) {
        PyErr_Format(
            PyExc_ValueError,
            "install() option '%s' is %zu bytes long; a socket's path may have 1 "
            "to %d",
            option, length, SOCKET_PATH_SIZE - 1);
        return PARSED_FAILED;
    }
    *copy = strdup(PyBytes_AS_STRING(bytes));
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
    size_t digits = strspn(colon + 1, "0123456789");
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

/* HOST:PORT. The name is looked up detached: that may take seconds, of which the other threads are
 * to notice nothing. */
ATTACHED static enum parsed
parse_address(PyObject *value, union address *address)
{
    const struct addrinfo hints = {.ai_family = AF_UNSPEC, .ai_socktype = SOCK_STREAM};
    struct addrinfo *found = NULL; /* owned */
    char host[NI_MAXHOST];
    uint16_t port = 0;
    const char *text = PyUnicode_AsUTF8(value);
    if (text == NULL) {
        return PARSED_FAILED;
    }
    if (!split_address(text, host, sizeof(host), &port)) {
        return PARSED_WRONG_VALUE;
    }

    PyThreadState *tstate = detach();
    int error = getaddrinfo(host, NULL, &hints, &found);
    reattach(tstate);
    if (error != 0) {
        PyErr_Format(PyExc_ValueError, "install() option 'listen' is %R, but %s: %s",
                     value, host, gai_strerror(error));
        return PARSED_FAILED;
    }
    enum parsed parsed = choose_address(found, port, address);
    freeaddrinfo(found);
    return parsed;
}

/* An address, or what has a slash in it or is no str: a path. */
ATTACHED static enum parsed
parse_endpoint(PyObject *value, struct endpoints *endpoints)
{
    struct endpoint *endpoint = &endpoints->rows[endpoints->count];
    enum parsed parsed = PARSED_OK;
    if (endpoints->count == MAX_ENDPOINTS) {
        return PARSED_WRONG_VALUE;
    }
    *endpoint = (struct endpoint){.path = NULL};
    if (PyUnicode_Check(value) &&
        PyUnicode_FindChar(value, '/', 0, PyUnicode_GetLength(value), 1) < 0) {
        parsed = parse_address(value, &endpoint->address);
    }
    else {
        parsed = copy_path(value, "listen", &endpoint->path);
    }
    endpoints->count += parsed == PARSED_OK;
    return parsed;
}

/* One endpoint, or a list or tuple of them. All are parsed before the field changes. */
ATTACHED static enum parsed
parse_listen(PyObject *value, void *target)
{
    struct endpoints *field = target;
    struct endpoints endpoints = {0};
    const bool is_list = PyList_Check(value) || PyTuple_Check(value);
    OWNED PyObject *rows = is_list            ? PySequence_Tuple(value)
                           : value == Py_None ? PyTuple_New(0)
                                              : PyTuple_Pack(1, value);
    if (rows == NULL) {
        return PARSED_FAILED;
    }
    if (is_list && PyTuple_GET_SIZE(rows) == 0) {
        return PARSED_WRONG_VALUE;
    }

    enum parsed parsed = PARSED_OK;
    for (Py_ssize_t i = 0; parsed == PARSED_OK && i < PyTuple_GET_SIZE(rows); i++) {
        parsed = parse_endpoint(PyTuple_GET_ITEM(rows, i), &endpoints);
    }
    if (parsed == PARSED_OK) {
        free_endpoints(field);
        *field = endpoints;
    }
    else {
        free_endpoints(&endpoints);
    }
    return parsed;
}

/* Kept as it is, not copied: a session's console reads it when its client comes. */
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

/* A word that an option may have, and what it stands for. */
struct word {
    const char *text;
    unsigned meaning;
};

/* The row of this word; NULL: it is none of them. */
ATTACHED static const struct word *
find_word(PyObject *value, const struct word *words, size_t count)
{
    for (size_t i = 0; i < count && PyUnicode_Check(value); i++) {
        if (PyUnicode_CompareWithASCIIString(value, words[i].text) == 0) {
            return &words[i];
        }
    }
    return NULL;
}

/* A callable first: an object of a subclass of str may be one. */
ATTACHED static enum parsed
parse_handler(PyObject *value, void *target)
{
    static const struct word words[] = {
        {"repl", HANDLER_REPL}, {"exec", HANDLER_EXEC}, {"commands", HANDLER_COMMANDS}};
    struct handler *field = target;
    if (PyCallable_Check(value)) {
        field->kind = HANDLER_CALLABLE;
        Py_XSETREF(field->callable, Py_NewRef(value));
        return PARSED_OK;
    }
    if (!PyUnicode_Check(value)) {
        return PARSED_WRONG_TYPE;
    }
    const struct word *word = find_word(value, words, Py_ARRAY_LENGTH(words));
    if (word == NULL) {
        return PARSED_WRONG_VALUE;
    }
    field->kind = (enum handler_kind)word->meaning;
    return PARSED_OK;
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

/* Names in an iterable, or in one text with commas or blanks between them. */
ATTACHED static enum parsed
parse_features(PyObject *value, void *target)
{
    static const struct word words[] = {{"console", FEATURE_CONSOLE},
                                        {"debugger", FEATURE_DEBUGGER}};
    unsigned *field = target;
    unsigned bits = 0;
    if (value == Py_None) {
        *field = 0;
        return PARSED_OK;
    }
    OWNED PyObject *spaced = PyUnicode_Check(value)
                                 ? PyObject_CallMethod(value, "replace", "ss", ",", " ")
                                 : Py_NewRef(value);
    OWNED PyObject *names = spaced == NULL           ? NULL
                            : PyUnicode_Check(value) ? PyUnicode_Split(spaced, NULL, -1)
                                                     : PySequence_List(spaced);
    if (names == NULL) {
        PyErr_Clear();
        return PARSED_WRONG_TYPE;
    }
    for (Py_ssize_t i = 0; i < PyList_GET_SIZE(names); i++) {
        const struct word *word =
            find_word(PyList_GET_ITEM(names, i), words, Py_ARRAY_LENGTH(words));
        if (word == NULL) {
            return PARSED_WRONG_VALUE;
        }
        bits |= word->meaning;
    }
    *field = bits;
    return PARSED_OK;
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

/* The defaults of the rows above, as C has them; what is not named is 0, NULL, None. */
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
        .audit = 1,
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
    if (parsed == PARSED_WRONG_TYPE || parsed == PARSED_WRONG_VALUE) {
        PyErr_Format(parsed == PARSED_WRONG_TYPE ? PyExc_TypeError : PyExc_ValueError,
                     "install() option '%s' must be %s, not %R", row->name, row->allowed,
                     value);
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

/* An option by its name, which none of the first positional may have. */
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

#endif /* MANHOLE_SERVER_OPTIONS_C */
