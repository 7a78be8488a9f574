/* Command line: a table of options, read by getopt_long_only().
 *
 * So a name may be cut short where only one option begins like that (--sig), options of one letter
 * may stand together, the last with its argument (-1t2), and an argument is the next word, whatever
 * that looks like, or is glued on (-t2, -t=2, --timeout=2). Words that are no options are taken in
 * their order: the first is the PID, and so are all others, but behind -c and -f they are the
 * code's arguments. Messages are argparse's: scripts that looked for those of python-manhole's
 * client find them.
 *
 * What a row was given is request.given[]; how it reads is up to whoever uses it, but for what is
 * wrong or right by itself, see apply_option().
 * To add an option: its name in enum option_name, a row in options[], a test.
 */
#ifndef MANHOLE_CLI_OPTIONS_C
#define MANHOLE_CLI_OPTIONS_C

#include "terminal.c"
#include "target.c"

/* In the order in which --help lists them. */
enum option_name {
    OPTION_HELP,
    OPTION_TIMEOUT,
    OPTION_USR1,
    OPTION_USR2,
    OPTION_SIGNAL,
    OPTION_NO_DUMP,
    OPTION_QUIET,
    OPTION_RAW,
    OPTION_NO_COLOR,
    OPTION_RECORD,
    OPTION_VERSION,
    OPTION_CODE,
    OPTION_FILE,
    OPTION_FROZEN,
    OPTION_YES,
    OPTION_LOCALS,
    OPTION_STACKS,
    OPTION_TASKS,
    OPTION_GREENLETS,
    OPTION_JSON,
    OPTION_BRIEF,
    OPTION_LOG_LEVEL,
    OPTION_MEMORY,
    OPTION_REPORT,
    OPTION_LIST,
    OPTION_CLEAN,
    OPTION_ALL,
    OPTION_CHILDREN,
    OPTION_MATCH,
    OPTION_ATTACH,
    OPTION_KEEP,
    OPTION_DETACH,
    OPTION_MODULE,
    OPTION_HOST,
    OPTION_EXEC,
    OPTIONS,
};

/* What the command line asks for. */
enum action {
    ACTION_CONSOLE,
    ACTION_RUN,
    ACTION_STACKS,
    ACTION_TASKS,
    ACTION_GREENLETS,
    ACTION_LIST,
    ACTION_CLEAN,
    ACTION_TOP,
};

struct request {
    const char
        *given[OPTIONS]; /* its argument, "" for one without; NULL: was not given */
    enum action action;
    struct target target;       /* the first one */
    const char *pid[MAX_WORDS]; /* all that were given, as they were */
    size_t pids;
    const char *argument[MAX_WORDS]; /* of the code */
    size_t arguments;
    double timeout_s; /* may be inf or nan; nan is over at once, as is what is negative */
    double deadline;  /* of what is run, by now_s() */
    int signal;       /* 0: none is sent */
    pid_t ancestor;   /* of --children; 0: not given */
    struct buffer source;
};

/* Which options go ill together. */
enum group { NO_GROUP, SIGNAL_GROUP, ACTION_GROUP, PLACE_GROUP };

#define NUMBER(number) NUMBER_(number)
#define NUMBER_(number) #number
#define DEFAULT_TIMEOUT_S 1
#define DEFAULT_MEMORY_S 10

