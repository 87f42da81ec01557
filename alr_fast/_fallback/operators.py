"""The operators: schemas, kernels in the order of the schemas, registration."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from alr_fast._fallback import checks
from alr_fast._fallback.compute import (
    BANK_GRAD_BOUND,
    TABLE_GRAD_BOUND,
    Options,
    Outputs,
    empty_outputs,
    kept_rows,
    outputs,
    row_losses,
    shifted_logits,
    store,
    write_stats,
)
from alr_fast._fallback.rows import gathered, groups, raise_if_wrong, rows_of

_LIBRARY: Any = torch.library
OTHER_DEVICES = ("cuda", "mps", "xpu")

# As in csrc/ops.cpp.
SCHEMAS = {
    "alr_loss": (
        "(Tensor logits, Tensor(a!) bank, Tensor index, Tensor? labels, "
        "Tensor? given_labels, Tensor? row_weight, Tensor(b!)? status, Tensor(c!)? rounding_state, "
        "Tensor(d!)? stats_class, "
        "Tensor(e!)? stats_value, float momentum, float entropy_weight, int reduction, "
        "bool unique_index, int grad_mode) -> (Tensor loss, Tensor grad_rows, Tensor grad_scale)"
    ),
    "soft_target_cross_entropy": (
        "(Tensor logits, Tensor table, Tensor? index, Tensor? labels, "
        "Tensor? given_labels, Tensor? row_weight, Tensor(b!)? status, Tensor(d!)? stats_class, "
        "Tensor(e!)? stats_value, float momentum, "
        "float entropy_weight, int reduction, int grad_mode) "
        "-> (Tensor loss, Tensor grad_rows, Tensor grad_scale)"
    ),
    "label_smoothing_cross_entropy": (
        "(Tensor logits, Tensor labels, Tensor? index, "
        "Tensor? given_labels, Tensor? row_weight, Tensor(b!)? status, float smoothing, float "
        "entropy_weight, int reduction, int grad_mode) "
        "-> (Tensor loss, Tensor grad_rows, Tensor grad_scale)"
    ),
    "scale_grad": (
        "(Tensor grad_rows, Tensor? grad_scale, Tensor grad_output, Tensor? row_weight) -> Tensor"
    ),
    "scale_grad_": (
        "(Tensor(a!) grad_rows, Tensor? grad_scale, Tensor grad_output, Tensor? row_weight) -> ()"
    ),
    "capture_id": "(Tensor on) -> int",
}


@torch.no_grad()
def alr_loss(
    logits: Tensor,
    bank: Tensor,
    index: Tensor,
    labels: Tensor | None,
    given_labels: Tensor | None,
    row_weight: Tensor | None,
    status: Tensor | None,
    rounding_state: Tensor | None,
    stats_class: Tensor | None,
    stats_value: Tensor | None,
    momentum: float,
    entropy_weight: float,
    reduction: int,
    unique_index: bool,
    grad_mode: int,
    *,
    raises: bool = True,
) -> Outputs:
    """Loss against refined target rows, which become the rows of the bank.

    Args:
        raises: Whether a wrong index or label raises, instead of making its row NaN.
    """
    checks.check_logits(logits)
    checks.check_bank(logits, bank)
    checks.check_integers(logits, index, "index")
    checks.check_labels_of_table(logits, bank, labels, given_labels)
    checks.check_int64(logits, rounding_state, 2, "rounding_state")
    options = Options(
        row_weight, status, momentum, entropy_weight, reduction, grad_mode, BANK_GRAD_BOUND
    )
    checks.check_options(logits, *options[:-1])
    checks.check_stats(logits, stats_class, stats_value)

    rows = rows_of(index, labels, len(bank), given_labels, of_table=True)
    if raises:
        raise_if_wrong(rows, index, labels, len(bank), given_labels, of_table=True)
    if len(logits) == 0:
        return empty_outputs(logits, options)
    z = shifted_logits(logits, rows)
    old = gathered(bank, rows, z.dtype)
    # Rows with one index share a row of this part of the bank.
    group = groups(rows.target)
    part = torch.zeros_like(old)
    part[group] = old
    loss, stats = row_losses(z, part, group, rows, options, stats_class, update=True)
    store(bank, part[group], rows, group, kept_rows(z, rows), rounding_state)
    if stats is not None:
        held = gathered(bank, rows, z.dtype).argmax(-1)
        write_stats(stats._replace(class_after=held), rows, stats_class, stats_value)
    return outputs(logits, z, old, loss, rows, options)


@torch.no_grad()
def soft_target_cross_entropy(
    logits: Tensor,
    table: Tensor,
    index: Tensor | None,
    labels: Tensor | None,
    given_labels: Tensor | None,
    row_weight: Tensor | None,
    status: Tensor | None,
    stats_class: Tensor | None,
    stats_value: Tensor | None,
    momentum: float,
    entropy_weight: float,
    reduction: int,
    grad_mode: int,
    *,
    raises: bool = True,
) -> Outputs:
    """Loss against the rows of a table; `raises` as in `alr_loss`."""
    checks.check_logits(logits)
    checks.check_table(logits, table, "table")
    if index is None:
        checks.check_row_for_each(logits, table)
    checks.check_integers(logits, index, "index")
    checks.check_labels_of_table(logits, table, labels, given_labels)
    options = Options(
        row_weight, status, momentum, entropy_weight, reduction, grad_mode, TABLE_GRAD_BOUND
    )
    checks.check_options(logits, *options[:-1])
    checks.check_stats(logits, stats_class, stats_value)

    order = torch.arange(len(logits), device=logits.device)
    index = order if index is None else index
    rows = rows_of(index, labels, len(table), given_labels, of_table=True)
    if raises:
        raise_if_wrong(rows, index, labels, len(table), given_labels, of_table=True)
    if len(logits) == 0:
        return empty_outputs(logits, options)
    z = shifted_logits(logits, rows)
    old = gathered(table, rows, z.dtype)
    loss, stats = row_losses(z, old, order, rows, options, stats_class, update=False)
    if stats is not None:
        write_stats(stats, rows, stats_class, stats_value)
    return outputs(logits, z, old, loss, rows, options)


@torch.no_grad()
def label_smoothing_cross_entropy(
    logits: Tensor,
    labels: Tensor,
    index: Tensor | None,
    given_labels: Tensor | None,
    row_weight: Tensor | None,
    status: Tensor | None,
    smoothing: float,
    entropy_weight: float,
    reduction: int,
    grad_mode: int,
    *,
    raises: bool = True,
) -> Outputs:
    """Loss against smoothed one-hot rows of labels; `raises` as in `alr_loss`."""
    checks.check_logits(logits)
    checks.check_smoothing(smoothing)
    checks.check_integers(logits, labels, "labels")
    checks.check_samples_of_labels(logits, index, given_labels)
    bound = 1 + abs(smoothing)
    options = Options(row_weight, status, 1.0, entropy_weight, reduction, grad_mode, bound)
    checks.check_options(logits, *options[:-1])

    classes = logits.shape[1]
    rows = rows_of(labels, index, classes, given_labels, of_table=False)
    if raises:
        raise_if_wrong(rows, labels, index, classes, given_labels, of_table=False)
    if len(logits) == 0:
        return empty_outputs(logits, options)
    z = shifted_logits(logits, rows)
    off_target = smoothing / classes
    old = torch.full_like(z, off_target)
    old.scatter_(1, rows.target[:, None], 1 - smoothing + off_target)
    order = torch.arange(len(logits), device=logits.device)
    loss, _ = row_losses(z, old, order, rows, options, None, update=False)
    return outputs(logits, z, old, loss, rows, options)


@torch.no_grad()
def scale_grad(
    grad_rows: Tensor,
    grad_scale: Tensor | None,
    grad_output: Tensor,
    row_weight: Tensor | None,
) -> Tensor:
    """Gradient rows times the factors of the batch and of each row."""
    checks.check_scale_grad(grad_rows, grad_scale, grad_output, row_weight)
    factor = grad_output if grad_scale is None else grad_scale * grad_output
    if row_weight is not None:
        factor = factor * row_weight
    return (grad_rows.to(factor.dtype) * factor.reshape(-1, 1)).to(grad_rows.dtype)


def scale_grad_(
    grad_rows: Tensor,
    grad_scale: Tensor | None,
    grad_output: Tensor,
    row_weight: Tensor | None,
) -> None:
    """`scale_grad` in place."""
    grad_rows.detach().copy_(scale_grad(grad_rows, grad_scale, grad_output, row_weight))


def capture_id(on: Tensor) -> int:
    """The CUDA graph that is being captured: none, since these operators are not made for one."""
    return 0


_Kernel = Callable[..., Any]
_LOSSES: dict[str, _Kernel] = {
    "alr_loss": alr_loss,
    "soft_target_cross_entropy": soft_target_cross_entropy,
    "label_smoothing_cross_entropy": label_smoothing_cross_entropy,
}
_OTHERS: dict[str, _Kernel] = {
    "scale_grad": scale_grad,
    "scale_grad_": scale_grad_,
    "capture_id": capture_id,
}


def define_operators() -> None:
    """Defines the operators, with these kernels on the CPU."""
    for name, schema in SCHEMAS.items():
        _LIBRARY.define(f"alr_fast::{name}", schema)
    for name, kernel in (_LOSSES | _OTHERS).items():
        _LIBRARY.impl(f"alr_fast::{name}", "cpu", kernel)


def add_devices(*, has_cuda: bool, on_use: Callable[[], None]) -> None:
    """Adds these kernels to the defined operators, for the devices that have none.

    Args:
        has_cuda: Whether there are native kernels for CUDA.
        on_use: Called at the beginning of each loss there.
    """

    def kernel_of(loss: _Kernel) -> _Kernel:
        def kernel(*arguments: object) -> Any:
            on_use()
            return loss(*arguments, raises=False)

        return kernel

    devices = tuple(name for name in OTHER_DEVICES if not (has_cuda and name == "cuda"))
    for name, loss in _LOSSES.items():
        _LIBRARY.impl(f"alr_fast::{name}", devices, kernel_of(loss))
    for name, kernel in _OTHERS.items():
        _LIBRARY.impl(f"alr_fast::{name}", devices, kernel)
