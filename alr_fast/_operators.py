"""The compiled operators: loading, fake kernels for the compiler, autograd.

An operator whose schema mutates admits no autograd of its own, so a `torch.autograd.Function` calls
it: the forward pass already writes the gradient of every row, the backward pass scales it.
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from alr_fast.reference import RowStats

_HERE = Path(__file__).parent


def _load() -> bool:
    """Loads the operators; returns whether the CUDA kernels are among them."""
    cpu, cuda = _HERE / "_ops.so", _HERE / "_cuda.so"
    if not cpu.exists():
        raise ImportError(
            f"the compiled operators ({cpu}) are missing: run `make build` in the source tree, or "
            f"`pip install --no-build-isolation .` where torch is installed"
        )
    torch.ops.load_library(cpu)
    # The CUDA kernels lie in a library of their own, which links to libtorch_cuda.
    if torch.version.cuda is None or not cuda.exists():
        return False
    torch.ops.load_library(cuda)
    return True


HAS_CUDA = _load()


def _define_alr_loss_once() -> torch.library.Library:
    """`alr_loss` for compiled code: checks at run time that no backward pass is under way.

    Python code that asks so is gone once a graph is traced.
    """
    library = torch.library.Library("alr_fast", "FRAGMENT")
    schema = str(torch.ops.alr_fast.alr_loss.default._schema)
    library.define(schema.removeprefix("alr_fast::").replace("alr_loss", "alr_loss_once", 1))

    def alr_loss_once(*arguments):
        _check_not_in_backward()
        return _alr_loss(*arguments)

    for key in ("CPU", "CUDA"):
        library.impl("alr_loss_once", alr_loss_once, key)
    return library


_LIBRARY = _define_alr_loss_once()  # the definition lasts as long as this object

# The overloads themselves: looking one up by its packet costs microseconds.
_alr_loss = torch.ops.alr_fast.alr_loss.default
_alr_loss_once = torch.ops.alr_fast.alr_loss_once.default
_soft_target_cross_entropy = torch.ops.alr_fast.soft_target_cross_entropy.default
_label_smoothing_cross_entropy = torch.ops.alr_fast.label_smoothing_cross_entropy.default
_scale_grad = torch.ops.alr_fast.scale_grad.default

# Numbers of the enums in csrc/alr_params.h.
_REDUCTIONS = {"none": 0, "mean": 1, "sum": 2}
_GRAD_NONE, _GRAD_PER_ROW, _GRAD_FINAL = 0, 1, 2


def table_loss(
    logits: Tensor,  # [B, K]
    table: Tensor,  # [N, K], updated in place with `update`
    index: Tensor | None,  # [B]
    *,
    momentum: float,
    entropy_weight: float,
    reduction: str,
    row_weight: Tensor | None = None,  # [B]
    update: bool = False,
    unique_index: bool = False,
    return_stats: bool = False,
    status: Tensor | None = None,  # [4] int64, see LabelBank
    rounding_state: Tensor | None = None,  # [2] int64, see LabelBank
    with_grad: bool = False,
) -> Any:
    """The loss against rows of a table, with what the owner of a bank passes on top.

    Returns the loss, then the final gradient if `with_grad`, then the `RowStats` if `return_stats`;
    the loss alone where there is nothing else.
    """
    _check_device(logits)
    if update and not torch.compiler.is_compiling():
        _check_not_in_backward()
    if table.requires_grad:
        raise ValueError("the target rows are constants: pass the table or bank detached")
    stats = _new_stats(logits) if return_stats else (None, None)
    tensors = (table, index, _row_weight(row_weight, logits), status, rounding_state, *stats)
    numbers = (momentum, entropy_weight, _reduction(reduction), update, unique_index)
    if with_grad:
        loss, grad, _ = _call_table(logits.detach(), *tensors, *numbers, _GRAD_FINAL)
        extra: tuple[Any, ...] = (grad,)
    else:
        extra = ()
        if _needs_grad(logits):
            loss = _TableLoss.apply(logits, *tensors, *numbers)
        else:
            loss, _, _ = _call_table(logits, *tensors, *numbers, _GRAD_NONE)
    if return_stats:
        classes, values = stats
        extra += (RowStats(classes[0], values[0], classes[1], classes[2], values[1]),)
    return (loss, *extra) if extra else loss


def label_loss(
    logits: Tensor,  # [B, K]
    labels: Tensor,  # [B]
    *,
    smoothing: float,
    entropy_weight: float,
    reduction: str,
    row_weight: Tensor | None = None,  # [B]
    status: Tensor | None = None,  # [4] int64, see LabelBank
    with_grad: bool = False,
) -> Any:
    """The loss against smoothed one-hot rows of labels, with the final gradient if `with_grad`."""
    _check_device(logits)
    weight = _row_weight(row_weight, logits)
    arguments = (labels, weight, status, smoothing, entropy_weight, _reduction(reduction))
    if with_grad:
        return _label_smoothing_cross_entropy(logits.detach(), *arguments, _GRAD_FINAL)[:2]
    if _needs_grad(logits):
        return _LabelLoss.apply(logits, *arguments)
    return _label_smoothing_cross_entropy(logits, *arguments, _GRAD_NONE)[0]


class _TableLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx, logits, table, index, row_weight, *others):
        mode = _saved_grad_mode(logits)
        loss, grad_rows, grad_scale = _call_table(logits, table, index, row_weight, *others, mode)
        _save_grad(ctx, mode, grad_rows, grad_scale, row_weight)
        return loss

    @staticmethod
    def backward(ctx, grad_loss):
        return _grad_logits(ctx, grad_loss), *(None,) * 12


class _LabelLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx, logits, labels, row_weight, *others):
        mode = _saved_grad_mode(logits)
        loss, grad_rows, grad_scale = _label_smoothing_cross_entropy(
            logits, labels, row_weight, *others, mode
        )
        _save_grad(ctx, mode, grad_rows, grad_scale, row_weight)
        return loss

    @staticmethod
    def backward(ctx, grad_loss):
        return _grad_logits(ctx, grad_loss), *(None,) * 6


def _saved_grad_mode(logits: Tensor) -> int:
    # float16 keeps the gradient of single rows, times a power of two: divided by the batch size,
    # small entries would be flushed before a gradient scaler's factor is applied. On CUDA the batch
    # size is not known before the launch ends. Else the gradient is kept as it will be needed.
    if logits.is_cuda or logits.dtype == torch.float16:
        return _GRAD_PER_ROW
    return _GRAD_FINAL


def _save_grad(ctx, mode: int, grad_rows: Tensor, grad_scale: Tensor, row_weight: Tensor | None):
    # Both factors are already in a final gradient.
    if mode == _GRAD_FINAL:
        ctx.save_for_backward(grad_rows, None, None)
    else:
        ctx.save_for_backward(grad_rows, grad_scale, row_weight)


def _grad_logits(ctx, grad_loss: Tensor) -> Tensor:
    # Grad mode is on in a backward pass only with create_graph=True; the result would be silently
    # detached from the graph that is asked for.
    if torch.is_grad_enabled() and not torch.compiler.is_compiling():
        raise RuntimeError(
            "alr_fast losses have no second derivative: call backward without create_graph=True, "
            "or use the same function of alr_fast.reference"
        )
    grad_rows, grad_scale, row_weight = ctx.saved_tensors
    # On the CPU it costs nothing to see that the loss is what backward was called on.
    is_final = grad_scale is None and grad_loss.ndim == 0
    if is_final and not torch.compiler.is_compiling() and grad_loss.item() == 1:
        return grad_rows
    return _scale_grad(grad_rows, grad_scale, grad_loss, row_weight)


def _call_table(
    logits: Tensor,
    table: Tensor,
    index: Tensor | None,
    row_weight: Tensor | None,
    status: Tensor | None,
    rounding_state: Tensor | None,
    stats_class: Tensor | None,
    stats_value: Tensor | None,
    momentum: float,
    entropy_weight: float,
    reduction: int,
    update: bool,
    unique_index: bool,
    grad_mode: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """The operator that stores the targets, or the one that does not."""
    if update:
        operator = _alr_loss_once if torch.compiler.is_compiling() else _alr_loss
        return operator(
            logits, table, index, row_weight, status, rounding_state, stats_class, stats_value,
            momentum, entropy_weight, reduction, unique_index, grad_mode,
        )  # fmt: skip
    return _soft_target_cross_entropy(
        logits, table, index, row_weight, status, stats_class, stats_value,
        momentum, entropy_weight, reduction, grad_mode,
    )  # fmt: skip


def _needs_grad(logits: Tensor) -> bool:
    # Decided here: inside an operator grad mode is always off.
    return logits.requires_grad and torch.is_grad_enabled()


def _reduction(name: str) -> int:
    if name not in _REDUCTIONS:
        raise ValueError(f"reduction must be one of {', '.join(_REDUCTIONS)}, got {name!r}")
    return _REDUCTIONS[name]


def _row_weight(row_weight: Tensor | None, logits: Tensor) -> Tensor | None:
    if row_weight is None:
        return None
    if row_weight.requires_grad:
        raise ValueError("row_weight is a constant: pass row_weight.detach()")
    acc = torch.float64 if logits.dtype == torch.float64 else torch.float32
    return row_weight.to(acc).contiguous()


def _new_stats(logits: Tensor) -> tuple[Tensor, Tensor]:
    rows = logits.shape[0]
    return (
        logits.new_empty((3, rows), dtype=torch.int64),
        logits.new_empty((2, rows), dtype=torch.float32),
    )


def _check_device(logits: Tensor) -> None:
    if logits.is_cuda and not HAS_CUDA:
        raise RuntimeError(
            "this build of alr_fast has no CUDA kernels: install the CUDA toolkit of torch's CUDA "
            f"version ({torch.version.cuda}) and rebuild with ALR_FAST_CUDA=1; python -m alr_fast "
            "shows the build"
        )


def _check_not_in_backward() -> None:
    if torch._C._current_graph_task_id() != -1:
        raise RuntimeError(
            "the bank would be updated a second time: the loss is recomputed inside a backward "
            "pass. Keep it outside of activation checkpointing, or pass update=False"
        )


# The fake kernels also meet real tensors: of the meta device, and what the compiler traces.
def _fake_outputs(
    logits: Tensor, reduction: int, grad_mode: int, **beside: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    for name, tensor in beside.items():
        if tensor is None or tensor.device == logits.device:
            continue
        if name in ("bank", "table") and tensor.device.type == "cpu" and logits.is_cuda:
            continue  # in pinned host memory
        raise RuntimeError(
            f"{name} is on another device than the logits: pass {name}.to(logits.device)"
        )
    acc = torch.float64 if logits.dtype == torch.float64 else torch.float32
    rows, classes = logits.shape
    return (
        logits.new_empty((rows,) if reduction == _REDUCTIONS["none"] else (), dtype=acc),
        logits.new_empty((0 if grad_mode == _GRAD_NONE else rows, classes)),
        logits.new_empty((), dtype=acc),
    )


@torch.library.register_fake("alr_fast::alr_loss_once")
@torch.library.register_fake("alr_fast::alr_loss")
def _(logits, bank, index, row_weight, status, rounding_state, stats_class, stats_value, momentum,
      entropy_weight, reduction, unique_index, grad_mode):  # fmt: skip
    return _fake_outputs(
        logits, reduction, grad_mode, bank=bank, index=index, row_weight=row_weight
    )


@torch.library.register_fake("alr_fast::soft_target_cross_entropy")
def _(logits, table, index, row_weight, status, stats_class, stats_value, momentum, entropy_weight,
      reduction, grad_mode):  # fmt: skip
    return _fake_outputs(
        logits, reduction, grad_mode, table=table, index=index, row_weight=row_weight
    )


@torch.library.register_fake("alr_fast::label_smoothing_cross_entropy")
def _(logits, labels, row_weight, status, smoothing, entropy_weight, reduction, grad_mode):
    return _fake_outputs(logits, reduction, grad_mode, labels=labels, row_weight=row_weight)


@torch.library.register_fake("alr_fast::scale_grad")
def _(grad_rows, grad_scale, grad_output, row_weight):
    return torch.empty_like(grad_rows)
