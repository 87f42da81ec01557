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
import contextlib
import importlib.metadata
import importlib.util
import io
import itertools
import json
import math
import multiprocessing
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from alr_fast.data.datasets import Dataset, Split, open_dataset
from alr_fast.data.images import FileImages
from alr_fast.data.index import PathTable
from alr_fast.data.layouts import Found, new_index
from alr_fast.data.layouts import folder as folder_layout
from alr_fast.data.loader import Loader, choose_loader, make_loader
from alr_fast.data.memory import decode_all
from alr_fast.data.pack import Packer
from alr_fast.data.sampler import Sampler
from alr_fast.data.transform import Transform
from alr_fast.errors import UserError
from benchmarks.problem import environment
from benchmarks.results import FOLDER, ResultFile
from benchmarks.timing import synchronize, take_turns

_ROOT = Path(__file__).parent.parent
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_SCALE, _RATIO = (0.08, 1.0), (3 / 4, 4 / 3)
_CLASSES = 10
# An epoch of the timed loaders has every file so often: its end is as rare as in a large set.
_REPEATS = 64
_LEAST_ROUNDS = 3
_SETTLED = 0.05  # of a CPU; and at most so many seconds until it is:
_SETTLE_LIMIT = 5.0


@dataclass(frozen=True)
class Scale:
    """How large everything is.

    Attributes:
        photo: Longer and shorter side of a photograph.
        bytes: What a file of it is to have, about.
        size: Side of the crop.
        batch: Photographs in a batch.
        small_files: Images of 32 x 32 pixels that are made where no CIFAR-10 is given.
        small_turn: Batches of those in a turn.
        decode_turn: Of those, how many are decoded in a turn.
        samples: Lines in the lists of the index.
        opens: How often the index is opened from the cache.
    """

    photo: tuple[int, int] = (500, 375)
    bytes: int = 70_000
    size: int = 224
    batch: int = 64
    small_files: int = 8192
    small_turn: int = 200
    decode_turn: int = 4096
    samples: int = 2_400_000
    opens: int = 5


TINY = Scale((40, 32), 900, 16, 4, 256, 2, 64, 2000, 2)
SMALL_SIZE, SMALL_BATCH, SMALL_PADDING = 32, 128, 4

# Ids of a batch, int64 [B], and its images [B, 3, S, S]; for full decoding, (H, W, 3) of each.
Batch = tuple[np.ndarray, Tensor | list[tuple[int, ...]]]


class Work:
    """What all loaders have in common: files, shards, and how they are to be loaded.

    Args:
        folder: Where files are made.
        files: Number of photographs.
        threads: Threads or worker processes of each loader.
        device: ``cpu`` or ``cuda``.
        scale: See `Scale`.
        cifar: Folder of CIFAR-10 as JPEG files, ``train/<class>/*``; None makes small images.
    """

    def __init__(
        self,
        folder: Path,
        files: int,
        threads: int,
        device: str,
        scale: Scale,
        cifar: Path | None = None,
    ) -> None:
        self.folder = folder
        self.files = files
        self.threads = threads
        self.device = device
        self.scale = scale
        self.cifar = cifar
        self.transform = Transform(
            scale.size, "resized", scale=_SCALE, ratio=_RATIO, flip=True, mean=_MEAN, std=_STD
        )
        self.small_transform = Transform(
            SMALL_SIZE, "pad", padding=SMALL_PADDING, flip=True, mean=_MEAN, std=_STD
        )

    @cached_property
    def photos(self) -> Split:
        """The photographs; row by row the files."""
        return write_images(self.folder / "photos", self.files, self.scale.photo, self.scale.bytes)

    @cached_property
    def paths(self) -> list[str]:
        """The files of the photographs."""
        return [self.photos.images.name(row) for row in range(self.files)]

    @cached_property
    def shards(self) -> Split:
        """The photographs as records of tar files; labels are the numbers of the files."""
        return write_shards(self.folder / "shards", self.photos)

    @cached_property
    def small(self) -> Split:
        """Images of 32 x 32 pixels."""
        if self.cifar is not None:
            listing = folder_layout.read(folder_layout.find(self.cifar), "train")
            return Split(listing.index, FileImages(self.cifar, listing.index.paths))
        size = (SMALL_SIZE, SMALL_SIZE)
        return write_images(self.folder / "small", self.scale.small_files, size, 1000)

    @property
    def small_source(self) -> str:
        """What the small images are."""
        return "CIFAR-10 (JPEG)" if self.cifar is not None else "generated 32 x 32 JPEGs"

    def sampler(self, samples: int, batch: int) -> Sampler:
        """A random order of all samples."""
        return Sampler(samples, batch, shuffle=True)


