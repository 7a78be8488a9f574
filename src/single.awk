# single.awk - manhole.c or manhole_cli.c with each of its rooms in its place, once: make single.
#
#     awk -f src/single.awk manhole.c >build/single/manhole.c
#
# The include lines of rooms and the guards that make these work are left out; of our own headers
# manhole.h alone is still included.

function folder_of(path) {
    return sub(/\/[^\/]*$/, "", path) ? path "/" : ""
}

# The path from the top of the tree: src/door/../base/log.c is src/base/log.c.
function plain(path) {
    while (sub(/[^\/.]+\/\.\.\//, "", path)) {
    }
    return path
}

# No two empty lines in a row, for whole lines are left out.
function put(line) {
    if (line != "" || !was_empty) {
        print line
    }
    was_empty = line == ""
}

function copy(path, line, part, guard) {
    while ((getline line <path) > 0) {
        if (line ~ /^#include "/) {
            split(line, part, "\"")
            part[2] = plain(folder_of(path) part[2])
            if (part[2] !~ /^src\//) {
                put("#include \"" part[2] "\"")
            }
            else if (!(part[2] in copied)) {
                copied[part[2]] = 1
                put("")
                put("/* ======== " part[2] " ======== */")
                put("")
                copy(part[2])
            }
        }
        else if (guard == "" && path ~ /^src\// && line ~ /^#ifndef MANHOLE_/) {
            guard = line
            sub(/.* /, "", guard)
        }
        else if (guard == "" || line !~ ("^#define " guard "$|^#endif /\\* " guard " \\*/$")) {
            put(line)
        }
    }
    close(path)
}

BEGIN {
    copy(ARGV[1])
    exit
}
