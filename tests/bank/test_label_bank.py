"""LabelBank: its start, what is read from it, its state and every refusal to load one."""

from contextlib import contextmanager

import pytest
import torch

from alr_fast import LabelBank
from alr_fast._operators import HAS_CUDA, LossOptions, table_loss
from alr_fast.bank.placement import allocate_rows
from alr_fast.errors import UserError
from alr_fast.functional import alr_loss

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
LABELS = torch.tensor([2, 0, 1, 1, 3])


def bank_of(labels=LABELS, classes=4, **options):
    return LabelBank.from_labels(labels, classes, **options)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("labels", [torch.int64, torch.int32, torch.uint8], ids=str)
def test_from_labels_is_one_hot(device, dtype, labels):
    given = LABELS.clone().to(device, labels)
    bank = bank_of(given, dtype=dtype, sample_fingerprint="abc")
    assert bank.rows.dtype == dtype
    assert bank.rows.device == device
    assert torch.equal(bank.rows.cpu(), torch.eye(4, dtype=dtype)[LABELS])
    assert bank.given_labels.dtype == torch.int64
    assert bank.given_labels.device.type == "cpu"
    assert torch.equal(bank.given_labels, LABELS)
    assert (len(bank), bank.num_classes, bank.sample_fingerprint) == (5, 4, "abc")
    assert bank.rounding_state is None
    assert bank.status.tolist() == [0, 0, 0, 0]
    assert repr(bank) == f"LabelBank(5 samples, 4 classes, {dtype}, {device})"
    given.zero_()
    assert torch.equal(bank.given_labels, LABELS)  # memory of its own


def test_from_labels_puts_the_rows_where_it_is_told(device):
    bank = bank_of(device=str(device), rounding_seed=7)
    tensors = (bank.rows, bank.status, bank.rounding_state)
    assert all(t.device == device for t in tensors)
    assert bank.rounding_state.tolist() == [7, 0]


@pytest.mark.parametrize(
    ("labels", "classes", "options", "error", "message"),
    [
        (LABELS, 4, dict(dtype=torch.float64), TypeError, "float64 is not supported: use float32"),
        (LABELS, 4, dict(dtype=torch.int64), TypeError, "is not supported"),
        (LABELS.float(), 4, {}, TypeError, "labels must be integers"),
        (LABELS > 0, 4, {}, TypeError, "labels must be integers, got torch.bool"),
        (LABELS[:, None], 4, {}, ValueError, r"labels must have shape \[samples\], got \(5, 1\)"),
        (LABELS[:0], 4, {}, ValueError, r"labels must have shape"),
        (LABELS, 3, {}, ValueError, r"labels must lie in \[0, 3\), got 0 to 3: check num_classes"),
        (LABELS - 1, 4, {}, ValueError, r"got -1 to 2.*drop samples without a label"),
    ],
)
def test_from_labels_refuses(labels, classes, options, error, message):
    with pytest.raises(error, match=message):
        bank_of(labels, classes, **options)


@pytest.mark.parametrize(
    ("rows", "labels", "error", "message"),
    [
        (torch.zeros(5, 4, dtype=torch.float64), LABELS, TypeError, "float64 is not supported"),
        (torch.zeros(20), LABELS, ValueError, r"bank rows must be a contiguous"),
        (torch.zeros(4, 5).T, LABELS, ValueError, r"contiguous.*shape \(5, 4\), strides"),
        (torch.zeros(5, 0), LABELS, ValueError, r"at least one of each"),
        (torch.zeros(0, 4), LABELS, ValueError, r"at least one of each"),
        (torch.zeros(6, 4), LABELS, ValueError, r"given_labels has 5 entries for 6 bank rows"),
        (torch.zeros(5, 3), LABELS, ValueError, r"labels must lie in \[0, 3\)"),
    ],
)
def test_existing_rows_are_checked(rows, labels, error, message):
    with pytest.raises(error, match=message):
        LabelBank(rows, labels)


