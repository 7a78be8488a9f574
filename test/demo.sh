#!/bin/bash
# make demo: Python's own http.server, unchanged, gets a manhole by an environment variable and a
# signal, is looked into while it serves, and goes on serving. Leaves nothing behind.
#
# Environment: MAKE, PYTHON.
set -eu -o pipefail

make=${MAKE:-make}
python=${PYTHON:-python3}
root=$(dirname "$(dirname "$(realpath "$0")")")
work=$(mktemp -d)
server=''

clean_up() {
    if [ -n "$server" ]; then
        kill "$server" 2>/dev/null || true
        wait "$server" 2>/dev/null || true
        rm -f "/tmp/manhole-$server"
    fi
    rm -rf "$work"
}
trap clean_up EXIT
trap 'exit 130' INT TERM

say() { # in bold on a terminal
    if [ -t 1 ]; then printf '\n\033[1m# %s\033[0m\n' "$*"; else printf '\n# %s\n' "$*"; fi
}
give_up() {
    echo "demo: $*" >&2
    cat "$work"/*.log >&2
    exit 1
}
fetch() {
    "$work/venv/bin/python" -c 'import sys, urllib.request
answer = urllib.request.urlopen(sys.argv[1], timeout=30)
print(answer.status, answer.read().decode().strip())' "$1" || give_up "no answer from $1"
}

say "A throw-away virtual environment, and make install into it"
"$python" -m venv --without-pip "$work/venv"
"$make" --silent --no-print-directory -C "$root" install PYTHON="$work/venv/bin/python" PREFIX= DESTDIR=
find "$work/venv" \( -path '*/manhole/*' -o -name manhole.pth -o -name manhole-cli \) -printf '%P\n'

say "PYTHONMANHOLE='activate_on=\"USR1\"' python -m http.server"
mkdir "$work/site"
echo 'Hello from a server that never heard of manhole.' >"$work/site/index.html"
PYTHONMANHOLE='activate_on="USR1"' "$work/venv/bin/python" -u -m http.server \
    --bind 127.0.0.1 --directory "$work/site" 0 >"$work/server.log" 2>&1 &
server=$!
for ((i = 0; i < 600; i++)); do
    url=$(sed -n 's/^Serving HTTP on .*(\(http:.*\)).*/\1/p' "$work/server.log")
    if [ -n "$url" ] || ! kill -0 "$server" 2>/dev/null; then break; fi
    sleep 0.05
done
[ -n "$url" ] || give_up 'the server did not start'
cat "$work/server.log"
echo "GET $url"
fetch "$url"

say "manhole-cli $server -1"
"$work/venv/bin/manhole-cli" "$server" -1 >"$work/session.log" 2>&1 <<'END' || give_up "manhole-cli: status $?"
import gc, socketserver, threading
[server.server_address for server in gc.get_objects() if isinstance(server, socketserver.BaseServer)]
threading.active_count()
END
cat "$work/session.log"
grep -q 'serve_forever$' "$work/session.log" || give_up 'the stack of the server is missing'
port=${url##*:} port=${port%/}
grep -qF "('127.0.0.1', $port)" "$work/session.log" || give_up 'the answer of the server is missing'

say "And it still serves"
echo "GET $url"
fetch "$url"

say "The server is stopped; is anything left?"
kill "$server"
wait "$server" 2>/dev/null || true
[ ! -e "/tmp/manhole-$server" ] || give_up "/tmp/manhole-$server is left"
server=''
echo "No socket, no process; the virtual environment goes, too."

if [ -t 1 ]; then
    build=$("$make" --silent --no-print-directory -C "$root" where PYTHON="$python")
    say "Try it by hand:"
    echo "    PYTHONPATH=$build $python -c 'import manhole, time; manhole.install(); time.sleep(900)' &"
    echo "    $build/manhole-cli \$!"
fi
