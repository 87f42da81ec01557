"""What lies in a folder: images, other files, lists, folders, and what is skipped.

Hidden entries and those of operating systems are skipped and counted. A link to a folder is
followed once, so circles of links end.
"""

import os
from collections import Counter
from collections.abc import Container, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from alr_fast.utils.text import printable

# Suffixes of the formats in `alr_fast.data.images.decode.FORMATS`.
IMAGE_SUFFIXES = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".webp", ".gif", ".bmp", ".dib"),
    *(".tif", ".tiff", ".ppm", ".pgm", ".pbm", ".pnm", ".pfm", ".avif", ".avifs"),
    *(".jp2", ".j2k", ".j2c", ".jpc", ".jpf", ".jpx"),
)
LIST_SUFFIXES = (".csv", ".tsv", ".parquet", ".jsonl", ".ndjson")
# Written by operating systems, file servers and tools; compared in lower case.
SYSTEM_NAMES = frozenset(
    (
        *("@eadir", "#recycle", "__macosx", "lost+found", "thumbs.db", "desktop.ini"),
        *("$recycle.bin", "system volume information", "__pycache__"),
    )
)
_IMAGES = frozenset(IMAGE_SUFFIXES)
_MOST_ENTRIES = 100_000  # that an inventory for a message looks at


@dataclass
class Folder:
    """The content of one folder.

    Attributes:
        path: Path below the root with forward slashes; empty for the root.
        images: Names of image files, sorted; broken links are among them.
        kinds: Suffix -> number of image files.
        others: Names of other files, sorted.
        folders: Names of folders, sorted.
        skipped: Names of hidden and system entries, sorted.
    """

    path: str = ""
    images: list[str] = field(default_factory=list)
    kinds: dict[str, int] = field(default_factory=dict)
    others: list[str] = field(default_factory=list)
    folders: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)

    def below(self, name: str) -> str:
        """Path of an entry below the root."""
        return f"{self.path}/{name}" if self.path else name


def is_skipped(name: str) -> bool:
    """Whether an entry is hidden or belongs to the system."""
    return name.startswith(".") or name.lower() in SYSTEM_NAMES


def suffix_of(name: str) -> str:
    """Suffix of a file name in lower case, with its dot; empty without one."""
    return os.path.splitext(name)[1].lower()


def scan(root: Path, path: str = "", most: int | None = None) -> Folder:
    """The content of the folder at ``path`` below the root.

    Args:
        root: The root.
        path: Path below it, with forward slashes.
        most: Number of entries after which to stop; None for all.

    Raises:
        OSError: The folder cannot be read.
    """
    folder = Folder(path)
    images, others, folders, skipped = folder.images, folder.others, folder.folders, folder.skipped
    kinds = folder.kinds
    with os.scandir(os.path.join(root, path) if path else root) as entries:
        for number, entry in enumerate(entries):
            if number == most:
                break
            name = entry.name
            # First the millions of plain files, without a call of a function here.
            suffix = name[name.rfind(".") :].lower()
            if suffix in _IMAGES and name[0] != "." and entry.is_file(follow_symlinks=False):
                images.append(name)
                kinds[suffix] = kinds.get(suffix, 0) + 1
            elif is_skipped(name):
                skipped.append(name)
            elif _is_folder(entry):
                folders.append(name)
            elif suffix_of(name) in _IMAGES:
                images.append(name)
                kinds[suffix] = kinds.get(suffix, 0) + 1
            else:
                others.append(name)
    for names in (images, others, folders, skipped):
        names.sort()
    return folder


def _is_folder(entry: os.DirEntry) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that leads to itself
        return False


