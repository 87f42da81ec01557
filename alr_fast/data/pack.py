"""Packs a data set into tar shards: a disk reads one large file faster than thousands of small
ones, and a cluster copies it faster.

The shards are those of WebDataset, ``<id>.<jpg|png|...>`` and ``<id>.cls`` with the label as text,
images byte for byte as they were, each with the index that DALI's own reader takes beside it. Two
packings of the same files are equal to the byte.

`alr_fast.data.layouts.packed` reads them. Files that give no image and those of an exclusion list
are left out; they keep their ids, so that all ids stay what they were.
"""

import csv
import fcntl
import hashlib
import io
import json
import os
import shutil
import tarfile
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from alr_fast.data.broken import default_exclusion_file, read_exclusions
from alr_fast.data.datasets import Dataset, Split
from alr_fast.data.images import BrokenImage, FileImages, ShardImages, prepare
from alr_fast.data.layouts.packed import (
    INDEX_FOLDER,
    LEFT_OUT,
    MANIFEST,
    SPLITS,
    VERSION,
    column_file,
    read_manifest,
    sha256_of,
)
from alr_fast.errors import UserError

_BLOCK = 512  # of a tar file
_RECORD = 20 * _BLOCK  # what its end is padded to
_SUFFIXES = {"JPEG": "jpg", "TIFF": "tif"}  # others: the name of the format


@dataclass(frozen=True)
class Packed:
    """What came out for one split.

    Attributes:
        shards: Number of shards.
        written: How many of them were written now; the others were there.
        size: Bytes of all shards.
        left_out: Number of samples without a record.
    """

    shards: int
    written: int
    size: int
    left_out: int


