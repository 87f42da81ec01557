"""Text lists of paths and labels, which several data sets contain."""

import codecs
import os
from array import array
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from alr_fast.data.index import PathTable
from alr_fast.data.paths import WrittenPaths
from alr_fast.errors import UserError
from alr_fast.utils.files import open_regular
from alr_fast.utils.text import shown

_CHUNK = 1 << 14  # paths that are normalised at once


def read_list(
    path: Path,
    num_classes: int,
    *,
    root: Path | None = None,
    prefix: str = "",
    keep: int | None = None,
) -> tuple[PathTable, NDArray[np.int64]]:
    """Reads a list of ``relative path, white space, label`` lines in order.

    The last white space divides a line, so a path may contain blanks and commas. Windows line ends
    and blank lines are accepted.

    Args:
        path: The list.
        num_classes: Number of classes K.
        root: Folder of the data; None for the folder of the list.
        prefix: Inserted before every path.
        keep: Number of classes to keep; lines of the others are checked, too.

    Returns:
        Paths and labels, int64 [N].

    Raises:
        UserError: A line has no label, a label is out of range, a path leaves the root or repeats
            an earlier one; the message names file and line.
    """
    folder = os.fsencode(prefix)
    samples = SampleList(path, prefix=folder, root=root)
    for number, name, label in labelled_lines(path, num_classes):
        if keep is None or label < keep:
            samples.add(folder + name, label, number)
    return samples.paths(), samples.labels()


def labelled_lines(path: Path, num_classes: int) -> Iterator[tuple[int, bytes, int]]:
    """Line number, path and label of each line of a list; see `read_list`.

    Raises:
        UserError: A line has no label, or a label is out of range; or the file cannot be read or is
            empty.
    """
    for number, line in numbered_lines(path):
        try:
            name, text = line.rsplit(None, 1)
            label = int(text)
        except ValueError:
            raise UserError(
                f"{path}, line {number}: expected 'path label', found {shown(line)}; correct or "
                "remove the line"
            ) from None
        if not 0 <= label < num_classes:
            raise UserError(
                f"{path}, line {number}: label {label} is out of range, labels are 0 to "
                f"{num_classes - 1}; correct or remove the line"
            )
        yield number, name, label


def numbered_lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Lines of a file, stripped, with their numbers from 1; without blank lines.

    Raises:
        UserError: The file cannot be read or is empty.
    """
    empty = True
    try:
        with open_regular(path) as file:
            for number, line in enumerate(file, 1):
                if number == 1:
                    line = line.removeprefix(codecs.BOM_UTF8)
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


class SampleList:
    """Collects the paths and labels of a list, and checks all paths at once.

    Checking each of millions of paths alone would take longer than reading them.

    Args:
        path: The list, for messages.
        prefix: Beginning of every path that is added, which is not in the list.
        unit: Unit of the numbers: ``line`` or ``row``.
        root: Folder of the data, without the prefix; None for the folder of the list.
    """

    def __init__(
        self, path: Path, *, prefix: bytes = b"", unit: str = "line", root: Path | None = None
    ) -> None:
        self._path = path
        self._root = path.parent if root is None else root
        self._prefix = prefix
        self._unit = unit
        self._blob = bytearray()
        self._ends = array("q")
        self._hashes = array("q")
        self._labels = array("q")
        self._numbers = array("q")

    def __len__(self) -> int:
        return len(self._numbers)

    def add(self, name: bytes, label: int, number: int) -> None:
        """Adds the path and the label of this line."""
        self._blob += name
        self._blob.append(0)
        self._ends.append(len(self._blob))
        self._hashes.append(hash(name))
        self._labels.append(label)
        self._numbers.append(number)

    def extend(self, names: list[bytes], labels: list[int], numbers: list[int]) -> None:
        """Adds many lines; faster than one by one."""
        lengths = np.fromiter(map(len, names), dtype=np.int64, count=len(names))
        self._ends.extend((len(self._blob) + np.cumsum(lengths + 1)).tolist())
        self._blob += b"\0".join([*names, b""])
        self._hashes.extend(map(hash, names))
        self._labels.extend(labels)
        self._numbers.extend(numbers)

    def labels(self) -> NDArray[np.int64]:
        """All labels, int64 [N]."""
        return np.frombuffer(self._labels, dtype=np.int64)

    def paths(self) -> PathTable:
        """All paths, normalised.

        Raises:
            UserError: A path is not below the root, is an address, contains a zero byte or is
                listed twice; the message names list and line. See `WrittenPaths`.
        """
        odd = self._blob.count(0) != len(self._ends) or WrittenPaths.any_odd(self._blob)
        samples = self._normalised() if odd else self
        ends = np.frombuffer(samples._ends, dtype=np.int64)
        starts = np.concatenate([[0], ends])[:-1]
        table = PathTable(np.frombuffer(samples._blob, dtype=np.uint8), starts, ends)
        samples._refuse_duplicates(table)
        return table

    def _normalised(self) -> "SampleList":
        fresh = SampleList(self._path, prefix=self._prefix, unit=self._unit, root=self._root)
        written = WrittenPaths(self._root / os.fsdecode(self._prefix))
        start = 0
        for first in range(0, len(self), _CHUNK):
            some = slice(first, first + _CHUNK)
            numbers = self._numbers[some].tolist()
            names = []
            for end, number in zip(self._ends[some], numbers, strict=True):
                name = bytes(self._blob[start + len(self._prefix) : end - 1])
                if written.is_odd(name):
                    name = written.relative(name, f"{self._path}, {self._unit} {number}")
                names.append(self._prefix + name)
                start = end
            fresh.extend(names, self._labels[some].tolist(), numbers)
        return fresh

    def _refuse_duplicates(self, table: PathTable) -> None:
        hashes = np.frombuffer(self._hashes, dtype=np.int64)
        ordered = np.sort(hashes)
        repeated = ordered[1:][ordered[1:] == ordered[:-1]]
        first: dict[str, int] = {}
        for row in np.flatnonzero(np.isin(hashes, repeated)) if len(repeated) else ():
            name, number = table[row], self._numbers[row]
            earlier = first.setdefault(name, number)
            if earlier != number:
                raise UserError(
                    f"{self._path}, {self._unit} {number}: names {shown(os.fsencode(name))} again, "
                    f"as {self._unit} {earlier} did; remove one of the two"
                )


def checked_names(names: tuple[str, ...], path: Path, count: int | None) -> tuple[str, ...]:
    """Returns the class names in a file.

    Raises:
        UserError: They are not ``count`` different names, or, if it is None, not different.
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
    """The paths of several lists in one table."""
    if len(tables) == 1:
        return tables[0]
    offsets = np.cumsum([0, *(len(table.blob) for table in tables)])
    pairs = list(zip(tables, offsets[:-1].tolist(), strict=True))
    return PathTable(
        np.concatenate([table.blob for table in tables]),
        np.concatenate([table.starts + offset for table, offset in pairs]),
        np.concatenate([table.ends + offset for table, offset in pairs]),
    )
