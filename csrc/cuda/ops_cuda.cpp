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

Tensor scratch(const Tensor& like, int32_t dtype, int64_t size) {
  return new_tensor(like, dtype, &size, 1);
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
    Tensor status, lists;
    if (params.status == nullptr) {
      STD_CUDA_CHECK(status_of_stream(stream, logits.get_device_index(), &params.status));
      if (params.status == nullptr) {  // too many streams and captured calls
        status = scratch(logits, aoti_torch_dtype_int64(), kStatusSize);
        params.status = static_cast<int64_t*>(status.data_ptr());
        STD_CUDA_CHECK(cudaMemsetAsync(params.status, 0, kStatusSize * sizeof(int64_t), stream));
      }
    }
    GroupScratch groups;
    if (needs_groups(params)) {
      const int64_t bytes = params.rows * (2 * sizeof(int32_t) + sizeof(uint8_t));
      lists = scratch(logits, aoti_torch_dtype_uint8(), bytes);
      groups.next_in_group = static_cast<int32_t*>(lists.data_ptr());
      groups.chain = groups.next_in_group + params.rows;
      groups.first_in_group = reinterpret_cast<uint8_t*>(groups.chain + params.rows);
    }
    try {
      STD_CUDA_CHECK(launch_row_loss(params, groups, stream));
    } catch (const std::invalid_argument& error) {
      throw_invalid(error.what());  // too many classes; the same error type for every torch
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
