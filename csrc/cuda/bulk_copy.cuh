// Bulk copies into shared memory and stores into that of other blocks. Both are asynchronous: they
// count their bytes on a barrier in shared memory, where threads wait for them. On devices below
// compute capability 9.0 everything here traps: the launcher never requests it.
#pragma once

#include <cstdint>

#include "launch_plan.h"
#include "memory.cuh"
#include "reduce.cuh"

namespace alr_fast {

// The instructions, whose operands are places in this block's shared memory; those with a rank act
// on the same place in block `rank` of the cluster.
#if defined(ALR_FAST_KERNELS_ON_CPU)
namespace ptx = cuda_shim::ptx;
#else
namespace ptx {

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
#define ALR_FAST_ASM_SM90 asm volatile
#else
#define ALR_FAST_ASM_SM90(...) __trap()
#endif

__device__ __forceinline__ uint32_t shared_address(const void* at) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(at));
}

// clang-format off: it breaks these lines between any two operands.
__device__ __forceinline__ uint32_t remote_address(const void* mine, unsigned rank) {
  uint32_t there = 0;
  ALR_FAST_ASM_SM90("mapa.shared::cluster.u32 %0, %1, %2;"
                    : "=r"(there) : "r"(shared_address(mine)), "r"(rank));
  return there;
}

__device__ __forceinline__ void barrier_init(uint64_t* barrier, unsigned count) {
  ALR_FAST_ASM_SM90("mbarrier.init.shared::cta.b64 [%0], %1;"
                    : : "r"(shared_address(barrier)), "r"(count) : "memory");
}

__device__ __forceinline__ void fence_barrier_init() {
  ALR_FAST_ASM_SM90("fence.mbarrier_init.release.cluster;" : : : "memory");
}

__device__ __forceinline__ void barrier_arrive(uint64_t* barrier) {
  ALR_FAST_ASM_SM90("mbarrier.arrive.release.cta.shared::cta.b64 _, [%0];"
                    : : "r"(shared_address(barrier)) : "memory");
}

__device__ __forceinline__ void barrier_arrive_expect(uint64_t* barrier, unsigned bytes) {
  ALR_FAST_ASM_SM90("mbarrier.arrive.expect_tx.release.cta.shared::cta.b64 _, [%0], %1;"
                    : : "r"(shared_address(barrier)), "r"(bytes) : "memory");
}

__device__ __forceinline__ void barrier_arrive_remote(uint64_t* barrier, unsigned rank) {
  ALR_FAST_ASM_SM90("mbarrier.arrive.release.cluster.shared::cluster.b64 _, [%0];"
                    : : "r"(remote_address(barrier, rank)) : "memory");
}

__device__ __forceinline__ bool barrier_try_wait(uint64_t* barrier, unsigned parity) {
  uint32_t is_complete = 0;
  ALR_FAST_ASM_SM90("{\n"
                    ".reg .pred p;\n"
                    "mbarrier.try_wait.parity.acquire.cta.shared::cta.b64 p, [%1], %2;\n"
                    "selp.b32 %0, 1, 0, p;\n"
                    "}"
                    : "=r"(is_complete) : "r"(shared_address(barrier)), "r"(parity) : "memory");
  return is_complete != 0;
}

__device__ __forceinline__ bool barrier_try_wait_cluster(uint64_t* barrier, unsigned parity) {
  uint32_t is_complete = 0;
  ALR_FAST_ASM_SM90("{\n"
                    ".reg .pred p;\n"
                    "mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 p, [%1], %2;\n"
                    "selp.b32 %0, 1, 0, p;\n"
                    "}"
                    : "=r"(is_complete) : "r"(shared_address(barrier)), "r"(parity) : "memory");
  return is_complete != 0;
}

__device__ __forceinline__ void bulk_load(void* to, const void* from, unsigned bytes,
                                          uint64_t* barrier) {
  ALR_FAST_ASM_SM90("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes"
                    " [%0], [%1], %2, [%3];"
                    : : "r"(shared_address(to)), "l"(__cvta_generic_to_global(from)), "r"(bytes),
                        "r"(shared_address(barrier)) : "memory");
}

__device__ __forceinline__ void bulk_load_evict_first(void* to, const void* from, unsigned bytes,
                                                      uint64_t* barrier) {
  ALR_FAST_ASM_SM90("{\n"
                    ".reg .b64 policy;\n"
                    "createpolicy.fractional.L2::evict_first.b64 policy, 1.0;\n"
                    "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes"
                    ".L2::cache_hint [%0], [%1], %2, [%3], policy;\n"
                    "}"
                    : : "r"(shared_address(to)), "l"(__cvta_generic_to_global(from)), "r"(bytes),
                        "r"(shared_address(barrier)) : "memory");
}

