"""Which given labels are probably wrong: a score of suspicion for each sample, and what the refined
labels say of the noise as a whole. It reads what training has left: no net is trained, no image
read.

The score follows from Bayes' rule. Let q be what is believed of a sample (`belief`) and T[k, y] how
probable the label y is where k is true. The label y is wrong with the odds

    sum over k != y of q[k] T[k, y]  to  q[y] T[y, y].

So a rival counts for much where labels of its class do become y, and for little where they do not:
under noise that confuses a few classes with each other this finds far more than q alone. T is
estimated from the label bank (`alr_fast.noise.transition.confident_counts`), and followed in part, as far
as it has a pattern: see `shrunk`. benchmarks/suspects.py measures the score beside its parts and
beside cleanlab. The two weights below were chosen there, on one seed of the digits and of 20,000
photographs of CIFAR-10, which are not those of the tables.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from alr_fast.noise.transition import Matrix, confident_counts

SUSPICIOUS = 0.5  # scores above it are suspicious: as many as the estimated noise rate says
LAST_EPOCHS = 10  # over which changes of the refined label are counted
MOST_CLASSES = 2048  # of which a pattern is estimated, a matrix [K, K]
_HISTORY = 0.1  # weight of what the net said on the way, beside the bank
_PATTERN = 0.4  # how far an estimated pattern is followed at most
_LEAST = 1e-8  # of a probability, where a logarithm is taken

Rows = NDArray[np.floating]  # [M, K], of a label bank
Labels = NDArray[np.int64]  # [M]


def row_figures(rows: Rows, given_labels: Labels) -> dict[str, NDArray]:
    """What single rows of a label bank say.

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
    margin = given - np.where(np.isfinite(other), other, 0)  # of one class alone: no other
    return {
        "refined_label": refined,
        "given_probability": given,
        "refined_probability": highest,
        "margin": margin,
        "entropy": entropy,
    }


def distributions(rows: Rows, given_labels: Labels) -> NDArray[np.float32]:
    """The rows scaled to a sum of one, float32 [M, K], a copy.

    A row of zeros, which early-learning regularisation starts with, knows nothing yet and stands
    for its given label.
    """
    p = rows.astype(np.float32)
    sums = p.sum(1)
    p[np.arange(len(p)), given_labels] += sums <= 0
    p /= np.where(sums > 0, sums, 1)[:, None]
    return p


def belief(
    p: NDArray[np.float32], given_labels: Labels, given_loss: NDArray[np.float32]
) -> NDArray[np.float32]:
    """What is believed of each sample: its row of the bank, with what the net said on the way.

    The probability of the given label is a geometric mean of the bank's (weight 0.9) and of
    `exp(-given_loss)`, the net's over all epochs (0.1); those of the others keep their proportions.

    Args:
        p: float32 [M, K], see `distributions`.
        given_labels: int64 [M].
        given_loss: float32 [M], mean cross entropy of the given label over the epochs; where it is
            NaN the bank alone counts.
    """
    at = np.arange(len(p)), given_labels
    said = np.where(np.isnan(given_loss), p[at], np.exp(-given_loss))
    own = p[at] ** (1 - _HISTORY) * said**_HISTORY
    others = np.maximum(1 - p[at], _LEAST)
    q = p * ((1 - own) / others)[:, None]
    q[at] = own
    return q


@dataclass(frozen=True, eq=False)
class NoiseEstimate:
    """What the refined labels say of the label noise.

    Attributes:
        refined: Refined labels, int64 [N].
        rate: Share of the given labels that are wrong, were the refined ones right.
        pattern: T of the score by given label, float32 [K, K], see `shrunk`; None for that of
            symmetric noise.
    """

    refined: Labels
    rate: float
    pattern: NDArray[np.float32] | None

    def log_odds(
        self, rows: Rows, given_labels: Labels, given_loss: NDArray[np.float32]
    ) -> NDArray[np.float32]:
        """Logarithm of the odds that the given labels are wrong, float32 [M].

        Args:
            rows: [M, K] of the label bank.
            given_labels: int64 [M].
            given_loss: float32 [M], see `belief`.
        """
        weights = belief(distributions(rows, given_labels), given_labels, given_loss)
        if self.pattern is not None:
            weights *= self.pattern[given_labels]
        at = np.arange(len(weights)), given_labels
        own = weights[at] + np.float32(_LEAST)
        weights[at] = 0
        return np.log((weights.sum(1) + np.float32(_LEAST)) / own)


