"""The processes of a run, as torchrun starts them, and what they tell each other.

A command that was not started by torchrun is a run of one process: everything here works the same
then, through a process group of one.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from alr_fast.errors import SharedError, UserError

# For process 0 to list a data set, or to write a label bank, while the others wait.
_TIMEOUT = timedelta(hours=1)
_CHUNK_BYTES = 32 << 20  # of rows that travel to process 0 in one go


@dataclass(frozen=True)
class World:
    """Who this process is.

    Attributes:
        rank: Its number, from 0.
        size: Number of processes.
        local_size: Number of processes on this machine.
        device: Where it trains.
    """

    rank: int
    size: int
    local_size: int
    device: torch.device
    _meshes: dict[str, DeviceMesh] = field(default_factory=dict, compare=False, repr=False)

    @property
    def main(self) -> bool:
        """Whether this is the process that prints and writes logs."""
        return self.rank == 0

    def sum(self, tensor: Tensor) -> Tensor:
        """Adds up a tensor of the training device or the CPU over all processes, in place."""
        if self.size > 1:
            dist.all_reduce(tensor)
        return tensor

    def start_sum(self, tensor: Tensor) -> Callable[[], Any]:
        """Like `sum`, beside other work: the tensor holds the sum after a call of the result."""
        if self.size == 1:
            return lambda: None
        return dist.all_reduce(tensor, async_op=True).wait

    def any(self, *flags: bool) -> list[bool]:
        """For each flag whether it is set in any process; does not wait for a GPU."""
        if self.size == 1:
            return list(flags)
        tensor = torch.tensor(flags, dtype=torch.int32)
        dist.all_reduce(tensor, dist.ReduceOp.MAX)
        return [bool(flag) for flag in tensor.tolist()]

    def broadcast(self, value: Any = None) -> Any:
        """What process 0 passed, in all of them."""
        box = [value]
        if self.size > 1:
            dist.broadcast_object_list(box, src=0, device=torch.device("cpu"))
        return box[0]

    def broadcast_tensors(self, tensors: list[Tensor]) -> None:
        """Copies process 0's tensors over those of the others."""
        if self.size > 1:
            for tensor in tensors:
                dist.broadcast(tensor, src=0)

    def gather(self, value: Any) -> list[Any]:
        """What each process passed, by rank, in all of them."""
        values = [value]
        if self.size > 1:
            values = [None] * self.size
            dist.all_gather_object(values, value)
        return values

    def mesh(self, device_type: str) -> DeviceMesh:
        """All processes in a row, each with its device of that type."""
        if device_type not in self._meshes:  # a new one may bring groups of its own
            self._meshes[device_type] = init_device_mesh(device_type, (self.size,))
        return self._meshes[device_type]

    def on_all_ranks(self, action: Callable[[], Any]) -> Any:
        """What ``action()`` gives here; what goes wrong in one process ends all of them.

        The action must not wait for other processes.

        Raises:
            SharedError: A `UserError` was raised in a process, or another exception in another one.
            Exception: The action raised one that is no `UserError`.
        """
        result = message = unexpected = None
        try:
            result = action()
        except UserError as error:
            message = str(error)
        except Exception as error:
            unexpected = error
            reason = " ".join(str(error).split())
            message = f"process {self.rank} failed: {type(error).__name__}: {reason}"
        messages = [text for text in self.gather(message) if text is not None]
        if unexpected is not None:
            raise unexpected
        if messages:
            raise SharedError(messages[0])
        return result

    def main_first(self, action: Callable[[], Any]) -> Any:
        """`on_all_ranks`, but process 0 goes before the others, which find what it left in a cache."""
        first = self.on_all_ranks(action if self.main else lambda: None)
        return (
            first if self.size == 1 else self.on_all_ranks(lambda: first if self.main else action())
        )

    def from_main(self, action: Callable[[], Any]) -> Any:
        """What ``action()`` gives in process 0, in all of them."""
        return self.broadcast(self.on_all_ranks(action if self.main else lambda: None))

    def collect_rows(self, positions: Tensor, rows: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Brings rows of all processes to process 0, piece by piece.

        Every process must run through it to its end.

        Args:
            positions: int64 [n], where the rows of this process belong, on the CPU.
            rows: [n, K], the rows of this process.

        Yields:
            In process 0 pieces of positions and rows of every process, on the CPU; nothing in the
            others.
        """
        step = max(_CHUNK_BYTES // max(rows[:1].nbytes, 1), 1)
        lengths = self.gather(len(rows))
        for rank, length in enumerate(lengths):
            for first in range(0, length, step):
                piece = slice(first, min(first + step, length))
                if self.rank == rank:
                    own = positions[piece].contiguous(), rows[piece].cpu().contiguous()
                    if rank == 0:
                        yield own
                    else:
                        for tensor in own:
                            dist.send(tensor.view(torch.uint8), dst=0)
                elif self.main:
                    size = piece.stop - piece.start
                    theirs = (
                        torch.empty(size, dtype=torch.int64),
                        torch.empty((size, rows.shape[1]), dtype=rows.dtype),
                    )
                    for tensor in theirs:
                        dist.recv(tensor.view(torch.uint8), src=rank)
                    yield theirs


@contextmanager
def process_group(device: str = "cpu") -> Iterator[World]:
    """Joins the processes that torchrun started, or stands alone without it.

    Args:
        device: Where to train: auto (CUDA where there is one), cpu, cuda, cuda:1, ... With several
            processes each takes the GPU of its local rank.

    Raises:
        UserError: No such device on this machine, or too few of them.
    """
    local_rank = int(os.environ.get("LOCAL_RANK", 0))
    local_size = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    chosen = choose_device(device, local_rank, local_size)
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)
    backend = "cpu:gloo,cuda:nccl" if chosen.type == "cuda" else "gloo"
    started = not dist.is_initialized()
    if started and "RANK" in os.environ:
        dist.init_process_group(backend, timeout=_TIMEOUT, **_own_store())
    elif started:
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
    world = World(dist.get_rank(), dist.get_world_size(), local_size, chosen)
    try:
        yield world
    except SharedError:
        _leave(started)
        raise
    except BaseException:
        # The others may be in the middle of a message: NCCL would wait here for its end.
        _leave(started and world.size == 1)
        raise
    else:
        _leave(started)


def _leave(started: bool) -> None:
    if started:
        dist.destroy_process_group()


def _own_store() -> dict[str, Any]:
    """Where the processes find each other.

    torchrun keeps one store for all restarts of the processes of a machine. Under the same names it
    still has the addresses of those that were killed, and the new ones wait for them in vain
    (https://github.com/pytorch/pytorch/issues/135712).
    """
    restart = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    shared = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    # Machines count their restarts each for itself: with several, see docs/scaling.md.
    if restart == "0" or not shared or os.environ.get("GROUP_WORLD_SIZE", "1") != "1":
        return {}
    store, rank, size = next(dist.rendezvous("env://"))
    store = dist.PrefixStore(f"restart {restart}", store)
    return {"store": store, "rank": rank, "world_size": size}


def choose_device(name: str, local_rank: int = 0, local_size: int = 1) -> torch.device:
    """The device of that name for one of the processes of this machine.

    Raises:
        UserError: No such device on this machine, or too few of them.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        if device.type == "cpu":
            return torch.device("cpu")
        if device.type != "cuda":
            raise RuntimeError(f"nothing here is made for {device.type}")
        if device.index is None:
            device = torch.device("cuda", local_rank)
        elif local_size > 1:
            raise UserError(
                f"--device {name}: {local_size} processes cannot share one GPU; pass --device cuda"
            )
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        way_out = (
            f"start at most {torch.cuda.device_count()} processes here"
            if torch.cuda.is_available() and local_size > 1
            else "try --device cpu"
        )
        raise UserError(f"--device {name}: not usable on this machine; {way_out}") from error
    return device
