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

from alr_fast.errors import UserError
from alr_fast.training.checkpoint.dcp import on_all_ranks, reason
from alr_fast.training.checkpoint.metadata import DATA_FILE, METADATA
from alr_fast.utils.files import open_regular, reading
from alr_fast.utils.system import flush_to_disk

MANIFEST = "manifest.json"
NUMBER = "[0-9]{9,}"  # name of a checkpoint folder
Files = dict[str, tuple[int, str]]  # size in bytes and SHA-256 of each file
_FORMAT = 1
_KINDS: dict[str, type] = {
    "format": int,
    "number": int,
    "created": str,
    "world_size": int,
    "torch_version": str,
    "progress": object,  # any JSON value
    "files": dict,
}
_MOST_BYTES = 1 << 30
_BLOCK_BYTES = 1 << 20


@dataclass(frozen=True)
class Checkpoint:
    """A complete checkpoint, as described by its manifest. `check_files` verifies its files.

    Attributes:
        path: Its folder.
        number: Argument of `CheckpointStore.save`, for example the step.
        created: When it was written, ISO 8601 with time zone.
        world_size: Number of processes that wrote it.
        torch_version: Their version of torch.
        progress: Argument of `CheckpointStore.save` on rank 0.
        files: Size in bytes and SHA-256 of each file beside the manifest.
    """

    path: Path
    number: int
    created: str
    world_size: int
    torch_version: str
    progress: dict[str, Any]
    files: Files


def numbered_folders(folder: Path) -> list[Path]:
    """Returns the folders with the name of a checkpoint and a manifest, ascending by number.

    Raises:
        UserError: The folder cannot be read.
    """
    with reading(folder):
        if not folder.is_dir():
            return []
        paths = [folder / name for name in os.listdir(folder) if re.fullmatch(NUMBER, name)]
        return sorted((p for p in paths if (p / MANIFEST).is_file()), key=lambda p: int(p.name))


def list_checkpoints(folder: Path) -> list[Checkpoint]:
    """Returns the complete checkpoints in a folder, which may be missing, ascending by number.

    Checkpoints with a damaged manifest are left out, see `newest_checkpoint`.
    """
    found = []
    for path in numbered_folders(folder):
        with suppress(UserError):
            found.append(_parse(path))
    return found


def newest_checkpoint(folder: Path) -> Checkpoint | None:
    """Returns the checkpoint with the highest number, or None if there is no checkpoint.

    Raises:
        UserError: Its manifest is damaged. The message offers an older checkpoint, which is never
            taken silently.
    """
    paths = numbered_folders(folder)
    return read_manifest(paths[-1]) if paths else None


def last_number(folder: Path) -> int:
    """Returns the highest number of a checkpoint in a folder, damaged ones included, or 0."""
    return max((int(path.name) for path in numbered_folders(folder)), default=0)


def read_manifest(path: Path) -> Checkpoint:
    """Reads and verifies the manifest in the folder of a checkpoint.

    Raises:
        UserError: The manifest is missing, damaged, or of a newer alr_fast. The message offers the
            newest older checkpoint that is intact.
    """
    try:
        return _parse(path)
    except UserError as error:
        raise UserError(f"{error}{_offer(path)}") from None


def write_manifest(checkpoint: Checkpoint) -> None:
    """Writes the manifest into the folder of a checkpoint and flushes it to the disk."""
    fields = {"format": _FORMAT, **vars(checkpoint)}
    del fields["path"]
    with (checkpoint.path / MANIFEST).open("xb") as stream:
        stream.write(_encode(fields))
        stream.flush()
        flush_to_disk(stream.fileno())


def check_files(checkpoint: Checkpoint) -> None:
    """Compares size and SHA-256 of every file with the manifest; all ranks share the work.

    Raises:
        SharedError: A file is missing, truncated or changed. The message offers the newest older
            checkpoint that is intact.
    """

    def check() -> None:
        if damage := _damage(checkpoint, slice(dist.get_rank(), None, dist.get_world_size())):
            raise UserError(damage + _offer(checkpoint.path))

    on_all_ranks(check)