static const struct known_option {
    enum group group;    /* at most one of these may be given */
    const char *letter;  /* may be NULL, */
    const char *name;    /* or this one */
    const char *metavar; /* NULL: takes no argument; "[=...": only one that is glued on */
    const char *help;
} options[OPTIONS] = {
    [OPTION_HELP] = {NO_GROUP, "h", "help", NULL, "show this help message and exit"},
    [OPTION_TIMEOUT] = {NO_GROUP, "t", "timeout", "TIMEOUT",
                        "Timeout to use. Default: " NUMBER(
                            DEFAULT_TIMEOUT_S) " seconds."},
    [OPTION_USR1] = {SIGNAL_GROUP, "1", "USR1", NULL,
                     "Send USR1 (" NUMBER(SIGUSR1) ") to the process before connecting."},
    [OPTION_USR2] = {SIGNAL_GROUP, "2", "USR2", NULL,
                     "Send USR2 (" NUMBER(SIGUSR2) ") to the process before connecting."},
    [OPTION_SIGNAL] = {SIGNAL_GROUP, "s", "signal", "SIGNAL",
                       "Send the given SIGNAL to the process before connecting."},
    [OPTION_NO_DUMP] = {NO_GROUP, NULL, "no-dump", NULL,
                        "A console without the stacks at its start."},
    [OPTION_QUIET] = {NO_GROUP, NULL, "quiet", NULL,
                      "The same, and no remarks of manhole-cli; errors are still told."},
    [OPTION_RAW] = {NO_GROUP, NULL, "raw", NULL,
                    "Let control characters from the process through to the terminal."},
    [OPTION_NO_COLOR] = {NO_GROUP, NULL, "no-color", NULL,
                         "No colours, as where NO_COLOR is set."},
    [OPTION_RECORD] = {NO_GROUP, NULL, "record", "FILE",
                       "Keep what is seen in this new FILE, for asciinema to play."},
    [OPTION_VERSION] = {NO_GROUP, NULL, "version", NULL, "show the version and exit"},
    [OPTION_CODE] = {ACTION_GROUP, "c", NULL, "CODE",
                     "Run CODE in the process, print its output only, and exit with its "
                     "status. Words behind it are its sys.argv."},
    [OPTION_FILE] = {ACTION_GROUP, "f", NULL, "FILE",
                     "The same with the code in FILE; \"-\" is standard input."},
    [OPTION_FROZEN] = {NO_GROUP, NULL, "frozen", NULL,
                       "The console, or the code of -c or -f, in a frozen copy of the "
                       "process, also when that hangs. What is done there does nothing."},
    [OPTION_YES] = {NO_GROUP, NULL, "yes", NULL,
                    "Copy a process of more than 4 GB, too, which stops for that; "
                    "attach to one behind a seccomp filter."},
    [OPTION_LOCALS] = {NO_GROUP, NULL, "locals", NULL,
                       "With --stacks: also what the variables of each frame hold, found "
                       "in a frozen copy."},
    [OPTION_STACKS] =
        {ACTION_GROUP, NULL, "stacks", NULL,
         "Print the stacks of all threads and exit, also when the process hangs."},
    [OPTION_TASKS] =
        {ACTION_GROUP, NULL, "tasks", NULL,
         "Print what each task of asyncio or trio, or greenlet, waits for, and for whom; "
         "exit."},
    [OPTION_GREENLETS] = {ACTION_GROUP, NULL, "greenlets", NULL,
                          "The same of greenlets alone."},
    [OPTION_JSON] = {NO_GROUP, NULL, "json", NULL,
                     "Print the stacks, or the tasks, as one JSON document."},
    [OPTION_BRIEF] =
        {NO_GROUP, NULL, "brief", NULL,
         "Print of the stacks a line for each that differs, most threads first."},
    [OPTION_LOG_LEVEL] =
        {ACTION_GROUP, NULL, "log-level", "LOGGER=LEVEL",
         "Give a logger of the process this level; LEVEL alone: the root logger; "
         "\"restore\": give back what they had."},
    [OPTION_MEMORY] = {ACTION_GROUP, NULL, "memory", "[=SECONDS]",
                       "Look twice, " NUMBER(
                           DEFAULT_MEMORY_S) " SECONDS apart: how memory, and the "
                                             "number of objects of each type, grew."},
    [OPTION_REPORT] =
        {ACTION_GROUP, NULL, "report", NULL,
         "Print what a ticket wants: versions, threads, open files, garbage, "
         "the environment without secrets."},
    [OPTION_LIST] = {ACTION_GROUP, NULL, "list", NULL,
                     "List the processes that have a manhole, and whether they answer."},
    [OPTION_CLEAN] = {ACTION_GROUP, NULL, "clean", NULL,
                      "Remove sockets of yours that nobody serves any more."},
    [OPTION_ALL] = {NO_GROUP, NULL, "all", NULL,
                    "Instead of PID: all processes of yours that have a manhole; with "
                    "--attach that run Python."},
    [OPTION_CHILDREN] =
        {NO_GROUP, NULL, "children", "PID",
         "Of these, PID and all that come from it: a master with its workers."},
    [OPTION_MATCH] = {NO_GROUP, NULL, "match", "REGEX",
                      "Of these, those whose command line matches REGEX."},
    [OPTION_ATTACH] =
        {NO_GROUP, NULL, "attach", "[=OPTIONS]",
         "Where there is no manhole, put one in, with these options of install(), until "
         "the last client leaves. Of --stacks alone nothing stays in the process."},
    [OPTION_KEEP] = {NO_GROUP, NULL, "keep", NULL,
                     "With --attach: the manhole stays when the last client has left."},
    [OPTION_DETACH] = {ACTION_GROUP, NULL, "detach", NULL,
                       "Close the manhole of a process, as manhole.release() does."},
    [OPTION_MODULE] =
        {NO_GROUP, NULL, "module", "PATH",
         "With --attach: the module's file, or a folder to look for it in."},
    [OPTION_HOST] = {PLACE_GROUP, NULL, "host", "HOST",
                     "On another machine, by ssh and the manhole-cli there."},
    [OPTION_EXEC] =
        {PLACE_GROUP, NULL, "exec", "COMMAND",
         "In a container, by the manhole-cli there: \"docker exec -i NAME\"."},
};