def test_refined_labels_confidence_and_counts(device, monkeypatch):
    rows = torch.tensor(
        [[0.1, 0.6, 0.3], [0.4, 0.2, 0.4], [0.5, 0.5, 0.0], [0.0, 0.1, 0.9], [0.2, 0.2, 0.2]]
    )
    # In one go, and in chunks of one row and of two.
    for elements in (1 << 24, 1, 6):
        monkeypatch.setattr("alr_fast.bank.label_bank._CHUNK_ELEMENTS", elements)
        for dtype in DTYPES:
            bank = LabelBank(rows.to(device, dtype), torch.zeros(5, dtype=torch.int64))
            refined = bank.refined_labels()
            assert refined.dtype == torch.int64
            assert refined.device == device
            assert refined.tolist() == [1, 0, 0, 2, 0]  # the lowest on a tie
            confidence = bank.confidence()
            assert confidence.dtype == torch.float32
            assert torch.equal(confidence, bank.rows.max(-1).values.float())
            assert bank.class_counts().tolist() == [3, 1, 1]
    assert bank_of(torch.zeros(2, dtype=torch.int64)).class_counts().tolist() == [2, 0, 0, 0]


def test_check_reads_and_resets_the_counters(device):
    bank = bank_of(device=device)
    assert bank.check() == 0
    bank.status[0] = 3
    assert bank.check() == 3
    assert bank.check() == 0
    # What the CUDA kernels count, since they cannot raise.
    bank.status[0], bank.status[1] = 2, 4
    with pytest.raises(IndexError, match=r"4 batch rows had an index beyond the bank's 5 rows"):
        bank.check()
    assert bank.check() == 0


def test_scratch_of_the_kernels_is_left_to_them(device):
    bank = bank_of(device=device)
    bank.status.copy_(torch.tensor([1, 0, 5, 6]))
    with bank.preserved():
        bank.status.add_(1)
    assert bank.status.tolist() == [1, 0, 6, 7]
    bank.check()
    assert bank.status.tolist() == [0, 0, 6, 7]


def test_label_fingerprint_depends_on_values_and_order():
    fingerprint = bank_of().label_fingerprint
    assert bank_of(LABELS.int()).label_fingerprint == fingerprint
    assert bank_of(LABELS.flip(0)).label_fingerprint != fingerprint
    assert bank_of(LABELS.clamp(max=2)).label_fingerprint != fingerprint
    bank = bank_of()
    bank.rows.fill_(0.25)
    assert bank.label_fingerprint == fingerprint  # of what was given, not of what is held


def trained(**options):
    bank = bank_of(**options)
    bank.rows.copy_(torch.rand(5, 4, generator=torch.Generator().manual_seed(1)))
    if bank.rounding_state is not None:
        bank.rounding_state[1] = 12
    return bank


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("seed", [None, 3])
def test_a_state_is_restored(device, tmp_path, dtype, seed):
    options = dict(dtype=dtype, rounding_seed=seed, sample_fingerprint="s", device=device)
    saved = trained(**options)
    torch.save(saved.state_dict(), tmp_path / "bank.pt")
    other_seed = None if seed is None else 9
    bank = bank_of(**{**options, "rounding_seed": other_seed})
    place = bank.rows.data_ptr()
    bank.load_state_dict(torch.load(tmp_path / "bank.pt", weights_only=True))
    assert torch.equal(bank.rows, saved.rows)
    assert bank.rows.data_ptr() == place  # compiled and captured code goes on using it
    assert bank.rows.device == device
    if seed is not None:
        assert bank.rounding_state.tolist() == [3, 12]
    saved.rows.zero_()
    assert bank.rows.abs().sum() > 0


OTHER_LABELS = LABELS.flip(0)

