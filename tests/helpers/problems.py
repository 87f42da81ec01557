"""Inputs of the operations, and one way to run each implementation on them."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from alr_fast import functional, reference

OPERATIONS = (
    "alr_loss",
    "alr_loss_and_grad",
    "soft_target_cross_entropy",
    "label_smoothing_cross_entropy",
)


@dataclass(frozen=True)
class Problem:
    """Inputs of an operation; `table` is the bank of the operations that update one."""

    logits: Tensor  # [B, K]
    table: Tensor | None  # [N, K]
    index: Tensor | None  # [B] index in the table, or labels if there is no table

    def double(self) -> "Problem":
        """The same values in float64, for the exact result."""
        table = None if self.table is None else self.table.double()
        return Problem(self.logits.double(), table, self.index)

    def with_(self, **changes: Any) -> "Problem":
        return replace(self, **changes)


@dataclass(frozen=True)
class Result:
    loss: Tensor
    grad: Tensor  # [B, K]
    table: Tensor | None  # [N, K], after the call
    stats: reference.RowStats | None = None


def make_problem(
    batch: int,
    classes: int,
    *,
    device: torch.device | str = "cpu",
    logits: torch.dtype = torch.float32,
    bank: torch.dtype = torch.float32,
    index: torch.dtype = torch.int64,
    spread: float = 1.0,
    rows: int | None = None,
    seed: int = 0,
) -> Problem:
    """A batch with distinct indices, and a bank of which it touches fewer than half of the rows.

    The rows of the bank sum to 0.75 to 1.25, so that a lost factor S has an effect.
    """
    g = torch.Generator().manual_seed(seed + 1000 * batch + classes)
    rows = 2 * batch + 3 if rows is None else rows
    z = spread * torch.randn(batch, classes, generator=g)
    table = (2 * torch.randn(rows, classes, generator=g)).softmax(-1)
    table *= 0.75 + 0.5 * torch.rand(rows, 1, generator=g)
    i = torch.randperm(rows, generator=g)[:batch]
    return Problem(z.to(device, logits), table.to(device, bank), i.to(device, index))


def label_problem(batch: int, classes: int, **options: Any) -> Problem:
    """A batch with labels instead of a table."""
    problem = make_problem(batch, classes, **options)
    labels = torch.arange(batch) * 7 % classes
    return problem.with_(table=None, index=labels.to(problem.index))


def problem_for(operation: str, batch: int, classes: int, **options: Any) -> Problem:
    make = label_problem if operation == "label_smoothing_cross_entropy" else make_problem
    return make(batch, classes, **options)


def run(
    module: ModuleType,
    operation: str,
    problem: Problem,
    *,
    grad_output: Tensor | None = None,
    **options: Any,
) -> Result:
    """Calls an operation of `functional` or `reference` on a copy of the problem's table.

    The gradient is that of the loss, or of `(loss * grad_output).sum()`.
    """
    function = getattr(module, operation)
    leaf = problem.logits.detach().requires_grad_()  # same storage, strides and offset
    table = None if problem.table is None else problem.table.clone()
    tensors = [t for t in (table, problem.index) if t is not None]
    returned = function(leaf, *tensors, **options)
    loss, *extra = returned if isinstance(returned, tuple) else (returned,)
    if operation == "alr_loss_and_grad":
        assert not loss.requires_grad
        grad = extra.pop(0)
    else:
        weight = torch.ones_like(loss) if grad_output is None else grad_output.to(loss.dtype)
        (grad,) = torch.autograd.grad(loss, leaf, weight)
    return Result(loss.detach(), grad, table, extra[0] if extra else None)


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Runs a block with a number of threads of torch."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def run_fused(operation: str, problem: Problem, **options: Any) -> Result:
    # Smaller batches are not divided (csrc/cpu/launch.cpp).
    with threads(2 if problem.logits.numel() > 8192 else 1):
        return run(functional, operation, problem, **options)


def run_eager(operation: str, problem: Problem, **options: Any) -> Result:
    return run(reference, operation, problem, **options)


def run_exact(operation: str, problem: Problem, **options: Any) -> Result:
    if options.get("row_weight") is not None:
        options["row_weight"] = options["row_weight"].double()
    return run(reference, operation, problem.double(), **options)


def skip_float64_on_cuda(dtype: torch.dtype, device: torch.device) -> None:
    if dtype == torch.float64 and device.type == "cuda":
        pytest.skip("float64 logits are taken on the CPU only")
