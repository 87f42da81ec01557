"""A folder of images with one subfolder for each class.

``root/{train,test|val}/<class>/*.{jpg,jpeg,png,webp}``
"""

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

from alr_fast.data.index import PathTable
from alr_fast.data.layouts.base import (
    IMAGE_SUFFIXES,
    Found,
    Layout,
    Listing,
    list_images,
    new_index,
)
from alr_fast.errors import UserError

LOOKED_FOR = "train/<class>/* and test/<class>/* (or val), files " + " ".join(IMAGE_SUFFIXES)


def find(root: Path) -> Found | None:
    """A folder with class folders in train/, and test/ or val/ beside it."""
    tests = [name for name in ("test", "val") if (root / name).is_dir()]
    train = root / "train"
    if not tests or not train.is_dir() or not any(entry.is_dir() for entry in os.scandir(train)):
        return None
    return Found(root, f"folders of classes in {root}/train and {root}/{tests[0]}")


def read(found: Found, split: str) -> Listing:
    """Lists the images of a split in sorted order.

    Classes are the subfolders of ``train`` in sorted order. Test images are those in ``test``, or
    in ``val`` if there is no ``test``. The true labels are unknown: ``clean_labels`` is None.

    Raises:
        UserError: There are fewer than two classes, a class without images, or a test class that
            is not in train.
    """
    train = found.root / "train"
    class_names = _class_names(train)
    if len(class_names) < 2:
        raise UserError(f"{train}: only one class ({class_names[0]}); training needs two or more")
    if split == "train":
        folder = train
    else:
        folder = next(found.root / n for n in ("test", "val") if (found.root / n).is_dir())
    listing = list_class_folders(found.root, folder, class_names)
    # The classes depend on train, the choice between test and val on the root.
    return replace(listing, sources=(found.root, train, *listing.sources))


def list_class_folders(root: Path, folder: Path, class_names: tuple[str, ...]) -> Listing:
    """The images of ``folder/<class>/*``, sorted by path.

    Args:
        root: Folder that the paths of the samples are relative to.
        folder: Folder below the root that contains the class folders.
        class_names: The classes; the folder may lack some of them.

    Raises:
        UserError: There is a folder of another class, or one without images.
    """
    found = _class_names(folder)
    unknown = sorted(set(found) - set(class_names))
    if unknown:
        raise UserError(
            f"{folder / unknown[0]}: this class is not one of the training classes; remove it or "
            "add training images of it"
        )
    relative = folder.relative_to(root).as_posix()
    counts: list[int] = []

    def paths() -> Iterator[str]:  # holds the names of one class in memory at a time
        for name in found:
            files = list_images(folder / name)
            if not files:
                raise UserError(
                    f"{folder / name}: no images in this class folder; looked for "
                    f"{' '.join(IMAGE_SUFFIXES)}; remove it or add images"
                )
            counts.append(len(files))
            yield from (f"{relative}/{name}/{file}" for file in files)

    table = PathTable.of(paths())
    labels = np.repeat([class_names.index(name) for name in found], counts)
    sources = (folder, *(folder / name for name in found))
    return Listing(new_index(table, labels, class_names), sources)


def _class_names(split: Path) -> tuple[str, ...]:
    names = sorted(e.name for e in os.scandir(split) if e.is_dir() and not e.name.startswith("."))
    if not names:
        raise UserError(f"{split}: no class folders in it; looked for {LOOKED_FOR}")
    return tuple(names)


LAYOUT = Layout("folder", LOOKED_FOR, find, read)
