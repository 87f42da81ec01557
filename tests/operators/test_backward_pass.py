"""The backward pass: incoming gradients, repeated passes, refused calls, small entries."""

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from alr_fast import ALRLoss, LabelBank, reference
from alr_fast.functional import (
    alr_loss,
    alr_loss_and_grad,
    label_smoothing_cross_entropy,
    soft_target_cross_entropy,
)
from helpers.compare import same_bits
from helpers.problems import make_problem

pytestmark = pytest.mark.usefixtures("autograd_node")

F16, BF16, F32 = torch.float16, torch.bfloat16, torch.float32


def losses(problem, **options):
    """Each operation as a function of the logits alone."""
    labels = problem.index % problem.logits.shape[1]
    bank = problem.table.clone()
    return {
        "alr_loss": lambda z: alr_loss(z, bank, problem.index, update=False, **options),
        "soft_target": lambda z: soft_target_cross_entropy(z, bank, problem.index, **options),
        "label_smoothing": lambda z: label_smoothing_cross_entropy(z, labels, **options),
    }


def leaf_of(problem):
    return problem.logits.detach().clone().requires_grad_()


@pytest.mark.parametrize("logits", [F32, F16, BF16], ids=str)
def test_incoming_gradients_of_any_stride(device, logits):
    problem = make_problem(24, 13, device=device, logits=logits)
    wide = torch.randn(24, 3, generator=torch.Generator().manual_seed(0)).to(device)
    for loss_of in losses(problem, reduction="none").values():
        leaf = leaf_of(problem)

        def grad(grad_output, leaf=leaf, loss_of=loss_of):
            before = grad_output.clone()
            (result,) = torch.autograd.grad(loss_of(leaf), leaf, grad_output)
            assert torch.equal(grad_output, before)  # not written
            return result

        assert same_bits(grad(wide[:, 1]), grad(wide[:, 1].contiguous()))
        assert same_bits(grad(wide[0, :1].expand(24)), grad(wide[0, :1].repeat(24)))
        (summed,) = torch.autograd.grad(loss_of(leaf).sum(), leaf)  # an expanded gradient
        assert same_bits(summed, grad(torch.ones(24, device=device)))
        # Each row has its own factor.
        rows = wide[:, 1].contiguous()
        expected = summed.double() * rows[:, None]
        unit = torch.finfo(logits).eps
        torch.testing.assert_close(grad(rows).double(), expected, rtol=2 * unit, atol=1e-7)


def test_an_incoming_gradient_whose_memory_holds_other_values(device):
    problem = make_problem(24, 13, device=device)
    one = torch.ones((), device=device)
    for loss_of in losses(problem).values():
        leaf = leaf_of(problem)
        (want,) = torch.autograd.grad(loss_of(leaf), leaf)
        (negative,) = torch.autograd.grad(loss_of(leaf), leaf, torch._neg_view(one))
        assert torch.equal(negative, -want)
        nothing = torch._efficientzerotensor((), device=device)
        (zero,) = torch.autograd.grad(loss_of(leaf), leaf, nothing)
        assert torch.equal(zero, torch.zeros_like(want))


@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
@pytest.mark.parametrize("logits", [F32, F16, BF16], ids=str)
def test_a_second_backward_is_the_same(device, logits, reduction):
    problem = make_problem(24, 13, device=device, logits=logits)
    for factor in (1.0, 0.25, 3.0):
        for loss_of in losses(problem, reduction=reduction).values():
            leaf = leaf_of(problem)
            loss = loss_of(leaf).sum() * factor
            (first,) = torch.autograd.grad(loss, leaf, retain_graph=True)
            kept = first.clone()
            (second,) = torch.autograd.grad(loss, leaf, retain_graph=True)
            assert same_bits(second, kept)
            leaf.grad = None
            loss.backward(retain_graph=True)
            loss.backward()
            assert torch.equal(leaf.grad, 2 * kept)


def saved_in(tensors):
    """A hook that keeps what autograd saves."""

    def pack(tensor):
        tensors.append(tensor)
        return tensor

    return pack


