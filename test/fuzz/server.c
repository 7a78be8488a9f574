/* server.c - fuzz targets of manhole.c: what clients, files, the kernel, a frozen copy tell it. */
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <fcntl.h>
#include <netdb.h>
#include <stdio.h>

/* ---- The outside world, as far as a target plays it ----------------------------------------- */

static int open_file(const char *path, int flags);
static FILE *open_stream(const char *path, const char *mode);
static int find_address(const char *host, const char *service,
                        const struct addrinfo *hints, struct addrinfo **found);

#define open open_file
#define fopen open_stream
#define getaddrinfo find_address
#include "../../manhole.c"
#undef open
#undef fopen
#undef getaddrinfo

#include "fuzz.h"

/* Any file is the input's. */
static int
open_file(const char *path, int flags)
{
    return open(file_path[0] != '\0' ? file_path : path, flags);
}

static FILE *
open_stream(const char *path, const char *mode)
{
    return fopen(file_path[0] != '\0' ? file_path : path, mode);
}

/* Numbers and localhost: nobody is asked. */
static int
find_address(const char *host, const char *service, const struct addrinfo *hints,
             struct addrinfo **found)
{
    struct addrinfo numeric = *hints;
    numeric.ai_flags = AI_NUMERICHOST;
    return getaddrinfo(strcmp(host, "localhost") == 0 ? "127.0.0.1" : host, service,
                       &numeric, found);
}

/* What Python says of an answer. */
static const char helpers_source[] =
    "import ast, codecs, json, os, warnings\n"
    "warnings.simplefilter('ignore')\n"
    "codecs.register_error('each', lambda e: ('\\ufffd' * (e.end - e.start), e.end))\n"
    "def is_json_of(text, given):\n"
    "    return json.loads(text) == given.decode('utf-8', 'each')\n"
    "def is_snapshot(text):\n"
    "    threads = json.loads(text)['threads']\n"
    "    return all(type(f['line']) is int and type(f['file']) is str\n"
    "               for t in threads for f in t['frames'])\n"
    "def is_utf8(text):\n"
    "    return text.decode() is not None\n"
    "class Rude:\n"
    "    def __repr__(self):\n"
    "        raise KeyboardInterrupt\n"
    "def make_environ(given):\n"
    "    words = given.split(b'\\0')\n"
    "    makers = (lambda b: b.decode('latin-1'), bytes, len, lambda b: Rude(),\n"
    "              lambda b: b.decode('utf-8', 'surrogateescape'))\n"
    "    pairs = zip(words[::2], words[1::2])\n"
    "    return {makers[len(v) % 3 if len(k) % 7 == 6 else 0](k): makers[len(k) % 5](v)\n"
    "            for k, v in pairs}\n"
    "def is_literal_call(text):\n"
    "    try:\n"
    "        call = ast.parse(f'install({text})', mode='eval').body\n"
    "        if type(call) is not ast.Call or type(call.func) is not ast.Name:\n"
    "            return False\n"
    "        for node in call.args + [k.value for k in call.keywords if k.arg]:\n"
    "            ast.literal_eval(node)\n"
    "        return call.func.id == 'install' and all(k.arg for k in call.keywords)\n"
    "    except (SyntaxError, ValueError, TypeError, RecursionError, MemoryError):\n"
    "        return False\n"
    "def install(*arguments, **keywords):\n"
    "    return arguments, keywords\n"
    "def is_program(given):\n"
    "    return len(given) > 3 and 0 < given.find(0, 4) + 1 <= 4 + "
    "int.from_bytes(given[:4], 'big') <= min(len(given), 4 + 2 ** 24)\n"
    "def is_argv_of(argv, given):\n"
    "    given = given[4:4 + int.from_bytes(given[:4], 'big')]\n"
    "    return [os.fsencode(a) for a in argv] == given.split(b'\\0')[1:-1]\n"
    "def are_matches_of(answer, word):\n"
    "    lines = answer.decode().split('\\n')[:-1]\n"
    "    return all(l.startswith(word.decode()) for l in lines) and len(lines) <= 500\n"
    "names = {'alpha': 1, 'alphabet': 'x', 'a_dict': {}, '\\xe9t\\xe9': [], 'none': "
    "None}\n"
    "words = tuple(names)\n";

static PyObject *helpers; /* owned module, with what that defines */

