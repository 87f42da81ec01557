"""LabelBank in each placement: the same results, reading ahead, waiting for the GPU."""

from contextlib import contextmanager

import pytest
import torch

from alr_fast import LabelBank
from alr_fast._loading import HAS_CUDA
from alr_fast._operators import LossOptions, table_loss
from alr_fast.bank.placement import allocate_rows
from alr_fast.errors import UserError

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
LABELS = torch.tensor([2, 0, 1, 1, 3])


def bank_of(labels=LABELS, classes=4, **options):
    return LabelBank.from_labels(labels, classes, **options)


def trained(**options):
    bank = bank_of(**options)
    bank.rows.copy_(torch.rand(5, 4, generator=torch.Generator().manual_seed(1)))
    if bank.rounding_state is not None:
        bank.rounding_state[1] = 12
    return bank


def updated(where, dtype, seed, folder, device="cpu"):
    """A bank of 60 samples after some updates, and the results of the updates."""
    g = torch.Generator().manual_seed(3)
    bank = LabelBank.from_labels(
        torch.randint(7, (60,), generator=g),
        7,
        dtype=dtype,
        device=device,
        rounding_seed=seed,
        sample_fingerprint="s",
        placement=where,
        folder=folder,
    )
    results = []
    for _ in range(5):
        index = torch.randint(60, (16,), generator=g).to(device)
        logits = (3 * torch.randn(16, 7, generator=g)).to(device)
        logits[3, 2] = float("nan")  # counted by the status
        options = LossOptions(
            momentum=0.7,
            entropy_weight=0.1,
            update=True,
            with_grad=True,
            status=bank.status,
            rounding_state=bank.rounding_state,
        )
        results += table_loss(logits, bank.rows, index, options)[:2]
    return bank, results


def read_all(bank):
    """Everything that can be read from a bank, as tensors on the CPU."""
    counters = torch.tensor(bank.check())
    state = bank.state_dict()
    found = [
        bank.refined_labels(),
        bank.confidence(),
        bank.class_counts(),
        counters,
        *(value for value in state.values() if isinstance(value, torch.Tensor)),
    ]
    return [t.cpu().clone() for t in found]


def check_same(found, wanted):
    assert len(found) == len(wanted)
    for a, b in zip(found, wanted, strict=True):
        assert a.dtype == b.dtype
        assert torch.equal(a.cpu().nan_to_num(7), b.cpu().nan_to_num(7))


OTHER_PLACEMENTS = [
    pytest.param("file", "cpu", id="file"),
    pytest.param(
        "pinned",
        "cuda",
        id="pinned",
        marks=pytest.mark.skipif(
            not (torch.cuda.is_available() and HAS_CUDA), reason="needs a GPU that pins host memory"
        ),
    ),
]


@pytest.mark.parametrize(("where", "on"), OTHER_PLACEMENTS)
@pytest.mark.parametrize("seed", [None, 3])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("elements", [1 << 24, 25])  # all rows at once, and in chunks of three
def test_every_placement_has_the_same_results(
    tmp_path, monkeypatch, where, on, dtype, seed, elements
):
    monkeypatch.setattr("alr_fast.bank.label_bank._CHUNK_ELEMENTS", elements)
    wanted, wanted_results = updated("device", dtype, seed, None, on)
    bank, results = updated(where, dtype, seed, tmp_path, on)
    assert bank.placement == where
    assert (bank.rows.device.type, bank.device.type, bank.status.device.type) == ("cpu", on, on)
    check_same(results, wanted_results)
    with bank.preserved():
        bank.rows.zero_()
        bank.status[0] += 1
        if seed is not None:
            bank.rounding_state.zero_()
    expected = read_all(wanted)
    assert expected[3] == 5
    check_same(read_all(bank), expected)
    # A state can be loaded into any other placement.
    path = tmp_path / "bank.pt"
    for source, target in ((wanted, where), (bank, "device"), (bank, where)):
        torch.save(source.state_dict(), path)
        fresh = updated(target, dtype, None if seed is None else 8, tmp_path, on)[0]
        fresh.rows.zero_()
        place = fresh.rows.data_ptr()
        fresh.load_state_dict(torch.load(path, weights_only=True))
        fresh.check()
        assert fresh.rows.data_ptr() == place
        found = read_all(fresh)
        check_same(found[:3] + found[4:], expected[:3] + expected[4:])
    assert list(tmp_path.iterdir()) == [path]


def test_labels_are_filled_in_chunks(tmp_path, monkeypatch):
    monkeypatch.setattr("alr_fast.bank.label_bank._CHUNK_ELEMENTS", 8)
    for where in ("device", "file"):
        bank = bank_of(placement=where, folder=tmp_path)
        assert torch.equal(bank.rows, torch.eye(4)[LABELS])


