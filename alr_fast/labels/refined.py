"""Samples with their rows of a label bank, read in pieces: the input of tables and reports."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from alr_fast.data.datasets import Split
from alr_fast.data.index import SampleIndex
from alr_fast.labels.suspicion import (
    MOST_CLASSES,
    NoiseEstimate,
    distributions,
    estimate_noise,
    recent_changes,
    row_figures,
    scores,
)
from alr_fast.noise.transition import known_transition, transition_error

# Largest piece: bytes of its float32 rows, of which about five copies are in memory, and samples.
_PIECE_BYTES, _PIECE_ROWS = 32 << 20, 1 << 16


@dataclass(frozen=True, eq=False)
class RefinedLabels:
    """A label bank with the samples of its rows, ascending by id.

    Attributes:
        method: Method that trained with the bank.
        split: The samples, with the labels given to training.
        history: `alr_fast.bank.history.COLUMNS`, arrays [N].
        read: ``read(rows)`` returns rows of the bank, float32 [M, K], for a slice.
        complete: Whether training with the method finished.
    """

    method: str
    split: Split
    history: dict[str, NDArray[Any]]
    read: Callable[[slice], NDArray[np.float32]]
    complete: bool = True

    @property
    def index(self) -> SampleIndex:
        """Ids, paths, labels and class names."""
        return self.split.index

    def slices(self) -> Iterator[slice]:
        """The rows in pieces that fit into memory."""
        step = max(min(_PIECE_BYTES // (4 * self.index.num_classes), _PIECE_ROWS), 1)
        for first in range(0, len(self.index), step):
            yield slice(first, min(first + step, len(self.index)))

    @cached_property
    def noise(self) -> NoiseEstimate:
        """Noise estimated from the bank; reads the bank twice."""
        return estimate_noise(
            lambda: ((self.read(rows), self.index.labels[rows]) for rows in self.slices()),
            self.index.num_classes,
        )

    @property
    def refined(self) -> NDArray[np.int64]:
        """Refined label of each sample, int64 [N]."""
        return self.noise.refined

    @cached_property
    def transition(self) -> NDArray[np.float64] | None:
        """Transition matrix [K, K] if the refined labels are right.

        None with more than `MOST_CLASSES` classes.
        """
        if self.index.num_classes > MOST_CLASSES:
            return None
        return known_transition(self.refined, self.index.labels, self.index.num_classes)

    @cached_property
    def transition_error(self) -> float | None:
        """Error of the matrix, 0 to 2; None without a matrix or without true labels."""
        index = self.index
        if self.transition is None or index.clean_labels is None:
            return None
        truth = known_transition(index.clean_labels, index.labels, index.num_classes)
        return transition_error(self.transition, truth)

    @cached_property
    def scores(self) -> NDArray[np.float32]:
        """Score of suspicion of each sample, float32 [N]; reads the bank once more."""
        losses = self.history["given_loss"]
        log_odds = [
            self.noise.log_odds(self.read(rows), self.index.labels[rows], losses[rows])
            for rows in self.slices()
        ]
        return scores(np.concatenate(log_odds), self.noise.rate)

    def most_suspicious(self, number: int, *, above: float = 0.0) -> NDArray[np.int64]:
        """Rows of the most suspicious samples, most suspicious first, ties by id.

        Args:
            number: Upper limit of samples.
            above: Score that the samples must exceed.
        """
        order = np.argsort(-self.scores, kind="stable")[:number]
        return order[self.scores[order] > above]

    def samples(self, rows: NDArray[np.int64]) -> list[dict[str, Any]]:
        """The columns of each of these rows, one dictionary per sample."""
        return [
            {name: column[0] for name, column in self.columns(slice(row, row + 1)).items()}
            for row in rows.tolist()
        ]

    def columns(self, rows: slice, *, soft: bool = False) -> dict[str, Any]:
        """The columns of an export for some samples, each an array or list [M].

        Args:
            rows: Rows of the samples.
            soft: Whether to add the row of the bank, scaled to a sum of one, as ``probabilities``,
                float32 [M, K].
        """
        index, names = self.index, self.index.class_names
        bank, given = self.read(rows), self.index.labels[rows]
        figures = row_figures(bank, given)
        refined = figures.pop("refined_label")
        table: dict[str, Any] = {
            "id": index.sample_ids[rows],
            "path": [index.paths[row] for row in range(rows.start, rows.stop)],
            "given_label": given,
            "refined_label": refined,
            "given_name": [names[k] for k in given],
            "refined_name": [names[k] for k in refined],
            "score": self.scores[rows],
            **figures,
            "changes": recent_changes(self.history["changes"][rows]),
            "given_loss": self.history["given_loss"][rows],
        }
        if index.clean_labels is not None:
            table["clean_label"] = index.clean_labels[rows]
        if soft:
            table["probabilities"] = distributions(bank, given)
        return table
