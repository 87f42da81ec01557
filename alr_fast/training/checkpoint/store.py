"""Checkpoints of a training run: each is a folder that is complete and verifiable, or is not there.

FOLDER/000000042/        checkpoint 42
    __RANK_*.distcp      tensors, as torch.distributed.checkpoint (DCP) stores them
    .metadata            location of each part of each tensor
    manifest.json        progress, size and SHA-256 of each file, and SHA-256 of itself
FOLDER/.000000043.tmp/   being written; .old: about to be replaced; .del: about to be removed

The manifest is written last. Then everything is flushed to the disk, and then the folder is
renamed. A killed process therefore leaves only hidden folders, which the next `CheckpointStore`
removes.

The checksums detect damage, not intent: whoever can write a checkpoint can write its manifest. A
checkpoint from a stranger runs nothing (`alr_fast.training.checkpoint.metadata`), but its numbers
are what they are.
"""

import json
import math
import os
import re
import shutil
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.checkpoint import Metadata, TensorStorageMetadata
from torch.distributed.device_mesh import DeviceMesh

from alr_fast.errors import UserError
from alr_fast.training.checkpoint.dcp import load_tensors, on_all_ranks, reason, save_tensors
from alr_fast.training.checkpoint.manifest import (
    NUMBER,
    Checkpoint,
    Files,
    numbered_folders,
    size_and_digest,
    write_manifest,
)
from alr_fast.training.checkpoint.metadata import METADATA, read_metadata
from alr_fast.training.checkpoint.shards import dtype_of, host_copy, without_empty_shards
from alr_fast.training.distributed import gather
from alr_fast.utils.files import KnownFolder, own_folder, writing
from alr_fast.utils.system import flush_to_disk

# Ranks wait for the slowest disk; torch's default of 30 minutes is short for a large label bank.
_TIMEOUT = timedelta(hours=3)
Tensors = dict[str, Tensor]  # by name


