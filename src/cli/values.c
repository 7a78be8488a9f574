/* Values: numbers and signals on a command line, nearly as Python's int(), float() and signal
 * module read them. What Python refuses is refused: "1e" and "0x10" are no numbers.
 * To add a signal: a row in signals[].
 */
#ifndef MANHOLE_CLI_VALUES_C
#define MANHOLE_CLI_VALUES_C

#include "base.h"

#define SIGNAL(NAME)                                                                     \
  {                                                                                      \
    .name = #NAME, .number = SIG##NAME                                                   \
  }
/* Every name that Python's signal module has on Linux, aliases behind the usual name. The real-time
 * signals have no constant numbers, so they have no rows. */
static const struct signal_name {
    const char *name; /* without SIG */
    int number;
} signals[] = {
    SIGNAL(HUP),    SIGNAL(INT),  SIGNAL(QUIT),
    SIGNAL(ILL),    SIGNAL(TRAP), SIGNAL(ABRT),
    SIGNAL(IOT),    SIGNAL(BUS),  SIGNAL(FPE),
    SIGNAL(KILL),   SIGNAL(USR1), SIGNAL(SEGV),
    SIGNAL(USR2),   SIGNAL(PIPE), SIGNAL(ALRM),
    SIGNAL(TERM),   SIGNAL(CHLD), SIGNAL(CONT),
    SIGNAL(STOP),   SIGNAL(TSTP), SIGNAL(TTIN),
    SIGNAL(TTOU),   SIGNAL(URG),  SIGNAL(XCPU),
    SIGNAL(XFSZ),   SIGNAL(PROF), SIGNAL(WINCH),
    SIGNAL(IO),     SIGNAL(POLL), SIGNAL(VTALRM),
    SIGNAL(PWR),    SIGNAL(SYS),  {.name = "CLD", .number = SIGCHLD},
#ifdef SIGSTKFLT
    SIGNAL(STKFLT),
#endif
};

enum { SIGNAL_NAMES = sizeof(signals) / sizeof(signals[0]) };

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
    name += strncasecmp(name, "SIG", 3) == 0 ? 3 : 0;
    for (size_t i = 0; i < SIGNAL_NAMES; i++) {
        if (strcasecmp(signals[i].name, name) == 0) {
            return signals[i].number;
        }
    }
    return strcasecmp(name, "RTMIN") == 0   ? SIGRTMIN
           : strcasecmp(name, "RTMAX") == 0 ? SIGRTMAX
                                            : 0;
}

/* Unlike isdigit(): any char will do, and no locale has a say. */
static bool
is_digit(char c)
{
    return c >= '0' && c <= '9';
}

/* strtod() would take hexadecimal numbers and nan(...), too. */
static bool
parse_float(const char *text, double *value)
{
    char *end = NULL;
    *value = strtod(text, &end);
    return end != text && *end == '\0' && strpbrk(text, "xX(") == NULL;
}

static bool
parse_int(const char *text, long *value)
{
    char *end = NULL;
    *value = strtol(text, &end, 10);
    return end != text && *end == '\0';
}

#endif /* MANHOLE_CLI_VALUES_C */
