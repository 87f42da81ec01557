"""Lists of images as people keep them, in the form that `alr_fast.data.layouts.table` reads.

A list is any table with a column of image names and a column of labels; its names may lack their
folder or their suffix. This file finds the list of each split, its columns and its images;
`open_list` then presents it as a table with the columns path, label, clean_label and split.
"""

import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from alr_fast.data.inventory import IMAGE_SUFFIXES, LIST_SUFFIXES, scan, suffix_of, walk
from alr_fast.data.layouts.base import Found
from alr_fast.data.layouts.splits import role_in, role_of
from alr_fast.data.tables import Batch, Table, TableError, as_text, open_table
from alr_fast.data.tables.roles import find_column
from alr_fast.data.tables.roles import role_of as role_of_column
from alr_fast.errors import UserError
from alr_fast.utils.text import some_names

COLUMNS = ("path", "label", "clean_label", "split")
_ORDER = ("train", "test", "val")
_SAMPLE = 256  # rows that are looked at
_TRIED = 16  # of them, those whose files are looked for
_MOST_FOLDERS = 64  # in which they are looked for
_MOST_NAMES = 1_000_000  # images that are found by their names alone
_MOST_LISTS = 20  # of one folder
_LOOK = 100_000  # entries of one folder
_TRUE, _FALSE = frozenset(("true", "1", "1.0", "yes", "t")), ("false", "0", "0.0", "no", "f", "")
# A column of yes and no, and the splits that these mean.
_FLAGS = {
    "is_test": ("test", "train"),
    "is_valid": ("val", "train"),
    "is_val": ("val", "train"),
    "is_train": ("train", "test"),
    "is_training": ("train", "test"),
    "is_training_image": ("train", "test"),
}
_IDS = ("id", "id_code", "name")  # may be names of images, too
_TRUE_OF_NOISY = "noisy_labels_0"
_NOISY = re.compile(r"noisy_labels_\d+")  # of noisy Imagenette, ..._0 are the true ones


@dataclass(frozen=True)
class Form:
    """How a list names images and labels.

    Attributes:
        path: The list.
        columns: Of `COLUMNS` those that it has, and their names in it; empty to take it as it is.
        split: Split of all rows; None if a column or the paths decide, or none does.
        flag: Splits of yes and no in the column ``split``; None if it contains names.
        by_path: Whether the first folder of a path is its split.
        folder: Folder of the images below the root, with a slash behind it, or empty.
        suffix: What the names of the images lack at their end.
        by_name: Whether images are found by their names anywhere in ``folder``.
        remarks: Lines for the user.
    """

    path: Path
    columns: tuple[tuple[str, str], ...] = ()
    split: str | None = None
    flag: tuple[str, str] | None = None
    by_path: bool = False
    folder: str = ""
    suffix: str = ""
    by_name: bool = False
    remarks: tuple[str, ...] = ()

    def describe(self, root: Path) -> str:
        """Columns and images, for the user."""
        renamed = [f"{role} = {name}" for role, name in self.columns if role != name]
        parts = [", ".join(renamed)] if renamed else []
        if self.by_name:
            parts.append(f"images found by name below {root / self.folder}")
        elif self.folder or self.suffix:
            parts.append(f"images {root / self.folder}/*{self.suffix}".replace("//", "/"))
        return f" ({'; '.join(parts)})" if parts else ""


def parse_columns(text: str) -> dict[str, str]:
    """``path=image_id,label=class`` as a dictionary.

    Raises:
        UserError: It has another form, or names something else than `COLUMNS`.
    """
    columns = {}
    for part in text.split(","):
        role, equals, name = (word.strip() for word in part.partition("="))
        if role not in COLUMNS or not equals or not name or role in columns:
            raise UserError(
                "must be path=NAME,label=NAME with names of columns, also of clean_label and split",
                argument="columns",
                value=text,
            )
        columns[role] = name
    return columns