__device__ __forceinline__ void store_remote(void* to, uint32_t word, uint64_t* barrier,
                                             unsigned rank) {
  ALR_FAST_ASM_SM90("st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.b32"
                    " [%0], %1, [%2];"
                    : : "r"(remote_address(to, rank)), "r"(word),
                        "r"(remote_address(barrier, rank)) : "memory");
}

__device__ __forceinline__ void store_remote(void* to, uint2 words, uint64_t* barrier,
                                             unsigned rank) {
  ALR_FAST_ASM_SM90("st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.v2.b32"
                    " [%0], {%1, %2}, [%3];"
                    : : "r"(remote_address(to, rank)), "r"(words.x), "r"(words.y),
                        "r"(remote_address(barrier, rank)) : "memory");
}

__device__ __forceinline__ void store_remote(void* to, uint4 words, uint64_t* barrier,
                                             unsigned rank) {
  ALR_FAST_ASM_SM90("st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.v4.b32"
                    " [%0], {%1, %2, %3, %4}, [%5];"
                    : : "r"(remote_address(to, rank)), "r"(words.x), "r"(words.y), "r"(words.z),
                        "r"(words.w), "r"(remote_address(barrier, rank)) : "memory");
}
// clang-format on

#undef ALR_FAST_ASM_SM90

}  // namespace ptx
#endif

// Whose writes and arrivals a thread waits for. A wait for other blocks invalidates the L1 cache.
enum class Scope { kBlock, kCluster };

// Lies in shared memory. A phase ends when `count` threads have arrived and all expected bytes have
// been written; then the next one begins. Phases have parities 0, 1, 0, ...
class Barrier {
 public:
  // Called once, by one thread, which calls fence_init() after the last of its barriers. Others,
  // and copies, may use them once the block (for remote use: the cluster) has met.
  __device__ __forceinline__ void init(int count) { ptx::barrier_init(&word_, count); }
  __device__ __forceinline__ static void fence_init() { ptx::fence_barrier_init(); }

  __device__ __forceinline__ void arrive() { ptx::barrier_arrive(&word_); }

  // `bytes` more in this phase; some or all of them may have been written already.
  __device__ __forceinline__ void arrive_expect(int bytes) {
    ptx::barrier_arrive_expect(&word_, bytes);
  }

  // At the same barrier of block `rank` of the cluster.
  __device__ __forceinline__ void arrive_remote(unsigned rank) {
    ptx::barrier_arrive_remote(&word_, rank);
  }

  // Waits for the end of the phase of this parity, which is the current one or the one before it.
  // At a fresh barrier a wait with parity 1 therefore returns at once.
  template <Scope kScope = Scope::kBlock>
  __device__ __forceinline__ void wait(unsigned parity) {
    while (!try_wait<kScope>(parity)) {
    }
  }

  // Waits for some time at most; returns whether the phase has ended.
  template <Scope kScope = Scope::kBlock>
  __device__ __forceinline__ bool try_wait(unsigned parity) {
    if constexpr (kScope == Scope::kCluster) return ptx::barrier_try_wait_cluster(&word_, parity);
    return ptx::barrier_try_wait(&word_, parity);
  }

  __device__ __forceinline__ uint64_t* word() { return &word_; }

 private:
  uint64_t word_;
};

// Starts to copy from device memory to shared memory, by one thread. Addresses and size are
// multiples of 16 bytes; the source must not change before the copy is complete.
template <Cached kCached>
__device__ __forceinline__ void bulk_load(void* to, const void* from, int bytes, Barrier& barrier) {
  ALR_DEVICE_CHECK(reinterpret_cast<uintptr_t>(to) % kAccessBytes == 0);
  ALR_DEVICE_CHECK(reinterpret_cast<uintptr_t>(from) % kAccessBytes == 0);
  ALR_DEVICE_CHECK(bytes > 0 && bytes % kAccessBytes == 0);
  if constexpr (kCached == Cached::kOnce) {
    ptx::bulk_load_evict_first(to, from, bytes, barrier.word());
  } else {
    ptx::bulk_load(to, from, bytes, barrier.word());
  }
}

