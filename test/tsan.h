/* tsan.h - before manhole.c where the thread sanitizer is in it. That runs a signal's handler when
 * a function of the C library that it knows returns to the thread. One that begins again never
 * does: without SA_RESTART it is cut short, and Python calls it again. syscall() it does not know:
 * after each comes a call that it does, or faulthandler would never write in a frozen copy.
 */
#ifndef TSAN_H
#define TSAN_H

#define _GNU_SOURCE 1 /* as Python.h has it */
#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <unistd.h>

#undef SA_RESTART
#define SA_RESTART 0

static inline long
take_signals(long result)
{
    int saved_errno = errno;
    (void)poll(NULL, 0, 0);
    errno = saved_errno;
    return result;
}

#define syscall(...) take_signals(syscall(__VA_ARGS__))

#endif
