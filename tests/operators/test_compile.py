"""Under torch.compile: the same results, no copy of the bank, no graph beyond the two phases."""

import re

import pytest
import torch
from torch._dynamo.backends.debugging import aot_eager
from torch._inductor.utils import run_and_get_code
from torch.utils.checkpoint import checkpoint

from alr_fast import ALRLoss, LabelBank
from alr_fast.functional import (
    alr_loss,
    alr_loss_and_grad,
    label_smoothing_cross_entropy,
    soft_target_cross_entropy,
)
from helpers.compare import same_bits
from helpers.problems import make_problem, run_fused

F16, BF16, F32 = torch.float16, torch.bfloat16, torch.float32


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def compiled(function, backend="aot_eager"):
    return torch.compile(function, fullgraph=True, backend=backend)


def leaf_of(problem):
    return problem.logits.detach().clone().requires_grad_()


@pytest.mark.parametrize("logits", [F32, F16, BF16], ids=str)
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_alr_loss_is_the_same_as_without(device, reduction, logits):
    problem = make_problem(6, 10, device=device, logits=logits)
    weight = torch.rand(6, device=device)
    options = dict(reduction=reduction, row_weight=weight)
    step = compiled(lambda z, bank, index: alr_loss(z, bank, index, **options))
    bank, leaf = problem.table.clone(), leaf_of(problem)
    place = bank.data_ptr()
    for again in range(2):
        before = bank.clone()
        expected = run_fused("alr_loss", problem.with_(table=before), **options)
        loss = step(leaf, bank, problem.index)
        (grad,) = torch.autograd.grad(loss.sum(), leaf)
        assert same_bits(loss.detach(), expected.loss)
        torch.testing.assert_close(grad, expected.grad, rtol=torch.finfo(logits).eps, atol=1e-7)
        assert grad.abs().sum() > 0
        assert bank.data_ptr() == place
        assert same_bits(bank, expected.table), again
        assert not same_bits(bank, before)


def test_the_other_operations_are_the_same_as_without(device):
    problem = make_problem(6, 10, device=device)
    table, index = problem.table, problem.index
    for function in (
        lambda z: soft_target_cross_entropy(z, table, index, entropy_weight=0.2),
        lambda z: soft_target_cross_entropy(z, table[:6]),
        lambda z: label_smoothing_cross_entropy(z, index % 10, smoothing=0.1),
        lambda z: alr_loss(z, table, index, update=False, return_stats=True)[0],
    ):
        leaf = leaf_of(problem)
        expected = function(leaf)
        (want,) = torch.autograd.grad(expected, leaf)
        loss = compiled(function)(leaf)
        (grad,) = torch.autograd.grad(loss, leaf)
        assert torch.equal(loss, expected)
        torch.testing.assert_close(grad, want)


def test_loss_and_gradient_in_one_launch(device):
    problem = make_problem(6, 10, device=device)
    expected = run_fused("alr_loss_and_grad", problem)
    bank = problem.table.clone()
    loss, grad, stats = compiled(
        lambda z, bank, i: alr_loss_and_grad(z, bank, i, return_stats=True)
    )(problem.logits, bank, problem.index)
    assert torch.equal(loss, expected.loss)
    assert same_bits(grad, expected.grad)
    assert same_bits(bank, expected.table)
    assert torch.equal(stats.predicted, problem.logits.argmax(-1))


def test_the_generated_code_passes_the_bank_itself(device):
    problem = make_problem(6, 10, device=device)
    bank = problem.table.clone()
    expected = run_fused("alr_loss", problem)
    leaf = leaf_of(problem)
    step = compiled(lambda z, bank, index: alr_loss(2 * z / 2, bank, index), "inductor")

    def forward_and_backward():
        step(leaf, bank, problem.index).backward()

    _, codes = run_and_get_code(forward_and_backward)
    source = "\n".join(codes)
    calls = re.findall(r"torch\.ops\.alr_fast\.alr_loss_once\.default\((\w+), (\w+), ", source)
    assert len(calls) == 1
    assert re.fullmatch(r"(primals|arg\d+)_\d+", calls[0][1]), calls  # an input of the graph
    rows, classes = bank.shape
    assert not re.search(rf"empty_strided_\w+\(\({rows}, {classes}\)", source)
    assert not re.search(r"clone|copy_|auto_functionalized", source)
    assert same_bits(bank, expected.table)
    torch.testing.assert_close(leaf.grad, expected.grad)


def test_epochs_compile_once_for_each_phase(device):
    problem = make_problem(6, 10, device=device)
    labels = torch.zeros(6, dtype=torch.int64, device=device)
    graphs = []

    def counting(graph, inputs):
        graphs.append(graph)
        return aot_eager(graph, inputs)

    def bank():
        rows = problem.table.clone()
        return LabelBank(rows, torch.zeros(len(rows), dtype=torch.int64), rounding_seed=1)

    plain = ALRLoss(bank(), warmup_epochs=4)
    criterion = ALRLoss(bank(), warmup_epochs=4)
    step = compiled(lambda z: criterion(z, labels, problem.index), counting)
    leaf = leaf_of(problem)
    place = criterion.bank.rows.data_ptr()
    for epoch in range(12):
        plain.set_epoch(epoch)
        criterion.set_epoch(epoch)
        for _ in range(2):
            loss = step(leaf)
            assert torch.equal(loss, plain(leaf, labels, problem.index))
            loss.backward()
    assert len(graphs) == 2
    assert criterion.bank.rows.data_ptr() == place
    assert same_bits(criterion.bank.rows, plain.bank.rows)
    assert criterion.bank.rounding_state.tolist() == [1, 16]
    assert not same_bits(criterion.bank.rows, problem.table)


def test_batches_of_many_sizes_need_no_graph_each(device):
    graphs = []

    def counting(graph, inputs):
        graphs.append(graph)
        return aot_eager(graph, inputs)

    step = compiled(lambda z, bank, index: alr_loss(z, bank, index), counting)
    for batch in (8, 5, 7, 9, 12):
        problem = make_problem(batch, 10, rows=40, device=device)
        bank = problem.table.clone()
        expected = run_fused("alr_loss", problem)
        assert torch.equal(step(leaf_of(problem), bank, problem.index), expected.loss)
        assert same_bits(bank, expected.table)
    assert len(graphs) == 2  # the first size, then any


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_checkpointing_a_compiled_loss_does_not_update_the_bank_twice(device, use_reentrant):
    problem = make_problem(6, 10, device=device)
    once = run_fused("alr_loss", problem).table
    bank = problem.table.clone()
    step = compiled(lambda z: alr_loss(2 * z / 2, bank, problem.index))
    loss = checkpoint(step, leaf_of(problem), use_reentrant=use_reentrant)
    assert same_bits(bank, once)
    with pytest.raises(RuntimeError, match="second time"):
        loss.backward()
    assert same_bits(bank, once)


def test_checkpointing_within_a_compiled_step_is_right_or_refused(device):
    # A recomputation would read the row that the first pass has already refined.
    problem = make_problem(6, 10, device=device)
    expected = run_fused("alr_loss", problem)
    bank, leaf = problem.table.clone(), leaf_of(problem)

    def loss_of(z):
        return alr_loss(2 * z / 2, bank, problem.index)

    step = compiled(lambda z: checkpoint(loss_of, z, use_reentrant=False))
    loss = step(leaf)
    assert torch.equal(loss.detach(), expected.loss)
    try:
        loss.backward()
    except RuntimeError as error:
        assert "second time" in str(error)
    else:
        torch.testing.assert_close(leaf.grad, expected.grad)
    assert same_bits(bank, expected.table)
