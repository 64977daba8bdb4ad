# Each target sets itself up: the first one that runs makes .venv and installs into it, once.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
# torch first and alone, pinned: a build for the CPU that pip is configured to find then satisfies everything else, and
# no CUDA packages are pulled along. `make TORCH_INDEX=URL` names an index to take that build from.
TORCH_INDEX ?=

PERSISTENT := memmap: memmap:?durability=power_loss lmdb: lmdb:?sync=false zarr: zarr:?durability=power_loss icechunk:

.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help setup demo test check lint types contracts bench crash guarantees clean

help: ## what there is
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/  make \1	\2/p' $(MAKEFILE_LIST) | expand -t 20

setup: $(READY) ## install into .venv (the others do it by themselves)

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("AESG needs Python 3.11 or newer: make PYTHON=python3.11 …")'
	@echo "Installing into $(VENV) (once) …"
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install -q --no-deps $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) -c constraints.txt torch
	@$(BIN)/python -m pip install -q -c constraints.txt -e '.[dev]'
	@touch $@

demo: $(READY) ## build a memory from real text and ask it; ARGS='--text DIR' takes your own files
	@$(BIN)/python -m aesg demo $(ARGS)

test: $(READY) ## the tests; ARGS='-k name' chooses
	$(BIN)/python -m pytest -n auto $(ARGS)

check: lint types contracts test ## everything that must pass

lint: $(READY) ## ruff: rules and format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(READY) ## mypy, strict
	$(BIN)/mypy

contracts: $(READY) ## who may import whom
	$(BIN)/lint-imports

bench: $(READY) ## measure against the published 0.3.0
	$(BIN)/python -m benchmarks $(ARGS)

crash: $(READY) ## the long form of the crash campaign on every backend: 300 kills each and more; ARGS='lmdb:' chooses
	@for url in $(or $(ARGS),$(PERSISTENT)); do \
		$(BIN)/python -m aesg.testing "$$url" -k crash --long || exit 1; \
	done

guarantees: $(READY) ## write the table of guarantees into README.md
	@$(BIN)/python -m tools.guarantees

clean: ## remove caches and build products; .venv stays
	rm -rf build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find aesg tests benchmarks -name __pycache__ -prune -exec rm -rf {} +
