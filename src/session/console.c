/* Console: the prompt.
 * Runs on:  the session's thread, ATTACHED.
 * Touches:  the session's own fields.
 *
 * How it works. The standard library compiles and runs: the console is code.InteractiveConsole,
 * with its reporting of exceptions replaced (the room shown). What is added is about when Python is
 * let go of, for beside threads that compute each time costs some five milliseconds until it is
 * back.
 *
 *   The greeting, stacks, banner and prompt, is one send, and before anything is imported: the
 *   client sees the stacks at once, and the modules come in while it looks at them (talk).
 *
 *   A line is one act if it is a whole statement, and nothing follows its value: then the value
 *   goes out with the next prompt. Most lines are. It is also compiled once, where the console
 *   tries twice and more to find out whether a line goes on (compile_one_act).
 *
 *   A paste runs as a file would, but shows each value (paste_program).
 *
 *   Where the library cannot be read, by a process in a container that is gone, say, a plain
 *   console does as much as the prompt needs (plain_console_program).
 */
#ifndef MANHOLE_SESSION_CONSOLE_C
#define MANHOLE_SESSION_CONSOLE_C

#include "../base/compat.c"
#include "../base/state.c"
#include "../base/locks.c"
#include "../base/basics.c"
#include "../base/library.c"
#include "../base/parts.c"
#include "../door/socket.c"
#include "../stacks/copy.c"
#include "../stacks/dump.c"
#include "output.c"
#include "borrowed.c"
#include "hang.c"
#include "interrupt.c"
#include "imports.c"
#include "shown.c"
#include "asked.c"
#include "names.c"
#include "input.c"
#include "serve.c"

/* Python's own banner, as InteractiveConsole.interact() has it; and who types at a terminal is told
 * what a console of Python's has not got. */
static void
append_banner(struct text *text, bool at_terminal)
{
    append_string(text, "Python ");
    append_string(text, Py_GetVersion());
    append_string(text, " on ");
    append_string(text, Py_GetPlatform());
    append_string(text,
                  "\nType \"help\", \"copyright\", \"credits\" or \"license\" for more "
                  "information.\n(ManholeConsole)");
    append_string(text, at_terminal ? " Names of __main__ are found, too; obj? tells "
                                      "about one.\n"
                                    : "\n");
    append_string(text, frozen.note);
}

/* What became of a line. */
enum verdict {
    LINE_DONE,
    LINE_WANTS_MORE,
    SESSION_OVER, /* with or without an exception set */
};

/* After an exception that left the console: an interrupt, or a statement beyond the compiler's
 * limits, only costs the statement. */
ATTACHED static enum verdict
judge_exception(struct session *session, PyObject *console)
{
    static const char message[] = "\nKeyboardInterrupt\n";
    if (PyErr_ExceptionMatches(PyExc_KeyboardInterrupt)) {
        size_t skipped =
            session->channel->marked ? 1 : 0; /* there Ctrl-C ends the line */
        PyErr_Clear();
        if (write_client(session, message + skipped, sizeof(message) - 1 - skipped) < 0) {
            return SESSION_OVER;
        }
    }
    else if (PyErr_ExceptionMatches(PyExc_MemoryError) ||
             PyErr_ExceptionMatches(PyExc_RecursionError)) {
        if (show_compiler_error() < 0) {
            return SESSION_OVER;
        }
    }
    else {
        if (PyErr_ExceptionMatches(PyExc_SystemExit)) {
            PyErr_Clear();
        }
        return SESSION_OVER;
    }
    OWNED PyObject *reset = PyObject_CallMethod(console, "resetbuffer", NULL);
    return reset == NULL ? SESSION_OVER : LINE_DONE;
}

/* Whether a line that begins a statement is all of it, and does but one thing: then the value that
 * it shows is its end. May say no to one that is: of a backslash the compiler may have to warn, and
 * the console sees to it that it does so once. */
static bool
is_one_act(PyObject *line)
{
    for (const char *sign = ":;\\"; *sign != '\0'; sign++) {
        if (PyUnicode_FindChar(line, (Py_UCS4)*sign, 0, PyUnicode_GET_LENGTH(line), 1) !=
            -1) {
            return false;
        }
    }
    return true;
}

/* Compiles such a line once, where the console does it twice and more to find out whether it goes
 * on. Returns new code; or NULL, without an exception when it is for the console to say why. */
