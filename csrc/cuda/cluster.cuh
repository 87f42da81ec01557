// Threads that share a row: the blocks of a cluster, each with a part of the columns. A cluster of
// one block works on any device, larger clusters need compute capability 9.0.
#pragma once

#include <cstdint>

#include "launch_plan.h"
#include "memory.cuh"
#include "reduce.cuh"

#if defined(ALR_FAST_KERNELS_ON_CPU) || (defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900)
#define ALR_FAST_HAS_CLUSTERS 1
#else
#define ALR_FAST_HAS_CLUSTERS 0
#endif

namespace alr_fast {

class ClusterGroup : public BlockGroup {
 public:
  __device__ __forceinline__ explicit ClusterGroup(int blocks) : blocks_(blocks) {
#if ALR_FAST_HAS_CLUSTERS
    if (blocks > 1) block_rank_ = static_cast<int>(__clusterRelativeBlockRank());
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
  __device__ __forceinline__ int columns(int classes) const {
    const int part = static_cast<int>(columns_per_block(classes, blocks_));
    return min(part, classes - first_column(classes));
  }

  template <class T, class Op>
  __device__ __forceinline__ T reduce(T value, Op op) {
    value = BlockGroup::reduce(value, op);
#if ALR_FAST_HAS_CLUSTERS
    if (blocks_ > 1) value = reduce_blocks(value, op);
#endif
    return value;
  }

  // A block must not exit before the others have read its part of the last reduction.
  __device__ __forceinline__ void wait_before_exit() const {
#if ALR_FAST_HAS_CLUSTERS
    if (blocks_ > 1) {
      __cluster_barrier_arrive();  // releases: the reads come before it
      __cluster_barrier_wait();
    }
#endif
  }

  __device__ __forceinline__ int blocks() const { return blocks_; }

  // Bytes from the start of shared memory that reductions use.
  __device__ __forceinline__ static int slot_bytes() { return reduction_bytes(blockDim.x, true); }

 private:
#if ALR_FAST_HAS_CLUSTERS
  // Each lane reads the value of one block; the number of blocks is a power of two, further lanes
  // read the same values again.
  template <class T, class Op>
  __device__ __forceinline__ T reduce_blocks(T value, Op op) {
    unsigned char* const slots = shared_memory() + reduction_bytes(blockDim.x, false);
    // A slow block may still read a slot while a fast block writes the next: two slots alternate,
    // like the buffers of the reduction within the block.
    if (threadIdx.x == 0) {
      write_slot(slots, buffer_, value);
      __threadfence_cluster();  // other blocks read nothing else, so the barrier need not order
                                // more
    }
    wait_for_cluster();
    const unsigned from = threadIdx.x & static_cast<unsigned>(blocks_ - 1);
    value = read_slot<T>(static_cast<const unsigned char*>(__cluster_map_shared_rank(slots, from)),
                         buffer_);
    for (int step = blocks_ / 2; step > 0; step /= 2)
      value = op(value, shuffle_xor(0xffffffffu, value, step));
    return value;
  }

  // Writes before a fence before this barrier are visible to all blocks after it.
  __device__ __forceinline__ static void wait_for_cluster() {
    __cluster_barrier_arrive_relaxed();
    __cluster_barrier_wait();
  }
#endif

  int blocks_;
  int block_rank_ = 0;
};

}  // namespace alr_fast
