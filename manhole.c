/* manhole.c - a debugging socket for any CPython process, in one translation unit.
 *
 * A signal, or nothing at all, opens /tmp/manhole-PID. Who connects with the process's
 * own uid, or root's, sees the stack of every Python thread and then has a Python prompt
 * in the living process; or, where nobody may run code, a shell of commands. It is an
 * extension module (`import manhole`), a drop-in for C programs that embed CPython
 * (manhole.h), and an environment variable (PYTHONMANHOLE). README.rst says how to use it.
 *
 * THREADS
 *   listener     one native thread, made by install(). Never attaches to Python, so nothing that
 *                Python does can stop it. Asleep in poll() when idle. Accepts, checks credentials,
 *                starts sessions, carries to slow clients what waits for them.
 *   session      one native thread a client. Attaches with a thread state of its own, serves its
 *                client, detaches, ends. A oneshot session runs in the main thread instead.
 *   helpers      native threads for one errand: a reporter sends the stacks of a process whose
 *                Python does not answer, an interrupter raises KeyboardInterrupt in a session, a
 *                guard has a oneshot's session interrupted when its client has left, a courier
 *                carries log lines to a Python object, a reader reads source files, whose file
 *                system may be dead; one beside each session of a TCP client takes telnet out of
 *                what that sends.
 *   application  its threads run the stream objects' write(), the fork hook, the exit callback and
 *                what manhole.* offers; the signal handlers run in whichever thread is hit.
 *
 * WHAT IT TOUCHES IN A PROCESS
 *   files        the sockets' paths, with mode 0600; removed again by exit, release or a signal.
 *   descriptors  two sockets to wake threads, the listening ones, a spare one; one for each client,
 *                two more where it comes by TCP; a memory file, or a pipe where it may have none,
 *                while a frozen copy is made; a netlink socket while a TCP client's user is asked
 *                for. All close-on-exec.
 *   signals      activate_on (a C handler), oneshot_on (signal.signal), one real-time signal
 *                (faulthandler.register), from CPython 3.15 on another (a C handler), and while the
 *                socket exists those of death_signals[] that were SIG_DFL. All are put back, but
 *                activate_on at exit: a late one must not kill.
 *   sys          std streams, __std*__ and displayhook while a client has a console; last_exc and
 *                its relatives when a client's statement raised; its class while a client's program
 *                runs, for sys.argv to be that program's own in its thread. All are put back.
 *   callbacks    atexit, os.register_at_fork, and in children multiprocessing.util: one each; C's
 *                atexit() and pthread_atfork(), and a key of the thread that forked a child.
 *   sockets      one that it is given to listen on does not block until release().
 *   functions    a probe stands in the module or class of the function that it was inserted at. It
 *                is put back when the probe is removed.
 *   mappings     with oneshot_on an empty page, whose name in /proc tells manhole-cli the signal.
 *   environment  PYTHONMANHOLE, named by manhole.pth or manhole.start, read once.
 *   modules      threading is imported by install(). When a client comes: the plugins that a
 *                configuration file names, and what sessions need of the standard library; as
 *                manhole.library.NAME where the application has such names.
 *
 * HOW TO READ IT
 *   Each room is a file under src/, included below from the ground floor up; a room's own include
 *   lines name the rooms that it builds on, all of them above it in this list, and it compiles
 *   alone from these. It opens with what it is for, who runs it, and how its mechanism works.
 *   make single writes it all into one file, to drop into a C program.
 *
 *   Three markers say who may call a function, and clang's -Wthread-safety holds us to them:
 *   ATTACHED, DETACHED, ASYNC_SAFE. Unmarked: pure computation or leaf locks, any thread. Every
 *   PyObject * in a signature is borrowed unless its comment says "new"; what a function returns
 *   is new. What is written in Python is text in a room, a part: see src/base/parts.c.
 *
 * SPDX-License-Identifier: BSD-2-Clause
 */

/* What all build on: CPython's differences, state, locks, the log, the two signal handlers. */
#include "src/base/base.h"
#include "src/base/compat.c"
#include "src/base/state.c"
#include "src/base/locks.c"
#include "src/base/basics.c"
#include "src/base/log.c"
#include "src/base/handlers.c"
#include "src/base/library.c"
#include "src/base/parts.c"

/* Where we listen, and who may enter. */
#include "src/door/tcp.c"
#include "src/door/socket.c"

/* What every thread is doing, asked of Python or of a frozen copy. */
#include "src/stacks/memory.c"
#include "src/stacks/copy.c"
#include "src/stacks/kernel.c"
#include "src/stacks/sources.c"
#include "src/stacks/model.c"
#include "src/stacks/copied.c"
#include "src/stacks/look.c"
#include "src/stacks/dump.c"
#include "src/stacks/json.c"
#include "src/stacks/tasks.c"
#include "src/stacks/frames.c"
#include "src/stacks/locals.c"

/* Exceptions that leave a function, and requests that a WSGI application is at. */
#include "src/watch/probes.c"
#include "src/watch/requests.c"

/* A copy of the process that runs Python behind a fence. */
#include "src/frozen/fence.c"
#include "src/frozen/heap.c"
#include "src/frozen/python.c"
#include "src/frozen/copies.c"

/* One client, from its first byte to its last. */
#include "src/session/output.c"
#include "src/session/streams.c"
#include "src/session/borrowed.c"
#include "src/session/attach.c"
#include "src/session/hang.c"
#include "src/session/interrupt.c"
#include "src/session/telnet.c"
#include "src/session/imports.c"
#include "src/session/awaited.c"
#include "src/session/shown.c"
#include "src/session/asked.c"
#include "src/session/prompt.c"
#include "src/session/names.c"
#include "src/session/input.c"
#include "src/session/serve.c"
#include "src/session/console.c"
#include "src/session/programs.c"
#include "src/session/channels.c"
#include "src/session/commands.c"
#include "src/session/session.c"
#include "src/session/report.c"
#include "src/session/frozen.c"

/* The listener, signals, forks, and what install() does. */
#include "src/server/listener.c"
#include "src/server/activation.c"
#include "src/server/fork.c"
#include "src/server/options.c"
#include "src/server/config.c"
#include "src/server/install.c"
#include "src/server/backdoor.c"

/* What Python and C see of it. */
#include "src/module.c"
#include "src/c_api.c"

/* The way in for a process that did not ask for one. */
#include "src/attached.c"
