import io
import math
import os
import pickle
import re

import numpy as np
import pytest

from alr_fast.data.index import SampleIndex
from alr_fast.errors import UserError
from alr_fast.noise import (
    NOISE_MODELS,
    classes,
    inject,
    injection,
    instance,
    load_labels,
    load_noise,
    needs_features,
    read_matrix,
    save_labels,
)
from alr_fast.noise.__main__ import main
from helpers.image_folder import write_folder

N, K = 20_000, 10
CLEAN = np.random.default_rng(7).integers(K, size=N)
CIFAR10 = (
    *("airplane", "automobile", "bird", "cat", "deer"),
    *("dog", "frog", "horse", "ship", "truck"),
)
# The superclass of each class of CIFAR-100 by id, as the data set's training file holds it.
CIFAR100_COARSE = """
    4 1 14 8 0 6 7 7 18 3 3 14 9 18 7 11 3 9 7 11 6 11 5 10 7 6 13 15 3 15 0 11 1 10 12 14 16 9 11 5
    5 19 8 8 15 13 14 17 18 10 16 4 17 4 2 0 17 4 18 17 10 3 2 12 12 16 12 1 9 19 2 10 0 1 16 12 9
    13 15 13 16 19 2 4 6 19 5 5 8 19 18 1 2 15 6 0 17 8 14 13
"""
CIFAR100 = tuple(sorted(name for names in classes.CIFAR100_SUPERCLASSES.values() for name in names))

# What every kind needs beside labels and rate, for 20,000 samples of CIFAR-10's classes.
FEATURES = np.random.default_rng(8).integers(256, size=(N, 2, 3), dtype=np.uint8)
MATRIX = np.full((K, K), 0.05) + np.eye(K) * 0.5
NEEDS = {
    "asymmetric": {"class_names": CIFAR10},
    "asymmetric-superclass": {"class_names": CIFAR100, "num_classes": 100},
    "instance": {"features": FEATURES},
    "matrix": {"matrix": MATRIX},
}


def noise_of(kind, rate, seed=0, labels=CLEAN):
    options = {"num_classes": K, **NEEDS.get(kind, {})}
    return inject(labels, kind=kind, rate=rate, seed=seed, **options)


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
    # 8,000 labels redrawn, a tenth of them onto themselves: binomial(8000, 0.9), +-5 sigma.
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
        # About 2,000 samples a class: 5 sigma of a share of 0.11 are 0.035.
        assert abs(shares[k] - share_of_own_class) < 0.035
        assert np.abs(np.delete(shares, k) - (1 - share_of_own_class) / (K - 1)).max() < 0.035


def test_labels_of_a_seed_stay_what_they_are():
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


def test_asymmetric_goes_by_name_not_by_id():
    names = ("Dog", "horse", "cat", "deer", "airplane", "bird", "automobile", "truck", "x")
    noise = inject(
        np.arange(9), num_classes=9, kind="asymmetric", rate=1.0, seed=0, class_names=names
    )
    assert noise.labels.tolist() == [2, 1, 0, 1, 4, 4, 6, 6, 8]


def test_asymmetric_without_its_classes_names_kinds_that_fit():
    with pytest.raises(
        UserError, match=r"classes of CIFAR-10 and of digits.* kinds that fit: sym"
    ) as info:
        inject([0], num_classes=3, kind="asymmetric", rate=0.1, seed=0, class_names="abc")
    assert "blocks5" not in str(info.value)
    with pytest.raises(UserError, match=r"data set has others.*, asymmetric-blocks5, pair, "):
        inject([0], num_classes=5, kind="asymmetric", rate=0.1, seed=0, class_names="abcde")
    with pytest.raises(UserError, match=r"kind asymmetric: .*pass class_names"):
        inject([0], num_classes=10, kind="asymmetric", rate=0.1, seed=0)


def test_asymmetric_knows_the_look_alikes_of_digits():
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


def test_superclass_goes_to_the_next_id_by_name():
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


