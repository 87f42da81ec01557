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
  template <int kVector>
  using Part = Words<T, kVector>;

  // No row if it is not there: an index that is ignored or out of range.
  __device__ __forceinline__ TableTarget(const RowLossParams& p, int64_t i, bool is_there)
      : row_(static_cast<T*>(p.target.table) + (is_there ? i * p.target.stride : 0)),
        is_there_(is_there) {}

  // The same row, with columns counted from k.
  __device__ __forceinline__ TableTarget from_column(int k) const {
    TableTarget target = *this;
    target.row_ = kept(row_ + k);
    return target;
  }

  // A copy of the row, whose first element is at `words`.
  __device__ __forceinline__ TableTarget in_copy(const T* words, int) const {
    TableTarget target = *this;
    target.row_ = const_cast<T*>(words);
    target.is_there_ = true;
    return target;
  }

  __device__ __forceinline__ const T* row() const { return row_; }

  // kVector elements from column k, zeros beyond the row.
  template <Cached kCached, int kVector>
  __device__ __forceinline__ void load(int k, bool is_inside, Words<T, kVector>& to) const {
    fill(to, T(0.f));
    if (is_inside && is_there_) alr_fast::load<kCached>(row_ + k, to);
  }

  template <Cached kCached, int kVector>
  __device__ __forceinline__ void store(int k, const float (&t)[kVector]) const {
    alr_fast::store<kCached>(row_ + k, t);
  }

  // t, rounded as stored.
  __device__ __forceinline__ static float rounded(float t) { return to_float(from_float<T>(t)); }

  // t, rounded stochastically to one of its two neighbours in T.
  __device__ __forceinline__ float stochastic(float t, uint32_t key, int k) const {
    return round_stochastic(row_, t, rounding_bits(key, static_cast<uint32_t>(k)));
  }

 private:
  T* row_;  // [K]
  bool is_there_;
};

// Smoothed one-hot row of a label: no memory is read or written, so the logits of type T alone
// decide the width of accesses.
template <class T>
class LabelTarget {
 public:
  static constexpr bool kIsTable = false;
  using Element = T;

  __device__ __forceinline__ LabelTarget(const RowLossParams& p, int64_t i, bool)
      : on_(static_cast<float>(p.target.on_target)),
        off_(static_cast<float>(p.target.off_target)),
        label_(static_cast<int>(i)) {}

  __device__ __forceinline__ LabelTarget from_column(int k) const {
    LabelTarget target = *this;
    target.label_ -= k;
    return target;
  }

  // The copy of a table's row would start at column k.
  template <class Words>
  __device__ __forceinline__ LabelTarget in_copy(const Words*, int k) const {
    return from_column(k);
  }

  template <int kVector>
  class Part {
   public:
    __device__ __forceinline__ float operator[](int i) const {
      return i >= count_ ? 0.f : i == label_ ? on_ : off_;
    }

   private:
    friend class LabelTarget;
    float on_, off_;
    int label_, count_;
  };

  template <Cached, int kVector>
  __device__ __forceinline__ void load(int k, bool is_inside, Part<kVector>& to) const {
    to.on_ = on_;
    to.off_ = off_;
    to.label_ = label_ - k;
    to.count_ = is_inside ? kVector : 0;
  }

  __device__ __forceinline__ int label() const { return label_; }

 private:
  float on_, off_;
  int label_;
};

}  // namespace alr_fast
