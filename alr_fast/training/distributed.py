"""The processes of a run, as torchrun starts them, and the communication between them.

A command started without torchrun is a run of one process. The same code works there, with a
process group of size 1.
"""

import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from alr_fast.errors import SharedError, UserError
from alr_fast.training.signals import interruptible
from alr_fast.utils.command import show

_T = TypeVar("_T")

# Long enough for process 0 to list a data set or to write a label bank while the others wait.
_TIMEOUT = timedelta(hours=1)
# They are started together; slow disks and imports delay some of them.
_START_TIMEOUT = timedelta(minutes=5)
_PATIENCE = 10.0  # seconds until a line says whom this process waits for
_CHUNK_BYTES = 32 << 20  # rows sent to process 0 in one message


def gather(value: _T, group: dist.ProcessGroup | None = None) -> list[_T]:
    """Returns the values of all ranks of a group, by rank; all of them call this."""
    values = [value] * dist.get_world_size(group)
    dist.all_gather_object(values, value, group=group)
    return values


def on_all_ranks(action: Callable[[], _T], exchange: Callable[[Any], list[Any]]) -> _T:
    """Runs an action on every rank; an error on one rank is raised on all of them.

    Args:
        action: It must not wait for other ranks.
        exchange: Takes the value of this rank and returns those of all ranks, by rank.

    Returns:
        The result of the action on this rank.

    Raises:
        SharedError: The action raised a `UserError` on a rank, or another exception on another
            rank. The error of the lowest rank counts.
        Exception: The action raised an exception on this rank that is no `UserError`.
    """
    shared: SharedError | str | None = None
    unexpected: Exception | None = None
    try:
        result = action()
    except UserError as error:
        shared = SharedError(*error.args)
        vars(shared).update(vars(error))  # argument, value, option
    except Exception as error:
        unexpected = error
        shared = f"{type(error).__name__}: {' '.join(str(error).split())}"
    errors = exchange(shared)
    if unexpected is not None:
        raise unexpected
    for rank, failure in enumerate(errors):
        if isinstance(failure, SharedError):
            raise failure
        if failure is not None:
            raise SharedError(f"process {rank} failed: {failure}")
    return result


@dataclass(frozen=True)
class World:
    """The processes of a run, as seen by one of them.

    Attributes:
        rank: Number of this process, from 0.
        size, local_size: Number of processes, in all and on this machine.
        device: Training device of this process.
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
        """Sums a tensor on the training device or the CPU over all processes, in place."""
        if self.size > 1:
            dist.all_reduce(tensor)
        return tensor

    def start_sum(self, tensor: Tensor) -> Callable[[], Any]:
        """Asynchronous `sum`: the tensor is valid after a call of the returned function."""
        if self.size == 1:
            return lambda: None
        return dist.all_reduce(tensor, async_op=True).wait

    def any(self, *flags: bool) -> list[bool]:
        """Returns for each flag whether any process has set it; does not wait for a GPU."""
        if self.size == 1:
            return list(flags)
        tensor = torch.tensor(flags, dtype=torch.int32)
        dist.all_reduce(tensor, dist.ReduceOp.MAX)
        return tensor.bool().tolist()

    def broadcast(self, value: Any = None) -> Any:
        """Returns the value of process 0 in every process."""
        box = [value]
        if self.size > 1:
            dist.broadcast_object_list(box, src=0, device=torch.device("cpu"))
        return box[0]

    def broadcast_tensors(self, tensors: list[Tensor]) -> None:
        """Overwrites the tensors of every process with those of process 0."""
        if self.size > 1:
            for tensor in tensors:
                dist.broadcast(tensor, src=0)

    def gather(self, value: _T) -> list[_T]:
        """Returns the values of all processes, by rank, in every process."""
        return [value] if self.size == 1 else gather(value)

    def mesh(self, device_type: str) -> DeviceMesh:
        """Returns the 1-D mesh of all processes on their devices of one type."""
        if device_type not in self._meshes:  # each new mesh may create process groups
            self._meshes[device_type] = init_device_mesh(device_type, (self.size,))
        return self._meshes[device_type]

    def on_all_ranks(self, action: Callable[[], _T]) -> _T:
        """Runs an action in every process; an error in one is raised in all, see `on_all_ranks`."""
        return on_all_ranks(action, self.gather)

    def main_first(self, action: Callable[[], _T]) -> _T:
        """`on_all_ranks`, but process 0 runs first: the others find the cache that it filled."""
        first: Any = self.on_all_ranks(lambda: action() if self.main else None)
        return self.on_all_ranks(lambda: first if self.main else action())

    def from_main(self, action: Callable[[], _T]) -> _T:
        """Runs an action in process 0 and returns its result in every process."""
        return self.broadcast(self.on_all_ranks(lambda: action() if self.main else None))

    def collect_rows(self, positions: Tensor, rows: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Sends the rows of all processes to process 0, chunk by chunk.

        Every process must exhaust the iterator.

        Args:
            positions: int64 [n], positions of this process's rows in the whole table, on the CPU.
            rows: [n, K], rows of this process.

        Yields:
            In process 0, positions and rows of each chunk, on the CPU; nothing in the others.
        """
        step = max(_CHUNK_BYTES // max(rows[:1].nbytes, 1), 1)
        for rank, length in enumerate(self.gather(len(rows))):
            for start in range(0, length, step):
                chunk = slice(start, min(start + step, length))
                if self.rank == rank:
                    own = positions[chunk].contiguous(), rows[chunk].cpu().contiguous()
                    if self.main:
                        yield own
                        continue
                    for tensor in own:
                        dist.send(tensor.view(torch.uint8), dst=0)
                elif self.main:
                    size = chunk.stop - chunk.start
                    received = (
                        torch.empty(size, dtype=torch.int64),
                        torch.empty((size, rows.shape[1]), dtype=rows.dtype),
                    )
                    for tensor in received:
                        dist.recv(tensor.view(torch.uint8), src=rank)
                    yield received


@contextmanager
def process_group(device: str = "cpu") -> Iterator[World]:
    """Joins the process group of torchrun, or makes a group of one process without torchrun.

    Args:
        device: Training device: auto (CUDA if available), cpu, cuda, cuda:1, ... With several
            processes, each takes the GPU of its local rank.

    Raises:
        UserError: This machine has no such device, or too few of them.
    """
    place = _Place.from_environment()
    chosen = choose_device(device, place.local_rank, place.local_size)
    backend = "gloo"
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)
        backend = "cpu:gloo,cuda:nccl"
    destroy = not dist.is_initialized()
    if destroy:
        _join(backend, place)
    world = World(dist.get_rank(), dist.get_world_size(), place.local_size, chosen)
    try:
        yield world
    except BaseException as error:
        # Other processes may be in the middle of a message, and NCCL would wait for its end.
        destroy = destroy and (world.size == 1 or isinstance(error, SharedError))
        raise
    finally:
        if destroy:
            dist.destroy_process_group()


