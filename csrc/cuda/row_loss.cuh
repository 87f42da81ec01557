// The row kernel: softmax, loss, gradient, table update and statistics of every row in one launch.
#pragma once

#include <cstdint>
#include <type_traits>

#include "../alr_math.h"
#include "../alr_params.h"
#include "duplicates.cuh"
#include "finish.cuh"
#include "memory.cuh"
#include "reduce.cuh"
#include "row_registers.cuh"
#include "row_sources.cuh"
#include "row_traits.cuh"
#include "row_twice.cuh"
#include "target.cuh"

namespace alr_fast {

template <class Traits>
using RowOf = std::conditional_t<Traits::kShape.regime == Regime::kLoop, RowReadTwice<Traits>,
                                 RowInRegisters<Traits>>;

template <class Traits>
class RowLoss {
  using Logits = typename Traits::Logits;
  using Target = typename Traits::Target;
  using Group = typename Traits::Group;
  using Block = typename Traits::Block;
  using Row = RowOf<Traits>;
  static constexpr bool kIsDirect = Traits::kSource == Source::kDirect;
  // A stage that all threads of a block read is filled again after they have met to join their
  // sums, at no cost; others as soon as they are read.
  static constexpr bool kRequestsLate = Traits::kSource == Source::kRing && Traits::kIsBlock;

 public:
  __device__ __forceinline__ RowLoss(const RowLossParams& params, const RowLaunch& launch,
                                     Group& group, Block& block)
      : p_(params),
        launch_(launch),
        group_(group),
        block_(block),
        row_groups_(params, launch.indices_at >= 0, indices_in_block(launch)),
        mean_factor_(launch.mean_factor),
        looks_at_all_rows_(launch.looks_at_all_rows) {
    if (launch.is_counted) set_mean_factor(static_cast<int64_t>(params.counters->counted));
  }

  // Processes all rows of this group of threads; in the second launch, those that are to be stored.
  __device__ __forceinline__ void run() {
    if constexpr (Traits::kSource == Source::kDirect) {
      run_directly();
    } else {
      run_ahead();
    }
  }

  // Contribution of these rows to the batch; valid in the group's first thread.
  __device__ __forceinline__ BlockPartial partial() const { return {loss_, valid_}; }

 private:
  __device__ __forceinline__ void run_directly() {
    const bool stores_groups = Traits::kExtras && p_.stores_groups;
    const int64_t step = group_.rows_in_grid();
    const int64_t count = stores_groups ? row_groups_.count() : p_.rows;
    RowFacts held{};
    unsigned lane = 0;  // that has the facts of the next row
    // A group without rows goes round once where its block has to look at all rows together. Only
    // groups of less than a block may have none.
    for (int64_t n = group_.row(); n < count || (!Traits::kIsBlock && looks_at_all_rows_);
         n += step, lane = (lane + 1) % Group::kLanes) {
      int64_t b = n;
      if (stores_groups) {
        b = row_groups_.row_to_store(n);
        lane = 0;
      }
      if (b < 0) continue;
      // Each lane asks for one of the rows to come: requested together, and long before they are
      // needed.
      if (lane == 0) {
        const int64_t mine = stores_groups ? b : b + group_.lane() * step;
        held = facts_of(mine, kIgnored);
      }
      RowFacts facts = group_.from_lane(held, lane);
      if (stores_groups) facts.group = 0;
      int no_source = 0;
      process(b, facts, no_source, [] {});
    }
  }

  // The same with rows that are requested while others are processed.
  __device__ __forceinline__ void run_ahead() {
    constexpr int kAhead = Traits::kShape.stages, kLanes = Group::kLanes;
    const int64_t step = group_.rows_in_grid(), first = group_.row();
    RowSource<Traits> source(static_cast<int>(p_.classes), group_);
    source.start(group_);
    // Row b, whose target row a lane knows.
    const auto request = [&](int64_t b, int64_t target, int lane) {
      const int64_t i = group_.from_lane(target, lane);
      source.request(i >= 0, logits(b), Target(p_, i, i >= 0));
    };
    RowFacts held{};
    int64_t coming =
        target_of(first + group_.lane() * step);  // after the rows whose facts are held
#pragma unroll
    for (int n = 0; n < kAhead; ++n) {
      request(first + n * step, coming, n);
      source.advance();
    }
    if (looks_at_all_rows_) look_at_all_rows();  // while the first rows are on their way
    unsigned lane = 0;                           // that has the facts of the row at hand
    for (int64_t b = first; b < p_.rows; b += step, lane = (lane + 1) % kLanes) {
      if (lane == 0) {
        held = facts_of(b + group_.lane() * step, coming);
        coming = target_of(b + (kLanes + group_.lane()) * step);
      }
      RowFacts facts = group_.from_lane(held, lane);
      process(b, facts, source, [&] {
        const int next = lane + kAhead;
        request(b + kAhead * step, next < kLanes ? held.target : coming, next % kLanes);
      });
      source.advance();
    }
  }

