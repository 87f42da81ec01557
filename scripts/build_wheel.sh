#!/bin/sh
# Builds the source package, and from it, in a folder of its own, a wheel for manylinux_2_28.
# Arguments: the folder of the environment's programs, the folder for both (default: dist).
set -e
bin=$(cd "$1" && pwd)
mkdir -p "${2:-dist}"
out=$(cd "${2:-dist}" && pwd)
work=$(pwd)/build/package
PATH="$bin:$PATH" # auditwheel calls patchelf, setup.py cmake and ninja
export PATH
rm -rf "$work" "$out"/alr_fast-*
mkdir -p "$work/source"

echo "source package"
python -m build --sdist --no-isolation --outdir "$out" . >"$work/sdist.log" 2>&1 || {
  cat "$work/sdist.log"
  exit 1
}
rm -rf alr_fast.egg-info # in this folder it would hide the metadata of the environment
tar -xzf "$out"/alr_fast-*.tar.gz -C "$work/source" --strip-components=1

echo "wheel"
python scripts/link_stubs.py "$work/stubs"
cd "$work/source"
# Without the autograd node, which is for one version of torch.
LDFLAGS="-L'$work/stubs' $LDFLAGS" ALR_FAST_NATIVE=1 ALR_FAST_AUTOGRAD=0 \
  python -m build --wheel --no-isolation --outdir "$work" . >"$work/wheel.log" 2>&1 || {
  cat "$work/wheel.log"
  exit 1
}
# Stops if a library needs more than the policy allows. The libraries of torch stay outside.
python -m auditwheel repair --plat "manylinux_2_28_$(uname -m)" --exclude 'libtorch*' --exclude 'libc10*' \
  --wheel-dir "$out" "$work"/alr_fast-*.whl >"$work/auditwheel.log" 2>&1 || {
  cat "$work/auditwheel.log"
  exit 1
}
ls -l "$out"/alr_fast-*
