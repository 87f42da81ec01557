# make train   set up, then train on the digits that scikit-learn ships
# make test    set up, then run the tests (make test-all: the long ones, too), in two processes
#              or make test WORKERS=8; make test ARGS="tests/losses -x" runs only pytest, with these
#              arguments
# make bench   the kernels against the reference implementation
# make wheel   source package and wheel for manylinux_2_28, in dist
# make docs    the documentation as a site, in build/site
# make lint    formatters, linters, types and layers, as in .pre-commit-config.yaml
# make clean   remove what was compiled; make distclean: the environment, too
#
# make train ALR_FAST_NATIVE=0   without a compiler (slower); docs/build.md: if a build fails

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# A build that fails is an error here; an installation by pip falls back to PyTorch.
ALR_FAST_NATIVE ?= 1
# The programs of a folder that has moved name its old place; python does not. What a user has set
# for pip is kept, except for where and what to install.
PIP := PIP_USER=0 PIP_TARGET= PIP_PREFIX= PIP_ROOT= PIP_PYTHON= PIP_NO_DEPS= PIP_DRY_RUN= \
       $(BIN)/python -m pip
# The package is built again after another choice of these variables.
CHOICES := $(ALR_FAST_NATIVE) $(ALR_FAST_CUDA) $(ALR_FAST_AUTOGRAD) $(TORCH_CUDA_ARCH_LIST) $(CXX) $(CXXFLAGS) $(LDFLAGS) \
           $(CUDACXX) $(CUDA_HOME) $(CUDAHOSTCXX) $(CUDAFLAGS)
BUILT := $(VENV)/.built-$(shell echo '$(subst ','"'"',$(CHOICES))' | cksum | tr ' ' -)
ARGS ?=
WORKERS ?= 2

# Tests of one file share their fixtures, in one process.
PYTEST_ARGS := $(if $(strip $(ARGS)),$(ARGS),-n $(WORKERS) --dist loadfile)

CTEST := $(if $(filter 0,$(ALR_FAST_NATIVE)),,scripts/ctest.sh $(BIN))

NATIVE := CMakeLists.txt setup.py pyproject.toml \
          $(shell find csrc cmake -type f)

.PHONY: train test test-all bench lint docs build check-tools wheel wheel-check clean distclean

train: build
	$(BIN)/python -m alr_fast.train $(ARGS)

test: build $(VENV)/.test-packages
ifeq ($(strip $(ARGS)),)
	@echo 'All tests: a quarter of an hour on two cores; make test ARGS="tests/losses" runs one folder.'
	$(CTEST)
endif
	$(BIN)/python -m pytest $(PYTEST_ARGS)

test-all: build $(VENV)/.test-packages
ifeq ($(strip $(ARGS)),)
	$(if $(CTEST),$(CTEST) all)
endif
	$(BIN)/python -m pytest -m "slow or not slow" $(PYTEST_ARGS)

bench: build $(VENV)/.test-packages
	$(BIN)/python -m pytest benchmarks --benchmark-only $(ARGS)

lint: $(VENV)/.test-packages
	$(BIN)/python -m pre_commit run --all-files

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

build: $(BUILT)

# The package itself, in place. The build uses the installed torch.
$(BUILT): $(VENV)/.train-packages $(NATIVE)
	@rm -rf $(VENV)/.built-* alr_fast.egg-info # whose metadata would hide those of the environment
	ALR_FAST_NATIVE=$(ALR_FAST_NATIVE) $(PIP) install --quiet --no-build-isolation --no-deps --editable .
	@touch $@

# Whether this machine, this folder and the environment can be used.
check-tools:
	@ALR_FAST_NATIVE=$(ALR_FAST_NATIVE) scripts/check_tools.sh $(PYTHON) $(VENV)

# Packages for building and training.
$(VENV)/.train-packages: pyproject.toml scripts/requirements.py | check-tools
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python scripts/requirements.py build train > $(VENV)/train-packages.txt
	$(PIP) install --quiet --requirement $(VENV)/train-packages.txt
	@$(BIN)/python -I -c 'import importlib.util as i, sys; sys.exit(not i.find_spec("torch"))' || { \
	  echo "error: pip has installed the packages elsewhere: see target, prefix and root in" \
	       "$(BIN)/python -m pip config list" >&2; exit 1; }
	@touch $@

# In addition, packages for the site.
$(VENV)/.docs-packages: $(VENV)/.train-packages
	$(BIN)/python scripts/requirements.py docs > $(VENV)/docs-packages.txt
	$(PIP) install --quiet --requirement $(VENV)/docs-packages.txt
	@touch $@

# In addition, packages for tests, benchmarks and linting.
$(VENV)/.test-packages: $(VENV)/.train-packages
	$(BIN)/python scripts/requirements.py test > $(VENV)/test-packages.txt
	$(PIP) install --quiet --requirement $(VENV)/test-packages.txt
	@touch $@

clean:
	rm -rf build dist $(VENV)/.built-* alr_fast/*.so alr_fast/_not_compiled.txt

distclean: clean
	@test $(VENV) = .venv || test -f $(VENV)/pyvenv.cfg
	rm -rf $(VENV)
