"""Transition matrices: known, estimated from anchor points, estimated from confident counts."""

import numpy as np
import pytest
import torch

from alr_fast.errors import UserError
from alr_fast.losses import BackwardCorrectionLoss, ForwardCorrectionLoss
from alr_fast.noise.transition import (
    estimate_anchor,
    estimate_confident,
    known_transition,
    symmetric_transition,
    transition_error,
)

TRUTH = np.array(
    [
        [0.70, 0.20, 0.05, 0.05],
        [0.05, 0.60, 0.30, 0.05],
        [0.10, 0.05, 0.80, 0.05],
        [0.25, 0.05, 0.05, 0.65],
    ]
)
CLASSES = len(TRUTH)


def exactly(found, expected):
    assert found.dtype == np.float64
    np.testing.assert_allclose(found, np.asarray(expected), rtol=1e-12, atol=1e-15)


def separable(per_class=200):
    """Clean labels, given labels exactly in the shares of TRUTH, and their exact posteriors."""
    clean = np.repeat(np.arange(CLASSES), per_class)
    counts = np.rint(TRUTH * per_class).astype(np.int64)
    assert (counts.sum(1) == per_class).all()
    given = np.concatenate([np.repeat(np.arange(CLASSES), row) for row in counts])
    return clean, given, TRUTH[clean]


def overlapping(samples=20_000, seed=0, sharpness=6.0):
    """Samples whose true class is uncertain: posteriors of the true class, then of the given."""
    rng = np.random.default_rng(seed)
    scores = sharpness * rng.standard_normal((samples, CLASSES))
    of_true = np.exp(scores - scores.max(1, keepdims=True))
    of_true /= of_true.sum(1, keepdims=True)
    clean = (of_true.cumsum(1) < rng.random((samples, 1))).sum(1).clip(max=CLASSES - 1)
    given = (TRUTH[clean].cumsum(1) < rng.random((samples, 1))).sum(1).clip(max=CLASSES - 1)
    return clean, given, of_true @ TRUTH


# By hand.


def test_symmetric():
    exactly(
        symmetric_transition(4, 0.4),
        [[0.7, 0.1, 0.1, 0.1], [0.1, 0.7, 0.1, 0.1], [0.1, 0.1, 0.7, 0.1], [0.1, 0.1, 0.1, 0.7]],
    )
    exactly(symmetric_transition(3, 0), np.eye(3))
    exactly(symmetric_transition(2, 1), [[0.5, 0.5], [0.5, 0.5]])


def test_known_is_the_realised_shares():
    clean = np.array([0, 0, 0, 0, 2, 2, 2])
    given = np.array([0, 0, 1, 2, 2, 0, 0])
    # Class 1 has no sample: it keeps its label.
    exactly(known_transition(clean, given, 3), [[0.5, 0.25, 0.25], [0, 1, 0], [2 / 3, 0, 1 / 3]])
    exactly(known_transition(clean[:0], given[:0], 3), np.eye(3))


def test_anchors_are_the_samples_at_a_percentile():
    p = np.array([[0.5, 0.5], [0.9, 0.1], [0.2, 0.8], [0.6, 0.4], [0.3, 0.7]])
    # Sorted by p_0: 0.2, 0.3, 0.5, 0.6, 0.9; by p_1: 0.1, 0.4, 0.5, 0.7, 0.8.
    exactly(estimate_anchor(p, percentile=100), [[0.9, 0.1], [0.2, 0.8]])
    exactly(estimate_anchor(p, percentile=75), [[0.6, 0.4], [0.3, 0.7]])
    exactly(estimate_anchor(p, percentile=70), [[0.6, 0.4], [0.3, 0.7]])  # place 2.8
    exactly(estimate_anchor(p, percentile=0), [[0.2, 0.8], [0.9, 0.1]])
    exactly(estimate_anchor(p), [[0.9, 0.1], [0.2, 0.8]])  # 97: place 3.88
    exactly(estimate_anchor(p[:1]), [[0.5, 0.5], [0.5, 0.5]])


