// The CPU kernels. CMake compiles this file once per instruction set, with ALR_ISA naming the set.
//
// A row is read from memory once: the first pass loads logits and target into the L1 cache, later
// passes read them from there.

#include <new>
#include <type_traits>

#include "cpu_kernels.h"
#include "row_vectors.h"
#include "short_rows.h"

namespace alr_fast {
namespace ALR_ISA {
namespace {

// Sums are kept per block of a row, and totals are compensated: long rows lose no accuracy.
constexpr int kBlockVectors = 32;

// Memory for the exponentials of the rows in flight.
template <class V>
class Scratch {
 public:
  explicit Scratch(int64_t vectors) {
    if (vectors <= kOnStack) return;
    heap_ = static_cast<V*>(::operator new(vectors * sizeof(V), kAlignment));
  }
  ~Scratch() { ::operator delete(heap_, kAlignment); }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  V* get() { return heap_ != nullptr ? heap_ : stack_; }

 private:
  static constexpr std::align_val_t kAlignment{64};
  static constexpr int64_t kOnStack = 8192 / sizeof(V);
  alignas(64) V stack_[kOnStack];
  V* heap_ = nullptr;
};

template <class F, class L, class Target>
class RowLoss {
  using V = typename VectorOf<F>::type;

  // State of a row between the reduction pass and the write pass.
  struct Row {
    int64_t b;
    Target target;
    V* exp;                // [K] exp(z - max)
    const L* next_logits;  // logits of the next row, for prefetching
    Target next_target;
    F max;        // largest logit
    bool masked;  // whether some logit is -inf
    RowScalars<F> scalars;
  };

 public:
  RowLoss(const RowLossParams& params, int64_t valid_rows)
      : p_(params),
        row_vectors_((params.classes + kLanes<V> - 1) / kLanes<V>),
        scratch_(row_vectors_ * rows_in_flight()) {
    if (p_.grad_mode != GradMode::kFinal) {
      grad_scale_ = static_cast<F>(p_.stored_scale);
    } else if (p_.reduction == Reduction::kMean && valid_rows > 0) {
      grad_scale_ = F(1) / static_cast<F>(valid_rows);
    }
    plain_ = p_.stats_class == nullptr && p_.rounding_state == nullptr;
  }

  void run(int64_t begin, int64_t end) {
    if constexpr (std::is_same_v<F, float>) {
      if (row_vectors_ <= kMaxShortVectors)
        return row_vectors_ == 1   ? run_short<1>(begin, end)
               : row_vectors_ == 2 ? run_short<2>(begin, end)
                                   : run_short<0>(begin, end);
    }
    const int64_t block = rows_in_flight();
    for (int64_t b = begin; b < end; b += block) {
      const int64_t block_end = b + block < end ? b + block : end;
      prefetch(block_end, block_end + block < end ? block_end + block : end);
      run_block(b, block_end);
    }
  }

 private:
  static constexpr int64_t kMaxInFlight = 8;

  // Several short rows are in flight at a time: alone, each would wait for its own sums.
  int64_t rows_in_flight() const { return row_vectors_ <= 8 ? kMaxInFlight : 1; }

  // Table rows are gathered: prefetch short rows a block ahead. find_max does so for long rows.
  void prefetch(int64_t begin, int64_t end) const {
    for (int64_t b = begin; b < end; ++b) {
      const int64_t i = index_at(p_, b);
      if (i < 0) continue;
      Target target;
      target.select(p_, i);
      target.prefetch(0);
      target.prefetch(p_.classes - 1);
    }
  }

