// The CUDA launchers' part, with kernels that run on the CPU.
#pragma once

#include <cstdint>

#include "alr_params.h"
#include "launch_plan.h"

namespace test {

// In which order threads and blocks run; set by the tests.
struct Order {
  bool reverse_threads = false, reverse_blocks = false, newest_first = false;
};
extern Order order;

void run_row_loss(const alr_fast::RowLossParams& params);
void run_scale_grad(const alr_fast::ScaleGradParams& params);

// For one type of logits; a source file each, so that they compile in parallel.
void run_row_loss_float32(const alr_fast::RowLossParams& params, const alr_fast::LaunchPlan& plan,
                          const int64_t* counted_rows);
void run_row_loss_float16(const alr_fast::RowLossParams& params, const alr_fast::LaunchPlan& plan,
                          const int64_t* counted_rows);
void run_row_loss_bfloat16(const alr_fast::RowLossParams& params, const alr_fast::LaunchPlan& plan,
                           const int64_t* counted_rows);

}  // namespace test
