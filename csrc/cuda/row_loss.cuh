// The row kernel: softmax, loss, gradient, table update and statistics of every row in one launch.
#pragma once

#include <cstdint>
#include <type_traits>

#include "../alr_math.h"
#include "../alr_params.h"
#include "../launch_plan.h"
#include "finish.cuh"
#include "memory.cuh"
#include "reduce.cuh"
#include "row_access.cuh"
#include "row_writer.cuh"
#include "target.cuh"

namespace alr_fast {

// Compile-time facts of one instantiation.
template <class Logits_, class Target_, Regime kRegime, int kVector_>
struct RowTraits {
  using Logits = Logits_;
  using Target = Target_;
  using Shape = RegimeTraits<kRegime>;
  using Group = std::conditional_t<Shape::kLanes == 0, BlockGroup,
                                   LaneGroup<Shape::kLanes == 0 ? 32 : Shape::kLanes>>;
  static constexpr int kVector = kVector_;
  static constexpr int kElements = Shape::kElements;
  static constexpr bool kLoops = Shape::kLoops;
  static_assert(kElements % kVector == 0, "a thread holds whole vectors");
  static_assert(kVector == 1 || kVector == kVectorWidth, "as is_vector_aligned checks");
  static_assert(!kLoops || Shape::kLanes == 0, "only blocks loop");
};

template <class Traits>
class RowLoss {
  using Logits = typename Traits::Logits;
  using Target = typename Traits::Target;
  using Group = typename Traits::Group;
  using Row = std::conditional_t<Traits::kLoops, RowInChunks<Traits>, RowInRegisters<Traits>>;

 public:
  __device__ __forceinline__ RowLoss(const RowLossParams& params, int64_t valid_rows,
                                     const Group& group)
      : p_(params), valid_rows_(valid_rows), group_(group) {}

  __device__ __forceinline__ void run() {
    const int64_t b = group_.row();
    if (b >= p_.rows) return;
    const int64_t i = index_at(p_, b);
    if (i < 0) {
      skip(b, 0);
    } else if (i >= p_.target.size) {
      if (is_first_thread()) count(kStatusOutOfRange);
      skip(b, __builtin_nanf(""));
    } else if (p_.next_in_group == nullptr || p_.first_in_group[b] != 0) {
      rows_of_index(b, i);
    }
  }

 private:
  // The row that has index i or, in batch order, all rows that have it: they see the old target
  // row, so the last valid one is looked at again to be stored.
  __device__ __forceinline__ void rows_of_index(int64_t first, int64_t i) {
    const bool is_alone = p_.next_in_group == nullptr || p_.next_in_group[first] < 0;
    bool stores = p_.update && is_alone;
    bool is_again = false;
    int64_t last = -1;
    int64_t b = first;
    while (true) {
      const bool is_finite = row(b, i, stores, is_again);
      if (is_alone || is_again) break;
      if (is_finite) last = b;
      const int64_t next = p_.next_in_group[b];
      if (next < 0 && last < 0) break;
      is_again = stores = next < 0;
      b = is_again ? last : next;
    }
    if (is_again && p_.stats_class != nullptr && is_first_thread()) {
      int64_t* const class_after = p_.stats_class + 2 * p_.rows;
      for (b = first; b >= 0; b = p_.next_in_group[b]) class_after[b] = class_after[last];
    }
  }

  // Returns whether the logits have a softmax; stores the target row only then, and if asked.
  __device__ __forceinline__ bool row(int64_t b, int64_t i, bool stores, bool is_again) {
    const Logits* const z = static_cast<const Logits*>(p_.logits) + b * p_.logits_stride;  // [K]
    const Target target(p_, i);
    Row row(z, target, static_cast<int>(p_.classes), group_);
    const RowLook look = row.look();
    const RowScalars<float> scalars =
        finish_row(look.sums, logf(look.sums.exp), look.max_is_finite,
                   static_cast<float>(p_.momentum), static_cast<float>(p_.entropy_weight));
    const bool loss_is_finite = scalars.loss - scalars.loss == 0;
    if (!is_again && is_first_thread() && !(scalars.finite && loss_is_finite))
      count(kStatusNonFinite);

    int class_before = 0;
    if (p_.stats_class != nullptr) class_before = largest_class(row, target);
    if (!scalars.finite) {
      skip(b, __builtin_nanf(""), class_before);
      return false;
    }
    const float weight =
        p_.row_weight == nullptr ? 1.f : static_cast<const float*>(p_.row_weight)[b];
    if (is_first_thread()) static_cast<float*>(p_.row_loss)[b] = scalars.loss * weight;

    RowFindings found;
    row.write(row_write(b, scalars, weight, stores), look, found);
    if (p_.stats_class != nullptr) {
      found = group_.reduce(found, MergeFindings());
      const int class_after =
          Target::kIsTable && stores ? class_or_first(found.after.at) : class_before;
      write_stats(b, found.predicted, class_before, class_after, scalars.inv_sum,
                  found.largest_target);
    }
    return true;
  }

