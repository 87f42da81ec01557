"""Where pixels come from: an array in memory, or files that are decoded when they are read."""

import itertools
import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from alr_fast.errors import UserError

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")
LARGEST_DEFAULT_SIZE = 224


class Images(Protocol):
    """Images of one split by row, all uint8 of the same shape (C, S, S).

    Attributes:
        shape: (C, S, S).
        array: All images, uint8 [N, C, S, S], where they are in memory, else None.
    """

    shape: tuple[int, int, int]
    array: NDArray[np.uint8] | None

    def __len__(self) -> int: ...

    def __getitem__(self, row: int) -> NDArray[np.uint8]: ...


class ArrayImages:
    """Images that are in memory from the start.

    Args:
        array: uint8 [N, C, S, S].
    """

    def __init__(self, array: NDArray[np.uint8]) -> None:
        self.array = array
        self.shape = array.shape[1:]

    def __len__(self) -> int:
        return len(self.array)

    def __getitem__(self, row: int) -> NDArray[np.uint8]:
        return self.array[row]

    def take(self, rows: NDArray[np.int64]) -> "ArrayImages":
        """The images of these rows."""
        return ArrayImages(self.array[rows])


class FileImages:
    """RGB images in files: the shorter side is resized to ``size``, the centre square is kept.

    Args:
        root: Folder that the paths start from.
        paths: Path of each row below the root.
        size: Side S in pixels.
    """

    def __init__(self, root: Path, paths: Sequence[str], size: int) -> None:
        self.root = root
        self.paths = paths
        self.size = size
        self.shape = (3, size, size)
        self.array: NDArray[np.uint8] | None = None

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, row: int) -> NDArray[np.uint8]:
        if self.array is not None:
            return self.array[row]
        return decode(os.path.join(self.root, self.paths[row]), self.size)

    @property
    def nbytes(self) -> int:
        """Bytes of all decoded images together."""
        return len(self.paths) * int(np.prod(self.shape))

    def verify(self, *, keep: bool, workers: int, progress: Callable[[Iterable], Iterable]) -> None:
        """Decodes every image once, so that a broken one is known before training starts.

        Args:
            keep: Keep the decoded images in memory.
            workers: Threads to decode with.
            progress: Wraps the iteration over the images, to show how far it is.

        Raises:
            UserError: Images that cannot be read; the message names the first ones.
        """
        array = np.empty((len(self), *self.shape), dtype=np.uint8) if keep else None
        broken: list[str] = []

        def check(row: int) -> None:
            try:
                image = self[row]
            except UserError as error:
                broken.append(str(error))
            else:
                if array is not None:
                    array[row] = image

        with ThreadPoolExecutor(max(workers, 1)) as pool:
            for _ in progress(_bounded_map(pool, check, range(len(self)))):
                pass
        if broken:
            broken.sort()
            count = "" if len(broken) == 1 else f" ({len(broken)} such files, this is the first)"
            raise UserError(broken[0] + count)
        self.array = array


def _bounded_map(pool: ThreadPoolExecutor, function: Callable, rows: range) -> Iterable:
    # Executor.map would make a future for every row of a set of millions at once.
    for start in range(0, len(rows), 1024):
        yield from pool.map(function, itertools.islice(rows, start, start + 1024))


def decode(path: str, size: int) -> NDArray[np.uint8]:
    """Decodes one file to RGB, uint8 [3, size, size]: resized by its shorter side, centre kept.

    Raises:
        UserError: The file is missing, truncated or no image; the message names it.
    """
    with open_image(path) as image:
        width, height = image.size
        if (width, height) != (size, size):
            from PIL import Image

            # Crop first, in source coordinates: pixels that are thrown away are never resized.
            side = min(width, height)
            left, top = (width - side) // 2, (height - side) // 2
            box = (left, top, left + side, top + side)
            image = image.resize((size, size), Image.Resampling.BILINEAR, box=box)
        return np.asarray(image).transpose(2, 0, 1).copy()


def open_image(path: str):
    """The whole image of a file as a PIL image in RGB, turned as its EXIF entry says.

    Raises:
        UserError: The file is missing, truncated or no image; the message names it.
    """
    from PIL import Image, ImageOps

    try:
        with Image.open(path) as image:
            return ImageOps.exif_transpose(image).convert("RGB")
    except Exception as error:  # decoders raise OSError, SyntaxError, ValueError, struct.error, ...
        if isinstance(error, FileNotFoundError):
            reason = "no such file"
        else:
            reason = " ".join(str(error).split()).replace(f"'{path}'", "it") or type(error).__name__
        raise UserError(
            f"{path}: cannot be read as an image ({reason}); replace or remove the file"
        ) from error
