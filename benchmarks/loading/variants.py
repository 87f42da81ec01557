"""The loaders of the benchmark as endless streams of batches, with rows from 0 to N - 1."""

import itertools
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from alr_fast.data.loaders.base import Loader
from alr_fast.data.loaders.choose import choose_loader, has_dali, make_loader
from alr_fast.data.loaders.memory import decode_all
from alr_fast.data.sampler import ShuffledSampler
from benchmarks.loading.work import SMALL_BATCH, SMALL_SIZE, Work

# Rows of a batch, int64 [B], and its images [B, 3, S, S]; for full decoding, (H, W, 3) of each.
Batch = tuple[np.ndarray, Tensor | list[tuple[int, ...]]]


def _ours(
    work: Work, repeats: int, name: str, shards: bool = False, device: str | None = None
) -> Iterator[Batch]:
    """A loader of alr_fast that decodes on ``device``, by default the training device."""
    split = work.shards if shards else work.photos
    if repeats > 1:
        split = split.take(np.tile(np.arange(work.files), repeats))
    loader = make_loader(
        choose_loader(name, split, work.transform, cache_mb=0),
        split,
        ShuffledSampler(len(split), work.scale.batch),
        work.transform,
        device=torch.device(device or work.device),
        workers=work.threads,
    )
    return _epochs(work, loader, work.files)


def _memory(work: Work, repeats: int) -> Iterator[Batch]:
    split = work.small
    choice = choose_loader("auto", split, work.small_transform, cache_mb=4096)
    assert choice.name == "memory", choice
    sampler = ShuffledSampler(len(split), SMALL_BATCH)
    loader = make_loader(
        choice,
        split,
        sampler,
        work.small_transform,
        decoded=decode_all(split, SMALL_SIZE, rows=sampler.rows, workers=work.threads),
        device=torch.device(work.device),
        workers=work.threads,
    )
    return _epochs(work, loader, len(split))


def _epochs(work: Work, loader: Loader, files: int) -> Iterator[Batch]:
    """The batches of all epochs of a loader, whose rows repeat the files."""
    for epoch in itertools.count():
        loader.set_epoch(epoch)
        for batch in loader:
            rows = batch["index"].cpu().numpy()
            image = batch["image"].to(work.device, non_blocking=True)
            # A broken sample has -1, which is no row of a file.
            yield np.where(rows < 0, -1, rows % files), image


def _torch_pil(work: Work, repeats: int) -> Iterator[Batch]:
    from torchvision.datasets import ImageFolder
    from torchvision.transforms import v2

    transform = work.transform
    dataset = ImageFolder(
        work.photos.images.root / "train",
        v2.Compose(
            [
                v2.RandomResizedCrop(
                    transform.size, transform.scale, transform.ratio, antialias=True
                ),
                v2.RandomHorizontalFlip(),
                v2.ToImage(),
                v2.ToDtype(torch.float32, scale=True),
                v2.Normalize(transform.mean, transform.std),
                _rows_of_pixels,
            ]
        ),
    )
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
    """[H, W, C], the order of Pillow's pixels: batches are channels last without another copy."""
    return image.permute(1, 2, 0)


def _dali_reader(
    work: Work, repeats: int, shards: bool = False, mixed: bool = False
) -> Iterator[Batch]:
    """A typical pipeline of DALI's users; its readers are endless, so ``repeats`` is not needed."""
    from nvidia.dali import fn, pipeline_def, types

    transform = work.transform

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
            random_area=transform.scale,
            random_aspect_ratio=transform.ratio,
        )
        images = fn.resize(
            images,
            size=(transform.size, transform.size),
            interp_type=types.INTERP_LINEAR,
            antialias=True,
        )
        images = fn.crop_mirror_normalize(
            images,
            mirror=fn.random.coin_flip(),
            dtype=types.FLOAT,
            output_layout="HWC",
            mean=[255 * value for value in transform.mean],
            std=[255 * value for value in transform.std],
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


def _memory_decode(work: Work, repeats: int) -> Iterator[Batch]:
    rows = np.arange(len(work.small_part))
    while True:
        decoded = decode_all(work.small_part, SMALL_SIZE, workers=work.threads)
        yield np.setdiff1d(rows, list(decoded.broken)), [decoded.array.shape[1:]] * len(rows)


@dataclass(frozen=True)
class Variant:
    """One loader."""

    source: str | None  # its input; None for the small images
    what: str  # description for the report
    # stream(work, repeats) yields batches endlessly; an epoch has each file `repeats` times.
    stream: Callable[[Work, int], Iterator[Batch]]
    device: str = "cpu"  # cuda if it needs a GPU
    dali: bool = False  # whether it needs NVIDIA DALI
    raw: bool = False  # whether it yields whole uint8 images instead of batches to train on


_FILES, _SHARDS = "JPEG files", "JPEG in tar shards"

# Variants with worker processes come first: they fork before DALI starts threads.
VARIANTS: dict[str, Variant] = {
    "torch-pil": Variant(
        _FILES, "torchvision's ImageFolder with PIL and v2 transforms in a DataLoader", _torch_pil
    ),
    "torch-decode": Variant(_FILES, "TorchLoader", partial(_ours, name="torch")),
    "dali-cpu": Variant(
        _FILES, "DaliLoader on the CPU", partial(_ours, name="dali", device="cpu"), dali=True
    ),
    "dali-packed": Variant(
        _SHARDS,
        "DaliLoader on the CPU",
        partial(_ours, name="dali", shards=True, device="cpu"),
        dali=True,
    ),
    "dali-mixed": Variant(
        _FILES, "DaliLoader on the GPU", partial(_ours, name="dali"), "cuda", dali=True
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
        "libjpeg-turbo through DALI: decodes the whole image on the CPU, nothing else",
        _decode_only,
        dali=True,
        raw=True,
    ),
    "memory": Variant(
        None, "MemoryLoader: padded, cropped, mirrored, from decoded images", _memory
    ),
    "memory-decode": Variant(
        None,
        "the preparation of MemoryLoader before the first epoch: reads and decodes all files",
        _memory_decode,
        raw=True,
    ),
}


def why_not(variant: Variant, device: str) -> str | None:
    """The reason why a loader cannot run here; None if it can."""
    if variant.device == "cuda" and device != "cuda":
        return "needs a GPU" if not torch.cuda.is_available() else "needs --device cuda"
    if variant.dali and not has_dali():
        return "NVIDIA DALI is not installed"
    return None
