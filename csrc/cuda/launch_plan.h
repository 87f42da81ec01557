// Chooses the CUDA kernel and its numbers of threads. Host code without CUDA or torch.
#pragma once

#include <cstdint>
#include <optional>

#include "../alr_params.h"
#include "launch_table.h"

namespace alr_fast {

constexpr int kAccessBytes = 16;         // of the widest access
constexpr int kReductionSlotBytes = 32;  // shared memory of one warp in one reduction over a block
constexpr int kReductionBuffers = 2;     // used in turn, so that a reduction needs one barrier
constexpr int kBarrierBytes = 8;         // of one that counts arrivals and bytes in shared memory
constexpr int kStageAlignment = 128;     // of rows in shared memory: whole cache lines

// The most blocks that share the rows of a batch; each of them writes a partial sum.
constexpr int64_t kMaxResidentBlocks = 8192;
constexpr int kMaxClusterBlocks = 16;
constexpr int64_t kMaxPolledBlocks = 1024;  // that one block waits for
constexpr int kPartialBytes = 16;           // of a block's contribution to the loss
constexpr int kClusterFinishBytes = kPartialBytes * (kMaxClusterBlocks + 1);

// Up to this many rows, every block of the row kernel looks at all indices itself: it counts the
// valid rows and finds equal indices. Larger batches need the pre-pass.
constexpr int64_t kRowsSeenByBlock = 2048;

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

// Bytes of shared memory that reductions over a block of a cluster need.
ALR_HD constexpr int reduction_bytes(int threads_per_block, bool is_cluster) {
  return kReductionBuffers * kReductionSlotBytes * (threads_per_block / 32 + (is_cluster ? 1 : 0));
}

// The same where the blocks of a cluster push their sums to each other.
constexpr int kPushBytes =
    kReductionBuffers * (kMaxClusterBlocks * kReductionSlotBytes + kBarrierBytes);
ALR_HD constexpr int exchange_bytes(const RegimeShape& shape) {
  return shape.pushes ? reduction_bytes(shape.threads, false) + kPushBytes
                      : reduction_bytes(shape.threads, shape.can_be_cluster());
}

ALR_HD constexpr int whole_lines(int bytes) {
  return (bytes + kStageAlignment - 1) / kStageAlignment * kStageAlignment;
}

// Where a kernel gets its words from. Rare kernels have no stages, and no thread can copy less than
// 4 bytes; `access_bytes`: of the narrower of logits and table.
ALR_HD constexpr Source source_of(const RegimeShape& shape, int access_bytes, bool has_extras) {
  return has_extras || (shape.source == Source::kStaged && access_bytes < 4) ? Source::kDirect
                                                                             : shape.source;
}

// Shared memory of a block: what exchanges need, then for each group of threads that share a row
// its barriers (of a ring), and its stages, each with the words of the logits and of the table (0
// bytes an element where there is none).
struct StageLayout {
  int first = 0;     // offset of the first group
  int barriers = 0;  // bytes of a group's barriers
  int logits = 0;    // bytes of a stage's logits,
  int stage = 0;     // and of all of it
  int group = 0;     // bytes of a group
  int end = 0;
};
ALR_HD constexpr StageLayout stage_layout(const RegimeShape& shape, Source source, int logits_bytes,
                                          int table_bytes) {
  StageLayout layout;
  layout.end = exchange_bytes(shape);
  if (source != Source::kStaged && source != Source::kRing) return layout;
  layout.first = whole_lines(layout.end);
  layout.barriers = source == Source::kRing ? whole_lines(shape.stages * kBarrierBytes) : 0;
  layout.logits = whole_lines(shape.columns() * logits_bytes);
  layout.stage = layout.logits + whole_lines(shape.columns() * table_bytes);
  layout.group = layout.barriers + shape.stages * layout.stage;
  layout.end = layout.first + shape.threads / (shape.lanes * shape.warps) * layout.group;
  return layout;
}

// What a device allows.
struct DeviceLimits {
  int cluster_size = kMaxClusterBlocks;  // blocks; 1 where there are no clusters
  int shared_memory = 227 * 1024;        // bytes per block
  bool has_bulk_copies = true;
};

struct LaunchPlan {
  Regime regime;
  int threads_per_row;  // of all blocks that share it
  int rows_per_block;   // 1 where a row has several blocks
  int threads_per_block;
  int blocks_per_row;       // the size of the cluster
  int vector_width;         // elements per access
  int elements_per_thread;  // held in registers at once
  int shared_memory;        // bytes per block
  int indices_at;           // offset in shared memory, bytes, of the indices of all rows; -1: none
  bool has_extras;  // the kernel has statistics, stochastic rounding, no gradient as options
  bool any_target;  // it learns the type of the target rows when it runs, see kernels.h
  int64_t blocks;   // blocks with work; a smaller grid processes several rows per block
  Finish finish = Finish::kArrivals;
  int partials_at = -1;       // with Finish::kCluster: offset in shared memory of partial sums
  bool starts_early = false;  // while the kernel before it in the stream ends

  // Blocks of a cluster.
  int cluster_size() const {
    return finish == Finish::kCluster ? static_cast<int>(blocks) : blocks_per_row;
  }
};

// Plan of the row kernel. `table_dtype` is empty if no table is read. All row bases and strides are
// multiples of `aligned` elements (see row_alignment). Throws std::invalid_argument if no kernel
// exists.
LaunchPlan launch_plan(int64_t rows, int64_t classes, DType logits_dtype,
                       std::optional<DType> table_dtype, int aligned = kAccessBytes,
                       bool has_extras = false, const DeviceLimits& limits = {});
LaunchPlan launch_plan(const RowLossParams& params, const DeviceLimits& limits = {});

// The same with this entry instead of that of the launch table, and as if there were kernels for
// everything: a candidate. Throws std::invalid_argument if its threads do not hold such a row, or
// the device does not allow it.
LaunchPlan launch_plan(const TableEntry& entry, int64_t rows, int64_t classes, DType logits_dtype,
                       std::optional<DType> table_dtype, int aligned, bool has_extras,
                       const DeviceLimits& limits = {});
LaunchPlan launch_plan(const TableEntry& entry, const RowLossParams& params,
                       const DeviceLimits& limits = {});

// Changes the plan of `params` to another way to finish the batch; returns false, and leaves the
// plan as it is, if the batch or the device does not allow it.
bool set_finish(LaunchPlan& plan, Finish finish, const RowLossParams& params,
                const DeviceLimits& limits = {});

// The largest power of two up to 8, in elements, that divides the bases and strides of all rows; a
// base at a multiple of 16 bytes counts as aligned for any.
int row_alignment(const RowLossParams& params);

// Whether statistics, stochastic rounding or no gradient are asked for.
bool has_extras(const RowLossParams& params);

// Whether an index may occur twice: rows that share one are stored by a second launch.
bool needs_groups(const RowLossParams& params);

// Whether every block of the row kernel looks for equal indices itself, in shared memory, where an
// index has 32 bits.
bool finds_groups_in_blocks(const RowLossParams& params);

// Whether the pre-pass comes first: to find equal indices, or to count the rows that are not
// ignored.
bool needs_prepare(const RowLossParams& params);

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
