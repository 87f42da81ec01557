"""Where the rows of a label bank lie: allocation, and the choice by size.

device
    With the net: memory of the GPU, or of the process where training runs on the CPU.
pinned
    Pinned host memory, which the CUDA kernels read and write in place.
file
    A memory-mapped file, for training on the CPU with a bank larger than the memory. It is
    scratch: a checkpoint keeps the bank, the file is gone with the process.
"""

import ctypes
import mmap
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from alr_fast.errors import UserError
from alr_fast.utils.files import reserve_space
from alr_fast.utils.machine import available_memory
from alr_fast.utils.text import readable

PLACEMENTS = ("device", "pinned", "file")


@dataclass(frozen=True)
class Choice:
    """What `choose_placement` decided.

    Attributes:
        placement: one of `PLACEMENTS`.
        why: a short phrase for the user, with the sizes it was decided by.
    """

    placement: str
    why: str


def choose_placement(num_bytes: int, device: torch.device | str, *, processes: int = 1) -> Choice:
    """Chooses where the rows go by their size and the memory that is free now.

    Args:
        num_bytes: bytes of the rows that this process keeps.
        device: where the logits are.
        processes: how many processes on this machine keep as many.

    Returns:
        On the CPU `device` up to a quarter of the available memory, else `file`. On a GPU `device`
        up to half of its free memory, else `pinned` up to half of the available host memory.
        Processes look at different moments: where they must agree, one chooses for all.

    Raises:
        UserError: the rows fit neither on the GPU nor into host memory.
    """
    device = torch.device(device)
    host = available_memory()
    here = readable(num_bytes)
    together = f"{processes} x {here}" if processes > 1 else here
    # Compared as integers: the limits themselves still count as fitting.
    if device.type != "cuda":
        if 4 * processes * num_bytes <= host:
            return Choice(
                "device", f"{together}, within a quarter of the {readable(host)} available"
            )
        return Choice("file", f"{together}, more than a quarter of the {readable(host)} available")
    free, _ = torch.cuda.mem_get_info(device)
    if 2 * num_bytes <= free:
        return Choice("device", f"{here}, within half of the {readable(free)} free on the GPU")
    if 2 * processes * num_bytes <= host:
        return Choice("pinned", f"{here}, more than half of the {readable(free)} free on the GPU")
    raise UserError(
        f"the label bank is too large: {here} are more than half of the {readable(free)} free on "
        f"the GPU, {together} more than half of the {readable(host)} of host memory available. "
        "Store it in 16 bits (--bank.dtype bfloat16), or train with more processes or nodes, each "
        "of which keeps a part of it"
    )


