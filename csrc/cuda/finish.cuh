// Results of the batch: the number of valid rows, and the reduced loss, which the last block to
// finish computes in a fixed order.
#pragma once

#include <cstdint>

#include "../alr_params.h"
#include "memory.cuh"
#include "reduce.cuh"

namespace alr_fast {

__device__ __forceinline__ unsigned long long* status_word(const RowLossParams& p, int n) {
  return reinterpret_cast<unsigned long long*>(p.status + n);
}

// Counts the rows from `begin` to `end` that are not ignored; called by a whole block.
__device__ __forceinline__ int64_t count_valid_rows(const RowLossParams& p, int64_t begin,
                                                    int64_t end, BlockGroup& block) {
  int64_t count = 0;
  for (int64_t b = begin + block.rank(); b < end; b += block.size()) count += index_at(p, b) >= 0;
  return block.reduce(count, Add());
}

// Number of rows that are not ignored, or -1 if it is not needed before the first row is written
// (the gradient of a mean needs it). `is_counted`: the pre-pass has counted them.
__device__ __forceinline__ int64_t valid_rows_before(const RowLossParams& p, bool is_counted,
                                                     BlockGroup& block) {
  if (p.reduction != Reduction::kMean || p.grad_mode != GradMode::kFinal) return -1;
  if (keeps_all_rows(p)) return p.rows;
  if (is_counted) return p.status[kStatusCounted];
  return count_valid_rows(p, 0, p.rows, block);
}

// Contribution of a block to the batch. RowLossParams::row_loss holds [gridDim.x] of them where it
// is scratch.
struct BlockPartial {
  double loss = 0;    // sum over its rows
  int64_t valid = 0;  // rows that are not ignored
};

struct AddPartials {
  __device__ __forceinline__ BlockPartial operator()(const BlockPartial& a,
                                                     const BlockPartial& b) const {
    return {a.loss + b.loss, a.valid + b.valid};
  }
};

// Called by a whole block after its rows; `partial` is valid in its first thread.
__device__ __forceinline__ void finish_batch(const RowLossParams& p, const BlockPartial& partial,
                                             BlockGroup& block) {
  __syncthreads();  // all threads have read the states that are reset below
  BlockPartial* const partials = static_cast<BlockPartial*>(p.row_loss);
  const bool is_reduced = p.reduction != Reduction::kNone;
  bool is_last = false;
  if (threadIdx.x == 0) {
    if (is_reduced) partials[blockIdx.x] = partial;
    __threadfence();  // makes this block's partial visible before the block is counted
    is_last = atomicAdd(status_word(p, kStatusArrivals), 1ull) == gridDim.x - 1;
  }
  if (!__syncthreads_or(is_last)) return;
  __threadfence();

  double divisor = 1;
  if (is_reduced) {
    BlockPartial total;
    // Other blocks wrote them: bypass the L1 cache of this multiprocessor.
    for (unsigned n = threadIdx.x; n < gridDim.x; n += blockDim.x)
      total = AddPartials()(total, {__ldcg(&partials[n].loss), __ldcg(&partials[n].valid)});
    total = block.reduce(total, AddPartials());
    if (p.reduction == Reduction::kMean && total.valid > 0)
      divisor = static_cast<double>(total.valid);
    if (threadIdx.x == 0) *static_cast<float*>(p.loss) = static_cast<float>(total.loss / divisor);
  }
  if (threadIdx.x == 0) {
    *static_cast<float*>(p.grad_scale) = static_cast<float>(1 / (divisor * p.stored_scale));
    if (p.rounding_state != nullptr) ++p.rounding_state[1];
    p.status[kStatusArrivals] = 0;
    p.status[kStatusCounted] = 0;
  }
}

}  // namespace alr_fast
