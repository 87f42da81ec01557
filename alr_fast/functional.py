"""The fused operations: softmax, loss, entropy term, gradient and label bank update in one pass.

`alr_fast.reference` defines them in plain PyTorch; the kernels are in csrc/. All operations take
logits in float32, float16 or bfloat16 (float64 too on the CPU), with a contiguous last dimension
and any stride between rows, and compute in float32 (float64 for float64 logits) with one rounding
at the end (a 16-bit gradient that a backward pass multiplies by another factor than 1 is rounded
again, to the same type). They work under autocast, under `torch.compile(fullgraph=True)`, inside
CUDA graphs and with deterministic algorithms. Only the logits get a gradient, and a double backward
raises an error.

Rows without a value:
    * A negative index or label ignores its row: loss 0, gradient 0, no update, not counted in a
      mean.
    * With `given_labels`, a row whose label differs from that of its sample raises ValueError on
      the CPU before anything is written; elsewhere its loss and gradient are NaN, nothing is
      stored, and `LabelBank.check` raises later.
    * An index beyond the table, or a label beyond the classes, raises IndexError on the CPU before
      anything is written. On CUDA, where raising would mean waiting for the device, loss and
      gradient of the row are NaN and nothing is stored; `LabelBank.check` raises later.
    * A row whose logits contain NaN or +inf, or are all -inf, has NaN as loss and gradient and does
      not change its bank row. A single -inf logit masks its class.
"""

from typing import Any

from torch import Tensor

from alr_fast._inputs import as_labels, as_weights
from alr_fast._operators import LossOptions, label_loss, table_loss
from alr_fast.reference import RowStats

__all__ = [
    "RowStats",
    "alr_loss",
    "alr_loss_and_grad",
    "label_smoothing_cross_entropy",
    "soft_target_cross_entropy",
]


def alr_loss(
    logits: Tensor,
    bank: Tensor,
    index: Any,
    *,
    momentum: float = 0.9,
    entropy_weight: float = 0.4,
    reduction: str = "mean",
    row_weight: Any = None,
    labels: Any = None,
    given_labels: Tensor | None = None,
    update: bool = True,
    unique_index: bool = False,
    return_stats: bool = False,
) -> Tensor | tuple[Tensor, RowStats]:
    """Adaptive Label Refinement: loss against the refined targets, which become the bank's rows.

    With `p = softmax(logits)` and `t = momentum * bank[index] + (1 - momentum) * p`, p detached,
    the loss of a row is `-sum(t log p) + entropy_weight * H(p)`, and `bank[index] = t` (Zhang et
    al., arXiv 2502.00386). If an index occurs more than once, every row reads the old bank row, and
    the last valid row in batch order is stored.

    Args:
        logits: [B, K].
        bank: [N, K] float32, float16 or bfloat16, updated in place; on the device of the logits, or
            in pinned host memory with logits on a GPU.
        index: [B] integers of any type, index in the bank of each row; below 0: row ignored.
        momentum: share of the old bank row in the target, in [0, 1].
        entropy_weight: weight of the entropy term; 0 is SELC. The defaults of momentum and
            entropy weight are this project's own, not the paper's: see docs/method.md.
        reduction: "mean" over the rows not ignored (0 if all are ignored), "sum" or "none".
        row_weight: [B] constant factor on the loss of each row; "mean" still divides by the number
            of rows.
        labels: [B] labels, integers of any type, that came with the batch; below 0: row ignored.
        given_labels: [N] int32, contiguous: the label of each sample, with which `labels` are
            compared, so that a wrong index is noticed.
        update: whether the targets are stored.
        unique_index: promise that no index occurs twice in the batch, which saves a launch. If one
            does, loss, gradient and bank row of these rows are undefined.
        return_stats: also return the `RowStats`.

    Returns:
        The loss, float32 (float64 for float64 logits): a scalar, or [B] with reduction "none"; with
        `return_stats` the loss and the stats.

    Raises:
        RuntimeError: a shape, dtype, device or number is wrong; or an update was reached during a
            backward pass, where activation checkpointing recomputes the forward pass and would
            apply it a second time.
        ValueError: the reduction is unknown, the bank or `row_weight` requires a gradient, or a
            label differs from the given one (on the CPU).
        IndexError: an index is beyond the bank (on the CPU).
    """
    options = LossOptions(
        momentum=momentum,
        entropy_weight=entropy_weight,
        reduction=reduction,
        row_weight=_weights(row_weight, logits),
        labels=_integers(labels, "labels", logits),
        given_labels=given_labels,
        update=update,
        unique_index=unique_index,
        return_stats=return_stats,
    )
    loss, _, stats = table_loss(
        logits, bank, as_labels(index, "index", device=logits.device), options
    )
    return loss if stats is None else (loss, stats)


