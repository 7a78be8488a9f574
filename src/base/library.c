/* Library: modules of the standard library's, whatever the application calls its own.
 * Runs on:  any thread, ATTACHED.
 * Touches:  sys.modules, by import; manhole.library.NAME in it where an application's module has a
 *           name of the library's.
 *
 * How it works. A script called code.py, say, stands before the library in sys.path, and would run
 * a second time if a session imported code. While no module has a name of the library's, and the
 * library's folder is in sys.path, import_standard() imports as everybody does.
 *
 * Else what the application has imported of the library is shared. The rest is loaded from the
 * library's folder under names of our own, manhole.library.NAME, and so is what that imports in
 * turn, at any time: __import__ is ours in there. As everybody does are imported: a submodule of a
 * package that is shared; what a module in C imports; a module in C itself, and warnings, which is
 * half of C, unless the application has that name.
 */
#ifndef MANHOLE_BASE_LIBRARY_C
#define MANHOLE_BASE_LIBRARY_C

#include "compat.c"
#include "state.c"

/* The program that finds them; see above. */
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
    /* CPython imports from no other entries, either. */
    "    entries = [entry for entry in sys.path[:end] if isinstance(entry, str)]\n"
    "    ahead = {name for entry in entries for name in find_ahead(names, entry)}\n"
    "    modules = dict(sys.modules)\n" /* other threads go on importing */
    "    return ahead, any(not is_standard(modules[name])\n"
    "                      for name in names.intersection(modules))\n"
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
    PyObject *kept = PyDict_GetItemString(library, ""); /* borrowed */
    if (kept != NULL) {
        return Py_NewRef(kept);
    }
    OWNED PyObject *names = Py_BuildValue("{sOss}", "__builtins__", PyEval_GetBuiltins(),
                                          "__name__", "manhole");
    OWNED PyObject *result =
        names == NULL ? NULL : run_source(library_program, Py_file_input, names);
    OWNED PyObject *finder =
        result == NULL ? NULL : PyMapping_GetItemString(names, "find");

    if (finder == NULL || PyDict_SetItemString(library, "", finder) < 0) {
        PyErr_Clear();
        return NULL;
    }
    return steal_reference(&finder);
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
    if (library == NULL) {
        return PyImport_ImportModule(name);
    }
    PyObject *kept = PyDict_GetItemString(library, name); /* borrowed */
    if (kept != NULL) {
        return Py_NewRef(kept);
    }
    OWNED PyObject *finder = get_finder(library);
    OWNED PyObject *module = finder == NULL ? PyImport_ImportModule(name)
                                            : PyObject_CallFunction(finder, "s", name);
    if (module == NULL || PyDict_SetItemString(library, name, module) < 0) {
        return NULL;
    }
    return steal_reference(&module);
}

/* Whether who imports this gets the standard library's. Never raises. */
ATTACHED static bool
is_found_normally(const char *name)
{
    PyObject *library = find_library(); /* borrowed */
    OWNED PyObject *finder = library == NULL ? NULL : get_finder(library);
    if (finder == NULL) {
        return true;
    }
    OWNED PyObject *answer = PyObject_CallMethod(finder, "is_found_normally", "s", name);
    PyErr_Clear();
    return answer != Py_False;
}

#endif /* MANHOLE_BASE_LIBRARY_C */
