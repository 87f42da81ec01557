"""Manifest and records of packed data sets: checked whole before anything relies on them.

Packed sets are copied and downloaded. So every field of the manifest has its type, every shard lies
in the folder of the manifest, and the records of a split must fill the shards as `pack` fills them,
see `check_records`.
"""

import hashlib
import json
import os
import re
import stat
import tarfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from alr_fast.errors import UserError
from alr_fast.utils.files import open_regular, reading, write_json
from alr_fast.utils.shell import python_command
from alr_fast.utils.text import error_text

MANIFEST = "packed.json"
VERSION = 1
INDEX_FOLDER = "index"
_CHECKSUM = "sha256"  # of the other fields of the manifest; the first releases wrote none
_LARGEST_MANIFEST = 1 << 30  # bytes
_BLOCK = tarfile.BLOCKSIZE
_LABEL = 2 * _BLOCK  # header and text of a label


def pack_command(root: Path, *words: str) -> str:
    """The command that packed a folder; its user knows where DIR was."""
    return python_command("alr_fast.data", "pack", "DIR", root.absolute(), *words)


def remedy(root: Path) -> str:
    """How to fix a damaged manifest or index of a folder."""
    return f"restore it, or call `{pack_command(root)}` as before, which writes it again"


class DamagedManifest(UserError):
    """The manifest cannot be read; `pack` writes it again."""


def _is_count(value: object) -> bool:
    return type(value) is int and 0 <= value < 1 << 62


def _is_digest(value: object) -> bool:
    return isinstance(value, str) and re.fullmatch("[0-9a-f]{64}", value) is not None


def _is_texts(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(text, str) for text in value)


def is_reasons(value: object) -> bool:
    """Whether a value of a JSON file is an object of id -> path and reason."""
    return isinstance(value, dict) and all(
        re.fullmatch("0|[1-9][0-9]{0,17}", key) and _is_texts(pair) and len(pair) == 2
        for key, pair in value.items()
    )


_Test = Callable[[object], bool]
_DIGEST: tuple[_Test, str] = (_is_digest, "a SHA-256")
_COUNT: tuple[_Test, str] = (_is_count, "a number from 0")
# Test of each field, and what it expects.
_SPLIT: dict[str, tuple[_Test, str]] = {
    "sample_fingerprint": _DIGEST,
    "label_fingerprint": _DIGEST,
    "sizes": _DIGEST,
    "excluded": _DIGEST,
    "shard_bytes": _COUNT,
    "count": _COUNT,
    "clean_labels": (lambda value: isinstance(value, bool), "true or false"),
    "class_names": (lambda value: _is_texts(value) and bool(value), "a list of names"),
    "shards": (lambda value: value is None or isinstance(value, list), "a list, or null"),
    "left_out": (is_reasons, "an id, path and reason for each sample"),
}
_SHARD: dict[str, tuple[_Test, str]] = {
    "name": (lambda value: isinstance(value, str), "a name"),
    "bytes": _COUNT,
    "sha256": _DIGEST,
}


def read_manifest(root: Path) -> dict[str, Any]:
    """The manifest of a packed folder; all of its fields have their types.

    Raises:
        DamagedManifest: A field is not what it should be.
        UserError: It cannot be read, or a later version of this library wrote it.
    """
    path = root / MANIFEST
    with reading(path), open_regular(path, _LARGEST_MANIFEST) as file:
        text = file.read()
    try:
        manifest = json.loads(text)
        if not isinstance(manifest, dict) or type(manifest.get("version")) is not int:
            raise ValueError("it has no version")
        if manifest["version"] != VERSION:
            raise UserError(
                f"{path}: is of version {manifest['version']}, this library reads {VERSION}; pack "
                "the data again"
            )
        if _CHECKSUM in manifest and manifest[_CHECKSUM] != _checksum(manifest):
            raise ValueError("it differs from its checksum")
        if not isinstance(manifest.get("splits"), dict):
            raise ValueError("its field splits is no object")
        for name, split in manifest["splits"].items():
            _check_split(name, split)
    except UserError:
        raise
    except (ValueError, RecursionError) as error:
        raise DamagedManifest(
            f"{path}: cannot be read as a manifest ({error_text(error)}); {remedy(root)}"
        ) from error
    return manifest


def write_manifest(root: Path, splits: Mapping[str, Any]) -> None:
    """Replaces the manifest of a packed folder."""
    manifest = {"version": VERSION, "splits": splits}
    write_json(root / MANIFEST, {**manifest, _CHECKSUM: _checksum(manifest)})


def _checksum(manifest: Mapping[str, Any]) -> str:
    content = {key: value for key, value in manifest.items() if key != _CHECKSUM}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _check_split(name: str, split: object) -> None:
    if not re.fullmatch("[A-Za-z0-9_-]{1,100}", name):
        raise ValueError(f"its split {name[:80]!r} has no usable name")
    _check_fields(split, _SPLIT, f"split {name}")
    assert isinstance(split, dict)
    if not _is_digest(split.get("records", "0" * 64)):
        raise ValueError(f"split {name}: its field records is not a SHA-256")
    before = ""
    for shard in split["shards"] or ():
        _check_fields(shard, _SHARD, f"a shard of split {name}")
        shown = shard["name"][:80]
        if not re.fullmatch(rf"{name}-[0-9]{{6,9}}\.tar", shard["name"]):
            raise ValueError(f"split {name}: {shown!r} is not the name of a shard of it")
        if (len(before), before) >= (len(shard["name"]), shard["name"]):
            raise ValueError(f"split {name}: its shard {shown!r} is out of order")
        before = shard["name"]
    if split["shards"] == []:
        raise ValueError(f"split {name}: it has no shards")


