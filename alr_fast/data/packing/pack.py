"""Packs a data set into tar shards: one large file is faster to read and copy than thousands of
small files.

The shards have the WebDataset format: ``<id>.<jpg|png|...>`` with the unchanged bytes of the image,
``<id>.cls`` with the label as text. The index that DALI's own reader needs lies beside each shard.
Two packings of the same files are byte-identical.

`alr_fast.data.layouts.packed` reads them. Unreadable images and those of an exclusion list are left
out; all samples keep their ids.
"""

import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from alr_fast.data.broken import find_exclusions, read_exclusions
from alr_fast.data.datasets import Dataset, Split
from alr_fast.data.layouts.packed import SPLITS
from alr_fast.data.layouts.packed_format import (
    INDEX_FOLDER,
    MANIFEST,
    DamagedManifest,
    column_file,
    read_manifest,
    records_digest,
    write_manifest,
)
from alr_fast.data.packing.shards import PLAN_KEYS, Shard, ShardPlan, ShardWriter
from alr_fast.errors import UserError
from alr_fast.utils.files import locked, own_folder, reading, replacing
from alr_fast.utils.threads import map_ahead


@dataclass(frozen=True)
class Packed:
    """Result of packing one split.

    Attributes:
        shards: Number of shards.
        written: Number of shards that were written now; the others existed.
        size: Bytes of all shards.
        left_out: Number of samples that are left out.
    """

    shards: int
    written: int
    size: int
    left_out: int


