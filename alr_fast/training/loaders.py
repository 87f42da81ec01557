"""The loaders of a run: transform, batches of each split, broken samples."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial

import torch

from alr_fast.data.broken import BrokenSamples
from alr_fast.data.datasets import Split
from alr_fast.data.decode import prepare
from alr_fast.data.images import ArrayImages, BrokenImage
from alr_fast.data.loaders.base import Loader
from alr_fast.data.loaders.choose import LoaderChoice, choose_loader, make_loader
from alr_fast.data.loaders.memory import Decoded, decode_all
from alr_fast.data.sampler import Sampler, SequentialSampler, ShuffledSampler
from alr_fast.data.transform import Transform, for_evaluation
from alr_fast.errors import UserError, naming_options
from alr_fast.training.config.schema import Config, DataConfig
from alr_fast.training.distributed import World
from alr_fast.training.run_data import RunData, _workers

LARGEST_DEFAULT_SIZE = 224
LARGEST_TEST_BATCH = 512
TEST_BATCH_PIXELS = 1 << 23  # 167 images of 224 x 224: batches pass through shared memory


def make_transform(config: DataConfig, split: Split) -> Transform:
    """What is done to training images.

    Raises:
        UserError: No image size is given, and no image can be read to take it from.
    """
    if isinstance(split.images, ArrayImages):
        size = resize = split.images.array.shape[-1]
        if config.crop not in ("center", "pad"):
            raise UserError(
                f"--data.crop {config.crop}: images that come as arrays are only padded and "
                "cropped; pass --data.crop pad"
            )
        if config.randaugment_ops:
            raise UserError(
                f"--data.randaugment_ops {config.randaugment_ops}: images that come as arrays are "
                "only padded and cropped; leave it out"
            )
    else:
        size = config.image_size or _first_size(split)
        resize = config.resize
        if resize is None:
            resize = size if config.crop in ("center", "pad") else round(size * 256 / 224)
        if resize < size:
            raise UserError(
                f"--data.resize {resize}: is below the image size, {size}; raise it, or lower "
                "--data.image_size"
            )
    return Transform(
        size=size,
        crop=config.crop,
        resize=resize,
        padding=config.crop_padding,
        flip=config.flip,
        randaugment=(config.randaugment_ops, config.randaugment_magnitude)
        if config.randaugment_ops
        else None,
        mean=tuple(config.mean or (0.5,)),
        std=tuple(config.std or (0.5,)),
    )


def _first_size(split: Split) -> int:
    reason = ""
    for row in range(min(len(split), 100)):
        try:
            encoded = prepare(split.images.read(row))
        except BrokenImage as error:
            reason = reason or f"{split.images.name(row)} cannot be read as an image ({error})"
        else:
            return min(encoded.height, encoded.width, LARGEST_DEFAULT_SIZE)
    raise UserError(f"{reason}, nor can those after it; replace or remove the files")


@dataclass(frozen=True)
class Loaders:
    """The batches of a run, the same for every method.

    Attributes:
        train: Training batches.
        tests: Batches of each test split.
        validation: Batches of the training samples put aside, None where none are.
        in_order: Makes a loader of the training samples of this process, as they are, each once.
        choice: Which loader was taken for training.
    """

    train: Loader[ShuffledSampler]
    tests: tuple[Loader, ...]
    validation: Loader | None
    in_order: Callable[[], Loader]
    choice: LoaderChoice

    @property
    def evaluated(self) -> tuple[Loader, ...]:
        """Those that are evaluated on after each epoch: test splits, then what was put aside."""
        return (*self.tests, *(() if self.validation is None else (self.validation,)))

    def share_broken(self, world: World) -> None:
        """Tells all processes which samples turned out to give no image.

        Raises:
            SharedError: They are too many.
        """
        lists = [loader.broken for loader in (self.train, *self.evaluated)]
        parts = world.gather([broken.reasons for broken in lists])

        def merge() -> None:
            for number, broken in enumerate(lists):
                for part in parts:
                    broken.merge(part[number])

        world.on_all_ranks(merge)


def make_loaders(
    config: Config,
    data: RunData,
    transform: Transform,
    *,
    world: World,
    log: Callable[[str], None],
    track: Callable[..., Iterable],
) -> Loaders:
    """Builds the loaders; decodes this process's images here where they are kept in memory.

    Args:
        config: Resolved configuration.
        data: What `load_data` gave, with the labels to train on.
        transform: What is done to training images.
        world: The processes of the run, and where batches are wanted.
        log: Takes a line of text.
        track: ``track(iterable, description=str, total=int)`` shows progress.

    Raises:
        UserError: The loader cannot load this, too many files are broken, or the batch or the
            samples cannot be shared among the processes.
    """
    options = config.data
    workers = _workers(options, world.local_size)
    batch_size, rest = divmod(config.optim.batch_size, world.size)
    if rest:
        raise UserError(
            f"--optim.batch_size {config.optim.batch_size}: cannot be shared equally among "
            f"{world.size} processes; pass a multiple of {world.size}"
        )
    if len(data.train) < 2 * world.size:
        raise UserError(
            f"{len(data.train):,} training images are too few for {world.size} processes; start "
            "fewer"
        )
    per_class = None
    if options.epoch_samples is not None:
        per_class = options.epoch_samples // data.train.index.num_classes
        if per_class < world.size:
            raise UserError(
                f"--data.epoch_samples {options.epoch_samples}: below the number of classes, "
                f"{data.train.index.num_classes}"
                + (f", times that of processes, {world.size}" if world.size > 1 else "")
                + "; raise it"
            )
    dtype = getattr(torch, config.precision)
    made: list[tuple[Loader, LoaderChoice, Decoded | None]] = []
    splits = [("training", data.train), *(("test", test) for test in data.tests)]
    if data.validation is not None:
        splits.append(("validation", data.validation))
    for what, split in splits:
        training = what == "training"
        own = transform if training else for_evaluation(transform)
        with naming_options(loader="data.loader"):
            choice = choose_loader(
                _wanted_loader(options.loader, training), split, own, options.cache_mb
            )
        broken = BrokenSamples(split, options.max_broken, log, alone=world.size == 1)
        sampler: Sampler
        if training:
            sampler = ShuffledSampler(
                len(split),
                batch_size,
                seed=config.seed,
                rank=world.rank,
                world_size=world.size,
                labels=split.index.labels,
                per_class=per_class,
            )
        else:
            sampler = SequentialSampler(
                len(split),
                evaluation_batch_size(own.size),
                seed=config.seed,
                rank=world.rank,
                world_size=world.size,
            )
        decoded = None
        if choice.name == "memory" and split.images.array is None:
            rows = sampler.rows
            decoded = decode_all(
                split,
                own.size,
                rows=rows,
                resize=own.resize,
                workers=workers,
                broken=broken,
                progress=partial(track, description=f"Decoding {what} images", total=len(rows)),
            )
        loader = make_loader(
            choice,
            split,
            sampler,
            own,
            decoded=decoded,
            device=world.device,
            dtype=dtype,
            workers=workers,
            broken=broken,
        )
        made.append((loader, choice, decoded))
    (train, choice, pixels), *others = made
    loaders = [loader for loader, _, _ in others]
    log(f"loader: {choice.name} ({choice.why})")

    def in_order() -> Loader:
        own = for_evaluation(transform)
        return make_loader(
            choice,
            data.train,
            train.sampler.in_order(evaluation_batch_size(own.size)),
            own,
            decoded=pixels,
            device=world.device,
            dtype=dtype,
            workers=workers,
        )

    return Loaders(
        train,
        tests=tuple(loaders[: len(data.tests)]),
        validation=None if data.validation is None else loaders[-1],
        in_order=in_order,
        choice=choice,
    )


def evaluation_batch_size(size: int) -> int:
    """Images of ``size`` x ``size`` pixels in a batch that only goes forward."""
    return max(min(LARGEST_TEST_BATCH, TEST_BATCH_PIXELS // size**2), 1)


def _wanted_loader(name: str, training: bool) -> str:
    # A named loader that cannot hold the test images in memory is no reason to stop.
    return "auto" if not training and name == "memory" else name
