#!/bin/sh
# Builds the wheel and runs the operator tests with it under another torch: one build works with both.
# Arguments: the folder of the environment's programs, the version of the other torch.
set -e
bin=$(cd "$1" && pwd)
torch=${2:-2.13.0}
rm -rf build/wheel && mkdir -p build/wheel
PATH="$bin:$PATH" "$bin/pip" wheel --quiet --no-build-isolation --no-deps --wheel-dir build/wheel .
"$bin/python" -m venv build/wheel/venv
build/wheel/venv/bin/pip install --quiet "torch==$torch" numpy pytest hypothesis expecttest
build/wheel/venv/bin/pip install --quiet --no-deps build/wheel/alr_fast-*.whl
cp -r tests build/wheel/tests  # outside the source tree, so that the wheel is imported
cd build/wheel
venv/bin/alr-fast info
PYTHONPATH=tests venv/bin/python -m pytest -c /dev/null -q -p no:cacheprovider \
  --import-mode=importlib tests/operators
