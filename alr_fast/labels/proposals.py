"""Other classes for a sample: what a report and annotation tools propose instead of its label."""

import numpy as np
from numpy.typing import NDArray

from alr_fast.labels.scored import ScoredLabels
from alr_fast.labels.suspicion import SUSPICIOUS, distributions

_OTHERS = 5  # classes that are offered first

Choice = tuple[int, float]  # class number and probability


def other_classes(labels: ScoredLabels, rows: NDArray[np.int64]) -> list[tuple[Choice, ...]]:
    """For each of these rows the most probable classes other than the given one, most probable
    first. The first is the refined label unless that is the given one; none has a probability of 0.
    """
    given = labels.labels[rows]
    others = []
    for number, row in enumerate(rows.tolist()):
        # A row at a time: a page of many samples and classes would not fit into memory.
        p = distributions(labels.read(slice(row, row + 1)), given[number : number + 1])[0]
        p[given[number]] = -1
        best = np.argsort(-p, kind="stable")[:_OTHERS]
        others.append(tuple((int(k), float(p[k])) for k in best if p[k] > 0))
    return others


def predictions(labels: ScoredLabels, rows: NDArray[np.int64]) -> list[Choice | None]:
    """For each of these rows, which fit into memory, the class to show an annotator.

    It is the refined label; for a suspicious sample whose refined label is the given one, the next
    most probable class, or None if no other class has a probability.
    """
    given = labels.labels[rows]
    p = distributions(labels.probabilities(rows), given)
    at = np.flatnonzero(labels.scores[rows] > SUSPICIOUS)
    p[at, given[at]] = 0
    best = p.argmax(1)
    highest = p[np.arange(len(p)), best]
    pairs = zip(best.tolist(), highest.tolist(), strict=True)
    return [(k, probability) if probability > 0 else None for k, probability in pairs]
