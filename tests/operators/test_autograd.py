"""Gradients against numerical gradients in float64, and torch's own checks of the operators."""

import pytest
import torch
from torch.autograd import gradcheck

from alr_fast.functional import (
    alr_loss,
    alr_loss_and_grad,
    label_smoothing_cross_entropy,
    soft_target_cross_entropy,
)
from helpers.compare import same_bits
from helpers.problems import make_problem

pytestmark = pytest.mark.usefixtures("autograd_node")

F64 = torch.float64
OPS = torch.ops.alr_fast
OPTIONS = [
    pytest.param(dict(reduction="mean"), id="mean"),
    pytest.param(dict(reduction="sum", entropy_weight=0.7), id="sum, entropy"),
    pytest.param(dict(reduction="none", entropy_weight=-0.3), id="none, negative entropy"),
]


def double_problem(classes=5):
    problem = make_problem(6, classes, logits=F64, spread=2)
    problem.index[2] = -1
    return problem


def leaf_of(problem):
    return problem.logits.detach().clone().requires_grad_()


# For a constant target, the numerical derivative of the loss is the gradient.


@pytest.mark.parametrize("options", OPTIONS)
def test_gradcheck_of_alr_loss_with_momentum_1(options):
    problem = double_problem()
    weight = torch.linspace(0.5, 2, 6, dtype=F64)
    for update in (True, False):
        bank = problem.table.clone()
        assert gradcheck(
            lambda z, bank=bank, update=update: alr_loss(
                z, bank, problem.index, momentum=1.0, update=update, row_weight=weight, **options
            ),
            leaf_of(problem),
        )


@pytest.mark.parametrize("options", OPTIONS)
def test_gradcheck_of_fixed_targets(options):
    problem = double_problem()
    table = problem.table - 0.3  # with negative entries
    z = leaf_of(problem)
    assert gradcheck(lambda z: soft_target_cross_entropy(z, table, problem.index, **options), z)
    assert gradcheck(lambda z: soft_target_cross_entropy(z, table[:6], **options), z)
    labels = torch.tensor([0, 4, -1, 2, 2, 1])
    for smoothing in (0.0, 0.2, -0.5):
        assert gradcheck(
            lambda z, smoothing=smoothing: label_smoothing_cross_entropy(
                z, labels, smoothing=smoothing, **options
            ),
            z,
        )


# Otherwise the target contains the prediction but counts as a constant: it is frozen here.


@pytest.mark.parametrize("classes", [2, 9])
@pytest.mark.parametrize("momentum", [0.0, 0.6])
@pytest.mark.parametrize("entropy_weight", [0.0, 0.4, -0.5])
def test_finite_differences_with_the_target_frozen(classes, momentum, entropy_weight):
    problem = double_problem(classes)
    z = problem.logits
    valid = (problem.index >= 0)[:, None]
    rows = problem.table[problem.index.clamp(min=0)].double()
    target = momentum * rows + (1 - momentum) * z.softmax(-1)

    def frozen(z):
        log_p = z - z.exp().sum(-1, keepdim=True).log()
        entropy = -(log_p.exp() * log_p)
        return ((-target * log_p + entropy_weight * entropy) * valid).sum()

    options = dict(momentum=momentum, entropy_weight=entropy_weight, reduction="sum")
    loss, grad = alr_loss_and_grad(z, problem.table.clone(), problem.index, **options)
    torch.testing.assert_close(loss, frozen(z))
    leaf = leaf_of(problem)
    alr_loss(leaf, problem.table.clone(), problem.index, **options).backward()
    assert torch.equal(leaf.grad, grad)
    step = 1e-5
    for b in range(len(z)):
        for k in range(classes):
            up, down = z.clone(), z.clone()
            up[b, k] += step
            down[b, k] -= step
            slope = (frozen(up) - frozen(down)) / (2 * step)
            torch.testing.assert_close(grad[b, k], slope, rtol=1e-6, atol=1e-9)
    if momentum or entropy_weight:
        assert grad.abs().max() > 1e-2


# The operators below the public functions: schema, fake kernels, dispatch.


def checked(operator, *arguments):
    torch.library.opcheck(operator, arguments)


@pytest.mark.parametrize("grad_mode", [0, 1, 2])
@pytest.mark.parametrize("reduction", [0, 1, 2])
def test_opcheck_of_the_losses(device, reduction, grad_mode):
    for logits, bank in ((torch.float32, torch.float32), (torch.float16, torch.bfloat16)):
        problem = make_problem(5, 7, device=device, logits=logits, bank=bank)
        z, table, index = problem.logits, problem.table, problem.index
        weight = torch.rand(5, device=device)
        status = torch.zeros(3, dtype=torch.int64, device=device)
        rounding = torch.tensor([3, 0], device=device)
        classes = torch.zeros(3, 5, dtype=torch.int64, device=device)
        values = torch.zeros(2, 5, device=device)
        labels = torch.tensor([3, 0, -1, 4, 2], device=device)
        given = torch.zeros(len(table), dtype=torch.int32, device=device)
        given[index.clamp(min=0)] = labels.int()
        # Stats, status and random state are written, too: the schema must declare it.
        for operator in (OPS.alr_loss.default, OPS.alr_loss_once.default):
            checked(
                operator, z, table, index, labels, given, weight, status, rounding, classes, values,
                0.7, 0.1, reduction, False, grad_mode,
            )  # fmt: skip
        checked(
            OPS.soft_target_cross_entropy.default, z, table, index, labels, given, weight, status,
            classes, values, 1.0, 0.1, reduction, grad_mode,
        )  # fmt: skip
        checked(
            OPS.label_smoothing_cross_entropy.default, z, labels, index, given, weight, status, 0.1,
            0.2, reduction, grad_mode,
        )  # fmt: skip


