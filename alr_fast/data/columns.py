"""Columns of a stored index: .npy files whose sizes are checked before anything is allocated."""

from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.lib import format as npy
from numpy.typing import DTypeLike, NDArray

from alr_fast.utils.files import open_regular

_SMALL = 1 << 26  # bytes of a file that is not mapped: cut short later, a mapping ends the process
_BLOCK = 1 << 22  # bytes of paths that are checked at once


def read_column(path: Path, dtype: DTypeLike, *, mapped: bool = False) -> NDArray[Any]:
    """Reads a .npy file with one dimension.

    Args:
        path: The file.
        dtype: Type of the result; integers of another width are converted.
        mapped: Leave the numbers in the file, which is mapped into memory if it is large.

    Raises:
        OSError: The file is missing or cannot be read.
        ValueError: It is no such file, or cut short.
    """
    with open_regular(path) as file:
        count, found = _header(path, file)
        wanted = np.dtype(dtype)
        if found != wanted and not (found.kind in "iu" and wanted.kind == "i" and not mapped):
            raise ValueError(f"{path.name} holds {found}, expected {wanted}")
        start = file.tell()
        size = file.seek(0, 2)
        if size - start != count * found.itemsize:
            raise ValueError(f"{path.name} has {size:,} bytes, its header needs "
                             f"{start + count * found.itemsize:,}")  # fmt: skip
        if mapped and size > _SMALL:
            return np.memmap(file, dtype=found, mode="r", offset=start, shape=(count,))
        file.seek(start)
        return np.fromfile(file, dtype=found, count=count).astype(wanted, copy=False)


def check_paths(path: Path, offsets: NDArray[np.int64]) -> None:
    """Checks that a stored blob of paths ends every path where the offsets say.

    The file is read in blocks, not mapped: the pages of a mapping would count as memory.

    Args:
        path: Its .npy file.
        offsets: First byte of each path, then the number of bytes, int64 [N + 1].

    Raises:
        OSError: The file cannot be read.
        ValueError: The offsets do not belong to it.
    """
    if not len(offsets) or offsets[0] != 0 or (np.diff(offsets) < 2).any():
        raise ValueError("the offsets of the paths do not ascend from 0")
    ends = offsets[1:] - 1  # the zero byte of each path
    with open_regular(path) as file:
        count, found = _header(path, file)
        if found != np.uint8 or offsets[-1] != count:
            raise ValueError(f"{path.name} holds {count:,} {found}, expected {offsets[-1]:,} uint8")
        begin = done = 0
        while block := file.read(_BLOCK):
            zeros = begin + np.flatnonzero(np.frombuffer(block, dtype=np.uint8) == 0)
            if not np.array_equal(zeros, ends[done : done + len(zeros)]):
                break
            begin, done = begin + len(block), done + len(zeros)
    if done != len(ends):
        raise ValueError(f"path {done} of {path.name} does not end where its offset says")


def _header(path: Path, file: BinaryIO) -> tuple[int, np.dtype]:
    """Number of entries and type of a .npy file; leaves ``file`` at the first entry.

    Raises:
        ValueError: It is no .npy file, or of several dimensions.
    """
    try:
        version = npy.read_magic(file)
        read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
        shape, _, dtype = read(file)
    except Exception as error:  # the parser of the header raises many kinds
        raise ValueError(f"{path.name} is no .npy file") from error
    if len(shape) != 1 or shape[0] < 0 or dtype.hasobject:
        raise ValueError(f"{path.name} is no column of numbers")
    return int(shape[0]), dtype
