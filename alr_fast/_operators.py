"""The operators for the compiler and for autograd.

An operator whose schema declares mutation cannot have autograd of its own. A
`torch.autograd.Function` calls it instead: the forward pass already writes the gradient of every
row, and the backward pass scales it, in place where nothing else can need it.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import forward_ad

from alr_fast._fallback.operators import OTHER_DEVICES
from alr_fast._inputs import check_local
from alr_fast._loading import load
from alr_fast.reference import RowStats

# torch has no type annotations for their members.
_OPS: Any = torch.ops
_LIBRARY: Any = torch.library
# Members that are called in every step, so that they are not looked up each time.
_increment_version: Callable[[list[Tensor]], None] = torch._C._increment_version
_functorch_transform: Callable[[], object] = torch._C._functorch.peek_interpreter_stack
_is_wrapped: Callable[[Tensor], bool] = torch._C._functorch.is_functorch_wrapped_tensor
_is_batched: Callable[[Tensor], bool] = torch._C._functorch.is_legacy_batchedtensor
_dispatch_modes: Callable[[], int] = torch._C._len_torch_dispatch_stack
_keeps_graph: Callable[[], bool] = torch._C._autograd._get_current_graph_task_keep_graph
# Missing in a torch without CUDA.
_is_capturing: Callable[[], bool] = getattr(torch._C, "_cuda_isCurrentStreamCapturing", bool)


class LossOptions(NamedTuple):
    """Options of one call of a loss, from the public function or module down to the operator.

    A NamedTuple because creating one costs a third of the time of a frozen dataclass, and small
    batches take only a few microseconds.

    Attributes:
        reduction: "mean", "sum" or "none".
        entropy_weight: Weight of the entropy term.
        row_weight: [B] constant factor on the loss of each row.
        with_grad: Whether to return the gradient instead of recording the call for autograd.
        status: [5] int64 counters of the kernels, see `LabelBank`.
        labels: `table_loss` only: [B] labels that came with the batch; below 0: row ignored.
        sample_index: `label_loss` only: [B] index of each row's sample; below 0: row ignored.
        given_labels: [N] int32 label of each sample, which those of the batch must equal.
        smoothing: `label_loss` only: rate of label smoothing.
        momentum: `table_loss` only, like all that follow: share of the table row in the target.
        update: Whether the targets are stored in the table.
        unique_index: Promise that no index occurs twice in the batch.
        return_stats: Whether to return the `RowStats`.
        rounding_state: [2] int64 random state of stochastic rounding, see `LabelBank`.
        adjustment: [K] added to the logits by the losses, not by the operation (logit adjustment).
    """

    reduction: str = "mean"
    entropy_weight: float = 0.0
    row_weight: Tensor | None = None
    with_grad: bool = False
    status: Tensor | None = None
    labels: Tensor | None = None
    sample_index: Tensor | None = None
    given_labels: Tensor | None = None
    smoothing: float = 0.0
    momentum: float = 1.0
    update: bool = False
    unique_index: bool = False
    return_stats: bool = False
    rounding_state: Tensor | None = None
    adjustment: Tensor | None = None


class LossResult(NamedTuple):
    """Results of one call of a loss; None for those that were not asked for.

    Attributes:
        loss: A scalar, or [B] with reduction "none".
        grad: [B, K], in the dtype of the logits.
        stats: The statistics of the rows.
    """

    loss: Tensor
    grad: Tensor | None = None
    stats: RowStats | None = None


LOADED = load()
HAS_CUDA = LOADED.cuda is None  # native kernels


def _define_alr_loss_once() -> None:
    """Defines `alr_loss` for compiled code: it checks at run time that no backward pass is running.

    A check in Python code disappears once the graph is traced.
    """
    name = "alr_fast::alr_loss_once"
    schema = str(_OPS.alr_fast.alr_loss.default._schema)
    _LIBRARY.define(name, schema.removeprefix("alr_fast::alr_loss"))

    def alr_loss_once(*arguments: object) -> tuple[Tensor, Tensor, Tensor]:
        check_not_in_backward()
        try:
            return _alr_loss(*arguments)
        except RuntimeError as error:
            raise _typed(error) from None

    _LIBRARY.impl(name, ("cpu", *OTHER_DEVICES), alr_loss_once)


_IS_FIRST = not hasattr(_OPS.alr_fast, "alr_loss_once")  # or this module is loaded again
if _IS_FIRST:
    _define_alr_loss_once()

# Loss (scalar, or [B] without reduction), gradient rows [B, K] or [0, K], scale of the gradient.
_Operator = Callable[..., tuple[Tensor, Tensor, Tensor]]

# The overloads themselves: looking one up by its packet costs microseconds.
_alr_loss: _Operator = _OPS.alr_fast.alr_loss.default
_alr_loss_once: _Operator = _OPS.alr_fast.alr_loss_once.default
_soft_target_cross_entropy: _Operator = _OPS.alr_fast.soft_target_cross_entropy.default
_label_smoothing_cross_entropy: _Operator = _OPS.alr_fast.label_smoothing_cross_entropy.default
_scale_grad: Callable[..., Tensor] = _OPS.alr_fast.scale_grad.default
_scale_grad_: Callable[..., None] = _OPS.alr_fast.scale_grad_.default
_capture_id: Callable[[Tensor], int] = _OPS.alr_fast.capture_id.default

# Numbers of the enums in csrc/alr_params.h.
REDUCTIONS = {"none": 0, "mean": 1, "sum": 2}
_GRAD_NONE, _GRAD_PER_ROW, _GRAD_FINAL = 0, 1, 2


def table_loss(
    logits: Tensor,  # [B, K]
    table: Tensor,  # [N, K], updated in place with `options.update`
    index: Tensor | None,  # [B]
    options: LossOptions,
) -> LossResult:
    """Loss against rows of a table."""
    compiling = torch.compiler.is_compiling()
    special = compiling or _is_special(logits)
    if special:
        _check_call(logits, (table, options.row_weight), options, compiling)
    if options.update and not compiling:
        check_not_in_backward()
    if table.requires_grad:
        raise ValueError("the target rows are constants: pass the table or bank detached")
    classes, values, stats = _new_stats(logits) if options.return_stats else (None, None, None)
    reduction = _reduction(options.reduction)
    if options.update:
        operator = _alr_loss_once if compiling else _alr_loss
        others: tuple[object, ...] = (
            options.status, options.rounding_state, classes, values,
            options.momentum, options.entropy_weight, reduction, options.unique_index,
        )  # fmt: skip
    else:
        operator = _soft_target_cross_entropy
        others = (
            options.status, classes, values,
            options.momentum, options.entropy_weight, reduction,
        )  # fmt: skip
    targets = (table, index, options.labels, options.given_labels)
    try:
        loss, grad = _call(operator, logits, targets, others, options, special)
    except RuntimeError as error:
        raise _typed(error) from None
    if options.update and not compiling:  # compiled code does it by itself
        _increment_version([table])
    return LossResult(loss, grad, stats)


def label_loss(
    logits: Tensor,  # [B, K]
    labels: Tensor,  # [B]
    options: LossOptions,
) -> LossResult:
    """Loss against smoothed one-hot rows of labels."""
    compiling = torch.compiler.is_compiling()
    special = compiling or _is_special(logits)
    if special:
        _check_call(logits, (options.row_weight,), options, compiling)
    reduction = _reduction(options.reduction)
    others = (options.status, options.smoothing, options.entropy_weight, reduction)
    targets = (labels, options.sample_index, options.given_labels)
    try:
        loss, grad = _call(
            _label_smoothing_cross_entropy, logits, targets, others, options, special
        )
    except RuntimeError as error:
        raise _typed(error) from None
    return LossResult(loss, grad)


# In the message about a label that differs from the given one, see csrc/cpu/launch.cpp.
_WRONG_LABEL = "has the given label"


def _typed(error: RuntimeError) -> Exception:
    """The error of an operator with the same type for every torch: 2.15 has no ValueError."""
    return ValueError(str(error)) if _WRONG_LABEL in str(error) else error


def _call(
    operator: _Operator,
    logits: Tensor,
    targets: tuple[Tensor | None, ...],
    others: tuple[object, ...],
    options: LossOptions,
    special: bool,  # being compiled, or not a plain tensor outside of transforms
) -> tuple[Tensor, Tensor | None]:
    """Loss, and the gradient if asked for; the arguments are in the order of the schemas."""
    row_weight = options.row_weight
    if row_weight is not None:
        row_weight = _row_weight(row_weight, logits)
    if options.with_grad:
        loss, grad, _ = operator(logits.detach(), *targets, row_weight, *others, _GRAD_FINAL)
        return loss, grad
    # Decided here, because grad mode is always off inside an operator.
    if logits.requires_grad and torch.is_grad_enabled():
        record = _FusedLoss.apply if special else _record
        return record(logits, operator, targets, row_weight, others), None
    return operator(logits, *targets, row_weight, *others, _GRAD_NONE)[0], None


class _FusedLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        logits: Tensor,
        operator: _Operator,
        targets: tuple[Tensor | None, ...],
        row_weight: Tensor | None,
        others: tuple[object, ...],
    ) -> Tensor:
        # float16 keeps the gradient of single rows, times a power of two: divided by the batch
        # size, small entries would be flushed before a gradient scaler's factor is applied. On CUDA
        # the number of valid rows is not known before the launch ends: a mean is divided by that of
        # all rows. Otherwise the final gradient is kept.
        is_half = logits.dtype == torch.float16
        per_row = logits.is_cuda or is_half
        mode = _GRAD_PER_ROW if per_row else _GRAD_FINAL
        loss, grad_rows, grad_scale = operator(logits, *targets, row_weight, *others, mode)
        ctx.save_for_backward(
            grad_rows, grad_scale if per_row else None, row_weight if is_half else None
        )
        ctx.capture = None if torch.compiler.is_compiling() else _capture(grad_rows)
        return loss

    @staticmethod
    def backward(ctx: Any, grad_loss: Tensor) -> tuple[Tensor | None, ...]:
        return _grad_logits(grad_loss, ctx.capture, *ctx.saved_tensors), None, None, None, None


# Without what `apply` does for transforms of torch.func, which `_check_call` refuses.
_record: Callable[..., Tensor] = super(torch.autograd.Function, _FusedLoss).apply


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


def _reduction(name: str) -> int:
    if name not in REDUCTIONS:
        raise ValueError(f"reduction must be one of {', '.join(REDUCTIONS)}, got {name!r}")
    return REDUCTIONS[name]


def _accumulation_dtype(logits: Tensor) -> torch.dtype:
    return torch.float64 if logits.dtype == torch.float64 else torch.float32


def _row_weight(row_weight: Tensor, logits: Tensor) -> Tensor:
    if row_weight.requires_grad:
        raise ValueError("row_weight is a constant: pass row_weight.detach()")
    return row_weight.to(_accumulation_dtype(logits)).contiguous()


def _new_stats(logits: Tensor) -> tuple[Tensor, Tensor, RowStats]:
    """The two tensors that an operator writes, and the `RowStats` made of their rows."""
    batch = logits.shape[0]
    classes = logits.new_empty((3, batch), dtype=torch.int64)
    values = logits.new_empty((2, batch), dtype=torch.float32)
    return classes, values, RowStats(classes[0], values[0], classes[1], classes[2], values[1])


def _is_special(logits: Tensor) -> bool:
    """Whether a call may be one that `_check_call` refuses. Quick: it runs in every step."""
    return (
        type(logits) is not Tensor
        or _functorch_transform() is not None
        or forward_ad._current_level >= 0
    )


def _check_call(
    logits: Tensor, constants: tuple[Tensor | None, ...], options: LossOptions, compiling: bool
) -> None:
    """Refuses what would give a wrong derivative, or an error that explains nothing."""
    check_local(logits)
    if compiling:
        # Not `is_exporting()`, which the compiler of torch 2.11 takes as true without an export.
        is_exporting = torch.compiler._is_exporting_flag
        if is_exporting and torch.is_grad_enabled() and not options.with_grad:
            raise _unsupported("an exported program would have no gradient", "torch.export")
    elif _functorch_transform() is not None:
        raise _unsupported("the kernels have no rules for it", "a transform of torch.func")
    elif forward_ad._current_level >= 0 and any(map(_has_tangent, (logits, *constants))):
        raise _unsupported("the derivative would be 0", "forward-mode differentiation")


def _has_tangent(tensor: Tensor | None) -> bool:
    unpack: Any = forward_ad.unpack_dual
    return tensor is not None and unpack(tensor).tangent is not None


def _unsupported(reason: str, transform: str) -> RuntimeError:
    return RuntimeError(
        f"alr_fast losses do not work under {transform} ({reason}): use the same function of "
        "alr_fast.reference, with update=False"
    )


def check_not_in_backward() -> None:
    if torch._C._current_graph_task_id() != -1:
        raise RuntimeError(
            "the bank would be updated a second time: the loss is recomputed inside a backward "
            "pass. Keep it outside of activation checkpointing, or pass update=False"
        )


def _fake_loss(name: str) -> _Operator:
    """The fake kernel of a loss: shapes and dtypes of its outputs."""
    names = [argument.name for argument in getattr(_OPS.alr_fast, name).default._schema.arguments]

    def fake(*arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
        given = dict(zip(names, arguments, strict=True))
        logits = given["logits"]
        # Fake kernels also meet real tensors: those of the meta device, and those that the compiler
        # traces.
        for tensor_name in ("bank", "table", "index", "labels", "given_labels", "row_weight"):
            tensor = given.get(tensor_name)
            if tensor is None or tensor.device == logits.device:
                continue
            if tensor_name in ("bank", "table") and tensor.device.type == "cpu" and logits.is_cuda:
                continue  # in pinned host memory
            raise RuntimeError(
                f"{tensor_name} is on another device than the logits: pass "
                f"{tensor_name}.to(logits.device)"
            )
        acc = _accumulation_dtype(logits)
        rows, classes = logits.shape
        return (
            logits.new_empty(
                (rows,) if given["reduction"] == REDUCTIONS["none"] else (), dtype=acc
            ),
            logits.new_empty((0 if given["grad_mode"] == _GRAD_NONE else rows, classes)),
            logits.new_empty((), dtype=acc),
        )

    return fake


def _register_fake_kernels() -> None:
    for name in (
        "alr_loss",
        "alr_loss_once",
        "soft_target_cross_entropy",
        "label_smoothing_cross_entropy",
    ):
        _LIBRARY.register_fake(f"alr_fast::{name}", _fake_loss(name))
    _LIBRARY.register_fake(
        "alr_fast::scale_grad", lambda grad_rows, *others: torch.empty_like(grad_rows)
    )
    _LIBRARY.register_fake("alr_fast::scale_grad_", lambda grad_rows, *others: None)


if _IS_FIRST:
    _register_fake_kernels()