class CheckpointStore:
    """Writes the checkpoints of one run into a folder that belongs to it.

    All ranks make a store and call its methods in the same order. `save` copies the tensors to host
    memory, and a thread writes them while training continues. A checkpoint that cannot be written
    stops neither the run nor the store: see `last_error`.

    Attributes:
        folder: Folder of the checkpoints.
        written: Number of the newest checkpoint that this store completed, None before the first;
            the same on all ranks after `wait`.
        last_error: Why the last checkpoint could not be written, None if it was written; the same
            on all ranks after `wait`.
        pinned: Numbers of checkpoints that are never removed for their age.
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
        """Makes the folder and removes the files that a killed process left in it.

        Args:
            folder: The same folder on all ranks, created if missing.
            keep: Number of checkpoints to keep, 1 or more.
            log: Takes a line for the user; called on rank 0, also from the writing thread.
            background: Whether `save` may write in the background.
            resumed_from: Number of the checkpoint that the run resumed from. Checkpoints with
                higher numbers were passed over, for example because of damage: they do not count,
                and the first new checkpoint replaces them.

        Raises:
            ValueError: `keep` is below 1.
            SharedError: The folder cannot be used.
        """
        if keep < 1:
            raise ValueError(f"keep must be at least 1, got {keep}")
        self.folder = Path(folder)
        self.written: int | None = None
        self.last_error: str | None = None
        self.pinned: set[int] = set()
        self._keep = keep
        self._log = log
        self._background = background
        # A separate group keeps the messages of the thread apart from those of the training. DCP
        # needs a group for objects, and only gloo works without a GPU.
        group = dist.new_group(backend="gloo", timeout=_TIMEOUT)
        assert isinstance(group, dist.ProcessGroup)  # all ranks are members
        self._group = group
        self._mesh = DeviceMesh.from_group(group, "cpu")
        self._rank = dist.get_rank(group)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._writing: Future[None] | None = None
        self._run_place: KnownFolder | None = None  # in process 0, as the next
        self._place: KnownFolder | None = None
        on_all_ranks(self._prepare_folder, group)
        # After the preparation, so that all ranks see the same folders.
        newest = math.inf if resumed_from is None else resumed_from
        self._passed_over = {p for p in numbered_folders(self.folder) if int(p.name) > newest}

    def save(
        self, number: int, tensors: Tensors, progress: dict[str, Any], *, wait: bool = False
    ) -> None:
        """Writes a checkpoint after the previous one is complete.

        In the background, `tensors` may change as soon as this returns. A failure to write is
        logged, not raised: the older checkpoints remain.

        Args:
            number: Number of the checkpoint, 0 or more. An existing one is replaced.
            tensors: By name. Each rank writes its own part of those from `shard`. All others are
                equal on the ranks that have the name, and one of these ranks writes them.
            progress: Any JSON value, that of rank 0; floats are restored exactly.
            wait: Write before returning, without a copy of the tensors: a label bank that lies in
                a file is then never in memory as a whole.

        Raises:
            ValueError: `number` is negative, or `progress` contains NaN or infinity.
            TypeError: `progress` is no JSON value, or a DTensor is not from `shard`.
        """
        if number < 0:
            raise ValueError(f"the number of a checkpoint must not be negative, got {number}")
        progress = json.loads(json.dumps(progress, allow_nan=False))
        tensors = without_empty_shards(tensors)
        self.wait()
        if wait or not self._background:
            self._write(number, tensors, progress, None)
            return
        copies: Tensors = {}
        failure: Exception | None = None
        try:
            copies = {name: host_copy(tensor, self._mesh) for name, tensor in tensors.items()}
        except (MemoryError, RuntimeError) as error:  # torch's allocator raises RuntimeError
            failure = error
        self._writing = self._thread.submit(self._write, number, copies, progress, failure)

    def wait(self) -> None:
        """Waits until nothing is being written."""
        writing, self._writing = self._writing, None
        if writing is not None:
            writing.result()

    def close(self) -> None:
        """Waits, then ends the thread; the store cannot be used afterwards."""
        self.wait()
        self._thread.shutdown()
        for place in (self._run_place, self._place):
            if place is not None:
                place.close()

    def _write(
        self, number: int, tensors: Tensors, progress: dict[str, Any], failure: Exception | None
    ) -> None:
        """Writes a checkpoint, unless copying its tensors failed on a rank.

        An error is logged and kept in `last_error`, not raised. The ranks exchange errors after
        each step, so that all of them continue or none.
        """
        folder = self._hidden(number, "tmp")
        try:
            on_all_ranks(lambda: self._begin(folder, failure), self._group)
            own = on_all_ranks(lambda: self._write_files(tensors, folder), self._group)
            files = {name: file for part in gather(own, self._group) for name, file in part.items()}
            on_all_ranks(lambda: self._publish(number, files, progress), self._group)
        except Exception as error:
            self._fail(number, reason(error))
            return
        self.written, self.last_error = number, None
        if self._rank == 0:
            self._remove_old(number)
        self._passed_over.clear()

    def _begin(self, folder: Path, failure: Exception | None) -> None:
        if failure is not None:
            raise failure
        if self._rank == 0:
            _check_place(self._run_place)
            if os.path.islink(self.folder) or not self.folder.exists():
                self._make_folder()  # only the checkpoints were removed
            self._clean_up()
            folder.mkdir()

    def _write_files(self, tensors: Tensors, folder: Path) -> Files:
        """Writes the tensors; returns size and SHA-256 of each file of this rank, flushed."""
        # Waits for other ranks, as no other step: DCP ends this on all ranks even after a failure.
        save_tensors(tensors, folder, self._group)
        names = [file.name for file in folder.glob(f"__{self._rank}_*.distcp")]
        if self._rank == 0:
            names.append(METADATA)
        # DCP of torch 2.11 flushes a file before the last of it has left Python's buffer.
        return {name: size_and_digest(folder / name, flush=True) for name in sorted(names)}

    def _publish(self, number: int, files: Files, progress: dict[str, Any]) -> None:
        """Writes the manifest and renames the folder."""
        if self._rank != 0:
            return
        temporary, final = self._hidden(number, "tmp"), self.folder / f"{number:09d}"
        created = datetime.now(timezone.utc).isoformat(timespec="seconds")
        world_size = dist.get_world_size(self._group)
        write_manifest(
            Checkpoint(temporary, number, created, world_size, torch.__version__, progress, files)
        )
        _flush_folder(temporary)
        self._check_places()
        if final.exists():
            final.rename(self._hidden(number, "old"))
        temporary.rename(final)
        _flush_folder(self.folder)

    def _fail(self, number: int, why: str) -> None:
        older: list[str] = []
        with suppress(UserError):  # a folder that can be written but not listed
            self._check_places()
            older = [p.name for p in numbered_folders(self.folder) if p not in self._passed_over]
        self.last_error = (
            f"checkpoint {number} could not be written: {why}; training continues, "
            + (f"checkpoint {int(older[-1])} remains" if older else "no older checkpoint exists")
        )
        if self._rank == 0:
            with suppress(OSError, UserError):
                self._clean_up()
            self._log(self.last_error)

    def _remove_old(self, number: int) -> None:
        """Removes the checkpoints passed over and the oldest beyond `keep`, but neither
        ``number`` nor those pinned."""
        try:
            self._check_places()
            kept = {number, *self.pinned}
            others = {path for path in numbered_folders(self.folder) if int(path.name) not in kept}
            old = sorted(others - self._passed_over, key=lambda path: int(path.name), reverse=True)
            for path in [*(others & self._passed_over), *old[self._keep - 1 :]]:
                # Renamed first: a kill during the removal leaves no incomplete visible folder.
                path.rename(self._hidden(int(path.name), "del"))
            self._clean_up()
        except (OSError, UserError) as error:
            self._log(f"old checkpoints could not be removed: {reason(error)}")

    def _prepare_folder(self) -> None:
        if self._rank == 0:
            with writing(self.folder):
                self.folder.parent.mkdir(parents=True, exist_ok=True)
                self._run_place = KnownFolder(self.folder.parent)
            self._make_folder()
            self._clean_up()

    def _make_folder(self) -> None:
        own_folder(self.folder, parents=False)
        if self._place is not None:
            self._place.close()
        with writing(self.folder):
            self._place = KnownFolder(self.folder)

    def _check_places(self) -> None:
        """Raises a `UserError` in process 0 if another run may be in the place of this one.

        The files of the other must stay as they are.
        """
        _check_place(self._run_place)
        _check_place(self._place)

    def _clean_up(self) -> None:
        """Removes hidden folders and restores a checkpoint whose replacement was interrupted."""
        self._check_places()
        for path in list(self.folder.iterdir()):
            if match := re.fullmatch(rf"\.({NUMBER})\.(tmp|old|del)", path.name):
                final = self.folder / match[1]
                if path.is_symlink():
                    path.unlink()  # not ours
                elif match[2] == "old" and not final.exists():
                    path.rename(final)
                else:
                    shutil.rmtree(path, ignore_errors=True)

    def _hidden(self, number: int, suffix: str) -> Path:
        return self.folder / f".{number:09d}.{suffix}"


def _check_place(place: KnownFolder | None) -> None:
    if place is not None and not place.in_place():
        raise UserError(f"{place.path}: was removed, moved or replaced")


def _flush_folder(folder: Path) -> None:
    """Makes the names in a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        flush_to_disk(descriptor)
    finally:
        os.close(descriptor)


