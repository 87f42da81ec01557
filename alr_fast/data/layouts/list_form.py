"""A list of images, read as a table with the columns path, label, clean_label and split, whatever
it calls them and wherever its images lie."""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from alr_fast.data.layouts.places import base_name, names_of_images
from alr_fast.data.layouts.splits import role_of
from alr_fast.data.tables import Batch, Table, as_text, open_table
from alr_fast.data.tables.base import texts

COLUMNS = ("path", "label", "clean_label", "split")
_TRUE, _FALSE = frozenset(("true", "1", "1.0", "yes", "t")), ("false", "0", "0.0", "no", "f", "")


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
            taken["path"] = texts(_full_paths(form, names, stripped(taken["path"])))
        if form.by_path and "split" in wanted:
            first = [os.path.normpath(text).split("/")[0] for text in stripped(taken["path"])]
            taken["split"] = texts([role_of(folder) or folder for folder in first])
        elif "split" in taken:
            taken["split"] = texts(
                [_split_of(form.flag, text) for text in stripped(taken["split"])]
            )
        yield Batch(batch.numbers, taken)


def _full_paths(form: Form, names: dict[str, str] | None, listed: list[str]) -> list[str]:
    """Paths below the root; empty and absolute ones stay."""
    folder, suffix = form.folder, form.suffix
    if names is not None:
        listed = [names.get(base_name(text), text) for text in listed]
    return [folder + text + suffix if text and text[0] != "/" else text for text in listed]


def _split_of(flag: tuple[str, str] | None, text: str) -> str:
    if flag is None:
        return role_of(text) or text
    if text.lower() in _TRUE:
        return flag[0]
    return flag[1] if text.lower() in _FALSE else text


def stripped(column: NDArray[Any]) -> list[str]:
    """A column as texts without blanks around them."""
    return [text.strip() for text in as_text(column).tolist()]
