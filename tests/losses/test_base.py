"""Common behaviour of all losses."""

import copy
import inspect

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from alr_fast import LabelBank
from alr_fast.losses import ELRLoss, Loss, PlainLoss, WarmUpLoss
from helpers.loss_cases import (
    CASES,
    CLASSES,
    GIVEN,
    INDEX,
    LABELS,
    REDUCTIONS,
    ROWS,
    TEACHER,
    close,
    numbers,
    reduced,
)

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
every_loss = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
every_reduction = pytest.mark.parametrize("reduction", REDUCTIONS)


@pytest.fixture
def batch(device):
    logits = numbers(len(LABELS), CLASSES, seed=50, spread=2).to(device, torch.float32)
    return logits.requires_grad_(), LABELS.to(device, copy=True), INDEX.to(device, copy=True)


def bank_of(criterion):
    return None if criterion.bank is None else criterion.bank.rows.cpu().clone()


def same_banks(one, other):
    return one is None if other is None else torch.equal(one, other)


def only(batch, rows):
    return tuple(part[rows] for part in batch)


def test_every_loss_is_here():
    def leaves(loss):
        below = loss.__subclasses__()
        public = loss.__module__.startswith("alr_fast.") and not loss.__name__.startswith("_")
        found = {loss} if public and loss not in (Loss, PlainLoss, WarmUpLoss) else set()
        return found.union(*map(leaves, below))

    losses = {type(case.make()) for case in CASES}
    assert losses == leaves(Loss)
    for loss in losses:
        arguments = inspect.signature(loss).parameters.keys()
        provided = {"bank", "transition", "teacher", "all_sum"} & arguments
        assert loss.needs == provided - loss.own_loop_only


@every_loss
@every_reduction
def test_loss_and_grad_is_forward_and_backward(device, batch, case, reduction):
    one, other = (case.make(device, reduction=reduction) for _ in range(2))
    loss = one(*batch)
    (expected,) = torch.autograd.grad(loss.sum(), batch[0])
    found, grad = other.loss_and_grad(*batch)
    assert found.shape == ((len(LABELS),) if reduction == "none" else ())
    assert (loss.dtype, found.dtype, grad.dtype) == (torch.float32,) * 3
    assert not found.requires_grad
    assert not grad.requires_grad
    close(found, loss.detach(), rtol=1e-6, atol=1e-7)
    close(grad, expected, rtol=1e-6, atol=1e-7)
    assert grad.abs().sum() > 0.1
    assert same_banks(bank_of(one), bank_of(other))


@every_loss
@every_reduction
def test_reductions_and_weights_of_rows(device, batch, case, reduction):
    rows, grads = case.make(device, reduction="none").loss_and_grad(*batch)
    weight = torch.tensor([0.5, 2.0, 0.0, 1.0, 3.0, -1.5], device=device)
    count = len(LABELS) if reduction == "mean" else 1
    loss, grad = case.make(device, reduction=reduction).loss_and_grad(*batch)
    close(loss, reduced(rows, reduction))
    close(grad, grads / count)
    criterion = case.make(device, reduction=reduction)
    loss, grad = criterion.loss_and_grad(*batch, row_weight=weight)
    close(loss, reduced(rows * weight, reduction))
    close(grad, grads * weight[:, None] / count)
    if criterion.bank is not None:  # weights do not affect the targets
        again = case.make(device)
        again(*batch)
        assert torch.equal(criterion.bank.rows, again.bank.rows)


@every_loss
def test_no_gradient_unless_it_is_needed(device, batch, case):
    with torch.no_grad():
        assert not case.make(device)(*batch).requires_grad
    assert not case.make(device)(batch[0].detach(), *batch[1:]).requires_grad
    with torch.no_grad():
        _, grad = case.make(device).loss_and_grad(*batch)
    assert grad.abs().sum() > 0.1


# Rows without a value.


