"""Finds lists of images as people keep them.

A list is any table with a column of names of images and one of labels; the names may lack their
folder or their suffix. This file finds the list of each split, its columns and its images;
`alr_fast.data.layouts.list_form` presents it to the reader of tables.
"""

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from alr_fast.data.inventory import LIST_SUFFIXES, Inventory, scan, suffix_of, walk
from alr_fast.data.layouts.base import Found
from alr_fast.data.layouts.list_form import COLUMNS, Form, stripped
from alr_fast.data.layouts.places import MOST, Contents, Finder, Place, folders_in
from alr_fast.data.layouts.splits import role_in, role_of
from alr_fast.data.tables import Table, TableError, open_table
from alr_fast.data.tables.roles import find_column
from alr_fast.data.tables.roles import role_of as column_role
from alr_fast.errors import UserError
from alr_fast.utils.files import open_regular
from alr_fast.utils.text import printable, some_names

_ORDER = ("train", "test", "val")
_SAMPLE = 256  # rows that are looked at
_FEW = 0.1  # share of its images that must exist if its columns are called path and label
_MOST_COLUMNS = 1000  # of which each might name the images
_MOST_LISTS = 20  # of one folder
_LOOK = 100_000  # entries of one folder
_MANY = 10_000  # rows with which a list is not compared with the images beside it
_MOST_JSON = 1 << 26  # bytes
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
_NOISY, _TRUE_NOISY = re.compile(r"noisy_labels_\d+"), "noisy_labels_0"  # of noisy Imagenette


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
    forms = _lists_of_splits(asked) or _single_list(asked)
    if not forms:
        asked.few = True
        forms = _lists_of_splits(asked) or _single_list(asked)
    return asked.found(forms)


def _lists_of_splits(asked: "_Asked") -> list[Form]:
    """``train.csv`` and ``test.csv``, or ``train/metadata.csv`` and ``test/metadata.csv``."""
    by_split: dict[str, list[Path]] = {}
    for path in _lists(asked.root):
        split = role_in(path.stem)
        if split is not None and not _is_submission(path):
            by_split.setdefault(split, []).append(path)
    for name in folders_in(asked.root):
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


def problem_of(path: Path, root: Path) -> str:
    """Why a table is no list of images for `find`."""
    try:
        _Asked(root, {}, None, few=True).form(path, None, sure=False)
    except TableError as error:
        where = error.where.removeprefix(str(path)).removeprefix(", ")
        return f"cannot be read: {where}{': ' if where else ''}{error}"
    except (_NoList, UserError) as error:
        return str(error).removeprefix(f"{path}: ")
    return "lists images with labels"


def has_list(root: Path) -> bool:
    """Whether there is a list in a folder whose images are found, and which has a column of labels
    and lists at least half of the images there: not one of corrections or of broken files."""
    asked = _Asked(root, {}, None)
    for path in _lists(root):
        if not _is_submission(path):
            form = asked.usable(path, None, guess=False)
            if asked.problem or (form is not None and _lists_most(path, root)):
                return True
    return False


def partial_lists(root: Path) -> list[str]:
    """Names of the lists in a folder of images whose images are found."""
    asked = _Asked(root, {}, None)
    return [path.name for path in _lists(root) if asked.usable(path, None, guess=False)]


def _lists_most(path: Path, root: Path) -> bool:
    """Whether a list has at least half as many rows as there are images below the root."""
    with open_table(path) as table:
        rows = max(map(len, table.first_rows(_MANY).values()))
    left = 2 * rows
    if rows == _MANY:
        return True
    for folder in walk(root, inventory=Inventory(root), most=_LOOK):
        left -= len(folder.images)
        if left < 0:
            return False
    return True


def _lists(folder: Path) -> list[Path]:
    try:
        others = scan(folder, most=_LOOK).others
    except OSError:
        return []
    names = [name for name in others if suffix_of(name) in (*LIST_SUFFIXES, ".json")]
    paths = (folder / name for name in names[:_MOST_LISTS])
    return [path for path in paths if path.is_file() and not _is_other_json(path)]


def _is_other_json(path: Path) -> bool:
    """Whether this is JSON, but no list of objects: annotations of boxes may be large."""
    if suffix_of(path.name) != ".json":
        return False
    try:
        with open_regular(path, _MOST_JSON) as file:
            return not file.read(64).lstrip().startswith(b"[")
    except OSError:
        return True


