/* Command line: a table of options, read by rules that are argparse's to the letter:
 *   - every word before a "--" that begins with "-" is an option, "-" alone excepted, and a
 *     word with a space in it that is none; so "-5" is never a number here
 *   - a name may be cut short where only one option begins like that: --sig, --t
 *   - options of one letter may stand together, the last with its argument: -1t2
 *   - an argument may follow as the next word, glued on (-t2), or after "=" (-t=2)
 *   - the first mistake from the left is told, save that an ambiguous name comes before all
 *     others, and unknown words come last
 * To add an option: a row in options[], its function, the usage line, a test.
 */
#ifndef MANHOLE_CLI_OPTIONS_C
#define MANHOLE_CLI_OPTIONS_C

#include "messages.c"
#include "values.c"
#include "terminal.c"
#include "target.c"

enum {
    TITLE_SIZE = 64,  /* bytes of an option's names, for --help and messages */
    MAX_OPTIONS = 32, /* rows of options[], for each has a bit */
};

/* What the command line asks for. */
enum action {
    ACTION_CONSOLE,
    ACTION_RUN,
    ACTION_STACKS,
    ACTION_TASKS,
    ACTION_LIST,
    ACTION_CLEAN,
};

enum {
    FLAG_JSON = 1,
    FLAG_ALL = 2,
    FLAG_NO_DUMP = 4,
    FLAG_QUIET = 8,
    FLAG_RAW = 16,
    FLAG_BRIEF = 32,
};

struct request {
    enum action action;
    unsigned flags;
    struct target target;       /* the first one */
    const char *pid[MAX_WORDS]; /* all that were given, as they were */
    size_t pids;
    double timeout_s; /* may be inf or nan; nan is over at once, as is what is negative */
    double deadline;  /* of what is run, by now_s() */
    int signal;       /* 0: none is sent */
    const char *code; /* of -c */
    const char *file; /* of -f */
    const char *argument[MAX_WORDS]; /* of the code */
    size_t arguments;
    struct buffer source;
    pid_t ancestor; /* of --children; 0: not given */
    const char *match;
    const char *host;
    const char *command;
    unsigned taken;                 /* bit i: options[i] was given, */
    const char *given[MAX_OPTIONS]; /* and with this argument */
};

/* Which options go ill together. */
enum group { NO_GROUP, SIGNAL_GROUP, ACTION_GROUP, PLACE_GROUP };

struct option {
    const char *heading;  /* in --help, before this row; NULL: the group goes on */
    const char *names[2]; /* the second may be NULL */
    const char *metavar;  /* NULL: takes no argument */
    const char *help;
    enum group group; /* at most one of these may be given */
    int constant;     /* of the signal, the action or the flag that it stands for */
    bool
        is_new; /* not python-manhole's: its name may not be what makes another ambiguous */
    bool is_literal;   /* its argument is the next word, whatever that looks like */
    bool is_elsewhere; /* says where, and is not said again over there */
    /* argument: NULL without metavar */
    void (*take)(const struct option *option, const char *argument,
                 struct request *request);
};

#define NUMBER_TEXT(number) NUMBER_TEXT_(number)
#define NUMBER_TEXT_(number) #number
#define DEFAULT_TIMEOUT_S 1

#define TAKES(name)                                                                      \
  static void name(const struct option *option, const char *argument,                    \
                   struct request *request)
TAKES(take_help);
TAKES(take_version);
TAKES(take_timeout);
TAKES(take_constant_signal);
TAKES(take_signal);
TAKES(take_code);
TAKES(take_file);
TAKES(take_action);
TAKES(take_flag);
TAKES(take_ancestor);
TAKES(take_match);
TAKES(take_host);
TAKES(take_command);

