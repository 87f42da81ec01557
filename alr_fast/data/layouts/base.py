"""Layouts: forms in which data sets lie on disk. One file for each reader; each reads a public
download without changes.

A reader lists samples and opens no image. To add a layout, write a file here with a `Layout`, and
add it to `alr_fast.data.datasets`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from alr_fast.data.images.sources import Images
from alr_fast.data.index import PathTable, SampleIndex
from alr_fast.data.inventory import IMAGE_SUFFIXES as IMAGE_SUFFIXES
from alr_fast.data.inventory import scan
from alr_fast.errors import UserError


class NoSplit(UserError):
    """The data set has no such split. Without test samples, training measures no test accuracy."""


@dataclass(frozen=True)
class Found:
    """Place where a layout was recognised.

    Attributes:
        root: Folder that the paths of the samples are relative to.
        what: Description for the user: "CIFAR-10 pickles in DIR/cifar-10-batches-py".
        lists: The files that list the samples, if the user names them: several such data sets may
            share a root.
        column: Name of the vectors in a file of features; None for the only ones.
        detail: What else the reader of the layout must know; its `repr` is part of the key of the
            cache.
    """

    root: Path
    what: str
    lists: tuple[Path, ...] = ()
    column: str | None = None
    detail: object = None


@dataclass(frozen=True)
class Listing:
    """The samples of one split.

    Attributes:
        index: Samples with labels; paths are relative to ``Found.root``.
        sources: Files and folders that were read: the split is read again when one has changed.
        images: The images or features; None if they are files at the paths of the index.
        remarks: Lines for the user: what was not taken, or read in a way that may surprise.
    """

    index: SampleIndex
    sources: tuple[Path, ...] = ()
    images: Images | None = None
    remarks: tuple[str, ...] = ()


@dataclass(frozen=True)
class Layout:
    """A form in which a data set lies on disk.

    Attributes:
        name: Its name for ``--data.name``.
        looked_for: Files and folders that the root must contain, one line for messages.
        find: ``find(root)`` looks at few files, however large the data set is; returns None if the
            folder has another layout. It takes each of ``options`` by name, too.
        read: ``read(found, split)`` lists one split; raises `NoSplit` if the data set lacks it, and
            `UserError` if it cannot be read.
        splits: Names that a split of this layout may have, ``train`` and ``test`` among them.
        marks: Files and folders that a folder of this layout contains, for messages.
        options: Options of `open_dataset` that the layout takes: column, columns, images.
    """

    name: str
    looked_for: str
    find: Callable[..., Found | None]
    read: Callable[[Found, str], Listing]
    splits: tuple[str, ...] = ("train", "test")
    marks: tuple[str, ...] = ()
    options: tuple[str, ...] = ()


def present(path: Path, remedy: str = "restore it from the download") -> Path:
    """Returns the file or folder.

    Raises:
        UserError: It does not exist.
    """
    if not path.exists():
        raise UserError(f"{path}: no such file or folder; {remedy}")
    return path


def list_images(folder: Path) -> list[str]:
    """Sorted names of the image files in a folder, without hidden files."""
    return scan(folder).images


def numbered_paths(names: Sequence[str], counts: Sequence[int]) -> PathTable:
    """Paths of samples in files of many: the name and the number in it, ``data_batch_1/00042``."""
    pairs = zip(names, counts, strict=True)
    return PathTable.of(f"{name}/{k:05d}" for name, count in pairs for k in range(count))


def check_labels(labels: NDArray[np.int64], num_classes: int, where: str, unit: str) -> None:
    """Checks the range of labels.

    Args:
        labels: int64 [N].
        num_classes: Number of classes K.
        where: Their place, for the message.
        unit: Name of an item there, for the message.

    Raises:
        UserError: A label is not in [0, K).
    """
    wrong = np.flatnonzero((labels < 0) | (labels >= num_classes))
    if len(wrong):
        raise UserError(
            f"{where}: label {labels[wrong[0]]} of {unit} {wrong[0]} is out of range, labels are 0 "
            f"to {num_classes - 1}; restore it from the download"
        )


def new_index(
    paths: PathTable,
    labels: NDArray[np.int64],
    class_names: tuple[str, ...],
    clean_labels: NDArray[np.int64] | None = None,
) -> SampleIndex:
    """The index of a whole split: ids are numbered from 0."""
    return SampleIndex(
        sample_ids=np.arange(len(paths)),
        paths=paths,
        labels=labels,
        clean_labels=clean_labels,
        class_names=class_names,
    )
