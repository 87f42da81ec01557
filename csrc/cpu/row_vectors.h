// A row as vectors: its elements in memory, and its target row in a table or of a label.
//
// Lanes beyond the end of a row hold logit -inf and target 0, which add nothing to any sum.
#pragma once

#include <type_traits>

#include "../alr_params.h"
#include "simd.h"

namespace alr_fast {
namespace {

template <class F>
constexpr F kInfinity = static_cast<F>(__builtin_inf());
constexpr float kNaN = __builtin_nanf("");
template <class F>
constexpr F kLowest = static_cast<F>(-1.7976931348623157e308);
template <>
constexpr float kLowest<float> = -3.402823466e38f;

struct Full {};  // as a count: all lanes

template <class V, class T>
ALR_INLINE V load_some(const T* from, Full, V) {
  return load_full<V>(from);
}
template <class V, class T>
ALR_INLINE V load_some(const T* from, int n, V fill) {
  return load_first(from, n, fill);
}
template <class V, class T>
ALR_INLINE void store_some(T* to, V v, Full) {
  store_full(to, v);
}
template <class V, class T>
ALR_INLINE void store_some(T* to, V v, int n) {
  store_first(to, v, n);
}

template <class V>
ALR_INLINE V select_some(Full, V v, V) {
  return v;
}
template <class V>
ALR_INLINE V select_some(int n, V v, V fill) {
  return select_first(n, v, fill);
}

// Calls f(offset, count) for all vectors of [begin, end); only the last count may be a number.
template <class V, class Fn>
ALR_INLINE void for_each_vector(int64_t begin, int64_t end, const Fn& f) {
  int64_t k = begin;
  for (; k + kLanes<V> <= end; k += kLanes<V>) f(k, Full{});
  if (k < end) f(k, static_cast<int>(end - k));
}

ALR_INLINE float lane(VecF v, int i) { return v[i]; }
ALR_INLINE double lane(double v, int) { return v; }

// First class with the largest value of a row.
template <class V, class T>
ALR_INLINE int64_t argmax_row(const T* row, int64_t classes) {
  const V lowest = V{} - kInfinity<float>;
  V largest = lowest;
  for_each_vector<V>(0, classes, [&](int64_t k, auto count) {
    largest = max_of(load_some<V>(row + k, count, lowest), largest);
  });
  const auto wanted = reduce_max(largest);
  int64_t found = -1;
  for_each_vector<V>(0, classes, [&](int64_t k, auto count) {
    if (found >= 0) return;
    const V v = load_some<V>(row + k, count, lowest);
    for (int i = 0; i < kLanes<V> && found < 0; ++i)
      if (lane(v, i) == wanted) found = k + i;
  });
  return found < 0 ? 0 : found;
}

// Target rows in a table of type T.
template <class T>
struct TableTarget {
  static constexpr bool kIsTable = true;
  T* row;

  ALR_INLINE void select(const RowLossParams& p, int64_t i) {
    row = static_cast<T*>(p.target.table) + i * p.target.stride;
  }

  template <class V, class N>
  ALR_INLINE V load(int64_t k, N count) const {
    return load_some<V>(row + k, count, V{});
  }

  template <class V, class N>
  ALR_INLINE void store(int64_t k, N count, V t, bool stochastically, uint32_t key) const {
    store_some(row + k, stochastically ? round_for(row, t, key, k) : t, count);
  }

  int64_t argmax_class(int64_t classes) const { return argmax_row<VecF>(row, classes); }

  ALR_INLINE void prefetch(int64_t k) const { __builtin_prefetch(row + k, 1); }
};

// Smoothed one-hot target rows of a label.
template <class F>
struct LabelTarget {
  static constexpr bool kIsTable = false;
  F on, off;
  int64_t label;

  ALR_INLINE void select(const RowLossParams& p, int64_t i) {
    on = static_cast<F>(p.target.on_target);
    off = static_cast<F>(p.target.off_target);
    label = i;
  }

  template <class V, class N>
  ALR_INLINE V load(int64_t k, N count) const {
    if constexpr (kLanes<V> == 1) {
      return label == k ? on : off;
    } else {
      const V v = lane_numbers() == VecI{} + static_cast<int32_t>(label - k) ? V{} + on : V{} + off;
      return select_some(count, v, V{});
    }
  }

  // The row of a label is not stored.
  template <class V, class N>
  ALR_INLINE void store(int64_t, N, V, bool, uint32_t) const {}

  int64_t argmax_class(int64_t) const { return label; }

  ALR_INLINE void prefetch(int64_t) const {}
};

ALR_INLINE void write_stats(const RowLossParams& p, int64_t b, int64_t predicted, int64_t before,
                            int64_t after, double confidence, double largest_target) {
  p.stats_class[b] = predicted;
  p.stats_class[p.rows + b] = before;
  p.stats_class[2 * p.rows + b] = after;
  p.stats_value[b] = static_cast<float>(confidence);
  p.stats_value[p.rows + b] = static_cast<float>(largest_target);
}

}  // namespace
}  // namespace alr_fast
