// The columns of a row that a group of threads holds in registers at once: arithmetic on elements,
// loads and stores.
//
// Threads access kVector columns in turn, so that neighbouring threads access neighbouring memory.
// Elements beyond the row hold logit -inf and target 0, which add nothing to any sum.
#pragma once

#include <cstdint>

#include "../alr_math.h"
#include "memory.cuh"
#include "reduce.cuh"
#include "row_writer.cuh"

namespace alr_fast {

template <int kVector_, int kElements_, Cached kCached_>
struct ChunkShape {
  static constexpr int kVector = kVector_;
  static constexpr int kElements = kElements_;
  static constexpr int kVectors = kElements / kVector;
  static constexpr Cached kCached = kCached_;
  static_assert(kElements % kVector == 0, "a thread holds whole vectors");
};

template <class Shape, class Group>
class Chunk {
 public:
  static constexpr int kVector = Shape::kVector;
  static constexpr int kElements = Shape::kElements;
  static constexpr int kVectors = Shape::kVectors;

  // z: [K] of one row.
  template <bool kIsFull, class Logits>
  __device__ __forceinline__ void load_logits(const Logits* z, int begin, int classes,
                                              const Group& group) {
#pragma unroll
    for (int v = 0; v < kVectors; ++v) {
      const int k = column(begin, v, group);
      if (kIsFull || k < classes) {
        alr_fast::load<kVector, Shape::kCached>(z + k, d_ + v * kVector);
      } else {
        fill(d_ + v * kVector, -__builtin_inff());
      }
    }
  }

  template <bool kIsFull, class Target>
  __device__ __forceinline__ void load_target(const Target& target, int begin, int classes,
                                              const Group& group) {
#pragma unroll
    for (int v = 0; v < kVectors; ++v) {
      const int k = column(begin, v, group);
      if (kIsFull || k < classes) {
        target.template load<kVector, Shape::kCached>(k, T_ + v * kVector);
      } else {
        fill(T_ + v * kVector, 0);
      }
    }
  }

  // Maximum of the loaded logits.
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
    for (int j = 0; j < kElements; ++j)
      accumulate(sums, d_[j], fast_exp(d_[j]), T_[j], kLowestFloat);
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

  // Write pass, after subtract: writes the gradient and, if requested, the new target.
  template <bool kIsFull, class Logits, class Target>
  __device__ __forceinline__ void write(const RowWrite<Logits>& to, const Target& target, int begin,
                                        int classes, const Group& group, RowFindings& findings) {
    bool is_inside[kVectors];
#pragma unroll
    for (int v = 0; v < kVectors; ++v) is_inside[v] = kIsFull || column(begin, v, group) < classes;
#pragma unroll
    for (int v = 0; v < kVectors; ++v) {
      float grad[kVector];
#pragma unroll
      for (int j = v * kVector; j < (v + 1) * kVector; ++j) {
        const float p = fast_exp(anew(d_[j])) * to.scalars.inv_sum;
        const float d = masked_difference(anew(d_[j]), kLowestFloat);
        grad[j % kVector] = logit_gradient(T_[j], p, d, to.scalars) * to.grad_factor;
        T_[j] = refined_target(T_[j], p, to.scalars);
      }
      if (is_inside[v] && to.grad != nullptr)
        store<kVector, Cached::kAgain>(to.grad + column(begin, v, group), grad);
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
  template <class Logits, class Target>
  __device__ __forceinline__ void write_target(const RowWrite<Logits>& to, const Target& target,
                                               int begin, const Group& group,
                                               const bool (&is_inside)[kVectors],
                                               RowFindings& findings) {
    if (to.rounds_stochastically) {
#pragma unroll
      for (int j = 0; j < kElements; ++j)
        T_[j] =
            target.stochastic(T_[j], to.rounding_key,
                              to.first_column + column(begin, j / kVector, group) + j % kVector);
    }
#pragma unroll
    for (int v = 0; v < kVectors; ++v)
      if (is_inside[v])
        target.template store<kVector, Shape::kCached>(column(begin, v, group), T_ + v * kVector);
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

  __device__ __forceinline__ static void fill(float* to, float value) {
#pragma unroll
    for (int j = 0; j < kVector; ++j) to[j] = value;
  }

  float d_[kElements];  // logits, then their differences from the maximum
  float T_[kElements];  // old targets, then new ones
};

}  // namespace alr_fast