def test_anchor_takes_the_97th_percentile_unless_told():
    # Of 101 samples the places 98 to 100 are outliers.
    p = np.linspace(0.5, 0.6, 101)
    p[98:] = 0.99
    found = estimate_anchor(np.stack((p, 1 - p), 1))
    exactly(found[0], [p[97], 1 - p[97]])


def test_rows_of_an_estimate_sum_to_one():
    # As float16 predictions do not.
    p = np.array([[0.9, 0.2], [0.3, 0.3]], dtype=np.float16)
    exactly(estimate_anchor(p, percentile=100).sum(1), [1, 1])


def test_confident_counts():
    p = np.array(
        [
            [0.9, 0.1],  # given 0: counts for 0
            [0.7, 0.3],  # given 0: counts for 0
            [0.2, 0.8],  # given 0: counts for 1
            [0.1, 0.9],  # given 1: counts for 1
            [0.3, 0.7],  # given 1: counts for 1
            [0.6, 0.4],  # given 1: counts for 0, being equal to the threshold
        ]
    )
    given = np.array([0, 0, 0, 1, 1, 1])
    # Thresholds: 1.8 / 3 = 0.6 of class 0, 2.0 / 3 of class 1.
    # Counts [given, true]: 0: (2, 1), 1: (1, 2).
    exactly(estimate_confident(p, given), [[2 / 3, 1 / 3], [1 / 3, 2 / 3]])


def test_confident_counts_are_scaled_to_the_samples_of_a_given_label():
    p = np.array([[0.9, 0.1], [0.5, 0.5], [0.1, 0.9], [0.1, 0.9], [0.9, 0.1], [0.3, 0.7]])
    given = np.array([0, 0, 1, 1, 1, 1])
    # Thresholds 0.7 and 0.65. Counts [given, true]: 0: (1, 0) of 2, 1: (1, 3) of 4.
    # Scaled: 0: (2, 0), 1: (1, 3); so true 0 is given 0 in 2 of 3.
    exactly(estimate_confident(p, given), [[2 / 3, 1 / 3], [0, 1]])


def test_a_sample_counts_for_the_most_probable_of_the_classes_above_their_thresholds():
    p = np.array([[0.4, 0.35, 0.25], [0.1, 0.5, 0.4], [0.45, 0.1, 0.45], [0.41, 0.36, 0.23]])
    given = np.array([0, 1, 2, 2])
    # Thresholds 0.4, 0.5, 0.34. Row 2 ties between 0 and 2: the lower one. Row 3 counts for 0.
    # Counts [given, true]: 0: (1, 0, 0), 1: (0, 1, 0), 2: (2, 0, 0); no sample counts for 2.
    exactly(estimate_confident(p, given), [[1 / 3, 0, 2 / 3], [0, 1, 0], [0, 0, 1]])


def test_a_class_without_given_labels_is_never_counted():
    p = np.array([[0.8, 0.1, 0.1], [0.1, 0.8, 0.1], [0.0, 0.0, 1.0], [0.6, 0.4, 0.0]])
    given = np.array([0, 1, 0, 0])
    # Class 2 has no threshold, so that row 2 is not counted; that of 0 is 1.4 / 3.
    exactly(estimate_confident(p, given), np.eye(3))


def test_the_error_is_the_mean_distance_of_the_rows():
    assert transition_error(TRUTH, TRUTH) == 0
    assert transition_error(np.eye(2), np.eye(2)[::-1]) == 2
    found = transition_error(np.array([[0.7, 0.3], [0.0, 1.0]]), np.array([[0.9, 0.1], [0.0, 1.0]]))
    assert found == pytest.approx((0.4 + 0) / 2)


# Against the truth.