  template <int kVectors>
  void run_short(int64_t begin, int64_t end) {
    using Rows = ShortRows<L, Target, kVectors>;
    Rows rows(p_, grad_scale_);
    const auto redo = [&](int64_t b) { single_row(b, index_at(p_, b), p_.update, true); };
    const auto alone = [&](int64_t b, int64_t i, bool store_target, bool count_status) {
      Rows row(p_, grad_scale_);
      row.add(b, i);
      bool has_softmax = true;
      row.finish(store_target,
                 [&](int64_t) { has_softmax = single_row(b, i, store_target, count_status); });
      return has_softmax;
    };
    for (int64_t b = begin; b < end; ++b) {
      if (const int64_t ahead = b + 2 * Rows::kRows; ahead < end) prefetch(ahead, ahead + 1);
      const int64_t i = index_at(p_, b);
      if (!takes_part(b, i, alone)) continue;
      rows.add(b, i);
      if (rows.is_full()) rows.finish(p_.update, redo);
    }
    rows.finish(p_.update, redo);
  }

  // Does what there is to do for an ignored row, or for a group of equal indices with its first
  // row; returns whether the row is one that is computed alone.
  template <class SingleRow>
  bool takes_part(int64_t b, int64_t i, const SingleRow& single) {
    if (i < 0) {
      ignore(b);
      return false;
    }
    if (p_.next_in_group == nullptr) return true;
    if (!p_.first_in_group[b]) return false;
    if (p_.next_in_group[b] < 0) return true;
    group(b, i, single);
    return false;
  }

  void run_block(int64_t begin, int64_t end) {
    const auto single = [&](auto... row) { return single_row(row...); };
    Row rows[kMaxInFlight];
    int in_flight = 0;
    for (int64_t b = begin; b < end; ++b) {
      const int64_t i = index_at(p_, b);
      if (!takes_part(b, i, single)) continue;
      start(rows[in_flight], b, i, in_flight);
      ++in_flight;
    }
    for (int n = 0; n < in_flight; ++n) find_max(rows[n]);
    for (int n = 0; n < in_flight; ++n) reduce_row(rows[n]);
    for (int n = 0; n < in_flight; ++n) write_row(rows[n], p_.update, true);
  }

  // Rows with the same index: all read the old target row, the last valid one is stored.
  template <class SingleRow>
  void group(int64_t first, int64_t i, const SingleRow& single) {
    int64_t last = -1;
    for (int64_t b = first; b >= 0; b = p_.next_in_group[b])
      if (single(b, i, false, true)) last = b;
    if (last < 0) return;
    single(last, i, true, false);
    if (p_.stats_class == nullptr) return;
    int64_t* class_after = p_.stats_class + 2 * p_.rows;
    for (int64_t b = first; b >= 0; b = p_.next_in_group[b]) class_after[b] = class_after[last];
  }

  bool single_row(int64_t b, int64_t i, bool store_target, bool count_status) {
    // Uses the last slot: earlier slots may be waiting for their reduction pass.
    Row row;
    start(row, b, i, rows_in_flight() - 1);
    find_max(row);
    reduce_row(row);
    return write_row(row, store_target, count_status);
  }

  void ignore(int64_t b) {
    row_loss(b) = 0;
    fill_grad(b, 0);
    if (p_.stats_class != nullptr) write_stats(p_, b, -1, -1, -1, kNaN, kNaN);
  }

  void start(Row& row, int64_t b, int64_t i, int64_t slot) {
    row.b = b;
    row.target.select(p_, i);
    row.exp = scratch_.get() + slot * row_vectors_;
    if (rows_in_flight() > 1) return;
    // The last row, and a row before an ignored one, prefetch themselves.
    const int64_t next = b + 1 < p_.rows && index_at(p_, b + 1) >= 0 ? b + 1 : b;
    row.next_logits = logits(next);
    row.next_target.select(p_, index_at(p_, next));
  }

  const L* logits(int64_t b) const {
    return static_cast<const L*>(p_.logits) + b * p_.logits_stride;
  }

