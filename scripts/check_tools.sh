#!/bin/sh
# Names the missing tools of a fresh machine, one per line; argument: the Python to use.
python=${1:-python3}
status=0
missing() {
  echo "error: $1" >&2
  status=1
}

if ! command -v "$python" >/dev/null 2>&1; then
  missing "$python was not found: install Python 3.10 or later (apt-get install python3)"
  exit 1
fi
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))' ||
  missing "$python is older than 3.10: pass a later version with make PYTHON=python3.12"
"$python" -c 'import venv, ensurepip' 2>/dev/null ||
  missing "$python has no venv module: apt-get install python3-venv"
"$python" -c 'import os, sysconfig, sys
sys.exit(not os.path.exists(os.path.join(sysconfig.get_path("include"), "Python.h")))' ||
  missing "the headers of $python are missing: apt-get install python3-dev"
compiler=${CXX:-c++}
if ! command -v "$compiler" >/dev/null 2>&1; then
  missing "there is no C++ compiler ($compiler): apt-get install g++"
elif ! echo '#include <optional>
int main() { if constexpr (true) return std::optional<int>(0).value(); }' |
  "$compiler" -std=c++17 -x c++ -fsyntax-only - 2>/dev/null; then
  missing "$compiler does not compile C++17: install g++ 9 or later, or set CXX="
fi
exit $status
