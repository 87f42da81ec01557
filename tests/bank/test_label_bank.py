"""LabelBank: construction, readings, its state and every refusal to load one."""

import pickle
from copy import deepcopy

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from alr_fast import LabelBank
from alr_fast.bank.history import SampleHistory
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
    assert bank.status.tolist() == [0, 0, 0]
    assert bank.labels_on_device.dtype == torch.int32
    assert bank.labels_on_device.device == device
    assert torch.equal(bank.labels_on_device.cpu().long(), LABELS)
    assert repr(bank) == f"LabelBank(5 samples, 4 classes, {dtype}, {device})"
    given.zero_()
    assert torch.equal(bank.given_labels, LABELS)  # a copy


@pytest.mark.parametrize(
    "labels",
    [
        LABELS.tolist(),
        LABELS.numpy(),
        LABELS.numpy().astype(np.uint16),
        LABELS.numpy().astype(">i4"),
        LABELS.numpy()[::-1].copy()[::-1],  # negative strides
        LABELS[:, None],
        LABELS.to(torch.int8),
    ],
    ids=["list", "array", "uint16", "big endian", "reversed", "column", "int8"],
)
def test_labels_of_any_integer_type(labels):
    assert torch.equal(bank_of(labels).given_labels, LABELS)
    assert torch.equal(LabelBank(torch.eye(4)[LABELS], labels).given_labels, LABELS)


def test_from_labels_puts_all_tensors_on_the_device(device):
    bank = bank_of(device=str(device), rounding_seed=7)
    tensors = (bank.rows, bank.status, bank.rounding_state)
    assert all(t.device == device for t in tensors)
    assert bank.rounding_state.tolist() == [7, 0]


@pytest.mark.parametrize(
    ("labels", "classes", "options", "error", "message"),
    [
        (LABELS, 4, dict(dtype=torch.float64), TypeError, "float64 is not supported: use float32"),
        (LABELS, 4, dict(dtype=torch.int64), TypeError, "is not supported"),
        (LABELS.float(), 4, {}, ValueError, "labels of type torch.float32: must be integers"),
        (LABELS > 0, 4, {}, ValueError, "labels of type torch.bool: must be integers"),
        (LABELS[None], 4, {}, ValueError, r"labels of shape \(1, 5\): must have shape \[n\]"),
        (["cat", "dog"], 4, {}, ValueError, r"labels of type list: .*map class names to integers"),
        (None, 4, {}, ValueError, r"labels: missing"),
        (LABELS[:0], 4, {}, ValueError, r"labels: there are none"),
        ([], 4, {}, ValueError, r"labels: there are none"),
        (LABELS, 3, {}, ValueError, r"labels from 0 to 3: must lie in \[0, 3\); check num_classes"),
        (LABELS - 1, 4, {}, ValueError, r"from -1 to 2.*drop samples without a label"),
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
        (torch.zeros(5, 3), LABELS, ValueError, r"labels from 0 to 3: must lie in \[0, 3\)"),
    ],
)
def test_existing_rows_are_checked(rows, labels, error, message):
    with pytest.raises(error, match=message):
        LabelBank(rows, labels)


def test_refined_labels_confidence_and_counts(device, monkeypatch):
    rows = torch.tensor(
        [[0.1, 0.6, 0.3], [0.4, 0.2, 0.4], [0.5, 0.5, 0.0], [0.0, 0.1, 0.9], [0.2, 0.2, 0.2]]
    )
    # All rows at once, and in chunks of one row and of two.
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
    # The CUDA kernels count these, since they cannot raise.
    bank.status[0], bank.status[1] = 2, 4
    with pytest.raises(IndexError, match=r"4 batch rows had an index beyond the bank's 5 rows"):
        bank.check()
    assert bank.check() == 0
    bank.status[2] = 6
    with pytest.raises(ValueError, match=r"6 batch rows had another label.*correct_labels"):
        bank.check()
    assert bank.check() == 0


def test_counters_are_preserved(device):
    bank = bank_of(device=device)
    bank.status.copy_(torch.tensor([1, 0, 0]))
    with bank.preserved():
        bank.status.add_(1)
    assert bank.status.tolist() == [1, 0, 0]


def test_a_pickled_bank_of_an_earlier_version_has_more_than_the_counters(device):
    bank = bank_of(device=device)
    bank.status = torch.tensor([2, 0, 0, 5, 6], device=device)  # two of them scratch of the kernels
    loaded = pickle.loads(pickle.dumps(bank))
    assert loaded.status.tolist() == [2, 0, 0]
    assert loaded.check() == 2


def test_label_fingerprint_depends_on_values_and_order():
    fingerprint = bank_of().label_fingerprint
    assert bank_of(LABELS.int()).label_fingerprint == fingerprint
    assert bank_of(LABELS.flip(0)).label_fingerprint != fingerprint
    assert bank_of(LABELS.clamp(max=2)).label_fingerprint != fingerprint
    bank = bank_of()
    bank.rows.fill_(0.25)
    assert bank.label_fingerprint == fingerprint  # of the given labels, not of the rows


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
    assert bank.rows.data_ptr() == place  # compiled and captured code continues to use it
    assert bank.rows.device == device
    if seed is not None:
        assert bank.rounding_state.tolist() == [3, 12]
    saved.rows.zero_()
    assert bank.rows.abs().sum() > 0


