"""Losses on given labels and constant tables against their formulas in float64."""

import math

import pytest
import torch

from alr_fast.losses import (
    BackwardCorrectionLoss,
    CrossEntropyLoss,
    DistillationLoss,
    ForwardCorrectionLoss,
    LabelSmoothingLoss,
    SmearingLoss,
)
from helpers.loss_cases import (
    CASES,
    CLASSES,
    F64,
    INDEX,
    LABELS,
    MATRIX,
    REDUCTIONS,
    TEACHER,
    TRANSITION,
    check,
    close,
    distributions,
    numbers,
)

ROWS = torch.arange(len(LABELS))
ABOVE, BELOW = math.nextafter(1, 2), -math.inf


@pytest.fixture(params=[1, 10], ids=lambda spread: f"spread {spread}")
def logits(request, device):
    return numbers(len(LABELS), CLASSES, seed=10, spread=request.param).to(device)


def minus_log_p(z):
    """[B, K], from the definition of the softmax."""
    shifted = z - z.detach().amax(-1, keepdim=True)
    return shifted.exp().sum(-1, keepdim=True).log() - shifted


# Against the formulas.


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_cross_entropy(logits, reduction):
    check(CrossEntropyLoss(reduction=reduction), lambda z: minus_log_p(z)[ROWS, LABELS], logits)


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("rate", [0.3, 1.0, -0.8, -6.0])
def test_label_smoothing_with_any_rate(logits, reduction, rate):
    def formula(z):
        nll = minus_log_p(z)
        return (1 - rate) * nll[ROWS, LABELS] + rate * nll.mean(-1)

    check(LabelSmoothingLoss(smoothing=rate, reduction=reduction), formula, logits)


def test_negative_smoothing_has_no_lower_bound():
    logits = torch.tensor([[100.0, 0.0, 0.0]])
    loss = LabelSmoothingLoss(smoothing=-1.5)(logits, torch.tensor([0]))
    close(loss, torch.tensor(-1.5 * 200 / 3))


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_smearing_with_any_matrix(logits, reduction):
    def formula(z):
        nll = minus_log_p(z)
        return sum(MATRIX[LABELS, k] * nll[:, k] for k in range(CLASSES))

    check(SmearingLoss(MATRIX, reduction=reduction).to(logits.device), formula, logits)


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_backward_correction(logits, reduction):
    def formula(z):
        # The corrected losses x of all labels solve T x = l: expected under the noise they are l.
        corrected = torch.linalg.solve(TRANSITION, minus_log_p(z).T)
        return corrected[LABELS, ROWS]

    criterion = BackwardCorrectionLoss(TRANSITION, reduction=reduction).to(logits.device)
    check(criterion, formula, logits)


def test_backward_correction_by_hand():
    criterion = BackwardCorrectionLoss(torch.tensor([[0.8, 0.2], [0.4, 0.6]]), reduction="none")
    close(criterion.matrix, torch.tensor([[1.5, -0.5], [-1.0, 2.0]]))
    p = torch.tensor([0.9, 0.1])
    loss = criterion(p.log().expand(2, 2).contiguous(), torch.tensor([0, 1]))
    a, b = -math.log(0.9), -math.log(0.1)
    close(loss, torch.tensor([1.5 * a - 0.5 * b, -a + 2 * b]))


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_forward_correction(logits, reduction):
    def formula(z):
        given = (-minus_log_p(z)).exp() @ TRANSITION
        return -given[ROWS, LABELS].log()

    criterion = ForwardCorrectionLoss(TRANSITION, reduction=reduction).to(logits.device)
    check(criterion, formula, logits)


def test_forward_correction_by_hand():
    criterion = ForwardCorrectionLoss(torch.tensor([[0.8, 0.2], [0.4, 0.6]]), reduction="none")
    p = torch.tensor([0.9, 0.1])
    loss = criterion(p.log().expand(2, 2).contiguous(), torch.tensor([0, 1]))
    close(loss, -torch.tensor([0.72 + 0.04, 0.18 + 0.06]).log())


def test_forward_correction_of_labels_that_some_classes_never_get(logits):
    keeps = torch.eye(CLASSES, dtype=F64)
    transition = 0.75 * keeps + 0.25 * keeps.roll(1, 1)

    def formula(z):
        p = (-minus_log_p(z)).exp()
        own, other = p[ROWS, LABELS], p[ROWS, (LABELS - 1) % CLASSES]
        return -(0.75 * own + 0.25 * other).log()

    check(ForwardCorrectionLoss(transition).to(logits.device), formula, logits)


def test_forward_correction_of_a_label_that_nothing_gets_is_finite(device):
    transition = torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    logits = torch.tensor([[1.0, -2.0], [1.0, -2.0]], device=device, requires_grad=True)
    criterion = ForwardCorrectionLoss(transition, reduction="none").to(device)
    loss = criterion(logits, torch.tensor([0, 1], device=device))
    loss.sum().backward()
    close(loss[0].detach(), torch.tensor(0.0))
    assert 1e30 < loss[1] < math.inf
    assert logits.grad.isfinite().all()


