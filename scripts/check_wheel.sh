#!/bin/sh
# Installs a wheel in an empty environment and runs there the operator tests of the source package.
# Arguments: the folder of the environment's programs, the version of torch to install (default: the
# torch of that environment is used, and nothing is downloaded), the folder of both packages
# (default: dist, as scripts/build_wheel.sh writes them).
set -e
bin=$(cd "$1" && pwd)
torch=$2
packages=$(cd "${3:-dist}" && pwd)
work=$(pwd)/build/package/check
tools="numpy pytest pytest-xdist hypothesis expecttest"
rm -rf "$work"
mkdir -p "$work/source"
tar -xzf "$packages"/alr_fast-*.tar.gz -C "$work/source" --strip-components=1
mv "$work/source/tests" "$work/tests" # without the package beside them

"$bin/python" -m venv "$work/env"
# shellcheck disable=SC2086 # several names
if [ -n "$torch" ]; then
  "$work/env/bin/python" -m pip install --quiet "torch==$torch" $tools
else
  "$bin/python" scripts/lend_packages.py "$work/env" torch $tools
fi
"$work/env/bin/python" -m pip install --quiet --no-index "$packages"/alr_fast-*.whl

cd "$work"
unset PYTHONPATH
env/bin/alr-fast info
env/bin/python - "$packages"/alr_fast-*.whl <<'CHECK'
import sys
import sysconfig
from pathlib import Path

import alr_fast.functional

package = Path(sysconfig.get_path("purelib"), "alr_fast")
mapped = {line.split()[-1] for line in Path("/proc/self/maps").read_text().splitlines()}
libraries = {Path(name) for name in mapped if "alr_fast" in name and name.endswith(".so")}
assert Path(alr_fast.__file__).parent == package, alr_fast.__file__
assert package / "_ops.so" in libraries, libraries
assert all(library.parent == package for library in libraries), libraries
assert not list(package.glob("_autograd*")), "a wheel is for every torch"
size, limit = Path(sys.argv[1]).stat().st_size, 20 if (package / "_cuda.so").exists() else 3
assert size <= limit * 10**6, f"the wheel has {size} bytes: more than {limit} MB"
CHECK
OMP_NUM_THREADS=1 PYTHONPATH=tests env/bin/python -m pytest -c /dev/null -q -p no:cacheprovider \
  --import-mode=importlib -n 2 --dist loadfile tests/operators