def estimate_noise(
    pieces: Callable[[], Iterable[tuple[Rows, Labels]]], num_classes: int
) -> NoiseEstimate:
    """Estimates the noise from a label bank that is read twice, piece by piece.

    With more than `MOST_CLASSES` classes no pattern is looked for, and it is read once.

    Args:
        pieces: Called for each reading; gives rows [M, K] and their given labels [M].
        num_classes: Number of classes K.
    """
    refined: list[NDArray[np.int64]] = []
    given: list[Labels] = []

    def scaled() -> Iterator[tuple[NDArray[np.float32], Labels]]:
        first = not given
        for rows, labels in pieces():
            p = distributions(rows, labels)
            if first:
                refined.append(p.argmax(1))
                given.append(labels)
            yield p, labels

    pattern = None
    if num_classes <= MOST_CLASSES:
        matrix, _ = shrunk(confident_counts(scaled, num_classes).T)
        pattern = matrix.T.astype(np.float32)
    else:
        for _ in scaled():
            pass
    labels, better = np.concatenate(given), np.concatenate(refined)
    return NoiseEstimate(refined=better, rate=float((labels != better).mean()), pattern=pattern)


def shrunk(counts: Matrix) -> tuple[Matrix, float]:
    """T of the score: how probable a label is where a class is true, up to factors that cancel.

    Confusions of the net look like noise between similar classes. Under symmetric noise all wrong
    labels are about as frequent, and what pattern is left is the net's own: then the matrix S of
    symmetric noise of the same rate is better than the estimate E. The relative variance v of the
    counts off the diagonal, less what counting alone gives (Poisson's 1 / mean), tells which it is:
    `T = E^b S^(1 - b)` with `b = 0.4 v^2 / (1 + v^2)`. (In the runs that the weights were chosen on
    v was at most 0.22 under symmetric noise, 0.6 to 4.3 under instance-dependent and 15 or more
    under asymmetric noise.)

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
    estimate = counts + 1  # a class without samples is as likely to become any other
    estimate /= estimate.sum(1, keepdims=True)
    wrong = 1 - np.diag(estimate).mean()
    symmetric = np.full((k, k), wrong / (k - 1))
    np.fill_diagonal(symmetric, 1 - wrong)
    weight = _PATTERN * trust
    return estimate**weight * symmetric ** (1 - weight), trust


def scores(log_odds: NDArray[np.float32], rate: float) -> NDArray[np.float32]:
    """Scores of suspicion from 0 to 1, in the order of the log-odds.

    They are shifted so that as many samples are above 1/2 as the estimated noise rate says: how
    sure a label bank is depends on how long it was refined, its order much less.

    Args:
        log_odds: float32 [N], of all samples.
        rate: Share of wrong labels, 0 to 1.
    """
    if not len(log_odds):
        return log_odds
    place = len(log_odds) - round(rate * len(log_odds))  # so many are not suspicious
    ordered = np.sort(log_odds)
    if place == len(ordered):
        limit = ordered[-1]
    elif place == 0:
        limit = ordered[0] - 1
    else:
        limit = (ordered[place - 1] + ordered[place]) / 2
    return (1 / (1 + np.exp(limit - log_odds.astype(np.float64)))).astype(np.float32)


def recent_changes(changes: NDArray[np.int64], epochs: int = LAST_EPOCHS) -> NDArray[np.int64]:
    """How often the refined label changed in the last epochs, int64 [M].

    Args:
        changes: int64 [M], see `alr_fast.bank.history.SampleHistory`.
        epochs: How many, up to `alr_fast.bank.history.EPOCHS`.
    """
    return sum(((changes >> k) & 1 for k in range(epochs)), np.zeros_like(changes))
