/* State: all that a process has of us, in one struct.
 * Runs on:  any thread; who may write a field stands above its group, or with it.
 * Touches:  nothing itself.
 *
 * A map. struct manhole is the process's one manhole, whoever installed it: the options, the
 * listener and what it was told, the doors, the counts of sessions, what of sys is borrowed. It is
 * whole only in the process that owns it (owner): a handler or a hook that finds itself in another
 * does nothing, or makes a manhole of that process's own (src/server/fork.c).
 *
 * manhole.sessions is a fixed table. So a slot's address stays good for ever, a forked child finds
 * every descriptor that it inherited, and who looks for a session needs no lock to walk. A slot
 * goes from SESSION_FREE to SESSION_TAKEN and back, under table_lock.
 *
 * struct module_state is what the module has in each interpreter that imports it. snapshot is what
 * a frozen copy needs, settled before there is anything to copy. current_session says whose thread
 * this is: with a session's, its client's; NULL in all threads of the application.
 *
 * What another thread may read at any time is _Atomic, or names its lock. Being attached is no
 * lock: a free-threaded build has none.
 */
#ifndef MANHOLE_BASE_STATE_C
#define MANHOLE_BASE_STATE_C

#include "compat.c"

/* What a client is, as the kernel says. */
struct peer {
    pid_t pid; /* 0: not known, as of all TCP clients */
    uid_t uid; /* -1: not known */
    gid_t gid;
    char address[ADDRESS_SIZE]; /* HOST:PORT of a TCP client, else "" */
};

/* What a socket is bound to. */
union address {
    struct sockaddr any;
    struct sockaddr_un un;
    struct sockaddr_in v4;
    struct sockaddr_in6 v6;
};

/* Where to listen. */
struct endpoint {
    char *path; /* owned, malloc'd, may have %(pid)s; NULL: /tmp/manhole-%(pid)s */
    union address address; /* of the family AF_INET or AF_INET6 when it is no path */
};

struct endpoints {
    size_t count;
    struct endpoint rows[MAX_ENDPOINTS];
};

/* Where log lines go. */
struct destination {
    int fd;           /* -1: to the object */
    PyObject *object; /* owned, has write(str); NULL: to the descriptor */
};

/* Who serves a client once it is in. */
enum handler_kind {
    HANDLER_REPL,
    HANDLER_EXEC,
    HANDLER_COMMANDS,
    HANDLER_CALLABLE,
};

/* What a command shell has only where it is enabled: there the client runs code. */
enum feature {
    FEATURE_CONSOLE = 1,
    FEATURE_DEBUGGER = 2,
};

struct handler {
    enum handler_kind kind;
    PyObject *callable; /* owned, NULL but for HANDLER_CALLABLE */
};

/* install()'s options, checked and converted. A field is named like its option. */
struct options {
    int verbose;
    struct destination verbose_destination;
    int strict;
    int patch_fork;
    int activate_on; /* signal number, 0: none */
    int oneshot_on;  /* signal number, 0: none */
    int thread;
    sigset_t sigmask;
    char *socket_path; /* owned, malloc'd; NULL: /tmp/manhole-%(pid)s, but for listen */
    struct endpoints listen;
    double reinstall_delay; /* seconds */
    double start_timeout;   /* seconds */
    double oneshot_timeout; /* seconds */
    double hang_timeout;    /* seconds */
    int max_sessions;
    PyObject *locals; /* owned mapping, or NULL */
    int audit;
    int daemon_connection;
    int redirect_stderr;
    struct handler connection_handler;
    unsigned enable;    /* bits of enum feature */
    PyObject *config;   /* owned path, or NULL; and what the file says: */
    PyObject *settings; /* owned RawConfigParser, or NULL: there is no file */
    PyObject *plugins;  /* owned list of str; NULL: it does not say */
};

struct session;

/* Bytes that grow. After a failed allocation it stays as it was and failed is set. */
struct text {
    char *bytes; /* owned, malloc'd */
    size_t length;
    size_t capacity;
    bool failed;
};

/* What a connection is for, as the client's calling card says. The rows are in the listener's
 * room. */
struct channel {
    const char *name;
    bool aside;           /* needs a slot, but is none of max_sessions */
    bool no_stacks;       /* the console begins with its banner */
    bool stacks_if_stuck; /* but for a Python that does not answer */
    bool live_names;      /* of the application's locals, not a copy */
    bool framed;          /* the answer is in frames: stdout and stderr apart */
    bool marked;          /* typed at a terminal: see is_key() */
    bool unlogged;        /* too frequent for a line in the log each time */
    /* In the session's thread, before it attaches: reads the client's request. Returns whether
     * there is one; else the client has been told. NULL: there is none to wait for. */
    bool (*receive)(struct session *session);
    /* In the session's thread, attached; never raises. NULL: as connection_handler says. */
    void (*serve)(struct session *session, PyObject *locals);
    /* In a native thread: what the client gets, once and for all, when Python has not answered for
     * hang_timeout. NULL: nothing, or what a console gets. */
    void (*report)(struct text *text, const struct session *session);
    /* The same as serve(), in a frozen copy that is made when Python does not answer: see
     * src/session/frozen.c. NULL: there is none. */
    void (*serve_copy)(struct session *session, PyObject *locals);
};

