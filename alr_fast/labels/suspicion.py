"""Which given labels are probably wrong: a score of suspicion for each sample, and an estimate of
the label noise. Both need only the label bank and the history of training: no model, no images.

The score follows from Bayes' rule. Let q[k] be the probability that k is the true class of a sample
(`belief`), and T[k, y] the probability of the given label y if the true class is k. The odds that
the given label y is wrong are

    sum over k != y of q[k] T[k, y]  to  q[y] T[y, y].

A rival class therefore counts more if its samples often get the label y. If the noise confuses a
few classes with each other, this finds far more wrong labels than q alone. T is estimated from the
label bank (`alr_fast.noise.transition.confident_counts`), and shrunk towards symmetric noise unless
it has a clear pattern (`shrunk`).

The score is high for suspicious labels. cleanlab's label quality score is low for them: compare it
with ``1 - score``.

benchmarks/suspects.py compares the score with its parts and with cleanlab, and the two weights
below were chosen with it: on a seed of the digits that is not in its table, and on the seed of
20,000 photographs of CIFAR-10 that is.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from alr_fast.noise.transition import Matrix, confident_counts, confident_rate

SUSPICIOUS = 0.5  # samples with a higher score are suspicious; their share is the noise rate
LAST_EPOCHS = 10  # in which changes of the refined label are counted
MOST_CLASSES = 2048  # above it no pattern is estimated, a matrix [K, K]
_HISTORY = 0.1  # weight of the training history; the bank has the rest
_PATTERN = 0.4  # largest weight of an estimated pattern
_LEAST = 1e-8  # lower bound of probabilities in logarithms
_CHANCE = 4  # standard errors, see `_by_chance`
# Rows contradict a share of given labels if more than a hundredth of them has so much more of other
# classes than it leaves: they were updated more often, or started otherwise.
_TOLERANCE, _EXCEPTIONS = 1.05, 0.01

Rows = NDArray[np.floating]  # [M, K], of a label bank
Labels = NDArray[np.int64]  # [M]


def row_figures(rows: Rows, given_labels: Labels) -> dict[str, NDArray[Any]]:
    """Statistics of single rows of a label bank.

    Args:
        rows: [M, K]; see `distributions`.
        given_labels: int64 [M].

    Returns:
        Arrays [M]: ``refined_label`` (int64, the most probable class, the lowest on a tie),
        ``given_probability``, ``refined_probability``, ``margin`` (probability of the given label
        minus the largest of another, -1 to 1) and ``entropy`` in nats, float32.
    """
    p = distributions(rows, given_labels)
    at = np.arange(len(p)), given_labels
    refined = p.argmax(1)
    given, highest = p[at], p[at[0], refined]
    entropy = 0 - (p * np.log(np.where(p > 0, p, 1))).sum(1)  # not -0.0
    p[at] = -np.inf
    other = p.max(1)
    margin = given - np.where(np.isfinite(other), other, 0)  # a single class has no other
    return {
        "refined_label": refined,
        "given_probability": given,
        "refined_probability": highest,
        "margin": margin,
        "entropy": entropy,
    }


def distributions(rows: Rows, given_labels: Labels) -> NDArray[np.float32]:
    """The rows scaled to a sum of one, float32 [M, K], a copy.

    A row of zeros, the initial row of early-learning regularisation, becomes one-hot at the given
    label.
    """
    p = rows.astype(np.float32)
    sums = p.sum(1)
    p[np.arange(len(p)), given_labels] += sums <= 0
    p /= np.where(sums > 0, sums, 1)[:, None]
    return p


def predictions(
    p: NDArray[np.float32], given_labels: Labels, given_share: float
) -> NDArray[np.float32]:
    """The mean of the predictions in each row of a label bank, without the given label it began as.

    A row that started one-hot is `s e_y + (1 - s) q` after n updates: the moving average q of the
    predictions, and what is left of the given label y, `s = momentum^n`. Before s is below 1/2, no
    prediction can change the most probable class of the row.

    Args:
        p: float32 [M, K], see `distributions`; changed in place.
        given_labels: int64 [M].
        given_share: s, 0 up to 1, see `alr_fast.losses.Loss.given_share`.

    Returns:
        q, float32 [M, K]; the given label where a row has nothing else.
    """
    if given_share == 0:
        return p
    at = np.arange(len(p)), given_labels
    # From the other classes: in 16 bits, these are exact where the given label is near 1.
    others = (1 - p[at]) / np.float32(1 - given_share)
    p /= (np.float32(1 - given_share) * np.maximum(others, 1))[:, None]
    p[at] = np.maximum(1 - others, 0)
    return p


def belief(
    p: NDArray[np.float32], given_labels: Labels, given_loss: NDArray[np.float32]
) -> NDArray[np.float32]:
    """Probabilities of the true class: the row of the bank combined with the training history.

    The probability of the given label is a weighted geometric mean of that in the bank (weight 0.9)
    and of `exp(-given_loss)`, the model's probability over all epochs (0.1). The probabilities of
    the other classes keep their proportions.

    Args:
        p: float32 [M, K], see `distributions`.
        given_labels: int64 [M].
        given_loss: float32 [M], mean cross entropy of the given label over the epochs; if NaN, the
            bank alone counts.

    Returns:
        float32 [M, K].
    """
    at = np.arange(len(p)), given_labels
    history = np.where(np.isnan(given_loss), p[at], np.exp(-given_loss))
    own = p[at] ** (1 - _HISTORY) * history**_HISTORY
    others = np.maximum(1 - p[at], _LEAST)
    q = (p * ((1 - own) / others)[:, None]).astype(np.float32, copy=False)
    q[at] = own
    return q


@dataclass(frozen=True, eq=False)
class NoiseEstimate:
    """Label noise, estimated from a label bank.

    Attributes:
        refined: Refined labels, int64 [N].
        rate: Estimated share of wrong labels; NaN if it cannot be estimated.
        pattern: T of the score, float32 [K, K] of (given, true), see `shrunk`; None for symmetric
            noise.
        problem: Why the rate cannot be estimated, a clause; empty if it can.
        given_share: Share of the given label that is removed from the rows, see `predictions`.
        joint: Confident counts, float64 [K, K] of (given, true), if the rate is theirs; else None.
        bare: Whether a row has nothing but its given label, bool [N].
    """

    refined: Labels
    rate: float
    pattern: NDArray[np.float32] | None
    problem: str = ""
    given_share: float = 0.0
    joint: Matrix | None = None
    bare: NDArray[np.bool_] | None = None

    def log_odds(
        self, rows: Rows, given_labels: Labels, given_loss: NDArray[np.float32]
    ) -> NDArray[np.float32]:
        """Logarithm of the odds that the given labels are wrong, float32 [M].

        Args:
            rows: [M, K] of the label bank.
            given_labels: int64 [M].
            given_loss: float32 [M], see `belief`.
        """
        p = predictions(distributions(rows, given_labels), given_labels, self.given_share)
        weights = belief(p, given_labels, given_loss)
        if self.pattern is not None:
            weights *= self.pattern[given_labels]
        at = np.arange(len(weights)), given_labels
        own = weights[at] + np.float32(_LEAST)
        weights[at] = 0
        log_odds: NDArray[np.float32] = np.log((weights.sum(1) + np.float32(_LEAST)) / own)
        return log_odds


def estimate_noise(
    pieces: Callable[[], Iterable[tuple[Rows, Labels]]],
    num_classes: int,
    given_share: float | None = None,
) -> NoiseEstimate:
    """Estimates the noise from a label bank that is read twice, in pieces.

    The rate is the larger of two shares that are rather too small than too large: that of the
    refined labels which differ from the given ones, and, while the rows still contain the given
    labels, that of the confident counts of the `predictions` in them. With more than `MOST_CLASSES`
    classes no pattern is estimated, and a bank without given labels in its rows is read once.

    Args:
        pieces: Called for each pass; returns rows [M, K] and their given labels [M].
        num_classes: Number of classes K.
        given_share: See `predictions`; 0 for predictions, None if unknown.
    """
    known = given_share is not None and given_share < 1
    share = given_share if known and given_share is not None else 0.0
    found: list[_Piece] = []

    def scaled() -> Iterator[tuple[NDArray[np.float32], Labels]]:
        first_pass = not found
        for rows, labels in pieces():
            p = distributions(rows, labels)
            if first_pass:
                own = p[np.arange(len(p)), labels]
                found.append(_Piece(labels, p.argmax(1), own))
            yield predictions(p, labels, share), labels

    joint, pattern, confident = None, None, 0.0
    if num_classes <= MOST_CLASSES:
        joint = confident_counts(scaled, num_classes)
        pattern = shrunk(joint.T)[0].T.astype(np.float32)
        confident = 1 - np.trace(joint) / joint.sum() if joint.any() else 0.0
    elif share:
        confident = confident_rate(scaled, num_classes)
    else:
        for _ in scaled():
            pass
    whole = _Piece(*(np.concatenate(parts) for parts in zip(*found, strict=True)))
    if share and (1 - whole.own > _TOLERANCE * (1 - share)).mean() > _EXCEPTIONS:
        return estimate_noise(pieces, num_classes)  # the rows tell another story
    problem = ""
    if num_classes > 1 and (whole.own == 1).all():
        problem = "the rows are the given labels alone, none has been refined"
    elif num_classes > 1 and not known and (whole.own > 0.5).all():
        problem = "every row has its given label with more than 1/2, as after too few epochs"
    confident = round(confident * len(whole.own)) / len(whole.own) if confident > 0 else 0.0
    changed = float((whole.given != whole.refined).mean())
    counted = share > 0 and confident > changed
    if counted and not problem and joint is not None and _by_chance(joint):
        problem = "the predictions agree with the labels hardly more than chance"
    return NoiseEstimate(
        refined=whole.refined,
        rate=float("nan") if problem else confident if counted else changed,
        pattern=pattern,
        problem=problem,
        given_share=share,
        joint=joint if counted else None,
        bare=whole.own == 1,
    )


def _by_chance(joint: Matrix) -> bool:
    """Whether given labels and predictions, [K, K] counts, agree no more often than independent
    ones would: by less than four standard errors. A model that knows nothing finds every label
    wrong."""
    total = joint.sum()
    agreeing = np.trace(joint) / total
    expected = float(joint.sum(0) @ joint.sum(1)) / total**2
    error = np.sqrt(expected * (1 - expected) / total)
    return bool(agreeing - expected < _CHANCE * error)


class _Piece(NamedTuple):
    """What is kept of each row, [M]."""

    given: Labels
    refined: Labels
    own: NDArray[np.float32]  # probability of the given label


def shrunk(counts: Matrix) -> tuple[Matrix, float]:
    """T of the score: probability of a given label for a true class, up to factors that cancel.

    Confusions of the model look like noise between similar classes. Under symmetric noise all wrong
    labels are about equally frequent, and any pattern in the counts comes from the model: the
    matrix S of symmetric noise of the same rate is then better than the estimate E. The cases
    differ in v, the relative variance of the counts off the diagonal minus that of counting alone
    (Poisson: 1 / mean): `T = E^b S^(1 - b)` with `b = 0.4 v^2 / (1 + v^2)`. (In the runs that the
    weights were chosen on, v was at most 0.22 under symmetric noise, 0.6 to 4.3 under
    instance-dependent noise, and 15 or more under asymmetric noise.)

    Args:
        counts: float64 [K, K] of (true, given).

    Returns:
        T, all entries above 0; and `v^2 / (1 + v^2)`.
    """
    k = len(counts)
    if k == 1:
        return np.ones((1, 1)), 0.0
    off = counts[~np.eye(k, dtype=bool)]
    mean = off.mean()
    v = max(off.var() / mean**2 - 1 / mean, 0.0) if mean > 0 else 0.0
    trust = v**2 / (1 + v**2)
    estimate = counts + 1  # uniform for a class without samples
    estimate /= estimate.sum(1, keepdims=True)
    wrong = 1 - np.diag(estimate).mean()
    symmetric = np.full((k, k), wrong / (k - 1))
    np.fill_diagonal(symmetric, 1 - wrong)
    weight = _PATTERN * trust
    return estimate**weight * symmetric ** (1 - weight), trust


def scores(log_odds: NDArray[np.float32], rate: float) -> NDArray[np.float32]:
    """Scores of suspicion from 0 to 1, in the order of the log-odds.

    The log-odds are shifted so that the share of scores above 1/2 is the estimated noise rate. How
    long a label bank was refined affects its confidence, but hardly the order of its samples.

    Args:
        log_odds: float32 [N], of all samples.
        rate: Share of wrong labels, 0 to 1; NaN if unknown, and none is above 1/2.
    """
    if not len(log_odds):
        return log_odds
    rate = 0.0 if np.isnan(rate) else rate
    trusted = len(log_odds) - round(rate * len(log_odds))  # number of samples up to the limit
    ordered = np.sort(log_odds)
    if trusted == len(ordered):
        limit = ordered[-1]
    elif trusted == 0:
        limit = ordered[0] - 1
    else:
        limit = (ordered[trusted - 1] + ordered[trusted]) / 2
    shifted: NDArray[np.float64] = limit - log_odds.astype(np.float64)
    return (1 / (1 + np.exp(shifted))).astype(np.float32)


def recent_changes(changes: NDArray[np.int64], epochs: int = LAST_EPOCHS) -> NDArray[np.int64]:
    """Number of changes of the refined label in the last epochs, int64 [M].

    Args:
        changes: int64 [M], see `alr_fast.bank.history.SampleHistory`.
        epochs: Number of epochs, at most `alr_fast.bank.history.EPOCHS`.
    """
    count: NDArray[np.int64] = ((changes[:, None] >> np.arange(epochs)) & 1).sum(1)
    return count