def find(
    root: Path, columns: Mapping[str, str] | None = None, images: Path | None = None
) -> Found | None:
    """A list, or a folder with a list, or with one for each split.

    Args:
        root: The file or folder.
        columns: Of `COLUMNS` those that have other names in the list.
        images: Folder of the images; None to look for it.

    Raises:
        UserError: A named column does not exist, the folder of images does not exist, or several
            lists may be meant.
    """
    asked = _Asked(root if root.is_dir() else root.parent, dict(columns or {}), images)
    if root.is_file():
        if suffix_of(root.name) not in (*LIST_SUFFIXES, ".txt", ".json"):
            return None
        return asked.found([asked.form(root, None, sure=True)])
    return asked.found(_lists_of_splits(asked) or _single_list(asked))


def _lists_of_splits(asked: "_Asked") -> list[Form]:
    """``train.csv`` and ``test.csv``, or ``train/metadata.csv`` and ``test/metadata.csv``."""
    by_split: dict[str, list[Path]] = {}
    for path in _lists(asked.root):
        split = role_in(path.stem)
        if split is not None and not _is_submission(path):
            by_split.setdefault(split, []).append(path)
    for name in _folders(asked.root):
        split = role_of(name)
        if split is not None:
            by_split.setdefault(split, []).extend(_lists(asked.root / name))
    # Lists that are called train.csv and test.csv are meant, even if their images are missing.
    exact = {split: [path for path in paths if role_of(path.stem) == split]
             for split, paths in by_split.items()}  # fmt: skip
    is_pair = bool(exact.get("train") and (exact.get("test") or exact.get("val")))
    forms: list[Form] = []
    remarks = []
    for split, paths in sorted(by_split.items(), key=lambda item: _ORDER.index(item[0])):
        usable = (form for path in paths if (form := asked.usable(path, split)) is not None)
        form = next(usable, None)
        if form is None and is_pair and exact.get(split):
            form = asked.form(exact[split][0], split, sure=True)
            form = form if form.columns or split == "train" else None
        if form is not None:
            forms.append(form)
        elif split == "train":
            return []
        elif paths:
            names = some_names([path.relative_to(asked.root).as_posix() for path in paths])
            remarks.append(f"not used: {names}, without labels or without names of images")
    if not forms or forms[0].split != "train":
        return []
    return [replace(forms[0], remarks=(*forms[0].remarks, *remarks)), *forms[1:]]


def _is_submission(path: Path) -> bool:
    """Whether a list is a form for predictions, as on Kaggle; its labels are no labels."""
    return "submission" in path.stem.lower()


def _single_list(asked: "_Asked") -> list[Form]:
    lists = [path for path in _lists(asked.root) if not _is_submission(path)]
    usable = [form for path in lists if (form := asked.usable(path, None)) is not None]
    if len(usable) > 1:
        names = some_names([form.path.name for form in usable])
        raise UserError(
            f"{asked.root}: several lists name images and labels ({names}); pass the one that is "
            "meant, as the file"
        )
    return usable


def has_list(root: Path) -> bool:
    """Whether there is a list in a folder whose images are found."""
    asked = _Asked(root, {}, None)
    return any(asked.usable(path, None) is not None for path in _lists(root)
               if not _is_submission(path))  # fmt: skip


def _lists(folder: Path) -> list[Path]:
    try:
        others = scan(folder, most=_LOOK).others
    except OSError:
        return []
    names = [name for name in others if suffix_of(name) in LIST_SUFFIXES]
    return [folder / name for name in names[:_MOST_LISTS]]


def _folders(folder: Path) -> list[str]:
    try:
        return scan(folder, most=_LOOK).folders
    except OSError:
        return []


