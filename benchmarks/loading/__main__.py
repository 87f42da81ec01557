"""Images per second of the loaders beside what others run, and what a list of millions costs.

    python -m benchmarks.loading

Suite "loading": photographs as JPEG, made here from a seed, -> random resized crop, mirrored,
normalised: float32 batches, channels last, on the training device, with the same number of threads
or worker processes for all. Beside them full decoding alone, and the loader for small images. Each
loader first shows every image exactly once in an epoch, and batches of the right kind. Then they
take turns. A turn waits until the others' read-ahead is done, takes batches without timing until
its own is used up, then times so many batches: the steady state, without the start of an epoch. The
files stay in the page cache.

Suite "index": WebVision's lists with 2.4 million lines, read for the first time, opened from the
cache, and seen from a worker process, each in a process of its own.

Rows go to benchmarks/results, of which `python -m benchmarks.report` makes tables; those of --tiny
and --only go to the file that --json names, or nowhere.
"""

import argparse
import json
import math
import multiprocessing
import os
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from alr_fast.data.datasets import Split
from alr_fast.data.layouts import folder as folder_layout
from alr_fast.data.loaders.choose import choose_loader
from alr_fast.errors import UserError
from benchmarks.harness.results import FOLDER, ResultFile
from benchmarks.harness.timing import synchronize, take_turns
from benchmarks.loading.index_cost import measure_index
from benchmarks.loading.variants import VARIANTS, Batch, why_not
from benchmarks.loading.work import SMALL_BATCH, SMALL_SIZE, TINY, Scale, Work
from benchmarks.loading_rows import facts, percentiles
from benchmarks.tables.loading import BASELINE, to_baseline

_INDEX = "index"
# An epoch of the timed loaders has every file so often: its end is as rare as in a large set.
_REPEATS = 64
_LEAST_ROUNDS = 3
_SETTLED = 0.05  # of a CPU; and at most so many seconds until it is:
_SETTLE_LIMIT = 5.0


