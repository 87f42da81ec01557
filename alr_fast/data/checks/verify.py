"""Finds unreadable and damaged images of a data set, for training to leave out.

Every file is read, must pass `alr_fast.data.images.decode.prepare`, and is decoded strictly: JPEGs
at an eighth of their size by libjpeg-turbo, where every warning about the pixels is an error, other
formats in full by Pillow.

The cache folder records which files are fine, bound to the samples, their root, and size and
modification time of each file. So an interrupted scan resumes where it stopped, and a second scan
reads only the files that have changed or were broken.
"""

import hashlib
import os
import struct
import zlib
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from alr_fast.data.cache import cache_folder
from alr_fast.data.checks.examine import KINDS, MISSING, NOTES, UNREADABLE, Broken, examine
from alr_fast.data.datasets import Split
from alr_fast.data.images.sources import LEFT_OUT, BrokenImage, ColumnImages, ShardImages
from alr_fast.data.index import SampleIndex
from alr_fast.errors import UserError
from alr_fast.utils.files import locked, open_appending, replacing
from alr_fast.utils.system import reserve_space
from alr_fast.utils.threads import map_ahead

_RECORD = np.dtype(
    [
        *((name, "<i8") for name in ("size", "modified", "changed")),  # times in ns
        *((name, "u1") for name in ("fine", "notes")),
        *((name, "<u8") for name in ("digest", "more_digest")),  # of the content
    ]
)
_VERSION = 3  # of the records: raise it when `examine` changes its results
_PART = 2048  # bytes of a file that are hashed at its beginning, middle and end
_CHUNK = 32  # files that a thread takes at a time

# Size in bytes, modification time and time of the last change in ns; users can set the former back.
Stamp = tuple[int, int, int]
Record = tuple[int, int, int, int, int, int, int]  # fields of _RECORD


@dataclass(frozen=True)
class VerifyReport:
    """Result of a scan of a split.

    Attributes:
        index: The split.
        broken: Row -> what is wrong with its file, rows ascending.
        notes: Bits of `NOTES` of each row, uint8 [N].
        read: Number of files that were read; the others are known from an earlier scan.
        digests: 128 bits that tell the contents of files apart, uint64 [N, 2]; see `_digest`.
    """

    index: SampleIndex
    broken: dict[int, Broken]
    notes: NDArray[np.uint8]
    read: int
    digests: NDArray[np.uint64]

    def exclusions(self) -> list[tuple[int, str, str]]:
        """Sample id, path and reason of each broken file."""
        return [
            (int(self.index.sample_ids[row]), self.index.paths[row], str(broken))
            for row, broken in self.broken.items()
        ]

    def findings(self) -> dict[str, list[int]]:
        """Ascending rows of each of `KINDS` and `NOTES` that was found, in this order."""
        found: dict[str, list[int]] = {kind: [] for kind in KINDS}
        for row, broken in self.broken.items():
            found[broken.kind].append(row)
        for bit, note in enumerate(NOTES):
            found[note] = np.flatnonzero(self.notes >> bit & 1).tolist()
        return {kind: rows for kind, rows in found.items() if rows}


def verify_split(
    split: Split,
    root: Path,
    *,
    workers: int,
    again: bool = False,
    known: "KnownFiles | None" = None,
    progress: Callable[[Iterable], Iterable] = iter,
) -> VerifyReport:
    """Scans every file of a split, or resumes a scan.

    Args:
        split: Samples with images in files or shards.
        root: Folder of the data set.
        workers: Threads; decoding releases the interpreter lock, so they are faster than processes.
        again: Read every file, including those that were fine before.
        known: Results for other splits of this data set; receives those for this one.
        progress: Wraps the iteration over the files, to show progress.

    Raises:
        UserError: The cache folder cannot be written, or another process scans the same files.
    """
    broken: dict[int, Broken] = {}
    read = 0
    with _stored_records(split, root) as records:
        if again:
            records["fine"] = 0
        if known is not None:
            known.fill(split.index, records)
        with closing(_Scanner(split).scan(records, workers)) as results:
            result: _Result
            for result in progress(results):
                if result.record is None:
                    continue
                read += 1
                records[result.row] = result.record
                if result.broken is not None:
                    broken[result.row] = result.broken
        fine = records["fine"] != 0
        notes = np.where(fine, records["notes"], 0).astype(np.uint8)
        digests = np.stack([records["digest"], records["more_digest"]], axis=1)
        digests[~fine] = 0
        if known is not None:
            known.add(split.index, records)
    return VerifyReport(split.index, broken, notes, read, digests)


@contextmanager
def _stored_records(split: Split, root: Path) -> Iterator[NDArray]:
    """The record of each row, from earlier scans, in a file that is mapped into memory: records
    written to it survive the process, however it ends."""
    place = hashlib.sha256(os.fsencode(root.absolute())).hexdigest()[:16]
    name = f"{split.index.sample_fingerprint()[:32]}-{place}"
    folder = cache_folder() / "verify" / name
    try:
        folder.mkdir(parents=True, exist_ok=True)
        open_appending(folder / "lock").close()
    except OSError as error:
        raise UserError(
            f"{folder}: {error.strerror or error}; set ALR_FAST_CACHE to a writable folder"
        ) from error
    busy = f"{root}: another process is verifying these files; wait until it has finished"
    with locked(folder / "lock", busy=busy):
        records = _load_records(folder / f"rows-{_VERSION}.npy", len(split))
        try:
            yield records
        finally:
            records.flush()


