#include "cuda_backend.h"

#include <algorithm>
#include <vector>

#include "cuda_backend_row_loss.h"
//
#include "cuda/duplicates.h"
#include "cuda/prepare.cuh"

namespace test {

Variation variation;

namespace {

void run_planned(const alr_fast::RowLossParams& params, const alr_fast::LaunchPlan& plan,
                 bool is_counted) {
  using alr_fast::DType;
  if (params.logits_dtype == DType::kFloat32) return run_row_loss_float32(params, plan, is_counted);
  if (params.logits_dtype == DType::kFloat16) return run_row_loss_float16(params, plan, is_counted);
  run_row_loss_bfloat16(params, plan, is_counted);
}

// A kernel with a thread for each row.
void run_by_row(void (*kernel)(alr_fast::RowLossParams), const alr_fast::RowLossParams& params,
                int64_t threads, size_t shared_memory) {
  const auto blocks =
      static_cast<unsigned>((threads + alr_fast::kPrepareThreads - 1) / alr_fast::kPrepareThreads);
  cuda_shim::run(shim_launch(blocks, alr_fast::kPrepareThreads, shared_memory), kernel, params);
}

}  // namespace

void run_row_loss(const alr_fast::RowLossParams& params) {
  // Throws before anything is launched.
  alr_fast::LaunchPlan plan = alr_fast::launch_plan(params, variation.limits);
  if (params.rows == 0) return;
  std::vector<unsigned long long> words(2 * plan.blocks);
  const RowLaunch launch = [&](alr_fast::RowLossParams params, bool is_counted) {
    if (variation.finish == alr_fast::Finish::kPolled) params.polled_words = words.data();
    if (!alr_fast::set_finish(plan, variation.finish, params, variation.limits))
      throw cuda_shim::Error("the batch cannot be finished in this way");
    run_planned(params, plan, is_counted);
  };
  const RowLaunch store_groups = [&](const alr_fast::RowLossParams& params, bool is_counted) {
    run_planned(params, alr_fast::plan_of_storing(plan), is_counted);
  };
  run_row_loss_by(params, launch, store_groups);
  if (std::any_of(words.begin(), words.end(), [](auto word) { return word != 0; }))
    throw cuda_shim::Error("the polled words are not 0 after the call");
}

// As launch.cu does it.
void run_row_loss_by(const alr_fast::RowLossParams& ungrouped, const RowLaunch& launch,
                     const RowLaunch& store_groups) {
  alr_fast::RowLossParams params = ungrouped;
  alr_fast::CallCounters counters = {0, 0};
  params.counters = &counters;
  const int64_t bytes = alr_fast::place_groups(params, nullptr, &params.groups).all;
  // What an earlier call may have left: a row.
  std::vector<int32_t> memory(bytes / sizeof(int32_t), static_cast<int32_t>(params.rows));
  const int64_t zeroed =
      alr_fast::place_groups(params, bytes > 0 ? memory.data() : nullptr, &params.groups).zeroed;
  std::fill_n(memory.begin(), zeroed / sizeof(int32_t), 0);
  const bool is_counted = alr_fast::needs_prepare(params);
  if (is_counted)
    run_by_row(alr_fast::prepare_rows_kernel, params,
               std::min(params.rows, variation.most_prepare_threads),
               alr_fast::kPrepareSharedMemory);
  launch(params, is_counted);
  if (alr_fast::needs_groups(params)) {
    store_groups(alr_fast::params_of_storing(params), false);
    if (params.stats_class != nullptr)
      run_by_row(alr_fast::share_class_after_kernel, params, params.rows, 0);
  }
  if (counters.arrived != 0 || counters.counted != 0)
    throw cuda_shim::Error("the counters of the call are not 0 after it");
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
