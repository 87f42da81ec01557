"""Noise models: their definitions, statistics and checks."""

import math

import numpy as np
import pytest

from alr_fast.errors import UserError
from alr_fast.noise import (
    NOISE_MODELS,
    classes,
    inject,
    injection,
    needs_features,
)
from helpers.noise_cases import CIFAR10, CIFAR100, CLEAN, FEATURES, NEEDS, K, N, noise_of

# Superclass of each class of CIFAR-100 by id, from the training file of the data set.
CIFAR100_COARSE = """
    4 1 14 8 0 6 7 7 18 3 3 14 9 18 7 11 3 9 7 11 6 11 5 10 7 6 13 15 3 15 0 11 1 10 12 14 16 9 11 5
    5 19 8 8 15 13 14 17 18 10 16 4 17 4 2 0 17 4 18 17 10 3 2 12 12 16 12 1 9 19 2 10 0 1 16 12 9
    13 15 13 16 19 2 4 6 19 5 5 8 19 18 1 2 15 6 0 17 8 14 13
"""


def test_the_kinds():
    assert list(NOISE_MODELS) == [
        "none",
        "symmetric",
        "symmetric-exclusive",
        "asymmetric",
        "asymmetric-blocks5",
        "asymmetric-superclass",
        "pair",
        "instance",
        "matrix",
    ]
    assert [kind for kind in NOISE_MODELS if needs_features(kind)] == ["instance"]


def test_symmetric_redraws_over_all_classes():
    noise = noise_of("symmetric", 0.4)
    # 8,000 labels are redrawn, a tenth stays the same: binomial(8000, 0.9), +-5 sigma.
    wrong = int((noise.labels != CLEAN).sum())
    assert abs(wrong - 7200) < 5 * np.sqrt(8000 * 0.9 * 0.1)
    assert noise.realised_rate == wrong / N
    assert noise.requested_rate == 0.4


def test_symmetric_exclusive_makes_exactly_the_requested_number_wrong():
    noise = noise_of("symmetric-exclusive", 0.4)
    assert (noise.labels != CLEAN).sum() == 8000
    assert noise.realised_rate == 0.4


@pytest.mark.parametrize(
    ("kind", "share_of_own_class"), [("symmetric", 0.1), ("symmetric-exclusive", 0.0)]
)
def test_new_labels_are_uniform(kind, share_of_own_class):
    counts = noise_of(kind, 1.0, seed=3).counts
    for k in range(K):
        shares = counts[k] / counts[k].sum()
        # About 2,000 samples per class: 5 sigma of a share of 0.11 are 0.035.
        assert abs(shares[k] - share_of_own_class) < 0.035
        assert np.abs(np.delete(shares, k) - (1 - share_of_own_class) / (K - 1)).max() < 0.035


def test_labels_of_a_seed_do_not_change_between_versions():
    labels = np.arange(10) % 3
    noise = inject(labels, num_classes=3, kind="symmetric", rate=1.0, seed=0)
    assert noise.labels.tolist() == [2, 2, 2, 1, 1, 1, 1, 2, 0, 1]
    noise = inject(labels, num_classes=3, kind="symmetric-exclusive", rate=0.5, seed=0)
    assert noise.labels.tolist() == [0, 1, 1, 2, 0, 2, 2, 0, 2, 0]


def test_asymmetric_flips_cifar10():
    noise = inject(
        np.arange(10), num_classes=10, kind="asymmetric", rate=1.0, seed=0, class_names=CIFAR10
    )
    flips = {CIFAR10[a]: CIFAR10[b] for a, b in enumerate(noise.labels) if a != b}
    assert flips == {
        "truck": "automobile",
        "bird": "airplane",
        "deer": "horse",
        "cat": "dog",
        "dog": "cat",
    }
    assert noise.realised_rate == 0.5


def test_asymmetric_finds_classes_by_name():
    names = ("Dog", "horse", "cat", "deer", "airplane", "bird", "automobile", "truck", "x")
    noise = inject(
        np.arange(9), num_classes=9, kind="asymmetric", rate=1.0, seed=0, class_names=names
    )
    assert noise.labels.tolist() == [2, 1, 0, 1, 4, 4, 6, 6, 8]


