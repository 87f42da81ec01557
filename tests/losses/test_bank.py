"""Losses with a label bank: phases, modes, state, moves and use inside other modules."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from alr_fast import ALRLoss, LabelBank
from alr_fast.functional import alr_loss
from alr_fast.losses import CrossEntropyLoss

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
    """Loss and bank after a call of the function that refinement uses."""
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


def test_cross_entropy_returns_its_gradient(device, batch):
    loss, grad = CrossEntropyLoss().loss_and_grad(*batch)
    expected = F.cross_entropy(*batch[:2])
    torch.testing.assert_close(loss, expected.detach())
    torch.testing.assert_close(grad, torch.autograd.grad(expected, batch[0])[0])


def test_a_scalers_factor_as_row_weight_preserves_small_gradients(device):
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
    getattr(criterion, f"set_{unit}")(0)  # back to the start, as after loading an early checkpoint
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
        if unit == "epoch":
            with pytest.raises(RuntimeError, match="warm-up of this loss is set by set_epoch"):
                criterion.set_step(1)
        else:
            criterion.set_epoch(1)  # for the history
        assert criterion.refining is None
        assert torch.equal(criterion.bank.rows, before)
    assert criterion_on(device, warmup_steps=0).refining  # no warm-up to wait for


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


def test_ignored_rows_and_indices_out_of_range(device, batch):
    logits, labels, index = batch
    criterion = criterion_on(device, warmup_epochs=1)
    criterion.set_epoch(0)
    some = labels.clone()
    some[[0, 3]] = torch.tensor([-1, -7], device=device)
    expected = F.cross_entropy(logits[1:3], labels[1:3])
    torch.testing.assert_close(criterion(logits, some, index), expected)
    criterion.set_epoch(1)
    before = criterion.bank.rows.clone()
    criterion(logits, labels, torch.full_like(index, -1))
    criterion(logits, torch.full_like(labels, -1), index)
    assert torch.equal(criterion.bank.rows, before)
    if device.type == "cpu":
        with pytest.raises(IndexError):
            criterion(logits, labels, index + 100)
    else:
        criterion(logits, labels, index + 100)
        with pytest.raises(IndexError):
            criterion.bank.check()
    assert torch.equal(criterion.bank.rows, before)


# State, moves, use inside other modules.


class Net(nn.Module):
    def __init__(self, criterion):
        super().__init__()
        self.layer = nn.Linear(3, 4)
        self.criterion = criterion

    def forward(self, x, labels, index):
        return self.criterion(self.layer(x), labels, index)


def test_the_bank_is_not_a_buffer(device):
    net = Net(criterion_on(device))
    assert list(net.criterion.buffers()) == []
    assert list(net.criterion.parameters()) == []
    assert set(net.state_dict()) == {
        "layer.weight",
        "layer.bias",
        "criterion.bank.rows",
        "criterion.bank.given_labels",
    }


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
    # Both continue in the same way.
    assert torch.equal(net.criterion(*batch), other.criterion(*batch))
    assert torch.equal(rows, net.criterion.bank.rows)


def test_a_bank_of_another_data_set_is_refused(device):
    state = criterion_on(device).state_dict()
    criterion = criterion_on(device, labels=LABELS.flip(0))
    before = criterion.bank.rows.clone()
    for strict in (True, False):
        with pytest.raises(RuntimeError, match=r'other given labels.*drop.*keys.*"bank\."'):
            criterion.load_state_dict(state, strict=strict)
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
    # Ordinary memory replaces pinned memory here, and meta the GPU.
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
        net.register_buffer("counter", torch.zeros(2, device=device))  # broadcast by DDP
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
        assert loss.item() != expected.item()  # the second call read a bank that the first updated
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
    assert criterion.state_dict() == {}
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
