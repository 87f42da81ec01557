"""Reads tables, CSV or Parquet files, in batches of columns.

Non-UTF-8 bytes become lone surrogates, as in the names of files, see `os.fsdecode`.
"""

import csv
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import islice
from operator import itemgetter
from pathlib import Path
from typing import Any, TextIO

import numpy as np
from numpy.typing import NDArray

from alr_fast.utils.text import error_text


class TableError(Exception):
    """A table cannot be read; the text describes the problem and how to fix it.

    Attributes:
        where: The file, with a line or row if one is wrong.
    """

    def __init__(self, where: str | Path, text: str) -> None:
        super().__init__(text)
        self.where = str(where)


@dataclass(frozen=True)
class Batch:
    """Consecutive rows of a table.

    Attributes:
        numbers: Line (CSV) or row (Parquet) of the file, from 1, int64 [M].
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
        columns: Names of its columns.
        metadata: Metadata of a Parquet file.
        vectors: Names of the columns with lists of numbers, in a Parquet file.
        batches: ``batches(columns, rows)`` reads these columns (of CSV two or more) from beginning
            to end, at most ``rows`` rows at a time; raises `TableError` for a wrong line or a
            damaged file.
    """

    path: Path
    unit: str
    columns: list[str]
    metadata: dict[bytes, bytes]
    batches: Callable[[Sequence[str], int], Iterator[Batch]]
    vectors: Sequence[str] = ()


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
    parquet = path.suffix.lower() == ".parquet"
    try:
        with _open_parquet(path) if parquet else _open_csv(path, delimiters) as table:
            yield table
    except OSError as error:
        raise TableError(path, f"{error.strerror or error}; name a readable file") from error
    except csv.Error as error:  # in the header
        raise TableError(f"{path}, line 1", f"{error}; correct it") from error


@contextmanager
def _open_csv(path: Path, delimiters: str) -> Iterator[Table]:
    with open(path, newline="", encoding="utf-8-sig", errors="surrogateescape") as file:
        first = file.readline()
        headers = {mark: next(csv.reader([first], delimiter=mark), []) for mark in delimiters}
        delimiter = max(headers, key=lambda mark: len(headers[mark]))
        header = [name.strip() for name in headers[delimiter]]
        yield Table(path, "line", header, {}, partial(_csv_batches, path, file, delimiter, header))


def _csv_batches(
    path: Path, file: TextIO, delimiter: str, header: list[str], columns: Sequence[str], rows: int
) -> Iterator[Batch]:
    file.seek(0)
    reader = csv.reader(file, delimiter=delimiter)
    lines = filter(None, reader)  # without empty lines
    chosen = itemgetter(*map(header.index, columns))
    try:
        next(lines, None)
        while True:
            numbers: list[int] = []
            # One flat list: the garbage collector would traverse a tuple for each row.
            texts: list[str] = []
            for fields in islice(lines, rows):
                if len(fields) != len(header):
                    raise TableError(
                        f"{path}, line {reader.line_num}",
                        f"{len(fields)} fields, the header has {len(header)}; correct the line, "
                        "and quote a field that contains a delimiter",
                    )
                numbers.append(reader.line_num)
                texts += chosen(fields)
            if not numbers:
                return
            width = len(columns)
            arrays = (np.array(texts[k::width], dtype=object) for k in range(width))
            yield Batch(np.array(numbers), dict(zip(columns, arrays, strict=True)))
    except csv.Error as error:
        raise TableError(f"{path}, line {reader.line_num}", f"{error}; correct it") from error


@contextmanager
def _open_parquet(path: Path) -> Iterator[Table]:
    try:
        import pyarrow
        from pyarrow.parquet import ParquetFile
    except ImportError as error:
        raise TableError(
            path, "Parquet needs pyarrow; pip install pyarrow, or write the table as CSV"
        ) from error
    try:
        with ParquetFile(path) as file:
            schema = file.schema_arrow
            vectors = [field.name for field in schema if _is_vector(field.type)]
            batches = partial(_parquet_batches, file)
            yield Table(path, "row", schema.names, schema.metadata or {}, batches, vectors)
    except pyarrow.ArrowException as error:
        raise TableError(
            path, f"cannot be read as Parquet ({error_text(error)}); write it again"
        ) from error


def _parquet_batches(file: Any, columns: Sequence[str], rows: int) -> Iterator[Batch]:
    first = 1
    for batch in file.iter_batches(rows, columns=list(columns)):
        pairs = zip(batch.schema.names, batch.columns, strict=True)
        numbers = np.arange(first, first + batch.num_rows)
        yield Batch(numbers, {name: _from_arrow(column) for name, column in pairs})
        first += batch.num_rows


def _from_arrow(column: Any) -> NDArray[Any]:
    from pyarrow import types

    kind = column.type
    if column.null_count:
        return _texts(column.to_pylist())
    if types.is_integer(kind) or types.is_floating(kind):
        return column.to_numpy(zero_copy_only=False)
    if _is_list(kind):
        lengths = np.unique(column.value_lengths().to_numpy(zero_copy_only=False))
        if len(lengths) == 1:
            return column.flatten().to_numpy(zero_copy_only=False).reshape(-1, lengths[0])
        return _texts(column.to_pylist())
    return _texts(column.to_numpy(zero_copy_only=False).tolist())  # faster than to_pylist


def _is_list(kind: Any) -> bool:
    from pyarrow import types

    return types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind)


def _is_vector(kind: Any) -> bool:
    from pyarrow import types

    return _is_list(kind) and (
        types.is_floating(kind.value_type) or types.is_integer(kind.value_type)
    )


def as_text(column: NDArray[Any]) -> NDArray[np.object_]:
    """A column as texts, dtype object [M]."""
    return column if column.dtype == object and column.ndim == 1 else _texts(column.tolist())


def _texts(values: list[Any]) -> NDArray[np.object_]:
    texts = np.empty(len(values), dtype=object)
    texts[:] = [_text(value) for value in values]
    return texts


def _text(value: object) -> str:
    if isinstance(value, bytes):
        return value.decode("utf-8", "surrogateescape")
    return "" if value is None else str(value)
