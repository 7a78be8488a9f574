/* Backdoor: eventlet.backdoor's two functions, for sockets that the application has.
 * Runs on:  any thread or greenlet of the application, ATTACHED; neither waits for a client.
 * Touches:  the doors from MAX_OWN_DOORS on; O_NONBLOCK of the application's socket.
 *
 * The listener gets a duplicate of a listening socket (listen_fd), so its clients are served though
 * the application's hub, or Python itself, is stuck. The application keeps its own (given_fd), to
 * close it: the listener looks at that before each turn, and gives up its duplicate
 * (is_done_with()). Both descriptors are one socket to the kernel, which so must not block while it
 * is ours: another process that has it too may accept first.
 *
 * Who calls these need not have called install(): then one without a door of its own is made, which
 * any install() later replaces.
 */
#ifndef MANHOLE_SERVER_BACKDOOR_C
#define MANHOLE_SERVER_BACKDOOR_C

#include "../base/compat.c"
#include "../base/state.c"
#include "../base/locks.c"
#include "../base/basics.c"
#include "../base/log.c"
#include "../base/handlers.c"
#include "../door/tcp.c"
#include "../door/socket.c"
#include "../session/session.c"
#include "listener.c"
#include "activation.c"
#include "fork.c"
#include "options.c"
#include "install.c"

/* What there must be to serve anybody: install() without a door, if nobody has called it yet, and a
 * listener. Under install_lock. Returns 0, or -1 with an exception. */
ATTACHED static int
provide_listener(PyObject *module)
{
    int result = 0;
    if (!manhole.installed || !is_owner()) {
        struct options options = default_options();
        options.thread = 0;
        options.daemon_connection =
            1; /* as with eventlet's, no client keeps the process */
        result = install_locked(module, &options);
        drop_options(&options);
        manhole.replaceable = result == 0;
    }
    if (result == 0 && !manhole.has_listener && (errno = start_listener()) != 0) {
        PyErr_SetFromErrno(PyExc_OSError);
        result = -1;
    }
    return result;
}

/* Returns 0, or -1 with ValueError or OSError: nobody may listen there, or nobody does. */
ATTACHED static int
check_listening(int fd, union address *address)
{
    int listens = 0;
    socklen_t size = sizeof(listens);
    socklen_t address_size = sizeof(*address);
    *address = (union address){.any.sa_family = AF_UNSPEC};
    if (getsockopt(fd, SOL_SOCKET, SO_ACCEPTCONN, &listens, &size) < 0 ||
        getsockname(fd, &address->any, &address_size) < 0) {
        PyErr_SetFromErrno(PyExc_OSError);
        return -1;
    }
    if (!listens) {
        PyErr_SetString(PyExc_ValueError,
                        "backdoor_server() needs a socket that listens; for a connected "
                        "one there is backdoor((conn, addr))");
        return -1;
    }
    if (is_inet(fd) && !is_loopback(address)) {
        refuse_address("the socket of backdoor_server()", address);
        return -1;
    }
    return 0;
}

/* Has the listener serve a duplicate of the socket. Under install_lock. Returns 0, or -1 with an
 * exception. */
ATTACHED static int
add_door(PyObject *sock, int fd, const union address *address, PyObject *locals)
{
    struct door *door = manhole.doors + MAX_OWN_DOORS;
    while (door < manhole.doors + MAX_DOORS && is_door_open(door)) {
        door++;
    }
    if (door == manhole.doors + MAX_DOORS) {
        PyErr_Format(PyExc_RuntimeError, "%d backdoor servers are open already",
                     MAX_DOORS - MAX_OWN_DOORS);
        return -1;
    }
    OWNED_FD int listen_fd = fcntl(fd, F_DUPFD_CLOEXEC, 0);
    int flags = fcntl(fd, F_GETFL);
    if (listen_fd < 0 || flags < 0 || fcntl(fd, F_SETFL, flags | O_NONBLOCK) < 0) {
        PyErr_SetFromErrno(PyExc_OSError);
        return -1;
    }

    if (is_inet(fd)) {
        format_address(address, door->name);
    }
    else {
        (void)snprintf(door->name, sizeof(door->name), "%s", address->un.sun_path);
    }
    fill_door(door, sock, locals);
    door->was_blocking = (flags & O_NONBLOCK) == 0;
    keep_fd(&door->given_fd, fd);
    keep_fd(&door->listen_fd, steal_fd(&listen_fd));
    log_line("Backdoor server listening on %s", door->name);
    wake_listener();
    return 0;
}

