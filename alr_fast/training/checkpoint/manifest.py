"""Checkpoint folders: names, manifest, checksums."""

import hashlib
import json
import os
import re
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch.distributed as dist

from alr_fast.errors import SharedError, UserError
from alr_fast.training.checkpoint.dcp import _on_all_ranks, _reason

MANIFEST = "manifest.json"
_FORMAT = 1
_NUMBER = "[0-9]{9,}"
_METADATA = ".metadata"
_BLOCK_BYTES = 1 << 20


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
    damages = _on_all_ranks(lambda: _damage(checkpoint, slice(rank, None, world)), group)
    damage = next((damage for damage in damages if damage), None)
    if damage is None:
        return
    offers = _on_all_ranks(lambda: _offer(checkpoint.path) if rank == 0 else "", group)
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
