// Reductions over part of a warp, a warp, or a block. Every thread receives the result. The order
// of operations is fixed, so results are deterministic.
#pragma once

#include <cstdint>

#include "../alr_math.h"
#include "launch_plan.h"

namespace alr_fast {

// Dynamic shared memory of a block (its size is in launch_plan): slots for reductions come first.
#if defined(ALR_FAST_KERNELS_ON_CPU)
inline unsigned char* shared_memory() { return cuda_shim::Machine::get().shared_memory(); }
#else
extern __shared__ __align__(16) unsigned char shared_memory_bytes[];
__device__ __forceinline__ unsigned char* shared_memory() { return shared_memory_bytes; }
#endif

constexpr int kWarpThreads = 32;

struct Add {
  template <class T>
  __device__ __forceinline__ T operator()(T a, T b) const {
    return a + b;
  }
  __device__ __forceinline__ RowSums<float> operator()(const RowSums<float>& a,
                                                       const RowSums<float>& b) const {
    return {a.exp + b.exp, a.exp_d + b.exp_d, a.target + b.target, a.target_d + b.target_d};
  }
};

struct Max {
  __device__ __forceinline__ float operator()(float a, float b) const { return fmaxf(a, b); }
};

template <class T>
__device__ __forceinline__ T shuffle_xor(unsigned mask, const T& value, int lane_mask) {
  static_assert(sizeof(T) % 4 == 0, "whole words");
  uint32_t words[sizeof(T) / 4];
  __builtin_memcpy(words, &value, sizeof(T));
#pragma unroll
  for (int i = 0; i < static_cast<int>(sizeof(T) / 4); ++i)
    words[i] = __shfl_xor_sync(mask, words[i], lane_mask);
  T other;
  __builtin_memcpy(static_cast<void*>(&other), words, sizeof(T));
  return other;
}

// Over kLanes neighbours, the lanes in `mask`.
template <int kLanes, class T, class Op>
__device__ __forceinline__ T reduce_lanes(unsigned mask, T value, Op op) {
#pragma unroll
  for (int step = kLanes / 2; step > 0; step /= 2)
    value = op(value, shuffle_xor(mask, value, step));
  return value;
}

// Threads that share a row: kLanes of a warp.
template <int kLanes>
class LaneGroup {
 public:
  __device__ __forceinline__ int rank() const { return threadIdx.x % kLanes; }
  __device__ __forceinline__ static constexpr int size() { return kLanes; }
  __device__ __forceinline__ bool is_leader() const { return rank() == 0; }
  __device__ __forceinline__ int64_t row() const {
    return int64_t{blockIdx.x} * (blockDim.x / kLanes) + threadIdx.x / kLanes;
  }
  __device__ __forceinline__ int64_t rows_in_grid() const {
    return int64_t{gridDim.x} * (blockDim.x / kLanes);
  }

  template <class T, class Op>
  __device__ __forceinline__ T reduce(const T& value, Op op) {
    // Rows of one warp may differ in the number of reductions: only this row's lanes take part.
    const unsigned in_warp = threadIdx.x % kWarpThreads;
    const unsigned mask =
        kLanes == 32 ? 0xffffffffu : ((1u << (kLanes % 32)) - 1) << (in_warp - in_warp % kLanes);
    return reduce_lanes<kLanes>(mask, value, op);
  }
};

// Threads that share a row: a block.
class BlockGroup {
 public:
  __device__ __forceinline__ int rank() const { return threadIdx.x; }
  __device__ __forceinline__ int size() const { return blockDim.x; }
  __device__ __forceinline__ bool is_leader() const { return rank() == 0; }
  __device__ __forceinline__ int64_t row() const { return blockIdx.x; }
  __device__ __forceinline__ int64_t rows_in_grid() const { return gridDim.x; }

  template <class T, class Op>
  __device__ __forceinline__ T reduce(T value, Op op) {
    value = reduce_lanes<kWarpThreads>(0xffffffffu, value, op);
    const int warps = blockDim.x / kWarpThreads;
    unsigned char* const slots = shared_memory() + buffer_ * warps * kReductionSlotBytes;
    // A slow warp may still read this buffer while a fast warp starts the next reduction.
    buffer_ ^= 1;
    if (threadIdx.x % kWarpThreads == 0) write_slot(slots, threadIdx.x / kWarpThreads, value);
    __syncthreads();
    value = read_slot<T>(slots, 0);
    for (int warp = 1; warp < warps; ++warp) value = op(value, read_slot<T>(slots, warp));
    return value;
  }

 protected:
  template <class T>
  __device__ __forceinline__ static void write_slot(unsigned char* slots, int n, const T& value) {
    static_assert(sizeof(T) <= kReductionSlotBytes, "fits a slot");
    __builtin_memcpy(aligned(slots + n * kReductionSlotBytes), &value, sizeof(T));
  }
  template <class T>
  __device__ __forceinline__ static T read_slot(const unsigned char* slots, int n) {
    T value;
    __builtin_memcpy(static_cast<void*>(&value), aligned(slots + n * kReductionSlotBytes),
                     sizeof(T));
    return value;
  }

  // Without this, the unknown alignment of an address in another block would mean byte-wise loads.
  template <class Byte>
  __device__ __forceinline__ static Byte* aligned(Byte* slot) {
    return static_cast<Byte*>(__builtin_assume_aligned(slot, kReductionSlotBytes));
  }

  int buffer_ = 0;
};
static_assert(kReductionBuffers == 2, "used in turn");

// A value of a row and its class.
struct Entry {
  float value = -__builtin_inff();
  int32_t at = 0x7fffffff;
};

// The larger value, the lower class on a tie.
struct Largest {
  __device__ __forceinline__ Entry operator()(const Entry& a, const Entry& b) const {
    return b.value > a.value || (b.value == a.value && b.at < a.at) ? b : a;
  }
};

}  // namespace alr_fast
