"""The sample index: which samples there are, their labels, and the ids by which everyone speaks of
them.

A sample's id is its position in the sorted listing of the whole training set. It stays the same
when only a part of the set is used. Inside a run the bank has one row for each sample used;
``index`` in a batch is that row, and ``SampleIndex.ids[row]`` is the id.
"""

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from alr_fast.errors import UserError


@dataclass(frozen=True, eq=False)
class SampleIndex:
    """Samples of one split, one entry a row.

    Attributes:
        ids: Stable sample ids, int64 [N], ascending.
        paths: For each row the path below the root, with forward slashes.
        labels: Given labels, int64 [N]: what training sees.
        clean_labels: True labels, int64 [N], or None where nobody knows them.
        class_names: Names of the K classes; a label is a position in this tuple.
    """

    ids: NDArray[np.int64]
    paths: Sequence[str]
    labels: NDArray[np.int64]
    clean_labels: NDArray[np.int64] | None
    class_names: tuple[str, ...]

    def __post_init__(self) -> None:
        n = len(self.ids)
        for name in ("paths", "labels", "clean_labels"):
            column = getattr(self, name)
            if column is not None and len(column) != n:
                raise ValueError(f"{name} has {len(column)} entries, ids has {n}")
        if n and not (self.labels.min() >= 0 and self.labels.max() < self.num_classes):
            raise ValueError(f"labels must lie in [0, {self.num_classes})")

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def num_classes(self) -> int:
        """Number of classes K."""
        return len(self.class_names)

    def rows_of(self, ids: NDArray[np.int64]) -> NDArray[np.int64]:
        """Rows, int64 [M], of the samples with these ids.

        Raises:
            KeyError: An id that this index does not hold.
        """
        ids = np.asarray(ids, dtype=np.int64)
        rows = np.searchsorted(self.ids, ids)
        found = rows < len(self.ids)
        found[found] = self.ids[rows[found]] == ids[found]
        if not found.all():
            raise KeyError(f"no sample with id {int(ids[~found][0])}")
        return rows

    def with_noisy_labels(self, labels: NDArray[np.int64]) -> "SampleIndex":
        """The same samples with other given labels; the old ones are the clean ones if none are."""
        clean = self.labels if self.clean_labels is None else self.clean_labels
        return replace(self, labels=np.asarray(labels, dtype=np.int64), clean_labels=clean)

    def take(self, rows: NDArray[np.int64]) -> "SampleIndex":
        """The samples of these ascending rows, with their ids."""
        clean = None if self.clean_labels is None else self.clean_labels[rows]
        paths = [self.paths[row] for row in rows]
        return replace(
            self, ids=self.ids[rows], paths=paths, labels=self.labels[rows], clean_labels=clean
        )

    def sample_fingerprint(self) -> str:
        """SHA-256 (hex) of ids and relative paths: equal for the same samples, on any machine."""
        digest = hashlib.sha256(self.ids.astype("<i8").tobytes())
        for path in self.paths:
            digest.update(os.fsencode(path) + b"\0")  # no path holds a zero byte
        return digest.hexdigest()

    def label_fingerprint(self) -> str:
        """SHA-256 (hex) of the given labels."""
        return hashlib.sha256(self.labels.astype("<i8").tobytes()).hexdigest()


def balanced_rows(
    labels: NDArray[np.int64], num_classes: int, limit: int | None, *, option: str
) -> NDArray[np.int64]:
    """Ascending rows, int64 [<= limit], of a subset with the same number of samples from every
    class.

    The choice within a class is random but fixed: it does not depend on the seed of the run, so
    that runs with several seeds train on the same images. A class with too few samples gives all it
    has.

    Args:
        labels: Labels, int64 [N].
        num_classes: Number of classes K.
        limit: Size of the subset, or None for all rows.
        option: Name of the limit in the configuration, for messages.

    Raises:
        UserError: The limit is below the number of classes.
    """
    if limit is None or limit >= len(labels):
        return np.arange(len(labels))
    if limit < num_classes:
        raise UserError(f"--{option} {limit}: below the number of classes, {num_classes}; raise it")
    rng = np.random.default_rng(0)
    chosen = []
    for k in range(num_classes):
        rows = rng.permutation(np.flatnonzero(labels == k))
        chosen.append(rows[: limit // num_classes + (k < limit % num_classes)])
    return np.sort(np.concatenate(chosen))
