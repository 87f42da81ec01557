"""Data sets by name: recognises the layout, lists a split, and caches the list."""

import os
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from alr_fast.data.cache import CacheEntry
from alr_fast.data.images import FeatureRows, FileImages, Images
from alr_fast.data.index import SampleIndex
from alr_fast.data.layouts import (
    animal10n,
    cifar,
    clothing1m,
    digits,
    features,
    folder,
    food101n,
    packed,
    table,
    webvision,
)
from alr_fast.data.layouts.base import Found, Layout
from alr_fast.errors import UserError

# `auto` takes the first layout that fits. Many data sets are folders of classes, so that layout
# follows those with a file of their own; animal10n comes after it, because other data sets have
# folders train/{0..9}, too.
LAYOUTS: dict[str, Layout] = {
    layout.name: layout
    for layout in (
        packed.LAYOUT,
        cifar.CIFAR10,
        cifar.CIFAR100,
        clothing1m.LAYOUT,
        webvision.WEBVISION,
        webvision.MINI,
        food101n.LAYOUT,
        folder.LAYOUT,
        animal10n.LAYOUT,
        features.LAYOUT,
        table.LAYOUT,
    )
}
# The names that `open_dataset` takes.
DatasetName = Literal["auto", "digits", "cifar10", "cifar100", "animal10n", "clothing1m",
                      "food101n", "webvision", "webvision-mini", "packed", "folder",
                      "features", "table"]  # fmt: skip


@dataclass(frozen=True)
class Split:
    """Samples of one split and their images or features, row by row.

    Attributes:
        index: Ids, labels and class names.
        images: Encoded image files, an array of pixels, or rows of features.
        remarks: Lines for the user about how the split was read.
    """

    index: SampleIndex
    images: Images
    remarks: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.index)

    @property
    def values(self) -> NDArray[Any] | None:
        """Pixels, uint8 [N, C, S, S], or features [N, D]; None for images that are not in
        memory."""
        images = self.images
        return images.features if isinstance(images, FeatureRows) else images.array

    def input_shape(self, size: int) -> tuple[int, ...]:
        """Shape of one sample as a model gets it: [C, S, S] with S = ``size``, or [D]."""
        if isinstance(self.images, FeatureRows):
            return self.images.features.shape[1:]
        return (3 if self.images.array is None else self.images.array.shape[1], size, size)

    def take(self, rows: NDArray[np.int64]) -> "Split":
        """The samples of these ascending rows, int64 [M], with their ids."""
        return replace(self, index=self.index.take(rows), images=self.images.take(rows))


@dataclass(frozen=True)
class Dataset:
    """A data set on disk.

    Attributes:
        layout: Its layout.
        found: Its place, and a description for the user.
    """

    layout: Layout
    found: Found

    def split(self, name: str) -> Split:
        """Reads one split; takes the list from the cache if its sources have not changed.

        Args:
            name: One of ``layout.splits``.

        Raises:
            NoSplit: The data set lacks this split.
            UserError: The layout has no split of this name, or the data cannot be used.
        """
        if name not in self.layout.splits:
            names = ", ".join(self.layout.splits)
            raise UserError(f"{self.layout.name} has no split {name}; choose from {names}")
        entry = CacheEntry(self.layout.name, self.found, name)
        listing = entry.load()
        if listing is None:
            began = time.time_ns()
            listing = self.layout.read(self.found, name)
            entry.store(listing, began)
        if not len(listing.index):
            raise UserError(f"{self.found.root}: the split {name} of {self.layout.name} is empty")
        images = listing.images
        if images is None:
            images = FileImages(self.found.root, listing.index.paths)
        return Split(listing.index, images, listing.remarks)


def open_dataset(
    name: str, root: str | os.PathLike[str] | None, *, column: str | None = None
) -> Dataset:
    """Finds a data set in a folder; does not list its samples yet.

    Args:
        name: ``digits``, a name of `LAYOUTS`, or ``auto`` to recognise the layout.
        root: Folder or file with the data as downloaded; may be None only for digits.
        column: For features the array or column that contains them; None for the only one.

    Raises:
        UserError: The folder is missing or does not contain this data set; the message names the
            files that were expected and those that were found.
    """
    dataset = _open(name, root)
    if column is None:
        return dataset
    if dataset.layout.name != features.LAYOUT.name:
        raise UserError(
            f"names the vectors of a file of features; leave it out with {dataset.layout.name}",
            argument="column",
            value=column,
        )
    return replace(dataset, found=replace(dataset.found, column=column))


def _open(name: str, root: str | os.PathLike[str] | None) -> Dataset:
    if name == "digits":
        return Dataset(digits.LAYOUT, digits.FOUND)
    if name != "auto" and name not in LAYOUTS:
        raise UserError(
            f"no such data set; choose from auto, digits, {', '.join(LAYOUTS)}",
            argument="name",
            value=name,
        )
    if root is None:
        raise UserError(
            f"data set {name} needs a folder of images or a file; pass one", argument="root"
        )
    path = Path(root)
    if not path.exists():
        raise UserError("no such file or folder", argument="root", value=root)
    candidates = LAYOUTS.values() if name == "auto" else (LAYOUTS[name],)
    for layout in candidates:
        found = layout.find(path)
        if found is not None:
            return Dataset(layout, found)
    looked = "; ".join(f"{layout.name}: {layout.looked_for}" for layout in candidates)
    raise UserError(f"{_state(path)}; looked for {looked}", argument="root", value=root)


def _state(path: Path) -> str:
    """Description of a path without a known layout."""
    if path.is_file():
        return "is not a folder, no list and no file of features"
    names = sorted(os.listdir(path))
    if not names:
        return "the folder is empty"
    shown = ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
    if (path / "train").is_dir() and not any((path / name).is_dir() for name in ("test", "val")):
        shown += "; is a folder test/ or val/ missing?"
    return f"none of the known layouts in it (found: {shown})"
