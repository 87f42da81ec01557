"""Stochastic rounding of a 16-bit bank, bit-identical results from the same input, autocast."""

import pytest
import torch
from torch import nn

from alr_fast import ALRLoss, LabelBank
from alr_fast.functional import alr_loss
from helpers.compare import same_bits
from helpers.problems import make_problem, problem_for, run_fused, threads

F16, BF16, F32 = torch.float16, torch.bfloat16, torch.float32


def criterion_with(rows, *, seed=None, **options):
    labels = torch.zeros(len(rows), dtype=torch.int64)
    return ALRLoss(LabelBank(rows.clone(), labels, rounding_seed=seed), warmup_epochs=0, **options)


def call(criterion, problem):
    labels = torch.zeros(len(problem.index), dtype=torch.int64, device=problem.index.device)
    return criterion(problem.logits, labels, problem.index)


@pytest.mark.parametrize("bank", [BF16, F16], ids=str)
@pytest.mark.parametrize("classes", [10, 16, 301])
def test_every_call_has_its_own_random_bits(device, classes, bank):
    problem = make_problem(20, classes, device=device, bank=bank)
    calls = []
    for seed in (5, 5, 6):
        criterion = criterion_with(problem.table, seed=seed)
        call(criterion, problem)
        assert criterion.bank.rounding_state.tolist() == [seed, 1]
        calls.append(criterion.bank.rows)
    assert same_bits(calls[0], calls[1])  # same state, same bits
    assert not same_bits(calls[0], calls[2])  # another seed
    second = criterion_with(problem.table, seed=5)
    second.bank.rounding_state[1] = 1
    call(second, problem)
    assert second.bank.rounding_state.tolist() == [5, 2]
    assert not same_bits(calls[0], second.bank.rows)  # another call
    nearest = criterion_with(problem.table)
    call(nearest, problem)
    assert not same_bits(calls[0], nearest.bank.rows)


def test_the_rows_of_a_batch_and_their_classes_are_rounded_independently(device):
    # Equal rows, equal classes: every element is the same number, between two bfloat16 numbers.
    for classes in (16, 301):
        rows = torch.full((256, classes), 0.3, dtype=BF16, device=device)
        problem = make_problem(256, classes, device=device).with_(
            logits=torch.zeros(256, classes, device=device),
            table=rows,
            index=torch.arange(256, device=device),
        )
        criterion = criterion_with(rows, seed=0, momentum=0.9)
        call(criterion, problem)
        up = (criterion.bank.rows == criterion.bank.rows.max()).float()
        share = up.mean().item()
        assert 0.02 < share < 0.98
        deviation = (share * (1 - share)) ** 0.5
        for means, count in ((up.mean(0), 256), (up.mean(1), classes)):
            assert (means - share).abs().max() < 6 * deviation / count**0.5
        # Hardly any neighbours are equal.
        assert (up[1:] != up[:-1]).any(1).float().mean() > 0.95
        assert (up[:, 1:] != up[:, :-1]).any(0).float().mean() > 0.95


@pytest.mark.parametrize("bank", [BF16, F16], ids=str)
def test_each_element_goes_to_one_of_its_two_neighbours(device, bank):
    problem = make_problem(64, 100, device=device, bank=bank, spread=10)
    exact = criterion_with(problem.table.float())
    call(exact, problem)
    rounded = criterion_with(problem.table, seed=3)
    call(rounded, problem)
    want, got = exact.bank.rows[problem.index], rounded.bank.rows[problem.index].float()
    # One unit in the last place, at least that of float16's subnormal numbers.
    unit = want.abs() * torch.finfo(bank).eps
    if bank == F16:
        unit = unit.clamp(min=2.0**-24)
    assert ((got - want).abs() <= unit * 1.0001).all()
    small = (want > 0) & (want < 2.0**-15)
    assert small.any()
    untouched = torch.ones(len(rounded.bank), dtype=torch.bool, device=device)
    untouched[problem.index] = False
    assert same_bits(rounded.bank.rows[untouched], problem.table[untouched])


@pytest.mark.parametrize("bank", [BF16, F16], ids=str)
def test_the_mean_follows_a_float32_bank_where_rounding_to_nearest_stalls(device, bank):
    n, steps = 2048, 60
    logits = torch.tensor([1.2, 0.4, 0.0, -0.6], device=device).expand(n, 4)
    start = torch.tensor([0.0, 1.0, 0.0, 0.0], device=device).expand(n, 4).contiguous()
    problem = make_problem(n, 4, device=device).with_(
        logits=logits, index=torch.arange(n, device=device)
    )
    criteria = {
        "exact": criterion_with(start),
        "nearest": criterion_with(start.to(bank)),
        "stochastic": criterion_with(start.to(bank), seed=11),
    }
    for _ in range(steps):
        for criterion in criteria.values():
            call(criterion, problem)
    exact, nearest, stochastic = (c.bank.rows.double() for c in criteria.values())
    unit = torch.finfo(bank).eps * exact[0]  # at most the distance of two neighbours, below 1
    # One step adds an error with a deviation of at most half a unit and mean 0, the moving average
    # at most 1 / sqrt(1 - .9^2) of that: 1.15 units. Seven deviations of a mean of n:
    bound = 7 * 1.15 * unit / n**0.5
    assert ((stochastic.mean(0) - exact[0]).abs() <= bound).all()
    # Rounding to nearest loses steps below half a unit: the average stops up to 5 units away.
    assert (nearest.mean(0) - exact[0]).abs().max() > 10 * bound.max()


@pytest.mark.parametrize("operation", ["alr_loss", "label_smoothing_cross_entropy"])
def test_the_same_bits_from_the_same_input(device, operation):
    for classes, batch in ((10, 4096), (1001, 64)):
        problem = problem_for(operation, batch, classes, device=device, spread=3)
        torch.use_deterministic_algorithms(True)
        try:
            results = []
            for count in (1, 2, 2):
                with threads(count):
                    results.append(run_fused(operation, problem))
        finally:
            torch.use_deterministic_algorithms(False)
        for other in results[1:]:
            assert same_bits(other.loss, results[0].loss)
            assert same_bits(other.grad, results[0].grad)
            if other.table is not None:
                assert same_bits(other.table, results[0].table)


def test_stochastic_rounding_does_not_depend_on_the_threads(device):
    problem = make_problem(4096, 10, device=device, bank=BF16)
    rows = []
    for count in (1, 2):
        criterion = criterion_with(problem.table, seed=1)
        with threads(count):
            call(criterion, problem)
        rows.append(criterion.bank.rows)
    assert same_bits(*rows)


@pytest.mark.parametrize("dtype", [BF16, F16], ids=str)
def test_autocast(device, dtype):
    problem = make_problem(16, 10, device=device)
    torch.manual_seed(0)
    net = nn.Linear(7, 10, device=device)
    inputs = torch.randn(16, 7, device=device)
    bank = problem.table.clone()
    with torch.autocast(device.type, dtype):
        logits = net(inputs)
        assert logits.dtype == dtype
        logits.retain_grad()
        loss = alr_loss(logits, bank, problem.index)
    loss.backward()
    expected = run_fused("alr_loss", problem.with_(logits=logits.detach()))
    assert loss.dtype == F32
    assert torch.equal(loss.detach(), expected.loss)
    assert same_bits(logits.grad, expected.grad)
    assert same_bits(bank, expected.table)
    assert net.weight.grad.abs().sum() > 0
