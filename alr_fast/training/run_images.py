"""The images of the samples of a run, as far as they can still be found."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from alr_fast.data.datasets import Split
from alr_fast.data.images.sources import BrokenImage, FileImages
from alr_fast.data.index import PathTable
from alr_fast.errors import UserError
from alr_fast.training.config.schema import DataConfig
from alr_fast.training.run_data import find_dataset
from alr_fast.utils.text import printable, some_names

Image = NDArray[np.uint8] | bytes
ReadImage = Callable[[int], Image]
_TRIED = 1000  # paths that are looked for before the data set is listed


@dataclass(frozen=True)
class RunImages:
    """The images of a run, by row.

    Attributes:
        read: Reads an image; raises `BrokenImage` if it is gone.
        file: The file that an image is read from, absolute; None if it has none of its own.
    """

    read: ReadImage
    file: Callable[[int], Path | None]


def find_images(
    paths: PathTable,
    sample_ids: NDArray[np.int64],
    options: DataConfig,
    root: str | None,
    *,
    asked: bool,
) -> RunImages:
    """Finds the images of a run.

    Samples are found by their paths: the data may have been moved, and may have grown or shrunk.

    Args:
        paths: Paths of the samples of the run, [N].
        sample_ids: Their ids, int64 [N].
        options: Data set of the run.
        root: Folder or file where the data is now; None for digits.
        asked: Whether the user names the root, which must then have some of the samples.

    Raises:
        UserError: The named root does not exist, or is another data set.
    """
    if root is not None:
        place = Path(root)
        files = _files(place if place.is_dir() else place.parent, paths)
        if files is not None:
            return files
    try:
        dataset = find_dataset(options, root)
        files = _files(dataset.found.root, paths)
        split = None if files is not None else dataset.split(options.train_split)
    except UserError as error:
        if asked:
            raise
        return _none(str(error) if error.argument is None else f"{root}: {error.args[0]}")
    if files is not None:
        return files
    assert split is not None
    rows = split.index.match(paths, sample_ids)
    if (rows < 0).all():
        if asked:
            raise UserError(
                f"has none of the {len(paths):,} samples of the run ({some_names(paths[:4])}); "
                "pass the folder of its data",
                argument="root",
                value=root,
            )
        return _none("not in the data set any more")
    return _members(split, rows)


def _files(root: Path, paths: PathTable) -> RunImages | None:
    """The files at the paths of the samples below a folder; None if none of them is there."""
    images = FileImages(root, paths)
    some = np.unique(np.linspace(0, len(paths) - 1, min(_TRIED, len(paths)), dtype=np.int64))

    def is_below(row: int) -> bool:
        path = PurePosixPath(paths[row])
        return not path.is_absolute() and ".." not in path.parts

    if not any(is_below(row) and Path(images.name(row)).is_file() for row in some.tolist()):
        return None

    def read(row: int) -> Image:
        if not is_below(row):
            raise BrokenImage("its path leads out of the folder of the data")
        return images.read(row)

    return RunImages(read, lambda row: Path(images.name(row)).absolute() if is_below(row) else None)


def _no_file(row: int) -> None:
    return None


def _members(split: Split, rows: NDArray[np.int64]) -> RunImages:
    """The images of rows of a split; -1 for a sample that it lacks."""
    images: Any = split.images

    def read(row: int) -> Image:
        if rows[row] < 0:
            raise BrokenImage("not in the data set any more")
        found = int(rows[row])
        image: Image = images.read(found) if images.array is None else images.array[found]
        return image

    return RunImages(read, _no_file)


def _none(reason: str) -> RunImages:
    def read(row: int) -> Image:
        raise BrokenImage(printable(reason))

    return RunImages(read, _no_file)
