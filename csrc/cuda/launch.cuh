// Declarations shared by the launchers' source files.
#pragma once

#include <cuda_runtime.h>

#include "../alr_params.h"
#include "launch_plan.h"

namespace alr_fast {

constexpr int kPortableClusterBlocks = 8;

struct Device {
  int multiprocessors = 0;
  DeviceLimits limits;
};

// The row kernel for one type of logits. Each type has a source file, so that they compile in
// parallel. `params` holds the groups; `is_counted`: the counters hold the number of valid rows.
cudaError_t launch_row_loss_float32(const RowLossParams& params, const LaunchPlan& plan,
                                    const Device& device, bool is_counted, cudaStream_t stream);
cudaError_t launch_row_loss_float16(const RowLossParams& params, const LaunchPlan& plan,
                                    const Device& device, bool is_counted, cudaStream_t stream);
cudaError_t launch_row_loss_bfloat16(const RowLossParams& params, const LaunchPlan& plan,
                                     const Device& device, bool is_counted, cudaStream_t stream);

}  // namespace alr_fast