def test_flips_fall_anywhere_in_a_class():
    noise = inject(np.zeros(10_000, np.int64), num_classes=2, kind="pair", rate=0.5, seed=0)
    # Half of 10,000 without order: of each 1,000 in a row 500 flip, sigma 15.
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


def test_matrix_rows_that_are_a_little_short_of_one_give_no_label_too_many(monkeypatch):
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


def instance_by_hand(labels, num_classes, features, rate, seed):
    """The definition, one sample at a time."""
    rng = np.random.default_rng(seed)
    rates = rng.normal(rate, 0.1, len(labels))
    while any(not 0 <= q <= 1 for q in rates):
        rates[(rates < 0) | (rates > 1)] = rng.normal(rate, 0.1, sum((rates < 0) | (rates > 1)))
    uniform = rng.random(len(labels))
    x = features.reshape(len(labels), -1).astype(float)
    x = (x - x.mean()) / x.std()
    weights = rng.standard_normal((num_classes, x.shape[1], num_classes))
    noisy = []
    for i, y in enumerate(labels):
        scores = x[i] @ weights[y]
        others = sum(math.exp(scores[j]) for j in range(num_classes) if j != y)
        p = [rates[i] * math.exp(score) / others for score in scores]
        p[y] = 1 - rates[i]
        total, label = p[0], 0
        while total <= uniform[i]:
            label += 1
            total += p[label]
        noisy.append(label)
    return noisy


@pytest.mark.parametrize("rate", [0.1, 0.45, 0.9])
def test_instance_is_its_definition(rate, monkeypatch):
    rng = np.random.default_rng(1)
    labels = rng.choice([0, 1, 3, 4], size=400)  # a class without samples takes its weights too
    features = rng.integers(256, size=(400, 3, 2, 2), dtype=np.uint8)
    monkeypatch.setattr(instance, "BLOCK_BYTES", 8 * 12 * 7)  # seven samples a block
    noise = inject(labels, num_classes=5, kind="instance", rate=rate, seed=6, features=features)
    assert noise.labels.tolist() == instance_by_hand(labels, 5, features, rate, 6)


def test_instance_scales_the_features():
    kept = {"num_classes": K, "kind": "instance", "rate": 0.4, "seed": 2}
    plain = inject(CLEAN, features=FEATURES, **kept)
    moved = inject(CLEAN, features=3.0 * FEATURES - 1000, **kept)
    assert np.array_equal(plain.labels, moved.labels)


def test_instance_rate_is_the_mean_of_the_truncated_normal():
    # Mean of normal(r, 0.1) on [0, 1]: r + 0.1 * phi(r / 0.1) / Phi(r / 0.1) below one half.
    for rate, mean in ((0.4, 0.40001), (0.1, 0.12876)):
        realised = noise_of("instance", rate).realised_rate
        assert abs(realised - mean) < 5 * math.sqrt(mean * (1 - mean) / N)


def test_instance_labels_depend_on_the_sample():
    # Two kinds of samples in one class: where they go to differs far beyond chance.
    features = np.repeat(np.random.default_rng(3).normal(size=(2, 50)), 5000, axis=0)
    labels = np.zeros(10_000, dtype=np.int64)
    noise = inject(labels, num_classes=10, kind="instance", rate=0.5, seed=0, features=features)
    one, two = (
        np.bincount(part, minlength=10)[1:] for part in (noise.labels[:5000], noise.labels[5000:])
    )
    assert abs(int(one.sum()) - 2500) < 5 * math.sqrt(1250)
    assert one.argmax() != two.argmax()
    assert np.abs(one - two).sum() > 0.5 * (one + two).sum()


def test_equal_features_are_as_good_as_none():
    labels = np.zeros(9000, dtype=np.int64)
    noise = inject(
        labels, num_classes=4, kind="instance", rate=0.5, seed=0, features=np.full((9000, 2), 7.0)
    )
    assert np.abs(noise.counts[0, 1:] - 1500).max() < 5 * math.sqrt(1500)


