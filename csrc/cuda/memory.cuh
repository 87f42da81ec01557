// Storage types, and loads and stores of several elements at once.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

#include "../alr_params.h"
#include "launch_plan.h"

// Checked when kernels run on the CPU (tests/cpp/cuda_shim.h); a device traps anyway.
#if !defined(ALR_DEVICE_CHECK)
#define ALR_DEVICE_CHECK(condition) ((void)0)
#endif

namespace alr_fast {

__device__ __forceinline__ float to_float(float x) { return x; }
__device__ __forceinline__ float to_float(__half x) { return __half2float(x); }
__device__ __forceinline__ float to_float(__nv_bfloat16 x) { return __bfloat162float(x); }

template <class T>
__device__ __forceinline__ T from_float(float x);
template <>
__device__ __forceinline__ float from_float<float>(float x) {
  return x;
}
template <>
__device__ __forceinline__ __half from_float<__half>(float x) {
  return __float2half_rn(x);
}
template <>
__device__ __forceinline__ __nv_bfloat16 from_float<__nv_bfloat16>(float x) {
  return __float2bfloat16_rn(x);
}

// Returns x, hidden from the optimiser: values derived from it are recomputed instead of being kept
// in registers.
__device__ __forceinline__ float anew(float x) {
#if defined(__CUDA_ARCH__)
  asm("" : "+f"(x));
#endif
  return x;
}

// 2^x by the hardware, to about 2 units in the last place; 0 below the smallest normal number.
__device__ __forceinline__ float fast_exp2(float x) {
#if defined(__CUDA_ARCH__)
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
#else
  return exp2f(x);
#endif
}

// e^x for x <= 0, to about 3 units in the last place whatever the size of x. Rounding x * log2(e)
// alone would cost |x| / 2 units, so its rounding error is added back.
__device__ __forceinline__ float fast_exp(float x) {
  constexpr float kLog2E = 1.44269504088896340736f;
  constexpr float kLog2ELow = 1.92596299112661746887e-8f;  // log2(e) - kLog2E
  constexpr float kLn2 = 0.69314718055994530942f;
  constexpr float kZeroBelow = -150;  // 2^x is 0 there, and the rest may be infinity - infinity
  const float exponent = x * kLog2E;
  const float rest = fmaf(x, kLog2ELow, fmaf(x, kLog2E, -exponent));
  const float y = fast_exp2(exponent);
  return exponent > kZeroBelow ? fmaf(y, rest * kLn2, y) : y;
}

// Cache policy of an access.
enum class Cached {
  kOnce,   // not needed again soon: the first to be evicted, so that the gradient, which is read
           // next, stays in L2. Device memory only.
  kAgain,  // as the hardware sees fit; shared memory too
};

template <int kBytes>
struct WordOf;
template <>
struct WordOf<2> {
  using Type = unsigned short;
};
template <>
struct WordOf<4> {
  using Type = unsigned int;
};
template <>
struct WordOf<8> {
  using Type = uint2;
};
template <>
struct WordOf<16> {
  using Type = uint4;
};

// Elements per instruction, and instructions per kVector elements.
template <class T, int kVector>
struct Pack {
  static constexpr int kBytes =
      kVector * sizeof(T) < kAccessBytes ? kVector * sizeof(T) : kAccessBytes;
  static constexpr int kSize = kBytes / sizeof(T);
  static constexpr int kCount = kVector / kSize;
  using Word = typename WordOf<kBytes>::Type;
};

// `from` and `to` are multiples of kVector elements away from an address aligned for them.
template <int kVector, Cached kCached, class T>
__device__ __forceinline__ void load(const T* from, float* to) {
  using P = Pack<T, kVector>;
  ALR_DEVICE_CHECK(reinterpret_cast<uintptr_t>(from) % P::kBytes == 0);
#pragma unroll
  for (int n = 0; n < P::kCount; ++n) {
    const auto* const at = reinterpret_cast<const typename P::Word*>(from) + n;
    typename P::Word word;
    if constexpr (kCached == Cached::kOnce) {
      word = __ldcs(at);
    } else {
      word = *at;
    }
    T elements[P::kSize];
    __builtin_memcpy(static_cast<void*>(elements), &word, sizeof(word));
#pragma unroll
    for (int i = 0; i < P::kSize; ++i) to[n * P::kSize + i] = to_float(elements[i]);
  }
}

template <int kVector, Cached kCached, class T>
__device__ __forceinline__ void store(T* to, const float* from) {
  using P = Pack<T, kVector>;
  ALR_DEVICE_CHECK(reinterpret_cast<uintptr_t>(to) % P::kBytes == 0);
#pragma unroll
  for (int n = 0; n < P::kCount; ++n) {
    T elements[P::kSize];
#pragma unroll
    for (int i = 0; i < P::kSize; ++i) elements[i] = from_float<T>(from[n * P::kSize + i]);
    typename P::Word word;
    __builtin_memcpy(&word, static_cast<const void*>(elements), sizeof(word));
    auto* const at = reinterpret_cast<typename P::Word*>(to) + n;
    if constexpr (kCached == Cached::kOnce) {
      __stcs(at, word);
    } else {
      *at = word;
    }
  }
}

}  // namespace alr_fast
