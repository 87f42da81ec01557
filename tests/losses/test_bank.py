"""Losses that keep a label bank: SELC, SAT and ELR against their formulas in float64; and for ALR
and cross entropy phases, modes, state, moves, and life inside other modules."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from alr_fast import ALRLoss, LabelBank
from alr_fast.functional import alr_loss
from alr_fast.losses import CrossEntropyLoss, ELRLoss, SATLoss, SELCLoss
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

LABELS = torch.tensor([2, 0, 1, 1, 3, 0])


@pytest.fixture
def batch(device):
    g = torch.Generator().manual_seed(0)
    logits = torch.randn(4, 4, generator=g).to(device).requires_grad_()
    index = torch.tensor([5, 0, 3, 1], device=device)
    return logits, LABELS.to(device)[index], index


def criterion_on(device, labels=LABELS, dtype=torch.float32, seed=None, **options):
    bank = LabelBank.from_labels(labels, 4, dtype=dtype, device=device, rounding_seed=seed)
    return ALRLoss(bank, **(options or dict(warmup_epochs=2)))


def refined(criterion, batch, **options):
    """Loss and bank after a call of the function that the refinement stands for."""
    logits, _, index = batch
    rows = criterion.bank.rows.clone()
    return alr_loss(logits, rows, index, **options), rows


# The two ways to call a loss.


@pytest.mark.parametrize("epoch", [0, 2], ids=["warm-up", "refinement"])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_loss_and_grad_is_forward_and_backward(device, batch, reduction, epoch):
    made = [criterion_on(device, warmup_epochs=2, reduction=reduction) for _ in range(2)]
    for criterion in made:
        criterion.set_epoch(epoch)
    loss = made[0](*batch)
    (expected,) = torch.autograd.grad(loss.sum(), batch[0])
    found, grad = made[1].loss_and_grad(*batch)
    assert not found.requires_grad
    torch.testing.assert_close(found, loss.detach())
    torch.testing.assert_close(grad, expected)
    assert torch.equal(made[0].bank.rows, made[1].bank.rows)
    assert (made[0].bank.rows != made[0].bank.rows.round()).any() == (epoch == 2)


def test_cross_entropy_gives_its_gradient_too(device, batch):
    loss, grad = CrossEntropyLoss().loss_and_grad(*batch)
    expected = F.cross_entropy(*batch[:2])
    torch.testing.assert_close(loss, expected.detach())
    torch.testing.assert_close(grad, torch.autograd.grad(expected, batch[0])[0])


def test_a_scalers_factor_given_as_row_weight_saves_small_gradients(device):
    logits = torch.tensor([[12.0, -4.0, -4.5, -5.0]], dtype=torch.float16, device=device)
    labels = index = torch.zeros(1, dtype=torch.int64, device=device)
    criterion = CrossEntropyLoss()
    plain_loss, plain = criterion.loss_and_grad(logits, labels, index)
    factor = torch.full((1,), 2.0**14, device=device)
    loss, grad = criterion.loss_and_grad(logits, labels, index, row_weight=factor)
    torch.testing.assert_close(loss, plain_loss * 2**14)
    exact = logits.double().softmax(-1)
    torch.testing.assert_close(grad.double()[0, 1:] / 2**14, exact[0, 1:], rtol=1e-3, atol=0)
    assert (plain[0, 2:].double() / exact[0, 2:] - 1).abs().max() > 0.01


# Phases.


@pytest.mark.parametrize("unit", ["epoch", "step"])
def test_cross_entropy_first_then_refinement(device, batch, unit):
    criterion = criterion_on(device, **{f"warmup_{unit}s": 2})
    start = criterion.bank.rows.clone()
    for n in range(4):
        getattr(criterion, f"set_{unit}")(n)
        expected, rows = refined(criterion, batch)
        loss = criterion(*batch)
        if n < 2:
            assert not criterion.refining
            torch.testing.assert_close(loss, F.cross_entropy(*batch[:2]))
            assert torch.equal(criterion.bank.rows, start)
        else:
            assert criterion.refining
            assert torch.equal(loss, expected)
            assert torch.equal(criterion.bank.rows, rows)
            assert not torch.equal(rows, start)
        (grad,) = torch.autograd.grad(loss, batch[0])
        assert grad.abs().sum() > 0
    getattr(criterion, f"set_{unit}")(0)  # back again, as after loading an early checkpoint
    assert not criterion.refining


def test_options_reach_the_operation(device, batch):
    options = dict(momentum=0.4, entropy_weight=0.7, reduction="none")
    criterion = criterion_on(device, warmup_epochs=0, unique_index=True, **options)
    expected, rows = refined(criterion, batch, **options)
    loss = criterion(*batch)
    assert torch.equal(loss, expected)
    assert loss.shape == (4,)
    assert torch.equal(criterion.bank.rows, rows)
    warm = criterion_on(device, warmup_epochs=1, reduction="sum")
    warm.set_epoch(0)
    torch.testing.assert_close(warm(*batch), F.cross_entropy(*batch[:2], reduction="sum"))


def test_the_phase_must_be_known(device, batch):
    for unit in ("epoch", "step"):
        criterion = criterion_on(device, **{f"warmup_{unit}s": 2})
        before = criterion.bank.rows.clone()
        with pytest.raises(RuntimeError, match=rf"call criterion.set_{unit}\({unit}\) first"):
            criterion(*batch)
        other = "step" if unit == "epoch" else "epoch"
        with pytest.raises(RuntimeError, match=f"warm-up of this loss is set by set_{unit}"):
            getattr(criterion, f"set_{other}")(1)
        assert criterion.refining is None
        assert torch.equal(criterion.bank.rows, before)
    assert criterion_on(device, warmup_steps=0).refining  # nothing to wait for


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(momentum=0.5), "give either warmup_epochs or warmup_steps"),
        (dict(warmup_epochs=1, warmup_steps=1), "give either warmup_epochs or warmup_steps"),
        (dict(warmup_epochs=-1), "warmup_epochs -1: must be 0 or more"),
        (dict(warmup_epochs=1, momentum=1.1), r"momentum 1.1: must lie in \[0, 1\]"),
        (dict(warmup_steps=1, momentum=float("nan")), r"momentum nan: must lie in \[0, 1\]"),
    ],
)
def test_wrong_options_are_refused(device, options, message):
    with pytest.raises(ValueError, match=message):
        criterion_on(device, **options)


def test_eval_reads_the_bank_and_leaves_it(device, batch):
    criterion = criterion_on(device, warmup_epochs=0)
    criterion(*batch)
    before = criterion.bank.rows.clone()
    expected, rows = refined(criterion, batch)
    assert torch.equal(criterion.eval()(*batch), expected)
    assert torch.equal(criterion.bank.rows, before)
    assert torch.equal(criterion.train()(*batch), expected)
    assert torch.equal(criterion.bank.rows, rows)


def test_ignored_rows_and_indices_out_of_range(device, batch):
    logits, labels, index = batch
    criterion = criterion_on(device, warmup_epochs=1)
    criterion.set_epoch(0)
    some = torch.tensor([-1, 0, 1, -7], device=device)
    expected = F.cross_entropy(logits[1:3], some[1:3])
    torch.testing.assert_close(criterion(logits, some, index), expected)
    criterion.set_epoch(1)
    before = criterion.bank.rows.clone()
    criterion(logits, labels, torch.full_like(index, -1))
    assert torch.equal(criterion.bank.rows, before)
    if device.type == "cpu":
        with pytest.raises(IndexError):
            criterion(logits, labels, index + 100)
    else:
        criterion(logits, labels, index + 100)
        with pytest.raises(IndexError):
            criterion.bank.check()
    assert torch.equal(criterion.bank.rows, before)


# State, moves, life inside other modules.


class Net(nn.Module):
    def __init__(self, criterion):
        super().__init__()
        self.layer = nn.Linear(3, 4)
        self.criterion = criterion

    def forward(self, x, labels, index):
        return self.criterion(self.layer(x), labels, index)


def test_the_bank_is_no_buffer(device):
    net = Net(criterion_on(device))
    assert list(net.criterion.buffers()) == []
    assert list(net.criterion.parameters()) == []
    assert set(net.state_dict()) == {"layer.weight", "layer.bias", "criterion._extra_state"}


def test_the_state_of_a_module_holds_the_bank(device, batch, tmp_path):
    options = dict(dtype=torch.bfloat16, seed=4, warmup_epochs=0)
    net = Net(criterion_on(device, **options))
    for _ in range(3):
        net.criterion(*batch)
    torch.save(net.state_dict(), tmp_path / "net.pt")
    other = Net(criterion_on(device, **options))
    rows = other.criterion.bank.rows
    assert not torch.equal(rows, net.criterion.bank.rows)
    other.load_state_dict(torch.load(tmp_path / "net.pt", weights_only=True))
    assert other.criterion.bank.rows is rows
    assert torch.equal(rows, net.criterion.bank.rows)
    assert other.criterion.bank.rounding_state.tolist() == [4, 3]
    assert torch.equal(other.layer.weight, net.layer.weight)
    # Both go on alike.
    assert torch.equal(net.criterion(*batch), other.criterion(*batch))
    assert torch.equal(rows, net.criterion.bank.rows)


def test_a_bank_of_another_data_set_is_refused(device):
    state = criterion_on(device).state_dict()
    criterion = criterion_on(device, labels=LABELS.flip(0))
    before = criterion.bank.rows.clone()
    with pytest.raises(ValueError, match="other given labels"):
        criterion.load_state_dict(state)
    assert torch.equal(criterion.bank.rows, before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_moves_of_the_module_keep_the_dtype_of_the_bank(device, dtype):
    net = Net(criterion_on("cpu", dtype=dtype, seed=1))
    rows = net.criterion.bank.rows.clone()
    moves = [
        lambda: net.to(device),
        net.half,
        net.bfloat16,
        net.double,
        lambda: net.to(device=device, dtype=torch.float32),
    ]
    for move in moves:
        assert move() is net
        bank = net.criterion.bank
        assert bank.rows.dtype == dtype
        assert bank.rows.device == bank.status.device == bank.rounding_state.device == device
        assert torch.equal(bank.rows.cpu(), rows)
        assert bank.rounding_state.dtype == bank.status.dtype == torch.int64
    assert net.layer.weight.device == device
    net.to("meta")
    assert net.criterion.bank.rows.is_meta


def test_moves_of_the_module_leave_pinned_rows_on_the_host():
    # Ordinary memory stands for pinned memory here, and meta for the GPU.
    bank = LabelBank(torch.eye(4)[LABELS], LABELS, device="meta", placement="pinned")
    net, rows = Net(ALRLoss(bank, warmup_epochs=0)), bank.rows
    net.half()  # a move that names no device
    assert bank.status.is_meta
    net.to("meta")
    assert bank.status.is_meta
    assert bank.rows is rows


def test_moves_of_the_module_do_not_take_a_file_along():
    bank = LabelBank(torch.eye(4)[LABELS], LABELS, placement="file")
    net, rows = Net(ALRLoss(bank, warmup_epochs=0)), bank.rows
    net.half()
    assert bank.rows is rows
    with pytest.raises(ValueError, match="on meta; use pinned"):
        net.to("meta")


def test_distributed_data_parallel_leaves_the_bank_alone(device, batch, tmp_path, monkeypatch):
    dist = torch.distributed
    if not (dist.is_available() and dist.is_gloo_available()):
        pytest.skip("this torch has no gloo")
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        net = Net(criterion_on(device, warmup_epochs=0)).to(device)
        net.register_buffer("counter", torch.zeros(2, device=device))  # one that is broadcast
        sent = []
        broadcast = dist._broadcast_coalesced

        def watched(group, tensors, *rest):
            sent.extend(t.data_ptr() for t in tensors)
            return broadcast(group, tensors, *rest)

        monkeypatch.setattr(dist, "_broadcast_coalesced", watched)
        ddp = nn.parallel.DistributedDataParallel(net)
        bank = net.criterion.bank
        expected = alr_loss(net.layer(torch.ones(4, 3, device=device)), bank.rows.clone(), batch[2])
        for _ in range(2):
            loss = ddp(torch.ones(4, 3, device=device), *batch[1:])
            loss.backward()
        assert loss.item() != expected.item()  # the second call met a bank that the first updated
        assert net.counter.data_ptr() in {b.data_ptr() for b in ddp.modules_buffers}
        tensors = (bank.rows, bank.status)
        assert not {t.data_ptr() for t in tensors} & {t.data_ptr() for t in ddp.modules_buffers}
        assert not {t.data_ptr() for t in tensors} & set(sent)
        assert not torch.equal(bank.rows.cpu(), torch.eye(4)[LABELS])
    finally:
        dist.destroy_process_group()


def test_cross_entropy_loss_has_the_same_call(device, batch):
    criterion = CrossEntropyLoss()
    criterion.set_epoch(3)
    assert criterion.bank is None
    assert criterion.state_dict() == {"_extra_state": {}}
    for arguments in (batch, batch[:2]):
        torch.testing.assert_close(criterion(*arguments), F.cross_entropy(*batch[:2]))
    rows = CrossEntropyLoss(reduction="none")(*batch)
    torch.testing.assert_close(rows, F.cross_entropy(*batch[:2], reduction="none"))
    (grad,) = torch.autograd.grad(criterion(*batch), batch[0])
    (want,) = torch.autograd.grad(F.cross_entropy(*batch[:2]), batch[0])
    torch.testing.assert_close(grad, want)


def test_the_loss_prints_what_it_is(device):
    text = repr(criterion_on(device, warmup_steps=7, momentum=0.5))
    assert text.startswith("ALRLoss(LabelBank(6 samples, 4 classes, torch.float32")
    assert "warm-up 7 steps, momentum=0.5" in text


# SELC, SAT and ELR against their formulas.


def spread_logits(device, spread, seed=20):
    return numbers(len(INDEX), CLASSES, seed=seed, spread=spread).to(device)


def target_of(z, momentum, rows=ROWS, index=INDEX):
    """The moving average, a constant for the gradient."""
    return momentum * rows.double()[index] + (1 - momentum) * z.detach().softmax(-1)


def soft_cross_entropy(target, z):
    return -(target * z.log_softmax(-1)).sum(-1)


def close_banks(bank, expected, index=INDEX):
    """Rows of the index as expected, the others as they were."""
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
            index=index.to(device),
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
    # What DistributedDataParallel does with the gradients of a mean.
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


def test_rows_of_sat_without_a_value_have_no_part_in_the_weights(device):
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
        # The public code renormalises, so that a row is short of one by what is left of the zeros.
        close(bank.rows.sum(-1).max(), torch.tensor(1 - 0.7 ** (step + 1)))


def test_predictions_beyond_the_clamp_of_elr_get_no_gradient_from_its_term(device):
    p = torch.tensor([[1 - 3e-5, 1e-5, 2e-5]], dtype=torch.float64)
    bank = LabelBank(torch.tensor([[0.2, 0.7, 0.1]], device=device), torch.tensor([1]))
    leaf = p.log().to(device, torch.float32).requires_grad_()
    zero = torch.zeros(1, dtype=torch.int64, device=device)
    ELRLoss(bank, weight=50.0)(leaf, zero + 1, zero).backward()
    close(leaf.grad, p - torch.tensor([[0.0, 1.0, 0.0]]), rtol=1e-4, atol=1e-6)
    # The target is made from the clamped prediction, divided by its sum.
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
    check(criterion, formula, logits)  # the loss takes the target before it is rounded
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


# What SELC, SAT and ELR refuse.


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
    # Ordinary memory stands for pinned memory here, and meta for the GPU.
    bank = LabelBank(ROWS, GIVEN, device="meta", placement="pinned")
    with pytest.raises(ValueError, match=r'no pinned bank .* with placement="device"'):
        ELRLoss(bank)


def test_elr_keeps_a_bank_in_a_file(tmp_path):
    bank = LabelBank.from_labels(GIVEN, CLASSES, placement="file", folder=tmp_path)
    bank.rows.copy_(ROWS)
    logits = spread_logits("cpu", 2)
    check(ELRLoss(bank), lambda z: elr_rows(z, 0.7, 3.0, ROWS), logits)
    close_banks(bank, elr_target(logits, 0.7, ROWS)[0])
