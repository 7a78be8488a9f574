# make help lists what can be made.
#
# What a user may set, on the command line or in the environment:
PYTHON ?= python3
CFLAGS ?= -O2 -g
LDFLAGS ?=
# install: under this prefix; empty: where PYTHON itself keeps its packages and programs.
PREFIX ?=
DESTDIR ?=
# Not empty: warnings are errors.
WERROR ?=
# How long make soak takes.
SOAK_SECONDS ?= 600
# make dumps: so many of each kind.
DUMPS ?= 2000
# Run the tests that match a pattern: make test TEST='*fork*'
TEST ?=
# make faults: so many of all faults, the same ones each time; empty: all.
FAULTS ?=
# How many test programs run at once, and compilers before them.
JOBS ?= $(shell nproc)
# e.g. address,undefined; see make asan.
SANITIZE ?=
# For each target of make fuzz; and where its inputs begin, 0 for elsewhere each time.
FUZZ_SECONDS ?= 10
FUZZ_SEED ?= 1
# The Python that has the distribution's gunicorn, Flask, gevent, ...; empty: skip such tests.
DEBIAN_PYTHON ?= $(wildcard /usr/bin/python3)
# What links manhole-cli with libedit; empty: it goes without line editing, which is said where that
# was not asked for.
LIBEDIT ?= $(shell echo '#include <histedit.h>' | $(CC) -E - >/dev/null 2>&1 && echo -ledit)
# Not empty: neither look for missing Debian packages nor install them.
NO_SETUP ?=
# bench: the rows to measure (all), the folder of python-manhole's package (where PYTHON has it), and
# options of test/bench/bench.py, e.g. --strict.
BENCH ?=
PEER ?=
BENCH_OPTIONS ?=
# doctest: these pages only, e.g. docs/recipes.rst; the README comes before any other.
PAGES ?=
# Not empty: leave out test/system_*.c.
NO_SYSTEM_TESTS ?=
BUILD_ROOT ?= build

# ---- What that Python says of itself: words, in this order -------------------------------

# Each line is a statement of its own, for they are joined to one.
define ASK_PYTHON
import os, platform, sys, sysconfig
get = sysconfig.get_config_var
usr = "-usr" if sys.base_prefix == "/usr" else ""
words = [platform.python_version() + sys.abiflags + usr, get("EXT_SUFFIX")]
words += [sysconfig.get_path("include"), os.path.realpath(sys.executable)]
words += [sys.base_prefix + ":" + sys.base_exec_prefix]
words += [sysconfig.get_path("purelib", "posix_user", {"userbase": "."})]
words += ["manhole.pth" if sys.version_info < (3, 18) else "manhole.start"]
shared = ["-L" + get("LIBDIR"), "-Wl,-rpath," + get("LIBDIR"), "-l" + get("LDLIBRARY")[3:-3]]
static = [os.path.join(get("LIBPL"), get("LIBRARY")), get("LINKFORSHARED")]
words += shared if get("Py_ENABLE_SHARED") else static
print(*words, get("LIBS"), get("SYSLIBS"))
endef
define NEWLINE


endef
ask = $(shell $(1) -c '$(subst $(NEWLINE),;,$(ASK_PYTHON))' 2>/dev/null)

FACTS := $(call ask,$(PYTHON))
TAG := $(word 1,$(FACTS))
EXT_SUFFIX := $(word 2,$(FACTS))
PYTHON_INCLUDE := $(word 3,$(FACTS))
PYTHON_PROGRAM := $(word 4,$(FACTS))
PYTHON_HOME := $(word 5,$(FACTS))
USER_SITE := $(word 6,$(FACTS))
STARTUP := $(word 7,$(FACTS))
LIBPYTHON := $(wordlist 8,99,$(FACTS))

DEBIAN_TAG := $(if $(DEBIAN_PYTHON),$(word 1,$(call ask,$(DEBIAN_PYTHON))))

# ---- Flags: ours apart from the user's ----------------------------------------------------

WARNINGS := -Wall -Wextra -Wconversion -Wshadow -Wstrict-prototypes -Wmissing-prototypes \
    -Wundef -Wformat=2 -Wvla -Wcast-qual -Wpointer-arith -Wnull-dereference

