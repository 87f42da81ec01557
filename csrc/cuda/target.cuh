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

constexpr int kNoLabel = -1;

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
  __device__ __forceinline__ float rounded(float t) const { return to_float(from_float<T>(t)); }

  // t, rounded stochastically to one of its two neighbours in T.
  __device__ __forceinline__ float stochastic(float t, uint32_t key, int k) const {
    return round_stochastic(row_, t, rounding_bits(key, static_cast<uint32_t>(k)));
  }

  __device__ __forceinline__ int label() const { return kNoLabel; }

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

// How an element is stored, as the launch says: as float, or in 16 bits.
struct AnyFormat {
  bool is_float, is_half;

  __device__ __forceinline__ int bytes() const { return is_float ? 4 : 2; }
  __device__ __forceinline__ float select(float x, float half, float bfloat16) const {
    return is_float ? x : is_half ? half : bfloat16;
  }
};

// Either, as the launch says: table rows of a type that is known when the kernel runs, or labels.
// One element an access; selections instead of branches, which would be one for each element.
class AnyTarget {
 public:
  static constexpr bool kIsTable = true;  // it may be
  using Element = float;                  // the largest

  __device__ __forceinline__ AnyTarget(const RowLossParams& p, int64_t i, bool is_there)
      : labels_(p, i, is_there),
        format_{p.target.table == nullptr || p.target.dtype == DType::kFloat32,
                p.target.dtype == DType::kFloat16},
        is_table_(p.target.table != nullptr),
        is_there_(is_table_ && is_there),
        row_(static_cast<char*>(p.target.table) +
             (is_there_ ? i * p.target.stride * format_.bytes() : 0)) {}

  __device__ __forceinline__ AnyTarget from_column(int k) const {
    AnyTarget target = *this;
    target.labels_ = labels_.from_column(k);
    target.row_ += k * format_.bytes();
    return target;
  }

  template <int kVector>
  class Part {
    static_assert(kVector == 1, "one element an access");

   public:
    __device__ __forceinline__ float operator[](int) const {
      float x;
      __builtin_memcpy(&x, &word_, sizeof(x));
      const auto half = static_cast<unsigned short>(word_);
      return format_.select(x, Words<__half, 1>{{half}}[0], Words<__nv_bfloat16, 1>{{half}}[0]);
    }

   private:
    friend class AnyTarget;
    AnyFormat format_;
    uint32_t word_;  // as it is stored
  };

  template <Cached kCached>
  __device__ __forceinline__ void load(int k, bool is_inside, Part<1>& to) const {
    LabelTarget<float>::Part<1> of_label;
    labels_.load<kCached>(k, is_inside && !is_table_, of_label);
    const float value = of_label[0];  // 0 with a table
    to.format_ = format_;
    __builtin_memcpy(&to.word_, &value, sizeof(value));
    if (!is_inside || !is_there_) return;
    if (format_.is_float) {
      Words<float, 1> loaded;
      alr_fast::load<kCached>(reinterpret_cast<const float*>(row_) + k, loaded);
      to.word_ = loaded.words[0];
    } else {
      Words<__half, 1> loaded;
      alr_fast::load<kCached>(reinterpret_cast<const __half*>(row_) + k, loaded);
      to.word_ = loaded.words[0];
    }
  }

  template <Cached kCached>
  __device__ __forceinline__ void store(int k, const float (&t)[1]) const {
    if (format_.is_float) {
      alr_fast::store<kCached>(reinterpret_cast<float*>(row_) + k, t);
    } else {
      Words<__half, 1> half;
      Words<__nv_bfloat16, 1> bfloat16;
      fill(half, from_float<__half>(t[0]));
      fill(bfloat16, from_float<__nv_bfloat16>(t[0]));
      if (!format_.is_half) half.words[0] = bfloat16.words[0];
      alr_fast::store(reinterpret_cast<__half*>(row_) + k, half);
    }
  }

  __device__ __forceinline__ float rounded(float t) const {
    return format_.select(t, to_float(from_float<__half>(t)),
                          to_float(from_float<__nv_bfloat16>(t)));
  }

  __device__ __forceinline__ float stochastic(float t, uint32_t key, int k) const {
    const uint32_t random = rounding_bits(key, static_cast<uint32_t>(k));
    return format_.select(t, round_stochastic_float16(t, random),
                          round_stochastic_bfloat16(t, random));
  }

  __device__ __forceinline__ int label() const { return is_table_ ? kNoLabel : labels_.label(); }

 private:
  LabelTarget<float> labels_;
  AnyFormat format_;
  bool is_table_, is_there_;
  char* row_;  // of the table
};

}  // namespace alr_fast
