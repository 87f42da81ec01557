"""Where the images of a list lie: one folder before their names, a suffix behind them, or anywhere
below a folder, found by name."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from unicodedata import normalize

import numpy as np

from alr_fast.data.inventory import IMAGE_SUFFIXES, scan, suffix_of, walk
from alr_fast.data.layouts.splits import role_in, role_of

_TRIED = 16  # names of a list whose files are looked for
MOST = 0.5  # share of them that must exist
_MOST_FOLDERS = 64  # in which they are looked for
_MOST_NAMES = 1_000_000  # images that are found by their names alone
_LOOK = 100_000  # entries of one folder


@dataclass(frozen=True)
class Place:
    """Where the images of a list lie; see `alr_fast.data.layouts.list_form.Form`."""

    folder: str = ""
    suffix: str = ""
    by_name: bool = False


class Contents:
    """What lies in folders, looked at once for all lists: it takes seconds.

    Args:
        root: Folder that paths are relative to.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        self._names: dict[str, dict[str, str]] = {}
        self._suffixes: dict[str, list[str]] = {}

    def names(self, start: str) -> dict[str, str]:
        """`names_of_images` below a folder."""
        if start not in self._names:
            self._names[start] = names_of_images(self._root, start)
        return self._names[start]

    def suffixes(self, folder: str) -> list[str]:
        """Suffixes of the first images in a folder, as written; none if it cannot be read."""
        if folder not in self._suffixes:
            try:
                images = scan(self._root, folder, 1000).images
            except OSError:
                images = []
            found = dict.fromkeys(os.path.splitext(name)[1] for name in images)
            self._suffixes[folder] = list(found)
        return self._suffixes[folder]


class Finder:
    """Looks for the images that a list names.

    Args:
        root: Folder that the paths will be relative to.
        images: The folder of the images, if the user named it.
        path: The list.
        contents: Of the folders below the root.
    """

    def __init__(self, root: Path, images: Path | None, path: Path, contents: Contents) -> None:
        self.root = root
        self.images = images
        self.path = path
        self._contents = contents

    def in_folders(self, texts: Sequence[str], *, least: float = MOST) -> Place | None:
        """The folder that contains most of these names, or more than the share ``least`` of them,
        perhaps with a suffix behind them."""
        tried = _spread(texts)
        if not tried:
            return None
        # An absolute path has its folder.
        absolute = any(text.startswith(("/", "~", "file:")) for text in tried)
        best, most = None, least * len(tried)
        for folder in [""] if absolute else self._folders():
            for suffix in self._suffixes(tried, folder):
                place = os.path.join(self.root, folder)
                count = sum(_exists(place, text + suffix) for text in tried)
                if count > most:
                    best, most = Place(f"{folder}/" if folder else "", suffix), count
                if most > MOST * len(tried):
                    return best
        return best

    def by_name(self, texts: Sequence[str], *, least: float = MOST) -> Place | None:
        """Whether more than the share ``least`` of these names are those of images anywhere below
        the root."""
        tried = _spread(texts)
        start = (
            self._below(self.images) if self.images is not None else self._below(self.path.parent)
        )
        if start is None or not tried:
            return None
        names = self._contents.names(start)
        if sum(base_name(text) in names for text in tried) > least * len(tried):
            return Place(f"{start}/" if start else "", "", True)
        return None

    def more_by_name(self, place: Place, texts: Sequence[str]) -> Place:
        """A place, or that of `by_name` if it lacks names without folders that others have."""
        tried = _spread(texts)
        missing = sum(not self.contains(place, text) for text in tried)
        if place.by_name or not missing or any(base_name(text) != text for text in tried):
            return place
        other = self.by_name(texts)
        if other is None or sum(not self.contains(other, text) for text in tried) >= missing:
            return place
        return other

    def contains(self, place: Place, text: str) -> bool:
        """Whether there is an image of this name at a place."""
        if place.by_name:
            return base_name(text) in self._contents.names(place.folder.rstrip("/"))
        return _exists(os.path.join(self.root, place.folder), text + place.suffix)

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
        first = [name for name in folders_in(self.root / base)]
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
                     for name in folders_in(self.root / folder)[:_MOST_FOLDERS]]  # fmt: skip

    def _suffixes(self, tried: Sequence[str], folder: str) -> list[str]:
        if all(suffix_of(text) in IMAGE_SUFFIXES for text in tried):
            return [""]
        return ["", *self._contents.suffixes(folder)]


def _spread(texts: Sequence[str]) -> list[str]:
    """At most `_TRIED` of the texts, from the first to the last."""
    rows = np.linspace(0, len(texts) - 1, min(_TRIED, len(texts))).astype(int)
    return [text for text in (texts[row] for row in rows) if "\0" not in text]


def folders_in(folder: Path) -> list[str]:
    """Names of the folders in a folder; none if it cannot be read."""
    try:
        return scan(folder, most=_LOOK).folders
    except OSError:
        return []


def _exists(folder: str, text: str) -> bool:
    """Whether there is a file at a path as it is written in a list."""
    paths = dict.fromkeys((text, text.replace("\\", "/"), text.removeprefix("file://")))
    return any(os.path.isfile(os.path.join(folder, os.path.expanduser(p))) for p in paths)


def base_name(text: str) -> str:
    """The name at the end of a path, in composed Unicode form: macOS writes another one."""
    return normalize("NFC", text.replace("\\", "/").rpartition("/")[2])


def names_of_images(root: Path, start: str) -> dict[str, str]:
    """Path below ``start`` of each image whose name occurs once.

    Its keys are the names as of `base_name`, with and without suffix.
    """
    names: dict[str, str] = {}
    twice: set[str] = set()
    skip = len(start) + 1 if start else 0
    try:
        for folder in walk(root, start):
            for name in folder.images:
                composed = base_name(name) if "\\" not in name else name
                for key in {composed, os.path.splitext(composed)[0]}:
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
