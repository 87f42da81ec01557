"""Writes a table piece by piece: CSV, or Parquet with pyarrow."""

import os
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

from alr_fast.data.tables.cells import CsvWriter
from alr_fast.utils.files import replacing

SUFFIXES = (".csv", ".parquet")
_GROUP_ROWS = 1 << 16  # of a row group in a Parquet file
_GROUP_BYTES = 1 << 26  # of one with vectors

Columns = dict[str, Any]


def save_table(
    path: Path,
    pieces: Iterable[Columns],
    *,
    not_utf8: Collection[str] = (),
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Writes a table, atomically.

    Args:
        path: File to write; CSV if it ends with .csv, else Parquet. An existing file is replaced.
        pieces: Consecutive rows, at least one piece: column by column a list of texts, or an array
            [M], or [M, K]; of the latter CSV has the columns ``p0`` to ``p(K-1)``.
        not_utf8: Columns with texts that contain non-UTF-8 bytes.
        metadata: Texts stored in a Parquet file.

    Raises:
        UserError: The file cannot be written.
    """
    with replacing(path) as fresh:
        if path.suffix == ".csv":
            _write_csv(fresh, pieces, all_utf8=not not_utf8)
        else:
            _write_parquet(fresh, pieces, not_utf8, metadata or {})


def _write_csv(path: Path, pieces: Iterable[Columns], *, all_utf8: bool) -> None:
    with path.open("wb") as file, CsvWriter(file, all_utf8=all_utf8) as writer:
        for number, piece in enumerate(pieces):
            columns: Columns = {}
            for name, column in piece.items():
                if getattr(column, "ndim", 1) == 2:
                    columns |= {f"p{k}": column[:, k] for k in range(column.shape[1])}
                else:
                    columns[name] = column
            if number == 0:
                writer.write_row(columns)
            writer.write_columns(columns.values())


def _write_parquet(
    path: Path, pieces: Iterable[Columns], not_utf8: Collection[str], metadata: Mapping[str, str]
) -> None:
    import pyarrow as pa
    from pyarrow.parquet import ParquetWriter

    waiting: list[pa.Table] = []
    writer = None
    try:
        for piece in pieces:
            table = _arrow_table(piece, not_utf8)
            if writer is None:
                schema = table.schema.with_metadata(dict(metadata))
                writer = ParquetWriter(path, schema, compression="zstd")
            waiting.append(table)
            rows, size = sum(map(len, waiting)), sum(part.nbytes for part in waiting)
            if rows >= _GROUP_ROWS or size >= _GROUP_BYTES:
                writer.write_table(pa.concat_tables(waiting))
                waiting.clear()
        if waiting and writer is not None:
            writer.write_table(pa.concat_tables(waiting))
    finally:
        if writer is not None:
            writer.close()


def _arrow_table(columns: Columns, not_utf8: Collection[str]) -> Any:
    """The columns as a `pyarrow.Table`."""
    import pyarrow as pa

    def array(name: str, column: Any) -> pa.Array:
        if name in not_utf8:
            return pa.array([os.fsencode(text) for text in column], pa.binary())
        if isinstance(column, list):
            return pa.array(column, pa.string())
        if column.ndim == 2:
            return pa.FixedSizeListArray.from_arrays(pa.array(column.reshape(-1)), column.shape[1])
        return pa.array(column)

    return pa.table({name: array(name, column) for name, column in columns.items()})