@dataclass
class _Asked:
    """What the user asked for, and forms of lists under it."""

    root: Path
    columns: dict[str, str]
    images: Path | None
    problem: UserError | None = None

    def __post_init__(self) -> None:
        if self.images is not None:
            place = self.images if self.images.is_dir() else self.root / self.images
            if not place.is_dir():
                raise UserError("no such folder", argument="images", value=self.images)
            self.images = place

    def found(self, forms: list[Form]) -> Found | None:
        if not forms:
            if self.problem is not None:
                raise self.problem
            return None
        root = self._base()
        kind = "table" if len(forms) == 1 else "tables"
        paths = " and ".join(f"{form.path}" for form in forms)
        what = f"{kind} {paths}{forms[0].describe(root)}"
        return Found(root, what, tuple(form.path for form in forms), detail=tuple(forms))

    def _base(self) -> Path:
        """Folder that paths are relative to: the root, or images that lie elsewhere."""
        if self.images is None or self.images.resolve().is_relative_to(self.root.resolve()):
            return self.root
        return self.images

    def usable(self, path: Path, split: str | None) -> Form | None:
        """The form of a list whose images were found; None if it lists none."""
        try:
            return self.form(path, split, sure=False)
        except (_NoList, TableError):
            return None
        except UserError as error:  # a column that the user named; another list may have it
            self.problem = self.problem or error
            return None

    def form(self, path: Path, split: str | None, *, sure: bool) -> Form:
        """The form of a list.

        Args:
            path: The list.
            split: Split of all its rows; None if it may contain several.
            sure: Whether it is known to be one: then images may be missing, and the reader
                describes what is wrong with it.

        Raises:
            _NoList: It lists no images with labels.
            TableError: It cannot be read.
            UserError: A named column does not exist.
        """
        try:
            with open_table(path) as table:
                form = self._form(table, path, split, sure)
        except TableError:
            if not sure:
                raise
            return Form(path, split=split)
        except _NoList as error:
            if not sure:
                raise
            if self.columns:
                raise UserError(f"{path}: {error}; name it, too", argument="columns") from error
            return Form(path, split=split)
        return form

    def _form(self, table: Table, path: Path, split: str | None, sure: bool) -> Form:
        rows = _first_rows(table)
        unclear: list[str] = []
        roles, flag = self._known_columns(table.columns, path, unclear)
        if split is not None:
            roles.pop("split", None)
        place = self._place(path, table.columns, roles, rows)
        if unclear and (sure or place is not None):
            raise UserError(f"{path}: {unclear[0]}", argument="columns")
        if "label" not in roles:
            left = [name for name in table.columns if name not in roles.values() and name]
            if len(left) != 1:
                raise _NoList("no column of labels")
            roles["label"] = left[0]
        remarks = _choose_noisy(roles, table.columns, path)
        if place is None:
            if not sure:
                raise _NoList("no images at the names in its first rows")
            remarks.append(f"{path.name}: the images of its first rows do not exist")
            place = _Place()
        texts = [os.path.normpath(place.folder + text) for text in rows[roles["path"]] if text]
        by_path = (
            split is None
            and "split" not in roles
            and bool(texts)
            and all(role_of(text.split("/")[0]) is not None for text in texts)
        )
        columns = tuple((role, roles[role]) for role in COLUMNS if role in roles)
        return Form(
            *(path, columns, split, flag, by_path, place.folder, place.suffix, place.by_name),
            remarks=tuple(remarks),
        )

    def _known_columns(
        self, header: list[str], path: Path, unclear: list[str]
    ) -> tuple[dict[str, str], tuple[str, str] | None]:
        """Columns by their roles, without those of the names of images that the user did not name;
        and see `Form.flag`. Adds to ``unclear`` what several columns may be."""
        roles = dict(self.columns)
        for role, name in roles.items():
            if name not in header:
                raise UserError(
                    f"{path} has no column {name} for {role}; it has {', '.join(header[:9])}",
                    argument="columns",
                )
        for role in ("label", "clean_label", "split"):
            try:
                known = find_column(role, header, self.columns)
            except ValueError as error:
                unclear.append(str(error))
                continue
            if known is not None:
                roles[role] = known
        lower = _lower(header)
        if "label" not in roles and not unclear and _TRUE_OF_NOISY in lower:
            roles["label"] = lower[_TRUE_OF_NOISY]
        if "split" not in roles:
            known = next((lower[name] for name in _FLAGS if name in lower), None)
            if known is not None:
                roles["split"] = known
        return roles, _FLAGS.get(roles.get("split", "").lower())

    def _place(
        self, path: Path, header: list[str], roles: dict[str, str], rows: dict[str, list[str]]
    ) -> "_Place | None":
        """Finds the images, and the column that names them, which it adds to ``roles``."""
        lower = _lower(header)
        known = [name for name in header if role_of_column(name) == "path"]
        known += [lower[name] for name in _IDS if name in lower]
        candidates = [name for name in dict.fromkeys([*known, *header]) if name]
        if "path" in roles:
            candidates = [roles["path"]]
        candidates = [
            name
            for name in candidates
            if not any(name == other for role, other in roles.items() if role != "path")
        ]
        finder = _Finder(self._base(), self.images, path)
        for look in (finder.in_folders, finder.by_name):
            for name in candidates:
                place = look([text for text in rows[name] if text])
                if place is not None:
                    roles["path"] = name
                    return place
        named = next((name for name in candidates if name in (*known, roles.get("path"))), None)
        if named is None:
            raise _NoList("no column of names of images")
        roles["path"] = named
        return None


