/* Memory: whether there is room for a frozen copy.
 * Runs on:  native threads of ours, DETACHED.
 * Touches:  /proc/self and /sys/fs/cgroup, read.
 *
 * A copy shares all pages with the process, but has page tables of its own: 2 MB for each GB that
 * is resident. In a container whose memory cgroup is nearly full these may be what brings the
 * kernel's OOM killer, and that kills the process, not the copy. So none is made where its tables
 * would not fit beside what the cgroup counts already, less what it can give up at once, which is
 * the cache of files. A cgroup is as full as the fullest one above it.
 *
 * What cannot be read says nothing: then a copy is made.
 */
#ifndef MANHOLE_STACKS_MEMORY_C
#define MANHOLE_STACKS_MEMORY_C

#include "../base/compat.c"
#include "../base/state.c"
#include "../base/basics.c"

enum {
    /* Of a copy beside its page tables: what the kernel and the C library keep for it, and what it
     * writes. */
    COPY_OVERHEAD = 2 * 1024 * 1024,
    /* Room for a small file of the kernel's. */
    KERNEL_FILE_SIZE = 8 * 1024,
};

/* Unit tests have another. */
static const char *cgroup_root = "/sys/fs/cgroup";

/* The files of a memory cgroup, in one of two versions. */
struct cgroup_files {
    const char *mount; /* below the root */
    const char *most;
    const char *current;
    const char *inactive_file; /* lines of memory.stat, which are never the first */
    const char *active_file;
};

static const struct cgroup_files cgroup_v1 = {
    .mount = "/memory",
    .most = "memory.limit_in_bytes",
    .current = "memory.usage_in_bytes",
    .inactive_file = "\ntotal_inactive_file ",
    .active_file = "\ntotal_active_file ",
};

static const struct cgroup_files cgroup_v2 = {
    .mount = "",
    .most = "memory.max",
    .current = "memory.current",
    .inactive_file = "\ninactive_file ",
    .active_file = "\nactive_file ",
};

/* Reads FOLDER/NAME, up to KERNEL_FILE_SIZE, into a string; an empty one when it cannot be read. */
static void
read_kernel_file(char text[KERNEL_FILE_SIZE], const char *folder, const char *name)
{
    char path[PATH_MAX];
    text[0] = '\0';
    if (snprintf(path, sizeof(path), "%s/%s", folder, name) >= (int)sizeof(path)) {
        return;
    }
    OWNED_FD int fd = open(path, O_RDONLY | O_CLOEXEC);
    ssize_t length = fd < 0 ? -1 : read(fd, text, KERNEL_FILE_SIZE - 1);
    text[length < 0 ? 0 : length] = '\0';
}

/* The number behind a key; 0 when there is none. */
static uint64_t
number_behind(const char *text, const char *key)
{
    const char *found = strstr(text, key);
    return found == NULL ? 0 : strtoull(found + strlen(key), NULL, 10);
}

/* The bytes that a cgroup itself has left of so many hundredths of its limit; UINT64_MAX when it
 * has no limit, or is none. */
static uint64_t
left_in(const char *folder, const struct cgroup_files *files, unsigned percent)
{
    char text[KERNEL_FILE_SIZE];
    read_kernel_file(text, folder, files->most);
    if (text[0] < '0' || text[0] > '9') { /* "max" */
        return UINT64_MAX;
    }
    const uint64_t most = strtoull(text, NULL, 10) / 100 * percent;

    read_kernel_file(text, folder, files->current);
    const uint64_t current = strtoull(text, NULL, 10);

    read_kernel_file(text, folder, "memory.stat");
    const uint64_t cache = number_behind(text, files->inactive_file) +
                           number_behind(text, files->active_file);
    const uint64_t used = current < cache ? 0 : current - cache;
    return used < most ? most - used : 0;
}

/* The bytes that the process's memory cgroup has left of so much of its limit, and all above it. */
static uint64_t
memory_left_of(unsigned percent)
{
    char text[KERNEL_FILE_SIZE];
    char folder[PATH_MAX];
    read_kernel_file(text, "/proc/self", "cgroup");

    const char *own = strstr(text, ":memory:"); /* "4:memory:/a/b" */
    const struct cgroup_files *files = own == NULL ? &cgroup_v2 : &cgroup_v1;
    own = own == NULL ? strstr(text, "0::") : own; /* "0::/a/b" */
    own = own == NULL ? "" : own + (files == &cgroup_v1 ? 8 : 3);

    int top = snprintf(folder, sizeof(folder), "%s%s", cgroup_root, files->mount);
    size_t length = (size_t)top + strcspn(own, "\n");
    if (length >= sizeof(folder)) {
        return UINT64_MAX;
    }
    memcpy(folder + top, own, length - (size_t)top);

    uint64_t left = UINT64_MAX;
    while (length >= (size_t)top) {
        folder[length] = '\0';
        const uint64_t here = left_in(folder, files, percent);
        left = here < left ? here : left;
        const char *slash = strrchr(folder, '/');
        length = slash == NULL ? 0 : (size_t)(slash - folder);
    }
    return left;
}

static uint64_t
memory_left(void)
{
    return memory_left_of(100);
}

#if CAN_FREEZE

/* Whether so much is used that no copy may stay: nine tenths of the limit of a memory cgroup, or of
 * what the machine has, though a GiB is enough there. What a copy shares with the process is
 * counted once; each page that one of them writes is one more. */
DETACHED static bool
is_memory_low(void)
{
    enum { USABLE = 90 };
    const uint64_t enough = 1 << 30;
    char text[KERNEL_FILE_SIZE];
    read_kernel_file(text, "/proc", "meminfo");
    const uint64_t tenth = number_behind(text, "MemTotal:") * 1024 / 10;
    const uint64_t available = number_behind(text, "\nMemAvailable:") * 1024;
    return available < (tenth < enough ? tenth : enough) || memory_left_of(USABLE) == 0;
}

#endif /* CAN_FREEZE */

/* Whether a copy would take more than there is. */
DETACHED static bool
is_memory_short(void)
{
    char text[KERNEL_FILE_SIZE];
    read_kernel_file(text, "/proc/self", "status");
    const uint64_t tables = number_behind(text, "\nVmPTE:") * 1024;
    return memory_left() < tables + COPY_OVERHEAD;
}

#endif /* MANHOLE_STACKS_MEMORY_C */
