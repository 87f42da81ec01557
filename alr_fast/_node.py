"""The autograd node of the losses, and how it calls their operators.

An operator whose schema declares mutation cannot have autograd of its own. A
`torch.autograd.Function` calls it instead: the forward pass already writes the gradient of every
row, and the backward pass scales it, in place where nothing else can need it. csrc/autograd.cpp has
the same node in C++, which makes small batches faster. It is used for plain tensors if it was built
for the torch in use.
"""

from collections.abc import Callable
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from alr_fast import _installed
from alr_fast._loading import HAS_CUDA, LOADED

# torch has no type annotations for their members.
_OPS: Any = torch.ops
# Members that are called in every step, so that they are not looked up each time.
_increment_version: Callable[[list[Tensor]], None] = torch._C._increment_version
_is_wrapped: Callable[[Tensor], bool] = torch._C._functorch.is_functorch_wrapped_tensor
_is_batched: Callable[[Tensor], bool] = torch._C._functorch.is_legacy_batchedtensor
_dispatch_modes: Callable[[], int] = torch._C._len_torch_dispatch_stack
_keeps_graph: Callable[[], bool] = torch._C._autograd._get_current_graph_task_keep_graph
# Missing in a torch without CUDA.
_is_capturing: Callable[[], bool] = getattr(torch._C, "_cuda_isCurrentStreamCapturing", bool)

# Loss (scalar, or [B] without reduction), gradient rows [B, K] or [0, K], scale of the gradient.
Outputs = tuple[Tensor, Tensor, Tensor]
# The last argument of a loss, as in csrc/alr_params.h: what is written for the backward pass.
GRAD_NONE, GRAD_PER_ROW, GRAD_FINAL = 0, 1, 2

_scale_grad: Callable[..., Tensor] = _OPS.alr_fast.scale_grad.default
_scale_grad_: Callable[..., None] = _OPS.alr_fast.scale_grad_.default
_capture_id: Callable[[Tensor], int] = _OPS.alr_fast.capture_id.default


class _FusedLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        logits: Tensor,
        operator: Callable[..., Outputs],
        place: int,  # of row_weight among the arguments
        arguments: tuple[Any, ...],  # that follow the logits
    ) -> Tensor:
        loss, grad_rows, grad_scale = operator(logits, *arguments)
        per_row = arguments[-1] == GRAD_PER_ROW
        row_weight = arguments[place] if logits.dtype == torch.float16 else None
        ctx.save_for_backward(grad_rows, grad_scale if per_row else None, row_weight)
        ctx.capture = None if torch.compiler.is_compiling() else _capture(grad_rows)
        return loss

    @staticmethod
    def backward(ctx: Any, grad_loss: Tensor) -> tuple[Tensor | None, ...]:
        return _grad_logits(grad_loss, ctx.capture, *ctx.saved_tensors), None, None, None


def _grad_logits(
    grad_loss: Tensor,
    capture: int | None,  # during the forward pass
    grad_rows: Tensor,
    grad_scale: Tensor | None,
    row_weight: Tensor | None,
) -> Tensor:
    if torch.compiler.is_compiling():
        return _scale_grad(grad_rows, grad_scale, grad_loss, row_weight)
    # Grad mode is on in a backward pass only with create_graph=True. The result would be silently
    # detached from the requested graph.
    if torch.is_grad_enabled():
        raise RuntimeError(
            "alr_fast losses have no second derivative: call backward without create_graph=True, "
            "or use the same function of alr_fast.reference"
        )
    # vmap over the backward pass (`jacobian(vectorize=True)`): many incoming gradients at once.
    if _is_batched(grad_loss) or _is_wrapped(grad_loss):
        factor = grad_loss if grad_scale is None else grad_loss * grad_scale
        if row_weight is not None:
            factor = factor * row_weight
        return (grad_rows * factor.expand(len(grad_rows))[:, None]).to(grad_rows.dtype)
    # A kept graph needs its gradient again, which the caller may change, too. So does a CUDA graph
    # that has the backward pass alone: each replay would scale what the last one has left.
    if (
        _is_traced(grad_loss)
        or type(grad_rows) is not Tensor
        or _keeps_graph()
        or capture is None
        or capture != _capture(grad_rows)
    ):
        return _scale_grad(grad_rows, grad_scale, grad_loss, row_weight)
    # Reading the incoming gradient costs nothing on the CPU. It is 1 if backward was called on the
    # loss itself.
    is_final = grad_scale is None and grad_loss.ndim == 0 and grad_loss.is_cpu
    if not is_final or grad_loss.item() != 1:
        _scale_grad_(grad_rows, grad_scale, grad_loss, row_weight)
        # So that torch refuses to use what was saved again, after an error in this backward pass.
        _increment_version([grad_rows])
    return grad_rows


def _capture(tensor: Tensor) -> int | None:
    """The CUDA graph that is being captured; 0 for none, None if that cannot be known."""
    if tensor.is_cpu:
        return 0
    if not (HAS_CUDA and tensor.is_cuda):
        return None
    return _capture_id(tensor) if _is_capturing() else 0


def _is_traced(tensor: Tensor) -> bool:
    """Whether the tensor may have no value: a fake one, or code that is being recorded."""
    return type(tensor) is not Tensor or _dispatch_modes() > 0


if LOADED.node is None:
    import_module(_installed.NODE).set_python(_grad_logits, HAS_CUDA)


class LossOperator:
    """An operator of a loss.

    Attributes:
        call: The operator itself, without autograd.
        record: The same for plain tensors outside of compiled code and of transforms, as a node of
            the autograd graph; returns the loss.
        record_special: The same for all others.
    """

    def __init__(self, name: str) -> None:
        """Looks up the operator, which takes microseconds."""
        overload = getattr(_OPS.alr_fast, name).default
        self.call: Callable[..., Outputs] = overload
        names = [argument.name for argument in overload._schema.arguments]
        self._place = names.index("row_weight") - 1
        self.record: Callable[..., Tensor] = self.record_in_python
        if LOADED.node is None:
            self.record = import_module(_installed.NODE).Recorder(name).record

    def record_in_python(self, logits: Tensor, *arguments: object) -> Tensor:
        """`record` where there is no node in C++."""
        return _apply(logits, self.call, self._place, arguments)

    def record_special(self, logits: Tensor, *arguments: object) -> Tensor:
        return _apply_special(logits, self.call, self._place, arguments)


_apply_special: Callable[..., Tensor] = _FusedLoss.apply
# Without what `apply` does for transforms of torch.func, which `_operators` refuses.
_apply: Callable[..., Tensor] = super(torch.autograd.Function, _FusedLoss).apply
