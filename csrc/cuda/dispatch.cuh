// Selects the instantiation for run-time values. `launch(kernel, plan)` launches it: with
// cudaLaunchKernelEx on a device, on the CPU in the tests.
#pragma once

#include "../alr_params.h"
#include "kernels.h"
#include "launch_plan.h"
#include "row_loss.cuh"
#include "scale_grad.cuh"

namespace alr_fast {

template <class Logits, class Target>
constexpr int narrower_bytes() {
  return sizeof(Logits) < sizeof(typename Target::Element) ? sizeof(Logits)
                                                           : sizeof(typename Target::Element);
}

template <class Logits, class Target>
constexpr RowTypes row_types() {
  return {dtype_of<Logits>(), Target::kIsTable
                                  ? std::optional<DType>(dtype_of<typename Target::Element>())
                                  : std::nullopt};
}

// As choose_kernel (kernels.h): where there is no other kernel, the plan is that of AnyTarget.
template <class Logits, class Target, Regime kRegime, int kVector, class Launch>
auto dispatch_extras(const LaunchPlan& plan, const Launch& launch) {
  constexpr RowTypes kTypes = row_types<Logits, Target>();
  if constexpr (has_kernel(kTypes, shape_of(kRegime), kVector, false)) {
    using Traits = RowTraits<Logits, Target, kRegime, kVector, false>;
    if constexpr (has_tiny_finish(kRegime)) {
      if (plan.finish == kTinyFinish)
        return launch(RowLossKernel<FinishedBy<Traits, kTinyFinish>>(), plan);
    }
    if (!plan.has_extras) return launch(RowLossKernel<Traits>(), plan);
  }
  if constexpr (has_kernel(kTypes, shape_of(kRegime), kVector, true)) {
    return launch(RowLossKernel<RowTraits<Logits, Target, kRegime, kVector, true>>(), plan);
  } else {
    return launch(RowLossKernel<RowTraits<Logits, AnyTarget, kRegime, 1, true>>(), plan);
  }
}

template <class Logits, class Target, Regime kRegime, class Launch>
auto dispatch_vector(const LaunchPlan& plan, const Launch& launch) {
  constexpr int kFull = full_vector_width(sizeof(Logits), sizeof(typename Target::Element));
  constexpr RowTypes kTypes = row_types<Logits, Target>();
  if constexpr (has_kernels(kTypes, shape_of(kRegime), 2)) {
    if (plan.vector_width == 2) return dispatch_extras<Logits, Target, kRegime, 2>(plan, launch);
  }
  if (plan.vector_width == 1 || !has_kernels(kTypes, shape_of(kRegime), kFull))
    return dispatch_extras<Logits, Target, kRegime, 1>(plan, launch);
  return dispatch_extras<Logits, Target, kRegime, kFull>(plan, launch);
}

// Looks for the plan's regime from entry kEntry of the launch table of these types on.
template <class Logits, class Target, int kEntry = 0, class Launch>
auto dispatch_regime(const LaunchPlan& plan, const Launch& launch) {
  constexpr LaunchTable kTable = launch_table(narrower_bytes<Logits, Target>());
  if constexpr (kEntry == kTable.size) {
    return dispatch_vector<Logits, Target, kFallback.regime>(plan, launch);
  } else {
    constexpr Regime kRegime = kTable.entries[kEntry].regime;
    if (plan.regime == kRegime) return dispatch_vector<Logits, Target, kRegime>(plan, launch);
    return dispatch_regime<Logits, Target, kEntry + 1>(plan, launch);
  }
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
