// Tests of the CUDA kernels, run on the CPU by cuda_shim.h, and of that header.
#include <cstdio>
#include <cstdlib>
#include <limits>
#include <stdexcept>
#include <string>
#include <vector>

#include "check.h"
#include "cuda_shim.h"
//
#include "cuda/duplicates.h"
#include "cuda/memory.cuh"
#include "cuda_backend.h"
#include "row_loss_checks.h"
#include "row_loss_problem.h"

namespace {

using cuda_shim::Error;
using cuda_shim::Launch;

// --- errors that the shim must detect ---

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

__global__ void misaligned_kernel(const float* from, float* to) {
  alr_fast::Words<float, 4> words;
  alr_fast::load<alr_fast::Cached::kAgain>(from + 1, words);
  to[0] = words[0];
}

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

__global__ void half_warps_kernel(int* out) {  // halves of a warp may diverge
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
    CHECK_THROWS(run(launch, misaligned_kernel, from, out), Error, "kBytes == 0");
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

__global__ void no_wait_kernel(const float* from) {
  __pipeline_memcpy_async(cuda_shim::Machine::get().shared_memory(), from, 16);
}

__global__ void wait_kernel(const float* from, float* out, bool waits) {
  auto* const shared = reinterpret_cast<float*>(cuda_shim::Machine::get().shared_memory());
  if (threadIdx.x == 0) __pipeline_memcpy_async(shared, from, 16);
  __pipeline_commit();
  if (waits) __pipeline_wait_prior(0);
  __syncthreads();
  out[threadIdx.x] = shared[threadIdx.x % 4];
  __pipeline_wait_prior(0);
}

// Three copies, each of its commit; waits for all but the last so many.
__global__ void wait_for_older_kernel(const float* from, float* out, size_t newest) {
  auto* const shared = reinterpret_cast<float*>(cuda_shim::Machine::get().shared_memory());
  for (int n = 0; n < 3; ++n) {
    __pipeline_memcpy_async(shared + n, from + n, 4);
    __pipeline_commit();
  }
  __pipeline_wait_prior(newest);
  for (int n = 0; n < 3; ++n) out[n] = shared[n];
  __pipeline_wait_prior(0);
}

__global__ void changed_source_kernel(float* from) {
  __pipeline_memcpy_async(cuda_shim::Machine::get().shared_memory(), from, 4);
  __pipeline_commit();
  from[0] = 7;
  __pipeline_wait_prior(0);
}

// Each block of a cluster reads what its neighbour wrote.
__global__ void neighbour_kernel(int* out, bool waits) {
  void* const shared = cuda_shim::Machine::get().shared_memory();
  const unsigned rank = __clusterRelativeBlockRank();
  if (threadIdx.x == 0) *static_cast<int*>(shared) = 100 + static_cast<int>(blockIdx.x);
  if (waits) __cluster_barrier_wait();
  const unsigned there = (rank + 1) % 4;
  if (threadIdx.x == 32)
    out[blockIdx.x] = *static_cast<int*>(__cluster_map_shared_rank(shared, there));
  __cluster_barrier_wait();  // the neighbour must not exit before
}

void check_shim_of_shared_memory() {
  Launch launch;
  launch.block.x = 64;
  launch.shared_bytes = 16;
  alignas(16) const float from[8] = {1, 2, 3, 4};
  float out[64];
  CHECK_THROWS(run(launch, no_wait_kernel, from), Error, "has not waited");
  CHECK_THROWS(run(launch, no_wait_kernel, from + 1), Error, "misaligned copy");
  run(launch, wait_kernel, from, out, true);
  CHECK(out[0] == 1 && out[63] == 4);
  launch.delivery = cuda_shim::Delivery::kLatest;
  run(launch, wait_kernel, from, out, false);
  CHECK(out[0] != out[0] && out[63] != out[63]);
  launch.block.x = 1;
  for (size_t newest : {0, 1, 2, 3}) {
    run(launch, wait_for_older_kernel, from, out, newest);
    for (size_t n = 0; n < 3; ++n) CHECK((out[n] == from[n]) == (n + newest < 3));
  }
  float changed[1] = {1};
  CHECK_THROWS(run(launch, changed_source_kernel, changed), Error, "source of a copy changed");
  launch.block.x = 64;
  launch.cluster = 4;
  CHECK_THROWS(run(launch, wait_kernel, from, out, true), Error, "whole clusters");
  launch.grid.x = 8;
  int ranks[8];
  for (bool reverse : {false, true}) {
    launch.reverse_threads = launch.reverse_blocks = reverse;
    run(launch, neighbour_kernel, ranks, true);
    CHECK(ranks[0] == 101 && ranks[3] == 100 && ranks[4] == 105 && ranks[7] == 104);
    run(launch, neighbour_kernel, ranks, false);
    CHECK(ranks[0] != 101 || ranks[3] != 100);  // one of them read too early
  }
}

// Runs a problem and compares all of its outputs; returns the bytes of the table.
std::vector<char> run_and_compare(test::Problem& problem, const std::string& what) {
  problem.reset_outputs();
  problem.row_loss_is_scratch = problem.facts().reduction != test::Reduction::kNone;
  test::run_row_loss(problem.params());
  const std::string wrong = problem.compare();
  CHECK_MESSAGE(wrong.empty(), problem.facts().describe() + ", " + what + ": " + wrong);
  return problem.table.bytes();
}

// Batches that need the pre-pass.
void check_many_rows() {
  for (bool is_unique : {false, true}) {
    for (int64_t threads : {256, 1 << 20}) {
      test::Case facts;
      facts.rows = 5000;
      facts.classes = 3;
      facts.unique_index = is_unique;
      facts.features = test::kIgnored | (is_unique ? 0u : unsigned{test::kDuplicates});
      test::Problem problem(facts);
      test::variation = {};
      test::variation.resident_rows = 7;
      test::variation.most_prepare_threads = threads;
      run_and_compare(problem, std::to_string(threads) + " threads");
    }
  }
}

// One index in all rows, in nine of ten; every index twice; a few indices. The time of a batch must
// not grow with the square of the rows of an index: neither does the number of memory operations.
void check_equal_indices() {
  enum Pattern { kAll, kMost, kPairs, kFew, kPatterns };
  for (int64_t rows : {300, 2100}) {  // found by the blocks, and by the pre-pass
    for (int pattern = 0; pattern < kPatterns; ++pattern) {
      for (int64_t classes : {3, 40, 260}) {
        if (rows > 300 && classes > 3 && pattern != kMost) continue;  // slow
        test::Case facts;
        facts.rows = rows;
        facts.classes = classes;
        facts.features = test::kIgnored | test::kNonFinite | test::kMasked;
        facts.table = classes == 40 ? test::DType::kBFloat16 : test::DType::kFloat32;
        facts.is_stochastic = facts.has_stats = true;
        std::vector<char> first_run;
        for (bool reverse : {false, true}) {
          test::Problem problem(facts);
          std::vector<int64_t> index = problem.index;
          for (int64_t b = 0; b < rows; ++b) {
            if (index[b] < 0) continue;
            if (pattern == kAll || (pattern == kMost && b % 10 != 3)) index[b] = 7;
            if (pattern == kPairs) index[b] = (b * 5) % (rows / 2);
            if (pattern == kFew) index[b] = b * b % 11;
          }
          problem.set_index(index);
          test::variation = {reverse, reverse, false, 50, 1 << 20, {}};
          const int64_t before = cuda_shim::Machine::get().memory_operations;
          const std::string what =
              "pattern " + std::to_string(pattern) + (reverse ? ", reversed" : "");
          const std::vector<char> table = run_and_compare(problem, what);
          const int64_t operations = cuda_shim::Machine::get().memory_operations - before;
          CHECK_MESSAGE(operations < 20 * rows, what + ": " + std::to_string(operations));
          CHECK(first_run.empty() || table == first_run);
          first_run = table;
        }
      }
    }
  }
}

// A table of more rows than 32 bits can count needs the pre-pass in batches of any size.
void check_large_table(const alr_fast::DeviceLimits& limits, const std::vector<int64_t>& classes) {
  unsigned number = 0;
  for (int64_t K : classes) {
    for (test::DType dtype : {test::DType::kFloat32, test::DType::kBFloat16}) {
      ++number;
      test::Case facts;
      facts.classes = K;
      facts.table = dtype;
      facts.seed = number;
      facts.features = test::kIgnored | test::kDuplicates | test::kNonFinite | test::kMasked |
                       test::kLabelled | test::kWrongLabel;
      facts.has_stats = facts.has_weights = true;
      facts.is_stochastic = number % 2 == 0;
      facts.reduction = static_cast<test::Reduction>(number % 3);
      test::Problem problem(facts);
      problem.params().target.size = int64_t{1} << 40;
      test::variation = {number % 2 == 0, number / 2 % 2 == 0, number % 3 == 0, 2, 256, limits};
      run_and_compare(problem, "large table");
    }
  }
}

// A row that is stored by the second launch gets the bits that storing it at once gives.
void check_bits_of_stored_groups(const alr_fast::DeviceLimits& limits,
                                 const std::vector<int64_t>& classes) {
  for (int64_t K : classes) {
    for (test::DType dtype :
         {test::DType::kFloat32, test::DType::kFloat16, test::DType::kBFloat16}) {
      test::Case facts;
      facts.rows = 9;
      facts.classes = K;
      facts.table = dtype;
      facts.is_stochastic = true;
      // Row 8 is the last of its group, row 6 too.
      const auto table_after = [&](const std::vector<int64_t>& index, bool is_unique) {
        facts.unique_index = is_unique;
        test::Problem problem(facts);
        problem.set_index(index);
        test::variation = {};
        test::variation.limits = limits;
        return run_and_compare(problem, is_unique ? "alone" : "in groups");
      };
      CHECK(table_after({4, 9, 4, 1, 9, 4, 9, 2, 4}, false) ==
            table_after({-1, -1, -1, 1, -1, -1, 9, 2, 4}, true));
    }
  }
}

void check_places_of_groups() {
  alr_fast::RowLossParams params;
  alr_fast::GroupMemory groups;
  CHECK(alr_fast::place_groups(params, nullptr, &groups).all == 0);
  params.update = true;
  params.rows = std::numeric_limits<int32_t>::max();
  params.index.data = &params;
  CHECK_THROWS(alr_fast::place_groups(params, nullptr, &groups), std::invalid_argument,
               "from 2147483647 on every index must occur once");
  --params.rows;
  CHECK(alr_fast::place_groups(params, nullptr, &groups).all > 4 * 4 * params.rows);
  CHECK(groups.claim_mask == 0xffffffffu);

  // The indices of a small batch are in shared memory, behind the slots of reductions.
  test::Case facts;
  facts.rows = 14;
  facts.classes = 8192;
  facts.features = test::kDuplicates;
  test::Problem problem(facts);
  alr_fast::RowLossParams& p = problem.params();
  const alr_fast::LaunchPlan plan = alr_fast::launch_plan(p);
  CHECK(plan.shared_memory == plan.indices_at + 64);
  p.unique_index = true;
  CHECK(alr_fast::launch_plan(p).indices_at == -1);
  CHECK(alr_fast::launch_plan(p).shared_memory == plan.indices_at);
}

void check_no_rows() {
  alr_fast::RowLossParams params;  // all pointers null: nothing is launched
  params.classes = 10;
  test::run_row_loss(params);
  CHECK(alr_fast::launch_plan(0, 10, alr_fast::DType::kFloat16, alr_fast::DType::kFloat32).blocks ==
        0);
}

// Varies the order of threads and blocks and the number of rows in flight.
void vary(const alr_fast::DeviceLimits& limits) {
  static unsigned runs = 0;
  ++runs;
  test::variation = {runs % 2 == 0, runs / 2 % 2 == 0, runs % 3 == 0, runs % 5 == 0 ? 100 : 2, 256,
                     limits};
}

}  // namespace

// The argument names a part, so that parts can run in parallel.
int main(int argc, char** argv) {
  const std::string part = argc > 1 ? argv[1] : "";
  alr_fast::DeviceLimits limits;
  test::Backend backend;
  backend.name = "cuda";
  backend.is_cuda = true;
  backend.row_loss = [&](const alr_fast::RowLossParams& params) {
    vary(limits);
    test::run_row_loss(params);
  };
  backend.scale_grad = [&](const alr_fast::ScaleGradParams& params) {
    vary(limits);
    test::run_scale_grad(params);
  };
  if (part == "shim") {
    check_shim();
    check_shim_of_shared_memory();
    check_conversions();
    check_no_rows();
    check_many_rows();
    check_equal_indices();
    check_places_of_groups();
  } else if (part == "sizes") {
    // Odd ones, and both sides of each bound in launch_plan.cpp with and without whole vectors.
    backend.classes = {1,   2,   3,   7,   8,   9,   10,  11,   12,   13,   14,   15,   16,   24,
                       31,  32,  33,  34,  35,  36,  37,  38,   39,   50,   100,  127,  128,  129,
                       130, 136, 255, 256, 257, 260, 264, 1000, 1023, 1024, 1025, 1028, 1032, 2048};
    test::check_sizes(backend);
  } else if (part == "large_sizes") {
    backend.classes = {2049, 2050, 2051, 2052,  2053,  2054,  2055,   2056,
                       4097, 8192, 8193, 16392, 20001, 40008, 131072, 131073};
    test::check_sizes(backend);
    limits = {1};  // a device without clusters
    backend.classes = {8193, 16384, 16385, 20008};
    test::check_sizes(backend);
  } else if (part == "options") {
    test::check_options(backend);
    test::check_mutants(backend);
    test::check_rounding(backend);
    test::check_scale_grad(backend);
    for (int without_clusters : {0, 1}) {
      limits = without_clusters ? alr_fast::DeviceLimits{1} : alr_fast::DeviceLimits();
      const std::vector<int64_t> classes = {10, 37, 256, 300, 2052, 8301, 16401};
      check_large_table(limits, classes);
      check_bits_of_stored_groups(limits, classes);
    }
  } else {
    std::fprintf(stderr, "which part: shim, sizes, large_sizes or options?\n");
    return 2;
  }
  return test::finish(argv[1]);
}