// Starts to store a value to the place of *mine in block `rank` of the cluster; its bytes count on
// the same barrier there.
template <class T>
__device__ __forceinline__ void store_remote(T* mine, const T& value, Barrier& barrier,
                                             unsigned rank) {
  constexpr int kBytes = sizeof(T) < kAccessBytes ? sizeof(T) : kAccessBytes;
  static_assert(kBytes >= 4 && sizeof(T) % kBytes == 0, "4, 8, or a multiple of 16 bytes");
  using Word = typename WordOf<kBytes>::Type;
  ALR_DEVICE_CHECK(reinterpret_cast<uintptr_t>(mine) % kBytes == 0);
  Word words[sizeof(T) / kBytes];
  __builtin_memcpy(words, &value, sizeof(T));
#pragma unroll
  for (int n = 0; n < static_cast<int>(sizeof(T) / kBytes); ++n)
    ptx::store_remote(reinterpret_cast<Word*>(mine) + n, words[n], barrier.word(), rank);
}

// Division of `count` elements at any alignment into 16-byte accesses.
template <class T>
struct Accesses {
  static constexpr int kPerAccess = kAccessBytes / sizeof(T);
  int head, whole, tail;  // elements before the first whole access, whole accesses, elements after

  __device__ __forceinline__ Accesses(const T* at, int count) {
    const auto past = static_cast<int>(reinterpret_cast<uintptr_t>(at) % kAccessBytes);
    head = min(count, (kAccessBytes - past) % kAccessBytes / static_cast<int>(sizeof(T)));
    whole = (count - head) / kPerAccess;
    tail = count - head - whole * kPerAccess;
  }
};

// What a bulk copy can take of a row at any alignment. The rest, less than 16 bytes at each end, is
// read from device memory.
template <class T>
class BulkRow {
 public:
  __device__ __forceinline__ BulkRow(const T* row, int count)
      : row_(row), accesses_(row, count), end_(count - accesses_.tail) {}

  __device__ __forceinline__ const T* from() const { return row_ + accesses_.head; }
  __device__ __forceinline__ int bytes() const { return accesses_.whole * kAccessBytes; }

  // Element n of the row, after the copy to `copied`.
  __device__ __forceinline__ T element(const T* copied, int n) const {
    return n >= accesses_.head && n < end_ ? copied[n - accesses_.head] : row_[n];
  }

 private:
  const T* row_;
  Accesses<T> accesses_;
  int end_;
};

constexpr int kStageAlignment = 128;  // of stages: whole cache lines

__host__ __device__ constexpr int whole_lines(int bytes) {
  return (bytes + kStageAlignment - 1) / kStageAlignment * kStageAlignment;
}

// Stages in shared memory which one thread fills by bulk copies and several warps read, each with a
// barrier for "full" (the producer and its bytes) and one for "empty" (the consumers).
template <int kStages>
class Ring {
 public:
  // Of shared memory.
  __host__ __device__ static constexpr int bytes(int stage_bytes) {
    return kBarrierBytes + kStages * whole_lines(stage_bytes);
  }

  __device__ __forceinline__ Ring(unsigned char* memory, int stage_bytes)
      : memory_(memory), stage_bytes_(whole_lines(stage_bytes)) {
    ALR_DEVICE_CHECK(reinterpret_cast<uintptr_t>(memory) % kStageAlignment == 0);
  }

  // By one thread, before the block meets.
  __device__ __forceinline__ void init(int consumer_warps) {
    for (int stage = 0; stage < kStages; ++stage) {
      full(stage).init(1);
      empty(stage).init(consumer_warps);
    }
    Barrier::fence_init();
  }

  __device__ __forceinline__ Barrier& full(int stage) const { return barriers()[stage]; }
  __device__ __forceinline__ Barrier& empty(int stage) const { return barriers()[kStages + stage]; }
  __device__ __forceinline__ unsigned char* slot(int stage) const {
    return memory_ + kBarrierBytes + stage * stage_bytes_;
  }

  // Of a producer or a consumer, in registers.
  struct Position {
    int stage = 0;
    unsigned parity = 0;

    __device__ __forceinline__ void advance() {
      if (++stage < kStages) return;
      stage = 0;
      parity ^= 1;
    }
  };

 private:
  static constexpr int kBarrierBytes = whole_lines(2 * kStages * sizeof(Barrier));

  __device__ __forceinline__ Barrier* barriers() const {
    return reinterpret_cast<Barrier*>(memory_);
  }

  unsigned char* memory_;
  int stage_bytes_;
};

// One thread: acquire(), any number of load(), commit().
template <int kStages>
class RingProducer {
 public:
  __device__ __forceinline__ explicit RingProducer(const Ring<kStages>& ring) : ring_(ring) {}

