"""Columns of Parquet and Arrow files with images: labels, names, and the bytes of the images."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from alr_fast.data.tables import TableError
from alr_fast.data.tables.parquet import bounded_batches
from alr_fast.errors import UserError
from alr_fast.utils.files import open_regular
from alr_fast.utils.text import error_text

_STEP = 16  # images
_ROWS = 1 << 14  # whose labels are read at once
_SMALL = 1 << 26  # bytes of the images of a group that may be small in their file
_MOST_RATIO = 20  # of other images to their bytes in the file


def parquet_schema(path: Path) -> Any:
    """Arrow schema of a Parquet file; None if it cannot be read."""
    try:
        from pyarrow import ArrowException
        from pyarrow.parquet import read_schema
    except ImportError:
        return None  # the layout of lists says so
    try:
        return read_schema(path)
    except (ArrowException, OSError, ValueError):
        return None  # the layout of lists describes the problem


def image_columns(schema: Any) -> list[str]:
    """Columns of bytes, or of bytes and a path."""
    from pyarrow import types

    def is_bytes(kind: Any) -> bool:
        return types.is_binary(kind) or types.is_large_binary(kind)

    return [
        field.name
        for field in schema
        if is_bytes(field.type)
        or (types.is_struct(field.type)
            and any(child.name == "bytes" and is_bytes(child.type) for child in field.type))
    ]  # fmt: skip


def read_parquet(
    path: Path, image: str, wanted: list[str]
) -> tuple[list[int], list[list[Any]], list[str | None]]:
    """Rows of each group, columns of labels, and names of the images if they are stored.

    Args:
        path: The file.
        image: Column of the images.
        wanted: Columns of labels.

    Raises:
        UserError: It cannot be read, or lacks a column.
    """
    from pyarrow import ArrowException
    from pyarrow.parquet import ParquetFile

    columns: list[list[Any]] = [[] for _ in wanted]
    names: list[str | None] = []
    known: dict[Any, Any] = {}  # a small file may repeat a long text: it is in memory once
    try:
        with ParquetFile(path) as file:
            check_types(path, wanted, file.schema_arrow)
            groups = [file.metadata.row_group(k).num_rows for k in range(file.num_row_groups)]
            kind = file.schema_arrow.field(image).type
            nested = any(child.name == "path" for child in kind) if kind.num_fields else False
            asked = [*wanted, *([f"{image}.path"] if nested else [])]
            for batch in bounded_batches(path, file, asked, _ROWS):
                for name, column in zip(wanted, columns, strict=True):
                    values = batch.column(name).to_pylist()
                    column += [known.setdefault(value, value) for value in values]
                if nested:
                    stored = stored_names(batch.column(image))
                    names += [known.setdefault(name, name) for name in stored]
    except TableError as error:
        raise UserError(f"{error.where}: {error}") from error
    except (OSError, ValueError, KeyError, ArrowException) as error:
        raise UserError(f"{path}: cannot be read ({error_text(error)})") from error
    return groups, columns, names


def check_types(path: Path, names: Sequence[str], schema: Any) -> None:
    """Checks that columns of labels exist and hold numbers or texts.

    Raises:
        UserError: One does not.
    """
    from pyarrow import types

    for name in names:
        if name not in schema.names:
            raise UserError(f"{path}: no column {name}, which other files have")
        kind = schema.field(name).type
        value = kind.value_type if types.is_dictionary(kind) else kind
        is_text = types.is_string(value) or types.is_large_string(value)
        # Integers with empty cells are floats in pandas; fractions are refused with their row.
        is_number = types.is_integer(value) or types.is_floating(value) or types.is_null(value)
        if not (is_text or is_number):
            raise UserError(
                f"{path}: the column {name} is {str(kind)[:80]}; labels are numbers or texts"
            )


def stored_names(column: Any) -> list[str | None]:
    """Names that lie beside the bytes of images; empty without any."""
    from pyarrow import compute, types

    if not types.is_struct(column.type):
        return []
    if not any(child.name == "path" for child in column.type):
        return []
    return compute.struct_field(column, "path").to_pylist()


def group_of_parquet(path: Path, group: int, *, column: str) -> Any:
    """The bytes of the images of a row group.

    Raises:
        OSError, ValueError: It cannot be read, or unpacks to much more than its bytes in the file:
            a few kB may stand for many GB of equal images.
    """
    import pyarrow
    from pyarrow.parquet import ParquetFile

    try:
        open_regular(path).close()
        with ParquetFile(path, memory_map=True) as file:
            kind = file.schema_arrow.field(column).type
            name = f"{column}.bytes" if kind.num_fields else column
            facts = file.metadata.row_group(group)
            stored = sum(facts.column(k).total_compressed_size for k in range(facts.num_columns))
            left = max(_SMALL, _MOST_RATIO * min(stored, path.stat().st_size))
            parts = []
            for batch in file.iter_batches(_STEP, [group], [name], use_threads=False):
                parts.append(bytes_of(batch.column(0)))
                left -= parts[-1].nbytes
                if left < 0:
                    parts.clear()  # the error keeps this frame
                    raise ValueError(f"group {group} of its rows unpacks to too many bytes")
    except pyarrow.ArrowException as error:
        raise ValueError(error_text(error)) from error
    return pyarrow.chunked_array(parts)


def bytes_of(array: Any) -> Any:
    """The bytes of images in an Arrow array."""
    return array.field("bytes") if array.type.num_fields else array
