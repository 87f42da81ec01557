"""A table that lists each image and its label: CSV or Parquet.

Columns ``path``, relative to the folder of the table, and ``label``, and optionally ``clean_label``
and ``split``. One file with a column ``split``, or a folder with ``train.csv`` and ``test.csv`` (or
``val``).
"""

import re
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from alr_fast.data.layouts.base import Found, Layout, Listing, new_index
from alr_fast.data.layouts.lists import SampleList, shown
from alr_fast.data.tables import TableError, as_text, open_table
from alr_fast.errors import UserError

SUFFIXES = (".csv", ".tsv", ".parquet")
_TESTS = ("test", "val")  # the first one that exists is used
_COLUMNS = ("path", "label", "clean_label", "split")
_DELIMITERS = ",\t;"
_BATCH_ROWS = 1 << 14
_WHOLE = re.compile(r"[+-]?[0-9]+")
_FRACTION = re.compile(r"[+-]?[0-9]+\.[0-9]*")


class Row(NamedTuple):
    """Number and fields of a row of a table; None for a column that the table does not have."""

    number: int
    path: str
    label: str
    clean_label: str | None
    split: str | None


def find(root: Path) -> Found | None:
    """A table, or a folder with one for training and one for testing."""
    if root.is_file():
        if root.suffix.lower() not in SUFFIXES:
            return None
        return Found(root.parent, f"table {root}", (root,))
    train, test = _first(root, ("train",)), _first(root, _TESTS)
    if train is None or test is None:
        return None
    return Found(root, f"tables {train} and {test}", (train, test))


def _first(root: Path, names: Sequence[str]) -> Path | None:
    files = (root / f"{name}{suffix}" for name in names for suffix in SUFFIXES)
    return next((file for file in files if file.is_file()), None)


def read(found: Found, split: str) -> Listing:
    """Lists one split in the order of its table; a million rows take seconds.

    Labels are integers from 0, or class names, which are numbered in sorted order; the first row
    decides which. Both splits have the classes of the training rows. Rows of a split ``val`` are
    the test images if there is no split ``test``, and are ignored otherwise.

    Raises:
        UserError: A table cannot be read, or lacks a column or a split. Or, with the line: a field
            is empty, a path leaves the folder or is listed twice, a label is a name among
            integers, leaves a gap between them, or is not one of the training classes.
    """
    if len(found.lists) == 2:
        parts = dict(zip(("train", "test"), map(_whole_table, found.lists), strict=True))
    else:
        parts = _by_split(found.lists[0])
    class_names, whole = _classes(parts["train"])
    part = parts["train"] if split == "train" else next(parts[n] for n in _TESTS if n in parts)
    label_of_code = part.labels_of_codes(class_names, whole)
    labels = label_of_code[part.samples.labels()]
    clean = label_of_code[np.frombuffer(part.clean, dtype=np.int64)] if part.clean else None
    return Listing(new_index(part.samples.paths(), labels, class_names, clean), found.lists)


@dataclass
class _Part:
    """The rows of one split. Labels are coded in the order of their first rows until all are known.

    Attributes:
        path, unit: The table, and the unit of the row numbers.
        samples: Paths of the rows and codes of their labels.
        clean: Codes of the clean labels.
        codes: Label as written -> code.
        numbers: Number of the first row with each code, for messages.
    """

    path: Path
    unit: str
    samples: SampleList
    clean: "array[int]" = field(default_factory=lambda: array("q"))
    codes: dict[str, int] = field(default_factory=dict)
    numbers: list[int] = field(default_factory=list)

    @classmethod
    def of(cls, path: Path) -> "_Part":
        unit = _unit(path)
        return cls(path, unit, SampleList(path, unit=unit))

    def add(self, row: Row) -> None:
        number, name, label, clean_label, _ = row
        if "" in (name, label, clean_label):
            empty = next(column for column in _COLUMNS if getattr(row, column) == "")
            raise UserError(
                f"{self.path}, {self.unit} {number}: {empty} is empty; fill it in or remove the "
                f"{self.unit}"
            )
        encoded = name.encode("utf-8", "surrogateescape")
        self.samples.add(encoded, self._code(label, number), number)
        if clean_label is not None:
            self.clean.append(self._code(clean_label, number))

    def _code(self, label: str, number: int) -> int:
        code = self.codes.setdefault(label, len(self.numbers))
        if code == len(self.numbers):
            self.numbers.append(number)
        return code

    def where(self, label: str) -> str:
        """File and line of the first row with this label."""
        return f"{self.path}, {self.unit} {self.numbers[self.codes[label]]}"

    def labels_of_codes(self, class_names: tuple[str, ...], whole: bool) -> NDArray[np.int64]:
        """The label of each code, int64 [codes]; ``whole`` if labels are written as integers."""
        label_of = {name: k for k, name in enumerate(class_names)}
        labels = np.empty(len(self.codes), dtype=np.int64)
        for label, code in self.codes.items():
            name = str(int(label)) if whole and _WHOLE.fullmatch(label) else label
            if name not in label_of:
                raise UserError(
                    f"{self.where(label)}: label {shown(label)} is none of the {len(class_names)} "
                    "training classes; correct it or add training rows of it"
                )
            labels[code] = label_of[name]
        return labels