@pytest.mark.parametrize(
    ("features", "message"),
    [
        (None, "instance: depends on the images"),
        (np.zeros((3, 2)), "features: 3 rows for 2 labels"),
        (np.array([["a"], ["b"]]), "features: <U1 of shape .*real numbers"),
        (object(), "features: object of shape"),
        (3.0, "features: float64 of shape"),
        (np.array([[1.0], [np.nan]]), "features: .* not finite"),
        (np.array([[1.0], [np.inf]]), "features: .* not finite"),
    ],
)
def test_wrong_features(features, message):
    with pytest.raises(UserError, match=message):
        inject([0, 1], num_classes=2, kind="instance", rate=0.5, seed=0, features=features)


def test_none_changes_nothing():
    noise = noise_of("none", 0.0)
    assert np.array_equal(noise.labels, CLEAN)
    assert noise.realised_rate == 0.0


@pytest.mark.parametrize("kind", [kind for kind in NOISE_MODELS if kind != "matrix"])
def test_rate_zero_changes_nothing(kind):
    assert np.array_equal(noise_of(kind, 0.0).labels, CLEAN)


@pytest.mark.parametrize("kind", NOISE_MODELS)
def test_input_is_left_alone_and_seed_decides(kind):
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
def test_the_report_counts_what_happened(kind):
    noise = noise_of(kind, 0.5)
    expected = np.zeros_like(noise.counts)
    np.add.at(expected, (CLEAN, noise.labels), 1)
    assert np.array_equal(noise.counts, expected)
    assert noise.realised_rate == np.mean(noise.labels != CLEAN)
    assert np.array_equal(noise.original, CLEAN)


def test_the_report_keeps_labels_of_its_own():
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


def test_unknown_kind_lists_what_there_is():
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


def make_index(n=30, names=("a", "b", "ü"), prefix="train"):
    labels = np.arange(n) % len(names)
    return SampleIndex(
        sample_ids=np.arange(n),
        paths=[f"{prefix}/{i:03d}.png" for i in range(n)],
        labels=labels,
        clean_labels=None,
        class_names=names,
    )


def relabelled(index):
    """The same samples, one with another given label."""
    labels = index.labels.copy()
    labels[4] = (labels[4] + 1) % index.num_classes
    return SampleIndex(index.sample_ids, index.paths, labels, None, index.class_names)


@pytest.fixture
def saved(tmp_path):
    """Path, noise and index of a file of noisy labels."""
    index = make_index()
    noise = inject(index.labels, num_classes=3, kind="symmetric-exclusive", rate=0.4, seed=9)
    path = tmp_path / "noisy.npz"
    save_labels(path, noise, index)
    return path, noise, index


def test_round_trip(saved):
    path, noise, index = saved
    labels = load_labels(path, index)
    assert labels.dtype == np.int64
    assert labels.tolist() == noise.labels.tolist()
    loaded = load_noise(path, index)
    for name in ("kind", "requested_rate", "realised_rate", "seed"):
        assert getattr(loaded, name) == getattr(noise, name)
        assert type(getattr(loaded, name)) is type(getattr(noise, name))
    assert loaded.counts.tolist() == noise.counts.tolist()
    assert [file.name for file in path.parent.iterdir()] == ["noisy.npz"]


def test_file_holds_no_pickles_and_says_what_it_is(saved):
    path, noise, index = saved
    with np.load(path, allow_pickle=False) as archive:
        content = {name: archive[name].tolist() for name in archive.files}
    assert content == {
        "format": "alr_fast noisy labels 1",
        "ids": list(range(30)),
        "labels": noise.labels.tolist(),
        "original": index.labels.tolist(),
        "class_names": ["a", "b", "ü"],
        "kind": "symmetric-exclusive",
        "requested_rate": 0.4,
        "realised_rate": 0.4,
        "seed": 9,
        "sample_fingerprint": index.sample_fingerprint(),
    }


