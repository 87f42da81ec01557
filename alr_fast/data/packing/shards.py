"""Tar files that `pack` writes: plan, members, index and sidecar of each shard."""

import contextlib
import hashlib
import io
import json
import os
import stat
import tarfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from alr_fast.data.datasets import Split
from alr_fast.data.images.decode import open_image, prepare
from alr_fast.data.images.headers import kind_of
from alr_fast.data.images.sources import LEFT_OUT, MAX_BYTES, BrokenImage, ColumnImages, ShardImages
from alr_fast.data.layouts.packed_format import INDEX_FOLDER, check_records, is_reasons, sha256_of
from alr_fast.utils.files import open_regular, temporary, write_json, write_text

_SUFFIXES = {"JPEG": "jpg", "TIFF": "tif", "JPEG2000": "jp2"}  # others: the name of the format

# Facts of a plan that must equal those of an existing split, and the message if they differ.
PLAN_KEYS = {
    "sample_fingerprint": "from other samples",
    "label_fingerprint": "with other labels",
    "sizes": "from files of other sizes",
    "shard_bytes": "in shards of another size",
    "excluded": "with another exclusion list",
}


class Record(NamedTuple):
    """The encoded image of one row of a split, or why it is left out."""

    row: int
    suffix: str = ""  # of the image's file name
    data: bytes = b""
    left_out: str | None = None


