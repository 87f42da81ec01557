// Launches a candidate. candidates.cu is compiled once for each type and arithmetic, so that they
// compile in parallel.
#pragma once

#include <cuda_runtime_api.h>

#include "../launch_row_loss.h"

namespace alr_fast {

#define ALR_DECLARE_CANDIDATE(name)                                                        \
  cudaError_t launch_candidate_##name(const RowLossParams& params, const LaunchPlan& plan, \
                                      const Device& device, bool is_counted, cudaStream_t stream)
ALR_DECLARE_CANDIDATE(float32_kWhole);
ALR_DECLARE_CANDIDATE(float32_kPlainExponential);
ALR_DECLARE_CANDIDATE(float32_kCopy);
ALR_DECLARE_CANDIDATE(bfloat16_kWhole);
ALR_DECLARE_CANDIDATE(bfloat16_kPlainExponential);
ALR_DECLARE_CANDIDATE(bfloat16_kCopy);

}  // namespace alr_fast