  // What is known of a batch row before it is computed.
  struct RowFacts {
    int64_t target = kIgnored;  // its target row; negative: ignored, or see target_of
    float weight = 1;
    int32_t group = 0;  // 1 + the name of its group of rows with one index; 0: it is alone
    uint32_t is_outside : 1, has_wrong_label : 1;

    __device__ __forceinline__ RowFacts() : is_outside(0), has_wrong_label(0) {}
  };
  static constexpr int64_t kIgnored = -1, kOutside = -2;

  // The target row of batch row b, kOutside if the table or the samples end before it, kIgnored if
  // there is none.
  __device__ __forceinline__ int64_t target_of(int64_t b) const {
    const int64_t i = b < p_.rows ? index_at(p_, b) : kIgnored;
    return i < 0 ? kIgnored : is_out_of_range(p_, b, i) ? kOutside : i;
  }

  // `target`: target_of(b), where rows are requested ahead; else it is asked for here, with all
  // that is needed of memory first.
  __device__ __forceinline__ RowFacts facts_of(int64_t b, int64_t target) const {
    RowFacts row;
    row.target = target;
    if (b >= p_.rows) return row;
    if constexpr (kIsDirect) row.target = index_at(p_, b);
    if (p_.row_weight != nullptr) row.weight = static_cast<const float*>(p_.row_weight)[b];
    row.group = row_groups_.of(b);
    if (row.target < 0) return row;
    if constexpr (kIsDirect) row.is_outside = is_out_of_range(p_, b, row.target);
    if (p_.given_labels == nullptr || row.is_outside) return row;
    const LabelledSample labelled = labelled_sample(p_, b, row.target);
    row.has_wrong_label = labelled.label != p_.given_labels[labelled.sample];
    return row;
  }

  // `request_next` is called once, when there is room for the words of another row.
  template <class FromSource, class RequestNext>
  __device__ __forceinline__ void process(int64_t b, RowFacts facts, FromSource& source,
                                          const RequestNext& request_next) {
    if constexpr (!kIsDirect) facts.is_outside = facts.target == kOutside;
    const bool has_target = facts.target >= 0 && !facts.is_outside;
    const Target target(p_, facts.target, has_target);
    Row row(static_cast<int>(p_.classes), group_);
    const Target here = target.from_column(row.first_column());
    if constexpr (kIsDirect) {
      const bool is_row = Traits::kIsBlock || b < p_.rows;
      row.request(logits(is_row ? b : 0), here);   // without a branch, which costs registers
      if (looks_at_all_rows_) look_at_all_rows();  // while the first row is on its way
      if (!is_row) return;
    }
    if (row_groups_.is_searched()) facts.group = row_groups_.find(b);
    if constexpr (!kIsDirect) {
      if (has_target) {
        source.take(row, logits(b), target);
      } else {
        source.pass(group_);
      }
    }
    int table_class = -1;
    if (has_target) {
      if (compute(row, target, here, b, facts, request_next, &table_class)) return;
    } else {
      request_next();
      if (group_.is_leader()) {
        row_groups_.note(b, 0, false);
        if (facts.is_outside) {
          count(kStatusOutOfRange);
          add_to_batch(b, __builtin_nanf(""));
        }
      }
    }
    const bool is_ignored = facts.target < 0 && (kIsDirect || !facts.is_outside);
    skip(b, is_ignored ? 0 : __builtin_nanf(""), table_class);
  }

  // By all threads of the block.
  __device__ __forceinline__ void look_at_all_rows() {
    looks_at_all_rows_ = false;
    int32_t* const indices = launch_.indices_at >= 0 ? indices_in_block(launch_) : nullptr;
    const int valid = count_valid_rows(p_, indices, block_);
    if (launch_.divides_by_count) set_mean_factor(valid);
  }

  __device__ __forceinline__ void set_mean_factor(int64_t valid) {
    if (valid > 0) mean_factor_ = reciprocal_of_count(static_cast<float>(valid));
  }

  __device__ __forceinline__ const Logits* logits(int64_t b) const {  // [K]
    return static_cast<const Logits*>(p_.logits) + b * p_.logits_stride;
  }

