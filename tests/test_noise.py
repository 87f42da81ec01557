import numpy as np
import pytest

from alr_fast.errors import UserError
from alr_fast.noise import NOISE_MODELS, inject

N, K = 20_000, 10
CLEAN = np.random.default_rng(7).integers(K, size=N)


def test_symmetric_redraws_over_all_classes():
    noise = inject(CLEAN, num_classes=K, kind="symmetric", rate=0.4, seed=0)
    # 8,000 labels redrawn, a tenth of them onto themselves: binomial(8000, 0.9), +-5 sigma.
    wrong = int((noise.labels != CLEAN).sum())
    assert abs(wrong - 7200) < 5 * np.sqrt(8000 * 0.9 * 0.1)
    assert noise.realised_rate == wrong / N
    assert noise.requested_rate == 0.4


def test_symmetric_exclusive_makes_exactly_the_requested_number_wrong():
    noise = inject(CLEAN, num_classes=K, kind="symmetric-exclusive", rate=0.4, seed=0)
    assert (noise.labels != CLEAN).sum() == 8000
    assert noise.realised_rate == 0.4


@pytest.mark.parametrize(
    ("kind", "share_of_own_class"), [("symmetric", 0.1), ("symmetric-exclusive", 0.0)]
)
def test_new_labels_are_uniform(kind, share_of_own_class):
    noise = inject(CLEAN, num_classes=K, kind=kind, rate=1.0, seed=3)
    for k in range(K):
        members = np.flatnonzero(np.equal(CLEAN, k))
        shares = np.bincount(noise.labels[members], minlength=K) / len(members)
        others = np.delete(shares, k)
        assert abs(shares[k] - share_of_own_class) < 0.035
        assert np.abs(others - (1 - share_of_own_class) / (K - 1)).max() < 0.035


def test_none_changes_nothing():
    noise = inject(CLEAN, num_classes=K, kind="none", rate=0.0, seed=0)
    assert np.array_equal(noise.labels, CLEAN)
    assert noise.realised_rate == 0.0


@pytest.mark.parametrize("kind", ["symmetric", "symmetric-exclusive"])
def test_rate_zero_changes_nothing(kind):
    assert inject(CLEAN, num_classes=K, kind=kind, rate=0.0, seed=0).realised_rate == 0.0


@pytest.mark.parametrize("kind", NOISE_MODELS)
def test_input_is_left_alone_and_seed_decides(kind):
    labels = CLEAN.copy()
    first, again, other = (
        inject(labels, num_classes=K, kind=kind, rate=0.5, seed=seed) for seed in (1, 1, 2)
    )
    assert np.array_equal(labels, CLEAN)
    assert not np.shares_memory(first.labels, labels)
    assert np.array_equal(first.labels, again.labels)
    assert (kind == "none") == np.array_equal(first.labels, other.labels)
    assert first.labels.dtype == np.int64
    assert first.labels.min() >= 0
    assert first.labels.max() < K


@pytest.mark.parametrize("rate", [-0.1, 1.1, float("nan")])
def test_rate_outside_the_unit_interval(rate):
    with pytest.raises(UserError, match=r"noise\.rate .* between 0 and 1"):
        inject(CLEAN, num_classes=K, kind="symmetric", rate=rate, seed=0)


def test_unknown_kind_lists_what_there_is():
    with pytest.raises(UserError, match=r"nosuch.*symmetric-exclusive"):
        inject(CLEAN, num_classes=K, kind="nosuch", rate=0.1, seed=0)


def test_exclusive_needs_two_classes():
    with pytest.raises(UserError, match="two classes"):
        inject(np.zeros(5, np.int64), num_classes=1, kind="symmetric-exclusive", rate=0.5, seed=0)
