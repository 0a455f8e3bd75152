# Loom. `make help` lists the targets.
SHELL   := /bin/bash
VERSION := $(shell sed -n 's/^.define LOOM_VERSION "\(.*\)"/\1/p' include/loom/loom.h)
ifeq ($(origin CC),default)
CC := gcc
endif
O       ?= $(if $(filter gcc,$(CC)),build,build-$(notdir $(CC)))
PROFILE ?= dev
ifeq ($(MAKELEVEL),0)
MAKEFLAGS += -j$(shell nproc) --no-print-directory
endif
.DELETE_ON_ERROR:
.SUFFIXES:

# One short line per step; V=1 shows the commands.
say = $(if $(V),,@printf '  %-6s %s\n' $1 $@;)

# What is built. Guests: a folder of builtin/ is one module, but each file of builtin/activities is one.
DIRS    ?= *
SRC     := $(wildcard $(DIRS:%=src/%/*.c))
CLI     := $(filter src/cli/%,$(SRC))
LIB     := $(filter-out src/cli/%,$(SRC))
TESTS   := $(wildcard test/test_$(or $(T),*).c)
SCRIPTS := $(wildcard test/$(or $(T),*).sh)
BENCHES := $(wildcard bench/*.c)
GUESTS  := $(sort $(patsubst builtin/activities/%.c,%,$(wildcard builtin/activities/*.c)) \
             $(filter-out activities,$(patsubst builtin/%/,%,$(dir $(wildcard builtin/*/*.c)))))
WASM    := $(GUESTS:%=$(O)/guest/%.wasm)

# The dependencies live in a cache outside the checkout: see scripts/deps.
DEPS    := $(shell scripts/deps --path $(PROFILE))
DEPSLIB := $(DEPS)/lib/libloomdeps.a

WARN    := -Wall -Wextra -Wshadow -Wundef -Wwrite-strings -Wmissing-prototypes -Wstrict-prototypes -Wconversion \
           $(if $(filter-out 0 false,$(CI) $(WERROR)),-Werror)
INCLUDE := -Isrc -Iinclude -isystem $(DEPS)/include
CFLAGS  := -std=c11 -D_GNU_SOURCE -O2 -g -fno-omit-frame-pointer \
           -ffunction-sections -fdata-sections $(INCLUDE) $(WARN) $(EXTRA)
LDFLAGS := -fuse-ld=lld -Wl,--gc-sections -Wl,--as-needed
LIBS    := $(DEPSLIB) -lcurl -lssl -lcrypto -lpthread -ldl -lm
SANITIZE := -O1 -Itest -fsanitize=address,undefined -fno-sanitize-recover=undefined

# Guests see the SDK and a JSON library, nothing else; the only imports they may have are Loom's.
GUESTCC     := clang --target=wasm32-wasi -std=c11 -O2 -mbulk-memory -DNDEBUG -Wall -Wextra
GUESTFLAGS  := $(GUESTCC) -Iinclude -isystem $(DEPS)/include -DYYJSON_DISABLE_UTILS=1 $(if $(findstring -Werror,$(WARN)),-Werror)
GUESTLINK   := -nostartfiles -Wl,--no-entry -Wl,--strip-debug -Wl,--stack-first -Wl,-z,stack-size=32768
GUESTLIB    := $(O)/guest/yyjson.o
HEADERS     := $(wildcard include/loom/*.h builtin/*/*.h)