  // Waits until all consumers have released what the next stage held.
  __device__ __forceinline__ void acquire() { ring_.empty(at_.stage).wait(at_.parity ^ 1); }

  // To `offset` bytes from the start of the stage; nothing is done for 0 bytes.
  template <Cached kCached>
  __device__ __forceinline__ void load(int offset, const void* from, int bytes) {
    if (bytes == 0) return;
    bulk_load<kCached>(ring_.slot(at_.stage) + offset, from, bytes, ring_.full(at_.stage));
    bytes_ += bytes;
  }

  // The phase cannot end before, so the bytes may be counted after the copies.
  __device__ __forceinline__ void commit() {
    ring_.full(at_.stage).arrive_expect(bytes_);
    bytes_ = 0;
    at_.advance();
  }

 private:
  Ring<kStages> ring_;
  typename Ring<kStages>::Position at_;
  int bytes_ = 0;
};

// All threads of a warp: wait(), reads, release().
template <int kStages>
class RingConsumer {
 public:
  __device__ __forceinline__ explicit RingConsumer(const Ring<kStages>& ring) : ring_(ring) {}

  // Returns the stage.
  __device__ __forceinline__ const unsigned char* wait() {
    ring_.full(at_.stage).wait(at_.parity);
    return ring_.slot(at_.stage);
  }

  __device__ __forceinline__ void release() {
    __syncwarp();  // all lanes have read
    if (threadIdx.x % kWarpThreads == 0) ring_.empty(at_.stage).arrive();
    at_.advance();
  }

 private:
  Ring<kStages> ring_;
  typename Ring<kStages>::Position at_;
};

// Reductions over the threads of a cluster: each warp pushes its partial result to every block.
template <class T>
class ClusterReducer {
 public:
  // Of shared memory, at a multiple of 16 bytes.
  __host__ __device__ static constexpr int bytes(int warps_of_cluster) {
    return kBarrierBytes + kSlots * warps_of_cluster * static_cast<int>(sizeof(T));
  }

  // For block `rank` of `blocks`.
  __device__ __forceinline__ ClusterReducer(unsigned char* memory, int blocks, int rank)
      : memory_(memory), blocks_(blocks), rank_(rank) {}

  // By one thread of each block, before the cluster meets.
  __device__ __forceinline__ void init() {
    for (int slot = 0; slot < kSlots; ++slot) barrier(slot).init(1);
    Barrier::fence_init();
  }

  // Called by all threads. The order of operations is fixed. After the last reduction a block may
  // exit: everything that is pushed to it has arrived.
  template <class Op>
  __device__ __forceinline__ T reduce(T value, Op op) {
    value = reduce_lanes<kWarpThreads>(0xffffffffu, value, op);
    const int lane = threadIdx.x % kWarpThreads;
    const int warps = blockDim.x / kWarpThreads, all_warps = blocks_ * warps;
    T* const partials = reinterpret_cast<T*>(memory_ + kBarrierBytes) + slot_ * all_warps;
    Barrier& arrived = barrier(slot_);
    if (threadIdx.x == 0) arrived.arrive_expect(all_warps * static_cast<int>(sizeof(T)));
    if (lane < blocks_) {
      const int warp = rank_ * warps + threadIdx.x / kWarpThreads;
      store_remote(partials + warp, value, arrived, lane);
    }
    arrived.wait<Scope::kCluster>(parity_);
    // Two slots need no barrier against a fast warp that overwrites a partial result before a slow
    // warp has read it: it comes back to this slot only after all warps have pushed to the other
    // one, which they do after these reads.
    if (++slot_ == kSlots) {
      slot_ = 0;
      parity_ ^= 1;
    }
    int width = kWarpThreads;  // lanes of which each takes other partial results
    while (width > all_warps) width /= 2;
    value = partials[lane % width];
    for (int warp = lane % width + width; warp < all_warps; warp += width)
      value = op(value, partials[warp]);
    for (int step = width / 2; step > 0; step /= 2)
      value = op(value, shuffle_xor(0xffffffffu, value, step));
    return value;
  }

 private:
  static constexpr int kSlots = 2;
  static constexpr int kBarrierBytes = kSlots * sizeof(Barrier);

  __device__ __forceinline__ Barrier& barrier(int slot) const {
    return reinterpret_cast<Barrier*>(memory_)[slot];
  }

  unsigned char* memory_;
  int blocks_, rank_;
  int slot_ = 0;
  unsigned parity_ = 0;
};

}  // namespace alr_fast
