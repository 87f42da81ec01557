#!/bin/sh
# Checks on a machine with an NVIDIA GPU: builds, tests, runs the kernels under compute-sanitizer,
# chooses among candidate kernels, measures, and writes benchmarks/README.md. Continues when a stage
# fails; the exit status is then 1. Without a GPU, the stages that need one are skipped.
#
#   scripts/gpu_check.sh [FOLDER]      logs of the stages, default build/gpu_check
#
#   PYTHON=...             an interpreter with torch: builds in place and installs nothing
#                          (default: .venv, created by `make build`)
#   GPU_CHECK_STAGES=...   which stages, default "build tests sanitizer tournament benchmark report";
#                          without benchmark, the tournament has 8 minutes instead of 2. It continues
#                          where an earlier call for the same commit has stopped.
#   GPU_CHECK_PYTEST=...   additional arguments for the whole pytest suite
#   GPU_CHECK_SECONDS=...  time limit for everything, default 530
cd "$(dirname "$0")/.." || exit 1
out=${1:-build/gpu_check}
stages=${GPU_CHECK_STAGES-build tests sanitizer tournament benchmark report}
begin=$(date +%s)
end=$((begin + ${GPU_CHECK_SECONDS:-530}))
status=0
mkdir -p "$out" || exit 1
: >"$out/summary.txt"

for stage in $stages; do
  case $stage in
    build | tests | sanitizer | tournament | benchmark | report) ;;
    *) echo "error: there is no stage $stage" >&2 && exit 2 ;;
  esac
done

python=${PYTHON:-.venv/bin/python}
case $python in # cmake and ninja beside it may not be on PATH
  */*) PATH="$(cd "$(dirname "$python")" 2>/dev/null && pwd):$PATH" ;;
esac
PATH="$PATH:/usr/local/cuda/bin"
export PATH

# A single architecture keeps the build short.
capability=$(nvidia-smi --query-gpu=compute_cap --format=csv,noheader 2>/dev/null | head -n 1)
case $capability in
  [0-9]*.[0-9]*) : "${TORCH_CUDA_ARCH_LIST:=$capability}" && export TORCH_CUDA_ARCH_LIST ;;
  *) capability= ;;
esac

wanted() {
  case " $stages " in *" $1 "*) ;; *) return 1 ;; esac
}

line() { # stage, outcome, seconds
  printf '%-10s  %-32s  %7s\n' "$1" "$2" "$3" >>"$out/summary.txt"
}

# Runs a command as a stage: its name, its limit in seconds, the command.
run() {
  name=$1 limit=$2
  shift 2
  left=$((end - $(date +%s)))
  [ "$name" = report ] || left=$((left - 20)) # reserve time for the report
  [ "$left" -ge "$limit" ] || limit=$left
  if [ "$limit" -lt 5 ]; then
    line "$name" "failed (no time left)" 0
    status=1
    return
  fi
  echo "$name (at most $limit s): $*"
  started=$(date +%s)
  timeout -k 10 "$limit" "$@" >"$out/$name.log" 2>&1
  code=$?
  seconds=$(($(date +%s) - started))
  if [ $code -eq 0 ]; then
    line "$name" passed $seconds
    return
  fi
  status=1
  case $code in
    124 | 137) line "$name" "failed (stopped after $limit s)" $seconds ;;
    *) line "$name" "failed (status $code)" $seconds ;;
  esac
  tail -n 15 "$out/$name.log" | sed 's/^/    /'
}

# The same for stages that need a GPU.
run_on_gpu() {
  if [ -n "$capability" ]; then run "$@"; else line "$1" "skipped (no GPU)" 0; fi
}

has() {
  "$python" -c "import $1" 2>/dev/null
}

kernel_tests="test_stats or test_table_strides or test_equal_indices or test_a_whole_batch"
kernel_tests="$kernel_tests or test_only_broken or test_incoming_gradients or test_large_rows"
kernel_tests="$kernel_tests or (test_other_operations_over_classes and (1003 or 2049))"

# Small cases of every regime of the kernels, with equal indices, strides, statistics and long rows.
sanitize() { # tool, limit, options
  tool=$1 limit=$2
  shift 2
  if [ -n "$capability" ] && ! command -v compute-sanitizer >/dev/null 2>&1; then
    line "$tool" "skipped (no compute-sanitizer)" 0
    return
  fi
  # The caching allocator would hide accesses beyond the end of a tensor.
  run_on_gpu "$tool" "$limit" env PYTORCH_NO_CUDA_MEMORY_CACHING=1 \
    compute-sanitizer --tool "$tool" --error-exitcode 99 "$@" \
    "$python" -m pytest -q -x -p no:cacheprovider -m 'not slow' \
    tests/operators/test_forward_backward.py tests/operators/test_contract.py \
    tests/operators/test_backward_pass.py \
    -k "cuda and ($kernel_tests)"
}

if wanted build; then
  if [ -n "$PYTHON" ]; then
    run build 150 env ALR_FAST_NATIVE=1 "$python" setup.py egg_info build_ext --inplace
  else
    run build 240 make build
  fi
fi

if wanted tests; then
  set -- -q --continue-on-collection-errors
  if ! has hypothesis; then
    echo "skipped, hypothesis is missing: test_properties.py"
    set -- "$@" --ignore=tests/operators/test_properties.py
  fi
  if ! has expecttest; then
    echo "skipped, expecttest is missing: the tests with torch.library.opcheck"
    set -- "$@" -k "not opcheck"
  fi
  # shellcheck disable=SC2086 # several arguments
  run pytest 200 "$python" -m pytest "$@" $GPU_CHECK_PYTEST
fi

if wanted sanitizer; then
  # Only the kernels of this project if the tool can filter; initcheck must see all writes.
  filter=
  if compute-sanitizer --help 2>/dev/null | grep -q -e --kernel-regex; then
    filter="--kernel-regex kns=alr_fast"
  fi
  # shellcheck disable=SC2086 # an option and its value, or nothing
  sanitize memcheck 60 --report-api-errors no $filter
  # shellcheck disable=SC2086
  sanitize racecheck 60 $filter
  sanitize initcheck 60
fi

if wanted tournament; then
  minutes=8
  wanted benchmark && minutes=2
  run_on_gpu tournament $((60 * minutes + 20)) "$python" -m benchmarks.tournament --resume \
    --minutes "$minutes"
fi

if wanted benchmark; then
  run_on_gpu host_cost 30 "$python" -m benchmarks.host_cost
  run_on_gpu benchmark 240 "$python" -m benchmarks.kernels
  run_on_gpu train_step 180 "$python" -m benchmarks.train_step --device cuda --seconds 20
  if [ -n "$capability" ] && ! has nvidia.dali; then
    line loading "skipped (no NVIDIA DALI)" 0
  else
    run_on_gpu loading 90 "$python" -m benchmarks.loading --device cuda
  fi
fi
# Last, because it needs no GPU.
wanted tests && run ctest 300 scripts/ctest.sh "$(dirname "$python")"
wanted report && run report 60 "$python" -m benchmarks.report

echo
printf '%-10s  %-32s  %7s\n' stage outcome seconds
cat "$out/summary.txt"
line whole "" $(($(date +%s) - begin))
tail -n 1 "$out/summary.txt"
echo "logs: $out"
exit $status