# Embedded beside the modules: definitions, the dashboard, what `loom new` writes, and what `loom build` needs to compile a C guest.
FILES := $(wildcard builtin/*/*.json builtin/*/*.md src/http/ui/*) $(sort $(shell find src/cli/template -type f ! -name ".*" 2>/dev/null)) \
         $(wildcard include/loom/guest*.h) $(DEPS)/include/yyjson.h $(GUESTLIB)

all: check $(O)/loom
	@:

$(O)/loom: $(CLI:%.c=$(O)/obj/%.o) $(O)/libloom.a
	$(call say,link) $(CC) $(LDFLAGS) -o $@ $^ $(LIBS)

BUILTIN := $(if $(filter * runtime,$(DIRS)),$(O)/builtin.o)
$(O)/libloom.a: $(LIB:%.c=$(O)/obj/%.o) $(O)/yyjson.o $(BUILTIN)
$(O)/asan/libloom.a: $(LIB:%.c=$(O)/asan/%.o) $(O)/yyjson.o $(BUILTIN)
%.a:
	@rm -f $@
	$(call say,ar) ar rcs $@ $^

$(O)/obj/%.o: %.c $(O)/flags | $(DEPSLIB)
	@mkdir -p $(@D)
	$(call say,cc) $(CC) $(CFLAGS) -MMD -MP -c -o $@ $<
$(O)/asan/%.o: %.c $(O)/flags | $(DEPSLIB)
	@mkdir -p $(@D)
	$(call say,cc) $(CC) $(CFLAGS) $(SANITIZE) -MMD -MP -c -o $@ $<
# The whole of yyjson, linked before the crate's, which is built without JSON Pointer.
$(O)/yyjson.o: $(DEPS)/src/yyjson.c $(O)/flags | $(DEPSLIB)
	$(call say,cc) $(CC) $(CFLAGS) -w -c -o $@ $<
-include $(shell find $(O) -name '*.d' 2>/dev/null)

# Rewritten when a flag, a dependency or the list of built-ins changes; everything compiled depends on it.
STAMP := $(CC) $(CFLAGS) $(SANITIZE) $(GUESTFLAGS) $(GUESTLINK)
$(shell mkdir -p $(O); cmp -s $(O)/flags <<<'$(subst ','\'',$(STAMP))' || cat >$(O)/flags <<<'$(subst ','\'',$(STAMP))')
$(shell cmp -s $(O)/builtins <<<'$(WASM) $(FILES)' || cat >$(O)/builtins <<<'$(WASM) $(FILES)')
$(DEPSLIB): | check
	@scripts/deps $(PROFILE) >/dev/null

# Guests, and everything that is embedded.
.SECONDEXPANSION:
$(WASM): $(O)/guest/%.wasm: $$(wildcard builtin/$$*/*.c builtin/activities/$$*.c) $(GUESTLIB) $(HEADERS)
	$(call say,guest) $(GUESTFLAGS) $(GUESTLINK) -o $@ $(filter %.c %.o,$^)
	@! wasm-objdump -x -j Import $@ | grep '<- ' | grep -v '<- loom\.' || { echo "$@ imports what Loom does not offer"; rm $@; exit 1; }
$(GUESTLIB): $(DEPS)/src/yyjson.c $(O)/flags | $(DEPSLIB)
	@mkdir -p $(@D)
	$(call say,guest) $(GUESTFLAGS) -DYYJSON_DISABLE_NON_STANDARD=1 -w -c -o $@ $<
$(DEPS)/src/yyjson.c $(DEPS)/include/yyjson.h: | $(DEPSLIB) ;

$(O)/builtin.c: $(WASM) $(FILES) $(O)/builtins scripts/embed
	$(call say,embed) scripts/embed $(WASM) $(FILES) >$@
$(O)/builtin.o: $(O)/builtin.c
	$(call say,cc) $(CC) $(CFLAGS) -c -o $@ $<