def _lower(header: Sequence[str]) -> dict[str, str]:
    """Name of a column in lower case -> the first that is called so."""
    return {name.lower(): name for name in reversed(header)}


def _choose_noisy(roles: dict[str, str], header: Sequence[str], path: Path) -> list[str]:
    """Adds the true labels of noisy Imagenette; returns a line if there are several noisy ones."""
    noisy = [name for name in header if _NOISY.fullmatch(name)]
    if roles["label"] not in noisy or len(noisy) < 2:
        return []
    others = [name for name in noisy if name != roles["label"]]
    if "clean_label" not in roles and others[0] == noisy[0] == _TRUE_OF_NOISY:
        roles["clean_label"] = noisy[0]
    return [f"{path.name}: labels are those of {roles['label']}; others: {', '.join(others)}"]


class _NoList(Exception):
    """A table does not list images with labels."""


@dataclass(frozen=True)
class _Place:
    """Where the images of a list lie; see `Form`."""

    folder: str = ""
    suffix: str = ""
    by_name: bool = False


def _first_rows(table: Table) -> dict[str, list[str]]:
    """The first rows as texts, column by column."""
    if len(table.columns) < 2 or len(set(table.columns)) < len(table.columns):
        raise _NoList("fewer than two columns, or two of one name")
    for batch in table.batches(table.columns, _SAMPLE):
        return {name: _stripped(batch.columns[name]) for name in table.columns}
    raise _NoList("no rows")


def _stripped(column: NDArray[Any]) -> list[str]:
    return [text.strip() for text in as_text(column).tolist()]


class _Finder:
    """Looks for the images that a list names.

    Args:
        root: Folder that the paths will be relative to.
        images: The folder of the images, if the user named it.
        path: The list.
    """

    def __init__(self, root: Path, images: Path | None, path: Path) -> None:
        self.root = root
        self.images = images
        self.path = path
        self._names: dict[str, str] | None = None

    def in_folders(self, texts: Sequence[str]) -> _Place | None:
        """One folder that contains most of these names, perhaps with a suffix behind them."""
        tried = _spread(texts)
        if not tried:
            return None
        for folder in self._folders():
            for suffix in self._suffixes(tried, folder):
                exist = sum(
                    os.path.isfile(os.path.join(self.root, folder, f"{_slashes(text)}{suffix}"))
                    for text in tried
                )
                if 2 * exist > len(tried):
                    return _Place(f"{folder}/" if folder else "", suffix)
        return None

    def by_name(self, texts: Sequence[str]) -> _Place | None:
        """Whether most names are those of images anywhere below the root."""
        tried = _spread(texts)
        start = (
            self._below(self.images) if self.images is not None else self._below(self.path.parent)
        )
        if start is None or not tried:
            return None
        if self._names is None:
            self._names = names_of_images(self.root, start)
        exist = sum(_slashes(text) in self._names for text in tried)
        if 2 * exist > len(tried):
            return _Place(f"{start}/" if start else "", "", True)
        return None

    def _below(self, folder: Path) -> str | None:
        try:
            path = folder.resolve().relative_to(self.root.resolve()).as_posix()
        except ValueError:
            return None
        return "" if path == "." else path

    def _folders(self) -> Iterator[str]:
        """Folders to look in, the most probable first."""
        if self.images is not None:
            path = self._below(self.images)
            if path is not None:
                yield path
            return
        base = self._below(self.path.parent) or ""
        yield base
        first = [name for name in _folders(self.root / base)]
        stem = self.path.stem.lower()
        first.sort(key=lambda name: (name.lower() != stem, role_of(name) != role_in(stem)))
        level = [f"{base}/{name}" if base else name for name in first]
        number = 0
        for _ in range(2):
            for folder in level:
                number += 1
                if number > _MOST_FOLDERS:
                    return
                yield folder
            level = [f"{folder}/{name}" for folder in level[:_MOST_FOLDERS]
                     for name in _folders(self.root / folder)[:_MOST_FOLDERS]]  # fmt: skip

    def _suffixes(self, tried: Sequence[str], folder: str) -> list[str]:
        if all(suffix_of(text) in IMAGE_SUFFIXES for text in tried):
            return [""]
        try:
            images = scan(self.root, folder, 1000).images
        except OSError:
            return [""]
        return ["", *dict.fromkeys(os.path.splitext(name)[1] for name in images)]


