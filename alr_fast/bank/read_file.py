"""Reads a bank file piece by piece, and checks what it reads.

A file may be damaged, or come from a stranger: everything in it is checked before it is used.
"""

import errno
import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from numpy.typing import NDArray

from alr_fast.bank.file import CHECKSUMS, DIGEST, DTYPES, ROWS, digest_of, row_checksums
from alr_fast.errors import UserError
from alr_fast.labels.arguments import most_excess
from alr_fast.utils.files import open_regular
from alr_fast.utils.machine import available_memory
from alr_fast.utils.text import error_text, readable

_LONGEST_HEADER = 1 << 26  # bytes
_MOST_DIMENSIONS = 8
_PER_ROW = 1  # bytes in memory
_COLUMN_TYPES = {"I64": np.int64, "I32": np.int32, "F32": np.float32, "U8": np.uint8}
_ROW_TYPES = ("F32", "F16", "BF16")
_NO_SAFETENSORS = "it is no safetensors file"
_DAMAGED = (TypeError, KeyError, IndexError, AttributeError, MemoryError, RecursionError)


@dataclass(frozen=True)
class Columns:
    """The small tensors of a file.

    Attributes:
        arrays: By name.
        metadata: Texts by name.
        layout: Type, as the header names it, and shape of all tensors.
        offsets: First byte of each tensor in the file.
    """

    arrays: dict[str, NDArray[Any]]
    metadata: dict[str, str]
    layout: dict[str, tuple[str, list[int]]]
    offsets: dict[str, int]

    @property
    def has_checksum(self) -> bool:
        """Whether the tensors were compared with a checksum: not in files of earlier versions."""
        return DIGEST in self.metadata

    def array(self, name: str, dtype: Any, *shape: int) -> NDArray[Any]:
        """The array of this name.

        Raises:
            ValueError: It is missing, or has another type or shape.
        """
        found = self.arrays.get(name)
        if found is None:
            raise ValueError(f"it has no {name}")
        if found.dtype != dtype or found.shape != shape:
            raise ValueError(
                f"{name} is {found.dtype} {list(found.shape)}, not {np.dtype(dtype)} {list(shape)}"
            )
        return found


def read_columns(path: Path) -> Columns:
    """All tensors of a file but the rows of a bank, compared with their checksum if it has one.

    Raises:
        OSError, ValueError: The file cannot be read, or is damaged; the text says why.
    """
    try:
        with open_regular(path) as file:
            metadata, layout, offsets = read_header(file)
            _check_memory(layout)
            arrays = {}
            for name, (dtype, shape) in layout.items():
                if name == ROWS:
                    continue
                if dtype not in _COLUMN_TYPES:
                    raise ValueError(f"{name} is of the type {dtype}")
                file.seek(offsets[name])
                count, kind = math.prod(shape), _COLUMN_TYPES[dtype]
                arrays[name] = np.fromfile(file, dtype=kind, count=count).reshape(shape)
    except _DAMAGED as error:
        raise ValueError(_NO_SAFETENSORS) from error
    saved = metadata.get(DIGEST)
    columns = {n: a.reshape(-1).view(np.uint8) for n, a in arrays.items() if n != CHECKSUMS}
    if (saved is None and CHECKSUMS in arrays) or (
        saved is not None and digest_of(metadata, layout, columns) != saved
    ):
        raise ValueError("it was changed after it was written, SHA-256 differs")
    return Columns(arrays, metadata, layout, offsets)


def _check_memory(layout: Mapping[str, tuple[str, list[int]]]) -> None:
    """Checks that all but the rows fit into the memory: a file may have holes that need no disk.

    Raises:
        ValueError: They do not.
        KeyError, IndexError: A type or a shape is unknown.
    """
    size = sum(
        shape[0] * _PER_ROW if name == ROWS else math.prod(shape) * DTYPES[dtype].itemsize
        for name, (dtype, shape) in layout.items()
    )
    if size > available_memory():
        raise ValueError(f"its tensors need {readable(size)}, more memory than there is")


def read_header(
    file: BinaryIO,
) -> tuple[dict[str, str], dict[str, tuple[str, list[int]]], dict[str, int]]:
    """Metadata, layout (type and shape), and the first byte of each tensor, of a safetensors file.

    Raises:
        ValueError: It is none; the text says why.
    """
    try:
        return _checked_header(file)
    except _DAMAGED as error:
        raise ValueError(_NO_SAFETENSORS) from error


def _checked_header(file: BinaryIO) -> tuple[dict[str, str], dict[str, Any], dict[str, int]]:
    size = os.fstat(file.fileno()).st_size
    length = int.from_bytes(file.read(8), "little")
    start = 8 + length
    if length > _LONGEST_HEADER or start > size:
        raise ValueError("it is no safetensors file, or has been cut off")
    header = json.loads(file.read(length))
    metadata = header.pop("__metadata__", {})
    if not all(isinstance(text, str) for text in metadata.values()):
        raise TypeError("metadata are texts")
    layout, offsets, at = {}, {}, 0
    for name, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
        (begin, end), shape = entry["data_offsets"], entry["shape"]
        if len(shape) > _MOST_DIMENSIONS or not all(
            type(n) is int and 0 <= n <= size for n in (begin, end, *shape)
        ):
            raise TypeError(f"{name} has no such shape")  # a product of long numbers takes hours
        if begin != at:
            raise TypeError("the format allows no gaps")
        if math.prod(shape) * DTYPES[entry["dtype"]].itemsize != end - begin:
            raise TypeError(f"{name} has another size")
        layout[name], offsets[name], at = (entry["dtype"], shape), start + begin, end
    if start + at != size:
        raise ValueError("it has been cut off" if start + at > size else "it is too long")
    return metadata, layout, offsets


