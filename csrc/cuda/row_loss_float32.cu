#include "launch_row_loss.cuh"

namespace alr_fast {

cudaError_t launch_row_loss_float32(const RowLossParams& params, const LaunchPlan& plan,
                                    const int64_t* counted_rows, cudaStream_t stream) {
  return launch_row_loss_of<float>(params, plan, counted_rows, stream);
}

}  // namespace alr_fast
