// Kernels that use csrc/cuda/bulk_copy.cuh in all ways: test_bulk_copy.cpp checks that nothing is
// wrong with them, and mutants of csrc (bulk_copy_mutants.txt) that something is.
#include <cstdint>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "cuda_shim.h"
//
#include "bulk_copy_variations.h"
#include "cuda/bulk_copy.cuh"
#include "first_error.h"

namespace {

using alr_fast::Barrier;
using alr_fast::BulkRow;
using alr_fast::Cached;
using alr_fast::ClusterExchange;
using alr_fast::Ring;
using alr_fast::Scope;
using cuda_shim::Error;
using cuda_shim::Launch;
using test::variations;

std::string describe(const Launch& launch) {
  return std::string(launch.reverse_threads ? "reverse " : "") +
         (launch.newest_first ? "newest first " : "") + "delivery " +
         std::to_string(static_cast<int>(launch.delivery)) + " seed " + std::to_string(launch.seed);
}

// --- the ring: c[b] = 2 a[b] + t[index[b]] and the sum of each row, by persistent blocks ---

struct Rows {
  int64_t count;
  int classes;
  int stride;  // in elements
  const int64_t* index;
};

template <class T>
__host__ __device__ int ring_stage_bytes(int classes) {
  return 2 * alr_fast::whole_lines(classes * static_cast<int>(sizeof(T)));
}

template <int kStages>
constexpr int kBarriers = alr_fast::whole_lines(kStages * alr_fast::kBarrierBytes);

template <int kStages, class T>
__global__ void ring_kernel(const T* a, const T* t, Rows rows, float* c, float* sums) {
  const int stage_bytes = ring_stage_bytes<T>(rows.classes);
  Ring<kStages> ring(alr_fast::shared_memory(), kBarriers<kStages>, stage_bytes);
  const int rank = static_cast<int>(threadIdx.x);
  if (rank == 0) ring.init();
  __syncthreads();
  // Beyond the last row, and for some others, nothing is copied.
  const auto is_there = [&](int64_t b) { return b < rows.count && rows.index[b] >= 0; };
  const auto request = [&](int64_t b) {
    if (rank != 0) return;
    if (!is_there(b)) return ring.expect(0);
    const BulkRow<T> of_a(a + b * rows.stride, rows.classes);
    const BulkRow<T> of_t(t + rows.index[b] * rows.stride, rows.classes);
    ring.expect(of_a.bytes() + of_t.bytes());
    ring.template load<Cached::kOnce>(0, of_a.from(), of_a.bytes());
    ring.template load<Cached::kAgain>(stage_bytes / 2, of_t.from(), of_t.bytes());
  };
  for (int n = 0; n < kStages; ++n, ring.advance()) request(blockIdx.x + n * gridDim.x);
  for (int64_t b = blockIdx.x; b < rows.count; b += gridDim.x, ring.advance()) {
    float sum = 0;
    ring.wait();
    if (is_there(b)) {
      const T* const row_of_a = a + b * rows.stride;
      const T* const row_of_t = t + rows.index[b] * rows.stride;
      const BulkRow<T> of_a(row_of_a, rows.classes), of_t(row_of_t, rows.classes);
      const T* const copy_of_a = of_a.origin(reinterpret_cast<const T*>(ring.stage()));
      const T* const copy_of_t =
          of_t.origin(reinterpret_cast<const T*>(ring.stage() + stage_bytes / 2));
      for (int n = rank; n < rows.classes; n += static_cast<int>(blockDim.x)) {
        const float value = 2 * alr_fast::to_float(of_a.has(n) ? copy_of_a[n] : row_of_a[n]) +
                            alr_fast::to_float(of_t.has(n) ? copy_of_t[n] : row_of_t[n]);
        c[b * rows.classes + n] = value;
        sum += value;
      }
    }
    __syncthreads();
    request(b + kStages * gridDim.x);
    sum = alr_fast::reduce_lanes<alr_fast::kWarpThreads>(0xffffffffu, sum, alr_fast::Add());
    if (rank % alr_fast::kWarpThreads == 0) atomicAdd(&sums[b], sum);
  }
}

struct RingCase {
  int classes;
  int stride;
  int shift;  // elements from an aligned address
  int warps;
};

// The first error found, or nothing.
template <int kStages, class T>
std::string wrong_in_ring(const RingCase& facts) {
  constexpr int kRows = 15, kBlocks = 2;
  const int elements = kRows * facts.stride + facts.shift;
  // Of exactly the size of the rows, so that AddressSanitizer detects accesses beyond.
  const auto values = [&](int factor) {
    std::unique_ptr<T[]> all(new T[elements]);
    for (int n = 0; n < elements; ++n)
      all[n] = alr_fast::from_float<T>(static_cast<float>((n * factor) % 61 + 1));
    return all;
  };
  const auto a_memory = values(7), t_memory = values(11);
  const T *const a = a_memory.get() + facts.shift, *const t = t_memory.get() + facts.shift;
  const int64_t index[kRows] = {3, 0, 6, -1, 5, 2, -1, 1, -1, 14, -1, 8, 12, 10, -1};
  Launch launch;
  launch.grid.x = kBlocks;
  launch.block.x = 32 * facts.warps;
  launch.shared_bytes = kBarriers<kStages> + kStages * ring_stage_bytes<T>(facts.classes);
  for (const Launch& variation : variations(launch)) {
    std::vector<float> c(kRows * facts.classes, -1.f), sums(kRows);
    const std::string where = std::to_string(kStages) + " stages of " +
                              std::to_string(facts.classes) + " from " +
                              std::to_string(facts.shift) + ", " + describe(variation) + ": ";
    try {
      run(variation, ring_kernel<kStages, T>, a, t, Rows{kRows, facts.classes, facts.stride, index},
          c.data(), sums.data());
    } catch (const Error& error) {
      return where + error.what();
    }
    for (int b = 0; b < kRows; ++b) {
      if (index[b] < 0) continue;
      float sum = 0;
      for (int n = 0; n < facts.classes; ++n) {
        const float right = 2 * alr_fast::to_float(a[b * facts.stride + n]) +
                            alr_fast::to_float(t[index[b] * facts.stride + n]);
        if (c[b * facts.classes + n] != right)
          return where + "element " + std::to_string(n) + " of row " + std::to_string(b);
        sum += right;
      }
      if (sums[b] != sum) return where + "sum of row " + std::to_string(b);
    }
  }
  return "";
}

std::string wrong_in_rings() {
  const RingCase cases[] = {
      {64, 64, 0, 1}, {64, 64, 0, 2},   {1, 1, 0, 1},     {3, 5, 1, 2},     {17, 17, 0, 1},
      {37, 37, 2, 2}, {100, 101, 3, 3}, {129, 136, 0, 1}, {515, 515, 5, 2},
  };
  for (const RingCase& facts : cases) {
    for (const std::string& wrong :
         {wrong_in_ring<1, float>(facts), wrong_in_ring<2, float>(facts),
          wrong_in_ring<3, __half>(facts), wrong_in_ring<4, float>(facts)})
      if (!wrong.empty()) return wrong;
  }
  return "";
}

// --- reductions over a cluster ---

struct alignas(16) Sums {
  float values[4];
};

struct AddSums {
  float operator()(float a, float b) const { return a + b; }
  float2 operator()(float2 a, float2 b) const { return {a.x + b.x, a.y + b.y}; }
  Sums operator()(const Sums& a, const Sums& b) const {
    Sums sum;
    for (int n = 0; n < 4; ++n) sum.values[n] = a.values[n] + b.values[n];
    return sum;
  }
};

// Value of a thread in a round.
template <class T>
T value_of(int round, unsigned block, unsigned thread) {
  constexpr int kFloats = sizeof(T) / sizeof(float);
  float values[kFloats];
  for (int n = 0; n < kFloats; ++n)
    values[n] = static_cast<float>((round + 1) * (block % 5 + 1) + (thread + n) % 7);
  T value;
  std::memcpy(&value, values, sizeof(T));
  return value;
}

template <class T, int kWarps>
__global__ void cluster_sum_kernel(int blocks, int rounds, T* sums) {
  constexpr int kReductionBytes = alr_fast::reduction_bytes(32 * kWarps, false);
  ClusterExchange pushed(alr_fast::shared_memory() + kReductionBytes, blocks,
                         static_cast<int>(__clusterRelativeBlockRank()));
  if (threadIdx.x == 0) pushed.init();
  __syncthreads();
  __cluster_barrier_wait();
  alr_fast::BlockGroup<kWarps> block;
  for (int round = 0; round < rounds; ++round) {
    T value = value_of<T>(round, blockIdx.x, threadIdx.x);
    value = pushed.exchange(block.reduce(value, AddSums()));
    for (int step = blocks / 2; step > 0; step /= 2)
      value = AddSums()(value, alr_fast::shuffle_xor(0xffffffffu, value, step));
    sums[(round * gridDim.x + blockIdx.x) * blockDim.x + threadIdx.x] = value;
  }
}

template <class T, int kWarps>
std::string wrong_in_cluster_sum(unsigned blocks, int rounds) {
  constexpr unsigned threads = 32 * kWarps;
  Launch launch;
  launch.grid.x = 2 * blocks;
  launch.block.x = threads;
  launch.cluster = blocks;
  launch.shared_bytes = alr_fast::reduction_bytes(threads, false) + alr_fast::kPushBytes;
  for (const Launch& variation : variations(launch)) {
    const std::string where = "cluster of " + std::to_string(blocks) + ", " +
                              std::to_string(threads) + " threads, " + describe(variation) + ": ";
    std::vector<T> sums(rounds * launch.grid.x * threads);
    try {
      run(variation, cluster_sum_kernel<T, kWarps>, static_cast<int>(blocks), rounds, sums.data());
    } catch (const Error& error) {
      return where + error.what();
    }
    for (int round = 0; round < rounds; ++round)
      for (unsigned block = 0; block < launch.grid.x; ++block) {
        T right = {};
        const unsigned first = block / blocks * blocks;
        for (unsigned n = 0; n < blocks * threads; ++n)
          right = AddSums()(right, value_of<T>(round, first + n / threads, n % threads));
        for (unsigned thread = 0; thread < threads; ++thread) {
          const T& sum = sums[(round * launch.grid.x + block) * threads + thread];
          if (std::memcmp(&sum, &right, sizeof(T)) != 0)
            return where + "round " + std::to_string(round) + ", block " + std::to_string(block) +
                   ", thread " + std::to_string(thread);
        }
      }
  }
  return "";
}

std::string wrong_in_cluster_sums() {
  for (const std::string& wrong :
       {wrong_in_cluster_sum<Sums, 1>(1, 3), wrong_in_cluster_sum<Sums, 1>(2, 5),
        wrong_in_cluster_sum<float, 4>(4, 6), wrong_in_cluster_sum<float2, 2>(2, 4),
        wrong_in_cluster_sum<Sums, 2>(16, 4), wrong_in_cluster_sum<float, 1>(16, 5)})
    if (!wrong.empty()) return wrong;
  return "";
}

// Each block passes a turn on to the next one of its cluster, twice around.
__global__ void turns_kernel(int* order, int* taken) {
  auto* const turn = reinterpret_cast<Barrier*>(alr_fast::shared_memory());
  const unsigned rank = __clusterRelativeBlockRank(), blocks = gridDim.x;
  if (threadIdx.x == 0) {
    turn->init(1);
    Barrier::fence_init();
  }
  __cluster_barrier_wait();
  if (threadIdx.x == 0) {
    for (unsigned round = 0; round < 2; ++round) {
      if (rank + round > 0) turn->wait<Scope::kCluster>(rank == 0 ? 0 : round);
      order[(*taken)++] = static_cast<int>(blockIdx.x);
      if (rank + 1 < blocks || round == 0) turn->arrive_remote((rank + 1) % blocks);
    }
  }
  __cluster_barrier_wait();
}

std::string wrong_in_turns() {
  Launch launch;
  launch.grid.x = launch.cluster = 4;
  launch.block.x = 32;
  launch.shared_bytes = sizeof(Barrier);
  for (const Launch& variation : variations(launch)) {
    int order[8] = {}, taken = 0;
    try {
      run(variation, turns_kernel, order, &taken);
    } catch (const Error& error) {
      return "turns, " + describe(variation) + ": " + error.what();
    }
    for (int n = 0; n < 8; ++n)
      if (order[n] != n % 4) return "turns, " + describe(variation);
  }
  return "";
}

}  // namespace

std::string test::first_error() {
  for (const auto wrong_in : {wrong_in_rings, wrong_in_cluster_sums, wrong_in_turns}) {
    const std::string wrong = wrong_in();
    if (!wrong.empty()) return wrong;
  }
  return "";
}
