"""What the samples of a split are: images, as an array in memory, files, or records of packed
shards; or rows of features in memory.

Decoders react to broken files in different ways: some raise, some fill the rest with grey, some do
either depending on the crop. So every file first passes `alr_fast.data.decode.prepare`, which
checks its structure but not its pixels: every decoder here can decode its result.
"""

import io
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from alr_fast.data.index import PathTable
from alr_fast.utils.files import open_regular
from alr_fast.utils.text import error_text

LEFT_OUT = "left out when packed"
MAX_BYTES = 1 << 28  # of an encoded image; a larger file is not read


class BrokenImage(Exception):
    """An unreadable image; the message is the reason, without the path."""


def read_image_file(path: str | os.PathLike[str]) -> bytes:
    """The bytes of a file of at most `MAX_BYTES`; never waits for a pipe or a device.

    Raises:
        BrokenImage: It is missing, cannot be read, is not a regular file, or larger.
    """
    try:
        with open_regular(path, MAX_BYTES) as file:
            return file.read()
    except FileNotFoundError:
        raise BrokenImage("no such file") from None
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        raise BrokenImage(error_text(error)) from None


@dataclass(frozen=True, eq=False)
class ArrayImages:
    """Images that are in memory from the start.

    Attributes:
        array: uint8 [N, C, S, S].
    """

    array: NDArray[np.uint8]
    root = Path()  # there is no folder

    def take(self, rows: NDArray[np.int64]) -> "ArrayImages":
        """The images of these rows."""
        return ArrayImages(self.array[rows])

    def name(self, row: int) -> str:
        """Number of the image, for messages."""
        return f"image {row}"

    def read(self, row: int) -> bytes:
        """The image as a PNG."""
        from PIL import Image

        pixels = self.array[row]
        gray = len(pixels) == 1
        image = pixels[0] if gray else np.ascontiguousarray(pixels.transpose(1, 2, 0))
        buffer = io.BytesIO()
        Image.fromarray(image).save(buffer, "PNG")
        return buffer.getvalue()


@dataclass(frozen=True, eq=False)
class FileImages:
    """Encoded images, one file each.

    Attributes:
        root: Folder that the paths are relative to.
        paths: Path of each row below the root.
    """

    root: Path
    paths: PathTable
    array = None

    def take(self, rows: NDArray[np.int64]) -> "FileImages":
        """The images of these rows."""
        return FileImages(self.root, self.paths.take(rows))

    def name(self, row: int) -> str:
        """Path of a row, for messages."""
        return os.path.join(self.root, self.paths[row])

    def read(self, row: int) -> bytes:
        """The bytes of a row.

        Raises:
            BrokenImage: See `read_image_file`.
        """
        return read_image_file(self.name(row))


@dataclass(frozen=True, eq=False)
class ShardImages:
    """Encoded images, records of tar files. Some may have been left out when they were packed.

    Attributes:
        shards: The tar files.
        shard: Number of each row's shard, int32 [N].
        offset: First byte of each row's record, int64 [N].
        size: Bytes of each row's record, int64 [N]; 0 for a row that was left out.
        paths: Path of each row before it was packed, for messages.
        left_out: Path -> reason of the rows without a record.
    """

    shards: list[Path]
    shard: NDArray[np.int32]
    offset: NDArray[np.int64]
    size: NDArray[np.int64]
    paths: PathTable
    left_out: dict[str, str] = field(default_factory=dict)
    _files: dict[int, BinaryIO] = field(default_factory=dict, init=False)
    array = None

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_files": {}}  # each worker process opens its own

    def take(self, rows: NDArray[np.int64]) -> "ShardImages":
        """The images of these rows."""
        columns = (self.shard[rows], self.offset[rows], self.size[rows], self.paths.take(rows))
        return ShardImages(self.shards, *columns, self.left_out)

    def absent(self) -> NDArray[np.int64]:
        """Rows that were left out, int64 ascending."""
        return np.flatnonzero(self.size == 0)

    @property
    def root(self) -> Path:
        """Folder of the shards."""
        return self.shards[0].parent

    def name(self, row: int) -> str:
        """Shard and original path of a row, for messages; only the path if it was left out."""
        path = self.paths[row]
        return f"{self.shards[self.shard[row]]}:{path}" if self.size[row] else path

    def read(self, row: int) -> bytes:
        """The bytes of a row.

        Raises:
            BrokenImage: It was left out or is larger than `MAX_BYTES`, or its shard is missing, too
                short or not a regular file.
        """
        shard, size = int(self.shard[row]), int(self.size[row])
        if not size:
            raise BrokenImage(f"{LEFT_OUT}: {self.left_out.get(self.paths[row], 'no reason kept')}")
        if size > MAX_BYTES:
            raise BrokenImage(
                f"a record of {size:,} bytes, more than the {MAX_BYTES:,} that are read"
            )
        try:
            file = self._files.get(shard)
            if file is None:  # if another thread is faster, its file is kept
                file = self._files.setdefault(shard, open_regular(self.shards[shard]))
            data = os.pread(file.fileno(), size, int(self.offset[row]))
        except OSError as error:
            raise BrokenImage(error_text(error)) from None
        if len(data) < size:
            raise BrokenImage("the shard ends before this record")
        return data


@dataclass(frozen=True, eq=False)
class FeatureRows:
    """Features in memory instead of images: embeddings, or columns of a table.

    Attributes:
        file: The file that they were read from.
        features: Finite numbers, float32 or float16 [N, D].
    """

    file: Path
    features: NDArray[Any]
    array = None  # no pixels

    @property
    def root(self) -> Path:
        """Folder of the file."""
        return self.file.parent

    def take(self, rows: NDArray[np.int64]) -> "FeatureRows":
        """The features of these rows."""
        return FeatureRows(self.file, self.features[rows])

    def name(self, row: int) -> str:
        """File and number of the row, for messages."""
        return f"{self.file}, row {row}"

    def read(self, row: int) -> bytes:
        """Raises `BrokenImage`: there is no image of a row of features."""
        raise BrokenImage("features, no image")


# All have `root`, the folder of the images; `array`, all pixels, or None if they are not in memory;
# and `take`, `name` and `read`.
Images = ArrayImages | FileImages | ShardImages | FeatureRows
