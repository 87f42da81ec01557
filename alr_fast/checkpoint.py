"""Checkpoints of a training run: each is a folder that is complete and verifiable, or is not there.

FOLDER/000000042/        checkpoint 42
    __RANK_*.distcp      tensors, as torch.distributed.checkpoint (DCP) stores them
    .metadata            which part of which tensor lies where
    manifest.json        progress, size and SHA-256 of each file, and SHA-256 of itself
FOLDER/.000000043.tmp/   being written; .old: about to be replaced; .del: about to be removed

The manifest is written last, then all is flushed to the disk, and then the folder gets its name. So
a process that is killed leaves hidden folders at most, which the next `CheckpointStore` removes.

A checkpoint is as trustworthy as who wrote it: the sums show damage, but `.metadata` is a pickle.
"""

import hashlib
import json
import math
import os
import re
import shutil
import warnings
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint import CheckpointException
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner, DefaultSavePlanner
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Shard
from torch.distributed.tensor._shards_wrapper import LocalShardsWrapper

from alr_fast.errors import SharedError, UserError

MANIFEST = "manifest.json"
CHUNK_BYTES = 32 << 20  # how much of a shard DCP takes into memory at once
_FORMAT = 1
_NUMBER = "[0-9]{9,}"
_METADATA = ".metadata"
_BLOCK_BYTES = 1 << 20
# Ranks wait in a collective for the slowest disk; torch's half an hour is short for a large bank.
_TIMEOUT = timedelta(hours=3)

_T = TypeVar("_T")


# Tensors -----------------------------------------------------------------------------------------


