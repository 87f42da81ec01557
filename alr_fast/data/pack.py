"""Packs a data set into tar shards: a disk reads one large file faster than thousands of small
ones, and a cluster copies it faster.

The shards are those of WebDataset, ``<id>.<jpg|png|...>`` and ``<id>.cls`` with the label as text,
images byte for byte as they were, each with the index that DALI's own reader takes beside it. Two
packings of the same files are equal to the byte.

`alr_fast.data.layouts.packed` reads them. Files that give no image and those of an exclusion list
are left out; they keep their ids, so that all ids stay what they were.
"""

import fcntl
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from alr_fast.data.broken import find_exclusions, read_exclusions
from alr_fast.data.datasets import Dataset, Split
from alr_fast.data.layouts.packed import (
    INDEX_FOLDER,
    MANIFEST,
    SPLITS,
    VERSION,
    column_file,
    read_manifest,
)
from alr_fast.data.shards import _PLAN_KEYS, _Plan, _Shard, _Writer
from alr_fast.errors import UserError
from alr_fast.utils.files import _write_json


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


def _read_ahead(pool: ThreadPoolExecutor, function: Callable, rows: range) -> Iterator:
    # A few dozen at a time: all images of a shard at once would fill the memory.
    for start in range(0, len(rows), 64):
        yield from pool.map(function, rows[start : start + 64])


def _excluded(split: Split, exclude: str) -> dict[int, str]:
    """Row -> reason of the samples on a list."""
    path = None if split.images.array is not None else find_exclusions(split, exclude)
    if path is None:
        return {}
    reasons = read_exclusions(path, split.index)
    return {row: f"excluded: {reason}" for row, reason in reasons.items()}


def _existing(path: Path) -> Path:
    path = path.absolute()
    while not path.exists():
        path = path.parent
    return path


def _gib(size: int) -> str:
    return f"{size / 2**30:.1f} GiB"
