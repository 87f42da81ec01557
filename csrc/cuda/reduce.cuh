// Reductions over part of a warp, a warp, or a block. Every thread receives the result. The order
// of operations is fixed, so results are deterministic.
#pragma once

#include <cstdint>

#include "../alr_math.h"
#include "launch_plan.h"
#include "memory.cuh"

namespace alr_fast {

// Dynamic shared memory of a block (its size is in launch_plan): slots for reductions come first.
#if defined(ALR_FAST_KERNELS_ON_CPU)
inline unsigned char* shared_memory() { return cuda_shim::Machine::get().shared_memory(); }
#else
extern __shared__ __align__(128) unsigned char shared_memory_bytes[];
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

// Exchanges a value of whole words, by exchange(word).
template <class T, class Exchange>
__device__ __forceinline__ T exchange_words(const T& value, const Exchange& exchange) {
  static_assert(sizeof(T) % 4 == 0, "whole words");
  uint32_t words[sizeof(T) / 4];
  __builtin_memcpy(words, &value, sizeof(T));
#pragma unroll
  for (int i = 0; i < static_cast<int>(sizeof(T) / 4); ++i) words[i] = exchange(words[i]);
  T other;
  __builtin_memcpy(static_cast<void*>(&other), words, sizeof(T));
  return other;
}

template <class T>
__device__ __forceinline__ T shuffle_xor(unsigned mask, const T& value, int lane_mask) {
  return exchange_words(value,
                        [&](uint32_t word) { return __shfl_xor_sync(mask, word, lane_mask); });
}

// The value of one of kLanes neighbours.
template <int kLanes, class T>
__device__ __forceinline__ T shuffle(unsigned mask, const T& value, int lane) {
  return exchange_words(value,
                        [&](uint32_t word) { return __shfl_sync(mask, word, lane, kLanes); });
}

// Over kLanes neighbours, the lanes in `mask`; the first of each kGroup of them has a value. Not
// unrolled: what every row needs is joined by join_lanes.
template <int kLanes, int kGroup = 1, class T, class Op>
__device__ __forceinline__ T reduce_lanes(unsigned mask, T value, Op op) {
#pragma unroll 1
  for (int step = kLanes / 2; step >= kGroup; step /= 2)
    value = op(value, shuffle_xor(mask, value, step));
  return value;
}

// Sums over kLanes neighbours, fewer shuffles than one by one: lanes exchange halves of the four
// sums, until each has a quarter of the lanes' share of one.
template <int kLanes>
__device__ __forceinline__ RowSums<float> add_lanes(unsigned mask, const RowSums<float>& sums) {
  if constexpr (kLanes < 8) {
    RowSums<float> all = sums;
#pragma unroll
    for (int step = kLanes / 2; step > 0; step /= 2) all = Add()(all, shuffle_xor(mask, all, step));
    return all;
  } else {
    const unsigned lane = threadIdx.x % kLanes;
    const bool upper = lane & (kLanes / 2), odd = lane & (kLanes / 4);
    const float keep0 = upper ? sums.target : sums.exp, keep1 = upper ? sums.target_d : sums.exp_d;
    const float give0 = upper ? sums.exp : sums.target, give1 = upper ? sums.exp_d : sums.target_d;
    const float part0 = keep0 + __shfl_xor_sync(mask, give0, kLanes / 2);
    const float part1 = keep1 + __shfl_xor_sync(mask, give1, kLanes / 2);
    float part = odd ? part1 : part0;
    part += __shfl_xor_sync(mask, odd ? part0 : part1, kLanes / 4);
    constexpr int kQuarter = kLanes / 4;
#pragma unroll
    for (int step = kQuarter / 2; step > 0; step /= 2) part += __shfl_xor_sync(mask, part, step);
    return {__shfl_sync(mask, part, 0, kLanes), __shfl_sync(mask, part, kQuarter, kLanes),
            __shfl_sync(mask, part, 2 * kQuarter, kLanes),
            __shfl_sync(mask, part, 3 * kQuarter, kLanes)};
  }
}

// Part of a row: its largest logit, and the sums with differences from it.
struct RowPart {
  float max;
  RowSums<float> sums;

