/* Configuration file: what the option config names, an INI file as ispyd has it.
 * Runs on:  the thread that calls install(), ATTACHED.
 * Touches:  that file, once; the struct options that it is given.
 *
 * configparser reads it, in a part (src/base/parts.c); what it says is then parsed as install()'s
 * own options are. What install() is told itself wins over the file. A file that is wrong in any
 * way is refused, by a ValueError that names it. Sections that are not in KNOWN are the plugins'
 * own: the parser is kept for them (options.settings).
 * To add a setting: its key in KNOWN, and what it means at the end of read().
 */
#ifndef MANHOLE_SERVER_CONFIG_C
#define MANHOLE_SERVER_CONFIG_C

#include "../base/compat.c"
#include "../base/state.c"
#include "../base/parts.c"
#include "options.c"

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

/* Returns 0, or -1 with an exception that names it. */
ATTACHED static int
apply_listen(struct options *options, PyObject *section, PyObject *text)
{
    OWNED PyObject *bare = PyObject_CallMethod(text, "strip", NULL);
    OWNED PyObject *lines = bare == NULL ? NULL : PyUnicode_Splitlines(bare, 0);
    enum parsed parsed =
        lines == NULL ? PARSED_FAILED : parse_listen(lines, &options->listen);
    if (parsed == PARSED_FAILED && !PyErr_ExceptionMatches(PyExc_MemoryError)) {
        OWNED PyObject *raised = take_exception();
        PyErr_Format(PyExc_ValueError, "install() option 'config': %R: [%U] listen: %S",
                     options->config, section, raised);
    }
    else if (parsed == PARSED_WRONG_TYPE || parsed == PARSED_WRONG_VALUE) {
        PyErr_Format(PyExc_ValueError,
                     "install() option 'config': %R: [%U] listen must be HOST:PORT or a "
                     "path with a '/' in it, or up to 8 of these on a line each, not %R",
                     options->config, section, text);
    }
    return parsed == PARSED_OK ? 0 : -1;
}

/* Returns a new set of the options that install() was told itself, or NULL with an exception. */
ATTACHED static PyObject *
list_given(PyObject *keywords /* dict, or NULL */)
{
    OWNED PyObject *given = PySet_New(NULL);
    PyObject *name = NULL;  /* borrowed */
    PyObject *value = NULL; /* borrowed */
    Py_ssize_t position = 0;
    while (given != NULL && keywords != NULL &&
           PyDict_Next(keywords, &position, &name, &value)) {
        if (value != Py_None && PySet_Add(given, name) < 0) {
            return NULL;
        }
    }
    return steal_reference(&given);
}

/* Fills in what the file says and install() was not told. Returns 0, or -1 with an exception. */
ATTACHED static int
apply_config(PyObject *module, struct options *options,
             PyObject *keywords /* dict, or NULL */)
{
    PyObject *settings = NULL; /* borrowed from what the file says, and so are these */
    PyObject *section = NULL;
    PyObject *listen = NULL;
    PyObject *plugins = NULL;
    int has_console = 0;
    int has_debugger = 0;
    int has_commands = 0;
    if (options->config == NULL) {
        return 0;
    }
    OWNED PyObject *given = list_given(keywords);
    OWNED PyObject *said =
        given == NULL ? NULL
                      : call_part(module, &config_part, "read", options->config, given);
    if (said == NULL ||
        !PyArg_ParseTuple(said, "OOOOppp", &settings, &section, &listen, &plugins,
                          &has_console, &has_debugger, &has_commands)) {
        return -1;
    }

    options->settings = Py_NewRef(settings);
    options->plugins = plugins == Py_None ? NULL : Py_NewRef(plugins);
    options->enable |= has_console ? (unsigned)FEATURE_CONSOLE : 0;
    options->enable |= has_debugger ? (unsigned)FEATURE_DEBUGGER : 0;
    if (has_commands) {
        options->connection_handler.kind = HANDLER_COMMANDS;
    }
    return listen == Py_None ? 0 : apply_listen(options, section, listen);
}

#endif /* MANHOLE_SERVER_CONFIG_C */
