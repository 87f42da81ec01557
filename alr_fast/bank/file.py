"""The bank of a finished run as a safetensors file, written piece by piece, with checksums.

`alr_fast.bank.read_file` reads it. The checksums detect damage; they do not protect against people.
"""

import hashlib
import json
import math
import mmap
import os
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from alr_fast.errors import UserError
from alr_fast.utils.files import replacing
from alr_fast.utils.system import reserve_space
from alr_fast.utils.text import readable

_ALIGNMENT = 8  # of the data, as the safetensors library writes it
_CHUNK_BYTES = 1 << 26  # rows copied into the file at a time
ROWS = "rows"
CHECKSUMS = "row_checksums"  # int32 [N], CRC-32 of the bytes of each row
GIVEN_SHARE = "given_share"  # `LabelBank.given_share`, in the metadata if it is known
DIGEST = "sha256"  # of all but these two tensors, in the metadata

DTYPES = {
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
_NAMES = {dtype: name for name, dtype in DTYPES.items()}


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
        tensors: Mapping[str, Tensor | NDArray[Any]],
        metadata: Mapping[str, str],
    ) -> None:
        """Computes the layout of the file, which is created when the block is entered.

        Args:
            path: The file; an existing one is replaced when the new one is complete.
            num_samples: N, at least 1.
            num_classes: K, at least 1.
            dtype: Type of the rows.
            tensors: Small tensors or arrays stored beside `rows`, by name.
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
        for name in (ROWS, CHECKSUMS, "__metadata__"):
            if name in tensors:
                raise ValueError(f"the name {name!r} is taken in a bank file: rename that tensor")
        self.path = Path(path)
        self._shape, self._dtype = (num_samples, num_classes), dtype
        self._tensors = {name: as_bytes(tensor) for name, tensor in tensors.items()}
        layout: Layout = {
            ROWS: (dtype, self._shape),
            CHECKSUMS: (torch.int32, (num_samples,)),
            **_layout_of(tensors),
        }
        self._header, self._offsets, self._size = _laid_out(layout, metadata, self._tensors)
        self._written = np.zeros(num_samples, dtype=bool)
        self._checksums = np.zeros(num_samples, dtype=np.int32)
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
            for name, data in self._tensors.items():
                start = self._offsets[name]
                mapped[start : start + data.nbytes] = data.data
            count, offset = math.prod(self._shape), self._offsets[ROWS]
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
            start = self._offsets[CHECKSUMS]
            mapped[start : start + self._checksums.nbytes] = self._checksums.tobytes()
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
            some, rows_of_some = some.detach().cpu(), rows_of_some.detach().cpu()
            self._mark(some.numpy())
            self._rows.index_copy_(0, some, rows_of_some)
            # As they pass by: rows arrive in any order, and may not stay in memory.
            self._checksums[some.numpy()] = row_checksums(as_bytes(rows_of_some), len(some))

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


Layout = dict[str, tuple[torch.dtype, tuple[int, ...]]]  # type and shape of each tensor


def write_tensors(
    path: Path, tensors: Mapping[str, Tensor | NDArray[Any]], metadata: Mapping[str, str]
) -> None:
    """Writes a file without rows, with the same checksum of its tensors.

    Args:
        path: The file; an existing one is replaced.
        tensors: Tensors or arrays by name.
        metadata: Texts stored with them.

    Raises:
        UserError: The file cannot be written.
    """
    columns = {name: as_bytes(tensor) for name, tensor in tensors.items()}
    layout = _layout_of(tensors)
    header, offsets, _ = _laid_out(layout, metadata, columns)
    with replacing(path) as part, open(part, "wb") as file:
        file.write(header)
        for name in sorted(columns, key=lambda name: offsets[name]):
            file.write(columns[name].data)


def row_checksums(data: NDArray[np.uint8], num_rows: int) -> NDArray[np.int32]:
    """CRC-32 of each row, int32 [num_rows], of their bytes one after another."""
    if num_rows == 0:
        return np.empty(0, dtype=np.int32)
    view, size = data.data, data.nbytes // num_rows
    found = [zlib.crc32(view[at : at + size]) for at in range(0, data.nbytes, size)]
    return np.array(found, dtype=np.uint32).view(np.int32)


def digest_of(
    metadata: Mapping[str, str],
    layout: Mapping[str, tuple[str, list[int]]],
    columns: Mapping[str, NDArray[np.uint8]],
) -> str:
    """SHA-256 (hex) of everything but the rows and their checksums.

    Args:
        metadata: Texts of the file; one named `DIGEST` does not count.
        layout: Type and shape of each tensor, as the header has them.
        columns: The other tensors, as bytes.
    """
    facts = {name: text for name, text in metadata.items() if name != DIGEST}
    digest = hashlib.sha256(json.dumps([facts, layout], sort_keys=True).encode())
    for name in sorted(columns):
        digest.update(columns[name].data)
    return digest.hexdigest()


def _layout_of(tensors: Mapping[str, Tensor | NDArray[Any]]) -> Layout:
    def dtype_of(tensor: Tensor | NDArray[Any]) -> torch.dtype:
        if isinstance(tensor, Tensor):
            return tensor.dtype
        return torch.from_numpy(np.empty(0, dtype=tensor.dtype)).dtype

    return {name: (dtype_of(tensor), tuple(tensor.shape)) for name, tensor in tensors.items()}


def as_bytes(tensor: Tensor | NDArray[Any]) -> NDArray[np.uint8]:
    """The content of a tensor, uint8 [bytes]; numpy has no bfloat16."""
    if not isinstance(tensor, Tensor):  # as it is: it may be a read-only mapping
        return np.ascontiguousarray(tensor).reshape(-1).view(np.uint8)
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    data: NDArray[np.uint8] = flat.view(torch.uint8).numpy()
    return data


def _laid_out(
    layout: Layout, metadata: Mapping[str, str], columns: Mapping[str, NDArray[np.uint8]]
) -> tuple[bytes, dict[str, int], int]:
    """The beginning of the file, the offset of each tensor, and the size of the file in bytes."""
    for name, (dtype, _) in layout.items():
        if dtype not in _NAMES:
            raise TypeError(f"{name} is {dtype}, which a bank file does not store: convert it")
    named = {name: (_NAMES[dtype], list(shape)) for name, (dtype, shape) in layout.items()}
    facts = {**metadata, DIGEST: digest_of(metadata, named, columns)}
    header: dict[str, dict[str, Any]] = {"__metadata__": facts}
    offsets, offset = {}, 0
    # The format allows no gaps. With large items first, each offset is a multiple of the item size.
    for name, (dtype, shape) in sorted(layout.items(), key=lambda item: -item[1][0].itemsize):
        end = offset + math.prod(shape) * dtype.itemsize
        header[name] = {"dtype": _NAMES[dtype], "shape": shape, "data_offsets": (offset, end)}
        offsets[name], offset = offset, end
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    start = 8 + len(text)
    beginning = len(text).to_bytes(8, "little") + text
    return beginning, {name: start + at for name, at in offsets.items()}, start + offset
