#include <limits>

#include "dispatch.cuh"
#include "group.cuh"
#include "launch.cuh"
#include "launch.h"

namespace alr_fast {
namespace {

cudaError_t launch_group_rows(const RowLossParams& params, const GroupScratch& scratch,
                              cudaStream_t stream) {
  if (params.rows > std::numeric_limits<int32_t>::max()) return cudaErrorInvalidValue;
  const unsigned blocks =
      static_cast<unsigned>((params.rows + kGroupRowsPerBlock - 1) / kGroupRowsPerBlock);
  return launch_kernel(group_rows_kernel, dim3(blocks), dim3(kGroupThreads), kGroupSharedMemory,
                       stream, params, scratch.next_in_group, scratch.first_in_group,
                       scratch.counted_rows);
}

}  // namespace

cudaError_t launch_row_loss(const RowLossParams& ungrouped, const GroupScratch& scratch,
                            cudaStream_t stream) {
  RowLossParams params = ungrouped;
  params.next_in_group = nullptr;
  params.first_in_group = nullptr;
  const DType bank_dtype = params.target.table != nullptr ? params.target.dtype : DType::kFloat32;
  const LaunchPlan plan = launch_plan(params.rows, params.classes, params.logits_dtype, bank_dtype,
                                      is_vector_aligned(params));
  if (params.rows == 0) return cudaSuccess;
  const bool grouped = needs_groups(params);
  if (grouped) {
    const cudaError_t error = launch_group_rows(params, scratch, stream);
    if (error != cudaSuccess) return error;
    params.next_in_group = scratch.next_in_group;
    params.first_in_group = scratch.first_in_group;
  }
  const int64_t* const counted_rows = grouped ? scratch.counted_rows : nullptr;
  switch (params.logits_dtype) {
    case DType::kFloat32:
      return launch_row_loss_float32(params, plan, counted_rows, stream);
    case DType::kFloat16:
      return launch_row_loss_float16(params, plan, counted_rows, stream);
    case DType::kBFloat16:
      return launch_row_loss_bfloat16(params, plan, counted_rows, stream);
    case DType::kFloat64:
      break;  // launch_plan has thrown
  }
  return cudaErrorInvalidValue;
}

cudaError_t launch_scale_grad(const ScaleGradParams& params, cudaStream_t stream) {
  if (params.rows == 0) return cudaSuccess;
  const ScaleGradPlan plan = scale_grad_plan(params);
  const auto launch = [&](auto* kernel, const ScaleGradPlan& plan) {
    return launch_kernel(kernel, dim3(static_cast<unsigned>(plan.row_blocks), plan.column_blocks),
                         dim3(plan.threads_per_row, plan.rows_per_block), 0, stream, params);
  };
  switch (params.dtype) {
    case DType::kFloat32:
      return dispatch_scale_grad<float>(plan, launch);
    case DType::kFloat16:
      return dispatch_scale_grad<__half>(plan, launch);
    case DType::kBFloat16:
      return dispatch_scale_grad<__nv_bfloat16>(plan, launch);
    case DType::kFloat64:
      break;  // scale_grad_plan has thrown
  }
  return cudaErrorInvalidValue;
}

}  // namespace alr_fast
