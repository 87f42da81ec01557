// Launches the row kernel of one type of logits. row_loss.cu is compiled once for each, so that
// they compile in parallel.
#pragma once

#include <cuda_runtime_api.h>

#include "../alr_params.h"
#include "launch_plan.h"

namespace alr_fast {

constexpr int kPortableClusterBlocks = 8;

struct Device {
  int number = 0;
  int multiprocessors = 0;
  DeviceLimits limits;
};

// `params` holds the groups; `is_counted`: the status holds the number of valid rows.
using RowLauncher = cudaError_t(const RowLossParams& params, const LaunchPlan& plan,
                                const Device& device, bool is_counted, cudaStream_t stream);
RowLauncher launch_row_loss_float32, launch_row_loss_float16, launch_row_loss_bfloat16;

}  // namespace alr_fast
