/* ELF: the objects that a process has mapped, and where in them a symbol is.
 *
 * All is read from the process's memory, not from files: what is mapped may have been deleted or
 * replaced, or be in a file system that only the process sees. An object's program headers lead to
 * its dynamic section, that to its symbols and to a hash table, GNU's, by which a name is found
 * with a few reads. Only what is exported is looked for, so stripped objects do as well.
 *
 * Of a few it is known what they are. A thread must not be lent while it is in an object that has
 * locks which we need (carrier.c): the C library's, glibc's loader, and whoever exports a malloc.
 */
#ifndef MANHOLE_CLI_ATTACH_ELF_C
#define MANHOLE_CLI_ATTACH_ELF_C

#include "maps.c"
#include <elf.h>

#if HAS_IMAGES

struct object {
    const char *path;
    uint16_t machine;
    uint64_t base;  /* where its file's first byte is mapped */
    uint64_t shift; /* what to add to the addresses in it */
    uint64_t end;   /* of all that it has mapped */
    uint64_t symbols;
    uint64_t names;
    uint64_t gnu_hash;
    bool is_libc;
    bool is_vdso;   /* the kernel's */
    bool is_loader; /* glibc's; musl's is its C library, too */
    bool has_malloc;
};

enum { MOST_SEGMENTS = 32, SEGMENT_ALIGNMENT = 4096 };

/* ---- Reading an object ------------------------------------------------------------- */

/* Some loaders, and the kernel for its vdso, leave the addresses as they are in the file. */
static void
note_table(struct object *object, const Elf64_Dyn *entry)
{
    uint64_t value = entry->d_un.d_ptr;
    uint64_t address = value < object->base ? value + object->shift : value;

    switch (entry->d_tag) {
    case DT_SYMTAB:
        object->symbols = address;
        break;
    case DT_STRTAB:
        object->names = address;
        break;
    case DT_GNU_HASH:
        object->gnu_hash = address;
        break;
    default:
        break;
    }
}

static void
read_dynamic(pid_t pid, struct object *object, const Elf64_Phdr *segment)
{
    uint64_t start = object->shift + segment->p_vaddr;
    Elf64_Dyn entry = {.d_tag = DT_DEBUG};

    for (uint64_t at = start; at < start + segment->p_memsz && entry.d_tag != DT_NULL &&
                              peek(pid, at, &entry, sizeof(entry));
         at += sizeof(entry)) {
        note_table(object, &entry);
    }
}

/* Whether there is an object with symbols at its base. */
static bool
read_object(pid_t pid, struct object *object)
{
    Elf64_Ehdr header;
    Elf64_Phdr segments[MOST_SEGMENTS];
    bool is_first = true;

    if (!peek(pid, object->base, &header, sizeof(header)) ||
        memcmp(header.e_ident, ELFMAG, SELFMAG) != 0 ||
        header.e_ident[EI_CLASS] != ELFCLASS64 || header.e_phnum > MOST_SEGMENTS ||
        !peek(pid, object->base + header.e_phoff, segments,
              header.e_phnum * sizeof(*segments))) {
        return false;
    }
    object->machine = header.e_machine;
    for (size_t i = 0; i < header.e_phnum; i++) {
        if (segments[i].p_type != PT_LOAD) {
            continue;
        }
        if (is_first) {
            object->shift = object->base -
                            segments[i].p_vaddr / SEGMENT_ALIGNMENT * SEGMENT_ALIGNMENT;
            is_first = false;
        }
        uint64_t end = object->shift + segments[i].p_vaddr + segments[i].p_memsz;
        object->end = end > object->end ? end : object->end;
    }
    for (size_t i = 0; i < header.e_phnum; i++) {
        if (segments[i].p_type == PT_DYNAMIC) {
            read_dynamic(pid, object, &segments[i]);
        }
    }
    return object->symbols != 0 && object->names != 0;
}

/* ---- Symbols ----------------------------------------------------------------------- */

/* Whether the symbol of this number has that name and is defined; notes its address. */
static bool
is_symbol(pid_t pid, const struct object *object, uint32_t number, const char *wanted,
          uint64_t *address)
{
    Elf64_Sym symbol;
    char name[64];
    size_t size = strlen(wanted) + 1;

    if (size > sizeof(name) ||
        !peek(pid, object->symbols + number * sizeof(symbol), &symbol, sizeof(symbol)) ||
        symbol.st_shndx == SHN_UNDEF || symbol.st_value == 0 ||
        ELF64_ST_TYPE(symbol.st_info) == STT_TLS ||
        !peek(pid, object->names + symbol.st_name, name, size) ||
        memcmp(name, wanted, size) != 0) {
        return false;
    }
    *address = object->shift + symbol.st_value;
    return true;
}

