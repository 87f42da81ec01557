"""Identities between the losses, for sizes and numbers that hypothesis draws."""

from typing import NamedTuple

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from alr_fast import ALRLoss, LabelBank
from alr_fast.functional import label_smoothing_cross_entropy, soft_target_cross_entropy
from alr_fast.losses import (
    BackwardCorrectionLoss,
    CrossEntropyLoss,
    DistillationLoss,
    ELRLoss,
    ForwardCorrectionLoss,
    LabelSmoothingLoss,
    SATLoss,
    SELCLoss,
    SmearingLoss,
)
from alr_fast.noise.transition import symmetric_transition
from helpers.loss_cases import REDUCTIONS

moderately = settings(max_examples=25, deadline=None)
reductions = st.sampled_from(REDUCTIONS)
rates = st.floats(-3, 0.9)  # of smoothing
noise_rates = st.floats(0, 0.9)
momenta = st.sampled_from([0.0, 0.3, 0.9, 1.0])


class Batch(NamedTuple):
    """A batch of a data set, with labels and indices that ignore rows."""

    logits: Tensor
    labels: Tensor
    index: Tensor
    given: Tensor  # [N] labels of the data set
    rows: Tensor  # [N, K] of a bank

    @property
    def classes(self):
        return self.logits.shape[1]

    def bank(self):
        return LabelBank(self.rows.clone(), self.given)

    def without_duplicates(self):
        seen = [bool((self.index[:i] == n).any()) for i, n in enumerate(self.index)]
        again = torch.tensor(seen, dtype=torch.bool)
        return self._replace(
            labels=self.labels.masked_fill(again, -1), index=self.index.masked_fill(again, -1)
        )


@st.composite
def batches(draw):
    size, classes, samples = draw(st.integers(0, 8)), draw(st.integers(2, 12)), 10
    g = torch.Generator().manual_seed(draw(st.integers(0, 2**16)))
    spread = draw(st.sampled_from([0.01, 1, 10]))
    logits = spread * torch.randn(size, classes, generator=g)
    logits = logits.to(draw(st.sampled_from([torch.float32, torch.float64])))
    given_labels = torch.randint(classes, (samples,), generator=g)
    rows = torch.randn(samples, classes, generator=g).softmax(-1)
    index = torch.randint(samples, (size,), generator=g)  # with duplicates
    labels = given_labels[index]
    if draw(st.booleans()):
        ignored = torch.rand(size, generator=g) < 0.3
        labels, index = labels.masked_fill(ignored, -1), index.masked_fill(ignored, -1)
    return Batch(logits, labels, index, given_labels, rows)


def results(criterion, batch):
    return criterion.loss_and_grad(batch.logits, batch.labels, batch.index)


def assert_alike(one, other, batch, *, tolerance=1e-5):
    """Checks that two losses have the same value and gradient, typically of a size around 1."""
    for found, expected in zip(results(one, batch), results(other, batch), strict=True):
        torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)
    if one.bank is not None and other.bank is not None:
        assert torch.equal(one.bank.rows, other.bank.rows)


def smoothing_matrix(classes, rate):
    return torch.from_numpy(symmetric_transition(classes, rate))


# Losses on given labels.


@moderately
@given(batches(), reductions)
def test_smearing_with_the_identity_is_cross_entropy(batch, reduction):
    smearing = SmearingLoss(torch.eye(batch.classes), reduction=reduction)
    assert_alike(smearing, CrossEntropyLoss(reduction=reduction), batch)


@moderately
@given(batches(), reductions, rates)
def test_smearing_with_the_matrix_of_smoothing_is_label_smoothing(batch, reduction, rate):
    smearing = SmearingLoss(smoothing_matrix(batch.classes, rate), reduction=reduction)
    assert_alike(smearing, LabelSmoothingLoss(smoothing=rate, reduction=reduction), batch)