static const struct option options[] = {
    {
        .heading = "options", /* python-manhole's scripts look for it */
        .names = {"-h", "--help"},
        .help = "show this help message and exit",
        .take = take_help,
    },
    {
        .names = {"-t", "--timeout"},
        .metavar = "TIMEOUT",
        .help = "Timeout to use. Default: " NUMBER_TEXT(DEFAULT_TIMEOUT_S) " seconds.",
        .take = take_timeout,
    },
    {
        .names = {"-1", "-USR1"},
        .help = "Send USR1 (" NUMBER_TEXT(SIGUSR1) ") to the process before connecting.",
        .group = SIGNAL_GROUP,
        .constant = SIGUSR1,
        .take = take_constant_signal,
    },
    {
        .names = {"-2", "-USR2"},
        .help = "Send USR2 (" NUMBER_TEXT(SIGUSR2) ") to the process before connecting.",
        .group = SIGNAL_GROUP,
        .constant = SIGUSR2,
        .take = take_constant_signal,
    },
    {
        .names = {"-s", "--signal"},
        .metavar = "SIGNAL",
        .help = "Send the given SIGNAL to the process before connecting.",
        .group = SIGNAL_GROUP,
        .take = take_signal,
    },
    {
        .names = {"--no-dump"},
        .help = "A console without the stacks at its start.",
        .constant = FLAG_NO_DUMP,
        .is_new = true,
        .take = take_flag,
    },
    {
        .names = {"--quiet"},
        .help = "The same, and no remarks of manhole-cli; errors are still told.",
        .constant = FLAG_QUIET | FLAG_NO_DUMP,
        .is_new = true,
        .take = take_flag,
    },
    {
        .names = {"--raw"},
        .help = "Let control characters from the process through to the terminal.",
        .constant = FLAG_RAW,
        .is_new = true,
        .take = take_flag,
    },
    {
        .names = {"--version"},
        .help = "show the version and exit",
        .is_new = true,
        .take = take_version,
    },
    {
        .heading = "run and print",
        .names = {"-c"},
        .metavar = "CODE",
        .help =
            "Run CODE in the process, print its output only, and exit with its status. "
            "Words behind it are its sys.argv.",
        .group = ACTION_GROUP,
        .is_new = true,
        .is_literal = true,
        .take = take_code,
    },
    {
        .names = {"-f"},
        .metavar = "FILE",
        .help = "The same with the code in FILE; \"-\" is standard input.",
        .group = ACTION_GROUP,
        .is_new = true,
        .is_literal = true,
        .take = take_file,
    },
    {
        .names = {"--stacks"},
        .help = "Print the stacks of all threads and exit, also when the process hangs.",
        .group = ACTION_GROUP,
        .constant = ACTION_STACKS,
        .is_new = true,
        .take = take_action,
    },
    {
        .names = {"--tasks"},
        .help = "Print what each task of asyncio, or greenlet, waits for, and for whom; "
                "exit.",
        .group = ACTION_GROUP,
        .constant = ACTION_TASKS,
        .is_new = true,
        .take = take_action,
    },
    {
        .names = {"--json"},
        .help = "Print the stacks, or the tasks, as one JSON document.",
        .constant = FLAG_JSON,
        .is_new = true,
        .take = take_flag,
    },
    {
        .names = {"--brief"},
        .help = "Print of the stacks a line for each that differs, most threads first.",
        .constant = FLAG_BRIEF,
        .is_new = true,
        .take = take_flag,
    },
    {
        .heading = "which processes",
        .names = {"--list"},
        .help = "List the processes that have a manhole, and whether they answer.",
        .group = ACTION_GROUP,
        .constant = ACTION_LIST,
        .is_new = true,
        .take = take_action,
    },
    {
        .names = {"--clean"},
        .help = "Remove sockets of yours that nobody serves any more.",
        .group = ACTION_GROUP,
        .constant = ACTION_CLEAN,
        .is_new = true,
        .take = take_action,
    },
    {
        .names = {"--all"},
        .help = "Instead of PID: all processes of yours that have a manhole.",
        .constant = FLAG_ALL,
        .is_new = true,
        .take = take_flag,
    },
    {
        .names = {"--children"},
        .metavar = "PID",
        .help = "Of these, PID and all that come from it: a master with its workers.",
        .is_new = true,
        .take = take_ancestor,
    },
    {
        .names = {"--match"},
        .metavar = "REGEX",
        .help = "Of these, those whose command line matches REGEX.",
        .is_new = true,
        .take = take_match,
    },
    {
        .heading = "elsewhere",
        .names = {"--host"},
        .metavar = "HOST",
        .help = "On another machine, by ssh and the manhole-cli there.",
        .group = PLACE_GROUP,
        .is_new = true,
        .is_elsewhere = true,
        .take = take_host,
    },
    {
        .names = {"--exec"},
        .metavar = "COMMAND",
        .help = "In a container, by the manhole-cli there: \"docker exec -i NAME\".",
        .group = PLACE_GROUP,
        .is_new = true,
        .is_elsewhere = true,
        .take = take_command,
    },
};