@every_loss
@every_reduction
def test_ignored_rows_do_not_count(device, batch, case, reduction):
    logits, labels, index = batch
    ignored, rest = torch.tensor([1, 4], device=device), torch.tensor([0, 2, 3, 5], device=device)
    whole = case.make(device, reduction=reduction)
    part = case.make(device, reduction=reduction)
    expected, want = part.loss_and_grad(*only(batch, rest))
    with torch.no_grad():
        logits[1] = torch.nan
        logits[4] = torch.inf
    labels[ignored] = torch.tensor([-1, -7], device=device)
    index[ignored] = torch.tensor([-3, -1], device=device)
    loss = whole(*batch)
    (grad,) = torch.autograd.grad(loss.sum(), logits)
    again = case.make(device, reduction=reduction).loss_and_grad(*batch)
    for found in ((loss.detach(), grad), again):
        assert not found[1][ignored].any()
        if reduction == "none":
            assert not found[0][ignored].any()
    value = loss.detach()[rest] if reduction == "none" else loss.detach()
    close(value, expected, rtol=1e-6, atol=1e-6)
    close(grad[rest], want, rtol=1e-6, atol=1e-6)
    assert same_banks(bank_of(whole), bank_of(part))
    if whole.bank is not None:
        assert whole.bank.check() == 0


@every_loss
@every_reduction
def test_a_batch_of_ignored_rows_and_an_empty_batch_have_loss_zero(device, batch, case, reduction):
    criterion = case.make(device, reduction=reduction)
    before = bank_of(criterion)
    logits, labels, index = batch
    for some in ((logits, labels - 9, index - 9), only(batch, slice(0))):
        loss = criterion(*some)
        assert loss.shape == ((len(some[0]),) if reduction == "none" else ())
        assert not loss.any()
        (grad,) = torch.autograd.grad(loss.sum(), some[0])
        assert grad.shape == some[0].shape
        assert not grad.any()
        loss, grad = criterion.loss_and_grad(*some)
        assert not loss.any()
        assert grad.shape == some[0].shape
        assert not grad.any()
    assert same_banks(bank_of(criterion), before)


@every_loss
def test_values_out_of_range_write_nothing(device, batch, case):
    logits, labels, index = batch
    wrong = []
    for beyond in (CLASSES, 1000):
        if case.reads_label:
            wrong.append((beyond, labels.masked_fill(labels == 1, beyond), index))
    for beyond in (len(GIVEN), 1000):
        if case.reads_index:
            wrong.append((beyond, labels, index.masked_fill(index == 3, beyond)))
    assert wrong
    for beyond, *some in wrong:
        criterion = case.make(device, reduction="none")
        before = bank_of(criterion)
        if device.type == "cpu":
            for call in (criterion, criterion.loss_and_grad):
                with pytest.raises(IndexError, match=rf"\b{beyond}\b"):
                    call(logits, *some)
            assert same_banks(bank_of(criterion), before)
        else:
            hit = (some[0] >= CLASSES) | (some[1] >= len(GIVEN))
            loss, grad = criterion.loss_and_grad(logits, *some)
            assert loss[hit].isnan().all()
            assert grad[hit].isnan().all()
            assert loss[~hit].isfinite().all()
            if case.reads_index and criterion.bank is not None:
                rows = INDEX[hit.cpu()]
                assert torch.equal(criterion.bank.rows.cpu()[rows], before[rows])
            if criterion.bank is not None and (some[1] >= len(GIVEN)).any():
                with pytest.raises(IndexError, match="beyond the bank's 9 rows"):
                    criterion.bank.check()


@every_loss
@every_reduction
def test_rows_without_a_softmax_are_nan_and_counted(device, batch, case, reduction):
    bad, rest = torch.tensor([0, 2, 5], device=device), torch.tensor([1, 3, 4], device=device)
    expected = case.make(device, reduction="none")
    losses, grads = expected.loss_and_grad(*only(batch, rest))
    logits = batch[0].detach().clone()
    logits[0, 3] = torch.nan
    logits[2, 1] = torch.inf
    logits[5] = -torch.inf
    for method in ("forward", "loss_and_grad"):
        criterion = case.make(device, reduction=reduction)
        if method == "forward":
            leaf = logits.clone().requires_grad_()
            loss = criterion(leaf, *batch[1:])
            (grad,) = torch.autograd.grad(loss.sum(), leaf)
        else:
            loss, grad = criterion.loss_and_grad(logits, *batch[1:])
        assert grad[bad].isnan().any(-1).all()
        if reduction == "none":
            assert loss[bad].isnan().all()
            close(loss.detach()[rest], losses)
            close(grad[rest], grads)
        else:
            assert loss.isnan()
        assert grad[rest].isfinite().all()
        assert same_banks(bank_of(criterion), bank_of(expected))
        if criterion.bank is not None:
            assert criterion.bank.status[:3].tolist() == [3, 0, 0]
            assert criterion.bank.check() == 3
            assert criterion.bank.check() == 0


