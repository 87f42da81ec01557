// The two passes over a row: the reduction pass (maximum and sums), then the write pass (gradient
// and new target). The row is held in registers, in shared memory, or read twice. The arithmetic on
// elements is in chunk.cuh.
#pragma once

#include <cstdint>

#include "../alr_math.h"
#include "chunk.cuh"
#include "cluster.cuh"
#include "memory.cuh"
#include "reduce.cuh"
#include "row_writer.cuh"
#include "staging.cuh"

namespace alr_fast {

// Maximum and sums of a row, the same in all of its threads.
struct RowReduction {
  float max;
  bool max_is_finite;
  RowSums<float> sums;
};

// --- The three ways to hold a row. Each starts to load the logits in its constructor and the
// target in load_target, so that the index of the target row can arrive in between. ---

// A row that its threads hold in registers.
template <class Traits>
class RowInRegisters {
 public:
  using Logits = typename Traits::Logits;
  using Target = typename Traits::Target;
  using Group = typename Traits::Group;

  __device__ __forceinline__ RowInRegisters(const Logits* z, int classes, Group& group)
      : classes_(classes), group_(group) {
    chunk_.template load_logits<false>(z, 0, classes, group);
  }

  __device__ __forceinline__ void load_target(const Target& target) {
    chunk_.template load_target<false>(target, 0, classes_, group_);
  }

  __device__ __forceinline__ RowReduction reduce(const Target&) {
    RowReduction reduction;
    reduction.max = group_.reduce(chunk_.max(), Max());
    reduction.max_is_finite = reduction.max - reduction.max == 0;
    chunk_.subtract(reduction.max);
    reduction.sums = group_.reduce(chunk_.sums(), Add());
    return reduction;
  }

  __device__ __forceinline__ Entry largest_target(const Target&) {
    return group_.reduce(chunk_.template largest_target<false>(0, classes_, group_), Largest());
  }

  __device__ __forceinline__ void write(const RowWrite<Logits>& to, const Target& target,
                                        const RowReduction&, RowFindings& findings) {
    chunk_.template write<false>(to, target, 0, classes_, group_, findings);
  }

 private:
  int classes_;
  Group& group_;
  Chunk<ChunkShape<Traits::kVector, Traits::kElements, Cached::kOnce>, Group> chunk_;
};

// Columns that are read twice, chunk by chunk: of a row in device memory, or of a block's part in
// shared memory. The sums are rebased whenever a larger maximum is found. Each chunk has its own
// sums, so that long rows lose no accuracy.
template <class Shape, class Logits, class Target, class Group>
class Columns {
 public:
  __device__ __forceinline__ Columns(const Logits* z, const Target& target, int classes,
                                     const Group& group)
      : z_(z),
        target_(target),
        classes_(classes),
        chunk_classes_(group.size() * Shape::kElements),
        group_(group) {}

  // Maximum and sums of this thread's elements.
  __device__ __forceinline__ void sum(float& max, RowSums<float>& sums) const {
    max = kLowestFloat;  // finite: a difference from it is never NaN by itself
    sums = RowSums<float>{};
    int begin = 0;
    for (; begin + chunk_classes_ <= classes_; begin += chunk_classes_) add<true>(begin, max, sums);
    if (begin < classes_) add<false>(begin, max, sums);
  }

  __device__ __forceinline__ Entry largest_target() const {
    Chunk<Shape, Group> chunk;
    Entry entry;
    for (int begin = 0; begin < classes_; begin += chunk_classes_) {
      chunk.template load_target<false>(target_, begin, classes_, group_);
      entry = Largest()(entry, chunk.template largest_target<false>(begin, classes_, group_));
    }
    return entry;
  }

  // Starts at the end, which was read last and may still be cached.
  __device__ __forceinline__ void write(const RowWrite<Logits>& to, float max,
                                        RowFindings& findings) const {
    int begin = classes_ / chunk_classes_ * chunk_classes_;
    if (begin < classes_) rewrite<false>(to, begin, max, findings);
    while (begin > 0) {
      begin -= chunk_classes_;
      rewrite<true>(to, begin, max, findings);
    }
  }

 private:
  template <bool kIsFull>
  __device__ __forceinline__ void add(int begin, float& max, RowSums<float>& sums) const {
    Chunk<Shape, Group> chunk;
    load<kIsFull>(chunk, begin);
    const float new_max = fmaxf(max, chunk.max());
    const float shift = max - new_max;
    rebase(sums, shift, fast_exp(shift));
    max = new_max;
    chunk.subtract(max);
    sums = Add()(sums, chunk.sums());
  }

  template <bool kIsFull>
  __device__ __forceinline__ void rewrite(const RowWrite<Logits>& to, int begin, float max,
                                          RowFindings& findings) const {
    Chunk<Shape, Group> chunk;
    load<kIsFull>(chunk, begin);
    chunk.subtract(max);
    chunk.template write<kIsFull>(to, target_, begin, classes_, group_, findings);
  }

  template <bool kIsFull>
  __device__ __forceinline__ void load(Chunk<Shape, Group>& chunk, int begin) const {
    chunk.template load_logits<kIsFull>(z_, begin, classes_, group_);
    chunk.template load_target<kIsFull>(target_, begin, classes_, group_);
  }

  const Logits* z_;
  const Target& target_;
  int classes_, chunk_classes_;
  const Group& group_;
};

// Combines the results of Columns::sum of all threads of a row.
template <class Group>
__device__ __forceinline__ RowReduction join(float max, RowSums<float> sums, Group& group) {
  RowReduction reduction;
  reduction.max = group.reduce(max, Max());
  const float shift = max - reduction.max;
  rebase(sums, shift, fast_exp(shift));
  reduction.sums = group.reduce(sums, Add());
  // No element at the maximum: all of them are -inf.
  reduction.max_is_finite = reduction.max - reduction.max == 0 && reduction.sums.exp > 0;
  return reduction;
}

// A row that is read twice from device memory.
template <class Traits>
class RowInChunks {
 public:
  using Logits = typename Traits::Logits;
  using Target = typename Traits::Target;
  using Group = typename Traits::Group;

  __device__ __forceinline__ RowInChunks(const Logits* z, int classes, Group& group)
      : z_(z), classes_(classes), group_(group) {}

  __device__ __forceinline__ void load_target(const Target&) {}

  __device__ __forceinline__ RowReduction reduce(const Target& target) {
    float max;
    RowSums<float> sums;
    columns(target).sum(max, sums);
    return join(max, sums, group_);
  }

  __device__ __forceinline__ Entry largest_target(const Target& target) {
    return group_.reduce(columns(target).largest_target(), Largest());
  }

  __device__ __forceinline__ void write(const RowWrite<Logits>& to, const Target& target,
                                        const RowReduction& reduction,
                                        RowFindings& findings) const {
    columns(target).write(to, reduction.max, findings);
  }

 private:
  using Shape = ChunkShape<Traits::kVector, Traits::kElements, Cached::kAgain>;

  __device__ __forceinline__ Columns<Shape, Logits, Target, Group> columns(
      const Target& target) const {
    return {z_, target, classes_, group_};
  }

  const Logits* z_;  // [K]
  int classes_;
  Group& group_;
};

// A row in the shared memory of a block, or in parts in that of the blocks of a cluster. Device
// memory is accessed 16 bytes at a time whatever the alignment and length of the row. Results
// replace their inputs in shared memory and are then copied out.
template <class Traits>
class RowInShared {
 public:
  using Logits = typename Traits::Logits;
  using Target = typename Traits::Target;
  using Group = typename Traits::Group;

