"""Reads tables in batches of columns: lists, labels, exclusions, annotations.

CSV (comma, semicolon, tab), JSON lines or a list of objects, Parquet, and arrays in .npz or .npy
files. The first bytes decide, not the name. Nothing is converted silently: cells are texts or
numbers as they are written; which label a text is, `alr_fast.data.classes` decides. Non-UTF-8 bytes
of paths become lone surrogates, as in the names of files, see `os.fsdecode`.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from alr_fast.data.tables.arrays import open_arrays
from alr_fast.data.tables.base import Batch, Table, TableError, as_text
from alr_fast.data.tables.csv_text import CsvFile
from alr_fast.data.tables.encoding import mark_of
from alr_fast.data.tables.json_text import JsonFile
from alr_fast.data.tables.npz import NPY_MAGIC, ZIP_MAGIC, names_of_arrays
from alr_fast.data.tables.parquet import open_parquet
from alr_fast.utils.files import open_regular
from alr_fast.utils.requirements import install_command, missing_modules
from alr_fast.utils.text import error_text

__all__ = ["Batch", "Table", "TableError", "as_text", "is_parquet", "is_table", "open_table"]

_START = 1 << 12  # bytes that are looked at to recognise a format
_MOST_COLUMNS = 100_000
_PARQUET = b"PAR1"
_SUFFIXES = (".csv", ".tsv", ".json", ".jsonl", ".ndjson", ".npy", ".parquet")
# Formats that people try, and how to make a table of them.
_REFUSED = {
    b"\xff\xfe\0\0": "is UTF-32; save it as UTF-8",
    b"\0\0\xfe\xff": "is UTF-32; save it as UTF-8",
    b"\x1f\x8b": "is compressed by gzip; unpack it first",
    b"BZh": "is compressed by bzip2; unpack it first",
    b"\xfd7zXZ": "is compressed by xz; unpack it first",
    b"\x28\xb5\x2f\xfd": "is compressed by zstd; unpack it first",
    b"\xd0\xcf\x11\xe0": "is an Excel workbook; save the sheet as CSV UTF-8",
    b"ARROW1": "is an Arrow file; write it as Parquet",
    b"\x89HDF": "is an HDF5 file; write the table as Parquet or CSV",
    b"SQLite format 3": "is an SQLite database; write the table as CSV",
    b"%PDF": "is a PDF; write the table as CSV",
    **{
        bytes((0x80, version)): "is a pickle, which may run code and is not read; write Parquet"
        for version in range(2, 6)
    },
}


@contextmanager
def open_table(path: Path, columns: Mapping[str, str] | None = None) -> Iterator[Table]:
    """Opens a table.

    Args:
        path: The file.
        columns: Role -> column that the user chose for it, see `Table.find`.

    Raises:
        TableError: The file cannot be read or is not a table.
    """
    chosen = dict(columns or {})
    try:
        with open_regular(path) as file, _opened(file, path, chosen) as table:
            if len(table.columns) > _MOST_COLUMNS:
                raise TableError(
                    path,
                    f"has {len(table.columns):,} columns, more than the {_MOST_COLUMNS:,} that are "
                    "read; store vectors as one column of lists, or as an array",
                )
            yield table
    except OSError as error:
        raise TableError(path, f"{error_text(error)}; name a readable file") from error


@contextmanager
def _opened(file: IO[bytes], path: Path, chosen: dict[str, str]) -> Iterator[Table]:
    start = file.read(_START)
    for magic, problem in _REFUSED.items():
        if start.startswith(magic):
            raise TableError(path, problem)
    file.seek(0)
    if start.startswith(_PARQUET):
        _need_pyarrow(path, "Parquet")
        with open_parquet(file, path, chosen) as table:
            yield table
        return
    if start.startswith((NPY_MAGIC, *ZIP_MAGIC)):
        if b"[Content_Types].xml" in start or b"_rels/.rels" in start:
            raise TableError(path, "is an Excel workbook; save the sheet as CSV UTF-8")
        with open_arrays(file, path, chosen) as table:
            yield table
        return
    encoding, length = mark_of(start)
    if encoding in (None, "utf-8") and b"\0" in start:
        raise TableError(
            path,
            "contains zero bytes, so it is no table in UTF-8; save it as UTF-8, or as UTF-16 with "
            "a byte order mark",
        )
    beginning = start[length:]
    if encoding not in (None, "utf-8"):
        beginning = beginning.replace(b"\0", b"")  # enough to recognise brackets
    if beginning.lstrip()[:1] in (b"{", b"["):
        objects = JsonFile(file, path, encoding=encoding, start=length, chosen=chosen)
        yield Table(path, objects.unit, objects.columns, objects.batches, chosen=chosen)
        return
    _need_pyarrow(path, "CSV")
    text = CsvFile(file, path, encoding=encoding, start=length, chosen=chosen)
    yield Table(path, "line", text.columns, text.batches, chosen=chosen, remarks=text.remarks)


def is_table(path: Path) -> bool:
    """Whether `open_table` is meant for a file: no model, no pickle, no file of noisy labels.

    The first bytes decide; the name does if there is no such file.
    """
    try:
        with open_regular(path) as file:
            start = file.read(_START)
            if start.startswith(ZIP_MAGIC):
                names = names_of_arrays(file)
                return bool(names) and not {"format", "original"} <= set(names)
    except OSError:
        return path.suffix.lower() in _SUFFIXES
    if start.startswith((_PARQUET, NPY_MAGIC)) or mark_of(start)[0] is not None:
        return True
    return b"\0" not in start and not start.startswith(tuple(_REFUSED))


def is_parquet(path: Path) -> bool:
    """Whether this is a Parquet file, by its first bytes; False if it cannot be read."""
    try:
        with open_regular(path) as file:
            return file.read(len(_PARQUET)) == _PARQUET
    except OSError:
        return False


def _need_pyarrow(path: Path, what: str) -> None:
    if missing_modules(["pyarrow"]):
        command = install_command(["pyarrow"], "train")
        raise TableError(path, f"{what} needs pyarrow, not installed: {command}")
