"""The losses on the level of the operators: options, checks, the compiler."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import forward_ad

from alr_fast._fallback.operators import OTHER_DEVICES
from alr_fast._inputs import check_local
from alr_fast._node import GRAD_FINAL, GRAD_NONE, GRAD_PER_ROW, LossOperator, Outputs
from alr_fast.reference import RowStats

# torch has no type annotations for their members.
_OPS: Any = torch.ops
_LIBRARY: Any = torch.library
# Members that are called in every step, so that they are not looked up each time.
_increment_version: Callable[[list[Tensor]], None] = torch._C._increment_version
_functorch_transform: Callable[[], object] = torch._C._functorch.peek_interpreter_stack


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


def _define_alr_loss_once() -> None:
    """Defines `alr_loss` for compiled code: it checks at run time that no backward pass is running.

    A check in Python code disappears once the graph is traced.
    """
    name = "alr_fast::alr_loss_once"
    schema = str(_OPS.alr_fast.alr_loss.default._schema)
    _LIBRARY.define(name, schema.removeprefix("alr_fast::alr_loss"))

    def alr_loss_once(*arguments: object) -> Outputs:
        check_not_in_backward()
        try:
            return _ALR_LOSS.call(*arguments)
        except RuntimeError as error:
            raise _typed(error) from None

    _LIBRARY.impl(name, ("cpu", *OTHER_DEVICES), alr_loss_once)


_IS_FIRST = not hasattr(_OPS.alr_fast, "alr_loss_once")  # or this module is loaded again
if _IS_FIRST:
    _define_alr_loss_once()

_ALR_LOSS = LossOperator("alr_loss")
_ALR_LOSS_ONCE = LossOperator("alr_loss_once")
_SOFT_TARGET_CROSS_ENTROPY = LossOperator("soft_target_cross_entropy")
_LABEL_SMOOTHING_CROSS_ENTROPY = LossOperator("label_smoothing_cross_entropy")

REDUCTIONS = {"none": 0, "mean": 1, "sum": 2}  # numbers of the enum in csrc/alr_params.h


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
        operator = _ALR_LOSS_ONCE if compiling else _ALR_LOSS
        others: tuple[object, ...] = (
            options.status, options.rounding_state, classes, values,
            options.momentum, options.entropy_weight, reduction, options.unique_index,
        )  # fmt: skip
    else:
        operator = _SOFT_TARGET_CROSS_ENTROPY
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
            _LABEL_SMOOTHING_CROSS_ENTROPY, logits, targets, others, options, special
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
    operator: LossOperator,
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
        loss, grad, _ = operator.call(logits.detach(), *targets, row_weight, *others, GRAD_FINAL)
        return loss, grad
    # Decided here, because grad mode is always off inside an operator.
    if logits.requires_grad and torch.is_grad_enabled():
        # float16 keeps the gradient of single rows, times a power of two: divided by the batch
        # size, small entries would be flushed before a gradient scaler's factor is applied. On CUDA
        # the number of valid rows is not known before the launch ends: a mean is divided by that of
        # all rows. Otherwise the final gradient is kept.
        per_row = logits.is_cuda or logits.dtype == torch.float16
        record = operator.record_special if special else operator.record
        mode = GRAD_PER_ROW if per_row else GRAD_FINAL
        return record(logits, *targets, row_weight, *others, mode), None
    return operator.call(logits, *targets, row_weight, *others, GRAD_NONE)[0], None


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


def _fake_loss(name: str) -> Callable[..., Outputs]:
    """The fake kernel of a loss: shapes and dtypes of its outputs."""
    names = [argument.name for argument in getattr(_OPS.alr_fast, name).default._schema.arguments]

    def fake(*arguments: Any) -> Outputs:
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
            logits.new_empty((0 if given["grad_mode"] == GRAD_NONE else rows, classes)),
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
