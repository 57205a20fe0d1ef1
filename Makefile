# make demo   set up .venv and run the main job on the built-in lab; prints the report's path
# make test   everything CI checks: lint, types, layers, packaging, tests (no GPU needed)
# make bench  the benchmarks that run on this machine; results under bench/results/

PYTHON ?= $(shell for p in python3.11 python3.12 python3; do \
	$$p -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))' 2>/dev/null && echo $$p && break; done)
VENV ?= .venv
BIN := $(VENV)/bin
DEMO ?= modegap-demo
# make bench writes two stores of 3.2 GB here and keeps them for the next time
SCRATCH ?= .bench
WORKERS ?= auto
# The lab is small: more threads than cores, or a hub look-up, would only cost time.
export HF_HUB_OFFLINE ?= 1
export TOKENIZERS_PARALLELISM ?= false

.PHONY: demo test test-slow test-gpu lint types unit bench lab browser clean

$(VENV)/.run: pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "modegap needs Python 3.11 or newer: install it or set PYTHON=..." >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -c constraints.txt -e .
	@touch $@

$(VENV)/.dev: $(VENV)/.run
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev]'
	@touch $@

demo: $(VENV)/.run
	$(BIN)/modegap demo --out $(DEMO)

test: lint types unit

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports --no-cache

types: $(VENV)/.dev
	$(BIN)/mypy

# a worker a core (WORKERS=1 to watch one process); a file's tests stay together, for its fixtures
unit: $(VENV)/.dev browser
	$(BIN)/python -m pytest -n $(WORKERS) --maxprocesses 8 --dist loadfile

test-slow: $(VENV)/.dev
	$(BIN)/python -m pytest -m slow --timeout 3600

test-gpu: $(VENV)/.dev
	$(BIN)/python -m pytest -m gpu

bench: $(VENV)/.dev
	$(BIN)/python -m pytest bench/test_bench.py --benchmark-columns=min,median,rounds --benchmark-group-by=group
	$(BIN)/python -m bench.out_of_core --dir $(SCRATCH)

lab: $(VENV)/.run
	$(BIN)/python -m modegap.analyses.lab.train

# The report's browser test skips without Chromium; where it can be installed without asking, install it.
browser:
	@command -v chromium chromium-browser google-chrome >/dev/null 2>&1 || [ -n "$$MODEGAP_CHROMIUM" ] || \
	{ [ "$$(id -u)" = 0 ] && [ -n "$$CI" ] && command -v apt-get >/dev/null 2>&1 && \
	apt-get update -qq >/dev/null && apt-get install -qq -y --no-install-recommends chromium >/dev/null; } || \
	echo "no Chromium found: the report's browser test will be skipped"

clean:
	rm -rf $(VENV) $(DEMO) build dist src/*.egg-info .pytest_cache .mypy_cache .ruff_cache