def allocate_rows(
    num_samples: int,
    num_classes: int,
    *,
    dtype: torch.dtype,
    device: torch.device | str,
    placement: str,
    folder: str | os.PathLike | None = None,
) -> Tensor:
    """Rows of zeros, for a bank that is used with logits on a device.

    Args:
        num_samples: N, at least 1.
        num_classes: K, at least 1.
        dtype: of the rows.
        device: where the logits are.
        placement: one of `PLACEMENTS`; `choose_placement` chooses by size.
        folder: where the file of placement `file` goes. It must be on a disk, a fast local one: a
            tmpfs (often /dev/shm, sometimes /tmp) keeps files in the memory that the file is to
            spare. The file has no name from the start, so that nothing is left behind however the
            process ends, and all its space is reserved.

    Returns:
        Contiguous [N, K], on `device` for placement `device`, else on the CPU.

    Raises:
        ValueError: the placement is none of the three, or N or K is below 1.
        UserError: the placement does not go with the device, the file cannot be made in `folder`
            at that size, or the memory cannot be pinned.
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
    if placement == "pinned":
        memory = _PinnedMemory.of_size(num_bytes, device)
    else:
        memory = _nameless_file(num_bytes, folder)
    # The tensor keeps the mapping alive.
    return torch.frombuffer(memory, dtype=dtype).view(shape)


def check_placement(placement: str, device: torch.device | str) -> None:
    """Refuses a placement that does not exist or does not go with the device of the logits.

    Raises:
        ValueError: the placement is none of `PLACEMENTS`.
        UserError: `file` with a device other than the CPU, or `pinned` with the CPU.
    """
    if placement not in PLACEMENTS:
        raise ValueError(
            f"bank placement must be one of {', '.join(PLACEMENTS)}, got {placement!r}: "
            "choose_placement chooses by size"
        )
    device = torch.device(device)
    if placement == "file" and device.type != "cpu":
        raise UserError(
            f"bank placement file is for training on the CPU, the logits are on {device}: use "
            "pinned, host memory that the GPU reads and writes"
        )
    if placement == "pinned" and device.type == "cpu":
        raise UserError(
            "bank placement pinned is for training on a GPU, the logits are on the CPU: use "
            "device, or file for a bank larger than the memory"
        )


@contextmanager
def read_in_order(rows: Tensor) -> Iterator[None]:
    """For code that goes through all rows of placement `file`: the kernel reads ahead meanwhile.

    Elsewhere it does not: the rows of a batch lie far apart, and around each of them it would read
    many pages that nobody asked for.
    """
    _advise(rows, "MADV_NORMAL")
    try:
        yield
    finally:
        _advise(rows, "MADV_RANDOM")


def _nameless_file(num_bytes: int, folder: str | os.PathLike | None) -> mmap.mmap:
    if folder is None:
        raise UserError("bank placement file needs a folder on a disk: pass folder (--bank.folder)")
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
            f"the label bank needs a file of {readable(num_bytes)} in {os.fspath(folder)}, which "
            f"failed: {error.strerror}. Point --bank.folder to a folder on a local disk with that "
            "much free, or store the bank in 16 bits (--bank.dtype bfloat16)"
        ) from error
    if hasattr(mmap, "MADV_RANDOM"):
        memory.madvise(mmap.MADV_RANDOM)
    return memory


class _PinnedMemory(mmap.mmap):
    """Zeroed host memory that a GPU reads and writes, unpinned when the last tensor on it goes.

    Not from torch's pinned allocator, which rounds up to a power of two: 9 GB would take 17.
    """

    _owner: int | None = None

    @classmethod
    def of_size(cls, num_bytes: int, device: torch.device) -> "_PinnedMemory":
        memory = cls(-1, num_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        # A forked process (a loader's) would get a copy of all pinned pages at once.
        memory.madvise(mmap.MADV_DONTFORK)
        memory._address = _address(memory)
        with torch.cuda.device(device):
            result = int(torch.cuda.cudart().cudaHostRegister(memory._address, num_bytes, 0))
        if result != 0:
            raise UserError(
                f"{readable(num_bytes)} of host memory for the label bank could not be pinned "
                f"(CUDA error {result}): free host memory, raise its limits (ulimit -l, the "
                "container's memory), or store the bank in 16 bits (--bank.dtype bfloat16)"
            )
        memory._owner = os.getpid()
        return memory

    def __del__(self) -> None:
        # Only where it was pinned: a forked process has no CUDA, an ending one lets go by itself.
        if self._owner == os.getpid() and not sys.is_finalizing():
            torch.cuda.cudart().cudaHostUnregister(self._address)


def _address(memory: mmap.mmap) -> int:
    return ctypes.addressof(ctypes.c_char.from_buffer(memory))


def _advise(rows: Tensor, advice: str) -> None:
    """Tells the kernel how the pages of mapped rows will be read; a hint, so errors are ignored."""
    if not hasattr(mmap, advice):
        return
    address = rows.data_ptr()
    start = address - address % mmap.PAGESIZE
    length = address + rows.numel() * rows.element_size() - start
    madvise = ctypes.CDLL(None).madvise
    madvise(ctypes.c_void_p(start), ctypes.c_size_t(length), ctypes.c_int(getattr(mmap, advice)))
