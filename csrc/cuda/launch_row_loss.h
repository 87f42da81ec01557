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
#define ALR_DECLARE_LAUNCH(type)                                                          \
  cudaError_t launch_row_loss_##type(const RowLossParams& params, const LaunchPlan& plan, \
                                     const Device& device, bool is_counted, cudaStream_t stream)
ALR_DECLARE_LAUNCH(float32);
ALR_DECLARE_LAUNCH(float16);
ALR_DECLARE_LAUNCH(bfloat16);

}  // namespace alr_fast
