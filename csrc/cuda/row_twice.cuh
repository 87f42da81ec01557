// A row that is too long to be held, and is read twice: for devices without clusters, or without
// room for them.
#pragma once

#include <cstdint>

#include "../alr_math.h"
#include "memory.cuh"
#include "reduce.cuh"
#include "row_registers.cuh"

namespace alr_fast {

template <class Traits>
class RowReadTwice {
 public:
  using Logits = typename Traits::Logits;
  using Target = typename Traits::Target;
  using Group = typename Traits::Group;

  __device__ __forceinline__ RowReadTwice(int classes, const Group& group)
      : classes_(classes), rank_(group.rank()) {}

  // Where targets are counted from.
  __device__ __forceinline__ int first_column() const { return 0; }

  __device__ __forceinline__ void request(const Logits* z, const Target& target) {
    z_ = z;
    target_ = &target;
  }

  __device__ __forceinline__ void start() {}

  __device__ __forceinline__ RowPart reduce(const Logits*, Group& group) {
    RowPart row{kLowest, {}};  // finite: a difference from it is never NaN by itself
    for_each_vector([&](int, const Words<Logits, kVector>& z, const TargetPart& T) {
      float max = row.max;
#pragma unroll
      for (int i = 0; i < kVector; ++i) max = fmaxf(max, z[i]);
      row.raise(max);
#pragma unroll
      for (int i = 0; i < kVector; ++i)
        accumulate(row.sums, z[i] - max, fast_exp(z[i] - max), T[i], kLowest);
    });
    group.join(row);
    return row;
  }

  __device__ __forceinline__ Entry largest_target(Group& group) const {
    Entry entry;
    for_each_vector([&](int k, const Words<Logits, kVector>&, const TargetPart& T) {
#pragma unroll
      for (int i = 0; i < kVector; ++i) entry = Largest()(entry, Entry{T[i], k + i});
    });
    return group.reduce(entry, Largest());
  }

  __device__ __forceinline__ void write(const RowWrite<Logits>& to, const Target& target,
                                        const RowPart& row, RowFindings& findings) const {
    for_each_vector([&](int k, const Words<Logits, kVector>& z, const TargetPart& T) {
      float grad[kVector], t[kVector];
#pragma unroll
      for (int i = 0; i < kVector; ++i) {
        const float p = fast_exp(z[i] - row.max) * to.scalars.inv_sum;
        const float d = masked_difference(z[i] - row.max, kLowest);
        grad[i] = logit_gradient(T[i], p, d, to.scalars) * to.grad_factor;
        t[i] = refined_target(T[i], p, to.scalars);
        if (!to.wants_findings) continue;
        if (z[i] == row.max) findings.predicted = min(findings.predicted, k + i);
        findings.largest_target = fmaxf(findings.largest_target, t[i]);
      }
      if (to.grad != nullptr) store<Cached::kAgain>(to.grad + k, grad);
      if constexpr (Target::kIsTable) {
        if (!to.stores_target) return;
#pragma unroll
        for (int i = 0; i < kVector; ++i) {
          if (to.rounds_stochastically) t[i] = target.stochastic(t[i], to.rounding_key, k + i);
          if (to.wants_findings)
            findings.after = Largest()(findings.after, Entry{target.rounded(t[i]), k + i});
        }
        target.template store<Cached::kOnce>(k, t);
      }
    });
  }

 private:
  static constexpr int kVector = Traits::kVector;
  static constexpr float kLowest = -3.402823466e38f;
  using TargetPart = typename Target::template Part<kVector>;

  // Calls f(column, logits, targets) for the accesses of this thread.
  template <class Fn>
  __device__ __forceinline__ void for_each_vector(const Fn& f) const {
    for (int k = rank_ * kVector; k < classes_; k += Group::kThreads * kVector) {
      Words<Logits, kVector> z;
      TargetPart T;
      load<Cached::kAgain>(z_ + k, z);
      target_->template load<Cached::kAgain>(k, true, T);
      f(k, z, T);
    }
  }

  int classes_, rank_;
  const Logits* z_ = nullptr;  // [K]
  const Target* target_ = nullptr;
};

}  // namespace alr_fast
