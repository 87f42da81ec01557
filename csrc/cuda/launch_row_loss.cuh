// The body of the row_loss_*.cu files.
#pragma once

#include "dispatch.cuh"
#include "launch.cuh"

namespace alr_fast {

template <class Logits>
cudaError_t launch_row_loss_of(const RowLossParams& params, const LaunchPlan& plan,
                               const int64_t* counted_rows, cudaStream_t stream) {
  return dispatch_row_loss<Logits>(params, plan, [&](auto* kernel, const LaunchPlan& plan) {
    return launch_kernel(kernel, dim3(static_cast<unsigned>(plan.blocks)),
                         dim3(plan.threads_per_block), plan.shared_memory, stream, params,
                         counted_rows);
  });
}

}  // namespace alr_fast
