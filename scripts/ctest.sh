#!/bin/sh
# Builds and runs the C++ tests; arguments: the folder of the environment's programs; "all" for all candidate
# kernels and their mutants, too.
set -e
PATH="$(cd "$1" && pwd):$PATH"
mkdir -p build/ctest
# Afresh, which removes what was compiled, only if the folder, the compilers or their flags are others.
chosen="$PWD $PATH $CXX $CXXFLAGS $LDFLAGS $CUDACXX $CUDA_HOME $CUDA_PATH"
[ "$(cat build/ctest/chosen.txt 2>/dev/null)" = "$chosen" ] && fresh= || fresh=yes
# Kernels and tests only: the files of the package are built already.
cmake ${fresh:+--fresh} -G Ninja -S . -B build/ctest -DALR_FAST_CUDA=0 -DCMAKE_DISABLE_FIND_PACKAGE_Python=ON \
  -DALR_FAST_ALL_MUTANTS="$([ "$2" = all ] && echo ON || echo OFF)" \
  >build/ctest-configure.log 2>&1 || {
  cat build/ctest-configure.log
  exit 1
}
echo "$chosen" >build/ctest/chosen.txt
cmake --build build/ctest
ctest --test-dir build/ctest --output-on-failure --parallel "$(nproc)"
