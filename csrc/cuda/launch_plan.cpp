#include "launch_plan.h"

#include <algorithm>
#include <stdexcept>
#include <string>

namespace alr_fast {
namespace {

constexpr int64_t kMaxBlocks = 2147483647;  // of a grid's x dimension

struct PlanEntry {
  int64_t max_classes;  // the entry is for K up to this
  Regime regime;
  const char* name;
  int threads_per_block;
  int blocks_per_row;  // 0: a block holds several rows
  int lanes;           // threads per row where a block holds several
  int elements;
  int min_resident_blocks;
};

template <Regime kRegime>
constexpr PlanEntry entry(int64_t max_classes, const char* name,
                          int threads_per_block = RegimeTraits<kRegime>::kMaxThreads,
                          int blocks_per_row = 1) {
  using Traits = RegimeTraits<kRegime>;
  return {max_classes,
          kRegime,
          name,
          threads_per_block,
          Traits::kLanes > 0 ? 0 : blocks_per_row,
          Traits::kLanes,
          Traits::kElements,
          Traits::kMinBlocks * Traits::kMaxThreads / threads_per_block};
}

// Sorted by max_classes. Longer rows use more blocks; short rows leave room for other blocks.
constexpr PlanEntry kPlans[] = {
    entry<Regime::kSubWarp>(32, "sub_warp"),
    entry<Regime::kWarp>(256, "warp"),
    entry<Regime::kBlock>(1024, "block", 64),
    entry<Regime::kBlock>(2048, "block", 128),
    entry<Regime::kShared>(8192, "shared"),
    entry<Regime::kShared>(16384, "shared", 256, 2),
    entry<Regime::kShared>(32768, "shared", 256, 4),
    entry<Regime::kShared>(65536, "shared", 256, 8),
    entry<Regime::kShared>(262144, "shared", 256, 16),
};
// For devices without clusters or with too little shared memory.
constexpr PlanEntry kFallback = entry<Regime::kLoop>(262144, "loop");

constexpr bool plans_are_sound() {
  int64_t previous = 0;
  for (const PlanEntry& plan : kPlans) {
    const int64_t threads = plan.lanes > 0 ? plan.lanes : plan.threads_per_block;
    if (plan.max_classes <= previous) return false;
    if (plan.regime != Regime::kShared && plan.max_classes > threads * plan.elements) return false;
    if (plan.threads_per_block % 32 != 0) return false;
    previous = plan.max_classes;
  }
  return previous == kFallback.max_classes;
}
static_assert(plans_are_sound(), "sorted, and no row larger than its registers");

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

// Widths with kernels: 16 bytes; two elements for short rows, which are rarely multiples of 16
// bytes (10, 14 or 50 classes); one element.
int supported_width(Regime regime, int full, int allowed) {
  if (regime == Regime::kShared || allowed >= full) return full;
  if ((regime == Regime::kSubWarp || regime == Regime::kWarp) && allowed >= 2) return 2;
  return 1;
}

int64_t shared_row_bytes(int64_t classes, int blocks_per_row, int logits_size, int table_size) {
  const int64_t columns = columns_per_block(classes, blocks_per_row);
  return staged_bytes(columns, logits_size) + staged_bytes(columns, table_size);
}

}  // namespace

LaunchPlan launch_plan(int64_t rows, int64_t classes, DType logits_dtype,
                       std::optional<DType> table_dtype, int aligned, const DeviceLimits& limits) {
  require_cuda_dtype(logits_dtype, "logits_dtype");
  if (table_dtype) require_cuda_dtype(*table_dtype, "bank_dtype");
  if (rows < 0)
    throw std::invalid_argument("rows is " + std::to_string(rows) + ": it must be >= 0");
  if (classes < 1 || classes > kFallback.max_classes)
    throw std::invalid_argument("classes is " + std::to_string(classes) +
                                ": CUDA kernels exist for 1 to " +
                                std::to_string(kFallback.max_classes));
  PlanEntry chosen = *std::find_if(std::begin(kPlans), std::end(kPlans),
                                   [&](const PlanEntry& e) { return classes <= e.max_classes; });
  const int logits_size = size_of(logits_dtype);
  const int table_size = table_dtype ? size_of(*table_dtype) : 0;
  int64_t shared_memory =
      reduction_bytes(chosen.threads_per_block, chosen.regime == Regime::kShared);
  if (chosen.regime == Regime::kShared) {
    chosen.blocks_per_row = std::min(chosen.blocks_per_row, limits.cluster_size);
    shared_memory += shared_row_bytes(classes, chosen.blocks_per_row, logits_size, table_size);
    if (shared_memory > limits.shared_memory) {
      chosen = kFallback;
      shared_memory = reduction_bytes(chosen.threads_per_block, false);
    }
  }
  LaunchPlan plan;
  plan.regime = chosen.regime;
  plan.regime_name = chosen.name;
  plan.threads_per_block = chosen.threads_per_block;
  plan.blocks_per_row = std::max(chosen.blocks_per_row, 1);
  plan.vector_width = supported_width(
      chosen.regime, full_vector_width(logits_size, table_dtype ? table_size : logits_size),
      power_of_two_in(classes, aligned));
  plan.elements_per_thread = chosen.regime == Regime::kShared
                                 ? chosen.elements
                                 : std::max(chosen.elements, plan.vector_width);
  // Threads that hold more elements need more registers, so fewer blocks fit.
  plan.threads_per_row = chosen.lanes > 0
                             ? chosen.lanes * chosen.elements / plan.elements_per_thread
                             : chosen.threads_per_block * plan.blocks_per_row;
  plan.rows_per_block = std::max(1, chosen.threads_per_block / plan.threads_per_row);
  plan.min_resident_blocks = chosen.min_resident_blocks;
  plan.shared_memory = static_cast<int>(shared_memory);
  const int64_t most_rows = kMaxBlocks * plan.rows_per_block / plan.blocks_per_row;
  if (rows > most_rows)
    throw std::invalid_argument("rows is " + std::to_string(rows) + ": one launch takes up to " +
                                std::to_string(most_rows));
  plan.blocks = divide_up(rows, plan.rows_per_block) * plan.blocks_per_row;
  return plan;
}

LaunchPlan launch_plan(const RowLossParams& p, const DeviceLimits& limits) {
  std::optional<DType> table_dtype;
  if (p.target.table != nullptr) table_dtype = p.target.dtype;
  return launch_plan(p.rows, p.classes, p.logits_dtype, table_dtype, row_alignment(p), limits);
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

bool needs_count_before(const RowLossParams& p) {
  return p.reduction == Reduction::kMean && p.grad_mode == GradMode::kFinal && !keeps_all_rows(p) &&
         p.rows > kRowsCountedByBlock;
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
