// Which CUDA kernel runs, and with how many threads: host-side facts, no CUDA, no torch.
#pragma once

#include <cstdint>

#include "alr_params.h"

namespace alr_fast {

// The row kernel's ways to divide a row.
enum class Regime : int32_t {
  kSubWarp,  // several rows a warp, held in registers
  kWarp,     // a warp a row, held in registers
  kBlock,    // a block a row, held in registers
  kLoop,     // a block a row that is read twice
};

// What a regime fixes at compile time: threads of one warp that share a row (0: the whole block
// does), elements of a row that a thread holds at once, the largest block.
template <int kLanes_, int kElements_, int kMaxThreads_>
struct RegimeShape {
  static constexpr int kLanes = kLanes_;
  static constexpr int kElements = kElements_;
  static constexpr int kMaxThreads = kMaxThreads_;
  static_assert(kLanes >= 0 && kLanes <= 32 && (kLanes & (kLanes - 1)) == 0, "part of a warp");
  static_assert(kMaxThreads % 32 == 0 && kMaxThreads <= 1024, "whole warps");
  static_assert(kElements % 4 == 0, "whole vectors");
};

template <Regime kRegime>
struct RegimeTraits;
template <>
struct RegimeTraits<Regime::kSubWarp> : RegimeShape<8, 4, 128> {
  static constexpr bool kLoops = false;
};
template <>
struct RegimeTraits<Regime::kWarp> : RegimeShape<32, 8, 128> {
  static constexpr bool kLoops = false;
};
template <>
struct RegimeTraits<Regime::kBlock> : RegimeShape<0, 16, 512> {
  static constexpr bool kLoops = false;
};
template <>
struct RegimeTraits<Regime::kLoop> : RegimeShape<0, 8, 512> {
  static constexpr bool kLoops = true;
};

constexpr int kVectorWidth = 4;          // elements per access where everything is aligned for it
constexpr int kReductionSlotBytes = 16;  // shared memory of one warp in one reduction over a block
constexpr int kReductionBuffers = 2;     // used in turn, so that a reduction needs one barrier

struct LaunchPlan {
  Regime regime;
  const char* regime_name;
  int threads_per_row;
  int rows_per_block;
  int threads_per_block;
  int vector_width;         // elements per access
  int elements_per_thread;  // held in registers at once
  int shared_memory;        // bytes per block
  int64_t blocks;
};

// Plan of the row kernel. `aligned` says whether every row starts at a multiple of kVectorWidth
// elements (see is_vector_aligned). Throws std::invalid_argument for what no kernel exists for.
LaunchPlan launch_plan(int64_t rows, int64_t classes, DType logits_dtype, DType bank_dtype,
                       bool aligned = true);

// Whether all row bases and strides allow accesses of kVectorWidth elements; K is launch_plan's
// concern.
bool is_vector_aligned(const RowLossParams& params);

// Whether an index may come twice, which takes a preparing launch and its scratch memory.
bool needs_groups(const RowLossParams& params);

struct ScaleGradPlan {
  int threads_per_row;
  int rows_per_block;
  int vector_width;
  int64_t row_blocks;  // gridDim.x
  int column_blocks;   // gridDim.y: parts of a long row
};

ScaleGradPlan scale_grad_plan(const ScaleGradParams& params);

}  // namespace alr_fast
