// From tensors to RowLossParams: checks, allocation and the boxed functions, for any backend.
//
// Backend is a struct of static functions:
//   check_table_device(logits, table)     throws if the kernel cannot access the table
//   row_loss_size(params)                 elements of RowLossParams::row_loss
//   capture_id(tensor)                    see Ops::capture_id
//   row_loss(params, logits), scale_grad(params, grad_rows)     run the kernels; row_loss needs a
//   row
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <cmath>
#include <optional>
#include <sstream>
#include <stdexcept>
#include <string>
#include <tuple>

#include "alr_params.h"

namespace alr_fast {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using OptionalTensor = std::optional<Tensor>;
using Outputs = std::tuple<Tensor, Tensor, Tensor>;  // loss, grad_rows, grad_scale

// Becomes RuntimeError in Python under every version of torch, as for torch's own operators.
#define ALR_CHECK(condition, ...) \
  if (!(condition)) ::alr_fast::throw_invalid(__VA_ARGS__)

template <class... Parts>
[[noreturn]] void throw_invalid(const Parts&... parts) {
  std::ostringstream message;
  (message << ... << parts);
  throw std::runtime_error(message.str());
}

inline std::string shape_of(const Tensor& t) {
  std::string text = "[";
  for (int64_t d = 0; d < t.dim(); ++d) text += (d ? ", " : "") + std::to_string(t.size(d));
  return text + "]";
}

inline bool same_device(const Tensor& a, const Tensor& b) {
  return a.is_cpu() == b.is_cpu() && a.get_device_index() == b.get_device_index();
}

inline DType dtype_of(const Tensor& t, const char* name, bool allow_double) {
  switch (t.scalar_type()) {
    case ScalarType::Float:
      return DType::kFloat32;
    case ScalarType::Half:
      return DType::kFloat16;
    case ScalarType::BFloat16:
      return DType::kBFloat16;
    case ScalarType::Double:
      if (allow_double) return DType::kFloat64;
      [[fallthrough]];
    default:
      throw_invalid(name, " must be float32, float16 or bfloat16",
                    allow_double ? " (float64 too on the CPU)" : "",
                    ": convert it with .to(dtype)");
  }
}

inline void check_rows(const Tensor& t, const char* name) {
  ALR_CHECK(t.dim() == 2, name, " must have two dimensions [rows, classes], got ", shape_of(t));
  ALR_CHECK(t.size(1) >= 1, name, " must have at least one class, got ", shape_of(t));
  ALR_CHECK(t.size(1) == 1 || t.stride(1) == 1 || t.size(0) == 0, name,
            " must be contiguous in its last dimension: pass ", name, ".contiguous()");
}

inline void check_batch_vector(const Tensor& t, const Tensor& logits, const char* name) {
  ALR_CHECK(t.dim() == 1 && t.size(0) == logits.size(0), name, " must have shape [", logits.size(0),
            "], one entry for each row of the logits, got ", shape_of(t));
  ALR_CHECK(same_device(t, logits), name, " is on another device than the logits: pass ", name,
            ".to(logits.device)");
}

// Pointer to a tensor that the owner of the bank allocated and the operation writes.
inline int64_t* int64_data(const OptionalTensor& t, int64_t count, const Tensor& logits,
                           const char* name) {
  if (!t.has_value()) return nullptr;
  ALR_CHECK(t->scalar_type() == ScalarType::Long && t->numel() == count && t->is_contiguous() &&
                same_device(*t, logits),
            name, " must be a contiguous int64 tensor of ", count,
            " elements on the device of the logits");
  return static_cast<int64_t*>(t->data_ptr());
}

inline Tensor new_tensor(const Tensor& like, int32_t dtype, const int64_t* sizes, int64_t dims) {
  int64_t strides[2] = {1, 1};
  if (dims == 2) strides[0] = sizes[1];
  AtenTensorHandle handle = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(
      dims, sizes, strides, dtype,
      like.is_cpu() ? aoti_torch_device_type_cpu() : aoti_torch_device_type_cuda(),
      like.get_device_index(), &handle));
  return Tensor(handle);
}