OUR_CFLAGS := -std=c11 -pthread $(WARNINGS) $(if $(WERROR),-Werror)
OUR_LDFLAGS := -pthread
ifneq ($(SANITIZE),)
FLAVOUR := $(if $(findstring thread,$(SANITIZE)),tsan,asan)
OUR_CFLAGS += -fsanitize=$(SANITIZE) -fno-sanitize-recover=all -fno-omit-frame-pointer
OUR_LDFLAGS += -fsanitize=$(SANITIZE)
MODULE_CFLAGS = $(if $(findstring thread,$(SANITIZE)),-include test/tsan.h)
# With the C++ runtime, for asan asks at its start who throws exceptions: greenlet will.
PRELOAD := $(shell $(CC) -print-file-name=lib$(FLAVOUR).so):$(shell \
    $(CC) -print-file-name=libstdc++.so.6)
endif
# Its counters lie in a file that all processes map, so that those of one that is killed, and of a
# frozen copy, count as well.
ifneq ($(COVERAGE),)
FLAVOUR := coverage
CC := clang
COUNTERS := -fprofile-instr-generate -fcoverage-mapping -mllvm -runtime-counter-relocation
OUR_CFLAGS += $(COUNTERS)
OUR_LDFLAGS += -fprofile-instr-generate
endif
# gcc would follow the links in Debian's headers of python3-dbg, to another pyconfig.h.
CANONICAL := $(if $(findstring clang,$(CC)),,-fno-canonical-system-headers)
MODULE_CFLAGS += -fPIC -fvisibility=hidden $(CANONICAL) -isystem $(PYTHON_INCLUDE)
CLI_CFLAGS = -DMANHOLE_VERSION='$(VERSION)' $(if $(LIBEDIT),-DHAVE_LIBEDIT)
VERSION := $(shell sed -n 's/^.define MANHOLE_VERSION //p' manhole.h)
# cmocka 2 deprecates what 1.1 has nothing else for.
TEST_CFLAGS := -D_GNU_SOURCE -I. -Wno-deprecated-declarations
DEPENDENCIES = -MMD -MP -MF $@.d -MT $@

# ---- What is built, in a folder for each Python -------------------------------------------

