// Arguments of the kernels as plain structs: pointers, sizes, options. No tensors, no CUDA, no
// torch.
#pragma once

#include <cstdint>

// A function for host and device.
#if defined(__CUDACC__) || defined(ALR_FAST_DEVICE_CODE)
#define ALR_HD __host__ __device__ __forceinline__
#define ALR_HD_MEMBER __host__ __device__ __forceinline__
#else
// Forced inline: the same function compiled for another instruction set must not be picked by the
// linker.
#define ALR_HD static inline __attribute__((always_inline))
#define ALR_HD_MEMBER inline __attribute__((always_inline))
#endif

namespace alr_fast {

enum class DType : int32_t { kFloat32, kFloat16, kBFloat16, kFloat64 };

enum class Reduction : int32_t { kNone = 0, kMean = 1, kSum = 2 };

// Which gradient the forward pass writes.
enum class GradMode : int32_t {
  kNone = 0,  // none
  // Of the loss of each row, weighted, times stored_scale: for kMean that is 1 / B, for all rows,
  // and grad_scale is then B / valid rows, 1 if no row is ignored. float16: of the unweighted loss
  // of each row, times a power of two; see stores_plain_rows.
  kPerRow = 1,
  kFinal = 2,  // of the reduced, weighted loss
};

// Entries of the status tensor.
constexpr int kStatusNonFinite = 0;   // rows whose logits or loss are not finite
constexpr int kStatusOutOfRange = 1;  // rows whose index is beyond the table (CUDA only)
constexpr int kStatusWrongLabel = 2;  // rows with another label than the given one (CUDA only)
constexpr int kStatusSize = 3;

// Counters of one call of the CUDA kernels, in device memory; 0 before the call and after it.
struct CallCounters {
  unsigned long long arrived;  // blocks that have finished
  unsigned long long counted;  // rows that are not ignored, as the pre-pass counts them
};

// Device memory in which one call of the CUDA kernels notes the groups: the rows of a batch that
// share an index. One row of a group, any, names it. Null without groups; csrc/cuda/duplicates.h
// has the layout.
struct GroupMemory {
  int32_t* group_of = nullptr;    // [B] 1 + the name of a row's group; 0 if it is alone
  int32_t* last_row = nullptr;    // [B] by name: 1 + the last row that can be stored; 0 if none can
  int32_t* names = nullptr;       // of all groups, in any order; null in a small batch
  int32_t* num_groups = nullptr;  // [1]
  int32_t* claims = nullptr;  // hash table of the pre-pass: 1 + a row with that index; 0 if free
  uint32_t claim_mask = 0;    // entries of the hash table, a power of two, minus 1
};

// Source of the target rows. Without a table, row b is the smoothed one-hot row of a label:
// `on_target` at index[b], `off_target` elsewhere.
struct TargetParams {
  void* table = nullptr;  // [M, K], last dimension contiguous; written only with `update`
  int64_t stride = 0;     // elements from row to row
  DType dtype = DType::kFloat32;
  int64_t size = 0;  // M, or K without a table: indices lie in [0, size), negative ones are ignored
  double on_target = 1;
  double off_target = 0;
};

// [B] int64 or int32: an index or a label of each row.
struct BatchVector {
  const void* data = nullptr;
  bool is_int64 = true;
  int64_t stride = 1;

  ALR_HD_MEMBER int64_t operator[](int64_t b) const {
    const int64_t at = b * stride;
    return is_int64 ? static_cast<const int64_t*>(data)[at] : static_cast<const int32_t*>(data)[at];
  }
};

// One forward pass. "Acc" is float, or double for float64 logits.
struct RowLossParams {
  const void* logits = nullptr;  // [B, K], last dimension contiguous
  int64_t logits_stride = 0;     // elements from row to row
  DType logits_dtype = DType::kFloat32;
  int64_t rows = 0;     // B
  int64_t classes = 0;  // K

  TargetParams target;
  BatchVector index;  // selects the target row; null: row b of the table belongs to row b
  BatchVector other;  // labels with a table, sample indices without; null: unknown
  // [samples] the label that each sample came with, which the batch must agree with; null: no
  // check. With a table, `samples` is its size.
  const int32_t* given_labels = nullptr;
  int64_t samples = 0;
  bool unique_index = false;  // the caller promises that no index occurs twice

