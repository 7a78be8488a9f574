/* Side channels: what a client gets instead of a console when its calling card says so.
 * Runs on:  the session's thread, ATTACHED; receive_line() before it attaches.
 * Touches:  the session's own fields; reads the names of the console with the same card.
 * A side channel is a connection of its own beside that of the console, so completion and stacks
 * need no protocol in the console's stream of bytes. The id on the card says whose console is
 * meant. Which there are, and what goes over them, is listed in the listener's room.
 */
#ifndef MANHOLE_SESSION_CHANNELS_C
#define MANHOLE_SESSION_CHANNELS_C

#include "../base/compat.c"
#include "../base/state.c"
#include "../base/locks.c"
#include "../base/parts.c"
#include "../stacks/dump.c"
#include "../stacks/json.c"
#include "../stacks/tasks.c"
#include "../stacks/locals.c"
#include "output.c"
#include "interrupt.c"
#include "imports.c"
#include "serve.c"
#include "console.c"
#include "programs.c"

enum {
    /* Bytes of a line to complete, with its newline; and the most matches for it. */
    MAX_COMPLETION = 4097,
    MAX_MATCHES = 500,
};

/* Reads the line that is to be completed. It is short, so it is read into room for the longest. */
DETACHED static bool
receive_line(struct session *session)
{
    char *newline = NULL;
    session->run.request = malloc(MAX_COMPLETION);
    while (session->run.request != NULL && newline == NULL) {
        char *next = session->run.request + session->run.request_length;
        size_t got =
            receive_some(session, next, MAX_COMPLETION - session->run.request_length);
        if (got == 0) {
            return false; /* no room: too long; or it does not come */
        }
        newline = memchr(next, '\n', got);
        session->run.request_length += got;
    }
    if (newline != NULL) {
        *newline = '\0';
        session->run.request_length = (size_t)(newline - session->run.request);
    }
    return newline != NULL;
}

/* The names of the console or command shell whose client has the same id. Returns a copy, which
 * stays as it is while that one runs on, or NULL, perhaps with an exception. */
ATTACHED static PyObject *
copy_names(const struct session *asking)
{
    OWNED PyObject *names = NULL;
    lock_leaf(&table_lock);
    for (size_t i = 0; i < MAX_SESSIONS && names == NULL; i++) {
        const struct session *session = &manhole.sessions[i];
        if (session->state == SESSION_TAKEN && session->channel->serve == NULL &&
            strcmp(session->card, asking->card) == 0) {
            names = Py_XNewRef(session->run.names);
        }
    }
    unlock(&table_lock);
    return names != NULL && PyDict_Check(names) ? PyDict_Copy(names)
                                                : steal_reference(&names);
}