  // Returns whether the logits have a softmax and the label is the given one; stores the target
  // row only then, and if the row is in no group. `table_class` is set with statistics alone.
  template <class RequestNext>
  __device__ __forceinline__ bool compute(Row& row, const Target& target, const Target& here,
                                          int64_t b, const RowFacts& facts,
                                          const RequestNext& request_next, int* table_class) {
    row.start();
    if constexpr (!kRequestsLate) request_next();
    const RowPart whole = row.reduce(logits(b), group_);
    if constexpr (kRequestsLate) {
      if constexpr (Traits::kArithmetic == Arithmetic::kCopy) group_.meet();  // no sums to join
      request_next();
    }
    const float sum = whole.sums.exp;
    RowScalars<float> scalars =
        finish_row(whole.sums, logf(sum), reciprocal(sum), is_finite(whole.max) && sum > 0,
                   launch_.momentum, launch_.entropy_weight);
    if (scalars.finite && !is_finite(scalars.loss))
      scalars.loss = wide_loss(scalars, wide_target_d(b, target, whole.max));
    const bool can_be_stored = scalars.finite && !facts.has_wrong_label;
    if (group_.is_leader()) note(b, facts, scalars, can_be_stored);
    if constexpr (Traits::kExtras) {
      if (p_.stats_class != nullptr) *table_class = largest_class(row, target);
    }
    if (!can_be_stored) return false;
    const bool stores = p_.update && facts.group == 0;
    RowFindings found;
    row.write(row_write(b, scalars, facts.weight, stores), here, whole, found);
    if constexpr (Traits::kExtras) {
      if (p_.stats_class == nullptr) return true;
      found = group_.reduce(found, MergeFindings());
      const int class_after =
          Target::kIsTable && stores ? class_or_first(found.after.at) : *table_class;
      write_stats(b, found.predicted, *table_class, class_after, scalars.inv_sum,
                  found.largest_target);
    }
    return true;
  }

  // Counts row b and adds its loss; called by the leader.
  __device__ __forceinline__ void note(int64_t b, const RowFacts& facts,
                                       const RowScalars<float>& scalars, bool can_be_stored) {
    row_groups_.note(b, facts.group, can_be_stored);
    if (facts.has_wrong_label) {
      count(kStatusWrongLabel);
    } else if (!(scalars.finite && is_finite(scalars.loss))) {
      count(kStatusNonFinite);
    }
    add_to_batch(b, can_be_stored ? scalars.loss * facts.weight : __builtin_nanf(""));
  }

  __device__ __forceinline__ static bool is_finite(float x) { return x - x == 0; }

  // sum(T d) of a row in double, from device memory. For few rows: loads are not vectorized.
  __device__ __forceinline__ double wide_target_d(int64_t b, const Target& target, float max) {
    const Logits* const z = logits(b);
    double sum = 0;
    for_each_column([&](int k) {
      typename Target::template Part<1> T;
      target.template load<Cached::kAgain>(k, true, T);
      if (T[0] != 0) sum += static_cast<double>(T[0]) * (static_cast<double>(to_float(z[k])) - max);
    });
    return group_.reduce(sum, Add());
  }

  // Calls f(k) for the columns of this thread, one by one: in rare cases, so that unrolling would
  // only cost registers.
  template <class Fn>
  __device__ __forceinline__ void for_each_column(const Fn& f) const {
    const int classes = static_cast<int>(p_.classes), end = group_.end_column(classes);
#pragma unroll 1
    for (int k = group_.first_column(classes) + group_.rank(); k < end; k += Group::kThreads) f(k);
  }

  // Loss of a row that is not ignored; called by the leader.
  __device__ __forceinline__ void add_to_batch(int64_t b, float loss) {
    loss_ += static_cast<double>(loss);
    ++valid_;
    if (p_.reduction == Reduction::kNone) static_cast<float*>(p_.row_loss)[b] = loss;
  }

  __device__ __forceinline__ RowWrite<Logits> row_write(int64_t b, const RowScalars<float>& scalars,
                                                        float weight, bool stores) const {
    RowWrite<Logits> to;
    to.scalars = scalars;
    to.grad = grad_row(b);
    to.grad_factor = grad_factor(weight);
    to.stores_target = stores;
    if constexpr (Traits::kExtras) {
      to.rounds_stochastically = p_.rounding_state != nullptr;
      to.wants_findings = p_.stats_class != nullptr;
      // The launch before has counted this call.
      const int64_t counted = p_.stores_groups ? 1 : 0;
      to.rounding_key = to.rounds_stochastically
                            ? rounding_key(p_.rounding_state[0], p_.rounding_state[1] - counted, b)
                            : 0;
    }
    return to;
  }

