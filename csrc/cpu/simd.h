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

// --- the first n of kLanes elements, 0 < n < kLanes (with AVX-512 also n = kLanes) ---
//
// Nothing beyond the n elements is read or written. Lanes n and above of a load are `fill`.

ALR_INLINE VecI lane_numbers() {
  VecI lanes;
  for (int i = 0; i < kLanes<VecF>; ++i) lanes[i] = i;
  return lanes;
}

ALR_INLINE VecF select_first(int n, VecF v, VecF fill) {
  return lane_numbers() < VecI{} + n ? v : fill;
}

#if defined(__AVX512F__)
ALR_INLINE uint32_t first_bits(int n) { return (1u << n) - 1; }

ALR_INLINE VecF load_first(const float* from, int n, VecF fill) {
  return (VecF)_mm512_mask_loadu_ps((__m512)fill, static_cast<__mmask16>(first_bits(n)), from);
}
template <class T>
ALR_INLINE VecF load_first(const T* from, int n, VecF fill) {
  const VecH bits = (VecH)_mm256_maskz_loadu_epi16(static_cast<__mmask16>(first_bits(n)), from);
  return select_first(n, load(reinterpret_cast<const T*>(&bits)), fill);
}

ALR_INLINE void store_first(float* to, VecF v, int n) {
  _mm512_mask_storeu_ps(to, static_cast<__mmask16>(first_bits(n)), (__m512)v);
}
template <class T>
ALR_INLINE void store_first(T* to, VecF v, int n) {
  VecH bits;
  store(reinterpret_cast<T*>(&bits), v);
  _mm256_mask_storeu_epi16(to, static_cast<__mmask16>(first_bits(n)), (__m256i)bits);
}
#else
// Through memory in pieces of 4, 2 and 1: no loop, and n is the same for many rows.
template <class T>
ALR_INLINE void copy_first(T* to, const T* from, int n) {
  if constexpr (kLanes<VecF> > 4)
    if (n & 4) __builtin_memcpy(to, from, 4 * sizeof(T));
  if (n & 2) __builtin_memcpy(to + (n & 4), from + (n & 4), 2 * sizeof(T));
  if (n & 1) to[n & 6] = from[n & 6];
}

// Elements of 16 bits are put together in registers: reading back from memory what was just written
// in smaller pieces is slow.
template <class T>
ALR_INLINE VecF load_first(const T* from, int n, VecF fill) {
  typedef uint64_t Words __attribute__((vector_size(sizeof(VecH))));
  static_assert(sizeof(T) == 2, "four elements a word");
  Words words{};
  if (n < 4) {
    words[0] = from[0].bits;
    if (n > 1) words[0] |= uint64_t{from[1].bits} << 16;
    if (n > 2) words[0] |= uint64_t{from[2].bits} << 32;
  } else if constexpr (kLanes<VecF> > 4) {
    uint64_t last;
    __builtin_memcpy(&last, from + n - 4, sizeof(last));
    __builtin_memcpy(&words, from, sizeof(last));
    if (n > 4) words[kLanes<Words> - 1] = last >> (16 * (8 - n));
  }
  return select_first(n, load(reinterpret_cast<const T*>(&words)), fill);
}

#if defined(__AVX2__)
ALR_INLINE VecF load_first(const float* from, int n, VecF fill) {
  const VecI used = lane_numbers() < VecI{} + n;
  return used ? (VecF)_mm256_maskload_ps(from, (__m256i)used) : fill;
}
#else
ALR_INLINE VecF load_first(const float* from, int n, VecF fill) {
  fill[0] = from[0];
  if (n > 1) fill[1] = from[1];
  if (n > 2) fill[2] = from[2];
  return fill;
}
#endif

template <class T>
ALR_INLINE void store_first(T* to, VecF v, int n) {
  T lanes[kLanes<VecF>];
  store(lanes, v);
  copy_first(to, lanes, n);
}
#endif

// A double is one lane: there is no tail.
template <class T>
ALR_INLINE double load_first(const T*, int, double fill) {
  return fill;
}
template <class T>
ALR_INLINE void store_first(T*, double, int) {}

// --- arithmetic ---

template <class V>
ALR_INLINE V max_of(V a, V b) {
  return a > b ? a : b;
}

template <class V>
ALR_INLINE V min_of(V a, V b) {
  return a < b ? a : b;
}