# Those of a sanitizer lie apart: a process that --attach gives such a module would be ended by it.
BUILD := $(BUILD_ROOT)/$(addsuffix /,$(FLAVOUR))$(or $(TAG),none)
MODULE := $(BUILD)/manhole$(EXT_SUFFIX)
INSTALLED_STARTUP := $(BUILD)/user/$(USER_SITE)/$(STARTUP)
UNIT_TESTS := $(patsubst test/%.c,$(BUILD)/%,$(sort $(wildcard test/unit_*.c)))
MANY_DUMPS := $(BUILD)/many_dumps
E2E_TESTS := $(patsubst test/%.c,$(BUILD)/%,$(sort $(wildcard test/e2e_*.c)))
# Tests of what the distribution has for its own Python: the same whatever PYTHON is.
SYSTEM_TESTS := $(patsubst test/%.c,$(BUILD)/%,$(sort $(wildcard test/system_*.c)))
FUZZERS := $(patsubst test/fuzz/%.c,$(BUILD)/fuzz_%,$(sort $(wildcard test/fuzz/*.c)))
EXAMPLE := $(patsubst test/%.c,$(BUILD)/%,$(wildcard test/embed_example.c))
# In the order in which they are begun: those that take long first.
TESTS := $(SYSTEM_TESTS) $(E2E_TESTS) $(UNIT_TESTS)

.DEFAULT_GOAL := all
.DELETE_ON_ERROR:
.PHONY: all check-python test-programs importable debian-module run-tests run-unit-tests setup \
    test test-all test-newest compile-arm64 compile-musl test-arm64 test-musl asan tsan coverage \
    measured valgrind faults fuzz run-fuzzers mutants soak dumps bench where home single demo install \
    uninstall wheel deb lint format clean help force

all: check-python $(MODULE) $(BUILD)/manhole-cli ## the module for PYTHON, and manhole-cli

check-python:
	@test -n "$(TAG)" || { echo "$(PYTHON) does not run; say PYTHON=..." >&2; exit 1; }
	@test -e "$(PYTHON_INCLUDE)/Python.h" || { \
	    echo "$(PYTHON) has no Python.h; on Debian: apt-get install python3-dev" >&2; exit 1; }
	@command -v $(firstword $(CC)) >/dev/null || { \
	    echo "$(CC) is missing; on Debian: apt-get install gcc" >&2; exit 1; }

$(MODULE): $(BUILD)/manhole.o
	$(CC) -shared $(OUR_LDFLAGS) $(LDFLAGS) -o $@ $^ -lm

$(BUILD)/manhole.o: manhole.c $(BUILD)/config.h
	$(CC) $(OUR_CFLAGS) $(MODULE_CFLAGS) $(CPPFLAGS) $(CFLAGS) $(DEPENDENCIES) -c -o $@ $<

$(BUILD)/manhole-cli: manhole_cli.c $(BUILD)/config.h
	$(CC) $(OUR_CFLAGS) $(CLI_CFLAGS) $(CPPFLAGS) $(CFLAGS) $(DEPENDENCIES) \
	    $(OUR_LDFLAGS) $(LDFLAGS) -o $@ $< $(LIBEDIT)
	@$(if $(LIBEDIT)$(filter-out file,$(origin LIBEDIT)),:,echo "$$NO_LIBEDIT" >&2)

define NO_LIBEDIT
libedit (histedit.h) is missing, so this manhole-cli has at its prompt no line editing, no history to
recall, no completion, and no colours. On Debian: apt-get install libedit-dev; then make again.
endef
export NO_LIBEDIT

# ---- Tests: a program for each test/*.c that the wildcards find ----------------------------

# With -O0, for to optimize them takes four times as long as they save. The module and manhole-cli
# that they start are as CFLAGS say.

$(UNIT_TESTS) $(MANY_DUMPS): $(BUILD)/%: test/%.c $(BUILD)/config.h
	$(CC) $(OUR_CFLAGS) $(TEST_CFLAGS) -isystem $(PYTHON_INCLUDE) $(CPPFLAGS) $(CFLAGS) -O0 \
	    $(DEPENDENCIES) $(OUR_LDFLAGS) $(LDFLAGS) -o $@ $< $(LIBPYTHON) -lcmocka

$(E2E_TESTS) $(SYSTEM_TESTS): $(BUILD)/%: test/%.c $(BUILD)/support.o
	$(CC) $(OUR_CFLAGS) $(TEST_CFLAGS) $(CPPFLAGS) $(CFLAGS) -O0 $(DEPENDENCIES) \
	    $(OUR_LDFLAGS) $(LDFLAGS) -o $@ $< $(BUILD)/support.o -lcmocka

$(EXAMPLE): $(BUILD)/%: test/%.c $(BUILD)/manhole.o
	$(CC) $(OUR_CFLAGS) $(TEST_CFLAGS) -isystem $(PYTHON_INCLUDE) $(CPPFLAGS) $(CFLAGS) \
	    $(DEPENDENCIES) $(OUR_LDFLAGS) $(LDFLAGS) -o $@ $< $(BUILD)/manhole.o $(LIBPYTHON)

FUZZ_FLAGS := -fsanitize=fuzzer,address,undefined -fno-sanitize-recover=all \
    -fno-omit-frame-pointer

$(FUZZERS): $(BUILD)/fuzz_%: test/fuzz/%.c $(BUILD)/config.h
	$(CC) $(OUR_CFLAGS) $(FUZZ_FLAGS) $(TEST_CFLAGS) $(CLI_CFLAGS) -isystem $(PYTHON_INCLUDE) \
	    $(CPPFLAGS) $(CFLAGS) $(DEPENDENCIES) $(OUR_LDFLAGS) $(LDFLAGS) -o $@ $< \
	    $(LIBPYTHON) $(LIBEDIT)

$(BUILD)/support.o: test/support.c $(BUILD)/config.h
	$(CC) $(OUR_CFLAGS) $(TEST_CFLAGS) -I$(BUILD) $(CPPFLAGS) $(CFLAGS) $(DEPENDENCIES) \
	    -c -o $@ $<

# Where a Python with PYTHONUSERBASE=$(BUILD)/user finds it at its start.
$(INSTALLED_STARTUP): $(STARTUP)
	@mkdir -p $(@D)
	cp $< $@

# What the fixtures know of this build, and the flags, so that a change of them builds anew.
define CONFIG
/* $(CC) $(OUR_CFLAGS) $(MODULE_CFLAGS) $(CPPFLAGS) $(CFLAGS) $(LDFLAGS) $(LIBEDIT) */
#define TEST_SOURCES "$(CURDIR)"
#define TEST_PYTHON "$(PYTHON_PROGRAM)"
#define TEST_PYTHON_HOME "$(PYTHON_HOME)"
#define TEST_INCLUDE "$(PYTHON_INCLUDE)"
#define TEST_LIBPYTHON "$(LIBPYTHON)"
#define TEST_DEBIAN_PYTHON "$(DEBIAN_PYTHON)"
#define TEST_DEBIAN_TAG "$(DEBIAN_TAG)"
#define TEST_PRELOAD "$(PRELOAD)"
endef
export CONFIG

$(BUILD)/config.h: force
	@mkdir -p $(@D)
	@echo "$$CONFIG" | cmp -s - $@ || echo "$$CONFIG" >$@

-include $(wildcard $(BUILD)/*.d $(BUILD)/bench/*.d)

test-programs: all $(INSTALLED_STARTUP) $(TESTS) $(EXAMPLE)

# The module and its start-up file, for tests that use another Python than PYTHON.
importable: all $(INSTALLED_STARTUP)

setup: ## install what the build and the tests need (Debian packages)
	@test/setup.sh test

# Set-up first, on its own, for it may bring the Python that this Makefile asks.
SET_UP = @$(if $(NO_SETUP),:,PYTHON='$(PYTHON)' test/setup.sh)

# Of what comes next, for those who did not say so themselves.
IN_PARALLEL = $(if $(filter -j%,$(MAKEFLAGS)),,-j$(JOBS))

test: ## build all, run all tests, or those that match TEST
	$(SET_UP) test
	@$(MAKE) --no-print-directory $(IN_PARALLEL) run-tests

run-tests: test-programs $(if $(filter-out $(TAG),$(DEBIAN_TAG)),debian-module)
	@PYTHON_HOME='$(PYTHON_HOME)' TEST='$(TEST)' JOBS='$(JOBS)' \
	    test/run.sh $(if $(NO_SYSTEM_TESTS),$(filter-out $(SYSTEM_TESTS),$(TESTS)),$(TESTS))

debian-module:
	@$(MAKE) --no-print-directory PYTHON='$(DEBIAN_PYTHON)' importable

test-all: ## run the tests with every CPython from 3.9 that this machine has
	$(SET_UP) test
	@MAKE='$(MAKE)' test/test_all.sh

test-newest: ## make test-all in a throw-away Debian sid, with its CPython 3.14 and 3.15
	$(SET_UP) newest
	@BUILD_ROOT='$(BUILD_ROOT)' CFLAGS='$(CFLAGS)' WERROR='$(WERROR)' TEST='$(TEST)' \
	    JOBS='$(JOBS)' test/newest.sh

FOREIGN = BUILD_ROOT='$(BUILD_ROOT)' CFLAGS='$(OUR_CFLAGS) $(CFLAGS)' VERSION='$(VERSION)' \
    PYTHON_INCLUDE='$(PYTHON_INCLUDE)' test/foreign.sh

compile-arm64: ## only compile for arm64
	$(SET_UP) compile-arm64
	@$(FOREIGN) arm64 compile

compile-musl: check-python ## only compile with musl
	$(SET_UP) compile-musl
	@$(FOREIGN) musl compile

test-arm64: ## a few tests of it all on arm64, under qemu-user
	$(SET_UP) arm64
	@$(FOREIGN) arm64 test

test-musl: ## a few tests of it all with musl, and a CPython built for that
	$(SET_UP) musl
	@$(FOREIGN) musl test

asan: ## run the tests with the address and undefined-behaviour sanitizers
	@$(MAKE) --no-print-directory test SANITIZE=address,undefined CFLAGS='-O1 -g'

# With a GIL any Python will do, for the sanitizer sees the mutex behind it; one without has to be
# configured --with-thread-sanitizer. Of the other tests many run with it as well: make test
# SANITIZE=thread NO_SYSTEM_TESTS=yes TEST=..., with the delay of signals that test/tsan.h tells of.
# Not those that count threads, for it has one of its own, nor children of processes with threads.
tsan: ## run the unit tests with the thread sanitizer
	$(SET_UP) test
	@$(MAKE) --no-print-directory $(IN_PARALLEL) run-unit-tests SANITIZE=thread CFLAGS='-O1 -g'

run-unit-tests: $(UNIT_TESTS)
	@PYTHON_HOME='$(PYTHON_HOME)' TEST='$(TEST)' JOBS='$(JOBS)' test/run.sh $(UNIT_TESTS)

# The system's tests use the module of Debian's Python, which is another file with counters.
coverage: ## run the tests, and FAULTS=900 faults; tell what lines and branches of both C files they reach
	$(SET_UP) coverage
	@$(MAKE) --no-print-directory measured NO_SETUP=yes COVERAGE=yes CFLAGS='-O1 -g'

# Absolute, for processes have working directories of their own; and for everybody, for some are
# another user's. With FAULTS, lines that are reached when so many calls fail count as well; not
# branches, for test/faults makes one of each call.
PROFILES = $(abspath $(BUILD))/profiles
measured: export LLVM_PROFILE_FILE = $(PROFILES)/%m%c.profraw
measured:
	rm -rf $(PROFILES)
	mkdir -p -m 777 $(PROFILES)
	-umask 0; $(MAKE) --no-print-directory test
	$(if $(FAULTS),-$(MAKE) --no-print-directory faults)
	llvm-profdata merge -o $(PROFILES)/all $(PROFILES)/*.profraw
	llvm-cov report --show-branch-summary=$(if $(FAULTS),false,true) --show-region-summary=false \
	    -instr-profile=$(PROFILES)/all $(MODULE) \
	    $(addprefix -object=,$(BUILD)/manhole-cli $(UNIT_TESTS) $(if $(FAULTS),$(FAULTY))) src

valgrind: ## run the tests with manhole's processes under valgrind (slow), or VALGRIND_TOOL=helgrind
	$(SET_UP) valgrind
	@VALGRIND=yes $(MAKE) --no-print-directory test

mutants: ## plant bugs, one at a time, and see that a test catches each
	$(SET_UP) test
	@TEST='$(TEST)' $(PYTHON) test/mutants.py

home: # of the Python that unit tests embed
	@echo $(PYTHON_HOME)

soak: ## a gunicorn application under load beside clients of all kinds, SOAK_SECONDS long
	$(SET_UP) test
	@$(MAKE) --no-print-directory $(IN_PARALLEL) PYTHON='$(DEBIAN_PYTHON)' importable
	@$(DEBIAN_PYTHON) test/soak.py --seconds $(SOAK_SECONDS) $(DEBIAN_PYTHON) \
	    $(BUILD_ROOT)/$(DEBIAN_TAG) $(BUILD_ROOT)/$(DEBIAN_TAG)/manhole-cli

dumps: check-python $(MANY_DUMPS) ## look DUMPS times at a process where all is in motion; count copies that died
	@PYTHONHOME='$(PYTHON_HOME)' $(MANY_DUMPS) $(DUMPS)

fuzz: ## try inputs on all that parses bytes from outside, FUZZ_SECONDS for each target
	$(SET_UP) fuzz
	@$(MAKE) --no-print-directory run-fuzzers CC=clang CFLAGS='-O1 -g' \
	    BUILD_ROOT='$(BUILD_ROOT)/fuzz'

run-fuzzers: $(FUZZERS)
	@PYTHON_HOME='$(PYTHON_HOME)' TEST='$(TEST)' FUZZ_SECONDS='$(FUZZ_SECONDS)' \
	    FUZZ_SEED='$(FUZZ_SEED)' test/fuzz/run.sh $(FUZZERS)

bench: all $(BUILD)/bench/native$(EXT_SUFFIX) ## measure it, beside python-manhole (PEER=folder, BENCH=row)
	$(SET_UP) bench
	@$(PYTHON) test/bench/bench.py --build '$(BUILD)' $(PEER:%=--peer '%') $(BENCH_OPTIONS) $(BENCH)

bench-tools: all ## measure manhole-cli beside CPython's own tools (PYTHON 3.14 or newer; as root)
	@$(PYTHON) test/bench/tools.py '$(BUILD)'

$(BUILD)/bench/native$(EXT_SUFFIX): test/bench/native.c $(BUILD)/config.h
	@mkdir -p $(@D)
	$(CC) -shared $(OUR_CFLAGS) $(MODULE_CFLAGS) $(CPPFLAGS) $(CFLAGS) $(DEPENDENCIES) \
	    $(OUR_LDFLAGS) $(LDFLAGS) -o $@ $<

where: # the folder of this build
	@echo $(abspath $(BUILD))

demo: ## see it at work on Python's own http.server
	$(SET_UP) build
	@MAKE='$(MAKE)' PYTHON='$(PYTHON)' test/demo.sh

.PHONY: docs doctest
docs: ## the documents as HTML, into build/docs
	$(SET_UP) docs
	@set -e; for page in *.rst docs/*.rst; do rst2html --halt=warning $$page >/dev/null; done # as a forge does
	@sphinx-build -W --keep-going -q -c docs -d $(BUILD_ROOT)/doctrees . $(BUILD_ROOT)/docs
	@ln -sf README.html $(BUILD_ROOT)/docs/index.html
	@echo $(abspath $(BUILD_ROOT))/docs/index.html

doctest: check-python ## type what the documents show, and compare what comes
	$(SET_UP) doctest
	@$(PYTHON) test/transcripts.py $(CURDIR) $(PAGES)

# ---- Faults: the same two sources, with each call that can fail made a site of test/faults ---

FAULTS_BUILD := $(BUILD)/faults
FAULTS_CFLAGS := -std=c11 -pthread -fPIC -include test/faults/faults.h $(COUNTERS) $(CPPFLAGS) \
    $(CFLAGS)
# All of src, for of two sources in one command the compiler tells what the last one includes.
FAULTS_NEEDS := test/faults/faults.c test/faults/faults.h $(BUILD)/config.h $(sort $(shell find src -name '*.[ch]'))
FAULTY := $(FAULTS_BUILD)/manhole$(EXT_SUFFIX) $(FAULTS_BUILD)/manhole-cli

$(FAULTS_BUILD)/manhole$(EXT_SUFFIX): manhole.c $(FAULTS_NEEDS)
	@mkdir -p $(@D)
	$(CC) $(FAULTS_CFLAGS) -DFAULTS_PYTHON $(CANONICAL) -isystem $(PYTHON_INCLUDE) \
	    -shared $(LDFLAGS) -o $@ manhole.c test/faults/faults.c -lm

$(FAULTS_BUILD)/manhole-cli: manhole_cli.c $(FAULTS_NEEDS)
	@mkdir -p $(@D)
	$(CC) $(FAULTS_CFLAGS) $(CLI_CFLAGS) \
	    $(LDFLAGS) -o $@ manhole_cli.c test/faults/faults.c $(LIBEDIT)

faults: check-python $(FAULTY) ## run with each call failed, one at a time (30 minutes), or FAULTS=900 of them
	@$(PYTHON) test/faults/run.py $(FAULTS_BUILD) --log $(FAULTS_BUILD)/faults.log \
	    $(if $(FAULTS),--most $(FAULTS))

# ---- Installing ---------------------------------------------------------------------------

# Where packages and programs go: PYTHON's own places, or those under the prefix sys.argv[1].
define ASK_DIRECTORIES
import os, site, sys, sysconfig as s
prefix = sys.argv[1] and os.path.abspath(sys.argv[1])
known = site.getsitepackages() + [site.getusersitepackages()]
under = [path for path in known if path.startswith(prefix + "/lib")]
under += [s.get_path("platlib", "posix_prefix", {"base": prefix, "platbase": prefix})]
own = [s.get_path("platlib"), s.get_path("scripts"), s.get_path("data") + "/share"]
print(([under[0], prefix + "/bin", prefix + "/share"] if prefix else own)[int(sys.argv[2])])
endef
directory = $(shell $(PYTHON) -c '$(subst $(NEWLINE),;,$(ASK_DIRECTORIES))' '$(PREFIX)' $(1))
PACKAGES = $(DESTDIR)$(call directory,0)
PROGRAMS = $(DESTDIR)$(call directory,1)
SHARE = $(DESTDIR)$(call directory,2)
MANUAL = $(SHARE)/man/man1/manhole-cli.1
BASH_COMPLETION = $(SHARE)/bash-completion/completions/manhole-cli
ZSH_COMPLETION = $(SHARE)/zsh/site-functions/_manhole-cli

# A package, and the extension module is its __init__: so there is room for what python -m runs, and
# for what type checkers read. (They look for that in a package only, and python -m asks an extension
# module for code, of which it has none.) The first file is what make install left before 1.1.
FORMER = '$(PACKAGES)/$(notdir $(MODULE))'
STARTUPS = '$(PACKAGES)/manhole.pth' '$(PACKAGES)/manhole.start'
PACKAGE = $(PACKAGES)/manhole
PACKAGED = '$(PACKAGE)/__init__$(EXT_SUFFIX)' '$(PACKAGE)/__init__.pyi' '$(PACKAGE)/__main__.py' \
    '$(PACKAGE)/py.typed'

install: all ## into PYTHON's (a virtual environment's) site-packages and bin, or PREFIX
	@$(PYTHON) build_wheel.py '$(PACKAGES)' $(if $(DESTDIR),--alone)
	install -d '$(PACKAGE)' '$(PROGRAMS)'
	rm -f $(FORMER) $(STARTUPS)
	install -m 755 $(MODULE) '$(PACKAGE)/__init__$(EXT_SUFFIX)'
	install -m 644 manhole.pyi '$(PACKAGE)/__init__.pyi'
	install -m 644 manhole_main.py '$(PACKAGE)/__main__.py'
	install -m 644 /dev/null '$(PACKAGE)/py.typed'
	install -m 644 $(STARTUP) '$(PACKAGES)'
	install -m 755 $(BUILD)/manhole-cli '$(PROGRAMS)'
	install -D -m 644 manhole-cli.1 '$(MANUAL)'
	install -D -m 644 completion/manhole-cli.bash '$(BASH_COMPLETION)'
	install -D -m 644 completion/_manhole-cli '$(ZSH_COMPLETION)'
	@$(if $(DESTDIR)$(filter /usr/share /usr/local/share,$(SHARE)),:, \
	    echo "bash does not look there for completion: . '$(BASH_COMPLETION)'")

uninstall: check-python ## undo install; with the same PYTHON, PREFIX and DESTDIR
	rm -f $(FORMER) $(STARTUPS) $(PACKAGED) '$(PROGRAMS)/manhole-cli' '$(MANUAL)' \
	    '$(BASH_COMPLETION)' '$(ZSH_COMPLETION)'
	rm -rf '$(PACKAGE)/__pycache__'
	rmdir --ignore-fail-on-non-empty '$(PACKAGE)' 2>/dev/null || :

wheel: check-python ## a wheel for PYTHON, into build/
	$(SET_UP) wheel
	@$(PYTHON) -c 'import build_wheel as b; print("$(BUILD_ROOT)/" + b.make_wheel("$(BUILD_ROOT)"))'

deb: ## a Debian package for DEBIAN_PYTHON, into build/
	$(SET_UP) deb
	@MAKE='$(MAKE)' BUILD_ROOT='$(BUILD_ROOT)' CFLAGS='$(CFLAGS)' PYTHON='$(DEBIAN_PYTHON)' ./build_deb.sh

# ---- The one file to drop in --------------------------------------------------------------

SINGLE := $(BUILD_ROOT)/single
ROOMS := $(wildcard src/*.c src/*/*.c src/*/*/*.c)
ROOM_HEADERS := $(wildcard src/*/*.h)

single: $(SINGLE)/manhole.c $(SINGLE)/manhole_cli.c ## build/single/: manhole.c and manhole_cli.c, each in one file

$(SINGLE)/%.c: %.c $(ROOMS) $(ROOM_HEADERS) src/single.awk manhole.h
	@mkdir -p $(@D)
	cp manhole.h $(@D)
	awk -f src/single.awk $< >$@

# ---- Care of the sources ------------------------------------------------------------------

SOURCES := $(wildcard manhole.c manhole_cli.c test/*.c test/bench/*.c test/faults/*.c test/fuzz/*.c)
HEADERS := $(wildcard manhole.h test/*.h test/faults/*.h test/fuzz/*.h) $(ROOMS) $(ROOM_HEADERS)
SCRIPTS := $(wildcard build_deb.sh test/*.sh test/fuzz/*.sh .ci/run completion/*.bash)
LINT_FLAGS := -std=c11 $(TEST_CFLAGS) $(if $(LIBEDIT),-DHAVE_LIBEDIT) -I$(BUILD) -isystem $(PYTHON_INCLUDE)

lint: check-python $(BUILD)/config.h ## compilers, clang-tidy, cppcheck, layout, scripts: no complaint
	$(SET_UP) lint
	@$(MAKE) --no-print-directory --keep-going --output-sync $(IN_PARALLEL) lint-all

LINTED := $(SOURCES:%=lint/%)
LINTED_ROOMS := $(ROOMS:%=lint/%)
.PHONY: lint-all lint-layout lint-scripts lint-order $(LINTED) $(LINTED_ROOMS)
lint-all: lint-layout lint-scripts lint-order $(LINTED) $(LINTED_ROOMS)

lint-layout:
	clang-format --dry-run --Werror $(SOURCES) $(HEADERS)
	! grep -nE '^.{101,}' $(SOURCES) $(HEADERS)

lint-scripts:
	shellcheck $(SCRIPTS)

# No room includes one that comes later, so there is no circle either.
lint-order:
	awk -f test/room_order.awk manhole.c manhole_cli.c $(ROOMS)

# Each room compiles alone, from what it includes. What is there for later rooms is unused.
$(LINTED_ROOMS): lint/%: %
	@gcc $(LINT_FLAGS) $(WARNINGS) -Wno-unused -Werror -fsyntax-only $<

# Unit tests and fuzzers include manhole.c, which is analyzed once, with its rooms.
IS_UNIT = $(findstring /unit_,$<)$(findstring /fuzz/,$<)$(findstring /many_dumps,$<)
ANALYZER = $(if $(IS_UNIT),--checks='-clang-analyzer-*' --header-filter='/(unit|fuzz)\.h$$')
CPPCHECK = $(if $(IS_UNIT),:,cppcheck)

$(LINTED): lint/%: %
	@echo 'gcc, clang, clang-tidy, cppcheck $<'
	@gcc $(LINT_FLAGS) -O2 $(WARNINGS) -Werror -c -o /dev/null $<
	@clang $(LINT_FLAGS) $(WARNINGS) -Wthread-safety -Wno-string-concatenation -Werror \
	    -fsyntax-only $<
	@clang-tidy --quiet $(ANALYZER) $< -- $(LINT_FLAGS)
	@$(CPPCHECK) --quiet --error-exitcode=1 --std=c11 --inline-suppr \
	    --enable=warning,performance,portability --suppress=missingInclude \
	    --suppress=missingReturn $< # it does not know Py_RETURN_NONE; gcc does

format: ## lay out the sources by .clang-format
	clang-format -i $(SOURCES) $(HEADERS)

clean: ## remove all that was built
	rm -rf $(BUILD_ROOT) __pycache__

help: ## this list
	@echo "make [PYTHON=python3] [CFLAGS=...] [PREFIX=...] [DESTDIR=...] [WERROR=1] [TEST='*...*'] TARGET"
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/\1\t\2/p' Makefile | expand -t 12
