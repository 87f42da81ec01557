// Launches before and after the row kernel, with a thread for each row: the pre-pass, which counts
// the rows that are not ignored and finds the groups of duplicates.cuh; and a last one, which
// completes the statistics of groups.
#pragma once

#include <cstdint>

#include "../alr_params.h"
#include "reduce.cuh"

namespace alr_fast {

constexpr int kPrepareThreads = 256;
constexpr int kPrepareSharedMemory = reduction_bytes(kPrepareThreads, false);

// Finds the group of row b with index i in the hash table. The first row with an index claims an
// entry; every later one finds it there and joins its group. Which one is first depends on the
// order of threads, the results do not.
__device__ __forceinline__ void join_group(const RowLossParams& p, int32_t b, int64_t i) {
  const GroupMemory& groups = p.groups;
  for (uint32_t entry = rounding_key(0, 0, i);; ++entry) {
    int32_t* const claim_at = groups.claims + (entry & groups.claim_mask);
    // Read first: rows of a large group would wait for each other's atomic operations.
    int32_t claim = __ldcg(claim_at);
    if (claim == 0) claim = atomicCAS(claim_at, 0, b + 1);
    if (claim == 0) return;
    const int32_t name = claim - 1;
    if (index_at(p, name) != i) continue;
    groups.group_of[b] = claim;
    int32_t* const of_name = groups.group_of + name;
    if (__ldcg(of_name) == 0 && atomicCAS(of_name, 0, claim) == 0) {
      groups.last_row[name] = 0;
      groups.names[atomicAdd(groups.num_groups, 1)] = name;
    }
    return;
  }
}

// Finds the groups if there is memory for their hash table.
__global__ void __launch_bounds__(kPrepareThreads) prepare_rows_kernel(const RowLossParams p) {
  int64_t count = 0;
  for (int64_t b = int64_t{blockIdx.x} * blockDim.x + threadIdx.x; b < p.rows;
       b += int64_t{gridDim.x} * blockDim.x) {
    const int64_t i = index_at(p, b);
    count += i >= 0;
    if (p.groups.claims != nullptr && i >= 0 && !is_out_of_range(p, b, i))
      join_group(p, static_cast<int32_t>(b), i);
  }
  BlockGroup<kPrepareThreads / kWarpThreads> block;
  count = block.reduce(count, Add());
  if (threadIdx.x == 0) atomicAdd(&p.counters->counted, static_cast<unsigned long long>(count));
}

// All rows of a group report the class after of the row that was stored.
__global__ void share_class_after_kernel(const RowLossParams p) {
  const int64_t b = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (b >= p.rows || p.groups.group_of[b] == 0) return;
  const int32_t group = p.groups.group_of[b];
  const int32_t stored = p.groups.last_row[(group < 0 ? -group : group) - 1];
  int64_t* const class_after = p.stats_class + 2 * p.rows;  // [B]
  if (stored != 0 && stored != b + 1) class_after[b] = class_after[stored - 1];
}

}  // namespace alr_fast