inline int32_t dtype_code(const Tensor& t) {
  int32_t code = 0;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_dtype(t.get(), &code));
  return code;
}

// Power of two by which stored float16 gradients of single rows are multiplied, so that small
// entries are not flushed to 0 before the factor of a gradient scaler is applied. |dz| <= momentum
// * bound of the target part + |lambda| max |p (log p + H)|, and p H <= 0.7 + log(K) / 4 since H <=
// log 2 + (1 - p) log K.
inline double plain_grad_scale(double momentum, double entropy_weight, int64_t classes,
                               double target_bound) {
  const double entropy_bound = 1.1 + 0.25 * std::log(static_cast<double>(classes));
  const double bound = momentum * target_bound + std::abs(entropy_weight) * entropy_bound;
  return std::exp2(std::floor(std::log2(65504 / std::max(bound, 1.0))));
}

// Bounds of the target part of the gradient: momentum times 1 for a bank, 16 assumed for other
// tables.
constexpr double kBankGradBound = 1;
constexpr double kTableGradBound = 16;

inline int64_t bytes_of(DType dtype) {
  return dtype == DType::kFloat64 ? 8 : dtype == DType::kFloat32 ? 4 : 2;
}

// Bytes of a matrix: the first, the first after its last row, those of a row, and from row to row.
struct Extent {
  int64_t begin, end, row, stride;
  Extent(const void* data, int64_t rows, int64_t classes, int64_t row_stride, DType dtype)
      : begin(reinterpret_cast<int64_t>(data)),
        end(begin + ((rows - 1) * row_stride + classes) * bytes_of(dtype)),
        row(classes * bytes_of(dtype)),
        stride(row_stride * bytes_of(dtype)) {}
};

// Whether logits and table share memory; not if they are different columns of one matrix.
inline bool overlap(const RowLossParams& p) {
  if (p.rows == 0 || p.target.size == 0) return false;
  const Extent z(p.logits, p.rows, p.classes, p.logits_stride, p.logits_dtype);
  const Extent T(p.target.table, p.target.size, p.classes, p.target.stride, p.target.dtype);
  if (z.end <= T.begin || T.end <= z.begin) return false;
  if (z.stride != T.stride || z.stride == 0) return true;
  const int64_t apart = ((T.begin - z.begin) % z.stride + z.stride) % z.stride;
  return apart < z.row || apart + T.row > z.stride;
}

template <class Backend>
struct Ops {
  static Outputs alr_loss(const Tensor& logits, Tensor bank, const Tensor& index,
                          const OptionalTensor& labels, const OptionalTensor& given_labels,
                          const OptionalTensor& row_weight, const OptionalTensor& status,
                          const OptionalTensor& rounding_state, const OptionalTensor& stats_class,
                          const OptionalTensor& stats_value, double momentum, double entropy_weight,
                          int64_t reduction, bool unique_index, int64_t grad_mode) {
    RowLossParams p = params_of_logits(logits);
    set_table(p, logits, bank, "bank");
    ALR_CHECK(bank.size(0) <= 1 || bank.stride(0) >= bank.size(1),
              "bank rows overlap in memory: pass a bank that is not expanded");
    ALR_CHECK(!overlap(p),
              "logits and bank share memory, and the bank is written while the logits are read: "
              "pass logits.clone()");
    p.index = batch_vector(logits, index, "index");
    set_labels(p, logits, labels, given_labels);
    p.update = true;
    p.unique_index = unique_index;
    p.rounding_state = int64_data(rounding_state, 2, logits, "rounding_state");
    set_options(p, logits, row_weight, status, momentum, entropy_weight, reduction, grad_mode,
                kBankGradBound);
    set_stats(p, logits, stats_class, stats_value);
    return run(p, logits);
  }

