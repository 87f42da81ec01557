"""A table that names each image and its label: CSV or Parquet.

Columns ``path``, from the folder of the table on, and ``label``; and, where there are such,
``clean_label`` and ``split``. One file with a column ``split``, or a folder with ``train.csv`` and
``test.csv`` (or ``val``).
"""

import csv
import re
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from alr_fast.data.layouts.base import Found, Layout, Listing, new_index
from alr_fast.data.layouts.lists import PathList, shown
from alr_fast.errors import UserError

SUFFIXES = (".csv", ".tsv", ".parquet")
_TESTS = ("test", "val")  # the first of them that there is
_DELIMITERS = (",", "\t", ";")  # the header tells which

Row = tuple[int, str, str, str | None, str | None]  # number, path, label, clean label, split


def find(root: Path) -> Found | None:
    """A table, or a folder with one for training and one for testing."""
    if root.is_file():
        if root.suffix.lower() not in SUFFIXES:
            return None
        return Found(root.parent, f"table {root}", (root,))
    pair = [_first(root, names) for names in (("train",), _TESTS)]
    if None in pair:
        return None
    return Found(root, f"tables {pair[0]} and {pair[1]}", tuple(pair))


def _first(root: Path, names: Sequence[str]) -> Path | None:
    files = (root / f"{name}{suffix}" for name in names for suffix in SUFFIXES)
    return next((file for file in files if file.is_file()), None)


def read(found: Found, split: str) -> Listing:
    """Lists one split in the order of its table; of a million rows in seconds.

    Labels are whole numbers from 0 on, or names of classes, which are numbered in sorted order; the
    first row decides. Both splits have the classes of the training rows. A split ``val`` is what is
    tested on where there is no ``test``, and is left out where there is.

    Raises:
        UserError: A table cannot be read, lacks a column or a split; or, naming the line: a field
            is missing, a path leaves the folder or stands there twice, a label is no number among
            numbers, leaves a gap between them, or is not one of the training classes.
    """
    if len(found.lists) == 2:
        parts = dict(zip(("train", "test"), map(_whole, found.lists), strict=True))
    else:
        parts = _by_split(found.lists[0])
    class_names, whole = _classes(parts["train"])
    part = parts["train"] if split == "train" else next(parts[n] for n in _TESTS if n in parts)
    lut = part.numbered(class_names, whole)
    labels = lut[np.frombuffer(part.labels, dtype=np.int64)]
    clean = lut[np.frombuffer(part.clean, dtype=np.int64)] if part.clean else None
    return Listing(new_index(part.paths.table(), labels, class_names, clean), found.lists)


@dataclass
class _Part:
    """The rows of one split; labels are counted as they first come up until all are known."""

    path: Path
    unit: str
    paths: PathList
    labels: array = field(default_factory=lambda: array("q"))
    clean: array = field(default_factory=lambda: array("q"))
    codes: dict[str, int] = field(default_factory=dict)  # label as written -> code
    numbers: list[int] = field(default_factory=list)  # code -> line where it first came up

    def add(self, row: Row) -> None:
        number, name, label, clean, _ = row
        if not name or not label or clean == "":
            empty = "path" if not name else "clean_label" if label else "label"
            raise UserError(
                f"{self.path}, {self.unit} {number}: {empty} is empty; fill it in or remove the "
                f"{self.unit}"
            )
        self.paths.add(name.encode("utf-8", "surrogateescape"), number)
        self.labels.append(self._code(label, number))
        if clean is not None:
            self.clean.append(self._code(clean, number))

    def _code(self, label: str, number: int) -> int:
        code = self.codes.get(label)
        if code is None:
            code = self.codes[label] = len(self.numbers)
            self.numbers.append(number)
        return code

    def where(self, label: str) -> str:
        """Table and line of the first row with this label, for messages."""
        return f"{self.path}, {self.unit} {self.numbers[self.codes[label]]}"

    def numbered(self, class_names: tuple[str, ...], whole: bool) -> NDArray[np.int64]:
        """The label of each code, int64 [codes]; ``whole`` where labels are written as numbers."""
        label_of = {name: k for k, name in enumerate(class_names)}
        lut = np.empty(len(self.codes), dtype=np.int64)
        for label, code in self.codes.items():
            name = str(int(label)) if whole and _WHOLE.fullmatch(label) else label
            if name not in label_of:
                raise UserError(
                    f"{self.where(label)}: label {shown(label)} is none of the {len(class_names)} "
                    "training classes; correct it or add training rows of it"
                )
            lut[code] = label_of[name]
        return lut


_WHOLE = re.compile(r"[+-]?[0-9]+")
_FRACTION = re.compile(r"[+-]?[0-9]+\.[0-9]*")


