// A row that its threads hold in registers: requests, sums, results. Each thread has kElements
// columns, kVector neighbours in turn, so that neighbouring threads access neighbouring memory.
//
//   reduction pass   max, then e = exp(z - max) and the four sums, in each thread with its own
//                    maximum; one exchange joins them
//   write pass       t = a T + c5 e,   dz = c2 e - c3 e d - c4 T
//
// with d = z - max of the thread, and constants of a row and thread that contain what its maximum
// is below the row's (logit_gradient and refined_target in alr_math.h, factored out).
#pragma once

#include <cstdint>

#include "../alr_math.h"
#include "memory.cuh"
#include "reduce.cuh"

namespace alr_fast {

// By request.
struct RowFindings {  // of the columns that a thread has written
  int32_t predicted = Entry().at;
  float largest_target = Entry().value;
  Entry after;  // of the stored row
};

struct MergeFindings {
  __device__ __forceinline__ RowFindings operator()(const RowFindings& a,
                                                    const RowFindings& b) const {
    return {min(a.predicted, b.predicted), fmaxf(a.largest_target, b.largest_target),
            Largest()(a.after, b.after)};
  }
};

// Arguments of the write pass for one row.
template <class Logits>
struct RowWrite {
  RowScalars<float> scalars;
  Logits* grad;  // [K]; null only where kExtras
  float grad_factor;
  bool stores_target;
  // Only where kExtras:
  bool rounds_stochastically;
  bool wants_findings;
  uint32_t rounding_key;
};

// The words of a row that a thread has, from its first column on.
template <class Traits>
struct RowWords {
  using Logits = typename Traits::Logits;
  using Target = typename Traits::Target;
  static constexpr int kVectors = Traits::kElements / Traits::kVector;
  static constexpr int kStride =
      Traits::Group::kThreads * Traits::kVector;  // from access to access
  static constexpr float kPadding = Padding<Logits>::kValue;

  Words<Logits, Traits::kVector> z[kVectors];
  typename Target::template Part<Traits::kVector> T[kVectors];

  // The requests: nothing here waits for memory. `left`: columns to the end of the row's part.
  template <Cached kCached>
  __device__ __forceinline__ void load(const Logits* from, const Target& target, int left) {
#pragma unroll
    for (int v = 0; v < kVectors; ++v) {
      fill(z[v], from_float<Logits>(kPadding));
      if (v * kStride < left) alr_fast::load<kCached>(from + v * kStride, z[v]);
    }
#pragma unroll
    for (int v = 0; v < kVectors; ++v)
      target.template load<kCached>(v * kStride, v * kStride < left, T[v]);
  }

  // From a copy that is padded beyond the row.
  __device__ __forceinline__ void load_padded(const Logits* from, const Target& target, int left) {
#pragma unroll
    for (int v = 0; v < kVectors; ++v) alr_fast::load<Cached::kAgain>(from + v * kStride, z[v]);
#pragma unroll
    for (int v = 0; v < kVectors; ++v)
      target.template load<Cached::kAgain>(v * kStride, Target::kIsTable || v * kStride < left,
                                           T[v]);
  }

  // Pads it, by the thread that will read there.
  template <class Element>
  __device__ __forceinline__ static void pad(Logits* z, Element* T, int left) {
    Words<Logits, Traits::kVector> lowest;
    Words<Element, Traits::kVector> none;
    fill(lowest, from_float<Logits>(kPadding));
    fill(none, Element(0.f));
#pragma unroll 1
    for (int v = 0; v < kVectors; ++v) {
      if (v * kStride < left) continue;
      store(z + v * kStride, lowest);
      if constexpr (Target::kIsTable) store(T + v * kStride, none);
    }
  }
};

template <class Traits>
class RowInRegisters {
 public:
  using Logits = typename Traits::Logits;
  using Target = typename Traits::Target;
  using Group = typename Traits::Group;

  __device__ __forceinline__ RowInRegisters(int classes, const Group& group)
      : first_(group.first_column(classes) + group.rank() * kVector),
        left_(group.end_column(classes) - first_) {}

