/* Heap: memory of a frozen copy's own, for all that Python allocates in it.
 * Runs on:  any thread of the copy, attached or not.
 * Touches:  the copy's allocators of Python's.
 *
 * The process may have been stopped in the middle of malloc(), or of Python's own allocator: a list
 * half linked, a lock taken by a thread that is not in the copy. So the copy allocates elsewhere,
 * in the simplest way: blocks of a power of two, cut from a range of addresses in their order, and
 * free ones of each size in a list. What the process had allocated is never freed, and one of its
 * blocks that is to grow is copied.
 */
#ifndef MANHOLE_FROZEN_HEAP_C
#define MANHOLE_FROZEN_HEAP_C

#include "../base/compat.c"
#include "../stacks/copy.c"
#include "fence.c"

#if CAN_FREEZE

/* Powers of two. */
enum {
    HEAP_MOST = 36,  /* 64 GiB of addresses are asked for, */
    HEAP_LEAST = 24, /* or less where a limit is set; no memory before it is used */
    HEAP_PIECE = 25, /* what is made usable at once */
    BLOCK_LEAST = 5,
};

/* The head of a block, behind which its memory begins. */
struct block {
    size_t kind;        /* the size of both is 2 to the power of this */
    struct block *next; /* of the free ones */
};

static struct {
    char *begin;
    char *next;   /* not cut yet, */
    char *usable; /* up to here, */
    char *end;    /* and up to here when it is asked for */
    struct block *free_blocks[HEAP_MOST + 1];
    atomic_flag lock; /* Python's raw allocator needs no GIL */
} heap = {.lock = ATOMIC_FLAG_INIT};

static void
lock_heap(void)
{
    while (atomic_flag_test_and_set(&heap.lock)) {
        (void)sched_yield();
    }
}

static bool
is_heaps_own(const void *memory)
{
    return (const char *)memory >= heap.begin && (const char *)memory < heap.end;
}

static struct block *
block_of(void *memory)
{
    return (struct block *)memory - 1;
}

/* Bytes of memory in a block. */
static size_t
room_of(size_t kind)
{
    return ((size_t)1 << kind) - sizeof(struct block);
}

/* Under the lock. Returns NULL when there is no more. */
static struct block *
cut_block(size_t kind)
{
    const size_t size = (size_t)1 << kind;
    const size_t piece = (size_t)1 << HEAP_PIECE;
    if ((size_t)(heap.end - heap.next) < size) {
        return NULL;
    }
    if ((size_t)(heap.usable - heap.next) < size) {
        size_t missing = size - (size_t)(heap.usable - heap.next);
        size_t grown = (missing + piece - 1) / piece * piece;
        size_t most = (size_t)(heap.end - heap.usable);
        grown = grown < most ? grown : most;
        if (mprotect(heap.usable, grown, PROT_READ | PROT_WRITE) < 0) {
            return NULL;
        }
        heap.usable += grown;
    }
    struct block *block = (struct block *)(void *)heap.next;
    heap.next += size;
    return block;
}

static void *
heap_malloc(void *unused, size_t size)
{
    size_t kind = BLOCK_LEAST;
    (void)unused;
    while (kind <= HEAP_MOST && room_of(kind) < size) {
        kind++;
    }
    if (kind > HEAP_MOST) {
        return NULL;
    }
    lock_heap();
    struct block *block = heap.free_blocks[kind];
    if (block != NULL) {
        heap.free_blocks[kind] = block->next;
    }
    else {
        block = cut_block(kind);
    }
    atomic_flag_clear(&heap.lock);
    if (block == NULL) {
        return NULL;
    }
    block->kind = kind;
    return block + 1; /* aligned to 16 */
}

static void *
heap_calloc(void *unused, size_t count, size_t size)
{
    void *memory =
        size != 0 && count > SIZE_MAX / size ? NULL : heap_malloc(unused, count * size);
    if (memory != NULL) {
        memset(memory, 0, count * size);
    }
    return memory;
}

static void
heap_free(void *unused, void *memory)
{
    (void)unused;
    if (memory == NULL || !is_heaps_own(memory)) {
        return;
    }
    struct block *block = block_of(memory);
    lock_heap();
    block->next = heap.free_blocks[block->kind];
    heap.free_blocks[block->kind] = block;
    atomic_flag_clear(&heap.lock);
}

/* Whether the kernel can read there: it reads a set of signals before it sees that there is no such
 * thing to do with it. */
static bool
is_readable(uintptr_t address)
{
    return syscall(SYS_rt_sigprocmask, ~0, address & ~(uintptr_t)7, NULL, 8) == 0 ||
           errno != EFAULT;
}

/* The same as copy_with_holes() where a filter of the process's own keeps that call back, up to the
 * first page that is not there. */
static void
copy_pages(char *to, const char *from, size_t size)
{
    const size_t page = 4096; /* or less than one */
    while (size > 0 && is_readable((uintptr_t)from)) {
        size_t piece = page - (uintptr_t)from % page;
        piece = piece < size ? piece : size;
        memcpy(to, from, piece);
        to += piece;
        from += piece;
        size -= piece;
    }
}

/* Of a block of the process's the size is not known: as much is copied as it is to have, which may
 * be more than there is. */
static void *
heap_realloc(void *unused, void *memory, size_t size)
{
    const bool is_own = memory != NULL && is_heaps_own(memory);
    const size_t room = is_own ? room_of(block_of(memory)->kind) : 0;
    if (is_own && size <= room) {
        return memory;
    }
    void *fresh = heap_malloc(unused, size);
    if (fresh != NULL && is_own) {
        memcpy(fresh, memory, room);
        heap_free(unused, memory);
    }
    else if (fresh != NULL && memory != NULL && !copy_with_holes(fresh, memory, size)) {
        copy_pages(fresh, memory, size);
    }
    return fresh;
}

/* From here on Python allocates there. Returns false where there are no addresses left. */
COPY_ONLY static bool
use_own_heap(void)
{
    PyMemAllocatorEx own = {NULL, heap_malloc, heap_calloc, heap_realloc, heap_free};
    heap.begin = MAP_FAILED;
    for (int kind = HEAP_MOST; heap.begin == MAP_FAILED && kind >= HEAP_LEAST; kind--) {
        heap.begin = mmap(NULL, (size_t)1 << kind, PROT_NONE,
                          MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        heap.end = heap.begin + ((size_t)1 << kind);
    }
    if (heap.begin == MAP_FAILED) {
        return false;
    }
    heap.next = heap.begin;
    heap.usable = heap.begin;
    PyMem_SetAllocator(PYMEM_DOMAIN_RAW, &own);
    PyMem_SetAllocator(PYMEM_DOMAIN_MEM, &own);
    PyMem_SetAllocator(PYMEM_DOMAIN_OBJ, &own);
    return true;
}

#endif /* CAN_FREEZE */
#endif /* MANHOLE_FROZEN_HEAP_C */
