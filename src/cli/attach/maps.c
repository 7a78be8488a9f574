/* Maps: the memory of a process that has no manhole, as it is mapped, and how we read and write it.
 *
 * An image is what we know of that process: its mappings, and the ELF objects in them (elf.c). It
 * is read once, before anybody is stopped. Memory is read by process_vm_readv(), which needs no
 * stop; only code, which may not be written to, goes in through /proc/PID/mem. Both want the right
 * that ptrace wants, so the first look also tells whether we have it (rights.c). All of this is for
 * any processor of 64 bits, for such a process.
 */
#ifndef MANHOLE_CLI_ATTACH_MAPS_C
#define MANHOLE_CLI_ATTACH_MAPS_C

#include "../target.c"
#include <inttypes.h>
#include <sys/uio.h>

#ifdef __LP64__
#  define HAS_IMAGES 1
#else
#  define HAS_IMAGES 0
#endif

#if HAS_IMAGES

struct mapping {
    uint64_t start;
    uint64_t end;
    bool is_readable;
    bool is_executable;
    const char
        *path; /* "" for none; as the process sees it, with " (deleted)" if it is */
};

struct image {
    pid_t pid;
    struct mapping *mappings; /* owned, as is all else: it goes with the program */
    size_t mapping_count;
    struct object *objects;
    size_t object_count;
    bool is_musl;
    uint16_t machine; /* the kind of processor, as in the head of an object */
};

/* Whether all of it could be read. A pid of a thread does as well, and so does that of a copy. */
static bool
peek(pid_t pid, uint64_t address, void *to, size_t size)
{
    struct iovec local = {.iov_base = to, .iov_len = size};
    struct iovec remote = {.iov_base = NULL, .iov_len = size};

    memcpy(&remote.iov_base, &address, sizeof(address)); /* no pointer of ours */
    return process_vm_readv(pid, &local, 1, &remote, 1, 0) == (ssize_t)size;
}

static bool
poke(pid_t pid, uint64_t address, const void *from, size_t size)
{
    struct iovec local = {.iov_base = NULL, .iov_len = size};
    struct iovec remote = {.iov_base = NULL, .iov_len = size};

    memcpy(&local.iov_base, &from, sizeof(from)); /* only read, though the type says no */
    memcpy(&remote.iov_base, &address, sizeof(address));
    return process_vm_writev(pid, &local, 1, &remote, 1, 0) == (ssize_t)size;
}

/* A line of /proc/PID/maps: "7f00-7f10 r-xp 00001000 08:01 4711    /lib/libc.so.6". The path, which
 * may have blanks in it, is all that is left. */
static bool
parse_mapping(char *line, struct mapping *mapping)
{
    char mode[5] = "";
    int path = 0;

    /* NOLINTNEXTLINE(cert-err34-c): the kernel writes no number that is too great */
    int fields = sscanf(line, "%" SCNx64 "-%" SCNx64 " %4s %*s %*s %*s %n",
                        &mapping->start, &mapping->end, mode, &path);
    mapping->is_readable = mode[0] == 'r';
    mapping->is_executable = mode[2] == 'x';
    mapping->path = line + path;
    return fields == 3 && path > 0;
}

/* Reads the mappings anew. False, with errno, where they cannot be read; a kernel thread and a
 * zombie have none. */
static bool
read_mappings(struct image *image)
{
    struct buffer content = {.data = NULL}; /* never freed: the paths are in it */
    size_t lines = 0;

    image->mapping_count = 0;
    if (!read_proc(image->pid, "maps", &content)) {
        return false;
    }
    for (size_t i = 0; i < content.length; i++) {
        lines += content.data[i] == '\n';
    }
    free(image->mappings);
    image->mappings = allocate(lines, sizeof(*image->mappings));
    char *rest = content.data;
    for (char *line = strsep(&rest, "\n"); line != NULL; line = strsep(&rest, "\n")) {
        struct mapping *next = &image->mappings[image->mapping_count];
        image->mapping_count += image->mapping_count < lines && parse_mapping(line, next);
    }
    return true;
}

#endif /* HAS_IMAGES */

#endif /* MANHOLE_CLI_ATTACH_MAPS_C */
