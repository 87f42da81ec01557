"""Loss, gradient and statistics of the rows of a batch, by `alr_fast.reference`."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from alr_fast import reference
from alr_fast._fallback.rounding import rounded_stochastically
from alr_fast._fallback.rows import Rows

_HAVE_FLOAT64 = ("cpu", "cuda")

# Numbers of the enums in csrc/alr_params.h.
_REDUCTION_NONE, _REDUCTION_MEAN = 0, 1
_GRAD_NONE, _GRAD_PER_ROW, _GRAD_FINAL = 0, 1, 2
_STATUS_NON_FINITE, _STATUS_OUT_OF_RANGE, _STATUS_WRONG_LABEL = 0, 1, 2

# Bounds of the target part of the gradient, as in csrc/ops.h.
BANK_GRAD_BOUND = 1.0
TABLE_GRAD_BOUND = 16.0

# Loss (scalar, or [B] without reduction), gradient rows [B, K] or [0, K], scale of the gradient.
Outputs = tuple[Tensor, Tensor, Tensor]


class Options(NamedTuple):
    """Arguments that all losses share."""

    row_weight: Tensor | None  # [B]
    status: Tensor | None  # [3]
    momentum: float
    entropy_weight: float
    reduction: int
    grad_mode: int
    grad_bound: float  # of the target part of the gradient, without momentum


def empty_outputs(logits: Tensor, options: Options) -> Outputs:
    """The outputs of an empty batch."""
    acc = _accumulation_dtype(logits)
    shape = (0,) if options.reduction == _REDUCTION_NONE else ()
    return (
        logits.new_zeros(shape, dtype=acc),
        logits.new_empty((0, logits.shape[1])),
        logits.new_full((), 1 / _stored_scale(logits, options), dtype=acc),
    )


def _accumulation_dtype(logits: Tensor) -> torch.dtype:
    """The type of a loss, in which the native operators calculate."""
    return torch.float64 if logits.dtype == torch.float64 else torch.float32


def shifted_logits(logits: Tensor, rows: Rows) -> Tensor:
    """Logits minus the largest of their row, NaN in rows that are not computed."""
    z = logits.to(torch.float64 if logits.device.type in _HAVE_FLOAT64 else torch.float32)
    z = z - z.amax(-1, keepdim=True)
    return z.masked_fill((rows.beyond | rows.wrong)[:, None], torch.nan)


def kept_rows(z: Tensor, rows: Rows) -> Tensor:
    """Rows [B] that have a softmax and are not ignored."""
    return rows.counted & z.logsumexp(-1).isfinite()


def row_losses(
    z: Tensor,
    table: Tensor,
    index: Tensor,
    rows: Rows,
    options: Options,
    stats_class: Tensor | None,
    *,
    update: bool,
) -> tuple[Tensor, reference.RowStats | None]:
    """Loss [B] of each row, and the statistics if they are asked for."""
    result = reference.alr_loss(
        z,
        table,
        index.masked_fill(~rows.counted, -1),
        momentum=options.momentum,
        entropy_weight=options.entropy_weight,
        reduction="none",
        update=update,
        return_stats=stats_class is not None,
    )
    return result if isinstance(result, tuple) else (result, None)


def store(
    bank: Tensor,
    new: Tensor,  # [B, K] bank row after the call, of each row
    rows: Rows,
    group: Tensor,  # [B]
    kept: Tensor,  # [B]
    rounding_state: Tensor | None,
) -> None:
    new = new.to(torch.float32)
    if rounding_state is not None:
        # The random bits of a row are those of the last row with its index.
        last = reference._last_kept(group, kept, len(group))
        new = rounded_stochastically(new, last, bank.dtype, rounding_state)
        rounding_state[1] += 1
    if len(bank) == 0:
        return
    # A row that stores nothing does what the first does that stores something: a selection of rows
    # has no shape before it is computed.
    source = reference._first_kept(kept)
    place = rows.target[source].to(bank.device)
    bank.detach()[place] = new[source].to(bank.device, bank.dtype)


def write_stats(
    stats: reference.RowStats, rows: Rows, stats_class: Tensor | None, stats_value: Tensor | None
) -> None:
    assert stats_class is not None and stats_value is not None  # where there are stats
    has_row = rows.counted & ~rows.beyond
    before, after = (c.masked_fill(~has_row, -1) for c in (stats.class_before, stats.class_after))
    stats_class.view(3, -1).copy_(torch.stack([stats.predicted, before, after]))
    stats_value.view(2, -1).copy_(torch.stack([stats.confidence, stats.max_target]))


def outputs(
    logits: Tensor, z: Tensor, old: Tensor, loss: Tensor, rows: Rows, options: Options
) -> Outputs:
    """Reduced loss, gradient rows and scale, from the loss [B] of each row; counts into status."""
    acc = _accumulation_dtype(logits)
    log_p = z.log_softmax(-1)
    if z.dtype == logits.dtype:
        loss = _wide_loss(logits, z, old, loss, options)
    loss = loss.to(acc)
    if options.status is not None:
        computed = rows.counted & ~rows.beyond & ~rows.wrong
        options.status[_STATUS_NON_FINITE] += (computed & ~loss.isfinite()).sum()
        options.status[_STATUS_OUT_OF_RANGE] += rows.beyond.sum()
        options.status[_STATUS_WRONG_LABEL] += rows.wrong.sum()
    if options.row_weight is not None:
        loss = loss * options.row_weight
    loss = loss.masked_fill(~rows.counted, 0)
    is_mean = options.reduction == _REDUCTION_MEAN
    count = rows.counted.sum().clamp(min=1) if is_mean else rows.counted.new_ones((), dtype=acc)
    if options.reduction != _REDUCTION_NONE:
        loss = (loss.to(z.dtype).sum() / count).to(acc)

    # What is applied to the rows, and what is left to the backward pass: csrc/alr_params.h.
    factor = torch.ones_like(z[:, 0])
    stored_scale = _stored_scale(logits, options)
    is_per_row = options.grad_mode == _GRAD_PER_ROW
    factor = factor * stored_scale if is_per_row else factor / count
    is_plain = is_per_row and logits.dtype == torch.float16
    if options.row_weight is not None and not is_plain:
        factor = factor * options.row_weight
    grad_scale = (1 / (count.to(z.dtype) * stored_scale)).to(acc)
    if options.grad_mode == _GRAD_NONE:
        return loss, logits.new_empty((0, logits.shape[1])), grad_scale
    grad = _logit_gradient(log_p, old, options).mul_(factor[:, None])
    grad.masked_fill_(~rows.counted[:, None], 0)
    return loss, grad.to(logits.dtype), grad_scale


def _logit_gradient(log_p: Tensor, old: Tensor, options: Options) -> Tensor:
    """dz = a (sum(T) p - T) - lambda p (log p + H); the target a T + (1 - a) p is a constant.

    Overwrites log_p.
    """
    # In place as far as possible: new memory costs more than the arithmetic.
    p = log_p.exp()
    log_p = log_p.clamp_(min=torch.finfo(log_p.dtype).min)  # p is 0 there
    entropy = -torch.linalg.vecdot(p, log_p)[:, None]
    grad = log_p.add_(entropy).mul_(p).mul_(-options.entropy_weight)
    mass = options.momentum * old.sum(-1, keepdim=True)
    return grad.addcmul_(p, mass).sub_(old, alpha=options.momentum)


def _wide_loss(logits: Tensor, z: Tensor, old: Tensor, loss: Tensor, options: Options) -> Tensor:
    """The loss [B] of rows whose finite logits differ by more than the range of their type.

    Such a difference is infinite, but the loss need not be. Scaled down, sum(T d) is within range.
    """
    down = 2.0**-20
    scaled = logits * down
    scaled = scaled - scaled.amax(-1, keepdim=True)
    old_part = -(old * scaled).masked_fill(old == 0, 0).sum(-1) / down
    log_sum = z.logsumexp(-1)
    log_p = z - log_sum[:, None]
    entropy = -(log_p.exp() * log_p.clamp(min=torch.finfo(z.dtype).min)).sum(-1)
    a = options.momentum
    wide = a * (old.sum(-1) * log_sum + old_part) + (1 - a + options.entropy_weight) * entropy
    return torch.where(log_sum.isfinite() & ~loss.isfinite(), wide, loss)


def _stored_scale(logits: Tensor, options: Options) -> float:
    """Factor of a kPerRow gradient that is already applied; csrc/ops.h."""
    if options.grad_mode != _GRAD_PER_ROW:
        return 1.0
    rows, classes = logits.shape
    if logits.dtype != torch.float16:
        return 1 / rows if options.reduction == _REDUCTION_MEAN and rows > 0 else 1.0
    entropy_bound = 1.1 + 0.25 * math.log(classes)
    bound = options.momentum * options.grad_bound + abs(options.entropy_weight) * entropy_bound
    return float(2.0 ** math.floor(math.log2(65504 / max(bound, 1.0))))