  // `here`: the target row from the first column of this thread on.
  __device__ __forceinline__ void request(const Logits* z, const Target& here) {
    words_.template load<Cached::kOnce>(kept(z + first_), here, left_);
  }

  // For words that are requested elsewhere.
  __device__ __forceinline__ RowWords<Traits>& words() { return words_; }
  __device__ __forceinline__ int first_column() const { return first_; }
  __device__ __forceinline__ int columns_left() const { return left_; }

  // The differences from the maximum of each thread: the first use of the logits' words, and the
  // last.
  __device__ __forceinline__ void start() {
    if constexpr (kIsCopy) {
      max_ = 0;
      return;
    }
    max_ = kPadding;
#pragma unroll
    for (int j = 0; j < kElements; ++j) max_ = fmaxf(max_, z(j));
#pragma unroll
    for (int j = 0; j < kElements; ++j) {
      d_[j] = z(j) - max_;
      e_[j] = exponential<Traits::kArithmetic>(d_[j]);
    }
  }

  // Maximum and sums of the row, the same in all of its threads.
  __device__ __forceinline__ RowPart reduce(const Logits* z, Group& group) {
    if constexpr (kIsCopy) return {0, {1, 0, 1, 0}};
    float masked_target_d = 0;
    for (bool is_masked = false;; is_masked = true) {
      RowPart row{max_, sums()};
      row.sums.target_d += masked_target_d;
      group.join(row);
      // A masked class, or a logit far below the others, ends up in the sums as NaN.
      const bool is_plain = row.sums.exp_d == row.sums.exp_d && row.max > kPadding;
      if (is_plain || is_masked) return row;
      masked_target_d = mask(z + first_);
    }
  }

  __device__ __forceinline__ Entry largest_target(Group& group) const {
    Entry entry;
#pragma unroll
    for (int j = 0; j < kElements; ++j)
      if (is_inside(j / kVector))
        entry = Largest()(entry, Entry{T(j), column(j / kVector) + j % kVector});
    return group.reduce(entry, Largest());
  }

  // Writes the gradient and, if requested, the new target.
  __device__ __forceinline__ void write(const RowWrite<Logits>& to, const Target& here,
                                        const RowPart& row, RowFindings& findings) {
    const RowScalars<float>& scalars = to.scalars;
    const float shift = max_ - row.max;
    const float scale = scalars.inv_sum * fast_exp(shift);  // p = scale e
    const float c5 = (1 - scalars.momentum) * scale;
    const float g = to.grad_factor, c3 = g * scalars.entropy_weight * scale;
    const float c4 = g * scalars.momentum;
    // Where the scale is 0, the shift may be infinite.
    const float c2 = c4 * scalars.mass * scale - c3 * (fmaxf(shift, -1024.f) + scalars.offset);
    Logits* const grad_row = kept(to.grad + first_);
    const int left_to_store = to.stores_target ? left_ : 0;
#pragma unroll
    for (int v = 0; v < kVectors; ++v) {
      if (Traits::kExtras && !is_inside(v)) continue;
      float grad[kVector], t[kVector];
#pragma unroll
      for (int i = 0; i < kVector; ++i) {
        const int j = v * kVector + i;
        // c3 d may overflow where e is 0, but e d does not.
        const float of_exp = fmaf(-c3, e_[j] * d_[j], c2 * e_[j]);
        grad[i] = kIsCopy ? z(j) : fmaf(-c4, T(j), of_exp);
        t[i] = kIsCopy ? T(j) : fmaf(scalars.momentum, T(j), c5 * e_[j]);
      }
      // Without extras, what is beyond the row is computed in vain: only the stores are
      // conditional.
      if (Traits::kExtras ? to.grad != nullptr : is_inside(v))
        store<Cached::kAgain>(grad_row + v * kStride, grad);
      if constexpr (Traits::kExtras) find(to, row, v, t, findings);
      if constexpr (Target::kIsTable) {
        if (v * kStride >= left_to_store) continue;
        if constexpr (Traits::kExtras) round(to, here, v, t, findings);
        here.template store<Cached::kOnce>(v * kStride, t);
      }
    }
  }