  static Outputs soft_target_cross_entropy(
      const Tensor& logits, const Tensor& table, const OptionalTensor& index,
      const OptionalTensor& labels, const OptionalTensor& given_labels,
      const OptionalTensor& row_weight, const OptionalTensor& status,
      const OptionalTensor& stats_class, const OptionalTensor& stats_value, double momentum,
      double entropy_weight, int64_t reduction, int64_t grad_mode) {
    RowLossParams p = params_of_logits(logits);
    set_table(p, logits, table, "table");
    if (index.has_value()) {
      p.index = batch_vector(logits, *index, "index");
    } else {
      ALR_CHECK(table.size(0) == logits.size(0),
                "without an index the table must have one row for each of the ", logits.size(0),
                " rows of the logits, got ", shape_of(table));
    }
    set_labels(p, logits, labels, given_labels);
    set_options(p, logits, row_weight, status, momentum, entropy_weight, reduction, grad_mode,
                kTableGradBound);
    set_stats(p, logits, stats_class, stats_value);
    return run(p, logits);
  }

  static Outputs label_smoothing_cross_entropy(const Tensor& logits, const Tensor& labels,
                                               const OptionalTensor& index,
                                               const OptionalTensor& given_labels,
                                               const OptionalTensor& row_weight,
                                               const OptionalTensor& status, double smoothing,
                                               double entropy_weight, int64_t reduction,
                                               int64_t grad_mode) {
    RowLossParams p = params_of_logits(logits);
    ALR_CHECK(std::isfinite(smoothing), "smoothing must be finite, got ", smoothing);
    p.target.size = p.classes;
    p.target.off_target = smoothing / static_cast<double>(p.classes);
    p.target.on_target = 1 - smoothing + p.target.off_target;
    p.index = batch_vector(logits, labels, "labels");
    if (index.has_value()) p.other = batch_vector(logits, *index, "index");
    ALR_CHECK(index.has_value() || !given_labels.has_value(),
              "given_labels are compared with the labels by sample: pass index as well");
    set_given_labels(p, logits, given_labels);
    set_options(p, logits, row_weight, status, 1.0, entropy_weight, reduction, grad_mode,
                1 + std::abs(smoothing));
    return run(p, logits);
  }

  static Tensor scale_grad(const Tensor& grad_rows, const OptionalTensor& grad_scale,
                           const Tensor& grad_output, const OptionalTensor& row_weight) {
    ScaleGradParams p = params_of_grad(grad_rows, grad_scale, grad_output, row_weight);
    const int64_t sizes[2] = {p.rows, p.classes};
    Tensor out = new_tensor(grad_rows, dtype_code(grad_rows), sizes, 2);
    p.out = out.data_ptr();
    Backend::scale_grad(p, grad_rows);
    return out;
  }

  static void scale_grad_(Tensor grad_rows, const OptionalTensor& grad_scale,
                          const Tensor& grad_output, const OptionalTensor& row_weight) {
    ScaleGradParams p = params_of_grad(grad_rows, grad_scale, grad_output, row_weight);
    p.out = grad_rows.data_ptr();
    Backend::scale_grad(p, grad_rows);
  }

  // The CUDA graph that the current stream is captured into, another number for each capture; 0
  // without one.
  static int64_t capture_id(const Tensor& on) { return Backend::capture_id(on); }

 private:
  static ScaleGradParams params_of_grad(const Tensor& grad_rows, const OptionalTensor& grad_scale,
                                        const Tensor& grad_output,
                                        const OptionalTensor& row_weight) {
    ScaleGradParams p;
    check_rows(grad_rows, "grad_rows");
    p.dtype = dtype_of(grad_rows, "grad_rows", true);
    p.rows = grad_rows.size(0);
    p.classes = grad_rows.size(1);
    const ScalarType acc = p.dtype == DType::kFloat64 ? ScalarType::Double : ScalarType::Float;
    ALR_CHECK(grad_output.scalar_type() == acc, "grad_output must have the dtype of the loss");
    ALR_CHECK(!grad_scale.has_value() ||
                  (grad_scale->scalar_type() == acc && same_device(grad_rows, *grad_scale)),
              "grad_scale must be what the forward operator returned");
    ALR_CHECK(grad_output.dim() == 0 || (grad_output.dim() == 1 && grad_output.size(0) == p.rows),
              "grad_output must be a scalar or have shape [", p.rows, "], got ",
              shape_of(grad_output));
    ALR_CHECK(grad_rows.is_contiguous() && same_device(grad_rows, grad_output),
              "grad_rows must be contiguous and lie on the device of grad_output");
    p.grad_rows = grad_rows.data_ptr();
    p.grad_scale = grad_scale.has_value() ? grad_scale->data_ptr() : nullptr;
    p.grad_output = grad_output.data_ptr();
    p.grad_output_stride = grad_output.dim() == 0 ? 0 : grad_output.stride(0);
    p.row_weight = weight_data(row_weight, grad_rows, p.dtype);
    return p;
  }

