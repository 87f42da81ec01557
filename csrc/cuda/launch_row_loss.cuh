// The body of the row_loss_*.cu files.
#pragma once

#include <algorithm>

#include "dispatch.cuh"
#include "launch.cuh"

namespace alr_fast {

// Sets the grid: one block per unit of work, or as many as the device holds at once if fewer.
template <class Kernel>
cudaError_t limit_to_resident(Kernel kernel, const LaunchPlan& plan, cudaLaunchConfig_t& config,
                              const Device& device) {
  int64_t resident = int64_t{device.multiprocessors} * plan.min_resident_blocks;
  if (plan.blocks_per_row > 1) {
    // Code for an older architecture, translated by the driver, has no clusters.
    cudaFuncAttributes attributes = {};
    cudaError_t error = cudaFuncGetAttributes(&attributes, kernel);
    if (error != cudaSuccess) return error;
    if (attributes.ptxVersion < 90) return cudaErrorInvalidClusterSize;
    int clusters = 0;
    error = cudaOccupancyMaxActiveClusters(&clusters, kernel, &config);
    if (error != cudaSuccess) return error;
    if (clusters == 0) return cudaErrorInvalidClusterSize;
    resident = int64_t{clusters} * plan.blocks_per_row;
  } else if (plan.blocks > resident || plan.regime == Regime::kShared) {
    int blocks = 0;
    const cudaError_t error = cudaOccupancyMaxActiveBlocksPerMultiprocessor(
        &blocks, kernel, plan.threads_per_block, plan.shared_memory);
    if (error != cudaSuccess) return error;
    resident = int64_t{device.multiprocessors} * std::max(blocks, 1);
  }
  resident = std::min(resident, kMaxResidentBlocks / plan.blocks_per_row * plan.blocks_per_row);
  config.gridDim = dim3(static_cast<unsigned>(std::min(plan.blocks, resident)));
  return cudaSuccess;
}

// Allows a kernel the shared memory and the cluster of its plan. Safe in concurrent host threads:
// all set the same values.
template <class Kernel>
cudaError_t allow(Kernel kernel, const LaunchPlan& plan, const Device& device) {
  if (plan.regime != Regime::kShared) return cudaSuccess;
  const auto* const function = reinterpret_cast<const void*>(kernel);
  cudaError_t error = cudaFuncSetAttribute(function, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                           device.limits.shared_memory);
  if (error == cudaSuccess)
    error = cudaFuncSetAttribute(function, cudaFuncAttributePreferredSharedMemoryCarveout,
                                 cudaSharedmemCarveoutMaxShared);
  if (error == cudaSuccess && plan.blocks_per_row > kPortableClusterBlocks)
    error = cudaFuncSetAttribute(function, cudaFuncAttributeNonPortableClusterSizeAllowed, 1);
  return error;
}

template <class Logits>
cudaError_t launch_row_loss_of(const RowLossParams& params, const LaunchPlan& plan,
                               const Device& device, bool is_counted, cudaStream_t stream) {
  return dispatch_row_loss<Logits>(params, plan, [&](auto kernel_type, const LaunchPlan& plan) {
    const auto kernel = decltype(kernel_type)::kPointer;
    cudaLaunchConfig_t config = {};
    config.gridDim = dim3(static_cast<unsigned>(plan.blocks_per_row));
    config.blockDim = dim3(plan.threads_per_block);
    config.dynamicSmemBytes = plan.shared_memory;
    config.stream = stream;
    cudaLaunchAttribute cluster = {};
    cluster.id = cudaLaunchAttributeClusterDimension;
    cluster.val.clusterDim = {static_cast<unsigned>(plan.blocks_per_row), 1, 1};
    if (plan.blocks_per_row > 1) {
      config.attrs = &cluster;
      config.numAttrs = 1;
    }
    cudaError_t error = allow(kernel, plan, device);
    if (error == cudaSuccess) error = limit_to_resident(kernel, plan, config, device);
    if (error != cudaSuccess) return error;
    return cudaLaunchKernelEx(&config, kernel, params, row_launch(params, plan, is_counted));
  });
}

}  // namespace alr_fast
