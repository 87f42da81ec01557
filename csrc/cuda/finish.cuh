// Results of the batch: the number of valid rows, and the reduced loss, which one block computes in
// a fixed order from the partial sums of all of them.
#pragma once

#include <cstdint>

#include "../alr_params.h"
#include "bulk_copy.cuh"
#include "cluster.cuh"
#include "memory.cuh"
#include "reduce.cuh"

namespace alr_fast {

constexpr int kIndicesAtOnce = kAccessBytes / sizeof(int32_t);  // of one access to shared memory

// Counts the rows that are not ignored; called by a whole block for up to kRowsSeenByBlock rows.
// Also copies all indices to `indices`, whole accesses of them, unless it is null: -1 for a row
// without a target row. All of them can be read when it returns.
template <class Block>
__device__ __forceinline__ int count_valid_rows(const RowLossParams& p, int32_t* indices,
                                                Block& block) {
  int count = 0;  // of this warp
  const int rows = static_cast<int>(p.rows);
  const int whole =
      indices == nullptr ? rows : (rows + kIndicesAtOnce - 1) / kIndicesAtOnce * kIndicesAtOnce;
#pragma unroll 1
  for (int first = 0; first < whole; first += Block::kThreads) {
    const int b = first + block.rank();
    const int64_t i = b < rows ? index_at(p, b) : -1;
    count += __popc(__ballot_sync(0xffffffffu, i >= 0));
    if (indices != nullptr && b < whole)
      indices[b] = i >= 0 && !is_out_of_range(p, b, i) ? static_cast<int32_t>(i) : -1;
  }
  return block.join_warps(count, Add());
}

// Contribution of a block to the batch. RowLossParams::row_loss holds [gridDim.x] of them where it
// is scratch.
struct alignas(kPartialBytes) BlockPartial {
  double loss = 0;    // sum over its rows
  int64_t valid = 0;  // rows that are not ignored
};
static_assert(sizeof(BlockPartial) == kPartialBytes, "one access");

struct AddPartials {
  __device__ __forceinline__ BlockPartial operator()(const BlockPartial& a,
                                                     const BlockPartial& b) const {
    return {a.loss + b.loss, a.valid + b.valid};
  }
};

// A partial sum in device memory, by one access. Other blocks may have written it: past the L1
// cache of this multiprocessor.
__device__ __forceinline__ BlockPartial load_partial(const BlockPartial* from) {
  const ulonglong2 words = __ldcg(reinterpret_cast<const ulonglong2*>(from));
  BlockPartial partial;
  __builtin_memcpy(static_cast<void*>(&partial), &words, sizeof(partial));
  return partial;
}

// 1 / count for count >= 1, to far less than half a unit of float: count / count rounds to 1.
__device__ __forceinline__ double inverse_of_count(int64_t count) {
  const double n = static_cast<double>(count);
  const double rough = reciprocal(static_cast<float>(n));
  return fma(rough, fma(-n, rough, 1.0), rough);
}

// Writes the results of the call, by one thread. `grad_scale`: 1 / stored_scale; `total` is only
// there if the loss is reduced.
__device__ __forceinline__ void finish_call(const RowLossParams& p, double grad_scale,
                                            const BlockPartial& total) {
  double inverse = 1;
  if (p.reduction == Reduction::kMean && total.valid > 0) inverse = inverse_of_count(total.valid);
  if (p.reduction != Reduction::kNone)
    *static_cast<float*>(p.loss) = static_cast<float>(total.loss * inverse);
  *static_cast<float*>(p.grad_scale) = static_cast<float>(grad_scale * inverse);
  if (p.rounding_state != nullptr) ++p.rounding_state[1];
  p.counters->counted = 0;
}

// The block that arrives last adds all partial sums. Called by a whole block after its rows, whose
// threads have read the counters; `partial` is valid in its first thread.
template <class Block>
__device__ __forceinline__ void finish_by_arrivals(const RowLossParams& p, double grad_scale,
                                                   const BlockPartial& partial, Block& block) {
  BlockPartial* const partials = static_cast<BlockPartial*>(p.row_loss);
  const bool is_reduced = p.reduction != Reduction::kNone;
  bool is_last = false;
  if (threadIdx.x == 0) {
    if (is_reduced) partials[blockIdx.x] = partial;
    // Releases this block's partial sum. The last arrival acquires those of all blocks before it,
    // since arrivals are atomic operations on one word; the barrier below extends that to its
    // block. Nothing else is passed between blocks, so no other thread needs a fence.
    is_last = arrive(&p.counters->arrived) == gridDim.x - 1;
  }
  if (!__syncthreads_or(is_last)) return;

  BlockPartial total;
  if (is_reduced) {
#pragma unroll 1
    for (unsigned n = threadIdx.x; n < gridDim.x; n += blockDim.x)
      total = AddPartials()(total, load_partial(partials + n));
    total = block.reduce(total, AddPartials());
  }
  if (threadIdx.x != 0) return;
  p.counters->arrived = 0;
  finish_call(p, grad_scale, total);
}

// All blocks are one cluster: each stores its partial sum to the shared memory of the first one,
// which adds them. `memory` is a place in shared memory, of kClusterFinishBytes.
//
// The stores count their own bytes on a barrier there, and its end acquires them: there is no
// fence, which would wait for gradient and table rows, and no counter. Other blocks' stores need
// that barrier to be initialised, and the first block to have started: the cluster's barrier says
// so. Its two halves are far apart, so that nobody waits for it.
class ClusterFinish {
 public:
  __device__ __forceinline__ explicit ClusterFinish(unsigned char* memory)
      : partials_(reinterpret_cast<BlockPartial*>(memory)),
        arrived_(*reinterpret_cast<Barrier*>(memory + kMaxClusterBlocks * sizeof(BlockPartial))) {}

