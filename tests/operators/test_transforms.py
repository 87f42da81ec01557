"""Transforms of torch: as its own cross entropy, or refused with the name of the reference."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd import forward_ad
from torch.func import grad, hessian, jacfwd, jacrev, jvp, vmap
from torch.fx.experimental.proxy_tensor import make_fx

from alr_fast import functional, reference
from helpers.problems import make_problem

pytestmark = pytest.mark.usefixtures("autograd_node")

B, K = 4, 6
LABELS = torch.tensor([0, 2, 5, 1])
PROBLEM = make_problem(B, K)
TANGENT = torch.arange(float(B * K)).reshape(B, K).cos()


def losses(module):
    """The losses of a module as functions of the logits."""
    table, index = PROBLEM.table, PROBLEM.index
    return {
        "alr_loss": lambda z: module.alr_loss(z, table.clone(), index),
        "alr_loss without update": lambda z: module.alr_loss(
            z, table, index, update=False, reduction="sum"
        ),
        "soft_target_cross_entropy": lambda z: module.soft_target_cross_entropy(z, table, index),
        "label_smoothing_cross_entropy": lambda z: module.label_smoothing_cross_entropy(z, LABELS),
    }


FUSED, REFERENCE = losses(functional), losses(reference)


def tangent_of(loss):
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(PROBLEM.logits, TANGENT)
        return forward_ad.unpack_dual(loss(dual)).tangent


class Module(torch.nn.Module):
    def __init__(self, loss):
        super().__init__()
        self.loss = loss

    def forward(self, logits: Tensor) -> Tensor:
        return self.loss(logits)


def gradient(loss, logits=PROBLEM.logits):
    leaf = logits.detach().requires_grad_()
    return torch.autograd.grad(loss(leaf), leaf)[0]


def exported_gradient(loss, strict=False):
    example = (PROBLEM.logits.clone(),)
    return gradient(torch.export.export(Module(loss), example, strict=strict).module())


def jacobian(loss, **options):
    return torch.autograd.functional.jacobian(loss, PROBLEM.logits, **options)


def batched(loss):
    return vmap(loss)(torch.stack([PROBLEM.logits, PROBLEM.logits]))[1]


def recorded(loss):
    graph = make_fx(lambda z: gradient(loss, z))(PROBLEM.logits)
    assert len(graph.graph.nodes) > 2
    return graph(PROBLEM.logits)


def gradient_through_a_hook(loss):
    """A hook that changes the gradient in place, with a graph that is kept."""
    leaf = PROBLEM.logits.clone().requires_grad_()
    leaf.register_hook(lambda g: g.mul_(2))
    value = loss(leaf)
    value.backward(retain_graph=True)
    first, leaf.grad = leaf.grad, None
    value.backward()
    assert torch.equal(leaf.grad, first)
    return leaf.grad / 2


FIRST_ORDER = {
    "func.jvp": lambda f: jvp(f, (PROBLEM.logits,), (TANGENT,))[1],
    "func.jacfwd": lambda f: jacfwd(f)(PROBLEM.logits),
    "forward mode": tangent_of,
    "func.grad": lambda f: grad(f)(PROBLEM.logits),
    "func.jacrev": lambda f: jacrev(f)(PROBLEM.logits),
    "func.vmap": batched,
    "vmap of grad": lambda f: batched(grad(f)),
    "jacobian": jacobian,
    "vectorized jacobian": lambda f: jacobian(f, vectorize=True),
    "forward-mode jacobian": lambda f: jacobian(f, vectorize=True, strategy="forward-mode"),
    "export": exported_gradient,
    "strict export": lambda f: exported_gradient(f, strict=True),
    "make_fx": recorded,
    "hook": gradient_through_a_hook,
}
SECOND_ORDER = {
    "func.hessian": lambda f: hessian(f)(PROBLEM.logits),
    "hessian": lambda f: torch.autograd.functional.hessian(f, PROBLEM.logits),
}
TRANSFORMS = FIRST_ORDER | SECOND_ORDER
# Those of the fused losses; all others are refused.
WORK = {"jacobian", "vectorized jacobian", "make_fx", "hook"}


def expected(loss, transform):
    """From the gradient of the reference, except for those of second order."""
    g = gradient(loss)
    if transform in ("func.jvp", "forward mode"):
        return (g * TANGENT).sum()
    return loss(PROBLEM.logits) if transform == "func.vmap" else g


@pytest.mark.parametrize("name", FUSED)
@pytest.mark.parametrize("transform", TRANSFORMS)
def test_a_transform_of_a_fused_loss_is_right_or_refused(transform, name):
    run = TRANSFORMS[transform]
    if transform in WORK:
        torch.testing.assert_close(run(FUSED[name]), expected(REFERENCE[name], transform))
        return
    with pytest.raises(Exception, match=r"alr_fast\.reference") as caught:
        run(FUSED[name])
    # Dynamo wraps it in an error of its own.
    assert isinstance(caught.value, RuntimeError) or transform == "strict export"


@pytest.mark.parametrize("name", REFERENCE)
@pytest.mark.parametrize("transform", FIRST_ORDER)
def test_the_reference_works_under_every_transform(transform, name):
    loss = REFERENCE[name]
    if name == "alr_loss" and "vmap" in transform:
        # One bank for a batch of predictions: torch refuses to write it.
        with pytest.raises(RuntimeError, match="vmap: index_put_"):
            FIRST_ORDER[transform](loss)
        return
    torch.testing.assert_close(FIRST_ORDER[transform](loss), expected(loss, transform))


@pytest.mark.parametrize("transform", TRANSFORMS)
def test_the_reference_is_torchs_cross_entropy(transform):
    ours = TRANSFORMS[transform](REFERENCE["label_smoothing_cross_entropy"])
    theirs = TRANSFORMS[transform](lambda z: F.cross_entropy(z, LABELS))
    assert theirs.abs().sum() > 0.01
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("reduction", ["none", "mean"])
def test_a_vectorized_jacobian_counts_weights_and_types(reduction):
    """Of float16 logits the gradient of single rows is kept, with a scale and without weights."""
    weight = torch.tensor([0.5, 2.0, 0.0, 1.0])
    for dtype, tolerance in ((torch.float32, 1e-6), (torch.float16, 2e-3)):
        logits = PROBLEM.logits.to(dtype)

        def loss(z, module=functional):
            return module.alr_loss(
                z, PROBLEM.table, PROBLEM.index, update=False, row_weight=weight,
                reduction=reduction,
            )  # fmt: skip

        got = torch.autograd.functional.jacobian(loss, logits, vectorize=True)
        want = torch.autograd.functional.jacobian(lambda z: loss(z, reference), logits)
        assert got.dtype == dtype
        torch.testing.assert_close(got, want, rtol=tolerance, atol=tolerance)


def test_a_program_without_gradient_can_be_exported():
    with torch.no_grad():
        program = torch.export.export(Module(FUSED["alr_loss"]), (PROBLEM.logits,)).module()
        assert torch.equal(program(PROBLEM.logits), FUSED["alr_loss"](PROBLEM.logits))


@pytest.mark.parametrize("name", FUSED)
def test_fake_and_meta_tensors_have_shapes_of_gradients(name):
    def step(z, table, index, labels):
        calls = {
            "alr_loss": lambda: functional.alr_loss(z, table, index),
            "alr_loss without update": lambda: functional.alr_loss(z, table, index, update=False),
            "soft_target_cross_entropy": lambda: functional.soft_target_cross_entropy(
                z, table, index
            ),
            "label_smoothing_cross_entropy": lambda: functional.label_smoothing_cross_entropy(
                z, labels
            ),
        }
        loss = calls[name]()
        loss.backward()
        return loss, z.grad

    given = PROBLEM.logits, PROBLEM.table, PROBLEM.index, LABELS
    with FakeTensorMode() as mode:
        fakes = [mode.from_tensor(t) for t in given]
        fakes[0].requires_grad_()
        loss, g = step(*fakes)
    assert loss.shape == () and g.shape == (B, K)
    metas = [t.to("meta") for t in given]
    metas[0].requires_grad_()
    loss, g = step(*metas)
    assert loss.shape == () and g.is_meta and g.shape == (B, K)


# The version of the bank.


def stale_gradient(update):
    bank, x = PROBLEM.table.clone(), torch.ones(K, requires_grad=True)
    y = (x * bank).sum()  # saves the bank for its gradient
    update(bank)
    y.backward()


@pytest.mark.parametrize("function", [functional.alr_loss, functional.alr_loss_and_grad])
@pytest.mark.parametrize("backend", [None, "aot_eager", "inductor"])
def test_a_bank_that_was_saved_for_a_gradient_must_not_change(function, backend):
    torch._dynamo.reset()

    def update(bank, update=True):
        return function(PROBLEM.logits, bank, PROBLEM.index, update=update)

    if backend is not None:
        update = torch.compile(update, fullgraph=True, backend=backend)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        stale_gradient(update)
    stale_gradient(lambda bank: update(bank, update=False))


def test_a_bank_of_inference_mode_has_no_version():
    with torch.inference_mode():
        bank = PROBLEM.table.clone()
        functional.alr_loss(PROBLEM.logits, bank, PROBLEM.index)
    before = bank.clone()
    functional.alr_loss(PROBLEM.logits, bank, PROBLEM.index)
    assert not torch.equal(bank, before)