@every_loss
def test_a_target_looked_up_by_sample_needs_an_index(device, batch, case):
    # In the warm-up, too: the phase after it would be too late.
    criterion = case.make(device)
    if case.reads_index or case.keeps_bank:
        with pytest.raises(ValueError, match=r"index: missing; .* by sample: pass index"):
            criterion(*batch[:2])
    else:
        assert torch.equal(criterion(*batch[:2]), criterion(*batch))


# Types and strides.


@every_loss
@pytest.mark.parametrize(
    ("dtype", "rtol"),
    [(torch.float16, 2e-3), (torch.bfloat16, 1.6e-2), (torch.float64, 1e-6)],
    ids=lambda value: str(value) if isinstance(value, torch.dtype) else "",
)
def test_logits_of_other_types(device, batch, case, dtype, rtol):
    if device.type == "cuda" and dtype == torch.float64:
        device, batch = torch.device("cpu"), tuple(part.cpu() for part in batch)
    logits = batch[0].detach().to(dtype).requires_grad_()
    one, other = (case.make(device, reduction="none") for _ in range(2))
    expected, want = other.loss_and_grad(logits.detach().float(), *batch[1:])
    loss = one(logits, *batch[1:])
    assert loss.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    (grad,) = torch.autograd.grad(loss.sum(), logits)
    assert grad.dtype == dtype
    # Only distillation at a temperature rounds other values than the gradient.
    exactly = rtol if "at 2.5" in case.name else 1e-6
    close(loss.detach(), expected, rtol=exactly, atol=2 * exactly)
    close(grad, want, rtol=rtol, atol=rtol)
    if one.bank is not None:
        close(one.bank.rows, other.bank.rows, rtol=1e-6, atol=1e-7)
    found, again = case.make(device, reduction="none").loss_and_grad(logits, *batch[1:])
    close(found, loss.detach(), rtol=1e-6, atol=1e-7)
    close(again, grad, rtol=rtol, atol=rtol)


@every_loss
def test_logits_with_gaps_between_rows(device, batch, case):
    wide = torch.full((2 * len(LABELS), CLASSES + 3), torch.nan, device=device)
    wide[1::2, 2:-1] = batch[0].detach()
    leaf = wide.requires_grad_()
    view = leaf[1::2, 2:-1]
    assert not view.is_contiguous()
    one, other, third = (case.make(device) for _ in range(3))
    loss, expected = one(view, *batch[1:]), other(*batch)
    assert torch.equal(loss, expected)
    (grad,) = torch.autograd.grad(loss, leaf)
    (want,) = torch.autograd.grad(expected, batch[0])
    assert torch.equal(grad[1::2, 2:-1], want)
    assert grad.count_nonzero() == want.count_nonzero()
    assert torch.equal(third.loss_and_grad(view, *batch[1:])[0], expected)
    assert same_banks(bank_of(one), bank_of(other))
    assert same_banks(bank_of(third), bank_of(other))


@every_loss
def test_labels_and_index_in_32_bits_and_strided(device, batch, case):
    logits, labels, index = batch
    one, other = (case.make(device) for _ in range(2))
    expected = one(*batch)
    pairs = torch.stack((labels, index), 1).int()
    assert torch.equal(other(logits, pairs[:, 0], pairs[:, 1]), expected)
    assert same_banks(bank_of(one), bank_of(other))


# Modes, moves, state, text.


