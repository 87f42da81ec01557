#include "launch_row_loss.cuh"

namespace alr_fast {

cudaError_t launch_row_loss_bfloat16(const RowLossParams& params, const LaunchPlan& plan,
                                     const int64_t* counted_rows, cudaStream_t stream) {
  return launch_row_loss_of<__nv_bfloat16>(params, plan, counted_rows, stream);
}

}  // namespace alr_fast