#define OPTIONS (sizeof(options) / sizeof(options[0]))
_Static_assert(OPTIONS <= (size_t)MAX_OPTIONS, "struct request has room for all options");

/* All names of an option, for messages ("-s/--signal") and for --help ("-s SIGNAL,
 * --signal SIGNAL"). By value, like struct quoted. */
struct title {
    char text[TITLE_SIZE];
};

static struct title
title_of(const struct option *option)
{
    struct title title;
    bool is_single = option->names[1] == NULL;
    (void)snprintf(title.text, sizeof(title.text), "%s%s%s", option->names[0],
                   is_single ? "" : "/", is_single ? "" : option->names[1]);
    return title;
}

static struct title
synopsis_of(const struct option *option)
{
    struct title title;
    const char *gap = option->metavar != NULL ? " " : "";
    const char *metavar = option->metavar != NULL ? option->metavar : "";
    int length = snprintf(title.text, sizeof(title.text), "%s%s%s", option->names[0], gap,
                          metavar);
    if (option->names[1] != NULL) {
        (void)snprintf(title.text + length, sizeof(title.text) - (size_t)length,
                       ", %s%s%s", option->names[1], gap, metavar);
    }
    return title;
}

/* One entry of --help, in the layout of argparse on a terminal of 80 columns: the text
 * starts in column 24, below the title if that is too long, and ends before column 78. */
