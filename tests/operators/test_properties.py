"""Random shapes, strides, types, duplicates, ignored rows and masks; identities that must hold."""

import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from alr_fast.functional import (
    alr_loss,
    alr_loss_and_grad,
    label_smoothing_cross_entropy,
    soft_target_cross_entropy,
)
from helpers.compare import check
from helpers.problems import OPERATIONS, Problem

F16, BF16, F32, F64 = torch.float16, torch.bfloat16, torch.float32, torch.float64

moderately = settings(max_examples=60, deadline=None)
sizes = st.one_of(st.integers(1, 40), st.sampled_from([63, 65, 128, 300, 517]))
options = st.fixed_dictionaries(
    dict(
        entropy_weight=st.sampled_from([0.0, 0.1, 1.0, -0.5]),
        reduction=st.sampled_from(["none", "mean", "sum"]),
    )
)


@st.composite
def problems(draw, with_labels=False):
    """A problem with the special cases that the operations allow, drawn independently."""
    batch, classes = draw(st.integers(0, 20)), draw(sizes)
    g = torch.Generator().manual_seed(draw(st.integers(0, 2**16)))
    spread = draw(st.sampled_from([0.01, 1, 10]))
    wide = spread * torch.randn(batch * 2 + 1, classes + 4, generator=g)
    wide = wide.to(draw(st.sampled_from([F32, F16, BF16, F64])))
    offset = draw(st.integers(0, 4))
    logits = wide[:: draw(st.sampled_from([1, 2]))][:batch, offset : offset + classes]
    logits = logits.contiguous() if draw(st.booleans()) else logits
    rows = classes if with_labels else draw(st.integers(1, 30))  # sometimes fewer than the batch
    table = torch.rand(rows, classes, generator=g)
    lowest = -2 if draw(st.booleans()) else 0  # below 0: ignored
    index = torch.randint(lowest, rows, (2 * batch,), generator=g)
    if not draw(st.booleans()):
        index = torch.arange(2 * batch) % rows
    index = index.to(draw(st.sampled_from([torch.int32, torch.int64])))[::2][:batch]
    if draw(st.booleans()) and classes > 1:
        masked = torch.rand(classes, generator=g) < 0.3
        masked[draw(st.integers(0, classes - 1))] = False
        if with_labels:
            index = torch.where(masked[index.clamp(min=0).long()], -1, index).to(index.dtype)
        table[:, masked] = 0
        logits = logits.masked_fill(masked, -torch.inf)
    table *= (0.5 + torch.rand(rows, 1, generator=g)) / table.sum(-1, keepdim=True)
    table = table.to(draw(st.sampled_from([F32, F16, BF16])))
    return Problem(logits, None if with_labels else table, index)


@moderately
@given(problems(), options, st.sampled_from([0.0, 0.3, 0.9, 1.0]), st.booleans())
def test_alr_loss_is_the_reference(problem, options, momentum, update):
    check("alr_loss", problem, momentum=momentum, update=update, **options)


@moderately
@given(problems(), options, st.integers(0, 100))
def test_alr_loss_and_grad_is_the_reference(problem, options, seed):
    weight = torch.rand(len(problem.logits), generator=torch.Generator().manual_seed(seed))
    check("alr_loss_and_grad", problem, row_weight=weight, **options)


@moderately
@given(problems(), options)
def test_soft_target_cross_entropy_is_the_reference(problem, options):
    check("soft_target_cross_entropy", problem, **options)


@moderately
@given(problems(with_labels=True), options)
def test_label_smoothing_cross_entropy_is_the_reference(problem, options):
    check("label_smoothing_cross_entropy", problem, **options)


def test_every_operation_has_a_property():
    assert {name for name in OPERATIONS if f"test_{name}_is_the_reference" in globals()} == set(
        OPERATIONS
    )


# Identities with torch's own functions.


@st.composite
def batches(draw):
    batch, classes = draw(st.integers(1, 20)), draw(st.integers(2, 300))
    g = torch.Generator().manual_seed(draw(st.integers(0, 2**16)))
    logits = draw(st.sampled_from([1, 10])) * torch.randn(batch, classes, generator=g)
    return logits.requires_grad_(), torch.randint(0, classes, (batch,), generator=g)


def same_loss_and_grad(logits, loss, expected):
    torch.testing.assert_close(loss, expected, rtol=2e-6, atol=1e-6)
    grads = [torch.autograd.grad(x.sum(), logits)[0] for x in (loss, expected)]
    torch.testing.assert_close(*grads, rtol=1e-5, atol=1e-7)


@moderately
@given(batches(), st.sampled_from(["none", "mean", "sum"]))
def test_a_one_hot_bank_without_entropy_is_cross_entropy(batch, reduction):
    logits, labels = batch
    bank = F.one_hot(labels, logits.shape[1]).float()
    loss = alr_loss(
        logits,
        bank,
        torch.arange(len(labels)),
        momentum=1.0,
        entropy_weight=0.0,
        reduction=reduction,
    )
    same_loss_and_grad(logits, loss, F.cross_entropy(logits, labels, reduction=reduction))
    assert torch.equal(bank, F.one_hot(labels, logits.shape[1]).float())


@moderately
@given(batches(), st.sampled_from([0.0, 0.1, 0.5, 1.0]))
def test_label_smoothing_is_that_of_torch(batch, rate):
    logits, labels = batch
    labels = labels.clone()
    labels[1::3] = -1  # not the first row: torch's mean of an empty set is NaN
    expected = F.cross_entropy(logits, labels, label_smoothing=rate, ignore_index=-1)
    same_loss_and_grad(
        logits, label_smoothing_cross_entropy(logits, labels, smoothing=rate), expected
    )


@moderately
@given(batches())
def test_smearing_with_the_identity_is_cross_entropy(batch):
    logits, labels = batch
    loss = soft_target_cross_entropy(logits, torch.eye(logits.shape[1]), labels)
    same_loss_and_grad(logits, loss, F.cross_entropy(logits, labels))


@moderately
@given(batches(), st.floats(-50, 50))
def test_adding_a_constant_to_the_logits_changes_nothing(batch, constant):
    logits, labels = batch
    # Numbers for which the addition is exact.
    logits = (logits.detach() * 64).round() / 64
    constant = round(constant * 64) / 64
    index = torch.arange(len(labels))
    results = []
    for z in (logits, logits + constant):
        bank = F.one_hot(labels, logits.shape[1]).float()
        results.append((*alr_loss_and_grad(z, bank, index, momentum=0.7), bank))
    for a, b in zip(*results, strict=True):
        assert torch.equal(a, b)


@moderately
@given(batches(), st.sampled_from([0.0, 0.1, -0.5]))
def test_gradients_of_a_row_sum_to_zero(batch, entropy_weight):
    logits, labels = batch
    bank = F.one_hot(labels, logits.shape[1]).float()  # mass 1
    _, grad = alr_loss_and_grad(
        logits,
        bank,
        torch.arange(len(labels)),
        momentum=0.7,
        entropy_weight=entropy_weight,
        reduction="sum",
    )
    assert grad.sum(-1).abs().max() < 2e-6 * (1 + grad.abs().sum(-1).max())
    assert grad.abs().max() > 0 or logits.detach().softmax(-1).max() > 1 - 1e-6
