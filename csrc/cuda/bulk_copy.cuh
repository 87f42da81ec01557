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
static_assert(sizeof(Barrier) == kBarrierBytes, "as the plan counts");

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

// What a bulk copy can take of a row at any alignment: whole accesses. The rest, less than 16 bytes
// at each end, is read from device memory.
template <class T>
class BulkRow {
 public:
  __device__ __forceinline__ BulkRow(const T* row, int count) : row_(row) {
    const auto past = static_cast<int>(reinterpret_cast<uintptr_t>(row) % kAccessBytes);
    const int head = (kAccessBytes - past) % kAccessBytes / static_cast<int>(sizeof(T));
    first_ = min(count, head);
    end_ = first_ + (count - first_) / kPerAccess * kPerAccess;
  }

  __device__ __forceinline__ const T* from() const { return row_ + first_; }
  __device__ __forceinline__ int bytes() const {
    return (end_ - first_) * static_cast<int>(sizeof(T));
  }

  // Whether element n is copied, and where element 0 would then be.
  __device__ __forceinline__ bool has(int n) const { return n >= first_ && n < end_; }
  __device__ __forceinline__ const T* origin(const T* copy) const { return copy - first_; }

 private:
  static constexpr int kPerAccess = kAccessBytes / sizeof(T);

  const T* row_;
  int first_, end_;
};

// Stages in shared memory that one thread fills by bulk copies and a group of threads reads, in
// turn, each with a barrier for the bytes that arrive. A stage may be filled again once all threads
// of the group have met after they have read it: the group tells the ring so.
template <int kStages>
class Ring {
 public:
  __device__ __forceinline__ Ring(unsigned char* memory, int barrier_bytes, int stage_bytes)
      : memory_(memory), barrier_bytes_(barrier_bytes), stage_bytes_(stage_bytes) {
    ALR_DEVICE_CHECK(reinterpret_cast<uintptr_t>(memory) % kStageAlignment == 0);
    ALR_DEVICE_CHECK(stage_bytes % kStageAlignment == 0);
  }

  // By one thread, before the group meets.
  __device__ __forceinline__ void init() const {
    for (int n = 0; n < kStages; ++n) barriers()[n].init(1);
    Barrier::fence_init();
  }

  __device__ __forceinline__ unsigned char* stage(int n) const {
    return memory_ + barrier_bytes_ + n * stage_bytes_;
  }
  // The stage at hand.
  __device__ __forceinline__ unsigned char* stage() const { return stage(stage_); }

  // By one thread: copies of so many bytes to the stage at hand, which load() starts.
  __device__ __forceinline__ void expect(int bytes) const { full().arrive_expect(bytes); }

  // To `offset` bytes from the start of the stage; nothing is done for 0 bytes.
  template <Cached kCached>
  __device__ __forceinline__ void load(int offset, const void* from, int bytes) const {
    if (bytes > 0) bulk_load<kCached>(stage() + offset, from, bytes, full());
  }

  // Waits until the stage at hand is full. Every turn of a stage must be expected, if only 0 bytes.
  // A thread need not wait for a turn of 0 bytes, but then it must meet the one that fills the
  // stages: a parity does not tell a turn from the next but one.
  __device__ __forceinline__ void wait() const { full().wait(parity_); }

  __device__ __forceinline__ void advance() {
    if (++stage_ < kStages) return;
    stage_ = 0;
    parity_ ^= 1;
  }

 private:
  __device__ __forceinline__ Barrier* barriers() const {
    return reinterpret_cast<Barrier*>(memory_);
  }
  __device__ __forceinline__ Barrier& full() const { return barriers()[stage_]; }

  unsigned char* memory_;
  int barrier_bytes_, stage_bytes_;
  int stage_ = 0;
  unsigned parity_ = 1;  // of the turn that is read next: in the first turn stages are only filled
};

// Exchanges of a value of each block of a cluster: every block pushes its own to all of them.
class ClusterExchange {
 public:
  // `memory`: kPushBytes of shared memory at a multiple of 16 bytes. For block `rank` of `blocks`.
  __device__ __forceinline__ ClusterExchange(unsigned char* memory, int blocks, int rank)
      : memory_(memory), blocks_(blocks), rank_(rank) {}

  // By one thread of each block, before the cluster meets.
  __device__ __forceinline__ void init() const {
    for (int buffer = 0; buffer < kReductionBuffers; ++buffer) arrived(buffer).init(1);
    Barrier::fence_init();
  }

  // Called by all threads of all blocks, after the block has met since the last exchange. Each lane
  // gets the value of block lane % blocks. After its last exchange a block may exit: everything
  // that is pushed to it has arrived.
  template <class T>
  __device__ __forceinline__ T exchange(const T& value) {
    static_assert(sizeof(T) <= kReductionSlotBytes, "fits a slot");
    constexpr int kWords = (sizeof(T) + kAccessBytes - 1) / kAccessBytes;
    Slot slot = {};
    __builtin_memcpy(static_cast<void*>(&slot), &value, sizeof(T));
    Slot* const slots = reinterpret_cast<Slot*>(memory_) + buffer_ * kMaxClusterBlocks;
    Barrier& all = arrived(buffer_);
    if (threadIdx.x == 0) all.arrive_expect(blocks_ * kWords * kAccessBytes);
    if (threadIdx.x < static_cast<unsigned>(blocks_)) {
#pragma unroll
      for (int n = 0; n < kWords; ++n)
        store_remote(&slots[rank_].words[n], slot.words[n], all, threadIdx.x);
    }
    all.wait<Scope::kCluster>(phase_);
    // Two buffers in turn need no barrier against a fast block that pushes over a value before a
    // slow warp has read it: it comes back to this buffer only after all blocks have pushed to the
    // other one, and a block pushes after all of its warps have met, past these reads.
    if (++buffer_ == kReductionBuffers) {
      buffer_ = 0;
      phase_ ^= 1;
    }
    const Slot& there = slots[threadIdx.x & static_cast<unsigned>(blocks_ - 1)];
    Slot mine;
#pragma unroll
    for (int n = 0; n < kWords; ++n) mine.words[n] = there.words[n];
    T result;
    __builtin_memcpy(static_cast<void*>(&result), &mine, sizeof(T));
    return result;
  }

 private:
  struct Slot {
    uint4 words[kReductionSlotBytes / kAccessBytes];
  };

  __device__ __forceinline__ Barrier& arrived(int buffer) const {
    Slot* const end = reinterpret_cast<Slot*>(memory_) + kReductionBuffers * kMaxClusterBlocks;
    return reinterpret_cast<Barrier*>(end)[buffer];
  }

  unsigned char* memory_;
  int blocks_, rank_;
  int buffer_ = 0;
  unsigned phase_ = 0;  // its parity
};

}  // namespace alr_fast