/* "-USR1" has one dash, as it has in python-manhole. */
static const char *
dashes_of(const struct known_option *option)
{
    return option->name[0] == 'U' ? "-" : "--";
}

/* "-s/--signal", for messages; "-s SIGNAL, --signal SIGNAL", for --help. */
static struct text
title_of(const struct known_option *option, const char *gap, const char *argument)
{
    struct text name = {.text = ""};

    if (option->name != NULL) {
        name = print("%s%s%s", dashes_of(option), option->name, argument);
    }
    return option->letter == NULL ? name
                                  : print("-%s%s%s%s", option->letter, argument,
                                          option->name != NULL ? gap : "", name.text);
}

static struct text
name_of(enum option_name name)
{
    return title_of(&options[name], "/", "");
}

/* ---- --help ------------------------------------------------------------------------ */

/* One entry, in the layout of argparse on a terminal of 80 columns: the text starts in column 24,
 * below the title if that is too long, and ends before column 78. */
static void
print_entry(const char *title, const char *text)
{
    const size_t width = 78 - 24;

    (void)printf(strlen(title) <= 20 ? "  %-20s  " : "  %s\n%24s", title, "");
    while (strlen(text) > width) {
        size_t length = width;
        while (text[length] != ' ') {
            length--;
        }
        (void)printf("%.*s\n%24s", (int)length, text, "");
        text += length + 1;
    }
    (void)printf("%s\n", text);
}

/* In groups, of which the first has python-manhole's own options, as that has them. */
static _Noreturn void
print_help(void)
{
    static const char *const headings[OPTIONS] = {
        [OPTION_HELP] = "options", /* python-manhole's scripts look for it */
        [OPTION_CODE] = "run and print",
        [OPTION_LIST] = "which processes",
        [OPTION_ATTACH] = "a process without a manhole",
        [OPTION_HOST] = "elsewhere",
    };

    (void)printf("%s\nConnect to a manhole.\n\npositional arguments:\n", usage);
    print_entry("PID",
                "A numerical process id, or a path in the form: /tmp/manhole-1234");
    for (size_t i = 0; i < OPTIONS; i++) {
        const char *metavar = options[i].metavar;
        struct text argument = metavar == NULL     ? print("%s", "")
                               : metavar[0] == '[' ? print("%s", metavar)
                                                   : print(" %s", metavar);
        if (headings[i] != NULL) {
            (void)printf("\n%s:\n", headings[i]);
        }
        if (i == OPTION_CODE) {
            print_entry("top [PID ...]", "Instead of all this, show every 2 seconds what "
                                         "these processes do, or the threads of one.");
        }
        print_entry(title_of(&options[i], ", ", argument.text).text, options[i].help);
    }
    leave(STATUS_OK);
}

