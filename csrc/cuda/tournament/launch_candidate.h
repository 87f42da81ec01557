// Launches a candidate. candidates.cu is compiled once for each type and variant, so that they
// compile in parallel.
#pragma once

#include <cuda_runtime_api.h>

#include "../launch_row_loss.h"

namespace alr_fast {

#define ALR_DECLARE_CANDIDATE(name)                                                        \
  cudaError_t launch_candidate_##name(const RowLossParams& params, const LaunchPlan& plan, \
                                      const Device& device, bool is_counted, cudaStream_t stream)
ALR_DECLARE_CANDIDATE(float32_kWhole_kArrivals);
ALR_DECLARE_CANDIDATE(float32_kPlainExponential_kArrivals);
ALR_DECLARE_CANDIDATE(float32_kCopy_kArrivals);
ALR_DECLARE_CANDIDATE(float32_kWhole_kCluster);
ALR_DECLARE_CANDIDATE(float32_kWhole_kPolled);
ALR_DECLARE_CANDIDATE(bfloat16_kWhole_kArrivals);
ALR_DECLARE_CANDIDATE(bfloat16_kPlainExponential_kArrivals);
ALR_DECLARE_CANDIDATE(bfloat16_kCopy_kArrivals);
ALR_DECLARE_CANDIDATE(bfloat16_kWhole_kCluster);
ALR_DECLARE_CANDIDATE(bfloat16_kWhole_kPolled);

}  // namespace alr_fast
