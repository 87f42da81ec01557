"""Reads Parquet files with pyarrow; the type of each column is checked before its values."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from alr_fast.data.tables.base import Batch, Table, TableError, texts
from alr_fast.data.tables.roles import FLAGS, role_of
from alr_fast.utils.machine import available_memory
from alr_fast.utils.text import error_text, is_utf8_bytes, readable

_STEP = 256  # rows
_LARGEST_STEP = 1 << 24  # bytes of a column of texts in that many rows
_BYTES = 4  # of a value in memory, at least
_AS_BYTES = ("path", None)  # roles of columns that may contain bytes that are not UTF-8


@contextmanager
def open_parquet(file: IO[bytes], path: Path, chosen: dict[str, str]) -> Iterator[Table]:
    """Opens a Parquet file; see `open_table`."""
    import pyarrow
    from pyarrow.parquet import ParquetFile

    try:
        with ParquetFile(file) as opened:
            schema = opened.schema_arrow

            def batches(columns: Sequence[str], rows: int) -> Iterator[Batch]:
                roles = {name: role_of(name, chosen) for name in columns}
                for name in columns:
                    if schema.names.count(name) > 1:
                        raise TableError(path, f"has several columns {name}; keep one")
                    _check_type(path, name, schema.field(name).type, roles[name])
                _check_size(path, opened, columns)
                first = 1
                for batch in bounded_batches(path, opened, columns, rows):
                    arrays = {
                        name: _from_arrow(batch.column(name), path, name, roles[name], first)
                        for name in columns
                    }
                    yield Batch(np.arange(first, first + batch.num_rows), arrays)
                    first += batch.num_rows

            vectors = [field.name for field in schema if _is_vector(field.type)]
            metadata = schema.metadata or {}
            yield Table(path, "row", schema.names, batches, metadata, vectors, chosen)
    except (pyarrow.ArrowException, OSError) as error:  # the latter of wrong bytes, too
        raise TableError(
            path, f"cannot be read as Parquet ({error_text(error)}); write it again"
        ) from error


def _check_type(path: Path, name: str, kind: Any, role: str | None) -> None:
    """Checks that a column contains texts or numbers; without a role also lists of numbers."""
    from pyarrow import types

    if types.is_dictionary(kind):
        kind = kind.value_type
    plain = (
        types.is_integer(kind)
        or types.is_floating(kind)
        or types.is_decimal(kind)
        or _is_text(kind)
        or _is_bytes(kind)
        or types.is_null(kind)
        or (types.is_boolean(kind) and role in FLAGS)
    )
    if not plain and not (_is_vector(kind) and role is None):
        what = "texts or numbers" + (", or lists of numbers" if role is None else "")
        raise TableError(
            path,
            f"column {name} is of type {str(kind)[:80]}; it must contain {what}: write it as such, "
            "or choose another column",
        )


def _check_size(path: Path, file: Any, columns: Sequence[str]) -> None:
    """Checks that the values of the columns fit into the memory; a file of some kB may hold many
    GB of equal ones."""
    chunks = (
        group.column(k)
        for group in (file.metadata.row_group(k) for k in range(file.num_row_groups))
        for k in range(group.num_columns)
    )
    wanted = (chunk for chunk in chunks if chunk.path_in_schema.split(".", 1)[0] in columns)
    size = sum(max(_BYTES * chunk.num_values, chunk.total_uncompressed_size) for chunk in wanted)
    if size > available_memory():
        raise TableError(
            path,
            f"{', '.join(columns)} need {readable(size)}, more memory than there is; make the "
            "table smaller",
        )


def bounded_batches(path: Path, file: Any, columns: Sequence[str], rows: int) -> Iterator[Any]:
    """Batches of at most ``rows`` rows of an open file; refuses texts that would fill the memory.

    Raises:
        TableError: A column has longer texts than a table of samples.
    """
    import pyarrow
    from pyarrow import types

    waiting: list[Any] = []
    names = list(dict.fromkeys(columns))
    for step in file.iter_batches(min(rows, _STEP), columns=names):
        for name, column in zip(step.schema.names, step.columns, strict=True):
            kind = column.type
            is_long = _is_text(kind) or _is_bytes(kind) or types.is_struct(kind)
            if is_long and column.nbytes > _LARGEST_STEP:
                raise TableError(
                    path,
                    f"column {name} has texts of more than {readable(_LARGEST_STEP // _STEP)}; it "
                    "is no table of samples",
                )
        if waiting and sum(map(len, waiting)) + len(step) > rows:
            yield pyarrow.Table.from_batches(waiting).combine_chunks().to_batches()[0]
            waiting.clear()
        waiting.append(step)
    if waiting and sum(map(len, waiting)):
        yield pyarrow.Table.from_batches(waiting).combine_chunks().to_batches()[0]


def _from_arrow(column: Any, path: Path, name: str, role: str | None, first: int) -> NDArray[Any]:
    """Values of a column that `_check_type` passed; ``first`` is the number of its first row."""
    from pyarrow import types

    kind = column.type
    if types.is_dictionary(kind):  # each text is in memory once
        values = _from_arrow(column.dictionary, path, name, role, first)
        if not column.null_count:
            return values[column.indices.to_numpy(zero_copy_only=False)]
        known = values.tolist()
        return texts([None if code is None else known[code] for code in column.indices.to_pylist()])
    if types.is_decimal(kind):
        return texts([None if value is None else f"{value:f}" for value in column.to_pylist()])
    if _is_bytes(kind) and role not in _AS_BYTES:
        for number, value in enumerate(column.to_pylist(), first):
            if value is not None and not is_utf8_bytes(value):
                raise TableError(
                    f"{path}, row {number}",
                    f"column {name} contains bytes that are not UTF-8; write texts or numbers",
                )
    if column.null_count or types.is_null(kind) or types.is_boolean(kind):
        return texts(column.to_pylist())
    if types.is_integer(kind) or types.is_floating(kind):
        return column.to_numpy(zero_copy_only=False)
    if _is_vector(kind):
        lengths = np.unique(column.value_lengths().to_numpy(zero_copy_only=False))
        if len(lengths) == 1:
            return column.flatten().to_numpy(zero_copy_only=False).reshape(-1, lengths[0])
        return texts(column.to_pylist())
    return texts(column.to_numpy(zero_copy_only=False).tolist())  # faster than to_pylist


def _is_text(kind: Any) -> bool:
    from pyarrow import types

    return types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind)


def _is_bytes(kind: Any) -> bool:
    from pyarrow import types

    return (
        types.is_binary(kind)
        or types.is_large_binary(kind)
        or types.is_binary_view(kind)
        or types.is_fixed_size_binary(kind)
    )


def _is_vector(kind: Any) -> bool:
    from pyarrow import types

    is_list = types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind)
    return is_list and (types.is_floating(kind.value_type) or types.is_integer(kind.value_type))
