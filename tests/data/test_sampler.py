import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

from alr_fast.data import OwnedRowsSampler
from alr_fast.data.sampler import SequentialSampler, ShuffledSampler
from alr_fast.errors import UserError


def epoch_of(sampler, epoch=0, start=0):
    return [index for _, index in sampler.batches(epoch, start)]


@pytest.mark.parametrize(
    ("kind", "n", "batch_size", "sizes"),
    [
        (ShuffledSampler, 8, 4, [4, 4]),
        (ShuffledSampler, 10, 4, [4, 4, 2]),
        (ShuffledSampler, 9, 4, [4, 5]),  # a single sample joins the batch before it
        (SequentialSampler, 9, 4, [4, 4, 1]),  # evaluation can use a batch of one
        (ShuffledSampler, 3, 4, [3]),
        (ShuffledSampler, 1, 4, [1]),
        (ShuffledSampler, 3, 1, [1, 1, 1]),
    ],
)
def test_sizes_of_batches(kind, n, batch_size, sizes):
    sampler = kind(n, batch_size)
    batches = epoch_of(sampler)
    assert [len(b) for b in batches] == sizes
    assert sampler.steps == len(sizes)
    assert max(sizes) <= sampler.largest_batch
    assert sorted(np.concatenate(batches).tolist()) == list(range(n))


@pytest.mark.parametrize("world_size", [1, 2, 3, 4, 7])
@pytest.mark.parametrize("n", [100, 101, 103, 131])
@pytest.mark.parametrize("kind", [ShuffledSampler, SequentialSampler])
def test_ranks_share_every_sample_exactly_once(n, world_size, kind):
    samplers = [kind(n, 8, seed=5, rank=r, world_size=world_size) for r in range(world_size)]
    for epoch in (0, 1):
        seen = [s.rows[np.concatenate(epoch_of(s, epoch))] for s in samplers]
        assert sorted(np.concatenate(seen).tolist()) == list(range(n))
        assert all(set(rows) == set(s.rows) for rows, s in zip(seen, samplers, strict=True))
    if kind is ShuffledSampler:
        # Concatenated, the rows form the same table for any number of ranks.
        table = ShuffledSampler(n, 8, seed=5).rows
        assert np.array_equal(np.concatenate([s.rows for s in samplers]), table)
        assert all(
            np.array_equal(table[s.offset : s.offset + len(s.rows)], s.rows) for s in samplers
        )
        sizes = [[len(b) for b in epoch_of(s)] for s in samplers]
        smallest = [samplers[0].smallest_batch(step) for step in range(samplers[0].steps)]
        assert smallest == [min(column) for column in zip(*sizes, strict=True)]
        assert len({s.steps for s in samplers}) == 1
        assert all(min(map(len, epoch_of(s))) >= 2 for s in samplers)
        assert all(max(map(len, epoch_of(s))) <= s.largest_batch for s in samplers)


def test_shards_are_cut_from_a_permutation():
    labels = np.repeat(np.arange(10), 100)  # sorted by class, as folders are
    shard = ShuffledSampler(1000, 10, rank=1, world_size=4).rows
    assert np.bincount(labels[shard], minlength=10).min() > 10
    assert not np.array_equal(shard, np.arange(1, 1000, 4))


def test_order_depends_on_seed_epoch_and_rank():
    def order(seed=0, epoch=3, rank=0):
        sampler = ShuffledSampler(200, 8, seed=seed, rank=rank, world_size=2)
        return sampler.order(epoch).tolist()

    assert order() == order()
    assert len({tuple(o) for o in (order(), order(seed=1), order(epoch=4), order(rank=1))}) == 4
    # The orders of two epochs are uncorrelated.
    first, second = np.argsort(order(epoch=0)), np.argsort(order(epoch=1))
    assert abs(np.corrcoef(first, second)[0, 1]) < 0.3


