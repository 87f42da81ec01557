# make train   set up, then train on the digits that scikit-learn ships
# make test    set up, then run the tests (make test-all: the long ones too)
# make bench   the kernels against the reference implementation
# make lint    formatters and linters, as in .pre-commit-config.yaml

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
ARGS ?=

NATIVE := CMakeLists.txt setup.py pyproject.toml \
          $(shell find csrc cmake -type f)

.PHONY: train test test-all bench lint build wheel-check clean

train: build
	$(BIN)/python -m alr_fast.train $(ARGS)

test: build
	scripts/ctest.sh $(BIN)
	$(BIN)/python -m pytest $(ARGS)

test-all: build
	scripts/ctest.sh $(BIN)
	$(BIN)/python -m pytest -m "slow or not slow" $(ARGS)

bench: build
	$(BIN)/python -m pytest benchmarks --benchmark-only $(ARGS)

lint: $(VENV)/.dependencies
	$(BIN)/pre-commit run --all-files

# The built wheel under a second torch: make wheel-check TORCH=2.13.0
wheel-check: build
	scripts/check_wheel.sh $(BIN) $(TORCH)

build: $(VENV)/.build

# The package itself, in place. torch is already there: the build must see the one that will load it.
$(VENV)/.build: $(VENV)/.dependencies $(NATIVE)
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/pip install --quiet --no-build-isolation --no-deps --editable .
	@touch $@

$(VENV)/.dependencies: pyproject.toml scripts/requirements.py
	@scripts/check_tools.sh $(PYTHON)
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python scripts/requirements.py build test > $(VENV)/requirements.txt
	$(BIN)/pip install --quiet --requirement $(VENV)/requirements.txt
	@touch $@

clean:
	rm -rf build $(VENV)/.build alr_fast/*.so