/* A descriptor that we keep, and what it was when we opened it: an application that closes all
 * descriptors may have opened something of its own under the number since. */
struct kept_fd {
    _Atomic int number; /* -1: none */
    /* Written first. Who still has the number before finds that it is not ours. */
    _Atomic dev_t device;
    _Atomic ino_t inode;
};

enum session_state {
    SESSION_FREE,
    SESSION_TAKEN,
    SESSION_BURNT, /* a forked child's own stack still uses it: never handed out again */
};

/* What a client is to hear: see the room hang. */
enum hang_state {
    HANG_NONE,     /* it is not waiting for Python: that has answered, or was not asked */
    HANG_ASKED,    /* it waits */
    HANG_REPORTED, /* too long: a reporter is on its way to tell it why */
    HANG_TOLD,     /* it has the stacks from that, and waits on */
};

/* The client's patience. Under out_lock. */
struct hang_watch {
    bool watched; /* by the listener, from start_session() to release_session() */
    enum hang_state state;
    int64_t asked_ms; /* monotonic: since when the client waits */
    int64_t
        waiting_ms; /* monotonic: since when its thread waits for Python; 0: it does not */
    bool importing; /* it waits for modules, which it or another session imports */
};

/* Bytes on their way to the client: see the room output. */
struct outbox {
    /* Under out_lock. Whoever has set sending may send without the lock. */
    bool sending;
    size_t
        head; /* bytes ever sent and ever put into the ring: their difference waits there */
    size_t tail;
    size_t left_end; /* of the session's own bytes among them, see leave_to_listener() */
    bool refused;    /* a send() of the listener's has failed: the client is gone */
    /* The session's own thread's. */
    int writes;         /* since it was last asked for a line */
    struct text unsent; /* a value and a prompt: they go out when it reads or writes on */
};

/* What the session runs, and what for. The session's own thread's, but where it says more. */
struct running {
    _Atomic unsigned long
        ident;               /* as threading.get_ident(): who interrupts it reads that */
    _Atomic bool running;    /* what the client sent runs just now: may be interrupted */
    _Atomic bool stricken;   /* an interrupt was raised in that, and may come late */
    _Atomic int interrupts;  /* that it has got */
    _Atomic bool taken_back; /* a Ctrl-C of telnet's is still to be read */
    _Atomic bool unbegun;    /* something was read since it last waited for the client */
    bool interrupted;        /* under out_lock: an interrupter is on its way */
    bool due;                /* under out_lock: an interrupt of what has not begun */
    bool has_console;        /* the std streams are this client's in its thread */
    bool one_act;            /* the line that runs is over once it shows its value */
    bool is_cut;             /* what was read last ends within a line */
    bool asked_for_input;    /* see ask_for_input() */
    bool says_it_reads;      /* the client knows that it waits */
    bool takes_paste;        /* it reads for the console, */
    bool pasting;            /* which has the first part of a paste, */
    bool anew;               /* and it stands for the block that is being typed */
    const char *prompt;      /* borrowed: shown when it says that it reads; or NULL */
    char *request;           /* owned, malloc'd, NUL-terminated; NULL: there is none */
    size_t request_length;
    PyObject *input; /* owned text file that sys.stdin is in its thread */
    /* owned, under table_lock: the console's namespace, a dict; in a command shell a tuple of the
     * words that may be typed; NULL: neither */
    PyObject *names;
    PyObject *arguments; /* owned, sys.argv in its thread; NULL: the application's */
    PyObject *raised;    /* owned SystemExit of the application's own, out of a oneshot */
};

/* A client and what serves it. Slots of a fixed table, so that a forked child finds every
 * descriptor that it inherited, and an application thread can look at all without a
 * global lock. */
