// The kernels of all candidates. CMake compiles this file once for each type of logits and bank,
// ALR_ELEMENT, and each variant, ALR_ARITHMETIC and ALR_FINISH; ALR_NAME is in the launcher's name.

#include "../launch_row.cuh"
#include "candidates.cuh"
#include "launch_candidate.h"

namespace alr_fast {

#define ALR_JOIN(a, b, c, d) a##b##_##c##_##d
#define ALR_LAUNCHER(name, arithmetic, finish) ALR_JOIN(launch_candidate_, name, arithmetic, finish)

cudaError_t ALR_LAUNCHER(ALR_NAME, ALR_ARITHMETIC,
                         ALR_FINISH)(const RowLossParams& params, const LaunchPlan& plan,
                                     const Device& device, bool is_counted, cudaStream_t stream) {
  return dispatch_candidate<ALR_ELEMENT, Arithmetic::ALR_ARITHMETIC, Finish::ALR_FINISH>(
      plan, [&](auto kernel, const LaunchPlan& plan) {
        return launch_row<decltype(kernel)>(params, plan, device, is_counted, stream);
      });
}

}  // namespace alr_fast
