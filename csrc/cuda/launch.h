// Launchers of the CUDA kernels: plain pointers and a stream, no tensors.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "../alr_params.h"
#include "launch_plan.h"  // needs_groups

namespace alr_fast {

// Uninitialised device memory that one call of launch_row_loss fills. All null if needs_groups is
// false.
struct GroupScratch {
  int32_t* next_in_group = nullptr;   // [B]
  uint8_t* first_in_group = nullptr;  // [B]
  int32_t* chain = nullptr;           // [B]
};

// The whole operation on `stream` of the current device, in one launch, or two with needs_groups or
// needs_count_before. All pointers are device memory; the table may be pinned host memory. In
// contrast to the CPU, `status` is not null and its scratch entries are 0; row_loss has
// row_loss_size elements and is aligned to 16 bytes. next_in_group and first_in_group are ignored.
// Does nothing for rows = 0. Throws std::invalid_argument for a size or dtype without a kernel.
cudaError_t launch_row_loss(const RowLossParams& params, const GroupScratch& scratch,
                            cudaStream_t stream);

// A status, as above, for callers without one: one for each stream, and one for each captured call,
// since a graph can be replayed concurrently with its stream. Null if all are in use.
cudaError_t status_of_stream(cudaStream_t stream, int device, int64_t** status);

// out = grad_rows * grad_scale * grad_output * row_weight. `out` and `grad_rows` are the same or do
// not overlap.
cudaError_t launch_scale_grad(const ScaleGradParams& params, cudaStream_t stream);

}  // namespace alr_fast
