"""What faults.c is told: which call fails, and how."""

import collections
import errno
import mmap
import os
import struct

SOURCES = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

# ---- Which errors a function gives ---------------------------------------------------------

SHORT, END = -1, -2  # as in faults.h
RECEIVED = ["EINTR", "ECONNRESET", SHORT, END]
SENT = ["EINTR", "EPIPE", "ENOBUFS", SHORT]
ERRORS = {
    "accept4": ["EMFILE", "ENFILE", "ENOMEM", "ECONNABORTED", "EINTR"],
    "bind": ["EACCES", "EADDRINUSE", "ENOSPC", "EROFS"],
    "close": ["EINTR", "EIO"],
    "connect": ["ECONNREFUSED", "EAGAIN", "EINTR", "EACCES"],
    "dup2": ["EINTR", "EMFILE"],
    "execlp": ["ENOENT", "ENOMEM"],
    "execvp": ["ENOENT", "ENOMEM"],
    "fchmod": ["EPERM"],
    "fclose": ["ENOSPC"],
    "fcntl": ["EMFILE", "EBADF"],
    "ferror": ["EIO"],
    "fflush": ["ENOSPC", "EIO"],
    "fgets": ["EIO"],
    "flock": ["EINTR", "ENOLCK"],
    "fopen": ["EMFILE", "EACCES", "ENOMEM"],
    "fork": ["EAGAIN", "ENOMEM"],
    "fstat": [],  # of an open descriptor it does not fail
    "ftruncate": ["EIO"],
    "getpeername": ["ENOBUFS", "ENOTCONN"],
    "getpwuid_r": ["EMFILE", "ENOMEM"],
    "getrandom": ["EINTR", "ENOSYS"],
    "getsockname": ["ENOBUFS"],
    "getsockopt": ["ENOBUFS"],
    "ioctl": ["ENOTTY", "EIO"],
    "kill": ["EPERM", "ESRCH"],
    "listen": ["EADDRINUSE"],
    "lstat": ["EACCES", "ENOMEM"],
    "memfd_create": ["EMFILE", "ENOMEM"],
    "open": ["EMFILE", "ENFILE", "EACCES", "ENOMEM"],
    "opendir": ["EMFILE", "ENOMEM"],
    "pipe2": ["EMFILE", "ENFILE"],
    "poll": ["EINTR", "ENOMEM"],
    "ppoll": ["EINTR", "ENOMEM"],
    "prctl": ["EINVAL"],
    "pread": ["EIO", SHORT, END],
    "pthread_create": ["EAGAIN"],
    "pthread_key_create": ["EAGAIN"],
    "pwrite": ["ENOSPC", SHORT],
    "read": ["EINTR", "EIO", SHORT, END],
    "readdir": ["EBADF"],
    "readlink": ["EACCES", "ENOENT"],
    "recv": RECEIVED,
    "send": SENT,
    "setrlimit": ["EPERM"],
    "setsockopt": ["ENOBUFS"],
    "shutdown": ["ENOTCONN"],
    "socket": ["EMFILE", "ENFILE", "ENOBUFS"],
    "socketpair": ["EMFILE", "ENFILE"],
    "stat": ["EACCES", "ENOMEM"],
    "syscall": ["EAGAIN", "ENOMEM"],
    "unlink": ["EACCES", "EROFS"],
    "waitpid": ["EINTR", "ECHILD"],
    "write": ["EINTR", "ENOSPC", "EPIPE", SHORT],
}
NO_MEMORY = ["ENOMEM"]  # all others, Python's among them


def name_of(fault):
    names = {SHORT: "short", END: "end"}
    return names.get(fault) or errno.errorcode[fault]


def number_of(fault):
    return getattr(errno, fault) if isinstance(fault, str) else fault


# ---- The order that faults.c takes ----------------------------------------------------------

HEADER = struct.Struct("IIiII12x")
SITE = struct.Struct("40s40sII")
MAX_SITES = 2048
Site = collections.namedtuple("Site", "source line function where")


class Order:
    def __init__(self, folder, source):
        self.path = os.path.join(folder, source + ".order")
        self.source = source
        size = HEADER.size + MAX_SITES * SITE.size
        with open(self.path, "wb") as file:
            file.truncate(size)
        with open(self.path, "r+b") as file:
            self.map = mmap.mmap(file.fileno(), size)
        self.sites = []

    def read_sites(self):
        count = HEADER.unpack_from(self.map)[4]
        for i in range(count):
            name, caller, line, _ = SITE.unpack_from(self.map, HEADER.size + i * SITE.size)
            name, caller = (text.rstrip(b"\0").decode() for text in (name, caller))
            name = name.replace("_SizeT", "").lstrip("_")
            self.sites.append(Site(self.source, line, name, caller))

    def disarm(self):
        self.map[0:4] = bytes(4)

    def give(self, index=-1, nth=0, fault=0):
        """A fault at one site; at none. The counts begin anew."""
        self.disarm()
        for i in range(MAX_SITES):
            end = HEADER.size + (i + 1) * SITE.size
            self.map[end - 4 : end] = bytes(4)
        self.map[4:16] = struct.pack("IiI", nth, fault, 0)
        self.map[0:4] = struct.pack("I", index + 1)

    def is_done(self):
        return HEADER.unpack_from(self.map)[3] > 0

    def counts(self):
        """The calls of each site. Something must have run with it."""
        if not self.sites:
            self.read_sites()
        return [
            SITE.unpack_from(self.map, HEADER.size + i * SITE.size)[3]
            for i in range(len(self.sites))
        ]
