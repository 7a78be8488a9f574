/* Jobs: programs of ours for --log-level, --report and --memory. They go over as the code of -c
 * does, so any manhole that runs code does them, and several processes are asked at once.
 *
 * They are guests in a process of which nothing is known but that somebody is worried about it:
 *
 *   --log-level   changes what it is asked to change. What a logger had before is an attribute of
 *                 that logger, so that whoever comes next can put it back.
 *   --report      reads what is there already: no attribute that would run a property, no file
 *                 of the application's. Of the environment it shows the variables known to be
 *                 harmless, of the others the names: what is a secret only its owner knows.
 *   --memory      has to look at every object that the garbage collector knows. It does so in a
 *                 frozen copy (room memory); where there is none the program stands still for that,
 *                 see list_types().
 *
 * To add one: an option of ACTION_GROUP, its row in find_action() and in own_programs[], a test.
 */
#ifndef MANHOLE_CLI_JOBS_C
#define MANHOLE_CLI_JOBS_C

#include "options.c"

/* argv: LOGGER=LEVEL, or LEVEL of the root logger; or "restore". */
static const char log_level_program[] =
    "import sys\n"
    "logging = sys.modules.get('logging')\n"
    "if logging is None:\n"
    "    sys.exit('manhole-cli: this program has not imported logging')\n"
    "loggers = dict(logging.root.manager.loggerDict, root=logging.root)\n"
    /* The attribute that keeps what a logger had before. */
    "KEPT = 'level_before_manhole_cli'\n"
    "def set_level(logger, level):\n"
    "    before = logger.level\n"
    "    logger.setLevel(level)\n"
    "    print(logger.name, 'had', logging.getLevelName(before) + ', has', "
    "logging.getLevelName(level))\n"
    "def restore():\n"
    "    changed = [logger for logger in loggers.values() if KEPT in vars(logger)]\n"
    "    for logger in changed:\n"
    "        set_level(logger, vars(logger).pop(KEPT))\n"
    "    if not changed:\n"
    "        print('no logger has a level that --log-level gave it')\n"
    "def parse_level(text):\n"
    "    level = logging.getLevelName(text.upper())\n"
    "    if type(level) is not int and not text.isdecimal():\n"
    "        sys.exit(f'manhole-cli: no level is called {text!r}; say DEBUG, INFO, "
    "WARNING, '\n"
    "                 'ERROR, CRITICAL or a number')\n"
    "    return level if type(level) is int else int(text)\n"
    /* A mistyped name would make a logger that nobody uses. */
    "def find_logger(name):\n"
    "    if name not in loggers:\n"
    "        names = ', '.join(sorted(loggers)[:20])\n"
    "        more = ', ...' if len(loggers) > 20 else ''\n"
    "        sys.exit(f'manhole-cli: no logger is called {name!r}; there are "
    "{names}{more}')\n"
    "    return logging.root if name == 'root' else logging.getLogger(name)\n"
    /* What keeps such lines from being seen all the same. */
    "def say_obstacles(logger, level):\n"
    "    if logging.root.manager.disable >= level:\n"
    "        print('  logging.disable() drops them for all loggers')\n"
    "    handlers = []\n"
    "    while logger is not None:\n"
    "        handlers += logger.handlers\n"
    "        logger = logger.parent if logger.propagate else None\n"
    "    for handler in handlers:\n"
    "        if handler.level > level:\n"
    "            print(f'  {handler!r} has a level of its own, below which it drops "
    "them')\n"
    "    if not handlers:\n"
    "        print('  there is no handler: what is below WARNING is dropped')\n"
    "if sys.argv[1] == 'restore':\n"
    "    restore()\n"
    "else:\n"
    "    name, equals, text = sys.argv[1].rpartition('=')\n"
    "    level = parse_level(text)\n"
    "    logger = find_logger(name or 'root')\n"
    "    vars(logger).setdefault(KEPT, logger.level)\n"
    "    set_level(logger, level)\n"
    "    say_obstacles(logger, level)\n";

