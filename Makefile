# Everything runs in one virtual environment, which is kept until the files that describe it change.
#
#   make demo    score the sample table with the sample model
#   make test    run the test suite, but for what is slow
#   make test-all  run all of it
#   make lint    check style and types
#   make static  compile every kernel that has changed, for GPUs that need not be here, and compare with the baseline
#   make host    hold a layer's time on the host against transformers' layer, without a GPU
#   make smoke   the small microbenchmarks, each checked before it is timed
#   make bench   all microbenchmarks
#   make docs    build the pages of docs/ as a site, build/site; a warning is an error
#   make dist    build sdist and wheel into dist/, and score the sample table with the wheel in a fresh environment
#   make clean   remove the environment and everything that was built
#
# Another interpreter: make test PYTHON=python3.13. Another environment: make test VENV=/tmp/venv.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
INSTALL := $(PIP) install --quiet --constraint constraints.txt
DESCRIPTION := pyproject.toml setup.py constraints.txt

.PHONY: help demo test test-all lint static host smoke bench docs dist clean

help:
	@sed -n 's/^#   make/make/p' Makefile

demo: $(VENV)/.core
	@mkdir -p build
	$(BIN)/pabee-fast score examples/sample.csv --model examples/sample-model --policy patience:3 \
	    --output build/demo.csv --overwrite
	@head -n 6 build/demo.csv

# The suite reads no model hub; offline, a forgotten look-up fails at once instead of waiting for the network. A process
# for each core takes whole files, whose fixtures are made once, in the order of tests/conftest.py.
PYTEST := HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -n auto --dist loadfile --no-loadscope-reorder

test: $(VENV)/.test
	$(PYTEST) -m 'not slow'

test-all: $(VENV)/.test
	$(PYTEST) --durations 25

lint: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

static: $(VENV)/.test
	$(BIN)/python -m bench.static --changed

host: $(VENV)/.test
	$(BIN)/python -m bench.host --at-most 0.5

MICRO := -p no:cacheprovider --benchmark-columns=min,median,max,rounds bench/micro

smoke: $(VENV)/.test
	$(BIN)/python -m pytest -q $(MICRO) --micro-rounds 3

bench: $(VENV)/.test
	$(BIN)/python -m pytest $(MICRO) --cases full

docs: $(VENV)/.docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

# The wheel is built from the sdist, so that both are tried; its command runs where the sources are not in sight.
FRESH := build/fresh
dist: $(VENV)/.tools
	rm -rf dist $(FRESH)
	$(BIN)/python -c 'from setuptools import build_meta; build_meta.build_sdist("dist")'
	$(PIP) wheel --quiet --no-deps --no-build-isolation --wheel-dir dist dist/*.tar.gz
	$(PYTHON) -m venv $(FRESH)
	$(FRESH)/bin/python -m pip --disable-pip-version-check install --quiet --constraint constraints.txt dist/*.whl
	cd $(FRESH) && bin/pabee-fast --version && bin/pabee-fast score ../../examples/sample.csv \
	    --model ../../examples/sample-model --policy patience:3 --output scored.csv
	@ls dist/*

clean:
	rm -rf $(VENV) build dist .benchmarks .hypothesis .mypy_cache .pytest_cache .ruff_cache *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/.made:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	    { echo 'Python 3.11 or newer is needed; name one: make PYTHON=python3.11' >&2; exit 1; }
	$(PYTHON) -m venv --clear $(VENV)
	@touch $@

# Build tools first, pinned, so that the package is built by them: an isolated build would take the newest.
$(VENV)/.tools: constraints.txt $(VENV)/.made
	$(INSTALL) --upgrade pip setuptools
	@touch $@

$(VENV)/.core: $(DESCRIPTION) $(VENV)/.tools
	$(INSTALL) --no-build-isolation --editable .
	@touch $@

$(VENV)/.docs: $(DESCRIPTION) $(VENV)/.tools
	$(INSTALL) --no-build-isolation --editable '.[docs]'
	@touch $(VENV)/.core $@

$(VENV)/.test: $(DESCRIPTION) $(VENV)/.tools
	$(INSTALL) --no-build-isolation --editable '.[test]'
	@touch $(VENV)/.core $@