def write_images(root: Path, count: int, sides: tuple[int, int], size: int) -> Split:
    """Makes JPEGs with the spectrum of photographs: smooth at all scales, and noise.

    Args:
        root: Folder to make.
        count: Number of files; every third one is upright.
        sides: Longer and shorter side in pixels.
        size: Bytes of a file; the quality is chosen so that a few come close to it on average.
    """
    from PIL import Image

    rng = np.random.default_rng(0)
    long, short = sides
    noise = rng.normal(0, 6, (2 * long, 2 * long, 3)).astype(np.float32)

    def pixels(number: int) -> Image.Image:
        width, height = (short, long) if number % 3 == 2 else (long, short)
        top, left = rng.integers(0, long, 2)
        image = noise[top : top + height, left : left + width] + 110
        for cells, strength in ((4, 55), (12, 30), (40, 18)):
            coarse = rng.normal(0, strength, (cells, cells, 3)).clip(-127, 127) + 128
            smooth = Image.fromarray(coarse.astype(np.uint8)).resize(
                (width, height), Image.Resampling.BICUBIC
            )
            image = image + (np.asarray(smooth, dtype=np.float32) - 128)
        return Image.fromarray(image.clip(0, 255).astype(np.uint8))

    def encode(image: Image.Image, quality: int) -> bytes:
        file = io.BytesIO()
        image.save(file, "JPEG", quality=quality)
        return file.getvalue()

    tried = [pixels(number) for number in range(min(count, 6))]
    quality = min(
        range(50, 96),
        key=lambda q: abs(statistics.fmean(len(encode(image, q)) for image in tried) - size),
    )
    names = []
    for number in range(count):
        name = f"train/{number % _CLASSES}/{number:06d}.jpg"
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(encode(pixels(number), quality))
        names.append(name)
    table = PathTable.of(names)
    labels = np.arange(count) % _CLASSES
    index = new_index(table, labels, tuple(map(str, range(_CLASSES))))
    return Split(index, FileImages(root, table))


def write_shards(root: Path, split: Split) -> Split:
    """The same images, packed."""
    # The number of a file stands in for its label, to see that each comes once.
    numbers = np.arange(len(split))
    index = new_index(split.index.paths, numbers, tuple(map(str, numbers)))
    source = Dataset(folder_layout.LAYOUT, Found(split.images.root, "photographs"))
    packer = Packer(root, shard_mb=32, workers=1, track=lambda rows, **_: rows)
    plans = packer.check(source, {"train": Split(index, split.images)}, "none")
    packer.pack(plans["train"])
    return open_dataset("packed", root).split("train")


# The loaders: each a stream of batches without end, of rows from 0 to N - 1.


def _batches(loader: Loader, files: int, device: str) -> Iterator[Batch]:
    for epoch in itertools.count():
        loader.set_epoch(epoch)
        for batch in loader:
            ids = batch["index"].cpu().numpy()
            # Rows count the repetitions; a broken sample has -1, which no file has.
            yield np.where(ids < 0, -1, ids % files), batch["image"].to(device, non_blocking=True)


def _ours(
    name: str, source: str, work: Work, repeats: int, device: str | None = None
) -> Iterator[Batch]:
    """One of our loaders; it decodes on ``device``, by default the one that wants the batches."""
    split = getattr(work, source)
    if repeats > 1:
        split = split.take(np.tile(np.arange(work.files), repeats))
    choice = choose_loader(name, split, work.transform, cache_mb=0)
    loader = make_loader(
        choice,
        split,
        work.sampler(len(split), work.scale.batch),
        work.transform,
        device=torch.device(device or work.device),
        workers=work.threads,
    )
    return _batches(loader, work.files, work.device)


def _torch_pil(work: Work, repeats: int) -> Iterator[Batch]:
    from torchvision.datasets import ImageFolder
    from torchvision.transforms import v2

    dataset = ImageFolder(
        work.photos.images.root / "train",
        v2.Compose(
            [
                v2.RandomResizedCrop(work.scale.size, _SCALE, _RATIO, antialias=True),
                v2.RandomHorizontalFlip(),
                v2.ToImage(),
                v2.ToDtype(torch.float32, scale=True),
                v2.Normalize(_MEAN, _STD),
                _rows_of_pixels,
            ]
        ),
    )
    # The number of a file stands in for its label, to see that each comes once.
    dataset.samples = [(path, row) for row, path in enumerate(work.paths)] * repeats
    loader = torch.utils.data.DataLoader(
        dataset,
        work.scale.batch,
        shuffle=True,
        num_workers=work.threads,
        persistent_workers=True,
        pin_memory=work.device == "cuda",
    )
    while True:
        for image, ids in loader:
            image = image.to(work.device, non_blocking=True).permute(0, 3, 1, 2)
            yield ids.numpy(), image


