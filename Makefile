# `make help` lists the doors. Each does the set-up that it needs; what is done already is not done again.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.ONESHELL:

export PATH := $(PATH):/usr/sbin:/sbin
VENV := .venv
PYTHON := $(VENV)/bin/python
PIP := $(PYTHON) -m pip --disable-pip-version-check --quiet
AS_ROOT := $(if $(filter 0,$(shell id -u)),,sudo)
SECONDS ?= 10
MINUTES ?= 30
SOAK_ARGS ?=
TESTS ?= tests
JOBS ?= 3
PYTEST_ARGS ?=

RUN_STAMP := $(VENV)/.installed-run
BYTECODE := $(VENV)/.compiled
DEV_STAMP := $(VENV)/.installed-dev
BENCH_STAMP := $(VENV)/.installed-bench
TEST_STAMP := build/.bootstrapped-test
BENCH_PACKAGES := build/.bootstrapped-bench
KERNELS_STAMP := build/.bootstrapped-kernels

.PHONY: help
help: ## what can be made
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: install
install: $(BYTECODE) ## distribution packages, .venv, and the command .venv/bin/rsyncfs

.PHONY: demo
demo: $(BYTECODE) ## replicate a live directory over loopback for some seconds (root; SECONDS=10)
	$(AS_ROOT) $(VENV)/bin/rsyncfs demo --seconds $(SECONDS)

.PHONY: test
test: $(DEV_STAMP) $(BYTECODE) $(TEST_STAMP) ## the whole suite, with real eBPF (root; TESTS=tests/unit for a part; JOBS=0: one after the other)
	$(AS_ROOT) env PATH="$$PATH" $(PYTHON) -m pytest -n $(JOBS) --dist loadfile $(TESTS) $(PYTEST_ARGS)

.PHONY: test-kernels
test-kernels: $(DEV_STAMP) $(BYTECODE) $(TEST_STAMP) $(KERNELS_STAMP) ## the tables of the tests on Debian's kernels, and power cuts, in virtual machines (root)
	$(AS_ROOT) env PATH="$$PATH" scripts/kernels
	$(AS_ROOT) env PATH="$$PATH" $(PYTHON) -m pytest -o faulthandler_timeout=0 tests/kernel/test_matrix.py tests/kernel/test_power.py \
		$(PYTEST_ARGS)

.PHONY: soak
soak: $(DEV_STAMP) $(BYTECODE) $(TEST_STAMP) ## hundreds of crashes and cuts under a workload, at most MINUTES=30 (root; SOAK_ARGS="--seed 7")
	$(AS_ROOT) env PATH="$$PATH" $(PYTHON) -m tests.soak --minutes $(MINUTES) --json build/soak.json $(SOAK_ARGS)

.PHONY: bench
bench: $(BYTECODE) $(BENCH_STAMP) $(BENCH_PACKAGES) ## measure ourselves against bare limits; tables, JSON and pictures (root)
	for each in lag bulk rate work initial rename idle growth decode writer trace scan; do
		$(AS_ROOT) $(PYTHON) bench/$$each.py
	done

.PHONY: bench-peers
bench-peers: $(BYTECODE) $(BENCH_STAMP) $(BENCH_PACKAGES) ## the same beside rsync, lsyncd, Syncthing, unison, inotifywait (root)
	for each in lag work; do
		$(AS_ROOT) $(PYTHON) bench/$$each.py --peers
	done

.PHONY: bench-gap
bench-gap: $(BYTECODE) $(BENCH_STAMP) $(BENCH_PACKAGES) ## a million files of which 120 changed while nothing ran, beside rsync (root)
	$(AS_ROOT) $(PYTHON) bench/gap.py

.PHONY: lint
lint: $(DEV_STAMP) ## ruff and mypy --strict
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

.PHONY: format
format: $(DEV_STAMP) ## let ruff lay the code out
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

.PHONY: lock
lock: ## write requirements*.lock anew from pyproject.toml, newest versions
	rm -rf build/lock
	/usr/bin/python3 -m venv build/lock
	build/lock/bin/pip --disable-pip-version-check --quiet install 'pip-tools>=7.5'
	export CUSTOM_COMPILE_COMMAND="make lock"
	options="--quiet --upgrade --generate-hashes --strip-extras --allow-unsafe --no-emit-index-url --no-emit-find-links \
		--no-emit-trusted-host --no-emit-options"
	build/lock/bin/pip-compile $$options --extra build -o requirements.lock pyproject.toml
	build/lock/bin/pip-compile $$options --extra build --extra dev -c requirements.lock -o requirements-dev.lock \
		pyproject.toml
	build/lock/bin/pip-compile $$options --extra bench -c requirements.lock -o requirements-bench.lock pyproject.toml

.PHONY: clean
clean: ## remove what was made, .venv included
	@made="$(VENV) build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis $$(find . -name .git -prune -o \
		-name $(VENV) -prune -o -name __pycache__ -print -prune)"
	rm -rf $$made 2>/dev/null || $(AS_ROOT) rm -rf $$made

# The virtual environment sees the distribution's packages, for BCC; everything else comes from the lock.
$(PYTHON):
	scripts/bootstrap run
	/usr/bin/python3 -m venv --system-site-packages $(VENV)

$(RUN_STAMP): $(PYTHON) requirements.lock pyproject.toml scripts/bootstrap
	scripts/bootstrap run
	$(PIP) install --require-hashes -r requirements.lock
	$(PIP) install --no-build-isolation --no-deps --editable .
	$(PYTHON) -c 'from replicator.resources import load_bcc; load_bcc()'
	touch $@

# A service that may not write where the code lies would compile it at each start: 0.1 s.
$(BYTECODE): $(RUN_STAMP) $(shell find replicator -name '*.py')
	$(PYTHON) -m compileall -q replicator
	touch $@

$(DEV_STAMP): $(RUN_STAMP) requirements-dev.lock
	$(PIP) install --require-hashes -r requirements-dev.lock
	touch $@

$(BENCH_STAMP): $(RUN_STAMP) requirements-bench.lock
	$(PIP) install --require-hashes -r requirements-bench.lock
	touch $@

$(TEST_STAMP) $(KERNELS_STAMP) $(BENCH_PACKAGES): build/.bootstrapped-%: scripts/bootstrap
	scripts/bootstrap $*
	mkdir -p $(dir $@)
	touch $@