/* Returns what a helper makes of the arguments, new; ends the target when it raises. */
ATTACHED static PyObject *
ask(const char *name, const char *format, ...)
{
    va_list values;
    PyObject *function = PyObject_GetAttrString(helpers, name); /* owned */
    PyObject *arguments = NULL;                                 /* owned */
    PyObject *answer = NULL;                                    /* new */
    va_start(values, format);
    arguments = Py_VaBuildValue(format, values);
    va_end(values);
    answer = function == NULL || arguments == NULL
                 ? NULL
                 : PyObject_CallObject(function, arguments);
    if (answer == NULL) {
        PyErr_Print();
    }
    MUST(answer != NULL);
    Py_XDECREF(function);
    Py_XDECREF(arguments);
    return answer;
}

ATTACHED static bool
is_true(PyObject *answer /* new: taken over */)
{
    bool truth = PyObject_IsTrue(answer) == 1;
    Py_DECREF(answer);
    return truth;
}

ATTACHED static bool
is_utf8(const struct text *text)
{
    return is_true(ask("is_utf8", "(y#)", text->bytes, (Py_ssize_t)text->length));
}

/* Takes the exception that there must be. Returns whether it is of this type. */
ATTACHED static bool
has_raised(PyObject *type)
{
    bool is_it = PyErr_ExceptionMatches(type) != 0;
    if (!is_it) {
        PyErr_Print();
    }
    PyErr_Clear();
    return is_it;
}

/* ---- Clients: who they say they are --------------------------------------------------------- */

/* A calling card, as accept() hands it over: the name, without what the kernel keeps before it. */
static void
fuzz_card(const char *bytes, size_t length)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    socklen_t size = (socklen_t)(offsetof(struct sockaddr_un, sun_path) + length);
    struct card card;
    char name[2 * sizeof(address.sun_path)] = "";
    memcpy(address.sun_path, bytes, length);
    card = read_card(&address, size);
    MUST(memchr(card.id, '\0', sizeof(card.id)) != NULL);
    MUST(strpbrk(card.channel, "./") == NULL);
    MUST((card.id[0] == '\0') <= (card.channel[0] == '\0'));
    if (card.id[0] != '\0') {
        (void)snprintf(name, sizeof(name), "manhole-cli/%s/%s", card.id, card.channel);
        MUST(length > strlen(name) && memcmp(bytes + 1, name, strlen(name)) == 0);
        MUST(length == strlen(name) + 1 || strchr(".", bytes[1 + strlen(name)]) != NULL);
    }
    MUST(find_channel(card.channel) == &plain_channel ||
         strcmp(find_channel(card.channel)->name, card.channel) == 0);
}

/* ---- Clients: telnet ------------------------------------------------------------------------ */

static struct session telnet_session;

/* Appends what has come to the other end of a socket. */
static void
drain(int fd, struct text *text)
{
    char piece[4096];
    ssize_t got = 0;
    while ((got = recv(fd, piece, sizeof(piece), MSG_DONTWAIT)) > 0) {
        append_bytes(text, piece, (size_t)got);
    }
}

/* Has a session take bytes from a TCP client, in pieces. Fills in what it reads of them, and what
 * the client is answered. */
DETACHED static void
take_in_pieces(const char *bytes, size_t length, uint32_t seed, struct text *plain,
               struct text *answers)
{
    struct telnet telnet = {.state = TELNET_TEXT};
    int client[2];
    int inner[2];
    bool more = true;
    /* As recv() gives at once; or so few that all answers fit the socket. */
    size_t most = length == 0 || memchr(bytes, TELNET_IAC, length) == NULL ? 4096 : 512;
    MUST(socketpair(AF_UNIX, SOCK_STREAM, 0, client) == 0);
    MUST(socketpair(AF_UNIX, SOCK_STREAM, 0, inner) == 0);
    keep_fd(&telnet_session.fd, client[0]);
    keep_fd(&telnet_session.plain_fd, inner[0]);
    keep_fd(&telnet_session.telnet_fd, inner[1]);
    for (size_t kept = 0; more && length > 0;) {
        size_t piece = next_piece(&seed, length < most ? length : most);
        more =
            decode_bytes(&telnet_session, &telnet, (const unsigned char *)bytes, piece);
        MUST(has_room(&telnet));
        bytes += piece;
        length -= piece;
        kept += piece;
        if (kept >= 64) { /* seldom, for it takes longer than all else */
            drain(inner[0], plain);
            drain(client[1], answers);
            kept = 0;
        }
    }
    if (!telnet.checked) { /* as telnet_main() at the end */
        telnet.checked = true;
        (void)pass_text(&telnet_session, &telnet);
    }
    drain(inner[0], plain);
    drain(client[1], answers);
    for (size_t i = 0; i < 2; i++) {
        (void)close(client[i]);
        (void)close(inner[i]);
    }
}

