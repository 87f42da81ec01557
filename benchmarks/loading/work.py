"""The images of the loading benchmark: photographs, shards of them, and small images."""

import io
import statistics
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from alr_fast.data.datasets import Dataset, Split, open_dataset
from alr_fast.data.images.sources import FileImages
from alr_fast.data.index import PathTable
from alr_fast.data.layouts import folder as folder_layout
from alr_fast.data.layouts.base import Found, new_index
from alr_fast.data.loaders.transform import Transform
from alr_fast.data.packing.pack import Packer

_NORMALISE = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
_CLASSES = 10


@dataclass(frozen=True)
class Scale:
    """The sizes of the benchmark."""

    photo: tuple[int, int] = (500, 375)  # longer and shorter side of a photograph
    bytes: int = 70_000  # approximate size of its file
    size: int = 224  # side of the crop
    batch: int = 64  # photographs in a batch
    small_files: int = 8192  # images of 32 x 32 pixels, generated if no CIFAR-10 is given
    small_turn: int = 200  # batches of small images in a turn
    decode_turn: int = 4096  # small images that are decoded in a turn
    samples: int = 2_400_000  # lines in the lists of the index
    opens: int = 5  # how often the index is opened from the cache


TINY = Scale((40, 32), 900, 16, 4, 256, 2, 64, 2000, 2)
SMALL_SIZE, SMALL_BATCH = 32, 128


@dataclass
class Work:
    """The input of all loaders: files, shards and transforms."""

    folder: Path  # for generated files
    files: int  # number of photographs
    threads: int  # threads or worker processes of each loader
    device: str  # cpu or cuda
    scale: Scale
    cifar: Path | None = None  # CIFAR-10 as JPEGs, train/<class>/*; None to generate small images

    def __post_init__(self) -> None:
        self.transform = Transform(
            self.scale.size,
            "resized",
            scale=(0.08, 1.0),
            ratio=(3 / 4, 4 / 3),
            flip=True,
            **_NORMALISE,
        )
        self.small_transform = Transform(SMALL_SIZE, "pad", padding=4, flip=True, **_NORMALISE)

    @cached_property
    def photos(self) -> Split:
        """The photographs; a row is the number of a file."""
        return write_images(self.folder / "photos", self.files, self.scale.photo, self.scale.bytes)

    @cached_property
    def paths(self) -> list[str]:
        """The files of the photographs."""
        return [self.photos.images.name(row) for row in range(self.files)]

    @cached_property
    def shards(self) -> Split:
        """The photographs as records of tar files; their labels are the numbers of the files."""
        return write_shards(self.folder / "shards", self.photos)

    @cached_property
    def small(self) -> Split:
        """Images of 32 x 32 pixels."""
        if self.cifar is not None:
            listing = folder_layout.read(folder_layout.find(self.cifar), "train")
            return Split(listing.index, FileImages(self.cifar, listing.index.paths))
        size = (SMALL_SIZE, SMALL_SIZE)
        return write_images(self.folder / "small", self.scale.small_files, size, 1000)

    @cached_property
    def small_part(self) -> Split:
        """The small images that are decoded in a turn."""
        return self.small.take(np.arange(min(self.scale.decode_turn, len(self.small))))

    @property
    def small_source(self) -> str:
        """Description of the small images."""
        return "CIFAR-10 (JPEG)" if self.cifar is not None else "generated 32 x 32 JPEGs"


def write_images(root: Path, count: int, sides: tuple[int, int], size: int) -> Split:
    """Generates JPEGs with a spectrum like that of photographs: smooth at all scales, and noise.

    Args:
        root: Folder to create.
        count: Number of files; every third one is in portrait format.
        sides: Longer and shorter side in pixels.
        size: Bytes of a file; the quality is chosen so that the average of a few is close to it.
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
    paths = PathTable.of(names)
    index = new_index(paths, np.arange(count) % _CLASSES, tuple(map(str, range(_CLASSES))))
    return Split(index, FileImages(root, paths))


def write_shards(root: Path, split: Split) -> Split:
    """The same images, packed."""
    # The label is the number of the file, to check that each file occurs once.
    numbers = np.arange(len(split))
    index = new_index(split.index.paths, numbers, tuple(map(str, numbers)))
    source = Dataset(folder_layout.LAYOUT, Found(split.images.root, "photographs"))
    packer = Packer(root, shard_mb=32, workers=1, track=lambda rows, **_: rows)
    plans = packer.check(source, {"train": Split(index, split.images)}, "none")
    packer.pack(plans["train"])
    return open_dataset("packed", root).split("train")
