"""SELC, SAT and ELR against their formulas in float64, and the options that they refuse."""

import pytest
import torch
import torch.nn.functional as F

from alr_fast import ALRLoss, LabelBank
from alr_fast.losses import ELRLoss, SATLoss, SELCLoss
from helpers import loss_cases as cases
from helpers.loss_cases import (
    CLASSES,
    GIVEN,
    INDEX,
    REDUCTIONS,
    ROWS,
    check,
    close,
    numbers,
    reduced,
)


def spread_logits(device, spread, seed=20):
    return numbers(len(INDEX), CLASSES, seed=seed, spread=spread).to(device)


def target_of(z, momentum, rows=ROWS, index=INDEX):
    """The moving average, a constant for the gradient."""
    return momentum * rows.double()[index] + (1 - momentum) * z.detach().softmax(-1)


def soft_cross_entropy(target, z):
    return -(target * z.log_softmax(-1)).sum(-1)


def close_banks(bank, expected, index=INDEX):
    """Checks that the indexed rows are as expected and the others unchanged."""
    rows = ROWS.double().clone()
    rows[index] = expected
    close(bank.rows, rows, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("spread", [1, 10])
@pytest.mark.parametrize("momentum", [0.9, 0.25, 0.0])
def test_selc(device, spread, reduction, momentum):
    criterion = SELCLoss(
        cases.bank(device), warmup_epochs=0, momentum=momentum, reduction=reduction
    )
    logits = spread_logits(device, spread)
    check(criterion, lambda z: soft_cross_entropy(target_of(z, momentum), z), logits)
    close_banks(criterion.bank, target_of(logits.cpu(), momentum))


def test_selc_has_no_entropy_term_and_the_momentum_of_its_code(device):
    criterion = SELCLoss(cases.bank(device), warmup_epochs=0)
    assert (criterion.momentum, criterion.entropy_weight) == (0.9, 0.0)


@pytest.mark.parametrize("loss", [SELCLoss, SATLoss])
def test_the_first_refining_epoch_follows_those_of_the_warm_up(device, loss):
    criterion = loss(cases.bank(device), warmup_epochs=3)
    logits, index = spread_logits(device, 1).float(), INDEX.to(device)
    for epoch in range(1, 7):  # counted from 1, as the public code does
        criterion.set_epoch(epoch - 1)
        before = criterion.bank.rows.clone()
        found = criterion(logits, GIVEN.to(device)[index], index)
        refines = epoch > 3
        assert criterion.refining is refines
        assert torch.equal(criterion.bank.rows, before) is not refines
        plain = F.cross_entropy(logits, GIVEN.to(device)[index])
        assert torch.allclose(found, plain, rtol=1e-6) is not refines


def sat_rows(z, momentum, rows=ROWS, index=INDEX):
    """Loss of each row such that their mean is sum(w CE) / sum(w)."""
    target = target_of(z, momentum, rows, index)
    weight = target.max(-1).values
    return len(z) * weight * soft_cross_entropy(target, z) / weight.sum()


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("spread", [1, 10])
@pytest.mark.parametrize("momentum", [0.9, 0.25])
def test_sat(device, spread, reduction, momentum):
    criterion = SATLoss(cases.bank(device), warmup_epochs=0, momentum=momentum, reduction=reduction)
    logits = spread_logits(device, spread)
    check(criterion, lambda z: sat_rows(z, momentum), logits)
    close_banks(criterion.bank, target_of(logits.cpu(), momentum))


def test_sat_by_hand(device):
    rows = torch.tensor([[1.0, 0.0], [0.0, 1.0]], device=device)
    criterion = SATLoss(LabelBank(rows, torch.tensor([0, 1])), warmup_epochs=0, momentum=0.5)
    p = torch.tensor([[0.6, 0.4], [0.8, 0.2]], device=device)
    index = torch.tensor([0, 1], device=device)
    loss = criterion(p.log(), index, index)
    # Targets (0.8, 0.2) and (0.4, 0.6), of weight 0.8 and 0.6.
    log = torch.tensor([0.6, 0.4, 0.8, 0.2], dtype=torch.float64).log()
    first, second = -0.8 * log[0] - 0.2 * log[1], -0.4 * log[2] - 0.6 * log[3]
    close(loss, (0.8 * first + 0.6 * second) / 1.4)
    close(criterion.bank.rows, torch.tensor([[0.8, 0.2], [0.4, 0.6]]), rtol=1e-6)


def test_three_steps_of_sat(device):
    criterion = SATLoss(cases.bank(device), warmup_epochs=0, momentum=0.6)
    rows = ROWS.double().clone()
    for step in range(3):
        logits, index = spread_logits(device, 3, seed=30 + step), INDEX.roll(step)
        check(
            criterion,
            lambda z, index=index: sat_rows(z, 0.6, rows, index),
            logits,
            GIVEN[index].to(device),
            index.to(device),
        )
        rows[index] = target_of(logits.cpu(), 0.6, rows, index)
        close(criterion.bank.rows, rows, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("cut", [3, 1, 0])
def test_sat_on_several_processes_is_sat_on_the_whole_batch(device, cut):
    logits = spread_logits(device, 3).float()
    labels, index = GIVEN[INDEX].to(device), INDEX.to(device)
    whole = SATLoss(cases.bank(device), warmup_epochs=0, reduction="sum")
    expected, want = whole.loss_and_grad(logits, labels, index)
    of_each = []

    def run(part, all_sum):
        leaf = logits[part].clone().requires_grad_()
        bank = cases.bank(device)
        options = dict(warmup_epochs=0, reduction="sum", all_sum=all_sum)
        loss = SATLoss(bank, **options)(leaf, labels[part], index[part])
        (grad,) = torch.autograd.grad(loss, leaf)
        again, same = SATLoss(cases.bank(device), **options).loss_and_grad(
            leaf, labels[part], index[part]
        )
        close(again, loss.detach())
        close(same, grad)
        return loss.detach(), grad, bank.rows[index[part]]

    def note(sums):
        assert (sums.dtype, sums.shape) == (torch.float64, (2,))
        of_each.append(sums.clone())
        return sums

    parts = slice(None, cut), slice(cut, None)
    for part in parts:
        run(part, note)
    total = of_each[0] + of_each[2]
    assert total[0] == len(INDEX)
    losses, grads, rows = zip(*(run(part, lambda _: total.clone()) for part in parts), strict=True)
    close(sum(losses), expected)
    close(torch.cat(grads), want)
    assert torch.equal(torch.cat(rows), whole.bank.rows[index])


def test_means_of_sat_over_equal_parts_average_to_that_of_the_whole_batch(device):
    # DistributedDataParallel averages the gradients of a mean in this way.
    logits = spread_logits(device, 3)
    labels, index = GIVEN[INDEX].to(device), INDEX.to(device)
    target = target_of(logits.cpu(), 0.9)
    sums = torch.tensor([6.0, target.max(-1).values.sum()], dtype=torch.float64, device=device)
    parts = slice(None, 3), slice(3, None)
    losses = [
        SATLoss(cases.bank(device), warmup_epochs=0, all_sum=lambda _: sums.clone())(
            logits[part].float(), labels[part], index[part]
        )
        for part in parts
    ]
    close(sum(losses) / 2, sat_rows(logits.cpu(), 0.9).mean())


def test_rows_of_sat_without_a_value_do_not_affect_the_weights(device):
    logits = spread_logits(device, 2).float()
    labels, index = GIVEN[INDEX].to(device), INDEX.to(device, copy=True)
    options = dict(warmup_epochs=0, reduction="none")
    expected = SATLoss(cases.bank(device), **options)(logits[:4], labels[:4], index[:4])
    logits[4] = torch.nan
    index[5] = -1
    loss = SATLoss(cases.bank(device), **options)(logits, labels, index)
    close(loss[:4], expected)
    assert loss[4].isnan()
    assert loss[5] == 0


def elr_target(z, momentum, rows, index=INDEX):
    """Target and clamped prediction; outside of the bounds the latter is constant."""
    p = z.softmax(-1)
    q = torch.where(p < 1e-4, 1e-4, torch.where(p > 1 - 1e-4, 1 - 1e-4, p))
    new = q.detach() / q.detach().sum(-1, keepdim=True)
    return momentum * rows.double()[index] + (1 - momentum) * new, q


def elr_rows(z, momentum, weight, rows, index=INDEX):
    target, q = elr_target(z, momentum, rows, index)
    inner = (target * q).sum(-1)
    nll = -z.log_softmax(-1)[torch.arange(len(z)), GIVEN[index]]
    return nll + weight * (1 - inner).log()


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("spread", [1, 10])
@pytest.mark.parametrize(("momentum", "weight"), [(0.7, 3.0), (0.9, 7.0), (0.2, 1.0)])
def test_elr(device, spread, reduction, momentum, weight):
    bank = cases.bank(device)
    criterion = ELRLoss(bank, momentum=momentum, weight=weight, reduction=reduction)
    logits = spread_logits(device, spread)
    check(criterion, lambda z: elr_rows(z, momentum, weight, ROWS), logits)
    close_banks(bank, elr_target(logits.cpu(), momentum, ROWS)[0])


def test_three_steps_of_elr_from_a_bank_at_zero(device):
    bank = LabelBank.from_labels(GIVEN, CLASSES, device=device, one_hot=not ELRLoss.bank_at_zero)
    assert not bank.rows.any()
    criterion = ELRLoss(bank)
    rows = torch.zeros(len(GIVEN), CLASSES, dtype=torch.float64)
    for step in range(3):
        logits = spread_logits(device, 10, seed=40 + step)
        index = INDEX.roll(step) if step < 2 else INDEX[:3]
        logits = logits[: len(index)]
        check(
            criterion,
            lambda z, index=index: elr_rows(z, 0.7, 3.0, rows, index),
            logits,
            GIVEN[index].to(device),
            index.to(device),
        )
        rows[index] = elr_target(logits.cpu(), 0.7, rows, index)[0]
        close(bank.rows, rows, rtol=1e-6, atol=1e-7)
        # The public code renormalises: a row sums to 1 minus the remaining share of the zeros.
        close(bank.rows.sum(-1).max(), torch.tensor(1 - 0.7 ** (step + 1)))


def test_predictions_beyond_the_clamp_of_elr_get_no_gradient_from_its_term(device):
    p = torch.tensor([[1 - 3e-5, 1e-5, 2e-5]], dtype=torch.float64)
    bank = LabelBank(torch.tensor([[0.2, 0.7, 0.1]], device=device), torch.tensor([1]))
    leaf = p.log().to(device, torch.float32).requires_grad_()
    zero = torch.zeros(1, dtype=torch.int64, device=device)
    ELRLoss(bank, weight=50.0)(leaf, zero + 1, zero).backward()
    close(leaf.grad, p - torch.tensor([[0.0, 1.0, 0.0]]), rtol=1e-4, atol=1e-6)
    # The target uses the clamped prediction, divided by its sum.
    clamped = torch.tensor([[1 - 1e-4, 1e-4, 1e-4]], dtype=torch.float64) / (1 + 1e-4)
    expected = 0.7 * torch.tensor([[0.2, 0.7, 0.1]]) + 0.3 * clamped
    close(bank.rows, expected, rtol=1e-6, atol=0)


def test_rows_of_zeros_are_the_given_labels(device):
    bank = LabelBank.from_labels(GIVEN, CLASSES, device=device, one_hot=False)
    assert torch.equal(bank.refined_labels().cpu(), GIVEN)
    assert not bank.confidence().any()
    logits, index = spread_logits(device, 2).float(), INDEX.to(device)
    ELRLoss(bank)(logits, GIVEN.to(device)[index], index)
    expected = GIVEN.clone()
    expected[INDEX] = logits.argmax(-1).cpu()
    assert not torch.equal(expected, GIVEN)
    assert torch.equal(bank.refined_labels().cpu(), expected)


@pytest.mark.parametrize("unique", [False, True])
def test_of_duplicates_elr_keeps_the_last_that_is_finite(device, unique):
    logits = spread_logits(device, 2).float()
    index = torch.tensor([4, 7, 4, 7, 4, 2], device=device)
    logits[4] = torch.nan
    if unique:  # no index twice among the rows that are not ignored
        index[:2] = -1
        index[4] = 0
    bank = cases.bank(device)
    loss = ELRLoss(bank, reduction="none", unique_index=unique)(
        logits, GIVEN.to(device)[index.clamp(min=0)], index
    )
    kept = [2, 3, 5]
    exact = logits.cpu().double()[kept]
    close_banks(bank, elr_target(exact, 0.7, ROWS, index[kept].cpu())[0], index[kept].cpu())
    every = elr_rows(logits.cpu().double(), 0.7, 3.0, ROWS, index.cpu().clamp(min=0))
    every[index.cpu() < 0] = 0
    torch.testing.assert_close(loss.cpu().double(), every, rtol=1e-5, atol=1e-5, equal_nan=True)
    assert loss[4].isnan()
    assert bank.check() == 1


@pytest.mark.parametrize("way", ["eager", "deterministic", "compiled"])
def test_elr_stores_the_last_kept_row_of_every_index(device, way):
    g = torch.Generator().manual_seed(3)
    batch = 60  # of nine samples: some indices have kept rows, none at all, or only ignored ones
    for seed in range(3):
        index = torch.randint(-1, len(GIVEN) - 2, (batch,), generator=g)
        logits = numbers(batch, CLASSES, seed=seed, spread=2).float()
        logits[torch.rand(batch, generator=g) < 0.3] = torch.nan
        logits[index == 2] = torch.nan
        bank = cases.bank(device)
        criterion = ELRLoss(bank)
        if way == "compiled":
            criterion = torch.compile(criterion, fullgraph=True, backend="aot_eager")
        torch.use_deterministic_algorithms(way == "deterministic")
        try:
            with torch.no_grad():
                labels = GIVEN[index.clamp(min=0)].to(device)
                criterion(logits.to(device), labels, index.to(device), update=True)
        finally:
            torch.use_deterministic_algorithms(False)
        last = {int(i): b for b, i in enumerate(index) if i >= 0 and not logits[b].isnan().any()}
        assert 2 not in last and len(last) > 4
        places, rows = list(last), list(last.values())
        exact = logits.double()[rows]
        close_banks(bank, elr_target(exact, 0.7, ROWS, places)[0], places)


def test_elr_does_not_wait_for_the_device(device):
    if device.type != "cuda":
        pytest.skip("needs a GPU")
    criterion = ELRLoss(cases.bank(device))
    index = INDEX.repeat(50).to(device)
    labels = GIVEN.to(device)[index]
    leaf = numbers(len(index), CLASSES, seed=5).float().to(device).requires_grad_()
    criterion(leaf, labels, index).backward()
    torch.cuda.set_sync_debug_mode("error")
    try:
        criterion(leaf, labels, index).backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("loss", [SELCLoss, SATLoss, ELRLoss])
def test_banks_in_16_bits_are_rounded_once(device, loss, dtype):
    bank = cases.bank(device, dtype)
    options = {} if loss is ELRLoss else dict(warmup_epochs=0)
    criterion = loss(bank, momentum=0.7, **options)
    start = bank.rows.cpu().clone()
    formula, target = {
        SELCLoss: (lambda z: soft_cross_entropy(target_of(z, 0.7, start), z), target_of),
        SATLoss: (lambda z: sat_rows(z, 0.7, start), target_of),
        ELRLoss: (lambda z: elr_rows(z, 0.7, 3.0, start), lambda *a: elr_target(*a)[0]),
    }[loss]
    logits = spread_logits(device, 2)
    check(criterion, formula, logits)  # the loss uses the target before it is rounded
    assert bank.rows.dtype == dtype
    stored, exact = bank.rows.cpu()[INDEX].double(), target(logits.cpu(), 0.7, start)
    close(stored, exact, rtol=0.501 * torch.finfo(dtype).eps, atol=1e-7)


# Gradients by finite differences, the targets frozen.


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("name", ["selc", "alr", "sat", "elr"])
def test_gradients_with_frozen_targets(name, reduction):
    case = {case.name: case for case in cases.CASES}[name]
    start = spread_logits("cpu", 2, seed=21)
    target = elr_target(start, 0.7, ROWS)[0] if name == "elr" else target_of(start, 0.7)

    def frozen(z):
        p, log_p = z.softmax(-1), z.log_softmax(-1)
        rows = soft_cross_entropy(target, z)
        if name == "alr":
            rows = rows - 0.4 * (p * log_p).sum(-1)
        elif name == "sat":
            weight = target.max(-1).values
            rows = rows * weight * len(z) / weight.sum()
        elif name == "elr":
            inner = (target * p.clamp(1e-4, 1 - 1e-4)).sum(-1)
            rows = 2 * (1 - inner).log() - log_p[torch.arange(len(z)), GIVEN[INDEX]]
        return reduced(rows, reduction).sum()

    loss, grad = case.make(reduction=reduction).loss_and_grad(start, GIVEN[INDEX], INDEX)
    close(loss.sum(), frozen(start), rtol=1e-7, atol=1e-7)
    step, slope = 1e-5, torch.empty_like(start)
    for place in range(start.numel()):
        by = torch.zeros(start.numel(), dtype=torch.float64)
        by[place] = step
        by = by.view_as(start)
        slope.view(-1)[place] = (frozen(start + by) - frozen(start - by)) / (2 * step)
    close(grad, slope, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_the_gradient_of_elr_with_fixed_targets(reduction):
    criterion = ELRLoss(cases.bank(), momentum=1.0, weight=2.0, reduction=reduction)
    logits = spread_logits("cpu", 5, seed=22).requires_grad_()
    p = logits.softmax(-1)
    assert (p < 1e-4).any()  # on both sides of the clamp
    assert ((p > 1e-3) & (p < 1 - 1e-3)).any()
    assert torch.autograd.gradcheck(lambda z: criterion(z, GIVEN[INDEX], INDEX), logits)
    assert torch.equal(criterion.bank.rows, ROWS)


# Refused options of SELC, SAT and ELR.


@pytest.mark.parametrize("loss", [ALRLoss, SELCLoss, SATLoss])
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "give either warmup_epochs or warmup_steps"),
        (dict(warmup_epochs=1, warmup_steps=1), "give either warmup_epochs or warmup_steps"),
        (dict(warmup_epochs=-2), "warmup_epochs -2: must be 0 or more"),
        (dict(warmup_steps=-3), "warmup_steps -3: must be 0 or more"),
        (dict(warmup_epochs=0, reduction="max"), "reduction 'max': must be one of"),
    ],
)
def test_wrong_phases_are_refused(loss, options, message):
    with pytest.raises(ValueError, match=message):
        loss(cases.bank(), **options)


