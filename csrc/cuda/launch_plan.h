// Chooses the CUDA kernel and its numbers of threads. Host code without CUDA or torch.
#pragma once

#include <cstdint>
#include <optional>
#include <type_traits>

#include "alr_params.h"

namespace alr_fast {

// Regimes of the row kernel: how a row is divided among threads and where it is held.
enum class Regime : int32_t {
  kSubWarp,  // several rows a warp, held in registers
  kWarp,     // a warp a row, held in registers
  kBlock,    // a block a row, held in registers
  kShared,   // a block or a cluster of blocks a row, held in shared memory
  kLoop,     // a block a row that is read twice
};

// Compile-time values of a regime: threads of one warp that share a row (0: the whole block does),
// elements of a row that a thread holds in registers at once, the largest block, and the number of
// such blocks that must fit on a multiprocessor (which bounds the registers).
template <int kLanes_, int kElements_, int kMaxThreads_, int kMinBlocks_>
struct RegimeShape {
  static constexpr int kLanes = kLanes_;
  static constexpr int kElements = kElements_;
  static constexpr int kMaxThreads = kMaxThreads_;
  static constexpr int kMinBlocks = kMinBlocks_;
  static_assert(kLanes >= 0 && kLanes <= 32 && (kLanes & (kLanes - 1)) == 0, "part of a warp");
  static_assert(kMaxThreads % 32 == 0 && kMaxThreads <= 1024, "whole warps");
  static_assert(kElements % 4 == 0, "whole vectors");
};

template <Regime kRegime>
struct RegimeTraits;
template <>
struct RegimeTraits<Regime::kSubWarp> : RegimeShape<8, 4, 128, 6> {};
template <>
struct RegimeTraits<Regime::kWarp> : RegimeShape<32, 8, 128, 5> {};
template <>
struct RegimeTraits<Regime::kBlock> : RegimeShape<0, 16, 128, 4> {};
template <>
struct RegimeTraits<Regime::kShared> : RegimeShape<0, 4, 256, 3> {};
template <>
struct RegimeTraits<Regime::kLoop> : RegimeShape<0, 8, 512, 1> {};

template <Regime kRegime>
using RegimeConstant = std::integral_constant<Regime, kRegime>;

// Calls `visit` with the RegimeConstant of a regime that is known at run time.
template <class Visitor>
auto visit_regime(Regime regime, const Visitor& visit) {
  switch (regime) {
    case Regime::kSubWarp:
      return visit(RegimeConstant<Regime::kSubWarp>());
    case Regime::kWarp:
      return visit(RegimeConstant<Regime::kWarp>());
    case Regime::kBlock:
      return visit(RegimeConstant<Regime::kBlock>());
    case Regime::kShared:
      return visit(RegimeConstant<Regime::kShared>());
    case Regime::kLoop:
      break;
  }
  return visit(RegimeConstant<Regime::kLoop>());
}

constexpr int kAccessBytes = 16;         // of the widest access
constexpr int kReductionSlotBytes = 16;  // shared memory of one warp in one reduction over a block
constexpr int kReductionBuffers = 2;     // used in turn, so that a reduction needs one barrier

// The most blocks that share the rows of a batch; each of them writes a partial sum.
constexpr int64_t kMaxResidentBlocks = 8192;
constexpr int kMaxClusterBlocks = 16;

// Up to this many rows, every block counts the valid rows itself; larger batches need the pre-pass.
constexpr int64_t kRowsCountedByBlock = 2048;

// Elements per 16-byte access to the narrower of the two types.
ALR_HD constexpr int full_vector_width(int logits_bytes, int table_bytes) {
  return kAccessBytes / (logits_bytes < table_bytes ? logits_bytes : table_bytes);
}

// Columns of a row that one block of a cluster holds: a multiple of the access width, so that all
// parts of an aligned row are aligned.
ALR_HD constexpr int64_t columns_per_block(int64_t classes, int blocks_per_row) {
  const int64_t part = (classes + blocks_per_row - 1) / blocks_per_row;
  return blocks_per_row == 1 ? part : (part + 63) / 64 * 64;
}

// Bytes of shared memory for `columns` elements of `size` bytes at any alignment.
ALR_HD constexpr int64_t staged_bytes(int64_t columns, int64_t size) {
  return (columns * size + 2 * kAccessBytes - 2) / kAccessBytes * kAccessBytes;
}

// Bytes of shared memory that reductions over a block of a cluster need.
ALR_HD constexpr int reduction_bytes(int threads_per_block, bool is_cluster) {
  return kReductionBuffers * kReductionSlotBytes * (threads_per_block / 32 + (is_cluster ? 1 : 0));
}

// What a device allows.
struct DeviceLimits {
  int cluster_size = kMaxClusterBlocks;  // blocks; 1 where there are no clusters
  int shared_memory = 227 * 1024;        // bytes per block
};

struct LaunchPlan {
  Regime regime;
  const char* regime_name;
  int threads_per_row;  // of all blocks that share it
  int rows_per_block;   // 1 where a row has several blocks
  int threads_per_block;
  int blocks_per_row;       // the size of the cluster
  int vector_width;         // elements per access
  int elements_per_thread;  // held in registers at once
  int min_resident_blocks;  // per multiprocessor
  int shared_memory;        // bytes per block
  int64_t blocks;           // blocks with work; a smaller grid processes several rows per block
};

// Plan of the row kernel. `table_dtype` is empty if no table is read. All row bases and strides are
// multiples of `aligned` elements (see row_alignment). Throws std::invalid_argument if no kernel
// exists.
LaunchPlan launch_plan(int64_t rows, int64_t classes, DType logits_dtype,
                       std::optional<DType> table_dtype, int aligned = kAccessBytes,
                       const DeviceLimits& limits = {});
LaunchPlan launch_plan(const RowLossParams& params, const DeviceLimits& limits = {});

// The largest power of two up to 8, in elements, that divides the bases and strides of all rows; a
// base at a multiple of 16 bytes counts as aligned for any.
int row_alignment(const RowLossParams& params);

// Whether an index may occur twice, which requires the pre-pass and its scratch memory.
bool needs_groups(const RowLossParams& params);

// Whether the rows that are not ignored must be counted before the row kernel starts.
bool needs_count_before(const RowLossParams& params);

// Elements of RowLossParams::row_loss: one per row, or 16 bytes per block where it is scratch.
int64_t row_loss_size(const RowLossParams& params);

constexpr int kScaleAccesses = 4;  // of a thread of scale_grad, in flight together

struct ScaleGradPlan {
  ScaleGradParams params;  // of the launch
  int threads_per_row;
  int rows_per_block;
  int vector_width;
  int row_blocks;     // gridDim.x
  int column_blocks;  // gridDim.y: parts of a long row
};

ScaleGradPlan scale_grad_plan(const ScaleGradParams& params);

}  // namespace alr_fast
