# make train   set up, then train on the digits that scikit-learn ships
# make test    set up, then run the tests (make test-all: the long ones, too), in two processes
#              or make test WORKERS=8; make test ARGS="tests/losses -x" runs only pytest, with these
#              arguments
# make bench   the kernels against the reference implementation
# make wheel   source package and wheel for manylinux_2_28, in dist
# make docs    the documentation as a site, in build/site
# make lint    formatters, linters, types and layers, as in .pre-commit-config.yaml

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
ARGS ?=
WORKERS ?= 2

# Tests of one file share their fixtures, in one process.
PYTEST_ARGS := $(if $(strip $(ARGS)),$(ARGS),-n $(WORKERS) --dist loadfile)

NATIVE := CMakeLists.txt setup.py pyproject.toml \
          $(shell find csrc cmake -type f)

.PHONY: train test test-all bench lint docs build wheel wheel-check clean

train: build
	$(BIN)/python -m alr_fast.train $(ARGS)

test: build $(VENV)/.test-packages
ifeq ($(strip $(ARGS)),)
	@echo 'All tests: about ten minutes on two cores; make test ARGS="tests/losses" runs one folder.'
	scripts/ctest.sh $(BIN)
endif
	$(BIN)/python -m pytest $(PYTEST_ARGS)

test-all: build $(VENV)/.test-packages
ifeq ($(strip $(ARGS)),)
	scripts/ctest.sh $(BIN)
endif
	$(BIN)/python -m pytest -m "slow or not slow" $(PYTEST_ARGS)

bench: build $(VENV)/.test-packages
	$(BIN)/python -m pytest benchmarks --benchmark-only $(ARGS)

lint: $(VENV)/.test-packages
	$(BIN)/pre-commit run --all-files

# The documentation, in build/site: it opens from there without a server. Needs no build. The
# variable leaves out a note of mkdocs-material on its successor.
docs: $(VENV)/.docs-packages
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --quiet --strict
	@echo "wrote build/site/index.html"

# Source package and manylinux wheel, in dist.
wheel: $(VENV)/.test-packages
	scripts/build_wheel.sh $(BIN)

# The wheel in an empty environment, with this torch or another: make wheel-check TORCH=2.13.0
wheel-check: wheel
	scripts/check_wheel.sh $(BIN) $(TORCH)

build: $(VENV)/.build

# The package itself, in place. The build uses the installed torch.
$(VENV)/.build: $(VENV)/.train-packages $(NATIVE)
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/pip install --quiet --no-build-isolation --no-deps --editable .
	@touch $@

# Packages for building and training.
$(VENV)/.train-packages: pyproject.toml scripts/requirements.py
	@scripts/check_tools.sh $(PYTHON)
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python scripts/requirements.py build train > $(VENV)/train-packages.txt
	$(BIN)/pip install --quiet --requirement $(VENV)/train-packages.txt
	@touch $@

# In addition, packages for the site.
$(VENV)/.docs-packages: $(VENV)/.train-packages
	$(BIN)/python scripts/requirements.py docs > $(VENV)/docs-packages.txt
	$(BIN)/python -m pip install --quiet --requirement $(VENV)/docs-packages.txt
	@touch $@

# In addition, packages for tests, benchmarks and linting.
$(VENV)/.test-packages: $(VENV)/.train-packages
	$(BIN)/python scripts/requirements.py test > $(VENV)/test-packages.txt
	$(BIN)/pip install --quiet --requirement $(VENV)/test-packages.txt
	@touch $@

clean:
	rm -rf build dist $(VENV)/.build alr_fast/*.so
