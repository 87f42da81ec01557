"""Data sets as they lie on disk: one reader a layout, each accepting a download unchanged.

A reader lists samples; it opens no image. A new layout is one file here with a `Layout` and a line
in `alr_fast.data.datasets`.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from alr_fast.data.images import Images
from alr_fast.data.index import PathTable, SampleIndex
from alr_fast.data.layouts.lists import (
    PathList,
    checked_names,
    class_lines,
    joined,
    labelled_lines,
    numbered_lines,
    read_list,
    shown,
)
from alr_fast.errors import UserError

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")


@dataclass(frozen=True)
class Found:
    """Where a layout was recognised.

    Attributes:
        root: Folder that the paths of the samples start from.
        what: What was recognised, for the user: "CIFAR-10 pickles in DIR/cifar-10-batches-py".
        lists: The files that say which samples there are, where the user names them: several
            such data sets may share a root.
    """

    root: Path
    what: str
    lists: tuple[Path, ...] = ()


@dataclass(frozen=True)
class Listing:
    """The samples of one split.

    Attributes:
        index: Samples with labels; paths start from ``Found.root``.
        sources: Files and folders that were read: the index is read anew when one has changed.
        images: The images, where they are not files at the paths of the index.
    """

    index: SampleIndex
    sources: tuple[Path, ...] = ()
    images: Images | None = None


@dataclass(frozen=True)
class Layout:
    """One way in which a data set lies on disk.

    Attributes:
        name: What ``--data.name`` calls it.
        looked_for: What the root must hold, one line for messages.
        splits: Names of the splits, ``train`` and ``test`` among them.
        find: Whether a folder has this layout; looks at names only, None where it does not.
        read: Lists one split: ``read(found, split)``; raises `UserError` for what is wrong with it.
    """

    name: str
    looked_for: str
    splits: tuple[str, ...]
    find: Callable[[Path], Found | None]
    read: Callable[[Found, str], Listing]


def present(path: Path, way_out: str = "restore it from the download") -> Path:
    """The same file or folder.

    Raises:
        UserError: It is not there.
    """
    if not path.exists():
        raise UserError(f"{path}: no such file or folder; {way_out}")
    return path


def list_images(folder: Path) -> list[str]:
    """Sorted names of the image files in a folder; hidden ones are left out."""
    return sorted(
        entry.name
        for entry in os.scandir(folder)
        if entry.name.lower().endswith(IMAGE_SUFFIXES)
        and not entry.name.startswith(".")
        and not entry.is_dir()  # a link that leads nowhere counts: it is missing, and named later
    )


def new_index(
    paths: PathTable,
    labels: NDArray[np.int64],
    class_names: tuple[str, ...],
    clean_labels: NDArray[np.int64] | None = None,
) -> SampleIndex:
    """The index of a whole split: ids count its rows."""
    return SampleIndex(
        sample_ids=np.arange(len(paths)),
        paths=paths,
        labels=labels,
        clean_labels=clean_labels,
        class_names=class_names,
    )


__all__ = [
    "IMAGE_SUFFIXES",
    "Found",
    "Layout",
    "Listing",
    "PathList",
    "checked_names",
    "class_lines",
    "joined",
    "labelled_lines",
    "list_images",
    "new_index",
    "numbered_lines",
    "present",
    "read_list",
    "shown",
]
