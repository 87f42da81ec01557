// Rows of a few vectors, as many at a time as a vector has lanes: what is one number a row (its
// maximum, its sums, its loss) is a lane of one vector for all of them.
//
// A row with a masked class or without a finite loss is given back before anything of it is
// written. All others are computed here whatever is asked for, so that they have the same bits with
// and without statistics, alone and among equal indices.
#pragma once

#include "../alr_math.h"
#include "../alr_params.h"
#include "row_vectors.h"

namespace alr_fast {
namespace {

constexpr int kMaxShortVectors = 16;

// L: type of the logits. kVectors: vectors of a row, the last one perhaps not full; 0: known only
// at run time.
template <class L, class Target, int kVectors>
class ShortRows {
 public:
  static constexpr int kRows = kLanes<VecF>;

  ShortRows(const RowLossParams& params, float grad_scale)
      : p_(params),
        grad_scale_(grad_scale),
        vectors_(static_cast<int>((params.classes - 1) / kLanes<VecF> + 1)),
        tail_(static_cast<int>(params.classes - (vectors_ - 1) * kLanes<VecF>)) {}

  bool is_full() const { return count_ == kRows; }

  void add(int64_t b, int64_t i) {
    rows_[count_] = b;
    targets_[count_].select(p_, i);
    ++count_;
  }

  // Computes and writes the rows that were added; redo(b) for those that are given back.
  template <class Redo>
  void finish(bool store_target, const Redo& redo) {
    find_max();
    finish_sums(sum());
    for (int r = 0; r < count_; ++r) {
      if (is_plain_[r]) {
        static_cast<float*>(p_.row_loss)[rows_[r]] = loss_[r];
        if (p_.stats_class == nullptr && p_.rounding_state == nullptr) {
          write<true>(r, store_target);
        } else {
          write<false>(r, store_target);
        }
      } else {
        redo(rows_[r]);
      }
    }
    count_ = 0;
  }

 private:
  // The difference of lanes beyond the end: its exponential is 0.
  static constexpr float kBeyond = -1000;

  static ALR_INLINE VecF broadcast(float x) { return VecF{} + x; }

  const L* logits(int r) const {
    return static_cast<const L*>(p_.logits) + rows_[r] * p_.logits_stride;
  }

  // Calls f(vector, offset, count) for the vectors of a row.
  template <class Fn>
  ALR_INLINE void for_each(const Fn& f) const {
    const int vectors = kVectors == 0 ? vectors_ : kVectors;
    for (int v = 0; v < vectors - 1; ++v) f(v, int64_t{v} * kLanes<VecF>, Full{});
    const int64_t last = int64_t{vectors - 1} * kLanes<VecF>;
#if defined(__AVX512F__)
    f(vectors - 1, last, tail_);
#else
    if (tail_ == kLanes<VecF>) {
      f(vectors - 1, last, Full{});
    } else {
      f(vectors - 1, last, tail_);
    }
#endif
  }

  void find_max() {
    LanesOfRows largest;
    const auto larger = [](auto a, auto b) { return max_of(a, b); };
    for (int r = 0; r < count_; ++r) {
      const L* z = logits(r);
      VecF row = broadcast(-kInfinity<float>);
      for_each([&](int, int64_t k, auto count) {
        row = max_of(load_some<VecF>(z + k, count, broadcast(-kInfinity<float>)), row);
      });
      largest.set(r, row, larger);
    }
    store_raw(max_, largest.reduce(larger));
  }

  ALR_INLINE RowSums<VecF> sum() {
    RowSums<LanesOfRows> lanes;
    const auto plus = [](auto a, auto b) { return a + b; };
    for (int r = 0; r < count_; ++r) {
      const L* z = logits(r);
      const Target T = targets_[r];
      const VecF max = broadcast(max_[r]);
      RowSums<VecF> sums{};
      for_each([&](int v, int64_t k, auto count) {
        const VecF d =
            select_some(count, load_some<VecF>(z + k, count, VecF{}) - max, broadcast(kBeyond));
        const VecF e = exp_nonpositive(d);
        exp_[r][v] = e;
        accumulate<false>(sums, d, e, T.template load<VecF>(k, count), VecF{});
      });
      lanes.exp.set(r, sums.exp, plus);
      lanes.exp_d.set(r, sums.exp_d, plus);
      lanes.target.set(r, sums.target, plus);
      lanes.target_d.set(r, sums.target_d, plus);
    }
    return {lanes.exp.reduce(plus), lanes.exp_d.reduce(plus), lanes.target.reduce(plus),
            lanes.target_d.reduce(plus)};
  }

