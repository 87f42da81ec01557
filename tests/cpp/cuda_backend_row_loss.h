// The body of the cuda_backend_*.cpp files of one type of logits.
#pragma once

#include "cuda_shim.h"
//
#include "cuda/dispatch.cuh"
#include "cuda_backend.h"

namespace test {

inline cuda_shim::Launch shim_launch(unsigned blocks, unsigned threads, size_t shared_bytes) {
  cuda_shim::Launch launch;
  launch.grid.x = blocks;
  launch.block.x = threads;
  launch.shared_bytes = shared_bytes;
  launch.shared = alr_fast::reduction_slots;
  launch.shared_capacity = 64 * sizeof(alr_fast::ReductionSlot);
  launch.reverse_threads = order.reverse_threads;
  launch.reverse_blocks = order.reverse_blocks;
  launch.newest_first = order.newest_first;
  return launch;
}

template <class Logits>
void run_row_loss_of(const alr_fast::RowLossParams& params, const alr_fast::LaunchPlan& plan,
                     const int64_t* counted_rows) {
  alr_fast::dispatch_row_loss<Logits>(params, plan, [&](auto* kernel, const auto& plan) {
    cuda_shim::run(
        shim_launch(static_cast<unsigned>(plan.blocks), plan.threads_per_block, plan.shared_memory),
        kernel, params, counted_rows);
  });
}

}  // namespace test
