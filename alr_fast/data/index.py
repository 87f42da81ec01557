"""The sample index: which samples there are, their labels, and the ids by which everyone speaks of
them.

A sample's id is its position in the list of the whole split as the data set gives it, or in the
sorted listing where there is no list. It stays the same when only a part of the set is used. Inside
a run the bank has one row for each sample used; ``index`` in a batch is that row, and
``SampleIndex.sample_ids[row]`` is the id.
"""

import hashlib
import os
from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from alr_fast.errors import UserError


class PathTable(Sequence[str]):
    """Relative paths as bytes and offsets: a list of millions of strings costs 100 bytes each more,
    in every worker process.

    Args:
        blob: All paths in the file system's encoding, each followed by a zero byte, uint8.
        starts: First byte of each path in ``blob``, int64 [N].
        ends: One past the zero byte of each path, int64 [N].
    """

    def __init__(
        self, blob: NDArray[np.uint8], starts: NDArray[np.int64], ends: NDArray[np.int64]
    ) -> None:
        self.blob = blob
        self.starts = starts
        self.ends = ends

    @classmethod
    def of(cls, paths: Iterable[str | bytes]) -> "PathTable":
        """The table of these paths, which are read one by one.

        Raises:
            ValueError: A path is empty or holds a zero byte.
        """
        blob = bytearray()
        lengths = array("q")
        for path in paths:
            encoded = os.fsencode(path)
            if not encoded or b"\0" in encoded:
                raise ValueError(f"not a path: {path!r}")
            blob += encoded
            blob.append(0)
            lengths.append(len(encoded) + 1)
        offsets = np.zeros(len(lengths) + 1, dtype=np.int64)
        np.cumsum(np.frombuffer(lengths, dtype=np.int64), out=offsets[1:])
        return cls(np.frombuffer(blob, dtype=np.uint8), offsets[:-1], offsets[1:])

    def __len__(self) -> int:
        return len(self.starts)

    def __getitem__(self, row):
        if isinstance(row, slice):
            return [self[i] for i in range(*row.indices(len(self)))]
        return os.fsdecode(self.blob[self.starts[row] : self.ends[row] - 1].tobytes())

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and list(self) == list(other)

    __hash__ = None

    def take(self, rows: NDArray[np.int64]) -> "PathTable":
        """The paths of these rows; the bytes are shared, not copied."""
        return PathTable(self.blob, self.starts[rows], self.ends[rows])

    def update(self, digest) -> None:
        """Feeds every path with its zero byte to a hash, in order."""
        step = 1 << 16
        for first in range(0, len(self), step):
            starts, ends = self.starts[first : first + step], self.ends[first : first + step]
            if (starts[1:] == ends[:-1]).all():  # one piece
                digest.update(self.blob[starts[0] : ends[-1]].tobytes())
            else:
                pairs = zip(starts.tolist(), ends.tolist(), strict=True)
                digest.update(b"".join([self.blob[a:b].tobytes() for a, b in pairs]))


@dataclass(frozen=True, eq=False)
class SampleIndex:
    """Samples of one split, one entry a row.

    Attributes:
        sample_ids: Stable sample ids, int64 [N], ascending.
        paths: For each row the path below the root, with forward slashes: a `PathTable`, or any
            sequence of paths, which becomes one.
        labels: Given labels, int64 [N]: what training sees.
        clean_labels: True labels, int64 [N], or None where nobody knows them.
        class_names: Names of the K classes; a label is a position in this tuple.
    """

    sample_ids: NDArray[np.int64]
    paths: PathTable
    labels: NDArray[np.int64]
    clean_labels: NDArray[np.int64] | None
    class_names: tuple[str, ...]

    def __post_init__(self) -> None:
        if not isinstance(self.paths, PathTable):
            object.__setattr__(self, "paths", PathTable.of(self.paths))
        n = len(self.sample_ids)
        for name in ("paths", "labels", "clean_labels"):
            column = getattr(self, name)
            if column is not None and len(column) != n:
                raise ValueError(f"{name} has {len(column)} entries, sample_ids has {n}")
        if n and not (self.labels.min() >= 0 and self.labels.max() < self.num_classes):
            raise ValueError(f"labels must lie in [0, {self.num_classes})")

    def __len__(self) -> int:
        return len(self.sample_ids)

    @property
    def num_classes(self) -> int:
        """Number of classes K."""
        return len(self.class_names)

    def rows_of(self, sample_ids: NDArray[np.int64]) -> NDArray[np.int64]:
        """Rows, int64 [M], of the samples with these ids.

        Raises:
            KeyError: An id that this index does not hold.
        """
        sample_ids = np.asarray(sample_ids, dtype=np.int64)
        rows = np.searchsorted(self.sample_ids, sample_ids)
        found = rows < len(self.sample_ids)
        found[found] = self.sample_ids[rows[found]] == sample_ids[found]
        if not found.all():
            raise KeyError(f"no sample with id {int(sample_ids[~found][0])}")
        return rows

    def with_noisy_labels(self, labels: NDArray[np.int64]) -> "SampleIndex":
        """The same samples with other given labels; the old ones are the clean ones if none are."""
        clean = self.labels if self.clean_labels is None else self.clean_labels
        return replace(self, labels=np.asarray(labels, dtype=np.int64), clean_labels=clean)

    def take(self, rows: NDArray[np.int64]) -> "SampleIndex":
        """The samples of these ascending rows, with their ids."""
        clean = None if self.clean_labels is None else self.clean_labels[rows]
        return replace(
            self,
            sample_ids=self.sample_ids[rows],
            paths=self.paths.take(rows),
            labels=self.labels[rows],
            clean_labels=clean,
        )

    def sample_fingerprint(self) -> str:
        """SHA-256 (hex) of ids and relative paths: equal for the same samples, on any machine."""
        digest = hashlib.sha256(self.sample_ids.astype("<i8").tobytes())
        self.paths.update(digest)
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