/* NOLINTNEXTLINE(clang-analyzer-optin.performance.Padding): grouped by who writes them */
struct session {
    /* Under table_lock. */
    enum session_state state;
    /* Written before the session's thread starts. */
    struct kept_fd fd; /* blocking socket */
    struct peer peer;
    const struct channel *channel;
    char card[CARD_SIZE]; /* the id on its calling card, "" when it has none */
    /* The application's socket that it came through, or NULL: whose locals are meant, if that still
     * has this serial. */
    const struct door *door;
    unsigned door_serial;
    PyObject *locals; /* owned, of backdoor(), or NULL */
    /* A TCP client's bytes without telnet's are read here; -1: they come over fd. */
    struct kept_fd plain_fd;
    struct kept_fd telnet_fd; /* the other end of that */
    struct running run;
    /* The listener's: monotonic, when it last looked after a client that left; 0: it is there. */
    int64_t gone_ms;
    /* The lock of all below and of the parts that name it: whatever the listener, the session's
     * thread and its helpers tell each other, be it bytes that wait, a hang, or who still uses the
     * slot. A leaf, held for a few instructions. */
    pthread_mutex_t out_lock;
    pthread_cond_t out_free; /* sending, helpers or over has changed */
    struct outbox outbox;
    struct hang_watch hang;
    /* Also read without the lock, by every thread that prints: no part of what is set to zero. */
    _Atomic bool viewing; /* the client sees what the application prints */
    char *_Atomic ring;   /* RING_SIZE bytes, or NULL before the first echo */
    /* Bytes that found no room since the last note about it. Away from 0 and back only under
     * out_lock; in between anybody may add to it. */
    _Atomic size_t missed;
    /* Who uses the slot. */
    bool guarded; /* it has a guard */
    _Atomic bool
        over; /* it has hung up: its place is free, a guard may go; also read unlocked */
    int helpers;   /* reporters, interrupters and guards that still use the slot */
    bool freezing; /* a frozen copy is made for it, or is there; under table_lock */
    pid_t copy;    /* that serves it; 0: none */
};

/* What the listener can be told, bits of manhole.orders: see tell_listener(). */
enum listener_order {
    ORDER_OPEN = 1,  /* the activating signal came */
    ORDER_CLOSE = 2, /* close the socket, remove its path */
    ORDER_STOP = 4,  /* end the thread */
};

/* An attribute of sys that we have set, and what was there before. */
struct borrowed_attribute {
    const char *name;
    PyObject *previous; /* owned, NULL: there was none */
    PyObject *ours;     /* owned, NULL: not borrowed now */
};

/* A socket that we listen on. Of the options' doors each has one of the first MAX_OWN_DOORS slots.
 * The others are for those that the application has given us, which stay when install() comes
 * after that; they are opened under install_lock. */
struct door {
    struct kept_fd listen_fd; /* closed by the listener, or when that has ended */
    struct kept_fd given_fd;  /* the application's own descriptor for it; -1: none */
    PyObject *given;          /* owned socket object: only to close it closes given_fd */
    bool was_blocking; /* before it was given; for both descriptors are one socket */
    PyObject *locals;  /* owned mapping for the consoles behind it, or NULL */
    _Atomic unsigned serial; /* of the socket in this slot */
    /* A Unix socket's path, whole whenever bound is true; whether it is ours is known again when
     * binding is not. Read by the handlers. A TCP socket's HOST:PORT. */
    char name[SOCKET_PATH_SIZE];
    _Atomic bool binding;
    _Atomic bool bound;
    _Atomic int left_for; /* errno of the path's removal, until it is logged; else 0 */
    dev_t device;
    ino_t inode;
};

/* Apart from what has initial values: a page of it is the process's own when it is first used. */
static struct session session_table[MAX_SESSIONS];

