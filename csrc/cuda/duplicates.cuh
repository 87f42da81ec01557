// Batches in which an index may occur twice. Rows that share an index form a group. All of them
// must read the old table row, and the last valid one is to be stored, so the row kernel computes
// them without storing, and a second launch of it computes the last ones again to store them.
//
// Who finds the groups: in a small batch every block of the row kernel, which compares each of its
// rows with all others; else the pre-pass, a launch before it, by a hash table.
#pragma once

#include <cstdint>

#include "../alr_params.h"
#include "finish.cuh"
#include "memory.cuh"
#include "reduce.cuh"

namespace alr_fast {

// First and last row with an index.
struct RowSpan {
  int32_t first = 0x7fffffff, last = -1;
};

struct JoinSpans {
  __device__ __forceinline__ RowSpan operator()(const RowSpan& a, const RowSpan& b) const {
    return {min(a.first, b.first), max(a.last, b.last)};
  }
};

// The groups as the threads of a row see them, of which kLanes are in one warp.
template <int kLanes>
class RowGroups {
 public:
  // `indices`: those of all rows, in shared memory, unless the pre-pass has found the groups, or
  // none is needed.
  __device__ __forceinline__ RowGroups(const RowLossParams& p, bool is_searched,
                                       const int32_t* indices)
      : p_(p), groups_(p.groups), is_searched_(is_searched), indices_(indices) {}

  // Whether the groups must be found here; else `of` knows them.
  __device__ __forceinline__ bool is_searched() const { return is_searched_; }

  // 1 + the name of the group of row b; 0 if it is alone with its index.
  __device__ __forceinline__ int32_t of(int64_t b) const {
    return groups_.group_of == nullptr || is_searched() ? 0 : groups_.group_of[b];
  }

  // The same, found by all lanes of a row together.
  __device__ __forceinline__ int32_t find(int64_t b) const {
    LaneGroup<kLanes> lanes;  // every warp of a row by itself: no barrier
    const int32_t wanted = indices_[b];
    RowSpan span;
    for (int n = lanes.rank() * kIndicesAtOnce; n < p_.rows; n += kLanes * kIndicesAtOnce) {
      const int4 four = *reinterpret_cast<const int4*>(indices_ + n);
      const int32_t there[kIndicesAtOnce] = {four.x, four.y, four.z, four.w};
#pragma unroll
      for (int k = 0; k < kIndicesAtOnce; ++k)
        if (there[k] == wanted) span = JoinSpans()(span, {n + k, n + k});
    }
    span = lanes.reduce(span, JoinSpans());
    return span.first == span.last ? 0 : span.first + 1;
  }

  // Notes row b, by one of its threads. Negative in a small batch: a row that cannot be stored.
  __device__ __forceinline__ void note(int64_t b, int32_t group, bool can_be_stored) const {
    if (is_searched()) {
      groups_.group_of[b] = can_be_stored ? group : -group;
      if (group == b + 1) groups_.last_row[b] = 0;
    } else if (group != 0 && can_be_stored) {
      atomicMax(groups_.last_row + group - 1, static_cast<int32_t>(b + 1));
    }
  }

  // --- of the second launch ---

  // Candidates for being stored.
  __device__ __forceinline__ int64_t count() const {
    return groups_.names == nullptr ? p_.rows : *groups_.num_groups;
  }

  // The row that the n-th candidate leads to, or -1.
  __device__ __forceinline__ int64_t row_to_store(int64_t n) const {
    if (groups_.names != nullptr) return groups_.last_row[groups_.names[n]] - 1;
    const int32_t group = groups_.group_of[n];
    if (group <= 0) return -1;
    LaneGroup<kLanes> lanes;
    RowSpan later;
    for (int m = static_cast<int>(n) + lanes.rank(); m < p_.rows; m += kLanes)
      if (groups_.group_of[m] == group) later = JoinSpans()(later, {m, m});
    if (lanes.reduce(later, JoinSpans()).last != n) return -1;
    if (lanes.is_leader()) groups_.last_row[group - 1] = static_cast<int32_t>(n) + 1;
    return n;
  }

 private:
  const RowLossParams& p_;
  const GroupMemory& groups_;
  bool is_searched_;
  const int32_t* indices_;
};

}  // namespace alr_fast
