// Tests of csrc/cuda/bulk_copy.cuh and of what cuda_shim.h finds wrong in its use. With the
// argument "fails", built from a wrong copy of csrc (bulk_copy_mutants.txt), its kernels must fail.
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "check.h"
#include "cuda_shim.h"
//
#include "cuda/bulk_copy.cuh"

#if defined(__SANITIZE_ADDRESS__)
// A fiber that is stopped by an error leaks its allocations: the message.
extern "C" __attribute__((visibility("default"))) const char* __asan_default_options() {
  return "detect_leaks=0";
}
#endif

namespace {

using alr_fast::Barrier;
using alr_fast::BulkRow;
using alr_fast::Cached;
using alr_fast::ClusterExchange;
using alr_fast::Ring;
using alr_fast::Scope;
using cuda_shim::Delivery;
using cuda_shim::Error;
using cuda_shim::Launch;

// All orders of threads and blocks, and times of delivery.
std::vector<Launch> variations(Launch launch) {
  std::vector<Launch> all;
  for (const bool reverse : {false, true}) {
    launch.reverse_threads = launch.reverse_blocks = reverse;
    for (const bool newest_first : {false, true}) {
      launch.newest_first = newest_first;
      launch.seed = 1;
      launch.delivery = Delivery::kEarliest;
      all.push_back(launch);
      launch.delivery = Delivery::kLatest;
      all.push_back(launch);
      launch.delivery = Delivery::kRandom;
      for (launch.seed = 1; launch.seed <= 3; ++launch.seed) all.push_back(launch);
    }
  }
  return all;
}

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
__global__ void cluster_sum_kernel(int blocks, int rounds, T* sums, bool meets) {
  constexpr int kReductionBytes = alr_fast::reduction_bytes(32 * kWarps, false);
  ClusterExchange pushed(alr_fast::shared_memory() + kReductionBytes, blocks,
                         static_cast<int>(__clusterRelativeBlockRank()));
  if (threadIdx.x == 0) pushed.init();
  __syncthreads();
  if (meets) __cluster_barrier_wait();
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
      run(variation, cluster_sum_kernel<T, kWarps>, static_cast<int>(blocks), rounds, sums.data(),
          true);
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

std::string wrong_in_any() {
  for (const auto wrong_in : {wrong_in_rings, wrong_in_cluster_sums, wrong_in_turns}) {
    const std::string wrong = wrong_in();
    if (!wrong.empty()) return wrong;
  }
  return "";
}

// --- errors that the shim must detect ---

// What is wrong with a copy of 64 bytes by thread 0, which the other threads read.
struct Mistake {
  bool no_init = false, second_init = false, no_fence = false;
  int arrivals = 1, expected = 64, copied = 64, to = 64, shift = 0;
  bool no_arrival = false, second_arrival = false, no_wait = false;
  unsigned parity = 0;
  bool second_copy = false, changed_source = false, overwritten = false, is_unaligned = false;
};

__global__ void copy_kernel(float* from, float* out, Mistake mistake) {
  unsigned char* const shared = alr_fast::shared_memory();
  auto* const barrier = reinterpret_cast<uint64_t*>(shared + (mistake.is_unaligned ? 4 : 0));
  namespace ptx = cuda_shim::ptx;
  if (threadIdx.x == 0) {
    if (!mistake.no_init) ptx::barrier_init(barrier, mistake.arrivals);
    if (mistake.second_init) ptx::barrier_init(barrier, mistake.arrivals);
    if (!mistake.no_fence) ptx::fence_barrier_init();
    if (mistake.overwritten) *reinterpret_cast<float*>(barrier) = 1;
    if (!mistake.no_arrival) ptx::barrier_arrive_expect(barrier, mistake.expected);
    ptx::bulk_load(shared + mistake.to, from + mistake.shift, mistake.copied, barrier);
    if (mistake.second_copy)
      ptx::bulk_load(shared + mistake.to + 32, from, mistake.copied, barrier);
    if (mistake.second_arrival) ptx::barrier_arrive(barrier);
    if (mistake.changed_source) from[1] = 7;
  }
  __syncthreads();
  if (!mistake.no_wait)
    while (!ptx::barrier_try_wait(barrier, mistake.parity)) {
    }
  if (threadIdx.x > 0) out[threadIdx.x] = reinterpret_cast<const float*>(shared + 64)[threadIdx.x];
  __syncthreads();
  if (threadIdx.x == 0)
    while (!ptx::barrier_try_wait(barrier, 0)) {
    }
}

std::unique_ptr<float[]> sixteen() {
  std::unique_ptr<float[]> values(new float[16]);
  for (int n = 0; n < 16; ++n) values[n] = static_cast<float>(n);
  return values;
}

void check_mistakes() {
  Launch launch;
  launch.block.x = 16;
  launch.shared_bytes = 192;
  for (const Launch& variation : variations(launch)) {
    const auto from = sixteen();
    float out[16];
    const auto runs = [&](auto change) {
      Mistake mistake;
      change(mistake);
      run(variation, copy_kernel, from.get(), out, mistake);
    };
    runs([](Mistake&) {});
    CHECK(out[1] == 1 && out[15] == 15);
    CHECK_THROWS(runs([](Mistake& m) { m.no_init = true; }), Error, "was not initialised");
    CHECK_THROWS(runs([](Mistake& m) { m.second_init = true; }), Error, "initialised twice");
    CHECK_THROWS(runs([](Mistake& m) { m.no_fence = true; }), Error, "without a fence");
    CHECK_THROWS(runs([](Mistake& m) { m.arrivals = 0; }), Error, "for 0 arrivals");
    CHECK_THROWS(runs([](Mistake& m) { m.overwritten = true; }), Error, "has been overwritten");
    CHECK_THROWS(runs([](Mistake& m) { m.is_unaligned = true; }), Error, "misaligned barrier");
    CHECK_THROWS(runs([](Mistake& m) { m.expected = 48; }), Error,
                 "more bytes arrived than were expected");
    CHECK_THROWS(
        runs([](Mistake& m) { m.expected = 80; }), Error,
        "parity 0, byte 0 of shared memory: phase 0, 0 of 1 arrivals and 16 bytes missing");
    CHECK_THROWS(runs([](Mistake& m) { m.expected = 1 << 20; }), Error, "too many bytes");
    CHECK_THROWS(runs([](Mistake& m) { m.no_arrival = true; }), Error,
                 "phase 0, 1 of 1 arrivals and -64 bytes missing");
    CHECK_THROWS(runs([](Mistake& m) { m.arrivals = 2; }), Error, "0 of 16 have ended");
    CHECK_THROWS(runs([](Mistake& m) { m.parity = 2; }), Error, "the parity is 2");
    CHECK_THROWS(runs([](Mistake& m) { m.copied = 40; }), Error, "misaligned bulk copy");
    CHECK_THROWS(runs([](Mistake& m) { m.to = 72; }), Error, "misaligned bulk copy");
    CHECK_THROWS(runs([](Mistake& m) { m.shift = 1; }), Error, "misaligned bulk copy");
    CHECK_THROWS(runs([](Mistake& m) { m.to = 144; }), Error, "out of the bounds");
#if defined(__SANITIZE_ADDRESS__)
    CHECK_THROWS(runs([](Mistake& m) { m.shift = 4; }), Error, "reads out of bounds");
#endif
    const bool is_early = variation.delivery == Delivery::kEarliest;
    if (variation.delivery == Delivery::kRandom) continue;
    CHECK_THROWS(runs([](Mistake& m) { m.second_arrival = true; }), Error,
                 is_early ? "0 of 16 have ended" : "more arrivals than the barrier");
    CHECK_THROWS(runs([](Mistake& m) { m.second_copy = true; }), Error,
                 is_early ? "64 bytes have arrived that no one expected"
                          : "two transfers to the same place");
    if (is_early) continue;
    CHECK_THROWS(runs([](Mistake& m) { m.changed_source = true; }), Error, "source of a copy");
    runs([](Mistake& m) { m.no_wait = true; });
    CHECK(out[1] != out[1] && out[15] != out[15]);
    runs([](Mistake& m) { m.parity = 1; });
    CHECK(out[1] != out[1] && out[15] != out[15]);
  }
}

// Two copies of 32 bytes of which only one is expected: the phase ends after either.
__global__ void half_expected_kernel(const float* from) {
  unsigned char* const shared = alr_fast::shared_memory();
  auto* const barrier = reinterpret_cast<Barrier*>(shared);
  barrier->init(1);
  Barrier::fence_init();
  alr_fast::bulk_load<Cached::kOnce>(shared + 64, from, 32, *barrier);
  alr_fast::bulk_load<Cached::kOnce>(shared + 96, from + 8, 32, *barrier);
  barrier->arrive_expect(32);
  barrier->wait(0);
  barrier->wait(1);
}

// A copy whose bytes are counted, but that no one has waited for.
__global__ void no_wait_kernel(const float* from) {
  unsigned char* const shared = alr_fast::shared_memory();
  auto* const barrier = reinterpret_cast<Barrier*>(shared);
  barrier->init(1);
  Barrier::fence_init();
  barrier->arrive_expect(64);
  alr_fast::bulk_load<Cached::kOnce>(shared + 64, from, 64, *barrier);
}

__global__ void misaligned_store_kernel() {
  auto* const barrier = reinterpret_cast<Barrier*>(alr_fast::shared_memory());
  barrier->init(1);
  Barrier::fence_init();
  auto* const slot = reinterpret_cast<float2*>(alr_fast::shared_memory() + 68);
  alr_fast::store_remote(slot, float2{1, 2}, *barrier, 0);
}

__global__ void misaligned_ring_kernel() { Ring<2> ring(alr_fast::shared_memory() + 64, 128, 128); }

void check_other_mistakes() {
  Launch launch;
  launch.shared_bytes = 192;
  const auto from = sixteen();
  launch.delivery = Delivery::kEarliest;
  CHECK_THROWS(run(launch, half_expected_kernel, from.get()), Error, "more bytes arrived");
  launch.delivery = Delivery::kLatest;
  CHECK_THROWS(run(launch, half_expected_kernel, from.get()), Error, "too few were expected");
  CHECK_THROWS(run(launch, no_wait_kernel, from.get()), Error, "exits with data on their way");
  CHECK_THROWS(run(launch, misaligned_store_kernel), Error, "kBytes == 0");
  CHECK_THROWS(run(launch, misaligned_ring_kernel), Error, "kStageAlignment == 0");
}

enum class Remote { kStore, kArrive, kRead };

// Block 1 reaches for the shared memory of block 0, which may have exited.
__global__ void exited_kernel(Remote remote, bool stays) {
  auto* const barrier = reinterpret_cast<Barrier*>(alr_fast::shared_memory());
  auto* const slot = reinterpret_cast<float*>(barrier + 1);
  const unsigned rank = __clusterRelativeBlockRank();
  const bool is_first = threadIdx.x == 0;
  if (is_first) {
    barrier->init(1);
    Barrier::fence_init();
    *slot = 1;
  }
  __cluster_barrier_wait();
  if (rank == 0 && is_first && remote == Remote::kStore) barrier->arrive_expect(sizeof(float));
  __cluster_barrier_wait();
  if (rank == 1) {
    __syncthreads();  // block 0 continues first
    if (is_first && remote == Remote::kStore) alr_fast::store_remote(slot, 2.f, *barrier, 0);
    if (is_first && remote == Remote::kArrive) barrier->arrive_remote(0);
    if (is_first && remote == Remote::kRead)
      CHECK(*static_cast<float*>(__cluster_map_shared_rank(slot, 0)) == 1);
  } else if (stays && remote != Remote::kRead) {
    barrier->wait<Scope::kCluster>(0);
  }
  if (stays) __cluster_barrier_wait();
}

void check_exits() {
  Launch launch;
  launch.block.x = 32;
  launch.grid.x = launch.cluster = 2;
  launch.shared_bytes = sizeof(Barrier) + sizeof(float);
  for (const Remote remote : {Remote::kStore, Remote::kArrive, Remote::kRead}) {
    int exited = 0;
    for (const Launch& variation : variations(launch)) {
      run(variation, exited_kernel, remote, true);
      try {
        run(variation, exited_kernel, remote, false);
      } catch (const Error& error) {
        const std::string message = error.what();
        exited += message.find("a block that has exited") != std::string::npos ||
                  message.find("data on their way") != std::string::npos;
      }
    }
    CHECK(exited >= 10);  // of 20 orders
  }
}

// A cluster whose blocks do not wait until the barriers of the others are initialised.
void check_cluster_without_meeting() {
  Launch launch;
  launch.block.x = 32;
  launch.grid.x = launch.cluster = 4;
  launch.shared_bytes = alr_fast::reduction_bytes(32, false) + alr_fast::kPushBytes;
  float sums[4 * 32];
  int found = 0;
  for (const Launch& variation : variations(launch)) {
    try {
      run(variation, cluster_sum_kernel<float, 1>, 4, 1, sums, false);
    } catch (const Error& error) {
      found += std::string(error.what()).find("was not initialised") != std::string::npos;
    }
  }
  CHECK(found >= 10);  // of 20 orders
}

}  // namespace

int main(int argc, char** argv) {
  const bool must_fail = argc > 1 && std::strcmp(argv[1], "fails") == 0;
  const std::string wrong = wrong_in_any();
  if (must_fail) {
    std::printf("%s\n", wrong.empty() ? "nothing is wrong" : wrong.c_str());
    return wrong.empty() ? 1 : 0;
  }
  CHECK_MESSAGE(wrong.empty(), wrong);
  check_mistakes();
  check_other_mistakes();
  check_exits();
  check_cluster_without_meeting();
  return test::finish("bulk_copy");
}