  __device__ __forceinline__ float grad_factor(float weight) const {
    if (p_.grad_mode == GradMode::kFinal) return weight * mean_factor_;
    // As stores_plain_rows says, without asking in the kernels of other types.
    return std::is_same_v<Logits, __half> ? launch_.stored_scale : weight * launch_.stored_scale;
  }

  // Null if no gradient is requested.
  __device__ __forceinline__ Logits* grad_row(int64_t b) const {  // [K]
    if (Traits::kExtras && p_.grad_mode == GradMode::kNone) return nullptr;
    return static_cast<Logits*>(p_.grad_logits) + b * p_.classes;
  }

  __device__ __forceinline__ int largest_class(const Row& row, const Target& target) const {
    const int label = target.label();
    return label != kNoLabel ? label : class_or_first(row.largest_target(group_).at);
  }

  // A row that is all NaN has no largest entry.
  __device__ __forceinline__ static int class_or_first(int at) { return at == Entry().at ? 0 : at; }

  // Writes gradient and statistics of a row that is not computed, and the loss of an ignored row.
  // The target row is not changed.
  __device__ __forceinline__ void skip(int64_t b, float value, int64_t table_class) {
    if (value == 0 && p_.reduction == Reduction::kNone && group_.is_leader())
      static_cast<float*>(p_.row_loss)[b] = value;
    if (Logits* const grad = grad_row(b)) {
      const Logits element = from_float<Logits>(value);
      for_each_column([&](int k) { grad[k] = element; });
    }
    if constexpr (!Traits::kExtras) return;
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
    if (p_.status != nullptr)
      atomicAdd(reinterpret_cast<unsigned long long*>(p_.status + status), 1ull);
  }

  const RowLossParams& p_;
  const RowLaunch& launch_;
  Group& group_;
  Block& block_;
  RowGroups<Group::kLanes> row_groups_;
  float mean_factor_;
  bool looks_at_all_rows_;  // yet
  double loss_ = 0;
  int32_t valid_ = 0;
};

// Sums the partials of the groups of a block; the first thread of each group holds one. All threads
// of the block have read the counters when it returns, if the pre-pass has set any.
template <class Traits>
__device__ __forceinline__ BlockPartial partial_of_block(const RowLaunch& launch,
                                                         const BlockPartial& partial,
                                                         typename Traits::Block& block) {
  if constexpr (Traits::kIsBlock) {
    if (launch.is_counted) __syncthreads();
    return partial;
  } else {
    return block.template reduce<Traits::Group::kLanes>(partial, AddPartials());
  }
}

template <class Traits>
__device__ __forceinline__ void process_rows(const RowLossParams& p, const RowLaunch& launch,
                                             typename Traits::Group& group) {
  typename Traits::Block block(kReductionBuffers - 1);  // the group starts with the first one
  const auto cluster_finish = [&] { return ClusterFinish(shared_memory() + launch.partials_at); };
  if constexpr (Traits::kFinish == Finish::kCluster) cluster_finish().begin();
  if constexpr (Traits::kFinish != Finish::kArrivals) wait_for_kernel_before();
  RowLoss<Traits> rows(p, launch, group, block);
  rows.run();
  if (Traits::kExtras && p.stores_groups) return;
  const BlockPartial partial = partial_of_block<Traits>(launch, rows.partial(), block);
  if constexpr (Traits::kFinish == Finish::kCluster) {
    cluster_finish().end(p, launch.grad_scale, partial);
  } else if constexpr (Traits::kFinish == Finish::kPolled) {
    finish_by_polling(p, launch.grad_scale, partial, block);
  } else {
    finish_by_arrivals(p, launch.grad_scale, partial, block);
  }
}

template <class Traits>
__global__ void __launch_bounds__(Traits::kShape.threads, Traits::kMinBlocks)
    row_loss_kernel(const __grid_constant__ RowLossParams p,
                    const __grid_constant__ RowLaunch launch) {
  if constexpr (Traits::kIsCluster) {
    typename Traits::Group group(launch.blocks_per_row);
    process_rows<Traits>(p, launch, group);
    group.wait_before_exit();
  } else {
    typename Traits::Group group;
    process_rows<Traits>(p, launch, group);
  }
}

// A kernel as a type.
template <class Traits_>
struct RowLossKernel {
  using Traits = Traits_;
  static constexpr auto kPointer = &row_loss_kernel<Traits>;
  static constexpr bool kHasBulkCopies = Traits::kSource == Source::kRing;
};

}  // namespace alr_fast
