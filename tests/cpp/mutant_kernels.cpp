// A mutant of the shipped kernels (mutants.txt), for float32 alone and no more of them than its
// cases need: each mutant compiles them.
#include <cmath>
#include <limits>
#include <string>
#include <type_traits>

#include "cuda_backend_row_loss.h"
//
#include "first_error.h"
#include "mutant_cases.h"

namespace {

// Checks the exponential alone: sums over a row hide the error of one element.
std::string wrong_in_exponential() {
  const float lowest = std::numeric_limits<float>::lowest();
  for (float x : {-200.f, lowest, -std::numeric_limits<float>::infinity()})
    if (!(alr_fast::fast_exp(x) == 0)) return "e^" + std::to_string(x) + " is not 0";
  for (float x = 0; x > -87; x -= 0.0137f) {
    const double right = std::exp(static_cast<double>(x));
    if (std::abs(alr_fast::fast_exp(x) / right - 1) > 3 * 1.2e-7)
      return "e^" + std::to_string(x) + " is off by more than 3 units in the last place";
  }
  return "";
}

// The kernels that the cases need: with extras, accesses of one element are those of any target.
template <alr_fast::Regime kRegime, int kVector, bool kExtras = true>
using Kernel = alr_fast::RowLossKernel<alr_fast::RowTraits<
    float,
    std::conditional_t<kVector == 1 && kExtras, alr_fast::AnyTarget, alr_fast::TableTarget<float>>,
    kRegime, kVector, kExtras>>;

}  // namespace

std::string test::first_error() {
  const std::string wrong = wrong_in_exponential();
  return wrong.empty() ? wrong_in_row_losses() : wrong;
}

void test::run_row_loss_float32(const alr_fast::RowLossParams& params,
                                const alr_fast::LaunchPlan& plan, bool is_counted) {
  using alr_fast::Regime;
  alr_fast::dispatch_regime<float, alr_fast::TableTarget<float>>(
      plan, only<Kernel<Regime::kSubWarp, 1>, Kernel<Regime::kHalfWarp, 1>,
                 Kernel<Regime::kHalfWarp, 1, false>, Kernel<Regime::kTwoWarps, 1>,
                 Kernel<Regime::kTwoWarps, 1, false>, Kernel<Regime::kTwoWarps, 4>,
                 Kernel<Regime::kSixteenWarps, 1>, Kernel<Regime::kLoop, 1>>(
                launcher(params, is_counted)));
}
