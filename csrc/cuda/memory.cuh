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

template <class T>
constexpr DType dtype_of();
template <>
constexpr DType dtype_of<float>() {
  return DType::kFloat32;
}
template <>
constexpr DType dtype_of<__half>() {
  return DType::kFloat16;
}
template <>
constexpr DType dtype_of<__nv_bfloat16>() {
  return DType::kBFloat16;
}

// What is loaded beyond the end of a row: below ordinary logits, and not so low that exp_below
// would fail.
template <class T>
struct Padding {
  static constexpr float kValue = -1e38f;
};
template <>
struct Padding<__half> {
  static constexpr float kValue = -65504;  // the lowest finite number
};

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

// e^x for x <= 0, to about 3 units in the last place whatever the size of x; NaN below -2e38.
// Rounding x * log2(e) alone would cost |x| / 2 units, so its rounding error is added back.
__device__ __forceinline__ float exp_below(float x) {
  constexpr float kLog2E = 1.44269504088896340736f;
  constexpr float kMinusLn2 = -0.693147182464599609375f;
  constexpr float kMinusLn2Low = 1.90465429995776804525e-9f;  // -log(2) - kMinusLn2
  const float exponent = x * kLog2E;
  const float rest = fmaf(exponent, kMinusLn2Low, fmaf(exponent, kMinusLn2, x));
  const float y = fast_exp2(exponent);
  return fmaf(y, rest, y);
}

// How much of the row operation a kernel computes; the shipped ones are kWhole, the others measure
// what a part of it costs (csrc/cuda/tournament).
enum class Arithmetic {
  kWhole,
  kPlainExponential,  // without the correction of exp_below
  kCopy,              // dz = z, t = T: the same accesses, no sums
};

template <Arithmetic kArithmetic>
__device__ __forceinline__ float exponential(float x) {
  if constexpr (kArithmetic == Arithmetic::kPlainExponential)
    return fast_exp2(x * 1.44269504088896340736f);
  else
    return exp_below(x);
}

// exp_below for any x <= 0, -inf included; that of NaN is 0.
__device__ __forceinline__ float fast_exp(float x) { return exp_below(fmaxf(x, -1000.f)); }

// 1 / x for x >= 1, to one unit in the last place.
__device__ __forceinline__ float reciprocal(float x) {
#if defined(__CUDA_ARCH__)
  float y;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
#else
  return 1 / x;
#endif
}

// 1 / count, exact if the count is a power of two, else to half a unit and a bit.
__device__ __forceinline__ float reciprocal_of_count(float count) {
  const float rough = reciprocal(count);
  return fmaf(rough, fmaf(-count, rough, 1.f), rough);
}

// Adds 1 to a counter in device memory that all blocks share, and returns what it was. A release of
// what this thread has written, and an acquire of what the threads that have arrived before it had
// written: cheaper than two fences, which would also order this with all other memory accesses.
__device__ __forceinline__ unsigned long long arrive(unsigned long long* counter) {
#if defined(__CUDA_ARCH__)
  unsigned long long before;
  asm volatile("atom.add.acq_rel.gpu.global.u64 %0, [%1], 1;"
               : "=l"(before)
               : "l"(__cvta_generic_to_global(counter))
               : "memory");
  return before;
#else
  return atomicAdd(counter, 1ull);
#endif
}

// Words in device memory that blocks pass to each other while they run, each by one access that
// needs no other to be ordered with it.
#if defined(ALR_FAST_KERNELS_ON_CPU)
using cuda_shim::load_relaxed;
using cuda_shim::store_relaxed;
#else
__device__ __forceinline__ unsigned long long load_relaxed(const unsigned long long* from) {
  unsigned long long word = 0;
#if defined(__CUDA_ARCH__)
  asm volatile("ld.relaxed.gpu.global.u64 %0, [%1];"
               : "=l"(word)
               : "l"(__cvta_generic_to_global(from))
               : "memory");
#endif
  return word;
}

__device__ __forceinline__ void store_relaxed(unsigned long long* to, unsigned long long word) {
#if defined(__CUDA_ARCH__)
  asm volatile("st.relaxed.gpu.global.u64 [%0], %1;"
               :
               : "l"(__cvta_generic_to_global(to)), "l"(word)
               : "memory");
#endif
}
#endif

// Waits until the kernel before this one in the stream has ended and its results can be read, where
// this one was launched to start early (LaunchPlan::starts_early); else returns at once. Called by
// all threads before they access device memory.
__device__ __forceinline__ void wait_for_kernel_before() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" : : : "memory");
#endif
}

// Returns x, hidden from the optimiser: nothing that follows from it is computed before it is
// needed.
__device__ __forceinline__ float anew(float x) {
#if defined(__CUDA_ARCH__)
  asm volatile("" : "+f"(x));
#endif
  return x;
}
__device__ __forceinline__ int anew(int x) {
#if defined(__CUDA_ARCH__)
  asm volatile("" : "+r"(x));
#endif
  return x;
}

// Returns an address in device memory that the compiler keeps in registers, instead of computing it
// again for each of the accesses relative to it.
template <class T>
__device__ __forceinline__ T* kept(T* address) {
#if defined(__CUDA_ARCH__)
  asm("" : "+l"(address));
  __builtin_assume(__isGlobal(address));
#endif
  return address;
}

// Cache policy of an access.
enum class Cached {
  kOnce,   // not needed again soon: the first to be evicted, so that the gradient, which is read
           // next, stays in L2
  kAgain,  // as the hardware sees fit
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

// kVector elements as they lie in memory: what is loaded is converted where it is used, so that
// nothing waits between the requests of a row.
template <class T, int kVector>
struct Words {
  using P = Pack<T, kVector>;
  typename P::Word words[P::kCount];

  __device__ __forceinline__ float operator[](int i) const {
    T elements[P::kSize];
    __builtin_memcpy(static_cast<void*>(elements), &words[i / P::kSize], sizeof(elements));
    return to_float(elements[i % P::kSize]);
  }
};

// `from` and `to` are multiples of kVector elements away from an address aligned for them.
template <Cached kCached, class T, int kVector>
__device__ __forceinline__ void load(const T* from, Words<T, kVector>& to) {
  using P = Pack<T, kVector>;
  ALR_DEVICE_CHECK(reinterpret_cast<uintptr_t>(from) % P::kBytes == 0);
#pragma unroll
  for (int n = 0; n < P::kCount; ++n) {
    const auto* const at = reinterpret_cast<const typename P::Word*>(from) + n;
    if constexpr (kCached == Cached::kOnce) {
      to.words[n] = __ldcs(at);
    } else {
      to.words[n] = *at;
    }
  }
}

template <class T, int kVector>
__device__ __forceinline__ void fill(Words<T, kVector>& to, T value) {
  T elements[kVector];
#pragma unroll
  for (int i = 0; i < kVector; ++i) elements[i] = value;
  __builtin_memcpy(&to.words, static_cast<const void*>(elements), sizeof(elements));
}

// As they are.
template <class T, int kVector>
__device__ __forceinline__ void store(T* to, const Words<T, kVector>& from) {
  using P = Pack<T, kVector>;
#pragma unroll
  for (int n = 0; n < P::kCount; ++n) reinterpret_cast<typename P::Word*>(to)[n] = from.words[n];
}

template <Cached kCached, int kVector, class T>
__device__ __forceinline__ void store(T* to, const float (&from)[kVector]) {
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
