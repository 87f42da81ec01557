// Storage types, and loads and stores of several elements at once.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

#include "../alr_params.h"

// Checked where kernels run on the CPU (tests/cpp/cuda_shim.h); a device would trap anyway.
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

// x, of which the compiler cannot tell: what is computed from it is computed again, where it would
// otherwise be kept in registers.
__device__ __forceinline__ float anew(float x) {
#if defined(__CUDA_ARCH__)
  asm("" : "+f"(x));
#endif
  return x;
}

// Elements that one instruction moves.
template <class T, int kVector>
struct alignas(sizeof(T) * kVector) Pack {
  static_assert(sizeof(T) * kVector <= 16, "the widest access");
  T at[kVector];
};

// `from` and `to` are multiples of kVector elements away from an address aligned for them.
template <int kVector, class T>
__device__ __forceinline__ void load(const T* from, float* to) {
  ALR_DEVICE_CHECK(reinterpret_cast<uintptr_t>(from) % alignof(Pack<T, kVector>) == 0);
  const Pack<T, kVector> pack = *reinterpret_cast<const Pack<T, kVector>*>(from);
#pragma unroll
  for (int i = 0; i < kVector; ++i) to[i] = to_float(pack.at[i]);
}

template <int kVector, class T>
__device__ __forceinline__ void store(T* to, const float* from) {
  ALR_DEVICE_CHECK(reinterpret_cast<uintptr_t>(to) % alignof(Pack<T, kVector>) == 0);
  Pack<T, kVector> pack;
#pragma unroll
  for (int i = 0; i < kVector; ++i) pack.at[i] = from_float<T>(from[i]);
  *reinterpret_cast<Pack<T, kVector>*>(to) = pack;
}

// index[b], or b where there is none. `index` is [B] int64 or int32; which is read once per row.
__device__ __forceinline__ int64_t index_at(const RowLossParams& p, int64_t b) {
  if (p.index == nullptr) return b;
  const int64_t at = b * p.index_stride;
  return p.index_is_int64 ? static_cast<const int64_t*>(p.index)[at]
                          : static_cast<const int32_t*>(p.index)[at];
}

}  // namespace alr_fast
