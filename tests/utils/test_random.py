"""Random numbers of one purpose say nothing about those of another."""

from itertools import combinations

import numpy as np
import pytest

from alr_fast.data.index import balanced_rows
from alr_fast.data.sampler import ShuffledSampler
from alr_fast.noise import inject
from alr_fast.utils import random
from alr_fast.utils.random import stream

SIZE = 4000
LABELS = np.arange(SIZE) % 10
SEEDS = (0, 1, 7)


@pytest.mark.parametrize("first", SEEDS)
@pytest.mark.parametrize("second", SEEDS)
def test_no_two_purposes_correlate(first, second):
    for one, other in combinations(random._PURPOSES, 2):
        for draw in (lambda rng: rng.permutation(SIZE), lambda rng: rng.random(SIZE)):
            a, b = draw(stream(one, first)), draw(stream(other, second))
            assert abs(np.corrcoef(a, b)[0, 1]) < 0.08, (one, other)


def test_numbers_are_unique_and_no_zeros():
    """numpy fills up seeds with zeros: those of [7] are those of [7, 0]."""
    numbers = [numbers for numbers in random._PURPOSES.values() if numbers]
    assert len(set(numbers)) == len(random._PURPOSES) - 1
    assert all(number > 0 for (number,) in numbers)


def test_the_labels_of_a_seed_stay_the_same():
    drawn = stream("noise", 7).integers(1 << 40, size=5)
    assert np.array_equal(drawn, np.random.default_rng(7).integers(1 << 40, size=5))
    labels = inject(np.arange(12) % 3, num_classes=3, kind="symmetric-exclusive", rate=0.5, seed=1)
    assert labels.labels.tolist() == [1, 1, 2, 0, 0, 0, 0, 0, 0, 0, 1, 0]


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("kind", ["symmetric", "symmetric-exclusive", "pair"])
def test_subsets_and_shards_have_the_noise_of_the_whole(kind, seed):
    noise = inject(LABELS, num_classes=10, kind=kind, rate=0.4, seed=seed)
    changed = noise.labels != LABELS
    parts = [balanced_rows(LABELS, 10, SIZE // 4)]
    for rank in range(2):
        sampler = ShuffledSampler(SIZE, 100, seed=seed, rank=rank, world_size=2)
        parts += [sampler.rows, sampler.rows[sampler.order(0)[: SIZE // 4]]]
    for rows in parts:
        assert changed[rows].mean() == pytest.approx(changed.mean(), abs=0.06)
