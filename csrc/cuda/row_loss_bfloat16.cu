#include "launch_row_loss.cuh"

namespace alr_fast {

cudaError_t launch_row_loss_bfloat16(const RowLossParams& params, const LaunchPlan& plan,
                                     const Device& device, bool is_counted, cudaStream_t stream) {
  return launch_row_loss_of<__nv_bfloat16>(params, plan, device, is_counted, stream);
}

}  // namespace alr_fast
