"""Where the rows of a label bank are stored: allocation, and the choice by size.

device
    With the model: memory of the GPU, or of the process for training on the CPU.
pinned
    Pinned host memory, which the CUDA kernels read and write in place.
file
    A memory-mapped file, for training on the CPU with a bank larger than the memory. It is
    scratch: checkpoints store the bank, and the file disappears with the process.
"""

import ctypes
import mmap
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from alr_fast.errors import UserError
from alr_fast.utils.machine import available_memory
from alr_fast.utils.system import reserve_space
from alr_fast.utils.text import readable

PLACEMENTS = ("device", "pinned", "file")


class PlacementChoice(NamedTuple):
    """Result of `choose_placement`."""

    placement: str  # one of `PLACEMENTS`
    why: str  # a short phrase for the user, with the sizes that decided


def choose_placement(
    num_bytes: int, device: torch.device | str, *, processes: int = 1
) -> PlacementChoice:
    """Chooses a placement by the size of the rows and the memory that is free now.

    Args:
        num_bytes: Bytes of the rows of this process.
        device: Device of the logits.
        processes: Number of processes on this machine, each with as many bytes.

    Returns:
        On the CPU `device` up to a quarter of the available memory, else `file`. On a GPU `device`
        up to half of its free memory, else `pinned` up to half of the available host memory.
        Processes measure at different times: if they have to agree, one process chooses for all.

    Raises:
        UserError: The rows fit neither on the GPU nor into host memory.
    """
    device = torch.device(device)
    host = available_memory()
    own = readable(num_bytes)
    total = f"{processes} x {own}" if processes > 1 else own
    # Compared as integers: a size equal to the limit fits.
    if device.type != "cuda":
        limit = f"a quarter of the {readable(host)} available"
        if 4 * processes * num_bytes <= host:
            return PlacementChoice("device", f"{total}, within {limit}")
        return PlacementChoice("file", f"{total}, more than {limit}")
    free, _ = torch.cuda.mem_get_info(device)
    limit = f"half of the {readable(free)} free on the GPU"
    if 2 * num_bytes <= free:
        return PlacementChoice("device", f"{own}, within {limit}")
    if 2 * processes * num_bytes <= host:
        return PlacementChoice("pinned", f"{own}, more than {limit}")
    raise UserError(
        f"the label bank is too large: {own} are more than {limit}, {total} more than half of the "
        f"{readable(host)} of host memory available. Store it in 16 bits (dtype bfloat16), or "
        "train with more processes or nodes, each of which keeps a part of it"
    )


def allocate_rows(
    num_samples: int,
    num_classes: int,
    *,
    dtype: torch.dtype,
    device: torch.device | str,
    placement: str,
    folder: str | os.PathLike[str] | None = None,
) -> Tensor:
    """Rows of zeros, for a bank that is used with logits on a device.

    Args:
        num_samples: N, at least 1.
        num_classes: K, at least 1.
        dtype: Type of the rows.
        device: Device of the logits.
        placement: One of `PLACEMENTS`; `choose_placement` chooses by size.
        folder: Folder for the file of placement `file`, on a fast local disk: a tmpfs (often
            /dev/shm, sometimes /tmp) keeps files in the memory that the file is meant to save. All
            space is reserved, and the file is unlinked at once: it disappears with the process.

    Returns:
        Contiguous [N, K], on `device` for placement `device`, else on the CPU.

    Raises:
        ValueError: N or K is below 1.
        UserError: The placement is unknown or not possible with the device, the file cannot be
            created in `folder` at that size, or the memory cannot be pinned.
    """
    check_placement(placement, device)
    device = torch.device(device)
    if num_samples < 1 or num_classes < 1:
        raise ValueError(
            f"a bank needs at least one sample and one class, got {num_samples} and {num_classes}"
        )
    shape = (num_samples, num_classes)
    if placement == "device":
        return torch.zeros(shape, dtype=dtype, device=device)
    num_bytes = num_samples * num_classes * dtype.itemsize
    memory: mmap.mmap
    if placement == "pinned":
        memory = _PinnedMemory.of_size(num_bytes, device)
    else:
        memory = _unlinked_file(num_bytes, folder)
    # The tensor keeps the mapping alive.
    return torch.frombuffer(memory, dtype=dtype).view(shape)


