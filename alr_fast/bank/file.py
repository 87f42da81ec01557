"""The bank of a finished run as a safetensors file, written and read piece by piece."""

import errno
import json
import mmap
import os
import secrets
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from alr_fast.errors import UserError
from alr_fast.utils.files import reserve_space
from alr_fast.utils.text import readable

_ALIGNMENT = 8  # of the data, as the safetensors library writes it
_CHUNK_BYTES = 1 << 26  # rows brought into the file in one go

_DTYPE_NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


class BankFileWriter:
    """Writes a bank as a safetensors file whose tensor `rows` arrives in pieces, in any order.

    The rows go into the mapped file, never all of them into memory. A context manager: the file
    has a temporary name in its folder (".NAME.xxxxxxxx.part") until the block ends with every row
    written, and is removed where the block ends otherwise.

        with BankFileWriter(path, num_samples=n, num_classes=k, ...) as writer:
            for positions, rows in pieces:
                writer.write(positions, rows)
    """

    def __init__(
        self,
        path: str | os.PathLike,
        *,
        num_samples: int,
        num_classes: int,
        dtype: torch.dtype,
        tensors: Mapping[str, Tensor],
        metadata: Mapping[str, str],
    ) -> None:
        """Lays out the file; it is created when the block is entered.

        Args:
            path: the file; one that exists is replaced when the new one is complete.
            num_samples: N, at least 1.
            num_classes: K, at least 1.
            dtype: of the rows.
            tensors: small tensors stored beside `rows`, by name.
            metadata: texts stored with them.

        Raises:
            TypeError: a tensor or the rows have a dtype that is not stored.
            ValueError: N or K is below 1, or a tensor has a name that is taken.
        """
        if num_samples < 1 or num_classes < 1:
            raise ValueError(
                "a bank file needs at least one sample and one class, got "
                f"{num_samples} and {num_classes}"
            )
        for name in ("rows", "__metadata__"):
            if name in tensors:
                raise ValueError(f"the name {name!r} is taken in a bank file: rename that tensor")
        self.path = Path(path)
        self._shape, self._dtype = (num_samples, num_classes), dtype
        self._tensors = dict(tensors)
        layout = {"rows": (dtype, self._shape)}
        layout |= {name: (t.dtype, tuple(t.shape)) for name, t in tensors.items()}
        self._header, self._offsets, self._size = _laid_out(layout, metadata)
        self._file: mmap.mmap | None = None

    def __enter__(self) -> "BankFileWriter":
        """Creates the file with all its space and stores the small tensors.

        Raises:
            UserError: the folder or its disk does not take a file of that size.
        """
        # Not by tempfile, which closes the file to other users.
        self._part = self.path.with_name(f".{self.path.name}.{secrets.token_hex(4)}.part")
        try:
            self._handle = os.open(self._part, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
            try:
                self._begin()
            except BaseException:
                self._discard()
                raise
        except OSError as error:
            raise UserError(
                f"the bank file {self.path} needs {readable(self._size)}, which failed: "
                f"{error.strerror}. Free space on that disk, or choose another output folder"
            ) from error
        return self

    def _begin(self) -> None:
        reserve_space(self._handle, self._size)
        self._file = mmap.mmap(self._handle, self._size)
        self._file[: len(self._header)] = self._header
        for name, tensor in self._tensors.items():
            start = self._offsets[name]
            # Bytes, since numpy has no bfloat16.
            data = tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy()
            self._file[start : start + data.nbytes] = memoryview(data)
        num_samples, num_classes = self._shape
        self._rows = torch.frombuffer(
            self._file,
            dtype=self._dtype,
            count=num_samples * num_classes,
            offset=self._offsets["rows"],
        ).view(self._shape)
        self._written = np.zeros(num_samples, dtype=bool)

    def write(self, positions: Tensor, rows: Tensor) -> None:
        """Stores some rows.

        Args:
            positions: [M] int64, where each goes in `rows` of the file, in [0, N).
            rows: [M, K] in the dtype of the file, on any device.

        Raises:
            RuntimeError: outside of the `with` block.
            TypeError: a dtype is wrong.
            ValueError: a shape is wrong, or a position is outside [0, N) or came before.
        """
        if self._file is None:
            raise RuntimeError("a bank file is written within `with BankFileWriter(...) as writer`")
        if positions.dtype != torch.int64 or rows.dtype != self._dtype:
            raise TypeError(
                f"a bank file of {self._dtype} takes int64 positions and {self._dtype} rows, got "
                f"{positions.dtype} and {rows.dtype}"
            )
        if positions.ndim != 1 or rows.shape != (len(positions), self._shape[1]):
            raise ValueError(
                f"a bank file of {self._shape[1]} classes takes positions [M] and rows "
                f"[M, {self._shape[1]}], got {tuple(positions.shape)} and {tuple(rows.shape)}"
            )
        size = max(1, _CHUNK_BYTES // (self._shape[1] * self._dtype.itemsize))
        for places, some in zip(positions.split(size), rows.split(size), strict=True):
            places = places.detach().cpu()
            self._mark(places.numpy())
            self._rows.index_copy_(0, places, some.detach().cpu())

    def _mark(self, positions: np.ndarray) -> None:
        if len(positions) == 0:
            return
        low, high = int(positions.min()), int(positions.max())
        if low < 0 or high >= len(self._written):
            raise ValueError(
                f"positions must lie in [0, {len(self._written)}), got {low} to {high}: they count "
                "samples of the whole bank"
            )
        new = np.unique(positions)
        if len(new) < len(positions) or self._written[new].any():
            raise ValueError(
                f"positions between {low} and {high} came twice: give each row of the bank once"
            )
        self._written[new] = True

    def __exit__(self, kind, error, trace) -> None:
        """Gives the file its name, or removes it where the block failed.

        Raises:
            ValueError: rows are missing.
            OSError: the disk fails.
        """
        try:
            if kind is None:
                self._finish()
        finally:
            self._discard()

    def _finish(self) -> None:
        missing = len(self._written) - int(np.count_nonzero(self._written))
        if missing:
            raise ValueError(
                f"{missing} of {len(self._written)} rows of {self.path} were not written, the "
                f"first at position {int(np.argmin(self._written))}: give each row once"
            )
        self._file.flush()
        os.fsync(self._handle)
        os.replace(self._part, self.path)

    def _discard(self) -> None:
        """Lets go of the file; what still has its temporary name is removed."""
        self._rows = self._file = None  # the mapping ends with the last tensor on it
        os.close(self._handle)
        self._part.unlink(missing_ok=True)


def open_rows(path: str | os.PathLike) -> Callable[[slice], NDArray[np.float32]]:
    """A function that reads rows of a bank file: `read(slice)` gives float32 [M, K].

    The file is not mapped: what was read does not stay in the memory of the process.

    Raises:
        OSError: the file cannot be read; `read` raises `UserError` then.
        KeyError, ValueError: it is no bank file.
    """
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > os.path.getsize(path):
            raise ValueError("not a safetensors file")
        layout = json.loads(file.read(length))["rows"]
    (num_samples, num_classes), (begin, _) = layout["shape"], layout["data_offsets"]
    dtype = next(d for d, name in _DTYPE_NAMES.items() if name == layout["dtype"])
    row_bytes = num_classes * dtype.itemsize

    def read(rows: slice) -> NDArray[np.float32]:
        start, stop, _ = rows.indices(num_samples)
        data = bytearray((stop - start) * row_bytes)
        try:
            with open(path, "rb") as file:
                file.seek(8 + length + begin + start * row_bytes)
                if file.readinto(data) < len(data):
                    raise OSError(errno.EIO, "it has been cut off")
        except OSError as error:
            raise UserError(
                f"{path}: cannot be read as a label bank ({error.strerror}); train again, or pass "
                "another run"
            ) from error
        found = torch.frombuffer(data, dtype=dtype) if data else torch.empty(0, dtype=dtype)
        return found.view(stop - start, num_classes).float().numpy()

    return read


def _laid_out(
    layout: dict[str, tuple[torch.dtype, tuple[int, ...]]], metadata: Mapping[str, str]
) -> tuple[bytes, dict[str, int], int]:
    """Beginning of the file, where each tensor starts in it, and its size in bytes."""
    header: dict[str, dict] = {"__metadata__": dict(metadata)}
    offsets, offset = {}, 0
    # The format allows no holes: each start is a multiple of the item size if large items go first.
    for name, (dtype, shape) in sorted(layout.items(), key=lambda item: -item[1][0].itemsize):
        if dtype not in _DTYPE_NAMES:
            raise TypeError(f"{name} is {dtype}, which a bank file does not store: convert it")
        end = offset + int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
        header[name] = {
            "dtype": _DTYPE_NAMES[dtype],
            "shape": shape,
            "data_offsets": (offset, end),
        }
        offsets[name], offset = offset, end
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    start = 8 + len(text)
    beginning = len(text).to_bytes(8, "little") + text
    return beginning, {name: start + at for name, at in offsets.items()}, start + offset