  static RowLossParams params_of_logits(const Tensor& logits) {
    RowLossParams p;
    check_rows(logits, "logits");
    p.logits = logits.data_ptr();
    p.logits_dtype = dtype_of(logits, "logits", logits.is_cpu());
    p.rows = logits.size(0);
    p.classes = logits.size(1);
    p.logits_stride = logits.stride(0);
    return p;
  }

  static void set_table(RowLossParams& p, const Tensor& logits, const Tensor& table,
                        const char* name) {
    check_rows(table, name);
    ALR_CHECK(table.size(1) == p.classes, name, " has ", table.size(1),
              " classes, the logits have ", p.classes, ": both must be of the same classes");
    Backend::check_table_device(logits, table, name);
    p.target.table = table.data_ptr();
    p.target.dtype = dtype_of(table, name, false);
    p.target.stride = table.stride(0);
    p.target.size = table.size(0);
  }

  static BatchVector batch_vector(const Tensor& logits, const Tensor& t, const char* name) {
    check_batch_vector(t, logits, name);
    const ScalarType type = t.scalar_type();
    ALR_CHECK(type == ScalarType::Long || type == ScalarType::Int, name,
              " must be int64 or int32: convert it with .long()");
    return {t.data_ptr(), type == ScalarType::Long, t.stride(0)};
  }

  // With a table.
  static void set_labels(RowLossParams& p, const Tensor& logits, const OptionalTensor& labels,
                         const OptionalTensor& given_labels) {
    if (labels.has_value()) p.other = batch_vector(logits, *labels, "labels");
    if (!given_labels.has_value()) return;
    ALR_CHECK(labels.has_value(), "given_labels are compared with labels: pass labels as well");
    set_given_labels(p, logits, given_labels);
    ALR_CHECK(p.samples == p.target.size, "given_labels has ", p.samples, " entries, the table ",
              p.target.size, " rows: both must be of the same samples");
  }

  static void set_given_labels(RowLossParams& p, const Tensor& logits,
                               const OptionalTensor& given_labels) {
    if (!given_labels.has_value()) return;
    ALR_CHECK(given_labels->scalar_type() == ScalarType::Int && given_labels->dim() == 1 &&
                  given_labels->is_contiguous() && same_device(*given_labels, logits),
              "given_labels must be a contiguous int32 tensor [samples] on the device of the "
              "logits, got shape ",
              shape_of(*given_labels));
    p.given_labels = static_cast<const int32_t*>(given_labels->data_ptr());
    p.samples = given_labels->size(0);
  }

  static const void* weight_data(const OptionalTensor& row_weight, const Tensor& logits,
                                 DType dtype) {
    if (!row_weight.has_value()) return nullptr;
    check_batch_vector(*row_weight, logits, "row_weight");
    const bool is_double = dtype == DType::kFloat64;
    ALR_CHECK(row_weight->scalar_type() == (is_double ? ScalarType::Double : ScalarType::Float) &&
                  row_weight->is_contiguous(),
              "row_weight must be contiguous ", is_double ? "float64" : "float32",
              " for these logits");
    return row_weight->data_ptr();
  }

