/* Asked: obj? at the prompt.
 * Runs on:  the session's thread, ATTACHED.
 * Touches:  nothing; imports inspect.
 * `?obj` and `obj?` tell what inspect knows of it: signature, documentation, and where it is
 * written; `??` the source. obj is any expression, and is evaluated; a line that ends so is never
 * Python. Only for who types at a terminal: what others send is as it always was.
 */
#ifndef MANHOLE_SESSION_ASKED_C
#define MANHOLE_SESSION_ASKED_C

#include "../base/compat.c"
#include "../base/parts.c"
#include "shown.c"

static const char asked_program[] =
    "inspect, re, textwrap = standard('inspect'), standard('re'), standard('textwrap')\n"
    "sys = standard('sys')\n"
    "\n"
    /* CPython 3.14 and newer would run the annotations, which may name what is not there. */
    "def signature_of(value):\n"
    "    if sys.version_info < (3, 14):\n"
    "        return inspect.signature(value)\n"
    "    as_written = standard('annotationlib').Format.STRING\n"
    "    found = inspect.signature(value, annotation_format=as_written)\n"
    "    return found.format(quote_annotation_strings=False)\n"
    "\n"
    "def head_of(name, value):\n"
    "    try:\n"
    "        return f'{name}{signature_of(value)}'\n"
    "    except Exception:\n"
    "        kind = value if isinstance(value, type) else type(value)\n"
    "        return f'{name}: {kind.__module__}.{kind.__qualname__}'\n"
    "\n"
    /* A value that has no source has that of its type. Why there is none may be anything: what asks
     * is inspect, of objects that answer as they like, as proxies do, and of files that may have
     * changed. */
    "def source_of(value):\n"
    "    for thing in value, type(value):\n"
    "        try:\n"
    "            thing = inspect.unwrap(thing)\n"
    "            lines, start = inspect.getsourcelines(thing)\n"
    "            return inspect.getsourcefile(thing), start or 1, lines\n"
    "        except Exception:\n"
    "            pass\n"
    "    return None, 0, []\n"
    "\n"
    "def describe(name, value, wants_source):\n"
    "    file, line, source = source_of(value)\n"
    "    text = [head_of(name, value)]\n"
    "    if wants_source and source:\n"
    "        text.append(textwrap.dedent(''.join(source)).rstrip())\n"
    "    else:\n"
    "        text.append(textwrap.indent(inspect.getdoc(value) or 'no documentation', '  "
    "  '))\n"
    "    if file:\n"
    "        text.append(f'File: \"{file}\", line {line}')\n"
    "    return '\\n'.join(text) + '\\n'\n"
    "\n"
    /* Returns whether the line is such a question. What the expression raises is shown. */
    "def answer(console, line):\n"
    "    match = re.fullmatch(r'(\\?{0,2})([^?#]+)(\\?{0,2})', line.strip())\n"
    "    marks = match and (match[1] or match[3])\n"
    "    if not marks:\n"
    "        return False\n"
    "    name = match[2].strip()\n"
    "    try:\n"
    "        code = compile(name, console.filename, 'eval', 0, True)\n"
    "    except (SyntaxError, ValueError):\n"
    "        return False\n"
    "    try:\n"
    "        write(describe(name, eval(code, console.locals), len(marks) == 2))\n"
    "    except SystemExit:\n"
    "        raise\n"
    "    except BaseException:\n"
    "        console.showtraceback()\n"
    "    return True\n";

static PyMethodDef asked_functions[] = {
    {"write", shown_write, METH_O, NULL},
    {NULL, NULL, 0, NULL},
};

static const struct part asked_part = {
    .name = "asked",
    .program = asked_program,
    .functions = asked_functions,
};

/* Answers the line if it is such a question. Returns a new bool, whether it is; or NULL with an
 * exception. */
ATTACHED static PyObject *
answer_question(struct session *session, PyObject *console, PyObject *line)
{
    if (!session->channel->marked ||
        PyUnicode_FindChar(line, '?', 0, PyUnicode_GET_LENGTH(line), 1) < 0) {
        return Py_NewRef(Py_False);
    }
    OWNED PyObject *answer = import_part(session, &asked_part, "answer");
    return answer == NULL ? NULL
                          : PyObject_CallFunctionObjArgs(answer, console, line, NULL);
}

#endif /* MANHOLE_SESSION_ASKED_C */
