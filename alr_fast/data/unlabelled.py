"""Images without labels, as people name them: files, folders, lists."""

import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from alr_fast.data.index import PathTable
from alr_fast.data.inventory import (
    IMAGE_SUFFIXES,
    LIST_SUFFIXES,
    Inventory,
    counted,
    suffix_of,
    walk,
)
from alr_fast.data.layouts.list_form import Form, open_list, stripped
from alr_fast.data.layouts.places import Contents, Finder, Place
from alr_fast.data.paths import WrittenPaths
from alr_fast.data.tables import TableError, open_table
from alr_fast.errors import UserError
from alr_fast.utils.files import reading
from alr_fast.utils.text import printable

_LISTS = (*LIST_SUFFIXES, ".json", ".txt")
_ROWS = 1 << 12  # of a list that are read at once
_SAMPLE = 256  # names of a list whose images are looked for


def find_images(places: Sequence[Path], root: Path | None, log: Callable[[str], None]) -> PathTable:
    """Paths of all images, from the current folder, in the order of the places.

    Folders are searched at any depth, in the order of their names; hidden entries and those of the
    system are left out. A file is an image whatever its name, unless that is one of a list. Whether
    an image can be read is not known before it is opened.

    Args:
        places: Files, folders and lists.
        root: Folder that the paths in lists are relative to; None for the folder of the list.
        log: Takes a line of text about what was not taken.

    Raises:
        UserError: A place does not exist, is a folder without images, or a list that cannot be read
            or that names files elsewhere.
    """

    def paths() -> Iterator[str]:
        for place in places:
            with reading(place):
                if not place.exists():
                    raise UserError("no such file or folder", argument="images", value=place)
                if place.is_dir():
                    yield from _in_folder(place, log)
                elif suffix_of(place.name) in _LISTS:
                    yield from _in_list(place, place.parent if root is None else root)
                else:
                    yield os.fspath(place)

    return PathTable.of(paths())


def _in_folder(folder: Path, log: Callable[[str], None]) -> Iterator[str]:
    inventory = Inventory(folder)
    for part in walk(folder, inventory=inventory):
        inventory.add(part)
        for name in part.images:
            yield os.path.join(folder, part.below(name))
    if not inventory.total:
        raise UserError(
            f"no images in this folder ({inventory.summary()}); images end with "
            f"{', '.join(IMAGE_SUFFIXES[:5])} and the like",
            argument="images",
            value=folder,
        )
    for path, reason in inventory.unreadable.items():
        log(f"{printable(str(folder / path))}: {reason}; left out")
    if inventory.others:
        log(f"{printable(str(folder))}: not taken: {counted(inventory.others)}, no images")


def _in_list(path: Path, root: Path) -> Iterator[str]:
    try:
        form = _form_of(path, root)
        written = WrittenPaths(root)
        with open_list(form, root) as table:
            for batch in table.batches(["path"], _ROWS):
                texts = stripped(batch.columns["path"])
                for number, text in zip(batch.numbers.tolist(), texts, strict=True):
                    where = f"{path}, {table.unit} {number}"
                    if not text:
                        raise UserError(f"{where}: names no image; fill it in or remove the row")
                    found = os.fsdecode(written.relative(os.fsencode(text), where))
                    yield found if root == Path() else os.path.join(root, found)
    except TableError as error:
        raise UserError(f"{error.where}: {error}") from error


def _form_of(path: Path, root: Path) -> Form:
    """The column of a list that names images, and where these lie."""
    with open_table(path) as table:
        column = table.find("path")
        if column is None:
            raise TableError(
                path,
                f"has no column of images; it has {printable(', '.join(table.columns)[:100])}; "
                "call it path",
            )
        batch = next(table.batches([column], _SAMPLE), None)
        names = [] if batch is None else [text for text in stripped(batch.columns[column]) if text]
    if not names:
        raise TableError(path, "has no rows below the header; add some")
    finder = Finder(root, None, path, Contents(root))
    place = finder.in_folders(names) or finder.by_name(names) or Place()
    return Form(
        path,
        (("path", column),),
        folder=place.folder,
        suffix=place.suffix,
        by_name=place.by_name,
    )
