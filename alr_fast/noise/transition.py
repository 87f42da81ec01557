"""Transition matrices of label noise, known or estimated: `T[i, j]` is the probability of the given
label j if the true label is i. Losses with noise correction need one.

All matrices are float64 [K, K] with rows that sum to one.
"""

from collections.abc import Callable, Iterable, Iterator

import numpy as np
from numpy.typing import NDArray

from alr_fast.errors import UserError

Matrix = NDArray[np.float64]
Pieces = Callable[[], Iterable[tuple[NDArray[np.floating], NDArray[np.int64]]]]


def symmetric_transition(num_classes: int, rate: float) -> Matrix:
    """`(1 - rate) I + (rate / K) J`, K = ``num_classes``: a share ``rate`` is redrawn from all."""
    return (1 - rate) * np.eye(num_classes) + rate / num_classes


def known_transition(
    clean_labels: NDArray[np.int64], given_labels: NDArray[np.int64], num_classes: int
) -> Matrix:
    """The realised shares if the true labels are known.

    Args:
        clean_labels: True labels, int64 [N].
        given_labels: Given labels, int64 [N].
        num_classes: Number of classes K.

    Returns:
        The matrix; a class without samples keeps its label.

    Raises:
        UserError: A label outside [0, K).
    """
    # Without the check, a label out of range would count for another class.
    _check_labels(clean_labels, num_classes)
    _check_labels(given_labels, num_classes)
    counts = np.bincount(clean_labels * num_classes + given_labels, minlength=num_classes**2)
    return _with_row_sums_of_one(counts.reshape(num_classes, num_classes).astype(np.float64))


def estimate_anchor(probabilities: NDArray[np.floating], *, percentile: float = 97.0) -> Matrix:
    """Estimate from anchor points (Patrini et al., CVPR 2017).

    A sample that a model trained on the noisy labels confidently assigns to class i counts as a
    clean example of i, and the prediction for it is row i: `T[i] = p(x_i)`, where x_i is the sample
    at a percentile of `p_i` over all samples. The maximum, percentile 100, may be an outlier; the
    paper uses 97.

    Args:
        probabilities: Predictions of the model, [N, K], rows sum to one.
        percentile: Percentile of the sample, 0 to 100.

    Raises:
        UserError: No samples, or a percentile outside [0, 100].
    """
    if not 0 <= percentile <= 100:
        raise UserError("must lie between 0 and 100", argument="percentile", value=percentile)
    p = _checked(probabilities)
    rank = round((len(p) - 1) * percentile / 100)
    anchors = np.argsort(p, axis=0, kind="stable")[rank]  # a sample for each class
    return _with_row_sums_of_one(p[anchors])


def estimate_confident(
    probabilities: NDArray[np.floating], given_labels: NDArray[np.int64]
) -> Matrix:
    """Estimate from confident counts (Northcutt et al., Journal of AI Research 2021).

    The true class of a sample counts as j, the class of the highest probability among those with
    `p_j >= t_j`, where t_j is the mean of `p_j` over the samples with the given label j. The counts
    for each given label are scaled to its number of samples, then each true class is scaled to a
    sum of one. Out-of-sample predictions are recommended; those of a model that has not yet
    memorised wrong labels come close.

    Args:
        probabilities: Predictions of the model, [N, K], rows sum to one.
        given_labels: Given labels, int64 [N].

    Returns:
        The matrix; a class without counted samples keeps its label.

    Raises:
        UserError: No samples, or a label outside [0, K).
    """
    p = _checked(probabilities)
    _check_labels(given_labels, p.shape[1])
    return counted_transition(confident_counts(lambda: [(p, given_labels)], p.shape[1]))


def counted_transition(joint: Matrix) -> Matrix:
    """The matrix of the counts [K, K] of (given, true); a class without counts keeps its label."""
    return _with_row_sums_of_one(joint.T)


def confident_counts(pieces: Pieces, num_classes: int) -> Matrix:
    """The counts of `estimate_confident`; reads the samples twice, in pieces.

    Args:
        pieces: Called for each of the two passes; returns probabilities [M, K] and their given
            labels [M].
        num_classes: Number of classes K.

    Returns:
        float64 [K, K], (given, true): each row sums to the number of samples with this given label,
        or to 0 if none of them was counted.
    """
    sizes, confident = _confident(pieces, num_classes)
    joint = np.zeros((num_classes, num_classes))
    for labels, chosen in confident:
        np.add.at(joint, (labels, chosen), 1.0)
    rows = joint.sum(axis=1, keepdims=True)
    return joint * np.divide(sizes[:, None], rows, out=np.zeros_like(rows), where=rows > 0)


def confident_rate(pieces: Pieces, num_classes: int) -> float:
    """The share of wrong labels in `confident_counts`, for so many classes that a matrix [K, K]
    does not fit into memory; arguments as there. NaN if no sample is counted.
    """
    sizes, confident = _confident(pieces, num_classes)
    counted, wrong = np.zeros(num_classes), np.zeros(num_classes)
    for labels, chosen in confident:
        counted += np.bincount(labels, minlength=num_classes)
        wrong += np.bincount(labels[labels != chosen], minlength=num_classes)
    seen = counted > 0
    if not seen.any():
        return float("nan")
    return float((sizes[seen] * wrong[seen] / counted[seen]).sum() / sizes[seen].sum())


def _confident(
    pieces: Pieces, num_classes: int
) -> tuple[NDArray[np.float64], Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]]:
    """The number of samples of each given label, [K], and in pieces the given labels and the most
    probable of the classes that reach their threshold, of the samples that have one.
    """
    sizes, sums = np.zeros(num_classes), np.zeros(num_classes)
    for p, labels in pieces():
        sizes += np.bincount(labels, minlength=num_classes)
        own = p[np.arange(len(p)), labels].astype(np.float64)
        sums += np.bincount(labels, own, minlength=num_classes)
    thresholds = np.divide(sums, sizes, out=np.full(num_classes, np.inf), where=sizes > 0)

    def second_pass() -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
        for p, labels in pieces():
            confident = np.where(p >= thresholds, p, -1.0)
            chosen = confident.argmax(axis=1)
            counted = confident[np.arange(len(p)), chosen] >= 0
            yield labels[counted], chosen[counted]

    return sizes, second_pass()


def transition_error(estimate: Matrix, truth: Matrix) -> float:
    """Mean over the classes of `sum_j |estimate - truth|`: 0 to 2, twice the misplaced share."""
    return float(np.abs(estimate - truth).sum(axis=1).mean())


def _checked(probabilities: NDArray[np.floating]) -> NDArray[np.float64]:
    p = np.asarray(probabilities, dtype=np.float64)
    if p.ndim != 2 or 0 in p.shape:
        raise UserError(f"probabilities of shape {p.shape}: pass a row for each sample")
    return p


def _check_labels(labels: NDArray[np.int64], num_classes: int) -> None:
    if len(labels) and not 0 <= labels.min() <= labels.max() < num_classes:
        raise UserError(
            f"labels {labels.min()} to {labels.max()}: must lie in 0 to {num_classes - 1}, the "
            "classes of the matrix"
        )


def _with_row_sums_of_one(counts: Matrix) -> Matrix:
    sums = counts.sum(axis=1, keepdims=True)
    shares = np.divide(counts, sums, out=np.zeros_like(counts), where=sums > 0)
    return np.where(sums > 0, shares, np.eye(len(counts)))