ATTACHED static PyObject *
compile_one_act(PyObject *console, PyObject *line)
{
    OWNED PyObject *command = PyObject_GetAttrString(console, "compile");
    PyObject *code = NULL; /* new, handed to the caller */
    if (command != NULL) {
        code =
            PyObject_CallMethod(command, "compiler", "Oss", line, "<console>", "single");
    }
    if (code == NULL && PyErr_ExceptionMatches(PyExc_Exception)) {
        PyErr_Clear();
    }
    return code;
}

/* Runs what was pasted as a file would be: nothing of it when the compiler refuses a part, else one
 * statement after the other until one fails; but each shows its value, as it does at the prompt. It
 * may be indented, or have doctest's prompts. Where it is but the beginning of a statement, more is
 * wanted; into a block that is being typed it goes as it is, and the block goes on where its end is
 * indented. Nothing is imported for it. */
static const char paste_program[] =
    "def lines_of(text, first):\n"
    "    margin = first[:len(first) - len(first.lstrip())]\n"
    "    lines = [line.removeprefix(margin) for line in text.split('\\n')]\n"
    "    if first.startswith(margin + '>>>'):\n"
    "        return [line[4:] for line in lines if line.startswith(('>>>', '...'))]\n"
    "    return lines\n"
    "def compiled(console, source, only_ast):\n"
    "    def parse(source, mode):\n"
    "        return compile(source, console.filename, mode, only_ast, True)\n"
    "    for statement in parse(source, 'exec').body:\n"
    "        single = parse('0', 'single')\n"
    "        single.body = [statement]\n"
    "        yield console.compile.compiler(single, console.filename, 'single')\n"
    "def is_begun(console, source):\n"
    "    try:\n"
    "        return console.compile(source, console.filename, 'single') is None\n"
    "    except (OverflowError, SyntaxError, ValueError):\n"
    "        return False\n"
    "def run(console, text, only_ast, anew):\n"
    "    if anew:\n"
    "        console.resetbuffer()\n"
    "    full = [line for line in text.split('\\n') if line.strip()]\n"
    "    code = [line for line in full if not line.lstrip().startswith('#')]\n"
    "    if not console.buffer:\n"
    "        source = '\\n'.join(lines_of(text, (code or [''])[0]))\n"
    "    elif not full or full[-1][0].isspace():\n"
    "        return console.push(text)\n"
    "    else:\n"
    "        source = '\\n'.join([*console.buffer, text])\n"
    "        console.resetbuffer()\n"
    "    try:\n"
    "        statements = list(compiled(console, source, only_ast))\n"
    "    except (OverflowError, SyntaxError, ValueError):\n"
    "        if is_begun(console, source):\n"
    "            return console.push(source)\n"
    "        console.showsyntaxerror(console.filename, source=source)\n"
    "        return False\n"
    "    for statement in statements:\n"
    "        try:\n"
    "            console.execute(statement)\n"
    "        except SystemExit:\n"
    "            raise\n"
    "        except BaseException:\n"
    "            console.showtraceback()\n"
    "            break\n"
    "    return False\n";

static const struct part paste_part = {.name = "paste", .program = paste_program};

/* Returns a new bool, whether more lines are wanted; or NULL with an exception. */
ATTACHED static PyObject *
run_paste(struct session *session, PyObject *console, PyObject *text)
{
    OWNED PyObject *run = get_from_part(manhole.module, &paste_part, "run");
    return run == NULL ? NULL
                       : PyObject_CallFunction(run, "OOii", console, text, PyCF_ONLY_AST,
                                               (int)session->run.anew);
}

/* Runs what a line completes, if it does. Returns a new bool, whether more lines are wanted; or
 * NULL with an exception. */
ATTACHED static PyObject *
run_line(struct session *session, PyObject *console, PyObject *line, bool begins)
{
    OWNED PyObject *code = session->run.one_act ? compile_one_act(console, line) : NULL;
    if (code == NULL && !PyErr_Occurred() && begins) {
        OWNED PyObject *answered = answer_question(session, console, line);
        if (answered != Py_False) {
            return answered == NULL ? NULL : Py_NewRef(Py_False);
        }
    }
    if (code == NULL) {
        return PyErr_Occurred() ? NULL : PyObject_CallMethod(console, "push", "O", line);
    }
    OWNED PyObject *ran = PyObject_CallMethod(console, "runcode", "O", code);
    return ran == NULL ? NULL : Py_NewRef(Py_False);
}