def test_asymmetric_for_other_classes_suggests_kinds_that_fit():
    with pytest.raises(
        UserError, match=r"classes of CIFAR-10 and of digits.* kinds that fit: sym"
    ) as info:
        inject([0], num_classes=3, kind="asymmetric", rate=0.1, seed=0, class_names="abc")
    assert "blocks5" not in str(info.value)
    with pytest.raises(UserError, match=r"data set has others.*, asymmetric-blocks5, pair, "):
        inject([0], num_classes=5, kind="asymmetric", rate=0.1, seed=0, class_names="abcde")
    with pytest.raises(UserError, match=r"kind asymmetric: .*pass class_names"):
        inject([0], num_classes=10, kind="asymmetric", rate=0.1, seed=0)


def test_asymmetric_flips_the_look_alikes_of_digits():
    labels = np.repeat(np.arange(10), 10)
    noise = inject(
        labels, num_classes=10, kind="asymmetric", rate=0.4, seed=0, class_names="0123456789"
    )
    expected = np.diag([10] * 10)
    for source, destination in ((2, 7), (3, 8), (7, 1), (5, 6), (6, 5)):
        expected[source, source], expected[source, destination] = 6, 4
    assert noise.counts.tolist() == expected.tolist()


def test_blocks5():
    noise = inject(np.arange(10), num_classes=10, kind="asymmetric-blocks5", rate=1.0, seed=0)
    assert noise.labels.tolist() == [1, 2, 3, 4, 0, 6, 7, 8, 9, 5]
    with pytest.raises(UserError, match=r"divisible by five, the data set has 7; .*symmetric"):
        inject([0], num_classes=7, kind="asymmetric-blocks5", rate=0.5, seed=0)


def test_classes_that_are_the_same_by_name_are_refused():
    names = (*CIFAR10[:-1], "Cat")
    with pytest.raises(UserError, match="cat and Cat are the same name; rename one; kinds that"):
        inject(
            np.arange(10), num_classes=10, kind="asymmetric", rate=1.0, seed=0, class_names=names
        )


def test_superclass_table_is_that_of_the_data_set():
    coarse = [int(number) for number in CIFAR100_COARSE.split()]
    position = {
        name: number
        for number, names in enumerate(classes.CIFAR100_SUPERCLASSES.values())
        for name in names
    }
    assert [position[name] for name in CIFAR100] == coarse
    assert list(classes.CIFAR100_SUPERCLASSES) == sorted(classes.CIFAR100_SUPERCLASSES)
    for names in classes.CIFAR100_SUPERCLASSES.values():
        assert list(names) == sorted(names)


@pytest.mark.parametrize(
    ("kind", "inside"), [("asymmetric-superclass", 100), ("asymmetric-blocks5", 6)]
)
def test_flips_inside_a_superclass(kind, inside):
    coarse = np.array([int(number) for number in CIFAR100_COARSE.split()])
    noise = inject(
        np.arange(100), num_classes=100, kind=kind, rate=1.0, seed=0, class_names=CIFAR100
    )
    assert (noise.labels != np.arange(100)).all()
    assert (np.sort(noise.labels) == np.arange(100)).all()
    assert (coarse[noise.labels] == coarse).sum() == inside


def test_superclass_finds_classes_by_name():
    names = tuple(name.replace("_", " ").title() for name in reversed(CIFAR100))
    noise = inject(
        np.arange(100),
        num_classes=100,
        kind="asymmetric-superclass",
        rate=1.0,
        seed=0,
        class_names=names,
    )
    flips = {names[a]: names[b] for a, b in enumerate(noise.labels)}
    trees = ["Maple Tree", "Oak Tree", "Palm Tree", "Pine Tree", "Willow Tree"]
    assert [flips[tree] for tree in trees] == [*trees[1:], trees[0]]
    for name in trees:
        with pytest.raises(UserError, match=r"differ \(first: .*kinds that fit: symmetric"):
            inject(
                [0],
                num_classes=99,
                kind="asymmetric-superclass",
                rate=1.0,
                seed=0,
                class_names=[other for other in names if other != name],
            )


def test_pair():
    noise = inject([0, 1, 2, 2], num_classes=3, kind="pair", rate=1.0, seed=0)
    assert noise.labels.tolist() == [1, 2, 0, 0]
    assert noise.counts.tolist() == [[0, 1, 0], [0, 0, 1], [2, 0, 0]]