class Packer:
    """Packs splits into one folder.

    Args:
        out: The folder; may be one that was begun before.
        shard_mb: Largest size of a shard in MiB; one larger image makes a larger shard.
        workers: Threads that read and check images.
        track: ``track(iterable, description=str, total=int)`` shows progress.

    Raises:
        UserError: The folder holds something else, or another process packs into it.
    """

    def __init__(
        self, out: Path, *, shard_mb: int, workers: int, track: Callable[..., Iterable]
    ) -> None:
        if shard_mb < 1:
            raise UserError(f"--shard-mb {shard_mb}: must be 1 or more")
        if out.exists() and not out.is_dir():
            raise UserError(f"{out}: is a file; name a folder")
        has_manifest = (out / MANIFEST).is_file()
        if out.is_dir() and not has_manifest and any(out.iterdir()):
            raise UserError(f"{out}: is not empty, and not a packed data set; name a new folder")
        self.out = out
        self.shard_bytes = shard_mb << 20
        self.workers = max(workers, 1)
        self.track = track
        empty = {"version": VERSION, "splits": {}}
        self.manifest = read_manifest(out) if has_manifest else empty

    def check(self, dataset: Dataset, splits: dict[str, Split], exclude: str) -> dict[str, "_Plan"]:
        """Plans the shards of these splits; writes nothing.

        Args:
            dataset: Where they come from.
            splits: By name.
            exclude: ``auto``, ``none`` or a list, as ``--data.exclude`` of training.

        Raises:
            UserError: The folder holds something else, an exclusion list does not fit, or the disk
                has no room.
        """
        if self.out.absolute() == dataset.found.root.absolute():
            raise UserError(f"{self.out}: is the data set itself; name a new folder")
        plans = {}
        for name, split in splits.items():
            if name not in SPLITS:
                raise UserError(f"--split {name}: cannot be packed, only {', '.join(SPLITS)} can")
            plans[name] = _Plan.of(name, split, _excluded(split, exclude), self.shard_bytes)
        for name, plan in plans.items():
            self._refuse_others(name, plan)
        needed = sum(
            plan.needed(shard)
            for plan in plans.values()
            for shard in range(plan.shards)
            if not (self.out / plan.shard_name(shard)).exists()
        )
        free = shutil.disk_usage(_existing(self.out)).free
        if needed > free:
            raise UserError(
                f"{self.out}: the shards need {_gib(needed)}, and {_gib(free)} are free; make room "
                "or name a folder on another disk"
            )
        return plans

    def _refuse_others(self, name: str, plan: "_Plan") -> None:
        for other, known in self.manifest["splits"].items():
            if known["class_names"] != plan.facts["class_names"]:
                raise UserError(
                    f"{self.out}: its split {other} has other classes than {name}: it is of "
                    "another data set; name a new folder"
                )
        known = self.manifest["splits"].get(name, plan.facts)
        for key, what in _PLAN_KEYS.items():
            if known[key] != plan.facts[key]:
                raise UserError(
                    f"{self.out}: its split {name} was packed {what}; pack as before, or name a "
                    "new folder"
                )

    def pack(self, plan: "_Plan") -> Packed:
        """Writes the shards of a split that are not there, then its index.

        Raises:
            UserError: Every image is broken, or the folder cannot be written.
        """
        try:
            (self.out / INDEX_FOLDER).mkdir(parents=True, exist_ok=True)
            with open(self.out / INDEX_FOLDER / "lock", "w") as lock:
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except OSError:
                    raise UserError(
                        f"{self.out}: another process packs into it; wait until it is done"
                    ) from None
                return self._pack(plan)
        except OSError as error:
            raise UserError(
                f"{error.filename or self.out}: {error.strerror or error}; once that is put right, "
                "the next call goes on"
            ) from error

    def _pack(self, plan: "_Plan") -> Packed:
        for part in self.out.glob(f"{plan.name}-*.tar.part"):  # of a call that was killed
            part.unlink()
        known = self.manifest["splits"].get(plan.name)
        if known is None or known["shards"] is None:
            self.manifest["splits"][plan.name] = {**plan.facts, "shards": None, "left_out": {}}
            self._write_manifest()
        n = len(plan.split)
        columns = {"shard": np.full(n, -1, np.int32)} | {
            name: np.zeros(n, np.int64) for name in ("offset", "size")
        }
        shards, left_out, written = [], {}, 0
        with ThreadPoolExecutor(self.workers) as pool:
            rows = self.track(
                self._shard_rows(plan, pool), description=f"Packing {plan.name}", total=n
            )
            for done in rows:
                if done is None:
                    continue
                written += done.fresh
                left_out |= done.left_out
                if not len(done.rows):
                    continue  # every image of it is broken
                columns["shard"][done.rows] = len(shards)
                columns["offset"][done.rows] = done.offsets
                columns["size"][done.rows] = done.sizes
                shards.append({"name": done.name, "bytes": done.bytes, "sha256": done.sha256})
        if not shards:
            path, reason = next(iter(left_out.values()))
            raise UserError(
                f"{path}: gives no image ({reason}), nor does any other file of the split "
                f"{plan.name}; restore them, or name other splits with --split"
            )
        self._write_index(plan, columns)
        self.manifest["splits"][plan.name] = {**plan.facts, "shards": shards, "left_out": left_out}
        self._write_manifest()
        size = sum(shard["bytes"] for shard in shards)
        return Packed(len(shards), written, size, len(left_out))

    def _shard_rows(self, plan: "_Plan", pool: ThreadPoolExecutor) -> Iterator["_Shard | None"]:
        """One item for each row of the split, the last one of a shard is the shard."""
        for number in range(plan.shards):
            first, end = plan.bounds[number], plan.bounds[number + 1]
            shard = _Shard.load(self.out, plan, number)
            if shard is None:
                writer = _Writer(self.out, plan, number)
                try:
                    for row, record in _read_ahead(pool, plan.record, range(first, end)):
                        writer.add(row, record)
                        if row < end - 1:
                            yield None
                    shard = writer.finish()
                finally:
                    writer.close()
            else:
                yield from (None for _ in range(end - first - 1))
            yield shard

    def _write_index(self, plan: "_Plan", columns: dict[str, NDArray]) -> None:
        index = plan.split.index
        blob = b"".join(os.fsencode(path) + b"\0" for path in index.paths)
        lengths = index.paths.ends - index.paths.starts
        columns = {
            **columns,
            "paths": np.frombuffer(blob, np.uint8),
            "offsets": np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
            "labels": index.labels,
        }
        if index.clean_labels is not None:
            columns["clean_labels"] = index.clean_labels
        for name, column in columns.items():
            path = column_file(self.out / INDEX_FOLDER, plan.name, name)
            with open(path.with_suffix(".part"), "wb") as file:
                np.save(file, column)
            os.replace(path.with_suffix(".part"), path)

    def _write_manifest(self) -> None:
        _write_json(self.out / MANIFEST, self.manifest)


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


def _read_ahead(pool: ThreadPoolExecutor, function: Callable, rows: range) -> Iterator:
    # A few dozen at a time: all images of a shard at once would fill the memory.
    for start in range(0, len(rows), 64):
        yield from pool.map(function, rows[start : start + 64])


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
        sample = int(index.ids[row])
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


def _excluded(split: Split, exclude: str) -> dict[int, str]:
    """Row -> reason of the samples on a list."""
    if exclude == "none" or split.images.array is not None:
        return {}
    path = default_exclusion_file(split) if exclude == "auto" else Path(exclude)
    if exclude == "auto" and not path.exists():
        return {}
    rows = read_exclusions(path, split.index)
    with open(path, newline="", encoding="utf-8", errors="surrogateescape") as file:
        reasons = {int(line["id"]): line.get("reason") or "" for line in csv.DictReader(file)}
    return {int(row): f"excluded: {reasons[int(split.index.ids[row])]}" for row in rows}


def _existing(path: Path) -> Path:
    path = path.absolute()
    while not path.exists():
        path = path.parent
    return path


def _write_json(path: Path, content: dict) -> None:
    _write_text(path, json.dumps(content) + "\n")


def _write_text(path: Path, text: str) -> None:
    """Replaces a file in one step."""
    part = path.with_name(path.name + ".part")
    part.write_text(text, encoding="utf-8")
    os.replace(part, path)


def _gib(size: int) -> str:
    return f"{size / 2**30:.1f} GiB"
