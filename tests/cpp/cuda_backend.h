// Stands in for the CUDA launchers; kernels run on the CPU.
#pragma once

#include <cstdint>
#include <functional>

#include "alr_params.h"
#include "cuda/launch_plan.h"
#include "cuda_shim_async.h"

namespace test {

// Variations between launches, set by the tests.
struct Variation {
  // The order in which threads and blocks run.
  bool reverse_threads = false, reverse_blocks = false, newest_first = false;
  int resident_rows = 1 << 20;             // that blocks or clusters work on at the same time
  int64_t most_prepare_threads = 1 << 20;  // each takes several rows where rows are more
  alr_fast::DeviceLimits limits;
  alr_fast::Finish finish = alr_fast::Finish::kArrivals;
  cuda_shim::Delivery delivery = cuda_shim::Delivery::kEarliest;  // of asynchronous copies
  unsigned seed = 1;                                              // of random ones
  cuda_shim::Filling filling = cuda_shim::kNaN;                   // of shared memory
};
extern Variation variation;

void run_row_loss(const alr_fast::RowLossParams& params);

// The whole operation by one row kernel, and by another that stores rows with equal indices.
// Arguments: all parameters of a launch, and whether the rows are counted.
using RowLaunch = std::function<void(const alr_fast::RowLossParams&, bool)>;
void run_row_loss_by(const alr_fast::RowLossParams& params, const RowLaunch& launch,
                     const RowLaunch& store_groups);
void run_scale_grad(const alr_fast::ScaleGradParams& params);

// For one type of logits; a source file each, so that they compile in parallel.
void run_row_loss_float32(const alr_fast::RowLossParams& params, const alr_fast::LaunchPlan& plan,
                          bool is_counted);
void run_row_loss_float16(const alr_fast::RowLossParams& params, const alr_fast::LaunchPlan& plan,
                          bool is_counted);
void run_row_loss_bfloat16(const alr_fast::RowLossParams& params, const alr_fast::LaunchPlan& plan,
                           bool is_counted);

}  // namespace test