@dataclass
class Inventory:
    """What lies below a folder, in numbers and examples.

    Attributes:
        root: The folder.
        images: Suffix -> number of image files.
        others: Suffix -> number of other files, lists among them.
        depths: Folders between the root and an image -> number of images.
        example: Path of one image below the root; empty without any.
        folders: Number of folders below the root.
        lists: Paths of possible lists of images.
        skipped: Name -> number of skipped entries; all hidden ones are one name.
        unreadable: Path of a folder -> why it cannot be read.
        links: Paths of links to folders that were seen before.
        complete: Whether everything was looked at.
    """

    root: Path
    images: Counter[str] = field(default_factory=Counter)
    others: Counter[str] = field(default_factory=Counter)
    depths: Counter[int] = field(default_factory=Counter)
    example: str = ""
    folders: int = 0
    lists: list[str] = field(default_factory=list)
    skipped: Counter[str] = field(default_factory=Counter)
    unreadable: dict[str, str] = field(default_factory=dict)
    links: list[str] = field(default_factory=list)
    complete: bool = True

    def add(self, folder: Folder) -> None:
        """Counts the content of a folder."""
        if folder.images:
            self.images.update(folder.kinds)
            depth = folder.path.count("/") + 1 if folder.path else 0
            self.depths[depth] += len(folder.images)
            self.example = self.example or folder.below(folder.images[0])
        if folder.others:
            self.others.update(map(suffix_of, folder.others))
            self.lists += [
                folder.below(name) for name in folder.others if suffix_of(name) in LIST_SUFFIXES
            ]
        self.folders += bool(folder.path)
        for name in folder.skipped:
            self.skipped[name if name.lower() in SYSTEM_NAMES else "hidden"] += 1

    @property
    def total(self) -> int:
        """Number of image files."""
        return self.images.total()

    def summary(self) -> str:
        """One line: what lies there."""
        parts = []
        if self.images:
            where = f", for example {printable(self.example)}"
            parts.append(f"{counted(self.images)} (images{where})")
        if self.others:
            parts.append(f"{counted(self.others)} (no images)")
        if self.lists:
            shown = ", ".join(map(printable, self.lists[:3]))
            parts.append(f"lists: {shown}{', ...' if len(self.lists) > 3 else ''}")
        parts.append(f"{self.folders:,} folders" if self.folders != 1 else "1 folder")
        if self.skipped:
            parts.append(f"skipped: {counted(self.skipped)}")
        if self.unreadable:
            path, reason = next(iter(self.unreadable.items()))
            parts.append(f"unreadable: {printable(path)} ({reason})")
        start = "" if self.complete else "at first sight "
        return start + "; ".join(parts)


def take_inventory(root: Path, most: int | None = _MOST_ENTRIES) -> Inventory:
    """Counts what lies below a folder.

    Args:
        root: The folder.
        most: Number of files and folders to look at; None for all.
    """
    inventory = Inventory(root)
    for folder in walk(root, inventory=inventory, most=most):
        inventory.add(folder)
    return inventory


def walk(
    root: Path,
    path: str = "",
    *,
    inventory: Inventory | None = None,
    most: int | None = None,
    barred: Container[tuple[int, int]] = (),
) -> Iterator[Folder]:
    """The folder at ``path`` below the root and all folders in it, in sorted order.

    Args:
        root: The root.
        path: Where to begin.
        inventory: Receives unreadable folders and links to folders that were seen; without it an
            unreadable folder raises.
        most: Number of entries to look at; None for all.
        barred: Device and inode of folders below the first one that are not entered.

    Raises:
        OSError: A folder cannot be read, and there is no inventory.
    """
    seen: set[tuple[int, int]] = set()
    waiting = [path]
    left = most
    while waiting:
        place = waiting.pop()
        try:
            identity = identity_of(root, place)
            if identity in seen or (seen and identity in barred):
                if inventory is not None:
                    inventory.links.append(place)
                continue
            seen.add(identity)
            folder = scan(root, place, left)
        except OSError as error:
            if inventory is None:
                raise
            inventory.unreadable[place] = error.strerror or str(error)
            continue
        yield folder
        if left is not None:
            parts = (folder.images, folder.others, folder.folders, folder.skipped)
            left -= sum(map(len, parts))
            if left <= 0:
                if inventory is not None:
                    inventory.complete = False
                return
        waiting += [folder.below(name) for name in reversed(folder.folders)]


def holds_image(root: Path, path: str = "", *, most: int | None = None) -> bool:
    """Whether there is an image in the folder at ``path`` below the root, at any depth.

    Stops at the first one; unreadable folders count as empty.

    Args:
        root, path: The folder.
        most: Number of entries after which to give up; None for all.
    """
    seen: set[tuple[int, int]] = set()
    waiting, number = [path], 0
    while waiting:
        place = waiting.pop()
        try:
            identity = identity_of(root, place)
            if identity in seen:
                continue
            seen.add(identity)
            with os.scandir(os.path.join(root, place)) as entries:
                for entry in entries:
                    number += 1
                    if number == most:
                        return False
                    if is_skipped(entry.name):
                        continue
                    if _is_folder(entry):
                        waiting.append(f"{place}/{entry.name}" if place else entry.name)
                    elif suffix_of(entry.name) in _IMAGES:
                        return True
        except OSError:
            continue
    return False


def identity_of(root: Path, path: str = "") -> tuple[int, int]:
    """Device and inode of a folder.

    Raises:
        OSError: It cannot be read.
    """
    stat = os.stat(os.path.join(root, path) if path else root)
    return stat.st_dev, stat.st_ino


def counted(numbers: Counter[str], most: int = 4) -> str:
    """The most frequent names with their numbers: ``16 .jpg, 3 .txt``."""
    common = numbers.most_common(most)
    shown = [f"{number:,} {printable(name) or 'without a suffix'}" for name, number in common]
    rest = numbers.total() - sum(number for _, number in common)
    return ", ".join([*shown, *([f"{rest:,} more"] if rest else [])])