/* Completes what stands before the cursor, a match being the whole line as it would become.
 *
 * It is rlcompleter's work, but that evaluates what it completes, asks each attribute for its
 * value, and knows of no line where a keyword cannot stand. In a process that is being looked at,
 * Tab must run nothing of the application's: names are looked up in dicts, attributes with
 * inspect.getattr_static(), and only what the interpreter itself has made is asked for its value. A
 * module behind import is found by where it would be, and not imported.
 *
 *   Where the cursor is (find_string): in a comment there is nothing to complete; in a string, a
 *   key of the dict that is indexed by it, or else a file; in code, what may stand there.
 *   In code (in_code): behind from and import, modules and what is in them; behind a dot,
 *   attributes; else names, those keywords that can stand behind what is there
 *   (keywords_behind), and within the brackets of a call what the function calls its arguments
 *   (arguments_in).
 *
 * Of a command shell, whose words are in a tuple, it sees no more than those. */
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
    /* Where a name is looked for, as the room names has it. */
    "def spaces(names):\n"
    "    main = sys.modules.get('__main__')\n"
    "    main = vars(main) if type(main) is types.ModuleType else {}\n"
    "    main = {name: value for name, value in main.copy().items() if name[:2] != "
    "'__'}\n"
    "    return names, vars(builtins), main\n"
    /* What a dotted name stands for, without eval(). */
    "def look_up(dotted, names):\n"
    "    first, *rest = dotted.split('.')\n"
    "    value = next(space[first] for space in spaces(names) if first in space)\n"
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
    /* Of the namespace's own, the builtins, the application's, and the keywords. */
    "def names_in(names, text, start):\n"
    "    for word in keywords_behind(start):\n"
    "        if word.startswith(text):\n"
    "            yield word if word in alone else word + ' '\n"
    "    for space in spaces(names):\n"
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
    /* Of a function, or of a class in Python. */
    "def parameters(value):\n"
    "    if issubclass(type(value), type):\n"
    "        made = inspect.getattr_static(value, '__init__')\n"
    "        value = made if type(made) is types.FunctionType else attribute(value, "
    "'__new__')\n"
    "    value = value.__func__ if type(value) is types.MethodType else value\n"
    "    while type(value) is types.FunctionType and '__wrapped__' in vars(value):\n"
    "        value = vars(value)['__wrapped__']\n"
    "    if type(value) is types.FunctionType:\n"
    "        code = value.__code__\n"
    "        end = code.co_argcount + code.co_kwonlyargcount\n"
    "        return code.co_varnames[code.co_posonlyargcount:end]\n"
    "    if type(value) in methods:\n"
    "        rows = inspect.signature(value).parameters.values()\n"
    "        return [row.name for row in rows if row.kind in (row.KEYWORD_ONLY,\n"
    "                                                         "
    "row.POSITIONAL_OR_KEYWORD)]\n"
    "    return ()\n"
    /* Where an argument may begin. What is in brackets or quotes and over is left out. */
    "def arguments_in(names, text, start):\n"
    "    start = re.sub(r'\"[^\"]*\"|\\'[^\\']*\\'', '\"', start)\n"
    "    bare = None\n"
    "    while bare != start:\n"
    "        bare, start = start, re.sub(r'\\([^()[\\]{}]*\\)|\\[[^()[\\]{}]*\\]|'\n"
    "                                    r'\\{[^()[\\]{}]*\\}', '\"', start)\n"
    "    call = re.search(r'(?<![\\w.\"])([^\\W\\d][\\w.]*)\\((?:[^()[\\]{}]*,)?\\s*$', "
    "start)\n"
    "    try:\n"
    "        found = parameters(look_up(call[1], names)) if call else ()\n"
    "    except Exception:\n"
    "        found = ()\n" /* no such name, or nothing that tells */
    "    return [name + '=' for name in found\n"
    "            if name.startswith(text) and name not in ('self', 'cls')]\n"
    "def in_code(line, names):\n"
    "    start = line.rpartition(';')[2]\n"
    "    text = re.search(r'[\\w.]*$', start)[0]\n"
    "    start = start[:len(start) - len(text)]\n"
    "    if re.match(r'\\s*(from|import)\\s', start):\n"
    "        return text, imports(start, text)\n"
    "    if '.' in text:\n"
    "        return text, attributes_in(names, *text.rpartition('.'))\n"
    "    found = arguments_in(names, text, start)\n"
    "    if text and not text[0].isdigit():\n"
    "        found = itertools.chain(found, names_in(names, text, start))\n"
    "    return text, found\n"
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
    /* Of a statement that imports: modules, names of a module, or the keyword that comes next. */
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
    /* The lines that the client gets; most of them at the most, for a dict may have millions. */
    "def complete(line, names, most):\n"
    "    start, quotes = find_string(line)\n"
    "    if isinstance(names, tuple):\n"
    "        text = line.rpartition(' ')[2]\n"
    "        found = (word for word in names if word.startswith(text))\n"
    "    elif quotes == '#':\n"
    "        return ''\n"
    "    elif quotes:\n"
    "        text = line[start:]\n"
    "        found = in_string(text, quotes, line[:start - len(quotes)], names)\n"
    "    else:\n"
    "        text, found = in_code(line, names)\n"
    "    start = line[:len(line) - len(text)]\n"
    "    found = (start + word + '\\n' for word in found if '\\n' not in word)\n"
    "    found = list(dict.fromkeys(itertools.islice(found, most)))\n"
    "    return ''.join(found if isinstance(names, tuple) else sorted(found))\n";

static const struct part completion_part = {.name = "completion",
                                            .program = completion_program};