def shard(rows: Tensor, offset: int, total: int, mesh: DeviceMesh) -> DTensor:
    """Names a process's rows as a part of a tensor that all processes hold together.

    Nothing is copied and nothing is sent: what `load` reads lands in `rows`. The result is for
    `CheckpointStore.save` and `load`, not for computing.

    Args:
        rows: [n, K] or [n], any dtype, the rows offset..offset+n; n may differ between the
            processes and be 0. It may be a memory-mapped file that is larger than the memory.
        offset: Number of the first row.
        total: Rows of the whole tensor.
        mesh: 1-D mesh of all processes, on the kind of device where the rows are.

    Returns:
        A DTensor of shape [total, K] or [total], cut into views of at most CHUNK_BYTES bytes, or
        one row. The cuts are at the same rows whoever holds them, so that another number of
        processes reads most chunks once.

    Raises:
        ValueError: the rows have another number of dimensions, do not lie within the tensor, are
            not all of it where there is one process, or are on another device than the mesh.
    """
    end = offset + len(rows) if rows.ndim else offset
    if rows.ndim not in (1, 2):
        raise ValueError(
            f"rows must have shape [n] or [n, K], got {tuple(rows.shape)}: flatten them to [n, K]"
        )
    if not 0 <= offset <= end <= total or (mesh.size() == 1 and len(rows) != total):
        raise ValueError(
            f"rows {offset} to {end} are not this process's part of {total} rows held by "
            f"{mesh.size()} processes: offset and total count rows of the whole tensor"
        )
    if rows.device.type != mesh.device_type:  # DTensor would copy them all over
        raise ValueError(
            f"rows are on {rows.device}, the mesh is for {mesh.device_type}: make the mesh with "
            f'device_type="{rows.device.type}"'
        )
    row_bytes = rows[0].nbytes if len(rows) else 0
    step = max(1, CHUNK_BYTES // max(1, row_bytes))
    cuts = [offset, *range((offset // step + 1) * step, end, step), end]
    chunks = [rows.detach()[a - offset : b - offset] for a, b in pairwise(cuts)]
    starts = [(cut, *[0] * (rows.ndim - 1)) for cut in cuts[:-1]]
    return _dtensor(chunks, starts, torch.Size((total, *rows.shape[1:])), mesh)


def _dtensor(
    chunks: list[Tensor], starts: list[tuple[int, ...]], shape: torch.Size, mesh: DeviceMesh
) -> DTensor:
    # DTensor itself knows only shards of ceil(total / processes) rows; shape and stride tell it
    # not to compute them from that, and DCP asks the wrapper for what is where.
    stride = torch.empty(shape, device="meta").stride()
    wrapper = LocalShardsWrapper(chunks, starts)
    with torch.no_grad():
        return DTensor.from_local(wrapper, mesh, [Shard(0)], shape=shape, stride=stride)


def _chunks(tensor: DTensor) -> LocalShardsWrapper:
    with torch.no_grad():
        local = tensor.to_local()
    if not isinstance(local, LocalShardsWrapper):
        raise TypeError("a DTensor in a checkpoint must come from alr_fast.checkpoint.shard")
    return local


def _dtype(tensor: Tensor) -> torch.dtype:
    # A LocalShardsWrapper, and so the DTensor around it, claims to be float32 whatever it holds.
    return _chunks(tensor).local_shards()[0].dtype if isinstance(tensor, DTensor) else tensor.dtype


def _without_empty_shards(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """What this process has to write or read.

    An empty shard begins where the next process's begins: DCP takes the two for copies of the same
    chunk and may keep the empty one.
    """
    return {
        name: tensor
        for name, tensor in tensors.items()
        if not isinstance(tensor, DTensor) or any(len(c) for c in _chunks(tensor).local_shards())
    }


def _host_copy(tensor: Tensor, mesh: DeviceMesh) -> Tensor:
    """A copy in memory of its own, strides kept; of a DTensor chunk by chunk, onto a CPU mesh."""
    if not isinstance(tensor, DTensor):
        return tensor.detach().to("cpu", copy=True)
    local = _chunks(tensor)
    copies = [chunk.to("cpu", copy=True) for chunk in local.local_shards()]
    return _dtensor(copies, local.local_offsets(), tensor.shape, mesh)


# Errors ------------------------------------------------------------------------------------------


def _reason(error: BaseException) -> str:
    """Why something failed, in one line.

    torch.save and torch.load hide an error of the disk behind a RuntimeError ("unexpected pos").
    """
    if isinstance(error, UserError):
        return str(error)
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, OSError):
        cause = cause.__cause__ or cause.__context__
    if isinstance(cause, OSError) and cause.strerror:
        return cause.strerror + (f" ({cause.filename})" if cause.filename else "")
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]


def _together(step: Callable[[], _T], group: dist.ProcessGroup | None) -> list[_T]:
    """Runs a step on every rank: the results of all ranks, or on all the error of the first.

    Raises:
        SharedError: the step failed on a rank.
    """
    try:
        mine: tuple[bool, Any] = (True, step())
    except Exception as error:
        mine = (False, _reason(error))
    everyone: list[tuple[bool, Any]] = [mine] * dist.get_world_size(group)
    dist.all_gather_object(everyone, mine, group=group)
    for succeeded, value in everyone:
        if not succeeded:
            raise SharedError(value)
    return [value for _, value in everyone]


def _call_dcp(call: Callable[[], object]) -> None:
    """Calls DCP and raises what went wrong, an interruption first, not the wrapper around it."""
    try:
        call()
        return
    except CheckpointException as error:  # not an Exception
        failures = [failure for failure, _ in error.failures.values()]
    # Outside of the handler, which would overwrite the failure's own context.
    raise min(failures, key=lambda failure: isinstance(failure, Exception))


class _Writer(dcp.FileSystemWriter):
    """DCP's writer, but a failure is kept here, for the caller to look at when DCP is through.

    DCP would catch it, interruptions too, and pickle it for the other ranks. That loses the OSError
    beneath torch.save's error, and with torch 2.11 on Python 3.13 the pickling fails in turn, on
    one rank only, while the others wait.
    """

    failure: BaseException | None = None

    def write_data(self, plan: Any, planner: Any) -> Any:
        try:
            return super().write_data(plan, planner)
        except BaseException as error:
            self.failure = error
            nothing: torch.futures.Future = torch.futures.Future()
            nothing.set_result([])
            return nothing

    def finish(self, metadata: Any, results: Any) -> None:
        try:
            super().finish(metadata, results)
        except BaseException as error:
            self.failure = error

    def raise_failure(self) -> None:
        failure, self.failure = self.failure, None
        if failure is not None:
            raise failure


# Files -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Checkpoint:
    """A complete checkpoint, as its manifest tells; whether its files are whole: `check_files`.

    Attributes:
        path: Its folder.
        number: What `CheckpointStore.save` was told, the step for instance.
        created: When it was written, ISO 8601 with time zone.
        world_size: Number of processes that wrote it.
        torch_version: Their torch.
        progress: What rank 0 gave to `CheckpointStore.save`.
        files: Size in bytes and SHA-256 of each file beside the manifest.
    """

    path: Path
    number: int
    created: str
    world_size: int
    torch_version: str
    progress: dict[str, Any]
    files: dict[str, tuple[int, str]]


def list_checkpoints(folder: Path) -> list[Checkpoint]:
    """The complete checkpoints in a folder, ascending by number; none where there is no folder.

    One with a damaged manifest is left out; see `newest_checkpoint`.
    """
    found = []
    for path in _numbered(Path(folder)):
        with suppress(UserError):
            found.append(_parsed(path))
    return found


def newest_checkpoint(folder: Path) -> Checkpoint | None:
    """The checkpoint with the highest number, None where there is none.

    Raises:
        UserError: its manifest is damaged. An older one is offered, but never taken silently.
    """
    paths = _numbered(Path(folder))
    return read_manifest(paths[-1]) if paths else None


def last_number(folder: Path) -> int:
    """The highest number of a checkpoint in a folder, damaged ones included; 0 for none."""
    return max((int(path.name) for path in _numbered(Path(folder))), default=0)


def read_manifest(path: Path) -> Checkpoint:
    """Reads and verifies the manifest of a checkpoint, given its folder.

    Raises:
        UserError: there is none, it is damaged, or a newer alr_fast wrote it. The message offers
            the newest older checkpoint that is whole.
    """
    try:
        return _parsed(Path(path))
    except UserError as error:
        raise UserError(f"{error}{_offer(Path(path))}") from None


def check_files(checkpoint: Checkpoint, group: dist.ProcessGroup | None = None) -> None:
    """Compares size and SHA-256 of every file with the manifest; the ranks share the work.

    Args:
        checkpoint: What to check, the same on all ranks.
        group: The ranks that call this, all of the default group where None.

    Raises:
        SharedError: a file is missing, truncated or changed. The message offers the newest older
            checkpoint that is whole.
    """
    rank, world = dist.get_rank(group), dist.get_world_size(group)
    damages = _together(lambda: _damage(checkpoint, slice(rank, None, world)), group)
    damage = next((damage for damage in damages if damage), None)
    if damage is None:
        return
    offers = _together(lambda: _offer(checkpoint.path) if rank == 0 else "", group)
    raise SharedError(damage + offers[0])


def _numbered(folder: Path) -> list[Path]:
    """Folders with the name of a checkpoint and a manifest, ascending by number."""
    try:
        names = [name for name in os.listdir(folder) if re.fullmatch(_NUMBER, name)]
    except (FileNotFoundError, NotADirectoryError):
        return []
    paths = [folder / name for name in sorted(names, key=int)]
    return [path for path in paths if (path / MANIFEST).is_file()]


def _damage(checkpoint: Checkpoint, share: slice = slice(None)) -> str | None:
    """What is wrong with the first damaged file of a share of them, None where all are whole."""
    for name in sorted(checkpoint.files)[share]:
        file = checkpoint.path / name
        size, digest = checkpoint.files[name]
        try:
            if file.stat().st_size < size:
                return f"{file} is truncated: {file.stat().st_size} of {size} bytes"
            if _size_and_digest(file) != (size, digest):
                return f"{file} was changed after it was written (SHA-256 differs)"
        except FileNotFoundError:
            return f"{file} is missing"
        except OSError as error:
            return f"{file} cannot be read: {error.strerror}"
    return None


def _offer(path: Path) -> str:
    """The end of a message about a damaged checkpoint: which older one to take instead."""
    number = int(path.name) if re.fullmatch(_NUMBER, path.name) else 0
    for candidate in reversed(list_checkpoints(path.parent)):
        if candidate.number < number and _damage(candidate) is None:
            return f"; the newest older one that is whole: --resume {candidate.path}"
    return "; there is no older checkpoint that is whole"


def _parsed(path: Path) -> Checkpoint:
    """The manifest in a folder; a UserError without an offer where it is not right."""
    file = path / MANIFEST
    try:
        raw = file.read_bytes()
    except OSError as error:
        raise UserError(f"{path} is not a complete checkpoint: {_reason(error)}") from None
    try:
        fields = json.loads(raw)
        del fields["sha256"]
        intact = _encoded(fields) == raw
    except (ValueError, KeyError, TypeError, RecursionError):
        intact = False
    if not intact:
        raise UserError(f"{file} was changed after it was written (SHA-256 differs)")
    if fields.pop("format") != _FORMAT:
        raise UserError(f"{file} is of a newer alr_fast: resume with the one that wrote it")
    files = {name: (size, digest) for name, (size, digest) in fields.pop("files").items()}
    return Checkpoint(path=path, files=files, **fields)


def _encoded(fields: dict[str, Any]) -> bytes:
    """The bytes of a manifest. Encoding what was read gives them again, so any flip shows."""
    body = json.dumps(fields, allow_nan=False)
    return json.dumps(
        {**fields, "sha256": hashlib.sha256(body.encode()).hexdigest()}, indent=2, allow_nan=False
    ).encode()


def _size_and_digest(file: Path, *, flush: bool = False) -> tuple[int, str]:
    """Size in bytes and SHA-256 of a file, which is flushed to the disk first if wanted."""
    size, digest = 0, hashlib.sha256()
    with file.open("rb", buffering=0) as stream:
        if flush:
            os.fsync(stream.fileno())
        while block := stream.read(_BLOCK_BYTES):
            size += len(block)
            digest.update(block)
    return size, digest.hexdigest()


def _flush_folder(folder: Path) -> None:
    """Makes the names in a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


# Saving and loading ------------------------------------------------------------------------------


class CheckpointStore:
    """Writes the checkpoints of one run into a folder that belongs to it.

    All ranks make it and call its methods in the same order. `save` copies the tensors to the
    host's memory, and one thread writes them while training goes on. A checkpoint that could not be
    written ends neither: see `last_error`.

    Attributes:
        folder: Where the checkpoints are.
        written: Number of the newest one that this store completed, None before the first; the
            same on all ranks after `wait`.
        last_error: Why the last one could not be written, None where it was; the same on all ranks
            after `wait`.
    """

    def __init__(
        self,
        folder: Path,
        *,
        keep: int,
        say: Callable[[str], None],
        background: bool = True,
        resumed_from: int | None = None,
    ) -> None:
        """Makes the folder and removes what a killed process left in it.

        Args:
            folder: The same folder on all ranks; made where there is none.
            keep: How many checkpoints stay, 1 or more.
            say: Takes a line for the user, on rank 0, in the background from another thread.
            background: Whether `save` may write in the background.
            resumed_from: Number of the checkpoint that the run went on from. Those with higher
                ones were passed over, because they are damaged, say: they go when the first new
                one is complete, and count for nothing until then.

        Raises:
            ValueError: `keep` is below 1.
            SharedError: the folder cannot be used.
        """
        if keep < 1:
            raise ValueError(f"keep must be at least 1, got {keep}")
        self.folder = Path(folder)
        self.written: int | None = None
        self.last_error: str | None = None
        self._keep = keep
        self._say = say
        self._background = background
        # Of its own, so that the thread's messages never meet those of the training. DCP wants a
        # group for objects, and gloo is the one that needs no GPU.
        self._group = dist.new_group(backend="gloo", timeout=_TIMEOUT)
        self._mesh = DeviceMesh.from_group(self._group, "cpu")
        self._rank = dist.get_rank(self._group)
        self._thread: ThreadPoolExecutor | None = None
        self._writing: Future[None] | None = None
        _together(self._prepare_folder, self._group)
        # After that, so that all ranks see the same.
        above = math.inf if resumed_from is None else resumed_from
        self._passed_over = {path for path in _numbered(self.folder) if int(path.name) > above}

    def save(
        self,
        number: int,
        tensors: dict[str, Tensor],
        progress: dict[str, Any],
        *,
        wait: bool = False,
    ) -> None:
        """Writes a checkpoint, after the one before it is through.

        In the background, `tensors` may change as soon as this returns. What cannot be written is
        said, not raised: the older checkpoints stand.

        Args:
            number: Names it; 0 or more. One with the same number is replaced.
            tensors: By name. Those from `shard` are written by each rank for itself; of all others,
                the ranks that have the name hold the same, and one of them writes it.
            progress: Anything that JSON can hold, of rank 0; floats come back exactly.
            wait: Write before returning, straight from the tensors: a bank that lies in a file is
                then never in memory as a whole.

        Raises:
            ValueError: `number` is negative, or `progress` has NaN or infinity.
            TypeError: `progress` is not for JSON, or a DTensor is not from `shard`.
        """
        if number < 0:
            raise ValueError(f"the number of a checkpoint must not be negative, got {number}")
        progress = json.loads(json.dumps(progress, allow_nan=False))
        tensors = _without_empty_shards(tensors)
        self.wait()
        if wait or not self._background:
            self._write(number, tensors, progress, None)
            return
        failure: Exception | None = None
        copies: dict[str, Tensor] = {}
        try:
            for name, tensor in tensors.items():
                copies[name] = _host_copy(tensor, self._mesh)
        except (MemoryError, RuntimeError) as error:  # torch's own allocator raises the latter
            failure = error
            copies.clear()
        if self._thread is None:
            self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._writing = self._thread.submit(self._write, number, copies, progress, failure)

    def wait(self) -> None:
        """Returns when nothing is being written any more."""
        writing, self._writing = self._writing, None
        if writing is not None:
            writing.result()

    def close(self) -> None:
        """Waits, then ends the thread; the store is of no use after that."""
        self.wait()
        if self._thread is not None:
            self._thread.shutdown()
            self._thread = None

    def _write(
        self,
        number: int,
        tensors: dict[str, Tensor],
        progress: dict[str, Any],
        failure: Exception | None,
    ) -> None:
        """Writes one checkpoint; an error is said, kept in `last_error`, and not raised.

        Each step ends with the ranks telling each other how it went, so that all go on or none.
        """
        temporary = self._hidden(number, "tmp")

        def begin() -> None:
            if failure is not None:
                raise failure
            if self._rank == 0:
                self._clean_up()
                temporary.mkdir()

        def hashed() -> dict[str, tuple[int, str]]:
            writer.raise_failure()
            names = [file.name for file in temporary.glob(f"__{self._rank}_*.distcp")]
            names += [_METADATA] if self._rank == 0 else []
            # DCP of torch 2.11 flushes a file before the last of it has left Python's buffer.
            return {name: _size_and_digest(temporary / name, flush=True) for name in sorted(names)}

        def publish() -> None:
            if self._rank == 0:
                self._publish(number, {k: v for part in parts for k, v in part.items()}, progress)

        try:
            _together(begin, self._group)
            # Not ahead: the copies of GPU tensors need no stream of their own, the disk is slower.
            writer = _Writer(temporary, sync_files=True, per_thread_copy_ahead=0)
            planner = DefaultSavePlanner(flatten_state_dict=False, flatten_sharded_tensors=False)
            _call_dcp(
                lambda: dcp.save(
                    tensors, storage_writer=writer, planner=planner, process_group=self._group
                )
            )
            parts = _together(hashed, self._group)
            _together(publish, self._group)
        except Exception as error:
            self._fail(number, _reason(error))
            return
        self.written, self.last_error = number, None
        if self._rank == 0:
            self._remove_old(number)
        self._passed_over.clear()

    def _publish(
        self, number: int, files: dict[str, tuple[int, str]], progress: dict[str, Any]
    ) -> None:
        """Writes the manifest and gives the folder its name."""
        temporary, final = self._hidden(number, "tmp"), self.folder / f"{number:09d}"
        fields = {
            "format": _FORMAT,
            "number": number,
            "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "world_size": dist.get_world_size(self._group),
            "torch_version": torch.__version__,
            "progress": progress,
            "files": files,
        }
        (temporary / MANIFEST).write_bytes(_encoded(fields))
        _size_and_digest(temporary / MANIFEST, flush=True)
        _flush_folder(temporary)
        if final.exists():
            final.rename(self._hidden(number, "old"))
        temporary.rename(final)
        _flush_folder(self.folder)

    def _fail(self, number: int, reason: str) -> None:
        stands = [p.name for p in _numbered(self.folder) if p not in self._passed_over]
        self.last_error = (
            f"checkpoint {number} could not be written: {reason}; training goes on, "
            + (f"checkpoint {int(stands[-1])} stands" if stands else "there is no older one")
        )
        if self._rank == 0:
            with suppress(OSError):
                self._clean_up()
            self._say(self.last_error)

    def _remove_old(self, number: int) -> None:
        """Removes the oldest beyond `keep`, never the one just written, and those passed over."""
        try:
            others = [path for path in _numbered(self.folder) if int(path.name) != number]
            old = [path for path in others if path not in self._passed_over]
            gone = [path for path in others if path in self._passed_over]
            for path in [*gone, *old[: max(0, len(old) - self._keep + 1)]]:
                # In one go, so that a kill while the files go leaves nothing half visible.
                path.rename(self._hidden(int(path.name), "del"))
            self._clean_up()
        except OSError as error:
            self._say(f"old checkpoints could not be removed: {_reason(error)}")

    def _prepare_folder(self) -> None:
        if self._rank == 0:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._clean_up()

    def _clean_up(self) -> None:
        """Removes what is hidden, and puts back what a kill kept from being replaced."""
        for path in list(self.folder.iterdir()):
            if match := re.fullmatch(rf"\.({_NUMBER})\.(tmp|old|del)", path.name):
                final = self.folder / match[1]
                if match[2] == "old" and not final.exists():
                    path.rename(final)
                else:
                    shutil.rmtree(path, ignore_errors=True)

    def _hidden(self, number: int, why: str) -> Path:
        return self.folder / f".{number:09d}.{why}"


def load(
    checkpoint: Checkpoint, tensors: dict[str, Tensor], group: dist.ProcessGroup | None = None
) -> None:
    """Reads a checkpoint into tensors, in place; call `check_files` first.

    The number of processes and their shares of the rows may be others than when it was written.

    Args:
        checkpoint: What to read.
        tensors: By name; each rank asks for what it needs, and the rest is not read. On any device,
            with any strides; those from `shard` get this rank's rows.
        group: The ranks that call this, all of the default group where None.

    Raises:
        SharedError: the checkpoint lacks a name, or has it with another shape or dtype, and nothing
            was changed; or a file cannot be read.
    """

    def compare() -> None:
        saved = saved_tensors(checkpoint)
        for name, tensor in sorted(tensors.items()):
            if name not in saved:
                raise UserError(
                    f"{checkpoint.path} has no {name!r}: go on with the settings and the version "
                    "of alr_fast that it was written with"
                )
            # DCP would convert the dtype without a word.
            wanted, found = (tuple(tensor.shape), _dtype(tensor)), saved[name]
            if wanted != found:
                raise UserError(
                    f"{checkpoint.path} has {name!r} as {found[1]} {list(found[0])}, but "
                    f"{wanted[1]} {list(wanted[0])} is wanted: resume with the settings that it "
                    "was written with"
                )

    def read() -> None:
        planner = DefaultLoadPlanner(flatten_state_dict=False, flatten_sharded_tensors=False)
        reader = dcp.FileSystemReader(checkpoint.path)
        state = _without_empty_shards(tensors)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # no_dist warns that it is meant for one process
            # Each rank reads for itself; the plans need no coordination.
            _call_dcp(lambda: dcp.load(state, storage_reader=reader, planner=planner, no_dist=True))

    _together(compare, group)
    _together(read, group)


def saved_tensors(checkpoint: Checkpoint) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
    """Shape and dtype of each tensor in a checkpoint."""
    try:
        metadata = dcp.FileSystemReader(checkpoint.path).read_metadata()
    except Exception as error:
        # torch 2.11 cannot read what 2.15 wrote, for instance: too many values to unpack.
        raise UserError(
            f"torch {torch.__version__} cannot read {checkpoint.path / _METADATA}, written by "
            f"torch {checkpoint.torch_version} ({_reason(error)}): resume with that version"
        ) from None
    return {
        name: (tuple(entry.size), entry.properties.dtype)
        for name, entry in metadata.state_dict_metadata.items()
    }