static bool
is_same(const struct text *one, const struct text *other)
{
    return one->length == other->length &&
           (one->length == 0 || memcmp(one->bytes, other->bytes, one->length) == 0);
}

/* Whether there is nothing but text: none of telnet's commands, no Ctrl-C, no Ctrl-D. */
static bool
is_without_commands(const struct text *input)
{
    bool is_text = input->length > 0;
    for (size_t i = 0; i < input->length; i++) {
        is_text =
            is_text &&
            strchr("\xff\3\4", input->bytes[i] == '\0' ? ' ' : input->bytes[i]) == NULL;
    }
    return is_text;
}

/* That text with its lines' ends made \n, whichever of the three they were. A NUL is put behind. */
static struct text
lines_of(const struct text *input)
{
    struct text lines = {0};
    for (size_t i = 0; i < input->length; i++) {
        bool is_return = input->bytes[i] == '\r';
        append_bytes(&lines, is_return ? "\n" : input->bytes + i, 1);
        i += is_return && i + 1 < input->length &&
             (input->bytes[i + 1] == '\n' || input->bytes[i + 1] == '\0');
    }
    append_bytes(&lines, "", 1);
    lines.length--;
    return lines;
}

/* The first byte says how the rest is cut, and how often it comes: more than fits telnet.text. */
DETACHED static void
fuzz_telnet(const char *bytes, size_t length)
{
    struct text input = {0};
    struct text whole[2] = {{0}};
    struct text pieces[2] = {{0}};
    uint32_t seed = length == 0 ? 0 : (unsigned char)bytes[0];
    for (uint32_t i = 0; length > 1 && i <= (seed >= 0xf8 ? 7 : 0); i++) {
        append_bytes(&input, bytes + 1, length - 1);
    }
    take_in_pieces(input.bytes, input.length, 0, &whole[0], &whole[1]);
    take_in_pieces(input.bytes, input.length, seed, &pieces[0], &pieces[1]);
    MUST(is_same(&whole[0], &pieces[0]));
    MUST(is_same(&whole[1], &pieces[1]) ||
         whole[0].length == 0); /* turned away earlier */
    MUST(whole[0].length == 0 || memchr(whole[0].bytes, '\r', whole[0].length) == NULL);
    MUST(whole[0].length <= 2 * input.length);
    MUST(whole[1].length % 3 == 0);
    if (is_without_commands(&input)) {
        struct text lines = lines_of(&input);
        bool is_http =
            starts_with(&(struct slice){lines.bytes, lines.length}, "POST /") &&
            memchr(lines.bytes, '\n', lines.length) != NULL && /* else there is no code */
            memmem(lines.bytes, strcspn(lines.bytes, "\n"), " HTTP/", 6) != NULL;
        MUST(whole[1].length <= 3); /* asked for binary, at most */
        MUST(is_same(&whole[0], &lines) ? !is_http : whole[0].length == 0);
        MUST(is_same(&whole[0], &lines) ||
             (lines.bytes[0] >= 'A' && lines.bytes[0] <= 'Z'));
        free_text(&lines);
    }
    free_text(&input);
    for (size_t i = 0; i < 2; i++) {
        free_text(&whole[i]);
        free_text(&pieces[i]);
    }
}

/* ---- The kernel: /proc and netlink ---------------------------------------------------------- */

DETACHED static void
fuzz_proc(const char *bytes, size_t length)
{
    struct text text = {0};
    (void)file_with(bytes, length);
    const struct kernel_state kernel = read_kernel_state(12);
    const struct kernel_state named = read_named_state(12);
    append_kernel_state(&text, 12, &kernel);
    MUST(named.command[0] == '\0');
    MUST(!text.failed && text.length < 512);
    /* No name, where comm is an empty line. */
    MUST(memcmp(text.bytes, "TID 12 (", 8) == 0 ||
         memcmp(text.bytes, "TID 12, ", 8) == 0);
    MUST(memchr(text.bytes, '\n', text.length) == NULL);
    MUST(memchr(text.bytes, '\0', text.length) == NULL);
    free_text(&text);
}

