// Candidates for the launch table: every regime that holds a row in registers, alone and with every
// size of a cluster. Their kernels have no extras, and logits and bank of one type.
#pragma once

#include <vector>

#include "../launch_plan.h"
#include "../launch_table.h"
#include "../row_loss.cuh"

namespace alr_fast {

// As entries for the longest rows that they hold; of one regime, smaller clusters first.
inline std::vector<TableEntry> candidates() {
  std::vector<TableEntry> all;
  for (const RegimeShape& shape : kShapes) {
    if (shape.regime == Regime::kLoop) continue;
    const int most_blocks = shape.can_be_cluster() ? kMaxClusterBlocks : 1;
    for (int blocks = 1; blocks <= most_blocks; blocks *= 2)
      all.push_back({int64_t{shape.columns()} * blocks, shape.regime, blocks});
  }
  return all;
}

template <class Element, Regime kRegime, int kVector, Arithmetic kArithmetic_, Finish kFinish_>
struct CandidateTraits : RowTraits<Element, TableTarget<Element>, kRegime, kVector, false> {
  static constexpr Arithmetic kArithmetic = kArithmetic_;
  static constexpr Finish kFinish = kFinish_;
};

// Whether there are kernels of a regime that finish a batch in this way: small ones in all of them.
constexpr bool has_candidate(Regime regime, Finish finish) {
  return regime != Regime::kLoop &&
         (finish == Finish::kArrivals || !shape_of(regime).can_be_cluster());
}

// The widths that choose_any_kernel (launch_plan.cpp) returns.
template <class Element, Regime kRegime, Arithmetic kArithmetic, Finish kFinish, class Launch>
auto dispatch_candidate_width(const LaunchPlan& plan, const Launch& launch) {
  constexpr int kFull = full_vector_width(sizeof(Element), sizeof(Element));
  if constexpr (shape_of(kRegime).has_pairs()) {
    if (plan.vector_width == 2)
      return launch(RowLossKernel<CandidateTraits<Element, kRegime, 2, kArithmetic, kFinish>>(),
                    plan);
  }
  if (plan.vector_width == 1)
    return launch(RowLossKernel<CandidateTraits<Element, kRegime, 1, kArithmetic, kFinish>>(),
                  plan);
  return launch(RowLossKernel<CandidateTraits<Element, kRegime, kFull, kArithmetic, kFinish>>(),
                plan);
}

// Looks for the plan's regime, of which has_candidate is true, from kShapes[kNumber] on.
template <class Element, Arithmetic kArithmetic, Finish kFinish, int kNumber = 0, class Launch>
auto dispatch_candidate(const LaunchPlan& plan, const Launch& launch) {
  if constexpr (kNumber == sizeof(kShapes) / sizeof(RegimeShape)) {  // never reached
    return dispatch_candidate_width<Element, kShapes[0].regime, kArithmetic, kFinish>(plan, launch);
  } else {
    constexpr Regime kRegime = kShapes[kNumber].regime;
    if constexpr (has_candidate(kRegime, kFinish)) {
      if (plan.regime == kRegime)
        return dispatch_candidate_width<Element, kRegime, kArithmetic, kFinish>(plan, launch);
    }
    return dispatch_candidate<Element, kArithmetic, kFinish, kNumber + 1>(plan, launch);
  }
}

}  // namespace alr_fast
