// Tests of csrc/cuda/bulk_copy.cuh (bulk_copy_cases.cpp), and of what cuda_shim.h finds wrong in
// its use.
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "check.h"
#include "cuda_shim.h"
//
#include "bulk_copy_variations.h"
#include "cuda/bulk_copy.cuh"
#include "first_error.h"

namespace {

using alr_fast::Barrier;
using alr_fast::Cached;
using alr_fast::ClusterExchange;
using alr_fast::Ring;
using alr_fast::Scope;
using cuda_shim::Delivery;
using cuda_shim::Error;
using cuda_shim::Launch;
using test::variations;

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
#if defined(CUDA_SHIM_ADDRESS_SANITIZER)
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
__global__ void push_without_meeting_kernel() {
  ClusterExchange pushed(alr_fast::shared_memory(), 4,
                         static_cast<int>(__clusterRelativeBlockRank()));
  if (threadIdx.x == 0) pushed.init();
  __syncthreads();
  pushed.exchange(1.f);
}

void check_cluster_without_meeting() {
  Launch launch;
  launch.block.x = 32;
  launch.grid.x = launch.cluster = 4;
  launch.shared_bytes = alr_fast::kPushBytes;
  int found = 0;
  for (const Launch& variation : variations(launch)) {
    try {
      run(variation, push_without_meeting_kernel);
    } catch (const Error& error) {
      found += std::string(error.what()).find("was not initialised") != std::string::npos;
    }
  }
  CHECK(found >= 10);  // of 20 orders
}

}  // namespace

int main() {
  const std::string wrong = test::first_error();
  CHECK_MESSAGE(wrong.empty(), wrong);
  check_mistakes();
  check_other_mistakes();
  check_exits();
  check_cluster_without_meeting();
  return test::finish("bulk_copy");
}