def test_forward_correction_of_logits_far_apart(device):
    logits = torch.tensor([[1000.0, 0.0, -1000.0]], device=device, requires_grad=True)
    transition = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.5, 0.0, 0.5]])
    criterion = ForwardCorrectionLoss(transition).to(device)
    loss = criterion(logits, torch.tensor([2], device=device))
    (grad,) = torch.autograd.grad(loss, logits)
    close(loss.detach(), torch.tensor(2000 + math.log(2)))
    close(grad, torch.tensor([[1.0, 0.0, -1.0]]))


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("c", [1, 2.5, 0.5])
def test_distillation(logits, reduction, c):
    def formula(z):
        powers = TEACHER[INDEX] ** (1 / c)
        target = powers / powers.sum(-1, keepdim=True)
        return c**2 * (target * minus_log_p(z / c)).sum(-1)

    criterion = DistillationLoss(TEACHER.float(), temperature=c, reduction=reduction)
    check(criterion.to(logits.device), formula, logits)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_a_teacher_in_16_bits_keeps_its_type(device, dtype):
    teacher = TEACHER.to(dtype)
    criterion = DistillationLoss(teacher).to(device)
    assert criterion.teacher.dtype == dtype
    logits = numbers(len(LABELS), CLASSES, seed=11).to(device)
    check(criterion, lambda z: (teacher.double()[INDEX] * minus_log_p(z)).sum(-1), logits)


def test_distillation_depends_on_the_sample_alone(device):
    criterion = DistillationLoss(TEACHER.float(), temperature=2.0).to(device)
    logits = numbers(len(LABELS), CLASSES, seed=12).float().to(device)
    others = (LABELS + 1) % CLASSES
    losses = [criterion(logits, labels.to(device), INDEX.to(device)) for labels in (LABELS, others)]
    assert torch.equal(*losses)
    with pytest.raises(
        ValueError, match=r"looks up its targets by sample: pass index, .* call criterion\.eval\(\)"
    ):
        criterion(logits, LABELS.to(device))


def test_tables_are_copies_of_the_arguments():
    teacher, matrix = TEACHER.float(), MATRIX.float()
    criteria = DistillationLoss(teacher), SmearingLoss(matrix)
    before = criteria[0].teacher.clone(), criteria[1].matrix.clone()
    teacher.zero_()
    matrix.zero_()
    assert torch.equal(criteria[0].teacher, before[0])
    assert torch.equal(criteria[1].matrix, before[1])


# Gradients by finite differences: these targets are constants.


@pytest.mark.parametrize(
    "case", [c for c in CASES if not c.keeps_bank or "warm-up" in c.name], ids=lambda c: c.name
)
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_gradients_in_float64(case, reduction):
    criterion = case.make(reduction=reduction)
    logits = numbers(len(LABELS), CLASSES, seed=13, spread=2).requires_grad_()
    assert torch.autograd.gradcheck(lambda z: criterion(z, LABELS, INDEX), logits)


# Warm-up of label smoothing.


def test_smoothing_begins_after_its_warm_up(device):
    logits = numbers(len(LABELS), CLASSES, seed=14).float().to(device)
    labels = LABELS.to(device)
    criterion = LabelSmoothingLoss(smoothing=-0.5, warmup_epochs=2)
    with pytest.raises(RuntimeError, match=r"call criterion.set_epoch\(epoch\) first"):
        criterion(logits, labels)
    plain = CrossEntropyLoss()(logits, labels)
    smooth = LabelSmoothingLoss(smoothing=-0.5)(logits, labels)  # without a warm-up: from the start
    assert (plain - smooth).abs() > 0.01
    for epoch, warming_up in enumerate([True, True, False, False]):
        criterion.set_epoch(epoch)
        assert criterion.warming_up is warming_up
        assert torch.equal(criterion(logits, labels), plain if warming_up else smooth)
    criterion.set_epoch(1)
    assert torch.equal(criterion(logits, labels), plain)