def _rows_of_pixels(image: Tensor) -> Tensor:
    """[H, W, C]: as Pillow's pixels lie, so a batch is channels last without a further copy."""
    return image.permute(1, 2, 0)


def _dali_reader(work: Work, repeats: int, shards: bool = False, mixed: bool = False):
    """What DALI's users write by hand: a reader of its own, nothing of this library.

    Its readers have no end, so nothing is repeated.
    """
    from nvidia.dali import fn, pipeline_def, types

    @pipeline_def(exec_dynamic=True, prefetch_queue_depth=2)
    def pipeline():
        if shards:
            data, ids = fn.readers.webdataset(
                paths=[os.fspath(path) for path in work.shards.images.shards],
                index_paths=[f"{path.with_suffix('.idx')}" for path in work.shards.images.shards],
                ext=["jpg", "cls"],
                missing_component_behavior="error",
                random_shuffle=True,
                name="reader",
            )
        else:
            data, ids = fn.readers.file(
                files=work.paths,
                labels=list(range(work.files)),
                shuffle_after_epoch=True,
                name="reader",
            )
        images = fn.decoders.image_random_crop(
            data,
            device="mixed" if mixed else "cpu",
            output_type=types.RGB,
            random_area=_SCALE,
            random_aspect_ratio=_RATIO,
        )
        images = fn.resize(
            images,
            size=(work.scale.size,) * 2,
            interp_type=types.INTERP_LINEAR,
            antialias=True,
        )
        images = fn.crop_mirror_normalize(
            images,
            mirror=fn.random.coin_flip(),
            dtype=types.FLOAT,
            output_layout="HWC",
            mean=[255 * value for value in _MEAN],
            std=[255 * value for value in _STD],
        )
        return images, ids

    pipe = pipeline(
        batch_size=work.scale.batch,
        num_threads=work.threads,
        device_id=torch.cuda.current_device() if mixed else None,
        seed=0,
    )
    pipe.build()
    while True:
        images, ids = pipe.run()
        if shards:  # as text
            ids = np.array([int(np.asarray(text).tobytes()) for text in ids])
        else:
            ids = np.array(ids.as_array()).reshape(-1)
        image = torch.from_dlpack(images.as_tensor()).to(work.device, non_blocking=True)
        yield ids, image.permute(0, 3, 1, 2)


def _decode_only(work: Work, repeats: int) -> Iterator[Batch]:
    from nvidia.dali import fn, pipeline_def, types

    data = [np.frombuffer(work.photos.images.read(row), np.uint8) for row in range(work.files)]
    rows = itertools.cycle(np.arange(work.files).reshape(-1, work.scale.batch))
    pending = []

    def source():
        pending.append(next(rows))
        return [data[row] for row in pending[-1]]

    @pipeline_def(exec_dynamic=True, prefetch_queue_depth=2)
    def pipeline():
        encoded = fn.external_source(source, batch=True, dtype=types.UINT8, no_copy=True)
        return fn.decoders.image(encoded, device="cpu", output_type=types.RGB)

    pipe = pipeline(batch_size=work.scale.batch, num_threads=work.threads, device_id=None)
    pipe.build()
    while True:
        (images,) = pipe.run()
        yield pending.pop(0), images.shape()


def _memory(work: Work, repeats: int) -> Iterator[Batch]:
    split = work.small
    choice = choose_loader("auto", split, work.small_transform, cache_mb=4096)
    assert choice.name == "memory", choice
    loader = make_loader(
        choice,
        split,
        work.sampler(len(split), SMALL_BATCH),
        work.small_transform,
        decoded=decode_all(split, SMALL_SIZE, workers=work.threads),
        device=torch.device(work.device),
        workers=work.threads,
    )
    return _batches(loader, len(split), work.device)


def _memory_decode(work: Work, repeats: int) -> Iterator[Batch]:
    rows = np.arange(min(work.scale.decode_turn, len(work.small)))
    part = work.small.take(rows)
    while True:
        decoded = decode_all(part, SMALL_SIZE, workers=work.threads)
        yield np.setdiff1d(rows, list(decoded.broken)), [decoded.array.shape[1:]] * len(rows)


