// Vectors of the instruction set that the including file is compiled for, in the compiler's vector
// extension: loads and stores that convert from and to the storage types, exp, reductions.
//
// Everything here has internal linkage: the same source is compiled for several instruction sets.
#pragma once

#include <cstdint>

#include "../alr_math.h"

#if defined(__AVX__)
#include <immintrin.h>
#endif

namespace alr_fast {
namespace {

#if defined(__AVX512F__)
constexpr int kVectorBytes = 64;
#elif defined(__AVX2__)
constexpr int kVectorBytes = 32;
#else
constexpr int kVectorBytes = 16;
#endif

#define ALR_INLINE inline __attribute__((always_inline))

typedef float VecF __attribute__((vector_size(kVectorBytes)));
typedef uint32_t VecU __attribute__((vector_size(kVectorBytes)));
typedef int32_t VecI __attribute__((vector_size(kVectorBytes)));
typedef uint16_t VecH __attribute__((vector_size(kVectorBytes / 2)));

// Storage types of 16 bits.
struct Float16 {
  uint16_t bits;
};
struct BFloat16 {
  uint16_t bits;
};

template <class V>
constexpr int kLanes = sizeof(V) / sizeof(V{}[0]);
template <>
constexpr int kLanes<double> = 1;

// Accumulation type F -> vector type. float64 is for checking gradients, not for speed: one lane.
template <class F>
struct VectorOf;
template <>
struct VectorOf<float> {
  using type = VecF;
};
template <>
struct VectorOf<double> {
  using type = double;
};

template <class V, class T>
ALR_INLINE V load_raw(const T* from) {
  static_assert(sizeof(V) % sizeof(T) == 0, "whole elements");
  V v;
  __builtin_memcpy(&v, from, sizeof(V));
  return v;
}

template <class V, class T>
ALR_INLINE void store_raw(T* to, V v) {
  __builtin_memcpy(to, &v, sizeof(V));
}

// --- float16 and bfloat16 ---

ALR_INLINE VecF from_bfloat16(VecH h) {
  return bits_as<VecF>(__builtin_convertvector(h, VecU) << 16);
}

ALR_INLINE VecH to_bfloat16(VecF x) {  // to nearest, ties to even; NaN stays NaN
  const VecU bits = bits_as<VecU>(x);
  const VecU rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  const VecU result = x == x ? rounded : (bits >> 16) | 0x40u;
  return __builtin_convertvector(result, VecH);
}

ALR_INLINE VecF from_float16(VecH h) {
#if defined(__AVX512F__)
  return (VecF)_mm512_cvtph_ps((__m256i)h);
#elif defined(__F16C__)
  return (VecF)_mm256_cvtph_ps((__m128i)h);
#else
  const VecU bits = __builtin_convertvector(h, VecU);
  const VecU magnitude = bits & 0x7fffu;
  const VecF subnormal =
      __builtin_convertvector((VecI)magnitude, VecF) * 5.9604644775390625e-08f;  // 2^-24
  const VecU normal = (magnitude << 13) + (112u << 23);
  const VecU special = (magnitude << 13) | 0x7f800000u;
  VecU result = magnitude < 0x400u ? bits_as<VecU>(subnormal) : normal;
  result = magnitude >= 0x7c00u ? special : result;
  return bits_as<VecF>(result | ((bits & 0x8000u) << 16));
#endif
}

ALR_INLINE VecH to_float16(VecF x) {  // to nearest, ties to even; NaN stays NaN
#if defined(__AVX512F__)
  return (VecH)_mm512_cvtps_ph((__m512)x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
#elif defined(__F16C__)
  return (VecH)_mm256_cvtps_ph((__m256)x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
#else
  const VecU bits = bits_as<VecU>(x);
  const VecU magnitude = bits & 0x7fffffffu;
  const VecU normal = (magnitude + 0xfffu + ((magnitude >> 13) & 1u) - (112u << 23)) >> 13;
  // One half has the unit 2^-24 of float16's subnormal numbers: the addition rounds.
  const VecF half = VecF{} + 0.5f;
  const VecU subnormal = bits_as<VecU>(bits_as<VecF>(magnitude) + half) - bits_as<VecU>(half);
  VecU result = magnitude < (113u << 23) ? subnormal : normal;
  result = magnitude >= 0x477ff000u ? VecU{} + 0x7c00u : result;  // 65520 and above: infinity
  result = magnitude > 0x7f800000u ? VecU{} + 0x7e00u : result;
  return __builtin_convertvector(result | ((bits >> 16) & 0x8000u), VecH);
#endif
}

// --- loads and stores: kLanes elements, or the first n of them ---

ALR_INLINE VecF load(const float* from) { return load_raw<VecF>(from); }
ALR_INLINE VecF load(const Float16* from) { return from_float16(load_raw<VecH>(from)); }
ALR_INLINE VecF load(const BFloat16* from) { return from_bfloat16(load_raw<VecH>(from)); }

ALR_INLINE void store(float* to, VecF v) { store_raw(to, v); }
ALR_INLINE void store(Float16* to, VecF v) { store_raw(to, to_float16(v)); }
ALR_INLINE void store(BFloat16* to, VecF v) { store_raw(to, to_bfloat16(v)); }

template <class V, class T>
ALR_INLINE V load_full(const T* from) {
  return load(from);
}
template <>
ALR_INLINE double load_full<double, double>(const double* from) {
  return *from;
}
template <>
ALR_INLINE double load_full<double, float>(const float* from) {
  return *from;
}
template <>
ALR_INLINE double load_full<double, Float16>(const Float16* from) {
  return from_float16(VecH{} + from->bits)[0];
}
template <>
ALR_INLINE double load_full<double, BFloat16>(const BFloat16* from) {
  return from_bfloat16(VecH{} + from->bits)[0];
}

ALR_INLINE void store_full(double* to, double v) { *to = v; }
template <class T>
ALR_INLINE void store_full(T* to, VecF v) {
  store(to, v);
}
// A double is converted to 16 bits by way of float: it is rounded twice, with an error far below
// one unit in the last place.
template <class T>
ALR_INLINE void store_full(T* to, double v) {
  T lanes[kLanes<VecF>];
  store(lanes, VecF{} + static_cast<float>(v));
  *to = lanes[0];
}

// Lanes n and above are set to `fill`. A buffer of the vector's size prevents reads beyond the row.
template <class V, class T>
ALR_INLINE V load_first(const T* from, int n, T fill) {
  T lanes[kLanes<V>];
  for (int i = 0; i < kLanes<V>; ++i) lanes[i] = i < n ? from[i] : fill;
  return load_full<V>(lanes);
}

template <class V, class T>
ALR_INLINE void store_first(T* to, V v, int n) {
  T lanes[kLanes<V>];
  store_full(lanes, v);
  for (int i = 0; i < n; ++i) to[i] = lanes[i];
}

// --- arithmetic ---

template <class V>
ALR_INLINE V max_of(V a, V b) {
  return a > b ? a : b;
}

template <class V>
ALR_INLINE V min_of(V a, V b) {
  return a < b ? a : b;
}

// exp(x) for x <= 0: 2^n q(r), |r| <= log(2) / 2, with a polynomial fitted to a relative error of
// 4e-9. Below -87.7, where float would be subnormal, the result is 0. The result of a NaN is
// arbitrary.
ALR_INLINE VecF exp_nonpositive(VecF x) {
  x = max_of(x, VecF{} - 88.0f);  // n = -127 there
  // Adding 1.5 * 2^23 rounds to an integer in the low bits; 127 more make them the exponent of 2^n.
  const VecF shift = VecF{} + (12582912.0f + 127.0f);
  const VecF shifted = x * 1.44269504089f + shift;
  const VecF n = shifted - shift;
  const VecF scale = bits_as<VecF>(bits_as<VecU>(shifted) << 23);
  VecF r =
      x - n * 0.693359375f;  // log(2) in two parts, the first short enough for an exact product
  r = r + n * 2.12194440054690583e-4f;
  VecF y = VecF{} + 1.3863756e-3f;
  y = y * r + 8.36751e-3f;
  y = y * r + 4.1667238e-2f;
  y = y * r + 1.6666535e-1f;
  y = y * r + 0.5f;
  y = y * r + 1.0f;
  y = y * r + 1.0f;
  return y * scale;
}
ALR_INLINE double exp_nonpositive(double x) { return __builtin_exp(x); }

ALR_INLINE float log_of(float x) { return __builtin_logf(x); }
ALR_INLINE double log_of(double x) { return __builtin_log(x); }

typedef float Vec4 __attribute__((vector_size(16)));

// Combines halves of a vector until four lanes are left.
template <class Combine>
ALR_INLINE Vec4 fold(VecF v, const Combine& combine) {
  Vec4 part[kLanes<VecF> / 4];
  __builtin_memcpy(part, &v, sizeof(v));
  for (int n = kLanes<VecF> / 8; n > 0; n /= 2)
    for (int i = 0; i < n; ++i) part[i] = combine(part[i], part[i + n]);
  return part[0];
}

ALR_INLINE float reduce_max(VecF v) {
  const Vec4 x = fold(v, [](Vec4 a, Vec4 b) { return max_of(a, b); });
  return max_of(max_of(x[0], x[2]), max_of(x[1], x[3]));
}
ALR_INLINE double reduce_max(double v) { return v; }

ALR_INLINE float reduce_min(VecF v) {
  const Vec4 x = fold(v, [](Vec4 a, Vec4 b) { return min_of(a, b); });
  return min_of(min_of(x[0], x[2]), min_of(x[1], x[3]));
}
ALR_INLINE double reduce_min(double v) { return v; }

ALR_INLINE float reduce_add(VecF v) {
  const Vec4 x = fold(v, [](Vec4 a, Vec4 b) { return a + b; });
  return (x[0] + x[2]) + (x[1] + x[3]);
}
ALR_INLINE double reduce_add(double v) { return v; }

template <class F, class V>
ALR_INLINE RowSums<F> reduce_add(const RowSums<V>& sums) {
  return {reduce_add(sums.exp), reduce_add(sums.exp_d), reduce_add(sums.target),
          reduce_add(sums.target_d)};
}

// Stochastic rounding to the type of a bank row; the stored result is exact after it.
ALR_INLINE VecF stochastic(const BFloat16*, VecF v, VecU random) {
  return round_stochastic_bfloat16(v, random);
}
ALR_INLINE VecF stochastic(const Float16*, VecF v, VecU random) {
  return round_stochastic_float16(v, random);
}
ALR_INLINE VecF stochastic(const float*, VecF v, VecU) { return v; }

template <class T>
ALR_INLINE VecF round_for(const T* type, VecF v, uint32_t key, int64_t column) {
  VecU lane;
  for (int i = 0; i < kLanes<VecF>; ++i) lane[i] = static_cast<uint32_t>(column + i);
  return stochastic(type, v, rounding_bits(key, lane));
}
template <class T>
ALR_INLINE double round_for(const T* type, double v, uint32_t key, int64_t column) {
  return round_for(type, VecF{} + static_cast<float>(v), key, column)[0];
}
template <>
ALR_INLINE double round_for<float>(const float*, double v, uint32_t, int64_t) {
  return v;
}

}  // namespace
}  // namespace alr_fast
