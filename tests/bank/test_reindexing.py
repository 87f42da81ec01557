"""LabelBank.reindexed: a bank for a data set that has grown, shrunk or been reordered."""

import numpy as np
import pytest
import torch

from alr_fast import LabelBank
from alr_fast.bank.history import SampleHistory
from alr_fast.data import OwnedRowsSampler
from alr_fast.errors import UserError
from helpers import sharding_workers as workers
from helpers.process_groups import run_group

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
OLD, NEW = ["a", "b", "c", "d"], ["d", "x", "b", "y", "a"]
GIVEN, LABELS = [0, 1, 2, 1], [1, 2, 1, 0, 2]  # the label of "a" changed
SOURCE = [3, -1, 1, -1, 0]


def trained(dtype=torch.float32, **options):
    bank = LabelBank.from_labels(GIVEN, 3, dtype=dtype, sample_fingerprint="old", **options)
    rows = torch.rand(4, 3, generator=torch.Generator().manual_seed(1))
    bank.rows.copy_(rows / rows.sum(1, keepdim=True))
    bank.history = SampleHistory(bank.given_labels, bank.device)
    bank.history.loss.copy_(torch.arange(1.0, 5))
    bank.history.passes.fill_(2)
    bank.history.changes.copy_(torch.tensor([1, 2, 3, 4]))
    bank.history.refined.copy_(torch.tensor([2, 2, 1, 0]))
    return bank


def check(bank, old, *, reset=True):
    """Compares with the bank [d, x, b, y, a]."""
    assert bank.given_labels.tolist() == LABELS
    assert bank.labels_on_device.tolist() == LABELS
    wanted = torch.nn.functional.one_hot(torch.tensor(LABELS), 3).to(old.rows)
    kept = {0: 3, 2: 1} if reset else {0: 3, 2: 1, 4: 0}
    for new_row, old_row in kept.items():
        wanted[new_row] = old.rows[old_row]
    assert torch.equal(bank.rows, wanted) and bank.rows.dtype == old.rows.dtype
    history = bank.history
    assert history.loss.tolist() == [4, 0, 2, 0, 0]  # that of another label does not count
    assert history.passes.tolist() == [2, 0, 2, 0, 0]
    assert history.changes.tolist() == [4, 0, 2, 0, 0 if reset else 1]
    assert history.refined.tolist() == [0, 2, 2, 0, 2]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_known_samples_keep_their_rows_and_new_ones_start_from_their_labels(device, dtype):
    old = trained(dtype, device=device)
    before = old.rows.clone()
    bank = old.reindexed(OLD, NEW, LABELS, sample_fingerprint="new")
    check(bank, old)
    assert bank.sample_fingerprint == "new" and bank.device == device
    assert torch.equal(old.rows, before) and old.sample_fingerprint == "old"
    bank.rows.zero_()
    assert torch.equal(old.rows, before)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ([10, 20, 30, 40], [40, 1, 20, 2, 10]),
        (np.array([10, 20, 30, 40]), torch.tensor([40, 1, 20, 2, 10])),
        (torch.tensor([10, 20, 30, 40]), np.array([40, 1, 20, 2, 10])),
        (np.array(OLD), NEW),
        (None, SOURCE),
        (None, np.array(SOURCE, dtype=np.int32)),
    ],
)
def test_keys_of_any_kind_or_rows(old, new):
    bank = trained()
    check(bank.reindexed(old, new, LABELS), bank)


def test_a_row_may_be_kept_with_another_label():
    old = trained()
    check(old.reindexed(OLD, NEW, LABELS, reset=False), old, reset=False)


def test_labels_are_kept_if_no_sample_is_new():
    old = trained()
    bank = old.reindexed(OLD, ["c", "a"])
    assert bank.given_labels.tolist() == [2, 0]
    assert torch.equal(bank.rows, old.rows[[2, 0]])
    with pytest.raises(UserError, match="labels: missing; pass the label of each"):
        old.reindexed(OLD, ["c", "x"])


@pytest.mark.parametrize("placement", ["device", "file"])
def test_the_new_bank_is_stored_as_the_old_one(tmp_path, placement):
    old = trained(placement=placement, folder=tmp_path, rounding_seed=4, dtype=torch.bfloat16)
    bank = old.reindexed(OLD, NEW, LABELS)
    check(bank, old)
    assert bank.placement == placement
    assert bank.rounding_state.tolist() == old.rounding_state.tolist()
    assert bank.rounding_state is not old.rounding_state


def test_a_bank_that_starts_at_zero():
    old = trained(one_hot=False)
    bank = old.reindexed(OLD, NEW, LABELS)
    assert bank.rows[[1, 3, 4]].abs().sum() == 0 and not bank.one_hot
    assert torch.equal(bank.rows[[0, 2]], old.rows[[3, 1]])


def test_small_pieces(monkeypatch):
    monkeypatch.setattr("alr_fast.bank.label_bank._CHUNK_ELEMENTS", 6)  # two rows
    old = trained()
    check(old.reindexed(OLD, NEW, LABELS), old)


def test_without_a_history():
    old = trained()
    old.history = None
    assert old.reindexed(OLD, NEW, LABELS).history is None


@pytest.mark.parametrize(
    ("old", "new", "labels", "message"),
    [
        (OLD[:3], NEW, LABELS, "old: has 3 keys for 4 rows"),
        (["a", "b", "a", "d"], NEW, LABELS, "old: has a key twice; pass each once"),
        (OLD, ["d", "x", "b", "x", "a"], LABELS, "new: has a key twice"),
        (None, [3, 3], [0, 0], "new: has a row twice"),
        (None, [4], [0], r"new: must lie in \[0, 4\), or be -1 for a new sample"),
        (None, [-2], [0], r"new: must lie in \[0, 4\)"),
        (None, NEW, LABELS, "new"),
        (OLD, NEW, LABELS[:2], "labels with 2 entries: must have 5 entries, one for each sample"),
        (OLD, NEW, [0, 0, 0, 0, 3], r"labels from 0 to 3: must lie in \[0, 3\)"),
        (OLD, [], [], "labels: there are none"),
    ],
)
def test_wrong_arguments(old, new, labels, message):
    bank = trained()
    with pytest.raises(UserError, match=message):
        bank.reindexed(old, new, labels)


def test_shards_are_put_together_first():
    found = run_group(2, _reindex_shards)
    whole, source = _whole()
    wanted = whole.reindexed(None, source, labels=[1] * len(source))
    for rows, history in found:
        assert torch.equal(rows, wanted.rows)
        assert torch.equal(history, wanted.history.loss)


def _whole():
    bank = workers.new_bank()
    bank.rows.copy_(torch.rand(bank.rows.shape, generator=torch.Generator().manual_seed(2)))
    bank.history = SampleHistory(bank.given_labels, bank.device)
    bank.history.loss.copy_(torch.arange(workers.N))
    return bank, [5, -1, 3, 21, -1]


def _reindex_shards():
    whole, source = _whole()
    shard = whole.shard(OwnedRowsSampler(workers.N).rows)
    bank = shard.reindexed(None, source, labels=[1] * len(source))
    return bank.rows, bank.history.loss
