// Prepares a batch in which an index may come twice: lists of the rows that share one.
#pragma once

#include <cstdint>

#include "../alr_params.h"
#include "finish.cuh"
#include "memory.cuh"
#include "reduce.cuh"

namespace alr_fast {

constexpr int kGroupThreads = 256;
constexpr int kGroupRowsPerBlock = kGroupThreads / kWarpThreads;
constexpr int kGroupSharedMemory = kReductionBuffers * kReductionSlotBytes * kGroupRowsPerBlock;

// A warp a row: it looks for the nearest row after it, and for any row before it, with the same
// index.
__global__ void __launch_bounds__(kGroupThreads)
    group_rows_kernel(const RowLossParams p,
                      int32_t* next_in_group,   // [B]
                      uint8_t* first_in_group,  // [B]
                      int64_t* counted_rows) {  // [1] rows that are not ignored
  const int lane = threadIdx.x % kWarpThreads;
  const int64_t b = int64_t{blockIdx.x} * kGroupRowsPerBlock + threadIdx.x / kWarpThreads;
  if (b < p.rows) {
    const int64_t i = index_at(p, b);
    int64_t next = -1;
    bool is_first = true;
    if (i >= 0) {  // ignored rows are in no group
      for (int64_t from = b + 1; from < p.rows && next < 0; from += kWarpThreads) {
        const bool is_equal = from + lane < p.rows && index_at(p, from + lane) == i;
        const unsigned equal = __ballot_sync(0xffffffffu, is_equal);
        if (equal != 0) next = from + __ffs(static_cast<int>(equal)) - 1;
      }
      for (int64_t from = 0; from < b && is_first; from += kWarpThreads) {
        const bool is_equal = from + lane < b && index_at(p, from + lane) == i;
        is_first = __ballot_sync(0xffffffffu, is_equal) == 0;
      }
    }
    if (lane == 0) {
      next_in_group[b] = static_cast<int32_t>(next);
      first_in_group[b] = is_first;
    }
  }
  if (blockIdx.x == 0) {
    BlockGroup block;
    const int64_t count = count_valid_rows(p, block);
    if (threadIdx.x == 0) *counted_rows = count;
  }
}

}  // namespace alr_fast
