// The pre-pass, a separate launch: builds lists of rows that share an index, if an index may occur
// twice, and counts the rows that are not ignored.
#pragma once

#include <cstdint>

#include "../alr_params.h"
#include "finish.cuh"
#include "memory.cuh"
#include "reduce.cuh"

namespace alr_fast {

constexpr int kPrepareThreads = 512;
constexpr int kPrepareRowsPerBlock = 1024;  // on average, where rows are grouped
constexpr int kGroupSlots = 4096;           // of a block's hash table
constexpr int kPrepareSharedMemory =
    reduction_bytes(kPrepareThreads, false) + kGroupSlots * static_cast<int>(sizeof(int32_t));

// Rows with the same index share a slot of a hash table in shared memory. The slot holds the latest
// of them; each row stores the row that had the slot before. From these unordered chains every row
// finds the next row in batch order. Indices are assigned to blocks by their hash, so that one
// block sees all rows of an index. The time grows with the square of the number of rows per index.
class RowGroups {
 public:
  static constexpr int32_t kNoRow = -1;

  __device__ __forceinline__ RowGroups(const RowLossParams& p, int32_t* chain, int32_t* slots)
      : p_(p), chain_(chain), slots_(slots) {}

  __device__ __forceinline__ void clear() {
    for (int n = threadIdx.x; n < kGroupSlots; n += blockDim.x) slots_[n] = kNoRow;
  }

  // Ignored rows and those out of range are in no group.
  __device__ __forceinline__ bool is_in_group(int64_t i) const {
    return i >= 0 && i < p_.target.size;
  }
  __device__ __forceinline__ bool is_mine(int64_t i) const {
    return is_in_group(i) && hash(i) / kGroupSlots % gridDim.x == blockIdx.x;
  }

  __device__ __forceinline__ void insert(int32_t b, int64_t i) {
    int slot = first_slot(i);
    for (int tries = 0; tries < kGroupSlots;) {
      const int32_t there = slots_[slot];
      if (there != kNoRow && index_at(p_, there) != i) {
        slot = (slot + 1) % kGroupSlots;
        ++tries;
      } else if (atomicCAS(slots_ + slot, there, b) == there) {
        chain_[b] = there;
        return;
      }
    }
    // The table is full of other indices for good: no row of this index is in it.
  }

  struct Place {
    int32_t next = kNoRow;  // the next row with the same index
    bool is_first = true;

    __device__ __forceinline__ void meet(int32_t b, int32_t other) {
      if (other < b) is_first = false;
      if (other > b && (next == kNoRow || other < next)) next = other;
    }
  };

  __device__ __forceinline__ Place place_of(int32_t b, int64_t i) const {
    Place place;
    int slot = first_slot(i);
    for (int tries = 0; tries < kGroupSlots; ++tries) {
      const int32_t head = slots_[slot];
      if (index_at(p_, head) == i) {
        for (int32_t other = head; other != kNoRow; other = chain_[other]) place.meet(b, other);
        return place;
      }
      slot = (slot + 1) % kGroupSlots;
    }
    for (int32_t other = 0; other < p_.rows; ++other)  // fallback: more indices than slots
      if (index_at(p_, other) == i) place.meet(b, other);
    return place;
  }

 private:
  __device__ __forceinline__ static uint32_t hash(int64_t i) { return rounding_key(0, 0, i); }
  __device__ __forceinline__ static int first_slot(int64_t i) { return hash(i) % kGroupSlots; }

  const RowLossParams& p_;
  int32_t* chain_;  // [B] the row that had the slot before, or kNoRow
  int32_t* slots_;  // [kGroupSlots]
};

// Counts into the status; also builds the groups if `next_in_group` is not null.
__global__ void __launch_bounds__(kPrepareThreads, 1)
    prepare_rows_kernel(const RowLossParams p,
                        int32_t* next_in_group,   // [B] or null
                        uint8_t* first_in_group,  // [B] or null
                        int32_t* chain) {         // [B] scratch or null
  BlockGroup<kPrepareThreads / kWarpThreads> block;
  const int64_t begin = p.rows * blockIdx.x / gridDim.x;
  const int64_t end = p.rows * (blockIdx.x + int64_t{1}) / gridDim.x;
  const int64_t count = count_valid_rows(p, begin, end, block);
  if (threadIdx.x == 0)
    atomicAdd(status_word(p, kStatusCounted), static_cast<unsigned long long>(count));
  if (next_in_group == nullptr) return;

  RowGroups groups(
      p, chain, reinterpret_cast<int32_t*>(shared_memory() + reduction_bytes(blockDim.x, false)));
  groups.clear();
  __syncthreads();
  for (int64_t b = threadIdx.x; b < p.rows; b += blockDim.x) {
    const int64_t i = index_at(p, b);
    if (groups.is_mine(i)) groups.insert(static_cast<int32_t>(b), i);
  }
  __syncthreads();
  for (int64_t b = threadIdx.x; b < p.rows; b += blockDim.x) {
    const int64_t i = index_at(p, b);
    RowGroups::Place place;
    if (groups.is_mine(i)) {
      place = groups.place_of(static_cast<int32_t>(b), i);
    } else if (groups.is_in_group(i) || b % gridDim.x != blockIdx.x) {
      continue;  // belongs to another block
    }
    next_in_group[b] = place.next;
    first_in_group[b] = place.is_first;
  }
}

}  // namespace alr_fast