static _Noreturn void
print_version(void)
{
#ifdef HAVE_LIBEDIT
    static const char editing[] = "lines are edited by libedit";
#else
    static const char editing[] = "no line editing";
#endif
    (void)printf("%s %s (%s)\n", program, MANHOLE_VERSION, editing);
    leave(STATUS_OK);
}

/* ---- What options are given -------------------------------------------------------- */

/* Names the numbers that may be given: those that have a name. */
static _Noreturn void
fail_signal_number(long number)
{
    OWNED_BUFFER known = {.data = NULL};

    for (int candidate = 1; candidate <= SIGRTMAX; candidate++) {
        if (signal_name(candidate) != NULL) {
            append_format(&known, "%s%d", known.length > 0 ? ", " : "", candidate);
        }
    }
    fail(STATUS_USAGE, "argument %s: Invalid signal number %ld. Expected one of: %s",
         name_of(OPTION_SIGNAL).text, number, text_of(&known));
}

/* By name or number. A number wins, as no signal is called by one. Only numbers with a name are
 * taken, so that none of the C library's own real-time signals is sent by mistake. */
static int
parse_signal(const char *argument)
{
    long number = 0;

    if (parse_int(argument, &number)) {
        if (signal_name(number) == NULL) {
            fail_signal_number(number);
        }
        return (int)number;
    }
    number = signal_number(argument);
    if (number == 0) {
        char upper[QUOTED_SIZE]; /* as it was looked up; letters beyond ASCII stay */
        (void)snprintf(upper, sizeof(upper), "%s", argument);
        for (char *c = upper; *c != '\0'; c++) {
            *c = (char)(*c >= 'a' && *c <= 'z' ? *c - 'a' + 'A' : *c);
        }
        fail(STATUS_USAGE, "argument %s: Invalid signal name %s.",
             name_of(OPTION_SIGNAL).text, quote(upper).text);
    }
    return (int)number;
}

/* Takes an option, of which the last wins. A wrong argument is told before what it goes ill with.
 */
static void
apply_option(struct request *request, enum option_name name, const char *argument)
{
    enum group group = options[name].group;
    double seconds = 0;

    switch (name) {
    case OPTION_HELP:
        print_help();
    case OPTION_VERSION:
        print_version();
    case OPTION_TIMEOUT:
        if (!parse_float(argument, &request->timeout_s)) {
            fail(STATUS_USAGE, "argument %s: invalid float value: %s", name_of(name).text,
                 quote(argument).text);
        }
        break;
    case OPTION_USR1:
    case OPTION_USR2:
        request->signal = name == OPTION_USR1 ? SIGUSR1 : SIGUSR2;
        break;
    case OPTION_SIGNAL:
        request->signal = parse_signal(argument);
        break;
    case OPTION_CHILDREN:
        request->ancestor = parse_pid(argument);
        if (request->ancestor == 0) {
            fail(STATUS_USAGE, "argument %s: %s", name_of(name).text, not_a_pid);
        }
        break;
    case OPTION_MEMORY:
        argument = argument[0] == '\0' ? NUMBER(DEFAULT_MEMORY_S) : argument;
        if (!parse_float(argument, &seconds) || !(seconds >= 0 && seconds < INT_MAX)) {
            fail(STATUS_USAGE, "argument %s: invalid number of seconds: %s",
                 name_of(name).text, quote(argument).text);
        }
        break;
    default:
        break;
    }
    for (size_t i = 0; group != NO_GROUP && i < OPTIONS; i++) {
        if (options[i].group == group && i != name && request->given[i] != NULL) {
            fail(STATUS_USAGE, "argument %s: not allowed with argument %s",
                 name_of(name).text, name_of((enum option_name)i).text);
        }
    }
    request->given[name] = argument;
}

/* ---- Words ------------------------------------------------------------------------- */