def test_known_and_estimated_are_exact_for_classes_that_do_not_overlap():
    clean, given, p = separable()
    exactly(known_transition(clean, given, CLASSES), TRUTH)
    exactly(estimate_anchor(p), TRUTH)
    exactly(estimate_confident(p, given), TRUTH)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_estimates_are_close_for_classes_that_overlap(seed):
    clean, given, p = overlapping(seed=seed)
    # Standard error of a share: at most 0.5 / sqrt(5000), 0.7 %.
    assert transition_error(known_transition(clean, given, CLASSES), TRUTH) < 0.04
    # The 97th percentile of the samples is all but certain of its class.
    assert transition_error(estimate_anchor(p), TRUTH) < 0.01
    # Confident counts treat uncertain samples as certain.
    assert transition_error(estimate_confident(p, given), TRUTH) < 0.15
    # None of these is trivial.
    assert transition_error(np.eye(CLASSES), TRUTH) > 0.6


def test_estimates_do_not_depend_on_the_order_of_the_samples():
    _, given, p = overlapping(samples=500)
    order = np.random.default_rng(3).permutation(len(p))
    exactly(estimate_anchor(p[order]), estimate_anchor(p))
    exactly(estimate_confident(p[order], given[order]), estimate_confident(p, given))


def test_estimates_follow_the_names_of_the_classes():
    _, given, p = overlapping(samples=500)
    names = np.array([2, 0, 3, 1])  # class i is called names[i]
    renamed = np.empty_like(p)
    renamed[:, names] = p
    for one, other in (
        (estimate_anchor(p), estimate_anchor(renamed)),
        (estimate_confident(p, given), estimate_confident(renamed, names[given])),
    ):
        exactly(other[np.ix_(names, names)], one)


def test_the_corrections_accept_every_matrix():
    clean, given, p = overlapping(samples=500)
    for matrix in (
        symmetric_transition(CLASSES, 0.5),
        known_transition(clean, given, CLASSES),
        estimate_anchor(p.astype(np.float16)),
        estimate_confident(p.astype(np.float32), given),
    ):
        assert matrix.shape == (CLASSES, CLASSES)
        exactly(matrix.sum(1), np.ones(CLASSES))
        assert (matrix >= 0).all()
        table = torch.from_numpy(matrix)
        assert ForwardCorrectionLoss(table).log_transition.exp().T.allclose(table)
        inverse = BackwardCorrectionLoss(table).matrix.double()
        assert (inverse @ table).allclose(torch.eye(CLASSES).double(), atol=1e-5)


# Bad input.


@pytest.mark.parametrize("percentile", [-0.1, 100.5, float("nan")])
def test_percentiles_outside_of_0_to_100_are_refused(percentile):
    message = rf"percentile {percentile}: must lie between 0 and 100"
    with pytest.raises(UserError, match=message):
        estimate_anchor(TRUTH, percentile=percentile)


@pytest.mark.parametrize("shape", [(0, 3), (3, 0), (3,), (2, 2, 2)])
def test_probabilities_that_are_not_a_table_are_refused(shape):
    for estimate in (estimate_anchor, lambda p: estimate_confident(p, np.zeros(2, np.int64))):
        with pytest.raises(UserError, match=r"probabilities of shape .*: pass a row for each"):
            estimate(np.zeros(shape))


@pytest.mark.parametrize("wrong", [[0, 1, 2], [0, -1, 1]])
def test_labels_beyond_the_classes_are_refused(wrong):
    right, wrong = np.array([0, 1, 0]), np.array(wrong)
    message = f"labels {wrong.min()} to {wrong.max()}: must lie in 0 to 1"
    for call in (
        lambda: known_transition(right, wrong, 2),
        lambda: known_transition(wrong, right, 2),
        lambda: estimate_confident(np.full((3, 2), 0.5), wrong),
    ):
        with pytest.raises(UserError, match=message):
            call()


def test_labels_of_another_number_of_samples_are_refused():
    with pytest.raises(IndexError):
        estimate_confident(np.full((3, 2), 0.5), np.array([0, 1, 0, 1]))
    with pytest.raises(ValueError, match="shapes"):
        known_transition(np.array([0, 1, 0]), np.array([0, 1]), 2)
