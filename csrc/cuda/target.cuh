// Where a row's old target comes from, and where the new one goes.
#pragma once

#include <cstdint>

#include "../alr_math.h"
#include "../alr_params.h"
#include "memory.cuh"

namespace alr_fast {

__device__ __forceinline__ float round_stochastic(const float*, float x, uint32_t) { return x; }
__device__ __forceinline__ float round_stochastic(const __half*, float x, uint32_t random) {
  return round_stochastic_float16(x, random);
}
__device__ __forceinline__ float round_stochastic(const __nv_bfloat16*, float x, uint32_t random) {
  return round_stochastic_bfloat16(x, random);
}

// Row of a table of type T. The table may lie in pinned host memory.
template <class T>
class TableTarget {
 public:
  static constexpr bool kIsTable = true;

  __device__ __forceinline__ TableTarget(const RowLossParams& p, int64_t i)
      : row_(static_cast<T*>(p.target.table) + i * p.target.stride) {}

  // kVector elements from column k.
  template <int kVector>
  __device__ __forceinline__ void load(int k, float* to) const {
    alr_fast::load<kVector>(row_ + k, to);
  }

  template <int kVector>
  __device__ __forceinline__ void store(int k, const float* t) const {
    alr_fast::store<kVector>(row_ + k, t);
  }

  // t as it is stored.
  __device__ __forceinline__ static float rounded(float t) { return to_float(from_float<T>(t)); }

  // One of t's two neighbours in T; exact when it is stored.
  __device__ __forceinline__ float stochastic(float t, uint32_t key, int k) const {
    return round_stochastic(row_, t, rounding_bits(key, static_cast<uint32_t>(k)));
  }

 private:
  T* row_;  // [K]
};

// Smoothed one-hot row of a label: nothing is read or written.
class LabelTarget {
 public:
  static constexpr bool kIsTable = false;

  __device__ __forceinline__ LabelTarget(const RowLossParams& p, int64_t i)
      : on_(static_cast<float>(p.target.on_target)),
        off_(static_cast<float>(p.target.off_target)),
        label_(static_cast<int>(i)) {}

  template <int kVector>
  __device__ __forceinline__ void load(int k, float* to) const {
#pragma unroll
    for (int i = 0; i < kVector; ++i) to[i] = k + i == label_ ? on_ : off_;
  }

  __device__ __forceinline__ int label() const { return label_; }

 private:
  float on_, off_;
  int label_;
};

}  // namespace alr_fast