def check_placement(placement: str, device: torch.device | str) -> None:
    """Refuses a placement that is unknown or not possible with the device of the logits.

    Raises:
        UserError: The placement is not in `PLACEMENTS`, or `file` with a device other than the CPU,
            or `pinned` with the CPU.
    """
    device = torch.device(device)
    if placement not in PLACEMENTS:
        problem = f"must be one of {', '.join(PLACEMENTS)}; choose_placement chooses by size"
    elif placement == "file" and device.type != "cpu":
        problem = (
            f"is for training on the CPU, but the logits are on {device}; use pinned, host memory "
            "that the GPU reads and writes"
        )
    elif placement == "pinned" and device.type == "cpu":
        problem = (
            "is for training on a GPU, but the logits are on the CPU; use device, or file for a "
            "bank larger than the memory"
        )
    else:
        return
    raise UserError(problem, argument="placement", value=placement)


@contextmanager
def read_in_order(rows: Tensor) -> Iterator[None]:
    """For code that reads all rows of placement `file`: inside the block the kernel reads ahead.

    Otherwise it does not: the rows of a batch are far apart, and reading ahead would load many
    pages that are not needed.
    """
    _advise(rows, "MADV_NORMAL")
    try:
        yield
    finally:
        _advise(rows, "MADV_RANDOM")


def _unlinked_file(num_bytes: int, folder: str | os.PathLike[str] | None) -> mmap.mmap:
    if folder is None:
        raise UserError("missing; placement file needs a folder on a local disk", argument="folder")
    try:
        handle, name = tempfile.mkstemp(prefix="bank_", dir=folder)
        try:
            os.unlink(name)
            reserve_space(handle, num_bytes)
            memory = mmap.mmap(handle, num_bytes)
        finally:
            os.close(handle)  # the mapping has its own
    except OSError as error:
        raise UserError(
            f"the label bank needs a file of {readable(num_bytes)} here, which failed: "
            f"{error.strerror}; pass a folder on a local disk with that much free, or store the "
            "bank in 16 bits (dtype bfloat16)",
            argument="folder",
            value=os.fspath(folder),
        ) from error
    if hasattr(mmap, "MADV_RANDOM"):
        memory.madvise(mmap.MADV_RANDOM)
    return memory


def _cudart() -> Any:
    return cast(Any, torch.cuda).cudart()  # torch has no type annotations for it


class _PinnedMemory(mmap.mmap):
    """Zeroed host memory that a GPU reads and writes, unpinned when its last tensor is freed.

    torch's pinned allocator is not used because it rounds up to a power of two: 9 GB would take 17.
    """

    _address: int
    _owner: int | None = None  # process that pinned it

    @classmethod
    def of_size(cls, num_bytes: int, device: torch.device) -> "_PinnedMemory":
        memory = cls(-1, num_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        # A forked process (a loader's) would immediately get a copy of all pinned pages.
        memory.madvise(mmap.MADV_DONTFORK)
        memory._address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
        with torch.cuda.device(device):
            result = int(_cudart().cudaHostRegister(memory._address, num_bytes, 0))
        if result != 0:
            raise UserError(
                f"{readable(num_bytes)} of host memory for the label bank could not be pinned "
                f"(CUDA error {result}); free host memory, raise its limits (ulimit -l, the "
                "container's memory), or store the bank in 16 bits (dtype bfloat16)",
                argument="placement",
                value="pinned",
            )
        memory._owner = os.getpid()
        return memory

    def __del__(self) -> None:
        # A forked process has no CUDA, and an ending process releases the memory anyway.
        if self._owner == os.getpid() and not sys.is_finalizing():
            _cudart().cudaHostUnregister(self._address)


def _advise(rows: Tensor, advice: str) -> None:
    """Announces to the kernel how mapped rows will be read; only a hint, so errors are ignored."""
    if not hasattr(mmap, advice):
        return
    address = rows.data_ptr()
    start = address - address % mmap.PAGESIZE
    length = address + rows.numel() * rows.element_size() - start
    madvise = ctypes.CDLL(None).madvise
    madvise(ctypes.c_void_p(start), ctypes.c_size_t(length), ctypes.c_int(getattr(mmap, advice)))