@pytest.mark.parametrize("momentum", [-0.1, 1.5, float("nan")])
@pytest.mark.parametrize("loss", [SELCLoss, SATLoss, ELRLoss])
def test_wrong_momenta_are_refused(loss, momentum):
    options = {} if loss is ELRLoss else dict(warmup_epochs=0)
    with pytest.raises(ValueError, match=rf"momentum {momentum}: must lie in \[0, 1\]"):
        loss(cases.bank(), momentum=momentum, **options)


@pytest.mark.parametrize("weight", [-0.1, float("inf"), float("nan")])
def test_wrong_entropy_weights_are_refused(weight):
    with pytest.raises(ValueError, match=f"entropy_weight {weight}: must be 0 or more"):
        ALRLoss(cases.bank(), warmup_epochs=0, entropy_weight=weight)


def test_elr_refuses_a_pinned_bank():
    # Ordinary memory replaces pinned memory here, and meta the GPU.
    bank = LabelBank(ROWS, GIVEN, device="meta", placement="pinned")
    with pytest.raises(ValueError, match=r'no pinned bank .* with placement="device"'):
        ELRLoss(bank)


def test_elr_keeps_a_bank_in_a_file(tmp_path):
    bank = LabelBank.from_labels(GIVEN, CLASSES, placement="file", folder=tmp_path)
    bank.rows.copy_(ROWS)
    logits = spread_logits("cpu", 2)
    check(ELRLoss(bank), lambda z: elr_rows(z, 0.7, 3.0, ROWS), logits)
    close_banks(bank, elr_target(logits, 0.7, ROWS)[0])
