# Each target sets itself up: the first one that runs makes .venv and installs into it, once.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
# torch first and alone, pinned: a build for the CPU that pip is configured to find then satisfies everything else, and
# no CUDA packages are pulled along. `make TORCH_INDEX=URL` names an index to take that build from.
TORCH_INDEX ?=

.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help setup demo test check lint types contracts docs bench campaigns guarantees figures clean

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

test: export OMP_NUM_THREADS = 1# as many processes as cores: threads that spin beside each other only take time
test: $(READY) ## the tests; ARGS='-k name' chooses
	$(BIN)/python -m pytest -n auto $(ARGS)

check: lint types contracts docs test ## everything that must pass

lint: $(READY) ## ruff: rules and format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(READY) ## mypy, strict
	$(BIN)/mypy

contracts: $(READY) ## who may import whom
	$(BIN)/lint-imports

docs: export NO_MKDOCS_2_WARNING = 1# of the theme, about its future
docs: $(READY) ## the documentation site, into site/, warnings are errors; ARGS=serve shows it while you write
	$(BIN)/mkdocs $(or $(ARGS),build)

bench: $(READY) ## measure against the published 0.3.0
	$(BIN)/python -m benchmarks $(ARGS)

campaigns: $(READY) ## kill writers and damage files, by the hundred, on every backend; ARGS='lmdb: -k crash' chooses
	$(BIN)/python -m tools.campaigns $(ARGS)

guarantees: $(READY) ## write the generated tables of the readme and of the docs anew
	@$(BIN)/python -m tools.guarantees
	@$(BIN)/python -m tools.tested
	@$(BIN)/python -m tools.measured

figures: $(READY) ## measure the backends for `aesg choose` (some minutes, on a quiet machine), and write the tables
	@$(BIN)/python -m tools.figures

clean: ## remove caches and build products; .venv stays
	rm -rf build dist site *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find aesg tests benchmarks -name __pycache__ -prune -exec rm -rf {} +