# Tests: against a library built with AddressSanitizer and UndefinedBehaviorSanitizer; scripts run the real program.
SUPPORT  := $(patsubst %.c,$(O)/asan/%.o,$(filter-out %/sim_disk.c,$(wildcard test/support/*.c)))
SIMDISK  := $(O)/asan/test/support/sim_disk.o # takes the file calls' place, so only in tests that want it
TESTBINS := $(TESTS:%.c=$(O)/asan/%)
$(O)/asan/libsupport.a: $(SUPPORT)
$(O)/asan/test/test_disk $(O)/asan/test/test_crash_points: $(SIMDISK)
$(TESTBINS): %: %.o $(O)/asan/scripts/cmocka_signals.o $(O)/asan/libsupport.a $(O)/asan/libloom.a
	$(call say,link) $(CC) $(LDFLAGS) $(SANITIZE) -o $@ $^ $(LIBS) -lcmocka
tests: $(TESTBINS) $(if $(SCRIPTS),$(O)/loom)
	@:

test:
	@scripts/setup
	@$(MAKE) tests
	@LOOM=$(abspath $(O)/loom) scripts/run-tests $(TESTBINS) $(SCRIPTS)

# What `make test` samples, at length: hours, and then one seed of the simulator after the other until it is stopped.
soak: all simulator
	@$(MAKE) T=crash_points tests && SOAK=1 CASE='fault_03*' $(O)/asan/test/test_crash_points
	@LOOM=$(abspath $(O)/loom) test/crash.sh 50
	@LOOM=$(abspath $(O)/loom) LOOM_KILL_STRIDE=1 LOOM_FLIPS=5000 test/faults.sh
	@$(SIMULATOR) $(or $(SEED),$(shell date +%s)) 0

run:
	@scripts/setup
	@$(MAKE) all
	@LOOM=$(abspath $(O)/loom) examples/customer-onboarding/run

# Fuzzers: a library with libFuzzer's counters, in an O of its own. yyjson's loops take the first item's place of a list that
# is NULL before they see that it has none; clang's check of pointers would end the program there.
FUZZFLAGS := -O1 -Itest -fsanitize=fuzzer-no-link,address,undefined -fno-sanitize-recover=undefined -fno-sanitize=pointer-overflow
$(O)/fuzzer: $(patsubst %.c,$(O)/asan/%.o,$(wildcard test/fuzz/*.c)) $(O)/asan/libloom.a
	$(call say,link) $(CC) $(LDFLAGS) $(SANITIZE) -fsanitize=fuzzer -o $@ $^ $(LIBS)
fuzz:
	@scripts/setup
	@$(MAKE) O=$(O)/fuzz CC=clang SANITIZE='$(FUZZFLAGS)' $(O)/fuzz/fuzzer
	@test/fuzz/run $(O)/fuzz/fuzzer $(or $(SECONDS),60) $(T)

# The simulator: the whole engine in one thread, a run for each seed; what it links is compiled in an O of its own.
SIMULATOR := $(O)/sim/asan/test/sim/sim
$(O)/asan/test/sim/sim: $(patsubst %.c,$(O)/asan/%.o,$(wildcard test/sim/*.c) src/cli/verify.c) $(SIMDISK) $(O)/asan/libsupport.a $(O)/asan/libloom.a
	$(call say,link) $(CC) $(LDFLAGS) $(SANITIZE) -o $@ $^ $(LIBS)
simulator:
	@scripts/setup
	@$(MAKE) O=$(O)/sim SANITIZE='-Itest -include test/sim/sabotage.h' $(SIMULATOR)
sim: simulator
	@$(SIMULATOR) $(or $(SEED),1) $(or $(COUNT),1)
sabotage: simulator
	@$(SIMULATOR) sabotage

# ThreadSanitizer: what has threads, with native guests only; nothing is suppressed.
TSAN := engine activity http storage net
tsan:
	@scripts/setup
	@$(MAKE) O=$(O)/tsan SANITIZE='-O1 -Itest -fsanitize=thread' $(TSAN:%=$(O)/tsan/asan/test/test_%)
	@scripts/run-tests $(TSAN:%=$(O)/tsan/asan/test/test_%)

# Branches that the C tests and the simulator take in the rooms that hold the truth; assertions do not count.
coverage:
	@scripts/setup
	@$(MAKE) O=$(O)/cov CC=clang SANITIZE='-O1 -Itest -DNDEBUG -w -fprofile-instr-generate -fcoverage-mapping' \
	  tests SCRIPTS= $(O)/cov/asan/test/sim/sim
	@scripts/coverage $(O)/cov $(O)/coverage.txt 'scripts/run-tests $(TESTS:%.c=$(O)/cov/asan/%)' '$(O)/cov/asan/test/sim/sim 1 $(or $(COUNT),200)'

$(BENCHES:%.c=$(O)/%): $(O)/%: $(O)/obj/%.o $(O)/libloom.a
	@mkdir -p $(@D)
	$(call say,link) $(CC) $(LDFLAGS) -o $@ $^ $(LIBS)
$(O)/bench/guest/%.wasm: bench/guest/%.c include/loom/guest.h
	@mkdir -p $(@D)
	$(call say,guest) $(GUESTCC) -nostdlib -Iinclude $(GUESTLINK) -o $@ $<
benches: all $(BENCHES:%.c=$(O)/%) $(patsubst %.c,$(O)/%.wasm,$(wildcard bench/guest/*.c))
bench: benches
	@LOOM=$(abspath $(O)/loom) BENCH=$(abspath $(O)/bench) bench/run $(T)
flame: benches
	@bench/flame $(O)/bench

# Style: each file is checked again only when it or a header of it has changed.
GUESTSRC := $(wildcard builtin/*/*.c)
FORMATTED := $(wildcard src/*/*.[ch] include/loom/*.h builtin/*/*.[ch] test/*.[ch] test/*/*.[ch] test/*/*/*.[ch] bench/*.[ch] scripts/*.c)
format:
	clang-format -i $(FORMATTED)
tidy: $(SRC:%.c=$(O)/tidy/%.ok) $(GUESTSRC:%.c=$(O)/tidy/%.ok) $(O)/loom $(O)/api-tables
	@bad=0; ! clang-format --dry-run -Werror $(FORMATTED) 2>&1 | sed -n 's/:.*error:.*/: not formatted, run make format/p' | sort -u | grep . || bad=1; \
	scripts/tidy $(if $(BUDGET_UPDATE),--update) || bad=1; \
	scripts/api-reference $(O)/loom $(O)/api-tables --check || bad=1; exit $$bad
$(O)/tidy/src/%.ok: $(O)/obj/src/%.o .clang-tidy
	@mkdir -p $(@D); echo "  tidy   src/$*.c"
	@clang-tidy --quiet --warnings-as-errors='*' src/$*.c -- $(filter-out -W%,$(CFLAGS)) 2> >(grep -v 'warnings\? generated' >&2)
	@touch $@
$(O)/tidy/builtin/%.ok: builtin/%.c $(HEADERS) $(GUESTLIB) .clang-tidy
	@mkdir -p $(@D); echo "  tidy   builtin/$*.c"
	@clang-tidy --quiet --warnings-as-errors='*' builtin/$*.c -- $(filter-out clang -W%,$(GUESTFLAGS)) 2> >(grep -v 'warnings\? generated' >&2)
	@touch $@

# The tables of docs/api-reference.md come from the program itself.
$(O)/api-tables: $(O)/obj/scripts/api_tables.o $(O)/libloom.a
	$(call say,link) $(CC) $(LDFLAGS) -o $@ $^ $(LIBS)
docs: $(O)/loom $(O)/api-tables
	@scripts/api-reference $^

PACKAGE := loom-$(VERSION)-linux-$(shell uname -m)
dist:
	@scripts/setup
	@$(MAKE) O=$(O)/dist PROFILE=dist all
	@rm -rf $(O)/$(PACKAGE) && mkdir -p $(O)/$(PACKAGE)/{include,lib}
	@strip -o $(O)/$(PACKAGE)/loom $(O)/dist/loom
	@cp $(O)/dist/guest/yyjson.o $(O)/$(PACKAGE)/lib
	@cp -r include/loom $(shell scripts/deps --path dist)/include/yyjson.h $(O)/$(PACKAGE)/include
	@cp $(wildcard README.md) LICENSE $(O)/$(PACKAGE)
	@tar -C $(O) --owner=0 --group=0 --sort=name -c $(PACKAGE) | xz -9e >$(O)/$(PACKAGE).tar.xz
	@stat -c '%s bytes  %n' $(O)/$(PACKAGE)/loom $(O)/$(PACKAGE).tar.xz

setup:
	@scripts/setup
check:
	@scripts/setup --check
clean:
	rm -rf $(O)
help:
	@echo 'make            build $(O)/loom'
	@echo 'make run        set up, build, run examples/customer-onboarding'
	@echo 'make test       set up, build, run all tests; T=journal runs only test/test_journal.c (and test/journal.sh)'
	@echo 'make sim        run the simulator with SEED=n, twice, and compare; COUNT=100: so many seeds, 0: until stopped'
	@echo 'make sabotage   plant known faults in the engine, one at a time, and say how many seeds of the simulator find each'
	@echo 'make fuzz       run the fuzzers, a minute each; T=json only that one, SECONDS=600 longer'
	@echo 'make tsan       the tests of what has threads, with ThreadSanitizer, without WASM'
	@echo 'make soak       the long tests: 10,000 kills, each write point, thousands of flipped bytes; then seeds of the simulator'
	@echo 'make coverage   branches of src/actor, src/runtime and src/storage that the C tests and the simulator take; build/coverage.txt: the others'
	@echo 'make tidy       formatting, static analysis, line budget, direction of includes, API reference; BUDGET_UPDATE=1 adds new files'
	@echo 'make format     clang-format, in place'
	@echo 'make docs       write the tables of docs/api-reference.md anew'
	@echo 'make bench      measure; T="steps http" only these parts; PEERS=1 also Restate and DBOS, which it installs'
	@echo 'make flame      draw where the time goes: docs/flame-*.svg'
	@echo 'make dist       release archive $(O)/$(PACKAGE).tar.xz'
	@echo 'make setup      install what is missing'
	@echo 'make clean      remove $(O); the dependencies stay in ~/.cache/loom'
	@echo 'variables: CC=clang, WERROR=1, O=dir (where to build), V=1 (show commands), EXTRA=flags, DIRS="base storage" (only these folders of src/; give an O of its own)'
.PHONY: all tests test sim simulator sabotage fuzz tsan coverage run soak bench benches flame tidy format docs dist setup check clean help
.SECONDARY:
