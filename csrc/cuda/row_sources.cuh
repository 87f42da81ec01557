// Where a row in registers gets its words from, if not from device memory when its turn comes. A
// source has room for the words of Traits::kShape.stages rows, in turn:
//
//   start                  once, by all threads of the group
//   request, advance       for each of the first rows
//   take, request, advance for each row: its words, then the request of the row that is as many
//                          rows further on, to the same stage
//
// A row without a target is requested as such, and passed instead of taken. Between take and
// request of a ring all threads of the group must meet, so that none of them still reads a stage
// that is filled again.
#pragma once

#include <cstdint>
#include <type_traits>

#include "bulk_copy.cuh"
#include "launch_plan.h"
#include "memory.cuh"
#include "reduce.cuh"
#include "row_registers.cuh"

#if !defined(ALR_FAST_KERNELS_ON_CPU)
#include <cuda_pipeline_primitives.h>
#endif

namespace alr_fast {

template <class Traits>
class RowSources {
  using Logits = typename Traits::Logits;
  using Target = typename Traits::Target;
  using Group = typename Traits::Group;
  using Element = typename Target::Element;

  __device__ __forceinline__ static unsigned char* stages_of(const Group& group) {
    return shared_memory() + Traits::kStages.first + group.in_block() * Traits::kStages.group;
  }
  __device__ __forceinline__ static Logits* logits_of(unsigned char* stage) {
    return reinterpret_cast<Logits*>(stage);
  }
  __device__ __forceinline__ static Element* table_of(unsigned char* stage) {
    return reinterpret_cast<Element*>(stage + Traits::kStages.logits);
  }

 public:
  // Registers, requested before the row at hand has been joined.
  class Prefetched {
   public:
    __device__ __forceinline__ Prefetched(int classes, const Group& group)
        : place_(classes, group) {}

    __device__ __forceinline__ void start(const Group&) {}
    __device__ __forceinline__ void advance() {}

    __device__ __forceinline__ void request(bool has_target, const Logits* z,
                                            const Target& target) {
      const int first = place_.first_column();
      if (has_target)
        words_.template load<Cached::kOnce>(kept(z + first), target.from_column(first),
                                            place_.columns_left());
    }

    __device__ __forceinline__ void take(RowInRegisters<Traits>& row, const Logits*,
                                         const Target&) {
      row.words() = words_;
    }
    __device__ __forceinline__ void pass(const Group&) {}

   private:
    RowInRegisters<Traits> place_;
    RowWords<Traits> words_;
  };

  // Stages that each thread fills with the words that it will read itself: it has to wait for its
  // own copies alone.
  class Staged {
   public:
    __device__ __forceinline__ Staged(int classes, const Group& group)
        : place_(classes, group),
          memory_(stages_of(group)),
          column_(group.rank() * Traits::kVector) {}

    __device__ __forceinline__ void start(const Group&) {
      for (int n = 0; n < Traits::kShape.stages; ++n, advance())
        RowWords<Traits>::pad(logits(), table(), place_.columns_left());
    }

    __device__ __forceinline__ void request(bool has_target, const Logits* z,
                                            const Target& target) {
      if (has_target) {
        copy(logits(), kept(z + place_.first_column()));
        if constexpr (Target::kIsTable) copy(table(), kept(target.row() + place_.first_column()));
      }
      __pipeline_commit();
    }

    __device__ __forceinline__ void take(RowInRegisters<Traits>& row, const Logits*,
                                         const Target& target) {
      __pipeline_wait_prior(Traits::kShape.stages - 1);  // the requests since then
      row.words().load_padded(logits(), target.in_copy(table(), place_.first_column()),
                              place_.columns_left());
    }
    __device__ __forceinline__ void pass(const Group&) {}

    __device__ __forceinline__ void advance() {
      if (++stage_ == Traits::kShape.stages) stage_ = 0;
    }

   private:
    // Of this thread, in the stage at hand.
    __device__ __forceinline__ Logits* logits() const { return logits_of(stage()) + column_; }
    __device__ __forceinline__ Element* table() const { return table_of(stage()) + column_; }
    __device__ __forceinline__ unsigned char* stage() const {
      return memory_ + stage_ * Traits::kStages.stage;
    }

    template <class T>
    __device__ __forceinline__ void copy(T* to, const T* from) const {
      using Access = Pack<T, Traits::kVector>;
      using Words = RowWords<Traits>;
#pragma unroll
      for (int v = 0; v < Words::kVectors; ++v) {
        if (v * Words::kStride >= place_.columns_left()) continue;
#pragma unroll
        for (int n = 0; n < Access::kCount; ++n) {
          const int at = v * Words::kStride + n * Access::kSize;
          __pipeline_memcpy_async(to + at, from + at, Access::kBytes);
        }
      }
    }

    RowInRegisters<Traits> place_;
    unsigned char* memory_;
    int column_;  // of this thread, in the part of the row that the block has
    int stage_ = 0;
  };

  // Stages that one thread fills by bulk copies.
  class InRing {
   public:
    __device__ __forceinline__ InRing(int classes, const Group& group)
        : ring_(stages_of(group), Traits::kStages.barriers, Traits::kStages.stage),
          first_(group.first_column(classes)),
          count_(group.end_column(classes) - first_),
          rank_(group.rank()) {}

    __device__ __forceinline__ void start(const Group& group) {
      if (rank_ == 0) ring_.init();
      if constexpr (!kHasEdges) {
        const int column = rank_ * Traits::kVector;
        for (int n = 0; n < Traits::kShape.stages; ++n)
          RowWords<Traits>::pad(logits_of(ring_.stage(n)) + column,
                                table_of(ring_.stage(n)) + column, count_ - column);
      }
      group.meet();
    }

    __device__ __forceinline__ void request(bool has_target, const Logits* z,
                                            const Target& target) {
      if constexpr (!Traits::kIsBlock) __syncwarp(Group::mask());
      if (rank_ != 0) return;
      const Copied<Logits> of_z(z + first_, has_target ? count_ : 0);
      if constexpr (Target::kIsTable) {
        const Copied<Element> of_T(target.row() + first_, has_target ? count_ : 0);
        ring_.expect(of_z.bytes() + of_T.bytes());
        ring_.template load<Cached::kOnce>(Traits::kStages.logits, of_T.from(), of_T.bytes());
      } else {
        ring_.expect(of_z.bytes());
      }
      ring_.template load<Cached::kOnce>(0, of_z.from(), of_z.bytes());
    }

    __device__ __forceinline__ void take(RowInRegisters<Traits>& row, const Logits* z,
                                         const Target& target) {
      ring_.wait();
      const int column = rank_ * Traits::kVector;
      if constexpr (kHasEdges) {
        take_with_edges(row.words(), z + first_, target);
      } else {
        row.words().load_padded(logits_of(ring_.stage()) + column,
                                target.in_copy(table_of(ring_.stage()) + column, first_ + column),
                                count_ - column);
      }
    }

    // Warps of a block must not lose each other over many such rows, whose turns they do not wait
    // for. Lanes of a warp do not: they exchange the facts of every row.
    __device__ __forceinline__ void pass(const Group& group) {
      if constexpr (Traits::kIsBlock) group.meet();
    }

    __device__ __forceinline__ void advance() { ring_.advance(); }

   private:
    static constexpr bool kHasEdges = Traits::kVector == 1;  // rows at any alignment

    __device__ __forceinline__ void take_with_edges(RowWords<Traits>& words, const Logits* z,
                                                    const Target& target) const {
      const BulkRow<Logits> of_z(z, count_);
      const Logits* const from = of_z.origin(logits_of(ring_.stage())) + rank_;
      if constexpr (Target::kIsTable) {
        const BulkRow<Element> of_T(target.row() + first_, count_);
        words.template load<Cached::kAgain>(
            from, target.in_copy(of_T.origin(table_of(ring_.stage())) + rank_, 0), count_ - rank_);
        load_edges(of_T, target.row() + first_, words.T);
      } else {
        words.template load<Cached::kAgain>(from, target.in_copy(from, first_ + rank_),
                                            count_ - rank_);
      }
      load_edges(of_z, z, words.z);
    }

    // All of an aligned row.
    template <class T>
    class WholeRow {
     public:
      __device__ __forceinline__ WholeRow(const T* row, int count) : row_(row), count_(count) {}
      __device__ __forceinline__ const T* from() const { return row_; }
      __device__ __forceinline__ int bytes() const { return count_ * static_cast<int>(sizeof(T)); }
      __device__ __forceinline__ const T* origin(const T* copy) const { return copy; }

     private:
      const T* row_;
      int count_;
    };
    template <class T>
    using Copied = std::conditional_t<kHasEdges, BulkRow<T>, WholeRow<T>>;

    // What is not in the copy: of a few threads the first element or the last.
    template <class T, class Words>
    __device__ __forceinline__ void load_edges(const BulkRow<T>& copied, const T* from,
                                               Words& words) const {
      constexpr int kStride = Group::kThreads;
      const int last = rank_ + (count_ - 1 - rank_) / kStride * kStride;
      if (rank_ >= count_ || (copied.has(rank_) && copied.has(last))) return;
#pragma unroll
      for (int v = 0; v < RowWords<Traits>::kVectors; ++v) {
        const int n = rank_ + v * kStride;
        if (n < count_ && !copied.has(n)) load<Cached::kAgain>(from + n, words[v]);
      }
    }

    Ring<Traits::kShape.stages> ring_;
    int first_, count_;  // columns of the part of the row that the block has
    int rank_;
  };
};

template <class Traits>
using RowSource = std::conditional_t<
    Traits::kSource == Source::kRing, typename RowSources<Traits>::InRing,
    std::conditional_t<Traits::kSource == Source::kStaged, typename RowSources<Traits>::Staged,
                       typename RowSources<Traits>::Prefetched>>;

}  // namespace alr_fast
