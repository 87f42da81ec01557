// Launches with the error of each, and what the launchers' source files share.
#pragma once

#include <cuda_runtime.h>

#include "../alr_params.h"
#include "../launch_plan.h"

namespace alr_fast {

template <class... Expected, class... Args>
cudaError_t launch_kernel(void (*kernel)(Expected...), dim3 grid, dim3 block, int shared_memory,
                          cudaStream_t stream, Args... args) {
  cudaLaunchConfig_t config = {};
  config.gridDim = grid;
  config.blockDim = block;
  config.dynamicSmemBytes = shared_memory;
  config.stream = stream;
  return cudaLaunchKernelEx(&config, kernel, static_cast<Expected>(args)...);
}

// The row kernel for one type of logits; a source file each, so that they compile in parallel.
// `params` holds the groups, `counted_rows` is [1] or null.
cudaError_t launch_row_loss_float32(const RowLossParams& params, const LaunchPlan& plan,
                                    const int64_t* counted_rows, cudaStream_t stream);
cudaError_t launch_row_loss_float16(const RowLossParams& params, const LaunchPlan& plan,
                                    const int64_t* counted_rows, cudaStream_t stream);
cudaError_t launch_row_loss_bfloat16(const RowLossParams& params, const LaunchPlan& plan,
                                     const int64_t* counted_rows, cudaStream_t stream);

}  // namespace alr_fast