@pytest.mark.parametrize(
    ("kind", "sources"),
    [("pair", range(10)), ("asymmetric-blocks5", range(10)), ("asymmetric", [2, 3, 4, 5, 9])],
)
def test_flips_are_exact_in_every_class(kind, sources):
    noise = noise_of(kind, 0.3)
    sizes = np.bincount(CLEAN)
    flipped = noise.counts.sum(axis=1) - np.diag(noise.counts)
    assert flipped.tolist() == [int(0.3 * n) * (k in sources) for k, n in enumerate(sizes)]
    assert (np.count_nonzero(noise.counts, axis=1) <= 2).all()
    assert noise.realised_rate == flipped.sum() / N


def test_flips_are_random_within_a_class():
    noise = inject(np.zeros(10_000, np.int64), num_classes=2, kind="pair", rate=0.5, seed=0)
    # Half of 10,000 in random order: about 500 of 1,000 consecutive labels flip, sigma 15.
    flipped = noise.labels.reshape(10, 1000).sum(axis=1)
    assert np.abs(flipped - 500).max() < 5 * 15
    assert flipped.std() > 1


def test_matrix_of_certainties():
    certain = [[0, 0, 1], [1, 0, 0], [0, 1, 0]]
    noise = inject([0, 1, 2, 1], num_classes=3, kind="matrix", rate=0.0, seed=0, matrix=certain)
    assert noise.labels.tolist() == [2, 0, 1, 0]
    assert noise.requested_rate == noise.realised_rate == 1.0


def test_matrix_draws_by_the_row_of_the_true_class():
    rows = [[0.7, 0.2, 0.1], [0.0, 0.5, 0.5], [0.25, 0.0, 0.75]]
    labels = np.repeat([0, 1, 2, 2], 10_000)
    noise = inject(labels, num_classes=3, kind="matrix", rate=0.9, seed=4, matrix=rows)
    for k, row in enumerate(rows):
        for j, p in enumerate(row):
            n = (10_000, 10_000, 20_000)[k]
            assert abs(noise.counts[k, j] - n * p) <= 5 * math.sqrt(n * p * (1 - p))
    assert noise.requested_rate == pytest.approx((0.3 + 0.5 + 0.25 + 0.25) / 4)


def test_matrix_takes_the_uniform_numbers_row_by_row():
    labels = np.array([1, 0, 1, 0, 1, 0, 0, 1])
    uniform = np.random.default_rng(5).random(8)
    noise = inject(
        labels, num_classes=2, kind="matrix", rate=0, seed=5, matrix=[[0.3, 0.7], [0.6, 0.4]]
    )
    expected = [int(u >= (0.3, 0.6)[y]) for u, y in zip(uniform, labels, strict=True)]
    assert noise.labels.tolist() == expected


def test_matrix_rows_that_sum_to_less_than_one_yield_no_label_out_of_range(monkeypatch):
    monkeypatch.setattr(injection, "ROW_SUM_TOLERANCE", 0.5)
    labels = np.zeros(10_000, dtype=np.int64)
    noise = inject(
        labels, num_classes=2, kind="matrix", rate=0, seed=0, matrix=[[0.3, 0.3], [0.3, 0.3]]
    )
    assert abs(int(noise.counts[0, 1]) - 5000) < 5 * 50
    assert noise.counts.sum() == 10_000


@pytest.mark.parametrize(
    ("matrix", "message"),
    [
        (None, "needs a transition matrix, 2 x 2"),
        ([[1.0, 0.0]], "matrix: 1 x 2; must be 2 x 2"),
        ([0.5, 0.5], "matrix: 2; must be 2 x 2"),
        ([[1, 0], [0.5, 0.4]], "row 1 sums to 0.9; .* divide"),
        ([[1.5, -0.5], [0, 1]], "row 0 holds -0.5; .* 0 or more"),
        ([[1, 0], [float("nan"), 1]], "row 1 holds nan"),
        ([[float("inf"), 0], [0, 1]], "row 0 sums to inf"),
        ([["a", 0], [0, 1]], "not numbers"),
    ],
)
def test_wrong_matrix(matrix, message):
    with pytest.raises(UserError, match=message):
        inject([0, 1], num_classes=2, kind="matrix", rate=0.0, seed=0, matrix=matrix)