def _classes(train: _Part) -> tuple[tuple[str, ...], bool]:
    """Names of the classes, and whether they are integers."""
    labels = list(train.codes)
    for label in labels:
        if _FRACTION.fullmatch(label):
            raise UserError(
                f"{train.where(label)}: label {shown(label)} is a fraction; write integers or "
                "class names"
            )
    if len(labels) < 2:
        raise UserError(
            f"{train.path}: only one class ({labels[0]}); training needs two or more classes"
        )
    if not _WHOLE.fullmatch(labels[0]):
        return tuple(sorted(labels)), False
    first: dict[int, str] = {}  # a label may also be written 01
    for label in labels:
        if not _WHOLE.fullmatch(label):
            raise UserError(
                f"{train.where(label)}: label {shown(label)} is not an integer, but the first "
                f"one, {labels[0]}, is; use integers or names in all rows"
            )
        value = int(label)
        if value < 0:
            raise UserError(
                f"{train.where(label)}: label {value} is out of range, labels are 0 or more; "
                "correct or remove it"
            )
        first.setdefault(value, label)
    largest = max(first)
    if len(first) <= largest:
        missing = next(k for k in range(largest) if k not in first)
        raise UserError(
            f"{train.where(first[largest])}: label {largest}, but no row has label {missing}; "
            "number the classes from 0 without gaps, or write their names"
        )
    return tuple(map(str, range(largest + 1))), True


def _whole_table(path: Path) -> _Part:
    part = _Part.of(path)
    for row in _rows(path):
        part.add(row)
    if not len(part.samples):
        raise UserError(f"{path}: no rows below the header; add some")
    return part


def _by_split(path: Path) -> dict[str, _Part]:
    parts: dict[str, _Part] = {}
    for row in _rows(path):
        if row.split is None:
            raise UserError(
                f"{path}: has no column split, so the test rows are unknown; add one (train, "
                "test), or pass a folder with train.csv and test.csv"
            )
        if row.split not in ("train", *_TESTS):
            raise UserError(
                f"{path}, {_unit(path)} {row.number}: split {shown(row.split)} is none of train, "
                "test, val; correct or remove it"
            )
        if row.split not in parts:
            parts[row.split] = _Part.of(path)
        parts[row.split].add(row)
    for needed in (("train",), _TESTS):
        if not any(name in parts for name in needed):
            raise UserError(f"{path}: no row has split {' or '.join(needed)}; add some")
    return parts


def _unit(path: Path) -> str:
    return "row" if path.suffix.lower() == ".parquet" else "line"


def _rows(path: Path) -> Iterator[Row]:
    try:
        with open_table(path, _DELIMITERS) as table:
            names = _used_columns(path, table.columns)
            for batch in table.batches(names, _BATCH_ROWS):
                columns = {name: as_text(batch.columns[name]) for name in names}
                for name in names[1:]:
                    columns[name] = np.array([text.strip() for text in columns[name]], dtype=object)
                missing = np.full(len(batch.numbers), None)
                fields = [columns.get(name, missing).tolist() for name in _COLUMNS]
                yield from map(Row, batch.numbers.tolist(), *fields)
    except TableError as error:
        raise UserError(f"{error.where}: {error}") from error


def _used_columns(path: Path, header: Sequence[str]) -> list[str]:
    for name in ("path", "label"):
        if name not in header:
            raise UserError(
                f"{path}: no column {name}; the first line must name the columns path and label, "
                f"and clean_label and split if there are any; found {shown(', '.join(header))}"
            )
    for name in _COLUMNS:
        if header.count(name) > 1:
            raise UserError(f"{path}: several columns {name}; keep one")
    return [name for name in _COLUMNS if name in header]


LAYOUT = Layout(
    name="table",
    looked_for="a file "
    + ", ".join(SUFFIXES)
    + " with columns path, label, split, or a folder with such files train and test (or val)",
    splits=("train", "test"),
    find=find,
    read=read,
)