@dataclass(frozen=True)
class _Place:
    """Which of how many processes this is, according to the environment that torchrun sets."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1

    @classmethod
    def from_environment(cls) -> "_Place":
        if not os.environ.get("RANK"):
            return cls()
        names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_PORT")
        defaults = {"LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1", "MASTER_PORT": "0"}
        texts = [os.environ.get(name) or defaults.get(name, "") for name in names]
        if not all(text.isascii() and text.isdigit() for text in texts):
            raise _misplaced("but not all of these are there as numbers")
        place = cls(*map(int, texts[:4]))
        if not place.rank < place.size:
            raise _misplaced("but RANK must be below WORLD_SIZE")
        if place.size > 1 and not (os.environ.get("MASTER_ADDR") and os.environ.get("MASTER_PORT")):
            raise _misplaced("but not the address of process 0")
        return place


def _misplaced(problem: str) -> UserError:
    names = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    found = " ".join(f"{name}={os.environ[name]}" for name in names if name in os.environ)
    return UserError(
        f"{found} in the environment make this one of several processes, {problem}; start them "
        "with torchrun, or, to train in this process alone: unset RANK WORLD_SIZE"
    )


def _join(backend: str, place: _Place) -> None:
    """Makes the process group; that of a single process waits for no other."""
    if place.size == 1:
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
        return
    waiting = threading.Timer(_PATIENCE, _say_waiting)
    waiting.daemon = True
    if "TORCHELASTIC_RUN_ID" not in os.environ:  # torchrun does start the others
        waiting.start()
    try:
        _reach_first(place)
        with interruptible():
            store, rank, size = next(dist.rendezvous("env://", timeout=_START_TIMEOUT))
    except (dist.DistError, ValueError, OSError) as error:
        reason = str(error).partition("\n")[0]
        raise _misplaced(f"but the others have not come ({reason})") from error
    finally:
        waiting.cancel()
    store.set_timeout(_TIMEOUT)
    dist.init_process_group(
        backend, store=_own_part(store), rank=rank, world_size=size, timeout=_TIMEOUT
    )


def _reach_first(place: _Place) -> None:
    """Waits until process 0 listens; PyTorch itself would print stack traces while it waits.

    Raises:
        OSError: It does not, within the time limit.
    """
    if place.rank == 0:
        return
    address = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    end = time.monotonic() + _START_TIMEOUT.total_seconds()
    while True:
        try:
            socket.create_connection(address, timeout=5).close()
            return
        except (OSError, OverflowError) as error:
            if time.monotonic() > end:
                raise OSError(f"{address[0]}:{address[1]}: {error}") from error
        time.sleep(0.2)


def _say_waiting() -> None:
    show(f"waiting up to {_START_TIMEOUT}: {_misplaced('which are not here yet')}", file=sys.stderr)


def _own_part(store: dist.Store) -> dist.Store:
    """The part of a store that belongs to these processes, and not to killed ones before them.

    torchrun keeps one store for all restarts of the processes of a machine. It still contains the
    addresses of the killed processes, and under the same names the new processes would wait for
    them in vain (https://github.com/pytorch/pytorch/issues/135712).
    """
    restart = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    shared = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    # Each machine counts its own restarts. For several machines see docs/scaling.md.
    if restart == "0" or not shared or os.environ.get("GROUP_WORLD_SIZE", "1") != "1":
        return store
    return dist.PrefixStore(f"restart {restart}", store)


def choose_device(device: str, local_rank: int = 0, local_size: int = 1) -> torch.device:
    """Returns the training device of one of the processes of this machine.

    Args:
        device: See `process_group`.
        local_rank, local_size: Number of the process, and of processes, on this machine.

    Raises:
        UserError: This machine has no such device, or too few of them.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        chosen = torch.device(device)
        if chosen.type == "cpu":
            return torch.device("cpu")
        if chosen.type != "cuda":
            raise RuntimeError(f"no training on {chosen.type}")
        if chosen.index is None:
            chosen = torch.device("cuda", local_rank)
        elif local_size > 1:
            problem = f"{local_size} processes cannot share one GPU; pass cuda"
            raise UserError(problem, argument="device", value=device)
        torch.empty(1, device=chosen)
    except (RuntimeError, AssertionError) as error:
        remedy = "try cpu"
        if torch.cuda.is_available() and local_size > 1:
            remedy = f"start at most {torch.cuda.device_count()} processes here"
        problem = f"not usable on this machine; {remedy}"
        raise UserError(problem, argument="device", value=device) from error
    return chosen