def size_and_digest(file: Path, *, flush: bool = False) -> tuple[int, str]:
    """Returns size in bytes and SHA-256 of a file, optionally flushed to the disk first."""
    size, digest = 0, hashlib.sha256()
    with open_regular(file) as stream:
        if flush:
            flush_to_disk(stream.fileno())
        while block := stream.read(_BLOCK_BYTES):
            size += len(block)
            digest.update(block)
    return size, digest.hexdigest()


def _damage(checkpoint: Checkpoint, share: slice = slice(None)) -> str | None:
    """Describes the first damaged file in a slice of the files; None if all are intact."""
    for name in sorted(checkpoint.files)[share]:
        file = checkpoint.path / name
        size, digest = checkpoint.files[name]
        try:
            if file.stat().st_size < size:
                return f"{file} is truncated: {file.stat().st_size} of {size} bytes"
            if size_and_digest(file) != (size, digest):
                return f"{file} was changed after it was written (SHA-256 differs)"
        except FileNotFoundError:
            return f"{file} is missing"
        except OSError as error:
            return f"{file} cannot be read: {error.strerror}"
    return None


def _offer(path: Path) -> str:
    """Ends a message about a damaged checkpoint with the older checkpoint to resume from."""
    number = int(path.name) if re.fullmatch(NUMBER, path.name) else 0
    for candidate in reversed(list_checkpoints(path.parent)):
        if candidate.number < number and _damage(candidate) is None:
            return f"; the newest older checkpoint that is intact: --resume {candidate.path}"
    return "; no older checkpoint is intact: start a new run"


def _parse(path: Path) -> Checkpoint:
    """Parses the manifest in a folder; its `UserError` offers no older checkpoint."""
    file = path / MANIFEST
    try:
        with open_regular(file, _MOST_BYTES) as stream:
            raw = stream.read()
    except OSError as error:
        raise UserError(f"{path} is not a complete checkpoint: {reason(error)}") from None
    try:
        fields = json.loads(raw)
        del fields["sha256"]
        intact = _encode(fields) == raw
    except (ValueError, KeyError, TypeError, RecursionError):
        intact = False
    if not intact:
        raise UserError(f"{file} was changed after it was written (SHA-256 differs)")
    if type(fields.get("format")) is int and fields["format"] > _FORMAT:
        raise UserError(f"{file} is of a newer alr_fast: resume with the version that wrote it")
    if wrong := _wrong_field(fields):
        raise UserError(f"{file} is not a manifest of alr_fast: {wrong}")
    del fields["format"]
    files = {name: (size, digest) for name, (size, digest) in fields.pop("files").items()}
    return Checkpoint(path=path, files=files, **fields)


def _wrong_field(fields: dict[str, Any]) -> str | None:
    """What is wrong with the fields of a manifest that is as it was written, by anyone."""
    if different := fields.keys() ^ _KINDS.keys():
        return f"{min(different)} is {'missing' if min(different) in _KINDS else 'unknown'}"
    for name, kind in _KINDS.items():
        if kind is not object and type(fields[name]) is not kind:
            return f"{name} is a {type(fields[name]).__name__}, not a {kind.__name__}"
    for name, entry in fields["files"].items():
        if name != METADATA and re.fullmatch(DATA_FILE, name) is None:
            return f"{name!r} is no file of a checkpoint"
        if not (type(entry) is list and [type(part) for part in entry] == [int, str]):
            return f"{name} has no size and SHA-256"
    return None


def _encode(fields: dict[str, Any]) -> bytes:
    """Encodes a manifest. Decoding and encoding are inverse, which reveals any changed bit."""
    digest = hashlib.sha256(json.dumps(fields, allow_nan=False).encode()).hexdigest()
    return json.dumps({**fields, "sha256": digest}, indent=2, allow_nan=False).encode()