@every_loss
@every_reduction
def test_eval_is_cross_entropy_without_bank_index_and_phase(device, batch, case, reduction):
    criterion = case.make(device, reduction=reduction).eval()
    if isinstance(criterion, WarmUpLoss):
        criterion.warming_up = None  # as before the first epoch, in Lightning's sanity check
    before = bank_of(criterion)
    logits, labels, _ = batch
    other = (labels + 1) % CLASSES  # validation labels are not those of the bank
    expected = nn.functional.cross_entropy(logits, other, reduction=reduction)
    found = criterion(logits, other)
    close(found.detach(), expected.detach())
    (grad,) = torch.autograd.grad(found.sum(), logits)
    (want,) = torch.autograd.grad(expected.sum(), logits)
    close(grad, want)
    close(criterion.loss_and_grad(logits, other, batch[2])[1], want)
    weight = torch.rand(CLASSES, device=device)
    expected = nn.functional.cross_entropy(logits, other, weight=weight, reduction=reduction)
    close(criterion(logits, other, class_weight=weight).detach(), expected.detach())
    with pytest.raises(ValueError, match="update True: the bank is not written in eval mode"):
        criterion(logits, other, update=True)
    assert same_banks(bank_of(criterion), before)


@every_loss
def test_moves_of_a_module_keep_tables_and_banks(device, batch, case):
    criterion = case.make("cpu", reduction="sum")
    expected, _ = case.make(device, reduction="sum").loss_and_grad(*batch)
    net = nn.Sequential(nn.Linear(3, CLASSES), criterion)
    tables = {name: table.clone() for name, table in criterion.named_buffers()}
    start = bank_of(criterion)
    moves = [
        net.half,
        net.bfloat16,
        net.double,
        lambda: net.to(device),
        lambda: net.to(device, torch.float16),
        lambda: net.to(torch.float32),
    ]
    for move in moves:
        assert move() is net
        assert dict(criterion.named_buffers()).keys() == tables.keys()
        for name, table in criterion.named_buffers():
            assert table is getattr(criterion, name)
            assert table.dtype == tables[name].dtype
            assert torch.equal(table.cpu(), tables[name])
        if start is not None:
            assert criterion.bank.rows.dtype == torch.float32
            assert torch.equal(criterion.bank.rows.cpu(), start)
    assert net[0].weight.device == device
    assert all(table.device == device for table in criterion.buffers())
    assert torch.equal(criterion.loss_and_grad(*batch)[0], expected)
    net.to("meta")
    assert all(table.is_meta for table in criterion.buffers())
    assert start is None or criterion.bank.rows.is_meta


@every_loss
def test_the_state_is_the_bank_and_nothing_else(device, batch, case, tmp_path):
    criterion, other = case.make(device), case.make(device)
    criterion(*batch)
    state = criterion.state_dict()
    assert set(state) == ({"bank.rows", "bank.given_labels"} if case.keeps_bank else set())
    assert list(criterion.parameters()) == []
    save_file(state, tmp_path / "state.safetensors")
    other.load_state_dict(load_file(tmp_path / "state.safetensors"))
    assert same_banks(bank_of(other), bank_of(criterion))
    assert torch.equal(other(*batch), criterion(*batch))


@every_loss
def test_a_state_without_the_bank_is_loaded_on_request_only(device, batch, case):
    net = nn.Sequential(nn.Linear(3, CLASSES), case.make(device))
    before = bank_of(net[1])
    state = {key: value for key, value in net.state_dict().items() if "bank" not in key}
    keys = net.load_state_dict(state, strict=False)
    assert keys.unexpected_keys == []
    assert keys.missing_keys == (["1.bank.given_labels", "1.bank.rows"] if case.keeps_bank else [])
    if case.keeps_bank:
        with pytest.raises(RuntimeError, match=r"Missing key.*1\.bank\.rows"):
            net.load_state_dict(state)
    assert same_banks(bank_of(net[1]), before)


@every_loss
def test_a_copy_is_independent(device, batch, case):
    criterion = case.make(device)
    other = copy.deepcopy(criterion)
    before = bank_of(criterion)
    expected = other(*batch)
    assert same_banks(bank_of(criterion), before)
    assert torch.equal(criterion(*batch), expected)