def test_a_bank_in_a_file_stays_on_the_cpu(tmp_path):
    bank = trained(placement="file", folder=tmp_path, rounding_seed=2)
    assert repr(bank) == "LabelBank(5 samples, 4 classes, torch.float32, cpu, placement=file)"
    rows = bank.rows
    assert bank.to("cpu") is bank
    assert bank.rows is rows
    for device in ("cuda", "meta"):
        with pytest.raises(UserError, match=f"the logits are on {device}; use pinned"):
            bank.to(device)
    assert bank.rows is rows
    assert bank.device == bank.rounding_state.device == torch.device("cpu")


def test_working_copies_of_a_file_are_files(tmp_path, monkeypatch):
    bank = trained(placement="file", folder=tmp_path)
    made = []

    def watched(*shape, **options):
        made.append(options)
        return allocate_rows(*shape, **options)

    monkeypatch.setattr("alr_fast.bank.label_bank.allocate_rows", watched)
    before = bank.rows.clone()
    with bank.preserved():
        bank.rows.zero_()
    assert torch.equal(bank.rows, before)
    assert [(o["placement"], o["folder"]) for o in made] == [("file", tmp_path)]


def preserve_nothing(bank):
    with bank.preserved():
        pass


@pytest.mark.parametrize(
    ("use", "times"),
    [
        (LabelBank.refined_labels, 1),
        (LabelBank.confidence, 1),
        (lambda bank: bank.load_state_dict(trained().state_dict()), 1),
        (preserve_nothing, 2),
        (LabelBank.check, 0),
    ],
    ids=["refined", "confidence", "load", "preserved", "check"],
)
def test_the_kernel_reads_ahead_where_all_of_a_file_is_read(tmp_path, monkeypatch, use, times):
    seen = []

    @contextmanager
    def watched(rows):
        seen.append(rows)
        yield

    monkeypatch.setattr("alr_fast.bank.label_bank.read_in_order", watched)
    use(bank_of())
    assert seen == []
    bank = bank_of(placement="file", folder=tmp_path)
    use(bank)
    assert len(seen) == times
    assert all(rows is bank.rows for rows in seen)


@pytest.fixture
def pinned(monkeypatch):
    """A bank with placement "pinned" in ordinary memory; meta replaces the GPU of the logits."""

    def allocate(samples, classes, *, dtype, placement, **options):
        return torch.zeros(samples, classes, dtype=dtype)

    monkeypatch.setattr("alr_fast.bank.label_bank.allocate_rows", allocate)
    return bank_of(placement="pinned", device="meta", rounding_seed=2)


def test_pinned_rows_stay_where_they_are(pinned):
    assert repr(pinned) == "LabelBank(5 samples, 4 classes, torch.float32, meta, placement=pinned)"
    assert torch.equal(pinned.rows, torch.eye(4)[LABELS])
    assert pinned.status.is_meta
    assert pinned.rounding_state.is_meta
    rows = pinned.rows
    pinned.status, pinned.rounding_state = bank_of(rounding_seed=2).status, torch.tensor([2, 0])
    for device in ("cpu", "meta"):
        assert pinned.to(device) is pinned
        assert pinned.rows is rows
        assert pinned.status.device == pinned.rounding_state.device == torch.device(device)


@pytest.mark.parametrize(
    "use",
    [
        LabelBank.refined_labels,
        LabelBank.confidence,
        LabelBank.class_counts,
        LabelBank.state_dict,
        lambda bank: bank.load_state_dict(bank_of(rounding_seed=2).state_dict()),
        lambda bank: bank.to("cpu"),
        lambda bank: bank.preserved().__enter__(),
        lambda bank: bank.host_access().__enter__(),
    ],
    ids=["refined", "confidence", "counts", "state", "load", "to", "preserved", "host_access"],
)
def test_pinned_rows_are_read_after_the_gpu_has_written_them(pinned, monkeypatch, use):
    def wait(device):
        assert device == torch.device("cuda", 1)
        raise ZeroDivisionError

    pinned.status, pinned.rounding_state = bank_of().status, torch.tensor([2, 0])
    monkeypatch.setattr(torch.cuda, "synchronize", wait)
    use(pinned)  # no GPU to wait for
    monkeypatch.setattr(LabelBank, "device", torch.device("cuda", 1))
    with pytest.raises(ZeroDivisionError):
        use(pinned)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        (dict(placement="auto"), ValueError, "placement auto: must be one of device, pinned, file"),
        (dict(placement="file", device="meta"), UserError, "on meta; use pinned"),
        (dict(placement="pinned"), UserError, "placement pinned: .* use device, or file"),
        (dict(device="meta"), ValueError, "are on cpu, with logits on meta and placement device"),
    ],
)
def test_a_placement_of_existing_rows_is_checked(options, error, message):
    with pytest.raises(error, match=message):
        LabelBank(torch.zeros(5, 4), LABELS, **options)


def test_existing_rows_of_the_wrong_device_are_refused():
    with pytest.raises(ValueError, match="on meta, with logits on cpu and placement file they"):
        LabelBank(torch.zeros(5, 4, device="meta"), LABELS, device="cpu", placement="file")
