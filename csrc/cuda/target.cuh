// Sources of old target rows and destinations of new ones.
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

// Table rows of type T in device memory or pinned host memory.
template <class T>
class TableTarget {
 public:
  static constexpr bool kIsTable = true;
  using Element = T;

  __device__ __forceinline__ TableTarget(const RowLossParams& p, int64_t i)
      : row_(static_cast<T*>(p.target.table) + i * p.target.stride) {}
  __device__ __forceinline__ explicit TableTarget(T* row) : row_(row) {}

  // kVector elements from column k.
  template <int kVector, Cached kCached>
  __device__ __forceinline__ void load(int k, float* to) const {
    alr_fast::load<kVector, kCached>(row_ + k, to);
  }

  template <int kVector, Cached kCached>
  __device__ __forceinline__ void store(int k, const float* t) const {
    alr_fast::store<kVector, kCached>(row_ + k, t);
  }

  __device__ __forceinline__ T* row() const { return row_; }

  // t, rounded as stored.
  __device__ __forceinline__ static float rounded(float t) { return to_float(from_float<T>(t)); }

  // t, rounded stochastically to one of its two neighbours in T.
  __device__ __forceinline__ float stochastic(float t, uint32_t key, int k) const {
    return round_stochastic(row_, t, rounding_bits(key, static_cast<uint32_t>(k)));
  }

 private:
  T* row_;  // [K], or the columns of one block
};

// Smoothed one-hot row of a label: no memory is read or written, so the logits of type T alone
// decide the width of accesses.
template <class T>
class LabelTarget {
 public:
  static constexpr bool kIsTable = false;
  using Element = T;

  __device__ __forceinline__ LabelTarget(const RowLossParams& p, int64_t i)
      : on_(static_cast<float>(p.target.on_target)),
        off_(static_cast<float>(p.target.off_target)),
        label_(static_cast<int>(i)) {}

  // The same row with column k at 0.
  __device__ __forceinline__ LabelTarget from_column(int k) const {
    LabelTarget target = *this;
    target.label_ -= k;
    return target;
  }

  template <int kVector, Cached>
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