def strings(metadata: Mapping[str, str], name: str) -> tuple[str, ...]:
    """A list of texts in the metadata.

    Raises:
        ValueError: It is missing, or is something else.
    """
    try:
        found = json.loads(metadata[name])
    except (KeyError, ValueError, RecursionError):
        raise ValueError(f"{name} is missing or damaged") from None
    if not isinstance(found, list) or not all(isinstance(text, str) for text in found):
        raise ValueError(f"{name} is not a list of texts")
    try:
        os.fsencode("".join(found))  # as names of files may be, but no other lone surrogates
    except UnicodeEncodeError:
        raise ValueError(f"{name} cannot be written as texts") from None
    return tuple(found)


class BankFile:
    """The rows of a bank in a file.

    Rows are compared with their checksums when they are read for the first time, and must be
    probabilities. The file is not mapped, so that rows do not stay in the memory of the process.

    Attributes:
        path: The file.
        columns: Its other tensors, with one entry for each row or for all.
        num_samples: N.
        num_classes: K.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """Opens a file and reads all but its rows.

        Raises:
            UserError: It cannot be read, or is no bank file.
        """
        self.path = Path(path)
        try:
            self.columns = read_columns(self.path)
            self._open()
        except (OSError, ValueError) as error:
            raise unreadable(self.path, error_text(error)) from error

    def _open(self) -> None:
        if ROWS not in self.columns.layout:
            raise ValueError("it has no rows")
        self._type, shape = self.columns.layout[ROWS]
        if self._type not in _ROW_TYPES or len(shape) != 2 or 0 in shape:
            raise ValueError(f"its rows are {self._type} {shape}")
        self.num_samples, self.num_classes = shape
        self._checksums = self.columns.arrays.get(CHECKSUMS)
        if self._checksums is not None:
            self.columns.array(CHECKSUMS, np.int32, self.num_samples)
        self._start = self.columns.offsets[ROWS]
        self._checked = np.zeros(self.num_samples, dtype=bool)

    def read(self, rows: slice) -> NDArray[np.float32]:
        """Some rows, float32 [M, K].

        Raises:
            UserError: They cannot be read, are damaged, or are no probabilities.
        """
        start, stop, _ = rows.indices(self.num_samples)
        count, dtype = max(stop - start, 0), DTYPES[self._type]
        row_bytes = self.num_classes * dtype.itemsize
        data = bytearray(count * row_bytes)
        try:
            with self.path.open("rb") as file:
                file.seek(self._start + start * row_bytes)
                if file.readinto(data) < len(data):
                    raise OSError(errno.EIO, "it has been cut off")
        except OSError as error:
            raise unreadable(self.path, error_text(error)) from error
        found = torch.frombuffer(data, dtype=dtype) if data else torch.empty(0, dtype=dtype)
        values: NDArray[np.float32] = found.view(count, self.num_classes).float().numpy()
        if not self._checked[start:stop].all():
            self._check(values, data, start)
            self._checked[start:stop] = True
        return values

    def _check(self, values: NDArray[np.float32], data: bytearray, start: int) -> None:
        if self._checksums is not None:
            sums = row_checksums(np.frombuffer(data, dtype=np.uint8), len(values))
            wrong = np.flatnonzero(sums != self._checksums[start : start + len(values)])
            if len(wrong):
                raise unreadable(
                    self.path, f"row {start + wrong[0]} was changed after it was written"
                )
        problem = improbable(values, start, most_excess(DTYPES[self._type]))
        if problem is not None:
            raise unreadable(self.path, problem)


def improbable(values: NDArray[np.float32], start: int, excess: float) -> str | None:
    """Why rows cannot be those of a label bank; None if they can.

    The rows of early-learning regularisation start at zero, so that sums below one are accepted.

    Args:
        values: [M, K].
        start: Number of the first row.
        excess: Largest excess of a sum over one, see `most_excess`.
    """
    with np.errstate(invalid="ignore", over="ignore"):
        sums = values.sum(1)
        wrong = ~np.isfinite(sums) | (values.min(1, initial=0) < 0) | (sums > 1 + excess)
    if not wrong.any():
        return None
    row = int(np.flatnonzero(wrong)[0])
    if not np.isfinite(values[row]).all():
        return f"row {start + row} has a NaN or infinite value"
    low, total = float(values[row].min()), float(sums[row])
    what = f"has a negative value, {low:.4g}" if low < 0 else f"sums to {total:.4g}, not to 1"
    return f"row {start + row} {what}"


def unreadable(path: Path, reason: str) -> UserError:
    """The error about a file that is no usable bank."""
    return UserError(
        f"{path}: cannot be read as a label bank ({reason}); train again, or pass another run"
    )