/* The argument locals. Returns 0 with *locals borrowed or NULL, or -1 with TypeError. */
ATTACHED static int
check_locals(PyObject **locals, const char *function)
{
    if (*locals == Py_None) {
        *locals = NULL;
    }
    if (*locals != NULL && !PyObject_HasAttrString(*locals, "keys")) {
        PyErr_Format(PyExc_TypeError,
                     "%s() argument 'locals' must be " ALLOWED_parse_mapping ", not %R",
                     function, *locals);
        return -1;
    }
    return 0;
}

PyDoc_STRVAR(
    backdoor_server_doc,
    "backdoor_server(sock, locals=None)\n--\n\n"
    "Give each client of the listening socket sock a Python console with these\n"
    "names.\n\n"
    "As eventlet.backdoor.backdoor_server(), under eventlet, gevent, or neither;\n"
    "but it returns at once, clients are served by threads of their own, and only\n"
    "those of this process's user and root. From here on sock is the manhole's; to\n"
    "close it ends the server. install() may be called before, after, or not at\n"
    "all. ValueError when sock does not listen, or where others than this machine\n"
    "can reach it.");

ATTACHED static PyObject *
py_backdoor_server(PyObject *module, PyObject *arguments, PyObject *keywords)
{
    static char *names[] = {"sock", "locals", NULL};
    PyObject *sock = NULL;   /* borrowed */
    PyObject *locals = NULL; /* borrowed */
    union address address;
    int fd = -1;
    int result = -1;
    if (!PyArg_ParseTupleAndKeywords(arguments, keywords, "O|O:backdoor_server", names,
                                     &sock, &locals) ||
        check_locals(&locals, "backdoor_server") < 0 ||
        (fd = PyObject_AsFileDescriptor(sock)) < 0 || check_listening(fd, &address) < 0 ||
        lock_install() < 0) {
        return NULL;
    }
    if (provide_listener(module) == 0) {
        result = add_door(sock, fd, &address, locals);
    }
    unlock_install();
    return result < 0 ? NULL : Py_NewRef(Py_None);
}

PyDoc_STRVAR(
    backdoor_doc,
    "backdoor(conn_info, locals=None)\n--\n\n"
    "Give the client of a connected socket a Python console with these names.\n\n"
    "conn_info is (conn, addr), as accept() returns it. As\n"
    "eventlet.backdoor.backdoor(): it returns at once, and conn may then be closed.\n"
    "A client that is neither root nor this process's user, or cannot be told, is a\n"
    "line in the log and let go.");

ATTACHED static PyObject *
py_backdoor(PyObject *module, PyObject *arguments, PyObject *keywords)
{
    static char *names[] = {"conn_info", "locals", NULL};
    struct client client = {.card = "", .channel = &backdoor_channel};
    PyObject *conn = NULL;    /* borrowed */
    PyObject *address = NULL; /* borrowed */
    PyObject *locals = NULL;  /* borrowed */
    int fd = -1;
    if (!PyArg_ParseTupleAndKeywords(arguments, keywords, "(OO)|O:backdoor", names, &conn,
                                     &address, &locals) ||
        check_locals(&locals, "backdoor") < 0 ||
        (fd = PyObject_AsFileDescriptor(conn)) < 0 || lock_install() < 0) {
        return NULL;
    }
    int result = provide_listener(module);
    unlock_install();
    if (result < 0) {
        return NULL;
    }

    client.fd = fcntl(fd, F_DUPFD_CLOEXEC, 0);
    if (client.fd < 0) {
        return PyErr_SetFromErrno(PyExc_OSError);
    }
    client.locals = Py_XNewRef(locals);
    PyThreadState *tstate = detach();
    bool in =
        admit_client(client.fd, &client.peer, client.channel) && start_session(&client);
    wake_listener();
    reattach(tstate);
    if (!in) {
        Py_XDECREF(client.locals);
    }
    return Py_NewRef(Py_None);
}

#endif /* MANHOLE_SERVER_BACKDOOR_C */
