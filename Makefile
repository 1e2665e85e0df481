# Every target does its own set-up: a fresh machine needs Python 3.11, pip and make.
PYTHON ?= python3.11
VENV := .venv
APE := .venv-contracts
BIN := $(VENV)/bin
PIP := -m pip --disable-pip-version-check --quiet

.PHONY: demo test check bench clean test-python test-contracts artifacts

$(VENV)/.ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	@echo "installing Steelyard and its development tools into $(VENV) (about a minute)"
	$(BIN)/python $(PIP) install --constraint constraints.txt --editable '.[dev]'
	@touch $@

$(APE)/.ready: contracts/requirements.txt
	$(PYTHON) -m venv $(APE)
	@echo "installing ape into $(APE) (about a minute)"
	$(APE)/bin/python $(PIP) install --requirement contracts/requirements.txt
	@touch $@

demo: $(VENV)/.ready            ## one task of eight rounds on this machine, with an audit
	$(BIN)/steelyard demo $(ARGS)

test:                           ## everything CI runs: ape's tests beside pytest's
	@$(MAKE) --no-print-directory --jobs=2 $(VENV)/.ready $(APE)/.ready
	@MAKE="$(MAKE)" .ci/test

test-python: $(VENV)/.ready
	$(BIN)/python -m pytest -n 3 --dist worksteal $(ARGS)

test-contracts: $(VENV)/.ready $(APE)/.ready
	PATH="$(CURDIR)/$(APE)/bin:$$PATH" $(APE)/bin/ape test contracts/tests -q

check: $(VENV)/.ready           ## format, lint, types, fast tests: under a minute
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -n 2 --dist worksteal -m "not slow and not e2e"

bench: $(VENV)/.ready           ## measurements, printed and written to build/bench.json
	$(BIN)/python -m tests.bench $(ARGS)

artifacts: $(VENV)/.ready       ## compile contracts/*.vy into chain/artifacts/
	$(BIN)/python contracts/build.py

clean:
	rm -rf $(VENV) $(APE) build dist .mypy_cache .ruff_cache .build .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
