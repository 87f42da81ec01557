"""Processes for the tests of checkpoints: groups of ranks, and the functions that they run.

A fork server starts the processes. It imports torch once, so that a group of ranks starts in a
fraction of a second.
"""

import contextlib
import errno
import multiprocessing
import os
import resource
import signal
import tempfile
import threading
import traceback
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.distributed as dist
from torch.distributed.checkpoint import filesystem
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from alr_fast.errors import SharedError
from alr_fast.training.checkpoint import manifest, shards
from alr_fast.training.checkpoint import store as cp

_SECONDS = 90  # a group that takes longer is taken to hang
_context = multiprocessing.get_context("forkserver")
# The first DTensor imports torch._dynamo, which takes seconds.
_context.set_forkserver_preload(["alr_fast.training.checkpoint.store", "torch._dynamo"])


def run_ranks(world: int, function, *arguments) -> list:
    """Calls a function on each rank of a new gloo group; returns the results by rank."""
    with tempfile.TemporaryDirectory() as folder:
        started = [start(function, arguments, rank, world, folder) for rank in range(world)]
        try:
            outcomes = [
                pipe.recv() if pipe.poll(_SECONDS) else (False, "no answer") for _, pipe in started
            ]
        finally:
            for process, _ in started:
                process.join(0.5)
                process.kill()
                process.join()
    for rank, (succeeded, value) in enumerate(outcomes):
        assert succeeded, f"rank {rank}: {value}"
    return [value for _, value in outcomes]


def start(function, arguments: tuple, rank: int, world: int, folder: str) -> tuple:
    """Starts one rank; returns its process and the end of a pipe that receives its result."""
    pipe, theirs = _context.Pipe()
    process = _context.Process(
        target=_rank, args=(function, arguments, rank, world, folder, theirs), daemon=True
    )
    process.start()
    theirs.close()
    return process, pipe


def _rank(function, arguments, rank, world, folder, pipe) -> None:
    try:
        torch.set_num_threads(1)
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
        store = dist.FileStore(f"{folder}/store", world)
        dist.init_process_group("gloo", store=store, rank=rank, world_size=world)
        outcome = (True, function(rank, world, *arguments))
        dist.barrier()
        dist.destroy_process_group()
    except BaseException:
        outcome = (False, traceback.format_exc())
    with contextlib.suppress(BrokenPipeError):
        pipe.send(outcome)


@contextlib.contextmanager
def failing_writes(error: BaseException, after: int = 100) -> Iterator[None]:
    """Makes each of DCP's files fail after a number of bytes."""
    genuine = filesystem.FileSystem.create_stream

    class Full:
        def __init__(self, stream) -> None:
            self._stream, self._left = stream, after

        def __getattr__(self, name):
            return getattr(self._stream, name)

        def write(self, data) -> int:
            self._left -= len(data)
            if self._left < 0:
                raise error
            return self._stream.write(data)

    @contextlib.contextmanager
    def create_stream(self, path, mode):
        with genuine(self, path, mode) as stream:
            yield Full(stream) if "w" in mode else stream

    filesystem.FileSystem.create_stream = create_stream
    try:
        yield
    finally:
        filesystem.FileSystem.create_stream = genuine


def no_space() -> OSError:
    """The error of a full disk."""
    return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


ROWS, COLUMNS = 37, 5
_TINY = {1: [3], 2: [0, 3], 3: [1, 0, 2], 4: [1, 0, 2, 0]}  # rows per rank, some with none


def whole() -> dict[str, torch.Tensor]:
    """The tensors that the ranks hold together.

    The tensor with few rows comes first: DCP assigns supposed copies to the rank with the least to
    write so far, which must not be a rank without rows.
    """
    return {
        "tiny": torch.arange(6, dtype=torch.float64).reshape(3, 2) + 0.5,
        "bank": torch.arange(ROWS * COLUMNS).reshape(ROWS, COLUMNS).to(torch.bfloat16),
        "ids": torch.arange(ROWS) * 1_000_000_007,
    }


def bounds(name: str, rank: int, world: int) -> tuple[int, int]:
    """First row of a rank, and the row after its last."""
    if name == "tiny":
        start = sum(_TINY[world][:rank])
        return start, start + _TINY[world][rank]
    return ROWS * rank // world, ROWS * (rank + 1) // world


def save_shards(rank: int, world: int, folder: Path, chunk_bytes: int, in_background: bool) -> None:
    """Saves the shards, a tensor that all ranks have, and a tensor of each rank alone."""
    shards.CHUNK_BYTES = chunk_bytes
    mesh = init_device_mesh("cpu", (world,))
    tensors = {}
    for name, rows in whole().items():
        a, b = bounds(name, rank, world)
        tensors[name] = shards.shard(rows[a:b].clone(), a, len(rows), mesh)
    tensors["weight"] = torch.arange(12.0).reshape(3, 4)
    tensors[f"rank{rank}.rng"] = torch.tensor([rank])
    store = cp.CheckpointStore(folder, keep=1, log=print, background=in_background)
    store.save(5, tensors, {"rank": rank, "loss": 0.1 + 0.2})
    store.close()
    assert (store.written, store.last_error) == (5, None)


def load_shards(rank: int, world: int, folder: Path, chunk_bytes: int) -> dict:
    """Loads into buffers of this number of ranks; returns the rows of this rank, by name."""
    shards.CHUNK_BYTES = chunk_bytes
    mesh = init_device_mesh("cpu", (world,))
    rows = {"weight": torch.zeros(3, 4)}
    tensors = dict(rows)
    for name, tensor in whole().items():
        a, b = bounds(name, rank, world)
        rows[name] = torch.full_like(tensor[a:b], -1)
        tensors[name] = shards.shard(rows[name], a, len(tensor), mesh)
    checkpoint = manifest.newest_checkpoint(folder)
    manifest.check_files(checkpoint)
    cp.load(checkpoint, tensors)
    # As lists: a tensor would be sent as shared memory, which ends with this process.
    return {name: tensor.tolist() for name, tensor in rows.items()}


