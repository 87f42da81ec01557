// The operators' schemas and their CPU kernels.
//
// They have no autograd, because a mutating schema cannot have one. alr_fast/functional.py attaches
// the gradient that the forward pass wrote.

#include "ops.h"

#include "cpu/cpu_kernels.h"

namespace alr_fast {
namespace {

void parallel_for(int64_t rows, int64_t grain, void (*f)(int64_t, int64_t, void*), void* context) {
  torch::stable::parallel_for(0, rows, grain,
                              [&](int64_t begin, int64_t end) { f(begin, end, context); });
}

struct CpuBackend {
  static int64_t row_loss_size(const RowLossParams& params) { return params.rows; }
  static void check_table_device(const Tensor&, const Tensor& table, const char* name) {
    ALR_CHECK(table.is_cpu(), name, " is not on the CPU, where the logits are: move one of them");
  }
  static void row_loss(const RowLossParams& params, const Tensor&) {
    cpu_row_loss(params, parallel_for);
  }
  static void scale_grad(const ScaleGradParams& params, const Tensor&) {
    cpu_scale_grad(params, parallel_for);
  }
  static int64_t capture_id(const Tensor&) { return 0; }
};

}  // namespace

STABLE_TORCH_LIBRARY(alr_fast, m) {
  // loss (scalar, or [B] for reduction 0), grad_rows [B, K] or [0, K], grad_scale (scalar)
  m.def(
      "alr_loss(Tensor logits, Tensor(a!) bank, Tensor index, Tensor? labels, "
      "Tensor? given_labels, Tensor? row_weight, Tensor(b!)? status, Tensor(c!)? rounding_state, "
      "Tensor(d!)? stats_class, "
      "Tensor(e!)? stats_value, float momentum, float entropy_weight, int reduction, "
      "bool unique_index, int grad_mode) -> (Tensor loss, Tensor grad_rows, Tensor grad_scale)");
  m.def(
      "soft_target_cross_entropy(Tensor logits, Tensor table, Tensor? index, Tensor? labels, "
      "Tensor? given_labels, Tensor? row_weight, Tensor(b!)? status, Tensor(d!)? stats_class, "
      "Tensor(e!)? stats_value, float momentum, "
      "float entropy_weight, int reduction, int grad_mode) "
      "-> (Tensor loss, Tensor grad_rows, Tensor grad_scale)");
  m.def(
      "label_smoothing_cross_entropy(Tensor logits, Tensor labels, Tensor? index, "
      "Tensor? given_labels, Tensor? row_weight, Tensor(b!)? status, float smoothing, float "
      "entropy_weight, int reduction, int grad_mode) "
      "-> (Tensor loss, Tensor grad_rows, Tensor grad_scale)");
  m.def(
      "scale_grad(Tensor grad_rows, Tensor? grad_scale, Tensor grad_output, Tensor? row_weight) "
      "-> Tensor");
  m.def(
      "scale_grad_(Tensor(a!) grad_rows, Tensor? grad_scale, Tensor grad_output, "
      "Tensor? row_weight) -> ()");
  m.def("capture_id(Tensor on) -> int");
}

STABLE_TORCH_LIBRARY_IMPL(alr_fast, CPU, m) { ALR_REGISTER_OPS(m, CpuBackend); }

}  // namespace alr_fast
