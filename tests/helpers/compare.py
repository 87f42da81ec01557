"""Criteria for a correct result of the operations.

The exact result is the reference in float64, the eager result the reference in the dtypes of the
inputs. The error of each element of a result may be twice the largest error of the eager result,
plus a few units in the last place; the same holds for the whole result in the L2 norm. Errors are
relative to the sum of the magnitudes of the terms of an element: a rounded calculation can reach
that accuracy, and a zero or stale result cannot.
"""

from typing import Any

import torch
from torch import Tensor

from helpers.problems import Problem, Result, run_eager, run_exact, run_fused

# A few roundings: of a few terms and of the result.
_FLOOR_ULPS = 4
# The exact result is float64 as well: both have errors, mainly of exp(z - max).
_FLOOR_ULPS_FLOAT64 = 256
# No limit may be wide enough for a wrong result to pass: one bfloat16 unit is 2^-7.
_LARGEST_LIMIT = 0.07


def check(operation: str, problem: Problem, **options: Any) -> Result:
    """Runs the fused operation; raises AssertionError if any of its results is wrong."""
    fused = run_fused(operation, problem, **options)
    assert_right(fused, operation, problem, **options)
    return fused


def assert_right(actual: Result, operation: str, problem: Problem, **options: Any) -> None:
    """Compares loss, gradient, the whole table and the stats with the reference."""
    exact = run_exact(operation, problem, **options)
    eager = run_eager(operation, problem, **options)
    loss_scale, grad_scale = _magnitudes(operation, problem, **options)
    is_double = problem.logits.dtype == torch.float64
    assert actual.loss.dtype == (torch.float64 if is_double else torch.float32)
    assert actual.grad.dtype == problem.logits.dtype
    assert_accurate("loss", actual.loss, eager.loss, exact.loss, loss_scale)
    assert_accurate("gradient", actual.grad, eager.grad, exact.grad, grad_scale)
    if problem.table is not None:
        _compare_tables(actual.table, eager.table, exact.table, problem.table)
    if options.get("return_stats"):
        _compare_stats(actual, eager, exact, problem)


def assert_accurate(
    what: str, actual: Tensor, eager: Tensor, exact: Tensor, scale: Tensor | None = None
) -> None:
    """Checks a result; `scale` is the magnitude of its elements' terms, by default `exact`."""
    assert actual.shape == exact.shape, f"{what}: shape {actual.shape}, not {exact.shape}"
    unit = torch.finfo(actual.dtype).eps
    got, want, plain = actual.double(), exact.double(), eager.double()
    finite = want.isfinite()
    special_got, special_want = got[~finite], want[~finite]
    same = (special_got == special_want) | (special_got.isnan() & special_want.isnan())
    assert same.all(), f"{what}: {special_got} where {special_want} is right"
    assert got[finite].isfinite().all(), f"{what}: not finite where the exact result is"
    if not finite.any():
        return
    # Below the smallest normal numbers (of float32 too, in which 16-bit results are calculated) the
    # unit stays the same.
    least = max(torch.finfo(actual.dtype).tiny, 2.0**-103 if unit > 1e-12 else 0)
    size = (want.abs() if scale is None else scale.double().expand_as(want))[finite].clamp(least)
    floor = (_FLOOR_ULPS if unit > 1e-12 else _FLOOR_ULPS_FLOAT64) * unit
    error, eager_error = (got - want)[finite], (plain - want)[finite]
    worst = (error.abs() / size).max().item()
    limit = 2 * (eager_error.abs() / size).max().item() + floor
    assert limit < _LARGEST_LIMIT, f"{what}: eager itself is off by {limit / 2:.2g}"
    assert worst <= limit, f"{what}: an element is off by {worst:.3g}, allowed {limit:.3g}"
    # Divided by the largest size first, since squares of the smallest numbers would underflow.
    largest = size.max()
    norm = (size / largest).norm()
    distance = ((error / largest).norm() / norm).item()
    limit = 2 * ((eager_error / largest).norm() / norm).item() + floor
    assert distance <= limit, f"{what}: L2 error {distance:.3g}, allowed {limit:.3g}"


def _compare_tables(actual: Tensor, eager: Tensor, exact: Tensor, before: Tensor) -> None:
    touched = (exact != before.double()).any(-1)
    assert same_bits(actual[~touched], before[~touched]), "a row was changed that should not be"
    if touched.any():
        assert_accurate("bank", actual[touched], eager[touched], exact[touched])


def _compare_stats(actual: Result, eager: Result, exact: Result, problem: Problem) -> None:
    got, want = actual.stats, exact.stats
    assert torch.equal(got.predicted, want.predicted), "predicted class"
    assert torch.equal(got.class_before, want.class_before), "class before"
    # The class of the rounded row, not of the exact row.
    valid = problem.index >= 0
    held = actual.table[problem.index.clamp(min=0).long()].argmax(-1)
    assert torch.equal(got.class_after, held.masked_fill(~valid, -1)), "class after"
    for name in ("confidence", "max_target"):
        assert_accurate(name, *(getattr(r.stats, name) for r in (actual, eager, exact)))


def same_bits(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors are bit-identical, NaNs included."""
    bits = {2: torch.int16, 4: torch.int32, 8: torch.int64}[a.element_size()]
    return a.dtype == b.dtype and torch.equal(a.contiguous().view(bits), b.contiguous().view(bits))


def _magnitudes(
    operation: str,
    problem: Problem,
    *,
    momentum: float = 0.9,
    entropy_weight: float | None = None,
    smoothing: float = 0.0,
    reduction: str = "mean",
    row_weight: Tensor | None = None,
    grad_output: Tensor | None = None,
    **_: Any,
) -> tuple[Tensor, Tensor]:
    """Sums of the absolute terms of the loss and of each element of the gradient."""
    z = problem.logits.double()
    is_alr = operation.startswith("alr_loss")
    a = momentum if is_alr else 1.0
    lam = abs((0.4 if is_alr else 0.0) if entropy_weight is None else entropy_weight)
    p = z.softmax(-1)
    # log p is a difference of numbers of magnitude 1: its error is not smaller than theirs.
    log_p = 1 + z.log_softmax(-1).abs().masked_fill(p == 0, 0)
    old = _old_rows(problem, smoothing).abs()
    target = a * old + (1 - a) * p
    entropy = (p * log_p).sum(-1, keepdim=True)
    loss = (target * log_p).sum(-1) + lam * entropy.squeeze(-1)
    grad = target.sum(-1, keepdim=True) * p + target + lam * p * (log_p + entropy)
    factor = torch.ones_like(loss) if row_weight is None else row_weight.double().abs()
    if problem.index is not None:
        factor = factor.masked_fill(problem.index < 0, 0)
    loss = (loss * factor).nan_to_num(0)
    if reduction == "mean":
        count = len(z) if problem.index is None else (problem.index >= 0).sum().clamp(min=1)
        factor = factor / count
        loss = loss / count
    if grad_output is not None:
        factor = factor * grad_output.double().abs()
    loss = loss if reduction == "none" else loss.sum()
    return loss, (grad * factor[:, None]).nan_to_num(0)


def _old_rows(problem: Problem, smoothing: float) -> Tensor:
    z = problem.logits
    if problem.table is None:
        eye = torch.eye(z.shape[1], dtype=torch.float64, device=z.device)
        table = (1 - smoothing) * eye + smoothing / z.shape[1]
    else:
        table = problem.table.double()
    return table if problem.index is None else table[problem.index.clamp(min=0).long()]
