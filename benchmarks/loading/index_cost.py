"""The cost of a list of millions of samples, WebVision's, in seconds and in memory.

Run as a program, this file is the process of one case, see `index_process`.
"""

import contextlib
import json
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

from numpy.random import default_rng
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from alr_fast.data.datasets import open_dataset
from alr_fast.data.images.sources import FileImages
from benchmarks.harness.averages import percentiles
from benchmarks.harness.environment import loading_environment

_ROOT = Path(__file__).parents[2]
_SETTLE_SECONDS = 2  # lists that were just written are not cached
_FIRST, _CACHED = "first reading", "from the cache"


def write_webvision(root: Path, samples: int) -> None:
    """Writes WebVision's lists without images: two fifths from Google, the rest from Flickr."""
    classes = min(1000, samples)
    (root / "info").mkdir(parents=True)
    synsets = (f"n{number:08d} thing {number}, object\n" for number in range(classes))
    (root / "info/synsets.txt").write_text("".join(synsets))
    google = samples * 2 // 5
    for part, rows in (("google", range(google)), ("flickr", range(google, samples))):
        (root / part).mkdir()
        path = root / f"info/train_filelist_{part}.txt"
        with open(path, "w") as file:
            file.writelines(f"{webvision_path(samples, n)} {n % classes}\n" for n in rows)


def webvision_path(samples: int, row: int) -> str:
    """Path of a row of `write_webvision`, as long as WebVision's paths."""
    part = "google" if row < samples * 2 // 5 else "flickr"
    return f"{part}/q{row // 600:04d}/{row * 2654435761 % 2**32:012d}.jpg"


def measure_index(folder: Path, samples: int, opens: int) -> list[dict[str, object]]:
    """One row for each case of the index, measured in its own process.

    Args:
        folder: Folder for the files.
        samples: Lines in the lists.
        opens: How often the index is opened from the cache.
    """
    root = folder / "webvision"
    write_webvision(root, samples)
    time.sleep(_SETTLE_SECONDS)
    environment = loading_environment()
    rows = []
    for case in (_FIRST, _CACHED):
        done = subprocess.run(
            [sys.executable, "-m", "benchmarks.loading.index_cost"],
            cwd=_ROOT,
            env={**os.environ, "ALR_FAST_CACHE": os.fspath(folder / "cache")},
            input=json.dumps([case, os.fspath(root), samples, opens]),
            capture_output=True,
            text=True,
        )
        if done.returncode != 0:
            raise RuntimeError(f"index, {case}: {done.stderr[-2000:]}")
        for row in json.loads(done.stdout):
            rows.append({"suite": "index", "samples": samples, **row, "environment": environment})
    return rows


def index_process() -> None:
    """The process of `measure_index`: reads a case from standard input, prints rows."""
    case, root, samples, opens = json.load(sys.stdin)
    dataset = open_dataset("webvision", root)
    if case == _CACHED:
        dataset = replace(dataset, layout=replace(dataset.layout, read=_must_not_read))
    # The peak of this process alone: that of getrusage includes the parent's.
    _forget_peak()
    before = _bytes("status", "VmHWM")
    seconds = []
    for number in range(opens if case == _CACHED else 1):
        begin = time.perf_counter()
        split = dataset.split("train")
        seconds.append(time.perf_counter() - begin)
        if number == 0:
            peak = _bytes("status", "VmHWM") - before
    assert len(split) == samples
    for row in (0, samples // 2, samples - 1):
        assert split.index.paths[row] == webvision_path(samples, row)
        assert split.index.labels[row] == row % split.index.num_classes
    rows = [{"case": case, **percentiles(seconds, "seconds"), "peak_megabytes": peak / 1e6}]
    if case == _CACHED:
        loader = DataLoader(
            _Touching(split.images), batch_size=None, num_workers=2, multiprocessing_context="fork"
        )
        private = [value / 1e6 for value in loader]
        rows.append({"case": "worker", "private_megabytes": max(private)})
    print(json.dumps(rows))


class _Touching(TorchDataset):
    """Private bytes of a worker that has accessed 1,000 paths from all parts of the list."""

    def __init__(self, images: FileImages) -> None:
        self._images = images

    def __len__(self) -> int:
        return 2  # one for each worker

    def __getitem__(self, number: int) -> int:
        rows = default_rng(number).integers(0, len(self._images.paths), 1000)
        assert all(self._images.name(row) for row in rows)
        return _bytes("smaps_rollup", "Private_Clean", "Private_Dirty")


def _must_not_read(found, split):
    raise RuntimeError("the list did not come from the cache")


def _forget_peak() -> None:
    # If the kernel does not allow it, the peak of the imports counts.
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def _bytes(file: str, *names: str) -> int:
    """Sum of the lines ``name: N kB`` in a file of /proc/self."""
    lines = Path("/proc/self", file).read_text().splitlines()
    values = dict(line.split(":", 1) for line in lines if ":" in line)
    return 1024 * sum(int(values[name].split()[0]) for name in names)


if __name__ == "__main__":
    index_process()
