"""Checks the loaders, then times them in turn."""

import multiprocessing
import os
import statistics
import time
from collections.abc import Iterator, Sequence

import torch

from alr_fast.data.datasets import Split
from alr_fast.data.loaders.choose import choose_loader
from benchmarks.harness.averages import percentiles
from benchmarks.harness.environment import loading_environment
from benchmarks.harness.timing import synchronize, take_turns
from benchmarks.loading.variants import VARIANTS, Batch, why_not
from benchmarks.loading.work import SMALL_BATCH, SMALL_SIZE, Work

# Repetitions of each file in an epoch of the timed loaders: epochs end as rarely as with a large
# data set.
_REPEATS = 64
_LEAST_ROUNDS = 3
_IDLE = 0.05  # share of a CPU that counts as idle
_SETTLE_LIMIT = 5.0  # longest wait for idle processes in seconds


class Contender:
    """A loader of `VARIANTS` that takes turns with others, after a check of its batches.

    Attributes:
        images: Images of a turn.
        output: Description of the batches, without the device.
        batch: Images of a batch.

    Raises:
        AssertionError: It does not return every image once, or its batches are wrong.
    """

    def __init__(self, name: str, work: Work) -> None:
        variant = VARIANTS[name]
        self.name, self._work = name, work
        if variant.source is not None:
            files, self.batch, self._size = work.files, work.scale.batch, work.scale.size
            # The same number of batches for each worker; a DataLoader prefetches two for each.
            self._batches = -(-files // (self.batch * work.threads)) * work.threads
            self._ahead = 2 * work.threads + 2
        else:
            files, self.batch, self._size = len(work.small), SMALL_BATCH, SMALL_SIZE
            self._batches, self._ahead = work.scale.small_turn, 0
            if name == "memory-decode":
                self._batches, self.batch = 1, len(work.small_part)
                files = self.batch
        self.images = self._batches * self.batch
        shape = [self.batch, 3, self._size, self._size]
        self.output = "whole images, uint8" if variant.raw else f"{shape}, float32, channels last"
        self._check(variant.stream(work, 1), files, variant.raw)
        self._stream = variant.stream(work, _REPEATS)
        next(self._stream)  # starts its processes and threads

    def _check(self, stream: Iterator[Batch], files: int, raw: bool) -> None:
        seen: list[int] = []
        while len(seen) < files:
            ids, images = next(stream)
            seen += ids.tolist()
            if raw:
                assert len(images) == len(ids), f"{self.name}: {len(ids)} ids, {len(images)} images"
                assert all(len(s) == 3 and min(s) > 0 for s in images), f"{self.name}: {images}"
                continue
            expected = (len(ids), 3, self._size, self._size)
            assert images.shape == expected, f"{self.name}: {tuple(images.shape)}"
            assert images.dtype == torch.float32, f"{self.name}: {images.dtype}"
            assert images.device.type == self._work.device, f"{self.name}: on {images.device}"
            assert images.is_contiguous(memory_format=torch.channels_last), self.name
            assert images.isfinite().all(), f"{self.name}: not finite"
            deviation, mean = torch.std_mean(images)
            assert abs(mean) < 1.5 and 0.1 < deviation < 3, f"{self.name}: not normalised"
        stream.close()
        assert sorted(seen) == list(range(files)), f"{self.name}: not every image once an epoch"

    def turn(self) -> tuple[float, float]:
        """Images per second, and CPU milliseconds an image."""
        _settle()
        for _ in range(self._ahead):
            next(self._stream)
        synchronize(self._work.device)
        busy, begin = _cpu_seconds(), time.perf_counter()
        images = sum(len(next(self._stream)[0]) for _ in range(self._batches))
        synchronize(self._work.device)
        seconds, busy = time.perf_counter() - begin, _cpu_seconds() - busy
        return images / seconds, busy / images * 1e3

    def close(self) -> None:
        """Ends its processes and threads."""
        self._stream.close()


def _cpu_seconds() -> float:
    """CPU time of this process and its workers so far."""
    workers = [process.pid for process in multiprocessing.active_children()]
    # Clock number of a process, computed as in clock_getcpuclockid.
    return time.process_time() + sum(time.clock_gettime((~pid << 3) | 2) for pid in workers)


def _settle() -> None:
    """Waits until no loader prefetches any more."""
    pause, end = 0.02, time.perf_counter() + _SETTLE_LIMIT
    while time.perf_counter() < end:
        begin, busy = time.perf_counter(), _cpu_seconds()
        time.sleep(pause)
        if _cpu_seconds() - busy < _IDLE * (time.perf_counter() - begin):
            return


def measure(work: Work, names: Sequence[str], seconds: float) -> list[dict[str, object]]:
    """Checks the loaders, then times them in turn.

    Args:
        work: The images.
        names: Names in `VARIANTS`.
        seconds: Time for all turns.

    Returns:
        One row for each loader: images per second, or the reason why it was skipped.
    """
    environment = loading_environment(work.device)
    skipped = {name: why_not(VARIANTS[name], work.device) for name in names}
    running = {name: Contender(name, work) for name in names if skipped[name] is None}
    auto = _auto(work) if any(VARIANTS[name].source for name in running) else {"memory"}
    turns = {name: contender.turn for name, contender in running.items()}
    measured = take_turns(turns, seconds, at_least=_LEAST_ROUNDS) if turns else {}
    for contender in running.values():
        contender.close()
    rows = []
    for name in names:
        variant = VARIANTS[name]
        row: dict[str, object] = {
            "suite": "loading",
            "loader": name,
            "source": variant.source or work.small_source,
            "what": variant.what,
            "auto": name in auto,
        }
        if name in measured:
            speeds, busy = zip(*measured[name], strict=True)
            contender = running[name]
            split = work.small if variant.source is None else work.photos
            row |= {
                "output": contender.output,
                **percentiles(speeds, "images_per_second"),
                "cpu_ms_per_image": statistics.median(busy),
                "rounds": len(speeds),
                "images_per_turn": contender.images,
                "batch": contender.batch,
                "files": len(split),
                "bytes_per_file": _mean_bytes(split),
                "threads": work.threads,
            }
        else:
            row["skipped"] = skipped[name]
        rows.append({**row, "environment": environment})
    return rows


def _auto(work: Work) -> set[str]:
    """The default loaders of a run: for photographs, for shards, for small images."""
    kind = choose_loader("auto", work.photos, work.transform, cache_mb=0).name
    if kind == "torch":
        return {"torch-decode", "memory"}
    return {"memory", *(("dali-cpu", "dali-packed") if work.device == "cpu" else ("dali-mixed",))}


def _mean_bytes(split: Split) -> float:
    rows = range(0, len(split), max(len(split) // 256, 1))
    return statistics.fmean(os.path.getsize(split.images.name(row)) for row in rows)
