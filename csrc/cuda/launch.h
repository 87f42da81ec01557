// Launchers of the CUDA kernels: plain pointers and a stream, no tensors.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "../alr_params.h"
#include "duplicates.h"

namespace alr_fast {

// The whole operation on `stream` of the current device: one launch of the row kernel; the pre-pass
// before it with needs_prepare; with needs_groups another one that stores rows with equal indices.
// All pointers are device memory; the table may be pinned host memory. row_loss has row_loss_size
// elements and is aligned to 16 bytes; counters are 0. `group_memory` has the bytes of
// place_groups, not initialised; null without groups. Does nothing for rows = 0. Throws
// std::invalid_argument for a size or dtype without a kernel.
cudaError_t launch_row_loss(const RowLossParams& params, void* group_memory, cudaStream_t stream);

// Counters for the next call on `stream` of the current device, whose number is `device`. Null if
// none are left for a captured call: more are captured than there are slots.
cudaError_t counters_of_call(cudaStream_t stream, int device, CallCounters** counters);

// out = grad_rows * grad_scale * grad_output * row_weight. `out` and `grad_rows` are the same or do
// not overlap.
cudaError_t launch_scale_grad(const ScaleGradParams& params, cudaStream_t stream);

}  // namespace alr_fast