@dataclass(frozen=True)
class Variant:
    """One loader.

    Attributes:
        source: What it reads; None: the small images.
        what: What it is, for the report.
        stream: ``stream(work, repeats)`` gives batches without end; an epoch has each file
            ``repeats`` times.
        device: What it runs on: ``cuda`` needs a GPU.
        dali: Whether it needs NVIDIA DALI.
        raw: Whether whole images in uint8 come out, no batches to train on.
    """

    source: str | None
    what: str
    stream: Callable[[Work, int], Iterator[Batch]]
    device: str = "cpu"
    dali: bool = False
    raw: bool = False


_FILES, _SHARDS = "JPEG files", "JPEG in tar shards"

# Those with worker processes come first: processes are forked before there are threads of DALI.
VARIANTS: dict[str, Variant] = {
    "torch-pil": Variant(
        _FILES,
        "torchvision's ImageFolder with PIL and v2 transforms in a DataLoader",
        _torch_pil,
    ),
    "torch-decode": Variant(_FILES, "TorchLoader", partial(_ours, "torch", "photos")),
    "dali-cpu": Variant(
        _FILES, "DaliLoader on the CPU", partial(_ours, "dali", "photos", device="cpu"), dali=True
    ),
    "dali-packed": Variant(
        _SHARDS, "DaliLoader on the CPU", partial(_ours, "dali", "shards", device="cpu"), dali=True
    ),
    "dali-mixed": Variant(
        _FILES, "DaliLoader on the GPU", partial(_ours, "dali", "photos"), "cuda", dali=True
    ),
    "dali-file-reader": Variant(
        _FILES, "a DALI pipeline by hand: file reader, random crop, CPU", _dali_reader, dali=True
    ),
    "dali-webdataset": Variant(
        _SHARDS,
        "a DALI pipeline by hand: webdataset reader, random crop, CPU",
        partial(_dali_reader, shards=True),
        dali=True,
    ),
    "dali-file-reader-mixed": Variant(
        _FILES,
        "a DALI pipeline by hand: file reader, random crop, GPU",
        partial(_dali_reader, mixed=True),
        "cuda",
        dali=True,
    ),
    "decode-only": Variant(
        "JPEG in memory",
        "libjpeg-turbo through DALI: the whole image decoded on the CPU, nothing else",
        _decode_only,
        dali=True,
        raw=True,
    ),
    "memory": Variant(
        None, "MemoryLoader: padded, cropped, mirrored, from decoded images", _memory
    ),
    "memory-decode": Variant(
        None,
        "what MemoryLoader does once before the first epoch: all files read and decoded",
        _memory_decode,
        raw=True,
    ),
}
BASELINE = "torch-pil"
INDEX = "index"


def why_not(variant: Variant, device: str) -> str | None:
    """Why a loader cannot run here, None where it can."""
    if variant.device == "cuda" and device != "cuda":
        return "needs a GPU" if not torch.cuda.is_available() else "needs --device cuda"
    if variant.dali and importlib.util.find_spec("nvidia.dali") is None:
        return "NVIDIA DALI is not installed"
    return None


# Correctness and timing.


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
                files = self.batch = min(work.scale.decode_turn, files)
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
    facts = {**environment(work.device), **_versions()}
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
                **_percentiles(speeds, "images_per_second"),
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
        rows.append({**row, "environment": facts})
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


def _percentiles(values: Sequence[float], name: str) -> dict[str, float]:
    fifths = statistics.quantiles([*values, *values[:1]], n=5, method="inclusive")
    return {
        name: statistics.median(values),
        f"{name}_p20": fifths[0],
        f"{name}_p80": fifths[3],
    }