class Contender:
    """A loader that takes turns with others, after it has shown that it works.

    Args:
        name: Its name in `VARIANTS`.
        work: What it is to load.

    Attributes:
        images: Images of a turn.
        output: What comes out, apart from the device.
        batch: Images of a batch.

    Raises:
        AssertionError: It does not give every image once, or gives something else.
    """

    def __init__(self, name: str, work: Work) -> None:
        variant = VARIANTS[name]
        self.name = name
        self._work = work
        if variant.source is not None:
            files, self.batch, self._size = work.files, work.scale.batch, work.scale.size
            # As many batches for each worker, of which a DataLoader has two ready at most.
            self._batches = -(-files // (self.batch * work.threads)) * work.threads
            self._ahead = 2 * work.threads + 2
        else:
            files, self.batch, self._size = len(work.small), SMALL_BATCH, SMALL_SIZE
            self._batches, self._ahead = work.scale.small_turn, 0
            if name == "memory-decode":
                files = self.batch = len(work.small_part)
                self._batches = 1
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
        """Images per second, and milliseconds of the CPUs an image."""
        _settle()
        for _ in range(self._ahead):
            next(self._stream)
        synchronize(self._work.device)
        busy, begin = _cpu_seconds(), time.perf_counter()
        images = 0
        for _ in range(self._batches):
            ids, _ = next(self._stream)
            images += len(ids)
        synchronize(self._work.device)
        seconds, busy = time.perf_counter() - begin, _cpu_seconds() - busy
        return images / seconds, busy / images * 1e3

    def close(self) -> None:
        """Ends its processes and threads."""
        self._stream.close()


def _cpu_seconds() -> float:
    """Time on CPUs of this process and its workers so far."""
    workers = [process.pid for process in multiprocessing.active_children()]
    # The number of a process's clock, as clock_getcpuclockid makes it.
    return time.process_time() + sum(time.clock_gettime((~pid << 3) | 2) for pid in workers)


def _settle() -> None:
    """Waits until nobody reads ahead any more."""
    pause, end = 0.02, time.perf_counter() + _SETTLE_LIMIT
    while time.perf_counter() < end:
        begin, busy = time.perf_counter(), _cpu_seconds()
        time.sleep(pause)
        if _cpu_seconds() - busy < _SETTLED * (time.perf_counter() - begin):
            return


def measure(work: Work, names: Sequence[str], seconds: float) -> list[dict[str, object]]:
    """Checks the loaders, then times them in turn.

    Args:
        work: What is to be loaded.
        names: Of `VARIANTS`.
        seconds: Time for all turns.

    Returns:
        A row for each: images per second, or why it was skipped.
    """
    environment = facts(work.device)
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
    """What a run takes by itself: for photographs, for shards, for small images."""
    kind = choose_loader("auto", work.photos, work.transform, cache_mb=0).name
    if kind == "torch":
        return {"torch-decode", "memory"}
    return {"memory", *(("dali-cpu", "dali-packed") if work.device == "cpu" else ("dali-mixed",))}


def _mean_bytes(split: Split) -> float:
    rows = range(0, len(split), max(len(split) // 256, 1))
    return statistics.fmean(os.path.getsize(split.images.name(row)) for row in rows)


def table(rows: Sequence[dict]) -> Table:
    """The loaders, for a terminal."""
    shown = Table(title="images per second")
    for name in ("loader", "source", "p50", "p20", "p80", "CPU ms", f"to {BASELINE}"):
        shown.add_column(name, justify="left" if name in ("loader", "source") else "right")
    ratios = to_baseline(rows)
    for row in rows:
        name = row["loader"] + (" (auto)" if row["auto"] else "")
        if "skipped" in row:
            shown.add_row(name, row["source"], row["skipped"])
            continue
        speeds = (f"{row[f'images_per_second{p}']:,.0f}" for p in ("", "_p20", "_p80"))
        ratio = f"{ratios[row['loader']]:.2f}" if row["loader"] in ratios else ""
        shown.add_row(name, row["source"], *speeds, f"{row['cpu_ms_per_image']:.3f}", ratio)
    return shown


def index_table(rows: Sequence[dict]) -> Table:
    """The index, for a terminal."""
    shown = Table(title=f"index of {rows[0]['samples']:,} samples")
    for name in ("case", "seconds", "peak MB", "private MB"):
        shown.add_column(name, justify="left" if name == "case" else "right")
    for row in rows:
        cells = (row.get(k) for k in ("seconds", "peak_megabytes", "private_megabytes"))
        shown.add_row(row["case"], *("" if v is None else f"{v:.2f}" for v in cells))
    return shown


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", metavar="FILE", help="write the rows there alone")
    parser.add_argument("--images", type=int, metavar="N",
                        help="photographs, and images of a turn (default 1024)")  # fmt: skip
    parser.add_argument("--seconds", type=float, default=120, metavar="S",
                        help="time for all turns (default 120)")  # fmt: skip
    parser.add_argument("--threads", type=int, default=2, help="of each loader (default 2)")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--cifar", type=Path, metavar="DIR",
                        help="CIFAR-10 as JPEGs, train/<class>/* and test/<class>/*, for the rows "
                        "of small images; without it they are made")  # fmt: skip
    parser.add_argument("--only", nargs="+", metavar="NAME", choices=(*VARIANTS, _INDEX),
                        help=f"these alone, of {', '.join((*VARIANTS, _INDEX))}")  # fmt: skip
    parser.add_argument("--tiny", action="store_true", help="few small images, to try the command")
    arguments = parser.parse_args(argv)
    scale = TINY if arguments.tiny else Scale()
    files = arguments.images if arguments.images is not None else (12 if arguments.tiny else 1024)
    if files < scale.batch:
        parser.error(f"--images {files}: a batch has {scale.batch}; raise it")
    if arguments.threads < 1:
        parser.error(f"--threads {arguments.threads}: pass 1 or more")
    if not (math.isfinite(arguments.seconds) and arguments.seconds >= 0):
        parser.error(f"--seconds {arguments.seconds}: pass 0 or more")
    if arguments.device == "cuda" and not torch.cuda.is_available():
        parser.error("no GPU was found: pass --device cpu to time what runs on a CPU")
    if arguments.cifar is not None and folder_layout.find(arguments.cifar) is None:
        parser.error(f"--cifar {arguments.cifar}: looked for {folder_layout.LOOKED_FOR}")
    if arguments.json and not Path(arguments.json).absolute().parent.is_dir():
        parser.error(f"--json {arguments.json}: there is no such folder")
    files = -(-files // scale.batch) * scale.batch  # an epoch is whole batches
    torch.set_num_threads(arguments.threads)
    names = [name for name in VARIANTS if not arguments.only or name in arguments.only]
    rows: list[dict[str, object]] = []
    with tempfile.TemporaryDirectory(prefix="alr_fast_") as folder:
        if names:
            work = Work(Path(folder), files, arguments.threads, arguments.device, scale,
                        arguments.cifar)  # fmt: skip
            try:
                rows += measure(work, names, arguments.seconds)
            except UserError as error:  # of --cifar
                parser.error(str(error))
            Console().print(table(rows))
            for name, size in {
                r["source"]: r["bytes_per_file"] for r in rows if "files" in r
            }.items():
                print(f"{name}: {size:,.0f} bytes on average")
        if not arguments.only or _INDEX in arguments.only:
            found = measure_index(Path(folder), scale.samples, scale.opens)
            Console().print(index_table(found))
            rows += found
    if arguments.json:
        Path(arguments.json).write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    elif not (arguments.tiny or arguments.only):
        print(f"rows in {ResultFile(FOLDER, rows[0]['environment']).write(rows)}")


if __name__ == "__main__":
    main()