  void find_max(Row& row) const {
    const L* z = logits(row.b);
    const V none = V{} - kInfinity<F>;
    V largest = V{} - kInfinity<F>, smallest = V{} + kInfinity<F>;
    for_each_vector<V>(0, p_.classes, [&](int64_t k, auto count) {
      const V v = load_some<V>(z + k, count, none);
      largest = max_of(v, largest);
      // The lanes beyond the end hold -inf: the tail is treated as masked anyway.
      if constexpr (std::is_same_v<decltype(count), Full>) smallest = min_of(v, smallest);
    });
    row.max = reduce_max(largest);
    row.masked = reduce_min(smallest) == -kInfinity<F>;
  }

  void reduce_row(Row& row) const {
    const RowSums<F> sums = row.masked             ? sum_row<true, false>(row)
                            : rows_in_flight() > 1 ? sum_row<false, false>(row)
                                                   : sum_row<false, true>(row);
    finish(row, sums);
    if (is_finite(row.max) && !(row.scalars.finite && is_finite(row.scalars.loss))) widen(row);
  }

  static bool is_finite(F x) { return x - x == 0; }

  void finish(Row& row, const RowSums<F>& sums) const {
    row.scalars = finish_row(sums, log_of(sums.exp), F(1) / sums.exp, is_finite(row.max),
                             static_cast<F>(p_.momentum), static_cast<F>(p_.entropy_weight));
  }

  // The reduction of a row whose finite logits may differ by more than the range of F: such a
  // difference is -inf, as that of a masked class, and sum(T d) is computed in a wider type.
  __attribute__((noinline, cold)) void widen(Row& row) const {
    using Wide = std::conditional_t<std::is_same_v<F, float>, double, long double>;
    row.masked = true;
    finish(row, sum_row<true, false>(row));
    if (!row.scalars.finite || is_finite(row.scalars.loss)) return;
    const L* z = logits(row.b);
    const V none = V{} - kInfinity<F>;
    const Target target = row.target;
    Wide target_d = 0;
    for_each_vector<V>(0, p_.classes, [&](int64_t k, auto count) {
      const V logit = load_some<V>(z + k, count, none);
      const V T = target.template load<V>(k, count);
      for (int i = 0; i < kLanes<V>; ++i)
        if (lane(T, i) != 0)
          target_d += static_cast<Wide>(lane(T, i)) * (static_cast<Wide>(lane(logit, i)) - row.max);
    });
    row.scalars.loss = wide_loss(row.scalars, target_d);
  }

  // Kahan summation: `lost` is the rounding error of `total`.
  static ALR_INLINE void add_block(V& total, V& lost, V block) {
    const V corrected = block - lost;
    const V sum = total + corrected;
    lost = (sum - total) - corrected;
    total = sum;
  }

  // kMasked: the row may have masked classes; kAhead: prefetch the next row.
  template <bool kMasked, bool kAhead>
  RowSums<F> sum_row(const Row& row) const {
    const L* z = logits(row.b);
    const V none = V{} - kInfinity<F>;
    const V lowest = V{} + kLowest<F>;
    const V max = V{} + row.max;
    V* const exp = row.exp;
    const Target target = row.target;
    const L* const next_logits = row.next_logits;
    const Target next_target = row.next_target;
    const L* const grad = grad_row(row.b);
    RowSums<V> total{}, lost{};
    constexpr int64_t kBlock = int64_t{kBlockVectors} * kLanes<V>;
    for (int64_t from = 0; from < p_.classes; from += kBlock) {
      RowSums<V> block{};
      const int64_t to = from + kBlock < p_.classes ? from + kBlock : p_.classes;
      for_each_vector<V>(from, to, [&](int64_t k, auto count) {
        constexpr bool kTail = !std::is_same_v<decltype(count), Full>;
        // Prefetch during the arithmetic: the hardware prefetcher stops at the end of a page, which
        // is about as long as a row.
        if constexpr (kAhead) {
          __builtin_prefetch(next_logits + k);
          next_target.prefetch(k);
          __builtin_prefetch(grad + k, 1);
        }
        const V d = load_some<V>(z + k, count, none) - max;
        const V e = exp_nonpositive(d);
        exp[k / kLanes<V>] = e;
        accumulate<kMasked || kTail>(block, d, e, target.template load<V>(k, count), lowest);
      });
      add_block(total.exp, lost.exp, block.exp);
      add_block(total.exp_d, lost.exp_d, block.exp_d);
      add_block(total.target, lost.target, block.target);
      if constexpr (kMasked) {
        total.target_d += block.target_d;  // infinite if a masked class has a target
      } else {
        add_block(total.target_d, lost.target_d, block.target_d);
      }
    }
    return reduce_add<F>(total);
  }

