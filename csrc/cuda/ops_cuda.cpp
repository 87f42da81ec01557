// The operators on CUDA, in a separate library: it links to libtorch_cuda and is loaded only if
// torch has CUDA. The schemas are in ops.cpp.

#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/macros.h>

#include "../ops.h"
#include "launch.h"

namespace alr_fast {
namespace {

cudaStream_t current_stream(const Tensor& t) {
  void* stream = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(t.get_device_index(), &stream));
  return static_cast<cudaStream_t>(stream);
}

Tensor scratch(const Tensor& like, int64_t bytes) {
  return new_tensor(like, aoti_torch_dtype_uint8(), &bytes, 1);
}

struct CudaBackend {
  static int64_t row_loss_size(const RowLossParams& params) {
    return alr_fast::row_loss_size(params);
  }

  // A table in pinned host memory is read and written by the kernel across the bus.
  static void check_table_device(const Tensor& logits, const Tensor& table, const char* name) {
    if (same_device(logits, table)) return;
    const torch::stable::accelerator::DeviceGuard guard(logits.get_device_index());
    cudaPointerAttributes attributes{};
    const bool known = cudaPointerGetAttributes(&attributes, table.data_ptr()) == cudaSuccess;
    if (!known) cudaGetLastError();  // clear the error, or the next launch would report it
    ALR_CHECK(
        table.is_cpu() && known && attributes.type == cudaMemoryTypeHost, name,
        " is on another device than the logits: move it there, or into pinned host memory with "
        ".pin_memory()");
  }

  static void row_loss(RowLossParams params, const Tensor& logits) {
    const torch::stable::accelerator::DeviceGuard guard(logits.get_device_index());
    const cudaStream_t stream = current_stream(logits);
    // Scratch memory goes back to torch's allocator when this returns, which reuses it in stream
    // order.
    Tensor counters, groups;
    STD_CUDA_CHECK(counters_of_call(stream, logits.get_device_index(), &params.counters));
    if (params.counters == nullptr) {  // too many captured calls
      counters = scratch(logits, sizeof(CallCounters));
      params.counters = static_cast<CallCounters*>(counters.data_ptr());
      STD_CUDA_CHECK(cudaMemsetAsync(params.counters, 0, sizeof(CallCounters), stream));
    }
    try {
      GroupMemory unplaced;
      const int64_t bytes = place_groups(params, nullptr, &unplaced).all;
      if (bytes > 0) groups = scratch(logits, bytes);
      STD_CUDA_CHECK(launch_row_loss(params, bytes > 0 ? groups.data_ptr() : nullptr, stream));
    } catch (const std::invalid_argument& error) {
      throw_invalid(error.what());  // too many classes or rows; the same error type for every torch
    }
  }

  static void scale_grad(const ScaleGradParams& params, const Tensor& grad_rows) {
    const torch::stable::accelerator::DeviceGuard guard(grad_rows.get_device_index());
    STD_CUDA_CHECK(launch_scale_grad(params, current_stream(grad_rows)));
  }

  static int64_t capture_id(const Tensor& on) {
    cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
    unsigned long long id = 0;
    STD_CUDA_CHECK(cudaStreamGetCaptureInfo(current_stream(on), &status, &id));
    return status == cudaStreamCaptureStatusNone ? 0 : static_cast<int64_t>(id);
  }
};

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(alr_fast, CUDA, m) { ALR_REGISTER_OPS(m, CudaBackend); }

}  // namespace alr_fast
