"""What all readers of tables share: the open table, its batches, its errors."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from alr_fast.data.tables.roles import find_column
from alr_fast.utils.text import cell_text


class TableError(Exception):
    """A table cannot be read; the text describes the problem and how to fix it.

    Attributes:
        where: The file, with a line or row if one is wrong.
    """

    def __init__(self, where: object, text: str) -> None:
        super().__init__(text)
        self.where = str(where)


@dataclass(frozen=True)
class Batch:
    """Consecutive rows of a table.

    Attributes:
        numbers: Line (of a text) or row of the file, from 1, int64 [M].
        columns: Columns by name: numbers [M], lists of numbers of one length [M, L], or texts [M]
            (dtype object), empty for an empty cell.
    """

    numbers: NDArray[np.int64]
    columns: dict[str, NDArray[Any]]


@dataclass(frozen=True)
class Table:
    """An open table.

    Attributes:
        path: Its file.
        unit: Unit in which the file is counted: ``line`` or ``row``.
        columns: Names of its columns, as written.
        batches: ``batches(columns, rows)`` reads these columns from beginning to end, at most
            ``rows`` rows at a time; raises `TableError` for a wrong line, a column of a type that
            it must not have, or a damaged file.
        metadata: Metadata of a Parquet file.
        vectors: Names of the columns with lists of numbers, in a Parquet file or an archive.
        chosen: Role -> column that the user named for it, see `find`.
        in_order: Whether the rows are all samples in order: arrays of labels, without paths or ids.
        remarks: Lines for the user on how the file was read; complete after the last batch.
    """

    path: Path
    unit: str
    columns: list[str]
    batches: Callable[[Sequence[str], int], Iterator[Batch]]
    metadata: dict[bytes, bytes] = field(default_factory=dict)
    vectors: Sequence[str] = ()
    chosen: Mapping[str, str] = field(default_factory=dict)
    in_order: bool = False
    remarks: list[str] = field(default_factory=list)

    def find(self, role: str) -> str | None:
        """Name of the column with a role, by its name or a synonym; None without one.

        Args:
            role: One of `alr_fast.data.tables.roles.SYNONYMS`.

        Raises:
            TableError: Several columns may have the role, or the chosen one does not exist.
        """
        try:
            return find_column(role, self.columns, self.chosen)
        except ValueError as error:
            raise TableError(self.path, str(error)) from error

    def first_rows(self, rows: int) -> dict[str, NDArray[np.object_]]:
        """The first rows as texts, all columns; none of a column of lists, dates and the like.

        Raises:
            TableError: No column can be read.
        """
        try:
            batch = next(self.batches(self.columns, rows), None)
            return {name: as_text(batch.columns[name]) if batch else texts([])
                    for name in self.columns}  # fmt: skip
        except TableError as error:
            problem = error
        found = {}
        for name in self.columns:
            try:
                batch = next(self.batches([name], rows), None)
            except TableError:
                batch = None
            found[name] = as_text(batch.columns[name]) if batch else texts([])
        if not any(map(len, found.values())):
            raise problem
        return found


def as_text(column: NDArray[Any]) -> NDArray[np.object_]:
    """A column as texts, dtype object [M]; empty for a missing value."""
    is_text = column.dtype == object and column.ndim == 1
    return column if is_text else texts(column.tolist())


def texts(values: list[Any]) -> NDArray[np.object_]:
    """Values as texts, dtype object [M]: bytes as file names, see `os.fsdecode`, "" for None."""
    array = np.empty(len(values), dtype=object)
    array[:] = list(map(cell_text, values))
    return array
