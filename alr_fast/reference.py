"""The operations of `alr_fast.functional` in plain PyTorch: the definition that tests compare with.

For a row with logits z, `p = softmax(z)`, entropy `H = -sum_k p_k log p_k` and a constant target t,

    loss = -sum_k t_k log p_k + entropy_weight * H(p)

In Adaptive Label Refinement (Zhang et al., arXiv 2502.00386) t is the moving average of the
sample's row in the label bank and of the prediction, and becomes that row: `t = a T[i] + (1 - a)
p`, `T[i] = t`. Arguments and results are those of the functions of the same name in
`alr_fast.functional`. Out-of-range indices raise IndexError, and labels that differ from the given
ones ValueError. All of it is differentiable twice and works under every transform of torch; an
update of the bank, or the comparison with given labels, where those can do it at all.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor


class RowStats(NamedTuple):
    """Statistics of each row; -1 and NaN for rows that were ignored or are not finite.

    Attributes:
        predicted: [B] int64, class with the largest logit, the lowest on a tie.
        confidence: [B] float32, probability of the predicted class.
        class_before: [B] int64, class of the bank row before the call.
        class_after: [B] int64, class of the bank row after the call.
        max_target: [B] float32, largest entry of the target t.
    """

    predicted: Tensor
    confidence: Tensor
    class_before: Tensor
    class_after: Tensor
    max_target: Tensor


def alr_loss(
    logits: Tensor,  # [B, K]
    bank: Tensor,  # [N, K], updated in place
    index: Tensor,  # [B]
    *,
    momentum: float = 0.9,
    entropy_weight: float = 0.4,
    reduction: str = "mean",
    row_weight: Tensor | None = None,
    labels: Tensor | None = None,  # [B]
    given_labels: Tensor | None = None,  # [N]
    update: bool = True,
    unique_index: bool = False,
    return_stats: bool = False,
) -> Tensor | tuple[Tensor, RowStats]:
    """Loss against the refined targets; stores them in the bank."""
    valid = index >= 0 if labels is None else (index >= 0) & (labels >= 0)
    rows = index.clamp(min=0).long()
    if given_labels is not None:
        _check_labels(labels, rows, valid, given_labels)
    z = _upcast(logits).masked_fill(~valid[:, None], 0)
    old = bank[rows].to(z.dtype)
    target = momentum * old + (1 - momentum) * z.detach().softmax(-1)
    loss, finite = _row_loss(z, target, entropy_weight)
    if update and len(rows) > 0:
        # Every row stores something, because a selection of rows has no shape before it is
        # computed: rows of one index store the same.
        keep = valid & finite
        source = _first_kept(keep) if unique_index else _last_kept(rows, keep, len(bank))
        new = torch.where(keep[source, None], target[source], old[source])
        bank[rows[source]] = new.to(bank.dtype)
    loss = _reduce(loss, valid, reduction, row_weight)
    return (loss, _stats(z, old, bank[rows], target, valid, finite)) if return_stats else loss


def alr_loss_and_grad(
    logits: Tensor, bank: Tensor, index: Tensor, **options: Any
) -> tuple[Tensor, Tensor] | tuple[Tensor, Tensor, RowStats]:
    """`alr_loss` and the gradient of its (summed) loss with respect to the logits."""
    leaf = logits.detach().requires_grad_()
    with torch.enable_grad():
        result = alr_loss(leaf, bank, index, **options)
        loss, stats = result if isinstance(result, tuple) else (result, None)
        (grad,) = torch.autograd.grad(loss.sum(), leaf)
    return (loss.detach(), grad) if stats is None else (loss.detach(), grad, stats)


def soft_target_cross_entropy(
    logits: Tensor,  # [B, K]
    table: Tensor,  # [M, K], or [B, K] without an index
    index: Tensor | None = None,  # [B]
    *,
    entropy_weight: float = 0.0,
    reduction: str = "mean",
    row_weight: Tensor | None = None,
    labels: Tensor | None = None,  # [B]
    given_labels: Tensor | None = None,  # [M]
) -> Tensor:
    """Loss against rows of a table, gathered by an index, or one row for each sample."""
    if index is None:
        index = torch.arange(len(logits), device=logits.device)
    loss = alr_loss(
        logits,
        table,
        index,
        momentum=1.0,
        entropy_weight=entropy_weight,
        reduction=reduction,
        row_weight=row_weight,
        labels=labels,
        given_labels=given_labels,
        update=False,
    )
    assert isinstance(loss, Tensor)  # no stats
    return loss


def label_smoothing_cross_entropy(
    logits: Tensor,  # [B, K]
    labels: Tensor,  # [B]
    *,
    smoothing: float = 0.0,
    entropy_weight: float = 0.0,
    reduction: str = "mean",
    row_weight: Tensor | None = None,
    index: Tensor | None = None,  # [B]
    given_labels: Tensor | None = None,  # [N]
) -> Tensor:
    """Loss against `(1 - r) I + (r / K) J`, gathered by label (Lukasik et al., ICML 2020)."""
    if given_labels is not None:
        if index is None:
            raise ValueError("given_labels are compared with labels by index: pass both")
        samples, valid = index.clamp(min=0).long(), (index >= 0) & (labels >= 0)
        _check_labels(labels, samples, valid, given_labels)
    eye = torch.eye(logits.shape[1], dtype=_upcast(logits).dtype, device=logits.device)
    return soft_target_cross_entropy(
        logits,
        (1 - smoothing) * eye + smoothing / logits.shape[1],
        labels,
        entropy_weight=entropy_weight,
        reduction=reduction,
        row_weight=row_weight,
        labels=index,  # a row is ignored if either is negative
    )


def _upcast(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


def _row_loss(z: Tensor, target: Tensor, entropy_weight: float) -> tuple[Tensor, Tensor]:
    """Loss per row [B], and whether the row has a softmax [B]; a logit of -inf masks its class."""
    log_sum = z.logsumexp(-1, keepdim=True)
    log_p = z - log_sum
    cross_entropy = -(target * log_p).masked_fill(target == 0, 0).sum(-1)
    entropy = -(log_p.exp() * log_p.clamp(min=torch.finfo(z.dtype).min)).sum(-1)
    return cross_entropy + entropy_weight * entropy, log_sum.isfinite().squeeze(-1)


def _first_kept(keep: Tensor) -> Tensor:
    """For each row: itself if it is kept, otherwise the first row that is, or the first row."""
    order = torch.arange(len(keep), device=keep.device)
    return torch.where(keep, order, keep.int().argmax())


def _last_kept(rows: Tensor, keep: Tensor, size: int) -> Tensor:
    """For each row: the last kept row with its index, or the row itself."""
    order = torch.arange(len(rows), device=rows.device)
    last = torch.full((size,), -1, device=rows.device)
    last = last.scatter_reduce(0, rows, torch.where(keep, order, -1), "amax")[rows]
    return torch.where(last >= 0, last, order)


def _check_labels(labels: Tensor | None, rows: Tensor, valid: Tensor, given_labels: Tensor) -> None:
    """Compares the labels of rows that are not ignored with those of their samples."""
    if labels is None:
        raise ValueError("given_labels are compared with labels by index: pass both")
    wrong = valid & (given_labels[rows] != labels)
    if wrong.any():
        raise ValueError(
            f"rows {wrong.nonzero().flatten().tolist()} have other labels than those given to "
            "their samples: is index shifted?"
        )


def _reduce(loss: Tensor, valid: Tensor, reduction: str, row_weight: Tensor | None) -> Tensor:
    if row_weight is not None:
        loss = loss * row_weight.to(loss.dtype)
    loss = loss.masked_fill(~valid, 0)
    if reduction == "none":
        return loss
    return loss.sum() / valid.sum().clamp(min=1) if reduction == "mean" else loss.sum()


def _stats(
    z: Tensor, old: Tensor, new: Tensor, target: Tensor, valid: Tensor, finite: Tensor
) -> RowStats:
    keep = valid & finite
    return RowStats(
        z.argmax(-1).masked_fill(~keep, -1),
        z.detach().softmax(-1).amax(-1).masked_fill(~keep, torch.nan).float(),
        old.argmax(-1).masked_fill(~valid, -1),
        new.argmax(-1).masked_fill(~valid, -1),
        target.amax(-1).masked_fill(~keep, torch.nan).float(),
    )
