"""Samples with their class probabilities and scores of suspicion, read in pieces: the input of
tables, reports and exports.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from alr_fast.labels.suspicion import (
    MOST_CLASSES,
    SUSPICIOUS,
    NoiseEstimate,
    distributions,
    estimate_noise,
    recent_changes,
    row_figures,
    scores,
)
from alr_fast.noise.transition import counted_transition, known_transition, transition_error

# Largest piece: bytes of its float32 rows, of which about five copies are in memory, and samples.
_PIECE_BYTES, _PIECE_ROWS = 32 << 20, 1 << 16

Rows = slice | NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class ScoredLabels:
    """Given labels, class probabilities, and what follows from them.

    Attributes:
        sample_ids: Stable id of each sample, int64 [N], unique.
        labels: Labels given to training, int64 [N].
        class_names: Names of the K classes.
        history: Arrays [N]: ``given_loss``, float32, mean cross entropy of the given label, NaN if
            unknown; ``changes``, int64, a bit for each epoch in which the refined label changed
            (`alr_fast.bank.history.SampleHistory.means`).
        read: ``read(slice)`` returns rows of probabilities, float32 [M, K]. Rows need not sum to
            one, see `alr_fast.labels.suspicion.distributions`.
        paths: Path of each sample; None if the samples have none.
        clean_labels: True labels, int64 [N]; None if unknown.
        method: Method that trained the label bank, or another name for the source of the
            probabilities.
        complete: Whether training with the method finished.
        images: ``images(row)`` returns the image of a sample in any form that a report shows; None
            if there are none.
        given_share: How much of each row is still its given label, see
            `alr_fast.labels.suspicion.predictions`; 0 for predictions, None if unknown.
        files: ``files(row)`` returns the file that an image is read from, absolute, or None if it
            has none of its own; None if no image has one.
    """

    sample_ids: NDArray[np.int64]
    labels: NDArray[np.int64]
    class_names: tuple[str, ...]
    history: dict[str, NDArray[Any]]
    read: Callable[[slice], NDArray[np.float32]]
    paths: Sequence[str] | None = None
    clean_labels: NDArray[np.int64] | None = None
    method: str = ""
    complete: bool = True
    images: Callable[[int], Any] | None = None
    given_share: float | None = None
    files: Callable[[int], Path | None] | None = None

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def num_classes(self) -> int:
        """Number of classes K."""
        return len(self.class_names)

    def slices(self) -> Iterator[slice]:
        """The rows in pieces that fit into memory."""
        for first in range(0, len(self), self._piece):
            yield slice(first, min(first + self._piece, len(self)))

    def ranked_pieces(self) -> Iterator[NDArray[np.int64]]:
        """The rows in pieces that fit into memory, most suspicious first."""
        for first in range(0, len(self), self._piece):
            yield self.order[first : first + self._piece]

    @property
    def _piece(self) -> int:
        return max(min(_PIECE_BYTES // (4 * self.num_classes), _PIECE_ROWS), 1)

    @cached_property
    def noise(self) -> NoiseEstimate:
        """Noise estimated from the probabilities; reads them twice."""
        return estimate_noise(
            lambda: ((self.read(rows), self.labels[rows]) for rows in self.slices()),
            self.num_classes,
            self.given_share,
        )

    @property
    def refined(self) -> NDArray[np.int64]:
        """Refined label of each sample, the most probable class, int64 [N]."""
        return self.noise.refined

    @property
    def refined_share(self) -> float:
        """Share of the labels that were refined to another class."""
        return float((self.refined != self.labels).mean())

    @property
    def noise_rate(self) -> float:
        """Estimated share of wrong labels, which is the share of scores above 1/2; NaN if it cannot
        be estimated, see `estimate_problem`."""
        return self.noise.rate

    @property
    def estimate_problem(self) -> str:
        """Why `noise_rate` cannot be estimated, a clause; empty if it can."""
        return self.noise.problem

    @property
    def suspicious(self) -> int:
        """Number of suspicious samples: of scores above 1/2. 0 if that cannot be estimated."""
        return int((self.scores > SUSPICIOUS).sum())

    @cached_property
    def never_seen(self) -> int:
        """Number of samples that training has not seen although it has seen others, of unreadable
        images for example: nothing is known about their labels."""
        unseen, bare = np.isnan(self.history["given_loss"]), self.noise.bare
        return 0 if bare is None or unseen.all() else int((unseen & bare).sum())

    @cached_property
    def transition(self) -> NDArray[np.float64] | None:
        """Transition matrix [K, K] that belongs to `noise_rate`: row i has the shares of the given
        labels of the samples of class i, counted from the refined labels, or the confident counts.

        None if the rate cannot be estimated, or with more than `MOST_CLASSES` classes.
        """
        if self.num_classes > MOST_CLASSES or self.estimate_problem:
            return None
        if self.noise.joint is not None:
            return counted_transition(self.noise.joint)
        return known_transition(self.refined, self.labels, self.num_classes)

    @cached_property
    def transition_error(self) -> float | None:
        """Error of the matrix, 0 to 2; None without a matrix or without true labels."""
        if self.transition is None or self.clean_labels is None:
            return None
        truth = known_transition(self.clean_labels, self.labels, self.num_classes)
        return transition_error(self.transition, truth)

    @cached_property
    def scores(self) -> NDArray[np.float32]:
        """Score of suspicion of each sample, float32 [N]; reads the probabilities once more."""
        losses = self.history["given_loss"]
        log_odds = [
            self.noise.log_odds(self.read(rows), self.labels[rows], losses[rows])
            for rows in self.slices()
        ]
        return scores(np.concatenate(log_odds), self.noise.rate)

    @cached_property
    def order(self) -> NDArray[np.int64]:
        """Rows of the samples, most suspicious first, ties by id, int64 [N]."""
        return np.lexsort((self.sample_ids, -self.scores))

    def most_suspicious(
        self, number: int, *, above: float = 0.0, least: int = 0
    ) -> NDArray[np.int64]:
        """Rows of the most suspicious samples, most suspicious first, ties by id.

        Args:
            number: Upper limit of samples.
            above: Score that the samples must exceed.
            least: Number of samples that are returned whatever their scores, below the limit.
        """
        order = self.order[:number]
        return order[: max(int((self.scores[order] > above).sum()), least)]

    def samples(self, rows: NDArray[np.int64]) -> list[dict[str, Any]]:
        """The columns of each of these rows, one dictionary per sample."""
        columns = self.columns(rows)
        values = zip(*(column for column in columns.values()), strict=True)
        return [dict(zip(columns, sample, strict=True)) for sample in values]

    def columns(self, rows: Rows | None = None, *, soft: bool = False) -> dict[str, Any]:
        """The columns of the table for some samples, each an array or list [M].

        Args:
            rows: Rows of the samples, a slice or int64 [M]; None for all.
            soft: Whether to add the probabilities of all classes, scaled to a sum of one, as
                ``probabilities``, float32 [M, K].
        """
        rows = slice(0, len(self)) if rows is None else rows
        names, given = self.class_names, self.labels[rows]
        probabilities = self.probabilities(rows)
        figures = row_figures(probabilities, given)
        refined = figures.pop("refined_label")
        table: dict[str, Any] = {"id": self.sample_ids[rows]}
        if self.paths is not None:
            paths = self.paths
            if isinstance(rows, slice):  # faster than one by one
                table["path"] = list(paths[rows])
            else:
                table["path"] = [paths[row] for row in rows.tolist()]
        table |= {
            "given_label": given,
            "refined_label": refined,
            "given_name": [names[k] for k in given],
            "refined_name": [names[k] for k in refined],
            "score": self.scores[rows],
            **figures,
            "changes": recent_changes(self.history["changes"][rows]),
            "given_loss": self.history["given_loss"][rows],
        }
        if self.clean_labels is not None:
            table["clean_label"] = self.clean_labels[rows]
        if soft:
            table["probabilities"] = distributions(probabilities, given)
        return table

    def probabilities(self, rows: Rows) -> NDArray[np.float32]:
        """Rows of probabilities as they were passed, float32 [M, K].

        Args:
            rows: Rows of the samples, a slice or int64 [M].
        """
        if isinstance(rows, slice):
            return self.read(rows)
        found = np.empty((len(rows), self.num_classes), np.float32)
        # Ascending: neighbouring rows of a file are read together.
        positions = np.argsort(rows, kind="stable")
        ends = np.flatnonzero(np.diff(rows[positions]) != 1) + 1
        for run in np.split(positions, ends):
            if len(run):
                found[run] = self.read(slice(int(rows[run[0]]), int(rows[run[-1]]) + 1))
        return found
