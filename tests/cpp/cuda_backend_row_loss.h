// The body of the cuda_backend_*.cpp files of one type of logits.
#pragma once

#include <algorithm>
#include <stdexcept>
#include <type_traits>

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
  launch.reverse_threads = variation.reverse_threads;
  launch.reverse_blocks = variation.reverse_blocks;
  launch.newest_first = variation.newest_first;
  launch.delivery = variation.delivery;
  launch.seed = variation.seed;
  launch.filling = variation.filling;
  return launch;
}

// Called by the dispatch of csrc/cuda with the kernel that the plan names.
inline auto launcher(const alr_fast::RowLossParams& params, bool is_counted) {
  return [&params, is_counted](auto kernel, const alr_fast::LaunchPlan& plan) {
    using Traits = typename decltype(kernel)::Traits;
    constexpr bool kAny = std::is_same_v<typename Traits::Target, alr_fast::AnyTarget>;
    if (plan.vector_width != Traits::kVector || plan.has_extras != Traits::kExtras ||
        plan.any_target != kAny)
      throw cuda_shim::Error("the plan names another kernel");
    const int64_t resident = int64_t{variation.resident_rows} * plan.blocks_per_row;
    cuda_shim::Launch launch = shim_launch(static_cast<unsigned>(std::min(plan.blocks, resident)),
                                           plan.threads_per_block, plan.shared_memory);
    // Blocks that wait for each other run at the same time.
    launch.cluster = plan.finish == alr_fast::Finish::kPolled ? launch.grid.x : plan.cluster_size();
    cuda_shim::run(launch, decltype(kernel)::kPointer, params,
                   alr_fast::row_launch(params, plan, is_counted));
  };
}

template <class Logits>
void run_row_loss_of(const alr_fast::RowLossParams& params, const alr_fast::LaunchPlan& plan,
                     bool is_counted) {
  alr_fast::dispatch_row_loss<Logits>(params, plan, launcher(params, is_counted));
}

// The same, which compiles only these kernels of all that the dispatch may choose. Others throw
// std::logic_error, which no check takes for the error of a kernel.
template <class... Kernels, class Launch>
auto only(const Launch& launch) {
  return [launch](auto kernel, const alr_fast::LaunchPlan& plan) {
    if constexpr ((std::is_same_v<decltype(kernel), Kernels> || ...)) {
      launch(kernel, plan);
    } else {
      throw std::logic_error("not compiled here");
    }
  };
}

}  // namespace test