static const char report_program[] =
    "import gc, os, re, sys, threading, time\n"
    "LONG = 200\n" /* lines of one kind */
    /* One part that cannot be had, as in a process without a descriptor left, costs no other. */
    "def show(title, lines):\n"
    "    print(f'\\n{title}')\n"
    "    kept = []\n"
    "    try:\n"
    "        kept.extend(lines)\n"
    "    except Exception as error:\n"
    "        kept.append(f'the rest cannot be had: {error!r}')\n"
    "    for line in kept[:LONG]:\n"
    "        print(' ', str(line).encode('utf-8', 'backslashreplace').decode())\n"
    "    if len(kept) > LONG:\n"
    "        print(f'  and {len(kept) - LONG} more')\n"
    "def read(name):\n"
    "    try:\n"
    "        with open('/proc/self/' + name, errors='backslashreplace') as file:\n"
    "            return file.read()\n"
    "    except OSError:\n"
    "        return ''\n"
    /* Of arguments with a NUL between two: behind a word that tells of a secret all up to the end
     * of the argument, or the next one; in a URL the password, or who has none. It has to be quick
     * with long arguments, for the whole program waits: no [\w-]* before the word. */
    "def mask(text):\n"
    "    secret = (r'(?i)((?:pass|pwd|secret|token|key|credential|auth)[\\w-]*'\n"
    "              r'[\"\\']?[=: \\0]+)[^\\0]+')\n"
    "    text = re.sub(r'(://(?:[^/@: \\0]*:)?)[^/ \\0]+@', r'\\1***@', text)\n"
    "    return re.sub(secret, r'\\1***', text)\n"
    "def about():\n"
    "    manhole = sys.modules.get('manhole')\n"
    "    command = mask(read('cmdline').rstrip('\\0')).replace('\\0', ' ')\n"
    "    yield f'command    {command}'\n"
    "    yield f'python     {sys.version}'.replace('\\n', ' ')\n"
    "    yield f'           {sys.executable}'\n"
    "    yield f'manhole    {vars(manhole).get(\"__version__\") if manhole else None}'\n"
    /* Not by platform, which starts a process for that. */
    "    system = os.uname()\n"
    "    yield f'system     {system.sysname} {system.release} {system.machine}, '\\\n"
    "          f'{os.cpu_count()} processors'\n"
    "    yield f'user       {os.geteuid()}, in {os.readlink(\"/proc/self/cwd\")}'\n"
    "    for line in read('status').splitlines():\n"
    "        if line.startswith(('VmRSS', 'VmHWM', 'VmSwap', 'Threads')):\n"
    "            name, value = line.split(':')\n"
    "            yield f'{name:<10} {value.strip()}'\n"
    "    yield f'blocks     {sys.getallocatedblocks()} of Python\\'s allocator'\n"
    "def garbage():\n"
    "    yield f'{\"on\" if gc.isenabled() else \"off\"}, counts {gc.get_count()}, '\\\n"
    "          f'thresholds {gc.get_threshold()}, frozen {gc.get_freeze_count()}'\n"
    "    for number, each in enumerate(gc.get_stats()):\n"
    "        yield f'generation {number}: ' + ', '.join(f'{value} {name}' for name, "
    "value in "
    "each.items())\n"
    "    for each in gc.garbage[:20]:\n"
    "        yield f'gc.garbage has a "
    "{type(each).__module__}.{type(each).__qualname__}'\n"
    /* No collection may come while Python makes the frames. Without a GIL they would run on while
     * they are read. */
    "def look_at_frames():\n"
    "    if not getattr(sys, '_is_gil_enabled', lambda: True)():\n"
    "        raise NotImplementedError('without a GIL; see manhole-cli --stacks')\n"
    "    was_collecting = gc.isenabled()\n"
    "    gc.disable()\n"
    "    try:\n"
    "        return sys._current_frames()\n"
    "    finally:\n"
    "        if was_collecting:\n"
    "            gc.enable()\n"
    "def threads():\n"
    "    known = {each.ident: each for each in threading.enumerate()}\n"
    "    for ident, frame in look_at_frames().items():\n"
    "        if ident == threading.get_ident():\n"
    "            continue\n"
    "        thread = known.get(ident)\n"
    "        yield (f'{thread.name}, {thread.native_id}' + ', daemon' * thread.daemon\n"
    "               if thread else f'{ident}, which threading does not know')\n"
    "        while frame is not None:\n"
    "            code = frame.f_code\n"
    "            yield f'    {code.co_filename}:{frame.f_lineno} in {code.co_name}'\n"
    "            frame = frame.f_back\n"
    /* By the number that the link of a descriptor has; the addresses are hexadecimal words of the
     * processor's own order. */
    "def address(text):\n"
    "    words, port = text.split(':')\n"
    "    data = b''.join(int(words[i:i + 8], 16).to_bytes(4, sys.byteorder)\n"
    "                    for i in range(0, len(words), 8))\n"
    "    if len(data) == 4:\n"
    "        host = '.'.join(map(str, data))\n"
    "    else:\n"
    "        host = '[' + ':'.join(data[i:i + 2].hex() for i in range(0, 16, 2)) + ']'\n"
    "    return f'{host}:{int(port, 16)}'\n"
    "def sockets():\n"
    "    for kind in 'tcp', 'tcp6', 'udp', 'udp6':\n"
    "        for line in read('net/' + kind).splitlines()[1:]:\n"
    "            words = line.split()\n"
    "            yield words[9], f'{kind} {address(words[1])} -> {address(words[2])}'\n"
    "    for line in read('net/unix').splitlines()[1:]:\n"
    "        words = line.split(None, 7)\n"
    "        yield words[6], 'unix ' + ''.join(words[7:])\n"
    "def files():\n"
    "    known = dict(sockets())\n"
    "    for fd in sorted(map(int, os.listdir('/proc/self/fd'))):\n"
    "        try:\n"
    "            target = os.readlink(f'/proc/self/fd/{fd}')\n"
    "        except OSError:\n" /* the folder's own, and what was closed meanwhile */
    "            continue\n"
    "        inode = re.fullmatch(r'socket:\\[(\\d+)\\]', target)\n"
    "        yield f'{fd:>4} {inode and known.get(inode[1]) or target}'\n"
    "def limits():\n"
    "    for line in read('limits').splitlines():\n"
    "        if line.startswith(('Max open files', 'Max processes', 'Max address')):\n"
    "            yield line.rstrip()\n"
    /* What is installed, by the names of its folders. */
    "def packages():\n"
    "    for folder in dict.fromkeys(map(str, sys.path)):\n"
    "        if folder.endswith(('site-packages', 'dist-packages')) and "
    "os.path.isdir(folder):\n"
    "            for name in sorted(os.listdir(folder), key=str.lower):\n"
    "                found = "
    "re.fullmatch(r'([\\w.]+)-(.+?)(-py[\\d.]+)?\\.(dist|egg)-info', name)\n"
    "                if found:\n"
    "                    yield f'{found[1]} {found[2]}'\n"
    /* Not all of LD_, LC_ and PYTHON_: LD_SDK_KEY is a secret of somebody's. */
    "HARMLESS = "
    "re.compile('LANG|LC_[A-Z]+|TZ|PATH|HOME|USER|LOGNAME|SHELL|PWD|HOSTNAME|'\n"
    "                      'TERM|VIRTUAL_ENV|LD_(PRELOAD|LIBRARY_PATH|BIND_NOW|AUDIT)|'\n"
    "                      'MALLOC_.*|PYTHON(?!MANHOLE)[A-Z0-9]+|OMP_NUM_THREADS|'\n"
    "                      'PYTHON_(GIL|JIT|TLBC|CPU_COUNT|FROZEN_MODULES)|'\n"
    "                      'KUBERNETES_PORT')\n"
    "def environment():\n"
    "    for name, value in sorted(os.environ.items()):\n"
    "        yield f'{name}={mask(value)}' if HARMLESS.fullmatch(name) else f'{name} is "
    "left out'\n"
    "print(f'Report of process {os.getpid()} on {os.uname().nodename}, '\n"
    "      + time.strftime('%Y-%m-%d %H:%M:%S UTC', time.gmtime()))\n"
    "show('PROCESS', about())\n"
    "show('GARBAGE COLLECTOR', garbage())\n"
    "show('THREADS', threads())\n"
    "show('OPEN FILES', files())\n"
    "show('LIMITS', limits())\n"
    "show('ENVIRONMENT', environment())\n"
    "show('PACKAGES', packages())\n";

