#include <limits>
#include <map>
#include <mutex>
#include <stdexcept>
#include <string>
#include <utility>

#include "dispatch.cuh"
#include "launch.cuh"
#include "launch.h"
#include "prepare.cuh"

namespace alr_fast {
namespace {

template <class... Expected, class... Args>
cudaError_t launch_kernel(void (*kernel)(Expected...), dim3 grid, dim3 block, int shared_memory,
                          cudaStream_t stream, Args... args) {
  cudaLaunchConfig_t config = {};
  config.gridDim = grid;
  config.blockDim = block;
  config.dynamicSmemBytes = shared_memory;
  config.stream = stream;
  return cudaLaunchKernelEx(&config, kernel, static_cast<Expected>(args)...);
}

cudaError_t launch_prepare(const RowLossParams& params, const GroupScratch& scratch,
                           cudaStream_t stream) {
  const auto blocks =
      static_cast<unsigned>((params.rows + kPrepareRowsPerBlock - 1) / kPrepareRowsPerBlock);
  return launch_kernel(prepare_rows_kernel, dim3(blocks), dim3(kPrepareThreads),
                       kPrepareSharedMemory, stream, params, scratch.next_in_group,
                       scratch.first_in_group, scratch.chain);
}

// The driver has these attributes cached: no call waits for the device.
cudaError_t current_device(Device& device) {
  int number = 0, major = 0, has_clusters = 0;
  cudaError_t error = cudaGetDevice(&number);
  const auto read = [&](int& value, cudaDeviceAttr attribute) {
    if (error == cudaSuccess) error = cudaDeviceGetAttribute(&value, attribute, number);
  };
  read(device.multiprocessors, cudaDevAttrMultiProcessorCount);
  read(device.limits.shared_memory, cudaDevAttrMaxSharedMemoryPerBlockOptin);
  read(has_clusters, cudaDevAttrClusterLaunch);
  read(major, cudaDevAttrComputeCapabilityMajor);
  // Only data centre GPUs have clusters above the portable size.
  device.limits.cluster_size = !has_clusters               ? 1
                               : major == 9 || major == 10 ? kMaxClusterBlocks
                                                           : kPortableClusterBlocks;
  return error;
}

cudaError_t launch_planned(const RowLossParams& params, const Device& device, bool is_counted,
                           cudaStream_t stream) {
  const LaunchPlan plan = launch_plan(params, device.limits);
  switch (params.logits_dtype) {
    case DType::kFloat32:
      return launch_row_loss_float32(params, plan, device, is_counted, stream);
    case DType::kFloat16:
      return launch_row_loss_float16(params, plan, device, is_counted, stream);
    case DType::kBFloat16:
      return launch_row_loss_bfloat16(params, plan, device, is_counted, stream);
    case DType::kFloat64:
      break;  // launch_plan has thrown
  }
  return cudaErrorInvalidValue;
}

// Lazy loading and set-up at the first call are allowed while a graph is captured.
class RelaxedCapture {
 public:
  RelaxedCapture() { cudaThreadExchangeStreamCaptureMode(&mode_); }
  ~RelaxedCapture() { cudaThreadExchangeStreamCaptureMode(&mode_); }
  RelaxedCapture(const RelaxedCapture&) = delete;

 private:
  cudaStreamCaptureMode mode_ = cudaStreamCaptureModeRelaxed;
};

constexpr int kStatusSlots = 4096;
__device__ int64_t status_slots[kStatusSlots][kStatusSize];  // 0 when the library is loaded

}  // namespace

cudaError_t status_of_stream(cudaStream_t stream, int device, int64_t** status) {
  static std::mutex mutex;
  static std::map<std::pair<int, cudaStream_t>, int64_t*> of_stream;
  static std::map<int, int> taken;  // slots in use per device
  const RelaxedCapture relaxed;
  *status = nullptr;
  cudaStreamCaptureStatus capture = cudaStreamCaptureStatusNone;
  cudaError_t error = cudaStreamIsCapturing(stream, &capture);
  if (error != cudaSuccess) return error;
  const bool is_captured = capture != cudaStreamCaptureStatusNone;
  const std::lock_guard<std::mutex> lock(mutex);
  if (!is_captured) {
    const auto found = of_stream.find({device, stream});
    if (found != of_stream.end()) {
      *status = found->second;
      return cudaSuccess;
    }
  }
  int& next = taken[device];
  if (next == kStatusSlots) return cudaSuccess;
  void* slots = nullptr;
  error = cudaGetSymbolAddress(&slots, status_slots);
  if (error != cudaSuccess) return error;
  *status = static_cast<int64_t*>(slots) + int64_t{next++} * kStatusSize;
  if (!is_captured) of_stream[{device, stream}] = *status;
  return cudaSuccess;
}

cudaError_t launch_row_loss(const RowLossParams& ungrouped, const GroupScratch& scratch,
                            cudaStream_t stream) {
  RowLossParams params = ungrouped;
  params.next_in_group = nullptr;
  params.first_in_group = nullptr;
  launch_plan(params);  // throws before anything is launched
  if (params.rows == 0) return cudaSuccess;
  const RelaxedCapture relaxed;
  Device device;
  cudaError_t error = current_device(device);
  if (error != cudaSuccess) return error;
  const bool is_grouped = needs_groups(params);
  if (is_grouped && params.rows > std::numeric_limits<int32_t>::max())
    throw std::invalid_argument("rows is " + std::to_string(params.rows) +
                                ": beyond 2147483647 every index must occur once, and be promised "
                                "to by unique_index=True");
  const bool is_counted = is_grouped || needs_count_before(params);
  if (is_counted) {
    error = launch_prepare(params, is_grouped ? scratch : GroupScratch(), stream);
    if (error != cudaSuccess) return error;
  }
  if (is_grouped) {
    params.next_in_group = scratch.next_in_group;
    params.first_in_group = scratch.first_in_group;
  }
  error = launch_planned(params, device, is_counted, stream);
  // No room for such a cluster (for example in a MIG slice), or no code for clusters.
  while ((error == cudaErrorInvalidClusterSize || error == cudaErrorLaunchOutOfResources) &&
         device.limits.cluster_size > 1) {
    cudaGetLastError();
    device.limits.cluster_size /= 2;
    error = launch_planned(params, device, is_counted, stream);
  }
  if (error != cudaSuccess && is_counted)  // the next call must not find this count
    cudaMemsetAsync(params.status + kStatusCounted, 0, sizeof(int64_t), stream);
  return error;
}

cudaError_t launch_scale_grad(const ScaleGradParams& params, cudaStream_t stream) {
  if (params.rows == 0) return cudaSuccess;
  const RelaxedCapture relaxed;
  const ScaleGradPlan plan = scale_grad_plan(params);
  const auto launch = [&](auto* kernel, const ScaleGradPlan& plan) {
    return launch_kernel(kernel, dim3(plan.row_blocks, plan.column_blocks),
                         dim3(plan.threads_per_row, plan.rows_per_block), 0, stream, plan.params);
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
