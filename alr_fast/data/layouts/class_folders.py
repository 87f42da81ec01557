"""Class folders: the images in them, and what else is there."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from alr_fast.data.classes import sort_names
from alr_fast.data.index import PathTable
from alr_fast.data.inventory import (
    SYSTEM_NAMES,
    Folder,
    Inventory,
    counted,
    identity_of,
    scan,
    suffix_of,
    walk,
)
from alr_fast.data.layouts.base import Listing, NoSplit, new_index
from alr_fast.data.layouts.splits import role_of
from alr_fast.errors import UserError
from alr_fast.utils.text import printable, some_names

# Folders that hold parts of a data set, not a class.
PARTS = frozenset(
    (
        *("images", "image", "imgs", "img", "jpegimages", "photos", "pictures", "data", "labels"),
        *("label", "annotations", "annotation", "masks", "mask", "segmentations", "meta"),
    )
)


def list_class_folders(
    root: Path, folder: Path, class_names: tuple[str, ...] | None = None, *, inner: str = ""
) -> Listing:
    """The images below ``folder/<class>``, sorted by path.

    Args:
        root: Folder that the paths of the samples are relative to.
        folder: Folder, the root or below it, that contains the class folders.
        class_names: The classes, of which the folder may lack some; None to take those of the
            folder that contain images.
        inner: Name of the folder within each class folder that contains the images.

    Raises:
        UserError: There are fewer than two classes, or there is a folder of another class than
            ``class_names``, or no image at all; or a folder cannot be read.
    """
    base = "" if folder == root else folder.relative_to(root).as_posix()
    lister = _Lister(root, base, inner)
    table = PathTable.of(lister.paths())
    used = {name: count for name, count in lister.counts.items() if count}
    if class_names is None:
        class_names = sort_names(used)
        if len(class_names) < 2:
            only = f"only one class ({printable(class_names[0])})" if used else "no images"
            raise UserError(f"{folder}: {only}; training needs two or more classes")
    unknown = sorted(set(used) - set(class_names))
    if unknown:
        raise UserError(
            f"{folder / unknown[0]}: this class is not one of the training classes; remove it or "
            "add training images of it"
        )
    if not used:
        raise NoSplit(f"{folder}: no images in its class folders")
    number = {name: k for k, name in enumerate(class_names)}
    labels = np.repeat([number[name] for name in used], list(used.values()))
    index = new_index(table, labels, class_names)
    return Listing(index, tuple(lister.sources), None, tuple(lister.remarks()))


def candidates(root: Path, path: str) -> list[str]:
    """Names of the class folders at ``path``; at the root those of splits are none."""
    names = _scanned(root, path).folders
    if path:
        return names
    return [name for name in names if role_of(name) in (None, "train")
            and name.lower() not in PARTS]  # fmt: skip


def _scanned(root: Path, path: str) -> Folder:
    try:
        return scan(root, path)
    except OSError as error:
        raise _unreadable(root / path, error) from error


def _unreadable(path: Path, error: OSError) -> UserError:
    return UserError(
        f"{error.filename or path}: {error.strerror or error}; make the folder readable, or move "
        "it away"
    )


class _Lister:
    """Lists the images in the class folders at one place, and what else is there.

    Args:
        root: The root.
        base: Folder of the class folders, below the root; empty for the root.
        inner: Folder within each class folder.

    Attributes:
        counts: Class folder -> number of images, in the order of the paths.
        sources: Folders that were read.
    """

    def __init__(self, root: Path, base: str, inner: str) -> None:
        self.root = root
        self.base = base
        self.inner = inner
        self.counts: dict[str, int] = {}
        self.sources: list[Path] = []
        self._inventory = Inventory(root)
        self._deepest = 0
        self._beside = Folder(base)

    def paths(self) -> Iterator[str]:
        """Paths below the root; holds those of one class in memory at a time."""
        names = candidates(self.root, self.base)
        self._beside = _scanned(self.root, self.base)
        self.sources.append(self.root / self.base)
        places = [self._beside.below(name) for name in names]
        try:
            # A link in a class that leads to another one, or above, is not followed.
            outside = {identity_of(self.root), identity_of(self.root, self.base)}
            barred = outside.union(identity_of(self.root, place) for place in places)
            for name, place in zip(names, places, strict=True):
                paths = self._images(place, outside, barred)
                self.counts[name] = len(paths)
                yield from paths
        except OSError as error:
            raise _unreadable(self.root / self.base, error) from error

    def _images(
        self, place: str, outside: set[tuple[int, int]], barred: set[tuple[int, int]]
    ) -> list[str]:
        """Paths of a class, sorted.

        Args:
            place: Its folder.
            outside: Device and inode of the folders above all classes.
            barred: These, and the folders of all classes.
        """
        start = f"{place}/{self.inner}" if self.inner else place
        if self.inner and not (self.root / start).is_dir():
            return []
        if identity_of(self.root, start) in (barred if self.inner else outside):
            self._inventory.links.append(start)
            return []
        paths: list[str] = []
        inventory = Inventory(self.root)
        for folder in walk(self.root, start, inventory=inventory, barred=barred):
            prefix = folder.below("")
            paths += [prefix + name for name in folder.images]
            self._inventory.add(folder)
            self.sources.append(self.root / folder.path)
            if folder.images:
                self._deepest = max(self._deepest, folder.path.count("/") - start.count("/"))
        self._inventory.links += inventory.links
        for path, reason in inventory.unreadable.items():
            raise UserError(
                f"{self.root / path}: {reason}; make the folder readable, or move it away"
            )
        # Deeper ones are mixed in by name: sorted as whole paths.
        return sorted(paths)

    def remarks(self) -> list[str]:
        """Lines about what was not taken, or read in a way that may surprise."""
        where = printable(self.base or str(self.root))
        lines = []
        empty = [printable(name) for name, count in self.counts.items() if not count]
        if empty:
            what = "class folder" if len(empty) == 1 else "class folders"
            lines.append(f"{where}: no images in the {what} {some_names(empty)}: left out")
        if self._deepest:
            lines.append(
                f"{where}: images lie up to {self._deepest + 1} folders deep; the folder directly "
                f"in {where} is the class, those in it are no classes"
            )
        others = self._inventory.others
        if self.base:
            others = others + Counter(map(suffix_of, self._beside.others))
        if others:
            lines.append(f"{where}: not taken: {counted(others)}, which are no images")
        if self._beside.images and self.base:
            images = Counter(self._beside.kinds)
            lines.append(f"{where}: not used: {counted(images)} beside the class folders")
        skipped = self._inventory.skipped + Counter(
            name for name in self._beside.skipped if name.lower() in SYSTEM_NAMES
        )
        if skipped:
            lines.append(f"{where}: skipped: {counted(skipped)} entries of the system")
        links = self._inventory.links
        if links:
            lines.append(
                f"{where}: not followed: {some_names(list(map(printable, links)))}, links to "
                "folders that are listed already"
            )
        return lines
