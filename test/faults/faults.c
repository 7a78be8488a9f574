/* faults.c - linked to what was compiled with faults.h. A file that the environment variable FAULTS
 * names is mapped here and by run.py, which orders a fault in it and reads the counts. It is shared
 * by all that this process forks, the frozen copies among them.
 */
#include "faults.h"

#include <stdatomic.h>

#undef close
#undef ftruncate
#undef mmap
#undef getsockopt
#undef open
#undef shutdown

enum { MAX_SITES = 2048, NAME_SIZE = 40 };

/* run.py knows this layout. */
struct order {
    _Atomic uint32_t armed; /* the site's index plus 1; 0: none */
    _Atomic uint32_t nth;   /* this call of it fails */
    _Atomic int32_t fault;  /* see fault_at() */
    _Atomic uint32_t done;  /* faults so far */
    uint32_t site_count;
    uint32_t unused[3];
    struct {
        char function[NAME_SIZE];
        char caller[NAME_SIZE];
        uint32_t line;
        _Atomic uint32_t calls;
    } sites[MAX_SITES];
};

/* The linker makes these, and names them so.
 * NOLINTBEGIN(bugprone-reserved-identifier,cert-dcl37-c,cert-dcl51-cpp) */
extern const struct fault_site __start_fault_sites[];
extern const struct fault_site __stop_fault_sites[];
/* NOLINTEND(bugprone-reserved-identifier,cert-dcl37-c,cert-dcl51-cpp) */

static struct order *order;

__attribute__((constructor)) static void
map_order(void)
{
    const char *path = getenv("FAULTS");
    /* cppcheck-suppress comparePointers */
    size_t count = (size_t)(__stop_fault_sites - __start_fault_sites);
    int fd = path == NULL ? -1 : open(path, O_RDWR | O_CLOEXEC);
    void *memory = MAP_FAILED;
    if (fd >= 0) {
        memory = mmap(NULL, sizeof(*order), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
        (void)close(fd);
    }
    if (memory == MAP_FAILED || count > MAX_SITES) {
        return;
    }
    order = memory;
    order->site_count = (uint32_t)count;
    for (size_t i = 0; i < count; i++) {
        (void)snprintf(order->sites[i].function, NAME_SIZE, "%s",
                       __start_fault_sites[i].function);
        (void)snprintf(order->sites[i].caller, NAME_SIZE, "%s",
                       __start_fault_sites[i].caller);
        order->sites[i].line = __start_fault_sites[i].line;
    }
}

int
fault_at(const struct fault_site *site)
{
    uint32_t index = (uint32_t)(site - __start_fault_sites);
    int fault = 0;
    if (order == NULL ||
        atomic_fetch_add(&order->sites[index].calls, 1) + 1 != atomic_load(&order->nth) ||
        atomic_load(&order->armed) != index + 1) {
        return 0;
    }
    atomic_fetch_add(&order->done, 1);
    fault = atomic_load(&order->fault);
    if (fault > 0) {
        errno = fault;
    }
    return fault;
}

int
fault_of_bytes(const struct fault_site *site, int fd)
{
    int fault = fault_at(site);
    int type = 0;
    socklen_t size = sizeof(type);
    if ((fault == EPIPE || fault == ECONNRESET || fault == FAULT_END) &&
        getsockopt(fd, SOL_SOCKET, SO_TYPE, &type, &size) == 0 && type == SOCK_STREAM) {
        (void)shutdown(fd, SHUT_RDWR);
    }
    if (fault > 0) {
        errno = fault;
    }
    return fault;
}
