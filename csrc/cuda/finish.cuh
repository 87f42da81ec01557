// Results of the batch: the number of valid rows, and the reduced loss, which the last block to
// finish computes in a fixed order.
#pragma once

#include <cstdint>

#include "../alr_params.h"
#include "memory.cuh"
#include "reduce.cuh"

namespace alr_fast {

constexpr int kIndicesAtOnce = kAccessBytes / sizeof(int32_t);  // of one access to shared memory

// Counts the rows that are not ignored; called by a whole block. Also copies all indices to
// `indices`, whole accesses of them, unless it is null: -1 for a row without a target row.
template <class Block>
__device__ __forceinline__ int64_t count_valid_rows(const RowLossParams& p, int32_t* indices,
                                                    Block& block) {
  int64_t count = 0;
  const int64_t rows =
      indices == nullptr ? p.rows : (p.rows + kIndicesAtOnce - 1) / kIndicesAtOnce * kIndicesAtOnce;
#pragma unroll 1
  for (int64_t b = block.rank(); b < rows; b += Block::kThreads) {
    const int64_t i = b < p.rows ? index_at(p, b) : -1;
    count += i >= 0;
    if (indices != nullptr)
      indices[b] = i >= 0 && !is_out_of_range(p, b, i) ? static_cast<int32_t>(i) : -1;
  }
  return block.reduce(count, Add());
}

// Number of rows that are not ignored, or -1 if it is not needed before the first row is written
// (the gradient of a mean needs it). `is_counted`: the pre-pass has counted them. `indices`: see
// count_valid_rows.
template <class Block>
__device__ __forceinline__ int64_t valid_rows_before(const RowLossParams& p, bool is_counted,
                                                     int32_t* indices, Block& block) {
  const bool is_needed = p.reduction == Reduction::kMean && p.grad_mode == GradMode::kFinal;
  if (indices == nullptr) {
    if (!is_needed) return -1;
    if (keeps_all_rows(p)) return p.rows;
    if (is_counted) return static_cast<int64_t>(p.counters->counted);
  }
  const int64_t count = count_valid_rows(p, indices, block);
  return is_needed ? count : -1;
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
template <class Block>
__device__ __forceinline__ void finish_batch(const RowLossParams& p, const BlockPartial& partial,
                                             Block& block) {
  __syncthreads();  // all threads have read the counters that are reset below
  BlockPartial* const partials = static_cast<BlockPartial*>(p.row_loss);
  const bool is_reduced = p.reduction != Reduction::kNone;
  bool is_last = false;
  if (threadIdx.x == 0) {
    if (is_reduced) partials[blockIdx.x] = partial;
    __threadfence();  // makes this block's partial visible before the block is counted
    is_last = atomicAdd(&p.counters->arrived, 1ull) == gridDim.x - 1;
  }
  if (!__syncthreads_or(is_last)) return;
  __threadfence();

  double divisor = 1;
  if (is_reduced) {
    BlockPartial total;
    // Other blocks wrote them: bypass the L1 cache of this multiprocessor.
#pragma unroll 1
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
    p.counters->arrived = 0;
    p.counters->counted = 0;
  }
}

}  // namespace alr_fast
