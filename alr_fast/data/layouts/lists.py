"""Text lists of paths and labels, as several data sets ship them."""

import os
import sys
from array import array
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from alr_fast.data.index import PathTable
from alr_fast.errors import UserError


def read_list(
    path: Path,
    num_classes: int | None,
    *,
    prefix: str = "",
    first_label: int = 0,
    keep: int | None = None,
) -> tuple[PathTable, NDArray[np.int64]]:
    """Reads a list of ``relative path, white space, label`` lines in their order.

    The last run of white space divides a line, so a path may hold blanks and commas. Windows line
    ends and blank lines are accepted.

    Args:
        path: The list.
        num_classes: Number of classes K; None accepts every label from 0 on.
        prefix: Put before every path.
        first_label: What the list calls the first class.
        keep: Leave out the lines of all classes from this one on; they are checked all the same.

    Returns:
        Paths and labels, int64 [N].

    Raises:
        UserError: Naming file and line: a line without a label, a label out of range, a path that
            leaves the root, a path that stood on an earlier line.
    """
    labels = array("q")
    below = os.fsencode(prefix)
    paths = PathList(path, prefix=below)
    for number, name, label in labelled_lines(path, num_classes, first_label=first_label):
        if keep is None or label < keep:
            labels.append(label)
            paths.add(below + name, number)
    return paths.table(), np.frombuffer(labels, dtype=np.int64)


def labelled_lines(
    path: Path, num_classes: int | None, *, first_label: int = 0
) -> Iterator[tuple[int, bytes, int]]:
    """Line number, path and label, from 0 on, of each line of a list; see `read_list`.

    Raises:
        UserError: Naming file and line: a line without a label, a label out of range; or the file
            cannot be read or holds no line.
    """
    end = sys.maxsize if num_classes is None else first_label + num_classes
    for number, line in numbered_lines(path):
        try:
            name, label = line.rsplit(None, 1)
            value = int(label)
        except ValueError:
            raise UserError(
                f"{path}, line {number}: expected 'path label', found {shown(line)}; correct or "
                "remove the line"
            ) from None
        if not first_label <= value < end:
            last = "or more" if num_classes is None else f"to {end - 1}"
            raise UserError(
                f"{path}, line {number}: label {value} is out of range, labels are "
                f"{first_label} {last}; correct or remove the line"
            )
        yield number, name, value - first_label


def numbered_lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Lines of a file with their numbers from 1, stripped; blank ones left out.

    Raises:
        UserError: The file cannot be read or holds no line.
    """
    empty = True
    try:
        with open(path, "rb") as file:
            for number, line in enumerate(file, 1):
                line = line.strip()
                if line:
                    empty = False
                    yield number, line
    except OSError as error:
        raise UserError(
            f"{path}: {error.strerror or error}; restore it from the download"
        ) from error
    if empty:
        raise UserError(f"{path}: the file is empty; restore it from the download")


class PathList:
    """Collects the paths of a list, and checks them all at once: a check of its own for each of
    millions of paths would take longer than reading them.

    Args:
        path: The list, for messages.
        prefix: Stands before every path that is added, and was not in the list.
        unit: What the list counts: lines or rows.
    """

    def __init__(self, path: Path, *, prefix: bytes = b"", unit: str = "line") -> None:
        self._path = path
        self._prefix = prefix
        self._unit = unit
        self._blob = bytearray()
        self._ends = array("q")
        self._hashes = array("q")
        self._numbers = array("q")

    def add(self, name: bytes, number: int) -> None:
        """Adds the path that stands on this line."""
        self._blob += name
        self._blob.append(0)
        self._ends.append(len(self._blob))
        self._hashes.append(hash(name))
        self._numbers.append(number)

    def table(self) -> PathTable:
        """All paths, normalised.

        Raises:
            UserError: A path is absolute, leaves the root, holds a zero byte or stands in the list
                twice; the message names list and line.
        """
        return (self._normalised() if self._needs_normalising() else self)._table()

    def _needs_normalising(self) -> bool:
        blob = self._blob
        parts = (b"..", b"//", b"\0/", b"\0./", b"/./")
        return (
            blob.count(0) != len(self._ends)
            or blob.startswith((b"/", b"./"))
            or any(part in blob for part in parts)
        )

    def _normalised(self) -> "PathList":
        fresh = PathList(self._path, prefix=self._prefix, unit=self._unit)
        start = 0
        for end, number in zip(self._ends, self._numbers, strict=True):
            name = bytes(self._blob[start + len(self._prefix) : end - 1])
            normal = os.path.normpath(name)
            where = f"{self._path}, {self._unit} {number}"
            if b"\0" in name:
                raise UserError(f"{where}: {shown(name)} holds a zero byte; correct the path")
            if os.path.isabs(normal) or normal.split(b"/", 1)[0] in (b"..", b"."):
                raise UserError(
                    f"{where}: {shown(name)} leads out of the data folder; paths in a list start "
                    "from the data set's folder and stay below it"
                )
            fresh.add(self._prefix + normal, number)
            start = end
        return fresh

    def _table(self) -> PathTable:
        ends = np.frombuffer(self._ends, dtype=np.int64)
        starts = np.zeros_like(ends)
        starts[1:] = ends[:-1]
        table = PathTable(np.frombuffer(self._blob, dtype=np.uint8), starts, ends)
        self._refuse_duplicates(table)
        return table

    def _refuse_duplicates(self, table: PathTable) -> None:
        hashes = np.frombuffer(self._hashes, dtype=np.int64)
        ordered = np.sort(hashes)
        if not (ordered[1:] == ordered[:-1]).any():
            return
        first: dict[str, int] = {}
        for row in np.flatnonzero(np.isin(hashes, ordered[1:][ordered[1:] == ordered[:-1]])):
            name, number = table[row], self._numbers[row]
            earlier = first.setdefault(name, number)
            if earlier != number:
                raise UserError(
                    f"{self._path}, {self._unit} {number}: names {shown(os.fsencode(name))} again, "
                    f"as {self._unit} {earlier} did; remove one of the two"
                )


def class_lines(path: Path, count: int | None = None) -> tuple[str, ...]:
    """Names of classes, one a line, in UTF-8.

    Raises:
        UserError: The file is missing or empty, or does not hold ``count`` different names.
    """
    names = tuple(line.decode("utf-8", "replace") for _, line in numbered_lines(path))
    return checked_names(names, path, count)


def checked_names(names: tuple[str, ...], path: Path, count: int | None) -> tuple[str, ...]:
    """The same names.

    Raises:
        UserError: They are not ``count`` different ones.
    """
    if count is not None and len(names) != count:
        raise UserError(
            f"{path}: {len(names)} class names, expected {count}; restore it from the download"
        )
    if len(set(names)) != len(names):
        twice = next(name for k, name in enumerate(names) if name in names[:k])
        raise UserError(f"{path}: names the class {twice} twice; restore it from the download")
    return names


def joined(tables: Sequence[PathTable]) -> PathTable:
    """The paths of several lists, one after the other."""
    offsets = np.cumsum([0, *(len(table.blob) for table in tables)])
    pairs = list(zip(tables, offsets[:-1].tolist(), strict=True))
    return PathTable(
        np.concatenate([table.blob for table in tables]),
        np.concatenate([table.starts + offset for table, offset in pairs]),
        np.concatenate([table.ends + offset for table, offset in pairs]),
    )


def shown(line: bytes | str) -> str:
    """A part of a file as a message shows it: quoted, on one line, at most 80 characters."""
    text = line if isinstance(line, str) else line.decode("utf-8", "replace")
    return repr(text if len(text) <= 80 else text[:77] + "...")