@pytest.mark.parametrize("world_size", [1, 3])
def test_resuming_returns_exactly_the_remaining_batches(world_size):
    sampler = ShuffledSampler(100, 8, rank=world_size - 1, world_size=world_size)
    whole = epoch_of(sampler, 2)
    for start in (0, 1, sampler.steps - 1, sampler.steps):
        rest = epoch_of(sampler, 2, start)
        assert len(rest) == sampler.steps - start
        assert all(map(np.array_equal, rest, whole[start:]))
    numbers = sampler.augmentation_rng(2, 3).random(4)
    assert np.array_equal(numbers, sampler.augmentation_rng(2, 3).random(4))
    assert not np.array_equal(numbers, sampler.augmentation_rng(2, 4).random(4))


@pytest.mark.parametrize("world_size", [1, 2])
def test_balanced_subset_is_drawn_anew(world_size):
    labels = np.array([0] * 300 + [1] * 60 + [2] * 7)
    samplers = [
        ShuffledSampler(367, 8, rank=r, world_size=world_size, labels=labels, per_class=20)
        for r in range(world_size)
    ]
    assert len({s.steps for s in samplers}) == 1
    drawn = []
    for epoch in range(2):
        rows = np.concatenate([s.rows[np.concatenate(epoch_of(s, epoch))] for s in samplers])
        assert len(set(rows.tolist())) == len(rows)
        counts = np.bincount(labels[rows])
        assert (counts <= [20, 20, 7]).all()  # all samples of class 2, each once
        if world_size == 1:
            assert counts.tolist() == [20, 20, 7]
        drawn.append(set(rows.tolist()))
    assert len(drawn[0] & drawn[1]) < 35


def test_ranks_with_unequal_shares_of_the_classes_make_equal_steps():
    labels = np.arange(600) % 30  # 3 of a class: 2 for one rank, 1 for the other
    samplers = [
        ShuffledSampler(600, 8, rank=r, world_size=2, labels=labels, per_class=3) for r in range(2)
    ]
    for sampler in samplers:
        sizes = [len(index) for index in epoch_of(sampler)]
        assert sizes == [8, 8, 8, 6]


def test_wrong_ranks_are_refused():
    with pytest.raises(ValueError, match="rank 2 is not one of 2"):
        SequentialSampler(10, 2, rank=2, world_size=2)
    with pytest.raises(ValueError, match="too few for 4 ranks"):
        ShuffledSampler(3, 2, rank=0, world_size=4)


@pytest.mark.parametrize("per_class", [None, 3])
def test_in_order_covers_every_row_of_a_rank_once(per_class):
    labels = np.arange(103) % 5
    for rank in range(3):
        sampler = ShuffledSampler(
            103, 8, rank=rank, world_size=3, labels=labels, per_class=per_class
        )
        before = [batch.tolist() for batch in epoch_of(sampler)]
        other = sampler.in_order(10)
        assert other.rows is sampler.rows
        batches = epoch_of(other, epoch=4)
        assert np.concatenate(batches).tolist() == list(range(len(sampler.rows)))
        assert [len(batch) for batch in batches[:-1]] == [10] * (other.steps - 1)
        assert other.largest_batch == 10
        # The training order stays the same.
        assert [batch.tolist() for batch in epoch_of(sampler)] == before


