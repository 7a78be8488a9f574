/* Values: numbers and signals as Python's int(), float() and signal module read them, but
 * for digits of other scripts. What Python refuses is refused: "1e" and "0x10" are no
 * numbers, "1_000" and " 5 " are.
 * To add a signal: a row in signals[].
 */
#ifndef MANHOLE_CLI_VALUES_C
#define MANHOLE_CLI_VALUES_C

#include "base.h"

/* Every name that Python's signal module has on Linux. Aliases come after the usual name.
 */
static const struct signal_name {
    const char *name; /* without SIG */
    int number;
} signals[] = {
    {.name = "HUP", .number = SIGHUP},       {.name = "INT", .number = SIGINT},
    {.name = "QUIT", .number = SIGQUIT},     {.name = "ILL", .number = SIGILL},
    {.name = "TRAP", .number = SIGTRAP},     {.name = "ABRT", .number = SIGABRT},
    {.name = "IOT", .number = SIGABRT},      {.name = "BUS", .number = SIGBUS},
    {.name = "FPE", .number = SIGFPE},       {.name = "KILL", .number = SIGKILL},
    {.name = "USR1", .number = SIGUSR1},     {.name = "SEGV", .number = SIGSEGV},
    {.name = "USR2", .number = SIGUSR2},     {.name = "PIPE", .number = SIGPIPE},
    {.name = "ALRM", .number = SIGALRM},     {.name = "TERM", .number = SIGTERM},
#ifdef SIGSTKFLT
    {.name = "STKFLT", .number = SIGSTKFLT},
#endif
    {.name = "CHLD", .number = SIGCHLD},     {.name = "CLD", .number = SIGCHLD},
    {.name = "CONT", .number = SIGCONT},     {.name = "STOP", .number = SIGSTOP},
    {.name = "TSTP", .number = SIGTSTP},     {.name = "TTIN", .number = SIGTTIN},
    {.name = "TTOU", .number = SIGTTOU},     {.name = "URG", .number = SIGURG},
    {.name = "XCPU", .number = SIGXCPU},     {.name = "XFSZ", .number = SIGXFSZ},
    {.name = "VTALRM", .number = SIGVTALRM}, {.name = "PROF", .number = SIGPROF},
    {.name = "WINCH", .number = SIGWINCH},   {.name = "IO", .number = SIGIO},
    {.name = "POLL", .number = SIGIO},       {.name = "PWR", .number = SIGPWR},
    {.name = "SYS", .number = SIGSYS},
};

enum { SIGNAL_NAMES = sizeof(signals) / sizeof(signals[0]) };

/* The real-time signals have no constant numbers, so they have no rows. */
static const char *
signal_name(long number)
{
    for (size_t i = 0; i < SIGNAL_NAMES; i++) {
        if (signals[i].number == number) {
            return signals[i].name;
        }
    }
    return number == SIGRTMIN ? "RTMIN" : number == SIGRTMAX ? "RTMAX" : NULL;
}

/* The number of a signal by its name, with or without SIG, in any case; 0: none has it. */
static int
signal_number(const char *name)
{
    if (strncasecmp(name, "SIG", 3) == 0) {
        name += 3;
    }
    for (size_t i = 0; i < SIGNAL_NAMES; i++) {
        if (strcasecmp(signals[i].name, name) == 0) {
            return signals[i].number;
        }
    }
    if (strcasecmp(name, "RTMIN") == 0) {
        return SIGRTMIN;
    }
    return strcasecmp(name, "RTMAX") == 0 ? SIGRTMAX : 0;
}

/* Unlike isdigit(): any char will do, and no locale has a say. */
static bool
is_digit(char c)
{
    return c >= '0' && c <= '9';
}

/* Copies a number without the blanks around it and the underscores between its digits,
 * both of which Python allows. Returns a new string, or NULL when that cannot be a
 * number. */
static char *
tidy_number(const char *text)
{
    static const char blanks[] = " \t\n\v\f\r";
    const char *from = text + strspn(text, blanks);
    size_t length = strlen(from);
    size_t kept = 0;
    char *number = NULL; /* owned, handed to the caller */

    while (length > 0 && strchr(blanks, from[length - 1]) != NULL) {
        length--;
    }
    number = malloc(length + 1);
    for (size_t i = 0; number != NULL && i < length; i++) {
        if (from[i] != '_') {
            number[kept++] = from[i];
        }
        else if (i == 0 || i + 1 == length || !is_digit(from[i - 1]) ||
                 !is_digit(from[i + 1])) {
            free(number);
            number = NULL;
        }
    }
    if (number != NULL) {
        number[kept] = '\0';
    }
    return number;
}

/* Reads what float() reads. strtod() would take hexadecimal numbers and nan(...), too. */
static bool
parse_float(const char *text, double *value)
{
    char *number = tidy_number(text);
    char *end = NULL;
    bool good = false;

    if (number != NULL && number[0] != '\0') {
        const char *digits = number + strspn(number, "+-");
        bool is_word = strcasecmp(digits, "inf") == 0 ||
                       strcasecmp(digits, "infinity") == 0 ||
                       strcasecmp(digits, "nan") == 0;
        *value = strtod(number, &end);
        good = *end == '\0' &&
               (is_word || strspn(number, "0123456789.eE+-") == strlen(number));
    }
    free(number);
    return good;
}

/* Reads what int() reads, as far as a long goes. */
static bool
parse_int(const char *text, long *value)
{
    char *number = tidy_number(text);
    bool good = false;

    if (number != NULL) {
        const char *digits = number + (number[0] == '+' || number[0] == '-' ? 1 : 0);
        good = digits[0] != '\0' && digits[strspn(digits, "0123456789")] == '\0';
        *value = strtol(number, NULL, 10);
    }
    free(number);
    return good;
}

#endif /* MANHOLE_CLI_VALUES_C */
