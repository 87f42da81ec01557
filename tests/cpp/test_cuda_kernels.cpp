// The CUDA kernels, run on the CPU by cuda_shim.h; and that header itself.
#include <cstdio>
#include <cstdlib>
#include <string>

#include "check.h"
#include "cuda_shim.h"
//
#include "cuda/memory.cuh"
#include "cuda_backend.h"
#include "row_loss_checks.h"

#if defined(__SANITIZE_ADDRESS__)
// A fiber that an error stops keeps what it had allocated: its message.
extern "C" __attribute__((visibility("default"))) const char* __asan_default_options() {
  return "detect_leaks=0";
}
#endif

namespace {

using cuda_shim::Error;
using cuda_shim::Launch;

// --- the shim finds what it is there to find
// --------------------------------------------------------

__global__ void diverge_at_barrier_kernel() {
  if (threadIdx.x != 3) __syncthreads();
}

__global__ void two_barriers_kernel() {
  if (threadIdx.x < 32) {
    __syncthreads();
  } else {
    __syncthreads();
  }
}

__global__ void diverge_at_shuffle_kernel(float* out) {
  float x = 1;
  if (threadIdx.x < 16) x = __shfl_xor_sync(0xffffffffu, x, 1);
  out[threadIdx.x] = x;
}

__global__ void read_outside_mask_kernel(float* out) {
  if (threadIdx.x < 16) out[threadIdx.x] = __shfl_xor_sync(0xffffu, 1.f, 16);
}

__global__ void misaligned_kernel(const float* from, float* to) { alr_fast::load<4>(from + 1, to); }

__global__ void static_shared_kernel(float* out, bool writes) {
  static __shared__ float values[64];
  if (writes) values[threadIdx.x] = static_cast<float>(threadIdx.x);
  __syncthreads();
  out[threadIdx.x] = values[63 - threadIdx.x];
}

__global__ void missing_barrier_kernel(float* out) {
  static __shared__ float values[64];
  values[threadIdx.x] = 1;
  out[threadIdx.x] = values[63 - threadIdx.x];
}

__global__ void half_warps_kernel(int* out) {  // halves of a warp may do different things
  const unsigned mask = threadIdx.x % 32 < 16 ? 0xffffu : 0xffff0000u;
  int sum = static_cast<int>(threadIdx.x);
  for (int n = 0; n < (threadIdx.x % 32 < 16 ? 1 : 3); ++n)
    for (int step = 8; step > 0; step /= 2) sum += __shfl_xor_sync(mask, sum, step);
  out[threadIdx.x] = sum;
}

void check_shim() {
  Launch launch;
  launch.block.x = 64;
  float out[64];
  alignas(16) const float from[8] = {};
  for (bool reverse : {false, true}) {
    launch.reverse_threads = reverse;
    CHECK_THROWS(run(launch, diverge_at_barrier_kernel), Error, "1 of 64 have ended");
    CHECK_THROWS(run(launch, two_barriers_kernel), Error, "threads diverge");
    CHECK_THROWS(run(launch, diverge_at_shuffle_kernel, out), Error, "at __shfl_xor_sync");
    CHECK_THROWS(run(launch, read_outside_mask_kernel, out), Error, "takes no part");
    CHECK_THROWS(run(launch, misaligned_kernel, from, out), Error, "alignof");
    run(launch, static_shared_kernel, out, true);
    CHECK(out[0] == 63 && out[63] == 0);
    run(launch, static_shared_kernel, out, false);
    CHECK(out[0] != out[0]);
    run(launch, missing_barrier_kernel, out);
    CHECK(out[0] != out[0] || out[63] != out[63]);
    int sums[64];
    run(launch, half_warps_kernel, sums);
    CHECK(sums[0] == 120 && sums[16] == 376 * 256 && sums[47] == 120 + 16 * 32);
  }
}

void check_conversions() {
  for (float x : {1.f, 1.00048828125f, 65519.f, 65520.f, 6e-8f, 2.9e-8f, -3.14159f})
    CHECK(alr_fast::to_float(alr_fast::from_float<__half>(x)) == __half2float(__float2half(x)));
  CHECK(alr_fast::to_float(alr_fast::from_float<__nv_bfloat16>(1.00390625f)) == 1.f);  // to even
}

void check_no_rows() {
  alr_fast::RowLossParams params;  // all pointers null: nothing is launched
  params.classes = 10;
  test::run_row_loss(params);
  CHECK(alr_fast::launch_plan(0, 10, alr_fast::DType::kFloat16, alr_fast::DType::kFloat32).blocks ==
        0);
}

}  // namespace

int main() {
  check_shim();
  check_conversions();
  test::Backend backend;
  backend.name = "cuda";
  backend.is_cuda = true;
  // Orders of threads and blocks take turns.
  static unsigned runs = 0;
  const auto next_order = [] {
    ++runs;
    test::order = {runs % 2 == 0, runs / 2 % 2 == 0, runs % 3 == 0};
  };
  backend.row_loss = [&](const alr_fast::RowLossParams& params) {
    next_order();
    test::run_row_loss(params);
  };
  backend.scale_grad = [&](const alr_fast::ScaleGradParams& params) {
    next_order();
    test::run_scale_grad(params);
  };
  // Odd ones, and both sides of each bound in launch_plan.cpp with and without whole vectors.
  backend.classes = {1,    2,    3,    7,    8,    9,    10,   11,   12,   13,   14,   15,   16,
                     31,   32,   33,   36,   50,   100,  255,  256,  257,  260,  1000, 1023, 1024,
                     1025, 1028, 2048, 2049, 2052, 4096, 4097, 4100, 8192, 8193, 8196, 20001};
  test::check_sizes(backend);
  backend.classes = {262144};
  test::check_sizes(backend);
  check_no_rows();
  test::check_options(backend);
  test::check_mutants(backend);
  test::check_rounding(backend);
  test::check_scale_grad(backend);
  return test::finish("test_cuda_kernels");
}
