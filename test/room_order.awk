# room_order.awk - whether the include lines of the rooms are an order: make lint.
#
#     awk -f test/room_order.awk manhole.c manhole_cli.c src/*.c src/*/*.c src/*/*/*.c
#
# The first two list their rooms from the ground floor up. A room may include those that stand above
# it in that list, and its folder's floor says which folders these may be in. Each room is listed.

BEGIN {
    may["src/base"] = "src/base"
    may["src/door"] = may["src/base"] " src/door"
    may["src/stacks"] = may["src/base"] " src/stacks"
    may["src/watch"] = may["src/stacks"] " src/watch"
    may["src/frozen"] = may["src/watch"] " src/frozen"
    may["src/session"] = may["src/frozen"] " src/door src/session"
    may["src/server"] = may["src/session"] " src/server"
    may["src"] = may["src/server"] " src"
    may["src/cli"] = may["src/cli/attach"] = "src/cli src/cli/attach"
}

function folder_of(path) {
    sub(/\/[^\/]*$/, "", path)
    return path
}

# The path from the top of the tree: src/door/../base/log.c is src/base/log.c.
function plain(path) {
    while (sub(/[^\/.]+\/\.\.\//, "", path)) {
    }
    return path
}

function complain(text) {
    print FILENAME ":" FNR ": " text
    failed = 1
}

FNR == 1 && FILENAME ~ /^src\// && !(FILENAME in rank) {
    complain("neither manhole.c nor manhole_cli.c includes this room")
}

/^#include "/ {
    split($0, part, "\"")
    if (FILENAME !~ /^src\//) {
        if (part[2] ~ /^src\//) {
            rank[part[2]] = ++rooms
        }
        next
    }
    room = plain(folder_of(FILENAME) "/" part[2])
    if (room ~ /\.h$/) {
        next
    }
    if (!(room in rank) || rank[room] >= rank[FILENAME]) {
        complain(room " is no room that comes before")
    }
    else if (index(" " may[folder_of(FILENAME)] " ", " " folder_of(room) " ") == 0) {
        complain("a room of " folder_of(FILENAME) " may not use " folder_of(room))
    }
}

END {
    exit failed
}
