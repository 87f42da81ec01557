#include <atomic>
#include <cstdint>

#include "dispatch.cuh"
#include "launch.h"
#include "launch_row_loss.h"
#include "prepare.cuh"
#include "slots.h"

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

// A thread for each row.
cudaError_t launch_by_row(void (*kernel)(RowLossParams), const RowLossParams& params,
                          int shared_memory, cudaStream_t stream) {
  const int64_t blocks = (params.rows + kPrepareThreads - 1) / kPrepareThreads;
  return launch_kernel(kernel, dim3(static_cast<unsigned>(blocks)), dim3(kPrepareThreads),
                       shared_memory, stream, params);
}

// Attributes do not change while a process runs: they are asked for once for the first devices.
cudaError_t current_device(Device& device) {
  struct Kept {
    int32_t multiprocessors, cluster_size;
  };
  static std::atomic<Kept> known[16];
  static_assert(std::atomic<Kept>::is_always_lock_free, "one word");
  cudaError_t error = cudaGetDevice(&device.number);
  if (error != cudaSuccess) return error;
  const bool is_kept = device.number < 16;
  if (is_kept) {
    const Kept kept = known[device.number].load(std::memory_order_relaxed);
    device.multiprocessors = kept.multiprocessors;
    device.limits.cluster_size = kept.cluster_size;
    if (kept.multiprocessors > 0) return cudaSuccess;
  }
  int major = 0, has_clusters = 0;
  const auto read = [&](int& value, cudaDeviceAttr attribute) {
    if (error == cudaSuccess) error = cudaDeviceGetAttribute(&value, attribute, device.number);
  };
  read(device.multiprocessors, cudaDevAttrMultiProcessorCount);
  read(has_clusters, cudaDevAttrClusterLaunch);
  read(major, cudaDevAttrComputeCapabilityMajor);
  // Only data centre GPUs have clusters above the portable size.
  device.limits.cluster_size = !has_clusters               ? 1
                               : major == 9 || major == 10 ? kMaxClusterBlocks
                                                           : kPortableClusterBlocks;
  if (error == cudaSuccess && is_kept)
    known[device.number].store({device.multiprocessors, device.limits.cluster_size},
                               std::memory_order_relaxed);
  return error;
}

