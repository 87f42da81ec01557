// Launches the row kernel. CMake compiles this file once for each type of logits: ALR_LOGITS, and
// ALR_NAME in the launcher's name.

#include "dispatch.cuh"
#include "launch_row.cuh"

namespace alr_fast {

#define ALR_JOIN(a, b) a##b
#define ALR_LAUNCHER(name) ALR_JOIN(launch_row_loss_, name)

cudaError_t ALR_LAUNCHER(ALR_NAME)(const RowLossParams& params, const LaunchPlan& plan,
                                   const Device& device, bool is_counted, cudaStream_t stream) {
  return dispatch_row_loss<ALR_LOGITS>(params, plan, [&](auto kernel, const LaunchPlan& plan) {
    return launch_row<decltype(kernel)>(params, plan, device, is_counted, stream);
  });
}

}  // namespace alr_fast
