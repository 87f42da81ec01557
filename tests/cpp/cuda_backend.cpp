#include "cuda_backend.h"

#include <vector>

#include "cuda_backend_row_loss.h"
//
#include "cuda/group.cuh"

namespace alr_fast {
ReductionSlot reduction_slots[64];
}

namespace test {

Order order;

// As launch.cu does it.
void run_row_loss(const alr_fast::RowLossParams& ungrouped) {
  using alr_fast::DType;
  alr_fast::RowLossParams params = ungrouped;
  const DType bank_dtype = params.target.table != nullptr ? params.target.dtype : DType::kFloat32;
  const alr_fast::LaunchPlan plan =
      alr_fast::launch_plan(params.rows, params.classes, params.logits_dtype, bank_dtype,
                            alr_fast::is_vector_aligned(params));
  if (params.rows == 0) return;
  std::vector<int32_t> next(params.rows, 0x5a5a5a5a);
  std::vector<uint8_t> first(params.rows, 0x5a);
  int64_t counted = 0x5a5a5a5a5a5a;
  const bool grouped = alr_fast::needs_groups(params);
  if (grouped) {
    const auto blocks = static_cast<unsigned>((params.rows + alr_fast::kGroupRowsPerBlock - 1) /
                                              alr_fast::kGroupRowsPerBlock);
    cuda_shim::run(shim_launch(blocks, alr_fast::kGroupThreads, alr_fast::kGroupSharedMemory),
                   alr_fast::group_rows_kernel, params, next.data(), first.data(), &counted);
    params.next_in_group = next.data();
    params.first_in_group = first.data();
  }
  const int64_t* const counted_rows = grouped ? &counted : nullptr;
  if (params.logits_dtype == DType::kFloat32)
    return run_row_loss_float32(params, plan, counted_rows);
  if (params.logits_dtype == DType::kFloat16)
    return run_row_loss_float16(params, plan, counted_rows);
  run_row_loss_bfloat16(params, plan, counted_rows);
}

void run_scale_grad(const alr_fast::ScaleGradParams& params) {
  using alr_fast::DType;
  const alr_fast::ScaleGradPlan plan = alr_fast::scale_grad_plan(params);
  const auto launch = [&](auto* kernel, const alr_fast::ScaleGradPlan& plan) {
    cuda_shim::Launch launch =
        shim_launch(static_cast<unsigned>(plan.row_blocks), plan.threads_per_row, 0);
    launch.grid.y = plan.column_blocks;
    launch.block.y = plan.rows_per_block;
    cuda_shim::run(launch, kernel, params);
  };
  if (params.dtype == DType::kFloat32) return alr_fast::dispatch_scale_grad<float>(plan, launch);
  if (params.dtype == DType::kFloat16) return alr_fast::dispatch_scale_grad<__half>(plan, launch);
  alr_fast::dispatch_scale_grad<__nv_bfloat16>(plan, launch);
}

}  // namespace test