@pytest.mark.parametrize("factor", [1.0, 3.0])
@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
@pytest.mark.parametrize("logits", [F32, F16, BF16], ids=str)
def test_a_gradient_is_scaled_where_it_is_unless_the_graph_is_kept(
    device, logits, reduction, factor
):
    problem = make_problem(24, 13, device=device, logits=logits)
    for loss_of in losses(problem, reduction=reduction).values():
        leaf = leaf_of(problem)
        saved = []
        # The first to be saved are the rows that the forward pass has written.
        with torch.autograd.graph.saved_tensors_hooks(saved_in(saved), lambda t: t):
            loss = loss_of(leaf)
        stored = saved[0].data_ptr()
        del saved[:]
        loss = loss.sum() * factor
        (kept,) = torch.autograd.grad(loss, leaf, retain_graph=True)
        assert kept.data_ptr() != stored
        (last,) = torch.autograd.grad(loss, leaf)
        assert last.data_ptr() == stored
        assert same_bits(last, kept)
        with pytest.raises(RuntimeError, match="backward through the graph a second time"):
            torch.autograd.grad(loss, leaf)


@pytest.mark.parametrize("logits", [F32, F16], ids=str)
def test_a_backward_pass_that_failed_cannot_scale_a_second_time(device, logits):
    problem = make_problem(24, 13, device=device, logits=logits)
    leaf = leaf_of(problem)
    loss = alr_loss(leaf, problem.table.clone(), problem.index)

    def fail(*_):
        raise ValueError("from a hook")

    hook = loss.grad_fn.register_hook(fail)
    scaled = loss * 3
    with pytest.raises(ValueError, match="from a hook"):
        scaled.backward()
    hook.remove()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@pytest.mark.parametrize("logits", [F32, F16, BF16], ids=str)
def test_hooks_on_saved_tensors_see_and_give_what_they_like(device, logits):
    problem = make_problem(24, 13, device=device, logits=logits)
    graph = torch.autograd.graph

    def grad_of(loss_of):
        leaf = leaf_of(problem)
        (loss_of(leaf).sum() * 3).backward()
        return leaf.grad

    for reduction in ("none", "mean"):
        for loss_of in losses(problem, reduction=reduction).values():
            want = grad_of(loss_of)
            for hooks in (
                graph.saved_tensors_hooks(lambda t: t, lambda t: t),
                graph.saved_tensors_hooks(torch.clone, lambda t: t),
                graph.saved_tensors_hooks(lambda t: t, torch.clone),
                graph.save_on_cpu(pin_memory=device.type == "cuda"),
            ):
                with hooks:
                    assert same_bits(grad_of(loss_of), want)


def test_scaling_a_gradient_in_place_does_not_silently_change_the_next(device):
    for loss_of in losses(make_problem(24, 13, device=device)).values():
        leaf = leaf_of(make_problem(24, 13, device=device))
        loss = loss_of(leaf)
        (first,) = torch.autograd.grad(loss, leaf, retain_graph=True)
        kept = first.clone()
        first.mul_(0.5)
        try:
            (second,) = torch.autograd.grad(loss, leaf)
        except RuntimeError as error:
            assert "inplace" in str(error)  # torch's own message
        else:
            assert same_bits(second, kept)