/* A list of TCP sockets in which 127.0.0.1:1 may be connected to 127.0.0.1:2. */
DETACHED static void
fuzz_tcp(const char *bytes, size_t length)
{
    static const char line[] = " 0100007F:0001 0100007F:0002 ";
    struct ends ends = {.own.any.sa_family = AF_INET};
    struct far_socket found = {0};
    ends.far = ends.own;
    ends.own.v4.sin_addr.s_addr = ends.far.v4.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    ends.own.v4.sin_port = htons(2);
    ends.far.v4.sin_port = htons(1);
    (void)file_with(bytes, length);
    if (search_proc(&ends, &found) == 0) {
        const char *local = memmem(bytes, length, "0100007F:0001 ", 14);
        MUST(local != NULL);
        MUST(memmem(local, length - (size_t)(local - bytes), "0100007F:0002", 13) !=
             NULL);
    }
    else {
        MUST(errno == ENOENT || errno == ETIMEDOUT);
    }
    MUST(sizeof(line) > 1);
}

static void
fuzz_netlink(const char *bytes, size_t length)
{
    struct ends ends = {.own.any.sa_family = AF_INET};
    struct far_socket found = {0};
    union diagnosis *answer = calloc(1, sizeof(*answer)); /* owned */
    const struct inet_diag_msg *message = NULL;
    MUST(answer != NULL);
    message = NLMSG_DATA(&answer->header);
    ends.own.v4.sin_port = htons(2);
    ends.far.v4.sin_port = htons(1);
    memcpy(answer->bytes, bytes, length);
    if (read_diagnosis(answer, length, &ends, &found) == 0) {
        MUST(length >= NLMSG_LENGTH(sizeof(*message)));
        MUST(answer->header.nlmsg_type == SOCK_DIAG_BY_FAMILY);
        MUST(message->id.idiag_sport == htons(1) && message->id.idiag_dport == htons(2));
        MUST(found.uid == message->idiag_uid && found.inode == message->idiag_inode);
    }
    else {
        MUST(found.inode == 0 && found.uid == 0);
    }
    free(answer);
}

/* ---- The frozen copy's text ----------------------------------------------------------------- */

/* What any source file has in it. */
static const char source_file[] = "one\n\ttwo \n\n\xff\xfe\x1b[31m\nfive\r\n\"six\\";

/* Checks that all that is shown of a frame is of the text, or of a source. */
static void
check_stacks(const struct stacks *stacks)
{
    const struct text *copy = &stacks->copy;
    MUST(stacks->thread_count <= copy->length && stacks->frame_count <= copy->length);
    for (size_t i = 0; i < stacks->thread_count; i++) {
        const struct thread_stack *thread = &stacks->threads[i];
        MUST(thread->ident != 0);
        MUST(thread->first + thread->count <= stacks->frame_count);
    }
    for (size_t i = 0; i < stacks->position_count; i++) {
        const struct slice *line = &stacks->positions[i].key.line;
        MUST((line->length >= 14 && memcmp(line->bytes, "  <its frames ", 14) == 0) ||
             (line->bytes >= copy->bytes &&
              line->bytes + line->length <= copy->bytes + copy->length));
    }
}

DETACHED
CHECKED(no_thread_safety_analysis)
static void
fuzz_snapshot(const char *bytes, size_t length)
{
    struct stacks stacks = {
        .is_frozen = true,
        .copy = {.bytes = copy_of(bytes, length), .length = length + 1},
    };
    struct text json = {0};
    struct text dump = {0};
    (void)file_with(source_file, sizeof(source_file) - 1);
    read_copy(&stacks);
    (void)end_reading(&stacks.sources, begin_reading(&stacks.sources));
    check_stacks(&stacks);
    append_json(&json, &stacks);
    MUST(is_true(ask("is_snapshot", "(y#)", json.bytes, (Py_ssize_t)json.length)));
    append_threads(&dump, &stacks);
    for (size_t i = 0; i < stacks.thread_count; i++) {
        MUST(stacks.threads[i].group <= i);
    }
    free_text(&json);
    free_text(&dump);
    free_stacks(&stacks);
}

/* ---- JSON, environ -------------------------------------------------------------------------- */