// a b + c, rounded once where the set can. In a sum of two products the compiler may fuse either of
// them, and not the same one in each copy of the code: here it has no choice.
ALR_INLINE VecF multiply_add(VecF a, VecF b, VecF c) {
#if defined(__AVX512F__)
  return (VecF)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif defined(__AVX2__)
  return (VecF)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#else
  return a * b + c;
#endif
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

// log(x) of a positive, normal number: x = 2^n (1 + r), 1 + r from sqrt(1/2) to sqrt(2), with the
// polynomial of the Cephes library (error below one unit in the last place).
ALR_INLINE VecF log_of(VecF x) {
  const VecI bits = bits_as<VecI>(x) - 0x3f3504f3;  // sqrt(1/2)
  const VecF n = __builtin_convertvector(bits >> 23, VecF);
  const VecF r = bits_as<VecF>((bits & 0x7fffff) + 0x3f3504f3) - 1.0f;
  const VecF square = r * r;
  VecF y = VecF{} + 7.0376836292e-2f;
  y = y * r - 1.1514610310e-1f;
  y = y * r + 1.1676998740e-1f;
  y = y * r - 1.2420140846e-1f;
  y = y * r + 1.4249322787e-1f;
  y = y * r - 1.6668057665e-1f;
  y = y * r + 2.0000714765e-1f;
  y = y * r - 2.4999993993e-1f;
  y = y * r + 3.3333331174e-1f;
  y = y * r * square - 2.12194440e-4f * n;  // log(2) in two parts, as in exp_nonpositive
  y = y - 0.5f * square;
  return (r + y) + 0.693359375f * n;
}

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

// Interleaves the lower or the upper halves of each four lanes: of single lanes, or of pairs.
#if defined(__AVX512F__)
ALR_INLINE VecF low_lanes(VecF a, VecF b) { return (VecF)_mm512_unpacklo_ps((__m512)a, (__m512)b); }
ALR_INLINE VecF high_lanes(VecF a, VecF b) {
  return (VecF)_mm512_unpackhi_ps((__m512)a, (__m512)b);
}
ALR_INLINE VecF low_pairs(VecF a, VecF b) {
  return (VecF)_mm512_shuffle_ps((__m512)a, (__m512)b, 0x44);
}
ALR_INLINE VecF high_pairs(VecF a, VecF b) {
  return (VecF)_mm512_shuffle_ps((__m512)a, (__m512)b, 0xee);
}
#elif defined(__AVX2__)
ALR_INLINE VecF low_lanes(VecF a, VecF b) { return (VecF)_mm256_unpacklo_ps((__m256)a, (__m256)b); }
ALR_INLINE VecF high_lanes(VecF a, VecF b) {
  return (VecF)_mm256_unpackhi_ps((__m256)a, (__m256)b);
}
ALR_INLINE VecF low_pairs(VecF a, VecF b) {
  return (VecF)_mm256_shuffle_ps((__m256)a, (__m256)b, 0x44);
}
ALR_INLINE VecF high_pairs(VecF a, VecF b) {
  return (VecF)_mm256_shuffle_ps((__m256)a, (__m256)b, 0xee);
}
#else
ALR_INLINE VecF low_lanes(VecF a, VecF b) { return VecF{a[0], b[0], a[1], b[1]}; }
ALR_INLINE VecF high_lanes(VecF a, VecF b) { return VecF{a[2], b[2], a[3], b[3]}; }
ALR_INLINE VecF low_pairs(VecF a, VecF b) { return VecF{a[0], a[1], b[0], b[1]}; }
ALR_INLINE VecF high_pairs(VecF a, VecF b) { return VecF{a[2], a[3], b[2], b[3]}; }
#endif

// Reduces kLanes vectors at a time, one for each row, to one whose lane r is the result of row r.
// One row alone would need as many shuffles for its last four lanes as four rows together.
class LanesOfRows {
 public:
  template <class Combine>
  ALR_INLINE void set(int row, VecF v, const Combine& combine) {
    four_[row % 4][row / 4] = fold(v, combine);
  }

  template <class Combine>
  ALR_INLINE VecF reduce(const Combine& combine) const {
    VecF x[4];
    __builtin_memcpy(x, four_, sizeof(x));
    const VecF a = combine(low_lanes(x[0], x[1]), high_lanes(x[0], x[1]));
    const VecF b = combine(low_lanes(x[2], x[3]), high_lanes(x[2], x[3]));
    return combine(low_pairs(a, b), high_pairs(a, b));
  }

 private:
  Vec4 four_[4][kLanes<VecF> / 4] = {};
};

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
