"""Which given labels are probably wrong: a score of suspicion for each sample, and what the refined
labels say of the noise as a whole. It reads what training has left: no net is trained, no image
read."""

import numpy as np
from numpy.typing import NDArray

from alr_fast.transition import known_transition

LAST_EPOCHS = 10  # over which changes of the refined label are counted


def row_figures(
    rows: NDArray[np.floating], given_labels: NDArray[np.int64]
) -> dict[str, NDArray[np.float32 | np.int64]]:
    """What single rows of a label bank say.

    Args:
        rows: [M, K]; a row of zeros, which early-learning regularisation starts with, knows
            nothing and counts for its given label.
        given_labels: int64 [M].

    Returns:
        Arrays [M], probabilities and entropy of the rows scaled to a sum of one:
        ``refined_label`` (int64, the most probable class, the lowest on a tie),
        ``given_probability``, ``refined_probability``, ``margin`` (probability of the given label
        minus the largest of another, -1 to 1) and ``entropy`` in nats.
    """
    p = rows.astype(np.float32)  # a copy
    at = np.arange(len(p)), given_labels
    sums = p.sum(1)
    p[at] += sums <= 0
    p /= np.where(sums > 0, sums, 1)[:, None]
    refined = p.argmax(1)
    given = p[at]
    highest = p[at[0], refined]
    with np.errstate(divide="ignore", invalid="ignore"):
        entropy = -np.where(p > 0, p * np.log(p), 0).sum(1)
    p[at] = -np.inf
    other = p.max(1)
    margin = given - np.where(np.isfinite(other), other, 0)  # of one class alone: no other
    return {
        "refined_label": refined,
        "given_probability": given,
        "refined_probability": highest,
        "margin": margin,
        "entropy": entropy,
    }


def suspicion_score(
    margin: NDArray[np.float32], given_margin: NDArray[np.float32]
) -> NDArray[np.float32]:
    """How suspicious the given labels are, 0 to 1.

    The mean of two views, both 1/2 where the given label and its strongest rival are even: what the
    label bank holds at the end, `(1 - margin) / 2`, and what the net said on the way, the logistic
    function of the mean log-odds of the rival over all epochs (the area under the margin of Pleiss
    et al., NeurIPS 2020, with softmax probabilities). benchmarks/suspects.py compares it with its
    parts.

    Args:
        margin: float32 [M], see `row_figures`.
        given_margin: float32 [M], see `alr_fast.history`; where it is NaN the bank alone counts.
    """
    held = (1 - margin) / 2
    odds = np.clip(given_margin.astype(np.float64), -30, 30)
    said = 1 / (1 + np.exp(odds))
    return np.where(np.isnan(said), held, (held + said) / 2).astype(np.float32)


def recent_changes(
    changes: NDArray[np.int64], epochs: int = LAST_EPOCHS
) -> NDArray[np.int64]:
    """How often the refined label changed in the last epochs, int64 [M], from the bits of
    `alr_fast.history.SampleHistory.changes`."""
    bits = changes & ((1 << epochs) - 1)
    return np.array([((bits >> k) & 1) for k in range(epochs)], dtype=np.int64).sum(0)


def estimated_transition(
    given_labels: NDArray[np.int64], refined_labels: NDArray[np.int64], num_classes: int
) -> NDArray[np.float64]:
    """Transition matrix float64 [K, K] that the refined labels stand for, were they all right.

    See `alr_fast.transition`; its error is as large as theirs.
    """
    return known_transition(refined_labels, given_labels, num_classes)