  static void set_options(RowLossParams& p, const Tensor& logits, const OptionalTensor& row_weight,
                          const OptionalTensor& status, double momentum, double entropy_weight,
                          int64_t reduction, int64_t grad_mode, double target_bound) {
    ALR_CHECK(momentum >= 0 && momentum <= 1, "momentum must lie in [0, 1], got ", momentum);
    ALR_CHECK(std::isfinite(entropy_weight), "entropy_weight must be finite, got ", entropy_weight);
    ALR_CHECK(reduction >= 0 && reduction <= 2, "unknown reduction ", reduction);
    ALR_CHECK(grad_mode >= 0 && grad_mode <= 2, "unknown grad_mode ", grad_mode);
    p.momentum = momentum;
    p.entropy_weight = entropy_weight;
    p.reduction = static_cast<Reduction>(reduction);
    p.grad_mode = static_cast<GradMode>(grad_mode);
    p.row_weight = weight_data(row_weight, logits, p.logits_dtype);
    p.status = int64_data(status, kStatusSize, logits, "status");
    if (stores_plain_rows(p)) {
      p.stored_scale = plain_grad_scale(momentum, entropy_weight, p.classes, target_bound);
    } else if (p.grad_mode == GradMode::kPerRow && p.reduction == Reduction::kMean && p.rows > 0) {
      p.stored_scale = 1.0 / static_cast<double>(p.rows);
    }
  }

  static void set_stats(RowLossParams& p, const Tensor& logits, const OptionalTensor& stats_class,
                        const OptionalTensor& stats_value) {
    p.stats_class = int64_data(stats_class, 3 * p.rows, logits, "stats_class");
    if (p.stats_class == nullptr) return;
    ALR_CHECK(stats_value.has_value() && stats_value->scalar_type() == ScalarType::Float &&
                  stats_value->numel() == 2 * p.rows && stats_value->is_contiguous() &&
                  same_device(*stats_value, logits),
              "stats_value must be a contiguous float32 tensor [2, ", p.rows, "]");
    p.stats_value = static_cast<float*>(stats_value->data_ptr());
  }

  static Outputs run(RowLossParams& p, const Tensor& logits) {
    const int32_t acc =
        p.logits_dtype == DType::kFloat64 ? aoti_torch_dtype_float64() : aoti_torch_dtype_float32();
    const int64_t row_loss_size = Backend::row_loss_size(p);
    Tensor row_loss = new_tensor(logits, acc, &row_loss_size, 1);
    const bool reduced = p.reduction != Reduction::kNone;
    Tensor loss = reduced ? new_tensor(logits, acc, nullptr, 0) : row_loss;
    Tensor grad_scale = new_tensor(logits, acc, nullptr, 0);
    int64_t grad_sizes[2] = {p.grad_mode == GradMode::kNone ? 0 : p.rows, p.classes};
    Tensor grad_rows = new_tensor(logits, dtype_code(logits), grad_sizes, 2);
    if (p.rows == 0) {
      if (reduced) torch::stable::fill_(loss, 0);
      torch::stable::fill_(grad_scale, 1 / p.stored_scale);
      return {loss, grad_rows, grad_scale};
    }
    p.row_loss = row_loss.data_ptr();
    p.loss = reduced ? loss.data_ptr() : nullptr;
    p.grad_scale = grad_scale.data_ptr();
    p.grad_logits = p.grad_mode == GradMode::kNone ? nullptr : grad_rows.data_ptr();
    Backend::row_loss(p, logits);
    return {loss, grad_rows, grad_scale};
  }
};

// The boxed functions under the names of the schema.
#define ALR_REGISTER_OPS(library, Backend)                                                        \
  library.impl("alr_loss", TORCH_BOX(&Ops<Backend>::alr_loss));                                   \
  library.impl("soft_target_cross_entropy", TORCH_BOX(&Ops<Backend>::soft_target_cross_entropy)); \
  library.impl("label_smoothing_cross_entropy",                                                   \
               TORCH_BOX(&Ops<Backend>::label_smoothing_cross_entropy));                          \
  library.impl("scale_grad", TORCH_BOX(&Ops<Backend>::scale_grad));                               \
  library.impl("scale_grad_", TORCH_BOX(&Ops<Backend>::scale_grad_));                             \
  library.impl("capture_id", TORCH_BOX(&Ops<Backend>::capture_id))

}  // namespace alr_fast