/* begins: no block is being typed. */
ATTACHED static enum verdict
push_line(struct session *session, PyObject *console, PyObject *line, bool begins,
          bool is_paste)
{
    Py_ssize_t length = PyUnicode_GetLength(line) - (ends_line(line) ? 1 : 0);
    OWNED PyObject *bare = PyUnicode_Substring(line, 0, length);
    if (bare == NULL) {
        return SESSION_OVER;
    }
    replace_streams();
    if (begins || session->run.anew) {
        log_audit(session, bare);
    }

    session->run.one_act = begins && !is_paste && is_one_act(bare);
    begin_running(session);
    OWNED PyObject *more = is_paste ? run_paste(session, console, bare)
                                    : run_line(session, console, bare, begins);
    end_running(session);
    session->run.one_act = false;

    if (more == NULL) {
        return judge_exception(session, console);
    }
    return more == Py_True ? LINE_WANTS_MORE : LINE_DONE;
}

/* Python's own, and in a frozen copy one that shows which terminal it is. */
static const char *
choose_prompt(bool wants_more)
{
    static const char *const prompts[2][2] = {{">>> ", "... "}, {"copy>>> ", "copy... "}};
    return prompts[frozen.original != 0][wants_more];
}

/* Line, prompt, line, prompt; a prompt first, if a reporter has told the client something behind
 * that of the greeting. Returns with an exception set when it was one that ended it. */
ATTACHED static void
run_console(struct session *session, PyObject *console, bool told)
{
    static const char end_of_input[] = "\nnow exiting ManholeConsole...\n";
    const char *prompt = told ? choose_prompt(false) : NULL;
    enum verdict verdict = LINE_DONE;
    while (verdict != SESSION_OVER) {
        bool is_paste = false;
        OWNED PyObject *line = read_input(session, prompt, &is_paste);
        if (line == NULL) {
            verdict = judge_exception(session, console);
        }
        else if (PyUnicode_GetLength(line) == 0) {
            (void)write_client(session, end_of_input, sizeof(end_of_input) - 1);
            verdict = SESSION_OVER;
        }
        else {
            verdict = push_line(session, console, line, verdict == LINE_DONE, is_paste);
        }
        prompt = choose_prompt(verdict == LINE_WANTS_MORE);
    }
}

/* The banner and the first prompt, behind what the client gets before them. */
static void
append_greeting(struct session *session, struct text *text)
{
    append_banner(text, session->channel->marked);
    append_prompt(text, session, choose_prompt(false));
    session->run.says_it_reads = true;
}

/* Sends the stacks, unless there is no form for them or a reporter was quicker; the banner and the
 * prompt, if it greets. All at once, and Python is let go of once: a process whose threads compute
 * gives the GIL back after some time only. Returns 0, or -1 with an exception. */
ATTACHED static int
send_stacks(struct session *session, const struct form *form /* or NULL */, bool greets)
{
    struct stacks stacks = {.is_frozen = false};
    struct text text = {0};
    int error = 0;
    PyThreadState *tstate =
        form == NULL ? detach() : detach_with_stacks(&text, form, &stacks);
    if (!text.failed && settle_report(session)) {
        free_text(&text);
    }
    if (greets) {
        append_greeting(session, &text);
    }
    const char *rest = text.bytes;
    size_t length = text.length;
    if (!text.failed) {
        error = send_detached(session, &rest, &length);
    }
    if (greets) {
        expect_answer(session);
        /* The kernel puts who hears it behind us, for it takes us for done. */
        (void)sched_yield();
    }
    reattach(tstate);

    int result = -1;
    if (!text.failed) {
        result = conclude_sending(session, error, rest, length);
    }
    else if (!PyErr_Occurred()) {
        PyErr_NoMemory();
    }
    free_stacks(&stacks);
    free_text(&text);
    return result;
}

/* As much of code.InteractiveConsole as the prompt needs, for where that cannot be imported. What
 * more lines may complete is one with another error for each, or a bracket that is still open, as
 * codeop had it before CPython told of it. 0x200: PyCF_DONT_IMPLY_DEDENT, a block ends with an
 * empty line. */
