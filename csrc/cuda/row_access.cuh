// The first look at a row: its maximum and sums, with the row held in registers or read in chunks.
//
// A chunk is the columns that a group of threads holds at once. Threads take turns of kVector
// columns, so that neighbours access neighbouring memory. Beyond the row lie logits -inf and
// targets 0, which add nothing to any sum.
#pragma once

#include <cstdint>

#include "../alr_math.h"
#include "memory.cuh"
#include "reduce.cuh"
#include "row_writer.cuh"

namespace alr_fast {

template <class Traits>
class Chunk {
 public:
  static constexpr int kVector = Traits::kVector;
  static constexpr int kElements = Traits::kElements;
  static constexpr int kVectors = kElements / kVector;
  using Group = typename Traits::Group;
  using Target = typename Traits::Target;

  // z: [K] of one row. All loads are issued before any of them is needed.
  template <bool kIsFull>
  __device__ __forceinline__ void load(const typename Traits::Logits* z, const Target& target,
                                       int begin, int classes, const Group& group) {
#pragma unroll
    for (int v = 0; v < kVectors; ++v) {
      const int k = column(begin, v, group);
      if (kIsFull || k < classes) {
        alr_fast::load<kVector>(z + k, d_ + v * kVector);
        target.template load<kVector>(k, T_ + v * kVector);
      } else {
#pragma unroll
        for (int j = v * kVector; j < (v + 1) * kVector; ++j) {
          d_[j] = -__builtin_inff();
          T_[j] = 0;
        }
      }
    }
  }

  // Of the logits loaded.
  __device__ __forceinline__ float max() const {
    float max = d_[0];
#pragma unroll
    for (int j = 1; j < kElements; ++j) max = fmaxf(max, d_[j]);
    return max;
  }

  // Turns the logits into differences from `max`.
  __device__ __forceinline__ void subtract(float max) {
#pragma unroll
    for (int j = 0; j < kElements; ++j) d_[j] -= max;
  }

  __device__ __forceinline__ RowSums<float> sums() const {
    RowSums<float> sums{};
#pragma unroll
    for (int j = 0; j < kElements; ++j) accumulate(sums, d_[j], expf(d_[j]), T_[j], kLowestFloat);
    return sums;
  }

  template <bool kIsFull>
  __device__ __forceinline__ Entry largest_target(int begin, int classes,
                                                  const Group& group) const {
    Entry entry;
#pragma unroll
    for (int j = 0; j < kElements; ++j) {
      const int k = column(begin, j / kVector, group) + j % kVector;
      if (kIsFull || k < classes) entry = Largest()(entry, Entry{T_[j], k});
    }
    return entry;
  }

  // The second look, after subtract: writes the gradient, and the new target where asked.
  template <bool kIsFull>
  __device__ __forceinline__ void write(const RowWrite<typename Traits::Logits>& to,
                                        const Target& target, int begin, int classes,
                                        const Group& group, RowFindings& findings) {
    bool is_inside[kVectors];
#pragma unroll
    for (int v = 0; v < kVectors; ++v) is_inside[v] = kIsFull || column(begin, v, group) < classes;
#pragma unroll
    for (int v = 0; v < kVectors; ++v) {
      float grad[kVector];
#pragma unroll
      for (int j = v * kVector; j < (v + 1) * kVector; ++j) {
        const float p = expf(anew(d_[j])) * to.scalars.inv_sum;
        const float d = masked_difference(anew(d_[j]), kLowestFloat);
        grad[j % kVector] = logit_gradient(T_[j], p, d, to.scalars) * to.grad_factor;
        T_[j] = refined_target(T_[j], p, to.scalars);
      }
      if (is_inside[v] && to.grad != nullptr)
        store<kVector>(to.grad + column(begin, v, group), grad);
    }
    if (to.wants_findings) {
#pragma unroll
      for (int j = 0; j < kElements; ++j) {
        if (!is_inside[j / kVector]) continue;
        const int k = column(begin, j / kVector, group) + j % kVector;
        if (d_[j] == 0) findings.predicted = min(findings.predicted, k);
        findings.largest_target = fmaxf(findings.largest_target, T_[j]);
      }
    }
    if constexpr (Target::kIsTable) {
      if (to.stores_target) write_target(to, target, begin, group, is_inside, findings);
    }
  }

 private:
  // T_ holds the new target.
  __device__ __forceinline__ void write_target(const RowWrite<typename Traits::Logits>& to,
                                               const Target& target, int begin, const Group& group,
                                               const bool (&is_inside)[kVectors],
                                               RowFindings& findings) {
    if (to.rounds_stochastically) {
#pragma unroll
      for (int j = 0; j < kElements; ++j)
        T_[j] = target.stochastic(T_[j], to.rounding_key,
                                  column(begin, j / kVector, group) + j % kVector);
    }
#pragma unroll
    for (int v = 0; v < kVectors; ++v)
      if (is_inside[v]) target.template store<kVector>(column(begin, v, group), T_ + v * kVector);
    if (to.wants_findings) {
#pragma unroll
      for (int j = 0; j < kElements; ++j) {
        const int k = column(begin, j / kVector, group) + j % kVector;
        if (is_inside[j / kVector])
          findings.after = Largest()(findings.after, Entry{Target::rounded(T_[j]), k});
      }
    }
  }