@moderately
@given(batches(), reductions)
def test_a_rate_of_zero_is_cross_entropy_and_of_one_forgets_the_label(batch, reduction):
    plain = CrossEntropyLoss(reduction=reduction)
    assert_alike(LabelSmoothingLoss(smoothing=0, reduction=reduction), plain, batch)
    uniform = LabelSmoothingLoss(smoothing=1, reduction=reduction)
    other = batch._replace(labels=torch.where(batch.labels < 0, -1, 0))
    for found, expected in zip(results(uniform, batch), results(uniform, other), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


@moderately
@given(batches(), reductions, rates)
def test_label_smoothing_is_linear_in_its_rate(batch, reduction, rate):
    smooth, plain, uniform = (
        results(LabelSmoothingLoss(smoothing=r, reduction=reduction), batch) for r in (rate, 0, 1)
    )
    for s, p, u in zip(smooth, plain, uniform, strict=True):
        torch.testing.assert_close(s, (1 - rate) * p + rate * u, rtol=1e-4, atol=1e-4)


@moderately
@given(st.integers(2, 12), noise_rates)
def test_backward_correction_and_smoothing_are_inverse_to_each_other(classes, rate):
    transition = smoothing_matrix(classes, rate)
    matrix = BackwardCorrectionLoss(transition).matrix.double()
    identity = torch.eye(classes, dtype=torch.float64)
    torch.testing.assert_close(matrix @ transition, identity, rtol=0, atol=1e-5)
    torch.testing.assert_close(transition @ matrix, identity, rtol=0, atol=1e-5)
    closed = identity / (1 - rate) - rate / ((1 - rate) * classes)  # Lukasik et al.
    torch.testing.assert_close(matrix, closed, rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(matrix.sum(-1), torch.ones(classes).double(), rtol=0, atol=1e-5)


@st.composite
def transitions(draw, classes):
    """A matrix without symmetry whose diagonal outweighs the rest."""
    g = torch.Generator().manual_seed(draw(st.integers(0, 2**16)))
    noise = (2 * torch.randn(classes, classes, generator=g)).double().softmax(-1)
    return noise.lerp(torch.eye(classes, dtype=torch.float64), draw(st.floats(0.55, 1)))


@moderately
@given(st.data(), batches())
def test_the_expectation_of_the_backward_corrected_loss_is_the_clean_loss(data, batch):
    transition = data.draw(transitions(batch.classes))
    corrected = BackwardCorrectionLoss(transition, reduction="none")
    clean = CrossEntropyLoss(reduction="none")

    def of_label(criterion, label):
        return results(criterion, batch._replace(labels=torch.full_like(batch.labels, label)))

    found = [of_label(corrected, given) for given in range(batch.classes)]
    for true in range(batch.classes):
        for part, expected in enumerate(of_label(clean, true)):
            mean = sum(transition[true, j] * found[j][part] for j in range(batch.classes))
            torch.testing.assert_close(mean.to(expected.dtype), expected, rtol=1e-4, atol=1e-4)


@moderately
@given(batches(), reductions)
def test_corrections_with_the_identity_are_cross_entropy(batch, reduction):
    plain = CrossEntropyLoss(reduction=reduction)
    identity = torch.eye(batch.classes)
    assert_alike(ForwardCorrectionLoss(identity, reduction=reduction), plain, batch)
    assert_alike(BackwardCorrectionLoss(identity, reduction=reduction), plain, batch)


@moderately
@given(st.data(), batches())
def test_the_forward_corrected_probabilities_of_all_labels_sum_to_one(data, batch):
    criterion = ForwardCorrectionLoss(data.draw(transitions(batch.classes)), reduction="none")
    total = torch.zeros(len(batch.logits), dtype=torch.float64)
    for given_label in range(batch.classes):
        loss = criterion(batch.logits, torch.full_like(batch.labels, given_label))
        total += loss.double().neg().exp()
    torch.testing.assert_close(total, torch.ones_like(total), rtol=0, atol=1e-5)


@moderately
@given(batches(), reductions)
def test_distillation_from_a_one_hot_teacher_is_cross_entropy(batch, reduction):
    teacher = torch.nn.functional.one_hot(batch.given, batch.classes).float()
    distillation = DistillationLoss(teacher, reduction=reduction)
    assert_alike(distillation, CrossEntropyLoss(reduction=reduction), batch)


@moderately
@given(batches(), reductions, st.sampled_from([0.5, 2.0, 4.0]))
def test_distillation_at_a_temperature_is_that_of_scaled_logits(batch, reduction, c):
    hot = DistillationLoss(batch.rows, temperature=c, reduction=reduction)
    softened = (batch.rows.double().log() / c).softmax(-1).float()
    plain = DistillationLoss(softened, reduction=reduction)
    loss, grad = results(hot, batch)
    expected, want = results(plain, batch._replace(logits=batch.logits / c))
    torch.testing.assert_close(loss, c**2 * expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(grad, c * want, rtol=1e-4, atol=1e-5)


# Losses with a bank.


@moderately
@given(batches(), reductions, momenta)
def test_alr_without_entropy_is_selc(batch, reduction, momentum):
    options = dict(warmup_epochs=0, momentum=momentum, reduction=reduction)
    alr = ALRLoss(batch.bank(), entropy_weight=0, **options)
    selc = SELCLoss(batch.bank(), **options)
    for _ in range(2):  # the second step reads a bank that the first has updated
        assert_alike(alr, selc, batch, tolerance=0)
    valid = (batch.labels >= 0) & (batch.index >= 0)
    moved = bool(valid.any()) and momentum < 1
    assert torch.equal(selc.bank.rows, batch.rows) is not moved


@moderately
@given(batches(), reductions)
def test_a_momentum_of_one_keeps_the_targets(batch, reduction):
    index = batch.index.masked_fill(batch.labels < 0, -1)
    expected = soft_target_cross_entropy(batch.logits, batch.rows, index, reduction=reduction)
    criterion = SELCLoss(batch.bank(), warmup_epochs=0, momentum=1, reduction=reduction)
    loss = criterion(batch.logits, batch.labels, batch.index)
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=1e-6)
    assert torch.equal(criterion.bank.rows, batch.rows)
    distillation = DistillationLoss(batch.rows, reduction=reduction)
    assert_alike(criterion, distillation, batch)


@moderately
@given(batches(), reductions, momenta)
def test_refinement_of_a_one_hot_bank_at_momentum_one_is_cross_entropy(batch, reduction, momentum):
    bank = LabelBank.from_labels(batch.given, batch.classes)
    criterion = SELCLoss(bank, warmup_epochs=0, momentum=1, reduction=reduction)
    assert_alike(criterion, CrossEntropyLoss(reduction=reduction), batch)
    # SAT's weights are all equal here.
    criterion = SATLoss(bank, warmup_epochs=0, momentum=1, reduction=reduction)
    assert_alike(criterion, CrossEntropyLoss(reduction=reduction), batch)
    # And a loss with any bank is cross entropy during warm-up.
    warm = ALRLoss(batch.bank(), warmup_epochs=1, momentum=momentum, reduction=reduction)
    warm.set_epoch(0)
    assert_alike(warm, CrossEntropyLoss(reduction=reduction), batch)


@moderately
@given(batches(), momenta)
def test_sat_is_a_weighted_mean_of_the_rows_of_selc(batch, momentum):
    options = dict(warmup_epochs=0, momentum=momentum)
    batch = batch.without_duplicates()  # else the bank does not contain the target of every row
    sat = SATLoss(batch.bank(), **options)
    selc = SELCLoss(batch.bank(), reduction="none", **options)
    loss, grad = results(sat, batch)
    rows, grads = results(selc, batch)
    valid = (batch.index >= 0) & (batch.labels >= 0)
    weight = selc.bank.rows[batch.index.clamp(min=0)].max(-1).values.masked_fill(~valid, 0)
    weight = weight / weight.sum().clamp(min=1e-9)
    torch.testing.assert_close(loss, (weight * rows).sum(), rtol=1e-5, atol=1e-5)
    expected = (weight[:, None] * grads).to(grad.dtype)
    torch.testing.assert_close(grad, expected, rtol=1e-5, atol=1e-6)
    assert torch.equal(sat.bank.rows, selc.bank.rows)


@moderately
@given(batches(), reductions, momenta)
def test_elr_without_weight_is_cross_entropy_that_keeps_its_bank(batch, reduction, momentum):
    criterion = ELRLoss(batch.bank(), momentum=momentum, weight=0, reduction=reduction)
    assert_alike(criterion, CrossEntropyLoss(reduction=reduction), batch)
    valid = (batch.labels >= 0) & (batch.index >= 0)
    moved = bool(valid.any()) and momentum < 1
    assert torch.equal(criterion.bank.rows, batch.rows) is not moved


@moderately
@given(batches(), reductions, st.sampled_from([1.0, 3.0, 7.0]))
def test_a_bank_at_zero_that_stays_there_makes_elr_cross_entropy(batch, reduction, weight):
    bank = LabelBank.from_labels(batch.given, batch.classes, one_hot=False)
    criterion = ELRLoss(bank, momentum=1, weight=weight, reduction=reduction)
    assert_alike(criterion, CrossEntropyLoss(reduction=reduction), batch)
    assert not bank.rows.any()


@moderately
@given(batches(), st.sampled_from(["selc", "alr", "sat", "elr"]), st.integers(0, 2**16))
def test_the_order_of_a_batch_does_not_matter(batch, name, seed):
    batch = batch.without_duplicates()  # of duplicates the last row is kept
    made = {
        "selc": lambda: SELCLoss(batch.bank(), warmup_epochs=0),
        "alr": lambda: ALRLoss(batch.bank(), warmup_epochs=0),
        "sat": lambda: SATLoss(batch.bank(), warmup_epochs=0),
        "elr": lambda: ELRLoss(batch.bank()),
    }
    one, other = made[name](), made[name]()
    order = torch.randperm(len(batch.index), generator=torch.Generator().manual_seed(seed))
    loss, grad = results(one, batch)
    mixed = batch._replace(
        logits=batch.logits[order], labels=batch.labels[order], index=batch.index[order]
    )
    found, of_mixed = results(other, mixed)
    torch.testing.assert_close(found, loss, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(of_mixed, grad[order], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(one.bank.rows, other.bank.rows, rtol=1e-6, atol=1e-7)


@moderately
@given(batches(), reductions, rates)
def test_the_modules_are_the_functions(batch, reduction, rate):
    expected = label_smoothing_cross_entropy(
        batch.logits, batch.labels, smoothing=rate, reduction=reduction
    )
    criterion = LabelSmoothingLoss(smoothing=rate, reduction=reduction)
    assert torch.equal(criterion(batch.logits, batch.labels, batch.index), expected)
