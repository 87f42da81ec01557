"""Features with labels in one file: embeddings or columns of a table, as NumPy arrays or Parquet.

An .npz file contains the features ``X`` [N, D], the labels ``y`` [N] and optionally
``clean_labels`` [N], ``paths`` [N] (or ``ids``), ``class_names`` [K], and a test part ``X_test``,
``y_test``, ``clean_labels_test``, ``paths_test``. A Parquet file contains a column of vectors and
columns ``label``, optionally ``clean_label``, ``path`` (or ``id``). Either may have ``split``
instead of a test part: train, test or val. `NAMES` lists other names.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from alr_fast.data.classes import ClassMap, alike, check_clean, distinct, mixed, names_of_labels
from alr_fast.data.images.sources import FeatureRows
from alr_fast.data.index import PathTable
from alr_fast.data.layouts.base import Found, Layout, Listing, NoSplit, new_index
from alr_fast.data.tables import TableError, as_text, open_table
from alr_fast.data.tables.array_file import ArrayFile, open_arrays
from alr_fast.errors import UserError
from alr_fast.utils.random import stream
from alr_fast.utils.text import did_you_mean, is_encodable, printable

# Names of the arrays or columns; those of the test part end with _test or begin with test_, and
# those of the training part may have train in these places.
NAMES: dict[str, tuple[str, ...]] = {
    "features": ("X", "features", "embeddings", "embedding"),
    "labels": ("y", "labels", "label", "targets", "target"),
    "clean labels": ("clean_labels", "clean_label", "y_clean"),
    "paths": ("paths", "path", "ids", "id"),
    "class names": ("class_names", "classes", "target_names"),
    "splits": ("split",),
}
TEST_SHARE = 0.2
_SPLITS = ("train", "test", "val")
_ROWS = 1 << 14  # checked at once


def _name(file: ArrayFile, role: str, part: str, only: Sequence[str] | None = None) -> str | None:
    """Name of the array with a role in a part, ``train`` or ``test``; None without one.

    ``only`` are the names that it may have.
    """
    allowed = file.names if only is None else only
    names = [f(name) for name in NAMES[role] for f in _spellings(part) if f(name) in allowed]
    if len(names) > 1 and role != "paths":  # of these the first is taken
        name_it = ", or name it as column" if role == "features" else ""
        raise UserError(
            f"{file.path}: contains {role} twice: {', '.join(names)}; keep one{name_it}"
        )
    return names[0] if names else None


def _spellings(part: str) -> list[Callable[[str], str]]:
    own: list[Callable[[str], str]] = [lambda name: f"{name}_{part}", lambda name: f"{part}_{name}"]
    return [str, *own] if part == "train" else own


def is_file_of_features(path: Path) -> bool:
    """Whether this is an .npz file, or a Parquet file with vectors and labels."""
    if not path.is_file():
        return False
    if path.suffix.lower() != ".parquet":
        return path.suffix.lower() == ".npz"
    try:
        with open_table(path) as table:
            return bool(table.vectors) and any(name in table.columns for name in NAMES["labels"])
    except TableError:
        return False  # the layout of lists describes the problem


def is_vectors(path: Path) -> bool:
    """Whether this is a Parquet file with vectors, labelled or not."""
    if path.suffix.lower() != ".parquet" or not path.is_file():
        return False
    try:
        with open_table(path) as table:
            return bool(table.vectors)
    except TableError:
        return False  # who reads it describes the problem


def find(root: Path, column: str | None = None) -> Found | None:
    """A file of features; ``column`` names those that are meant, None for the only ones."""
    if not is_file_of_features(root):
        return None
    file = open_arrays(root)
    if "split" in file.names or any(_name(file, role, "test") for role in ("features", "labels")):
        return Found(root.parent, f"features in {root}", (root,), column)
    return Found(
        root.parent,
        f"features in {root}, without a test part: {TEST_SHARE:.0%} of each class, the same for "
        "every seed, are held out for testing",
        (root,),
        column,
    )


def read(found: Found, split: str) -> Listing:
    """Reads one split in the order of its file; everything is kept in memory.

    Classes are ``class_names``, and labels their names, or positions where no name is meant, see
    `ClassMap.resolve`. Without class names, each label that occurs in training is a class, ordered
    by value if all are integers, else as texts. The labels of a test part are the clean ones if it
    has them. Without a test part, 20 % of each class are held out.

    Raises:
        NoSplit: It has splits, but no test rows.
        UserError: The file cannot be read or lacks features or labels; or an array has another
            shape, type or length than it must have; or, with the row (from 0) and column, a value
            is not finite; or a label is not one of the classes.
    """
    (path,) = found.lists
    file = open_arrays(path)
    train_name, test_name = _names_of_features(file, found.column)
    train = _read_labels(file, "train")
    splits = _read_splits(file, len(train.given))
    if splits is not None and test_name is not None:
        raise UserError(f"{path}: contains both splits and {test_name}; keep one of them")
    classes = _read_classes(file, train if splits is None else train.take(splits == "train"))
    if test_name is not None and split == "test":
        name, part, labels = test_name, "test", _read_labels(file, "test")
        rows = np.arange(len(labels.given))
    else:
        name, part, labels = train_name, "train", train
        if test_name is not None:
            rows = np.arange(len(labels.given))
        elif splits is not None:
            rows = _rows_of_split(path, splits, split)
        else:
            rows = _rows_with_held_out(path, classes.codes(labels.best), split)
    values = _checked_features(file.read(name), path, name)
    if len(labels.given) != len(values):
        raise UserError(
            f"{path}: {len(labels.given):,} labels for {len(values):,} rows of {name}; store one "
            "for each"
        )
    paths = _read_paths(file, part, len(values))
    if len(rows) < len(values):
        values, labels = values[rows], labels.take(rows)
    given = classes.codes(labels.given, rows)
    clean = (
        None if labels.clean is None else classes.codes(labels.clean, rows, " of the clean labels")
    )
    if clean is not None:
        check_clean(given, clean, str(path))
        given = clean if split == "test" else given
    names = classes.map.names
    remarks = alike(names) + ([] if classes.listed else mixed(names))
    index = new_index(PathTable.of(paths[row] for row in rows.tolist()), given, names, clean)
    return Listing(index, found.lists, FeatureRows(path, values), tuple(remarks))


def read_unlabelled(path: Path, column: str | None = None) -> tuple[FeatureRows, PathTable]:
    """All rows of the training part of a file of features, whether it has labels or not, and their
    paths.

    Args:
        path: The file.
        column: Name of the array or column of features, also that of a test part; None for the
            only one.

    Raises:
        UserError: The file cannot be read, has no such features, or they are no finite numbers.
    """
    file = open_arrays(path)
    single = column is None and len(file.names) == 1 and file.vectors is None
    name = file.names[0] if single else _name_of_features(file, column)
    values = _checked_features(file.read(name), path, name)
    part = "test" if name.endswith("_test") or name.startswith("test_") else "train"
    return FeatureRows(path, values), PathTable.of(_read_paths(file, part, len(values)))


# Features.


def _name_of_features(file: ArrayFile, column: str | None) -> str:
    """Name of the features for training, or ``column``."""
    allowed = file.names if file.vectors is None else file.vectors
    if column is None:
        name = _name(file, "features", "train", allowed)
        if name is None and file.vectors is not None and len(file.vectors) == 1:
            name = file.vectors[0]
        if name is None:
            raise UserError(
                f"{file.path}: no features; name an array X or features, or pass its name as "
                f"column; found: {', '.join(allowed)}"
            )
        return name
    if column not in allowed:
        raise UserError(
            f"no such vectors in {file.path}; found: {', '.join(allowed)}"
            f"{did_you_mean(column, allowed)}",
            argument="column",
            value=column,
        )
    return column


def _names_of_features(file: ArrayFile, column: str | None) -> tuple[str, str | None]:
    """Names of the features for training and, if there are any, for testing."""
    allowed = file.names if file.vectors is None else file.vectors
    name = _name_of_features(file, column)
    if column is None:
        test = _name(file, "features", "test", allowed)
    else:
        base = column.removesuffix("_train").removeprefix("train_")
        tests = [spell(base) for spell in _spellings("test")]
        test = next((spelled for spelled in tests if spelled in allowed), None)
    labels = _name(file, "labels", "test")
    if test is None and labels is not None:
        raise UserError(
            f"{file.path}: {labels} without features; add {name.removesuffix('_train')}_test, or "
            f"remove it; found: {file.found}"
        )
    return name, test


def _checked_features(array: NDArray[Any], path: Path, name: str) -> NDArray[Any]:
    """The features as float16 or, if they have another type, as float32."""
    shape = " x ".join(map(str, array.shape)) or "a single value"
    if array.ndim != 2 or 0 in array.shape:
        how = "reshape(len(X), -1) makes rows" if array.ndim > 2 else "store one row a sample"
        raise UserError(f"{path}: {name} is {shape}; must be samples x features: {how}")
    if array.dtype.kind not in "fiu":
        raise UserError(f"{path}: {name} is {array.dtype}; must be floating-point numbers")
    with np.errstate(over="ignore"):
        values = array if array.dtype == np.float16 else array.astype(np.float32, copy=False)
    for first in range(0, len(values), _ROWS):
        wrong = np.argwhere(~np.isfinite(values[first : first + _ROWS]))
        if len(wrong):
            row, column = wrong[0] + (first, 0)
            value = array[row, column]
            problem = "too large for float32" if np.isfinite(value) else "not finite"
            raise UserError(
                f"{path}: {name} has {value} in row {row}, column {column}, which is {problem}; "
                "remove the row or fill in a value"
            )
    return values


# Labels.


@dataclass(frozen=True)
class _Labels:
    """Labels as they are written: numbers, or texts of dtype object, [N].

    Attributes:
        given: Given labels.
        clean: Clean labels; None if unknown.
    """

    given: NDArray[Any]
    clean: NDArray[Any] | None

    @property
    def best(self) -> NDArray[Any]:
        """The clean labels if they are known, else the given ones."""
        return self.given if self.clean is None else self.clean

    def take(self, rows: NDArray[Any]) -> "_Labels":
        """The labels of these rows."""
        return _Labels(self.given[rows], None if self.clean is None else self.clean[rows])


def _read_labels(file: ArrayFile, part: str) -> _Labels:
    given, clean = _read_column(file, "labels", part), _read_column(file, "clean labels", part)
    if given is None:
        names = "y or labels (a column label)" if part == "train" else "y_test or labels_test"
        raise UserError(f"{file.path}: no labels; name an array {names}; found: {file.found}")
    if clean is not None and len(clean) != len(given):
        raise UserError(
            f"{file.path}: {len(clean):,} clean labels for {len(given):,} labels; store one for "
            "each"
        )
    return _Labels(given, clean)


def _read_column(file: ArrayFile, role: str, part: str) -> NDArray[Any] | None:
    name = _name(file, role, part)
    if name is None:
        return None
    path, labels = file.path, file.read(name)
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.ndim != 1 or labels.dtype.kind not in "biufUSO":
        shape = " x ".join(map(str, labels.shape)) or "a single value"
        raise UserError(
            f"{path}: {name} is {labels.dtype} of shape {shape}; must be one integer or one "
            "name for each sample"
        )
    return labels if labels.dtype.kind in "biuf" else _texts(file, name, labels)


def _texts(file: ArrayFile, name: str, values: NDArray[Any]) -> NDArray[np.object_]:
    """The values as texts that can be written to a file."""
    texts = as_text(values)
    for row, text in enumerate(texts):
        if not is_encodable(text):
            raise UserError(
                f"{file.path}: {name} has {printable(text)} in row {row}, with a lone surrogate, "
                "half of a character; replace it"
            )
    return texts


@dataclass(frozen=True)
class _Classes:
    """The classes of a file.

    Attributes:
        path: The file.
        map: Its classes.
        listed: Whether the file lists their names; else they are the labels of training.
    """

    path: Path
    map: ClassMap
    listed: bool

    def codes(
        self, labels: NDArray[Any], rows: NDArray[np.int64] | None = None, of: str = ""
    ) -> NDArray[np.int64]:
        """Class of each label, int64 [N]; ``rows`` are their rows in the file, None for all."""
        return self.map.codes(
            labels,
            where=lambda k: f"{self.path}, row {k if rows is None else rows[k]}{of}",
            argument=None,
            positions=self.listed,
        )


def _read_classes(file: ArrayFile, labels: _Labels) -> _Classes:
    """The classes that the file names, or else those of the training labels."""
    path, name = file.path, _name(file, "class names", "train")
    if name is not None and file.vectors is None:  # a column would have a value for each row
        names = tuple(_texts(file, name, np.atleast_1d(file.read(name))).tolist())
        if len(set(names)) < len(names):
            raise UserError(f"{path}: {name} has a name twice; give each class its own")
        return _Classes(path, ClassMap(names), listed=True)
    written: dict[str, int] = {}
    for part in (labels.given, labels.best):
        for text, row in zip(*distinct(part)[:2], strict=True):
            written.setdefault(text, row)
    places = list(written.values())
    names = names_of_labels(list(written), where=lambda k: f"{path}, row {places[k]}")
    if len(names) < 2:
        raise UserError(f"{path}: fewer than two classes; training needs two or more")
    return _Classes(path, ClassMap(names), listed=False)


# Splits and paths.


def _read_splits(file: ArrayFile, size: int) -> NDArray[Any] | None:
    name = _name(file, "splits", "train")
    if name is None:
        return None
    splits = as_text(file.read(name))
    if splits.shape != (size,):
        raise UserError(
            f"{file.path}: {name} has {len(splits):,} entries for {size:,} labels; store one for "
            "each"
        )
    wrong = np.flatnonzero(~np.isin(splits.astype(str), _SPLITS))
    if len(wrong):
        raise UserError(
            f"{file.path}: split {splits[wrong[0]]!r} of row {wrong[0]} is not one of "
            f"{', '.join(_SPLITS)}; correct it"
        )
    if not (splits == "train").any():
        raise UserError(f"{file.path}: no row has split train; add some")
    return splits


def _rows_of_split(path: Path, splits: NDArray[Any], split: str) -> NDArray[np.int64]:
    """Ascending rows of ``train`` or ``test``; the latter is val if no row has test."""
    if split == "test" and not (splits == "test").any():
        split = "val"
    rows = np.flatnonzero(splits == split)
    if not len(rows):
        raise NoSplit(f"{path}: no row has split {' or '.join(_SPLITS[1:])}")
    return rows


def _rows_with_held_out(path: Path, labels: NDArray[np.int64], split: str) -> NDArray[np.int64]:
    """Ascending rows of ``train`` or ``test``, which gets a share of each class, rounded."""
    rng = stream("features for testing", 0)  # the same for every seed of a run
    is_test = np.zeros(len(labels), dtype=bool)
    order = np.argsort(labels, kind="stable")
    borders = np.searchsorted(labels[order], np.arange(int(labels.max()) + 2))
    for first, last in pairwise(borders.tolist()):
        members = rng.permutation(order[first:last])
        is_test[members[: round(TEST_SHARE * len(members))]] = True
    if not is_test.any():
        raise UserError(
            f"{path}: {len(labels):,} rows are too few to hold out {TEST_SHARE:.0%} of each class "
            "for testing; add rows, or a test part X_test and y_test"
        )
    return np.flatnonzero(is_test == (split == "test"))


def _read_paths(file: ArrayFile, part: str, size: int) -> Sequence[str]:
    """Path or id of each row; without any, file and number of the row, ``name/00042``."""
    name = _name(file, "paths", part)
    if name is None:
        prefix = file.path.stem if part == "train" else f"{file.path.stem}-test"
        return [f"{prefix}/{row:05d}" for row in range(size)]
    paths = _texts(file, name, file.read(name))
    if paths.shape != (size,):
        raise UserError(f"{file.path}: {name} has {len(paths):,} entries for {size:,} rows")
    seen: dict[str, int] = {}
    for row, path in enumerate(paths):
        if not path or "\0" in path:
            raise UserError(f"{file.path}: {name} is empty in row {row}; fill it in")
        if seen.setdefault(path, row) != row:
            raise UserError(
                f"{file.path}: {name} of row {row} is that of row {seen[path]}, {path!r}; give "
                "each row its own"
            )
    return list(paths)


LAYOUT = Layout(
    "features",
    "a file .npz with arrays X and y, or .parquet with a column of vectors and a column label",
    find,
    read,
    options=("column",),
)