static const char plain_console_program[] =
    "class Console:\n"
    "    filename = '<console>'\n"
    "    compile = property(lambda self: self)\n"
    "    def __init__(self, locals):\n"
    "        self.locals = locals\n"
    "        self.resetbuffer()\n"
    "    def resetbuffer(self):\n"
    "        self.buffer = []\n"
    "    def compiler(self, source, filename, symbol):\n"
    "        return compile(source, filename, symbol, 0x200, True)\n"
    "    def __call__(self, source, filename, symbol):\n"
    "        whole = self.is_whole(source)\n"
    "        return self.compiler(source, filename, symbol) if whole else None\n"
    "    def find_error(self, source):\n"
    "        try:\n"
    "            self.compiler(source, '<console>', 'single')\n"
    "        except (SyntaxError, ValueError, OverflowError) as error:\n"
    "            return repr(error)\n"
    "    def is_whole(self, source):\n"
    "        if self.find_error(source) is None:\n"
    "            return True\n"
    "        longer = [self.find_error(source + end) for end in ('\\n', '\\n\\n')]\n"
    "        return None is not longer[0] == longer[1] and 'never closed' not in "
    "longer[0]\n"
    "    def push(self, line):\n"
    "        self.buffer.append(line)\n"
    "        source = '\\n'.join(self.buffer)\n"
    "        if not any(line.split('#')[0].strip() for line in self.buffer):\n"
    "            source = 'pass'\n"
    "        if not self.is_whole(source):\n"
    "            return True\n"
    "        self.resetbuffer()\n"
    "        try:\n"
    "            code = self.compiler(source, '<console>', 'single')\n"
    "        except (SyntaxError, ValueError, OverflowError):\n"
    "            self.showsyntaxerror()\n"
    "        else:\n"
    "            self.runcode(code)\n"
    "        return False\n"
    "    def runcode(self, code):\n"
    "        try:\n"
    "            exec(code, self.locals)\n"
    "        except SystemExit:\n"
    "            raise\n"
    "        except:\n"
    "            self.showtraceback()\n";

static const struct part plain_console_part = {.name = "plain console",
                                               .program = plain_console_program};

/* The session's console, or a plain one where there is no other. Returns a new reference, or NULL
 * with an exception. */
ATTACHED static PyObject *
make_console(const struct session *session)
{
    /* codeop takes warnings from sys.modules. */
    OWNED PyObject *code = is_found_normally("warnings") ? import_standard("code") : NULL;
    if (PyErr_Occurred() && !PyErr_ExceptionMatches(PyExc_Exception)) {
        return NULL;
    }
    PyErr_Clear(); /* it has been told */
    OWNED PyObject *base =
        code == NULL ? get_from_part(manhole.module, &plain_console_part, "Console")
                     : PyObject_GetAttrString(code, "InteractiveConsole");
    if (base == NULL) {
        return NULL;
    }
    lock_imports(); /* sessions that begin at once share its class */
    PyObject *console = call_part(manhole.module, &shown_part, "make_console", base,
                                  session->run.names); /* new */
    unlock_imports();
    return console;
}

/* The console of a client that has been greeted; and perhaps told something behind its prompt.
 * Returns with an exception set when it was one that ended it. */
ATTACHED static void
hold_console(struct session *session, bool told)
{
    OWNED PyObject *console = make_console(session);
    /* Also without a console: the shell around it goes on. */
    told = settle_report_attached(session) || told;
    if (console != NULL) {
        run_console(session, console, told);
    }
}

/* The dump, then the console: its modules are imported while its client looks at the prompt.
 * Returns with an exception set when it was one that ended it. */
ATTACHED static void
talk(struct session *session, PyObject *locals)
{
    bool told = false;
    if (is_inet(kept_number(&session->fd))) { /* a Unix client's: behind the prompt */
        set_importing(session, true); /* it may wait for what another session imports */
        session->run.input = open_input(session);
        set_importing(session, false);
    }
    if (PyErr_Occurred() || open_streams(session) < 0 ||
        send_stacks(session, session->channel->no_stacks ? NULL : &dump_form, true) < 0) {
        return;
    }
    if (!HAS_GIL) {
        lend_spare(kept_number(&session->fd)); /* again: the stacks came from a copy */
    }
    told = import_needed_modules(session, "\n");
    set_names(session, make_names(locals, session->channel->live_names));
    if (session->run.names != NULL) {
        hold_console(session, told);
    }
    if (PyErr_Occurred()) { /* what is said about it stands on a line of its own */
        PyObject *raised = take_exception(); /* owned, handed back */
        (void)write_client(session, "\n", 1);
        put_back_exception(raised);
    }
}

/* Serves the session's client with the console. Never raises. */
ATTACHED static void
serve_console(struct session *session, PyObject *locals)
{
    serve_lines(session, locals, talk);
}

#endif /* MANHOLE_SESSION_CONSOLE_C */
