#include "cuda_backend.h"

#include <vector>

#include "cuda_backend_row_loss.h"
//
#include "cuda/prepare.cuh"

namespace test {

Variation variation;

// As launch.cu does it.
void run_row_loss(const alr_fast::RowLossParams& ungrouped) {
  using alr_fast::DType;
  alr_fast::RowLossParams params = ungrouped;
  const alr_fast::LaunchPlan plan = alr_fast::launch_plan(params, variation.limits);
  if (params.rows == 0) return;
  std::vector<int32_t> next(params.rows, 0x5a5a5a5a), chain(params.rows, 0x5a5a5a5a);
  std::vector<uint8_t> first(params.rows, 0x5a);
  const bool is_grouped = alr_fast::needs_groups(params);
  const bool is_counted = is_grouped || alr_fast::needs_count_before(params);
  if (is_counted) {
    const int64_t per_block = variation.prepare_rows_per_block;
    const auto blocks = static_cast<unsigned>((params.rows + per_block - 1) / per_block);
    cuda_shim::run(shim_launch(blocks, alr_fast::kPrepareThreads, alr_fast::kPrepareSharedMemory),
                   alr_fast::prepare_rows_kernel, params, is_grouped ? next.data() : nullptr,
                   is_grouped ? first.data() : nullptr, is_grouped ? chain.data() : nullptr);
  }
  if (is_grouped) {
    params.next_in_group = next.data();
    params.first_in_group = first.data();
  }
  if (params.logits_dtype == DType::kFloat32) return run_row_loss_float32(params, plan, is_counted);
  if (params.logits_dtype == DType::kFloat16) return run_row_loss_float16(params, plan, is_counted);
  run_row_loss_bfloat16(params, plan, is_counted);
}

void run_scale_grad(const alr_fast::ScaleGradParams& params) {
  using alr_fast::DType;
  const alr_fast::ScaleGradPlan plan = alr_fast::scale_grad_plan(params);
  const auto launch = [&](auto* kernel, const alr_fast::ScaleGradPlan& plan) {
    cuda_shim::Launch launch = shim_launch(plan.row_blocks, plan.threads_per_row, 0);
    launch.grid.y = plan.column_blocks;
    launch.block.y = plan.rows_per_block;
    cuda_shim::run(launch, kernel, plan.params);
  };
  if (params.dtype == DType::kFloat32) return alr_fast::dispatch_scale_grad<float>(plan, launch);
  if (params.dtype == DType::kFloat16) return alr_fast::dispatch_scale_grad<__half>(plan, launch);
  alr_fast::dispatch_scale_grad<__nv_bfloat16>(plan, launch);
}

}  // namespace test