OTHER_LABELS = LABELS.flip(0)


def name(text):
    """A fingerprint as in a state."""
    return torch.tensor(list(text.encode()), dtype=torch.uint8)


def without(entry):
    return lambda state: {key: value for key, value in state.items() if key != entry}


REFUSALS = {
    "an entry is missing": (
        without("given_labels"),
        KeyError,
        "lacks.*given_labels",
    ),
    "not a state": (lambda s: {"weight": torch.zeros(3)}, KeyError, r"not a LabelBank.state_dict"),
    "more samples": (
        lambda s: {**s, "rows": torch.zeros(6, 4)},
        ValueError,
        r"shape \(6, 4\), this bank \(5, 4\): it belongs to another data set",
    ),
    "other classes": (lambda s: {**s, "rows": torch.zeros(5, 3)}, ValueError, r"shape \(5, 3\)"),
    "other samples": (
        lambda s: {**s, "sample_fingerprint": name("else")},
        ValueError,
        "belongs to the samples else, this bank to mine",
    ),
    "unnamed samples": (without("sample_fingerprint"), KeyError, "lacks.*sample_fingerprint"),
    "another dtype": (
        lambda s: {**s, "rows": s["rows"].half()},
        ValueError,
        r"is torch.float16, this bank torch.float32: make the bank with dtype",
    ),
    "other labels": (
        lambda s: {**s, "given_labels": OTHER_LABELS},
        ValueError,
        "other given labels: if some were corrected .*pass allow_other_labels=True",
    ),
    "a random state of another shape": (
        lambda s: {**s, "rounding_state": torch.zeros(3, dtype=torch.int64)},
        ValueError,
        "rounding_state",
    ),
    "rounded to nearest": (
        without("rounding_state"),
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
        bank.load_state_dict({**state, "sample_fingerprint": name("else")}, allow_other_labels=True)
    bank.load_state_dict(state, allow_other_labels=True)
    assert torch.equal(bank.rows, state["rows"])
    assert torch.equal(bank.given_labels, OTHER_LABELS)
    assert bank.label_fingerprint == bank_of(OTHER_LABELS).label_fingerprint


def test_preserved_restores_everything(device):
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


# Corrected labels, copies, history.


@pytest.mark.parametrize("reset", [True, False])
def test_corrected_labels_replace_the_given_ones(device, reset):
    bank = trained(device=device)
    bank.history = SampleHistory(bank.given_labels, torch.device(device))
    bank.history.loss.fill_(2.0)
    bank.history.passes.fill_(1)
    before = bank.rows.clone()
    bank.correct_labels([4, 0], np.array([1, 3], dtype=np.uint8), reset=reset)
    expected = torch.tensor([3, 0, 1, 1, 1])
    assert torch.equal(bank.given_labels, expected)
    assert torch.equal(bank.labels_on_device.cpu().long(), expected)
    assert bank.label_fingerprint == bank_of(expected).label_fingerprint
    if reset:
        before[[4, 0]] = torch.eye(4, device=device)[[1, 3]]
    assert torch.equal(bank.rows, before)
    assert bank.history.passes.tolist() == ([0, 1, 1, 1, 0] if reset else [1] * 5)


@pytest.mark.parametrize(
    ("index", "labels", "message"),
    [
        ([0, 5], [1, 1], r"index from 0 to 5: must lie in \[0, 5\)"),
        ([-1], [1], r"index from -1 to -1: must lie in"),
        ([0, 0], [1, 1], "index: names a sample twice"),
        ([0, 1], [1], "labels with 1 entries: must have 2 entries"),
        ([0], [4], r"labels from 4 to 4: must lie in \[0, 4\)"),
        ([0], [1.0], "labels of type torch.float64: must be integers"),
    ],
)
def test_wrong_corrections_change_nothing(index, labels, message):
    bank = trained()
    before = bank.rows.clone()
    with pytest.raises(ValueError, match=message):
        bank.correct_labels(index, labels)
    assert torch.equal(bank.rows, before)
    assert torch.equal(bank.given_labels, LABELS)


@pytest.mark.parametrize("copied", [deepcopy, lambda b: pickle.loads(pickle.dumps(b))])
@pytest.mark.parametrize("placement", ["device", "file"])
def test_copies_are_whole_and_independent(tmp_path, copied, placement):
    bank = trained(placement=placement, folder=tmp_path, rounding_seed=5, dtype=torch.bfloat16)
    bank.history = SampleHistory(bank.given_labels, torch.device("cpu"))
    other = copied(bank)
    assert other.placement == placement
    for name, tensor in bank.state_dict().items():
        assert torch.equal(other.state_dict()[name], tensor)
        assert other.state_dict()[name].data_ptr() != tensor.data_ptr()
    with other.host_access():
        other.rows.zero_()
    assert bank.rows.any()


def test_the_state_is_tensors_with_the_history(tmp_path):
    bank = trained(sample_fingerprint="mine")
    bank.history = SampleHistory(bank.given_labels, torch.device("cpu"))
    bank.history.loss += torch.arange(5)
    save_file(bank.state_dict(), tmp_path / "bank.safetensors")
    other = bank_of(sample_fingerprint="mine")
    other.load_state_dict(load_file(tmp_path / "bank.safetensors"))
    assert other.history.loss.tolist() == [0, 1, 2, 3, 4]
    assert torch.equal(other.rows, bank.rows)