def _versions() -> dict[str, str | None]:
    """Of what decodes and transforms."""
    versions: dict[str, str | None] = {"torchvision": None, "pillow": None, "dali": None}
    for name in importlib.metadata.packages_distributions().get("nvidia", []):
        if name.startswith("nvidia-dali"):
            versions["dali"] = importlib.metadata.version(name)
    for name in ("torchvision", "pillow"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    return versions


# The index.


def write_webvision(root: Path, samples: int) -> None:
    """WebVision's lists, and no images: two fifths Google's, the rest Flickr's."""
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
    for path in (root / "info").iterdir():
        os.utime(path, (0, 0))  # a list that has just been written is not cached


def webvision_path(samples: int, row: int) -> str:
    """Path of a row of `write_webvision`: as long as WebVision's."""
    part = "google" if row < samples * 2 // 5 else "flickr"
    return f"{part}/q{row // 600:04d}/{row * 2654435761 % 2**32:012d}.jpg"


def measure_index(folder: Path, scale: Scale) -> list[dict[str, object]]:
    """Times the index, each case in a process of its own.

    Returns:
        A row for each case.
    """
    root = folder / "webvision"
    write_webvision(root, scale.samples)
    facts = {**environment(), **_versions()}
    rows = []
    for case in ("first reading", "from the cache"):
        done = subprocess.run(
            [sys.executable, "-c", "from benchmarks import loading; loading.index_process()"],
            cwd=_ROOT,
            env={**os.environ, "ALR_FAST_CACHE": os.fspath(folder / "cache")},
            input=json.dumps([case, os.fspath(root), scale.samples, scale.opens]),
            capture_output=True,
            text=True,
        )
        if done.returncode != 0:
            raise RuntimeError(f"index, {case}: {done.stderr[-2000:]}")
        for row in json.loads(done.stdout):
            rows.append({"suite": "index", "samples": scale.samples, **row, "environment": facts})
    return rows


def index_process() -> None:
    """What a process of `measure_index` does: takes a case from its input, prints rows."""
    case, root, samples, opens = json.load(sys.stdin)
    dataset = open_dataset("webvision", root)
    if case == "from the cache":
        dataset = replace(dataset, layout=replace(dataset.layout, read=_must_not_read))
    # The peak of this process alone: that of getrusage begins with the parent's.
    _forget_peak()
    before = _resident("VmHWM")
    seconds = []
    for number in range(opens if case == "from the cache" else 1):
        begin = time.perf_counter()
        split = dataset.split("train")
        seconds.append(time.perf_counter() - begin)
        if number == 0:
            peak = _resident("VmHWM") - before
    assert len(split) == samples
    for row in (0, samples // 2, samples - 1):
        assert split.index.paths[row] == webvision_path(samples, row)
        assert split.index.labels[row] == row % split.index.num_classes
    rows = [{"case": case, **_percentiles(seconds, "seconds"), "peak_megabytes": peak / 1e6}]
    if case == "from the cache":
        loader = torch.utils.data.DataLoader(
            _Touching(split.images), batch_size=None, num_workers=2, multiprocessing_context="fork"
        )
        private = [value / 1e6 for value in loader]
        rows.append({"case": "worker", "private_megabytes": max(private)})
    print(json.dumps(rows))


class _Touching(torch.utils.data.Dataset):
    """Private bytes of a worker that has looked at 1,000 paths of all over the list."""

    def __init__(self, images: FileImages) -> None:
        self._images = images

    def __len__(self) -> int:
        return 2  # one for each worker

    def __getitem__(self, number: int) -> int:
        rows = np.random.default_rng(number).integers(0, len(self._images), 1000)
        assert all(self._images.name(row) for row in rows)
        text = Path("/proc/self/smaps_rollup").read_text()
        return sum(_kilobytes(text, name) for name in ("Private_Clean", "Private_Dirty"))


def _must_not_read(found, split):
    raise RuntimeError("the list did not come from the cache")


def _forget_peak() -> None:
    # Where the kernel allows it; else what imports left is taken for granted.
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def _resident(name: str) -> int:
    return _kilobytes(Path("/proc/self/status").read_text(), name)


def _kilobytes(text: str, name: str) -> int:
    """Bytes of the line ``name: N kB``."""
    return next(int(line.split()[1]) for line in text.splitlines() if line.startswith(name)) * 1024


# The command.


def to_baseline(rows: Sequence[dict]) -> dict[str, float]:
    """How many times faster than `BASELINE` the loaders are that give the same batches."""
    speed = {r["loader"]: (r["images_per_second"], r["output"]) for r in rows if "output" in r}
    base, output = speed.get(BASELINE, (None, None))
    return {name: value / base for name, (value, given) in speed.items() if given == output}


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
    parser.add_argument("--only", nargs="+", metavar="NAME", choices=(*VARIANTS, INDEX),
                        help=f"these alone, of {', '.join((*VARIANTS, INDEX))}")  # fmt: skip
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
        if not arguments.only or INDEX in arguments.only:
            found = measure_index(Path(folder), scale)
            Console().print(index_table(found))
            rows += found
    if arguments.json:
        Path(arguments.json).write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    elif not (arguments.tiny or arguments.only):
        print(f"rows in {ResultFile(FOLDER, rows[0]['environment']).write(rows)}")


if __name__ == "__main__":
    main()