static bool
is_given(const struct request *request, enum option_name name)
{
    return request->given[name] != NULL;
}

/* Whether the processes are known without a PID. */
static bool
is_selection(const struct request *request)
{
    return is_given(request, OPTION_ALL) || is_given(request, OPTION_CHILDREN) ||
           is_given(request, OPTION_MATCH);
}

/* Whether the PIDs mean processes over there. */
static bool
is_elsewhere(const struct request *request)
{
    return is_given(request, OPTION_HOST) || is_given(request, OPTION_EXEC);
}

/* Whether a text is asked for that the server sends and then closes. */
static bool
is_look(const struct request *request)
{
    return request->action == ACTION_STACKS || request->action == ACTION_TASKS ||
           request->action == ACTION_GREENLETS;
}

/* Whether that is no more than what tasks or greenlets wait for. */
static bool
is_look_at_tasks(const struct request *request)
{
    return is_look(request) && request->action != ACTION_STACKS;
}

/* Whether what comes of a process is shown in one piece, where there are several. */
static bool
is_shown_whole(const struct request *request)
{
    return is_look(request) || is_given(request, OPTION_MEMORY) ||
           is_given(request, OPTION_REPORT);
}

static bool
is_code_given(const struct request *request)
{
    return is_given(request, OPTION_CODE) || is_given(request, OPTION_FILE);
}

/* Takes a word that is no option: the PID, and behind -c and -f an argument of the code. */
static void
add_word(struct request *request, const char *word, struct buffer *unknown)
{
    bool has_process = request->pids > 0 || is_selection(request);
    bool is_argument = is_code_given(request) && has_process;
    size_t *count = is_argument ? &request->arguments : &request->pids;

    if (*count == MAX_WORDS) {
        append_format(unknown, " %s", word);
        return;
    }
    (is_argument ? request->argument : request->pid)[(*count)++] = word;
}

/* A word that getopt does not know. Complains at once of a name that is cut too short, else notes
 * it, for a wrong argument and a missing PID are told first. */
static void
note_unknown(const char *word, struct buffer *unknown)
{
    OWNED_BUFFER names = {.data = NULL};
    const char *name = word + strspn(word, "-");
    size_t matches = 0;

    for (size_t i = 0; i < OPTIONS && name[0] != '\0'; i++) {
        if (options[i].name != NULL &&
            strncmp(options[i].name, name, strlen(name)) == 0) {
            append_format(&names, "%s%s%s", matches++ > 0 ? ", " : "",
                          dashes_of(&options[i]), options[i].name);
        }
    }
    if (matches > 1) {
        fail(STATUS_USAGE, "ambiguous option: %s could match %s", word, text_of(&names));
    }
    append_format(unknown, " %s", word);
}

enum {
    FIRST_VALUE = 256, /* of what getopt returns for options[0]: beyond its letters */
    LETTERS_SIZE = 3 * OPTIONS,
    NAMES_SIZE = 2 * OPTIONS + 1,
};

/* What getopt_long_only() wants. Each letter is a name, too, so that -s=9 is no cut --signal. The
 * letters begin with what asks for other words in their order, and tells what lacks an argument. */
static void
build_tables(char letters[LETTERS_SIZE], struct option names[NAMES_SIZE])
{
    size_t length = (size_t)snprintf(letters, LETTERS_SIZE, "-:");

    for (int i = 0; i < OPTIONS; i++) {
        const char *each[] = {options[i].letter, options[i].name};
        const char *metavar = options[i].metavar;
        int has_argument = metavar == NULL     ? no_argument
                           : metavar[0] == '[' ? optional_argument
                                               : required_argument;
        if (each[0] != NULL) {
            length += (size_t)snprintf(letters + length, LETTERS_SIZE - length, "%s%s",
                                       each[0], has_argument != no_argument ? ":" : "");
        }
        for (size_t j = 0; j < 2; j++) {
            if (each[j] != NULL) {
                *names++ = (struct option){
                    .name = each[j], .has_arg = has_argument, .val = FIRST_VALUE + i};
            }
        }
    }
    *names = (struct option){.name = NULL};
}

