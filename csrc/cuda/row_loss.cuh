// The row kernel: softmax, loss, gradient, table update and statistics of every row in one launch.
#pragma once

#include <cstdint>
#include <type_traits>

#include "../alr_math.h"
#include "../alr_params.h"
#include "cluster.cuh"
#include "finish.cuh"
#include "launch_plan.h"
#include "memory.cuh"
#include "reduce.cuh"
#include "row_access.cuh"
#include "row_writer.cuh"
#include "target.cuh"

namespace alr_fast {

// Compile-time facts of one instantiation.
template <class Logits_, class Target_, Regime kRegime_, int kVector_>
struct RowTraits {
  using Logits = Logits_;
  using Target = Target_;
  using Shape = RegimeTraits<kRegime_>;
  static constexpr Regime kRegime = kRegime_;
  static constexpr int kVector = kVector_;
  static constexpr int kElements = kVector > Shape::kElements ? kVector : Shape::kElements;
  static constexpr bool kIsBlock = Shape::kLanes == 0;
  // Threads that hold more elements need more registers, so fewer blocks fit.
  static constexpr int kLanes = kIsBlock ? 32 : Shape::kLanes * Shape::kElements / kElements;
  static constexpr bool kIsShared = kRegime == Regime::kShared;
  // Label rows are generated in registers and need a few more of them; so do single accesses to
  // a row of 16-bit numbers, of which a thread of a block holds many.
  static constexpr bool kNeedsRegisters =
      !Target::kIsTable ||
      (kRegime == Regime::kBlock && kVector == 1 && sizeof(typename Target::Element) == 2);
  static constexpr int kMinBlocks =
      kNeedsRegisters && Shape::kMinBlocks > 1 ? Shape::kMinBlocks - 1 : Shape::kMinBlocks;
  using Group = std::conditional_t<kIsShared, ClusterGroup,
                                   std::conditional_t<kIsBlock, BlockGroup, LaneGroup<kLanes>>>;
};

template <class Traits>
using RowOf = std::conditional_t<Traits::kIsShared, RowInShared<Traits>,
                                 std::conditional_t<Traits::kRegime == Regime::kLoop,
                                                    RowInChunks<Traits>, RowInRegisters<Traits>>>;

// Launch-specific parameters of the kernel.
struct RowLaunch {
  int blocks_per_row;  // the size of the cluster
  bool is_counted;     // the pre-pass has counted the rows that are not ignored
  float momentum, entropy_weight, stored_scale;
};

inline RowLaunch row_launch(const RowLossParams& p, const LaunchPlan& plan, bool is_counted) {
  return {plan.blocks_per_row, is_counted, static_cast<float>(p.momentum),
          static_cast<float>(p.entropy_weight), static_cast<float>(p.stored_scale)};
}

template <class Traits>
class RowLoss {
  using Logits = typename Traits::Logits;
  using Target = typename Traits::Target;
  using Group = typename Traits::Group;
  using Row = RowOf<Traits>;

 public:
  __device__ __forceinline__ RowLoss(const RowLossParams& params, const RowLaunch& launch,
                                     float mean_factor, Group& group)
      : p_(params), launch_(launch), mean_factor_(mean_factor), group_(group) {}

  // Processes all rows of this group of threads.
  __device__ __forceinline__ void run() {
    for (int64_t b = group_.row(); b < p_.rows; b += group_.rows_in_grid()) rows_of_index(b);
  }

  // Contribution of these rows to the batch; valid in the group's first thread.
  __device__ __forceinline__ BlockPartial partial() const { return {loss_, valid_}; }

 private:
  enum class Pass { kOnly, kListed, kAgain };

  // Computes row `first` or, in batch order, all rows with its index. They all read the old target
  // row, so the last valid row is computed again to be stored.
  __device__ __forceinline__ void rows_of_index(int64_t first) {
    const bool is_listed = p_.next_in_group != nullptr && p_.next_in_group[first] >= 0;
    Pass pass = is_listed ? Pass::kListed : Pass::kOnly;
    int32_t last = -1;  // rows of a list are fewer than 2^31
    int64_t b = first;
    while (true) {
      const int64_t i = index_at(p_, b);
      const Logits* const z = static_cast<const Logits*>(p_.logits) + b * p_.logits_stride;  // [K]
      Row row(z, static_cast<int>(p_.classes), group_);  // its loads start before the index arrives
      if (b == first && !is_mine(b, i)) return;
      const bool is_finite = compute(row, b, i, pass);
      if (pass != Pass::kListed) break;
      if (is_finite) last = static_cast<int32_t>(b);
      const int32_t next = p_.next_in_group[b];
      if (next < 0 && last < 0) return;
      if (next < 0) pass = Pass::kAgain;
      b = next < 0 ? last : next;
    }
    if (pass == Pass::kAgain && p_.stats_class != nullptr && group_.is_leader()) {
      int64_t* const class_after = p_.stats_class + 2 * p_.rows;
      for (b = first; b >= 0; b = p_.next_in_group[b]) class_after[b] = class_after[last];
    }
  }