def test_a_subset_gets_the_labels_of_its_ids(saved):
    path, noise, index = saved
    rows = np.array([2, 3, 11, 29])
    part = load_noise(path, index.take(rows))
    assert part.labels.tolist() == noise.labels[rows].tolist()
    assert part.realised_rate == np.mean(noise.labels[rows] != index.labels[rows])
    assert part.requested_rate == 0.4


def test_a_file_of_a_subset_serves_that_subset_alone(tmp_path):
    index = make_index()
    part = index.take(np.arange(10, 20))
    noise = inject(part.labels, num_classes=3, kind="pair", rate=0.5, seed=0)
    save_labels(tmp_path / "part.npz", noise, part)
    assert load_labels(tmp_path / "part.npz", part).tolist() == noise.labels.tolist()
    with pytest.raises(UserError, match=r"part\.npz: has no label for 20 of 30 .*id 0\).*whole"):
        load_labels(tmp_path / "part.npz", index)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda index: make_index(names=tuple("abcd")), "made for 3 classes, .* has 4; pass"),
        (lambda index: make_index(names=tuple("axü")), "class 1 is b, in the data set x\\); pass"),
        (lambda index: make_index(31), r"no label for 1 of 31 samples \(first: id 30\)"),
        (lambda index: make_index(prefix="other"), "made for other samples"),
        (relabelled, r"id 4 was b, in the data set ü\)"),
        (lambda index: relabelled(index).take(np.arange(3, 9)), r"id 4 was b, in the data set ü"),
    ],
    ids=["class-count", "class-names", "more-samples", "paths", "labels", "labels-of-a-subset"],
)
def test_a_foreign_data_set_is_refused(saved, change, message):
    path, _, index = saved
    with pytest.raises(UserError, match=rf"noisy\.npz: .*{message}"):
        load_labels(path, change(index))


def test_a_file_that_is_there_stays(saved):
    path, noise, index = saved
    before = path.read_bytes()
    with pytest.raises(UserError, match=r"noisy\.npz: exists already; .*overwrite"):
        save_labels(path, noise, index)
    assert path.read_bytes() == before
    other = inject(index.labels, num_classes=3, kind="pair", rate=1.0, seed=0)
    path.with_name("link").hardlink_to(path)
    save_labels(path, other, index, overwrite=True)
    assert path.with_name("link").read_bytes() == before  # replaced, not written into
    assert load_labels(path, index).tolist() == other.labels.tolist()


def test_a_write_that_fails_leaves_what_was_there(saved, monkeypatch):
    path, noise, index = saved
    before = path.read_bytes()

    def full(file, **arrays):
        file.write(b"half of it")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez_compressed", full)
    with pytest.raises(UserError, match=r"noisy\.npz: No space left on device; free"):
        save_labels(path, noise, index, overwrite=True)
    assert path.read_bytes() == before
    assert [file.name for file in path.parent.iterdir()] == ["noisy.npz"]


def test_places_that_cannot_be_written(saved, tmp_path):
    _, noise, index = saved
    with pytest.raises(UserError, match=r"no folder .*nosuch; make it"):
        save_labels(tmp_path / "nosuch" / "x.npz", noise, index)
    with pytest.raises(UserError, match="is a folder"):
        save_labels(tmp_path, noise, index, overwrite=True)
    with pytest.raises(ValueError, match="30 samples"):
        save_labels(tmp_path / "x.npz", noise, make_index(29))


@pytest.mark.skipif(os.name != "posix", reason="modes of POSIX")
def test_file_can_be_read_by_those_whom_the_umask_lets(saved):
    path, *_ = saved
    plain = path.with_name("plain")
    plain.touch()
    assert path.stat().st_mode == plain.stat().st_mode


