"""The tar files that `pack` writes: plan, entries, sidecar of each shard."""

import hashlib
import io
import json
import os
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from alr_fast.data.datasets import Split
from alr_fast.data.decode import prepare
from alr_fast.data.images import BrokenImage, FileImages, ShardImages
from alr_fast.data.layouts.packed import INDEX_FOLDER, LEFT_OUT, sha256_of
from alr_fast.utils.files import _write_json, _write_text

_BLOCK = 512  # of a tar file
_RECORD = 20 * _BLOCK  # what its end is padded to
_SUFFIXES = {"JPEG": "jpg", "TIFF": "tif"}  # others: the name of the format


# What must agree between a plan and what is there, and how a message says that it does not.
_PLAN_KEYS = {
    "sample_fingerprint": "from other samples",
    "label_fingerprint": "with other labels",
    "sizes": "from files of other sizes",
    "shard_bytes": "in shards of another size",
    "excluded": "with another exclusion list (--exclude)",
}


@dataclass(frozen=True)
class _Plan:
    """Which rows of a split go into which shard.

    Attributes:
        name: Of the split.
        split: Its samples.
        excluded: Row -> reason.
        bounds: First row of each shard, and the number of rows.
        bytes: Room that each row takes in a shard, int64 [N].
        facts: What the manifest keeps of it.
    """

    name: str
    split: Split
    excluded: dict[int, str]
    bounds: list[int]
    bytes: NDArray[np.int64]
    facts: dict

    @classmethod
    def of(cls, name: str, split: Split, excluded: dict[int, str], shard_bytes: int) -> "_Plan":
        index = split.index
        # Where all of a shard begins is known before anything is read: each can be written alone.
        sizes = _sizes(split)
        room = _BLOCK * (3 + -(-sizes // _BLOCK))
        bounds = [0]
        ends = np.cumsum(room)
        while bounds[-1] < len(room):
            begun = int(ends[bounds[-1] - 1]) if bounds[-1] else 0
            end = int(np.searchsorted(ends, begun + shard_bytes - _RECORD, side="right"))
            bounds.append(max(end, bounds[-1] + 1))
        facts = {
            "sample_fingerprint": index.sample_fingerprint(),
            "label_fingerprint": index.label_fingerprint(),
            "sizes": hashlib.sha256(sizes.astype("<i8").tobytes()).hexdigest(),
            "shard_bytes": shard_bytes,
            "excluded": hashlib.sha256(json.dumps(sorted(excluded)).encode()).hexdigest(),
            "count": len(index),
            "clean_labels": index.clean_labels is not None,
            "class_names": list(index.class_names),
        }
        return cls(name, split, excluded, bounds, room, facts)

    @property
    def shards(self) -> int:
        return len(self.bounds) - 1

    @property
    def digest(self) -> str:
        """Of everything that a shard's bytes follow from."""
        values = [self.facts[key] for key in _PLAN_KEYS]
        return hashlib.sha256(json.dumps(values).encode()).hexdigest()

    def shard_name(self, number: int) -> str:
        return f"{self.name}-{number:06d}.tar"

    def needed(self, number: int) -> int:
        rows = slice(self.bounds[number], self.bounds[number + 1])
        return int(self.bytes[rows].sum()) + _RECORD

    def record(self, row: int) -> tuple[int, tuple[str, bytes] | str]:
        """Row, with suffix and bytes of its image, or the reason why it has none; for threads."""
        if row in self.excluded:
            return row, self.excluded[row]
        if self.split.images.array is not None:
            return row, ("png", _png(self.split.images.array[row]))
        try:
            data = self.split.images.read(row)
            prepare(data)
        except BrokenImage as error:
            return row, str(error).removeprefix(f"{LEFT_OUT}: ")
        return row, (_suffix(data), data)


def _sizes(split: Split) -> NDArray[np.int64]:
    """Bytes of each image, int64 [N]; of those in memory an upper limit, 0 of missing files."""
    images = split.images
    if images.array is not None:
        # A PNG stores what it cannot compress; the rest is for its headers.
        pixels = images.array[0].nbytes
        return np.full(len(split), pixels + pixels // 8 + 1024, dtype=np.int64)
    if isinstance(images, ShardImages):
        return np.asarray(images.size, dtype=np.int64)
    return np.fromiter(_file_sizes(images), dtype=np.int64, count=len(split))


def _file_sizes(images: FileImages) -> Iterator[int]:
    for row in range(len(images)):
        try:
            yield os.stat(images.name(row)).st_size
        except OSError:
            yield 0


def _png(pixels: NDArray[np.uint8]) -> bytes:
    from PIL import Image

    buffer = io.BytesIO()
    image = pixels[0] if len(pixels) == 1 else np.ascontiguousarray(pixels.transpose(1, 2, 0))
    Image.fromarray(image).save(buffer, "PNG")
    return buffer.getvalue()


def _suffix(data: bytes) -> str:
    """Suffix of an image by what it holds."""
    if data[:2] == b"\xff\xd8":
        return "jpg"
    from PIL import Image

    with Image.open(io.BytesIO(data)) as image:
        return _SUFFIXES.get(image.format, image.format.lower())


class _Writer:
    """Writes one shard aside, with DALI's index, and gives both their names at the end."""

    def __init__(self, out: Path, plan: _Plan, number: int) -> None:
        self._plan = plan
        self._number = number
        self._path = out / plan.shard_name(number)
        self._sidecar = _sidecar(out, plan, number)
        self._part = self._path.with_suffix(".tar.part")
        # Open as long as the shard grows: `close` ends that, finished or not.
        self._file = open(self._part, "wb")  # noqa: SIM115
        self._digest = hashlib.sha256()
        self._position = 0
        self._records: list[tuple[int, int, int]] = []
        self._lines: list[str] = []
        self._left_out: dict[str, tuple[str, str]] = {}

    def add(self, row: int, record: tuple[str, bytes] | str) -> None:
        index = self._plan.split.index
        sample = int(index.sample_ids[row])
        if isinstance(record, str):
            self._left_out[str(sample)] = (index.paths[row], record)
            return
        suffix, data = record
        label = b"%d" % index.labels[row]
        parts = [self._member(f"{sample:09d}", suffix, data)]
        self._records.append((row, parts[0][1], len(data)))
        parts.append(self._member(f"{sample:09d}", "cls", label))
        self._lines.append(" ".join(f"{s} {at} {size} {name}" for s, at, size, name in parts))

    def _member(self, key: str, suffix: str, data: bytes) -> tuple[str, int, int, str]:
        info = tarfile.TarInfo(f"{key}.{suffix}")  # time, user and group are 0
        info.size = len(data)
        self._write(info.tobuf(tarfile.USTAR_FORMAT))
        at = self._position
        self._write(data)
        self._write(bytes(-len(data) % _BLOCK))
        return suffix, at, len(data), info.name

    def _write(self, data: bytes) -> None:
        self._file.write(data)
        self._digest.update(data)
        self._position += len(data)

    def finish(self) -> "_Shard":
        """The shard, under its name."""
        self._write(bytes(2 * _BLOCK))
        self._write(bytes(-self._position % _RECORD))
        self._file.flush()
        os.fsync(self._file.fileno())
        rows, offsets, sizes = zip(*self._records, strict=True) if self._records else ((), (), ())
        shard = _Shard(
            name=self._path.name,
            rows=list(rows),
            offsets=list(offsets),
            sizes=list(sizes),
            left_out=self._left_out,
            bytes=self._position,
            sha256=self._digest.hexdigest(),
            plan=self._plan.digest,
            fresh=True,
        )
        # In this order: a shard under its name has its index, and one with facts is whole.
        self._sidecar.unlink(missing_ok=True)
        if self._records:
            text = f"v1.2 {len(self._lines)}\n" + "".join(f"{line}\n" for line in self._lines)
            _write_text(self._path.with_suffix(".idx"), text)
            os.replace(self._part, self._path)
        _write_json(self._sidecar, {k: v for k, v in vars(shard).items() if k != "fresh"})
        return shard

    def close(self) -> None:
        """Removes what was not finished."""
        self._file.close()
        self._part.unlink(missing_ok=True)


@dataclass(frozen=True)
class _Shard:
    """A finished shard, as kept beside the index to go on from.

    Attributes:
        name: Name of the file.
        rows: Rows with a record.
        offsets: First byte of each record.
        sizes: Bytes of each record.
        left_out: Id -> path and reason of those without.
        bytes: Size of the file; there is none where no row has a record.
        sha256: Of the file.
        plan: Digest of the plan that it follows.
        fresh: Whether it was written now.
    """

    name: str
    rows: list[int]
    offsets: list[int]
    sizes: list[int]
    left_out: dict[str, tuple[str, str]]
    bytes: int
    sha256: str
    plan: str
    fresh: bool = False

    @classmethod
    def load(cls, out: Path, plan: _Plan, number: int) -> "_Shard | None":
        """The shard where it is there and what the plan asks for, else None."""
        try:
            facts = json.loads(_sidecar(out, plan, number).read_text(encoding="utf-8"))
            shard = cls(**facts)
            path = out / shard.name
            whole = shard.plan == plan.digest and shard.name == plan.shard_name(number)
            if whole and shard.rows:
                whole = path.stat().st_size == shard.bytes and path.with_suffix(".idx").is_file()
                whole = whole and sha256_of(path) == shard.sha256
            return shard if whole else None
        except (OSError, ValueError, TypeError):
            return None


def _sidecar(out: Path, plan: _Plan, number: int) -> Path:
    return (out / INDEX_FOLDER / plan.shard_name(number)).with_suffix(".json")