/* NOLINTNEXTLINE(clang-analyzer-optin.performance.Padding): grouped by who writes them */
static struct manhole {
    /* Under install_lock, attached. */
    _Atomic bool installed;
    _Atomic bool
        replaceable;       /* by any install(): not the application's, or cannot listen */
    bool has_exit_handler; /* C's; it cannot be taken back */
    _Atomic pid_t owner;   /* the process whose all this is; another one does nothing */
    struct options options;
    PyObject *module;           /* owned, while installed */
    PyObject *exit_callback;    /* owned, as registered with atexit */
    PyObject *previous_oneshot; /* owned, what signal.signal() returned */
    struct sigaction previous_oneshot_action;
    void (*oneshot_handler)(int); /* what signal.signal() has set: CPython's own */
    /* Ends what a session's thread waits for; 0: none. Sent under that session's out_lock. */
    _Atomic int wait_ending_signal;
    PyInterpreterState *interpreter;
    struct sigaction previous_activate;
    /* The listener: made and joined under install_lock. */
    bool has_listener;
    pthread_t listener;
    sem_t wake;               /* it sleeps on this while it has no descriptor to watch, */
    struct kept_fd wake_bell; /* else on this; each order goes to both */
    _Atomic unsigned turn;    /* which listener it is, and what it does: enum turn */
    _Atomic int64_t
        wakes_at_ms; /* monotonic: then it looks at all sessions again; -1: who knows */
    struct kept_fd news_bell; /* rings when a session ends, or the listener has started */
    _Atomic unsigned orders;
    _Atomic pid_t activated_child; /* has got activate_on before its fork hook ran */
    _Atomic bool started;          /* has bound, failed to, or sleeps until activated */
    int bind_delay_ms;             /* for the listener of a forked child */
    bool is_child;                 /* what only one process can have is the parent's */
    _Atomic bool courier_is_out;
    /* Nothing is bound any more in a process that is leaving. */
    _Atomic bool leaving;
    _Atomic bool
        oneshot; /* the doors are handle_oneshot()'s: the listener leaves them alone */
    struct door doors[MAX_DOORS];
    struct kept_fd
        door_spare; /* nothing is in it: makes room for a client, see accept_next() */
    /* Sessions, under table_lock. */
    bool closing; /* the interpreter is about to end: nobody attaches any more */
    int entering; /* threads of ours that make their thread state just now */
    int inside;   /* threads of ours that are, or are about to be, attached */
    struct session *sessions; /* MAX_SESSIONS of them */
    _Atomic size_t
        sessions_end; /* those from here on were never used; grows under table_lock */
    _Atomic unsigned visits;    /* sessions that have ever begun */
    _Atomic size_t viewers_end; /* no slot from here on has ever had viewing set */
    _Atomic int viewers;        /* sessions with viewing set: the streams' short cut */
    /* sys attributes, under sys_lock, attached. */
    int consoles;
    int programs; /* sessions with an argv of their own */
    struct borrowed_attribute borrowed[11];
} manhole = {
    .sessions = session_table,
    .wake_bell.number = -1,
    .news_bell.number = -1,
    .door_spare.number = -1,
    .doors = {[0 ... MAX_DOORS - 1] = {.listen_fd.number = -1, .given_fd.number = -1}},
    .borrowed =
        {
            {.name = "stdin"},
            {.name = "__stdin__"},
            {.name = "stdout"},
            {.name = "__stdout__"},
            {.name = "stderr"},
            {.name = "__stderr__"},
            {.name = "displayhook"},
            {.name = "last_type"},
            {.name = "last_value"},
            {.name = "last_traceback"},
            {.name = "last_exc"},
        },
};

/* What a frozen copy needs, settled at install so that nothing is asked for when it is
 * too late. */
static struct {
    int signum; /* its handler is faulthandler's, which writes to descriptor 2; 0: none was free */
    void (*handler)(int);
    PyInterpreterState *interpreter;
    PyObject *modules; /* owned, sys.modules */
    /* Nothing is in it: closed when a copy is to be made and the process has no other descriptor
     * left. Under snapshot_lock. */
    struct kept_fd spare;
} snapshot = {.spare = {.number = -1}};

/* Set in a frozen copy that has Python, and nowhere else: see src/frozen/. */
static struct {
    pid_t original;       /* the process that it is a copy of; 0: this is no copy */
    unsigned long holder; /* whose code had the GIL when Python was stuck; 0: none */
    PyObject *ident;      /* owned, of the thread that it has taken over, */
    PyObject *frame;      /* owned, and where that was */
    PyObject *meant; /* owned, the ident of the thread that is meant without a word */
    char note[256];  /* what it tells its client of itself */
} frozen;

/* The process that is looked at. */
static pid_t
process_id(void)
{
    return frozen.original != 0 ? frozen.original : getpid();
}

/* The session that the calling thread serves, NULL in all threads of the application. */
static _Thread_local struct session *current_session;

/* What the module owns in one interpreter. First the references: see module_traverse(). */
struct module_state {
    PyObject *manhole_type;
    PyObject *stream_type;
    PyObject *manhole_object; /* what install() returns */
    PyObject *streams;        /* list of the last streams made, see get_stream() */
    PyObject *library;        /* dict, see import_standard() */
    PyObject *parts;          /* dict of name: module, see struct part */
    PyObject *already_installed;
    PyObject *not_installed;
    PyObject *configuration_conflict;
    PyObject *suspicious_client;
    bool has_fork_hook; /* the first that is none */
    bool has_multiprocessing_hook;
};

static struct PyModuleDef manhole_module;

/* The module's state in the interpreter that installed. Only while installed. */
ATTACHED static struct module_state *
installed_state(void)
{
    return PyModule_GetState(manhole.module);
}

/* True in the process that installed; false in a child that was forked behind CPython's
 * back. */
ASYNC_SAFE static bool
is_owner(void)
{
    return atomic_load(&manhole.owner) == getpid();
}

#endif /* MANHOLE_BASE_STATE_C */