  // The same with differences from a larger logit.
  __device__ __forceinline__ void raise(float to) {
    const float shift = max - to;
    rebase(sums, shift, fast_exp(shift));
    max = to;
  }
};

// The whole of the parts in kLanes neighbours.
template <int kLanes>
__device__ __forceinline__ void join_lanes(unsigned mask, RowPart& part) {
  float max = part.max;
#pragma unroll
  for (int step = kLanes / 2; step > 0; step /= 2)
    max = fmaxf(max, __shfl_xor_sync(mask, max, step));
  part.raise(max);
  part.sums = add_lanes<kLanes>(mask, part.sums);
}

// Threads that share a row: kLanes of a warp.
template <int kLanes_>
class LaneGroup {
 public:
  static constexpr int kLanes = kLanes_;  // of a warp, in this group
  static constexpr int kThreads = kLanes;
  __device__ __forceinline__ int lane() const { return rank(); }
  __device__ __forceinline__ int rank() const { return threadIdx.x % kLanes; }
  __device__ __forceinline__ bool is_leader() const { return rank() == 0; }
  __device__ __forceinline__ int64_t row() const {
    return int64_t{blockIdx.x} * (blockDim.x / kLanes) + threadIdx.x / kLanes;
  }
  __device__ __forceinline__ int64_t rows_in_grid() const {
    return int64_t{gridDim.x} * (blockDim.x / kLanes);
  }
  // Columns of a row that this block holds.
  __device__ __forceinline__ int first_column(int) const { return 0; }
  __device__ __forceinline__ int end_column(int classes) const { return classes; }

  // Which of the groups of its block it is.
  __device__ __forceinline__ int in_block() const { return threadIdx.x / kLanes; }
  __device__ __forceinline__ void meet() const { __syncwarp(mask()); }

  // The value of a lane.
  template <class T>
  __device__ __forceinline__ T from_lane(const T& value, int lane) const {
    return shuffle<kLanes>(mask(), value, lane);
  }

  template <class T, class Op>
  __device__ __forceinline__ T reduce(const T& value, Op op) {
    return reduce_lanes<kLanes>(mask(), value, op);
  }
  __device__ __forceinline__ void join(RowPart& part) { join_lanes<kLanes>(mask(), part); }

  // Rows of one warp may differ in the number of reductions: only this row's lanes take part.
  __device__ __forceinline__ static unsigned mask() {
    const unsigned in_warp = threadIdx.x % kWarpThreads;
    return kLanes == 32 ? 0xffffffffu : ((1u << (kLanes % 32)) - 1) << (in_warp - in_warp % kLanes);
  }
};

// Threads that share a row: a block of kWarps warps.
template <int kWarps_>
class BlockGroup {
 public:
  static constexpr int kWarps = kWarps_;
  static constexpr int kLanes = kWarpThreads;
  static constexpr int kThreads = kWarps * kWarpThreads;

  // Of two objects that reduce in turn, with other threads of the block still at the last
  // reduction, each starts with a buffer of its own.
  __device__ __forceinline__ explicit BlockGroup(int first_buffer = 0) : buffer_(first_buffer) {}

  __device__ __forceinline__ int lane() const { return threadIdx.x % kLanes; }
  __device__ __forceinline__ int rank() const { return threadIdx.x; }
  __device__ __forceinline__ bool is_leader() const { return rank() == 0; }
  __device__ __forceinline__ int64_t row() const { return blockIdx.x; }
  __device__ __forceinline__ int64_t rows_in_grid() const { return gridDim.x; }
  __device__ __forceinline__ int first_column(int) const { return 0; }
  __device__ __forceinline__ int end_column(int classes) const { return classes; }

  __device__ __forceinline__ int in_block() const { return 0; }
  __device__ __forceinline__ void meet() const { __syncthreads(); }

  template <class T>
  __device__ __forceinline__ T from_lane(const T& value, int lane) const {
    return shuffle<kLanes>(kAllLanes, value, lane);
  }

  // The first of each kGroup threads has a value.
  template <int kGroup = 1, class T, class Op>
  __device__ __forceinline__ T reduce(T value, Op op) {
    return join_warps(reduce_lanes<kWarpThreads, kGroup>(kAllLanes, value, op), op);
  }
  // The first lane of each warp has a value.
  template <class T, class Op>
  __device__ __forceinline__ T join_warps(T value, Op op) {
    if constexpr (kWarps > 1) value = reduce_lanes<kWarps>(kAllLanes, exchange(value), op);
    return value;
  }
  __device__ __forceinline__ void join(RowPart& part) {
    join_lanes<kWarpThreads>(kAllLanes, part);
    if constexpr (kWarps > 1) {
      part = exchange(part);
      join_lanes<kWarps>(kAllLanes, part);
    }
  }

 protected:
  static constexpr unsigned kAllLanes = 0xffffffffu;

  // Each warp gives a value, each lane takes that of one warp.
  template <class T>
  __device__ __forceinline__ T exchange(const T& value) {
    unsigned char* const slots = shared_memory() + buffer_ * kWarps * kReductionSlotBytes;
    // A slow warp may still read this buffer while a fast warp starts the next reduction.
    buffer_ ^= 1;
    if (threadIdx.x % kWarpThreads == 0) write_slot(slots, threadIdx.x / kWarpThreads, value);
    __syncthreads();
    return read_slot<T>(slots, threadIdx.x % kWarps);
  }

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

  int buffer_;
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