@pytest.mark.parametrize("logits", [F32, F16], ids=str)
def test_a_double_backward_raises(device, logits):
    problem = make_problem(6, 10, device=device, logits=logits)
    for reduction in ("mean", "none"):
        for loss_of in losses(problem, reduction=reduction).values():
            leaf = leaf_of(problem)
            with pytest.raises(RuntimeError, match=r"no second derivative.*create_graph"):
                torch.autograd.grad(loss_of(leaf).sum(), leaf, create_graph=True)
            with pytest.raises(RuntimeError, match=r"no second derivative.*create_graph"):
                loss = loss_of(leaf).sum()
                torch.autograd.grad(loss, leaf, create_graph=True, retain_graph=False)


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_checkpointing_does_not_update_the_bank_twice(device, use_reentrant):
    problem = make_problem(6, 10, device=device)
    expected = problem.table.clone()
    if not use_reentrant:  # the reentrant form computes the forward pass without gradients
        alr_loss(problem.logits, expected, problem.index)
    bank = LabelBank(problem.table.clone(), torch.zeros(len(expected), dtype=torch.int64))
    criterion = ALRLoss(bank, warmup_epochs=0)
    leaf = leaf_of(problem)
    labels = torch.zeros(6, dtype=torch.int64, device=device)

    def loss_of(z, update=None):
        return criterion(2 * z / 2, labels, problem.index, update=update)

    loss = checkpoint(loss_of, leaf, use_reentrant=use_reentrant)
    assert same_bits(bank.rows, expected)
    with pytest.raises(RuntimeError, match=r"second time.*\n?.*checkpointing"):
        loss.backward()
    assert same_bits(bank.rows, expected)
    # Without an update, checkpointing is allowed.
    want = torch.autograd.grad(loss_of(leaf, False), leaf)[0]
    checkpoint(loss_of, leaf, False, use_reentrant=use_reentrant).backward()
    assert same_bits(leaf.grad, want)
    assert same_bits(bank.rows, expected)


def test_without_grad_mode_there_is_a_loss_and_no_graph(device):
    problem = make_problem(6, 10, device=device)
    expected = problem.table.clone()
    with_graph = alr_loss(leaf_of(problem), expected, problem.index)
    assert with_graph.requires_grad
    for mode in (torch.no_grad, torch.inference_mode):
        bank = problem.table.clone()
        with mode():
            loss = alr_loss(leaf_of(problem), bank, problem.index)
            assert not loss.requires_grad
        assert torch.equal(loss, with_graph.detach())
        assert same_bits(bank, expected)
        for loss_of in losses(problem).values():
            with mode():
                assert not loss_of(leaf_of(problem)).requires_grad
    # alr_loss_and_grad needs no graph.
    with torch.no_grad():
        loss, grad = alr_loss_and_grad(problem.logits, problem.table.clone(), problem.index)
    assert torch.equal(loss, with_graph.detach())
    assert grad.abs().sum() > 0


def test_constants_must_not_require_a_gradient(device):
    problem = make_problem(6, 10, device=device)
    bank = problem.table.clone().requires_grad_()
    weight = torch.ones(6, device=device, requires_grad=True)
    z, i = problem.logits, problem.index
    before = bank.detach().clone()
    plain = bank.detach()
    for call in (
        lambda: alr_loss(z, bank, i),
        lambda: alr_loss_and_grad(z, bank, i),
        lambda: soft_target_cross_entropy(z, bank, i),
    ):
        with pytest.raises(ValueError, match="constants: pass the table or bank detached"):
            call()
    for call in (
        lambda: alr_loss(z, plain, i, row_weight=weight),
        lambda: alr_loss_and_grad(z, plain, i, row_weight=weight),
        lambda: soft_target_cross_entropy(z, plain, i, row_weight=weight),
        lambda: label_smoothing_cross_entropy(z, i % 10, row_weight=weight),
    ):
        with pytest.raises(ValueError, match="row_weight is a constant"):
            call()
    assert same_bits(plain, before)


# Entries that could be lost in 16 bits.


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_float16_gradients_are_not_flushed_before_the_loss_scale(device, reduction):
    batch, classes = 64, 1000
    problem = make_problem(batch, classes, device=device, logits=F16, spread=3)
    scale = 65536.0 if reduction == "mean" else 1024.0
    exact = problem.with_(logits=problem.logits.double()).double()
    for name, loss_of in losses(problem, reduction=reduction).items():
        leaf = leaf_of(problem)
        (loss_of(leaf).sum() * scale).backward()
        wide = exact.logits.requires_grad_()
        expected = {
            "alr_loss": lambda z: reference.alr_loss(
                z, exact.table, exact.index, update=False, reduction=reduction
            ),
            "soft_target": lambda z: reference.soft_target_cross_entropy(
                z, exact.table, exact.index, reduction=reduction
            ),
            "label_smoothing": lambda z: reference.label_smoothing_cross_entropy(
                z, exact.index % classes, reduction=reduction
            ),
        }[name](wide)
        (want,) = torch.autograd.grad(expected.sum() * scale, wide)
        # Element by element: a norm would hide small entries. Two roundings of 2^-11 each, the
        # first of a number that is itself not below 2^-24.
        error = (leaf.grad.double() - want).abs()
        limit = 1.01 * 2**-10 * want.abs() + 2**-23
        assert (error <= limit).all(), (name, (error / limit).max())
        survives = want.abs() > 2**-22
        assert survives.float().mean() > 0.5
        assert (leaf.grad[survives] != 0).all()


