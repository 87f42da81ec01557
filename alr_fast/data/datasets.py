"""Data sets by name: recognises the layout, lists a split, and caches the list."""

import os
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from alr_fast.data.cache import CacheEntry
from alr_fast.data.images.sources import FeatureRows, FileImages, Images
from alr_fast.data.index import SampleIndex
from alr_fast.data.layouts import (
    animal10n,
    cifar,
    clothing1m,
    digits,
    features,
    folder,
    food101n,
    huggingface,
    idx,
    listed,
    packed,
    table,
    webdataset,
    webvision,
)
from alr_fast.data.layouts.base import Found, Layout
from alr_fast.data.layouts.nearest import not_recognised
from alr_fast.data.paths import is_address
from alr_fast.errors import UserError
from alr_fast.utils.files import reading
from alr_fast.utils.text import did_you_mean

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
        huggingface.LAYOUT,
        webdataset.LAYOUT,
        idx.LAYOUT,
        features.LAYOUT,
        table.LAYOUT,
    )
}
# The names that `open_dataset` takes.
DatasetName = Literal["auto", "digits", "cifar10", "cifar100", "animal10n", "clothing1m",
                      "food101n", "webvision", "webvision-mini", "packed", "folder",
                      "huggingface", "webdataset", "idx", "features", "table"]  # fmt: skip
# Those of them in which any data may lie; the others are published data sets.
FORMS = frozenset({"packed", "folder", "huggingface", "webdataset", "idx", "features", "table"})
# What each option of `open_dataset` does.
_USE = {
    "column": "names the vectors of a file of features",
    "columns": "names the columns of a list",
    "images": "names the folder of the images of a list",
}


@dataclass(frozen=True)
class Split:
    """Samples of one split and their images or features, row by row.

    Attributes:
        index: Ids, labels and class names.
        images: Encoded image files, an array of pixels, or rows of features.
        remarks: Lines for the user about how the split was read.
        arguments: Arguments of the commands that open its data set, see `Dataset`.
    """

    index: SampleIndex
    images: Images
    remarks: tuple[str, ...] = ()
    arguments: tuple[str, ...] = ()

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
        arguments: Arguments with which ``verify`` and ``pack`` open it, from any folder.
    """

    layout: Layout
    found: Found
    arguments: tuple[str, ...] = ()

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
            raise UserError(
                f"{self.layout.name} has no split {name}; choose from {names}"
                f"{did_you_mean(name, self.layout.splits)}"
            )
        entry = CacheEntry(self.layout.name, self.found, name)
        listing = entry.load()
        if listing is None:
            began = time.time_ns()
            with reading(self.found.root):
                listing = self.layout.read(self.found, name)
            entry.store(listing, began)
        if not len(listing.index):
            raise UserError(f"{self.found.root}: the split {name} of {self.layout.name} is empty")
        images = listing.images
        if images is None:
            images = FileImages(self.found.root, listing.index.paths)
        return Split(listing.index, images, listing.remarks, self.arguments)


def open_dataset(
    name: str,
    root: str | os.PathLike[str] | None,
    *,
    column: str | None = None,
    columns: str | Mapping[str, str] | None = None,
    images: str | os.PathLike[str] | None = None,
) -> Dataset:
    """Finds a data set in a folder; does not list its samples yet.

    Args:
        name: ``digits``, a name of `LAYOUTS`, or ``auto`` to recognise the layout.
        root: Folder or file with the data as downloaded; may be None only for digits.
        column: For features the array or column that contains them; None for the only one.
        columns: For lists and Parquet files the names of columns, ``path=image_id,label=class`` or
            a dictionary; None to recognise them.
        images: For lists the folder of the images; None to look for it.

    Raises:
        UserError: The folder is missing or does not contain this data set; the message shows what
            lies there and what is missing, in at most ten lines.
    """
    if name == "digits":
        candidates = [digits.LAYOUT]
    elif name == "auto":
        candidates = list(LAYOUTS.values())
    elif name in LAYOUTS:
        candidates = [LAYOUTS[name]]
    else:
        names = ["auto", "digits", *LAYOUTS]
        raise UserError(
            f"no such data set; choose from {', '.join(names)}{did_you_mean(name, names)}",
            argument="name",
            value=name,
        )
    options = {
        "column": column,
        "columns": listed.parse_columns(columns) if isinstance(columns, str) else columns,
        "images": None if images is None else Path(images),
    }
    given = {option: value for option, value in options.items() if value is not None}
    _refuse_useless(candidates, given)
    candidates = [layout for layout in candidates if set(given) <= set(layout.options)]
    if name == "digits":
        return Dataset(digits.LAYOUT, digits.FOUND)
    if root is None:
        raise UserError(
            f"data set {name} needs a folder of images or a file; pass one", argument="root"
        )
    path = Path(root)
    with reading(path):
        if not path.exists():
            if is_address(root):
                raise UserError(
                    "is an address; only files on a disk are read: download the data, and pass its "
                    "folder",
                    argument="root",
                    value=root,
                )
            link = ", it is a link that leads nowhere" if path.is_symlink() else ""
            raise UserError(f"no such file or folder{link}", argument="root", value=root)
        if not path.is_dir() and not path.is_file():
            raise UserError("is neither a file nor a folder", argument="root", value=root)
        for layout in candidates:
            found = layout.find(path, **given)
            if found is not None:
                return Dataset(layout, found, _arguments(name, path, given))
        raise not_recognised(path, candidates)


def _arguments(name: str, root: Path, given: Mapping[str, Any]) -> tuple[str, ...]:
    words = [os.fspath(root.absolute())]
    words += [] if name == "auto" else ["--data", name]
    if "columns" in given:
        words += ["--columns", ",".join(f"{key}={name}" for key, name in given["columns"].items())]
    if "images" in given:
        words += ["--images", os.path.abspath(given["images"])]
    return tuple(words)


def _refuse_useless(layouts: Iterable[Layout], given: Mapping[str, object]) -> None:
    """Raises `UserError` for an option that none of the layouts takes."""
    layouts = list(layouts)
    for option, value in given.items():
        if not any(option in layout.options for layout in layouts):
            takers = [name for name, layout in LAYOUTS.items() if option in layout.options]
            raise UserError(
                f"{_USE[option]}, for {' or '.join(takers)}; leave it out with {layouts[0].name}",
                argument=option,
                value=None if isinstance(value, Mapping) else value,
            )