def alr_loss_and_grad(
    logits: Tensor,
    bank: Tensor,
    index: Any,
    *,
    momentum: float = 0.9,
    entropy_weight: float = 0.4,
    reduction: str = "mean",
    row_weight: Any = None,
    labels: Any = None,
    given_labels: Tensor | None = None,
    update: bool = True,
    unique_index: bool = False,
    return_stats: bool = False,
) -> tuple[Tensor, Tensor] | tuple[Tensor, Tensor, RowStats]:
    """`alr_loss` and its gradient in one launch, for `logits.backward(grad_logits)`.

    Args:
        logits: [B, K]; they need not require a gradient.
        bank: see `alr_loss`, as for all other arguments.

    Returns:
        (loss, grad_logits), with `return_stats` (loss, grad_logits, stats). `grad_logits` is [B, K]
        in the dtype of the logits: the gradient of the loss, of its sum with reduction "none". With
        float16 logits, pass the factor of the gradient scaler as `row_weight`, so that small
        entries survive.

    Raises:
        RuntimeError, ValueError, IndexError: see `alr_loss`.
    """
    options = LossOptions(
        momentum=momentum,
        entropy_weight=entropy_weight,
        reduction=reduction,
        row_weight=_weights(row_weight, logits),
        labels=_integers(labels, "labels", logits),
        given_labels=given_labels,
        update=update,
        unique_index=unique_index,
        return_stats=return_stats,
        with_grad=True,
    )
    loss, grad, stats = table_loss(
        logits, bank, as_labels(index, "index", device=logits.device), options
    )
    assert grad is not None  # with_grad
    return (loss, grad) if stats is None else (loss, grad, stats)


def soft_target_cross_entropy(
    logits: Tensor,
    table: Tensor,
    index: Any = None,
    *,
    entropy_weight: float = 0.0,
    reduction: str = "mean",
    row_weight: Any = None,
    labels: Any = None,
    given_labels: Tensor | None = None,
) -> Tensor:
    """Cross entropy against soft target rows, gathered by an index or one for each row.

    `-sum(t log p) + entropy_weight * H(p)` with `t = table[index]`. The rows need not be
    probabilities: a label-smearing matrix may have negative entries (Lukasik et al., ICML 2020).

    Args:
        logits: [B, K].
        table: [M, K] float32, float16 or bfloat16, constant; [B, K] without an index. With float16
            logits the magnitudes of a row should sum to at most 16, or the gradient may overflow.
        index: [B] integers of any type, rows of the table; below 0: row ignored.
        entropy_weight: weight of the entropy term.
        reduction: "mean" over the rows not ignored (0 if all are ignored), "sum" or "none".
        row_weight: [B] constant factor on the loss of each row.
        labels: [B] labels, integers of any type, that came with the batch; below 0: row ignored.
        given_labels: [M] int32, contiguous: the label of each sample, with which `labels` are
            compared; see `alr_loss`.

    Returns:
        The loss, float32 (float64 for float64 logits): a scalar, or [B] with reduction "none".

    Raises:
        RuntimeError: a shape, dtype, device or number is wrong.
        ValueError: the reduction is unknown, the table or `row_weight` requires a gradient, or a
            label differs from the given one (on the CPU).
        IndexError: an index is beyond the table (on the CPU).
    """
    options = LossOptions(
        entropy_weight=entropy_weight,
        reduction=reduction,
        row_weight=_weights(row_weight, logits),
        labels=_integers(labels, "labels", logits),
        given_labels=given_labels,
    )
    return table_loss(logits, table, _integers(index, "index", logits), options).loss


def label_smoothing_cross_entropy(
    logits: Tensor,
    labels: Any,
    *,
    smoothing: float = 0.0,
    entropy_weight: float = 0.0,
    reduction: str = "mean",
    row_weight: Any = None,
    index: Any = None,
    given_labels: Tensor | None = None,
) -> Tensor:
    """Cross entropy against `(1 - smoothing) * one_hot(label) + smoothing / K`; reads no table.

    Args:
        logits: [B, K].
        labels: [B] integers of any type; below 0: row ignored.
        smoothing: rate of label smoothing; 0 is plain cross entropy, a negative rate is generalised
            label smoothing (Wei et al., ICML 2022).
        entropy_weight: weight of the entropy term.
        reduction: "mean" over the rows not ignored (0 if all are ignored), "sum" or "none".
        row_weight: [B] constant factor on the loss of each row.
        index: [B] int64 or int32 index of each row's sample; below 0: row ignored.
        given_labels: [N] int32, contiguous: the label of each sample, with which `labels` are
            compared; needs `index`. See `alr_loss`.

    Returns:
        The loss, float32 (float64 for float64 logits): a scalar, or [B] with reduction "none".

    Raises:
        RuntimeError: a shape, dtype, device or number is wrong.
        ValueError: the reduction is unknown, `row_weight` requires a gradient, or a label differs
            from the given one (on the CPU).
        IndexError: a label is beyond the classes, or an index beyond the given labels (on the CPU).
    """
    options = LossOptions(
        smoothing=smoothing,
        entropy_weight=entropy_weight,
        reduction=reduction,
        row_weight=_weights(row_weight, logits),
        sample_index=_integers(index, "index", logits),
        given_labels=given_labels,
    )
    return label_loss(logits, as_labels(labels, "labels", device=logits.device), options).loss


def _integers(value: Any, name: str, logits: Tensor) -> Tensor | None:
    return None if value is None else as_labels(value, name, device=logits.device)


def _weights(value: Any, logits: Tensor) -> Tensor | None:
    if value is None or isinstance(value, Tensor):
        return value
    return as_weights(value, "row_weight", len(logits), like=logits)