def test_float16_gradients_take_the_loss_scale_as_a_row_weight(device):
    problem = make_problem(64, 1000, device=device, logits=F16, spread=3)
    scale = torch.full((64,), 65536.0, device=device)
    _, grad = alr_loss_and_grad(
        problem.logits, problem.table, problem.index, update=False, row_weight=scale
    )
    wide = problem.double()
    _, want = reference.alr_loss_and_grad(
        wide.logits, wide.table, wide.index, update=False, row_weight=scale.double()
    )
    error = (grad.double() - want).abs()
    # Half a unit of float16, or of its smallest number; for float32 a few units of the terms.
    terms = wide.logits.softmax(-1) * scale[:, None]
    terms = terms * (1 + wide.logits.log_softmax(-1).abs().amax(-1, keepdim=True))
    assert (error <= 2**-11 * want.abs() + 2**-24 + 4 * 2**-23 * terms).all()
    assert (grad != 0).float().mean() > 0.9


@pytest.mark.parametrize("sign", [1, -1])
def test_float16_gradients_of_heavy_rows_do_not_overflow(device, sign):
    # The largest gradients: the logits certain of one class, the target entirely on others.
    logits = torch.zeros(2, 64, dtype=F16, device=device)
    logits[:, 5] = 20
    heavy = torch.zeros(2, 64, device=device)
    heavy[0, 9], heavy[1, 32:] = sign * 16, sign * 0.5  # magnitudes that sum to 16
    index = torch.arange(2, device=device)
    for table, fused in (
        (heavy, lambda z, t: soft_target_cross_entropy(z, t, index, entropy_weight=1.0)),
        (heavy / 10, lambda z, t: alr_loss(z, t, index, momentum=1.0, update=False)),
    ):
        leaf = logits.clone().requires_grad_()
        (grad,) = torch.autograd.grad(fused(leaf, table), leaf)
        mass = table.sum(-1)
        want = (mass[:, None] * logits.double().softmax(-1) - table) / 2
        assert want.abs().max() > 0.7
        torch.testing.assert_close(grad.double(), want, rtol=2**-9, atol=1e-5)


@pytest.mark.parametrize("logits", [BF16, F16, F32], ids=str)
def test_the_gradient_of_a_confident_row_is_accurate(device, logits):
    # p = .999 of the right class: computed from a rounded p the gradient would be off by 100 %.
    leaf = torch.tensor([[6.90625, 0.0]], dtype=logits, device=device, requires_grad=True)
    want = leaf.detach().double().softmax(-1) - torch.tensor([[1.0, 0.0]], device=device)
    assert 5e-4 < want[0, 1] < 2e-3
    label = torch.zeros(1, dtype=torch.int64, device=device)
    one_hot = torch.tensor([[1.0, 0.0]], device=device)
    for loss in (
        label_smoothing_cross_entropy(leaf, label),
        soft_target_cross_entropy(leaf, one_hot),
        alr_loss(leaf, one_hot.clone(), label, momentum=1.0, entropy_weight=0.0),
    ):
        (grad,) = torch.autograd.grad(loss, leaf)
        unit = torch.finfo(logits).eps
        torch.testing.assert_close(
            grad.double(), want, rtol=max(unit, 1e-4), atol=0, check_dtype=False
        )