  // Batch rows that share an index form a group: all of them read the old table row, and the last
  // valid row in batch order is stored. On the CPU as lists, null if no index occurs twice or the
  // table is not updated:
  const int32_t* next_in_group = nullptr;   // [B] the next row with the same index, or -1
  const uint8_t* first_in_group = nullptr;  // [B] whether no earlier row has the same index
  // In the CUDA kernels:
  GroupMemory groups;
  bool stores_groups = false;  // this launch only stores the last row of each group

  double momentum = 1;        // a in t = a T + (1 - a) p
  double entropy_weight = 0;  // lambda
  bool update = false;        // table row = t
  Reduction reduction = Reduction::kMean;
  const void* row_weight = nullptr;  // [B] Acc, contiguous, or null
  GradMode grad_mode = GradMode::kNone;
  double stored_scale = 1;  // factor of a kPerRow gradient that is already applied

  void* row_loss = nullptr;  // [B] Acc; the result for kNone, scratch otherwise (CUDA needs another
                             // size for that, see row_loss_size)
  void* loss = nullptr;      // [1] Acc, for kMean and kSum
  void* grad_logits = nullptr;  // [B, K] of the logits' dtype, contiguous; null for kNone
  void* grad_scale = nullptr;   // [1] Acc: factor of a kPerRow gradient that is still to be applied

  int64_t* stats_class = nullptr;    // [3, B] predicted, class before, class after; or null
  float* stats_value = nullptr;      // [2, B] confidence, largest target; or null
  int64_t* status = nullptr;         // [kStatusSize] or null
  CallCounters* counters = nullptr;  // CUDA only, not null
  // With Finish::kPolled: two words a block, for this call alone; 0 before it and after it.
  unsigned long long* polled_words = nullptr;
  int64_t* rounding_state =
      nullptr;  // [2] seed, calls so far: stochastic rounding; null: to nearest
};

// The target row of batch row b: index[b], or b if there is no index; negative if the row is
// ignored, because its index or its label is.
ALR_HD int64_t index_at(const RowLossParams& p, int64_t b) {
  const int64_t i = p.index.data == nullptr ? b : p.index[b];
  return p.other.data != nullptr && p.other[b] < 0 ? -1 : i;
}

// Whether no row can be ignored.
ALR_HD bool keeps_all_rows(const RowLossParams& p) {
  return p.index.data == nullptr && p.other.data == nullptr;
}

// Sample and label of batch row b with target row i; only with given labels.
struct LabelledSample {
  int64_t sample, label;
};
ALR_HD LabelledSample labelled_sample(const RowLossParams& p, int64_t b, int64_t i) {
  const int64_t other = p.other[b];
  if (p.target.table != nullptr) return {i, other};
  return {other, i};
}

// Whether batch row b with target row i >= 0 is beyond the target rows or the samples.
ALR_HD bool is_out_of_range(const RowLossParams& p, int64_t b, int64_t i) {
  return i >= p.target.size ||
         (p.given_labels != nullptr && labelled_sample(p, b, i).sample >= p.samples);
}

// Whether the gradient's rows are stored without the row weights and without 1 / B: divided by the
// batch size, small float16 entries would be flushed to 0 before a gradient scaler's factor is
// applied.
ALR_HD bool stores_plain_rows(const RowLossParams& p) {
  return p.grad_mode == GradMode::kPerRow && p.logits_dtype == DType::kFloat16;
}

// Backward: out[b, k] = grad_rows[b, k] * grad_scale * grad_output[b] * row_weight[b].
struct ScaleGradParams {
  const void* grad_rows = nullptr;    // [B, K], contiguous
  void* out = nullptr;                // [B, K], contiguous; may be grad_rows
  DType dtype = DType::kFloat32;      // of both
  int64_t rows = 0;                   // B
  int64_t classes = 0;                // K
  const void* grad_scale = nullptr;   // [1] Acc, or null for 1
  const void* grad_output = nullptr;  // [B] or [1] Acc
  int64_t grad_output_stride = 0;     // elements from row to row; 0 for a scalar
  const void* row_weight = nullptr;   // [B] Acc or null
};

}  // namespace alr_fast
