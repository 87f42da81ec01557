"""The bank of a finished run as a safetensors file, written and read piece by piece."""

import errno
import json
import math
import mmap
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from alr_fast.errors import UserError
from alr_fast.utils.files import replacing, reserve_space
from alr_fast.utils.text import readable

_ALIGNMENT = 8  # of the data, as the safetensors library writes it
_CHUNK_BYTES = 1 << 26  # rows copied into the file at a time

_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}


class BankFileWriter:
    """Writes a bank as a safetensors file whose tensor `rows` arrives in pieces, in any order.

    The rows are written into the mapped file and never all held in memory. The file has a temporary
    name in its folder until the `with` block ends with every row written; if the block fails, the
    file is removed.

        with BankFileWriter(path, num_samples=n, num_classes=k, ...) as writer:
            for index, rows in pieces:
                writer.write(index, rows)
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        num_samples: int,
        num_classes: int,
        dtype: torch.dtype,
        tensors: Mapping[str, Tensor],
        metadata: Mapping[str, str],
    ) -> None:
        """Computes the layout of the file, which is created when the block is entered.

        Args:
            path: The file; an existing one is replaced when the new one is complete.
            num_samples: N, at least 1.
            num_classes: K, at least 1.
            dtype: Type of the rows.
            tensors: Small tensors stored beside `rows`, by name.
            metadata: Texts stored with them.

        Raises:
            TypeError: A tensor or the rows have a dtype that cannot be stored.
            ValueError: N or K is below 1, or a tensor has a reserved name.
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
        layout: dict[str, tuple[torch.dtype, tuple[int, ...]]] = {"rows": (dtype, self._shape)}
        layout |= {name: (t.dtype, tuple(t.shape)) for name, t in tensors.items()}
        self._header, self._offsets, self._size = _laid_out(layout, metadata)
        self._written = np.zeros(num_samples, dtype=bool)
        self._rows: Tensor | None = None  # in the mapped file, inside the block
        self._block = self._opened()

    def __enter__(self) -> "BankFileWriter":
        """Creates the file with all its space and stores the small tensors.

        Raises:
            UserError: The file cannot be created in its folder at that size.
        """
        self._block.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        """Gives the file its name, or removes it if the block failed.

        Raises:
            ValueError: Rows are missing.
            UserError: The file cannot be written.
        """
        self._block.__exit__(*error)

    @contextmanager
    def _opened(self) -> Iterator[None]:
        with replacing(self.path) as part:
            try:
                with open(part, "w+b") as file:
                    reserve_space(file.fileno(), self._size)
                    mapped = mmap.mmap(file.fileno(), self._size)
            except OSError as error:
                raise UserError(
                    f"the bank file {self.path} needs {readable(self._size)}, which failed: "
                    f"{error.strerror}. Free space on that disk, or choose another output folder"
                ) from error
            mapped[: len(self._header)] = self._header
            for name, tensor in self._tensors.items():
                start = self._offsets[name]
                # Bytes, since numpy has no bfloat16.
                data = tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy()
                mapped[start : start + data.nbytes] = data.data
            count, offset = math.prod(self._shape), self._offsets["rows"]
            self._rows = torch.frombuffer(
                mapped, dtype=self._dtype, count=count, offset=offset
            ).view(self._shape)
            try:
                yield
            finally:
                self._rows = None
            missing = len(self._written) - int(np.count_nonzero(self._written))
            if missing:
                raise ValueError(
                    f"{missing} of {len(self._written)} rows of {self.path} were not written, the "
                    f"first at index {int(np.argmin(self._written))}: write each row once"
                )
            mapped.flush()

    def write(self, index: Tensor, rows: Tensor) -> None:
        """Stores some rows.

        Args:
            index: [M] int64, index in the bank of each row, in [0, N).
            rows: [M, K] in the dtype of the file, on any device.

        Raises:
            RuntimeError: Outside of the `with` block.
            TypeError: A dtype is wrong.
            ValueError: A shape is wrong, or an index is outside [0, N) or was written before.
        """
        if self._rows is None:
            raise RuntimeError("a bank file is written within `with BankFileWriter(...) as writer`")
        if index.dtype != torch.int64 or rows.dtype != self._dtype:
            raise TypeError(
                f"a bank file of {self._dtype} takes an int64 index and {self._dtype} rows, got "
                f"{index.dtype} and {rows.dtype}"
            )
        if index.ndim != 1 or rows.shape != (len(index), self._shape[1]):
            raise ValueError(
                f"a bank file of {self._shape[1]} classes takes an index [M] and rows "
                f"[M, {self._shape[1]}], got {tuple(index.shape)} and {tuple(rows.shape)}"
            )
        size = max(1, _CHUNK_BYTES // (self._shape[1] * self._dtype.itemsize))
        for some, rows_of_some in zip(
            torch.split(index, size), torch.split(rows, size), strict=True
        ):
            some = some.detach().cpu()
            self._mark(some.numpy())
            self._rows.index_copy_(0, some, rows_of_some.detach().cpu())

    def _mark(self, index: NDArray[np.int64]) -> None:
        if len(index) == 0:
            return
        low, high = int(index.min()), int(index.max())
        if low < 0 or high >= len(self._written):
            raise ValueError(
                f"the index must lie in [0, {len(self._written)}), got {low} to {high}: it counts "
                "samples of the whole bank"
            )
        new = np.unique(index)
        if len(new) < len(index) or self._written[new].any():
            raise ValueError(
                f"an index between {low} and {high} came twice: write each row of the bank once"
            )
        self._written[new] = True


def open_rows(path: str | os.PathLike[str]) -> Callable[[slice], NDArray[np.float32]]:
    """A function that reads rows of a bank file: `read(slice)` returns float32 [M, K].

    The file is not mapped, so that rows do not stay in the memory of the process.

    Raises:
        OSError: The file cannot be read; `read` raises `UserError` in that case.
        KeyError, ValueError: It is not a bank file.
    """
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > os.path.getsize(path):
            raise ValueError("not a safetensors file")
        layout = json.loads(file.read(length))["rows"]
    (num_samples, num_classes), (begin, _) = layout["shape"], layout["data_offsets"]
    dtype = _DTYPES[layout["dtype"]]
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
        values: NDArray[np.float32] = found.view(stop - start, num_classes).float().numpy()
        return values

    return read


def _laid_out(
    layout: Mapping[str, tuple[torch.dtype, tuple[int, ...]]], metadata: Mapping[str, str]
) -> tuple[bytes, dict[str, int], int]:
    """The beginning of the file, the offset of each tensor, and the size of the file in bytes."""
    header: dict[str, dict[str, Any]] = {"__metadata__": dict(metadata)}
    offsets, offset = {}, 0
    # The format allows no gaps. With large items first, each offset is a multiple of the item size.
    for name, (dtype, shape) in sorted(layout.items(), key=lambda item: -item[1][0].itemsize):
        if dtype not in _NAMES:
            raise TypeError(f"{name} is {dtype}, which a bank file does not store: convert it")
        end = offset + math.prod(shape) * dtype.itemsize
        header[name] = {"dtype": _NAMES[dtype], "shape": shape, "data_offsets": (offset, end)}
        offsets[name], offset = offset, end
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    start = 8 + len(text)
    beginning = len(text).to_bytes(8, "little") + text
    return beginning, {name: start + at for name, at in offsets.items()}, start + offset