def npy(array):
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def spoilt(**changes):
    def spoil(path):
        with np.load(path) as archive:
            arrays = {name: archive[name] for name in archive.files}
        arrays.update(changes)
        np.savez(path, **{name: a for name, a in arrays.items() if a is not None})

    return spoil


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda path: path.unlink(), "no such file; make it with"),
        (lambda path: path.write_bytes(b""), "not a file of noisy labels"),
        (lambda path: path.write_text("id,label\n"), "not a file of noisy labels"),
        (lambda path: path.write_bytes(path.read_bytes()[:-200]), "not a file of noisy labels"),
        (lambda path: path.write_bytes(pickle.dumps([1, 2])), "not a file of noisy labels"),
        (lambda path: path.write_bytes(npy(np.arange(3))), r"\(a single array\)"),
        (spoilt(ids=None), r"\(ids is not a file"),
        (spoilt(labels=np.array([None] * 30)), "not a file of noisy labels.*allow_pickle"),
        (spoilt(labels=np.zeros(30)), "labels is float64"),
        (spoilt(labels=np.full(30, 3)), "labels holds labels of more than 3 classes"),
        (spoilt(labels=np.zeros(29, int)), "labels has 29 entries, ids has 30"),
        (spoilt(ids=np.arange(30)[::-1]), "ids do not ascend"),
        (spoilt(format=np.array("alr_fast noisy labels 2")), "format .* 2, this version reads"),
    ],
)
def test_files_that_are_no_noisy_labels(saved, spoil, message):
    path, _, index = saved
    spoil(path)
    with pytest.raises(UserError, match=rf"^.*noisy\.npz: .*{message}") as info:
        load_labels(path, index)
    assert "\n" not in str(info.value)


def test_matrix_files(tmp_path):
    matrix = np.array([[0.9, 0.1], [0.25, 0.75]])
    np.save(tmp_path / "t.npy", matrix.astype(np.float32))
    (tmp_path / "t.csv").write_text("0.9, 0.1\n0.25,0.75\n\n")
    np.testing.assert_allclose(read_matrix(tmp_path / "t.npy"), matrix, atol=1e-7)
    assert np.array_equal(read_matrix(tmp_path / "t.csv"), matrix)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("t.txt", b"1", r"t\.txt: .*must be a \.npy or a \.csv"),
        ("none.csv", None, r"none\.csv: no such file"),
        ("t.csv", b"a,b\n1,0\n", r"t\.csv: cannot be read .*'a'.*K rows"),
        ("t.csv", b"1,0\n1\n", r"t\.csv: cannot be read"),
        ("t.csv", b"", r"t\.csv: has 1 dimensions"),
        ("t.npy", b"junk", r"t\.npy: cannot be read"),
        ("t.npy", pickle.dumps({}), r"t\.npy: cannot be read"),
    ],
)
def test_wrong_matrix_files(tmp_path, name, content, message):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message) as info:
        read_matrix(tmp_path / name)
    assert "\n" not in str(info.value)


@pytest.fixture
def digits():
    from alr_fast.data import open_dataset

    return open_dataset("digits", None).split("train")


def test_command_writes_what_inject_gives(tmp_path, capsys, digits):
    path = tmp_path / "noisy.npz"
    words = ["--data", "digits", "--kind", "pair", "--rate", "0.45", "--seed", "3"]
    assert main([*words, "--output", str(path)]) == 0
    noise = inject(digits.index.labels, num_classes=10, kind="pair", rate=0.45, seed=3)
    assert np.array_equal(load_labels(path, digits.index), noise.labels)
    lines = capsys.readouterr().out.splitlines()
    assert lines == [
        f"pair: 45.00% requested, {noise.realised_rate:.2%} of 1,437 labels changed, seed 3; "
        f"written to {path}"
    ]


def test_command_gives_the_pixels_to_instance_noise(tmp_path, digits):
    path = tmp_path / "noisy.npz"
    words = ["--data", "digits", "--kind", "instance", "--rate", "0.3", "--output", str(path)]
    assert main(words) == 0
    noise = inject(
        digits.index.labels,
        num_classes=10,
        kind="instance",
        rate=0.3,
        seed=0,
        features=digits.images.array,
    )
    assert np.array_equal(load_labels(path, digits.index), noise.labels)


