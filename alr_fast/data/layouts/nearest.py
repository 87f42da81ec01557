"""The message for a folder without a known layout: what lies there, the nearest layouts, and what
is missing to be one of them."""

from collections.abc import Callable, Sequence
from pathlib import Path

from alr_fast.data.inventory import (
    IMAGE_SUFFIXES,
    LIST_SUFFIXES,
    Inventory,
    scan,
    suffix_of,
    take_inventory,
)
from alr_fast.data.layouts.base import Layout
from alr_fast.data.layouts.listed import problem_of
from alr_fast.data.layouts.splits import role_of
from alr_fast.data.tables import TableError, open_table
from alr_fast.errors import UserError
from alr_fast.utils.text import printable, some_names

_MOST_LISTS = 2  # that are described
_COMMON = {"images"}  # a folder of many data sets


def not_recognised(root: Path, layouts: Sequence[Layout]) -> UserError:
    """The error for a file or folder that has none of these layouts, in at most ten lines.

    The first line can stand alone. One or two layouts follow, each with what is missing.
    """
    names = [layout.name for layout in layouts]
    which = f"is not {names[0]}" if len(names) == 1 else "none of the known layouts"
    if root.is_file():
        lines = [f"{which}: is neither a folder nor a list nor a file of features"]
        lines += [f"  {layout.name}: {layout.looked_for}" for layout in layouts
                  if len(layouts) == 1 or layout.name in ("features", "table")]  # fmt: skip
        return UserError("\n".join(lines), argument="root", value=root)
    inventory = take_inventory(root)
    if not (inventory.images or inventory.others or inventory.folders):
        lines = [f"the folder is empty{_skipped(inventory)}; pass the folder of a data set"]
    else:
        lines = [f"{which} (found: {_top(root)})", f"  below it: {inventory.summary()}"]
    for layout in _nearest(root, inventory, layouts):
        lines.append(f"  {layout.name}: {layout.looked_for}")
        lines += [f"    {text}" for text in _missing(root, inventory, layout)]
    if len(layouts) > 1:
        lines.append(f"  the other layouts: {', '.join(names)}; name one to see what it needs")
    return UserError("\n".join(lines[:10]), argument="root", value=root)


def _skipped(inventory: Inventory) -> str:
    count = inventory.skipped.total()
    return f" but for {count} hidden or system entries" if count else ""


def _top(root: Path) -> str:
    folder = scan(root, most=100_000)
    names = [*(f"{name}/" for name in folder.folders), *folder.others, *folder.images]
    shown = ", ".join(map(printable, names[:5]))
    return shown + (", ..." if len(names) > 5 else "")


def _nearest(root: Path, inventory: Inventory, layouts: Sequence[Layout]) -> list[Layout]:
    """The one or two layouts that lack the least."""
    if len(layouts) == 1:
        return list(layouts)
    known = {layout.name: layout for layout in layouts}
    marked = [layout for layout in layouts if set(_present(root, layout)) - _COMMON]
    marked.sort(key=lambda layout: -len(_present(root, layout)) / len(layout.marks))
    plain = ["table", "folder"] if inventory.lists else ["folder", "table"]
    nearest = [*marked, *(known[name] for name in plain if name in known)]
    return nearest[:2] or list(layouts[:2])


def _present(root: Path, layout: Layout) -> list[str]:
    return [mark for mark in layout.marks if (root / mark).exists()]


def _missing(root: Path, inventory: Inventory, layout: Layout) -> list[str]:
    """What a folder lacks to have a layout."""
    present = _present(root, layout)
    if present:
        absent = [mark for mark in layout.marks if mark not in present]
        if absent:
            return [f"it has {some_names(present)}; missing: {', '.join(absent)}"]
    describe: dict[str, Callable[[Path, Inventory], list[str]]] = {
        "folder": _for_folder,
        "table": _for_table,
    }
    return describe[layout.name](root, inventory) if layout.name in describe else []


def _for_folder(root: Path, inventory: Inventory) -> list[str]:
    if not inventory.images:
        return ["missing: images"]
    top = scan(root, most=100_000)
    if set(inventory.depths) == {0}:
        return ["missing: a folder for each class; the images lie in the folder itself"]
    train = next((name for name in top.folders if role_of(name) == "train"), None)
    if train is not None:
        return [f"missing: two or more class folders with images in {printable(train)}"]
    tests = [name for name in top.folders if role_of(name) is not None]
    if tests:
        return [f"missing: train/<class>/*, or two class folders beside {printable(tests[0])}"]
    if len(top.folders) == 1:
        return [f"missing: a second class folder beside {printable(top.folders[0])}"]
    return ["missing: two or more class folders; images and labels beside each other are none"]


def _for_table(root: Path, inventory: Inventory) -> list[str]:
    if not inventory.lists:
        return [f"missing: a list ({' '.join(LIST_SUFFIXES)})"]
    lines = []
    for name in inventory.lists[:_MOST_LISTS]:
        try:
            with open_table(root / name) as table:
                named = any(suffix_of(column) in IMAGE_SUFFIXES for column in table.columns)
        except TableError as error:
            lines.append(f"{printable(name)} cannot be read: {error}")
            continue
        if named:
            lines.append(f"{printable(name)} has no header; write path,label above its lines")
        else:
            lines.append(f"{printable(name)}: {problem_of(root / name, root)}")
    return lines
