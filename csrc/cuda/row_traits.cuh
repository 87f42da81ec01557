// What an instantiation of the row kernel knows when it is compiled (RowTraits), and what a launch
// tells it beside RowLossParams (RowLaunch).
#pragma once

#include <cstdint>
#include <type_traits>

#include "../alr_params.h"
#include "cluster.cuh"
#include "launch_plan.h"
#include "memory.cuh"
#include "reduce.cuh"
#include "target.cuh"

namespace alr_fast {

// Compile-time facts of one instantiation. kExtras: with statistics, stochastic rounding or without
// a gradient; the other kernels contain nothing of these.
template <class Logits_, class Target_, Regime kRegime_, int kVector_, bool kExtras_>
struct RowTraits {
  using Logits = Logits_;
  using Target = Target_;
  static constexpr RegimeShape kShape = shape_of(kRegime_);
  static constexpr int kVector = kVector_;
  static constexpr bool kExtras = kExtras_;
  static constexpr int kElements = kVector > kShape.elements ? kVector : kShape.elements;
  // Threads of a warp that share a row: fewer if each holds more elements.
  static constexpr int kLanes = kShape.lanes * kShape.elements / kElements;
  static constexpr bool kIsBlock = kShape.warps > 1;
  static constexpr Arithmetic kArithmetic = Arithmetic::kWhole;
  static constexpr int kTableBytes = Target::kIsTable ? sizeof(typename Target::Element) : 0;
  static constexpr int kNarrower =
      Target::kIsTable && kTableBytes < static_cast<int>(sizeof(Logits)) ? kTableBytes
                                                                         : sizeof(Logits);
  static constexpr Source kSource = source_of(kShape, kVector* kNarrower, kExtras);
  static constexpr StageLayout kStages = stage_layout(kShape, kSource, sizeof(Logits), kTableBytes);
  // Statistics, label rows, which are generated, the conversion of many halves, elements that come
  // in one access, and rows that are requested ahead element by element take a few more registers.
  static constexpr bool kNeedsMore =
      kExtras || !Target::kIsTable || (sizeof(Logits) == 2 && kShape.elements >= 32) ||
      (kVector == 8 && kElements == 8) || (kVector == 1 && kShape.source != Source::kDirect);
  // AnyTarget holds an element in each of its types, which takes still more.
  static constexpr int kFewerBlocks = kNeedsMore + std::is_same_v<Target, AnyTarget>;
  static constexpr int kMinBlocks =
      kShape.min_blocks > kFewerBlocks ? kShape.min_blocks - kFewerBlocks : 1;
  static constexpr bool kIsCluster = kShape.can_be_cluster();
  static constexpr Finish kFinish = Finish::kArrivals;
  using Block = BlockGroup<kShape.threads / kWarpThreads>;
  using Group =
      std::conditional_t<kIsCluster, ClusterGroup<kShape.warps, kShape.pushes>,
                         std::conditional_t<kIsBlock, BlockGroup<kShape.warps>, LaneGroup<kLanes>>>;
};

// The same kernel with another way to finish the batch: a candidate until a GPU has shown it to be
// faster.
template <class Traits, Finish kFinish_>
struct FinishedBy : Traits {
  static constexpr Finish kFinish = kFinish_;
};

// Launch-specific parameters of the kernel.
struct RowLaunch {
  int blocks_per_row;  // the size of the cluster
  int indices_at;      // see LaunchPlan
  int partials_at;
  bool divides_by_count;   // the gradient, by the number of rows that are not ignored,
  bool is_counted;         // which the pre-pass has found
  bool looks_at_all_rows;  // each block does, at their indices
  float momentum, entropy_weight, stored_scale;
  float mean_factor;  // of the gradient of a mean, where nothing is counted
  double grad_scale;  // 1 / RowLossParams::stored_scale
};

// `is_counted`: the pre-pass was launched.
inline RowLaunch row_launch(const RowLossParams& p, const LaunchPlan& plan, bool is_counted) {
  const bool is_final_mean = p.reduction == Reduction::kMean && p.grad_mode == GradMode::kFinal;
  const bool divides_by_count = is_final_mean && !keeps_all_rows(p);
  return {plan.blocks_per_row,
          plan.indices_at,
          plan.partials_at,
          divides_by_count,
          divides_by_count && is_counted,
          plan.indices_at >= 0 || (divides_by_count && !is_counted),
          static_cast<float>(p.momentum),
          static_cast<float>(p.entropy_weight),
          static_cast<float>(p.stored_scale),
          is_final_mean && !divides_by_count ? 1.f / static_cast<float>(p.rows) : 1.f,
          1 / p.stored_scale};
}

// The indices of all rows in shared memory, if they are there.
__device__ __forceinline__ int32_t* indices_in_block(const RowLaunch& launch) {
  return reinterpret_cast<int32_t*>(shared_memory() + launch.indices_at);
}

}  // namespace alr_fast