ATTACHED static void
fuzz_json(const char *bytes, size_t length)
{
    char *given = copy_of(bytes, length); /* owned */
    struct text text = {0};
    PyObject *str = NULL; /* owned */
    struct text name;
    append_json_string(&text, (struct slice){given, length});
    MUST(is_true(ask("is_json_of", "(y#y#)", text.bytes, (Py_ssize_t)text.length, bytes,
                     (Py_ssize_t)length)));
    free_text(&text);
    str = PyUnicode_DecodeUTF8(bytes, (Py_ssize_t)length, "surrogateescape");
    name = copy_str(str);
    append_json_text(&text, &name);
    MUST(is_utf8(&text));
    free_text(&text);
    free_text(&name);
    Py_XDECREF(str);
    free(given);
}

ATTACHED static void
fuzz_environ(const char *bytes, size_t length)
{
    PyObject *environ_dict = ask("make_environ", "(y#)", bytes, (Py_ssize_t)length);
    PyObject *described = call_part(manhole.module, &requests_part, "describe_environ",
                                    environ_dict, NULL); /* owned */
    const char *text = described == NULL ? NULL : PyUnicode_AsUTF8(described);
    Py_ssize_t lines = 0;
    MUST(text != NULL);
    for (; *text != '\0'; text++) {
        lines += *text == '\n';
    }
    MUST(lines >= PyDict_Size(environ_dict));
    Py_DECREF(described);
    Py_DECREF(environ_dict);
}

/* ---- Options, configuration file ------------------------------------------------------------ */

static void
check_endpoints(const struct endpoints *endpoints)
{
    MUST(endpoints->count <= MAX_ENDPOINTS);
    for (size_t i = 0; i < endpoints->count; i++) {
        const struct endpoint *endpoint = &endpoints->rows[i];
        if (endpoint->path == NULL) {
            MUST(is_loopback(&endpoint->address));
        }
        else {
            MUST(endpoint->path[0] != '\0' &&
                 expand_path(endpoint->path, NULL, 0) < SOCKET_PATH_SIZE);
        }
    }
}

static void
check_options(const struct options *options)
{
    const double seconds[] = {options->reinstall_delay, options->start_timeout,
                              options->oneshot_timeout, options->hang_timeout};
    check_endpoints(&options->listen);
    MUST(options->max_sessions >= 1 && options->max_sessions <= MAX_SESSIONS);
    MUST(options->activate_on >= 0 && options->activate_on <= SIGRTMAX);
    MUST(options->oneshot_on >= 0 && options->oneshot_on <= SIGRTMAX);
    MUST((options->enable & ~(unsigned)(FEATURE_CONSOLE | FEATURE_DEBUGGER)) == 0);
    MUST(options->verbose_destination.object != NULL ||
         options->verbose_destination.fd >= 0);
    for (size_t i = 0; i < Py_ARRAY_LENGTH(seconds); i++) {
        MUST(isfinite(seconds[i]) && seconds[i] >= 0.0);
    }
}

/* Text of PYTHONMANHOLE. It is Python's to read: here it calls install() with constants alone. */
ATTACHED static void
fuzz_options(const char *bytes, size_t length)
{
    struct options options = default_options();
    PyObject *text =
        PyUnicode_DecodeFSDefaultAndSize(bytes, (Py_ssize_t)length); /* owned */
    PyObject *values = NULL;                                         /* owned */
    if (text != NULL && is_true(ask("is_literal_call", "(O)", text))) {
        values = eval_install(helpers, text);
        MUST(values != NULL || has_raised(PyExc_Exception));
    }
    if (values != NULL) {
        int result = parse_options(&options, PyTuple_GET_ITEM(values, 0),
                                   PyTuple_GET_ITEM(values, 1), PyExc_ArithmeticError);
        MUST((result < 0) == (PyErr_Occurred() != NULL));
        MUST(result == 0 || PyErr_ExceptionMatches(PyExc_TypeError) ||
             PyErr_ExceptionMatches(PyExc_ArithmeticError) ||
             has_raised(PyExc_ValueError));
        check_options(&options);
    }
    PyErr_Clear();
    drop_options(&options);
    Py_XDECREF(text);
    Py_XDECREF(values);
}