  // Returns whether the logits have a softmax; stores the target row only then, and if asked.
  bool write_row(const Row& row, bool store_target, bool count_status) {
    const RowScalars<F>& scalars = row.scalars;
    const F weight = p_.row_weight == nullptr ? F(1) : static_cast<const F*>(p_.row_weight)[row.b];
    if (count_status && p_.status != nullptr && !(scalars.finite && is_finite(scalars.loss)))
      __atomic_fetch_add(p_.status + kStatusNonFinite, 1, __ATOMIC_RELAXED);
    if (!scalars.finite) {
      row_loss(row.b) = static_cast<F>(kNaN);
      fill_grad(row.b, static_cast<F>(kNaN));
      if (p_.stats_class != nullptr) {
        const int64_t held = row.target.argmax_class(p_.classes);
        write_stats(p_, row.b, -1, held, held, kNaN, kNaN);
      }
      return false;
    }
    row_loss(row.b) = scalars.loss * weight;
    // The factor of the gradient is folded into its two weights.
    const F scale = stores_plain_rows(p_) ? grad_scale_ : grad_scale_ * weight;
    const bool stores_all = (store_target || !Target::kIsTable) && p_.grad_mode != GradMode::kNone;
    if (plain_ && stores_all && !row.masked) {
      write_row<true>(row, scale, true);
    } else {
      write_row<false>(row, scale, store_target);
    }
    return true;
  }

  // kPlain: gradient and target written, rounded to nearest, no statistics, no masked classes.
  template <bool kPlain>
  void write_row(const Row& row, F scale, bool store_target) {
    const int64_t classes = p_.classes;
    const L* z = logits(row.b);
    const V none = V{} - kInfinity<F>;
    const V lowest = V{} + kLowest<F>;
    const V max = V{} + row.max;
    const RowScalars<F> scalars = row.scalars;
    RowScalars<F> scaled = scalars;
    scaled.momentum *= scale;
    scaled.entropy_weight *= scale;
    L* const grad = grad_row(row.b);
    const V* const exp = row.exp;
    const Target target = row.target;
    const bool stochastic = p_.rounding_state != nullptr;
    const uint32_t key =
        stochastic ? rounding_key(p_.rounding_state[0], p_.rounding_state[1], row.b) : 0;
    const bool stats = p_.stats_class != nullptr;
    const int64_t class_before = !kPlain && stats ? target.argmax_class(classes) : 0;
    V largest_target = V{} - kInfinity<F>;
    for_each_vector<V>(0, classes, [&](int64_t k, auto count) {
      constexpr bool kTail = !std::is_same_v<decltype(count), Full>;
      const V p = exp[k / kLanes<V>] * scalars.inv_sum;
      const V T = target.template load<V>(k, count);
      V d = load_some<V>(z + k, count, none) - max;
      if constexpr (!kPlain || kTail) d = masked_difference(d, lowest);
      const V t = refined_target(T, p, scalars);
      if (kPlain || grad != nullptr) store_some(grad + k, logit_gradient(T, p, d, scaled), count);
      if (kPlain || store_target) target.store(k, count, t, !kPlain && stochastic, key);
      if constexpr (!kPlain) largest_target = max_of(t, largest_target);
    });
    if (!kPlain && stats) {
      const int64_t class_after = store_target ? target.argmax_class(classes) : class_before;
      write_stats(p_, row.b, argmax_row<V>(z, classes), class_before, class_after, scalars.inv_sum,
                  reduce_max(largest_target));
    }
  }

