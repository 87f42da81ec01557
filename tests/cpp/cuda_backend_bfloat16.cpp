#include "cuda_backend_row_loss.h"

void test::run_row_loss_bfloat16(const alr_fast::RowLossParams& params,
                                 const alr_fast::LaunchPlan& plan, bool is_counted) {
  run_row_loss_of<__nv_bfloat16>(params, plan, is_counted);
}