@dataclass(frozen=True)
class ShardPlan:
    """Assignment of the rows of a split to shards.

    Attributes:
        name: Name of the split.
        split: Its samples.
        excluded: Row -> reason.
        bounds: First row of each shard, then the number of rows.
        room: Bytes of each row in a shard, int64 [N].
        facts: Entry of the split in the manifest.
    """

    name: str
    split: Split
    excluded: dict[int, str]
    bounds: list[int]
    room: NDArray[np.int64]
    facts: dict[str, Any]

    @classmethod
    def of(cls, name: str, split: Split, excluded: dict[int, str], shard_bytes: int) -> "ShardPlan":
        """Plans shards of at most ``shard_bytes``, from the sizes of the files alone."""
        index = split.index
        sizes = _sizes(split)
        # The image in whole blocks, its header, and the header and the one block of the label.
        room = tarfile.BLOCKSIZE * (3 + -(-sizes // tarfile.BLOCKSIZE))
        bounds = [0]
        ends = np.cumsum(room)
        while bounds[-1] < len(room):
            begin = int(ends[bounds[-1] - 1]) if bounds[-1] else 0
            limit = begin + shard_bytes - tarfile.RECORDSIZE
            bounds.append(max(int(np.searchsorted(ends, limit, side="right")), bounds[-1] + 1))
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
    def num_shards(self) -> int:
        return len(self.bounds) - 1

    @property
    def digest(self) -> str:
        """SHA-256 (hex) of everything that determines the bytes of the shards."""
        values = [self.facts[key] for key in PLAN_KEYS]
        return hashlib.sha256(json.dumps(values).encode()).hexdigest()

    def rows(self, number: int) -> range:
        """Rows of a shard."""
        return range(self.bounds[number], self.bounds[number + 1])

    def shard_name(self, number: int) -> str:
        return f"{self.name}-{number:06d}.tar"

    def needed(self, number: int) -> int:
        """Upper limit of the size of a shard in bytes."""
        rows = self.rows(number)
        return int(self.room[rows.start : rows.stop].sum()) + tarfile.RECORDSIZE

    def record(self, row: int) -> Record:
        """Reads and checks the image of a row; runs in threads."""
        if row in self.excluded:
            return Record(row, left_out=self.excluded[row])
        try:
            data = self.split.images.read(row)
            prepare(data)
        except BrokenImage as error:
            return Record(row, left_out=str(error).removeprefix(f"{LEFT_OUT}: "))
        return Record(row, _suffix(data), data)


def _sizes(split: Split) -> NDArray[np.int64]:
    """Bytes of each image, int64 [N]; an upper limit for arrays, 0 for what is not read."""
    images = split.images
    if images.array is not None:
        # PNG stores incompressible data unchanged; the rest is for its headers.
        pixels = images.array[0].nbytes
        return np.full(len(split), pixels + pixels // 8 + 1024, dtype=np.int64)
    if isinstance(images, ShardImages):
        return np.asarray(images.size, dtype=np.int64)
    if isinstance(images, ColumnImages):
        return images.sizes()
    sizes = np.zeros(len(split), dtype=np.int64)
    for row in range(len(split)):
        with contextlib.suppress(OSError):
            found = os.stat(images.name(row))
            if stat.S_ISREG(found.st_mode) and found.st_size <= MAX_BYTES:  # see `read_image_file`
                sizes[row] = found.st_size
    return sizes


def _suffix(data: bytes) -> str:
    """File name suffix of an encoded image, by its content."""
    name = kind_of(data)
    if name is None:
        with open_image(data) as image:
            name = image.format or ""
    return _SUFFIXES.get(name, name.lower())


@dataclass(frozen=True)
class Shard:
    """A finished shard; its sidecar beside the index holds these values as JSON.

    Attributes:
        name: Name of the file.
        rows: Packed rows.
        offsets: First byte of each record.
        sizes: Bytes of each record.
        left_out: Sample id -> path and reason of samples that are left out.
        bytes: Size of the file, which does not exist if no row is packed.
        sha256: SHA-256 (hex) of the file.
        plan: Digest of the plan.
        fresh: Whether it was written now; not stored.
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
    def load(cls, out: Path, plan: ShardPlan, number: int) -> "Shard | None":
        """The shard of an earlier call; None if it is missing, damaged or of another plan."""
        path = out / plan.shard_name(number)
        try:
            shard = cls(**_read_sidecar(path))
            if not shard._belongs_to(plan, number):
                return None
            if shard.rows and not (
                stat.S_ISREG(path.lstat().st_mode)  # links are refused when it is read
                and path.stat().st_size == shard.bytes
                and path.with_suffix(".idx").is_file()
                and sha256_of(path) == shard.sha256
            ):
                return None
        except (OSError, ValueError, TypeError, OverflowError, RecursionError):
            return None
        return shard

    def _belongs_to(self, plan: ShardPlan, number: int) -> bool:
        """Whether it is what a plan makes of the rows of this shard.

        Raises:
            TypeError, ValueError, OverflowError: It holds something else than a shard does.
        """
        if self.plan != plan.digest or self.name != plan.shard_name(number):
            return False
        if not is_reasons(self.left_out):
            return False
        ids = plan.split.index.sample_ids
        left_out = {int(key) for key in self.left_out}
        expected = [row for row in plan.rows(number) if int(ids[row]) not in left_out]
        if self.rows != expected or len(left_out) != len(plan.rows(number)) - len(expected):
            return False
        offsets, sizes = (np.array(column, np.int64) for column in (self.offsets, self.sizes))
        if not offsets.shape == sizes.shape == (len(expected),):
            return False
        room = [self.bytes] if expected else []
        check_records(np.zeros(len(expected), np.int32), offsets, sizes, room)
        return True

    @staticmethod
    def plan_of(path: Path) -> str | None:
        """Digest of the plan that a shard was written for; None if it is unknown."""
        try:
            return str(_read_sidecar(path)["plan"])
        except (OSError, ValueError, TypeError, KeyError, RecursionError):
            return None


class ShardWriter:
    """Writes one shard under a temporary name, and DALI's index of it."""

    def __init__(self, out: Path, plan: ShardPlan, number: int) -> None:
        self._plan = plan
        self._path = out / plan.shard_name(number)
        self._closing = contextlib.ExitStack()
        self._part = self._closing.enter_context(temporary(self._path))
        self._file = self._closing.enter_context(self._part.path.open("r+b"))
        self._tar = tarfile.TarFile(fileobj=self._file, mode="w", format=tarfile.USTAR_FORMAT)
        self._shard = Shard(self._path.name, [], [], [], {}, 0, "", plan.digest, fresh=True)
        self._lines: list[str] = []

    def add(self, record: Record) -> None:
        """Appends the image and the label of a sample, or notes why it is left out."""
        index, row = self._plan.split.index, record.row
        sample_id = int(index.sample_ids[row])
        if record.left_out is not None:
            self._shard.left_out[str(sample_id)] = (index.paths[row], record.left_out)
            return
        image, label = f"{sample_id:09d}.{record.suffix}", f"{sample_id:09d}.cls"
        size, text = len(record.data), b"%d" % index.labels[row]
        offset, label_offset = self._member(image, record.data), self._member(label, text)
        self._shard.rows.append(row)
        self._shard.offsets.append(offset)
        self._shard.sizes.append(size)
        self._lines.append(
            f"{record.suffix} {offset} {size} {image} cls {label_offset} {len(text)} {label}"
        )

    def _member(self, name: str, data: bytes) -> int:
        """Appends a file to the archive; returns the offset of its first byte."""
        info = tarfile.TarInfo(name)  # time, user and group are 0
        info.size = len(data)
        header = self._tar.offset
        self._tar.addfile(info, io.BytesIO(data))
        return header + tarfile.BLOCKSIZE

    def finish(self) -> Shard:
        """Completes the shard and gives it its final name."""
        self._tar.close()
        self._file.flush()
        shard = replace(self._shard, bytes=self._file.tell(), sha256=sha256_of(self._part.path))
        # In this order: a shard under its final name has an index, a sidecar means it is complete.
        sidecar = _sidecar(self._path)
        sidecar.unlink(missing_ok=True)
        if shard.rows:
            text = f"v1.2 {len(self._lines)}\n" + "".join(f"{line}\n" for line in self._lines)
            write_text(self._path.with_suffix(".idx"), text)
            self._part.publish()
        write_json(sidecar, {k: v for k, v in vars(shard).items() if k != "fresh"})
        return shard

    def close(self) -> None:
        """Closes the file and removes an unfinished shard."""
        self._closing.close()


def _sidecar(path: Path) -> Path:
    return (path.parent / INDEX_FOLDER / path.name).with_suffix(".json")


def _read_sidecar(path: Path) -> dict[str, Any]:
    with open_regular(_sidecar(path)) as file:
        return json.load(file)
