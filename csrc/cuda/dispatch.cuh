// Selects the instantiation for run-time values. `launch(kernel, plan)` launches it: with
// cudaLaunchKernelEx on a device, on the CPU in the tests.
#pragma once

#include "../alr_params.h"
#include "launch_plan.h"
#include "row_loss.cuh"
#include "scale_grad.cuh"

namespace alr_fast {

// The widths that supported_width (launch_plan.cpp) returns.
template <class Logits, class Target, Regime kRegime, class Launch>
auto dispatch_vector(const LaunchPlan& plan, const Launch& launch) {
  constexpr int kFull = full_vector_width(sizeof(Logits), sizeof(typename Target::Element));
  if constexpr (kRegime == Regime::kSubWarp || kRegime == Regime::kWarp) {
    if (plan.vector_width == 2)
      return launch(RowLossKernel<RowTraits<Logits, Target, kRegime, 2>>(), plan);
  }
  if constexpr (kRegime != Regime::kShared) {
    if (plan.vector_width == 1)
      return launch(RowLossKernel<RowTraits<Logits, Target, kRegime, 1>>(), plan);
  }
  return launch(RowLossKernel<RowTraits<Logits, Target, kRegime, kFull>>(), plan);
}

template <class Logits, class Target, class Launch>
auto dispatch_regime(const LaunchPlan& plan, const Launch& launch) {
  return visit_regime(plan.regime, [&](auto regime) {
    return dispatch_vector<Logits, Target, decltype(regime)::value>(plan, launch);
  });
}

// launch_plan has already rejected float64.
template <class Logits, class Launch>
auto dispatch_row_loss(const RowLossParams& params, const LaunchPlan& plan, const Launch& launch) {
  if (params.target.table == nullptr)
    return dispatch_regime<Logits, LabelTarget<Logits>>(plan, launch);
  switch (params.target.dtype) {
    case DType::kFloat16:
      return dispatch_regime<Logits, TableTarget<__half>>(plan, launch);
    case DType::kBFloat16:
      return dispatch_regime<Logits, TableTarget<__nv_bfloat16>>(plan, launch);
    default:
      return dispatch_regime<Logits, TableTarget<float>>(plan, launch);
  }
}

template <class T, class Launch>
auto dispatch_scale_grad(const ScaleGradPlan& plan, const Launch& launch) {
  constexpr int kFull = kAccessBytes / sizeof(T);
  return plan.vector_width == kFull ? launch(scale_grad_kernel<T, kFull>, plan)
                                    : launch(scale_grad_kernel<T, 1>, plan);
}

}  // namespace alr_fast
