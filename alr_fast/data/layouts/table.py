"""A table that lists each image and its label: CSV or Parquet.

Columns ``path``, relative to the folder of the table, and ``label``, and optionally ``clean_label``
and ``split``. One file, or a folder with ``train.csv`` and ``test.csv`` (or ``val``). Without a
column ``split`` all rows of the file are training samples.
"""

from array import array
from collections import Counter, defaultdict
from collections.abc import Collection, Sequence
from itertools import compress, count
from pathlib import Path
from sys import intern
from typing import cast

import numpy as np
from numpy.typing import NDArray

from alr_fast.data.classes import ClassMap, alike, check_clean, mixed, names_of_labels
from alr_fast.data.index import PathTable
from alr_fast.data.inventory import LIST_SUFFIXES, Inventory, counted, suffix_of, walk
from alr_fast.data.layouts.base import Found, Layout, Listing, NoSplit, new_index
from alr_fast.data.layouts.list_form import COLUMNS, Form, open_list
from alr_fast.data.layouts.listed import find
from alr_fast.data.layouts.lists import SampleList, shown
from alr_fast.data.tables import TableError, as_text
from alr_fast.errors import UserError
from alr_fast.utils.text import printable

_TESTS = ("test", "val")  # the first one that exists is used
_LOOK = 10_000  # entries that may lie beside the listed images, and be counted
_BATCH_ROWS = 1 << 12


def read(found: Found, split: str) -> Listing:
    """Lists one split in the order of its table; a million rows take seconds.

    Labels are names of classes, numbers too: the classes are those of the training rows, ordered by
    value if all are integers, else as texts. Rows of a split ``val`` are the test images if there
    is no split ``test``, and are ignored otherwise.

    Raises:
        NoSplit: There are no test rows.
        UserError: A table cannot be read, or lacks a column or training rows. Or, with the line: a
            field is empty, a path leaves the folder or is listed twice, a label is missing, a
            fraction or negative among numbers, or not one of the training classes.
    """
    forms = cast(tuple[Form, ...], found.detail)
    remarks = [remark for form in forms for remark in form.remarks]
    parts: dict[str, _Part] = {}
    for form in forms:
        parts |= _read_parts(form, found.root, remarks)
        if form.split is not None and form.split not in parts:
            raise UserError(f"{form.path}: no rows below the header; add some")
    if not parts:
        raise UserError(f"{forms[0].path}: no rows below the header; add some")
    if "train" not in parts:
        raise UserError(f"{forms[0].path}: no row has split train; add some")
    wanted = (*dict.fromkeys((split, *(_TESTS if split == "test" else ()))),)
    chosen = next((name for name in wanted if name in parts), None)
    if chosen is None:
        where = f"{forms[0].path}: no row" if len(forms) == 1 else f"{found.root}: no list"
        raise NoSplit(f"{where} has split {' or '.join(wanted)}")
    if split == "train" and all(name in parts for name in _TESTS):
        remarks.append(
            f"not used: {len(parts['val'].samples):,} rows of split val, as the split test is for "
            "testing"
        )
    classes = ClassMap(_class_names(parts["train"]))
    part = parts[chosen]
    tables = {name: table.samples.paths() for name, table in parts.items()}
    if split == "train":
        remarks += _unlisted(found.root, tables.values())
    label_of_code = part.labels_of_codes(classes)
    labels = label_of_code[part.samples.labels()]
    clean = label_of_code[np.frombuffer(part.clean, dtype=np.int64)] if part.clean else None
    if clean is not None:
        check_clean(labels, clean, str(part.path))
    remarks += [*alike(classes.names), *mixed(classes.names)]
    index = new_index(tables[chosen], labels, classes.names, clean)
    return Listing(index, found.lists, remarks=tuple(remarks))


def _unlisted(root: Path, tables: Collection[PathTable]) -> list[str]:
    """A line about the images below the root that no row lists; none if there are too many files to
    look at."""
    # Hashes, as sets of a million texts are large.
    inventory, found, suffixes = Inventory(root), array("q"), list[str]()
    most = _LOOK + 2 * sum(map(len, tables))
    for folder in walk(root, inventory=inventory, most=most):
        found.extend(hash(folder.below(name)) for name in folder.images)
        suffixes += map(intern, map(suffix_of, folder.images))
    if not found or not inventory.complete:
        return []
    listed = np.concatenate([np.fromiter(map(hash, table), np.int64) for table in tables])
    unknown = np.isin(np.frombuffer(found, np.int64), listed, invert=True)
    others = Counter(compress(suffixes, unknown.tolist()))
    if not others:
        return []
    return [f"not used: {counted(others)} in {printable(str(root))}, listed in no row"]


