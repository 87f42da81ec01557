#include "cuda_backend_row_loss.h"

void test::run_row_loss_float16(const alr_fast::RowLossParams& params,
                                const alr_fast::LaunchPlan& plan, bool is_counted) {
  run_row_loss_of<__half>(params, plan, is_counted);
}
