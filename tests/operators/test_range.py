"""Logits near the largest number of their type, which differ by more than its range."""

from fractions import Fraction

import pytest
import torch

from alr_fast import reference
from alr_fast.functional import alr_loss, label_smoothing_cross_entropy
from helpers.compare import same_bits
from helpers.problems import skip_float64_on_cuda

BF16, F32, F64 = torch.bfloat16, torch.float32, torch.float64
SIZES = [3, 10, 77, 515, 3001]


def far_apart(classes, dtype, device):
    """Rows of which one class has all of the probability, and the largest number."""
    huge = torch.finfo(dtype).max
    z = torch.randn(6, classes, device=device).to(dtype)
    z[0, 0], z[0, 1] = huge, -huge  # two differ
    z[1], z[1, 2] = -huge, huge  # all differ from one
    z[2, :2] = huge  # two share the probability
    z[2, 2] = -huge
    z[3, 1] = 0.6 * huge
    z[4] = -huge
    return z


def shifted(z):
    """The logits in float64 with the largest at 0, which changes no softmax."""
    wide = z.cpu().double()
    return wide - wide.amax(-1, keepdim=True)


@pytest.mark.parametrize("classes", SIZES)
@pytest.mark.parametrize("dtype", [F32, BF16], ids=str)
@pytest.mark.parametrize("smoothing", [-0.4, -1e-3, 0.0, 0.1])
def test_label_smoothing_is_exact(device, smoothing, dtype, classes):
    z = far_apart(classes, dtype, device)
    labels = torch.tensor([0, 2, 1, 1, 0, 1], device=device)
    for entropy_weight in (0.0, 0.3):
        options = dict(smoothing=smoothing, entropy_weight=entropy_weight)
        exact = reference.label_smoothing_cross_entropy(
            shifted(z), labels.cpu(), reduction="none", **options
        )
        loss = label_smoothing_cross_entropy(z, labels, reduction="none", **options).cpu()
        # What is beyond the largest float32 is infinite, and nothing is NaN.
        torch.testing.assert_close(loss, exact.float(), rtol=1e-5, atol=1e-5)
        leaf = z.clone().requires_grad_()
        label_smoothing_cross_entropy(leaf, labels, reduction="sum", **options).backward()
        wide = shifted(z).requires_grad_()
        reference.label_smoothing_cross_entropy(
            wide, labels.cpu(), reduction="sum", **options
        ).backward()
        eps = torch.finfo(dtype).eps
        torch.testing.assert_close(leaf.grad.cpu().double(), wide.grad, rtol=2 * eps, atol=1e-5)
    assert exact.isfinite().all()


@pytest.mark.parametrize("classes", SIZES)
@pytest.mark.parametrize("dtype", [F32, BF16], ids=str)
@pytest.mark.parametrize("repeats", [1, 2])
def test_a_bank_without_mass_there_is_exact(device, repeats, dtype, classes):
    """One-hot rows: T = 0 where the difference from the largest logit is beyond float32."""
    z = far_apart(classes, dtype, device).repeat(repeats, 1)
    index = torch.arange(6, device=device).repeat(repeats)
    bank = torch.zeros(8, classes, device=device)
    bank[range(6), [0, 2, 1, 1, 0, 1]] = 1
    exact_bank, finite_bank = bank.cpu().clone(), bank.clone()
    loss, stats = alr_loss(z, bank, index, reduction="none", return_stats=True)
    exact = reference.alr_loss(shifted(z), exact_bank, index.cpu(), reduction="none")
    torch.testing.assert_close(loss.cpu(), exact.float(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(bank.cpu(), exact_bank)
    assert not same_bits(bank, finite_bank)
    assert stats.predicted[:4].tolist() == [0, 2, 0, 1]
    assert loss.isfinite().all()


@pytest.mark.parametrize("classes", SIZES)
def test_float64(device, classes):
    skip_float64_on_cuda(F64, device)
    z = far_apart(classes, F64, device)[:2]
    labels = torch.tensor([0, 2])
    loss = label_smoothing_cross_entropy(z, labels, smoothing=-0.2, reduction="none")
    off = Fraction(-0.2 / classes)
    for b in range(2):
        row = [Fraction(x) for x in z[b].tolist()]
        # The label has all of the probability, so that log p is the difference from its logit.
        exact = -sum(off * (x - max(row)) for x in row)
        assert abs(Fraction(loss[b].item()) / exact - 1) < Fraction(1e-12)


def test_rows_without_a_softmax_stay_nan(device):
    z = far_apart(10, F32, device)
    z[0, 5], z[1, 5], z[2] = float("nan"), float("inf"), -float("inf")
    labels = torch.zeros(6, dtype=torch.int64, device=device)
    loss = label_smoothing_cross_entropy(z, labels, smoothing=-0.1, reduction="none")
    assert loss.isnan().tolist() == [True] * 3 + [False] * 3