ATTACHED static void
fuzz_config(const char *bytes, size_t length)
{
    struct options options = default_options();
    (void)file_with(bytes, length);
    options.config = PyUnicode_FromString(file_path);
    if (apply_config(manhole.module, &options, NULL) < 0) {
        MUST(has_raised(PyExc_ValueError));
    }
    else {
        MUST(!PyErr_Occurred());
        MUST(options.connection_handler.kind == HANDLER_COMMANDS);
    }
    check_options(&options);
    drop_options(&options);
}

/* An endpoint to listen at; and an address is read as it was written. */
ATTACHED static void
fuzz_endpoint(const char *bytes, size_t length)
{
    struct endpoints endpoints = {0};
    PyObject *value =
        PyUnicode_DecodeUTF8(bytes, (Py_ssize_t)length, "surrogateescape"); /* owned */
    enum parsed parsed = parse_endpoint(value, &endpoints);
    MUST((parsed == PARSED_FAILED) == (PyErr_Occurred() != NULL));
    PyErr_Clear();
    check_endpoints(&endpoints);
    MUST(endpoints.count == (parsed == PARSED_OK));
    if (endpoints.count == 1 && endpoints.rows[0].path == NULL) {
        char written[ADDRESS_SIZE];
        char host[NI_MAXHOST];
        uint16_t port = 0;
        format_address(&endpoints.rows[0].address, written);
        MUST(split_address(written, host, sizeof(host), &port));
        MUST(htons(port) == endpoints.rows[0].address.v4.sin_port);
    }
    free_endpoints(&endpoints);
    Py_XDECREF(value);
}

/* ---- Clients: what they send ---------------------------------------------------------------- */

/* Reads what a session answers, to the end, so that it never waits for us. */
struct reader {
    pthread_t thread;
    int fd;
    struct text text;
};

static void *
reader_main(void *argument)
{
    struct reader *reader = argument;
    char piece[4096];
    ssize_t got = 0;
    while ((got = read(reader->fd, piece, sizeof(piece))) > 0) {
        append_bytes(&reader->text, piece, (size_t)got);
    }
    return NULL;
}

static const struct channel console_channel = {
    .name = "terminal-quiet", .marked = true, .no_stacks = true};

/* Serves a client that sends this, in this thread, as the session's own would. Returns what it is
 * answered, to be freed. */
ATTACHED static struct text
converse(const struct channel *channel, void (*serve)(struct session *, PyObject *locals),
         const char *bytes, size_t length)
{
    const struct peer peer = {.pid = getpid(), .uid = geteuid(), .gid = getegid()};
    struct reader reader = {.fd = -1};
    struct session *session = NULL;
    PyThreadState *tstate = NULL;
    int ends[2];
    bool received = true;
    MUST(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends) == 0);
    MUST(send(ends[1], bytes, length, 0) == (ssize_t)length);
    MUST(shutdown(ends[1], SHUT_WR) == 0);
    reader.fd = ends[1];
    MUST(pthread_create(&reader.thread, NULL, reader_main, &reader) == 0);
    session = claim_session(ends[0], &peer, channel);
    MUST(session != NULL);
    atomic_store(&session->run.ident, PyThread_get_thread_ident());
    received = receive_here(session);
    if (received) {
        serve_with_locals(session, serve);
    }
    MUST(!PyErr_Occurred() && session->run.names == NULL && session->run.input == NULL);
    tstate = detach();
    hang_up(session);
    release_session(session);
    MUST(pthread_join(reader.thread, NULL) == 0);
    reattach(tstate);
    (void)close(reader.fd);
    return reader.text;
}

/* Each line such that it is read and compiled, but never run: behind "if 0: ". A blank one stays:
 * it ends a statement. No_blanks: nothing does, and a line is one by itself. */
static struct text
make_harmless(const char *bytes, size_t length, bool no_blanks)
{
    struct text lines = {0};
    struct slice rest = {bytes, length};
    struct slice line;
    char *plain = copy_of(bytes, length); /* owned */
    for (size_t i = 0; i < length; i++) {
        plain[i] =
            (char)(strchr("\r\v\f", plain[i]) != NULL && plain[i] != '\0' ? '\n'
                                                                          : plain[i]);
    }
    rest.bytes = plain;
    while (next_line(&rest, &line)) {
        size_t blanks = 0;
        while (blanks < line.length && strchr(" \t", line.bytes[blanks]) != NULL &&
               line.bytes[blanks] != '\0') {
            blanks++;
        }
        append_string(&lines, blanks < line.length || no_blanks ? "if 0: " : "");
        append_bytes(&lines, line.bytes, line.length);
        append_string(&lines, "\n");
    }
    free(plain);
    return lines;
}