class Packer:
    """Packs splits into one folder.

    Args:
        out: The folder; an earlier call may have started to fill it.
        shard_mb: Largest size of a shard in MiB; a larger image makes a larger shard.
        workers: Threads that read and check images.
        track: ``track(iterable, description=str, total=int)`` shows progress.

    Raises:
        UserError: The folder contains something else.
    """

    def __init__(
        self, out: Path, *, shard_mb: int, workers: int, track: Callable[..., Iterable]
    ) -> None:
        if shard_mb < 1:
            raise UserError("must be 1 or more", argument="shard_mb", value=shard_mb)
        with reading(out):
            if out.exists() and not out.is_dir():
                raise UserError(f"{out}: is a file; name a folder")
            has_manifest = (out / MANIFEST).is_file()
            if out.is_dir() and not has_manifest and any(out.iterdir()):
                raise UserError(
                    f"{out}: is not empty, and not a packed data set; name a new folder"
                )
        self.out = out
        self.shard_bytes = shard_mb << 20
        self.workers = workers
        self.track = track
        try:
            self.known: dict[str, Any] = read_manifest(out)["splits"] if has_manifest else {}
        except DamagedManifest:  # written again, if the shards are those of the data set
            self.known = {}

    def check(
        self,
        dataset: Dataset,
        splits: dict[str, Split],
        exclude: str,
        log: Callable[[str], None] = lambda text: None,
    ) -> dict[str, ShardPlan]:
        """Plans the shards of these splits; writes nothing.

        Args:
            dataset: The data set that the splits belong to.
            splits: Splits by name.
            exclude: ``auto``, ``none`` or a list, as in training.
            log: Takes a line about samples on a list that are unknown.

        Raises:
            UserError: The folder contains something else, an exclusion list does not fit, or the
                disk is too full.
        """
        if self.out.absolute() == dataset.found.root.absolute():
            raise UserError(f"{self.out}: is the data set itself; name a new folder")
        plans = {}
        for name, split in splits.items():
            if name not in SPLITS:
                raise UserError(
                    f"cannot be packed, only {', '.join(SPLITS)} can", argument="split", value=name
                )
            plans[name] = ShardPlan.of(
                name, split, _excluded(split, exclude, log), self.shard_bytes
            )
            self._check_manifest(plans[name])
        needed = sum(
            plan.needed(shard)
            for plan in plans.values()
            for shard in range(plan.num_shards)
            if not (self.out / plan.shard_name(shard)).exists()
        )
        out = self.out.absolute()
        free = shutil.disk_usage(next(f for f in (out, *out.parents) if f.exists())).free
        if needed > free:
            raise UserError(
                f"{self.out}: the shards need {_gib(needed)}, and {_gib(free)} are free; make room "
                "or name a folder on another disk"
            )
        return plans

    def _check_manifest(self, plan: ShardPlan) -> None:
        for other, known in self.known.items():
            if known["class_names"] != plan.facts["class_names"]:
                raise UserError(
                    f"{self.out}: its split {other} has other classes than {plan.name}: it belongs "
                    "to another data set; name a new folder"
                )
        if plan.name not in self.known:
            self._refuse_other_shards(plan)
        known = self.known.get(plan.name, plan.facts)
        for key, difference in PLAN_KEYS.items():
            if known[key] != plan.facts[key]:
                raise UserError(
                    f"{self.out}: its split {plan.name} was packed {difference}; pack as before, "
                    "or name a new folder"
                )

    def _refuse_other_shards(self, plan: ShardPlan) -> None:
        """A split that no manifest lists has no shards but those of this plan."""
        for path in sorted(self.out.glob(f"{plan.name}-*.tar")):
            if Shard.plan_of(path) != plan.digest:
                raise UserError(
                    f"{path}: this shard was packed from other data or with other options, and "
                    f"{self.out / MANIFEST} does not list it; pack as before, or name a new folder"
                )

    def pack(self, plan: ShardPlan) -> Packed:
        """Writes the missing shards of a split, then its index.

        Raises:
            UserError: Every image is broken, another process packs into the folder, or it cannot be
                written.
        """
        try:
            own_folder(self.out / INDEX_FOLDER)
            busy = f"{self.out}: another process is packing into it; wait until it has finished"
            with locked(self.out / INDEX_FOLDER / "lock", busy=busy):
                return self._pack(plan)
        except OSError as error:
            raise UserError(
                f"{error.filename or self.out}: {error.strerror or error}; fix this and call again "
                "to resume"
            ) from error

    def _pack(self, plan: ShardPlan) -> Packed:
        known = self.known.get(plan.name)
        if known is None or known["shards"] is None:
            self._write_manifest(plan, {"shards": None, "left_out": {}})
        n = len(plan.split)
        columns: dict[str, NDArray] = {
            "shard": np.full(n, -1, np.int32),
            "offset": np.zeros(n, np.int64),
            "size": np.zeros(n, np.int64),
        }
        shards: list[dict[str, Any]] = []
        left_out: dict[str, tuple[str, str]] = {}
        written = 0
        rows = self._packed_rows(plan)
        for shard in self.track(rows, description=f"Packing {plan.name}", total=n):
            if shard is None:
                continue
            written += shard.fresh
            left_out |= shard.left_out
            if shard.rows:
                columns["shard"][shard.rows] = len(shards)
                columns["offset"][shard.rows] = shard.offsets
                columns["size"][shard.rows] = shard.sizes
                shards.append({"name": shard.name, "bytes": shard.bytes, "sha256": shard.sha256})
        if not shards:
            path, reason = next(iter(left_out.values()))
            raise UserError(
                f"{path}: is unreadable ({reason}), and so is every other image of the split "
                f"{plan.name}; restore them, or pack other splits"
            )
        index = plan.split.index
        if index.clean_labels is not None:
            columns["clean_labels"] = index.clean_labels
        entry = {"shards": shards, "left_out": left_out, "records": records_digest(columns)}
        blob, offsets = index.paths.compact()
        columns |= {"paths": blob, "offsets": offsets, "labels": index.labels}
        self._write_index(plan, columns)
        self._write_manifest(plan, entry)
        size = sum(shard["bytes"] for shard in shards)
        return Packed(len(shards), written, size, len(left_out))

    def _packed_rows(self, plan: ShardPlan) -> Iterator[Shard | None]:
        """Yields once for each row, for the progress: the shard for its last row, else None."""
        for number in range(plan.num_shards):
            rows = plan.rows(number)
            shard = Shard.load(self.out, plan, number)
            if shard is not None:
                yield from (None for _ in rows[:-1])
                yield shard
                continue
            with closing(ShardWriter(self.out, plan, number)) as writer:
                # 64 images ahead: all images of a shard might not fit into memory.
                for record in map_ahead(plan.record, rows, workers=self.workers, ahead=64):
                    writer.add(record)
                    if record.row != rows[-1]:
                        yield None
                shard = writer.finish()
            yield shard

    def _write_index(self, plan: ShardPlan, columns: dict[str, NDArray]) -> None:
        for name, column in columns.items():
            with (
                replacing(column_file(self.out / INDEX_FOLDER, plan.name, name)) as fresh,
                open(fresh, "wb") as file,
            ):
                np.save(file, column)

    def _write_manifest(self, plan: ShardPlan, entry: dict[str, Any]) -> None:
        self.known[plan.name] = {**plan.facts, **entry}
        write_manifest(self.out, self.known)


def _excluded(split: Split, exclude: str, log: Callable[[str], None]) -> dict[int, str]:
    """Row -> reason of the samples on a list."""
    path = None if split.values is not None else find_exclusions(split, exclude)
    if path is None:
        return {}
    reasons = read_exclusions(path, split.index, lambda text: log(f"left out: {text}"))
    return {row: f"excluded: {reason}" for row, reason in reasons.items()}


def _gib(size: int) -> str:
    return f"{size / 2**30:.1f} GiB"