def test_opcheck_without_the_optional_tensors(device):
    problem = make_problem(5, 7, device=device)
    z, table, index = problem.logits, problem.table, problem.index
    checked(OPS.alr_loss.default, z, table, index, *(None,) * 7, 0.7, 0.1, 1, True, 2)
    checked(OPS.soft_target_cross_entropy.default, z, table[:5], *(None,) * 7, 1.0, 0.1, 1, 2)
    checked(OPS.label_smoothing_cross_entropy.default, z, index % 7, *(None,) * 4, 0.1, 0.2, 1, 2)


def test_opcheck_of_scale_grad(device):
    rows = torch.randn(5, 7, device=device)
    scale = torch.tensor(0.5, device=device)
    weight = torch.rand(5, device=device)
    for grad_output in (
        torch.tensor(2.0, device=device),
        torch.rand(5, device=device),
        torch.rand(1, device=device).expand(5),
        torch.rand(5, 3, device=device)[:, 1],
    ):
        checked(OPS.scale_grad.default, rows, scale, grad_output, weight)
        checked(OPS.scale_grad.default, rows.half(), None, grad_output, None)
        checked(OPS.scale_grad_.default, rows.clone(), scale, grad_output, weight)
        checked(OPS.scale_grad_.default, rows.half(), None, grad_output, None)
        expected = rows * 0.5 * (grad_output * weight).reshape(-1, 1)
        got = OPS.scale_grad(rows, scale, grad_output, weight)
        torch.testing.assert_close(got, expected)
        written = rows.clone()
        assert OPS.scale_grad_(written, scale, grad_output, weight) is None
        assert same_bits(written, got)


PER_ROW, FINAL = 1, 2


def operators(z, table, index, weight, reduction, mode):
    """Loss, rows of the gradient and their scale by each operator."""
    none = (None,) * 2
    return [
        OPS.alr_loss(
            z, table.clone(), index, *none, weight, *none, *none, 0.7, 0.3, reduction, False, mode
        ),
        OPS.soft_target_cross_entropy(
            z, table, index, *none, weight, None, *none, 1.0, 0.3, reduction, mode
        ),
        OPS.label_smoothing_cross_entropy(
            z, index % z.shape[1], index, None, weight, None, 0.1, 0.3, reduction, mode
        ),
    ]


@pytest.mark.parametrize("ignored", [0, 3])
@pytest.mark.parametrize("reduction", [0, 1, 2], ids=["none", "mean", "sum"])
@pytest.mark.parametrize("logits", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_rows_of_a_gradient_times_what_is_left_are_the_gradient(device, logits, reduction, ignored):
    rows, classes = 24, 13
    problem = make_problem(rows, classes, device=device, logits=logits)
    problem.index[:ignored] = -1
    weight = torch.linspace(0.5, 2, rows, device=device)
    inputs = (problem.logits, problem.table, problem.index, weight, reduction)
    pairs = zip(operators(*inputs, PER_ROW), operators(*inputs, FINAL), strict=True)
    for (_, stored, scale), (_, final, _) in pairs:
        left = scale * weight[:, None] if logits == torch.float16 else scale
        unit = torch.finfo(logits).eps
        found = stored.double() * left
        torch.testing.assert_close(found, final.double(), rtol=2 * unit, atol=1e-7)
        if logits != torch.float16:
            assert scale == (torch.tensor(rows / (rows - ignored)) if reduction == 1 else 1)
        if logits != torch.float16 and not ignored:
            assert same_bits(stored, final)  # rounded once
        assert not stored[:ignored].any()


@pytest.mark.parametrize("reduction", [0, 1, 2], ids=["none", "mean", "sum"])
@pytest.mark.parametrize("logits", [torch.float32, torch.float16], ids=str)
def test_the_scale_of_an_empty_batch_is_that_of_a_full_sum(device, logits, reduction):
    problem = make_problem(4, 7, device=device, logits=logits)
    z, table, index = problem.logits, problem.table, problem.index
    for mode in (PER_ROW, FINAL):
        full = operators(z, table, index, None, 2, mode)
        empty = operators(z[:0], table, index[:0], None, reduction, mode)
        for (_, _, want), (loss, rows, scale) in zip(full, empty, strict=True):
            assert scale == want
            assert rows.shape == (0, 7)
            assert loss.shape == ((0,) if reduction == 0 else ()) and not loss.any()
