// What concerns the batch and not a row: the number of rows that count, and the reduced loss, which
// the block that arrives last computes in a fixed order.
#pragma once

#include <cstdint>

#include "../alr_params.h"
#include "memory.cuh"
#include "reduce.cuh"

namespace alr_fast {

// Rows that are not ignored; called by a whole block.
__device__ __forceinline__ int64_t count_valid_rows(const RowLossParams& p, BlockGroup& block) {
  if (p.index == nullptr) return p.rows;
  int64_t count = 0;
  for (int64_t b = block.rank(); b < p.rows; b += block.size()) count += index_at(p, b) >= 0;
  return block.reduce(count, Add());
}

// The gradient of a mean needs the count before the first row is written.
__device__ __forceinline__ bool needs_count_first(const RowLossParams& p) {
  return p.reduction == Reduction::kMean && p.grad_mode == GradMode::kFinal;
}

// Called by a whole block after its rows. `valid_rows` is negative where it was not counted yet.
__device__ __forceinline__ void finish_batch(const RowLossParams& p, int64_t valid_rows,
                                             BlockGroup& block) {
  auto* const arrivals = reinterpret_cast<unsigned long long*>(p.status + kStatusArrivals);
  __syncthreads();  // the rows of this block are written
  bool is_last = false;
  if (threadIdx.x == 0) {
    __threadfence();  // before this block is counted, other blocks can see its rows
    is_last = atomicAdd(arrivals, 1ull) == gridDim.x - 1;
  }
  if (!__syncthreads_or(is_last)) return;
  __threadfence();

  double divisor = 1;
  if (p.reduction == Reduction::kMean) {
    if (valid_rows < 0) valid_rows = count_valid_rows(p, block);
    if (valid_rows > 0) divisor = static_cast<double>(valid_rows);
  }
  if (p.reduction != Reduction::kNone) {
    const float* const row_loss = static_cast<const float*>(p.row_loss);  // [B]
    double sum = 0;
    // Other blocks wrote it: not from this multiprocessor's L1 cache.
    for (int64_t b = block.rank(); b < p.rows; b += block.size()) sum += __ldcg(row_loss + b);
    sum = block.reduce(sum, Add());
    if (threadIdx.x == 0) *static_cast<float*>(p.loss) = static_cast<float>(sum / divisor);
  }
  if (threadIdx.x == 0) {
    *static_cast<float*>(p.grad_scale) = static_cast<float>(1 / (divisor * p.stored_scale));
    if (p.rounding_state != nullptr) ++p.rounding_state[1];  // every block has read it
    *arrivals = 0;
  }
}

}  // namespace alr_fast