  // First column of this thread's v-th access.
  __device__ __forceinline__ static int column(int begin, int v, const Group& group) {
    return begin + (v * group.size() + group.rank()) * kVector;
  }

  float d_[kElements];  // logits, then their differences from the maximum
  float T_[kElements];  // old targets, then new ones
};

// Maximum and sums of a row, the same in all of its threads.
struct RowLook {
  float max;
  bool max_is_finite;
  RowSums<float> sums;
};

// A row that its threads hold in registers.
template <class Traits>
class RowInRegisters {
 public:
  using Logits = typename Traits::Logits;
  using Target = typename Traits::Target;
  using Group = typename Traits::Group;

  __device__ __forceinline__ RowInRegisters(const Logits* z, const Target& target, int classes,
                                            Group& group)
      : target_(target), classes_(classes), group_(group) {
    chunk_.template load<false>(z, target, 0, classes, group);
  }

  __device__ __forceinline__ RowLook look() {
    RowLook look;
    look.max = group_.reduce(chunk_.max(), Max());
    look.max_is_finite = look.max - look.max == 0;
    chunk_.subtract(look.max);
    look.sums = group_.reduce(chunk_.sums(), Add());
    return look;
  }

  __device__ __forceinline__ Entry largest_target() {
    return group_.reduce(chunk_.template largest_target<false>(0, classes_, group_), Largest());
  }

  __device__ __forceinline__ void write(const RowWrite<Logits>& to, const RowLook&,
                                        RowFindings& findings) {
    chunk_.template write<false>(to, target_, 0, classes_, group_, findings);
  }

 private:
  const Target& target_;
  int classes_;
  Group& group_;
  Chunk<Traits> chunk_;
};

// A row that is read twice. The maximum is not known while the sums grow: they are rebased when it
// changes. Each chunk is summed apart, so that long rows lose no accuracy.
template <class Traits>
class RowInChunks {
 public:
  using Logits = typename Traits::Logits;
  using Target = typename Traits::Target;
  using Group = typename Traits::Group;

  __device__ __forceinline__ RowInChunks(const Logits* z, const Target& target, int classes,
                                         Group& group)
      : z_(z),
        target_(target),
        classes_(classes),
        chunk_classes_(group.size() * Traits::kElements),
        group_(group) {}

  __device__ __forceinline__ RowLook look() {
    float max = kLowestFloat;  // finite: a difference from it is never NaN by itself
    RowSums<float> sums{};
    int begin = 0;
    for (; begin + chunk_classes_ <= classes_; begin += chunk_classes_) add<true>(begin, max, sums);
    if (begin < classes_) add<false>(begin, max, sums);

    RowLook look;
    look.max = group_.reduce(max, Max());
    rebase_to(look.max, max, sums);
    look.sums = group_.reduce(sums, Add());
    // No element at the maximum: all of them are -inf.
    look.max_is_finite = look.max - look.max == 0 && look.sums.exp > 0;
    return look;
  }

  __device__ __forceinline__ Entry largest_target() {
    Chunk<Traits> chunk;
    Entry entry;
    for (int begin = 0; begin < classes_; begin += chunk_classes_) {
      chunk.template load<false>(z_, target_, begin, classes_, group_);
      entry = Largest()(entry, chunk.template largest_target<false>(begin, classes_, group_));
    }
    return group_.reduce(entry, Largest());
  }

  // From the end, which was read last and may still be in a cache.
  __device__ __forceinline__ void write(const RowWrite<Logits>& to, const RowLook& look,
                                        RowFindings& findings) const {
    int begin = classes_ / chunk_classes_ * chunk_classes_;
    if (begin < classes_) rewrite<false>(to, begin, look.max, findings);
    while (begin > 0) {
      begin -= chunk_classes_;
      rewrite<true>(to, begin, look.max, findings);
    }
  }

 private:
  template <bool kIsFull>
  __device__ __forceinline__ void add(int begin, float& max, RowSums<float>& sums) const {
    Chunk<Traits> chunk;
    chunk.template load<kIsFull>(z_, target_, begin, classes_, group_);
    const float new_max = fmaxf(max, chunk.max());
    rebase_to(new_max, max, sums);
    max = new_max;
    chunk.subtract(max);
    sums = Add()(sums, chunk.sums());
  }

  __device__ __forceinline__ static void rebase_to(float new_max, float max, RowSums<float>& sums) {
    const float shift = max - new_max;
    rebase(sums, shift, expf(shift));
  }

  template <bool kIsFull>
  __device__ __forceinline__ void rewrite(const RowWrite<Logits>& to, int begin, float max,
                                          RowFindings& findings) const {
    Chunk<Traits> chunk;
    chunk.template load<kIsFull>(z_, target_, begin, classes_, group_);
    chunk.subtract(max);
    chunk.template write<kIsFull>(to, target_, begin, classes_, group_, findings);
  }

  const Logits* z_;  // [K]
  const Target& target_;
  int classes_, chunk_classes_;
  Group& group_;
};

}  // namespace alr_fast
