// The row formulas, written once for host and device.
//
// For a row with logits z, old target row T, a = momentum, lambda = entropy weight:
//
//   m = max z,  d = z - m,  e = exp(d),  s = sum e,  p = e / s,  log p = d - log s
//   H    = -sum p log p                = log s - sum(e d) / s
//   t    = a T + (1 - a) p
//   loss = -sum t log p + lambda H     = a (sum(T) log s - sum(T d)) + (1 - a) H + lambda H
//   dz   = a (sum(T) p - T) - lambda p (log p + H)
//
// One pass over the row computes the four sums (reduction pass), a second one writes t and dz
// (write pass). The sums use differences d, never z: an offset of all logits costs no accuracy.
//
// V is a scalar, or a vector of the compiler's vector extension (`cond ? x : y` works lane by
// lane).
#pragma once

#include <cstdint>

#include "alr_params.h"

namespace alr_fast {

template <class V>
struct RowSums {
  V exp;       // sum e
  V exp_d;     // sum e d
  V target;    // sum T
  V target_d;  // sum T d
};

// Scalars that the write pass needs, and the loss.
template <class F>
struct RowScalars {
  F inv_sum;   // 1 / s
  F entropy;   // H
  F offset;    // H - log s = -sum(e d) / s, so that log p + H = d + offset
  F mass;      // sum T
  F momentum;  // a
  F entropy_weight;
  F loss;
  bool finite;  // whether the logits have a softmax: no NaN, no +inf, not all -inf
};

// d with -inf (a masked class) replaced by the lowest finite number: e and p are 0 there, 0 * d is
// 0.
template <class V>
ALR_HD V masked_difference(V d, V lowest) {
  return lowest > d ? lowest : d;
}

// Adds elements with difference d, e = exp(d) and old target T. A masked class counts only if T is
// not 0; kMasked = false saves the selections where the row has no such class.
template <bool kMasked = true, class V>
ALR_HD void accumulate(RowSums<V>& sums, V d, V e, V T, V lowest) {
  sums.exp += e;
  sums.target += T;
  if (kMasked) {
    sums.exp_d += e * masked_difference(d, lowest);
    sums.target_d += T == V{} ? V{} : T * d;
  } else {
    sums.exp_d += e * d;
    sums.target_d += T * d;
  }
}

// Converts the sums to another maximum: differences become d + shift, factor = exp(shift), shift <=
// 0.
template <class F>
ALR_HD void rebase(RowSums<F>& sums, F shift, F factor) {
  const F bounded = shift < F(-1024) ? F(-1024) : shift;  // the factor is 0 there: no 0 * inf
  sums.exp_d = factor * (sums.exp_d + bounded * sums.exp);
  sums.exp *= factor;
  sums.target_d += sums.target == F(0) ? F(0) : sums.target * shift;
}

// `log_sum` is log(sums.exp), `inv_sum` its reciprocal, `max_is_finite` whether m is neither
// infinite nor NaN.
template <class F>
ALR_HD RowScalars<F> finish_row(const RowSums<F>& sums, F log_sum, F inv_sum, bool max_is_finite,
                                F momentum, F entropy_weight) {
  RowScalars<F> row;
  row.inv_sum = inv_sum;
  row.entropy = log_sum - sums.exp_d * row.inv_sum;
  row.offset = -sums.exp_d * row.inv_sum;
  row.mass = sums.target;
  row.momentum = momentum;
  row.entropy_weight = entropy_weight;
  // With momentum 0 the old row does not count, even if a masked class makes its sum infinite.
  const F old_part = momentum == F(0) ? F(0) : momentum * (sums.target * log_sum - sums.target_d);
  row.loss = old_part + (F(1) - momentum + entropy_weight) * row.entropy;
  row.finite = max_is_finite && sums.exp_d == sums.exp_d;  // a NaN anywhere ends up in exp_d
  return row;
}

// The loss of a row whose sum(T d) is beyond the range of F, from that sum in a wider type W: the
// loss itself may be within the range (terms of both signs, or T = 0 where d is not).
template <class F, class W>
ALR_HD F wide_loss(const RowScalars<F>& row, W target_d) {
  const F log_sum = row.entropy - row.offset;
  const W old_part = static_cast<W>(row.momentum) * (static_cast<W>(row.mass) * log_sum - target_d);
  return static_cast<F>(old_part + (F(1) - row.momentum + row.entropy_weight) * row.entropy);
}

// t = a T + (1 - a) p
template <class V, class F>
ALR_HD V refined_target(V T, V p, const RowScalars<F>& row) {
  return row.momentum * T + (F(1) - row.momentum) * p;
}

// dz = a (sum(T) p - T) - lambda p (log p + H), with d from masked_difference
template <class V, class F>
ALR_HD V logit_gradient(V T, V p, V d, const RowScalars<F>& row) {
  return row.momentum * (row.mass * p - T) - row.entropy_weight * p * (d + row.offset);
}

// Random bits of stochastic rounding, one word an element. A row's key comes from seed, call and
// row (the 64-bit finaliser of SplitMix64), an element's bits from key and class (a 32-bit
// finaliser).
ALR_HD uint32_t rounding_key(int64_t seed, int64_t call, int64_t row) {
  uint64_t x = static_cast<uint64_t>(seed) + 0x9e3779b97f4a7c15u * static_cast<uint64_t>(call + 1);
  for (int i = 0; i < 2; ++i) {
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
    x ^= x >> 31;
    if (i == 0) x += 0x9e3779b97f4a7c15u * static_cast<uint64_t>(row + 1);
  }
  return static_cast<uint32_t>(x >> 32);
}

template <class U>  // uint32_t, or a vector of it
ALR_HD U rounding_bits(uint32_t key, U column) {
  U x = column * 0x9e3779b9u + key;
  x = (x ^ (x >> 16)) * 0x21f0aaadu;
  x = (x ^ (x >> 15)) * 0x735a2d97u;
  return x ^ (x >> 15);
}

template <class To, class From>
ALR_HD To bits_as(From from) {
  static_assert(sizeof(To) == sizeof(From), "same size");
  To to;
  __builtin_memcpy(&to, &from, sizeof(to));
  return to;
}

// Rounds x to one of its two neighbours in bfloat16 at random, such that the mean is x.
// U is the unsigned integer (vector) of V's width.
template <class V, class U>
ALR_HD V round_stochastic_bfloat16(V x, U random) {
  return bits_as<V>((bits_as<U>(x) + (random >> 16)) & 0xffff0000u);
}

// The same for float16, which drops 13 bits. Below its smallest normal number, 2^-14, the unit is
// 2^-24: adding 2^-14 lines the bits up so that 13 bits are dropped again.
template <class V, class U>
ALR_HD V round_stochastic_float16(V x, U random) {
  const V smallest_normal = V{} + 6.103515625e-05f;
  const U sign = bits_as<U>(x) & 0x80000000u;
  const V magnitude = bits_as<V>(bits_as<U>(x) & 0x7fffffffu);
  const V shift = magnitude < smallest_normal ? smallest_normal : V{};
  const V shifted = magnitude + shift;
  const V rounded = bits_as<V>((bits_as<U>(shifted) + (random >> 19)) & 0xffffe000u) - shift;
  return bits_as<V>(bits_as<U>(rounded) | sign);
}

}  // namespace alr_fast
