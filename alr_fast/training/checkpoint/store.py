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

import json
import math
import re
import shutil
import warnings
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner, DefaultSavePlanner
from torch.distributed.device_mesh import DeviceMesh

from alr_fast.errors import UserError
from alr_fast.training.checkpoint.dcp import _call_dcp, _on_all_ranks, _reason, _Writer
from alr_fast.training.checkpoint.manifest import (
    _FORMAT,
    _METADATA,
    _NUMBER,
    MANIFEST,
    Checkpoint,
    _encoded,
    _flush_folder,
    _numbered,
    _size_and_digest,
)
from alr_fast.training.checkpoint.shards import _dtype, _host_copy, _without_empty_shards

# Ranks wait in a collective for the slowest disk; torch's half an hour is short for a large bank.
_TIMEOUT = timedelta(hours=3)


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
        log: Callable[[str], None],
        background: bool = True,
        resumed_from: int | None = None,
    ) -> None:
        """Makes the folder and removes what a killed process left in it.

        Args:
            folder: The same folder on all ranks; made where there is none.
            keep: How many checkpoints stay, 1 or more.
            log: Takes a line for the user, on rank 0, in the background from another thread.
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
        self._say = log
        self._background = background
        # Of its own, so that the thread's messages never meet those of the training. DCP wants a
        # group for objects, and gloo is the one that needs no GPU.
        self._group = dist.new_group(backend="gloo", timeout=_TIMEOUT)
        self._mesh = DeviceMesh.from_group(self._group, "cpu")
        self._rank = dist.get_rank(self._group)
        self._thread: ThreadPoolExecutor | None = None
        self._writing: Future[None] | None = None
        _on_all_ranks(self._prepare_folder, self._group)
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
            _on_all_ranks(begin, self._group)
            # Not ahead: the copies of GPU tensors need no stream of their own, the disk is slower.
            writer = _Writer(temporary, sync_files=True, per_thread_copy_ahead=0)
            planner = DefaultSavePlanner(flatten_state_dict=False, flatten_sharded_tensors=False)
            _call_dcp(
                lambda: dcp.save(
                    tensors, storage_writer=writer, planner=planner, process_group=self._group
                )
            )
            parts = _on_all_ranks(hashed, self._group)
            _on_all_ranks(publish, self._group)
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

    _on_all_ranks(compare, group)
    _on_all_ranks(read, group)


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