def _load_records(path: Path, count: int) -> np.memmap:
    try:
        size = path.stat().st_size
        records = np.load(path, mmap_mode="r+", allow_pickle=False)
        # A file that was cut short has become longer, without space on the disk.
        if size == path.stat().st_size and records.shape == (count,) and records.dtype == _RECORD:
            return records
    except (OSError, ValueError, EOFError):
        pass  # never written, or damaged
    with replacing(path) as fresh:
        with fresh.open("wb") as file:
            header = {"descr": npy.dtype_to_descr(_RECORD), "fortran_order": False}
            npy.write_array_header_1_0(file, {**header, "shape": (count,)})
            size = file.tell() + count * _RECORD.itemsize
        handle = os.open(fresh, os.O_RDWR | os.O_CLOEXEC)
        try:
            reserve_space(handle, size)  # of zeros: no file has been found fine
        finally:
            os.close(handle)
    return np.load(path, mmap_mode="r+")


class KnownFiles:
    """Fine files of one split, which need not be read again for another split: the training images
    of WebVision form three splits."""

    def __init__(self) -> None:
        self._hashes = np.empty(0, dtype=np.int64)
        self._records = np.empty(0, dtype=_RECORD)

    def add(self, index: SampleIndex, records: NDArray) -> None:
        """Adds the fine files of a split."""
        fine = records["fine"] != 0
        hashes = np.concatenate([self._hashes, _hashes(index)[fine]])
        order = np.argsort(hashes)
        self._hashes = hashes[order]
        self._records = np.concatenate([self._records, records[fine]])[order]

    def fill(self, index: SampleIndex, records: NDArray) -> None:
        """Writes the records of known files into those of another split."""
        if not len(self._hashes):
            return
        hashes = _hashes(index)
        at = np.searchsorted(self._hashes, hashes).clip(max=len(self._hashes) - 1)
        same = (self._hashes[at] == hashes) & (records["fine"] == 0)
        records[same] = self._records[at[same]]


def _hashes(index: SampleIndex) -> NDArray[np.int64]:
    return np.fromiter((hash(path) for path in index.paths), dtype=np.int64, count=len(index))


class _Result(NamedTuple):
    """Result for the file of one row."""

    row: int
    record: Record | None = None  # None if it is fine and has not changed
    broken: Broken | None = None  # None if it is fine


class _Scanner:
    """Examines the files of a split."""

    def __init__(self, split: Split) -> None:
        self.images = split.images
        self.paths = split.index.paths
        self._shard_stamps: list[Stamp] = []
        if isinstance(split.images, ShardImages | ColumnImages):
            self._shard_stamps = [_stamp_of(path) for path in split.images.shards]

    def scan(self, records: NDArray, workers: int) -> Generator[_Result, None, None]:
        """Results for all rows in order; ``records`` are those of earlier scans."""
        # A thread takes consecutive rows, and a copy of their records: those are written meanwhile.
        chunks = (
            list(enumerate(records[first : first + _CHUNK].tolist(), first))
            for first in range(0, len(records), _CHUNK)
        )
        for results in map_ahead(self._scan_files, chunks, workers=workers, ahead=4 * workers):
            yield from results

    def _scan_files(self, chunk: list[tuple[int, Record]]) -> list[_Result]:
        return [self._scan_file(row, record) for row, record in chunk]

    def _scan_file(self, row: int, record: Record) -> _Result:
        stamp: Stamp = (-1, -1, -1)
        try:
            stamp = self._stamp(row)
            if record[:4] == (*stamp, 1):
                return _Result(row)
            return _Result(row, (*stamp, 1, *self._examine(row)))
        except Broken as broken:
            return _Result(row, (*stamp, 0, 0, 0, 0), broken)

    def _stamp(self, row: int) -> Stamp:
        if isinstance(self.images, ShardImages | ColumnImages):
            return self._shard_stamps[self.images.shard[row]]
        try:
            return _stamp_of(self.images.name(row))
        except FileNotFoundError:
            raise Broken(MISSING, "") from None
        except OSError as error:
            raise Broken(UNREADABLE, error.strerror or str(error)) from None

    def _examine(self, row: int) -> tuple[int, int, int]:
        """Notes and the two halves of the digest."""
        try:
            data = self.images.read(row)
        except BrokenImage as error:
            reason = str(error)
            if reason.startswith(LEFT_OUT):
                reason = reason.removeprefix(f"{LEFT_OUT}: ")
                raise Broken(LEFT_OUT, reason) from None
            raise Broken(UNREADABLE, reason) from None
        return examine(data, self.paths[row]), *_digest(data)


def _digest(data: bytes) -> tuple[int, int]:
    """128 bits in two numbers, by which the same file is recognised: the CRC-32 of the whole, and a
    hash of its beginning, middle and end, or of all of a small file.

    A cryptographic hash of the whole would take a tenth of the time of `examine`.
    """
    parts = data
    if len(data) > 3 * _PART:
        middle = len(data) // 2
        parts = data[:_PART] + data[middle : middle + _PART] + data[-_PART:]
    sampled = hashlib.blake2b(parts, digest_size=12, salt=b"%d" % len(data)).digest()
    low, high = struct.unpack("<QQ", struct.pack("<I", zlib.crc32(data)) + sampled)
    return low, high


def _stamp_of(path: str | Path) -> Stamp:
    found = os.stat(path)
    return found.st_size, found.st_mtime_ns, found.st_ctime_ns
