// The library of candidates for benchmarks/tournament/library.py, which has the same types.

#include <cuda_runtime.h>

#include <cstdint>
#include <exception>
#include <stdexcept>
#include <string>
#include <vector>

#include "../duplicates.h"
#include "../prepare.cuh"
#include "candidates.cuh"
#include "launch_candidate.h"

namespace alr_fast {

// A step of training: the mean loss of distinct rows, their gradient, the new bank rows.
struct CandidateCall {
  int64_t rows, classes, bank_rows;
  int64_t is_bfloat16;  // logits, bank and gradient; else float32
  int64_t arithmetic;   // Arithmetic
  int64_t finish;       // Finish
  int64_t any_index;    // whether equal indices are looked for
  double momentum, entropy_weight;
  const void* logits;    // [rows, classes]
  void* bank;            // [bank_rows, classes]
  const int64_t* index;  // [rows]
  void* grad;            // [rows, classes]
  void* loss;            // [1] float
  void* grad_scale;      // [1] float
  void* partials;        // row_loss_size floats
  void* counters;        // CallCounters, 0
  void* groups;          // group_bytes, with any_index
  void* polled_words;    // 2 * kMaxPolledBlocks words, 0
  int64_t partials_bytes, group_bytes;
  cudaStream_t stream;
};

namespace {

RowLossParams params_of(const CandidateCall& call) {
  RowLossParams p;
  const DType dtype = call.is_bfloat16 ? DType::kBFloat16 : DType::kFloat32;
  p.logits = call.logits;
  p.logits_stride = call.classes;
  p.logits_dtype = dtype;
  p.rows = call.rows;
  p.classes = call.classes;
  p.target.table = call.bank;
  p.target.stride = call.classes;
  p.target.dtype = dtype;
  p.target.size = call.bank_rows;
  p.index.data = call.index;
  p.unique_index = !call.any_index;
  p.momentum = call.momentum;
  p.entropy_weight = call.entropy_weight;
  p.update = true;
  p.reduction = Reduction::kMean;
  p.grad_mode = GradMode::kPerRow;
  p.stored_scale = 1.0 / static_cast<double>(call.rows);
  p.row_loss = call.partials;
  p.loss = call.loss;
  p.grad_logits = call.grad;
  p.grad_scale = call.grad_scale;
  p.counters = static_cast<CallCounters*>(call.counters);
  p.polled_words = static_cast<unsigned long long*>(call.polled_words);
  return p;
}

// The pre-pass of large batches, as launch.cu has it.
cudaError_t prepare(const RowLossParams& params, const CandidateCall& call, int64_t zeroed) {
  const cudaError_t error = cudaMemsetAsync(call.groups, 0, zeroed, call.stream);
  if (error != cudaSuccess) return error;
  const auto blocks = static_cast<unsigned>((params.rows + kPrepareThreads - 1) / kPrepareThreads);
  prepare_rows_kernel<<<blocks, kPrepareThreads, kPrepareSharedMemory, call.stream>>>(params);
  return cudaGetLastError();
}

cudaError_t launch(const TableEntry& entry, const CandidateCall& call) {
  RowLossParams params = params_of(call);
  const GroupBytes bytes = place_groups(params, call.groups, &params.groups);
  constexpr int64_t kFloatBytes = sizeof(float);
  if (bytes.all > call.group_bytes || row_loss_size(params) * kFloatBytes > call.partials_bytes)
    return cudaErrorInvalidValue;
  Device device;
  cudaError_t error = cudaGetDevice(&device.number);
  if (error == cudaSuccess)
    error = cudaDeviceGetAttribute(&device.multiprocessors, cudaDevAttrMultiProcessorCount,
                                   device.number);
  if (error == cudaSuccess)
    error = cudaDeviceGetAttribute(&device.limits.shared_memory,
                                   cudaDevAttrMaxSharedMemoryPerBlockOptin, device.number);
  if (error != cudaSuccess) return error;
  LaunchPlan plan = launch_plan(entry, params, device.limits);
  const Finish finish = static_cast<Finish>(call.finish);
  if (!has_candidate(plan.regime, finish) || !set_finish(plan, finish, params, device.limits))
    throw std::invalid_argument("not for this batch");
  const bool is_counted = needs_prepare(params);
  if (is_counted) error = prepare(params, call, bytes.zeroed);
  if (error != cudaSuccess) return error;
  // Arithmetic, then the other ways to finish a batch.
  constexpr decltype(&launch_candidate_float32_kWhole_kArrivals) kLaunchers[2][5] = {
      {launch_candidate_float32_kWhole_kArrivals,
       launch_candidate_float32_kPlainExponential_kArrivals,
       launch_candidate_float32_kCopy_kArrivals, launch_candidate_float32_kWhole_kCluster,
       launch_candidate_float32_kWhole_kPolled},
      {launch_candidate_bfloat16_kWhole_kArrivals,
       launch_candidate_bfloat16_kPlainExponential_kArrivals,
       launch_candidate_bfloat16_kCopy_kArrivals, launch_candidate_bfloat16_kWhole_kCluster,
       launch_candidate_bfloat16_kWhole_kPolled}};
  const int64_t variant = call.finish == 0 ? call.arithmetic : 2 + call.finish;
  return kLaunchers[call.is_bfloat16][variant](params, plan, device, is_counted, call.stream);
}

}  // namespace
}  // namespace alr_fast

#define ALR_EXPORTED extern "C" __attribute__((visibility("default")))

// A line for each candidate: regime, blocks that share a row, columns that these hold.
ALR_EXPORTED const char* alr_candidates() {
  static const std::string lines = [] {
    std::string text;
    for (const alr_fast::TableEntry& entry : alr_fast::candidates())
      text += std::string(alr_fast::shape_of(entry.regime).name) + " " +
              std::to_string(entry.blocks_per_row) + " " + std::to_string(entry.max_classes) + "\n";
    return text;
  }();
  return lines.c_str();
}

// Launches the candidate of a line; null, or what is wrong.
ALR_EXPORTED const char* alr_launch_candidate(int line, const alr_fast::CandidateCall* call) {
  static const std::vector<alr_fast::TableEntry> all = alr_fast::candidates();
  static std::string message;
  try {
    const cudaError_t error = alr_fast::launch(all.at(line), *call);
    if (error == cudaSuccess) return nullptr;
    cudaGetLastError();  // the next call does not find it
    message = cudaGetErrorString(error);
  } catch (const std::exception& error) {
    message = error.what();
  }
  return message.c_str();
}