ATTACHED static size_t
count_in(const struct text *text, const char *wanted)
{
    size_t count = 0;
    for (size_t i = 0; i + strlen(wanted) <= text->length; i++) {
        count += memcmp(text->bytes + i, wanted, strlen(wanted)) == 0;
    }
    return count;
}

/* Text comes, and the farewell at its end. */
ATTACHED static struct text
converse_with_console(const struct channel *channel, const struct text *lines)
{
    static const char end[] = "now exiting ManholeConsole...\n";
    struct text answer = converse(channel, serve_console, lines->bytes, lines->length);
    MUST(is_utf8(&answer));
    MUST(answer.length >= strlen(end) &&
         memcmp(answer.bytes + answer.length - strlen(end), end, strlen(end)) == 0);
    return answer;
}

/* A prompt for each line; a terminal is told when the console waits, with the next prompt. */
ATTACHED static void
fuzz_console(const char *bytes, size_t length)
{
    struct text lines = make_harmless(bytes, length, false);
    struct text plain = converse_with_console(&plain_channel, &lines);
    struct text marked = converse_with_console(&console_channel, &lines);
    MUST(count_in(&plain, ">>> ") + count_in(&plain, "... ") >=
         1 + count_in(&lines, "\n"));
    MUST(count_in(&marked, "\1?>>> \2") + count_in(&marked, "\1?... \2") >= 1);
    free_text(&lines);
    free_text(&plain);
    free_text(&marked);
}

/* The exec handler answers nothing. */
ATTACHED static void
fuzz_exec(const char *bytes, size_t length)
{
    struct text lines = make_harmless(bytes, length, true);
    struct text answer = converse(&plain_channel, serve_exec, lines.bytes, lines.length);
    MUST(answer.length == 0);
    free_text(&lines);
    free_text(&answer);
}

/* The command shell. What is typed at its pdb would be run; it is not to come that far. */
ATTACHED static void
fuzz_commands(const char *bytes, size_t length)
{
    struct text answer = {0};
    for (const char *at = bytes;
         (at = memmem(at, length - (size_t)(at - bytes), "debug", 5)) != NULL; at += 5) {
        if (at + 5 == bytes + length || at[5] != 'g') {
            return;
        }
    }
    manhole.options.enable = FEATURE_DEBUGGER;
    answer = converse(&console_channel, serve_commands, bytes, length);
    MUST(is_utf8(&answer));
    MUST(memmem(answer.bytes, answer.length, "\1?(manhole:", 11) != NULL);
    Py_XDECREF(call_part(manhole.module, &probes_part, "unprobe_all", NULL, NULL));
    PyErr_Clear();
    free_text(&answer);
}

/* Here instead of running it. */
ATTACHED static void
compile_program(struct session *session, PyObject *locals)
{
    (void)locals;
    PyObject *argv = make_arguments(session);            /* owned */
    PyObject *file = decode_field(session->run.request); /* owned */
    PyObject *code = NULL;                               /* owned */
    struct text given = {0};
    unsigned char head[4];
    for (size_t i = 0; i < sizeof(head); i++) {
        head[i] = (unsigned char)(session->run.request_length >> (24 - 8 * i));
    }
    append_bytes(&given, (const char *)head, sizeof(head));
    append_bytes(&given, session->run.request, session->run.request_length);
    MUST(argv != NULL && file != NULL);
    MUST(
        is_true(ask("is_argv_of", "(Oy#)", argv, given.bytes, (Py_ssize_t)given.length)));
    code = Py_CompileStringObject(find_program(session), file, Py_file_input, NULL, -1);
    MUST((code == NULL) == (PyErr_Occurred() != NULL));
    if (code == NULL) {
        PyObject *raised = take_exception(); /* owned */
        PyObject *words = call_part(manhole.module, &shown_part, "last_words", raised,
                                    NULL); /* owned */
        MUST(words != NULL || PyErr_Occurred());
        PyErr_Clear();
        Py_XDECREF(words);
        Py_XDECREF(raised);
    }
    free_text(&given);
    Py_XDECREF(argv);
    Py_XDECREF(file);
    Py_XDECREF(code);
}