def fail_on_one(rank: int, world: int, folder: Path) -> dict:
    """Rank 1 alone fails, in each possible way; returns the errors on this rank."""
    mesh = init_device_mesh("cpu", (world,))
    lines: list[str] = []
    store = cp.CheckpointStore(folder, keep=3, log=lines.append)
    rows = torch.arange(8.0)[4 * rank : 4 * rank + 4].clone()
    tensors = {"bank": shards.shard(rows, 4 * rank, 8, mesh), "weight": torch.ones(3)}
    seen = {}

    def save(name: str, number: int, wait: bool) -> None:
        store.save(number, tensors, {"number": number}, wait=wait)
        store.wait()
        seen[name] = (store.written, store.last_error)

    save("first", 1, False)
    with failing_writes(no_space()) if rank == 1 else contextlib.nullcontext():
        save("background", 2, False)
        save("foreground", 3, True)
    genuine = cp.host_copy
    if rank == 1:
        cp.host_copy = _no_memory
    save("staging", 4, False)
    cp.host_copy = genuine
    save("last", 5, False)
    store.close()

    newest = manifest.newest_checkpoint(folder)
    before = rows.clone()
    wanted = tensors if rank == 0 else {**tensors, "other": torch.ones(1)}
    seen["missing name"] = _error(lambda: cp.load(newest, wanted))
    dist.barrier()
    if rank == 0:
        (newest.path / "__1_0.distcp").write_bytes(b"")
    dist.barrier()
    seen["damage"] = _error(lambda: manifest.check_files(newest))
    # Without a check of the files: one rank cannot read its file.
    seen["unreadable"] = _error(lambda: cp.load(newest, {"bank": tensors["bank"]}))
    seen["rows kept"] = torch.equal(rows, before) if rank == 1 else True
    return {"seen": seen, "lines": lines}


def _error(call) -> str | None:
    try:
        call()
    except SharedError as error:  # any other error would be shown once per rank
        return str(error)
    return None


def _no_memory(tensor: torch.Tensor, mesh: DeviceMesh) -> torch.Tensor:
    raise MemoryError("no memory for a copy")


def exceed_file_size(rank: int, world: int, folder: Path) -> list:
    """The kernel limits files to 1 MiB, and later lifts the limit."""
    lines: list[str] = []
    store = cp.CheckpointStore(folder, keep=3, log=lines.append)
    tensors = {"weight": torch.arange(1 << 20)}
    seen = []
    store.save(1, {"weight": torch.ones(3)}, {})
    store.wait()
    seen.append((store.written, store.last_error))
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, hard))
    for number, wait in ((2, False), (3, True)):
        store.save(number, tensors, {}, wait=wait)
        store.wait()
        seen.append((store.written, store.last_error))
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    store.save(4, tensors, {})
    store.close()
    seen.append((store.written, store.last_error))
    return [seen, lines]


def save_forever(rank: int, world: int, folder: Path, in_background: bool, started) -> None:
    """Saves until it is killed; each number twice, so that checkpoints are also replaced."""
    store = cp.CheckpointStore(folder, keep=2, log=print, background=in_background)
    newest = manifest.newest_checkpoint(folder)
    number = newest.number if newest else 1
    started.set()
    while True:
        for _ in range(2):
            weight = torch.full((1 << 18,), number)
            store.save(number, {"weight": weight, "rest": weight[:1000].clone()}, {"step": number})
        number += 1


def new_event():
    """An event for a process of this module."""
    return _context.Event()


def anonymous_memory(rank: int, world: int, folder: Path, megabytes: int) -> dict[str, int]:
    """Saves a shard from a file and loads it into another; returns the memory used, in bytes."""
    mesh = init_device_mesh("cpu", (world,))
    count = megabytes << 20 >> 2
    sizes = {}
    files = [
        torch.from_file(str(folder / name), shared=True, size=count, dtype=torch.int32).view(-1, 64)
        for name in ("bank", "loaded")
    ]
    for block in range(0, len(files[0]), 1 << 16):
        files[0][block : block + (1 << 16)] = block
    store = cp.CheckpointStore(folder / "checkpoints", keep=1, log=print)
    store.save(1, {"x": torch.ones(3)}, {}, wait=True)  # memory that DCP itself allocates once
    bank, loaded = (shards.shard(file, 0, len(file), mesh) for file in files)
    with _peak() as peak:
        store.save(2, {"bank": bank}, {}, wait=True)
    sizes["saving"] = peak[0]
    assert store.last_error is None
    checkpoint = manifest.newest_checkpoint(folder / "checkpoints")
    with _peak() as peak:
        manifest.check_files(checkpoint)
        cp.load(checkpoint, {"bank": loaded})
    sizes["loading"] = peak[0]
    for a, b in zip(files[0].split(1 << 16), files[1].split(1 << 16), strict=True):
        assert torch.equal(a, b)
    store.close()
    return sizes


@contextlib.contextmanager
def _peak() -> Iterator[list[int]]:
    """Yields a list with the peak growth of anonymous memory in the block, in bytes."""
    start, peak, done = _anonymous(), [0], threading.Event()

    def watch() -> None:
        while not done.wait(0.002):
            peak[0] = max(peak[0], _anonymous() - start)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield peak
    finally:
        done.set()
        thread.join()


def _anonymous() -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) << 10
    raise RuntimeError("/proc/self/status has no RssAnon: Linux is needed")