  // finish_row of alr_math.h for a row in each lane, and the factors of the write pass.
  ALR_INLINE void finish_sums(const RowSums<VecF>& sums) {
    const float momentum = static_cast<float>(p_.momentum);
    const float entropy_weight = static_cast<float>(p_.entropy_weight);
    const VecF log_sum = log_of(sums.exp);
    const VecF inv_sum = 1.0f / sums.exp;
    const VecF offset = -sums.exp_d * inv_sum;
    const VecF entropy = log_sum + offset;
    VecF loss = (1.0f - momentum + entropy_weight) * entropy;
    if (momentum != 0) loss += momentum * (sums.target * log_sum - sums.target_d);
    // A masked class, NaN or an infinite maximum make sum(e d) NaN.
    const VecI plain = (sums.exp_d == sums.exp_d) & (loss - loss == 0.0f);
    store_raw(is_plain_, plain);

    VecF weight = broadcast(1);
    if (p_.row_weight != nullptr)
      for (int r = 0; r < count_; ++r)
        weight[r] = static_cast<const float*>(p_.row_weight)[rows_[r]];
    store_raw(loss_, loss * weight);
    const VecF scale =
        stores_plain_rows(p_) ? broadcast(grad_scale_) : broadcast(grad_scale_) * weight;
    // With p = e inv_sum, dz = momentum (mass p - T) - entropy_weight p (d + offset) is
    // constant e + slope (e d) - of_target T, all times the scale. Here slope d may overflow where
    // e is 0, but e d does not.
    const VecF of_target = momentum * scale;
    const VecF slope = -entropy_weight * scale * inv_sum;
    store_raw(inv_sum_, inv_sum);
    store_raw(of_target_, of_target);
    store_raw(slope_, slope);
    store_raw(constant_, of_target * sums.target * inv_sum + slope * offset);
    store_raw(of_exp_, (1.0f - momentum) * inv_sum);
  }

  // kPlain: target rounded to nearest, no statistics.
  template <bool kPlain>
  void write(int r, bool store_target) {
    const L* z = logits(r);
    const Target target = targets_[r];
    L* const grad = p_.grad_mode == GradMode::kNone
                        ? nullptr
                        : static_cast<L*>(p_.grad_logits) + rows_[r] * p_.classes;
    const float momentum = static_cast<float>(p_.momentum);
    const bool stochastic = !kPlain && p_.rounding_state != nullptr;
    const bool stats = !kPlain && p_.stats_class != nullptr;
    const uint32_t key =
        stochastic ? rounding_key(p_.rounding_state[0], p_.rounding_state[1], rows_[r]) : 0;
    const int64_t before = stats ? target.argmax_class(p_.classes) : 0;
    VecF largest = broadcast(-kInfinity<float>);
    for_each([&](int v, int64_t k, auto count) {
      const VecF e = exp_[r][v];
      const VecF T = target.template load<VecF>(k, count);
      if (grad != nullptr) {
        const VecF d = load_some<VecF>(z + k, count, VecF{}) - max_[r];
        const VecF of_e = multiply_add(broadcast(constant_[r]), e, -of_target_[r] * T);
        store_some(grad + k, multiply_add(broadcast(slope_[r]), e * d, of_e), count);
      }
      const VecF t = multiply_add(broadcast(of_exp_[r]), e, momentum * T);
      if (store_target) target.store(k, count, t, stochastic, key);
      if constexpr (!kPlain) largest = max_of(t, largest);
    });
    if (!stats) return;
    const int64_t after = store_target ? target.argmax_class(p_.classes) : before;
    write_stats(p_, rows_[r], argmax_row<VecF>(z, p_.classes), before, after, inv_sum_[r],
                reduce_max(largest));
  }

  const RowLossParams& p_;
  const float grad_scale_;
  const int vectors_;  // of a row
  const int tail_;     // elements of the last vector
  int count_ = 0;
  int64_t rows_[kRows];  // in the batch
  Target targets_[kRows];
  VecF exp_[kRows][kVectors == 0 ? kMaxShortVectors : kVectors];
  // Of each row: whether it is written here, and the numbers of `write`.
  float max_[kRows], loss_[kRows], inv_sum_[kRows], of_target_[kRows], slope_[kRows],
      constant_[kRows], of_exp_[kRows];
  int32_t is_plain_[kRows];
};

}  // namespace
}  // namespace alr_fast