static void
print_entry(const char *title, const char *text)
{
    const size_t width = 78 - 24;

    if (strlen(title) <= 20) {
        (void)printf("  %-20s  ", title);
    }
    else {
        (void)printf("  %s\n%24s", title, "");
    }
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

/* Those that the rows name. What they are given has been matched to the row: an argument
 * is there exactly when the row has a metavar. This one does not return. */
static void
take_help(const struct option *option, const char *argument, struct request *request)
{
    (void)option;
    (void)argument;
    (void)request;
    (void)printf("%s\nConnect to a manhole.\n\npositional arguments:\n", usage);
    print_entry("PID",
                "A numerical process id, or a path in the form: /tmp/manhole-1234");
    for (size_t i = 0; i < OPTIONS; i++) {
        if (options[i].heading != NULL) {
            (void)printf("\n%s:\n", options[i].heading);
        }
        print_entry(synopsis_of(&options[i]).text, options[i].help);
    }
    leave(STATUS_OK);
}

static void
take_version(const struct option *option, const char *argument, struct request *request)
{
    (void)option;
    (void)argument;
    (void)request;
#ifdef HAVE_LIBEDIT
    static const char editing[] = " (lines are edited by libedit)";
#else
    static const char editing[] = " (no line editing)";
#endif
    (void)printf("%s %s%s\n", program, MANHOLE_VERSION, editing);
    leave(STATUS_OK);
}

static void
take_code(const struct option *option, const char *argument, struct request *request)
{
    (void)option;
    request->action = ACTION_RUN;
    request->code = argument;
}

static void
take_file(const struct option *option, const char *argument, struct request *request)
{
    (void)option;
    request->action = ACTION_RUN;
    request->file = argument;
}

static void
take_action(const struct option *option, const char *argument, struct request *request)
{
    (void)argument;
    request->action = (enum action)option->constant;
}

static void
take_flag(const struct option *option, const char *argument, struct request *request)
{
    (void)argument;
    request->flags |= (unsigned)option->constant;
}

static void
take_ancestor(const struct option *option, const char *argument, struct request *request)
{
    request->ancestor = parse_pid(argument);
    if (request->ancestor == 0) {
        fail_usage(
            "argument %s: PID must be in one of these forms: 1234 or /tmp/manhole-1234",
            title_of(option).text);
    }
}

static void
take_match(const struct option *option, const char *argument, struct request *request)
{
    (void)option;
    request->match = argument;
}

static void
take_host(const struct option *option, const char *argument, struct request *request)
{
    (void)option;
    request->host = argument;
}

static void
take_command(const struct option *option, const char *argument, struct request *request)
{
    (void)option;
    request->command = argument;
}

static void
take_timeout(const struct option *option, const char *argument, struct request *request)
{
    if (!parse_float(argument, &request->timeout_s)) {
        fail_usage("argument %s: invalid float value: %s", title_of(option).text,
                   quote(argument).text);
    }
}

static void
take_constant_signal(const struct option *option, const char *argument,
                     struct request *request)
{
    (void)argument;
    request->signal = option->constant;
}

/* Names the numbers that may be given: those that have a name. */
static _Noreturn void
fail_signal_number(const struct option *option, long number)
{
    char known[512] = "";
    size_t length = 0;

    for (int candidate = 1; candidate <= SIGRTMAX; candidate++) {
        if (signal_name(candidate) != NULL) {
            length += (size_t)snprintf(known + length, sizeof(known) - length, "%s%d",
                                       length > 0 ? ", " : "", candidate);
        }
    }
    fail_usage("argument %s: Invalid signal number %ld. Expected one of: %s",
               title_of(option).text, number, known);
}

/* Shows the name as it was looked up, in upper case; letters beyond ASCII stay as they are. */
static _Noreturn void
fail_signal_name(const struct option *option, const char *name)
{
    char upper[QUOTED_SIZE];

    (void)snprintf(upper, sizeof(upper), "%s", name);
    for (char *c = upper; *c != '\0'; c++) {
        *c = (char)(*c >= 'a' && *c <= 'z' ? *c - 'a' + 'A' : *c);
    }
    fail_usage("argument %s: Invalid signal name %s.", title_of(option).text,
               quote(upper).text);
}

/* A number wins over a name, as no signal is called by one. Only numbers with a name are
 * taken, so that none of the C library's own real-time signals is sent by mistake. */
static void
take_signal(const struct option *option, const char *argument, struct request *request)
{
    long number = 0;

    if (!parse_int(argument, &number)) {
        number = signal_number(argument);
        if (number == 0) {
            fail_signal_name(option, argument);
        }
    }
    else if (signal_name(number) == NULL) {
        fail_signal_number(option, number);
    }
    request->signal = (int)number;
}

/* What one word of the command line is by itself, whatever stands before it. Found anew
 * each time it is asked for, which costs nothing worth a table of results. */
struct word {
    bool is_option;
    bool is_long;                /* begins with "--" */
    const struct option *option; /* NULL: it looks like one, but there is none such */
    const char *argument;        /* what is glued to the option; NULL: nothing is */
};

/* The option with exactly this name, which need not end where its string ends. */
static const struct option *
find_option(const char *name, size_t length)
{
    for (size_t i = 0; i < OPTIONS; i++) {
        for (size_t j = 0; j < 2; j++) {
            const char *candidate = options[i].names[j];
            if (candidate != NULL && strlen(candidate) == length &&
                strncmp(candidate, name, length) == 0) {
                return &options[i];
            }
        }
    }
    return NULL;
}

/* Whether text may stand for this name: "--sig=9" for --signal, "-t5" for -t, "-US" for
 * -USR1. argument: what then follows the name, or NULL. */
static bool
may_mean(const char *text, const char *name, const char **argument)
{
    bool is_long = text[1] == '-';
    const char *equals = is_long ? strchr(text, '=') : NULL;
    size_t length = equals != NULL ? (size_t)(equals - text) : strlen(text);

    *argument = equals != NULL ? equals + 1 : NULL;
    if (!is_long && strlen(name) == 2 && strncmp(text, name, 2) == 0) {
        *argument = text + 2;
        return true;
    }
    return strncmp(text, name, length) == 0;
}

/* Finds what a shortened name, or one with its argument glued to it, stands for. Ends the
 * program when that may be several. */
static struct word
resolve_option(const char *text)
{
    struct word word = {.is_option = true, .is_long = text[1] == '-'};
    char names[OPTIONS * TITLE_SIZE] = "";
    size_t length = 0;
    size_t found = 0;

    /* What is short for one of python-manhole's options stays so. */
    for (size_t i = 0; i < OPTIONS && (found == 0 || !options[i].is_new); i++) {
        for (size_t j = 0; j < 2; j++) {
            const char *name = options[i].names[j];
            const char *argument = NULL;
            if (name != NULL && may_mean(text, name, &argument)) {
                word.option = &options[i];
                word.argument = argument;
                length += (size_t)snprintf(names + length, sizeof(names) - length, "%s%s",
                                           found > 0 ? ", " : "", name);
                found++;
            }
        }
    }
    if (found > 1) {
        fail_usage("ambiguous option: %s could match %s", text, names);
    }
    return word;
}

/* Says what a word is, in the order in which argparse asks. */
static struct word
classify_word(const char *text)
{
    size_t name_length = strcspn(text, "=");
    struct word word = {.is_option = true};

    if (text[0] != '-' || text[1] == '\0') {
        return (struct word){.is_option = false};
    }
    word.is_long = text[1] == '-';
    word.option = find_option(text, strlen(text));
    if (word.option == NULL && text[name_length] == '=') {
        word.option = find_option(text, name_length);
        word.argument = text + name_length + 1;
    }
    if (word.option == NULL) {
        word = resolve_option(text);
    }
    if (word.option == NULL && strchr(text, ' ') != NULL) {
        word.is_option = false;
    }
    return word;
}

/* Does what an option asks for, unless it goes ill with one that came before. A wrong
 * argument is told before such a conflict. The same option may come again: the last wins. */
static void
take_option(const struct option *option, const char *argument, struct request *request)
{
    option->take(option, argument, request);
    for (size_t i = 0; option->group != NO_GROUP && i < OPTIONS; i++) {
        if (options[i].group == option->group && &options[i] != option &&
            (request->taken & 1U << i) != 0) {
            fail_usage("argument %s: not allowed with argument %s", title_of(option).text,
                       title_of(&options[i]).text);
        }
    }
    request->taken |= 1U << (option - options);
    request->given[option - options] = argument;
}

/* The option that comes next in a bundle, by its letter: what is glued to an option
 * without an argument. Ends the program when there is none such. */
static const struct option *
next_in_bundle(const struct word *word)
{
    const char name[] = {'-', word->argument[0]};
    const struct option *option = NULL;

    if (!word->is_long && word->argument[0] != '\0') {
        option = find_option(name, sizeof(name));
    }
    if (option == NULL) {
        fail_usage("argument %s: ignored explicit argument %s",
                   title_of(word->option).text, quote(word->argument).text);
    }
    return option;
}

/* Follows the options bundled in one word: "-1t2", or "-1" alone. next: the following
 * word if it can be an argument, or NULL. request: NULL on a first round, which only
 * looks for mistakes; these come before any of the options has its effect. Returns
 * whether next was taken. */
static bool
walk_bundle(struct word word, const char *next, struct request *request)
{
    while (word.option != NULL) {
        bool takes_argument = word.option->metavar != NULL;
        bool takes_next = takes_argument && word.argument == NULL;
        const char *argument = takes_next ? next : word.argument;
        const struct option *following = NULL;

        if (takes_next && next == NULL) {
            fail_usage("argument %s: expected one argument", title_of(word.option).text);
        }
        if (!takes_argument && argument != NULL) {
            following = next_in_bundle(&word);
        }
        if (request != NULL) {
            take_option(word.option, argument, request);
        }
        if (takes_next) {
            return true;
        }
        word.option = following;
        if (following != NULL) {
            word.argument = argument[1] != '\0' ? argument + 1 : NULL;
        }
    }
    return false;
}

/* The words after the program's name. Those before the first "--" may be options. What
 * nobody takes is moved to the front, to be named at the end. */
struct words {
    char **text;
    int count;
    int dashes; /* where the first "--" stands; count: nowhere */
    int extra;  /* how many nobody took */
};

static bool
takes_literal(const char *text)
{
    const struct option *option = find_option(text, strlen(text));
    return option != NULL && option->is_literal;
}

/* Whether the word at i is one that an option before it takes as it is. Of such options in a row
 * every other one is itself a word that was taken: -c -c x */
static bool
is_literal(const struct words *words, int i)
{
    int row = 0;
    while (row < i && takes_literal(words->text[i - 1 - row])) {
        row++;
    }
    return row % 2 == 1 && i < words->count && i - 1 < words->dashes;
}

/* Whether there is a word at i and it is no option; the first "--" is neither. */
static bool
is_argument(const struct words *words, int i)
{
    return is_literal(words, i) ||
           (i < words->count && i != words->dashes &&
            (i > words->dashes || !classify_word(words->text[i]).is_option));
}

/* Whether the processes are known without a PID. */
static bool
is_selection(const struct request *request)
{
    return (request->flags & FLAG_ALL) != 0 || request->ancestor != 0 ||
           request->match != NULL;
}

/* What is asked for with --stacks alone needs no --stacks. */
enum { MEANS_STACKS = FLAG_JSON | FLAG_BRIEF };

/* Whether a text is asked for that the server sends and then closes. */
static bool
is_look(const struct request *request)
{
    return request->action == ACTION_STACKS || request->action == ACTION_TASKS;
}

/* Takes a word that stands behind -c or -f and is neither an option nor the PID. */
static int
take_argument_of_code(const struct words *words, int i, struct request *request)
{
    if (request->action != ACTION_RUN || (request->pids == 0 && !is_selection(request))) {
        return 0;
    }
    if (i == words->dashes) {
        return 1;
    }
    if (!is_argument(words, i) || request->arguments == MAX_WORDS) {
        return 0;
    }
    request->argument[request->arguments++] = words->text[i];
    return 1;
}

/* Takes the PID if it is here, with a "--" before or behind it. Returns how many words
 * that was, as the next function does. */
static int
take_pid(const struct words *words, int i, struct request *request)
{
    int at = i == words->dashes ? i + 1 : i;

    if (request->pids > 0 || !is_argument(words, at)) {
        return 0;
    }
    request->pid[request->pids++] = words->text[at];
    if (request->host == NULL &&
        request->command == NULL) { /* else it means one over there */
        request->target = parse_target(words->text[at]);
    }
    return at + 1 == words->dashes ? 2 : at + 1 - i;
}

/* Takes the options of one word, and the argument of the last of them from the next word
 * where it needs one. An option that does not exist is left for the complaint at the end:
 * a missing PID, a wrong argument are told first. */
static int
take_bundle(const struct words *words, int i, struct request *request)
{
    const char *next = is_argument(words, i + 1) ? words->text[i + 1] : NULL;
    struct word word = {.is_option = false};

    if (i < words->dashes) {
        word = classify_word(words->text[i]);
    }
    if (!word.is_option || word.option == NULL) {
        return 0;
    }
    (void)walk_bundle(word, next, NULL);
    return walk_bundle(word, next, request) ? 2 : 1;
}

/* Names what nobody took. Left as it was typed, as argparse does. */
static _Noreturn void
fail_extra_words(const struct words *words)
{
    char all[PATH_MAX] = "";
    size_t length = 0;

    for (int i = 0; i < words->extra && length < sizeof(all); i++) {
        length +=
            (size_t)snprintf(all + length, sizeof(all) - length, " %s", words->text[i]);
    }
    fail_usage("unrecognized arguments:%s", all);
}

/* Takes more PIDs, where what is asked for can be had of several. */
static void
take_more_pids(struct words *words, struct request *request)
{
    bool may_be_several = request->action == ACTION_RUN || is_look(request) ||
                          (request->flags & MEANS_STACKS) != 0;

    for (int i = 0; i < words->extra; i++) {
        if (!may_be_several || words->text[i][0] == '-' || request->pids == MAX_WORDS) {
            fail_extra_words(words);
        }
        request->pid[request->pids++] = words->text[i];
    }
}

/* What the options say together that none says alone. */
static void
settle_request(struct request *request)
{
    if ((request->flags & MEANS_STACKS) != 0 && request->action == ACTION_CONSOLE) {
        request->action = ACTION_STACKS;
    }
    if ((request->flags & FLAG_BRIEF) != 0 &&
        (request->action != ACTION_STACKS || (request->flags & FLAG_JSON) != 0)) {
        fail_usage("argument --brief: only with --stacks, and not with --json");
    }
    if ((request->flags & FLAG_JSON) != 0 && !is_look(request)) {
        fail_usage("argument --json: only with --stacks or --tasks");
    }
    for (size_t i = 0;
         i < request->pids && request->host == NULL && request->command == NULL; i++) {
        struct target target =
            request->pids > 1 ? parse_target(request->pid[i]) : request->target;
        if (target.config != NULL && request->action != ACTION_CONSOLE) {
            fail_usage("argument PID: %s is a configuration file, which opens a shell to "
                       "choose a process in; give the PID or the socket of one",
                       quote(target.config).text);
        }
    }
}

/* Reads the command line; ends the program when it is wrong or asks for help. Options
 * count from left to right, the PID stands anywhere between them. */
static void
parse_command_line(int argc, char **argv, struct request *request)
{
    struct words words = {.text = argv + 1, .count = argc > 0 ? argc - 1 : 0};
    bool needs_pid = false;

    /* An option that is ambiguous is an error before any other takes effect. */
    words.dashes = words.count;
    for (int i = 0; i < words.dashes; i++) {
        if (!is_literal(&words, i)) {
            if (strcmp(words.text[i], "--") == 0) {
                words.dashes = i;
                break;
            }
            (void)classify_word(words.text[i]);
        }
    }
    for (int i = 0; i < words.count;) {
        int taken = take_argument_of_code(&words, i, request);
        if (taken == 0) {
            taken = take_pid(&words, i, request);
        }
        if (taken == 0) {
            taken = take_bundle(&words, i, request);
        }
        if (taken == 0) {
            words.text[words.extra++] = words.text[i];
            taken = 1;
        }
        i += taken;
    }
    needs_pid = request->action != ACTION_LIST && request->action != ACTION_CLEAN &&
                !is_selection(request) &&
                !(words.count == 0 && terminal.is_typed_on && terminal.is_shown_on);
    if (request->pids == 0 && needs_pid) {
        fail_usage("the following arguments are required: PID");
    }
    take_more_pids(&words, request);
    settle_request(request);
}

#endif /* MANHOLE_CLI_OPTIONS_C */