BANK = "LabelBank(9 samples, 5 classes, torch.float32, cpu)"
TEXTS = {
    "ce": "CrossEntropyLoss()",
    "smoothing": "LabelSmoothingLoss(smoothing=0.3, warm-up 0 epochs, reduction='sum')",
    "negative smoothing": "LabelSmoothingLoss(smoothing=-2.0, warm-up 1 epochs, reduction='sum')",
    "smearing": "SmearingLoss(5 classes, reduction='sum')",
    "backward": "BackwardCorrectionLoss(5 classes, reduction='sum')",
    "forward": "ForwardCorrectionLoss(5 classes, reduction='sum')",
    "distillation": "DistillationLoss(9 samples, temperature=1.0, reduction='sum')",
    "distillation at 2.5": "DistillationLoss(9 samples, temperature=2.5, reduction='sum')",
    "selc": f"SELCLoss({BANK}, warm-up 1 epochs, momentum=0.7, reduction='sum')",
    "alr": f"ALRLoss({BANK}, warm-up 1 epochs, momentum=0.7, reduction='sum', entropy_weight=0.4)",
    "sat": f"SATLoss({BANK}, warm-up 1 epochs, momentum=0.7, reduction='sum')",
    "elr": f"ELRLoss({BANK}, momentum=0.7, weight=2.0, reduction='sum')",
}


@pytest.mark.parametrize("name", TEXTS)
def test_a_loss_prints_what_it_is(name):
    (case,) = (case for case in CASES if case.name == name)
    criterion = case.make(reduction="sum")
    assert repr(criterion) == TEXTS[name]


def test_all_losses_can_be_called_alike(device, batch):
    # As a training loop calls them, whatever the method.
    for case in CASES:
        criterion = case.make(device)
        for epoch in range(3):
            criterion.set_epoch(epoch)
            criterion(*batch).backward()
            assert batch[0].grad.isfinite().all()
        assert (criterion.bank is None) is not case.keeps_bank
        assert criterion.bank_at_zero is isinstance(criterion, ELRLoss)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_custom_loss_only_defines_its_rows(device, batch, dtype):
    class SquaredLoss(PlainLoss):
        """Brier score, which also records its arguments."""

        def __init__(self):
            super().__init__()
            self._keep_table("bias", TEACHER[:CLASSES])

        def rows(self, logits, labels, index):
            self.given = logits.detach(), labels, index
            p = logits.softmax(-1) - self.bias.to(logits.dtype)[labels]
            return (p - nn.functional.one_hot(labels, CLASSES)).square().sum(-1)

    logits, labels, index = batch
    criterion = SquaredLoss().to(device).half()
    assert criterion.bias.dtype == torch.float64
    labels[2] = index[3] = -5
    loss, grad = criterion.loss_and_grad(logits.to(dtype), labels, index)
    z, given, places = criterion.given
    assert (z.dtype, given.dtype, places.dtype) == (torch.float32, torch.int64, torch.int64)
    assert not z[2:4].any()
    assert ((given >= 0) & (given < CLASSES)).all()
    assert places[2:4].tolist() == [-1, -1]
    keep = [0, 1, 4, 5]
    exact = logits.detach().to(dtype).cpu().double()[keep].requires_grad_()
    p = exact.softmax(-1) - TEACHER[LABELS[keep]]
    expected = (p - nn.functional.one_hot(LABELS[keep], CLASSES)).square().sum(-1).mean()
    (want,) = torch.autograd.grad(expected, exact)
    close(loss, expected.detach())
    close(grad[keep], want, rtol=torch.finfo(dtype).eps + 1e-5)
    assert not grad[2:4].any()


@pytest.mark.parametrize("dtype", DTYPES[1:], ids=str)
def test_banks_in_16_bits_keep_their_type_in_every_loss(device, batch, dtype):
    for case in CASES:
        if not case.keeps_bank:
            continue
        rows = ROWS.to(device, dtype, copy=True)
        criterion = case.new(bank=LabelBank(rows, GIVEN)).double()
        criterion.set_epoch(1)
        criterion(*batch)
        assert criterion.bank.rows.dtype == dtype
        assert torch.equal(criterion.bank.rows.cpu(), ROWS.to(dtype)) is ("warm-up" in case.name)
