"""Reads tables, CSV or Parquet files, in batches of columns.

Non-UTF-8 bytes become lone surrogates, as in the names of files, see `os.fsdecode`.
"""

import csv
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, TextIO

import numpy as np
from numpy.typing import NDArray


class TableError(Exception):
    """A table cannot be read; the text describes the problem and how to fix it.

    Attributes:
        where: The file, with a line or row if one is wrong.
    """

    def __init__(self, where: str, text: str) -> None:
        super().__init__(text)
        self.where = where


@dataclass(frozen=True)
class Batch:
    """Consecutive rows of a table.

    Attributes:
        numbers: Line (CSV) or row (Parquet) of the file, from 1, int64 [M].
        columns: For each column by name numbers [M], lists of numbers of one length [M, L], or
            else texts [M] (dtype object), of which an empty cell is the empty one.
    """

    numbers: NDArray[np.int64]
    columns: dict[str, NDArray[Any]]


class Table(ABC):
    """An open table.

    Attributes:
        path: Its file.
        columns: Names of its columns.
        metadata: Metadata of a Parquet file.
        unit: Unit that the file is counted in: ``line`` or ``row``.
    """

    unit: str

    def __init__(self, path: Path, columns: list[str], metadata: dict[bytes, bytes]) -> None:
        self.path = path
        self.columns = columns
        self.metadata = metadata

    @abstractmethod
    def batches(self, columns: Sequence[str], rows: int) -> Iterator[Batch]:
        """Reads some columns from beginning to end.

        Args:
            columns: Their names.
            rows: Largest number of rows in a batch.

        Raises:
            TableError: The file is damaged, or a line has another number of fields than the header.
        """


class _CsvTable(Table):
    unit = "line"

    def __init__(self, path: Path, file: TextIO, delimiters: str) -> None:
        first = file.readline()
        headers = {mark: next(_fields(path, [first], mark), (1, []))[1] for mark in delimiters}
        self._delimiter = max(headers, key=lambda mark: len(headers[mark]))
        self._file = file
        super().__init__(path, [name.strip() for name in headers[self._delimiter]], {})

    def batches(self, columns: Sequence[str], rows: int) -> Iterator[Batch]:
        self._file.seek(0)
        lines = _fields(self.path, self._file, self._delimiter)
        next(lines, None)
        width, chosen = len(self.columns), [self.columns.index(name) for name in columns]
        while True:
            numbers: list[int] = []
            # A list for each column: the garbage collector would traverse a list for each row.
            texts: list[list[str]] = [[] for _ in columns]
            for number, fields in islice(lines, rows):
                if len(fields) != width:
                    raise TableError(
                        f"{self.path}, line {number}",
                        f"{len(fields)} fields, the header has {width}; correct the line, and "
                        "quote a field that contains a delimiter",
                    )
                numbers.append(number)
                for column, k in zip(texts, chosen, strict=True):
                    column.append(fields[k])
            if not numbers:
                return
            arrays = [np.array(column, dtype=object) for column in texts]
            yield Batch(np.array(numbers), dict(zip(columns, arrays, strict=True)))


def _fields(path: Path, lines: Iterable[str], delimiter: str) -> Iterator[tuple[int, list[str]]]:
    """Number and fields of each line that is not empty."""
    reader = csv.reader(lines, delimiter=delimiter)
    try:
        for fields in reader:
            if fields:
                yield reader.line_num, fields
    except csv.Error as error:
        raise TableError(f"{path}, line {reader.line_num}", f"{error}; correct it") from error


class _ParquetTable(Table):
    unit = "row"

    def __init__(self, path: Path, file: Any) -> None:
        self._file = file
        super().__init__(path, file.schema_arrow.names, file.schema_arrow.metadata or {})

    def batches(self, columns: Sequence[str], rows: int) -> Iterator[Batch]:
        first = 1
        for batch in self._file.iter_batches(rows, columns=list(columns)):
            pairs = zip(batch.schema.names, batch.columns, strict=True)
            numbers = np.arange(first, first + batch.num_rows)
            yield Batch(numbers, {name: _from_arrow(column) for name, column in pairs})
            first += batch.num_rows


def _from_arrow(column: Any) -> NDArray[Any]:
    """A column of a Parquet file as described in `Batch`."""
    from pyarrow import types

    kind = column.type
    if column.null_count:
        values = column.to_pylist()
    elif types.is_integer(kind) or types.is_floating(kind):
        return column.to_numpy(zero_copy_only=False)
    elif types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind):
        lengths = np.unique(column.value_lengths().to_numpy(zero_copy_only=False))
        if len(lengths) == 1:
            return column.flatten().to_numpy(zero_copy_only=False).reshape(-1, lengths[0])
        values = column.to_pylist()
    else:
        values = column.to_numpy(zero_copy_only=False).tolist()  # several times faster
    return _texts(values)


def _texts(values: list[Any]) -> NDArray[np.object_]:
    texts = np.empty(len(values), dtype=object)
    texts[:] = [_text(value) for value in values]
    return texts


def _text(value: object) -> str:
    if isinstance(value, bytes):
        return value.decode("utf-8", "surrogateescape")
    return "" if value is None else str(value)


@contextmanager
def open_table(path: Path, delimiters: str = ",") -> Iterator[Table]:
    """Opens a table: as Parquet if that is its suffix, else as CSV.

    Args:
        path: The file.
        delimiters: Delimiters of a CSV file; the one that divides the header into the most columns
            is used.

    Raises:
        TableError: The file cannot be read or is not a table.
    """
    open_as = _open_parquet if path.suffix.lower() == ".parquet" else _open_csv
    try:
        with open_as(path, delimiters) as table:
            yield table
    except OSError as error:
        raise TableError(
            str(path), f"{error.strerror or error}; name a file that can be read"
        ) from error


@contextmanager
def _open_csv(path: Path, delimiters: str) -> Iterator[Table]:
    with open(path, newline="", encoding="utf-8-sig", errors="surrogateescape") as file:
        yield _CsvTable(path, file, delimiters)


@contextmanager
def _open_parquet(path: Path, delimiters: str) -> Iterator[Table]:
    try:
        import pyarrow
        from pyarrow.parquet import ParquetFile
    except ImportError as error:
        raise TableError(
            str(path), "Parquet needs pyarrow; pip install pyarrow, or write the table as CSV"
        ) from error
    try:
        with ParquetFile(path) as file:
            yield _ParquetTable(path, file)
    except pyarrow.ArrowException as error:
        reason = " ".join(str(error).split())
        raise TableError(
            str(path), f"cannot be read as Parquet ({reason}); write it again"
        ) from error


def as_text(column: NDArray[Any]) -> NDArray[np.object_]:
    """A column as texts, dtype object [M]."""
    return column if column.dtype == object and column.ndim == 1 else _texts(column.tolist())


def whole_numbers(column: NDArray[Any]) -> NDArray[np.int64]:
    """A column as integers [M]; 1.0 counts as one, as columns with empty cells often have it.

    Raises:
        ValueError: A value is not an integer.
    """
    if column.ndim > 1:
        raise ValueError("lists")
    if column.dtype.kind in "iu":
        return column.astype(np.int64)
    numbers = column.astype(np.float64)
    wrong = ~(np.abs(numbers) < 2**63) | (numbers != np.floor(numbers))
    if wrong.any():
        raise ValueError(repr(column[wrong][0]))
    return numbers.astype(np.int64)
