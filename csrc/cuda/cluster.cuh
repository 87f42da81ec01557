// Threads that share a row: the blocks of a cluster, each with a part of the columns. A cluster of
// one block works on any device, larger clusters need compute capability 9.0.
#pragma once

#include <cstdint>

#include "bulk_copy.cuh"
#include "launch_plan.h"
#include "memory.cuh"
#include "reduce.cuh"

#if defined(ALR_FAST_KERNELS_ON_CPU) || (defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900)
#define ALR_FAST_HAS_CLUSTERS 1
#else
#define ALR_FAST_HAS_CLUSTERS 0
#endif

namespace alr_fast {

// kPushes: blocks store their values in each other's memory, instead of reading them there.
template <int kWarps, bool kPushes = false>
class ClusterGroup : public BlockGroup<kWarps> {
  using Block = BlockGroup<kWarps>;

 public:
  __device__ __forceinline__ explicit ClusterGroup(int blocks) : blocks_(blocks) {
#if ALR_FAST_HAS_CLUSTERS
    if (blocks > 1) {
      block_rank_ = static_cast<int>(__clusterRelativeBlockRank());
      if constexpr (kPushes) {
        pushed_ = ClusterExchange(exchange_memory(), blocks, block_rank_);
        if (threadIdx.x == 0) pushed_.init();
        wait_for_cluster();
      }
    }
#elif defined(__CUDA_ARCH__)
    if (blocks > 1) __trap();  // the launcher never requests it
#endif
  }

  __device__ __forceinline__ bool is_leader() const { return threadIdx.x == 0 && block_rank_ == 0; }
  __device__ __forceinline__ int64_t row() const { return blockIdx.x / blocks_; }
  __device__ __forceinline__ int64_t rows_in_grid() const { return gridDim.x / blocks_; }

  // This block's columns.
  __device__ __forceinline__ int first_column(int classes) const {
    return min(block_rank_ * static_cast<int>(columns_per_block(classes, blocks_)), classes);
  }
  __device__ __forceinline__ int end_column(int classes) const {
    return min((block_rank_ + 1) * static_cast<int>(columns_per_block(classes, blocks_)), classes);
  }

  template <class T, class Op>
  __device__ __forceinline__ T reduce(T value, Op op) {
    value = Block::reduce(value, op);
#if ALR_FAST_HAS_CLUSTERS
    if (blocks_ > 1) {
      value = exchange_blocks(value);
#pragma unroll 1
      for (int step = blocks_ / 2; step > 0; step /= 2)
        value = op(value, shuffle_xor(Block::kAllLanes, value, step));
    }
#endif
    return value;
  }

  __device__ __forceinline__ void join(RowPart& part) {
    Block::join(part);
#if ALR_FAST_HAS_CLUSTERS
    if (blocks_ > 1) {
      part = exchange_blocks(part);
      float max = part.max;
#pragma unroll 1
      for (int step = blocks_ / 2; step > 0; step /= 2)
        max = fmaxf(max, __shfl_xor_sync(Block::kAllLanes, max, step));
      part.raise(max);
#pragma unroll 1
      for (int step = blocks_ / 2; step > 0; step /= 2)
        part.sums = Add()(part.sums, shuffle_xor(Block::kAllLanes, part.sums, step));
    }
#endif
  }

  // A block must not exit before the others have read its part of the last reduction.
  __device__ __forceinline__ void wait_before_exit() const {
#if ALR_FAST_HAS_CLUSTERS
    if (blocks_ > 1 && !kPushes) wait_for_cluster();
#endif
  }

 private:
#if ALR_FAST_HAS_CLUSTERS
  __device__ __forceinline__ static unsigned char* exchange_memory() {
    return shared_memory() + reduction_bytes(Block::kThreads, false);
  }

  __device__ __forceinline__ static void wait_for_cluster() {
    __cluster_barrier_arrive();  // releasing: what was read or written comes before it
    __cluster_barrier_wait();
  }

  // Each block gives a value, each lane takes that of one block; the number of blocks is a power of
  // two, further lanes take the same values again.
  template <class T>
  __device__ __forceinline__ T exchange_blocks(const T& value) {
    if constexpr (kPushes) return pushed_.exchange(value);
    unsigned char* const slots = exchange_memory() + cluster_buffer_ * kReductionSlotBytes;
    // A slow block may still read a slot while a fast block writes the next: two slots alternate,
    // like the buffers of the reduction within the block.
    cluster_buffer_ ^= 1;
    if (threadIdx.x == 0) {
      Block::write_slot(slots, 0, value);
      __threadfence_cluster();  // other blocks read nothing else, so the barrier need not order
                                // more
    }
    __cluster_barrier_arrive_relaxed();
    __cluster_barrier_wait();
    const unsigned from = threadIdx.x & static_cast<unsigned>(blocks_ - 1);
    return Block::template read_slot<T>(
        static_cast<const unsigned char*>(__cluster_map_shared_rank(slots, from)), 0);
  }

  int cluster_buffer_ = 0;
  ClusterExchange pushed_{nullptr, 0, 0};
#endif

  int blocks_;
  int block_rank_ = 0;
};

}  // namespace alr_fast