def _spread(texts: Sequence[str]) -> list[str]:
    """At most `_TRIED` of the texts, from the first to the last."""
    rows = np.linspace(0, len(texts) - 1, min(_TRIED, len(texts))).astype(int)
    return [text for text in (texts[row] for row in rows) if "\0" not in text]


def _slashes(text: str) -> str:
    return text.replace("\\", "/")


def names_of_images(root: Path, start: str) -> dict[str, str]:
    """Name, with and without its suffix, -> path below ``start`` of each image whose name occurs
    once."""
    names: dict[str, str] = {}
    twice: set[str] = set()
    skip = len(start) + 1 if start else 0
    try:
        for folder in walk(root, start):
            for name in folder.images:
                for key in {name, os.path.splitext(name)[0]}:
                    if key in names:
                        twice.add(key)
                    names[key] = folder.below(name)[skip:]
            if len(names) > 2 * _MOST_NAMES:
                return {}
    except OSError:
        return {}
    for key in twice:
        del names[key]
    return names


@contextmanager
def open_list(form: Form, root: Path) -> Iterator[Table]:
    """Opens a list as a table with the columns of `COLUMNS` that it has.

    Args:
        form: The list.
        root: Folder that its paths are relative to.

    Raises:
        TableError: The file cannot be read or is not a table.
    """
    with open_table(form.path, dict(form.columns)) as table:
        if not form.columns:
            yield table
            return
        columns = dict(form.columns)
        names = names_of_images(root, form.folder.rstrip("/")) if form.by_name else None
        shown = [*columns, *(["split"] if form.by_path else [])]
        batches: Callable[[Sequence[str], int], Iterator[Batch]] = partial(
            _batches, table, form, columns, names
        )
        yield replace(table, columns=shown, batches=batches)


def _batches(
    table: Table,
    form: Form,
    columns: dict[str, str],
    names: dict[str, str] | None,
    wanted: Sequence[str],
    rows: int,
) -> Iterator[Batch]:
    needed = list(dict.fromkeys(columns[role] for role in wanted if role in columns))
    for batch in table.batches(needed, rows):
        taken = {role: batch.columns[columns[role]] for role in wanted if role in columns}
        if "path" in taken and (form.folder or form.suffix or names is not None):
            taken["path"] = _objects(
                os.path.join(form.folder, _slashes(text) + form.suffix if names is None
                             else names.get(_slashes(text), text)) if text else text
                for text in _stripped(taken["path"])
            )  # fmt: skip
        if form.by_path and "split" in wanted:
            taken["split"] = _objects(
                role_of(os.path.normpath(text).split("/")[0]) or "train"
                for text in _stripped(taken["path"])
            )
        elif "split" in taken:
            taken["split"] = _objects(map(partial(_split_of, form.flag), _stripped(taken["split"])))
        yield Batch(batch.numbers, taken)


def _split_of(flag: tuple[str, str] | None, text: str) -> str:
    if flag is None:
        return role_of(text) or text
    if text.lower() in _TRUE:
        return flag[0]
    return flag[1] if text.lower() in _FALSE else text


def _objects(texts: Any) -> NDArray[np.object_]:
    values = list(texts)
    array = np.empty(len(values), dtype=object)
    array[:] = values
    return array