/* argv: seconds; "copy" or "process", what it looks at; what the first look has printed. Types are
 * known again by their names: those of modules that each copy has to import are elsewhere in each.
 * Both looks do the same up to their counting, so that nothing grows by it. */
static const char memory_program[] =
    "import collections, gc, itertools, os, sys, time, tracemalloc\n"
    "seconds, place, before = sys.argv[1:]\n"
    "is_copy, is_first = place == 'copy', not before\n"
    /* The process is the copy's parent. */
    "pid = os.getppid() if is_copy else os.getpid()\n"
    "print(f'process {pid}, two looks {seconds} s apart', flush=True)\n"
    "is_collecting, collections_made = gc.isenabled(), [each['collections'] for each in "
    "gc.get_stats()]\n"
    "MOST = 20\n"
    "if is_copy:\n"
    "    gc.disable()\n"
    /* Adds the type of each. All of it is one call of C, in which chain() asks for the list and
     * drops it again: no other thread runs while there is that list, so no object lives longer
     * because of it, nor dies in this thread. Without a copy the program stands still
     * meanwhile, at most 0.1 s for a million objects. */
    "def list_types(types):\n"
    "    lists = itertools.starmap(gc.get_objects, [()])\n"
    "    types.extend(map(type, itertools.chain.from_iterable(lists)))\n"
    /* As type has it: a metaclass may have a property in its place. */
    "QUALNAME, MODULE = (vars(type)[name].__get__ for name in ('__qualname__', "
    "'__module__'))\n"
    "def name_of(kind):\n"
    "    try:\n"
    "        module = MODULE(kind)\n"
    "    except AttributeError:\n"
    "        module = None\n"
    "    is_plain = module == 'builtins' or type(module) is not str\n"
    "    return QUALNAME(kind) if is_plain else f'{module}.{QUALNAME(kind)}'\n"
    "def count():\n"
    "    types = []\n"
    "    begin = time.perf_counter()\n"
    "    list_types(types)\n"
    "    stall = time.perf_counter() - begin\n"
    /* By the number of a type, for one whose metaclass has an __eq__ may have no hash. */
    "    kinds, names = dict(zip(map(id, types), types)), collections.Counter()\n"
    "    for number, count in collections.Counter(map(id, types)).items():\n"
    "        names[name_of(kinds[number])] += count\n"
    "    return stall, dict(names)\n"
    "def measure():\n"
    "    with open(f'/proc/{pid}/status') as file:\n"
    "        pairs = (line.split(':') for line in file if 'kB' in line)\n"
    "        return {name: int(value.split()[0]) for name, value in pairs}, "
    "sys.getallocatedblocks()\n"
    "def trace():\n"
    "    if not tracemalloc.is_tracing():\n"
    "        return None\n"
    "    return tracemalloc.take_snapshot().statistics('lineno')\n"
    "def by_line(statistics):\n"
    "    return {(each.traceback[0].filename, each.traceback[0].lineno): (each.size, "
    "each.count)\n"
    "            for each in statistics}\n"
    "def show_sizes(first, second):\n"
    "    for title, key in ('resident', 'VmRSS'), ('of its own', 'RssAnon'), ('swapped', "
    "'VmSwap'):\n"
    "        now, was = second[0].get(key, 0), first[0].get(key, 0)\n"
    "        print(f'{title:<12}{now / 1024:>12,.1f} MiB {(now - was) / 1024:>+12,.1f} "
    "MiB')\n"
    "    print(f'{\"blocks\":<12}{second[1]:>12,}     {second[1] - first[1]:>+12,}')\n"
    "def show_types(first, second):\n"
    "    grown = collections.Counter(second) - collections.Counter(first)\n"
    "    for name, growth in grown.most_common(MOST):\n"
    "        print(f'{second[name]:>12,} {growth:>+12,}  {name}')\n"
    "    if not grown:\n"
    "        print('no type has more objects than before')\n"
    "def show_trace(first, second):\n"
    "    if first is None or second is None:\n"
    "        print('\\ntracemalloc is off. PYTHONTRACEMALLOC=1 has it on from the start; "
    "from now on: '\n"
    "              \"-c 'import tracemalloc; tracemalloc.start()'\")\n"
    "        return\n"
    "    print('\\ntracemalloc: where most was allocated in between')\n"
    "    grown = []\n"
    "    for each, key in zip(second, by_line(second)):\n"
    "        size, count = first.get(key, (0, 0))\n"
    "        grown.append(tracemalloc.StatisticDiff(each.traceback, each.size, each.size "
    "- size,\n"
    "                                               each.count, each.count - count))\n"
    "    grown.sort(key=lambda each: -each.size_diff)\n"
    "    for each in grown[:10]:\n"
    "        if each.size_diff > 0:\n"
    "            print(' ', each)\n"
    /* What grows is measured from behind the first look to before the second, for a look takes
     * memory itself. */
    "sizes = measure()\n"
    "traced = trace()\n"
    "stall, types = count()\n"
    "if is_first:\n"
    "    print(ascii((measure(), collections_made, stall, types, traced and "
    "by_line(traced))))\n"
    /* In the process itself it would stay until the next collection, and the second count it. */
    "    del traced\n"
    "else:\n"
    "    first = eval(before.partition('\\n')[2])\n"
    "    show_sizes(first[0], sizes)\n"
    "    made = ' '.join(str(b - a) for a, b in zip(first[1], collections_made))\n"
    "    print(f'{\"collections\":<12}{made:>12} by generation; '\n"
    "          f'gc is {\"on\" if is_collecting else \"off\"}, garbage "
    "{len(gc.garbage)}')\n"
    "    print(f'\\n{sum(types.values()):,} objects, ' + (\n"
    "          'counted in a frozen copy' if is_copy else\n"
    "          f'for which it stood still {first[2] * 1e3:.0f} and {stall * 1e3:.0f} "
    "ms'))\n"
    "    show_types(first[3], types)\n"
    "    show_trace(first[4], traced)\n";

static const struct own_program {
    enum option_name option;
    const char *text;
} own_programs[] = {
    /* What each prints first, it prints at once: see run_code(). */
    {OPTION_LOG_LEVEL, log_level_program},
    {OPTION_REPORT, report_program},
    {OPTION_MEMORY, memory_program},
    {OPTION_DETACH, "__import__('manhole')._release()"},
};

/* The one that is asked for, or NULL: the code is the user's own. */
static const struct own_program *
find_own_program(const struct request *request)
{
    for (size_t i = 0; i < sizeof(own_programs) / sizeof(own_programs[0]); i++) {
        if (is_given(request, own_programs[i].option)) {
            return &own_programs[i];
        }
    }
    return NULL;
}

#endif /* MANHOLE_CLI_JOBS_C */
