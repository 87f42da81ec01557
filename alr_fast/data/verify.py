"""Finds the files of a data set that give no image or a damaged one, and lists them for training.

Every file is read, must pass `alr_fast.data.decode.prepare`, and is decoded by a decoder that
takes no damage for granted: JPEGs at an eighth of their size by libjpeg-turbo, for which every
warning about the pixels counts, others in full by Pillow.

What was found fine is kept below the cache folder, bound to the samples, their root, and size and
time of change of each file. So a scan that was interrupted goes on where it stopped, and a second
one reads only what has changed and what was broken.
"""

import contextlib
import fcntl
import hashlib
import os
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from alr_fast.data.broken import default_exclusion_file, write_exclusions
from alr_fast.data.datasets import Dataset, Split, cache_folder
from alr_fast.data.examine import KINDS, MISSING, NOTES, UNREADABLE, Broken, examine
from alr_fast.data.images import BrokenImage, ShardImages
from alr_fast.data.index import SampleIndex
from alr_fast.data.layouts import packed
from alr_fast.errors import UserError

_ROWS = np.dtype([("size", "<i8"), ("time", "<i8"), ("fine", "u1"), ("notes", "u1")])
_VERSION = 1  # of what is kept: raise it when `examine` judges differently
_CHUNK = 32  # files that a thread takes at a time


@dataclass(frozen=True)
class Report:
    """What a scan of a split found.

    Attributes:
        index: The split.
        broken: Row -> what is wrong with its file, in ascending order.
        notes: Bits of `NOTES` of each row, uint8 [N].
        read: Files that were read: those known from an earlier scan were not.
    """

    index: SampleIndex
    broken: dict[int, Broken]
    notes: NDArray[np.uint8]
    read: int

    def exclusions(self) -> list[tuple[int, str, str]]:
        """Id, path and reason of each broken file."""
        return [
            (int(self.index.sample_ids[row]), self.index.paths[row], str(what))
            for row, what in self.broken.items()
        ]

    def table(self, most: int | None = 3) -> list[tuple[str, int, list[int], bool]]:
        """Kind or note, how many files, the first ``most`` rows, and whether they are excluded."""
        counts = Counter(what.kind for what in self.broken.values())
        lines = []
        for kind in KINDS:
            rows = [row for row, what in self.broken.items() if what.kind == kind]
            lines.append((kind, counts[kind], rows[:most], True))
        for k, note in enumerate(NOTES):
            rows = np.flatnonzero(self.notes >> k & 1)
            lines.append((note, len(rows), rows[:most].tolist(), False))
        return [line for line in lines if line[1]]


class _Kept:
    """What earlier scans found fine, in a file that is mapped into memory: what was written there
    outlives the process, however it ends."""

    def __init__(self, split: Split, root: Path) -> None:
        index = split.index
        place = hashlib.sha256(os.fsencode(root.absolute())).hexdigest()[:16]
        folder = cache_folder() / "verify" / f"{index.sample_fingerprint()[:32]}-{place}"
        self.path = folder / f"rows-{_VERSION}.npy"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._lock = os.open(folder / "lock", os.O_WRONLY | os.O_CREAT)
        except OSError as error:
            raise UserError(
                f"{folder}: {error.strerror or error}; set ALR_FAST_CACHE to a folder that can be "
                "written"
            ) from error
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(self._lock)
            raise UserError(
                f"{root}: another verify is at work on these files; wait until it is done"
            ) from None
        try:
            self.rows = np.load(self.path, mmap_mode="r+", allow_pickle=False)
            if self.rows.shape != (len(index),) or self.rows.dtype != _ROWS:
                raise ValueError("of something else")
        except (OSError, ValueError, EOFError):  # never written, or damaged
            fresh = self.path.with_suffix(".fresh")
            np.lib.format.open_memmap(fresh, "w+", _ROWS, (len(index),)).flush()
            os.replace(fresh, self.path)
            self.rows = np.load(self.path, mmap_mode="r+")

    def forget(self) -> None:
        """Nothing counts as found any more."""
        self.rows["fine"] = 0

    def close(self) -> None:
        self.rows.flush()
        os.close(self._lock)


def verify_split(
    split: Split,
    root: Path,
    *,
    workers: int,
    again: bool = False,
    known: "Known | None" = None,
    progress: Callable[[Iterable], Iterable] = iter,
) -> Report:
    """Scans every file of a split, or goes on with a scan.

    Args:
        split: Samples with images in files or shards.
        root: Folder that the data set was found in.
        workers: Threads; decoding releases the interpreter lock, so they are faster than processes.
        again: Read every file, also those that were found fine before.
        known: What the scans of other splits of this data set found, and takes what this one finds.
        progress: Wraps the iteration over the files, to show how far it is.

    Raises:
        UserError: The cache folder cannot be written, or another process scans the same files.
    """
    kept = _Kept(split, root)
    try:
        if again:
            kept.forget()
        if known is not None:
            known.fill(split.index, kept.rows)
        scan = _Scan(split)
        broken: dict[int, Broken] = {}
        read = 0
        with contextlib.closing(_scanned(scan, kept.rows, max(workers, 1))) as rows:
            for row, stamp, outcome in progress(rows):
                if outcome is None:
                    continue
                read += 1
                if isinstance(outcome, Broken):
                    broken[row] = outcome
                    kept.rows[row] = (*stamp, 0, 0)
                else:
                    kept.rows[row] = (*stamp, 1, outcome)
        notes = np.where(kept.rows["fine"], kept.rows["notes"], 0).astype(np.uint8)
        if known is not None:
            known.add(split.index, kept.rows)
    finally:
        kept.close()
    return Report(split.index, dict(sorted(broken.items())), notes, read)


