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
  int threads_per_row;
  int threads_per_block;
  int elements;
};

template <Regime kRegime>
constexpr PlanEntry entry(int64_t max_classes, const char* name, int threads_per_row) {
  using Traits = RegimeTraits<kRegime>;
  return {max_classes,
          kRegime,
          name,
          threads_per_row,
          Traits::kLanes > 0 ? Traits::kMaxThreads : threads_per_row,
          Traits::kElements};
}

// Sorted by max_classes. Blocks of a row grow with it: short rows then leave room for other blocks.
constexpr PlanEntry kPlans[] = {
    entry<Regime::kSubWarp>(32, "sub_warp", 8),                                             //
    entry<Regime::kWarp>(256, "warp", 32),                                                  //
    entry<Regime::kBlock>(1024, "block", 64),   entry<Regime::kBlock>(2048, "block", 128),  //
    entry<Regime::kBlock>(4096, "block", 256),                                              //
    entry<Regime::kBlock>(8192, "block", 512),                                              //
    entry<Regime::kLoop>(262144, "loop", 512),                                              //
};

constexpr bool plans_are_sound() {
  int64_t previous = 0;
  for (const PlanEntry& plan : kPlans) {
    if (plan.max_classes <= previous) return false;
    if (plan.regime != Regime::kLoop &&
        plan.max_classes > int64_t{plan.threads_per_row} * plan.elements)
      return false;
    if (plan.threads_per_block % 32 != 0 || plan.threads_per_block % plan.threads_per_row != 0)
      return false;
    previous = plan.max_classes;
  }
  return true;
}
static_assert(plans_are_sound(), "sorted, and no row larger than its registers");

int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

int64_t size_of(DType dtype) {
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

bool is_aligned(const void* base, DType dtype) {
  return reinterpret_cast<uintptr_t>(base) % (kVectorWidth * size_of(dtype)) == 0;
}

}  // namespace

LaunchPlan launch_plan(int64_t rows, int64_t classes, DType logits_dtype, DType bank_dtype,
                       bool aligned) {
  require_cuda_dtype(logits_dtype, "logits_dtype");
  require_cuda_dtype(bank_dtype, "bank_dtype");
  if (rows < 0)
    throw std::invalid_argument("rows is " + std::to_string(rows) + ": it must be >= 0");
  const PlanEntry* const end = std::end(kPlans);
  const PlanEntry* const found = std::find_if(
      std::begin(kPlans), end, [&](const PlanEntry& plan) { return classes <= plan.max_classes; });
  if (classes < 1 || found == end)
    throw std::invalid_argument("classes is " + std::to_string(classes) +
                                ": CUDA kernels exist for 1 to " +
                                std::to_string(end[-1].max_classes));
  LaunchPlan plan;
  plan.regime = found->regime;
  plan.regime_name = found->name;
  plan.threads_per_row = found->threads_per_row;
  plan.rows_per_block = found->threads_per_block / found->threads_per_row;
  plan.threads_per_block = found->threads_per_block;
  plan.vector_width = aligned && classes % kVectorWidth == 0 ? kVectorWidth : 1;
  plan.elements_per_thread = found->elements;
  plan.shared_memory = kReductionBuffers * kReductionSlotBytes * (found->threads_per_block / 32);
  plan.blocks = divide_up(rows, plan.rows_per_block);
  if (plan.blocks > kMaxBlocks)
    throw std::invalid_argument("rows is " + std::to_string(rows) + ": one launch takes up to " +
                                std::to_string(kMaxBlocks * plan.rows_per_block));
  return plan;
}

bool is_vector_aligned(const RowLossParams& p) {
  bool aligned = is_aligned(p.logits, p.logits_dtype) && p.logits_stride % kVectorWidth == 0;
  if (p.target.table != nullptr)
    aligned = aligned && is_aligned(p.target.table, p.target.dtype) &&
              p.target.stride % kVectorWidth == 0;
  if (p.grad_mode != GradMode::kNone)
    aligned = aligned && is_aligned(p.grad_logits, p.logits_dtype);
  return aligned;
}

bool needs_groups(const RowLossParams& p) {
  return p.update && !p.unique_index && p.index != nullptr && p.rows > 1;
}

ScaleGradPlan scale_grad_plan(const ScaleGradParams& p) {
  constexpr int kThreads = 256;
  constexpr int kAccessesPerThread = 4;
  constexpr int64_t kMaxColumnBlocks = 65535;  // of a grid's y dimension
  require_cuda_dtype(p.dtype, "dtype of grad_rows");
  ScaleGradPlan plan;
  plan.vector_width = p.classes % kVectorWidth == 0 && is_aligned(p.grad_rows, p.dtype) &&
                              is_aligned(p.out, p.dtype)
                          ? kVectorWidth
                          : 1;
  const int64_t accesses = divide_up(p.classes, plan.vector_width);
  plan.threads_per_row = 4;
  while (plan.threads_per_row < kThreads && plan.threads_per_row < accesses)
    plan.threads_per_row *= 2;
  plan.rows_per_block = kThreads / plan.threads_per_row;
  plan.row_blocks = divide_up(p.rows, plan.rows_per_block);
  if (plan.row_blocks > kMaxBlocks)
    throw std::invalid_argument("rows is " + std::to_string(p.rows) + ": one launch takes up to " +
                                std::to_string(kMaxBlocks * plan.rows_per_block));
  plan.column_blocks = static_cast<int>(std::min(
      divide_up(accesses, int64_t{plan.threads_per_row} * kAccessesPerThread), kMaxColumnBlocks));
  return plan;
}

}  // namespace alr_fast