# Refused options.


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: CrossEntropyLoss(reduction="max"),
            "reduction 'max': must be one of none, mean, sum",
        ),
        (
            lambda: LabelSmoothingLoss(smoothing=ABOVE),
            "smoothing 1.0000000000000002: must be finite and at most 1",
        ),
        (lambda: LabelSmoothingLoss(smoothing=BELOW), "smoothing -inf: must be finite"),
        (lambda: LabelSmoothingLoss(smoothing=math.nan), "smoothing nan: must be finite"),
        (lambda: LabelSmoothingLoss(warmup_epochs=-1), "warmup_epochs -1: must be 0 or more"),
        (
            lambda: SmearingLoss(torch.eye(3)[0]),
            r"matrix of shape \(3,\): must have shape \[K, K\]",
        ),
        (lambda: SmearingLoss(torch.eye(3)[:2]), r"of shape \(2, 3\): must have shape \[K, K\]"),
        (lambda: SmearingLoss(torch.ones(0, 0)), r"of shape \(0, 0\): must have shape \[K, K\]"),
        (
            lambda: SmearingLoss(torch.eye(2) / 0),
            "matrix with NaN or infinite entries: must be finite",
        ),
        (lambda: SmearingLoss(torch.eye(2), reduction=""), "reduction '': must be one of"),
        (
            lambda: DistillationLoss(TEACHER[0]),
            r"teacher of shape \(5,\): must have shape \[N, K\]",
        ),
        (lambda: DistillationLoss(TEACHER[:0]), r"of shape \(0, 5\): must have shape \[N, K\]"),
        (
            lambda: DistillationLoss(torch.tensor([[0.5, 0.5], [0.7, 0.4]])),
            r"teacher row 1: is not a probability distribution \(sum 1.1\); pass softmax\(logits\)",
        ),
        (
            lambda: DistillationLoss(torch.tensor([[1.5, -0.5], [0.5, 0.5]])),
            r"teacher row 0: is not a probability distribution \(sum 1\)",
        ),
        (
            lambda: DistillationLoss(torch.tensor([[0.5, 0.5], [math.nan, 0.5]])),
            r"teacher row 1: is not a probability distribution \(sum nan\)",
        ),
        *(
            (
                lambda c=c: DistillationLoss(TEACHER, temperature=c),
                f"temperature {c}: must be above 0",
            )
            for c in (0, -1.0, math.inf, math.nan)
        ),
    ],
)
def test_wrong_options_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("loss", [BackwardCorrectionLoss, ForwardCorrectionLoss])
@pytest.mark.parametrize(
    ("transition", "message"),
    [
        (torch.eye(3)[:2], r"transition of shape \(2, 3\): must have shape \[K, K\]"),
        (torch.ones(2), r"transition of shape \(2,\): must have shape \[K, K\]"),
        (torch.full((2, 2), math.nan), "transition with NaN or infinite entries: must be finite"),
        (
            torch.tensor([[0.5, 0.5], [0.7, 0.4]]),
            r"transition row 1: is not a probability distribution \(sum 1.1, lowest 0.4\); "
            r"row i must be P\(given j \| true i\)",
        ),
        (
            torch.tensor([[1.5, -0.5], [0.5, 0.5]]),
            r"transition row 0: is not a probability distribution \(sum 1, lowest -0.5\)",
        ),
        (TRANSITION.T, "transition row 0: is not a probability distribution"),
    ],
)
def test_invalid_transitions_are_refused(loss, transition, message):
    with pytest.raises(ValueError, match=message):
        loss(transition)


def test_a_transition_without_an_inverse_is_refused():
    alike = torch.tensor([[0.5, 0.5, 0.0], [0.5, 0.5, 0.0], [0.0, 0.0, 1.0]])
    with pytest.raises(ValueError, match=r"no usable inverse .* use forward correction"):
        BackwardCorrectionLoss(alike)
    with pytest.raises(ValueError, match=r"no usable inverse \(condition number"):
        BackwardCorrectionLoss(alike.lerp(torch.eye(3), 1e-7))
    assert BackwardCorrectionLoss(alike.lerp(torch.eye(3), 1e-3)).matrix.isfinite().all()
    ForwardCorrectionLoss(alike)


@pytest.mark.parametrize("loss", [BackwardCorrectionLoss, ForwardCorrectionLoss])
def test_rows_that_sum_to_one_but_for_decimals_are_scaled(loss):
    rounded = distributions(CLASSES, seed=5).lerp(torch.eye(CLASSES, dtype=F64), 0.5)
    off = rounded * (1 + 5e-5)
    logits = numbers(len(LABELS), CLASSES, seed=15)
    # In float64, where only a table in float64 shows a difference: the matrix is float32.
    rtol = 1e-6 if loss is BackwardCorrectionLoss else 1e-12
    losses = [loss(t, reduction="none")(logits, LABELS) for t in (rounded, off)]
    torch.testing.assert_close(*losses, rtol=rtol, atol=rtol)


def test_the_order_of_rows_and_columns_is_given_from_true():
    # True 0 is always given as 1, true 1 always as 2, true 2 always as 0.
    transition = torch.eye(3).roll(1, 1)
    logits = torch.tensor([[5.0, 0.0, 0.0]])  # the model predicts true 0
    for loss in (ForwardCorrectionLoss(transition), BackwardCorrectionLoss(transition)):
        rows = torch.stack([loss(logits, torch.tensor([given])) for given in range(3)])
        assert rows.argmin() == 1
