"""Instance-dependent noise, compared with a naive loop."""

import math

import numpy as np
import pytest

from alr_fast.errors import UserError
from alr_fast.noise import (
    inject,
    instance,
)
from helpers.noise_cases import CLEAN, FEATURES, K, N, noise_of


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
    labels = rng.choice([0, 1, 3, 4], size=400)  # class 2 has no samples, but draws its weights
    features = rng.integers(256, size=(400, 3, 2, 2), dtype=np.uint8)
    monkeypatch.setattr(instance, "BLOCK_BYTES", 8 * 12 * 7)  # seven samples per block
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
    # Two kinds of samples in one class: their noisy labels differ far beyond chance.
    features = np.repeat(np.random.default_rng(3).normal(size=(2, 50)), 5000, axis=0)
    labels = np.zeros(10_000, dtype=np.int64)
    noise = inject(labels, num_classes=10, kind="instance", rate=0.5, seed=0, features=features)
    one, two = (
        np.bincount(part, minlength=10)[1:] for part in (noise.labels[:5000], noise.labels[5000:])
    )
    assert abs(int(one.sum()) - 2500) < 5 * math.sqrt(1250)
    assert one.argmax() != two.argmax()
    assert np.abs(one - two).sum() > 0.5 * (one + two).sum()


def test_equal_features_make_the_noise_uniform():
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
