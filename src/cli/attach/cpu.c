/* CPU: what of attaching depends on the processor, and nothing else does. x86_64.c and arm64.c have
 * the same functions, and these two:
 *
 *   struct cpu      a stopped thread's registers, vectors too, as ptrace gives and takes them
 *   make_frame()    a signal frame: rt_sigreturn makes the thread of it that struct cpu describes
 *   sent_code       what we have a thread of the process run, see inject.c
 *
 * The frame is how a thread comes back without us. Whatever it runs for us ends in rt_sigreturn at
 * that frame, which gives it back its registers and its signal mask in one step; so one whose
 * client is killed goes home by itself. When it was in a system call the frame does what the
 * kernel would have done: begin it anew, or say EINTR where the kernel cannot either.
 *
 * Here is what both need. To add an architecture: a file with these functions, beside the two
 * wherever these are included, and its turn in HAS_ATTACH. test/unit_attach.c tries all of it that
 * takes no ptrace(), so under an emulator as well.
 */
#ifndef MANHOLE_CLI_ATTACH_CPU_C
#define MANHOLE_CLI_ATTACH_CPU_C

#include "../target.c"

#if (defined(__x86_64__) || defined(__aarch64__)) && defined(__LP64__)
#  define HAS_ATTACH 1
#else
#  define HAS_ATTACH 0
#endif

#if HAS_ATTACH

/* Addresses in the process of "make a system call, and return" and "return from a handler". */
struct gadgets {
    uint64_t call;
    uint64_t back;
};

/* How the kernel ends a system call that a signal or a stop has interrupted; only a debugger sees
 * that. The names are the kernel's, less ERESTART. */
enum syscall_restart { SYS = 512, NOINTR = 513, NOHAND = 514, RESTART_BLOCK = 516 };

/* Offsets in struct errand, which inject.c checks. */
#  define ERRAND_ENTRY "0"
#  define ERRAND_DLOPEN "8"
#  define ERRAND_DLSYM "16"
#  define ERRAND_DLERROR "24"
#  define ERRAND_ATTR_INIT "32"
#  define ERRAND_SET_DETACHED "40"
#  define ERRAND_SET_STACK_SIZE "48"
#  define ERRAND_CREATE "56"
#  define ERRAND_STACK_SIZE "64"
#  define ERRAND_THREAD "72"
#  define ERRAND_ATTRIBUTES "80"
#  define ERRAND_PATH "208"
#  define ERRAND_NAME "272"
#  define ERRAND_ORDER "304"
#  define ERRAND_STATE "304"
#  define ERRAND_FD "316"
#  define ERRAND_ERROR "320"
#  define ERRAND_ERROR_ROOM "511"

/* Two pieces, of which neither knows where it lies, both given the errand's address:
 *
 *   sent_code    run by the lent thread. Makes a thread, detached (musl notes its id only when it
 *                runs already) and with a stack of its own size (musl's is small). getpid() is the
 *                sign that it is done, the result in a register; then home.
 *   sent_thread  run by the new thread. Loads the module, unless its entry is known, and jumps
 *                there, so that nothing returns to code that the module unmaps.
 *
 * They are up to sent_size bytes long, and behind the sign's system call lies sent_sign_at. */
extern const unsigned char sent_code[] __attribute__((visibility("hidden")));
extern const uint32_t sent_size __attribute__((visibility("hidden")));
extern const uint32_t sent_sign_at __attribute__((visibility("hidden")));

#endif /* HAS_ATTACH */

#endif /* MANHOLE_CLI_ATTACH_CPU_C */
