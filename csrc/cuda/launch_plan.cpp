#include "launch_plan.h"

#include <algorithm>
#include <limits>
#include <stdexcept>
#include <string>

#include "kernels.h"

namespace alr_fast {
namespace {

constexpr int64_t kMaxBlocks = 2147483647;  // of a grid's x dimension

// Whether the threads of an entry hold a row of so many classes.
constexpr bool takes(const TableEntry& entry, int64_t classes) {
  const RegimeShape& shape = shape_of(entry.regime);
  if (entry.blocks_per_row > 1 && !shape.can_be_cluster()) return false;
  return columns_per_block(classes, entry.blocks_per_row) <= shape.columns();
}

constexpr bool is_sound(const LaunchTable& table) {
  int64_t previous = 0;
  for (const TableEntry& entry : table) {
    if (entry.max_classes < previous) return false;
    if (!takes(entry, entry.max_classes)) return false;
    previous = entry.max_classes;
  }
  return previous <= kMaxClasses;
}
static_assert(is_sound(launch_table(2)) && is_sound(launch_table(4)),
              "sorted, and no row larger than its registers");

int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

int size_of(DType dtype) {
  switch (dtype) {
    case DType::kFloat16:
    case DType::kBFloat16:
      return 2;
    case DType::kFloat32:
      return 4;
    case DType::kFloat64:
      return 8;
  }
  throw std::invalid_argument("unknown dtype " + std::to_string(static_cast<int32_t>(dtype)));
}

void require_cuda_dtype(DType dtype, const char* what) {
  if (size_of(dtype) == 8)
    throw std::invalid_argument(std::string(what) + " is float64, which only the CPU kernels take");
}

// The largest power of two up to `most` that divides n.
int power_of_two_in(int64_t n, int most) {
  while (most > 1 && n % most != 0) most /= 2;
  return most;
}

// The widest access, in elements, that the alignment allows.
int base_alignment(const void* base, DType dtype) {
  const auto address = reinterpret_cast<uintptr_t>(base);
  return address % kAccessBytes == 0
             ? kAccessBytes
             : power_of_two_in(static_cast<int64_t>(address / size_of(dtype)), kAccessBytes);
}

// The kernel of a candidate, which has kernels for all types, plain and with extras.
KernelChoice choose_any_kernel(const RegimeShape& shape, int full, int allowed, bool wants_extras) {
  const int narrow = shape.has_pairs() && allowed >= 2 ? 2 : 1;
  return {allowed >= full ? full : narrow, wants_extras, false};
}

// Bytes of the indices of all rows in shared memory, in whole accesses.
int index_bytes(int64_t rows) {
  return static_cast<int>(divide_up(rows * int64_t{sizeof(int32_t)}, kAccessBytes) * kAccessBytes);
}

// Whether a device runs the kernels of an entry, with any batch.
bool is_allowed(const TableEntry& entry, int logits_bytes, int table_bytes,
                const DeviceLimits& limits) {
  const RegimeShape& shape = shape_of(entry.regime);
  if (entry.blocks_per_row > limits.cluster_size) return false;
  if (shape.source == Source::kRing && !limits.has_bulk_copies) return false;
  const StageLayout layout = stage_layout(shape, shape.source, logits_bytes, table_bytes);
  return layout.end + index_bytes(kRowsSeenByBlock) <= limits.shared_memory;
}

const TableEntry& entry_for(int64_t classes, int logits_bytes, int table_bytes,
                            const DeviceLimits& limits) {
  const int narrower_bytes = table_bytes == 0 ? logits_bytes : std::min(logits_bytes, table_bytes);
  static constexpr LaunchTable kTables[] = {launch_table(2), launch_table(4)};
  const LaunchTable& table = kTables[narrower_bytes == 2 ? 0 : 1];
  const auto* const found = std::find_if(table.begin(), table.end(), [&](const TableEntry& entry) {
    return classes <= entry.max_classes && is_allowed(entry, logits_bytes, table_bytes, limits);
  });
  return found == table.end() ? kFallback : *found;
}

std::optional<DType> table_dtype_of(const RowLossParams& p) {
  return p.target.table == nullptr ? std::nullopt : std::optional<DType>(p.target.dtype);
}

// The plan with room for all indices where blocks look for equal ones themselves.
LaunchPlan with_indices(const RowLossParams& p, LaunchPlan plan) {
  if (!finds_groups_in_blocks(p)) return plan;
  plan.indices_at = plan.shared_memory;
  plan.shared_memory += index_bytes(p.rows);
  return plan;
}

// The plan of an entry with kernels for everything, or with those that there are.
LaunchPlan plan_of(const TableEntry& entry, int64_t rows, int64_t classes, DType logits_dtype,
                   std::optional<DType> table_dtype, int aligned, bool wants_extras,
                   const DeviceLimits& limits, bool is_candidate) {
  require_cuda_dtype(logits_dtype, "logits_dtype");
  if (table_dtype) require_cuda_dtype(*table_dtype, "bank_dtype");
  if (rows < 0)
    throw std::invalid_argument("rows is " + std::to_string(rows) + ": it must be >= 0");
  if (classes < 1 || classes > kMaxClasses)
    throw std::invalid_argument("classes is " + std::to_string(classes) +
                                ": CUDA kernels exist for 1 to " + std::to_string(kMaxClasses));
  const RegimeShape& shape = shape_of(entry.regime);
  if (shape.regime != kFallback.regime && !takes(entry, classes))
    throw std::invalid_argument("classes is " + std::to_string(classes) + ": " + shape.name +
                                " with " + std::to_string(entry.blocks_per_row) +
                                " blocks a row holds no row of that size");
  const int logits_size = size_of(logits_dtype),
            table_size = table_dtype ? size_of(*table_dtype) : 0;
  if (!is_allowed(entry, logits_size, table_size, limits))
    throw std::invalid_argument(std::string(shape.name) + " with " +
                                std::to_string(entry.blocks_per_row) +
                                " blocks a row does not run on this device");
  LaunchPlan plan;
  plan.regime = shape.regime;
  plan.threads_per_block = shape.threads;
  plan.blocks_per_row = entry.blocks_per_row;
  const int narrower = table_size == 0 ? logits_size : std::min(logits_size, table_size);
  const int full = full_vector_width(logits_size, narrower);
  const int allowed = power_of_two_in(classes, aligned);
  const KernelChoice kernel =
      is_candidate ? choose_any_kernel(shape, full, allowed, wants_extras)
                   : choose_kernel({logits_dtype, table_dtype}, shape, full, allowed, wants_extras);
  plan.vector_width = kernel.width;
  plan.has_extras = kernel.has_extras;
  plan.any_target = kernel.any_target;
  plan.elements_per_thread = std::max(shape.elements, plan.vector_width);
  plan.threads_per_row = shape.columns() / plan.elements_per_thread * plan.blocks_per_row;
  plan.rows_per_block = std::max(1, shape.threads / plan.threads_per_row);
  const Source source =
      source_of(shape, plan.vector_width * narrower, plan.has_extras || shape.always_has_extras());
  plan.shared_memory = stage_layout(shape, source, logits_size, table_size).end;
  plan.indices_at = -1;
  const int64_t most_rows = kMaxBlocks * plan.rows_per_block / plan.blocks_per_row;
  if (rows > most_rows)
    throw std::invalid_argument("rows is " + std::to_string(rows) + ": one launch takes up to " +
                                std::to_string(most_rows));
  plan.blocks = divide_up(rows, plan.rows_per_block) * plan.blocks_per_row;
  return plan;
}

}  // namespace

LaunchPlan launch_plan(const TableEntry& entry, int64_t rows, int64_t classes, DType logits_dtype,
                       std::optional<DType> table_dtype, int aligned, bool has_extras,
                       const DeviceLimits& limits) {
  return plan_of(entry, rows, classes, logits_dtype, table_dtype, aligned, has_extras, limits,
                 /*is_candidate=*/true);
}

LaunchPlan launch_plan(int64_t rows, int64_t classes, DType logits_dtype,
                       std::optional<DType> table_dtype, int aligned, bool has_extras,
                       const DeviceLimits& limits) {
  const TableEntry& entry =
      entry_for(classes, size_of(logits_dtype), table_dtype ? size_of(*table_dtype) : 0, limits);
  return plan_of(entry, rows, classes, logits_dtype, table_dtype, aligned, has_extras, limits,
                 /*is_candidate=*/false);
}

LaunchPlan launch_plan(const RowLossParams& p, const DeviceLimits& limits) {
  return with_indices(p, launch_plan(p.rows, p.classes, p.logits_dtype, table_dtype_of(p),
                                     row_alignment(p), has_extras(p), limits));
}

LaunchPlan launch_plan(const TableEntry& entry, const RowLossParams& p,
                       const DeviceLimits& limits) {
  return with_indices(p, launch_plan(entry, p.rows, p.classes, p.logits_dtype, table_dtype_of(p),
                                     row_alignment(p), has_extras(p), limits));
}

bool set_finish(LaunchPlan& plan, Finish finish, const RowLossParams& p,
                const DeviceLimits& limits) {
  if (finish == Finish::kArrivals) return plan.finish == finish;
  // Rows of more than a block have clusters of their own, the second launch finishes nothing.
  if (plan.finish != Finish::kArrivals || plan.blocks_per_row > 1 || plan.has_extras ||
      p.stores_groups || p.reduction == Reduction::kNone)
    return false;
  if (finish == Finish::kPolled) {
    if (plan.blocks > kMaxPolledBlocks || p.polled_words == nullptr) return false;
  } else {
    int64_t size = 1;
    while (size < plan.blocks) size *= 2;
    if (size > limits.cluster_size) return false;
    plan.blocks = size;  // some may have no rows
    plan.partials_at = plan.shared_memory;
    plan.shared_memory += kClusterFinishBytes;
  }
  plan.finish = finish;
  return true;
}

bool has_extras(const RowLossParams& p) {
  return p.stats_class != nullptr || p.rounding_state != nullptr || p.grad_mode == GradMode::kNone;
}

int row_alignment(const RowLossParams& p) {
  int aligned = base_alignment(p.logits, p.logits_dtype);
  aligned = power_of_two_in(p.logits_stride, aligned);
  if (p.target.table != nullptr) {
    aligned = std::min(aligned, base_alignment(p.target.table, p.target.dtype));
    aligned = power_of_two_in(p.target.stride, aligned);
  }
  if (p.grad_mode != GradMode::kNone)
    aligned = std::min(aligned, base_alignment(p.grad_logits, p.logits_dtype));
  return aligned;
}

bool needs_groups(const RowLossParams& p) {
  return p.update && !p.unique_index && p.index.data != nullptr && p.rows > 1;
}

bool finds_groups_in_blocks(const RowLossParams& p) {
  return needs_groups(p) && p.rows <= kRowsSeenByBlock &&
         p.target.size <= std::numeric_limits<int32_t>::max();
}

bool needs_prepare(const RowLossParams& p) {
  const bool counts_before = p.reduction == Reduction::kMean && p.grad_mode == GradMode::kFinal &&
                             !keeps_all_rows(p) && p.rows > kRowsSeenByBlock;
  return counts_before || (needs_groups(p) && !finds_groups_in_blocks(p));
}

int64_t row_loss_size(const RowLossParams& p) {
  constexpr int64_t kFloatsPerPartial = 4;
  if (p.reduction == Reduction::kNone) return p.rows;
  return kFloatsPerPartial * std::min(p.rows * kMaxClusterBlocks, kMaxResidentBlocks);
}

ScaleGradPlan scale_grad_plan(const ScaleGradParams& params) {
  constexpr int kThreads = 256;
  // About as many as a device of 132 multiprocessors holds at once: where the factor is 1, blocks
  // that start only to leave would be all the time that it takes.
  constexpr int64_t kMaxScaleBlocks = 1024;
  require_cuda_dtype(params.dtype, "dtype of grad_rows");
  ScaleGradPlan plan;
  ScaleGradParams& p = plan.params = params;
  if (p.grad_output_stride == 0 && p.row_weight == nullptr) {
    // One factor: one long row, whose accesses are wide for any number of classes.
    p.classes *= p.rows;
    p.rows = 1;
  }
  const int full = kAccessBytes / size_of(p.dtype);
  int allowed = std::min(base_alignment(p.grad_rows, p.dtype), base_alignment(p.out, p.dtype));
  if (p.rows > 1) allowed = power_of_two_in(p.classes, allowed);
  plan.vector_width = allowed >= full ? full : 1;
  const int64_t accesses = divide_up(p.classes, plan.vector_width);
  plan.threads_per_row = 8;  // one at least for each element after the last whole vector
  while (plan.threads_per_row < kThreads && 2 * plan.threads_per_row * kScaleAccesses <= accesses)
    plan.threads_per_row *= 2;
  plan.rows_per_block = kThreads / plan.threads_per_row;
  const int64_t row_blocks = std::min(divide_up(p.rows, plan.rows_per_block), kMaxScaleBlocks);
  const int64_t column_blocks = divide_up(accesses, int64_t{plan.threads_per_row} * kScaleAccesses);
  plan.row_blocks = static_cast<int>(row_blocks);
  plan.column_blocks = static_cast<int>(std::min(column_blocks, kMaxScaleBlocks / row_blocks));
  return plan;
}

}  // namespace alr_fast
