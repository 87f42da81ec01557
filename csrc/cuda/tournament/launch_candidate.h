// Launches a candidate. candidates.cu is compiled once for each type and variant, so that they
// compile in parallel.
#pragma once

#include <cuda_runtime_api.h>

#include "../launch_row_loss.h"

namespace alr_fast {

RowLauncher launch_candidate_float32_kWhole_kArrivals,
    launch_candidate_float32_kPlainExponential_kArrivals, launch_candidate_float32_kCopy_kArrivals,
    launch_candidate_float32_kWhole_kCluster, launch_candidate_float32_kWhole_kPolled,
    launch_candidate_bfloat16_kWhole_kArrivals,
    launch_candidate_bfloat16_kPlainExponential_kArrivals,
    launch_candidate_bfloat16_kCopy_kArrivals, launch_candidate_bfloat16_kWhole_kCluster,
    launch_candidate_bfloat16_kWhole_kPolled;

}  // namespace alr_fast
