/* As unit_memory.c, but each call of ours that may want memory of Python fails in turn, also where
 * Python has some at hand. In a process of its own: CPython 3.11 that has been without memory may
 * die later of what it kept. */
#include <stdbool.h>

#define OF_CALLS true
#include "unit_memory.c"