def _classes(train: _Part) -> tuple[tuple[str, ...], bool]:
    """Names of the classes, and whether they are whole numbers."""
    labels = list(train.codes)
    for label in labels:
        if _FRACTION.fullmatch(label):
            raise UserError(
                f"{train.where(label)}: label {shown(label)} is a fraction; write whole numbers or "
                "names of classes"
            )
    if len(labels) < 2:
        raise UserError(
            f"{train.path}: only one class ({labels[0]}); training needs two or more classes"
        )
    if not _WHOLE.fullmatch(labels[0]):
        return tuple(sorted(labels)), False
    values: dict[int, str] = {}
    for label in labels:
        if not _WHOLE.fullmatch(label):
            raise UserError(
                f"{train.where(label)}: label {shown(label)} is no whole number, but the first "
                f"one, {labels[0]}, is; use numbers or names in all rows"
            )
        value = int(label)
        if value < 0:
            raise UserError(
                f"{train.where(label)}: label {value} is out of range, labels are 0 or more; "
                "correct or remove it"
            )
        values.setdefault(value, label)
    largest = max(values)
    if len(values) <= largest:
        missing = next(k for k in range(largest) if k not in values)
        raise UserError(
            f"{train.where(values[largest])}: label {largest}, but no row has label {missing}; "
            "number the classes from 0 on without gaps, or write their names"
        )
    return tuple(map(str, range(largest + 1))), True


def _whole(path: Path) -> _Part:
    part = _part(path)
    for row in _rows(path):
        part.add(row)
    if not part.labels:
        raise UserError(f"{path}: no rows below the header; add some")
    return part


def _by_split(path: Path) -> dict[str, _Part]:
    parts: dict[str, _Part] = {}
    for row in _rows(path):
        number, *_, split = row
        if split is None:
            raise UserError(
                f"{path}: has no column split to say which rows to test on; add one (train, test), "
                "or pass a folder with train.csv and test.csv"
            )
        part = parts.get(split)
        if part is None:
            if split not in ("train", *_TESTS):
                raise UserError(
                    f"{path}, {_unit(path)} {number}: split {shown(split)} is none of train, test, "
                    "val; correct or remove it"
                )
            part = parts[split] = _part(path)
        part.add(row)
    for needed in (("train",), _TESTS):
        if not any(name in parts for name in needed):
            raise UserError(f"{path}: no row has split {' or '.join(needed)}; add some")
    return parts


def _part(path: Path) -> _Part:
    unit = _unit(path)
    return _Part(path, unit, PathList(path, unit=unit))


def _unit(path: Path) -> str:
    return "row" if path.suffix.lower() == ".parquet" else "line"


def _rows(path: Path) -> Iterator[Row]:
    try:
        yield from _parquet_rows(path) if _unit(path) == "row" else _csv_rows(path)
    except OSError as error:
        raise UserError(f"{path}: {error.strerror or error}; it must be readable") from error


def _csv_rows(path: Path) -> Iterator[Row]:
    # Bytes that are no UTF-8 stand for themselves, as they do in names of files.
    with open(path, encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        first = file.readline()
        headers = {
            delimiter: [name.strip() for name in next(csv.reader([first], delimiter=delimiter), [])]
            for delimiter in _DELIMITERS
        }
        fitting = [d for d, names in headers.items() if {"path", "label"} <= set(names)]
        delimiter = (fitting or _DELIMITERS)[0]
        header = headers[delimiter]
        a, b, c, d = _columns(path, header)
        file.seek(0)
        reader = csv.reader(file, delimiter=delimiter)
        next(reader)
        try:
            for row in reader:
                if len(row) != len(header):
                    if not row:
                        continue
                    raise UserError(
                        f"{path}, line {reader.line_num}: {len(row)} fields, the header has "
                        f"{len(header)}; quote a path that holds a delimiter"
                    )
                yield (
                    reader.line_num,
                    row[a],
                    row[b].strip(),
                    None if c is None else row[c].strip(),
                    None if d is None else row[d].strip(),
                )
        except csv.Error as error:
            raise UserError(f"{path}, line {reader.line_num}: {error}; correct the line") from error


def _parquet_rows(path: Path) -> Iterator[Row]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise UserError(
            f"{path}: reading Parquet needs pyarrow; pip install pyarrow, or write the table as CSV"
        ) from error
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            names = file.schema_arrow.names
            used = [k for k in _columns(path, names) if k is not None]
            number = 0
            for batch in file.iter_batches(columns=[names[k] for k in used]):
                columns = dict(zip(batch.schema.names, batch.columns, strict=True))
                lists = [_values(columns[name]) if name in columns else None for name in _COLUMNS]
                for k in range(batch.num_rows):
                    number += 1
                    name, label, clean, split = (
                        None if column is None else _text(column[k]) for column in lists
                    )
                    yield number, name, label, clean, split
    except pyarrow.ArrowException as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{path}: cannot be read as Parquet ({reason}); write it anew") from error


def _values(column) -> list:
    if column.null_count:
        return column.to_pylist()
    return column.to_numpy(zero_copy_only=False).tolist()  # several times as fast


_COLUMNS = ("path", "label", "clean_label", "split")


def _text(value: object) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, bytes):
        return value.decode("utf-8", "surrogateescape")
    return "" if value is None else str(value)


def _columns(path: Path, header: Sequence[str]) -> list[int | None]:
    """Where each column stands; None where there is none."""
    for name in _COLUMNS[:2]:
        if name not in header:
            raise UserError(
                f"{path}: no column {name}; the first line must name the columns path and label, "
                f"and if you have them clean_label and split; found {shown(', '.join(header))}"
            )
    for name in _COLUMNS:
        if header.count(name) > 1:
            raise UserError(f"{path}: several columns {name}; keep one")
    return [header.index(name) if name in header else None for name in _COLUMNS]


LAYOUT = Layout(
    name="table",
    looked_for="a file "
    + ", ".join(SUFFIXES)
    + " with columns path, label, split, or a folder with such files train and test (or val)",
    splits=("train", "test"),
    find=find,
    read=read,
)
