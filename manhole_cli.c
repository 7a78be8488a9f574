/* manhole_cli.c - the client of a manhole: manhole-cli [options] PID
 *
 * Sends the process a signal if asked to, connects to its socket, makes sure that it is
 * that process which answers, and then is its console: at a terminal with a line editor
 * (libedit, if there was one to build with), else copying standard input to the socket and
 * the socket to standard output until the other side closes. Given a configuration file
 * instead of a PID it asks in a local shell which process. Or it runs code there (-c, -f),
 * prints stacks (--stacks), for several processes side by side; lists them, or tidies up.
 * Command line, messages and history file are those of python-manhole's client of the same
 * name, and more.
 *
 * WHAT IT TOUCHES
 *   /tmp/manhole-PID       or the socket whose path is given: connected to, no more
 *   /proc/PID/...          read, for what the process is, which signals it catches and where it
 *                          listens; in a container its socket is below /proc/PID/root
 *   /proc/net/tcp*         read, for who listens at a port
 *   ~/.manhole_history     each line typed at a terminal is appended; mode 0600
 *   ~/.editrc              libedit's own settings, read
 *   FILE of --record       made, with mode 0600; written
 *   \0manhole-cli/PID.N/terminal   its own end of the connection, see show_calling_card()
 *   HOME, SHELL, TERM, NO_COLOR, LC_*  are what it reads of the environment
 *
 * EXIT STATUS: enum exit_status below; with -c and -f what the code says.
 *
 * HOW TO READ IT: each room is a file under src/cli/, included below from the ground floor up; a
 * room builds on those that its own include lines name, and on what these build on.
 *
 *   messages, buffer, values, terminal   text: what is said, kept, read of the command line, shown
 *   target, options                      the command line, and whom it means
 *   signals                              waiting, for descriptors and signals alike
 *   recording                            who records all the rest
 *   adverts, hindrances                  what /proc tells of a process and of its manhole
 *   tcp, connection, channels            ways to it, and who is there; questions beside the session
 *   frozen                               a copy of the process instead of it
 *   marks, history, relay                the console, whatever the bytes come from and go to
 *   screen, block, completion, editor    the console at a terminal, where libedit is
 *   jobs, run                            what --memory and the like run there; that, -c and -f
 *   stacks, brief                        --stacks and --tasks; --brief
 *   attach/                              into a process that has no manhole
 *   memory                               the two looks of --memory
 *   serve, processes, many, elsewhere    one process; which there are; several; over there
 *   top                                  what they do, again and again
 *   local_shell, main                    a configuration file to choose by; the table of contents
 *
 * One thread throughout. Nothing here is shared with manhole.c, and what this owns at its end goes
 * with the process.
 *
 * SPDX-License-Identifier: BSD-2-Clause
 */

#include "src/cli/base.h"
#include "src/cli/messages.c"
#include "src/cli/buffer.c"
#include "src/cli/values.c"
#include "src/cli/terminal.c"
#include "src/cli/target.c"
#include "src/cli/options.c"
#include "src/cli/signals.c"
#include "src/cli/recording.c"
#include "src/cli/adverts.c"
#include "src/cli/hindrances.c"
#include "src/cli/tcp.c"
#include "src/cli/connection.c"
#include "src/cli/channels.c"
#include "src/cli/frozen.c"
#include "src/cli/marks.c"
#include "src/cli/history.c"
#include "src/cli/relay.c"
#include "src/cli/screen.c"
#include "src/cli/block.c"
#include "src/cli/completion.c"
#include "src/cli/editor.c"
#include "src/cli/jobs.c"
#include "src/cli/run.c"
#include "src/cli/stacks.c"
#include "src/cli/brief.c"
#include "src/cli/attach/cpu.c"
#include "src/cli/attach/x86_64.c"
#include "src/cli/attach/arm64.c"
#include "src/cli/attach/maps.c"
#include "src/cli/attach/elf.c"
#include "src/cli/attach/rights.c"
#include "src/cli/attach/module_file.c"
#include "src/cli/attach/remote.c"
#include "src/cli/attach/tracee.c"
#include "src/cli/attach/carrier.c"
#include "src/cli/attach/inject.c"
#include "src/cli/attach/outside.c"
#include "src/cli/attach/told.c"
#include "src/cli/attach/attach.c"
#include "src/cli/memory.c"
#include "src/cli/serve.c"
#include "src/cli/processes.c"
#include "src/cli/many.c"
#include "src/cli/top.c"
#include "src/cli/elsewhere.c"
#include "src/cli/local_shell.c"
#include "src/cli/main.c"