def _check_fields(value: object, fields: dict[str, tuple[_Test, str]], where: str) -> None:
    if not isinstance(value, dict):
        raise ValueError(f"{where}: it is no object")
    for field, (test, expected) in fields.items():
        if field not in value:
            raise ValueError(f"{where}: its field {field} is missing")
        if not test(value[field]):
            raise ValueError(f"{where}: its field {field} is not {expected}")


def check_sizes(root: Path, shards: list[dict[str, Any]]) -> list[Path]:
    """Paths of the shards, after a check of their sizes.

    Raises:
        UserError: One is missing, is no regular file of this folder, or has another size.
        OSError: The folder cannot be read.
    """
    paths = []
    for shard in shards:
        path = root / shard["name"]
        try:
            found = os.lstat(path)
        except FileNotFoundError as error:
            raise changed(path, error_text(error)) from error
        if stat.S_ISLNK(found.st_mode):
            raise UserError(
                f"{path}: is a link, and shards are read only from the folder of {MANIFEST}; "
                "replace it by the file"
            )
        if not stat.S_ISREG(found.st_mode):
            raise changed(path, "is not a regular file")
        if found.st_size != shard["bytes"]:
            raise changed(path, f"{found.st_size:,} bytes, {shard['bytes']:,} were written")
        paths.append(path)
    return paths


def changed(path: Path, change: str) -> UserError:
    """The error about a shard that is not the one that was written."""
    return UserError(
        f"{path}: {change}; restore the shard, or delete it and call `{pack_command(path.parent)}` "
        "as before, which writes it again"
    )


def check_records(
    shard: NDArray[Any], offset: NDArray[np.int64], size: NDArray[np.int64], bytes_: list[int]
) -> None:
    """Checks that the records fill their shards exactly, in the order of the rows.

    `pack` writes the image and the label of each row one after the other, so the sizes alone
    determine the offsets and the ends of the shards.

    Args:
        shard: Number of each row's shard, [N]; -1 for a row that was left out.
        offset: First byte of each row's record, [N]; 0 for a row that was left out.
        size: Bytes of each row's record, [N]; 0 for a row that was left out.
        bytes_: Size of each shard, [S].

    Raises:
        ValueError: A record lies elsewhere; the text names the first such row.
    """
    room = np.array(bytes_, dtype=np.int64)
    present = shard != -1
    _expect(present | ((offset == 0) & (size == 0)), "has a record, but no shard")
    _expect(~present | ((shard >= 0) & (shard < len(room))), f"has no shard of {len(room)}")
    rows = np.flatnonzero(present)
    shard, offset, size = shard[rows], offset[rows], size[rows]
    _expect((size > 0) & (size <= room[shard]), "has a size that its shard has not", rows)
    ends = offset + -(-size // _BLOCK) * _BLOCK + _LABEL
    first = np.append(True, shard[1:] != shard[:-1])[: len(rows)]
    begin = np.where(first, _BLOCK, np.append(0, ends[:-1])[: len(rows)] + _BLOCK)
    _expect(offset == begin, "has an offset where no record begins", rows)
    if not np.array_equal(shard[first], np.arange(len(room))):
        raise ValueError("the rows of a shard are not consecutive")
    last = np.append(first[1:], True)[: len(rows)]
    # The end of a tar file: two empty blocks, then zeros up to a whole record.
    full = -(-(ends[last] + 2 * _BLOCK) // tarfile.RECORDSIZE) * tarfile.RECORDSIZE
    if not np.array_equal(full, room):
        number = int(np.flatnonzero(full != room)[0])
        raise ValueError(f"the records of shard {number} do not end where the shard does")


def _expect(holds: NDArray[np.bool_], text: str, rows: NDArray[np.int64] | None = None) -> None:
    if not holds.all():
        at = int(np.flatnonzero(~holds)[0])
        raise ValueError(f"row {at if rows is None else rows[at]} {text}")


def check_members(
    path: Path,
    sample_ids: NDArray[np.int64],
    offset: NDArray[np.int64],
    size: NDArray[np.int64],
) -> None:
    """Compares the records of one shard with the headers of the tar file itself.

    Args:
        path: The shard.
        sample_ids: Ids of the samples in it, [M].
        offset: First byte of each record, [M].
        size: Bytes of each record, [M].

    Raises:
        OSError: It cannot be read.
        ValueError: A record is not the member of that sample.
    """
    with open_regular(path) as file:
        columns = (sample_ids.tolist(), offset.tolist(), size.tolist())
        for sample_id, start, length in zip(*columns, strict=True):
            header = os.pread(file.fileno(), _BLOCK, start - _BLOCK)
            # Name and size of the member; `tarfile` would take ten times as long.
            name, digits = header[:100].partition(b".")[0], header[124:136].rstrip(b" \0")
            if name != b"%09d" % sample_id or digits != b"%011o" % length:
                raise ValueError(f"byte {start:,} is not the image of sample {sample_id}")


def records_digest(columns: Mapping[str, NDArray[Any]]) -> str:
    """SHA-256 (hex) of the columns of an index that no fingerprint covers."""
    digest = hashlib.sha256()
    for name in ("shard", "offset", "size", "clean_labels"):
        if name in columns:
            digest.update(np.ascontiguousarray(columns[name], "<i8").data)
    return digest.hexdigest()


def column_file(folder: Path, split: str, name: str) -> Path:
    """File of one column of a split's index."""
    return folder / f"{split}.{name}.npy"


def sha256_of(path: Path) -> str:
    """SHA-256 (hex) of a file.

    Raises:
        OSError: It cannot be read, or is no regular file.
    """
    digest = hashlib.sha256()
    with open_regular(path) as file:
        while block := file.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()
