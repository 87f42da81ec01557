"""What the samples of a split are: images, as an array in memory, files, or records of packed
shards; or rows of features in memory.

Decoders react to broken files in different ways: some raise, some fill the rest with grey, some do
either depending on the crop. So every file first passes `prepare` in `decode.py`, which checks its
structure but not its pixels: every decoder here can decode its result.
"""

import io
import os
import threading
from collections.abc import Callable
from concurrent.futures import Future
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
_KEPT_BYTES = 64 << 20  # of the groups of Parquet files that a process keeps in memory


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


@dataclass(frozen=True, eq=False)
class ColumnImages:
    """Encoded images in a column of Parquet or Arrow files, which is read in groups of rows.

    Reading in order is fast. In random order, each image of a Parquet file costs the decompression
    of its group.

    Attributes:
        shards: The files, or folders of Arrow files.
        group_of: ``group_of(shard, group)`` returns the bytes of a group's images, a pyarrow array.
        shard: Number of each row's file, int32 [N].
        group: Number of each row's group in its file, int32 [N].
        position: Position of each row in its group, int64 [N].
        paths: Path of each row, for messages.
    """

    shards: list[Path]
    group_of: Callable[[Path, int], Any]
    shard: NDArray[np.int32]
    group: NDArray[np.int32]
    position: NDArray[np.int64]
    paths: PathTable
    _groups: "_Groups" = field(default_factory=lambda: _Groups(), init=False)
    array = None

    def take(self, rows: NDArray[np.int64]) -> "ColumnImages":
        """The images of these rows."""
        columns = (self.shard[rows], self.group[rows], self.position[rows], self.paths.take(rows))
        return ColumnImages(self.shards, self.group_of, *columns)

    @property
    def root(self) -> Path:
        """Folder of the files."""
        return self.shards[0].parent

    def name(self, row: int) -> str:
        """File and path of a row, for messages."""
        return f"{self.shards[self.shard[row]]}:{self.paths[row]}"

    def read(self, row: int) -> bytes:
        """The bytes of a row.

        Raises:
            BrokenImage: Its file is missing or damaged, or has no bytes for it.
        """
        path, group = self.shards[self.shard[row]], int(self.group[row])
        try:
            images = self._groups.get((path, group), lambda: self.group_of(path, group))
            data = images[int(self.position[row])]
        except (OSError, ValueError, IndexError) as error:  # pyarrow's errors are among them
            raise BrokenImage(error_text(error)) from None
        if not data.is_valid:
            raise BrokenImage("no bytes, only a path")
        if len(data.as_buffer()) > MAX_BYTES:
            raise BrokenImage(f"above {MAX_BYTES >> 20} MiB")
        return data.as_py()

    def sizes(self) -> NDArray[np.int64]:
        """Bytes of each row, int64 [N]; 0 where there are none, or its group cannot be read. Reads
        every image once."""
        from pyarrow import compute

        sizes = np.zeros(len(self.shard), dtype=np.int64)
        groups = np.stack([self.shard, self.group], axis=1)
        for shard, group in np.unique(groups, axis=0).tolist():
            rows = np.flatnonzero((self.shard == shard) & (self.group == group))
            try:
                lengths = compute.binary_length(self.group_of(self.shards[shard], group))
            except (OSError, ValueError):
                continue
            sizes[rows] = lengths.fill_null(0).to_numpy(zero_copy_only=False)[self.position[rows]]
        return sizes


class _Groups:
    """The groups that were read last; each is read by one thread of a process."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process = os.getpid()
        self._known: dict[tuple[Path, int], Future] = {}
        self._damaged: dict[tuple[Path, int], str] = {}  # why; not read for each of its rows again

    def __reduce__(self) -> tuple:
        return _Groups, ()  # each worker process reads its own

    def get(self, key: tuple[Path, int], read: Callable[[], Any]) -> Any:
        if self._process != os.getpid():  # forked: the lock may be held by a thread that is gone
            self.__init__()  # type: ignore[misc]
        with self._lock:
            if key in self._damaged:
                raise ValueError(self._damaged[key])
            known = self._known.pop(key, None)
            future: Future = Future() if known is None else known
            self._known[key] = future  # the last one
        if known is None:
            try:
                future.set_result(read())
            except BaseException as error:
                future.set_exception(error)
                with self._lock:
                    self._known.pop(key, None)
                    if isinstance(error, ValueError):
                        self._damaged[key] = error_text(error)
            self._forget()
        return future.result()

    def _forget(self) -> None:
        with self._lock:
            sizes = {key: future.result().nbytes for key, future in self._known.items()
                     if future.done() and future.exception() is None}  # fmt: skip
            for key in list(sizes)[:-1]:
                if sum(sizes.values()) <= _KEPT_BYTES:
                    return
                del self._known[key], sizes[key]


# All have `root`, the folder of the images; `array`, all pixels, or None if they are not in memory;
# and `take`, `name` and `read`.
Images = ArrayImages | FileImages | ShardImages | ColumnImages | FeatureRows