class Known:
    """Files that were found fine in one split are not read again for another: the training images
    of WebVision are three splits."""

    def __init__(self) -> None:
        self._hashes = np.empty(0, dtype=np.int64)
        self._rows = np.empty(0, dtype=_ROWS)

    def add(self, index: SampleIndex, rows: NDArray) -> None:
        """Takes what is known of the files of a split."""
        fine = rows["fine"] != 0
        hashes = np.concatenate([self._hashes, _hashes(index)[fine]])
        order = np.argsort(hashes)
        self._hashes, self._rows = hashes[order], np.concatenate([self._rows, rows[fine]])[order]

    def fill(self, index: SampleIndex, rows: NDArray) -> None:
        """Writes what is known of the files of another split into its rows."""
        if not len(self._hashes):
            return
        hashes = _hashes(index)
        at = np.searchsorted(self._hashes, hashes).clip(max=len(self._hashes) - 1)
        same = (self._hashes[at] == hashes) & (rows["fine"] == 0)
        rows[same] = self._rows[at[same]]


def _hashes(index: SampleIndex) -> NDArray[np.int64]:
    return np.fromiter((hash(path) for path in index.paths), dtype=np.int64, count=len(index))


class _Scan:
    """Examines the files of a split; its methods run in threads."""

    def __init__(self, split: Split) -> None:
        self.images = split.images
        self.paths = split.index.paths
        self._shards: list[tuple[int, int]] = []
        if isinstance(split.images, ShardImages):
            self._shards = [_stamp(os.stat(path)) for path in split.images.shards]

    def chunk(self, first: int, old: NDArray) -> list[tuple[int, tuple[int, int], object]]:
        """Row, size and time of change, and what came out: notes, `Broken`, or None as before."""
        found = []
        for row, before in enumerate(old.tolist(), first):
            stamp, outcome = (-1, -1), None
            try:
                stamp = self._stamp(row)
                if before != (*stamp, 1, before[3]):
                    outcome = self._examine(row)
            except Broken as error:
                outcome = error
            found.append((row, stamp, outcome))
        return found

    def _stamp(self, row: int) -> tuple[int, int]:
        if self._shards:
            return self._shards[self.images.shard[row]]
        try:
            return _stamp(os.stat(self.images.name(row)))
        except FileNotFoundError:
            raise Broken(MISSING, "") from None
        except OSError as error:
            raise Broken(UNREADABLE, error.strerror or str(error)) from None

    def _examine(self, row: int) -> int:
        try:
            data = self.images.read(row)
        except BrokenImage as error:
            reason = str(error)
            if reason.startswith(packed.LEFT_OUT):
                reason = reason.removeprefix(f"{packed.LEFT_OUT}: ")
                raise Broken(packed.LEFT_OUT, reason) from None
            raise Broken(UNREADABLE, reason) from None
        return examine(data, self.paths[row])


def _stamp(stat: os.stat_result) -> tuple[int, int]:
    return stat.st_size, stat.st_mtime_ns


def _scanned(scan: _Scan, rows: NDArray, workers: int) -> Iterator[tuple]:
    """What `_Scan.chunk` gives, in order, read ahead by threads."""
    pool = ThreadPoolExecutor(workers)
    try:
        ahead: deque = deque()
        for first in range(0, len(rows), _CHUNK):
            # A copy: the rows are written to while threads read.
            old = np.array(rows[first : first + _CHUNK])
            ahead.append(pool.submit(scan.chunk, first, old))
            if len(ahead) > 4 * workers:
                yield from ahead.popleft().result()
        while ahead:
            yield from ahead.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def chosen_splits(
    dataset: Dataset, names: Iterable[str], log: Callable[[str], None]
) -> dict[str, Split]:
    """The named splits, or all that can be read; ``train`` always must be.

    Args:
        dataset: Where they are.
        names: Their names; none for all.
        log: Takes a line for each split that cannot be read.

    Raises:
        UserError: A named split, or ``train``, cannot be read.
    """
    asked = list(dict.fromkeys(names))
    if not asked and dataset.layout.name == packed.LAYOUT.name:
        asked = list(packed.read_manifest(dataset.found.root)["splits"])
    splits = {}
    for name in asked or dataset.layout.splits:
        try:
            splits[name] = dataset.split(name)
        except UserError as error:
            if asked or name == "train":
                raise
            log(f"{name}: passed over ({error})")
    return splits


def exclusion_files(splits: dict[str, Split], output: Path | None) -> dict[str, Path]:
    """Where the list of each split is to be written.

    Raises:
        UserError: One file for several splits, or a folder that is not there.
    """
    if output is None:
        return {name: default_exclusion_file(split) for name, split in splits.items()}
    if len(splits) != 1:
        raise UserError(
            f"--output {output}: one file cannot hold the lists of {', '.join(splits)}; name one "
            "with --split, or leave --output out"
        )
    if not output.parent.is_dir() or output.is_dir():
        raise UserError(f"--output {output}: no file can be written there; name another")
    return {name: output for name in splits}


def write_report(path: Path, report: Report) -> None:
    """Writes the exclusion list, also an empty one, over an old one.

    Raises:
        UserError: It cannot be written.
    """
    try:
        write_exclusions(path, report.exclusions())
    except OSError as error:
        raise UserError(f"{path}: {error.strerror or error}; pass --output FILE") from error