  // Null if no gradient is requested.
  L* grad_row(int64_t b) const {
    return p_.grad_mode == GradMode::kNone ? nullptr
                                           : static_cast<L*>(p_.grad_logits) + b * p_.classes;
  }

  F& row_loss(int64_t b) { return static_cast<F*>(p_.row_loss)[b]; }

  void fill_grad(int64_t b, F value) {
    L* const grad = grad_row(b);
    if (grad == nullptr) return;
    for_each_vector<V>(0, p_.classes,
                       [&](int64_t k, auto count) { store_some(grad + k, V{} + value, count); });
  }

  const RowLossParams p_;
  const int64_t row_vectors_;
  Scratch<V> scratch_;
  F grad_scale_ = 1;
  bool plain_;  // no statistics, targets rounded to nearest
};

template <class F, class L>
void run_row_loss(const RowLossParams& p, int64_t valid_rows, int64_t begin, int64_t end) {
  if (p.target.table == nullptr)
    return RowLoss<F, L, LabelTarget<F>>(p, valid_rows).run(begin, end);
  switch (p.target.dtype) {
    case DType::kFloat16:
      return RowLoss<F, L, TableTarget<Float16>>(p, valid_rows).run(begin, end);
    case DType::kBFloat16:
      return RowLoss<F, L, TableTarget<BFloat16>>(p, valid_rows).run(begin, end);
    default:  // the operators reject float64 tables
      return RowLoss<F, L, TableTarget<float>>(p, valid_rows).run(begin, end);
  }
}

template <class F, class L>
void run_scale_grad(const ScaleGradParams& p, int64_t begin, int64_t end) {
  using V = typename VectorOf<F>::type;
  const F scale = p.grad_scale == nullptr ? F(1) : *static_cast<const F*>(p.grad_scale);
  for (int64_t b = begin; b < end; ++b) {
    F factor = scale * static_cast<const F*>(p.grad_output)[b * p.grad_output_stride];
    if (p.row_weight != nullptr) factor *= static_cast<const F*>(p.row_weight)[b];
    if (p.out == p.grad_rows && factor == 1) continue;
    const L* from = static_cast<const L*>(p.grad_rows) + b * p.classes;
    L* to = static_cast<L*>(p.out) + b * p.classes;
    for_each_vector<V>(0, p.classes, [&](int64_t k, auto count) {
      store_some(to + k, load_some<V>(from + k, count, V{}) * factor, count);
    });
  }
}

}  // namespace

void row_loss(const RowLossParams& p, int64_t valid_rows, int64_t begin, int64_t end) {
  switch (p.logits_dtype) {
    case DType::kFloat32:
      return run_row_loss<float, float>(p, valid_rows, begin, end);
    case DType::kFloat16:
      return run_row_loss<float, Float16>(p, valid_rows, begin, end);
    case DType::kBFloat16:
      return run_row_loss<float, BFloat16>(p, valid_rows, begin, end);
    case DType::kFloat64:
      return run_row_loss<double, double>(p, valid_rows, begin, end);
  }
}

void scale_grad(const ScaleGradParams& p, int64_t begin, int64_t end) {
  switch (p.dtype) {
    case DType::kFloat32:
      return run_scale_grad<float, float>(p, begin, end);
    case DType::kFloat16:
      return run_scale_grad<float, Float16>(p, begin, end);
    case DType::kBFloat16:
      return run_scale_grad<float, BFloat16>(p, begin, end);
    case DType::kFloat64:
      return run_scale_grad<double, double>(p, begin, end);
  }
}

}  // namespace ALR_ISA
}  // namespace alr_fast
