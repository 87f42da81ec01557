// Launchers of the CUDA kernels: plain pointers and a stream, no tensors.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "../alr_params.h"
#include "../launch_plan.h"  // needs_groups

namespace alr_fast {

// Device memory for one call of launch_row_loss, which fills it: it need not be initialised. All
// null where needs_groups is false.
struct GroupScratch {
  int32_t* next_in_group = nullptr;   // [B]
  uint8_t* first_in_group = nullptr;  // [B]
  int32_t* chain = nullptr;           // [B]
};

// The whole operation on `stream` of the current device, in one launch, or two with needs_groups or
// needs_count_before. All pointers are device memory; the table may be pinned host memory. Beyond
// the CPU's needs: `status` is not null, and its scratch entries are 0; row_loss has row_loss_size
// elements and is aligned to 16 bytes. next_in_group and first_in_group are ignored. Returns at
// once for rows = 0, writing nothing. Throws std::invalid_argument for a size or dtype that has no
// kernel.
cudaError_t launch_row_loss(const RowLossParams& params, const GroupScratch& scratch,
                            cudaStream_t stream);

// A status, as above, for a call whose caller has none: each stream has one, and each captured call
// one of its own, since a graph may be replayed beside its stream. Null where all are taken.
cudaError_t status_of_stream(cudaStream_t stream, int device, int64_t** status);

// out = grad_rows * grad_scale * grad_output * row_weight. `out` and `grad_rows` do not overlap.
cudaError_t launch_scale_grad(const ScaleGradParams& params, cudaStream_t stream);

}  // namespace alr_fast
