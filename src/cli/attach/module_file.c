/* Module file: the build of the module that fits the process.
 *
 * Each module has a text in it that says what it was built for, as "CPython 3.11, glibc"; what the
 * process runs is told by what its libpython exports, for there need be no file with a telling
 * name. Both have to be the same, and the kind of processor: all that is known before the process
 * is touched. What else may be missing, a newer C library say, the loader tells.
 *
 * Without --module FILE it is looked for where make leaves it and where make install and pip put
 * it, seen from this program: in its folder, in a folder beside that, in the packages of each
 * Python under the same prefix. --module FOLDER: there, and in the folders in it, and nowhere else:
 * what lies beside a folder that somebody names is none of its builds.
 */
#ifndef MANHOLE_CLI_ATTACH_MODULE_FILE_C
#define MANHOLE_CLI_ATTACH_MODULE_FILE_C

#include "../options.c"
#include "elf.c"
#include "rights.c"

#if HAS_IMAGES

/* As src/attached.c has it; what follows ends at " (". */
static const char built_for[] = "This manhole is for ";

/* What the process runs, in the same words; "" for a Python before 3.9, or none. */
static struct text
describe_python(const struct image *image)
{
    uint64_t version_at = find_python(image, "Py_Version");
    unsigned long version = 0;
    bool has_no_gil = find_python(image, "PyUnstable_Module_SetGIL") != 0;

    if (version_at == 0) { /* is there from 3.11 on */
        version = find_python(image, "PyModule_AddObjectRef") != 0 ? 0x030a0000
                  : find_python(image, "PyFrame_GetBack") != 0     ? 0x03090000
                                                                   : 0;
    }
    else if (!peek(image->pid, version_at, &version, sizeof(version))) {
        version = 0;
    }
    if (version == 0) {
        return print("%s", "");
    }
    return print("CPython %lu.%lu%s, %s", version >> 24 & 0xff, version >> 16 & 0xff,
                 has_no_gil ? "t" : "", image->is_musl ? "musl" : "glibc");
}

/* Writes all of it, to a file of the process's, or returns false, with errno. */
static bool
fill_file(int file, const char *bytes, size_t count)
{
    for (size_t written = 0; written < count;) {
        ssize_t more = write(file, bytes + written, count - written);
        if (more <= 0) {
            return false;
        }
        written += (size_t)more;
    }
    return true;
}

/* Whether all that the loader maps is in the file. Of one that was cut off it would touch what is
 * not there, and the process would die of SIGBUS. */
static bool
is_whole(const struct buffer *module, const Elf64_Ehdr *header)
{
    Elf64_Phdr segment;

    for (size_t i = 0; i < header->e_phnum; i++) {
        uint64_t at = header->e_phoff + i * sizeof(segment);
        if (at + sizeof(segment) > module->length) {
            return false;
        }
        memcpy(&segment, module->data + at, sizeof(segment));
        if (segment.p_offset + segment.p_filesz > module->length) {
            return false;
        }
    }
    return true;
}

/* Reads a module's file, and tells what it was built for, in the same words; "" when it is none, is
 * of another processor, or not whole. */
static struct text
read_module(int file, uint16_t machine, struct buffer *module)
{
    Elf64_Ehdr header = {.e_machine = EM_NONE};

    empty(module);
    if (!read_all(file, module) || module->length < sizeof(header)) {
        return print("%s", "");
    }
    memcpy(&header, module->data, sizeof(header));
    const char *text = memmem(module->data, module->length, built_for, strlen(built_for));
    if (memcmp(header.e_ident, ELFMAG, SELFMAG) != 0 || header.e_machine != machine ||
        text == NULL || !is_whole(module, &header)) {
        return print("%s", "");
    }
    text += strlen(built_for);
    const char *end = strstr(text, " (");
    return print("%.*s", end != NULL ? (int)(end - text) : 0, text);
}

/* Whether who put a file there could as well have changed what we run: it is root's, ours, or the
 * folder's owner's. Else root, with a client in /tmp, would load anybody's into any process. */
