# Everything a developer types. `make` alone lists the targets.
#
# The environment lives in .venv and is made by the targets that need it. It needs python3 >= 3.11 with the venv module,
# nothing else: no compiler (dependencies come as wheels only), no other package of the system.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-builtin-rules

# The interpreter that makes .venv: the first that is new enough. `make PYTHON=/path/to/python3.12 ...` overrides it.
PYTHON ?= $(shell for p in python3 python3.14 python3.13 python3.12 python3.11; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { echo $$p; break; }; done)
VENV ?= .venv
PY := $(VENV)/bin/python
# Wheels only: a source package would want a compiler. (pip applies this to what it downloads, not to this directory.)
PIP_INSTALL := $(PY) -m pip install --quiet --disable-pip-version-check --only-binary :all:

# What `make serve` starts: ARGS="--io-threads 2" adds flags. What `make test` runs: TESTS=tests/net ARGS="-k inline".
ARGS ?=
TESTS ?= tests
# Processes for the test suite: more than processors, since half of the tests wait for elections. pytest-xdist keeps tests
# of one file in one process, which files with servers rely on.
JOBS ?= 3

.PHONY: help
help: ## list the targets
	@grep -hE '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 24

# --- environment ----------------------------------------------------------------------------------------------------

$(VENV)/bin/python:
	@[ -n "$(PYTHON)" ] || { echo "no python3 >= 3.11 found: install one, or name it: make PYTHON=/path/to/python3"; exit 1; }
	@"$(PYTHON)" -c 'import ensurepip, venv' 2>/dev/null || { \
		echo "$(PYTHON) has no venv module: install it (Debian, Ubuntu: apt install python3-venv)"; exit 1; }
	"$(PYTHON)" -m venv $(VENV)

$(VENV)/.installed: pyproject.toml | $(VENV)/bin/python
	$(PIP_INSTALL) -e '.[fast]'
	@touch $@

$(VENV)/.installed-dev: pyproject.toml | $(VENV)/bin/python
	$(PIP_INSTALL) -e '.[dev,lua]'
	@touch $@ $(VENV)/.installed

$(VENV)/.installed-bench: $(VENV)/.installed-dev
	$(PIP_INSTALL) -e '.[bench]'
	@touch $@

.PHONY: install dev
install: $(VENV)/.installed ## the environment with raftdb in it
dev: $(VENV)/.installed-dev ## the same with what tests and checks need

# --- run ------------------------------------------------------------------------------------------------------------

.PHONY: serve cluster
serve: $(VENV)/.installed ## a node on 127.0.0.1:6379 in the foreground, data in raftdb-data/
	@exec $(VENV)/bin/raftdb serve $(ARGS)

cluster: $(VENV)/.installed ## three nodes on 127.0.0.1:6379, :6389 and :6399 until Ctrl-C
	@exec $(PY) -m raftdb_tools.cluster $(ARGS)

# --- check ----------------------------------------------------------------------------------------------------------

.PHONY: test lint types fmt check
test: $(VENV)/.installed-dev ## the test suite; needs nothing but Python
	$(PY) -m pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder $(TESTS) $(ARGS)

lint: $(VENV)/.installed-dev ## ruff: rules and formatting
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .

types: $(VENV)/.installed-dev ## mypy --strict
	$(VENV)/bin/mypy

fmt: $(VENV)/.installed-dev ## rewrite the formatting
	$(VENV)/bin/ruff check --fix-only --quiet .
	$(VENV)/bin/ruff format .

check: lint types test ## all three

.PHONY: docs
docs: $(VENV)/.installed-dev ## rewrite the generated parts of docs/
	$(PY) -m raftdb_tools.docs

# --- long searches: hours, resumable, each adds to a ledger.jsonl beside its tests ------------------------------------------

.PHONY: campaign-sim campaign-nemesis campaign-images campaign-differential campaign-fuzz
campaign-sim: $(VENV)/.installed-dev ## the simulator until it is stopped; ARGS="--seconds 3600"
	$(PY) -m tests.sim campaign $(ARGS)

campaign-nemesis: $(VENV)/.installed-dev ## real processes under every set of faults
	$(PY) -m tests.e2e campaign $(ARGS)

campaign-images: $(VENV)/.installed-dev ## crash images, crash points and bit flips of the storage
	$(PY) -m tests.storage campaign $(ARGS)

campaign-differential: $(VENV)/.installed-dev ## 500,000 generated commands against redis-server
	$(PY) -m tests.commands campaign $(ARGS)

campaign-fuzz: $(VENV)/.installed-dev ## parsers and readers under mutated bytes
	$(PY) -m tests.fuzz campaign $(ARGS)

# --- real input, figures ----------------------------------------------------------------------------------------------

.PHONY: real-input kill-load failover catch-up install-kills recover-kills round-trip mixed-in-process restart-time memory bench-single bench bench-commands profile
real-input: $(VENV)/.installed-dev ## a million commands from the word list through redis-cli --pipe, all read back
	$(PY) -m tests.e2e.real_input $(ARGS)

kill-load: $(VENV)/.installed-dev ## twenty kill -9 under load: nothing acknowledged is lost or doubled
	$(PY) -m tests.e2e.kill_load $(ARGS)

failover: $(VENV)/.installed-dev ## thirty kill -9 of the leader of three nodes: how long writes stop
	$(PY) -m tests.e2e failover $(ARGS)

catch-up: $(VENV)/.installed-dev ## a follower away for a million writes, clients faster than the disks: memory is bounded
	$(PY) -m tests.e2e catch-up $(ARGS)

install-kills: $(VENV)/.installed-dev ## kill -9 at each mutating call of the install of a snapshot; needs strace
	$(PY) -m tests.e2e install-kills $(ARGS)

recover-kills: $(VENV)/.installed-dev ## kill -9 at each mutating call of `raftdb recover`; needs strace
	TESTS_SAMPLE=all $(PY) -m pytest -q -n 0 --timeout 600 tests/e2e/test_recover.py $(ARGS)

round-trip: $(VENV)/.installed-dev ## a million keys of all types into checkpoints of both codecs and back
	$(PY) -m tests.round_trip $(ARGS)

mixed-in-process: $(VENV)/.installed-dev ## a busy program, writers, long reads and KEYS over a million keys in one process: no election
	MIXED_KEYS=1000000 MIXED_SECONDS=60 $(PY) -m pytest -q -s -n 0 --timeout 900 tests/e2e/test_busy_host.py -k mixed_load

restart-time: $(VENV)/.installed-dev ## restart with a million keys against a thousand, after kill -9
	$(PY) -m tests.e2e.restart_time $(ARGS)

memory: $(VENV)/.installed-dev ## anonymous memory of a node: idle, and with a million keys
	$(PY) -m tests.e2e.memory $(ARGS)

bench-single: $(VENV)/.installed-bench ## one node beside redis-server; writes docs/performance/single
	$(PY) -m raftdb_tools.bench single --out docs/performance/single $(ARGS)

bench: $(VENV)/.installed-bench ## 1, 3, 5 nodes beside redis, etcd, PySyncObj, pyraft; writes docs/performance/all
	$(PY) -m raftdb_tools.bench all --out docs/performance/all $(ARGS)

bench-commands: $(VENV)/.installed-bench ## per command: time in parse, dispatch, handler, LMDB, encode
	$(PY) -m raftdb_tools.bench commands $(ARGS)

profile: $(VENV)/.installed-bench ## flame graphs of leader and follower under load
	$(PY) -m raftdb_tools.bench profile $(ARGS)

.PHONY: clean
clean: ## remove the environment and caches; never data directories
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