/* The address of what an object exports by that name; 0: nothing. Of the C library's functions that
 * we call all versions are alike. The table is a filter, which is skipped, buckets, and chains
 * whose last entry is odd. */
static uint64_t
find_in(pid_t pid, const struct object *object, const char *name)
{
    const uint64_t table = object->gnu_hash;
    struct {
        uint32_t buckets, first, filter_size, shift;
    } head;
    uint32_t hash = 5381;
    uint32_t number = 0;
    uint32_t value = 0;
    uint64_t found = 0;

    for (const char *c = name; *c != '\0'; c++) {
        hash = hash * 33 + (unsigned char)*c;
    }
    if (table == 0 || !peek(pid, table, &head, sizeof(head)) || head.buckets == 0) {
        return 0;
    }
    uint64_t buckets = table + sizeof(head) + 8UL * head.filter_size;
    uint64_t chains = buckets + 4UL * head.buckets;
    if (!peek(pid, buckets + 4UL * (hash % head.buckets), &number, 4) ||
        number < head.first) {
        return 0;
    }
    for (; found == 0 && (value & 1) == 0 &&
           peek(pid, chains + 4UL * (number - head.first), &value, 4);
         number++) {
        if ((value | 1) == (hash | 1)) {
            (void)is_symbol(pid, object, number, name, &found);
        }
    }
    return found;
}

/* ---- Which objects there are ------------------------------------------------------- */

/* Whether a path's last part begins with one of these words, apart by blanks. */
static bool
is_called(const char *path, const char *words)
{
    const char *slash = strrchr(path, '/');
    const char *name = slash != NULL ? slash + 1 : path;

    for (size_t length = 0; *words != '\0'; words += length) {
        words += strspn(words, " ");
        length = strcspn(words, " ");
        if (length > 0 && strncmp(name, words, length) == 0) {
            return true;
        }
    }
    return false;
}

static const struct object *
object_at(const struct image *image, uint64_t address)
{
    for (size_t i = 0; i < image->object_count; i++) {
        if (address >= image->objects[i].base && address < image->objects[i].end) {
            return &image->objects[i];
        }
    }
    return NULL;
}

/* The address of what any object exports by that name; with is_libcs of the C library's alone. */
static uint64_t
find_symbol(const struct image *image, const char *name, bool is_libcs)
{
    uint64_t address = 0;

    for (size_t i = 0; i < image->object_count && address == 0; i++) {
        if (image->objects[i].is_libc || !is_libcs) {
            address = find_in(image->pid, &image->objects[i], name);
        }
    }
    return address;
}

static uint64_t
find_libc(const struct image *image, const char *name)
{
    return find_symbol(image, name, true);
}

static uint64_t
find_python(const struct image *image, const char *name)
{
    return find_symbol(image, name, false);
}

/* Finds the objects among the mappings. */
static void
read_objects(struct image *image)
{
    static const char loaders[] = "ld-linux ld-2. ld.so ld64.so";
    static const char libraries[] = "libc.so libc-2. libpthread libdl.so libdl-2. "
                                    "ld-musl libc.musl";
    const pid_t pid = image->pid;

    image->object_count = 0;
    image->objects = allocate(image->mapping_count, sizeof(*image->objects));
    for (size_t i = 0; i < image->mapping_count; i++) {
        const struct mapping *mapping = &image->mappings[i];
        struct object object = {.path = mapping->path, .base = mapping->start};
        object.is_vdso = strcmp(mapping->path, "[vdso]") == 0;
        if (!mapping->is_readable || (mapping->path[0] != '/' && !object.is_vdso) ||
            object_at(image, mapping->start) != NULL || !read_object(pid, &object)) {
            continue;
        }
        object.is_loader = is_called(object.path, loaders);
        object.is_libc = object.is_loader || is_called(object.path, libraries);
        object.has_malloc =
            (object.gnu_hash == 0 && !object.is_vdso) || /* for all we know */
            find_in(pid, &object, "malloc") != 0;
        image->machine = object.machine;
        image->objects[image->object_count++] = object;
    }
    image->is_musl = find_libc(image, "gnu_get_libc_version") == 0;
}

#endif /* HAS_IMAGES */

#endif /* MANHOLE_CLI_ATTACH_ELF_C */