def load(checkpoint: Checkpoint, tensors: Tensors) -> None:
    """Reads a checkpoint into tensors, in place; all ranks call this, after `check_files`.

    The number of processes and the distribution of the rows may differ from those at saving.

    Args:
        checkpoint: The checkpoint.
        tensors: By name. Each rank passes the tensors that it needs; others are not read. They may
            be on any device, with any strides. Those from `shard` get the rows of this rank.

    Raises:
        SharedError: The checkpoint lacks a name, or has it with another shape or dtype: then no
            tensor was changed. Or a file cannot be read.
    """
    on_all_ranks(lambda: _check_tensors(checkpoint, tensors))
    on_all_ranks(
        lambda: load_tensors(without_empty_shards(tensors), checkpoint.path, _metadata(checkpoint))
    )


def _check_tensors(checkpoint: Checkpoint, tensors: Tensors) -> None:
    saved = saved_tensors(checkpoint)
    for name, tensor in sorted(tensors.items()):
        if name not in saved:
            raise UserError(
                f"{checkpoint.path} has no {name!r}: resume with the settings and the version of "
                "alr_fast that it was written with"
            )
        # DCP would convert the dtype silently.
        wanted, found = (tuple(tensor.shape), dtype_of(tensor)), saved[name]
        if wanted != found:
            raise UserError(
                f"{checkpoint.path} has {name!r} as {found[1]} {list(found[0])}, but "
                f"{wanted[1]} {list(wanted[0])} is needed: resume with the settings that it was "
                "written with"
            )


def saved_tensors(checkpoint: Checkpoint) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
    """Returns shape and dtype of each tensor in a checkpoint."""
    return {
        name: (tuple(entry.size), entry.properties.dtype)
        for name, entry in _metadata(checkpoint).state_dict_metadata.items()
        if isinstance(entry, TensorStorageMetadata)
    }


def _metadata(checkpoint: Checkpoint) -> Metadata:
    try:
        return read_metadata(
            checkpoint.path, {name: size for name, (size, _) in checkpoint.files.items()}
        )
    except UserError as error:
        raise UserError(
            f"{error}: resume with torch {checkpoint.torch_version}, which wrote it, or from "
            "another checkpoint"
        ) from None