  // Whether this group computes row b and all rows with its index. Also writes the outputs of rows
  // that are ignored or out of range.
  __device__ __forceinline__ bool is_mine(int64_t b, int64_t i) {
    if (i < 0) {
      skip(b, 0);
      return false;
    }
    if (is_out_of_range(p_, b, i)) {
      // Rows with equal indices are reported one by one.
      if (group_.is_leader()) count(kStatusOutOfRange);
      add_to_batch(b, __builtin_nanf(""));
      skip(b, __builtin_nanf(""));
      return false;
    }
    return p_.next_in_group == nullptr || p_.first_in_group[b] != 0;
  }

  // Returns whether the logits have a softmax and the label is the given one; stores the target
  // row only then.
  __device__ __forceinline__ bool compute(Row& row, int64_t b, int64_t i, Pass pass) {
    const Target target(p_, i);
    row.load_target(target);
    const bool has_wrong_label = is_wrong_label(b, i);  // while the target row arrives
    const RowReduction reduction = row.reduce(target);
    RowScalars<float> scalars =
        finish_row(reduction.sums, logf(reduction.sums.exp), reduction.max_is_finite,
                   launch_.momentum, launch_.entropy_weight);
    if (scalars.finite && !is_finite(scalars.loss))
      scalars.loss = wide_loss(scalars, wide_target_d(b, target, reduction.max));
    const bool is_again = pass == Pass::kAgain;
    if (!is_again && group_.is_leader()) {
      if (has_wrong_label) {
        count(kStatusWrongLabel);
      } else if (!(scalars.finite && is_finite(scalars.loss))) {
        count(kStatusNonFinite);
      }
    }

    int class_before = 0;
    if (p_.stats_class != nullptr) class_before = largest_class(row, target);
    if (!scalars.finite || has_wrong_label) {
      add_to_batch(b, __builtin_nanf(""));
      skip(b, __builtin_nanf(""), class_before);
      return false;
    }
    const float weight =
        p_.row_weight == nullptr ? 1.f : static_cast<const float*>(p_.row_weight)[b];
    if (!is_again) add_to_batch(b, scalars.loss * weight);

    const bool stores = p_.update && pass != Pass::kListed;
    RowFindings found;
    row.write(row_write(b, scalars, weight, stores), target, reduction, found);
    if (p_.stats_class != nullptr) {
      found = group_.reduce(found, MergeFindings());
      const int class_after =
          Target::kIsTable && stores ? class_or_first(found.after.at) : class_before;
      write_stats(b, found.predicted, class_before, class_after, scalars.inv_sum,
                  found.largest_target);
    }
    return true;
  }

  __device__ __forceinline__ bool is_wrong_label(int64_t b, int64_t i) const {
    if (p_.given_labels == nullptr) return false;
    const LabelledSample labelled = labelled_sample(p_, b, i);
    return labelled.label != p_.given_labels[labelled.sample];
  }

  __device__ __forceinline__ static bool is_finite(float x) { return x - x == 0; }

  // sum(T d) of a row in double, from device memory. For few rows: loads are not vectorized.
  __device__ __forceinline__ double wide_target_d(int64_t b, const Target& target, float max) {
    const Logits* const z = static_cast<const Logits*>(p_.logits) + b * p_.logits_stride;
    double sum = 0;
    for_each_column([&](int k) {
      float T;
      target.template load<1, Cached::kAgain>(k, &T);
      if (T != 0) sum += static_cast<double>(T) * (static_cast<double>(to_float(z[k])) - max);
    });
    return group_.reduce(sum, Add());
  }

