"""Every loss on one small data set, and its comparison with a formula in float64."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from alr_fast import ALRLoss, LabelBank
from alr_fast.losses import (
    BackwardCorrectionLoss,
    CrossEntropyLoss,
    DistillationLoss,
    ELRLoss,
    ForwardCorrectionLoss,
    LabelSmoothingLoss,
    Loss,
    SATLoss,
    SELCLoss,
    SmearingLoss,
)

CLASSES = 5
GIVEN = torch.tensor([2, 0, 1, 1, 3, 0, 4, 4, 2])  # of nine samples
INDEX = torch.tensor([5, 0, 3, 1, 8, 6])  # of a batch of six
LABELS = GIVEN[INDEX]
REDUCTIONS = ("mean", "sum", "none")
F64 = torch.float64


def numbers(*shape: int, seed: int, spread: float = 1.0) -> torch.Tensor:
    """Normally distributed float64 numbers that float32 represents exactly."""
    g = torch.Generator().manual_seed(seed)
    return (spread * torch.randn(shape, generator=g)).double()


def distributions(rows: int, *, seed: int) -> torch.Tensor:
    return numbers(rows, CLASSES, seed=seed, spread=2).softmax(-1)


# Rows differ, no symmetry; the given label is mostly the true label.
TRANSITION = 0.6 * torch.eye(CLASSES, dtype=F64) + 0.4 * distributions(CLASSES, seed=1)
MATRIX = numbers(CLASSES, CLASSES, seed=2)
TEACHER = distributions(len(GIVEN), seed=3)
ROWS = distributions(len(GIVEN), seed=4).float()  # of a bank that has seen predictions


def bank(device="cpu", dtype=torch.float32, **options: Any) -> LabelBank:
    return LabelBank(ROWS.to(device, dtype, copy=True), GIVEN, device=device, **options)


@dataclass(frozen=True)
class Case:
    """A loss that is ready for its first batch."""

    name: str
    new: Callable[..., Loss]
    keeps_bank: bool = False
    reads_label: bool = True
    reads_index: bool = False

    def make(self, device="cpu", *, epoch: int = 1, **options: Any) -> Loss:
        if self.keeps_bank:
            options["bank"] = bank(device)
        criterion = self.new(**options).to(device)
        criterion.set_epoch(epoch)
        return criterion


def _with(loss: type[Loss], **fixed: Any) -> Callable[..., Loss]:
    return lambda **options: loss(**(fixed | options))


def _banked(name: str, loss: type[Loss], **fixed: Any) -> Case:
    return Case(name, _with(loss, **fixed), keeps_bank=True, reads_label=False, reads_index=True)


CASES = [
    Case("ce", CrossEntropyLoss),
    Case("smoothing", _with(LabelSmoothingLoss, smoothing=0.3)),
    Case("negative smoothing", _with(LabelSmoothingLoss, smoothing=-2.0, warmup_epochs=1)),
    Case("smoothing in warm-up", _with(LabelSmoothingLoss, smoothing=0.3, warmup_epochs=2)),
    Case("smearing", _with(SmearingLoss, matrix=MATRIX)),
    Case("backward", _with(BackwardCorrectionLoss, transition=TRANSITION)),
    Case("forward", _with(ForwardCorrectionLoss, transition=TRANSITION)),
    Case(
        "distillation",
        _with(DistillationLoss, teacher=TEACHER.float()),
        reads_label=False,
        reads_index=True,
    ),
    Case(
        "distillation at 2.5",
        _with(DistillationLoss, teacher=TEACHER.float(), temperature=2.5),
        reads_label=False,
        reads_index=True,
    ),
    _banked("selc", SELCLoss, warmup_epochs=1, momentum=0.7),
    _banked("alr", ALRLoss, warmup_epochs=1, momentum=0.7, entropy_weight=0.4),
    _banked("sat", SATLoss, warmup_epochs=1, momentum=0.7),
    Case("alr in warm-up", _with(ALRLoss, warmup_epochs=2), keeps_bank=True),
    Case("elr", _with(ELRLoss, momentum=0.7, weight=2.0), keeps_bank=True, reads_index=True),
]


def reduced(rows: torch.Tensor, reduction: str) -> torch.Tensor:
    return {"none": rows, "sum": rows.sum(), "mean": rows.mean()}[reduction]


def check(
    criterion: Loss,
    formula: Callable[[torch.Tensor], torch.Tensor],
    logits: torch.Tensor,
    labels: torch.Tensor | None = None,
    index: torch.Tensor | None = None,
) -> None:
    """Loss and gradient of float32 logits against a formula for the rows in float64.

    The gradient is that of the loss times arbitrary factors, so that rows are distinguished.
    """
    device = logits.device
    labels = LABELS.to(device) if labels is None else labels
    index = INDEX.to(device) if index is None else index
    leaf = logits.float().requires_grad_()
    exact = leaf.detach().cpu().double().requires_grad_()
    expected = reduced(formula(exact), criterion.reduction)
    loss = criterion(leaf, labels, index)
    assert loss.dtype == torch.float32
    factor = numbers(*loss.shape, seed=77)
    (want,) = torch.autograd.grad(expected, exact, factor)
    (grad,) = torch.autograd.grad(loss, leaf, factor.to(device).float())
    close(loss.detach(), expected.detach())
    close(grad, want)


def close(found: torch.Tensor, expected: torch.Tensor, *, rtol=1e-5, atol=4e-6) -> None:
    found, expected = found.cpu().double(), expected.cpu().double()
    torch.testing.assert_close(found, expected, rtol=rtol, atol=atol)
