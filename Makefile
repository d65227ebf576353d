# make demo   install into .venv and bisect the embedded default
# make test   the same for the tests, then run them
# make lint   style and types
# make evidence   run the falsifiers, renew the bundles in evidence/, let the contracts name them
#
# PYTHON=python3.12 make demo    chooses the interpreter (3.11 or later)
# PYTEST_ARGS='-k trace' make test

PYTHON ?= python3
PYTEST_ARGS ?= -n 2
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

define BESIDE
if [ -d ../shared/tools ]; then PATH="$$(cd ../shared/tools && pwd):$$PATH"; fi; \
	if [ -z "$${APR_FALSIFY_REAL:-}" ] && [ -d ../shared/real ]; then \
		APR_FALSIFY_REAL="$$(cd ../shared/real && pwd)"; export APR_FALSIFY_REAL; fi; \
	unset PYTHONDONTWRITEBYTECODE; export PATH OMP_NUM_THREADS=1
endef

# What the scripts and benchmarks use of the package exists; how NumPy's and transformers' stubs see it is left out.
TOOLS := --config-file= --check-untyped-defs --ignore-missing-imports --follow-imports=silent \
	--disable-error-code=arg-type --disable-error-code=call-overload --disable-error-code=operator --disable-error-code=union-attr scripts benchmarks

.DELETE_ON_ERROR:
.PHONY: demo test lint evidence clean

demo: $(VENV)/.demo
	$(BIN)/apr-falsify bisect

# Byte code is kept: many tests start the program anew, which takes a second more where it is compiled each time.
# Real programs and recordings that are not part of this repository are used where they lie beside it.
# One thread a process: the tests run in parallel, and their matrices are small.
test: $(VENV)/.dev
	@$(BESIDE); $(BIN)/python -m pytest $(PYTEST_ARGS)

evidence: $(VENV)/.dev
	@$(BESIDE); $(BIN)/python scripts/renew_evidence.py $(FALSIFIERS)

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/mypy $(TOOLS)

clean:
	rm -rf $(VENV)

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo 'make: Python 3.11 or later is needed: PYTHON=python3.12 make demo' >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

# torch comes first and alone, so that nothing else chooses a build of it.
$(VENV)/.demo: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) torch
	$(PIP) --editable '.[oracle,report]'
	@touch $@

$(VENV)/.dev: $(VENV)/.demo
	$(PIP) --editable '.[oracle,report,test,lint]'
	@touch $@