static bool
is_trusted(int file, const char *folder)
{
    struct stat status;
    struct stat home;

    return fstat(file, &status) == 0 && stat(folder, &home) == 0 &&
           (status.st_mode & S_IWOTH) == 0 &&
           (status.st_uid == 0 || status.st_uid == geteuid() ||
            status.st_uid == home.st_uid);
}

/* Seen from a folder: what is in it, and around it. */
static const char *const module_places[] = {"manhole*.so", "*/manhole*.so",
                                            "manhole/*.so", "../*/manhole*.so",
                                            "../lib*/python3*/*-packages/manhole/*.so"};
enum { PLACES_WITHIN = 3, ALL_PLACES = 5 };

/* Looks for one in so many places, reads it, and notes what else is there. */
static bool
search_folder(const struct image *image, const char *folder, size_t place_count,
              const char *python, struct buffer *module, struct buffer *others)
{
    bool is_found = false;

    for (size_t i = 0; i < place_count && !is_found; i++) {
        glob_t found = {.gl_pathc = 0};
        /* NOLINTNEXTLINE(concurrency-mt-unsafe): there is one thread */
        (void)glob(print("%s/%s", folder, module_places[i]).text, 0, NULL, &found);
        for (size_t j = 0; j < found.gl_pathc && !is_found; j++) {
            const char *path = found.gl_pathv[j];
            OWNED_FD file = open(path, O_RDONLY | O_NONBLOCK | O_CLOEXEC);
            struct text what = read_module(file, image->machine, module);
            bool fits = strcmp(what.text, python) == 0;
            is_found = fits && is_trusted(file, folder);
            if (!is_found && what.text[0] != '\0' && others->length < QUOTED_SIZE / 2) {
                append_format(others, "; %s is for %s", path,
                              fits ? "that, but is another user's" : what.text);
            }
        }
        globfree(&found);
    }
    return is_found;
}

/* By this the module is called, and by whether a process exports it one knows that it has that. */
static const char entry_name[] = "manhole_attached";

/* Reads the module for what the process runs; ends the program without one. */
static void
find_module(const struct request *request, const struct image *image,
            struct buffer *module)
{
    const struct text runs = describe_python(image);
    const char *python = runs.text;
    const char *given = request->given[OPTION_MODULE];
    char folder[PATH_MAX] = "";
    struct stat status;
    OWNED_BUFFER others = {.data = NULL};

    if (python[0] == '\0') {
        check_life(image->pid);
        fail(STATUS_NO_CONNECTION,
             "process %d runs a Python before 3.9, and manhole wants 3.9 or newer",
             (int)image->pid);
    }
    if (given != NULL && stat(given, &status) < 0) {
        fail(STATUS_TROUBLE, "cannot read the module %s: %m", quote(given).text);
    }
    if (given != NULL && !S_ISDIR(status.st_mode)) {
        OWNED_FD file = open(given, O_RDONLY | O_CLOEXEC);
        struct text what = read_module(file, image->machine, module);
        if (strcmp(what.text, python) != 0) {
            check_life(image->pid);
            fail(STATUS_TROUBLE, "the module %s is for %s, but process %d runs %s",
                 quote(given).text,
                 what.text[0] != '\0' ? what.text : "nothing known here", (int)image->pid,
                 python);
        }
        return;
    }
    if (given != NULL) {
        (void)snprintf(folder, sizeof(folder), "%s", given);
    }
    else if (readlink("/proc/self/exe", folder, sizeof(folder) - 1) > 0) {
        *strrchr(folder, '/') = '\0';
    }
    if (!search_folder(image, folder, given != NULL ? PLACES_WITHIN : ALL_PLACES, python,
                       module, &others)) {
        check_life(image->pid);
        fail(STATUS_TROUBLE,
             "process %d runs %s, and there is no module for that in%s %s%s; build one "
             "with 'make PYTHON=...' of that Python, and name it with --module FILE",
             (int)image->pid, python, given != NULL ? "" : " or beside",
             quote(folder).text, text_of(&others));
    }
}

#endif /* HAS_IMAGES */

#endif /* MANHOLE_CLI_ATTACH_MODULE_FILE_C */
