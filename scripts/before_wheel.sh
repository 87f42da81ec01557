#!/bin/sh
# Installs what a wheel is built with, into the Python that is on PATH (called by cibuildwheel): the
# oldest torch that is supported, and the nvcc of its version of CUDA.
set -e
packages=$(mktemp)
python scripts/requirements.py build >"$packages"
python -m pip install "torch==2.11.*" "cuda-toolkit[nvcc,cccl]" --requirement "$packages"
rm "$packages"
# These packages have no names for development.
cd "$CUDA_HOME"
ln -sfn lib lib64
ln -sfn libcudart.so.13 lib/libcudart.so
