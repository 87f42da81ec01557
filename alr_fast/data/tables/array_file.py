"""Files of arrays, one entry for each sample: .npz files, and Parquet files with vectors."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from alr_fast.data.tables import TableError, as_text, is_parquet, open_table
from alr_fast.data.tables.npz import open_npz
from alr_fast.errors import UserError
from alr_fast.utils.machine import available_memory

_ROWS = 1 << 14  # of a Parquet file that are read at once


@dataclass(frozen=True)
class ArrayFile:
    """A file of arrays.

    Attributes:
        path: The file.
        names: Names of its arrays or columns.
        vectors: Those that contain vectors; None if unknown.
        read: ``read(name)`` returns an array or a column of all rows; texts of a column have the
            dtype object.
    """

    path: Path
    names: Sequence[str]
    vectors: Sequence[str] | None
    read: Callable[[str], NDArray[Any]]

    @property
    def found(self) -> str:
        """Its names, for messages."""
        return ", ".join(self.names) or "nothing"


def open_arrays(path: Path) -> ArrayFile:
    """Opens a file of arrays: as Parquet or .npz, by its first bytes. Reads names only.

    Raises:
        UserError: The file cannot be read, then or in ``read``; or an array needs more memory than
            there is; or a column has vectors of different lengths.
    """
    return _open_parquet(path) if is_parquet(path) else _open_npz(path)


def _open_npz(path: Path) -> ArrayFile:
    def read_one(name: str) -> NDArray[Any]:
        with open_npz(path) as arrays:
            return arrays.read(name, available_memory())

    with open_npz(path) as arrays:
        names = list(arrays.headers)
    return ArrayFile(path, names, None, read_one)


def _open_parquet(path: Path) -> ArrayFile:
    def read_one(name: str) -> NDArray[Any]:
        parts: list[NDArray[Any]] = []
        row = 0
        try:
            with open_table(path) as table:
                for batch in table.batches([name], _ROWS):
                    column = batch.columns[name]
                    if name in vectors:
                        width = parts[0].shape[1] if parts else None
                        _check_vectors(path, name, column, row, width)
                    parts.append(column)
                    row += len(column)
        except TableError as error:
            raise UserError(f"{error.where}: {error}") from error
        if not parts:
            raise UserError(f"{path}: has no rows; add some")
        if any(part.dtype == object for part in parts):  # some batches have empty cells
            parts = [as_text(part) for part in parts]
        return np.concatenate(parts)

    try:
        with open_table(path) as table:
            names, vectors = table.columns, table.vectors
    except TableError as error:
        raise UserError(f"{error.where}: {error}") from error
    return ArrayFile(path, names, vectors, read_one)


def _check_vectors(
    path: Path, name: str, column: NDArray[Any], first: int, width: int | None
) -> None:
    """Checks that a batch from row ``first`` on has vectors of one length, ``width`` if given."""
    if column.ndim == 2 and width in (None, column.shape[1]):
        return
    # Vectors of different lengths arrive as texts, a missing one as an empty text.
    lengths = [
        len(text) if not isinstance(text, str) else text.count(",") + 1 if text.strip("[]") else 0
        for text in column
    ]
    width = width or max(lengths)
    row = next(k for k, length in enumerate(lengths) if length != width)
    raise UserError(
        f"{path}: the vector {name} of row {first + row} has {lengths[row]} values, others have "
        f"{width}; remove or complete it"
    )