  __device__ __forceinline__ RowWrite<Logits> row_write(int64_t b, const RowScalars<float>& scalars,
                                                        float weight, bool stores) const {
    RowWrite<Logits> to;
    to.scalars = scalars;
    to.grad = p_.grad_mode == GradMode::kNone
                  ? nullptr
                  : static_cast<Logits*>(p_.grad_logits) + b * p_.classes;
    to.grad_factor = grad_factor(weight);
    to.stores_target = stores;
    to.rounds_stochastically = p_.rounding_state != nullptr;
    to.wants_findings = p_.stats_class != nullptr;
    to.rounding_key =
        to.rounds_stochastically ? rounding_key(p_.rounding_state[0], p_.rounding_state[1], b) : 0;
    return to;
  }

  __device__ __forceinline__ float grad_factor(float weight) const {
    if (p_.grad_mode != GradMode::kFinal) return static_cast<float>(p_.stored_scale);
    return p_.reduction == Reduction::kMean && valid_rows_ > 0
               ? weight * (1.f / static_cast<float>(valid_rows_))
               : weight;
  }

  __device__ __forceinline__ static int largest_class(Row& row, const Target& target) {
    if constexpr (Target::kIsTable) {
      return class_or_first(row.largest_target().at);
    } else {
      return target.label();
    }
  }

  // A row of nothing but NaN has no largest entry.
  __device__ __forceinline__ static int class_or_first(int at) { return at == Entry().at ? 0 : at; }

  // Loss and gradient of a row that is not computed; the target row stays.
  __device__ __forceinline__ void skip(int64_t b, float value, int64_t table_class = -1) {
    if (is_first_thread()) static_cast<float*>(p_.row_loss)[b] = value;
    if (p_.grad_mode != GradMode::kNone) {
      Logits* const grad = static_cast<Logits*>(p_.grad_logits) + b * p_.classes;  // [K]
      float values[Traits::kVector];
#pragma unroll
      for (int i = 0; i < Traits::kVector; ++i) values[i] = value;
      const int classes = static_cast<int>(p_.classes);
      for (int k = group_.rank() * Traits::kVector; k < classes;
           k += group_.size() * Traits::kVector)
        store<Traits::kVector>(grad + k, values);
    }
    const float nan = __builtin_nanf("");
    if (p_.stats_class != nullptr) write_stats(b, -1, table_class, table_class, nan, nan);
  }

  __device__ __forceinline__ void write_stats(int64_t b, int64_t predicted, int64_t before,
                                              int64_t after, float confidence,
                                              float largest_target) const {
    if (!is_first_thread()) return;
    p_.stats_class[b] = predicted;
    p_.stats_class[p_.rows + b] = before;
    p_.stats_class[2 * p_.rows + b] = after;
    p_.stats_value[b] = confidence;
    p_.stats_value[p_.rows + b] = largest_target;
  }

  __device__ __forceinline__ bool is_first_thread() const { return group_.rank() == 0; }

  __device__ __forceinline__ void count(int status) const {
    atomicAdd(reinterpret_cast<unsigned long long*>(p_.status + status), 1ull);
  }

  const RowLossParams& p_;
  int64_t valid_rows_;
  Group group_;
};

// `counted_rows`: [1] rows that are not ignored, or null where no launch before this one counted
// them.
template <class Traits>
__global__ void __launch_bounds__(Traits::Shape::kMaxThreads, 1)  // 1: registers before occupancy
    row_loss_kernel(const RowLossParams p, const int64_t* counted_rows) {
  BlockGroup block;
  int64_t valid_rows = -1;
  if (needs_count_first(p))
    valid_rows = counted_rows != nullptr ? *counted_rows : count_valid_rows(p, block);
  typename Traits::Group group;
  if constexpr (Traits::Shape::kLanes == 0) group = block;  // its next buffer is the free one
  RowLoss<Traits>(p, valid_rows, group).run();
  finish_batch(p, valid_rows, block);
}

}  // namespace alr_fast