  // Calls f(k) for the columns of this thread, one by one: in rare cases, so that unrolling would
  // only cost registers.
  template <class Fn>
  __device__ __forceinline__ void for_each_column(const Fn& f) const {
    int k = group_.rank(), end = static_cast<int>(p_.classes);
    if constexpr (Traits::kIsShared) {
      k += group_.first_column(end);
      end = group_.first_column(end) + group_.columns(end);
    }
#pragma unroll 1
    for (; k < end; k += group_.size()) f(k);
  }

  // Loss of a row that is not ignored.
  __device__ __forceinline__ void add_to_batch(int64_t b, float loss) {
    if (!group_.is_leader()) return;
    loss_ += static_cast<double>(loss);
    ++valid_;
    if (p_.reduction == Reduction::kNone) static_cast<float*>(p_.row_loss)[b] = loss;
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
    if (p_.grad_mode == GradMode::kFinal) return weight * mean_factor_;
    // As stores_plain_rows says, without asking in the kernels of other types.
    return std::is_same_v<Logits, __half> ? launch_.stored_scale : weight * launch_.stored_scale;
  }

  __device__ __forceinline__ static int largest_class(Row& row, const Target& target) {
    if constexpr (Target::kIsTable) {
      return class_or_first(row.largest_target(target).at);
    } else {
      return target.label();
    }
  }

  // A row that is all NaN has no largest entry.
  __device__ __forceinline__ static int class_or_first(int at) { return at == Entry().at ? 0 : at; }

  // Writes gradient and statistics of a row that is not computed, and the loss of an ignored row.
  // The target row is not changed.
  __device__ __forceinline__ void skip(int64_t b, float value, int64_t table_class = -1) {
    if (value == 0 && p_.reduction == Reduction::kNone && group_.is_leader())
      static_cast<float*>(p_.row_loss)[b] = value;
    if (p_.grad_mode != GradMode::kNone) {
      Logits* const grad = static_cast<Logits*>(p_.grad_logits) + b * p_.classes;  // [K]
      const Logits element = from_float<Logits>(value);
      for_each_column([&](int k) { grad[k] = element; });
    }
    const float nan = __builtin_nanf("");
    if (p_.stats_class != nullptr) write_stats(b, -1, table_class, table_class, nan, nan);
  }

  __device__ __forceinline__ void write_stats(int64_t b, int64_t predicted, int64_t before,
                                              int64_t after, float confidence,
                                              float largest_target) const {
    if (!group_.is_leader()) return;
    p_.stats_class[b] = predicted;
    p_.stats_class[p_.rows + b] = before;
    p_.stats_class[2 * p_.rows + b] = after;
    p_.stats_value[b] = confidence;
    p_.stats_value[p_.rows + b] = largest_target;
  }

  __device__ __forceinline__ void count(int status) const {
    atomicAdd(status_word(p_, status), 1ull);
  }

  const RowLossParams& p_;
  const RowLaunch& launch_;
  float mean_factor_;
  Group& group_;
  double loss_ = 0;
  int32_t valid_ = 0;
};

// Sums the partials of the groups of a block; the first thread of each group holds one.
template <class Traits>
__device__ __forceinline__ BlockPartial partial_of_block(const BlockPartial& partial,
                                                         BlockGroup& block) {
  if constexpr (Traits::kIsBlock) {
    return partial;
  } else {
    return block.reduce(partial, AddPartials());
  }
}

template <class Traits>
__global__ void __launch_bounds__(Traits::Shape::kMaxThreads, Traits::kMinBlocks)
    row_loss_kernel(const RowLossParams p, const RowLaunch launch) {
  BlockGroup block;
  const int64_t valid_rows = valid_rows_before(p, launch.is_counted, block);
  const float mean_factor = valid_rows > 0 ? 1.f / static_cast<float>(valid_rows) : 1.f;
  __syncthreads();  // the buffers of reductions are free
  if constexpr (Traits::kIsShared) {
    ClusterGroup group(launch.blocks_per_row);
    RowLoss<Traits> rows(p, launch, mean_factor, group);
    rows.run();
    finish_batch(p, rows.partial(), block);
    group.wait_before_exit();
  } else {
    typename Traits::Group group;
    RowLoss<Traits> rows(p, launch, mean_factor, group);
    rows.run();
    finish_batch(p, partial_of_block<Traits>(rows.partial(), block), block);
  }
}

// A kernel as a type.
template <class Traits>
struct RowLossKernel {
  static constexpr auto kPointer = &row_loss_kernel<Traits>;
};

}  // namespace alr_fast
