# Everything a newcomer or CI needs. Only Python >= 3.11 and make are taken for granted.
.DEFAULT_GOAL := help
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

MINUTES ?= 5

# Some tests wait for what takes its time: others have the processors meanwhile.
WORKERS ?= $(shell expr $$(getconf _NPROCESSORS_ONLN) \* 3 / 2)

# The tests start a thousand processes: each would compile all that it imports, where nothing keeps what was compiled.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help demo test test-all test-pythons thorough lint types check docs docs-serve bench fuzz simulate stress clean

help: ## Show what there is
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/\1\t\2/p' Makefile | expand -t 12

# One environment for all: the stamp is renewed when the project's metadata changes.
$(VENV)/.stamp: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check "pip>=25.1"
	$(BIN)/pip install --quiet --disable-pip-version-check --editable . --group dev
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --upgrade --target $(VENV)/large-guests --group large-guests
	@touch $@

demo: $(VENV)/.stamp ## Run CPython in the sandbox: granted, refused, stopped
	@$(BIN)/python demo/main_job.py

test: $(VENV)/.stamp ## Run the tests, but for the slow ones, and with fewer examples
	STOCKADE_QUICK=1 $(BIN)/pytest --quiet --numprocesses $(WORKERS) --dist worksteal -m "not slow"

test-all: $(VENV)/.stamp ## Run all tests, as CI does
	$(BIN)/pytest --quiet --numprocesses auto --dist worksteal

test-pythons: $(VENV)/.stamp ## Run all tests on every supported release of Python, and with the oldest wasmtime
	$(BIN)/python .ci/pythons.py

thorough: $(VENV)/.stamp ## Compare thousands of guests with native WASI, and end runs at every unit of fuel
	STOCKADE_EXAMPLES=2000 $(BIN)/pytest --quiet --timeout 3600 tests/limits/test_native.py tests/limits/test_settled.py

lint: $(VENV)/.stamp ## Check style and layers
	$(BIN)/ruff check src tests benchmarks demo examples docs .ci
	$(BIN)/ruff format --check src tests benchmarks demo examples docs/conf.py .ci
	$(BIN)/lint-imports

types: $(VENV)/.stamp ## Check types
	$(BIN)/mypy
	$(BIN)/mypy --strict .ci/pythons.py

check: lint types test-all ## All of the above, as CI does

# What makes the site is needed for nothing else, so it is installed here only.
$(VENV)/.docs-stamp: $(VENV)/.stamp
	$(BIN)/pip install --quiet --disable-pip-version-check --group docs
	@touch $@

docs: $(VENV)/.docs-stamp ## Make the site, build/docs/index.html, and the policy reference
	$(BIN)/stockade policy schema --markdown > docs/policy.md
	$(BIN)/sphinx-build --quiet --fail-on-warning --keep-going -b html -d build/doctrees docs build/docs

docs-serve: docs ## Serve the site at http://localhost:8000
	$(BIN)/python -m http.server --bind localhost --directory build/docs 8000

bench: $(VENV)/.stamp ## Measure: runs against idiomatic wasmtime-py, the guard against native WASI
	$(BIN)/python -m benchmarks

fuzz: $(VENV)/.stamp ## Hold our readers against another decoder and the engine, MINUTES=5
	$(BIN)/python -m tests.fuzz $(MINUTES)

simulate: $(VENV)/.stamp ## Search for interleavings that break what must hold (STOCKADE_MINUTES, STOCKADE_SEED)
	$(BIN)/python -m tests.simulation

stress: $(VENV)/.stamp ## Threads, tasks, sessions and forks on real guests, for some minutes (STOCKADE_MINUTES)
	$(BIN)/python -m tests.simulation.stress

clean: ## Remove what make made
	rm -rf $(VENV) build .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
