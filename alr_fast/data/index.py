"""The sample index: samples, labels, and the numbers that identify samples.

A ``sample_id`` is the position of a sample in the data set's list of the whole split, or in the
sorted listing if there is no list. It stays the same when only a part of the split is used. A
``row`` is the position in the part that is used: ``SampleIndex.sample_ids[row]`` is the id.
"""

import hashlib
import os
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import SupportsIndex, overload

import numpy as np
from numpy.typing import ArrayLike, NDArray

from alr_fast.data.columns import check_paths, read_column
from alr_fast.errors import UserError
from alr_fast.utils.random import stream

_CHUNK = 1 << 16  # paths that are converted at once


class PathTable(Sequence[str]):
    """Relative paths as bytes and offsets.

    In a list of strings, each of the millions of paths would take 100 bytes more, in every worker
    process.

    Args:
        blob: All paths in the encoding of the file system, each followed by a zero byte, uint8.
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
        """Builds a table; reads the paths one by one.

        Raises:
            ValueError: A path is empty or contains a zero byte.
        """
        blob = bytearray()
        ends = array("q")
        for path in paths:
            encoded = os.fsencode(path)
            if not encoded or b"\0" in encoded:
                raise ValueError(f"not a path: {path!r}")
            blob += encoded
            blob.append(0)
            ends.append(len(blob))
        offsets = np.concatenate([[0], np.frombuffer(ends, dtype=np.int64)])
        return cls(np.frombuffer(blob, dtype=np.uint8), offsets[:-1], offsets[1:])

    @classmethod
    def load(cls, blob: Path, offsets: Path) -> "PathTable":
        """Maps stored paths into memory: they take the most, and stay on disk until they are used.

        Args:
            blob: .npy file of all paths, each followed by a zero byte.
            offsets: .npy file of the first byte of each, then the number of bytes.

        Raises:
            OSError, ValueError: A file is missing or damaged.
        """
        places = read_column(offsets, np.int64)
        check_paths(blob, places)
        return cls(read_column(blob, np.uint8, mapped=True), places[:-1], places[1:])

    def __len__(self) -> int:
        return len(self.starts)

    @overload
    def __getitem__(self, row: SupportsIndex) -> str: ...

    @overload
    def __getitem__(self, row: slice) -> list[str]: ...

    def __getitem__(self, row: SupportsIndex | slice) -> str | list[str]:
        if isinstance(row, slice):
            return list(PathTable(self.blob, self.starts[row], self.ends[row]))
        return os.fsdecode(self.blob[self.starts[row] : self.ends[row] - 1].tobytes())

    def __iter__(self) -> Iterator[str]:
        for chunk in self.chunks():
            yield from os.fsdecode(chunk[:-1]).split("\0")

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and list(self) == list(other)

    def take(self, rows: NDArray[np.int64]) -> "PathTable":
        """The paths of these rows; shares the bytes, does not copy them."""
        return PathTable(self.blob, self.starts[rows], self.ends[rows])

    def compact(self) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
        """The bytes of these paths alone, in order, and the offsets that `load` reads."""
        lengths = self.ends - self.starts
        offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        if np.array_equal(self.starts, offsets[:-1]) and offsets[-1] == len(self.blob):
            return self.blob, offsets
        return np.frombuffer(b"".join(self.chunks()), dtype=np.uint8), offsets

    def hashes(self) -> NDArray[np.int64]:
        """Hash of each path, int64 [N]; equal paths have equal ones, within this process."""
        parts = [
            np.fromiter(map(hash, chunk[:-1].split(b"\0")), dtype=np.int64)
            for chunk in self.chunks()
        ]
        return np.concatenate([np.empty(0, dtype=np.int64), *parts])

    def chunks(self) -> Iterator[bytes]:
        """The bytes of all paths in order, each with its zero byte, many paths at a time."""
        for first in range(0, len(self), _CHUNK):
            starts, ends = self.starts[first : first + _CHUNK], self.ends[first : first + _CHUNK]
            if (starts[1:] == ends[:-1]).all():
                yield self.blob[starts[0] : ends[-1]].tobytes()
            else:
                pairs = zip(starts.tolist(), ends.tolist(), strict=True)
                yield b"".join([self.blob[start:end].tobytes() for start, end in pairs])


@dataclass(frozen=True, eq=False)
class SampleIndex:
    """Samples of one split, one entry for each row.

    Attributes:
        sample_ids: Stable sample ids, int64 [N], ascending.
        paths: Path of each row below the root, with forward slashes: a `PathTable`, or any sequence
            of paths, which is converted to one.
        labels: Given labels, int64 [N], which training uses.
        clean_labels: True labels, int64 [N]; None if unknown.
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
        for name in ("labels", "clean_labels"):
            labels = getattr(self, name)
            if labels is None or not n:
                continue
            if not 0 <= labels.min() <= labels.max() < self.num_classes:
                raise ValueError(f"{name} must lie in [0, {self.num_classes})")

    @classmethod
    def load(
        cls, file: Callable[[str], Path], class_names: Iterable[str], *, has_clean_labels: bool
    ) -> "SampleIndex":
        """Reads the index of a whole split.

        Args:
            file: Returns the .npy file of a column: paths, offsets, labels, clean_labels.
            class_names: Names of the K classes.
            has_clean_labels: Whether there is a file of clean labels.

        Raises:
            OSError, ValueError: A file is missing or damaged.
        """
        paths = PathTable.load(file("paths"), file("offsets"))
        return cls(
            sample_ids=np.arange(len(paths)),
            paths=paths,
            labels=read_column(file("labels"), np.int64),
            clean_labels=read_column(file("clean_labels"), np.int64) if has_clean_labels else None,
            class_names=tuple(class_names),
        )

    def __len__(self) -> int:
        return len(self.sample_ids)

    @property
    def num_classes(self) -> int:
        """Number of classes K."""
        return len(self.class_names)

    def find_rows(self, sample_ids: ArrayLike) -> NDArray[np.int64]:
        """Rows, int64 [M], of the ``sample_ids`` [M]; -1 for an id that is not in the index."""
        ids = np.asarray(sample_ids, dtype=np.int64)
        rows = np.searchsorted(self.sample_ids, ids)
        found = rows < len(self)
        found[found] = self.sample_ids[rows[found]] == ids[found]
        return np.where(found, rows, -1)

    def match(
        self, paths: PathTable, sample_ids: NDArray[np.int64] | None = None
    ) -> NDArray[np.int64]:
        """Rows of the samples at these paths, int64 [M]; -1 for a path that is not in the index.

        Of several samples with one path, the one with the id is taken, else the first one that no
        other position has.

        Args:
            paths: [M].
            sample_ids: Ids that the samples had, int64 [M]; None if unknown.
        """
        own, wanted = self.paths.hashes(), paths.hashes()
        order = np.argsort(own, kind="stable")
        first = np.searchsorted(own[order], wanted, side="left")
        count = np.searchsorted(own[order], wanted, side="right") - first
        rows = np.full(len(paths), -1, dtype=np.int64)
        rows[count == 1] = order[first[count == 1]]
        several = np.flatnonzero(count > 1)
        if len(several) and sample_ids is not None:
            exact = self.find_rows(sample_ids[several])
            rows[several] = np.where((exact >= 0) & (own[exact] == wanted[several]), exact, -1)
        taken = set(rows[several].tolist())
        for position in several[rows[several] < 0].tolist():
            candidates = order[first[position] : first[position] + count[position]].tolist()
            rows[position] = next((row for row in candidates if row not in taken), -1)
            taken.add(rows[position])
        found = np.flatnonzero(rows >= 0)
        pairs = zip(paths.take(found), self.paths.take(rows[found]), strict=True)
        different = np.fromiter((a != b for a, b in pairs), dtype=bool, count=len(found))
        rows[found[different]] = -1  # equal hashes of different paths
        return rows

    def rows_of(self, sample_ids: ArrayLike) -> NDArray[np.int64]:
        """Rows, int64 [M], of the ``sample_ids`` [M].

        Raises:
            KeyError: An id is not in the index.
        """
        rows = self.find_rows(sample_ids)
        if (rows < 0).any():
            raise KeyError(f"no sample with id {np.asarray(sample_ids)[rows < 0][0]}")
        return rows

    def with_noisy_labels(self, labels: ArrayLike) -> "SampleIndex":
        """The same samples with other given labels.

        If no clean labels are known, the old given labels become the clean ones.
        """
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
        digest = hashlib.sha256(np.ascontiguousarray(self.sample_ids, "<i8").data)
        for chunk in self.paths.chunks():
            digest.update(chunk)
        return digest.hexdigest()

    def label_fingerprint(self) -> str:
        """SHA-256 (hex) of the given labels."""
        return hashlib.sha256(np.ascontiguousarray(self.labels, "<i8").data).hexdigest()


def balanced_rows(
    labels: NDArray[np.int64], num_classes: int, limit: int | None
) -> NDArray[np.int64]:
    """Ascending rows, int64 [<= limit], of a subset with equally many samples of every class.

    The choice within a class is random but fixed: it does not depend on the seed of the run, so
    that runs with different seeds train on the same images. A class with too few samples
    contributes all of them.

    Args:
        labels: Labels, int64 [N].
        num_classes: Number of classes K.
        limit: Size of the subset, or None for all rows.

    Raises:
        UserError: The limit is below the number of classes.
    """
    if limit is None or limit >= len(labels):
        return np.arange(len(labels))
    if limit < num_classes:
        raise UserError(
            f"below the number of classes, {num_classes}; raise it", argument="limit", value=limit
        )
    rng = stream("subset", 0)
    chosen = []
    for k in range(num_classes):
        rows = rng.permutation(np.flatnonzero(labels == k))
        chosen.append(rows[: limit // num_classes + (k < limit % num_classes)])
    return np.sort(np.concatenate(chosen))
