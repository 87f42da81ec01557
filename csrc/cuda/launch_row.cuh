// Launches one instantiation of the row kernel on a device.
#pragma once

#include <cuda_runtime.h>

#include <algorithm>
#include <atomic>

#include "launch_row_loss.h"
#include "row_loss.cuh"

namespace alr_fast {

inline int log2_of(int power) { return power <= 1 ? 0 : 1 + log2_of(power / 2); }

// Blocks of a kernel that a device holds at once; asked for once, since the answer takes
// microseconds.
template <class Kernel>
class Residency {
 public:
  static cudaError_t get(const LaunchPlan& plan, const cudaLaunchConfig_t& config,
                         const Device& device, int64_t* blocks) {
    static std::atomic<int64_t> known[kDevices][kClusterSizes];  // 0: not yet
    const bool is_kept = device.number < kDevices;
    std::atomic<int64_t>* const place =
        is_kept ? &known[device.number][log2_of(plan.cluster_size())] : nullptr;
    *blocks = is_kept ? place->load(std::memory_order_relaxed) : 0;
    if (*blocks > 0) return cudaSuccess;
    const cudaError_t error = ask(plan, config, device, blocks);
    if (error == cudaSuccess && is_kept) place->store(*blocks, std::memory_order_relaxed);
    return error;
  }

 private:
  static constexpr int kDevices = 64;
  static constexpr int kSharedMemoryByDefault = 48 * 1024;  // above it a kernel must be allowed to
  static constexpr int kClusterSizes = 5;                   // 1 to 16 blocks
  static_assert(1 << (kClusterSizes - 1) == kMaxClusterBlocks, "powers of two");

  static cudaError_t ask(const LaunchPlan& plan, const cudaLaunchConfig_t& config,
                         const Device& device, int64_t* blocks) {
    constexpr auto kernel = Kernel::kPointer;
    // With the most shared memory that the indices of a batch may take, as it is asked for once.
    constexpr int kIndices = kRowsSeenByBlock * sizeof(int32_t);
    const int shared_memory = std::min(plan.shared_memory + kIndices, device.limits.shared_memory);
    int count = 0;
    cudaFuncAttributes attributes = {};
    cudaError_t error = cudaFuncGetAttributes(&attributes, kernel);
    if (error != cudaSuccess) return error;
    // Code for an older architecture, translated by the driver, has neither copies nor clusters.
    if (attributes.ptxVersion < 90 && Kernel::kHasBulkCopies) return cudaErrorNotSupported;
    if (attributes.ptxVersion < 90 && plan.cluster_size() > 1) return cudaErrorInvalidClusterSize;
    if (shared_memory > kSharedMemoryByDefault) {
      error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                   device.limits.shared_memory);
      if (error != cudaSuccess) return error;
    }
    if (plan.cluster_size() == 1) {
      error = cudaOccupancyMaxActiveBlocksPerMultiprocessor(&count, kernel, plan.threads_per_block,
                                                            shared_memory);
      *blocks = int64_t{device.multiprocessors} * std::max(count, 1);
      return error;
    }
    if (plan.cluster_size() > kPortableClusterBlocks) {
      error = cudaFuncSetAttribute(kernel, cudaFuncAttributeNonPortableClusterSizeAllowed, 1);
      if (error != cudaSuccess) return error;
    }
    error = cudaOccupancyMaxActiveClusters(&count, kernel, &config);
    if (error == cudaSuccess && count == 0) error = cudaErrorInvalidClusterSize;
    *blocks = int64_t{count} * plan.cluster_size();
    return error;
  }
};

template <class Kernel>
cudaError_t launch_row(const RowLossParams& params, const LaunchPlan& plan, const Device& device,
                       bool is_counted, cudaStream_t stream) {
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(static_cast<unsigned>(plan.cluster_size()));
  config.blockDim = dim3(plan.threads_per_block);
  config.dynamicSmemBytes = plan.shared_memory;
  config.stream = stream;
  cudaLaunchAttribute attributes[2] = {};
  config.attrs = attributes;
  if (plan.cluster_size() > 1) {
    cudaLaunchAttribute& cluster = attributes[config.numAttrs++];
    cluster.id = cudaLaunchAttributeClusterDimension;
    cluster.val.clusterDim = {static_cast<unsigned>(plan.cluster_size()), 1, 1};
  }
  int64_t resident = 0;
  const cudaError_t error = Residency<Kernel>::get(plan, config, device, &resident);
  if (error != cudaSuccess) return error;
  // One block per unit of work, or as many as the device holds at once if fewer.
  resident = std::min(resident, kMaxResidentBlocks / plan.blocks_per_row * plan.blocks_per_row);
  if (plan.starts_early) {
    cudaLaunchAttribute& early = attributes[config.numAttrs++];
    early.id = cudaLaunchAttributeProgrammaticStreamSerialization;
    early.val.programmaticStreamSerializationAllowed = 1;
  }
  config.gridDim = dim3(static_cast<unsigned>(std::min(plan.blocks, resident)));
  return cudaLaunchKernelEx(&config, Kernel::kPointer, params,
                            row_launch(params, plan, is_counted));
}

}  // namespace alr_fast