class _Part:
    """The rows of one split. Labels are coded in the order of their first rows until all are known.

    Args:
        path, unit: The table, and the unit of the row numbers.
        root: Folder that paths are relative to.

    Attributes:
        samples: Paths of the rows and codes of their labels.
        clean: Codes of the clean labels.
        codes: Label as written -> code.
        numbers: Label as written -> number of its first row, for messages.
    """

    def __init__(self, path: Path, unit: str, root: Path) -> None:
        self.path = path
        self.unit = unit
        self.samples = SampleList(path, unit=unit, root=root)
        self.clean = array("q")
        self.codes: defaultdict[str, int] = defaultdict(count().__next__)
        self.numbers: dict[str, int] = {}

    def extend(self, numbers: list[int], columns: dict[str, list[str]]) -> None:
        """Adds rows."""
        for name, texts in columns.items():
            if "" in texts:
                raise UserError(
                    f"{self.path}, {self.unit} {numbers[texts.index('')]}: {name} is empty; fill "
                    f"it in or remove the {self.unit}"
                )
        paths = [path.encode("utf-8", "surrogateescape") for path in columns["path"]]
        self.samples.extend(paths, self._codes(columns["label"], numbers), numbers)
        if "clean_label" in columns:
            self.clean.extend(self._codes(columns["clean_label"], numbers))

    def _codes(self, labels: list[str], numbers: list[int]) -> list[int]:
        known = len(self.codes)
        codes = [self.codes[label] for label in labels]
        if len(self.codes) > known:
            for label, number in zip(labels, numbers, strict=True):
                self.numbers.setdefault(label, number)
        return codes

    def where(self, label: str) -> str:
        """File and line of the first row with this label."""
        return f"{self.path}, {self.unit} {self.numbers[label]}"

    def labels_of_codes(self, classes: ClassMap) -> NDArray[np.int64]:
        """The label of each code, int64 [codes]."""
        labels = list(self.codes)
        numbers, _ = classes.resolve(labels, where=lambda k: self.where(labels[k]), positions=False)
        return numbers


def _class_names(train: _Part) -> tuple[str, ...]:
    """Names of the classes: the labels of the training rows."""
    labels = list(train.codes)
    names = names_of_labels(labels, where=lambda k: train.where(labels[k]))
    if len(names) < 2:
        raise UserError(
            f"{train.path}: only one class ({names[0]}); training needs two or more classes"
        )
    return names


def _read_parts(form: Form, root: Path, remarks: list[str]) -> dict[str, _Part]:
    """The splits in a table; without a column ``split`` all rows are for training. Adds remarks."""
    path, only = form.path, form.split
    parts: dict[str, _Part] = {}
    try:
        with open_list(form, root) as table:
            names = _used_columns(path, table.columns)
            if only is not None:
                names = [name for name in names if name != "split"]
            elif "split" not in names:
                only = "train"
            for batch in table.batches(names, _BATCH_ROWS):
                columns = {name: as_text(batch.columns[name]) for name in names}
                for name in names[1:]:
                    columns[name][:] = list(map(str.strip, columns[name]))
                splits = columns.pop("split", np.full(len(batch.numbers), only))
                for split in dict.fromkeys(splits):
                    rows = splits == split
                    numbers = batch.numbers[rows].tolist()
                    if split not in ("train", *_TESTS):
                        raise UserError(
                            f"{path}, {table.unit} {numbers[0]}: split {shown(split)} is not one "
                            "of train, test, val; correct or remove it"
                        )
                    part = parts.setdefault(split, _Part(path, table.unit, root))
                    part.extend(numbers, {n: c[rows].tolist() for n, c in columns.items()})
            remarks += table.remarks
    except TableError as error:
        raise UserError(f"{error.where}: {error}") from error
    return parts


def _used_columns(path: Path, header: Sequence[str]) -> list[str]:
    for name in ("path", "label"):
        if name not in header:
            remedy = (
                "; features in columns of their own belong into an .npz file, with X and y"
                if name == "path"
                else ""
            )
            raise UserError(
                f"{path}: no column {name}; the first line must name the columns path and label, "
                f"and clean_label and split if there are any; found {shown(', '.join(header))}"
                f"{remedy}"
            )
    for name in COLUMNS:
        if header.count(name) > 1:
            raise UserError(f"{path}: several columns {name}; keep one")
    return [name for name in COLUMNS if name in header]


LAYOUT = Layout(
    "table",
    f"a file {', '.join(LIST_SUFFIXES)} with a column of names of images and one of labels, or a "
    "folder with such a file and the images",
    find,
    read,
    ("train", "test", "val"),
    options=("columns", "images"),
)