cudaError_t launch_planned(const RowLossParams& params, const LaunchPlan& plan,
                           const Device& device, bool is_counted, cudaStream_t stream) {
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

// The counters of all calls on one device, by slot; 0 when the library is loaded.
constexpr int kSlotsInTurn = 65536;
constexpr int kKeptSlots = 16384;
__device__ CallCounters call_counters[kSlotsInTurn + kKeptSlots];

// The first of them on the current device. The runtime looks the address up under a lock, so it is
// kept for the first devices.
cudaError_t counters_on_device(int device, CallCounters** first) {
  static std::atomic<CallCounters*> known[16];
  const bool is_kept = device < 16;
  if (is_kept) *first = known[device].load(std::memory_order_relaxed);
  if (*first != nullptr) return cudaSuccess;
  void* address = nullptr;
  const cudaError_t error = cudaGetSymbolAddress(&address, call_counters);
  *first = static_cast<CallCounters*>(address);
  if (error == cudaSuccess && is_kept) known[device].store(*first, std::memory_order_relaxed);
  return error;
}

// For all devices: a slot has counters on each of them. Never destroyed, since graphs may give
// slots back while the process ends.
Slots& slots() {
  static Slots& slots = *new Slots(kSlotsInTurn, kKeptSlots);
  return slots;
}

// Called by the driver when the last of a graph and its executable copies is gone. The slot's
// number is the pointer itself.
void CUDART_CB give_back_slot(void* slot) {
  slots().give_back(static_cast<int>(reinterpret_cast<intptr_t>(slot)));
}

// A slot that is given back when the graph is destroyed.
cudaError_t slot_of_graph(cudaGraph_t graph, int* slot) {
  *slot = slots().keep();
  if (*slot == Slots::kNone) return cudaSuccess;
  cudaUserObject_t owner = nullptr;
  cudaError_t error =
      cudaUserObjectCreate(&owner, reinterpret_cast<void*>(static_cast<intptr_t>(*slot)),
                           give_back_slot, 1, cudaUserObjectNoDestructorSync);
  if (error != cudaSuccess) {
    slots().give_back(*slot);
    return error;
  }
  error = cudaGraphRetainUserObject(graph, owner, 1, cudaGraphUserObjectMove);
  if (error != cudaSuccess) cudaUserObjectRelease(owner, 1);  // gives the slot back
  return error;
}

cudaError_t graph_of_capture(cudaStream_t stream, cudaGraph_t* graph) {
  cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
  *graph = nullptr;
#if CUDART_VERSION >= 13000
  return cudaStreamGetCaptureInfo(stream, &status, nullptr, graph);
#else
  return cudaStreamGetCaptureInfo_v2(stream, &status, nullptr, graph);
#endif
}

LaunchPlan plan_of(const RowLossParams& params, const DeviceLimits& limits) {
  LaunchPlan plan = launch_plan(params, limits);
  if (has_tiny_finish(plan.regime)) set_finish(plan, kTinyFinish, params, limits);
  return plan;
}

// The pre-pass and the memory of groups, before the row kernel.
cudaError_t prepare(const RowLossParams& params, int64_t zeroed_bytes, void* group_memory,
                    cudaStream_t stream) {
  if (!needs_prepare(params)) return cudaSuccess;
  if (zeroed_bytes > 0) {
    const cudaError_t error = cudaMemsetAsync(group_memory, 0, zeroed_bytes, stream);
    if (error != cudaSuccess) return error;
  }
  return launch_by_row(prepare_rows_kernel, params, kPrepareSharedMemory, stream);
}

// Stores the rows that the row kernel has left to it, see duplicates.cuh.
cudaError_t store_groups(const RowLossParams& params, const LaunchPlan& plan, const Device& device,
                         cudaStream_t stream) {
  const cudaError_t error = launch_planned(params_of_storing(params), plan_of_storing(plan), device,
                                           /*is_counted=*/false, stream);
  if (error != cudaSuccess || params.stats_class == nullptr) return error;
  return launch_by_row(share_class_after_kernel, params, 0, stream);
}

}  // namespace

cudaError_t counters_of_call(cudaStream_t stream, int device, CallCounters** counters) {
  const RelaxedCapture relaxed;
  *counters = nullptr;
  CallCounters* first = nullptr;
  cudaError_t error = counters_on_device(device, &first);
  if (error != cudaSuccess) return error;
  cudaGraph_t graph = nullptr;
  error = graph_of_capture(stream, &graph);
  if (error != cudaSuccess) return error;
  int slot = Slots::kNone;
  if (graph == nullptr) {
    slot = slots().next();
  } else {
    error = slot_of_graph(graph, &slot);
  }
  if (error == cudaSuccess && slot != Slots::kNone) *counters = first + slot;
  return error;
}

cudaError_t launch_row_loss(const RowLossParams& ungrouped, void* group_memory,
                            cudaStream_t stream) {
  RowLossParams params = ungrouped;
  launch_plan(params);  // throws before anything is launched
  if (params.rows == 0) return cudaSuccess;
  const GroupBytes bytes = place_groups(params, group_memory, &params.groups);
  const RelaxedCapture relaxed;
  Device device;
  cudaError_t error = current_device(device);
  if (error != cudaSuccess) return error;
  error = prepare(params, bytes.zeroed, group_memory, stream);
  if (error != cudaSuccess) return error;
  const bool is_counted = needs_prepare(params);
  LaunchPlan plan = plan_of(params, device.limits);
  error = launch_planned(params, plan, device, is_counted, stream);
  // No room for such a cluster (for example in a MIG slice), or no code for clusters.
  while ((error == cudaErrorInvalidClusterSize || error == cudaErrorLaunchOutOfResources) &&
         device.limits.cluster_size > 1) {
    cudaGetLastError();
    device.limits.cluster_size /= 2;
    plan = plan_of(params, device.limits);
    error = launch_planned(params, plan, device, is_counted, stream);
  }
  if (error != cudaSuccess) {
    if (is_counted)  // the next call with these counters must not find this count
      cudaMemsetAsync(params.counters, 0, sizeof(CallCounters), stream);
    return error;
  }
  return needs_groups(params) ? store_groups(params, plan, device, stream) : cudaSuccess;
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