  __device__ __forceinline__ RowInShared(const Logits* z, int classes, Group& group)
      : first_(group.first_column(classes)), columns_(group.columns(classes)), group_(group) {
    z_at_ = group.slot_bytes();
    const auto part = static_cast<int>(columns_per_block(classes, group.blocks()));
    T_at_ = z_at_ + static_cast<int>(staged_bytes(part, sizeof(Logits)));
    z_at_ += stage(shared_memory() + z_at_, z + first_, columns_, group);
  }

  RowInShared(const RowInShared&) = delete;

  // The next row uses the same memory: all copies of this row must be complete.
  __device__ __forceinline__ ~RowInShared() {
    wait_for_staged();
    __syncthreads();
  }

  __device__ __forceinline__ void load_target(const Target& target) {
    if constexpr (Target::kIsTable)
      T_at_ += stage(shared_memory() + T_at_, target.row() + first_, columns_, group_);
    wait_for_staged();
    __syncthreads();
  }

  __device__ __forceinline__ RowReduction reduce(const Target& target) {
    float max;
    RowSums<float> sums;
    with_columns(target, [&](const auto& columns) { columns.sum(max, sums); });
    return join(max, sums, group_);
  }

  __device__ __forceinline__ Entry largest_target(const Target& target) {
    Entry entry;
    with_columns(target, [&](const auto& columns) { entry = columns.largest_target(); });
    if (entry.at != Entry().at) entry.at += first_;
    return group_.reduce(entry, Largest());
  }

  __device__ __forceinline__ void write(const RowWrite<Logits>& to, const Target& target,
                                        const RowReduction& reduction,
                                        RowFindings& findings) const {
    RowWrite<Logits> in_place = to;
    if (to.grad != nullptr) in_place.grad = z();
    in_place.first_column = first_;
    with_columns(target,
                 [&](const auto& columns) { columns.write(in_place, reduction.max, findings); });
    if (findings.predicted != Entry().at) findings.predicted += first_;
    if (findings.after.at != Entry().at) findings.after.at += first_;
    __syncthreads();
    if (to.grad != nullptr) unstage<Cached::kAgain>(to.grad + first_, z(), columns_, group_);
    if constexpr (Target::kIsTable) {
      if (to.stores_target) unstage<Cached::kOnce>(target.row() + first_, T(), columns_, group_);
    }
  }

 private:
  static constexpr int kWide = 4;

  // Calls work(columns), with vectors of four elements if logits and target are aligned for it.
  template <class Work>
  __device__ __forceinline__ void with_columns(const Target& target, const Work& work) const {
    if constexpr (Target::kIsTable) {
      const Target staged(T());
      if (is_wide(z()) && is_wide(T()) && columns_ % kWide == 0) {
        work(columns<kWide>(staged));
      } else {
        work(columns<1>(staged));
      }
    } else {
      const Target here = target.from_column(first_);
      if (is_wide(z()) && columns_ % kWide == 0) {
        work(columns<kWide>(here));
      } else {
        work(columns<1>(here));
      }
    }
  }

  // Elements one by one take more registers: fewer of them at once.
  template <int kVector>
  using Shape =
      ChunkShape<kVector, kVector == kWide ? Traits::Shape::kElements : 2, Cached::kAgain>;

  template <int kVector>
  __device__ __forceinline__ Columns<Shape<kVector>, Logits, Target, Group> columns(
      const Target& target) const {
    return {z(), target, columns_, group_};
  }

  __device__ __forceinline__ Logits* z() const {
    return reinterpret_cast<Logits*>(shared_memory() + z_at_);
  }
  __device__ __forceinline__ typename Target::Element* T() const {
    return reinterpret_cast<typename Target::Element*>(shared_memory() + T_at_);
  }

  template <class T>
  __device__ __forceinline__ static bool is_wide(const T* at) {
    return reinterpret_cast<uintptr_t>(at) % (kWide * sizeof(T)) == 0;
  }

  int first_, columns_;  // of this block
  Group& group_;
  int z_at_,
      T_at_;  // offsets in shared memory, bytes; T_at_ is that of the buffer until it is filled
};

}  // namespace alr_fast