 private:
  static constexpr int kVector = Traits::kVector;
  static constexpr int kElements = Traits::kElements;
  static constexpr int kVectors = kElements / kVector;
  static constexpr int kStride = RowWords<Traits>::kStride;
  static constexpr float kPadding = RowWords<Traits>::kPadding;
  static constexpr bool kIsCopy = Traits::kArithmetic == Arithmetic::kCopy;

  __device__ __forceinline__ float z(int j) const { return words_.z[j / kVector][j % kVector]; }
  __device__ __forceinline__ float T(int j) const { return words_.T[j / kVector][j % kVector]; }

  // First column of the v-th access.
  __device__ __forceinline__ int column(int v) const { return first_ + v * kStride; }
  __device__ __forceinline__ bool is_inside(int v) const { return v * kStride < left_; }

  // Beyond the row, targets are 0, and e is 0 or becomes so when the thread's maximum is raised.
  __device__ __forceinline__ RowSums<float> sums() const {
    RowSums<float> sums{};
#pragma unroll
    for (int j = 0; j < kElements; ++j) {
      sums.exp += e_[j];
      sums.exp_d = fmaf(e_[j], d_[j], sums.exp_d);
      sums.target += T(j);
      sums.target_d = fmaf(T(j), d_[j], sums.target_d);
    }
    return sums;
  }

  // Reads the row again and takes masked classes, and what is beyond the row, out of the sums;
  // returns the sum of T d over them: -inf, or 0 if none of them has a target.
  __device__ __forceinline__ float mask(const Logits* from) {
    constexpr float kMasked = -__builtin_inff();
    const int left = anew(left_);
    max_ = -3.402823466e38f;  // finite: a difference from it is never NaN by itself
#pragma unroll
    for (int v = 0; v < kVectors; ++v) {
      Words<Logits, kVector> z{};
      if (v * kStride < left) load<Cached::kAgain>(from + v * kStride, z);
#pragma unroll
      for (int i = 0; i < kVector; ++i) {
        d_[v * kVector + i] = v * kStride < left ? z[i] : kMasked;
        max_ = fmaxf(max_, d_[v * kVector + i]);
      }
    }
    float target_d = 0;
#pragma unroll
    for (int j = 0; j < kElements; ++j) {
      d_[j] -= max_;
      e_[j] = fast_exp(d_[j]);
      if (d_[j] != kMasked) continue;
      if (anew(T(j)) != 0) target_d = kMasked;
      d_[j] = 0;
    }
    return target_d;
  }

  // t before rounding.
  __device__ __forceinline__ void find(const RowWrite<Logits>& to, const RowPart& row, int v,
                                       const float (&t)[kVector], RowFindings& findings) const {
    if (!to.wants_findings) return;
#pragma unroll
    for (int i = 0; i < kVector; ++i) {
      const int j = v * kVector + i;
      const bool is_largest = max_ == row.max && d_[j] == 0 && e_[j] == 1;
      if (is_largest) findings.predicted = min(findings.predicted, column(v) + i);
      findings.largest_target = fmaxf(findings.largest_target, t[i]);
    }
  }

  // Rounds t as it is stored, stochastically if requested.
  __device__ __forceinline__ void round(const RowWrite<Logits>& to, const Target& target, int v,
                                        float (&t)[kVector], RowFindings& findings) const {
#pragma unroll
    for (int i = 0; i < kVector; ++i) {
      const int k = column(v) + i;
      if (to.rounds_stochastically) t[i] = target.stochastic(t[i], to.rounding_key, k);
      if (to.wants_findings)
        findings.after = Largest()(findings.after, Entry{target.rounded(t[i]), k});
    }
  }

  int first_, left_;  // first column of this thread, columns from there to the end of the part
  RowWords<Traits> words_;
  float max_;  // of this thread's elements
  float d_[kElements], e_[kElements];
};

}  // namespace alr_fast