/* A program with its length, name and arguments. */
ATTACHED static void
fuzz_program(const char *bytes, size_t length)
{
    struct text answer = converse(find_channel("exec"), compile_program, bytes, length);
    bool is_program = is_true(ask("is_program", "(y#)", bytes, (Py_ssize_t)length));
    MUST(is_program == (answer.length == 0));
    MUST(is_program ||
         starts_with(&(struct slice){answer.bytes, answer.length}, "manhole: "));
    free_text(&answer);
}

/* A word and a newline, while a console, or a command shell, has names for it. */
ATTACHED static void
fuzz_completion(const char *bytes, size_t length)
{
    struct session *console = &manhole.sessions[MAX_SESSIONS - 1];
    const char *table = length % 2 == 0 ? "names" : "words";
    struct text answer = {0};
    console->state = SESSION_TAKEN;
    console->channel = &plain_channel;
    console->run.names = PyObject_GetAttrString(helpers, table); /* owned */
    answer = converse(find_channel("complete"), serve_completion, bytes, length);
    Py_CLEAR(console->run.names);
    size_t word = length == 0 || memchr(bytes, '\n', length) == NULL
                      ? 0
                      : (size_t)((const char *)memchr(bytes, '\n', length) - bytes);
    MUST(is_true(ask("are_matches_of", "(y#y#)", answer.bytes == NULL ? "" : answer.bytes,
                     (Py_ssize_t)answer.length, bytes,
                     (Py_ssize_t)(answer.length == 0 ? 0 : word))));
    console->state = SESSION_FREE;
    free_text(&answer);
}

/* ---- The program ---------------------------------------------------------------------------- */

static const struct fuzz_target targets[] = {
    {.name = "card",
     .attempt = fuzz_card,
     .most = sizeof(((struct sockaddr_un *)0)->sun_path)},
    {.name = "telnet", .attempt = fuzz_telnet, .most = 1024},
    {.name = "kernel", .attempt = fuzz_proc, .most = 256},
    {.name = "tcp", .attempt = fuzz_tcp, .most = 1024},
    {.name = "netlink", .attempt = fuzz_netlink, .most = 256},
    {.name = "snapshot", .attempt = fuzz_snapshot, .most = 1024, .needs_python = true},
    {.name = "json", .attempt = fuzz_json, .most = 256, .needs_python = true},
    {.name = "environ", .attempt = fuzz_environ, .most = 256, .needs_python = true},
    {.name = "options", .attempt = fuzz_options, .most = 256, .needs_python = true},
    {.name = "settings", .attempt = fuzz_config, .most = 512, .needs_python = true},
    {.name = "place", .attempt = fuzz_endpoint, .most = 128, .needs_python = true},
    {.name = "console", .attempt = fuzz_console, .most = 512, .needs_python = true},
    {.name = "exec", .attempt = fuzz_exec, .most = 256, .needs_python = true},
    {.name = "commands", .attempt = fuzz_commands, .most = 256, .needs_python = true},
    {.name = "program", .attempt = fuzz_program, .most = 256, .needs_python = true},
    {.name = "completion", .attempt = fuzz_completion, .most = 128, .needs_python = true},
};

/* A Python with a manhole that nobody knocks at: its door opens at a signal that does not come. */
CHECKED(no_thread_safety_analysis) /* Py_Initialize() attaches */
static void
begin_python(void)
{
    manhole_options options = MANHOLE_OPTIONS_DEFAULT;
    PyObject *code = NULL; /* owned */
    options.verbose = 0;
    options.activate_on = SIGWINCH;
    Py_InitializeEx(0);
    code = Py_CompileString(helpers_source, "helpers", Py_file_input);
    helpers = code == NULL ? NULL : PyImport_ExecCodeModule("helpers", code);
    Py_XDECREF(code);
    if (helpers == NULL || manhole_install(&options) < 0) {
        PyErr_Print();
        abort();
    }
}

int
LLVMFuzzerInitialize(const int *argc, char ***argv)
{
    (void)argc;
    (void)argv;
    choose_target(targets, Py_ARRAY_LENGTH(targets));
    make_session_locks(&telnet_session);
    make_session_locks(&manhole.sessions[MAX_SESSIONS - 1]);
    if (tried_target->needs_python) {
        begin_python();
    }
    return 0;
}

int
LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t length)
{
    tried_target->attempt((const char *)bytes, length);
    MUST(!tried_target->needs_python || !PyErr_Occurred());
    return 0;
}