def test_command_decodes_the_images_of_a_folder(tmp_path, capsys, monkeypatch):
    from alr_fast.data import open_dataset
    from alr_fast.data.loaders.memory import decode_all

    monkeypatch.setenv("ALR_FAST_CACHE", str(tmp_path / "cache"))
    root = write_folder(tmp_path / "set", train=dict.fromkeys("xyz", 20), test={"x": 1})
    path = tmp_path / "noisy.npz"
    words = ["--kind", "instance", "--rate", "0.5", "--image-size", "4", "--output", str(path)]
    assert main(["--data-root", str(root), *words]) == 0
    assert "black" not in capsys.readouterr().out
    split = open_dataset("auto", root).split("train")
    noise = inject(
        split.index.labels,
        num_classes=3,
        kind="instance",
        rate=0.5,
        seed=0,
        features=decode_all(split, 4).array,
    )
    assert np.array_equal(load_labels(path, split.index), noise.labels)

    (root / split.index.paths[3]).write_bytes(b"broken")
    assert main(["--data-root", str(root), *words, "--overwrite"]) == 0
    assert "; unreadable images, replaced by black: 1" in capsys.readouterr().out


def test_command_reads_a_matrix(tmp_path, capsys, digits):
    np.save(tmp_path / "t.npy", np.roll(np.eye(10), 1, axis=1))
    path = tmp_path / "noisy.npz"
    words = ["--data", "digits", "--kind", "matrix", "--matrix", str(tmp_path / "t.npy")]
    assert main([*words, "--output", str(path)]) == 0
    assert "matrix: 100.00% requested, 100.00% of 1,437" in capsys.readouterr().out
    index = digits.index
    assert np.array_equal(load_labels(path, index), (index.labels + 1) % 10)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--kind pair", "--kind pair: needs a rate"),
        ("--kind pair --rate 2", "--rate 2.0: must lie between 0 and 1"),
        ("--kind pair --rate x", "argument --rate: invalid float value: 'x'; --help"),
        ("--kind nosuch --rate 0.1", "argument --kind: invalid choice: 'nosuch' .*symmetric"),
        ("--rate 0.1", "arguments are required: --kind"),
        ("--kind none --rate 0.1", "--rate 0.1: kind none takes no rate; leave it out"),
        ("--kind pair --rate 0.1 --matrix t.csv", "--matrix FILE goes with --kind matrix"),
        ("--kind matrix", "--matrix FILE goes with --kind matrix"),
        ("--kind matrix --matrix t.csv", "t.csv: no such file"),
        ("--kind pair --rate 0.1 --seed -1", "--seed -1: must be 0 or more"),
        ("--kind pair --rate 0.1 --image-size 0", "--image-size 0: must be 1 or more"),
        (
            "--kind asymmetric-superclass --rate 0.1",
            "superclass: made for .*CIFAR-100.*kinds that fit",
        ),
        ("--kind pair --rate 0.1 --data nosuch", "--data nosuch: no such data set"),
    ],
)
def test_command_errors_are_one_line(tmp_path, capsys, monkeypatch, words, message):
    monkeypatch.chdir(tmp_path)
    assert main(["--data", "digits", "--output", "noisy.npz", *words.split()]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert len(err.splitlines()) == 1
    assert re.match(f"error: .*{message}", err), err
    assert list(tmp_path.iterdir()) == []


def test_command_overwrites_when_told(tmp_path, capsys, digits):
    path = tmp_path / "noisy.npz"
    path.write_text("mine")
    words = ["--data", "digits", "--kind", "pair", "--rate", "1", "--output", str(path)]
    assert main(words) == 2
    assert path.read_text() == "mine"
    assert "exists already" in capsys.readouterr().err
    # Known before the data set is read, which may take long.
    assert main([*words, "--data", "auto", "--data-root", str(tmp_path / "nosuch")]) == 2
    assert "exists already" in capsys.readouterr().err
    assert main([*words, "--overwrite"]) == 0
    assert np.array_equal(load_labels(path, digits.index), (digits.index.labels + 1) % 10)