@dataclass
class _Asked:
    """What the user asked for, and forms of lists under it."""

    root: Path
    columns: dict[str, str]
    images: Path | None
    problem: UserError | None = None
    few: bool = False  # whether a list will do if few of its images exist

    def __post_init__(self) -> None:
        if self.images is not None:
            place = self.images if self.images.is_dir() else self.root / self.images
            if not place.is_dir():
                raise UserError("no such folder", argument="images", value=self.images)
            self.images = place
        self._contents = Contents(self._base())

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

    def usable(self, path: Path, split: str | None, *, guess: bool = True) -> Form | None:
        """The form of a list whose images were found; None if it lists none.

        Args:
            path, split: See `form`.
            guess: Whether the only other column may be that of labels, whatever its name.
        """
        try:
            form = self.form(path, split, sure=False)
            label = dict(form.columns)["label"]
            is_label = column_role(label) == "label" or _NOISY.fullmatch(label)
            return form if guess or is_label else None
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
            if self.columns or isinstance(error, _NoLabels):
                raise UserError(f"{path}: {error}") from error
            return Form(path, split=split)
        return form

    def _form(self, table: Table, path: Path, split: str | None, sure: bool) -> Form:
        rows = _first_rows(table)
        unclear: list[str] = []
        roles, flag = self._known_columns(table, unclear)
        if split is not None:
            roles.pop("split", None)
        place = self._place(table, roles, rows, sure)
        if unclear and (sure or place is not None):
            raise UserError(f"{path}: {unclear[0]}", argument="columns")
        if "label" not in roles:
            left = [name for name in table.columns if name not in roles.values() and name]
            if len(left) != 1:
                raise _NoLabels(
                    f"no column label; it has {printable(', '.join(table.columns)[:100])}; name "
                    "the one of labels, as columns (label=...)"
                )
            roles["label"] = left[0]
        remarks = _choose_noisy(roles, table.columns, path)
        if place is None:
            if not sure:
                example = next((text for text in rows[roles["path"]] if text), "")
                raise _NoList(
                    f"names images in its column {roles['path']} (for example "
                    f"{printable(example)}); missing: these images; if they lie elsewhere, pass "
                    "their folder as images"
                )
            example = next((text for text in rows[roles["path"]] if text), "")
            remarks.append(
                f"{path.name}: no images are found for the names in its column {roles['path']} "
                f"(for example {printable(example)}); name their folder, as images"
            )
            place = Place()
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
        self, table: Table, unclear: list[str]
    ) -> tuple[dict[str, str], tuple[str, str] | None]:
        """Columns by their roles, without those of the names of images that the user did not name;
        and see `Form.flag`. Adds to ``unclear`` what several columns may be."""
        roles = dict(self.columns)
        for role, name in roles.items():
            if name not in table.columns:
                raise UserError(
                    f"{table.path} has no column {name} for {role}; it has "
                    f"{', '.join(table.columns[:20])}",
                    argument="columns",
                )
        for role in ("label", "clean_label", "split"):
            try:
                known = find_column(role, table.columns, self.columns)
            except ValueError as error:
                unclear.append(str(error))
                continue
            if known is not None:
                roles[role] = known
        lower = {name.lower(): name for name in table.columns}
        if "split" not in roles:
            known = next((lower[name] for name in _FLAGS if name in lower), None)
            if known is not None:
                roles["split"] = known
        if "label" not in roles and not unclear and _TRUE_NOISY in table.columns:
            roles["label"] = _TRUE_NOISY
        return roles, _FLAGS.get(roles.get("split", "").lower())

    def _place(
        self, table: Table, roles: dict[str, str], rows: dict[str, list[str]], sure: bool
    ) -> Place | None:
        """Finds the images, and the column that names them, which it adds to ``roles``."""
        known = [name for name in table.columns if column_role(name) == "path"]
        known.sort(key=lambda name: name.lower() != "path")
        known += [name for name in table.columns if name.lower() in _IDS]
        candidates = [name for name in dict.fromkeys([*known, *table.columns]) if name]
        if "path" in roles:
            candidates = [roles["path"]]
        taken = [name for role, name in roles.items() if role != "path"]
        candidates = [name for name in candidates if name not in taken]
        finder = Finder(self._base(), self.images, table.path, self._contents)
        looks = [(look, name, MOST) for look in (finder.in_folders, finder.by_name)
                 for name in candidates]  # fmt: skip
        if sure or (self.few and "label" in roles):
            called = {name for name in candidates if column_role(name) == "path"}
            called.add(roles.get("path", ""))
            looks += [(look, name, _FEW) for look, name, _ in looks if name in called]
        for look, name, least in looks:
            texts = [text for text in rows[name] if text]
            place = look(texts, least=least)
            if place is not None:
                place = finder.more_by_name(place, texts)
                if finder.contains(place, name):
                    raise UserError(
                        f"{table.path}: its first line is a sample, no header; write the names "
                        "of the columns above it: path,label"
                    )
                roles["path"] = name
                return place
        named = next((name for name in candidates if name in (*known, roles.get("path"))), None)
        if named is None:
            raise _NoList(
                f"has the columns {printable(', '.join(table.columns)[:100])}; missing: names of "
                "images that exist, or labels; name both as columns (path=..., label=...)"
            )
        roles["path"] = named
        return None


def _choose_noisy(roles: dict[str, str], header: Sequence[str], path: Path) -> list[str]:
    """Adds the true labels of noisy Imagenette; returns a line if there are several noisy ones."""
    noisy = [name for name in header if _NOISY.fullmatch(name)]
    if roles["label"] not in noisy or len(noisy) < 2:
        return []
    others = [name for name in noisy if name != roles["label"]]
    if "clean_label" not in roles and _TRUE_NOISY in others:
        roles["clean_label"] = _TRUE_NOISY
    return [f"{path.name}: labels are those of {roles['label']}; others: {', '.join(others)}"]


class _NoList(Exception):
    """A table does not list images with labels."""


class _NoLabels(_NoList):
    """A table lists images, but labels are in no column or in several."""


def _first_rows(table: Table) -> dict[str, list[str]]:
    """The first rows as texts, column by column; no texts of a column that contains others."""
    if len(table.columns) < 2 or len(set(table.columns)) < len(table.columns):
        raise _NoList(
            f"has the columns {printable(', '.join(table.columns)[:100])}; missing: names of "
            "images and labels, in columns of different names; they are divided by commas, "
            "semicolons or tabs"
        )
    if len(table.columns) > _MOST_COLUMNS:
        raise _NoList(f"has more than {_MOST_COLUMNS:,} columns, which no list of images has")
    rows = table.first_rows(_SAMPLE)
    if not any(map(len, rows.values())):
        raise _NoList("has no rows below the header")
    return {name: stripped(column) for name, column in rows.items()}