  // By all threads, before their rows.
  __device__ __forceinline__ void begin() {
    if (blockIdx.x == 0 && threadIdx.x == 0) {
      arrived_.init(1);
      Barrier::fence_init();
      arrived_.arrive_expect(static_cast<int>(gridDim.x * sizeof(BlockPartial)));
    }
#if ALR_FAST_HAS_CLUSTERS
    __cluster_barrier_arrive_relaxed();
#endif
  }

  // By all threads, after their rows; `partial` is valid in the block's first one.
  __device__ __forceinline__ void end(const RowLossParams& p, double grad_scale,
                                      const BlockPartial& partial) {
#if ALR_FAST_HAS_CLUSTERS
    __cluster_barrier_wait();
#endif
    if (threadIdx.x == 0) store_remote(partials_ + blockIdx.x, partial, arrived_, 0);
    if (blockIdx.x != 0 || threadIdx.x >= kWarpThreads) return;
    arrived_.wait<Scope::kCluster>(0);
    BlockPartial total;
    if (threadIdx.x < gridDim.x) total = partials_[threadIdx.x];
    total = reduce_lanes<kWarpThreads>(0xffffffffu, total, AddPartials());
    if (threadIdx.x == 0) finish_call(p, grad_scale, total);
  }

 private:
  BlockPartial* partials_;
  Barrier& arrived_;
};
static_assert(kMaxClusterBlocks * sizeof(BlockPartial) + sizeof(Barrier) <= kClusterFinishBytes,
              "as the plan counts");

// A partial sum as two words that say themselves that they are there: the halves of the loss, each
// with a number that is not 0.
__device__ __forceinline__ void send_partial(unsigned long long* words,
                                             const BlockPartial& partial) {
  unsigned long long loss;
  __builtin_memcpy(&loss, &partial.loss, sizeof(loss));
  const auto valid = static_cast<unsigned long long>(partial.valid);
  store_relaxed(words, loss << 32 | 1);
  store_relaxed(words + 1, (loss >> 32) << 32 | (valid + 1));
}

// Waits for the words, and sets them to 0 for the next call.
__device__ __forceinline__ BlockPartial receive_partial(unsigned long long* words) {
  unsigned long long low, high;
  do {
    high = load_relaxed(words + 1);
    low = load_relaxed(words);
  } while (low == 0 || high == 0);
  words[0] = words[1] = 0;
  const unsigned long long loss = (high >> 32) << 32 | low >> 32;
  BlockPartial partial;
  __builtin_memcpy(&partial.loss, &loss, sizeof(loss));
  partial.valid = static_cast<int64_t>(high & 0xffffffffu) - 1;
  return partial;
}

// The last block waits for all others. Each word is a single access, and holds all that is passed:
// no order with other accesses is needed, so there is no fence, and no counter.
//
// Others must be able to run while the last block waits. They are: the grid is no larger than what
// is resident at once, and blocks start in the order of their numbers. CUDA promises neither where
// other kernels take the room, which is why this way is not the default.
template <class Block>
__device__ __forceinline__ void finish_by_polling(const RowLossParams& p, double grad_scale,
                                                  const BlockPartial& partial, Block& block) {
  if (blockIdx.x + 1 < gridDim.x) {
    if (threadIdx.x == 0) send_partial(p.polled_words + 2 * blockIdx.x, partial);
    return;
  }
  BlockPartial total;
#pragma unroll 1
  for (unsigned n = threadIdx.x; n + 1 < gridDim.x; n += blockDim.x)
    total = AddPartials()(total, receive_partial(p.polled_words + 2 * n));
  if (threadIdx.x == 0) total = AddPartials()(total, partial);
  __syncthreads();  // no warp is still at the last reduction of the rows
  total = block.reduce(total, AddPartials());
  if (threadIdx.x == 0) finish_call(p, grad_scale, total);
}

}  // namespace alr_fast
