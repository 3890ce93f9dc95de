# What people run: each target sets up its own environment on first use and is quick from then on.
#   make compare      the main comparison, on real digits
#   make test         lint, types, tests;  make test PYTHON=python3.12 uses an environment of its own
#   make acceptance   the slow runs against published shapes
#   make bench        the benchmarks

PYTHON ?= python3
VENV := .venv$(if $(filter-out python3,$(PYTHON)),-$(notdir $(PYTHON)))
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
TYPES := build/types-$(notdir $(PYTHON))
TYPED := $(TYPES)/.checked
PIP := $(BIN)/python -m pip install -qq --disable-pip-version-check
SOURCES := $(shell find bayes_sym inference models experiments -name '*.py' -o -name 'py.typed')
BENCHMARKS := $(filter-out benchmarks/timing.py,$(wildcard benchmarks/*.py))

export PIP_ROOT_USER_ACTION := ignore

.PHONY: compare test lint types suite acceptance bench clean
.DELETE_ON_ERROR:

compare: $(INSTALLED)
	@$(BIN)/bayes-sym compare digits-c4

# One after the other, also under make -j, so that the output stays readable.
test:
	@$(MAKE) --no-print-directory lint
	@$(MAKE) --no-print-directory types
	@$(MAKE) --no-print-directory suite

lint: $(INSTALLED)
	@$(BIN)/ruff format --check --quiet . || { echo "Formatting differs: run $(BIN)/ruff format ."; exit 1; }
	@$(BIN)/ruff check --quiet .
	@echo "lint: clean"

types: $(TYPED)
	@echo "types: clean"

suite: $(INSTALLED)
	@$(BIN)/python -m pytest --numprocesses 2 --dist worksteal

acceptance: $(INSTALLED)
	@$(BIN)/python -m pytest -m acceptance

bench: $(INSTALLED)
	@for script in $(BENCHMARKS); do echo "$$script"; $(BIN)/python "$$script" || exit 1; done

clean:
	@rm -rf build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .venv .venv-python*
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(INSTALLED): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "bayes_sym needs Python 3.11 or newer, but $(PYTHON) is $$($(PYTHON) --version 2>&1): try make PYTHON=python3.12"; exit 1; }
	@test -x $(BIN)/python || { echo "Creating $(VENV)"; $(PYTHON) -m venv $(VENV); }
	@echo "Installing bayes_sym and what it needs into $(VENV): some minutes, once"
	@$(PIP) --editable '.[dev]'
	@touch $@

# Checkers cannot see the package-dir mapping of an editable install, so they get the package as it is built.
$(TYPED): $(SOURCES) pyproject.toml | $(INSTALLED)
	@rm -rf $(TYPES) build/lib build/bdist.*
	@$(PIP) --no-deps --target $(TYPES) .
	@cd $(TYPES) && $(abspath $(BIN))/python -m mypy --config-file $(abspath pyproject.toml) \
		--cache-dir $(abspath .mypy_cache) --no-error-summary -p bayes_sym
	@touch $@