/* The row that getopt's value stands for: a letter, or what build_tables() gave the name. */
static enum option_name
find_option(int value)
{
    int found = value - FIRST_VALUE;

    for (int i = 0; i < OPTIONS && value < FIRST_VALUE; i++) {
        found = options[i].letter != NULL && options[i].letter[0] == value ? i : found;
    }
    return (enum option_name)found;
}

/* Begins anew behind a word that is unknown: getopt would go on in the middle of it. */
static void
parse_words(int argc, char **argv, struct request *request, struct buffer *unknown)
{
    char letters[LETTERS_SIZE];
    struct option names[NAMES_SIZE];
    int value = 0;

    build_tables(letters, names);
    opterr = 0;
    optind = 0; /* begins anew */
    while (value != -1) {
        int at = optind > 0 ? optind : 1;
        /* NOLINTNEXTLINE(concurrency-mt-unsafe): there is one thread */
        value = getopt_long_only(argc, argv, letters, names, NULL);
        if (value == 1) {
            add_word(request, optarg, unknown);
        }
        else if (value == ':') {
            fail(STATUS_USAGE, "argument %s: expected one argument",
                 name_of(find_option(optopt)).text);
        }
        else if (value == '?') {
            note_unknown(argv[at], unknown);
            argv += at;
            argc -= at;
            optind = 0;
        }
        else if (value != -1) {
            /* Behind a name getopt has taken the "=" away, behind a letter (-1t=2) not. */
            bool is_glued = optarg != NULL && optarg != argv[optind - 1];
            bool has_sign = value < FIRST_VALUE && is_glued && optarg[0] == '=';
            apply_option(request, find_option(value),
                         optarg == NULL ? "" : optarg + has_sign);
        }
    }
    for (int i = optind; i < argc; i++) { /* behind "--" */
        add_word(request, argv[i], unknown);
    }
}

/* The action that the options ask for together: of these --json and --brief come last, for they may
 * stand beside another. */
static enum action
find_action(const struct request *request)
{
    static const struct {
        enum option_name option;
        enum action action;
    } rows[] = {{OPTION_CODE, ACTION_RUN},
                {OPTION_FILE, ACTION_RUN},
                {OPTION_LIST, ACTION_LIST},
                {OPTION_CLEAN, ACTION_CLEAN},
                {OPTION_STACKS, ACTION_STACKS},
                {OPTION_TASKS, ACTION_TASKS},
                {OPTION_GREENLETS, ACTION_GREENLETS},
                {OPTION_DETACH, ACTION_RUN},
                {OPTION_LOG_LEVEL, ACTION_RUN},
                {OPTION_MEMORY, ACTION_RUN},
                {OPTION_REPORT, ACTION_RUN},
                {OPTION_JSON, ACTION_STACKS},
                {OPTION_BRIEF, ACTION_STACKS}};

    for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
        if (is_given(request, rows[i].option)) {
            return rows[i].action;
        }
    }
    return ACTION_CONSOLE;
}

/* The one action that is a word, before the PIDs: none of these is called so. */
static void
take_command(struct request *request)
{
    if (request->action == ACTION_CONSOLE && request->pids > 0 &&
        strcmp(request->pid[0], "top") == 0) {
        request->action = ACTION_TOP;
        request->pids--;
        memmove(request->pid, request->pid + 1, request->pids * sizeof(request->pid[0]));
    }
}