REFUSALS = {
    "an entry is missing": (
        lambda s: {k: v for k, v in s.items() if k != "label_fingerprint"},
        KeyError,
        "lacks.*label_fingerprint",
    ),
    "not a state": (lambda s: {"weight": torch.zeros(3)}, KeyError, r"not a LabelBank.state_dict"),
    "more samples": (
        lambda s: {**s, "rows": torch.zeros(6, 4)},
        ValueError,
        r"shape \(6, 4\), this bank \(5, 4\): it belongs to another data set",
    ),
    "other classes": (lambda s: {**s, "rows": torch.zeros(5, 3)}, ValueError, r"shape \(5, 3\)"),
    "other samples": (
        lambda s: {**s, "sample_fingerprint": "else"},
        ValueError,
        "belongs to the samples else, this bank to mine",
    ),
    "unnamed samples": (lambda s: {**s, "sample_fingerprint": None}, ValueError, "samples None"),
    "another dtype": (
        lambda s: {**s, "rows": s["rows"].half()},
        ValueError,
        r"is torch.float16, this bank torch.float32: make the bank with dtype",
    ),
    "other labels": (
        lambda s: {**s, "label_fingerprint": bank_of(OTHER_LABELS).label_fingerprint},
        ValueError,
        "other given labels: pass allow_other_labels=True",
    ),
    "a random state of another shape": (
        lambda s: {**s, "rounding_state": torch.zeros(3, dtype=torch.int64)},
        ValueError,
        "rounding_state",
    ),
    "rounded to nearest": (
        lambda s: {**s, "rounding_state": None},
        ValueError,
        "differ in stochastic rounding: make the bank with rounding_seed=None",
    ),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_a_state_of_something_else_is_refused_and_changes_nothing(case):
    spoil, error, message = REFUSALS[case]
    options = dict(sample_fingerprint="mine", rounding_seed=1)
    bank = bank_of(**options)
    before = [t.clone() for t in (bank.rows, bank.given_labels, bank.rounding_state)]
    with pytest.raises(error, match=message):
        bank.load_state_dict(spoil(trained(**options).state_dict()))
    after = (bank.rows, bank.given_labels, bank.rounding_state)
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    assert bank.sample_fingerprint == "mine"


def test_a_state_with_stochastic_rounding_needs_a_seed():
    bank = bank_of()
    with pytest.raises(ValueError, match="make the bank with a rounding_seed"):
        bank.load_state_dict(trained(rounding_seed=1).state_dict())
    assert torch.equal(bank.rows, bank_of().rows)


def test_other_labels_are_taken_on_request_and_no_other_samples():
    bank = bank_of(OTHER_LABELS, sample_fingerprint="mine")
    state = trained(sample_fingerprint="mine").state_dict()
    with pytest.raises(ValueError, match="samples else"):
        bank.load_state_dict({**state, "sample_fingerprint": "else"}, allow_other_labels=True)
    bank.load_state_dict(state, allow_other_labels=True)
    assert torch.equal(bank.rows, state["rows"])
    assert torch.equal(bank.given_labels, OTHER_LABELS)
    assert bank.label_fingerprint == bank_of(OTHER_LABELS).label_fingerprint


def test_preserved_puts_everything_back(device):
    bank = trained(dtype=torch.bfloat16, rounding_seed=2, device=device)
    tensors = (bank.rows, bank.status, bank.rounding_state)
    before, places = [t.clone() for t in tensors], [t.data_ptr() for t in tensors]

    def disturb():
        alr_loss(torch.zeros(5, 4, device=device), bank.rows, torch.arange(5, device=device))
        bank.status[:2].add_(1)  # the rest is scratch of the kernels
        bank.rounding_state.add_(1)

    with bank.preserved():
        disturb()
        assert not torch.equal(bank.rows, before[0])
    with pytest.raises(ZeroDivisionError), bank.preserved():
        disturb()
        raise ZeroDivisionError
    for tensor, copy, place in zip(tensors, before, places, strict=True):
        assert torch.equal(tensor, copy)
        assert tensor.data_ptr() == place


def test_to_moves_everything_and_keeps_the_dtype(device):
    bank = trained(dtype=torch.bfloat16, rounding_seed=2)
    rows = bank.rows.clone()
    assert bank.to(device) is bank
    assert bank.rows.device == bank.status.device == bank.rounding_state.device == device
    assert bank.rows.dtype == torch.bfloat16
    assert torch.equal(bank.rows.cpu(), rows)
    assert bank.given_labels.device.type == "cpu"
    meta = bank.to("meta")
    assert meta.rows.is_meta
    assert meta.status.is_meta
    assert meta.rounding_state.is_meta


def updated(where, dtype, seed, folder, device="cpu"):
    """A bank of 60 samples after some updates, and what the updates returned."""
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
@pytest.mark.parametrize("elements", [1 << 24, 25])  # in one go, and in chunks of three rows
def test_every_placement_gives_the_same(tmp_path, monkeypatch, where, on, dtype, seed, elements):
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
    # A state goes from each placement to each other.
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
    """A bank with placement "pinned" in ordinary memory, for logits on meta, the GPU's stand-in."""

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
def test_pinned_rows_are_read_when_the_gpu_has_written_them(pinned, monkeypatch, use):
    def wait(device):
        assert device == torch.device("cuda", 1)
        raise ZeroDivisionError

    pinned.status, pinned.rounding_state = bank_of().status, torch.tensor([2, 0])
    monkeypatch.setattr(torch.cuda, "synchronize", wait)
    use(pinned)  # nobody to wait for
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