def test_matrix_for_another_kind():
    with pytest.raises(UserError, match=r"pair: takes no transition matrix; choose kind matrix"):
        inject([0, 1], num_classes=2, kind="pair", rate=0.5, seed=0, matrix=np.eye(2))


def test_none_changes_nothing():
    noise = noise_of("none", 0.0)
    assert np.array_equal(noise.labels, CLEAN)
    assert noise.realised_rate == 0.0


@pytest.mark.parametrize("kind", [kind for kind in NOISE_MODELS if kind != "matrix"])
def test_rate_zero_changes_nothing(kind):
    assert np.array_equal(noise_of(kind, 0.0).labels, CLEAN)


@pytest.mark.parametrize("kind", NOISE_MODELS)
def test_input_is_not_modified_and_the_seed_decides(kind):
    labels, features = CLEAN.copy(), FEATURES.copy()
    first, again, other = (noise_of(kind, 0.5, seed, labels) for seed in (1, 1, 2))
    assert np.array_equal(labels, CLEAN)
    assert np.array_equal(features, FEATURES)
    assert not np.shares_memory(first.labels, labels)
    assert np.array_equal(first.labels, again.labels)
    assert (kind == "none") == np.array_equal(first.labels, other.labels)
    assert first.labels.dtype == np.int64
    assert first.labels.min() >= 0
    assert first.labels.max() < NEEDS.get(kind, {}).get("num_classes", K)
    assert (first.kind, first.seed) == (kind, 1)


@pytest.mark.parametrize("kind", NOISE_MODELS)
def test_counts_and_realised_rate(kind):
    noise = noise_of(kind, 0.5)
    expected = np.zeros_like(noise.counts)
    np.add.at(expected, (CLEAN, noise.labels), 1)
    assert np.array_equal(noise.counts, expected)
    assert noise.realised_rate == np.mean(noise.labels != CLEAN)
    assert np.array_equal(noise.original, CLEAN)


def test_the_result_keeps_a_copy_of_the_labels():
    labels = np.array([0, 1, 2])
    noise = inject(labels, num_classes=3, kind="pair", rate=1.0, seed=0)
    labels[:] = 0
    assert noise.original.tolist() == [0, 1, 2]


@pytest.mark.parametrize("kind", NOISE_MODELS)
def test_no_samples_at_all(kind):
    options = {"num_classes": K, **NEEDS.get(kind, {})}
    if "features" in options:
        options["features"] = FEATURES[:0]
    noise = inject([], kind=kind, rate=0.5, seed=0, **options)
    assert noise.labels.shape == (0,)
    assert noise.realised_rate == 0.0


@pytest.mark.parametrize("rate", [-0.1, 1.1, float("nan")])
def test_rate_outside_the_unit_interval(rate):
    with pytest.raises(UserError, match=r"^rate .* between 0 and 1"):
        noise_of("symmetric", rate)


def test_unknown_kind_lists_the_kinds():
    with pytest.raises(UserError, match=r"nosuch.*symmetric-exclusive.*matrix"):
        noise_of("nosuch", 0.1)


@pytest.mark.parametrize("kind", ["symmetric-exclusive", "pair", "instance"])
def test_too_few_classes(kind):
    with pytest.raises(UserError, match=f"kind {kind}: needs at least two classes"):
        inject([0, 0], num_classes=1, kind=kind, rate=0.5, seed=0, features=np.zeros((2, 1)))


@pytest.mark.parametrize(
    ("labels", "options", "message"),
    [
        ([0, 3], {}, "labels: row 1 holds 3; must lie between 0 and 2"),
        ([-1], {}, "labels: row 0 holds -1"),
        ([0.5], {}, "labels: float64 .* one integer"),
        ([[0], [1]], {}, r"labels: .*shape \(2, 1\)"),
        ([0], {"seed": -1}, "seed -1: must be 0 or more"),
        ([], {"num_classes": 0}, "num_classes 0"),
        ([0], {"class_names": "ab"}, "class_names: 2 names for 3 classes"),
    ],
)
def test_wrong_input(labels, options, message):
    with pytest.raises(UserError, match=message):
        inject(labels, **{"num_classes": 3, "kind": "pair", "rate": 0.5, "seed": 0, **options})