/* Sends the matches of the client's text in these names. Returns 0, or -1 with an exception. */
ATTACHED static int
send_matches(struct session *session, PyObject *names)
{
    OWNED PyObject *complete = import_part(session, &completion_part, "complete");
    if (complete == NULL) {
        return -1;
    }
    OWNED PyObject *text = PyUnicode_DecodeUTF8(
        session->run.request, (Py_ssize_t)session->run.request_length, "strict");
    if (text == NULL) {
        return -1;
    }
    begin_running(session);
    OWNED PyObject *matches =
        PyObject_CallFunction(complete, "OOi", text, names, (int)MAX_MATCHES);
    end_running(session);
    return matches == NULL ? -1 : write_client_str(session, matches);
}

/* Sends what the line may become that the client has typed so far. May leave an exception. */
ATTACHED static void
complete_line(struct session *session)
{
    (void)import_needed_modules(session, NULL);
    OWNED PyObject *names = copy_names(session);
    if (names != NULL &&
        session->run.request[strspn(session->run.request, " \t\r")] != '\0') {
        (void)send_matches(session, names);
    }
}

/* Nothing at all is sent on any error. Never raises. */
ATTACHED static void
serve_completion(struct session *session, PyObject *locals)
{
    (void)locals;
    complete_line(session);
    PyErr_Clear();
    close_session(session);
}

/* Never raises. */
ATTACHED static void
serve_look(struct session *session, const struct form *form)
{
    (void)send_stacks(session, form, false);
    log_failure(session, "Stacks failed with ");
    close_session(session);
}

/* The stack dump alone: what manhole-cli --stacks prints. The dump of a console, whose client can
 * ask for the tasks, goes without them: it is to be there at once. */
ATTACHED static void
serve_stacks(struct session *session, PyObject *locals)
{
    static const struct form form = {.append = append_dump,
                                     .add_tasks = add_task_summary};
    (void)locals;
    serve_look(session, &form);
}

/* To read many tasks takes time, and is no hang. */
ATTACHED static void
serve_document(struct session *session, const struct form *form)
{
    if (may_have_tasks() && settle_report_attached(session)) {
        close_session(session);
    }
    else {
        serve_look(session, form);
    }
}

/* The same as JSON, for programs. */
ATTACHED static void
serve_json(struct session *session, PyObject *locals)
{
    static const struct form form = {.append = append_json, .add_tasks = add_all_tasks};
    (void)locals;
    serve_document(session, &form);
}

/* The same for who asks every few seconds: of tasks only how many there are. */
ATTACHED static void
serve_watch(struct session *session, PyObject *locals)
{
    static const struct form form = {.append = append_json, .add_tasks = add_task_count};
    (void)locals;
    serve_document(session, &form);
}

/* In a frozen copy: the stacks with the variables of each frame. */
ATTACHED static void
serve_locals(struct session *session, PyObject *locals)
{
    static const struct form form = {.append = append_dump,
                                     .add_locals = add_dump_locals};
    (void)locals;
    serve_look(session, &form);
}

/* The same as JSON. */
ATTACHED static void
serve_locals_json(struct session *session, PyObject *locals)
{
    static const struct form form = {
        .append = append_json, .add_tasks = add_all_tasks, .add_locals = add_json_locals};
    (void)locals;
    serve_look(session, &form);
}

/* Python is there as soon as this runs, however long it takes then. Never raises. */
ATTACHED static void
serve_text(struct session *session, PyObject *(*make)(void))
{
    if (!settle_report_attached(session)) {
        begin_running(session);
        OWNED PyObject *text = make();
        end_running(session);
        if (text != NULL) {
            (void)write_client_str(session, text);
        }
        log_failure(session, "Tasks failed with ");
    }
    close_session(session);
}

/* The tasks and greenlets alone. */
ATTACHED static void
serve_tasks(struct session *session, PyObject *locals)
{
    (void)locals;
    serve_text(session, make_tasks_dump);
}

/* The same as JSON. */
ATTACHED static void
serve_tasks_json(struct session *session, PyObject *locals)
{
    (void)locals;
    serve_text(session, make_tasks_json);
}

/* The greenlets alone. */
ATTACHED static void
serve_greenlets(struct session *session, PyObject *locals)
{
    (void)locals;
    serve_text(session, make_greenlets_dump);
}

/* The same as JSON. */
ATTACHED static void
serve_greenlets_json(struct session *session, PyObject *locals)
{
    (void)locals;
    serve_text(session, make_greenlets_json);
}

#endif /* MANHOLE_SESSION_CHANNELS_C */
