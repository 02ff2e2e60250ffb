# Two commands do all the set-up on a fresh machine: `make quickstart` and `make test`. `make quick` is for while you work.
# Python 3.10 or later, its venv module and make are all they need to be there.

PYTHON ?= python3
VENV ?= .venv
# pytest processes; each uses one thread, and takes tests in long runs: what those of a module share is made once.
JOBS ?= 2
PARALLEL = -n $(JOBS) --dist worksteal
# Passed on to examples/quickstart.py, e.g. make quickstart ARGS="--help"
ARGS ?=

BIN := $(VENV)/bin
# pip shows its progress bars on a terminal and keeps logs short elsewhere.
PIP_INSTALL := $(BIN)/python -m pip install --disable-pip-version-check $(if $(MAKE_TERMOUT),,--quiet)

# One file per finished step; newer than pyproject.toml means up to date.
CREATED := $(VENV)/.created
EXAMPLES := $(VENV)/.installed-examples
DEV := $(VENV)/.installed-dev

.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help quickstart test quick lint types unit coverage docs package format notebooks docs-serve clean

help:  ## Say what there is
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/  make \1|\2/' | column -t -s '|'

quickstart: $(EXAMPLES)  ## Teach a pre-trained image transformer what happens in time
	$(BIN)/python examples/quickstart.py $(ARGS)

test: lint types unit docs package  ## Run every check

# Types and tests side by side: on a cold cache mypy takes longer than all the rest.
quick: lint  ## In under a minute: style, types, and one scenario for every room
	$(BIN)/mypy & types=$$!; \
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q tests/smoke $(ARGS); smoke=$$?; \
	wait $$types && exit $$smoke

lint: $(DEV)  ## Style and import direction
	$(BIN)/ruff check --quiet .
	$(BIN)/ruff format --check --quiet .
	$(BIN)/lint-imports --no-logo

types: $(DEV)  ## mypy, strict on src
	$(BIN)/mypy

unit: $(DEV)  ## pytest
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q $(PARALLEL) $(ARGS)

# Not a part of `make test`: before Python 3.14 tracing doubles the time that the tests take.
coverage: $(DEV)  ## pytest, and how much of the source it runs; fails below the floor in pyproject.toml
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q --cov $(PARALLEL) $(ARGS)

docs: $(DEV)  ## Build the documentation into site/
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

package: $(DEV)  ## Build sdist and wheel; install the wheel in an empty environment and use it
	rm -rf dist
	$(BIN)/python -m build --outdir dist . > $(VENV)/build.log 2>&1 || { cat $(VENV)/build.log; exit 1; }
	$(BIN)/twine check --strict dist/*
	$(BIN)/python scripts/check_wheel.py dist

format: $(DEV)  ## Apply the style
	$(BIN)/ruff check --quiet --fix .
	$(BIN)/ruff format --quiet .

notebooks: $(DEV)  ## Run each notebook and write its .ipynb anew from its .py (minutes); ARGS names some
	$(BIN)/python scripts/run_notebooks.py $(ARGS)

docs-serve: $(DEV)  ## Show the documentation while you write it
	$(BIN)/mkdocs serve

clean:  ## Remove what was built; the environment stays
	rm -rf dist site .coverage* .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis

$(CREATED):
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
		{ echo "Python 3.10 or later is needed; $(PYTHON) is $$($(PYTHON) --version 2>&1). Try: make PYTHON=python3.12 ..." >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV) || \
		{ echo "$(PYTHON) could not make a virtual environment. On Debian and Ubuntu: apt install python3-venv" >&2; exit 1; }
	@touch $@

# torch and torchvision come in one resolution, so that they fit one another.
$(EXAMPLES): pyproject.toml | $(CREATED)
	@echo "Installing into $(VENV), extra 'examples' (the first time this fetches PyTorch: minutes, gigabytes)"
	@$(PIP_INSTALL) --editable ".[examples]"
	@touch $@

$(DEV): pyproject.toml | $(CREATED)
	@echo "Installing into $(VENV), extra 'dev' (the first time this fetches PyTorch: minutes, gigabytes)"
	@$(PIP_INSTALL) --editable ".[dev]"
	@touch $(EXAMPLES) $@