/* What an option stands with. */
#define BIT(number) (UINT64_C(1) << (number))
_Static_assert(OPTIONS <= 64, "a bit for each");
static const struct companions {
    enum option_name option;
    uint64_t actions; /* a bit for each: one of these, if there are any here, */
    uint64_t one_of;  /* one of these options, if there are any here, */
    uint64_t none_of; /* and none of these */
    const char *error;
} companions[] = {
    {.option = OPTION_BRIEF,
     .actions = BIT(ACTION_STACKS),
     .none_of = BIT(OPTION_JSON),
     .error = "only with --stacks, and not with --json"},
    {.option = OPTION_JSON,
     .actions = BIT(ACTION_STACKS) | BIT(ACTION_TASKS) | BIT(ACTION_GREENLETS),
     .error = "only with --stacks, --tasks or --greenlets"},
    {.option = OPTION_FROZEN,
     .actions = BIT(ACTION_RUN) | BIT(ACTION_CONSOLE),
     .error = "only with a console, -c or -f"},
    {.option = OPTION_LOCALS,
     .actions = BIT(ACTION_STACKS),
     .none_of = BIT(OPTION_BRIEF),
     .error = "only with --stacks, and not with --brief"},
    {.option = OPTION_YES,
     .one_of = BIT(OPTION_FROZEN) | BIT(OPTION_LOCALS) | BIT(OPTION_MEMORY) |
               BIT(OPTION_ATTACH),
     .error = "only with --frozen, --locals, --memory or --attach"},
    {.option = OPTION_ATTACH,
     .actions = ~(BIT(ACTION_LIST) | BIT(ACTION_CLEAN) | BIT(ACTION_TOP)),
     .error = "not with --list, --clean or top"},
    {.option = OPTION_KEEP, .one_of = BIT(OPTION_ATTACH), .error = "only with --attach"},
    {.option = OPTION_MODULE,
     .one_of = BIT(OPTION_ATTACH),
     .error = "only with --attach"},
};

static bool
is_any_given(const struct request *request, uint64_t bits)
{
    for (int i = 0; i < OPTIONS; i++) {
        if ((bits & BIT(i)) != 0 && is_given(request, (enum option_name)i)) {
            return true;
        }
    }
    return false;
}

static void
check_companions(const struct request *request)
{
    for (size_t i = 0; i < sizeof(companions) / sizeof(companions[0]); i++) {
        const struct companions *row = &companions[i];
        bool is_right =
            (row->actions == 0 || (row->actions & BIT(request->action)) != 0) &&
            (row->one_of == 0 || is_any_given(request, row->one_of)) &&
            !is_any_given(request, row->none_of);
        if (is_given(request, row->option) && !is_right) {
            fail(STATUS_USAGE, "argument %s: %s", name_of(row->option).text, row->error);
        }
    }
}

/* Finds what the PIDs mean. */
static void
parse_targets(struct request *request)
{
    for (size_t i = 0; i < request->pids && !is_elsewhere(request); i++) {
        struct target target = parse_target(request->pid[i]);
        if (target.config != NULL && request->action != ACTION_CONSOLE) {
            fail(STATUS_USAGE,
                 "argument PID: %s is a configuration file, which opens a shell to "
                 "choose a process in; give the PID or the socket of one",
                 quote(target.config).text);
        }
        if (i == 0) {
            request->target = target;
        }
    }
}

/* Reads the command line; ends the program when it is wrong or asks for help. */
static void
parse_command_line(int argc, char **argv, struct request *request)
{
    OWNED_BUFFER unknown = {.data = NULL};

    parse_words(argc, argv, request, &unknown);
    request->action = find_action(request);
    take_command(request);
    enum action action = request->action;
    bool may_be_several =
        action == ACTION_RUN || action == ACTION_TOP || is_look(request);
    bool may_be_none = action == ACTION_LIST || action == ACTION_CLEAN ||
                       action == ACTION_TOP || is_selection(request) ||
                       (argc <= 1 && is_interactive());

    if (request->pids == 0 && !may_be_none) {
        fail(STATUS_USAGE, "the following arguments are required: PID");
    }
    for (size_t i = 1; i < request->pids && !may_be_several; i++) {
        append_format(&unknown, " %s", request->pid[i]);
    }
    if (unknown.length > 0) {
        fail(STATUS_USAGE, "unrecognized arguments:%s", unknown.data);
    }
    if (request->pids > 0 && is_given(request, OPTION_ALL)) {
        fail(STATUS_USAGE, "argument --all: not allowed with argument PID");
    }
    check_companions(request);
    parse_targets(request);
}

#endif /* MANHOLE_CLI_OPTIONS_C */
