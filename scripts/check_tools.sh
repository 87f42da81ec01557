#!/bin/sh
# Names what is missing or broken on this machine, one per line, and puts pip into an environment that
# has none. Arguments: the Python for a new environment, the folder of the environment.
python=${1:-python3} venv=${2:-.venv}
status=0
missing() {
  echo "error: $1" >&2
  status=1
}

[ -w . ] || missing "this folder is read-only: copy it to one that you may write ($PWD)"
case $PWD in
  *[\;:\$\"\'\`\\]*) missing "the name of this folder has one of ; : \$ \" ' \` \\: rename it ($PWD)" ;;
esac

again="make distclean removes it, and make creates it again"
if [ -e "$venv" ] || [ -L "$venv" ]; then # a link may be broken
  python=$venv/bin/python
  "$python" -c '' 2>/dev/null || {
    missing "$python does not run, its Python may be gone: $again"
    exit 1
  }
  # The programs of an environment name its folder in their first lines, unless it may be moved (uv).
  for program in "$venv/bin/pip" "$venv/bin/alr-fast"; do
    if [ -f "$program" ] && here=$(cd "$venv" && pwd) && real=$(cd "$venv" && pwd -P) &&
      head -n 2 "$program" | grep -q /bin/python &&
      ! head -n 2 "$program" | grep -qF -e "$here/bin/" -e "$real/bin/"; then
      missing "$venv was created in another folder, which its programs name: $again"
      exit 1
    fi
  done
elif ! command -v "$python" >/dev/null 2>&1; then
  missing "$python was not found: install Python 3.10 or later (apt-get install python3)"
  exit 1
else
  "$python" -c 'import venv, ensurepip' 2>/dev/null ||
    missing "$python has no venv module: apt-get install python3-venv"
fi
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))' ||
  missing "$python is older than 3.10: pass a later version with make PYTHON=python3.12"

if [ "$ALR_FAST_NATIVE" != 0 ]; then
  without="or run without it: make ALR_FAST_NATIVE=0"
  "$python" -c 'import os, sysconfig, sys
sys.exit(not os.path.exists(os.path.join(sysconfig.get_path("include"), "Python.h")))' ||
    missing "the headers of $python are missing: apt-get install python3-dev, $without"
  compiler=${CXX:-c++} # with arguments, as in CXX="ccache g++"
  if ! command -v "${compiler%% *}" >/dev/null 2>&1; then
    missing "there is no C++ compiler ($compiler): apt-get install g++, $without"
  # shellcheck disable=SC2086
  elif ! echo '#include <optional>
int main() { if constexpr (true) return std::optional<int>(0).value(); }' |
    $compiler -std=c++17 -x c++ -fsyntax-only - 2>/dev/null; then
    missing "$compiler does not compile C++17: install g++ 9 or later, set CXX=, $without"
  fi
fi

if [ $status = 0 ] && [ -e "$venv" ] && ! "$python" -c 'import pip' 2>/dev/null; then # made by uv
  "$python" -m ensurepip --default-pip >/dev/null 2>&1 ||
    uv pip install --quiet --python "$python" pip >/dev/null 2>&1 ||
    missing "$venv has no pip: $python -m ensurepip, or uv pip install pip"
fi
exit $status
