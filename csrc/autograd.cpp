// alr_fast._autograd: the autograd node of the losses in C++. It makes a small batch faster, and is
// optional: torch's C++ interface changes from version to version, so it serves the one it was
// built with. `_FusedLoss` in alr_fast/_node.py is the same node in Python, and says why it
// does what it does; what is rare in a backward pass is left to it.

#include <ATen/TensorSubclassLikeUtils.h>
#include <torch/csrc/Exceptions.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/csrc/autograd/engine.h>
#include <torch/csrc/jit/python/pybind_utils.h>

#include <optional>
#include <stdexcept>
#include <string>
#include <utility>

#include "alr_params.h"

namespace alr_fast {
namespace {

namespace autograd = torch::autograd;
using at::Tensor;
using torch::jit::Stack;

c10::OperatorHandle operator_named(const std::string& name) {
  return c10::Dispatcher::singleton().findSchemaOrThrow(("alr_fast::" + name).c_str(), "");
}

// What alr_fast/_node.py passes once. Never destroyed: a backward pass may outlive Python.
struct Python {
  py::object grad_logits;  // the backward pass in Python
  bool has_cuda;           // native kernels
  c10::OperatorHandle capture_id = operator_named("capture_id");
  c10::OperatorHandle scale_grad = operator_named("scale_grad_");
};
Python* python = nullptr;

// The CUDA graph that is being captured; 0 for none, nothing if that cannot be known.
std::optional<int64_t> capture_of(const Tensor& tensor) {
  if (tensor.is_cpu()) return 0;
  if (!python->has_cuda || !tensor.is_cuda()) return std::nullopt;
  return python->capture_id.typed<int64_t(const Tensor&)>().call(tensor);
}

// Whether it has a value in memory, belongs to no transform, and nobody records what is done to it.
// A negative view has other values than its memory, a tensor of zeros may have none.
bool is_plain(const Tensor& tensor) {
  return !at::isTensorSubclassLike(tensor) && !tensor.is_neg() && !tensor._is_zerotensor();
}

// Without a call of torch; of a scalar on the CPU, of the type of a loss.
bool is_one(const Tensor& scalar) {
  return scalar.scalar_type() == at::kDouble ? *scalar.const_data_ptr<double>() == 1
                                             : *scalar.const_data_ptr<float>() == 1;
}

struct FusedLoss : autograd::Function<FusedLoss> {
  // `stack` holds the arguments of the operator; `weight` is the place of row_weight in it.
  static Tensor forward(autograd::AutogradContext* ctx, const Tensor& logits,
                        const c10::OperatorHandle& loss_operator, Stack& stack, size_t weight) {
    const bool per_row = stack.back().toInt() == static_cast<int64_t>(GradMode::kPerRow);
    Tensor row_weight;
    if (logits.scalar_type() == at::kHalf && stack[weight].isTensor())
      row_weight = stack[weight].toTensor();
    {
      const at::AutoDispatchBelowADInplaceOrView guard;  // straight to the kernel
      loss_operator.callBoxed(stack);
    }
    const Tensor grad_rows = stack[1].toTensor();
    ctx->save_for_backward({grad_rows, per_row ? stack[2].toTensor() : Tensor(), row_weight});
    if (!grad_rows.is_cpu()) ctx->saved_data["capture"] = capture_of(grad_rows);
    return stack[0].toTensor();
  }

  static autograd::variable_list backward(autograd::AutogradContext* ctx,
                                          const autograd::variable_list& grads) {
    const autograd::variable_list saved = ctx->get_saved_variables();
    const std::optional<int64_t> capture =
        saved[0].is_cpu() ? 0 : ctx->saved_data["capture"].toOptional<int64_t>();
    return {grad_logits(grads[0], capture, saved[0], saved[1], saved[2]), {}, {}, {}};
  }

 private:
  static Tensor grad_logits(const Tensor& grad_loss, std::optional<int64_t> capture,
                            const Tensor& grad_rows, const Tensor& grad_scale,
                            const Tensor& row_weight) {
    if (at::GradMode::is_enabled() || autograd::get_current_graph_task_keep_graph() ||
        !is_plain(grad_loss) || !is_plain(grad_rows) || !capture ||
        capture != capture_of(grad_rows)) {
      const py::gil_scoped_acquire gil;
      const auto or_none = [](const Tensor& t) { return t.defined() ? py::cast(t) : py::none(); };
      try {
        return py::cast<Tensor>(python->grad_logits(grad_loss, capture, grad_rows,
                                                    or_none(grad_scale), or_none(row_weight)));
      } catch (py::error_already_set& error) {
        error.restore();
        throw python_error();
      }
    }
    const bool is_final = !grad_scale.defined() && grad_loss.dim() == 0 && grad_loss.is_cpu();
    if (is_final && is_one(grad_loss)) return grad_rows;
    const auto optional = [](const Tensor& t) {
      return t.defined() ? std::optional<Tensor>(t) : std::nullopt;
    };
    python->scale_grad
        .typed<void(const Tensor&, const std::optional<Tensor>&, const Tensor&,
                    const std::optional<Tensor>&)>()
        .call(grad_rows, optional(grad_scale), grad_loss, optional(row_weight));
    autograd::impl::bump_version(grad_rows);
    return grad_rows;
  }
};

// Calls an operator of a loss and records the call for autograd.
class Recorder {
 public:
  explicit Recorder(const std::string& name) : operator_(operator_named(name)) {
    const auto& arguments = operator_.schema().arguments();
    while (arguments[weight_].name() != "row_weight") ++weight_;
  }

  Tensor record(const py::args& arguments) const {
    Stack stack = torch::jit::createStackForSchema(
        operator_.schema(), torch::jit::tuple_slice(arguments), py::kwargs(), std::nullopt);
    const Tensor logits = stack[0].toTensor();
    const py::gil_scoped_release no_gil;
    try {
      return FusedLoss::apply(logits, operator_, stack, weight_);
    } catch (const std::out_of_range& error) {  // torch::wrap_pybind_function knows neither
      throw py::index_error(error.what());
    } catch (const std::invalid_argument& error) {
      throw py::value_error(error.what());
    }
  }

 private:
  c10::OperatorHandle operator_;
  size_t weight_ = 0;
};

}  // namespace

PYBIND11_MODULE(_autograd, m) {
  m.doc() = "The autograd node of the losses in C++, for one version of torch.";
  m.def(
      "set_python",
      [](py::object grad_logits, bool has_cuda) {
        python = new Python{std::move(grad_logits), has_cuda};
      },
      py::arg("grad_logits"), py::arg("has_cuda"),
      "Before the first record: the backward pass in Python, for rare cases; whether there are "
      "native CUDA kernels.");
  py::class_<Recorder>(m, "Recorder", "Calls an operator of a loss for autograd.")
      .def(py::init<std::string>(), py::arg("name"))
      .def("record",
           torch::wrap_pybind_function([](const Recorder& self, const py::args& arguments) {
             return self.record(arguments);
           }),
           "The loss; the arguments are those of the operator.");
}

}  // namespace alr_fast