@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize("drop_last", [True, False])
@pytest.mark.parametrize("shuffle", [True, False])
def test_owned_rows_stay_with_their_rank(world_size, drop_last, shuffle):
    n = 20  # not divisible by 3
    samplers = [
        OwnedRowsSampler(
            n, rank=r, world_size=world_size, seed=4, drop_last=drop_last, shuffle=shuffle
        )
        for r in range(world_size)
    ]
    assert sorted(np.concatenate([s.rows for s in samplers]).tolist()) == list(range(n))
    epochs = [[list(s) for s in samplers] for _ in range(30)]
    for drawn in epochs:
        for sampler, rows in zip(samplers, drawn, strict=True):
            assert set(rows) <= set(sampler.rows.tolist())
            assert len(rows) == len(sampler)
            if drop_last:
                assert len(set(rows)) == len(rows)
            else:
                assert set(rows) == set(sampler.rows.tolist())
    assert len({len(s) for s in samplers}) == 1
    assert len(samplers[0]) == (n // world_size if drop_last else -(-n // world_size))
    if shuffle:  # over the epochs each row has its turn
        assert {row for drawn in epochs for rows in drawn for row in rows} == set(range(n))
    assert (epochs[0] == epochs[1]) == (not shuffle)


def test_owned_rows_are_those_of_the_trainer():
    own = OwnedRowsSampler(50, rank=1, world_size=3, seed=9)
    trainer = ShuffledSampler(50, 8, rank=1, world_size=3, seed=9)
    assert np.array_equal(own.rows, trainer.rows) and own.rows.dtype == np.int64


def test_epochs_of_owned_rows_advance_or_are_set():
    first, second = OwnedRowsSampler(40, seed=1), OwnedRowsSampler(40, seed=1)
    orders = [list(first) for _ in range(4)]
    second.set_epoch(2)
    assert [list(second), list(second)] == orders[2:]
    second.set_epoch(2)
    assert list(second) == orders[2]
    assert len({tuple(order) for order in orders}) == 4
    assert list(OwnedRowsSampler(40, seed=2)) != orders[0]


def test_a_data_loader_takes_owned_rows():
    data = TensorDataset(torch.arange(10))
    sampler = OwnedRowsSampler(data, rank=1, world_size=2)
    loader = DataLoader(data, batch_size=2, sampler=sampler)
    assert len(loader) == 3
    assert sorted(torch.cat([x for (x,) in loader]).tolist()) == sorted(sampler.rows.tolist())
    assert isinstance(sampler, DistributedSampler)  # what Lightning looks for


@pytest.mark.parametrize(
    ("dataset", "options", "message"),
    [
        (10, {"rank": 1}, "rank: has to come with world_size"),
        (10, {"rank": 2, "world_size": 2}, r"rank 2: must lie in \[0, world_size\)"),
        (3, {"rank": 0, "world_size": 4}, "dataset: has 3 samples, which are too few for 4"),
        (0, {}, "dataset 0: must have at least one sample"),
        (True, {}, "dataset: must be a map-style data set or its length, got bool"),
        (iter([1]), {}, "dataset: must be a map-style data set"),
    ],
)
def test_wrong_arguments_of_owned_rows_are_named(dataset, options, message):
    with pytest.raises(UserError, match=message):
        OwnedRowsSampler(dataset, **options)


def test_owned_rows_refuse_a_negative_epoch():
    with pytest.raises(UserError, match="epoch -1: must be 0 or more"):
        OwnedRowsSampler(4).set_epoch(-1)


def test_owned_rows_notice_a_process_group_that_came_later(monkeypatch):
    sampler, explicit = OwnedRowsSampler(10), OwnedRowsSampler(10, rank=0, world_size=1)
    monkeypatch.setattr("torch.distributed.is_initialized", lambda: True)
    monkeypatch.setattr("torch.distributed.get_rank", lambda: 1)
    monkeypatch.setattr("torch.distributed.get_world_size", lambda: 2)
    with pytest.raises(UserError, match=r"is 0 of 1, but torch\.distributed says 1 of 2"):
        iter(sampler)
    assert sorted(explicit) == list(range(10))
    later = OwnedRowsSampler(10)
    assert (later.rank, later.num_replicas) == (1, 2) and len(list(later)) == 5


IMBALANCED = np.repeat(np.arange(5), [600, 250, 100, 45, 5])


def balanced(rank=0, world_size=1, **options):
    options = {"labels": IMBALANCED, "balance": 0.0} | options
    return ShuffledSampler(len(IMBALANCED), 32, seed=3, rank=rank, world_size=world_size, **options)


def counts_of(samplers, epoch=0):
    rows = np.concatenate([s.rows[np.concatenate(epoch_of(s, epoch))] for s in samplers])
    return np.bincount(IMBALANCED[rows], minlength=5), np.bincount(rows, minlength=1000)


@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize("epoch", [0, 7])
@pytest.mark.parametrize("samples", [None, 300, 2500])
def test_balanced_classes_are_drawn_equally_often(world_size, epoch, samples):
    ranks = [balanced(r, world_size, epoch_samples=samples) for r in range(world_size)]
    total = samples or 1000
    counts, seen = counts_of(ranks, epoch)
    assert abs(counts - total / 5).max() <= world_size  # rounding, and remaining samples
    assert total - world_size < counts.sum() <= total
    # The samples of a class as often as the others of it, on one rank.
    for k in range(5) if world_size == 1 else ():
        assert np.ptp(seen[k == IMBALANCED]) <= 1
    sizes = [[len(batch) for batch in epoch_of(s, epoch)] for s in ranks]
    assert len({s.steps for s in ranks}) == 1
    smallest = [ranks[0].smallest_batch(step) for step in range(ranks[0].steps)]
    assert smallest == [min(column) for column in zip(*sizes, strict=True)]


def test_samples_of_a_class_are_drawn_equally_often_on_all_ranks():
    ranks = [balanced(r, 3) for r in range(3)]
    seen = sum(counts_of(ranks, epoch)[1] for epoch in range(60)) / 60
    for k, size in enumerate([600, 250, 100, 45, 5]):
        for sampler in ranks:
            own = sampler.rows[IMBALANCED[sampler.rows] == k]
            assert seen[own].mean() == pytest.approx(200 / size, rel=0.15)


def test_classes_are_drawn_by_the_square_root_of_their_sizes():
    counts, _ = counts_of([balanced(balance=0.5)])
    roots = np.sqrt([600, 250, 100, 45, 5])
    assert abs(counts - 1000 * roots / roots.sum()).max() <= 1


def test_a_class_that_a_rank_lacks_is_drawn_by_the_others():
    ranks = [balanced(r, 8) for r in range(8)]
    assert min(np.isin(4, IMBALANCED[s.rows]) for s in ranks) == 0
    counts, _ = counts_of(ranks)
    assert abs(counts - 200).max() <= 8
    assert {sum(map(len, epoch_of(s))) for s in ranks} == {125}


def test_classes_without_samples_are_left_out():
    labels = np.array([1] * 30 + [3] * 3)  # neither 0 nor 2, nor of those after 3
    sampler = ShuffledSampler(33, 8, labels=labels, balance=0.0)
    rows = sampler.rows[np.concatenate(epoch_of(sampler))]
    assert np.bincount(labels[rows]).tolist() in ([0, 16, 0, 17], [0, 17, 0, 16])


def test_balanced_epochs_differ_and_resume_in_the_middle():
    sampler = balanced()
    assert not np.array_equal(sampler.order(0), sampler.order(1))
    whole = epoch_of(balanced(), 4)
    assert all(map(np.array_equal, whole[9:], epoch_of(sampler, 4, 9)))
    drawn = [set(sampler.order(epoch).tolist()) for epoch in range(20)]
    assert set().union(*drawn) == set(range(1000))  # the frequent ones in turn


def test_a_balance_needs_labels():
    with pytest.raises(ValueError, match="needs labels"):
        ShuffledSampler(10, 2, balance=0.0)


def test_rounded_shares_lose_no_sample():
    class Least(np.random.Generator):
        def random(self):
            return 0.0

    for classes in range(2, 60):
        labels = np.arange(997) ** 2 % classes
        sampler = ShuffledSampler(997, 8, labels=labels, balance=0.5)
        assert sum(map(len, sampler._balanced(Least(np.random.PCG64(0))))) == 997
