#!/bin/sh
# Builds and runs the C++ tests; argument: the folder of the environment's programs.
set -e
PATH="$(pwd)/$1:$PATH"
cmake -G Ninja -S . -B build/ctest -DALR_FAST_CUDA=0 >build/ctest-configure.log 2>&1 || {
  cat build/ctest-configure.log
  exit 1
}
cmake --build build/ctest
ctest --test-dir build/ctest --output-on-failure
